"""Groups of networks: whether they differ, and which of two is closer together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from dsvcca.activations.labels import Label
from dsvcca.errors import DsvccaError, nearest
from dsvcca.maths.arrays import NumpyArray
from dsvcca.results.tables import select
from dsvcca.statistics.doubts import warn_of_groups
from dsvcca.statistics.like_layers import ALL, of_like_layers
from dsvcca.statistics.networks import (
    DISTANCES,
    Networks,
    Numbers,
    described,
)
from dsvcca.statistics.permutations import (
    first_minus_second,
    jackknife,
    means_within,
    permutation_test,
    within_minus_between,
)


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
    p-value is the share of all ways to assign them that show a `difference` at least as large (one-sided). Of more than
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

    Warns
    -----
    DsvccaWarning
        If groups keep unlike numbers of directions, or networks that differ in their group alone are more alike than
        others of different groups: those that began at the same weights cannot exchange their groups.
    """
    networks, numbers = of_like_layers(results, measure, network, layer, variance)
    codes = _groups(numbers, networks, group)
    warn_of_groups(networks, numbers, group, codes)
    values = _and_their_mean(networks, numbers)
    same, others = codes[:, None] == codes[None, :], ~np.eye(len(codes), dtype=bool)
    sign = -1 if measure in DISTANCES else 1
    found = permutation_test(values, codes, lambda *given: sign * within_minus_between(*given), permutations, seed)
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
        Its values: are networks of `first` more alike among themselves than networks of `second`? One-sided: choose
        before you look.

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

    Warns
    -----
    DsvccaWarning
        As `group_test`.
    """
    for name, value in (("first", first), ("second", second)):
        if not isinstance(value, (str, int, float, bool, np.generic)):
            raise DsvccaError(f"{name}={value!r}: give one value of the label {group!r}")
    if first == second:
        raise DsvccaError(f"first and second are both {first!r}: give two values of the label {group!r}")
    both = {group: [first, second]}
    networks, numbers = of_like_layers(select(results, x=both, y=both), measure, network, layer, variance)
    own = [numbers.labels[group][places[0]] for places in networks.places]
    codes = _groups(numbers, networks, group)
    codes = (codes != codes[own.index(first)]).astype(np.int64)
    warn_of_groups(networks, numbers, group, codes)
    values = _and_their_mean(networks, numbers)
    sign = -1 if measure in DISTANCES else 1
    found = permutation_test(values, codes, lambda *given: sign * first_minus_second(*given), permutations, seed)
    shown = dict(zip(("first", "second"), means_within(values, codes[None, :]), strict=True))
    shown = {name: means[0] for name, means in shown.items()}
    found["error"] = jackknife(
        codes, lambda kept: first_minus_second(values[:, kept][:, :, kept], codes[None, kept])[0]
    )
    order = ["first", "second", "difference", "error", "p_value", "p_family", "assignments"]
    return pd.DataFrame({**shown, **found}, index=pd.Index([*networks.layers, ALL], name=layer))[order]


def _and_their_mean(networks: Networks, numbers: Numbers) -> NumpyArray:
    """Return the numbers of each layer, and their mean over layers, (layer + 1, network, network) with 0 diagonals."""
    values = np.where(np.eye(len(networks.keys), dtype=bool), 0.0, networks.of_layers(numbers.values))
    return np.concatenate([values, values.mean(axis=0, keepdims=True)])


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
