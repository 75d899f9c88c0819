"""The workspace: bases on disk, many packed into one, found again by what they were made from.

    <store>.workspace/
      pack-<digest>/                 group; its zarr.json is the commit record, written last
        columns                      (n, all real columns) float32, the orthonormal columns U side by side: of all bases
                                   those of the first frequency, then those of the next
        parts                        what else belongs to each basis (`dsvcca.basis.Basis`), end to end, float64
      cross                        instead of columns: the cross blocks of the pairs that are compared
    filling-<name>/                a pack whose columns are being written by many tasks

Packs are immutable and may be removed at any time: a plan that needs them makes them again. But not those with a file
kept.json: activations of theirs were dropped (`dsvcca.keep_bases`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from pathlib import Path
from secrets import token_hex
from typing import Any, Literal, cast

import numpy as np
import zarr

from dsvcca import files, folders
from dsvcca.arrays import Array, NumpyArray, library, to_numpy
from dsvcca.basis import Basis, Block, RankRule
from dsvcca.errors import DsvccaError
from dsvcca.flat import Flat, Stretch, write_flat
from dsvcca.frequencies import half_spectrum
from dsvcca.records import (
    HELD,
    ONLY_ONES,
    BasisRecord,
    OffBlockRecord,
    PackRecord,
    RuleRecord,
    WorkspaceRecord,
    damaged,
    is_held,
    read_attributes,
    read_record,
    write_record,
)
from dsvcca.sizes import PACK
from dsvcca.translations import OffBlock
from dsvcca.views import GRID

COLUMNS, CROSS = "columns", "cross"

FORMAT: Literal[3] = 3
"""Of packs; those of others count for nothing."""

PARTS = 1 << 17
"""Numbers in a chunk of `parts`."""


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


class Pack:
    """A committed pack, opened for reading; every chunk is compared with the commit record when it is read.

    `library` is the array library that made it.
    """

    def __init__(self, workspace: str, name: str) -> None:
        self._folder = folders.at(workspace, "workspace") / name
        record = read_record(self._folder, PackRecord)
        if record is None:
            raise DsvccaError(
                f"'{self._folder}' is gone or was never committed: run the same line again to make it anew"
            )
        try:
            _check_sense(record)
        except ValueError as error:
            raise damaged(self._folder, "pack", error) from error
        self._about = record["bases"]
        self._checksums = record["checksums"]
        self._rows = record["rows"]
        self.library = record["library"]
        self.pairs = None if record["pairs"] is None else [(i, j) for i, j in record["pairs"]]
        self._places = _places([_widths(one["space"], one["ranks"]) for one in self._about])
        self._width = max(place.stop for place in self._places.values())
        self._chunks = record["chunks"]
        self._heads = list(accumulate((_head_size(one, self._rows) for one in self._about), initial=0))
        self._blocks = _block_starts(self._heads[-1], self._about)
        self._parts = Flat(self._folder / "parts", max(self._blocks[-1, -1], 1), PARTS, self._checksums)

    def basis(self, position: int) -> Basis:
        """Return a basis, without its columns; its blocks are read when they are used."""
        one = self._about[position]
        head = Stretch(self._values(slice(self._heads[position], self._heads[position + 1])))
        space, c = tuple(one["space"]), one["neurons"]
        f = len(half_spectrum(space).weights)
        return Basis(
            count=self._rows,
            space=space,
            ranks=np.asarray(one["ranks"]),
            nonzero=one["nonzero"],
            noise=one["noise"],
            missed=one["missed"],
            off_block=None if one["off_block"] is None else OffBlock(**one["off_block"]),
            singular_values=head.take(f, c),
            mean=head.take(f, c, pairs=bool(space)),
            neuron_norms=head.take(c),
            row_norms=head.take(self._rows),
            blocks=_Blocks(self, position, f),
        )

    def nbytes(self, position: int) -> int:
        """Return the bytes of a basis: its columns, and what belongs to them."""
        one = self._about[position]
        widths = _widths(one["space"], one["ranks"])
        parts = _head_size(one, self._rows) + sum(
            width * (k + 1 + one["neurons"]) for width, k in zip(widths, one["ranks"], strict=True)
        )
        return 4 * self._rows * sum(widths) + 8 * parts

    def key(self, position: int) -> str:
        """Return the digest of what a basis was made from, its numbers: it orders bases in the same way everywhere."""
        return self._about[position]["key"]

    def block(self, position: int, frequency: int) -> Block:
        """Return what belongs to one frequency of a basis."""
        one = self._about[position]
        k, c = one["ranks"][frequency], one["neurons"]
        pairs = bool(half_spectrum(tuple(one["space"])).weights[frequency] == 2)
        start = self._blocks[position, frequency]
        numbers = Stretch(self._values(slice(start, start + (2 if pairs else 1) * k * (k + 1 + c))))
        return Block(numbers.take(k, k, pairs=pairs), numbers.take(k, pairs=pairs), numbers.take(k, c, pairs=pairs))

    def _values(self, wanted: slice) -> NumpyArray:
        """Return a stretch of `parts`."""
        with self._sound("parts"):
            return self._parts.values(wanted)

    def columns(self, step: slice, wanted: slice) -> Iterator[tuple[slice, slice, NumpyArray]]:
        """Yield columns U of the pack for one step of the grid, a chunk at a time.

        Each is (its rows within the step, its columns within the pack, the numbers); only the chunk's rows that belong
        to the step are there, and chunks that hold none of the wanted columns are not read.
        """
        assert self._chunks is not None
        height, width = self._chunks
        for row in range(step.start // height, -(-step.stop // height)):
            top = row * height
            rows = slice(max(step.start, top), min(step.stop, top + height))
            for column in range(wanted.start // width, -(-wanted.stop // width)):
                numbers = self._read(f"{COLUMNS}/c.{row}.{column}", "float32", (height, width))
                places = slice(column * width, min((column + 1) * width, self._width))
                yield (
                    slice(rows.start - step.start, rows.stop - step.start),
                    places,
                    numbers[rows.start - top : rows.stop - top, : places.stop - places.start],
                )

    def _read(self, key: str, dtype: str, shape: tuple[int, ...]) -> NumpyArray:
        with self._sound(key):
            return files.read_chunk(self._folder / key, dtype, shape, self._checksums.get(key))

    @contextmanager
    def _sound(self, key: str) -> Iterator[None]:
        """Turn what is wrong with a chunk into an error that says what to do."""
        try:
            yield
        except (OSError, ValueError) as error:
            do = ONLY_ONES if is_held(self._folder) else f"remove '{self._folder}' and run the same line again"
            raise DsvccaError(f"'{self._folder / key}' is missing or not what was committed ({error}): {do}") from error

    @cached_property
    def _cross(self) -> tuple[Flat, dict[tuple[int, int, int], int]]:
        """Cross blocks, and where those of (frequency, position, position) begin; after all of them the end."""
        starts, start = {}, 0
        for f, weight in enumerate(half_spectrum(tuple(self._about[0]["space"])).weights.tolist()):
            for i, j in self.pairs or ():
                starts[f, i, j] = start
                start += weight * self._about[i]["ranks"][f] * self._about[j]["ranks"][f]
        return Flat(self._folder / CROSS, start, PARTS, self._checksums), starts

    def cross(self, frequency: int, i: int, j: int) -> NumpyArray:
        """Return the cross block (k_i, k_j) of two bases of a joint pack at one frequency."""
        if i == j:
            return np.eye(self._about[i]["ranks"][frequency])
        flat, starts = self._cross
        shape = self._about[i]["ranks"][frequency], self._about[j]["ranks"][frequency]
        if (frequency, j, i) in starts:
            return np.conj(self.cross(frequency, j, i)).T
        if (frequency, i, j) not in starts:
            return np.zeros(shape)
        weight = int(half_spectrum(tuple(self._about[0]["space"])).weights[frequency])
        start = starts[frequency, i, j]
        with self._sound(CROSS):
            values = flat.values(slice(start, start + weight * shape[0] * shape[1]))
        return Stretch(values).take(*shape, pairs=weight == 2)

    def place(self, position: int, frequency: int) -> slice:
        """Return which of the pack's columns belong to one frequency of a basis."""
        return self._places[position, frequency]


