"""Packs of a workspace: bases on disk, many in one array, found again by what they were made from.

    <store>.workspace/
      pack-<digest>/                 group; its zarr.json is the commit record, written last
        columns                      (n, all real columns) float32, the orthonormal columns U side by side: of all bases
                                   those of the first frequency, then those of the next; their rows mixed (maths/mixing)
        parts                        what else belongs to each basis (`dsvcca.maths.basis.Basis`), end to end, float64
        cross                        instead of columns: the cross blocks of the pairs that are compared
      filling-<name>/                a pack whose columns are being written by many tasks
      partial-<name>/                what is merged into packs, or explained (`dsvcca.workspace.partials`)

Packs are immutable and may be removed at any time: a plan that needs them makes them again. But not those with a file
kept.json: activations of theirs were dropped (`dsvcca.keep_bases`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any, Literal

import numpy as np

from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.basis import Basis, Block, RankRule
from dsvcca.maths.frequencies import half_spectrum
from dsvcca.maths.translations import OffBlock
from dsvcca.storage import chunked, folders
from dsvcca.storage.flat import Flat, Stretch
from dsvcca.storage.records import (
    ONLY_ONES,
    REPAIR,
    BasisRecord,
    PackRecord,
    damaged,
    is_held,
    read_record,
)

COLUMNS, CROSS = "columns", "cross"


FORMAT: Literal[3] = 3
"""Of packs; those of others count for nothing."""


PACK = 512
"""Columns of bases stored as one array, about: a pack is closed once it has them."""


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
        self._places = places_of([widths_of(one["space"], one["ranks"]) for one in self._about])
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
        widths = widths_of(one["space"], one["ranks"])
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
            return chunked.read_chunk(self._folder / key, dtype, shape, self._checksums.get(key))

    @contextmanager
    def _sound(self, key: str) -> Iterator[None]:
        """Turn what is wrong with a chunk into an error that says what to do."""
        do = ONLY_ONES if is_held(self._folder) else REPAIR["pack"].format(folder=self._folder)
        with chunked.as_committed(self._folder / key, do):
            yield

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


def receipts_of(name: str, bases: Sequence[BasisRecord]) -> list[Receipt]:
    return [
        Receipt(one["fingerprint"], BasisRef(name, place), RankRule(**one["rule"])) for place, one in enumerate(bases)
    ]


def widths_of(space: Sequence[int], ranks: Iterable[int]) -> list[int]:
    """Return the real columns of each frequency: one for a real direction, two for a complex one."""
    weights = half_spectrum(tuple(space)).weights
    return [int(k) * int(w) for k, w in zip(ranks, weights, strict=True)]


def places_of(widths: Sequence[Sequence[int]]) -> dict[tuple[int, int], slice]:
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
    widths = [widths_of(one["space"], one["ranks"]) for one in bases]
    for position, frequency in places_of(widths):
        found[position, frequency] = start
        one = bases[position]
        start += widths[position][frequency] * (one["ranks"][frequency] + 1 + one["neurons"])
    return found | {(-1, -1): start}


class _Blocks(Sequence[Block]):
    """The blocks of a stored basis, read when they are used."""

    def __init__(self, pack: Pack, position: int, frequencies: int) -> None:
        self._pack, self._position, self._frequencies = pack, position, frequencies

    def __len__(self) -> int:
        return self._frequencies

    def __getitem__(self, frequency: Any) -> Any:
        return self._pack.block(self._position, frequency)
