"""Reading activations: piece by piece, whole or in part, checked on the way; and finding what is wrong with them.

The only reader of activations. Those of ours are read chunk by chunk and compared with their checksums; arrays that
others wrote are read by Zarr, and what can be found of damage is found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from dsvcca.activations.labels import to_datapoints_first
from dsvcca.activations.representations import (
    ARRAY,
    RESTORE,
    Representation,
    foreign_fingerprint,
    next_version,
    read_mask,
    read_record,
)
from dsvcca.errors import DsvccaError, RunError
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.views import View, apply_view
from dsvcca.storage import chunked, files, folders
from dsvcca.storage.records import read_attributes

PIECE = 16 << 20
"""Bytes of raw activations handed out at once, unless one chunk is larger."""


def ahead(pieces: Iterator[NumpyArray]) -> Iterator[NumpyArray]:
    """Yield the same pieces, each read while the one before it is used."""
    with ThreadPoolExecutor(1, "dsvcca-io") as io:
        following = io.submit(next, pieces, None)
        while (piece := following.result()) is not None:
            following = io.submit(next, pieces, None)
            yield piece


def read_pieces(representation: Representation, start: int = 0, stop: int | None = None) -> Iterator[NumpyArray]:
    """Yield the activations of datapoints `start` to `stop`, all by default, as (rows, *space, column) pieces.

    They come in order, and every chunk is read and checked once. Of one position only its own numbers are handed out:
    a chunk is read whole once, to check it, and then only where they lie.

    Raises
    ------
    DsvccaError
        If they were dropped, the array is another than its record says, a chunk is missing, or its checksum does not
        hold.
    """
    if representation.kept is not None:
        raise DsvccaError(
            f"{representation}: its activations were dropped, what is left are bases: {representation.kept}; write it "
            "again with if_exists='replace' to read it"
        )
    checksums = committed_checksums(representation)
    size = max(1, PIECE * representation.logical_shape[0] // max(representation.nbytes, 1))
    if representation.position is not None and checksums is None:  # whole runs of chunks are read for it
        size = max(1, size // representation.whole_shape[1])
    stop = representation.logical_shape[0] if stop is None else stop
    if checksums is None:
        blocks = _foreign_blocks(representation, size, start, stop)
    else:
        axes = to_datapoints_first(representation.dims)
        blocks = (block.transpose(axes) for block in _own_chunks(representation, checksums, start, stop))
    for block in blocks:
        one = block if representation.position is None else block[:, representation.position, :]
        for first in range(0, one.shape[0], size):
            yield one[first : first + size]


def read_positions(representation: Representation) -> Iterator[NumpyArray]:
    """Yield every position of every datapoint as a row (m, column), padding left out."""
    valid = None if representation.mask is None else read_mask(representation.mask)
    start = 0
    for piece in read_pieces(representation):
        rows = apply_view(piece, View("positions"))[0]
        if valid is not None:
            rows = rows[valid[start : start + len(piece)].ravel()]
        start += len(piece)
        yield rows


def read_over_tokens(representation: Representation, view: View) -> Iterator[NumpyArray]:
    """Yield the mean or the maximum of every datapoint over its tokens, padding left out: (m, column) float64."""
    assert representation.mask is not None
    valid = read_mask(representation.mask)
    empty = np.flatnonzero(~valid.any(axis=1))
    if empty.size:
        raise DsvccaError(
            f"{representation}: datapoint {empty[0]} has no token by the mask, and so no {view.name} over tokens: use "
            "view='positions'"
        )
    start = 0
    for piece in read_pieces(representation):
        tokens = valid[start : start + len(piece), :, None]
        start += len(piece)
        numbers = piece.astype(np.float64)
        if view.name == "mean":
            yield np.where(tokens, numbers, 0).sum(axis=1) / tokens.sum(axis=1)
        else:
            yield np.where(tokens, numbers, -np.inf).max(axis=1)


def _own_chunks(
    representation: Representation, checksums: dict[str, str], start: int, stop: int
) -> Iterator[NumpyArray]:
    """Yield the rows of committed chunks: along datapoints only, each compared with the record."""
    rows, *inner = representation.shape
    chunk, where = -(-rows // len(checksums)), folders.at(representation.array, "array")
    for row in range(start // chunk, -(-stop // chunk)):
        key = ".".join(["c", str(row), *("0" for _ in inner)])
        path = where / key
        try:
            if representation.position is None:
                numbers = chunked.read_chunk(path, representation.dtype, (chunk, *inner), checksums.get(key))
            else:
                numbers = chunked.map_chunk(path, representation.dtype, (chunk, *inner), checksums.get(key))
        except FileNotFoundError as error:
            if was_dropped(representation):
                raise DsvccaError(
                    f"{representation}: its activations were dropped since the store was listed, what is left are "
                    "bases: open the store again, and plan again"
                ) from error
            raise DsvccaError(f"{representation}: chunk '{path}' is missing: {RESTORE}") from error
        except (OSError, ValueError) as error:
            raise DsvccaError(f"{representation}: chunk '{path}' is damaged, {error}: {RESTORE}") from error
        yield numbers[max(0, start - row * chunk) : stop - row * chunk]


def was_dropped(representation: Representation) -> bool:
    """Return whether activations were dropped after a representation was listed."""
    folder = folders.at(representation.array, "array").parent
    while (record := read_record(folder := folder.with_name(next_version(folder.name)))) is not None:
        if record[0].kept is not None:
            return True
    return False


def _foreign_blocks(representation: Representation, size: int, first: int, last: int) -> Iterator[NumpyArray]:
    """Yield rows of runs of whole chunks of an array that others wrote, datapoints first."""
    array = open_array(representation)
    r = representation
    if foreign_fingerprint(folders.at(r.array, "array"), r.shape, r.dtype, r.dims) != r.fingerprint:
        raise DsvccaError(f"{r}: the files of '{r.array}' have changed since it was opened: open it and plan again")
    axes = to_datapoints_first(representation.dims)
    along = axes[0]
    rows, chunk = array.shape[along], (array.shards or array.chunks)[along]
    step = max(1, size // chunk) * chunk
    for start in range(first // chunk * chunk, last, step):
        stop = min(start + step, rows)
        for row in range(start // chunk, -(-stop // chunk)):
            for key in _missing_chunks(representation, array, row):
                raise DsvccaError(f"{representation}: chunk '{key}' of '{representation.array}' {MISSING}")
        part = tuple(slice(start, stop) if axis == along else slice(None) for axis in range(array.ndim))
        try:
            block = np.asarray(array[part])
        except Exception as error:
            raise DsvccaError(
                f"{representation}: rows {start} to {stop} of '{representation.array}' cannot be read ({error}): a "
                "chunk is damaged, restore it or leave this array out"
            ) from error
        if array.shards is not None and (place := _unwritten(block, array, start, along)) is not None:
            raise DsvccaError(
                f"{representation}: the chunk at {place} of '{representation.array}' holds nothing but the fill value "
                f"{array.fill_value}: it was never written, or left out (zarr does that unless write_empty_chunks=True)"
            )
        native = block.astype(block.dtype.newbyteorder("="), copy=False).transpose(axes)
        yield native[max(0, first - start) : last - start]


def _unwritten(block: NumpyArray, array: zarr.Array[Any], start: int, along: int) -> tuple[int, ...] | None:
    """Return where a chunk within a shard holds nothing but the fill value."""
    for place in _corners(block.shape, array.chunks):
        part = block[tuple(slice(at, at + size) for at, size in zip(place, array.chunks, strict=True))]
        if (part == array.fill_value).all():
            return tuple(at + (start if axis == along else 0) for axis, at in enumerate(place))
    return None


def _corners(shape: Sequence[int], chunks: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield where the chunks of an array begin, one after another however many there are."""
    if not shape:
        yield ()
        return
    for first in range(0, shape[0], chunks[0]):
        for others in _corners(shape[1:], chunks[1:]):
            yield (first, *others)


