"""Workers as jobs of SLURM, for as long as a run takes; others are sent where one was refused, or has ended."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dask
from distributed import Client, SchedulerPlugin, Security, Status

from dsvcca.clusters.local import kept_at
from dsvcca.clusters.settings import ON_ONE_MACHINE, WORKER_ENVIRONMENT, WORKER_MEMORY, dask_settings
from dsvcca.clusters.slurm import MARGIN, SlurmSettings, defaults, jobqueue
from dsvcca.errors import RunError
from dsvcca.progress import say

SHARE = 0.1
"""Share of the time of a job that is left when its worker ends; in half as much workers end one after another."""

ROLES = ("scheduler", "worker", "client")
"""Who shows certificates."""

JOBS_NAME = "DSVCCA_JOBS_NAME"
"""Environment variable: what jobs with workers are called, where the driver is a job."""

LOOK = 10
"""Seconds after which SLURM is asked again what became of jobs."""

LONGEST = 300
"""Seconds, at most, until jobs are sent again that were refused or ended without a worker; at first `LOOK`."""

TRIES = 10
"""Times that jobs are sent all of which are refused, before it is an error; half an hour."""

# What is lost is replaced here. Dask's own way would, after this time, cancel what was sent in its place.
NEVER = {"distributed.deploy.lost-worker-timeout": "1000 days"}


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
    queue = jobqueue()
    options = _options(settings)
    config = {**ON_ONE_MACHINE, **NEVER, "distributed.scheduler.allowed-failures": 3, "jobqueue.slurm": options}
    with dask_settings(config), ExitStack() as stack:
        try:
            security = stack.enter_context(_certificates(options["shared-temp-directory"]))
            cluster = stack.enter_context(
                queue.SLURMCluster(security=security, protocol="tls://", job_cls=_job_class(queue))
            )
        except (ImportError, TypeError, ValueError, OSError, RuntimeError) as error:
            raise RunError(f"the scheduler for the jobs of '{settings.path}' did not start: {error}") from error
        look_at(cluster.job_script(), settings)
        client: Client = stack.enter_context(Client(cluster, set_as_default=False))
        jobs = _Jobs(cluster, settings)
        cluster.scale(jobs=settings.jobs)
        stack.enter_context(kept_at(jobs.look, LOOK))
        jobs.wait_for_the_first()
        yield client


def _options(settings: SlurmSettings) -> dict[str, Any]:
    """Return what `dask_jobqueue` is told: what a file says, and what workers of ours need beside it."""
    lifetime = settings.seconds - max(MARGIN, int(SHARE * settings.seconds))
    more = [str(one) for one in settings.options.get("worker-extra-args") or []]
    if "--lifetime" not in more:
        more += ["--lifetime", f"{lifetime}s", "--lifetime-stagger", f"{int(SHARE * lifetime / 2)}s"]
    settings_of_dask = {f"DASK_{key.upper().replace('.', '__')}": value for key, value in WORKER_MEMORY.items()}
    exports = [f"export {name}={value}" for name, value in (WORKER_ENVIRONMENT | settings_of_dask).items()]
    before = [*exports, *(settings.options.get("job-script-prologue") or [])]
    options = {**defaults(), **settings.options, "worker-extra-args": more, "job-script-prologue": before}
    options["name"] = os.environ.get(JOBS_NAME) or options["name"]
    if not options["shared-temp-directory"]:
        options["shared-temp-directory"] = options["log-directory"] or "."
    options["scheduler-options"] = {"dashboard_address": "127.0.0.1:0", **(options["scheduler-options"] or {})}
    return options


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


def _job_class(queue: Any) -> type:
    """Return the jobs of `dask_jobqueue`, mended: paths with spaces, and what becomes of one that is refused."""

    class Job(queue.slurm.SLURMJob):  # type: ignore[misc]
        refused = ""

        def __init__(self, *args: Any, security: Any, **more: Any) -> None:
            super().__init__(*args, security=_Quoted(security), **more)

        async def start(self) -> None:
            try:
                await super().start()
            except (RuntimeError, ValueError, OSError) as error:  # of which only a log of Dask's would tell
                self.refused = str(error).rpartition("stderr:")[2].strip() or "sbatch failed"
                self.status = Status.running  # as far as Dask is concerned, until it is sent again

    return Job


class _Quoted:
    """What certificates are called on the command line of a worker."""

    def __init__(self, security: Any) -> None:
        self._security = security

    def get_tls_config_for_role(self, role: str) -> dict[str, str | None]:
        """Return the paths, as a shell reads them; `dask_jobqueue` asks for these."""
        found: dict[str, str | None] = self._security.get_tls_config_for_role(role)
        return {name: value and shlex.quote(value) for name, value in found.items()}


class _Jobs(SchedulerPlugin):
    """The jobs of a run: looked at now and then, and others sent for those that were refused, or have ended."""

    name = "dsvcca-jobs"

    def __init__(self, cluster: Any, settings: SlurmSettings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._came: set[str] = set()  # jobs of which there was a worker
        self._first = threading.Event()
        self._failure = ""
        self._pause, self._again = LOOK, 0.0  # for those that were refused, or ended without a worker
        self._tries = 0
        cluster.scheduler.add_plugin(self)

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Note whose worker has come; called by the scheduler."""
        self._came.add(self._job_of(scheduler.workers[worker].name))
        self._pause, self._again = LOOK, 0.0
        self._first.set()

    def _job_of(self, worker: str) -> str:
        """Return the job of a worker by its name; where a job has several, each has a number behind."""
        jobs = self._cluster.workers
        found = jobs.get(worker) or jobs.get(str(worker).rpartition("-")[0])
        return str(found.job_id) if found else ""

    def look(self) -> None:
        """Look what became of the jobs, and send others where some are wanted."""
        jobs = dict(self._cluster.workers)
        sent = {str(job.job_id): name for name, job in jobs.items() if job.job_id}
        working = {self._job_of(worker.name) for worker in list(self._cluster.scheduler.workers.values())}
        ended = set(sent) - _queued(set(sent)) - working
        again = [sent[job] for job in ended & self._came]
        refused = {name: job.refused for name, job in jobs.items() if job.refused}
        unlucky = [*refused, *(sent[job] for job in ended - self._came)]
        if unlucky and time.monotonic() >= self._again:
            again += self._tried_again(unlucky, refused, len(jobs))
        for name in again:
            self._cluster.workers.pop(name, None)
        if not self._failure:
            self._cluster.scale(jobs=self._settings.jobs)

    def _tried_again(self, unlucky: list[str], refused: Mapping[str, str], of: int) -> list[str]:
        """Return which to send again of those that were refused or ended without a worker: less and less often."""
        path, reason = self._settings.path, next(iter(refused.values()), "")
        lost = len(unlucky) - len(refused)
        self._tries += 1
        if not self._first.is_set() and len(unlucky) == of and (lost or self._tries > TRIES):
            logs = self._settings.options.get("log-directory")
            self._failure = (
                f"all {of} jobs of '{path}' ended before a worker came: look at their logs"
                + (f" in '{logs}'" if logs else "")
                if lost
                else f"SLURM refuses the jobs of '{path}': {reason}"
            )
            return []
        said = [f"SLURM refuses {len(refused)} jobs ({reason})"] if refused else []
        said += [f"{lost} jobs ended before a worker came"] if lost else []
        say(f"{' and '.join(said)}: they are sent again, and the next time not before {self._pause} s")
        self._again = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST)
        return unlucky

    def wait_for_the_first(self) -> None:
        """Wait until a worker has come, however long the queue is.

        Raises
        ------
        RunError
            If no job is accepted, or all have ended before.
        """
        say(f"{self._settings.jobs} jobs were sent to SLURM: waiting for the first to start")
        while not self._first.wait(1):
            if self._failure:
                raise RunError(self._failure)


