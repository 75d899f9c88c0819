"""Results in part and as tables: chosen by labels, one row a pair, a target, a frequency or a correlation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from dsvcca.activations.labels import Labels, values_of
from dsvcca.errors import DsvccaError, nearest
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.measures import MEASURES
from dsvcca.plans.pairs import LEAVING_OUT
from dsvcca.progress import waiting
from dsvcca.results.dataset import BY_FREQUENCY, CORRELATIONS, FLOOR, INNER, R2, VIEW


def select(
    results: xr.Dataset, *, x: Mapping[str, Any] | None = None, y: Mapping[str, Any] | None = None
) -> xr.Dataset:
    """Return the part of results whose x and y carry the given labels.

    Parameters
    ----------
    results : xarray.Dataset
    x, y : mapping, optional
        Label to one value or a list of values, without the ``x_`` and ``y_``; None stands for those without it.

    Raises
    ------
    DsvccaError
        If a label or a value is nowhere in the results.

    Examples
    --------
    ``select(results, x={"seed": 0}, y={"seed": 0, "step": 1000})``
    """
    check_results(results)
    chosen = {}
    for side, wanted in (("x", x or {}), ("y", y or {})):
        if side not in results.sizes:
            if wanted:
                raise DsvccaError(f"these results have no {side}, since only targets were met: leave {side}= out")
            continue
        keep = np.ones(results.sizes[side], dtype=bool)
        for name, value in wanted.items():
            coordinate = f"{side}_{name}"
            if coordinate not in results.coords:
                known = [str(c)[2:] for c in results.coords if str(c).startswith(f"{side}_")]
                raise DsvccaError(f"results have no label {name!r}: {nearest(name, known)}")
            have = label_values(results, coordinate)  # compared as Python does: floats and integers exactly
            values = [None if one != one or one == "" else one for one in values_of(value)]
            for one in values:
                if one not in have:
                    known = [label for label in have if label is not None]
                    raise DsvccaError(f"nothing in these results has {name}={one!r}: {nearest(one, known)}")
            keep &= np.asarray([label in values for label in have])
        if not keep.any():
            raise DsvccaError(f"nothing in these results has all of {dict(wanted)}: leave some of the labels out")
        chosen[side] = np.flatnonzero(keep)
    return results.isel(chosen)


def label_values(results: xr.Dataset, coordinate: str) -> list[Any]:
    """Return a label of every representation of one side, None where it is missing."""
    return [None if value != value or value == "" else value for value in results[coordinate].values.tolist()]


def views_of(results: xr.Dataset) -> NumpyArray:
    """Return how every pair was looked at, (x, y) object; "" where it was not compared."""
    names = np.asarray(["", *results[VIEW].attrs["flag_meanings"].split()], dtype=object)
    found: NumpyArray = names[results[VIEW].transpose("x", "y").values]
    return found


def labels_of(results: xr.Dataset, side: str = "x") -> list[Labels]:
    """Return the labels of every representation of one side; a missing one is left out."""
    names = [str(c) for c in results.coords if str(c).startswith(f"{side}_")]
    rows = zip(*(label_values(results, name) for name in names), strict=True)
    return [{name[2:]: value for name, value in zip(names, row, strict=True) if value is not None} for row in rows]


def check_results(results: Any) -> None:
    """Raise if something was given that is not results."""
    if not isinstance(results, xr.Dataset):
        raise DsvccaError(f"a {type(results).__name__} was given instead of results: open_results(path) first")
    if not {"x", "rank_x"} <= {*results.dims, *results.variables} and R2 not in results:
        raise DsvccaError(
            "this dataset is no results of a comparison, or only a slice of them: select() keeps both sides"
        )


@waiting("make a table")
def to_frame(results: xr.Dataset, *, measures: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Return one row per compared pair: labels of x and y, ranks, view, measures; or one per explained target.

    Parameters
    ----------
    results : xarray.Dataset
        All of them, or what `select` left.
    measures : str or sequence of str, optional
        Default: all there are of pairs. ``["r2_target"]``, the default where nothing but targets was compared, gives a
        row for every representation and target, ``["svcca_by_frequency"]`` one for every pair and frequency,
        ``["correlations"]`` one for every pair and correlation, of which 0 is the largest.

    Returns
    -------
    pandas.DataFrame
        Each unordered pair once; with several variances, or ridges, one row for each. Pairs of representations that
        failed have none: ``results.attrs["failed"]`` says which and why. Of ``pairs="to_last_step"`` y is the last
        step, of ``"over_training"`` the later one, of ``"across_seeds"`` the larger seed, of ``"to_last_position"`` the
        last position; else y comes after x in the results.
    """
    check_results(results)
    measures = [measures] if isinstance(measures, str) else measures
    there = [name for name in MEASURES if name in results]
    if R2 in results and (list(measures or ()) == [R2] or not (there or measures)):
        return _targets_frame(results)
    for name in INNER:
        if name in results and list(measures or ()) == [name]:
            return _inner_frame(results, name)
    unknown = [m for m in measures or () if m not in there]
    if unknown and unknown[0] in results and unknown[0] in (*INNER, R2):
        raise DsvccaError(f"{unknown[0]} has rows of its own: ask for it alone, measures=[{unknown[0]!r}]")
    if unknown:
        raise DsvccaError(f"results have no {unknown}: {nearest(unknown[0], there)}")
    chosen = list(measures or there)
    ranks = [f"rank_{side}" for side in "xy"]
    more = [dim for dim in ("variance", "ridge") if any(dim in results[name].dims for name in chosen)]
    every = {dim: results.sizes[dim] for dim in ("x", "y", *more)}
    values = {}
    for name in (*chosen, *ranks):
        lacking = {dim: every[dim] for dim in more if dim not in results[name].dims}
        values[name] = results[name].expand_dims(lacking).transpose(*every).values
    compared = results[VIEW].transpose("x", "y").values > 0
    at = np.argwhere(np.ones(tuple(every.values()), bool) & _once(results, compared, len(every)))
    columns: dict[str, Any] = {}
    for side, axis in (("x", 0), ("y", 1)):
        for coordinate in (str(c) for c in results.coords if str(c).startswith(f"{side}_")):
            columns[coordinate] = results[coordinate].values[at[:, axis]]
        columns[f"rank_{side}"] = values[f"rank_{side}"][tuple(at.T)]
    meanings = np.asarray(["", *results[VIEW].attrs["flag_meanings"].split()], dtype=object)
    columns[VIEW] = meanings[results[VIEW].transpose("x", "y").values[at[:, 0], at[:, 1]]]
    for axis, dim in enumerate(more, start=2):
        columns[dim] = results[dim].values[at[:, axis]]
    for name in chosen:
        columns[name] = values[name][tuple(at.T)]
    return pd.DataFrame(columns)


