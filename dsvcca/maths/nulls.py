"""Chance: what canonical correlations of independent data look like, and how sure it is that some are more than that.

Notation: p and q directions are kept, m = rows - 1 is what the means leave. The squared correlations of independent
data are a Jacobi ensemble (`beta` 1 of real data, 2 of complex ones: a frequency of maps). For large p, q and m their
density is that of Wachter (1980), and their largest follows Tracy and Widom (Johnstone 2008); of few directions the
distribution of the largest is known exactly. Functions take arrays that broadcast against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import legendre
from scipy.special import airy, chdtrc

from dsvcca.maths.arrays import NumpyArray

if TYPE_CHECKING:  # with optimize, a tenth of the time that this package takes to import
    from scipy.interpolate import CubicSpline, PchipInterpolator

Numbers = NumpyArray | float

EXACT = 32
"""Directions of the smaller side up to which the distribution of the largest is computed, not approximated."""

FEW = 8
"""Directions of the smaller side up to which the expected mean is computed exactly."""

LEAST = -690.0
"""Logarithm below which a probability is said to be 0."""


def edges(p: Numbers, q: Numbers, m: Numbers) -> tuple[NumpyArray, NumpyArray]:
    """Return the smallest and the largest correlation that independent data of many directions show (Wachter 1980).

    >>> round(float(edges(500, 500, 9999)[1]), 4)
    0.4359
    """
    a, b = _angles(p, q, m)
    return np.sin(np.abs(a - b)), np.sin(np.minimum(a + b, np.pi / 2))


def mean_by_chance(p: Numbers, q: Numbers, m: Numbers, beta: int = 1) -> NumpyArray:
    """Return the mean canonical correlation to be expected of independent data, p, q >= 1 directions.

    Exact where a side has few directions (and p + q <= m); beyond, the mean over Wachter's density, of real data with
    the next term in 1 / p (Johansson 1998). The p + q - m correlations that are 1 whatever the data count as such.

    >>> round(float(mean_by_chance(100, 50, 1999)), 3)
    0.209
    """
    p, q, m = np.broadcast_arrays(np.minimum(p, q), np.maximum(p, q), np.asarray(m, np.float64))
    a, b = (angle[..., None] for angle in _angles(p, q, m))
    low, high = b - a, np.where(a + b > np.pi / 2, np.pi - a - b, a + b)
    half = (high - low) / 2
    left, right = half * _FROM_LEFT, half * _FROM_RIGHT
    theta = np.where(_FROM_LEFT < 1, low + left, high - right)
    weights = half * _WEIGHTS
    root = np.sqrt(np.abs(np.sin(right) * np.sin(high + theta) * np.sin(left) * np.sin(low + theta)))
    forced = np.maximum(p + q - m, 0)
    total = m * np.sum(weights * root / (np.pi * np.cos(theta)), axis=-1) + forced
    if beta == 1:
        arcs = np.sum(weights * 2 * np.sin(theta) ** 2 * np.cos(theta) / np.maximum(root, 1e-300), axis=-1)
        finite = (np.sin(low) + np.sin(high))[..., 0] / 4 - arcs / (2 * np.pi)
        total = total + np.where((forced == 0) & (p + q < m), finite, 0.0)
    found = np.asarray(np.minimum(total / p, 1.0))
    few = (p <= FEW) & (p + q <= m)
    for place in map(tuple, np.argwhere(few)):
        found[place] = _sum_by_chance(int(p[place]), int(q[place]), int(m[place]), beta) / p[place]
    return found


def largest_eigenvalue_by_chance(ranks: Sequence[int] | NumpyArray, m: float) -> float:
    """Return the largest eigenvalue of a sum of projections on independent subspaces of these ranks, all of them large.

    The right edge of their free sum (Voiculescu 1986). For N of one rank it is 1 + (N - 2) g + 2 sqrt((N - 1) g (1 -
    g)) with g = rank / m; for two of any ranks 1 + the largest correlation of `edges`.

    >>> round(largest_eigenvalue_by_chance([50, 50, 50], 1000), 4)
    1.6664
    """
    from scipy.optimize import minimize_scalar

    g = np.asarray(ranks, np.float64) / m
    # At Cauchy transform 1 / u the inverse is this convex function of u, whose minimum is the edge.
    cosine, squared_sine = 1 - 2 * g, 4 * g * (1 - g)

    def inverse(u: float) -> float:
        return float(u + np.sum(1 - u + np.sqrt((u - cosine) ** 2 + squared_sine)) / 2)

    return float(minimize_scalar(inverse, bounds=(0, 1 + len(g) ** 0.5), method="bounded", options={"xatol": 1e-9}).fun)


def without_chance(rho: Numbers, p: Numbers, q: Numbers, m: Numbers) -> NumpyArray:
    """Return correlations without what chance adds to them; 0 where they do not stand out of it.

    How a few shared directions are seen among many others, inverted (Bao, Hu, Pan & Zhou 2019, theorem 1.8).

    >>> np.round(without_chance(np.array([0.856, 0.623, 0.4]) ** 0.5, 100, 150, 999) ** 2, 3).tolist()
    [0.807, 0.486, 0.0]
    """
    rho, p, q, m = np.broadcast_arrays(*(np.asarray(one, np.float64) for one in (rho, p, q, m)))
    c1, c2 = p / m, q / m
    a, b = (1 - c1) * (1 - c2), (1 - c1) * c2 + (1 - c2) * c1 - rho**2
    root = np.sqrt(np.maximum(b**2 - 4 * a * c1 * c2, 0.0))
    above = (rho > edges(p, q, m)[1]) & (c1 + c2 < 1)
    squared = np.where(above, (root - b) / (2 * np.where(above, a, 1.0)), 0.0)
    found: NumpyArray = np.sqrt(np.clip(squared, 0.0, 1.0))
    return found


def largest_by_chance(rho: Numbers, p: Numbers, q: Numbers, m: Numbers, beta: int = 1) -> NumpyArray:
    """Return the probability that the largest correlation of independent Gaussian data is `rho` or more.

    Of up to EXACT directions on the smaller side exactly, by de Bruijn's (1955) formula; beyond, by Johnstone's (2008,
    theorem 1) centring and scaling of logit(rho^2) and Tracy and Widom's distribution. NaN where p + q > m: the
    largest is 1 whatever the data.
    """
    rho, p, q, m = np.broadcast_arrays(np.asarray(rho, np.float64), np.minimum(p, q), np.maximum(p, q), m)
    found = np.full(rho.shape, np.nan)
    free = p + q <= m
    many = free & (p > EXACT)
    if many.any():
        found[many] = np.exp(tracy_widom(_standardised(rho[many], p[many], q[many], m[many], beta), beta))
    kinds, which = np.unique(np.stack([p, q, m])[:, free & ~many].astype(np.int64), axis=1, return_inverse=True)
    values = np.zeros(which.size)
    for place, (one, other, rows) in enumerate(kinds.T.tolist()):
        here = which.ravel() == place
        x = np.arcsin(np.minimum(rho[free & ~many][here], 1.0))
        tail = _log_tail(one, other, rows, beta)
        values[here] = np.exp(np.where(x > tail.x[-1], -np.inf, tail(np.clip(x, tail.x[0], tail.x[-1]))))
    found[free & ~many] = values
    return found


def standing_out(rho: Numbers, p: Numbers, q: Numbers, m: Numbers, *, beta: int = 1, level: float = 0.05) -> NumpyArray:
    """Return how many directions are shared beyond chance: (..., c) descending correlations to (...) int.

    One after another is compared with the largest that chance would show of what is left, by Johnstone's approximation,
    until one does not stand out at that level.
    """
    rho = np.asarray(rho, np.float64)
    p, q, m = (np.asarray(one, np.float64)[..., None] for one in (np.minimum(p, q), np.maximum(p, q), m))
    k = np.arange(rho.shape[-1])
    left = (np.maximum(one - k, 1) for one in (p, q, m))
    sure = tracy_widom(_standardised(rho, next(left), next(left), next(left), beta), beta) <= np.log(level)
    possible = (k < p) & (p + q - k <= m)
    found: NumpyArray = np.sum(np.cumprod(sure & possible, axis=-1), axis=-1)
    return found


def bartlett(rho: Numbers, p: Numbers, q: Numbers, m: int, beta: int = 1) -> NumpyArray:
    """Return the p-values, for i = 0, 1, ..., that correlations from the i-th on are chance: (..., c) each.

    Bartlett (1947) with Lawley's (1959) correction: chi-squared of (p - i)(q - i) degrees of freedom. For few
    directions in many rows; where p and q are of the order of m it rejects far too often.

    >>> rng = np.random.default_rng(0)
    >>> x, y = (np.linalg.qr(z - z.mean(0))[0] for z in (rng.standard_normal((60, 5)), rng.standard_normal((60, 7))))
    >>> bool(bartlett(np.linalg.svd(x.T @ y, compute_uv=False), 5, 7, 59)[0] > 0.05)
    True
    """
    statistic, freedom = bartlett_statistics(rho, p, q, m, beta)
    return np.asarray(np.where(freedom > 0, chdtrc(np.maximum(freedom, 1), np.maximum(statistic, 0.0)), 1.0))


def bartlett_statistics(rho: Numbers, p: Numbers, q: Numbers, m: int, beta: int = 1) -> tuple[NumpyArray, NumpyArray]:
    """Return Bartlett's statistics and their degrees of freedom, (..., c); of complex data both are twice as large."""
    p, q = (np.asarray(one)[..., None] for one in (p, q))
    squared = np.asarray(rho, np.float64) ** 2
    c = squared.shape[-1]
    i = np.arange(c)
    logs = np.cumsum(np.log1p(-np.minimum(squared, 1 - 1e-15))[..., ::-1], axis=-1)[..., ::-1]
    inverse = np.cumsum(1 / np.maximum(squared, 1e-300), axis=-1) - 1 / np.maximum(squared, 1e-300)
    scale = m - i - (p + q + (1 if beta == 1 else 0)) / 2 + inverse
    possible = (i < np.minimum(p, q)) & (p + q - i <= m)
    return -beta * scale * logs, np.asarray(beta * (p - i) * (q - i) * possible)


