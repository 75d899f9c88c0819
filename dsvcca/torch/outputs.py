"""What a module gave for one batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from dsvcca.activations.labels import checked_dims
from dsvcca.errors import DsvccaError

Dims = str | Sequence[str]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module that is captured, under its name without wrappers, and the axes that were given for what it gives."""

    name: str
    module: nn.Module
    dims: Dims | None = None

    def __str__(self) -> str:
        return f"layer {self.name!r} ({type(self.module).__name__})"


@dataclasses.dataclass(frozen=True)
class Output:
    """What a module gave in one run, or in all of its runs for a batch.

    Attributes
    ----------
    values : torch.Tensor
    lengths : torch.Tensor or None
        Tokens of each sequence, where they were packed; `values` are (datapoint, position, neuron) then.
    """

    values: torch.Tensor
    lengths: torch.Tensor | None = None

    def copied(self) -> Output:
        """Return the same on the CPU, in memory of its own: modules that run later may work in place."""
        return Output(self.values.to("cpu", copy=True), self.lengths)


def tensors_in(given: Any) -> Iterator[torch.Tensor]:
    """Yield all tensors in what a model or module takes or gives."""
    if isinstance(given, torch.Tensor):
        yield given
    elif isinstance(given, Mapping):
        for one in given.values():
            yield from tensors_in(one)
    elif isinstance(given, (tuple, list)):
        for one in given:
            yield from tensors_in(one)
    elif dataclasses.is_dataclass(given) and not isinstance(given, type):
        yield from tensors_in(vars(given))


def found_in(output: Any, module: nn.Module, name: str) -> Output:
    """Return the first tensor, or the first packed sequences, in what a module gave.

    Of dicts and dataclasses the entry `last_hidden_state` goes first. Packed sequences are padded with zeros, in the
    order in which the datapoints came; floats of 8 bits become float32, which is exact.

    Raises
    ------
    DsvccaError
        If there is none, or it is of another kind than ordinary numbers.
    """
    what = f"layer {name!r} ({type(module).__name__}) gives"
    found: Any = output
    if dataclasses.is_dataclass(output) and not isinstance(output, (type, Mapping)):
        found = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    if isinstance(found, Mapping):
        found = [found["last_hidden_state"]] if "last_hidden_state" in found else list(found.values())
    if isinstance(found, (tuple, list)) and not isinstance(found, PackedSequence):
        found = next((one for one in found if isinstance(one, (torch.Tensor, PackedSequence))), None)
    if isinstance(found, PackedSequence):
        if found.data.ndim != 2:
            raise DsvccaError(
                f"{what} packed sequences whose positions hold {tuple(found.data.shape[1:])} numbers: capture a module "
                "that gives a row of neurons for each position"
            )
        return Output(*pad_packed_sequence(found, batch_first=True))
    if not isinstance(found, torch.Tensor):
        raise DsvccaError(
            f"{what} a {type(output).__name__} that holds no tensor: capture a module that gives a tensor, or a "
            "tuple, list or dict with one"
        )
    if found.layout != torch.strided or found.is_nested or found.is_quantized:
        form = "nested" if found.is_nested else "quantized" if found.is_quantized else str(found.layout)
        raise DsvccaError(f"{what} a tensor that is {form}: capture a module that gives ordinary numbers")
    found = found.detach()
    short = found.is_floating_point() and found.itemsize == 1
    return Output(found.to(torch.float32) if short else found.resolve_conj().resolve_neg())


def joined(runs: Sequence[Output], layer: Layer) -> Output:
    """Return what a layer gave in all its runs for one batch.

    Where its dims name a position that the outputs do not have, each run is one position of a sequence.

    Raises
    ------
    DsvccaError
        If it did not run, or ran several times and that is not what its dims say.
    """
    if not runs:
        raise DsvccaError(
            f"layer {layer.name!r} did not run when the model did: nothing was written; leave such layers out, or call "
            "the model with forward= so that they run"
        )
    shapes = list(dict.fromkeys(tuple(one.values.shape) for one in runs))
    dims = checked_dims(layer.dims, (1,) * len(layer.dims), str(layer)) if layer.dims else ()
    if "position" in dims and len(dims) == len(shapes[0]) + 1:
        if len(shapes) > 1:
            raise DsvccaError(
                f"{layer} gives {shapes[0]} in one run and {shapes[1]} in another for one batch: every run has to give "
                "one position of all datapoints"
            )
        return Output(torch.stack([one.values for one in runs], dim=dims.index("position")))
    if len(runs) > 1:
        spelled = "'tnd'" if len(shapes[0]) == 2 else "('position', 'datapoint', ...)"
        raise DsvccaError(
            f"layer {layer.name!r} ran {len(runs)} times for one batch, so it has no one output: nothing was written; "
            f"if each run is one position of a sequence, pass layers={{{layer.name!r}: {spelled}}}, else capture "
            "modules that run once"
        )
    return runs[0]


def tensor_of(output: Any, module: nn.Module, name: str) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
    """Return the tensor in an output, of a tuple or list the first, and what puts another in its place."""
    what = f"layer {name!r} ({type(module).__name__}) gives"
    several = isinstance(output, (tuple, list)) and bool(output)
    first = output[0] if several else output
    if not isinstance(first, torch.Tensor) or not first.is_floating_point() or first.layout != torch.strided:
        kind = (
            f"a {type(output).__name__}" if first is not output or not isinstance(first, torch.Tensor) else first.dtype
        )
        raise DsvccaError(
            f"{what} {kind}, not a tensor of floating point numbers or a tuple that begins with one: name a module "
            "that does"
        )
    if not several:
        return first, lambda tensor: tensor
    alike = [one for one in output[1:] if isinstance(one, torch.Tensor) and one.shape == first.shape]
    if alike and not isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        raise DsvccaError(
            f"{what} {len(alike) + 1} tensors of the shape {tuple(first.shape)}, and which of them is meant cannot be "
            "told: name a module that gives one"
        )

    def packed(tensor: torch.Tensor) -> Any:
        rest = (tensor, *output[1:])
        return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)

    return first, packed
