"""Which files hold arrays, and reading those piece by piece."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path

import numpy as np

from dsvcca.activations.paths import natural
from dsvcca.errors import DsvccaError, DsvccaWarning
from dsvcca.importing.hdf5 import HDF5
from dsvcca.importing.kinds import EXCLUDE, PIECE, WHOLE, Array, Other, read_errors
from dsvcca.importing.mat import MAT
from dsvcca.importing.npy import NPY, NPZ, check_sums
from dsvcca.importing.rows import PARQUET, TEXT
from dsvcca.importing.safetensors import SAFETENSORS
from dsvcca.maths.arrays import NumpyArray, significand_bits
from dsvcca.storage import folders

FORMATS = {
    **{".npy": NPY, ".npz": NPZ, ".h5": HDF5, ".hdf5": HDF5, ".hdf": HDF5, ".safetensors": SAFETENSORS},
    **{".parquet": PARQUET, ".pq": PARQUET, ".mat": MAT, ".txt": TEXT},
}
"""How files are read, by the ends of their names."""

PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
UNPICKLE = (
    "a pickle, which may run anything when it is read: convert it where you trust it, for instance by "
    "np.save('x.npy', torch.load('x.pt', weights_only=True).float().numpy())"
)


def find_arrays(source: Path, exclude: Collection[str]) -> tuple[dict[str, Array], list[Other]]:
    """Return the arrays in a file, or in all files of a folder, by their paths, and what else is there.

    The path of an array is that of its file below the folder without the end of its name, and what the file calls it.
    Links to files are followed, links to folders are not.

    Parameters
    ----------
    exclude : collection of str
        Patterns, as of a shell, for files below the folder, or paths of arrays, that are not looked at.

    Raises
    ------
    DsvccaError
        For what is damaged, or may hold activations and is not read.
    """
    unused = set(exclude)

    def is_left_out(name: str) -> bool:
        fitting = {pattern for pattern in exclude if fnmatchcase(name, pattern)}
        unused.difference_update(fitting)
        return bool(fitting)

    found: list[tuple[str, Array | Other]] = []
    for file in sorted(_files(source), key=lambda file: natural(str(file))):
        name = file.name if source == file else file.relative_to(source).as_posix()
        if not is_left_out(name):
            found += [(_path(name, one.inside, source == file), one) for one in _inside(file)]
    arrays: dict[str, Array] = {}
    others: list[Other] = []
    for path, one in sorted(found, key=lambda item: natural(item[0])):
        if is_left_out(path):
            continue
        judged = _judged(one)
        if isinstance(judged, Other):
            others.append(judged)
        elif path in arrays:
            raise DsvccaError(f"{arrays[path]} and {judged} would both be {path!r}: rename one, or leave it out")
        else:
            arrays[path] = judged
    for pattern in sorted(unused):
        warnings.warn(
            f"exclude={pattern!r} leaves nothing out: no file below '{source}' and no path of an array fits it",
            DsvccaWarning,
            stacklevel=3,
        )
    _check_refused([one for one in others if one.refused])
    return arrays, others


def _check_refused(refused: list[Other], most: int = 5) -> None:
    """Raise if there is what cannot be read: one error for all of it."""
    reasons: dict[str, list[str]] = {}
    for one in refused[:most]:
        reasons.setdefault(one.why, []).append(_called(one))
    if reasons:
        said = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
        more = f"; and {len(refused) - most} more like these" if len(refused) > most else ""
        raise DsvccaError(f"{said}{more}. To go on without, leave it out: {EXCLUDE}")


def _called(one: Array | Other) -> str:
    return str(one) if isinstance(one, Array) else f"'{one.file}'" + (f", {one.inside!r}" if one.inside else "")


def _path(name: str, inside: str, alone: bool) -> str:
    """Return the path of what is in a file."""
    stem = name.removesuffix(Path(name).suffix)
    return (inside or stem) if alone else "/".join(part for part in (stem, inside) if part)


def _files(source: Path) -> Iterator[Path]:
    """Yield the files of a folder, and folders that are something else than folders of files."""
    if not folders.is_folder(source):
        yield source
        return

    def stop(error: OSError) -> None:
        raise DsvccaError(f"'{error.filename}' cannot be read ({error.strerror}): check its permissions") from error

    for folder, below, names in os.walk(source, onerror=stop):
        here = Path(folder)
        yield from (here / name for name in names)
        closed = [name for name in below if _why_closed(here / name)]
        yield from (here / name for name in closed)
        below[:] = [name for name in below if name not in closed]


def _why_closed(folder: Path) -> str:
    """Return why a folder is not looked into; nothing where it is."""
    if folder.name.startswith("."):
        return "hidden"
    if folder.is_symlink():
        return "a link to a folder, which is not followed"
    if is_zarr(folder):
        return "Zarr, which dsvcca.open_store() reads as it is"
    return ""


def is_zarr(folder: Path) -> bool:
    return any(folders.exists(folder / name) for name in ("zarr.json", ".zarray", ".zgroup"))


def _inside(file: Path) -> Iterator[Array | Other]:
    """Yield what is in a file."""
    suffix = file.suffix.lower()
    if folders.is_folder(file):
        yield Other(file, "", _why_closed(file))
    elif file.name.startswith("."):
        yield Other(file, "", "hidden")
    elif suffix in PICKLES:
        yield Other(file, "", UNPICKLE, True)
    elif suffix not in FORMATS:
        yield Other(file, "", "another kind of file")
    else:
        with read_errors(file):
            yield from FORMATS[suffix].find(file)


def _judged(one: Array | Other) -> Array | Other:
    """Return an array that can be activations, or why it cannot."""
    if isinstance(one, Other):
        return one
    if one.dtype == "object":
        return Other(one.file, one.inside, f"Python objects in {UNPICKLE}", True)
    if one.dtype == "packed":
        return Other(one.file, one.inside, "records that hold arrays: save each field as an array of its own", True)
    if one.dtype == "text":
        return Other(one.file, one.inside, "text, dates or records, not numbers")
    if len(one.shape) < 2:
        return Other(one.file, one.inside, f"{len(one.shape)} axes, and activations have two or more")
    if one.dtype == "raw":
        return Other(one.file, one.inside, "not a type of NumPy (bfloat16?): save x.astype('float32')", True)
    try:
        significand_bits(one.dtype)
    except DsvccaError as error:
        return Other(one.file, one.inside, str(error), True)
    if 0 in one.shape:
        return Other(one.file, one.inside, f"shape {one.shape}: there is nothing in it", True)
    return one


def can_be_cut(array: Array, along: int, fixed: Mapping[int, int]) -> bool:
    """Return whether pieces along an axis can be read one after another, at one place of each axis in `fixed`."""
    before = range(along) if array.order == "C" else range(along + 1, len(array.shape)) if array.order == "F" else ()
    return all(axis in fixed for axis in before)


def row_bytes(array: Array, along: int, fixed: Mapping[int, int]) -> int:
    """Return the bytes that are held to read one datapoint: one place along an axis.

    Where an array is read in its order, what lies beside a fixed place within a datapoint is held as well.
    """
    passed = {"C": lambda axis: axis < along, "F": lambda axis: axis > along}.get(array.order, lambda axis: True)
    return array.nbytes // prod(array.shape[axis] for axis in (along, *filter(passed, fixed)))


def check_readable(array: Array, along: int, fixed: Mapping[int, int]) -> None:
    """Raise if more than `WHOLE` bytes of an array would have to be held at once."""
    if not can_be_cut(array, along, fixed) and array.nbytes > WHOLE:
        raise DsvccaError(
            f"{array} has {array.nbytes} bytes, and datapoints lie in it so that it could only be read whole: unzip it "
            "(.npy files are read in any order), or save it with datapoints first"
        )
    if row_bytes(array, along, fixed) > WHOLE:
        raise DsvccaError(
            f"{array} of shape {array.shape} has {row_bytes(array, along, fixed)} bytes a datapoint, {WHOLE} are the "
            "most: are its axes what dims= says?"
        )


def check_cut(array: Array, fixed: Mapping[int, int]) -> None:
    """Raise if an array is damaged, where reading what lies at the places in `fixed` would not come to its end."""
    outermost = {"C": 0, "F": len(array.shape) - 1}.get(array.order)
    if outermost in fixed:
        check_sums(array)


def _step(array: Array, along: int, fixed: Mapping[int, int]) -> int:
    """Return how many datapoints are read at once: whole chunks, so that none is decompressed for every piece."""
    row = row_bytes(array, along, fixed)
    step = max(1, PIECE // row)
    if not array.chunks:
        return step
    chunk = array.chunks[along]
    return max(step // chunk * chunk, min(chunk, max(1, WHOLE // row)))


def pieces_of(array: Array, along: int, fixed: Mapping[int, int]) -> Iterator[NumpyArray]:
    """Yield an array in pieces along an axis, of about `PIECE` bytes or a chunk, at one place of each axis in `fixed`.

    Raises
    ------
    DsvccaError
        If it cannot be read, or is not what it was.
    """
    count = array.shape[along]
    step = _step(array, along, fixed) if can_be_cut(array, along, fixed) else count
    with read_errors(array.file), FORMATS[array.file.suffix.lower()].opened(array) as values:
        for start in range(0, count, step):
            index: list[int | slice] = [fixed.get(axis, slice(None)) for axis in range(len(array.shape))]
            index[along] = slice(start, min(start + step, count))
            yield np.asarray(values[tuple(index)])
