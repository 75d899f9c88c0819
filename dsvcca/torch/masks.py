"""Sequences of a batch: which positions are tokens, and one length for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from dsvcca.activations.representations import find_mask, read_mask
from dsvcca.activations.store import Store
from dsvcca.activations.writer import commit_mask
from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray, to_numpy
from dsvcca.storage import folders
from dsvcca.torch.outputs import Output
from dsvcca.torch.running import inputs_of

Mask = str | Callable[[Any], Any]

ONE_LENGTH = "pad all batches to one length (tokenizers do with padding='max_length'), or pass positions= and mask="


class Tokens:
    """Which positions of sequences are tokens: said batch by batch, committed as the mask of the store at the end.

    Parameters
    ----------
    store : Store
    mask : str, callable or None
        Key of batches that are dicts, or a function of the batch.
    positions : int or None
        Length to which sequences and their mask are padded.
    """

    def __init__(self, store: Store, mask: Mask | None, positions: int | None) -> None:
        self._path, self._datapoints = store.path, store.datapoints
        self._mask, self._positions = mask, positions
        there = find_mask(folders.at(store.path, "store"))
        self._there = None if there is None else read_mask(there)
        self._rows: list[NumpyArray] = []

    def padded(
        self, batch: Any, outputs: Mapping[str, Output], axes: Mapping[str, tuple[str, ...]], rows: int
    ) -> dict[str, torch.Tensor]:
        """Return the numbers that layers gave for a batch, sequences padded with zeros; note what is a token.

        Raises
        ------
        DsvccaError
            If the mask does not belong to these sequences, or to those before, or is not the store's.
        """
        valid = self._valid(batch, outputs, rows)
        found: dict[str, torch.Tensor] = {}
        lengths: set[int] = set()
        for name, output in outputs.items():
            found[name] = output.values
            if "position" in axes[name]:
                axis = axes[name].index("position")
                found[name] = _widened_values(output, axis, valid, self._positions, f"layer {name!r}")
                lengths.add(found[name].shape[axis])
        if valid is not None and lengths:
            valid = _widened(valid, self._positions)
            if valid.shape[1] not in lengths:
                raise DsvccaError(
                    f"a mask of {valid.shape[1]} positions, the layers give sequences of {sorted(lengths)}: give one "
                    "of that length"
                )
            self._add(valid)
        return found

    def commit(self) -> None:
        """Write the mask, unless nothing is padding, or rows are missing: writers refuse those."""
        tokens = sum(int(valid.sum()) for valid in self._rows)
        if self._rows and tokens == 0:
            raise DsvccaError("the mask leaves no token: true is a token, false is padding")
        if sum(map(len, self._rows)) == self._datapoints and tokens < sum(valid.size for valid in self._rows):
            commit_mask(folders.at(self._path, "store"), np.concatenate(self._rows).astype(np.uint8))

    def _valid(self, batch: Any, outputs: Mapping[str, Output], rows: int) -> NumpyArray | None:
        """Return the tokens of a batch, (datapoint, position): what the mask says, or else packed sequences."""
        found = None if self._mask is None else _given(batch, self._mask, rows)
        whose = "mask="
        for name, output in outputs.items():
            if output.lengths is None:
                continue
            own = np.arange(output.values.shape[1]) < output.lengths.numpy()[:, None]
            if found is not None:
                width = max(own.shape[1], found.shape[1])
                if not np.array_equal(_widened(own, width), _widened(found, width)):
                    raise DsvccaError(
                        f"layer {name!r} gives packed sequences of other lengths than {whose} says, and a store has "
                        "one mask: pack with enforce_sorted=False, so that datapoints keep their order, and capture "
                        "sequences of other lengths into a store of their own"
                    )
            if found is None or own.shape[1] > found.shape[1]:
                found, whose = own, f"layer {name!r}"
        return found

    def _add(self, valid: NumpyArray) -> None:
        if self._rows and self._rows[0].shape[1] != valid.shape[1]:
            raise DsvccaError(
                f"a mask of {valid.shape[1]} positions follows one of {self._rows[0].shape[1]}: {ONE_LENGTH}"
            )
        start = sum(map(len, self._rows))
        there = None if self._there is None else self._there[start : start + len(valid)]
        if there is not None and len(there) == len(valid) and not np.array_equal(there, valid):
            raise DsvccaError(
                f"the store '{self._path}' has another mask already: of {there.shape[1]} positions, this one of "
                f"{valid.shape[1]}, and rows {start} to {start + len(valid) - 1} differ; what was compared by it would "
                "change: use another store"
            )
        self._rows.append(valid)


def _given(batch: Any, mask: Mask, rows: int) -> NumpyArray:
    """Return what `mask` says of a batch."""
    if isinstance(mask, str):
        inputs = inputs_of(batch)
        if not isinstance(inputs, Mapping) or mask not in inputs:
            there = f"has {sorted(map(str, inputs))}" if isinstance(inputs, Mapping) else "is no dict"
            raise DsvccaError(
                f"mask={mask!r} names an entry of batches, the batch (a {type(batch).__name__}) {there}: pass a key of "
                "it, or a function of the batch"
            )
        found = inputs[mask]
    else:
        found = mask(batch)
    values = to_numpy(found) if hasattr(found, "shape") else np.asarray(found)
    if values.ndim != 2 or len(values) != rows:
        raise DsvccaError(
            f"mask= gives {values.shape} for a batch of {rows} datapoints: give (datapoint, position), true for tokens"
        )
    if not np.isin(values, (0, 1)).all():
        raise DsvccaError("mask= gives other numbers than 0 and 1: true is a token, false is padding")
    return values.astype(bool)


def _widened(valid: NumpyArray, width: int | None) -> NumpyArray:
    """Return a mask with padding after its last position, up to `width`."""
    return np.pad(valid, ((0, 0), (0, max(0, (width or 0) - valid.shape[1]))))


def _widened_values(
    output: Output, axis: int, valid: NumpyArray | None, positions: int | None, what: str
) -> torch.Tensor:
    """Return sequences with zeros after their last position, up to `positions`; packed ones up to the mask's too."""
    values, packed = output.values, output.lengths is not None
    length = values.shape[axis]
    width = positions or (valid.shape[1] if packed and valid is not None else length)
    if length > width:
        raise DsvccaError(f"{what} gives sequences of {length} positions, positions={positions}: ask for as many")
    if length == width:
        return values
    if not packed and (valid is None or valid.shape[1] != length):
        said = "nothing says which are tokens" if valid is None else f"the mask has {valid.shape[1]}"
        raise DsvccaError(
            f"{what} gives sequences of {length} positions, to be padded to {width}, and {said}: pass mask= of "
            "(datapoint, position), as long as the sequences of the batch"
        )
    shape = list(values.shape)
    shape[axis] = width - length
    return torch.cat([values, values.new_zeros(shape)], dim=axis)
