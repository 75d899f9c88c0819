"""What many representations share: generalised CCA of all of them at once, MAXVAR (Kettenring 1971).

From bases alone. With U_i the orthonormal columns of representation i, all of them side by side have the Gram
[U_iᵀ U_j]; its largest eigenvalues and their vectors v are the consensus. Bases are read twice, all side by side, a
step of rows at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pandas as pd
from distributed import Client
from scipy.linalg import eigh

from dsvcca.activations.labels import label_order
from dsvcca.activations.store import Store
from dsvcca.analyses.stored_bases import Stored, basis_of_each, plan_of_bases
from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.correlations import EXCESS, check_excess
from dsvcca.maths.nulls import largest_eigenvalue_by_chance
from dsvcca.plans.planning import ALL_BUT_NOISE
from dsvcca.progress import waiting

MOST = 20_000
"""Directions of all representations together, at most: their Gram is held in memory, 3 GB of so many."""

STRIP = 2048
"""Rows of the Gram that are multiplied at once."""

COUNT = 10
"""Consensus variates that are found unless a number is given."""


@dataclass(frozen=True)
class SharedSubspace:
    """Consensus variates: unit variates that lie in the directions of all representations as far as any can.

    Attributes
    ----------
    eigenvalues : (count,) float64
        Descending. Each is the sum of its column of shares: in how many of N representations the variate is, at most N.
        Of two representations 1 + their canonical correlations.
    chance : float
        The largest eigenvalue that unrelated representations of these ranks show, about (Voiculescu 1986).
    shares : pandas.DataFrame
        One row a representation (labels as its index), one column a consensus variate: its squared correlation with the
        directions of the representation, the R² of predicting it from there; λ ||v_i||².
    variates : (n, count) float64
        G = Σ_i U_i v_i / √λ: uncorrelated, mean 0, norm 1; rows as in the store.
    """

    eigenvalues: NumpyArray
    chance: float
    shares: pd.DataFrame
    variates: NumpyArray = field(repr=False)
    _bases: tuple[Stored, ...] = field(repr=False)
    _weights: tuple[NumpyArray, ...] = field(repr=False)

    def directions(self, i: int) -> NumpyArray:
        """Return the map D (neurons, count) of representation i, a row of `shares`, to its part of the consensus.

        With z its centred activations, z D is the projection of the variates on its directions: the best prediction of
        them from there, of squared norm `shares`. Over all representations these parts add up to variates times
        eigenvalues. Bases are read for it.

        Raises
        ------
        DsvccaError
            If there is no such row.
        """
        if not isinstance(i, (int, np.integer)) or not 0 <= i < len(self._bases):
            raise DsvccaError(f"i={i!r}: there are {len(self._bases)} representations, give the row of one in shares")
        found: NumpyArray = self._bases[i].whitening(0) @ self._weights[i]
        return found


def shared_subspace(
    store: Store,
    *,
    count: int | None = None,
    variance: float = ALL_BUT_NOISE,
    criterion: str = "variance",
    rank: int | None = None,
    view: str = "auto",
    workspace: str | os.PathLike[str] | None = None,
    client: Client | None = None,
    memory: int | str = "1 GiB",
) -> SharedSubspace:
    """Return what all representations of a selection share: generalised CCA by MAXVAR.

    Of all unit variates the first is that whose squared correlations with the representations, each with its best
    direction, have the largest sum; the next the same among those uncorrelated with it, and so on (Kettenring 1971;
    GCCA of Rastogi et al. 2015 without regularisation). Like CCA it does not change under invertible maps of a
    representation, as long as all of its directions are kept.

    Parameters
    ----------
    store : Store
        What `select` left: two representations to some hundred. Each counts the same, so choose what is to be weighed:
        one layer of many seeds, say.
    count : int, optional
        How many variates. Default: 10, or as many as there are.
    variance, criterion, rank, view, memory
        As `plan_comparisons`. Not by frequency: maps need ``view="mean"`` or another that does not transform. All
        directions together may be 20,000; they are put side by side in this process, whatever `memory` says.
    workspace : path or URL, optional
        Where bases are kept, by default beside the store, as by `compare`. Those that are there are used.
    client : distributed.Client, optional
        Makes the bases that are missing; the rest is done here.

    Returns
    -------
    SharedSubspace

    Raises
    ------
    DsvccaError
        If there is one representation only, they have too many directions together or fewer than `count`, are seen by
        frequency or in several views.

    Examples
    --------
    ``shared_subspace(store.select(layer="fc2", step=100)).shares`` says which seeds lack what the others share.
    """
    if count is not None and (not isinstance(count, (int, np.integer)) or count < 1):
        raise DsvccaError(f"count={count!r}: give how many variates, 1 or more")
    plan = plan_of_bases(store, "all", variance=variance, criterion=criterion, rank=rank, view=view, memory=memory)
    if len(plan.representations) < 2:
        raise DsvccaError(f"{plan.representations[0]} is the only one: what is shared needs two or more, select() more")
    every = basis_of_each(plan, workspace, client=client)
    bases = tuple(every[i] for i in plan.shown)
    ranks = [one.rank for one in bases]
    if sum(ranks) > MOST:
        raise DsvccaError(
            f"{len(bases)} representations keep {sum(ranks):,} directions together, more than the {MOST:,} that can be "
            f"put side by side: keep fewer (rank={MOST // len(bases)}, or a smaller variance=), or select() fewer"
        )
    eigenvalues, vectors = maxvar(gram_of(bases), count)
    freedom = min(bases[0].basis.count, plan.representations[0].logical_shape[0]) - 1
    weights = [vectors[start:stop] * np.sqrt(eigenvalues) for start, stop in pairwise(np.cumsum([0, *ranks]).tolist())]
    first = bases[0].whitening(0) @ weights[0]
    sign = np.where(first[np.abs(first).argmax(axis=0), np.arange(len(eigenvalues))] < 0, -1.0, 1.0)
    labels = [plan.representations[i].labels for i in plan.shown]
    names = label_order({name for one in labels for name in one})
    index = pd.MultiIndex.from_arrays([[one.get(name) for one in labels] for name in names], names=names)
    shares = np.asarray([np.sum(v**2, axis=0) for v in weights])
    check_excess(float(shares.max()) ** 0.5)
    mixing = np.vstack(weights) * (sign / eigenvalues)
    return SharedSubspace(
        eigenvalues=eigenvalues,
        chance=largest_eigenvalue_by_chance(ranks, freedom),
        shares=pd.DataFrame(shares, index=index),
        variates=np.concatenate([u @ mixing for u in side_by_side(bases)]),
        _bases=bases,
        _weights=tuple(v * sign for v in weights),
    )


@waiting("find what is shared")
def maxvar(gram: NumpyArray, count: int | None) -> tuple[NumpyArray, NumpyArray]:
    """Return the largest eigenvalues, descending, and their vectors (columns, count) of the Gram of all columns.

    `gram` is written over.

    Raises
    ------
    DsvccaError
        If there are fewer than `count` that are not 0.
    """
    wanted = min(count or COUNT, len(gram))
    found, vectors = eigh(
        gram.T,  # the order of axes that LAPACK writes over without a copy
        subset_by_index=[len(gram) - wanted, len(gram) - 1],
        overwrite_a=True,
        check_finite=False,
    )
    there = int(np.count_nonzero(found > EXCESS))
    if count is not None and there < count:
        raise DsvccaError(f"count={count}: all representations together span {there} directions, give as many or fewer")
    return found[::-1][:there], vectors[:, ::-1][:, :there]


@waiting("multiply bases")
def gram_of(bases: Sequence[Stored]) -> NumpyArray:
    """Return [U_iᵀ U_j], the Gram of the orthonormal columns of all bases side by side."""
    total = sum(one.rank for one in bases)
    found: NumpyArray = np.zeros((total, total))
    for u in side_by_side(bases):
        for start in range(0, total, STRIP):
            found[start : start + STRIP] += u[:, start : start + STRIP].T @ u
    return found


def side_by_side(bases: Sequence[Stored]) -> Iterator[NumpyArray]:
    """Yield the orthonormal columns of all bases, (rows, columns), a step of rows at a time."""
    for steps in zip(*(one.columns() for one in bases), strict=True):
        yield np.hstack([u for _, [u] in steps])
