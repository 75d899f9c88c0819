"""Files of many arrays, each of which can be cut anywhere: HDF5, safetensors, and .mat of MATLAB up to version 7."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from dsvcca import folders
from dsvcca.arrays import NumpyArray
from dsvcca.formats.kinds import DEFLATED, WHOLE, Array, Format, Other, library, type_name
from dsvcca.paths import check_not_encoded


@contextmanager
def _hdf5(file: Path) -> Iterator[Any]:
    h5py = library("h5py", file)
    folders.check_plain(file)
    with h5py.File(file, "r") as opened:
        yield opened


def _find_hdf5(file: Path) -> Iterator[Array | Other]:
    h5py = library("h5py", file)
    with _hdf5(file) as opened:
        links: list[tuple[str, Any]] = []
        objects: list[tuple[str, Any]] = []
        opened.visititems_links(lambda name, link: links.append((name, link)))
        opened.visititems(lambda name, one: objects.append((name, one)))
        for name, link in links:
            if isinstance(link, h5py.ExternalLink):
                yield Other(file, name, f"a link to another file, '{link.filename}', which is not followed")
            elif isinstance(link, h5py.SoftLink):
                yield Other(file, name, f"a link to '{link.path}', which is not followed")
        for name, one in objects:
            if isinstance(one, h5py.Dataset):
                yield _dataset(file, name, one)


def _dataset(file: Path, name: str, one: Any) -> Array | Other:
    """Return what a dataset of HDF5 is; one whose numbers lie elsewhere, or were never written, is refused."""
    if one.shape is None:
        return Other(file, name, "empty")
    if one.dtype.kind == "O":
        return Other(file, name, "text, references or rows of different lengths")
    if one.is_virtual or one.external:
        return Other(file, name, "its numbers lie in other files, which are not opened: copy them into it", True)
    needed = prod(one.shape) * one.dtype.itemsize
    if one.chunks is None:
        is_whole = one.id.get_storage_size() >= needed
    else:
        is_whole = one.id.get_num_chunks() == prod(-(-n // c) for n, c in zip(one.shape, one.chunks, strict=True))
        if prod(one.chunks) * one.dtype.itemsize > WHOLE:
            return Other(
                file, name, f"chunks {one.chunks} of more than {WHOLE} bytes: write it with smaller ones", True
            )
    if len(one.shape) > 1 and not is_whole:
        return Other(file, name, f"of {one.shape} {one.dtype} not all was written: write it anew", True)
    about = {key: one.attrs[key] for key in ("scale_factor", "add_offset", "_FillValue") if key in one.attrs}
    check_not_encoded(f"{file}: {name}", about)
    return Array(file, name, one.shape, type_name(one.dtype), tuple(axis.label for axis in one.dims))


@contextmanager
def _opened_hdf5(array: Array) -> Iterator[Any]:
    with _hdf5(array.file) as opened:
        yield opened[array.inside]


BITS = (8, 16, 32, 64)
TYPES = {
    **{"BF16": "bfloat16", "BOOL": "bool"},
    **{f"F{bits}": f"float{bits}" for bits in BITS[1:]},
    **{f"I{bits}": f"int{bits}" for bits in BITS},
    **{f"U{bits}": f"uint{bits}" for bits in BITS},
}
"""What safetensors calls the types of NumPy, and bfloat16."""


def _find_safetensors(file: Path) -> Iterator[Array]:
    safetensors = library("safetensors", file)
    folders.check_plain(file)
    with safetensors.safe_open(file, framework="numpy") as tensors:  # which checks the header
        for name in list(tensors.keys()):
            one = tensors.get_slice(name)
            kind = one.get_dtype()
            yield Array(file, name, tuple(one.get_shape()), TYPES.get(kind, kind))


@contextmanager
def _opened_safetensors(array: Array) -> Iterator[NumpyArray]:
    with folders.opened(array.file) as stream:
        size = int.from_bytes(stream.read(8), "little")
        start, _ = json.loads(stream.read(size))[array.inside]["data_offsets"]
    # NumPy has no bfloat16, and the library gives none to NumPy.
    dtype = library("ml_dtypes", array.file).bfloat16 if array.dtype == "bfloat16" else np.dtype(array.dtype)
    yield np.memmap(array.file, np.dtype(dtype).newbyteorder("<"), "r", 8 + size + start, array.shape)


CLASSES = {
    **{"double": "float64", "single": "float32", "logical": "bool"},
    **{f"{kind}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in BITS},
}
"""What MATLAB calls the types of NumPy."""


def _find_mat(file: Path) -> Iterator[Array | Other]:
    with folders.opened(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            variables = scipy.io.whosmat(stream)
        except NotImplementedError:
            yield Other(file, "", "MATLAB 7.3 wrote it, with its axes reversed: save it with -v7, or as .npy", True)
            return
    for name, shape, kind in variables:
        if kind not in CLASSES:
            yield Other(file, name, f"{kind}, not numbers")
            continue
        found = Array(file, name, tuple(shape), CLASSES[kind])
        if found.nbytes > DEFLATED * size:
            raise ValueError(f"{name}: {size} bytes cannot become {found.nbytes}")
        if found.nbytes > WHOLE:
            yield Other(file, name, f"{found.nbytes} bytes, and such files are read whole: save it as .npy", True)
        else:
            yield found


@contextmanager
def _opened_mat(array: Array) -> Iterator[NumpyArray]:
    with folders.opened(array.file) as stream:
        found = scipy.io.loadmat(stream, variable_names=[array.inside], mat_dtype=True)[array.inside]
    if found.shape != array.shape:
        raise ValueError(f"shape {found.shape}, where it says {array.shape}")
    yield found


HDF5 = Format(_find_hdf5, _opened_hdf5)
SAFETENSORS = Format(_find_safetensors, _opened_safetensors)
MAT = Format(_find_mat, _opened_mat)
