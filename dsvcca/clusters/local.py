"""Clusters of this machine's own."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker

import dask
from distributed import Client, LocalCluster

from dsvcca.errors import RunError

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

WORKER_MEMORY = {
    # Workers keep nothing that could be moved to disk: tasks carry paths, and what they give back is a receipt.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    # A worker has one thread: nothing begins while its task runs, and what that has freed may stay with the allocator.
    # A worker that pauses then waits for ever for memory that nobody holds.
    "distributed.worker.memory.pause": False,
}


ON_ONE_MACHINE = {
    "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
    **WORKER_MEMORY,
    "distributed.scheduler.allowed-failures": 1,  # a task that kills two workers is done again alone, which will tell
    # Where scheduler and workers share the cores, looking at themselves 50 or 100 times a second takes 4 % of one.
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.worker.profile.interval": "100ms",
    # Who is interrupted needs not be told of each task that was cancelled, nor that the scheduler ended first.
    "distributed.worker.preload": [
        "import logging; logging.getLogger('distributed.worker.state_machine').setLevel('ERROR'); "
        "logging.getLogger('distributed.worker').addFilter(lambda said: 'during heartbeat' not in said.getMessage())"
    ],
}
"""Dask's settings for a cluster of this machine's own."""


LOOK = 5
"""Seconds after which it is looked whether a cluster has all its workers."""


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
                try:
                    cluster = LocalCluster(
                        n_workers=workers,
                        threads_per_worker=1,
                        processes=True,
                        memory_limit=memory or "auto",
                        dashboard_address="127.0.0.1:0",  # for who is on this machine
                    )
                except (OSError, RuntimeError) as error:
                    raise RunError(
                        f"{workers} workers could not be started here ({error}): is there memory, and are open files "
                        "and processes enough (ulimit -a)?"
                    ) from error
            stack.enter_context(cluster)
            stack.enter_context(kept_at(lambda: cluster.scale(workers)))
            client = stack.enter_context(Client(cluster, set_as_default=False))
            try:
                yield client
            finally:
                said.setLevel(logging.CRITICAL)  # nobody has to be told how workers end
    finally:
        said.setLevel(level)


@contextmanager
def kept_at(scale: Callable[[], object]) -> Iterator[None]:
    """Ask for workers again and again: others come for those that are lost, also for one that dies as it starts."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(LOOK):
            scale()

    looking = threading.Thread(target=look, name="dsvcca-keep", daemon=True)
    looking.start()
    try:
        yield
    finally:
        done.set()
        looking.join()


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
