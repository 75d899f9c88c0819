"""Layers against layers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray
from dsvcca.plot.figures import bar_with_chance, mark_chance, new_figure, nothing_colour
from dsvcca.plot.shown import (
    NAMES,
    name_layers,
    networks_along,
    of_one_share,
    said_of_chance,
    scale_of,
    with_chance,
)
from dsvcca.results.tables import select, views_of

MARKS = ("", "a", "b", "c", "d", "e", "f", "g", "h")
"""What stands beside a number to say how it was looked at: nothing for the first view."""


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
) -> NumpyArray:
    """Draw layers against layers, as figure 7 of Raghu et al. 2017 does for two architectures.

    Every cell is the mean over all pairs of different networks (models, seeds, ... all labels but layer and step); of
    one network with itself where there is no other. Its mark says how the two were looked at, since numbers of
    different views are different things. A panel shows one step on each side. Hatched are cells no larger than what
    chance gives.

    Parameters
    ----------
    results : xarray.Dataset
        Where it has a `variance` dimension, the share nearest to 0.99 is drawn.
    panels : mapping, optional
        Title to (labels of x, labels of y), as `select` takes them, one panel each; by default everything in one.
    measure : str, default "svcca"

    Returns
    -------
    array of matplotlib.axes.Axes
        One a panel.

    Raises
    ------
    DsvccaError
        If a label or the measure is not in the results, or a panel has no comparison, or several steps or positions.
    MissingError
        If matplotlib is not installed.

    Examples
    --------
    >>> panels = {"convnet and resnet": ({"model": "convnet"}, {"model": "resnet"})}
    >>> layers(results, panels)[0].figure.savefig("layers.png")  # doctest: +SKIP
    """
    results, by_chance = with_chance(results, measure)
    sides = (panels or {"": ({}, {})}).items()
    found = {title: layer_means(results, x, y, measure=measure) for title, (x, y) in sides}
    expected = [
        None if by_chance is None else layer_means(results, x, y, measure=by_chance).values for _, (x, y) in sides
    ]
    shown = list(dict.fromkeys(view for one in found.values() for view in one.views.ravel() if view))
    marks = dict(zip(shown, MARKS, strict=False))
    widths = [max(1.6, 0.42 * len(one.y_layers)) for one in found.values()]
    height = max(1.6, 0.36 * max(len(one.x_layers) for one in found.values()))
    figure = new_figure(sum(widths) + 1.1 * len(widths) + 1.2, height + 1.9)
    axes: NumpyArray = figure.subplots(1, len(found), squeeze=False, width_ratios=widths)[0]
    scale = scale_of(measure, [one.values for one in found.values()])
    shown_as = ".2f" if scale["vmax"] < 100 else ".0f"
    for panel, (title, one), chance in zip(axes, found.items(), expected, strict=True):
        image = panel.imshow(one.values, **scale, origin="lower", aspect="auto")
        panel.set_facecolor(nothing_colour())
        mark_chance(panel, one.values, chance)
        name_layers(panel.xaxis, one.y_layers)
        name_layers(panel.yaxis, one.x_layers)
        panel.tick_params(axis="x", labelrotation=90)
        panel.set_title(title + (" (one network with itself)" if one.same else ""), fontsize=10)
        if max(one.values.shape) <= NAMES:
            for (i, j), value in np.ndenumerate(one.values):
                if np.isfinite(value):
                    text = f"{value:{shown_as}}{marks[one.views[i, j]]}"
                    dark = (value < 0.6 * scale["vmax"]) != scale["cmap"].endswith("_r")
                    panel.text(j, i, text, ha="center", va="center", fontsize=6, color="w" if dark else "k")
    said = ", ".join(f"{view} {mark}".strip() for view, mark in marks.items())
    bar_with_chance(
        figure.colorbar(image, ax=list(axes), pad=0.01, fraction=0.05),
        expected,
        measure,
        said_of_chance(results, measure),
    )
    holes = any(np.isnan(one.values).any() for one in found.values())
    rows = "rows: what is named first, columns: second; " if panels else ""
    words = f"{rows}view: {said}" + ("; grey: not compared" if holes else "")
    figure.supxlabel(textwrap.fill(words, int(12 * figure.get_figwidth())), fontsize=9)
    return axes


def layer_means(
    results: xr.Dataset, x: Mapping[str, Any], y: Mapping[str, Any], *, measure: str = "svcca"
) -> LayerMeans:
    """Return the numbers that `layers` draws in one panel; parameters and errors as there."""
    numbers, _ = of_one_share(results, measure)
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
    views = views_of(chosen)
    networks = [networks_along(chosen, side) for side in "xy"]
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
