"""What a terminal is told: errors and warnings in plain words, and rows."""

from __future__ import annotations

import functools
import io
import os
import re
import select
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, get_type_hints

import typer
from typer.models import OptionInfo

from dsvcca.errors import DsvccaError, DsvccaWarning

P = ParamSpec("P")
R = TypeVar("R")

KILLED = 128
"""A process that ended by a signal gives this and the number of the signal as its status."""


def plain_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print what a person can mend without a traceback, and warnings without their source line."""
    options = options_of(command)

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
            print(f"warning: {as_options(str(message), options)}", file=sys.stderr)

        for stream in (sys.stdout, sys.stderr):  # labels may hold letters that a terminal has not
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        by: list[int] = []
        with warnings.catch_warnings():
            warnings.simplefilter("default", DsvccaWarning)
            warnings.showwarning = show
            try:
                with _asked_to_end(by):
                    found = command(*args, **kwargs)
                sys.stdout.flush()
                return found
            except BrokenPipeError as error:
                if not _nobody_reads():  # it is of something else, such as a connection
                    print(f"error: {error}", file=sys.stderr)
                    raise typer.Exit(1) from None
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(KILLED + signal.SIGPIPE) from None
            except (DsvccaError, OSError, NotImplementedError) as error:
                print(f"error: {as_options(str(error), options)}", file=sys.stderr)
                raise typer.Exit(1) from None
            except MemoryError:
                print("error: there is not enough memory: is something far larger than it can be?", file=sys.stderr)
                raise typer.Exit(1) from None
            except KeyboardInterrupt as stop:
                how = f": {as_options(str(stop), options)}" if str(stop) else ""
                print(f"stopped{how}", file=sys.stderr)
                raise typer.Exit(KILLED + (by[-1] if by else signal.SIGINT)) from None

    return wrapped


def _nobody_reads() -> bool:
    """Return whether who reads what is printed has seen enough: dsvcca info STORE | head."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)  # errors are told in any case
    except (OSError, ValueError):  # it is no file
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def options_of(command: Callable[..., Any]) -> dict[str, str]:
    """Return what the options of a command that take a value are called, by the names of its parameters."""
    found = {}
    for name, annotation in get_type_hints(command, include_extras=True).items():
        for one in getattr(annotation, "__metadata__", ()):
            if isinstance(one, OptionInfo) and annotation.__origin__ is not bool:
                said = [text for text in (one.default, *(one.param_decls or ())) if str(text).startswith("--")]
                found[name] = str(said[0]) if said else f"--{name.replace('_', '-')}"
    return found


def as_options(text: str, options: Mapping[str, str]) -> str:
    """Return a sentence with what Python functions take as options: parameters have the same names here and there.

    >>> as_options("use view='mean', or give variance=", {"view": "--view", "variance": "--variance"})
    'use --view mean, or give --variance'
    """
    if not options:
        return text

    def spelled(found: re.Match[str]) -> str:
        option, value = options[found[1]], found[2]
        several = re.findall(r"[^\s,'\[\]]+", value) if value.startswith("[") else [value.strip("'")]
        return " ".join(f"{option} {shlex.quote(one)}" if one else option for one in several)

    names = "|".join(map(re.escape, options))
    return re.sub(rf"(?<![\w.'{{(])({names})=(\[[^\]]*\]|'[^']*'|\w+(?:\.\w+)*|(?![{{\[]))", spelled, text)


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
