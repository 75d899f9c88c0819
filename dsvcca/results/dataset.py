"""The arrays of results: which there are, made or grown to hold every representation there ever was.

Numbers of pairs are measured by tasks, everything else is written here: labels, frequencies, names of targets.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsvcca.activations.labels import Label, Labels, label_order
from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.frequencies import half_spectrum
from dsvcca.maths.measures import BY_RIDGE, MEASURES
from dsvcca.maths.views import DEFINITIONS, spelled
from dsvcca.plans.plan import Plan
from dsvcca.plans.targets import target_names
from dsvcca.storage import chunked, folders

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

VIEW, BY_FREQUENCY, CORRELATIONS = "view", "svcca_by_frequency", "correlations"

INNER = {BY_FREQUENCY: "frequency", CORRELATIONS: "correlation"}
"""Dimension, after x and y, of what results hold of pairs beside the measures."""

LABELS_CHUNK = 4096
"""Labels in a chunk."""


def inner_dims(name: str) -> tuple[str, ...]:
    """Return the dimensions of the numbers of pairs after x and y, as tasks have them."""
    return ((INNER[name],) if name in INNER else ("ridge",) if name in BY_RIDGE else ()) + ("variance",)


def stored_dims(name: str, listed: Collection[str]) -> tuple[str, ...]:
    """Return those that results have: of variances and ridges only where a list of them was given."""
    found = inner_dims(name) if name != VIEW else ()
    return tuple(dim for dim in found if dim in INNER.values() or dim in listed)


@dataclass(frozen=True)
class Column:
    """One array of results.

    Attributes
    ----------
    values : array or None
        What is in it; None where tasks write it.
    """

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: Any
    dims: tuple[str, ...]
    attributes: dict[str, Any]
    values: NumpyArray | None = None


def columns_of(plan: Plan, labels: Sequence[Labels], views: Sequence[str]) -> list[Column]:
    """Return all arrays of the results of a plan.

    Parameters
    ----------
    labels : sequence of dict
        Of every representation, in the order of places.
    views : sequence of str
        What `view` tells apart.

    Raises
    ------
    DsvccaError
        If some labels cannot stand beside each other.
    """
    names = label_order({name for one in labels for name in one})
    found = _of_pairs(plan, len(labels), names, views) if plan.tiles else []
    found += _of_representations(plan, len(labels), names)
    for side in "xy":
        found.append(_given(side, np.arange(len(labels)), side))
        found += [_label(f"{side}_{name}", [one.get(name) for one in labels], side) for name in names]
    for name, values, said in (
        ("variance", [rule.variance for rule in plan.rules], "share of each representation that is kept (rank_rule)"),
        (
            "ridge",
            plan.ridges,
            "added to the covariance of activations whose centred rows have a mean squared norm of 1",
        ),
    ):
        if name in plan.listed:
            found.append(_given(name, np.asarray(values), name, {"definition": said}))
    return found


def fit(root: Path, columns: Sequence[Column]) -> tuple[dict[str, str], dict[str, str]]:
    """Make every array, or grow it; return what describes each (SHA-256) and the checksum of each given chunk."""
    for one in columns:
        array = chunked.fit_array(root / one.name, one.shape, one.chunks, one.dtype, one.dims, one.attributes)
        if one.values is not None:
            array[...] = one.values
    checksums: dict[str, str] = {}
    for one in columns:
        if one.values is not None:
            for key in _keys(one):
                tail = chunked.chunk_tail(root / one.name / key)
                if tail is None:
                    raise OSError(errno.EIO, "what was written is not there", str(root / one.name / key))
                checksums[f"{one.name}/{key}"] = tail
            for key in _keys(one):
                folders.sync(root / one.name / key)
        folders.sync(root / one.name / "zarr.json")
    return described(root, [one.name for one in columns]), checksums


def described(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of what describes each array, "" where it is gone."""
    content = {name: chunked.content_of(root / name / "zarr.json") for name in names}
    return {name: hashlib.sha256(one).hexdigest() if one else "" for name, one in content.items()}


