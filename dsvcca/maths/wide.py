"""Whitening where columns outnumber rows, or where both are many: maps flattened to one neuron a position.

The dual route finds the same columns from the Gram of rows (n, n), which is exact. The randomised route (Halko,
Martinsson & Tropp 2011) finds the leading directions from a sketch of the columns, and says how much it may have
missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import Array, add_gram, as_float64, device, hermitian, like, namespace, to_numpy
from dsvcca.maths.basis import Basis, Block, RankRule, zero_below
from dsvcca.maths.moments import SHIFT_ROWS, grid_steps, on_grid
from dsvcca.maths.views import View, apply_view
from dsvcca.maths.whiten import TINY, Columns, check_numbers, kept_directions, noise_of, not_finite, too_small

STRIDE = 1024
"""Columns that are added up at once: sums follow this grid, however many of them are in memory."""

SAMPLES, MOST_SAMPLES = 256, 4096
"""Columns of the first sketch, and of the largest: it is doubled until it holds the share of variance that is kept."""

SPARE = 16
"""Columns of a sketch beyond those that are kept."""

POWERS = 2
"""Times that a sketch is multiplied with the covariance beyond the first."""

PROBES = 10
"""Random vectors by which what was missed is estimated."""

CERTAIN = 10 * (2 / np.pi) ** 0.5
"""Times the largest image of PROBES normal vectors bounds the norm of a matrix, but once in 10^PROBES times (4.1)."""


@dataclass(frozen=True)
class Wide:
    """Activations of one representation, read as often as asked.

    Attributes
    ----------
    pieces : callable
        Starts a pass: activations (datapoints, *space, c) in pieces.
    view : View
    rows, columns : int
        n and p.
    at_once : function
        Returns the columns of all rows that may be in memory where so many are kept, STRIDE at least.
    grid : int
        Rows in one step.
    bits : int or None
        Significand bits of the stored numbers.
    name : str
        Whose activations, for error messages.
    most_samples : int
        Columns that a sketch may have.
    """

    pieces: Callable[[], Iterable[Array]]
    view: View
    rows: int
    columns: int
    at_once: Callable[[int], int]
    grid: int
    bits: int | None
    name: str
    most_samples: int = MOST_SAMPLES

    def slabs(self) -> Iterator[Array]:
        """Yield all rows (m, p) as they are stored, one step of the grid at a time."""
        for piece in on_grid(self.pieces(), self.grid):
            yield apply_view(piece, self.view)[0, :, :]

    def strides(self, kept: int) -> Iterator[tuple[slice, Array]]:
        """Yield columns STRIDE by STRIDE, all rows (n, STRIDE) float64; as many passes as memory demands."""
        most = max(STRIDE, self.at_once(kept) // STRIDE * STRIDE)
        for first in range(0, self.columns, most):
            last = min(first + most, self.columns)
            parts = [namespace(slab).asarray(slab[:, first:last], copy=True) for slab in self.slabs()]
            held = parts[0] if len(parts) == 1 else namespace(parts[0]).concat(parts, axis=0)
            del parts
            for start in range(first, last, STRIDE):
                stop = min(start + STRIDE, last)
                yield slice(start, stop), as_float64(held[:, start - first : stop - first])


def whiten_dual(wide: Wide, rule: RankRule, columns: Columns) -> Basis:
    """Return the basis of activations with more columns than rows, from the Gram of their rows.

    Two passes over the activations if all columns are in memory at once, else as many more.

    Raises
    ------
    DsvccaError
        As `dsvcca.maths.whiten.whiten`.
    """
    gram: Array = None
    means, norms, largest = [], [], 0.0
    for _, x in wide.strides(1):
        xp = namespace(x)
        if not bool(xp.all(xp.isfinite(x))):
            raise not_finite(wide.slabs(), wide.name, 0)
        largest = max(largest, float(xp.max(xp.abs(x))))
        means.append(xp.mean(x, axis=0))
        z = x - means[-1]
        with np.errstate(over="ignore"):  # what is not finite becomes an error below
            norms.append(xp.sqrt(xp.sum(z * z, axis=0)))
        if gram is None:
            gram = xp.zeros((wide.rows, wide.rows), dtype=xp.float64, device=device(x))
        add_gram(gram, xp.matrix_transpose(z))
    row_norms = xp.linalg.diagonal(gram)
    _check(wide, largest, float(xp.sum(row_norms)))
    gram = hermitian(gram)
    values, vectors = xp.linalg.eigh(gram)
    del gram
    s2 = np.maximum(to_numpy(values)[::-1], 0.0)
    s2[-1] = 0.0  # rows that sum to zero: rounding would leave its root
    noise = noise_of(wide.rows, wide.columns, largest, wide.bits)
    zero = zero_below(float(s2[0]), wide.rows, wide.columns, noise)
    spectrum = np.zeros((1, wide.columns))
    both = min(wide.rows, wide.columns)
    spectrum[0, :both] = np.sqrt(s2[:both])
    nonzero = int(np.count_nonzero(s2 > zero))
    [k] = kept_directions(rule, spectrum, nonzero, wide.rows, wide.name).tolist()
    turned = xp.matrix_transpose(xp.flip(vectors, axis=1)[:, :k])
    components = []
    u: Array = 0.0
    # Rounding of the Gram leaves in small directions what no column holds: the columns themselves know nothing of it.
    for (_, x), mean in zip(wide.strides(k), means, strict=True):
        components.append(xp.matmul(turned, x - mean))
        u = u + xp.matmul(x - mean, xp.matrix_transpose(components[-1]))
    u = u / like(s2[:k], u)
    slabs = (u[step, :] for step in grid_steps(wide.rows, wide.grid))
    cholesky, sums = _stored(slabs, k, wide, columns)
    return Basis(
        count=wide.rows,
        space=(),
        ranks=np.asarray([k]),
        singular_values=spectrum,
        nonzero=nonzero,
        noise=noise,
        mean=xp.concat(means, axis=0)[None, :],
        neuron_norms=xp.concat(norms, axis=0),
        row_norms=row_norms,
        blocks=(Block(cholesky, sums, xp.concat(components, axis=1)),),
    )


def whiten_randomised(wide: Wide, rule: RankRule, columns: Columns) -> Basis:
    """Return the basis of the leading directions, from sketches of the columns.

    Subspace iteration (Halko, Martinsson & Tropp 2011, algorithms 4.4 and 5.3): a random sketch is multiplied with the
    covariance POWERS + 1 times, and doubled until it holds the share of variance that is to be kept. One pass before,
    three for every sketch, one for the columns. `Basis.missed` bounds the largest singular value outside the sketch.

    Raises
    ------
    DsvccaError
        As `dsvcca.maths.whiten.whiten`; if the rule asks for directions by more than their share of variance, or for
        more of them than the largest sketch holds.
    """
    if rule.rank is None and (rule.variance == 1 or rule.criterion != "variance"):
        raise DsvccaError(
            f"{wide.name}: {wide.rows} rows of {wide.columns} columns are too many for {rule}, the randomised route "
            "finds the largest only: give rank=, or variance= below 1"
        )
    whole = _overview(wide)
    limit = min(wide.rows - 1, wide.columns)
    size = min(SAMPLES if rule.rank is None else rule.rank + SPARE, limit)
    z = _signs(wide.columns, size, whole.mean)
    while True:
        xp = namespace(z)
        for _ in range(POWERS):
            z = xp.linalg.qr(_covariance(wide, whole, z))[0]
        probes = _normal(wide.columns, PROBES, z)
        probes = probes - xp.matmul(z, xp.matmul(xp.matrix_transpose(z), probes))
        w = _covariance(wide, whole, xp.concat([z, probes], axis=1))
        seen = float(xp.max(xp.sum(probes * w[:, size:], axis=0)))
        w = w[:, :size]
        values, vectors = xp.linalg.eigh(xp.matmul(xp.matrix_transpose(z), w))
        s2 = np.maximum(to_numpy(values)[::-1], 0.0)
        sound = size if size == limit else size - SPARE
        found = float(s2[:sound].sum())
        if rule.rank is not None or size == limit or found >= rule.variance * whole.power:
            break
        if size >= wide.most_samples:
            raise DsvccaError(
                f"{wide.name}: {sound} directions hold {found / whole.power:.4%} of the variance, "
                f"{rule.variance:.4%} are asked for: give rank=, a smaller variance=, or more memory= (a sketch may "
                f"have {wide.most_samples} columns, and {MOST_SAMPLES} at most)"
            )
        larger = min(2 * size, wide.most_samples, limit)
        z = xp.concat([w, _signs(wide.columns, larger, whole.mean)[:, size:]], axis=1)
        z, size = xp.linalg.qr(z)[0], larger
    rounding = 1e-13 * whole.power
    outside = max(whole.power - float(s2.sum()), 0.0) + rounding
    missed = min(outside, CERTAIN**2 * (max(seen, 0.0) + rounding)) ** 0.5
    spectrum = np.zeros((1, wide.columns))
    spectrum[0, :limit] = (outside / max(limit - size, 1)) ** 0.5  # what was not found, spread evenly: the sum is right
    spectrum[0, :size] = np.sqrt(s2)
    noise = noise_of(wide.rows, wide.columns, whole.largest, wide.bits)
    count = int(np.count_nonzero(s2 > zero_below(float(s2[0]), wide.rows, wide.columns, noise)))
    nonzero = count if count < size else limit
    [k] = kept_directions(rule, spectrum, nonzero, wide.rows, wide.name).tolist()
    q = xp.flip(vectors, axis=1)[:, :k]
    s, v = like(spectrum[0, :k], z), xp.matmul(z, q)
    row_norms: list[Array] = []

    def slabs() -> Iterator[Array]:
        for stored in wide.slabs():
            x = as_float64(stored) - whole.mean
            row_norms.append(xp.sum(x * x, axis=1))
            yield xp.matmul(x, v) / s

    cholesky, sums = _stored(slabs(), k, wide, columns)
    of_columns = xp.matrix_transpose(xp.matmul(w, q)) / s[:, None]  # U^H X: w is X^H X z
    gram = xp.matmul(cholesky, xp.matrix_transpose(cholesky))
    return Basis(
        count=wide.rows,
        space=(),
        ranks=np.asarray([k]),
        singular_values=spectrum,
        nonzero=nonzero,
        noise=noise,
        mean=whole.mean[None, :],
        neuron_norms=whole.neuron_norms,
        row_norms=xp.concat(row_norms, axis=0),
        blocks=(Block(cholesky, sums, xp.linalg.solve(gram, of_columns)),),
        missed=missed,
    )


def _stored(slabs: Iterable[Array], k: int, wide: Wide, columns: Columns) -> tuple[Array, Array]:
    """Hand on columns (m, k), and return the Cholesky factor of their Gram and their sums, as they were stored."""
    columns.start(wide.rows, [k])
    gram: Array = None
    sums: Array = 0.0
    for slab in slabs:
        stored, ones = columns.append(slab)
        stored = as_float64(stored)
        xp = namespace(stored)
        if gram is None:
            gram = xp.zeros((k, k), dtype=xp.float64, device=device(stored))
        add_gram(gram, stored)
        sums = sums + xp.matmul(ones, stored)
    outer = sums[:, None] * sums[None, :]
    return xp.linalg.cholesky(hermitian(gram) - outer / wide.rows), sums


def _check(wide: Wide, largest: float, power: float) -> None:
    """Raise if numbers, or their squares, leave float64."""
    check_numbers(largest, wide.bits, wide.name)
    if not np.isfinite(power):
        raise not_finite(wide.slabs(), wide.name, 0)
    if 0 < largest < TINY**0.5:
        raise too_small(largest, wide.name)


@dataclass(frozen=True)
class _Overview:
    """What one pass says: the mean (p,), norms (p,) and total power of the centred columns."""

    mean: Array
    neuron_norms: Array
    power: float
    largest: float


def _overview(wide: Wide) -> _Overview:
    shift: Array = None
    sums, squares, largest = 0.0, 0.0, 0.0
    for stored in wide.slabs():
        xp = namespace(stored)
        x = as_float64(stored)
        if not bool(xp.all(xp.isfinite(x))):
            raise not_finite(wide.slabs(), wide.name, 0)
        largest = max(largest, float(xp.max(xp.abs(x))))
        if shift is None:
            shift = xp.mean(x[: min(SHIFT_ROWS, x.shape[0]), :], axis=0)
        x = x - shift
        with np.errstate(over="ignore"):  # what is not finite becomes an error below
            sums, squares = sums + xp.sum(x, axis=0), squares + xp.sum(x * x, axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        powers = squares - sums * sums / wide.rows
    _check(wide, largest, float(xp.sum(powers)))
    powers = xp.maximum(powers, 0.0 * powers)
    return _Overview(shift + sums / wide.rows, xp.sqrt(powers), float(xp.sum(powers)), largest)


def _covariance(wide: Wide, whole: _Overview, z: Array) -> Array:
    """Return X^H X z (p, l) of the centred activations, in one pass."""
    xp = namespace(z)
    found: Array = 0.0
    for stored in wide.slabs():
        x = as_float64(stored) - whole.mean
        found = found + xp.matmul(xp.matrix_transpose(x), xp.matmul(x, z))
    return found


def _signs(rows: int, columns: int, other: Array) -> Array:
    """Return a random matrix of signs (rows, columns), always the same, in the library of another array."""
    raw = np.random.PCG64(20110217).random_raw(rows * columns).reshape(columns, rows)  # a stream that never changes
    return like(np.where(raw >> np.uint64(63), 1.0, -1.0).T, other)


def _normal(rows: int, columns: int, other: Array) -> Array:
    """Return standard normal numbers (rows, columns), always the same (Box & Muller 1958)."""
    raw = np.random.PCG64(20110218).random_raw(2 * rows * columns) >> np.uint64(11)
    u, v = ((raw.astype(np.float64) + 0.5) / 2**53).reshape(2, rows, columns)
    return like(np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v), other)
