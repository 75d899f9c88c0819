"""Passes: who is compared with whom in which view, so that bases that meet share their rows and frequencies.

A representation has one aspect, and one basis, for every view in which it meets another.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from dsvcca.activations.representations import Representation
from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.views import NEURONS, Meeting, View, meet
from dsvcca.plans.pairs import Pairs
from dsvcca.plans.sizes import Size, size_of


class Aspect(NamedTuple):
    """One representation under one view: what one basis is made from."""

    representation: int
    view: View


class Ground(NamedTuple):
    """What bases must share to be compared: the grid whose bins they have, how many rows, and what a row is."""

    space: tuple[int, ...]
    rows: int
    row: str


@dataclass(frozen=True)
class Pass:
    """Comparisons of one tile that share their ground: which aspects of each side, and which pairs of them.

    Attributes
    ----------
    rows : int
    x, y : tuple of int
        Aspects.
    x_members, y_members : tuple of int
        Their representations, by place within the panel.
    space : tuple of int
        The grid whose bins they have.
    wanted : (x, y) bool
        On the diagonal only the upper triangle.
    names : (x, y) int8
        What each comparison is called: 1 + its place in the plan's `names`.
    """

    rows: int
    x: tuple[int, ...]
    y: tuple[int, ...]
    x_members: tuple[int, ...]
    y_members: tuple[int, ...]
    space: tuple[int, ...]
    wanted: NumpyArray
    names: NumpyArray

    def only(self, missing: NumpyArray) -> Pass | None:
        """Return what is left of a pass where only some pairs are missing, (panel, panel) bool; None if nothing is."""
        return self._only(self.wanted & missing[np.ix_(self.x_members, self.y_members)])

    def without(self, failed: Collection[int]) -> Pass | None:
        """Return what is left of a pass without some aspects; None if nothing is."""
        x, y = (np.asarray([aspect not in failed for aspect in side]) for side in (self.x, self.y))
        return self._only(self.wanted & x[:, None] & y[None, :])

    def of_rows(self, members: NumpyArray) -> Pass | None:
        """Return what is left of a pass of some rows, (panel,) bool; None if nothing is."""
        return self._only(self.wanted & members[list(self.x_members)][:, None])

    def _only(self, wanted: NumpyArray) -> Pass | None:
        if (wanted == self.wanted).all():
            return self
        rows, columns = np.flatnonzero(wanted.any(axis=1)), np.flatnonzero(wanted.any(axis=0))
        if not rows.size:
            return None
        return replace(
            self,
            x=tuple(self.x[i] for i in rows.tolist()),
            y=tuple(self.y[j] for j in columns.tolist()),
            x_members=tuple(self.x_members[i] for i in rows.tolist()),
            y_members=tuple(self.y_members[j] for j in columns.tolist()),
            wanted=wanted[np.ix_(rows, columns)],
            names=self.names[np.ix_(rows, columns)],
        )


@dataclass(frozen=True)
class Passes:
    """Every comparison in its view.

    Attributes
    ----------
    representations : tuple of Representation
    view : str
        As it was asked for.
    pairs : Pairs
    panels : tuple of range
        Runs of representations, possibly empty ones.
    places : tuple of int
        Where each representation stands in its panel.
    explaining : bool
        Whether all representations meet targets as well.
    everywhere : bool
        Whether they do so at all frequencies, since rows are all translations.
    failed : frozenset of int
        Aspects that have no basis: nothing is compared with them.
    """

    representations: tuple[Representation, ...]
    view: str
    pairs: Pairs
    panels: tuple[range, ...]
    places: tuple[int, ...]
    explaining: bool
    everywhere: bool
    failed: frozenset[int] = frozenset()

    @cached_property
    def tiles(self) -> tuple[tuple[int, int], ...]:
        """Pairs of panels (i <= j) in which at least one comparison is wanted."""
        p = self.panels
        return tuple((i, j) for i in range(len(p)) for j in range(i, len(p)) if self.pairs.mask(p[i], p[j]).any())

    @cached_property
    def kinds(self) -> NumpyArray:
        """Which representations have the same space, (representations,) int."""
        codes: dict[Any, int] = {}
        return np.asarray([codes.setdefault(kind_of(r), len(codes)) for r in self.representations])

    @cached_property
    def meetings(self) -> dict[tuple[int, int], Meeting]:
        """Where representations of two kinds are compared, for those kinds of which any are; both ways round.

        Raises
        ------
        DsvccaError
            If some cannot be.
        """
        first = [int(np.argmax(self.kinds == kind)) for kind in range(int(self.kinds.max()) + 1)]
        found: dict[tuple[int, int], Meeting] = {}
        for i, j in self.tiles:
            x, y = self.panels[i], self.panels[j]
            both = self.kinds[x.start : x.stop, None] * len(first) + self.kinds[None, y.start : y.stop]
            for code in np.unique(both[self.pairs.mask(x, y)]).tolist():
                a, b = divmod(code, len(first))
                if (a, b) not in found:
                    r, s = self.representations[first[a]], self.representations[first[b]]
                    (x_space, x_tokens), (y_space, y_tokens) = kind_of(r), kind_of(s)
                    try:
                        found[a, b] = meet(self.view, x_space, y_space, tokens=x_tokens and y_tokens)
                    except DsvccaError as error:
                        raise DsvccaError(f"{r} and {s}: {error}; or select() others, or compare other pairs") from None
                    grounds = {
                        self.ground(Aspect(first[kind], view))
                        for kind, view in ((a, found[a, b].x), (b, found[a, b].y))
                    }
                    if len(grounds) > 1:
                        raise DsvccaError(
                            f"{r} and {s}: as view={found[a, b].name!r} their rows are not the same ones "
                            f"({' and '.join(str(ground.rows) for ground in sorted(grounds))}): one has a mask of "
                            "padding and the other has not; use view='mean', or select() others"
                        )
                    found[b, a] = replace(found[a, b], x=found[a, b].y, y=found[a, b].x)
        return found

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What comparisons are called, by their views: "dft", "mean", "alias-empirical", ..."""
        return tuple(sorted({meeting.name for meeting in self.meetings.values()}))

    @cached_property
    def aspects(self) -> tuple[Aspect, ...]:
        """Of what bases are made: every representation under every view in which it meets another.

        Those that share their ground follow each other.
        """
        found: set[Aspect] = set()
        for i, j in self.tiles:
            x, y = self.panels[i], self.panels[j]
            wanted = self.pairs.mask(x, y)
            x_kinds, y_kinds = self.kinds[x.start : x.stop, None], self.kinds[None, y.start : y.stop]
            for (a, b), meeting in self.meetings.items():
                here = wanted & (x_kinds == a) & (y_kinds == b)
                found |= {Aspect(x.start + k, meeting.x) for k in np.flatnonzero(here.any(axis=1)).tolist()}
                found |= {Aspect(y.start + k, meeting.y) for k in np.flatnonzero(here.any(axis=0)).tolist()}
        if self.explaining:
            found |= {Aspect(i, self._view_to_targets(r)) for i, r in enumerate(self.representations)}
        return tuple(sorted(found, key=lambda v: (self.ground(v), v.representation)))

    def _view_to_targets(self, representation: Representation) -> View:
        """Return the view in which a representation meets targets, which have a row a datapoint."""
        space, tokens = kind_of(representation)
        if not space:
            return NEURONS
        if self.view in ("max", "flatten", "mean"):
            return View(self.view)
        return View("mean" if tokens or self.view == "positions" else "dft")

    @property
    def target_view(self) -> str:
        """What explains the targets, in words."""
        by_frequency = (
            "all frequencies of maps, whose rows are all translations of their images"
            if self.everywhere
            else "frequency 0 of maps (their mean; what does not move with the image knows no other)"
        )
        said = {"neurons": "dense layers as they are", "dft": by_frequency}
        found: dict[str, None] = {}
        for r in self.representations:
            view = self._view_to_targets(r).name
            found[said.get(view, f"{'sequences' if r.is_sequence else 'maps'} as view {view!r}")] = None
        return ", ".join(found)

    @cached_property
    def target_passes(self) -> list[list[Pass]]:
        """Of every panel, the aspects that meet the targets, those that share their ground together; pairs of none."""
        found = []
        for panel in self.panels:
            grounds: dict[Ground, list[int]] = {}
            for i in panel:
                ground = self.ground(Aspect(i, self._view_to_targets(self.representations[i])))
                if self._aspects_at[i, ground] not in self.failed:
                    grounds.setdefault(ground, []).append(i)
            none = np.zeros((0, 0), dtype=np.int8)
            found.append(
                [
                    Pass(
                        ground.rows,
                        tuple(self._aspects_at[i, ground] for i in members),
                        (),
                        tuple(self.places[i] for i in members),
                        (),
                        ground.space,
                        none.astype(bool),
                        none,
                    )
                    for ground, members in grounds.items()
                ]
            )
        return found

    @cached_property
    def grids(self) -> tuple[tuple[int, ...], ...]:
        """The grids whose bins are compared, in the order in which results hold them."""
        found = {self.ground(aspect).space for aspect in self.aspects} - {()}
        return tuple(sorted(found, key=lambda grid: (len(grid), grid)))

    @cached_property
    def _aspects_at(self) -> dict[tuple[int, Ground], int]:
        """The aspect of a representation on some ground."""
        return {(v.representation, self.ground(v)): place for place, v in enumerate(self.aspects)}

    def ground(self, aspect: Aspect) -> Ground:
        """Return what the basis of an aspect must share with those it meets."""
        size = aspect_size(self.representations[aspect.representation], aspect.view)
        representation = self.representations[aspect.representation]
        tokens = aspect.view.name == "positions"
        return Ground(size.space, size.rows, part_of(representation, aspect.view) if tokens else "")

    def of_tile(self, tile: tuple[int, int]) -> list[Pass]:
        """Return the comparisons of a tile, those that share their ground together."""
        x, y = (self.panels[side] for side in tile)
        wanted = self.pairs.mask(x, y)
        if tile[0] == tile[1]:
            wanted = np.triu(wanted)
        x_kinds, y_kinds = self.kinds[x.start : x.stop], self.kinds[y.start : y.stop]
        kinds = int(self.kinds.max()) + 1
        names = np.zeros((kinds, kinds), dtype=np.int8)
        grounds = np.full((kinds, kinds), -1)
        known: list[Ground] = []
        for (a, b), meeting in sorted(self.meetings.items()):
            ground = self.ground(Aspect(int(np.argmax(self.kinds == a)), meeting.x))
            if ground not in known:
                known.append(ground)
            names[a, b], grounds[a, b] = 1 + self.names.index(meeting.name), known.index(ground)
        found = []
        for number, ground in enumerate(known):
            here = wanted & (grounds[np.ix_(x_kinds, y_kinds)] == number)
            rows, columns = here.any(axis=1), here.any(axis=0)
            if tile[0] == tile[1]:
                rows = columns = rows | columns
            x_members, y_members = np.flatnonzero(rows), np.flatnonzero(columns)
            if x_members.size:
                found.append(
                    Pass(
                        ground.rows,
                        tuple(self._aspects_at[x.start + i, ground] for i in x_members.tolist()),
                        tuple(self._aspects_at[y.start + j, ground] for j in y_members.tolist()),
                        tuple(self.places[x.start + i] for i in x_members.tolist()),
                        tuple(self.places[y.start + j] for j in y_members.tolist()),
                        ground.space,
                        here[np.ix_(x_members, y_members)],
                        names[np.ix_(x_kinds[x_members], y_kinds[y_members])],
                    )
                )
        left = (one.without(self.failed) if self.failed else one for one in found)
        return [one for one in left if one is not None]


