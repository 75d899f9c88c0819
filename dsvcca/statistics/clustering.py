"""Clusters of networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray
from dsvcca.statistics.like_layers import of_like_layers

METHODS = ("average", "single", "complete", "weighted")
"""Ways to join clusters that need distances and nothing else."""


class Clusters(NamedTuple):
    """Networks by how alike they are.

    Attributes
    ----------
    networks : pandas.DataFrame
        One row a network: the number of its `cluster`, and its `silhouette`, from -1 (it is nearer to another cluster)
        to 1; 0 where it is alone.
    linkage : (networks - 1, 4) float64
        What was joined, as SciPy writes it; its leaves are the rows of `networks`.
    silhouettes : pandas.Series
        Mean silhouette of every number of clusters.
    """

    networks: pd.DataFrame
    linkage: NumpyArray
    silhouettes: pd.Series[float]


def clusters(
    results: xr.Dataset,
    measure: str = "svcca",
    *,
    network: str | Sequence[str] | None = None,
    layer: str = "layer",
    count: int | None = None,
    method: str = "average",
    variance: float | None = None,
) -> Clusters:
    """Return which networks came to like solutions (Morcos et al. 2018, figure 5, of one layer).

    Two networks are as far apart as their layers of the same name are on average (by `procrustes`, in units of the
    activations, large layers count most). The nearest are joined first.

    Parameters
    ----------
    results : xarray.Dataset
        With the same layers of all networks compared. `select` one layer on both sides for that layer alone.
    measure : str, default "svcca"
        One that does not change where x and y are exchanged.
    network : str or sequence of str, optional
        Labels that tell networks apart. Default: all but the layer's.
    layer : str, default "layer"
        The label that says which representations of two networks belong together.
    count : int, optional
        How many clusters. Default: as many, two or more, as have the largest mean silhouette (Rousseeuw 1987). There is
        always one such number: how large the silhouette is says whether there are clusters.
    method : {"average", "single", "complete", "weighted"}, default "average"
        How far apart clusters are, as SciPy calls it.
    variance : float, optional
        Which share of variance, where results hold several.

    Returns
    -------
    Clusters
        `networks` in the order of their labels, with numbers of clusters, 1 that of the first network; `linkage`;
        `silhouettes`.

    Raises
    ------
    DsvccaError
        If a pair has no number, a network lacks a layer, or there are too few networks.
    """
    from scipy.cluster import hierarchy  # a tenth of the time that this package takes to import
    from scipy.spatial.distance import squareform

    if method not in METHODS:
        raise DsvccaError(
            f"method={method!r} needs more than distances, or is unknown: use one of {', '.join(METHODS)}"
        )
    networks, numbers = of_like_layers(results, measure, network, layer, variance)
    total = len(networks.keys)
    if count is not None and not (isinstance(count, (int, np.integer)) and 1 <= count <= total):
        raise DsvccaError(f"count={count!r}: there are {total} networks, use 1 to {total}, or leave it out")
    if count is None and total < 3:
        raise DsvccaError("of two networks no number of clusters is better than another: give count=")
    apart = networks.of_layers(numbers.distances()).mean(axis=0)
    linkage = hierarchy.linkage(squareform(apart, checks=False), method)
    means = {k: float(_silhouette(apart, _cut(linkage, k)).mean()) for k in range(2, total)}
    chosen = max(means, key=lambda k: means[k]) if count is None else count
    own = _cut(linkage, chosen)
    found = pd.DataFrame({"cluster": own + 1, "silhouette": _silhouette(apart, own)}, index=networks.index())
    silhouettes = pd.Series(means, index=pd.Index(means, name="count", dtype=int), name="silhouette", dtype=float)
    return Clusters(found, linkage, silhouettes)


def _cut(linkage: NumpyArray, count: int) -> NumpyArray:
    """Return the cluster of every leaf where so many are left, 0 that of the first leaf."""
    leaves = len(linkage) + 1
    found = np.empty(leaves, dtype=np.int64)
    members = {i: [i] for i in range(leaves)}
    for place, (a, b) in enumerate(linkage[: leaves - count, :2].astype(int).tolist()):
        members[leaves + place] = members.pop(a) + members.pop(b)
    for number, own in enumerate(sorted(members.values(), key=min)):
        found[own] = number
    return found


def _silhouette(apart: NumpyArray, own: NumpyArray) -> NumpyArray:
    """Return how much nearer everyone is to its own cluster than to the next, as a share; 0 of who is alone.

    >>> _silhouette(np.array([[0, 1, 4], [1, 0, 4], [4, 4, 0.0]]), np.array([0, 0, 1])).tolist()
    [0.75, 0.75, 0.0]
    """
    inside = own[:, None] == np.arange(own.max() + 1)
    sizes = inside.sum(axis=0)
    sums = apart @ inside
    within = sums[inside] / np.maximum(sizes[own] - 1, 1)
    next_one = np.where(inside, np.inf, sums / sizes).min(axis=1)
    larger = np.maximum(within, next_one)
    known = (sizes[own] > 1) & (larger > 0) & np.isfinite(larger)
    found: NumpyArray = np.zeros(len(own))
    found[known] = (next_one - within)[known] / larger[known]
    return found
