"""The plan: which comparisons, cut into which tasks (`layout`), at what price. It reads no activations.

A plan is frozen integers and labels. It prints itself, and it refuses before anything runs what cannot work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
from dask.utils import format_bytes

from dsvcca.activations.representations import Representation
from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.measures import BY_RIDGE, sums_of
from dsvcca.maths.sums import OF_RIDGE, OF_VECTORS
from dsvcca.maths.views import GRID
from dsvcca.maths.wide import POWERS
from dsvcca.plans.layout import NUMERICS, Layout
from dsvcca.plans.machine import Machine, this_machine
from dsvcca.plans.pairs import RULES
from dsvcca.plans.passes import Pass
from dsvcca.plans.portions import SOLVE, VECTORS, portions
from dsvcca.plans.price import BasisWork, Price, Together, Work, price
from dsvcca.plans.sizes import (
    APART,
    PROCESS,
    STACKS,
    USABLE,
    basis_memory,
    block_bytes,
    check_room,
    columns_at_once,
    holds_whole,
    moments_bytes,
    padded,
    parts_bytes,
    projection_memory,
    segment_memory,
    solve_bytes,
    spread,
    tile_memory,
)
from dsvcca.progress import waiting

LEAST = f"{ceil((PROCESS + (64 << 20)) / USABLE / 2**30 * 10) / 10} GiB"
"""Memory of a worker in which small layers can be compared."""


SPECTRA = {"nuclear": 1, "ridge": 1, "held_out": 3, "jackknife": 5}
"""What sums cost beside correlations, in solves for those of one cross block, about."""


@dataclass(frozen=True, repr=False)
class Plan(Layout):
    """Comparisons that were chosen, cut and priced; made by `plan_comparisons`. Its fields are those of `Layout`."""

    def price(
        self, ranks: Sequence[int] | None = None, machine: Machine | None = None, *, made: Collection[int] = ()
    ) -> Price:
        """Return what the plan costs, for known ranks of the aspects or for assumed ones.

        Parameters
        ----------
        machine : Machine, default one thread of this one
            See `dsvcca.machine_of`.
        made : collection of int
            Aspects whose bases are there.
        """
        if isinstance(ranks, Machine):
            raise DsvccaError("price() takes ranks first: write price(machine=...)")
        machine = machine or this_machine()
        return price(self.work(ranks, machine.threads, made), machine)

    def work(self, ranks: Sequence[int] | None = None, threads: int = 1, made: Collection[int] = ()) -> Work:
        """Return the plan as integers, for known ranks of the aspects or for assumed ones, without the bases `made`."""
        k = np.asarray(list(ranks or self.assumed_ranks()))
        lacking = [i for i in range(len(k)) if i not in made and not self.is_dropped(i)]
        aspects = tuple(
            BasisWork(self.sizes[i], self._nbytes(i), self._times_read(i, int(k[i])), int(k[i]), self.whitening[i])
            for i in lacking
        )
        read = sum(one.nbytes * one.times_read for one in aspects)
        written = sum(4 * one.size.rows * one.rank for one in aspects)
        if self.direct and lacking:
            written = moments_bytes(self.sizes) * len(self.segments(range(len(self.aspects))))
            read += written
        memory = max((self._reduce_memory(i, int(k[i])) for i in lacking), default=0)
        if self.targets:
            for panel in self.target_passes:
                columns = max((int(k[list(one.x)].sum()) for one in panel), default=0)
                slabs = 24 * min(GRID, self.sizes[0].rows) * columns
                memory = max(memory, min(self.target_bytes + slabs, self.budget))
        passes = []
        tiles = [self.passes(tile) for tile in self.tiles]
        correlate_tasks = self.portions(tiles, k)
        for own, tasks in zip(tiles, correlate_tasks, strict=True):
            for one in own:
                passes.append(self._together(one, k[list(one.x)], k[list(one.y)]))
                needed = min(self._tile_memory(one, k), self.tile_budget)
                memory = max(memory, needed + self.budget - self.tile_budget)
            for one in [] if self.direct else (one for task in tasks for one in task):
                read += 4 * one.rows * int(k[list(one.x)].sum() + (0 if one.x == one.y else k[list(one.y)].sum()))
            arrays = 2 + sum(len(self.ridges) if name in BY_RIDGE else 1 for name in self.measures)
            written += 8 * arrays * len(self.rules) * 2 * self.panel**2
        return Work(
            comparisons=self.pairs.count,
            itself=self.pairs.itself,
            aspects=aspects,
            bases=len(k),
            reduce_tasks=self._reduce_task_count(lacking, threads),
            correlate_tasks=sum(map(len, correlate_tasks)),
            tiles=len(self.tiles),
            passes=tuple(passes),
            rules=len(self.rules),
            vectors=self._vectors,
            spectra=self._spectra,
            products=1 + self.shuffles,
            direct=self.direct,
            bytes_read=read,
            bytes_written=written,
            memory=memory,
        )

    @property
    def _vectors(self) -> bool:
        """Whether singular vectors are needed, and not only values."""
        return not set(OF_VECTORS).isdisjoint(sums_of(self.measures))

    @property
    def _spectra(self) -> int:
        """How many solves for the correlations of a cross block all else costs, about."""
        names = sums_of(self.measures)
        return sum(SPECTRA.get(name, 0) * (len(self.ridges) if name in OF_RIDGE else 1) for name in names)

    def portions(
        self, tiles: Sequence[Sequence[Pass]], ranks: Sequence[int] | NumpyArray
    ) -> list[list[Sequence[Pass]]]:
        """Return what tasks do of every tile, given with its passes: all of it, or portions where tiles are few.

        Parameters
        ----------
        tiles : sequence of sequences of Pass
        ranks : sequence of int
            Of the aspects.
        """
        k = np.asarray(ranks)

        def weight(one: Pass) -> NumpyArray:
            frequencies = self.sizes[one.x[0]].frequencies
            x, y = k[list(one.x), None] / frequencies, k[None, list(one.y)] / frequencies
            product = 0.0 if self.direct else 2.0 * one.rows * (1 + self.shuffles) * x * y
            solve = SOLVE * (VECTORS if self._vectors else 1) * (1 + self._spectra + self.shuffles) * (x + y) ** 2 / 4
            found: NumpyArray = ((product + len(self.rules) * solve) * frequencies * one.wanted).sum(axis=1)
            return found

        def again(one: Pass) -> int:
            return 0 if self.direct else 4 * one.rows * int(k[list(one.y)].sum())

        return [portions(own, weight, again, self.panel, len(self.tiles)) for own in tiles]

    def _tile_memory(self, one: Pass, ranks: NumpyArray) -> int:
        """Return the bytes of arrays that a pass takes if nothing is cut, however its columns are spread."""
        columns, blocks, largest = [], 0, []
        for side in (one.x, one.y):
            sizes = [self.sizes[i] for i in side]
            weight = 2 if sizes[0].space else 1
            most = [min(int(k), weight * size.columns) for k, size in zip(ranks[list(side)], sizes, strict=True)]
            total = int(ranks[list(side)].sum())
            columns.append([padded(one) for one in spread(total, sum(most), sizes[0].frequencies)])
            largest.append(max(most))
            blocks += sum(block_bytes(k // weight, size.columns, weight) for k, size in zip(most, sizes, strict=True))
        blocks += solve_bytes(largest[0], largest[1])
        # On the direct route cross blocks are there already, and no columns.
        rows = 0 if self.direct else one.rows
        right = None if one.x == one.y else columns[1]
        if not self.folds:
            return tile_memory(columns[0], right, rows, blocks)
        folds, widest = self.folds, padded(max(largest))
        parts = parts_bytes(2 * widest, widest, folds)
        least = tile_memory([widest], [widest], rows, blocks + parts, folds)
        parts = parts_bytes(max(columns[0]) + (0 if right is None else max(right)), widest, folds)
        return min(tile_memory(columns[0], right, rows, blocks + parts, folds), max(least, APART)) + STACKS

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

    def _times_read(self, aspect: int, width: int) -> int:
        """Return how often the activations of an aspect are read, of which `width` columns are kept."""
        size = self.sizes[aspect]
        if self.direct:
            return 1
        if self.whitening[aspect] == "dual":
            return sum(-(-size.columns // columns_at_once(size, self.budget, k)) for k in (1, width))
        if self.whitening[aspect] == "randomised":
            return POWERS + 3  # an overview, the covariance once more than its powers, the columns
        return 2 if self.large[aspect] or not holds_whole(size, self.budget) else 1

    def _reduce_memory(self, aspect: int, width: int) -> int:
        """Return the bytes of arrays that making one basis takes, of which `width` columns are kept."""
        size = self.sizes[aspect]
        if self.is_dropped(aspect):
            return 0
        if self.direct:
            return segment_memory(self.sizes)
        if self.large[aspect]:
            return max(segment_memory([size]), projection_memory(size, width))
        return basis_memory(size, width, self.budget, self.whitening[aspect], self.widest.rank)

    def _reduce_task_count(self, lacking: Sequence[int], threads: int) -> int:
        """Return how many tasks it takes until the bases of some aspects are there, or all cross blocks."""
        if self.direct:
            return len(self.segments(range(len(self.aspects)))) + 1 if lacking else 0
        small = [i for i in lacking if not self.large[i]]
        segments = [len(self.segments((i,))) for i in lacking if self.large[i]]
        return len(self.task_groups(small, threads)) + sum(2 * count + 2 for count in segments)

    def check(self, ranks: Sequence[int] | None = None) -> None:
        """Raise if a task cannot be done in the plan's memory; `ranks` are those of the aspects, once known."""
        if self.budget <= 0:
            raise DsvccaError(
                f"memory={format_bytes(self.memory)} a worker is too little: the process alone takes "
                f"{format_bytes(PROCESS)} and tasks use {USABLE:.0%} of a worker; give at least {LEAST}"
            )
        if self.tile_budget <= self.budget // 2:
            raise DsvccaError(
                f"keep={list(self.keep)} holds {format_bytes(self.budget - self.tile_budget)} in a tile, more than "
                f"half of the {format_bytes(self.budget)} that memory={format_bytes(self.memory)} leaves: raise it, or "
                "compare fewer representations at once"
            )
        if self.target_bytes > self.budget // 2:
            raise DsvccaError(
                f"the targets hold {format_bytes(self.target_bytes)} in a task, more than half of the "
                f"{format_bytes(self.budget)} that memory={format_bytes(self.memory)} leaves: raise memory, or give "
                "fewer targets at once"
            )
        for i, (aspect, size) in enumerate(zip(self.aspects, self.sizes, strict=True)):
            needed = self._reduce_memory(i, 1 if ranks is None else ranks[i])
            if ranks is not None:  # one basis against another at one frequency is the least there is to do
                k = min(ranks[i], size.columns)
                weight = 2 if size.space else 1
                blocks = 2 * block_bytes(k, size.columns, weight) + solve_bytes(k * weight, k * weight)
                width, folds = k * weight, self.folds
                blocks += parts_bytes(2 * width, width, folds)
                needed = max(needed, tile_memory([width], [width], size.rows, blocks, folds))
            representation = self.representations[aspect.representation]
            other = "; or use route='bases'" if self.direct and self.route == "auto" else ""
            if 3 * size.unit > self.budget // 2:
                other = (
                    f"; or cut it along datapoints once, now {format_bytes(size.unit)} have to be read together:\n"
                    f"    python -c {_rechunking(representation)!r}"
                )
            what = f"{representation} ({size.rows} rows, {size.width} columns as view '{aspect.view}')"
            check_room(what, needed, self.budget, other)

    def check_kept(self) -> None:
        """Raise if something is asked of representations whose activations were dropped that their bases do not hold.

        Raises
        ------
        DsvccaError
            Says what was asked, and what there is.
        """
        lacking = [i for i, source in enumerate(self.sources) if self.is_dropped(source) and not self._is_kept(i)]
        if not lacking:
            return
        first = self.representations[self.aspects[lacking[0]].representation]
        assert first.kept is not None
        if self.direct:
            why = "route='direct' reads them"
        else:
            numerics = {one.numerics for one in first.kept.bases} - {NUMERICS}
            other = f" (by numerics {numerics.pop()}, this version has {NUMERICS})" if numerics else ""
            center = f", center={self.center!r}" if self.center != "all" else ""
            route = self.whitening[lacking[0]]
            how = "" if route == "covariance" else f", route={route!r}"
            asked = f"view {self.said_view(lacking[0])!r} with {self.widest}{center}{how}"
            why = f"this plan needs {asked}; what was kept is {first.kept}{other}"
        others = len({self.aspects[i].representation for i in lacking}) - 1
        raise DsvccaError(
            f"{first}{f' and {others} more' if others else ''}: activations were dropped, and {why}: plan within what "
            f"was kept (view={first.kept.bases[0].view!r}), select() others, or write it again with if_exists='replace'"
        )

    def _is_kept(self, aspect: int) -> bool:
        """Return whether the basis of an aspect was kept when its activations were dropped."""
        kept = self.representations[self.aspects[aspect].representation].kept
        name, rule = self.basis_fingerprints[aspect], self.widest
        return kept is not None and any(one.fingerprint == name and one.serves(rule) for one in kept.bases)

    def __str__(self) -> str:
        return self.describe()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.describe())  # as the last line of a notebook's cell

    def __repr__(self) -> str:
        return (
            f"<dsvcca plan of {self.pairs.count:,} comparisons of {len(self.representations):,} representations in "
            f"{self.store!r}>"
        )

    @waiting("price the plan")
    def describe(self, machine: Machine | None = None, ranks: Sequence[int | None] | None = None) -> str:
        """Return the plan in words.

        Parameters
        ----------
        machine : Machine, default one thread of this one
            What it is priced for: see `dsvcca.machine_of`.
        ranks : sequence of int or None, optional
            Those of the aspects whose bases are there.
        """
        rules = "; ".join(str(rule) for rule in self.rules)
        what = RULES.get(self.pairs.name, f"a list of {len(self.pairs.listed):,}")
        known = "the same ids" if self.ids else "in the same order, which no ids prove"
        known_ranks = list(ranks or [None] * len(self.aspects))
        taken = [mine or assumed for mine, assumed in zip(known_ranks, self.assumed_ranks(), strict=True)]
        count = self.representations[0].logical_shape[0]
        made = {i for i, rank in enumerate(known_ranks) if rank}
        found = self.price(taken, machine, made=made)
        most = None
        if not all(known_ranks) and self.widest.rank is None and self.widest.variance < 1:
            largest = [mine or most for mine, most in zip(known_ranks, self.most_ranks(), strict=True)]
            most = self.price(largest, machine, made=made)
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
                *(f"  {line}" for line in found.lines(most)),
                *self._what_is_assumed(found.memory, most, known_ranks),
            ]
        )

    def freedom(self, one: Pass) -> int:
        """Return how many independent rows a pass has, less one: those of a datapoint are one. 0: nothing is known."""
        if one.space and self.center == "dc":
            return 0
        rows = min(one.rows, self.representations[0].logical_shape[0])
        return rows // (prod(one.space) if self.rows == "translations" else 1) - 1

    def unit(self, one: Pass) -> int:
        """Return how many rows of a pass a datapoint has; 0 where numbers differ, or it is not known whose rows are."""
        aspect = self.aspects[one.x[0]]
        shape = self.representations[aspect.representation].logical_shape
        whole = prod(shape[:-1]) if aspect.view.name == "positions" else shape[0]
        return one.rows // shape[0] if one.rows == whole and self.rows != "translations" else 0

    def _what_is_assumed(self, memory: int, most: Price | None, ranks: Sequence[int | None]) -> list[str]:
        """Return in words what a price, with that memory, takes for granted; `most` is the one of all directions."""
        over = []
        if memory > self.memory:
            over = [f"  ({format_bytes(memory)} is more than the {format_bytes(self.memory)} that it may use)"]
        if all(ranks):
            return ["  (the ranks are those of bases that are there)", *over]
        if most is None:
            return over
        shares = [("a third", any(not s.space for s in self.sizes)), ("0.7", any(s.space for s in self.sizes))]
        share = " or, by frequency, ".join(share for share, there in shares if there)
        few = f" of the {ranks.count(None):,} not yet known" if any(ranks) else ""
        return [
            f"  (from ranks{few} taken to be {share} of the columns to all directions kept, as of layers that have not "
            "learned; bases that are made say which)",
            *over,
        ]

    def _what_is_explained(self) -> str:
        """Return the targets, and what explains them."""
        names = ", ".join(f"{t.name} ({t.columns} columns)" if t.columns > 1 else t.name for t in self.targets)
        return f"{names}, explained by {self.target_view}"

    def _how_it_goes(self) -> str:
        """Return which way from activations to cross blocks was chosen."""
        if self.direct:
            count = len(self.segments(range(len(self.aspects))))
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
        gone = len({v.representation for i, v in enumerate(self.aspects) if self.is_dropped(i)})
        return (
            f"bases, kept for other plans: {how}"
            + (f"; {large} too large for a task in {segments} segments" if large else "")
            + (f"; of {gone} representations bases are all that is left" if gone else "")
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
