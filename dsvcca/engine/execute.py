"""Run independent tasks: in this process, or on a Dask client with a bounded window. Knows nothing of CCA."""

from __future__ import annotations

import logging
import pickle
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

from distributed import CancelledError, Client, Future, as_completed, get_worker
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker, NoWorkerError

from dsvcca.engine import cluster
from dsvcca.engine.facts import GPU, device_of_process, has_gpu
from dsvcca.errors import DsvccaError, RunError, first_few
from dsvcca.maths.arrays import computing_on
from dsvcca.maths.blas import one_blas_thread
from dsvcca.progress import WATCH, track
from dsvcca.storage.folders import known_options, use_options

log = logging.getLogger("dsvcca")

Task = TypeVar("Task")
Receipt = TypeVar("Receipt")

ALONE = 30
"""Seconds without a worker after which it is said."""

IN_A_ROW = 8
"""Tasks that fail one after another, for a reason that others share (no room, no permission), before a run ends."""

AHEAD = 2
"""Tasks in the window for each worker thread: one running, one waiting."""

LOOK = 5
"""Seconds after which it is looked again which workers there are."""


@dataclass(frozen=True)
class Failure:
    """A task that did not succeed."""

    task: Any
    error: BaseException


class WorkerDiedError(DsvccaError):
    """A task that was on workers that died, several times over."""


def run(
    function: Callable[[Task], Receipt],
    tasks: Sequence[Task],
    *,
    client: Client | None,
    title: str,
    alone: Callable[[Task], Sequence[Task]] = lambda task: [task],
    work: Callable[[Task], Mapping[str, int]] = lambda task: {},
) -> tuple[list[Receipt], list[Failure]]:
    """Run `function` on every task and return receipts and failures, in any order.

    A failing task does not stop the others. Whose workers died is done again, one task at a time, since others that
    were with the same workers are no worse for it.

    Parameters
    ----------
    alone : function, optional
        Cuts a task that is done again into smaller ones; what of it is done already may be left out.
    work : function, optional
        How much work a task is, by names, for who watches.

    Raises
    ------
    DsvccaError
        If the scheduler is lost (see `cluster.connected`); what was finished is on storage.
    """
    if client is None:
        return _gathered(_here(function, tasks), title, tasks, work)
    receipts, failures = _gathered(_on_cluster(function, tasks, client, title), title, tasks, work)
    died = [one.task for one in failures if isinstance(one.error, WorkerDiedError)]
    if died:
        failures = [one for one in failures if not isinstance(one.error, WorkerDiedError)]
        suspects, title = [one for task in died for one in alone(task)], f"{title} alone"
        log.warning("%s: workers died over %d tasks, which are done again one at a time", title, len(died))
        again = _gathered(_on_cluster(function, suspects, client, title, window=1), title, suspects, work)
        receipts, failures = receipts + again[0], failures + again[1]
    return receipts, failures


def _gathered(
    outcomes: Iterator[tuple[Any, Any, BaseException | None]],
    title: str,
    tasks: Sequence[Task],
    work: Callable[[Task], Mapping[str, int]],
) -> tuple[list[Any], list[Failure]]:
    """Return receipts and failures as they come."""
    receipts, failures, in_a_row, count = [], [], 0, len(tasks)
    whole: Counter[str] = Counter()
    for task in tasks:
        whole.update(work(task))
    with track(title, count, whole) as advance:
        for task, receipt, error in outcomes:
            if error is None:
                receipts.append(receipt)
            else:
                log.info("%s failed: %s", task, error)
                failures.append(Failure(task, error))
            in_a_row = in_a_row + 1 if isinstance(error, RunError) else 0
            if in_a_row == IN_A_ROW and count > len(receipts) + len(failures):
                raise RunError(
                    f"{error}\n{len(receipts)} of {count} tasks finished and are kept, the last {in_a_row} failed like "
                    "this, and the others were left: mend this and run the same line again"
                ) from error
            advance(failed=error is not None, work=work(task))
    return receipts, failures


