"""Freeze training (Raghu et al. 2017, section 4.2): layers settle bottom up, so they are frozen one after another."""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from operator import index
from typing import Any, SupportsIndex

import pandas as pd
import torch
from torch import nn

from dsvcca.errors import DsvccaError, DsvccaWarning, nearest
from dsvcca.torch.flops import flops_of_training
from dsvcca.torch.groups import Group, groups_of
from dsvcca.torch.settling import Settling, WhenSettled

STATE = ("groups", "step", "frozen", "stages", "settling")


class FreezeTraining:
    """Freeze the layers of a model one after another from the bottom while it is trained.

    Raghu et al. 2017, section 4.2 (arXiv 1706.05806): layers settle bottom up, and of L layers the l-th is frozen when
    l / L of the training is over (of a residual network blocks are the layers). A frozen layer needs no gradients, and
    as everything below it is frozen too, none go through it: the backward pass ends at the lowest layer that is
    trained.

    Call `step` before every training step, and leave the rest as it is::

        freeze = dsvcca.torch.FreezeTraining(model, layers=["conv1", ["conv2", "bn2"], "fc"], steps=10_000)
        for step, batch in enumerate(batches):
            freeze.step(step)
            ...  # forward, backward, optimizer.step()

    Frozen parameters have ``requires_grad=False`` and ``grad=None``, and what the optimizers keep of them is dropped:
    no momentum and no weight decay moves them. Modules with buffers of their own, such as batch norm, go to evaluation
    mode and stay there when ``model.train()`` is called, so that no running statistics move either. Dropout goes on.

    Parameters
    ----------
    model : torch.nn.Module
        The model itself, not what `DistributedDataParallel` or `torch.compile` made of it.
    layers : list of str or of lists of str
        Names of modules (``model.named_modules()``) or of parameters, bottom up. A list of names is frozen together. A
        parameter that two groups share is frozen with the later one.
    steps : int
        Length of the training. What is counted is yours: with epochs here, give `step` epochs.
    schedule : {"linear"}, sequence of numbers, or WhenSettled, default "linear"
        When each group is frozen: at l / L of the training; at given shares of it (float, 0 to 1) or steps (int), one a
        group; or when it has settled, which `WhenSettled` measures.
    optimizer : torch.optim.Optimizer or list of them, optional
        Whose state of frozen parameters is dropped. Without it frozen parameters stay as they are too, and their state
        stays in memory.

    Attributes
    ----------
    frozen : list of str
        Groups that are frozen, bottom up; of a list the names joined by "+".
    history : pandas.DataFrame
        What `WhenSettled` measured: step, group, similarity, and whether the group was frozen at that step. Nothing is
        measured once only what has to go on is trained.

    Raises
    ------
    DsvccaError
        For names that the model does not have or that overlap, groups with nothing to freeze, schedules that do not fit
        them or leave nothing to train, and LBFGS, which moves all parameters together.

    Warns
    -----
    DsvccaWarning
        If parameters that are trained are in no group, or in several; if groups look as if they were given top down.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> freeze = FreezeTraining(model, layers=["0", "2"], steps=100)
    >>> freeze.step(49), freeze.step(50), freeze.step(51)
    ([], ['0'], [])
    >>> [one.requires_grad for one in model.parameters()]
    [False, False, True, True]
    """

    def __init__(
        self,
        model: nn.Module,
        /,
        *,
        layers: Iterable[str | Sequence[str]],
        steps: int,
        schedule: str | Sequence[float] | WhenSettled = "linear",
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    ) -> None:
        self._model = model
        self._steps = _whole(steps, "steps", 1)
        self._groups, loose = groups_of(model, layers)
        self._optimizers = _checked_optimizers(optimizer, model)
        self._settling: Settling | None = None
        self._due: list[int] = []
        if isinstance(schedule, WhenSettled):
            self._settling = Settling(schedule, model, _ends(self._groups))
        else:
            self._due = _due(schedule, self._groups, self._steps)
            if not loose and self._due[-1] < self._steps:
                raise DsvccaError(
                    f"at step {self._due[-1]} of {self._steps} the last parameters would be frozen, and nothing would "
                    "be left to train: give the last group the share 1.0, or leave it out of layers"
                )
        if loose:
            warnings.warn(
                f"{len(loose)} of the parameters that are trained are in no group and never frozen "
                f"({nearest('', loose)}): if they are below frozen layers, gradients go through those",
                DsvccaWarning,
                stacklevel=2,
            )
        place = {name: i for i, (name, _) in enumerate(model.named_parameters(remove_duplicate=False))}
        first, last = (min(place[name] for name in self._groups[i].parameters) for i in (0, -1))
        if first > last:
            warnings.warn(
                f"{self._groups[0].name!r} is frozen first, and in the model it comes after {self._groups[-1].name!r}, "
                "which is frozen last: give layers bottom up, or little is saved",
                DsvccaWarning,
                stacklevel=2,
            )
        self._most = len(self._groups) - (not loose)  # one has to go on, where layers are frozen as they settle
        self._at = -1
        self._count = 0
        self._held: dict[str, nn.Parameter] = {}  # what is frozen
        self._stages = [(0, 0)]  # how many groups, from which step on

    def __repr__(self) -> str:
        return f"<FreezeTraining: {self._count} of {len(self._groups)} groups frozen, step {self._at} of {self._steps}>"

    @property
    def frozen(self) -> list[str]:
        """Names of the groups that are frozen, bottom up."""
        return [group.name for group in self._groups[: self._count]]

    @property
    def history(self) -> pd.DataFrame:
        """One row a check and group that was not frozen yet: step, group, similarity, frozen."""
        rows = [] if self._settling is None else self._settling.rows
        return pd.DataFrame(rows, columns=["step", "group", "similarity", "frozen"])

    def step(self, step: int | None = None) -> list[str]:
        """Freeze what is due before the training step with this number, and return the names of those groups.

        The same step may come again, and a first step in the middle of the training freezes all that is due there.

        Parameters
        ----------
        step : int, optional
            Counted from 0 over the whole training. The one after the last, if left out.

        Raises
        ------
        DsvccaError
            If steps go back, or something else has set frozen parameters to be trained.
        """
        at = self._at + 1 if step is None else _whole(step, "step", 0)
        if at < self._at:
            raise DsvccaError(
                f"step {at} came after step {self._at}: count steps over the whole training, not within an epoch "
                "(load_state_dict goes back to a checkpoint)"
            )
        free = [name for name, one in self._held.items() if one.requires_grad]
        if free:
            raise DsvccaError(
                f"{len(free)} parameters that are frozen ({nearest('', free)}) are trained again, something has set "
                "requires_grad=True: let it leave them alone, or call unfreeze()"
            )
        due = self._count
        if self._settling is None:
            due = bisect_right(self._due, at)
        elif self._count < self._most:
            waiting = [group.name for group in self._groups[self._count :]]
            due += self._settling.settled(self._model, waiting, self._most - self._count, at)
        self._at = at
        return self._freeze(due)

    def unfreeze(self) -> None:
        """Let everything be trained again: parameters as before, modules in the mode of the model.

        What optimizers kept of them is not brought back. A later `step` freezes again what is due.
        """
        parameters, modules = self._named()
        for group in self._groups[: self._count]:
            for name in group.parameters:
                parameters[name].requires_grad_(True)
            for name in group.keepers:
                vars(modules[name]).pop("train", None)
                modules[name].train(self._model.training)
        if self._count:
            self._stages = [*self._stages, (0, self._at + 1)]
        self._count = 0
        self._held = {}
        if self._settling is not None:
            self._settling.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs besides the model and the optimizers, of numbers, names and tensors."""
        return {
            "groups": [group.name for group in self._groups],
            "step": self._at,
            "frozen": self._count,
            "stages": [list(stage) for stage in self._stages],
            "settling": None if self._settling is None else self._settling.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: freeze what was frozen there, and nothing else.

        Raises
        ------
        DsvccaError
            If the state is of other groups.
        """
        if not isinstance(state, Mapping) or set(state) != set(STATE):
            raise DsvccaError(f"the state is no state of FreezeTraining: give what state_dict() returned, {STATE}")
        names = [group.name for group in self._groups]
        if list(state["groups"]) != names:
            raise DsvccaError(f"the state is of the groups {list(state['groups'])}, this one has {names}: use the same")
        self.unfreeze()
        if self._settling is not None and state["settling"] is not None:
            self._settling.load_state_dict(state["settling"])
        self._at = state["step"]
        self._freeze(state["frozen"])
        self._stages = [(count, since) for count, since in state["stages"]]

    def flops(self, *inputs: Any, **named: Any) -> pd.DataFrame:
        """Count the floating point operations that freezing saves, from one example batch.

        On a copy of the model every stage of the training, which is what is frozen together, runs forward and backward
        once: counted is what autograd does. Two operations are a multiplication with its addition; elementwise
        functions, normalisation, the loss and the optimizer are not counted.

        Parameters
        ----------
        *inputs, **named
            What the model is called with in a training step: ``freeze.flops(x)``, ``freeze.flops(**batch)``.

        Returns
        -------
        pandas.DataFrame
            One row a stage: the number of groups that are `frozen`, `from_step`, the number of its `steps`, operations
            of a `forward` and a `backward` pass, and `total`, of all its steps. Stages are those of the schedule; where
            groups are frozen as they settle, those that were, and the last one goes on to the end. Its ``attrs`` have
            what the whole training costs without freezing, `baseline`, and with it, `total`, of which `checks` is the
            probe; and `saved`, the share that is saved.

        Raises
        ------
        DsvccaError
            If the model cannot be copied.
        """
        if self._settling is None:
            stages = [(bisect_right(self._due, since), since) for since in sorted({0, *self._due})]
        else:
            stages = self._stages
        stages = [(count, since) for count, since in stages if since < self._steps]
        ends = [*(since for _, since in stages[1:]), self._steps]
        costs = flops_of_training(
            self._model, [self._trained(0), *(self._trained(k) for k, _ in stages)], inputs, named
        )
        found = pd.DataFrame(
            [
                (k, since, end - since, forward, backward, (end - since) * (forward + backward))
                for (k, since), end, (forward, backward) in zip(stages, ends, costs[1:], strict=True)
            ],
            columns=["frozen", "from_step", "steps", "forward", "backward", "total"],
        )
        checks = 0 if self._settling is None else self._settling.flops(self._model)
        baseline, total = sum(costs[0]) * self._steps, int(found.total.sum()) + checks
        found.attrs = {"baseline": baseline, "total": total, "checks": checks}
        found.attrs["saved"] = 1 - total / baseline if baseline else math.nan
        return found

    def _trained(self, frozen: int) -> set[str]:
        """Return the names of parameters that are trained when so many groups are frozen."""
        parameters, _ = self._named()
        own = {id(parameters[name]) for group in self._groups for name in group.parameters}
        others = {name for name, one in parameters.items() if one.requires_grad and id(one) not in own}
        return others.union(*(group.parameters for group in self._groups[frozen:]))

    def _freeze(self, due: int) -> list[str]:
        """Freeze groups until so many are frozen."""
        new = self._groups[self._count : due]
        if not new:
            return []
        parameters, modules = self._named()
        for group in new:
            for name in group.parameters:
                one = parameters[name]
                one.requires_grad_(False)
                one.grad = None
                self._held[name] = one
                for optimizer in self._optimizers:
                    if not isinstance(optimizer, torch.optim.Adagrad):  # not all versions make it anew
                        optimizer.state.pop(one, None)
            for name in group.keepers:
                modules[name].training = False  # what is inside keeps its mode
                modules[name].train = partial(_train_inside, modules[name])  # type: ignore[method-assign]
        self._count = due
        self._stages = [*self._stages, (due, self._at)]
        return [group.name for group in new]

    def _named(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Module]]:
        """Return all parameters and modules, after looking for those that are frozen."""
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        modules = dict(self._model.named_modules(remove_duplicate=False))
        for group in self._groups:
            for name in (*group.parameters, *group.keepers):
                if name not in parameters and name not in modules:
                    raise DsvccaError(
                        f"the model has no {name!r} any more: make a new FreezeTraining of what it is now"
                    )
        return parameters, modules


