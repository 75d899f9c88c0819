"""What one correlate task does on a worker: compare the pairs of a tile, or of a portion of it, and commit them."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dsvcca.engine.comparing import Asked, BasisPairs, compared
from dsvcca.maths.arrays import NumpyArray, library
from dsvcca.maths.measures import BY_RIDGE
from dsvcca.plans.layout import NUMERICS
from dsvcca.plans.passes import Pass
from dsvcca.results import commits, filling
from dsvcca.results.commits import (
    MIRRORED,
    Sheet,
    is_committed,
    read_tile,
    unpacked,
    write_tile,
)
from dsvcca.results.dataset import BY_FREQUENCY, CORRELATIONS, RANKS, VIEW
from dsvcca.storage import files
from dsvcca.workspace.packs import BasisRef
from dsvcca.workspace.partials import has_partial, read_about, read_partial, write_partial

PORTIONS = ".portions"
"""Folder beside the markers of results in which portions of tiles wait."""


@dataclass(frozen=True)
class CorrelateTask:
    """One tile: where the bases of its two panels are, which pairs are wanted, where the numbers go. Never data.

    Attributes
    ----------
    portion : str
        Where its numbers are kept until they are merged, if it is a portion of the tile: the name of a partial result.
    portions : tuple of str
        All those of the tile, of which it is merged.
    """

    sheet: Sheet
    passes: tuple[BasisPairs, ...]
    asked: Asked
    frequencies: int
    portion: str = ""
    portions: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{'a portion of ' if self.portion else ''}tile {self.sheet.name}"


def correlate(task: CorrelateTask) -> str:
    """Compute one tile or a portion of it, or merge its portions, and commit that; return which array library computed.

    Who finds all portions of a tile there merges them, so that results grow as a run goes on. Nothing is done again of
    what a worker finished before it died with its receipt.
    """
    if task.portion:
        by = _commit_portion(task)
        there = portions_at(task.sheet.out)
        if all(has_partial(there, name) for name in reversed(task.portions)):
            correlate(replace(task, passes=(), portion=""))
        return by
    if is_committed(task.sheet):
        return library()
    values, doubt, by = _before(task), 0.0, library()
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
    return f"{out}/{commits.COMMITS}/{PORTIONS}"


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
    found, doubt = compared(task.asked, pairs, wanted)
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
    both = dict.fromkeys(one for name in task.asked.measures for one in (name, MIRRORED.get(name, name)))
    more = ((BY_FREQUENCY, task.frequencies), (CORRELATIONS, task.asked.correlations))
    return [*both, *RANKS, VIEW, *(name for name, count in more if count)]


def _before(task: CorrelateTask) -> dict[str, NumpyArray]:
    """Return the numbers of the version before that stay, and of everything else that there is none."""
    shape, rules = task.sheet.shape, len(task.asked.rules)
    inner = {
        **dict.fromkeys(BY_RIDGE, (len(task.asked.ridges),)),
        BY_FREQUENCY: (task.frequencies,),
        CORRELATIONS: (task.asked.correlations,),
    }
    values = {name: np.full((*shape, *inner.get(name, ()), rules), np.nan) for name in _names(task)}
    values |= {name: np.zeros((*shape, rules), dtype=np.int64) for name in RANKS}
    values[VIEW] = np.zeros((*shape, 1), dtype=np.int8)
    kept = task.sheet.kept
    if kept is not None:
        for name, block in read_tile(task.sheet).items():
            values[name][kept] = block[kept]
    return values


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
    asked = Asked(
        workspace=workspace,
        rules=plan.rules,
        measures=plan.measures,
        ridges=plan.ridges,
        shuffles=plan.shuffles,
        correlations=plan.correlations,
        budget=plan.tile_budget,
    )

    def task_of(missing: filling.Missing, passes: Sequence[Pass]) -> CorrelateTask:
        return CorrelateTask(
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
            asked=asked,
            frequencies=plan.kept_frequencies,
        )

    tasks, merging = [], []
    for missing, several in zip(tiles, plan.portions([begun.passes_of(one) for one in tiles], ranks), strict=True):
        own = [task_of(missing, passes) for passes in several]
        if len(own) > 1:
            names = tuple(map(_portion_name, own))
            own = [replace(task, portion=name, portions=names) for name, task in zip(names, own, strict=True)]
            merging.append(replace(own[0], passes=(), portion=""))
        tasks += own
    return tasks, merging


def _portion_name(task: CorrelateTask) -> str:
    """Return what a portion of a tile is called: after everything that its numbers follow."""
    content = repr((NUMERICS, replace(task, asked=replace(task.asked, budget=0))))
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
