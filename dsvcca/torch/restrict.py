"""Restrict: run a network while one of its layers is held to a few directions, or to a few of its neurons.

Nothing is trained. What the network can do without the rest says what these directions are worth to it (Raghu et al.
2017, figure 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dsvcca.activations.labels import COLUMNS, checked_dims, to_datapoints_first
from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import Array, NumpyArray, namespace, to_numpy
from dsvcca.maths.cca import CanonicalCorrelations
from dsvcca.maths.dft import FrequencyCorrelations
from dsvcca.maths.in_memory import checked_array
from dsvcca.torch.axes import examples_of, told_dims
from dsvcca.torch.outputs import Dims, tensor_of
from dsvcca.torch.running import module_named

Change = Callable[[torch.Tensor], torch.Tensor]
"""From (..., p) to (..., p), in float32 or float64."""


@contextmanager
def project(
    model: nn.Module,
    layer: str,
    found: CanonicalCorrelations,
    /,
    *,
    k: int,
    neurons: int | None = None,
    side: str = "x",
    dims: Dims | None = None,
) -> Iterator[None]:
    """Let a layer give only what its k most correlated variates hold of it, while the context lasts.

    x becomes mean + (x - mean) W G, as `CanonicalCorrelations.project` has it: the least squares fit by those variates
    (Raghu et al. 2017, figure 2a). Contexts may be nested, over several layers or one. Gradients flow through it.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it was found; training or evaluating, on any device.
    layer : str
        A module as ``model.named_modules()`` names it, which runs once when the model does. Of a tuple the first
        tensor is changed, the others (the last state of a recurrent layer) stay.
    found : CanonicalCorrelations
        Made by `cca` or `directions` from activations of this layer. Neurons are its last axis, of maps the channels:
        every position is changed alike, by directions of the view "positions". Those of the view "flatten" change
        maps and sequences as a whole.
    k : int
        0 to the rank; 0 leaves the mean, all of them what the rank rule kept.
    neurons : int, optional
        Afterwards only so many neurons keep their values, those of which the k variates hold most
        (`CanonicalCorrelations.important_neurons`); all others are set to their mean (figure 2b).
    side : {"x", "y"}, default "x"
        Which activations of `found` are those of this layer.
    dims : str or tuple of str, optional
        Axes of its output, as `Store.write` spells them, where they cannot be told.

    Raises
    ------
    DsvccaError
        If the directions do not fit the layer, are complex, or fewer than k; if the layer did not run, ran twice, or
        gave no tensor of floating point numbers.
    """
    found = of_side(found, side)
    if not is_count(k, 0, found.x_rank):
        raise DsvccaError(f"k={k!r}: {found.x_rank} directions of {side} are kept, use 0 to {found.x_rank}")
    p = found.x_mean.shape[0]
    mean, into, back = to_numpy(found.x_mean), np.zeros((p, 0)), np.zeros((0, p))
    if k:
        w, g = map(to_numpy, found.leading(int(k)))
        into, r = np.linalg.qr(w)  # rounds in float32 as little as it can
        back = r @ g
    if neurons is not None and not is_count(neurons, 0, p):
        raise DsvccaError(f"neurons={neurons!r}: {side} has {p} of them, give how many keep their values, 0 to {p}")
    held = to_numpy(found.important_neurons(int(k))) if k else np.zeros(p)
    hold, keep = affine(mean, into, back), _keeping(np.argsort(-held, kind="stable")[:neurons], mean)
    with changed(model, layer, _over_neurons(lambda x: keep(hold(x)), p, layer, dims)):
        yield


@contextmanager
def keep_neurons(
    model: nn.Module,
    layer: str,
    neurons: Sequence[int] | NumpyArray,
    /,
    *,
    fill: float | npt.ArrayLike | Array,
    dims: Dims | None = None,
) -> Iterator[None]:
    """Let only some neurons of a layer keep their values, while the context lasts; the others are set to `fill`.

    The baselines of Raghu et al. 2017, figure 2a, "neuron aligned subspaces": random neurons, or those of
    `maximal_neurons`.

    Parameters
    ----------
    model, layer, dims
        As for `project`.
    neurons : sequence of int
        From 0, each once; none of them is a choice as well.
    fill : float or (p,)
        Of each neuron that is not kept: its mean (`x_mean` of what `cca` found), or 0, the projection on neurons as
        they are, which also takes their mean away.

    Raises
    ------
    DsvccaError
        If there are no such neurons, or as for `project`.
    """
    chosen = to_numpy(neurons)
    whole = chosen.dtype.kind in "iu" or not chosen.size
    if chosen.ndim != 1 or not whole or len(set(chosen.tolist())) < len(chosen) or np.any(chosen < 0):
        raise DsvccaError(f"neurons={neurons!r}: give the numbers of neurons, from 0, each of them once")
    values = to_numpy(fill)
    if values.ndim > 1 or values.dtype.kind not in "fiu" or not np.all(np.isfinite(values)):
        raise DsvccaError(
            f"fill has the type {values.dtype} and shape {values.shape}: give one finite number, or one for each neuron"
        )
    width = values.shape[0] if values.ndim else None
    with changed(model, layer, _over_neurons(_keeping(chosen.astype(int), values), width, layer, dims)):
        yield


def maximal_neurons(activations: Array, k: int) -> NumpyArray:
    """Return the k neurons of the largest mean absolute activation, largest first.

    Parameters
    ----------
    activations : (n, p) array of any array API library
        Maps as rows of positions, (n * height * width, channels).
    k : int
        0 to p.

    Examples
    --------
    >>> maximal_neurons(np.array([[1.0, -5.0, 0.0], [1.0, 5.0, 4.0]]), 2).tolist()
    [1, 2]
    """
    x = checked_array(activations, "activations")
    if not is_count(k, 0, x.shape[1]):
        raise DsvccaError(f"k={k!r}: there are {x.shape[1]} neurons, use 0 to {x.shape[1]}")
    xp = namespace(x)
    means = to_numpy(xp.mean(xp.abs(xp.astype(x, xp.float64)), axis=0))
    return np.argsort(-means, kind="stable")[:k]


def of_side(found: Any, side: str) -> CanonicalCorrelations:
    """Return what was found with the wanted side as x, after checking that it can be applied to a layer."""
    if isinstance(found, FrequencyCorrelations):
        raise DsvccaError(
            "directions by frequency are complex filters over whole maps: to restrict a layer take those of its "
            "channels, directions(store, x, y, view='positions') or cca() of (datapoints * positions, channels)"
        )
    if not isinstance(found, CanonicalCorrelations):
        raise DsvccaError(f"directions are a {type(found).__name__}: give what cca() or directions() returned")
    if side not in ("x", "y"):
        raise DsvccaError(f"side={side!r}: use 'x' or 'y', the activations of this layer in the comparison")
    if side == "x":
        return found
    names = [one.name for one in fields(found) if one.name[:2] in ("x_", "y_")]
    return replace(found, **{("y" if name[0] == "x" else "x") + name[1:]: getattr(found, name) for name in names})


def is_count(value: Any, least: int, most: int) -> bool:
    """Whether a value is a whole number between two."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(least <= value <= most)


