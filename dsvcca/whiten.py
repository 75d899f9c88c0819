"""Whitening: every representation is brought to orthonormal columns once, and never again.

`decompose` turns moments into singular values and vectors, the rank rule says how many of them to keep, `whiten` makes
the columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dsvcca.arrays import (
    Array,
    NumpyArray,
    adjoint,
    as_float64,
    as_pairs,
    from_pairs,
    like,
    namespace,
    real_part,
    significand_bits,
    to_numpy,
)
from dsvcca.basis import Basis, Block, RankRule, ranks_of
from dsvcca.errors import DsvccaError
from dsvcca.frequencies import half_spectrum
from dsvcca.mixing import mix, mixed_ones
from dsvcca.moments import Moments, Rows, moments_over
from dsvcca.views import NEURONS, View

EXACT = 2.0**53
"""Integers up to which float64 is exact."""

TINY = 1e-280
"""Squares below which float64 begins to lose digits."""


@dataclass(frozen=True)
class Spectrum:
    """Singular values and right singular vectors of centred activations, frequency by frequency.

    Attributes
    ----------
    singular_values : (f, c) float64, NumPy
        All of them, largest first within a frequency; s² / (n - 1) is a variance.
    vectors : f arrays (c, c), float64 or complex128
        Columns in the same order; real where a frequency is its own conjugate.
    nonzero : int
        How many singular values, over all frequencies, stand above the rounding of the arithmetic and of the stored
        numbers.
    """

    singular_values: NumpyArray
    vectors: tuple[Array, ...]
    nonzero: int


def decompose(moments: Moments, weights: NumpyArray, largest: float, bits: int | None) -> Spectrum:
    """Return the spectrum of centred activations from their co-moments.

    A direction is zero if its eigenvalue is at most max(n, c) eps of the largest of all frequencies, or at most what
    rounding the stored numbers to `bits` significand bits can make of nothing: 4 n u² / 12, u the spacing of stored
    numbers at `largest`, the largest absolute value as stored. A channel that is constant after batch norm is zero by
    this rule, whatever its constant.
    """
    eigenvalues, vectors = [], []
    for f, weight in enumerate(weights):
        comoment = moments.comoment(f)
        xp = namespace(comoment)
        values, found = xp.linalg.eigh(real_part(comoment) if weight == 1 else comoment)
        eigenvalues.append(to_numpy(values)[::-1])
        vectors.append(xp.flip(found, axis=1))
    s2 = np.maximum(np.stack(eigenvalues), 0.0)
    n, c = moments.count, s2.shape[1]
    spacing = 0.0
    if bits is not None and largest > 0:
        spacing = 2.0 ** (math.ceil(math.log2(largest)) - bits)
    zero = max(max(n, c) * float(np.finfo(np.float64).eps) * float(s2.max()), 4 * n * spacing**2 / 12)
    return Spectrum(np.sqrt(s2), tuple(vectors), int(np.count_nonzero(s2 > zero)))


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
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite becomes an error below
        moments = moments_over(rows)
        xp = namespace(moments.gram)
        n, offsets = moments.count, moments.sums / moments.count
        powers = real_part(xp.linalg.diagonal(moments.gram) - n * offsets * xp.conj(offsets))
        weights = half_spectrum(rows.space).weights
        neuron_powers = xp.sum(like(weights[:, None].astype(np.float64), powers) * powers, axis=0)
    if not bool(xp.all(xp.isfinite(neuron_powers))):
        raise _not_finite(rows.stored(), name)
    if bits is None and rows.largest > EXACT:
        raise DsvccaError(
            f"{name}: integers up to {rows.largest:.3g} are not exact as float64 (above 2^53): subtract what they "
            "have in common before writing them"
        )
    if 0 < rows.largest < TINY**0.5 and any(bool(xp.any(xp.abs(slab) > 1e-12 * rows.largest)) for slab in rows()):
        raise DsvccaError(f"{name}: squares of numbers as small as {rows.largest:.3g} underflow float64: scale them up")
    spectrum = decompose(moments, weights, rows.largest, bits)
    if spectrum.nonzero == 0:
        raise DsvccaError(
            f"{name}: every neuron is constant over all {n} rows, no direction is left to compare: leave it out"
        )
    [ranks] = ranks_of([rule], weights, spectrum.singular_values, spectrum.nonzero)
    if ranks.max() >= n - 1:
        where = "" if len(ranks) == 1 else f" of frequency {int(ranks.argmax())}"
        raise DsvccaError(
            f"{name}: {ranks.max()} kept directions{where} in {n} rows leave no freedom, every correlation would be 1 "
            f"whatever the data (kept directions must stay below rows - 1 = {n - 1}): use more datapoints, or keep "
            "fewer directions, by a smaller variance="
        )
    making = [
        _Making(
            int(weights[f]), v[:, :k], like(spectrum.singular_values[f, :k], powers), offsets[f, :], rows.centred[f]
        )
        for f, (v, k) in enumerate(zip(spectrum.vectors, ranks.tolist(), strict=True))
    ]
    columns.start(n, [block.width for block in making])
    row_norms: list[Array] = []
    for shifted in rows():
        pieces, norms = zip(*(block.project(shifted[f, :, :]) for f, block in enumerate(making)), strict=True)
        stored, ones = columns.append(pieces[0] if len(pieces) == 1 else xp.concat(pieces, axis=1))
        stored = as_float64(stored)
        start = 0
        for block in making:
            block.measure(stored[:, start : start + block.width], ones)
            start += block.width
        row_norms.append(sum(norms))
    return Basis(
        count=n,
        space=rows.space,
        ranks=ranks,
        singular_values=spectrum.singular_values,
        nonzero=spectrum.nonzero,
        mean=moments.mean,
        neuron_norms=xp.sqrt(xp.maximum(neuron_powers, 0.0 * neuron_powers)),
        row_norms=xp.concat(row_norms, axis=0),
        blocks=tuple(block.finish(n) for block in making),
    )


class _Making:
    """One frequency while its columns are made."""

    def __init__(self, weight: int, vectors: Array, s: Array, offset: Array, centred: bool) -> None:
        xp = namespace(vectors)
        self.weight, self.vectors, self.s, self.centred = weight, vectors, s, centred
        self.real = not xp.isdtype(vectors.dtype, "complex floating")
        offset = real_part(offset) if self.real else offset
        # One product gives the columns and, in its last row, z_i . offset; long rows make it a quarter faster.
        conjugate = offset if self.real else xp.conj(offset)
        self.map = xp.concat([xp.matrix_transpose(vectors / s), conjugate[None, :]], axis=0)
        self.of_mean = xp.matmul(self.map, offset[:, None])
        self.gram: Array = 0.0
        self.sums: Array = 0.0

    @property
    def width(self) -> int:
        """Real columns."""
        return int(self.s.shape[0]) * (1 if self.real else 2)

    def project(self, shifted: Array) -> tuple[Array, Array]:
        """Return the real columns (m, width) of shifted rows (m, c), and the weighted squared norms of centred rows."""
        xp = namespace(shifted)
        z = real_part(shifted) if self.real else shifted
        projected = xp.matmul(self.map, xp.matrix_transpose(z)) - self.of_mean
        norms = real_part(xp.vecdot(z, z) - 2 * projected[-1, :] - self.of_mean[-1, 0])
        return as_pairs(xp.matrix_transpose(projected[:-1, :])), self.weight * norms

    def measure(self, stored: Array, ones: Array) -> None:
        """Add rows as they were stored to the Gram and the sums of the columns."""
        xp = namespace(stored)
        self.gram = self.gram + xp.matmul(adjoint(stored), stored)
        self.sums = self.sums + xp.matmul(ones, stored)

    def finish(self, n: int) -> Block:
        """Return what belongs to the columns as they were stored."""
        xp = namespace(self.gram)
        gram, sums = self.gram, self.sums
        if not self.real:
            gram, sums = from_pairs(gram), sums[0::2] + 1j * sums[1::2]
        if not self.centred:
            sums = 0.0 * sums  # so that nothing is subtracted from products either
        cholesky = xp.linalg.cholesky(gram - adjoint(sums[None, :]) * sums[None, :] / n)
        return Block(cholesky, sums, self.s[:, None] * adjoint(self.vectors))


def whiten_in_memory(
    x: Array, rule: RankRule, name: str, *, view: View = NEURONS, center: str = "all"
) -> tuple[Array, Basis]:
    """Return the float64 real columns (n, widths of all frequencies) and the basis of activations in memory."""
    columns = InMemory(rounded=False)
    rows = Rows(lambda: iter((x,)), tuple(x.shape), view, keep=True, center=center)
    basis = whiten(rows, rule, columns, bits=significand_bits(x.dtype), name=name)
    return columns.array(), basis


def _not_finite(slabs: Iterable[Array], name: str) -> DsvccaError:
    """Return the error that says where activations are not finite."""
    start, bad, first, largest = 0, 0, -1, 0.0
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