def tracy_widom(x: Numbers, beta: int = 1) -> NumpyArray:
    """Return the logarithm of the probability that a Tracy-Widom variable is `x` or more; `LEAST` and less is 0.

    >>> np.round(np.exp(tracy_widom(np.array([0.4501, 0.9793, 2.0234]))), 4).tolist()
    [0.1, 0.05, 0.01]
    """
    grid, spline = _tracy_widom(beta)
    found: NumpyArray = np.where(np.asarray(x) > grid[-1], -np.inf, spline(np.clip(x, grid[0], grid[-1])))
    return np.minimum(found, 0.0)


@cache
def _tracy_widom(beta: int) -> tuple[NumpyArray, CubicSpline]:
    """Return points, and the logarithm of the tail between them, from a Fredholm determinant (Bornemann 2010)."""
    from scipy.interpolate import CubicSpline

    nodes, weights = legendre.leggauss(48)
    grid = np.concatenate([np.arange(-8, 8, 0.25), np.arange(8, 60.5, 0.5)])
    found = []
    for start in grid:
        length = max(16.0, 16.0 - start)
        t, w = start + (nodes + 1) * length / 2, np.sqrt(weights * length / 2)
        if beta == 1:
            kernel = airy((t[:, None] + t[None, :]) / 2)[0] / 2
        else:
            ai, slope = airy(t)[:2]
            gap = t[:, None] - t[None, :] + np.eye(len(t))
            kernel = (ai[:, None] * slope - slope[:, None] * ai) / gap
            kernel[np.diag_indices(len(t))] = slope**2 - t * ai**2
        values = np.linalg.eigvalsh(w[:, None] * kernel * w)
        found.append(np.log(max(-np.expm1(np.sum(np.log1p(-np.minimum(values, 1 - 1e-16)))), 1e-300)))
    return grid, CubicSpline(grid, found)


