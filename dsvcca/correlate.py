"""What one correlate task does on a worker: read two panels, multiply, solve, commit the tile, return a receipt."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsvcca import files
from dsvcca.arrays import Array, NumpyArray, adjoint, namespace, to_numpy
from dsvcca.basis import RankRule, inverse_cholesky
from dsvcca.correlations import corrected
from dsvcca.measures import mean_correlation, projection_weighted
from dsvcca.moments import GRID, grid_steps
from dsvcca.plan import STRIP, tile_memory
from dsvcca.results import MIRRORED, write_tile
from dsvcca.workspace import BasisRef, Pack

SHAPE, LEAST, ROWS = 64, 1024, 16
"""Both sides of a product are multiples of SHAPE columns, its right side has LEAST of them or more, and it runs over
ROWS rows or more: no edges, and never small enough (10^6 multiplications) for BLAS's routine for small products."""

SOLVED_TOGETHER = 4 << 20
"""Bytes of cross blocks in one stack of solves."""


@dataclass(frozen=True)
class CorrelateTask:
    """One tile: where the bases of its two panels are, which pairs are wanted, where the numbers go. Never data."""

    workspace: str
    out: str
    tile: tuple[int, int]
    panel: int
    rows: int
    x: tuple[BasisRef, ...]
    y: tuple[BasisRef, ...]
    wanted: bytes | None
    rules: tuple[RankRule, ...]
    measures: tuple[str, ...]
    budget: int

    def __str__(self) -> str:
        return f"tile {self.tile[0]}-{self.tile[1]}"


@dataclass(frozen=True)
class TileReceipt:
    """What the driver hears of a finished tile."""

    tile: tuple[int, int]
    comparisons: int


