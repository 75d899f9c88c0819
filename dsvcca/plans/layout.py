"""What is to be done, as integers: comparisons in panels, tiles and views, the way to their bases, tasks.

Reads no activations, and knows no memory but the budget that tasks are cut to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import numpy as np

from dsvcca.activations.representations import Representation
from dsvcca.maths.basis import RankRule
from dsvcca.maths.frequencies import half_spectrum
from dsvcca.maths.measures import sums_of
from dsvcca.maths.resampling import FOLDS
from dsvcca.maths.sums import OF_FOLDS
from dsvcca.maths.variants import VARIANTS
from dsvcca.maths.views import EACH_POSITION, TRANSFORMED
from dsvcca.plans.pairs import Pairs
from dsvcca.plans.passes import Aspect, Pass, Passes, aspect_size, part_of, reads_tokens
from dsvcca.plans.sizes import PROCESS, SEGMENT_BYTES, USABLE, Size, moments_bytes, segment_rows, whitening_route
from dsvcca.plans.targets import Target

NUMERICS = 8
"""Changes whenever the same inputs would give other bits."""

PANEL = 128
"""Representations in a panel: a fixed count, so that tiles never depend on workers or memory."""

TASK_BYTES = 1 << 30
"""Bytes of activations reduced by one task, about."""

TASKS_A_THREAD = 2
"""Reduce tasks for each worker thread, at least, as long as there are representations for them."""

KEEP = ("frequencies", "correlations")

MOST_CORRELATIONS = 256
"""Correlations of each pair that results hold where they are kept, at most: the largest."""

ROUTES = ("auto", "bases", "direct", "covariance", "dual", "randomised")

DIRECT_BYTES = 512 << 20
"""Bytes of the moments of all representations side by side, up to which that is chosen."""

WORST_ROUNDING = 1e-7
"""Rounding of correlations from moments alone, eps times the squared condition number, that is not accepted."""

EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Layout:
    """Comparisons that were chosen and cut.

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
    listed : tuple of str
        Which dimensions results have of what was given as a list: "variance", "ridge".
    pairs : Pairs
    measures : tuple of str
    variant : str
        Whose definitions measures and rank rule follow; "" where it is this package's own.
    ridges : tuple of float
        Of the measures that have one; none where there are no such measures.
    shuffles : int
        How often datapoints are shuffled, for the measures that take it; 0 where there are no such measures.
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
        What results hold beside the measures: "frequencies", "correlations".
    correlations : int
        How many correlations of each pair results hold, at most; 0 where they hold none.
    panel : int
        Places in a panel.
    shown : tuple of int
        Which of the representations results show first, and so on; by default as they stand.
    places : tuple of int
        Where results hold each representation, in rising order; by default one after another. Those of earlier plans
        that this one does not have keep their places.
    segment : int
        Bytes of activations in a segment of a representation that is larger than one task, about.
    failed : frozenset of int
        Aspects that have no basis, and could not be given one: nothing is compared with them.
    """

    store: str
    representations: tuple[Representation, ...]
    view: str
    rules: tuple[RankRule, ...]
    listed: tuple[str, ...]
    pairs: Pairs
    measures: tuple[str, ...]
    variant: str
    ridges: tuple[float, ...]
    shuffles: int
    memory: int
    center: str = "all"
    route: str = "auto"
    targets: tuple[Target, ...] = ()
    rows: str | None = None
    keep: tuple[str, ...] = ()
    correlations: int = 0
    panel: int = PANEL
    shown: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    segment: int = SEGMENT_BYTES
    failed: frozenset[int] = frozenset()

    def laid_out(self, places: Sequence[int]) -> Self:
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

    def without(self, failed: Collection[int]) -> Self:
        """Return the same plan without what is compared with some aspects."""
        return replace(self, failed=self.failed.union(failed))

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
            self.failed,
        )

    @property
    def tiles(self) -> tuple[tuple[int, int], ...]:
        """Pairs of panels (i <= j) in which at least one comparison is wanted."""
        return self._passes.tiles

    def passes(self, tile: tuple[int, int]) -> list[Pass]:
        """Return the comparisons of a tile, those that share their ground together; none where all are hidden."""
        return [] if max(tile) >= len(self.panels) else self._passes.of_tile(tile)

    @property
    def target_passes(self) -> list[list[Pass]]:
        """Of every panel, the aspects that meet the targets."""
        return self._passes.target_passes

    @property
    def target_view(self) -> str:
        """What explains the targets, in words."""
        return self._passes.target_view

    @property
    def aspects(self) -> tuple[Aspect, ...]:
        """Of what bases are made: every representation under every view in which it meets another."""
        return self._passes.aspects

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

    def most_correlations(self) -> int:
        """Return how many correlations of a pair there can be, up to MOST_CORRELATIONS; 0 where all are by frequency.

        A power of two, so that the same results have room for layers that come later and are a little wider.
        """
        most = [rank for rank, size in zip(self.most_ranks(), self.sizes, strict=True) if not size.space]
        return min(MOST_CORRELATIONS, 1 << (max(most) - 1).bit_length()) if most else 0

    @property
    def transforms(self) -> bool:
        """Whether representations are transformed, so that it is known what lies between their frequencies."""
        return not self.direct and any(size.space for size in self.sizes)

    @property
    def folds(self) -> int:
        """In how many runs of datapoints products are kept apart; 0 where they are not."""
        return 0 if self.direct or set(OF_FOLDS).isdisjoint(sums_of(self.measures)) else FOLDS

    @property
    def budget(self) -> int:
        """Bytes of arrays that a task may hold."""
        return int(self.memory * USABLE) - PROCESS

    @property
    def tile_budget(self) -> int:
        """Bytes of arrays that a tile may hold beside the frequencies and correlations that it keeps."""
        count = min(self.panel, self.places[-1] + 1 if self.places else len(self.representations))
        return self.budget - 8 * 4 * count**2 * (self.kept_frequencies + self.correlations) * len(self.rules)

    @property
    def target_bytes(self) -> int:
        """Bytes of the targets in a task: each by itself, and a basis of those with several columns."""
        return 16 * self.representations[0].logical_shape[0] * sum(target.columns for target in self.targets)

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
            or any(map(self.is_dropped, range(len(self.aspects))))
            or set(self.whitening) != {"covariance"}
            or any(self._reads_tokens(i) for i in range(len(self.aspects)))
        ):
            return False
        large = any(self._nbytes(i) > self.segment // 2 for i in range(len(self.aspects)))
        if not large or len({self._passes.ground(v) for v in self.aspects}) > 1:
            return False
        precise = all(rule.rank is None and rule.criterion == "variance" for rule in self.rules) and all(
            size.width * EPS / WORST_ROUNDING <= 1 - rule.variance for rule in self.rules for size in self.sizes
        )
        moments = moments_bytes(self.sizes)
        basis = sum(2 * self._nbytes(i) for i in range(len(self.aspects)))
        basis += sum(2 * 4 * size.rows * k for size, k in zip(self.sizes, self.assumed_ranks(), strict=True))
        direct = sum(self._nbytes(i) for i in range(len(self.aspects)))
        direct += 2 * moments * len(self.segments(range(len(self.aspects))))
        return precise and moments <= DIRECT_BYTES and direct < basis

    @cached_property
    def whitening(self) -> tuple[str, ...]:
        """How each aspect is whitened: "covariance", "dual" or "randomised"."""
        forced = self.route in ("covariance", "dual", "randomised")
        return tuple(self.route if forced and not size.space else whitening_route(size) for size in self.sizes)

    def _reads_tokens(self, aspect: int) -> bool:
        return reads_tokens(self.representations[self.aspects[aspect].representation], self.aspects[aspect].view)

    def _nbytes(self, aspect: int) -> int:
        return self.representations[self.aspects[aspect].representation].nbytes

    def segments(self, aspects: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Return the segments of datapoints in which aspects are read, on its own or side by side: by shapes alone."""
        count = self.representations[0].logical_shape[0]
        row_bytes = -(-sum(self._nbytes(i) for i in aspects) // count)
        step = segment_rows([self.sizes[i] for i in aspects], row_bytes, self.segment)
        return tuple((start, min(start + step, count)) for start in range(0, count, step))

    def segments_name(self, aspects: Sequence[int]) -> str:
        """Return what the partial results of aspects are called."""
        content = [[self.basis_fingerprints[i] for i in aspects], str(self.widest), self.segments(aspects)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]

    @cached_property
    def aspect_pairs(self) -> tuple[tuple[int, int], ...]:
        """The different aspects that are compared, as places in `side_by_side`, smaller first."""
        place = {i: k for k, i in enumerate(self.side_by_side)}
        found = set()
        for tile in self.tiles:
            for one in self.passes(tile):
                for i, j in np.argwhere(one.wanted).tolist():
                    x, y = place[one.x[i]], place[one.y[j]]
                    found.add((min(x, y), max(x, y)))
        return tuple(sorted(pair for pair in found if pair[0] != pair[1]))

    @cached_property
    def side_by_side(self) -> tuple[int, ...]:
        """The aspects in the order in which the direct route puts them together: by content, since bits follow it."""
        left = (i for i in range(len(self.aspects)) if i not in self.failed)
        return tuple(sorted(left, key=lambda i: self._own_fingerprints[i]))

    @cached_property
    def basis_fingerprints(self) -> tuple[str, ...]:
        """What the basis of each aspect is made from: it is made again only if this changes."""
        own = self._own_fingerprints
        if not self.direct:
            return own
        joint = [[own[i] for i in self.side_by_side], list(self.aspect_pairs), "direct"]
        found = {
            i: hashlib.sha256(json.dumps([joint, place]).encode()).hexdigest()
            for place, i in enumerate(self.side_by_side)
        }
        return tuple(found.get(i, own[i]) for i in range(len(own)))

    @cached_property
    def sources(self) -> tuple[int, ...]:
        """Of what the basis of each aspect is made.

        Layers that hold the same numbers have one basis, made of the first; of one whose activations were not dropped,
        if there is one.
        """
        order = sorted(range(len(self.aspects)), key=lambda i: (self.is_dropped(i), i), reverse=True)
        first = {self.basis_fingerprints[i]: i for i in order}
        return tuple(first[name] for name in self.basis_fingerprints)

    def is_dropped(self, aspect: int) -> bool:
        """Return whether an aspect is of a representation whose activations were dropped."""
        return self.representations[self.aspects[aspect].representation].kept is not None

    def said_view(self, aspect: int) -> str:
        """Return the view of an aspect, by the word that is asked for."""
        representation, view = self.aspects[aspect]
        return str(view) if self.representations[representation].position is None else EACH_POSITION

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
            for v, route in zip(self.aspects, self.whitening, strict=True)
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
            "correlations": self.correlations,
            "variance": [rule.variance for rule in self.rules],
            "criterion": self.rules[0].criterion,
            "rank": self.rules[0].rank,
            "rank_rule": [str(rule) for rule in self.rules],
            "measures": list(self.measures),
            "variant": f"{self.variant}: {VARIANTS[self.variant].definition}" if self.variant else "",
            "ridge": list(self.ridges),
            "shuffles": self.shuffles,
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
            meeting.name: self._passes.ground(Aspect(int(np.argmax(self._passes.kinds == kind)), meeting.x)).rows
            for (kind, _), meeting in sorted(self._passes.meetings.items())
        }
        return {
            "pairs": self.pairs.name,
            "views": list(self.names),
            "whitening": sorted(set(self.whitening)),
            "rows": next(iter(rows.values())) if len(set(rows.values())) == 1 else rows,
            "integrity": self._integrity,
        }

    @property
    def _integrity(self) -> str:
        """Return in words whether a changed byte of activations would have been noticed."""
        count = sum(not r.guarded for r in self.representations)
        if not count:
            return "every chunk of activations is compared with a checksum"
        return (
            f"{count} of {len(self.representations)} representations have no checksum (others wrote them): a changed "
            "byte would not have been noticed"
        )

    @cached_property
    def digests(self) -> tuple[bytes, ...]:
        """What each representation is (8 bytes); on the direct route with all that lie beside it."""
        beside = self.basis_fingerprints[self.side_by_side[0]] if self.direct and self.side_by_side else ""
        return tuple(hashlib.sha256(f"{r.identity} {beside}".encode()).digest()[:8] for r in self.representations)

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """How large each aspect is."""
        return tuple(aspect_size(self.representations[v.representation], v.view) for v in self.aspects)

    def assumed_ranks(self) -> list[int]:
        """Ranks taken before any is known: what was asked for, or a third of the columns (of transformed ones 0.7)."""
        if self.widest.rank is not None or self.widest.variance == 1:
            return self.most_ranks()
        shares = [0.7 if size.space else 1 / 3 for size in self.sizes]
        both = zip(self.sizes, self.most_ranks(), shares, strict=True)
        return [max(1, min(int(size.width * share), most)) for size, most, share in both]

    def most_ranks(self) -> list[int]:
        """Ranks that no aspect can pass."""
        asked = self.widest.rank
        return [max(1, min(size.width, size.most - 2, asked or size.most)) for size in self.sizes]

    @cached_property
    def large(self) -> tuple[bool, ...]:
        """Which aspects are larger than one task: read in segments, twice."""
        return tuple(
            route == "covariance" and not self._reads_tokens(i) and len(self.segments((i,))) > 1
            for i, route in enumerate(self.whitening)
        )

    def task_groups(self, wanted: Sequence[int], threads: int = 1) -> list[tuple[int, ...]]:
        """Cut the aspects that need a basis into tasks of a few seconds: alike, and as many for each thread."""
        if not wanted:
            return []
        nbytes = np.asarray([self._nbytes(i) for i in wanted])
        ends = np.cumsum(nbytes)
        least = max(TASKS_A_THREAD * threads, -(-int(ends[-1]) // TASK_BYTES), -(-len(wanted) // self.panel))
        count = -(-least // threads) * threads
        shares = ((ends - nbytes / 2) * count // ends[-1]).tolist()
        tasks: list[list[int]] = []
        before = None
        for i, share in zip(wanted, shares, strict=True):
            alike = share, self.sizes[i].rows
            if alike != before or len(tasks[-1]) == self.panel:
                tasks.append([])
            tasks[-1].append(i)
            before = alike
        return [tuple(task) for task in tasks]
