"""What calls a probe from the training loops of others, whose libraries are imported only then."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from dsvcca.errors import DsvccaError, DsvccaWarning

At = Callable[[int], None]


def lightning_callback(probe: At, last: At | None) -> Any:
    """Return a callback of Lightning that calls `probe` before training and after updates, `last` at the end."""
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError as error:
            raise DsvccaError("lightning() needs Lightning: pip install lightning") from error

    class ProbeCallback(Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self._step = -1

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self._call(trainer, probe)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step != self._step:  # else gradients are still accumulated
                self._call(trainer, probe)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if last is not None:
                self._call(trainer, last)

        def _call(self, trainer: Any, at: At) -> None:
            self._step = trainer.global_step
            if trainer.is_global_zero:
                at(self._step)

    return ProbeCallback()


def trainer_callback(probe: At, last: At | None) -> Any:
    """Return a callback of transformers that calls `probe` before training and after updates, `last` at the end."""
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise DsvccaError("trainer() needs transformers: pip install 'transformers[torch]'") from error

    class ProbeCallback(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self._ended = -1

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._ended = -1
            self._call(state, probe)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._call(state, probe)
            self._end(state, control)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._end(state, control)  # an evaluation before it may have ended the training

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if last is None or self._ended == state.global_step:
                return
            best = getattr(state, "best_global_step", None) or -1
            if state.best_model_checkpoint is None or not args.load_best_model_at_end or best == state.global_step:
                self._call(state, last)
            elif state.is_world_process_zero:
                warnings.warn(
                    f"training ended at step {state.global_step}, and the Trainer has loaded its best model "
                    f"('{state.best_model_checkpoint}') before it said so: if that step is not one of steps, it is not "
                    "captured; give it in steps, or leave load_best_model_at_end out",
                    DsvccaWarning,
                    stacklevel=2,
                )

        def _end(self, state: Any, control: Any) -> None:
            """Capture the last step as soon as it is known, while the model is what it was then."""
            if last is not None and control.should_training_stop:
                self._call(state, last)
                self._ended = state.global_step

        def _call(self, state: Any, at: At) -> None:
            if state.is_world_process_zero:
                at(state.global_step)

    return ProbeCallback()
