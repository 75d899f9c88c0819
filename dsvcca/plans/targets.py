"""Targets: what representations are asked to explain, such as the logits of a class. Named columns of n numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsvcca.activations.labels import describe
from dsvcca.activations.pieces import read_pieces
from dsvcca.activations.representations import Representation
from dsvcca.activations.store import Store
from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray, significand_bits, to_numpy
from dsvcca.maths.whiten import check_numbers


@dataclass(frozen=True, eq=False)
class Target:
    """One target of q columns; more than one of them are also looked at together.

    Attributes
    ----------
    name : str
    columns : int
        q.
    values : (n, q) float64, NumPy, or None
        Where they were given.
    bits : int or None
        Significand bits of the numbers as given or stored; None of integers.
    source : Representation or None
        Where they lie in the store.
    digest : str
        Changes whenever the numbers do.
    """

    name: str
    columns: int
    values: NumpyArray | None
    bits: int | None
    source: Representation | None
    digest: str

    @property
    def names(self) -> list[str]:
        """Return what stands in the results: every column, and first all of them together where they are several."""
        if self.columns == 1:
            return [self.name]
        return [self.name, *(f"{self.name}[{i}]" for i in range(self.columns))]

    def read(self) -> NumpyArray:
        """Return the columns (n, q) float64, each divided by a power of two near its largest number, centred.

        Raises
        ------
        DsvccaError
            If a number is not finite or an integer beyond 2^53, or a column is constant.
        """
        if self.source is not None:
            values = np.concatenate(list(read_pieces(self.source))).astype(np.float64)
        else:
            assert self.values is not None
            values = self.values
        if not np.isfinite(values).all():
            raise DsvccaError(
                f"target {self.name!r} holds NaN or infinite numbers: leave those datapoints out everywhere"
            )
        largest = np.abs(values).max(axis=0)
        check_numbers(float(largest.max()), self.bits, f"target {self.name!r}")
        values = np.ldexp(values, -np.frexp(largest)[1])  # exact; shares do not change, and squares stay in range
        centred = values - values.mean(axis=0)
        centred -= centred.mean(axis=0)
        constant = np.flatnonzero(np.abs(centred).max(axis=0) <= 2.0**-50)
        if constant.size:
            raise DsvccaError(
                f"target {self.name!r}: column {constant[0]} is constant, nothing can explain it: leave it out"
            )
        return np.asarray(centred)


def find_targets(targets: Any, store: Store, datapoints: int) -> tuple[Target, ...]:
    """Return targets from what was given: an array, a mapping from names to arrays or labels, or labels.

    Labels are looked for in the whole store, not only in what was selected of it.

    Raises
    ------
    DsvccaError
        If an array has another number of rows, holds no real numbers, or labels fit no dense layer.
    """
    if targets is None:
        return ()
    store = store.everything
    if not isinstance(targets, Mapping):
        return (_given("target", targets, datapoints),)
    if not targets:
        raise DsvccaError("targets is empty: give an array, or labels of layers such as {'layer': 'out'}")
    if all(isinstance(value, (str, int, float, bool)) for value in targets.values()):
        return tuple(_stored(describe(r.labels), r) for r in store.select(**dict(targets)).representations)
    found: list[Target] = []
    for name, value in targets.items():
        if isinstance(value, Mapping):
            several = store.select(**dict(value)).representations
            if len(several) > 1:
                raise DsvccaError(
                    f"{len(several)} representations have {describe(value)}, target {name!r} is one: say more"
                )
            found.append(_stored(str(name), several[0]))
        else:
            found.append(_given(str(name), value, datapoints))
    names = target_names(found)
    if len(set(names)) < len(names):
        raise DsvccaError(f"targets {names} have a name twice: give them names that differ")
    return tuple(found)


def target_names(targets: Sequence[Target]) -> list[str]:
    """Return the names of everything that is explained, in the order of the results."""
    return [name for target in targets for name in target.names]


def _stored(name: str, source: Representation) -> Target:
    if source.kept is not None:
        raise DsvccaError(
            f"target {name!r}: its activations were dropped, and what explains needs them: give an array, or write it "
            "again with if_exists='replace'"
        )
    if len(source.logical_shape) != 2:
        raise DsvccaError(
            f"target {name!r} has the shape {source.logical_shape}: a target is (datapoint, column); give an array"
        )
    return Target(name, source.logical_shape[1], None, source.bits, source, source.fingerprint)


def _given(name: str, values: Any, datapoints: int) -> Target:
    array = to_numpy(values) if hasattr(values, "shape") else np.asarray(values)
    bits = significand_bits(array.dtype)
    if array.ndim not in (1, 2) or len(array) != datapoints or 0 in array.shape:
        raise DsvccaError(
            f"target {name!r} has the shape {array.shape}: give ({datapoints},) or ({datapoints}, columns)"
        )
    array = np.array(array.reshape(datapoints, -1), dtype=np.float64)
    digest = hashlib.sha256(array.tobytes() + str(bits).encode()).hexdigest()
    return Target(name, array.shape[1], array, bits, None, digest)
