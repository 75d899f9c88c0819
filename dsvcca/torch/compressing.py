"""Compress: a network whose layers go on through a few directions alone (Raghu et al. 2017, section 4.4)."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn

from dsvcca.activations.labels import COLUMNS
from dsvcca.errors import DsvccaError, DsvccaWarning
from dsvcca.maths.arrays import like, to_numpy
from dsvcca.maths.cca import CanonicalCorrelations
from dsvcca.torch.axes import told_dims
from dsvcca.torch.narrow import CONVOLUTIONS, Narrow, Subspace, narrow_convolution, narrow_linear
from dsvcca.torch.outputs import tensor_of, tensors_in
from dsvcca.torch.restrict import affine, along, changed, is_count, of_side
from dsvcca.torch.running import Forward, copied, device_of, left_as_found, module_named, moved, run

PASSING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Flatten, nn.Identity, nn.Unflatten)
"""Modules that give in evaluation what they take."""


def compress(
    model: nn.Module,
    directions: Mapping[str, CanonicalCorrelations | tuple[CanonicalCorrelations, int]],
    /,
    *,
    example: Any,
    side: str = "x",
    bias_fix: bool = True,
    forward: Forward | None = None,
) -> nn.Module:
    """Return a copy of a model in which some layers are held to the span of a few directions, and take fewer numbers.

    Every linear layer or convolution that takes the output x of such a layer, W x + b, is replaced by two smaller ones:
    (W P^T) (P x) + b + W (I - P^T P) mean, P orthonormal rows (`CanonicalCorrelations.compress`; Raghu et al. 2017,
    section 4.4). Convolutions, and linear layers after flattened maps, take every position so. Nothing is trained; the
    copy can be.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it was found.
    directions : mapping from str to CanonicalCorrelations, or to (CanonicalCorrelations, k)
        For each layer, by its name in ``model.named_modules()``, what `cca` or `dsvcca.directions` found of its
        activations, and how many of the directions to keep; by default those that have a partner
        (``len(found.correlations)``).
    example : batch
        A few datapoints as a batch of `capture`: run to see which modules take the output of a layer as it is, and that
        nothing else uses it.
    side : {"x", "y"}, default "x"
        Which activations in what was found are those of this model.
    bias_fix : bool, default True
        Whether what the mean has outside of the span is kept, in the biases (of convolutions that pad with zeros: in a
        further channel of ones). If not, layers become W P^T (P x) + b, as in the paper.
    forward : callable, optional
        ``forward(model, batch)`` where the model has to be called in another way.

    Returns
    -------
    torch.nn.Module
        New parameters have the type and device of those that they replace, and are computed in float64.

    Raises
    ------
    DsvccaError
        If directions do not fit a layer, a layer runs twice or not at all, something else takes what it gives than
        plain `torch.nn.Linear` and convolutions (groups=1), or the copy gives something else on the example than the
        model with this layer restricted, or nothing by which that could be seen; and if the model cannot be copied.

    Warns
    -----
    DsvccaWarning
        Where the new layers have no fewer parameters: k < p q / (p + q) directions of p neurons are needed for q
        outputs.
    """
    if not isinstance(directions, Mapping) or not directions:
        raise DsvccaError(f"directions={directions!r}: give {{layer: found}} or {{layer: (found, k)}}")
    subspaces = {name: _subspace(name, one, side, bias_fix) for name, one in directions.items()}
    for name in subspaces:
        module_named(model, name)
    small = copied(model)
    batch = moved(example, device_of(model))
    for name, subspace in subspaces.items():
        _compress_one(small, name, subspace, batch, forward)
    return small


def _subspace(name: str, given: Any, side: str, bias_fix: bool) -> Subspace:
    found, k = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    found = of_side(found, side)
    if k is None:
        k = found.correlations.shape[0]
    if not is_count(k, 1, found.x_rank):
        raise DsvccaError(
            f"layer {name!r}, k={k!r}: {found.x_rank} directions of {side} are kept, use 1 to {found.x_rank}"
        )
    p = found.x_mean.shape[0]
    reduction, _, offset = map(to_numpy, found.compress(like(np.eye(p), found.x_mean), None, int(k)))
    return Subspace(reduction, offset if bias_fix else np.zeros(p))


@dataclass
class _Seen:
    """What a run of a model shows of one layer: its output, who took it and in which shape, what ran after it."""

    output: torch.Tensor | None = None
    takers: dict[str, torch.Size] = field(default_factory=dict)
    after: list[str] = field(default_factory=list)
    runs: Counter[str] = field(default_factory=Counter)


def _compress_one(model: nn.Module, layer: str, subspace: Subspace, batch: Any, forward: Forward | None) -> None:
    """Replace, in a model of our own, all that takes the output of a layer, and check that nothing else does."""
    k, p = subspace.reduction.shape
    seen = _watch(model, layer, batch, forward)
    output, takers = _takers(model, layer, seen, p)
    axes = {_axis(model, layer, name, output, shape, p) for name, shape in takers.items()}
    if len(axes) > 1:
        raise DsvccaError(
            f"layer {layer!r} gives {tuple(output.shape)}, and {', '.join(map(repr, takers))} take different axes "
            "of it as neurons: compress another layer"
        )
    axis = axes.pop()
    held = affine(subspace.offset, subspace.reduction.T, subspace.reduction)
    with left_as_found(model), changed(model, layer, lambda tensor, _: along(held, tensor, axis)):
        expected = list(_floats(run(model, batch, forward)))
    for name in takers:
        old = module_named(model, name)
        before = _parameters(model)
        _replace(model, old, _narrowed(old, subspace, output, axis))
        if _parameters(model) >= before:
            warnings.warn(
                f"with the {k} directions of {layer!r} in place of its {p} neurons, which {name!r} takes, the model "
                f"has {_parameters(model)} parameters instead of {before}: a linear layer of p inputs and q outputs "
                "becomes smaller if k < p q / (p + q), and one that shares its weights with another does not",
                DsvccaWarning,
                stacklevel=3,
            )
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        with left_as_found(model):
            torch.backends.mha.set_fastpath_enabled(fused)  # as the copy will be run
            found = list(_floats(run(model, batch, forward)))
    except AttributeError as error:  # it ran before
        raise DsvccaError(
            f"the model does not only call {', '.join(map(repr, takers))}, which would be written in two ({error}): "
            "compress another layer; torch's own transformers call their layers in evaluation only after "
            "torch.backends.mha.set_fastpath_enabled(False)"
        ) from error
    _check_same(layer, list(takers), expected, found)


def _watch(model: nn.Module, layer: str, batch: Any, forward: Forward | None) -> _Seen:
    """Run a model and see which modules take what a layer gives, bit for bit, whatever its shape then is."""
    seen = _Seen()
    watched = module_named(model, layer)

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if seen.output is not None:
            raise DsvccaError(
                f"layer {layer!r} ({type(module).__name__}) ran twice in one run of the model, so it has no one "
                "output: compress after a module that runs once"
            )
        seen.output = tensor_of(output, module, layer)[0].clone()  # what follows may work in place

    def look_as(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, named: Any) -> None:
            seen.runs[name] += 1
            if seen.output is None:
                return
            if not list(module.children()):
                seen.after.append(name)
            for one in _floats((inputs, named)):
                if _same_numbers(one, seen.output):
                    seen.takers[name] = one.shape

        return look

    with ExitStack() as handles:
        handles.callback(watched.register_forward_hook(keep).remove)
        for name, module in model.named_modules():
            handles.callback(module.register_forward_pre_hook(look_as(name), with_kwargs=True).remove)
        with left_as_found(model):
            run(model, batch, forward)
    return seen


def _same_numbers(a: torch.Tensor, b: torch.Tensor) -> bool:
    same = a.layout == b.layout and a.dtype == b.dtype and a.device == b.device and a.numel() == b.numel()
    return same and torch.equal(a.reshape(-1), b.reshape(-1))


def _takers(model: nn.Module, layer: str, seen: _Seen, p: int) -> tuple[torch.Tensor, dict[str, torch.Size]]:
    """Return the output of a layer, and the shape in which each linear module took it, after checking who did."""
    kind = type(module_named(model, layer)).__name__
    what = f"layer {layer!r} ({kind})"
    if seen.output is None:
        raise DsvccaError(f"{what} did not run when the model did: name a module that runs")
    if not seen.output.numel() or bool((seen.output == seen.output.reshape(-1)[0]).all()):
        raise DsvccaError(f"{what} gives one number only on the example: give a few different datapoints")
    if p not in seen.output.shape[1:]:
        raise DsvccaError(
            f"{what} gives {tuple(seen.output.shape)}, and {p} neurons were compared: give directions of this layer "
            "(those of flattened maps belong to the module that flattens them)"
        )
    if not bool(seen.output.isfinite().all()):
        raise DsvccaError(
            f"{what} gives NaN or infinite numbers on the example: give datapoints with which it does not"
        )
    inside = {parent for name in seen.takers for parent in _parents(name)}
    takers = {name: module_named(model, name) for name in seen.takers if name not in inside}
    takers = {name: module for name, module in takers.items() if not isinstance(module, PASSING)}
    wrong = [name for name, module in takers.items() if not _is_plain(module) or seen.runs[name] > 1]
    if wrong or not takers:
        raise DsvccaError(_what_to_compress(model, what, seen, wrong))
    return seen.output, {name: seen.takers[name] for name in takers}


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a linear layer that can be written in two, and does nothing beside."""
    if type(module) not in (nn.Linear, *CONVOLUTIONS) or getattr(module, "groups", 1) != 1:
        return False
    return not module._forward_pre_hooks and not module._forward_hooks


