"""CCA of two arrays in memory: correlations, directions, variates, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import (
    Array,
    adjoint,
    as_float64,
    device,
    like,
    namespace,
    to_numpy,
)
from dsvcca.maths.basis import RankRule
from dsvcca.maths.correlations import check_excess
from dsvcca.maths.in_memory import Maps, checked_array, checked_sides, cross_block, warn_of_few_rows


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


def _project(x: Array, mean: Array, directions: Array, name: str) -> Array:
    x = checked_array(x, name)
    if x.shape[1] != mean.shape[0]:
        raise DsvccaError(f"{name} has {x.shape[1]} neurons, the directions were found with {mean.shape[0]}")
    return namespace(x, mean).matmul(as_float64(x) - mean, directions)
