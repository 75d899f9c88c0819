"""Floating point operations of a forward and a backward pass, as autograd does them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dsvcca.errors import DsvccaError
from dsvcca.torch.outputs import tensors_in
from dsvcca.torch.running import random_numbers_kept


def flops_of_training(
    model: nn.Module, trained: Sequence[Collection[str]], inputs: Sequence[Any], named: Mapping[str, Any]
) -> list[tuple[int, int]]:
    """Return the operations of a forward and a backward pass for each set of parameters that are trained.

    Counted, on a copy of the model in training mode, are matrix products, convolutions and attention, two operations a
    multiplication with its addition; the backward pass is that of the sum of all outputs.

    Raises
    ------
    DsvccaError
        If the model cannot be copied.
    """
    from torch.utils.flop_counter import FlopCounterMode  # takes half a second, which captures need not wait for

    copy = copied(model)
    parameters = dict(copy.named_parameters(remove_duplicate=False))
    copy.train()
    found = []
    with random_numbers_kept(copy), torch.enable_grad(), not_fused():
        for names in trained:
            copy.requires_grad_(False)
            for name in names:
                parameters[name].requires_grad_(True)
            with FlopCounterMode(display=False) as forward:
                outputs = [one for one in tensors_in(copy(*inputs, **named)) if one.requires_grad]
            with FlopCounterMode(display=False) as backward:
                if outputs:
                    torch.autograd.backward(outputs, [torch.ones_like(one) for one in outputs])
            found.append((forward.get_total_flops(), backward.get_total_flops()))
    return found


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


@contextmanager
def not_fused() -> Iterator[None]:
    """Let attention and recurrent layers run as the products that they are: fused ones are not all counted."""
    libraries: list[Any] = [torch.backends.mkldnn, torch.backends.cudnn]
    enabled = [one.enabled for one in libraries]
    try:
        for one in libraries:
            one.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for one, value in zip(libraries, enabled, strict=True):
            one.enabled = value
