"""Results as numbers between networks: which there are, what is read of them, and what is refused.

A network is what carries the same labels but for its layer; what is asked of networks is asked of all of their layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from dsvcca.activations.labels import describe, label_order
from dsvcca.errors import DsvccaError, DsvccaWarning, nearest
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.measures import MEASURES, exchanged_name
from dsvcca.progress import waiting
from dsvcca.results.dataset import VIEW
from dsvcca.results.tables import label_values, views_of

SYMMETRIC = tuple(name for name in MEASURES if exchanged_name(name) == name)
"""Measures that do not change where x and y are exchanged."""

SIMILARITIES = tuple(name for name in SYMMETRIC if MEASURES[name].kind == "similarity")
"""Of these those that are 1 of what is the same, and 0, or below it by chance, of what shares nothing."""

DISTANCES = tuple(name for name in SYMMETRIC if MEASURES[name].kind == "distance")
"""And those that are metrics."""

SIDED = {name: "pwcca_mean" if name in ("pwcca_x", "pwcca_y") else None for name in MEASURES if name not in SYMMETRIC}
"""Similarities that change where x and y are exchanged, and the measure that is the mean of both ways."""

AGAIN = ("step", "position")
"""Labels in which a network differs from itself."""


@dataclass(frozen=True)
class Numbers:
    """A measure of all representations with each other.

    Attributes
    ----------
    measure : str
    labels : dict
        Label to its values, one for each representation; None where it is missing.
    values : (representation, representation) float64
    views : (representation, representation) object
        How they were looked at; "" where they were not.
    ranks : (representation, representation) float64
        How many directions the first of two keeps, where they meet; NaN where results do not say so.
    failed : tuple of str
        Which representations could not be compared, and why.
    order : list of int
        Where the representations stand on y of the results.
    """

    measure: str
    labels: dict[str, list[Any]]
    values: NumpyArray
    views: NumpyArray
    ranks: NumpyArray
    failed: tuple[str, ...]
    order: list[int]

    def named(self, place: int) -> str:
        """Return the labels of a representation as people write them."""
        return described(list(self.labels), [own[place] for own in self.labels.values()])

    def distances(self) -> NumpyArray:
        """Return how far representations are from each other, 0 on the diagonal."""
        found = self.values.copy() if self.measure in DISTANCES else np.maximum(1 - self.values, 0.0)
        np.fill_diagonal(found, 0.0)
        return found


@dataclass(frozen=True)
class Networks:
    """Networks that have the same layers.

    Attributes
    ----------
    names : tuple of str
        Labels that tell them apart.
    keys : tuple of tuple
        Their values, in ascending order: what is found does not depend on the order of representations.
    layers : tuple
        In the order in which they appear in the results.
    places : (network, layer) int
        Where each representation is.
    """

    names: tuple[str, ...]
    keys: tuple[tuple[Any, ...], ...]
    layers: tuple[Any, ...]
    places: NumpyArray

    def index(self) -> pd.Index[Any]:
        """Return the networks as the index of a table."""
        found: pd.Index[Any] = pd.MultiIndex.from_tuples(self.keys, names=self.names)
        return found.get_level_values(0) if len(self.names) == 1 else found

    def of_layers(self, values: NumpyArray) -> NumpyArray:
        """Return the numbers of each layer with its like, (layer, network, network)."""
        return np.stack([values[np.ix_(own, own)] for own in self.places.T])


@waiting("read results")
def numbers_of(results: xr.Dataset, measure: str, variance: float | None, *, sided: bool = False) -> Numbers:
    """Return a measure of all pairs; one that changes where x and y are exchanged only if it may be `sided`.

    Raises
    ------
    DsvccaError
        If there is no such measure, it does not say how alike two are, or x and y are not the same representations.
    """
    if not isinstance(measure, str):
        raise DsvccaError(f"measure={measure!r}: give the name of one, such as 'svcca'")
    known = (*SIMILARITIES, *DISTANCES, *(SIDED if sided else ()))
    there = [name for name in known if name in results]
    if measure in SIDED and not sided:
        both = SIDED[measure]
        do = "there is no symmetric one of it, use another measure"
        if both is not None:
            do = f"use {both!r}" + ("" if both in results else f", which plan_comparisons(measures=[{both!r}]) adds")
        raise DsvccaError(f"{measure} changes where x and y are exchanged, so it makes no distance: {do}")
    if measure not in known and (measure in MEASURES or measure in results):
        do = f"use one of {', '.join(there or known)}"
        raise DsvccaError(f"{measure} does not say how alike two representations are: {do}")
    if measure not in there:
        do = nearest(measure, there) if there else "they hold none that says how alike two representations are"
        raise DsvccaError(f"results have no measure {measure!r}: {do}")
    names = label_order(str(c)[2:] for c in results.coords if str(c).startswith("x_"))
    sides = [{name: label_values(results, f"{side}_{name}") for name in names} for side in "xy"]
    rows, columns = ({key: i for i, key in enumerate(zip(*side.values(), strict=True))} for side in sides)
    if len(rows) < results.sizes["x"] or len(columns) < results.sizes["y"]:
        raise DsvccaError("several representations of these results carry the same labels: they cannot be told apart")
    if only := next((key for key in (*rows, *columns) if key not in rows or key not in columns), None):
        raise DsvccaError(f"{described(names, only)} is on one side of these results only: select() the same on both")
    order = [columns[key] for key in rows]
    values = _of_variance(results, measure, variance).transpose("x", "y").values.astype(np.float64)[:, order]
    views = np.full(values.shape, "", dtype=object)
    if VIEW in results:
        views = views_of(results)[:, order]
    ranks = np.full(values.shape, np.nan)
    if "rank_x" in results:
        ranks = _of_variance(results, "rank_x", variance).transpose("x", "y").values.astype(np.float64)[:, order]
    return Numbers(measure, sides[0], values, views, ranks, tuple(results.attrs.get("failed", ())), order)


def networks_of(labels: Mapping[str, list[Any]], network: str | Sequence[str] | None, layer: str) -> Networks:
    """Return the networks that representations with these labels are of.

    Raises
    ------
    DsvccaError
        If there are fewer than two, one lacks a layer, or has it twice, or is there at several steps.
    """
    chosen = [network] if isinstance(network, str) else list(labels if network is None else network)
    for name in (layer, *chosen):
        if name not in labels:
            raise DsvccaError(f"results have no label {name!r}: {nearest(name, labels)}")
    if network is not None and layer in chosen:
        raise DsvccaError(f"network={network!r} holds {layer!r}, which tells layers of a network apart: leave it out")
    names = tuple(label_order(set(chosen) - {layer, *(("layer",) if network is None else ())}))
    if network is None:
        _check_not_again(labels, names)
    keys = list(zip(*(labels[name] for name in names), strict=True)) if names else [()] * len(labels[layer])
    found: dict[tuple[Any, Any], int] = {}
    for i, (key, own) in enumerate(zip(keys, labels[layer], strict=True)):
        if own is None:
            raise DsvccaError(f"a representation of {_network(names, key)} has no {layer!r}: select() those that do")
        if (key, own) in found:
            other = found[key, own]
            name, a, b = next((n, v[other], v[i]) for n, v in labels.items() if v[other] != v[i])
            raise DsvccaError(
                f"{_network(names, key)} has two of {layer}={own!r}, with {name}={a!r} and {name}={b!r}: select() one "
                f"of them, or tell networks apart by it, network={[*names, name]}"
            )
        found[key, own] = i
    layers = tuple(dict.fromkeys(labels[layer]))
    ascending = tuple(sorted(set(keys), key=lambda key: [(value is not None, value or 0) for value in key]))
    if len(ascending) < 2:
        raise DsvccaError(f"all representations are of {_network(names, ascending[0])}: compare several networks")
    for key in ascending:
        if missing := [own for own in layers if (key, own) not in found]:
            raise DsvccaError(
                f"{_network(names, key)} has no {layer}={missing[0]!r}, which other networks have: select() the "
                "networks, or the layers, of which all are there"
            )
    return Networks(names, ascending, layers, np.asarray([[found[key, own] for own in layers] for key in ascending]))


def check_there(numbers: Numbers, needed: NumpyArray) -> None:
    """Raise if a number that is needed, (representation, representation) bool, is not there."""
    holes = np.triu(needed & ~(np.isfinite(numbers.values) & np.isfinite(numbers.values.T)))
    if holes.any():
        a, b = (numbers.named(i) for i in np.argwhere(holes)[0])
        do = "compare them too, for instance with pairs='all', or select() what was all compared"
        if numbers.failed:
            do = (
                f"{len(numbers.failed)} could not be compared ({numbers.failed[0]}): mend them and compare again, "
                "select() the others, or plan with a store.select() that leaves them out"
            )
        raise DsvccaError(
            f"{holes.sum()} of {np.triu(needed).sum()} pairs have no {numbers.measure}, the first is {a} with {b}: {do}"
        )


def check_views(numbers: Numbers, networks: Networks) -> None:
    """Raise if a layer is looked at in one way in some networks and in another way in others."""
    for own, views in zip(networks.layers, networks.of_layers(numbers.views), strict=True):
        several = sorted(set(views[~np.eye(len(views), dtype=bool)].tolist()))
        if len(several) > 1:
            raise DsvccaError(
                f"{own} is compared as view {several[0]!r} in some networks and as {several[1]!r} in others, whose "
                "numbers are different things: select() networks of one kind, or plan with view="
            )


def warn_of_views(views: NumpyArray) -> None:
    """Warn of several views, in the name of what called the caller."""
    several = sorted(set(views.tolist()))
    if len(several) > 1:
        sentence = (
            f"pairs are looked at in different views ({', '.join(several)}), whose numbers are different things: what "
            "is nearest may be so by its view; a plan with view= has one"
        )
        warnings.warn(sentence, DsvccaWarning, stacklevel=3)


def described(names: Sequence[str], values: Sequence[Any]) -> str:
    """Return labels as people write them, without those that are missing."""
    return describe({name: value for name, value in zip(names, values, strict=True) if value is not None})


def _network(names: Sequence[str], key: Sequence[Any]) -> str:
    return described(names, key) or "one network"


def _of_variance(results: xr.Dataset, measure: str, variance: float | None) -> xr.DataArray:
    """Return a measure of one share of variance, over x and y."""
    numbers = results[measure]
    kept = results["variance"].values if "variance" in results.coords else results.attrs.get("variance", [])
    held = np.atleast_1d(kept).tolist()
    if variance is not None and variance not in held:
        raise DsvccaError(f"these results hold no variance={variance!r}: {nearest(variance, held)}")
    if "variance" in numbers.dims:
        if variance is None and len(held) > 1:
            raise DsvccaError(f"these results hold variances {held}: say which one, variance={held[0]}")
        numbers = numbers.isel(variance=0 if variance is None else held.index(variance))
    for name in [str(name) for name in numbers.dims if name not in ("x", "y")]:
        several = results[name].values.tolist()
        if len(several) > 1:
            raise DsvccaError(f"these results hold several {name}, {several}: results.sel({name}=...) chooses one")
        numbers = numbers.isel({name: 0})
    return numbers


def _check_not_again(labels: Mapping[str, list[Any]], names: Sequence[str]) -> None:
    """Raise if what differs in nothing but its step or position would count as several networks."""
    fewer = [name for name in names if name not in AGAIN]
    seen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for i in range(len(next(iter(labels.values())))):
        key, own = tuple(labels[name][i] for name in fewer), {n: labels[n][i] for n in AGAIN if n in names}
        for name, first in seen.setdefault(key, own).items():
            if first != own[name]:
                raise DsvccaError(
                    f"{_network(fewer, key)} is there with {name}={first!r} and {name}={own[name]!r}, which are not "
                    f"two networks: select() one {name}, or, if they are to count as such, say network={list(names)}"
                )
