"""What results say of populations: distances, layers found again, clusters of networks, groups of them.

Numbers of pairs that share a network depend on each other: what is left out or permuted here is networks, never pairs.
Distances are made here and never stored.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from dsvcca.arrays import NumpyArray
from dsvcca.errors import DsvccaError, nearest
from dsvcca.networks import (
    DISTANCES,
    SIDED,
    Networks,
    Numbers,
    check_there,
    check_views,
    described,
    networks_of,
    numbers_of,
    warn_of_views,
)

METHODS = ("average", "single", "complete", "weighted")
"""Ways to join clusters that need distances and nothing else."""

ALIKE = 1e-6
"""Numbers that differ by a smaller share of the largest are the same: they are right to so much."""

ROUNDING = 1e-10
"""The same of sums of the same numbers in another order."""

BLOCK = 4096
"""Assignments of groups that are looked at side by side."""

ALL = "all"
"""What stands for all layers together."""


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
    if method not in METHODS:
        raise DsvccaError(
            f"method={method!r} needs more than distances, or is unknown: use one of {', '.join(METHODS)}"
        )
    networks, numbers = _of_like_layers(results, measure, network, layer, variance)
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


def group_test(
    results: xr.Dataset,
    measure: str = "svcca",
    *,
    group: str,
    network: str | Sequence[str] | None = None,
    layer: str = "layer",
    variance: float | None = None,
    permutations: int = 9999,
    seed: int = 0,
) -> pd.DataFrame:
    """Return whether networks of one group are more alike than networks of different groups.

    Each layer is compared with its like in all other networks. If groups mean nothing, networks can exchange them: the
    p-value is the share of all ways to assign them that show a `difference` at least as large. Of more than
    `permutations` ways so many are drawn, and what was observed counts as one more.

    Parameters
    ----------
    results : xarray.Dataset
        With the same layers of all networks compared.
    measure : str, default "svcca"
        One that does not change where x and y are exchanged.
    group : str
        A label of networks, such as model or width; two networks or more of each value.
    network : str or sequence of str, optional
        Labels that tell networks apart. Default: all but the layer's.
    layer : str, default "layer"
        The label that says which representations of two networks belong together.
    variance : float, optional
        Which share of variance, where results hold several.
    permutations : int, default 9999
    seed : int, default 0
        Of what is drawn.

    Returns
    -------
    pandas.DataFrame
        One row a layer, and "all", their mean: `within` and `between`, means of the measure; `difference`, by how much
        networks of one group are more alike (within - between; of distances between - within); `p_value`; `p_family`,
        how likely any of the layers stands out as much (Westfall & Young 1993; of "all", which is one test, the
        p-value); `assignments`, how many ways p-values are shares of.

    Raises
    ------
    DsvccaError
        If a pair has no number, a network lacks a layer or a group, or a group has one network only.
    """
    if not isinstance(permutations, (int, np.integer)) or permutations < 1:
        raise DsvccaError(f"permutations={permutations!r}: give how many, such as 9999")
    networks, numbers = _of_like_layers(results, measure, network, layer, variance)
    codes = _groups(numbers, networks, group)
    others = ~np.eye(len(codes), dtype=bool)
    values = np.where(others, networks.of_layers(numbers.values), 0.0)
    values = np.concatenate([values, values.mean(axis=0, keepdims=True)])
    same = codes[:, None] == codes[None, :]
    sign = -1 if measure in DISTANCES else 1
    assigned = _assignments(codes, permutations, seed)
    blocks = [assigned[start : start + BLOCK] for start in range(0, len(assigned), BLOCK)]
    shown = sign * np.concatenate([_differences(values, block) for block in blocks])
    observed = sign * _differences(values, codes[None, :])
    slack = ROUNDING * np.abs(values).max(axis=(1, 2))
    p_values = (shown >= observed - slack).mean(axis=0)
    spread = shown.std(axis=0)
    spread[spread <= slack] = np.inf  # of a layer that shows the same whatever the groups
    highest = ((shown - shown.mean(axis=0)) / spread)[:, :-1].max(axis=1)
    wanted = ((observed - slack - shown.mean(axis=0)) / spread)[0, :-1]
    found = {
        "within": values[:, same & others].mean(axis=1),
        "between": values[:, ~same].mean(axis=1),
        "difference": observed[0],
        "p_value": p_values,
        "p_family": [*(highest[:, None] >= wanted).mean(axis=0), p_values[-1]],
        "assignments": len(assigned),
    }
    return pd.DataFrame(found, index=pd.Index([*networks.layers, ALL], name=layer))


def _of_like_layers(
    results: xr.Dataset, measure: str, network: str | Sequence[str] | None, layer: str, variance: float | None
) -> tuple[Networks, Numbers]:
    """Return networks, and numbers of which those of like layers of different networks are there."""
    numbers = numbers_of(results, measure, variance)
    networks = networks_of(numbers.labels, network, layer)
    needed = np.zeros(numbers.values.shape, dtype=bool)
    for own in networks.places.T:
        needed[np.ix_(own, own)] = ~np.eye(len(own), dtype=bool)
    check_there(numbers, needed)
    check_views(numbers, networks)
    return networks, numbers


def _jackknife(hits: NumpyArray) -> NumpyArray:
    """Return the standard error of means over ordered pairs of networks, (layer, network, network) with 0 diagonals."""
    count = hits.shape[1]
    if count < 3:
        return np.full(len(hits), np.nan)
    of_each = hits.sum(axis=1) + hits.sum(axis=2)
    without = (hits.sum(axis=(1, 2))[:, None] - of_each) / ((count - 1) * (count - 2))
    found: NumpyArray = np.sqrt((count - 1) * without.var(axis=1))
    return found


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


def _groups(numbers: Numbers, networks: Networks, group: str) -> NumpyArray:
    """Return the group of every network as a number."""
    if group not in numbers.labels:
        raise DsvccaError(f"results have no label {group!r}: {nearest(group, numbers.labels)}")
    own: list[Any] = []
    for key, places in zip(networks.keys, networks.places, strict=True):
        several = list(dict.fromkeys(numbers.labels[group][place] for place in places))
        if len(several) > 1:
            raise DsvccaError(
                f"{described(networks.names, key)} carries {group}={several[0]!r} and {group}={several[1]!r}: "
                "a network is of one group, give a label that its layers share"
            )
        if several[0] is None:
            raise DsvccaError(f"{described(networks.names, key)} has no {group!r}: select() the networks that have one")
        own += several
    there = list(dict.fromkeys(own))
    if len(there) < 2:
        raise DsvccaError(f"all networks are of {group}={there[0]!r}: compare two groups or more")
    for one in there:
        if own.count(one) < 2:
            raise DsvccaError(
                f"{group}={one!r} has one network only, with none to be like: compare more, or leave it out"
            )
    return np.asarray([there.index(one) for one in own])


def _assignments(codes: NumpyArray, permutations: int, seed: int) -> NumpyArray:
    """Return every way to assign groups, or the observed one and so many random ones: (way, network)."""
    sizes = np.bincount(codes).tolist()
    if math.factorial(len(codes)) // math.prod(map(math.factorial, sizes)) <= permutations:
        return _ways(sizes)
    again = np.tile(codes, (permutations, 1))
    return np.concatenate([codes[None, :], np.random.default_rng(seed).permuted(again, axis=1)])


def _ways(sizes: Sequence[int]) -> NumpyArray:
    """Return every way to assign groups of these sizes.

    >>> _ways([1, 2]).tolist()
    [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    """
    total = sum(sizes)
    if len(sizes) == 1:
        return np.zeros((1, total), dtype=np.int64)
    first = np.asarray(list(itertools.combinations(range(total), sizes[0])))
    others = _ways(sizes[1:]) + 1
    left = np.ones((len(first), total), dtype=bool)
    np.put_along_axis(left, first, False, axis=1)
    found = np.zeros((len(first) * len(others), total), dtype=np.int64)
    found[np.repeat(left, len(others), axis=0)] = np.tile(others.ravel(), len(first))
    return found


def _differences(values: NumpyArray, assigned: NumpyArray) -> NumpyArray:
    """Return the mean within groups minus the mean between them, (way, layer), of values with 0 diagonals."""
    total = assigned.shape[1] * (assigned.shape[1] - 1)
    within, pairs = np.zeros((len(assigned), len(values))), 0
    for code in range(assigned.max() + 1):
        members = (assigned == code).astype(np.float64)
        pairs += int(members[0].sum()) * (int(members[0].sum()) - 1)
        for place, one in enumerate(values):
            within[:, place] += ((members @ one) * members).sum(axis=1)
    found: NumpyArray = within / pairs - (values.sum(axis=(1, 2)) - within) / (total - pairs)
    return found
