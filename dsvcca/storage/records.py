"""Records: what an object on storage says of itself, in the attributes of its Zarr group, and whether that can be.

Every kind of object has one here. A record is JSON with a digest of its own; what was edited, cut short, made by
another version or made up is refused in one sentence before anything of it is used. No path that a record names is
ever opened, and nothing of one is ever run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar, get_args, get_type_hints

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from dsvcca.errors import DsvccaError, RunError
from dsvcca.storage import files, folders

KEY = "dsvcca"
"""The one attribute of a group that is ours."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2})*$")]
Crc32c = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}$")]
ChunkKey = Annotated[str, StringConstraints(pattern=r"^([^/\\.\x00]+/)?c(\.[0-9]+)+$")]
"""Where a chunk lies below its object: never above it."""
Name = Annotated[str, StringConstraints(pattern=r"^[^/\\.\x00]+$")]
Version = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]+$")]
Checksums = dict[ChunkKey, Crc32c]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=1, lt=2**63)]
Number = Annotated[float, Field(allow_inf_nan=False)]
LabelValues = dict[str, str | int | float | bool]


class StoreRecord(TypedDict):
    """Of an activation store."""

    format: Literal[1]
    kind: Literal["activations"]
    datapoints: Annotated[int, Field(ge=2, lt=2**63)]
    mask: NotRequired[Sha256]
    digest: NotRequired[Sha256]


class IdsRecord(TypedDict):
    """Of the datapoint ids of a store: what they are made of, and their digest."""

    kind: Literal["datapoints"]
    of: Literal["given", "inputs"]
    ids: Sha256
    digest: NotRequired[Sha256]


class MaskRecord(TypedDict):
    """Of the mask of tokens of a store."""

    format: Literal[1]
    kind: Literal["mask"]
    shape: Annotated[list[Size], Field(min_length=2, max_length=2)]
    rows: Size
    mask: Sha256
    checksums: Checksums
    digest: NotRequired[Sha256]


class RuleRecord(TypedDict):
    """What `basis.RankRule` holds."""

    variance: Annotated[float, Field(gt=0, le=1)]
    criterion: Literal["variance", "singular"]
    rank: Size | None


class KeptBasisRecord(TypedDict):
    """What `activations.KeptBasis` holds."""

    fingerprint: Sha256
    view: str
    center: Literal["all", "dc"]
    route: Literal["covariance", "dual", "randomised"]
    numerics: Count
    rule: RuleRecord
    rank: Count
    nbytes: Count


class KeptRecord(TypedDict):
    """What is left of a representation whose activations were dropped.

    The workspace is named for people, in messages; it is never opened by that name.
    """

    workspace: Annotated[str, StringConstraints(max_length=1 << 15)]
    bases: Annotated[list[KeptBasisRecord], Field(min_length=1)]


class RepresentationRecord(TypedDict):
    """Of one representation: with it, it exists."""

    format: Literal[1]
    kind: Literal["representation"]
    labels: LabelValues
    shape: Annotated[list[Size], Field(min_length=2)]
    dtype: Annotated[str, StringConstraints(pattern=r"^[a-z]+[0-9]*$")]
    written_as: NotRequired[Literal["bfloat16"]]
    dims: list[str]
    datapoints: Sha256 | None
    content: Sha256
    checksums: Annotated[Checksums, Field(min_length=1)]
    written: Count
    kept: NotRequired[KeptRecord]
    digest: NotRequired[Sha256]


class WorkspaceRecord(TypedDict):
    """Of a workspace."""

    format: Literal[1]
    kind: Literal["workspace"]
    id: NotRequired[Digest]
    digest: NotRequired[Sha256]


class OffBlockRecord(TypedDict):
    """What `translations.OffBlock` holds."""

    between: Number
    noise: Number
    within: Number


class BasisRecord(TypedDict):
    """Of one basis in a pack: what it was made from, and its shape; `source` are the stored numbers alone."""

    fingerprint: Sha256
    source: NotRequired[str]
    space: list[Size]
    ranks: Annotated[list[Count], Field(min_length=1)]
    neurons: Size
    nonzero: Count
    noise: Annotated[Number, Field(ge=0)]
    missed: Annotated[Number, Field(ge=0)]
    off_block: OffBlockRecord | None
    key: Digest
    rule: RuleRecord


