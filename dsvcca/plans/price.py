"""What a plan costs: counts, bytes, flops, memory, and seconds on a machine that was measured.

`Work` is a plan as integers, `machine.Machine` what a thread does a second; `price` knows nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from dask.utils import format_bytes

from dsvcca.plans.machine import Machine
from dsvcca.plans.sizes import PROCESS, Size, reduce_flops, transform_flops

TASK = 0.03
"""Seconds that a task takes beside its arithmetic, about: opening, committing, the scheduler."""

RUN = 0.25
"""Seconds that a run takes beside its tasks, about: opening, beginning, checking."""

STORAGE = 1e9
"""Bytes a second that a worker is assumed to read and write, while it computes."""


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
    """A plan as integers.

    Of so many `bases`, `aspects` are those to be made. A tile is one of `correlate_tasks`, or several that do a portion
    of it each, which are then merged. `spectra` is how many solves for the correlations of a cross block all else
    costs, `products` how often cross blocks are made.
    """

    comparisons: int
    itself: int
    bases: int
    aspects: tuple[BasisWork, ...]
    reduce_tasks: int
    correlate_tasks: int
    tiles: int
    passes: tuple[Together, ...]
    rules: int
    vectors: bool
    spectra: int
    products: int
    direct: bool
    bytes_read: int
    bytes_written: int
    memory: int


@dataclass(frozen=True)
class Price:
    """What a plan costs on some machine; `print` shows it.

    Attributes
    ----------
    comparisons, itself, reduce_tasks, correlate_tasks, tiles : int
        Of the comparisons, `itself` are of one representation with itself.
    bases, bases_there : int
        In all, and those that need not be made.
    bytes_read, bytes_written : int
    flops : float
    memory : int
        Bytes of the process of one worker thread, at most.
    seconds : float
        Of the whole run.
    threads : int
        On so many worker threads.
    """

    comparisons: int
    itself: int
    bases: int
    bases_there: int
    reduce_tasks: int
    correlate_tasks: int
    tiles: int
    bytes_read: int
    bytes_written: int
    flops: float
    memory: int
    seconds: float
    threads: int

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self, most: Price | None = None) -> list[str]:
        """Return what it costs in words, a line each; at most as much as another price, where one is given."""
        memory, time = format_bytes(self.memory), spelled_time(self.seconds)
        if most is not None and most.memory > 1.01 * self.memory:
            memory += f" to {format_bytes(most.memory)}"
        if most is not None and most.seconds > 1.01 * self.seconds:
            time += f" to {spelled_time(most.seconds).removeprefix('about ')}"
        there = (
            f"{self.bases_there:,} of {self.bases:,} bases are there" if self.bases_there else "if no basis is there"
        )
        tasks = f"{self.correlate_tasks:,}"
        busy = max(self.reduce_tasks, self.correlate_tasks)
        if most is not None and most.correlate_tasks > self.correlate_tasks:
            tasks += f" to {most.correlate_tasks:,}"
            busy = max(busy, most.correlate_tasks)
        return [
            f"{name:<17}{what}"
            for name, what in (
                ("comparisons", f"{self.comparisons:,}, {self.itself:,} of them of one with itself"),
                ("tasks", f"{self.reduce_tasks:,} reduce, {tasks} correlate; each by one thread"),
                ("read", f"{format_bytes(self.bytes_read)}, {there}"),
                ("written", format_bytes(self.bytes_written)),
                ("arithmetic", f"{self.flops / 1e9:,.1f} GFLOP"),
                ("memory", f"{memory} a worker thread"),
                ("time", f"{time} on {self._threads(busy)}"),
            )
        ]

    def _threads(self, busy: int) -> str:
        """Return in words on how many threads it is done, of which so many have work."""
        idle = f", of which no more than {busy:,} ever have work" if self.threads > busy else ""
        return "one worker thread like this one" if self.threads == 1 else f"{self.threads:,} worker threads{idle}"


def spelled_time(seconds: float) -> str:
    """Return a time that is known to a few percent.

    >>> spelled_time(0.1234), spelled_time(12.34), spelled_time(1234), spelled_time(40_000)
    ('about 0.12 s', 'about 12 s', 'about 21 min', 'about 11 h')
    """
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"about {seconds / size:.{0 if seconds >= 10 * size else 1}f} {unit}"
    return f"about {seconds:.{0 if seconds >= 10 else 1 if seconds >= 1 else 2}f} s"


def price(work: Work, machine: Machine) -> Price:
    """Return what some work costs on a machine."""
    flops = seconds = 0.0
    for one in work.aspects:
        own = reduce_flops(one.size, 0 if work.direct else one.rank, one.route)
        flops += own + one.times_read * transform_flops(one.size)
        seconds += own / machine.double
        if one.size.space:
            seconds += one.times_read * one.size.rows * one.size.width / machine.transform
    reducing = seconds / machine.threads
    seconds = 0.0
    if work.direct:
        columns = [one.size.columns for one in work.aspects]
        first = work.aspects[0].size
        cross = 4.0 * first.rows * first.frequencies * (sum(columns) ** 2 - sum(c * c for c in columns))
        flops += cross
        seconds += cross / machine.double
    for several in work.passes:
        product = 0.0 if work.direct else 2.0 * several.rows * several.multiplied * work.products
        solves = several.pairs * several.frequencies * work.rules
        each = machine.solve(several.rank, work.vectors) + (work.spectra + work.products - 1) * machine.solve(
            several.rank, False
        )
        flops += product + solves * (1 + work.spectra) * 4.0 * several.rank**3
        seconds += product / machine.product + solves * each
    rounds = work.correlate_tasks / machine.threads
    correlating = seconds / machine.threads * (ceil(rounds) / rounds if rounds else 1)  # the last ones wait for none
    merging = work.tiles if work.correlate_tasks > work.tiles else 0
    overhead = RUN + TASK * (work.reduce_tasks + work.correlate_tasks + merging) / machine.threads
    moving = (work.bytes_read + work.bytes_written) / STORAGE / machine.threads
    return Price(
        comparisons=work.comparisons,
        itself=work.itself,
        bases=work.bases,
        bases_there=work.bases - len(work.aspects),
        reduce_tasks=work.reduce_tasks,
        correlate_tasks=work.correlate_tasks,
        tiles=work.tiles,
        bytes_read=work.bytes_read,
        bytes_written=work.bytes_written,
        flops=flops,
        memory=PROCESS + work.memory,
        seconds=max(reducing + correlating, moving) + overhead,
        threads=machine.threads,
    )