def open_array(representation: Representation) -> zarr.Array[Any]:
    """Open the array of a representation and check that it is the one its record describes."""
    try:
        store = chunked.zarr_store(folders.at(representation.array, "array"))
        array = zarr.open_array(store, mode="r")
        if representation.written < 0 and _is_blosc(array):
            array = zarr.open_array(chunked.Blosc(store), mode="r", zarr_format=array.metadata.zarr_format)
    except Exception as error:
        raise DsvccaError(
            f"{representation}: there is no readable array at '{representation.array}' ({error}): {RESTORE}"
        ) from error
    if array.shape != representation.shape or str(array.dtype) != representation.dtype:
        raise DsvccaError(
            f"{representation}: its record says {representation.shape} {representation.dtype}, the array at "
            f"'{representation.array}' is {array.shape} {array.dtype}: {RESTORE}"
        )
    return array


def _is_blosc(array: zarr.Array[Any]) -> bool:
    """Return whether the chunks of an array that others wrote are as Blosc left them."""
    if array.shards is not None or not array.compressors:
        return False
    last = array.compressors[-1]
    return isinstance(last, BloscCodec) or "blosc" in str(getattr(last, "codec_id", getattr(last, "codec_name", "")))


def _missing_chunks(representation: Representation, array: zarr.Array[Any], row: int) -> Iterator[str]:
    """Yield the files that are not there of one run of chunks along datapoints, of an array that others wrote."""
    along = to_datapoints_first(representation.dims)[0]
    counts = [-(-n // size) for n, size in zip(array.shape, array.shards or array.chunks, strict=True)]
    counts[along] = 1
    for place in _corners(counts, [1] * len(counts)):
        key = array.metadata.encode_chunk_key((*place[:along], row, *place[along + 1 :]))
        if not folders.exists(folders.at(representation.array, "array") / key):
            yield key


def committed_checksums(representation: Representation) -> dict[str, str] | None:
    """Return the checksum of every chunk from the commit record; None for arrays that others wrote."""
    if representation.written < 0:
        return None
    record = read_record(folders.at(representation.array, "array").parent)
    if record is None or record[0].fingerprint != representation.fingerprint:
        raise DsvccaError(
            f"{representation}: its commit record is gone or has changed since it was listed: open the store again"
        )
    return record[1]


def findings(representation: Representation) -> Iterator[tuple[str, str, str]]:
    """Read one representation chunk by chunk and yield (name, chunk, problem) for everything that is wrong with it."""
    name = representation.name
    try:
        array = open_array(representation)
        checksums = committed_checksums(representation)
    except DsvccaError as error:
        yield name, "", str(error)
        return
    if checksums is None:
        yield from _foreign_findings(representation, array)
        return
    rows, *inner = representation.shape
    shape = (-(-rows // len(checksums)), *inner)
    is_sound = True
    for key in sorted(checksums, key=lambda key: int(key.split(".")[1])):
        try:
            path = folders.at(representation.array, "array") / key
            numbers = chunked.read_chunk(path, representation.dtype, shape, checksums[key])
        except FileNotFoundError:
            yield name, key, f"is missing: {RESTORE}"
            is_sound = False
        except RunError as error:
            yield name, key, str(error)
            is_sound = False
        except (OSError, ValueError) as error:
            yield name, key, f"is damaged, {error}: {RESTORE}"
            is_sound = False
        else:
            last = rows - (len(checksums) - 1) * shape[0] if key.startswith(f"c.{len(checksums) - 1}.") else None
            if not np.isfinite(numbers[:last]).all():
                yield name, key, "holds NaN or infinite numbers: write it again without them"
    folder = folders.at(representation.array, "array")
    about = read_attributes(folder.parent)
    if is_sound and about is not None and files.digest(folder) != about["content"]:
        yield name, f"{ARRAY}/zarr.json", f"is not what was written, and others would read other numbers: {RESTORE}"


def _foreign_findings(representation: Representation, array: zarr.Array[Any]) -> Iterator[tuple[str, str, str]]:
    """Yield what is wrong with an array that others wrote, a chunk at a time (within a shard: a chunk of it)."""
    along = to_datapoints_first(representation.dims)[0]
    missing = 0
    for row in range(-(-array.shape[along] // (array.shards or array.chunks)[along])):
        for key in _missing_chunks(representation, array, row):
            missing += 1
            if missing > LISTED:
                yield representation.name, "", f"more than {LISTED} chunks are missing: nothing else was looked at"
                return
            yield representation.name, key, MISSING
    for place in _corners(array.shape, array.chunks):
        where = f"the chunk at {place}"
        try:
            part = np.asarray(array[tuple(slice(at, at + n) for at, n in zip(place, array.chunks, strict=True))])
        except Exception as error:
            yield representation.name, where, f"cannot be read ({error}): restore it, or leave this array out"
            continue
        if not np.isfinite(part).all():
            file = folders.at(representation.array, "array") / array.metadata.encode_chunk_key(
                tuple(at // n for at, n in zip(place, array.shards or array.chunks, strict=True))
            )
            if folders.exists(file):  # else it was said already
                yield representation.name, where, "holds NaN or infinite numbers: write it again without them"
        elif array.shards is not None and (part == array.fill_value).all():
            yield representation.name, where, f"holds nothing but the fill value {array.fill_value}: never written?"


LISTED = 1000
"""Missing chunks of an array of others that are named, each."""

MISSING = (
    "is missing: it was lost, never written, or left out because it holds only the fill value (zarr does that unless "
    "write_empty_chunks=True); write it again, or leave this array out"
)
