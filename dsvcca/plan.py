"""The plan: which comparisons, cut into which tasks, at what price. It reads no activations.

A plan is frozen integers and labels. It prints itself, and it refuses before anything runs what cannot work.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, log2, prod
from typing import Any

from dask.utils import format_bytes, format_time, parse_bytes

from dsvcca.activations import Representation
from dsvcca.basis import RankRule
from dsvcca.errors import DsvccaError
from dsvcca.frequencies import half_spectrum
from dsvcca.labels import Labels, check_same_types, nearest
from dsvcca.measures import MEASURES
from dsvcca.pairs import RULES, Pairs, choose_pairs
from dsvcca.store import Store
from dsvcca.views import GRID, VIEWS, choose_view, grid_datapoints, view_space, viewed_shape

NUMERICS = 1
"""Changes whenever the same inputs would give other bits."""

ALL_BUT_NOISE = 0.99
"""Share of variance that is kept unless something else is asked for."""

PANEL = 128
"""Representations in a panel: a fixed count, so that tiles never depend on workers or memory."""

STRIP = 512
"""Columns of one side in one matrix product."""

PROCESS = 320 << 20
"""Bytes of a worker process before it holds any array."""

USABLE = 0.7
"""Share of a worker's memory that a plan uses: above it Dask begins to warn and to spill."""

PACK = 512
"""Columns of bases stored as one array, about: a pack is closed once it has them."""

TASK_BYTES = 1 << 30
"""Bytes of activations reduced by one task, about."""

TASKS_A_THREAD = 2
"""Reduce tasks for each worker thread, at least, as long as there are representations for them."""

RATES = {"product": 60e9, "double": 30e9, "solve": 1.5e9, "bytes": 1e9}
"""What one core is assumed to do a second: float32 and float64 products, small solves (flops), storage (bytes)."""


