"""Whitening: every representation is brought to orthonormal columns once, and never again.

`decompose` turns moments into singular values and vectors, the rank rule says how many of them to keep, `whiten` makes
the columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dsvcca.errors import DsvccaError, errors_of
from dsvcca.maths.arrays import (
    Array,
    NumpyArray,
    add_gram,
    adjoint,
    as_float64,
    as_pairs,
    device,
    eigen,
    from_pairs,
    hermitian,
    like,
    namespace,
    real_part,
    significand_bits,
    to_numpy,
)
from dsvcca.maths.basis import Basis, Block, RankRule, ranks_of, zero_below
from dsvcca.maths.frequencies import half_spectrum
from dsvcca.maths.mixing import mix, mixed_ones
from dsvcca.maths.moments import Moments, Rows, moments_over
from dsvcca.maths.translations import Between, OffBlock
from dsvcca.maths.views import GRID, NEURONS, View

EXACT = 2.0**53
"""Integers up to which float64 is exact."""

ONE = np.ones(1, dtype=np.int64)
"""The weights of the one frequency of views that do not transform."""

SMALLEST = {8: 2.0**-133, 11: 2.0**-24, 24: 2.0**-149, 53: 2.0**-1074}
"""Smallest number above zero of types with so many significand bits: the spacing of theirs is never less."""

SMALL = 1024
"""Columns of activations up to which a step is short, and several of them go on together."""

TINY = 1e-280
"""Squares below which float64 begins to lose digits."""


@dataclass(frozen=True)
class Spectrum:
    """Singular values and right singular vectors of centred activations, frequency by frequency.

    Attributes
    ----------
    singular_values : (f, c) float64, NumPy
        All of them, largest first within a frequency; s² / (n - 1) is a variance.
    vectors : f functions
        Each returns the first k of them, (c, k) float64 or complex128; real where a frequency is its own conjugate.
    nonzero : int
        How many singular values, over all frequencies, stand above the rounding of the arithmetic and of the stored
        numbers.
    noise : float
        Eigenvalue that rounding of the stored numbers can make of nothing.
    """

    singular_values: NumpyArray
    vectors: tuple[Callable[[int], Array], ...]
    nonzero: int
    noise: float


def decompose(moments: Moments, weights: NumpyArray, largest: float, bits: int | None, every: bool = False) -> Spectrum:
    """Return the spectrum of centred activations from their co-moments.

    A direction is zero if its eigenvalue is at most max(n, c) eps of the largest of all frequencies, or at most what
    rounding the stored numbers to `bits` significand bits can make of nothing: 4 max(n, c) u² / 12, u the spacing of
    stored numbers at `largest`, the largest absolute value as stored. A channel that is constant after batch norm is
    zero by this rule, whatever its constant. `every` says that all vectors will be asked for.
    """
    eigenvalues, vectors = [], []
    for f, weight in enumerate(weights):
        comoment = moments.comoment(f)
        values, leading = eigen(real_part(comoment) if weight == 1 else comoment, every)
        eigenvalues.append(values)
        vectors.append(leading)
    s2 = np.maximum(np.stack(eigenvalues), 0.0)
    noise = noise_of(moments.count, s2.shape[1], largest, bits)
    zero = zero_below(float(s2.max()), moments.count, s2.shape[1], noise)
    return Spectrum(np.sqrt(s2), tuple(vectors), int(np.count_nonzero(s2 > zero)), noise)


def noise_of(n: int, c: int, largest: float, bits: int | None) -> float:
    """Return the eigenvalue that rounding of the stored numbers can make of nothing (see `decompose`)."""
    if bits is None or not largest > 0:
        return 0.0
    spacing = max(2.0 ** (math.ceil(math.log2(largest)) - bits), SMALLEST[bits])
    return 4 * max(n, c) * (spacing * spacing) / 12  # a power would raise where this is infinite


def check_numbers(largest: float, bits: int | None, name: str) -> None:
    """Raise if integers are larger than float64 holds exactly."""
    if bits is None and largest > EXACT:
        raise DsvccaError(
            f"{name}: integers up to {largest:.3g} are not exact as float64 (above 2^53): subtract what they "
            "have in common before writing them"
        )


def kept_directions(
    rule: RankRule, singular_values: NumpyArray, nonzero: int, n: int, name: str, weights: NumpyArray = ONE
) -> NumpyArray:
    """Return how many directions are kept at each frequency, (f,) int.

    Raises
    ------
    DsvccaError
        If there is none, or there are too few rows for them.
    """
    if nonzero == 0:
        raise DsvccaError(
            f"{name}: every neuron is constant over all {n} rows, no direction is left to compare: leave it out"
        )
    [ranks] = ranks_of([rule], weights, singular_values, nonzero)
    if ranks.max() >= n - 1:
        where = "" if len(ranks) == 1 else f" of frequency {int(ranks.argmax())}"
        raise DsvccaError(
            f"{name}: {ranks.max()} kept directions{where} in {n} rows leave no freedom, every correlation would be 1 "
            f"whatever the data (kept directions must stay below rows - 1 = {n - 1}): use more datapoints, or keep "
            "fewer directions, by a smaller variance="
        )
    return ranks


class Columns(Protocol):
    """What takes the columns of a basis, slab by slab, and says how they were stored."""

    def start(self, n: int, widths: Sequence[int]) -> None:
        """Announce n rows; of each frequency so many real columns (two for a complex one, `arrays.as_pairs`)."""

    def append(self, slab: Array) -> tuple[Array, Array]:
        """Store the next rows (m, all real columns) float64, and return them and the rows (m,) of ones as stored.

        They may be stored after an orthogonal transformation of rows, which no product of columns shows.
        """


class InMemory:
    """Columns kept in memory: as they are, or rounded to float32 after rows were mixed."""

    def __init__(self, *, rounded: bool) -> None:
        self.rounded = rounded
        self.slabs: list[Array] = []
        self.rows = 0

    def start(self, n: int, widths: Sequence[int]) -> None:
        self.slabs, self.rows = [], 0

    def append(self, slab: Array) -> tuple[Array, Array]:
        stored, ones = rounded_rows(slab, self.rows) if self.rounded else (slab, np.ones(slab.shape[0]))
        self.slabs.append(stored)
        self.rows += slab.shape[0]
        return stored, like(ones, slab)

    def array(self) -> Array:
        """All rows (n, real columns)."""
        return namespace(self.slabs[0]).concat(self.slabs, axis=0)


def rounded_rows(slab: Array, start: int) -> tuple[Array, NumpyArray]:
    """Return rows (m, k) mixed and as float32, and what became of ones; `start` is the first of them."""
    xp = namespace(slab)
    return mix(xp.astype(slab, xp.float32), start), mixed_ones(start, slab.shape[0])


@dataclass(frozen=True)
class Cut:
    """Which directions of a representation are kept, before any column is made.

    Attributes
    ----------
    count : int
    space : tuple of int
    centred : (f,) bool, NumPy
        Frequencies whose mean is subtracted.
    mean : (f, c)
    neuron_norms : (c,) float64
    ranks : (f,) int, NumPy
    singular_values : (f, c) float64, NumPy
    nonzero : int
    noise : float
    vectors : f arrays (c, k)
    """

    count: int
    space: tuple[int, ...]
    centred: NumpyArray
    mean: Array
    neuron_norms: Array
    ranks: NumpyArray
    singular_values: NumpyArray
    nonzero: int
    noise: float
    vectors: tuple[Array, ...]


def cut(
    moments: Moments,
    rule: RankRule,
    *,
    space: tuple[int, ...],
    centred: NumpyArray,
    largest: float,
    bits: int | None,
    name: str,
) -> Cut:
    """Return which directions are kept, over all frequencies together.

    Raises
    ------
    DsvccaError
        If no direction is left, or there are too few rows for the directions.
    """
    check_numbers(largest, bits, name)
    weights = half_spectrum(space).weights
    n = moments.count
    every = rule.rank is None and rule.variance == 1
    spectrum = decompose(moments, weights, largest, bits, every)
    ranks = kept_directions(rule, spectrum.singular_values, spectrum.nonzero, n, name, weights)
    powers = neuron_powers(moments, weights)
    xp = namespace(powers)
    return Cut(
        count=n,
        space=space,
        centred=centred,
        mean=moments.mean,
        neuron_norms=xp.sqrt(xp.maximum(powers, 0.0 * powers)),
        ranks=ranks,
        singular_values=spectrum.singular_values,
        nonzero=spectrum.nonzero,
        noise=spectrum.noise,
        vectors=tuple(leading(k) for leading, k in zip(spectrum.vectors, ranks.tolist(), strict=True)),
    )


def neuron_powers(moments: Moments, weights: NumpyArray) -> Array:
    """Return the squared norms of the centred columns over all frequencies, (c,)."""
    xp = namespace(moments.gram)
    offsets = moments.sums / moments.count
    powers = real_part(xp.linalg.diagonal(moments.gram) - moments.count * offsets * xp.conj(offsets))
    return xp.sum(like(weights[:, None].astype(np.float64), powers) * powers, axis=0)


def checked_moments(rows: Sequence[Rows], names: Sequence[str], start: int = 0) -> Moments:
    """Return the moments of rows of several representations side by side; datapoint `start` is the first.

    Raises
    ------
    DsvccaError
        If a number is not finite, or too large or too small for its square.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite becomes an error below
        moments = moments_over(*rows)
        powers = neuron_powers(moments, half_spectrum(rows[0].space).weights)
    xp = namespace(powers)
    if not bool(xp.all(xp.isfinite(powers))):
        first = int(to_numpy(xp.argmin(xp.astype(xp.isfinite(powers), xp.int8))))
        which = int(np.searchsorted(np.cumsum([one.columns for one in rows]), first, side="right"))
        with errors_of(names[which]):
            raise not_finite(rows[which].stored(), names[which], start)
    for one, name in zip(rows, names, strict=True):
        tiny = 0 < one.largest < TINY**0.5
        if tiny and any(bool(xp.any(xp.abs(slab) > 1e-12 * one.largest)) for slab in one()):
            with errors_of(name):
                raise too_small(one.largest, name)
    return moments


