"""The site that docs/ and the docstrings become: whole, with links that lead somewhere, and without a network."""

import html
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from filelock import FileLock
from typer.testing import CliRunner

import dsvcca
from dsvcca.cli import app
from tests.browser import chromium

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
MARKDOWN = [ROOT / "README.md", *PAGES, *sorted((DOCS / "api").glob("*.md"))]
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")


def build(docs, out, *options):
    """Make a site as `make docs` does: with what is wrong as an error."""
    for name in ("sphinx", "myst_parser", "pydata_sphinx_theme", "torch"):
        pytest.importorskip(name, reason="make docs: pip install 'dsvcca[docs]'")
    read = out.parent / f"{out.name}.read"
    line = [sys.executable, "-m", "sphinx", "-q", "-E", "-W", "--keep-going", "-d", str(read)]
    line += [*options, str(docs), str(out)]
    found = subprocess.run(line, capture_output=True, text=True, timeout=110, check=False)
    assert found.returncode == 0, found.stderr
    return out


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built once for all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with FileLock(base / "site.lock"):
        if not (base / "site.whole").exists():
            build(DOCS, base / "site")
            (base / "site.whole").touch()
    return base / "site"


def built(site):
    """Return the pages of the site; below _static are templates of the theme."""
    return [page for page in sorted(site.rglob("*.html")) if "_static" not in page.parts]


def words(text):
    """Return the words of a text, one blank between two."""
    return " ".join(re.findall(r"\w+", text))


def shown(page):
    """Return what is to be read on a page, without tags."""
    article = re.search(r"<article.*?</article>", page.read_text(), flags=re.DOTALL)[0]
    return html.unescape(re.sub(r"<[^>]+>", "", article))


def public():
    """Give every name that is meant to be called, with what it is."""
    torch = pytest.importorskip("dsvcca.torch")
    of_torch = [name for name, found in vars(torch).items() if name[0] != "_" and not inspect.ismodule(found)]
    modules = {dsvcca: dsvcca.__all__, torch: of_torch}
    modules |= {module: module.__all__ for module in (dsvcca.plot, dsvcca.statistics)}
    return {f"{module.__name__}.{name}": getattr(module, name) for module, names in modules.items() for name in names}


def members(found):
    """Give the methods and properties of a class that have docstrings of their own."""
    for name, member in vars(found).items() if inspect.isclass(found) else ():
        is_field = type(member).__name__ == "_tuplegetter"
        if name[0] != "_" and not is_field and (inspect.isfunction(member) or isinstance(member, property)):
            yield name, member


@pytest.mark.slow
def test_every_public_name_has_an_entry_with_its_whole_docstring(site):
    pages = {page: page.read_text() for page in sorted((site / "api").glob("*.html"))}
    pages[site / "api.html"] = (site / "api.html").read_text()
    read = {page: words(shown(page)) for page in pages}
    names = public()
    assert len(names) > 60
    for name, found in names.items():
        parts = {name: found} | {f"{name}.{member}": what for member, what in members(found)}
        for part, what in parts.items():
            where = [page for page, text in pages.items() if f'id="{part}"' in text or f'id="module-{part}"' in text]
            assert len(where) == 1, f"{part} has {len(where)} entries: add it to docs/api/*.md"
            for line in (inspect.getdoc(what) or "").splitlines():
                line = re.sub(r"# doctest:.*|docs/[\w-]+\.md", "", line)  # not shown; shown as links
                assert words(line) in read[where[0]], f"{part}: {line!r} is not in {where[0].name}"


@pytest.mark.slow
def test_every_public_name_is_in_the_tables(site):
    overview = (site / "api.html").read_text()
    for name, found in public().items():
        if not inspect.ismodule(found):
            assert re.search(rf'<td>.*?href="api/\w+\.html#{re.escape(name)}"', overview), name


