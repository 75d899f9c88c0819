"""The activation store: one Zarr v3 group, one array a representation.

activations.zarr/                         group; its attributes hold the number of datapoints
  datapoints/                             array of datapoint ids, once they are known
  mask/                                   which positions of sequences are tokens, if that was said
  seed=0,step=100,layer=conv1/            one group a representation, see `dsvcca.activations`
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dsvcca.activations.foreign import foreign_representations
from dsvcca.activations.kept import findings_of_kept
from dsvcca.activations.labels import Label, describe, label_order, values_of
from dsvcca.activations.pieces import findings, read_pieces
from dsvcca.activations.representations import (
    IDS,
    MASK,
    Representation,
    find_mask,
    noted_mask,
    read_ids,
    read_mask,
    read_records,
)
from dsvcca.activations.sweeping import remove_left, unused_in_store, unused_in_workspace
from dsvcca.activations.writer import Writer, claim_ids, commit_mask, plain_ids, plain_mask, stored_ids
from dsvcca.errors import DsvccaError, nearest
from dsvcca.maths.arrays import NumpyArray
from dsvcca.progress import track
from dsvcca.storage import files, folders, staging
from dsvcca.storage.records import StoreRecord, read_attributes, read_record, write_record
from dsvcca.workspace.contents import workspace_beside


class Store:
    """Activations of a population on the same datapoints; made by `create_store` and `open_store`.

    Attributes
    ----------
    path : str
    datapoints : int
        Rows that every representation has.
    """

    def __init__(
        self, path: Path, datapoints: int, where: Mapping[str, Sequence[Label]], foreign: Sequence[Representation] = ()
    ) -> None:
        self._root = path
        self.path = str(path)
        self.datapoints = datapoints
        self._where = dict(where)
        self._foreign = list(foreign)
        self._records: dict[str, Representation] = {}

    def __repr__(self) -> str:
        chosen = "".join(f", {name} in {list(values)}" for name, values in self._where.items())
        return (
            f"<dsvcca store {self.path!r}: {len(self.representations)} representations, "
            f"{self.datapoints} datapoints{chosen}>"
        )

    @property
    def representations(self) -> list[Representation]:
        """Committed representations in order of arrival, the newest version of each."""
        found = self._foreign or read_records(self._root, self._records)
        for r in found[: 0 if self._foreign else None]:
            if r.logical_shape[0] != self.datapoints:
                raise DsvccaError(self._other_count(r))
        mask = None if self._foreign else find_mask(self._root)
        if mask is not None:
            found = [replace(r, mask=mask) if r.is_sequence and r.shape[1] == mask.shape[1] else r for r in found]
        return [r for r in found if all(r.labels.get(name) in allowed for name, allowed in self._where.items())]

    @property
    def index(self) -> pd.DataFrame:
        """One row a representation: its labels, shape, dims, dtype, name, and what is there of it.

        `bases` are the views of which bases are left where activations were dropped, "" where they are there; `bytes`
        are of the one or the other.
        """
        rows = self.representations
        columns: dict[str, list[Any]] = {
            name: [r.labels.get(name) for r in rows]
            for name in label_order({"layer", *(k for r in rows for k in r.labels)})
        }
        for name in ("shape", "dims", "dtype", "name"):
            columns[name] = [getattr(r, name) for r in rows]
        columns["bases"] = ["" if r.kept is None else ", ".join(r.kept.views) for r in rows]
        columns["bytes"] = [r.nbytes_now for r in rows]
        return pd.DataFrame(columns)

    def select(self, /, **labels: Label | Sequence[Label]) -> Store:
        """Return a narrower store.

        Parameters
        ----------
        **labels
            One value or a list of values for each label; None stands for representations without it.

        Raises
        ------
        DsvccaError
            If a label or a value is in none of the representations.
        """
        rows = self.representations
        if labels and not rows:
            raise DsvccaError(f"the store '{self.path}' holds no representation yet: write some first")
        where = dict(self._where)
        for name, value in labels.items():
            if not any(name in r.labels for r in rows):
                names = label_order({k for r in rows for k in r.labels})
                raise DsvccaError(f"no representation has a label {name!r}: {nearest(name, names)}")
            where[name] = values_of(value)
            have = [r.labels.get(name) for r in rows]
            for wanted in where[name]:
                if wanted not in have:
                    known = [label for label in have if label is not None]
                    raise DsvccaError(f"no representation has {name}={wanted!r}: {nearest(wanted, known)}")
        narrower = Store(self._root, self.datapoints, where, self._foreign)
        narrower._records = self._records
        if not narrower.representations:
            raise DsvccaError(f"no representation has all of {where}: look at store.index")
        return narrower

    def write(
        self,
        /,
        activations: Any,
        *,
        layer: str,
        dims: str | Sequence[str] | None = None,
        if_exists: str = "error",
        datapoints: Any = None,
        **labels: Label,
    ) -> bool:
        """Write one representation.

        Parameters
        ----------
        activations : (n, ..., c) array
            All datapoints, in the order of the store.
        layer : str
        dims : str or sequence of str, optional
            Axes of `activations`: "nhwc", "nchw", "ntd", "tnd" or names; guessed for two axes only. Channels or
            neurons are stored last.
        if_exists : {"error", "skip", "replace"}, default "error"
            What to do where the labels are there already.
        datapoints : sequence of int or str, optional
            Ids of the rows; compared with the store's, or, if it has none yet, kept as the store's.
        **labels
            model=, seed=, step=, ...: str, int, float or bool.

        Returns
        -------
        bool
            Whether it was written (False: skipped).

        Raises
        ------
        DsvccaError
            For another number of datapoints or other ids, NaN or infinite numbers, dims not given, labels that clash
            or exist, no space. Nothing is left behind.
        """
        with self.writer(layer=layer, dims=dims, if_exists=if_exists, **labels) as writer:
            if not writer.skipped:
                writer.append(activations, datapoints=datapoints)
        return not writer.skipped

    def writer(
        self,
        *,
        layer: str,
        dims: str | Sequence[str] | None = None,
        if_exists: str = "error",
        **labels: Label,
    ) -> Writer:
        """Return a context in which a representation is written batch by batch.

        Whole chunks are buffered; the representation appears when the context ends, and not at all if it ends in an
        error. Parameters and errors as for `write`.
        """
        if self._foreign:
            raise DsvccaError(f"'{self.path}' was written by others and is only read: create_store() a new one")
        return Writer(self._root, self.datapoints, {**labels, "layer": layer}, dims, if_exists, self._records)

    def write_mask(self, valid: Any) -> None:
        """Say which positions of the sequences are tokens; the others are padding.

        Parameters
        ----------
        valid : (datapoints, positions) bool array
            Padding is no row of view "positions" and counts in no mean or maximum over positions. For all sequences of
            that many positions, whenever they are written. It cannot be changed later.

        Raises
        ------
        DsvccaError
            If it has another shape, is not made of true and false, or another mask is there already.
        """
        if self._foreign:
            raise DsvccaError(f"'{self.path}' was written by others and is only read: create_store() a new one")
        values = plain_mask(valid, self.datapoints)
        sequences = [r for r in read_records(self._root, self._records) if r.is_sequence]
        lengths = {r.shape[1] for r in sequences}
        if lengths and values.shape[1] not in lengths:
            raise DsvccaError(
                f"a mask of {values.shape[1]} positions, the sequences of the store have {sorted(lengths)}: give one "
                "of that length"
            )
        if noted_mask(self._root) is None:
            for r in sequences:
                if r.kept is not None and r.shape[1] == values.shape[1]:
                    raise DsvccaError(
                        f"{r}: its activations were dropped, and the bases that are left hold all positions: write it "
                        "again with if_exists='replace', and the mask before its bases are kept"
                    )
        commit_mask(self._root, values)

    def read_mask(self) -> NumpyArray | None:
        """Return which positions of the sequences are tokens, (datapoints, positions) bool; None if nobody said so.

        Raises
        ------
        DsvccaError
            If the mask is damaged, or not the one that was written.
        """
        mask = None if self._foreign else find_mask(self._root)
        return None if mask is None else read_mask(mask)

    @property
    def everything(self) -> Store:
        """The store without what `select` left out."""
        whole = Store(self._root, self.datapoints, {}, self._foreign)
        whole._records = self._records
        return whole

    def read(self, /, **labels: Label) -> NumpyArray:
        """Return the activations (datapoint, ..., channel) of the one representation that carries the labels.

        Raises
        ------
        DsvccaError
            If none does, or several do, or what is stored is damaged, or was dropped.
        """
        found = self.select(**labels).representations
        if len(found) > 1:
            raise DsvccaError(
                f"{len(found)} representations have {describe(labels)}, the first is {found[0]}: say more"
            )
        return np.concatenate(list(read_pieces(found[0])))

    def clean(self, *, workspace: str | os.PathLike[str] | None = None, remove: bool = False) -> pd.DataFrame:
        """Return what nothing uses any more, and remove it if that is asked for.

        Of the store: versions that were replaced, and what processes left that were killed as they wrote. Of its
        workspace: bases of numbers that the store does not have (any more), never those that are left of dropped
        activations. Results are not looked at: they need no basis. Do it while nothing runs on the store.

        Parameters
        ----------
        workspace : path, optional
            Where bases are; by default beside the store. One that other stores share holds their bases too, which would
            be made again.
        remove : bool, default False
            Whether to remove it.

        Returns
        -------
        DataFrame
            One row for each folder: path, what it is, bytes.

        Raises
        ------
        DsvccaError
            If the store is of others, or a record is damaged: nothing is removed.
        """
        if self._foreign:
            raise DsvccaError(f"'{self.path}' was written by others: what nothing uses of it is not known")
        where = folders.at(workspace_beside(self.path, workspace), "workspace")
        everything = read_records(self._root, self._records)
        found = [
            *unused_in_store(self._root, self._records),
            *unused_in_workspace(where, {r.fingerprint for r in everything}),
        ]
        for one in found if remove else ():
            with files.disk_errors(one.path):
                remove_left(one)
        rows = [(str(one.path), one.what, one.bytes) for one in found]
        return pd.DataFrame(rows, columns=["path", "what", "bytes"])

    def verify(self, *, workspace: str | os.PathLike[str] | None = None) -> pd.DataFrame:
        """Read every chunk of every representation and return what is wrong, one row a finding.

        Columns: name, chunk, problem. Empty where everything is as it was written. Never holds more than a chunk. Where
        activations were dropped their bases are read.

        Parameters
        ----------
        workspace : path, optional
            Where those bases are; by default beside the store.
        """
        found: list[tuple[str, str, str]] = []
        damaged: list[tuple[str, str]] = []
        # Not with the records that were read before: they may have been damaged since.
        records: dict[str, Representation] = {}
        there = self._foreign or read_records(self._root, records, damaged)
        there = [r for r in there if all(r.labels.get(name) in allowed for name, allowed in self._where.items())]
        found += [(name, "zarr.json", problem) for name, problem in damaged]
        with track("verify", len(there)) as advance:
            for r in there:
                if not self._foreign and r.logical_shape[0] != self.datapoints:
                    found.append((r.name, "zarr.json", self._other_count(r)))
                found += findings(r) if r.kept is None else []
                advance()
        if any(r.kept is not None for r in there):
            found += findings_of_kept(there, workspace_beside(self.path, workspace))
        if not self._foreign and not self._where:
            known = {*records, *(name for name, _ in damaged), IDS, MASK, "zarr.json"}
            orphans = set(folders.names(self._root)).difference(known)
            found += [
                (name, "", "is no committed representation: its record is gone, or it is something else")
                for name in sorted(orphans)
                if not name.startswith(".") and not _is_other(self._root / name)
            ]
            try:
                stored_ids(self._root)
                found += self._other_ids(there)
            except DsvccaError as error:
                found.append((IDS, "", str(error)))
            try:
                mask = find_mask(self._root)
                if mask is not None:
                    read_mask(mask)
            except DsvccaError as error:
                found.append((MASK, "", str(error)))
        return pd.DataFrame(found, columns=["name", "chunk", "problem"])

    def _other_ids(self, there: Sequence[Representation]) -> Iterator[tuple[str, str, str]]:
        """Yield (name, chunk, problem) if a representation's datapoints are not those of the store."""
        own = read_ids(self._root)
        for r in there:
            if r.ids not in (None, own):
                gone = "the store has lost its ids" if own is None else "the ids of the store are others"
                yield IDS, "", f"{gone}, {r} was written with those of digest {str(r.ids)[:12]}...: restore them"
                return

    def _other_count(self, r: Representation) -> str:
        return (
            f"{r} has {r.logical_shape[0]} datapoints by its record, the store '{self.path}' {self.datapoints}: one of "
            "the two was changed, restore it"
        )

    @property
    def ids(self) -> str | None:
        """Digest of the datapoint ids; None where only their number is known."""
        return read_ids(self._root)


