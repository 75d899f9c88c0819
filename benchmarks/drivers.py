"""How many workers one driver feeds: hundreds of simulated workers whose tasks sleep, on the real queue.

    python benchmarks/drivers.py                       300 workers in a few processes, tasks of 1, 2 and 5 s
    python benchmarks/drivers.py --help

Scheduler, queue, receipts and tasks as compressed bytes are the real ones; a worker is a thread that sleeps.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from common import about_this_machine, show_and_keep
from distributed import Client, Scheduler, SpecCluster, Worker

from dsvcca import execute


def sleep(task: tuple[float, bytes]) -> str:
    time.sleep(task[0])
    return "done" * 50


def run(options: argparse.Namespace) -> dict[str, Any]:
    worker = {"cls": Worker, "options": {"nthreads": 1, "memory_limit": 0, "heartbeat_interval": "5s"}}
    found: dict[str, Any] = {"machine": about_this_machine(), "workers": options.workers}
    with (
        SpecCluster(
            dict.fromkeys(range(options.workers), worker),
            scheduler={"cls": Scheduler, "options": {"dashboard_address": None}},
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(options.workers, timeout=300)
        for length in options.seconds:
            count = int(options.workers * options.rounds)
            cpu = time.process_time()
            start = time.perf_counter()
            receipts, failures = execute.run(sleep, [(length, bytes(1000))] * count, client=client, title="sleep")
            taken = time.perf_counter() - start
            if len(receipts) != count or failures:
                raise RuntimeError(f"{len(failures)} of {count} tasks failed")
            found[f"tasks of {length:g} s"] = {
                "tasks": count,
                "seconds": taken,
                "tasks a second": count / taken,
                "workers kept busy": count * length / taken,
                "share of workers": count * length / taken / options.workers,
                "CPU seconds a task": (time.process_time() - cpu) / count,
            }
    return found


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=300)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 2.0, 5.0], help="how long a task takes")
    parser.add_argument("--rounds", type=float, default=4, help="tasks for each worker")
    parser.add_argument("--json", type=Path, help="keep the record here")
    options = parser.parse_args(arguments)
    found = run(options)
    show_and_keep(found, options.json)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
