"""Models, batches and stores that the tests of PyTorch models share. Only where PyTorch is installed."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from dsvcca.activations.pieces import read_pieces  # noqa: E402

N = 20


class ConvNet(nn.Module):
    """Convolutions whose outputs are overwritten in place, as in residual networks, and a head in a block."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Sequential(OrderedDict(flat=nn.Flatten(), fc=nn.Linear(4 * 8 * 6, 5)))
        self.bn.running_mean.uniform_()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.head(self.drop(self.relu(self.bn(self.conv(x)))))


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(fc1=nn.Linear(5, 6), act=nn.Tanh(), fc2=nn.Linear(6, 3)))


def batches(data, size=8):
    return DataLoader(TensorDataset(data, torch.arange(len(data))), batch_size=size)


def stored(store, **labels):
    [one] = store.select(**labels).representations
    return np.concatenate(list(read_pieces(one)))


def layers_of(store):
    return [one.labels["layer"] for one in store.representations]


def nothing_left(store):
    return [entry.name for entry in Path(store.path).iterdir()] == ["zarr.json"]


class Calling(nn.Module):
    """A module that does what a function says with its children."""

    def __init__(self, call, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.call = call

    def forward(self, *args, **kwargs):
        return self.call(self, *args, **kwargs)
