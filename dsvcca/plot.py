"""Figures from results and tables; matplotlib is imported when a figure is drawn."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from dsvcca.arrays import NumpyArray
from dsvcca.errors import DsvccaError, nearest
from dsvcca.figures import new_figure
from dsvcca.labels import describe
from dsvcca.measures import MEASURES
from dsvcca.tables import select
from dsvcca.training import COLUMNS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = (0.0, 0.35, 0.75, 1.0)
"""Shares of training that are shown unless steps are given."""

VARIANCE = 0.99
"""Where results hold several shares of variance, the one nearest to this is shown."""

ACROSS = 4
"""Panels in a row."""

MARKS = ("", "a", "b", "c", "d", "e", "f", "g", "h")
"""What stands beside a number to say how it was looked at: nothing for the first view."""

NAMES = 30
"""Layer names along an axis, at most: where there are more layers, every second, third, ... is named."""

KINDS = {"signal": "tab:purple", "noise": "tab:red", "random": "0.55"}
"""Kinds of directions that are followed over training, and their colours."""


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
    """

    values: NumpyArray
    steps: tuple[float, ...]
    last: float
    x_layers: tuple[str, ...]
    y_layers: tuple[str, ...]
    networks: int
    variance: float | None


def learning_dynamics(results: xr.Dataset, *, measure: str = "svcca", steps: Sequence[float] | None = None) -> Figure:
    """Draw how the layers of a network approach their final state, as figure 4 of Raghu et al. 2017.

    One panel a step: layers at that step (rows) against layers at the end of training (columns), mean over seeds.
    Every seed is compared with itself only.

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
    matplotlib.figure.Figure
        ``figure.savefig("dynamics.png")`` writes it.

    Raises
    ------
    DsvccaError
        If a step, a label or a comparison that is needed is not in the results.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    ``learning_dynamics(open_results("results.zarr")).savefig("dynamics.png")``
    """
    found = dynamics(results, measure=measure, steps=steps)
    across = min(ACROSS, len(found.steps))
    down = -(-len(found.steps) // across)
    width, height = (max(2.4, 0.19 * min(len(layers), NAMES)) for layers in (found.y_layers, found.x_layers))
    figure = new_figure(across * (width + 0.15) + 1.7, down * (height + 0.75) + 0.9)
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    scale = _scale_of(measure, found.values)
    for place, panel in enumerate(panels.flat):
        if place >= len(found.steps):
            panel.set_axis_off()
            continue
        # Whole cells, so that every pixel of one is its number.
        image = panel.imshow(found.values[place], **scale, origin="lower", aspect="auto")
        panel.set_title(_step_title(found.steps[place], found.last), fontsize=10)
        _name_layers(panel.xaxis, found.y_layers)
        _name_layers(panel.yaxis, found.x_layers)
        panel.tick_params(axis="x", labelrotation=90, labelbottom=place + across >= len(found.steps))
    for row in panels:
        row[0].set_ylabel("layer at the panel's step", fontsize=9)
    figure.supxlabel(
        "layer at the end of training (in the order of the store, the first at the left and at the bottom)", fontsize=9
    )
    figure.colorbar(image, ax=panels, label=measure, pad=0.01, fraction=0.05)
    views = results.attrs.get("views", [])
    mixed = f"\nlooked at in different views, whose numbers are different things: {', '.join(views)}"
    figure.suptitle(_title(found, measure) + (mixed if len(views) > 1 else ""), fontsize=11)
    return figure


def dynamics(results: xr.Dataset, *, measure: str = "svcca", steps: Sequence[float] | None = None) -> Dynamics:
    """Return the numbers that `learning_dynamics` draws; parameters and errors as there."""
    numbers, variance = _of_one_share(results, measure)
    numbers = numbers.transpose("x", "y")
    rows, columns = _places(results, "x"), _places(results, "y")
    seeds, x_layers, y_layers = _values(rows, 0), _values(rows, 2), _values(columns, 2)
    known, last = sorted(_values(rows, 1)), _last_step(columns)
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
    return Dynamics(np.mean(values, axis=1), chosen, last, x_layers, y_layers, len(seeds), variance)


@dataclass(frozen=True)
class LayerMeans:
    """Similarity of layers with layers, mean over pairs of networks.

    Attributes
    ----------
    values : (x_layers, y_layers) float64
        NaN where no comparison is in the results.
    views : (x_layers, y_layers) object
        How they were looked at; "" where there is nothing.
    x_layers, y_layers : tuple of str
        In the order in which they appear in the results.
    same : bool
        Whether these are layers of one network with its own, since there are no others.
    """

    values: NumpyArray
    views: NumpyArray
    x_layers: tuple[str, ...]
    y_layers: tuple[str, ...]
    same: bool


def layers(
    results: xr.Dataset,
    panels: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] | None = None,
    *,
    measure: str = "svcca",
) -> Figure:
    """Draw layers against layers, as figure 7 of Raghu et al. 2017 does for two architectures.

    Every cell is the mean over all pairs of different networks (models, seeds, ... all labels but layer and step); of
    one network with itself where there is no other. Its mark says how the two were looked at, since numbers of
    different views are different things. A panel shows one step on each side.

    Parameters
    ----------
    results : xarray.Dataset
        Where it has a `variance` dimension, the share nearest to 0.99 is drawn.
    panels : mapping, optional
        Title to (labels of x, labels of y), as `select` takes them, one panel each; by default everything in one.
    measure : str, default "svcca"

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DsvccaError
        If a label or the measure is not in the results, or a panel has no comparison, or several steps or positions.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    ``layers(results, {"convnet and resnet": ({"model": "convnet"}, {"model": "resnet"})}).savefig("layers.png")``
    """
    found = {title: layer_means(results, x, y, measure=measure) for title, (x, y) in (panels or {"": ({}, {})}).items()}
    shown = list(dict.fromkeys(view for one in found.values() for view in one.views.ravel() if view))
    marks = dict(zip(shown, MARKS, strict=False))
    widths = [max(1.6, 0.42 * len(one.y_layers)) for one in found.values()]
    height = max(1.6, 0.36 * max(len(one.x_layers) for one in found.values()))
    figure = new_figure(sum(widths) + 1.1 * len(widths) + 1.2, height + 1.9)
    axes = figure.subplots(1, len(found), squeeze=False, width_ratios=widths)[0]
    scale = _scale_of(measure, [one.values for one in found.values()])
    shown_as = ".2f" if scale["vmax"] < 100 else ".0f"
    for panel, (title, one) in zip(axes, found.items(), strict=True):
        image = panel.imshow(one.values, **scale, origin="lower", aspect="auto")
        panel.set_facecolor("0.85")
        _name_layers(panel.xaxis, one.y_layers)
        _name_layers(panel.yaxis, one.x_layers)
        panel.tick_params(axis="x", labelrotation=90)
        panel.set_title(title + (" (one network with itself)" if one.same else ""), fontsize=10)
        if max(one.values.shape) <= NAMES:
            for (i, j), value in np.ndenumerate(one.values):
                if np.isfinite(value):
                    text = f"{value:{shown_as}}{marks[one.views[i, j]]}"
                    dark = (value < 0.6 * scale["vmax"]) != scale["cmap"].endswith("_r")
                    panel.text(j, i, text, ha="center", va="center", fontsize=6, color="w" if dark else "k")
    said = ", ".join(f"{view} {mark}".strip() for view, mark in marks.items())
    figure.colorbar(image, ax=list(axes), label=measure, pad=0.01, fraction=0.05)
    holes = any(np.isnan(one.values).any() for one in found.values())
    rows = "rows: what is named first, columns: second; " if panels else ""
    words = f"{rows}view: {said}" + ("; grey: not compared" if holes else "")
    figure.supxlabel(textwrap.fill(words, int(12 * figure.get_figwidth())), fontsize=9)
    return figure