def raise_failures(failures: Sequence[Failure], total: int) -> None:
    """Raise one error that tells of all failures."""
    if not failures:
        return
    first = failures[0]
    sentences = list(dict.fromkeys(_sentence(f) for f in failures))
    kept = f"{total - len(failures)} of {total} tasks finished and are kept"
    raise DsvccaError(f"{first_few(sentences)}\n{kept}: mend this and run the same line again") from first.error


def _here(
    function: Callable[[Task], Receipt], tasks: Sequence[Task]
) -> Iterator[tuple[Task, Any, BaseException | None]]:
    for task in tasks:
        try:
            yield task, guarded(function, task), None
        except Exception as error:
            yield task, None, error


def _on_cluster(
    function: Callable[[Task], Receipt], tasks: Sequence[Task], client: Client, title: str, window: int | None = None
) -> Iterator[tuple[Task, Any, BaseException | None]]:
    """Yield every task with its receipt or its error; so many at once, by default two for each worker thread."""
    watch = WATCH.get()
    cluster.wait_for_workers(client)
    queue = _Queue(function, tasks, client, title.replace(" ", "-"), window)
    log.info("%s: %d tasks, %d at a time", queue.name, len(tasks), window or sum(queue.windows.values()))
    completed = as_completed(queue.fill(), loop=client.loop)
    for future in _watched(completed, queue):
        if watch is not None:
            watch.check()
        task = queue.running.pop(future.key)
        if future.cancelled() and future.key in queue.recalled:  # nobody was left who could have done it
            queue.waiting.appendleft(task)
        elif future.cancelled() or future.status == "lost":
            raise RunError(cluster.LOST.format(f" while {task} was running"))
        else:
            receipt, error = _outcome(future, task)
            if isinstance(error, cluster.WrongWorkerError):
                queue.refuse(*error.args)
                queue.waiting.appendleft(task)
            else:
                yield task, receipt, error
            future.release()
        completed.update(queue.fill())
    if queue.running:
        raise RunError(cluster.LOST.format(f" with {len(queue.running)} tasks unfinished"))


class _Queue:
    """Tasks that wait for workers, and how many each kind of worker may have at once.

    Where some workers have a GPU and others have none, both are kept busy from one queue: so many tasks are bound to
    GPUs as keep those busy, the others may run anywhere. Tasks are handed over as compressed bytes.

    Attributes
    ----------
    waiting : deque of tasks
    running : dict
        Tasks by the keys of their futures.
    window : int or None
        Tasks at once in all, if that was said.
    windows : dict
        Tasks at once of those bound to a GPU (True), and of the others (False).
    any_gpu : bool
        Whether some worker has one.
    paused : bool
        Whether all workers are, for want of memory.
    recalled : set
        Keys of those that were called back, since no worker was left who could do them.
    refused : set
        Addresses of workers that cannot take part.
    """

    def __init__(
        self, function: Callable[[Any], Any], tasks: Sequence[Any], client: Client, name: str, window: int | None
    ) -> None:
        self.function, self.client, self.name, self.window = function, client, name, window
        self.waiting = deque(tasks)
        self.running: dict[Any, Any] = {}
        self.recalled: set[Any] = set()
        self.refused: set[str] = set()
        self.windows: dict[bool, int] = {}
        self.any_gpu = self.paused = False
        self._bound: dict[Any, Future[Any]] = {}
        self._looked = 0.0
        self.look()

    def look(self) -> bool:
        """See which workers there are; return whether there is any."""
        workers = self._able()
        threads = {kind: sum(w["nthreads"] for w in workers if has_gpu(w) is kind) for kind in (True, False)}
        self.any_gpu = threads[True] > 0
        self.paused = bool(workers) and all(w.get("status") == "paused" for w in workers)
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
        able = [worker["address"] for worker in self._able()] if self.refused else None
        for bound in (True, False):
            while self.waiting and self._room(bound):
                future = self.client.submit(
                    unpacked,
                    self.function,
                    zlib.compress(pickle.dumps((self.waiting[0], known_options(), cluster.WITNESS.get()))),
                    workers=able,
                    key=f"{self.name}-{uuid4().hex}",
                    resources={GPU: 1} if bound else None,
                )
                self.running[future.key] = self.waiting.popleft()
                if bound:
                    self._bound[future.key] = future
                found.append(future)
        return found

    def _able(self) -> list[dict[str, Any]]:
        """Return the workers that can take part, as far as is known."""
        return [w for w in cluster.workers_of(self.client) if w["address"] not in self.refused]

    def refuse(self, address: str, why: str) -> None:
        """Send nothing more to a worker.

        Raises
        ------
        RunError
            If no other is there.
        """
        if address not in self.refused:
            log.warning("%s: worker %s %s; others do its tasks", self.name, address, why)
        self.refused.add(address)
        if not self.look():
            raise RunError(f"worker {address} {why}; no other worker is there")

    def _room(self, bound: bool) -> bool:
        self._bound = {key: future for key, future in self._bound.items() if key in self.running}
        if self.window is not None and len(self.running) >= self.window:
            return False
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


