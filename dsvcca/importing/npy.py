"""Files of NumPy: .npy, and .npz, which is a zip file of them."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from dsvcca.importing.kinds import DEFLATED, PIECE, Array, Format, Other, read_errors, type_name
from dsvcca.maths.arrays import NumpyArray
from dsvcca.storage import folders


@dataclass(frozen=True)
class _Header:
    """What the first bytes of a .npy file say of the rest."""

    shape: tuple[int, ...]
    order: str
    dtype: np.dtype[Any]
    start: int


HEADERS = {(1, 0): (2, np.lib.format.read_array_header_1_0), (2, 0): (4, np.lib.format.read_array_header_2_0)}
"""By version, the bytes that say how long a header is, and what reads it."""

LONGEST = 10_000
"""Bytes of a header, at most."""


def _header(stream: Any, size: int) -> _Header:
    """Read the header of a .npy file of `size` bytes, and leave the stream at its first number."""
    version = np.lib.format.read_magic(stream)
    if version not in HEADERS:  # others are for records with oddly named fields
        raise ValueError(f"version {version} of the format, which arrays of numbers do not need")
    width, read = HEADERS[version]
    length = stream.read(width)
    if int.from_bytes(length, "little") > LONGEST:
        raise ValueError(f"a header of more than {LONGEST} bytes, which arrays of numbers do not need")
    shape, is_fortran, dtype = read(io.BytesIO(length + stream.read(int.from_bytes(length, "little"))))
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"shape {shape}")
    start = stream.tell()
    if not dtype.hasobject and start + prod(shape) * dtype.itemsize != size:
        raise ValueError(
            f"{size - start} bytes of numbers, where {shape} {dtype} needs {prod(shape) * dtype.itemsize}: cut short, "
            "or several arrays in one file"
        )
    return _Header(shape, "F" if is_fortran else "C", dtype, start)


def _find_npy(file: Path) -> Iterator[Array]:
    with folders.opened(file) as stream:
        header = _header(stream, os.fstat(stream.fileno()).st_size)
    yield Array(file, "", header.shape, type_name(header.dtype))


@contextmanager
def _opened_npy(array: Array) -> Iterator[NumpyArray]:
    with folders.opened(array.file) as stream:
        header = _header(stream, os.fstat(stream.fileno()).st_size)
    order: Any = header.order
    yield np.memmap(array.file, header.dtype, "r", header.start, header.shape, order)


GROWTH = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: DEFLATED}
"""Bytes that a byte of a zip file can become, at most; other methods know no such limit."""


def _find_npz(file: Path) -> Iterator[Array | Other]:
    with folders.opened(file) as stream, zipfile.ZipFile(stream) as members:
        for info in members.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename:
                yield Other(file, name, "no array: only .npy files in a zip file are")
                continue
            if info.compress_type not in GROWTH:
                yield Other(file, name, "compressed by another method than NumPy's: save it by numpy.savez", True)
                continue
            if info.file_size > GROWTH[info.compress_type] * info.compress_size:
                raise ValueError(f"{info.filename}: {info.compress_size} bytes cannot become {info.file_size}")
            with members.open(info) as member:
                header = _header(member, info.file_size)
            yield Array(file, name, header.shape, type_name(header.dtype), order=header.order)


def check_sums(array: Array) -> None:
    """Raise if an array of a zip file is not what was saved: its checksum is only compared at its end."""
    name = f"{array.inside}.npy"
    with (
        read_errors(array.file),
        folders.opened(array.file) as stream,
        zipfile.ZipFile(stream) as members,
        members.open(name) as member,
    ):
        while member.read(PIECE):
            pass


@contextmanager
def _opened_npz(array: Array) -> Iterator[_Member]:
    with folders.opened(array.file) as stream, zipfile.ZipFile(stream) as members:
        info = members.getinfo(f"{array.inside}.npy")
        with members.open(info) as member:
            yield _Member(member, _header(member, info.file_size))


class _Member:
    """An array in a zip file, of which only the bytes that are asked for are held, and bytes go by in their order."""

    def __init__(self, stream: Any, header: _Header) -> None:
        self._stream, self._header = stream, header

    def __getitem__(self, index: tuple[int | slice, ...]) -> NumpyArray:
        if self._header.order == "F":
            return self._run(self._header.shape[::-1], index[::-1]).T
        return self._run(self._header.shape, index)

    def _run(self, shape: tuple[int, ...], index: tuple[int | slice, ...]) -> NumpyArray:
        """Return numbers that lie one after another; else cut them from all that lie around them."""
        fixed = 0
        while fixed < len(index) - 1 and isinstance(index[fixed], int):
            fixed += 1
        cut, rest = index[fixed], index[fixed + 1 :]
        start, stop = (0, shape[fixed]) if not isinstance(cut, slice) or cut.start is None else (cut.start, cut.stop)
        row = prod(shape[fixed + 1 :])
        first = 0
        for axis in range(fixed):
            first = first * shape[axis] + int(index[axis])  # type: ignore[arg-type]
        first = (first * shape[fixed] + start) * row
        itemsize = self._header.dtype.itemsize
        place = self._header.start + first * itemsize
        if self._stream.tell() != place:  # after a seek, zipfile may compare no checksum
            self._stream.seek(place)
        wanted = (stop - start) * row * itemsize
        content = self._stream.read(wanted)
        if len(content) != wanted:
            raise ValueError(f"{len(content)} bytes are left where {wanted} should be")
        numbers = np.frombuffer(content, self._header.dtype).reshape(stop - start, *shape[fixed + 1 :])
        return numbers[(cut if isinstance(cut, int) else slice(None), *rest)]


NPY, NPZ = Format(_find_npy, _opened_npy), Format(_find_npz, _opened_npz)
