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

from dsvcca.activations.labels import (
    check_same_types,
    checked_dims,
    checked_labels,
    describe,
    folder_name,
    to_datapoints_first,
)
from dsvcca.activations.representations import (
    ARRAY,
    IDS,
    MASK,
    VALID,
    Representation,
    find_mask,
    look,
    read_ids,
    version_of,
)
from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray, significand_bits, to_numpy
from dsvcca.storage import chunked, files, folders, staging
from dsvcca.storage.records import KEY, IdsRecord, MaskRecord, StoreRecord, read_attributes, read_record, write_record

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
        check_if_exists(if_exists)
        self.labels = checked_labels(labels)
        self._root, self._datapoints, self._dims, self._if_exists = root, datapoints, dims, if_exists
        names, _ = look(root, known)
        check_same_types(self.labels, (known[name].labels for name in names), f"the store '{root}'")
        stem = folder_name(self.labels)
        own = [name for name in names if name.startswith(stem) and version_of(name)[0] == stem]
        there = [known[name] for name in sorted(own, key=version_of) if known[name].labels == self.labels][-1:]
        if there and if_exists == "error":
            raise self._exists()
        self.skipped = bool(there) and if_exists == "skip"
        self._first_written = there[0].written if there else None
        self._stored_dims: tuple[str, ...] = ()
        self._written_as = ""
        self._array: zarr.Array[Any] | None = None
        self._buffer: list[NumpyArray] = []
        self._rows = self._written = 0
        self._folder: Path = root  # set when the context begins
        self._ids: list[NumpyArray] = []
        self._known_ids: tuple[NumpyArray, str] | None = None
        self.id_kind = "given"

    def __enter__(self) -> Writer:
        if not self.skipped:
            with files.disk_errors(self._root):
                self._folder = staging.stage(self._root)
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
            staging.discard(self._folder)

    def append(self, batch: Any, *, datapoints: Any = None) -> None:
        """Add the activations of the next datapoints.

        Parameters
        ----------
        batch : (m, ..., c) array
            Axes as `dims` says; the same shape but for the number of datapoints each time.
        datapoints : (m,) ids, optional
            Of these rows; compared with the store's, if it has some.
        """
        if self.skipped:
            return
        if self._folder == self._root:
            raise DsvccaError("append() outside its context: write 'with store.writer(...) as w: w.append(batch)'")
        if isinstance(batch, np.ma.MaskedArray):
            raise DsvccaError(f"{describe(self.labels)}: a masked array: write the rows of which every number is there")
        written_as = str(getattr(batch, "dtype", "")).rsplit(".", 1)[-1]
        values = to_numpy(batch) if hasattr(batch, "shape") else np.asarray(batch)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        significand_bits(values.dtype)
        dims = checked_dims(self._dims, values.shape, describe(self.labels))
        axes = to_datapoints_first(dims)
        values = values.transpose(axes)
        stored = tuple(dims[axis] for axis in axes)
        written_as = written_as if written_as == "bfloat16" else ""  # the one that is stored as another
        if self._array is not None and (
            values.shape[1:] != self._array.shape[1:]
            or values.dtype != self._array.dtype
            or written_as != self._written_as
        ):
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
            ids = plain_ids(datapoints)
            if len(ids) != len(values):
                raise DsvccaError(f"{len(ids)} datapoint ids came with {len(values)} rows")
            if not self._ids:
                self._known_ids = stored_ids(self._root)
            if self._known_ids is not None and self._rows + len(ids) <= self._datapoints:
                check_same_ids(self._root, self._known_ids, ids, self._rows, self.id_kind)
            self._ids.append(ids)
        self._rows += len(values)
        if self._rows > self._datapoints:
            raise self._wrong_count("at least ")
        with files.disk_errors(self._root):
            if self._array is None:
                shape = (self._datapoints, *values.shape[1:])
                rows = chunked.even_rows(self._datapoints, int(np.prod(shape[1:])) * values.dtype.itemsize)
                self._stored_dims, self._written_as = stored, written_as
                self._array = chunked.create_array(self._folder / ARRAY, shape, rows, values.dtype, stored)
            self._buffer.append(values)
            waiting = sum(map(len, self._buffer))
            whole = waiting - waiting % self._array.chunks[0]
            if whole or self._rows == self._datapoints:
                self._flush(self._array, waiting if self._rows == self._datapoints else whole)
            else:
                self._buffer[-1] = values.copy()  # the caller may use its array again

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
            ids = claim_ids(self._root, self._datapoints, every, self.id_kind)
        inside = self._folder / ARRAY
        content, checksums = files.digest(inside), chunked.seal(inside)
        chunks = -(-self._array.shape[0] // self._array.chunks[0])
        if len(checksums) != chunks or not folders.exists(inside / "zarr.json"):
            raise DsvccaError(
                f"of {chunks} chunks of {describe(self.labels)} {len(checksums)} are left in '{self._folder}': is "
                f"something cleaning '{self._root}'? Nothing was written: write it again"
            )
        record = {
            "format": 1,
            "kind": "representation",
            "labels": self.labels,
            "shape": list(self._array.shape),
            "dtype": str(self._array.dtype),
            **({"written_as": self._written_as} if self._written_as else {}),
            "dims": list(self._stored_dims),
            "datapoints": ids,
            "content": content,
            "checksums": checksums,
            "written": self._first_written or time.time_ns(),
        }
        write_record(self._folder, record)
        self._publish()

    def _publish(self) -> None:
        stem = folder_name(self.labels)
        version = 1
        if self._if_exists == "replace":
            there = [version for own, version in map(version_of, folders.names(self._root)) if own == stem]
            version = max(there, default=0) + 1
        while True:
            target = self._root / (stem if version == 1 else f"{stem}@{version}")
            if not folders.exists(target) and staging.publish(self._folder, target):
                return
            other = read_attributes(target)
            if other is None:  # a folder without a record is nothing
                version += 1
                continue
            if other.get("labels") != self.labels:
                raise DsvccaError(
                    f"'{target}' holds {describe(other.get('labels', {}))}, which this file system cannot tell from "
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
            f"{self._datapoints}: write exactly those, in the same order (with a DataLoader, drop_last=False); nothing "
            "was written"
        )


def check_if_exists(if_exists: str) -> None:
    """Raise if that is nothing that can be done about what is there already."""
    if if_exists not in IF_EXISTS:
        raise DsvccaError(f"if_exists={if_exists!r} is unknown: use {', '.join(map(repr, IF_EXISTS))}")


def plain_ids(ids: Any) -> NumpyArray:
    """Return datapoint ids as integers: integers as they are, strings as 64 bits of their BLAKE2b digest."""
    array = np.asarray(ids)
    if array.ndim != 1 or array.dtype.kind not in "iuUOT":
        raise DsvccaError(f"datapoint ids must be a sequence of integers or strings, found {array.dtype} {array.shape}")
    if array.dtype.kind in "iu":
        return array.astype(np.uint64)
    try:
        digests = [hashlib.blake2b(str(one).encode(), digest_size=8).digest() for one in array]
    except UnicodeEncodeError as error:
        raise DsvccaError(f"a datapoint id holds what no text can ({error}): give other ids") from error
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def claim_ids(root: Path, datapoints: int, ids: Any, kind: str = "given") -> str:
    """Make `ids` the datapoints of the store, or check that they are; return their digest.

    `kind` says what they are: "given" by the user, or made from the "inputs" of a model.
    """
    plain = plain_ids(ids)
    if len(plain) != datapoints:
        raise DsvccaError(f"{len(plain)} datapoint ids were given, the store '{root}' has {datapoints} datapoints")
    digest = _digest(plain)
    if read_ids(root) is None:
        with files.disk_errors(root):
            folder = staging.stage(root)
            try:
                array = chunked.create_array(folder, plain.shape, len(plain), "uint64", ("datapoint",))
                array[:] = plain
                array.update_attributes({KEY: {"kind": "datapoints", "of": kind, "ids": digest}})
                chunked.seal(folder)
                staging.publish(folder, root / IDS)
            finally:
                staging.discard(folder)
    known = stored_ids(root)
    if known is None:
        raise DsvccaError(f"the datapoint ids of the store '{root}' are gone: restore '{root / IDS}'")
    check_same_ids(root, known, plain, 0, kind)
    return digest


def stored_ids(root: Path) -> tuple[NumpyArray, str] | None:
    """Return the datapoint ids of a store, and what they were made of; None where only their number is known."""
    record = read_record(root / IDS, IdsRecord)
    if record is None:
        return None
    try:
        ids = np.asarray(zarr.open_array(chunked.zarr_store(root / IDS), mode="r")[:])
    except Exception as error:
        raise DsvccaError(f"the datapoint ids '{root / IDS}' cannot be read ({error}): restore them") from error
    if ids.dtype != np.uint64 or ids.ndim != 1 or _digest(ids) != record["ids"]:
        raise DsvccaError(f"the datapoint ids '{root / IDS}' are not those that were written: restore them")
    return ids, record["of"]


def plain_mask(valid: Any, datapoints: int) -> NumpyArray:
    """Return which positions are tokens as (datapoint, position) uint8, once it is known that it says that."""
    values = to_numpy(valid) if hasattr(valid, "shape") else np.asarray(valid)
    if values.ndim != 2 or len(values) != datapoints:
        raise DsvccaError(
            f"a mask of shape {values.shape}, the store has {datapoints} datapoints: give (datapoint, position)"
        )
    if not np.isin(values, (0, 1)).all():
        raise DsvccaError("a mask holds true (a token) and false (padding), this one holds other numbers")
    if not values.any():
        raise DsvccaError("the mask leaves no token: true is a token, false is padding")
    return values.astype(np.uint8)


def commit_mask(root: Path, valid: NumpyArray) -> None:
    """Commit the mask (datapoint, position) uint8 of a store; nothing to do where the same is there already."""
    digest = hashlib.sha256(repr(valid.shape).encode() + valid.tobytes()).hexdigest()
    with files.disk_errors(root):
        folder = staging.stage(root)
        try:
            array = chunked.create_array(folder / VALID, valid.shape, len(valid), "uint8", ("datapoint", "position"))
            array[:] = valid
            record = {
                "format": 1,
                "kind": "mask",
                "shape": list(valid.shape),
                "rows": int(valid.sum()),
                "mask": digest,
                "checksums": chunked.seal(folder),
            }
            write_record(folder, record)
            staging.publish(folder, root / MASK)
        finally:
            staging.discard(folder)
        there = read_record(root / MASK, MaskRecord)
        if there is None or there["mask"] != digest:
            raise DsvccaError(
                f"the store '{root}' has another mask already, and what was compared by it would change: use another "
                "store"
            )
        store = read_record(root, StoreRecord)
        if store is not None and "mask" not in store:
            write_record(root, {**store, "mask": digest})
    find_mask(root)


def _digest(ids: NumpyArray) -> str:
    return hashlib.sha256(ids.astype("<u8").tobytes()).hexdigest()


def check_same_ids(root: Path, known: tuple[NumpyArray, str], ids: NumpyArray, start: int, kind: str) -> None:
    """Raise unless `ids` are those of the rows from `start` on."""
    stored, of = known
    if of != kind:
        raise DsvccaError(
            f"the datapoints of the store '{root}' are known by ids that were {_MADE[of]}, these are {_MADE[kind]}: "
            "to capture from a model, create the store with the number of datapoints"
        )
    different = np.flatnonzero(stored[start : start + len(ids)] != ids)
    if different.size:
        raise DsvccaError(
            f"other datapoints than those of the store '{root}': {different.size} of {len(ids)} ids differ (rows "
            f"{start} to {start + len(ids) - 1}), the first in row {start + int(different[0])}; give the same "
            "datapoints in the same order, without shuffling or random transforms, or use another store"
        )


_MADE = {"given": "given by the user", "inputs": "made from the inputs of a model"}
