"""What results say of populations: distances, layers found again, clusters of networks, groups of them.

Numbers of pairs that share a network depend on each other: what is left out or permuted here is networks, never pairs.
Distances are made here and never stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from dsvcca.arrays import NumpyArray
from dsvcca.errors import DsvccaError, nearest
from dsvcca.exchanging import exchanged, first_minus_second, left_out, means_within, within_minus_between
from dsvcca.labels import Label
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
from dsvcca.tables import select

METHODS = ("average", "single", "complete", "weighted")
"""Ways to join clusters that need distances and nothing else."""

ALIKE = 1e-6
"""Numbers that differ by a smaller share of the largest are the same: they are right to so much."""

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
        At most 1,000,000.
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
    networks, numbers = _of_like_layers(results, measure, network, layer, variance)
    codes = _groups(numbers, networks, group)
    values = _and_their_mean(networks, numbers)
    same, others = codes[:, None] == codes[None, :], ~np.eye(len(codes), dtype=bool)
    sign = -1 if measure in DISTANCES else 1
    found = exchanged(values, codes, lambda *given: sign * within_minus_between(*given), permutations, seed)
    shown = {"within": values[:, same & others].mean(axis=1), "between": values[:, ~same].mean(axis=1)}
    return pd.DataFrame({**shown, **found}, index=pd.Index([*networks.layers, ALL], name=layer))


def cohesion_test(
    results: xr.Dataset,
    measure: str = "svcca",
    *,
    group: str,
    first: Label,
    second: Label,
    network: str | Sequence[str] | None = None,
    layer: str = "layer",
    variance: float | None = None,
    permutations: int = 9999,
    seed: int = 0,
) -> pd.DataFrame:
    """Return whether networks of one group are more alike among themselves than those of another are.

    `group_test` asks whether groups differ from each other; this asks which of two is closer together (Morcos et al.
    2018, figure 3: networks that generalise, and networks that memorise). If networks can exchange their groups, the
    p-value is the share of all ways to assign them that show a `difference` at least as large.

    Parameters
    ----------
    results, measure, network, layer, variance, permutations, seed
        As `group_test`. Networks of other groups than the two are left out.
    group : str
        A label of networks; two networks or more of each of both.
    first, second : label
        Its values: are networks of `first` more alike among themselves than networks of `second`?

    Returns
    -------
    pandas.DataFrame
        One row a layer, and "all", their mean: `first` and `second`, means of the measure within each group;
        `difference`, by how much networks of the first are more alike (first - second; of distances second - first);
        its standard `error`, from leaving out one network after another (NaN below three of a group); `p_value`,
        `p_family`, `assignments` as in `group_test`.

    Notes
    -----
    The p-value is that of networks which can be exchanged. It is small too often where groups are as close together,
    but lie apart: other assignments mix them, and then differ less. (Of two groups of five that are apart by ten times
    their own spread it is below .05 in a fifth of all cases.) Where `group_test` tells the groups apart, a difference
    counts that is several times its `error` as well.

    Raises
    ------
    DsvccaError
        If a pair has no number, a network lacks a layer, or a group is not there or has one network only.
    """
    for name, value in (("first", first), ("second", second)):
        if not isinstance(value, (str, int, float, bool, np.generic)):
            raise DsvccaError(f"{name}={value!r}: give one value of the label {group!r}")
    if first == second:
        raise DsvccaError(f"first and second are both {first!r}: give two values of the label {group!r}")
    both = {group: [first, second]}
    networks, numbers = _of_like_layers(select(results, x=both, y=both), measure, network, layer, variance)
    own = [numbers.labels[group][places[0]] for places in networks.places]
    codes = _groups(numbers, networks, group)
    codes = (codes != codes[own.index(first)]).astype(np.int64)
    values = _and_their_mean(networks, numbers)
    sign = -1 if measure in DISTANCES else 1
    found = exchanged(values, codes, lambda *given: sign * first_minus_second(*given), permutations, seed)
    shown = dict(zip(("first", "second"), means_within(values, codes[None, :]), strict=True))
    shown = {name: means[0] for name, means in shown.items()}
    found["error"] = left_out(values, codes, first_minus_second)
    order = ["first", "second", "difference", "error", "p_value", "p_family", "assignments"]
    return pd.DataFrame({**shown, **found}, index=pd.Index([*networks.layers, ALL], name=layer))[order]


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


def _and_their_mean(networks: Networks, numbers: Numbers) -> NumpyArray:
    """Return the numbers of each layer, and their mean over layers, (layer + 1, network, network) with 0 diagonals."""
    values = np.where(np.eye(len(networks.keys), dtype=bool), 0.0, networks.of_layers(numbers.values))
    return np.concatenate([values, values.mean(axis=0, keepdims=True)])


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
