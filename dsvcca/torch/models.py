"""What is done with any model: its modules by name, one batch through it, and leaving it as it was found."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from dsvcca.errors import DsvccaError, nearest


def module_named(model: nn.Module, name: str) -> nn.Module:
    """Return a module of a model by the name that ``model.named_modules()`` gives it."""
    known: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    known.pop("")
    if name not in known:
        raise DsvccaError(f"the model ({type(model).__name__}) has no module {name!r}: {nearest(name, known)}")
    return known[name]


def device_of(model: nn.Module) -> torch.device | None:
    """Return the device of the first parameter of a model, None if it has none."""
    first = next(model.parameters(), None)
    return None if first is None else first.device


@contextmanager
def left_as_found(model: nn.Module, data: Any = None) -> Iterator[None]:
    """Evaluate without gradients; leave the mode of every module and all random numbers as they were.

    Not in inference mode: what a module keeps from such a run could not be trained on later.
    """
    modes = [(module, module.training) for module in model.modules()]
    tensors = chain(model.parameters(), model.buffers())
    devices = sorted({one.device.index for one in tensors if one.device.type == "cuda"})
    generator = data.generator if isinstance(data, DataLoader) else None  # it draws a seed for its workers
    drawn = None if generator is None else generator.get_state()
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, training in modes:
            if module.training != training:
                module.training = training
        random.setstate(python)
        np.random.set_state(legacy)
        if generator is not None and drawn is not None:
            generator.set_state(drawn)


def run(model: nn.Module, batch: Any, forward: Callable[[Any, Any], Any] | None) -> Any:
    """Return what the model gives for one batch: a tensor, a tuple or list that begins with one, or a dict."""
    if forward is not None:
        return forward(model, batch)
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def moved(batch: Any, device: torch.device | None) -> Any:
    """Return a batch with all its tensors on `device`, as they are if it is None."""
    if isinstance(batch, torch.Tensor):
        return batch if device is None else batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        there = [moved(value, device) for value in batch]
        return type(batch)(*there) if hasattr(batch, "_fields") else type(batch)(there)
    return batch
