"""Capture: run a PyTorch model over the data once and write the outputs of named modules into a store.

Nothing of an earlier batch is held, the model is left as it was found, and every row carries an id made from the
input that caused it, so that shuffled or randomly transformed data cannot pass for the same datapoints.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, SubsetRandomSampler, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler

from dsvcca.arrays import NumpyArray
from dsvcca.errors import DsvccaError, nearest
from dsvcca.labels import Label, checked_dims
from dsvcca.progress import track
from dsvcca.store import Store
from dsvcca.torch.running import left_as_found, moved, outputs_of, run
from dsvcca.writer import Writer

Dims = str | Sequence[str]

BATCH = 256
"""Datapoints of a batch where the data are one tensor."""

SPACE = {3: ("position",), 4: ("height", "width"), 5: ("depth", "height", "width")}
EXAMPLES = {3: ("ntd", "tnd", "nct"), 4: ("nchw", "nhwc")}

CHANNELS_SECOND = (
    *("ChannelShuffle", "FeatureAlphaDropout", "Fold", "GroupNorm", "LocalResponseNorm", "PixelShuffle"),
    *("PixelUnshuffle", "SyncBatchNorm", "Unfold", "Upsample"),
)
"""Modules of torch.nn whose channels are the second axis, besides those whose names end in 1d, 2d or 3d."""

NEURONS_LAST = ("Bilinear", "Embedding", "LayerNorm", "Linear", "NonDynamicallyQuantizableLinear", "RMSNorm")
"""Modules of torch.nn whose neurons are the last axis, however many axes there are."""


def capture(
    model: nn.Module,
    data: Any,
    store: Store,
    /,
    *,
    layers: Iterable[str] | Mapping[str, Dims | None],
    forward: Callable[[Any, Any], Any] | None = None,
    if_exists: str = "error",
    **labels: Label,
) -> None:
    """Run a model over data and write the outputs of some of its modules, all of them or none.

    The model runs in evaluation mode without gradients, one batch at a time on the device of its first parameter.
    Afterwards its modes, its hooks and all random number generators are as they were before.

    Parameters
    ----------
    model : torch.nn.Module
    data : DataLoader, iterable of batches, or tensor
        All datapoints, in the order of the store. A batch is a tensor (``model(batch)``), a tuple or list of which
        the model takes the first (``model(batch[0])``), or a dict (``model(**batch)``). A tensor is cut into
        batches of 256.
    store : Store
        Made by `create_store`. The ids of its datapoints are hashes of the inputs: the first capture fixes them,
        every other one has to match them in order.
    layers : list of str, or mapping from str to dims
        Modules as ``model.named_modules()`` names them; the names become the label `layer`. A mapping names the axes
        of the outputs too, as `Store.write` spells them, or None where they can be found out. That they can for two
        axes, and for most modules of torch.nn.
    forward : callable, optional
        ``forward(model, batch)`` where the model has to be called in another way.
    if_exists : {"error", "skip", "replace"}, default "error"
        What to do where a layer is in the store already. Skipped layers are not computed; if there are no others,
        the model does not run.
    **labels
        model=, seed=, step=, ...: str, int, float or bool.

    Raises
    ------
    DsvccaError
        For unknown modules, a DataLoader that shuffles, other datapoints than the store's, outputs that are not one
        tensor with a row for each datapoint, axes that cannot be told, and modules that run twice or not at all.
        Nothing is written then.
    """
    if not isinstance(store, Store):
        raise DsvccaError(f"a {type(store).__name__} was given instead of a store: create_store(path, ...) first")
    wanted = _checked_layers(model, layers)
    _check_order(data)
    if "layer" in labels:
        raise DsvccaError(f"label layer={labels['layer']!r} was given: leave it out, layers are named by `layers`")
    if "dims" in labels:
        raise DsvccaError("dims= is not taken here: spell axes with the layers, layers={'conv1': 'nchw', 'fc1': None}")

    def writer_for(name: str, dims: Dims | None) -> Writer:
        return store.writer(layer=name, dims=dims, if_exists=if_exists, **labels)

    every = dict(model.named_modules(remove_duplicate=False))
    modules = {name: every[name] for name in wanted if not writer_for(name, None).skipped}
    if not modules:
        return
    first = next(model.parameters(), None)
    device = None if first is None else first.device
    batches: Any = torch.split(data, BATCH) if isinstance(data, torch.Tensor) else data
    try:
        total = len(batches)
    except TypeError:
        total = 0  # not known, so no bar
    with ExitStack() as commits:
        writers: dict[str, Writer] = {}
        axes: dict[str, tuple[str, ...]] = {}
        with left_as_found(model, data), outputs_of(modules) as outputs, track("capture", total) as advance:
            for batch in batches:
                ids = row_ids(batch)
                run(model, moved(batch, device), forward)
                _check_once(outputs)
                if not writers:
                    for name in reversed(modules):  # contexts end last in, first out: layers arrive in their order
                        shape = outputs[name][0].shape
                        dims = wanted[name] or known_dims(modules[name], shape, len(ids), name)
                        axes[name] = checked_dims(dims, shape, f"layer {name!r}")
                        writers[name] = commits.enter_context(writer_for(name, dims))
                        writers[name].id_kind = "inputs"
                for name, module in modules.items():
                    _check_rows(outputs[name][0].shape, axes[name], len(ids), module, name)
                    writers[name].append(outputs[name].pop(), datapoints=ids)
                del batch
                advance()
        if not writers:
            raise DsvccaError(
                f"data ({type(data).__name__}) gave no batch, the store has {store.datapoints} datapoints: give all "
                "of them (a generator that was used up gives nothing)"
            )


def known_dims(
    module: nn.Module, shape: Sequence[int], rows: int, name: str, option: str = "layers"
) -> tuple[str, ...]:
    """Return the axis names of what a module gave for a batch of `rows` datapoints.

    Known are two axes, and modules of torch.nn itself that document their axes. Subclasses may do anything, and
    elementwise modules hand on what they are given: those count as maps with channels second from four axes on, unless
    the shape speaks against it. Errors say to spell the axes as `option`.

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
    space = SPACE.get(axes)
    kind = next(one for one in type(module).__mro__ if one.__module__ != "torch.nn.utils.parametrize")
    home, title = kind.__module__.removeprefix("torch.nn.modules."), kind.__name__
    second = ("datapoint", "channel", *(space or ()))
    found: tuple[str, ...] | None = None
    if axes == 2:
        found = ("datapoint", "neuron")
    elif space is None or home in ("container", kind.__module__):
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
    elif axes > 3:
        last = len(set(shape[1:-1])) == 1 and shape[-1] != shape[1]  # (n, 7, 7, 64)
        found = None if last else second
    if found is None:
        examples = EXAMPLES.get(axes, (("datapoint", *(f"axis{i}" for i in range(1, axes - 1)), "channel"),))
        raise DsvccaError(
            f"layer {name!r} ({type(module).__name__}) gives {tuple(shape)} for {rows} datapoints, and which axis is "
            f"which cannot be told: pass {option}={{{name!r}: {examples[0]!r}}}"
            + "".join(f" or {{{name!r}: {one!r}}}" for one in examples[1:])
            + (", with None for layers that need none" if option == "layers" else "")
        )
    return found


