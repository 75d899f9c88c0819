"""Zarr arrays that others wrote, seen as representations."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dsvcca import files, folders
from dsvcca.activations import Representation, foreign_fingerprint
from dsvcca.arrays import significand_bits
from dsvcca.errors import DsvccaError, nearest
from dsvcca.labels import COLUMNS, Label, Labels, check_same_types, checked_dims, checked_labels, to_datapoints_first

PATTERN_FIELD = re.compile(r"\{(\w+)\}")
INTEGER = re.compile(r"-?(0|[1-9]\d*)")
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


def foreign_representations(root: Path, labels: Any, dims: Any) -> list[Representation]:
    """Return every array of two or more axes below `root`, with labels from their paths or as given."""
    try:
        node = _opened(root)
    except Exception as error:
        raise DsvccaError(
            f"'{root}' is not a store: no Zarr array or group can be opened there ({type(error).__name__}); "
            "create one with create_store(path, datapoints=...)"
        ) from error
    alone = isinstance(node, zarr.Array)
    try:
        arrays = {root.stem: node} if isinstance(node, zarr.Array) else dict(_arrays(root, node))
        for array in arrays.values():
            if not isinstance(array.metadata.attributes, dict):
                raise TypeError("its attributes have no names")
    except DsvccaError:
        raise
    except Exception as error:  # whatever Zarr raises
        raise DsvccaError(
            f"'{root}': what describes one of its arrays cannot be read ({type(error).__name__}: {error}): restore it, "
            "or remove that array"
        ) from error
    arrays = {path: array for path, array in sorted(arrays.items(), key=_natural) if array.ndim >= 2}
    if not arrays:
        raise DsvccaError(f"'{root}' holds no array of two or more axes: it is not a store of activations")
    for path, array in arrays.items():
        if 0 in array.shape:
            raise DsvccaError(f"'{path}' of shape {array.shape} is empty: there is nothing to compare")
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


def _opened(root: Path) -> zarr.Array[Any] | zarr.Group:
    """Open an array, or a group by what lies in it: a list that somebody made of it once may be old, or lead out of it.

    Of a place that cannot be listed (http) there is nothing but such a list.
    """
    store = files.zarr_store(root)
    try:
        return zarr.open_array(store, mode="r")
    except Exception:
        return zarr.open_group(store, mode="r", use_consolidated=None if folders.lists_nothing(root) else False)


def _natural(item: tuple[str, Any]) -> list[tuple[int, int | str]]:
    """Order paths as people count: block2 before block10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", item[0])]


