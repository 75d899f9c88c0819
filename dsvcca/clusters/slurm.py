"""What jobs of SLURM are like: a file, checked.

It is one that `dask_jobqueue` reads as well, with what that does not know of beside it:

    jobqueue:
      slurm: {queue: main, cores: 1, processes: 1, memory: 4 GiB, walltime: "01:00:00", ...}
    dsvcca: {jobs: 8, driver: {walltime: "1-00:00:00"}}
"""

from __future__ import annotations

import os
import re
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask.utils import format_bytes, parse_bytes
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dsvcca.clusters.documents import documents_in
from dsvcca.errors import DsvccaError, nearest, needing
from dsvcca.plans.planning import bytes_of

MARGIN = 60
"""Seconds before the end of its job, at least, after which a worker takes no more tasks."""

EXAMPLE = "deploy/slurm/dsvcca.yaml"

FOLDERS = ("log-directory", "local-directory", "shared-temp-directory")
"""Options that are folders."""

LISTS = ("worker-extra-args", "job-script-prologue", "job-extra-directives", "job-directives-skip")
"""Options that are a list of text each."""

CALLED = {"partition": "queue", "time": "walltime", "mem": "memory", "cpus-per-task": "cores", "job-name": "name"}
"""What SLURM calls otherwise than `dask_jobqueue`."""

DIRECTIVES = ("exclude", "nodelist", "gres", "gpus", "qos", "constraint", "reservation", "exclusive", "mail-user")
"""Words of SLURM that are handed through."""

TEXTS = ("name", "queue", "account", "interface", "python", *FOLDERS)
"""Options that are text."""

WALLTIME = re.compile(r"(?:(\d{1,9})-)?(\d{1,9}(?::\d{1,9}){0,2})")
"""Days, and the rest of a time as SLURM writes it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Driver(_Strict):
    """The job that sends the others (`dsvcca submit`); walltime, queue and account are as theirs if it does not say."""

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
    documents = documents_in(path, "a file that says what jobs are like", EXAMPLE)
    try:
        found = SlurmFile.model_validate(documents[0] if len(documents) == 1 else None)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DsvccaError(f"'{path}': {where}: {first['msg']}: see {EXAMPLE}") from error
    options = {name.replace("_", "-"): value for name, value in found.jobqueue.slurm.items()}
    known = defaults()
    for name in options:
        if name in CALLED:
            raise DsvccaError(f"'{path}': jobqueue.slurm knows no {name!r}: dask-jobqueue calls it {CALLED[name]!r}")
        if name in DIRECTIVES:
            raise DsvccaError(
                f"'{path}': jobqueue.slurm knows no {name!r}: write job-extra-directives: [\"--{name}=...\"]"
            )
        if name not in known:
            raise DsvccaError(f"'{path}': jobqueue.slurm knows no {name!r}: {nearest(name, known)}")
    for name, value in [*options.items(), *found.dsvcca.driver.model_dump().items()]:
        _check_text(path, name, value)
    for name in ("cores", "memory", "walltime"):
        if not options.get(name):
            raise DsvccaError(f"'{path}' does not say jobqueue.slurm.{name}: a job needs cores, memory and walltime")
    if not isinstance(options["walltime"], str):  # YAML takes 12:00:00 for a number of seconds, SLURM for minutes
        raise DsvccaError(f"'{path}': walltime is the number {options['walltime']!r}: write it in quotes, \"01:00:00\"")
    if options.get("log-directory"):  # or the driver's log and those of workers lie in two places
        options["log-directory"] = os.path.expanduser(os.path.expandvars(options["log-directory"]))
    for name in FOLDERS[:2]:
        if len(str(options.get(name) or "").split()) > 1:
            raise DsvccaError(f"'{path}': {name} is {options[name]!r}: dask-jobqueue takes no folder with a space")
    settings = SlurmSettings(str(path), found.dsvcca.jobs, options, found.dsvcca.driver)
    for seconds in (settings.seconds, settings.driver_seconds()):
        if seconds <= 2 * MARGIN:
            raise DsvccaError(f"'{path}': a walltime of {seconds} s is gone before work is done: give 10 minutes")
    for name in ("cores", "processes"):
        if not isinstance(options.get(name, 1), int) or options.get(name, 1) < 1:
            raise DsvccaError(f"'{path}': {name} is {options[name]!r}: give a number from 1 on")
    if options.get("processes", 1) > options["cores"]:
        raise DsvccaError(
            f"'{path}': {options['processes']} processes share {options['cores']} cores: give each of them one"
        )
    for name in LISTS:
        if not isinstance(value := options.get(name) or [], list) or not all(
            isinstance(one, str | int) for one in value
        ):
            raise DsvccaError(f"'{path}': {name} is {value!r}: give a list of text, [\"...\"]")
    bytes_of(settings.options["memory"]), bytes_of(settings.driver.memory)
    return settings


def _check_text(path: str | os.PathLike[str], name: str, value: Any) -> None:
    """Raise if an option is text that would not stay on its line, or is no text where it has to be."""
    several = value if isinstance(value, list) else [value]
    for one in several:
        if isinstance(one, str) and not one.isprintable():
            raise DsvccaError(f"'{path}': {name} is {one!r}: write it on one line, of letters that can be seen")
        if (name in TEXTS or name in LISTS) and not (one is None or (isinstance(one, str) and one)):
            raise DsvccaError(f"'{path}': {name} is {value!r}: give text" + (", a list of it" if name in LISTS else ""))
    if name in TEXTS and isinstance(value, list):
        raise DsvccaError(f"'{path}': {name} is {value!r}: give text")


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


def jobqueue() -> Any:
    before = signal.getsignal(signal.SIGINT)
    with needing("workers by SLURM need", "slurm"):
        import dask_jobqueue
    if threading.current_thread() is threading.main_thread() and before is not None:
        signal.signal(signal.SIGINT, before)  # the library has every interrupt end the process in silence
    return dask_jobqueue


def defaults() -> dict[str, Any]:
    """Return the options of `dask_jobqueue` for SLURM, as they are where a file says nothing."""
    defaults = Path(jobqueue().__file__).parent / "jobqueue.yaml"
    [found] = documents_in(defaults, "the defaults of dask-jobqueue", EXAMPLE)
    options: dict[str, Any] = found["jobqueue"]["slurm"]
    return options
