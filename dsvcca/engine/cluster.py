"""Dask clusters: who works on them, and whether they can: same versions, same places.

Knows nothing of tasks.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import platform
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from distributed import CancelledError, Client, default_client
from distributed.comm.core import CommClosedError

from dsvcca.engine.facts import Facts, device_of_process, facts, harm, slower, whose
from dsvcca.errors import DsvccaError, RunError
from dsvcca.maths.arrays import computing_on, put, to_numpy
from dsvcca.plans.machine import Machine, measure_rates, this_machine
from dsvcca.progress import WATCH, waiting
from dsvcca.storage import folders, staging

log = logging.getLogger("dsvcca")

WAIT = 60
"""Seconds in which the first worker has to come."""


def active_client() -> Client | None:
    """Return the Dask client that is active in this process, if there is one."""
    try:
        client: Client = default_client()
    except ValueError:
        return None
    return client


def threads_of(client: Client) -> int:
    """Return the number of worker threads of a cluster, after waiting a moment for the first."""
    wait_for_workers(client)
    return max(1, int(sum(w["nthreads"] for w in workers_of(client))))


def memory_of_a_thread(client: Client) -> int | None:
    """Return the smallest memory of a worker thread on a cluster; None where no limit is set."""
    wait_for_workers(client)
    limits = [w["memory_limit"] // w["nthreads"] for w in workers_of(client) if w["memory_limit"]]
    return min(limits, default=None)


@waiting("measure how fast it is")
def machine_of(client: Client | None = None, *, workers: int = 1) -> Machine:
    """Measure what a cluster does a second, or so many worker threads of this machine, for `Plan.price`.

    Takes a third of a second on every worker.
    """
    if client is None:
        return replace(this_machine(), threads=workers)
    with connected():
        threads = threads_of(client)
        found = list(client.run(measure_rates).values())
    solves = tuple(
        (several[0][0], float(np.mean([one[1] for one in several])), float(np.mean([one[2] for one in several])))
        for several in zip(*(one.solves for one in found), strict=True)
    )
    rates = {name: float(np.mean([getattr(one, name) for one in found])) for name in ("product", "double", "transform")}
    return Machine(threads=threads, solves=solves, **rates)


@dataclass(frozen=True)
class Witness:
    """What a process must have to take part in a run.

    Attributes
    ----------
    versions : tuple of (str, str)
        Of what makes the numbers: package and version.
    places : tuple of (str, str, str)
        What it must see: what that is, a file of it, and the SHA-256 of its content.
    written : tuple of (str, str)
        What it must be able to write: what that is, and where.
    """

    versions: tuple[tuple[str, str], ...]
    places: tuple[tuple[str, str, str], ...] = ()
    written: tuple[tuple[str, str], ...] = ()


WITNESS: ContextVar[Witness | None] = ContextVar("WITNESS", default=None)
"""What tasks that are sent to workers ask of them."""


class WrongWorkerError(DsvccaError):
    """A task that came to a worker that cannot take part: its address, and why."""


@contextmanager
def taking_part(client: Client, places: Mapping[str, Path], written: Mapping[str, Path]) -> Iterator[None]:
    """Let only those workers take part that have the versions of this process, see the same files and can write.

    What will do harm, or costs time, goes to the log.

    Parameters
    ----------
    places : mapping
        A file of every place that tasks read or write, by what it is.
    written : mapping
        The places that tasks write, by what they are.

    Raises
    ------
    DsvccaError
        If one of those that are there cannot; of those that come later, what is sent to them goes to others.
    """
    witness = witness_of(places, written)
    found = ask_all(client, witness)
    if objections := found.objections:
        raise RunError("\n".join(objections))
    for level, sentences in ((logging.WARNING, found.harm), (logging.INFO, found.slower)):
        for sentence in sentences:
            log.log(level, "%s", sentence)
    token = WITNESS.set(witness)
    try:
        yield
    finally:
        WITNESS.reset(token)


def witness_of(places: Mapping[str, Path], written: Mapping[str, Path]) -> Witness:
    """Return what a process must have that sees what this one sees of some files, and writes some places."""
    seen = tuple((what, str(path), _sha256(path)) for what, path in places.items())
    return Witness(versions(), seen, tuple((what, str(path)) for what, path in written.items()))


@dataclass(frozen=True)
class Answers:
    """What the workers of a cluster said.

    Attributes
    ----------
    objections, harm, slower : list of str
        Why some cannot take part; what will do harm; what costs time. A sentence each.
    """

    objections: list[str]
    harm: list[str]
    slower: list[str]


@waiting("ask every worker")
def ask_all(client: Client, witness: Witness) -> Answers:
    """Ask every worker whether it can take part, and what it knows of itself.

    Raises
    ------
    RunError
        If one does not answer.
    """
    wait_for_workers(client)
    began = time.time()
    content = pickle.dumps((witness, folders.known_options()))  # as bytes: no log shows what is in it
    asking: Any = client
    try:
        for _ in range(3):
            asked_all = partial(asking._run, _asked, content, on_error="return")  # `client.run` waits for ever
            found: dict[str, Any] = client.sync(asked_all, callback_timeout=WAIT)
            if not any(isinstance(said, CommClosedError) for said in found.values()):
                break
            time.sleep(1)  # one went away as it was asked
    except TimeoutError as error:
        raise RunError(f"some workers do not answer within {WAIT} s: end those that hang, or are cut off") from error
    except OSError as error:
        raise RunError(LOST.format("")) from error
    asked = (began, time.time())
    known: dict[str, Facts] = {}
    objections: dict[str, list[str]] = {}
    for address, said in found.items():
        if isinstance(said, BaseException):
            why = _spelled(said)
        else:
            why, known[address] = said
        if why:
            objections.setdefault(why, []).append(address)
    sentences = [f"{whose(addresses)} {why}" for why, addresses in objections.items()]
    workers = workers_of(client)
    return Answers(sentences, harm(workers, known, asked), slower(workers, known))


def _spelled(error: BaseException) -> str:
    """Return what keeps a worker from answering."""
    if isinstance(error, ImportError):
        return f"cannot import dsvcca ({error}): install the same version there"
    return f"cannot be asked ({type(error).__name__}: {error}): is it the same version of dsvcca?"


def _asked(content: bytes) -> tuple[str, Facts]:
    """Return why this worker cannot take part, "" if it can, and what it knows of itself."""
    witness, options = pickle.loads(content)
    folders.use_options(options)
    return objection(witness), facts()


_accepted: deque[Witness] = deque(maxlen=64)


def remembered_objection(witness: Witness) -> str:
    """Return what `objection` does; once that there is none it is not looked at again."""
    if witness in _accepted:
        return ""
    if why := objection(witness):
        return why
    _accepted.append(witness)
    return ""


def objection(witness: Witness) -> str:
    """Return why this process cannot take part as things are now; "" if it can."""
    for (name, there), (_, here) in zip(witness.versions, versions(), strict=True):
        if here != there:
            return f"has {name} {here}, the driver {there}: install the same there"
    for what, path, digest in witness.places:
        try:
            same = _sha256(folders.at(path, what)) == digest
        except Exception as error:  # whatever the library of a URL raises
            return f"does not see the {what} ('{path}': {error}): mount it at the same path there, or use a URL"
        if not same:
            return f"sees another {what} ('{path}' has another content): mount the same one at the same path there"
    for what, path in witness.written:
        try:
            staging.try_out(folders.at(path, what))
        except Exception as error:  # whatever the library of a URL raises
            return f"cannot write the {what} ('{path}': {error}): mount it to be written, for the user of that worker"
    try:
        with computing_on(device_of_process()):
            ones = put(np.ones((2, 2)))
            to_numpy(ones @ ones + ones)
    except Exception as error:  # whatever a library of GPUs raises
        return f"has no device to compute on ({error}): mend it, or start the worker without --resources GPU=1"
    return ""


@cache
def versions() -> tuple[tuple[str, str], ...]:
    """Return the version of everything that makes the numbers; of dsvcca with a digest of its code."""
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        code.update(path.read_bytes())
    found = [("Python", ".".join(platform.python_version_tuple()[:2]))]
    found += [(name, version(name)) for name in ("numpy", "scipy", "zarr")]
    return (*found, ("dsvcca", f"{version('dsvcca')} (code {code.hexdigest()[:8]})"))


def _sha256(path: Path) -> str:
    return hashlib.sha256(folders.read(path)).hexdigest()


def workers_of(client: Client) -> list[dict[str, Any]]:
    """Return what the scheduler knows of each worker.

    Raises
    ------
    RunError
        If it does not say so within PATIENCE seconds.
    """
    try:
        asking: Any = client.scheduler
        found = client.sync(asking.identity, n_workers=-1, callback_timeout=PATIENCE)["workers"]
    except TimeoutError as error:
        raise RunError(LOST.format(f": it has not answered for {PATIENCE} s")) from error
    return [{**worker, "address": address} for address, worker in found.items()]


PATIENCE = 300
"""Seconds after which a scheduler that does not answer counts as lost, as for Dask a worker does."""


def check_client(client: Client) -> None:
    """Raise if a client is none to work with."""
    if not isinstance(client, Client):
        own = "its .client" if isinstance(getattr(client, "client", None), Client) else "a distributed.Client(address)"
        raise DsvccaError(f"client={client!r} is a {type(client).__name__}: pass {own}")
    if client.asynchronous:
        raise DsvccaError("the Dask client is asynchronous: pass a Client(address) without asynchronous=True")
    if client.status != "running":
        raise DsvccaError(f"the Dask client is {client.status}: connect to a cluster and run the same line again")


LOST = (
    "the connection to the Dask scheduler was lost{}: what was finished is kept, connect to a cluster and run the same "
    "line again"
)


@contextmanager
def connected() -> Iterator[None]:
    """Say in plain words that the scheduler is lost, wherever it is seen first.

    Raises
    ------
    RunError
        Instead of what Dask raises.
    """
    try:
        yield
    except (CommClosedError, CancelledError) as error:
        raise RunError(LOST.format("")) from error


def _wait_for_one(client: Client) -> None:
    watch, until = WATCH.get(), time.monotonic() + WAIT
    while True:
        try:
            return client.wait_for_workers(1, timeout=1)
        except TimeoutError:
            if watch is not None:
                watch.check()
            if time.monotonic() > until:
                raise


@waiting("wait for workers")
def wait_for_workers(client: Client) -> None:
    """Wait a moment for the first worker.

    Raises
    ------
    DsvccaError
        If none comes, or the client is none to work with.
    """
    check_client(client)
    try:
        if not workers_of(client):  # an adaptive cluster starts one only for a task
            calling = client.submit(os.getpid, key=f"call-{uuid4().hex}")
            _wait_for_one(client)
            calling.release()
    except TimeoutError as error:
        raise DsvccaError(f"{client} has no workers after {WAIT} s: start some, then run the same line") from error
    except CommClosedError:
        raise
    except OSError as error:
        raise RunError(
            f"the Dask scheduler does not answer ({error}): connect to a cluster and run the same line again"
        ) from error
