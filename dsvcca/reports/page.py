"""One self-contained page of results: what it holds, Bokeh's figures, styles and scripts put into a template."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files as files_of
from pathlib import Path
from typing import Any

import xarray as xr

from dsvcca.errors import DsvccaError, needing
from dsvcca.progress import waiting
from dsvcca.reports.contents import EXACT, Contents, contents_of
from dsvcca.storage import files

MAPS = ("a", "b")
"""The two heatmaps."""

SCRIPTS = ("numbers.js", "labels.js", "maps.js", "detail.js", "saving.js", "page.js")
"""What runs in the page, in this order, as one module."""


@waiting("write the report")
def report(
    results: xr.Dataset,
    out: str | os.PathLike[str] = "report.html",
    *,
    measures: str | Sequence[str] | None = None,
    title: str | None = None,
) -> Path:
    """Write results as one HTML file that needs nothing else, to look at in a browser: no server, no network.

    Two heatmaps show any measure, of the models, steps and layers that are chosen; what is under the pointer, or the
    cursor, is said with ranks and chance. What is shown can be saved as CSV and PNG.

    Up to 300 representations on a side, numbers are float32 and kept correlations are in the page; beyond, numbers have
    16 bits, which is 1e-5 of a similarity, and measures are left out that would make the file larger than 14 MB, unless
    they are asked for by name. The page says so.

    Parameters
    ----------
    results : xarray.Dataset
        As `open_results` gives, or what `select` left.
    out : path, default "report.html"
        Written anew if it is there.
    measures : str or sequence of str, optional
        Those to show, and their chance level; by default as many as there is room for.
    title : str, optional
        What stands above.

    Returns
    -------
    pathlib.Path
        Of the file.

    Raises
    ------
    DsvccaError
        If the results compare no pairs, have more than 5,000 representations on a side, or not the measures; if the
        file cannot be written.
    MissingError
        If Bokeh is not installed.

    Examples
    --------
    ``dsvcca.report(dsvcca.open_results("results.zarr"), "report.html")``
    """
    path = _checked_path(out)
    _bokeh()
    contents = contents_of(results, measures, title or "Similarity of representations")
    with files.disk_errors(path):
        files.write_text(path.resolve(), page_of(contents))
    return path


def _checked_path(out: str | os.PathLike[str]) -> Path:
    """Return where a page can be written: a new file, or one that is there."""
    try:
        path = Path(out).expanduser().absolute()
        with files.disk_errors(path):
            files.check_parents(path)
            there, target = path.exists(), path.resolve()
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, DsvccaError):
            raise
        raise DsvccaError(f"a report cannot be written to {out!r} ({error}): give the path of a file") from error
    if path.is_dir():
        raise DsvccaError(f"'{path}' is a folder: name a file in it, such as '{path / 'report.html'}'")
    if there and not path.is_file():
        raise DsvccaError(f"'{path}' is no file but a device, or a pipe: name a file")
    if there and not os.access(path, os.W_OK):
        raise DsvccaError(f"'{path}' is there and may not be written: name another file, or change its permissions")
    if not target.parent.is_dir():
        raise DsvccaError(f"there is no folder '{target.parent}': make it first")
    return path


def page_of(contents: Contents) -> str:
    """Return the whole page."""
    import jinja2
    from bokeh.embed import components
    from bokeh.palettes import Viridis256
    from bokeh.resources import Resources

    own = files_of(__package__).joinpath("static")
    environment = jinja2.Environment(loader=jinja2.FunctionLoader(lambda name: own.joinpath(name).read_text("utf-8")))
    environment.autoescape = True
    script, places = components(figures(), wrap_script=False)
    return environment.get_template("page.html").render(
        title=contents.said["title"],
        version=version("dsvcca"),
        exact=EXACT,
        contents=_json({**contents.said, "palette": list(Viridis256)}),
        texts=contents.texts,
        bokeh=Resources(mode="inline", components=["bokeh"], log_level="error").render_js(),
        figures_script=script,
        places=places,
        styles=own.joinpath("page.css").read_text("utf-8"),
        scripts="\n".join(own.joinpath(name).read_text("utf-8") for name in SCRIPTS),
    )


def figures() -> dict[str, Any]:
    """Return Bokeh's figures: both heatmaps with their colours, the row of a cell, its correlations."""
    return {name: one for map_ in MAPS for name, one in _map(map_).items()} | {
        "profile": _lines("profile", "column"),
        "spectrum": _lines("spectrum", "correlation"),
    }


