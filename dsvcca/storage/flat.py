"""Arrays of any shape end to end in one Zarr array of float64, complex numbers as pairs; read by stretches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path

import numpy as np

from dsvcca.maths.arrays import Array, NumpyArray, as_pairs, to_numpy
from dsvcca.storage import chunked


def write_flat(folder: Path, parts: Iterable[Array], chunk: int) -> None:
    """Write arrays end to end, in chunks of so many numbers."""
    flat = [as_pairs(np.ascontiguousarray(to_numpy(part))).ravel() for part in parts]
    size = sum(part.size for part in flat)
    chunk = min(chunk, max(size, 1))
    chunked.create_array(folder, (size,), chunk, "float64", ("value",))
    for place, stretch in enumerate(_stretches(flat, chunk)):
        short = chunk - stretch.size
        chunked.write_chunk(
            folder / f"c.{place}", np.pad(stretch, (0, short), constant_values=np.nan) if short else stretch
        )


class Flat:
    """Numbers as `write_flat` left them; every chunk is compared with its checksum when it is read.

    Parameters
    ----------
    folder : Path
    size, chunk : int
        Numbers in all, and in a chunk.
    checksums : mapping
        Of every chunk, by its path below the parent of `folder`.
    """

    def __init__(self, folder: Path, size: int, chunk: int, checksums: Mapping[str, str]) -> None:
        self._folder, self._size, self._chunk, self._checksums = folder, size, min(chunk, max(size, 1)), checksums
        self._last: tuple[int, NumpyArray] | None = None

    def values(self, wanted: slice) -> NumpyArray:
        """Return a stretch; the last chunk read is kept.

        Raises
        ------
        OSError, ValueError
            If a chunk is missing, or is not what was committed.
        """
        chunks = sum(key.startswith(f"{self._folder.name}/") for key in self._checksums)
        if wanted.stop > chunks * self._chunk:  # before memory is taken for it
            raise ValueError(f"{wanted.stop} numbers in {chunks} chunks of {self._chunk}")
        found = np.empty(wanted.stop - wanted.start)
        for chunk in range(wanted.start // self._chunk, -(-wanted.stop // self._chunk)):
            if self._last is None or self._last[0] != chunk:
                key = f"c.{chunk}"
                checksum = self._checksums.get(f"{self._folder.name}/{key}")
                self._last = chunk, chunked.read_chunk(self._folder / key, "float64", (self._chunk,), checksum)
            start = chunk * self._chunk
            part = self._last[1][max(0, wanted.start - start) : wanted.stop - start]
            begin = max(start - wanted.start, 0)
            found[begin : begin + part.size] = part
        return found


class Stretch:
    """Hands out a stretch of numbers array by array."""

    def __init__(self, values: NumpyArray) -> None:
        self._values, self._start = values, 0

    def take(self, *shape: int, pairs: bool = False) -> NumpyArray:
        """Return the next numbers in a shape; pairs of them as complex numbers."""
        size = prod(shape) * (2 if pairs else 1)
        part = self._values[self._start : self._start + size]
        self._start += size
        return (part.view(np.complex128) if pairs else part).reshape(shape)


def _stretches(parts: Iterable[NumpyArray], size: int) -> Iterator[NumpyArray]:
    """Yield parts joined end to end in stretches of `size`; only the last is shorter."""
    waiting: list[NumpyArray] = []
    room = size
    for part in parts:
        while part.size:
            waiting.append(part[:room])
            part, room = part[room:], room - waiting[-1].size
            if not room:
                yield np.concatenate(waiting)
                waiting, room = [], size
    if waiting:
        yield np.concatenate(waiting)
