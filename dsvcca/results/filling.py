"""Filling results: who stands in which place, what is missing, what has been learned and said.

A plan is laid out in the places of its results; tasks fill them tile by tile (`dsvcca.commits`), one process at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np

from dsvcca.activations.labels import Labels, check_same_types
from dsvcca.errors import DsvccaError, RunError
from dsvcca.maths.arrays import NumpyArray
from dsvcca.plans.passes import Pass
from dsvcca.plans.plan import Plan
from dsvcca.results.commits import COMMITS, Sheet, packed, read_marker
from dsvcca.results.dataset import FLOOR, R2, RANKS, Column, columns_of, fit
from dsvcca.results.opening import BASES, has_commits, learned_of, record_of, says_what_was_written, variables_of
from dsvcca.storage import chunked, files, folders, records
from dsvcca.storage.records import (
    KEY,
    LIBRARIES,
    LearnedRecord,
    Marker,
    MemberRecord,
    ResultsRecord,
    said_digest,
    signed,
)


@dataclass(frozen=True)
class Missing:
    """What a tile or a panel still lacks: where it goes, and which pairs (or representations) of the panels."""

    sheet: Sheet
    wanted: NumpyArray


@dataclass(frozen=True)
class Begun:
    """Results that are being filled: where they are, the plan laid out in them, and what they lack.

    `views` are what they call views, in the order of the numbers in `view` (from 1); `count` is that of places.
    """

    root: Path
    plan: Plan
    views: tuple[str, ...]
    count: int
    tiles: list[Missing]
    panels: list[Missing]

    def passes_of(self, missing: Missing) -> list[Pass]:
        """Return the comparisons that a tile lacks."""
        i, j = missing.sheet.places
        passes = (one.only(missing.wanted) for one in self.plan.passes((i, j)))
        return [one for one in passes if one is not None]


@contextmanager
def claimed(out: str | os.PathLike[str]) -> Iterator[None]:
    """Fill the results at `out` in this process alone.

    Raises
    ------
    DsvccaError
        If another process fills them, or something else lies there.
    """
    root = folders.reach(out, "results")
    check_place(out)
    files.make_parents(root)
    is_new = not folders.exists(root)
    with files.disk_errors(root):
        folders.make(root / COMMITS)
    with folders.held(root / COMMITS) as is_free:
        if not is_free:
            raise DsvccaError(
                f"'{root}' is being filled by another process: wait for it, or choose another results folder"
            )
        try:
            yield
        finally:
            with suppress(RunError):  # or what it is about would be hidden
                if is_new and files.is_free(root):  # nothing was begun
                    folders.remove(root)


def check_place(out: str | os.PathLike[str], plan: Plan | None = None) -> None:
    """Raise if results cannot lie at `out`, or those of a plan cannot; changes nothing.

    Raises
    ------
    DsvccaError
        If something else lies there, or the results of a plan whose numbers would differ.
    """
    root = folders.reach(out, "results")
    files.check_parents(root)
    if files.is_free(root):
        return
    there = record_of(root)
    if plan is not None and not _is_empty(root, there):
        _check_same_numbers(root, there, _as_long(there, plan))


def begin(out: str | os.PathLike[str], plan: Plan, about: Mapping[str, Any]) -> Begun:
    """Create the results of a plan, or take up those that are there: give places to what is new, hide what is gone.

    Parameters
    ----------
    about : mapping
        What else is said for people.

    Raises
    ------
    DsvccaError
        If something else lies at `out`, or the results of a plan whose numbers would differ.
    """
    root = folders.reach(out, "results")
    there = None if files.is_free(root) else record_of(root)
    if there is not None and not _is_empty(root, there):
        plan = _as_long(there, plan)
        _check_same_numbers(root, there, plan)
    else:
        there = None
    members = [] if there is None else list(there["members"])
    known = {json.dumps(one["labels"], sort_keys=True): place for place, one in enumerate(members)}
    places = [-1 for _ in plan.representations]
    for i, r in enumerate(plan.representations):
        places[i] = known.get(json.dumps(r.labels, sort_keys=True), len(members))
        own: MemberRecord = {"labels": r.labels, "identity": r.identity, "digest": plan.digests[i].hex()}
        members[places[i] : places[i] + 1] = [own]
    _check_types(root, [one["labels"] for one in members])
    laid = plan.laid_out(places)
    views = [] if there is None else there["views"]
    record: ResultsRecord = {
        "format": 5,
        "kind": "results",
        "definition": plan.definition,
        "listed": list(plan.listed),
        "members": members,
        "shown": [places[i] for i in plan.shown or range(len(places))],
        "views": [*views, *(name for name in plan.names if name not in views)],
        "pairs": bool(plan.tiles) or bool(there and there["tiles"]),
        "rule": plan.pairs.name,
        "targets": bool(plan.targets),
        "off_block": plan.transforms,
        "frequencies": plan.kept_frequencies,
        "warnings": [] if there is None else there["warnings"],
        "failed": [] if there is None else there["failed"],
        "tiles": {} if there is None else there["tiles"],
        "panels": {} if there is None else there["panels"],
        "metadata": None,
        "checksums": {},
        "said": "",
    }
    record["said"] = said_digest(_said(record, plan, about))
    columns = columns_of(laid, [one["labels"] for one in members], record["views"])
    with files.disk_errors(root):
        if there is None or there["metadata"] is None:
            _grow(root, record, columns, plan, about)
        record["tiles"], tiles = _missing_tiles(root, laid, record, there)
        record["panels"], panels = _missing_panels(root, laid, record)
        if there is not None and there["metadata"] is not None:
            if _laid_out_by(there) != _laid_out_by(record):
                _grow(root, record, columns, plan, about)
            else:
                record["metadata"], record["checksums"] = there["metadata"], there["checksums"]
        if signed(record) != there or not says_what_was_written(root, record) or not has_commits(root):
            _write_record(root, record, plan, about)
    return Begun(root, laid, tuple(record["views"]), len(members), tiles, panels)


def read_learned(root: Path, rules: int) -> dict[str, LearnedRecord]:
    """Return what was learned of every basis under so many rules; what cannot be read is learned again."""
    return {
        name: one
        for name, one in (learned_of(root) or {}).items()
        if len(one["ranks"]) == len(one["deepest"]) == len(one["cut"]) == rules
    }


def write_learned(root: Path, learned: Mapping[str, LearnedRecord], rules: int) -> None:
    """Keep what was learned of bases, by their fingerprints, beside what was known before."""
    before = read_learned(root, rules)
    if any(before.get(name) != one for name, one in learned.items()):
        files.write_json(root / BASES, signed({"bases": {**before, **learned}}))


def keep_said(root: Path, *, warnings: Sequence[str], failed: Sequence[str]) -> list[str]:
    """Keep warnings, and what failed, with the results; return the warnings that were not there before."""
    metadata = files.read_json(root / "zarr.json")
    about = metadata["attributes"][KEY]
    before = list(about["warnings"])
    said = {"warnings": list(warnings), "failed": list(failed)}
    if any(about[name] != sentences for name, sentences in said.items()):
        metadata["attributes"] |= said
        metadata["attributes"][KEY] = signed(about | said | {"said": said_digest(metadata["attributes"])})
        files.write_json(root / "zarr.json", metadata)
    return [sentence for sentence in warnings if sentence not in before]


def add_warnings(root: Path, sentences: Sequence[str]) -> list[str]:
    """Keep more warnings with the results; return those that were not there before."""
    record = record_of(root)
    more = [sentence for sentence in sentences if sentence not in record["warnings"]]
    if more:
        keep_said(root, warnings=[*record["warnings"], *more], failed=record["failed"])
    return more


def add_libraries(root: Path, names: Collection[str]) -> None:
    """Keep with the results which array libraries made them."""
    metadata = files.read_json(root / "zarr.json")
    before = _made_by(metadata)
    if not set(names) <= set(before):
        metadata["attributes"][LIBRARIES] = sorted({*before, *names})
        files.write_json(root / "zarr.json", metadata)


def _made_by(metadata: Any) -> list[str]:
    """Return which array libraries made the numbers; it is said for people alone, and not signed."""
    said = metadata["attributes"].get(LIBRARIES)
    return [name for name in said if isinstance(name, str)] if isinstance(said, list) else []


def _laid_out_by(record: ResultsRecord) -> tuple[Any, ...]:
    """Return what the shapes and labels of arrays follow."""
    return record["members"], record["views"], record["off_block"], record["pairs"]


def _write_record(root: Path, record: ResultsRecord, plan: Plan, about: Mapping[str, Any]) -> None:
    folders.make(root)
    try:
        made_by = _made_by(files.read_json(root / "zarr.json"))
    except FileNotFoundError:
        made_by = []
    records.write_record(root, record, **_said(record, plan, about), **{LIBRARIES: made_by})
    if not has_commits(root):
        folders.make(root / COMMITS)
        files.write_group(root / COMMITS, **{KEY: {"kind": "commits", "id": token_hex(16)}})  # as no other has


def _said(record: ResultsRecord, plan: Plan, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said for people."""
    own = {"warnings": record["warnings"], "failed": record["failed"]}
    return {**plan.definition, **plan.description, **about, **own}


