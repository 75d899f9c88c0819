"""Populations of networks trained on images: trained once, captured while they learn, found again by all that ask.

<folder>/activations.zarr       every layer at some steps of training, on the probes
<folder>/<network>-<seed>.pt    weights at the end
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import pandas as pd
from torch import nn

from dsvcca.experiments.images import Images, load_images
from dsvcca.experiments.layers import CONVNET, residual_layers
from dsvcca.experiments.networks import convnet, residual
from dsvcca.experiments.parallel import make_lacking, steps_at
from dsvcca.experiments.training import accuracy, load_weights, reproducible, save_weights, train_classifier
from dsvcca.store import Store, create_store, open_store
from dsvcca.torch.probing import Probe

NETWORKS = ("convnet", "residual")


@dataclass(frozen=True)
class ImageSetting:
    """Which networks are trained on how many images, how long, and when they are captured.

    Attributes
    ----------
    source : {"mnist", "fashion"}
    training, probes, tests : int
        Images to learn from, to capture, to measure accuracy on.
    size : int
        Pixels along a side.
    channels, dense : (int, int)
        Of the convnet.
    blocks : tuple of int
        Channels of each block of the residual network.
    steps, batch, rate
        Of training.
    shares : tuple of float
        Shares of training at which layers are captured.
    seeds : int
        Networks of each architecture.
    workers : int
        Processes that train.
    """

    source: str = "fashion"
    training: int = 20_000
    probes: int = 2_000
    tests: int = 8_000
    size: int = 16
    channels: tuple[int, int] = (16, 32)
    dense: tuple[int, int] = (128, 64)
    blocks: tuple[int, ...] = (16, 16, 32, 32)
    steps: int = 3_000
    batch: int = 64
    rate: float = 0.02
    shares: tuple[float, ...] = (0, 0.05, 0.15, 0.35, 0.55, 0.75, 1)
    seeds: int = 5
    workers: int = 2

    @property
    def captured(self) -> list[int]:
        """Steps at which layers are captured."""
        return steps_at(self.shares, self.steps)

    def layers(self, network: str) -> dict[str, str]:
        """Return the layers of a network, lowest first, and their axes."""
        return dict(CONVNET) if network == "convnet" else residual_layers(self.blocks, inner=True)

    def fresh(self, network: str) -> nn.Module:
        """Return a network with fresh weights."""
        if network == "convnet":
            return convnet(self.channels, self.dense, size=self.size)
        return residual(self.blocks)


IMAGES = {
    "small": ImageSetting(
        source="mnist",
        training=2_500,
        probes=1_000,
        tests=1_000,
        channels=(6, 12),
        dense=(48, 24),
        blocks=(6, 12),
        steps=300,
        rate=0.05,
        batch=32,
        shares=(0, 0.35, 0.75, 1),
        seeds=2,
        workers=1,
    ),
    "full": ImageSetting(),
}


FREEZE = {
    "small": replace(IMAGES["small"], steps=150, probes=200),
    "full": replace(IMAGES["full"], training=10_000, probes=1_000, seeds=6),
}
"""For freeze training: fewer images, so that they come several times, and more runs."""


@dataclass(frozen=True)
class Population:
    """Trained networks, the images they learned from, and the store of what their layers do."""

    setting: ImageSetting
    folder: Path
    images: Images
    store: Store

    def model(self, network: str, seed: int) -> nn.Module:
        """Return a network at the end of its training, in evaluation mode."""
        return load_weights(self.setting.fresh(network), _weights(self.folder, network, seed))

    def accuracies(self) -> pd.DataFrame:
        """Return the accuracy of every network on the test images: columns model, seed, accuracy."""
        networks = dict.fromkeys((str(r.labels["model"]), int(r.labels["seed"])) for r in self.store.representations)
        rows = [(*one, accuracy(self.model(*one), self.images.tests, self.images.test_classes)) for one in networks]
        return pd.DataFrame(rows, columns=["model", "seed", "accuracy"])


def trained(setting: ImageSetting, folder: str | os.PathLike[str], networks: Sequence[str] = NETWORKS) -> Population:
    """Train the networks of a setting, those that are not in `folder` yet, and capture them on the way.

    Parameters
    ----------
    setting : ImageSetting
    folder : path
    networks : list of {"convnet", "residual"}

    Returns
    -------
    Population
        Its store has the labels model, seed, step and layer.

    Raises
    ------
    DsvccaError
        If `folder` has networks of another setting, or the images are not installed.
    """
    root = Path(folder).absolute()
    images = images_of(setting)
    root.mkdir(parents=True, exist_ok=True)
    create_store(root / "activations.zarr", datapoints=setting.probes)
    every = [(network, seed) for network in networks for seed in range(setting.seeds)]
    make_lacking(partial(_train, setting, root), every, root, setting, made=lambda one: _weights(root, *one).exists())
    store = open_store(root / "activations.zarr")
    return Population(setting, root, images, store.select(model=list(networks), seed=list(range(setting.seeds))))


@cache
def images_of(setting: ImageSetting) -> Images:
    """Return the images of a setting."""
    return load_images(
        setting.source, training=setting.training, probes=setting.probes, tests=setting.tests, size=setting.size
    )


def _train(setting: ImageSetting, folder: Path, one: tuple[str, int]) -> None:
    """Train one network, capture it on the way and keep its weights; the same seed gives the same network again."""
    network, seed = one
    images = images_of(setting)
    store = open_store(folder / "activations.zarr")
    with reproducible(seed):
        model = setting.fresh(network)
        probe = Probe(
            model,
            images.probes,
            store,
            layers=setting.layers(network),
            steps=setting.captured,
            model=network,
            seed=seed,
        )
        train_classifier(
            model,
            images.training,
            images.classes,
            steps=setting.steps,
            batch=setting.batch,
            rate=setting.rate,
            before=lambda step, _: probe(step),
        )
    save_weights(model, _weights(folder, network, seed))


def _weights(folder: Path, network: str, seed: int) -> Path:
    return folder / f"{network}-{seed}.pt"