def _standardised(rho: Numbers, p: Numbers, q: Numbers, m: Numbers, beta: int) -> NumpyArray:
    """Return the largest correlation, centred and scaled so that by chance it follows Tracy and Widom.

    Of complex data, where the transform of Johnstone's theorem is that of an average of two sizes, without its halves.
    """
    half = 0.5 if beta == 1 else 0.0
    freedom = np.maximum(m - 2 * half, 1)
    gamma, phi = (2 * np.arcsin(np.sqrt(np.minimum((k - half) / freedom, 1.0))) for k in (p, q))
    both = np.minimum(phi + gamma, np.pi - 1e-9)
    scale = (16 / (freedom**2 * np.sin(both) ** 2 * np.sin(phi) * np.sin(gamma))) ** (1 / 3)
    squared = np.clip(rho**2, 1e-300, 1 - 1e-16)
    found: NumpyArray = (np.log(squared / (1 - squared)) - 2 * np.log(np.tan(both / 2))) / scale
    return found


@lru_cache(maxsize=1 << 14)
def _log_tail(p: int, q: int, m: int, beta: int) -> PchipInterpolator:
    """Return the logarithm of the probability of a largest correlation of sin(x) or more, for x up to pi / 2.

    The integral of |Vandermonde|^beta times weights over all x below a limit is a Pfaffian (beta 1) or a determinant
    (beta 2) of integrals of pairs of polynomials (de Bruijn 1955), taken here of orthonormal ones; what lies above the
    limit is integrated on its own, so that small probabilities keep their digits.
    """
    from scipy.interpolate import PchipInterpolator

    a, b = (float(angle) for angle in _angles(np.asarray(p), np.asarray(q), np.asarray(m)))
    low, high = max(0.0, b - a - 4.5 / m**0.5), min(np.pi / 2, a + b + 12 / m**0.5)
    ends = np.linspace(low, high, PANELS + 1)
    half = (ends[1] - ends[0]) / 2
    _, w, f = _polynomials(p, q, m, beta, ends)
    weighted = w * f
    if beta == 2:
        above = np.cumsum((weighted.swapaxes(1, 2) @ f)[::-1], axis=0)[::-1]
        logs = _log_determinants(above)
    else:
        sums = weighted.sum(axis=1)
        integrals = half * (_INTEGRAL @ f) + (np.cumsum(sums, axis=0) - sums)[:, None, :]
        pairs = weighted.swapaxes(1, 2) @ integrals
        above = np.cumsum((pairs - pairs.swapaxes(1, 2))[::-1], axis=0)[::-1]
        whole = above[0]
        if p % 2:
            of_vectors = np.cumsum(sums[::-1], axis=0)[::-1]
            whole, above = _bordered(whole, of_vectors[0]), _bordered(above, of_vectors)
        logs = _log_determinants(np.linalg.solve(whole, above)) / 2
    tails = np.log(np.maximum(-np.expm1(np.minimum(logs, 0.0)), 1e-300))
    keep = np.concatenate([[True], np.diff(np.minimum.accumulate(tails)) < 0]) & (tails > LEAST)
    keep[0] = True
    points, values = ends[:-1][keep], np.minimum.accumulate(tails)[keep]
    return PchipInterpolator(np.append(points, points[-1] + 2 * half), np.append(values, LEAST))


