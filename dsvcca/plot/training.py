"""Layers on the way to the end of training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from dsvcca.activations.labels import describe
from dsvcca.errors import DsvccaError, nearest
from dsvcca.maths.arrays import NumpyArray
from dsvcca.plot.figures import bar_with_chance, mark_chance, new_figure
from dsvcca.plot.shown import (
    ACROSS,
    NAMES,
    check_one_value,
    last_step,
    name_layers,
    of_one_share,
    said_of_chance,
    scale_of,
    seeds_along,
    step_text,
    steps_along,
    with_chance,
)
from dsvcca.results.tables import label_values, views_of

SHARES = (0.0, 0.35, 0.75, 1.0)
"""Shares of training that are shown unless steps are given."""


Key = tuple[Any, float, str]
"""Seed (None where there are no seeds), step, layer."""


@dataclass(frozen=True)
class Dynamics:
    """Similarity of the layers of a network at some steps to its layers at the end of its training.

    Attributes
    ----------
    values : (steps, x_layers, y_layers) float64
        Mean over networks, each compared with itself only.
    steps : tuple of float
    last : float
        The step at which training ended.
    x_layers, y_layers : tuple of str
        In the order in which they appear in the results.
    networks : int
        How many networks the mean is over.
    variance : float or None
        The share of variance that was chosen; None where results hold only one.
    views : tuple of str
        How layers were looked at.
    """

    values: NumpyArray
    steps: tuple[float, ...]
    last: float
    x_layers: tuple[str, ...]
    y_layers: tuple[str, ...]
    networks: int
    variance: float | None
    views: tuple[str, ...]


def learning_dynamics(
    results: xr.Dataset, *, measure: str = "svcca", steps: Sequence[float] | None = None
) -> NumpyArray:
    """Draw how the layers of a network approach their final state, as figure 4 of Raghu et al. 2017.

    One panel a step: layers at that step (rows) against layers at the end of training (columns), mean over seeds.
    Every seed is compared with itself only. Hatched are cells no larger than what chance gives.

    Parameters
    ----------
    results : xarray.Dataset
        Of one model, compared with ``pairs="to_last_step"`` or ``"all"``. Where it has a `variance` dimension, the
        share nearest to 0.99 is drawn.
    measure : str, default "svcca"
    steps : sequence of float, optional
        By default those nearest to 0, 35, 75 and 100 % of training.

    Returns
    -------
    array of matplotlib.axes.Axes
        One a step; ``axes[0].figure.savefig("dynamics.png")`` writes them.

    Raises
    ------
    DsvccaError
        If a step, a label or a comparison that is needed is not in the results.
    MissingError
        If matplotlib is not installed.

    Examples
    --------
    ``learning_dynamics(open_results("results.zarr"))[0].figure.savefig("dynamics.png")``
    """
    results, chance = with_chance(results, measure)
    found = dynamics(results, measure=measure, steps=steps)
    expected = None if chance is None else dynamics(results, measure=chance, steps=steps).values
    across = min(ACROSS, len(found.steps))
    down = -(-len(found.steps) // across)
    width, height = (max(2.4, 0.19 * min(len(layers), NAMES)) for layers in (found.y_layers, found.x_layers))
    figure = new_figure(across * (width + 0.15) + 1.7, down * (height + 0.75) + 0.9)
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    scale = scale_of(measure, found.values)
    for place, panel in enumerate(panels.flat):
        if place >= len(found.steps):
            panel.set_axis_off()
            continue
        # Whole cells, so that every pixel of one is its number.
        image = panel.imshow(found.values[place], **scale, origin="lower", aspect="auto")
        mark_chance(panel, found.values[place], None if expected is None else expected[place])
        panel.set_title(_step_title(found.steps[place], found.last), fontsize=10)
        name_layers(panel.xaxis, found.y_layers)
        name_layers(panel.yaxis, found.x_layers)
        panel.tick_params(axis="x", labelrotation=90, labelbottom=place + across >= len(found.steps))
    for row in panels:
        row[0].set_ylabel("layer at the panel's step", fontsize=9)
    figure.supxlabel(
        "layer at the end of training (in the order of the store, the first at the left and at the bottom)", fontsize=9
    )
    bar_with_chance(
        figure.colorbar(image, ax=panels, pad=0.01, fraction=0.05),
        [expected],
        measure,
        said_of_chance(results, measure),
    )
    mixed = f"\nlooked at in different views, whose numbers are different things: {', '.join(found.views)}"
    figure.suptitle(_title(found, measure) + (mixed if len(found.views) > 1 else ""), fontsize=11)
    return panels.ravel()[: len(found.steps)]


def dynamics(results: xr.Dataset, *, measure: str = "svcca", steps: Sequence[float] | None = None) -> Dynamics:
    """Return the numbers that `learning_dynamics` draws; parameters and errors as there."""
    numbers, variance = of_one_share(results, measure)
    numbers = numbers.transpose("x", "y")
    rows, columns = _places(results, "x"), _places(results, "y")
    seeds, x_layers, y_layers = _values(rows, 0), _values(rows, 2), _values(columns, 2)
    known, last = sorted(_values(rows, 1)), last_step((seed, step) for seed, step, _ in columns)
    chosen = tuple(_nearest_steps(known, last) if steps is None else steps)
    if not chosen:
        raise DsvccaError("steps is empty: give some, or leave it out")
    for step in chosen:
        if step not in known:
            raise DsvccaError(f"nothing in these results has step={step!r}: {nearest(step, known)}")
    values = [
        [
            _block(numbers, rows, columns, [(seed, step, a) for a in x_layers], [(seed, last, b) for b in y_layers])
            for seed in seeds
        ]
        for step in chosen
    ]
    looked = views_of(results)
    drawn = [
        looked[place, columns[seed, last, layer]]
        for (seed, step, _), place in rows.items()
        if step in chosen
        for layer in y_layers
    ]
    views = tuple(sorted(set(drawn)))
    return Dynamics(np.mean(values, axis=1), chosen, last, x_layers, y_layers, len(seeds), variance, views)


def _block(
    numbers: xr.DataArray, rows: Mapping[Key, int], columns: Mapping[Key, int], x: Sequence[Key], y: Sequence[Key]
) -> NumpyArray:
    """Return the numbers of some x with some y, all of them finite."""
    for wanted, there in ((x, rows), (y, columns)):
        for key in wanted:
            if key not in there:
                raise DsvccaError(
                    f"the results do not hold {_describe(key)}, but other layers of that kind: compare it too, or "
                    "select() the seeds, steps and layers of which all are there"
                )
    block = np.asarray(numbers.isel(x=[rows[key] for key in x], y=[columns[key] for key in y]).values, dtype=np.float64)
    if not np.isfinite(block).all():
        i, j = np.argwhere(~np.isfinite(block))[0]
        raise DsvccaError(
            f"the results do not hold the comparison of {_describe(x[i])} with {_describe(y[j])}: compare with "
            "pairs='to_last_step' or 'all', or, if one of them failed (results.attrs['failed']), select() the others"
        )
    return block


def _places(results: xr.Dataset, side: str) -> dict[Key, int]:
    """Return where each (seed, step, layer) lies on x or on y, in the order of the results."""
    labels = {str(c)[2:]: label_values(results, str(c)) for c in results.coords if str(c).startswith(f"{side}_")}
    if "layer" not in labels:
        raise DsvccaError(f"results have no label 'layer', only {', '.join(labels)}: write with layer=")
    steps_along(results, side)
    for name in labels.keys() - {"seed", "step", "layer"}:
        check_one_value(name, labels[name])
    seeds = seeds_along(results, side)
    return {key: place for place, key in enumerate(zip(seeds, labels["step"], labels["layer"], strict=True))}


def _values(keys: Iterable[Key], part: int) -> tuple[Any, ...]:
    """Return the different seeds (0), steps (1) or layers (2) in order of appearance."""
    return tuple(dict.fromkeys(key[part] for key in keys))


def _nearest_steps(there: Sequence[float], last: float) -> list[float]:
    """Return the steps nearest to some shares of the last one, each once."""
    first = there[0]
    wanted = (first + share * (last - first) for share in SHARES)
    return sorted({min(there, key=lambda step: (abs(step - one), step)) for one in wanted})


def _describe(key: Key) -> str:
    seed, step, layer = key
    return describe({**({} if seed is None else {"seed": seed}), "step": step, "layer": layer})


def _step_title(step: float, last: float) -> str:
    return f"step {step_text(step)}" + (f" ({100 * step / last:.0f} %)" if step >= 0 and last > 0 else "")


def _title(found: Dynamics, measure: str) -> str:
    mean = f", mean of {found.networks} seeds" if found.networks > 1 else ""
    share = "" if found.variance is None else f", {100 * found.variance:g} % of variance kept"
    return f"{measure} with the same network at step {step_text(found.last)}, the end of training{mean}{share}"