def _watched(completed: as_completed, queue: _Queue) -> Iterator[Any]:
    """Yield what completes; meanwhile see to it that something can."""
    done = threading.Event()

    def watch() -> None:
        missing = full = False
        while not done.wait(ALONE / 2):
            try:
                none = not queue.look()
                paused = queue.paused
                if not none:
                    queue.recall()
            except RunError:  # it does not answer: tasks that it has will never come back
                log.warning("%s: the scheduler does not answer", queue.name)
                queue.client.close(timeout=1)
                return
            except Exception:  # if the scheduler is gone, the loop over futures ends by itself
                log.info("%s: who works could not be asked", queue.name, exc_info=True)
                continue
            if none and missing:
                log.warning("%s: no workers for %d s, waiting for some to come", queue.name, ALONE)
            if paused and full:
                log.warning(
                    "%s: all workers are paused, since their memory is nearly full: they take no task until it is less "
                    "(distributed.worker.memory.pause: false lets them)",
                    queue.name,
                )
            missing, full = none, paused

    def wake() -> None:
        """Call back what is under way: who waits for it is given it at once. Workers finish what they have begun."""
        with suppress(Exception):  # a cluster that is lost wakes them as well
            queue.client.cancel(list(completed.futures))

    watcher = threading.Thread(target=watch, name="dsvcca-watch", daemon=True)
    watcher.start()
    try:
        with nullcontext() if (by := WATCH.get()) is None else by.woken_by(wake):
            yield from completed
    finally:
        done.set()


def unpacked(function: Callable[[Any], Receipt], content: bytes) -> Receipt:
    """Run one task that came as bytes, which no log can read, with what the driver was told of how URLs are reached."""
    task, options, witness = pickle.loads(zlib.decompress(content))
    use_options(options)
    if witness is not None and (why := cluster.remembered_objection(witness)):
        raise cluster.WrongWorkerError(get_worker().address, why)
    return guarded(function, task)


def guarded(function: Callable[[Task], Receipt], task: Task) -> Receipt:
    """Run one task with one BLAS thread, whatever the process is set to, on the device of the worker."""
    with one_blas_thread(), computing_on(device_of_process()):
        return function(task)


def _outcome(future: Future[Any], task: Any) -> tuple[Any, BaseException | None]:
    """Return the receipt of what completed, or its error."""
    error, receipt = future.exception(), None
    if error is None:
        try:
            receipt = future.result()
        except (CancelledError, CommClosedError):
            raise
        except Exception as late:  # it was lost with its worker before it was fetched, and the task then failed
            error = late
    if isinstance(error, NoWorkerError):
        raise RunError(
            f"no worker was there for {error.timeout:g} s, after which tasks fail on this cluster "
            "(distributed.scheduler.no-workers-timeout): what was finished is kept, start workers and run the same "
            "line again"
        )
    if isinstance(error, KilledWorker):
        error = WorkerDiedError(
            f"{task} was on a worker that died, {error.allowed_failures + 1} times over, most often for want of "
            "memory: give workers more memory, or plan with a smaller memory="
        )
    return receipt, error


def _sentence(failure: Failure) -> str:
    if isinstance(failure.error, DsvccaError):
        return str(failure.error)
    return f"{failure.task}: {type(failure.error).__name__}: {failure.error}"
