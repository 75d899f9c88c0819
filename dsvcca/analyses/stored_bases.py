"""Bases that plans left in a workspace, for analyses that need directions: no activations are read again.

One basis against another at a time, in this process; what is many, numbers of pairs, is the business of `compare`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from distributed import Client

from dsvcca.activations.store import Store
from dsvcca.engine.bases import make_bases
from dsvcca.engine.panel import Panel
from dsvcca.engine.products import cross_blocks
from dsvcca.engine.readiness import ready_for, workspace_of
from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray, from_pairs, inverse_cholesky, to_numpy
from dsvcca.maths.basis import RankRule
from dsvcca.maths.correlations import corrected, whitening
from dsvcca.maths.mixing import BLOCK, unmix
from dsvcca.maths.moments import grid_steps
from dsvcca.maths.views import GRID
from dsvcca.plans.plan import Plan
from dsvcca.plans.planning import plan_comparisons
from dsvcca.progress import waiting
from dsvcca.workspace.packs import BasisRef


class Stored:
    """One basis of a workspace, as some rank rule cuts it.

    Attributes
    ----------
    panel : Panel
        Of this basis alone.
    basis : Basis
        Cut to the directions that the rule keeps.
    """

    def __init__(self, workspace: str, ref: BasisRef, rule: RankRule) -> None:
        self.panel = Panel(workspace, (ref,), (rule,))
        if self.panel.is_joint:
            raise DsvccaError("route='direct' keeps no bases whose directions could be found: use route='bases'")
        whole = self.panel.packs[ref.pack].basis(ref.position)
        ranks = self.panel.ranks[0, 0]
        blocks = [whole.blocks[f].cut(k) for f, k in enumerate(ranks.tolist())]
        self.basis = replace(whole, ranks=ranks, blocks=blocks)

    @property
    def ranks(self) -> NumpyArray:
        """Kept directions of each frequency, (f,) int."""
        return self.basis.ranks

    @property
    def weights(self) -> NumpyArray:
        """Directions of space that each frequency stands for, (f,) int."""
        return self.basis.weights

    @property
    def rank(self) -> int:
        """Kept directions, over all of space."""
        return self.basis.rank

    @cached_property
    def inverses(self) -> list[NumpyArray]:
        """L^-1 of each frequency, (k, k): columns U L^-H are exactly orthonormal."""
        found = (block.cholesky for block in self.basis.blocks)
        return [to_numpy(inverse_cholesky(one) if len(one) else one) for one in found]

    def loadings(self, f: int) -> NumpyArray:
        """Return F (k, c) with z = U L^-H F on the kept directions of a frequency, z the centred activations."""
        return to_numpy(self.basis.blocks[f].loadings)

    def whitening(self, f: int) -> NumpyArray:
        """Return W (c, k) with z W = U L^-H: the map from centred activations to orthonormal columns."""
        return to_numpy(whitening(self.basis, f, self.inverses[f]))

    def columns(self) -> Iterator[tuple[slice, list[NumpyArray]]]:
        """Yield (rows, orthonormal columns (rows, k) of each frequency), in the order of datapoints."""
        rows, every = self.basis.count, range(len(self.ranks))
        [slab, _] = self.panel.slabs(range(1), every, max(min(rows, GRID), BLOCK))
        n = float(rows)
        for step in grid_steps(rows):
            found = []
            for f, u in enumerate(self.panel.fill(slab, step, range(1), every)):
                k, weight = int(self.ranks[f]), int(self.weights[f])
                own = to_numpy(unmix(u[: step.stop - step.start, : k * weight].astype(np.float64), step.start))
                own = own if weight == 1 else own[:, 0::2] + 1j * own[:, 1::2]
                sums = to_numpy(self.basis.blocks[f].column_sums)
                found.append((own - sums / n) @ np.conj(self.inverses[f]).T)
            yield step, found


@waiting("multiply bases")
def products_of(x: Stored, y: Stored, budget: int) -> list[NumpyArray]:
    """Return the products (k_x, k_y) of the columns of two bases of the same rows, as they are stored, by frequency."""
    rows = x.basis.count
    if y.basis.count != rows or len(y.ranks) != len(x.ranks):
        raise DsvccaError(
            f"bases of {rows} rows at {len(x.ranks)} frequencies and of {y.basis.count} rows at {len(y.ranks)} do not "
            "meet: they were looked at in different views"
        )
    found: list[NumpyArray] = [np.zeros((int(k), int(q))) for k, q in zip(x.ranks, y.ranks, strict=True)]
    for block in cross_blocks(x.panel, y.panel, rows, np.ones((1, 1), dtype=bool), budget, again=True):
        f = block.frequency
        weight, k, q = int(x.weights[f]), int(x.ranks[f]), int(y.ranks[f])
        m = to_numpy(block.products)[: k * weight, : q * weight]
        found[f] = from_pairs(m) if weight == 2 else m.copy()
    return found


def cross_of(x: Stored, y: Stored, budget: int) -> list[NumpyArray]:
    """Return the cross block (k_x, k_y) of every frequency of two bases of the same rows, of orthonormal columns."""
    found = []
    for f, m in enumerate(products_of(x, y, budget)):
        u, v = (to_numpy(one.basis.blocks[f].column_sums) for one in (x, y))
        found.append(np.asarray(corrected(m, u, v, x.basis.count, x.inverses[f], y.inverses[f])))
    return found


def plan_of_bases(store: Store, pairs: Any, *, variance: Any, **options: Any) -> Plan:
    """Return a plan that leaves bases of one share of variance; options as `plan_comparisons` takes them."""
    if not isinstance(variance, (int, float)):
        raise DsvccaError(f"variance={variance!r}: directions are those of one share, give one number")
    return plan_comparisons(store, pairs, variance=variance, measures="svcca", route="bases", **options)


def stored_bases(
    plan: Plan,
    workspace: str | os.PathLike[str] | None = None,
    *,
    client: Client | None = None,
    wanted: Collection[int] | None = None,
) -> dict[int, Stored]:
    """Return the bases of the aspects of a plan, under its widest rule, after making those that are missing.

    Raises
    ------
    DsvccaError
        If one cannot be made.
    """
    where = workspace_of(plan, workspace)
    needed = range(len(plan.aspects)) if wanted is None else wanted
    with ready_for(plan, where, client):
        made = make_bases(plan, where, list(needed), client)
    if made.failed:
        raise DsvccaError("; ".join(made.failed.values()))
    return {i: Stored(where, made.bases[i], plan.widest) for i in needed}


def basis_of_each(
    plan: Plan, workspace: str | os.PathLike[str] | None = None, *, client: Client | None = None
) -> list[Stored]:
    """Return the one basis of every representation of a plan, in its order; parameters as `stored_bases`.

    Raises
    ------
    DsvccaError
        If representations are seen by frequency, or one of them in several views; or if a basis cannot be made.
    """
    aspect: dict[int, int] = {}
    for i, (own, size) in enumerate(zip(plan.aspects, plan.sizes, strict=True)):
        representation = plan.representations[own.representation]
        if size.space:
            raise DsvccaError(
                f"{representation} is seen by frequency (view {own.view.name!r}), where directions of different "
                "frequencies do not meet: give view='mean', or another that does not transform"
            )
        if own.representation in aspect:
            other = plan.aspects[aspect[own.representation]].view.name
            raise DsvccaError(
                f"{representation} is seen as {other!r} by some and as {own.view.name!r} by others, which are other "
                "directions: give one view= that fits all, such as 'mean', or select() layers of one kind"
            )
        aspect[own.representation] = i
    found = stored_bases(plan, workspace, client=client)
    return [found[aspect[i]] for i in range(len(plan.representations))]
