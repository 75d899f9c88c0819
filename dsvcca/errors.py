"""The errors of this package, and what they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any


class DsvccaError(ValueError):
    """Input, storage or cluster that cannot give a right answer.

    The message says what went wrong, what was found and what to do. The command line prints it without a
    traceback.

    Attributes
    ----------
    whose : str or None
        Labels of the representation that it is about, where several are worked on side by side.
    """

    whose: str | None = None


class RunError(DsvccaError):
    """What stops a whole run, whatever it works on: no room on the disk, no permission, a lost scheduler."""


class MissingError(DsvccaError, ImportError):
    """A library that is optional is not installed; the message has the command that installs it."""


@contextmanager
def needing(what: str, extra: str) -> Iterator[None]:
    """Say of a library that cannot be imported what needs it, and how it is installed."""
    try:
        yield
    except ImportError as error:
        name = (error.name or str(error).removeprefix("No module named ").strip("'")).partition(".")[0]
        raise MissingError(f"{what} {name}, which is not installed: pip install 'dsvcca[{extra}]'") from error


@contextmanager
def errors_of(whose: str) -> Iterator[None]:
    """Let errors say whose they are, where nothing inside has said it."""
    try:
        yield
    except DsvccaError as error:
        error.whose = error.whose or whose
        raise


@contextmanager
def going_on(how: str = "the same line") -> Iterator[None]:
    """Let an interrupt say how to go on with what is left: keeping what was finished."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.args = error.args or (f"what was finished is kept, {how} goes on from there",)
        raise


class DsvccaWarning(UserWarning):
    """A number that is right but needs care in reading; the same sentence is kept with the results."""


def first_few(sentences: Sequence[str], most: int = 5) -> str:
    """Return the first of some sentences, a line each, and how many there are more."""
    more = f" (and {len(sentences) - most} more)" if len(sentences) > most else ""
    return "\n".join(sentences[:most]) + more


def nearest(wanted: Any, known: Iterable[Any], limit: int = 8) -> str:
    """Return what there is, for an error message: what was meant, perhaps, or the first (nearest) few.

    >>> nearest("conv", ["conv1", "fc"]), nearest("0", [0, 100]), nearest(90, [0, 50, 100])
    ("did you mean 'conv1'?", 'did you mean 0?', 'there is 100, 50, 0')
    """
    names = list(dict.fromkeys(known))
    if isinstance(wanted, (int, float)) and all(isinstance(name, (int, float)) for name in names):
        names.sort(key=lambda name: abs(name - wanted))
    else:
        by_text = {str(name): name for name in names}
        close = [by_text[text] for text in get_close_matches(str(wanted), list(by_text), n=4)]
        close = close or [name for text, name in by_text.items() if text.lower() == str(wanted).lower()]
        if close:
            return f"did you mean {' or '.join(map(repr, close))}?"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return "there is " + ", ".join(map(repr, names[:limit])) + more