def _is_empty(root: Path, there: ResultsRecord) -> bool:
    """Return whether nothing of what some results are for was ever committed."""
    return not {f"{name}.json" for name in (*there["tiles"], *there["panels"])}.intersection(
        folders.names(root / COMMITS)
    )


def _grow(root: Path, record: ResultsRecord, columns: Sequence[Column], plan: Plan, about: Mapping[str, Any]) -> None:
    """Make the arrays fit. Until they do, the record says so: who is interrupted here finds it again."""
    record["metadata"], record["checksums"] = None, {}
    _write_record(root, record, plan, about)
    record["metadata"], record["checksums"] = fit(root, columns)


def _as_long(there: ResultsRecord, plan: Plan) -> Plan:
    """Return a plan that keeps as many correlations as results have room for, where it has fewer."""
    room = there["definition"].get("correlations")
    return replace(plan, correlations=room) if isinstance(room, int) and 0 < plan.correlations < room else plan


def _check_same_numbers(root: Path, there: ResultsRecord, plan: Plan) -> None:
    """Raise if numbers of this plan would mean something else than those that are there."""
    different = ""
    for name, value in plan.definition.items():
        if there["definition"].get(name) != value:
            different = f"{name} is {there['definition'].get(name)!r} there and {value!r} here"
            break
    identities = {one["identity"] for one in there["members"]}
    if not different and not any(r.identity in identities for r in plan.representations):
        different = f"none of the {len(identities)} representations there is among the {len(plan.representations)} here"
    if different:
        raise DsvccaError(
            f"'{root}' holds the results of another plan ({different}): choose another results folder, which costs "
            "little as bases are kept and used again, or remove this one"
        )


