"""Training networks on images, the same way every time, with something looked at on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import nn

from dsvcca.errors import DsvccaError

BATCH = 500
"""Images that are shown at once where nothing is learned from them."""


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Let random numbers begin at `seed` and round the same way everywhere: on one thread. As before afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng([]):
        try:
            torch.set_num_threads(1)
            torch.manual_seed(seed)
            yield
        finally:
            torch.set_num_threads(threads)


def train_classifier(
    model: nn.Module,
    images: torch.Tensor,
    classes: torch.Tensor,
    *,
    steps: int,
    batch: int,
    rate: float,
    decay: bool = False,
    before: Callable[[int, torch.optim.Optimizer], None] = lambda step, optimizer: None,
) -> None:
    """Train by stochastic gradient descent with momentum 0.9, in place.

    Parameters
    ----------
    model : torch.nn.Module
    images, classes : (n, ...) and (n,) tensors
    steps : int
        Batches. All images come once before any comes again.
    batch : int
        Images of a step.
    rate : float
        Learning rate.
    decay : bool, default False
        Whether the rate falls to nothing, by half a cosine, or stays.
    before : callable, optional
        ``before(step, optimizer)`` is called before every step and once more at the end, with step = steps.

    Raises
    ------
    DsvccaError
        If a batch needs more images than there are.
    """
    if batch > len(images):
        raise DsvccaError(f"batch={batch} is more than the {len(images)} images: use fewer")
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if decay else None
    order: list[torch.Tensor] = []
    for step in range(steps):
        before(step, optimizer)
        if not order:
            mixed = torch.randperm(len(images))
            order = [mixed[i : i + batch] for i in range(0, len(mixed) - batch + 1, batch)]
        own = order.pop()
        model.train()
        optimizer.zero_grad()
        loss: torch.Tensor = nn.functional.cross_entropy(model(images[own]), classes[own])
        loss.backward()
        optimizer.step()
        if falling is not None:
            falling.step()
    before(steps, optimizer)
    model.eval()


def accuracy(model: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> float:
    """Return the share of images whose class has the largest output, in evaluation mode and without gradients."""
    return float((logits(model, images).argmax(1) == classes).double().mean())


def cross_entropy(model: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> float:
    """Return the mean loss in nats an image, in evaluation mode and without gradients."""
    return float(nn.functional.cross_entropy(logits(model, images).double(), classes))


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the outputs (n, classes) for all images, in evaluation mode and without gradients."""
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            return torch.cat([model(batch) for batch in images.split(BATCH)])
    finally:
        model.train(training)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of a model to a file, whole or not at all."""
    made = path.with_suffix(".making")
    torch.save(model.state_dict(), made)
    made.replace(path)


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Return a model with the weights of a file, in evaluation mode.

    Raises
    ------
    DsvccaError
        If the file holds none, or others.
    """
    try:
        model.load_state_dict(torch.load(path, weights_only=True))
    except (RuntimeError, EOFError, UnpicklingError) as error:
        first = str(error).strip().splitlines()[0]
        raise DsvccaError(f"'{path}' holds no weights of this network ({first}): remove it, and train again") from error
    return model.eval()
