"""The results store: one Zarr v3 group that xarray opens, one chunk a tile, one commit marker a tile.

results.zarr/                zarr.json holds what every number means and which plan made it
  svcca, pwcca_x, ...        (x, y[, variance]) float64, NaN where no comparison was asked for
  rank_x, rank_y             (x[, variance]), (y[, variance])
  x_layer, y_layer, ...      labels
  commits/0-3.json           tile (0, 3) and its mirror are complete: checksums of their chunks
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import zarr

from dsvcca import files
from dsvcca.activations import FORMAT, KEY, read_attributes
from dsvcca.arrays import NumpyArray
from dsvcca.errors import DsvccaError
from dsvcca.labels import Label, label_order, nearest
from dsvcca.measures import MEASURES
from dsvcca.plan import Plan

COMMITS = "commits"

MIRRORED = {"pwcca_x": "pwcca_y", "pwcca_y": "pwcca_x"}
"""Measures that exchange when x and y do."""


def create_results(out: str | os.PathLike[str], plan: Plan, about: Mapping[str, Any]) -> Path:
    """Create the results store of a plan, or check that the one that is there belongs to it.

    Raises
    ------
    DsvccaError
        If something else lies at `out`, or the results of a plan whose numbers would differ.
    """
    root = files.local_path(out, "results")
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        with files.disk_errors(root):
            files.make_parents(root)
            folder = files.stage(root.parent)
            try:
                _skeleton(folder, plan, about)
                files.seal(folder)
                files.publish(folder, root)
            finally:
                files.discard(folder)
    there = _results_attributes(root)
    if there["plan"] != plan.fingerprint:
        raise DsvccaError(
            f"'{root}' holds the results of another plan ({_difference(there['meaning'], plan)}): choose another "
            "results folder, or remove this one"
        )
    return root


def missing_tiles(root: Path, plan: Plan) -> list[tuple[int, int]]:
    """Return the tiles of the plan that are not committed, or whose chunks are not those committed."""
    return [tile for tile in plan.tiles if not _is_committed(root, tile)]


def write_tile(root: Path, tile: tuple[int, int], values: Mapping[str, NumpyArray], panel: int) -> None:
    """Write one tile and its mirror, and then the marker that makes them count.

    Parameters
    ----------
    values : mapping
        For each measure (rows, columns, variances); the mirror of `pwcca_x` is `pwcca_y`, of the others themselves.
    """
    checksums: dict[str, str | None] = {}
    for name, block in values.items():
        array = zarr.open_array(str(root / name), mode="r+")
        for target, (i, j) in ((block, tile), (values[MIRRORED.get(name, name)].swapaxes(0, 1), tile[::-1])):
            if (i, j) == tile and target is not block:
                continue  # a tile on the diagonal is its own mirror
            rows, columns = slice(i * panel, i * panel + target.shape[0]), slice(j * panel, j * panel + target.shape[1])
            array[rows, columns] = target if array.ndim == 3 else target[..., 0]
            key = f"{name}/c.{i}.{j}" + (".0" if array.ndim == 3 else "")
            files.sync(root / key)
            checksums[key] = files.chunk_tail(root / key)
        files.sync_folder(root / name)
    files.write_json(root / COMMITS / f"{tile[0]}-{tile[1]}.json", checksums)


def write_ranks(root: Path, ranks: NumpyArray) -> NumpyArray:
    """Add kept ranks (representations, variances; 0 where not known) to those that are there; return all of them."""
    for name in ("rank_x", "rank_y"):
        array = zarr.open_array(str(root / name), mode="r+")
        there = np.asarray(array[:]).reshape(ranks.shape)
        merged = np.where(ranks > 0, ranks, there)
        if not np.array_equal(merged, there):
            array[:] = merged.reshape(array.shape)
            files.seal(root / name)
    return merged


def add_warnings(root: Path, sentences: Sequence[str]) -> None:
    """Keep warnings with the results."""
    metadata = files.read_json(root / "zarr.json")
    about = metadata["attributes"][KEY]
    if sentences and about["warnings"] != list(sentences):
        about["warnings"] = list(sentences)
        metadata["attributes"]["warnings"] = list(sentences)
        files.write_json(root / "zarr.json", metadata)


def open_results(out: str | os.PathLike[str]) -> xr.Dataset:
    """Open results: variables over x and y (and variance), labels as coordinates, read when they are used.

    Raises
    ------
    DsvccaError
        If there are none at `out`.
    """
    root = files.local_path(out, "results")
    _results_attributes(root)
    found: xr.Dataset = xr.open_zarr(str(root), consolidated=False, chunks=None, mask_and_scale=False)
    names = label_order({str(c)[2:] for c in found.coords if str(c).startswith("x_")})
    coordinates = ["x", *(f"x_{n}" for n in names), "y", *(f"y_{n}" for n in names), "variance"]
    variables = [*MEASURES, "rank_x", "rank_y"]
    return xr.Dataset(
        {name: found[name].variable for name in variables if name in found},
        {name: found[name].variable for name in coordinates if name in found},
        {name: value for name, value in found.attrs.items() if name != KEY},
    )


def select(
    results: xr.Dataset, *, x: Mapping[str, Any] | None = None, y: Mapping[str, Any] | None = None
) -> xr.Dataset:
    """Return the part of results whose x and y carry the given labels.

    Parameters
    ----------
    results : xarray.Dataset
    x, y : mapping, optional
        Label to one value or a list of values, without the ``x_`` and ``y_``.

    Raises
    ------
    DsvccaError
        If a label or a value is nowhere in the results.

    Examples
    --------
    ``select(results, x={"seed": 0}, y={"seed": 0, "step": 1000})``
    """
    chosen = {}
    for side, wanted in (("x", x or {}), ("y", y or {})):
        keep = np.ones(results.sizes[side], dtype=bool)
        for name, value in wanted.items():
            coordinate = f"{side}_{name}"
            if coordinate not in results.coords:
                known = [str(c)[2:] for c in results.coords if str(c).startswith(f"{side}_")]
                raise DsvccaError(f"results have no label {name!r}: {nearest(name, known)}")
            have = results[coordinate].values
            values = [value] if np.ndim(value) == 0 else list(value)
            for one in values:
                if not (have == one).any():
                    raise DsvccaError(f"nothing in these results has {name}={one!r}: {nearest(one, have.tolist())}")
            keep &= np.isin(have, values)
        if not keep.any():
            raise DsvccaError(f"nothing in these results has all of {dict(wanted)}: leave some of the labels out")
        chosen[side] = np.flatnonzero(keep)
    return results.isel(chosen)


def to_frame(results: xr.Dataset, *, measures: Sequence[str] | None = None) -> pd.DataFrame:
    """Return one row per compared pair: labels of x and y, ranks, measures.

    Parameters
    ----------
    results : xarray.Dataset
        All of them, or what `select` left.
    measures : sequence of str, optional
        Default: all there are.

    Returns
    -------
    pandas.DataFrame
        Each unordered pair once; with several variances one row for each.
    """
    there = [name for name in MEASURES if name in results]
    unknown = [m for m in measures or () if m not in there]
    if unknown:
        raise DsvccaError(f"results have no {unknown}: {nearest(unknown[0], there)}")
    chosen = list(measures or there)
    values = {name: results[name].transpose("x", "y", ...).values for name in chosen}
    first = values[chosen[0]]
    xs, ys = results["x"].values, results["y"].values
    twice = np.isin(xs, ys)[:, None] & np.isin(ys, xs)[None, :]
    once = ~twice | (xs[:, None] <= ys[None, :])
    at = np.argwhere(np.isfinite(first) & (once if first.ndim == 2 else once[..., None]))
    columns: dict[str, Any] = {}
    for side, axis in (("x", 0), ("y", 1)):
        for coordinate in (str(c) for c in results.coords if str(c).startswith(f"{side}_")):
            columns[coordinate] = results[coordinate].values[at[:, axis]]
        ranks = results[f"rank_{side}"].transpose(side, ...).values
        columns[f"rank_{side}"] = ranks[at[:, axis]] if ranks.ndim == 1 else ranks[at[:, axis], at[:, 2]]
    if "variance" in results.dims:
        columns["variance"] = results["variance"].values[at[:, 2]]
    for name in chosen:
        columns[name] = values[name][tuple(at.T)]
    return pd.DataFrame(columns)


def _skeleton(folder: Path, plan: Plan, about: Mapping[str, Any]) -> None:
    """Write everything but the numbers."""
    count, variances = len(plan.representations), len(plan.rules)
    extra = ("variance",) if plan.listed else ()
    labels = [r.labels for r in plan.representations]
    names = label_order({name for one in labels for name in one})
    coordinates = " ".join(f"{side}_{name}" for side in "xy" for name in names)
    for measure in plan.measures:
        array = files.create_array(
            folder / measure,
            (count, count, *((variances,) if extra else ())),
            plan.panel,
            "float64",
            ("x", "y", *extra),
            inner=(plan.panel, *((variances,) if extra else ())),
        )
        array.update_attributes({"definition": MEASURES[measure], "coordinates": coordinates})
    for side in "xy":
        shape = (count, *((variances,) if extra else ()))
        ranks = files.create_array(folder / f"rank_{side}", shape, count, "int64", (side, *extra))
        ranks[:] = np.zeros(shape, dtype=np.int64)
        ranks.update_attributes({"definition": f"directions of {side} kept by the rank rule"})
        numbers = files.create_array(folder / side, (count,), count, "int64", (side,))
        numbers[:] = np.arange(count)
        for name in names:
            _write_labels(folder / f"{side}_{name}", [one.get(name) for one in labels], side)
    if plan.listed:
        shares = files.create_array(folder / "variance", (variances,), variances, "float64", ("variance",))
        shares[:] = np.asarray([rule.variance for rule in plan.rules])
    (folder / COMMITS).mkdir()
    files.write_group(folder / COMMITS)
    record = {"format": FORMAT, "kind": "results", "plan": plan.fingerprint, "meaning": plan.meaning, "warnings": []}
    files.write_group(folder, **{KEY: record}, **plan.meaning, **about, warnings=[])


def _write_labels(folder: Path, values: list[Label | None], side: str) -> None:
    present = [type(v) for v in values if v is not None]
    kind = present[0]
    if kind is str:
        array = zarr.create_array(str(folder), shape=(len(values),), dtype=str, dimension_names=[side])
        array[:] = np.asarray(["" if v is None else v for v in values], dtype=object)
        return
    missing = len(present) < len(values)
    dtype = {int: "int64", float: "float64", bool: "bool"}[kind] if not missing else "float64"
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
    return about


def _is_committed(root: Path, tile: tuple[int, int]) -> bool:
    try:
        marker = json.loads((root / COMMITS / f"{tile[0]}-{tile[1]}.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return bool(marker) and all(files.chunk_tail(root / key) == checksum for key, checksum in marker.items())


def _difference(there: Mapping[str, Any], plan: Plan) -> str:
    for name, value in plan.meaning.items():
        if there.get(name) != value:
            return f"{name} is {there.get(name)!r} there and {value!r} here"
    return "it compares other representations, or other activations under the same labels"
