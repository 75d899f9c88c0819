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

AGAIN = 50
"""Flops of products that a portion is worth, at least, for every byte that it reads again: what 2 GB/s take."""

SOLVE, VECTORS = 4000, 3
"""Flops of products that solves for k correlations take the time of, over k^2; and how many times that with vectors."""


def portions(
    passes: Sequence[Pass], weight: Callable[[Pass], NumpyArray], again: Callable[[Pass], int], panel: int, tiles: int
) -> list[Sequence[Pass]]:
    """Return the portions of a tile, which cost about the same, each with its passes: one if the tile is left as it is.

    Parameters
    ----------
    passes : sequence of Pass
        Those of the tile.
    weight : function
        What each row of a pass costs, (x,) in flops of products.
    again : function
        Bytes of a pass that every portion reads.
    panel : int
        Places in a panel.
    tiles : int
        How many the plan has, also where some of them are done: a tile is cut as it was when the run was interrupted.
    """
    most = MOST // max(tiles, 1)
    if most < 2:
        return [passes]
    costs = np.zeros(panel)
    for one in passes:
        costs[list(one.x_members)] += weight(one)
    whole = costs.sum()
    count = min(most, int(whole / max(PORTION, AGAIN * sum(map(again, passes)))))
    if count < 2:
        return [passes]
    shares = ((costs.cumsum() - costs / 2) * count // whole).astype(int)
    cut = ([one.of_rows(shares == share) for one in passes] for share in range(count))
    found = [[one for one in several if one is not None] for several in cut]
    return [several for several in found if several]