def too_small(largest: float, name: str) -> DsvccaError:
    """Return the error that says that squares underflow."""
    return DsvccaError(f"{name}: squares of numbers as small as {largest:.3g} underflow float64: scale them up")


def whiten(rows: Rows, rule: RankRule, columns: Columns, *, bits: int | None, name: str) -> Basis:
    """Return the basis of a representation, passing over its rows twice: moments, then projection.

    Parameters
    ----------
    rows : Rows
    rule : RankRule
        Which directions to keep, over all frequencies together.
    columns : Columns
        Takes the orthonormal columns; its type is the stored precision.
    bits : int or None
        Significand bits of the stored numbers (`arrays.significand_bits`).
    name : str
        Whose activations, for error messages.

    Raises
    ------
    DsvccaError
        If a number is not finite, no direction is left, or there are too few rows for the directions.
    """
    moments = checked_moments([rows], [name])
    kept = cut(moments, rule, space=rows.space, centred=rows.centred, largest=rows.largest, bits=bits, name=name)
    projection = Projection(kept, rows.shift)
    columns.start(kept.count, projection.widths)
    norms = projection.add(rows(), columns)
    off_block = projection.between.result(kept.count) if projection.between else None
    return basis_of(kept, projection.sums(), norms, off_block)


class Projection:
    """Makes the columns of a representation, rows by rows, and measures them as they are stored.

    Parameters
    ----------
    kept : Cut
    shift : (f, c)
        What was subtracted from the rows that come.

    Attributes
    ----------
    between : Between or None
        What adds up the covariance between frequencies on the way; None where there is one only.
    """

    def __init__(self, kept: Cut, shift: Array) -> None:
        weights = half_spectrum(kept.space).weights.tolist()
        self._parts = [
            _Frequency(weight, v, like(kept.singular_values[f, : v.shape[1]], shift), (kept.mean - shift)[f, :])
            for f, (weight, v) in enumerate(zip(weights, kept.vectors, strict=True))
        ]
        self._offsets = kept.mean - shift
        self.between = Between(np.asarray(weights), kept.singular_values) if len(weights) > 1 else None

    @property
    def widths(self) -> list[int]:
        """Real columns of each frequency."""
        return [part.width for part in self._parts]

    def add(self, slabs: Iterable[Array], columns: Columns) -> Array:
        """Hand the columns of shifted rows (f, m, c) on, and return the squared norms of all centred rows.

        Columns of one frequency are handed on GRID rows at a time: they are few beside what they are made of.
        """
        norms, waiting = [], []
        for shifted in slabs:
            pieces, of_rows = zip(*(part.project(shifted[f, :, :]) for f, part in enumerate(self._parts)), strict=True)
            norms.append(sum(of_rows))
            waiting.append(pieces)
            if self.between:
                self.between.add(shifted, self._offsets)
            is_small = len(pieces) == 1 and shifted.shape[2] <= SMALL
            if not is_small or sum(one[0].shape[0] for one in waiting) >= GRID:
                self._hand_on(waiting, columns)
                waiting = []
        if waiting:
            self._hand_on(waiting, columns)
        return namespace(norms[0]).concat(norms, axis=0)

    def _hand_on(self, waiting: Sequence[Sequence[Array]], columns: Columns) -> None:
        """Hand the columns of some steps on, and measure them as they were stored."""
        xp = namespace(waiting[0][0])
        if len(waiting) == 1:
            slab = waiting[0][0] if len(waiting[0]) == 1 else xp.concat(waiting[0], axis=1)
        else:  # columns lie one after another
            slab = xp.matrix_transpose(xp.concat([xp.matrix_transpose(step) for (step,) in waiting], axis=1))
        stored, ones = columns.append(slab)
        stored = as_float64(stored)
        start = 0
        for part in self._parts:
            part.measure(stored[:, start : start + part.width], ones)
            start += part.width

    def sums(self) -> list[tuple[Array, Array]]:
        """Return Gram and sums of the columns as they were stored, of each frequency, real."""
        return [(hermitian(part.gram), part.sums) for part in self._parts]


