"""What arrays in files become: representations, each of one array or of several, a layer of an array or all of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from math import prod
from typing import Any

from dsvcca.activations.foreign_axes import axes_of, check_dims_are_used, spelling_of
from dsvcca.activations.labels import Label, Labels, describe
from dsvcca.activations.paths import check_all_differ, labels_of, natural
from dsvcca.errors import DsvccaError
from dsvcca.importing.finding import check_readable
from dsvcca.importing.kinds import EXCLUDE, Array

PART, LAYER = "part", "layer"


@dataclass(frozen=True)
class Part:
    """An array that becomes a representation, or some of its datapoints.

    Attributes
    ----------
    part : label or None
        Which part of the representation, where it lies in several arrays.
    axes : tuple of str
        Names of its axes, without that of layers.
    fixed : dict
        The place of the one layer that is meant on the axis of layers, where there is one.
    """

    path: str
    array: Array
    labels: Labels
    part: Label | None
    axes: tuple[str, ...]
    fixed: Mapping[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape without the axis of layers."""
        return tuple(n for axis, n in enumerate(self.array.shape) if axis not in self.fixed)

    @property
    def along(self) -> int:
        """Axis of the array on which datapoints lie."""
        free = [axis for axis in range(len(self.array.shape)) if axis not in self.fixed]
        return free[self.axes.index("datapoint")]

    @property
    def datapoints(self) -> int:
        return self.array.shape[self.along]

    @property
    def nbytes(self) -> int:
        return self.array.nbytes // prod(self.array.shape[axis] for axis in self.fixed)

    @property
    def rest(self) -> tuple[tuple[str, int], ...]:
        """Names and lengths of all axes but that of datapoints, in their order."""
        return tuple((name, n) for name, n in zip(self.axes, self.shape, strict=True) if name != "datapoint")


def parts_of(arrays: Mapping[str, Array], labels: Any, dims: Any, constants: Mapping[str, Label]) -> list[Part]:
    """Return what every array becomes, by labels and axes."""
    found: list[Part] = []
    owned = labels_of(list(arrays), labels, constants)
    check_dims_are_used(dims, arrays, [own[LAYER] for own in owned.values()])
    for path, own in owned.items():
        array, part = arrays[path], own.pop(PART, None)
        spelled = spelling_of(path, own[LAYER], len(array.shape), dims)
        spelled = array.named if spelled is None and LAYER in array.named else spelled
        among = _axis_of_layers(spelled)
        if among is None:
            axes = axes_of(path, own[LAYER], array.shape, array.named, dims)
            found.append(Part(path, array, own, part, axes, {}))
            continue
        rest = tuple(n for axis, n in enumerate(array.shape) if axis != among)
        axes = axes_of(path, own[LAYER], rest, (), {path: spelled[:among] + spelled[among + 1 :]})
        for place in range(array.shape[among]):
            each = {**own, LAYER: f"{own[LAYER]}.{place}"}
            found.append(Part(path, array, each, part, axes, {among: place}))
    for one in found:
        check_readable(one.array, one.along, one.fixed)
    return found


def _axis_of_layers(spelled: Any) -> int | None:
    """Return which axis has a layer at each place, if one has."""
    if isinstance(spelled, str):
        return spelled.index("l") if spelled.count("l") == 1 and len(spelled) > 2 else None
    return list(spelled).index(LAYER) if isinstance(spelled, (list, tuple)) and LAYER in spelled else None


def together(parts: Iterable[Part]) -> list[list[Part]]:
    """Return the parts of every representation, in their order."""
    every = list(parts)
    whole = [one.labels if one.part is None else {**one.labels, PART: one.part} for one in every]
    check_all_differ((str(one.array), own) for one, own in zip(every, whole, strict=True))
    found: dict[tuple[tuple[str, Label], ...], list[Part]] = {}
    for one in every:
        found.setdefault(tuple(one.labels.items()), []).append(one)
    for own in found.values():
        own.sort(key=lambda one: _place_of(one.part))
        for one in own[1:]:
            if one.part is None or own[0].part is None:
                raise DsvccaError(
                    f"{own[0].array} and {one.array} have the same labels ({describe(one.labels)}), and not both say "
                    "which part they are: tell them apart with labels="
                )
            if (one.axes, one.rest, one.array.dtype) != (own[0].axes, own[0].rest, own[0].array.dtype):
                raise DsvccaError(
                    f"{own[0].array} and {one.array} are parts of one representation ({describe(one.labels)}), and "
                    f"are {own[0].shape} {own[0].array.dtype} and {one.shape} {one.array.dtype}: all parts need one "
                    "type, and one shape but for datapoints"
                )
    return list(found.values())


def _place_of(part: Label | None) -> tuple[float, list[Any]]:
    """Return by what parts are sorted: numbers as such, names with the numbers in them."""
    return (0, natural(part)) if isinstance(part, str) else (float(part or 0), [])


def datapoints_of(planned: list[list[Part]]) -> int:
    """Return how many datapoints there are; raise if not all have the same."""
    counts = {sum(part.datapoints for part in one): one for one in reversed(planned)}
    if len(counts) > 1:
        said = " and ".join(f"{count} in {one[0].array}" for count, one in sorted(counts.items())[:2])
        raise DsvccaError(
            f"not all have the same datapoints: {said}. Leave out what does not belong ({EXCLUDE}), say which axis has "
            "them (dims=), or, where these are batches, which part of a representation each is: labels='{layer}_{part}'"
        )
    [(count, one)] = counts.items()
    if count < 2:
        raise DsvccaError(f"{one[0].array} has {count} datapoint: a store needs at least 2. Is it what dims= says?")
    return count


def check_same_parts(planned: list[list[Part]]) -> None:
    """Raise if some representations lie in other parts than others: nothing then says that datapoints are the same."""
    first, *others = [one for one in planned if one[0].part is not None] or [[]]
    for one in others:
        for mine, other in zip_longest(_lengths(first), _lengths(one)):
            if mine != other:
                raise DsvccaError(
                    f"{describe(first[0].labels)} has {mine or 'no more parts'}, and {describe(one[0].labels)} "
                    f"{other or 'no more parts'}: their datapoints may not be the same. Complete the parts, or, where "
                    f"it is only how they were saved, import the one and then the other: {EXCLUDE}"
                )


def _lengths(parts: list[Part]) -> list[str]:
    return [f"part {one.part!r} of {one.datapoints} datapoints" for one in parts]
