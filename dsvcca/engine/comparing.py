"""Ranks and measures of pairs of bases that share rows and frequencies: two panels are read, multiplied and solved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsvcca.engine.panel import Panel, Shuffled
from dsvcca.engine.products import CrossBlock, cross_blocks, row_products
from dsvcca.engine.solves import Rows, solve
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.basis import RankRule
from dsvcca.maths.correlations import EXCESS, check_excess
from dsvcca.maths.measures import AGAIN, BY_RIDGE, Side, Sides, doubt_of, measures_of, sums_of
from dsvcca.maths.nulls import edges, mean_by_chance
from dsvcca.maths.resampling import FOLDS, TIED, fold_bounds
from dsvcca.maths.sums import LARGEST, OF_FOLDS, OF_GOOGLE, OF_RIDGE, OF_SQUARES, OF_VECTORS
from dsvcca.maths.views import GRID
from dsvcca.results.dataset import BY_FREQUENCY, CORRELATIONS, RANKS
from dsvcca.workspace.packs import BasisRef

FEW = 4
"""Directions of one side up to which float64 sums are worth it: errors of more of them cancel."""

LUMPS = 0.05
"""Sum of squared shares of the variance of 64 neighbouring rows from which on they are: as of 20 such blocks alone."""


@dataclass(frozen=True)
class BasisPairs:
    """Bases of both sides of a tile that share rows and frequencies, and which pairs of them are wanted.

    Attributes
    ----------
    rows : int
    freedom : int
        Independent ones, less one for their mean; 0 where nothing is known of chance.
    unit : int
        Rows of a datapoint; 0 where their numbers differ, or it is not known whose they are.
    x, y : tuple of BasisRef
    x_members, y_members : tuple of int
        Whose they are: places within the panels.
    first_frequency : int
        Where results hold the first of their frequencies; -1 where they do not.
    wanted, names : bytes
        Bits and int8, (x, y), compressed: which pairs, and what each comparison is called.
    """

    rows: int
    freedom: int
    unit: int
    x: tuple[BasisRef, ...]
    y: tuple[BasisRef, ...]
    x_members: tuple[int, ...]
    y_members: tuple[int, ...]
    first_frequency: int
    wanted: bytes
    names: bytes


@dataclass(frozen=True)
class Asked:
    """What is asked of pairs of bases.

    Attributes
    ----------
    workspace : str
        Where the bases are.
    rules : tuple of RankRule
    measures : tuple of str
    ridges : tuple of float
        Of the measures that have one.
    shuffles : int
        How often datapoints are shuffled.
    correlations : int
        How many of each pair are kept; 0 where none are.
    budget : int
        Bytes of arrays that may be there at once.
    """

    workspace: str
    rules: tuple[RankRule, ...]
    measures: tuple[str, ...]
    ridges: tuple[float, ...]
    shuffles: int
    correlations: int
    budget: int


def compared(asked: Asked, pairs: BasisPairs, wanted: NumpyArray) -> tuple[dict[str, NumpyArray], float]:
    """Return ranks and measures (x, y, rules) of the wanted pairs of some bases, and by how much PWCCA may be off."""
    x = Panel(asked.workspace, pairs.x, asked.rules, asked.ridges)
    y = x if pairs.x == pairs.y else Panel(asked.workspace, pairs.y, asked.rules, asked.ridges)
    names, shape = sums_of(asked.measures), (*wanted.shape, len(asked.rules))
    by_folds = not (x.is_joint or not pairs.unit or set(OF_FOLDS).isdisjoint(names))
    over = Rows(pairs.rows, pairs.freedom, fold_bounds(pairs.rows, pairs.unit) if by_folds else None)
    more = {name: (len(asked.ridges),) for name in OF_RIDGE}
    more["jackknife"] = (FOLDS,) if over.bounds is None else (len(over.bounds) - 1,)
    totals = {name: np.zeros((*shape, *more.get(name, ()))) for name in (*names, LARGEST)}
    if asked.correlations and len(x.weights) == 1:
        totals[CORRELATIONS] = np.full((*shape, asked.correlations), np.nan)
    unknown = {} if by_folds else {name: totals.pop(name) * np.nan for name in OF_FOLDS if name in totals}
    kept = pairs.first_frequency >= 0
    means = np.full((*wanted.shape, len(x.weights) if kept else 0, len(asked.rules)), np.nan)
    for block in cross_blocks(x, y, pairs.rows, wanted, asked.budget, bounds=over.bounds):
        before = totals["rho"].copy() if kept else None
        solve(block, x, y, over, wanted, totals)
        if before is not None:
            _keep_mean(block, x, y, totals["rho"] - before, means)
        del block  # or it would be there still while the next one is made
    if not x.is_joint:
        _sum_again(asked, pairs, x, y, wanted, totals)
    check_excess(float(totals.pop(LARGEST)[wanted].max(initial=0.0)))
    totals |= unknown
    if "shuffled" in totals:
        _shuffle(asked, pairs, x, y, wanted, totals)
    norms4 = [np.full(panel.ranks.shape[:2], np.nan) for panel in (x, y)]
    if "row_products" in totals:
        # Rows of one datapoint are not independent, and by frequency there is one norm for all of them.
        if x.is_joint or len(x.weights) > 1 or pairs.unit != 1:
            totals["row_products"][:] = np.nan
        else:
            totals["row_products"], *norms4 = row_products(x, y, pairs.rows)
    sides = Sides(
        x=_side(x, 0, shape, norms4[0]),
        y=_side(y, 1, shape, norms4[1]),
        rows=pairs.rows,
        by_chance=_by_chance(x, y, pairs.freedom, wanted) if "chance" in asked.measures else np.asarray(np.nan),
        edge=_edge(x, y, pairs.freedom, wanted) if "chance_edge" in asked.measures else np.asarray(np.nan),
        shuffles=asked.shuffles,
    )
    with np.errstate(invalid="ignore"):  # 0 / 0 where no comparison was asked for
        found = {**measures_of(totals, sides), **dict(zip(RANKS, (sides.x.rank, sides.y.rank), strict=True))}
    found |= {name: totals[name] for name in (CORRELATIONS,) if name in totals}
    found |= {name: found[name].swapaxes(-1, -2) for name in (*BY_RIDGE, CORRELATIONS) if name in found}
    doubt = float(np.max(doubt_of(totals)[wanted], initial=0.0)) if "x_doubt" in totals else 0.0
    return {**found, BY_FREQUENCY: means}, doubt


def _side(panel: Panel, axis: int, shape: tuple[int, ...], norms4: NumpyArray) -> Side:
    """Return what there is of a panel on one side of comparisons (x, y, rules); `norms4` are sums of ||x_i||^4."""
    ranks = np.sum(panel.ranks * panel.weights, axis=2)

    def along(values: NumpyArray) -> NumpyArray:
        found: NumpyArray = np.expand_dims(values, (1 - axis, 2))
        return found

    return Side(
        rank=np.broadcast_to(np.expand_dims(ranks, 1 - axis), shape),
        power=along(panel.powers[0]),
        power2=along(panel.powers[1]),
        kept_power=np.expand_dims(panel.kept_powers[0], 1 - axis),
        kept_power2=np.expand_dims(panel.kept_powers[1], 1 - axis),
        norms4=np.expand_dims(norms4, 1 - axis),
        shrunk4=np.expand_dims(panel.shrunk4, 1 - axis),
        scale=along(panel.scales),
    )


def _by_chance(x: Panel, y: Panel, freedom: int, wanted: NumpyArray) -> NumpyArray:
    """Return the mean correlation that independent data of the same ranks would show, (x, y, rules)."""
    found = np.zeros((*wanted.shape, x.ranks.shape[1]))
    if not freedom:
        return np.full(found.shape, np.nan)
    i, j = np.nonzero(wanted)
    for rule in range(x.ranks.shape[1]):
        for f, weight in enumerate(x.weights.tolist()):
            k_x, k_y = x.ranks[i, rule, f], y.ranks[j, rule, f]
            kinds, which = np.unique(np.sort(np.stack([k_x, k_y]), axis=0), axis=1, return_inverse=True)
            some = kinds[0] > 0
            sums = np.zeros(len(some))
            p, q = kinds[:, some]
            sums[some] = p * mean_by_chance(p, q, freedom, weight)
            found[i, j, rule] += weight * sums[which.ravel()]
        fewer = np.minimum((x.ranks[:, rule] @ x.weights)[i], (y.ranks[:, rule] @ y.weights)[j])
        found[i, j, rule] /= fewer
    return found


def _edge(x: Panel, y: Panel, freedom: int, wanted: NumpyArray) -> NumpyArray:
    """Return the largest correlation that independent data of the same ranks would show, (x, y, rules)."""
    found = np.zeros((*wanted.shape, x.ranks.shape[1]))
    if not freedom:
        return np.full(found.shape, np.nan)
    i, j = np.nonzero(wanted)
    for f in range(len(x.weights)):
        k_x, k_y = x.ranks[i, :, f], y.ranks[j, :, f]
        found[i, j] = np.maximum(found[i, j], np.where((k_x > 0) & (k_y > 0), edges(k_x, k_y, freedom)[1], 0.0))
    return found


def _sum_again(
    asked: Asked, pairs: BasisPairs, x: Panel, y: Panel, wanted: NumpyArray, totals: dict[str, NumpyArray]
) -> None:
    """Compute anew, by sums in float64, what float32 sums leave unsure.

    That is everything about pairs of which a side has few directions, whose errors do not cancel, or lies in few rows,
    whose products are summed alone, or that show a correlation above 1; and PWCCA where correlations lie so close
    together that directions turn.
    """
    few = np.minimum.outer(x.most_kept, y.most_kept) <= FEW
    above = totals[LARGEST].max(axis=-1) > 1 + EXCESS
    all_of = wanted & (few | (np.maximum.outer(x.lumps, y.lumps) > LUMPS) | above)
    weights_of = all_of
    if "x_doubt" in totals:
        weights_of = all_of | (wanted & (doubt_of(totals).max(axis=-1) > AGAIN))
    if not weights_of.any():
        return
    again = {name: np.zeros_like(one) for name, one in totals.items() if name not in OF_FOLDS}
    for block in cross_blocks(x, y, pairs.rows, weights_of, asked.budget, again=True):
        solve(block, x, y, Rows(pairs.rows, pairs.freedom), weights_of, again)
        del block
    for name, one in again.items():
        here = weights_of if name in (*OF_VECTORS, *OF_SQUARES, *OF_GOOGLE) else all_of
        totals[name][here] = one[here]


def _shuffle(
    asked: Asked, pairs: BasisPairs, x: Panel, y: Panel, wanted: NumpyArray, totals: dict[str, NumpyArray]
) -> None:
    """Add up sum(rho) of shuffled datapoints; NaN where they cannot be shuffled, or both sides are one."""
    same = np.equal.outer(np.asarray(x.seeds), np.asarray(y.seeds))  # which would be shuffled alike
    if x.is_joint or not 0 < pairs.unit <= GRID // 4:
        same = np.ones_like(same)
    for draw in range(0 if same.all() else asked.shuffles):
        own = {"rho": np.zeros_like(totals["rho"])}
        shuffled = Shuffled(pairs.unit, draw)
        for block in cross_blocks(x, y, pairs.rows, wanted & ~same, asked.budget, shuffled=shuffled):
            solve(block, x, y, Rows(pairs.rows, pairs.freedom), wanted & ~same, own)
            del block
        totals["shuffled"] += own["rho"] / asked.shuffles
        if "exceeded" in totals:
            totals["exceeded"] += own["rho"] >= (1 - TIED) * totals["rho"]
    totals["shuffled"][same] = np.nan


def _keep_mean(block: CrossBlock, x: Panel, y: Panel, added: NumpyArray, means: NumpyArray) -> None:
    """Keep the mean correlation at one frequency, from what it added to the sums; nothing where a side keeps none."""
    f, x_run, y_run = block.frequency, block.x_run, block.y_run
    here = np.ix_(list(x_run), list(y_run))
    fewer = np.minimum(x.ranks[x_run.start : x_run.stop, None, :, f], y.ranks[None, y_run.start : y_run.stop, :, f])
    part = added[here] / np.where(fewer > 0, fewer * x.weights[f], 1)
    means[x_run.start : x_run.stop, y_run.start : y_run.stop, f] = np.where(fewer > 0, part, np.nan)
