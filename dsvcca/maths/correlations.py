"""From two bases to canonical correlations.

Everything here starts from the cross block M = U_x^H U_y of two bases (`cross`), centred and corrected for what
storing U in few bits did to it (`corrected`). Its singular values are the canonical correlations (Björck & Golub
1973); its singular vectors are the canonical directions.
"""

from __future__ import annotations

from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import (
    Array,
    adjoint,
    like,
    namespace,
)
from dsvcca.maths.basis import Basis

EXCESS = 1e-6
"""A canonical correlation above 1 + EXCESS is an error, below it rounding."""


def corrected(cross: Array, sums_x: Array, sums_y: Array, count: int, inverse_x: Array, inverse_y: Array) -> Array:
    """Return C = L_x^-1 (M - conj(u_x) u_y^T / n) L_y^-H, the cross block of exactly orthonormal bases.

    Parameters
    ----------
    cross : (..., k_x, k_y)
        M, the float64 sum of products of the stored columns.
    sums_x, sums_y : (..., k_x), (..., k_y)
        Sums of the stored columns.
    count : int
        Rows, n.
    inverse_x, inverse_y : (..., k_x, k_x), (..., k_y, k_y)
        L^-1 of each basis.
    """
    xp = namespace(cross)
    centred = cross - adjoint(sums_x[..., None, :]) * sums_y[..., None, :] / count
    return xp.matmul(xp.matmul(inverse_x, centred), adjoint(inverse_y))


def correlations_of(c: Array, *, as_found: bool = False) -> Array:
    """Return the canonical correlations (..., min(k_x, k_y)) of cross blocks (..., k_x, k_y), largest first.

    By eigenvalues of C C^H: good to 1e-8 absolutely, which is enough for sums and means over them. Those above 1 are
    cut or, beyond rounding, an error; `as_found` leaves them to the caller.
    """
    xp = namespace(c)
    return _roots(xp.linalg.eigvalsh(_smaller_gram(c)), as_found)


def smaller_side(c: Array, *, as_found: bool = False) -> tuple[Array, Array]:
    """Return correlations (..., k) and left vectors (..., k, k) of cross blocks whose left side is the smaller one."""
    xp = namespace(c)
    squared, vectors = xp.linalg.eigh(_smaller_gram(c))
    return _roots(squared, as_found), xp.flip(vectors, axis=-1)


def _smaller_gram(c: Array) -> Array:
    small = c if c.shape[-2] <= c.shape[-1] else adjoint(c)
    return namespace(c).matmul(small, adjoint(small))


def _roots(squared: Array, as_found: bool) -> Array:
    """Return correlations from ascending eigenvalues of C C^H."""
    xp = namespace(squared)
    if not as_found:
        check_excess(float(xp.max(squared)) ** 0.5)
    return xp.sqrt(xp.clip(xp.flip(squared, axis=-1), 0.0, None if as_found else 1.0))


def check_excess(largest: float) -> None:
    """Raise if the largest canonical correlation is above 1 by more than rounding."""
    if not largest <= 1 + EXCESS:
        raise DsvccaError(
            f"a canonical correlation of {largest:.6f} was found where 1 is the largest possible: "
            "the bases are not orthonormal; remove the workspace and run again, and report it if it stays"
        )


def whitening(basis: Basis, f: int, inverse: Array) -> Array:
    """Return W (c, k) with z W the orthonormal columns of a frequency: V S^-1 L^-H, from S V^H."""
    s = like(basis.singular_values[f, : int(basis.ranks[f])], inverse)
    xp = namespace(inverse)
    return xp.matmul(adjoint(basis.blocks[f].components) / (s * s), adjoint(inverse))
