"""The straight line: plan, bases, tiles, results. Run it again and it does what is missing."""

from __future__ import annotations

import logging
import os
import warnings
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import version
from math import prod
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client

from dsvcca.engine import cluster, execute
from dsvcca.engine.bases import check_memory, learn, make_bases, partials_held, places_of, workspace_of
from dsvcca.engine.correlate import BasisPairs, CorrelateTask, correlate
from dsvcca.engine.explain import ExplainTask, commit_targets, explain
from dsvcca.errors import DsvccaError, DsvccaWarning
from dsvcca.plans.misleading import doubted, what_misleads
from dsvcca.plans.passes import Pass
from dsvcca.plans.plan import Plan
from dsvcca.progress import say
from dsvcca.results import commits, filling, opening
from dsvcca.results.dataset import BETWEEN
from dsvcca.storage import files, folders
from dsvcca.storage.records import LearnedRecord
from dsvcca.workspace.contents import ensure_workspace
from dsvcca.workspace.packs import BasisRef
from dsvcca.workspace.partials import remove_partials

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
    if not isinstance(plan, Plan):
        raise DsvccaError(f"a {type(plan).__name__} was given instead of a plan: plan_comparisons(store, ...) first")
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
    with filling.claimed(out), cluster.connected(), ExitStack() as stack:
        return _compared(plan, out, about, client, workspace, stack)


def _compared(
    plan: Plan,
    out: str | os.PathLike[str],
    about: dict[str, Any],
    client: Client | None,
    workspace: str | os.PathLike[str] | None,
    stack: ExitStack,
) -> xr.Dataset:
    """Do what is missing, where nobody else does; what is entered on the way is left with the stack."""
    begun = filling.begin(out, plan, about)
    root, plan = begun.root, begun.plan
    say_what_is_missing(begun)
    learned = filling.read_bases(root, len(plan.rules))
    bases: dict[int, BasisRef] = {}
    failed: dict[int, str] = {}
    where = workspace_of(plan, workspace)
    needed = _needed(begun, learned)
    if needed:
        ensure_workspace(where)
        if client is not None:
            check_memory(plan, client)
            places = {**places_of(plan, where), "results": root / commits.COMMITS / "zarr.json"}
            stack.enter_context(cluster.taking_part(client, places))
    while needed:
        made = make_bases(plan, where, sorted(needed), client)
        bases = made.bases
        learned |= learn(plan, where, {i: ref for i, ref in bases.items() if plan.basis_fingerprints[i] not in learned})
        with files.disk_errors(root):
            filling.write_bases(root, learned, len(plan.rules))
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
            _, failures = execute.run(explain, explaining, client=client, title="explain")
            execute.raise_failures(failures, len(explaining))
            remove_partials(where, [explaining[0].targets])
    if begun.tiles:
        tasks = tile_tasks(begun, where, bases)
        receipts, failures = execute.run(correlate, tasks, client=client, title="correlate")
        with files.disk_errors(root):
            filling.add_libraries(root, set(receipts))
        execute.raise_failures(failures, len(tasks))
        with files.disk_errors(root):
            for sentence in filling.add_warnings(root, doubted(opening.doubt(root))):
                warnings.warn(sentence, DsvccaWarning, stacklevel=3)
    if left := opening.what_is_missing(root):  # whatever was said by tasks: what counts is on storage
        raise DsvccaError(f"'{root}' is not complete: {left}; run the same line again")
    return opening.open_results(root)


def _needed(begun: filling.Begun, learned: Mapping[str, Any]) -> set[int]:
    """Return the variants whose bases are needed: those that tiles or panels lack, and those nothing is known of."""
    names = enumerate(begun.plan.basis_fingerprints)
    unknown = {i for i, name in names if name not in learned and i not in begun.plan.failed}
    return unknown | _variants_of(begun)


def check_something_is_left(plan: Plan, failed: Mapping[int, str]) -> None:
    """Raise if nothing can be compared, but with itself, without the variants that failed."""
    for tile in plan.tiles:
        for one in plan.passes(tile):
            itself = np.equal.outer(one.x_members, one.y_members) & (tile[0] == tile[1])
            if (one.wanted & ~itself).any():
                return
    if plan.targets and any(plan.target_passes):
        return
    sentences = list(failed.values())
    more = f" (and {len(sentences) - 5} more)" if len(sentences) > 5 else ""
    nothing = "nothing is left to compare: mend this, then run the same line again"
    raise DsvccaError("\n".join(sentences[:5]) + f"{more}\n{nothing}")


def say_what_is_missing(begun: filling.Begun) -> None:
    """Tell how much of the plan is there already."""
    wanted = begun.plan.pairs.count
    left = sum(int(missing.wanted.sum()) for missing in begun.tiles)
    if begun.tiles or not begun.panels:
        there = f"{wanted - left:,} of {wanted:,} comparisons are there"
        say(f"{there}, {f'{len(begun.tiles):,} tiles are' if begun.tiles else 'nothing is'} to be done")


def _variants_of(begun: filling.Begun) -> set[int]:
    """Return the variants that some tiles lack, and those that are to meet the targets."""
    passes = [one for missing in begun.tiles for one in _passes_of(begun, missing)]
    found = {i for one in passes for i in (*one.x, *one.y)}
    for missing in begun.panels:
        for one in begun.plan.target_passes[missing.sheet.places[0]]:
            found |= {i for i, member in zip(one.x, one.x_members, strict=True) if missing.wanted[member]}
    return found