@dataclass(frozen=True)
class Plan:
    """Comparisons that were chosen, cut and priced; made by `plan_comparisons`.

    Attributes
    ----------
    store : str
        Path of the activation store.
    representations : tuple of Representation
        In the order of the results.
    views : tuple of str
        The view of each.
    rules : tuple of RankRule
        One, or one for each share of variance that was asked for.
    listed : bool
        Whether results have a `variance` dimension.
    pairs : Pairs
    measures : tuple of str
    memory : int
        Bytes of memory of one worker thread that the plan may count on.
    center : str
        "all": the mean of every frequency is subtracted; "dc": that of frequency 0 alone.
    panel : int
        Representations in a panel.
    """

    store: str
    representations: tuple[Representation, ...]
    views: tuple[str, ...]
    rules: tuple[RankRule, ...]
    listed: bool
    pairs: Pairs
    measures: tuple[str, ...]
    memory: int
    center: str = "all"
    panel: int = PANEL

    @property
    def rows(self) -> int:
        """Rows of every basis, n."""
        return viewed_shape(self.representations[0].logical_shape, self.views[0])[1]

    @property
    def ids(self) -> str | None:
        """Digest of the datapoint ids that all representations were written with; None where some have none."""
        ids = {r.ids for r in self.representations}
        return ids.pop() if len(ids) == 1 else None

    @property
    def widest(self) -> RankRule:
        """The rule that keeps the most directions: bases are stored up to it, the others are prefixes."""
        for rule in self.rules:
            if all(rule.covers(other) for other in self.rules):
                return rule
        return RankRule(1.0)

    @cached_property
    def panels(self) -> tuple[range, ...]:
        """Runs of representations that share memory."""
        count = len(self.representations)
        return tuple(range(i, min(i + self.panel, count)) for i in range(0, count, self.panel))

    @cached_property
    def tiles(self) -> tuple[tuple[int, int], ...]:
        """Pairs of panels (i <= j) in which at least one comparison is wanted."""
        p = self.panels
        return tuple((i, j) for i in range(len(p)) for j in range(i, len(p)) if self.pairs.mask(p[i], p[j]).any())

    @property
    def budget(self) -> int:
        """Bytes of arrays that a task may hold."""
        return int(self.memory * USABLE) - PROCESS

    @cached_property
    def basis_fingerprints(self) -> tuple[str, ...]:
        """What each basis is made from: it is made again only if this changes."""
        return tuple(
            hashlib.sha256(
                json.dumps([r.fingerprint, v, f"center={self.center}", "float32", NUMERICS]).encode()
            ).hexdigest()
            for r, v in zip(self.representations, self.views, strict=True)
        )

    @cached_property
    def meaning(self) -> dict[str, Any]:
        """Everything on which the numbers depend, without the representations."""
        return {
            "pairs": self.pairs.name,
            "views": sorted(set(self.views)),
            "center": self.center,
            "variance": [rule.variance for rule in self.rules],
            "criterion": self.rules[0].criterion,
            "rank": self.rules[0].rank,
            "rank_rule": [str(rule) for rule in self.rules],
            "measures": list(self.measures),
            "rows": self.rows,
            "precision": "bases float32, products float32 summed in float64 every 4096 rows, solves float64",
            "numerics": NUMERICS,
            "panel": self.panel,
        }

    @cached_property
    def fingerprint(self) -> str:
        """Digest of everything on which the results depend."""
        explicit = [list(p) for p in self.pairs.listed]
        labels = [r.labels for r in self.representations]
        content = [self.meaning, self.listed, self.basis_fingerprints, explicit, labels]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """How large each representation is under its view."""
        pairs = zip(self.representations, self.views, strict=True)
        return tuple(replace(size_of(r.logical_shape, v), unit=r.unit) for r, v in pairs)

    def assumed_ranks(self) -> list[int]:
        """Ranks taken for the price before any is known: a third of the columns (of transformed ones 0.7), or all."""
        rule = self.widest
        everything = rule.rank is None and rule.variance == 1
        found = []
        for size in self.sizes:
            share = 1.0 if everything else 0.7 if size.space else 1 / 3
            found.append(max(1, min(int(size.width * share), size.most - 2, rule.rank or size.most)))
        return found

    def price(self, ranks: Sequence[int] | None = None) -> Price:
        """Return what the plan costs, for known ranks or for assumed ones."""
        k = list(ranks or self.assumed_ranks())
        n, weighted = self.rows, any(m.startswith("pwcca") for m in self.measures)
        reduce_flops = sum(_reduce_flops(size, q) for size, q in zip(self.sizes, k, strict=True))
        passes = [1 if holds_whole(size, self.budget) else 2 for size in self.sizes]
        frequencies = max(size.frequencies for size in self.sizes)
        product = 0.0
        basis_read = 0
        sums = [sum(k[i] for i in p) for p in self.panels]
        for i, j in self.tiles:
            product += 2.0 * n * sums[i] * sums[j] / (2 if i == j else 1) / frequencies
            basis_read += 4 * n * (sums[i] + (sums[j] if i != j else 0))
        mean_rank = sum(k) / len(k) / frequencies
        mean_columns = sum(size.columns for size in self.sizes) / len(k)
        per_pair = 4 * mean_rank**3 * len(self.rules)
        if weighted:
            per_pair += (8 * mean_rank**3 + 4 * mean_rank**2 * mean_columns / 20) * len(self.rules)
        solve = per_pair * self.pairs.count * frequencies
        read = sum(r.nbytes * times for r, times in zip(self.representations, passes, strict=True)) + basis_read
        written = 4 * n * sum(k) + 8 * len(self.measures) * len(self.rules) * 2 * self.panel**2 * len(self.tiles)
        largest = max(reduce_memory(size, q, self.budget) for size, q in zip(self.sizes, k, strict=True))
        tile = tile_memory(max(sums), max(sums) if len(sums) > 1 else 0, n)
        return Price(
            comparisons=self.pairs.count,
            reduce_tasks=len(self.reduce_tasks(range(len(self.representations)))),
            tiles=len(self.tiles),
            bytes_read=read,
            bytes_written=written,
            flops=reduce_flops + product + solve,
            memory=PROCESS + max(largest, min(tile, self.budget)),
            seconds=reduce_flops / RATES["double"]
            + product / RATES["product"]
            + solve / RATES["solve"]
            + (read + written) / RATES["bytes"],
        )

    def reduce_tasks(self, wanted: Sequence[int], threads: int = 1) -> list[tuple[int, ...]]:
        """Cut the representations that need a basis into tasks of a few seconds, enough of them for the threads."""
        most = min(self.panel, -(-len(wanted) // (TASKS_A_THREAD * threads)))
        tasks: list[list[int]] = []
        size = 0
        for i in wanted:
            nbytes = self.representations[i].nbytes
            if not tasks or len(tasks[-1]) == most or size + nbytes > TASK_BYTES:
                tasks.append([])
                size = 0
            tasks[-1].append(i)
            size += nbytes
        return [tuple(task) for task in tasks]

    def check(self, ranks: Sequence[int] | None = None) -> None:
        """Raise if a task cannot be done in the plan's memory."""
        if self.budget <= 0:
            raise DsvccaError(
                f"memory={format_bytes(self.memory)} a worker is too little: the process alone takes "
                f"{format_bytes(PROCESS)} and tasks use {USABLE:.0%} of a worker; give at least 1 GiB"
            )
        for i, (r, view, size) in enumerate(zip(self.representations, self.views, self.sizes, strict=True)):
            needed = reduce_memory(size, 1 if ranks is None else ranks[i], self.budget)
            if ranks is not None:  # one basis against another at one frequency is the least there is to do
                k = min(ranks[i], size.columns)
                blocks = 2 * block_bytes(k, size.columns, 2 if size.space else 1)
                needed = max(
                    needed, tile_memory(k * (2 if size.space else 1), k * (2 if size.space else 1), size.rows, blocks)
                )
            if needed > self.budget:
                raise DsvccaError(
                    f"{r} ({size.rows} rows, {size.width} columns as view {view!r}) needs {format_bytes(needed)} of "
                    f"arrays in a task, memory={format_bytes(self.memory)} leaves {format_bytes(self.budget)}: raise "
                    f"memory to {ceil((needed + PROCESS) / USABLE / 2**30 * 10) / 10} GiB or more"
                )

    def __str__(self) -> str:
        price = self.price()
        views = ", ".join(f"{v} ({self.views.count(v)})" for v in sorted(set(self.views)))
        rules = "; ".join(str(rule) for rule in self.rules)
        what = RULES.get(self.pairs.name, "a list")
        known = "the same ids" if self.ids else "the same number, by ids not proven"
        return "\n".join(
            [
                f"plan for {self.store}",
                f"  representations  {len(self.representations):,} ({self.rows:,} rows each; datapoints: {known})",
                f"  views            {views}{', mean of frequency 0 subtracted alone' if self.center == 'dc' else ''}",
                f"  kept             {rules}",
                f"  pairs            {self.pairs.name}: {what}",
                f"  measures         {', '.join(self.measures)}",
                f"  comparisons      {price.comparisons:,} in {price.tiles:,} tiles of {self.panel} x {self.panel}",
                f"  tasks            {price.reduce_tasks:,} reduce, {price.tiles:,} correlate",
                f"  read             {format_bytes(price.bytes_read)}, if no basis is there yet",
                f"  written          {format_bytes(price.bytes_written)}",
                f"  arithmetic       {price.flops / 1e9:,.1f} GFLOP",
                f"  memory           {format_bytes(price.memory)} a worker thread, of {format_bytes(self.memory)}",
                f"  time             about {format_time(price.seconds)} of one core, if it does "
                f"{RATES['product'] / 1e9:.0f} GFLOP/s and ranks are a third of the columns (0.7 by frequency)",
            ]
        )


@dataclass(frozen=True)
class Price:
    """What a plan costs: counts, bytes, floating point operations, and seconds of one core."""

    comparisons: int
    reduce_tasks: int
    tiles: int
    bytes_read: int
    bytes_written: int
    flops: float
    memory: int
    seconds: float


@dataclass(frozen=True)
class Size:
    """How large a representation is under its view.

    Attributes
    ----------
    rows, columns : int
        n, and c of each frequency.
    space : tuple of int
        Sizes of the axes that were transformed.
    step : int
        Numbers of activations, as stored, in one step of the grid.
    step_rows : int
        Rows in one step of the grid.
    unit : int
        Bytes of the least that can be read at once, where that is much.
    """

    rows: int
    columns: int
    space: tuple[int, ...]
    step: int
    step_rows: int
    unit: int = 0

    @property
    def frequencies(self) -> int:
        return len(half_spectrum(self.space).weights)

    @property
    def width(self) -> int:
        """Numbers in a row, over all frequencies."""
        return self.columns * prod(self.space)

    @property
    def most(self) -> int:
        """Directions there could be at most."""
        return min(self.columns, self.rows) * prod(self.space)


def size_of(shape: tuple[int, ...], view: str) -> Size:
    """Return the size of activations (n, *space, c) under a view."""
    _, rows, columns = viewed_shape(shape, view)
    step = min(shape[0], grid_datapoints(shape, view))
    return Size(rows, columns, view_space(shape, view), step * prod(shape[1:]), step * rows // shape[0])


def holds_whole(size: Size, budget: int) -> bool:
    """Return whether the rows of a representation stay in memory between its two passes."""
    return 9 * size.rows * size.width <= budget // 3


def pack_memory(budget: int) -> int:
    """Return the bytes of columns that a pack may hold; two of them are in memory at once."""
    return budget // 8


def streams(size: Size, budget: int) -> bool:
    """Return whether the columns of a basis go to disk step by step, in a pack of their own."""
    return 4 * size.rows * size.most > pack_memory(budget)


def reduce_memory(size: Size, width: int, budget: int) -> int:
    """Return the bytes of arrays that reducing one representation takes, of whose columns `width` are kept."""
    c, f = size.columns, size.frequencies
    if size.space:
        grams = 16 * f * c * c * 6 + 128 * c * c  # Gram, eigenvectors, maps, what is kept; products of one frequency
        slab = 14 * size.step + 24 * size.step_rows * width  # stored and transformed; columns made, joined, stored
    else:
        grams = 8 * c * c * 6  # running and new Gram, its outer product, eigenvectors, LAPACK's work
        slab = 8 * size.step_rows * c * 4 + 12 * size.step  # rows shifted, viewed, projected; what they come from
    held = 9 * size.rows * size.width if holds_whole(size, budget) else 0
    columns = 2 * min(pack_memory(budget), 4 * size.rows * PACK)  # packs before, one being written
    columns += 0 if streams(size, budget) else 8 * size.rows * width
    return grams + slab + held + columns + max(64 << 20, 3 * size.unit)  # pieces as read, one ahead


def tile_memory(x_columns: int, y_columns: int, n: int, blocks: int = 0) -> int:
    """Return the bytes of arrays that correlating `x_columns` with `y_columns` takes (with themselves: y_columns 0).

    `blocks` are the bytes of what belongs to the columns of both sides at one frequency.
    """
    rows, right = min(n, GRID), y_columns or x_columns
    slabs = 4 * rows * (x_columns + y_columns) * (2 if n > GRID else 1)  # one in use, one being read
    strip = min(STRIP, x_columns) * (12 * right + 4 * rows)  # its product in float32 and float64, its copy
    return slabs + strip + 8 * x_columns * right + blocks + (96 << 20)  # a chunk as read, stacks of solves


def block_bytes(rank: int, columns: int, weight: int) -> int:
    """Return the bytes of what belongs to the columns of one basis at one frequency: as read, and inverted."""
    return 8 * weight * rank * (2 * rank + 2 * columns)


def plan_comparisons(
    store: Store,
    pairs: Any = "all",
    *,
    view: str = "auto",
    center: str = "all",
    variance: float | Sequence[float] = ALL_BUT_NOISE,
    criterion: str = "variance",
    rank: int | None = None,
    measures: str | Sequence[str] = tuple(MEASURES),
    memory: int | str = "1 GiB",
) -> Plan:
    """Plan comparisons of a population: choose, cut, price, and refuse what cannot work. Reads no activations.

    Parameters
    ----------
    store : Store
        The population: an opened store, or what `select` left of it.
    pairs : str or list, default "all"
        "all": every representation with every other. "over_training": the same layer of the same network at all pairs
        of steps. "to_last_step": every layer of a network at every step with all its layers at its last step.
        "across_seeds": the same layer at the same step, between seeds. Or a list of (labels of x, labels of y), such
        as ``[({"seed": 0, "layer": "fc1"}, {"seed": 1})]``: everything that carries the ones with everything that
        carries the others.
    view : {"auto", "neurons", "mean", "max", "positions", "dft"}, default "auto"
        How stored activations become rows and columns; "auto" is neurons where there is no space, else mean.
    center : {"all", "dc"}, default "all"
        With view "dft": subtract the mean of every frequency, or that of frequency 0 alone. "dc" gives what all
        translations of every image would give (Raghu et al. 2017, theorem 1), but then an image that is common to all
        datapoints counts as signal, and unrelated layers are no longer near the floor.
    variance : float or list of float, default 0.99
        Share of variance kept of every representation; a list gives the results a `variance` dimension. 1.0 keeps
        every non-zero direction.
    criterion : {"variance", "singular"}, default "variance"
        Share of squared singular values, or of singular values.
    rank : int, optional
        Keep this many directions instead of a share of variance.
    measures : str or sequence of str, default all
        Of `MEASURES`. Without the pwcca ones no vectors are computed.
    memory : int or str, default "1 GiB"
        Memory of one worker thread; tasks are fitted into 70 % of it.

    Returns
    -------
    Plan
        `print(plan)` shows its price.

    Raises
    ------
    DsvccaError
        If representations cannot be compared, an option is unknown, or a task cannot fit into the memory.
    """
    if not isinstance(store, Store):
        raise DsvccaError(f"a {type(store).__name__} was given instead of a store: open_store(path) first")
    found = tuple(store.representations)
    if not found:
        raise DsvccaError(f"'{store.path}' holds no committed representation: write some first")
    views = tuple(choose_view(r.logical_shape) if view == "auto" else view for r in found)
    seen: Labels = {}
    for r in found:
        check_same_types(r.labels, [seen], f"another representation of '{store.path}'")
        seen = r.labels | seen
    for r, v in zip(found, views, strict=True):
        if v not in VIEWS:
            viewed_shape(r.logical_shape, v)  # raises with the names there are
        _check_alike(found[0], views[0], r, v)
    if center not in ("all", "dc"):
        raise DsvccaError(f"center={center!r} is unknown: use 'all' or 'dc'")
    measures = (measures,) if isinstance(measures, str) else measures
    if not measures:
        raise DsvccaError(f"measures is empty: choose from {', '.join(MEASURES)}")
    for measure in measures:
        if measure not in MEASURES:
            raise DsvccaError(f"measure {measure!r} is unknown: {nearest(measure, MEASURES)}")
    listed = not isinstance(variance, (int, float))
    if rank is not None and (listed or variance != ALL_BUT_NOISE):
        raise DsvccaError(f"rank={rank} and variance={variance!r} were both given: give one of them")
    try:
        shares = [float(v) for v in variance] if not isinstance(variance, (int, float)) else [float(variance)]
    except (TypeError, ValueError) as error:
        raise DsvccaError(f"variance={variance!r} is no share ({error}): give a number, or a list of them") from error
    if not shares or len(set(shares)) != len(shares):
        raise DsvccaError(f"variance={variance!r}: give one share, or a list of different ones")
    try:
        memory = parse_bytes(memory)
    except (ValueError, OverflowError) as error:
        raise DsvccaError(f"memory={memory!r} is no amount of memory: write it as '1.5 GiB'") from error
    plan = Plan(
        store=store.path,
        representations=found,
        views=views,
        rules=tuple(RankRule(share, criterion, rank) for share in shares),
        listed=listed,
        pairs=choose_pairs(pairs, [r.labels for r in found]),
        measures=tuple(m for m in MEASURES if m in measures),
        memory=memory,
        center=center,
    )
    plan.check()
    return plan


def _reduce_flops(size: Size, width: int) -> float:
    """Return the flops of whitening: transform, Gram, eigenvectors, projection."""
    n, c, f = size.rows, size.columns, size.frequencies
    if not size.space:
        return float(n * c * c + 9 * c**3 + 2 * n * c * width)
    transform = 2.5 * n * size.width * log2(max(2, prod(size.space)))
    return transform + f * (4.0 * n * c * c + 36.0 * c**3) + 4.0 * n * c * width


def _check_alike(first: Representation, first_view: str, other: Representation, view: str) -> None:
    if first.logical_shape[0] != other.logical_shape[0]:
        raise DsvccaError(
            f"{first} has {first.logical_shape[0]} datapoints and {other} has {other.logical_shape[0]}: all "
            "representations need the same datapoints in the same order; select() those that have"
        )
    if first.ids != other.ids and first.ids and other.ids:
        raise DsvccaError(f"{first} and {other} were written with other datapoint ids: select() those that agree")
    rows, others = (size_of(r.logical_shape, v) for r, v in ((first, first_view), (other, view)))
    if rows.rows != others.rows:
        raise DsvccaError(
            f"{first} has {rows.rows} rows as view {first_view!r} and {other} has {others.rows} as {view!r}: rows must "
            "be the same positions; select() layers of one size, or use view='mean'"
        )
    if rows.space != others.space:
        raise DsvccaError(
            f"{first} is transformed over {rows.space} and {other} over {others.space}: frequencies are compared with "
            "those of the same size only; select() layers of one size, or use view='mean'"
        )
