"""Canonical correlations, largest first, beside the largest that chance gives; similarity at every frequency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray
from dsvcca.plot.figures import (
    axes_for,
    bar_with_chance,
    legend_beside,
    mark_chance,
    new_figure,
    nothing_colour,
    styles,
    whole_numbers,
)
from dsvcca.plot.shown import ACROSS, label_along, of_one_share
from dsvcca.results.dataset import BY_FREQUENCY, CORRELATIONS
from dsvcca.results.tables import select

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SINGLE = 8
"""Pairs of a line that are drawn one by one as well, at most."""


@dataclass(frozen=True)
class Spectrum:
    """Correlations of two layers, mean over pairs of networks.

    Attributes
    ----------
    name : str
    each : (pairs, correlations) float64
        NaN beyond the ranks.
    edge : float
        Mean of the largest correlation that chance gives.
    """

    name: str
    each: NumpyArray
    edge: float

    @property
    def means(self) -> NumpyArray:
        """Over the pairs that have so many correlations."""
        found: NumpyArray = np.nanmean(self.each, axis=0)
        return found


def spectra(
    results: xr.Dataset,
    *,
    x: Mapping[str, Any] | None = None,
    y: Mapping[str, Any] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Draw the canonical correlations of layers, largest first, and the largest that chance gives.

    A line is the mean over the pairs of representations of two layers, each with every other (none with itself); of few
    pairs thin lines are the pairs. Where a correlation stands above the dotted line of its colour, there is something
    that both share; what lies below may be chance.

    Parameters
    ----------
    results : xarray.Dataset
        Of a plan with ``keep=["correlations"]``. Where it has a `variance` dimension, the share nearest to 0.99 is
        drawn.
    x, y : mapping, optional
        Labels to show, as `select` takes them. By default each layer with itself in other representations, where there
        are such pairs, else all of them.
    axes : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    DsvccaError
        If no correlations were kept of these pairs.
    MissingError
        If matplotlib is not installed.

    Examples
    --------
    ``spectra(results, x={"step": 0}, y={"step": 1000}).figure.savefig("spectra.png")``
    """
    found = mean_spectra(results, x=x, y=y)
    axes = axes_for(axes, 6.4, 4.0)
    for one, style in zip(found, styles(len(found)), strict=True):
        place = np.arange(1, one.each.shape[1] + 1)
        axes.plot(place, one.means, label=one.name, **style)
        if 1 < len(one.each) <= SINGLE:
            axes.plot(place, one.each.T, color=style["color"], linewidth=0.5, alpha=0.4)
        if np.isfinite(one.edge):
            axes.plot(place[[0, -1]], [one.edge, one.edge], ":", color=style["color"], gid="chance")
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("direction")
    whole_numbers(axes.xaxis)
    axes.set_ylabel("canonical correlation")
    edges = [one.edge for one in found if np.isfinite(one.edge)]
    axes.set_title("dotted: the largest that chance gives" if edges else "what chance gives is not known", fontsize=9)
    legend_beside(axes)
    return axes


def mean_spectra(
    results: xr.Dataset, *, x: Mapping[str, Any] | None = None, y: Mapping[str, Any] | None = None
) -> list[Spectrum]:
    """Return the correlations that `spectra` draws; parameters and errors as there."""
    if CORRELATIONS not in results:
        raise DsvccaError(
            "these results keep no correlations: plan with keep=['correlations'], or take one pair, "
            "dsvcca.directions(store, x, y).correlations"
        )
    chosen = select(results, x=x or {}, y=y or {})
    rho = of_one_share(chosen, CORRELATIONS)[0].transpose("x", "y", ...).values
    edge = of_one_share(chosen, "chance_edge")[0].transpose("x", "y").values
    pairs = pairs_of_layers(chosen, np.isfinite(rho).any(axis=2), both=x is not None or y is not None)
    if not pairs:
        raise DsvccaError(
            "these results keep no correlations of such pairs, which are compared by frequency, or not at all: choose "
            "others by x= and y="
        )
    found = []
    for name, (i, j) in pairs.items():
        own = rho[i, j]
        kept = np.isfinite(own).any(axis=0)
        found.append(Spectrum(name, own[:, kept], float(edge[i, j].mean())))
    return found


def pairs_of_layers(results: xr.Dataset, there: NumpyArray, *, both: bool) -> dict[str, tuple[NumpyArray, NumpyArray]]:
    """Return the compared pairs (places on x, on y) of every two layers: none with itself, each once.

    Parameters
    ----------
    there : (x, y) bool
        Which were compared.
    both : bool
        Whether all layers are wanted with each other; else each with its like, where such pairs are there.
    """
    layers = [label_along(results, side, "layer") for side in "xy"]
    places = [results[side].values for side in "xy"]
    itself = places[0][:, None] == places[1][None, :]
    twice = np.isin(places[0], places[1])[:, None] & np.isin(places[1], places[0])[None, :]
    once = there & ~itself & (~twice | (places[0][:, None] < places[1][None, :]))
    same = layers[0][:, None] == layers[1][None, :]
    if not both and (once & same).any():
        once &= same
    if not once.any():
        once = there & ~itself
    found: dict[str, tuple[NumpyArray, NumpyArray]] = {}
    for a in dict.fromkeys(layers[0].tolist()):
        for b in dict.fromkeys(layers[1].tolist()):
            i, j = np.nonzero(once & (layers[0] == a)[:, None] & (layers[1] == b)[None, :])
            if len(i):
                name = str(a) if a == b else f"{a} and {b}"
                before = found.get(f"{b} and {a}")
                if before is not None:
                    name, i, j = f"{b} and {a}", np.append(before[0], i), np.append(before[1], j)
                found[name] = i, j
    return found


