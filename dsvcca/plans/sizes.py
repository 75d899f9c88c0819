"""What tasks cost: bytes of memory and flops, from shapes and views alone.

Everything here is an estimate from above: plans refuse by it, and `benchmarks/` holds it against what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2, prod

from dask.utils import format_bytes

from dsvcca.activations.pieces import PIECE
from dsvcca.errors import DsvccaError
from dsvcca.maths.frequencies import half_spectrum
from dsvcca.maths.views import GRID, LEAST, NEURONS, View, grid_datapoints, view_space, viewed_shape
from dsvcca.maths.wide import MOST_SAMPLES, POWERS, SAMPLES, SPARE, STRIDE
from dsvcca.workspace.packs import PACK

SHAPE = 64
"""Both sides of a product are multiples of so many columns: no edges."""

SLACK = 16
"""Columns of zeros after the last basis, at least: pairs are cut out in sizes up to that much larger than they are."""

STRIP = 512
"""Columns of one side in one matrix product."""

APART = 400 << 20
"""Bytes of arrays up to which products are kept apart by folds: more of them cost more to come by than they save."""

STACKS = 16 << 20
"""Bytes of products by folds that are solved together."""

PROCESS = 184 << 20
"""Bytes of a worker process before it holds any array."""

USABLE = 0.7
"""Share of a worker's memory that a plan uses: above it Dask begins to warn and to spill."""

SEGMENT_BYTES = 2 << 30
"""Bytes of activations in one segment of a representation, or of several side by side, about."""

EXACT_UP_TO = 20_000
"""Rows or columns, the fewer of them, up to which the Gram of all is made."""


@dataclass(frozen=True)
class Size:
    """How large a representation is under its view.

    Attributes
    ----------
    rows, columns : int
        n, and c of each frequency.
    space : tuple of int
        Sizes of the axes that were transformed.
    step : int
        Numbers of activations, as stored, in one step of the grid.
    step_rows : int
        Rows in one step of the grid.
    unit : int
        Bytes of the least that can be read at once, where that is much.
    itemsize : int
        Bytes of a number as it is kept in memory, where it is not transformed.
    """

    rows: int
    columns: int
    space: tuple[int, ...]
    step: int
    step_rows: int
    unit: int = 0
    itemsize: int = 8

    @property
    def held(self) -> int:
        """Bytes of all rows, kept between two passes."""
        return self.rows * self.width * (9 if self.space else self.itemsize)

    @property
    def frequencies(self) -> int:
        return len(half_spectrum(self.space).weights)

    @property
    def width(self) -> int:
        """Numbers in a row, over all frequencies."""
        return self.columns * prod(self.space)

    @property
    def most(self) -> int:
        """Directions there could be at most."""
        return min(self.columns, self.rows) * prod(self.space)


