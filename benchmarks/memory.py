"""Whether the memory that a plan names is what a worker takes: never less, and not much more.

    python benchmarks/memory.py                        a worker started anew for each kind of work
    python benchmarks/memory.py --help

The plan's figure is that for known ranks; measured is the peak of the worker's process (VmHWM).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import about_this_machine, peak_memory, read_ranks, show_and_keep

import dsvcca
from dsvcca.clusters.local import local_client
from dsvcca.plans.sizes import SEGMENT_BYTES

Make = Callable[[np.random.Generator, int], Any]


def dense(count: int, n: int, p: int, rank: int, noise: float = 0.05) -> tuple[int, int, Make, dict[str, Any]]:
    def make(rng: np.random.Generator, seed: int) -> Any:
        shared = np.random.default_rng(0).standard_normal((n, rank))
        x = shared @ rng.standard_normal((rank, p)) + noise * rng.standard_normal((n, p))
        return x.astype(np.float32)

    return count, n, make, {}


def one_of(count: int, n: int, p: int, rank: int) -> tuple[int, int, Make, dict[str, Any]]:
    """One representation four times as wide keeps all its directions, the others few."""
    _, _, few, _ = dense(count, n, p, rank)

    def make(rng: np.random.Generator, seed: int) -> Any:
        return few(rng, seed) if seed else rng.standard_normal((n, 4 * p), dtype=np.float32)

    return count, n, make, {}


def maps(count: int, n: int, side: int, c: int) -> tuple[int, int, Make, dict[str, Any]]:
    def make(rng: np.random.Generator, seed: int) -> Any:
        return rng.standard_normal((n, side, side, c), dtype=np.float32)

    return count, n, make, {"dims": "nhwc"}


ERRORS = ["svcca", "svcca_error", "svcca_held_out"]

CASES: dict[str, tuple[tuple[int, int, Make, dict[str, Any]], dict[str, Any]]] = {
    "dense, 256 columns, 30 kept": (dense(256, 10_000, 256, 30), {}),
    "dense, 256 columns, 85 kept": (dense(160, 10_000, 256, 85), {}),
    "dense, 256 columns, all kept": (dense(48, 10_000, 256, 256), {"variance": 1.0}),
    "dense, 64 columns, PWCCA": (dense(400, 5_000, 64, 20), {}),
    "dense, one keeps far more": (one_of(120, 5_000, 256, 20), {}),
    "dense, 1024 columns": (dense(40, 8_000, 1024, 100), {}),
    "dense, 85 kept, errors": (dense(160, 10_000, 256, 85), {"measures": ERRORS}),
    "dense, all kept, errors": (dense(24, 10_000, 256, 256), {"variance": 1.0, "measures": ERRORS}),
    "dense, shuffled": (dense(160, 10_000, 256, 30), {"measures": ["svcca_shuffled"]}),
    "a wide one, 4096 columns": (dense(6, 10_000, 4096, 60), {"memory": "2.5 GiB"}),
    "more columns than rows": (dense(6, 2_000, 12_000, 40), {}),
    "maps 8 x 8 x 32": (maps(12, 4_000, 8, 32), {"variance": 0.5}),
    "maps 8 x 8 x 32, errors": (maps(12, 4_000, 8, 32), {"variance": 0.5, "measures": ERRORS}),
    "maps 16 x 16 x 32": (maps(3, 20_000, 16, 32), {"variance": 0.5}),
    "maps 16 x 16 x 32, in segments": (
        maps(3, 20_000, 16, 32),
        {"variance": 0.5, "route": "bases", "segment": 1 << 28},
    ),
    "maps 16 x 16 x 32, direct": (maps(2, 40_000, 16, 32), {"variance": 0.5}),
}


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"machine": about_this_machine()}
    chosen = {name: case for name, case in CASES.items() if options.only in name}
    for place, (name, ((count, n, make, labels), how)) in enumerate(chosen.items()):
        count = max(2, count // options.divide)
        store = dsvcca.create_store(folder / f"{place}.zarr", datapoints=n)
        for seed in range(count):
            store.write(make(np.random.default_rng(seed + 1), seed), layer="layer", seed=seed, **labels)
        how = {"memory": options.memory, **how}
        segment = how.pop("segment", SEGMENT_BYTES)
        plan = replace(dsvcca.plan_comparisons(store, **how), segment=segment)
        with local_client(1, how["memory"]) as client:
            dsvcca.compare(plan, folder / f"{place}.r", client=client, workspace=folder / f"{place}.w")
            peak = max(client.run(peak_memory).values())
        figure = plan.price(read_ranks(plan, folder / f"{place}.w")).memory
        found[name] = {"plan's figure": figure, "measured peak": peak, "figure / peak": figure / peak}
        print(f"{name:36} {figure >> 20:6} MiB {peak >> 20:6} MiB {figure / peak:6.2f}", flush=True)
    ratios = [one["figure / peak"] for name, one in found.items() if name != "machine"]
    return {**found, "least": min(ratios), "most": max(ratios)}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", default="1.5 GiB", help="limit of a worker")
    parser.add_argument("--only", default="", help=f"cases whose name has this in it, of: {'; '.join(CASES)}")
    parser.add_argument("--divide", type=int, default=1, help="take so many times fewer representations")
    parser.add_argument("--folder", type=Path, help="where to work; default a temporary folder")
    parser.add_argument("--json", type=Path, help="keep the record here")
    options = parser.parse_args(arguments)
    if not any(options.only in name for name in CASES):
        parser.error(f"--only {options.only!r} is in no name: {'; '.join(CASES)}")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = run(options, Path(folder))
    show_and_keep(found, options.json)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
