"""What a page holds of results: labels, numbers of every pair, what they mean and what is to be known of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from dsvcca.activations.labels import label_order
from dsvcca.errors import DsvccaError, nearest
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.measures import DEFAULT, MEASURES
from dsvcca.reports.packing import Packed, codes, packed, tabled
from dsvcca.results.dataset import CORRELATIONS, VIEW
from dsvcca.results.tables import check_results

EXACT = 300
"""Representations on a side up to which numbers are float32, and correlations are on the page."""

MOST = 5000
"""Representations on a side that a page can hold."""

ROOM = 12_500_000
"""Characters of numbers on a page, beyond which what was not asked for by name is left out: 14 MB with all else."""

ABOUT = (
    ("datapoints", "datapoints"),
    ("pairs", "pairs"),
    ("views", "views"),
    ("rank_rule", "directions kept"),
    ("center", "centring by frequency"),
    ("precision", "precision"),
    ("variant", "definitions"),
    ("datapoint_ids", "datapoint ids"),
    ("integrity", "integrity"),
    ("dsvcca_version", "dsvcca"),
    ("numerics", "numerics"),
)
"""What results say of themselves that a page shows, and what it is called there."""


@dataclass
class Contents:
    """What a page holds.

    Attributes
    ----------
    said : dict
        What becomes JSON: labels, and how each array lies in `texts`.
    texts : list of str
        Packed numbers.
    """

    said: dict[str, Any]
    texts: list[str] = field(default_factory=list)

    def add(self, one: Packed) -> dict[str, Any]:
        """Put the numbers of an array among the texts, and return how they lie there."""
        self.texts.append(one["text"])
        return {**one, "text": len(self.texts) - 1}

    @property
    def size(self) -> int:
        """Characters of all texts."""
        return sum(map(len, self.texts))


def contents_of(results: xr.Dataset, measures: str | Sequence[str] | None, title: str) -> Contents:
    """Return what a page shows of results; parameters and errors as of `dsvcca.report`."""
    check_results(results)
    if VIEW not in results:
        raise DsvccaError(
            "these results compare no pairs of layers, which is what a report shows: see to_frame(results)"
        )
    results = results.transpose("x", "y", ...)
    shape = results.sizes["x"], results.sizes["y"]
    if max(shape) > MOST:
        raise DsvccaError(
            f"these results have {max(shape):,} representations on a side, and a page holds {MOST:,} at most: select() "
            "some of them (--where on the command line)"
        )
    chosen, lacking = _chosen(results, measures)
    same = bool(np.array_equal(results["x"].values, results["y"].values))
    exactly = max(shape) <= EXACT
    views = results[VIEW].values
    names = label_order({str(c)[2:] for c in results.coords if str(c).startswith("x_")})
    found = Contents(
        {
            "title": title,
            "same": same,
            "exactly": exactly,
            "labels": names,
            "x": [_label(results, f"x_{name}") for name in names],
            "y": [_label(results, f"y_{name}") for name in names],
            "places": [results[side].values.tolist() for side in "xy"],
            "views": ["", *results[VIEW].attrs["flag_meanings"].split()],
            "about": [[said, _text(results.attrs[name])] for name, said in ABOUT if results.attrs.get(name)],
            "warnings": list(results.attrs.get("warnings", [])),
            "failed": list(results.attrs.get("failed", [])),
            "variances": _list_of(results, "variance"),
            "ridges": _list_of(results, "ridge"),
            "numbers": [],
            "left_out": [],
            "without": lacking,
            "correlations": None,
        }
    )
    found.said["view"] = found.add(codes(views, same=same))
    ranks = [[_rank(results, side, place, views, same, found) for side in "xy"] for place in _places(results, "rank_x")]
    found.said["ranks"] = [[one.tolist() if isinstance(one, np.ndarray) else one for one in sides] for sides in ranks]
    _add_numbers(results, chosen, measures is None, same, exactly, ranks, found)
    if CORRELATIONS in results:
        _add_correlations(results, same, exactly, found)
    return found


def _chosen(results: xr.Dataset, measures: str | Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Return the measures of a page, those that come by default first, and what else results hold."""
    there = [name for name in MEASURES if name in results]
    if measures is None:
        return sorted(there, key=lambda name: name not in DEFAULT), []
    wanted = [measures] if isinstance(measures, str) else list(measures)
    for name in wanted:
        if name not in there:
            raise DsvccaError(f"results have no measure {name!r}: {nearest(name, there)}")
    if not wanted:
        raise DsvccaError(f"measures is empty: choose from {', '.join(there)}")
    with_chance = [*wanted, *(MEASURES[name].independent for name in wanted)]
    chosen = [name for name in dict.fromkeys(with_chance) if isinstance(name, str) and name in there]
    return chosen, [name for name in there if name not in chosen]


