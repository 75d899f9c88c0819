"""Portions: tiles cut along their rows, where there are fewer tiles than workers could take.

Which rows go together changes no bit of any number, so that it may follow ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dsvcca.maths.arrays import NumpyArray
from dsvcca.plans.passes import Pass

MOST = 32
"""Portions of all tiles together, at most."""

PORTION = 1e11
"""Flops of products that a portion is worth, at least: a second or two."""

SOLVE, VECTORS = 4000, 3
"""Flops of products that solves for k correlations take the time of, over k^2; and how many times that with vectors."""


def portions(
    tiles: Sequence[Sequence[Pass]], weight: Callable[[Pass], NumpyArray], panel: int
) -> list[list[Sequence[Pass]]]:
    """Return the portions of every tile, each with its passes: one where the tile is left as it is.

    Parameters
    ----------
    tiles : sequence of sequences of Pass
        Those to be done, each with its passes.
    weight : function
        What each row of a pass costs, (x,) in flops of products.
    panel : int
        Places in a panel.
    """
    most = MOST // max(len(tiles), 1)
    return [[passes] for passes in tiles] if most < 2 else [_portions(passes, weight, panel, most) for passes in tiles]


def _portions(
    passes: Sequence[Pass], weight: Callable[[Pass], NumpyArray], panel: int, most: int
) -> list[Sequence[Pass]]:
    """Return at most so many portions of a tile, which cost about the same."""
    costs = np.zeros(panel)
    for one in passes:
        costs[list(one.x_members)] += weight(one)
    whole = costs.sum()
    count = min(most, int(whole / PORTION))
    if count < 2:
        return [passes]
    shares = ((costs.cumsum() - costs / 2) * count // whole).astype(int)
    cut = ([one.of_rows(shares == share) for one in passes] for share in range(count))
    found = [[one for one in several if one is not None] for several in cut]
    return [several for several in found if several]