class Panel:
    """The bases of one panel: small parts in memory, columns read step by step.

    `keys` order bases by what they hold: every pair is solved in that order of its two sides, so that its bits do not
    depend on which of them came first.
    """

    def __init__(self, workspace: str, refs: tuple[BasisRef, ...], rules: tuple[RankRule, ...]) -> None:
        self.refs = refs
        self.packs = {name: Pack(workspace, name) for name in dict.fromkeys(ref.pack for ref in refs)}
        self.ranks: list[tuple[int, ...]] = []
        self.loadings: list[Array] = []
        self.inverses: list[Array] = []
        self.sums: list[Array] = []
        self.keys: list[tuple[bytes, bytes]] = []
        for ref in refs:
            pack = self.packs[ref.pack]
            s, nonzero = pack.part("singular_values", ref.position), pack.nonzero(ref.position)
            ranks = tuple(rule.keep(s, nonzero) for rule in rules)
            k = max(ranks)
            self.keys.append((s.tobytes(), pack.part("loadings", ref.position).tobytes()))
            self.ranks.append(ranks)
            self.loadings.append(pack.part("loadings", ref.position)[:k])
            self.inverses.append(inverse_cholesky(pack.part("cholesky", ref.position)[:k, :k]))
            self.sums.append(pack.part("column_sums", ref.position)[:k])
        self.columns = [max(ranks) for ranks in self.ranks]

    def runs(self, most: int) -> Iterator[range]:
        """Cut the panel into runs of at most `most` columns (or one basis)."""
        start = total = 0
        for i, k in enumerate(self.columns):
            if i > start and total + k > most:
                yield range(start, i)
                start, total = i, 0
            total += k
        yield range(start, len(self.columns))

    def width(self, run: range, least: int) -> int:
        """Return the columns of a slab that holds a run of bases: a multiple of `SHAPE`, and at least `least`."""
        return max(least, -(-sum(self.columns[i] for i in run) // SHAPE) * SHAPE)

    def fill(self, slab: NumpyArray, step: slice, run: range) -> NumpyArray:
        """Write the columns of a run of bases for one step of the grid into `slab`, and return its part that counts.

        Rows up to `ROWS`, and columns up to its width, are zero where no basis is.
        """
        ends = np.cumsum([0, *(self.columns[i] for i in run)])
        rows = step.stop - step.start
        slab = slab[: max(rows, ROWS)]
        slab[rows:] = 0
        slab[:, ends[-1] :] = 0
        for name in dict.fromkeys(self.refs[i].pack for i in run):
            pack = self.packs[name]
            here = [(int(start), i) for start, i in zip(ends, run, strict=False) if self.refs[i].pack == name]
            for rows_read, places, read in pack.columns(step):
                for start, i in here:
                    first = pack.place(self.refs[i].position).start
                    begin, end = max(first, places.start), min(first + self.columns[i], places.stop)
                    if begin < end:
                        target = slice(start + begin - first, start + end - first)
                        slab[rows_read, target] = read[:, begin - places.start : end - places.start]
        return slab


def correlate(task: CorrelateTask) -> TileReceipt:
    """Compute and commit one tile."""
    x = Panel(task.workspace, task.x, task.rules)
    y = x if task.tile[0] == task.tile[1] else Panel(task.workspace, task.y, task.rules)
    shape = (len(task.x), len(task.y))
    wanted = np.ones(shape, dtype=bool)
    if task.wanted is not None:
        bits = np.frombuffer(task.wanted, np.uint8)
        wanted = np.unpackbits(bits, count=shape[0] * shape[1]).astype(bool).reshape(shape)
    if y is x:
        wanted &= np.tri(shape[0], dtype=bool).T
    values = {name: np.full((*shape, len(task.rules)), np.nan) for name in task.measures}
    most = _most_columns(task, sum(x.columns), 0 if y is x else sum(y.columns))
    for x_run in x.runs(most):
        for y_run in y.runs(most):
            if wanted[x_run.start : x_run.stop, y_run.start : y_run.stop].any():
                block = _cross(x, x_run, y, y_run, task.rows)
                _solve(task, x, x_run, y, y_run, block, wanted, values)
    if y is x:
        _fill_below(values)
    with files.disk_errors(Path(task.out)):
        write_tile(Path(task.out), task.tile, values, task.panel)
    return TileReceipt(task.tile, int(wanted.sum()))


def _most_columns(task: CorrelateTask, x_columns: int, y_columns: int) -> int:
    """Return the columns a run may have on each side, so that the task stays in its budget."""
    if tile_memory(x_columns, y_columns, task.rows) <= task.budget:
        return max(x_columns, y_columns)
    most = max(x_columns, y_columns)
    while most > 64 and tile_memory(most, most, task.rows) > task.budget:
        most = most * 7 // 8
    return most


def _cross(x: Panel, x_run: range, y: Panel, y_run: range, rows: int) -> Array:
    """Return M = U_x^H U_y of two runs: float32 products of one step of the grid, summed in float64.

    The bits of a product must not depend on which bases share a panel. So slabs are padded with zeros to shapes for
    which BLAS has no special routine (`SHAPE`), and the left side is taken in strips, each a copy: an array times
    itself would take another routine as well. Of a run with itself only each basis and those right of it are made.
    """
    itself = x is y and x_run == y_run
    ends = np.cumsum([0, *(x.columns[i] for i in x_run)])
    m: Array = None
    for step, u_x, u_y in _slabs(x, x_run, y, y_run, rows):
        xp = namespace(u_x)
        m = xp.empty((u_x.shape[1], u_y.shape[1]), dtype=xp.float64) if m is None else m
        for strip in grid_steps(u_x.shape[1], STRIP):
            left = xp.asarray(u_x[:, strip], copy=True)
            first = int(ends[np.searchsorted(ends, strip.start, side="right") - 1]) if itself else 0
            right = slice(min(first // SHAPE * SHAPE, u_y.shape[1] - LEAST), u_y.shape[1])
            product = xp.matmul(adjoint(left), u_y[:, right])
            if step.start == 0:
                m[strip, right] = product
            else:
                m[strip, right] += product
    return m


def _slabs(x: Panel, x_run: range, y: Panel, y_run: range, rows: int) -> Iterator[tuple[slice, Array, Array]]:
    """Yield the columns of two runs for every step of the grid; the next step is read while the caller uses one.

    Slabs are used again, every other step: they hold their numbers until the next one is asked for.
    """
    itself = x is y and x_run == y_run
    height = max(min(rows, GRID), ROWS)
    y_slabs = [np.empty((height, y.width(y_run, LEAST)), dtype=np.float32) for _ in range(2)]
    x_slabs = y_slabs if itself else [np.empty((height, x.width(x_run, SHAPE)), dtype=np.float32) for _ in range(2)]

    def read(step: slice, place: int) -> tuple[slice, Array, Array]:
        u_y = y.fill(y_slabs[place % 2], step, y_run)
        return step, u_y if itself else x.fill(x_slabs[place % 2], step, x_run), u_y

    steps = list(grid_steps(rows))
    with ThreadPoolExecutor(1, "dsvcca-io") as io:
        ahead = io.submit(read, steps[0], 0)
        for place in range(1, len(steps) + 1):
            ready = ahead.result()
            if place < len(steps):
                ahead = io.submit(read, steps[place], place)
            yield ready


def _solve(
    task: CorrelateTask,
    x: Panel,
    x_run: range,
    y: Panel,
    y_run: range,
    block: Array,
    wanted: NumpyArray,
    values: dict[str, NumpyArray],
) -> None:
    """Solve the wanted pairs of a block, in stacks of equal ranks."""
    x_ends = np.cumsum([0, *(x.columns[i] for i in x_run)])
    y_ends = np.cumsum([0, *(y.columns[j] for j in y_run)])
    at = np.argwhere(wanted[x_run.start : x_run.stop, y_run.start : y_run.stop])
    at += np.asarray([x_run.start, y_run.start])
    kinds: dict[tuple[tuple[int, ...], tuple[int, ...], bool], int] = {}
    kind = [kinds.setdefault((x.ranks[i], y.ranks[j], x.keys[i] > y.keys[j]), len(kinds)) for i, j in at.tolist()]
    for (x_ranks, y_ranks, swapped), number in kinds.items():
        pairs = at[np.asarray(kind) == number]
        size = max(1, SOLVED_TOGETHER // (8 * max(x_ranks) * max(y_ranks)))
        for some in (pairs[start : start + size] for start in range(0, len(pairs), size)):
            i, j = some.T
            m = _gather(block, x_ends[i - x_run.start], y_ends[j - y_run.start], max(x_ranks), max(y_ranks))
            left, right = (y, x) if swapped else (x, y)
            left_i, right_i = (j, i) if swapped else (i, j)
            c = corrected(
                adjoint(m) if swapped else m,
                np.stack([left.sums[k] for k in left_i]),
                np.stack([right.sums[k] for k in right_i]),
                task.rows,
                np.stack([left.inverses[k] for k in left_i]),
                np.stack([right.inverses[k] for k in right_i]),
            )
            for place, (k_x, k_y) in enumerate(zip(x_ranks, y_ranks, strict=True)):
                k_left, k_right = (k_y, k_x) if swapped else (k_x, k_y)
                corner = c[:, :k_left, :k_right]
                found = _measure(task.measures, corner, left, left_i, right, right_i, swapped)
                for name, numbers in found.items():
                    values[name][i, j, place] = to_numpy(numbers)


def _gather(block: Array, rows: NumpyArray, columns: NumpyArray, k_x: int, k_y: int) -> Array:
    """Return the (k_x, k_y) pieces of `block` that begin at the given rows and columns, stacked."""
    return np.stack([block[r : r + k_x, c : c + k_y] for r, c in zip(rows, columns, strict=True)])


def _measure(
    measures: tuple[str, ...], c: Array, left: Panel, i: NumpyArray, right: Panel, j: NumpyArray, swapped: bool
) -> dict[str, Array]:
    if not any(name.startswith("pwcca") for name in measures):
        mean, r2 = mean_correlation(c)
        found = {"svcca": mean, "r2": r2}
    else:
        mean, r2, of_left, of_right = projection_weighted(c, i, j, left.loadings, right.loadings)
        x, y = (of_right, of_left) if swapped else (of_left, of_right)
        found = {"svcca": mean, "r2": r2, "pwcca_x": x, "pwcca_y": y}
    return {name: found[name] for name in measures}


def _fill_below(values: dict[str, NumpyArray]) -> None:
    """Mirror the upper triangle of a tile on the diagonal; of a representation with itself both sides are one."""
    size = len(next(iter(values.values())))
    below, diagonal = np.tril_indices(size, -1), np.diag_indices(size)
    original = {name: block.copy() for name, block in values.items()}
    for name, block in values.items():
        block[below] = original.get(MIRRORED.get(name, name), block).swapaxes(0, 1)[below]
    if "pwcca_x" in values and "pwcca_y" in values:
        values["pwcca_y"][diagonal] = values["pwcca_x"][diagonal]