def kind_of(representation: Representation) -> tuple[tuple[int, ...], bool]:
    """Return the space of a representation, and whether it is a sequence."""
    return representation.logical_shape[1:-1], representation.is_sequence


def aspect_size(representation: Representation, view: View) -> Size:
    """Return how large a representation is under a view."""
    mask = representation.mask
    size = size_of(representation.logical_shape, view, mask.rows if mask else None)
    as_stored = view.name in ("neurons", "positions", "flatten")
    return replace(size, unit=representation.unit, itemsize=np.dtype(representation.dtype).itemsize if as_stored else 8)


def part_of(representation: Representation, view: View) -> str:
    """Return what the rows of a view are, where they are not simply the datapoints: "" there.

    Tokens that a mask leaves, all positions, or one position of sequences; means over tokens alone.
    """
    if representation.position is not None:
        return f" of position {representation.position}"
    masked = f" of {representation.mask.digest}" if representation.mask else ""
    if view.name == "positions":
        return f" of all positions{masked}"
    return masked if reads_tokens(representation, view) else ""


def reads_tokens(representation: Representation, view: View) -> bool:
    """Return whether a view of sequences is made of their tokens, piece by piece, before anything else is done."""
    return view.name == "positions" or (representation.mask is not None and view.name in ("mean", "max"))
