"""Progress of everything long: in terminal and notebook, for who watches from elsewhere, in the log.

Silent where nobody watches.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Protocol

from rich import progress as bars
from rich.console import Console

log = logging.getLogger("dsvcca")


LOGGED = 30
"""Seconds after which the log says how far something long is."""


class Advance(Protocol):
    """Says that one more is done, or has failed."""

    def __call__(self, *, failed: bool = False) -> None: ...


class Stopped(KeyboardInterrupt):
    """A run in the background was asked to stop."""


@dataclass(frozen=True)
class Progress:
    """How far something long is.

    Attributes
    ----------
    stage : str
        What is being done: "reduce", "correlate", ...
    done, total : int
        Tasks of it, those that failed included.
    failed : int
    seconds : float
        Since this stage began.
    """

    stage: str = "begin"
    done: int = 0
    total: int = 0
    failed: int = 0
    seconds: float = 0.0

    @property
    def left(self) -> float | None:
        """Seconds that are left of this stage at the rate so far; None before the first task is done."""
        return self.seconds / self.done * (self.total - self.done) if self.done else None

    def __str__(self) -> str:
        failed = f", {self.failed:,} failed" if self.failed else ""
        left = "" if self.left is None or self.done == self.total else f", {self.left:.0f} s left"
        return f"{self.stage}: {self.done:,} of {self.total:,}{failed}, {self.seconds:.0f} s{left}"


class Watch:
    """What a run says of itself to other threads, and what they ask of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._progress = Progress()
        self._began, self._ended = time.monotonic(), 0.0
        self._stopping = threading.Event()
        self._interrupts: list[Callable[[], None]] = []

    @property
    def progress(self) -> Progress:
        """How far it is now; once it has ended, how far it came."""
        return replace(self._progress, seconds=(self._ended or time.monotonic()) - self._began)

    def end(self) -> None:
        """Note that nothing more will be done."""
        self._ended = time.monotonic()

    def begin(self, stage: str, total: int) -> None:
        """Note that another stage begins."""
        self._began = time.monotonic()
        self._progress = Progress(stage, total=total)

    def advance(self, *, failed: bool = False) -> None:
        """Note that one more task is done, or has failed.

        Raises
        ------
        Stopped
            If that was asked for.
        """
        with self._lock:
            was = self._progress
            self._progress = replace(was, done=was.done + 1, failed=was.failed + failed)
        self.check()

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stopping.is_set()

    def check(self) -> None:
        """Raise Stopped if that was asked for."""
        if self._stopping.is_set():
            raise Stopped

    def stop(self) -> None:
        """Ask the run to stop, and wake it where it waits."""
        self._stopping.set()
        for interrupt in list(self._interrupts):
            interrupt()

    @contextmanager
    def woken_by(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Call a function when the run is asked to stop while the context lasts."""
        self._interrupts.append(interrupt)
        try:
            self.check()
            yield
        finally:
            self._interrupts.remove(interrupt)


WATCH: ContextVar[Watch | None] = ContextVar("WATCH", default=None)
"""Who watches what is done in this context; bars are shown where nobody does."""


def _console() -> Console | None:
    """Return where bars are shown, a terminal or a notebook; None where nobody sees them, or somebody else watches."""
    if WATCH.get() is not None:
        return None
    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    return console if console.is_jupyter or sys.stderr.isatty() else None  # whatever FORCE_COLOR says


def say(sentence: str) -> None:
    """Tell whoever watches; always to the log."""
    log.info("%s", sentence)
    if (console := _console()) is not None:
        console.print(sentence, markup=False)


@contextmanager
def track(title: str, total: int) -> Iterator[Advance]:
    """Show a bar of `total` steps while the context lasts; call what it gives once a step.

    Whoever watches is told instead, and may stop it. Nothing is shown where standard error is neither a terminal nor a
    notebook, or where there is nothing to do; nor in a notebook without ipywidgets, where every movement of a bar would
    be another output.
    """
    watch = WATCH.get()
    if watch is not None:
        watch.begin(title, total)
    with _bar(title, total) as moved:
        logged = began = time.monotonic()
        done = failures = 0

        def advance(*, failed: bool = False) -> None:
            nonlocal logged, done, failures
            done, failures, now = done + 1, failures + failed, time.monotonic()
            moved()
            if now > logged + LOGGED:
                logged = now
                log.info("%s", Progress(title, done, total, failures, now - began))
            if watch is not None:
                watch.advance(failed=failed)

        yield advance


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar where somebody sees it; what is given moves it by one."""
    console = _console()
    if total == 0 or console is None or (console.is_jupyter and find_spec("ipywidgets") is None):
        yield lambda: None
        return
    columns = (
        bars.TextColumn("{task.description:>12}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)