def _is_other(folder: Path) -> bool:
    """Return whether results, or a workspace, lie there."""
    with suppress(DsvccaError):
        return (read_attributes(folder) or {}).get("kind") in ("results", "workspace")
    return False


def create_store(
    path: str | os.PathLike[str], *, datapoints: Any, storage_options: Mapping[str, Any] | None = None
) -> Store:
    """Create an activation store, or open it if it is there already with the same datapoints.

    Parameters
    ----------
    path : path or URL
        A folder that does not exist yet, or such a store. S3 and what speaks its language: ``s3://bucket/path``.
    datapoints : int or sequence of int or str
        Number of datapoints, or their ids in order. All representations have the same datapoints in the same order;
        with ids that is checked instead of believed.
    storage_options : mapping, optional
        How a URL is reached, where the environment does not say it: ``{"endpoint_url": ..., "key": ..., "secret":
        ...}``. Counts for all URLs of that kind in this process and on the workers of a cluster.

    Returns
    -------
    Store

    Raises
    ------
    DsvccaError
        If something else lies at `path`, or a store of other datapoints.
    """
    root = folders.reach(path, "store", storage_options)
    ids = None if isinstance(datapoints, (int, np.integer)) else plain_ids(datapoints)
    count = int(datapoints) if ids is None else len(ids)
    if isinstance(datapoints, bool) or not 2 <= count < 2**62:
        raise DsvccaError(f"datapoints={datapoints!r}: a store needs at least 2 datapoints, and as many as can be")
    if files.is_free(root):
        with files.disk_errors(root):
            files.make_parents(root)
            if folders.is_folder(root):  # with nothing in it but hidden files
                write_record(root, {"format": 1, "kind": "activations", "datapoints": count})
            else:
                folder = staging.stage(root.parent)
                try:
                    write_record(folder, {"format": 1, "kind": "activations", "datapoints": count})
                    staging.publish(folder, root)  # unless another process was faster
                finally:
                    staging.discard(folder)
    store = open_store(root)
    if store.datapoints != count or store._foreign:
        raise DsvccaError(
            f"'{root}' is a store of {store.datapoints} datapoints, {count} were asked for: choose another path"
        )
    if ids is not None:
        claim_ids(root, count, datapoints)
    return store