@lru_cache(maxsize=1 << 14)
def _sum_by_chance(p: int, q: int, m: int, beta: int) -> float:
    """Return the expected sum of all correlations: the derivative of the same integral over everything."""
    a, b = (float(angle) for angle in _angles(np.asarray(p), np.asarray(q), np.asarray(m)))
    ends = np.linspace(max(0.0, b - a - 12 / m**0.5), min(np.pi / 2, a + b + 12 / m**0.5), PANELS + 1)
    x, w, f = _polynomials(p, q, m, beta, ends)
    rho, half = np.sin(x), (ends[1] - ends[0]) / 2
    if beta == 2:
        return float(np.sum(w * rho * f * f))

    def below(of: NumpyArray) -> tuple[NumpyArray, NumpyArray]:
        sums = (w * of).sum(axis=1)
        return half * (_INTEGRAL @ of) + (np.cumsum(sums, axis=0) - sums)[:, None, :], sums.sum(axis=0)

    (plain, whole), (times_rho, moment) = below(f), below(rho * f)
    pairs = np.tensordot(w * f, plain, ([0, 1], [0, 1]))
    slope = np.tensordot(w * rho * f, plain, ([0, 1], [0, 1])) + np.tensordot(w * f, times_rho, ([0, 1], [0, 1]))
    matrix, slope = pairs - pairs.T, slope - slope.T
    if p % 2:
        matrix, slope = _bordered(matrix, whole), _bordered(slope, moment)
    return float(np.trace(np.linalg.solve(matrix, slope)) / 2)


