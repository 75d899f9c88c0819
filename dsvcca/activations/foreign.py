"""Zarr arrays that others wrote, seen as representations."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dsvcca.activations.foreign_axes import axes_of, check_dims_are_used, check_not_encoded
from dsvcca.activations.labels import Labels, check_same_types, to_datapoints_first
from dsvcca.activations.paths import check_all_differ, labels_of, natural
from dsvcca.activations.representations import Representation, foreign_fingerprint
from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import significand_bits
from dsvcca.storage import chunked, folders


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
    arrays = {path: arrays[path] for path in sorted(arrays, key=natural) if arrays[path].ndim >= 2}
    if not arrays:
        raise DsvccaError(f"'{root}' holds no array of two or more axes: it is not a store of activations")
    for path, array in arrays.items():
        if 0 in array.shape:
            raise DsvccaError(f"'{path}' of shape {array.shape} is empty: there is nothing to compare")
    found = []
    seen: Labels = {}
    for place, (path, own) in enumerate(labels_of(list(arrays), labels).items()):
        check_same_types(own, [seen], f"another array in '{root}'")
        seen = own | seen
        found.append(_representation(path, root if alone else root / path, arrays[path], own, dims, place))
    check_all_differ((r.name, r.labels) for r in found)
    check_dims_are_used(dims, [r.name for r in found], [r.labels["layer"] for r in found])
    return found


def _opened(root: Path) -> zarr.Array[Any] | zarr.Group:
    """Open an array, or a group by what lies in it: a list that somebody made of it once may be old, or lead out of it.

    Of a place that cannot be listed (http) there is nothing but such a list.
    """
    store = chunked.zarr_store(root)
    try:
        return zarr.open_array(store, mode="r")
    except Exception:
        return zarr.open_group(store, mode="r", use_consolidated=None if folders.lists_nothing(root) else False)


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
    named: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    named = tuple(named) if isinstance(named, (list, tuple)) else (named,)
    checked = axes_of(path, labels["layer"], array.shape, named, dims)
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
    """Raise if the stored numbers are not the activations themselves."""
    of_integers = array.metadata.zarr_format == 2 and np.dtype(array.dtype).kind in "iu"
    check_not_encoded(path, dict(array.attrs), (array.fill_value or None) if of_integers else None)
