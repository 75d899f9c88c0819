"""The results store: one Zarr v3 group that xarray opens, one chunk a tile, one commit marker a tile.

results.zarr/                zarr.json holds what every number means and which plan made it
  svcca, pwcca_x, ...        (x, y[, variance]) float64, NaN where no comparison was asked for
  rank_x, rank_y             (x, y[, variance]) int64, 0 where no comparison was asked for
  view                       (x, y) int8, how the two were looked at: its attributes say what the numbers mean
  svcca_by_frequency         (x, y, frequency[, variance]), on request
  off_block, ...             (x), where something was transformed
  r2_target, ...             (x, target[, variance]), where there are targets
  x_layer, y_layer, ...      labels
  commits/0-3.json           tile (0, 3) and its mirror are complete: checksums of their chunks
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from dsvcca import files
from dsvcca.activations import FORMAT, KEY, read_attributes, signed
from dsvcca.arrays import NumpyArray
from dsvcca.errors import DsvccaError, DsvccaWarning
from dsvcca.frequencies import half_spectrum
from dsvcca.labels import Label, label_order
from dsvcca.measures import MEASURES
from dsvcca.plan import Plan
from dsvcca.targets import target_names
from dsvcca.views import DEFINITIONS, spelled

COMMITS, BASES = "commits", "bases"

RANKS = ("rank_x", "rank_y")

R2, FLOOR = "r2_target", "r2_target_floor"

EXPLAINED = {
    R2: "share of the variance of a target that the kept directions of x explain, ||U_x^H y||^2 / ||y||^2; of several "
    "columns together the mean squared canonical correlation over their rank",
    FLOOR: "what r2_target of a target that has nothing to do with x is expected to be",
}
"""Name and definition of what results hold of targets."""

BETWEEN = {
    "off_block": "share of squared covariance that lies between different frequencies of x, less what noise shows; 0 "
    "where rows hold all translations of their images (Raghu et al. 2017, theorem 1 and figure App. 2)",
    "off_block_floor": "what noise shows of it in so many rows, and was taken off",
}
"""Name and definition of what results hold of every representation that was transformed."""

VIEW, BY_FREQUENCY = "view", "svcca_by_frequency"

MIRRORED = {"pwcca_x": "pwcca_y", "pwcca_y": "pwcca_x", "rank_x": "rank_y", "rank_y": "rank_x"}
"""Variables that exchange when x and y do."""


def create_results(out: str | os.PathLike[str], plan: Plan, about: Mapping[str, Any]) -> Path:
    """Create the results store of a plan, or check that the one that is there belongs to it.

    Raises
    ------
    DsvccaError
        If something else lies at `out`, or the results of a plan whose numbers would differ.
    """
    root = files.local_path(out, "results")
    if files.is_free(root):
        with files.disk_errors(root):
            files.make_parents(root)
            folder = files.stage(root.parent)
            try:
                _skeleton(folder, plan)
                record = {
                    "format": FORMAT,
                    "kind": "results",
                    "plan": plan.fingerprint,
                    "meaning": plan.meaning,
                    "listed": plan.listed,
                    "tiles": len(plan.tiles),
                    "targets": len(plan.panels) if plan.targets else 0,
                    "off_block": plan.transforms,
                    "frequencies": plan.kept_frequencies,
                    "warnings": None,
                    "checksums": files.seal(folder),
                }
                record["metadata"] = _metadata(folder)
                files.write_group(folder, **{KEY: signed(record)}, **plan.meaning, **about, warnings=[])
                files.publish(folder, root)
            finally:
                files.discard(folder)
    there = _results_attributes(root)
    if there["plan"] != plan.fingerprint:
        raise DsvccaError(
            f"'{root}' holds the results of another plan ({_difference(root, there, plan)}): choose another "
            "results folder, which costs little as bases are kept and used again, or remove this one"
        )
    return root


def missing_tiles(root: Path, plan: Plan) -> list[tuple[int, int]]:
    """Return the tiles of the plan that are not committed, or whose chunks are not those committed."""
    about = _results_attributes(root)
    return [tile for tile in plan.tiles if not _is_committed(root, _name(tile), _tile_keys(about, tile))]


def write_tile(root: Path, tile: tuple[int, int], values: Mapping[str, NumpyArray], panel: int) -> None:
    """Write one tile and its mirror, and then the marker that makes them count.

    Parameters
    ----------
    values : mapping
        Each variable (rows, columns, variances), `view` (rows, columns, 1), by frequency (rows, columns, frequencies,
        variances); the mirror of `pwcca_x` is `pwcca_y`, of `rank_x` `rank_y`, of the others themselves.
    """
    about = _results_attributes(root)
    for name in _variables(about):
        block, array = values[name], _opened(root / name)
        mirror = values[MIRRORED.get(name, name)].swapaxes(0, 1)
        for target, (i, j) in ((block, tile), (mirror, tile[::-1]))[: len(set(tile))]:  # a diagonal tile is its mirror
            rows, columns = slice(i * panel, i * panel + target.shape[0]), slice(j * panel, j * panel + target.shape[1])
            array[rows, columns] = target if about["listed"] and name != VIEW else target[..., 0]
    _commit(root, _name(tile), _tile_keys(about, tile))


def missing_targets(root: Path, plan: Plan) -> list[int]:
    """Return the panels for which it is not committed what they explain of the targets."""
    about = _results_attributes(root)
    count = len(plan.panels) if plan.targets else 0
    return [i for i in range(count) if not _is_committed(root, f"targets-{i}", _target_keys(about, i))]


def write_targets(root: Path, place: int, values: Mapping[str, NumpyArray], panel: int) -> None:
    """Write what one panel explains of the targets, and then the marker that makes it count.

    Parameters
    ----------
    values : mapping
        `r2_target` (rows, targets, variances) and `r2_target_floor` (rows, variances).
    """
    about = _results_attributes(root)
    for name, block in values.items():
        array = _opened(root / name)
        array[place * panel : place * panel + len(block)] = block if about["listed"] else block[..., 0]
    _commit(root, f"targets-{place}", _target_keys(about, place))


def are_bases_known(root: Path) -> bool:
    """Return whether it is there what the bases say: what to warn of, and how far rows are from all translations."""
    about = _results_attributes(root)
    return about["warnings"] is not None and (not about["off_block"] or _is_committed(root, BASES, _base_keys()))


def write_off_block(root: Path, values: NumpyArray) -> None:
    """Write `off_block` and `off_block_floor` (representations, 2); NaN where there is none."""
    for name, column in zip(BETWEEN, values.T, strict=True):
        _opened(root / name)[:] = column
    _commit(root, BASES, _base_keys())


def add_warnings(root: Path, sentences: Sequence[str]) -> None:
    """Keep warnings with the results."""
    metadata = files.read_json(root / "zarr.json")
    about = metadata["attributes"][KEY]
    if about["warnings"] != list(sentences):
        about["warnings"] = list(sentences)
        metadata["attributes"][KEY] = signed(about)
        metadata["attributes"]["warnings"] = list(sentences)
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
    root = files.local_path(out, "results")
    about = _results_attributes(root)
    found: xr.Dataset = xr.open_zarr(str(root), consolidated=False, chunks=None, mask_and_scale=False)
    names = label_order({str(c)[2:] for c in found.coords if str(c).startswith("x_")})
    coordinates = ["x", *(f"x_{n}" for n in names), "y", *(f"y_{n}" for n in names), "variance"]
    variables = [*_variables(about), *(EXPLAINED if about["targets"] else ()), *(BETWEEN if about["off_block"] else ())]
    if about["targets"]:
        coordinates.insert(-1, "target")
    if about["frequencies"]:
        coordinates += sorted(str(name) for name in found.coords if str(name).startswith("frequency"))
    if not about["tiles"]:
        coordinates = [name for name in coordinates if name != "y" and not name.startswith("y_")]
    left = _what_is_missing(root, about)
    if left:
        sentence = f"'{root}' is not complete: {left}; compare(plan, out) does what is missing"
        warnings.warn(sentence, DsvccaWarning, stacklevel=2)
    return xr.Dataset(
        {name: found[name].variable for name in variables},
        {name: found[name].variable for name in coordinates if name in found},
        {name: value for name, value in found.attrs.items() if name != KEY},
    )


def _skeleton(folder: Path, plan: Plan) -> None:
    """Write everything but the numbers."""
    count, variances = len(plan.representations), len(plan.rules)
    extra = ("variance",) if plan.listed else ()
    labels = [r.labels for r in plan.representations]
    names = label_order({name for one in labels for name in one})
    coordinates = " ".join(f"{side}_{name}" for side in "xy" for name in names)
    definitions = {name: MEASURES[name] for name in plan.measures}
    definitions |= {name: f"directions of {name[-1]} kept by the rank rule" for name in RANKS}
    for name, definition in definitions.items() if plan.tiles else ():
        array = files.create_array(
            folder / name,
            (count, count, *((variances,) if extra else ())),
            plan.panel,
            "int64" if name in RANKS else "float64",
            ("x", "y", *extra),
            inner=(plan.panel, *((variances,) if extra else ())),
        )
        array.update_attributes({"definition": definition, "coordinates": coordinates})
    if plan.tiles:
        _write_view_array(folder, plan, coordinates)
    if plan.kept_frequencies and plan.tiles:
        _write_frequency_arrays(folder, plan, coordinates)
    if plan.transforms:
        for name, definition in BETWEEN.items():
            array = files.create_array(folder / name, (count,), count, "float64", ("x",))
            own = " ".join(f"x_{label}" for label in names)
            array.update_attributes({"definition": definition, "coordinates": own})
    if plan.targets:
        _write_target_arrays(folder, plan, " ".join(f"x_{name}" for name in names))
    for side in "xy":
        numbers = files.create_array(folder / side, (count,), count, "int64", (side,))
        numbers[:] = np.arange(count)
        for name in names:
            _write_labels(folder / f"{side}_{name}", [one.get(name) for one in labels], side)
    if plan.listed:
        shares = files.create_array(folder / "variance", (variances,), variances, "float64", ("variance",))
        shares[:] = np.asarray([rule.variance for rule in plan.rules])
    (folder / COMMITS).mkdir()
    files.write_group(folder / COMMITS)


def _write_view_array(folder: Path, plan: Plan, coordinates: str) -> None:
    count = len(plan.representations)
    views = files.create_array(folder / VIEW, (count, count), plan.panel, "int8", ("x", "y"), inner=(plan.panel,))
    flags: dict[str, Any] = {"flag_values": list(range(1, len(plan.names) + 1)), "flag_meanings": " ".join(plan.names)}
    flags |= {"flag_definitions": {name: DEFINITIONS[name] for name in plan.names}}
    views.update_attributes({"definition": "how the two were looked at", "coordinates": coordinates, **flags})


def _write_frequency_arrays(folder: Path, plan: Plan, coordinates: str) -> None:
    """Write the array of what is held by frequency, and which frequency of which grid each is."""
    count, total, panel = len(plan.representations), plan.kept_frequencies, plan.panel
    extra, last = (("variance",), (len(plan.rules),)) if plan.listed else ((), ())
    axes = [f"frequency_{i}" for i in range(max(map(len, plan.grids)))]
    said = {
        "frequency_grid": "sizes of the maps whose transform this bin belongs to (of different sizes, of the smaller)",
        "frequency_weight": "bins that this one stands for: 2 with its conjugate, else 1",
        "frequency_cycles": "cycles per position, the length of the frequency: 0 is the mean, 0.5 changes everywhere",
        **{name: f"cycles along axis {i} of the maps, negative ones too" for i, name in enumerate(axes)},
    }
    names = tuple(said)
    shape, dims = (count, count, total, *last), ("x", "y", "frequency", *extra)
    array = files.create_array(folder / BY_FREQUENCY, shape, panel, "float64", dims, inner=(panel, total, *last))
    definition = "mean canonical correlation at a frequency, sum(rho) / min(k_x, k_y); NaN where one side keeps nothing"
    array.update_attributes({"definition": definition, "coordinates": f"{coordinates} {' '.join(names)}"})
    halves = [half_spectrum(grid) for grid in plan.grids]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for half in halves:
        signed_bins = np.where(2 * half.bins > np.asarray(half.space), half.bins - np.asarray(half.space), half.bins)
        columns["frequency_grid"] += [spelled(half.space)] * len(half.bins)
        columns["frequency_weight"] += half.weights.tolist()
        columns["frequency_cycles"] += np.sqrt(((signed_bins / half.space) ** 2).sum(axis=1)).tolist()
        for i in range(len(axes)):
            columns[f"frequency_{i}"] += signed_bins[:, i].tolist() if i < len(half.space) else [0] * len(half.bins)
    for name, values in columns.items():
        kind: Any = {"frequency_grid": str, "frequency_cycles": "float64"}.get(name, "int64")
        one = files.create_array(folder / name, (total,), total, kind, ("frequency",))
        one[:] = np.asarray(values, dtype=object if kind is str else kind)
        one.update_attributes({"definition": said[name]})


def _write_target_arrays(folder: Path, plan: Plan, coordinates: str) -> None:
    count, explained, variances = len(plan.representations), target_names(plan.targets), len(plan.rules)
    extra, last = (("variance",), (variances,)) if plan.listed else ((), ())
    shapes = {R2: ((count, len(explained), *last), ("x", "target", *extra)), FLOOR: ((count, *last), ("x", *extra))}
    for name, (shape, dims) in shapes.items():
        array = files.create_array(folder / name, shape, plan.panel, "float64", dims)
        array.update_attributes({"definition": EXPLAINED[name], "coordinates": coordinates, "view": plan.target_view})
    array = files.create_array(folder / "target", (len(explained),), len(explained), str, ("target",))
    array[:] = np.asarray(explained, dtype=object)


def _write_labels(folder: Path, values: list[Label | None], side: str) -> None:
    """Write one label of every representation; a missing one is "" or NaN."""
    present = [v for v in values if v is not None]
    kind = type(present[0])
    missing = len(present) < len(values)
    if kind is int and missing and max(abs(int(v)) for v in present) > 2**53:
        raise DsvccaError(
            f"label {folder.name[2:]} is an integer above 2^53 that some representations do not have: it would lose "
            "digits beside them; give it to all of them, or write it as a str"
        )
    if kind is str:
        array = files.create_array(folder, (len(values),), len(values), str, (side,))
        array[:] = np.asarray(["" if v is None else v for v in values], dtype=object)
        return
    dtype = "float64" if missing else {int: "int64", float: "float64", bool: "bool"}[kind]
    numbers = files.create_array(folder, (len(values),), len(values), dtype, (side,))
    numbers[:] = np.asarray([np.nan if v is None else v for v in values], dtype=dtype)


def _results_attributes(root: Path) -> dict[str, Any]:
    if not root.exists():
        raise DsvccaError(f"there are no results at '{root}': check the path, or compare(plan, out) first")
    about = read_attributes(root)
    if about is None or about.get("kind") != "results":
        raise DsvccaError(f"'{root}' does not hold results of dsvcca: choose another path")
    if about.get("format") != FORMAT:
        raise DsvccaError(f"'{root}' has format {about.get('format')}, this version reads {FORMAT}: update dsvcca")
    for name, digest in _metadata(root, about["metadata"]).items():
        if digest != about["metadata"][name]:
            raise DsvccaError(
                f"'{root / name}' is gone or was changed: restore it, or remove '{root}' and compare again"
            )
    for key, checksum in about["checksums"].items():
        if files.chunk_tail(root / key) != checksum:
            raise DsvccaError(
                f"'{root / key}' is missing or not what was written: restore it, or remove '{root}' and compare again"
            )
    return about


def _metadata(root: Path, names: Iterable[str] = ()) -> dict[str, str]:
    """Return the SHA-256 of what describes each array, "" where it is gone; by default of all arrays there are."""
    found = {}
    for name in names or sorted(str(path.relative_to(root)) for path in root.glob("*/zarr.json")):
        path = root / name
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
    return found


def _name(tile: tuple[int, int]) -> str:
    return f"{tile[0]}-{tile[1]}"


def _variables(about: Mapping[str, Any]) -> list[str]:
    """Return what results hold of pairs; nothing where there are none."""
    if not about["tiles"]:
        return []
    return [*about["meaning"]["measures"], *RANKS, VIEW, *([BY_FREQUENCY] if about["frequencies"] else [])]


def _base_keys() -> list[str]:
    return [f"{name}/c.0" for name in BETWEEN]


def _target_keys(about: Mapping[str, Any], place: int) -> list[str]:
    """Return the chunks of what one panel explains of the targets."""
    end = ".0" if about["listed"] else ""
    return [f"{R2}/c.{place}.0{end}", f"{FLOOR}/c.{place}{end}"]


def _tile_keys(about: Mapping[str, Any], tile: tuple[int, int]) -> list[str]:
    """Return the chunks of a tile and its mirror."""
    places = dict.fromkeys((tile, tile[::-1]))
    ends = {name: ".0" if about["listed"] and name != VIEW else "" for name in _variables(about)}
    if about["frequencies"]:
        ends[BY_FREQUENCY] += ".0"
    return [f"{name}/c.{i}.{j}{end}" for name, end in ends.items() for i, j in places]


def _opened(path: Path) -> zarr.Array[Any]:
    """Return an array to be written, of which no chunk is left out because nothing but NaN is in it."""
    with zarr.config.set({"array.write_empty_chunks": True}):
        return zarr.open_array(str(path), mode="r+")


def _commit(root: Path, name: str, keys: Sequence[str]) -> None:
    """Bring chunks to the disk, and then the marker that makes them count."""
    for key in keys:
        files.sync(root / key)
    for folder in dict.fromkeys((root / key).parent for key in keys):
        files.sync_folder(folder)
    files.write_json(root / COMMITS / f"{name}.json", {key: files.chunk_tail(root / key) for key in keys})


def _is_committed(root: Path, name: str, keys: Sequence[str]) -> bool:
    """Return whether a marker is there and every chunk is the one it names."""
    try:
        marker = json.loads((root / COMMITS / f"{name}.json").read_bytes())
    except (OSError, ValueError):
        return False
    if not isinstance(marker, dict) or set(marker) != set(keys):
        return False
    return all(marker[key] is not None and files.chunk_tail(root / key) == marker[key] for key in keys)


def _what_is_missing(root: Path, about: Mapping[str, Any]) -> str:
    """Return in words what is not committed, "" where everything is."""
    names = [path.stem for path in (root / COMMITS).glob("*.json")]
    tiles = [(int(i), int(j)) for i, j in (name.split("-") for name in names if re.fullmatch(r"\d+-\d+", name))]
    there = sum(_is_committed(root, _name(tile), _tile_keys(about, tile)) for tile in tiles)
    if about["off_block"] and not _is_committed(root, BASES, _base_keys()):
        return "how far rows are from all translations is not there, and reads as NaN"
    explained = sum(_is_committed(root, f"targets-{i}", _target_keys(about, i)) for i in range(about["targets"]))
    if explained < about["targets"]:
        return f"of {about['targets'] - explained} of {about['targets']} panels it is not there what they explain"
    if there < about["tiles"]:
        return f"{there} of {about['tiles']} tiles are there, the numbers of the others read as NaN"
    return ""


def _difference(root: Path, there: Mapping[str, Any], plan: Plan) -> str:
    for name, value in plan.meaning.items():
        if there["meaning"].get(name) != value:
            return f"{name} is {there['meaning'].get(name)!r} there and {value!r} here"
    count = int(zarr.open_array(str(root / "x"), mode="r").shape[0])
    if count != len(plan.representations):
        return f"it compares {count} representations, {len(plan.representations)} are asked for here"
    return "it compares other representations, or other activations under the same labels"
