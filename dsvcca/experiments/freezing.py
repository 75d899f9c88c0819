"""Freeze training against training everything, over several runs (Raghu et al. 2017, figure 5)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from dsvcca.experiments.parallel import make_lacking
from dsvcca.experiments.populations import ImageSetting, images_of
from dsvcca.experiments.training import accuracy, reproducible, train_classifier
from dsvcca.storage import files
from dsvcca.torch.freezing import FreezeTraining
from dsvcca.torch.settling import WhenSettled

SCHEDULES = ("all trained", "linear", "when settled")

LAYERS: dict[str, list[str | list[str]]] = {
    "convnet": ["conv1", ["conv2", "bn1"], "conv3", "conv4", ["conv5", "bn2"], ["fc1", "bn3"], ["fc2", "bn4"], "out"],
}
"""What is frozen together: a layer with the batch norm after it. Of residual networks blocks are."""

LOOKS = 20
"""How often accuracy is measured in a training."""


def freeze_runs(setting: ImageSetting, folder: Path, networks: Sequence[str]) -> pd.DataFrame:
    """Train networks with every schedule, those that are not in `folder` yet.

    Returns
    -------
    pandas.DataFrame
        Columns network, schedule, seed, step, accuracy, frozen (groups), saved (share of the operations of the whole
        training): a row each time that accuracy was measured.
    """
    wanted = [
        (network, schedule, seed) for network in networks for schedule in SCHEDULES for seed in range(setting.seeds)
    ]
    make_lacking(
        partial(_train, setting, folder), wanted, folder, setting, made=lambda one: _record(folder, *one).exists()
    )
    return pd.DataFrame([row for one in wanted for row in json.loads(_record(folder, *one).read_text())])


def _train(setting: ImageSetting, folder: Path, one: tuple[str, str, int]) -> None:
    network, schedule, seed = one
    images = images_of(setting)
    layers = LAYERS.get(network) or [one for one in setting.layers(network) if "." not in one]
    every = max(1, setting.steps // LOOKS)
    ends = [one if isinstance(one, str) else one[-1] for one in layers]
    dims = {layer: axes for layer, axes in setting.layers(network).items() if layer in ends}
    rule = WhenSettled(images.probes, every=every, threshold=0.9, patience=2, warmup=setting.steps // 10, dims=dims)
    rows = []
    with reproducible(seed):
        model = setting.fresh(network)
        freeze: FreezeTraining | None = None

        def look(step: int, optimizer: torch.optim.Optimizer) -> None:
            nonlocal freeze
            if schedule != "all trained":
                if freeze is None:
                    given = rule if schedule == "when settled" else "linear"
                    freeze = FreezeTraining(
                        model, layers=layers, steps=setting.steps, schedule=given, optimizer=optimizer
                    )
                if step < setting.steps:
                    freeze.step(step)
            if step % every == 0 or step == setting.steps:
                found = accuracy(model, images.tests, images.test_classes)
                frozen = 0 if freeze is None else len(freeze.frozen)
                rows.append({"step": step, "accuracy": found, "frozen": frozen})

        training = images.training, images.classes
        train_classifier(model, *training, steps=setting.steps, batch=setting.batch, rate=setting.rate, before=look)
    saved = 0.0 if freeze is None else freeze.flops(images.training[: setting.batch]).attrs["saved"]
    told = [{"network": network, "schedule": schedule, "seed": seed, **row, "saved": saved} for row in rows]
    files.write_json(_record(folder, *one), told)


def _record(folder: Path, network: str, schedule: str, seed: int) -> Path:
    return folder / f"{network}-{schedule.replace(' ', '-')}-{seed}.json"
