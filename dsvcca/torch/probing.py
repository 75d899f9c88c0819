"""A fixed set of datapoints, captured at chosen steps of training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from operator import index
from typing import Any

from torch import nn

from dsvcca.activations.labels import Label, checked_labels, describe
from dsvcca.activations.store import Store
from dsvcca.errors import DsvccaError, DsvccaWarning
from dsvcca.torch.callbacks import lightning_callback, trainer_callback
from dsvcca.torch.capture import capture, check_options, checked_layers
from dsvcca.torch.keeping import Bases, checked_bases
from dsvcca.torch.masks import Mask
from dsvcca.torch.outputs import Dims
from dsvcca.torch.running import Forward


class Probe:
    """What is captured of a model while it is trained: the same layers, of the same datapoints, at chosen steps.

    ``probe(step)`` captures if the step is one of `steps` and skips what the store has already, so that a script that
    is started again goes on. It costs nothing at other steps, and training is the same to the bit with it and without.

    Parameters
    ----------
    model : torch.nn.Module
    data : DataLoader, list of batches, or tensor
        As for `capture`; they are gone through once for each step.
    store : Store
    layers : list of str, or mapping from str to dims
    steps : collection of int, or callable
        Steps that are captured: ``[0, 100, 1000]``, ``range(0, 10_001, 500)``, or a function of the step that says
        whether it is. 0 is the model before its first update, n the model after n updates.
    forward, mask, positions, bases
        As for `capture`. With `bases`, training waits until they are made.
    **labels
        model=, seed=, ...; the label `step` is given by the probe.

    Raises
    ------
    DsvccaError
        For steps that are no integers of 0 or more, data that can be gone through once only, and what `capture` would
        refuse without running the model.

    Warns
    -----
    DsvccaWarning
        Once, where the store has what is to be captured from another run: of another training it would be taken for
        this one.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        store: Store,
        /,
        *,
        layers: Iterable[str] | Mapping[str, Dims | None],
        steps: Collection[int] | Callable[[int], bool],
        forward: Forward | None = None,
        mask: Mask | None = None,
        positions: int | None = None,
        bases: Bases | None = None,
        **labels: Label,
    ) -> None:
        self._layers = {layer.name: layer.dims for layer in checked_layers(model, layers)}
        check_options(data, store, positions, labels)
        checked_bases(bases)
        if isinstance(data, Iterator):
            raise DsvccaError(
                f"data is a {type(data).__name__}, which is used up after one step: pass a DataLoader, a list of "
                "batches or a tensor"
            )
        if "step" in labels:
            raise DsvccaError(f"label step={labels['step']!r} was given: leave it out, probe(step) says it")
        checked_labels({**labels, "step": 0, "layer": "any"})
        self._model, self._data, self._store = model, data, store
        self._options: dict[str, Any] = {"forward": forward, "mask": mask, "positions": positions, "bases": bases}
        self._options |= labels
        self._labels, self._captured, self._is_said = labels, set[int](), False
        self._wanted = steps if callable(steps) else _checked_steps(steps).__contains__

    def __call__(self, step: int) -> None:
        """Capture the model if the step is one of those wanted; what is in the store already is left as it is.

        Parameters
        ----------
        step : int
            Updates that the model has had.

        Raises
        ------
        DsvccaError
            If that is no integer of 0 or more, or as for `capture`.
        """
        at = _checked_step(step)
        if self._wanted(at):
            self.capture(at)

    def capture(self, step: int) -> None:
        """Capture the model at a step, whether it is one of those wanted or not, such as the last one."""
        at = _checked_step(step)
        self._say_what_is_there(at)
        capture(self._model, self._data, self._store, layers=self._layers, if_exists="skip", step=at, **self._options)
        self._captured.add(at)

    def _say_what_is_there(self, step: int) -> None:
        """Warn once of layers that another run has captured: of another training they would be taken for this one."""
        if step in self._captured or self._is_said:
            return
        labels: dict[str, Any] = {**self._labels, "step": step}
        there = [one for one in self._layers if self._store.writer(layer=one, if_exists="skip", **labels).skipped]
        if there:
            self._is_said = True
            warnings.warn(
                f"{describe(labels)}: {len(there)} of {len(self._layers)} layers are in the store already, and stay as "
                "they are. That is right where the same training goes on, or is done again to the bit; for another one "
                "give other labels, or another store",
                DsvccaWarning,
                stacklevel=4,
            )

    def lightning(self, *, last: bool = True) -> Any:
        """Return a callback for ``lightning.pytorch.Trainer(callbacks=[...])``.

        Steps are the trainer's `global_step`: 0 before the first update. Only the process of rank 0 captures.

        Parameters
        ----------
        last : bool, default True
            Whether the step at which training ends is captured even if it is not one of `steps`.
        """
        return lightning_callback(self, self.capture if last else None)

    def trainer(self, *, last: bool = True) -> Any:
        """Return a callback for ``transformers.Trainer(callbacks=[...])``.

        Steps are the trainer's `global_step`: 0 before the first update. Only the process of rank 0 captures. The last
        step is captured before the best model is loaded, with a warning where that cannot be.

        Parameters
        ----------
        last : bool, default True
            Whether the step at which training ends is captured even if it is not one of `steps`.
        """
        return trainer_callback(self, self.capture if last else None)


def _checked_steps(steps: Any) -> Collection[int]:
    """Return steps as what tells at once whether one is among them."""
    if not isinstance(steps, Collection) or isinstance(steps, (str, bytes)):
        raise DsvccaError(
            f"steps={steps!r} is a {type(steps).__name__}: give a collection of steps, such as range(0, 10_001, 500), "
            "or a function of the step"
        )
    if len(steps) == 0:
        raise DsvccaError("steps is empty: give the steps that are captured, or a function of the step")
    if isinstance(steps, range):
        _checked_step(min(steps[0], steps[-1]))
        return steps
    return frozenset(map(_checked_step, steps))


def _checked_step(step: Any) -> int:
    """Return a step as a plain integer."""
    try:
        found = index(step)
    except TypeError:
        found = -1
    if found < 0 or isinstance(step, bool):
        raise DsvccaError(f"step {step!r}: a step is the number of updates before it, an integer of 0 or more")
    return found