def _map(name: str) -> dict[str, Any]:
    """Return a heatmap and the bar of its colours. Scripts fill them."""
    from bokeh.models import BoxAnnotation, ColumnDataSource, CustomJS, CustomJSTickFormatter, FixedTicker, Range1d
    from bokeh.plotting import figure

    x, y = Range1d(0, 1, name=f"{name}_columns"), Range1d(1, 0, name=f"{name}_rows")
    drawn = figure(
        name=name,
        x_range=x,
        y_range=y,
        height=600,
        sizing_mode="stretch_width",
        tools="box_zoom,pan,wheel_zoom,undo,reset",
        toolbar_location="above",
        active_drag="box_zoom",
        lod_threshold=None,
    )
    drawn.toolbar.logo = None
    nothing: dict[str, list[Any]] = {"image": [], "x": [], "y": [], "dw": [], "dh": []}
    drawn.image_rgba(
        "image", x="x", y="y", dw="dw", dh="dh", source=ColumnDataSource(nothing, name=f"{name}_cells"), level="image"
    )
    for cell, dash in (("pointed", "dotted"), ("picked", "solid")):
        corners = ColumnDataSource({"left": [], "right": [], "top": [], "bottom": []}, name=f"{name}_{cell}")
        drawn.quad(
            "left", "right", "top", "bottom", source=corners, fill_alpha=0, line_width=2, line_dash=dash, name=cell
        )
    for axis, side in ((drawn.xaxis[0], "columns"), (drawn.yaxis[0], "rows")):
        axis.ticker = FixedTicker(ticks=[], name=f"{name}_{side}_ticks")
        axis.formatter = CustomJSTickFormatter(code=f"return window.dsvcca.tick({name!r}, {side!r}, tick)")
    drawn.xaxis.major_label_orientation = "vertical"
    drawn.grid.visible = False
    for event in ("mousemove", "mouseleave", "tap"):
        code = f"window.dsvcca.{event}({name!r}, cb_obj.x, cb_obj.y, cb_obj.sx, cb_obj.sy)"
        drawn.js_on_event(event, CustomJS(code=code))
    for one in (x, y):
        one.js_on_change("start", CustomJS(code=f"window.dsvcca.ranged({name!r})"))
        one.js_on_change("end", CustomJS(code=f"window.dsvcca.ranged({name!r})"))
    bar = figure(
        name=f"{name}_bar",
        x_range=Range1d(0, 1),
        y_range=Range1d(0, 1),
        height=64,
        sizing_mode="stretch_width",
        tools="",
        toolbar_location=None,
    )
    bar.image_rgba(
        "image", x="x", y="y", dw="dw", dh="dh", source=ColumnDataSource(dict(nothing), name=f"{name}_colours")
    )
    chance = {"fill_alpha": 0.0, "hatch_pattern": "/", "hatch_weight": 2.0, "hatch_scale": 8.0, "line_width": 3}
    bar.add_layout(BoxAnnotation(name=f"{name}_chance", visible=False, top=1, bottom=0, **chance))
    bar.yaxis.visible = False
    bar.grid.visible = False
    return {name: drawn, f"{name}_bar": bar}


def _lines(name: str, along: str) -> Any:
    """Return a figure of one line, and of what chance gives. Scripts fill it."""
    from bokeh.models import ColumnDataSource, DataRange1d
    from bokeh.plotting import figure

    drawn = figure(
        name=name,
        y_range=DataRange1d(start=0, name=f"{name}_range"),
        x_axis_label=along,
        height=260,
        sizing_mode="stretch_width",
        tools="pan,wheel_zoom,box_zoom,reset",
        toolbar_location="above",
    )
    drawn.toolbar.logo = None
    source = ColumnDataSource({"at": [], "value": [], "chance": []}, name=f"{name}_line")
    drawn.line("at", "chance", source=source, line_dash="dotted", line_width=2, name="chance")
    drawn.line("at", "value", source=source, line_width=1.5, name="value")
    drawn.scatter("at", "value", source=source, size=4, name="value")
    return drawn


def _bokeh() -> None:
    """Raise if Bokeh is not installed."""
    with needing("reports need", "report"):
        import bokeh  # noqa: F401


def _json(said: dict[str, Any]) -> str:
    """Return JSON that can stand within a script: nothing in it ends one, or begins a comment."""
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
