"""What one task does on a worker for targets: how much of them the bases of a panel explain."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dsvcca.engine.panel import Panel
from dsvcca.maths.arrays import NumpyArray, inverse_cholesky
from dsvcca.maths.basis import RankRule, zero_below
from dsvcca.maths.mixing import mix
from dsvcca.maths.moments import grid_steps
from dsvcca.maths.views import GRID
from dsvcca.maths.whiten import noise_of
from dsvcca.plans.passes import Pass
from dsvcca.plans.targets import Target
from dsvcca.results import filling
from dsvcca.results.commits import Sheet, is_committed, read_targets, write_targets
from dsvcca.results.dataset import FLOOR, R2
from dsvcca.storage import files
from dsvcca.workspace.packs import BasisRef
from dsvcca.workspace.partials import read_partial, write_partial


@dataclass(frozen=True)
class ExplainTask:
    """One panel: where its bases are, where the targets are, where the numbers go.

    Attributes
    ----------
    sheet : Sheet
        Where the numbers go.
    passes : tuple of (members, bases)
        Bases that share their frequencies, and whose they are: places within the panel.
    everywhere : bool
        Whether all frequencies count, since rows hold all translations; otherwise frequency 0 alone.
    """

    workspace: str
    sheet: Sheet
    rows: int
    passes: tuple[tuple[tuple[int, ...], tuple[BasisRef, ...]], ...]
    targets: str
    rules: tuple[RankRule, ...]
    everywhere: bool
    budget: int

    def __str__(self) -> str:
        return f"targets of panel {self.sheet.places[0]}"


def commit_targets(workspace: str, targets: Sequence[Target]) -> str:
    """Bring the targets, mixed as all columns are, to where tasks find them; return their name."""
    parts: list[NumpyArray] = []
    joint: list[bool] = []
    for target in targets:
        y = target.read()
        if target.columns > 1:  # all of them together: an orthonormal basis
            u, s, _ = np.linalg.svd(y, full_matrices=False)
            n, q = y.shape
            zero = zero_below(float(s[0] ** 2), n, q, noise_of(n, q, 1.0, target.bits))
            parts.append(u[:, s**2 > zero])
            joint.append(True)
        parts.append(y / np.linalg.norm(y, axis=0))
        joint.append(False)
    y = np.concatenate(parts, axis=1)
    mixed = np.concatenate([mix(y[step], step.start) for step in grid_steps(len(y))])
    about = {"widths": [part.shape[1] for part in parts], "joint": joint}
    name = "targets-" + hashlib.sha256(" ".join(target.digest for target in targets).encode()).hexdigest()[:24]
    write_partial(workspace, name, {"y": mixed}, about)
    return name


def explain(task: ExplainTask) -> str:
    """Compute and commit how much of every target the bases of one panel explain, if that is not there already."""
    if is_committed(task.sheet):
        return task.sheet.name
    arrays, about = read_partial(task.workspace, task.targets)
    y = arrays["y"]
    explained = np.full((*task.sheet.shape, len(task.rules), y.shape[1]), np.nan)
    floor = np.full(explained.shape[:2], np.nan)
    for members, bases in task.passes:
        panel = Panel(task.workspace, bases, task.rules)
        explained[list(members)], floor[list(members)] = _explained(task, panel, y)
    groups = np.split(explained, np.cumsum(about["widths"])[:-1], axis=2)
    parts = [g.mean(axis=2, keepdims=True) if joint else g for g, joint in zip(groups, about["joint"], strict=True)]
    values = {R2: np.concatenate(parts, axis=2).swapaxes(1, 2), FLOOR: floor}
    kept = task.sheet.kept
    if kept is not None:
        for name, before in read_targets(task.sheet).items():
            values[name][kept] = before[kept]
    with files.disk_errors(task.sheet.out):
        write_targets(task.sheet, values)
    return task.sheet.name


def _explained(task: ExplainTask, panel: Panel, y: NumpyArray) -> tuple[NumpyArray, NumpyArray]:
    """Return ||U^H y||^2 (bases, rules, columns) for columns of norm 1, and what is expected of unrelated ones."""
    explained = np.zeros((len(panel.refs), len(task.rules), y.shape[1]))
    floor = np.zeros(explained.shape[:2])
    freedom = task.rows // (int(panel.weights.sum()) if task.everywhere else 1) - 1
    most = max(64, task.budget // (24 * min(task.rows, GRID)))
    for f in range(len(panel.weights) if task.everywhere else 1):
        floor = np.maximum(floor, panel.ranks[:, :, f] / freedom)
        for run in panel.runs(f, most):
            for i, m, block in zip(run, _products(panel, run, f, y), panel.at(f, run).blocks, strict=True):
                if not len(m):
                    continue
                weight = int(panel.weights[f])
                m = m[0::2] - 1j * m[1::2] if weight == 2 else m
                # Targets sum to zero: nothing has to be subtracted for the sums of columns.
                squares = np.cumsum(np.abs(inverse_cholesky(block.cholesky) @ m) ** 2, axis=0)
                for place, k in enumerate(panel.ranks[i, :, f].tolist()):
                    explained[i, place] += weight * squares[k - 1] if k else 0.0
    return explained, floor


def _products(panel: Panel, run: range, f: int, y: NumpyArray) -> list[NumpyArray]:
    """Return U^T y (real columns, columns of y) of every basis of a run at one frequency, summed in float64.

    Each is a product of its own, so that its bits do not depend on the others.
    """
    ends = np.cumsum([0, *panel.widths[run.start : run.stop, f].tolist()]).tolist()
    slab = panel.slabs(run, range(f, f + 1), len(y))[0]
    total = [np.zeros((b - a, y.shape[1])) for a, b in pairwise(ends)]
    for step in grid_steps(len(y)):
        [u] = panel.fill(slab, step, run, range(f, f + 1))
        for one, (a, b) in zip(total, pairwise(ends), strict=True):
            one += u[: step.stop - step.start, a:b].astype(np.float64).T @ y[step]
    return total


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