def _check_types(root: Path, labels: Sequence[Labels]) -> None:
    seen: Labels = {}
    for one in labels:
        check_same_types(one, [seen], f"another representation in '{root}'")
        seen = one | seen


def _missing_tiles(
    root: Path, plan: Plan, record: ResultsRecord, there: ResultsRecord | None
) -> tuple[dict[str, str], list[Missing]]:
    """Return of every tile what version counts, and what is missing of those that have another one or none.

    Raises
    ------
    DsvccaError
        If the plan has other pairs than those before it, and theirs would be dropped.
    """
    digests = _digests(record)
    versions, found = {}, []
    shown = np.zeros(len(digests), dtype=bool)
    shown[list(plan.places)] = True
    before = {(int(i), int(j)) for i, j in (name.split("-") for name in record["tiles"])}
    rule = plan.pairs.name if there is None else there["rule"]
    for tile in sorted({*plan.tiles, *before}):
        wanted = np.zeros((plan.panel, plan.panel), dtype=bool)
        for one in plan.passes(tile):
            wanted[np.ix_(one.x_members, one.y_members)] |= one.wanted
        sides = [range(side * plan.panel, min((side + 1) * plan.panel, len(digests))) for side in tile]
        wanted = wanted[: len(sides[0]), : len(sides[1])]
        own = b"".join(b"".join(digests[i] for i in side) for side in sides)
        sheet = Sheet(
            out=str(root),
            places=tile,
            panel=plan.panel,
            count=len(digests),
            listed=tuple(record["listed"]),
            variables=tuple(variables_of(record)),
            version=hashlib.sha256(own + packed(wanted)).hexdigest()[:24],
            digests=own,
        )
        marker = read_marker(root, sheet.name, sheet.keys, tail_of=chunked.sound_tail)
        if marker is not None and marker["version"] != sheet.version:
            compared, same = _compared(sheet, marker)
            done = compared & same
            stale = compared & ~wanted & shown[sides[0]][:, None] & shown[sides[1]][None, :]
            if tile[0] == tile[1]:
                stale &= ~wanted.T
            if (stale & same).any() and (plan.pairs.name == "list" or plan.pairs.name != rule):
                raise DsvccaError(
                    f"'{root}' holds comparisons that pairs={plan.pairs.name!r} does not ask for ({rule!r} "
                    "were asked for there): choose another results folder, which costs little as bases are kept and "
                    "used again, or remove this one"
                )
            if not (wanted & ~done).any() and not stale.any():
                sheet = replace(sheet, version=marker["version"])
            else:
                sheet = replace(sheet, keep=packed(done & ~stale), doubt=marker["doubt"])
                wanted = wanted & ~done
        elif marker is None and tile not in plan.tiles:
            continue
        versions[sheet.name] = sheet.version
        if marker is None or marker["version"] != sheet.version:
            found.append(Missing(sheet, wanted))
    return versions, found


