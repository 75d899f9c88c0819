"""The straight line: plan, bases, tiles, results. Run it again and it does what is missing."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import xarray as xr
from distributed import Client

from dsvcca import execute, files, results
from dsvcca.arrays import NumpyArray
from dsvcca.basis import ranks_of
from dsvcca.correlate import CorrelateTask, correlate
from dsvcca.errors import DsvccaError, DsvccaWarning
from dsvcca.plan import Plan
from dsvcca.reduce import reduce, reduce_tasks
from dsvcca.workspace import BasisRef, Pack, Receipt, ensure_workspace, find_bases


def compare(
    plan: Plan,
    out: str | os.PathLike[str],
    *,
    client: Client | None = None,
    workspace: str | os.PathLike[str] | None = None,
) -> xr.Dataset:
    """Do what is missing of a plan, and return its results.

    Every basis and every tile is committed where it was made; kill any process at any moment and run the same line
    again.

    Parameters
    ----------
    plan : Plan
    out : path
        Results folder: a new one, or the one this plan began.
    client : distributed.Client, optional
        The cluster that does the work; by default this process.
    workspace : path, optional
        Where bases are kept for later plans; by default beside the store.

    Returns
    -------
    xarray.Dataset
        As `open_results` gives.

    Raises
    ------
    DsvccaError
        If the plan cannot be kept, a task failed, or `out` belongs to another plan. What was finished stays.
    """
    if not isinstance(plan, Plan):
        raise DsvccaError(f"a {type(plan).__name__} was given instead of a plan: plan_comparisons(store, ...) first")
    if client is None and (active := execute.active_client()) is not None:
        warnings.warn(
            f"a Dask client is active ({active}) but was not passed: working in this process; pass client= to use it",
            DsvccaWarning,
            stacklevel=2,
        )
    about = {
        "dsvcca_version": version("dsvcca"),
        "array_library": "numpy",
        "datapoint_ids": plan.ids or "not known",
    }
    root = results.create_results(out, plan, about)
    tiles = results.missing_tiles(root, plan)
    ranks = results.read_ranks(root)
    if ranks is not None and not tiles:
        return results.open_results(root)
    place = str(files.local_path(workspace or f"{plan.store.rstrip('/')}.workspace", "workspace"))
    ensure_workspace(place)
    if client is not None:
        _check_cluster(plan, client)

    bases = make_bases(plan, place, tiles if ranks is not None else plan.tiles, client)
    if ranks is None:
        ranks, deepest = kept_ranks(plan, place, bases)
        results.add_warnings(root, warn_of_what_misleads(plan, deepest))
        results.write_ranks(root, ranks)
    plan.check([int(r) for r in ranks.max(axis=1)])

    tasks = tile_tasks(plan, place, root, tiles, bases)
    _, failures = execute.run(correlate, tasks, client=client, title="correlate")
    execute.raise_failures(failures, len(tasks))
    left = results.missing_tiles(root, plan)
    if left:
        raise DsvccaError(f"{len(left)} of {len(plan.tiles)} tiles are not on storage: run the same line again")
    return results.open_results(root)


def make_bases(
    plan: Plan, workspace: str, tiles: Sequence[tuple[int, int]], client: Client | None
) -> dict[int, BasisRef]:
    """Return where the basis of every representation in the tiles is, after making those that are missing."""
    needed = sorted({i for tile in tiles for panel in tile for i in plan.panels[panel]})
    bases = _usable(plan, find_bases(workspace), needed)
    missing = [i for i in needed if i not in bases]
    threads = 1 if client is None else execute.threads_of(client)
    tasks = reduce_tasks(plan, workspace, missing, threads)
    with files.disk_errors(Path(workspace)):
        receipts, failures = execute.run(reduce, tasks, client=client, title="reduce")
    execute.raise_failures(failures, len(tasks))
    made: dict[str, list[Receipt]] = {}
    for receipt in (one for several in receipts for one in several):
        made.setdefault(receipt.fingerprint, []).append(receipt)
    return bases | _usable(plan, made, missing)


def kept_ranks(plan: Plan, workspace: str, bases: dict[int, BasisRef]) -> tuple[NumpyArray, NumpyArray]:
    """Return the ranks (representations, rules) of the whole plan, and those of the frequency that keeps most.

    0 for representations in no comparison.
    """
    ranks = np.zeros((len(plan.representations), len(plan.rules)), dtype=np.int64)
    deepest = np.zeros_like(ranks)
    packs: dict[str, Pack] = {}
    for i, ref in sorted(bases.items(), key=lambda item: item[1].pack):
        if ref.pack not in packs:
            packs = {ref.pack: Pack(workspace, ref.pack)}
        basis = packs[ref.pack].basis(ref.position)
        kept = ranks_of(plan.rules, basis.weights, basis.singular_values, basis.nonzero)
        ranks[i] = [int(np.sum(basis.weights * k)) for k in kept]
        deepest[i] = [int(k.max()) for k in kept]
    return ranks, deepest


def tile_tasks(
    plan: Plan, workspace: str, out: Path, tiles: Sequence[tuple[int, int]], bases: dict[int, BasisRef]
) -> list[CorrelateTask]:
    """Return one task a tile."""
    tasks = []
    for i, j in tiles:
        x, y = plan.panels[i], plan.panels[j]
        mask = plan.pairs.mask(x, y)
        tasks.append(
            CorrelateTask(
                workspace=workspace,
                out=str(out),
                tile=(i, j),
                panel=plan.panel,
                rows=plan.rows,
                x=tuple(bases[k] for k in x),
                y=tuple(bases[k] for k in y),
                wanted=None if mask.all() else np.packbits(mask).tobytes(),
                rules=plan.rules,
                measures=plan.measures,
                budget=plan.budget,
            )
        )
    return tasks


def warn_of_what_misleads(plan: Plan, ranks: NumpyArray) -> list[str]:
    """Warn of what makes numbers larger than they should be: few rows, a mean that stayed; return the sentences.

    `ranks` (representations, rules) are those of the frequency that keeps most.
    """
    n, sentences = plan.rows, []
    if plan.center == "dc":
        sentences.append(
            "center='dc': the mean of frequencies other than 0 was not subtracted, so an image common to all "
            "datapoints counts as signal, and unrelated layers need not be near the noise floor"
        )
    for place, rule in enumerate(plan.rules):
        forced = few = 0
        worst = (0, 0)
        for i, j in plan.tiles:
            x, y = plan.panels[i], plan.panels[j]
            both = ranks[x.start : x.stop, None, place] + ranks[None, y.start : y.stop, place]
            wanted = plan.pairs.mask(x, y)
            if i == j:
                wanted = np.triu(wanted)
            forced += int((wanted & (both > n - 1)).sum())
            few += int((wanted & (n < 5 * both)).sum())
            worst = max(worst, (int(np.where(wanted, both, 0).max()), 0))
        if forced:
            sentences.append(
                f"{forced} comparisons keep more directions than there are degrees of freedom (up to {worst[0]} in {n} "
                f"rows, {rule}): up to {worst[0] - n + 1} of their correlations are 1 whatever the data; use more "
                "datapoints or keep fewer directions"
            )
        elif few:
            sentences.append(
                f"{few} comparisons have fewer than 5 rows a kept direction (up to {worst[0]} directions in {n} rows, "
                f"{rule}): unrelated layers will look alike; use more datapoints or keep fewer directions"
            )
    for sentence in sentences:
        warnings.warn(sentence, DsvccaWarning, stacklevel=3)
    return sentences


def _usable(plan: Plan, found: dict[str, list[Receipt]], wanted: Sequence[int]) -> dict[int, BasisRef]:
    """Return the stored bases that hold every direction the plan may keep."""
    usable = {}
    for i in wanted:
        for receipt in found.get(plan.basis_fingerprints[i], []):
            if receipt.rule.covers(plan.widest):
                usable[i] = receipt.ref
                break
    return usable


def _check_cluster(plan: Plan, client: Client) -> None:
    """Raise if the workers have less memory than the plan counts on."""
    memory = execute.memory_of_a_thread(client)
    if memory is not None and memory < plan.memory:
        raise DsvccaError(
            f"the plan counts on {plan.memory / 2**30:.2f} GiB a worker thread, the cluster's smallest has "
            f"{memory / 2**30:.2f} GiB: plan with memory='{memory / 2**30:.2f} GiB', or start workers with fewer "
            "threads or more memory"
        )