def size_of(shape: tuple[int, ...], view: View, tokens: int | None = None) -> Size:
    """Return the size of activations (n, *space, c) under a view; of sequences only `tokens` positions are rows."""
    if view.name == "positions":
        _, rows, columns = viewed_shape(shape, view)
        return size_of((rows if tokens is None else tokens, columns), NEURONS)
    _, rows, columns = viewed_shape(shape, view)
    step = min(shape[0], grid_datapoints(shape, view))
    return Size(rows, columns, view_space(shape, view), step * prod(shape[1:]), step * rows // shape[0])


def moments_bytes(sizes: Sequence[Size]) -> int:
    """Return the bytes of the moments of representations side by side."""
    columns = sum(size.columns for size in sizes)
    return (16 if sizes[0].space else 8) * sizes[0].frequencies * columns**2


def segment_rows(sizes: Sequence[Size], row_bytes: int, segment: int) -> int:
    """Return the datapoints of one segment of about `segment` bytes, a power of two; `row_bytes` are those of one.

    Several times as large as their moments, which are written and read once a segment.
    """
    most = max(segment, segment * moments_bytes(sizes) // (SEGMENT_BYTES // 16)) // row_bytes
    return max(LEAST, 1 << max(0, most.bit_length() - 1))


def segment_memory(sizes: Sequence[Size]) -> int:
    """Return the bytes of arrays that adding up a segment takes, or merging the segments, whichever is more."""
    adding = moments_bytes(sizes) + sum(14 * size.step + 3 * min(PIECE, 8 * size.rows * size.width) for size in sizes)
    merging = 2 * moments_bytes(sizes) + sum(4 * moments_bytes([size]) for size in sizes)
    return max(adding, merging) + (64 << 20)


def projection_memory(size: Size, width: int) -> int:
    """Return the bytes of arrays that making the columns of a segment takes, of which `width` are kept."""
    maps = 3 * 16 * size.columns * width + 8 * 2 * width**2 // size.frequencies
    return maps + 14 * size.step + 24 * size.step_rows * width + (160 << 20)


def whitening_route(size: Size) -> str:
    """Return how an aspect of one frequency is whitened: through the Gram of the fewer, or a sketch if both are many.

    >>> [whitening_route(Size(n, p, (), 0, 0)) for n, p in ((5000, 300), (5000, 50_000), (100_000, 50_000))]
    ['covariance', 'dual', 'randomised']
    """
    if size.space or size.columns <= min(size.rows, EXACT_UP_TO):
        return "covariance"
    return "dual" if size.rows <= EXACT_UP_TO else "randomised"


def dual_memory(size: Size, width: int, at_once: int = STRIDE) -> int:
    """Return the bytes of arrays of the dual route with so many columns as stored in memory, twice while joined."""
    n = size.rows
    held = 2 * size.itemsize * n * min(at_once, size.columns)
    return max(4 * 8 * n * n, _dual_pass(size, width) + held) + (48 << 20)  # the eigenproblem, or a pass


def _dual_pass(size: Size, width: int) -> int:
    """Return the bytes of a pass: Gram or vectors, columns and components that are kept, a stride as float64."""
    n, c = size.rows, size.columns
    return 8 * n * n + 24 * n * width + 16 * width * c + 4 * 8 * n * min(STRIDE, c)


def columns_at_once(size: Size, budget: int, width: int) -> int:
    """Return the columns that the dual route may hold as they are stored, in a pass where `width` are kept."""
    return max(STRIDE, (budget - (48 << 20) - _dual_pass(size, width)) // (2 * size.itemsize * size.rows))


def sketch_memory(size: Size, samples: int) -> int:
    """Return the bytes of arrays of the randomised route with a sketch of so many columns."""
    slab = 20 * size.step + 8 * size.step_rows * samples
    return 8 * size.columns * (6 * samples + 40) + slab + 12 * size.rows * samples + (96 << 20)


def sampled(size: Size, width: int, budget: int) -> int:
    """Return the columns of the sketch that `width` directions take, doubled until it holds them."""
    samples = SAMPLES
    while samples < width + SPARE:
        samples *= 2
    return min(samples, most_samples(size, budget), size.rows - 1, size.columns)


def most_samples(size: Size, budget: int) -> int:
    """Return the columns that a sketch may have in a task's memory."""
    samples = MOST_SAMPLES
    while samples > SAMPLES and sketch_memory(size, samples) > budget:
        samples //= 2
    return samples


def holds_whole(size: Size, budget: int) -> bool:
    """Return whether the rows of a representation stay in memory between its two passes."""
    return size.held <= budget // 3


def pack_memory(budget: int) -> int:
    """Return the bytes of columns that a pack may hold; two of them are in memory at once."""
    return budget // 8


def streams(size: Size, budget: int) -> bool:
    """Return whether the columns of a basis go to disk step by step, in a pack of their own."""
    return 4 * size.rows * size.most > pack_memory(budget)


def reduce_memory(size: Size, width: int, budget: int) -> int:
    """Return the bytes of arrays that reducing one representation takes, of whose columns `width` are kept."""
    c, f = size.columns, size.frequencies
    if size.space:
        grams = 16 * f * c * c * 6 + 128 * c * c  # Gram, eigenvectors, maps, what is kept; products of one frequency
        slab = 5 * size.step + 18 * size.step_rows * width  # stored; columns made, joined, stored
        slab += 0 if holds_whole(size, budget) else 9 * size.step  # transformed
    else:
        grams = 8 * c * c * 5  # running Gram, the whole of it and its parts, eigenvectors, LAPACK's work
        slab = 8 * size.step_rows * c * 2 + 12 * size.step  # rows shifted, projected; what they come from
    held = size.held if holds_whole(size, budget) else 0
    columns = 2 * min(pack_memory(budget), 4 * size.rows * PACK)  # packs before, one being written
    columns += 0 if streams(size, budget) else 8 * size.rows * width
    return grams + slab + held + columns + max(48 << 20, 3 * size.unit)  # pieces as read, one ahead


def basis_memory(size: Size, width: int, budget: int, route: str, rank: int | None = None) -> int:
    """Return the bytes of arrays that making one basis takes in one task, of which `width` columns are kept.

    `rank` is what the rank rule asks for, if it asks for a number.
    """
    if route == "dual":
        return max(dual_memory(size, k, columns_at_once(size, budget, k)) for k in (1, width))
    if route == "randomised":
        return sketch_memory(size, sampled(size, width, budget) if rank is None else rank + SPARE)
    return reduce_memory(size, width, budget)


def check_room(what: str, needed: int, budget: int, more: str = "") -> None:
    """Raise if a task needs more than its budget; `more` is other advice."""
    if needed > budget:
        raise DsvccaError(
            f"{what} needs {format_bytes(needed)} of arrays in a task, memory="
            f"{format_bytes(round((budget + PROCESS) / USABLE))} leaves {format_bytes(budget)}: raise memory to "
            f"{ceil((needed + PROCESS) / USABLE / 2**30 * 10) / 10} GiB or more{more}"
        )


def padded(columns: int) -> int:
    """Return the columns of a slab that holds so many of one frequency."""
    return -(-(columns + SLACK) // SHAPE) * SHAPE


def tile_memory(x: Sequence[int], y: Sequence[int] | None, n: int, blocks: int = 0, folds: int = 0) -> int:
    """Return the bytes of arrays that correlating so many columns at some frequencies takes, n rows of them.

    Parameters
    ----------
    x, y : sequence of int
        Columns of both sides at each frequency; y None if both sides are one.
    blocks : int
        Bytes of what belongs to the columns of both sides at one frequency.
    folds : int
        Of rows, of which products are kept apart; 0 where they are not.
    """
    right = x if y is None else y
    slabs = 4 * min(n, 2 * GRID) * (sum(x) + (0 if y is None else sum(y)))  # one in use, one being read
    strip = min(STRIP, max(x)) * (8 * max(right) + 4 * min(n, GRID))  # its product, its copy
    products = (4 * folds or 8) * sum(i * j for i, j in zip(x, right, strict=True))
    return max(slabs + strip, blocks) + products + (48 << 20)  # blocks are for the solves; a chunk as read, stacks


def spread(total: int, most: int, frequencies: int) -> list[int]:
    """Return columns at each frequency, as unevenly as they can be if there are at most so many at one.

    >>> spread(70, 32, 4), spread(70, 100, 1)
    ([32, 32, 6, 0], [70])
    """
    return [max(0, min(most, total - f * most)) for f in range(frequencies)]


def block_bytes(rank: int, columns: int, weight: int) -> int:
    """Return the bytes of what belongs to the columns of one basis at one frequency: as read, and inverted."""
    return 8 * weight * rank * (2 * rank + 2 * columns)


def solve_bytes(k_x: int, k_y: int) -> int:
    """Return the bytes of one comparison while it is solved, with vectors: fourteen matrices were counted."""
    return 8 * 14 * k_x * k_y


def parts_bytes(columns: int, widest: int, folds: int) -> int:
    """Return the bytes of Grams by folds, twice, of bases with so many columns together, `widest` each at most."""
    return 2 * 4 * folds * columns * widest


def transform_flops(size: Size) -> float:
    """Return the flops of one transform of all rows; 0 where there is none."""
    return 2.5 * size.rows * size.width * log2(max(2, prod(size.space))) if size.space else 0.0


def reduce_flops(size: Size, width: int, route: str = "covariance") -> float:
    """Return the flops of whitening: Gram, eigenvectors, projection to `width` columns and their Gram."""
    n, c, f = size.rows, size.columns, size.frequencies
    if route == "dual":
        return float(n * n * c + 9 * n**3 + 2 * n * c * width + n * width**2)
    if route == "randomised":
        samples = max(SAMPLES, width + SPARE)
        return float((POWERS + 1) * (4 * n * c * samples + 4 * c * samples**2) + 2 * n * c * width + n * width**2)
    if not size.space:
        return float(n * c * c + 9 * c**3 + 2 * n * c * width + n * width**2)
    return f * (4.0 * n * c * c + 36.0 * c**3) + 4.0 * n * c * width + n * width**2 / f
