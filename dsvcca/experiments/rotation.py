"""A recurrent network that only rotates (Morcos et al. 2018, appendix A.2): CCA sees no change, distances do."""

from __future__ import annotations

import numpy as np

from dsvcca.maths.arrays import NumpyArray


def rotating_states(*, datapoints: int, width: int, positions: int, blend: float, seed: int) -> NumpyArray:
    """Return the hidden states (datapoint, position, neuron) float64 of a recurrent network without input.

    Parameters
    ----------
    datapoints, width, positions : int
        States begin at random, of mean square 1.
    blend : float
        From 0, the state is rotated (h = R h, R orthogonal and random), to 1, and its tanh is taken: in between,
        h = (1 - blend) R h + blend tanh(R h).
    seed : int
    """
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((width, width)))[0]
    states = np.empty((datapoints, positions, width))
    states[:, 0] = rng.standard_normal((datapoints, width))
    for t in range(1, positions):
        turned = states[:, t - 1] @ rotation
        states[:, t] = (1 - blend) * turned + blend * np.tanh(turned)
    return states


def plain_distances(x: NumpyArray, y: NumpyArray) -> dict[str, float]:
    """Return distances of activations neuron by neuron: what is left where neurons change their places.

    Parameters
    ----------
    x, y : (n, p) arrays

    Returns
    -------
    dict
        cosine: 1 - the cosine of the two arrays, all numbers in one row; euclidean: the norm of their difference over
        the root of the mean of their squared norms.
    """
    x, y = (one.astype(np.float64).ravel() for one in (x, y))
    norms = np.linalg.norm(x), np.linalg.norm(y)
    cosine = float(x @ y / (norms[0] * norms[1]))
    return {"cosine": 1 - cosine, "euclidean": float(np.linalg.norm(x - y) / np.hypot(*norms) * 2**0.5)}
