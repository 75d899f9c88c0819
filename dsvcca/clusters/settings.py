"""Dask's settings for clusters that are started here, and as long as one of them is there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import dask

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
    # Who is interrupted needs not be told of each task that was cancelled, nor that the scheduler ended first. What
    # tasks failed with is told once, in words.
    "distributed.worker.preload": [
        "import logging; logging.getLogger('distributed.worker.state_machine').setLevel('ERROR'); "
        "logging.getLogger('distributed.worker').addFilter("
        "lambda said: not any(one in said.getMessage() for one in ('during heartbeat', 'Compute Failed')))"
    ],
}
"""Dask's settings for a cluster of this machine's own."""


class _Held:
    lock = threading.Lock()
    settings: ClassVar[list[Mapping[str, Any]]] = []
    stack = ExitStack()


@contextmanager
def dask_settings(settings: Mapping[str, Any]) -> Iterator[None]:
    """Let Dask's configuration of this process say so meanwhile.

    Unlike `dask.config.set` contexts may end in another order than they began: notebooks start a cluster before they
    close the last one. What was said before them comes back when the last has ended.
    """
    own = dict(settings)
    _change(lambda: _Held.settings.append(own))
    try:
        yield
    finally:
        _change(lambda: _Held.settings.pop(next(i for i, one in enumerate(_Held.settings) if one is own)))


def _change(what: Callable[[], object]) -> None:
    with _Held.lock:
        _Held.stack.close()
        what()
        for one in _Held.settings:
            _Held.stack.enter_context(dask.config.set(one))
