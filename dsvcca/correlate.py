"""What one correlate task does on a worker: read two panels, multiply, solve, commit the tile, return a receipt."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsvcca import files
from dsvcca.arrays import Array, NumpyArray, adjoint, from_pairs, namespace, to_numpy
from dsvcca.basis import Basis, Block, RankRule, inverse_cholesky, ranks_of
from dsvcca.correlations import corrected
from dsvcca.dataset import BY_FREQUENCY, RANKS, VIEW
from dsvcca.measures import TOTALS, exchanged, measures_of, totals_of_values, totals_of_vectors
from dsvcca.moments import grid_steps
from dsvcca.results import MIRRORED, Sheet, read_tile, write_tile
from dsvcca.sizes import STRIP, block_bytes, tile_memory
from dsvcca.views import GRID
from dsvcca.workspace import BasisRef, Pack

SHAPE, ROWS = 64, 16
"""Both sides of a product are multiples of SHAPE columns, and it runs over ROWS rows or more: no edges."""

SMALL = 1 << 20
"""Multiplications up to which BLAS may take a routine for small products: others have more."""

SOLVED_TOGETHER = 4 << 20
"""Bytes of cross blocks in one stack of solves."""


@dataclass(frozen=True)
class BasisPairs:
    """Bases of both sides of a tile that share rows and frequencies, and which pairs of them are wanted.

    Attributes
    ----------
    rows : int
    x, y : tuple of BasisRef
    x_members, y_members : tuple of int
        Whose they are: places within the panels.
    first_frequency : int
        Where results hold the first of their frequencies; -1 where they do not.
    wanted, names : bytes
        Bits and int8, (x, y), compressed: which pairs, and what each comparison is called.
    """

    rows: int
    x: tuple[BasisRef, ...]
    y: tuple[BasisRef, ...]
    x_members: tuple[int, ...]
    y_members: tuple[int, ...]
    first_frequency: int
    wanted: bytes
    names: bytes


@dataclass(frozen=True)
class CorrelateTask:
    """One tile: where the bases of its two panels are, which pairs are wanted, where the numbers go. Never data."""

    workspace: str
    sheet: Sheet
    passes: tuple[BasisPairs, ...]
    rules: tuple[RankRule, ...]
    measures: tuple[str, ...]
    frequencies: int
    budget: int

    def __str__(self) -> str:
        return f"tile {self.sheet.name}"


@dataclass(frozen=True)
class TileReceipt:
    """What the driver hears of a finished tile."""

    tile: tuple[int, ...]
    comparisons: int


class _Kept:
    """What one basis brings to the solves of one frequency: L^-1 (k, k), column sums (k,), loadings for every rank."""

    def __init__(self, block: Block) -> None:
        self.inverse = inverse_cholesky(block.cholesky)
        self.column_sums = block.column_sums
        self._block = block
        self._loadings: dict[int, Array] = {}

    def loadings(self, k: int) -> Array:
        """Return F (k, c) of the first k directions, as if no others had been kept."""
        if k not in self._loadings:
            self._loadings[k] = self._block.cut(k).loadings
        return self._loadings[k]


class Panel:
    """The bases of one panel: small parts in memory, columns read step by step.

    `ranks` (representations, rules, f) are the directions each rule keeps. `keys` order bases by what they hold: every
    pair is solved in that order of its two sides, so that its bits do not depend on which of them came first.
    """

    def __init__(self, workspace: str, refs: tuple[BasisRef, ...], rules: tuple[RankRule, ...]) -> None:
        self.refs = refs
        self.packs = {name: Pack(workspace, name) for name in dict.fromkeys(ref.pack for ref in refs)}
        kept: list[tuple[NumpyArray, ...]] = []
        self.keys: list[bytes] = []
        self.neurons: list[int] = []
        for ref in refs:
            basis = self.packs[ref.pack].basis(ref.position)
            self.weights = basis.weights
            kept.append(ranks_of(rules, basis.weights, basis.singular_values, basis.nonzero))
            self.keys.append(_digest(basis))
            self.neurons.append(len(basis.neuron_norms))
        self.ranks: NumpyArray = np.asarray(kept)
        self.most: NumpyArray = self.ranks.max(axis=1)
        self.widths = self.most * self.weights
        self._at: tuple[tuple[int, range], list[_Kept]] = ((-1, range(0)), [])

    @property
    def is_joint(self) -> bool:
        """Whether cross blocks are stored, and no columns."""
        return any(pack.pairs is not None for pack in self.packs.values())

    def joint_cross(self, f: int, i: int, other: Panel, j: int) -> NumpyArray:
        """Return the stored cross block (k_i, k_j) of basis i of this panel and basis j of another."""
        one, two = self.refs[i], other.refs[j]
        block = self.packs[one.pack].cross(f, one.position, two.position)
        return block[: int(self.most[i, f]), : int(other.most[j, f])]

    @property
    def bytes_a_column(self) -> float:
        """Bytes of what belongs to one real column at the frequency where that is most."""
        worst = 0.0
        for most, c in zip(self.most, self.neurons, strict=True):
            at = int(most.argmax())
            k, weight = int(most[at]), int(self.weights[at])
            worst = max(worst, block_bytes(k, c, weight) / max(1, k * weight))
        return worst

    def at(self, f: int, run: range) -> list[_Kept]:
        """Return what a run of bases brings to the solves of one frequency."""
        if self._at[0] != (f, run):
            stored = (self.packs[self.refs[i].pack].block(self.refs[i].position, f) for i in run)
            self._at = (f, run), [_Kept(b.cut(int(self.most[i, f]))) for i, b in zip(run, stored, strict=True)]
        return self._at[1]

    def runs(self, f: int, most: int) -> Iterator[range]:
        """Cut the panel into runs of at most `most` columns at one frequency (or one basis)."""
        start = total = 0
        for i, width in enumerate(self.widths[:, f].tolist()):
            if i > start and total + width > most:
                yield range(start, i)
                start, total = i, 0
            total += width
        yield range(start, len(self.refs))

    def fill(self, slab: NumpyArray, step: slice, run: range, frequencies: range) -> list[NumpyArray]:
        """Write the columns of a run of bases for one step of the grid into `slab`, and return those of each frequency.

        Rows up to `ROWS`, and columns up to a multiple of `SHAPE`, are zero where no basis is.
        """
        rows = step.stop - step.start
        slab = slab[: max(rows, ROWS)]
        slab[rows:] = 0
        found = []
        targets: dict[str, list[tuple[int, slice]]] = {}
        start = 0
        for f in frequencies:
            ends = start + np.cumsum([0, *self.widths[run.start : run.stop, f].tolist()])
            stop = start + padded(int(ends[-1]) - start)
            slab[:, ends[-1] : stop] = 0
            for place, i in zip(ends.tolist(), run, strict=False):
                first = self.packs[self.refs[i].pack].place(self.refs[i].position, f).start
                kept = slice(first, first + int(self.widths[i, f]))
                if kept.stop > kept.start:
                    targets.setdefault(self.refs[i].pack, []).append((place, kept))
            found.append(slab[:, start:stop])
            start = stop
        for name, wanted in targets.items():
            every = slice(min(kept.start for _, kept in wanted), max(kept.stop for _, kept in wanted))
            for rows_read, there, read in self.packs[name].columns(step, every):
                for place, kept in wanted:
                    begin, end = max(kept.start, there.start), min(kept.stop, there.stop)
                    if begin < end:
                        target = slice(place + begin - kept.start, place + end - kept.start)
                        slab[rows_read, target] = read[:, begin - there.start : end - there.start]
        return found


def _digest(basis: Basis) -> bytes:
    parts = (basis.singular_values, basis.row_norms, basis.blocks[0].components)
    return hashlib.blake2b(b"".join(part.tobytes() for part in parts)).digest()


def padded(columns: int) -> int:
    """Return the columns of a slab that holds so many."""
    return -(-columns // SHAPE) * SHAPE


def correlate(task: CorrelateTask) -> TileReceipt:
    """Compute and commit one tile."""
    values = _before(task)
    comparisons = 0
    for pairs in task.passes:
        shape = len(pairs.x), len(pairs.y)
        bits = np.frombuffer(zlib.decompress(pairs.wanted), np.uint8)
        wanted = np.unpackbits(bits, count=shape[0] * shape[1]).astype(bool).reshape(shape)
        found = _compared(task, pairs, wanted)
        found[VIEW] = np.frombuffer(zlib.decompress(pairs.names), np.int8).reshape((*shape, 1))
        i, j = np.nonzero(wanted)
        x, y = np.asarray(pairs.x_members)[i], np.asarray(pairs.y_members)[j]
        for name, target in values.items():
            if name == BY_FREQUENCY:
                if pairs.first_frequency >= 0:
                    here = slice(pairs.first_frequency, pairs.first_frequency + found[name].shape[2])
                    target[x, y, here] = found[name][i, j]
            else:
                target[x, y] = found[name][i, j]
        comparisons += len(i)
    if len(set(task.sheet.places)) == 1:
        _fill_below(values)
    with files.disk_errors(Path(task.sheet.out)):
        write_tile(task.sheet, values)
    return TileReceipt(task.sheet.places, comparisons)


def _before(task: CorrelateTask) -> dict[str, NumpyArray]:
    """Return the numbers of the version before that stay, and of everything else that there is none."""
    shape, rules = task.sheet.shape, len(task.rules)
    both = dict.fromkeys(one for name in task.measures for one in (name, MIRRORED.get(name, name)))
    values = {name: np.full((*shape, rules), np.nan) for name in both}
    values |= {name: np.zeros((*shape, rules), dtype=np.int64) for name in RANKS}
    values[VIEW] = np.zeros((*shape, 1), dtype=np.int8)
    if task.frequencies:
        values[BY_FREQUENCY] = np.full((*shape, task.frequencies, rules), np.nan)
    kept = task.sheet.kept
    if kept is not None:
        for name, block in read_tile(task.sheet).items():
            values[name][kept] = block[kept]
    return values


def _compared(task: CorrelateTask, pairs: BasisPairs, wanted: NumpyArray) -> dict[str, NumpyArray]:
    """Return ranks and measures (x, y, rules) of the wanted pairs of some bases."""
    weighted = any(name.startswith("pwcca") for name in task.measures)
    x = Panel(task.workspace, pairs.x, task.rules)
    y = x if pairs.x == pairs.y else Panel(task.workspace, pairs.y, task.rules)
    totals = {name: np.zeros((*wanted.shape, len(task.rules))) for name in (TOTALS if weighted else TOTALS[:2])}
    kept = pairs.first_frequency >= 0
    means = np.full((*wanted.shape, len(x.weights) if kept else 0, len(task.rules)), np.nan)
    most = _most_columns(task.budget, x, y, pairs.rows)
    for frequencies in _groups(x, y, most):
        for x_run in x.runs(frequencies.start, most):
            for y_run in y.runs(frequencies.start, most):
                if wanted[x_run.start : x_run.stop, y_run.start : y_run.stop].any():
                    if x.is_joint:
                        blocks = _joint_cross(x, x_run, y, y_run, frequencies)
                    else:
                        blocks = _cross(x, x_run, y, y_run, frequencies, pairs.rows)
                    for f, block in zip(frequencies, blocks, strict=True):
                        before = totals["rho"].copy() if kept else None
                        _solve(f, x, x_run, y, y_run, block, pairs.rows, wanted, totals)
                        if before is not None:
                            _keep_mean(f, x, x_run, y, y_run, totals["rho"] - before, means)
    ranks = [np.sum(panel.ranks * panel.weights, axis=2) for panel in (x, y)]
    both = np.broadcast_arrays(ranks[0][:, None, :], ranks[1][None, :, :])
    with np.errstate(invalid="ignore"):  # 0 / 0 where no comparison was asked for
        found = {**measures_of(totals, np.minimum(*both)), **dict(zip(RANKS, both, strict=True))}
    return {**found, BY_FREQUENCY: means}


def _keep_mean(f: int, x: Panel, x_run: range, y: Panel, y_run: range, added: NumpyArray, means: NumpyArray) -> None:
    """Keep the mean correlation at one frequency, from what it added to the sums; nothing where a side keeps none."""
    here = np.ix_(list(x_run), list(y_run))
    fewer = np.minimum(x.ranks[x_run.start : x_run.stop, None, :, f], y.ranks[None, y_run.start : y_run.stop, :, f])
    part = added[here] / np.where(fewer > 0, fewer * x.weights[f], 1)
    means[x_run.start : x_run.stop, y_run.start : y_run.stop, f] = np.where(fewer > 0, part, np.nan)


def _most_columns(budget: int, x: Panel, y: Panel, rows: int) -> int:
    """Return the columns a run may have on each side, so that the task stays in its budget."""
    x_columns, y_columns = int(x.widths.sum()), 0 if y is x else int(y.widths.sum())
    blocks = max(x.bytes_a_column, y.bytes_a_column)
    if tile_memory(x_columns, y_columns, rows, int(blocks * (x_columns + y_columns))) <= budget:
        return max(x_columns, y_columns)
    most = max(x_columns, y_columns)
    while most > SHAPE and tile_memory(most, most, rows, int(2 * blocks * most)) > budget:
        most = most * 7 // 8
    return most


def _groups(x: Panel, y: Panel, most: int) -> Iterator[range]:
    """Cut the frequencies into groups whose columns are at most `most` on each side (or one frequency)."""
    widths = np.maximum(x.widths.sum(axis=0), y.widths.sum(axis=0))
    start = total = 0
    for f, width in enumerate(map(padded, widths.tolist())):
        if f > start and total + width > most:
            yield range(start, f)
            start, total = f, 0
        total += width
    yield range(start, len(widths))


def _cross(x: Panel, x_run: range, y: Panel, y_run: range, frequencies: range, rows: int) -> list[Array]:
    """Return the real product of the columns of two runs at each frequency: float32 products of one step of the grid,
    summed in float64.

    The bits of a product must not depend on which bases share a panel. So slabs are padded with zeros to shapes for
    which BLAS has no special routine (`SHAPE`), and the left side is taken in strips, each a copy: an array times
    itself would take another routine as well. Of a run with itself only each basis and those right of it are made.
    """
    itself = x is y and x_run == y_run
    found: list[Array] = [None for _ in frequencies]
    for step, every_x, every_y in _slabs(x, x_run, y, y_run, frequencies, rows):
        least = padded(-(-SMALL // (SHAPE * max(step.stop - step.start, ROWS))))
        for place, (u_x, u_y) in enumerate(zip(every_x, every_y, strict=True)):
            ends = np.cumsum([0, *x.widths[x_run.start : x_run.stop, frequencies[place]].tolist()])
            found[place] = _add_product(found[place], u_x, u_y, ends if itself else None, least)
    return found


def _joint_cross(x: Panel, x_run: range, y: Panel, y_run: range, frequencies: range) -> list[Array]:
    """Return what `_cross` returns, from the cross blocks of a joint pack (zero where there is none)."""
    found = []
    for f in frequencies:
        weight = int(x.weights[f])
        x_ends = np.cumsum([0, *x.widths[x_run.start : x_run.stop, f].tolist()])
        y_ends = np.cumsum([0, *y.widths[y_run.start : y_run.stop, f].tolist()])
        block = np.zeros((int(x_ends[-1]), int(y_ends[-1])))
        for i, top in zip(x_run, x_ends.tolist(), strict=False):
            for j, left in zip(y_run, y_ends.tolist(), strict=False):
                c = x.joint_cross(f, i, y, j)
                into = block[top : top + weight * c.shape[0], left : left + weight * c.shape[1]]
                into[::weight, ::weight] = c.real
                if weight == 2:
                    into[::2, 1::2] = c.imag
        found.append(block)
    return found


def _add_product(m: Array, u_x: Array, u_y: Array, ends: NumpyArray | None, least: int) -> Array:
    """Return m + U_x^T U_y, or the product alone where m is None; with `ends` of its bases, U_x is U_y."""
    xp = namespace(u_x)
    columns = u_y.shape[1]
    if columns < least:
        u_y = xp.concat([u_y, xp.zeros((u_y.shape[0], least - columns), dtype=u_y.dtype)], axis=1)
    first_step = m is None
    if first_step:
        m = xp.empty((u_x.shape[1], columns), dtype=xp.float64)
    for strip in grid_steps(u_x.shape[1], STRIP):
        left = xp.asarray(u_x[:, strip], copy=True)
        first = 0 if ends is None else int(ends[np.searchsorted(ends, strip.start, side="right") - 1])
        start = max(0, min(first // SHAPE * SHAPE, u_y.shape[1] - least))
        product = xp.matmul(adjoint(left), u_y[:, start:])[:, : columns - start]
        if first_step:
            m[strip, start:] = product
        else:
            m[strip, start:] += product
    return m


def _slabs(
    x: Panel, x_run: range, y: Panel, y_run: range, frequencies: range, rows: int
) -> Iterator[tuple[slice, list[Array], list[Array]]]:
    """Yield the columns of two runs for every step of the grid; the next step is read while the caller uses one.

    Slabs are used again, every other step: they hold their numbers until the next one is asked for.
    """
    itself = x is y and x_run == y_run
    height = max(min(rows, GRID), ROWS)

    def empty(panel: Panel, run: range) -> list[NumpyArray]:
        widths = panel.widths[run.start : run.stop, frequencies.start : frequencies.stop].sum(axis=0).tolist()
        return [np.empty((height, sum(map(padded, widths))), dtype=np.float32) for _ in range(2)]

    y_slabs = empty(y, y_run)
    x_slabs = y_slabs if itself else empty(x, x_run)

    def read(step: slice, place: int) -> tuple[slice, list[Array], list[Array]]:
        u_y = y.fill(y_slabs[place % 2], step, y_run, frequencies)
        return step, u_y if itself else x.fill(x_slabs[place % 2], step, x_run, frequencies), u_y

    steps = list(grid_steps(rows))
    with ThreadPoolExecutor(1, "dsvcca-io") as io:
        ahead = io.submit(read, steps[0], 0)
        for place in range(1, len(steps) + 1):
            ready = ahead.result()
            if place < len(steps):
                ahead = io.submit(read, steps[place], place)
            yield ready


def _solve(
    f: int,
    x: Panel,
    x_run: range,
    y: Panel,
    y_run: range,
    block: Array,
    rows: int,
    wanted: NumpyArray,
    totals: dict[str, NumpyArray],
) -> None:
    """Solve the wanted pairs of a block of one frequency in stacks of equal ranks, and add to their totals."""
    x_ends = np.cumsum([0, *x.widths[x_run.start : x_run.stop, f].tolist()])
    y_ends = np.cumsum([0, *y.widths[y_run.start : y_run.stop, f].tolist()])
    weight = int(x.weights[f])
    at = np.argwhere(wanted[x_run.start : x_run.stop, y_run.start : y_run.stop])
    at += np.asarray([x_run.start, y_run.start])
    x_kinds, y_kinds = ([tuple(k) for k in panel.ranks[:, :, f].tolist()] for panel in (x, y))
    kinds: dict[tuple[tuple[int, ...], tuple[int, ...], bool], int] = {}
    kind = [kinds.setdefault((x_kinds[i], y_kinds[j], x.keys[i] > y.keys[j]), len(kinds)) for i, j in at.tolist()]
    for (x_ranks, y_ranks, swapped), number in kinds.items():
        k_x, k_y = max(x_ranks), max(y_ranks)
        if not k_x or not k_y:
            continue
        pairs = at[np.asarray(kind) == number]
        size = max(1, SOLVED_TOGETHER // (8 * k_x * k_y * weight**2))
        for some in (pairs[start : start + size] for start in range(0, len(pairs), size)):
            i, j = some.T
            m = _gather(block, x_ends[i - x_run.start], y_ends[j - y_run.start], k_x * weight, k_y * weight)
            m = from_pairs(m) if weight == 2 else m
            of_x, of_y = (x.at(f, x_run), i - x_run.start), (y.at(f, y_run), j - y_run.start)
            (left, left_i), (right, right_i) = (of_y, of_x) if swapped else (of_x, of_y)
            c = corrected(
                adjoint(m) if swapped else m,
                np.stack([left[k].column_sums for k in left_i]),
                np.stack([right[k].column_sums for k in right_i]),
                rows,
                np.stack([left[k].inverse for k in left_i]),
                np.stack([right[k].inverse for k in right_i]),
            )
            for place, ranks in enumerate(zip(x_ranks, y_ranks, strict=True)):
                if not min(ranks):
                    continue
                k_left, k_right = ranks[::-1] if swapped else ranks
                corner = c[:, :k_left, :k_right]
                if len(totals) > 2:
                    of_left = {k: left[k].loadings(k_left) for k in set(left_i.tolist())}
                    of_right = {k: right[k].loadings(k_right) for k in set(right_i.tolist())}
                    found = totals_of_vectors(corner, left_i, right_i, of_left, of_right)
                else:
                    found = totals_of_values(corner)
                for name, numbers in (exchanged(found) if swapped else found).items():
                    totals[name][i, j, place] += weight * to_numpy(numbers)


def _gather(block: Array, rows: NumpyArray, columns: NumpyArray, k_x: int, k_y: int) -> Array:
    """Return the (k_x, k_y) pieces of `block` that begin at the given rows and columns, stacked."""
    return np.stack([block[r : r + k_x, c : c + k_y] for r, c in zip(rows, columns, strict=True)])


def _fill_below(values: dict[str, NumpyArray]) -> None:
    """Mirror the upper triangle of a tile on the diagonal; of a representation with itself both sides are one."""
    size = len(next(iter(values.values())))
    below, diagonal = np.tril_indices(size, -1), np.diag_indices(size)
    original = {name: block.copy() for name, block in values.items()}
    for name, block in values.items():
        block[below] = original.get(MIRRORED.get(name, name), block).swapaxes(0, 1)[below]
    if "pwcca_x" in values and "pwcca_y" in values:
        values["pwcca_y"][diagonal] = values["pwcca_x"][diagonal]
