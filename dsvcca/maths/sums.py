"""What measures are made of: sums over the correlations, directions and covariances of stacked cross blocks.

Notation: a cross block C (k_x, k_y) of two orthonormal bases has the singular values rho (canonical correlations)
and vectors A, B; c = min(k_x, k_y); F are the loadings of a basis, S its singular values. Every sum is one number a
pair, so that a tile of comparisons is a few calls; over frequencies they add up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from dsvcca.maths import nulls
from dsvcca.maths.arrays import Array, NumpyArray, adjoint, device, like, namespace, to_numpy
from dsvcca.maths.correlations import correlations_of, smaller_side

UNSAFE = 1e-5
"""Below this correlation the larger side's vectors are not taken from the smaller side's."""

SLICE = 1 << 21
"""Numbers in one intermediate of the projection weights (16 MiB)."""


Loadings = Sequence[Array] | Mapping[int, Array]

OF_VALUES = ("rho", "rho2")
"""sum(rho) and sum(rho^2)."""

OF_VECTORS = tuple(f"{side}_{what}" for side in "xy" for what in ("weighted", "weights", "doubt"))
"""Of each side sum(a rho), sum(a), a_i the sum over neurons of |<variate i, neuron>|.

And how far sum(a rho) may be off, squared, since directions turn where correlations lie close together.
"""

OF_SQUARES = tuple(f"{side}_{what}" for side in "xy" for what in ("weighted2", "weights2"))
"""The same with squares of what is summed over neurons."""

OF_GOOGLE = ("leading", "led", *(f"{side}_google{what}" for side in "xy" for what in ("", "_weights")))
"""sum(rho) up to LEADING of it, over how many; of each side sum(a rho), sum(a) with the weights of google/svcca."""

LEADING = 0.98
"""Share of sum(rho) that google/svcca takes its mean of."""

OF_COVARIANCES = ("covariance2", "nuclear", "x_explained", "y_explained")
"""||S_x C S_y||_F^2, its nuclear norm, and what each side's neurons have in common with the other's directions."""

OF_RIDGE = ("ridge", "ridge2")
"""Sum of the singular values of D_x C D_y, and of their squares, (..., ridges): D shrinks every direction."""

OF_FOLDS = ("jackknife", "held_out")
"""What each fold of the datapoints adds to sum(rho), (..., folds); sum(rho) of directions held out."""

OF_SHUFFLES = ("shuffled", "exceeded")
"""Mean of sum(rho) over shuffles of the datapoints, and in how many it is not less than that of the data."""

OF_CHANCE = ("without_chance", "surprise", "looked_at", "standing_out", "bartlett")
"""sum(rho) without what chance adds; the largest -log of a p-value, and of how many; directions that stand out.

