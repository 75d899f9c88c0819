"""The bases of a plan: which are there, those that are missing made, what is learned of all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from distributed import Client

from dsvcca.engine import cluster, execute, segments
from dsvcca.engine.readiness import workspace_of
from dsvcca.engine.reduce import ReduceTask, is_its_own, reduce, reduce_tasks, reduce_work
from dsvcca.engine.segments import SegmentTask, segment_tasks
from dsvcca.errors import DsvccaError
from dsvcca.maths.basis import cut_doubt, holds, ranks_of, share_in_one_block
from dsvcca.plans.plan import Plan
from dsvcca.progress import say, waiting
from dsvcca.storage.records import LearnedRecord
from dsvcca.workspace.contents import find_bases
from dsvcca.workspace.packs import BasisRef, Pack, Receipt
from dsvcca.workspace.partials import partials_held, remove_partials


@waiting("look at bases")
def known_ranks(plan: Plan, workspace: str | os.PathLike[str] | None = None) -> list[int | None]:
    """Return the rank of every aspect whose basis an earlier plan left in the workspace; None for the others."""
    where = workspace_of(plan, workspace)
    there = _usable(plan, find_bases(where), range(len(plan.aspects)))
    learned = learn(plan, where, there)
    own = (learned.get(name) for name in plan.basis_fingerprints)
    return [None if one is None else max(one["ranks"]) for one in own]


@dataclass
class Made:
    """Where the basis of every aspect is, and of those that have none the reason."""

    bases: dict[int, BasisRef] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


def make_bases(plan: Plan, workspace: str, needed: Collection[int], client: Client | None) -> Made:
    """Make the bases of aspects that are missing; one that cannot have one does not stop the others.

    Raises
    ------
    DsvccaError
        If something stops all of them.
    """
    bases = _usable(plan, find_bases(workspace), needed)
    if left := segments.left_behind(plan, workspace, [i for i in bases if plan.direct or plan.large[i]]):
        with partials_held(workspace):
            remove_partials(workspace, left)
    missing = [i for i in needed if i not in bases]
    if plan.direct and missing:  # cross blocks are made together, or not at all
        missing = list(plan.side_by_side)
    missing = sorted({plan.sources[i] for i in missing})
    check_none_is_lost(plan, workspace, [i for i in missing if plan.is_dropped(i)])
    if missing:
        say(f"{len(bases):,} of {len(needed):,} bases are there")
    large = [i for i in missing if plan.direct or plan.large[i]]
    receipts, failed = _small_bases(plan, workspace, [i for i in missing if i not in large], client)
    more_receipts, more_failed = _large_bases(plan, workspace, large, client)
    made: dict[str, list[Receipt]] = {}
    for receipt in (*receipts, *more_receipts):
        made.setdefault(receipt.fingerprint, []).append(receipt)
    reasons = failed | more_failed
    names = {i: plan.basis_fingerprints[i] for i in (plan.side_by_side if plan.direct else needed)}
    return Made(
        bases | _usable(plan, made, [i for i in needed if i not in bases]),
        {i: _about_aspect(plan, i, reasons[name]) for i, name in names.items() if name in reasons},
    )


def check_none_is_lost(plan: Plan, workspace: str, lost: Sequence[int]) -> None:
    """Raise if some aspects have no basis, and no activations of which one could be made."""
    if not lost:
        return
    first = plan.representations[plan.aspects[lost[0]].representation]
    where = "" if first.kept is None or first.kept.workspace == workspace else f" ('{first.kept.workspace}')"
    more = f", like {len(lost) - 1} other bases" if len(lost) > 1 else ""
    raise DsvccaError(
        f"{first}: its activations were dropped, and its basis (view {plan.said_view(lost[0])!r}) is not in the "
        f"workspace '{workspace}'{more}: pass the workspace= where it was kept{where}, restore it, write the "
        "representation again with if_exists='replace', or select() others"
    )


def _small_bases(
    plan: Plan, workspace: str, aspects: Sequence[int], client: Client | None
) -> tuple[list[Receipt], dict[str, str]]:
    """Make the bases of aspects that fit in a task with others; return the reasons of those that failed as well.

    A task whose workers died is done again representation by representation: only the one that kills them fails.
    """
    threads = 1 if client is None else cluster.threads_of(client)
    tasks = reduce_tasks(plan, workspace, aspects, threads)
    made: list[Receipt] = []

    def alone(task: ReduceTask) -> list[ReduceTask]:
        """Cut a task into its representations, without those that it got as far as committing."""
        found = find_bases(workspace)
        own = [i for i in aspects if plan.basis_fingerprints[i] in task.fingerprints]
        there = _usable(plan, found, own)
        made.extend(receipt for i in there for receipt in found[plan.basis_fingerprints[i]])
        return [one for i in own if i not in there for one in reduce_tasks(plan, workspace, [i], 1)]

    done, failures = execute.run(reduce, tasks, client=client, title="reduce", alone=alone, work=reduce_work)
    failed = dict(pair for one in done for pair in one.failed)
    for one in failures:
        if isinstance(one.error, execute.WorkerDiedError):
            failed[one.task.fingerprints[0]] = str(one.error)
    execute.raise_failures([one for one in failures if not isinstance(one.error, execute.WorkerDiedError)], len(tasks))
    return [*made, *(receipt for one in done for receipt in one.receipts)], failed


def _large_bases(
    plan: Plan, workspace: str, aspects: Sequence[int], client: Client | None
) -> tuple[list[Receipt], dict[str, str]]:
    """Make the bases of aspects that are larger than one task, segment by segment; return why others have none.

    On the direct route those that fail are to be left out, and the others made again without them.
    """
    failed: dict[str, str] = {}
    if not aspects:
        return [], failed

    def run(function: Callable[[SegmentTask], Any], tasks: Sequence[SegmentTask], title: str) -> list[Any]:
        sound = [task for task in tasks if failed.keys().isdisjoint(task.fingerprints)]
        receipts, failures = execute.run(function, sound, client=client, title=title, work=segments.segment_work)
        own = {id(one): names for one in failures if is_its_own(one.error) and (names := _whose(one))}
        execute.raise_failures([one for one in failures if id(one) not in own], len(sound))
        for one in failures:
            failed.update(dict.fromkeys(own[id(one)], str(one.error)))
            segments.clean(one.task)
        return receipts

    with partials_held(workspace):
        found = find_bases(workspace)  # another run may have made them meanwhile
        there = _usable(plan, found, aspects)
        made = [receipt for i in there for receipt in found[plan.basis_fingerprints[i]]]
        left = list(aspects) if plan.direct else [i for i in aspects if i not in there]
        if len(there) == len(aspects):
            return made, failed
        tasks = segment_tasks(plan, workspace, left)
        merging = [replace(task, segment=-1) for task in tasks if task.segment == 0]
        run(segments.add_up, tasks, "add up")
        if plan.direct:
            own = run(segments.whiten_sums, merging, "whiten")
        else:
            run(segments.choose, merging, "choose")
            run(segments.project, tasks, "project")
            own = run(segments.seal, merging, "seal")
        return [*made, *(receipt for several in own for receipt in several)], failed


def _whose(failure: execute.Failure) -> list[str]:
    """Return the fingerprints of what a task failed for; none where that is not known."""
    task = failure.task
    if len(task.fingerprints) == 1:
        return list(task.fingerprints)
    whose = getattr(failure.error, "whose", None)
    both = zip(task.representations, task.fingerprints, strict=True)
    return [name for representation, name in both if str(representation) == whose]


def _about_aspect(plan: Plan, aspect: int, reason: str) -> str:
    """Return why an aspect has no basis, in words that begin with whose it is."""
    own = plan.aspects[aspect]
    whose = str(plan.representations[own.representation])
    several = sum(one.representation == own.representation for one in plan.aspects) > 1
    for i, name in enumerate(plan.basis_fingerprints):  # others may hold the same, and have failed first
        if name == plan.basis_fingerprints[aspect]:
            reason = reason.removeprefix(f"{plan.representations[plan.aspects[i].representation]}: ")
    return f"{whose}{f' (as {own.view})' if several else ''}: {reason}"


def learn(plan: Plan, workspace: str, bases: dict[int, BasisRef]) -> dict[str, LearnedRecord]:
    """Return what results keep of bases, by their fingerprints.

    Ranks under each rule, those of the frequency that keeps most, the share of the largest singular value that may have
    been missed, how far rounding turns directions across the cut of each rule, the share of the variance in the 64
    neighbouring rows that have most of it, the array library that made it, and share and floor of what lies between
    frequencies (None where nothing was transformed).
    """
    found: dict[str, LearnedRecord] = {}
    packs: dict[str, Pack] = {}
    for i, ref in sorted(bases.items(), key=lambda item: item[1].pack):
        if ref.pack not in packs:
            packs = {ref.pack: Pack(workspace, ref.pack)}
        basis = packs[ref.pack].basis(ref.position)
        kept = ranks_of(plan.rules, basis.weights, basis.singular_values, basis.nonzero)
        between = basis.off_block
        if between is not None and plan.rows and not between.holds_all:
            raise DsvccaError(
                f"{plan.representations[plan.aspects[i].representation]}: rows='translations' says that rows are all "
                f"translations of their images, but {between.share:.2g} of the squared covariance lies between "
                "frequencies, where there would be none: leave rows= out"
            )
        found[plan.basis_fingerprints[i]] = {
            "ranks": [int(np.sum(basis.weights * k)) for k in kept],
            "deepest": [int(k.max()) for k in kept],
            "missed": float(basis.missed / basis.singular_values.max()),
            "cut": [cut_doubt(k, basis) for k in kept],
            "alone": share_in_one_block(basis.row_norms),
            "library": packs[ref.pack].library,
            "between": None if between is None else [between.share, between.floor],
        }
    return found


def _usable(plan: Plan, found: dict[str, list[Receipt]], wanted: Collection[int]) -> dict[int, BasisRef]:
    """Return the stored bases that hold every direction the plan may keep."""
    usable = {}
    for i in wanted:
        for receipt in found.get(plan.basis_fingerprints[i], []):
            if holds(receipt.rule, plan.widest, plan.whitening[i]):
                usable[i] = receipt.ref
                break
    return usable
