"""What is seen of something long, in a terminal or a notebook; elsewhere nothing is.

One line at a time: what begins within something else takes its place until it ends.
"""

from __future__ import annotations

import html
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

OFTEN = 0.2
"""Seconds between two pictures in a notebook, at least; a terminal draws by itself as often."""

WIDE, NARROW = 24, 8
"""Letters of a bar, at most and, where a line is short, at least."""

ALIGNED = 100
"""Letters of a line from which on what is done stands below each other."""


class Seen(Protocol):
    """How far something is: what `dsvcca.progress.Progress` says of it."""

    @property
    def stage(self) -> str: ...
    @property
    def total(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def share(self) -> float: ...
    @property
    def left(self) -> float | None: ...
    @property
    def amounts(self) -> list[str]: ...


Look = Callable[[], Seen]


class View(Protocol):
    """One line, seen or hidden."""

    def show(self) -> None: ...

    def change(self) -> None: ...

    def hide(self, *, for_good: bool) -> None: ...


_views: list[View] = []
"""What is being done, the last within those before it."""

_early: set[View] = set()
"""Of these what has not taken long enough to be seen."""

_lock = threading.RLock()


@contextmanager
def shown(look: Look, *, seen: bool, after: float = 0.0) -> Iterator[Callable[[], None]]:
    """Show what `look` gives while the context lasts; what is given says that there is something new.

    Parameters
    ----------
    seen : bool
        Whether anything is to be shown at all.
    after : float
        Seconds before it is shown. What is shown late leaves nothing behind.
    """
    console = _console() if seen else None
    if console is None:
        yield lambda: None
        return
    kind = _InNotebook if console.is_jupyter else _InTerminal
    view: View = kind(look, console, passing=after > 0)
    late = threading.Timer(after, _show_late, [view])
    late.daemon = True
    with _lock:
        if _views:
            _views[-1].hide(for_good=False)
        _views.append(view)
        if after:
            _early.add(view)
            late.start()
        else:
            view.show()
    try:
        yield view.change
    finally:
        late.cancel()
        with _lock:
            _early.discard(view)
            view.hide(for_good=True)
            _views.remove(view)
            if _views and _views[-1] not in _early:
                _views[-1].show()


def _show_late(view: View) -> None:
    with _lock:
        _early.discard(view)
        if _views and _views[-1] is view:
            view.show()


def say(sentence: str) -> None:
    """Print a sentence where somebody sees it."""
    console = _console()
    if console is not None:
        console.print(sentence, markup=False)


def _console() -> Console | None:
    """Return where something can be shown, a terminal or a notebook; None where nobody sees it."""
    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    return console if console.is_jupyter or sys.stderr.isatty() else None  # whatever FORCE_COLOR says


def _times(progress: Seen) -> str:
    """Return how long it takes and will take."""
    left = "" if progress.left is None or progress.share >= 1 else f", {_clock(progress.left)} left"
    return _clock(progress.seconds) + left


def _clock(seconds: float) -> str:
    """Return seconds as a clock shows them.

    >>> _clock(75), _clock(3600 * 30 + 61)
    ('1:15', '30:01:01')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _row(*parts: RenderableType) -> Table:
    """Return what stands beside each other on one line."""
    line = Table.grid(padding=(0, 1))
    for _ in parts:
        line.add_column(no_wrap=True, overflow="ellipsis")
    line.add_row(*parts)
    return line


class _InTerminal:
    """A line that is drawn again and again."""

    def __init__(self, look: Look, console: Console, *, passing: bool) -> None:
        self._look, self._console, self._passing = look, console, passing
        self._live: Live | None = None

    def show(self) -> None:
        self._live = Live(
            console=self._console,
            get_renderable=self._line,
            refresh_per_second=1 / OFTEN,
            redirect_stdout=False,
            vertical_overflow="crop",
        )
        self._live.start(refresh=True)

    def change(self) -> None:
        """It is drawn anew by itself."""

    def hide(self, *, for_good: bool) -> None:
        if self._live is not None:
            self._live.transient = self._passing or not for_good
            self._live.stop()
            self._live = None

    def _line(self) -> RenderableType:
        now = self._look()
        times = _times(now)
        if not now.total:
            return _row(Text(f"{now.stage} ..."), Text(times, style="dim"))
        failed = Text(f"{now.failed:,} failed ", style="bold red") if now.failed else Text()
        # What is short of room loses first what else is counted, then the rate, then most of the bar: never the times.
        stage = now.stage if self._console.width < ALIGNED else f"{now.stage:>12}"
        room = self._console.width - len(stage) - len(failed) - len(times) - 3
        amounts = next((one for one in now.amounts if len(one) + NARROW <= room), now.amounts[-1])
        wide = min(WIDE, room - len(amounts))
        parts: list[RenderableType] = [failed + Text(amounts), Text(times, style="dim")]
        if wide >= NARROW:
            parts.insert(0, ProgressBar(total=1.0, completed=now.share, width=wide))
        return _row(Text(stage), *parts)


class _InNotebook:
    """An output of a cell that is written anew; no extension of the notebook is needed."""

    def __init__(self, look: Look, console: Console, *, passing: bool) -> None:
        self._look, self._passing = look, passing
        self._handle: Any = None
        self._drawn = 0.0

    def show(self) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display({"text/plain": ""}, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        self._handle.update(self._picture(), raw=True)
        self._drawn = time.monotonic()

    def change(self) -> None:
        if self._handle is not None and time.monotonic() > self._drawn + OFTEN:
            self._drawn = time.monotonic()
            self._handle.update(self._picture(), raw=True)

    def hide(self, *, for_good: bool) -> None:
        if self._handle is not None:
            stays = for_good and not self._passing
            self._handle.update(self._picture() if stays else {"text/plain": ""}, raw=True)
        if for_good:
            self._handle = None

    def _picture(self) -> dict[str, str]:
        now = self._look()
        if not now.total:
            return {"text/plain": f"{now.stage} ..."}
        failed = f" <b style='color: #c0392b'>{now.failed:,} failed</b>" if now.failed else ""
        bar = f"<progress value='{now.share:.4f}' max='1'></progress>"
        said = html.escape(f"{now.amounts[0]}, {_times(now)}")
        return {"text/plain": str(now), "text/html": f"{html.escape(now.stage)} {bar} {said}{failed}"}
