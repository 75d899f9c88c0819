"""The straight line: plan, bases, tiles, results. Run it again and it does what is missing."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client

from dsvcca.engine import cluster, execute
from dsvcca.engine.bases import learn, make_bases
from dsvcca.engine.correlate import PORTIONS, correlate, portions_at, tile_tasks, tile_work
from dsvcca.engine.explain import explain, target_tasks
from dsvcca.engine.readiness import check_memory, places_of, workspace_of
from dsvcca.errors import DsvccaError, DsvccaWarning, first_few, going_on
from dsvcca.plans.misleading import doubted, what_misleads
from dsvcca.plans.plan import Plan
from dsvcca.progress import say, waiting
from dsvcca.results import commits, filling, opening
from dsvcca.results.dataset import BETWEEN
from dsvcca.storage import files, folders
from dsvcca.storage.records import LearnedRecord
from dsvcca.workspace.contents import ensure_workspace
from dsvcca.workspace.packs import BasisRef
from dsvcca.workspace.partials import partials_held, remove_other_partials, remove_partials

log = logging.getLogger("dsvcca")


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
        If the plan cannot be kept, a task failed, `out` belongs to another plan or is being filled by another process,
        or the client is none to work with. What was finished stays.

    Warns
    -----
    DsvccaWarning
        If numbers need care in reading, or some representations could not be compared: their numbers are NaN, and
        ``results.attrs["failed"]`` says why. The next run tries them again.
    """
    check_plan(plan)
    if client is None and (active := cluster.active_client()) is not None:
        warnings.warn(
            f"a Dask client is active ({active}) but was not passed: working in this process; pass client= to use it",
            DsvccaWarning,
            stacklevel=2,
        )
    about = {
        "dsvcca_version": version("dsvcca"),
        "datapoint_ids": plan.ids or "not known",
    }
    if client is not None:
        cluster.check_client(client)
        places = {"store": plan.store, "results": out, "workspace": workspace or plan.store}
        for what, place in places.items():
            folders.check_shared(folders.at(place, what), what)
    with filling.claimed(out), cluster.connected(), ExitStack() as stack, going_on():
        return _compared(plan, out, about, client, workspace, stack)


def check_plan(plan: Plan) -> None:
    """Raise if a plan is none."""
    if not isinstance(plan, Plan):
        raise DsvccaError(f"a {type(plan).__name__} was given instead of a plan: plan_comparisons(store, ...) first")


def _compared(
    plan: Plan,
    out: str | os.PathLike[str],
    about: dict[str, Any],
    client: Client | None,
    workspace: str | os.PathLike[str] | None,
    stack: ExitStack,
) -> xr.Dataset:
    """Do what is missing, where nobody else does; what is entered on the way is left with the stack."""
    with waiting("see what is there"):
        begun = filling.begin(out, plan, about)
    root, plan = begun.root, begun.plan
    say_what_is_missing(begun)
    learned = filling.read_learned(root, len(plan.rules))
    bases: dict[int, BasisRef] = {}
    failed: dict[int, str] = {}
    where = workspace_of(plan, workspace)
    needed = _needed(begun, learned)
    if needed:
        ensure_workspace(where)
        if client is not None:
            check_memory(plan, client)
            places = {**places_of(plan, where), "results": root / commits.COMMITS / "zarr.json"}
            written = {"workspace": folders.at(where, "workspace"), "results": root}
            stack.enter_context(cluster.taking_part(client, places, written))
    while needed:
        made = make_bases(plan, where, sorted(needed), client)
        bases = made.bases
        with waiting("look at bases"):
            unknown = {i: ref for i, ref in bases.items() if plan.basis_fingerprints[i] not in learned}
            learned |= learn(plan, where, unknown)
        with files.disk_errors(root):
            filling.write_learned(root, learned, len(plan.rules))
        if not made.failed:
            break
        failed |= made.failed
        plan = plan.without(made.failed)
        check_something_is_left(plan, failed)
        begun = filling.begin(root, plan, about)  # the others go on
        needed = _needed(begun, learned)
    with files.disk_errors(root):
        say_what_bases_say(begun, learned, failed)
    if begun.panels:
        with partials_held(where):
            explaining = target_tasks(begun, where, bases)
            try:
                _, failures = execute.run(explain, explaining, client=client, title="explain")
                execute.raise_failures(failures, len(explaining))
            finally:
                remove_partials(where, [explaining[0].targets])
    if begun.tiles:
        tasks, merging = tile_tasks(begun, where, bases, _ranks(begun.plan, learned))
        if merging:
            with files.disk_errors(root):
                folders.make(root / commits.COMMITS / PORTIONS)
                remove_other_partials(portions_at(str(root)), {task.portion for task in tasks})
        receipts, failures = execute.run(correlate, tasks, client=client, title="correlate", work=tile_work)
        lacking = {one.task.sheet.name for one in failures}
        # Where one portion is not seen yet from where another was finished, nobody has merged them.
        merging = [one for one in merging if one.sheet.name not in lacking and not commits.is_committed(one.sheet)]
        if merging:
            merged, failed_ones = execute.run(correlate, merging, client=client, title="merge", work=tile_work)
            receipts, failures = receipts + merged, failures + failed_ones
        with files.disk_errors(root):
            filling.add_libraries(root, set(receipts))
        execute.raise_failures(failures, len(tasks) + len(merging))
        with files.disk_errors(root):
            for sentence in filling.add_warnings(root, doubted(opening.doubt(root))):
                warnings.warn(sentence, DsvccaWarning, stacklevel=3)
    if left := opening.what_is_missing(root):  # whatever was said by tasks: what counts is on storage
        raise DsvccaError(f"'{root}' is not complete: {left}; run the same line again")
    folders.remove(root / commits.COMMITS / PORTIONS)
    return opening.open_results(root)


