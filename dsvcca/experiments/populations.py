"""Populations of networks trained on images: trained once, captured while they learn, found again by all that ask.

<folder>/activations.zarr                  every layer at some steps of training, on the probes
<folder>/<network>-<variant>-<seed>.pt     weights at the end
<folder>/setting.json, variants.json       of what setting they are, and which variants got which seeds
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock
from torch import nn

from dsvcca.activations.labels import Labels
from dsvcca.activations.store import Store, create_store, open_store
from dsvcca.errors import DsvccaError
from dsvcca.experiments.images import Images, load_images
from dsvcca.experiments.layers import CONVNET, residual_layers
from dsvcca.experiments.networks import convnet, residual
from dsvcca.experiments.parallel import captured, claim, make_lacking, read_note
from dsvcca.experiments.settings import steps_at
from dsvcca.experiments.training import (
    accuracy,
    cross_entropy,
    load_weights,
    reproducible,
    save_weights,
    train_classifier,
)
from dsvcca.storage import files
from dsvcca.torch.probing import Probe

NETWORKS = ("convnet", "residual")

ORDER = 20180614
"""Seed of the one order of shuffled labels: the same for every network."""


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
    steps, batch, rate, decay
        Of training.
    labels : {"true", "shuffled"}
        Whether the classes that are learned are those of the images, or the same ones in an order of their own, which
        is one for all networks.
    width : float
        Times the channels and dense layers of the convnet.
    captured_on : {"probes", "training"}
        Whether layers are captured on images that are not learned from, or on the first of those that are.
    only : tuple of str
        Layers that are captured; all of them if none is named.
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
    decay: bool = False
    labels: str = "true"
    width: float = 1.0
    captured_on: str = "probes"
    only: tuple[str, ...] = ()
    shares: tuple[float, ...] = (0, 0.05, 0.15, 0.35, 0.55, 0.75, 1)
    seeds: int = 5
    workers: int = 2

    def __post_init__(self) -> None:
        for name, known in {"labels": ("true", "shuffled"), "captured_on": ("probes", "training")}.items():
            if getattr(self, name) not in known:
                raise DsvccaError(f"{name}={getattr(self, name)!r} are unknown: use {known[0]!r} or {known[1]!r}")

    @property
    def captured(self) -> list[int]:
        """Steps at which layers are captured."""
        return steps_at(self.shares, self.steps)

    def layers(self, network: str) -> dict[str, str]:
        """Return the layers of a network that are captured, lowest first, and their axes."""
        every = CONVNET if network == "convnet" else residual_layers(self.blocks, inner=True)
        return {name: dims for name, dims in every.items() if name in (self.only or every)}

    def fresh(self, network: str) -> nn.Module:
        """Return a network with fresh weights."""
        if network not in NETWORKS:
            raise DsvccaError(f"network {network!r} is unknown: use {' or '.join(NETWORKS)}")
        if network == "convnet":
            one, two, *dense = (round(self.width * n) for n in (*self.channels, *self.dense))
            return convnet((one, two), (dense[0], dense[1]), size=self.size)
        return residual(self.blocks)


Variant = Mapping[str, Any]
"""Fields of a setting in which a network differs from others of its population; labels of what is captured."""

FLOAT = (int, float)

VARYING: dict[str, Any] = {"labels": str, "width": FLOAT, "rate": FLOAT, "batch": int}
"""Those that there are, and what they may be: all networks of a population see the same images."""


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

FEW = ("pool1", "conv4", "pool2", "fc1", "fc2", "out")
"""Layers that are captured of populations of many networks."""

MEMORISING = {
    "small": replace(
        IMAGES["small"],
        training=200,
        probes=200,
        steps=300,
        rate=0.02,
        shares=(0, 0.1, 1),
        captured_on="training",
        only=FEW,
        seeds=3,
    ),
    "full": replace(
        IMAGES["full"],
        training=2_000,
        rate=0.03,
        steps=8_000,
        shares=(0, 0.0025, 0.01, 0.05, 0.25, 1),
        captured_on="training",
        only=FEW,
    ),
}
"""For true and shuffled classes: so few images that nearly all can be learned by heart, and captured on those."""

WIDTHS = {
    "small": replace(
        IMAGES["small"],
        channels=(8, 16),
        dense=(32, 16),
        steps=100,
        rate=0.01,
        probes=300,
        shares=(0, 1),
        only=FEW,
        seeds=3,
    ),
    "full": replace(IMAGES["full"], training=2_000, rate=0.03, steps=4_000, shares=(0, 1), only=FEW),
}
"""For networks of several widths: so few images that all but the narrowest learn them by heart."""

RATES = {
    "small": replace(
        IMAGES["small"],
        steps=60,
        decay=True,
        probes=300,
        channels=(4, 8),
        dense=(24, 16),
        captured_on="training",
        shares=(1,),
    ),
    "full": replace(
        IMAGES["full"],
        training=2_000,
        steps=1_500,
        decay=True,
        width=2.0,
        captured_on="training",
        shares=(1,),
        seeds=8,
    ),
}
"""For many networks that began at several rates and came to rest: all layers, at the end, on what they learned from."""


@dataclass(frozen=True)
class Population:
    """Trained networks, the images they learned from, and the store of what their layers do."""

    setting: ImageSetting
    folder: Path
    images: Images
    store: Store

    def model(self, network: str, seed: int, **variant: Any) -> nn.Module:
        """Return a network at the end of its training, in evaluation mode."""
        own = _plain(variant)
        return load_weights(replace(self.setting, **own).fresh(network), _weights(self.folder, network, own, seed))

    def networks(self) -> list[Labels]:
        """Return the labels of every network: model, seed, and those of its variant."""
        every = ({n: v for n, v in r.labels.items() if n not in ("step", "layer")} for r in self.store.representations)
        return [dict(own) for own in dict.fromkeys(tuple(one.items()) for one in every)]

    def accuracies(self) -> pd.DataFrame:
        """Return a row a network: its labels, and the share of images whose class it gives.

        Of the test images the column `accuracy`; of the training images, and the classes that it was taught, `learned`,
        and `loss`, the mean cross entropy.
        """
        rows = []
        for own in self.networks():
            variant: dict[str, Any] = {name: value for name, value in own.items() if name not in ("model", "seed")}
            model = self.model(str(own["model"]), int(own["seed"]), **variant)
            tests = accuracy(model, self.images.tests, self.images.test_classes)
            taught = taught_classes(replace(self.setting, **variant))
            training = self.images.training
            learned = {"learned": accuracy(model, training, taught), "loss": cross_entropy(model, training, taught)}
            rows.append({**own, "accuracy": tests, **learned})
        return pd.DataFrame(rows)


def trained(
    setting: ImageSetting,
    folder: str | os.PathLike[str],
    networks: Sequence[str] = NETWORKS,
    variants: Sequence[Variant] = ({},),
) -> Population:
    """Train the networks of a setting, those that are not in `folder` yet, and capture them on the way.

    Parameters
    ----------
    setting : ImageSetting
    folder : path
    networks : list of {"convnet", "residual"}
    variants : list of mappings
        In which of VARYING some networks differ, ``[{"rate": 0.01}, {"rate": 0.1}]``: so many seeds of each, and no
        seed in two of them, so that no two networks begin at the same weights. A folder knows its variants: others are
        added to them, with seeds of their own.

    Returns
    -------
    Population
        Its store has the labels model, seed, step, layer, and those of the variants.

    Raises
    ------
    DsvccaError
        If `folder` has networks of another setting, a network or a variant is unknown, or the images are not installed.
    """
    root = Path(folder).absolute()
    root.mkdir(parents=True, exist_ok=True)
    variants = [_plain(one) for one in variants]
    _check(networks, variants)
    claim(root, setting)
    create_store(root / "activations.zarr", datapoints=setting.probes)
    every = [
        (network, variant, seed + place * setting.seeds)
        for network in networks
        for place, variant in zip(_places(root, setting, variants), variants, strict=True)
        for seed in range(setting.seeds)
    ]
    seen = captured(root / "activations.zarr", "model", "seed")
    make_lacking(
        partial(_train, setting, root),
        every,
        root,
        setting,
        made=lambda one: _weights(root, *one).exists() and seen(one[0], one[2]),
    )
    seeds = sorted({seed for _, _, seed in every})
    store = open_store(root / "activations.zarr").select(model=list(networks), seed=seeds)
    return Population(setting, root, images_of(setting), store)


def _check(networks: Sequence[str], variants: Sequence[Variant]) -> None:
    """Raise if networks or variants are none."""
    for network in [networks] if isinstance(networks, str) else networks:
        if isinstance(networks, str) or network not in NETWORKS:
            raise DsvccaError(f"networks={networks!r}: give a list of {' and '.join(NETWORKS)}")
    for place, variant in enumerate(variants):
        for name, value in variant.items():
            if name not in VARYING or not isinstance(value, VARYING[name]) or isinstance(value, bool):
                raise DsvccaError(f"{name}={value!r} is no variant: networks differ in {', '.join(VARYING)}")
        if variant in list(variants)[:place]:
            raise DsvccaError(f"variant {dict(variant)} is there twice: leave one out")


def _plain(variant: Variant) -> Variant:
    """Return a variant whose numbers are of one type: 1 is 1.0 where others of its name are 0.5."""
    floats = {
        name: float(value) for name, value in variant.items() if VARYING.get(name) is FLOAT and type(value) is int
    }
    return {**variant, **floats}


def _places(folder: Path, setting: ImageSetting, variants: Sequence[Variant]) -> list[int]:
    """Return the place of every variant among those of a folder, which are kept beside its networks."""
    record = folder / "variants.json"
    with FileLock(folder / "variants.lock"):
        there = read_note(record)
        known: list[Variant] = [_plain(one) for one in there.get("variants", [])]
        several = [*known, *(dict(one) for one in variants if one not in known)]
        if len(several) > 1 and there.get("seeds", setting.seeds) != setting.seeds:
            raise DsvccaError(
                f"'{folder}' has {there['seeds']} networks of each variant, and {setting.seeds} were asked for: their "
                "seeds would be those of others; remove it, or keep these elsewhere"
            )
        if several != known or not there:
            files.write_json(record, {"seeds": setting.seeds, "variants": several})
    return [several.index(one) for one in variants]


def images_of(setting: ImageSetting) -> Images:
    """Return the images of a setting."""
    return _images(setting.source, setting.training, setting.probes, setting.tests, setting.size)


@cache
def _images(source: str, training: int, probes: int, tests: int, size: int) -> Images:
    return load_images(source, training=training, probes=probes, tests=tests, size=size)


def taught_classes(setting: ImageSetting) -> torch.Tensor:
    """Return the classes of the training images that networks learn: theirs, or the same in another order."""
    classes = images_of(setting).classes
    if setting.labels == "true":
        return classes
    return classes[torch.randperm(len(classes), generator=torch.Generator().manual_seed(ORDER))]


def _train(setting: ImageSetting, folder: Path, one: tuple[str, Variant, int]) -> None:
    """Train one network, capture it on the way and keep its weights; the same seed gives the same network again."""
    network, variant, seed = one
    own: ImageSetting = replace(setting, **variant)
    images = images_of(own)
    store = open_store(folder / "activations.zarr")
    shown = images.training[: own.probes] if own.captured_on == "training" else images.probes
    with reproducible(seed):
        model = own.fresh(network)
        probe = Probe(
            model,
            shown,
            store,
            layers=own.layers(network),
            steps=own.captured,
            model=network,
            seed=seed,
            **variant,
        )
        train_classifier(
            model,
            images.training,
            taught_classes(own),
            steps=own.steps,
            batch=own.batch,
            rate=own.rate,
            decay=own.decay,
            before=lambda step, _: probe(step),
        )
    save_weights(model, _weights(folder, network, variant, seed))


def _weights(folder: Path, network: str, variant: Variant, seed: int) -> Path:
    return folder / "-".join([network, *(f"{name}={value}" for name, value in sorted(variant.items())), f"{seed}.pt"])