class PackRecord(TypedDict):
    """Of bases that are packed together, and the chunks of their columns, where there are any."""

    format: Literal[3]
    kind: Literal["pack"]
    rows: Size
    chunks: Annotated[list[Size], Field(min_length=2, max_length=2)] | None
    library: str
    bases: Annotated[list[BasisRecord], Field(min_length=1)]
    pairs: list[Annotated[list[Count], Field(min_length=2, max_length=2)]] | None
    checksums: Checksums
    digest: NotRequired[Sha256]


class PartialArray(TypedDict):
    """One array of a partial result; of complex numbers, pairs lie on storage."""

    name: str
    shape: list[Count]
    pairs: bool


class PartialRecord(TypedDict):
    """Of a partial result; `about` is what whoever wrote it wants to know again."""

    format: Literal[1]
    kind: Literal["partial"]
    name: str
    about: dict[str, Any]
    arrays: list[PartialArray]
    checksums: Checksums
    digest: NotRequired[Sha256]


class MemberRecord(TypedDict):
    """Who stands in one place of results."""

    labels: LabelValues
    identity: str
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]


class ResultsRecord(TypedDict):
    """Of results: what is in which place, which versions of tiles and panels count, what the arrays are.

    `said` is the digest of the other attributes, which people read.
    """

    format: Literal[5]
    kind: Literal["results"]
    definition: dict[str, Any]
    listed: list[str]
    members: Annotated[list[MemberRecord], Field(min_length=1)]
    shown: Annotated[list[Count], Field(min_length=1)]
    views: list[str]
    pairs: bool
    rule: str
    targets: bool
    off_block: bool
    frequencies: Count
    warnings: list[str]
    failed: list[str]
    tiles: dict[Annotated[str, StringConstraints(pattern=r"^[0-9]+-[0-9]+$")], Version]
    panels: dict[Annotated[str, StringConstraints(pattern=r"^targets-[0-9]+$")], Version]
    metadata: dict[Name, Sha256] | None
    checksums: Checksums
    said: Sha256
    digest: NotRequired[Sha256]


class Marker(TypedDict):
    """That a tile, a panel or a column of results is complete: its chunks, of whom (8 bytes each), so many in rows."""

    version: Version
    rows: Count
    digests: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{16})*$")]
    chunks: Checksums
    doubt: Annotated[Number, Field(ge=0)]
    digest: NotRequired[Sha256]


class LearnedRecord(TypedDict):
    """What results keep of one basis (see `dsvcca.engine.bases.learn`)."""

    ranks: Annotated[list[Count], Field(min_length=1)]
    deepest: Annotated[list[Count], Field(min_length=1)]
    missed: Annotated[Number, Field(ge=0)]
    cut: Annotated[list[Annotated[Number, Field(ge=0)]], Field(min_length=1)]
    alone: Annotated[Number, Field(ge=0, le=1)]
    library: str
    between: Annotated[list[Number], Field(min_length=2, max_length=2)] | None


class Learned(TypedDict):
    """What results keep of all bases, by their fingerprints."""

    bases: dict[Sha256, LearnedRecord]
    digest: NotRequired[Sha256]


R = TypeVar("R", bound=Mapping[str, Any])

KINDS: tuple[Any, ...] = (
    *(StoreRecord, MaskRecord, RepresentationRecord, WorkspaceRecord, PackRecord, PartialRecord, ResultsRecord),
)
"""Those that are the records of groups."""

UNSIGNED = ("activations", "workspace", "datapoints", "commits")
"""Kinds of records that need no digest of their own."""

REPAIR = {
    "representation": "remove '{folder}' and write that representation again",
    "pack": "remove '{folder}' and run the same line again",
    "partial": "remove '{folder}' and run the same line again",
    "results": "remove '{folder}' and compare again",
}
"""What to do about a damaged record of some kind, if it cannot be restored."""

HELD = "kept.json"
"""A file in a pack some of whose bases are all that is left of activations."""

ONLY_ONES = "restore it: activations of its bases were dropped, and if it is removed they are lost for good"
"""What to do about such a pack if it is damaged."""


def is_held(pack: Path) -> bool:
    """Return whether a pack holds bases whose activations were dropped."""
    return folders.exists(pack / HELD)


