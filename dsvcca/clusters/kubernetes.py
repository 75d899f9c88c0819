"""The driver as a job on Kubernetes: a manifest whose container runs another line of `dsvcca`."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from typing import Any

import yaml

from dsvcca.clusters.documents import documents_in
from dsvcca.errors import DsvccaError, RunError

KINDS = {"Job": ("spec", "template", "spec"), "DaskJob": ("spec", "job", "spec")}
"""Objects that run something to its end, and where their pod is described."""

EXAMPLE = "deploy/kubernetes/driver.yaml"

MEMORY = "--memory"
"""Option that stays as the manifest has it: what workers have."""

ADDRESS = "DASK_SCHEDULER_ADDRESS"
"""Environment variable of a container: where its scheduler is."""


def driver_manifest(path: str | os.PathLike[str], line: Sequence[str]) -> str:
    """Return a manifest for `kubectl create`: that of a file, with a line of `dsvcca` in its container.

    Parameters
    ----------
    path : path
        A Job or a DaskJob, of which deploy/kubernetes has examples. Where its container is told the address of a
        scheduler, the line says it, and what a worker thread has of memory as well. A Job gets a name of its own.
    line : sequence of str
        What stands behind `dsvcca` on it. Paths are those that pods see.

    Raises
    ------
    DsvccaError
        If there is no such file, or something else is in it.
    """
    documents = documents_in(path, "the manifest of a Job", EXAMPLE)
    kinds = [one.get("kind") if isinstance(one, dict) else None for one in documents]
    if len(documents) != 1 or not isinstance(kinds[0], str) or kinds[0] not in KINDS:
        raise DsvccaError(
            f"'{path}' holds {', '.join(map(str, kinds)) or 'nothing'}: a single {' or '.join(KINDS)} is wanted, as "
            f"{EXAMPLE} has it"
        )
    container = _container(documents[0], path)
    if any(not one.isprintable() for one in line):
        raise DsvccaError(f"{shlex.join(line)!r} has letters that cannot be seen or are not UTF-8: name other paths")
    env = container.get("env")
    known = [one.get("name") for one in env if isinstance(one, dict)] if isinstance(env, list) else []
    own, *rest = [one.replace("$", "$$") for one in line]  # Kubernetes puts variables in where it finds $(NAME)
    there = [f"--scheduler=$({ADDRESS})"] if ADDRESS in known else []
    if not any(one.partition("=")[0] == MEMORY for one in line):
        args = container.get("args")
        before = [one for one in args if isinstance(one, str)] if isinstance(args, list) else []
        there += [one for one in before if one.startswith(f"{MEMORY}=")]
    container["args"] = ["dsvcca", "--verbose", own, *there, *rest]
    if (
        documents[0]["kind"] == "Job"
        and isinstance(about := documents[0].get("metadata"), dict)
        and (name := about.pop("name", None))
    ):
        about["generateName"] = f"{name}-"  # or it would be refused while one of that name is there
    manifest: str = yaml.safe_dump(documents[0], sort_keys=False, width=120)
    return manifest


def _container(document: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the single container of a job."""
    pod = document
    for name in KINDS[document["kind"]]:
        pod = pod.get(name) if isinstance(pod, dict) else None
    containers = pod.get("containers") if isinstance(pod, dict) else None
    if not isinstance(containers, list) or len(containers) != 1 or not isinstance(containers[0], dict):
        where = ".".join((*KINDS[document["kind"]], "containers"))
        raise DsvccaError(f"'{path}': {where} is not one container: see {EXAMPLE}")
    found: dict[str, Any] = containers[0]
    return found


def create(manifest: str) -> str:
    """Hand a manifest to `kubectl`, for the cluster and namespace that it is set to; return what it says.

    Raises
    ------
    RunError
        If it is refused; also if a job of that name is there.
    """
    line = ["kubectl", "create", "--filename=-"]
    try:
        found = subprocess.run(line, input=manifest, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RunError(
            f"kubectl cannot be run ({error.strerror}): install it, or use --dry-run and send it on"
        ) from error
    if found.returncode:
        there = (
            "; `kubectl delete` the one that is there, and what it finished stays" if "exists" in found.stderr else ""
        )
        raise RunError(f"Kubernetes refuses the job: {found.stderr.strip()}{there}")
    return found.stdout.strip()