def _check_sense(record: PackRecord) -> None:
    """Raise if the record of a pack contradicts itself."""
    for one in record["bases"]:
        bins, most = len(one["ranks"]), min(one["neurons"], record["rows"])
        if prod(one["space"]) > 2 * bins or len(half_spectrum(tuple(one["space"])).weights) != bins:
            raise ValueError(f"{bins} frequencies of {one['space']}")
        if max(one["ranks"]) > most:
            raise ValueError(f"{max(one['ranks'])} directions of {one['neurons']} columns in {record['rows']} rows")
    if (record["chunks"] is None) == (record["pairs"] is None):
        raise ValueError("either columns or pairs of bases")
    if any(max(pair) >= len(record["bases"]) for pair in record["pairs"] or ()):
        raise ValueError("pairs of bases that it does not hold")


class PackWriter:
    """Takes bases one after another and commits them as one pack.

    Columns are held in memory until then; those of a basis too large for that are streamed, and it is then alone.
    """

    def __init__(self, workspace: str, rows: int, rule: RankRule) -> None:
        self._root = folders.at(workspace, "workspace")
        self._rows, self._rule = rows, rule
        self._library = library()  # of this thread; another one may commit
        self._bases: list[tuple[str, Basis]] = []
        self._held: list[NumpyArray] = []
        self._folder: Path | None = None
        self._step = GRID // 2

    @property
    def columns(self) -> int:
        """Columns of all bases so far."""
        return sum(sum(_widths(basis.space, basis.ranks)) for _, basis in self._bases)

    def stream(self, columns: int, step: int) -> None:
        """Begin to write the columns of the only basis of this pack, by `append`, `step` rows at a time."""
        self._folder = files.stage(self._root)
        self._array = _create_columns(self._folder, self._rows, columns, step)
        self._step, self._written = step, 0

    def append(self, rows: NumpyArray) -> None:
        """Write the next rows of columns that are streamed."""
        assert self._folder is not None
        files.write_rows(self._array, self._folder / COLUMNS, self._written, rows)
        self._written += len(rows)

    def add(self, fingerprint: str, basis: Basis, columns: Array | None) -> None:
        """Add a basis and its real columns (n, all), or None if they were streamed."""
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
            array = _create_columns(folder, self._rows, self.columns, self._step)
            order = self._order()
            for start in range(0, self._rows, GRID):
                rows = np.concatenate([held[start : start + GRID] for held in self._held], axis=1)
                files.write_rows(array, folder / COLUMNS, start, rows if order is None else rows[:, order])
        chunks = _column_chunks(self._rows, self.columns, self._step)
        return _commit(folder, self._root, self._bases, self._rule, self._library, chunks=chunks)

    def _order(self) -> NumpyArray | None:
        """Return which of the columns, basis by basis, comes where in the pack; None if they stay as they are."""
        widths = [_widths(basis.space, basis.ranks) for _, basis in self._bases]
        if max(map(len, widths)) == 1:
            return None
        starts = np.cumsum([0, *(width for one in widths for width in one)])
        own: dict[tuple[int, int], int] = {}
        for position, one in enumerate(widths):
            for frequency in range(len(one)):
                own[position, frequency] = int(starts[len(own)])
        return np.concatenate(
            [np.arange(own[key], own[key] + place.stop - place.start) for key, place in _places(widths).items()]
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
        folder = files.stage(root)
        try:
            _create_columns(folder, rows, sum(widths), step)
            files.publish(folder, root / f"filling-{name}")
        finally:
            files.discard(folder)

    def write(self, start: int, rows: NumpyArray) -> None:
        """Write rows; `start` is a multiple of the step."""
        if self._array is None:
            self._array = files.open_array(self._folder / COLUMNS)
        files.write_rows(self._array, self._folder / COLUMNS, start, rows)

    def discard(self) -> None:
        """Remove what was written, if it was not committed."""
        folders.remove(self._folder)

    def commit(self, fingerprint: str, basis: Basis, rule: RankRule, step: int) -> list[Receipt]:
        """Add what belongs to the columns, `step` rows of which were written at once, seal and publish."""
        folders.remove(self._folder / "parts")  # of a task that was killed
        chunks = _column_chunks(basis.count, sum(_widths(basis.space, basis.ranks)), step)
        return _commit(self._folder, self._root, [(fingerprint, basis)], rule, library(), chunks=chunks)


def commit_joint(
    workspace: str,
    rule: RankRule,
    fingerprints: Sequence[str],
    bases: Sequence[Basis],
    pairs: Sequence[tuple[int, int]],
    cross: Sequence[Array],
) -> list[Receipt]:
    """Commit bases without columns, and the cross blocks of some pairs of them, by frequency and then by pair."""
    root = folders.at(workspace, "workspace")
    folder = files.stage(root)
    try:
        write_flat(folder / CROSS, cross, PARTS)
        return _commit(folder, root, list(zip(fingerprints, bases, strict=True)), rule, library(), pairs=pairs)
    finally:
        files.discard(folder)


def find_bases(workspace: str) -> dict[str, list[Receipt]]:
    """Return every committed basis of a workspace by its fingerprint."""
    found: dict[str, list[Receipt]] = {}
    root = folders.at(workspace, "workspace")
    for name in folders.names(root):
        if name.startswith("pack-"):
            about = read_attributes(root / name)
            if about is None or about.get("format") != FORMAT:
                continue
            record = read_record(root / name, PackRecord, about=about)
            for receipt in [] if record is None else _receipts(name, record["bases"]):
                found.setdefault(receipt.fingerprint, []).append(receipt)
    return found


def findings(root: Path) -> Iterator[tuple[str, str, str]]:
    """Read every pack of a workspace, a chunk at a time, and yield (pack, chunk, problem) for all that is wrong."""
    for name in folders.names(root):
        if name.startswith("pack-"):
            yield from findings_of_pack(root, name)


def findings_of_pack(root: Path, name: str) -> Iterator[tuple[str, str, str]]:
    """Read one pack of a workspace, a chunk at a time, and yield (pack, chunk, problem) for all that is wrong."""
    try:
        record = read_record(root / name, PackRecord)
    except DsvccaError as error:
        yield name, "zarr.json", str(error)
        return
    held = is_held(root / name)
    if record is None:
        yield name, "", f"has lost its record: {ONLY_ONES}" if held else "was never committed: remove it"
        return
    do = ONLY_ONES if held else f"remove '{root / name}', it is made again"
    for key, checksum in record["checksums"].items():
        if files.sound_tail(root / name / key) != checksum:
            yield name, key, f"is missing or not what was committed: {do}"


def hold(workspace: str, packs: Iterable[str]) -> None:
    """Mark packs whose bases are about to be all that is left of activations."""
    for name in packs:
        folder = folders.at(workspace, "workspace") / name
        if not is_held(folder):
            _mark(folder)


def _mark(pack: Path) -> None:
    files.write_json(pack / HELD, {"why": "activations of these bases were dropped: nothing makes them again"})


def ensure_workspace(workspace: str) -> None:
    """Make the workspace if it is not there; refuse a folder that is something else."""
    root = folders.at(workspace, "workspace")
    record = read_record(root, WorkspaceRecord)
    if record is None and files.is_free(root):
        with files.disk_errors(root):
            files.make_parents(root)
            folders.make(root)
            write_record(root, {"format": 1, "kind": "workspace", "id": token_hex(16)})  # as no other has
    if read_record(root, WorkspaceRecord) is None:  # another process may have made it meanwhile
        raise DsvccaError(f"workspace '{root}' is a folder of something else, or a file: choose another workspace=")


def _commit(
    folder: Path,
    root: Path,
    bases: Sequence[tuple[str, Basis]],
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
            "fingerprint": fingerprint,
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
        for fingerprint, basis in bases
    ]
    record = {
        "format": FORMAT,
        "kind": "pack",
        "rows": bases[0][1].count,
        "chunks": None if chunks is None else list(chunks),
        "library": made_by,
        "bases": about,
        "pairs": None if pairs is None else [list(pair) for pair in pairs],
        "checksums": files.seal(folder),
    }
    write_record(folder, record)
    name = "pack-" + hashlib.sha256(repr((FORMAT, about)).encode()).hexdigest()[:24]
    if not files.publish(folder, root / name) and read_record(root / name, PackRecord) is None:
        if is_held(root / name):
            _mark(folder)
        folders.remove(root / name)  # what is left of a pack is none
        files.publish(folder, root / name)
    # If it is there already, it is the same.
    return _receipts(name, about)


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
    return files.create_array(folder / COLUMNS, (rows, columns), height, "float32", ("row", "direction"), (width,))


def _receipts(name: str, bases: Sequence[BasisRecord]) -> list[Receipt]:
    return [
        Receipt(one["fingerprint"], BasisRef(name, place), RankRule(**one["rule"])) for place, one in enumerate(bases)
    ]


def _widths(space: Sequence[int], ranks: Iterable[int]) -> list[int]:
    """Return the real columns of each frequency: one for a real direction, two for a complex one."""
    weights = half_spectrum(tuple(space)).weights
    return [int(k) * int(w) for k, w in zip(ranks, weights, strict=True)]


def _places(widths: Sequence[Sequence[int]]) -> dict[tuple[int, int], slice]:
    """Return where (basis, frequency) stands in a pack: frequency by frequency, and within it basis by basis."""
    places = {}
    start = 0
    for frequency in range(max(map(len, widths))):
        for position, one in enumerate(widths):
            if frequency < len(one):
                places[position, frequency] = slice(start, start + one[frequency])
                start += one[frequency]
    return places


def _head_size(about: BasisRecord, n: int) -> int:
    """Return the numbers that stand before the blocks of a basis: spectrum, means, norms."""
    space, c = tuple(about["space"]), about["neurons"]
    return len(half_spectrum(space).weights) * c * (3 if space else 2) + c + n


def _block_starts(start: int, bases: Sequence[BasisRecord]) -> dict[tuple[int, int], int]:
    """Return where the block of (basis, frequency) begins in `parts`, in the order of columns; (-1, -1) is the end."""
    found = {}
    widths = [_widths(one["space"], one["ranks"]) for one in bases]
    for position, frequency in _places(widths):
        found[position, frequency] = start
        one = bases[position]
        start += widths[position][frequency] * (one["ranks"][frequency] + 1 + one["neurons"])
    return found | {(-1, -1): start}


def _write_parts(folder: Path, bases: Sequence[Basis]) -> None:
    """Write what belongs to bases but is no column, end to end, complex numbers as pairs."""
    parts = [part for b in bases for part in (b.singular_values, b.mean, b.neuron_norms, b.row_norms)]
    for position, frequency in _places([_widths(b.space, b.ranks) for b in bases]):
        block = bases[position].blocks[frequency]
        parts += [block.cholesky, block.column_sums, block.components]
    write_flat(folder, parts, PARTS)


class _Blocks(Sequence[Block]):
    """The blocks of a stored basis, read when they are used."""

    def __init__(self, pack: Pack, position: int, frequencies: int) -> None:
        self._pack, self._position, self._frequencies = pack, position, frequencies

    def __len__(self) -> int:
        return self._frequencies

    def __getitem__(self, frequency: Any) -> Any:
        return self._pack.block(self._position, frequency)
