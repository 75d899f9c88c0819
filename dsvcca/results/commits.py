"""What tasks commit to results: a tile and its mirror, or what a panel explains; chunks first, then their marker.

A marker names the chunks and their checksums, and of whom the numbers are. What no marker names does not count.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsvcca.errors import RunError
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.measures import MEASURES, exchanged_name
from dsvcca.results.dataset import BETWEEN, FLOOR, LABELS_CHUNK, R2, RANKS, inner_dims, stored_dims
from dsvcca.storage import chunked, files, folders, records

COMMITS, BETWEEN_MARKER = "commits", "between"

MIRRORED = {name: other for name in (*MEASURES, *RANKS) if (other := exchanged_name(name)) != name}
"""Variables that exchange when x and y do."""


@dataclass(frozen=True)
class Sheet:
    """Where a tile of results is kept, or a panel of them, and of whom its numbers are: all that a task has to know.

    Attributes
    ----------
    out : str
    places : (int,) or (int, int)
        The panel, or the tile: its two panels.
    panel : int
        Places in a panel.
    count : int
        Places in all.
    listed : tuple of str
        Which dimensions arrays have of what was given as a list: "variance", "ridge".
    variables : tuple of str
    version : str
        Of what the tile will be committed.
    digests : bytes
        Who stands in the places of the panels, 8 bytes each.
    keep : bytes
        Which numbers of the version before stay, bits (panel,) or (panel, panel), compressed; empty where none do.
    doubt : float
        By how much PWCCA of those that stay may be off.
    """

    out: str
    places: tuple[int, ...]
    panel: int
    count: int
    listed: tuple[str, ...]
    variables: tuple[str, ...]
    version: str
    digests: bytes
    keep: bytes = b""
    doubt: float = 0.0

    @property
    def name(self) -> str:
        """What its commit marker is called."""
        return "-".join(map(str, self.places)) if len(self.places) == 2 else f"targets-{self.places[0]}"

    @property
    def keys(self) -> list[str]:
        """Its chunks, with those of its mirror."""
        if len(self.places) == 1:
            return panel_keys(self.places[0], self.listed)
        return tile_keys(self.places, self.variables, self.listed)

    @property
    def shape(self) -> tuple[int, ...]:
        """Places that are there, of each panel."""
        return tuple(min(self.panel, self.count - place * self.panel) for place in self.places)

    def side(self, which: int) -> slice:
        """Return the places of one panel, among all."""
        start = self.places[which] * self.panel
        return slice(start, start + self.shape[which])

    @property
    def kept(self) -> NumpyArray | None:
        """Which numbers stay, bool of `shape`; None where none do."""
        return unpacked(self.keep, self.shape) if self.keep else None


def read_tile(sheet: Sheet) -> dict[str, NumpyArray]:
    """Return the numbers of the version before, as `write_tile` takes them: with what exchanges in the mirror."""
    found = {}
    for name in sheet.variables:
        array = chunked.open_array(folders.at(sheet.out, "results") / name)
        blocks = {name: np.asarray(array[sheet.side(0), sheet.side(1)])}
        if MIRRORED.get(name, name) not in sheet.variables:
            blocks[MIRRORED[name]] = np.asarray(array[sheet.side(1), sheet.side(0)]).swapaxes(0, 1)
        for one, block in blocks.items():
            found[one] = block[_trailing(sheet, name, np.newaxis)]
    return found


def _trailing(sheet: Sheet, name: str, absent: int | None) -> tuple[Any, ...]:
    """Return an index of the dimensions after x and y as tasks have them, `absent` where results do not."""
    there = stored_dims(name, sheet.listed)
    return (..., *(slice(None) if dim in there else absent for dim in inner_dims(name)))


def write_tile(sheet: Sheet, values: Mapping[str, NumpyArray], doubt: float) -> None:
    """Write one tile and its mirror, and then the marker that makes them count.

    Parameters
    ----------
    values : mapping
        Each variable (rows, columns, variances), `view` (rows, columns, 1), by frequency or ridge (rows, columns,
        frequencies or ridges, variances); the mirror of `pwcca_x` is `pwcca_y`, of `rank_x` `rank_y`, of the others
        themselves.
    doubt : float
        By how much PWCCA of one of them may be off, but for those that stay.
    """
    root = folders.at(sheet.out, "results")
    for name in sheet.variables:
        block, array = values[name], chunked.open_array(root / name)
        mirror = values[MIRRORED.get(name, name)].swapaxes(0, 1)
        rows, columns = sheet.side(0), sheet.side(1)
        targets = ((block, (rows, columns)), (mirror, (columns, rows)))
        for target, where in targets[: len(set(sheet.places))]:  # a tile on the diagonal is its own mirror
            array[where] = target[_trailing(sheet, name, 0)]
    _commit(root, sheet, max(doubt, sheet.doubt))


def read_targets(sheet: Sheet) -> dict[str, NumpyArray]:
    """Return what the version before says of targets, as `write_targets` takes it."""
    root = folders.at(sheet.out, "results")
    found = {name: np.asarray(chunked.open_array(root / name)[sheet.side(0)]) for name in sheet.variables}
    return {name: block if "variance" in sheet.listed else block[..., None] for name, block in found.items()}


def write_targets(sheet: Sheet, values: Mapping[str, NumpyArray]) -> None:
    """Write what one panel explains of the targets, and then the marker that makes it count.

    Parameters
    ----------
    values : mapping
        `r2_target` (rows, targets, variances) and `r2_target_floor` (rows, variances).
    """
    for name in sheet.variables:
        chunked.open_array(folders.at(sheet.out, "results") / name)[sheet.side(0)] = (
            values[name] if "variance" in sheet.listed else values[name][..., 0]
        )
    _commit(folders.at(sheet.out, "results"), sheet)


def write_off_block(root: Path, values: NumpyArray) -> None:
    """Write `off_block` and `off_block_floor` (places, 2); NaN where there is none."""
    keys = between_keys(len(values))
    version = hashlib.sha256(values.tobytes()).hexdigest()[:24]
    there = read_marker(root, BETWEEN_MARKER, keys, tail_of=chunked.sound_tail)
    if there is None or there["version"] != version:
        for name, column in zip(BETWEEN, values.T, strict=True):
            chunked.open_array(root / name)[:] = column
        _commit_chunks(
            root, BETWEEN_MARKER, keys, {"version": version, "rows": len(values), "digests": "", "doubt": 0.0}
        )


def packed(mask: NumpyArray) -> bytes:
    """Return bits, compressed: what `unpacked` takes."""
    return zlib.compress(np.packbits(mask).tobytes())


def unpacked(bits: bytes, shape: tuple[int, ...]) -> NumpyArray:
    """Return a bool array of some shape from `packed` bits."""
    flat = np.unpackbits(np.frombuffer(zlib.decompress(bits), np.uint8), count=int(np.prod(shape)))
    return flat.astype(bool).reshape(shape)


def between_keys(count: int) -> list[str]:
    """Return the chunks of what lies between the frequencies of so many places."""
    return [f"{name}/c.{i}" for name in BETWEEN for i in range(-(-count // LABELS_CHUNK))]


def panel_keys(place: int, listed: Collection[str]) -> list[str]:
    """Return the chunks of what one panel explains of the targets."""
    end = ".0" if "variance" in listed else ""
    return [f"{R2}/c.{place}.0{end}", f"{FLOOR}/c.{place}{end}"]


def tile_keys(places: tuple[int, ...], variables: Sequence[str], listed: Collection[str]) -> list[str]:
    """Return the chunks of a tile and its mirror."""
    ends = {name: ".0" * len(stored_dims(name, listed)) for name in variables}
    both = dict.fromkeys((places, places[::-1]))
    return [f"{name}/c.{i}.{j}{end}" for name, end in ends.items() for i, j in both]


def _commit(root: Path, sheet: Sheet, doubt: float = 0.0) -> None:
    about = {"version": sheet.version, "rows": sheet.shape[0], "digests": sheet.digests.hex(), "doubt": doubt}
    _commit_chunks(root, sheet.name, sheet.keys, about)


def _commit_chunks(root: Path, name: str, keys: Sequence[str], about: Mapping[str, Any]) -> None:
    """Bring chunks to the disk, and then the marker that makes them count."""
    for key in keys:
        folders.sync(root / key)
    for folder in dict.fromkeys((root / key).parent for key in keys):
        folders.sync_folder(folder)
    chunks = {key: chunked.chunk_tail(root / key) for key in keys}
    files.write_json(root / COMMITS / f"{name}.json", records.signed({**about, "chunks": chunks}))


def is_committed(sheet: Sheet) -> bool:
    """Return whether this very version of a tile, or of a panel, is there and sound."""
    root = folders.at(sheet.out, "results")
    marker = read_marker(root, sheet.name, sheet.keys, tail_of=chunked.sound_tail)
    return marker is not None and marker["version"] == sheet.version


def read_marker(
    root: Path,
    name: str,
    keys: Sequence[str] | None = None,
    *,
    tail_of: Callable[[Path], str | None] = chunked.chunk_tail,
) -> records.Marker | None:
    """Return a commit marker if it is there and every chunk is the one it names; else None.

    Of chunks the checksums at their ends are read; `chunked.sound_tail` reads everything.
    """
    try:
        marker = files.read_json(root / COMMITS / f"{name}.json")
        marker = records.checked(records.Marker, marker)
    except RunError:
        raise
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    chunks = marker["chunks"]
    if marker.get("digest") != records.record_digest(marker) or (keys is not None and set(chunks) != set(keys)):
        return None
    return marker if all(tail_of(root / key) == tail for key, tail in chunks.items()) else None
