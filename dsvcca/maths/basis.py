"""Bases: the orthonormal directions of a representation, how many of them are kept, and what belongs to them.

`dsvcca.whiten` makes them. Columns may be stored in float32: the Gram of the numbers *as stored* is measured in float64
and its Cholesky factor kept beside them, so that every later product can be corrected exactly (`Block.cholesky`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import Array, NumpyArray, adjoint, namespace
from dsvcca.maths.frequencies import half_spectrum
from dsvcca.maths.translations import OffBlock

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
        if not isinstance(self.variance, (int, float)) or not 0 < self.variance <= 1:
            raise DsvccaError(f"variance={self.variance!r} must lie in (0, 1]: it is a share, 0.99 keeps 99 %")
        if self.rank is not None and (not isinstance(self.rank, (int, np.integer)) or not 1 <= self.rank < 2**31):
            raise DsvccaError(f"rank={self.rank} keeps nothing that could be counted: give 1, 2, ... or None")

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
        return f"fewest directions holding {100 * self.variance:.6g} % of the sum of {what}"


def holds(there: RankRule, wanted: RankRule, route: str) -> bool:
    """Return whether a basis made by one rule holds every direction that another keeps.

    Of random sketches only one of the same rule does, since larger ones are better.
    """
    return there == wanted if route == "randomised" else there.covers(wanted)


@dataclass(frozen=True)
class Block:
    """What belongs to the columns U (n, k) of one frequency; real where it is its own conjugate, else complex.

    Attributes
    ----------
    cholesky : (k, k)
        Lower factor L of the centred Gram of U as stored: U L^-H is orthonormal to float64 rounding.
    column_sums : (k,)
        Sums of the columns of U as stored (zero but for rounding); 0 where the mean was not subtracted.
    components : (k, c)
        S V^H: singular values times right singular vectors.
    """

    cholesky: Array
    column_sums: Array
    components: Array

    @property
    def loadings(self) -> Array:
        """F (k, c) with z = (U L^-H) F on the kept directions, z the centred activations: L^H S V^H."""
        return namespace(self.cholesky).matmul(adjoint(self.cholesky), self.components)

    def cut(self, k: int) -> Block:
        """Return what belongs to the first k columns."""
        return Block(self.cholesky[:k, :k], self.column_sums[:k], self.components[:k, :])


@dataclass(frozen=True)
class Basis:
    """What belongs to the orthonormal columns U of one representation, frequency by frequency, largest first.

    The columns themselves are large and live apart: in memory, or in a pack of the workspace.

    Attributes
    ----------
    count : int
        Rows, n.
    space : tuple of int
        Sizes of the axes that were transformed; () where there is one frequency only.
    ranks : (f,) int, NumPy
        Kept directions of each frequency.
    singular_values : (f, c) float64, NumPy
        The whole spectrum, largest first within a frequency.
    nonzero : int
        How many of the singular values are not zero.
    noise : float
        Eigenvalue that rounding of the stored numbers can make of nothing.
    mean : (f, c)
        Column means.
    neuron_norms : (c,) float64
        Norms ||z_j|| of the centred columns, over all frequencies.
    row_norms : (n,) float64
        Squared norms ||z_i||² of the centred rows, over all frequencies.
    blocks : sequence of Block
        One a frequency.
    missed : float
        Bound of the largest singular value that the route may have overlooked; 0 where it overlooks none.
    off_block : OffBlock or None
        How much covariance there is between frequencies; None where there is one only, or it was not looked at.
    """

    count: int
    space: tuple[int, ...]
    ranks: NumpyArray
    singular_values: NumpyArray
    nonzero: int
    noise: float
    mean: Array
    neuron_norms: Array
    row_norms: Array
    blocks: Sequence[Block]
    missed: float = 0.0
    off_block: OffBlock | None = None

    @property
    def weights(self) -> NumpyArray:
        """Directions of space that each frequency stands for, (f,) int: 1, or 2 for a pair of bins."""
        return half_spectrum(self.space).weights

    @property
    def rank(self) -> int:
        """Kept directions: over all of space, a pair of bins twice."""
        return int(np.sum(self.weights * self.ranks))


def ranks_of(
    rules: Sequence[RankRule], weights: NumpyArray, singular_values: NumpyArray, nonzero: int
) -> tuple[NumpyArray, ...]:
    """Return the directions that each rule keeps at each frequency, (f,) int: one rule over the whole spectrum.

    Parameters
    ----------
    weights : (f,) int
    singular_values : (f, c) float64
    nonzero : int
        Over all frequencies.
    """
    c = singular_values.shape[1]
    order = np.argsort(-singular_values, axis=None, kind="stable")
    s, w, f = singular_values.ravel()[order], weights[order // c], order // c
    return tuple(np.bincount(f[: rule.keep(s, nonzero, w)], minlength=len(weights)) for rule in rules)


def zero_below(first: float, n: int, c: int, noise: float) -> float:
    """Return the eigenvalue up to which one is zero where the largest is `first` (`dsvcca.maths.whiten.decompose`)."""
    return max(max(n, c) * EPS * first, noise)


def cut_doubt(kept: NumpyArray, basis: Basis) -> float:
    """Return how far rounding turns kept directions, (f,) int of each frequency, into those left out.

    0 not at all, 1 altogether. Eigenvectors of a Gram turn by its rounding, eps of the largest eigenvalue, over the
    distance between eigenvalues, and bring along as much of what is left out as there is of it. Eigenvalues within
    rounding of each other at the cut through all frequencies, or within rounding of the limit of zero where everything
    that is not zero is kept, could as well be on the other side.
    """
    values = basis.singular_values**2
    c = values.shape[1]
    first = float(values.max())
    zero = zero_below(first, basis.count, c, basis.noise)
    worst, last, next_one = 0.0, np.inf, 0.0
    for own, k in zip(values, kept.tolist(), strict=True):
        last = min(last, own[k - 1]) if k else last
        next_one = max(next_one, own[k]) if k < c else next_one
        if 0 < k < c:
            turn = EPS * own[0] / max(own[k - 1] - own[k], EPS * own[0])
            worst = max(worst, turn * (own[k] / own[k - 1]) ** 0.5)
    if int(kept.sum()) == basis.nonzero:
        edge = np.sort(values, axis=None)[::-1][basis.nonzero - 1 : basis.nonzero + 1]
        if (np.abs(edge - zero) < EDGE * EPS * first).any():
            worst = 1.0
    elif len(kept) > 1 and last - next_one < EDGE * EPS * first:
        worst = 1.0
    return float(worst)


EPS = float(np.finfo(np.float64).eps)

EDGE = 10
"""Roundings of the largest eigenvalue by which another one may be off."""


def share_in_one_block(row_norms: NumpyArray) -> float:
    """Return the largest share of the variance that lies in 64 neighbouring rows, of squared norms of rows (n,)."""
    shares = _shares_of_blocks(row_norms)
    return min(float(shares.max()), 1.0) if len(shares) > 1 else 0.0


def lumps_of(row_norms: NumpyArray) -> float:
    """Return the sum of squared shares of the variance that blocks of rows have: 1 where one has all, 1/20 of twenty.

    0 where it is less than thrice that of even blocks.
    """
    shares = _shares_of_blocks(row_norms)
    found = float(np.sum(shares**2))
    return found if found * len(shares) > 3 else 0.0


def _shares_of_blocks(row_norms: NumpyArray) -> NumpyArray:
    total = float(np.sum(row_norms))
    if not total > 0:
        return np.zeros(1)
    shares: NumpyArray = np.maximum(np.add.reduceat(row_norms, np.arange(0, len(row_norms), 64)), 0.0) / total
    return shares
