"""What is computed: priced, compared, kept."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from dask.utils import format_bytes

from dsvcca.cli.options import (
    Center,
    Criterion,
    Dims,
    DryRun,
    Keep,
    LabelPattern,
    Measures,
    Memory,
    PairsRule,
    Rank,
    Ridge,
    Route,
    Scheduler,
    Shuffles,
    SlurmFile,
    StorePath,
    Targets,
    TlsCa,
    TlsCert,
    TlsKey,
    Variance,
    VariantName,
    View,
    Where,
    Workers,
    Workspace,
    opened,
    planned,
)
from dsvcca.cli.plain import plain_errors
from dsvcca.clusters.workplace import Workplace
from dsvcca.engine import cluster
from dsvcca.engine.bases import known_ranks
from dsvcca.engine.compare import compare as compare_plan
from dsvcca.engine.keeping import keep_bases, plans_that_keep, wanted_bases
from dsvcca.errors import DsvccaError, going_on
from dsvcca.plans.planning import ALL_BUT_NOISE, population_of
from dsvcca.results.filling import check_place
from dsvcca.results.tables import to_frame
from dsvcca.workspace.contents import check_workspace, workspace_beside


@plain_errors
def keep_bases_(
    store: Annotated[str, typer.Argument(metavar="STORE", help="An activation store.")],
    where: Where = None,
    view: Annotated[list[str] | None, typer.Option(help="As of plan; repeat for several. (default: auto)")] = None,
    variance: Annotated[float, typer.Option(help="Share of variance to keep; smaller ones are in it.")] = ALL_BUT_NOISE,
    criterion: Criterion = "variance",
    rank: Rank = None,
    center: Center = "all",
    route: Annotated[str, typer.Option(help="bases, or covariance, dual, randomised.")] = "bases",
    memory: Memory = None,
    workers: Workers = 0,
    scheduler: Scheduler = None,
    slurm: SlurmFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    workspace: Workspace = None,
    dry_run: DryRun = False,
) -> None:
    """Make the bases of representations, then drop their activations for good; exit status 1 if some have none."""
    there = Workplace.of(workers, scheduler, (tls_ca, tls_cert, tls_key), slurm, memory)
    found = opened(store, where, None, None)
    before = int(found.index.bytes.sum())
    options: dict[str, Any] = {"view": view or "auto", "variance": variance, "criterion": criterion, "rank": rank}
    options |= {"center": center, "route": route, "memory": there.memory}
    if dry_run:
        wanted = wanted_bases(**options)
        for one in plans_that_keep(found, population_of(found), wanted):
            print(one.describe(cluster.machine_of(workers=there.threads), known_ranks(one, workspace)))
        print(f"{store}: {len(found.representations)} representations, {format_bytes(before)} before")
        return
    with going_on(), ExitStack() as stack:
        keep_bases(found, **options, client=there.client(stack), workspace=workspace)
    print(f"{store}: {format_bytes(before)} before, {format_bytes(int(found.index.bytes.sum()))} now")


@plain_errors
def plan(
    store: StorePath,
    pairs: PairsRule = "all",
    where: Where = None,
    view: View = "auto",
    variance: Variance = None,
    criterion: Criterion = "variance",
    rank: Rank = None,
    measures: Measures = None,
    variant: VariantName = None,
    ridge: Ridge = None,
    shuffles: Shuffles = 1,
    center: Center = "all",
    targets: Targets = None,
    keep: Keep = None,
    route: Route = "auto",
    memory: Memory = None,
    workers: Annotated[int, typer.Option(min=1, help="Price it for so many worker threads of this machine.")] = 1,
    scheduler: Annotated[str | None, typer.Option(help="Price it for the cluster of this Dask scheduler.")] = None,
    slurm: Annotated[Path | None, typer.Option(help="Price it for the jobs of SLURM that this file wants.")] = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    workspace: Workspace = None,
    labels: LabelPattern = None,
    dims: Dims = None,
) -> None:
    """Show what a comparison would cost; reads no activations and computes nothing."""
    there = Workplace.of(workers if workers > 1 else 0, scheduler, (tls_ca, tls_cert, tls_key), slurm, memory)
    chosen = planned(
        store=store,
        where=where,
        labels=labels,
        dims=dims,
        pairs=pairs,
        targets=targets,
        view=view,
        variance=variance,
        criterion=criterion,
        rank=rank,
        measures=measures,
        variant=variant,
        ridge=ridge,
        shuffles=shuffles,
        center=center,
        keep=keep,
        route=route,
        memory=there.memory,
    )
    with ExitStack() as stack:
        client = there.client(stack) if scheduler else None
        machine = cluster.machine_of(client, workers=there.threads)
    print(chosen.describe(machine, known_ranks(chosen, workspace)))


@plain_errors
def compare(
    store: StorePath,
    out: Annotated[str, typer.Argument(metavar="RESULTS", help="Results folder; the same line again resumes.")],
    pairs: PairsRule = "all",
    where: Where = None,
    view: View = "auto",
    variance: Variance = None,
    criterion: Criterion = "variance",
    rank: Rank = None,
    measures: Measures = None,
    variant: VariantName = None,
    ridge: Ridge = None,
    shuffles: Shuffles = 1,
    center: Center = "all",
    targets: Targets = None,
    keep: Keep = None,
    route: Route = "auto",
    memory: Memory = None,
    workers: Workers = 0,
    scheduler: Scheduler = None,
    slurm: SlurmFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    workspace: Workspace = None,
    table: Annotated[Path | None, typer.Option(help="Also write one row a comparison to this CSV file.")] = None,
    labels: LabelPattern = None,
    dims: Dims = None,
    dry_run: DryRun = False,
) -> None:
    """Compare representations and write labelled results that xarray opens; exit status 1 if some failed."""
    if table is not None and not table.absolute().parent.is_dir():
        raise DsvccaError(f"--table {table}: there is no folder '{table.absolute().parent}', make it first")
    if table is not None and table.is_dir():
        raise DsvccaError(f"--table {table} is a folder: name a file in it")
    there = Workplace.of(workers, scheduler, (tls_ca, tls_cert, tls_key), slurm, memory)
    chosen = planned(
        store=store,
        where=where,
        labels=labels,
        dims=dims,
        pairs=pairs,
        targets=targets,
        view=view,
        variance=variance,
        criterion=criterion,
        rank=rank,
        measures=measures,
        variant=variant,
        ridge=ridge,
        shuffles=shuffles,
        center=center,
        keep=keep,
        route=route,
        memory=there.memory,
    )
    check_place(out, chosen)
    check_workspace(workspace_beside(store, workspace))
    with going_on(), ExitStack() as stack:
        client = there.client(stack) if scheduler or not dry_run else None
        machine = cluster.machine_of(client if scheduler or slurm else None, workers=there.threads)
        print(chosen.describe(machine, known_ranks(chosen, workspace)), flush=True)
        if dry_run:
            return
        found = compare_plan(chosen, out, client=client, workspace=workspace)
    if table is not None:
        to_frame(found).to_csv(table, index=False)
        print(f"table    {table}")
    print(f"results  {out}   (dsvcca.open_results({str(out)!r}))")
    if found.attrs["failed"]:
        raise typer.Exit(1)
