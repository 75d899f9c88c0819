"""Small figures that several experiments need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import colormaps

if TYPE_CHECKING:
    from matplotlib.axes import Axes


BESIDE = 6
"""Lines beyond which their names stand beside a figure, not in it."""


def mean_and_error(frame: pd.DataFrame, value: str, by: list[str]) -> pd.DataFrame:
    """Return mean and standard error of the mean of a column over the rows of each group: columns mean, error."""
    grouped = frame.groupby(by, sort=False)[value]
    return pd.DataFrame({"mean": grouped.mean(), "error": grouped.sem()}).reset_index()


def lines_with_bands(
    axis: Axes, frame: pd.DataFrame, *, x: str, y: str, lines: str, ordered: bool = False, **style: Any
) -> None:
    """Draw the mean of `y` against `x`, a line for each value of the column `lines`, with bands of one standard error.

    Everything else in which rows differ is what the mean is over: networks, mostly. Lines that are `ordered` go from
    dark to bright.
    """
    found = mean_and_error(frame, y, [lines, x])
    names = list(dict.fromkeys(found[lines]))
    colours = (
        colormaps["viridis"](np.linspace(0, 0.95, len(names))) if ordered else [f"C{i}" for i in range(len(names))]
    )
    for name, colour in zip(names, colours, strict=True):
        own = found[found[lines] == name].sort_values(x)
        [line] = axis.plot(own[x], own["mean"], label=str(name), **{"color": colour, **style})
        error = np.nan_to_num(own["error"])
        axis.fill_between(own[x], own["mean"] - error, own["mean"] + error, color=line.get_color(), alpha=0.2, lw=0)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(names) > BESIDE else {}
    axis.legend(frameon=False, fontsize="small", **beside)


def count_logarithmically(axis: Axes) -> None:
    """Let the horizontal axis be logarithmic, with the numbers 1, 3, 10, 30, ... written out."""
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    ticks = [n for power in range(6) for n in (10**power, 3 * 10**power) if low <= n <= high]
    axis.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axis.minorticks_off()
