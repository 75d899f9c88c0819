"""Running a model of somebody else's: what is inside its wrappers, what it gives, and all as it was afterwards."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from itertools import chain
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader

from dsvcca.errors import DsvccaError, nearest

Kept = TypeVar("Kept")

Forward = Callable[[Any, Any], Any]
"""What runs a model on a batch, where calling it is not enough."""

SHARDED = {"DTensor", "FSDPModule", "FullyShardedDataParallel"}
"""Classes of parameters and modules of which a process has a part only; by name, as importing them takes a while."""

ONE_AT_A_TIME = threading.RLock()
"""Random numbers and switches belong to the process: two threads would leave what the other has set."""


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel and what torch.compile returns.

    >>> unwrapped(nn.DataParallel(nn.Linear(3, 2)))
    Linear(in_features=3, out_features=2, bias=True)
    """
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def named_layers(model: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """Return the modules of a model by name, each with its plain name: the one without wrappers.

    Names with the prefixes of wrappers (``module.``, ``_orig_mod.``) are there too, wherever the wrappers are.

    >>> {name: plain for name, (plain, _) in named_layers(nn.DataParallel(nn.Sequential(nn.Tanh()))).items()}
    {'module.0': '0', '0': '0'}
    """
    found: dict[str, tuple[str, nn.Module]] = {}
    plain_names: dict[str, nn.Module] = {}
    outer: nn.Module | None = model
    while outer is not None:
        every = dict(outer.named_modules(remove_duplicate=False))
        wrappers = {name for name, module in every.items() if _inside(module) is not None}
        for name, module in every.items():
            parts = name.split(".")
            plain = ".".join(part for i, part in enumerate(parts) if ".".join(parts[:i]) not in wrappers)
            if plain and name not in wrappers:
                found.setdefault(name, (plain, module))
                plain_names[plain] = module
        outer = _inside(outer)
    for plain, module in plain_names.items():
        found.setdefault(plain, (plain, module))
    return found


def module_named(model: nn.Module, name: str) -> nn.Module:
    """Return a module of a model by the name that ``model.named_modules()`` gives it."""
    known: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    known.pop("")
    if name not in known:
        raise DsvccaError(f"the model ({type(model).__name__}) has no module {name!r}: {nearest(name, known)}")
    return known[name]


def _inside(module: nn.Module) -> nn.Module | None:
    """Return what a wrapper wraps; None for any other module."""
    if isinstance(module, (nn.DataParallel, DistributedDataParallel)):
        inner: nn.Module = module.module
        return inner
    children = dict(module.named_children())
    return children.get("_orig_mod")  # of torch.compile, whose class is private


def check_runnable(model: nn.Module) -> None:
    """Raise where a model cannot be run here by itself: parameters that are sharded, not initialised or not there."""
    for name, module in model.named_modules():
        own = {**dict(module.named_parameters(name, recurse=False)), **dict(module.named_buffers(name, recurse=False))}
        kinds = {kind.__name__ for one in (module, *own.values()) for kind in type(one).__mro__}
        if kinds & SHARDED:
            raise DsvccaError(
                f"{f'module {name!r}' if name else 'the model'} is sharded (FSDP), so no process has all of its "
                "parameters: gather them, torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
                "options=StateDictOptions(full_state_dict=True)), load them into a plain model on one rank, and "
                "capture that"
            )
        for whose, one in own.items():
            if is_lazy(one):
                raise DsvccaError(
                    f"{whose!r} has no shape yet ({type(module).__name__} takes it from the first batch): run the "
                    "model on one batch, then capture"
                )
            if one.is_meta and not hasattr(module, "_hf_hook"):  # those of accelerate load it when they run
                raise DsvccaError(
                    f"{whose!r} is on the meta device, which holds no numbers: load the parameters, then capture"
                )


def device_of(model: nn.Module) -> torch.device | None:
    """Return the device of the first parameter or buffer that has numbers; None where there is none."""
    return next((one.device for one in chain(model.parameters(), model.buffers()) if not one.is_meta), None)


@contextmanager
def left_as_found(model: nn.Module, data: Any = None) -> Iterator[None]:
    """Evaluate without gradients; leave the mode of every module and all random numbers as they were.

    Modules are switched one by one, not by `train` and `eval`, which some of them override to change their parameters.
    What was compiled runs as it was written, since compiled code may not call hooks, and transformer layers run without
    the fused path that they take where nothing is hooked. Not in inference mode: what a module keeps from such a run
    could not be trained on later. Threads wait for one another.

    Parameters
    ----------
    model : torch.nn.Module
    data : DataLoader, optional
        Its generator is left as it was too; other data have none.
    """
    with ONE_AT_A_TIME, ExitStack() as back:
        modes = [(module, module.training) for module in model.modules()]
        back.enter_context(random_numbers_kept(model))
        if isinstance(data, DataLoader) and data.generator is not None:  # it draws a seed for its workers
            back.callback(data.generator.set_state, data.generator.get_state())
        back.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        # Copies in half precision that autocast keeps from here would have no gradient afterwards.
        back.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(False)
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it takes a while
            back.enter_context(torch.compiler.set_stance("force_eager"))
        back.enter_context(torch.no_grad())
        for module, training in modes:
            back.callback(setattr, module, "training", training)
            module.training = False
        yield


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
def hooks(
    modules: Mapping[str, nn.Module], keep: Callable[[Any, nn.Module, str], Kept]
) -> Iterator[dict[str, list[Kept]]]:
    """Collect what modules give, by name, one entry a run, while the context lasts.

    What is kept is ``keep(output, module, name)``: a copy, where modules that run later may work in place.
    """
    outputs: dict[str, list[Kept]] = {name: [] for name in modules}

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs[name].append(keep(output, module, name))

        return hook

    with ExitStack() as handles:
        for name, module in modules.items():
            handles.callback(module.register_forward_hook(hook_for(name)).remove)
        yield outputs


def run(model: nn.Module, batch: Any, forward: Forward | None = None) -> Any:
    """Return what the model gives for one batch."""
    if forward is not None:
        return forward(model, batch)
    inputs = inputs_of(batch)
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def inputs_of(batch: Any) -> Any:
    """Return what a model takes of a batch: the first of a tuple or list, else all of it."""
    several = isinstance(batch, (tuple, list)) and not isinstance(batch, PackedSequence)
    return batch[0] if several and batch else batch


def moved(batch: Any, device: torch.device | None) -> Any:
    """Return a batch with all its tensors on `device`; the batch as it is if that is None."""
    if device is None:
        return batch
    if isinstance(batch, (torch.Tensor, PackedSequence)):
        return cast(Any, batch).to(device)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        parts = [moved(value, device) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model.

    Raises
    ------
    DsvccaError
        If it cannot be copied.
    """
    try:
        return deepcopy(model)
    except Exception as error:  # whatever a part of the model raises
        raise DsvccaError(
            f"the model ({type(model).__name__}) cannot be copied ({type(error).__name__}: {error}), and this works on "
            "a copy: make copy.deepcopy(model) work"
        ) from error
