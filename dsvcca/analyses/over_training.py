"""What of a layer stays while it is trained, and what does not (Morcos, Raghu & Bengio 2018).

From bases alone: directions of one step, sorted by how far another step has them, are followed through all steps.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from distributed import Client

from dsvcca.activations.labels import Labels, describe, label_order
from dsvcca.activations.store import Store
from dsvcca.analyses.stored_bases import Stored, basis_of_each, cross_of, plan_of_bases
from dsvcca.errors import DsvccaError, nearest
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.correlations import check_excess
from dsvcca.maths.nulls import mean_by_chance
from dsvcca.plans.planning import ALL_BUT_NOISE

EARLY = 0.1
"""Share of the last step near which directions are taken, unless a step is given."""

AGAINST = 0.5
"""Share of the last step near which they are sorted, unless a step is given: the paper's T / 2."""

COLUMNS = ("kind", "correlation", "chance", "directions", "early", "against")
"""What the table holds beside labels."""


def signal_and_noise(
    store: Store,
    *,
    k: int | None = None,
    early: float | None = None,
    against: float | None = None,
    draws: int = 20,
    variance: float = ALL_BUT_NOISE,
    criterion: str = "variance",
    rank: int | None = None,
    view: str = "auto",
    workspace: str | os.PathLike[str] | None = None,
    client: Client | None = None,
    memory: int | str = "1 GiB",
) -> pd.DataFrame:
    """Return which directions of layers stay over training, and which do not, as figure 1 of Morcos et al. 2018.

    The canonical variates of a layer at an early step are sorted by their correlations with its middle: the first k
    are the signal, which is there already, the last k the noise. Both are followed: their mean canonical correlation
    with the layer at every step. At `early` both are 1 since they are taken from there, and at `against` noise is low
    since it is chosen to be: what says something is how they differ at all other steps.

    The paper takes 100 of each and T / 2 for `against`; it does not say which step is early. It draws distances, 1 -
    correlation, of steps after the early one. Random directions and chance are added here.

    Parameters
    ----------
    store : Store
        Layers at three steps or more, of one network or several: what `select` left. Each layer of each network is
        followed by itself.
    k : int, optional
        Directions of each kind, at most half of the correlations. Default: a third of them, at least 1.
    early : float, optional
        The step whose directions are followed. Default: of the steps before `against`, but for the first of all where
        there is another, that nearest to a tenth of the last. The middle with ``against`` the last step asks what stays
        from the middle on.
    against : float, optional
        The step by which they are sorted. Default: that nearest to half of the last, neither first nor last.
    draws : int, default 20
        How many times k directions are drawn at random from those of `early`, for comparison; their mean has a row. 0:
        none.
    variance, criterion, rank, view, memory
        As `plan_comparisons`. Not by frequency: maps need ``view="mean"`` or another that does not transform.
    workspace : path or URL, optional
        Where bases are kept, by default beside the store, as by `compare`. Those that are there are used.
    client : distributed.Client, optional
        Makes the bases that are missing; the rest is done here, one pair of bases at a time.

    Returns
    -------
    pandas.DataFrame
        One row for every layer of every network, step and kind ("signal", "noise", "random"): labels; `correlation`,
        Σρ / k (directions that a step lacks count as 0); `chance`, what an unrelated layer of that rank is expected to
        show; ``directions``, which is k; the steps `early` and `against`.

    Raises
    ------
    DsvccaError
        If there are fewer than three steps, a step is not there, k is too large, or layers are seen by frequency.

    Examples
    --------
    ``dsvcca.plot.signal_and_noise(signal_and_noise(store.select(seed=0)))[0].figure.savefig("signal.png")``
    """
    if isinstance(store, Store):  # plan_comparisons says what else it may be
        _trainings([r.labels for r in store.representations])
    for name, value, least in (("k", k, 1), ("draws", draws, 0)):
        if value is not None and (not isinstance(value, (int, np.integer)) or value < least):
            raise DsvccaError(f"{name}={value!r}: give how many, {least} or more")
    plan = plan_of_bases(
        store, "over_training", variance=variance, criterion=criterion, rank=rank, view=view, memory=memory
    )
    labels = [plan.representations[i].labels for i in plan.shown]
    chosen = [(own, *_chosen(own, early, against)) for own in _trainings(labels)]
    every = basis_of_each(plan, workspace, client=client)
    bases = [every[i] for i in plan.shown]
    datapoints = plan.representations[0].logical_shape[0]
    rows: list[dict[str, Any]] = []
    for own, first, second in chosen:
        crosses = {step: _cross(bases[own[first]], bases[i], plan.budget) for step, i in own.items()}
        count = _how_many(k, bases[own[first]], bases[own[second]], labels[own[first]], second)
        found = followed(crosses, second, count, draws)
        for step, i in own.items():
            same = {"chance": _chance(count, bases[i], datapoints), "directions": count}
            same |= {"early": first, "against": second}
            rows += [{**labels[i], "kind": kind, "correlation": means[step], **same} for kind, means in found.items()]
    names = label_order({name for one in labels for name in one})
    return pd.DataFrame(rows, columns=[*names, *COLUMNS])


