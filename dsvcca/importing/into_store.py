"""Import: activations that other tools saved, brought into a store.

Everything is looked at before anything is written: what each array becomes, that labels differ, that all have the same
datapoints. Then one representation after another is read and written in pieces, so that none is held whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dsvcca.activations.labels import Label, check_same_types, describe, label_order
from dsvcca.activations.representations import find_mask, read_mask
from dsvcca.activations.store import Store, create_store, open_store
from dsvcca.activations.writer import check_if_exists, check_same_ids, commit_mask, plain_ids, plain_mask, stored_ids
from dsvcca.errors import DsvccaError, RunError, going_on
from dsvcca.importing.finding import check_cut, find_arrays, is_zarr, pieces_of
from dsvcca.importing.kinds import EXCLUDE, WHOLE, Array, Other
from dsvcca.importing.parts import PART, Part, check_same_parts, datapoints_of, parts_of, together
from dsvcca.maths.arrays import NumpyArray
from dsvcca.progress import track
from dsvcca.storage import files, folders
from dsvcca.storage.records import StoreRecord, read_record


def import_activations(
    source: str | os.PathLike[str],
    store: Store | str | os.PathLike[str],
    *,
    labels: Any = None,
    dims: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    exclude: str | Sequence[str] = (),
    mask: str = "attention_mask",
    ids: Any = None,
    if_exists: str = "error",
    dry_run: bool = False,
    **constants: Label,
) -> pd.DataFrame:
    """Bring activations that other tools saved into a store.

    Read are .npy, .npz, HDF5, safetensors, Parquet (a row a datapoint: all columns of numbers, or each column of
    lists), .mat up to version 7 and text of numbers. The path of an array is that of its file below `source` without
    the end of its name, then what the file calls it: ``run0/acts/conv1`` for conv1 in run0/acts.npz; of a single file
    what it calls the array.

    Parameters
    ----------
    source : path
        A file, or a folder and all folders below it.
    store : Store, path or URL
        A store, or where one is made, with as many datapoints as are found.
    labels : str, mapping or callable, optional
        As for `open_store`: a pattern for paths such as ``"seed{seed}/step{step}/{layer}"``, a mapping from path to
        labels, or a function. By default ``key=value`` parts of a path are labels and the rest of it is the layer.
        Arrays that differ in the label `part` alone are one representation, its datapoints in the order of parts:
        ``"{layer}/batch_{part}"``.
    dims : str, sequence of str, or mapping to them, optional
        As for `open_store`. An axis "layer", or the letter l, as in ``"lntd"``, makes each of its places a
        representation, whose layer is that of the array, a dot and the place.
    exclude : str or sequence of str, optional
        Patterns as of a shell for what to leave out: files below `source`, or paths of arrays.
    mask : str, default "attention_mask"
        Last part of the path of arrays (datapoint, position) that say where tokens are and where padding is: they
        become the mask of the store, see `Store.write_mask`.
    ids : sequence of int or str, optional
        Ids of the datapoints, in order.
    if_exists : {"error", "skip", "replace"}, default "error"
        What to do where the labels are in the store already. With "skip" the same line goes on where it stopped.
    dry_run : bool, default False
        Write nothing.
    **constants
        Labels of all representations: seed=0, step=100, ...

    Returns
    -------
    DataFrame
        One row for each array, or layer in it: labels, file, array, shape, dtype, dims, bytes, what is done with it
        (write, skip, mask, pass over), and why it is passed over.

    Raises
    ------
    DsvccaError
        Before anything is written: if something cannot be read or could only be unpickled, axes or labels cannot be
        told, two have the same labels, or not all have the same datapoints. While writing: for numbers that are NaN or
        infinite, and files that are damaged further in; what was finished then stays.
    """
    check_if_exists(if_exists)
    root = _checked_source(source)
    arrays, others = find_arrays(root, _patterns(exclude))
    masks = {path: array for path, array in arrays.items() if path.rpartition("/")[2] == mask}
    arrays = {path: array for path, array in arrays.items() if path not in masks}
    parts = parts_of(arrays, labels, dims, constants)
    if not parts:
        why = f", '{others[0].file}' for instance: {others[0].why}" if others else ""
        raise DsvccaError(f"'{root}' holds no array of activations{why}: is it the right place?")
    planned = together(parts)
    datapoints = datapoints_of(planned)
    check_same_parts(planned)
    plain = None if ids is None else plain_ids(ids)
    if plain is not None and len(plain) != datapoints:
        raise DsvccaError(f"{len(plain)} datapoint ids were given, '{root}' has {datapoints} datapoints")
    there = _opened(store)
    _check_ids(plain, there)
    if there is not None and there.datapoints != datapoints:
        raise DsvccaError(
            f"{planned[0][0].array} has {datapoints} datapoints, the store '{there.path}' has {there.datapoints}: "
            "import what was made from the same ones, or into another store"
        )
    kept = _kept(planned, there, if_exists)
    valid = _mask(masks, planned, there, datapoints)
    table = _table(planned, kept, masks, others)
    if dry_run:
        return table
    _check_cut(planned, kept)
    made = create_store(
        store.path if isinstance(store, Store) else store, datapoints=datapoints if plain is None else plain
    )
    if valid is not None:
        commit_mask(folders.at(made.path, "store"), valid)
    again = "the same line" + (" with if_exists='skip'" if if_exists == "error" else "")
    with going_on(again), _full(again), track("import", len(planned)) as advance:
        for one in planned:
            if describe(one[0].labels) not in kept:
                _write(made, one, plain, if_exists)
            advance()
    return table


@contextmanager
def _full(again: str) -> Iterator[None]:
    """Let a full disk say how to go on: the same line alone is refused, since what came first is there by then."""
    try:
        yield
    except RunError as error:
        if "the same line" not in str(error):
            raise
        raise RunError(str(error).replace("the same line", again)) from error


def _checked_source(source: str | os.PathLike[str]) -> Path:
    _check_path(source, "source")
    root = folders.at(source, "source")
    if folders.is_remote(root):
        raise DsvccaError(f"source '{root}' is a URL: copy what is there to a folder of this machine")
    if not folders.exists(root):
        raise DsvccaError(f"there is nothing at '{root}': check the path")
    if is_zarr(root):
        raise DsvccaError(f"'{root}' is Zarr, which needs no import: dsvcca.open_store() reads it as it is")
    return root


def _check_path(path: Any, what: str) -> None:
    if not isinstance(path, (str, os.PathLike)):
        raise DsvccaError(f"{what}={path!r} is a {type(path).__name__}: give a path")


def _patterns(exclude: Any) -> list[str]:
    patterns = [exclude] if isinstance(exclude, str) else list(exclude) if isinstance(exclude, Iterable) else [exclude]
    if not all(isinstance(one, str) for one in patterns):
        raise DsvccaError(f"exclude={exclude!r} is no pattern: give a str such as '*.pt', or a list of them")
    return patterns


def _opened(store: Store | str | os.PathLike[str]) -> Store | None:
    """Return the store, whole; None where there is none yet, and one can be made."""
    if not isinstance(store, Store):
        _check_path(store, "store")
    root = folders.reach(store.path if isinstance(store, Store) else store, "store")
    if not files.is_free(root):
        if read_record(root, StoreRecord) is None:
            raise DsvccaError(f"'{root}' is no store that dsvcca wrote: choose another path, and one is made there")
        return open_store(root)
    above = [] if folders.is_remote(root) else [one for one in root.parents if folders.exists(one)]
    if above and not folders.is_folder(above[0]):
        raise DsvccaError(f"'{root}' lies below a file ('{above[0]}'): choose another place")
    return None


def _check_ids(ids: NumpyArray | None, there: Store | None) -> None:
    """Raise if a store has other datapoint ids than those that were given."""
    if ids is not None and there is not None:
        root = folders.at(there.path, "store")
        known = stored_ids(root)
        if known is not None:
            check_same_ids(root, known, ids, 0, "given")


def _kept(planned: list[list[Part]], there: Store | None, if_exists: str) -> set[str]:
    """Return, as text, the labels of what is in the store already and stays; raise if it cannot take the others."""
    known = [] if there is None else [r.labels for r in there.representations]
    seen = {name: value for own in known for name, value in own.items()}
    names = {describe(own) for own in known}
    kept = set()
    for one in planned:
        own = one[0].labels
        check_same_types(own, [seen], "another array, or the store,")
        seen = own | seen
        if describe(own) in names and if_exists == "error":
            raise DsvccaError(
                f"{one[0].array}: {describe(own)} is in the store already: pass if_exists='skip' to keep it, "
                "if_exists='replace' to write it anew"
            )
        if describe(own) in names and if_exists == "skip":
            kept.add(describe(own))
    return kept


def _mask(
    masks: Mapping[str, Array], planned: list[list[Part]], there: Store | None, datapoints: int
) -> NumpyArray | None:
    """Return the mask that lies beside sequences, once it is known that the store can take it."""
    if not masks:
        return None
    first = next(iter(masks.values()))
    is_joined = len(masks) > 1 and first.shape[0] != datapoints
    _check_masks(masks, planned, None if is_joined else datapoints)
    whole = [_joined(masks, planned)] if is_joined else ([array] for array in masks.values())
    each = (np.concatenate([piece for array in one for piece in pieces_of(array, 0, {})]) for one in whole)
    try:
        valid = plain_mask(next(each), datapoints)
    except DsvccaError as error:
        raise DsvccaError(f"{first}: {error}; if it is no mask, {NO_MASK}") from error
    if not all(np.array_equal(valid, one) for one in each):
        raise DsvccaError(f"{first} and another mask differ, and a store has one: import them into different stores")
    known = None if there is None else find_mask(folders.at(there.path, "store"))
    if known is not None and not np.array_equal(read_mask(known), valid):
        raise DsvccaError(f"{first} is another mask than that of the store: use another store")
    return valid


NO_MASK = f"say mask='' (--mask '') or leave it out: {EXCLUDE}"


def _check_masks(masks: Mapping[str, Array], planned: list[list[Part]], datapoints: int | None) -> None:
    """Raise if one is no mask of the sequences by its shape, or they are too large to be held, before they are read.

    Parameters
    ----------
    datapoints : int or None
        How many each has; None where they are parts of one.
    """
    lengths = {dict(one[0].rest).get("position") for one in planned} - {None}
    for array in masks.values():
        if len(array.shape) != 2 or (datapoints is not None and array.shape[0] != datapoints):
            count = "its part of" if datapoints is None else datapoints
            raise DsvccaError(
                f"{array}: a mask of shape {array.shape}, the sequences have {count} datapoints: a mask is "
                f"(datapoint, position); if it is none, {NO_MASK}"
            )
        if array.shape[1] not in lengths:
            raise DsvccaError(
                f"{array} masks {array.shape[1]} positions, the sequences have {sorted(map(str, lengths))}: is it a "
                f"mask of other sequences? Then {NO_MASK}"
            )
    sizes = [array.nbytes for array in masks.values()]
    size = sum(sizes) if datapoints is None else max(sizes)
    if size > WHOLE:
        first = next(iter(masks.values()))
        raise DsvccaError(
            f"{first}: a mask of {size} bytes, {WHOLE} are the most, since it is held whole: save it as bool, or write "
            "it by store.write_mask()"
        )


def _joined(masks: Mapping[str, Array], planned: list[list[Part]]) -> list[Array]:
    """Return the masks that lie beside the parts of representations, in the order of the parts."""
    beside = {path.rpartition("/")[0]: own for path, own in masks.items()}
    for one in planned:
        folders_of = [part.path.rpartition("/")[0] for part in one]
        if len(one) == len(masks) and set(folders_of) == set(beside):
            found = [beside[folder] for folder in folders_of]
            if [own.shape for own in found] == [(part.datapoints, found[0].shape[1]) for part in one]:
                return found
    raise DsvccaError(
        f"{len(masks)} masks were found, '{next(iter(masks))}' first, and which part of the datapoints each is for "
        f"cannot be told: save each in the file or folder of the part it is for, or leave them out ({EXCLUDE}) and "
        "write one mask by store.write_mask()"
    )


def _check_cut(planned: list[list[Part]], kept: set[str]) -> None:
    """Raise if an array that is cut by layers is damaged, before any of them is written."""
    cut = {part.array: part.fixed for one in planned if describe(one[0].labels) not in kept for part in one}
    with track("check", len(cut)) as advance:
        for array, fixed in cut.items():
            check_cut(array, fixed)
            advance()


def _write(store: Store, parts: list[Part], ids: NumpyArray | None, if_exists: str) -> None:
    """Write one representation, piece by piece."""
    labels: dict[str, Any] = parts[0].labels
    array, start = parts[0].array, 0
    try:
        with store.writer(**labels, dims=parts[0].axes, if_exists=if_exists) as writer:
            for part in parts if not writer.skipped else ():
                array, along = part.array, part.axes.index("datapoint")
                for piece in pieces_of(array, part.along, part.fixed):
                    stop = start + piece.shape[along]
                    writer.append(piece, datapoints=None if ids is None else ids[start:stop])
                    start = stop
    except RunError:
        raise
    except DsvccaError as error:
        raise DsvccaError(
            f"{array}: {error}. What was finished stays: mend it, or leave it out ({EXCLUDE}), and go on with "
            "if_exists='skip' (--if-exists skip)"
        ) from error


def _table(
    planned: list[list[Part]], kept: set[str], masks: Mapping[str, Array], others: Iterable[Other]
) -> pd.DataFrame:
    """Return a row for each array, or layer in it: what is done with it."""
    rows: list[dict[str, Any]] = []
    for part in (part for one in planned for part in one):
        own = {**part.labels, **({} if part.part is None else {PART: part.part})}
        if taken := set(own).intersection(COLUMNS):
            raise DsvccaError(f"label {min(taken)!r} is a column of the table of an import: call it something else")
        what = "skip" if describe(part.labels) in kept else "write"
        rows.append({**own, **_columns(part.array, part.shape, part.axes, part.nbytes, what)})
    for array in masks.values():
        rows.append(_columns(array, array.shape, ("datapoint", "position"), array.nbytes, "mask"))
    for one in others:
        rows.append({"file": str(one.file), "array": one.inside, "outcome": "pass over", "why": one.why})
    names = label_order({name for row in rows for name in row}.difference(COLUMNS))
    return pd.DataFrame({name: [row.get(name) for row in rows] for name in (*names, *COLUMNS)}, dtype=object)


COLUMNS = ("file", "array", "shape", "dtype", "dims", "bytes", "outcome", "why")


def _columns(array: Array, shape: tuple[int, ...], dims: tuple[str, ...], nbytes: int, what: str) -> dict[str, Any]:
    return {
        **{"file": str(array.file), "array": array.inside, "shape": shape, "dtype": array.dtype},
        **{"dims": dims, "bytes": nbytes, "outcome": what, "why": ""},
    }
