"""From the cross blocks of a tile to sums over correlations: pairs of like size are solved together.

LAPACK is called on stacks, and a stack holds cross blocks of one shape. Ranks differ from basis to basis, so blocks are
filled up with zeros to the next multiple of a few (`panel.fitted`): that depends on their own ranks alone, and so do
the bits of a pair, whatever it is solved beside.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from dsvcca.engine.panel import ForSolves, Panel, fitted
from dsvcca.engine.products import CrossBlock
from dsvcca.maths.arrays import Array, NumpyArray, adjoint, from_pairs, like, namespace, to_numpy, windows
from dsvcca.maths.correlations import corrected
from dsvcca.maths.resampling import Halves, held_out, influences
from dsvcca.maths.sums import (
    MAXIMA,
    OF_CHANCE,
    OF_COVARIANCES,
    OF_FOLDS,
    OF_GOOGLE,
    OF_RIDGE,
    OF_SQUARES,
    OF_VECTORS,
    UNWEIGHTED,
    exchanged,
    totals_of_chance,
    totals_of_covariances,
    totals_of_google,
    totals_of_ridge,
    totals_of_values,
    totals_of_vectors,
)
from dsvcca.results.dataset import CORRELATIONS

SOLVED_TOGETHER = 1 << 19
"""Bytes of cross blocks in one stack of solves."""


@dataclass(frozen=True)
class Rows:
    """What pairs that are solved together have in common.

    Attributes
    ----------
    rows : int
    freedom : int
        Independent ones, less one; 0 where nothing is known of chance.
    bounds : (folds + 1,) int or None
        Where folds of them begin, where products are kept apart.
    """

    rows: int
    freedom: int
    bounds: NumpyArray | None = None

    @property
    def halves(self) -> NumpyArray:
        """Rows in even and in odd folds."""
        assert self.bounds is not None
        return np.asarray([np.diff(self.bounds)[half::2].sum() for half in (0, 1)])


def solve(block: CrossBlock, x: Panel, y: Panel, over: Rows, wanted: NumpyArray, totals: dict[str, NumpyArray]) -> None:
    """Solve the wanted pairs of a cross block, and add to their totals.

    Parameters
    ----------
    wanted : (bases of x, bases of y) bool
    totals : mapping
        Those that are asked for (see `dsvcca.sums`), (bases of x, bases of y, rules), some of them with more axes.
    """
    f, x_run, y_run = block.frequency, block.x_run, block.y_run
    weight = int(x.weights[f])
    i, j = np.nonzero(wanted[x_run.start : x_run.stop, y_run.start : y_run.stop])
    x_ranks, y_ranks = x.ranks[x_run.start : x_run.stop, :, f], y.ranks[y_run.start : y_run.stop, :, f]
    widest = int((x_ranks.sum(axis=0) + y_ranks.sum(axis=0)).argmax())  # of every basis that rule keeps the most
    some = np.minimum(x_ranks[i, widest], y_ranks[j, widest]) > 0
    i, j = i[some], j[some]
    later = _later(x.keys[x_run.start : x_run.stop], y.keys[y_run.start : y_run.stop], i, j)
    turned = _turned(x_ranks[i], y_ranks[j], later)
    x_starts, y_starts = x.ends(x_run, f), y.ends(y_run, f)
    of_x = replace(x.at(f, x_run), parts=block.x_parts, weight=weight)
    of_y = replace(y.at(f, y_run), parts=block.y_parts, weight=weight)
    for alike in _alike(x_ranks, y_ranks, turned, i, j):
        height, width = int(fitted(x_ranks[i[alike], widest]).max()), int(fitted(y_ranks[j[alike], widest]).max())
        step = max(1, SOLVED_TOGETHER // (8 * height * width * weight**2))
        for some in (alike[start : start + step] for start in range(0, len(alike), step)):
            a, b = i[some], j[some]
            m = windows(block.products, x_starts[a], y_starts[b], height * weight, width * weight)
            m = from_pairs(m) if weight == 2 else m
            sides = _Side(of_x, a, x_ranks[a]), _Side(of_y, b, y_ranks[b])
            found = _totals(m, *sides, turned[some[0]], widest, over, len(x.weights), set(totals), block.turned[a, b])
            same = np.asarray([_are_one(x, x_run.start + i, y, y_run.start + j) for i, j in zip(a, b, strict=True)])
            for rule, numbers in enumerate(found):
                if CORRELATIONS in totals and numbers:
                    ranks = np.minimum(x_ranks[a, rule], y_ranks[b, rule])
                    kept = _spectra(numbers.pop(CORRELATIONS), ranks, totals[CORRELATIONS].shape[-1])
                    totals[CORRELATIONS][x_run.start + a, y_run.start + b, rule] = kept
                for name in totals.keys() & numbers.keys():
                    added = to_numpy(numbers[name])
                    if name[0] == "y":  # of the same basis on both sides neither comes first: rounding is that of x
                        added = np.where(same, to_numpy(numbers[f"x{name[1:]}"]), added)
                    here = x_run.start + a, y_run.start + b, rule
                    if name in MAXIMA:
                        totals[name][here] = np.maximum(totals[name][here], added)
                    else:
                        totals[name][here] += (1 if name in UNWEIGHTED else weight) * added


def _are_one(x: Panel, i: int, y: Panel, j: int) -> bool:
    """Return whether basis i of x is basis j of y, or another of the same numbers."""
    return x.refs[i] == y.refs[j] or (x.keys[i] == y.keys[j] and not x.is_joint)


class _Side(NamedTuple):
    """One side of stacked pairs: whose bases they are, and how many directions each rule keeps (pairs, rules)."""

    kept: ForSolves
    members: NumpyArray
    ranks: NumpyArray

    def scales(self, rule: int, size: int) -> NumpyArray:
        return self.kept.scales(self.members, self.ranks[:, rule], size)

    def shrunk(self, rule: int, size: int) -> NumpyArray:
        return self.kept.shrunk(self.members, self.ranks[:, rule], size)

    def parts(self, rule: int, size: int) -> list[tuple[Array, Array]]:
        return [self.kept.parts_of(i, k, size) for i, k in self._which(rule)]

    def halves(self, rule: int, size: int, rows: NumpyArray) -> list[Halves]:
        return [self.kept.halves_of(i, k, size, rows) for i, k in self._which(rule)]

    def _which(self, rule: int) -> list[tuple[int, int]]:
        return list(zip(self.members.tolist(), self.ranks[:, rule].tolist(), strict=True))

    def loadings(self, rule: int, size: int) -> dict[int, Array]:
        return {i: self.kept.loadings(i, k, size) for i, k in dict(self._which(rule)).items()}


def _totals(
    m: Array,
    x: _Side,
    y: _Side,
    turned: NumpyArray,
    widest: int,
    over: Rows,
    frequencies: int,
    wanted: Set[str],
    turned_by: NumpyArray,
) -> list[dict[str, Array]]:
    """Return the totals of stacked products, some by folds, under every rule; of one size and turned alike."""
    beta = 2 if namespace(m).isdtype(m.dtype, "complex floating") else 1
    left, right = (y, x) if turned[widest] else (x, y)
    m = adjoint(m) if turned[widest] else m
    folds = m
    if m.ndim == 4:
        xp = namespace(m)
        exact = xp.complex128 if beta == 2 else xp.float64
        m = xp.sum(m, axis=1, dtype=exact)
    m = _masked(m, left.ranks[:, widest], right.ranks[:, widest])
    l_inverse, l_sums, l_places = left.kept.stacks(m.shape[1])
    r_inverse, r_sums, r_places = right.kept.stacks(m.shape[2])
    of_left, of_right = like(l_places[left.members], m), like(r_places[right.members], m)
    xp = namespace(m)
    c = corrected(
        m,
        xp.take(l_sums, of_left, axis=0),
        xp.take(r_sums, of_right, axis=0),
        over.rows,
        xp.take(l_inverse, of_left, axis=0),
        xp.take(r_inverse, of_right, axis=0),
    )
    found: list[dict[str, Array]] = []
    for rule in range(x.ranks.shape[1]):
        one, other, corner = (left, right, c) if turned[rule] == turned[widest] else (right, left, adjoint(c))
        ranks = one.ranks[:, rule], other.ranks[:, rule]
        height, width = (int(fitted(side).max()) for side in ranks)
        corner = corner[:, :height, :width]
        if rule != widest:
            corner = _masked(corner, *ranks)
        if not height:
            found.append({})
            continue
        if wanted.isdisjoint((*OF_VECTORS, *OF_GOOGLE)):
            numbers = totals_of_values(corner, vectors="jackknife" in wanted)
        else:
            loadings = one.loadings(rule, height), other.loadings(rule, width)
            squares = not wanted.isdisjoint(OF_SQUARES)
            members = one.members, other.members
            numbers = totals_of_vectors(corner, *members, *loadings, ranks, turned_by, squares=squares)
        rho, a, b = numbers[CORRELATIONS], numbers.pop("left"), numbers.pop("right", None)
        if not wanted.isdisjoint(OF_GOOGLE):
            scales = one.scales(rule, height), other.scales(rule, width)
            numbers |= totals_of_google(rho, a, b, scales, (one.members, other.members), loadings)
        if not wanted.isdisjoint(OF_COVARIANCES):
            s_one, s_other = one.scales(rule, height), other.scales(rule, width)
            numbers |= totals_of_covariances(corner, like(s_one, corner), like(s_other, corner), wanted)
        if not wanted.isdisjoint(OF_RIDGE):
            numbers |= totals_of_ridge(corner, one.shrunk(rule, height), other.shrunk(rule, width), wanted)
        if not wanted.isdisjoint(OF_CHANCE):
            numbers |= totals_of_chance(to_numpy(rho), ranks, over.freedom, beta, frequencies, wanted)
        if not wanted.isdisjoint(OF_FOLDS):
            own = folds if turned[rule] == turned[widest] else adjoint(folds)
            own = own[:, :, :height, :width]
            if "jackknife" in wanted:
                of_one, of_other = one.parts(rule, height), other.parts(rule, width)
                grams = [part[0] for part in of_one], [part[0] for part in of_other]
                numbers["jackknife"] = influences(corner, rho, a, own, *grams)
            if "held_out" in wanted:
                rows = over.halves
                halves = one.halves(rule, height, rows), other.halves(rule, width, rows)
                numbers["held_out"] = held_out(_masked_parts(own, *ranks), *halves, rows)
        found.append(exchanged(numbers) if turned[rule] else numbers)
    return found


def _spectra(rho: Array, ranks: NumpyArray, length: int) -> NumpyArray:
    """Return the largest correlations (b, length) from stacked ones (b, c), of which some fill up; NaN beyond ranks."""
    found = np.full((len(ranks), length), np.nan)
    kept = to_numpy(rho)[:, :length]
    found[:, : kept.shape[1]] = np.where(np.arange(kept.shape[1]) < ranks[:, None], kept, np.nan)
    return found


def _masked(m: Array, k_x: NumpyArray, k_y: NumpyArray) -> Array:
    """Return stacked blocks with zeros beyond their own ranks."""
    _, height, width = m.shape
    if (k_x == height).all() and (k_y == width).all():
        return m
    xp = namespace(m)
    own = (np.arange(height) < k_x[:, None])[:, :, None] & (np.arange(width) < k_y[:, None])[:, None, :]
    return xp.where(like(own, m), m, xp.zeros_like(m))


def _masked_parts(m: Array, k_x: NumpyArray, k_y: NumpyArray) -> Array:
    """Return stacked products by folds with zeros beyond their own ranks."""
    b, folds, height, width = m.shape
    flat = namespace(m).reshape(m, (b * folds, height, width))
    return namespace(m).reshape(_masked(flat, np.repeat(k_x, folds), np.repeat(k_y, folds)), m.shape)


def _later(x_keys: Sequence[str], y_keys: Sequence[str], i: NumpyArray, j: NumpyArray) -> NumpyArray:
    """Return which pairs have the smaller key on the side of y, by what bases hold."""
    place = {key: order for order, key in enumerate(sorted({*x_keys, *y_keys}))}
    found: NumpyArray = np.asarray([place[key] for key in x_keys])[i] > np.asarray([place[key] for key in y_keys])[j]
    return found


def _turned(x_ranks: NumpyArray, y_ranks: NumpyArray, later: NumpyArray) -> NumpyArray:
    """Return for each pair and rule whether y comes first, (pairs, rules): the smaller rank, or the smaller key.

    A pair then has the same bits whichever way round it is asked for.
    """
    found: NumpyArray = (x_ranks > y_ranks) | ((x_ranks == y_ranks) & later[:, None])
    return found


def _alike(
    x_ranks: NumpyArray, y_ranks: NumpyArray, turned: NumpyArray, i: NumpyArray, j: NumpyArray
) -> list[NumpyArray]:
    """Return the pairs (places in i and j) that fit into one stack: of one size, and turned alike under every rule."""
    if not i.size:
        return []
    x_kinds, y_kinds = (
        np.unique(fitted(ranks), axis=0, return_inverse=True)[1].ravel() for ranks in (x_ranks, y_ranks)
    )
    codes = x_kinds[i] * (int(y_kinds.max()) + 1) + y_kinds[j]
    for rule in turned.T:
        codes = 2 * codes + rule
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
