"""How far rows are from holding all translations: covariance between different frequencies, which would then vanish.

By Theorem 1 of Raghu et al. 2017 the covariance of all translations of some images is block diagonal over frequencies.
On plain images it is not (their figure App. 2); what stands beside the blocks is estimated from a few of them, drawn in
proportion to their power, as uniform draws would miss it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dsvcca.maths.arrays import Array, NumpyArray, adjoint, device, namespace, to_numpy

DRAWS = 32
"""Blocks that are looked at; where there are no more of them, all."""


EXACT = 1e-6
"""Squared covariance between frequencies, of that within, up to which there is none but for rounding."""


@dataclass(frozen=True)
class OffBlock:
    """Squared norms of covariance, of blocks of different frequencies and of those of one.

    Attributes
    ----------
    between : float
        Between different frequencies, less `noise`: may come out below zero.
    noise : float
        What unrelated frequencies show between them, for want of rows.
    within : float
        Within frequencies.
    """

    between: float
    noise: float
    within: float

    @property
    def holds_all(self) -> bool:
        """Whether rows hold all translations of their images, as far as rounding tells."""
        return self.between + self.noise <= EXACT * self.within

    @property
    def share(self) -> float:
        """Between frequencies, of all, less noise; 0 where rows hold all translations (then there is no noise)."""
        return 0.0 if self.holds_all else self.between / (self.between + self.within)

    @property
    def floor(self) -> float:
        """What was taken off for noise, of all."""
        return self.noise / (self.noise + self.within)


@dataclass(frozen=True)
class Draws:
    """Blocks between half bins `first` and `second` (d,), the second conjugated where `turned`; `shares` add to 1."""

    first: NumpyArray
    second: NumpyArray
    turned: NumpyArray
    shares: NumpyArray


class Between:
    """Adds up the covariance between frequencies that were drawn.

    Parameters
    ----------
    weights : (f,) int
    singular_values : (f, c) float64
        Of centred activations.
    """

    def __init__(self, weights: NumpyArray, singular_values: NumpyArray) -> None:
        self._traces = (singular_values**2).sum(axis=1)
        self._within = float((weights[:, None] * singular_values**4).sum())
        first, second, turned, times = _pairs_of(tuple(weights.tolist()))
        power = times * self._traces[first] * self._traces[second]
        self._power = float(power.sum())
        if len(first) <= DRAWS:
            chosen, shares = np.arange(len(first)), power / max(self._power, 1e-300)
        else:
            uniform = (np.random.PCG64(20170620).random_raw(DRAWS) >> np.uint64(11)) / 2**53
            chosen = np.searchsorted(np.cumsum(power), uniform * self._power)
            shares = np.full(DRAWS, 1 / DRAWS)
        self.draws = Draws(first[chosen], second[chosen], turned[chosen], shares)
        self.blocks: list[Array] = []

    def add(self, shifted: Array, offsets: Array) -> None:
        """Add rows (f, m, c) whose mean is `offsets` (f, c)."""
        xp = namespace(shifted)
        if not self.blocks:
            c = shifted.shape[2]
            zeros = xp.zeros((c, c), dtype=shifted.dtype, device=device(shifted))
            self.blocks = [xp.asarray(zeros, copy=True) for _ in self.draws.first]
        centred: dict[int, Array] = {}
        for place, (f, g, turned) in enumerate(
            zip(self.draws.first.tolist(), self.draws.second.tolist(), self.draws.turned.tolist(), strict=True)
        ):
            for one in (f, g):
                if one not in centred:
                    centred[one] = shifted[one, :, :] - offsets[one, None, :]
            other = xp.conj(centred[g]) if turned else centred[g]
            self.blocks[place] = self.blocks[place] + xp.matmul(adjoint(centred[f]), other)

    def result(self, count: int) -> OffBlock:
        """Return what was found in `count` rows."""
        if not len(self.draws.first):
            return OffBlock(0.0, 0.0, self._within)
        powers = np.asarray([float(np.sum(np.abs(to_numpy(block)) ** 2)) for block in self.blocks])
        traces = self._traces[self.draws.first] * self._traces[self.draws.second]
        ratios = np.divide(powers, traces, out=np.zeros_like(powers), where=traces > 0)
        freedom = count - 1
        noise = self._power / freedom
        return OffBlock(self._power * float((self.draws.shares * ratios).sum()) - noise, noise, self._within)


@lru_cache(maxsize=64)
def _pairs_of(weights: tuple[int, ...]) -> tuple[NumpyArray, NumpyArray, NumpyArray, NumpyArray]:
    """Return every different block between half bins (first <= second), whether turned, and how often it occurs."""
    w = np.asarray(weights)
    first, second = np.triu_indices(len(w))
    same = first == second
    both = (w[first] == 2) & (w[second] == 2)
    plain = ~same
    turned = both
    times = 2 * w[first] * w[second]
    return (
        np.concatenate([first[plain], first[turned]]),
        np.concatenate([second[plain], second[turned]]),
        np.concatenate([np.zeros(plain.sum(), bool), np.ones(turned.sum(), bool)]),
        np.concatenate([np.where(both, times // 2, times)[plain], np.where(same, 2, times // 2)[turned]]),
    )
