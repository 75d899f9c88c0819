"""Streaming co-moments: count, shift, sum and centred Gram of a stretch of rows; they merge.

Rows are taken in steps of one fixed grid (`GRID` rows), whatever the chunks, the memory or the number of workers:
every product and every sum is then the same to the last bit however the work was cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dsvcca.arrays import Array, adjoint, as_float64, namespace

GRID = 4096
"""Rows in one step of the grid on which all products and sums are made."""


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
    comoment : (f, c, c) float64
        Gram of the rows minus their own mean, Z^H Z.
    largest : (f, c) float64
        Largest absolute value of each column as stored, mean included: how coarsely it was rounded.
    """

    count: int
    shift: Array
    sums: Array
    comoment: Array
    largest: Array

    @property
    def mean(self) -> Array:
        """Column means (f, c)."""
        return self.shift + self.sums / self.count


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


def moments_of(slab: Array, shift: Array) -> Moments:
    """Return the moments of one step of rows.

    Parameters
    ----------
    slab : (f, rows, c), any real floating type
    shift : (f, c) float64
    """
    xp = namespace(slab, shift)
    z = slab - shift[:, None, :]
    sums = xp.sum(z, axis=1)
    gram = xp.matmul(adjoint(z), z)
    largest = xp.maximum(xp.max(slab, axis=1), -xp.min(slab, axis=1))
    return Moments(slab.shape[1], shift, sums, gram - _outer(sums) / slab.shape[1], largest)


def _outer(v: Array) -> Array:
    """Return conj(v) v^T for every row of `v` (f, c): (f, c, c)."""
    return adjoint(v[:, None, :]) * v[:, None, :]


def merge(first: Moments, second: Moments) -> Moments:
    """Return the moments of both stretches together (Chan, Golub & LeVeque 1983).

    Both must have been taken with the same shift.
    """
    xp = namespace(first.sums, second.sums)
    n1, n2 = first.count, second.count
    d = second.sums / n2 - first.sums / n1
    between = _outer(d) * (n1 * n2 / (n1 + n2))
    return Moments(
        n1 + n2,
        first.shift,
        first.sums + second.sums,
        first.comoment + second.comoment + between,
        xp.maximum(first.largest, second.largest),
    )


def moments_over(slabs: Iterable[Array]) -> Moments:
    """Return the moments of all slabs, in order; the shift is the mean of the first."""
    steps = iter(slabs)
    first = next(steps)
    total = moments_of(first, namespace(first).mean(as_float64(first), axis=1))
    for slab in steps:
        total = merge(total, moments_of(slab, total.shift))
    return total
