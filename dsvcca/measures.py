"""One number per comparison, each with its definition.

Notation: a cross block C (k_x, k_y) of two orthonormal bases has the singular values rho (canonical correlations)
and vectors A, B; c = min(k_x, k_y); F are the loadings of a basis. Functions take stacks of cross blocks and return
one number for each, so that a tile of comparisons is a few calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dsvcca.arrays import Array, NumpyArray, adjoint, like, namespace, to_numpy
from dsvcca.basis import RankRule
from dsvcca.correlations import (
    CanonicalCorrelations,
    cca,
    correlations_in_memory,
    correlations_of,
    smaller_side,
)
from dsvcca.errors import DsvccaError

MEASURES = {
    "svcca": "mean canonical correlation of the kept directions, sum(rho) / min(rank_x, rank_y); with all non-zero "
    "directions kept it is mean CCA (Raghu et al. 2017, section 2)",
    "pwcca_x": "projection weighted CCA, sum(a_i rho_i) / sum(a_i), a_i = sum over neurons j of x of "
    "|<variate i, neuron j>| (Morcos et al. 2018, section 3)",
    "pwcca_y": "projection weighted CCA with the weights from y: pwcca_y[i, j] = pwcca_x[j, i]",
    "r2": "mean squared canonical correlation, sum(rho^2) / min(rank_x, rank_y)",
}
"""Name and definition of every measure that results can hold."""

UNSAFE = 1e-5
"""Below this correlation the larger side's vectors are not taken from the smaller side's."""

SLICE = 1 << 21
"""Numbers in one intermediate of the projection weights (16 MiB)."""


def svcca(x: Array, y: Array, *, variance: float = 0.99, criterion: str = "variance") -> float:
    """Singular vector canonical correlation analysis: the mean canonical correlation of the kept directions.

    Raghu et al. 2017, section 2 (arXiv 1706.05806). Parameters and errors as for `cca`.

    Parameters
    ----------
    x, y : (n, p), (n, q)
        Activations, datapoints first.
    variance : float, default 0.99
        Share of variance to keep on each side; 1.0 gives mean CCA.
    criterion : {"variance", "singular"}, default "variance"

    Returns
    -------
    float
        In [0, 1].

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((500, 8))
    >>> round(svcca(x, 2 * x + 1), 6)
    1.0
    """
    rho = correlations_in_memory(x, y, RankRule(variance, criterion))
    return float(namespace(rho).mean(rho))


def pwcca(x: Array, y: Array, *, variance: float = 1.0, side: str = "x") -> float:
    """Projection weighted canonical correlation analysis, the definition of Morcos et al. 2018 (section 3).

    Each correlation is weighted by how much of the original neurons of one side its variate accounts for. The weights
    come from `side`, so exchanging x and y changes the number in the third digit.

    Parameters
    ----------
    x, y : (n, p), (n, q)
        Activations, datapoints first.
    variance : float, default 1.0
        Share of variance to keep on each side before the analysis.
    side : {"x", "y"}, default "x"
        Whose neurons weight.

    Returns
    -------
    float
        In [0, 1].
    """
    if side not in ("x", "y"):
        raise DsvccaError(f"side={side!r}: use 'x' or 'y', whose neurons are to weight the correlations")
    found: CanonicalCorrelations = cca(x, y, variance=variance)
    weights = found.x_weights if side == "x" else found.y_weights
    return float(_weighted(found.correlations, weights))


Loadings = Sequence[Array] | Mapping[int, Array]

TOTALS = ("rho", "rho2", "x_weighted", "x_weights", "x_doubt", "y_weighted", "y_weights", "y_doubt")
"""What is summed over frequencies before it is divided: sum(rho), sum(rho^2), and of each side sum(a rho), sum(a).

