"""Numbers as other tools, or the letter of a paper, define them; asked for by name, and never by default.

Values that these tools gave once are in the tests, with their versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.measures import DEFAULT


@dataclass(frozen=True)
class Definition:
    """What another definition changes.

    Attributes
    ----------
    definition : str
        What is reproduced, and in what it differs.
    measures : tuple of str
        Those of a plan that names none.
    variance : float or None
        Share of variance that it keeps; None where that is free.
    criterion : str
        Of the rank rule.
    needs_rows : bool
        Whether it needs activations themselves, and not only what bases keep.
    """

    definition: str
    measures: tuple[str, ...]
    variance: float | None = None
    criterion: str = "variance"
    needs_rows: bool = False


VARIANTS = {
    "google": Definition(
        "google/svcca (commit 1f3fbf1): CCA of everything, whose mean leaves out what is beyond 98 % of the sum of "
        "correlations, and whose compute_pwcca weights by other directions than the paper's",
        ("svcca_google", "pwcca_google_x", "pwcca_google_y"),
        variance=1.0,
    ),
    "singular": Definition(
        "the letter of Raghu et al. 2017, appendix C: directions are kept by their share of singular values, not of "
        "variance",
        DEFAULT,
        criterion="singular",
    ),
    "anatome": Definition(
        "moskomule/anatome (commit 2212a8c): 1 - svcca_distance, whose cut is by shares of singular values of "
        "activations that are not centred, and keeps one direction fewer; 1 - pwcca_distance, whose weights are sums "
        "over datapoints",
        ("svcca_anatome", "pwcca_anatome"),
        variance=0.99,
        criterion="singular",
        needs_rows=True,
    ),
}
"""Other definitions by name."""


def variant_of(name: str) -> Definition:
    """Return a variant by its name.

    Raises
    ------
    DsvccaError
        If there is none.
    """
    if not isinstance(name, str) or name not in VARIANTS:
        raise DsvccaError(f"variant={name!r} is unknown: there are {', '.join(VARIANTS)}")
    return VARIANTS[name]


def check_not_given(name: str, given: Mapping[str, object]) -> None:
    """Raise if something was given that a variant says itself."""
    if too_much := [option for option, is_given in given.items() if is_given]:
        raise DsvccaError(f"variant={name!r} says {too_much[0]} itself: leave {too_much[0]}= out")


def anatome(x: NumpyArray, y: NumpyArray, variance: float) -> dict[str, float]:
    """Return `svcca_anatome` and `pwcca_anatome` of two arrays (n, p), (n, q)."""
    cut = []
    for one in (x, y):
        _, s, v = np.linalg.svd(one, full_matrices=False)
        kept = int(np.sum(np.cumsum(s) / np.sum(s) < variance))
        if not kept:
            raise DsvccaError(f"of one side the first direction holds {variance:.0%} or more: anatome keeps none of it")
        cut.append(one @ v[:kept].T)
    directions, rho = _cca(x, y)
    weights = np.abs(x @ np.linalg.qr(directions)[0]).sum(axis=0)
    return {"svcca_anatome": float(_cca(*cut)[1].mean()), "pwcca_anatome": float(weights @ rho / weights.sum())}


def _cca(x: NumpyArray, y: NumpyArray) -> tuple[NumpyArray, NumpyArray]:
    """Return canonical directions of x, (p, c), and correlations."""
    (u, s, v), (w, _, _) = (np.linalg.svd(one - one.mean(axis=0), full_matrices=False) for one in (x, y))
    a, rho, _ = np.linalg.svd(u.T @ w, full_matrices=False)
    return v.T / s @ a, rho
