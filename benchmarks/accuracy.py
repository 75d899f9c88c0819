"""How exact the numbers are: awkward data, from disk and in memory, against a reference of 64 bits.

python benchmarks/accuracy.py                      every case, and what one unit in the last place of the data moves
python benchmarks/accuracy.py --only one-hot
python benchmarks/accuracy.py --help

The truth is that of the numbers as stored (tests/longdouble_reference.py). An error above `BOUND` must be announced: by
a warning, or by an error instead of a number.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import dsvcca
from tests import longdouble_reference as reference
from tests.reference import orthonormal, planted, to_bfloat16

BOUND = 1e-6
"""Errors above this must be announced."""

MEASURES = ("svcca", "r2", "pwcca_x", "pwcca_y")
NUMBERS = (*MEASURES, "itself")

FEW = "fewer than 5"
FORCED = "are 1 whatever the data"
NO_FREEDOM = "leave no freedom"
CUT, TIES = (f"rounding decides {what}" for what in ("which directions", "up to"))
"""What warnings say where the answer depends on rounding: what is cut, near correlations."""
OPEN = (CUT, TIES)
BLOCK = "few datapoints decide"
"""What is said where one block of rows has nearly all of the variance."""

Pair = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Case:
    """Two layers, and what is promised of their comparison.

    Attributes
    ----------
    name : str
    make : function
    says : str
        Part of the warning or the error that is expected; "" where nothing is said.
    variance, rank
        Rules of the plan; in memory variance alone.
    view : str
    torch : bool
        Whether both are bfloat16, handed over as tensors.
    slow : bool
        Left out of the fast tests.
    """

    name: str
    make: Callable[[], Pair]
    says: str = ""
    variance: tuple[float, ...] = (0.9, 0.99, 1.0)
    rank: int | None = None
    view: str = "auto"
    torch: bool = False
    slow: bool = False

    @property
    def outcome(self) -> str:
        """What is promised, in words."""
        return f'"... {self.says} ..." is said' if self.says else f"within {BOUND:g}"

    @property
    def may_be_wrong(self) -> bool:
        """Whether numbers may be off by more than `BOUND`, since a warning says so."""
        return self.says in (FORCED, *OPEN)


@dataclass
class Found:
    """What became of a case.

    Attributes
    ----------
    disk, memory : dict
        Worst error over all rules of every measure; `itself` of the diagonal.
    wrong_ranks : list of str
    warned, refused, other : list of str
        Warnings and errors of the package; warnings of anything else.
    moved : dict
        How far the exact answer moves if every number moves by one unit in the last place of its own type, and of
        float64.
    nearest : dict
        Smallest difference of two squared correlations; smallest distance of what is cut from what is kept, of λ_1.
    """

    disk: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    wrong_ranks: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    moved: dict[str, float] = field(default_factory=dict)
    nearest: dict[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> float:
        return max([0.0, *self.disk.values(), *self.memory.values()])

    @property
    def is_right(self) -> bool:
        return self.worst <= BOUND and not self.wrong_ranks

    def said(self, what: str) -> bool:
        """Return whether some warning or error says something."""
        return any(what in sentence for sentence in (*self.warned, *self.refused))


# The cases


def layers(
    n: int = 600, p: int = 12, q: int = 9, *, shared: int = 6, noise: float = 0.5, seed: int = 0, like: Any = np.float64
) -> Pair:
    """Return activations (n, p) and (n, q) that share some signals, all correlations different from 0 and 1."""
    rng = np.random.default_rng(seed)
    signals = rng.standard_normal((n, shared))
    x = signals @ rng.standard_normal((shared, p)) + noise * rng.standard_normal((n, p))
    y = signals @ rng.standard_normal((shared, q)) + noise * rng.standard_normal((n, q))
    return x.astype(like), y.astype(like)


def changed(change: Callable[[Any], Any], **options: Any) -> Callable[[], Pair]:
    """Return what makes ordinary layers, and changes each of them."""

    def make() -> Pair:
        x, y = layers(**options)
        return change(x), change(y)

    return make


def with_spectra(s: Iterable[float], t: Iterable[float], n: int = 1000, columns: int | None = None) -> Pair:
    """Return layers with the singular values given, of related subspaces, turned over their columns."""
    s, t = np.asarray(list(s)), np.asarray(list(t))
    rng = np.random.default_rng(len(s))
    u = orthonormal(rng, n, len(s))
    v = u @ rng.standard_normal((len(s), len(t))) * 0.4 + orthonormal(rng, n, len(t))
    v = np.linalg.qr(v - v.mean(axis=0))[0]
    turns = [np.linalg.qr(rng.standard_normal((columns or len(one), len(one))))[0].T for one in (s, t)]
    return (u * s) @ turns[0], (v * t) @ turns[1]


def conditioned(condition: float) -> Callable[[], Pair]:
    return lambda: with_spectra(np.geomspace(1, 1 / condition, 12), np.geomspace(1, 1 / condition, 9))


THRESHOLD = (1000 * 2.0**-52) ** 0.5
"""The singular value, of the largest, at which one of 1,000 rows is zero."""


def around_the_threshold(*last: float) -> Callable[[], Pair]:
    """Return what makes layers whose smallest singular values are so many thresholds."""
    small = THRESHOLD * np.asarray(last)
    return lambda: with_spectra([*np.linspace(1, 0.5, 10), *small], [*np.linspace(1, 0.5, 7), *small])


def with_dead(like: Any) -> Pair:
    x, y = layers()
    constants = np.full((len(x), 3), [1234567.1, -3e4, 0.1])
    return np.column_stack([x, constants]).astype(like), np.column_stack([constants, y]).astype(like)


def tied(*rho: float) -> Callable[[], Pair]:
    return lambda: planted(np.random.default_rng(5), 800, rho, condition=3.0)


def codes_of_the_same() -> Pair:
    """Return layers that hold four signals untouched by noise, and noise beside them."""
    rng = np.random.default_rng(6)
    signals = rng.standard_normal((800, 4))
    x, y = (np.column_stack([signals, rng.standard_normal((800, k))]) for k in (4, 5))
    return x @ rng.standard_normal((8, 8)), y @ rng.standard_normal((9, 9))


def a_little_noise() -> Pair:
    """Return two layers of 40 neurons that code 30 signals, with 5 % of noise: many correlations are close."""
    return layers(1000, 40, 40, shared=30, noise=0.05, seed=7, like=np.float32)


def apart(noise: float, like: Any = np.float64) -> Callable[[], Pair]:
    """Return what makes a layer and a copy of it that differs by a little noise."""

    def make() -> Pair:
        x, _ = layers(1000)
        return x.astype(like), (x + noise * np.random.default_rng(8).standard_normal(x.shape)).astype(like)

    return make


def unrelated() -> Pair:
    """Return layers whose correlations are 0 but for rounding."""
    rng = np.random.default_rng(9)
    both = orthonormal(rng, 1000, 21)
    return both[:, :12] @ rng.standard_normal((12, 12)), both[:, 12:] @ rng.standard_normal((9, 9))


def exactly_unrelated() -> Pair:
    """Return layers of small integers whose correlations are 0 to the last bit."""
    rng = np.random.default_rng(10)
    hadamard = np.ones((1, 1), dtype=np.int64)
    for _ in range(9):
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    x, y = (hadamard[:, 1 + 8 * i : 9 + 8 * i] @ rng.integers(-3, 4, (8, 8)) for i in range(2))
    return x, y


def one_of_many(classes: int, like: Any = np.float32, *, balanced: bool = True) -> Pair:
    """Return one-hot labels, and a layer that knows them."""
    rng = np.random.default_rng(11)
    labels = np.arange(1000) % classes if balanced else rng.integers(0, classes, 1000) ** 2 // classes
    hot = np.eye(classes)[labels]
    y = hot @ rng.standard_normal((classes, 16)) + 0.3 * rng.standard_normal((1000, 16))
    return hot.astype(like), y.astype(like)


def sparse() -> Pair:
    """Return activations after a ReLU, nine tenths of them zero."""
    x, y = layers(1500, 30, 24, seed=12)
    x, y = (np.maximum(one - np.quantile(one, 0.9, axis=0), 0).astype(np.float32) for one in (x, y))
    return x, y


def cauchy(seed: int) -> Pair:
    rng = np.random.default_rng(seed)
    x = rng.standard_cauchy((800, 10))
    return x, x @ rng.standard_normal((10, 8)) + rng.standard_cauchy((800, 8))


def spike() -> Pair:
    """Return a neuron that fires for one datapoint of 4,096, and another that does the same."""
    x = np.zeros((4096, 1))
    x[40] = 1
    return x, 2 * x + 1e-6 * np.random.default_rng(14).standard_normal((4096, 1))


def one_large() -> Pair:
    """Return layers of 16 neurons in which one datapoint is 1e4 times the others."""
    x, y = layers(4096, 16, 16, shared=16, noise=0.3, seed=2)
    rng = np.random.default_rng(2)
    x[40] += 1e4 * rng.standard_normal(16)
    y[40] += 1e4 * rng.standard_normal(16)
    return x, y


def few_signals(scale: float) -> Callable[[], Pair]:
    """Return what makes a layer of 8 neurons that code 3 signals, at a scale, and one with noise; float64."""

    def make() -> Pair:
        rng = np.random.default_rng(15)
        signals = rng.standard_normal((600, 3))
        x = signals @ rng.standard_normal((3, 8))
        return scale * x, scale * (signals @ rng.standard_normal((3, 6)) + 0.3 * rng.standard_normal((600, 6)))

    return make


def rounded(make: Callable[[], Pair], to: Callable[[Any], Any]) -> Callable[[], Pair]:
    def made() -> Pair:
        x, y = make()
        return to(x), to(y)

    return made


def to_float16(x: Any) -> Any:
    return x.astype(np.float16)


def to_float32(x: Any) -> Any:
    return x.astype(np.float32)


def wide(n: int, p: int, k: int) -> Pair:
    rng = np.random.default_rng(16)
    signals = rng.standard_normal((n, k)) * np.geomspace(1, 0.2, k)
    x, y = (signals @ rng.standard_normal((k, c)) + 0.1 * rng.standard_normal((n, c)) for c in (p, p - p // 10))
    return x.astype(np.float32), y.astype(np.float32)


def maps(mean: float = 0.0, steep: float = 0.0, space: tuple[int, int] = (4, 4), like: Any = np.float64) -> Pair:
    """Return maps (300, h, w, 4) that share signals; high frequencies fall off by exp(-steep |f|)."""
    rng = np.random.default_rng(17)
    signals = rng.standard_normal((300, *space, 3))
    signals = signals + 0.7 * np.roll(signals, 1, axis=1)
    both = []
    for shift in (0, 1):
        x = np.roll(signals, shift, axis=2) @ rng.standard_normal((3, 4)) + 0.5 * rng.standard_normal((300, *space, 4))
        fall = np.exp(-steep * np.hypot(np.fft.fftfreq(space[0])[:, None], np.fft.fftfreq(space[1])))
        x = np.fft.ifft2(np.fft.fft2(x, axes=(1, 2)) * fall[:, :, None], axes=(1, 2)).real
        both.append((x + mean).astype(like))
    return both[0], both[1]


def of_one_frequency(*, common: bool) -> Pair:
    """Return maps that are constant over space, and others that are so too, or change sign with every row."""
    rng = np.random.default_rng(18)
    z = rng.standard_normal((300, 1, 1, 3))
    y = z @ rng.standard_normal((3, 3)) + rng.standard_normal((300, 1, 1, 3))
    sign = np.ones(4) if common else np.array([1.0, -1, 1, -1])
    return np.tile(z, (1, 4, 4, 1)), np.tile(y, (1, 4, 4, 1)) * sign[:, None, None]


def small_direction() -> Pair:
    rng = np.random.default_rng(5)
    q = orthonormal(rng, 120, 8)
    x = (q[:, :3] * [1, 0.9, 7e-7]) @ np.linalg.qr(rng.standard_normal((400, 3)))[0].T
    return x, (q[:, 2:3] + q[:, 3:4]) @ rng.standard_normal((1, 3))


def near_cut(gap: float) -> Pair:
    rng = np.random.default_rng(0)
    q = orthonormal(rng, 200, 12)
    u = q[:, :6]
    x = (u * [1, 1 - gap / 2, 0.5, 0.3, 0.2, 0.1]) @ np.linalg.qr(rng.standard_normal((6, 6)))[0]
    return x, 0.6 * u[:, :1] + 0.6 * u[:, 1:2] + 0.28**0.5 * q[:, 6:7]


def at_the_limit() -> Pair:
    rng, n = np.random.default_rng(1), 600
    q = orthonormal(rng, n, 8)
    x = (q[:, :4] * [1, 0.8, 0.6, (n * 2**-52) ** 0.5]) @ np.linalg.qr(rng.standard_normal((4, 4)))[0]
    return x, (q[:, :2] + q[:, 3:5]) @ rng.standard_normal((2, 2))


def two_blocks() -> Pair:
    rng, n = np.random.default_rng(13), 4096
    x = 1e-3 * rng.standard_normal((n, 1))
    for b in rng.choice(64, 2, replace=False):
        x[b * 64 : b * 64 + 64] += rng.choice([1, -1]) * rng.random((1, 1))
    return x, x + 1e-3 * rng.standard_normal((n, 1))


CASES = (
    # types
    Case("float64", layers, rank=5),
    Case("float32", rounded(layers, to_float32), rank=5),
    Case("float16", rounded(layers, to_float16)),
    Case("bfloat16 numbers in float32", rounded(layers, to_bfloat16)),
    Case(
        "bfloat16 tensors, three signals in eight neurons",
        rounded(few_signals(1.0), to_bfloat16),
        torch=True,
    ),
    Case("int8", changed(lambda x: (10 * x).astype(np.int8))),
    Case("uint8", changed(lambda x: np.clip(10 * x + 100, 0, 255).astype(np.uint8))),
    Case("int64 of 1e15", changed(lambda x: (1e12 * x).astype(np.int64) + 10**15)),
    Case("int64 beyond 2^53", changed(lambda x: (1e12 * x).astype(np.int64) + 10**17), says="are not exact as float64"),
    Case("bool", changed(lambda x: x > 0)),
    Case("negative zeros", changed(lambda x: np.where(x > 0, x, -0.0))),
    # scales
    Case("float32 denormals", changed(lambda x: (1e-41 * x).astype(np.float32))),
    Case("float64 denormals", changed(lambda x: 1e-310 * x), says="underflow float64"),
    Case("three signals in eight neurons, float16", rounded(few_signals(1.0), to_float16)),
    Case(
        "three signals in eight neurons, float16 denormals",
        rounded(few_signals(2e-6), to_float16),
    ),
    Case("scale 1e-30", changed(lambda x: (1e-30 * x).astype(np.float32))),
    Case("scale 1e30", changed(lambda x: (1e30 * x).astype(np.float32))),
    Case("scale 1e-138", changed(lambda x: 1e-138 * x)),
    Case("scale 1e150", changed(lambda x: 1e150 * x), rank=5),
    Case("scale 1e160", changed(lambda x: 1e160 * x), says="overflow float64"),
    Case("columns from 1e-30 to 1e30", changed(lambda x: x * np.geomspace(1e-30, 1e30, x.shape[1]))),
    Case("columns from 1e-2 to 1e2", changed(lambda x: x * np.geomspace(1e-2, 1e2, x.shape[1])), rank=5),
    Case(
        "40 columns from 1e-3 to 1e3",
        changed(lambda x: x * np.geomspace(1e-3, 1e3, x.shape[1]), p=40, q=40, seed=1),
        CUT,
    ),
    Case("means 1e3", changed(lambda x: x + 1e3)),
    Case("means 1e6", changed(lambda x: x + 1e6)),
    Case("means 1e6, float32", changed(lambda x: (x + 1e6).astype(np.float32))),
    Case("the first 256 rows 1e5 off", changed(lambda x: x + 1e5 * (np.arange(len(x)) < 256)[:, None])),
    # neurons and datapoints
    Case("dead neurons", lambda: with_dead(np.float64)),
    Case("dead neurons, float32", lambda: with_dead(np.float32)),
    Case("doubled neurons", changed(lambda x: np.column_stack([x, x[:, :4]]))),
    Case("one neuron", changed(lambda x: x[:, :1])),
    Case("every neuron constant", changed(lambda x: 0 * x + 3.0), says="every neuron is constant"),
    Case("two datapoints", changed(lambda x: x[:2]), says=NO_FREEDOM),
    Case("three datapoints, one neuron", changed(lambda x: x[:3, :1]), says=FEW),
    Case("20 datapoints, 12 and 9 neurons", layers_of_20 := changed(lambda x: x[:20]), says=FORCED),
    Case("20 datapoints, as few kept as leave freedom", layers_of_20, says=FEW, variance=(0.9,)),
    Case("every datapoint six times", changed(lambda x: np.repeat(x[:100], 6, axis=0))),
    Case("57 and 54 neurons, 60 datapoints", changed(lambda x: x, n=60, p=57, q=54), says=FORCED),
    Case("59 neurons, 60 datapoints", changed(lambda x: x, n=60, p=59, q=59), says=NO_FREEDOM),
    Case("80 neurons, 60 datapoints", changed(lambda x: x, n=60, p=80, q=75), says=NO_FREEDOM),
    # condition
    *(
        Case(f"condition {condition:g}", conditioned(condition), CUT if condition > 1e6 else "", rank=6)
        for condition in (1e3, 1e6, 1e8, 1e12)
    ),
    *(
        Case(
            f"condition {condition:g}, float32",
            rounded(conditioned(condition), to_float32),
            CUT if condition > 1e6 else "",
            rank=6,
        )
        for condition in (1e3, 1e6, 1e8)
    ),
    Case(
        "cut among singular values of 1e-5",
        lambda: with_spectra([1, 0.7, *np.geomspace(1e-5, 3e-6, 6)], [1, 0.8, *np.geomspace(1e-5, 3e-6, 5)]),
        CUT,
        rank=5,
    ),
    Case("singular values twice and a twentieth of the threshold", around_the_threshold(2.0, 0.05), CUT),
    Case("singular values 1 % above and below the threshold", around_the_threshold(1.01, 0.99), CUT),
    Case(
        "six singular values 1e-5 above the threshold",
        around_the_threshold(*[1 + 1e-5] * 6),
        CUT,
    ),
    Case(
        "the cut between two equal singular values",
        lambda: with_spectra([1, 0.9, 0.8, 0.7, 0.7, 0.5], np.linspace(1, 0.5, 6)),
        CUT,
        rank=4,
    ),
    # correlations
    Case("all correlations 1 but for 1e-7 of noise", apart(1e-7), rank=6),
    Case("all correlations 1 but for 1e-7 of noise, float32", apart(1e-7, np.float32)),
    Case("all correlations about 1", apart(1e-3), rank=6),
    Case("all correlations about 0", lambda: (layers(1000)[0], layers(1000, seed=1)[1])),
    Case("all correlations 0 but for rounding", unrelated),
    Case("all correlations 0", exactly_unrelated),
    Case("all correlations 0.6", tied(*[0.6] * 6), variance=(1.0,)),
    Case("correlations 1e-3 apart", tied(0.9, 0.501, 0.5, 0.499, 0.1)),
    Case("correlations 1e-5 apart", tied(0.9, 0.50001, 0.5, 0.49999, 0.1), TIES),
    Case("correlations 1e-7 apart", tied(0.9, 0.5 + 1e-7, 0.5, 0.5 - 1e-7, 0.1), TIES),
    Case("four equal correlations of six", tied(0.9, 0.5, 0.5, 0.5, 0.5, 0.1), TIES),
    Case("layers that hold the same four signals, and noise", codes_of_the_same, TIES),
    Case("layers of 40 that code the same 30 signals, 5 % noise", a_little_noise, TIES),
    # distributions
    Case("heavy tails (Cauchy)", lambda: cauchy(15), rank=4),
    Case("heavier tails (Cauchy)", lambda: cauchy(13), TIES, rank=4),
    Case("after ReLU, nine tenths zeros", sparse, rank=10),
    Case("one-hot labels", lambda: one_of_many(10, balanced=False), rank=4),
    Case("one-hot labels, classes of one size, every direction", lambda: one_of_many(20), variance=(0.99, 1.0)),
    Case("one-hot labels, classes of one size, 90 %", lambda: one_of_many(20), CUT, variance=(0.9,)),
    Case("binary neurons, on for a tenth of datapoints", changed(lambda x: x > 3, n=2000)),
    Case("binary neurons that are hardly ever on", changed(lambda x: x > 6, n=2000), TIES),
    Case(
        "a neuron that fires once in 4,096 datapoints",
        spike,
        BLOCK,
    ),
    Case("one of 4,096 datapoints 1e4 times the others", one_large, BLOCK, variance=(0.9, 1.0)),
    # more columns than rows
    Case("120 datapoints, 200 neurons of 10 signals", lambda: wide(120, 200, 10), variance=(0.9,), rank=10),
    Case("120 datapoints, 150 neurons of condition 1e5", lambda: with_spectra([1, 1e-5], [1, 1e-5], 120, 150)),
    Case(
        "120 datapoints, 150 neurons of condition 3e6",
        lambda: with_spectra([1, 3.4e-7], [1, 3.4e-7], 120, 150),
        CUT,
    ),
    Case("1,000 datapoints, 2,000 neurons", lambda: wide(1000, 2000, 20), TIES, variance=(0.9,), rank=20, slow=True),
    # maps by frequency
    Case("120 datapoints, 400 neurons, directions of 1, .9 and 7e-7", small_direction, CUT, variance=(1.0,)),
    Case("a cut between directions 1e-11 apart", lambda: near_cut(1e-11), CUT, variance=(1.0,), rank=1),
    Case("the smallest direction at the limit of zero", at_the_limit, CUT, variance=(1.0,)),
    Case("one column, all of it in two of 64 blocks of rows", two_blocks, variance=(1.0,)),
    Case("maps by frequency", maps, view="dft", rank=20),
    Case("maps by frequency, float32", lambda: maps(like=np.float32), view="dft"),
    Case("maps by frequency, 4 x 3", lambda: maps(space=(4, 3)), view="dft"),
    Case("maps by frequency, means 1e6", lambda: maps(1e6), view="dft"),
    Case("maps by frequency, means 1e6, float32", lambda: maps(1e6, like=np.float32), view="dft"),
    Case("smooth maps by frequency, means 1e3", lambda: maps(1e3, 20.0), view="dft"),
    Case("maps that share one frequency", lambda: of_one_frequency(common=True), view="dft"),
    Case("maps that share no frequency", lambda: of_one_frequency(common=False), view="dft"),
)


# Measuring


def measured(case: Case, folder: Path, *, nudge: bool = False) -> Found:
    """Return what becomes of a case; with `nudge` also what moving its numbers does to the exact answer."""
    found = Found()
    x, y = case.make()
    dtype = "bfloat16" if case.torch else x.dtype.name
    every = truth(case, x, y, (x, y), dtype)
    numbers = _announced(lambda: from_disk(case, x, y, folder), found)
    _compare(numbers or {}, every, found.disk, "on disk", found)
    for variance in case.variance:
        numbers = _announced(lambda share=variance: in_memory(case, x, y, share), found)
        _compare(numbers or {}, every, found.memory, "in memory", found)
    for what in ("correlations", "across the cut") if every else ():
        found.nearest[what] = min(one[what] for one in every.values())
    nudge = nudge and bool(every) and bool(found.disk or found.memory)
    for what, kind in {"its own": dtype, "float64": "float64"}.items() if nudge else ():
        kind = kind if kind in reference.TYPES else "float64"
        rng = np.random.default_rng(0)
        other = truth(case, x, y, (reference.nudged(x, rng, kind), reference.nudged(y, rng, kind)), dtype)
        found.moved[what] = max(difference(every[rule], other[rule]) for rule in every)
    return found


def _announced(work: Callable[[], Any], found: Found) -> Any:
    """Return what work gives, None where it is refused, after keeping what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = work()
        except dsvcca.DsvccaError as error:
            found.refused.append(str(error))
            result = None
    for one in caught:
        kept = found.warned if issubclass(one.category, dsvcca.DsvccaWarning) else found.other
        if str(one.message) not in kept:
            kept.append(str(one.message))
    return result


