"""Numbers as text within a page: one triangle where there is no more to say, in as many bits as asked for.

Bytes of numbers stand apart (all first bytes, then all second ones), which compresses better, then gzip and base64:
what browsers undo by themselves.
"""

from __future__ import annotations

import gzip
from base64 import b64encode
from typing import TypedDict

import numpy as np

from dsvcca.maths.arrays import NumpyArray

NOTHING = np.iinfo(np.uint16).max
"""What stands for NaN among numbers of 16 bits; the others are steps between the smallest and the largest."""


SMALLEST = float(np.finfo(np.float32).tiny)
"""What is less has fewer digits in float32, as p-values may be."""


class Packed(TypedDict):
    """How an array lies in the page.

    `form` is "triangle" (row i holds columns 0 to i) or "whole", `type` that of the numbers, which count `step` each
    from `low` on. `text` holds the numbers; in the page it is the name of where that text stands.
    """

    form: str
    type: str
    low: float
    step: float
    inner: int
    text: str


def packed(values: NumpyArray, *, same: bool, exactly: bool) -> Packed:
    """Return numbers (x, y) or (x, y, inner) as text.

    Parameters
    ----------
    same : bool
        Whether both sides are the same representations; then one triangle is packed if the other one mirrors it.
    exactly : bool
        float32, or float64 where some are too small for it; otherwise steps of 16 bits, 1 / 65534 of what lies between
        the smallest and the largest number.
    """
    is_mirror = same and np.array_equal(values, values.swapaxes(0, 1), equal_nan=True)
    flat = values[np.tril_indices(len(values))] if is_mirror else values
    finite = flat[np.isfinite(flat)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    low_and_step = 0.0, 1.0
    if exactly:
        small = bool(finite.size) and 0 < float(np.min(np.abs(finite[finite != 0]), initial=np.inf)) < SMALLEST
        numbers = flat.astype("<f8" if small else "<f4")
    else:
        low_and_step = low, (high - low) / (NOTHING - 1) or 1.0
        numbers = np.full(flat.shape, NOTHING, "<u2")
        there = np.isfinite(flat)
        numbers[there] = np.rint((flat[there] - low) / low_and_step[1])
    return Packed(
        form="triangle" if is_mirror else "whole",
        type=numbers.dtype.name,
        low=low_and_step[0],
        step=low_and_step[1],
        inner=values.shape[2] if values.ndim > 2 else 1,
        text=text_of(numbers),
    )


def codes(values: NumpyArray, *, same: bool) -> Packed:
    """Return small whole numbers (x, y) as text, 8 bits each."""
    is_mirror = same and np.array_equal(values, values.T)
    flat = values[np.tril_indices(len(values))] if is_mirror else values
    form = "triangle" if is_mirror else "whole"
    return Packed(form=form, type="uint8", low=0.0, step=1.0, inner=1, text=text_of(flat.astype(np.uint8)))


def text_of(numbers: NumpyArray) -> str:
    """Return the bytes of numbers as text."""
    planes = np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).reshape(-1, numbers.itemsize).T
    return b64encode(gzip.compress(planes.tobytes(), 9, mtime=0)).decode("ascii")


class Table(TypedDict):
    """Numbers that follow from the kinds of both sides and from how the two were looked at.

    `kinds` are those of x and of y; `numbers` (views, kinds of x, kinds of y), NaN as None.
    """

    kinds: list[list[int]]
    shape: list[int]
    numbers: list[float | None]


def tabled(values: NumpyArray, views: NumpyArray, kinds: tuple[NumpyArray, NumpyArray]) -> Table | None:
    """Return numbers (x, y) as a table by views (x, y) and kinds (x,), (y,); None where they do not follow from these.

    `views` are 0 where nothing was compared.
    """
    (of_x, x), (of_y, y) = (np.unique(one, return_inverse=True) for one in kinds)
    shape = int(views.max()) + 1, len(of_x), len(of_y)
    if np.prod(shape) > values.size // 4:
        return None
    i, j = np.nonzero(views)
    table = np.full(shape, np.nan)
    table[views[i, j], x[i], y[j]] = values[i, j]
    if not np.array_equal(table[views[i, j], x[i], y[j]], values[i, j], equal_nan=True):
        return None
    numbers = [None if value != value else float(f"{value:.8g}") for value in table.ravel().tolist()]
    return Table(kinds=[x.tolist(), y.tolist()], shape=list(shape), numbers=numbers)
