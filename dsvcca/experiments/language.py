"""A language model and text that installs by name: the Brown corpus (npm), or Python's own help pages."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dsvcca.activations.store import Store, create_store, open_store
from dsvcca.experiments.parallel import captured, make_lacking
from dsvcca.experiments.settings import steps_at
from dsvcca.experiments.texts import words_of
from dsvcca.experiments.training import load_weights, reproducible, save_weights
from dsvcca.torch.probing import Probe

LAYERS = ("embed", "lstm1", "lstm2", "out")
"""Layers of the language model, lowest first."""

UNKNOWN = "<unk>"


@dataclass(frozen=True)
class LanguageSetting:
    """Which text a language model learns, how large it is, and when it is captured.

    Attributes
    ----------
    source : {"brown", "help"}
    words : int
        In the vocabulary; all others are one.
    width : int
        Of embedding and LSTM layers.
    length : int
        Words of a sequence.
    probes : int
        Sequences that are captured.
    steps, batch, rate
        Of training with Adam.
    shares : tuple of float
        Shares of training at which layers are captured.
    seeds, workers : int
        Networks, and processes that train them.
    """

    source: str = "brown"
    words: int = 2000
    width: int = 128
    length: int = 30
    probes: int = 400
    steps: int = 3000
    batch: int = 20
    rate: float = 2e-3
    shares: tuple[float, ...] = (0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1)
    seeds: int = 5
    workers: int = 2

    @property
    def captured(self) -> list[int]:
        """Steps at which layers are captured."""
        return steps_at(self.shares, self.steps)


LANGUAGE = {
    "small": LanguageSetting(
        source="help", words=200, width=32, probes=40, steps=60, shares=(0, 0.1, 0.35, 0.75, 1), seeds=2, workers=1
    ),
    "full": LanguageSetting(),
}


class LanguageModel(nn.Module):
    """Embedding, two LSTM layers and logits of the next word at every position."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.lstm1 = nn.LSTM(width, width, batch_first=True)
        self.lstm2 = nn.LSTM(width, width, batch_first=True)
        self.out = nn.Linear(width, words)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Return logits (datapoint, position, word) of what comes next after each word (datapoint, position)."""
        logits: torch.Tensor = self.out(self.lstm2(self.lstm1(self.embed(words))[0])[0])
        return logits


@cache
def text(setting: LanguageSetting) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sequences (n, length + 1) int64 to learn from, and others (probes, length + 1), of the end of the text.

    Raises
    ------
    DsvccaError
        If the text is not installed.
    """
    words = words_of(setting.source)
    common = [word for word, _ in Counter(words).most_common(setting.words - 1)]
    places = {word: place for place, word in enumerate([UNKNOWN, *common])}
    numbers = np.array([places.get(word, 0) for word in words])
    length = setting.length + 1
    sequences = torch.as_tensor(numbers[: len(numbers) // length * length].reshape(-1, length))
    return sequences[: -setting.probes], sequences[-setting.probes :]


def trained_language_models(setting: LanguageSetting, folder: str | os.PathLike[str]) -> Store:
    """Train language models, those that are not in `folder` yet, and capture them on the way.

    Returns
    -------
    Store
        With the labels seed, step and layer: what every layer does at every position of the probes.
    """
    root = Path(folder).absolute()
    root.mkdir(parents=True, exist_ok=True)
    create_store(root / "activations.zarr", datapoints=setting.probes)

    seeds, seen = range(setting.seeds), captured(root / "activations.zarr", "seed")
    make_lacking(
        partial(_train, setting, root),
        seeds,
        root,
        setting,
        made=lambda seed: _weights(root, seed).exists() and seen(seed),
    )
    return open_store(root / "activations.zarr").select(seed=list(seeds), step=setting.captured)


def trained_language_model(setting: LanguageSetting, folder: str | os.PathLike[str], seed: int) -> nn.Module:
    """Return one of the `trained_language_models` of a folder, in evaluation mode."""
    return load_weights(LanguageModel(setting.words, setting.width), _weights(Path(folder), seed))


def loss_of(logits: np.ndarray, words: torch.Tensor) -> float:
    """Return the mean loss in nats a word of logits (n, length, words) for sequences (n, length + 1)."""
    found = nn.functional.cross_entropy(torch.as_tensor(logits).flatten(0, 1), words[:, 1:].flatten())
    return float(found)


def _train(setting: LanguageSetting, folder: Path, seed: int) -> None:
    """Train one language model and capture it on the way; the same seed gives the same network again."""
    sequences, probes = text(setting)
    store = open_store(folder / "activations.zarr")
    with reproducible(seed):
        model = LanguageModel(setting.words, setting.width)
        probe = Probe(model, probes[:, :-1], store, layers=LAYERS, steps=setting.captured, seed=seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=setting.rate)
        order: list[torch.Tensor] = []
        for step in range(setting.steps + 1):
            probe(step)
            if step == setting.steps:
                break
            if not order:
                order = list(torch.randperm(len(sequences)).split(setting.batch))
            own = sequences[order.pop()]
            optimizer.zero_grad()
            logits = model(own[:, :-1])
            loss: torch.Tensor = nn.functional.cross_entropy(logits.flatten(0, 1), own[:, 1:].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    save_weights(model, _weights(folder, seed))


def _weights(folder: Path, seed: int) -> Path:
    return folder / f"{seed}.pt"
