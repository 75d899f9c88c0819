"""Canonical correlations of maps, frequency by frequency, for two arrays in memory (Raghu et al. 2017, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np

from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import Array, NumpyArray, adjoint, as_float64, device, from_pairs, inverse_cholesky, namespace
from dsvcca.maths.basis import Basis, RankRule
from dsvcca.maths.correlations import check_excess, corrected, whitening
from dsvcca.maths.frequencies import half_spectrum, to_frequencies, to_space, unfolded
from dsvcca.maths.in_memory import checked_array, checked_sides, warn_of_few_rows
from dsvcca.maths.moments import grid_steps
from dsvcca.maths.views import meet, spelled
from dsvcca.maths.whiten import whiten_in_memory


@dataclass(frozen=True, repr=False)
class FrequencyCorrelations:
    """Canonical correlations of two sets of maps at every frequency, and the directions that give them.

    Attributes
    ----------
    view : str
        "dft", or "alias-empirical" for maps of different sizes: the larger is brought to the grid of the smaller.
    frequencies : (f, axes) int, NumPy
        The bins of the grid, cycles along each axis; of each pair of conjugate bins one.
    weights : (f,) int, NumPy
        Directions of space that each stands for: 1, or 2 for a pair of bins.
    correlations : f arrays (k_f,) float64
        Descending, in [0, 1]; k_f is the smaller of the two ranks at that frequency.
    x_rank, y_rank : int
        Directions kept on each side, over all of space.
    x_directions, y_directions : (*space, c, k) float64
        Filters over the space of each side, k the largest of the k_f: circular convolution of the centred maps with
        filter i gives maps whose (orthonormal) transform at every frequency is the i-th canonical variate there
        (`variates`). Position [0, 0] is their centre (`numpy.fft.fftshift` moves it to the middle). A pair of filters
        is defined up to one phase at every frequency: the largest weight of x is real and positive. Nothing at
        frequencies that have fewer.
    x_mean, y_mean : (*space, c) float64
        What is subtracted from the maps before.
    x_weights, y_weights : f arrays (k_f,) float64
        How much of the activations each variate accounts for: the weights of PWCCA.
    """

    view: str
    frequencies: NumpyArray
    weights: NumpyArray
    correlations: tuple[Array, ...]
    x_rank: int
    y_rank: int
    x_directions: Array
    y_directions: Array
    x_mean: Array
    y_mean: Array
    x_weights: tuple[Array, ...]
    y_weights: tuple[Array, ...]

    def __repr__(self) -> str:
        space = spelled(self.x_mean.shape[:-1])
        return (
            f"<{self.view} of maps of {space} and {spelled(self.y_mean.shape[:-1])}: {len(self.weights)} frequencies, "
            f"ranks {self.x_rank} and {self.y_rank}, svcca {self.svcca:.4f}>"
        )

    @property
    def svcca(self) -> float:
        """Mean canonical correlation, every frequency counting alike: sum(w rho) / min(x_rank, y_rank)."""
        return self._sum(self.correlations) / min(self.x_rank, self.y_rank)

    @property
    def r2(self) -> float:
        """Mean squared canonical correlation."""
        return self._sum([rho * rho for rho in self.correlations]) / min(self.x_rank, self.y_rank)

    @property
    def pwcca_x(self) -> float:
        """Projection weighted CCA with the weights from x, one sum over all frequencies; NaN where none is shared."""
        return self._weighted(self.x_weights)

    @property
    def pwcca_y(self) -> float:
        """Projection weighted CCA with the weights from y."""
        return self._weighted(self.y_weights)

    @property
    def by_frequency(self) -> NumpyArray:
        """Mean canonical correlation at each frequency, (f,) float64; NaN where nothing is kept on one side."""
        means = [float(namespace(rho).mean(rho)) if rho.shape[0] else np.nan for rho in self.correlations]
        return np.asarray(means)

    def variates(self, *, x: Array | None = None, y: Array | None = None) -> Array | tuple[Array, Array]:
        """Return canonical variates as maps (n, *grid, k), of activations (n, *space, c) like those compared.

        Parameters
        ----------
        x, y : array, optional
            Give one, or both: then a pair is returned.
        """
        if x is None and y is None:
            raise DsvccaError("variates() was given no activations: pass x=, y= or both")
        grid = tuple(map(min, self.x_mean.shape[:-1], self.y_mean.shape[:-1]))
        of_x = None if x is None else _filtered(x, self.x_mean, self.x_directions, grid, "x")
        of_y = None if y is None else _filtered(y, self.y_mean, self.y_directions, grid, "y")
        if of_x is not None and of_y is not None:
            return of_x, of_y
        return of_y if of_x is None else of_x

    def _sum(self, parts: Sequence[Array]) -> float:
        return sum(int(w) * float(namespace(one).sum(one)) for w, one in zip(self.weights, parts, strict=True))

    def _weighted(self, weights: Sequence[Array]) -> float:
        total = self._sum(weights)
        weighted = self._sum([a * rho for a, rho in zip(weights, self.correlations, strict=True)])
        return weighted / total if total else float("nan")


def dft_cca(
    x: Array, y: Array, *, variance: float = 1.0, criterion: str = "variance", center: str = "all"
) -> FrequencyCorrelations:
    """Canonical correlations of two sets of maps, frequency by frequency.

    If the rows hold all translations of their images, this is CCA of the flattened maps, exactly (Raghu et al. 2017,
    theorem 1). One rank rule counts over all frequencies together. Maps of different sizes, of which one divides the
    other along every axis, meet on the smaller grid.

    Parameters
    ----------
    x, y : (n, *space, c) array of any array API library
        Activations, datapoints first and channels last: images (n, h, w, c), sequences (n, t, c), volumes.
    variance : float, default 1.0
        Share of variance to keep on each side; 1.0 keeps every non-zero direction.
    criterion : {"variance", "singular"}, default "variance"
    center : {"all", "dc"}, default "all"
        Subtract the mean of every frequency, or that of frequency 0 alone, which is what all translations of every
        image would give; an image common to all datapoints then counts as signal.

    Returns
    -------
    FrequencyCorrelations

    Raises
    ------
    DsvccaError
        If shapes do not fit, sizes do not divide, a number is not finite, or too few rows are left at a frequency.

    Examples
    --------
    A convolution that can be undone changes nothing.

    >>> x = np.random.default_rng(0).standard_normal((300, 4, 4, 3))
    >>> y = 2 * x + 0.5 * np.roll(x, 1, axis=2)
    >>> round(dft_cca(x, y).svcca, 6)
    1.0
    """
    if center not in ("all", "dc"):
        raise DsvccaError(f"center={center!r} is unknown: use 'all' or 'dc'")
    x, y = checked_sides(x, y, maps=True)
    spaces = tuple(x.shape[1:-1]), tuple(y.shape[1:-1])
    try:
        meeting = meet("dft", *spaces)
    except DsvccaError:
        raise DsvccaError(
            f"x has maps of {spelled(spaces[0])} and y of {spelled(spaces[1])}: they need one size, or along every "
            "axis one that divides the other; channels come last, (datapoint, height, width, channel)"
        ) from None
    rule = RankRule(variance, criterion)
    u_x, b_x = whiten_in_memory(x, rule, "x", view=meeting.x, center=center)
    u_y, b_y = whiten_in_memory(y, rule, "y", view=meeting.y, center=center)
    warn_of_few_rows(b_x.count, int(b_x.ranks.max()), int(b_y.ranks.max()))
    blocks = []
    for f, (u, v) in enumerate(zip(_cut(u_x, b_x), _cut(u_y, b_y), strict=True)):
        m = sum(namespace(u).matmul(adjoint(u[step, :]), v[step, :]) for step in grid_steps(u.shape[0]))
        blocks.append(from_pairs(m) if b_x.weights[f] == 2 else m)
    return frequency_correlations(meeting.name, spaces, b_x, b_y, blocks)


def frequency_correlations(
    view: str, spaces: tuple[tuple[int, ...], tuple[int, ...]], b_x: Basis, b_y: Basis, products: Sequence[Array]
) -> FrequencyCorrelations:
    """Return what products (k_x, k_y) of the columns of two bases, as they are, say of every frequency.

    Parameters
    ----------
    spaces : pair of tuple
        Sizes of the maps of both sides.
    """
    half = half_spectrum(b_x.space)
    solved = [_solved(m, b_x, b_y, f) for f, m in enumerate(products)]
    rho, left, right, weights_x, weights_y = zip(*solved, strict=True)
    return FrequencyCorrelations(
        view=view,
        frequencies=half.bins,
        weights=half.weights,
        correlations=rho,
        x_rank=b_x.rank,
        y_rank=b_y.rank,
        x_directions=_filters(left, spaces[0], b_x.space),
        y_directions=_filters(right, spaces[1], b_y.space),
        x_mean=_mean_map(b_x, spaces[0]),
        y_mean=_mean_map(b_y, spaces[1]),
        x_weights=weights_x,
        y_weights=weights_y,
    )


def _cut(columns: Array, basis: Basis) -> list[Array]:
    """Return the real columns (n, k or 2k) of each frequency."""
    ends = np.cumsum([0, *(basis.ranks * basis.weights)]).tolist()
    return [columns[:, a:b] for a, b in pairwise(ends)]


def _solved(m: Array, b_x: Basis, b_y: Basis, f: int) -> tuple[Array, Array, Array, Array, Array]:
    """Return correlations, directions (c, k) and PWCCA weights of both sides at one frequency."""
    xp = namespace(m)
    one, other = b_x.blocks[f], b_y.blocks[f]
    if not min(m.shape):
        nothing = xp.zeros((0,), dtype=xp.float64, device=device(m))
        return nothing, one.components.T[:, :0], other.components.T[:, :0], nothing, nothing
    inverses = inverse_cholesky(one.cholesky), inverse_cholesky(other.cholesky)
    c = corrected(m, one.column_sums, other.column_sums, b_x.count, *inverses)
    left, rho, right = xp.linalg.svd(c, full_matrices=False)
    check_excess(float(rho[0]))
    right = adjoint(right)
    w_x = xp.matmul(whitening(b_x, f, inverses[0]), left)
    w_y = xp.matmul(whitening(b_y, f, inverses[1]), right)
    which = xp.argmax(xp.abs(w_x), axis=0)
    largest = xp.stack([w_x[int(row), i] for i, row in enumerate(which)])
    phase = xp.conj(largest) / xp.abs(largest) if b_x.weights[f] == 2 else xp.sign(largest)
    weights = [
        xp.sum(xp.abs(xp.matmul(adjoint(a), block.loadings)), axis=1) for a, block in ((left, one), (right, other))
    ]
    return xp.clip(rho, 0.0, 1.0), w_x * phase, w_y * phase, weights[0], weights[1]


def _filters(directions: Sequence[Array], space: tuple[int, ...], grid: tuple[int, ...]) -> Array:
    """Return directions (c, k_f) of every frequency of a grid as filters (*space, c, k)."""
    xp = namespace(*directions)
    most = max(one.shape[1] for one in directions)
    shape = len(directions), directions[0].shape[0], most
    stacked = xp.zeros(shape, dtype=xp.complex128, device=device(directions[0]))
    for f, one in enumerate(directions):
        stacked[f, :, : one.shape[1]] = xp.astype(one, xp.complex128)
    return _on_space(stacked, space, grid) / prod(grid) ** 0.5


def _mean_map(basis: Basis, space: tuple[int, ...]) -> Array:
    """Return what was subtracted from activations, (*space, c)."""
    xp = namespace(basis.mean)
    if basis.space == space:
        spread = basis.mean
    else:  # of rows, not of directions: at bins that are their own conjugate these are each other's conjugates
        spread = xp.conj(unfolded(xp.conj(basis.mean)[..., None], space, basis.space)[..., 0])
    return xp.reshape(to_space(half_spectrum(space), spread), (*space, spread.shape[1]))


def _on_space(values: Array, space: tuple[int, ...], grid: tuple[int, ...]) -> Array:
    """Return values (f of a grid, columns there, k) as maps (*space, c, k)."""
    xp = namespace(values)
    spread = unfolded(values, space, grid)
    maps = to_space(half_spectrum(space), xp.reshape(spread, (spread.shape[0], -1)))
    return xp.reshape(maps, (*space, *spread.shape[1:]))


def _filtered(x: Array, mean: Array, filters: Array, grid: tuple[int, ...], name: str) -> Array:
    """Return centred maps after circular convolution with filters, at the positions of a grid: (n, *grid, k)."""
    x = checked_array(x, name, maps=True)
    if tuple(x.shape[1:]) != tuple(mean.shape):
        raise DsvccaError(
            f"{name} has the shape {tuple(x.shape)}, the directions were found on maps of {tuple(mean.shape)}"
        )
    xp = namespace(x, mean)
    space, k = tuple(mean.shape[:-1]), filters.shape[-1]
    z = to_frequencies(as_float64(x) - mean)
    w = to_frequencies(xp.moveaxis(filters, -2, 0)) * prod(space) ** 0.5
    v = xp.reshape(xp.matmul(z, w), (z.shape[0], -1))
    maps = xp.reshape(to_space(half_spectrum(space), v), (*space, x.shape[0], k))
    strides = (slice(None, None, large // small) for large, small in zip(space, grid, strict=True))
    sampled = maps[(*strides, ...)]
    return xp.moveaxis(sampled, -2, 0)
