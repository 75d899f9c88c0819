"""What an array in a file is, whatever kind of file: so much of it as must be known before it is read.

Nothing is unpickled, and nothing that a file says of itself is believed before it fits the size of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from dsvcca.errors import DsvccaError, needing

PIECE = 32 << 20
"""Bytes that are read at once, about."""

WHOLE = 1 << 30
"""Bytes of what can only be read whole, at most."""

DEFLATED = 1032
"""Bytes that a compressed byte can become, at most, by the rules of deflate."""


EXCLUDE = "exclude=, on the command line --exclude"
"""How people leave out what they do not want, for messages."""

BITS = (8, 16, 32, 64)
"""Of the types of numbers."""

MATLAB_73 = "MATLAB 7.3 wrote it, with its axes reversed: save it with -v7, or as .npy"


@dataclass(frozen=True)
class Array:
    """An array in a file.

    Attributes
    ----------
    file : Path
    inside : str
        What the file calls it; empty where the file is the array.
    shape : tuple of int
    dtype : str
        Name of its type, "object" where only pickle could read it, "text" for what is no number, "raw" where NumPy does
        not know the type, "packed" for records that hold an array each.
    named : tuple of str
        What the file calls its axes; empty where it does not.
    order : str
        "" where it can be cut along any axis; else it is read from beginning to end: "C", the last axis running
        fastest, or "F", the first one.
    chunks : tuple of int
        Shape of the pieces in which it is compressed; empty where it is not.
    """

    file: Path
    inside: str
    shape: tuple[int, ...]
    dtype: str
    named: tuple[str, ...] = ()
    order: str = ""
    chunks: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"'{self.file}'" + (f", array {self.inside!r}" if self.inside else "")

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        size = 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize
        return prod(self.shape) * size


@dataclass(frozen=True)
class Other:
    """What is no array of activations.

    Attributes
    ----------
    refused : bool
        Whether it may be one, and cannot be read: that is an error; the rest is passed over.
    """

    file: Path
    inside: str
    why: str
    refused: bool = False


@dataclass(frozen=True)
class Format:
    """How files of one kind are read.

    Attributes
    ----------
    find : callable
        What is in a file.
    opened : callable
        A context that gives one array of a file, to be cut by integers and slices.
    """

    find: Callable[[Path], Iterator[Array | Other]]
    opened: Callable[[Array], AbstractContextManager[Any]]


@contextmanager
def read_errors(file: Path) -> Iterator[None]:
    """Turn whatever a library says about a file into an error that names it."""
    try:
        yield
    except (DsvccaError, MemoryError):
        raise
    except Exception as error:
        raise DsvccaError(
            f"'{file}' cannot be read ({type(error).__name__}: {error}): is it damaged, cut short or of another kind "
            f"than its name says? Restore it, or leave it out: {EXCLUDE}"
        ) from error


def library(name: str, file: Path) -> Any:
    with needing(f"'{file}' needs", "import"):
        return import_module(name)


def type_name(dtype: np.dtype[Any]) -> str:
    """Return the name of a type, or what it is where it is none of numbers."""
    if dtype.hasobject:
        return "object"
    if dtype.kind != "V":
        return "text" if dtype.kind in "SUTMm" else dtype.name
    fields = [dtype[name] for name in dtype.names or ()]
    if dtype.subdtype is not None or len(fields) == 1 or any(field.subdtype is not None for field in fields):
        return "packed"
    return "text" if fields else "raw"