def _label(results: xr.Dataset, name: str) -> dict[str, Any]:
    """Return one label of a side: its different values as text, which each has, and whether they are numbers."""
    values = results[name].values.tolist() if name in results.coords else [""] * results.sizes[name[0]]
    values = ["" if value != value else value for value in values]
    order = {value: place for place, value in enumerate(dict.fromkeys(values))}
    return {
        "values": [_plain(value) for value in order],
        "codes": [order[value] for value in values],
        "number": name in results.coords and results[name].dtype.kind in "iuf",
    }


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _list_of(results: xr.Dataset, dim: str) -> list[float]:
    return [float(one) for one in results[dim].values] if dim in results.dims else []


def _places(results: xr.Dataset, name: str) -> list[dict[str, int]]:
    """Return where each plane of a variable lies: one of every variance and ridge that it has."""
    found: list[dict[str, int]] = [{}]
    for dim in ("variance", "ridge"):
        if dim in results[name].dims:
            found = [{**one, dim: k} for one in found for k in range(results.sizes[dim])]
    return found


def _rank(
    results: xr.Dataset, side: str, place: dict[str, int], views: NumpyArray, same: bool, found: Contents
) -> NumpyArray | dict[str, Any]:
    """Return ranks of one side: one a representation where that says all, else packed as they are."""
    values = results[f"rank_{side}"].isel(place).values
    axis = 1 if side == "x" else 0
    most = values.max(axis=axis, initial=0)
    if np.array_equal(values, np.where(views > 0, np.expand_dims(most, axis), 0)):
        return np.asarray(most)
    return found.add(packed(values.astype(np.float64), same=same, exactly=True))


def _add_numbers(
    results: xr.Dataset,
    chosen: Sequence[str],
    by_default: bool,
    same: bool,
    exactly: bool,
    ranks: Sequence[Sequence[Any]],
    found: Contents,
) -> None:
    """Add measures until the page is full, or all that were asked for by name; of each all variances, or none."""
    views = results[VIEW].values
    numbers: list[dict[str, Any]] = found.said["numbers"]
    for name in chosen:
        texts, entries = len(found.texts), len(numbers)
        for place in _places(results, name):
            values = results[name].isel(place).values.astype(np.float64)
            one: dict[str, Any] = {"name": name, **place}
            one |= {"kind": MEASURES[name].kind, "definition": results[name].attrs.get("definition", "")}
            one["independent"] = MEASURES[name].independent
            _add_one(values, one, views, ranks[place.get("variance", 0) if len(ranks) > 1 else 0], same, exactly, found)
            numbers.append(one)
        if by_default and entries and found.size > ROOM and len(found.texts) > texts:
            del found.texts[texts:], numbers[entries:]
            found.said["left_out"].append(name)


def _add_one(
    values: NumpyArray,
    one: dict[str, Any],
    views: NumpyArray,
    ranks: Sequence[Any],
    same: bool,
    exactly: bool,
    found: Contents,
) -> None:
    """Say how the numbers of a measure lie: as a table by ranks, as the mirror of others, or packed."""
    values = np.where(views > 0, values, np.nan)
    finite = values[np.isfinite(values)]
    one["range"] = [float(finite.min()), float(finite.max())] if finite.size else [0.0, 1.0]
    one["mean"] = float(finite.mean()) if finite.size else None
    if all(isinstance(side, np.ndarray) for side in ranks):
        table = tabled(values, views, (ranks[0], ranks[1]))
        if table is not None:
            one["table"] = table
            return
    if same and one["name"].endswith("_y"):
        for place, before in enumerate(found.said["numbers"]):
            alike = all(before.get(dim) == one.get(dim) for dim in ("variance", "ridge"))
            if alike and before["name"] == f"{one['name'][:-1]}x" and before.get("packed", {}).get("form") == "whole":
                one["mirror"] = place
                return
    one["packed"] = found.add(packed(values, same=same, exactly=exactly))


def _add_correlations(results: xr.Dataset, same: bool, exactly: bool, found: Contents) -> None:
    """Add the correlations of every pair, where there is room."""
    if not exactly:
        found.said["left_out"].append(CORRELATIONS)
        return
    planes = []
    for place in _places(results, CORRELATIONS):
        values = results[CORRELATIONS].isel(place).values
        most = int(np.isfinite(values).any(axis=(0, 1)).sum())
        one = packed(values[:, :, :most], same=same, exactly=False)
        if found.size + len(one["text"]) > ROOM:
            found.said["left_out"].append(CORRELATIONS)
            return
        planes.append(found.add(one))
    found.said["correlations"] = planes
