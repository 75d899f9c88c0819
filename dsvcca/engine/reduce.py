"""What one reduce task does on a worker: read representations, whiten each, commit their bases, return receipts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from dsvcca.activations.pieces import PIECE, ahead, read_over_tokens, read_pieces, read_positions
from dsvcca.activations.representations import Representation
from dsvcca.errors import DsvccaError, RunError
from dsvcca.maths.arrays import Array, NumpyArray, like, put, tidy, to_numpy
from dsvcca.maths.basis import RankRule
from dsvcca.maths.moments import Rows
from dsvcca.maths.views import NEURONS, View, grid_datapoints
from dsvcca.maths.whiten import InMemory, rounded_rows, whiten
from dsvcca.maths.wide import Wide, whiten_dual, whiten_randomised
from dsvcca.plans.passes import aspect_size, reads_tokens
from dsvcca.plans.plan import Plan
from dsvcca.plans.sizes import (
    Size,
    basis_memory,
    check_room,
    columns_at_once,
    holds_whole,
    most_samples,
    pack_memory,
    streams,
)
from dsvcca.progress import READ
from dsvcca.storage import files
from dsvcca.workspace.packing import Origin, PackWriter
from dsvcca.workspace.packs import PACK, Receipt


@dataclass(frozen=True)
class ReduceTask:
    """Representations to be whitened together: paths and labels, never arrays."""

    workspace: str
    representations: tuple[Representation, ...]
    views: tuple[View, ...]
    fingerprints: tuple[str, ...]
    whitening: tuple[str, ...]
    rule: RankRule
    center: str
    budget: int

    def __str__(self) -> str:
        more = f" and {len(self.representations) - 1} more" if len(self.representations) > 1 else ""
        return f"basis of {self.representations[0]}{more}"


def reduce_tasks(plan: Plan, workspace: str, wanted: Sequence[int], threads: int) -> list[ReduceTask]:
    """Return the tasks that make the bases of the wanted aspects on so many worker threads."""
    return [
        ReduceTask(
            workspace,
            tuple(plan.representations[plan.aspects[i].representation] for i in group),
            tuple(plan.aspects[i].view for i in group),
            tuple(plan.basis_fingerprints[i] for i in group),
            tuple(plan.whitening[i] for i in group),
            plan.widest,
            plan.center,
            plan.budget,
        )
        for group in plan.task_groups(wanted, threads)
    ]


def reduce_work(task: ReduceTask) -> dict[str, int]:
    """Return how much work a task is."""
    return {READ: sum(r.nbytes for r in task.representations), "representations reduced": len(task.representations)}


@dataclass(frozen=True)
class Reduced:
    """Where the bases of a task are, and why others of it have none, by their fingerprints."""

    receipts: tuple[Receipt, ...]
    failed: tuple[tuple[str, str], ...]


@tidy
def reduce(task: ReduceTask) -> Reduced:
    """Make and commit the bases of a task's representations.

    The next representation is read and finished packs are written while this one is whitened. A representation that
    cannot be whitened does not stop the others.

    Raises
    ------
    RunError
        If bases cannot be written.
    """
    commits: list[Future[list[Receipt]]] = []
    receipts: list[Receipt] = []
    failed: list[tuple[str, str]] = []
    both = list(zip(task.representations, task.views, strict=True))
    sizes = [aspect_size(r, view) for r, view in both]
    n, room = sizes[0].rows, pack_memory(task.budget)
    pack = PackWriter(task.workspace, n, task.rule)
    with ThreadPoolExecutor(2, "dsvcca-io") as io, files.disk_errors(task.workspace):
        reading = [io.submit(_read_small, r, v) for r, v in both[:1]]
        for place in range(len(task.representations)):
            read = reading.pop()
            reading += [io.submit(_read_small, r, v) for r, v in both[place + 1 : place + 2]]
            alone = streams(sizes[place], task.budget)
            last = place == len(task.representations) - 1  # apart, so that little is left to write at the end
            if alone or last or pack.columns >= PACK or 4 * n * pack.columns > room:
                receipts += [receipt for commit in commits for receipt in commit.result()]  # one at a time
                commits = [io.submit(pack.commit)]
                pack = PackWriter(task.workspace, n, task.rule)
            try:
                _add(pack, task, place, sizes[place], read)
            except Exception as error:
                if not is_its_own(error):
                    raise
                failed.append((task.fingerprints[place], str(error) or type(error).__name__))
            if alone:
                commits.append(io.submit(pack.commit))
                pack = PackWriter(task.workspace, n, task.rule)
        commits.append(io.submit(pack.commit))
        receipts += [receipt for commit in commits for receipt in commit.result()]
    return Reduced(tuple(receipts), tuple(failed))


def is_its_own(error: BaseException) -> bool:
    """Return whether an error is that of the representation that was worked on, and the others may go on."""
    return isinstance(error, (DsvccaError, ArithmeticError, MemoryError, np.linalg.LinAlgError)) and not isinstance(
        error, RunError
    )


def _read_small(representation: Representation, view: View) -> list[NumpyArray] | None:
    """Return all pieces of a representation that is one piece, None for a larger one."""
    return list(_pieces(representation, view)) if representation.nbytes <= PIECE else None


def _pieces(representation: Representation, view: View) -> Iterator[NumpyArray]:
    """Yield activations in pieces; of sequences seen token by token, or over their tokens, the rows."""
    if view.name == "positions":
        return read_positions(representation)
    return read_over_tokens(representation, view) if reads_tokens(representation, view) else read_pieces(representation)


def _add(pack: PackWriter, task: ReduceTask, place: int, size: Size, read: Future[list[NumpyArray] | None]) -> None:
    """Whiten one representation into the pack, its columns held in memory or, if they are too many, sent to disk."""
    representation, view, fingerprint = task.representations[place], task.views[place], task.fingerprints[place]
    read_whole = read.result()
    small = None if read_whole is None else [put(piece) for piece in read_whole]
    shape = representation.logical_shape
    if reads_tokens(representation, view):  # rows are regrouped once padding is left out
        shape, view = (size.rows, size.columns), NEURONS
    route, bits, name = task.whitening[place], representation.bits, str(representation)

    def check(width: int) -> None:
        what = f"{name} ({size.rows} rows, {size.width} columns, {width} of them kept)"
        check_room(what, basis_memory(size, width, task.budget, route, task.rule.rank), task.budget)

    columns = _Streamed(pack, size.step_rows, check) if streams(size, task.budget) else _Held(check)
    if route == "covariance":
        rows = Rows(
            lambda: small or map(put, _pieces(representation, task.views[place])),
            shape,
            view,
            keep=holds_whole(size, task.budget),
            center=task.center,
        )
        basis = whiten(rows, task.rule, columns, bits=bits, name=name)
    else:
        wide = Wide(
            pieces=lambda: small or map(put, ahead(_pieces(representation, task.views[place]))),
            view=view,
            rows=size.rows,
            columns=size.columns,
            at_once=partial(columns_at_once, size, task.budget),
            grid=grid_datapoints(shape, view),
            bits=bits,
            name=name,
            most_samples=most_samples(size, task.budget),
        )
        basis = (whiten_dual if route == "dual" else whiten_randomised)(wide, task.rule, columns)
    pack.add(
        Origin(fingerprint, representation.fingerprint),
        basis,
        columns.array() if isinstance(columns, InMemory) else None,
    )


class _Held(InMemory):
    """Columns that stay in memory, if there is room for so many."""

    def __init__(self, check: Callable[[int], None]) -> None:
        super().__init__(rounded=True)
        self.check = check

    def start(self, n: int, widths: Sequence[int]) -> None:
        self.check(sum(widths))
        super().start(n, widths)


class _Streamed:
    """Columns that go to disk slab by slab, because they do not fit in memory."""

    def __init__(self, pack: PackWriter, step: int, check: Callable[[int], None]) -> None:
        self.pack, self.step, self.check, self.rows = pack, step, check, 0

    def start(self, n: int, widths: Sequence[int]) -> None:
        self.check(sum(widths))
        self.pack.stream(sum(widths), self.step)

    def append(self, slab: Array) -> tuple[Array, Array]:
        stored, ones = rounded_rows(slab, self.rows)
        self.pack.append(to_numpy(stored))
        self.rows += slab.shape[0]
        return stored, like(ones, slab)
