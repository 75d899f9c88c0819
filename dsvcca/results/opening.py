"""The results store: one Zarr v3 group that xarray opens, one chunk a tile, one commit marker a tile.

results.zarr/                zarr.json holds what every number means, and which representation stands in which place
  svcca, pwcca_x, ...        (x, y[, variance]) float64, NaN where no comparison was asked for
  rank_x, rank_y             (x, y[, variance]) int64, 0 where no comparison was asked for
  view                       (x, y) int8, how the two were looked at: its attributes say what the numbers mean
  svcca_by_frequency         (x, y, frequency[, variance]), on request
  correlations               (x, y, correlation[, variance]), on request
  off_block, ...             (x), where something was transformed
  r2_target, ...             (x, target[, variance]), where there are targets
  x_layer, y_layer, ...      labels
  commits/0-3.json           tile (0, 3) and its mirror are complete: of what, and checksums of their chunks
  commits/bases.json         what was learned of every basis: ranks, what its route may have overlooked

Every representation has a place, given when it first came, and keeps it: new ones come last and the arrays grow. One
that a plan does not have is hidden, not forgotten; of one that was replaced the old numbers count for nothing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import xarray as xr

from dsvcca.activations.labels import label_order
from dsvcca.errors import DsvccaError, DsvccaWarning, RunError
from dsvcca.maths.measures import MEASURES
from dsvcca.progress import waiting
from dsvcca.results.commits import BETWEEN_MARKER, COMMITS, between_keys, panel_keys, read_marker, tile_keys
from dsvcca.results.dataset import BETWEEN, BY_FREQUENCY, CORRELATIONS, EXPLAINED, RANKS, VIEW, described
from dsvcca.storage import chunked, files, folders
from dsvcca.storage.records import (
    KEY,
    Learned,
    LearnedRecord,
    Marker,
    ResultsRecord,
    checked,
    damaged,
    read_attributes,
    read_record,
    record_digest,
    said_digest,
)

BASES = f"{COMMITS}/bases.json"


def open_results(out: str | os.PathLike[str]) -> xr.Dataset:
    """Open results: variables over x and y (and variance), labels as coordinates, read when they are used.

    Raises
    ------
    DsvccaError
        If there are none at `out`, or they are damaged.

    Warns
    -----
    DsvccaWarning
        If some of the plan's tiles are not there: their numbers read as NaN, also once they are: open results anew.
    """
    dataset, left = as_they_are(out)
    if left:
        sentence = f"'{folders.reach(out, 'results')}' is not complete: {left}; compare(plan, out) does what is missing"
        warnings.warn(sentence, DsvccaWarning, stacklevel=2)
    return dataset


@waiting("open results")
def as_they_are(out: str | os.PathLike[str]) -> tuple[xr.Dataset, str]:
    """Return results as `open_results` does, and in words what is missing, without a warning."""
    root = folders.reach(out, "results")
    record = _complete_record(root)
    if not says_what_was_written(root, record):
        raise DsvccaError(
            f"what '{root / 'zarr.json'}' says of its numbers was changed after it was written: compare(plan, out) "
            "again writes it anew"
        )
    there = _committed(root, record)
    sound = {key for marker in there.values() for key in marker["chunks"]}
    store = chunked.Only(chunked.zarr_store(root), sound.union(record["checksums"]))
    try:
        found: xr.Dataset = xr.open_zarr(store, consolidated=False, chunks=None, mask_and_scale=False, zarr_format=3)
    except Exception as error:  # whatever Zarr or the library of a URL raises
        raise DsvccaError(
            f"'{root}' cannot be opened ({type(error).__name__}: {error}): if it can be reached, it is damaged: "
            "restore it, or remove it and compare again"
        ) from error
    names = label_order({str(c)[2:] for c in found.coords if str(c).startswith("x_")})
    coordinates = ["x", *(f"x_{n}" for n in names), "y", *(f"y_{n}" for n in names)]
    coordinates += [*(["target"] if record["targets"] else []), *record["listed"]]
    variables = [*variables_of(record), *(EXPLAINED if record["targets"] else ())]
    variables += BETWEEN if record["off_block"] else ()
    if record["frequencies"]:
        coordinates += sorted(str(name) for name in found.coords if str(name).startswith("frequency"))
    if not record["pairs"]:
        coordinates = [name for name in coordinates if name != "y" and not name.startswith("y_")]
    shown = np.asarray(record["shown"])
    dataset = xr.Dataset(
        {name: found[name].variable for name in variables},
        {name: found[name].variable for name in coordinates if name in found},
        {name: value for name, value in found.attrs.items() if name != KEY},
    )
    if not np.array_equal(shown, np.arange(len(record["members"]))):
        dataset = dataset.isel({side: shown for side in "xy" if side in dataset.dims})
        dataset = dataset.assign_coords({side: (side, np.arange(len(shown))) for side in "xy" if side in dataset.dims})
    return dataset, _missing(record, there)


def record_of(root: Path) -> ResultsRecord:
    """Return what results say of themselves; they may be unfinished.

    Raises
    ------
    DsvccaError
        If there are none, or what describes them, or a label, is not what was written.
    """
    if not folders.exists(root):
        raise DsvccaError(f"there are no results at '{root}': check the path, or compare(plan, out) first")
    record = read_record(root, ResultsRecord)
    if record is None:
        raise DsvccaError(f"'{root}' does not hold results of dsvcca: choose another path")
    try:
        _check_sense(record)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(root, "results", error) from error
    for key, problem in _wrong_descriptions(root, record):
        raise DsvccaError(f"'{root / key}' {problem}")
    return record


def _check_sense(record: ResultsRecord) -> None:
    """Raise if a record contradicts itself."""
    definition, count = record["definition"], len(record["members"])
    if not (isinstance(definition["panel"], int) and definition["panel"] > 0):
        raise ValueError(f"panels of {definition['panel']}")
    panels = -(-count // definition["panel"])
    if max(record["shown"], default=0) >= count:
        raise ValueError(f"place {max(record['shown'])} of {count} is shown")
    if not set(definition["measures"]) <= set(MEASURES):
        raise ValueError(f"measures {definition['measures']}")
    if any(int(side) >= panels for name in record["tiles"] for side in name.split("-")):
        raise ValueError(f"tiles {list(record['tiles'])[-1]} of {panels} panels")
    names = {"x", *variables_of(record), *(f"x_{name}" for one in record["members"] for name in one["labels"])}
    if record["off_block"]:
        names.update(BETWEEN)
    if record["targets"]:
        names.update(EXPLAINED)
    if not set(record["listed"]) <= {"variance", "ridge"}:
        raise ValueError(f"lists of {record['listed']}")
    names.update(record["listed"])
    if record["metadata"] is not None and (lacking := sorted(names.difference(record["metadata"]))):
        raise ValueError(f"it has no array {lacking[0]}")


def _wrong_descriptions(root: Path, record: ResultsRecord) -> Iterator[tuple[str, str]]:
    """Yield (file, problem) for what describes arrays, and for labels, that is not what was written."""
    do = f"restore it, or remove '{root}' and compare again"
    metadata = record["metadata"] or {}
    for name, digest in described(root, list(metadata)).items():
        if digest != metadata[name]:
            yield f"{name}/zarr.json", f"is gone or was changed: {do}"
    for key, checksum in record["checksums"].items():
        if chunked.sound_tail(root / key) != checksum:
            yield key, f"is missing or not what was written: {do}"


def _complete_record(root: Path) -> ResultsRecord:
    """Return what results say of themselves, which are there to be read."""
    record = record_of(root)
    if record["metadata"] is None:
        raise DsvccaError(
            f"to '{root}' representations are being added, or were when a run ended: if none is at it, "
            "compare(plan, out) again finishes that"
        )
    return record


def says_what_was_written(root: Path, record: ResultsRecord) -> bool:
    """Return whether what results say for people is what was written."""
    return said_digest(files.read_json(root / "zarr.json")["attributes"]) == record["said"]


def variables_of(record: ResultsRecord) -> list[str]:
    """Return what results hold of pairs; nothing where there are none."""
    if not record["pairs"]:
        return []
    kept = {BY_FREQUENCY: record["frequencies"], CORRELATIONS: record["definition"].get("correlations", 0)}
    return [*record["definition"]["measures"], *RANKS, VIEW, *(name for name, count in kept.items() if count)]


def what_is_missing(root: Path) -> str:
    """Return in words what is not committed, "" where everything is."""
    record = _complete_record(root)
    return _missing(record, _committed(root, record))


def _committed(root: Path, record: ResultsRecord) -> dict[str, Marker]:
    """Return the marker of everything that is there and counts."""
    markers = {name: read_marker(root, name, keys) for name, keys in _keys(record).items()}
    versions = {**record["tiles"], **record["panels"]}
    found = {name: one for name, one in markers.items() if one is not None and one["version"] == versions[name]}
    if record["off_block"] and (one := read_marker(root, BETWEEN_MARKER, between_keys(len(record["members"])))):
        found[BETWEEN_MARKER] = one
    return found


def _keys(record: ResultsRecord) -> dict[str, list[str]]:
    """Return the chunks of every tile and every panel."""
    found = {name: panel_keys(int(name.removeprefix("targets-")), record["listed"]) for name in record["panels"]}
    for name in record["tiles"]:
        i, j = map(int, name.split("-"))
        found[name] = tile_keys((i, j), variables_of(record), record["listed"])
    return found


def _missing(record: ResultsRecord, there: Collection[str]) -> str:
    """Return in words what of a record is not among what is there."""
    if record["off_block"] and BETWEEN_MARKER not in there:
        return "how far rows are from all translations is not there, and reads as NaN"
    if left := sum(name not in there for name in record["panels"]):
        return f"of {left} of {len(record['panels'])} panels it is not there what they explain"
    if left := sum(name not in there for name in record["tiles"]):
        tiles = len(record["tiles"])
        return f"{tiles - left} of {tiles} tiles are there, the numbers of the others read as NaN"
    return ""


def doubt(root: Path) -> float:
    """Return by how much PWCCA of some comparison that is there may be off."""
    return max((marker["doubt"] for marker in _committed(root, _complete_record(root)).values()), default=0.0)


def findings(root: Path) -> Iterator[tuple[str, str, str]]:
    """Read every chunk of results and yield (tile, chunk, problem) for everything that is wrong; never more at once."""
    record = _complete_record(root)
    anew = "compare(plan, out) makes it anew"
    if not says_what_was_written(root, record):
        yield "zarr.json", "", f"what it says of the numbers was changed: {anew}"
    for name, is_sound in ((f"{COMMITS}/zarr.json", has_commits(root)), (BASES, learned_of(root) is not None)):
        if not is_sound:
            yield name, "", f"is gone or damaged: {anew}"
    versions: dict[str, str | None] = {**record["tiles"], **record["panels"]}
    expected = _keys(record)
    versions |= {BETWEEN_MARKER: None} if record["off_block"] else {}
    for name, version in versions.items():
        wrong: list[str] = []

        def tail_of(path: Path, wrong: list[str] = wrong) -> str | None:
            if (tail := chunked.sound_tail(path)) is None:
                wrong.append(path.relative_to(root).as_posix())
            return tail

        if not folders.exists(root / COMMITS / f"{name}.json"):
            yield name, "", "is not there, since it was not computed yet, or was lost: compare(plan, out) makes it"
            continue
        keys = between_keys(len(record["members"])) if version is None else expected[name]
        marker = read_marker(root, name, keys, tail_of=tail_of)
        if marker is None or version not in (None, marker["version"]):
            yield name, wrong[0] if wrong else "", f"is not what was committed: {anew}"


def learned_of(root: Path) -> dict[str, LearnedRecord] | None:
    """Return what was learned of bases, by their fingerprints; None where it cannot be read, and is learned again."""
    try:
        found = checked(Learned, files.read_json(root / BASES))
    except RunError:
        raise
    except (FileNotFoundError, ValueError):
        return None
    return found["bases"] if found.get("digest") == record_digest(found) else None


def has_commits(root: Path) -> bool:
    """Return whether the group of markers says that it is one."""
    try:
        return read_attributes(root / COMMITS) is not None
    except RunError:
        raise
    except DsvccaError:
        return False
