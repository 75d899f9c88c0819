"""How many workers one driver feeds: hundreds of simulated workers whose tasks sleep, on the real queue.

    python benchmarks/drivers.py                       300 workers in 4 processes, tasks of 2, 5 and 10 s
    python benchmarks/drivers.py --help

Scheduler, queue, receipts and tasks as compressed bytes are the real ones; a worker is a thread that sleeps. Scheduler
and driver share one process, and its CPU time says how many tasks a second it could hand out with a core to itself:
here the simulated workers take part of the cores too.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
from common import about_this_machine, show_and_keep
from distributed import Client, LocalCluster, Worker

from dsvcca.engine import execute

QUIET = {
    # Each worker watches itself a hundred times a second: one does not notice, hundreds in a process do nothing else.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.worker.memory.monitor-interval": "10s",
}


def sleep(task: tuple[float, bytes]) -> str:
    time.sleep(task[0])
    return "done" * 50


def simulate(scheduler: str, count: int) -> None:
    """Run so many workers in this process until it is ended."""
    logging.getLogger("distributed").setLevel(logging.ERROR)
    dask.config.set(QUIET)

    async def live() -> None:
        workers = [Worker(scheduler, nthreads=1, memory_limit=0, dashboard=False) for _ in range(count)]
        await asyncio.gather(*workers)
        await asyncio.gather(*(worker.finished() for worker in workers))

    asyncio.run(live())


@contextmanager
def simulated_cluster(workers: int, processes: int) -> Iterator[Client]:
    """Start a scheduler here, and so many workers in a few processes."""
    context = multiprocessing.get_context("spawn")
    shares = [workers // processes + (i < workers % processes) for i in range(processes)]
    with (
        LocalCluster(n_workers=0, protocol="tcp", dashboard_address=None, silence_logs=logging.ERROR) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        crowd = [
            context.Process(target=simulate, args=(cluster.scheduler_address, n), daemon=True) for n in shares if n
        ]
        for process in crowd:
            process.start()
        try:
            client.wait_for_workers(workers, timeout=300)
            yield client
        finally:
            for process in crowd:
                process.kill()
                process.join()


def run(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"machine": about_this_machine(), "workers": options.workers}
    with simulated_cluster(options.workers, options.processes) as client:
        execute.run(sleep, [(0.0, bytes(1000))] * options.workers, client=client, title="first")
        for length in options.seconds:
            count = int(options.workers * options.rounds)
            cpu = time.process_time()
            start = time.perf_counter()
            receipts, failures = execute.run(sleep, [(length, bytes(1000))] * count, client=client, title="sleep")
            taken = time.perf_counter() - start
            if len(receipts) != count or failures:
                raise RuntimeError(f"{len(failures)} of {count} tasks failed")
            each = (time.process_time() - cpu) / count
            found[f"tasks of {length:g} s"] = {
                "tasks": count,
                "seconds": taken,
                "tasks a second": count / taken,
                "share of workers busy": count * length / taken / options.workers,
                "CPU seconds of scheduler and driver a task": each,
                "tasks a second of one core": 1 / each,
            }
    return found


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=300)
    parser.add_argument("--processes", type=int, default=4, help="that the simulated workers share")
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 5.0, 10.0], help="how long a task takes")
    parser.add_argument("--rounds", type=float, default=4, help="tasks for each worker")
    parser.add_argument("--json", type=Path, help="keep the record here")
    options = parser.parse_args(arguments)
    found = run(options)
    show_and_keep(found, options.json)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
