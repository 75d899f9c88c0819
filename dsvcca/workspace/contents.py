"""What a workspace holds: its bases by what they were made from, what is wrong with them, which must stay."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from secrets import token_hex

from dsvcca.errors import DsvccaError, RunError
from dsvcca.storage import chunked, files, folders
from dsvcca.storage.records import (
    ONLY_ONES,
    PackRecord,
    WorkspaceRecord,
    is_held,
    read_attributes,
    read_record,
    write_record,
)
from dsvcca.workspace.packing import mark_held
from dsvcca.workspace.packs import FORMAT, Receipt, receipts_of


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
            for receipt in [] if record is None else receipts_of(name, record["bases"]):
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
        if chunked.sound_tail(root / name / key) != checksum:
            yield name, key, f"is missing or not what was committed: {do}"


def hold(workspace: str, packs: Iterable[str]) -> None:
    """Mark packs whose bases are about to be all that is left of activations."""
    for name in packs:
        folder = folders.at(workspace, "workspace") / name
        if not is_held(folder):
            mark_held(folder)


def ensure_workspace(workspace: str) -> None:
    """Make the workspace if it is not there; refuse a folder that is something else."""
    check_workspace(workspace)
    root = folders.at(workspace, "workspace")
    if read_record(root, WorkspaceRecord) is not None:
        return
    try:
        with files.disk_errors(root):
            files.make_parents(root)
            folders.make(root)
            with folders.held(root, waiting=lambda: None):  # another process may be making it
                if read_record(root, WorkspaceRecord) is None:
                    write_record(root, {"format": 1, "kind": "workspace", "id": token_hex(16)})  # as no other has
    except RunError as error:
        raise RunError(f"{error}, or have the bases kept elsewhere, by workspace=") from error


def check_workspace(workspace: str) -> None:
    """Raise if a workspace cannot lie there; changes nothing."""
    root = folders.at(workspace, "workspace")
    files.check_parents(root)
    if not files.is_free(root) and read_record(root, WorkspaceRecord) is None:  # in this order: others may be making it
        raise DsvccaError(f"workspace '{root}' is a folder of something else, or a file: choose another workspace=")


def workspace_beside(store: str, workspace: str | os.PathLike[str] | None) -> str:
    """Return where the bases of a store are kept: by default beside it."""
    return str(folders.reach(workspace or f"{store.rstrip('/')}.workspace", "workspace"))
