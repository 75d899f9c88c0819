"""The networks of the experiments, smaller than the papers' and with the same layers."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn


def convnet(channels: tuple[int, int], dense: tuple[int, int], *, size: int) -> nn.Module:
    """Return conv-conv-bn-pool-conv-conv-conv-bn-pool-fc-bn-fc-bn-out (Raghu et al. 2017) with fresh weights.

    Parameters
    ----------
    channels, dense : (int, int)
        Channels before and after the first pooling; neurons of the two hidden dense layers.
    size : int
        Pixels along a side of the images.
    """

    def conv(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU())

    def fc(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU())

    one, two = channels
    return nn.Sequential(
        OrderedDict(
            conv1=conv(1, one),
            conv2=conv(one, one),
            bn1=nn.BatchNorm2d(one),
            pool1=nn.MaxPool2d(2),
            conv3=conv(one, two),
            conv4=conv(two, two),
            conv5=conv(two, two),
            bn2=nn.BatchNorm2d(two),
            pool2=nn.MaxPool2d(2),
            flat=nn.Flatten(),
            fc1=fc(two * (size // 4) ** 2, dense[0]),
            bn3=nn.BatchNorm1d(dense[0]),
            fc2=fc(*dense),
            bn4=nn.BatchNorm1d(dense[1]),
            out=nn.Linear(dense[1], 10),
        )
    )


class Block(nn.Module):
    """A residual block: two convolutions with batch norm, and their input added."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs))
        self.past = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.second(self.first(x)) + self.past(x))


def residual(blocks: tuple[int, ...]) -> nn.Module:
    """Return a residual network with fresh weights: stem, residual blocks, mean over space, out.

    Parameters
    ----------
    blocks : tuple of int
        Channels of each block; where they change, the block halves the maps.
    """
    stem = nn.Sequential(nn.Conv2d(1, blocks[0], 3, padding=1), nn.BatchNorm2d(blocks[0]), nn.ReLU())
    inputs = (blocks[0], *blocks)
    return nn.Sequential(
        OrderedDict(
            stem=stem,
            **{f"res{i + 1}": Block(inputs[i], own, 1 if inputs[i] == own else 2) for i, own in enumerate(blocks)},
            pooled=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            res_out=nn.Linear(blocks[-1], 10),
        )
    )
