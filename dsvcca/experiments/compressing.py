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

from dsvcca.activations.store import create_store
from dsvcca.errors import DsvccaError, DsvccaWarning
from dsvcca.experiments.populations import Population
from dsvcca.experiments.training import accuracy
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.cca import CanonicalCorrelations, cca
from dsvcca.torch.capture import capture
from dsvcca.torch.compressing import compress

ANOTHER, LOGITS = "with another network", "with the logits"
CHOICES = (ANOTHER, LOGITS)
"""What the directions of a layer are correlated with."""

TAKEN_BY = {"bn4": "out", "bn3": "fc2", "flat": "fc1", "conv4": "conv5", "conv3": "conv4"}
"""Layers of the convnet that can be compressed, highest first, and what takes their output."""

DENSE = ("bn4", "bn3", "flat")
"""Those of them that a dense layer takes, which are those that the paper compresses."""

TESTS = 4000
"""Test images that accuracy is measured on, at most."""

ROWS = 5000
"""Training images that directions are found on, at most."""


def compress_from_the_top(
    population: Population,
    seed: int,
    choice: str,
    k: int,
    *,
    layers: Sequence[str] = DENSE,
    bias_fix: bool = True,
) -> pd.DataFrame:
    """Compress layers of a convnet to k directions, from the top, each by directions of the network as it is by then.

    Parameters
    ----------
    population : Population
    seed : int
        Of the network; another one is that of the next seed.
    choice : {"with another network", "with the logits"}
        Whether directions of a layer are those that it shares with the same layer of another network, or with the
        logits. There are no more of those than classes. Of maps a direction is one of channels, at every position.
    k : int
        Directions of each layer. A layer that has fewer keeps them all; one that would not become smaller stays.
    layers : sequence of str, default DENSE
        Keys of `TAKEN_BY`, highest first.
    bias_fix : bool, default True
        Keep what the mean holds outside of the directions.

    Returns
    -------
    pandas.DataFrame
        One row a layer, after it was compressed: columns seed, choice, bias, layer, k (0 where it stayed), share (of
        the parameters of all that take these layers), accuracy on test images. The first row is the whole network.

    Raises
    ------
    DsvccaError
        For another choice.
    """
    if choice not in CHOICES:
        raise DsvccaError(f"choice={choice!r} is unknown: use {' or '.join(map(repr, CHOICES))}")
    images = population.images
    tests = (images.tests[:TESTS], images.test_classes[:TESTS])
    model = population.model("convnet", seed)
    whole = _parameters(model, layers)
    found = [("", 0, 1.0, accuracy(model, *tests))]
    for layer in layers:
        directions = _directions(population, model, seed, choice, layer)
        taken = min(k, len(directions.correlations))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DsvccaWarning)  # said of layers that would not become smaller
            smaller: nn.Module = compress(
                model, {layer: (directions, taken)}, example=images.probes[:8], bias_fix=bias_fix
            )
        share = _parameters(smaller, layers) / whole
        if share < found[-1][2]:
            model = smaller
        found.append((layer, taken * (model is smaller), min(share, found[-1][2]), accuracy(model, *tests)))
    table = pd.DataFrame(found, columns=["layer", "k", "share", "accuracy"])
    return table.assign(seed=seed, choice=choice, bias=bias_fix)


def _directions(population: Population, model: nn.Module, seed: int, choice: str, layer: str) -> CanonicalCorrelations:
    """Return the directions of a layer that it shares with another network's, or with the logits."""
    rows = population.images.training[:ROWS]
    if choice == ANOTHER:
        [x] = _rows_of(model, (layer,), rows)
        [y] = _rows_of_another(population, (seed + 1) % population.setting.seeds, layer)
    else:
        x, y = _rows_of(model, (layer, "out"), rows)
        y = np.linalg.svd(y - y.mean(axis=0), full_matrices=False)[0]  # of equal variance: all of them are kept
        y = np.repeat(y, len(x) // len(y), axis=0)
    return cca(x, y, variance=0.99)


def _parameters(model: nn.Module, layers: Sequence[str]) -> int:
    return sum(one.numel() for layer in layers for one in model.get_submodule(TAKEN_BY[layer]).parameters())


def _rows_of(model: nn.Module, layers: Sequence[str], images: torch.Tensor) -> list[NumpyArray]:
    """Return what layers give for images, (rows, neurons) float64 each; positions of maps are rows."""
    dims = {layer: "nchw" if layer.startswith("conv") else "nd" for layer in layers}
    with TemporaryDirectory() as folder:
        store = create_store(Path(folder) / "layers.zarr", datapoints=len(images))
        capture(model, images, store, layers=dims)
        found = [store.read(layer=layer) for layer in layers]
    return [one.reshape(-1, one.shape[-1]).astype(np.float64) for one in found]


@cache
def _rows_of_another(population: Population, seed: int, layer: str) -> list[NumpyArray]:
    """Return the same of a layer of a network that is not compressed."""
    return _rows_of(population.model("convnet", seed), (layer,), population.images.training[:ROWS])
