"""Pairs of representations: how far they are from each other, and whether layers are found again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray
from dsvcca.statistics.like_layers import ALL
from dsvcca.statistics.networks import (
    DISTANCES,
    SIDED,
    check_there,
    networks_of,
    numbers_of,
    warn_of_views,
)

ALIKE = 1e-6
"""Numbers that differ by a smaller share of the largest are the same: they are right to so much."""


def distances(results: xr.Dataset, measure: str = "svcca", *, variance: float | None = None) -> pd.DataFrame:
    """Return how far every representation is from every other.

    Similarities become 1 - similarity. `procrustes`, `procrustes_angle`, `cca_angle` and `gulp` are distances as they
    are, and metrics where all pairs are looked at in one view. 1 - similarity is no metric: the triangle inequality may
    fail, by `svcca` for instance a layer can be at no distance from two that share nothing. The angle of `cka` is one,
    ``numpy.arccos(1 - distances(results, "cka"))`` (Williams et al. 2021).

    Parameters
    ----------
    results : xarray.Dataset
        With all pairs of its representations, as ``pairs="all"`` has them.
    measure : str, default "svcca"
        One that does not change where x and y are exchanged.
    variance : float, optional
        Which share of variance, where results hold several.

    Returns
    -------
    pandas.DataFrame
        Square and symmetric with 0 on the diagonal, labels on both axes: what ``scipy.spatial.distance.squareform``
        takes, and scikit-learn with ``metric="precomputed"``.

    Raises
    ------
    DsvccaError
        If a pair has no number, or the measure makes no distance.

    Warns
    -----
    DsvccaWarning
        If pairs are looked at in different views.

    Examples
    --------
    ``scipy.cluster.hierarchy.linkage(squareform(distances(results)), "average")``
    """
    numbers = numbers_of(results, measure, variance)
    if len(numbers.values) < 2:
        raise DsvccaError("there is one representation in these results: distances need two or more")
    others = ~np.eye(len(numbers.values), dtype=bool)
    check_there(numbers, others)
    warn_of_views(numbers.views[others])
    index = pd.MultiIndex.from_arrays(list(numbers.labels.values()), names=list(numbers.labels))
    return pd.DataFrame(numbers.distances(), index=index, columns=index)


def layer_identification(
    results: xr.Dataset,
    measure: str = "svcca",
    *,
    network: str | Sequence[str] | None = None,
    layer: str = "layer",
    variance: float | None = None,
) -> pd.DataFrame:
    """Return how often the most similar layer of another network is the layer of the same name.

    The sanity check of Kornblith et al. 2019 (section 6.1): of two networks that differ in nothing but where they
    started, each layer should be most similar to its like. Every ordered pair of different networks counts. Of
    measures such as `pwcca_x` and `r2_x` the mean of both ways is taken, as there. Layers as similar as the most
    similar one, to the 1e-6 to which numbers are right, share the hit.

    Parameters
    ----------
    results : xarray.Dataset
        With all layers of all networks compared, as ``pairs="all"`` has them.
    measure : str, default "svcca"
    network : str or sequence of str, optional
        Labels that tell networks apart. Default: all but the layer's.
    layer : str, default "layer"
        The label that says which representations of two networks belong together.
    variance : float, optional
        Which share of variance, where results hold several.

    Returns
    -------
    pandas.DataFrame
        One row a layer, and "all": `accuracy`, the share of hits; `standard_error`, from leaving out one network after
        another (jackknife; NaN of two networks); `count`, how many times a layer was looked for; `chance`, the accuracy
        of guessing.

    Raises
    ------
    DsvccaError
        If a pair has no number, a network lacks a layer, or there are fewer than two networks or layers.

    Warns
    -----
    DsvccaWarning
        If pairs are looked at in different views.
    """
    numbers = numbers_of(results, measure, variance, sided=True)
    networks = networks_of(numbers.labels, network, layer)
    count, depth = networks.places.shape
    if depth < 2:
        raise DsvccaError(f"{layer}={networks.layers[0]!r} is the only one: there is nothing to tell it from")
    owner = np.empty(len(numbers.values), dtype=np.intp)
    owner[networks.places] = np.arange(count)[:, None]
    needed = owner[:, None] != owner[None, :]
    check_there(numbers, needed)
    warn_of_views(numbers.views[needed])
    values = numbers.values if measure not in SIDED else (numbers.values + numbers.values.T) / 2
    every = networks.places.ravel()
    alike = np.where(needed, -values if measure in DISTANCES else values, 0.0)[np.ix_(every, every)]
    alike = alike.reshape(count, depth, count, depth)
    most = alike.max(axis=3, keepdims=True) - ALIKE * np.abs(alike).max(axis=3, keepdims=True)
    among = alike >= most
    own = np.einsum("aibi->iab", among) / among.sum(axis=3).transpose(1, 0, 2)
    hits = np.where(np.eye(count, dtype=bool), 0.0, own)
    hits = np.concatenate([hits, hits.mean(axis=0, keepdims=True)])
    pairs = count * (count - 1)
    found = {
        "accuracy": hits.sum(axis=(1, 2)) / pairs,
        "standard_error": _jackknife(hits),
        "count": [*[pairs] * depth, pairs * depth],
        "chance": 1 / depth,
    }
    return pd.DataFrame(found, index=pd.Index([*networks.layers, ALL], name=layer))


def _jackknife(hits: NumpyArray) -> NumpyArray:
    """Return the standard error of means over ordered pairs of networks, (layer, network, network) with 0 diagonals."""
    count = hits.shape[1]
    if count < 3:
        return np.full(len(hits), np.nan)
    of_each = hits.sum(axis=1) + hits.sum(axis=2)
    without = (hits.sum(axis=(1, 2))[:, None] - of_each) / ((count - 1) * (count - 2))
    found: NumpyArray = np.sqrt((count - 1) * without.var(axis=1))
    return found