def frequencies(
    results: xr.Dataset, *, x: Mapping[str, Any] | None = None, y: Mapping[str, Any] | None = None
) -> NumpyArray:
    """Draw how alike layers are at every spatial frequency: a map a pair of layers, the mean of images in its middle.

    Mean over pairs of networks, none with itself. Far from the middle are fine patterns, near it coarse ones.

    Parameters
    ----------
    results : xarray.Dataset
        Of a plan with ``keep=["frequencies"]``. Where it has a `variance` dimension, the share nearest to 0.99 is
        drawn.
    x, y : mapping, optional
        Labels to show, as `select` takes them. By default each layer with itself in other representations, where there
        are such pairs, else all of them.

    Returns
    -------
    array of matplotlib.axes.Axes
        One a pair of layers.

    Raises
    ------
    DsvccaError
        If no frequencies were kept of these pairs, or maps have other than one or two axes.
    MissingError
        If matplotlib is not installed.

    Examples
    --------
    ``frequencies(results)[0].figure.savefig("frequencies.png")``
    """
    found = frequency_maps(results, x=x, y=y)
    across = min(ACROSS, len(found))
    down = -(-len(found) // across)
    figure = new_figure(2.5 * across + 1.4, 2.6 * down + 0.7)
    panels = figure.subplots(down, across, squeeze=False)
    for panel, (name, (values, chance)) in zip(panels.flat, found.items(), strict=False):
        h, w = values.shape
        image = panel.imshow(values, vmin=0, vmax=1, cmap="viridis", origin="lower")
        panel.set_facecolor(nothing_colour())
        mark_chance(panel, values, np.full(values.shape, chance))
        for axis, size in ((panel.xaxis, w), (panel.yaxis, h)):
            ticks = sorted({0, size // 2, size - 1})
            axis.set_ticks(ticks, [str(at - size // 2) for at in ticks], fontsize=8)
        panel.set_title(name, fontsize=10)
    for panel in panels.flat[len(found) :]:
        panel.set_axis_off()
    bar = figure.colorbar(image, ax=panels, pad=0.01, fraction=0.05)
    chances = [np.asarray([chance]) for _, chance in found.values()]
    bar_with_chance(bar, chances, "svcca")
    figure.supxlabel("cycles across the map; chance: of all frequencies together", fontsize=9)
    return panels.ravel()[: len(found)]


def frequency_maps(
    results: xr.Dataset, *, x: Mapping[str, Any] | None = None, y: Mapping[str, Any] | None = None
) -> dict[str, tuple[NumpyArray, float]]:
    """Return the maps that `frequencies` draws, (height, width) or (1, length), and chance; parameters as there."""
    if BY_FREQUENCY not in results:
        raise DsvccaError(
            "these results keep no frequencies: plan with keep=['frequencies'], and maps that meet as dft"
        )
    chosen = select(results, x=x or {}, y=y or {})
    values = of_one_share(chosen, BY_FREQUENCY)[0].transpose("x", "y", "frequency").values
    chance = of_one_share(chosen, "chance")[0].transpose("x", "y").values if "chance" in chosen else None
    pairs = pairs_of_layers(chosen, np.isfinite(values).any(axis=2), both=x is not None or y is not None)
    if not pairs:
        raise DsvccaError("these results keep no frequencies of such pairs: choose maps by x= and y=")
    found = {}
    for name, (i, j) in pairs.items():
        own = values[i, j]
        grids = {str(grid) for grid in chosen["frequency_grid"].values[np.isfinite(own).any(axis=0)]}
        for grid in sorted(grids):
            shape = tuple(map(int, grid.split("x")))
            if len(shape) > 2:
                raise DsvccaError(f"{name}: maps of {grid} have {len(shape)} axes, and two can be drawn: choose others")
            here = (chosen["frequency_grid"].values == grid) & np.isfinite(own).any(axis=0)
            bins = np.stack([chosen[f"frequency_{axis}"].values[here] for axis in range(len(shape))], axis=1)
            full = np.full((1, *shape)[-2:], np.nan)
            padded = np.concatenate([np.zeros((len(bins), 2 - len(shape)), int), bins], axis=1)
            for sign in (-1, 1):  # a bin stands for its conjugate as well
                at = (sign * padded + np.asarray(full.shape) // 2) % np.asarray(full.shape)
                full[at[:, 0], at[:, 1]] = np.nanmean(own[:, here], axis=0)
            said = name if len(grids) == 1 else f"{name}, {grid}"
            met = np.isfinite(own[:, here]).any(axis=1)  # the pairs that are compared on this grid
            found[said] = full, float("nan") if chance is None else float(chance[i, j][met].mean())
    return found
