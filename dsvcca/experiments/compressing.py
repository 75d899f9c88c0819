"""The top layers of a network compressed one after another (Raghu et al. 2017, appendix 5)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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

ROWS = 5000
"""Training images that directions are found on, at most."""


def compress_from_the_top(
    population: Population, seed: int, choice: str, counts: Sequence[int], *, lost: float = 1.0, bias_fix: bool = True
) -> pd.DataFrame:
    """Compress a convnet layer by layer from the top, each by directions of the network as it is by then.

    Parameters
    ----------
    population : Population
    seed : int
        Of the network; another one is that of the next seed.
    choice : {"with another network", "with the logits"}
        Whether directions of a layer are those that it shares with the same layer of another network, or with the
        logits. There are no more of those than classes. Of maps a direction is one of channels, at every position.
    counts : sequence of int
        How many directions are tried, fewest first: the first with which the accuracy on the probes is good enough is
        taken, and a layer of which none is, or that would not become smaller, stays.
    lost : float, default 1.0
        Share of the accuracy that may be lost by all layers together, by each as much; 1 takes whatever comes.
    bias_fix : bool, default True
        Keep what the mean holds outside of the directions.

    Returns
    -------
    pandas.DataFrame
        One row a layer, after it was compressed: columns seed, choice, lost, layer, k (0 where it stayed), parameters,
        share (of those of the whole network), accuracy on test images. The first row is the whole network.
    """
    images, another = population.images, (seed + 1) % population.setting.seeds
    rows, example = images.training[:ROWS], images.probes[:8]
    probes, tests = (images.probes, images.probe_classes), (images.tests[:TESTS], images.test_classes[:TESTS])
    model = population.model("convnet", seed)
    whole = accuracy(model, *probes)
    found = [("", 0, _parameters(model), accuracy(model, *tests))]
    for done, (layer, dims) in enumerate(FROM_THE_TOP.items(), start=1):
        enough = whole * (1 - lost * done / len(FROM_THE_TOP))
        if choice == ANOTHER:
            [x], [y] = _rows_of(model, {layer: dims}, rows), _rows_of_another(population, another, layer)
        else:
            x, y = _rows_of(model, {layer: dims, "out": "nd"}, rows)
            y = np.repeat(y, len(x) // len(y), axis=0)
        directions: CanonicalCorrelations = cca(x, y, variance=0.99)
        k = 0
        for most in dict.fromkeys(min(one, len(directions.correlations)) for one in counts):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DsvccaWarning)  # said of layers that would not become smaller
                smaller: nn.Module = compress(model, {layer: (directions, most)}, example=example, bias_fix=bias_fix)
            if _parameters(smaller) >= _parameters(model):
                break
            if lost == 1 or accuracy(smaller, *probes) >= enough:
                model, k = smaller, most
                break
        found.append((layer, k, _parameters(model), accuracy(model, *tests)))
    table = pd.DataFrame(found, columns=["layer", "k", "parameters", "accuracy"])
    return table.assign(
        seed=seed, choice=choice, lost=lost, share=table.parameters / table.parameters.iloc[0], bias=bias_fix
    )


def _parameters(model: nn.Module) -> int:
    return sum(one.numel() for one in model.parameters())


def _rows_of(model: nn.Module, layers: dict[str, str], images: torch.Tensor) -> list[NumpyArray]:
    """Return what layers give for images, (rows, neurons) float64 each; positions of maps are rows."""
    with TemporaryDirectory() as folder:
        store = create_store(Path(folder) / "layers.zarr", datapoints=len(images))
        capture(model, images, store, layers=layers)
        found = [store.read(layer=layer) for layer in layers]
    return [one.reshape(-1, one.shape[-1]).astype(np.float64) for one in found]


@cache
def _rows_of_another(population: Population, seed: int, layer: str) -> list[NumpyArray]:
    """Return the same of a layer of a network that is not compressed."""
    return _rows_of(population.model("convnet", seed), {layer: FROM_THE_TOP[layer]}, population.images.training[:ROWS])
