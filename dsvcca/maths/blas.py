"""One BLAS thread for what is computed here, whatever the process is set to: the same bits everywhere."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import threadpoolctl

log = logging.getLogger("dsvcca")


class _Inside:
    """Who is inside, and what the last one has to set back."""

    lock = threading.Lock()
    count = 0
    changed: list[tuple[Any, int]] = []  # noqa: RUF012 - one for the process, as the libraries are
    told = False


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold every library of linear algebra to one thread; the last one to leave sets back what was.

    Some libraries have one limit for the process, others one for each thread that calls them: everybody who enters
    sets what is above one, nobody sets anything back while others are inside.
    """
    with _Inside.lock:
        changed = [(lib, lib.num_threads) for lib in _libraries() if (lib.num_threads or 1) > 1]
        _set([(lib, 1) for lib, _ in changed])
        held = [lib for lib, _ in changed if lib.user_api == "blas" and lib.num_threads > 1]
        if held and not _Inside.told:
            _Inside.told = True
            log.warning(
                "%s does not take one thread: bits may differ between runs; set OPENBLAS_NUM_THREADS=1, "
                "MKL_NUM_THREADS=1 and OMP_NUM_THREADS=1 before Python starts",
                held[0].filepath,
            )
        _Inside.changed += changed
        _Inside.count += 1
    try:
        yield
    finally:
        with _Inside.lock:
            _Inside.count -= 1
            if _Inside.count == 0:
                # What was seen first is what it was before anybody came.
                _set(reversed(_Inside.changed))
                _Inside.changed.clear()


def threads_held_to() -> int:
    """Return how many threads linear algebra takes where it is held to one: one, unless a library does not obey."""
    with one_blas_thread():
        return max((lib.num_threads or 1 for lib in _libraries() if lib.user_api == "blas"), default=1)


def _libraries() -> list[Any]:
    return list(threadpoolctl.ThreadpoolController().lib_controllers)


def _set(limits: Any) -> None:
    """Set the threads of libraries. Since 3.8, threadpoolctl lets only the thread that was first do so."""
    free = getattr(threadpoolctl.OpenBLASController, "clear_controlling_thread", lambda force: None)
    free(force=True)
    for lib, count in limits:
        lib.set_num_threads(count)
    free(force=True)