def _passes_of(begun: filling.Begun, missing: filling.Missing) -> list[Pass]:
    """Return the comparisons that a tile lacks."""
    i, j = missing.sheet.places
    passes = (one.only(missing.wanted) for one in begun.plan.passes((i, j)))
    return [one for one in passes if one is not None]


def say_what_bases_say(begun: filling.Begun, learned: Mapping[str, LearnedRecord], failed: Mapping[int, str]) -> None:
    """Keep with the results, and warn of, what bases say and which have none; refuse ranks too large for memory."""
    plan = begun.plan
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
    mine = [learned.get(name, nothing) for name in plan.basis_fingerprints]
    if plan.transforms:
        off_block = np.full((begun.count, len(BETWEEN)), np.nan)
        for variant, one in zip(plan.variants, mine, strict=True):
            if variant.view.name == "dft" and one["between"] is not None:
                off_block[plan.places[variant.representation]] = one["between"]
        commits.write_off_block(begun.root, off_block)
    ranks = [max(one["ranks"]) for one in mine]
    plan.check(ranks)
    if ranks and log.isEnabledFor(logging.INFO):
        log.info("ranks are known; from nothing, the whole of it:\n%s", plan.price(ranks))
    filling.add_libraries(begun.root, {one["library"] for one in mine} - {""})
    reasons = [failed[i] for i in sorted(failed)]
    sentences = [*what_misleads(plan, mine), *doubted(opening.doubt(begun.root))]
    new = filling.keep_said(begun.root, warnings=sentences, failed=reasons)
    if reasons:
        whose = len({plan.variants[i].representation for i in failed})
        more = f" (and {len(reasons) - 3} more: attrs['failed'] of the results)" if len(reasons) > 3 else ""
        new.append(
            f"{whose} of {len(plan.representations)} representations could not be compared, their numbers are NaN: "
            + "; ".join(reasons[:3])
            + more
        )
    for sentence in new:
        warnings.warn(sentence, DsvccaWarning, stacklevel=4)


def tile_tasks(begun: filling.Begun, workspace: str, bases: dict[int, BasisRef]) -> list[CorrelateTask]:
    """Return one task for every tile that lacks something."""
    plan = begun.plan
    codes = np.asarray([0, *(1 + begun.views.index(name) for name in plan.names)], dtype=np.int8)
    return [
        CorrelateTask(
            workspace=workspace,
            sheet=missing.sheet,
            passes=tuple(
                BasisPairs(
                    rows=one.rows,
                    freedom=_freedom(plan, one),
                    unit=_unit(plan, one),
                    x=tuple(bases[k] for k in one.x),
                    y=tuple(bases[k] for k in one.y),
                    x_members=one.x_members,
                    y_members=one.y_members,
                    wanted=commits.packed(one.wanted),
                    first_frequency=plan.first_frequency(one.space),
                    names=zlib.compress(codes[one.names].tobytes()),
                )
                for one in _passes_of(begun, missing)
            ),
            rules=plan.rules,
            ridges=plan.ridges,
            shuffles=plan.shuffles,
            measures=plan.measures,
            frequencies=plan.kept_frequencies,
            budget=plan.tile_budget,
        )
        for missing in sorted(begun.tiles, key=_along_a_curve)
    ]


def _freedom(plan: Plan, one: Pass) -> int:
    """Return how many independent rows a pass has, less one: those of a datapoint are one. 0 where nothing is known."""
    if one.space and plan.center == "dc":
        return 0
    rows = min(one.rows, plan.representations[0].logical_shape[0])
    return rows // (prod(one.space) if plan.rows == "translations" else 1) - 1


def _unit(plan: Plan, one: Pass) -> int:
    """Return how many rows of a pass a datapoint has; 0 where numbers differ, or it is not known whose rows are."""
    variant = plan.variants[one.x[0]]
    shape = plan.representations[variant.representation].logical_shape
    whole = prod(shape[:-1]) if variant.view.name == "positions" else shape[0]
    return one.rows // shape[0] if one.rows == whole and plan.rows != "translations" else 0


def _along_a_curve(missing: filling.Missing) -> tuple[bool, int]:
    """Return where a tile comes, so that tasks that follow each other share panels, which the system then still holds.

    The bits of its two panels in turn (Morton 1966); but those on the diagonal, half as large, come last, so that
    workers end together.
    """
    i, j = missing.sheet.places
    return i == j, sum((i >> bit & 1) << 2 * bit + 1 | (j >> bit & 1) << 2 * bit for bit in range(32))


def target_tasks(begun: filling.Begun, workspace: str, bases: dict[int, BasisRef]) -> list[ExplainTask]:
    """Return one task for every panel that lacks something, after committing the targets to the workspace."""
    plan = begun.plan
    with files.disk_errors(workspace):
        name = commit_targets(workspace, plan.targets)

    def wanted(one: Pass, missing: filling.Missing) -> tuple[tuple[int, ...], tuple[BasisRef, ...]]:
        both = [(m, bases[k]) for m, k in zip(one.x_members, one.x, strict=True) if missing.wanted[m]]
        return tuple(m for m, _ in both), tuple(ref for _, ref in both)

    return [
        ExplainTask(
            workspace=workspace,
            sheet=missing.sheet,
            rows=plan.representations[0].logical_shape[0],
            passes=tuple(
                part for one in plan.target_passes[missing.sheet.places[0]] if (part := wanted(one, missing))[0]
            ),
            targets=name,
            rules=plan.rules,
            everywhere=plan.rows == "translations",
            budget=plan.budget - plan.target_bytes,
        )
        for missing in begun.panels
    ]
