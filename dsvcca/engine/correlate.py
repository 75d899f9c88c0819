"""What one correlate task does on a worker: read two panels, multiply, solve, commit the tile, return a receipt."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dsvcca.engine.panel import Panel, Shuffled
from dsvcca.engine.products import CrossBlock, cross_blocks, row_products
from dsvcca.engine.solves import Rows, solve
from dsvcca.maths.arrays import NumpyArray, library
from dsvcca.maths.basis import RankRule
from dsvcca.maths.correlations import EXCESS, check_excess
from dsvcca.maths.measures import AGAIN, BY_RIDGE, Side, Sides, doubt_of, measures_of, sums_of
from dsvcca.maths.nulls import edges, mean_by_chance
from dsvcca.maths.resampling import FOLDS, TIED, fold_bounds
from dsvcca.maths.sums import LARGEST, OF_FOLDS, OF_GOOGLE, OF_RIDGE, OF_SQUARES, OF_VECTORS
from dsvcca.maths.views import GRID
from dsvcca.plans.layout import NUMERICS
from dsvcca.plans.passes import Pass
from dsvcca.results import commits, filling
from dsvcca.results.commits import (
    MIRRORED,
    Sheet,
    doubt_before,
    is_committed,
    read_tile,
    unpacked,
    write_tile,
)
from dsvcca.results.dataset import BY_FREQUENCY, CORRELATIONS, RANKS, VIEW
from dsvcca.storage import files
from dsvcca.workspace.packs import BasisRef
from dsvcca.workspace.partials import read_about, read_partial, write_partial

PORTIONS = ".portions"
"""Folder of results in which portions of tiles wait."""

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
class CorrelateTask:
    """One tile: where the bases of its two panels are, which pairs are wanted, where the numbers go. Never data.

    Attributes
    ----------
    portion : str
        Where its numbers are kept until they are merged, if it is a portion of the tile: the name of a partial result.
    portions : tuple of str
        Of what it is merged, if portions of it were computed before.
    """

    workspace: str
    sheet: Sheet
    passes: tuple[BasisPairs, ...]
    rules: tuple[RankRule, ...]
    ridges: tuple[float, ...]
    shuffles: int
    measures: tuple[str, ...]
    frequencies: int
    correlations: int
    budget: int
    portion: str = ""
    portions: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{'a portion of ' if self.portion else ''}tile {self.sheet.name}"


def correlate(task: CorrelateTask) -> str:
    """Compute one tile or a portion of it, or merge its portions, and commit that; return which array library computed.

    Nothing is done again of what a worker finished before it died with its receipt.
    """
    if task.portion:
        return _commit_portion(task)
    if is_committed(task.sheet):
        return library()
    values = _before(task)
    doubt = doubt_before(task.sheet)
    by = library()
    for pairs in task.passes:
        found, own = _solved(task, pairs)
        doubt = max(doubt, own)
        _enter(values, found, pairs.first_frequency)
    for name in task.portions:
        arrays, about = read_partial(portions_at(task.sheet.out), name)
        doubt, by = max(doubt, about["doubt"]), about["library"]
        for place, first_frequency in enumerate(about["first_frequencies"]):
            own_name = f"{place} "
            mine = {key.removeprefix(own_name): one for key, one in arrays.items() if key.startswith(own_name)}
            _enter(values, mine, first_frequency)
    if len(set(task.sheet.places)) == 1:
        _fill_below(values)
    with files.disk_errors(task.sheet.out):
        write_tile(task.sheet, values, doubt)
    return by


def portions_at(out: str) -> str:
    """Return where portions of tiles wait with some results until they are merged."""
    return f"{out}/{PORTIONS}"


def _commit_portion(task: CorrelateTask) -> str:
    """Compute a portion of a tile and keep it as a partial result, if that is not there already."""
    there = portions_at(task.sheet.out)
    about = read_about(there, task.portion)
    if about is None:
        solved = [_solved(task, pairs) for pairs in task.passes]
        about = {
            "library": library(),
            "doubt": max(doubt for _, doubt in solved),
            "first_frequencies": [pairs.first_frequency for pairs in task.passes],
        }
        arrays = {
            f"{place} {name}": one.astype(np.float64)
            for place, (found, _) in enumerate(solved)
            for name, one in found.items()
        }
        with files.disk_errors(task.sheet.out):
            write_partial(there, task.portion, arrays, about)
    by: str = about["library"]
    return by


def _solved(task: CorrelateTask, pairs: BasisPairs) -> tuple[dict[str, NumpyArray], float]:
    """Return every number of wanted pairs, and where in the tile they stand (x, y); and by how much PWCCA may be off.

    Each is (pairs, ...), with the dimensions that follow x and y in a tile.
    """
    shape = len(pairs.x), len(pairs.y)
    wanted = unpacked(pairs.wanted, shape)
    found, doubt = _compared(task, pairs, wanted)
    found[VIEW] = np.frombuffer(zlib.decompress(pairs.names), np.int8).reshape((*shape, 1))
    if pairs.first_frequency < 0:
        del found[BY_FREQUENCY]
    i, j = np.nonzero(wanted)
    where = {"x": np.asarray(pairs.x_members)[i], "y": np.asarray(pairs.y_members)[j]}
    return where | {name: found[name][i, j] for name in _names(task) if name in found}, doubt


def _enter(values: Mapping[str, NumpyArray], found: Mapping[str, NumpyArray], first_frequency: int) -> None:
    """Write the numbers of some pairs into those of a tile."""
    x, y = found["x"].astype(np.int64), found["y"].astype(np.int64)
    for name in found.keys() & values.keys():
        if name == BY_FREQUENCY:
            values[name][x, y, first_frequency : first_frequency + found[name].shape[1]] = found[name]
        else:
            values[name][x, y] = found[name]


def _names(task: CorrelateTask) -> list[str]:
    """Return what numbers a tile holds, those that exchange in its mirror among them."""
    both = dict.fromkeys(one for name in task.measures for one in (name, MIRRORED.get(name, name)))
    more = ((BY_FREQUENCY, task.frequencies), (CORRELATIONS, task.correlations))
    return [*both, *RANKS, VIEW, *(name for name, count in more if count)]


def _before(task: CorrelateTask) -> dict[str, NumpyArray]:
    """Return the numbers of the version before that stay, and of everything else that there is none."""
    shape, rules = task.sheet.shape, len(task.rules)
    inner = {
        **dict.fromkeys(BY_RIDGE, (len(task.ridges),)),
        BY_FREQUENCY: (task.frequencies,),
        CORRELATIONS: (task.correlations,),
    }
    values = {name: np.full((*shape, *inner.get(name, ()), rules), np.nan) for name in _names(task)}
    values |= {name: np.zeros((*shape, rules), dtype=np.int64) for name in RANKS}
    values[VIEW] = np.zeros((*shape, 1), dtype=np.int8)
    kept = task.sheet.kept
    if kept is not None:
        for name, block in read_tile(task.sheet).items():
            values[name][kept] = block[kept]
    return values


def _compared(task: CorrelateTask, pairs: BasisPairs, wanted: NumpyArray) -> tuple[dict[str, NumpyArray], float]:
    """Return ranks and measures (x, y, rules) of the wanted pairs of some bases, and by how much PWCCA may be off."""
    x = Panel(task.workspace, pairs.x, task.rules, task.ridges)
    y = x if pairs.x == pairs.y else Panel(task.workspace, pairs.y, task.rules, task.ridges)
    names, shape = sums_of(task.measures), (*wanted.shape, len(task.rules))
    by_folds = not (x.is_joint or not pairs.unit or set(OF_FOLDS).isdisjoint(names))
    over = Rows(pairs.rows, pairs.freedom, fold_bounds(pairs.rows, pairs.unit) if by_folds else None)
    more = {name: (len(task.ridges),) for name in OF_RIDGE}
    more["jackknife"] = (FOLDS,) if over.bounds is None else (len(over.bounds) - 1,)
    totals = {name: np.zeros((*shape, *more.get(name, ()))) for name in (*names, LARGEST)}
    if task.correlations and len(x.weights) == 1:
        totals[CORRELATIONS] = np.full((*shape, task.correlations), np.nan)
    unknown = {} if by_folds else {name: totals.pop(name) * np.nan for name in OF_FOLDS if name in totals}
    kept = pairs.first_frequency >= 0
    means = np.full((*wanted.shape, len(x.weights) if kept else 0, len(task.rules)), np.nan)
    for block in cross_blocks(x, y, pairs.rows, wanted, task.budget, bounds=over.bounds):
        before = totals["rho"].copy() if kept else None
        solve(block, x, y, over, wanted, totals)
        if before is not None:
            _keep_mean(block, x, y, totals["rho"] - before, means)
        del block  # or it would be there still while the next one is made
    if not x.is_joint:
        _sum_again(task, pairs, x, y, wanted, totals)
    check_excess(float(totals.pop(LARGEST)[wanted].max(initial=0.0)))
    totals |= unknown
    if "shuffled" in totals:
        _shuffle(task, pairs, x, y, wanted, totals)
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
        by_chance=_by_chance(x, y, pairs.freedom, wanted) if "chance" in task.measures else np.asarray(np.nan),
        edge=_edge(x, y, pairs.freedom, wanted) if "chance_edge" in task.measures else np.asarray(np.nan),
        shuffles=task.shuffles,
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
    task: CorrelateTask, pairs: BasisPairs, x: Panel, y: Panel, wanted: NumpyArray, totals: dict[str, NumpyArray]
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
    for block in cross_blocks(x, y, pairs.rows, weights_of, task.budget, again=True):
        solve(block, x, y, Rows(pairs.rows, pairs.freedom), weights_of, again)
        del block
    for name, one in again.items():
        here = weights_of if name in (*OF_VECTORS, *OF_SQUARES, *OF_GOOGLE) else all_of
        totals[name][here] = one[here]


def _shuffle(
    task: CorrelateTask, pairs: BasisPairs, x: Panel, y: Panel, wanted: NumpyArray, totals: dict[str, NumpyArray]
) -> None:
    """Add up sum(rho) of shuffled datapoints; NaN where they cannot be shuffled, or both sides are one."""
    same = np.equal.outer(np.asarray(x.seeds), np.asarray(y.seeds))  # which would be shuffled alike
    if x.is_joint or not 0 < pairs.unit <= GRID // 4:
        same = np.ones_like(same)
    for draw in range(0 if same.all() else task.shuffles):
        own = {"rho": np.zeros_like(totals["rho"])}
        shuffled = Shuffled(pairs.unit, draw)
        for block in cross_blocks(x, y, pairs.rows, wanted & ~same, task.budget, shuffled=shuffled):
            solve(block, x, y, Rows(pairs.rows, pairs.freedom), wanted & ~same, own)
            del block
        totals["shuffled"] += own["rho"] / task.shuffles
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


def _fill_below(values: dict[str, NumpyArray]) -> None:
    """Mirror the upper triangle of a tile on the diagonal."""
    size = len(next(iter(values.values())))
    below = np.tril_indices(size, -1)
    original = {name: block.copy() for name, block in values.items()}
    for name, block in values.items():
        block[below] = original.get(MIRRORED.get(name, name), block).swapaxes(0, 1)[below]


def tile_tasks(
    begun: filling.Begun, workspace: str, bases: dict[int, BasisRef], ranks: Sequence[int]
) -> tuple[list[CorrelateTask], list[CorrelateTask]]:
    """Return one task for every tile that lacks something, or for every portion of it; and those that merge portions.

    `ranks` are those of the aspects.
    """
    plan = begun.plan
    codes = np.asarray([0, *(1 + begun.views.index(name) for name in plan.names)], dtype=np.int8)
    tiles = sorted(begun.tiles, key=_along_a_curve)

    def task_of(missing: filling.Missing, passes: Sequence[Pass]) -> CorrelateTask:
        return CorrelateTask(
            workspace=workspace,
            sheet=missing.sheet,
            passes=tuple(
                BasisPairs(
                    rows=one.rows,
                    freedom=plan.freedom(one),
                    unit=plan.unit(one),
                    x=tuple(bases[k] for k in one.x),
                    y=tuple(bases[k] for k in one.y),
                    x_members=one.x_members,
                    y_members=one.y_members,
                    wanted=commits.packed(one.wanted),
                    first_frequency=plan.first_frequency(one.space),
                    names=zlib.compress(codes[one.names].tobytes()),
                )
                for one in passes
            ),
            rules=plan.rules,
            ridges=plan.ridges,
            shuffles=plan.shuffles,
            measures=plan.measures,
            frequencies=plan.kept_frequencies,
            correlations=plan.correlations,
            budget=plan.tile_budget,
        )

    tasks, merging = [], []
    for missing, several in zip(tiles, plan.portions([begun.passes_of(one) for one in tiles], ranks), strict=True):
        own = [task_of(missing, passes) for passes in several]
        if len(own) > 1:
            own = [replace(task, portion=_portion_name(task)) for task in own]
            merging.append(replace(task_of(missing, []), portions=tuple(task.portion for task in own)))
        tasks += own
    return tasks, merging


def _portion_name(task: CorrelateTask) -> str:
    """Return what a portion of a tile is called: after everything that its numbers follow."""
    content = repr((NUMERICS, replace(task, budget=0)))
    return "portion-" + hashlib.sha256(content.encode()).hexdigest()[:24]


def tile_work(task: CorrelateTask) -> dict[str, int]:
    """Return how much work a task is."""
    wanted = (unpacked(one.wanted, (len(one.x), len(one.y))) for one in task.passes)
    work = {"pairs solved": sum(int(one.sum()) for one in wanted)} if task.passes else {}
    return work if task.portion else {**work, "tiles committed": 1}


def _along_a_curve(missing: filling.Missing) -> tuple[bool, int]:
    """Return where a tile comes, so that tasks that follow each other share panels, which the system then still holds.

    The bits of its two panels in turn (Morton 1966); but those on the diagonal, half as large, come last, so that
    workers end together.
    """
    i, j = missing.sheet.places
    return i == j, sum((i >> bit & 1) << 2 * bit + 1 | (j >> bit & 1) << 2 * bit for bit in range(32))
