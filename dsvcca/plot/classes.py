"""What layers know of targets, class by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from dsvcca.errors import DsvccaError, nearest
from dsvcca.maths.arrays import NumpyArray
from dsvcca.plot.figures import axes_for, legend_beside, styles, text_colour
from dsvcca.plot.lines import check_one_kind
from dsvcca.plot.shown import VARIANCE, label_along, mean_and_error, mean_of, networks_along, step_text
from dsvcca.results.dataset import FLOOR, R2

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Sensitivity:
    """What layers explain of targets, mean over networks.

    Attributes
    ----------
    layers, targets : tuple of str
    means, errors : (targets, layers) float64
        NaN where there is nothing, or one network.
    floor : (layers,) float64
        What they explain of a target that has nothing to do with them.
    step : float or None
    networks : (layers,) int64
    """

    layers: tuple[str, ...]
    targets: tuple[str, ...]
    means: NumpyArray
    errors: NumpyArray
    floor: NumpyArray
    step: float | None
    networks: NumpyArray


def classes(results: xr.Dataset, *, step: float | None = None, axes: Axes | None = None) -> Axes:
    """Draw how much of each target (a class, say) every layer explains, as figure 5 of Raghu et al. 2017 does.

    A line a target, over the layers in the order of the results; mean over networks, bands of one standard error.
    Dotted is what layers explain of a target that has nothing to do with them.

    Parameters
    ----------
    results : xarray.Dataset
        Of a plan with ``targets=``. Where it has a `variance` dimension, the share nearest to 0.99 is drawn.
    step : float, optional
        Of training; by default the last.
    axes : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    DsvccaError
        If the results hold no targets, or not the step, or networks differ in more than their seed.
    MissingError
        If matplotlib is not installed.

    Examples
    --------
    ``classes(results, step=1000).figure.savefig("classes.png")``
    """
    found = sensitivity(results, step=step)
    axes = axes_for(axes, max(5.0, 1.5 + 0.5 * len(found.layers)), 4.0)
    place = np.arange(len(found.layers))
    for name, means, errors, style in zip(
        found.targets, found.means, found.errors, styles(len(found.targets)), strict=True
    ):
        axes.plot(place, means, label=name, **style)
        error = np.nan_to_num(errors)
        axes.fill_between(place, means - error, means + error, color=style["color"], alpha=0.2, linewidth=0)
    axes.plot(place, found.floor, ":", color=text_colour(), label="chance", gid="chance")
    axes.set_xticks(place, found.layers, rotation=90 if len(found.layers) > 6 else 0)
    axes.set_ylim(0, max(1.0, float(np.nanmax(found.means))))
    axes.set_ylabel("share of a target's variance explained")
    at = "" if found.step is None else f"step {step_text(found.step)}, "
    axes.set_title(f"{at}{mean_of(found.networks)}", fontsize=9)
    legend_beside(axes)
    return axes


def sensitivity(results: xr.Dataset, *, step: float | None = None) -> Sensitivity:
    """Return the numbers that `classes` draws; parameters and errors as there."""
    if R2 not in results:
        raise DsvccaError("these results hold no targets: plan with targets=, the columns of which are classes")
    if "variance" in results[R2].dims:
        results = results.isel(variance=int(np.abs(results["variance"].values - VARIANCE).argmin()))
    check_one_kind(results)
    values = results[R2].transpose("x", "target").values
    floor = results[FLOOR].values
    layers, networks = label_along(results, "x", "layer"), networks_along(results, "x")
    here = np.ones(len(layers), dtype=bool)
    if "x_step" in results.coords:
        steps = results["x_step"].values
        step = float(np.nanmax(steps)) if step is None else step
        here = steps == step
        if not here.any():
            raise DsvccaError(f"nothing in these results has step={step!r}: {nearest(step, steps.tolist())}")
    elif step is not None:
        raise DsvccaError(f"step={step!r} was given, and these results have no label 'step': leave it out")
    names = tuple(dict.fromkeys(layers[here].tolist()))
    targets = tuple(map(str, results["target"].values))
    means, errors = (np.full((len(targets), len(names)), np.nan) for _ in range(2))
    by_chance, counts = np.full(len(names), np.nan), np.zeros(len(names), dtype=np.int64)
    for j, name in enumerate(names):
        own = np.flatnonzero(here & (layers == name) & np.isfinite(values).all(axis=1))
        if len(own):
            by_chance[j], counts[j] = floor[own].mean(), len({networks[k] for k in own})
            for i in range(len(targets)):
                means[i, j], errors[i, j] = mean_and_error(values[own, i], [(networks[k],) for k in own])
    return Sensitivity(tuple(map(str, names)), targets, means, errors, by_chance, step, counts)
