"""Bases: every representation is whitened once into orthonormal columns, and never again.

`decompose` turns moments into singular values and vectors, `RankRule` says how many of them to keep, `whiten` makes
the columns. Columns may be stored in float32: the Gram of the numbers *as stored* is measured in float64 and its
Cholesky factor kept beside them, so that every later product can be corrected exactly (`Basis.cholesky`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dsvcca.arrays import Array, NumpyArray, adjoint, as_float64, like, namespace, significand_bits, to_numpy
from dsvcca.errors import DsvccaError
from dsvcca.moments import Moments, Rows, grid_steps, moments_over
from dsvcca.views import apply_view

CRITERIA = ("variance", "singular")


@dataclass(frozen=True)
class RankRule:
    """How many directions of a representation are kept.

    Attributes
    ----------
    variance : float, default 1.0
        Share to keep, 0 < variance <= 1; 1.0 keeps every direction that is not zero.
    criterion : {"variance", "singular"}, default "variance"
        Share of the sum of squared singular values, or of the singular values themselves (the letter of Raghu et al.
        2017, appendix C; it keeps far more noise).
    rank : int, optional
        Keep this many directions instead (all of them where there are fewer).
    """

    variance: float = 1.0
    criterion: str = "variance"
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise DsvccaError(f"criterion={self.criterion!r} is unknown: use 'variance' or 'singular'")
        if not 0 < self.variance <= 1:
            raise DsvccaError(f"variance={self.variance!r} must lie in (0, 1]: it is a share, 0.99 keeps 99 %")
        if self.rank is not None and self.rank < 1:
            raise DsvccaError(f"rank={self.rank} keeps nothing: give 1 or more, or None")

    def keep(self, singular_values: NumpyArray, nonzero: int, weights: NumpyArray | None = None) -> int:
        """Return how many leading directions are kept.

        Parameters
        ----------
        singular_values : (c,) float64
            Largest first, over all frequencies together.
        nonzero : int
            How many of them are not zero.
        weights : (c,), optional
            How many directions each stands for (2 for a pair of frequencies, else 1); default all 1.

        Examples
        --------
        >>> RankRule(0.89).keep(np.array([3.0, 1.0, 0.1]), nonzero=3)
        1
        >>> RankRule(0.89, "singular").keep(np.array([3.0, 1.0, 0.1]), nonzero=3)
        2
        """
        w = np.ones(nonzero) if weights is None else weights[:nonzero]
        if self.rank is not None:
            share, target = np.cumsum(w), float(self.rank)
        elif self.variance == 1:
            return nonzero
        else:
            share = np.cumsum(w * singular_values[:nonzero] ** (2 if self.criterion == "variance" else 1))
            target = self.variance * float(share[-1]) * (1 - 1e-12)
        return min(int(np.searchsorted(share, target)) + 1, nonzero)

    def covers(self, other: RankRule) -> bool:
        """Return whether the directions kept by `other` are always among those kept by this rule."""
        if self.rank is None and self.variance == 1:
            return True
        if self.rank is not None or other.rank is not None:
            return self.rank is not None and other.rank is not None and self.rank >= other.rank
        return self.criterion == other.criterion and self.variance >= other.variance

    def __str__(self) -> str:
        if self.rank is not None:
            return f"the {self.rank} largest directions"
        if self.variance == 1:
            return "all non-zero directions"
        what = "squared singular values (variance)" if self.criterion == "variance" else "singular values"
        return f"fewest directions holding {self.variance:.4%} of the sum of {what}"


@dataclass(frozen=True)
class Spectrum:
    """Singular values and right singular vectors of centred activations.

    Attributes
    ----------
    singular_values : (c,) float64, NumPy
        All of them, largest first; s² / (n - 1) is a variance.
    vectors : (c, c) float64
        Columns in the same order.
    nonzero : int
        How many singular values stand above the rounding of the arithmetic and of the stored numbers.
    """

    singular_values: NumpyArray
    vectors: Array
    nonzero: int


@dataclass(frozen=True)
class Basis:
    """What belongs to the orthonormal columns U (n, k) of one representation, largest singular value first.

    The columns themselves are large and live apart: in memory, or in a pack of the workspace.

    Attributes
    ----------
    count : int
        Rows, n.
    cholesky : (k, k) float64
        Lower factor L of the centred Gram of U as stored: U L^-H is orthonormal to float64 rounding.
    column_sums : (k,) float64
        Sums of the columns of U as stored (zero but for rounding).
    singular_values : (c,) float64, NumPy
        The whole spectrum.
    nonzero : int
        How many of the singular values are not zero.
    loadings : (k, c) float64
        F with z = (U L^-H) F on the kept directions, z the centred activations.
    mean, neuron_norms : (c,) float64
        Column means, and norms ||z_j|| of the centred columns.
    row_norms : (n,) float64
        Squared norms ||z_i||² of the centred rows.
    """

    count: int
    cholesky: Array
    column_sums: Array
    singular_values: NumpyArray
    nonzero: int
    loadings: Array
    mean: Array
    neuron_norms: Array
    row_norms: Array

    @property
    def rank(self) -> int:
        """Kept directions, k."""
        return int(self.cholesky.shape[0])


def decompose(moments: Moments, largest: float, bits: int | None) -> Spectrum:
    """Return the spectrum of centred activations from their co-moment (one frequency).

    A direction is zero if its eigenvalue is at most max(n, c) eps of the largest, or at most what rounding the stored
    numbers to `bits` significand bits can make of nothing: 4 n u² / 12, u the spacing of stored numbers at `largest`,
    the largest absolute value as stored. A channel that is constant after batch norm is zero by this rule, whatever
    its constant.
    """
    xp = namespace(moments.gram)
    eigenvalues, vectors = xp.linalg.eigh(moments.comoment[0, :, :])
    s2 = np.maximum(to_numpy(eigenvalues)[::-1], 0.0)
    n, c = moments.count, s2.shape[0]
    spacing = 0.0
    if bits is not None and largest > 0:
        spacing = 2.0 ** (math.ceil(math.log2(largest)) - bits)
    zero = max(max(n, c) * float(np.finfo(np.float64).eps) * float(s2[0]), 4 * n * spacing**2 / 12)
    return Spectrum(np.sqrt(s2), xp.flip(vectors, axis=1), int(np.count_nonzero(s2 > zero)))


class Columns(Protocol):
    """What takes the columns of a basis, slab by slab, and says how they were stored."""

    def start(self, n: int, k: int) -> None:
        """Announce n rows of k columns."""

    def append(self, slab: Array) -> Array:
        """Store the next rows (float64) and return them as stored."""


class InMemory:
    """Columns kept in memory in one floating type."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.slabs: list[Array] = []

    def start(self, n: int, k: int) -> None:
        self.slabs = []

    def append(self, slab: Array) -> Array:
        xp = namespace(slab)
        self.slabs.append(xp.astype(slab, getattr(xp, self.dtype), copy=False))
        return self.slabs[-1]

    def array(self) -> Array:
        """All rows (n, k)."""
        return namespace(self.slabs[0]).concat(self.slabs, axis=0)


