"""Files of MATLAB up to version 7, whose variables are read whole."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import scipy.io

from dsvcca.importing.kinds import BITS, DEFLATED, MATLAB_73, WHOLE, Array, Format, Other
from dsvcca.maths.arrays import NumpyArray
from dsvcca.storage import folders

CLASSES = {
    **{"double": "float64", "single": "float32", "logical": "bool"},
    **{f"{kind}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in BITS},
}
"""What MATLAB calls the types of NumPy."""


def _find_mat(file: Path) -> Iterator[Array | Other]:
    with folders.opened(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        is_old = 0 in stream.read(4)  # version 4; of such sizes as are refused here SciPy would read for ever
        imaginary = list(_imaginary_4(stream)) if is_old else []
        try:
            variables = scipy.io.whosmat(stream)
        except NotImplementedError:
            yield Other(file, "", MATLAB_73, True)
            return
        imaginary = imaginary if is_old else list(_imaginary(stream))
    for (name, shape, kind), is_complex in zip(variables, imaginary, strict=True):
        if kind not in CLASSES:
            yield Other(file, name, f"{kind}, not numbers", kind == "sparse")
            continue
        found = Array(file, name, tuple(shape), CLASSES[kind])
        if found.nbytes > DEFLATED * size:
            raise ValueError(f"{name}: {size} bytes cannot become {found.nbytes}")
        if is_complex:
            yield Other(file, name, "complex numbers: save real ones, for instance real(x) and imag(x)", True)
        elif found.nbytes > WHOLE:
            yield Other(file, name, f"{found.nbytes} bytes, and such files are read whole: save it as .npy", True)
        else:
            yield found


def _imaginary(stream: BinaryIO) -> Iterator[bool]:
    """Yield of every variable whether it has an imaginary part, which SciPy does not say."""
    stream.seek(126)
    order = "<" if stream.read(2) == b"IM" else ">"
    while len(head := stream.read(8)) == 8:
        kind, size = struct.unpack(f"{order}2I", head)
        after = stream.tell() + size
        if kind == COMPRESSED:
            head = zlib.decompressobj().decompress(stream.read(min(size, 1024)), 20)
        else:
            head += stream.read(12)
        yield bool(struct.unpack(f"{order}I", head[16:20])[0] & COMPLEX)
        stream.seek(after)


def _imaginary_4(stream: BinaryIO) -> Iterator[bool]:
    """Yield the same of a file of version 4."""
    stream.seek(0)
    order = "<" if 0 <= struct.unpack("<i", stream.read(4))[0] <= 5000 else ">"
    stream.seek(0)
    while len(head := stream.read(20)) == 20:
        kind, rows, columns, imaginary, name = struct.unpack(f"{order}5i", head)
        if min(rows, columns, imaginary, name) < 0:
            raise ValueError(f"an array of {rows} x {columns} in a file of version 4")
        yield imaginary == 1
        stream.seek(name + rows * columns * SIZES_4[kind // 10 % 10] * (1 + imaginary), 1)


COMPRESSED, COMPLEX = 15, 0x800
SIZES_4 = (8, 4, 4, 2, 2, 1)
"""Marks of the format, and in version 4 the bytes of a number of each type."""


@contextmanager
def _opened_mat(array: Array) -> Iterator[NumpyArray]:
    with folders.opened(array.file) as stream:
        found = scipy.io.loadmat(stream, variable_names=[array.inside], mat_dtype=True)[array.inside]
    if found.shape != array.shape:
        raise ValueError(f"shape {found.shape}, where it says {array.shape}")
    yield found


MAT = Format(_find_mat, _opened_mat)
