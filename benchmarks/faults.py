"""What faults and the guards against them cost: a driver killed again and again, and every check there is.

python benchmarks/faults.py                        20 kills of one run; another one with and without checks
python benchmarks/faults.py --help
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from common import about_this_machine, show_and_keep, warm
from population import make_population

import dsvcca
from dsvcca.clusters.local import local_client
from dsvcca.results import commits
from dsvcca.storage import chunked, files, records

DRIVER = """
import sys, time
from distributed import Client
import dsvcca
store, out, workspace, scheduler, memory, log = sys.argv[1:]
plan = dsvcca.plan_comparisons(dsvcca.open_store(store), measures="svcca", memory=memory)
client = Client(scheduler, set_as_default=False) if scheduler != "none" else None
with open(log, "a") as file:
    file.write(f"{time.time()}\\n")
dsvcca.compare(plan, out, client=client, workspace=workspace)
"""


def kills(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return what a run costs its workers, left alone and with its driver killed so many times."""
    store = make_population(folder / "a.zarr", options.representations, options.rows, [options.columns], options.rank)
    warm(Path(store.path))
    found: dict[str, Any] = {"kills": options.kills, "representations": options.representations}
    with local_client(options.workers, options.memory) as client:
        pids = list(client.run(os.getpid).values())
        scheduler = client.cluster.scheduler_address
        for name, times in (("undisturbed", 0), ("killed", options.kills)):
            before = cpu_seconds(pids)
            start = time.perf_counter()
            line = [sys.executable, "-c", DRIVER, store.path, folder / name, folder / f"{name}.w", scheduler]
            done = killed(list(map(str, [*line, options.memory, folder / f"{name}.log"])), times, found, folder / name)
            while any(client.processing().values()):  # what a killed driver left to the workers
                time.sleep(0.1)
            found[name] = {
                "workers' CPU seconds": cpu_seconds(pids) - before,
                "seconds": time.perf_counter() - start,
                "tiles there at each kill": done,
            }
    one, other = (dsvcca.open_results(folder / name) for name in ("undisturbed", "killed"))
    found["the same bits"] = all(np.array_equal(one[name], other[name], equal_nan=True) for name in one.data_vars)
    found["work, killed / undisturbed"] = (
        found["killed"]["workers' CPU seconds"] / found["undisturbed"]["workers' CPU seconds"]
    )
    return found


def killed(line: list[str], times: int, found: dict[str, Any], out: Path) -> list[int]:
    """Run a driver to its end, after so many were killed at random moments; return the tiles there were then."""
    chance, tiles = random.Random(0), []
    for _ in range(times):
        driver = subprocess.Popen(line, start_new_session=True)
        log, before = Path(line[-1]), lines_of(Path(line[-1]))
        while lines_of(log) == before and driver.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.2, 1.8) * found["undisturbed"]["seconds"] / (times + 1))
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        tiles.append(len(list(out.glob("commits/*-*.json"))))
    subprocess.run(line, check=True)
    return tiles


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def cpu_seconds(pids: list[int]) -> float:
    """Return the CPU seconds that processes have used so far."""
    ticks = 0
    for pid in pids:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def checks(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return what a run in this process takes with every check of what is read and written, and without any."""
    store = make_population(folder / "b.zarr", options.checked, options.rows, [options.columns], options.rank)
    plan = dsvcca.plan_comparisons(store, measures="svcca", memory=options.memory)
    warm(Path(store.path))
    taken: dict[str, list[float]] = {"with": [], "without": []}
    for turn in range(options.repeat + 1):
        for name in ("with", "without") if turn % 2 else ("without", "with"):
            with ExitStack() as stack:
                if name == "without":
                    stack.enter_context(unchecked())
                start = time.perf_counter()
                dsvcca.compare(plan, folder / f"{name}{turn}", workspace=folder / f"{name}{turn}.w")
                if turn:  # the first run does not count
                    taken[name].append(time.perf_counter() - start)
    seconds = {name: float(np.median(several)) for name, several in taken.items()}
    pairs = [one / other for one, other in zip(taken["with"], taken["without"], strict=True)]
    return {
        "representations": options.checked,
        "seconds": seconds,
        "with / without": float(np.median(pairs)),
    }


@contextmanager
def unchecked() -> Any:
    """Read and write the same bytes, and compute and compare no checksum of them, nor look at any record."""

    def read_chunk(path: Path, dtype: str, shape: Any, checksum: str | None) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with open(path, "rb") as file:
            return np.frombuffer(file.read(size), dtype=np.dtype(dtype).newbyteorder("<")).reshape(shape)

    def write_chunk(path: Path, numbers: Any) -> None:
        with open(path, "wb", buffering=0) as file:
            file.write(np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).data)
            file.write(b"\0\0\0\0")

    def read_record(folder: Path, kind: Any, *, about: Any = None) -> Any:
        return about or records.read_attributes(folder)

    def read_marker(root: Path, name: str, keys: Any = None, *, tail_of: Any = None) -> Any:
        path = root / commits.COMMITS / f"{name}.json"
        return files.read_json(path) if path.exists() else None

    modules = [module for name, module in sys.modules.items() if name.startswith("dsvcca.")]
    checking = {
        "read_chunk": (chunked.read_chunk, read_chunk),
        "write_chunk": (chunked.write_chunk, write_chunk),
        "read_record": (records.read_record, read_record),
        "read_marker": (commits.read_marker, read_marker),
        "record_digest": (records.record_digest, lambda about: about.get("digest")),
        "checked": (records.checked, lambda kind, content: content),
    }
    with ExitStack() as stack:
        for name, (before, instead) in checking.items():
            for module in modules:  # wherever it was imported by its name
                if getattr(module, name, None) is before:
                    stack.enter_context(patch.object(module, name, instead))
        yield


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--representations", type=int, default=1000)
    parser.add_argument("--checked", type=int, default=192, help="representations of the run with and without checks")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=128)
    parser.add_argument("--rank", type=int, default=30)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", default="1.5 GiB")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work; default a temporary folder")
    parser.add_argument("--json", type=Path, help="keep the record here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = {
            "machine": about_this_machine(),
            "checks": checks(options, Path(folder)),
            "kills": kills(options, Path(folder)),
        }
    show_and_keep(found, options.json)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