def _scale_of(measure: str, values: Iterable[NumpyArray]) -> dict[str, Any]:
    """Return how numbers become colours: similarities from 0 to 1, others from 0 to the largest; alike is bright."""
    kind = MEASURES[measure].kind if measure in MEASURES else "chance"
    most = max((float(np.nanmax(one)) for one in values if np.isfinite(one).any()), default=1.0)
    return {
        "vmin": 0,
        "vmax": 1 if kind == "similarity" or most <= 0 else most,
        "cmap": "viridis_r" if kind == "distance" else "viridis",
    }


def layer_means(
    results: xr.Dataset, x: Mapping[str, Any], y: Mapping[str, Any], *, measure: str = "svcca"
) -> LayerMeans:
    """Return the numbers that `layers` draws in one panel; parameters and errors as there."""
    numbers, _ = _of_one_share(results, measure)
    chosen = select(results.assign({measure: numbers}), x=x, y=y)
    values = chosen[measure].transpose("x", "y").values
    for side, name in (("x", "step"), ("y", "step"), ("x", "position"), ("y", "position")):
        label = f"{side}_{name}"
        several = list(dict.fromkeys(chosen[label].values.tolist())) if label in chosen.coords else []
        if len(several) > 1:
            raise DsvccaError(
                f"{side} holds {name}={several[0]!r} and {name}={several[1]!r}, and a mean over both says nothing: "
                f"give one of them in the labels of the panel, {{{name!r}: {several[-1]!r}}}"
            )
    names = np.asarray(["", *chosen["view"].attrs["flag_meanings"].split()], dtype=object)
    views = names[chosen["view"].transpose("x", "y").values]
    networks = [_networks(chosen, side) for side in "xy"]
    same = np.asarray([[a == b for b in networks[1]] for a in networks[0]])
    there = np.isfinite(values)
    only = bool((there & same).any()) and not (there & ~same).any()
    there &= same if only else ~same
    if not there.any():
        raise DsvccaError(
            f"these results hold no comparison of {dict(x) or 'any'} with {dict(y) or 'any'}: compare them"
        )
    own = [chosen[f"{side}_layer"].values for side in "xy"]
    x_layers, y_layers = (tuple(dict.fromkeys(one.tolist())) for one in own)
    shape = len(x_layers), len(y_layers)
    means, seen = np.full(shape, np.nan), np.full(shape, "", dtype=object)
    for i, a in enumerate(x_layers):
        for j, b in enumerate(y_layers):
            here = there & (own[0] == a)[:, None] & (own[1] == b)[None, :]
            if here.any():
                ways = sorted(set(views[here].tolist()))
                if len(ways) > 1:
                    raise DsvccaError(
                        f"{a} and {b} are compared as view {ways[0]!r} in some networks and as {ways[1]!r} in others, "
                        "and a mean over both says nothing: say more in the labels of the panel, or plan with view="
                    )
                means[i, j], seen[i, j] = values[here].mean(), ways[0]
    return LayerMeans(means, seen, x_layers, y_layers, only)


def signal_and_noise(found: pd.DataFrame) -> Figure:
    """Draw what of layers stays over training, as figure 1d of Morcos et al. 2018, of correlations.

    One panel a layer: thick lines are means over networks (over models, seeds, ... all labels but layer and step), thin
    ones single networks; dotted what unrelated layers are expected to show. Grey lines stand where directions are
    taken, and where they are sorted.

    Parameters
    ----------
    found : pandas.DataFrame
        As `dsvcca.signal_and_noise` returns it, or some of its rows.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DsvccaError
        If there is nothing to draw, or it is another table.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    ``signal_and_noise(dsvcca.signal_and_noise(store)).savefig("signal.png")``
    """
    if missing := [name for name in ("layer", "step", *COLUMNS) if name not in found]:
        raise DsvccaError(f"the table has no column {missing[0]!r}: give what dsvcca.signal_and_noise returns")
    if not len(found):
        raise DsvccaError("the table has no rows: choose some that are there")
    shown = list(dict.fromkeys(found["layer"]))
    across = min(ACROSS, len(shown))
    down = -(-len(shown) // across)
    figure = new_figure(max(across * 2.9, 4.1) + 0.9, down * 2.3 + 1.2)
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for place, panel in enumerate(panels.flat):
        if place >= len(shown):
            panel.set_axis_off()
            continue
        own = found[found["layer"] == shown[place]]
        for name in ("early", "against"):
            for step in own[name].unique():
                panel.axvline(step, color="0.8", linewidth=0.8, zorder=0)
        for kind, colour in KINDS.items():
            _trace(panel, own[own["kind"] == kind], colour, kind)
        chance = own.groupby("step")["chance"].mean()
        panel.plot(chance.index, chance.to_numpy(), ":", color="0.4", linewidth=1.2, label="chance")
        panel.set_ylim(-0.02, 1.04)
        panel.set_title(str(shown[place]), fontsize=10)
        panel.tick_params(labelsize=8, labelbottom=place + across >= len(shown))
        panel.set_xlabel("step" if place + across >= len(shown) else "", fontsize=9)
    for row in panels:
        row[0].set_ylabel("mean correlation", fontsize=9)
    lines, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    figure.suptitle(_traced_title(found), fontsize=11)
    return figure


def _trace(panel: Any, own: pd.DataFrame, colour: str, kind: str) -> None:
    """Draw the lines of one kind of directions of one layer: every network, and their mean where all are there."""
    names = [str(name) for name in own.columns if name not in ("layer", "step", *COLUMNS)]
    networks = [one for _, one in own.groupby(names, dropna=False)] if names else [own]
    if not len(own):
        return
    for one in networks if len(networks) > 1 else []:
        panel.plot(one["step"], one["correlation"], color=colour, linewidth=0.6, alpha=0.35)
    count = own.groupby("step")["correlation"].agg(["mean", "size"])
    mean = count["mean"][count["size"] == len(networks)]
    panel.plot(mean.index, mean.to_numpy(), ".-", color=colour, linewidth=1.8, markersize=5, label=kind)


def _traced_title(found: pd.DataFrame) -> str:
    """Return in words what directions are followed."""
    early, against, count = (list(dict.fromkeys(found[name])) for name in ("early", "against", "directions"))
    k = f"{count[0]}" if len(count) == 1 else f"{min(count)} to {max(count)}"
    one = len(early) == len(against) == 1
    where = (
        f"of step {early[0]:,}, sorted by step {against[0]:,}" if one else "of one step, sorted by another (grey lines)"
    )
    return f"first {k} (signal) and last {k} (noise)\ndirections {where}"


def _networks(results: xr.Dataset, side: str) -> list[tuple[Any, ...]]:
    """Return what tells the network of each representation apart: all its labels but layer, step and position."""
    others = {f"{side}_{name}" for name in ("layer", "step", "position")}
    names = [str(c) for c in results.coords if str(c).startswith(f"{side}_") and str(c) not in others]
    columns = [[None if value != value else value for value in results[name].values.tolist()] for name in sorted(names)]
    return list(zip(*columns, strict=True)) if columns else [() for _ in range(results.sizes[side])]


def _of_one_share(results: xr.Dataset, measure: str) -> tuple[xr.DataArray, float | None]:
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
            "pairs='to_last_step' or 'all'"
        )
    return block


