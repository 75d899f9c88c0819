"""What nothing uses any more: found, and removed if that is asked for.

Of a store what was never committed and what was replaced; of its workspace bases of numbers that the store does not
have.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from dsvcca.activations.representations import Representation, look, version_of
from dsvcca.storage import folders, staging
from dsvcca.storage.records import PackRecord, is_held, read_attributes, read_record
from dsvcca.workspace.packs import FORMAT

OLD = 24 * 3600
"""Seconds after which what another machine left uncommitted, or a run unmerged, is taken for forgotten."""


class Left(NamedTuple):
    """A folder that nothing uses."""

    path: Path
    what: str
    bytes: int


def unused_in_store(root: Path, known: dict[str, Representation]) -> Iterator[Left]:
    """Yield what nothing in a store uses: versions that were replaced, what was never committed."""
    there, _ = look(root, known)
    newest: dict[str, int] = {}
    for stem, version in map(version_of, there):
        newest[stem] = max(newest.get(stem, 0), version)
    for name in sorted(there):
        stem, version = version_of(name)
        if version < newest[stem]:
            yield _left(root / name, "was replaced")
    yield from _uncommitted(root)


def unused_in_workspace(root: Path, sources: Collection[str]) -> Iterator[Left]:
    """Yield packs of which no basis is of the given numbers, what was never merged, and what was never committed.

    A pack that holds what is left of dropped activations is never among them, nor one that does not say whose it is.
    What a run is to merge belongs to one that was given up if nothing of it changed for a day.
    """
    for name in folders.names(root):
        if name.startswith(("partial-", "filling-")) and _is_old(root / name):
            yield _left(root / name, "was never merged")
        if name.startswith("pack-") and not is_held(root / name):
            about = read_attributes(root / name)
            if about is not None and about.get("format") != FORMAT:  # of another version, which may use it
                continue
            record = read_record(root / name, PackRecord, about=about)
            if record is None and folders.is_remote(root):  # elsewhere they come whole: it is something of somebody's
                yield _left(root / name, "was never committed")
            elif record is not None and all(one.get("source") not in (None, *sources) for one in record["bases"]):
                yield _left(root / name, "bases of nothing that the store has")
    yield from _uncommitted(root)


def remove_left(one: Left) -> None:
    """Remove what nothing uses; who is killed meanwhile leaves it whole, or where it is found again."""
    if one.path.parent.name == staging.STAGING:
        folders.remove(one.path)
    else:
        staging.withdraw(one.path.parent, one.path.name)


def _uncommitted(root: Path) -> Iterator[Left]:
    """Yield what was being made by processes that are no more; of other machines if it is a day old."""
    for name in staging.forgotten(root, OLD):
        yield _left(root / staging.STAGING / name, "was never committed")


def _is_old(folder: Path) -> bool:
    """Return whether no file of a folder changed for a day; at a URL that is not known."""
    if folders.is_remote(folder):
        return False
    try:
        newest = max(
            (folder / name).stat().st_mtime for name in ("", *(name for name, _, _ in folders.listing(folder)))
        )
    except FileNotFoundError:  # who merges it removes it just now
        return False
    return time.time() - newest > OLD


def _left(folder: Path, what: str) -> Left:
    return Left(folder, what, sum(size for _, size, _ in folders.listing(folder)))
