"""From two bases to canonical correlations.

Everything here starts from the cross block M = U_x^H U_y of two bases (`cross`), centred and corrected for what
storing U in few bits did to it (`corrected`). Its singular values are the canonical correlations (Björck & Golub
1973); its singular vectors are the canonical directions.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from dsvcca.errors import DsvccaError, DsvccaWarning
from dsvcca.maths.arrays import (
    Array,
    NumpyArray,
    adjoint,
    as_float64,
    detached,
    device,
    inverse_cholesky,
    like,
    namespace,
    to_numpy,
)
from dsvcca.maths.basis import Basis, RankRule
from dsvcca.maths.moments import grid_steps
from dsvcca.maths.views import NEURONS, grid_datapoints
from dsvcca.maths.whiten import Spectrum, in_moments, whiten_in_memory

EXACT = 1e-11
"""Rounding of correlations from moments alone, eps times the squared condition number, up to which they are taken."""

EXCESS = 1e-6
"""A canonical correlation above 1 + EXCESS is an error, below it rounding."""


def corrected(cross: Array, sums_x: Array, sums_y: Array, count: int, inverse_x: Array, inverse_y: Array) -> Array:
    """Return C = L_x^-1 (M - conj(u_x) u_y^T / n) L_y^-H, the cross block of exactly orthonormal bases.

    Parameters
    ----------
    cross : (..., k_x, k_y)
        M, the float64 sum of products of the stored columns.
    sums_x, sums_y : (..., k_x), (..., k_y)
        Sums of the stored columns.
    count : int
        Rows, n.
    inverse_x, inverse_y : (..., k_x, k_x), (..., k_y, k_y)
        L^-1 of each basis.
    """
    xp = namespace(cross)
    centred = cross - adjoint(sums_x[..., None, :]) * sums_y[..., None, :] / count
    return xp.matmul(xp.matmul(inverse_x, centred), adjoint(inverse_y))


def correlations_of(c: Array, *, as_found: bool = False) -> Array:
    """Return the canonical correlations (..., min(k_x, k_y)) of cross blocks (..., k_x, k_y), largest first.

    By eigenvalues of C C^H: good to 1e-8 absolutely, which is enough for sums and means over them. Those above 1 are
    cut or, beyond rounding, an error; `as_found` leaves them to the caller.
    """
    xp = namespace(c)
    return _roots(xp.linalg.eigvalsh(_smaller_gram(c)), as_found)


def smaller_side(c: Array, *, as_found: bool = False) -> tuple[Array, Array]:
    """Return correlations (..., k) and left vectors (..., k, k) of cross blocks whose left side is the smaller one."""
    xp = namespace(c)
    squared, vectors = xp.linalg.eigh(_smaller_gram(c))
    return _roots(squared, as_found), xp.flip(vectors, axis=-1)


def _smaller_gram(c: Array) -> Array:
    small = c if c.shape[-2] <= c.shape[-1] else adjoint(c)
    return namespace(c).matmul(small, adjoint(small))


def _roots(squared: Array, as_found: bool) -> Array:
    """Return correlations from ascending eigenvalues of C C^H."""
    xp = namespace(squared)
    if not as_found:
        check_excess(float(xp.max(squared)) ** 0.5)
    return xp.sqrt(xp.clip(xp.flip(squared, axis=-1), 0.0, None if as_found else 1.0))


def check_excess(largest: float) -> None:
    """Raise if the largest canonical correlation is above 1 by more than rounding."""
    if not largest <= 1 + EXCESS:
        raise DsvccaError(
            f"a canonical correlation of {largest:.6f} was found where 1 is the largest possible: "
            "the bases are not orthonormal; remove the workspace and run again, and report it if it stays"
        )


@dataclass(frozen=True, repr=False)
class CanonicalCorrelations:
    """Canonical correlations of two sets of activations, and the directions that give them.

    Attributes
    ----------
    correlations : (c,) float64
        Descending, in [0, 1]; c is the smaller of the two ranks.
    x_rank, y_rank : int
        Directions kept on each side.
    x_directions, y_directions : (p, c), (q, c) float64
        Columns w with (x - x_mean) w the canonical variates: uncorrelated, unit norm over the rows given, in pairs
        of correlation `correlations`. Of each pair the largest weight of x is positive. Where correlations are equal
        only the subspace is defined.
    x_mean, y_mean : (p,), (q,) float64
        Column means of the activations given.
    x_weights, y_weights : (c,) float64
        How much of the activations each variate accounts for, sum over neurons of |<variate, neuron>|: the weights of
        PWCCA (Morcos et al. 2018, section 3).
    x_norms, y_norms : (p,), (q,) float64
        Norms of the centred neurons.
    x_loadings, y_loadings : (k, p), (k, q) float64
        Inner products of neurons with some orthonormal basis of the kept directions.
    """

    correlations: Array
    x_rank: int
    y_rank: int
    x_directions: Array
    y_directions: Array
    x_mean: Array
    y_mean: Array
    x_weights: Array
    y_weights: Array
    x_norms: Array
    y_norms: Array
    x_loadings: Array
    y_loadings: Array

    def __repr__(self) -> str:
        first = ", ".join(f"{float(one):.3f}" for one in self.correlations[:3])
        more = ", ..." if self.correlations.shape[0] > 3 else ""
        sides = f"{self.x_mean.shape[0]} neurons (rank {self.x_rank}) and {self.y_mean.shape[0]} (rank {self.y_rank})"
        return f"<canonical correlations of {sides}: {first}{more}>"

    @cached_property
    def _principal(self) -> list[tuple[Array, Array]]:
        return [_principal(loadings) for loadings in (self.x_loadings, self.y_loadings)]

    @property
    def x_singular_values(self) -> Array:
        """Singular values (k,) of the kept directions of centred x, largest first; s^2 / (n - 1) is a variance."""
        return self._principal[0][0]

    @property
    def y_singular_values(self) -> Array:
        """Those of y."""
        return self._principal[1][0]

    @property
    def x_singular_vectors(self) -> Array:
        """Principal directions (p, k) of x that are kept; the largest entry of each is positive."""
        return self._principal[0][1]

    @property
    def y_singular_vectors(self) -> Array:
        """Those of y, (q, k)."""
        return self._principal[1][1]

    def project(self, x: Array, k: int) -> Array:
        """Return activations of x with only what its k most correlated variates hold of them, (m, p) float64.

        mean + (x - mean) W G: the least squares fit of the kept part of x by those variates, in the space of neurons.
        Variates beyond the smaller rank have no partner; they come last, in an order that means nothing.

        Parameters
        ----------
        x : (m, p)
            Those compared, or new ones.
        k : int
            1 to `x_rank`; all of them give back what the rank rule kept.
        """
        w, g = self.leading(k)
        return self.x_mean + namespace(w).matmul(_project(x, self.x_mean, w, "x"), g)

    def compress(self, weight: Array, bias: Array | None, k: int) -> Compressed:
        """Return the layer after x for activations reduced to the neurons' share in k variates (Raghu et al. 2017).

        Parameters
        ----------
        weight : (q_out, p)
            Of the following linear layer, which computes weight x + bias.
        bias : (q_out,) or None
        k : int
            1 to `x_rank`. The two new layers are smaller than the one if k < p q_out / (p + q_out).

        Returns
        -------
        Compressed
            ``weight (reduction x) + bias`` is what the layer gives of x projected, orthogonally, on the span of the
            first k rows of G (`project`): what of x the variates do not hold, but lies in that span, stays in it.
        """
        _, g = self.leading(k)
        xp = namespace(g)
        weight = as_float64(weight)
        if weight.ndim != 2 or weight.shape[1] != g.shape[1]:
            raise DsvccaError(
                f"weight has the shape {tuple(weight.shape)}, x has {g.shape[1]} neurons: give (outputs, neurons of x)"
            )
        bias = xp.zeros((weight.shape[0],), dtype=g.dtype, device=device(g)) if bias is None else as_float64(bias)
        if bias.shape != (weight.shape[0],):
            raise DsvccaError(f"bias has the shape {tuple(bias.shape)}, weight has {weight.shape[0]} outputs")
        reduction = adjoint(xp.linalg.qr(adjoint(g))[0])
        left_out = self.x_mean - xp.matmul(adjoint(reduction), xp.matmul(reduction, self.x_mean))
        return Compressed(reduction, xp.matmul(weight, adjoint(reduction)), bias + xp.matmul(weight, left_out))

    def important_neurons(self, k: int) -> Array:
        """Return how much of each neuron of x its k most correlated variates hold, (p,) float64.

        sum_i |<variate i, neuron>| / ||neuron||, between 0 (also of a dead one) and sqrt(k).
        """
        _, g = self.leading(k)
        xp = namespace(g)
        some = self.x_norms > 1e-12 * xp.max(self.x_norms)
        norms = xp.where(some, self.x_norms, xp.ones_like(self.x_norms))
        return xp.where(some, xp.sum(xp.abs(g), axis=0) / norms, xp.zeros_like(norms))

    def leading(self, k: int) -> tuple[Array, Array]:
        """Return W (p, k) and G (k, p): (x - mean) W are k variates of x, and variates G what they hold of it.

        The first columns of W are `x_directions`; those beyond the smaller rank have no partner (`project`).
        """
        if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or not 1 <= k <= self.x_rank:
            raise DsvccaError(f"k={k!r}: {self.x_rank} directions of x are kept, use 1 to {self.x_rank}")
        xp = namespace(self.x_directions)
        s, v = self.x_singular_values, self.x_singular_vectors
        a = xp.matmul(adjoint(v * s), self.x_directions)  # (k_x, c), orthonormal columns
        if k > a.shape[1]:  # completed
            a = xp.concat([a, xp.linalg.qr(a, mode="complete")[0][:, a.shape[1] :]], axis=1)
        a = a[:, :k]
        return xp.matmul(v / s, a), xp.matmul(adjoint(a), adjoint(v * s))

    def variates(self, *, x: Array | None = None, y: Array | None = None) -> Array | tuple[Array, Array]:
        """Return the canonical variates of activations, new ones or those compared.

        Parameters
        ----------
        x, y : (m, p), (m, q), optional
            Give one, or both.

        Returns
        -------
        (m, c) float64, or a pair of them where both x and y were given.

        Raises
        ------
        DsvccaError
            If neither was given, or the number of neurons is another.
        """
        if x is None and y is None:
            raise DsvccaError("variates() was given no activations: pass x=, y= or both")
        of_x = None if x is None else _project(x, self.x_mean, self.x_directions, "x")
        of_y = None if y is None else _project(y, self.y_mean, self.y_directions, "y")
        if of_x is not None and of_y is not None:
            return of_x, of_y
        return of_y if of_x is None else of_x


class Compressed(NamedTuple):
    """A linear layer in two smaller ones: x is reduced (k, p), then taken on by weight (q_out, k) and bias (q_out,)."""

    reduction: Array
    weight: Array
    bias: Array


def cca(x: Array, y: Array, *, variance: float = 1.0, criterion: str = "variance") -> CanonicalCorrelations:
    """Canonical correlations of two sets of activations on the same datapoints.

    Both are centred and reduced to the directions that hold `variance` of their variance (singular vector CCA,
    Raghu et al. 2017, section 2); dead, duplicate and constant neurons are harmless.

    Parameters
    ----------
    x, y : (n, p), (n, q) array of any array API library
        Activations, datapoints first. Read, never written to.
    variance : float, default 1.0
        Share of variance to keep on each side; 1.0 keeps every non-zero direction (plain CCA).
    criterion : {"variance", "singular"}, default "variance"
        Share of squared singular values, or of singular values.

    Returns
    -------
    CanonicalCorrelations

    Raises
    ------
    DsvccaError
        If shapes do not fit, a number is not finite, a side is constant, or as many directions are kept as there are
        degrees of freedom (every correlation would then be 1).

    Warns
    -----
    DsvccaWarning
        If some correlations are 1 whatever the data, or if there are fewer than 5 datapoints a kept direction.

    Examples
    --------
    Canonical correlations do not change under invertible affine maps of either side.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((500, 8))
    >>> y = x @ rng.standard_normal((8, 8)) + 3.0
    >>> bool(np.allclose(cca(x, y).correlations, 1.0))
    True
    """
    x, y = checked_sides(x, y)
    c, of_x, of_y = cross_block(x, y, RankRule(variance, criterion))
    warn_of_few_rows(x.shape[0], c.shape[0], c.shape[1])
    return canonical(c, of_x, of_y)


def canonical(c: Array, of_x: Maps, of_y: Maps) -> CanonicalCorrelations:
    """Return what a cross block (k_x, k_y) of orthonormal columns says of the activations that maps lead to them."""
    xp = namespace(c)
    left, rho, right = xp.linalg.svd(c, full_matrices=False)
    check_excess(float(rho[0]))
    right = adjoint(right)
    x_directions = xp.matmul(adjoint(of_x.map), left)
    sign = _signs(x_directions)
    return CanonicalCorrelations(
        correlations=xp.clip(rho, 0.0, 1.0),
        x_rank=c.shape[0],
        y_rank=c.shape[1],
        x_directions=x_directions * sign,
        y_directions=xp.matmul(adjoint(of_y.map), right) * sign,
        x_mean=of_x.mean,
        y_mean=of_y.mean,
        x_weights=xp.sum(xp.abs(xp.matmul(adjoint(left), of_x.loadings)), axis=1),
        y_weights=xp.sum(xp.abs(xp.matmul(adjoint(right), of_y.loadings)), axis=1),
        x_norms=of_x.norms,
        y_norms=of_y.norms,
        x_loadings=of_x.loadings,
        y_loadings=of_y.loadings,
    )


def _principal(loadings: Array) -> tuple[Array, Array]:
    """Return singular values (k,) and right singular vectors (p, k) of loadings (k, p), largest entries positive."""
    xp = namespace(loadings)
    _, s, v = xp.linalg.svd(loadings, full_matrices=False)
    v = adjoint(v)
    return s, v * _signs(v)


def _signs(columns: Array) -> Array:
    """Return the sign of the largest entry of every column."""
    largest = to_numpy(namespace(columns).argmax(abs(columns), axis=0))
    return like(np.sign(to_numpy(columns)[largest, np.arange(largest.size)]), columns)


def correlations_in_memory(x: Array, y: Array, rule: RankRule) -> Array:
    """Return the canonical correlations (c,) of two sets of activations alone, largest first; as `cca` finds them."""
    x, y = checked_sides(x, y)
    c, _, _ = cross_block(x, y, rule)
    warn_of_few_rows(x.shape[0], c.shape[0], c.shape[1], above=1)
    rho = namespace(c).linalg.svdvals(c)
    check_excess(float(rho[0]))
    return namespace(c).clip(rho, 0.0, 1.0)


class Maps(NamedTuple):
    """Of one side: map (k, p) to orthonormal columns, loadings F (k, p) back, mean (p,) and norms (p,) of neurons.

    And all singular values that are not zero.
    """

    map: Array
    loadings: Array
    mean: Array
    norms: Array
    singular_values: NumpyArray


def maps_of(basis: Basis, inverse: Array) -> Maps:
    """Return the maps of a basis of one frequency, `inverse` being L^-1."""
    first = basis.blocks[0]
    back = adjoint(whitening(basis, 0, inverse))
    return Maps(back, first.loadings, basis.mean[0, :], basis.neuron_norms, _not_zero(basis))


def _not_zero(of: Basis | Spectrum) -> NumpyArray:
    """Return the singular values of one frequency that are not zero."""
    return of.singular_values[0, : of.nonzero]


def cross_block(x: Array, y: Array, rule: RankRule) -> tuple[Array, Maps, Maps]:
    """Return the cross block (k_x, k_y) of orthonormal bases of both sides, and what maps each side to its own.

    From moments alone where that is exact; else the columns are made, and their own Gram corrects what rounding did.
    """
    grid = min(grid_datapoints(tuple(array.shape), NEURONS) for array in (x, y))
    sides = [in_moments(array, rule, name, grid) for array, name in ((x, "x"), (y, "y"))]
    n = x.shape[0]
    xp = namespace(x, y)
    if all(side.condition**2 * np.finfo(np.float64).eps <= EXACT for side in sides):
        cross = sum(xp.matmul(adjoint(a), b) for a, b in zip(*(side.slabs() for side in sides), strict=True))
        offsets = [(side.moments.sums / n)[0, :] for side in sides]
        cross = cross - n * adjoint(offsets[0][None, :]) * offsets[1][None, :]
        maps = [Maps(*side.maps(), side.moments.mean[0, :], side.norms, _not_zero(side.spectrum)) for side in sides]
        return xp.matmul(xp.matmul(maps[0].map, cross), adjoint(maps[1].map)), *maps
    (u_x, bx), (u_y, by) = (whiten_in_memory(array, rule, name) for array, name in ((x, "x"), (y, "y")))
    m = sum(xp.matmul(adjoint(u_x[step, :]), u_y[step, :]) for step in grid_steps(n))
    inverses = [inverse_cholesky(basis.blocks[0].cholesky) for basis in (bx, by)]
    c = corrected(m, bx.blocks[0].column_sums, by.blocks[0].column_sums, n, *inverses)
    found = [maps_of(basis, inverse) for basis, inverse in zip((bx, by), inverses, strict=True)]
    return c, found[0], found[1]


def checked_sides(x: Array, y: Array, *, maps: bool = False) -> tuple[Array, Array]:
    """Return two arrays after checking that they can be compared; `maps` have space between rows and channels."""
    x, y = checked_array(x, "x", maps=maps), checked_array(y, "y", maps=maps)
    if x.shape[0] != y.shape[0]:
        raise DsvccaError(
            f"x has {x.shape[0]} datapoints and y has {y.shape[0]}: "
            "both must hold the same datapoints in the same order"
        )
    if type(x) is not type(y) or device(x) != device(y):
        raise DsvccaError(
            f"x is a {type(x).__module__} array on {device(x)} and y a {type(y).__module__} array on {device(y)}: "
            "bring both to one library and device"
        )
    return x, y


def warn_of_few_rows(n: int, k_x: int, k_y: int, above: int = 0) -> None:
    """Warn where the number of rows alone makes correlations large; `above` the caller are so many of our functions."""
    if k_x + k_y > n - 1:
        warnings.warn(
            f"{k_x + k_y - n + 1} of {min(k_x, k_y)} canonical correlations are 1 whatever the data: "
            f"{k_x} + {k_y} kept directions in {n} rows; use more datapoints or keep fewer directions",
            DsvccaWarning,
            stacklevel=3 + above,
        )
    elif n < 5 * (k_x + k_y):
        warnings.warn(
            f"{n} rows are fewer than 5 for each of the {k_x} + {k_y} kept directions: correlations of unrelated "
            "activations will look large; use more datapoints or keep fewer directions",
            DsvccaWarning,
            stacklevel=3 + above,
        )


def whitening(basis: Basis, f: int, inverse: Array) -> Array:
    """Return W (c, k) with z W the orthonormal columns of a frequency: V S^-1 L^-H, from S V^H."""
    s = like(basis.singular_values[f, : int(basis.ranks[f])], inverse)
    xp = namespace(inverse)
    return xp.matmul(adjoint(basis.blocks[f].components) / (s * s), adjoint(inverse))


def checked_array(array: Array, name: str, *, maps: bool = False) -> Array:
    """Return an array of real numbers (n, neurons), or with `maps` (n, *space, channels)."""
    try:
        array = detached(array)
        namespace(array)
    except TypeError:
        try:
            array = np.asarray(array)
        except ValueError as error:
            raise DsvccaError(f"{name} is not an array ({error}): give (datapoint, neuron)") from error
    if isinstance(array, np.ma.MaskedArray):
        raise DsvccaError(f"{name} is a masked array: give the rows of which every number is there")
    if maps and array.ndim < 3:
        raise DsvccaError(
            f"{name} has {array.ndim} axes {tuple(array.shape)}: give maps (datapoint, height, width, channel) or "
            "sequences (datapoint, position, neuron); for dense layers use cca()"
        )
    if not maps and array.ndim != 2:
        raise DsvccaError(
            f"{name} has {array.ndim} axes {tuple(array.shape)}: give (datapoint, neuron); average maps over space "
            "first, take every position as a row, or use dft_cca()"
        )
    if 0 in array.shape:
        raise DsvccaError(f"{name} is empty, shape {tuple(array.shape)}: an axis of length 0 holds nothing to compare")
    xp = namespace(array)
    if xp.isdtype(array.dtype, "complex floating"):
        raise DsvccaError(f"{name} is complex ({array.dtype}): give real activations")
    return array


def _project(x: Array, mean: Array, directions: Array, name: str) -> Array:
    x = checked_array(x, name)
    if x.shape[1] != mean.shape[0]:
        raise DsvccaError(f"{name} has {x.shape[1]} neurons, the directions were found with {mean.shape[0]}")
    return namespace(x, mean).matmul(as_float64(x) - mean, directions)