def _what_to_compress(model: nn.Module, what: str, seen: _Seen, wrong: list[str]) -> str:
    """Return the message where not only plain linear layers take an output: who does, and what to name instead."""
    modules = {name: module_named(model, name) for name in [*wrong, *seen.after]}
    said = {name: f"{name!r} ({type(module).__name__})" for name, module in modules.items()}
    plain = [i for i, name in enumerate(seen.after) if _is_plain(modules[name])]
    between = seen.after[: plain[0]] if plain else []
    instead = [name for name in between if not isinstance(modules[name], PASSING)] or between
    found = f"{what}: no module takes its output as it is"
    if wrong:
        takes = "takes" if len(wrong) == 1 else "take"
        found = f"{what}: {', '.join(said[name] for name in wrong)} {takes} its output, "
        found += "and only linear layers and convolutions (groups=1, no hooks) that run once can be written in two"
    if not plain:
        return f"{found}; no such layer runs after it: name a layer before one"
    linear = said[seen.after[plain[0]]]
    if not instead:
        return f"{found}; the next such layer is {linear}: name a module that gives what that one takes"
    return f"{found}; before {linear} come {', '.join(said[name] for name in between)}: name {instead[-1]!r} instead"


def _parents(name: str) -> list[str]:
    parts = name.split(".") if name else []
    return [".".join(parts[:i]) for i in range(len(parts))]


