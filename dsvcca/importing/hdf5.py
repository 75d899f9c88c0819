"""HDF5: files of many datasets, each of which can be cut anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from dsvcca.activations.foreign_axes import check_not_encoded
from dsvcca.activations.labels import COLUMNS, SPACE
from dsvcca.importing.kinds import MATLAB_73, WHOLE, Array, Format, Other, library, type_name
from dsvcca.storage import folders


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
        names = {one: name for name, one in objects}
        again = {name for name, link in links if isinstance(link, h5py.HardLink)}.difference(names.values())
        for name in sorted(again):
            yield Other(file, name, f"the same as {names.get(opened[name], '/')!r}")
        for name, one in objects:
            if isinstance(one, h5py.Dataset):
                yield _dataset(file, name, one)


def _dataset(file: Path, name: str, one: Any) -> Array | Other:
    """Return what a dataset of HDF5 is; one whose numbers lie elsewhere, or were never written, is refused."""
    if one.shape is None:
        return Other(file, name, "empty")
    if "MATLAB_class" in one.attrs:
        return Other(file, name, MATLAB_73, True)
    if one.dtype.kind == "O":
        return Other(file, name, "text, references or rows of different lengths")
    if one.is_virtual or one.external:
        return Other(file, name, "its numbers lie in other files, which are not opened: copy them into it", True)
    needed = prod(one.shape) * one.id.get_type().get_size()  # in the file, where bfloat16 has 2 bytes
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
    return Array(file, name, one.shape, type_name(one.dtype), _names(one), chunks=one.chunks or ())


AXES = frozenset({"datapoint", "layer", *COLUMNS, *SPACE})


def _names(one: Any) -> tuple[str, ...]:
    """Return what a dataset calls its axes by labels; else by the scales of HDF5, where one is the name of an axis."""
    labels = tuple(axis.label for axis in one.dims)
    if any(labels):
        return labels
    every = [[*axis.keys(), *(scale.name.rpartition("/")[2] for scale in axis.values())] for axis in one.dims]
    scales = tuple(next((name for name in names if name in AXES), ("", *names)[-1]) for names in every)
    return scales if AXES.intersection(scales) else ()


@contextmanager
def _opened_hdf5(array: Array) -> Iterator[Any]:
    with _hdf5(array.file) as opened:
        yield opened[array.inside]


HDF5 = Format(_find_hdf5, _opened_hdf5)
