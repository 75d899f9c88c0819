"""Figures on backgrounds light and dark, in colours that most people can tell apart, with chance to be seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dsvcca.errors import needing
from dsvcca.maths.arrays import NumpyArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8639a", "#c77c00", "#3a96d0")
"""Of lines: after Okabe and Ito (2008), the bright ones darker, so that they stand out of white and of black."""

MARKERS = ("o", "s", "^", "D", "v", "P")
"""Of lines, one for each colour: a second way to tell them apart."""

CHANCE = "////"
"""How what is no more than chance is hatched."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches, as pyplot makes them: notebooks show it, `plt.show` does.

    Raises
    ------
    MissingError
        If matplotlib is not installed.
    """
    with needing("figures need", "plot"):
        from matplotlib import pyplot
    return pyplot.figure(figsize=(width, height), layout="constrained")


def axes_for(axes: Axes | None, width: float, height: float) -> Axes:
    """Return the axes to draw into: those that were given, or those of a new figure."""
    return new_figure(width, height).subplots() if axes is None else axes


def text_colour() -> str:
    """Return the colour of words, as the style has it: what is to be seen on its background."""
    from matplotlib import rcParams

    return str(rcParams["text.color"])


def is_dark() -> bool:
    """Return whether the style has a dark background."""
    from matplotlib import rcParams
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(rcParams["axes.facecolor"])
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.5


def nothing_colour() -> str:
    """Return the colour of cells that hold nothing."""
    return "0.3" if is_dark() else "0.85"


def styles(count: int, *, ordered: bool = False) -> list[dict[str, Any]]:
    """Return the colours and markers of so many lines; where their order means something, from dark to bright."""
    from matplotlib import colormaps

    if ordered or count > len(COLOURS):
        low, high = (0.3, 1.0) if is_dark() else (0.0, 0.8)
        colours: Sequence[Any] = [colormaps["viridis"](at) for at in np.linspace(low, high, max(count, 2))]
    else:
        colours = COLOURS
    return [{"color": colours[i], "marker": MARKERS[i % len(MARKERS)], "markersize": 4} for i in range(count)]


def mark_chance(axes: Axes, values: NumpyArray, chance: NumpyArray | None) -> None:
    """Hatch the cells of an image that are no larger than chance."""
    from matplotlib.patches import Rectangle

    if chance is None:
        return
    for i, j in np.argwhere(values <= chance):
        cell = (j - 0.5, i - 0.5)
        axes.add_patch(Rectangle(cell, 1, 1, fill=False, hatch=CHANCE, edgecolor="w", linewidth=0, gid="chance"))


def bar_with_chance(bar: Colorbar, chance: Sequence[NumpyArray | None], measure: str, what: str = "chance") -> None:
    """Say on a colour bar which part of it chance makes, from the least to the most of what is shown."""
    known = [one[np.isfinite(one)] for one in chance if one is not None]
    if not known or not sum(one.size for one in known):
        bar.set_label(f"{measure}\n(what chance gives is not known)", fontsize=8)
        return
    every = np.concatenate(known)
    low, high = float(every.min()), float(every.max())
    least = 0.004 * np.ptp(bar.ax.get_ylim())  # a line where chance is the same everywhere
    bar.ax.axhspan(low - least, high + least, fill=False, hatch=CHANCE, edgecolor="w", linewidth=1, gid="chance")
    said = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
    bar.set_label(f"{measure}\n(hatched: {what}, {said})", fontsize=8)


def whole_numbers(axis: Axis) -> None:
    """Let no tick stand between whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))


def legend_beside(axes: Axes) -> None:
    """Put a legend beside axes, where it hides nothing."""
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