def _compare(numbers: dict[str, Any], every: dict[str, Any], worst: dict[str, float], where: str, found: Found) -> None:
    for rule, one in numbers.items():
        exact = every[rule]
        for name in MEASURES:
            both_open = np.isnan(one[name]) and np.isnan(exact[name])
            error = 0.0 if both_open else abs(one[name] - exact[name])
            worst[name] = max(worst.get(name, 0.0), error if error == error else np.inf)
        if "itself" in one:
            worst["itself"] = max(worst.get("itself", 0.0), one["itself"])
        if one["ranks"] != exact["ranks"]:
            found.wrong_ranks.append(f"{where}, {rule}: {one['ranks']} for {exact['ranks']}")


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return by how much two answers differ at most; infinity where ranks differ."""
    if one["ranks"] != other["ranks"]:
        return float("inf")
    return float(np.nanmax([0.0, *(abs(one[name] - other[name]) for name in MEASURES)]))


def truth(case: Case, x: Any, y: Any, values: Pair, dtype: str) -> dict[str, Any]:
    """Return the exact answer under every rule, of values in place of those stored; {} where there is none."""
    most = case.rank or 20
    sides = [reference.spectrum(one, at, dtype, most) for one, at in zip(values, (x, y), strict=True)]
    if any(max(s.max() for s in side.singular_values) ** 2 <= side.zero for side in sides):
        return {}
    rules: dict[str, dict[str, Any]] = {f"variance {share:g}": {"variance": share} for share in case.variance}
    rules |= {f"rank {case.rank}": {"rank": case.rank}} if case.rank else {}
    found = {}
    for name, rule in rules.items():
        a, b = (reference.reduced(side, **rule) for side in sides)
        numbers, nearest = reference.measures(a, b)
        cut = min(a.margin, b.margin)
        found[name] = {**numbers, "ranks": (a.rank, b.rank), "correlations": nearest, "across the cut": cut}
    return found


def from_disk(case: Case, x: Any, y: Any, folder: Path) -> dict[str, Any]:
    """Return what the engine gives, written to a store and compared in this process."""
    store = dsvcca.create_store(folder / "store.zarr", datapoints=len(x))
    for name, one in (("x", x), ("y", y)):
        store.write(_handed_over(case, one), layer=name, dims="nhwc" if one.ndim == 4 else None)
    found = {}
    rules: list[dict[str, Any]] = [{"variance": list(case.variance)}, *([{"rank": case.rank}] if case.rank else [])]
    for rule in rules:
        plan = dsvcca.plan_comparisons(store, view=case.view, **rule)
        results = dsvcca.compare(plan, folder / f"{next(iter(rule))}.zarr")
        for share in case.variance if "variance" in rule else [None]:
            here = results if share is None else results.sel(variance=share)
            i, j = (here.x_layer.values.tolist().index(name) for name in ("x", "y"))
            found[f"variance {share:g}" if share else f"rank {case.rank}"] = {
                **{name: float(here[name].values[i, j]) for name in MEASURES},
                "itself": max(abs(float(here[name].values[k, k]) - 1) for name in MEASURES for k in (i, j)),
                "ranks": (int(here.rank_x.values[i, j]), int(here.rank_y.values[i, j])),
            }
    return found


def in_memory(case: Case, x: Any, y: Any, share: float) -> dict[str, Any]:
    """Return what two arrays in memory give."""
    x, y = _handed_over(case, x), _handed_over(case, y)
    if case.view == "dft":
        maps = dsvcca.dft_cca(x, y, variance=share)
        numbers = {name: float(getattr(maps, name)) for name in MEASURES}
        return {f"variance {share:g}": {**numbers, "ranks": (maps.x_rank, maps.y_rank)}}
    one = dsvcca.cca(x, y, variance=share)
    numbers = {
        "svcca": dsvcca.svcca(x, y, variance=share),
        "r2": float((np.asarray(one.correlations) ** 2).mean()),
        "pwcca_x": dsvcca.pwcca(x, y, variance=share),
        "pwcca_y": dsvcca.pwcca(x, y, variance=share, side="y"),
    }
    return {f"variance {share:g}": {**numbers, "ranks": (one.x_rank, one.y_rank)}}


def _handed_over(case: Case, x: Any) -> Any:
    if not case.torch:
        return x
    import torch

    return torch.from_numpy(x).to(torch.bfloat16)


# The record


def verdict(case: Case, found: Found) -> str:
    """Return in a few words whether the promise was kept."""
    if found.is_right and not found.refused:
        return "warned" if found.warned else "right"
    if found.refused:
        return "refused" if found.is_right else "refused, and wrong"
    return "wrong, warned" if case.may_be_wrong and found.said(case.says) else "WRONG, in silence"


def run(options: argparse.Namespace) -> dict[str, Any]:
    from common import about_this_machine

    cases = {}
    print(f"{'':58}" + "".join(f"{name:>9}" for name in (*NUMBERS, "memory", "1 ulp", "float64")))
    for case in CASES:
        if options.only not in case.name:
            continue
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found = measured(case, Path(folder), nudge=True)
        shown = [found.disk.get(name) for name in NUMBERS]
        shown += [max(found.memory.values(), default=None), *found.moved.values()]
        line = "".join(f"{'' if one is None else f'{one:.1e}':>9}" for one in shown)
        print(f"{case.name:58}{line}{'':{9 * (8 - len(shown))}}  {verdict(case, found)}", flush=True)
        cases[case.name] = {
            "verdict": verdict(case, found),
            "worst": _plain(found.worst),
            "on disk": {name: _plain(one) for name, one in found.disk.items()},
            "in memory": {name: _plain(one) for name, one in found.memory.items()},
            "wrong ranks": found.wrong_ranks,
            "warned": found.warned,
            "refused": found.refused,
            "the exact answer moves by one ulp of": {name: _plain(one) for name, one in found.moved.items()},
            "nearest": {name: _plain(one) for name, one in found.nearest.items()},
        }
    verdicts = [one["verdict"] for one in cases.values()]
    return {
        "machine": about_this_machine(),
        "bound": BOUND,
        "verdicts": {one: verdicts.count(one) for one in sorted(set(verdicts))},
        "cases": cases,
    }


def _plain(value: float) -> float | str:
    """Return a number as JSON has it."""
    return float(f"{value:.3g}") if np.isfinite(value) else "none" if np.isnan(value) else "infinite"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose names hold this")
    parser.add_argument("--folder", type=Path, help="where stores are written meanwhile")
    parser.add_argument("--json", type=Path, help="keep the record here")
    options = parser.parse_args(arguments)
    found = run(options)
    print(", ".join(f"{count} {one}" for one, count in found["verdicts"].items()))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
