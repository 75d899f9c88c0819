"""Small populations with known structure, for the tests of the engine."""

import numpy as np

import dsvcca


def activations(seed, n=600, p=24, shared=12, noise=0.5):
    """Return (n, p) float32 activations: a shared signal seen through a random map, plus noise of their own."""
    signal = np.random.default_rng(1).standard_normal((n, shared)) * np.linspace(1, 3, shared)
    rng = np.random.default_rng(100 + seed)
    own = signal @ rng.standard_normal((shared, p)) + noise * rng.standard_normal((n, p))
    return (own + rng.uniform(-5, 5, p)).astype(np.float32)


def write_population(path, seeds=3, steps=(0, 10), layers=("a", "b"), n=600, chunk=None):
    """Write a population of differing widths and return its store and its arrays by labels."""
    store = dsvcca.create_store(path, datapoints=n)
    arrays = {}
    for seed in range(seeds):
        for step in steps:
            for place, layer in enumerate(layers):
                x = activations(seed * 100 + step * 10 + place, n=n, p=20 + 3 * place + seed)
                arrays[seed, step, layer] = x
                with store.writer(layer=layer, seed=seed, step=step) as writer:
                    for start in range(0, n, chunk or n):
                        writer.append(x[start : start + (chunk or n)])
    return store, arrays


def same_bits(one, other):
    """Return whether two results hold the same numbers to the last bit."""
    return all(one[name].values.tobytes() == other[name].values.tobytes() for name in one.data_vars)
