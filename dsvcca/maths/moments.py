"""Rows on a fixed grid, and their streaming co-moments: count, shift, sum and Gram; they merge.

Datapoints are taken in steps of one fixed grid (`views.grid_datapoints`), whatever the chunks, the memory or the number
of workers: every product and every sum is then the same to the last bit however the work was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dsvcca.maths.arrays import Array, add_gram, adjoint, as_float64, device, hermitian, like, namespace
from dsvcca.maths.frequencies import half_spectrum
from dsvcca.maths.views import GRID, View, apply_view, grid_datapoints, view_space, viewed_shape

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

    def comoment(self, f: int) -> Array:
        """Gram (c, c) of the rows minus their own mean, of one frequency."""
        sums = self.sums[f, None, :]
        return self.gram[f, :, :] - adjoint(sums) * sums / self.count


def grid_steps(rows: int, grid: int = GRID) -> Iterator[slice]:
    """Yield the steps of the grid over `rows` rows.

    >>> list(grid_steps(10_000))
    [slice(0, 4096, None), slice(4096, 8192, None), slice(8192, 10000, None)]
    """
    for start in range(0, rows, grid):
        yield slice(start, min(start + grid, rows))


def on_grid(pieces: Iterable[Array], grid: int) -> Iterator[Array]:
    """Regroup pieces (datapoints, ...) of any length into steps of `grid` datapoints; only the last step is shorter."""
    waiting: list[Array] = []
    rows = 0
    for piece in pieces:
        xp = namespace(piece)
        start = 0
        while start < piece.shape[0]:
            taken = piece[start : min(start + grid - rows, piece.shape[0]), ...]
            waiting.append(taken)
            rows += taken.shape[0]
            start += taken.shape[0]
            if rows == grid:
                yield waiting[0] if len(waiting) == 1 else xp.concat(waiting, axis=0)
                waiting, rows = [], 0
    if waiting:
        yield waiting[0] if len(waiting) == 1 else namespace(waiting[0]).concat(waiting, axis=0)


class Rows:
    """Rows of one representation under a view, on the grid, shifted to about zero mean, as often as asked.

    Parameters
    ----------
    pieces : callable
        Starts a pass: activations (datapoints, *space, c) in pieces of any length and of any real type.
    shape : tuple of int
        (n, *space, c) of the whole.
    view : View
    keep : bool
        Whether rows stay in memory after the first pass, transformed ones shifted, others as they were read; otherwise
        each pass calls `pieces` again.
    center : {"all", "dc"}
        Subtract the mean of every frequency, or of frequency 0 alone.
    grid : int, optional
        Datapoints in a step, where it is not that of this representation alone.

    Attributes
    ----------
    space : tuple of int
        Sizes of the axes that were transformed; () where there is one frequency only.
    columns : int
        Columns of each frequency, c.
    shift : (f, c) float64 or complex128
        Mean of the first `SHIFT_ROWS` rows, subtracted from every row: what is left has little to cancel. Zero where
        the mean is not to be subtracted.
    largest : float
        Largest absolute value as stored, mean included: how coarsely the numbers were rounded.
    """

    def __init__(
        self,
        pieces: Callable[[], Iterable[Array]],
        shape: tuple[int, ...],
        view: View,
        *,
        keep: bool,
        center: str = "all",
        grid: int | None = None,
    ) -> None:
        self._pieces, self._view, self._keep = pieces, view, keep
        self._grid = grid or grid_datapoints(shape, view)
        self._kept: list[Array] | None = None
        self._buffer: Array = None
        self.space = view_space(shape, view)
        self.columns = viewed_shape(shape, view)[2]
        self.centred = np.ones(len(half_spectrum(self.space).weights), dtype=bool)
        if center == "dc":
            self.centred[1:] = False
        self.shift: Array = None
        self.largest = 0.0

    def __call__(self) -> Iterator[Array]:
        """Yield the shifted rows, (f, rows, c) float64 or complex128, one step of the grid at a time.

        They hold their numbers until the next step is asked for.
        """
        if self._kept is not None:
            for slab in self._kept:
                yield slab if _is_complex(slab) else self._shifted(slab)
            return
        kept = []
        for stored in on_grid(self._pieces(), self._grid):
            xp = namespace(stored)
            numbers = stored if xp.isdtype(stored.dtype, "real floating") else as_float64(stored)
            self.largest = max(self.largest, float(xp.max(numbers)), -float(xp.min(numbers)))
            slab = apply_view(stored, self._view, None if self._keep else self._buffer)
            if self.shift is None:
                first = slab[:, : min(SHIFT_ROWS, slab.shape[1]), :]
                self.shift = xp.mean(first if _is_complex(first) else as_float64(first), axis=1)
                self.shift = self.shift * like(self.centred[:, None].astype(np.float64), self.shift)
            if _is_complex(slab):
                slab -= self.shift[:, None, :]  # nobody else holds it
                self._buffer = slab
            if self._keep:
                kept.append(slab)
            yield slab if _is_complex(slab) else self._shifted(slab)
        if self._keep:
            self._kept = kept

    def _shifted(self, slab: Array) -> Array:
        """Return real rows less the shift, float64, in a buffer where they are NumPy's."""
        if not isinstance(slab, np.ndarray):
            return as_float64(slab) - self.shift[:, None, :]
        if self._buffer is None or self._buffer.shape[1] < slab.shape[1]:
            self._buffer = np.empty(slab.shape)
        shifted = self._buffer[:, : slab.shape[1], :]
        shifted[...] = slab  # converted first: one ufunc that converts as it subtracts takes twice as long
        shifted -= self.shift[:, None, :]
        return shifted

    def stored(self) -> Iterator[Array]:
        """Yield the activations as they are stored, read anew."""
        return on_grid(self._pieces(), self._grid)


