"""Labels and axes: how representations are told apart, and how people spell the axes of an array."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from dsvcca.errors import DsvccaError

Label = str | int | float | bool
Labels = dict[str, Label]

FIRST = ("model", "seed", "step")
RESERVED = frozenset(
    {
        *("activations", "bases", "bytes", "center", "criterion", "datapoints", "dims", "dtype", "if_exists", "keep"),
        *("measures", "memory", "name", "pairs", "rank", "rows", "shape", "targets", "variance", "view"),
        *("weights", "x", "y"),
    }
)
LONGEST_NAME = 150
LONGEST_LABEL = 200
"""Bytes of a label's name: results have a folder for it."""

LETTERS = {"n": "datapoint", "h": "height", "w": "width", "c": "channel", "t": "position", "d": "neuron"}
COLUMNS = ("channel", "neuron")
SPACE = ("position", "depth", "height", "width")
SPELLINGS = {
    2: "'nd' (datapoint, neuron), 'dn', or names such as ('datapoint', 'neuron')",
    3: "'ntd' (datapoint, position, neuron), 'tnd', or names such as ('datapoint', 'position', 'neuron')",
    4: "'nhwc', 'nchw', or names such as ('datapoint', 'height', 'width', 'channel')",
}


def checked_labels(labels: Mapping[str, Any]) -> Labels:
    """Return labels as plain str, int, float and bool, in the order model, seed, step, others, layer."""
    found: Labels = {}
    for name, value in labels.items():
        if name in RESERVED or name.startswith(("x_", "y_")):
            raise DsvccaError(f"label {name!r} is reserved: results and options use that word, choose another")
        if not name.isidentifier():
            raise DsvccaError(f"label name {name!r} is not a plain name: use letters, digits and _")
        if len(name.encode()) > LONGEST_LABEL:
            raise DsvccaError(f"label name {name[:20]!r}... is longer than {LONGEST_LABEL} bytes: use a shorter one")
        plain = value.item() if isinstance(value, np.generic) else value
        if not isinstance(plain, (str, int, float, bool)):
            raise DsvccaError(f"label {name}={value!r} is a {type(value).__name__}: use str, int, float or bool")
        if isinstance(plain, float) and not abs(plain) < float("inf"):
            raise DsvccaError(f"label {name} is {plain}: leave the label out where there is nothing to say")
        if isinstance(plain, float):
            plain = plain + 0.0  # -0.0 and 0.0 are one label
        if isinstance(plain, str) and any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in plain):
            raise DsvccaError(f"label {name}={plain!r} is no text that can be written: use ordinary characters")
        if plain == "":
            raise DsvccaError(f"label {name} is empty: leave the label out where there is nothing to say")
        if isinstance(plain, int) and not -(2**63) <= plain < 2**63:
            raise DsvccaError(f"label {name}={plain} does not fit in 64 bits: write it as a str")
        found[name] = plain
    if "layer" not in found:
        raise DsvccaError(f"a representation needs a label 'layer', found {describe(found) or 'no label'}: give it one")
    return {name: found[name] for name in label_order(found)}


def values_of(wanted: Any) -> list[Any]:
    """Return what is wanted of a label, one value or several, as a list of plain ones.

    >>> values_of("fc1"), values_of(range(2)), values_of(np.int64(3))
    (['fc1'], [0, 1], [3])
    """
    several = [wanted] if np.ndim(wanted) == 0 else list(wanted)
    return [one.item() if isinstance(one, np.generic) else one for one in several]


def label_order(names: Iterable[str]) -> list[str]:
    """Return label names in the order in which people read them."""
    names = set(names)
    middle = sorted(names.difference(FIRST, ("layer",)))
    return [name for name in (*FIRST, *middle, "layer") if name in names]


def check_same_types(labels: Labels, others: Iterable[Labels], what: str) -> None:
    """Raise if a label has another type here than in one of the others."""
    known: dict[tuple[str, type], Label] = {}
    for other in others:
        for name, value in other.items():
            known[name, type(value)] = value
    for name, value in labels.items():
        clash = [(kind, seen) for (known_name, kind), seen in known.items() if known_name == name]
        if clash and type(value) not in [kind for kind, _ in clash]:
            kind, seen = clash[0]
            raise DsvccaError(
                f"label {name}={value!r} is {type(value).__name__}, but {what} has {name}={seen!r} "
                f"({kind.__name__}): use one type for one label"
            )