def row_ids(batch: Any) -> NumpyArray:
    """Return 64 bits of BLAKE2b of every input row in a batch, as uint64.

    Of a tuple or list the first is hashed, of a dict all tensors in the order of their keys; values, type and shape
    count, how the rows were cut into batches does not.

    >>> len(set(row_ids(torch.tensor([[1.0, 2.0], [1.0, 3.0], [1.0, 2.0]])).tolist()))
    2
    """
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if isinstance(inputs, torch.Tensor):
        tensors = [inputs]
    elif isinstance(inputs, Mapping):
        tensors = [inputs[key] for key in sorted(inputs, key=str) if isinstance(inputs[key], torch.Tensor)]
    else:
        tensors = []
    counts = {len(one) for one in tensors if one.ndim}
    if not counts:
        inside = f" of {type(inputs).__name__}" if inputs is not batch else ""
        raise DsvccaError(
            f"a batch is a {type(batch).__name__}{inside} without a tensor of datapoints: a batch must be a tensor, a "
            "tuple or list that begins with one, or a dict of tensors"
        )
    if len(counts) > 1:
        raise DsvccaError(
            f"the tensors of a batch have {' and '.join(map(str, sorted(counts)))} rows: give all of them one row a "
            "datapoint, or batches (tensor, others) and forward="
        )
    rows = counts.pop()
    hashes = [hashlib.blake2b(digest_size=8) for _ in range(rows)]
    for one in tensors:
        plain = one.detach().cpu().contiguous()
        head = f"{plain.dtype} {tuple(plain.shape[1:])} ".encode()
        flat = plain.reshape(rows, int(np.prod(plain.shape[1:]))) if plain.ndim else plain.repeat(rows)[:, None]
        for found, row in zip(hashes, flat.contiguous().view(torch.uint8).numpy(), strict=True):
            found.update(head)
            found.update(row)
    return np.frombuffer(b"".join(one.digest() for one in hashes), dtype="<u8").astype(np.uint64)


