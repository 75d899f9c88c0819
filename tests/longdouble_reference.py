"""An independent reference of 64 bits: canonical correlations in `numpy.longdouble`, orthogonal transformations only.

Columns are brought to triangular form by Householder reflections with pivoting; singular values and vectors come from
one-sided Jacobi rotations, which find the smallest as well as the largest (Demmel & Veselić 1992). No Gram matrix is
ever made. Nothing here imports dsvcca; the rank rule and the measures are those that docs/numbers.md defines.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Long = np.longdouble
EPS = float(np.finfo(Long).eps)
IS_LONGER = EPS < 1e-18
"""Whether this machine has a type that is longer than float64 at all (x86 has)."""

TYPES = {"float16", "bfloat16", "float32", "float64"}
SWEEPS = 60
WIDE = 100
"""Rows and columns, the fewer of them, from which only the leading singular vectors are found."""


@dataclass(frozen=True)
class Spectrum:
    """What the rank rule looks at, frequency by frequency.

    Attributes
    ----------
    weights : list of int
        Directions of space that each frequency stands for, 1 or 2.
    left : f arrays (n, k)
        Left singular vectors of the centred columns.
    singular_values : f arrays (k,)
        All of them, or of wide layers the largest.
    centred : f arrays (n, c)
    zero : longdouble
        Eigenvalue up to which a direction is zero.
    power : longdouble
        Sum of all eigenvalues.
    """

    weights: list
    left: list
    singular_values: list
    centred: list
    zero: np.longdouble
    power: np.longdouble


@dataclass(frozen=True)
class Side:
    """One side of a comparison, frequency by frequency: left singular vectors that are kept, and centred columns.

    Attributes
    ----------
    margin : float
        How far what was cut is below what is kept, (λ_k - λ_k+1) / λ_1; infinity where nothing was cut.
    """

    weights: list
    vectors: list
    centred: list
    margin: float

    @property
    def rank(self):
        return sum(w * u.shape[1] for w, u in zip(self.weights, self.vectors, strict=True))


def adjoint(a):
    return a.conj().T


def lengths(a):
    """Return the squared lengths of columns."""
    return np.sum(np.abs(a) ** 2, axis=0)


def centred(x):
    """Return columns minus their means; the second time takes what rounding left."""
    x = x - x.mean(axis=0)
    return x - x.mean(axis=0)


def householder(a):
    """Return Q (m, k), R (k, p) and the order of columns with a[:, order] = Q R, k = min(m, p); Q is orthonormal."""
    r = a.copy()
    m, p = r.shape
    k = min(m, p)
    order = np.arange(p)
    reflectors = []
    for j in range(k):
        best = j + int(np.argmax(lengths(r[j:, j:])))
        r[:, [j, best]], order[[j, best]] = r[:, [best, j]], order[[best, j]]
        v = r[j:, j].copy()
        size = np.sqrt(lengths(v))
        if size > 0:
            v[0] += size * (v[0] / np.abs(v[0]) if v[0] != 0 else 1)
            v /= np.sqrt(lengths(v))
            r[j:, j:] -= 2 * np.outer(v, v.conj() @ r[j:, j:])
        reflectors.append(v)
    q = np.eye(m, k, dtype=a.dtype)
    for j in reversed(range(k)):
        q[j:, j:] -= 2 * np.outer(reflectors[j], reflectors[j].conj() @ q[j:, j:])
    return q, np.triu(r[:k]), order


def jacobi(a):
    """Return W and J with a J = W, J unitary and the columns of W orthogonal, the longest first.

    Every pair of columns meets once in a sweep, half of the columns at a time.
    """
    p = a.shape[1]
    both = np.concatenate([a, np.eye(p, dtype=a.dtype)])
    w = both[: len(a)]
    even = p + p % 2
    for _ in range(SWEEPS):
        worst, ring = 0.0, list(range(1, even))
        for _ in range(even - 1):
            table = [0, *ring]
            ring = ring[1:] + ring[:1]
            met = zip(table[: even // 2], table[: even // 2 - 1 : -1], strict=True)
            i, j = np.asarray([pair for pair in met if max(pair) < p], dtype=int).reshape(-1, 2).T
            alpha, beta = lengths(w[:, i]), lengths(w[:, j])
            gamma = np.sum(w[:, i].conj() * w[:, j], axis=0)
            size, scale = np.abs(gamma), np.sqrt(alpha) * np.sqrt(beta)
            share = np.where(scale > 0, size / np.where(scale > 0, scale, 1), 0)
            worst = max(worst, float(share.max(initial=0)))
            idle = share <= EPS
            size = np.where(idle, 1, size)
            zeta = (beta - alpha) / (2 * size)
            t = np.where(idle, 0, np.where(zeta < 0, -1, 1) / (np.abs(zeta) + np.sqrt(1 + zeta * zeta)))
            c = 1 / np.sqrt(1 + t * t)
            left, right = both[:, i], both[:, j] * np.where(idle, 1, gamma.conj() / size)
            both[:, i], both[:, j] = c * (left - t * right), c * (t * left + right)
        if worst <= 4 * EPS:
            order = np.argsort(-lengths(w), kind="stable")
            return w[:, order], both[len(a) :, order]
    raise ArithmeticError(f"Jacobi rotations left {worst:.1e} after {SWEEPS} sweeps")


def singular(a):
    """Return U (m, k), s (k,) and V (p, k) with a = U s V^H, k = min(m, p); U and V are orthonormal, zeros or not."""
    if a.shape[0] < a.shape[1]:
        v, s, u = singular(adjoint(a))
        return u, s, v
    q, r, order = householder(a)
    w, turn = jacobi(adjoint(r))  # r = turn s v^H
    v = np.zeros_like(w)
    v[order] = normalised(w)
    return q @ turn, np.sqrt(lengths(w)), v


def normalised(w):
    """Return columns that are orthogonal and fall in length at length 1, and any others for those that are zero."""
    q = np.zeros_like(w)
    for j in range(w.shape[1]):
        v = w[:, j]
        if not v.any():
            left = np.eye(len(w), dtype=w.dtype) - q[:, :j] @ adjoint(q[:, :j])
            v = left[:, int(np.argmax(lengths(left)))]
        v = v / np.sqrt(lengths(v))
        for _ in range(2):
            v = v - q[:, :j] @ (adjoint(q[:, :j]) @ v)
        q[:, j] = v / np.sqrt(lengths(v))
    return q


def leading(z, k):
    """Return U (n, k) and s (k,) of the largest singular values, by subspace iteration from where float64 ends."""
    u, s, _ = np.linalg.svd(z.astype(np.float64), full_matrices=False)
    u = u[:, : min(k + 8, int(np.count_nonzero(s > 1e-9 * s[0])))].astype(Long)  # what is below counts as zero anyhow
    for _ in range(4):
        u = householder(z @ (z.T @ u))[0]
    left, s, _ = singular((z.T @ u).T)
    return (u @ left)[:, :k], s[:k]


def zero_below(stored, dtype, c, largest):
    """Return the eigenvalue up to which a direction is zero: of stored activations with c columns a frequency."""
    n = len(stored)
    spacing = spacings(np.abs(stored).max(), dtype) if dtype in TYPES else 0
    return max(max(n, c) * Long(2) ** -52 * largest, 4 * max(n, c) * Long(spacing) ** 2 / 12)


def spacings(stored, dtype):
    """Return the spacing of numbers of a type at stored ones; bfloat16 comes as float32."""
    return 2**16 * np.spacing(stored) if dtype == "bfloat16" else np.spacing(stored)


def bins(space):
    """Return the bins of a transform over `space`, one of each conjugate pair, and how many each stands for."""
    found = {}
    for f in np.ndindex(*space):
        other = tuple(-i % size for i, size in zip(f, space, strict=True))
        if other not in found:
            found[f] = 1 if other == f else 2
    return found


def transformed(x):
    """Return longdouble maps (n, *space, c) at every bin (n, c), by the sum that defines it, and the bins' weights."""
    space = x.shape[1:-1]
    z = x.reshape(len(x), -1, x.shape[-1])
    if not space:
        return [z[:, 0]], [1]
    places = np.stack(np.unravel_index(np.arange(z.shape[1]), space), axis=1)
    found = []
    for f, weight in bins(space).items():
        turns = sum((f[a] * places[:, a] % size) / Long(size) for a, size in enumerate(space)) * 8 * np.arctan(Long(1))
        share = np.sqrt(Long(len(places)))
        real = np.einsum("npc,p->nc", z, np.cos(turns) / share)
        found.append(real if weight == 1 else real - 1j * np.einsum("npc,p->nc", z, np.sin(turns) / share))
    return found, list(bins(space).values())


