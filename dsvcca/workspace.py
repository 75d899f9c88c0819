"""The workspace: bases on disk, many packed into one, found again by what they were made from.

    <store>.workspace/
      pack-<digest>/                 group; its zarr.json is the commit record, written last
        columns                      (n, sum of ranks) float32, the orthonormal columns U side by side
        parts                        what else belongs to each basis (`PARTS`), end to end, float64

Packs are immutable and may be removed at any time: a plan that needs them makes them again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dsvcca import files
from dsvcca.activations import FORMAT, KEY, read_attributes
from dsvcca.arrays import Array, NumpyArray, to_numpy
from dsvcca.basis import Basis, RankRule
from dsvcca.errors import DsvccaError
from dsvcca.moments import GRID
from dsvcca.plan import PACK

COLUMNS = "columns"
PARTS = ("cholesky", "column_sums", "singular_values", "loadings", "mean", "neuron_norms", "row_norms")


@dataclass(frozen=True)
class BasisRef:
    """Where a basis lies: small enough to travel with a task.

    Attributes
    ----------
    pack : str
    position : int
        Place of the basis in its pack.
    """

    pack: str
    position: int


@dataclass(frozen=True)
class Receipt:
    """What is known of a stored basis without reading it."""

    fingerprint: str
    ref: BasisRef
    rule: RankRule
    rank: int


class Pack:
    """A committed pack, opened for reading; every chunk is compared with the commit record when it is read."""

    def __init__(self, workspace: str, name: str) -> None:
        self._folder = Path(workspace, name)
        about = read_attributes(self._folder)
        if about is None:
            raise DsvccaError(
                f"'{self._folder}' is gone or was never committed: run the same line again to make it anew"
            )
        self._about = about["bases"]
        self._checksums = about["checksums"]
        self._rows = int(about["rows"])
        self._ends = np.cumsum([one["rank"] for one in self._about])
        self._shapes = [_shapes(one, self._rows) for one in self._about]
        self._chunks: tuple[int, int] | None = None
        self._parts: list[dict[str, NumpyArray]] | None = None

    def part(self, part: str, position: int) -> NumpyArray:
        """Return one of `PARTS` of one basis: (k, k), (k,), (c,), (k, c), (c,), (c,) or (n,) float64."""
        if self._parts is None:
            sizes = [[prod(shape) for shape in shapes.values()] for shapes in self._shapes]
            flat = self._read("parts/c.0", "float64", (sum(map(sum, sizes)),))
            pieces = iter(np.split(flat, np.cumsum([size for one in sizes for size in one])[:-1]))
            self._parts = [
                {name: next(pieces).reshape(shape) for name, shape in shapes.items()} for shapes in self._shapes
            ]
        return self._parts[position][part]

    def nonzero(self, position: int) -> int:
        """Return how many singular values of one basis are not zero."""
        return int(self._about[position]["nonzero"])

    def columns(self, step: slice) -> Iterator[tuple[slice, slice, NumpyArray]]:
        """Yield the columns U of all bases for one step of the grid, a chunk at a time.

        Each is (its rows within the step, its columns within the pack, the numbers); only the chunk's rows that belong
        to the step are there.
        """
        if self._chunks is None:
            array = zarr.open_array(str(self._folder / COLUMNS), mode="r", zarr_format=3)
            self._chunks = (array.chunks[0], array.chunks[1])
        height, width = self._chunks
        for row in range(step.start // height, -(-step.stop // height)):
            top = row * height
            rows = slice(max(step.start, top), min(step.stop, top + height))
            for column in range(-(-int(self._ends[-1]) // width)):
                numbers = self._read(f"{COLUMNS}/c.{row}.{column}", "float32", (height, width))
                places = slice(column * width, min((column + 1) * width, int(self._ends[-1])))
                yield (
                    slice(rows.start - step.start, rows.stop - step.start),
                    places,
                    numbers[rows.start - top : rows.stop - top, : places.stop - places.start],
                )

    def _read(self, key: str, dtype: str, shape: tuple[int, ...]) -> NumpyArray:
        try:
            return files.read_chunk(self._folder / key, dtype, shape, self._checksums.get(key))
        except (OSError, ValueError) as error:
            raise DsvccaError(
                f"'{self._folder / key}' is missing or not what was committed ({error}): remove '{self._folder}' and "
                "run the same line again"
            ) from error

    def place(self, position: int) -> slice:
        """Return which of the pack's columns belong to a basis."""
        return slice(int(self._ends[position]) - self._about[position]["rank"], int(self._ends[position]))


