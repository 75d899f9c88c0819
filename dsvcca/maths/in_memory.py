"""Two arrays in memory, up to the cross block of their bases."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dsvcca.errors import DsvccaError, DsvccaWarning
from dsvcca.maths.arrays import (
    Array,
    NumpyArray,
    adjoint,
    detached,
    device,
    inverse_cholesky,
    like,
    namespace,
    significand_bits,
)
from dsvcca.maths.basis import Basis, RankRule
from dsvcca.maths.correlations import check_excess, corrected, whitening
from dsvcca.maths.moments import Moments, Rows, grid_steps
from dsvcca.maths.views import NEURONS, grid_datapoints
from dsvcca.maths.whiten import (
    ONE,
    Spectrum,
    check_numbers,
    checked_moments,
    decompose,
    kept_directions,
    whiten_in_memory,
)

EXACT = 1e-11
"""Rounding of correlations from moments alone, eps times the squared condition number, up to which they are taken."""


def correlations_in_memory(x: Array, y: Array, rule: RankRule) -> Array:
    """Return the canonical correlations (c,) of two sets of activations alone, largest first; as `cca` finds them."""
    x, y = checked_sides(x, y)
    c, _, _ = cross_block(x, y, rule)
    warn_of_few_rows(x.shape[0], c.shape[0], c.shape[1], above=1)
    rho = namespace(c).linalg.svdvals(c)
    check_excess(float(rho[0]))
    return namespace(c).clip(rho, 0.0, 1.0)


class Maps(NamedTuple):
    """Of one side: map (k, p) to orthonormal columns, loadings F (k, p) back, mean (p,) and norms (p,) of neurons.

    And all singular values that are not zero.
    """

    map: Array
    loadings: Array
    mean: Array
    norms: Array
    singular_values: NumpyArray


def maps_of(basis: Basis, inverse: Array) -> Maps:
    """Return the maps of a basis of one frequency, `inverse` being L^-1."""
    first = basis.blocks[0]
    back = adjoint(whitening(basis, 0, inverse))
    return Maps(back, first.loadings, basis.mean[0, :], basis.neuron_norms, _not_zero(basis))


def _not_zero(of: Basis | Spectrum) -> NumpyArray:
    """Return the singular values of one frequency that are not zero."""
    return of.singular_values[0, : of.nonzero]


def cross_block(x: Array, y: Array, rule: RankRule) -> tuple[Array, Maps, Maps]:
    """Return the cross block (k_x, k_y) of orthonormal bases of both sides, and what maps each side to its own.

    From moments alone where that is exact; else the columns are made, and their own Gram corrects what rounding did.
    """
    grid = min(grid_datapoints(tuple(array.shape), NEURONS) for array in (x, y))
    sides = [in_moments(array, rule, name, grid) for array, name in ((x, "x"), (y, "y"))]
    n = x.shape[0]
    xp = namespace(x, y)
    if all(side.condition**2 * np.finfo(np.float64).eps <= EXACT for side in sides):
        cross = sum(xp.matmul(adjoint(a), b) for a, b in zip(*(side.slabs() for side in sides), strict=True))
        offsets = [(side.moments.sums / n)[0, :] for side in sides]
        cross = cross - n * adjoint(offsets[0][None, :]) * offsets[1][None, :]
        maps = [Maps(*side.maps(), side.moments.mean[0, :], side.norms, _not_zero(side.spectrum)) for side in sides]
        return xp.matmul(xp.matmul(maps[0].map, cross), adjoint(maps[1].map)), *maps
    (u_x, bx), (u_y, by) = (whiten_in_memory(array, rule, name) for array, name in ((x, "x"), (y, "y")))
    m = sum(xp.matmul(adjoint(u_x[step, :]), u_y[step, :]) for step in grid_steps(n))
    inverses = [inverse_cholesky(basis.blocks[0].cholesky) for basis in (bx, by)]
    c = corrected(m, bx.blocks[0].column_sums, by.blocks[0].column_sums, n, *inverses)
    found = [maps_of(basis, inverse) for basis, inverse in zip((bx, by), inverses, strict=True)]
    return c, found[0], found[1]


def checked_sides(x: Array, y: Array, *, maps: bool = False) -> tuple[Array, Array]:
    """Return two arrays after checking that they can be compared; `maps` have space between rows and channels."""
    x, y = checked_array(x, "x", maps=maps), checked_array(y, "y", maps=maps)
    if x.shape[0] != y.shape[0]:
        turned = x.ndim == 2 == y.ndim and x.shape[1] == y.shape[1]
        raise DsvccaError(
            f"x has {x.shape[0]} datapoints and y has {y.shape[0]}: "
            "both must hold the same datapoints in the same order"
            + (f"; if datapoints are the other axis of {x.shape[1]}, give x.T and y.T" if turned else "")
        )
    if type(x) is not type(y) or device(x) != device(y):
        raise DsvccaError(
            f"x is a {type(x).__module__} array on {device(x)} and y a {type(y).__module__} array on {device(y)}: "
            "bring both to one library and device"
        )
    return x, y


def warn_of_few_rows(n: int, k_x: int, k_y: int, above: int = 0) -> None:
    """Warn where the number of rows alone makes correlations large; `above` the caller are so many of our functions."""
    if k_x + k_y > n - 1:
        warnings.warn(
            f"{k_x + k_y - n + 1} of {min(k_x, k_y)} canonical correlations are 1 whatever the data: "
            f"{k_x} + {k_y} kept directions in {n} rows; use more datapoints or keep fewer directions",
            DsvccaWarning,
            stacklevel=3 + above,
        )
    elif n < 5 * (k_x + k_y):
        warnings.warn(
            f"{n} rows are fewer than 5 for each of the {k_x} + {k_y} kept directions: correlations of unrelated "
            "activations will look large; use more datapoints or keep fewer directions",
            DsvccaWarning,
            stacklevel=3 + above,
        )


def checked_array(array: Array, name: str, *, maps: bool = False) -> Array:
    """Return an array of real numbers (n, neurons), or with `maps` (n, *space, channels)."""
    try:
        array = detached(array)
        namespace(array)
    except TypeError:
        try:
            array = np.asarray(array)
        except ValueError as error:
            raise DsvccaError(f"{name} is not an array ({error}): give (datapoint, neuron)") from error
    if type(array).__module__.startswith("dask."):
        raise DsvccaError(
            f"{name} is a dask array, and this function works in memory: give {name}.compute(), or write it into a "
            "store (create_store, store.write), from which plans compare what is larger than memory"
        )
    if isinstance(array, np.ma.MaskedArray):
        raise DsvccaError(f"{name} is a masked array: give the rows of which every number is there")
    if maps and array.ndim < 3:
        raise DsvccaError(
            f"{name} has {array.ndim} axes {tuple(array.shape)}: give maps (datapoint, height, width, channel) or "
            "sequences (datapoint, position, neuron); for dense layers use cca()"
        )
    if not maps and array.ndim != 2:
        raise DsvccaError(
            f"{name} has {array.ndim} axes {tuple(array.shape)}: give (datapoint, neuron)"
            + (
                "; average maps over space first, take every position as a row, or use dft_cca()"
                if array.ndim > 2
                else f", one neuron as {name}[:, None]"
            )
        )
    if 0 in array.shape:
        raise DsvccaError(f"{name} is empty, shape {tuple(array.shape)}: an axis of length 0 holds nothing to compare")
    xp = namespace(array)
    if xp.isdtype(array.dtype, "complex floating"):
        raise DsvccaError(f"{name} is complex ({array.dtype}): give real activations")
    return array


@dataclass(frozen=True)
class InMoments:
    """One side of a comparison in memory, as far as its moments say.

    Attributes
    ----------
    moments : Moments
    spectrum : Spectrum
    rank : int
        Kept directions.
    condition : float
        Largest over smallest singular value of those.
    slabs : function
        Starts a pass over the shifted rows, (m, c) at a time.
    """

    moments: Moments
    spectrum: Spectrum
    rank: int
    condition: float
    slabs: Callable[[], Iterator[Array]]

    @property
    def norms(self) -> Array:
        """Norms (c,) of the centred columns."""
        xp = namespace(self.moments.gram)
        powers = xp.linalg.diagonal(self.moments.comoment(0))
        return xp.sqrt(xp.maximum(powers, 0.0 * powers))

    def maps(self) -> tuple[Array, Array]:
        """Return a map (k, c) of centred rows to orthonormal columns, and loadings F (k, c) that give them back."""
        xp = namespace(self.moments.gram)
        if self.rank == self.moments.gram.shape[1]:  # any orthonormal basis of all columns will do, and this is cheap
            cholesky = xp.linalg.cholesky(self.moments.comoment(0))
            return inverse_cholesky(cholesky), adjoint(cholesky)
        vectors = adjoint(self.spectrum.vectors[0](self.rank))
        s = like(self.spectrum.singular_values[0, : self.rank, None], vectors)
        return vectors / s, vectors * s


def in_moments(x: Array, rule: RankRule, name: str, grid: int) -> InMoments:
    """Return what the moments of activations (n, c) in memory say, `grid` rows at a time."""
    rows = Rows(lambda: iter((x,)), tuple(x.shape), NEURONS, keep=True, grid=grid)
    moments = checked_moments([rows], [name])
    bits = significand_bits(x.dtype)
    check_numbers(rows.largest, bits, name)
    spectrum = decompose(moments, ONE, rows.largest, bits)
    [rank] = kept_directions(rule, spectrum.singular_values, spectrum.nonzero, moments.count, name).tolist()
    s = spectrum.singular_values[0]
    return InMoments(moments, spectrum, rank, float(s[0] / s[rank - 1]), lambda: (slab[0, :, :] for slab in rows()))