def spectrum(x, stored, dtype=None, most=20):
    """Return what the rank rule looks at.

    Parameters
    ----------
    x : (n, c) or (n, *space, c) longdouble
        Activations, or a copy of which every number was moved a little.
    stored : array
        The same as they are stored.
    dtype : str, optional
        Type they were rounded to, where it is not that of `stored`.
    most : int
        Directions that may be kept of layers too wide for all of them.
    """
    columns, weights = transformed(x.astype(Long))
    columns = [centred(z) for z in columns]
    both = [leading(z, most + 1) if min(z.shape) >= WIDE else singular(z)[:2] for z in columns]
    largest = max(s[0] for _, s in both) ** 2
    return Spectrum(
        weights=weights,
        left=[u for u, _ in both],
        singular_values=[s for _, s in both],
        centred=columns,
        zero=zero_below(stored, dtype or stored.dtype.name, columns[0].shape[1], largest),
        power=sum(w * np.sum(np.abs(z) ** 2) for w, z in zip(weights, columns, strict=True)),
    )


def reduced(found, variance=1.0, rank=None):
    """Return the kept directions: of those that are not zero the fewest that hold `variance`, or `rank` of them."""
    every = [
        (s * s, f, w)
        for f, (w, values) in enumerate(zip(found.weights, found.singular_values, strict=True))
        for s in values
    ]
    every.sort(key=lambda one: -one[0])
    nonzero = [one for one in every if one[0] > found.zero]
    if not nonzero:
        raise ArithmeticError("no direction is left")
    whole = min(found.centred[0].shape) < WIDE
    power = sum(square * w for square, _, w in nonzero) if whole else found.power
    enough = rank if rank is not None else variance * power * (1 - Long(1e-12)) if variance < 1 else np.inf
    kept, held = [], Long(0)
    for square, f, w in nonzero:
        if held >= enough:
            break
        kept.append((square, f))
        held += w if rank is not None else w * square
    cut = every[len(kept)][0] if len(kept) < len(every) else None
    places = [sum(one[1] == f for one in kept) for f in range(len(found.left))]
    return Side(
        weights=found.weights,
        vectors=[u[:, :k] for u, k in zip(found.left, places, strict=True)],
        centred=found.centred,
        margin=np.inf if cut is None else float((kept[-1][0] - cut) / kept[0][0]),
    )