def basis_of(
    kept: Cut, sums: Sequence[tuple[Array, Array]], row_norms: Array, off_block: OffBlock | None = None
) -> Basis:
    """Return the basis whose columns have these Grams and sums as they were stored."""
    weights = half_spectrum(kept.space).weights
    return Basis(
        count=kept.count,
        space=kept.space,
        ranks=kept.ranks,
        singular_values=kept.singular_values,
        nonzero=kept.nonzero,
        noise=kept.noise,
        mean=kept.mean,
        neuron_norms=kept.neuron_norms,
        row_norms=row_norms,
        blocks=tuple(_block(kept, f, int(weights[f]), *both) for f, both in enumerate(sums)),
        off_block=off_block,
    )


def _block(kept: Cut, f: int, weight: int, gram: Array, sums: Array) -> Block:
    """Return what belongs to columns as they were stored."""
    xp = namespace(gram)
    if weight == 2:
        gram, sums = from_pairs(gram), sums[0::2] + 1j * sums[1::2]
    if not kept.centred[f]:
        sums = 0.0 * sums  # so that nothing is subtracted from products either
    cholesky = xp.linalg.cholesky(gram - adjoint(sums[None, :]) * sums[None, :] / kept.count)
    s = like(kept.singular_values[f, : gram.shape[0]], gram)
    return Block(cholesky, sums, s[:, None] * adjoint(kept.vectors[f]))


