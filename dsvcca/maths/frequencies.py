"""The discrete Fourier transform over space: half of its bins, their weights, folding onto a smaller grid, and back.

Real activations have Z(-f) = conj(Z(f)), so half the bins say everything. A bin that is its own conjugate counts once
(and is real), every other stands for a pair of bins and counts twice: the weights add up to the number of positions.
One axis (sequences), two (images) and three (video, volumes) are the same code.

Layers of different sizes meet on the grid of the smaller one: of a map sampled at every r-th position, bin f is the sum
of the r bins that alias onto f. `aliases` says which they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

import numpy as np

from dsvcca.maths.arrays import Array, NumpyArray, as_float64, device, like, namespace, rfftn

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

    def find(self, wanted: Sequence[int]) -> tuple[int, bool]:
        """Return which kept bin holds bin `wanted` (any integers), and whether as its conjugate."""
        size = np.asarray(self.space)
        for sign, conjugated in ((1, False), (-1, True)):
            place = np.flatnonzero((self.bins == (sign * np.asarray(wanted)) % size).all(axis=1))
            if place.size:
                return int(place[0]), conjugated
        raise KeyError(wanted)


@dataclass(frozen=True)
class Folding:
    """Which bins of a larger transform belong to each kept bin of a smaller grid.

    Attributes
    ----------
    bins : (members, f, axes) int
        The bins, all of them between 0 and the sizes.
    places : (members, f) int
        Where they stand in the flattened transform that keeps half of the last axis.
    conjugated : (members, f) bool
        Whether the conjugate stands there.
    partners : (members, f) int
        At bins that are their own conjugate: the member that is the conjugate of this one (itself, or another).
    """

    bins: NumpyArray
    places: NumpyArray
    conjugated: NumpyArray
    partners: NumpyArray

    @property
    def different(self) -> NumpyArray:
        """How many different bins belong to each, (f,) int."""
        members = np.stack([self.places, self.conjugated], axis=-1)  # (members, f, 2)
        return np.asarray([len(np.unique(members[:, f, :], axis=0)) for f in range(members.shape[1])])


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


@lru_cache(maxsize=256)
def aliases(space: tuple[int, ...], grid: tuple[int, ...]) -> Folding:
    """Return the bins of a transform over `space` that alias onto each bin of `grid`, whose sizes divide those.

    Examples
    --------
    Six positions sampled at every second one: bins 1 and 4 of the six fall together on bin 1 of the three, and 4 is
    stored as the conjugate of 2.

    >>> found = aliases((6,), (3,))
    >>> found.places.T.tolist(), found.conjugated.T.tolist()
    ([[0, 3], [1, 2]], [[False, False], [False, True]])
    """
    bins = half_spectrum(grid).bins
    steps = product(*(range(0, large, small) for large, small in zip(space, grid, strict=True)))
    return _folding(space, np.stack([bins + np.asarray(step) for step in steps]))


@lru_cache(maxsize=256)
def lowest(space: tuple[int, ...], grid: tuple[int, ...]) -> Folding:
    """Return the bins of a transform over `space` of the lowest frequency that alias onto each bin of `grid`.

    One of them, but where half of an even size is reached also the one of opposite sign (or the same once more).
    """
    bins, small = half_spectrum(grid).bins, np.asarray(grid)
    signed = np.where(2 * bins > small, bins - small, bins)
    turned = np.where((2 * bins == small) & (small < np.asarray(space)), -signed, signed)
    both = np.stack([signed, turned])
    choices = product(*((0, 1) for _ in space))
    return _folding(space, np.stack([both[list(choice), :, range(len(space))].T for choice in choices]))


def _folding(space: tuple[int, ...], members: NumpyArray) -> Folding:
    """Return where bins (members, f, axes) stand in the half transform over `space`."""
    size = np.asarray(space)
    members = members % size
    conjugated = members[..., -1] > size[-1] // 2
    stored = np.where(conjugated[..., None], -members % size, members)
    places = np.ravel_multi_index(tuple(np.moveaxis(stored, -1, 0)), _half(space))
    opposite = (members[None] == (-members % size)[:, None]).all(axis=-1)  # (member, other, f)
    return Folding(members, np.asarray(places), conjugated, np.asarray(opposite.argmax(axis=1)))


def to_frequencies(
    activations: Array, grid: tuple[int, ...] | None = None, *, low: bool = False, out: Array = None
) -> Array:
    """Return the transform (f, n, c) of activations (n, *space, c), complex128 and orthonormal.

    Bins that are their own conjugate are exactly real. Without space the activations come back as (1, n, c) float64.

    Parameters
    ----------
    grid : tuple of int, optional
        Bring the bins to a smaller grid: (f of the grid, n, members * c), all that alias onto each bin side by side
        (`aliases`). At bins that are their own conjugate two members are each other's conjugates: their columns are
        then the real and the imaginary part, times the square root of 2.
    low : bool, default False
        Instead only the lowest of them, (f of the grid, n, c), as band-limited resampling takes them: where half of an
        even size is reached, the sum of both signs.
    out : array, optional
        Where to write it, if it has the right shape: large new arrays cost as much as filling them.
    """
    n, *space, c = (int(size) for size in activations.shape)
    xp = namespace(activations)
    if not space:
        return xp.reshape(as_float64(activations), (1, n, c))
    half = half_spectrum(grid or tuple(space))
    folding = (lowest if low else aliases)(tuple(space), half.space)
    members = len(folding.places)
    few = max(1, CACHED // (8 * prod(space) * c))
    shape = len(half.bins), n, c if low else members * c
    found: Array = out if out is not None and tuple(out.shape) == shape else None
    for start in range(0, n, few):
        part = slice(start, min(start + few, n))
        x = as_float64(activations[part, ...])
        z = xp.reshape(rfftn(x, tuple(range(1, 1 + len(space)))), (x.shape[0], -1, c))
        z = xp.permute_dims(z, (1, 0, 2))
        if found is None:
            found = xp.empty(shape, dtype=z.dtype, device=device(z))
        if start == 0:
            places = like(folding.places, z)
            share = like(folding.different[:, None, None] / members + 0j, z)
        for member in range(members):
            taken = xp.take(z, places[member, :], axis=0)
            if folding.conjugated[member].any():
                taken = xp.where(like(folding.conjugated[member][:, None, None], taken), xp.conj(taken), taken)
            if not low:
                found[:, part, member * c : (member + 1) * c] = taken
            elif member == 0:
                found[:, part, :] = taken * share
            else:
                found[:, part, :] += taken * share
    for f in np.flatnonzero(half.weights == 1).tolist():
        for member, partner in enumerate([0] if low else folding.partners[:, f].tolist()):
            here = slice(member * c, (member + 1) * c)
            if partner > member:
                both = found[f, :, here] * 2**0.5
                found[f, :, partner * c : (partner + 1) * c] = xp.astype(xp.imag(both), found.dtype)
                found[f, :, here] = xp.astype(xp.real(both), found.dtype)
            elif partner == member:
                found[f, :, here] = xp.astype(xp.real(found[f, :, here]), found.dtype)
    return found


def unfolded(values: Array, space: tuple[int, ...], grid: tuple[int, ...]) -> Array:
    """Return what stands at each kept bin of `space` (f, c, k), from the order of `to_frequencies(..., grid)`.

    Parameters
    ----------
    values : (f of grid, members * c, k)
    """
    xp = namespace(values)
    half, there, folding = half_spectrum(grid), half_spectrum(space), aliases(space, grid)
    if space == grid:
        return values
    members = len(folding.bins)
    c = values.shape[1] // members
    found = xp.zeros((len(there.bins), c, values.shape[2]), dtype=xp.complex128, device=device(values))
    for f, weight in enumerate(half.weights.tolist()):
        for member, partner in enumerate(folding.partners[:, f].tolist()):
            one = xp.astype(values[f, member * c : (member + 1) * c, :], xp.complex128)
            if weight == 1 and partner < member:
                continue
            if weight == 1 and partner > member:
                one = (one - 1j * xp.astype(values[f, partner * c : (partner + 1) * c, :], xp.complex128)) / 2**0.5
            place, conjugated = there.find(folding.bins[member, f])
            found[place, :, :] = xp.conj(one) if conjugated else one
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
