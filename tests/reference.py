"""An independent reference in NumPy float64: canonical correlations by SVD of the centred data, no moments, no bases.

Nothing here imports dsvcca. Activations are (n, p): datapoints are rows.
"""

from dataclasses import dataclass

import numpy as np

EPS = float(np.finfo(np.float64).eps)
BITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}


@dataclass(frozen=True)
class Reduced:
    """Left singular vectors kept, the whole spectrum and how many of it are not zero."""

    u: np.ndarray
    singular_values: np.ndarray
    nonzero: int


@dataclass(frozen=True)
class Answer:
    """What the reference says about a pair; variates in pairs, one column each."""

    correlations: np.ndarray
    x_rank: int
    y_rank: int
    x_variates: np.ndarray
    y_variates: np.ndarray
    x_weights: np.ndarray
    y_weights: np.ndarray

    @property
    def mean(self):
        return float(self.correlations.mean())

    @property
    def r2(self):
        return float((self.correlations**2).mean())

    def pwcca(self, side):
        weights = self.x_weights if side == "x" else self.y_weights
        return float(weights @ self.correlations / weights.sum())


def centred(x):
    x = np.asarray(x, dtype=np.float64)
    return x - x.mean(axis=0)


def zero_below(x, largest_eigenvalue, bits):
    """Return the eigenvalue at or below which a direction of activations `x` is nothing but rounding."""
    n, p = x.shape
    spacing = 0.0
    largest = float(np.abs(np.asarray(x, dtype=np.float64)).max())
    if bits is not None and largest > 0:
        spacing = 2.0 ** (np.ceil(np.log2(largest)) - bits)
    return max(max(n, p) * EPS * largest_eigenvalue, 4 * n * spacing**2 / 12)


def reduce(x, variance=1.0, criterion="variance", bits=None, rank=None):
    """Return the kept left singular vectors of the centred activations; `rank` of them where it is given."""
    x = np.asarray(x)
    if bits is None:
        bits = BITS.get(x.dtype.name)
    u, s, _ = np.linalg.svd(centred(x), full_matrices=False)
    nonzero = int((s**2 > zero_below(x, s[0] ** 2, bits)).sum())
    k = nonzero if rank is None else min(rank, nonzero)
    if variance < 1:
        powers = s[:nonzero] ** {"variance": 2, "singular": 1}[criterion]
        enough = np.cumsum(powers) >= variance * powers.sum() * (1 - 1e-12)
        k = 1 + int(np.argmax(enough))
    return Reduced(u[:, :k], s, nonzero)


def cca(x, y, variance=1.0, criterion="variance", ranks=(None, None)):
    """Return correlations, ranks, variates and projection weights of both sides."""
    ux = reduce(x, variance, criterion, rank=ranks[0]).u
    uy = reduce(y, variance, criterion, rank=ranks[1]).u
    a, rho, bh = np.linalg.svd(ux.T @ uy, full_matrices=False)
    hx, hy = ux @ a, uy @ bh.T
    return Answer(
        correlations=rho,
        x_rank=ux.shape[1],
        y_rank=uy.shape[1],
        x_variates=hx,
        y_variates=hy,
        x_weights=np.abs(hx.T @ centred(x)).sum(axis=1),
        y_weights=np.abs(hy.T @ centred(y)).sum(axis=1),
    )


def orthonormal(rng, n, k):
    """Return k orthonormal columns that are orthogonal to the vector of ones."""
    with_ones = np.column_stack([np.ones(n), rng.standard_normal((n, k))])
    return np.linalg.qr(with_ones)[0][:, 1:]


def mixing(rng, p, condition):
    """Return an invertible matrix (p, p) with singular values from 1 down to 1 / condition."""
    left, right = np.linalg.qr(rng.standard_normal((p, p)))[0], np.linalg.qr(rng.standard_normal((p, p)))[0]
    return (left * np.geomspace(1.0, 1.0 / condition, p)) @ right


def planted(rng, n, rho, *, q=None, condition=1.0, mean=0.0):
    """Return activations x (n, p) and y (n, q) whose canonical correlations are `rho`, p = len(rho) <= q.

    A and E are orthonormal and orthogonal to the ones vector, B = A rho + E sqrt(1 - rho^2); both are then mixed with
    the condition number given, scaled to unit deviation and moved by `mean` deviations.
    """
    rho = np.asarray(rho, dtype=np.float64)
    p = rho.size
    q = p if q is None else q
    both = orthonormal(rng, n, p + q)
    a, b = both[:, :p], both[:, p:].copy()
    b[:, :p] = a * rho + b[:, :p] * np.sqrt(1 - rho**2)
    scale = np.sqrt(n)
    return a @ mixing(rng, p, condition) * scale + mean, b @ mixing(rng, q, condition) * scale + mean


def batch_norm(x):
    """Return every neuron at mean zero and deviation one."""
    z = centred(x)
    return z / z.std(axis=0)


def to_bfloat16(x):
    """Return `x` rounded to the nearest bfloat16, ties to even, as float32."""
    bits = np.asarray(x, dtype=np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def wachter_mean(p, q, n):
    """Return the mean canonical correlation of independent data: the integral of rho over the Wachter density."""
    m = n - 1
    p, q = min(p, q), max(p, q)
    c1, c2 = p / m, q / m
    low, high = ((np.sqrt(c1 * (1 - c2)) + sign * np.sqrt(c2 * (1 - c1))) ** 2 for sign in (-1, 1))
    angle = (np.arange(20_000) + 0.5) * np.pi / 20_000  # midpoint rule after x = middle + half cos: smooth
    half = (high - low) / 2
    x = (high + low) / 2 + half * np.cos(angle)
    density = half * np.sin(angle) / (2 * np.pi * c1 * x * (1 - x))
    return float((np.sqrt(x) * density * half * np.sin(angle)).sum() * np.pi / 20_000)


def draw(rng: np.random.Generator, p: int, q: int, m: int, count: int) -> np.ndarray:
    """Return canonical correlations of independent Gaussian data, (count, p) descending, without making any data.

    Singular values of a bidiagonal matrix of beta variates (Edelman & Sutton 2008); p <= q and p + q <= m.
    """
    i, j = np.arange(1, p + 1), np.arange(1, p)
    c2 = rng.beta((q - p + i) / 2, (m - q - p + i) / 2, (count, p))
    d2 = rng.beta(j / 2, (m - 2 * p + 1 + j) / 2, (count, p - 1))
    c, s, d, e = np.sqrt(c2), np.sqrt(1 - c2), np.sqrt(d2), np.sqrt(1 - d2)
    b = np.zeros((count, p, p))
    b[:, 0, 0] = c[:, -1]
    k = np.arange(1, p)
    b[:, k, k] = c[:, p - 1 - k] * e[:, p - 1 - k]
    b[:, k - 1, k] = -s[:, p - k] * d[:, p - 1 - k]
    return np.asarray(np.linalg.svd(b, compute_uv=False))
