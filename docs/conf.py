"""How the site is built from these pages and the docstrings: `make docs`, which asks nothing of a network.

    python -m sphinx -M html docs docs/_build -W --keep-going -E

`-D source_url=URL` says where the files of the repository are to be seen, such as https://host/owner/dsvcca/blob/main:
what pages say of files outside of docs/ then leads there. Otherwise those files are copied into the site.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import metadata
from inspect import isclass
from pathlib import Path
from typing import Any

import typer
from docutils import nodes
from jinja2 import DictLoader
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode
from sphinx.util.rst import escape

from dsvcca.cli import app as command_line

package = metadata("dsvcca")
project = package["Name"]
release = version = package["Version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4  # links such as store.md#at-a-url lead to headings, as they do in the repository
default_role = "py:obj"  # `compare` in a docstring is a link, where there is such a name
smartquotes_action = "D"  # dashes; quotes are of code as often as not
nitpicky = False
add_module_names = False
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 88

autodoc_typehints = "none"  # docstrings say them
autodoc_member_order = "bysource"
autosummary_generate = False  # entries are in docs/api; tables lead to them
napoleon_google_docstring = False
napoleon_use_param = napoleon_use_rtype = False  # "x, y" stay together
napoleon_custom_sections = [("Attributes", "params_style")]

html_theme = "pydata_sphinx_theme"
html_title = project
html_show_sourcelink = html_copy_source = html_show_sphinx = False
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system has it
html_sidebars = {"**": ["site.html"]}
html_theme_options = {
    "logo": {"text": f"{project} {release}"},
    "navbar_center": [],  # all pages are in the sidebar, under their captions
    "navbar_end": ["theme-switcher"],
    "primary_sidebar_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "footer_start": [],
    "footer_end": [],
    "article_header_start": [],
}

SIDEBAR = """
<nav class="bd-docs-nav bd-links" aria-label="All pages">
  <div class="bd-toc-item navbar-nav">
    {{- generate_toctree_html(
      "sidebar", startdepth=0, maxdepth=2, collapse=True, includehidden=True, titles_only=True
    ) -}}
  </div>
</nav>
"""
"""All pages under the captions of index.md; that of the theme has only what is below one of them."""

STYLE = """
<style>
  .bd-page-width { max-width: 104rem; }
  .bd-sidebar-primary { flex-basis: 19rem; max-width: 19rem; }
  .bd-sidebar-secondary { flex-basis: 15rem; max-width: 15rem; }
  .bd-main .bd-content .bd-article-container { max-width: 66rem; }
  .bd-article-container pre { font-size: 0.8rem; }
  .navbar-header-items__end { margin-left: auto; }
  .bd-article dl.std.option { margin-bottom: 0.5rem !important; }
