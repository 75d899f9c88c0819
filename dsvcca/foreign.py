"""Zarr arrays that others wrote, seen as representations."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import zarr

from dsvcca.activations import Representation
from dsvcca.arrays import significand_bits
from dsvcca.errors import DsvccaError
from dsvcca.labels import COLUMNS, Label, Labels, check_same_types, checked_dims, checked_labels, nearest

PATTERN_FIELD = re.compile(r"\{(\w+)\}")
INTEGER = re.compile(r"-?(0|[1-9]\d*)")
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


def foreign_representations(root: Path, labels: Any, dims: Any) -> list[Representation]:
    """Return every array of two or more axes below `root`, with labels from their paths or as given."""
    try:
        node = zarr.open(str(root), mode="r")
    except Exception as error:
        raise DsvccaError(
            f"'{root}' is not a store: no Zarr array or group can be opened there ({type(error).__name__}); "
            "create one with create_store(path, datapoints=...)"
        ) from error
    alone = isinstance(node, zarr.Array)
    arrays = {root.stem: node} if isinstance(node, zarr.Array) else dict(_arrays(node))
    arrays = {path: array for path, array in sorted(arrays.items(), key=_natural) if array.ndim >= 2}
    if not arrays:
        raise DsvccaError(f"'{root}' holds no array of two or more axes: it is not a store of activations")
    found = []
    seen: Labels = {}
    for place, (path, own) in enumerate(_labels(list(arrays), labels).items()):
        check_same_types(own, [seen], f"another array in '{root}'")
        seen = own | seen
        found.append(_representation(path, root if alone else root / path, arrays[path], own, dims, place))
    _check_all_differ(found)
    if isinstance(dims, Mapping):
        known = [r.name for r in found] + [r.labels["layer"] for r in found]
        for name in dims:
            if name not in known:
                raise DsvccaError(f"dims= names {name!r}, which is neither a path nor a layer: {nearest(name, known)}")
    return found


def _natural(item: tuple[str, Any]) -> list[tuple[int, int | str]]:
    """Order paths as people count: block2 before block10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", item[0])]


def _arrays(group: zarr.Group) -> Iterator[tuple[str, zarr.Array[Any]]]:
    for path, member in group.members(max_depth=None):
        if isinstance(member, zarr.Array):
            yield path, member


def _representation(
    path: str, where: Path, array: zarr.Array[Any], labels: Labels, dims: Any, place: int
) -> Representation:
    significand_bits(array.dtype)
    if isinstance(dims, Mapping):
        spelled = dims.get(path, dims.get(labels["layer"]))
    else:
        spelled = dims if dims is not None and (array.ndim > 2 or len(dims) == array.ndim) else None
    named = getattr(array.metadata, "dimension_names", None)
    if spelled is None and named and "datapoint" in named and any(n in COLUMNS for n in named):
        spelled = tuple(named)
    try:
        checked = checked_dims(spelled, array.shape, f"'{path}'")
    except DsvccaError as error:
        raise DsvccaError(f"{error}; where layers differ, dims={{'conv1': 'nchw', 'lstm': 'ntd'}}") from None
    return Representation(
        name=path,
        labels=labels,
        shape=array.shape,
        dtype=str(array.dtype),
        dims=checked,
        fingerprint=_fingerprint(where, array),
        ids=None,
        array=str(where),
        written=place - (1 << 62),
    )


def _labels(paths: list[str], given: Any) -> dict[str, Labels]:
    """Return the labels of every array: as given, or from their paths."""
    if callable(given):
        return {path: checked_labels(given(path)) for path in paths}
    if isinstance(given, Mapping):
        for path in paths:
            if path not in given:
                raise DsvccaError(f"labels= says nothing about the array '{path}': it names {sorted(given)[:8]}")
        return {path: checked_labels(given[path]) for path in paths}
    texts = {path: _fit(path, given) if isinstance(given, str) else _parts(path) for path in paths}
    values = {
        name: _values([text[name] for text in texts.values() if name in text])
        for name in {name for text in texts.values() for name in text}
    }
    values["layer"] = {}  # a layer is a name, even where it is called 0
    return {
        path: checked_labels({name: values[name].get(value, value) for name, value in text.items()})
        for path, text in texts.items()
    }


def _fit(path: str, pattern: str) -> dict[str, str]:
    """Return what stands in a path where the pattern has {names}."""
    pieces = PATTERN_FIELD.split(pattern)
    expression = "".join(f"(?P<{p}>.+?)" if i % 2 else re.escape(p) for i, p in enumerate(pieces))
    match = re.fullmatch(expression, path)
    if match is None:
        raise DsvccaError(f"labels={pattern!r} does not fit the array '{path}': write its path with {{names}} in it")
    return match.groupdict()


def _parts(path: str) -> dict[str, str]:
    """Return the ``name=value`` parts of a path; the others together are the layer."""
    found = {}
    rest = []
    for part in re.split(r"[/,]", path):
        name, equals, text = part.partition("=")
        if equals and name.isidentifier():
            found[name] = text
        else:
            rest.append(part)
    if rest and "layer" not in found:
        found["layer"] = "/".join(rest)
    return found


def _values(texts: list[str]) -> dict[str, Label]:
    """Return the numbers that all values of one label stand for; none where one is not a number, or two are equal."""
    found: dict[str, Label] = {}
    for pattern, kind in ((INTEGER, int), (NUMBER, float)):
        if all(pattern.fullmatch(text) for text in texts):
            found = {text: kind(text) for text in texts}
            break
    return found if len(set(found.values())) == len(found) else {}


def _check_all_differ(representations: list[Representation]) -> None:
    seen: dict[tuple[tuple[str, Label], ...], str] = {}
    for one in representations:
        other = seen.setdefault(tuple(one.labels.items()), one.name)
        if other != one.name:
            raise DsvccaError(f"'{other}' and '{one.name}' have the same labels ({one}): tell them apart with labels=")


def _fingerprint(where: Path, array: zarr.Array[Any]) -> str:
    """Return a digest that changes when the array's files do: their names, sizes and times."""
    entries = []
    for parent, _, names in os.walk(where):
        for name in names:
            status = os.stat(os.path.join(parent, name))
            entries.append((os.path.relpath(os.path.join(parent, name), where), status.st_size, status.st_mtime_ns))
    content = [str(where), list(array.shape), str(array.dtype), sorted(entries)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
