"""Workers as jobs of SLURM: so many of them, and others where one has ended, for as long as a run takes.

What a job is like stands in a file that `dask_jobqueue` reads as well, and what it does not know of beside it:

    jobqueue:
      slurm: {queue: main, cores: 1, processes: 1, memory: 4 GiB, walltime: "01:00:00", ...}
    dsvcca: {jobs: 8, driver: {walltime: "1-00:00:00"}}
"""

from __future__ import annotations

import getpass
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import yaml
from dask.utils import format_bytes, parse_bytes
from distributed import Client, Security
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dsvcca.clusters.local import ON_ONE_MACHINE, WORKER_ENVIRONMENT, WORKER_MEMORY, kept_at
from dsvcca.errors import DsvccaError, RunError, nearest
from dsvcca.plans.planning import bytes_of
from dsvcca.progress import say

MARGIN = 60
"""Seconds before the end of its job, at least, after which a worker takes no more tasks."""

SHARE = 0.1
"""Share of the time of a job that is left when its worker ends; in half as much workers end one after another."""

ROLES = ("scheduler", "worker", "client")
"""Who shows certificates."""

JOBS_NAME = "DSVCCA_JOBS_NAME"
"""Environment variable: what jobs with workers are called, where the driver is a job."""

WALLTIME = re.compile(r"(?:(\d+)-)?(\d+(?::\d+){0,2})")
"""Days, and the rest of a time as SLURM writes it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Driver(_Strict):
    """The job that sends the others (`dsvcca submit`); what it does not say is as theirs."""

    cores: int = Field(default=1, ge=1)
    memory: str = "2 GiB"
    walltime: str | None = None
    queue: str | None = None
    directives: list[str] = []


class Wanted(_Strict):
    """What a run wants of SLURM that `dask_jobqueue` has no word for."""

    jobs: int = Field(ge=1)
    driver: Driver = Driver()


class Queue(_Strict):
    """What `dask_jobqueue` reads."""

    slurm: dict[str, Any]


class SlurmFile(_Strict):
    """The whole of a file."""

    jobqueue: Queue
    dsvcca: Wanted


@dataclass(frozen=True)
class SlurmSettings:
    """What stands in a file for SLURM, checked.

    Attributes
    ----------
    path : str
    jobs : int
        How many at a time.
    options : dict
        Those of ``jobqueue.slurm``.
    driver : Driver
    """

    path: str
    jobs: int
    options: dict[str, Any]
    driver: Driver

    @property
    def seconds(self) -> int:
        """Seconds that a job has."""
        return seconds_of(self.options["walltime"])

    @property
    def threads(self) -> int:
        """Worker threads of all jobs together."""
        return self.jobs * int(self.options["cores"])

    @property
    def memory(self) -> int:
        """Bytes that a worker thread has."""
        processes = int(self.options.get("processes") or 1)
        exact = bytes_of(self.options["memory"]) / processes
        given = min(exact, parse_bytes(format_bytes(int(exact))))  # as `dask_jobqueue` writes it on a line
        return int(given / max(1, int(self.options["cores"]) // processes))

    def driver_seconds(self) -> int:
        """Return the seconds that the job has which sends the others."""
        return seconds_of(self.driver.walltime or self.options["walltime"])


def read_slurm(path: str | os.PathLike[str]) -> SlurmSettings:
    """Return what stands in a file for SLURM.

    Raises
    ------
    DsvccaError
        If there is none, it is no YAML, or it says what nobody understands.
    """
    try:
        found = SlurmFile.model_validate(yaml.safe_load(Path(path).read_text()))
    except OSError as error:
        raise DsvccaError(
            f"'{path}' cannot be read ({error.strerror}): name a file that says what jobs are like"
        ) from error
    except yaml.YAMLError as error:
        raise DsvccaError(f"'{path}' is no YAML ({error}): see deploy/slurm/dsvcca.yaml for one that is") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DsvccaError(f"'{path}': {where}: {first['msg']}: see deploy/slurm/dsvcca.yaml") from error
    options = {name.replace("_", "-"): value for name, value in found.jobqueue.slurm.items()}
    known = _defaults()
    for name in options:
        if name not in known:
            raise DsvccaError(f"'{path}': jobqueue.slurm knows no {name!r}: {nearest(name, known)}")
    for name in ("cores", "memory", "walltime"):
        if not options.get(name):
            raise DsvccaError(f"'{path}' does not say jobqueue.slurm.{name}: a job needs cores, memory and walltime")
    if not isinstance(options["walltime"], str):  # YAML takes 12:00:00 for a number of seconds, SLURM for minutes
        raise DsvccaError(f"'{path}': walltime is the number {options['walltime']!r}: write it in quotes, \"01:00:00\"")
    settings = SlurmSettings(str(path), found.dsvcca.jobs, options, found.dsvcca.driver)
    for seconds in (settings.seconds, settings.driver_seconds()):
        if seconds <= 2 * MARGIN:
            raise DsvccaError(f"'{path}': a walltime of {seconds} s is gone before work is done: give 10 minutes")
    for name in ("cores", "processes"):
        if not isinstance(options.get(name, 1), int) or options.get(name, 1) < 1:
            raise DsvccaError(f"'{path}': {name} is {options[name]!r}: give a number from 1 on")
    bytes_of(settings.options["memory"]), bytes_of(settings.driver.memory)
    return settings


def seconds_of(walltime: str) -> int:
    """Return the seconds of a time as SLURM writes it.

    >>> [seconds_of(one) for one in ("90", "90:30", "01:00:00", "2-00", "2-01:30")]
    [5400, 5430, 3600, 172800, 178200]

    Raises
    ------
    DsvccaError
        If it is none.
    """
    found = WALLTIME.fullmatch(walltime)
    if found is None:
        raise DsvccaError(f"walltime {walltime!r} is none: write it as SLURM does, '01:00:00' or '2-12:00:00'")
    days, rest = found.groups()
    parts = [int(part) for part in rest.split(":")]
    read = {1: (0, *parts, 0), 2: (0, *parts), 3: (*parts,)}[len(parts)]  # minutes first, where there are no days
    hours, minutes, seconds = (*parts, 0, 0)[:3] if days else read
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _jobqueue() -> Any:
    try:
        import dask_jobqueue
    except ImportError as error:
        raise DsvccaError("workers by SLURM need dask-jobqueue: pip install 'dsvcca[slurm]'") from error
    return dask_jobqueue


def _defaults() -> dict[str, Any]:
    """Return the options of `dask_jobqueue` for SLURM, as they are where a file says nothing."""
    defaults = Path(_jobqueue().__file__).parent / "jobqueue.yaml"
    found: dict[str, Any] = yaml.safe_load(defaults.read_text())["jobqueue"]["slurm"]
    return found


@contextmanager
def slurm_client(settings: SlurmSettings) -> Iterator[Client]:
    """Run a scheduler in this process, and workers as jobs of SLURM, and cancel them at the end.

    They speak TLS, by certificates that are made for this run where Dask's configuration names none: whoever reaches a
    scheduler without can do there what its owner can. A worker takes no more tasks a while before the time of its job
    is over; where a job has ended another one is sent.

    Raises
    ------
    RunError
        If SLURM refuses the jobs, or they end before a worker comes.
    """
    queue = _jobqueue()
    lifetime = settings.seconds - max(MARGIN, int(SHARE * settings.seconds))
    more = [str(one) for one in settings.options.get("worker-extra-args") or []]
    if "--lifetime" not in more:
        more += ["--lifetime", f"{lifetime}s", "--lifetime-stagger", f"{int(SHARE * lifetime / 2)}s"]
    settings_of_dask = {f"DASK_{key.upper().replace('.', '__')}": value for key, value in WORKER_MEMORY.items()}
    exports = [f"export {name}={value}" for name, value in (WORKER_ENVIRONMENT | settings_of_dask).items()]
    before = [*exports, *(settings.options.get("job-script-prologue") or [])]
    options = {**_defaults(), **settings.options, "worker-extra-args": more, "job-script-prologue": before}
    options["name"] = os.environ.get(JOBS_NAME) or options["name"]
    if not options["shared-temp-directory"]:
        options["shared-temp-directory"] = options["log-directory"] or "."
    options["scheduler-options"] = {"dashboard_address": "127.0.0.1:0", **(options["scheduler-options"] or {})}
    config = {**ON_ONE_MACHINE, "distributed.scheduler.allowed-failures": 3, "jobqueue.slurm": options}
    with dask.config.set(config), ExitStack() as stack:
        try:
            security = stack.enter_context(_certificates(options["shared-temp-directory"]))
            cluster = stack.enter_context(queue.SLURMCluster(security=security, protocol="tls://"))
        except (ImportError, TypeError, ValueError, OSError, RuntimeError) as error:
            raise RunError(f"the scheduler for the jobs of '{settings.path}' did not start: {error}") from error
        look_at(cluster.job_script(), settings)
        client: Client = stack.enter_context(Client(cluster, set_as_default=False))
        cluster.scale(jobs=settings.jobs)
        stack.enter_context(kept_at(lambda: cluster.scale(jobs=settings.jobs)))
        _wait_for_the_first(cluster, client, settings)
        yield client


@contextmanager
def _certificates(folder: str) -> Iterator[Security]:
    """Return what Dask's configuration says of TLS, or certificates for a while, as files that jobs can read."""
    own = Security()
    if own.get_connection_args("client").get("ssl_context"):
        yield own
        return
    made = Security.temporary()
    parent = Path(os.path.expandvars(folder)).expanduser().absolute()
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".dsvcca-tls-", dir=parent) as at:  # for nobody else to read
        files = {}
        for what in ("tls_ca_file", *(f"tls_{who}_{part}" for who in ROLES for part in ("cert", "key"))):
            path = Path(at) / what
            path.write_text(getattr(made, what))
            files[what] = str(path)
        yield Security(require_encryption=True, **files)


