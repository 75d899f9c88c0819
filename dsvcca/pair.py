"""Every measure of two arrays in memory, from one cross block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dsvcca import nulls
from dsvcca.arrays import Array, NumpyArray, as_float64, namespace, to_numpy
from dsvcca.basis import RankRule
from dsvcca.correlations import check_excess, checked_sides, cross_block, warn_of_few_rows
from dsvcca.errors import DsvccaError
from dsvcca.measures import DEFAULT, MEASURES, Sides
from dsvcca.sums import OF_CHANCE, totals_of_chance


def measure(
    x: Array,
    y: Array,
    measures: str | Sequence[str] = DEFAULT,
    *,
    variance: float = 1.0,
    criterion: str = "variance",
) -> dict[str, float]:
    """Return measures of two sets of activations, as results of a comparison hold them.

    Parameters
    ----------
    x, y : (n, p), (n, q)
        Activations, datapoints first. NumPy, torch and anything else that follows the array API.
    measures : str or sequence of str
        Of `dsvcca.measures.MEASURES`, where their definitions are, or "all".
    variance, criterion
        Which directions are kept, as for `cca`.

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
    names = tuple(MEASURES) if measures == "all" else (measures,) if isinstance(measures, str) else tuple(measures)
    if unknown := [name for name in names if name not in MEASURES]:
        raise DsvccaError(f"measure {unknown[0]!r} is unknown: there are {', '.join(MEASURES)}")
    x, y = checked_sides(x, y)
    block, of_x, of_y = cross_block(x, y, RankRule(variance, criterion))
    c, f_x, f_y = (to_numpy(one) for one in (block, of_x.loadings, of_y.loadings))
    n, (k_x, k_y) = x.shape[0], c.shape
    warn_of_few_rows(n, k_x, k_y)
    a, rho, b = np.linalg.svd(c, full_matrices=False)
    check_excess(float(rho[0]))
    rho = np.minimum(rho, 1.0)
    totals = _sums(c, a, rho, b, f_x, f_y)
    own = totals_of_chance(rho[None], (np.asarray([k_x]), np.asarray([k_y])), n - 1, 1, 1, OF_CHANCE)
    (x_power, x_power2), (y_power, y_power2) = (_powers(one, of.mean) for one, of in ((x, of_x), (y, of_y)))
    sides = Sides(
        x_rank=np.asarray(k_x),
        y_rank=np.asarray(k_y),
        x_scale=np.asarray(1.0),
        y_scale=np.asarray(1.0),
        x_power=np.asarray(x_power),
        y_power=np.asarray(y_power),
        x_power2=np.asarray(x_power2),
        y_power2=np.asarray(y_power2),
        by_chance=nulls.mean_by_chance(k_x, k_y, n - 1),
    )
    totals |= {name: one[0] for name, one in own.items()}
    return {name: float(MEASURES[name].value(totals, sides)) for name in names}


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


def _powers(x: Array, mean: Array) -> tuple[float, float]:
    """Return ||X||_F^2 and ||X^T X||_F^2 of centred activations."""
    xp = namespace(x)
    z = as_float64(x) - mean
    z = z if z.shape[0] >= z.shape[1] else xp.matrix_transpose(z)
    gram = xp.matmul(xp.matrix_transpose(z), z)
    return float(xp.sum(xp.linalg.diagonal(gram))), float(xp.sum(gram * gram))