def followed(crosses: Mapping[float, NumpyArray], against: float, k: int, draws: int) -> dict[str, dict[float, float]]:
    """Return Σρ / k with every step of the first and last k variates, and of k directions drawn at random.

    Parameters
    ----------
    crosses : mapping
        Step to the cross block (r, k_t) of orthonormal columns, those that are followed on the left.
    against : float
        The step whose correlations sort the variates.
    k, draws : int
    """
    left, rho, _ = np.linalg.svd(crosses[against], full_matrices=False)
    check_excess(float(rho[0]))
    drawn = np.random.default_rng(0).standard_normal((draws, len(left), k))
    kinds = {"signal": left[None, :, :k], "noise": left[None, :, len(rho) - k : len(rho)]}
    kinds |= {"random": np.linalg.qr(drawn)[0]} if draws else {}
    return {kind: {step: _mean(own, c) for step, c in crosses.items()} for kind, own in kinds.items()}


def _mean(directions: NumpyArray, cross: NumpyArray) -> float:
    """Return the mean of Σρ / k over several sets of k directions, (sets, r, k)."""
    rho = np.linalg.svd(np.matmul(np.swapaxes(directions, -1, -2), cross), compute_uv=False)
    check_excess(float(rho.max()))
    return float(np.minimum(rho, 1.0).sum(axis=-1).mean() / directions.shape[-1])


def _trainings(labels: Sequence[Labels]) -> list[dict[Any, int]]:
    """Return of each layer of each network its places by step, steps rising.

    Raises
    ------
    DsvccaError
        If a step is missing or no number, a layer has fewer than three, or a label is a column of the table.
    """
    found: dict[Any, dict[Any, int]] = {}
    for i, one in enumerate(labels):
        step = one.get("step")
        if isinstance(step, bool) or not isinstance(step, (int, float)):
            said = "no step" if step is None else f"step={step!r}, which is no number"
            raise DsvccaError(f"{describe(one)} has {said}: write it with step=, or select() what has one")
        if clash := next((name for name in one if name in COLUMNS), None):
            raise DsvccaError(
                f"{describe(one)} has a label {clash!r}, which is a column of the table: write it by another name"
            )
        found.setdefault(tuple(sorted(_network(one).items())), {})[step] = i
    for own in found.values():
        if len(own) < 3:
            raise DsvccaError(
                f"{describe(_network(labels[min(own.values())]))} is there at {len(own)} of the three steps or more "
                f"that show what stays ({_several(own)}): write more of them, or select() layers that have them"
            )
    return [dict(sorted(own.items())) for own in found.values()]


def _chosen(own: Mapping[Any, int], early: float | None, against: float | None) -> tuple[Any, Any]:
    """Return the step whose directions are followed, and the one by which they are sorted."""
    steps = list(own)
    for name, step in (("early", early), ("against", against)):
        if step is not None and step not in own:
            raise DsvccaError(f"a layer has no step {name}={step!r}: {nearest(step, steps)}")
    second = _nearest(steps[1:-1], AGAINST * steps[-1]) if against is None else _known(steps, against)
    before = [step for step in steps if step < second]
    if early is None and not before:
        raise DsvccaError(f"there is no step before against={against!r}: say which one is early=, or take a later one")
    # The first step is that of networks which know nothing yet.
    first = _nearest(before[1:] or before, EARLY * steps[-1]) if early is None else _known(steps, early)
    if first == second:
        raise DsvccaError(f"early and against are both step {first!r}: give two")
    return first, second


def _nearest(steps: Sequence[Any], wanted: float) -> Any:
    return min(steps, key=lambda step: (abs(step - wanted), step))


def _known(steps: Sequence[Any], wanted: float) -> Any:
    """Return a step as it was written: 100 where 100.0 was asked for."""
    return next(step for step in steps if step == wanted)


def _how_many(k: int | None, x: Stored, y: Stored, whose: Labels, against: Any) -> int:
    """Return how many directions are followed of each kind."""
    most = min(x.rank, y.rank) // 2
    if most < 1 or (k is not None and k > most):
        what = "a first and a last direction" if k is None else f"k={k} first and as many last directions"
        do = "keep more of them (variance=1.0)" if most < 1 else f"give k={most} or less, or keep more of them"
        raise DsvccaError(
            f"{describe(whose)} keeps {x.rank} directions and at step {against!r} {y.rank}, which have no {what} "
            f"apart: {do}"
        )
    return max(1, min(x.rank, y.rank) // 3) if k is None else k


def _chance(k: int, one: Stored, datapoints: int) -> float:
    """Return Σρ / k to be expected of k directions and an unrelated basis; rows of one datapoint count once."""
    return float(mean_by_chance(k, one.rank, min(one.basis.count, datapoints) - 1)) * min(k, one.rank) / k


def _cross(x: Stored, y: Stored, budget: int) -> NumpyArray:
    """Return the cross block of two bases of one frequency."""
    [found] = [np.eye(x.rank)] if x is y else cross_of(x, y, budget)
    return found


def _network(one: Labels) -> Labels:
    """Return the labels of a layer but for its step."""
    return {name: value for name, value in one.items() if name != "step"}


def _several(steps: Sequence[Any] | Mapping[Any, int]) -> str:
    return ", ".join(str(step) for step in sorted(steps))
