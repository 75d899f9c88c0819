"""The one error that dsvcca raises for what its caller can cause or mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


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


@contextmanager
def errors_of(whose: str) -> Iterator[None]:
    """Let errors say whose they are, where nothing inside has said it."""
    try:
        yield
    except DsvccaError as error:
        error.whose = error.whose or whose
        raise


class DsvccaWarning(UserWarning):
    """A number that is right but needs care in reading; the same sentence is kept with the results."""
