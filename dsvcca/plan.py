"""The plan: which comparisons, cut into which tasks, at what price. It reads no activations.

A plan is frozen integers and labels. It prints itself, and it refuses before anything runs what cannot work.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
from dask.utils import format_bytes

from dsvcca.activations import Representation
from dsvcca.arrays import NumpyArray
from dsvcca.basis import RankRule
from dsvcca.errors import DsvccaError
from dsvcca.frequencies import half_spectrum
from dsvcca.pairs import RULES, Pairs
from dsvcca.passes import Pass, Passes, Variant, part_of, reads_tokens, variant_size
from dsvcca.price import BasisWork, Machine, Price, Together, Work, price, this_machine
from dsvcca.sizes import (
    PROCESS,
    SEGMENT_BYTES,
    USABLE,
    Size,
    block_bytes,
    dual_memory,
    holds_whole,
    moments_bytes,
    padded,
    projection_memory,
    reduce_memory,
    segment_memory,
    segment_rows,
    sketch_memory,
    spread,
    tile_memory,
    whitening_route,
)
from dsvcca.targets import Target
from dsvcca.views import TRANSFORMED
from dsvcca.wide import SAMPLES, SPARE, STRIDE

NUMERICS = 5
"""Changes whenever the same inputs would give other bits."""

PANEL = 128
"""Representations in a panel: a fixed count, so that tiles never depend on workers or memory."""

TASK_BYTES = 1 << 30
"""Bytes of activations reduced by one task, about."""

TASKS_A_THREAD = 2
"""Reduce tasks for each worker thread, at least, as long as there are representations for them."""

KEEP = ("frequencies",)

ROUTES = ("auto", "bases", "direct", "covariance", "dual", "randomised")

DIRECT_BYTES = 512 << 20
"""Bytes of the moments of all representations side by side, up to which that is chosen."""

WORST_CONDITION = 2.5e-9
"""Least share of variance in a kept direction, of as many as there are columns, for moments alone: to about 1e-7."""


@dataclass(frozen=True)
class Plan:
    """Comparisons that were chosen, cut and priced; made by `plan_comparisons`.

    Attributes
    ----------
    store : str
        Path of the activation store.
    representations : tuple of Representation
        In the order of their places: those that are compared stand close together.
    view : str
        As it was asked for; every comparison has a view of its own (`names`).
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
    route : str
        As it was asked for (see `direct` and `whitening`).
    targets : tuple of Target
        What every representation is asked to explain.
    rows : {"translations"} or None
        What is known of the rows: that they are all translations of their images.
    keep : tuple of str
        What results hold beside the measures: "frequencies".
    panel : int
        Places in a panel.
    shown : tuple of int
        Which of the representations results show first, and so on; by default as they stand.
    places : tuple of int
        Where results hold each representation, in rising order; by default one after another. Those of earlier plans
        that this one does not have keep their places.
    segment : int
        Bytes of activations in a segment of a representation that is larger than one task, about.
    """

    store: str
    representations: tuple[Representation, ...]
    view: str
    rules: tuple[RankRule, ...]
    listed: bool
    pairs: Pairs
    measures: tuple[str, ...]
    memory: int
    center: str = "all"
    route: str = "auto"
    targets: tuple[Target, ...] = ()
    rows: str | None = None
    keep: tuple[str, ...] = ()
    panel: int = PANEL
    shown: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    segment: int = SEGMENT_BYTES

    def laid_out(self, places: Sequence[int]) -> Plan:
        """Return the same plan with every representation in its place, and in the order of places."""
        order = sorted(range(len(places)), key=lambda i: places[i])
        at = {old: new for new, old in enumerate(order)}
        return replace(
            self,
            representations=tuple(self.representations[i] for i in order),
            pairs=self.pairs.reordered(order),
            shown=tuple(at[i] for i in self.shown or range(len(order))),
            places=tuple(places[i] for i in order),
        )

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
        places = self.places or range(len(self.representations))
        bounds = [i * self.panel for i in range(places[-1] // self.panel + 2)]
        return tuple(range(start, end) for start, end in pairwise(np.searchsorted(places, bounds).tolist()))

    @cached_property
    def _passes(self) -> Passes:
        return Passes(
            self.representations,
            self.view,
            self.pairs,
            self.panels,
            tuple(place % self.panel for place in self.places or range(len(self.representations))),
            bool(self.targets),
            self.rows == "translations",
        )

    @property
    def tiles(self) -> tuple[tuple[int, int], ...]:
        """Pairs of panels (i <= j) in which at least one comparison is wanted."""
        return self._passes.tiles

    def passes(self, tile: tuple[int, int]) -> list[Pass]:
        """Return the comparisons of a tile, those that share their ground together."""
        return self._passes.of_tile(tile)

    @property
    def target_passes(self) -> list[list[Pass]]:
        """Of every panel, the variants that meet the targets."""
        return self._passes.target_passes

    @property
    def target_view(self) -> str:
        """What explains the targets, in words."""
        return self._passes.target_view

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Of what bases are made: every representation under every view in which it meets another."""
        return self._passes.variants

    @property
    def names(self) -> tuple[str, ...]:
        """What comparisons are called, by their views: "dft", "mean", "alias-empirical", ..."""
        return self._passes.names

    @property
    def grids(self) -> tuple[tuple[int, ...], ...]:
        """The grids whose bins are compared, in the order in which results hold them."""
        return self._passes.grids

    @property
    def kept_frequencies(self) -> int:
        """How many bins results hold on their own, over all grids."""
        return sum(len(half_spectrum(grid).bins) for grid in self.grids) if "frequencies" in self.keep else 0

    def first_frequency(self, grid: tuple[int, ...]) -> int:
        """Return where results hold the first bin of a grid; -1 where they do not."""
        if "frequencies" not in self.keep or not grid:
            return -1
        return sum(len(half_spectrum(one).bins) for one in self.grids[: self.grids.index(grid)])

    @property
    def transforms(self) -> bool:
        """Whether representations are transformed, so that it is known what lies between their frequencies."""
        return not self.direct and any(size.space for size in self.sizes)

    @property
    def budget(self) -> int:
        """Bytes of arrays that a task may hold."""
        return int(self.memory * USABLE) - PROCESS

    @property
    def tile_budget(self) -> int:
        """Bytes of arrays that a tile may hold beside what it keeps of every frequency."""
        count = min(self.panel, len(self.representations))
        return self.budget - 8 * 4 * count**2 * self.kept_frequencies * len(self.rules)

    @cached_property
    def direct(self) -> bool:
        """Whether cross blocks are added up from activations as they are read, and whitened afterwards.

        Activations are read once and no basis is written, which would be nearly as large; but all representations go
        side by side, and nothing is left for other plans. So for a few that are larger than one task, where it moves
        fewer bytes, and where the rank rule keeps nothing so small that moments alone would be too coarse.
        """
        if self.route != "auto":
            return self.route == "direct"
        if (
            self.targets
            or set(self.whitening) != {"covariance"}
            or any(self._reads_tokens(i) for i in range(len(self.variants)))
        ):
            return False
        large = any(self._nbytes(i) > self.segment // 2 for i in range(len(self.variants)))
        if not large or len({self._passes.ground(v) for v in self.variants}) > 1:
            return False
        precise = all(rule.rank is None and rule.criterion == "variance" for rule in self.rules) and all(
            size.width * WORST_CONDITION <= 1 - rule.variance for rule in self.rules for size in self.sizes
        )
        moments = moments_bytes(self.sizes)
        basis = sum(2 * self._nbytes(i) for i in range(len(self.variants)))
        basis += sum(2 * 4 * size.rows * k for size, k in zip(self.sizes, self.assumed_ranks(), strict=True))
        direct = sum(self._nbytes(i) for i in range(len(self.variants)))
        direct += 2 * moments * len(self.segments(range(len(self.variants))))
        return precise and moments <= DIRECT_BYTES and direct < basis

    @cached_property
    def whitening(self) -> tuple[str, ...]:
        """How each variant is whitened: "covariance", "dual" or "randomised"."""
        forced = self.route in ("covariance", "dual", "randomised")
        return tuple(self.route if forced and not size.space else whitening_route(size) for size in self.sizes)

    def _reads_tokens(self, variant: int) -> bool:
        return reads_tokens(self.representations[self.variants[variant].representation], self.variants[variant].view)

    def _nbytes(self, variant: int) -> int:
        return self.representations[self.variants[variant].representation].nbytes

    def segments(self, variants: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Return the segments of datapoints in which variants are read, on its own or side by side: by shapes alone."""
        count = self.representations[0].logical_shape[0]
        row_bytes = -(-sum(self._nbytes(i) for i in variants) // count)
        step = segment_rows([self.sizes[i] for i in variants], row_bytes, self.segment)
        return tuple((start, min(start + step, count)) for start in range(0, count, step))

    def segments_name(self, variants: Sequence[int]) -> str:
        """Return what the partial results of variants are called."""
        content = [[self.basis_fingerprints[i] for i in variants], str(self.widest), self.segments(variants)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]

    @cached_property
    def variant_pairs(self) -> tuple[tuple[int, int], ...]:
        """The different variants that are compared, smaller first."""
        found = set()
        for tile in self.tiles:
            for one in self.passes(tile):
                for i, j in np.argwhere(one.wanted).tolist():
                    found.add((min(one.x[i], one.y[j]), max(one.x[i], one.y[j])))
        return tuple(sorted(pair for pair in found if pair[0] != pair[1]))

    @cached_property
    def basis_fingerprints(self) -> tuple[str, ...]:
        """What the basis of each variant is made from: it is made again only if this changes."""
        own = self._own_fingerprints
        if not self.direct:
            return own
        joint = [list(own), list(self.variant_pairs), "direct"]
        return tuple(hashlib.sha256(json.dumps([joint, i]).encode()).hexdigest() for i in range(len(own)))

    @cached_property
    def _own_fingerprints(self) -> tuple[str, ...]:
        return tuple(
            hashlib.sha256(
                json.dumps(
                    [
                        self.representations[v.representation].fingerprint,
                        str(v.view) + part_of(self.representations[v.representation], v.view),
                        f"center={self.center if v.view.name in TRANSFORMED else 'all'}",
                        "float32",
                        route,
                        NUMERICS,
                    ]
                ).encode()
            ).hexdigest()
            for v, route in zip(self.variants, self.whitening, strict=True)
        )

    @cached_property
    def definition(self) -> dict[str, Any]:
        """Everything on which a number depends but the two representations it is about."""
        return {
            "view": self.view,
            "center": self.center,
            "route": "direct" if self.direct else "bases" if self.route in ("auto", "direct") else self.route,
            "targets": [[target.name, target.digest] for target in self.targets],
            "known_of_rows": self.rows,
            "keep": list(self.keep),
            "grids": [list(grid) for grid in self.grids] if self.kept_frequencies else [],
            "variance": [rule.variance for rule in self.rules],
            "criterion": self.rules[0].criterion,
            "rank": self.rules[0].rank,
            "rank_rule": [str(rule) for rule in self.rules],
            "measures": list(self.measures),
            "precision": "moments, cross blocks and solves float64"
            if self.direct
            else "bases float32, products float32 summed in float64 every 4096 rows, solves float64",
            "numerics": NUMERICS,
            "datapoints": self.representations[0].logical_shape[0],
            "panel": self.panel,
            "segment": self.segment,
        }

    @property
    def description(self) -> dict[str, Any]:
        """What else is to be known of a population: which pairs, what is a row, how bases were made."""
        rows = {
            meeting.name: self._passes.ground(Variant(int(np.argmax(self._passes.kinds == kind)), meeting.x)).rows
            for (kind, _), meeting in sorted(self._passes.meetings.items())
        }
        return {
            "pairs": self.pairs.name,
            "views": list(self.names),
            "whitening": sorted(set(self.whitening)),
            "rows": next(iter(rows.values())) if len(set(rows.values())) == 1 else rows,
        }

    @cached_property
    def digests(self) -> tuple[bytes, ...]:
        """What each representation is (8 bytes); on the direct route with all that lie beside it."""
        beside = self.basis_fingerprints[0] if self.direct else ""
        return tuple(hashlib.sha256(f"{r.identity} {beside}".encode()).digest()[:8] for r in self.representations)

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """How large each variant is."""
        return tuple(variant_size(self.representations[v.representation], v.view) for v in self.variants)

    def assumed_ranks(self) -> list[int]:
        """Ranks taken for the price before any is known: a third of the columns (of transformed ones 0.7), or all."""
        rule = self.widest
        everything = rule.rank is None and rule.variance == 1
        found = []
        for size in self.sizes:
            share = 1.0 if everything else 0.7 if size.space else 1 / 3
            found.append(max(1, min(int(size.width * share), size.most - 2, rule.rank or size.most)))
        return found

    def price(self, ranks: Sequence[int] | None = None, machine: Machine | None = None) -> Price:
        """Return what the plan costs, for known ranks of the variants or for assumed ones.

        Parameters
        ----------
        machine : Machine, default one thread of this one
            See `dsvcca.machine_of`.
        """
        return price(self.work(ranks), machine or this_machine())

    def work(self, ranks: Sequence[int] | None = None) -> Work:
        """Return the plan as integers, for known ranks of the variants or for assumed ones."""
        k = np.asarray(list(ranks or self.assumed_ranks()))
        variants = tuple(
            BasisWork(
                size, self._nbytes(i), 1 if self.direct or not (large or self._is_read_twice(size)) else 2, int(k[i])
            )
            for i, (size, large) in enumerate(zip(self.sizes, self.large, strict=True))
        )
        read = sum(one.nbytes * one.times_read for one in variants)
        written = sum(4 * one.size.rows * one.rank for one in variants)
        if self.direct:
            written = moments_bytes(self.sizes) * len(self.segments(range(len(self.variants))))
            read += written
        memory = max(self._reduce_memory(i, int(q)) for i, q in enumerate(k))
        passes = []
        for tile in self.tiles:
            for one in self.passes(tile):
                x, y = k[list(one.x)], k[list(one.y)]
                itself = one.x == one.y
                passes.append(self._together(one, x, y))
                read += 0 if self.direct else 4 * one.rows * int(x.sum() + (0 if itself else y.sum()))
                memory = max(memory, min(self._tile_memory(one, k), self.tile_budget) + self.budget - self.tile_budget)
            written += 8 * (len(self.measures) + 2) * len(self.rules) * 2 * self.panel**2
        return Work(
            comparisons=self.pairs.count,
            variants=variants,
            reduce_tasks=self._reduce_task_count(),
            tiles=len(self.tiles),
            passes=tuple(passes),
            rules=len(self.rules),
            vectors=any(m.startswith("pwcca") for m in self.measures),
            direct=self.direct,
            bytes_read=read,
            bytes_written=written,
            memory=memory,
        )

    def _tile_memory(self, one: Pass, ranks: NumpyArray) -> int:
        """Return the bytes of arrays that a pass takes if nothing is cut, however its columns are spread."""
        columns, blocks = [], 0
        for side in (one.x, one.y):
            sizes = [self.sizes[i] for i in side]
            weight = 2 if sizes[0].space else 1
            most = [min(int(k), weight * size.columns) for k, size in zip(ranks[list(side)], sizes, strict=True)]
            total = int(ranks[list(side)].sum())
            columns.append([padded(one) for one in spread(total, sum(most), sizes[0].frequencies)])
            blocks += sum(block_bytes(k // weight, size.columns, weight) for k, size in zip(most, sizes, strict=True))
        # On the direct route cross blocks are there already, and no columns.
        return tile_memory(columns[0], None if one.x == one.y else columns[1], 0 if self.direct else one.rows, blocks)

    def _together(self, one: Pass, x: NumpyArray, y: NumpyArray) -> Together:
        """Return comparisons that share their ground as integers; x and y are the ranks of both sides."""
        size = self.sizes[one.x[0]]
        ends = np.cumsum([0, *y.tolist()])
        some = one.wanted.any(axis=1)
        first = one.wanted.argmax(axis=1)
        last = one.wanted.shape[1] - one.wanted[:, ::-1].argmax(axis=1)
        spans = np.where(some, ends[last] - ends[first], 0)  # what lies between wanted columns is multiplied as well
        return Together(
            rows=one.rows,
            frequencies=size.frequencies,
            multiplied=float((x * spans).sum()) / size.frequencies,
            pairs=int(one.wanted.sum()),
            rank=max(1, int((x.mean() + y.mean()) / 2 / size.frequencies)),
        )

    def _is_read_twice(self, size: Size) -> bool:
        return not holds_whole(size, self.budget)

    @cached_property
    def large(self) -> tuple[bool, ...]:
        """Which variants are larger than one task: read in segments, twice."""
        return tuple(
            route == "covariance" and not self._reads_tokens(i) and len(self.segments((i,))) > 1
            for i, route in enumerate(self.whitening)
        )

    def _reduce_memory(self, variant: int, width: int) -> int:
        """Return the bytes of arrays that making one basis takes, of which `width` columns are kept."""
        size = self.sizes[variant]
        if self.direct:
            return segment_memory(self.sizes)
        if self.large[variant]:
            return max(segment_memory([size]), projection_memory(size, width))
        if self.whitening[variant] == "dual":
            return dual_memory(size, width) + 16 * size.rows * min(STRIDE, size.columns)
        if self.whitening[variant] == "randomised":
            return sketch_memory(size, SAMPLES if self.widest.rank is None else self.widest.rank + SPARE)
        return reduce_memory(size, width, self.budget)

    def _reduce_task_count(self) -> int:
        """Return how many tasks it takes until every basis is there, or every cross block."""
        if self.direct:
            return len(self.segments(range(len(self.variants)))) + 1
        small = [i for i, large in enumerate(self.large) if not large]
        segments = [len(self.segments((i,))) for i, large in enumerate(self.large) if large]
        return len(self.reduce_tasks(small) if small else []) + sum(2 * count + 2 for count in segments)

    def reduce_tasks(self, wanted: Sequence[int], threads: int = 1) -> list[tuple[int, ...]]:
        """Cut the variants that need a basis into tasks of a few seconds, enough of them for the threads."""
        most = min(self.panel, -(-len(wanted) // (TASKS_A_THREAD * threads)))
        tasks: list[list[int]] = []
        size = 0
        for i in wanted:
            nbytes = self.representations[self.variants[i].representation].nbytes
            other = bool(tasks) and self.sizes[tasks[-1][0]].rows != self.sizes[i].rows
            if not tasks or len(tasks[-1]) == most or size + nbytes > TASK_BYTES or other:
                tasks.append([])
                size = 0
            tasks[-1].append(i)
            size += nbytes
        return [tuple(task) for task in tasks]

    def check(self, ranks: Sequence[int] | None = None) -> None:
        """Raise if a task cannot be done in the plan's memory; `ranks` are those of the variants, once known."""
        if self.budget <= 0:
            raise DsvccaError(
                f"memory={format_bytes(self.memory)} a worker is too little: the process alone takes "
                f"{format_bytes(PROCESS)} and tasks use {USABLE:.0%} of a worker; give at least 1 GiB"
            )
        if self.tile_budget <= self.budget // 2:
            raise DsvccaError(
                f"keep='frequencies' holds {format_bytes(self.budget - self.tile_budget)} in a tile, more than half of "
                f"the {format_bytes(self.budget)} that memory={format_bytes(self.memory)} leaves: raise memory, or "
                "compare fewer representations at once"
            )
        for i, (variant, size) in enumerate(zip(self.variants, self.sizes, strict=True)):
            needed = self._reduce_memory(i, 1 if ranks is None else ranks[i])
            if ranks is not None:  # one basis against another at one frequency is the least there is to do
                k = min(ranks[i], size.columns)
                weight = 2 if size.space else 1
                blocks = 2 * block_bytes(k, size.columns, weight)
                needed = max(needed, tile_memory([k * weight], [k * weight], size.rows, blocks))
            if needed > self.budget:
                representation = self.representations[variant.representation]
                more = ceil((needed + PROCESS) / USABLE / 2**30 * 10) / 10
                other = "; or use route='bases'" if self.direct and self.route == "auto" else ""
                if 3 * size.unit > self.budget // 2:
                    other = (
                        f"; or cut it along datapoints once, now {format_bytes(size.unit)} have to be read together:\n"
                    )
                    other += f"    python -c {_rechunking(representation)!r}"
                raise DsvccaError(
                    f"{representation} ({size.rows} rows, {size.width} columns as view '{variant.view}') needs "
                    f"{format_bytes(needed)} of arrays in a task, memory={format_bytes(self.memory)} leaves "
                    f"{format_bytes(self.budget)}: raise memory to {more} GiB or more{other}"
                )

    def __str__(self) -> str:
        return self.describe()

    def describe(self, machine: Machine | None = None) -> str:
        """Return the plan in words, priced for a machine (`dsvcca.machine_of`), or for one thread of this."""
        rules = "; ".join(str(rule) for rule in self.rules)
        what = RULES.get(self.pairs.name, "a list")
        known = "the same ids" if self.ids else "the same number, by ids not proven"
        count = self.representations[0].logical_shape[0]
        return "\n".join(
            [
                f"plan for {self.store}",
                f"  representations  {len(self.representations):,} ({count:,} datapoints each: {known})",
                f"  view             {self.view}: {self._how_it_is_seen() or 'nothing is compared with each other'}",
                f"  route            {self._how_it_goes()}",
                f"  kept             {rules}",
                f"  pairs            {self.pairs.name}: {what}",
                f"  measures         {', '.join(self.measures) if self.tiles else 'none'}",
                *([f"  targets          {self._what_is_explained()}"] if self.targets else []),
                *(f"  {line}" for line in str(self.price(machine=machine)).splitlines()),
                "  (taking ranks to be a third of the columns, 0.7 of them by frequency, until they are known)",
            ]
        )

    def _what_is_explained(self) -> str:
        """Return the targets, and what explains them."""
        names = ", ".join(f"{t.name} ({t.columns} columns)" if t.columns > 1 else t.name for t in self.targets)
        return f"{names}, explained by {self.target_view}"

    def _how_it_goes(self) -> str:
        """Return which way from activations to cross blocks was chosen."""
        if self.direct:
            count = len(self.segments(range(len(self.variants))))
            return f"direct: activations are read once, side by side in {count} segments, and no basis is kept"
        large = sum(self.large)
        segments = sum(len(self.segments((i,))) for i, is_large in enumerate(self.large) if is_large)
        ways = {
            "covariance": "through the covariance of columns",
            "dual": "through the Gram of rows, which are fewer (dual)",
            "randomised": "by random sketches, with the error kept (randomised)",
        }
        ways_taken = Counter(self.whitening)
        how = ", ".join(f"{number} {ways[way]}" for way, number in sorted(ways_taken.items()))
        return f"bases, kept for other plans: {how}" + (
            f"; {large} too large for a task in {segments} segments" if large else ""
        )

    def _how_it_is_seen(self) -> str:
        """Return how many comparisons are made in which view, of how many rows."""
        count: Counter[str] = Counter()
        rows: dict[str, int] = {}
        for tile in self.tiles:
            for one in self.passes(tile):
                for code, number in zip(*np.unique(one.names[one.wanted], return_counts=True), strict=True):
                    count[self.names[code - 1]] += int(number)
                    rows[self.names[code - 1]] = one.rows
        parts = [f"{name} ({number:,} comparisons of {rows[name]:,} rows)" for name, number in sorted(count.items())]
        return ", ".join(parts) + ("; mean of frequency 0 subtracted alone" if self.center == "dc" else "")


def _rechunking(representation: Representation) -> str:
    """Return the Python line that copies an array that others wrote into chunks along datapoints, by Dask."""
    along = representation.dims.index("datapoint")
    rows = max(1, representation.shape[along] * (8 << 20) // max(representation.nbytes, 1))
    chunks = tuple(rows if axis == along else -1 for axis in range(len(representation.shape)))
    there = representation.array.rstrip("/")
    into = there.removesuffix(".zarr") + "-by-datapoint.zarr"
    return f"import dask.array as da; da.from_zarr({there!r}).rechunk({chunks}).to_zarr({into!r})"
