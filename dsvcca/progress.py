"""Progress of everything long, in terminal and notebook; silent where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def track(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar of `total` steps while the context lasts; call what it gives once a step.

    Nothing is shown where standard error is neither a terminal nor a notebook, or where there is nothing to do.
    """
    console = Console(file=sys.stderr)
    if total == 0 or not (console.is_terminal or console.is_jupyter):
        yield lambda: None
        return
    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)
