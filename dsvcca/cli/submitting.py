"""Commands that are sent away, to run where nobody has to wait for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dsvcca.cli.plain import plain_errors
from dsvcca.clusters.driver import driver_script, send
from dsvcca.clusters.slurm import SlurmSettings, read_slurm
from dsvcca.clusters.workplace import MEMORY
from dsvcca.errors import DsvccaError
from dsvcca.plans.planning import bytes_of

SENT = ("compare", "keep-bases")
"""Commands that can be sent."""


@plain_errors
def submit(
    context: typer.Context,
    line: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="compare or keep-bases, and what stands behind it.")
    ],
    slurm: Annotated[Path, typer.Option(help="A file that says what jobs are like: deploy/slurm/dsvcca.yaml.")],
    after: Annotated[list[int] | None, typer.Option(help="A job that has to succeed before; may be repeated.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the job's script, and send nothing.")] = False,
) -> None:
    """Send a comparison as a job, which sends the others and goes on by itself where it was cut short."""
    settings = read_slurm(slurm)
    if line[0] not in SENT:
        raise DsvccaError(f"{line[0]!r} cannot be sent: what can is {' and '.join(SENT)}")
    group: Any = context.find_root().command
    command = group.commands[line[0]]
    with command.make_context(line[0], list(line[1:])) as inner:  # refuses what it does not know
        options = inner.params
    somewhere = any(options[name] for name in ("workers", "scheduler", "slurm"))
    whole = [*line, *(() if somewhere else ("--slurm", str(slurm)))]
    if options["workers"]:
        _check_room(settings, options["workers"], options["memory"] or MEMORY)
    if not after:  # what a job before this one makes is not there yet
        status = command.main([*whole[1:], "--dry-run"], prog_name=f"dsvcca {line[0]}", standalone_mode=False)
        if status:
            raise typer.Exit(status)
    script = driver_script(settings, whole, [str(one) for one in after or ()])
    if dry_run:
        print(script)
        return
    job, log = send(script, settings)
    print(f"job      {job}   (squeue --job {job}; scancel {job} ends it, the same line goes on from there)")
    print(f"log      {log}")


def _check_room(settings: SlurmSettings, workers: int, memory: str) -> None:
    """Raise if the job of the driver has no room for workers of its own."""
    own = settings.driver
    wanted = workers * bytes_of(memory)
    if workers > own.cores or wanted > bytes_of(own.memory):
        raise DsvccaError(
            f"--workers {workers} of {memory} each stay in the job of the driver, for which '{settings.path}' says "
            f"dsvcca.driver.cores {own.cores} and memory {own.memory}: give it more, or leave --workers out, and "
            "workers are jobs of their own"
        )
