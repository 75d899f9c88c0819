"""Two convolutional layers larger than memory, compared by frequency, against the limit of this machine.

    python benchmarks/convolutions.py               32 x 32 x 64, 20,000 images: twice 5 GB under 1.5 GiB
    python benchmarks/convolutions.py --help

The limit is what must be done, each at the rate measured beside it in the same run, in one thread: every byte read once
and checked (twice where bases are made), every value transformed, the Gram of both layers side by side at every
frequency, what is written. The comparison is also made with half of the images: its memory must stay the same.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
from common import about_this_machine, peak_memory, seconds, show_and_keep
from scipy.linalg.blas import zherk

import dsvcca
from dsvcca.clusters.local import local_client
from dsvcca.maths.frequencies import CACHED, half_spectrum

BATCH = 100


def make_layers(path: Path, rows: int, size: int, channels: int) -> dsvcca.Store:
    """Write two layers that see the same images through filters of their own."""
    store = dsvcca.create_store(path, datapoints=rows)
    for seed in range(2):
        with store.writer(layer="conv", seed=seed, dims="nhwc", if_exists="skip") as writer:
            if writer.skipped:
                continue
            images, own = np.random.default_rng(1), np.random.default_rng(10 + seed)
            filters = np.random.default_rng(20 + seed).standard_normal((channels * 5 // 8, channels), dtype=np.float32)
            for start in range(0, rows, BATCH):
                shape = min(BATCH, rows - start), size, size
                field = images.standard_normal((*shape, len(filters)), dtype=np.float32)
                field = field + np.roll(field, 1, 1) + np.roll(field, 1, 2)
                noise = own.standard_normal((*shape, channels), dtype=np.float32)
                writer.append(field @ filters + 0.5 * noise)
    return store


def rates(store: dsvcca.Store, folder: Path, size: int, channels: int, step: int) -> dict[str, float]:
    """Return what one thread of this machine does a second: bytes read and written, values transformed, flops."""
    [first, *_] = store.representations
    chunks = sorted(Path(first.array).glob("c.*"))[:32]
    total = sum(path.stat().st_size for path in chunks)
    read = seconds(lambda: [path.read_bytes() for path in chunks], 5)
    few = max(1, CACHED // (8 * size * size * channels))
    x = np.random.default_rng(0).standard_normal((few, size, size, channels))
    transform = seconds(lambda: [scipy.fft.rfftn(x, axes=(1, 2), norm="ortho") for _ in range(20)], 5)
    side = 2 * channels
    z = np.random.default_rng(0).standard_normal((64, step, 2 * side)).view(np.complex128)
    grams = [np.zeros((side, side), complex, order="F") for _ in z]
    product = seconds(lambda: [zherk(1.0, a.T, beta=1.0, c=g, overwrite_c=1) for a, g in zip(z, grams, strict=True)], 5)
    block = os.urandom(64 << 20)

    def write() -> None:
        with open(folder / "written", "wb") as file:
            file.write(block)
            os.fsync(file.fileno())

    return {
        "bytes read": total / read,
        "values transformed": 20 * x.size / transform,
        "flops": 64 * 4 * step * side**2 / product,
        "bytes written": len(block) / seconds(write, 5),
    }


def usage() -> dict[str, int]:
    """Return the peak memory of this process, and the bytes it has read and written in all, on disk or in cache."""
    with open("/proc/self/io") as file:
        lines = dict(line.split(": ") for line in file.read().splitlines())
    return {"peak": peak_memory(), "read": int(lines["rchar"]), "written": int(lines["wchar"])}


def run(store: dsvcca.Store, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Compare the two layers on one worker, and return what it took."""
    plan = dsvcca.plan_comparisons(
        store, [({"seed": 0}, {"seed": 1})], view="dft", memory=options.memory, route=options.route
    )
    for place in ("r.zarr", "w"):
        shutil.rmtree(folder / place, ignore_errors=True)
    with local_client(1, options.memory) as client:
        before = next(iter(client.run(usage).values()))
        start = time.perf_counter()
        results = dsvcca.compare(plan, folder / "r.zarr", client=client, workspace=folder / "w")
        taken = time.perf_counter() - start
        after = next(iter(client.run(usage).values()))
    print(f"{plan}\n  took {taken:.1f} s\n", flush=True)
    activations = sum(r.nbytes for r in plan.representations)
    return {
        "svcca": float(results.svcca[0, 1]),
        "rank": [int(results.rank_x[0, 1]), int(results.rank_y[0, 1])],
        "route": results.attrs["route"],
        "seconds": taken,
        "plan's seconds": plan.price().seconds,
        "peak": after["peak"],
        "plan's figure": plan.price().memory,
        "activations": activations,
        "read": after["read"] - before["read"],
        "written": after["written"] - before["written"],
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--memory", default="1.5 GiB")
    parser.add_argument("--route", default="auto")
    parser.add_argument("--folder", type=Path, help="where to work, and to keep the activations for another run")
    parser.add_argument("--json", type=Path, help="write the record here")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="dsvcca-benchmark-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        stores = [
            make_layers(folder / f"{rows}.zarr", rows, options.size, options.channels)
            for rows in (options.rows // 2, options.rows)
        ]
        half, whole = (run(store, folder, options) for store in stores)
        step = 128
        speed = rates(stores[1], folder, options.size, options.channels, step)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    bins = len(half_spectrum((options.size, options.size)).bins)
    passes = 1 if whole["route"] == "direct" else 2
    values = 2 * options.rows * options.size**2 * options.channels
    kept = sum(whole["rank"])
    flops = 4 * options.rows * bins * (2 * options.channels) ** 2
    if passes == 2:  # Gram of each; projection, Gram of the columns; cross product
        flops = 4 * options.rows * bins * 2 * options.channels**2
        flops += options.rows * (4 * options.channels * kept + 4 * kept**2 / (2 * bins) * 2)
    limit = {
        "read": whole["activations"] * passes / speed["bytes read"],
        "transform": values * passes / speed["values transformed"],
        "products": flops / speed["flops"],
        "write": whole["written"] / speed["bytes written"],
    }
    record = {
        "machine": about_this_machine(),
        "half": half,
        "whole": whole,
        "rates": speed,
        "limit": limit,
        "ratios": {
            "time / limit": whole["seconds"] / sum(limit.values()),
            "bytes read / activations": whole["read"] / whole["activations"],
            "peak / plan's figure": whole["peak"] / whole["plan's figure"],
            "peak / peak with half of the rows": whole["peak"] / half["peak"],
            "time / plan's time": whole["seconds"] / whole["plan's seconds"],
        },
    }
    show_and_keep(record, options.json)
    return record


if __name__ == "__main__":
    main(sys.argv[1:])
