"""Whether a comparison would go well: asked of this process and of every worker, and what to change."""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from dask.utils import format_bytes
from distributed import Client

from dsvcca.activations.store import open_store
from dsvcca.cli.options import Memory, Scheduler, SlurmFile, TlsCa, TlsCert, TlsKey, Workers, Workspace
from dsvcca.cli.plain import plain_errors, print_rows
from dsvcca.clusters.workplace import MEMORY, Workplace
from dsvcca.engine import cluster
from dsvcca.engine.facts import facts, has_gpu
from dsvcca.engine.readiness import file_of
from dsvcca.errors import DsvccaError
from dsvcca.results.filling import check_place
from dsvcca.storage import folders, staging
from dsvcca.workspace.contents import check_workspace, workspace_beside

OPTIONAL = {
    "torch": ("torch",),
    "plot": ("matplotlib",),
    "report": ("bokeh", "jinja2"),
    "s3": ("s3fs",),
    "import": ("h5py", "safetensors", "pyarrow"),
    "slurm": ("dask_jobqueue", "cryptography"),
    "gpu": ("cupy",),
}
"""What each optional extra brings."""


@plain_errors
def doctor(
    store: Annotated[str | None, typer.Argument(metavar="[STORE]", help="Activations that are to be read.")] = None,
    out: Annotated[str | None, typer.Argument(metavar="[RESULTS]", help="Where results are to be written.")] = None,
    memory: Memory = None,
    workers: Workers = 0,
    scheduler: Scheduler = None,
    slurm: SlurmFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    workspace: Workspace = None,
) -> None:
    """Look at what a comparison needs, here and on every worker, and say what to change; exit status 1 if it must."""
    there = Workplace.of(workers, scheduler, (tls_ca, tls_cert, tls_key), slurm, memory)
    here = facts()
    wrong: list[str] = []
    rows = [("versions", ", ".join(f"{name} {number}" for name, number in cluster.versions()))]
    rows.append(("this machine", f"{here.host}, {format_bytes(here.memory or 0)} of memory"))
    lacking = [name for name, modules in OPTIONAL.items() if not all(map(find_spec, modules))]
    rows.append(
        ("extras", f"{', '.join(n for n in OPTIONAL if n not in lacking)}; not there: {', '.join(lacking) or '-'}")
    )
    if here.memory is not None and there.memory * max(1, workers) > here.memory and not (scheduler or slurm):
        wrong.append(
            f"this machine has {format_bytes(here.memory)}, and --memory asks for {format_bytes(there.memory)}"
        )
    places: dict[str, Path] = {}
    if store is not None:
        found = open_store(store)
        rows.append(("store", f"{found.path}: {len(found.representations)} representations"))
        if found.representations:
            places["store"] = file_of(found.representations)
    written: dict[str, Path] = {}
    wanted = {"workspace": workspace or (store and workspace_beside(store, None)), "results": out}
    for what, path in wanted.items():
        if path:
            try:
                (check_place if what == "results" else check_workspace)(path)
            except DsvccaError as error:
                wrong.append(str(error))
                continue
            written[what] = _there(folders.at(path, what))
            try:
                staging.try_out(written[what])
            except Exception as error:  # whatever the library of a URL raises
                wrong.append(f"the {what} cannot be written here ('{written[what]}': {error}): choose another place")
            rows.append((what, f"{path}{_room(written[what])}"))
    advice: list[str] = []
    with ExitStack() as stack:
        client = there.client(stack)
        if client is not None:
            rows += _rows_of(client)
            answers = cluster.ask_all(client, cluster.witness_of(places, written))
            wrong += answers.objections
            advice = answers.harm + answers.slower
            least = cluster.memory_of_a_thread(client)
            if least is not None and least < there.memory:
                asked = f"--memory {memory}" if memory else f"the {MEMORY} of --memory, as it is where nothing is said"
                wrong.append(f"a worker thread has {format_bytes(least)}, not {asked}: ask for as much at most")
    print_rows(rows)
    for kind, sentences in (("cannot run", wrong), ("better", advice)):
        for sentence in sentences:
            print(f"{kind}: {sentence}")
    if wrong:
        raise typer.Exit(1)
    where = (
        "a run on this cluster" if client is not None else "a run here; --workers, --scheduler or --slurm asks others"
    )
    print(f"nothing stands in the way of {where}")


def _rows_of(client: Client) -> list[tuple[str, str]]:
    """Return what is to be said of a cluster."""
    cluster.wait_for_workers(client)
    workers = cluster.workers_of(client)
    threads = sum(w["nthreads"] for w in workers)
    least = cluster.memory_of_a_thread(client)
    hosts = Counter(w["host"] for w in workers)
    gpus = sum(map(has_gpu, workers))
    said = f"{len(workers)} on {len(hosts)} hosts, {threads} threads, "
    said += f"{format_bytes(least)} a thread" if least else "no limit of memory"
    return [("scheduler", str(client.scheduler_info()["address"])), ("workers", f"{said}, {gpus} with a GPU")]


def _there(place: Path) -> Path:
    """Return a place, or the nearest folder above it that is there; at a URL there are no folders."""
    if folders.is_remote(place):
        return place
    return next(path for path in (place, *place.parents) if path.is_dir())


def _room(place: Path) -> str:
    """Return how much room there is, where that can be known."""
    return "" if folders.is_remote(place) else f", {format_bytes(shutil.disk_usage(place).free)} free"
