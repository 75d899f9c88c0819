"""Rows are mixed before they are rounded: products of float32 columns then round at random.

A sum in float32 of a thousand equal numbers, as one-hot labels and binary activations give, rounds the same way a
thousand times: errors of 4e-6 were seen, where random ones come to 1e-8. So rows are multiplied by an orthogonal
matrix, the same for everything: signs at random, then the Hartley transform of BLOCK neighbouring rows. Products of
columns do not change, and no two rows stay equal.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np

from dsvcca.maths.arrays import Array, NumpyArray, like, namespace
from dsvcca.maths.views import LEAST

BLOCK = LEAST
"""Rows mixed with each other; those after the last whole block are mixed among themselves."""

PERIOD = 4096
"""Rows after which the signs repeat."""


@cache
def _signs() -> NumpyArray:
    """Return the signs of PERIOD rows, from a generator whose raw stream never changes."""
    raw = np.random.PCG64(20170619).random_raw(PERIOD)
    return np.where(raw >> np.uint64(63), 1.0, -1.0)


@cache
def _hartley(size: int) -> NumpyArray:
    """Return the orthogonal, symmetric matrix of the Hartley transform: no two of its rows have the same numbers."""
    angles = 2 * np.pi / size * np.outer(np.arange(size), np.arange(size))
    return np.asarray((np.cos(angles) + np.sin(angles)) / np.sqrt(size))


def mix(slab: Array, start: int) -> Array:
    """Return rows (m, k) of a representation mixed, in their own type; `start` is the first of them.

    `start` must be a multiple of BLOCK.
    """
    xp = namespace(slab)
    m, k = slab.shape
    whole = m - m % BLOCK
    rows = np.arange(start, start + m) % PERIOD
    columns = xp.matrix_transpose(slab)  # of columns made by one product this is how they lie in memory
    signed = columns * xp.astype(like(_signs()[rows], slab), slab.dtype)
    parts = []
    for part, size in ((signed[:, :whole], BLOCK), (signed[:, whole:], m - whole)):
        if part.shape[1]:
            hartley = xp.astype(like(_hartley(size), slab), slab.dtype)
            parts.append(xp.reshape(xp.matmul(xp.reshape(part, (-1, size)), hartley), (k, part.shape[1])))
    return xp.matrix_transpose(parts[0] if len(parts) == 1 else xp.concat(parts, axis=1))


def unmix(slab: Array, start: int) -> Array:
    """Return rows as they were before `mix`; they end with a whole block, or with the last row of all."""
    xp = namespace(slab)
    m, k = slab.shape
    if not k:
        return slab
    whole = m - m % BLOCK
    parts = []
    for part, size in ((slab[:whole, :], BLOCK), (slab[whole:, :], m - whole)):
        if part.shape[0]:
            hartley = xp.astype(like(_hartley(size), slab), slab.dtype)
            parts.append(xp.reshape(xp.matmul(hartley, xp.reshape(part, (-1, size, k))), part.shape))
    found = parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)
    signs = _signs()[np.arange(start, start + m) % PERIOD]
    return found * xp.astype(like(signs, slab), slab.dtype)[:, None]


def mixed_ones(start: int, rows: int) -> NumpyArray:
    """Return what becomes of (1, ..., 1) for these rows: the sum of a column is its product with this."""
    return _mixed_ones(start % PERIOD, rows)


@lru_cache(maxsize=64)
def _mixed_ones(start: int, rows: int) -> NumpyArray:
    return np.asarray(mix(np.ones((rows, 1)), start)[:, 0])