</style>
"""
"""Room for the 120 columns that code in these pages takes."""

RETURNED = {
    "Cluster": "dsvcca.clusters.workplace",
    "Compressed": "dsvcca.maths.cca",
    "Layout": "dsvcca.plans.layout",
    "Machine": "dsvcca.plans.machine",
    "Price": "dsvcca.plans.price",
    "Progress": "dsvcca.progress",
}
"""Classes that are met as what others return, and not imported."""

MODULES = ("dsvcca", "dsvcca.torch", "dsvcca.plot", "dsvcca.statistics", "dsvcca.errors", *RETURNED.values())
"""Where the names are that docstrings call by their last part."""

CLASSES = [name for module in MODULES[:4] for name, found in vars(import_module(module)).items() if isclass(found)]
CLASS = re.compile(rf"(?<![\w.])({'|'.join({*CLASSES, *RETURNED})})(?![\w.])")
"""What is a link in the types of parameters, and in what is returned or warned of."""

EXPLAINED = {"dsvcca.maths.measures.MEASURES": "numbers", "dsvcca.maths.variants.VARIANTS": "tools"}
"""Names that docstrings send readers to, and the pages that say the same."""


def plain_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Leave nothing in a docstring that means something to Sphinx but backticks, lists, doctests and literal blocks.

    |x| is a norm and (*space, c) a shape, not markup. "docs/slurm.md" becomes a link.
    """
    block = None  # indentation of what began a literal block
    doctest = False
    section = ""
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        doctest = bool(line.strip()) and (doctest or line.lstrip().startswith(">>>"))
        if block is not None and line.strip() and indent <= block:
            block = None
        if block is not None or doctest:
            continue
        if line.startswith("---"):
            section = lines[i - 1]
        before, colon, kind = line.partition(" : ")
        if section and colon and not indent:
            line = before + colon + CLASS.sub(r"`\1`", kind)
        elif section in ("Returns", "Warns") and not indent:
            line = CLASS.sub(r": `\1`" if section == "Warns" else r"`\1`", line)
        parts = re.split(r"(``.*?``|`.*?`)", line)
        parts[::2] = [linked(re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", part)) for part in parts[::2]]
        lines[i] = "".join(parts)
        if line.endswith("::"):
            block = indent
    if what == "property":
        lines[:0] = ["..", ""]  # a comment; or napoleon takes what stands before a colon for a type


def linked(text: str) -> str:
    """Make links of docs/*.md in reStructuredText."""
    return re.sub(r"docs/([\w-]+)\.md", r":doc:`/\1`", text)


def without_what_nobody_calls(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, None] | None:
    """Show no signature of classes that functions return: what they hold is in the docstring."""
    if what != "class" or issubclass(obj, tuple) or "Parameters\n" in (obj.__doc__ or ""):
        return None
    return "", None


def without_fields(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out fields of named tuples, which have no docstrings of their own."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def by_last_part(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, shown: nodes.TextElement
) -> nodes.reference | None:
    """Find what a docstring calls by its last part: `Store.write` in one of dsvcca.torch."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    if target in EXPLAINED:
        return make_refnode(app.builder, node["refdoc"], EXPLAINED[target], None, shown)
    objects = env.domains.python_domain.objects
    for name in (f"{module}.{target}" for module in MODULES):
        if name in objects:
            found = objects[name]
            return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, shown, name)
    return None


class OutsideLinks(SphinxTransform):
    """Links to what lies outside of docs/: to `source_url`, or to a copy of the file; of a folder only its name."""

    default_priority = 400

    def apply(self, **kwargs: Any) -> None:
        base = self.config.source_url.rstrip("/")
        here = Path(self.env.srcdir)
        for node in list(self.document.findall(_is_link)):
            path = (here / Path(self.env.docname).parent / node["reftarget"].partition("#")[0]).resolve()
            if not path.exists() or path.is_relative_to(here) or not path.is_relative_to(here.parent):
                continue
            if base:
                url = f"{base}/{path.relative_to(here.parent).as_posix()}"
                node.replace_self(nodes.reference("", "", *node.children, refuri=url))
            elif path.is_dir():
                node.replace_self(node.children)


def _is_link(node: nodes.Node) -> bool:
    """Return whether a node is what MyST made of a link to something that is no page."""
    found = isinstance(node, addnodes.download_reference | addnodes.pending_xref)
    return found and node.get("reftype") == "myst" and node.get("refdomain") is None


class CommandLine(SphinxDirective):
    """Every command with its arguments and options, as `--help` has them."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes("\n".join(self.lines()), allow_section_headings=True)

    def lines(self) -> Iterator[str]:
        """Write reStructuredText: a section a command."""
        group: Any = typer.main.get_command(command_line)
        top = group.make_context(project, [], resilient_parsing=True)
        yield from _described(group, top, project)
        for name, command in group.commands.items():
            context = command.make_context(name, [], parent=top, resilient_parsing=True)
            yield from (name, "-" * len(name), "")
            yield from _described(command, context, f"{project} {name}")


def _described(command: Any, context: Any, name: str) -> Iterator[str]:
    """Write what one command does, how it is called, and what it takes."""
    usage = re.sub(r"\{([^{}]*)\}(\.\.\.)?", r"\1", " ".join(command.collect_usage_pieces(context)))
    usage = usage.replace("[[", "[").replace("]]", "]")
    yield from (".. code-block:: text", "", f"   {name} {usage}", "")
    yield from (_written(command.help), "", f".. program:: {name}", "")
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None:
            continue
        called, said = record
        if parameter.param_type_name == "argument":
            called = called.partition(" <")[0].upper()
        called = re.sub(r"<list\[(.*)\]>", r"<\1>", called).replace(" range>", ">")
        yield from (f".. option:: {called}", "", f"   {_written(said)}", "")


def _written(said: str) -> str:
    """Write what `--help` says in reStructuredText, with options as code and docs/*.md as links."""
    parts = re.split(r"(docs/[\w-]+\.md|(?<!\S)--[a-z][a-z-]*)", said)
    parts[::2] = [escape(part) for part in parts[::2]]
    parts[1::2] = [f"``{part}``" if part.startswith("--") else linked(part) for part in parts[1::2]]
    return "".join(parts)


def with_style(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    context["metatags"] = context.get("metatags", "") + STYLE


def with_sidebar(app: Sphinx) -> None:
    """Let templates be found that are written here."""
    app.builder.templates.loaders.insert(0, DictLoader({"site.html": SIDEBAR}))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("source_url", "", "env", types=[str])
    app.add_directive("commands", CommandLine)
    app.add_transform(OutsideLinks)
    app.connect("autodoc-process-docstring", plain_docstring, priority=100)  # before napoleon, which writes markup
    app.connect("autodoc-process-signature", without_what_nobody_calls)
    app.connect("autodoc-skip-member", without_fields)
    app.connect("missing-reference", by_last_part)
    app.connect("builder-inited", with_sidebar)
    app.connect("html-page-context", with_style)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
