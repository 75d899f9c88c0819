"""Representations whose shared signal is known, and what the means of correlations say of it."""

from __future__ import annotations

import numpy as np

from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.pair import pwcca, svcca


def shared_signal(k: int, *, neurons: int, datapoints: int, noise: float, seed: int) -> tuple[NumpyArray, NumpyArray]:
    """Return two representations (datapoint, neuron) float64 that share a signal (Morcos et al. 2018, figure 2).

    Parameters
    ----------
    k : int
        Dimensions that both have, of standard deviation 1. The other ``neurons - k`` are noise of their own.
    neurons, datapoints : int
    noise : float
        Standard deviation of the dimensions of noise.
    seed : int

    Returns
    -------
    (datapoints, neurons) arrays
        All dimensions in a random orthogonal mixture, another one on each side.
    """
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((datapoints, k))
    sides = []
    for _ in range(2):
        own = noise * rng.standard_normal((datapoints, neurons - k))
        mixture = np.linalg.qr(rng.standard_normal((neurons, neurons)))[0]
        sides.append(np.hstack([signal, own]) @ mixture)
    return sides[0], sides[1]


def distances_by_mean(x: NumpyArray, y: NumpyArray) -> dict[str, float]:
    """Return 1 - the mean of canonical correlations, for three means of them.

    Parameters
    ----------
    x, y : (n, p) and (n, q) arrays

    Returns
    -------
    dict
        "mean CCA": of all directions; "SVCCA": of those that hold 99 % of the sum of singular values, the letter of
        Raghu et al. 2017; "PWCCA": of all, weighted by how much of x's neurons they account for.
    """
    return {
        "mean CCA": 1 - svcca(x, y, variance=1.0),
        "SVCCA": 1 - svcca(x, y, variance=0.99, criterion="singular"),
        "PWCCA": 1 - pwcca(x, y),
    }
