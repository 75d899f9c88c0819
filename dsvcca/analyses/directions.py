"""Canonical directions of one pair of a population, from stored bases, and its variates streamed to Zarr."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client

from dsvcca.activations.labels import Label, Labels
from dsvcca.activations.representations import Representation
from dsvcca.activations.store import Store
from dsvcca.analyses.stored_bases import Stored, cross_of, plan_of_bases, products_of, stored_bases
from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.cca import CanonicalCorrelations, canonical
from dsvcca.maths.dft import FrequencyCorrelations, frequency_correlations
from dsvcca.maths.in_memory import maps_of, warn_of_few_rows
from dsvcca.plans.plan import Plan
from dsvcca.plans.planning import ALL_BUT_NOISE
from dsvcca.storage import chunked, files, folders

BY_FREQUENCY = ("dft", "alias-empirical")
"""Views whose directions are filters."""

ROWS = 2048
"""Rows of variates in a chunk."""


def directions(
    store: Store,
    x: Mapping[str, Label],
    y: Mapping[str, Label],
    *,
    view: str = "auto",
    center: str = "all",
    variance: float = ALL_BUT_NOISE,
    criterion: str = "variance",
    rank: int | None = None,
    out: str | os.PathLike[str] | None = None,
    workspace: str | os.PathLike[str] | None = None,
    memory: int | str = "1 GiB",
    client: Client | None = None,
) -> CanonicalCorrelations | FrequencyCorrelations:
    """Return correlations, directions, singular values and vectors of one pair of representations.

    As `cca` (or, for maps seen by frequency, `dft_cca`) of the two arrays gives them, but from the bases that
    comparisons left in the workspace, which are made if they are not there. No activations are read but for that.

    Parameters
    ----------
    store : Store
    x, y : mapping
        Labels that one representation alone carries, such as ``{"seed": 0, "layer": "fc1", "step": 100}``.
    view, center, variance, criterion, rank, memory
        As for `plan_comparisons`. Columns are those of the view: channels of means over space, for instance.
    out : path, optional
        Also write correlations, directions, means, weights, singular values and vectors, and the variates of all rows,
        which are not held in memory, to a new Zarr group that ``xarray.open_zarr(out, consolidated=False)`` opens. Not
        of maps seen by frequency.
    workspace : path, optional
        Where bases are; by default beside the store.
    client : distributed.Client, optional
        What makes missing bases; by default this process.

    Returns
    -------
    CanonicalCorrelations or FrequencyCorrelations
        Of NumPy arrays. `variates` takes new datapoints, `project`, `compress` and `important_neurons` work as in
        memory.

    Raises
    ------
    DsvccaError
        If labels do not name one representation, the view has no directions, or something is at `out` already.

    Warns
    -----
    DsvccaWarning
        As `cca`.
    """
    for side, labels in (("x", x), ("y", y)):
        if not isinstance(labels, Mapping) or not all(np.ndim(value) == 0 for value in labels.values()):
            raise DsvccaError(f"{side}={labels!r}: give the labels of one representation, such as {{'layer': 'fc1'}}")
    rule = {"variance": variance, "criterion": criterion, "rank": rank}
    plan = plan_of_bases(store, [(dict(x), dict(y))], view=view, center=center, memory=memory, **rule)
    if plan.pairs.count != 1:
        raise DsvccaError(
            f"{dict(x)} and {dict(y)} are carried by {plan.pairs.count} pairs of representations: give labels that one "
            "alone carries on each side"
        )
    (i, j), name = _pair(plan, x)
    if name not in (*BY_FREQUENCY, "neurons", "mean", "max", "flatten", "positions"):
        raise DsvccaError(f"view {name!r} has no directions in the activations as they are: use view='dft' or 'mean'")
    root = None if out is None else folders.reach(out, "variates")
    if root is not None:
        if name in BY_FREQUENCY:
            raise DsvccaError("out= holds variates of rows; those of maps are maps: variates(x=maps) gives them")
        if not files.is_free(root):
            raise DsvccaError(f"something is at '{root}' already: choose another out=, or remove it")
    bases = stored_bases(plan, workspace, client=client, wanted={i, j})
    one, other = bases[i], bases[j]
    warn_of_few_rows(one.basis.count, int(one.ranks.max()), int(other.ranks.max()))
    if name in BY_FREQUENCY:
        spaces = tuple(_of(plan, k).logical_shape[1:-1] for k in (i, j))
        products = products_of(one, other, plan.tile_budget)
        return frequency_correlations(name, (spaces[0], spaces[1]), one.basis, other.basis, products)
    [c] = cross_of(one, other, plan.tile_budget)
    found = canonical(c, *(maps_of(side.basis, side.inverses[0]) for side in (one, other)))
    if root is not None:
        about = {"view": name, "rank_rule": str(plan.widest), "x": _of(plan, i).labels, "y": _of(plan, j).labels}
        with files.disk_errors(root):
            _write(root, found, one, other, about)
    return found


def _pair(plan: Plan, x: Mapping[str, Label]) -> tuple[tuple[int, int], str]:
    """Return the aspects of the only pair of a plan, that of x first, and what the comparison is called."""
    for tile in plan.tiles:
        for one in plan.passes(tile):
            for a, b in np.argwhere(one.wanted).tolist():
                i, j = one.x[a], one.y[b]
                name = plan.names[int(one.names[a, b]) - 1]
                turned = not _carries(_of(plan, i).labels, x)
                return ((j, i) if turned else (i, j)), name
    raise DsvccaError("the two cannot be compared: see plan_comparisons(store, [(x, y)])")


def _carries(labels: Labels, wanted: Mapping[str, Label]) -> bool:
    return all(labels.get(name) == value for name, value in wanted.items())


def _of(plan: Plan, aspect: int) -> Representation:
    return plan.representations[plan.aspects[aspect].representation]


def _write(root: Path, found: CanonicalCorrelations, x: Stored, y: Stored, about: Mapping[str, Any]) -> None:
    """Write what was found and the variates of all rows; the group exists once all of it is there."""
    files.make_parents(root)
    folders.make(root)
    values: dict[str, tuple[tuple[str, ...], Any]] = {"correlations": (("direction",), found.correlations)}
    for side in "xy":
        neuron, kept = f"{side}_neuron", f"{side}_kept"
        values |= {
            f"{side}_directions": ((neuron, "direction"), getattr(found, f"{side}_directions")),
            f"{side}_mean": ((neuron,), getattr(found, f"{side}_mean")),
            f"{side}_weights": (("direction",), getattr(found, f"{side}_weights")),
            f"{side}_singular_values": ((kept,), getattr(found, f"{side}_singular_values")),
            f"{side}_singular_vectors": ((neuron, kept), getattr(found, f"{side}_singular_vectors")),
        }
    for name, (dims, numbers) in values.items():
        array = chunked.create_array(root / name, numbers.shape, numbers.shape[0], "float64", dims)
        array[...] = numbers
    for side, stored in (("x", x), ("y", y)):
        leading = getattr(found, f"{side}_loadings") @ getattr(found, f"{side}_directions")
        _write_variates(root / f"{side}_variates", stored, leading)
    chunked.seal(root)
    files.write_group(root, **about, dsvcca_version=version("dsvcca"))


def _write_variates(folder: Path, stored: Stored, leading: NumpyArray) -> None:
    """Write the variates of all rows, a step of the grid at a time: orthonormal columns times (k, c)."""
    shape = stored.basis.count, leading.shape[1]
    array = chunked.create_array(folder, shape, min(ROWS, shape[0]), "float64", ("row", "direction"))
    for step, [columns] in stored.columns():
        chunked.write_rows(array, folder, step.start, columns @ leading)