def open_store(
    path: str | os.PathLike[str],
    *,
    labels: Any = None,
    dims: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Store:
    """Open an activation store, or the Zarr arrays of somebody else.

    Parameters
    ----------
    path : path or URL
        A store made by `create_store`, or any Zarr v2 or v3 array or group.
    labels : str, mapping or callable, optional
        For arrays that others wrote: a pattern for their paths such as ``"{model}/{step}/{layer}"``, a mapping from
        path to labels, or a function from path to labels. By default ``key=value`` parts of a path are labels and the
        rest of it is the layer.
    dims : str, sequence of str, or mapping to them, optional
        For arrays that others wrote: their axes, where the arrays do not name them themselves. One spelling counts for
        all arrays with that many axes; a mapping gives one for a layer, or for a path. Two axes are (datapoint,
        neuron) unless something else is said.
    storage_options : mapping, optional
        As for `create_store`.

    Raises
    ------
    DsvccaError
        If there is nothing, or nothing that can be read as activations.
    """
    root = folders.reach(path, "store", storage_options)
    if not folders.exists(root):
        raise DsvccaError(f"there is no store at '{root}': check the path, or create_store(path, datapoints=...)")
    record = read_record(root, StoreRecord)
    if record is None:
        found = foreign_representations(root, labels, dims)
        return Store(root, found[0].logical_shape[0], {}, found)
    if labels is not None or dims is not None:
        raise DsvccaError(f"'{root}' knows its labels and dims: leave labels= and dims= out")
    return Store(root, record["datapoints"], {})