def _train_inside(module: nn.Module, mode: bool = True) -> nn.Module:
    """Set the mode of what is inside a module, which itself goes on evaluating: its buffers do not move."""
    type(module).train(module, mode)
    module.training = False
    return module


def _ends(groups: Sequence[Group]) -> dict[str, str]:
    """Return the module that ends each group."""
    for group in groups:
        if group.output is None:
            raise DsvccaError(
                f"group {group.name!r} has no module whose output could be measured: add the one above it"
            )
    return {group.name: str(group.output) for group in groups}


def _due(schedule: Any, groups: Sequence[Group], steps: int) -> list[int]:
    """Return the step at which each group is frozen."""
    if schedule == "linear":
        return [-(-steps * layer // len(groups)) for layer in range(1, len(groups) + 1)]
    if isinstance(schedule, (str, Mapping)) or not isinstance(schedule, Iterable):
        raise DsvccaError(
            f"schedule={schedule!r} is unknown: use 'linear', one share or step for each group, or WhenSettled(probe)"
        )
    given = list(schedule)
    if len(given) != len(groups):
        raise DsvccaError(f"schedule has {len(given)} numbers for {len(groups)} groups: give one a group, bottom up")
    due = [_step_of(one, steps) for one in given]
    if due != sorted(due):
        raise DsvccaError(
            f"schedule freezes the groups at the steps {due}: none can be frozen before the one below it (whole "
            f"numbers are steps, 1.0 is step {steps})"
        )
    return due


def _step_of(when: Any, steps: int) -> int:
    """Return a step, given as such or as a share of all of them."""
    if isinstance(when, SupportsIndex) and not isinstance(when, bool) and index(when) >= 0:
        return index(when)
    if isinstance(when, float) and 0 <= when <= 1:
        return math.ceil(round(when * steps, 6))  # 0.07 * 100 is a little more than 7
    raise DsvccaError(f"schedule holds {when!r}: give shares of the training, 0.0 to 1.0, or steps, 0 or more")


def _checked_optimizers(optimizer: Any, model: nn.Module) -> list[torch.optim.Optimizer]:
    """Return optimizers as a list."""
    given = [] if optimizer is None else [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else optimizer
    if not isinstance(given, (list, tuple)) or not all(isinstance(one, torch.optim.Optimizer) for one in given):
        raise DsvccaError(f"optimizer={optimizer!r} is no torch.optim.Optimizer: pass one, or a list of them")
    own = {id(one) for one in model.parameters()}
    for one in given:
        if isinstance(one, torch.optim.LBFGS):
            raise DsvccaError(
                "LBFGS moves all parameters together, frozen ones too: use another optimizer, or build a new one of "
                "the parameters that are trained whenever step() returns something"
            )
        if own.isdisjoint(id(each) for group in one.param_groups for each in group["params"]):
            raise DsvccaError(f"the {type(one).__name__} has no parameter of the model: pass the one that trains it")
    return list(given)


def _whole(value: Any, name: str, least: int) -> int:
    """Return a whole number that is large enough."""
    if not isinstance(value, SupportsIndex) or isinstance(value, bool) or index(value) < least:
        raise DsvccaError(f"{name}={value!r}: give a whole number, {least} or more")
    return index(value)
