"""The results store: one Zarr v3 group that xarray opens, one chunk a tile, one commit marker a tile.

results.zarr/                zarr.json holds what every number means, and which representation stands in which place
  svcca, pwcca_x, ...        (x, y[, variance]) float64, NaN where no comparison was asked for
  rank_x, rank_y             (x, y[, variance]) int64, 0 where no comparison was asked for
  view                       (x, y) int8, how the two were looked at: its attributes say what the numbers mean
  svcca_by_frequency         (x, y, frequency[, variance]), on request
  off_block, ...             (x), where something was transformed
  r2_target, ...             (x, target[, variance]), where there are targets
  x_layer, y_layer, ...      labels
  commits/0-3.json           tile (0, 3) and its mirror are complete: of what, and checksums of their chunks
  commits/bases.json         what was learned of every basis: ranks, what its route may have overlooked

Every representation has a place, given when it first came, and keeps it: new ones come last and the arrays grow. One
that a plan does not have is hidden, not forgotten; of one that was replaced the old numbers count for nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from dsvcca import files, folders
from dsvcca.activations import KEY, read_attributes, signed
from dsvcca.arrays import NumpyArray
from dsvcca.commits import (
    BETWEEN_MARKER,
    COMMITS,
    Sheet,
    between_keys,
    packed,
    panel_keys,
    read_marker,
    tile_keys,
)
from dsvcca.dataset import (
    BETWEEN,
    BY_FREQUENCY,
    EXPLAINED,
    FLOOR,
    R2,
    RANKS,
    VIEW,
    Column,
    columns_of,
    described,
    fit,
)
from dsvcca.errors import DsvccaError, DsvccaWarning
from dsvcca.labels import Labels, check_same_types, label_order
from dsvcca.plan import Plan

FORMAT = 2

BASES = "commits/bases.json"


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


@contextmanager
def claimed(out: str | os.PathLike[str]) -> Iterator[None]:
    """Fill the results at `out` in this process alone.

    Raises
    ------
    DsvccaError
        If another process fills them, or something else lies there.
    """
    root = folders.reach(out, "results")
    if not _is_free(root):
        _record(root)
    files.make_parents(root)
    is_new = not root.exists()
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
            if is_new and _is_free(root):  # nothing was begun
                folders.remove(root)


def _is_free(root: Path) -> bool:
    """Return whether nothing is there, or what `claimed` leaves."""
    inside = set(folders.names(root)) if root.is_dir() else set()
    return files.is_free(root) or (inside == {COMMITS} and files.is_free(root / COMMITS))


def begin(out: str | os.PathLike[str], plan: Plan, about: Mapping[str, Any]) -> Begun:
    """Create the results of a plan, or take up those that are there: give places to what is new, hide what is gone.

    Raises
    ------
    DsvccaError
        If something else lies at `out`, or the results of a plan whose numbers would differ.
    """
    root = folders.reach(out, "results")
    there: dict[str, Any] = {"members": [], "views": [], "tiles": {}, "panels": {}, "warnings": [], "metadata": None}
    is_new = _is_free(root)
    if not is_new:
        there = _record(root)
        _check_same_numbers(root, there, plan)
    members = [dict(one) for one in there["members"]]
    known = {json.dumps(one["labels"], sort_keys=True): place for place, one in enumerate(members)}
    places = [-1 for _ in plan.representations]
    for i, r in enumerate(plan.representations):
        places[i] = known.get(json.dumps(r.labels, sort_keys=True), len(members))
        own = {"labels": r.labels, "identity": r.identity, "digest": plan.digests[i].hex()}
        members[places[i] : places[i] + 1] = [own]
    _check_types(root, [one["labels"] for one in members])
    laid = plan.laid_out(places)
    record: dict[str, Any] = {
        "format": FORMAT,
        "kind": "results",
        "definition": plan.definition,
        "listed": plan.listed,
        "members": members,
        "shown": [places[i] for i in plan.shown or range(len(places))],
        "views": [*there["views"], *(name for name in plan.names if name not in there["views"])],
        "pairs": bool(plan.tiles) or bool(there["tiles"]),
        "rule": plan.pairs.name,
        "targets": bool(plan.targets),
        "off_block": plan.transforms,
        "frequencies": plan.kept_frequencies,
        "warnings": there["warnings"],
    }
    columns = columns_of(laid, [one["labels"] for one in members], record["views"])
    with files.disk_errors(root):
        if there["metadata"] is None:
            _grow(root, record, columns, plan, about)
        record["tiles"], tiles = _missing_tiles(root, laid, record, there)
        record["panels"], panels = _missing_panels(root, laid, record)
        if there["metadata"] is not None:
            if any(there[key] != record[key] for key in ("members", "views", "off_block", "pairs")):
                _grow(root, record, columns, plan, about)
            else:
                record["metadata"], record["checksums"] = there["metadata"], there["checksums"]
        if any(there.get(key) != value for key, value in record.items()) or not (root / COMMITS / "zarr.json").exists():
            _write_record(root, record, plan, about)
    return Begun(root, laid, tuple(record["views"]), len(members), tiles, panels)


def read_bases(root: Path) -> dict[str, Any]:
    """Return what was learned of every basis, by its fingerprint; what cannot be read is learned again."""
    try:
        found = files.read_json(root / BASES)
    except (FileNotFoundError, DsvccaError):
        return {}
    return dict(found) if isinstance(found, dict) else {}


def write_bases(root: Path, learned: Mapping[str, Any]) -> None:
    """Keep what was learned of bases, beside what was known before."""
    before = read_bases(root)
    if any(before.get(name) != one for name, one in learned.items()):
        files.write_json(root / BASES, {**before, **learned})


def add_warnings(root: Path, sentences: Sequence[str]) -> list[str]:
    """Keep warnings with the results; return those that were not there before."""
    metadata = files.read_json(root / "zarr.json")
    about = metadata["attributes"][KEY]
    before = about["warnings"]
    if before != list(sentences):
        about["warnings"] = list(sentences)
        metadata["attributes"][KEY] = signed(about)
        metadata["attributes"]["warnings"] = list(sentences)
        files.write_json(root / "zarr.json", metadata)
    return [sentence for sentence in sentences if sentence not in before]


def add_libraries(root: Path, names: Collection[str]) -> None:
    """Keep with the results which array libraries made them."""
    metadata = files.read_json(root / "zarr.json")
    before = metadata["attributes"].get("array_library", [])
    if not set(names) <= set(before):
        metadata["attributes"]["array_library"] = sorted({*before, *names})
        files.write_json(root / "zarr.json", metadata)


def open_results(out: str | os.PathLike[str]) -> xr.Dataset:
    """Open results: variables over x and y (and variance), labels as coordinates, read when they are used.

    Raises
    ------
    DsvccaError
        If there are none at `out`, or they are damaged.

    Warns
    -----
    DsvccaWarning
        If some of the plan's tiles are not there: their numbers read as NaN.
    """
    root = folders.reach(out, "results")
    about = _checked_record(root)
    found: xr.Dataset = xr.open_zarr(files.zarr_store(root), consolidated=False, chunks=None, mask_and_scale=False)
    names = label_order({str(c)[2:] for c in found.coords if str(c).startswith("x_")})
    coordinates = ["x", *(f"x_{n}" for n in names), "y", *(f"y_{n}" for n in names), "variance"]
    variables = [*_variables(about), *(EXPLAINED if about["targets"] else ()), *(BETWEEN if about["off_block"] else ())]
    if about["targets"]:
        coordinates.insert(-1, "target")
    if about["frequencies"]:
        coordinates += sorted(str(name) for name in found.coords if str(name).startswith("frequency"))
    if not about["pairs"]:
        coordinates = [name for name in coordinates if name != "y" and not name.startswith("y_")]
    left = what_is_missing(root)
    if left:
        sentence = f"'{root}' is not complete: {left}; compare(plan, out) does what is missing"
        warnings.warn(sentence, DsvccaWarning, stacklevel=2)
    shown = np.asarray(about["shown"])
    dataset = xr.Dataset(
        {name: found[name].variable for name in variables},
        {name: found[name].variable for name in coordinates if name in found},
        {name: value for name, value in found.attrs.items() if name != KEY},
    )
    if not np.array_equal(shown, np.arange(len(about["members"]))):
        dataset = dataset.isel({side: shown for side in "xy" if side in dataset.dims})
        dataset = dataset.assign_coords({side: (side, np.arange(len(shown))) for side in "xy" if side in dataset.dims})
    return dataset


def _write_record(root: Path, record: Mapping[str, Any], plan: Plan, about: Mapping[str, Any]) -> None:
    folders.make(root)
    try:
        made_by = files.read_json(root / "zarr.json")["attributes"].get("array_library", [])
    except FileNotFoundError:
        made_by = []
    said = {**plan.definition, **plan.description, **about, "array_library": made_by, "warnings": record["warnings"]}
    files.write_group(root, **{KEY: signed(record)}, **said)
    if not (root / COMMITS / "zarr.json").exists():
        folders.make(root / COMMITS)
        files.write_group(root / COMMITS)


def _grow(root: Path, record: dict[str, Any], columns: Sequence[Column], plan: Plan, about: Mapping[str, Any]) -> None:
    """Make the arrays fit. Until they do, the record says so: who is interrupted here finds it again."""
    versions = {"tiles": record.get("tiles", {}), "panels": record.get("panels", {})}
    _write_record(root, {**record, **versions, "metadata": None, "checksums": {}}, plan, about)
    record["metadata"], record["checksums"] = fit(root, columns)


def _record(root: Path) -> dict[str, Any]:
    """Return what results say of themselves; they may be unfinished."""
    if not root.exists():
        raise DsvccaError(f"there are no results at '{root}': check the path, or compare(plan, out) first")
    about = read_attributes(root)
    if about is None or about.get("kind") != "results":
        raise DsvccaError(f"'{root}' does not hold results of dsvcca: choose another path")
    if about.get("format") != FORMAT:
        raise DsvccaError(f"'{root}' has format {about.get('format')}, this version reads {FORMAT}: update dsvcca")
    if about["metadata"] is not None:
        for name, digest in described(root, list(about["metadata"])).items():
            if digest != about["metadata"][name]:
                raise DsvccaError(
                    f"'{root / name / 'zarr.json'}' is gone or was changed: restore it, or remove '{root}' and compare "
                    "again"
                )
        for key, checksum in about["checksums"].items():
            if files.chunk_tail(root / key) != checksum:
                raise DsvccaError(
                    f"'{root / key}' is missing or not what was written: restore it, or remove '{root}' and compare "
                    "again"
                )
    return about


def _checked_record(root: Path) -> dict[str, Any]:
    """Return what results say of themselves, which are there to be read."""
    about = _record(root)
    if about["metadata"] is None:
        raise DsvccaError(
            f"'{root}' was left while representations were added to it: compare(plan, out) again finishes that"
        )
    return about


def _check_same_numbers(root: Path, there: Mapping[str, Any], plan: Plan) -> None:
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
    root: Path, plan: Plan, record: Mapping[str, Any], there: Mapping[str, Any]
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
    before = {(int(i), int(j)) for i, j in (name.split("-") for name in there["tiles"])}
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
            listed=record["listed"],
            variables=tuple(_variables(record)),
            version=hashlib.sha256(own + packed(wanted)).hexdigest()[:24],
            digests=own,
        )
        marker = read_marker(root, sheet.name, tile_keys(sheet), whole=True)
        if marker is not None and marker["version"] != sheet.version:
            compared, same = _compared(sheet, marker)
            done = compared & same
            stale = compared & ~wanted & shown[sides[0]][:, None] & shown[sides[1]][None, :]
            if tile[0] == tile[1]:
                stale &= ~wanted.T
            if (stale & same).any() and (plan.pairs.name == "list" or plan.pairs.name != there["rule"]):
                raise DsvccaError(
                    f"'{root}' holds comparisons that pairs={plan.pairs.name!r} does not ask for ({there['rule']!r} "
                    "were asked for there): choose another results folder, which costs little as bases are kept and "
                    "used again, or remove this one"
                )
            if not (wanted & ~done).any() and not stale.any():
                sheet = replace(sheet, version=marker["version"])
            else:
                sheet = replace(sheet, keep=packed(done & ~stale))
                wanted = wanted & ~done
        elif marker is None and tile not in plan.tiles:
            continue
        versions[sheet.name] = sheet.version
        if marker is None or marker["version"] != sheet.version:
            found.append(Missing(sheet, wanted))
    return versions, found


def _compared(sheet: Sheet, marker: Mapping[str, Any]) -> tuple[NumpyArray, NumpyArray]:
    """Return which pairs of a committed tile were compared, and which are still the same (places of both panels)."""
    before, now = (np.frombuffer(one, "V8") for one in (bytes.fromhex(marker["digests"]), sheet.digests))
    rows = sheet.shape[0]
    old_rows = marker["rows"]
    same = [
        _same(before[:old_rows], now[:rows]),
        _same(before[old_rows:], now[rows:]),
    ]
    there = np.zeros(sheet.shape, dtype=bool)  # and nowhere else, where the array is about to grow
    ranks = np.asarray(files.open_array(folders.at(sheet.out, "results") / RANKS[0])[sheet.side(0), sheet.side(1)])
    there[: ranks.shape[0], : ranks.shape[1]] = ranks.reshape(*ranks.shape[:2], -1).any(axis=2)
    return there, same[0][:, None] & same[1][None, :]


def _same(before: NumpyArray, now: NumpyArray) -> NumpyArray:
    found = np.zeros(len(now), dtype=bool)
    found[: len(before)] = now[: len(before)] == before
    return found


def _missing_panels(root: Path, plan: Plan, record: Mapping[str, Any]) -> tuple[dict[str, str], list[Missing]]:
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
            listed=record["listed"],
            variables=(R2, FLOOR),
            version=hashlib.sha256(own + packed(wanted)).hexdigest()[:24],
            digests=own,
        )
        there = read_marker(root, sheet.name, panel_keys(sheet), whole=True)
        if there is not None and there["version"] != sheet.version:
            before, now = (np.frombuffer(one, "V8") for one in (bytes.fromhex(there["digests"]), own))
            floors = np.asarray(files.open_array(root / FLOOR)[sheet.side(0)])
            done = _same(before, now)
            done[: len(floors)] &= np.isfinite(floors.reshape(len(floors), -1)).all(axis=1)
            done[len(floors) :] = False
            if not (wanted & ~done).any():
                sheet = replace(sheet, version=there["version"])
            else:
                sheet = replace(sheet, keep=packed(done))
                wanted = wanted & ~done
        versions[sheet.name] = sheet.version
        if there is None or there["version"] != sheet.version:
            found.append(Missing(sheet, wanted))
    return versions, found


def _digests(record: Mapping[str, Any]) -> list[bytes]:
    return [bytes.fromhex(one["digest"]) for one in record["members"]]


def _variables(about: Mapping[str, Any]) -> list[str]:
    """Return what results hold of pairs; nothing where there are none."""
    if not about["pairs"]:
        return []
    measures = about["definition"]["measures"]
    return [*measures, *RANKS, VIEW, *([BY_FREQUENCY] if about["frequencies"] else [])]


def what_is_missing(root: Path) -> str:
    """Return in words what is not committed, "" where everything is."""
    about = _checked_record(root)

    def count(versions: Mapping[str, str]) -> int:
        markers = ((read_marker(root, name), version) for name, version in versions.items())
        return sum(marker is not None and marker["version"] == version for marker, version in markers)

    between = between_keys(len(about["members"]))
    if about["off_block"] and read_marker(root, BETWEEN_MARKER, between) is None:
        return "how far rows are from all translations is not there, and reads as NaN"
    panels, tiles = len(about["panels"]), len(about["tiles"])
    if (explained := count(about["panels"])) < panels:
        return f"of {panels - explained} of {panels} panels it is not there what they explain"
    if (there := count(about["tiles"])) < tiles:
        return f"{there} of {tiles} tiles are there, the numbers of the others read as NaN"
    return ""