And those that do by Bartlett's test.
"""

LEVEL = 0.05
"""Probability with which some direction of independent data stands out."""

LARGEST = "largest"
"""The largest correlation as it was found: above 1 by what rounding of the cross block did."""

UNWEIGHTED, MAXIMA = ("looked_at",), ("surprise", LARGEST)
"""Sums in which a frequency that stands for two counts once, being one set of data; what is no sum but a maximum."""


def totals_of_values(c: Array, *, vectors: bool = False) -> dict[str, Array]:
    """Return `OF_VALUES` and the largest of cross blocks (b, k_x, k_y), their correlations (b, c), and left vectors."""
    xp = namespace(c)
    rho, a = smaller_side(c, as_found=True) if vectors else (correlations_of(c, as_found=True), None)
    largest, rho = rho[:, 0], xp.clip(rho, 0.0, 1.0)
    sums = {"rho": xp.sum(rho, axis=-1), "rho2": xp.sum(rho * rho, axis=-1), LARGEST: largest}
    return {**sums, "correlations": rho, "left": a}


def totals_of_vectors(
    c: Array,
    x: NumpyArray,
    y: NumpyArray,
    x_loadings: Loadings,
    y_loadings: Loadings,
    ranks: tuple[NumpyArray, NumpyArray] | None = None,
    turned: NumpyArray | None = None,
    *,
    squares: bool = False,
) -> dict[str, Array]:
    """Return `OF_VALUES`, `OF_VECTORS` and the largest of cross blocks, their correlations and left vectors.

    No row is touched.

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
    squares : bool
        Whether `OF_SQUARES` are wanted as well.
    """
    xp = namespace(c)
    if ranks is None and c.shape[1] > c.shape[2]:
        return exchanged(totals_of_vectors(adjoint(c), y, x, y_loadings, x_loadings, turned=turned, squares=squares))
    k_x, k_y = ranks or (np.full(len(x), c.shape[1]), np.full(len(x), c.shape[2]))
    rho, a = smaller_side(c, as_found=True)
    largest, rho = rho[:, 0], xp.clip(rho, 0.0, 1.0)
    b = xp.matmul(adjoint(c), a) / xp.maximum(rho, xp.full_like(rho, UNSAFE))[:, None, :]
    smallest = to_numpy(rho)[np.arange(len(x)), k_x - 1]
    for i in np.flatnonzero(smallest < UNSAFE).tolist():
        p, q = int(k_x[i]), int(k_y[i])
        left, values, right = xp.linalg.svd(c[i, :p, :q], full_matrices=False)
        rho[i, :p], a[i, :p, :p], b[i, :q, :p] = xp.clip(values, 0.0, 1.0), left, adjoint(right)
        a[i, p:, :p], b[i, q:, :p] = 0.0, 0.0
        rho[i, p:], a[i, :, p:], b[i, :, p:] = 0.0, 0.0, 0.0  # a zero among those that fill up may have come first
    (of_x, of_x2), (of_y, of_y2) = _weights(a, x, x_loadings, squares), _weights(b, y, y_loadings, squares)
    sides = ((of_x, x, x_loadings, None), (of_y, y, y_loadings, like(k_y > k_x, rho)))
    by = xp.zeros_like(rho[:, 0]) if turned is None else like(turned, rho)
    doubts = []
    for weights, which, loadings, more in sides:
        neurons = np.asarray([loadings[i].shape[1] for i in which.tolist()], np.float64)
        doubts.append(_doubt(rho, weights, like(neurons, rho), more, by))
    sums = [rho, rho * rho, of_x * rho, of_x, doubts[0], of_y * rho, of_y, doubts[1]]
    names = [*OF_VALUES, *OF_VECTORS]
    if squares:
        sums += [of_x2 * rho, of_x2, of_y2 * rho, of_y2]
        names += OF_SQUARES
    found = {name: xp.sum(one, axis=-1) for name, one in zip(names, sums, strict=True)}
    return {**found, LARGEST: largest, "correlations": rho, "left": a, "right": b}


def totals_of_google(
    rho: Array,
    a: Array,
    b: Array,
    scales: tuple[NumpyArray, NumpyArray],
    which: tuple[NumpyArray, NumpyArray],
    loadings: tuple[Loadings, Loadings],
) -> dict[str, Array]:
    """Return `OF_GOOGLE` of correlations (b, c) and vectors (b, k_x, c), (b, k_y, c): zero where there are none.

    Its directions are S A, without the inverse root that would make variates of them, made orthonormal one after
    another. It adds means of neurons to them, so that for activations with means its weights follow the signs of
    singular vectors: these are those of centred activations.

    Parameters
    ----------
    scales : (b, k_x), (b, k_y)
        Singular values of the directions.
    which, loadings
        As for `totals_of_vectors`.
    """
    xp = namespace(rho)
    enough = LEADING * xp.sum(rho, axis=-1)[:, None]
    before = xp.cumulative_sum(rho, axis=-1) - rho
    there = xp.astype((before < enough) & (rho > 0), rho.dtype)
    found = {"leading": xp.sum(there * rho, axis=-1), "led": xp.sum(there, axis=-1)}
    for side, vectors, s, own, f in zip("xy", (a, b), scales, which, loadings, strict=True):
        orthonormal = xp.linalg.qr(like(s, rho)[:, :, None] * vectors)[0]
        weights, _ = _weights(orthonormal, own, f, False)
        weights = weights * xp.astype(xp.any(vectors != 0, axis=-2), rho.dtype)
        found[f"{side}_google"] = xp.sum(weights * rho, axis=-1)
        found[f"{side}_google_weights"] = xp.sum(weights, axis=-1)
    return found


def totals_of_covariances(c: Array, s_x: Array, s_y: Array, wanted: Collection[str]) -> dict[str, Array]:
    """Return `OF_COVARIANCES` of cross blocks (b, k_x, k_y); the nuclear norm, which is dear, if it is wanted.

    Parameters
    ----------
    s_x, s_y : (b, k_x), (b, k_y)
        Singular values of the directions; zero where there are none.
    """
    xp = namespace(c)
    of_x, of_y = s_x[:, :, None] * c, c * s_y[:, None, :]
    covariance = of_x * s_y[:, None, :]
    found: dict[str, Array] = {}
    for name, one in (("covariance2", covariance), ("x_explained", of_x), ("y_explained", of_y)):
        found[name] = xp.sum(xp.abs(one) ** 2, axis=(1, 2))
    if "nuclear" in wanted:
        found["nuclear"] = _nuclear(covariance)
    return found


def shrinkage_of(spectrum: NumpyArray, power: float, nonzero: int, ridges: Sequence[float]) -> NumpyArray:
    """Return D = s / sqrt(s^2 + ridge ||X||^2) of singular values, (ridges, ...); 0 of all but the `nonzero` largest.

    The ridge is that of the covariance of activations whose rows have a mean squared norm of 1; `power` is ||X||^2.
    """
    s = np.where(spectrum >= np.sort(spectrum, axis=None)[::-1][nonzero - 1], spectrum, 0.0)
    found = [s / np.where(s > 0, np.sqrt(s * s + ridge * power), 1.0) for ridge in ridges]
    return np.asarray(found).reshape(len(found), *s.shape)


def totals_of_ridge(c: Array, d_x: NumpyArray, d_y: NumpyArray, wanted: Collection[str]) -> dict[str, Array]:
    """Return `OF_RIDGE` of cross blocks (b, k_x, k_y), each (b, ridges); the singular values if they are wanted.

    Parameters
    ----------
    d_x, d_y : (ridges, b, k_x), (ridges, b, k_y)
        By how much each direction is shrunk; zero where there are none.
    """
    xp = namespace(c)
    found: dict[str, list[Array]] = {name: [] for name in OF_RIDGE if name in wanted}
    for of_x, of_y in zip(d_x, d_y, strict=True):
        shrunk = like(of_x, c)[:, :, None] * c * like(of_y, c)[:, None, :]
        if "ridge2" in found:
            found["ridge2"].append(xp.sum(xp.abs(shrunk) ** 2, axis=(1, 2)))
        if "ridge" in found:
            found["ridge"].append(_nuclear(shrunk))
    return {name: xp.stack(values, axis=-1) for name, values in found.items()}


def _nuclear(m: Array) -> Array:
    """Return the sums of the singular values of stacked matrices."""
    xp = namespace(m)
    small = m if m.shape[1] <= m.shape[2] else adjoint(m)
    squared = xp.linalg.eigvalsh(xp.matmul(small, adjoint(small)))
    return xp.sum(xp.sqrt(xp.maximum(squared, xp.zeros_like(squared))), axis=-1)


def totals_of_chance(
    rho: NumpyArray,
    ranks: tuple[NumpyArray, NumpyArray],
    freedom: int,
    beta: int,
    frequencies: int,
    wanted: Collection[str],
) -> dict[str, NumpyArray]:
    """Return those of `OF_CHANCE` that are wanted, of correlations (b, c), zero beyond the smaller rank.

    Parameters
    ----------
    ranks : (b,) and (b,) int
    freedom : int
        Independent rows, less one for their mean; 0 where nothing is known of chance.
    beta : {1, 2}
        1 of real cross blocks, 2 of complex ones.
    frequencies : int
        Among so many the level of LEVEL is shared out.
    """
    p, q = ranks
    if not freedom:
        return {name: np.full(len(rho), np.nan) for name in OF_CHANCE if name in wanted}
    found = {}
    if "without_chance" in wanted:
        found["without_chance"] = nulls.without_chance(rho, p[:, None], q[:, None], freedom).sum(axis=-1)
    if "surprise" in wanted:
        with np.errstate(divide="ignore"):
            found["surprise"] = -np.log(nulls.largest_by_chance(rho[:, 0], p, q, freedom, beta))
    if "looked_at" in wanted:
        found["looked_at"] = np.ones(len(rho))
    level = 1 - (1 - LEVEL) ** (1 / frequencies)
    if "bartlett" in wanted:
        rejected = nulls.bartlett(rho, p, q, freedom, beta) <= level
        found["bartlett"] = np.cumprod(rejected, axis=-1).sum(axis=-1).astype(np.float64)
    if "standing_out" in wanted:
        found["standing_out"] = nulls.standing_out(rho, p, q, freedom, beta=beta, level=level).astype(np.float64)
    return found


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
    mean = weighted_mean(rho, xp.maximum(weights, xp.full_like(weights, 1e-300)))[:, None]
    return ((rho - mean) ** 2 + (below - mean) ** 2) * weights * other / neurons[:, None] * share**2


def exchanged(totals: dict[str, Array]) -> dict[str, Array]:
    """Return the totals with x and y exchanged."""
    other = {"x": "y", "y": "x"}
    return {other.get(name[0], name[0]) + name[1:]: one for name, one in totals.items()}


def weighted_mean(rho: Array, weights: Array) -> Array:
    """Return sum(weights * rho) / sum(weights) over the last axis."""
    xp = namespace(rho)
    return xp.sum(weights * rho, axis=-1) / xp.sum(weights, axis=-1)


def _weights(vectors: Array, which: NumpyArray, loadings: Loadings, squares: bool) -> tuple[Array, Array | None]:
    """Return sum_j |(vectors^H F)_ij| for stacked vectors (b, k, c): (b, c); and the sums of squares, if wanted.

    One product a pair, each of one size, so that its bits do not depend on what else is in the stack.
    """
    xp = namespace(vectors)
    k, c = vectors.shape[1:]
    order = np.argsort(which, kind="stable")
    is_sorted = bool((order[1:] > order[:-1]).all())
    ordered = vectors if is_sorted else xp.take(vectors, like(order, vectors), axis=0)
    ones, starts = np.unique(which, return_index=True) if is_sorted else np.unique(which[order], return_index=True)
    found, squared = [], []
    widest = max(loadings[one].shape[1] for one in ones.tolist())
    ones_of = xp.ones((widest,), dtype=xp.float64, device=device(vectors))
    for one, start, stop in zip(ones.tolist(), starts.tolist(), [*starts[1:].tolist(), len(which)], strict=True):
        f = loadings[one][:k, :]
        step = max(1, SLICE // (c * f.shape[1]))
        for first in range(start, stop, step):
            g = xp.matmul(adjoint(ordered[first : min(first + step, stop), :, :]), f)
            g = np.abs(g, out=g) if isinstance(g, np.ndarray) and g.dtype == ones_of.dtype else xp.abs(g)
            found.append(xp.matmul(g, ones_of[: f.shape[1]]))  # twice as fast as a sum
            if squares:
                g *= g
                squared.append(xp.matmul(g, ones_of[: f.shape[1]]))
    both = [xp.concat(one, axis=0) if one else None for one in (found, squared)]
    if not is_sorted:
        back = like(np.argsort(order), vectors)
        both = [one if one is None else xp.take(one, back, axis=0) for one in both]
    return both[0], both[1]
