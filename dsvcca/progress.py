"""Progress of everything long, in terminal and notebook; silent where nobody watches."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger("dsvcca")


def _console() -> Console | None:
    """Return where somebody watches, a terminal or a notebook; None where nobody does."""
    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    return console if console.is_jupyter or sys.stderr.isatty() else None  # whatever FORCE_COLOR says


def say(sentence: str) -> None:
    """Tell whoever watches; always to the log."""
    log.info("%s", sentence)
    if (console := _console()) is not None:
        console.print(sentence, markup=False)


@contextmanager
def track(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar of `total` steps while the context lasts; call what it gives once a step.

    Nothing is shown where standard error is neither a terminal nor a notebook, or where there is nothing to do; nor
    in a notebook without ipywidgets, where every movement of a bar would be another output.
    """
    console = _console()
    if total == 0 or console is None or (console.is_jupyter and find_spec("ipywidgets") is None):
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
