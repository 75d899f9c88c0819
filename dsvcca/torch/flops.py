"""What a model costs: parameters, and floating point operations of a forward and a backward pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dsvcca.torch.outputs import tensors_in
from dsvcca.torch.running import Forward, copied, device_of, left_as_found, moved, random_numbers_kept, run


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


class Cost(NamedTuple):
    """Parameters of a model, shared ones once, and multiply-adds of one batch."""

    parameters: int
    multiply_adds: int


def cost(model: nn.Module, example: Any, /, *, forward: Forward | None = None) -> Cost:
    """Return how large a model is and what one batch costs: matrix products, convolutions and attention.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it was found.
    example : batch
        As for `compress`; multiply-adds are those of all its datapoints.
    forward : callable, optional
        As for `compress`.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with left_as_found(model), not_fused(), FlopCounterMode(display=False) as counter:
        run(model, moved(example, device_of(model)), forward)
    return Cost(sum(one.numel() for one in model.parameters()), counter.get_total_flops() // 2)


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
