"""When has a layer settled? Its similarity to itself at the check before, on a fixed batch, while it is trained."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import nn

from dsvcca.activations.labels import COLUMNS
from dsvcca.errors import DsvccaError, DsvccaWarning, nearest
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.pair import pwcca, svcca
from dsvcca.torch.axes import axes_of
from dsvcca.torch.flops import flops_of_training
from dsvcca.torch.outputs import Dims, Layer, Output, found_in
from dsvcca.torch.running import device_of, hooks, inputs_of, left_as_found, moved, run

VARIANCE = 0.99
"""Share of variance that is kept before the comparison, as in Raghu et al. 2017."""


@dataclass(frozen=True, eq=False)
class WhenSettled:
    """Freeze a group once what it gives for a probe no longer changes: a schedule of `FreezeTraining`.

    Every `every` steps the model runs on the probe, in evaluation mode, without gradients and left as it was found.
    What the last module of each group gives is compared with what it gave at the check before, by SVCCA or PWCCA of the
    directions that hold 99 % of the variance. A group is settled when that similarity was at least `threshold` at
    `patience` checks in a row; it is frozen when all below it are. Of maps and sequences every position is a row.

    Such a similarity says that a layer moved little since the last check, not that it will not move again. With a small
    learning rate, or small `every`, everything is similar to its recent past: look at `FreezeTraining.history` of a run
    that freezes nothing (``warmup=`` at its end) before you choose. Nor does it see a layer whose neurons are only
    mixed by an invertible linear map. A group is never frozen if nothing would be left to train.

    Parameters
    ----------
    probe : tensor, tuple, list or dict
        One batch, as `capture` takes them, the same at all checks. Unrelated layers are similar by chance, the more so
        the fewer rows there are for a neuron: two or fewer are refused, with which some correlations are 1 whatever the
        data; take ten or more. Positions of one datapoint are alike, and count for less than a datapoint each.
    every : int, default 100
        Steps between checks.
    threshold : float, default 0.99
        In (0, 1].
    patience : int, default 2
        Checks in a row.
    warmup : int, default 0
        Nothing is frozen before this step.
    measure : {"svcca", "pwcca"}, default "svcca"
        "pwcca" is weighted by the neurons of the present.
    dims : mapping from str to dims, optional
        Axes of what modules give, where they cannot be told: ``{"layer1": "nchw"}``.

    Raises
    ------
    DsvccaError
        For numbers that make no sense, and a probe that is no batch.
    """

    probe: Any = field(repr=False)
    _: KW_ONLY
    every: int = 100
    threshold: float = 0.99
    patience: int = 2
    warmup: int = 0
    measure: str = "svcca"
    dims: Mapping[str, Dims] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.probe, (torch.Tensor, tuple, list, Mapping)):
            raise DsvccaError(
                f"probe is a {type(self.probe).__name__}: give one batch, a tensor, a tuple or list that begins with "
                "one, or a dict of tensors"
            )
        for name, least in (("every", 1), ("patience", 1), ("warmup", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise DsvccaError(f"{name}={value!r}: use a whole number, at least {least}")
        if not isinstance(self.threshold, (int, float)) or not 0 < self.threshold <= 1:
            raise DsvccaError(f"threshold={self.threshold!r} is no similarity: use a number in (0, 1]")
        if self.measure not in ("svcca", "pwcca"):
            raise DsvccaError(f"measure={self.measure!r} is unknown: {nearest(self.measure, ['svcca', 'pwcca'])}")


class Settling:
    """How alike the layers of a model are to what they were at the check before.

    Parameters
    ----------
    layers : mapping from str to str
        Of every group the module whose output is looked at.
    """

    def __init__(self, rule: WhenSettled, model: nn.Module, layers: Mapping[str, str]) -> None:
        self.rule = rule
        self.layers = layers
        self.rows: list[tuple[int, str, float, bool]] = []
        self.checks = 0
        self._last: int | None = None
        self._before: dict[str, NumpyArray] = {}
        self._streaks = dict.fromkeys(layers, 0)
        for name in rule.dims:
            if name not in layers.values():
                raise DsvccaError(f"dims names {name!r}, which ends no group: {nearest(name, layers.values())}")
        self._outputs(model, list(layers))  # what cannot work is to be told before training

    def settled(self, model: nn.Module, waiting: Sequence[str], most: int, step: int) -> int:
        """Return how many of the groups that wait, `most` at most, are to be frozen now; 0 where no check is due."""
        if self._last is not None and step - self._last < self.rule.every:
            return 0
        now = self._outputs(model, waiting)
        self.checks += 1
        count = 0
        if self._last is not None:
            similarities = []
            for name in waiting:
                similarities.append(self._similarity(now[name], self._before[name], name, step))
                self._streaks[name] = self._streaks[name] + 1 if similarities[-1] >= self.rule.threshold else 0
            if step >= self.rule.warmup:
                enough = [self._streaks[name] >= self.rule.patience for name in waiting[:most]]
                count = [*enough, False].index(False)
            self.rows += [(step, name, similarities[i], i < count) for i, name in enumerate(waiting)]
        self._before = {name: now[name] for name in waiting[count:]}
        self._last = step
        return count

    def state_dict(self) -> dict[str, Any]:
        """Return what later checks depend on: the last outputs, and what was found."""
        return {
            "last": self._last,
            "checks": self.checks,
            "streaks": dict(self._streaks),
            "rows": [list(row) for row in self.rows],
            "before": {name: torch.from_numpy(x.copy()) for name, x in self._before.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._last, self.checks, self._streaks = state["last"], state["checks"], dict(state["streaks"])
        self.rows = [(step, name, similarity, frozen) for step, name, similarity, frozen in state["rows"]]
        self._before = {name: x.cpu().numpy() for name, x in state["before"].items()}

    def forget(self) -> None:
        """Count anew how often groups were alike, from the next check on."""
        self._last, self._before, self._streaks = None, {}, dict.fromkeys(self.layers, 0)

    def flops(self, model: nn.Module) -> int:
        """Return the floating point operations of all checks: forward passes on the probe."""
        inputs = inputs_of(moved(self.rule.probe, device_of(model)))
        given: tuple[Sequence[Any], Mapping[str, Any]] = (
            ((), inputs) if isinstance(inputs, Mapping) else ((inputs,), {})
        )
        [(forward, _)] = flops_of_training(model, [()], *given)
        return self.checks * forward

    def _outputs(self, model: nn.Module, groups: Sequence[str]) -> dict[str, NumpyArray]:
        """Return what the groups give for the probe, (rows, neurons)."""
        modules = {self.layers[name]: model.get_submodule(self.layers[name]) for name in groups}
        batch = moved(self.rule.probe, device_of(model))
        with left_as_found(model), hooks(modules, lambda *given: found_in(*given).copied()) as outputs:
            run(model, batch)
        for name, given in outputs.items():
            if len(given) != 1:
                raise DsvccaError(
                    f"module {name!r} ran {len(given)} times when the model ran on the probe, so it has no one output: "
                    "end the group with a module that runs once (of a model that is compiled or wrapped give the one "
                    "inside)"
                )
        return {name: self._as_rows(outputs[self.layers[name]][0], modules, self.layers[name]) for name in groups}

    def _as_rows(self, output: Output, modules: Mapping[str, nn.Module], name: str) -> NumpyArray:
        """Return an output with its neurons last and everything else as rows, enough of them; padding is left out."""
        values, lengths = output.values, output.lengths
        layer = Layer(name, modules[name], self.rule.dims.get(name))
        axes = axes_of(output, layer, len(values) if values.ndim else 0, option="dims")
        rows = values.movedim(next(axes.index(one) for one in COLUMNS if one in axes), -1)
        if lengths is not None:
            rows = rows[torch.arange(rows.shape[1]) < lengths[:, None]]
        rows = rows.reshape(-1, rows.shape[-1])
        if len(rows) <= 2 * rows.shape[1]:
            raise DsvccaError(
                f"the probe gives {len(rows)} rows for the {rows.shape[1]} neurons of layer {name!r}, of which any "
                f"{rows.shape[1]} can be made to agree: give at least {2 * rows.shape[1] + 1} rows, better "
                f"{10 * rows.shape[1]}"
            )
        found: NumpyArray = (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()
        return found

    def _similarity(self, now: NumpyArray, before: NumpyArray, name: str, step: int) -> float:
        """Return how alike a group is to itself; NaN, with a warning, where that cannot be said."""
        try:
            if self.rule.measure == "pwcca":
                return pwcca(now, before, variance=VARIANCE)
            return svcca(now, before, variance=VARIANCE)
        except DsvccaError as error:
            warnings.warn(
                f"group {name!r} cannot be compared at step {step} with the check before, and counts as not settled: "
                f"{error}",
                DsvccaWarning,
                stacklevel=4,
            )
            return math.nan
