"""Progress of everything long: for who sees it (`dsvcca.live`), for who watches from elsewhere, in the log.

Silent where nobody watches.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Protocol

from dask.utils import format_bytes

from dsvcca import live

log = logging.getLogger("dsvcca")


LOGGED = 30
"""Seconds after which the log says how far something long is."""

MOMENT = 0.4
"""Seconds that pass before something is shown of which nothing can be counted."""


READ = "read"
"""What is counted in bytes."""


class Advance(Protocol):
    """Says that one more is done, or has failed, and how much work that was, by its names."""

    def __call__(self, *, failed: bool = False, work: Mapping[str, int] | None = None) -> None: ...


class Stopped(KeyboardInterrupt):
    """A run in the background was asked to stop."""


@dataclass(frozen=True)
class Work:
    """How much of some kind of work is done.

    Attributes
    ----------
    name : str
        What was done: "read" (bytes), "reduced", "solved", "committed", ...
    done, total : int
    """

    name: str
    done: int
    total: int

    def __str__(self) -> str:
        return f"{self._amount(self.done)} of {self._amount(self.total)} {self.name}"

    def rate(self, seconds: float) -> str:
        """Return in words how much is done a second."""
        each = self.done / seconds if seconds > 0 else 0.0
        return f"{self._amount(each) if each >= 10 or self.name == READ else f'{each:.2g}'}/s"

    def _amount(self, count: float) -> str:
        return format_bytes(int(count)) if self.name == READ else f"{count:,.0f}"


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
    work : tuple of Work
        What the tasks are made of, if that is known; time left is that of the first.
    """

    stage: str = "begin"
    done: int = 0
    total: int = 0
    failed: int = 0
    seconds: float = 0.0
    work: tuple[Work, ...] = ()

    @property
    def share(self) -> float:
        """What share of this stage is done, 0 to 1."""
        done, total = (self.work[0].done, self.work[0].total) if self.work else (self.done, self.total)
        return done / total if total else 0.0

    @property
    def left(self) -> float | None:
        """Seconds that are left of this stage at the rate so far; None before anything is done."""
        return self.seconds / self.share * (1 - self.share) if self.share else None

    @property
    def amounts(self) -> list[str]:
        """How much is done of what, and how much of it a second: all of it, and what is shorter, down to a share."""
        share = f"{self.share:.0%}"
        if not self.work:
            return [f"{self.done:,} of {self.total:,}", share]
        first, *others = self.work
        rated = f"{first} ({first.rate(self.seconds)})" if first.done else f"{first}"
        return [", ".join([rated, *map(str, others)]), rated, str(first), share]

    def __str__(self) -> str:
        failed = f", {self.failed:,} failed" if self.failed else ""
        left = "" if self.left is None or self.done == self.total else f", {self.left:.0f} s left"
        return f"{self.stage}: {self.amounts[0]}{failed}, {self.seconds:.0f} s{left}"

    def advanced(self, failed: bool, work: Mapping[str, int] | None) -> Progress:
        """Return how far it is once one more task is done."""
        more = work or {}
        parts = tuple(replace(one, done=one.done + more.get(one.name, 0)) for one in self.work)
        return replace(self, done=self.done + 1, failed=self.failed + failed, work=parts)


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

    def begin(self, stage: str, total: int, work: Mapping[str, int] | None = None) -> None:
        """Note that another stage begins, of so many tasks, and so much work."""
        self._began = time.monotonic()
        self._progress = _begun(stage, total, work)

    def advance(self, *, failed: bool = False, work: Mapping[str, int] | None = None) -> None:
        """Note that one more task is done, or has failed.

        Raises
        ------
        Stopped
            If that was asked for.
        """
        with self._lock:
            self._progress = self._progress.advanced(failed, work)
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
"""Who watches what is done in this context; nothing is shown where somebody does."""


def say(sentence: str) -> None:
    """Tell whoever watches; always to the log."""
    log.info("%s", sentence)
    if WATCH.get() is None:
        live.say(sentence)


@contextmanager
def track(title: str, total: int, work: Mapping[str, int] | None = None) -> Iterator[Advance]:
    """Show how far something is while the context lasts; call what it gives once a task.

    Whoever watches is told instead, and may stop it. Nothing is shown where standard error is neither a terminal nor a
    notebook, or where there is nothing to do.

    Parameters
    ----------
    title : str
    total : int
        Tasks.
    work : mapping, optional
        How much work they are in all, by names: what is in them should say how long they take.
    """
    watch = WATCH.get()
    if watch is not None:
        watch.begin(title, total, work)
    logged = began = time.monotonic()
    now = _begun(title, total, work)

    def look() -> Progress:
        return replace(now, seconds=time.monotonic() - began)

    with live.shown(look, seen=watch is None and total > 0) as changed:

        def advance(*, failed: bool = False, work: Mapping[str, int] | None = None) -> None:
            nonlocal logged, now
            now = now.advanced(failed, work)
            changed()
            if time.monotonic() > logged + LOGGED:
                logged = time.monotonic()
                log.info("%s", look())
            if watch is not None:
                watch.advance(failed=failed, work=work)

        yield advance


@contextmanager
def waiting(title: str) -> Iterator[None]:
    """Show that something is being done, of which nothing can be counted, if it takes longer than a moment."""
    began = time.monotonic()

    def look() -> Progress:
        return Progress(title, seconds=time.monotonic() - began)

    with live.shown(look, seen=WATCH.get() is None, after=MOMENT):
        yield


def _begun(title: str, total: int, work: Mapping[str, int] | None) -> Progress:
    """Return how far something is of which nothing is done."""
    parts = tuple(Work(name, 0, amount) for name, amount in (work or {}).items() if amount)
    return Progress(title, total=total, work=parts)