def _arrays(root: Path, group: zarr.Group) -> Iterator[tuple[str, zarr.Array[Any]]]:
    """Yield all arrays below a group; what was one is an error, where Zarr passes it over or takes it for a group."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what is none, and is looked at below
        members = dict(group.members(max_depth=None))
    groups = ["", *(path for path, member in members.items() if isinstance(member, zarr.Group))]
    for path in () if folders.lists_nothing(root) else groups:
        for name in folders.names(root / path):
            inner = f"{path}/{name}".strip("/")
            if inner not in members and (CHUNK.fullmatch(name) or name == ".zarray" or _describes(root / inner)):
                where = root / path if CHUNK.fullmatch(name) or name == ".zarray" else root / inner
                raise DsvccaError(f"'{where}': what describes it is damaged, or gone: restore it, or remove that array")
    for path, member in members.items():
        if isinstance(member, zarr.Array):
            yield path, member


def _describes(folder: Path) -> bool:
    """Return whether a folder has what only arrays and groups have, or chunks."""
    names = folders.names(folder)
    return any(name in ("zarr.json", ".zarray", ".zgroup") or CHUNK.fullmatch(name) for name in names)


CHUNK = re.compile(r"c(\.\d+)*|\d+(\.\d+)*")
"""What a chunk is called, or the folder that has them."""


def _representation(
    path: str, where: Path, array: zarr.Array[Any], labels: Labels, dims: Any, place: int
) -> Representation:
    significand_bits(array.dtype)
    _refuse_encoded(path, array)
    if isinstance(dims, Mapping):
        spelled = dims.get(path, dims.get(labels["layer"]))
    else:
        spelled = dims if dims is not None and (array.ndim > 2 or len(dims) == array.ndim) else None
    named: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    named = tuple(named) if isinstance(named, (list, tuple)) else (named,)
    if spelled is None and any(named):
        if "datapoint" not in named or not any(n in COLUMNS for n in named):
            raise DsvccaError(
                f"'{path}' calls its axes {named}: say with dims= which of them are datapoints and neurons"
            )
        spelled = named
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
        fingerprint=foreign_fingerprint(where, array.shape, str(array.dtype), checked),
        ids=None,
        array=str(where),
        written=place - (1 << 62),
        unit=_unit(array, to_datapoints_first(checked)[0]),
        guarded=_is_guarded(array),
    )


def _labels(paths: list[str], given: Any) -> dict[str, Labels]:
    """Return the labels of every array: as given, or from their paths."""
    if callable(given):
        found = {path: given(path) for path in paths}
        for path, own in found.items():
            if not isinstance(own, Mapping):
                raise DsvccaError(f"labels= gave a {type(own).__name__} for '{path}': give a dict of labels")
        return {path: checked_labels(own) for path, own in found.items()}
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
    first, *others = PATTERN_FIELD.split(pattern)
    names, between = others[::2], others[1::2]
    if len(set(names)) < len(names) or not all(map(str.isidentifier, names)) or not all(between[:-1]):
        raise DsvccaError(
            f"labels={pattern!r} is no pattern: name every label once, with something between them, {{model}}/{{layer}}"
        )
    found, start, fits = {}, len(first), path.startswith(first)
    for name, after in zip(names, between, strict=True):  # each as short as it may be, the last one up to the end
        is_last = name == names[-1]
        stop = len(path) - len(after) if is_last else path.find(after, start + 1)
        fits = fits and stop > start and (not is_last or path.endswith(after))
        found[name], start = path[start:stop], stop + len(after)
    if not fits or not names:
        raise DsvccaError(f"labels={pattern!r} does not fit the array '{path}': write its path with {{names}} in it")
    return found


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


def _unit(array: zarr.Array[Any], along: int) -> int:
    """Return the bytes of one run of chunks along datapoints."""
    rows = min((array.shards or array.chunks)[along], array.shape[along])
    return rows * array.size // array.shape[along] * np.dtype(array.dtype).itemsize


def _is_guarded(array: zarr.Array[Any]) -> bool:
    """Return whether one of an array's codecs carries a checksum of its chunks."""
    if array.metadata.zarr_format == 2:
        both = (*(array.filters or ()), *(array.compressors or ()))
        codecs = [codec.get_config() if hasattr(codec, "get_config") else codec.to_dict() for codec in both]
        return any(_has_checksum(str(one.get("id", one.get("name"))), one) for one in codecs)
    return _any_has_checksum(array.metadata.to_dict()["codecs"])


def _any_has_checksum(codecs: Any) -> bool:
    """Return whether one of some codecs of Zarr v3 has a checksum; of a shard what counts lies within."""
    for one in codecs:
        settings = one.get("configuration") or {}
        inner = settings.get("codecs")
        if _any_has_checksum(inner) if inner else _has_checksum(str(one["name"]).removeprefix("numcodecs."), settings):
            return True
    return False


def _has_checksum(name: str, settings: Mapping[str, Any]) -> bool:
    return name in WITH_CHECKSUM or (name == "zstd" and bool(settings.get("checksum")))


WITH_CHECKSUM = ("crc32c", "crc32", "adler32", "fletcher32", "jenkins_lookup3", "gzip", "zlib", "bz2", "lzma")
"""Codecs that notice a changed byte; zstd does where it was asked to."""


def _refuse_encoded(path: str, array: zarr.Array[Any]) -> None:
    """Raise if the stored numbers are not the activations themselves, as xarray may store them."""
    about = dict(array.attrs)
    missing = about.get("_FillValue")
    if array.metadata.zarr_format == 2 and missing is None and np.dtype(array.dtype).kind in "iu" and array.fill_value:
        missing = array.fill_value
    coded = [name for name in ("scale_factor", "add_offset") if name in about]
    if coded or (missing is not None and missing == missing and not isinstance(missing, str)):
        what = f"{coded[0]}={about[coded[0]]}" if coded else f"{missing} for missing numbers"
        raise DsvccaError(f"'{path}' holds encoded numbers ({what}): decode them, and write activations as they are")