class PackWriter:
    """Takes bases one after another and commits them as one pack.

    Columns are held in memory until then; those of a basis too large for that are streamed, and it is then alone.
    """

    def __init__(self, workspace: str, rows: int, rule: RankRule) -> None:
        self._root = Path(workspace)
        self._rows, self._rule = rows, rule
        self._bases: list[tuple[str, Basis]] = []
        self._held: list[NumpyArray] = []
        self._folder: Path | None = None

    @property
    def columns(self) -> int:
        """Columns of all bases so far."""
        return sum(basis.rank for _, basis in self._bases)

    def stream(self, k: int) -> zarr.Array[Any]:
        """Return the array for the columns of the only basis of this pack, to be filled by slabs."""
        self._folder = files.stage(self._root)
        return self._create(self._folder, k)

    def add(self, fingerprint: str, basis: Basis, columns: Array | None) -> None:
        """Add a basis and its columns (n, k), or None if they were streamed."""
        self._bases.append((fingerprint, basis))
        if columns is not None:
            self._held.append(to_numpy(columns))

    def commit(self) -> list[Receipt]:
        """Write, seal and publish the pack; return where each basis is. Nothing is left of a pack without bases."""
        if not self._bases and self._folder is None:
            return []
        folder = self._folder or files.stage(self._root)
        try:
            return self._commit(folder) if self._bases else []
        finally:
            files.discard(folder)

    def _commit(self, folder: Path) -> list[Receipt]:
        if self._held:
            array = self._create(folder, self.columns)
            for start in range(0, self._rows, GRID):
                rows = np.concatenate([held[start : start + GRID] for held in self._held], axis=1)
                files.write_rows(array, folder / COLUMNS, start, rows)
        flat = np.concatenate([to_numpy(getattr(basis, part)).ravel() for _, basis in self._bases for part in PARTS])
        files.create_array(folder / "parts", flat.shape, flat.size, "float64", ("value",))[:] = flat
        bases = [
            {
                "fingerprint": fingerprint,
                "rank": basis.rank,
                "neurons": int(basis.singular_values.shape[0]),
                "nonzero": basis.nonzero,
                "rule": asdict(self._rule),
            }
            for fingerprint, basis in self._bases
        ]
        record = {
            "format": FORMAT,
            "kind": "pack",
            "rows": self._rows,
            "bases": bases,
            "checksums": files.seal(folder),
        }
        files.write_group(folder, **{KEY: record})
        name = "pack-" + hashlib.sha256(repr(bases).encode()).hexdigest()[:24]
        files.publish(folder, self._root / name)  # if it is there already, it is the same
        return _receipts(name, bases)

    def _create(self, folder: Path, columns: int) -> zarr.Array[Any]:
        rows = min(GRID // 2, self._rows)  # half a step of the grid: less is wasted on the last chunk
        inner = (min(columns, PACK),)
        dims = ("row", "direction")
        return files.create_array(folder / COLUMNS, (self._rows, columns), rows, "float32", dims, inner)


def find_bases(workspace: str) -> dict[str, list[Receipt]]:
    """Return every committed basis of a workspace by its fingerprint."""
    found: dict[str, list[Receipt]] = {}
    if not os.path.isdir(workspace):
        return found
    for entry in sorted(os.scandir(workspace), key=lambda e: e.name):
        if entry.name.startswith("pack-"):
            about = read_attributes(Path(entry.path))
            for receipt in [] if about is None else _receipts(entry.name, about["bases"]):
                found.setdefault(receipt.fingerprint, []).append(receipt)
    return found


def ensure_workspace(workspace: str) -> None:
    """Make the workspace if it is not there; refuse a folder that is something else."""
    root = Path(workspace)
    about = read_attributes(root)
    if about is None:
        if root.exists() and any(root.iterdir()):
            raise DsvccaError(f"workspace '{root}' is a folder of something else: choose another workspace=")
        with files.disk_errors(root):
            files.make_parents(root)
            root.mkdir(exist_ok=True)
            files.write_group(root, **{KEY: {"format": FORMAT, "kind": "workspace"}})
    elif about.get("kind") != "workspace":
        raise DsvccaError(f"workspace '{root}' holds {about.get('kind')}: choose another workspace=")


def _receipts(name: str, bases: Sequence[dict[str, Any]]) -> list[Receipt]:
    return [
        Receipt(one["fingerprint"], BasisRef(name, place), RankRule(**one["rule"]), one["rank"])
        for place, one in enumerate(bases)
    ]


def _shapes(basis: dict[str, Any], n: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every part of a basis, in the order in which they are stored."""
    k, c = basis["rank"], basis["neurons"]
    shapes = {"cholesky": (k, k), "column_sums": (k,), "loadings": (k, c), "row_norms": (n,)}
    return {part: shapes.get(part, (c,)) for part in PARTS}
