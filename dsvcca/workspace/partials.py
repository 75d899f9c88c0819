"""Partial results: of a representation too large for one task, a portion of a tile, or targets; kept until they are
merged. Portions wait in a folder of the results instead of the workspace, until those are complete.

    <workspace>/partial-<name>/    group; its zarr.json is the commit record, written last
      numbers                      all arrays end to end, float64

They are immutable, and whoever has merged them removes them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from dsvcca.errors import DsvccaError, RunError
from dsvcca.maths.arrays import Array, NumpyArray, to_numpy
from dsvcca.progress import say
from dsvcca.storage import chunked, folders, staging
from dsvcca.storage.flat import Flat, Stretch, write_flat
from dsvcca.storage.records import REPAIR, PartialRecord, read_record, write_record

NUMBERS = "numbers"

CHUNK = 1 << 20
"""Numbers in a chunk."""

PREFIX = "partial-"


def write_partial(workspace: str, name: str, arrays: Mapping[str, Array], about: Mapping[str, Any]) -> None:
    """Commit arrays of float64 or complex128 under a name; `about` is kept with them."""
    target = _folder(workspace, name)
    folder = staging.stage(folders.at(workspace, "workspace"))
    try:
        numbers = {key: to_numpy(value) for key, value in arrays.items()}
        write_flat(folder / NUMBERS, numbers.values(), CHUNK)
        record = {
            "format": 1,
            "kind": "partial",
            "name": name,
            "about": dict(about),
            "arrays": [
                {"name": key, "shape": list(value.shape), "pairs": value.dtype.kind == "c"}
                for key, value in numbers.items()
            ],
            "checksums": chunked.seal(folder),
        }
        write_record(folder, record)
        if not staging.publish(folder, target) and _record(target) is None:
            folders.remove(target)  # what is left of one is none
            staging.publish(folder, target)
        # If it is there already, it is the same.
    finally:
        staging.discard(folder)


def has_partial(workspace: str, name: str) -> bool:
    """Return whether arrays were committed under a name."""
    return read_about(workspace, name) is not None


def read_about(workspace: str, name: str) -> dict[str, Any] | None:
    """Return what was kept with the arrays that were committed under a name; None where there are none."""
    record = _record(_folder(workspace, name))
    return None if record is None else record["about"]


def read_partial(workspace: str, name: str) -> tuple[dict[str, NumpyArray], dict[str, Any]]:
    """Return the arrays that were committed under a name, and what was kept with them.

    Raises
    ------
    DsvccaError
        If they are gone, or are not what was committed.
    """
    folder = _folder(workspace, name)
    record = _record(folder)
    if record is None:
        raise DsvccaError(f"'{folder}' is gone: run the same line again to make it anew")
    sizes = [prod(one["shape"]) * (2 if one["pairs"] else 1) for one in record["arrays"]]
    with chunked.as_committed(folder / NUMBERS, _repair(folder)):
        values = Flat(folder / NUMBERS, sum(sizes), CHUNK, record["checksums"]).values(slice(0, sum(sizes)))
    stretch = Stretch(values)
    arrays = {one["name"]: stretch.take(*one["shape"], pairs=one["pairs"]) for one in record["arrays"]}
    return arrays, record["about"]


def remove_partials(workspace: str, names: Iterable[str]) -> None:
    """Remove partial results that were merged."""
    for name in names:
        folders.remove(_folder(workspace, name))


def remove_other_partials(workspace: str, names: Collection[str]) -> None:
    """Remove all partial results but some."""
    there = folders.at(workspace, "workspace")
    for name in {one for one in folders.names(there) if one.startswith(PREFIX)} - {f"{PREFIX}{one}" for one in names}:
        folders.remove(there / name)


def _record(folder: Path) -> PartialRecord | None:
    """Return the record of a partial result; None if it was not committed.

    Raises
    ------
    DsvccaError
        If it is damaged, or is the record of another one.
    """
    try:
        record = read_record(folder, PartialRecord)
    except RunError:
        raise
    except DsvccaError as error:
        raise DsvccaError(f"the record of '{folder}' is not what was committed: {_repair(folder)}") from error
    if record is not None and folder.name != f"{PREFIX}{record['name']}":
        raise DsvccaError(f"'{folder}' holds what belongs to '{record['name']}': {_repair(folder)}")
    return record


def _repair(folder: Path) -> str:
    return REPAIR["partial"].format(folder=folder)


def _folder(workspace: str, name: str) -> Path:
    return folders.at(workspace, "workspace") / f"{PREFIX}{name}"


@contextmanager
def partials_held(workspace: str) -> Iterator[None]:
    """Hold the partial results of a workspace; wait while another run has them."""

    def waiting() -> None:
        say(f"another run makes large bases, or targets, in '{workspace}': waiting for it")

    with folders.held(folders.at(workspace, "workspace"), waiting):
        yield
