"""Commands that are sent away, to run where nobody has to wait for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dsvcca.cli.plain import plain_errors
from dsvcca.clusters import driver, jobs, kubernetes
from dsvcca.clusters.slurm import SlurmSettings, read_slurm
from dsvcca.clusters.workplace import MEMORY
from dsvcca.errors import DsvccaError
from dsvcca.plans.planning import bytes_of

SENT = ("compare", "keep-bases")
"""Commands that can be sent."""

WHERE = ("workers", "scheduler", "slurm")
"""Options of theirs that say where the work is done."""


@plain_errors
def submit(
    context: typer.Context,
    line: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="compare or keep-bases, and what stands behind it.")
    ],
    slurm: Annotated[
        Path | None, typer.Option(help="As a job of SLURM: a file that says what jobs are like (docs/slurm.md).")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option("--kubernetes", help="As a Job, or a DaskJob: its manifest (docs/kubernetes.md).")
    ] = None,
    after: Annotated[
        list[int] | None, typer.Option(min=1, help="A job of SLURM that has to succeed before; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent, and send nothing.")] = False,
) -> None:
    """Send a comparison as a job, which goes on by itself where it was cut short."""
    if line[0] not in SENT:
        raise DsvccaError(f"{line[0]!r} cannot be sent: what can is {' and '.join(SENT)}")
    group: Any = context.find_root().command
    command = group.commands[line[0]]
    with command.make_context(line[0], list(line[1:])) as inner:  # refuses what it does not know
        options = inner.params
    if options["dry_run"]:  # typed at the end, and meant for all of it
        dry_run, line = True, [one for one in line if one != "--dry-run"]
    slurm = slurm or (None if manifest else options["slurm"])
    if (slurm is None) == (manifest is None):
        raise DsvccaError("where is it to be sent? Give one of --slurm FILE and --kubernetes FILE")
    if manifest is not None:
        if after or any(options[name] for name in WHERE):
            raise DsvccaError(
                "on Kubernetes the manifest says where the work is done, and --after is a word of SLURM's"
            )
        for path in (options["store"], options.get("out") or "/"):
            if not path.startswith("/") and "://" not in path:
                raise DsvccaError(f"{path!r} is a path from here: name it as pods see it, /data/{path}")
        found = kubernetes.driver_manifest(manifest, line)
        print(found if dry_run else kubernetes.create(found))
    elif slurm is not None:
        _to_slurm(command, line, options, read_slurm(slurm), [str(one) for one in after or ()], dry_run)


def _to_slurm(
    command: Any, line: Sequence[str], options: dict[str, Any], settings: SlurmSettings, after: list[str], dry_run: bool
) -> None:
    """Send a line to SLURM, once it is known that it can be planned."""
    said = any(options[name] for name in WHERE)
    whole = [line[0], *(() if said else ("--slurm", settings.path)), *line[1:]]
    if options["workers"]:
        _check_room(settings, options["workers"], options["memory"] or MEMORY)
    if not after:  # what a job before this one makes is not there yet
        status = command.main(["--dry-run", *whole[1:]], prog_name=f"dsvcca {line[0]}", standalone_mode=False)
        if status:
            raise typer.Exit(status)
    script = driver.driver_script(settings, whole, after)
    if dry_run:
        print(script)
        if not options["workers"]:
            print(f"# The driver sends {settings.jobs} of these at a time:\n")
            print(jobs.worker_script(settings))
        return
    job, log = driver.send(script, settings)
    print(f"job      {job}   (squeue --job {job}; scancel {job} ends it, the same line goes on from there)")
    print(f"log      {log}")


def _check_room(settings: SlurmSettings, workers: int, memory: str) -> None:
    """Raise if the job of the driver has no room for workers of its own."""
    own = settings.driver
    if workers > own.cores or workers * bytes_of(memory) > bytes_of(own.memory):
        raise DsvccaError(
            f"--workers {workers} of {memory} each stay in the job of the driver, for which '{settings.path}' says "
            f"dsvcca.driver.cores {own.cores} and memory {own.memory}: give it more, or leave --workers out, and "
            "workers are jobs of their own"
        )