def _axis(model: nn.Module, layer: str, taker: str, output: torch.Tensor, taken: torch.Size, p: int) -> int:
    """Return the axis of an output whose p entries a linear layer takes as inputs, perhaps at many positions."""
    shape, module = output.shape, module_named(model, taker)
    told = told_dims(module_named(model, layer), (-1, *shape[1:]))
    if isinstance(module, nn.Linear) and module.in_features == p == shape[-1]:
        axes = [len(shape) - 1]
    elif isinstance(module, nn.Linear) and module.in_features == prod(shape[1:]) and len(taken) == 2:
        axes = sorted({i for i in (1, len(shape) - 1) if shape[i] == p})
    elif not isinstance(module, nn.Linear) and taken == shape and shape[1] == p:
        axes = [1]
    else:
        axes = []
    if told is not None:
        axes = [i for i in axes if told[i] in COLUMNS]
    if len(axes) != 1:
        raise DsvccaError(
            f"layer {layer!r} gives {tuple(shape)}, of which {taker!r} takes {tuple(taken)}: "
            + ("which axis has the neurons cannot be told" if axes else f"the {p} neurons are not what it sums over")
            + ", so name the module just before it"
        )
    return axes[0]


def _narrowed(old: nn.Module, subspace: Subspace, output: torch.Tensor, axis: int) -> Narrow:
    if not isinstance(old, nn.Linear):
        return narrow_convolution(old, subspace)
    positions = old.in_features // subspace.reduction.shape[1]
    return narrow_linear(old, subspace, positions=positions, last=axis == output.ndim - 1)


def _parameters(model: nn.Module) -> int:
    return sum(one.numel() for one in model.parameters())


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new)


def _check_same(layer: str, takers: list[str], expected: list[torch.Tensor], found: list[torch.Tensor]) -> None:
    """Raise where the compressed model gives something else than the one whose layer was restricted."""
    if not any(one.isfinite().any() for one in expected):
        raise DsvccaError(
            f"on the example the model gives no tensor of floating point numbers, by which {layer!r} in the copy could "
            "be checked: pass forward=, a function of the model and a batch that returns some, such as the logits"
        )
    for a, b in zip(expected, found, strict=True):
        a, b = a.detach(), b.detach()
        exact = a.dtype == torch.float64 or (a.dtype == torch.float32 and a.device.type == "cpu")
        tolerance = 1000 * torch.finfo(a.dtype).eps if exact else 0.03  # GPUs multiply float32 with fewer bits
        ordinary = a.isfinite()
        far = _largest(a[ordinary] - b[ordinary])
        others_alike = bool(a[~ordinary].isclose(b[~ordinary], equal_nan=True).all())
        if not (others_alike and far <= tolerance * _largest(a[ordinary])):
            raise DsvccaError(
                f"layer {layer!r} goes to more than {', '.join(map(repr, takers))}: with them alone the outputs of the "
                f"example are {far:.2g} away from those of the restricted layer; a function or a sum (of a residual "
                "network) uses it as well: name a module that gives the sum, or one inside of the branch"
            )


def _largest(numbers: torch.Tensor) -> float:
    return float(numbers.abs().max()) if numbers.numel() else 0.0


def _floats(given: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of floating point numbers in what a model or module takes or gives."""
    return (one for one in tensors_in(given) if one.is_floating_point())