def _once(results: xr.Dataset, compared: NumpyArray, axes: int) -> NumpyArray:
    """Return which of the compared pairs count, each unordered one once: (x, y, 1, ...) bool with so many axes.

    x is the one that comes first in the results; where pairs differ in a label by their rule, the one with the smaller.
    """
    xs, ys = results["x"].values, results["y"].values
    twice = np.isin(xs, ys)[:, None] & np.isin(ys, xs)[None, :]
    first = xs[:, None] <= ys[None, :]
    for name in LEAVING_OUT.get(results.attrs.get("pairs", ""), ())[:1]:
        if f"x_{name}" in results.coords and f"y_{name}" in results.coords:
            of_x, of_y = results[f"x_{name}"].values[:, None], results[f"y_{name}"].values[None, :]
            first = (of_x < of_y) | ((of_x == of_y) & first)
    once: NumpyArray = compared & (~twice | first)
    return once.reshape(once.shape + (1,) * (axes - 2))


def _inner_frame(results: xr.Dataset, name: str) -> pd.DataFrame:
    """Return one row a pair and frequency, or correlation (and variance): labels, which, number.

    Of frequencies their grid, bins along its axes, cycles and weight; of correlations their place and `chance_edge`.
    """
    values = results[name].transpose("x", "y", INNER[name], ...).values
    compared = results[VIEW].transpose("x", "y").values > 0
    at = np.argwhere(np.isfinite(values) & _once(results, compared, values.ndim))
    columns: dict[str, Any] = {}
    for place, side in enumerate("xy"):
        for coordinate in (str(c) for c in results.coords if str(c).startswith(f"{side}_")):
            columns[coordinate] = results[coordinate].values[at[:, place]]
    if name == BY_FREQUENCY:
        for coordinate in (str(c) for c in results.coords if str(c).startswith("frequency_")):
            columns[coordinate] = results[coordinate].values[at[:, 2]]
    else:
        columns[INNER[name]] = at[:, 2]
    if "variance" in results[name].dims:
        columns["variance"] = results["variance"].values[at[:, 3]]
    columns[name] = values[tuple(at.T)]
    if name == CORRELATIONS:
        edge = results["chance_edge"].transpose("x", "y", ...).values
        columns["chance_edge"] = edge[tuple(np.delete(at, 2, axis=1).T)]
    return pd.DataFrame(columns)


def _targets_frame(results: xr.Dataset) -> pd.DataFrame:
    """Return one row a representation and target (and variance): labels, target, `r2_target` and its floor."""
    values = results[R2].transpose("x", "target", ...).values
    at = np.argwhere(np.isfinite(values))
    columns: dict[str, Any] = {str(c): results[c].values[at[:, 0]] for c in results.coords if str(c).startswith("x_")}
    columns["target"] = results["target"].values[at[:, 1]]
    if "variance" in results[R2].dims:
        columns["variance"] = results["variance"].values[at[:, 2]]
    columns[R2] = values[tuple(at.T)]
    columns[FLOOR] = results[FLOOR].transpose("x", ...).values[tuple(np.delete(at, 1, axis=1).T)]
    return pd.DataFrame(columns)
