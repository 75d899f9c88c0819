"""Arrays on storage, chunk by chunk, each with its checksum."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore, WrapperStore

from dsvcca.errors import DsvccaError, RunError
from dsvcca.storage import folders
from dsvcca.storage.files import LARGEST_JSON, NO_FILE, UNREADABLE

CHUNK = 8 << 20
"""Bytes of a chunk, about."""


TAIL = 4  # bytes of the CRC-32C that ends every chunk written here


def create_array(
    folder: Path,
    shape: tuple[int, ...],
    rows: int,
    dtype: Any,
    dims: Sequence[str],
    inner: Sequence[int] = (),
) -> zarr.Array[Any]:
    """Create an array as this package stores numbers.

    Chunked along rows only (unless `inner` gives the chunk's other lengths), uncompressed, each chunk ending in its
    CRC-32C, NaN where nothing was written, and nothing left out because it looks empty.
    """
    array: zarr.Array[Any] = zarr.create_array(
        zarr_store(folder, writing=True),
        shape=shape,
        chunks=(max(1, rows), *(inner or (max(1, n) for n in shape[1:]))),
        dtype=dtype,
        fill_value="" if dtype is str else np.nan if np.dtype(dtype).kind == "f" else 0,
        compressors=[Crc32cCodec()],
        dimension_names=list(dims),
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
    )
    return array


def open_array(folder: Path) -> zarr.Array[Any]:
    """Return an array to be written, of which no chunk is left out because nothing but what fills gaps is in it."""
    with zarr.config.set({"array.write_empty_chunks": True}):
        return zarr.open_array(zarr_store(folder, writing=True), mode="r+", zarr_format=3)


def zarr_store(folder: Path, *, writing: bool = False) -> Store:
    """Return what Zarr calls a store, at some place."""
    if not folders.is_remote(folder):
        return _Folder(folder, read_only=not writing)
    options = dict(folders.UNCACHED)
    return zarr.storage.FsspecStore.from_url(str(folder), storage_options=options, read_only=not writing)


class _Folder(LocalStore):
    """A folder as Zarr sees it, in which nothing is waited for: what is no file, a pipe for instance, is an error."""

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        folders.check_plain(self.root / key)
        return await super().get(key, prototype, byte_range)


class Blosc(WrapperStore[Store]):
    """A store as Zarr sees it whose chunks Blosc has compressed, which reads on where they were cut short."""

    def with_read_only(self, read_only: bool = False) -> Blosc:
        return Blosc(self._store.with_read_only(read_only))

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        found = await super().get(key, prototype, byte_range)
        if found is not None and byte_range is None and not key.endswith((".json", ".zarray", ".zattrs", ".zgroup")):
            said = int.from_bytes(found.as_numpy_array()[12:16].tobytes(), "little")
            if said != len(found):
                raise ValueError(f"the chunk '{key}' has {len(found)} bytes, and says that it has {said}")
        return found


class Only(WrapperStore[Store]):
    """A store as Zarr sees it, of whose chunks only some are there."""

    def __init__(self, store: Store, chunks: Collection[str]) -> None:
        super().__init__(store)
        self._chunks = chunks

    def with_read_only(self, read_only: bool = False) -> Only:
        return Only(self._store.with_read_only(read_only), self._chunks)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        is_there = key in self._chunks or key.endswith("zarr.json")
        return await super().get(key, prototype, byte_range) if is_there else None


def fit_array(
    folder: Path,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: Any,
    dims: Sequence[str],
    attributes: dict[str, Any],
) -> zarr.Array[Any]:
    """Return an array that has this shape: the one that is there, grown where it is smaller, or a new one."""
    if folders.exists(folder / "zarr.json"):
        array = open_array(folder)
        kind = "" if dtype is str else np.dtype(dtype)
        if array.chunks == chunks and (array.fill_value == "" if dtype is str else array.dtype == kind):
            if array.shape != shape:
                array.resize(shape)
            if dict(array.attrs) != attributes:
                array.attrs.put(attributes)
            return array
        folders.remove(folder)
    array = create_array(folder, shape, chunks[0], dtype, dims, chunks[1:])
    array.attrs.put(attributes)
    return array


def even_rows(rows: int, row_bytes: int) -> int:
    """Return the rows of a chunk near CHUNK bytes that waste nothing on the last one.

    >>> even_rows(20_000, 1024)
    10000
    """
    count = max(1, round(rows * row_bytes / CHUNK))
    return -(-rows // count)


def seal(folder: Path) -> dict[str, str]:
    """Bring every file below `folder` to the disk and return the checksum of each chunk by its relative path."""
    found = {}
    names = [name for name, _, _ in folders.listing(folder)]
    for name in names:
        folders.sync(folder / name)
        if not name.endswith("zarr.json"):
            # What a URL sends back is not believed: the checksum must be that of the rest.
            tail = (sound_tail if folders.is_remote(folder) else chunk_tail)(folder / name)
            if tail is None:
                raise OSError(errno.EIO, "what was written is not what is there", str(folder / name))
            found[Path(name).as_posix()] = tail
    for inside in {inside for name in names for inside in Path(name).parents}:
        folders.sync_folder(folder / inside)
    return dict(sorted(found.items()))


def read_chunk(path: Path, dtype: str, shape: Sequence[int], checksum: str | None) -> npt.NDArray[Any]:
    """Return a chunk as this package writes them, read-only: numbers, then their CRC-32C, which is `checksum`.

    A third of the time that Zarr takes for the same chunk.

    Raises
    ------
    ValueError
        If the chunk has another length or checksum, or its checksum does not hold.
    OSError
        If there is none.
    RunError
        If it cannot be read now.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        if folders.is_remote(path):
            content = folders.read(path, size + TAIL)
            numbers, tail = content[:size], content[size:]
        else:
            with folders.opened(path) as file:
                there = os.fstat(file.fileno()).st_size
                if there != size + TAIL:  # before memory is taken for it
                    raise ValueError(f"{there} bytes instead of {size + TAIL}")
                numbers, tail = file.read(size), file.read()
    except OSError as error:
        if folders.is_remote(path) or is_no_file(path, error):
            raise
        raise RunError(UNREADABLE.format(path, error)) from error
    if len(numbers) != size or len(tail) != TAIL:
        raise ValueError(f"{len(numbers) + len(tail)} bytes instead of {size + TAIL}")
    if tail.hex() != checksum:
        raise ValueError("it is not the chunk that was committed")
    if google_crc32c.value(numbers).to_bytes(TAIL, "little") != tail:
        raise ValueError("its checksum does not hold")
    return np.frombuffer(numbers, dtype=np.dtype(dtype).newbyteorder("<")).reshape(shape)


@contextmanager
def as_committed(path: Path, do: str) -> Iterator[None]:
    """Turn what is wrong with chunks that are read below `path` into an error that says what to do.

    Raises
    ------
    DsvccaError
        If one is missing, or is not what was committed.
    RunError
        If one cannot be read now, which says nothing about it.
    """
    try:
        yield
    except RunError:
        raise
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and folders.is_remote(path) and not isinstance(error, FileNotFoundError):
            raise RunError(UNREADABLE.format(path, error)) from error
        raise DsvccaError(f"'{path}' is missing or not what was committed ({error}): {do}") from error


def map_chunk(path: Path, dtype: str, shape: Sequence[int], checksum: str | None) -> npt.NDArray[Any]:
    """Return a chunk like `read_chunk`, mapped into memory: only what is used of it is read, once it was checked.

    It is checked as a whole when this process maps it for the first time, and again if the file has changed. From a URL
    it is read whole.
    """
    if folders.is_remote(path):
        return read_chunk(path, dtype, shape, checksum)
    status = os.stat(path)
    _check_once(path, dtype, tuple(shape), checksum, status.st_size, (status.st_mtime_ns, status.st_ctime_ns))
    return np.memmap(path, np.dtype(dtype).newbyteorder("<"), "r", shape=tuple(shape))


@lru_cache(maxsize=1 << 16)
def _check_once(
    path: Path, dtype: str, shape: tuple[int, ...], checksum: str | None, size: int, changed: tuple[int, int]
) -> None:
    read_chunk(path, dtype, shape, checksum)


def write_rows(array: zarr.Array[Any], folder: Path, start: int, rows: npt.NDArray[Any]) -> None:
    """Write whole chunk rows of a two-dimensional array made by `create_array`, as `read_chunk` reads them.

    Parameters
    ----------
    start : int
        First row, a multiple of the chunk's rows.
    rows : (m, columns)
        All columns; m a multiple of the chunk's rows, or up to the end of the array.
    """
    height, width = array.chunks
    for top in range(0, len(rows), height):
        for left in range(0, rows.shape[1], width):
            chunk = rows[top : top + height, left : left + width]
            if chunk.shape != (height, width):
                whole = np.full((height, width), array.fill_value, dtype=array.dtype)
                whole[: chunk.shape[0], : chunk.shape[1]] = chunk
                chunk = whole
            write_chunk(folder / f"c.{(start + top) // height}.{left // width}", chunk)


def write_chunk(path: Path, numbers: npt.NDArray[Any]) -> None:
    """Write one whole chunk as `read_chunk` reads it, without a copy where its numbers lie one after another."""
    numbers = np.ascontiguousarray(numbers).reshape(-1).view(np.uint8)
    tail = google_crc32c.value(numbers).to_bytes(TAIL, "little")
    if folders.is_remote(path):
        folders.write(path, numbers.tobytes() + tail)
        return
    with open(path, "wb", buffering=0) as file:
        file.write(numbers.data)
        file.write(tail)


def chunk_tail(path: Path) -> str | None:
    """Return the last four bytes of a chunk, its CRC-32C, as hexadecimal digits; None if there is no such chunk."""
    with no_chunk(path):
        return folders.tail(path, TAIL).hex()
    return None


@contextmanager
def no_chunk(path: Path) -> Iterator[None]:
    """Pass over what is no file; one that cannot be read now is an error."""
    try:
        yield
    except OSError as error:
        if not is_no_file(path, error):
            raise RunError(UNREADABLE.format(path, error)) from error


def is_no_file(path: Path, error: OSError) -> bool:
    """Return whether an error says that there is no such file, and not that it cannot be read."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return True
    return not folders.is_remote(path) and error.errno in NO_FILE


def sound_tail(path: Path) -> str | None:
    """Return what `chunk_tail` does, after reading the chunk whole: None as well where its checksum does not hold."""
    if folders.is_remote(path):
        content = content_of(path)
        found, tail = google_crc32c.value(content[:-TAIL]), content[-TAIL:]
    else:
        found, tail = 0, b""
        with no_chunk(path), folders.opened(path) as file:
            left = os.fstat(file.fileno()).st_size - TAIL
            while left > 0 and (part := file.read(min(left, CHUNK))):
                found, left = google_crc32c.extend(found, part), left - len(part)
            tail = file.read(TAIL)
    return tail.hex() if len(tail) == TAIL and found.to_bytes(TAIL, "little") == tail else None


def content_of(path: Path) -> bytes:
    """Return the content of a file; nothing where there is none."""
    with no_chunk(path):
        return folders.read(path, LARGEST_JSON if path.suffix == ".json" else None)
    return b""