def _polynomials(p: int, q: int, m: int, beta: int, ends: NumpyArray) -> tuple[NumpyArray, NumpyArray, NumpyArray]:
    """Return points x and weights (b, nodes, 1) of integrals between ends, and orthonormal functions (b, nodes, p).

    They are polynomials in cos(2 x) times the density of angles x (rho = sin x), or its square root where beta is 2.
    """
    half = np.diff(ends)[:, None] / 2
    x, w = (ends[:-1, None] + half * (1 + _NODES)).ravel(), (half * _GAUSS).ravel()
    density = (beta * (q - p + 1) - 1) * np.log(np.sin(x)) + (beta * (m - p - q + 1) - 1) * np.log(np.cos(x))
    f = _orthonormal(np.exp((density - density.max()) / beta) * np.sqrt(w), np.cos(2 * x), p) / np.sqrt(w)[:, None]
    shape = len(half), len(_NODES)
    return x.reshape(*shape, 1), w.reshape(*shape, 1), f.reshape(*shape, p)


def _orthonormal(weight: NumpyArray, t: NumpyArray, count: int) -> NumpyArray:
    """Return weight times polynomials in t of degree 0, 1, ..., count - 1, as orthonormal columns."""
    found = np.empty((len(t), count))
    found[:, 0] = weight / np.linalg.norm(weight)
    for k in range(1, count):
        column = t * found[:, k - 1]
        for _ in range(2):
            column = column - found[:, :k] @ (found[:, :k].T @ column)
        found[:, k] = column / np.linalg.norm(column)
    return found


def _log_determinants(above: NumpyArray) -> NumpyArray:
    """Return log det(1 - E) of stacked matrices (b, p, p); of small ones by its series."""
    found = np.linalg.slogdet(np.eye(above.shape[1]) - above)[1]
    small = np.abs(above).sum(axis=(1, 2)) < 0.03
    power, series = above[small], np.zeros(int(small.sum()))
    for k in range(1, 9):
        series = series - np.trace(power, axis1=1, axis2=2) / k
        power = power @ above[small]
    found[small] = series
    return np.asarray(found)


def _bordered(matrices: NumpyArray, vectors: NumpyArray) -> NumpyArray:
    """Return skew matrices (..., p, p) with one more row and column."""
    p = vectors.shape[-1]
    found = np.zeros((*vectors.shape[:-1], p + 1, p + 1))
    found[..., :p, :p], found[..., :p, p], found[..., p, :p] = matrices, vectors, -vectors
    return found


PANELS = 48
"""Stretches between which the distribution of the largest correlation is computed."""

_NODES, _GAUSS = legendre.leggauss(10)
_INTEGRAL = np.stack(
    [legendre.legval(_NODES, legendre.legint(c, lbnd=-1)) for c in np.linalg.inv(legendre.legvander(_NODES, 9)).T],
    axis=1,
)
"""From values at the nodes to integrals from -1 to each of them."""


def _angles(p: Numbers, q: Numbers, m: Numbers) -> tuple[NumpyArray, NumpyArray]:
    return tuple(
        np.arcsin(np.sqrt(np.minimum(np.asarray(k) / np.asarray(m), 1.0))) for k in (np.minimum(p, q), np.maximum(p, q))
    )


def _double_exponential(reach: float, count: int) -> tuple[NumpyArray, NumpyArray, NumpyArray]:
    """Return weights of a rule on (-1, 1), and how far its points lie from both ends (Takahasi & Mori 1974)."""
    t, step = np.linspace(-reach, reach, count, retstep=True)
    u = np.pi / 2 * np.sinh(t)
    return np.pi / 2 * np.cosh(t) / np.cosh(u) ** 2 * step, np.exp(u) / np.cosh(u), np.exp(-u) / np.cosh(u)


_WEIGHTS, _FROM_LEFT, _FROM_RIGHT = _double_exponential(3.2, 96)
