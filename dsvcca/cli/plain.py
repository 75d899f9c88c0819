"""What a terminal is told: errors and warnings in plain words, and rows."""

from __future__ import annotations

import functools
import io
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import typer

from dsvcca.errors import DsvccaError, DsvccaWarning

P = ParamSpec("P")
R = TypeVar("R")

KILLED = 128
"""A process that ended by a signal gives this and the number of the signal as its status."""


def plain_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print what a person can mend without a traceback, and warnings without their source line."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
            print(f"warning: {message}", file=sys.stderr)

        for stream in (sys.stdout, sys.stderr):  # labels may hold letters that a terminal has not
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        by: list[int] = []
        with warnings.catch_warnings():
            warnings.simplefilter("default", DsvccaWarning)
            warnings.showwarning = show
            try:
                with _asked_to_end(by):
                    return command(*args, **kwargs)
            except (DsvccaError, OSError, NotImplementedError) as error:
                print(f"error: {error}", file=sys.stderr)
                raise typer.Exit(1) from None
            except MemoryError:
                print("error: there is not enough memory: is something far larger than it can be?", file=sys.stderr)
                raise typer.Exit(1) from None
            except KeyboardInterrupt:
                print("stopped: what was finished is kept, the same line goes on from there", file=sys.stderr)
                raise typer.Exit(KILLED + (by[-1] if by else signal.SIGINT)) from None

    return wrapped


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text, each column as wide as it has to be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


@contextmanager
def _asked_to_end(came: list[int]) -> Iterator[None]:
    """Take a request to end (SIGTERM, as SLURM, Kubernetes and `kill` send it) like an interrupt, and note it."""

    def end(number: int, _: object) -> None:
        came.append(number)
        signal.signal(number, signal.SIG_IGN)  # who asks twice must not stop the tidying up
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
