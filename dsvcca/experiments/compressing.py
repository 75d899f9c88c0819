"""The top layers of a network compressed one after another (Raghu et al. 2017, appendix 5)."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from torch import nn

from dsvcca.arrays import NumpyArray
from dsvcca.correlations import CanonicalCorrelations, cca
from dsvcca.errors import DsvccaWarning
from dsvcca.experiments.populations import Population
from dsvcca.experiments.training import accuracy
from dsvcca.store import create_store
from dsvcca.torch.capture import capture
from dsvcca.torch.compressing import compress

ANOTHER, LOGITS = "with another network", "with the logits"
CHOICES = (ANOTHER, LOGITS)
"""What the directions of a layer are correlated with."""

FROM_THE_TOP = {"bn4": "nd", "bn3": "nd", "flat": "nd", "conv4": "nchw", "conv3": "nchw", "pool1": "nchw"}
"""Layers of the convnet whose output a dense layer or a convolution takes, highest first, and their axes."""

TESTS = 4000
"""Test images that accuracy is measured on, at most."""


def compress_from_the_top(
    population: Population, seed: int, choice: str, k: int, *, bias_fix: bool = True
) -> pd.DataFrame:
    """Compress a convnet layer by layer from the top, each by directions of the network as it is by then.

    Parameters
    ----------
    population : Population
    seed : int
        Of the network; another one is that of the next seed.
    choice : {"with another network", "with the logits"}
        Whether directions of a layer are those that it shares with the same layer of another network, or with the
        logits. There are no more of those than classes.
    k : int
        Directions of every layer, or as many as there are. Of maps a direction is one of channels, at every position.
        Layers that would not become smaller stay.
    bias_fix : bool, default True
        Keep what the mean holds outside of the directions.

    Returns
    -------
    pandas.DataFrame
        One row a layer, after it was compressed: columns seed, choice, k, layer, parameters, share (of those of the
        whole network), accuracy. The first row, without a layer, is the whole network.
    """
    images, another = population.images, (seed + 1) % population.setting.seeds
    model = population.model("convnet", seed)
    example, tests = images.probes[:8], (images.tests[:TESTS], images.test_classes[:TESTS])
    rows = [("", _parameters(model), accuracy(model, *tests))]
    for layer, dims in FROM_THE_TOP.items():
        if choice == ANOTHER:
            [x], [y] = _rows_of(model, {layer: dims}, images.probes), _rows_of_another(population, another, layer)
        else:
            x, y = _rows_of(model, {layer: dims, "out": "nd"}, images.probes)
            y = np.repeat(y, len(x) // len(y), axis=0)
        found: CanonicalCorrelations = cca(x, y, variance=0.99)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DsvccaWarning)  # said of layers that would not become smaller
            most = min(k, len(found.correlations))
            smaller: nn.Module = compress(model, {layer: (found, most)}, example=example, bias_fix=bias_fix)
        if _parameters(smaller) < _parameters(model):
            model = smaller
        rows.append((layer, _parameters(model), accuracy(model, *tests)))
    table = pd.DataFrame(rows, columns=["layer", "parameters", "accuracy"])
    return table.assign(seed=seed, choice=choice, k=k, share=table.parameters / table.parameters.iloc[0])


def _parameters(model: nn.Module) -> int:
    return sum(one.numel() for one in model.parameters())


def _rows_of(model: nn.Module, layers: dict[str, str], probes: torch.Tensor) -> list[NumpyArray]:
    """Return what layers give for the probes, (rows, neurons) float64 each; positions of maps are rows."""
    with TemporaryDirectory() as folder:
        store = create_store(Path(folder) / "layers.zarr", datapoints=len(probes))
        capture(model, probes, store, layers=layers)
        found = [store.read(layer=layer) for layer in layers]
    return [one.reshape(-1, one.shape[-1]).astype(np.float64) for one in found]


@cache
def _rows_of_another(population: Population, seed: int, layer: str) -> list[NumpyArray]:
    """Return the same of a layer of a network that is not compressed."""
    return _rows_of(population.model("convnet", seed), {layer: FROM_THE_TOP[layer]}, population.images.probes)
