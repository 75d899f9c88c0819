"""Capture from PyTorch beside the forward pass alone, and the memory that it adds.

python benchmarks/capture.py                       a convnet, a transformer, the demonstration's small convnet
python benchmarks/capture.py --help
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import about_this_machine, peak_memory, show_and_keep
from torch import nn

import dsvcca
from dsvcca.experiments import networks
from dsvcca.experiments.layers import CONVNET
from dsvcca.torch import capture
from dsvcca.torch.ids import row_ids
from dsvcca.torch.running import left_as_found

WIDTH, POSITIONS, TOKENS = 128, 64, 1000


Network = tuple[nn.Module, dict[str, str], Callable[[int], torch.Tensor]]


def small_convnet() -> Network:
    return networks.convnet((12, 24), (64, 32), size=14), CONVNET, lambda rows: torch.rand(rows, 1, 14, 14)


def convnet() -> Network:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    model = nn.Sequential(
        *(*block(3, 32), *block(32, 64), nn.MaxPool2d(2), *block(64, 128), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128 * 8 * 8, 256), nn.ReLU(), nn.Linear(256, 10)),
    )
    return model, {"0": "nchw", "5": "nchw", "9": "nchw", "12": "nd", "14": "nd"}, lambda n: torch.rand(n, 3, 32, 32)


def transformer() -> Network:
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, batch_first=True)
    model = nn.Sequential(nn.Embedding(TOKENS, WIDTH), nn.TransformerEncoder(layer, 4, enable_nested_tensor=False))
    layers = {"0": "ntd", **{f"1.layers.{i}": "ntd" for i in range(4)}}
    return model, layers, lambda rows: torch.randint(0, TOKENS, (rows, POSITIONS))


NETWORKS = {"convnet": convnet, "transformer": transformer, "small convnet": small_convnet}


KEEPING = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
"""An allocator that keeps its memory: else it is chance who pays for pages that are touched for the first time."""


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a new process finds."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Return the CPU time of all threads of this process: other processes and the disk count less than on a clock."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def cost(name: str, rows: int, batch: int, repeat: int, folder: Path) -> dict[str, Any]:
    """Return the CPU seconds of the forward pass, of capture, and of writing the same arrays; rounds of all three."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, layers, draw = NETWORKS[name]()
    model.eval()
    data = list(draw(rows).split(batch))
    kept: dict[str, list[torch.Tensor]] = {layer: [] for layer in layers}
    modules = dict(model.named_modules())
    handles = [
        modules[layer].register_forward_hook(lambda module, inputs, output, k=kept[layer]: k.append(output.clone()))
        for layer in layers
    ]

    def forward() -> None:
        with left_as_found(model):  # transformer layers take the path that they take where hooks are
            for x in data:
                model(x)

    forward()
    for handle in handles:
        handle.remove()
    ids = [row_ids(x) for x in data]

    def fresh() -> dsvcca.Store:
        shutil.rmtree(folder / "a.zarr", ignore_errors=True)
        return dsvcca.create_store(folder / "a.zarr", datapoints=rows)

    def write() -> None:
        store = fresh()
        with ExitStack() as commits:
            writers = {k: commits.enter_context(store.writer(layer=k, dims=dims)) for k, dims in layers.items()}
            for i, one in enumerate(ids):
                for layer, writer in writers.items():
                    writer.append(kept[layer][i], datapoints=one)

    works = {
        "forward pass": forward,
        "capture": lambda: capture(model, data, fresh(), layers=layers),
        "write": write,
        "ids": lambda: [row_ids(x) for x in data],
    }
    rounds = [{what: cpu_seconds(work) for what, work in works.items()} for _ in range(repeat + 1)][1:]
    added = [one["capture"] - one["write"] - one["forward pass"] for one in rounds]
    beside = [one["forward pass"] + one["write"] for one in rounds]
    middle = {what: float(np.median([one[what] for one in rounds])) for what in works}
    return {
        "layers": len(layers),
        "bytes written": sum(x.nbytes for one in kept.values() for x in one),
        "CPU seconds": {**middle, "added": float(np.median(added))},
        "added / forward pass": float(
            np.median([a / one["forward pass"] for a, one in zip(added, rounds, strict=True)])
        ),
        "added / (forward pass + write)": float(np.median([a / one for a, one in zip(added, beside, strict=True)])),
    }


def peak(name: str, batches: int, batch: int, folder: str, captured: bool) -> int:
    """Return the peak memory of a process that runs so many batches; they are made one at a time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, layers, draw = NETWORKS[name]()
    model.eval()
    store = dsvcca.create_store(Path(folder, f"{batches}.zarr"), datapoints=batches * batch)

    def data() -> Iterator[torch.Tensor]:
        for _ in range(batches):
            yield draw(batch)

    if captured:
        capture(model, data(), store, layers=layers)
        shutil.rmtree(store.path)
    else:
        with left_as_found(model):
            for x in data():
                model(x)
    return peak_memory()


def memory(name: str, batches: int, batch: int, folder: Path) -> dict[str, Any]:
    """Return peaks of plain forward passes and of captures, of so many batches and of four times as many."""
    found = {}
    for many in (batches, 4 * batches):
        for captured in (False, True):
            what = f"{'capture' if captured else 'forward pass'}, {many} batches"
            found[what] = alone(peak, name, many, batch, str(folder), captured)
    added = [
        found[f"capture, {many} batches"] - found[f"forward pass, {many} batches"] for many in (batches, 4 * batches)
    ]
    return {**found, "added": added[0], "added, four times the batches": added[1]}


def run(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"machine": {**about_this_machine(), "torch": torch.__version__}}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name in options.only or NETWORKS:
            rows = options.rows if name == "small convnet" else options.rows // 4
            os.environ.update(KEEPING)
            taken = alone(cost, name, rows, options.batch, options.repeat, Path(folder))
            for variable in KEEPING:
                del os.environ[variable]
            found[name] = {
                "rows": rows,
                "batch": options.batch,
                **taken,
                "peak memory": memory(name, options.batches, options.batch, Path(folder)),
            }
    return found


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=125)
    parser.add_argument("--batches", type=int, default=8, help="of the measure of memory, and four times as many")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--only", nargs="*", choices=NETWORKS, help="these networks")
    parser.add_argument("--folder", type=Path, help="where stores are made")
    parser.add_argument("--json", type=Path, help="keep the record here")
    options = parser.parse_args(arguments)
    found = run(options)
    show_and_keep(found, options.json)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