class _Frequency:
    """One frequency while its columns are made."""

    def __init__(self, weight: int, vectors: Array, s: Array, offset: Array) -> None:
        xp = namespace(vectors)
        self.weight, self.real = weight, not xp.isdtype(vectors.dtype, "complex floating")
        self.width = int(s.shape[0]) * weight
        offset = real_part(offset) if self.real else offset
        # One product gives the columns and, in its last row, z_i . offset; long rows make it a quarter faster.
        conjugate = offset if self.real else xp.conj(offset)
        self.map = xp.concat([xp.matrix_transpose(vectors / s), conjugate[None, :]], axis=0)
        self.of_mean = xp.matmul(self.map, offset[:, None])
        self.gram = xp.zeros((self.width, self.width), dtype=xp.float64, device=device(vectors))
        self.sums: Array = 0.0

    def project(self, shifted: Array) -> tuple[Array, Array]:
        """Return the real columns (m, width) of shifted rows (m, c), and the weighted squared norms of centred rows."""
        xp = namespace(shifted)
        z = real_part(shifted) if self.real else shifted
        projected = xp.matmul(self.map, xp.matrix_transpose(z)) - self.of_mean
        norms = real_part(xp.vecdot(z, z) - 2 * projected[-1, :] - self.of_mean[-1, 0])
        return as_pairs(xp.matrix_transpose(projected[:-1, :])), self.weight * norms

    def measure(self, stored: Array, ones: Array) -> None:
        """Add rows as they were stored to the Gram and the sums of the columns."""
        add_gram(self.gram, stored)
        self.sums = self.sums + namespace(stored).matmul(ones, stored)


def whiten_in_memory(
    x: Array, rule: RankRule, name: str, *, view: View = NEURONS, center: str = "all"
) -> tuple[Array, Basis]:
    """Return the float64 real columns (n, widths of all frequencies) and the basis of activations in memory."""
    columns = InMemory(rounded=False)
    rows = Rows(lambda: iter((x,)), tuple(x.shape), view, keep=True, center=center)
    basis = whiten(rows, rule, columns, bits=significand_bits(x.dtype), name=name)
    return columns.array(), basis


def not_finite(slabs: Iterable[Array], name: str, start: int) -> DsvccaError:
    """Return the error that says where activations are not finite; datapoint `start` is their first."""
    bad, first, largest = 0, -1, 0.0
    for slab in slabs:
        values = to_numpy(as_float64(slab)).reshape(slab.shape[0], -1)
        wrong = ~np.isfinite(values)
        if first < 0 and wrong.any():
            first = start + int(np.argmax(wrong.any(axis=1)))
        bad += int(wrong.sum())
        largest = max(largest, float(np.abs(values).max()))
        start += values.shape[0]
    if not bad:
        return DsvccaError(f"{name}: squares of numbers as large as {largest:.3g} overflow float64: scale them down")
    return DsvccaError(
        f"{name}: {bad} numbers are NaN or infinite, the first of datapoint {first}: "
        "leave this representation out, or write it again without them"
    )