def _keys(column: Column) -> list[str]:
    """Return the names of the chunks of a one-dimensional array."""
    return [f"c.{i}" for i in range(-(-column.shape[0] // column.chunks[0]))]


def _coordinates(names: Sequence[str], sides: str = "xy") -> str:
    return " ".join(f"{side}_{name}" for side in sides for name in names)


def _of_pairs(plan: Plan, count: int, names: Sequence[str], views: Sequence[str]) -> list[Column]:
    """Return what tasks write of every pair: measures, ranks, how they were looked at, frequencies."""
    lengths = {"frequency": plan.kept_frequencies, "correlation": plan.correlations}
    lengths |= {"ridge": len(plan.ridges), "variance": len(plan.rules)}

    def column(name: str, dtype: str, about: dict[str, Any]) -> Column:
        dims = stored_dims(name, plan.listed)
        last = tuple(lengths[dim] for dim in dims)
        return Column(name, (*square, *last), (*tile, *last), dtype, ("x", "y", *dims), about)

    square, tile = (count, count), (plan.panel, plan.panel)
    coordinates = {"coordinates": _coordinates(names)}
    kinds = {name: {"kind": MEASURES[name].kind} for name in plan.measures} | {name: {} for name in RANKS}
    definitions = {name: MEASURES[name].definition + _what_is_left_out(plan, name) for name in plan.measures}
    definitions |= {name: f"directions of {name[-1]} kept by the rank rule" for name in RANKS}
    found = [
        column(
            name,
            "int64" if name in RANKS else "float64",
            {"definition": definition, **kinds.get(name, {}), **coordinates},
        )
        for name, definition in definitions.items()
    ]
    flags: dict[str, Any] = {"flag_values": list(range(1, len(views) + 1)), "flag_meanings": " ".join(views)}
    flags |= {"flag_definitions": {name: DEFINITIONS[name] for name in views}}
    said = {"definition": "how the two were looked at", **coordinates, **flags}
    found.append(column(VIEW, "int8", said))
    if plan.kept_frequencies:
        frequencies = _frequencies(plan)
        definition = "mean canonical correlation at a frequency, sum(rho) / min(k_x, k_y); NaN where a side keeps none"
        every = " ".join([coordinates["coordinates"], *(one.name for one in frequencies)])
        about = {"definition": definition, "coordinates": every}
        found.append(column(BY_FREQUENCY, "float64", about))
        found += frequencies
    if plan.correlations:
        definition = f"canonical correlations, the {plan.correlations} largest at most, largest first; NaN by frequency"
        found.append(column(CORRELATIONS, "float64", {"definition": definition, **coordinates}))
    return found


def _what_is_left_out(plan: Plan, name: str) -> str:
    """Return in words what a rank rule does to measures of all of the activations."""
    if MEASURES[name].of_kept or all(rule.variance == 1 and rule.rank is None for rule in plan.rules):
        return ""
    return (
        "; of the kept directions over all of the activations: a little smaller than with variance=1.0, also of a "
        "layer with itself"
    )


def _frequencies(plan: Plan) -> list[Column]:
    """Return which frequency of which grid each is of those that results hold."""
    axes = [f"frequency_{i}" for i in range(max(map(len, plan.grids)))]
    said = {
        "frequency_grid": "sizes of the maps whose transform this bin belongs to (of different sizes, of the smaller)",
        "frequency_weight": "bins that this one stands for: 2 with its conjugate, else 1",
        "frequency_cycles": "cycles per position, the length of the frequency: 0 is the mean, 0.5 changes everywhere",
        **{name: f"cycles along axis {i} of the maps, negative ones too" for i, name in enumerate(axes)},
    }
    columns: dict[str, list[Any]] = {name: [] for name in said}
    for half in (half_spectrum(grid) for grid in plan.grids):
        signed_bins = np.where(2 * half.bins > np.asarray(half.space), half.bins - np.asarray(half.space), half.bins)
        columns["frequency_grid"] += [spelled(half.space)] * len(half.bins)
        columns["frequency_weight"] += half.weights.tolist()
        columns["frequency_cycles"] += np.sqrt(((signed_bins / half.space) ** 2).sum(axis=1)).tolist()
        for i in range(len(axes)):
            columns[f"frequency_{i}"] += signed_bins[:, i].tolist() if i < len(half.space) else [0] * len(half.bins)
    types: dict[str, Any] = {"frequency_grid": object, "frequency_cycles": np.float64}
    return [
        _given(name, np.asarray(values, dtype=types.get(name, np.int64)), "frequency", {"definition": said[name]})
        for name, values in columns.items()
    ]


def _of_representations(plan: Plan, count: int, names: Sequence[str]) -> list[Column]:
    """Return what there is of every representation on its own: what lies between frequencies, and its targets."""
    own = {"coordinates": _coordinates(names, "x")}
    found = []
    if plan.transforms:
        for name, definition in BETWEEN.items():
            about = {"definition": definition, **own}
            found.append(Column(name, (count,), (LABELS_CHUNK,), "float64", ("x",), about))
    if plan.targets:
        explained = target_names(plan.targets)
        extra, last = (("variance",), (len(plan.rules),)) if "variance" in plan.listed else ((), ())
        shapes = {R2: ((len(explained), *last), ("x", "target", *extra)), FLOOR: (last, ("x", *extra))}
        for name, (shape, dims) in shapes.items():
            about = {"definition": EXPLAINED[name], **own, "view": plan.target_view}
            found.append(Column(name, (count, *shape), (plan.panel, *shape), "float64", dims, about))
        found.append(_given("target", np.asarray(explained, dtype=object), "target"))
    return found


def _given(name: str, values: NumpyArray, dim: str, attributes: dict[str, Any] | None = None) -> Column:
    """Return an array of which everything is known; of representations it can grow."""
    chunk = LABELS_CHUNK if dim in "xy" else len(values)
    dtype = str if values.dtype == object else values.dtype.name
    return Column(name, values.shape, (chunk,), dtype, (dim,), attributes or {}, values)


def _label(name: str, values: Sequence[Label | None], side: str) -> Column:
    """Return one label of every representation; a missing one is "" or NaN."""
    present = [v for v in values if v is not None]
    kind = type(present[0])
    missing = len(present) < len(values)
    if kind is int and missing and max(abs(int(v)) for v in present) > 2**53:
        raise DsvccaError(
            f"label {name[2:]} is an integer above 2^53 that some representations do not have: it would lose "
            "digits beside them; give it to all of them, or write it as a str"
        )
    if kind is str:
        return _given(name, np.asarray(["" if v is None else v for v in values], dtype=object), side)
    dtype = np.float64 if missing else {int: np.int64, float: np.float64, bool: np.bool_}[kind]
    return _given(name, np.asarray([np.nan if v is None else v for v in values], dtype=dtype), side)
