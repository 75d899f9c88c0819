"""The textbook's way: a pair of layers at a time, read and solved from nothing. What a plan is measured by."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import scipy.linalg
import xarray as xr

from dsvcca.activations.store import Store
from dsvcca.maths.arrays import NumpyArray
from dsvcca.results.tables import to_frame

ZERO = 1e-6
"""Singular values below this share of the largest are rounding of float32 activations."""


def textbook_pwcca(x: NumpyArray, y: NumpyArray, variance: float = 1.0) -> float:
    """Return PWCCA as the paper writes it down, the mean of both sides, of the directions that hold the variance.

    Parameters
    ----------
    x, y : (n, p) and (n, q) arrays
        With more rows than columns.
    variance : float

    Returns
    -------
    float
        By three singular value decompositions in float64.
    """
    centred = [one.astype(np.float64) - one.mean(axis=0, dtype=np.float64) for one in (x, y)]
    kept = [_leading(one, variance) for one in centred]
    left, rho, right = _svd(kept[0].T @ kept[1])
    sides = []
    for one, basis, directions in zip(centred, kept, (left, right.T), strict=True):
        weights = np.abs((basis @ directions).T @ one).sum(axis=1)
        sides.append(float(weights @ rho / weights.sum()))
    return sum(sides) / 2


def seconds_and_differences(
    results: xr.Dataset, store: Store, *, pairs: int, seed: int, variance: float = 1.0
) -> pd.DataFrame:
    """Return what pairs of results cost the textbook's way, and by how much it differs.

    Parameters
    ----------
    results : xarray.Dataset
        With `pwcca_mean`, of dense layers and of maps by their mean over space.
    store : Store
        What was compared.
    pairs : int
        How many, drawn at random from those of two layers.
    seed : int
    variance : float, default 1.0
        Share of variance that the results are of.

    Returns
    -------
    pandas.DataFrame
        A row a pair: seconds to `read` both and take means over space, seconds to `solve`, the absolute `difference`.
    """
    frame = to_frame(results, measures="pwcca_mean")
    names = [name[2:] for name in map(str, frame.columns) if name.startswith("x_")]
    frame = frame[(frame[[f"x_{name}" for name in names]].to_numpy() != frame[[f"y_{n}" for n in names]]).any(axis=1)]
    rows = []
    for _, pair in frame.sample(pairs, random_state=seed).iterrows():
        begun = time.perf_counter()
        x, y = (_read(store, {name: pair[f"{side}_{name}"] for name in names}) for side in "xy")
        read = time.perf_counter()
        found = textbook_pwcca(x, y, variance)
        solved = time.perf_counter()
        rows.append((read - begun, solved - read, abs(found - pair.pwcca_mean)))
    return pd.DataFrame(rows, columns=["read", "solve", "difference"])


def _leading(x: NumpyArray, variance: float) -> NumpyArray:
    """Return the left singular vectors that hold a share of the variance; of those of no size none."""
    u, s, _ = _svd(x)
    there = int(np.sum(s > ZERO * s[0]))
    kept = there if variance == 1 else int(np.searchsorted(np.cumsum(s**2), variance * np.sum(s**2))) + 1
    found: NumpyArray = u[:, : min(kept, there)]
    return found


def _svd(x: NumpyArray) -> tuple[NumpyArray, NumpyArray, NumpyArray]:
    """Return the thin SVD; the driver that NumPy takes does not converge for some layers with many dead neurons."""
    try:
        u, s, vt = np.linalg.svd(x, full_matrices=False)
    except np.linalg.LinAlgError:
        u, s, vt = scipy.linalg.svd(x, full_matrices=False, lapack_driver="gesvd")
    return u, s, vt


def _read(store: Store, labels: dict[str, object]) -> NumpyArray:
    """Return a layer, maps by their mean over space, one row a datapoint."""
    x = np.asarray(store.read(**labels))  # type: ignore[arg-type]
    return x if x.ndim == 2 else x.mean(axis=(1, 2), dtype=np.float64)