And of each side how far sum(a rho) may be off, squared, since directions turn where correlations lie close together.
"""

DOUBT, AGAIN = 1e-6, 2e-7
"""By how much PWCCA may be off, about, before it is said, and before it is computed anew."""


def totals_of_values(c: Array) -> dict[str, Array]:
    """Return sum(rho) and sum(rho^2) of cross blocks (b, k_x, k_y): values only, no vectors."""
    xp = namespace(c)
    rho = correlations_of(c)
    return {"rho": xp.sum(rho, axis=-1), "rho2": xp.sum(rho * rho, axis=-1)}


def totals_of_vectors(
    c: Array,
    x: NumpyArray,
    y: NumpyArray,
    x_loadings: Loadings,
    y_loadings: Loadings,
    ranks: tuple[NumpyArray, NumpyArray] | None = None,
    turned: NumpyArray | None = None,
) -> dict[str, Array]:
    """Return all `TOTALS` of cross blocks, without touching a row of data.

    Parameters
    ----------
    c : (b, k_x, k_y)
        Cross blocks of equal ranks.
    x, y : (b,) int
        Which representation each side is, an index into the loadings.
    x_loadings, y_loadings : sequence of (K, p), (K, q), or mapping to them
        Loadings F of the representations; the first k_x (k_y) rows are used.
    ranks : (b,) and (b,) int, optional
        Ranks of both sides where cross blocks and loadings are filled up with zeros; those of x are then the smaller.
    turned : (b,) float64, optional
        By how much rounding of the cross blocks turns directions where squared correlations differ by 1; 0 by default.
    """
    xp = namespace(c)
    if ranks is None and c.shape[1] > c.shape[2]:
        return exchanged(totals_of_vectors(adjoint(c), y, x, y_loadings, x_loadings, turned=turned))
    k_x, k_y = ranks or (np.full(len(x), c.shape[1]), np.full(len(x), c.shape[2]))
    rho, a = smaller_side(c)
    b = xp.matmul(adjoint(c), a) / xp.maximum(rho, xp.full_like(rho, UNSAFE))[:, None, :]
    smallest = to_numpy(rho)[np.arange(len(x)), k_x - 1]
    for i in np.flatnonzero(smallest < UNSAFE).tolist():
        p, q = int(k_x[i]), int(k_y[i])
        left, values, right = xp.linalg.svd(c[i, :p, :q], full_matrices=False)
        rho[i, :p], a[i, :p, :p], b[i, :q, :p] = xp.clip(values, 0.0, 1.0), left, adjoint(right)
        a[i, p:, :p], b[i, q:, :p] = 0.0, 0.0
        rho[i, p:], a[i, :, p:], b[i, :, p:] = 0.0, 0.0, 0.0  # a zero among those that fill up may have come first
    of_x, of_y = _weights(a, x, x_loadings), _weights(b, y, y_loadings)
    sides = ((of_x, x, x_loadings, None), (of_y, y, y_loadings, like(k_y > k_x, rho)))
    by = xp.zeros_like(rho[:, 0]) if turned is None else like(turned, rho)
    doubts = []
    for weights, which, loadings, more in sides:
        neurons = np.asarray([loadings[i].shape[1] for i in which.tolist()], np.float64)
        doubts.append(_doubt(rho, weights, like(neurons, rho), more, by))
    sums = (rho, rho * rho, of_x * rho, of_x, doubts[0], of_y * rho, of_y, doubts[1])
    return {name: xp.sum(one, axis=-1) for name, one in zip(TOTALS, sums, strict=True)}


def _doubt(rho: Array, weights: Array, neurons: Array, more: Array | None, turned: Array) -> Array:
    """Return the parts of the squared error of sum(a rho) that comes from directions that turn, (b, k).

    Two neighbours turn into each other by `turned` over the difference of their squared correlations, 1 at the most,
    which moves weight between them as far as the sum of that many neurons' random signs goes. What is left over on the
    wider side, if there is `more`, has a correlation of 0.
    """
    xp = namespace(rho)
    first = xp.zeros_like(rho[:, :1])
    below = xp.concat([rho[:, 1:], first], axis=-1)
    other = xp.concat([weights[:, 1:], first], axis=-1)
    if more is not None:
        is_last = (weights > 0) & (other == 0)
        other = xp.where(is_last & more[:, None], weights, other)
    gap = xp.maximum(rho * rho - below * below, xp.full_like(rho, 1e-300))
    share = turned[:, None] * xp.sqrt(rho * rho + below * below) / gap
    share = xp.where(share > 1, xp.ones_like(share), share)
    mean = _weighted(rho, xp.maximum(weights, xp.full_like(weights, 1e-300)))[:, None]
    return ((rho - mean) ** 2 + (below - mean) ** 2) * weights * other / neurons[:, None] * share**2


def exchanged(totals: dict[str, Array]) -> dict[str, Array]:
    """Return the totals with x and y exchanged."""
    other = {"x": "y", "y": "x"}
    return {other.get(name[0], name[0]) + name[1:]: one for name, one in totals.items()}


def measures_of(totals: Mapping[str, Array], fewer: Array) -> dict[str, Array]:
    """Return every measure that the totals over all frequencies allow; pwcca is NaN where no frequency has both sides.

    Parameters
    ----------
    totals : mapping
        Of `TOTALS`, those that were summed, each frequency times its weight.
    fewer : array
        min(rank_x, rank_y).
    """
    found = {"svcca": totals["rho"] / fewer, "r2": totals["rho2"] / fewer}
    for side in "xy":
        if f"{side}_weights" in totals:
            found[f"pwcca_{side}"] = totals[f"{side}_weighted"] / totals[f"{side}_weights"]
    return found


def doubt_of(totals: Mapping[str, NumpyArray]) -> NumpyArray:
    """Return by how much PWCCA may be off, from either side, where correlations lie close together; 0 elsewhere."""
    found = [np.sqrt(totals[f"{side}_doubt"]) / np.maximum(totals[f"{side}_weights"], 1e-300) for side in "xy"]
    return np.asarray(np.maximum(*found))


def _weighted(rho: Array, weights: Array) -> Array:
    xp = namespace(rho)
    return xp.sum(weights * rho, axis=-1) / xp.sum(weights, axis=-1)


def _weights(vectors: Array, which: NumpyArray, loadings: Loadings) -> Array:
    """Return sum_j |(vectors^H F)_ij| for stacked vectors (b, k, c): (b, c).

    One product a pair, each of one size, so that its bits do not depend on what else is in the stack.
    """
    xp = namespace(vectors)
    k, c = vectors.shape[1:]
    order = np.argsort(which, kind="stable")
    is_sorted = bool((order[1:] > order[:-1]).all())
    ordered = vectors if is_sorted else xp.take(vectors, like(order, vectors), axis=0)
    ones, starts = np.unique(which, return_index=True) if is_sorted else np.unique(which[order], return_index=True)
    found = []
    for one, start, stop in zip(ones.tolist(), starts.tolist(), [*starts[1:].tolist(), len(which)], strict=True):
        f = loadings[one][:k, :]
        step = max(1, SLICE // (c * f.shape[1]))
        for first in range(start, stop, step):
            g = xp.matmul(adjoint(ordered[first : min(first + step, stop), :, :]), f)
            found.append(xp.sum(xp.abs(g), axis=-1))
    together = xp.concat(found, axis=0)
    return together if is_sorted else xp.take(together, like(np.argsort(order), vectors), axis=0)