def _queued(jobs: set[str]) -> set[str]:
    """Return those of some jobs that wait or run; all of them where SLURM does not answer, as when it is busy."""
    # With --jobs one that has ended is an error.
    asked = ["squeue", "--noheader", "--format=%i", "--user", str(os.getuid())]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
    except OSError:
        return jobs
    return jobs if found.returncode else jobs.intersection(found.stdout.split())


SILENT = re.compile("(?i)unable to contact|unknown host|resolve|connection (refused|timed out)|timed out")
"""What SLURM's programs say where nobody answers them."""


def worker_script(settings: SlurmSettings) -> str:
    """Return the script of a job with workers, as far as it is known before there is a scheduler."""
    queue, options = jobqueue(), _options(settings)
    logs = Path(options["log-directory"] or ".")
    there = logs.exists()
    with dask.config.set({"jobqueue.slurm": options}):
        script: str = queue.slurm.SLURMJob("tls://SCHEDULER:PORT", name="NAME", protocol="tls://").job_script()
    if not there:
        logs.rmdir()  # which it has made
    return script


def sbatch(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Hand a batch script to SLURM."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        try:
            return subprocess.run(["sbatch", *options, file.name], capture_output=True, text=True, check=False)
        except OSError as error:
            raise RunError(f"sbatch cannot be run ({error.strerror}): is this a machine that SLURM knows?") from error


def look_at(script: str, settings: SlurmSettings) -> None:
    """Let SLURM look at a job before any is sent.

    Raises
    ------
    RunError
        If it would refuse it.
    """
    found = sbatch(script, "--test-only")
    if found.returncode and SILENT.search(found.stderr):
        raise RunError(
            f"SLURM does not answer here: {found.stderr.strip()}: is this a machine from which jobs are sent?"
        )
    if found.returncode:
        raise RunError(f"SLURM refuses the jobs of '{settings.path}': {found.stderr.strip()}")
