"""Run independent tasks: in this process, or on a Dask client with a bounded window. Knows nothing of CCA."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from typing import Any, TypeVar
from uuid import uuid4

import dask
import numpy as np
from distributed import Client, Future, LocalCluster, as_completed, default_client, get_worker
from distributed.scheduler import KilledWorker
from threadpoolctl import threadpool_info, threadpool_limits

from dsvcca.arrays import computing_on
from dsvcca.errors import DsvccaError, RunError
from dsvcca.folders import known_options, use_options
from dsvcca.machine import Machine, measure, this_machine
from dsvcca.progress import track

log = logging.getLogger("dsvcca")

Task = TypeVar("Task")
Receipt = TypeVar("Receipt")

WAIT = 60
"""Seconds in which the first worker has to come."""

ALONE = 30
"""Seconds without a worker after which it is said."""

AHEAD = 2
"""Tasks in the window for each worker thread: one running, one waiting."""

LOOK = 5
"""Seconds after which it is looked again which workers there are."""

GPU = "GPU"
"""The Dask resource by which a worker says that it has one."""

DEVICE = "DSVCCA_DEVICE"
"""Environment variable: the array library, and device, of a process (see `arrays.computing_on`)."""

WORKER_ENVIRONMENT = {
    # Read when a process starts: it must come from Dask's configuration, `env=` is too late. By default Dask's nanny
    # has freed memory returned so eagerly that every array is paid for twice.
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(256 << 20),
    "MALLOC_ARENA_MAX": "1",  # or every reading thread keeps freed memory of its own
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


ON_ONE_MACHINE = {
    "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
    # Where scheduler and workers share the cores, looking at themselves 50 or 100 times a second takes 4 % of one.
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.worker.profile.interval": "100ms",
    # Who is interrupted needs not be told of each task that was cancelled.
    "distributed.worker.preload": [
        "import logging; logging.getLogger('distributed.worker.state_machine').setLevel('ERROR')"
    ],
}
"""Dask's settings for a cluster of this machine's own."""


@dataclass(frozen=True)
class Failure:
    """A task that did not succeed."""

    task: Any
    error: BaseException


class WorkerDiedError(DsvccaError):
    """A task that was on workers that died, several times over."""


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
                failures.append(Failure(task, error))
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
    return max(1, int(sum(w["nthreads"] for w in _workers(client))))


def memory_of_a_thread(client: Client) -> int | None:
    """Return the smallest memory of a worker thread on a cluster; None where no limit is set."""
    _wait_for_workers(client)
    limits = [w["memory_limit"] // w["nthreads"] for w in _workers(client) if w["memory_limit"]]
    return min(limits, default=None)


def machine_of(client: Client | None = None, *, workers: int = 1) -> Machine:
    """Measure what a cluster does a second, or so many worker threads of this machine, for `Plan.price`.

    Takes a third of a second on every worker.
    """
    if client is None:
        return replace(this_machine(), threads=workers)
    threads = threads_of(client)
    found = list(client.run(measure).values())
    solves = tuple(
        (several[0][0], float(np.mean([one[1] for one in several])), float(np.mean([one[2] for one in several])))
        for several in zip(*(one.solves for one in found), strict=True)
    )
    rates = {name: float(np.mean([getattr(one, name) for one in found])) for name in ("product", "double", "transform")}
    return Machine(threads=threads, solves=solves, **rates)


@contextmanager
def local_client(workers: int, memory: int | str | None = None) -> Iterator[Client]:
    """Start a Dask cluster of single-threaded processes on this machine, and stop it at the end.

    An interrupt from the keyboard is for this process: workers end with the cluster, and without a word.
    """
    said = logging.getLogger("distributed")
    level = said.level
    try:
        with dask.config.set(ON_ONE_MACHINE), ExitStack() as stack:
            with _interrupts_wait():  # and in whatever is started here, now or later
                cluster = LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=memory or "auto",
                    dashboard_address=":0",
                )
            stack.enter_context(cluster)
            client = stack.enter_context(Client(cluster, set_as_default=False))
            try:
                yield client
            except KeyboardInterrupt:
                said.setLevel(logging.CRITICAL)
                raise
    finally:
        said.setLevel(level)


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Keep interrupts from the keyboard waiting; threads and processes that are started meanwhile never see any."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which lets them through as it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
    _wait_for_workers(client)
    queue = _Queue(function, tasks, client, title.replace(" ", "-"))
    log.info("%s: %d tasks, %d at a time", queue.name, len(tasks), sum(queue.windows.values()))
    completed = as_completed(queue.fill(), loop=client.loop)
    for future in _watched(completed, queue):
        task = queue.running.pop(future.key)
        if future.cancelled() and future.key in queue.recalled:  # nobody was left who could have done it
            queue.waiting.appendleft(task)
        elif future.cancelled() or future.status == "lost":
            raise RunError(
                f"the connection to the Dask scheduler was lost while {task} was running: what was finished is kept, "
                "connect to a cluster and run the same line again"
            )
        else:
            error = future.exception()
            yield task, None if error else future.result(), _translated(error, task)
            future.release()
        completed.update(queue.fill())
    if queue.running:
        raise RunError(
            f"the Dask scheduler went away with {len(queue.running)} tasks unfinished: what was finished is kept, "
            "connect to a cluster and run the same line again"
        )


class _Queue:
    """Tasks that wait for workers, and how many each kind of worker may have at once.

    Where some workers have a GPU and others have none, both are kept busy from one queue: so many tasks are bound to
    GPUs as keep those busy, the others may run anywhere. Tasks are handed over as compressed bytes.

    Attributes
    ----------
    waiting : deque of tasks
    running : dict
        Tasks by the keys of their futures.
    windows : dict
        Tasks at once of those bound to a GPU (True), and of the others (False).
    any_gpu : bool
        Whether some worker has one.
    recalled : set
        Keys of those that were called back, since no worker was left who could do them.
    """

    def __init__(self, function: Callable[[Any], Any], tasks: Sequence[Any], client: Client, name: str) -> None:
        self.function, self.client, self.name = function, client, name
        self.waiting = deque(tasks)
        self.running: dict[Any, Any] = {}
        self.recalled: set[Any] = set()
        self.windows: dict[bool, int] = {}
        self.any_gpu = False
        self._bound: dict[Any, Future[Any]] = {}
        self._looked = 0.0
        self.look()

    def look(self) -> bool:
        """See which workers there are; return whether there is any."""
        workers = _workers(self.client)
        threads = {kind: sum(w["nthreads"] for w in workers if _has_gpu(w) is kind) for kind in (True, False)}
        self.any_gpu = threads[True] > 0
        if threads[False] == 0:  # all alike: nothing has to be bound
            threads = {True: 0, False: threads[True]}
        self.windows = {kind: max(2, AHEAD * count) if count else 0 for kind, count in threads.items()}
        self._looked = time.monotonic()
        return bool(workers)

    def fill(self) -> list[Future[Any]]:
        """Submit as many tasks as there is room for."""
        if time.monotonic() > self._looked + LOOK:
            self.look()
        found = []
        for bound in (True, False):
            while self.waiting and self._room(bound):
                future = self.client.submit(
                    unpacked,
                    self.function,
                    zlib.compress(pickle.dumps(self.waiting[0])),
                    known_options(),
                    key=f"{self.name}-{uuid4().hex}",
                    resources={GPU: 1} if bound else None,
                )
                self.running[future.key] = self.waiting.popleft()
                if bound:
                    self._bound[future.key] = future
                found.append(future)
        return found

    def _room(self, bound: bool) -> bool:
        self._bound = {key: future for key, future in self._bound.items() if key in self.running}
        here = len(self._bound) if bound else len(self.running) - len(self._bound)
        # Without a worker at all, two tasks wait with the scheduler for one to come.
        return here < (self.windows[bound] or (0 if bound or self.windows[True] else 2))

    def recall(self) -> None:
        """Take back what is bound to a GPU, if there is none any more."""
        if not self.any_gpu and self._bound:
            lost = [future for key, future in list(self._bound.items()) if key in self.running]
            log.warning("%s: no worker with a GPU is left, %d tasks go to others", self.name, len(lost))
            self.recalled |= {future.key for future in lost}
            self.client.cancel(lost)


def _watched(completed: Iterator[Any], queue: _Queue) -> Iterator[Any]:
    """Yield what completes; meanwhile see to it that something can."""
    done = threading.Event()

    def watch() -> None:
        missing = False
        while not done.wait(ALONE / 2):
            try:
                none = not queue.look()
                if not none:
                    queue.recall()
            except Exception:  # if the scheduler is gone, the loop over futures ends by itself
                log.info("%s: who works could not be asked", queue.name, exc_info=True)
                continue
            if none and missing:
                log.warning("%s: no workers for %d s, waiting for some to come", queue.name, ALONE)
            missing = none

    watcher = threading.Thread(target=watch, name="dsvcca-watch", daemon=True)
    watcher.start()
    try:
        yield from completed
    finally:
        done.set()


def unpacked(function: Callable[[Any], Receipt], task: bytes, options: dict[str, Any]) -> Receipt:
    """Run one task that came as bytes, with what the driver was told of how URLs are reached."""
    use_options(options)
    return guarded(function, pickle.loads(zlib.decompress(task)))


def guarded(function: Callable[[Task], Receipt], task: Task) -> Receipt:
    """Run one task with one BLAS thread, whatever the process is set to, on the device of the worker."""
    with _one_blas_thread(), computing_on(_device()):
        return function(task)


def _device() -> str | None:
    """Return what this process computes on: None for NumPy. On a cluster, workers with the resource GPU have one."""
    try:
        has_gpu = get_worker().state.total_resources.get(GPU, 0) > 0
    except ValueError:
        return os.environ.get(DEVICE)
    return os.environ.get(DEVICE, "cupy") if has_gpu else None


def _has_gpu(worker: dict[str, Any]) -> bool:
    return bool(worker.get("resources", {}).get(GPU, 0) > 0)


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


def check_client(client: Client) -> None:
    """Raise if a client is none to work with."""
    if not isinstance(client, Client):
        raise DsvccaError(f"client={client!r} is a {type(client).__name__}: pass a distributed.Client(address)")
    if client.asynchronous:
        raise DsvccaError("the Dask client is asynchronous: pass a Client(address) without asynchronous=True")
    if client.status != "running":
        raise DsvccaError(f"the Dask client is {client.status}: connect to a cluster and run the same line again")


def _wait_for_workers(client: Client) -> None:
    """Wait a moment for the first worker.

    Raises
    ------
    DsvccaError
        If none comes, or the client is none to work with.
    """
    check_client(client)
    try:
        if not _workers(client):  # an adaptive cluster starts one only for a task
            calling = client.submit(os.getpid, key=f"call-{uuid4().hex}")
            client.wait_for_workers(1, timeout=WAIT)
            calling.release()
    except TimeoutError as error:
        raise DsvccaError(f"{client} has no workers after {WAIT} s: start some, then run the same line") from error
    except OSError as error:
        raise RunError(
            f"the Dask scheduler does not answer ({error}): connect to a cluster and run the same line again"
        ) from error


def _translated(error: BaseException | None, task: Any) -> BaseException | None:
    if isinstance(error, KilledWorker):
        return WorkerDiedError(
            f"{task} was on a worker that died, {error.allowed_failures + 1} times over, most often for want of "
            "memory: give workers more memory, or plan with a smaller memory="
        )
    return error


def _sentence(failure: Failure) -> str:
    if isinstance(failure.error, DsvccaError):
        return str(failure.error)
    return f"{failure.task}: {type(failure.error).__name__}: {failure.error}"
