"""Capture: run a PyTorch model over the data once and write the outputs of named modules into a store.

Nothing of an earlier batch is held, the model is left as it was found, and every row carries an id made from the
input that caused it, so that shuffled or randomly transformed data cannot pass for the same datapoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, SubsetRandomSampler, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler

from dsvcca.activations.labels import Label, checked_dims
from dsvcca.activations.store import Store
from dsvcca.activations.writer import Writer
from dsvcca.errors import DsvccaError, nearest
from dsvcca.progress import track
from dsvcca.torch.axes import axes_of
from dsvcca.torch.ids import row_ids
from dsvcca.torch.keeping import Bases, checked_bases, keep_captured
from dsvcca.torch.masks import ONE_LENGTH, Mask, Tokens
from dsvcca.torch.outputs import Dims, Layer, Output, found_in, joined
from dsvcca.torch.running import (
    Forward,
    check_runnable,
    device_of,
    hooks,
    left_as_found,
    moved,
    named_layers,
    run,
    unwrapped,
)

BATCH = 256
"""Datapoints of a batch where the data are one tensor."""

WRITTEN = Output(torch.empty(0))
"""What is kept of an output that was written at once."""


def capture(
    model: nn.Module,
    data: Any,
    store: Store,
    /,
    *,
    layers: Iterable[str] | Mapping[str, Dims | None],
    forward: Forward | None = None,
    mask: Mask | None = None,
    positions: int | None = None,
    bases: Bases | None = None,
    if_exists: str = "error",
    **labels: Label,
) -> None:
    """Run a model over data and write the outputs of some of its modules, all of them or none.

    The model runs in evaluation mode without gradients, one batch at a time on the device of its first parameter.
    Afterwards its modes, its hooks and all random number generators are as they were before. Of DataParallel,
    DistributedDataParallel and torch.compile the module inside runs, as it was written.

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
        Modules as ``model.named_modules()`` names them; the names become the label `layer`, without the prefixes of
        wrappers (``module.``, ``_orig_mod.``). A mapping names the axes of the outputs too, as `Store.write` spells
        them, or None where they can be found out. That they can for two axes, for packed sequences, and for most
        modules of torch.nn. Dims that name a position which the outputs do not have, ``{"cell": "tnd"}``, say that
        every run of the module is one position of a sequence.
    forward : callable, optional
        ``forward(model, batch)`` where the model has to be called in another way.
    mask : str or callable, optional
        Which positions of a batch are tokens: the key of a batch that is a dict (``"attention_mask"``), or
        ``mask(batch)``, (datapoint, position) true for tokens. It becomes the mask of the store (`Store.write_mask`)
        if anything is padding. Packed sequences need none.
    positions : int, optional
        Length to which sequences and their mask are padded, where batches have different ones.
    bases : float or mapping, optional
        Keep only the bases of what was captured, as `dsvcca.keep_bases` does: a share of variance, ``0.99``, or its
        options, ``{"view": "mean", "variance": 0.99}``. Capture then takes the time to make them. Layers that are
        skipped and still have activations are done as well.
    if_exists : {"error", "skip", "replace"}, default "error"
        What to do where a layer is in the store already. Skipped layers are not computed; if there are no others,
        the model does not run.
    **labels
        model=, seed=, step=, ...: str, int, float or bool.

    Raises
    ------
    DsvccaError
        For unknown modules, a DataLoader that shuffles, other datapoints than the store's, outputs that are not one
        tensor with a row for each datapoint, of one shape in all batches, axes that cannot be told, modules that run
        not at all or several times, masks that do not belong to the sequences, and parameters that are sharded, not
        initialised or on the meta device. Nothing is written then.

    Warns
    -----
    DsvccaWarning
        If a layer has no basis, such as a dead one: it keeps its activations.
    """
    check_options(data, store, positions, labels)
    kept = checked_bases(bases)
    wanted = checked_layers(model, layers)
    _write(model, data, store, wanted, forward, mask, positions, if_exists, labels)
    keep_captured(store, [layer.name for layer in wanted], labels, kept)


def _write(
    model: nn.Module,
    data: Any,
    store: Store,
    wanted: Sequence[Layer],
    forward: Forward | None,
    mask: Mask | None,
    positions: int | None,
    if_exists: str,
    labels: Mapping[str, Label],
) -> None:
    """Run the model and write what the store lacks of the wanted layers, all of them or none."""

    def writer_for(layer: Layer, dims: Dims | None) -> Writer:
        return store.writer(layer=layer.name, dims=dims, if_exists=if_exists, **labels)

    lacking = [layer for layer in wanted if not writer_for(layer, None).skipped]
    if not lacking:
        return
    model = unwrapped(model)
    check_runnable(model)
    device = device_of(model)
    modules = {layer.name: layer.module for layer in lacking}
    batches: Any = torch.split(data, BATCH) if isinstance(data, torch.Tensor) else data
    try:
        total = len(batches)
    except TypeError:
        total = 0  # not known, so no bar
    tokens = Tokens(store, mask, positions)
    with ExitStack() as commits:
        writers: dict[str, Writer] = {}
        axes: dict[str, tuple[str, ...]] = {}
        shapes: dict[str, tuple[int, ...]] = {}

        def write(layer: Layer, values: torch.Tensor) -> None:
            _check_shape(tuple(values.shape), shapes[layer.name], axes[layer.name], len(ids), layer)
            writers[layer.name].append(values, datapoints=ids)

        def keep(output: Any, module: nn.Module, name: str) -> Output:
            found = found_in(output, module, name)
            if name not in straight or runs[name]:
                return found.copied()
            write(straight[name], found.values)
            return WRITTEN

        straight: dict[str, Layer] = {}  # layers whose numbers need not wait for what others give
        with left_as_found(model, data), hooks(modules, keep) as runs, track("capture", total) as advance:
            for batch in batches:
                ids = row_ids(batch)
                run(model, moved(batch, device), forward)
                given = {layer.name: joined(runs[layer.name], layer) for layer in lacking}
                for one in runs.values():
                    one.clear()
                if not writers:
                    for layer in reversed(lacking):  # contexts end last in, first out: layers arrive in their order
                        name, found = layer.name, given[layer.name]
                        axes[name] = axes_of(found, layer, len(ids))
                        writers[name] = commits.enter_context(writer_for(layer, axes[name]))
                        writers[name].id_kind = "inputs"
                waiting = {name: one for name, one in given.items() if one is not WRITTEN}
                for layer in lacking:
                    if layer.name in waiting:
                        _check_rows(waiting[layer.name].values.shape, axes[layer.name], len(ids), layer)
                values = tokens.padded(batch, waiting, axes, len(ids))
                shapes = shapes or {name: tuple(one.shape) for name, one in values.items()}
                for layer in lacking:
                    if layer.name in values:
                        write(layer, values.pop(layer.name))
                straight = {layer.name: layer for layer in lacking if "position" not in axes[layer.name]}
                del batch, given, waiting
                advance()
        if not writers:
            raise DsvccaError(
                f"data ({type(data).__name__}) gave no batch, the store has {store.datapoints} datapoints: give all "
                "of them (a generator that was used up gives nothing)"
            )
        tokens.commit()


def checked_layers(model: nn.Module, layers: Any) -> list[Layer]:
    """Return the layers that are asked for, after looking for all of them in the model.

    Raises
    ------
    DsvccaError
        For modules that are not there, named twice, or of TorchScript.
    """
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise DsvccaError(f"layers={layers!r} is a {type(layers).__name__}: pass a list of module names, or a mapping")
    wanted: dict[str, Dims | None] = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(layers)
    every = named_layers(model)
    known = list(dict.fromkeys(plain for plain, _ in every.values()))
    if not wanted:
        raise DsvccaError(f"layers is empty, the model has {len(known)} modules: {nearest('', known)}")
    found: dict[str, Layer] = {}
    for name, dims in wanted.items():
        if name not in every:
            raise DsvccaError(
                f"the model ({type(unwrapped(model)).__name__}) has no module {name!r}: {nearest(name, known)}"
            )
        if dims is not None:
            checked_dims(dims, (1,) * len(dims), f"layer {name!r}")
        plain, module = every[name]
        if plain in found:
            raise DsvccaError(f"layer {plain!r} is named twice, once by the name of a wrapper: name it once")
        if isinstance(module, torch.jit.ScriptModule):
            raise DsvccaError(
                f"layer {name!r} is TorchScript, which calls no hooks: capture the model from which it was made"
            )
        found[plain] = Layer(plain, module, dims)
    return list(found.values())


def check_options(data: Any, store: Any, positions: Any, labels: Mapping[str, Label]) -> None:
    """Refuse what cannot be captured whatever the model is.

    Raises
    ------
    DsvccaError
        For what is no store, no batches or batches in random order, no number of positions, labels that `layers` says.
    """
    if not isinstance(store, Store):
        raise DsvccaError(f"a {type(store).__name__} was given instead of a store: create_store(path, ...) first")
    _check_order(data)
    if positions is not None and (not isinstance(positions, int) or positions < 1):
        raise DsvccaError(f"positions={positions!r}: give the number of positions that all sequences get")
    if "layer" in labels:
        raise DsvccaError(f"label layer={labels['layer']!r} was given: leave it out, layers are named by `layers`")
    if "dims" in labels:
        raise DsvccaError("dims= is not taken here: spell axes with the layers, layers={'conv1': 'nchw', 'fc1': None}")


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


def _check_rows(shape: Sequence[int], dims: tuple[str, ...], rows: int, layer: Layer) -> None:
    """Raise unless the axis of datapoints is as long as the batch."""
    axis = dims.index("datapoint")
    if len(shape) != len(dims) or shape[axis] != rows:
        turned = len(shape) == 3 and axis == 0 and shape[1] == rows
        raise DsvccaError(
            f"{layer} gives {tuple(shape)} for a batch of {rows} datapoints, where axis {axis} of {dims} should have "
            f"{rows}: nothing was written; "
            + (f"pass layers={{{layer.name!r}: 'tnd'}}" if turned else "capture a module that keeps datapoints apart")
        )


def _check_shape(
    shape: tuple[int, ...], first: tuple[int, ...], dims: tuple[str, ...], rows: int, layer: Layer
) -> None:
    """Raise unless a batch is like the first one but for its number of datapoints."""
    _check_rows(shape, dims, rows, layer)
    axes = [(dim, size, before) for dim, size, before in zip(dims, shape, first, strict=True) if dim != "datapoint"]
    changed = [dim for dim, size, before in axes if size != before]
    if changed:
        raise DsvccaError(
            f"{layer} gives {shape} for one batch and gave {first} for the first ({', '.join(changed)} changed): "
            "nothing was written; " + (ONE_LENGTH if changed == ["position"] else "bring all inputs to one size")
        )
