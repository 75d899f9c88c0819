"""Running a model that is not to notice: what its modules give, by hooks, and everything else as it was."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from dsvcca.arrays import NumpyArray
from dsvcca.errors import DsvccaError


@contextmanager
def left_as_found(model: nn.Module, data: Any = None) -> Iterator[None]:
    """Evaluate without gradients; leave the mode of every module and all random numbers as they were.

    Not in inference mode: what a module keeps from such a run could not be trained on later.
    """
    modes = [(module, module.training) for module in model.modules()]
    generator = data.generator if isinstance(data, DataLoader) else None  # it draws a seed for its workers
    drawn = None if generator is None else generator.get_state()
    try:
        with random_numbers_kept(model), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, training in modes:
            if module.training != training:
                module.training = training
        if generator is not None and drawn is not None:
            generator.set_state(drawn)


@contextmanager
def random_numbers_kept(model: nn.Module) -> Iterator[None]:
    """Leave all random number generators, those of the devices of a model too, as they were."""
    tensors = chain(model.parameters(), model.buffers())
    devices = sorted({one.device.index for one in tensors if one.device.type == "cuda"})
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


@contextmanager
def outputs_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[NumpyArray]]]:
    """Collect copies of what modules give, by name, while the context lasts."""
    outputs: dict[str, list[NumpyArray]] = {name: [] for name in modules}

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            again = bool(outputs[name])  # an error anyway: only the count matters
            outputs[name].append(np.empty(0) if again else _copied(output, module, name))

        return hook

    with ExitStack() as handles:
        for name, module in modules.items():
            handles.callback(module.register_forward_hook(hook_for(name)).remove)
        yield outputs


def _copied(output: Any, module: nn.Module, name: str) -> NumpyArray:
    """Return the tensor in the output of a module as an array of its own: modules after it may work in place."""
    what = f"layer {name!r} ({type(module).__name__}) gives"
    found: Any = output
    if dataclasses.is_dataclass(output) and not isinstance(output, (type, Mapping)):
        found = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    if isinstance(found, Mapping):
        found = [found["last_hidden_state"]] if "last_hidden_state" in found else list(found.values())
    if isinstance(found, (tuple, list)):
        found = next((one for one in found if isinstance(one, torch.Tensor)), None)
    if not isinstance(found, torch.Tensor):
        raise DsvccaError(
            f"{what} a {type(output).__name__} that holds no tensor: name a module that gives a tensor, or a "
            "tuple, list or dict with one"
        )
    if found.layout != torch.strided or found.is_nested or found.is_quantized:
        form = "nested" if found.is_nested else "quantized" if found.is_quantized else str(found.layout)
        raise DsvccaError(f"{what} a tensor that is {form}: name a module that gives ordinary numbers")
    own = found.detach().to("cpu", copy=True)
    if own.is_floating_point() and own.dtype not in (torch.float16, torch.float32, torch.float64):
        own = own.to(torch.float32)  # bfloat16 and shorter, which NumPy does not have: exact
    return np.asarray(own.numpy(force=True))


def run(model: nn.Module, batch: Any, forward: Callable[[Any, Any], Any] | None) -> None:
    """Call the model with one batch; what it returns is not needed."""
    if forward is not None:
        forward(model, batch)
        return
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    if isinstance(inputs, Mapping):
        model(**inputs)
    else:
        model(inputs)


def moved(batch: Any, device: torch.device | None) -> Any:
    """Return a batch with all its tensors on `device`, as they are if it is None."""
    if isinstance(batch, torch.Tensor):
        return batch if device is None else batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        values = [moved(value, device) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch
