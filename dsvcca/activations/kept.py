"""What is left of representations whose activations were dropped: written down, and looked after.

    <store>/layer=conv1/              what was written: its record, without its array
    <store>/layer=conv1@2/            group; its record is the same, and says which bases are left

The bases lie in a workspace (`dsvcca.workspace`), in packs that are marked. Activations are removed only once the
record that says what is left of them is there, so that who is killed leaves either the one or the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from dsvcca.activations.representations import ARRAY, Kept, Representation, next_version, version_of
from dsvcca.errors import DsvccaError, RunError
from dsvcca.maths.basis import RankRule, holds
from dsvcca.storage import files, folders, staging
from dsvcca.storage.records import PackRecord, RepresentationRecord, read_record, write_record
from dsvcca.workspace.contents import findings_of_pack


def drop(representation: Representation, kept: Kept) -> bool:
    """Write down what is left of a representation, and remove its activations.

    Returns
    -------
    bool
        False if it was written again meanwhile, or dropped by another process: then nothing was done.
    """
    folder = _folder(representation)
    record = read_record(folder, RepresentationRecord)
    if record is None:
        raise DsvccaError(f"{representation}: its commit record is gone since it was listed: open the store again")
    left = {"workspace": kept.workspace, "bases": [asdict(one) for one in kept.bases]}
    target = folder.parent / next_version(folder.name)
    with files.disk_errors(folder.parent):
        staged = staging.stage(folder.parent)
        try:
            about = {name: value for name, value in record.items() if name != "digest"}
            write_record(staged, {**about, "kept": left})
            written = staging.publish(staged, target)
        finally:
            staging.discard(staged)
    if written:
        _remove_below(target)
    return written


def sweep(representation: Representation) -> None:
    """Remove what is still there of the activations of a representation that was dropped."""
    _remove_below(_folder(representation))


def _folder(representation: Representation) -> Path:
    return folders.at(representation.array, "array").parent


def _remove_below(folder: Path) -> None:
    """Remove the activations of all versions before one."""
    stem, version = version_of(folder.name)
    for older in range(1, version):
        array = folder.with_name(stem if older == 1 else f"{stem}@{older}") / ARRAY
        if folders.exists(array):
            folders.remove(array)
            if folders.exists(array):
                raise RunError(f"'{array}' was dropped and cannot be removed: check that you may, then run it again")


def findings_of_kept(representations: Sequence[Representation], workspace: str) -> Iterator[tuple[str, str, str]]:
    """Read the bases that are left of representations and yield (name, pack, problem) for each that is lost."""
    kept = [(r, one) for r in representations if r.kept is not None for one in r.kept.bases]
    root = folders.at(workspace, "workspace")
    there: dict[str, list[tuple[str, RankRule]]] = {}
    problems: dict[str, str] = {}
    for pack in folders.names(root):
        if pack.startswith("pack-"):
            try:
                record = read_record(root / pack, PackRecord)
            except DsvccaError as error:
                problems[pack] = str(error)
                continue
            for one in [] if record is None else record["bases"]:
                there.setdefault(one["fingerprint"], []).append((pack, RankRule(**one["rule"])))
    unreadable = " ".join(problems.values())
    for r, basis in kept:
        packs = [pack for pack, rule in there.get(basis.fingerprint, []) if holds(rule, basis.rule, basis.route)]
        for pack in packs:
            if pack not in problems:
                first = next(findings_of_pack(root, pack), None)
                problems[pack] = "" if first is None else f"{first[1]} {first[2]}"
        if any(not problems[pack] for pack in packs):
            continue
        assert r.kept is not None
        elsewhere = "" if r.kept.workspace == workspace else f", it was kept in '{r.kept.workspace}' (give workspace=)"
        missing = f"is not in '{workspace}'{elsewhere}" + (f"; {unreadable}" if unreadable else "")
        why = f"is damaged ({problems[packs[0]]})" if packs else missing
        yield (
            r.name,
            packs[0] if packs else "",
            f"activations were dropped, and the basis that was left is lost: {basis} {why}; restore it, or write this "
            "representation again with if_exists='replace'",
        )