@pytest.mark.slow
def test_every_page_is_reached_from_the_front_page(site):
    front, reference = ((site / name).read_text() for name in ("index.html", "api.html"))
    for page in PAGES:
        assert page.stem == "index" or f'internal" href="{page.stem}.html"' in front, page.name
    for page in (DOCS / "api").glob("*.md"):
        assert f'internal" href="api/{page.stem}.html"' in reference, page.name


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in LINK.findall(without_code(page)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = unquote(link).partition("#")
        found = (page.parent / target).resolve() if target else page
        if found.is_relative_to(ROOT / "dsvcca") and not (ROOT / "dsvcca").exists():
            continue  # these are the tests of what is installed
        assert found.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(found), f"{page.name}: {link}: there is {', '.join(anchors(found))}"


def without_code(page):
    """Return Markdown without blocks of code and code in lines, neither of which has links."""
    text = re.sub(r"^(`{3,}).*?^\1`*$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<!`)`(?!`)[^`]*`", "``", text)


def anchors(page):
    """Return what the headings of a page are called in links."""
    text = re.sub(r"^(`{3,}).*?^\1`*$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = []
    for title in re.findall(r"^#{1,4} +(.*?) *$", text, flags=re.MULTILINE):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        again = sum(one == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", one) is not None for one in found)
        found.append(f"{slug}-{again}" if again else slug)
    return found


@pytest.mark.slow
def test_every_link_of_the_site_leads_to_a_file_and_a_place(site):
    pages = {page: page.read_text() for page in built(site)}
    places = {page: set(re.findall(r'\sid="([^"]+)"', text)) for page, text in pages.items()}
    for page, text in pages.items():
        for link in re.findall(r'<(?:a|img|script|link)\b[^>]*?\s(?:href|src)="([^"]*)"', text):
            if re.match(r"(https?|mailto|data):", link):
                continue
            target, _, place = html.unescape(unquote(link)).partition("#")
            found = (page.parent / target.partition("?")[0]).resolve() if target else page
            assert found.is_file(), f"{page.name}: {link}"
            if place and found in places:
                assert place in places[found], f"{page.name}: {link}"


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site):
    for page in built(site):
        text = page.read_text()
        for tag in re.findall(r"<(?:script|link|img|iframe|source|video|audio|object|embed)\b[^>]*>", text):
            assert not re.search(r'(?:href|src|data)="(?:\w+:)?//', tag), f"{page.name}: {tag}"
        for style in re.findall(r"<style.*?</style>|style=\"[^\"]*\"", text, flags=re.DOTALL):
            assert "url(" not in style, page.name
            assert "@import" not in style, page.name
    for style in site.rglob("*.css"):
        text = style.read_text()
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//|@import\s+[\"'](?:https?:)?//", text), style.name


@pytest.mark.slow
def test_a_browser_asks_nothing_of_a_network(site):
    pages = ["index.html", "api/comparing.html#dsvcca.compare", "statistics.html", "gallery.html", "cli.html"]
    with chromium() as browser:
        for scheme in ("light", "dark"):
            context = browser.new_context(color_scheme=scheme)
            page = context.new_page()
            wrong, asked = [], []
            page.on("pageerror", lambda error, wrong=wrong: wrong.append(str(error)))
            page.on("requestfailed", lambda request, wrong=wrong: wrong.append(request.url))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.on("console", lambda said, wrong=wrong: wrong.append(said.text) if said.type == "error" else None)
            for name in pages:
                page.goto(f"{site.as_uri()}/{name}")
                page.wait_for_function("theme => document.documentElement.dataset.theme === theme", arg=scheme)
                assert page.locator("nav.bd-links a").count() >= len(PAGES) - 1
            assert not wrong
            page.goto(f"{site.as_uri()}/search.html?q=plan_comparisons")  # a file may not read others for excerpts
            page.wait_for_selector("#search-results li a")
            context.close()
            assert len(asked) > len(pages)
            assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


@pytest.mark.slow
def test_the_page_of_the_command_line_has_everything_that_help_has(site):
    page = (site / "cli.html").read_text()
    entries = set(re.findall(r'id="(cmdoption-[^"]+)"', page))
    top = helped()
    commands = re.findall(r"^[ │]+([a-z][a-z-]*)  +\S", top.partition("Commands")[2], flags=re.MULTILINE)
    assert {"demo", "import", "compare", "keep-bases", "doctor"} <= set(commands)
    for name, text in {"": top, **{command: helped(command) for command in commands}}.items():
        if name:
            assert f'<section id="{name}">' in page, name
        options = set(re.findall(r"^[ │*]*(--[a-z][a-z-]*)", text, flags=re.MULTILINE))
        options |= set(re.findall(r"^[ │*]*--[a-z-]+ +(-[a-z])\b", text, flags=re.MULTILINE))
        assert "--help" in options
        for option in options:
            assert "-".join(filter(None, ("cmdoption-dsvcca", name, option.lstrip("-")))) in entries, (name, option)


def helped(*command):
    """Return what `dsvcca COMMAND --help` says."""
    found = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})
    assert found.exit_code == 0
    return found.output


@pytest.mark.slow
def test_what_lies_outside_of_docs_is_copied(site):
    page = (site / "containers.html").read_text()
    assert re.search(r'href="_downloads/\w+/compose\.yaml"', page)
    assert not re.search(r'href="[^"]*deploy"', page)  # a folder is only named


@pytest.mark.slow
def test_what_lies_outside_of_docs_is_linked_where_its_place_is_known(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "conf.py").write_bytes((DOCS / "conf.py").read_bytes())
    (docs / "index.md").write_text("# Here\n\n[a file](../deploy/one.yaml), [a folder](../deploy)\n")
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "one.yaml").write_text("one: 1\n")
    page = build(docs, tmp_path / "site", "-D", "source_url=https://host.invalid/main/") / "index.html"
    assert re.search(r'href="https://host\.invalid/main/deploy/one\.yaml">.*?a file', page.read_text())
    assert re.search(r'href="https://host\.invalid/main/deploy">.*?a folder', page.read_text())
