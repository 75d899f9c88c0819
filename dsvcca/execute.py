"""Run independent tasks: in this process, or on a Dask client with a bounded window. Knows nothing of CCA."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import dask
from distributed import Client, LocalCluster, as_completed, default_client
from distributed.scheduler import KilledWorker
from threadpoolctl import threadpool_info, threadpool_limits

from dsvcca.errors import DsvccaError
from dsvcca.progress import track

log = logging.getLogger("dsvcca")

Task = TypeVar("Task")
Receipt = TypeVar("Receipt")

ALONE = 30
"""Seconds without a worker after which it is said."""

AHEAD = 2
"""Tasks in the window for each worker thread: one running, one waiting."""

WORKER_ENVIRONMENT = {
    # Read when a process starts: it must come from Dask's configuration, `env=` is too late. By default Dask's nanny
    # has freed memory returned so eagerly that every array is paid for twice.
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_ARENA_MAX": "1",  # or every reading thread keeps freed memory of its own
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Failure:
    """A task that did not succeed."""

    task: str
    error: BaseException


def run(
    function: Callable[[Task], Receipt], tasks: Sequence[Task], *, client: Client | None, title: str
) -> tuple[list[Receipt], list[Failure]]:
    """Run `function` on every task and return receipts and failures, in any order.

    A failing task does not stop the others.

    Raises
    ------
    DsvccaError
        If the scheduler is lost; what was finished is on storage.
    """
    receipts: list[Receipt] = []
    failures: list[Failure] = []
    outcomes = _here(function, tasks) if client is None else _on_cluster(function, tasks, client, title)
    with track(title, len(tasks)) as advance:
        for task, receipt, error in outcomes:
            if error is None:
                receipts.append(receipt)
            else:
                log.info("%s failed: %s", task, error)
                failures.append(Failure(str(task), error))
            advance()
    return receipts, failures


def raise_failures(failures: Sequence[Failure], total: int) -> None:
    """Raise one error that tells of all failures."""
    if not failures:
        return
    first = failures[0]
    sentences = list(dict.fromkeys(_sentence(f) for f in failures))
    more = f" (and {len(sentences) - 5} more)" if len(sentences) > 5 else ""
    raise DsvccaError(
        "\n".join(sentences[:5])
        + more
        + (f"\n{total - len(failures)} of {total} tasks finished and are kept: mend this and run the same line again")
    ) from first.error


def active_client() -> Client | None:
    """Return the Dask client that is active in this process, if there is one."""
    try:
        client: Client = default_client()
    except ValueError:
        return None
    return client


def threads_of(client: Client) -> int:
    """Return the number of worker threads of a cluster, after waiting a moment for the first."""
    _wait_for_workers(client)
    return int(sum(w["nthreads"] for w in _workers(client)))


def memory_of_a_thread(client: Client) -> int | None:
    """Return the smallest memory of a worker thread on a cluster; None where no limit is set."""
    _wait_for_workers(client)
    limits = [w["memory_limit"] // w["nthreads"] for w in _workers(client) if w["memory_limit"]]
    return min(limits, default=None)


@contextmanager
def local_client(workers: int, memory: int | str | None = None) -> Iterator[Client]:
    """Start a Dask cluster of single-threaded processes on this machine, and stop it at the end."""
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=memory or "auto",
            dashboard_address=":0",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _here(
    function: Callable[[Task], Receipt], tasks: Sequence[Task]
) -> Iterator[tuple[Task, Any, BaseException | None]]:
    for task in tasks:
        try:
            yield task, guarded(function, task), None
        except Exception as error:
            yield task, None, error


def _on_cluster(
    function: Callable[[Task], Receipt], tasks: Sequence[Task], client: Client, title: str
) -> Iterator[tuple[Task, Any, BaseException | None]]:
    waiting = iter(tasks)
    name = title.replace(" ", "-")

    def submit(task: Task) -> Any:
        future = client.submit(guarded, function, task, pure=False)
        running[future.key] = task
        return future

    running: dict[Any, Task] = {}
    window = max(2, AHEAD * threads_of(client))
    first = [submit(task) for _, task in zip(range(window), waiting, strict=False)]
    log.info("%s: %d tasks, %d at a time", name, len(tasks), window)
    completed = as_completed(first, loop=client.loop)
    for future in _watched(completed, client, name):
        task = running.pop(future.key)
        if future.cancelled() or future.status == "lost":
            raise DsvccaError(
                f"the connection to the Dask scheduler was lost while {task} was running: what was finished is kept, "
                "connect to a cluster and run the same line again"
            )
        error = future.exception()
        yield task, None if error else future.result(), _translated(error, task)
        future.release()
        for following in waiting:
            completed.add(submit(following))
            break
    if running:
        raise DsvccaError(
            f"the Dask scheduler went away with {len(running)} tasks unfinished: what was finished is kept, connect "
            "to a cluster and run the same line again"
        )


def _watched(completed: Iterator[Any], client: Client, name: str) -> Iterator[Any]:
    """Yield what completes; meanwhile say so if there is no worker any more, for then nothing will."""
    done = threading.Event()

    def watch() -> None:
        missing = False
        while not done.wait(ALONE / 2):
            try:
                none = not _workers(client)
            except Exception:  # the scheduler is gone: the loop over futures ends by itself
                return
            if none and missing:
                log.warning("%s: no workers for %d s, waiting for some to come", name, ALONE)
            missing = none

    watcher = threading.Thread(target=watch, name="dsvcca-watch", daemon=True)
    watcher.start()
    try:
        yield from completed
    finally:
        done.set()


def guarded(function: Callable[[Task], Receipt], task: Task) -> Receipt:
    """Run one task with one BLAS thread, whatever the process is set to."""
    with _one_blas_thread():
        return function(task)


class _BlasThreads:
    """Counts who is inside, so that the first sets the limit and only the last lifts it."""

    lock = threading.Lock()
    inside = 0
    limits: Any = None


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    with _BlasThreads.lock:
        if _BlasThreads.inside == 0 and any(lib["num_threads"] > 1 for lib in threadpool_info()):
            _BlasThreads.limits = threadpool_limits(1)
        _BlasThreads.inside += 1
    try:
        yield
    finally:
        with _BlasThreads.lock:
            _BlasThreads.inside -= 1
            if _BlasThreads.inside == 0 and _BlasThreads.limits is not None:
                _BlasThreads.limits.restore_original_limits()
                _BlasThreads.limits = None


def _workers(client: Client) -> list[dict[str, Any]]:
    return list(client.scheduler_info(n_workers=-1)["workers"].values())


def _wait_for_workers(client: Client) -> None:
    try:
        client.wait_for_workers(1, timeout=30)
    except TimeoutError as error:
        raise DsvccaError(f"{client} has no workers after 30 s: start some, then run the same line") from error


def _translated(error: BaseException | None, task: Any) -> BaseException | None:
    if isinstance(error, KilledWorker):
        return DsvccaError(
            f"{task} was on a worker that died, {error.allowed_failures + 1} times over, most often for want of "
            "memory: give workers more memory, or plan with a smaller memory="
        )
    return error


def _sentence(failure: Failure) -> str:
    if isinstance(failure.error, DsvccaError):
        return str(failure.error)
    return f"{failure.task}: {type(failure.error).__name__}: {failure.error}"
