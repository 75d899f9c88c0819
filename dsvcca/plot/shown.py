"""What figures have in common: which numbers of results are drawn, in what colours, names along an axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from dsvcca.errors import DsvccaError, nearest
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.measures import MEASURES
from dsvcca.results.tables import label_values

VARIANCE = 0.99
"""Where results hold several shares of variance, the one nearest to this is shown."""


ACROSS = 4
"""Panels in a row."""


NAMES = 30
"""Layer names along an axis, at most: where there are more layers, every second, third, ... is named."""

SHUFFLED = "by_shuffles"
"""What results are given that hold svcca of shuffled datapoints: it where it is known, else what a law says."""

AGAIN = ("layer", "step", "position")
"""Labels in which representations of one network differ."""


def scale_of(measure: str, values: Iterable[NumpyArray]) -> dict[str, Any]:
    """Return how numbers become colours: similarities from 0 to 1, others from 0 to the largest; alike is bright."""
    kind = MEASURES[measure].kind if measure in MEASURES else "chance"
    most = max((float(np.nanmax(one)) for one in values if np.isfinite(one).any()), default=1.0)
    return {
        "vmin": 0,
        "vmax": 1 if kind == "similarity" or most <= 0 else most,
        "cmap": "viridis_r" if kind == "distance" else "viridis",
    }


def of_one_share(results: xr.Dataset, measure: str) -> tuple[xr.DataArray, float | None]:
    """Return a measure of the share of variance nearest to VARIANCE, and that share where there are several."""
    if measure not in results:
        there = [name for name in MEASURES if name in results]
        known = (
            nearest(measure, there) if there else "they hold no pairs of layers, only what layers explain of targets"
        )
        raise DsvccaError(f"results have no measure {measure!r}: {known}")
    numbers = results[measure]
    if "ridge" in numbers.dims:
        some = [f"{one:g}" for one in results["ridge"].values]
        raise DsvccaError(f"{measure} is there for the ridges {', '.join(some)}: results.sel(ridge={some[0]}) has one")
    if "variance" not in numbers.dims:
        return numbers, None
    numbers = numbers.isel(variance=int(np.abs(results["variance"].values - VARIANCE).argmin()))
    return numbers, float(numbers["variance"])


def with_chance(results: xr.Dataset, measure: str) -> tuple[xr.Dataset, str | None]:
    """Return results, and the name of what independent data would show of a measure; None where that is not known.

    Where it is one number for all pairs, results have it by a name that no measure has; where svcca of shuffled
    datapoints was asked for as well (`SHUFFLED`): a law of chance counts rows that are not independent.
    """
    independent = MEASURES[measure].independent if measure in MEASURES else None
    if shuffles(results, measure):
        shuffled = results["svcca_shuffled"]
        law = results["chance"] if "chance" in results else xr.full_like(shuffled, np.nan)
        return results.assign({SHUFFLED: shuffled.where(np.isfinite(shuffled), law)}), SHUFFLED
    if independent is None or isinstance(independent, str):
        return results, independent if independent in results else None
    return results.assign({"by_chance": xr.zeros_like(results[measure]) + independent}), "by_chance"


def shuffles(results: xr.Dataset, measure: str) -> bool:
    """Return whether results hold what shuffled datapoints show of a measure."""
    return measure == "svcca" and "svcca_shuffled" in results


def said_of_chance(results: xr.Dataset, measure: str) -> str:
    """Return in words what is taken for chance."""
    return "chance, datapoints shuffled" if shuffles(results, measure) else "chance"


def networks_along(results: xr.Dataset, side: str) -> list[tuple[Any, ...]]:
    """Return what tells the network of each representation apart: all its labels but layer, step and position."""
    others = {f"{side}_{name}" for name in AGAIN}
    names = [str(c) for c in results.coords if str(c).startswith(f"{side}_") and str(c) not in others]
    columns = [label_values(results, name) for name in sorted(names)]
    return list(zip(*columns, strict=True)) if columns else [() for _ in range(results.sizes[side])]


def check_one_value(name: str, values: Iterable[Any]) -> None:
    """Raise if networks differ in a label: a mean over them says nothing."""
    several = list(dict.fromkeys(values))
    if len(several) > 1:
        said = " and ".join(f"{name}={one!r}" if one is not None else f"some without {name}" for one in several[:2])
        chosen = {name: several[0]}
        raise DsvccaError(
            f"these results hold {said}, and a mean over both says nothing: select(results, x={chosen}, y={chosen})"
        )


def steps_along(results: xr.Dataset, side: str) -> NumpyArray:
    """Return the step of every representation of a side, float64.

    Raises
    ------
    DsvccaError
        If one has none, or its step is no number.
    """
    steps = label_along(results, side, "step")
    if steps.dtype.kind not in "iuf" or not steps.size or not np.isfinite(steps).all():
        raise DsvccaError(
            f"every {side} needs a number as its step, found {steps[:8].tolist()}: select() those that have one"
        )
    return steps.astype(np.float64)


def step_text(step: float) -> str:
    """Return a step as people write it.

    >>> step_text(1234567.0), step_text(0.1 + 0.2)
    ('1,234,567', '0.3')
    """
    return f"{step:,.0f}" if float(step).is_integer() else f"{step:,.10g}"


def seeds_along(results: xr.Dataset, side: str) -> list[Any]:
    """Return the seed of every representation of a side, None of those without."""
    name = f"{side}_seed"
    return label_values(results, name) if name in results.coords else [None] * results.sizes[side]


def last_step(steps: Iterable[tuple[Any, float]]) -> float:
    """Return the step at which the networks of every seed end, of seeds and steps."""
    ends: dict[Any, float] = {}
    for seed, step in steps:
        ends[seed] = max(ends.get(seed, step), step)
    if len(set(ends.values())) > 1:
        found = ", ".join(f"seed {seed} at {step_text(step)}" for seed, step in ends.items())
        raise DsvccaError(f"training ends at different steps ({found}): select() seeds that end at the same step")
    return next(iter(ends.values()))


def label_along(results: xr.Dataset, side: str, name: str) -> NumpyArray:
    """Return one label of every representation of a side.

    Raises
    ------
    DsvccaError
        If the results do not have it.
    """
    if f"{side}_{name}" not in results.coords:
        known = [str(c)[2:] for c in results.coords if str(c).startswith(f"{side}_")]
        raise DsvccaError(f"results have no label {name!r}: {nearest(name, known)}")
    found: NumpyArray = results[f"{side}_{name}"].values
    return found


def name_layers(axis: Any, layers: Sequence[str]) -> None:
    stride = -(-len(layers) // NAMES)
    axis.set_ticks(range(0, len(layers), stride), list(layers[::stride]), fontsize=8)


def mean_of(counts: NumpyArray) -> str:
    """Return in words over how many networks means are.

    >>> mean_of(np.array([3, 2, 3])), mean_of(np.array([1, 1]))
    ('mean of 2 to 3 networks', 'one network')
    """
    least, most = int(counts.min(initial=counts.max())), int(counts.max())
    if most <= 1:
        return "one network"
    return f"mean of {most} networks" if least == most else f"mean of {least} to {most} networks"


def mean_and_error(values: NumpyArray, networks: Sequence[Sequence[Any]]) -> tuple[float, float]:
    """Return the mean of some numbers and its standard error, NaN of fewer than two networks.

    Each number is of one network, or of two, and those that share one depend on each other: the error is that of
    leaving out each network in turn (jackknife).
    """
    every = list(dict.fromkeys(one for own in networks for one in own))
    left = []
    for out in every:
        kept = np.asarray([out not in own for own in networks])
        if kept.any():
            left.append(float(values[kept].mean()))
    if len(left) < 2:
        return float(values.mean()), float("nan")
    spread = np.asarray(left) - np.mean(left)
    return float(values.mean()), float(np.sqrt((len(left) - 1) / len(left) * np.sum(spread**2)))
