"""What one reduce task does on a worker: read representations, whiten each, commit their bases, return receipts."""

from __future__ import annotations

from dataclasses import dataclass

from dsvcca import files
from dsvcca.activations import Representation, read_pieces
from dsvcca.arrays import Array, as_float64, significand_bits
from dsvcca.basis import InMemory, RankRule, whiten
from dsvcca.moments import Rows
from dsvcca.plan import Plan, holds_whole
from dsvcca.views import apply_view, viewed_shape
from dsvcca.workspace import CHUNK_COLUMNS, PackWriter, Receipt


@dataclass(frozen=True)
class ReduceTask:
    """Representations to be whitened together: paths and labels, never arrays."""

    workspace: str
    representations: tuple[Representation, ...]
    views: tuple[str, ...]
    fingerprints: tuple[str, ...]
    rule: RankRule
    budget: int

    def __str__(self) -> str:
        more = f" and {len(self.representations) - 1} more" if len(self.representations) > 1 else ""
        return f"basis of {self.representations[0]}{more}"


def reduce_tasks(plan: Plan, workspace: str, wanted: list[int]) -> list[ReduceTask]:
    """Return the tasks that make the bases of the wanted representations."""
    return [
        ReduceTask(
            workspace,
            tuple(plan.representations[i] for i in group),
            tuple(plan.views[i] for i in group),
            tuple(plan.basis_fingerprints[i] for i in group),
            plan.widest,
            plan.budget,
        )
        for group in plan.reduce_tasks(wanted)
    ]


def reduce(task: ReduceTask) -> list[Receipt]:
    """Make and commit the bases of a task's representations."""
    receipts: list[Receipt] = []
    waiting = list(zip(task.representations, task.views, task.fingerprints, strict=True))
    while waiting:
        n = viewed_shape(waiting[0][0].logical_shape, waiting[0][1])[1]
        with PackWriter(task.workspace, n, task.rule) as pack:
            while waiting and pack.columns < CHUNK_COLUMNS and 4 * n * pack.columns <= task.budget // 6:
                representation, view, fingerprint = waiting.pop(0)
                if not _add(pack, representation, view, fingerprint, task):
                    break
            with files.disk_errors(pack.root):
                receipts += pack.commit()
    return receipts


def _add(pack: PackWriter, representation: Representation, view: str, fingerprint: str, task: ReduceTask) -> bool:
    """Whiten one representation into the pack; return whether the pack can take another."""
    _, n, c = viewed_shape(representation.logical_shape, view)
    rows = Rows(
        lambda: (apply_view(piece, view) for piece in read_pieces(representation)),
        keep=holds_whole(n, c, task.budget),
    )
    bits, name = significand_bits(representation.dtype), str(representation)
    if 4 * n * min(n, c) <= task.budget // 6:
        columns = InMemory("float32")
        basis = whiten(rows, task.rule, columns, bits=bits, name=name)
        pack.add(fingerprint, columns.array(), basis)
        return True
    streamed = _Streamed(pack)
    basis = whiten(rows, task.rule, streamed, bits=bits, name=name)
    pack.add_streamed(fingerprint, basis)
    return False


class _Streamed:
    """Columns that go to disk slab by slab, because they do not fit in memory."""

    def __init__(self, pack: PackWriter) -> None:
        self.pack, self.start_row = pack, 0

    def start(self, n: int, k: int) -> None:
        self.array = self.pack.stream(k)

    def append(self, slab: Array) -> Array:
        stored = slab.astype("float32")
        self.array[self.start_row : self.start_row + len(stored)] = stored
        self.start_row += len(stored)
        return as_float64(stored)
