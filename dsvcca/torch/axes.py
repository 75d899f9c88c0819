"""Which axis of what a module gave is which."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from dsvcca.activations.labels import checked_dims
from dsvcca.errors import DsvccaError
from dsvcca.torch.narrow import Narrow
from dsvcca.torch.outputs import Layer, Output

SPACE = {3: ("position",), 4: ("height", "width"), 5: ("depth", "height", "width")}
EXAMPLES: dict[int, tuple[str, ...]] = {3: ("ntd", "tnd", "nct"), 4: ("nchw", "nhwc")}
SEQUENCES = ("datapoint", "position", "neuron")
"""Axes of packed sequences, once they are padded."""

CHANNELS_SECOND = (
    *("ChannelShuffle", "FeatureAlphaDropout", "Fold", "GroupNorm", "LocalResponseNorm", "PixelShuffle"),
    *("PixelUnshuffle", "SyncBatchNorm", "Unfold", "Upsample"),
)
"""Modules of torch.nn whose channels are the second axis, besides those whose names end in 1d, 2d or 3d."""

NEURONS_LAST = ("Bilinear", "Embedding", "LayerNorm", "Linear", "NonDynamicallyQuantizableLinear", "RMSNorm")
"""Modules of torch.nn whose neurons are the last axis, however many axes there are."""


def axes_of(output: Output, layer: Layer, rows: int, *, option: str = "layers") -> tuple[str, ...]:
    """Return the axis names of an output: those given, those of packed sequences, or those that can be told."""
    shape = tuple(output.values.shape)
    if output.lengths is None:
        dims = layer.dims or known_dims(layer.module, shape, rows, layer.name, option=option)
        return checked_dims(dims, shape, str(layer))
    given = checked_dims(layer.dims, (1,) * len(layer.dims), str(layer)) if layer.dims else SEQUENCES
    if sorted(given) != sorted(SEQUENCES):
        raise DsvccaError(
            f"{layer} gives packed sequences, dims={layer.dims!r} names other axes: pass "
            f"layers={{{layer.name!r}: None}}"
        )
    return SEQUENCES


def known_dims(
    module: nn.Module, shape: Sequence[int], rows: int, name: str, *, option: str = "layers"
) -> tuple[str, ...]:
    """Return the axis names of what a module gave for a batch of `rows` datapoints.

    Known are two axes, and modules of torch.nn itself that document their axes. Subclasses may do anything, and
    elementwise modules hand on what they are given: those count as maps with channels second where the last two axes
    of four or more are equally long. `option` is what takes axes that cannot be told.

    Raises
    ------
    DsvccaError
        Where the axes cannot be told.

    Examples
    --------
    >>> known_dims(nn.Conv1d(3, 16, 5), (8, 16, 100), 8, "conv")
    ('datapoint', 'channel', 'position')
    """
    axes = len(shape)
    if axes < 2:
        raise DsvccaError(
            f"layer {name!r} ({type(module).__name__}) gives {tuple(shape)} for {rows} datapoints: "
            "capture modules that give several numbers a datapoint"
        )
    found = told_dims(module, shape)
    if found is None:
        examples = examples_of(axes)
        raise DsvccaError(
            f"layer {name!r} ({type(module).__name__}) gives {tuple(shape)} for {rows} datapoints, and which axis is "
            f"which cannot be told: pass {option}={{{name!r}: {examples[0]!r}}}"
            + "".join(f" or {{{name!r}: {one!r}}}" for one in examples[1:])
            + (", with None for layers that need none" if option == "layers" else "")
        )
    return found


def examples_of(axes: int) -> tuple[str | tuple[str, ...], ...]:
    """Return ways to spell so many axes, for an error message."""
    names = SPACE.get(axes, tuple(f"axis{i}" for i in range(1, axes - 1)))
    return EXAMPLES.get(axes, (("datapoint", "channel", *names),))


def told_dims(module: nn.Module, shape: Sequence[int]) -> tuple[str, ...] | None:
    """Return the axis names of what a module gave, None where they cannot be told.

    >>> told_dims(nn.ReLU(), (8, 16, 100)) is None
    True
    """
    if isinstance(module, Narrow):
        module = module[-1]
    axes = len(shape)
    space = SPACE.get(axes)
    kind = next(one for one in type(module).__mro__ if one.__module__ != "torch.nn.utils.parametrize")
    home, title = kind.__module__.removeprefix("torch.nn.modules."), kind.__name__
    second = ("datapoint", "channel", *(space or ()))
    found: tuple[str, ...] | None = None
    if axes == 2:
        found = ("datapoint", "neuron")
    elif axes < 2 or space is None or home in ("container", kind.__module__):
        found = None
    elif flat := re.search(r"([123])d$", title):
        found = second if axes == int(flat[1]) + 2 else None
    elif title in CHANNELS_SECOND:
        found = second
    elif title in NEURONS_LAST:
        several = len(getattr(module, "normalized_shape", ())) > 1  # LayerNorm over whole maps: either order
        alike = axes == 3 and shape[0] == shape[1]  # either may be the datapoints
        found = None if several or alike else ("datapoint", *space, "neuron" if axes == 3 else "channel")
    elif home in ("rnn", "transformer") or title == "MultiheadAttention":
        first = next((one.batch_first for one in module.modules() if hasattr(one, "batch_first")), None)
        if axes == 3 and first is not None:
            found = ("datapoint", "position", "neuron") if first else ("position", "datapoint", "neuron")
    elif axes > 3 and shape[-2] == shape[-1]:  # but (n, 7, 7, 64) and (n, 5, 7, 64) may have channels last
        found = second
    return found