def whiten(rows: Rows, rule: RankRule, columns: Columns, *, bits: int | None, name: str) -> Basis:
    """Return the basis of a representation, passing over its rows twice: moments, then projection.

    Parameters
    ----------
    rows : Rows
        Of one frequency.
    rule : RankRule
        Which directions to keep.
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
        shift, offset = moments.shift[0, :], moments.sums[0, :] / moments.count
        neuron_powers = xp.linalg.diagonal(moments.gram[0, :, :]) - moments.count * offset * offset
    if not bool(xp.all(xp.isfinite(neuron_powers))):
        raise _not_finite(rows.stored(), name)
    spectrum = decompose(moments, rows.largest, bits)
    n = moments.count
    if spectrum.nonzero == 0:
        raise DsvccaError(
            f"{name}: every neuron is constant over all {n} rows, no direction is left to compare: leave it out"
        )
    k = rule.keep(spectrum.singular_values, spectrum.nonzero)
    if k >= n - 1:
        raise DsvccaError(
            f"{name}: {k} kept directions in {n} rows leave no freedom, every correlation would be 1 whatever the "
            f"data (kept directions must stay below rows - 1 = {n - 1}): use more datapoints, or keep fewer "
            "directions, by a smaller variance="
        )
    v = spectrum.vectors[:, :k]
    s = like(spectrum.singular_values[:k], v)
    # One product gives the columns and, in its last row, z_i . offset; long rows make it a quarter faster.
    w = xp.concat([adjoint(v / s), offset[None, :]], axis=0)
    of_mean = xp.matmul(w, offset[:, None])
    columns.start(n, k)
    gram: Array = 0.0
    sums: Array = 0.0
    row_norms: list[Array] = []
    for shifted in rows():
        z = shifted[0, :, :]
        projected = xp.matmul(w, adjoint(z)) - of_mean  # of the centred rows
        stored = as_float64(columns.append(adjoint(projected[:k, :])))
        gram = gram + xp.matmul(adjoint(stored), stored)
        sums = sums + xp.sum(stored, axis=0)
        row_norms.append(xp.vecdot(z, z) - 2 * projected[k, :] - of_mean[k, 0])
    cholesky = xp.linalg.cholesky(gram - adjoint(sums[None, :]) * sums[None, :] / n)
    return Basis(
        count=n,
        cholesky=cholesky,
        column_sums=sums,
        singular_values=spectrum.singular_values,
        nonzero=spectrum.nonzero,
        loadings=xp.matmul(adjoint(cholesky), s[:, None] * adjoint(v)),
        mean=shift + offset,
        neuron_norms=xp.sqrt(xp.maximum(neuron_powers, 0.0 * neuron_powers)),
        row_norms=xp.concat(row_norms, axis=0),
    )


def whiten_in_memory(x: Array, rule: RankRule, name: str) -> tuple[Array, Basis]:
    """Return the float64 columns (n, k) and the basis of activations (n, c) that are in memory."""
    viewed = apply_view(x, "neurons")
    columns = InMemory("float64")
    basis = whiten(
        Rows(lambda: (viewed[:, step, :] for step in grid_steps(viewed.shape[1])), keep=True),
        rule,
        columns,
        bits=significand_bits(x.dtype),
        name=name,
    )
    return columns.array(), basis


def inverse_cholesky(cholesky: Array) -> Array:
    """Return L^-1, lower triangular: its corners serve smaller ranks."""
    xp = namespace(cholesky)
    return xp.tril(xp.linalg.inv(cholesky))


def _not_finite(slabs: Iterable[Array], name: str) -> DsvccaError:
    """Return the error that says where activations are not finite."""
    start, bad, first, largest = 0, 0, -1, 0.0
    for slab in slabs:
        values = to_numpy(as_float64(slab))[0]
        wrong = ~np.isfinite(values)
        if first < 0 and wrong.any():
            first = start + int(np.argmax(wrong.any(axis=1)))
        bad += int(wrong.sum())
        largest = max(largest, float(np.abs(values).max()))
        start += values.shape[0]
    if not bad:
        return DsvccaError(f"{name}: squares of numbers as large as {largest:.3g} overflow float64: scale them down")
    return DsvccaError(
        f"{name}: {bad} numbers are NaN or infinite, the first in row {first}: "
        "leave this representation out, or write it again without them"
    )
