"""What is captured of the networks of the experiments; needs no torch."""

from __future__ import annotations

MAPS, VECTORS = "nchw", "nd"

CONVNET = {
    **dict.fromkeys(("conv1", "conv2", "bn1", "pool1", "conv3", "conv4", "conv5", "bn2", "pool2"), MAPS),
    **dict.fromkeys(("fc1", "bn3", "fc2", "bn4", "out"), VECTORS),
}
"""Layers of the convnet, lowest first, and the axes of what they give. Convolutions and dense layers end in ReLU."""


def residual_layers(blocks: tuple[int, ...], *, inner: bool = False) -> dict[str, str]:
    """Return the layers of a residual network, lowest first, and the axes of what they give.

    The output of each block, and before it, if `inner`, that of its two convolutions.
    """
    names = [
        f"res{i + 1}{part}" for i in range(len(blocks)) for part in ((".first", ".second", "") if inner else ("",))
    ]
    return {"stem": MAPS, **dict.fromkeys(names, MAPS), "res_out": VECTORS}
