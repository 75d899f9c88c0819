"""What figures have in common: which numbers of results are drawn, in what colours, names along an axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dsvcca.errors import DsvccaError, nearest
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.measures import MEASURES

if TYPE_CHECKING:
    pass


VARIANCE = 0.99
"""Where results hold several shares of variance, the one nearest to this is shown."""


ACROSS = 4
"""Panels in a row."""


NAMES = 30
"""Layer names along an axis, at most: where there are more layers, every second, third, ... is named."""


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


def name_layers(axis: Any, layers: Sequence[str]) -> None:
    stride = -(-len(layers) // NAMES)
    axis.set_ticks(range(0, len(layers), stride), list(layers[::stride]), fontsize=8)
