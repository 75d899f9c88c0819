"""Clusters of this machine's own."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker

from distributed import Client, LocalCluster

from dsvcca.clusters.settings import ON_ONE_MACHINE, dask_settings
from dsvcca.errors import RunError
from dsvcca.progress import waiting

LOOK = 5
"""Seconds after which it is looked whether a cluster has all its workers."""


@contextmanager
def local_client(workers: int, memory: int | str | None = None) -> Iterator[Client]:
    """Start a Dask cluster of single-threaded processes on this machine, and stop it at the end.

    An interrupt from the keyboard is for this process: workers end with the cluster, and without a word.
    """
    said, level = logging.getLogger("distributed"), None
    try:
        with dask_settings(ON_ONE_MACHINE), ExitStack() as stack:
            with (
                waiting(f"start {workers} workers"),
                _interrupts_wait(),
            ):  # and in whatever is started here, now or later
                try:
                    cluster = stack.enter_context(
                        LocalCluster(
                            n_workers=workers,
                            threads_per_worker=1,
                            processes=True,
                            memory_limit=memory or "auto",
                            dashboard_address="127.0.0.1:0",  # for who is on this machine
                        )
                    )
                except (OSError, RuntimeError) as error:
                    raise RunError(
                        f"{workers} workers could not be started here ({error}): is there memory, and are open files "
                        "and processes enough (ulimit -a)? In a script, does what starts them stand below "
                        '`if __name__ == "__main__":`?'
                    ) from error
            stack.enter_context(kept_at(lambda: cluster.scale(workers)))
            client = stack.enter_context(Client(cluster, set_as_default=False))
            try:
                yield client
            finally:
                level = said.level
                said.setLevel(logging.CRITICAL)  # nobody has to be told how workers end
    finally:
        if level is not None:
            said.setLevel(level)


@contextmanager
def kept_at(scale: Callable[[], object], every: float = LOOK) -> Iterator[None]:
    """Ask for workers every few seconds: others come for those that are lost, also for one that dies as it starts."""
    done = threading.Event()

    def keep() -> None:
        while not done.wait(every):
            scale()

    looking = threading.Thread(target=keep, name="dsvcca-keep", daemon=True)
    looking.start()
    try:
        yield
    finally:
        done.set()
        looking.join()


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Keep interrupts waiting; threads and processes that are started meanwhile never see any from the keyboard."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which lets them through as it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _noted():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _noted() -> Iterator[None]:
    """Note signals that would raise an error, and send them again at the end: other threads let them through, too."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda caught, _: came.append(caught))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for caught in dict.fromkeys(came):
        signal.raise_signal(caught)
