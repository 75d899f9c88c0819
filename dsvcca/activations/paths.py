"""What the paths of arrays that others wrote say of them: labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dsvcca.activations.labels import Label, Labels, checked_labels, describe
from dsvcca.errors import DsvccaError

PATTERN_FIELD = re.compile(r"\{(\w+)(?::(d))?\}")
INTEGER = re.compile(r"-?(0|[1-9]\d{0,999})")  # Python takes no number of thousands of digits
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


def natural(path: str) -> list[tuple[int, int, str]]:
    """Return what orders paths as people count: block2 before block10."""
    parts = [(part.isdecimal(), part.lstrip("0") if part.isdecimal() else part) for part in re.split(r"(\d+)", path)]
    return [(0, len(part), part) if is_number else (1, 0, part) for is_number, part in parts]


def labels_of(paths: list[str], given: Any, constants: Mapping[str, Any] | None = None) -> dict[str, Labels]:
    """Return the labels of every array: as given, or from their paths.

    Parameters
    ----------
    paths : list of str
    given : str, mapping, callable or None
        A pattern, a mapping from path to labels, or a function from path to labels; None for the ``name=value`` parts
        of the paths, and the rest as the layer.
    constants : mapping, optional
        Labels that all of them have besides. A layer among them takes the place of the one that is the rest of a path.
    """
    same = dict(constants or {})
    if not (given is None or isinstance(given, (str, Mapping)) or callable(given)):
        raise DsvccaError(f"labels={given!r} is a {type(given).__name__}: give a pattern, a dict or a function")
    if callable(given):
        found = {path: given(path) for path in paths}
    elif isinstance(given, Mapping):
        for path in paths:
            if path not in given:
                raise DsvccaError(f"labels= says nothing about the array '{path}': it names {list(given)[:8]}")
        found = {path: given[path] for path in paths}
    else:
        texts = {path: fit(path, given) if isinstance(given, str) else parts(path, same) for path in paths}
        values = {
            name: numbers([text[name] for text in texts.values() if name in text])
            for name in {name for text in texts.values() for name in text}
        }
        values["layer"] = {}  # a layer is a name, even where it is called 0
        found = {
            path: {name: values[name].get(value, value) for name, value in text.items()} for path, text in texts.items()
        }
    for path, own in found.items():
        if not isinstance(own, Mapping) or not all(isinstance(name, str) for name in own):
            raise DsvccaError(f"labels= gave {own!r} for '{path}': give a dict of labels, {{'layer': 'fc', 'seed': 0}}")
        if twice := sorted(set(own).intersection(same)):
            raise DsvccaError(
                f"label {twice[0]}={same[twice[0]]!r} was given for all arrays, and '{path}' has {own[twice[0]]!r} by "
                "itself: leave one of them out"
            )
    return {path: checked_labels({**own, **same}) for path, own in found.items()}


def fit(path: str, pattern: str) -> dict[str, str]:
    """Return what stands in a path where the pattern has {names}.

    Each takes as little as it may, and the last one the rest; but where that is the part, it takes as little as it may,
    and the one before it the rest: ``{layer}_{part}`` of conv_1_0 is part 0 of conv_1. ``{step:d}`` is a whole number,
    however many zeros stand before it.
    """
    first, *others = PATTERN_FIELD.split(pattern)
    names, kinds, between = others[::3], others[1::3], others[2::3]
    if len(set(names)) < len(names) or not all(map(str.isidentifier, names)) or not all(between[:-1]):
        raise DsvccaError(
            f"labels={pattern!r} is no pattern: name every label once, with something between them, {{model}}/{{layer}}"
        )
    found, start, fits = {}, len(first), path.startswith(first)
    for name, after in zip(names, between, strict=True):
        is_last = name == names[-1]
        if is_last:
            stop = len(path) - len(after)
        elif names[-2:] == [name, "part"]:
            stop = path.rfind(after, start + 1, len(path) - len(between[-1]) - 1)
        else:
            stop = path.find(after, start + 1)
        fits = fits and stop > start and (not is_last or path.endswith(after))
        found[name], start = path[start:stop], stop + len(after)
    if not fits or not names:
        raise DsvccaError(f"labels={pattern!r} does not fit the array '{path}': write its path with {{names}} in it")
    for name, kind in zip(names, kinds, strict=True):
        if kind == "d":
            if not re.fullmatch(r"-?\d{1,1000}", found[name], re.ASCII):
                raise DsvccaError(
                    f"labels={pattern!r}: {name} of '{path}' is {found[name]!r}, no whole number: write {{{name}}}"
                )
            found[name] = str(int(found[name]))
    return found


def parts(path: str, constants: Iterable[str] = ()) -> dict[str, str]:
    """Return the ``name=value`` parts of a path; the others together are the layer."""
    found: dict[str, str] = {}
    rest = []
    for part in re.split(r"[/,]", path):
        name, equals, text = part.partition("=")
        if equals and name.isidentifier():
            if found.setdefault(name, text) != text:
                raise DsvccaError(f"'{path}' says both {name}={found[name]} and {name}={text}: say which by labels=")
        else:
            rest.append(part)
    if rest and "layer" not in found and "layer" not in constants:
        found["layer"] = "/".join(rest)
    return found


def numbers(texts: list[str]) -> dict[str, Label]:
    """Return the numbers that all values of one label stand for; none where one is not a number, or two are equal."""
    found: dict[str, Label] = {}
    for pattern, kind in ((INTEGER, int), (NUMBER, float)):
        if all(pattern.fullmatch(text) for text in texts):
            found = {text: kind(text) for text in texts}
            break
    return found if len(set(found.values())) == len(found) else {}


def check_all_differ(labels: Iterable[tuple[str, Labels]]) -> None:
    """Raise if two arrays have the same labels; each comes with what it is called."""
    seen: dict[tuple[tuple[str, Label], ...], str] = {}
    for name, own in labels:
        other = seen.setdefault(tuple(own.items()), name)
        if other != name:
            raise DsvccaError(
                f"'{other}' and '{name}' have the same labels ({describe(own)}): tell them apart with labels="
            )