def _compared(sheet: Sheet, marker: Marker) -> tuple[NumpyArray, NumpyArray]:
    """Return which pairs of a committed tile were compared, and which are still the same (places of both panels)."""
    before, now = (np.frombuffer(one, "V8") for one in (bytes.fromhex(marker["digests"]), sheet.digests))
    rows = sheet.shape[0]
    old_rows = marker["rows"]
    same = [
        _same(before[:old_rows], now[:rows]),
        _same(before[old_rows:], now[rows:]),
    ]
    there = np.zeros(sheet.shape, dtype=bool)  # and nowhere else, where the array is about to grow
    ranks = np.asarray(chunked.open_array(folders.at(sheet.out, "results") / RANKS[0])[sheet.side(0), sheet.side(1)])
    there[: ranks.shape[0], : ranks.shape[1]] = ranks.reshape(*ranks.shape[:2], -1).any(axis=2)
    return there, same[0][:, None] & same[1][None, :]


def _same(before: NumpyArray, now: NumpyArray) -> NumpyArray:
    found = np.zeros(len(now), dtype=bool)
    found[: len(before)] = now[: len(before)] == before
    return found


def _missing_panels(root: Path, plan: Plan, record: ResultsRecord) -> tuple[dict[str, str], list[Missing]]:
    """Return of every panel what version of what it explains counts, and what is missing of the others."""
    if not plan.targets:
        return {}, []
    digests = _digests(record)
    versions, found = {}, []
    for place, passes in enumerate(plan.target_passes):
        wanted = np.zeros(min(plan.panel, len(digests) - place * plan.panel), dtype=bool)
        for one in passes:
            wanted[list(one.x_members)] = True
        if not wanted.any():
            continue
        own = b"".join(digests[place * plan.panel : (place + 1) * plan.panel])
        sheet = Sheet(
            out=str(root),
            places=(place,),
            panel=plan.panel,
            count=len(digests),
            listed=tuple(record["listed"]),
            variables=(R2, FLOOR),
            version=hashlib.sha256(own + packed(wanted)).hexdigest()[:24],
            digests=own,
        )
        there = read_marker(root, sheet.name, sheet.keys, tail_of=chunked.sound_tail)
        if there is not None and there["version"] != sheet.version:
            before, now = (np.frombuffer(one, "V8") for one in (bytes.fromhex(there["digests"]), own))
            floors = np.asarray(chunked.open_array(root / FLOOR)[sheet.side(0)])
            there_are = np.zeros(len(now), dtype=bool)
            there_are[: len(floors)] = np.isfinite(floors.reshape(len(floors), -1)).all(axis=1)
            done = _same(before, now) & there_are
            stale = there_are & ~done  # of a representation that was replaced, and may have no basis now
            if not (wanted & ~done).any() and not stale.any():
                sheet = replace(sheet, version=there["version"])
            else:
                sheet = replace(sheet, keep=packed(done))
                wanted = wanted & ~done
        versions[sheet.name] = sheet.version
        if there is None or there["version"] != sheet.version:
            found.append(Missing(sheet, wanted))
    return versions, found


def _digests(record: ResultsRecord) -> list[bytes]:
    return [bytes.fromhex(one["digest"]) for one in record["members"]]
