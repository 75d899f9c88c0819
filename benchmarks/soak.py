"""Many small plans one after another on one cluster whose workers are recycled: what grows that should not?

python benchmarks/soak.py                          20 minutes
python benchmarks/soak.py --minutes 1
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import about_this_machine, show_and_keep
from distributed import Client
from distributed.deploy.subprocess import SubprocessCluster

import dsvcca

PLACES = ("driver", "scheduler", "workers")
KINDS = tuple(f"{place}'s {what}" for place in PLACES for what in ("memory, MiB", "file descriptors", "threads"))
KINDS = (*(kind.replace("workers's", "workers'") for kind in KINDS), "temporary files")


def of_process(pid: int | None = None) -> tuple[float, int, int]:
    """Return resident memory (MiB), open files and threads of a process."""
    at = Path(f"/proc/{pid or os.getpid()}")
    status = dict(line.split(":", 1) for line in (at / "status").read_text().splitlines() if ":" in line)
    return int(status["VmRSS"].split()[0]) / 1024, len(list((at / "fd").iterdir())), int(status["Threads"])


def round_of(folder: Path, turn: int, client: Any) -> None:
    """Write a small population, compare it, add to it, look at it, take it away again."""
    here = folder / f"round{turn}"
    rng = np.random.default_rng(turn)
    signal = rng.standard_normal((600, 8))
    store = dsvcca.create_store(here / "s.zarr", datapoints=600)
    for seed in range(6):
        store.write(signal @ rng.standard_normal((8, 20)) + rng.standard_normal((600, 20)), layer="a", seed=seed)
        if seed >= 4:
            plan = dsvcca.plan_comparisons(store, targets=signal[:, :2] if turn % 2 else None)
            found = dsvcca.compare(plan, here / "r.zarr", client=client if turn % 3 else None)
            assert np.isfinite(found.svcca.values).all()
    assert not len(store.verify())
    dsvcca.to_frame(dsvcca.open_results(here / "r.zarr"))
    shutil.rmtree(here)


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    series: list[list[float]] = []
    turn, end = 0, time.monotonic() + 60 * options.minutes
    worker = {"memory_limit": "1 GiB", "nthreads": 1, "dashboard_address": None}
    os.environ["DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED"] = "False"  # an hour of samples is kept, by Dask
    cluster = SubprocessCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, worker_kwargs=worker)
    with cluster, Client(cluster, set_as_default=False) as client:
        scheduler = client.run_on_scheduler(os.getpid)
        while time.monotonic() < end:
            round_of(folder, turn, client)
            turn += 1
            if turn % options.recycle == 0:
                client.restart_workers(list(client.scheduler_info(n_workers=-1)["workers"])[:1], timeout=60)
            if turn % options.every == 0:
                gc.collect()
                own = of_process()
                others = list(client.run(of_process, on_error="ignore").values())  # one may be starting just now
                most = [max(one) for one in zip(*others, strict=True)]
                files = sum(len(files) for _, _, files in os.walk(folder))
                series.append([*own, *of_process(scheduler), *most, files])
    numbers = np.asarray(series)
    first, last = (
        numbers[part].mean(axis=0)
        for part in (slice(len(series) // 4, len(series) // 2), slice(-max(1, len(series) // 4), None))
    )
    return {
        "machine": about_this_machine(),
        "minutes": options.minutes,
        "rounds": turn,
        "of the second quarter, and of the last": {
            kind: [float(a), float(b)] for kind, a, b in zip(KINDS, first, last, strict=True)
        },
        "growth of memory in the second half, KiB a round": {
            place: growth(numbers[len(series) // 2 :, 3 * i]) / options.every for i, place in enumerate(PLACES[:2])
        },
    }


def growth(memory: Any) -> float:
    """Return the slope of a series in MiB, in KiB from one to the next."""
    return float(np.polyfit(np.arange(len(memory)), memory, 1)[0]) * 1024


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--recycle", type=int, default=20, help="rounds after which a worker is restarted")
    parser.add_argument("--every", type=int, default=5, help="rounds between two looks")
    parser.add_argument("--folder", type=Path, help="where to work; default a temporary folder")
    parser.add_argument("--json", type=Path, help="keep the record here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = run(options, Path(folder))
    show_and_keep(found, options.json)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
