"""Whether a cluster can carry out a plan: the places it must see, the memory it needs, who takes part."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from distributed import Client

from dsvcca.activations.representations import Representation
from dsvcca.engine import cluster
from dsvcca.errors import DsvccaError
from dsvcca.plans.plan import Plan
from dsvcca.storage import folders
from dsvcca.workspace.contents import ensure_workspace, workspace_beside


def workspace_of(plan: Plan, workspace: str | os.PathLike[str] | None) -> str:
    """Return where the bases of a plan are kept: by default beside its store."""
    return workspace_beside(plan.store, workspace)


def places_of(plan: Plan, workspace: str) -> dict[str, Path]:
    """Return a file of every place that workers have to see."""
    return {
        "store": file_of(plan.representations),
        "workspace": folders.at(workspace, "workspace") / "zarr.json",
    }


def file_of(representations: Sequence[Representation]) -> Path:
    """Return a file that whoever sees some representations sees."""
    first = folders.at(representations[0].array, "store")
    described = [first.parent / "zarr.json", *(first / name for name in ("zarr.json", ".zarray"))]
    return next(path for path in described if folders.exists(path))


def check_memory(plan: Plan, client: Client) -> None:
    """Raise if the workers have less memory than the plan counts on."""
    memory = cluster.memory_of_a_thread(client)
    if memory is not None and memory < plan.memory:
        raise DsvccaError(
            f"the plan counts on {plan.memory / 2**30:.2f} GiB a worker thread, the cluster's smallest has "
            f"{memory / 2**30:.2f} GiB: plan with memory='{memory / 2**30:.2f} GiB', or start workers with fewer "
            "threads or more memory"
        )


@contextmanager
def ready_for(plan: Plan, workspace: str, client: Client | None) -> Iterator[None]:
    """Make the workspace of a plan, and sure that the workers of a cluster can make bases in it."""
    with ExitStack() as stack:
        if client is not None:
            cluster.check_client(client)
            for what, place in (("store", plan.store), ("workspace", workspace)):
                folders.check_shared(folders.at(place, what), what)
            check_memory(plan, client)
            stack.enter_context(cluster.connected())
        ensure_workspace(workspace)
        if client is not None:
            written = {"workspace": folders.at(workspace, "workspace")}
            stack.enter_context(cluster.taking_part(client, places_of(plan, workspace), written))
        yield
