"""What parts of the datapoints say of a comparison: jackknife errors, and directions of one half scored on the other.

Datapoints are cut into `FOLDS` runs. Of every cross block, and of the columns of every basis, the sum of each run is
known; no datapoint is touched again. Notation as in `dsvcca.maths.sums`; M_g, G_g and u_g are the parts that run g adds
to the product of the columns of two bases, to the Gram of the columns of one, and to their sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from typing import Any

import numpy as np

from dsvcca.maths.arrays import (
    Array,
    NumpyArray,
    adjoint,
    from_pairs,
    inverse_cholesky,
    like,
    namespace,
    put,
    real_part,
    to_numpy,
)
from dsvcca.maths.correlations import smaller_side
from dsvcca.maths.mixing import BLOCK
from dsvcca.maths.sums import UNSAFE

FOLDS = 20
"""Runs of datapoints; of fewer datapoints as many as there are."""

TIED = 1e-5
"""Sums of correlations that differ by a smaller share are alike: shuffles of few values give the same again."""

LEAST = 1e-5
"""Share of a direction's variance that has to lie in half of the rows for it to be found there: far above rounding."""


def fold_bounds(rows: int, unit: int) -> NumpyArray:
    """Return where runs of rows begin, and their end: of whole datapoints, each of `unit` rows.

    And of whole blocks of rows that are stored mixed, where there are enough of them.

    >>> fold_bounds(100, 2)[:3].tolist(), len(fold_bounds(100, 2)), fold_bounds(10_000, 1)[:3].tolist()
    ([0, 4, 10], 21, [0, 512, 1024])
    """
    together = lcm(unit, BLOCK)
    together = together if rows >= 2 * FOLDS * together else unit
    count = min(FOLDS, rows // together)
    bounds: NumpyArray = np.round(np.arange(count + 1) * (rows / together) / count).astype(np.int64) * together
    bounds[-1] = rows
    return bounds


def are_whole_blocks(bounds: NumpyArray) -> bool:
    """Return whether folds are of rows that are stored mixed with no others."""
    return not (bounds[:-1] % BLOCK).any()


class Parts:
    """Grams (folds, w, w) and sums (folds, w) of the w real columns of one basis at one frequency, in float32."""

    def __init__(self, folds: int, width: int) -> None:
        self.grams: Array = put(np.zeros((folds, width, width), dtype=np.float32))
        self.sums: Array = put(np.zeros((folds, width), dtype=np.float32))

    def add(self, fold: int, columns: Array, sums: Array) -> None:
        """Add rows of a fold and their sums."""
        self.grams[fold, :, :] += columns.T @ columns
        self.sums[fold, :] += sums

    def of(self, k: int, weight: int, size: int) -> tuple[Array, Array]:
        """Return Grams (folds, size size) and sums (folds, size) of the first k directions; zero beyond."""
        width = k * weight
        grams, sums = to_numpy(self.grams[:, :width, :width]), to_numpy(self.sums[:, :width])
        if weight == 2:
            grams, sums = from_pairs(grams), sums[:, 0::2] + 1j * sums[:, 1::2]
        more = size - k
        whole = np.pad(grams, ((0, 0), (0, more), (0, more)))
        return put(whole.reshape(len(whole), -1)), put(np.pad(sums, ((0, 0), (0, more))))


def influences(c: Array, rho: Array, a: Array, m: Array, x_grams: Sequence[Array], y_grams: Sequence[Array]) -> Array:
    """Return what sum(rho) owes to each fold, (b, folds): to first order it moves so much without it, times -1.

    The derivative of singular values: sum_i [a_i^H M_g b_i - rho_i (a_i^H G_xg a_i + b_i^H G_yg b_i) / 2].

    Parameters
    ----------
    c : (b, k_x, k_y)
        Cross blocks, the smaller side first.
    rho, a : (b, k_x), (b, k_x, k_x)
        Their correlations and left vectors.
    m : (b, folds, k_x, k_y)
    x_grams, y_grams : sequence of (folds, k_x k_x), (folds, k_y k_y)
        Of the two sides of every pair.
    """
    xp = namespace(c)
    inverse = 1 / xp.maximum(rho, xp.full_like(rho, UNSAFE))
    turn = xp.matmul(xp.matmul(a * inverse[:, None, :], adjoint(a)), c)  # A B^H
    found = xp.matmul(_flat(m), _flat(turn, m.dtype)[:, :, None])[:, :, 0]
    for grams, root in ((x_grams, xp.matmul(turn, adjoint(c))), (y_grams, xp.matmul(adjoint(c), turn))):
        flat, matmul = _flat(root, m.dtype), xp.matmul
        # one product a pair: together they would have to be copied side by side
        own = [matmul(one, flat[i, :]) for i, one in enumerate(grams)]
        found = found - xp.stack(own) / 2
    return xp.astype(found if xp.isdtype(found.dtype, "real floating") else xp.real(found), xp.float64)


def _flat(m: Array, dtype: Any = None) -> Array:
    """Return matrices (..., k, l) as rows (..., k l), in another type conjugated."""
    xp = namespace(m)
    flat = xp.reshape(m, (*m.shape[:-2], -1))
    if dtype is None:
        return flat
    flat = xp.astype(flat, dtype)
    return xp.conj(flat) if xp.isdtype(dtype, "complex floating") else flat


def jackknife_error(found: NumpyArray) -> NumpyArray:
    """Return the standard error of what folds (last axis) add to (Miller 1974), leaving out one at a time."""
    count = found.shape[-1]
    return np.asarray(np.sqrt(count / (count - 1) * np.sum(found**2, axis=-1)))


class Halves:
    """What one basis needs to be scored on the odd folds by directions of the even ones.

    Attributes
    ----------
    known : bool
        Whether the even folds have rows enough, and both halves all directions.
    inverse : (size, size)
        L^-1 of the Gram of its columns in the even folds, centred there; zero where it is not known.
    tested : (size, size)
        The Gram in the odd folds, in the columns that L^-1 makes orthonormal in the even ones.
    sums : (2, size)
        Of the columns, in even and in odd folds.
    """

    def __init__(self, grams: Array, sums: Array, k: int, rows: NumpyArray) -> None:
        xp, size = namespace(grams), sums.shape[1]
        both = []
        for one in (xp.reshape(grams, (-1, size, size)), sums):
            exact = to_numpy(one).astype(np.result_type(to_numpy(one).dtype, np.float64))
            both += [exact[start::2].sum(axis=0) for start in (0, 1)]
        (train, test), self.sums = (
            (gram - np.outer(np.conj(own), own) / n for gram, own, n in zip(both[:2], both[2:], rows, strict=True)),
            np.stack(both[2:]),
        )
        inverse = np.zeros_like(train)
        self.known = bool(rows[0] > k + 1)
        if self.known:
            try:
                cholesky, there = (np.linalg.cholesky(gram[:k, :k]) for gram in (train, test))
                self.known = bool(min(np.min(np.abs(np.diagonal(one))) for one in (cholesky, there)) ** 2 > LEAST)
                inverse[:k, :k] = inverse_cholesky(cholesky)
            except np.linalg.LinAlgError:  # some direction is not in these rows at all
                self.known = False
        self.inverse, self.tested = put(inverse), put(inverse @ test @ np.conj(inverse).T)


def held_out(m: Array, x: Sequence[Halves], y: Sequence[Halves], rows: NumpyArray) -> Array:
    """Return the sums of the correlations that directions of the even folds have in the odd ones, (b,).

    Parameters
    ----------
    m : (b, folds, k_x, k_y)
        The smaller side first.
    x, y : sequence of Halves
        Of the two sides of every pair.
    rows : (2,) int
        In even and in odd folds.
    """
    xp = namespace(m)
    of_x, of_y = (xp.stack([one.inverse for one in side]) for side in (x, y))
    crossed = []
    for half in (0, 1):
        wide = xp.sum(xp.astype(m[:, half::2, :, :], of_x.dtype), axis=1)
        left, right = (like(np.stack([one.sums[half] for one in side]), of_x) for side in (x, y))
        centred = wide - adjoint(left[:, None, :]) * right[:, None, :] / int(rows[half])
        crossed.append(xp.matmul(xp.matmul(of_x, centred), adjoint(of_y)))
    train, test = crossed
    rho, a = smaller_side(train, as_found=True)  # only directions are taken from it
    b = xp.matmul(adjoint(train), a) / xp.maximum(rho, xp.full_like(rho, UNSAFE))[:, None, :]
    shared = _diagonals(a, test, b)
    own = [_diagonals(one, xp.stack([s.tested for s in side]), one) for one, side in ((a, x), (b, y))]
    scale = xp.sqrt(xp.maximum(own[0] * own[1], xp.zeros_like(shared)))
    some = scale > 0
    found = xp.where(some, shared / xp.where(some, scale, xp.ones_like(scale)), xp.zeros_like(shared))
    known = np.asarray([one.known and other.known for one, other in zip(x, y, strict=True)])
    return xp.sum(found, axis=-1) * like(np.where(known, 1.0, np.nan), found)


def _diagonals(a: Array, m: Array, b: Array) -> Array:
    """Return Re a_i^H M b_i of the columns of stacked a and b."""
    xp = namespace(m)
    return real_part(xp.sum(adjoint(xp.matrix_transpose(a)) * xp.matmul(m, b), axis=-2))
