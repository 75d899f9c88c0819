"""Similarity over training, a line a layer, with bands of error and what chance gives."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray
from dsvcca.plot.figures import axes_for, legend_beside, styles, whole_numbers
from dsvcca.plot.shown import (
    check_one_value,
    label_along,
    last_step,
    mean_and_error,
    mean_of,
    networks_along,
    of_one_share,
    said_of_chance,
    seeds_along,
    steps_along,
    with_chance,
)
from dsvcca.results.tables import label_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AGAINST = ("end", "seeds")


@dataclass(frozen=True)
class Line:
    """How alike something is at every step.

    Attributes
    ----------
    name : str
    steps : (steps,) float64
    means, errors : (steps,) float64
        Over networks, or pairs of them; the error is NaN of a single one.
    chance : (steps,) float64
        Mean of what independent data would show; NaN where that is not known.
    networks : (steps,) int64
        How many the mean is over.
    """

    name: str
    steps: NumpyArray
    means: NumpyArray
    errors: NumpyArray
    chance: NumpyArray
    networks: NumpyArray


def over_training(
    results: xr.Dataset, *, measure: str = "svcca", against: str | None = None, axes: Axes | None = None
) -> Axes:
    """Draw how alike every layer is, step by step, to itself at the end of training, or to itself in other networks.

    A line is the mean over networks (all labels but layer and step), its band one standard error of that mean, by
    leaving out each network in turn: pairs that share a network depend on each other. Dotted is what chance gives.

    Parameters
    ----------
    results : xarray.Dataset
        Compared with ``pairs="to_last_step"``, ``"across_seeds"`` or ``"all"``. Where it has a `variance` dimension,
        the share nearest to 0.99 is drawn.
    measure : str, default "svcca"
    against : {"end", "seeds"}, optional
        "end": the same network at its last step. "seeds": networks that differ in their seed alone, at the same step.
        Default: "seeds" of results of ``pairs="across_seeds"``, else "end".
    axes : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    DsvccaError
        If there is no such measure, label or comparison, or networks differ in more than their seed.
    MissingError
        If matplotlib is not installed.

    Examples
    --------
    ``over_training(results, against="seeds").figure.savefig("seeds.png")``
    """
    found = training_lines(results, measure=measure, against=against)
    axes = axes_for(axes, 6.4, 4.0)
    for line, style in zip(found, styles(len(found), ordered=True), strict=True):
        axes.plot(line.steps, line.means, label=line.name, **style)
        error = np.nan_to_num(line.errors)
        axes.fill_between(
            line.steps, line.means - error, line.means + error, color=style["color"], alpha=0.25, linewidth=0
        )
        if np.isfinite(line.chance).any():
            axes.plot(line.steps, line.chance, ":", color=style["color"], linewidth=1, gid="chance")
    axes.set_xlabel("step")
    if all(np.equal(np.mod(line.steps, 1), 0).all() for line in found):
        whole_numbers(axes.xaxis)
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), max(1.0, axes.get_ylim()[1]))
    what = "at the end of training" if _against(results, against) == "end" else "in other seeds"
    axes.set_ylabel(f"{measure} with itself {what}")
    bands = ", bands: one standard error" if any(np.isfinite(line.errors).any() for line in found) else ""
    said = mean_of(np.concatenate([line.networks for line in found])) + bands
    known = any(np.isfinite(line.chance).any() for line in found)
    by_chance = f"dotted: {said_of_chance(results, measure)}"
    axes.set_title(f"{said}; {by_chance if known else 'what chance gives is not known'}", fontsize=9)
    legend_beside(axes)
    return axes


def training_lines(results: xr.Dataset, *, measure: str = "svcca", against: str | None = None) -> list[Line]:
    """Return the lines that `over_training` draws; parameters and errors as there."""
    against = _against(results, against)
    results, chance = with_chance(results, measure)
    numbers = of_one_share(results, measure)[0].transpose("x", "y").values
    by_chance = None if chance is None else of_one_share(results, chance)[0].transpose("x", "y").values
    layers = [label_along(results, side, "layer") for side in "xy"]
    steps = [steps_along(results, side) for side in "xy"]
    networks = [networks_along(results, side) for side in "xy"]
    check_one_kind(results)
    if against == "end":
        pairs = _with_end(layers, steps, networks, seeds_along(results, "y"))
    else:
        pairs = _with_others(layers, steps, networks)
    found: dict[Any, dict[float, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for i, j in pairs:
        if np.isfinite(numbers[i, j]):
            found[layers[0][i]][steps[0][i]].append((i, j))
    if not found:
        do = "pairs='to_last_step'" if against == "end" else "pairs='across_seeds', and several seeds"
        raise DsvccaError(f"these results compare no layer with itself {_what(against)}: compare with {do}, or 'all'")
    lines = []
    for layer, at in found.items():
        rows = []
        for step in sorted(at):
            i, j = np.asarray(at[step]).T
            whose = [{networks[0][a], networks[1][b]} for a, b in at[step]]
            expected = np.nan if by_chance is None else float(by_chance[i, j].mean())
            count = len(set().union(*whose))
            rows.append((step, *mean_and_error(numbers[i, j], [tuple(one) for one in whose]), expected, count))
        columns = np.asarray(rows, dtype=np.float64).T
        values, errors, chances = columns[1:4]
        lines.append(Line(str(layer), columns[0], values, errors, chances, columns[4].astype(np.int64)))
    return lines


def _against(results: xr.Dataset, against: str | None) -> str:
    if against is None:
        return "seeds" if results.attrs.get("pairs") == "across_seeds" else "end"
    if against not in AGAINST:
        raise DsvccaError(f"against={against!r} is unknown: use {' or '.join(map(repr, AGAINST))}")
    return against


def _what(against: str) -> str:
    return "at the end of training" if against == "end" else "in networks of other seeds"


def check_one_kind(results: xr.Dataset) -> None:
    """Raise if networks differ in more than their seed: a mean over them says nothing."""
    for side in "xy":
        for coordinate in (str(c) for c in results.coords if str(c).startswith(f"{side}_")):
            if coordinate[2:] not in ("layer", "step", "seed"):
                check_one_value(coordinate[2:], label_values(results, coordinate))


def _with_end(
    layers: list[NumpyArray], steps: list[NumpyArray], networks: list[list[Any]], seeds: list[Any]
) -> list[tuple[int, int]]:
    """Return (x, y) of every layer with the same layer of the same network at the end of training."""
    end = last_step(zip(seeds, steps[1].tolist(), strict=True))
    at_end = {(networks[1][j], layers[1][j]): j for j in np.flatnonzero(steps[1] == end).tolist()}
    keys = zip(networks[0], layers[0].tolist(), strict=True)
    return [(i, at_end[key]) for i, key in enumerate(keys) if key in at_end]


def _with_others(layers: list[NumpyArray], steps: list[NumpyArray], networks: list[list[Any]]) -> list[tuple[int, int]]:
    """Return (x, y) of every layer with the same layer of other networks at the same step."""
    alike: dict[Any, list[int]] = defaultdict(list)
    for j, key in enumerate(zip(layers[1].tolist(), steps[1].tolist(), strict=True)):
        alike[key].append(j)
    keys = zip(layers[0].tolist(), steps[0].tolist(), strict=True)
    return [(i, j) for i, key in enumerate(keys) for j in alike[key] if networks[0][i] != networks[1][j]]
