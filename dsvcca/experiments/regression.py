"""The toy regression of Raghu et al. 2017 (figures 1 and 3): one number in, four out, four hidden layers of 200."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from dsvcca.experiments.parallel import make_lacking
from dsvcca.experiments.training import load_weights, reproducible, save_weights

HIDDEN = ("fc1", "fc2", "fc3", "fc4")
"""Hidden layers, after their ReLU; the last is the paper's penultimate layer."""


@dataclass(frozen=True)
class RegressionSetting:
    """How many networks of which width are trained how long, on how many points between -1 and 1."""

    seeds: int = 6
    width: int = 200
    points: int = 2000
    steps: int = 4000
    rate: float = 1e-3
    workers: int = 2


REGRESSION = {"small": RegressionSetting(seeds=3, points=600, steps=300, workers=1), "full": RegressionSetting()}


def points_and_targets(points: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs (points, 1) from -1 to 1, and what is to be learned of them, (points, 4)."""
    x = torch.linspace(-1, 1, points)[:, None]
    curves = [
        torch.sin(4 * torch.pi * x) * torch.exp(-x),
        torch.cos(7 * x) * x,
        torch.tanh(12 * x) + 0.5 * torch.sin(9 * x),
        torch.exp(-20 * (x - 0.4) ** 2) - torch.exp(-20 * (x + 0.5) ** 2),
    ]
    return x, torch.cat(curves, dim=1)


def _fresh(setting: RegressionSetting) -> nn.Module:
    sizes = [1, *[setting.width] * len(HIDDEN)]
    hidden = [(name, nn.Sequential(nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU())) for i, name in enumerate(HIDDEN)]
    return nn.Sequential(OrderedDict([*hidden, ("out", nn.Linear(setting.width, 4))]))


def train_regression(seed: int, setting: RegressionSetting) -> nn.Module:
    """Return a trained network in evaluation mode; the same seed gives the same network again.

    Adam takes steps on all points at once, with a rate that falls to nothing.
    """
    with reproducible(seed):
        network = _fresh(setting)
        x, y = points_and_targets(setting.points)
        optimizer = torch.optim.Adam(network.parameters(), lr=setting.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, setting.steps)
        for _ in range(setting.steps):
            optimizer.zero_grad()
            loss: torch.Tensor = nn.functional.mse_loss(network(x), y)
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def trained_regressions(setting: RegressionSetting, folder: Path) -> list[nn.Module]:
    """Return the networks of a setting, from `folder` or trained now and kept there."""
    seeds = range(setting.seeds)
    make_lacking(
        partial(_keep, setting, folder), seeds, folder, setting, made=lambda seed: _path(folder, seed).exists()
    )
    return [load_weights(_fresh(setting), _path(folder, seed)) for seed in seeds]


def _keep(setting: RegressionSetting, folder: Path, seed: int) -> None:
    save_weights(train_regression(seed, setting), _path(folder, seed))


def _path(folder: Path, seed: int) -> Path:
    return folder / f"{seed}.pt"