def read_attributes(folder: Path) -> dict[str, Any] | None:
    """Return our attributes of the group at `folder`; None if it is not ours.

    Raises
    ------
    DsvccaError
        If it cannot be read, or was changed after it was written.
    """
    try:
        metadata = files.read_json(folder / "zarr.json")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except RunError:
        raise
    except DsvccaError as error:
        if not is_held(folder):
            raise
        raise DsvccaError(f"the record '{folder / 'zarr.json'}' cannot be read: {ONLY_ONES}") from error
    attributes = metadata.get("attributes") if isinstance(metadata, dict) else None
    about = attributes.get(KEY) if isinstance(attributes, dict) else None
    if not isinstance(about, dict):
        return None
    if metadata.get("zarr_format") != 3 or metadata.get("node_type") not in ("group", "array"):
        raise DsvccaError(f"'{folder / 'zarr.json'}' describes nothing that Zarr knows: {_repair(about, folder)}")
    if ("digest" in about or about.get("kind") not in UNSIGNED) and about.get("digest") != record_digest(about):
        raise DsvccaError(
            f"the record '{folder / 'zarr.json'}' was changed after it was written: {_repair(about, folder)}"
        )
    return about


def read_record(folder: Path, kind: type[R], *, about: Mapping[str, Any] | None = None) -> R | None:
    """Return the record of an object of some kind; None if there is nothing of ours.

    Parameters
    ----------
    kind : type
        One of the records of this module.
    about : mapping, optional
        What `read_attributes` found.

    Raises
    ------
    DsvccaError
        If it is of another kind or format, or damaged.
    """
    about = read_attributes(folder) if about is None else about
    if about is None:
        return None
    wanted, own = _expected(kind)
    if about.get("kind") != wanted:
        raise DsvccaError(f"'{folder}' holds {str(about.get('kind'))[:40]}, not {wanted}: choose another path")
    if about.get("format") != own:
        raise DsvccaError(
            f"'{folder}' has format {str(about.get('format'))[:40]}, this version reads {own}: use the version of "
            "dsvcca that wrote it, or write it again"
        )
    try:
        return checked(kind, about)
    except ValueError as error:
        raise DsvccaError(
            f"the record '{folder / 'zarr.json'}' is damaged ({error}): {_repair(about, folder)}"
        ) from error


def checked(kind: type[R], content: Any) -> R:
    """Return what a record says if it can be one of that kind.

    Raises
    ------
    ValueError
        If it cannot; says what and where.
    """
    try:
        found: R = _adapter(kind).validate_python(content, strict=True, extra="forbid")
        return found
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place[:80]}: {first['msg']}") from None


def damaged(folder: Path, kind: str, error: Any) -> DsvccaError:
    """Return the error that a record contradicts itself, or what it is about."""
    return DsvccaError(f"the record '{folder / 'zarr.json'}' is damaged ({error}): {_repair({'kind': kind}, folder)}")


def write_record(folder: Path, record: Mapping[str, Any], **said: Any) -> None:
    """Make `folder` a group with a record, and what else is said for people; what it holds must be written before."""
    content = json.loads(json.dumps(signed(record)))
    for kind in KINDS:
        if _expected(kind)[0] == record["kind"]:  # what would be refused when it is read is never written
            try:
                checked(kind, content)
            except ValueError as error:
                raise DsvccaError(f"'{folder}' would hold what cannot be ({error}): nothing was written") from error
    files.write_group(folder, **{KEY: content}, **said)


def record_digest(about: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record without its own digest."""
    content = {name: value for name, value in about.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def said_digest(attributes: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what results say for people, but for the libraries that made them."""
    content = {name: value for name, value in attributes.items() if name not in (KEY, LIBRARIES)}
    return hashlib.sha256(json.dumps(json.loads(json.dumps(content)), sort_keys=True).encode()).hexdigest()


LIBRARIES = "array_library"
"""Attribute of results: what made them, which grows with every worker that takes part."""


def signed(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with its own digest, so that no edit goes unseen."""
    return {**about, "digest": record_digest(about)}


def _repair(about: Mapping[str, Any], folder: Path) -> str:
    do = REPAIR.get(str(about.get("kind")))
    if is_held(folder):
        return ONLY_ONES
    return "restore it" + (f", or {do.format(folder=folder)}" if do else "")


@cache
def _expected(kind: Any) -> tuple[str, int | None]:
    """Return the kind and format that a record has to name; datapoint ids have no format."""
    kinds, formats = (get_args(get_type_hints(kind).get(name)) for name in ("kind", "format"))
    return kinds[0], formats[0] if formats else None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
