"""Rows on a fixed grid, and their streaming co-moments: count, shift, sum and centred Gram; they merge.

Rows are taken in steps of one fixed grid (`GRID` rows), whatever the chunks, the memory or the number of workers:
every product and every sum is then the same to the last bit however the work was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from dsvcca.arrays import Array, adjoint, as_float64, namespace

GRID = 4096
"""Rows in one step of the grid on which all products and sums are made."""

SHIFT_ROWS = 256
"""Rows whose mean is the shift: near enough to the mean of all for nothing to cancel."""


@dataclass(frozen=True)
class Moments:
    """What one pass over rows leaves behind.

    Attributes
    ----------
    count : int
        Rows seen, n.
    shift : (f, c) float64
        Subtracted from every row before anything else: close to the mean, so that nothing cancels.
    sums : (f, c) float64
        Column sums of the shifted rows.
    gram : (f, c, c) float64
        Gram of the shifted rows, z^H z.
    """

    count: int
    shift: Array
    sums: Array
    gram: Array

    @property
    def mean(self) -> Array:
        """Column means (f, c)."""
        return self.shift + self.sums / self.count

    @property
    def comoment(self) -> Array:
        """Gram (f, c, c) of the rows minus their own mean."""
        return self.gram - adjoint(self.sums[:, None, :]) * self.sums[:, None, :] / self.count


def grid_steps(rows: int, grid: int = GRID) -> Iterator[slice]:
    """Yield the steps of the grid over `rows` rows.

    >>> list(grid_steps(10_000))
    [slice(0, 4096, None), slice(4096, 8192, None), slice(8192, 10000, None)]
    """
    for start in range(0, rows, grid):
        yield slice(start, min(start + grid, rows))


def on_grid(pieces: Iterable[Array], grid: int = GRID) -> Iterator[Array]:
    """Regroup pieces (f, rows, c) of any length into steps of `grid` rows; only the last step is shorter."""
    waiting: list[Array] = []
    rows = 0
    for piece in pieces:
        xp = namespace(piece)
        start = 0
        while start < piece.shape[1]:
            taken = piece[:, start : min(start + grid - rows, piece.shape[1]), :]
            waiting.append(taken)
            rows += taken.shape[1]
            start += taken.shape[1]
            if rows == grid:
                yield waiting[0] if len(waiting) == 1 else xp.concat(waiting, axis=1)
                waiting, rows = [], 0
    if waiting:
        yield waiting[0] if len(waiting) == 1 else namespace(waiting[0]).concat(waiting, axis=1)


class Rows:
    """Rows of one representation on the grid, shifted to about zero mean, as often as asked.

    Parameters
    ----------
    pieces : callable
        Starts a pass over the rows: pieces (f, rows, c) of any length and any real floating type.
    keep : bool
        Whether shifted rows stay in memory after the first pass; otherwise each pass calls `pieces` again.

    Attributes
    ----------
    shift : (f, c) float64
        Mean of the first `SHIFT_ROWS` rows, subtracted from every row: what is left has little to cancel.
    largest : float
        Largest absolute value as stored, mean included: how coarsely the numbers were rounded.
    """

    def __init__(self, pieces: Callable[[], Iterable[Array]], *, keep: bool) -> None:
        self._pieces, self._keep = pieces, keep
        self._kept: list[Array] | None = None
        self.shift: Array = None
        self.largest = 0.0

    def __call__(self) -> Iterator[Array]:
        """Yield the shifted rows, (f, rows, c) float64, one step of the grid at a time."""
        if self._kept is not None:
            yield from self._kept
            return
        kept = []
        for slab in self.stored():
            xp = namespace(slab)
            if self.shift is None:
                self.shift = xp.mean(as_float64(slab[:, : min(SHIFT_ROWS, slab.shape[1]), :]), axis=1)
            self.largest = max(self.largest, float(xp.max(slab)), -float(xp.min(slab)))
            shifted = slab - self.shift[:, None, :]
            if self._keep:
                kept.append(shifted)
            yield shifted
        if self._keep:
            self._kept = kept

    def stored(self) -> Iterator[Array]:
        """Yield the rows as they are stored, read anew."""
        return on_grid(self._pieces())


def moments_of(shifted: Array, shift: Array) -> Moments:
    """Return the moments of one step of rows.

    Parameters
    ----------
    shifted : (f, rows, c) float64
        The rows minus `shift`.
    shift : (f, c) float64
    """
    xp = namespace(shifted)
    gram = xp.matmul(adjoint(shifted), shifted)
    return Moments(shifted.shape[1], shift, xp.sum(shifted, axis=1), gram)


def merge(first: Moments, second: Moments) -> Moments:
    """Return the moments of both stretches together: with one shift they add up."""
    return Moments(first.count + second.count, first.shift, first.sums + second.sums, first.gram + second.gram)


def moments_over(rows: Rows) -> Moments:
    """Return the moments of all rows, merged in the order of the grid."""
    total: Moments | None = None
    for shifted in rows():
        step = moments_of(shifted, rows.shift)
        total = step if total is None else merge(total, step)
    assert total is not None  # a representation has at least two rows
    return total
