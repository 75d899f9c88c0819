"""What a comparison costs in a population, against the textbook way, in one run on one machine.

    python benchmarks/population.py                    512 representations of 10,000 x 256, about 30 directions kept
    python benchmarks/population.py --rank 85          more of them kept
    python benchmarks/population.py --variance 1 --representations 64
    python benchmarks/population.py --help

Everything is measured in this run, one BLAS thread each, disk to disk with a warm page cache: the textbook pair reads
its two arrays from the same store. Times are medians; what counts are the ratios, and how near the whole job comes to
what must be done at the rates measured beside it (`common.limit`).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from common import (
    about_this_machine,
    limit,
    peak_memory,
    rates,
    read_ranks,
    seconds,
    show_and_keep,
    warm,
)
from dask.utils import parse_bytes

import dsvcca
from dsvcca.clusters.local import local_client
from dsvcca.engine.cluster import machine_of


def make_population(
    path: Path, count: int, n: int, widths: list[int], rank: int, first: int = 0, kept: float | None = None
) -> dsvcca.activations.store.Store:
    """Write representations that share a signal and keep about `rank` directions at 99 % of the variance.

    Of `kept` given, that share of the columns.
    """
    store = dsvcca.open_store(path) if path.exists() else dsvcca.create_store(path, datapoints=n)
    shared = np.random.default_rng(0).standard_normal((n, 2 * rank)).astype(np.float32)
    for seed in range(first, first + count):
        rng = np.random.default_rng([1, seed])
        p = widths[seed % len(widths)]
        k = min(p, rank if kept is None else max(2, int(kept * p)))
        latent = shared @ rng.standard_normal((2 * rank, k), dtype=np.float32)
        latent += rng.standard_normal((n, k), dtype=np.float32)
        x = latent @ rng.standard_normal((k, p), dtype=np.float32)
        x += 0.3 * rng.standard_normal((n, p), dtype=np.float32)
        store.write(x, layer="layer", seed=seed)
    return store


def read(store: dsvcca.activations.store.Store, i: int) -> Any:
    """Return activations from disk, centred, as float64."""
    x = np.asarray(zarr.open_array(store.representations[i].array, mode="r")[:], dtype=np.float64)
    x -= x.mean(axis=0)
    return x


def inverse_root(c: Any) -> Any:
    values, vectors = np.linalg.eigh(c)
    if values[0] <= 1e-12 * values[-1]:  # neurons that are dead, or follow from others
        values = np.where(values <= 1e-12 * values[-1], np.inf, values)
    return (vectors / np.sqrt(values)) @ vectors.T


def textbook_cca(x: Any, y: Any) -> float:
    """Mean canonical correlation by covariances, inverse square roots and an SVD."""
    rho = np.linalg.svd(inverse_root(x.T @ x) @ (x.T @ y) @ inverse_root(y.T @ y), compute_uv=False)
    return float(rho.mean())


def textbook_flops(n: int, p: int) -> float:
    """Flops of the textbook pair: three covariances, two eigenproblems and their products, an SVD."""
    return 2.0 * n * p * p + 2.0 * n * p * p + 2 * (9.0 * p**3 + 2.0 * p**3) + 4.0 * p**3 + 22.0 / 3 * p**3


def leading(x: Any, variance: float = 0.99) -> Any:
    """Project centred activations on the singular directions that hold `variance`, by an SVD of the activations."""
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    k = int(np.searchsorted(np.cumsum(s**2), variance * np.sum(s**2))) + 1
    return u[:, :k] * s[:k]


def cached_whitening(paths: list[Path]) -> float:
    """Mean canonical correlation of activations that were whitened before and not reduced: read, multiply, SVD."""
    x, y = (np.load(path) for path in paths)
    return float(np.linalg.svd(x.T @ y, compute_uv=False).mean())


def compare_repeatedly(
    plan: Any, folder: Path, options: argparse.Namespace
) -> tuple[dict[str, float], dict[str, int], Any]:
    """Compare from nothing several times, and once more with the bases there; return the times, memory, and results."""
    taken = []
    with local_client(options.workers, options.memory) as client:
        for turn in range(options.repeat + 1):  # the first warms the workers up and does not count
            shutil.rmtree(folder / "r.zarr", ignore_errors=True)
            shutil.rmtree(folder / "w", ignore_errors=True)
            warm(Path(plan.store))
            start = time.perf_counter()
            dsvcca.compare(plan, folder / "r.zarr", client=client, workspace=folder / "w")
            if turn:
                taken.append(time.perf_counter() - start)
        # The bases are there now: what is left is the correlate stage, beside that with values alone.
        plans = {"correlate": plan}
        if any(name.startswith("pwcca") for name in plan.measures):
            plans["values alone"] = replace(plan, measures=("svcca",))
        stages: dict[str, list[float]] = {name: [] for name in plans}
        for _ in range(options.repeat if len(plans) > 1 else 1):
            for name, one in plans.items():
                shutil.rmtree(folder / "r.zarr")
                start = time.perf_counter()
                results = dsvcca.compare(one, folder / "r.zarr", client=client, workspace=folder / "w")
                stages[name].append(time.perf_counter() - start)
        peak = max(client.run(peak_memory).values())
        predicted = plan.price(read_ranks(plan, folder / "w"), machine_of(client))
    memory = {"worker limit": parse_bytes(options.memory), "plan's figure": predicted.memory, "measured peak": peak}
    times = {name: float(np.median(several)) for name, several in {"whole": taken, **stages}.items()}
    times["plan's"] = predicted.seconds
    return times, memory, results


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    n, p = options.rows, options.columns
    if options.store:
        store = dsvcca.open_store(options.store)
        store = store.select(layer=options.layers.split(",")) if options.layers else store
    else:
        store = make_population(folder / "a.zarr", options.representations, n, [p], options.rank)
    n, p = store.representations[0].logical_shape
    warm(Path(store.path))
    repeat = options.repeat
    cca_pair = seconds(lambda: textbook_cca(read(store, 0), read(store, 1)), repeat)
    svcca_pair = seconds(lambda: textbook_cca(leading(read(store, 0)), leading(read(store, 1))), repeat)
    paths = [folder / f"{i}.npy" for i in (0, 1)]
    for i, path in enumerate(paths):
        np.save(path, np.linalg.svd(read(store, i), full_matrices=False)[0])
    cached_pair = seconds(lambda: cached_whitening(paths), repeat)

    measures = options.measures.split(",")
    plan = dsvcca.plan_comparisons(store, measures=measures, memory=options.memory, variance=options.variance)
    taken, memory, results = compare_repeatedly(plan, folder, options)
    ranks = read_ranks(plan, folder / "w")
    solved = max(8, int(np.mean(ranks)))
    rate = rates(options.workers, p, solved, folder)
    least = limit(plan, ranks, rate, solved)
    truth = textbook_cca(*(read(store, i) if options.variance == 1 else leading(read(store, i)) for i in (0, 1)))
    whole, predicted = taken["whole"], taken["plan's"]
    beside = {}
    if "values alone" in taken:
        beside = {"correlate stage / that with values alone": taken["correlate"] / taken["values alone"]}
    ours = whole / plan.pairs.count
    return {
        "machine": about_this_machine(),
        "population": {
            "representations": len(store.representations),
            "rows": n,
            "columns": p,
            "kept": float(np.mean(ranks)),
            "comparisons": plan.pairs.count,
            "workers": options.workers,
            "measures": measures,
            "variance": options.variance,
        },
        "rates": rate,
        "seconds": {
            "textbook CCA pair": cca_pair,
            "textbook SVCCA pair": svcca_pair,
            "cached whitening pair": cached_pair,
            "whole population": whole,
            "of it whitening": whole - taken["correlate"],
            "a pair": ours,
            "plan's": predicted,
        },
        "limit, seconds": least,
        "ratios": {
            "textbook CCA pair / ours": cca_pair / ours,
            "textbook SVCCA pair / ours": svcca_pair / ours,
            "cached whitening pair / ours": cached_pair / ours,
            "textbook CCA pair, share of peak": textbook_flops(n, p) / cca_pair / rate["float64 product"],
            **beside,
            "tile product, share of the float32 peak": rate["tile product"] / rate["float32 product"],
            "whole / limit": whole / least["all"],
            "whole / plan's time": whole / predicted,
        },
        "memory": memory,
        "difference from the textbook": abs(float(results.svcca[0, 1]) - truth),
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--representations", type=int, default=512)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=256)
    parser.add_argument("--rank", type=int, default=30, help="directions that the data have above the noise")
    parser.add_argument("--store", help="compare what is in this store instead")
    parser.add_argument("--layers", help="of that store only these layers, with commas")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--memory", default="1.5 GiB", help="limit of a worker")
    parser.add_argument("--measures", default="svcca", help="what the textbook pair gives, by default")
    parser.add_argument("--variance", type=float, default=0.99)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work; default a temporary folder")
    parser.add_argument("--json", type=Path, help="keep the record here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = run(options, Path(folder))
    show_and_keep(found, options.json)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
