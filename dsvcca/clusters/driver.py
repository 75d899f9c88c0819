"""The driver as a job of its own: a line of `dsvcca` that SLURM begins, and begins again where it was cut short."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dask.utils import parse_bytes

from dsvcca.clusters.jobs import JOBS_NAME, look_at, sbatch
from dsvcca.clusters.slurm import MARGIN, SlurmSettings
from dsvcca.errors import DsvccaError, RunError

RETRIES = 10
"""Times that a driver which was killed begins again, as its log counts them; one whose time is over always does."""

SCRIPT = """\
#!/bin/bash
{directives}

{prologue}
set +e +u +o pipefail # whatever stands above

# Jobs that workers are in have this name, so that those of a driver that was killed are found again.
export {jobs_name}="dsvcca-$SLURM_JOB_ID"
scancel --quiet --user "$(id -un)" --name "${jobs_name}" || true

over=0
stop() {{ over=1; kill -TERM "$driver" 2> /dev/null; }}
trap stop USR1  # comes before the time of this job is over

{line} &
driver=$!
while true; do
  wait "$driver"
  status=$?
  if ! kill -0 "$driver" 2> /dev/null; then break; fi  # or it was the signal that ended waiting
done
echo "dsvcca: status $status after $SECONDS s, restart ${{SLURM_RESTART_COUNT:-0}}"
if [ "$status" -gt 128 ]; then
  if [ "$over" = 0 ]; then echo "dsvcca: killed"; fi
  if [ "$over" = 1 ] || [ "$(grep -cx "dsvcca: killed" {log}"$SLURM_JOB_ID.log")" -le {retries} ]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$status"
"""


def driver_script(settings: SlurmSettings, line: Sequence[str], after: Sequence[str] = ()) -> str:
    """Return a batch script that runs a line of `dsvcca` from the current folder.

    A driver whose time is over, or that was killed, goes back to the queue; what it had finished is on storage.

    Parameters
    ----------
    line : sequence of str
        What stands behind `dsvcca` on it.
    after : sequence of str
        Jobs that have to succeed before.
    """
    own, options = settings.driver, settings.options
    seconds = settings.driver_seconds()
    hours, rest = divmod(seconds, 3600)
    wanted = {
        "job-name": "dsvcca-driver",
        "partition": own.queue or options.get("queue"),
        "account": options.get("account"),
        "ntasks": 1,
        "cpus-per-task": own.cores,
        "mem": f"{-(-parse_bytes(own.memory) // 2**20)}M",
        "time": f"{hours:02d}:{rest // 60:02d}:{rest % 60:02d}",
        "signal": f"B:USR1@{max(MARGIN, min(300, seconds // 50))}",
        "chdir": shlex.quote(os.getcwd()),
        "output": shlex.quote(str(_log(settings, "")).replace("%", "%%").removesuffix(".log") + "%j.log"),
        "open-mode": "append",
        "dependency": f"afterok:{':'.join(after)}" if after else None,
        "kill-on-invalid-dep": "yes" if after else None,
    }
    directives = [f"--{name}={value}" for name, value in wanted.items() if value is not None]
    skipped = options.get("job-directives-skip") or []
    directives = [one for one in directives if not any(str(skip) in f"#SBATCH {one}" for skip in skipped)]
    if any(not one.isprintable() for one in (*directives, *line)):
        raise DsvccaError(
            f"{os.getcwd()!r}, or a word of the line, has letters that cannot be seen or are not UTF-8, which a script "
            "of SLURM does not keep: send it from another folder"
        )
    return SCRIPT.format(
        directives="\n".join(f"#SBATCH {one}" for one in [*directives, "--requeue", *own.directives]),
        prologue="\n".join(options.get("job-script-prologue") or []),
        jobs_name=JOBS_NAME,
        line=shlex.join([sys.executable, "-m", "dsvcca", "--verbose", *line]),
        retries=RETRIES,
        log=shlex.quote(str(_log(settings, "")).removesuffix(".log")),
    )


def send(script: str, settings: SlurmSettings) -> tuple[str, Path]:
    """Hand a batch script to SLURM; return the id of its job, and where its log will be.

    Raises
    ------
    RunError
        If SLURM refuses it.
    """
    look_at(script, settings)
    _log(settings, "").parent.mkdir(parents=True, exist_ok=True)
    found = sbatch(script, "--parsable")
    if found.returncode:
        raise RunError(f"SLURM refuses the driver of '{settings.path}': {found.stderr.strip()}")
    job = found.stdout.strip().split(";")[0]
    return job, _log(settings, job)


def _log(settings: SlurmSettings, job: str) -> Path:
    return Path(settings.options.get("log-directory") or ".").absolute() / f"dsvcca-driver-{job}.log"