def _checked_layers(model: nn.Module, layers: Any) -> dict[str, Dims | None]:
    """Return the dims that are given for each layer, after looking for all of them in the model."""
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise DsvccaError(f"layers={layers!r} is a {type(layers).__name__}: pass a list of module names, or a mapping")
    wanted: dict[str, Dims | None] = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(layers)
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    if not wanted:
        raise DsvccaError(f"layers is empty, the model has {len(known)} modules: {nearest('', known)}")
    for name, dims in wanted.items():
        if name not in known:
            raise DsvccaError(f"the model ({type(model).__name__}) has no module {name!r}: {nearest(name, known)}")
        if dims is not None:
            checked_dims(dims, (1,) * len(dims), f"layer {name!r}")
    return wanted


def _check_order(data: Any) -> None:
    """Refuse data that come in another order each time, or that are not batches."""
    if isinstance(data, (Dataset, np.ndarray)):
        raise DsvccaError(
            f"data is a {type(data).__name__}, which gives rows, not batches: pass a tensor, an iterable of batches, "
            "or DataLoader(dataset, batch_size=...)"
        )
    if not isinstance(data, Iterable):
        raise DsvccaError(f"data is a {type(data).__name__}: pass a DataLoader, an iterable of batches or a tensor")
    if isinstance(data, torch.Tensor) and data.ndim == 0:
        raise DsvccaError("data is a tensor without axes: pass one row a datapoint")
    if not isinstance(data, DataLoader):
        return
    for sampler in (data.sampler, data.batch_sampler, getattr(data.batch_sampler, "sampler", None)):
        if isinstance(sampler, (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)) or (
            isinstance(sampler, DistributedSampler) and sampler.shuffle
        ):
            raise DsvccaError(
                f"the DataLoader shuffles (its sampler is a {type(sampler).__name__}), but all representations need "
                "the same datapoints in the same order: build it with shuffle=False and no random sampler"
            )


def _check_once(outputs: Mapping[str, list[NumpyArray]]) -> None:
    """Raise unless every layer gave exactly one output for the batch."""
    silent = [name for name, given in outputs.items() if not given]
    if silent:
        raise DsvccaError(
            f"{', '.join(f'layer {name!r}' for name in silent)} did not run when the model did: nothing was written; "
            "leave such layers out, or call the model with forward= so that they run"
        )
    for name, given in outputs.items():
        if len(given) > 1:
            raise DsvccaError(
                f"layer {name!r} ran {len(given)} times for one batch, so it has no one output: nothing was written; "
                "capture modules that run once"
            )


def _check_rows(shape: Sequence[int], dims: tuple[str, ...], rows: int, module: nn.Module, name: str) -> None:
    """Raise unless the axis of datapoints is as long as the batch."""
    axis = dims.index("datapoint")
    if len(shape) != len(dims) or shape[axis] != rows:
        turned = len(shape) == 3 and axis == 0 and shape[1] == rows
        raise DsvccaError(
            f"layer {name!r} ({type(module).__name__}) gives {tuple(shape)} for a batch of {rows} datapoints, where "
            f"axis {axis} of {dims} should have {rows}: nothing was written; "
            + (f"pass layers={{{name!r}: 'tnd'}}" if turned else "capture a module that keeps datapoints apart")
        )
