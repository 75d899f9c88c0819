"""Zarr arrays that others wrote, seen as representations."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zarr

from dsvcca.activations import Representation
from dsvcca.arrays import significand_bits
from dsvcca.errors import DsvccaError
from dsvcca.labels import COLUMNS, Labels, checked_dims, checked_labels

PATTERN_FIELD = re.compile(r"\{(\w+)\}")


def foreign_representations(root: Path, labels: Any, dims: Any) -> list[Representation]:
    """Return every array of two or more axes below `root`, with labels from their paths or as given."""
    try:
        node = zarr.open(str(root), mode="r")
    except Exception as error:
        raise DsvccaError(
            f"'{root}' is not a store: no Zarr array or group can be opened there ({type(error).__name__}); "
            "create one with create_store(path, datapoints=...)"
        ) from error
    arrays = {root.stem: node} if isinstance(node, zarr.Array) else dict(_arrays(node))
    found = []
    for place, (path, array) in enumerate(sorted(arrays.items())):
        if array.ndim >= 2:
            where = root if isinstance(node, zarr.Array) else root / path
            found.append(_representation(path, where, array, labels, dims, place))
    if not found:
        raise DsvccaError(f"'{root}' holds no array of two or more axes: it is not a store of activations")
    return found


def _arrays(group: zarr.Group) -> Any:
    for path, member in group.members(max_depth=None):
        if isinstance(member, zarr.Array):
            yield path, member


def _representation(
    path: str, where: Path, array: zarr.Array[Any], labels: Any, dims: Any, place: int
) -> Representation:
    significand_bits(array.dtype)
    spelled = dims.get(path) if isinstance(dims, Mapping) else dims
    named = getattr(array.metadata, "dimension_names", None)
    if spelled is None and named and "datapoint" in named and any(n in COLUMNS for n in named):
        spelled = tuple(named)
    return Representation(
        name=path,
        labels=checked_labels(_labels(path, labels)),
        shape=array.shape,
        dtype=str(array.dtype),
        dims=checked_dims(spelled, array.shape, f"'{path}'"),
        fingerprint=_fingerprint(where, array),
        ids=None,
        array=str(where),
        written=place - (1 << 62),
    )


def _labels(path: str, given: Any) -> Labels:
    if callable(given):
        return dict(given(path))
    if isinstance(given, Mapping):
        if path not in given:
            raise DsvccaError(f"labels= says nothing about the array '{path}': it names {sorted(given)[:8]}")
        return dict(given[path])
    if isinstance(given, str):
        pieces = PATTERN_FIELD.split(given)
        expression = "".join(f"(?P<{p}>.+?)" if i % 2 else re.escape(p) for i, p in enumerate(pieces))
        match = re.fullmatch(expression, path)
        if match is None:
            raise DsvccaError(f"labels={given!r} does not fit the array '{path}': write its path with {{names}} in it")
        return {name: _value(text) for name, text in match.groupdict().items()}
    found: Labels = {}
    rest = []
    for part in re.split(r"[/,]", path):
        name, equals, text = part.partition("=")
        if equals and name.isidentifier():
            found[name] = _value(text)
        else:
            rest.append(part)
    if rest and "layer" not in found:
        found["layer"] = "/".join(rest)
    return found


def _value(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _fingerprint(where: Path, array: zarr.Array[Any]) -> str:
    """Return a digest that changes when the array's files do: their names, sizes and times."""
    entries = []
    for parent, _, names in os.walk(where):
        for name in names:
            status = os.stat(os.path.join(parent, name))
            entries.append((os.path.relpath(os.path.join(parent, name), where), status.st_size, status.st_mtime_ns))
    content = [str(where), list(array.shape), str(array.dtype), sorted(entries)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
