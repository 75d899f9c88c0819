"""HDF5: files of many datasets, each of which can be cut anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from dsvcca import folders
from dsvcca.formats.kinds import WHOLE, Array, Format, Other, library, type_name
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


HDF5 = Format(_find_hdf5, _opened_hdf5)
