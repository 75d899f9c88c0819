"""What a process says of itself and its machine; what of it keeps a run from going well."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import get_worker

from dsvcca.clusters.settings import WORKER_ENVIRONMENT
from dsvcca.maths.blas import threads_held_to

GPU = "GPU"
"""The Dask resource by which a worker says that it has one."""

DEVICE = "DSVCCA_DEVICE"
"""Environment variable: the array library, and device, of a process (see `arrays.computing_on`)."""

SKEW = 30
"""Seconds by which clocks may differ."""

TRIM = "MALLOC_TRIM_THRESHOLD_"
"""Environment variable: how much free memory the allocator keeps before it gives it back."""


@dataclass(frozen=True)
class Facts:
    """What a process knows of itself and its machine.

    Attributes
    ----------
    host : str
    clock : float
        Seconds since 1970.
    memory : int or None
        Bytes that the machine, or the container, has for all its processes.
    environment : dict
        Of what `WORKER_ENVIRONMENT` names, what was set when the process began.
    gpus : int
        Of NVIDIA, that the machine shows.
    blas : int
        Threads that linear algebra takes where it is held to one.
    cores : int
        That the process may use.
    """

    host: str
    clock: float
    memory: int | None
    environment: Mapping[str, str]
    gpus: int
    blas: int
    cores: int


def facts() -> Facts:
    """Return what this process knows of itself."""
    return Facts(
        socket.gethostname(),
        time.time(),
        _memory(),
        {name: os.environ[name] for name in WORKER_ENVIRONMENT if name in os.environ},
        len([path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()]),
        threads_held_to(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )


def _memory() -> int | None:
    """Return the memory of this machine, or of the control group that this process is in, if that has less."""
    found = []
    with suppress(OSError, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError):
        found += _limits(Path("/proc/self/cgroup").read_text(), Path("/sys/fs/cgroup"))
    return min(found, default=None)


def _limits(groups: str, mount: Path) -> list[int]:
    """Return the limits of memory of control groups, and of those above them, of both versions.

    Parameters
    ----------
    groups : str
        Lines such as ``0::/slurm/job_7`` and ``4:memory:/slurm/job_7``.
    mount : path
        Where they are to be seen.
    """
    found = []
    for line in groups.splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top, name = (mount / "memory", "memory.limit_in_bytes") if controllers else (mount, "memory.max")
        folder = top / own.lstrip("/")  # in a container it may be one that is not to be seen there
        for group in (folder, *folder.parents):
            with suppress(OSError, ValueError):  # "max" where there is none
                found.append(int((group / name).read_text()))
            if group == top:
                break
    return found


def device_of_process() -> str | None:
    """Return what this process computes on: None for NumPy. On a cluster, workers with the resource GPU have one."""
    try:
        has = get_worker().state.total_resources.get(GPU, 0) > 0
    except ValueError:
        return os.environ.get(DEVICE)
    return os.environ.get(DEVICE, "cupy") if has else None


def has_gpu(worker: Mapping[str, Any]) -> bool:
    """Return whether a worker says that it has a GPU."""
    return bool(worker.get("resources", {}).get(GPU, 0) > 0)


def harm(workers: Sequence[Mapping[str, Any]], found: Mapping[str, Facts], asked: tuple[float, float]) -> list[str]:
    """Return what will do harm sooner or later, a sentence each.

    Parameters
    ----------
    workers : sequence
        What the scheduler says of each (`cluster.workers_of`).
    found : mapping
        What each says of itself, by address.
    asked : (float, float)
        When they were asked and had all answered, by the clock here.
    """
    sentences = []
    promised: dict[tuple[str, int], list[int]] = defaultdict(list)
    for worker in workers:
        said = found.get(worker["address"])
        if said is not None and said.memory is not None:
            promised[said.host, said.memory].append(worker["memory_limit"] or 0)
    for (host, memory), limits in promised.items():
        if sum(limits) > 1.02 * memory:
            sentences.append(
                f"the {len(limits)} workers of {host} may take {_gib(sum(limits))} together and it has {_gib(memory)}: "
                "the system will end some of them; start fewer, or with a smaller --memory-limit"
            )
    skewed = {address: max(asked[0] - said.clock, said.clock - asked[1], 0) for address, said in found.items()}
    if late := [address for address, seconds in skewed.items() if seconds > SKEW]:
        sentences.append(
            f"{whose(late)}: the clock differs from the one here by {max(skewed.values()):.0f} s: set clocks right, or "
            "certificates and object stores will refuse what is asked"
        )
    if several := [address for address, said in found.items() if said.blas > 1]:
        sentences.append(
            f"{whose(several)}: linear algebra takes {found[several[0]].blas} threads and not the one it is held to: "
            "workers take the cores from each other, and bits may differ; start them with OPENBLAS_NUM_THREADS=1, "
            "MKL_NUM_THREADS=1 and OMP_NUM_THREADS=1"
        )
    return sentences


def slower(workers: Sequence[Mapping[str, Any]], found: Mapping[str, Facts]) -> list[str]:
    """Return what costs time or safety and does no harm, a sentence each."""
    sentences = []
    eager = [a for a, said in found.items() if int(_number(said.environment.get(TRIM))) < int(WORKER_ENVIRONMENT[TRIM])]
    if eager:
        sentences.append(
            f"{whose(eager)}: {TRIM} is {found[eager[0]].environment.get(TRIM, 'not set')}: freed memory is given back "
            "and asked for again with every chunk; before such a cluster starts, dask.config.set("
            f"{{'distributed.nanny.pre-spawn-environ.{TRIM}': {WORKER_ENVIRONMENT[TRIM]}}}) is better"
        )
    if none := [w["address"] for w in workers if not w["memory_limit"]]:
        sentences.append(f"{whose(none)}: no limit of memory is set, so no plan can be checked against it")
    threads, cores = Counter[str](), Counter[str]()
    for worker in workers:
        if said := found.get(worker["address"]):
            threads[said.host] += worker["nthreads"]
            cores[said.host] = max(cores[said.host], said.cores)
    for host in threads:
        if threads[host] > cores[host]:
            sentences.append(
                f"{host} has {cores[host]} cores for {threads[host]} worker threads: start no more than it has cores"
            )
    if several := [w["address"] for w in workers if w["nthreads"] > 1]:
        sentences.append(
            f"{whose(several)}: several threads share the memory and the Python of a process: start workers with "
            "--nthreads 1, and more of them"
        )
    used = {found[w["address"]].host for w in workers if w["address"] in found and has_gpu(w)}
    if idle := sorted({said.host for said in found.values() if said.gpus} - used):
        sentences.append(f"{', '.join(idle)}: there is a GPU nobody uses: start a worker for it with --resources GPU=1")
    if alone := [w["address"] for w in workers if not w.get("nanny")]:
        sentences.append(f"{whose(alone)}: there is no nanny: nobody starts it again if it dies")
    return sentences


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0


def whose(addresses: Sequence[str]) -> str:
    """Return which workers a sentence is about."""
    return f"worker {addresses[0]}" + (f" and {len(addresses) - 1} more" if len(addresses) > 1 else "")


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"
