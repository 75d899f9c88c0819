"""The discrete Fourier transform over space: half of its bins, their weights, and back.

Real activations have Z(-f) = conj(Z(f)), so half the bins say everything. A bin that is its own conjugate counts once
(and is real), every other stands for a pair of bins and counts twice: the weights add up to the number of positions.
One axis (sequences), two (images) and three (video, volumes) are the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np

from dsvcca.arrays import Array, NumpyArray, as_float64, device, like, namespace, rfftn

CACHED = 2 << 20
"""Bytes, as float64, of the datapoints that are transformed at once: those that stay in a core's cache."""


@dataclass(frozen=True)
class HalfSpectrum:
    """Which bins of a real transform over `space` are kept, in their order.

    Attributes
    ----------
    space : tuple of int
        Sizes of the axes; () is one bin, the thing itself.
    bins : (f, axes) int
        The kept bins, in the order of their place in the transform; bin 0 (the mean) is the first.
    weights : (f,) int
        1 for a bin that is its own conjugate, else 2; their sum is the number of positions.
    """

    space: tuple[int, ...]
    bins: NumpyArray
    weights: NumpyArray

    @property
    def places(self) -> NumpyArray:
        """Where the bins stand (f,) in the flattened transform that keeps half of the last axis."""
        if not self.space:
            return np.zeros(1, dtype=np.int64)
        return np.asarray(np.ravel_multi_index(tuple(self.bins.T), _half(self.space)))

    def find(self, wanted: Sequence[int]) -> tuple[int, bool]:
        """Return which kept bin holds bin `wanted` (any integers), and whether as its conjugate."""
        size = np.asarray(self.space)
        for sign, conjugated in ((1, False), (-1, True)):
            place = np.flatnonzero((self.bins == (sign * np.asarray(wanted)) % size).all(axis=1))
            if place.size:
                return int(place[0]), conjugated
        raise KeyError(wanted)


@lru_cache(maxsize=256)
def half_spectrum(space: tuple[int, ...]) -> HalfSpectrum:
    """Return the bins of which all others are conjugates.

    Of the last axis its first half; of bins whose conjugate is in that half too, the one that comes first.

    Examples
    --------
    >>> [len(half_spectrum(space).bins) for space in ((32, 32), (7, 7), (5, 4), (4, 6), (1, 1), ())]
    [514, 25, 11, 14, 1, 1]
    """
    if not space:
        return HalfSpectrum((), np.zeros((1, 0), dtype=np.int64), np.ones(1, dtype=np.int64))
    bins = np.stack(np.unravel_index(np.arange(prod(_half(space))), _half(space)), axis=1)
    conjugates = -bins % np.asarray(space)
    own = (bins == conjugates).all(axis=1)
    later = np.zeros(len(bins), dtype=bool)  # whether the conjugate is kept already
    undecided = bins[:, -1] == conjugates[:, -1]
    for axis in range(len(space) - 1):
        later |= undecided & (conjugates[:, axis] < bins[:, axis])
        undecided &= conjugates[:, axis] == bins[:, axis]
    return HalfSpectrum(space, bins[~later], np.where(own, 1, 2)[~later])


def to_frequencies(activations: Array) -> Array:
    """Return the transform (f, n, c) of activations (n, *space, c), complex128 and orthonormal.

    Bins that are their own conjugate are exactly real. Without space the activations come back as (1, n, c) float64.
    """
    n, *space, c = (int(size) for size in activations.shape)
    xp = namespace(activations)
    half = half_spectrum(tuple(space))
    if not space:
        return xp.reshape(as_float64(activations), (1, n, c))
    own = [int(f) for f in np.flatnonzero(half.weights == 1)]
    few = max(1, CACHED // (8 * prod(space) * c))
    found: Array = None
    for start in range(0, n, few):
        part = slice(start, min(start + few, n))
        x = as_float64(activations[part, ...])
        z = xp.reshape(rfftn(x, tuple(range(1, 1 + len(space)))), (x.shape[0], -1, c))
        if found is None:
            found = xp.empty((len(half.bins), n, c), dtype=z.dtype, device=device(z))
            places = like(half.places, z)
        found[:, part, :] = xp.take(xp.permute_dims(z, (1, 0, 2)), places, axis=0)
    for f in own:
        found[f, :, :] = xp.astype(xp.real(found[f, :, :]), found.dtype)
    return found


def to_space(half: HalfSpectrum, values: Array) -> Array:
    """Return the inverse (*space, k) of values (f, k) on the kept bins: real, orthonormal."""
    xp = namespace(values)
    if not half.space:
        return values[0, :]
    k = values.shape[1]
    full = xp.zeros((prod(half.space), k), dtype=xp.complex128, device=device(values))
    for f, bin_ in enumerate(half.bins):
        full[int(np.ravel_multi_index(tuple(bin_), half.space)), :] = values[f, :]
        conjugate = tuple(-bin_ % np.asarray(half.space))
        if half.weights[f] == 2:
            full[int(np.ravel_multi_index(conjugate, half.space)), :] = xp.conj(values[f, :])
    axes = tuple(range(len(half.space)))
    return xp.real(xp.fft.ifftn(xp.reshape(full, (*half.space, k)), axes=axes, norm="ortho"))


def _half(space: Sequence[int]) -> tuple[int, ...]:
    return (*space[:-1], space[-1] // 2 + 1)