def _needed(begun: filling.Begun, learned: Mapping[str, Any]) -> set[int]:
    """Return the aspects whose bases are needed: those that tiles or panels lack, and those nothing is known of."""
    names = enumerate(begun.plan.basis_fingerprints)
    unknown = {i for i, name in names if name not in learned and i not in begun.plan.failed}
    return unknown | _aspects_of(begun)


def check_something_is_left(plan: Plan, failed: Mapping[int, str]) -> None:
    """Raise if nothing can be compared, but with itself, without the aspects that failed."""
    for tile in plan.tiles:
        for one in plan.passes(tile):
            itself = np.equal.outer(one.x_members, one.y_members) & (tile[0] == tile[1])
            if (one.wanted & ~itself).any():
                return
    if plan.targets and any(plan.target_passes):
        return
    nothing = "nothing is left to compare: mend this, then run the same line again"
    raise DsvccaError(f"{first_few(list(failed.values()))}\n{nothing}")


def say_what_is_missing(begun: filling.Begun) -> None:
    """Tell how much of the plan is there already."""
    wanted = begun.plan.pairs.count
    left = sum(int(missing.wanted.sum()) for missing in begun.tiles)
    if begun.tiles or not begun.panels:
        there = f"{wanted - left:,} of {wanted:,} comparisons are there"
        say(f"{there}, {f'{len(begun.tiles):,} tiles are' if begun.tiles else 'nothing is'} to be done")


def _aspects_of(begun: filling.Begun) -> set[int]:
    """Return the aspects that some tiles lack, and those that are to meet the targets."""
    passes = [one for missing in begun.tiles for one in begun.passes_of(missing)]
    found = {i for one in passes for i in (*one.x, *one.y)}
    for missing in begun.panels:
        for one in begun.plan.target_passes[missing.sheet.places[0]]:
            found |= {i for i, member in zip(one.x, one.x_members, strict=True) if missing.wanted[member]}
    return found


def _learned(plan: Plan, learned: Mapping[str, LearnedRecord]) -> list[LearnedRecord]:
    """Return what the basis of every aspect says, of those that failed that they keep nothing."""
    rules = len(plan.rules)
    nothing: LearnedRecord = {
        "ranks": [1],
        "deepest": [0] * rules,
        "missed": 0.0,
        "cut": [0.0] * rules,
        "alone": 0.0,
        "library": "",
        "between": None,
    }
    return [learned.get(name, nothing) for name in plan.basis_fingerprints]


def _ranks(plan: Plan, learned: Mapping[str, LearnedRecord]) -> list[int]:
    """Return the largest rank of every aspect."""
    return [max(one["ranks"]) for one in _learned(plan, learned)]


def say_what_bases_say(begun: filling.Begun, learned: Mapping[str, LearnedRecord], failed: Mapping[int, str]) -> None:
    """Keep with the results, and warn of, what bases say and which have none; refuse ranks too large for memory."""
    plan = begun.plan
    mine = _learned(plan, learned)
    if plan.transforms:
        off_block = np.full((begun.count, len(BETWEEN)), np.nan)
        for aspect, one in zip(plan.aspects, mine, strict=True):
            if aspect.view.name == "dft" and one["between"] is not None:
                off_block[plan.places[aspect.representation]] = one["between"]
        commits.write_off_block(begun.root, off_block)
    ranks = _ranks(plan, learned)
    plan.check(ranks)
    if ranks and log.isEnabledFor(logging.INFO):
        log.info("ranks are known; from nothing, the whole of it:\n%s", plan.price(ranks))
    filling.add_libraries(begun.root, {one["library"] for one in mine} - {""})
    reasons = [failed[i] for i in sorted(failed)]
    sentences = [*what_misleads(plan, mine), *doubted(opening.doubt(begun.root))]
    new = filling.keep_said(begun.root, warnings=sentences, failed=reasons)
    if reasons:
        whose = len({plan.aspects[i].representation for i in failed})
        more = f" (and {len(reasons) - 3} more: attrs['failed'] of the results)" if len(reasons) > 3 else ""
        new.append(
            f"{whose} of {len(plan.representations)} representations could not be compared, their numbers are NaN: "
            + "; ".join(reasons[:3])
            + more
        )
    for sentence in new:
        warnings.warn(sentence, DsvccaWarning, stacklevel=4)
