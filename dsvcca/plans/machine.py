"""What one thread of a machine does a second, measured in a third of a second.

Whitening, solves and transforms are those of the engine, so that what they do beside their products counts as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from dsvcca.maths.arrays import NumpyArray, rfftn
from dsvcca.maths.basis import RankRule
from dsvcca.maths.blas import one_blas_thread
from dsvcca.maths.correlations import corrected
from dsvcca.maths.sums import totals_of_values, totals_of_vectors
from dsvcca.maths.views import View
from dsvcca.maths.whiten import whiten_in_memory
from dsvcca.plans.sizes import Size, reduce_flops

ROWS = 1024


@dataclass(frozen=True)
class Machine:
    """What one thread does a second, and how many of them there are.

    Attributes
    ----------
    threads : int
    product, double : float
        Flops of float32 products of slabs, and of whitening in float64.
    transform : float
        Values transformed over space.
    solves : tuple of (rank, seconds of values, seconds of vectors)
        Seconds of one comparison at a few ranks, products aside.
    """

    threads: int
    product: float
    double: float
    transform: float
    solves: tuple[tuple[int, float, float], ...]

    def solve(self, rank: float, vectors: bool) -> float:
        """Return the seconds of one comparison of a rank, products aside."""
        ranks = np.log([one[0] for one in self.solves])
        seconds = np.log([one[2 if vectors else 1] for one in self.solves])
        last = (seconds[-1] - seconds[-2]) / (ranks[-1] - ranks[-2])
        beyond = max(0.0, np.log(max(rank, 1)) - ranks[-1])
        return float(np.exp(np.interp(np.log(max(rank, 1)), ranks, seconds) + last * beyond))


@cache
def this_machine() -> Machine:
    """Return what one thread of this machine does, measured once."""
    return measure_rates()


def measure_rates() -> Machine:
    """Measure one thread of this machine, in a third of a second."""
    rng = np.random.default_rng(0)
    with one_blas_thread():
        u = rng.standard_normal((ROWS, 2048)).astype(np.float32)
        left = u[:, :512].copy()
        product = 2.0 * ROWS * 512 * 2048 / _seconds(lambda: left.T @ u)
        x = rng.standard_normal((4 * ROWS, 256)).astype(np.float32)
        size = Size(len(x), 256, (), x.size, len(x))
        whiten = _seconds(lambda: whiten_in_memory(x, RankRule(rank=40), "this", view=View("neurons")))
        maps = rng.standard_normal((64, 16, 16, 16))
        transform = maps.size / _seconds(lambda: rfftn(maps, axes=(1, 2)))
        solves = tuple((k, _solve_seconds(rng, k, False), _solve_seconds(rng, k, True)) for k in (8, 32, 96))
    return Machine(1, product, reduce_flops(size, 40) / whiten, transform, solves)


def _solve_seconds(rng: np.random.Generator, k: int, vectors: bool) -> float:
    """Return the seconds of one comparison of rank k, among as many as fit in a stack."""
    count = max(2, min(64, (1 << 19) // (8 * k * k)))
    m: NumpyArray = rng.standard_normal((count, k, k)) / (3 * k)
    inverse, sums = np.broadcast_to(np.eye(k), (count, k, k)).copy(), np.zeros((count, k))
    loadings: Sequence[NumpyArray] = [rng.standard_normal((k, 3 * k))]
    who = np.zeros(count, dtype=np.int64)

    def solve() -> None:
        c = corrected(m, sums, sums, 1000, inverse, inverse)
        if vectors:
            totals_of_vectors(c, who, who, loadings, loadings)
        else:
            totals_of_values(c)

    return _seconds(solve) / count


def _seconds(work: Callable[[], object]) -> float:
    """Return the time of some work: the second smallest of four, so that neither luck nor a neighbour decides."""
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return sorted(taken)[1]
