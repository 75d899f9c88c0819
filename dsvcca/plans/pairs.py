"""Which comparisons of a population are wanted.

Every rule but an explicit list is two small arrays: representations are compared when they are in the same group and
at least one of them is a hub. Tiles are asked one by one; nothing of size N² is ever made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from dsvcca.activations.labels import Labels, describe, label_order, values_of
from dsvcca.errors import DsvccaError, nearest
from dsvcca.maths.arrays import NumpyArray

RULES = {
    "all": "every representation with every other",
    "over_training": "the same layer of the same network at all pairs of steps",
    "to_last_step": "every layer of a network at every step with all its layers at its last step",
    "across_seeds": "the same layer at the same step, between seeds",
    "to_last_position": "every position of a layer's sequences with its last one",
    "to_targets": "no representations with each other, all of them with the targets",
}


LEAVING_OUT = {
    "over_training": ("step",),
    "to_last_step": ("step", "layer"),
    "across_seeds": ("seed",),
    "to_last_position": ("position",),
}
"""The labels in which representations of one group may differ; the first of them is needed."""


@dataclass(frozen=True)
class Pairs:
    """Unordered pairs of representations, each with itself included where the rule says so.

    Attributes
    ----------
    name : str
        The rule, or "list".
    groups : tuple of int
        Group of each representation; empty for a list.
    hubs : tuple of bool
        Which of them are compared with everything in their group.
    listed : tuple of (int, int)
        The pairs of a list, smaller index first.
    """

    name: str
    groups: tuple[int, ...] = ()
    hubs: tuple[bool, ...] = ()
    listed: tuple[tuple[int, int], ...] = ()

    @property
    def count(self) -> int:
        """Number of unordered pairs."""
        if self.name == "list":
            return len(self.listed)
        size = Counter(self.groups)
        hubs = Counter(g for g, hub in zip(self.groups, self.hubs, strict=True) if hub)
        return sum(h * (h + 1) // 2 + h * (size[g] - h) for g, h in hubs.items())

    @property
    def itself(self) -> int:
        """How many of them are a representation with itself."""
        return sum(i == j for i, j in self.listed) + sum(self.hubs)

    def places(self, count: int) -> list[int]:
        """Return a place for each representation, so that those that are compared stand close together."""
        order = sorted(range(count), key=lambda i: self.groups[i]) if self.groups else range(count)
        found = [0] * count
        for place, i in enumerate(order):
            found[i] = place
        return found

    def reordered(self, order: Sequence[int]) -> Pairs:
        """Return the same pairs of representations that stand in another order: first `order[0]`, and so on."""
        if self.name == "list":
            there = {old: new for new, old in enumerate(order)}
            moved = ((there[i], there[j]) for i, j in self.listed)
            return replace(self, listed=tuple(sorted((min(pair), max(pair)) for pair in moved)))
        groups, hubs = tuple(self.groups[i] for i in order), tuple(self.hubs[i] for i in order)
        return replace(self, groups=groups, hubs=hubs)

    @cached_property
    def _array(self) -> NumpyArray:
        return np.asarray(self.listed)

    def mask(self, rows: range, columns: range) -> NumpyArray:
        """Return which pairs are wanted, (len(rows), len(columns)) bool; symmetric in its arguments."""
        if self.name == "list":
            found = np.zeros((len(rows), len(columns)), dtype=bool)
            for pairs in (self._array, self._array[:, ::-1]):
                i, j = pairs[:, 0] - rows.start, pairs[:, 1] - columns.start
                here = (i >= 0) & (i < len(rows)) & (j >= 0) & (j < len(columns))
                found[i[here], j[here]] = True
            return found
        g, h = np.asarray(self.groups), np.asarray(self.hubs)
        r, c = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
        wanted: NumpyArray = (g[r, None] == g[None, c]) & (h[r, None] | h[None, c])
        return wanted


def choose_pairs(pairs: Any, labels: Sequence[Labels]) -> Pairs:
    """Return the pairs that a rule or a list of (labels of x, labels of y) stands for.

    Raises
    ------
    DsvccaError
        If the rule is unknown, needs a label that is missing, or nothing fits.
    """
    if not isinstance(pairs, (str, list, tuple)):
        raise DsvccaError(f"pairs={pairs!r}: give a rule such as 'all', or a list of (labels of x, labels of y)")
    if not isinstance(pairs, str):
        return _listed(pairs, labels)
    if pairs not in RULES:
        raise DsvccaError(
            f"pairs={pairs!r} is unknown: {nearest(pairs, RULES)}; a list of (labels of x, labels of y) will do too"
        )
    everyone = tuple(True for _ in labels)
    if pairs == "to_targets":
        return Pairs(pairs, tuple(0 for _ in labels), tuple(False for _ in labels))
    if pairs == "all":
        return Pairs("all", tuple(0 for _ in labels), everyone)
    leaving_out = LEAVING_OUT[pairs]
    for one in labels:
        if leaving_out[0] not in one:
            raise DsvccaError(
                f"pairs={pairs!r} needs a {leaving_out[0]!r} label, {describe(one)} has none: write it with "
                f"{leaving_out[0]}=, or, of arrays that others wrote, say where their paths have it, "
                f"open_store(..., labels='...{{{leaving_out[0]}}}/{{layer}}')"
            )
    codes: dict[Any, int] = {}
    groups = tuple(
        codes.setdefault(tuple(sorted((k, v) for k, v in one.items() if k not in leaving_out)), len(codes))
        for one in labels
    )
    name = leaving_out[0]
    for one in labels if name != "seed" else []:
        if not isinstance(one[name], (int, float)):
            raise DsvccaError(
                f"pairs={pairs!r} needs {name}s that are numbers, {describe(one)} has a {type(one[name]).__name__}: "
                f"which of them comes last is not known; write them as numbers (labels='...{{{name}:d}}...' reads 0100 "
                "as 100), or give a list of pairs"
            )
    if pairs not in ("to_last_step", "to_last_position"):
        if len(codes) == len(labels):
            raise DsvccaError(
                f"pairs={pairs!r} compares {RULES[pairs]}, and here that leaves each of the {len(labels)} "
                "representations with itself alone: select() more of them, or use other pairs"
            )
        return Pairs(pairs, groups, everyone)
    last: dict[int, Any] = {}
    for group, one in zip(groups, labels, strict=True):
        last[group] = max(last.get(group, one[name]), one[name])
    return Pairs(pairs, groups, tuple(one[name] == last[g] for g, one in zip(groups, labels, strict=True)))


def matching(wanted: Mapping[str, Any], labels: Sequence[Labels]) -> list[int]:
    """Return which representations carry all the wanted labels; of each label one value, or one of a list.

    Raises
    ------
    DsvccaError
        If there is none, or a label or a value is nowhere.
    """
    several = {name: values_of(value) for name, value in wanted.items()}
    found = [i for i, one in enumerate(labels) if all(one.get(name) in values for name, values in several.items())]
    for name, values in several.items():
        if found and len(values) == 1:
            continue
        known = [one[name] for one in labels if name in one]
        if not known:
            names = label_order({k for one in labels for k in one})
            raise DsvccaError(f"there is no label {name!r}: {nearest(name, names)}")
        for value in values:
            if value not in known:
                raise DsvccaError(f"nothing has {name}={value!r}: {nearest(value, known)}")
    if not found:
        raise DsvccaError(f"nothing has all of {describe(wanted)}: leave some of the labels out")
    return found


def _listed(pairs: Any, labels: Sequence[Labels]) -> Pairs:
    found = set()
    for entry in pairs:
        if not isinstance(entry, (tuple, list)) or len(entry) != 2 or not all(isinstance(side, dict) for side in entry):
            raise DsvccaError(f"pairs={entry!r}: give (labels of x, labels of y), two dicts such as {{'layer': 'fc1'}}")
        x, y = (matching(side, labels) for side in entry)
        found |= {(min(i, j), max(i, j)) for i in x for j in y}
    if not found:
        raise DsvccaError("pairs is an empty list: give (labels of x, labels of y), or 'all'")
    return Pairs("list", listed=tuple(sorted(found)))