def measures(x, y):
    """Return svcca, r2, pwcca_x and pwcca_y of two sides, and the smallest difference of two squared correlations."""
    sums = np.zeros(6, dtype=Long)
    nearest = np.inf
    for f, weight in enumerate(x.weights):
        u, v = x.vectors[f], y.vectors[f]
        if not min(u.shape[1], v.shape[1]):
            continue
        a, rho, b = singular(adjoint(u) @ v)
        of_x = np.sum(np.abs(adjoint(a) @ (adjoint(u) @ x.centred[f])), axis=1)
        of_y = np.sum(np.abs(adjoint(b) @ (adjoint(v) @ y.centred[f])), axis=1)
        sums += [weight * one.sum() for one in (rho, rho**2, of_x * rho, of_x, of_y * rho, of_y)]
        more = [0.0] if u.shape[1] != v.shape[1] else []  # beyond the last pair every correlation is 0
        nearest = min([nearest, *(float(one**2 - other**2) for one, other in pairwise([*rho, *more]))])
    fewer = min(x.rank, y.rank)
    rho, rho2, weighted_x, of_x, weighted_y, of_y = sums
    found = {
        "svcca": rho / fewer,
        "r2": rho2 / fewer,
        "pwcca_x": weighted_x / of_x if of_x else np.nan,
        "pwcca_y": weighted_y / of_y if of_y else np.nan,
    }
    return {name: float(one) for name, one in found.items()}, nearest


def nudged(stored, rng, dtype):
    """Return stored activations in longdouble, every number moved by one unit in the last place of a type."""
    values = stored.astype(np.float64) if dtype == "float64" else stored
    return stored.astype(Long) + np.where(rng.random(stored.shape) < 0.5, -1, 1) * spacings(values, dtype).astype(Long)
