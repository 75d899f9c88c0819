"""What tasks do for representations that are larger than one task, segment of rows by segment of rows.

    add_up (a task a segment)   moments of a segment                                 ──► partial
    choose                      merged moments ──► which directions are kept         ──► partial, a pack to be filled
    project (a task a segment)  columns of a segment ──► the pack; their Gram        ──► partial
    seal                        merged Grams ──► the pack is complete

Of few pairs (`Plan.direct`) no column is ever made: `add_up` takes the representations side by side, so that their
moments hold the cross blocks of every pair, and `whiten_sums` whitens those. Activations are then read once.

Segments depend on shapes alone and are merged in their order: bits do not depend on who did what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from dsvcca.activations.pieces import ahead, read_pieces
from dsvcca.activations.representations import Representation
from dsvcca.errors import DsvccaError, errors_of
from dsvcca.maths.arrays import Array, NumpyArray, adjoint, like, put, real_part, tidy, to_numpy
from dsvcca.maths.basis import Basis, RankRule
from dsvcca.maths.frequencies import half_spectrum
from dsvcca.maths.moments import Moments, Rows, merge
from dsvcca.maths.translations import Between
from dsvcca.maths.views import View, grid_datapoints
from dsvcca.maths.whiten import Cut, Projection, basis_of, checked_moments, cut, rounded_rows
from dsvcca.plans.layout import WORST_ROUNDING
from dsvcca.plans.passes import aspect_size
from dsvcca.plans.plan import Plan
from dsvcca.plans.sizes import check_room, projection_memory
from dsvcca.storage import files
from dsvcca.workspace.contents import find_bases
from dsvcca.workspace.packing import Filled, Origin, commit_joint
from dsvcca.workspace.packs import Receipt
from dsvcca.workspace.partials import has_partial, read_partial, remove_partials, write_partial


@dataclass(frozen=True)
class SegmentTask:
    """One step for one representation, or for several side by side: paths and labels, never arrays.

    Attributes
    ----------
    workspace : str
    name : str
        Of what the partial results are part.
    representations, views, fingerprints
        What is whitened, and the names of its bases.
    rule : RankRule
    center : str
    segments : tuple of (int, int)
        The datapoints of every segment.
    segment : int
        Which of them this task is for; -1 where it merges all.
    pairs : tuple of (int, int)
        Of several side by side: which are compared.
    """

    workspace: str
    name: str
    representations: tuple[Representation, ...]
    views: tuple[View, ...]
    fingerprints: tuple[str, ...]
    rule: RankRule
    center: str
    segments: tuple[tuple[int, int], ...]
    budget: int
    segment: int = -1
    pairs: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        what = " and ".join(map(str, self.representations))
        return f"{what}: " + (f"segment {self.segment + 1} of {len(self.segments)}" if self.segment >= 0 else "merging")

    def partial(self, what: str, segment: int | None = None) -> str:
        """Return the name of a partial result of this task, or of another segment."""
        return f"{what}-{self.name}-{self.segment if segment is None else segment}"

    @property
    def step(self) -> int:
        """Datapoints in one step of the grid that all of them share; a segment is whole steps."""
        both = zip(self.representations, self.views, strict=True)
        return min(self.segments[0][1], *(grid_datapoints(r.logical_shape, view) for r, view in both))

    def rows(self) -> list[Rows]:
        """Return the rows of the segment, of every representation."""
        return [self._rows(r, view) for r, view in zip(self.representations, self.views, strict=True)]

    def _rows(self, r: Representation, view: View) -> Rows:
        start, stop = self.segments[self.segment]
        return Rows(
            lambda: map(put, ahead(_told(read_pieces(r, start, stop), r))),
            r.logical_shape,
            view,
            keep=False,
            center=self.center,
            grid=self.step,
        )


def _told(pieces: Iterator[NumpyArray], r: Representation) -> Iterator[NumpyArray]:
    with errors_of(str(r)):
        yield from pieces


def segment_tasks(plan: Plan, workspace: str, aspects: Sequence[int]) -> list[SegmentTask]:
    """Return the tasks that add up every segment of large aspects, each on its own, or side by side where direct."""
    found = []
    for several in [plan.side_by_side] if plan.direct else [(i,) for i in aspects]:
        segments = plan.segments(several)
        for place in range(len(segments)):
            found.append(
                SegmentTask(
                    workspace=workspace,
                    name=plan.segments_name(several),
                    representations=tuple(plan.representations[plan.aspects[i].representation] for i in several),
                    views=tuple(plan.aspects[i].view for i in several),
                    fingerprints=tuple(plan.basis_fingerprints[i] for i in several),
                    rule=plan.widest,
                    center=plan.center,
                    segments=segments,
                    budget=plan.budget,
                    segment=place,
                    pairs=plan.aspect_pairs if plan.direct else (),
                )
            )
    return found


@tidy
def add_up(task: SegmentTask) -> str:
    """Commit the moments of one segment; return the name of the partial result."""
    name = task.partial("sums")
    if not has_partial(task.workspace, name):
        rows = task.rows()
        with files.disk_errors(task.workspace):
            moments = checked_moments(rows, [str(r) for r in task.representations], task.segments[task.segment][0])
            arrays = {"shift": moments.shift, "sums": moments.sums, "gram": moments.gram}
            largest = {"count": moments.count, "largest": [one.largest for one in rows]}
            write_partial(task.workspace, name, arrays, largest)
    return name


@tidy
def choose(task: SegmentTask) -> str:
    """Merge the moments of all segments, choose the directions that are kept, and begin a pack for their columns."""
    name = task.partial("kept")
    if not has_partial(task.workspace, name):
        moments, largest = _merged(task)
        [kept] = _cuts(task, moments, largest)
        widths = Projection(kept, kept.mean).widths
        size, width = aspect_size(task.representations[0], task.views[0]), sum(widths)
        what = f"{task.representations[0]} ({size.rows} rows, {size.width} columns, {width} of them kept)"
        check_room(what, projection_memory(size, width), task.budget)
        with files.disk_errors(task.workspace):
            Filled.begin(task.workspace, task.name, kept.count, widths, task.step)
            write_partial(
                task.workspace,
                name,
                _arrays_of(kept),
                {"count": kept.count, "nonzero": kept.nonzero, "noise": kept.noise},
            )
    return name


@tidy
def project(task: SegmentTask) -> str:
    """Write the columns of one segment into the pack, and commit what was measured of them."""
    name = task.partial("columns")
    if not has_partial(task.workspace, name):
        kept, [rows] = _kept(task, put), task.rows()
        slabs = rows()
        first = next(slabs)
        projection = Projection(kept, rows.shift)
        with files.disk_errors(task.workspace):
            columns = _Stretch(Filled(task.workspace, task.name), task.segments[task.segment][0])
            arrays = {"norms": projection.add(chain([first], slabs), columns)}
            for f, (gram, sums) in enumerate(projection.sums()):
                arrays |= {f"gram{f}": gram, f"sums{f}": sums}
            if projection.between:
                arrays |= {f"between{i}": block for i, block in enumerate(projection.between.blocks)}
            write_partial(task.workspace, name, arrays, {})
    return name


@tidy
def seal(task: SegmentTask) -> list[Receipt]:
    """Complete the pack: what belongs to its columns, and its record."""
    if there := _committed(task):
        return there
    kept = _kept(task)
    total: dict[str, NumpyArray] = {}
    norms = []
    for place in range(len(task.segments)):
        part, _ = read_partial(task.workspace, task.partial("columns", place))
        norms.append(part.pop("norms"))
        total = {key: total[key] + value for key, value in part.items()} if total else part
    sums = [(total[f"gram{f}"], total[f"sums{f}"]) for f in range(len(kept.ranks))]
    between = Between(half_spectrum(kept.space).weights, kept.singular_values) if kept.space else None
    if between:
        between.blocks = [total[f"between{i}"] for i in range(len(between.draws.first))]
    off_block = between.result(kept.count) if between else None
    basis = basis_of(kept, sums, np.concatenate(norms), off_block)
    with files.disk_errors(task.workspace):
        receipts = Filled(task.workspace, task.name).commit(_origins(task)[0], basis, task.rule, task.step)
    clean(task)
    return receipts


@tidy
def whiten_sums(task: SegmentTask) -> list[Receipt]:
    """Whiten several representations side by side from their moments, and commit their cross blocks.

    Raises
    ------
    DsvccaError
        If some activations are too badly conditioned for moments alone.
    """
    if there := _committed(task):
        return there
    moments, largest = _merged(task)
    cuts = _cuts(task, moments, largest)
    ends = np.cumsum([0, *(len(kept.neuron_norms) for kept in cuts)])
    for r, kept in zip(task.representations, cuts, strict=True):
        used = np.concatenate([s[:k] for s, k in zip(kept.singular_values, kept.ranks, strict=True)])
        if np.finfo(np.float64).eps * (used.max() / used.min()) ** 2 > WORST_ROUNDING:
            with errors_of(str(r)):
                raise DsvccaError(
                    f"{r}: its kept directions reach from {used.max():.3g} down to {used.min():.3g}, too far apart for "
                    "route='direct', which would round to more than 1e-7: use route='bases', or a smaller variance="
                )
    cross = []
    for f in range(moments.gram.shape[0]):
        comoment = moments.comoment(f)
        for i, j in task.pairs:
            x, y = cuts[i], cuts[j]
            block = comoment[ends[i] : ends[i + 1], ends[j] : ends[j + 1]]
            found = adjoint(_whitening(x, f)) @ block @ _whitening(y, f)
            cross.append(real_part(found) if x.vectors[f].dtype.kind == "f" else found)
    bases = [_exact(kept) for kept in cuts]
    with files.disk_errors(task.workspace):
        receipts = commit_joint(task.workspace, task.rule, _origins(task), bases, task.pairs, cross)
    clean(task)
    return receipts


def _merged(task: SegmentTask) -> tuple[Moments, list[float]]:
    """Return the moments of all segments, merged in their order, and the largest number of each representation."""
    total, largest = None, [0.0 for _ in task.representations]
    for place in range(len(task.segments)):
        arrays, about = read_partial(task.workspace, task.partial("sums", place))
        one = Moments(int(about["count"]), arrays["shift"], arrays["sums"], arrays["gram"])
        total = one if total is None else merge(total, one)
        largest = [max(both) for both in zip(largest, about["largest"], strict=True)]
    assert total is not None
    return total, largest


def _cuts(task: SegmentTask, moments: Moments, largest: Sequence[float]) -> list[Cut]:
    """Return which directions of every representation are kept."""
    found, start = [], 0
    for place, (r, rows) in enumerate(zip(task.representations, task.rows(), strict=True)):
        stop = start + rows.columns
        here = slice(start, stop)
        own = Moments(moments.count, moments.shift[:, here], moments.sums[:, here], moments.gram[:, here, here])
        with errors_of(str(r)):
            kept = cut(
                own,
                task.rule,
                space=rows.space,
                centred=rows.centred,
                largest=largest[place],
                bits=r.bits,
                name=str(r),
            )
        found.append(kept)
        start = stop
    return found


def _arrays_of(kept: Cut) -> dict[str, Array]:
    arrays = {
        "centred": kept.centred.astype(np.float64),
        "mean": kept.mean,
        "neuron_norms": kept.neuron_norms,
        "ranks": kept.ranks.astype(np.float64),
        "singular_values": kept.singular_values,
    }
    return arrays | {f"vectors{f}": vectors for f, vectors in enumerate(kept.vectors)}


def _kept(task: SegmentTask, bring: Callable[[NumpyArray], Array] = np.asarray) -> Cut:
    arrays, about = read_partial(task.workspace, task.partial("kept", -1))
    return Cut(
        count=int(about["count"]),
        space=task.rows()[0].space,
        centred=arrays["centred"] > 0,
        mean=bring(arrays["mean"]),
        neuron_norms=bring(arrays["neuron_norms"]),
        ranks=arrays["ranks"].astype(np.int64),
        singular_values=arrays["singular_values"],
        nonzero=int(about["nonzero"]),
        noise=float(about["noise"]),
        vectors=tuple(bring(arrays[f"vectors{f}"]) for f in range(len(arrays["ranks"]))),
    )


def _whitening(kept: Cut, f: int) -> NumpyArray:
    """Return V S^-1 (c, k) of one frequency."""
    vectors = kept.vectors[f]
    return np.asarray(vectors / kept.singular_values[f, : vectors.shape[1]])


def _exact(kept: Cut) -> Basis:
    """Return the basis of columns that were never made: orthonormal and of zero sum."""
    widths = [(k if v.dtype.kind == "f" else 2 * k) for v, k in zip(kept.vectors, kept.ranks.tolist(), strict=True)]
    halves = [width // max(k, 1) for width, k in zip(widths, kept.ranks.tolist(), strict=True)]  # a pair sums to one
    exact = [(np.eye(width) / max(half, 1), np.zeros(width)) for width, half in zip(widths, halves, strict=True)]
    return basis_of(kept, exact, np.full(kept.count, np.nan))


def _committed(task: SegmentTask) -> list[Receipt]:
    """Return the receipts of a task that was killed after it had committed its bases, and clean up after it."""
    found = find_bases(task.workspace)
    own = [[one for one in found.get(name, []) if one.rule == task.rule][:1] for name in task.fingerprints]
    if not all(own):
        return []
    clean(task)
    return [one for several in own for one in several]


def left_behind(plan: Plan, workspace: str, aspects: Sequence[int]) -> list[str]:
    """Return the partial results of aspects whose bases are there: of a run killed before it could remove them."""
    tasks = segment_tasks(plan, workspace, aspects) if aspects else []
    names = [name for task in tasks if task.segment == 0 for name in _partials(task)]
    return [name for name in names if has_partial(workspace, name)]


def _origins(task: SegmentTask) -> list[Origin]:
    """Return what the bases of a task are made from."""
    sources = (r.fingerprint for r in task.representations)
    return [Origin(*both) for both in zip(task.fingerprints, sources, strict=True)]


def segment_work(task: SegmentTask) -> dict[str, int]:
    """Return how much work a task is."""
    return {"segments": 1} if task.segment >= 0 else {"representations": len(task.representations)}


def clean(task: SegmentTask) -> None:
    """Remove the partial results, which are merged now or belong to what failed."""
    remove_partials(task.workspace, _partials(task))
    Filled(task.workspace, task.name).discard()


def _partials(task: SegmentTask) -> list[str]:
    segments = range(len(task.segments))
    return [*(task.partial(what, i) for what in ("sums", "columns") for i in segments), task.partial("kept", -1)]


class _Stretch:
    """Columns of a run of rows of a pack that is being filled."""

    def __init__(self, pack: Filled, row: int) -> None:
        self.pack, self.row = pack, row

    def start(self, n: int, widths: Sequence[int]) -> None:
        """Nothing: the pack is there already."""

    def append(self, slab: Array) -> tuple[Array, Array]:
        stored, ones = rounded_rows(slab, self.row)
        self.pack.write(self.row, to_numpy(stored))
        self.row += slab.shape[0]
        return stored, like(ones, slab)
