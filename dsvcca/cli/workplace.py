"""Where the work of a command is done: this process, workers of this machine, a cluster, jobs of SLURM."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from distributed import Client

from dsvcca.clusters.address import connected_to
from dsvcca.clusters.local import local_client
from dsvcca.clusters.slurm import SlurmSettings, read_slurm, slurm_client
from dsvcca.errors import DsvccaError
from dsvcca.plans.planning import bytes_of

MEMORY = "1 GiB"
"""Of a worker thread, where nothing is said."""


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
    tls: Sequence[Path | None]
    slurm: SlurmSettings | None
    memory: int

    @classmethod
    def of(
        cls, workers: int, scheduler: str | None, tls: Sequence[Path | None], slurm: Path | None, memory: str | None
    ) -> Workplace:
        """Return what options say.

        Raises
        ------
        DsvccaError
            If they contradict each other, or the file for SLURM cannot be used.
        """
        given = {"--workers": workers, "--scheduler": scheduler, "--slurm": slurm}
        if len(several := [name for name, value in given.items() if value]) > 1:
            raise DsvccaError(f"{' and '.join(several)} say each on their own where the work is done: give one of them")
        if not scheduler and any(tls):
            raise DsvccaError("certificates were given and no --scheduler to show them to: give its tls:// address")
        settings = read_slurm(slurm) if slurm else None
        own = settings.memory if settings else bytes_of(MEMORY)
        found = cls(workers, scheduler, tls, settings, bytes_of(memory) if memory else own)
        if settings and found.memory > settings.memory:
            raise DsvccaError(
                f"--memory {memory} is more than a thread of the jobs of '{settings.path}' has, "
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
            found = stack.enter_context(connected_to(self.scheduler, self.tls))
        elif self.workers:
            found = stack.enter_context(local_client(self.workers, self.memory))
        else:
            return None
        return found