def _places(results: xr.Dataset, side: str) -> dict[Key, int]:
    """Return where each (seed, step, layer) lies on x or on y, in the order of the results."""
    labels = {str(c)[2:]: results[c].values.tolist() for c in results.coords if str(c).startswith(f"{side}_")}
    for name in ("step", "layer"):
        if name not in labels:
            raise DsvccaError(f"results have no label {name!r}, only {', '.join(labels)}: write with layer= and step=")
    steps = labels["step"]
    if not steps or not all(isinstance(step, (int, float)) and math.isfinite(step) for step in steps):
        raise DsvccaError(f"every {side} needs a number as its step, found {steps[:8]}: select() those that have one")
    for name in labels.keys() - {"seed", "step", "layer"}:
        if len(several := list(dict.fromkeys(labels[name]))) > 1:
            raise DsvccaError(
                f"these results hold {name}={several[0]!r} and {name}={several[1]!r}, and a mean over both says "
                f"nothing: select(results, x={{{name!r}: {several[0]!r}}}, y={{{name!r}: {several[0]!r}}})"
            )
    seeds = labels.get("seed", [None] * len(steps))
    return {key: place for place, key in enumerate(zip(seeds, steps, labels["layer"], strict=True))}


def _values(keys: Iterable[Key], part: int) -> tuple[Any, ...]:
    """Return the different seeds (0), steps (1) or layers (2) in order of appearance."""
    return tuple(dict.fromkeys(key[part] for key in keys))


def _last_step(keys: Iterable[Key]) -> float:
    """Return the step at which every seed ends."""
    ends: dict[Any, float] = {}
    for seed, step, _ in keys:
        ends[seed] = max(ends.get(seed, step), step)
    if len(set(ends.values())) > 1:
        found = ", ".join(f"seed {seed} at {step}" for seed, step in ends.items())
        raise DsvccaError(f"training ends at different steps ({found}): select() seeds that end at the same step")
    return next(iter(ends.values()))


def _nearest_steps(there: Sequence[float], last: float) -> list[float]:
    """Return the steps nearest to some shares of the last one, each once."""
    first = there[0]
    wanted = (first + share * (last - first) for share in SHARES)
    return sorted({min(there, key=lambda step: (abs(step - one), step)) for one in wanted})


def _describe(key: Key) -> str:
    seed, step, layer = key
    return describe({**({} if seed is None else {"seed": seed}), "step": step, "layer": layer})


def _name_layers(axis: Any, layers: Sequence[str]) -> None:
    stride = -(-len(layers) // NAMES)
    axis.set_ticks(range(0, len(layers), stride), list(layers[::stride]), fontsize=8)


def _step_title(step: float, last: float) -> str:
    return f"step {step:,}" + (f" ({100 * step / last:.0f} %)" if last > 0 else "")


def _title(found: Dynamics, measure: str) -> str:
    mean = f", mean of {found.networks} seeds" if found.networks > 1 else ""
    share = "" if found.variance is None else f", {100 * found.variance:g} % of variance kept"
    return f"{measure} with the same network at step {found.last:,}, the end of training{mean}{share}"
