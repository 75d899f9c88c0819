"""Networks that exchange their groups: how a difference between groups stands beside all other ways to assign them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray
from dsvcca.progress import waiting

ROUNDING = 1e-10
"""Differences that are apart by a smaller share of the largest number are the same: sums in another order."""

BLOCK = 4096
"""Ways to assign groups that are looked at side by side."""

MOST = 1_000_000
"""Ways to assign groups that may be looked at."""


@waiting("exchange groups")
def permutation_test(
    values: NumpyArray,
    codes: NumpyArray,
    difference: Callable[[NumpyArray, NumpyArray], NumpyArray],
    permutations: int,
    seed: int,
) -> dict[str, NumpyArray | int]:
    """Return a difference between groups, and how likely it is if groups mean nothing.

    Parameters
    ----------
    values : (layer, network, network) float64
        With 0 diagonals; the last layer stands for all of them.
    codes : (network,) int64
        Groups, numbered from 0.
    difference : callable
        From values and ways to assign groups, (way, network), to numbers (way, layer).
    permutations : int
        Of more ways than these so many are drawn, and the observed one counts as one more.
    seed : int

    Returns
    -------
    dict
        difference, p_value and p_family of every layer; assignments, how many ways were looked at.
    """
    whole = isinstance(permutations, (int, np.integer)) and not isinstance(permutations, bool)
    if not whole or not 1 <= permutations <= MOST:
        raise DsvccaError(f"permutations={permutations!r}: give how many, such as 9999, {MOST:,} at most")
    assigned = _assignments(codes, permutations, seed)
    blocks = [assigned[start : start + BLOCK] for start in range(0, len(assigned), BLOCK)]
    shown = np.concatenate([difference(values, block) for block in blocks])
    observed = difference(values, codes[None, :])
    slack = ROUNDING * np.abs(values).max(axis=(1, 2))
    p_values = (shown >= observed - slack).mean(axis=0)
    spread = shown.std(axis=0)
    spread[spread <= slack] = np.inf  # of a layer that shows the same whatever the groups
    highest = ((shown - shown.mean(axis=0)) / spread)[:, :-1].max(axis=1)
    wanted = ((observed - slack - shown.mean(axis=0)) / spread)[0, :-1]
    family = np.array([*(highest[:, None] >= wanted).mean(axis=0), p_values[-1]])
    return {"difference": observed[0], "p_value": p_values, "p_family": family, "assignments": len(assigned)}


def jackknife(groups: NumpyArray, statistic: Callable[[NumpyArray], NumpyArray]) -> NumpyArray:
    """Return the standard errors of what pairs of networks say: networks are left out one by one.

    Parameters
    ----------
    groups : (network,) array
        Groups are samples of their own, whose errors add up.
    statistic : callable
        From the places of networks that are kept to numbers.

    Returns
    -------
    array
        As many; NaN where a group has fewer than three networks, since two have no pair once one is left out.
    """
    every = np.arange(len(groups))
    members = [np.flatnonzero(groups == own) for own in dict.fromkeys(groups.tolist())]
    if min(map(len, members)) < 3:
        return np.full(np.shape(statistic(every)), np.nan)
    without = [[statistic(np.delete(every, place)) for place in places] for places in members]
    return np.asarray(np.sqrt(sum((len(own) - 1) * np.var(own, axis=0) for own in without)))


def within_minus_between(values: NumpyArray, assigned: NumpyArray) -> NumpyArray:
    """Return the mean within groups minus the mean between them, (way, layer)."""
    total = assigned.shape[1] * (assigned.shape[1] - 1)
    sizes = np.bincount(assigned[0])
    pairs = int(np.sum(sizes * (sizes - 1)))
    within = _sums_within(values, assigned).sum(axis=0)
    found: NumpyArray = within / pairs - (values.sum(axis=(1, 2)) - within) / (total - pairs)
    return found


def first_minus_second(values: NumpyArray, assigned: NumpyArray) -> NumpyArray:
    """Return the mean within the first of two groups minus that within the second, (way, layer)."""
    found: NumpyArray = np.subtract(*means_within(values, assigned))
    return found


def means_within(values: NumpyArray, assigned: NumpyArray) -> NumpyArray:
    """Return the mean within every group, (group, way, layer)."""
    sizes = np.bincount(assigned[0])
    found: NumpyArray = _sums_within(values, assigned) / (sizes * (sizes - 1))[:, None, None]
    return found


def _sums_within(values: NumpyArray, assigned: NumpyArray) -> NumpyArray:
    """Return the sum over ordered pairs within every group, (group, way, layer), of values with 0 diagonals."""
    found = np.empty((assigned.max() + 1, len(assigned), len(values)))
    for code in range(len(found)):
        members = (assigned == code).astype(np.float64)
        for place, one in enumerate(values):
            found[code, :, place] = ((members @ one) * members).sum(axis=1)
    return found


def _assignments(codes: NumpyArray, permutations: int, seed: int) -> NumpyArray:
    """Return every way to assign groups, or the observed one and so many random ones: (way, network)."""
    sizes = np.bincount(codes).tolist()
    if math.factorial(len(codes)) // math.prod(map(math.factorial, sizes)) <= permutations:
        return _ways(sizes)
    again = np.tile(codes, (permutations, 1))
    return np.concatenate([codes[None, :], np.random.default_rng(seed).permuted(again, axis=1)])


def _ways(sizes: Sequence[int]) -> NumpyArray:
    """Return every way to assign groups of these sizes.

    >>> _ways([1, 2]).tolist()
    [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    """
    total = sum(sizes)
    if len(sizes) == 1:
        return np.zeros((1, total), dtype=np.int64)
    first = np.asarray(list(itertools.combinations(range(total), sizes[0])))
    others = _ways(sizes[1:]) + 1
    left = np.ones((len(first), total), dtype=bool)
    np.put_along_axis(left, first, False, axis=1)
    found = np.zeros((len(first) * len(others), total), dtype=np.int64)
    found[np.repeat(left, len(others), axis=0)] = np.tile(others.ravel(), len(first))
    return found