def affine(center: NumpyArray, into: NumpyArray, back: NumpyArray) -> Change:
    """Return x -> center + (x - center) into back, for `into` (p, k) and `back` (k, p)."""

    def change(x: torch.Tensor) -> torch.Tensor:
        middle, first, second = (_like(one, x) for one in (center, into, back))
        return middle + (x - middle) @ first @ second

    return change


def _keeping(neurons: NumpyArray, fill: NumpyArray) -> Change:
    """Return what sets all neurons but some to `fill`, one number or (p,)."""

    def change(x: torch.Tensor) -> torch.Tensor:
        p = x.shape[-1]
        if neurons.size and neurons.max() >= p:
            raise DsvccaError(f"neuron {neurons.max()} is to be kept, and there are {p}: use 0 to {p - 1}")
        kept = torch.zeros(p, dtype=torch.bool, device=x.device)
        kept[torch.from_numpy(neurons).to(x.device)] = True
        return torch.where(kept, x, _like(fill, x))

    return change


def _like(values: NumpyArray, x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(values).to(x.dtype).to(x.device)


def along(change: Change, output: torch.Tensor, axis: int) -> torch.Tensor:
    """Return an output, in its own type, with a change made along one axis, in float32 at least."""
    kind = torch.promote_types(output.dtype, torch.float32)
    with torch.autocast(output.device.type, enabled=False):
        made = change(output.movedim(axis, -1).to(kind)).movedim(-1, axis).to(output.dtype)
    return made.contiguous() if output.is_contiguous() else made  # what follows may take a view


def _over_neurons(
    change: Change, width: int | None, name: str, given: Dims | None
) -> Callable[[torch.Tensor, nn.Module], torch.Tensor]:
    """Return what makes a change of `width` neurons in the output of a module: at each position, or of whole maps."""

    def over(output: torch.Tensor, module: nn.Module) -> torch.Tensor:
        shape = tuple(output.shape)
        what = f"layer {name!r} ({type(module).__name__})"
        # Which of the first two axes has the datapoints does not matter here, and they may be of one length.
        dims = told_dims(module, (-1, *shape[1:])) if given is None else checked_dims(given, shape, what)
        if dims is None:
            spelled = " or ".join(map(repr, examples_of(len(shape))))
            raise DsvccaError(
                f"{what} gives {shape}, and which axis has the neurons cannot be told: "
                + (f"pass dims={spelled}" if len(shape) > 1 else "name one with an axis of neurons")
            )
        axis = next(i for i, one in enumerate(dims) if one in COLUMNS)
        if width in (None, shape[axis]):
            return along(change, output, axis)
        dims = told_dims(module, shape) if given is None else dims
        if dims is None or width * shape[dims.index("datapoint")] != output.numel():
            whole = f" ({output.numel() // max(shape[0], 1)} with all positions)" if len(shape) > 2 else ""
            raise DsvccaError(
                f"{what} gives {shape}, {shape[axis]} neurons{whole}, and {width} were compared: give directions and "
                "means of this layer"
            )
        order = to_datapoints_first(dims)
        rows = output.permute(order)
        made = along(change, rows.flatten(1), -1).reshape(rows.shape).permute(tuple(np.argsort(order).tolist()))
        return made.contiguous() if output.is_contiguous() else made

    return over


@contextmanager
def changed(model: nn.Module, layer: str, change: Callable[[torch.Tensor, nn.Module], torch.Tensor]) -> Iterator[None]:
    """Let a module give what `change` makes of its output, while the context lasts."""
    module = module_named(model, layer)
    outer = [one for one in model.modules() if one is not module and any(inner is module for inner in one.modules())]
    running: nn.Module | None = None  # the model, or what is run of it
    ran: set[torch.device] = set()  # copies of one module on several devices each run once
    ever = over = False

    def begin(started: nn.Module, *_: Any) -> None:
        nonlocal running
        if running in (None, started):
            running = started
            ran.clear()

    def end(ended: nn.Module, *_: Any) -> None:
        nonlocal running
        if running is ended:
            running = None

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal ever
        if over:
            return None  # of a copy that was made while the context lasted
        first, packed = tensor_of(output, module, layer)
        if running is not None and first.device in ran:
            raise DsvccaError(
                f"layer {layer!r} ({type(module).__name__}) ran twice in one run of the model, so it has no one "
                "output: restrict a module that runs once"
            )
        ran.add(first.device)
        ever = True
        return packed(change(first, module))

    handles = [module.register_forward_hook(hook)]
    for one in outer:
        handles += [one.register_forward_pre_hook(begin), one.register_forward_hook(end, always_call=True)]
    try:
        yield
    finally:
        over = True
        for handle in handles:
            handle.remove()
    if not ever:
        raise DsvccaError(
            f"layer {layer!r} ({type(module).__name__}) did not run, so nothing was restricted: run the model inside "
            "of the context, and name a module that runs by itself (not one that was compiled, or whose weights alone "
            "are used)"
        )
