"""Every measure of two arrays in memory, from one cross block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dsvcca.errors import DsvccaError
from dsvcca.maths import nulls
from dsvcca.maths.arrays import Array, NumpyArray, as_float64, namespace, to_numpy
from dsvcca.maths.basis import RankRule
from dsvcca.maths.cca import CanonicalCorrelations, cca
from dsvcca.maths.correlations import check_excess, smaller_side
from dsvcca.maths.in_memory import Maps, checked_sides, correlations_in_memory, cross_block, warn_of_few_rows
from dsvcca.maths.measures import DEFAULT, MEASURES, RIDGE, Side, Sides, check_options, expanded
from dsvcca.maths.resampling import TIED, Halves, fold_bounds, held_out, influences
from dsvcca.maths.sums import (
    OF_CHANCE,
    OF_FOLDS,
    OF_RIDGE,
    shrinkage_of,
    totals_of_chance,
    totals_of_google,
    totals_of_ridge,
    weighted_mean,
)
from dsvcca.maths.variants import anatome, check_not_given, variant_of


def measure(
    x: Array,
    y: Array,
    measures: str | Sequence[str] = DEFAULT,
    *,
    variant: str | None = None,
    variance: float | None = None,
    criterion: str = "variance",
    ridge: float = RIDGE,
    shuffles: int = 1,
) -> dict[str, float]:
    """Return measures of two sets of activations, as results of a comparison hold them.

    Parameters
    ----------
    x, y : (n, p), (n, q)
        Activations, datapoints first. NumPy, torch and anything else that follows the array API.
    measures : str or sequence of str
        Of `dsvcca.maths.measures.MEASURES`, where their definitions are; "all" as for `plan_comparisons`.
    variant : {"google", "singular", "anatome"}, optional
        Numbers as another tool, or the letter of a paper, defines them (`dsvcca.maths.variants.VARIANTS`): measures
        and rank rule are then those.
    variance, criterion
        Which directions are kept, as for `cca`: all of them by default, of variant "singular" 0.99.
    ridge, shuffles
        Of `ridge_cca` and `gulp`, and of `svcca_shuffled` and `p_shuffled`: see `plan_comparisons`.

    Returns
    -------
    dict of float
        By name; NaN where nothing can be said. In float64.

    Raises
    ------
    DsvccaError
        As `cca`; if there is no such measure.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((500, 8))
    >>> found = measure(x, 3 * x + 1, ["cka", "procrustes_angle"])
    >>> {name: round(value, 6) for name, value in found.items()}
    {'cka': 1.0, 'procrustes_angle': 0.0}
    """
    names = expanded(measures)
    check_options(names, [ridge], shuffles)
    x, y = checked_sides(x, y)
    if variant is not None:
        other = variant_of(variant)
        given = {"criterion": criterion != "variance", "variance": other.variance and variance is not None}
        given |= {"measures": other.measures != DEFAULT and names != DEFAULT}
        check_not_given(variant, given)
        if other.needs_rows:
            return anatome(to_numpy(as_float64(x)), to_numpy(as_float64(y)), other.variance or 0.99)
        names = names if other.measures == DEFAULT else other.measures
        variance = other.variance or (0.99 if variance is None else variance)
        criterion = other.criterion
    block, of_x, of_y = cross_block(x, y, RankRule(1.0 if variance is None else variance, criterion))
    c, f_x, f_y = (to_numpy(one) for one in (block, of_x.loadings, of_y.loadings))
    n, (k_x, k_y) = x.shape[0], c.shape
    warn_of_few_rows(n, k_x, k_y)
    a, rho, b = np.linalg.svd(c, full_matrices=False)
    check_excess(float(rho[0]))
    rho = np.minimum(rho, 1.0)
    totals = _sums(c, a, rho, b, f_x, f_y)
    axes = [np.linalg.svd(f, full_matrices=False)[:2] for f in (f_x, f_y)]  # columns of bases need not be principal
    totals |= _as_google(rho, a, b, f_x, f_y, axes)
    columns = [_columns(one, of) for one, of in ((x, of_x), (y, of_y))]
    norms = [np.sum((u @ f) ** 2, axis=1) for u, f in zip(columns, (f_x, f_y), strict=True)]
    totals["row_products"] = norms[0] @ norms[1]
    spectra = [of.singular_values for of in (of_x, of_y)]
    powers = [float(np.sum(s**2)) for s in spectra]
    shrunk = [shrinkage_of(s, power, len(s), [ridge]) for s, power in zip(spectra, powers, strict=True)]
    d_x, d_y = (d[:, None, :k] for d, k in zip(shrunk, (k_x, k_y), strict=True))
    principal = (axes[0][0].T @ c @ axes[1][0])[None]
    totals |= {name: one[0] for name, one in totals_of_ridge(principal, d_x, d_y, OF_RIDGE).items()}
    own = totals_of_chance(rho[None], (np.asarray([k_x]), np.asarray([k_y])), n - 1, 1, 1, OF_CHANCE)
    of_both = [
        Side(
            rank=np.asarray(k),
            power=np.asarray(power),
            power2=np.sum(s**4),
            kept_power=np.sum(s[:k] ** 2),
            kept_power2=np.sum(s[:k] ** 4),
            norms4=own_norms @ own_norms,
            shrunk4=np.sum(d[:, :k] ** 4, axis=1),
        )
        for k, power, s, own_norms, d in zip(c.shape, powers, spectra, norms, shrunk, strict=True)
    ]
    sides = Sides(
        x=of_both[0],
        y=of_both[1],
        rows=n,
        by_chance=nulls.mean_by_chance(k_x, k_y, n - 1),
        edge=nulls.edges(k_x, k_y, n - 1)[1],
        shuffles=shuffles,
    )
    totals |= {name: one[0] for name, one in own.items()}
    if not set(OF_FOLDS).isdisjoint(sums := {name for one in names for name in MEASURES[one].sums}):
        totals |= _by_folds(c, columns[0], columns[1])
    if "shuffled" in sums:
        totals |= _shuffled(columns[0], columns[1], float(rho.sum()), shuffles)
    return {name: np.asarray(MEASURES[name].value(totals, sides)).item() for name in names}


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
    come from `side`, so exchanging x and y changes the number: little between layers that are alike, much where one
    says the same many times (.87 and .14 of twenty noisy copies of one of ten signals, and all ten).

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
    return float(weighted_mean(found.correlations, weights))


def _sums(
    c: NumpyArray, a: NumpyArray, rho: NumpyArray, b: NumpyArray, f_x: NumpyArray, f_y: NumpyArray
) -> dict[str, NumpyArray]:
    """Return what measures are made of (see `dsvcca.sums`), of one cross block and the loadings of both sides."""
    covariance = f_x.T @ c @ f_y
    found = {
        "rho": rho.sum(),
        "rho2": np.sum(rho**2),
        "covariance2": np.sum(covariance**2),
        "nuclear": np.linalg.svd(covariance, compute_uv=False).sum(),
        "x_explained": np.sum((f_x.T @ c) ** 2),
        "y_explained": np.sum((c @ f_y) ** 2),
    }
    for side, vectors, loadings in (("x", a, f_x), ("y", b.T, f_y)):
        g = vectors.T @ loadings
        for name, weights in (("", np.abs(g).sum(axis=1)), ("2", np.sum(g**2, axis=1))):
            found[f"{side}_weighted{name}"] = weights @ rho
            found[f"{side}_weights{name}"] = weights.sum()
    return found


def _as_google(
    rho: NumpyArray,
    a: NumpyArray,
    b: NumpyArray,
    f_x: NumpyArray,
    f_y: NumpyArray,
    axes: Sequence[tuple[NumpyArray, NumpyArray]],
) -> dict[str, NumpyArray]:
    """Return `OF_GOOGLE`; `axes` are principal directions and singular values of both sides."""
    (x_axes, s_x), (y_axes, s_y) = axes
    vectors = (x_axes.T @ a)[None], (y_axes.T @ b.T)[None]
    loadings = [x_axes.T @ f_x], [y_axes.T @ f_y]
    none = np.zeros(1, dtype=np.int64)
    found = totals_of_google(rho[None], *vectors, (s_x[None], s_y[None]), (none, none), loadings)
    return {name: one[0] for name, one in found.items()}


def _columns(x: Array, of: Maps) -> NumpyArray:
    """Return the orthonormal columns (n, k) of one side."""
    xp = namespace(x)
    return to_numpy(xp.matmul(as_float64(x) - of.mean, xp.matrix_transpose(of.map)))


def _by_folds(c: NumpyArray, u_x: NumpyArray, u_y: NumpyArray) -> dict[str, NumpyArray]:
    """Return `OF_FOLDS` of one cross block and the columns of both sides."""
    if u_x.shape[1] > u_y.shape[1]:
        c, u_x, u_y = c.T, u_y, u_x
    bounds = fold_bounds(len(u_x), 1)
    both = list(zip(np.split(u_x, bounds[1:-1]), np.split(u_y, bounds[1:-1]), strict=True))
    m = np.stack([a.T @ b for a, b in both])[None]
    grams = [np.stack([pair[side].T @ pair[side] for pair in both]) for side in (0, 1)]
    sums = [np.stack([pair[side].sum(axis=0) for pair in both]) for side in (0, 1)]
    rows = np.asarray([np.diff(bounds)[half::2].sum() for half in (0, 1)])
    halves = [Halves(gram, total, gram.shape[1], rows) for gram, total in zip(grams, sums, strict=True)]
    rho, a = smaller_side(c[None])
    return {
        "jackknife": influences(c[None], rho, a, m, *([gram.reshape(len(gram), -1)] for gram in grams))[0],
        "held_out": held_out(m, halves[:1], halves[1:], rows)[0],
    }


def _shuffled(u_x: NumpyArray, u_y: NumpyArray, total: float, shuffles: int) -> dict[str, NumpyArray]:
    """Return `OF_SHUFFLES` of the columns of both sides."""
    rng = np.random.default_rng(0)
    found = [np.linalg.svd(u_x.T @ rng.permutation(u_y), compute_uv=False).sum() for _ in range(shuffles)]
    return {"shuffled": np.mean(found), "exceeded": np.sum(np.asarray(found) >= (1 - TIED) * total)}