def describe(labels: Mapping[str, Label]) -> str:
    """Return labels as people write them: ``seed=0, step=100, layer='conv1'``."""
    return ", ".join(f"{name}={value!r}" for name, value in labels.items())


def folder_name(labels: Labels) -> str:
    """Return a folder name that is safe on every file system and differs wherever the labels do.

    >>> folder_name({"seed": 0, "layer": "../x"})
    'seed=0,layer=..%2Fx'
    """
    name = ",".join(f"{quote(name)}={quote(str(value), safe=' ._-+')}" for name, value in labels.items())
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def checked_dims(dims: str | Sequence[str] | None, shape: Sequence[int], what: str) -> tuple[str, ...]:
    """Return the axis names of an array from the way a person spells them.

    Only (datapoint, neuron) is guessed. Letters are looked at twice: maps declared channels-last whose shape is that
    of channels-first maps are refused, since nothing later would notice.

    Examples
    --------
    >>> checked_dims("nchw", (1000, 64, 7, 7), "conv1")
    ('datapoint', 'channel', 'height', 'width')
    """
    if dims is None:
        if len(shape) == 2:
            return ("datapoint", "neuron")
        if len(shape) < 2:
            raise DsvccaError(
                f"{what} has the shape {tuple(shape)}: give (datapoint, neuron), one neuron as x[:, None]"
            )
        raise DsvccaError(
            f"{what} has {len(shape)} axes {tuple(shape)} and no dims: pass dims={_spellings(len(shape))}"
        )
    if not isinstance(dims, (str, list, tuple)):
        raise DsvccaError(f"dims={dims!r} is a {type(dims).__name__}: use {_spellings(len(shape))}")
    letters = isinstance(dims, str)
    unknown = [letter for letter in dims if letter not in LETTERS] if letters else []
    if unknown:
        raise DsvccaError(f"dims={dims!r} has unknown letters {unknown}: use {_spellings(len(shape))}")
    names = tuple(LETTERS[letter] for letter in dims) if letters else tuple(dims)
    if not all(isinstance(name, str) for name in names):
        raise DsvccaError(f"dims={dims!r} names axes by what is no text: use {_spellings(len(shape))}")
    if len(names) != len(shape):
        raise DsvccaError(
            f"{what} has {len(shape)} axes {tuple(shape)}, dims={dims!r} names {len(names)}: name every axis, "
            f"{_spellings(len(shape))}"
        )
    if len(set(names)) != len(names) or "datapoint" not in names or sum(n in COLUMNS for n in names) != 1:
        raise DsvccaError(
            f"dims={dims!r} must name 'datapoint' once and 'channel' or 'neuron' once, all names different: "
            f"use {_spellings(len(shape))}"
        )
    if letters and names[-3:] == ("height", "width", "channel"):
        h, w, c = shape[-3:]
        if w == c and h != w:
            raise DsvccaError(
                f"{what} of shape {tuple(shape)} looks like channels-first maps ({h} channels of {w} x {c}), but "
                f"dims={dims!r} says channels last: pass dims='nchw', or, if it is right, the names {names}"
            )
    return names


def _spellings(axes: int) -> str:
    return SPELLINGS.get(axes, "their names, such as ('datapoint', 'depth', 'height', 'width', 'channel')")


def to_datapoints_first(dims: tuple[str, ...]) -> tuple[int, ...]:
    """Return the axes that bring an array with `dims` to (datapoint, *space, column).

    Axes of space come in one order, whatever order they are stored in; those with names of one's own stay as they are.

    >>> to_datapoints_first(("channel", "width", "height", "datapoint"))
    (3, 2, 1, 0)
    """
    first, last = dims.index("datapoint"), next(i for i, name in enumerate(dims) if name in COLUMNS)
    space = [i for i in range(len(dims)) if i not in (first, last)]
    space.sort(key=lambda i: SPACE.index(dims[i]) if dims[i] in SPACE else len(SPACE))
    return (first, *space, last)