def add_moments(total: Moments | None, slabs: Sequence[Array], rows: Sequence[Rows]) -> Moments:
    """Return the moments of one more step of shifted rows (f, rows, c), of several representations side by side.

    `total` is used up. Its Gram is only there on and below the diagonal (`finished`).
    """
    xp = namespace(*slabs)
    count = slabs[0].shape[1]
    ones = xp.ones((1, count), dtype=slabs[0].dtype, device=device(slabs[0]))
    sums = xp.concat([xp.matmul(ones, slab)[:, 0, :] for slab in slabs], axis=1)  # twice as fast as a sum
    if not rows[0].centred.all():
        sums = sums * like(rows[0].centred[:, None].astype(np.float64), sums)
    f, c = sums.shape
    if total is None:
        shift = xp.concat([one.shift for one in rows], axis=1)
        total = Moments(0, shift, 0 * sums, xp.zeros((f, c, c), dtype=sums.dtype, device=device(sums)))
    for place in range(f):
        columns = [slab[place, :, :] for slab in slabs]
        add_gram(total.gram[place, :, :], columns[0] if len(columns) == 1 else xp.concat(columns, axis=1))
    return Moments(total.count + count, total.shift, total.sums + sums, total.gram)


def finished(moments: Moments) -> Moments:
    """Return moments whose Gram is whole."""
    for f in range(moments.gram.shape[0]):
        moments.gram[f, :, :] = hermitian(moments.gram[f, :, :])
    return moments


def merge(first: Moments, second: Moments) -> Moments:
    """Return the moments of both stretches, about the shift of the first, which is used up (Chan et al. 1979)."""
    n, d = second.count, second.shift - first.shift
    for f in range(first.gram.shape[0]):
        moved, sums = d[f, None, :], second.sums[f, None, :]
        first.gram[f, :, :] += second.gram[f, :, :] + adjoint(sums) * moved + adjoint(moved) * (sums + n * moved)
    return Moments(first.count + n, first.shift, first.sums + second.sums + n * d, first.gram)


def moments_over(*rows: Rows) -> Moments:
    """Return the moments of all rows, in the order of the grid; of several representations side by side."""
    total: Moments | None = None
    for slabs in zip(*(one() for one in rows), strict=True):
        total = add_moments(total, slabs, rows)
    assert total is not None  # a representation has at least two rows
    return finished(total)


def _is_complex(array: Array) -> bool:
    return bool(namespace(array).isdtype(array.dtype, "complex floating"))
