"""Where work is done: this process, workers of this machine, a cluster that is there, jobs of SLURM."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from distributed import Client

from dsvcca.clusters.address import joined_client
from dsvcca.clusters.jobs import slurm_client
from dsvcca.clusters.local import local_client
from dsvcca.clusters.slurm import SlurmSettings, read_slurm
from dsvcca.errors import DsvccaError
from dsvcca.plans.planning import bytes_of

MEMORY = "1 GiB"
"""Of a worker thread, where nothing is said."""

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Workplace:
    """Where work is done, as options say it, checked.

    Attributes
    ----------
    workers : int
        Processes of this machine; 0 is this process alone.
    scheduler : str or None
    tls : sequence
        Files to show to that scheduler: those of `TLS`.
    slurm : SlurmSettings or None
    memory : int
        Bytes of a worker thread.
    """

    workers: int
    scheduler: str | None
    tls: Sequence[PathLike | None]
    slurm: SlurmSettings | None
    memory: int

    @classmethod
    def of(
        cls,
        workers: int,
        scheduler: str | None,
        tls: Sequence[PathLike | None],
        slurm: PathLike | None,
        memory: str | None,
    ) -> Workplace:
        """Return what options say.

        Raises
        ------
        DsvccaError
            If they contradict each other, or the file for SLURM cannot be used.
        """
        if not isinstance(workers, int) or workers < 0:
            raise DsvccaError(f"workers={workers!r}: give how many processes of this machine, a whole number")
        if scheduler is not None and not isinstance(scheduler, str):
            raise DsvccaError(f"{scheduler!r} is no address of a scheduler: 'tcp://host:8786'; workers={scheduler!r}?")
        if slurm is not None and not isinstance(slurm, str | os.PathLike):
            raise DsvccaError(f"slurm={slurm!r}: name a file that says what jobs are like")
        given = {"workers": workers, "scheduler": scheduler, "slurm": slurm}
        if scheduler is not None and not scheduler:
            raise DsvccaError("the address of the scheduler is empty: is the variable set that was to hold it?")
        if len(several := [name for name, value in given.items() if value]) > 1:
            raise DsvccaError(f"{' and '.join(several)} say each on their own where the work is done: give one of them")
        if not scheduler and any(tls):
            raise DsvccaError("certificates were given and no scheduler to show them to: give its tls:// address")
        settings = read_slurm(slurm) if slurm else None
        own = settings.memory if settings else bytes_of(MEMORY)
        found = cls(workers, scheduler, tls, settings, bytes_of(memory) if memory else own)
        if settings and found.memory > settings.memory:
            raise DsvccaError(
                f"memory {memory} is more than a thread of the jobs of '{settings.path}' has, "
                f"{settings.memory / 2**30:.2f} GiB: leave it out, or give jobs more memory"
            )
        return found

    @property
    def threads(self) -> int:
        """How many worker threads there will be, as far as options say it."""
        return self.slurm.threads if self.slurm else self.workers or 1

    def client(self, stack: ExitStack) -> Client | None:
        """Return a client of where the work is done, until the stack is left; None for this process."""
        if self.slurm:
            found: Client = stack.enter_context(slurm_client(self.slurm))
        elif self.scheduler:
            found = stack.enter_context(joined_client(self.scheduler, self.tls))
        elif self.workers:
            found = stack.enter_context(local_client(self.workers, self.memory))
        else:
            return None
        return found


class Cluster:
    """A cluster that was started or joined, until it is closed; `connect` makes one.

    Attributes
    ----------
    client : distributed.Client
        For `compare`, `start`, `keep_bases`, `machine_of`.
    """

    def __init__(self, place: Workplace) -> None:
        self._stack = ExitStack()
        found = place.client(self._stack)
        assert found is not None
        self.client: Client = found
        _open.add(self)  # who keeps the client alone has a cluster still

    def close(self) -> None:
        """End what was started: workers of this machine, jobs. A cluster that was joined goes on."""
        _open.discard(self)
        self._stack.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<dsvcca cluster: {self.client}>"


_open: set[Cluster] = set()


@atexit.register
def _close_all() -> None:
    """Close what nobody has closed, where the process ends."""
    for cluster in list(_open):
        with suppress(Exception):
            cluster.close()


def connect(
    scheduler: str | None = None,
    *,
    workers: int = 0,
    slurm: PathLike | None = None,
    memory: str | None = None,
    tls_ca: PathLike | None = None,
    tls_cert: PathLike | None = None,
    tls_key: PathLike | None = None,
) -> Cluster:
    """Start a cluster or join one, as the options of the command line do, for as long as a notebook needs it.

    Parameters
    ----------
    scheduler : str, optional
        Address of a Dask scheduler to join: ``tcp://host:8786``, ``tls://host:8786``.
    workers : int, optional
        So many single-threaded processes of this machine instead.
    slurm : path, optional
        Jobs of SLURM instead: a file that says what they are like (docs/slurm.md).
    memory : str, default "1 GiB"
        Of each of those processes; others have what they were started with.
    tls_ca, tls_cert, tls_key : path, optional
        Certificate of who signed those of the cluster, and one to show to it, with its key.

    Returns
    -------
    Cluster
        Its `client` is what other functions take; `close()` ends what was started. Also a context.

    Raises
    ------
    DsvccaError
        If not one of the three is given, or it cannot be reached or started.
    """
    place = Workplace.of(workers, scheduler, (tls_ca, tls_cert, tls_key), slurm, memory)
    if not (scheduler or workers or slurm):
        raise DsvccaError("where is the work to be done? Give the address of a scheduler, workers= or slurm=")
    return Cluster(place)
