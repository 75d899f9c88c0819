"""Directions followed over training."""

from __future__ import annotations

from typing import Any

import pandas as pd

from dsvcca.analyses.over_training import COLUMNS
from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray
from dsvcca.plot.figures import COLOURS, new_figure, text_colour
from dsvcca.plot.shown import ACROSS

KINDS = {"signal": COLOURS[0], "noise": COLOURS[1], "random": "0.55"}
"""Kinds of directions that are followed over training, and their colours."""


def signal_and_noise(found: pd.DataFrame) -> NumpyArray:
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
    array of matplotlib.axes.Axes
        One a layer.

    Raises
    ------
    DsvccaError
        If there is nothing to draw, or it is another table.
    MissingError
        If matplotlib is not installed.

    Examples
    --------
    ``signal_and_noise(dsvcca.signal_and_noise(store))[0].figure.savefig("signal.png")``
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
                panel.axvline(step, color="0.5", alpha=0.5, linewidth=0.8, zorder=0)
        for kind, colour in KINDS.items():
            _trace(panel, own[own["kind"] == kind], colour, kind)
        chance = own.groupby("step")["chance"].mean()
        panel.plot(chance.index, chance.to_numpy(), ":", color=text_colour(), linewidth=1.2, label="chance")
        panel.set_ylim(-0.02, 1.04)
        panel.set_title(str(shown[place]), fontsize=10)
        panel.tick_params(labelsize=8, labelbottom=place + across >= len(shown))
        panel.set_xlabel("step" if place + across >= len(shown) else "", fontsize=9)
    for row in panels:
        row[0].set_ylabel("mean correlation", fontsize=9)
    lines, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    figure.suptitle(_traced_title(found), fontsize=11)
    return panels.ravel()[: len(shown)]


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
