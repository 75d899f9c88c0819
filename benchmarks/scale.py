"""Populations on two workers of 1.5 GiB: how two workers compare with one, a million comparisons, mixed widths.

    python benchmarks/scale.py                         512 on one and on two workers, 1,600, 512 of mixed widths
    python benchmarks/scale.py --help

Scaling is held against that of two processes that multiply and nothing else. Of the scheduler and the driver CPU
seconds and memory are reported, and every memory warning of Dask would be.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from common import about_this_machine, limit, peak_memory, rates, read_ranks, show_and_keep, warm
from population import make_population

import dsvcca
from dsvcca.clusters.local import local_client
from dsvcca.engine.cluster import machine_of

MIXED = [64, 64, 128, 128, 256, 256, 512, 512]


def cpu_seconds() -> float:
    """Return the CPU time of this process."""
    return time.process_time()


def warnings_of_memory(client: Any) -> list[str]:
    """Return what Dask's workers said of their memory."""
    logs = [*client.get_worker_logs().values(), *client.get_worker_logs(nanny=True).values()]
    said = {line for lines in logs for level, line in lines if level in ("WARNING", "ERROR", "CRITICAL")}
    return sorted(line for line in said if "memory" in line.lower())


@contextmanager
def cluster(workers: int, memory: str) -> Iterator[Any]:
    """Start workers that have imported everything."""
    with local_client(workers, memory) as client:
        machine_of(client)
        yield client


def _write(path: Path, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    make_population(path, *arguments, **options)


def written(path: Path, *arguments: Any, **options: Any) -> Any:
    """Return a population that another process wrote: what this one takes is then the driver's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(_write, path, arguments, options).result()
    return dsvcca.open_store(path)


def once(store: Any, folder: Path, client: Any, options: argparse.Namespace, repeat: int) -> dict[str, Any]:
    """Compare from nothing; return the time and what a run took beside, medians where it is done several times.

    Of several the first warms the workers up and does not count; of one nothing is left out.
    """
    plan = dsvcca.plan_comparisons(store, measures="svcca", memory=options.memory)
    taken, shares = [], []
    for turn in range(repeat + (repeat > 1)):
        for name in ("r", "w"):
            shutil.rmtree(folder / name, ignore_errors=True)
        warm(Path(store.path))
        before = client.run(cpu_seconds), cpu_seconds()
        start = time.perf_counter()
        dsvcca.compare(plan, folder / "r", client=client, workspace=folder / "w")
        seconds = time.perf_counter() - start
        of_workers = sum(after - before[0][name] for name, after in client.run(cpu_seconds).items())
        if turn or repeat == 1:
            taken.append(seconds)
            shares.append((cpu_seconds() - before[1]) / of_workers)  # the scheduler lives in this process
    driver = peak_memory()
    ranks = read_ranks(plan, folder / "w")
    return {
        "representations": len(store.representations),
        "comparisons": plan.pairs.count,
        "kept": float(np.mean(ranks)),
        "seconds": float(np.median(taken)),
        "microseconds a pair": float(np.median(taken)) / plan.pairs.count * 1e6,
        "driver and scheduler, share of the workers' CPU": float(np.median(shares)),
        "plan's time": plan.price(ranks, machine_of(client)).seconds,
        "plan's memory figure": plan.price(ranks).memory,
        "worker's peak memory": max(client.run(peak_memory).values()),
        "driver's peak memory": driver,
        "memory warnings of Dask": warnings_of_memory(client),
        "_ranks": ranks,
        "_plan": plan,
    }


def with_limit(one: dict[str, Any], processes: int, columns: int, folder: Path) -> dict[str, Any]:
    """Add the limit of a run at the rates of as many processes."""
    ranks, plan = one.pop("_ranks"), one.pop("_plan")
    solved = max(8, int(np.max(ranks)))
    rate = rates(processes, columns, solved, folder)
    least = limit(plan, ranks, rate, solved)
    return {**one, "rates": rate, "limit, seconds": least, "seconds / limit": one["seconds"] / least["all"]}


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"machine": about_this_machine()}
    n, p = options.rows, options.columns
    small = written(folder / "small.zarr", options.small, n, [p], options.rank)
    for workers in (1, 2):
        with cluster(workers, options.memory) as client:
            one = once(small, folder, client, options, options.repeat)
        found[f"{workers} workers"] = with_limit(one, workers, p, folder)
    plain = [found[f"{workers} workers"]["rates"]["float32 product"] for workers in (1, 2)]
    scaling = found["1 workers"]["seconds"] / found["2 workers"]["seconds"]
    found["scaling"] = {
        "of comparisons": scaling,
        "of plain products": plain[1] / plain[0],
        "ratio": scaling / (plain[1] / plain[0]),
    }
    start = time.perf_counter()
    large = written(folder / "small.zarr", options.large - options.small, n, [p], options.rank, options.small)
    writing = time.perf_counter() - start
    with cluster(2, options.memory) as client:
        one = once(large, folder, client, options, 1)
    found["large"] = {**with_limit(one, 2, p, folder), "seconds of writing": writing}
    found["large"]["a pair / at the smaller size"] = (
        found["large"]["microseconds a pair"] / found["2 workers"]["microseconds a pair"]
    )
    shutil.rmtree(folder / "small.zarr")
    if options.mixed:
        mixed = written(folder / "mixed.zarr", options.mixed, n, MIXED, 200, kept=1 / 3)
        with cluster(2, options.memory) as client:
            one = once(mixed, folder, client, options, 1)
        found["mixed widths"] = with_limit(one, 2, max(MIXED), folder)
    return found


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=512)
    parser.add_argument("--large", type=int, default=1600)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=256)
    parser.add_argument("--rank", type=int, default=30)
    parser.add_argument("--memory", default="1.5 GiB", help="limit of a worker")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--mixed", type=int, default=512, help="representations of mixed widths")
    parser.add_argument("--folder", type=Path, help="where to work, 25 GB; default a temporary folder")
    parser.add_argument("--json", type=Path, help="keep the record here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = run(options, Path(folder))
    show_and_keep(found, options.json)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