def look_at(script: str, settings: SlurmSettings) -> None:
    """Let SLURM look at a job before any is sent.

    Raises
    ------
    RunError
        If it would refuse it.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        try:
            found = subprocess.run(["sbatch", "--test-only", file.name], capture_output=True, text=True, check=False)
        except OSError as error:
            raise RunError(f"sbatch cannot be run ({error.strerror}): is this a machine that SLURM knows?") from error
    if found.returncode:
        raise RunError(f"SLURM refuses the jobs of '{settings.path}': {found.stderr.strip()}")


def _wait_for_the_first(cluster: Any, client: Client, settings: SlurmSettings) -> None:
    """Wait until a worker has come, however long the queue is; that all jobs end before one has come is an error."""
    say(f"{settings.jobs} jobs were sent to SLURM: waiting for the first to start")
    seen: set[str] = set()
    while not client.scheduler_info(n_workers=1)["workers"]:
        time.sleep(1)
        seen |= {str(job.job_id) for job in cluster.workers.values() if getattr(job, "job_id", None)}
        if seen and not _queued(seen):
            raise RunError(
                f"all {len(seen)} jobs of '{settings.path}' ended before a worker came: look at their logs"
                + (f" in '{settings.options['log-directory']}'" if settings.options.get("log-directory") else "")
            )


def _queued(jobs: set[str]) -> set[str]:
    """Return those of some jobs that wait or run; all of them where SLURM does not answer, as it does when it is busy."""
    asked = ["squeue", "--noheader", "--format=%i", "--user", getpass.getuser()]  # with --jobs one that ended is an error
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return jobs if found.returncode else jobs.intersection(found.stdout.split())
