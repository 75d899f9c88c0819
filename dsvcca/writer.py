"""Writing a representation: buffer whole chunks, seal them, publish in one step."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr

from dsvcca import files
from dsvcca.activations import ARRAY, FORMAT, IDS, KEY, Representation, read_attributes, read_ids, read_records
from dsvcca.arrays import NumpyArray, significand_bits, to_numpy
from dsvcca.errors import DsvccaError
from dsvcca.labels import check_same_types, checked_dims, checked_labels, describe, folder_name, to_datapoints_first

IF_EXISTS = ("error", "skip", "replace")


class Writer:
    """A representation in the making; made by `Store.writer`, used as a context."""

    def __init__(
        self,
        root: Path,
        datapoints: int,
        labels: Mapping[str, Any],
        dims: str | Sequence[str] | None,
        if_exists: str,
        known: dict[str, Representation],
    ) -> None:
        if if_exists not in IF_EXISTS:
            raise DsvccaError(f"if_exists={if_exists!r} is unknown: use {', '.join(map(repr, IF_EXISTS))}")
        self.labels = checked_labels(labels)
        self._root, self._datapoints, self._dims, self._if_exists = root, datapoints, dims, if_exists
        committed = read_records(root, known)
        check_same_types(self.labels, (r.labels for r in committed), f"the store '{root}'")
        there = [r for r in committed if r.labels == self.labels]
        if there and if_exists == "error":
            raise self._exists()
        self.skipped = bool(there) and if_exists == "skip"
        self._stored_dims: tuple[str, ...] = ()
        self._array: zarr.Array[Any] | None = None
        self._buffer: list[NumpyArray] = []
        self._rows = self._written = 0
        self._ids: list[NumpyArray] = []

    def __enter__(self) -> Writer:
        if not self.skipped:
            with files.disk_errors(self._root):
                self._folder = files.stage(self._root)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.skipped:
            return
        try:
            if kind is None:
                with files.disk_errors(self._root):
                    self._commit()
        finally:
            files.discard(self._folder)

    def append(self, batch: Any, *, datapoints: Any = None) -> None:
        """Add the activations of the next datapoints.

        Parameters
        ----------
        batch : (m, ..., c) array
            Axes as `dims` says; the same shape but for the number of datapoints each time.
        datapoints : (m,) ids, optional
            Of these rows; checked against the store's at the end.
        """
        if self.skipped:
            return
        values = to_numpy(batch) if hasattr(batch, "shape") else np.asarray(batch)
        significand_bits(values.dtype)
        dims = checked_dims(self._dims, values.shape, describe(self.labels))
        axes = to_datapoints_first(dims)
        values = values.transpose(axes)
        stored = tuple(dims[axis] for axis in axes)
        if self._array is not None and (values.shape[1:] != self._array.shape[1:] or values.dtype != self._array.dtype):
            raise DsvccaError(
                f"{describe(self.labels)}: a batch of {values.shape[1:]} {values.dtype} follows one of "
                f"{self._array.shape[1:]} {self._array.dtype}: all batches need one shape and type"
            )
        if 0 in values.shape[1:]:
            raise DsvccaError(f"{describe(self.labels)}: an axis of length 0 in {values.shape}: nothing to compare")
        if not np.isfinite(values).all():
            row = self._rows + int(np.argmax(~np.isfinite(values).reshape(len(values), -1).all(axis=1)))
            raise DsvccaError(
                f"{describe(self.labels)}: NaN or infinite numbers, the first at datapoint {row}: nothing was written"
            )
        if datapoints is not None:
            self._ids.append(plain_ids(datapoints))
            if len(self._ids[-1]) != len(values):
                raise DsvccaError(f"{len(self._ids[-1])} datapoint ids came with {len(values)} rows")
        self._rows += len(values)
        if self._rows > self._datapoints:
            raise self._wrong_count("at least ")
        with files.disk_errors(self._root):
            if self._array is None:
                shape = (self._datapoints, *values.shape[1:])
                rows = files.even_rows(self._datapoints, int(np.prod(shape[1:])) * values.dtype.itemsize)
                self._stored_dims = stored
                self._array = files.create_array(self._folder / ARRAY, shape, rows, values.dtype, stored)
            self._buffer.append(values)
            waiting = sum(map(len, self._buffer))
            whole = waiting - waiting % self._array.chunks[0]
            if whole or self._rows == self._datapoints:
                self._flush(self._array, waiting if self._rows == self._datapoints else whole)

    def _flush(self, array: zarr.Array[Any], rows: int) -> None:
        waiting = self._buffer[0] if len(self._buffer) == 1 else np.concatenate(self._buffer)
        array[self._written : self._written + rows] = waiting[:rows]
        self._written += rows
        self._buffer = [waiting[rows:].copy()] if rows < len(waiting) else []

    def _commit(self) -> None:
        if self._array is None or self._rows != self._datapoints:
            raise self._wrong_count("")
        ids = None
        if self._ids:
            every = np.concatenate(self._ids)
            if len(every) != self._datapoints:
                raise DsvccaError(f"datapoint ids for {len(every)} of {self._datapoints} rows: give all or none")
            ids = claim_ids(self._root, self._datapoints, every)
        inside = self._folder / ARRAY
        record = {
            "format": FORMAT,
            "kind": "representation",
            "labels": self.labels,
            "shape": list(self._array.shape),
            "dtype": str(self._array.dtype),
            "dims": list(self._stored_dims),
            "datapoints": ids,
            "content": files.digest(inside),
            "checksums": files.seal(inside),
            "written": time.time_ns(),
        }
        files.write_group(self._folder, **{KEY: record})
        self._publish()

    def _publish(self) -> None:
        stem = folder_name(self.labels)
        version = 1
        while True:
            target = self._root / (stem if version == 1 else f"{stem}@{version}")
            if not target.exists() and files.publish(self._folder, target):
                return
            other = read_attributes(target)
            if other is not None and other.get("labels") != self.labels:
                raise DsvccaError(
                    f"'{target}' holds {describe(other['labels'])}, which this file system cannot tell from "
                    f"{describe(self.labels)}: use labels that differ in more than case"
                )
            if self._if_exists == "error":
                raise self._exists()
            if self._if_exists == "skip":
                self.skipped = True
                return
            version += 1

    def _exists(self) -> DsvccaError:
        return DsvccaError(
            f"{describe(self.labels)} is in '{self._root}' already: pass if_exists='skip' to keep it, "
            "if_exists='replace' to write it anew"
        )

    def _wrong_count(self, prefix: str) -> DsvccaError:
        return DsvccaError(
            f"{describe(self.labels)} has {prefix}{self._rows} datapoints, the store '{self._root}' has "
            f"{self._datapoints}: write exactly those, in the same order; nothing was written"
        )


def plain_ids(ids: Any) -> NumpyArray:
    """Return datapoint ids as integers: integers as they are, strings as 64 bits of their BLAKE2b digest."""
    array = np.asarray(ids)
    if array.ndim != 1 or array.dtype.kind not in "iuUOT":
        raise DsvccaError(f"datapoint ids must be a sequence of integers or strings, found {array.dtype} {array.shape}")
    if array.dtype.kind in "iu":
        return array.astype(np.uint64)
    digests = [hashlib.blake2b(str(one).encode(), digest_size=8).digest() for one in array]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def claim_ids(root: Path, datapoints: int, ids: Any) -> str:
    """Make `ids` the datapoints of the store, or check that they are; return their digest."""
    plain = plain_ids(ids)
    if len(plain) != datapoints:
        raise DsvccaError(f"{len(plain)} datapoint ids were given, the store '{root}' has {datapoints} datapoints")
    digest = hashlib.sha256(plain.astype("<u8").tobytes()).hexdigest()
    if read_ids(root) is None:
        with files.disk_errors(root):
            folder = files.stage(root)
            array = files.create_array(folder, plain.shape, len(plain), "uint64", ("datapoint",))
            array[:] = plain
            array.update_attributes({KEY: {"kind": "datapoints", "digest": digest}})
            files.seal(folder)
            if not files.publish(folder, root / IDS):
                files.discard(folder)
    if read_ids(root) != digest:
        stored = np.asarray(zarr.open_array(str(root / IDS), mode="r")[:])
        row = int(np.argmax(stored != plain))
        raise DsvccaError(
            f"other datapoints than those of the store '{root}': {int((stored != plain).sum())} of {len(plain)} ids "
            f"differ, the first in row {row}; give the same datapoints in the same order, without shuffling or random "
            "transforms, or use another store"
        )
    return digest
