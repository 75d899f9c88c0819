"""Results, to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from dask.utils import format_bytes

from dsvcca.cli.options import Where, where_of
from dsvcca.cli.plain import plain_errors
from dsvcca.reports.page import report as write_report
from dsvcca.results.opening import open_results
from dsvcca.results.tables import labels_of, select


@plain_errors
def report(
    results: Annotated[str, typer.Argument(metavar="RESULTS", help="Results of compare.")],
    out: Annotated[Path, typer.Argument(metavar="[REPORT]", help="The HTML file.")] = Path("report.html"),
    measures: Annotated[
        list[str] | None, typer.Option("--measure", help="To show; repeat for several. (default: as many as fit)")
    ] = None,
    where: Where = None,
    title: Annotated[str | None, typer.Option(help="What stands above. (default: the name of the results)")] = None,
) -> None:
    """Write results as one HTML file to look at in a browser, which needs neither server nor network."""
    found = open_results(results)
    if where:
        chosen = where_of(labels_of(found), where)
        found = select(found, x=chosen, y=chosen)
    path = write_report(found, out, measures=measures, title=title or Path(results).name)
    print(f"{path}: {format_bytes(path.stat().st_size)}, {found.sizes['x']} x {found.sizes['y']} representations")
