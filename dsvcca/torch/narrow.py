"""Narrow: a linear or convolutional layer in two smaller ones, for inputs held to a subspace (Raghu et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import skip_init

from dsvcca.maths.arrays import NumpyArray

CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Narrow(nn.Sequential):
    """What stands in a compressed network for a layer that took p neurons: first k numbers of them, then the rest."""


@dataclass(frozen=True)
class Subspace:
    """Neurons x held to a subspace: reduction^T reduction x + offset.

    Attributes
    ----------
    reduction : (k, p) float64
        Orthonormal rows, P.
    offset : (p,) float64
        Orthogonal to them: (I - P^T P) mean, or zeros.
    """

    reduction: NumpyArray
    offset: NumpyArray


def narrow_linear(layer: nn.Linear, subspace: Subspace, *, positions: int = 1, last: bool = True) -> Narrow:
    """Return W x + b as (W P^T) (P x) + b + W offset.

    Parameters
    ----------
    layer : torch.nn.Linear
    subspace : Subspace
        Of p neurons.
    positions : int, default 1
        Positions that were flattened into the inputs of the layer, p x positions in all; each is reduced alike.
    last : bool, default True
        Whether neurons were the last axis before they were flattened; if not, the first.
    """
    k, p = subspace.reduction.shape
    weight = _float64(layer.weight).reshape((-1, positions, p) if last else (-1, p, positions))
    axis = 2 if last else 1
    new = np.tensordot(weight, subspace.reduction, (axis, 1))  # directions come last
    new = new if last else np.moveaxis(new, -1, 1)
    shift = np.tensordot(weight.sum(axis=1 if last else 2), subspace.offset, 1)
    parts: list[nn.Module]
    if positions == 1:
        parts = [_made(nn.Linear, layer, subspace.reduction, None, p, k)]
    elif last:
        reduced = _made(nn.Linear, layer, subspace.reduction, None, p, k)
        parts = [nn.Unflatten(1, (positions, p)), reduced, nn.Flatten()]
    else:
        reduced = _made(nn.Conv1d, layer, subspace.reduction[:, :, None], None, p, k, 1)
        parts = [nn.Unflatten(1, (p, positions)), reduced, nn.Flatten()]
    inputs, outputs = k * positions, len(weight)
    parts.append(_made(nn.Linear, layer, new.reshape(outputs, inputs), _bias(layer, shift), inputs, outputs))
    return Narrow(*parts).train(layer.training)


def narrow_convolution(layer: Any, subspace: Subspace) -> Narrow:
    """Return a convolution of p channels (groups=1) as one of 1 x 1 to k channels, then one that takes those.

    Where zeros are padded the offset is missing at the borders: it then goes through a channel of ones, the last.
    """
    k, p = subspace.reduction.shape
    weight = _float64(layer.weight)  # (outputs, p, *kernel)
    new = np.moveaxis(np.tensordot(weight, subspace.reduction, (1, 1)), -1, 1)
    offset = np.tensordot(weight, subspace.offset, (1, 0))  # (outputs, *kernel)
    reduction, constant, shift = subspace.reduction, None, offset.reshape(len(offset), -1).sum(axis=1)
    if _pads_zeros(layer) and np.any(subspace.offset):
        reduction = np.concatenate([reduction, np.zeros((1, p))])
        constant = np.eye(k + 1)[k]
        new = np.concatenate([new, offset[:, None]], axis=1)
        shift = np.zeros(len(offset))
    kind, ones = type(layer), (1,) * len(layer.kernel_size)
    small = _made(kind, layer, reduction.reshape(*reduction.shape, *ones), constant, p, len(reduction), 1)
    options = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    large = _made(kind, layer, new, _bias(layer, shift), len(reduction), len(weight), **options)
    return Narrow(small, large).train(layer.training)


def _pads_zeros(layer: Any) -> bool:
    if layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    return any(size > 1 for size in layer.kernel_size) if layer.padding == "same" else any(layer.padding)


def _bias(layer: Any, shift: NumpyArray) -> NumpyArray | None:
    """Return the bias of a layer, moved; None where it had none and needs none."""
    if layer.bias is None:
        return shift if np.any(shift) else None
    return _float64(layer.bias) + shift


def _made(
    kind: Any, like: Any, weight: NumpyArray, bias: NumpyArray | None, *sizes: int | Sequence[int], **options: Any
) -> nn.Module:
    """Return a layer with these parameters, of the type and on the device of another one, without random numbers."""
    place = {"device": like.weight.device, "dtype": like.weight.dtype}
    layer = skip_init(kind, *sizes, bias=bias is not None, **options, **place)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        if bias is not None:
            layer.bias.copy_(torch.from_numpy(bias))
    made: nn.Module = layer.requires_grad_(like.weight.requires_grad)
    return made


def _float64(parameter: torch.Tensor) -> NumpyArray:
    return np.asarray(parameter.detach().cpu().double().numpy())
