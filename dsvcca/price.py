"""What a plan costs: counts, bytes, flops, memory, and seconds on a machine that was measured.

`Work` is a plan as integers; `price` knows nothing else. Rates are those of the real kernels, taken in a third of a
second (`measure`): what a task does beside its products is in them as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil

import numpy as np
from dask.utils import format_bytes, format_time
from threadpoolctl import threadpool_limits

from dsvcca.arrays import NumpyArray, rfftn
from dsvcca.basis import RankRule
from dsvcca.correlations import corrected
from dsvcca.measures import totals_of_values, totals_of_vectors
from dsvcca.sizes import PROCESS, Size, reduce_flops, transform_flops
from dsvcca.views import View
from dsvcca.whiten import whiten_in_memory

TASK = 0.03
"""Seconds that a task takes beside its arithmetic, about: opening, committing, the scheduler."""

STORAGE = 1e9
"""Bytes a second that a worker is assumed to read and write, while it computes."""

ROWS = 1024


@dataclass(frozen=True)
class BasisWork:
    """One basis to be made: of what size, how many bytes are read for it how often, how many directions it keeps.

    `route` is how it is whitened: "covariance", "dual" or "randomised".
    """

    size: Size
    nbytes: int
    times_read: int
    rank: int
    route: str


@dataclass(frozen=True)
class Together:
    """Comparisons of one tile that share their rows and frequencies.

    Attributes
    ----------
    rows, frequencies : int
    multiplied : float
        Products of a column of x and a column of y that are made, at all frequencies.
    pairs : int
    rank : int
        Of a basis at one frequency, on average.
    """

    rows: int
    frequencies: int
    multiplied: float
    pairs: int
    rank: int


@dataclass(frozen=True)
class Work:
    """A plan as integers."""

    comparisons: int
    variants: tuple[BasisWork, ...]
    reduce_tasks: int
    tiles: int
    passes: tuple[Together, ...]
    rules: int
    vectors: bool
    direct: bool
    bytes_read: int
    bytes_written: int
    memory: int


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


@dataclass(frozen=True)
class Price:
    """What a plan costs on some machine; `print` shows it.

    Attributes
    ----------
    comparisons, reduce_tasks, tiles : int
    bytes_read, bytes_written : int
    flops : float
    memory : int
        Bytes of the process of one worker thread, at most.
    seconds : float
        Of the whole run, if no basis is there yet.
    threads : int
        On so many worker threads.
    """

    comparisons: int
    reduce_tasks: int
    tiles: int
    bytes_read: int
    bytes_written: int
    flops: float
    memory: int
    seconds: float
    threads: int

    def __str__(self) -> str:
        return "\n".join(
            f"{name:<17}{what}"
            for name, what in (
                ("comparisons", f"{self.comparisons:,} in {self.tiles:,} tiles"),
                ("tasks", f"{self.reduce_tasks:,} reduce, {self.tiles:,} correlate"),
                ("read", f"{format_bytes(self.bytes_read)}, if no basis is there yet"),
                ("written", format_bytes(self.bytes_written)),
                ("arithmetic", f"{self.flops / 1e9:,.1f} GFLOP"),
                ("memory", f"{format_bytes(self.memory)} a worker thread"),
                ("time", f"about {format_time(self.seconds)} on {_spelled(self.threads)}"),
            )
        )


def _spelled(threads: int) -> str:
    return "one worker thread like this one" if threads == 1 else f"{threads:,} worker threads"


def price(work: Work, machine: Machine) -> Price:
    """Return what some work costs on a machine."""
    flops = seconds = 0.0
    for one in work.variants:
        own = reduce_flops(one.size, 0 if work.direct else one.rank, one.route)
        flops += own + one.times_read * transform_flops(one.size)
        seconds += own / machine.double
        if one.size.space:
            seconds += one.times_read * one.size.rows * one.size.width / machine.transform
    reducing = seconds / machine.threads
    seconds = 0.0
    if work.direct:
        columns = [one.size.columns for one in work.variants]
        first = work.variants[0].size
        cross = 4.0 * first.rows * first.frequencies * (sum(columns) ** 2 - sum(c * c for c in columns))
        flops += cross
        seconds += cross / machine.double
    for several in work.passes:
        product = 0.0 if work.direct else 2.0 * several.rows * several.multiplied
        each = machine.solve(several.rank, work.vectors) * several.pairs * several.frequencies * work.rules
        flops += product + several.pairs * several.frequencies * work.rules * 4.0 * several.rank**3
        seconds += product / machine.product + each
    busy = ceil(work.tiles / machine.threads) / max(work.tiles / machine.threads, 1e-9)  # the last ones wait for none
    correlating = seconds / machine.threads * (busy if work.tiles else 1)
    overhead = TASK * (work.reduce_tasks + work.tiles) / machine.threads
    moving = (work.bytes_read + work.bytes_written) / STORAGE / machine.threads
    return Price(
        comparisons=work.comparisons,
        reduce_tasks=work.reduce_tasks,
        tiles=work.tiles,
        bytes_read=work.bytes_read,
        bytes_written=work.bytes_written,
        flops=flops,
        memory=PROCESS + work.memory,
        seconds=max(reducing + correlating, moving) + overhead,
        threads=machine.threads,
    )


@cache
def this_machine() -> Machine:
    """Return what one thread of this machine does, measured once."""
    return measure()


def measure() -> Machine:
    """Measure one thread of this machine, in a third of a second."""
    rng = np.random.default_rng(0)
    with threadpool_limits(1):
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
