"""Packs are written: bases one after another, columns by many tasks, or cross blocks; sealed, and published."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import zarr

from dsvcca.maths.arrays import Array, NumpyArray, library, to_numpy
from dsvcca.maths.basis import Basis, RankRule
from dsvcca.maths.views import GRID
from dsvcca.storage import chunked, files, folders, staging
from dsvcca.storage.flat import write_flat
from dsvcca.storage.records import (
    HELD,
    BasisRecord,
    OffBlockRecord,
    PackRecord,
    RuleRecord,
    is_held,
    read_record,
    write_record,
)
from dsvcca.workspace.packs import COLUMNS, CROSS, FORMAT, PACK, PARTS, Receipt, places_of, receipts_of, widths_of


class Origin(NamedTuple):
    """What a basis was made from: all that it depends on, and the stored numbers alone."""

    fingerprint: str
    source: str


class PackWriter:
    """Takes bases one after another and commits them as one pack.

    Columns are held in memory until then; those of a basis too large for that are streamed, and it is then alone.
    """

    def __init__(self, workspace: str, rows: int, rule: RankRule) -> None:
        self._root = folders.at(workspace, "workspace")
        self._rows, self._rule = rows, rule
        self._library = library()  # of this thread; another one may commit
        self._bases: list[tuple[Origin, Basis]] = []
        self._held: list[NumpyArray] = []
        self._folder: Path | None = None
        self._step = GRID // 2

    @property
    def columns(self) -> int:
        """Columns of all bases so far."""
        return sum(sum(widths_of(basis.space, basis.ranks)) for _, basis in self._bases)

    def stream(self, columns: int, step: int) -> None:
        """Begin to write the columns of the only basis of this pack, by `append`, `step` rows at a time."""
        self._folder = staging.stage(self._root)
        self._array = _create_columns(self._folder, self._rows, columns, step)
        self._step, self._written = step, 0

    def append(self, rows: NumpyArray) -> None:
        """Write the next rows of columns that are streamed."""
        assert self._folder is not None
        chunked.write_rows(self._array, self._folder / COLUMNS, self._written, rows)
        self._written += len(rows)

    def add(self, origin: Origin, basis: Basis, columns: Array | None) -> None:
        """Add a basis and its real columns (n, all), or None if they were streamed."""
        self._bases.append((origin, basis))
        if columns is not None:
            self._held.append(to_numpy(columns))

    def commit(self) -> list[Receipt]:
        """Write, seal and publish the pack; return where each basis is. Nothing is left of a pack without bases."""
        if not self._bases and self._folder is None:
            return []
        folder = self._folder or staging.stage(self._root)
        try:
            return self._commit(folder) if self._bases else []
        finally:
            staging.discard(folder)

    def _commit(self, folder: Path) -> list[Receipt]:
        if self._held:
            array = _create_columns(folder, self._rows, self.columns, self._step)
            order = self._order()
            for start in range(0, self._rows, GRID):
                rows = np.concatenate([held[start : start + GRID] for held in self._held], axis=1)
                chunked.write_rows(array, folder / COLUMNS, start, rows if order is None else rows[:, order])
        chunks = _column_chunks(self._rows, self.columns, self._step)
        return _commit(folder, self._root, self._bases, self._rule, self._library, chunks=chunks)

    def _order(self) -> NumpyArray | None:
        """Return which of the columns, basis by basis, comes where in the pack; None if they stay as they are."""
        widths = [widths_of(basis.space, basis.ranks) for _, basis in self._bases]
        if max(map(len, widths)) == 1:
            return None
        starts = np.cumsum([0, *(width for one in widths for width in one)])
        own: dict[tuple[int, int], int] = {}
        for position, one in enumerate(widths):
            for frequency in range(len(one)):
                own[position, frequency] = int(starts[len(own)])
        return np.concatenate(
            [np.arange(own[key], own[key] + place.stop - place.start) for key, place in places_of(widths).items()]
        )


class Filled:
    """A pack of one basis whose columns many tasks write, each its own rows; it counts once it is committed."""

    def __init__(self, workspace: str, name: str) -> None:
        self._root = folders.at(workspace, "workspace")
        self._folder = self._root / f"filling-{name}"
        self._array: zarr.Array[Any] | None = None

    @classmethod
    def begin(cls, workspace: str, name: str, rows: int, widths: Sequence[int], step: int) -> None:
        """Make the array of columns, `step` rows of which are written at once; nothing where it is there already."""
        root = folders.at(workspace, "workspace")
        folder = staging.stage(root)
        try:
            _create_columns(folder, rows, sum(widths), step)
            staging.publish(folder, root / f"filling-{name}")
        finally:
            staging.discard(folder)

    def write(self, start: int, rows: NumpyArray) -> None:
        """Write rows; `start` is a multiple of the step."""
        if self._array is None:
            self._array = chunked.open_array(self._folder / COLUMNS)
        chunked.write_rows(self._array, self._folder / COLUMNS, start, rows)

    def discard(self) -> None:
        """Remove what was written, if it was not committed."""
        folders.remove(self._folder)

    def commit(self, origin: Origin, basis: Basis, rule: RankRule, step: int) -> list[Receipt]:
        """Add what belongs to the columns, `step` rows of which were written at once, seal and publish."""
        folders.remove(self._folder / "parts")  # of a task that was killed
        chunks = _column_chunks(basis.count, sum(widths_of(basis.space, basis.ranks)), step)
        return _commit(self._folder, self._root, [(origin, basis)], rule, library(), chunks=chunks)


def commit_joint(
    workspace: str,
    rule: RankRule,
    origins: Sequence[Origin],
    bases: Sequence[Basis],
    pairs: Sequence[tuple[int, int]],
    cross: Sequence[Array],
) -> list[Receipt]:
    """Commit bases without columns, and the cross blocks of some pairs of them, by frequency and then by pair."""
    root = folders.at(workspace, "workspace")
    folder = staging.stage(root)
    try:
        write_flat(folder / CROSS, cross, PARTS)
        return _commit(folder, root, list(zip(origins, bases, strict=True)), rule, library(), pairs=pairs)
    finally:
        staging.discard(folder)


def mark_held(pack: Path) -> None:
    files.write_json(pack / HELD, {"why": "activations of these bases were dropped: nothing makes them again"})


def _commit(
    folder: Path,
    root: Path,
    bases: Sequence[tuple[Origin, Basis]],
    rule: RankRule,
    made_by: str,
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    chunks: tuple[int, int] | None = None,
) -> list[Receipt]:
    """Write what belongs to bases beside their columns or cross blocks, seal the pack and publish it."""
    _write_parts(folder / "parts", [basis for _, basis in bases])
    about: list[BasisRecord] = [
        {
            "fingerprint": origin.fingerprint,
            "source": origin.source,
            "space": list(basis.space),
            "ranks": basis.ranks.tolist(),
            "neurons": int(basis.singular_values.shape[1]),
            "nonzero": basis.nonzero,
            "noise": basis.noise,
            "missed": basis.missed,
            "off_block": None if basis.off_block is None else cast(OffBlockRecord, asdict(basis.off_block)),
            "key": _key(basis),
            "rule": cast(RuleRecord, asdict(rule)),
        }
        for origin, basis in bases
    ]
    record = {
        "format": FORMAT,
        "kind": "pack",
        "rows": bases[0][1].count,
        "chunks": None if chunks is None else list(chunks),
        "library": made_by,
        "bases": about,
        "pairs": None if pairs is None else [list(pair) for pair in pairs],
        "checksums": chunked.seal(folder),
    }
    write_record(folder, record)
    name = "pack-" + hashlib.sha256(repr((FORMAT, about)).encode()).hexdigest()[:24]
    if not staging.publish(folder, root / name) and read_record(root / name, PackRecord) is None:
        if is_held(root / name):
            mark_held(folder)
        folders.remove(root / name)  # what is left of a pack is none
        staging.publish(folder, root / name)
    # If it is there already, it is the same.
    return receipts_of(name, about)


def _key(basis: Basis) -> str:
    first = basis.blocks[0]  # the rounding of its columns tells those apart whose norms are all alike
    held = (basis.singular_values, basis.row_norms, first.components, first.cholesky, first.column_sums)
    parts = (to_numpy(part) for part in held)
    return hashlib.blake2b(b"".join(part.tobytes() for part in parts), digest_size=16).hexdigest()


def _column_chunks(rows: int, columns: int, step: int) -> tuple[int, int]:
    """Return the shape of the chunks of columns of which `step` rows are written at once."""
    half = GRID // 2  # of a step of the grid: less is wasted on the last chunk
    height = min(half if step % half == 0 else step, rows)
    chunks = max(1, round(columns * height / (PACK * half)))  # about 4 MiB each, and nothing wasted on the last
    return height, max(1, -(-columns // chunks))


def _create_columns(folder: Path, rows: int, columns: int, step: int) -> zarr.Array[Any]:
    """Create the array of columns of a pack, of which `step` rows are written at once."""
    height, width = _column_chunks(rows, columns, step)
    return chunked.create_array(folder / COLUMNS, (rows, columns), height, "float32", ("row", "direction"), (width,))


def _write_parts(folder: Path, bases: Sequence[Basis]) -> None:
    """Write what belongs to bases but is no column, end to end, complex numbers as pairs."""
    parts = [part for b in bases for part in (b.singular_values, b.mean, b.neuron_norms, b.row_norms)]
    for position, frequency in places_of([widths_of(b.space, b.ranks) for b in bases]):
        block = bases[position].blocks[frequency]
        parts += [block.cholesky, block.column_sums, block.components]
    write_flat(folder, parts, PARTS)
