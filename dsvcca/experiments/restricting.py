"""Accuracy of networks that keep only some directions, or some neurons, of a layer (Raghu et al. 2017, figure 2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import nn

from dsvcca.activations.labels import Labels
from dsvcca.analyses.directions import directions
from dsvcca.experiments.populations import Population
from dsvcca.experiments.training import accuracy
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.cca import CanonicalCorrelations
from dsvcca.torch.restrict import keep_neurons, maximal_neurons, project

DRAWS = 3
"""Choices of random neurons that the mean is over."""

SVCCA, RANDOM, ACTIVE = "SVCCA directions", "random neurons", "most active neurons"


def shared_directions(population: Population, layer: str, one: int, other: int) -> CanonicalCorrelations:
    """Return the SVCCA directions of a layer in two convnets at the end of training: x is that of `one`.

    Of maps channels are the neurons, and every position of every image is a row.
    """
    labels: Labels = {"model": "convnet", "layer": layer, "step": population.setting.steps}
    view = "positions" if population.setting.layers("convnet")[layer] == "nchw" else "auto"
    found = directions(population.store, {**labels, "seed": one}, {**labels, "seed": other}, view=view, variance=0.99)
    assert isinstance(found, CanonicalCorrelations)
    return found


def accuracy_by_directions(
    population: Population, layer: str, pair: tuple[int, int], counts: Sequence[int]
) -> pd.DataFrame:
    """Return the accuracy of the first network of a pair when it keeps k directions, or k neurons, of a layer.

    Returns
    -------
    pandas.DataFrame
        Columns layer, seed, kept, k, accuracy. Kept are the k most correlated of the `shared_directions` (no more than
        there are), k random neurons, or the k whose mean absolute activation on the probes is largest; other neurons
        have their mean.
    """
    model = population.model("convnet", pair[0])
    found = shared_directions(population, layer, *pair)
    active = _activations(population, layer, pair[0])
    p = active.shape[-1]
    rows = []
    for k in (k for k in counts if k <= p):
        if k <= found.x_rank:
            with project(model, layer, found, k=k):
                rows.append((SVCCA, k, _accuracy(population, model)))
        chosen = [np.random.default_rng(draw).permutation(p)[:k] for draw in range(DRAWS)]
        for kept, neurons in [*((RANDOM, one) for one in chosen), (ACTIVE, maximal_neurons(active, k))]:
            with keep_neurons(model, layer, neurons, fill=found.x_mean):
                rows.append((kept, k, _accuracy(population, model)))
    table = pd.DataFrame(rows, columns=["kept", "k", "accuracy"]).groupby(["kept", "k"]).accuracy.mean().reset_index()
    return table.assign(layer=layer, seed=pair[0])


def accuracy_by_neurons(
    population: Population, layer: str, pair: tuple[int, int], counts: Sequence[int], neurons: Sequence[int]
) -> pd.DataFrame:
    """Return the accuracy when k directions are kept and of what they give only the neurons that hold most of them.

    Returns
    -------
    pandas.DataFrame
        Columns layer, seed, k, neurons, accuracy; all neurons is the number of them.
    """
    model = population.model("convnet", pair[0])
    found = shared_directions(population, layer, *pair)
    p = found.x_mean.shape[0]
    rows = []
    for k in (k for k in counts if k <= found.x_rank):
        for m in [*(m for m in neurons if m < p), p]:
            with project(model, layer, found, k=k, neurons=m):
                rows.append((layer, pair[0], k, m, _accuracy(population, model)))
    return pd.DataFrame(rows, columns=["layer", "seed", "k", "neurons", "accuracy"])


def _accuracy(population: Population, model: nn.Module) -> float:
    return accuracy(model, population.images.tests, population.images.test_classes)


def _activations(population: Population, layer: str, seed: int) -> NumpyArray:
    """Return the activations of a layer on the probes, (rows, neurons), positions of maps as rows."""
    read = population.store.read(model="convnet", layer=layer, step=population.setting.steps, seed=seed)
    return np.asarray(read).reshape(-1, read.shape[-1])
