"""What a store holds: representations, each by its commit record, and the mask of its sequences.

    <store>/seed=0,step=100,layer=conv1/      group; its zarr.json is the commit record, written last
      activations/                            array (datapoint, ..., channel), chunked along datapoints

A representation exists once its record does. Nothing is ever changed in place: replacing writes a new version beside
the old one (``...@2``) and the newest counts. One whose record says what is `kept` has no activations any more, but
bases (`dsvcca.activations.kept`). They are read by `dsvcca.activations.pieces`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np

from dsvcca.activations.labels import Labels, checked_dims, checked_labels, describe, folder_name, to_datapoints_first
from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray, significand_bits
from dsvcca.maths.basis import RankRule, holds
from dsvcca.progress import waiting
from dsvcca.storage import chunked, folders, records
from dsvcca.storage.records import IdsRecord, MaskRecord, RepresentationRecord, StoreRecord

ARRAY = "activations"
IDS = "datapoints"
MASK, VALID = "mask", "valid"
RESTORE = "restore it, or write it again with if_exists='replace' ('skip' keeps what is damaged)"
"""What to do about files of a representation that are damaged or gone."""


@dataclass(frozen=True)
class Mask:
    """Which positions of the sequences of a store are tokens, and not padding.

    Attributes
    ----------
    path : str
        Folder of its record.
    shape : (int, int)
        Datapoints and positions.
    rows : int
        Tokens in all.
    digest : str
        Changes whenever the mask does.
    """

    path: str
    shape: tuple[int, int]
    rows: int
    digest: str


@dataclass(frozen=True)
class KeptBasis:
    """One basis that is left of a representation.

    Attributes
    ----------
    fingerprint : str
        What it was made from: plans find it by that.
    view, center, route : str
        As a plan says them; the view of one position is "each_position".
    numerics : int
        Of the version that made it; other versions do not take it.
    rule : RankRule
        Which directions it holds.
    rank : int
        How many.
    nbytes : int
        Of its columns, and of what belongs to them.
    """

    fingerprint: str
    view: str
    center: str
    route: str
    numerics: int
    rule: RankRule
    rank: int
    nbytes: int

    def serves(self, rule: RankRule) -> bool:
        """Return whether it holds every direction that a rule keeps."""
        return holds(self.rule, rule, self.route)

    def __str__(self) -> str:
        center = f", center={self.center!r}" if self.center != "all" else ""
        route = f", route={self.route!r}" if self.route != "covariance" else ""
        return f"view {self.view!r} with {self.rule}{center}{route}"


@dataclass(frozen=True)
class Kept:
    """What is left of a representation whose activations were dropped: bases, and where they were left.

    `workspace` is said to people, and never opened.
    """

    workspace: str
    bases: tuple[KeptBasis, ...]

    @property
    def views(self) -> list[str]:
        """The views there are bases of."""
        return sorted({one.view for one in self.bases})

    def __str__(self) -> str:
        return "; ".join(dict.fromkeys(map(str, self.bases)))


@dataclass(frozen=True)
class Representation:
    """One layer of one model at one step, as stored; or one position of its sequences.

    Attributes
    ----------
    name : str
        Where it lies in the store.
    labels : dict
        What tells it apart.
    shape, dtype, dims
        Of the array as stored; `dims` names its axes.
    fingerprint : str
        Changes whenever the stored numbers do.
    ids : str or None
        Digest of the datapoint ids it was written with; None where only their number is known.
    array : str
        Path of the Zarr array.
    written : int
        When its labels were first committed, ns since 1970: order of arrival, which a replacement keeps. Negative for
        arrays that others wrote.
    unit : int
        Bytes of the least that can be read of an array that others wrote: one run of its chunks.
    written_as : str
        Type of the numbers when they were written, where it is another: bfloat16, which Zarr has not.
    guarded : bool
        Whether a changed byte would be noticed: by our checksums, or by a codec of those that others wrote.
    mask : Mask or None
        Of sequences: which positions are tokens; None if all are.
    position : int or None
        The one position that this is, of sequences; None for all of them.
    kept : Kept or None
        What is left where activations were dropped; None where they are there.
    """

    name: str
    labels: Labels
    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]
    fingerprint: str
    ids: str | None
    array: str
    written: int
    unit: int = 0
    written_as: str = ""
    guarded: bool = True
    mask: Mask | None = None
    position: int | None = None
    kept: Kept | None = None

    @property
    def bits(self) -> int | None:
        """Significand bits that the numbers carry; None for integers."""
        return significand_bits(self.written_as or self.dtype)

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Shape of the array as (datapoint, *space, column)."""
        return tuple(self.shape[axis] for axis in to_datapoints_first(self.dims))

    @property
    def logical_shape(self) -> tuple[int, ...]:
        """Shape as (datapoint, *space, column); (datapoint, column) of one position."""
        whole = self.whole_shape
        return whole if self.position is None else (whole[0], whole[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers, uncompressed."""
        return prod(self.logical_shape) * np.dtype(self.dtype).itemsize

    @property
    def nbytes_now(self) -> int:
        """Bytes of what is there of it: the numbers, or the bases that are left."""
        return self.nbytes if self.kept is None else sum(one.nbytes for one in self.kept.bases)

    @property
    def space(self) -> tuple[str, ...]:
        """Names of the axes between datapoints and columns, in the order in which they are read."""
        return tuple(self.dims[axis] for axis in to_datapoints_first(self.dims)[1:-1])

    @property
    def is_sequence(self) -> bool:
        """Whether positions lie between datapoints and neurons."""
        return self.position is None and "position" in self.dims

    @property
    def identity(self) -> str:
        """What is read of it: the stored numbers, which positions, which of them are tokens."""
        return f"{self.fingerprint} {self.position} {self.mask.digest if self.mask else None}"

    def at(self, position: int) -> Representation:
        """Return one position of the sequences as a representation of its own."""
        return replace(
            self,
            labels=checked_labels({**self.labels, "position": position}),
            mask=None,
            position=position,
        )

    def __str__(self) -> str:
        return describe(self.labels)


def read_record(folder: Path) -> tuple[Representation, dict[str, str]] | None:
    """Return what the commit record in `folder` says, and the checksum of each chunk; None if there is none."""
    about = records.read_attributes(folder)
    if about is None or about.get("kind") != "representation":
        return None
    record = records.read_record(folder, RepresentationRecord, about=about)
    assert record is not None
    try:
        _check_sense(record, folder.name)
    except (TypeError, ValueError) as error:
        raise records.damaged(folder, "representation", error) from error
    content = {key: about[key] for key in ("shape", "dtype", "dims", "content", "written_as") if key in about}
    return (
        Representation(
            name=folder.name,
            labels=record["labels"],
            shape=tuple(record["shape"]),
            dtype=record["dtype"],
            dims=tuple(record["dims"]),
            fingerprint=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
            ids=record["datapoints"],
            array=str(folder / ARRAY),
            written=record["written"],
            written_as=record.get("written_as", ""),
            kept=_kept(record["kept"]) if "kept" in record else None,
        ),
        record["checksums"],
    )


def _kept(record: records.KeptRecord) -> Kept:
    """Return what a record says is left.

    Raises
    ------
    DsvccaError
        If a rank rule of it cannot be.
    """
    bases = (KeptBasis(**cast(Any, {**one, "rule": RankRule(**one["rule"])})) for one in record["bases"])
    return Kept(record["workspace"], tuple(bases))


def _check_sense(record: RepresentationRecord, name: str) -> None:
    """Raise if a record contradicts itself, or lies in the folder of another representation."""
    own = folder_name(record["labels"])
    if name != own and not re.fullmatch(re.escape(own) + r"@\d+", name):
        raise ValueError(f"it belongs in a folder {own!r}")
    if checked_labels(record["labels"]) != record["labels"]:
        raise ValueError("its labels are not as they are written")
    checked_dims(tuple(record["dims"]), record["shape"], "the array")
    significand_bits(np.dtype(record["dtype"]))
    end = ".0" * (len(record["shape"]) - 1)
    if set(record["checksums"]) != {f"c.{i}{end}" for i in range(len(record["checksums"]))}:
        raise ValueError("its chunks are not cut along datapoints")


@waiting("look what is in the store")
def read_records(
    root: Path, known: dict[str, Representation], damaged: list[tuple[str, str]] | None = None
) -> list[Representation]:
    """Return the newest version of every committed representation, in order of arrival; parameters as for `look`."""
    newest: dict[str, tuple[int, str]] = {}
    there, bare = look(root, known, damaged)
    for name in there:
        stem, version = version_of(name)
        newest[stem] = max(newest.get(stem, (0, "")), (version, name))
    for name in bare:
        stem, version = version_of(name)
        if version > newest.get(stem, (version, ""))[0]:  # or an older one would count again
            problem = (
                f"'{root / name}' has lost its record, and what it replaced would count again: restore it, or remove "
                "that folder if you want what was there before"
            )
            if damaged is None:
                raise DsvccaError(problem)
            damaged.append((name, problem))
    return sorted((known[name] for _, name in newest.values()), key=lambda r: (r.written, r.name))


def look(
    root: Path, known: dict[str, Representation], damaged: list[tuple[str, str]] | None = None
) -> tuple[set[str], set[str]]:
    """Read the records of a store that are new; return the names of all that are there, and of folders without one.

    At a URL, where a record comes last, the latter may be some that are being written: they are passed over.

    Parameters
    ----------
    known : dict
        What was read before, which is added to: records never change once they are there.
    damaged : list, optional
        Takes (name, problem) of records that cannot be read, which are errors otherwise.
    """
    names = {name for name in folders.subfolders(root) if not name.startswith(".")} - {IDS, MASK}
    bare: set[str] = set()
    for name in sorted(names.difference(known)):
        try:
            record = read_record(root / name)
        except DsvccaError as error:
            if damaged is None:
                raise
            damaged.append((name, str(error)))
            continue
        if record is not None:
            known[name] = record[0]
        elif not folders.is_remote(root):
            bare.add(name)
    return names.intersection(known), bare


def version_of(name: str) -> tuple[str, int]:
    """Return the folder name of a representation without its version, and the version."""
    stem, at, version = name.rpartition("@")
    is_one = at and version.isascii() and version.isdecimal() and version == str(int(version)) and int(version) > 1
    return (stem, int(version)) if is_one else (name, 1)


def next_version(name: str) -> str:
    """Return the folder name of the version that follows one.

    >>> next_version("layer=a"), next_version("layer=a@2")
    ('layer=a@2', 'layer=a@3')
    """
    stem, version = version_of(name)
    return f"{stem}@{version + 1}"


def read_ids(root: Path) -> str | None:
    """Return the digest of the datapoint ids of a store; None where only their number is known."""
    record = records.read_record(root / IDS, IdsRecord)
    return None if record is None else record["ids"]


def noted_mask(root: Path) -> str | None:
    """Return the digest of the mask that a store has noted, whether it is still there or not; None if it has none."""
    store = records.read_record(root, StoreRecord)
    return None if store is None else store.get("mask")


def find_mask(root: Path) -> Mask | None:
    """Return the mask of a store; None if it has none.

    Raises
    ------
    DsvccaError
        If it is not the one that the store has noted: numbers over tokens would be others.
    """
    record = records.read_record(root / MASK, MaskRecord)
    noted = noted_mask(root)
    if noted is not None and (record is None or record["mask"] != noted):
        there = "is gone" if record is None else "is another than the one that was written"
        raise DsvccaError(f"the mask '{root / MASK}' {there}: restore it, or write that mask again")
    if record is None:
        return None
    return Mask(str(root / MASK), (record["shape"][0], record["shape"][1]), record["rows"], record["mask"])


def read_mask(mask: Mask) -> NumpyArray:
    """Return which positions are tokens, (datapoint, position) bool."""
    folder = folders.at(mask.path, "mask")
    record = records.read_record(folder, MaskRecord)
    if record is None or record["mask"] != mask.digest:
        raise DsvccaError(f"the mask '{folder}' is gone or has changed since the store was opened: open it again")
    key = f"{VALID}/c.0.0"
    try:
        values = chunked.read_chunk(folder / key, "uint8", mask.shape, record["checksums"].get(key))
    except (OSError, ValueError) as error:
        raise DsvccaError(f"the mask '{folder}' is damaged ({error}): restore it") from error
    return values.astype(bool)


def foreign_fingerprint(where: Path, shape: Sequence[int], dtype: str, dims: Sequence[str]) -> str:
    """Return a digest that changes when the files of an array do (names, sizes, times) or what its axes are called."""
    content = [str(where), list(shape), dtype, list(dims), folders.listing(where)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
