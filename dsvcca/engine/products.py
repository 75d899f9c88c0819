"""Cross blocks of two panels: the large products, in float32, summed in float64 after every step of the grid.

The bits of a product must not depend on which bases share a panel. So slabs are padded with zeros to shapes for which
BLAS has no special routine (`sizes.SHAPE`), and the left side is taken in strips, copied where both sides are one: an
array times itself would take another routine as well. Of each strip only the columns of pairs that are wanted are made,
and what lies between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dsvcca.engine.panel import ROWS, Panel, Shuffled, read_slabs
from dsvcca.maths.arrays import Array, NumpyArray, adjoint, as_float64, namespace, put
from dsvcca.maths.mixing import mixed_ones, unmix
from dsvcca.maths.moments import grid_steps
from dsvcca.maths.resampling import Parts, are_whole_blocks
from dsvcca.plans.sizes import APART, SHAPE, SLACK, STACKS, STRIP, padded, parts_bytes, solve_bytes, tile_memory

TURNED = 1e-7
"""By how much float32 sums of products turn directions, about, where squared correlations differ by 1; their columns
alone, rounded to float32, by a fourth of it if all of them lay in one row."""

AGAIN_ROWS = 2048
"""Rows of float64 columns that are there at once."""

SMALL = 1 << 20
"""Multiplications up to which BLAS may take a routine for small products: others have more."""


@dataclass(frozen=True)
class CrossBlock:
    """The products of two runs of bases at one frequency.

    Attributes
    ----------
    frequency : int
    x_run, y_run : range
    products : (columns of x, columns of y) float64, or (folds, columns of x, columns of y) float32
        Real products of their columns, in all or by folds of the rows, with `sizes.SLACK` or more rows and columns
        beyond them; only what belongs to wanted pairs is there.
    turned : (bases of x, bases of y)
        How far rounding turns directions, about, where squared correlations differ by 1.
    x_parts, y_parts : list of Parts
        Of every basis, where products are by folds.
    """

    frequency: int
    x_run: range
    y_run: range
    products: Array
    turned: NumpyArray
    x_parts: list[Parts]
    y_parts: list[Parts]


def cross_blocks(
    x: Panel,
    y: Panel,
    rows: int,
    wanted: NumpyArray,
    budget: int,
    *,
    bounds: NumpyArray | None = None,
    again: bool = False,
    shuffled: Shuffled | None = None,
) -> Iterator[CrossBlock]:
    """Yield the cross blocks of all wanted pairs, as many frequencies and bases together as the budget allows.

    Parameters
    ----------
    wanted : (bases of x, bases of y) bool
    budget : int
        Bytes.
    bounds : (folds + 1,) int, optional
        Where folds of the rows begin: products are then kept apart.
    again : bool
        Of few pairs, by products of float64.
    shuffled : Shuffled, optional
        Datapoints of every basis in an order of its own.
    """
    folds = 0 if bounds is None else len(bounds) - 1
    for frequencies, most in _groups(x, y, rows, budget, folds):
        for x_run in x.runs(frequencies.start, most):
            for y_run in y.runs(frequencies.start, most):
                here = wanted[x_run.start : x_run.stop, y_run.start : y_run.stop]
                if here.any():
                    if x.is_joint:
                        products = _stored(x, x_run, y, y_run, frequencies)
                        turned = [np.full(here.shape, np.finfo(float).eps * max(x.condition, y.condition) ** 2)]
                    elif again:
                        products, turned = _multiplied_again(x, x_run, y, y_run, frequencies, rows, here)
                    elif bounds is None:
                        products = _multiplied(x, x_run, y, y_run, frequencies, rows, here, shuffled)
                        turned = [np.full(here.shape, TURNED)]
                    else:
                        yield from _by_folds(x, x_run, y, y_run, frequencies, rows, here, bounds)
                        continue
                    for place, f in enumerate(frequencies):  # not kept here: the next run needs the room
                        yield CrossBlock(f, x_run, y_run, products.pop(0), turned[place % len(turned)], [], [])


def _groups(x: Panel, y: Panel, rows: int, budget: int, folds: int) -> Iterator[tuple[range, int]]:
    """Cut the frequencies into groups that fit in the budget, and say how many columns a run may have on each side.

    That is all there are, but where one frequency alone does not fit.
    """
    budget = min(budget - STACKS, APART) if folds else budget
    of_x, of_y = ([padded(width) for width in panel.widths.sum(axis=0).tolist()] for panel in (x, y))
    a_column = max(x.bytes_a_column, y.bytes_a_column)
    widest = max(int(x.widths.max()), int(y.widths.max()))
    solving = solve_bytes(int(x.widths.max()), int(y.widths.max()))

    def needed(group: slice) -> int:
        left, right = of_x[group], of_y[group]
        blocks = solving + int(a_column * (max(left) + max(right)))
        blocks += parts_bytes(max(left) + max(right), widest, folds)
        return tile_memory(left, None if x is y else right, rows, blocks, folds)

    start = 0
    while start < len(of_x):
        stop = start + 1
        while stop < len(of_x) and needed(slice(start, stop + 1)) <= budget:
            stop += 1
        most = max(of_x[start:stop] + of_y[start:stop])
        if needed(slice(start, stop)) > budget:
            while most > SHAPE:
                blocks = solving + int(2 * a_column * most) + parts_bytes(2 * most, widest, folds)
                if tile_memory([most], [most], rows, blocks, folds) <= budget:
                    break
                most = most * 7 // 8
        yield range(start, stop), most
        start = stop


def _multiplied(
    x: Panel,
    x_run: range,
    y: Panel,
    y_run: range,
    frequencies: range,
    rows: int,
    wanted: NumpyArray,
    shuffled: Shuffled | None,
) -> list[Array]:
    """Return the products of the columns of two runs at each frequency."""
    strips = [_strips(x.ends(x_run, f), y.ends(y_run, f), wanted) for f in frequencies]
    found: list[Array] = [None for _ in frequencies]
    for _, every_x, every_y in read_slabs(x, x_run, y, y_run, frequencies, rows, shuffled):
        for place, (u_x, u_y) in enumerate(zip(every_x, every_y, strict=True)):
            found[place] = _add_product(found[place], u_x, u_y, strips[place])
    return found


def _by_folds(
    x: Panel,
    x_run: range,
    y: Panel,
    y_run: range,
    frequencies: range,
    rows: int,
    wanted: NumpyArray,
    bounds: NumpyArray,
) -> Iterator[CrossBlock]:
    """Yield the products of the columns of two runs, and of each basis with itself, fold by fold."""
    folds = len(bounds) - 1
    strips = [_strips(x.ends(x_run, f), y.ends(y_run, f), wanted) for f in frequencies]
    found: list[Array] = [None for _ in frequencies]
    begun: set[int] = set()
    itself = x is y and x_run == y_run
    sides = ((x, x_run),) if itself else ((x, x_run), (y, y_run))
    ends = [[panel.ends(run, f) for f in frequencies] for panel, run in sides]
    parts = [[[Parts(folds, int(w)) for w in np.diff(one)] for one in own] for own in ends]
    for step, *slabs in read_slabs(x, x_run, y, y_run, frequencies, rows):
        count = step.stop - step.start
        ones = put(mixed_ones(step.start, count)[:, None].astype(np.float32))
        if not are_whole_blocks(bounds):
            apart = [[unmix(u[:count, :], step.start) for u in every] for every in slabs[itself:]]
            slabs, ones = apart * 2 if itself else apart, unmix(ones, step.start)
        first, last = np.searchsorted(bounds, [step.start, step.stop - 1], side="right") - 1
        for fold in range(first, last + 1):
            here = slice(max(0, bounds[fold] - step.start), min(step.stop, bounds[fold + 1]) - step.start)
            own_ones = adjoint(_some_rows(ones, here))
            for place, both in enumerate(zip(*slabs, strict=True)):
                u_y = _some_rows(both[1], here)
                u_x = u_y if itself else _some_rows(both[0], here)
                if found[place] is None:
                    found[place] = put(np.zeros((folds, u_x.shape[1], u_y.shape[1]), dtype=np.float32))
                is_first = fold not in begun
                _add_product(found[place][fold, :, :], u_x, u_y, strips[place], is_first=is_first)
                for own, columns, u in zip(parts, ends, (u_x, u_y), strict=False):
                    sums = (own_ones @ u)[0, :]
                    for one, (start, stop) in zip(own[place], pairwise(columns[place].tolist()), strict=True):
                        one.add(fold, u[:, start:stop], sums[start:stop])
            begun.add(fold)
    for place, f in enumerate(frequencies):
        turned = np.full(wanted.shape, TURNED)
        yield CrossBlock(f, x_run, y_run, found.pop(0), turned, parts[0][place], parts[-1][place])


def _some_rows(u: Array, here: slice) -> Array:
    """Return some rows of a slab, `ROWS` or more: zeros beyond them."""
    some = u[here, :]
    if some.shape[0] >= ROWS:
        return some
    return namespace(u).concat([some, put(np.zeros((ROWS - some.shape[0], u.shape[1]), np.float32))], axis=0)


def _strips(x_ends: NumpyArray, y_ends: NumpyArray, wanted: NumpyArray) -> list[tuple[slice, slice]]:
    """Return which columns of y are multiplied with each strip of columns of x."""
    found = []
    for strip in grid_steps(int(x_ends[-1]), STRIP):
        first, last = np.searchsorted(x_ends, [strip.start, strip.stop - 1], side="right") - 1
        here = np.flatnonzero(wanted[first : last + 1].any(axis=0))
        if here.size:
            start = int(y_ends[here[0]]) // SHAPE * SHAPE
            found.append((strip, slice(start, -(-int(y_ends[here[-1] + 1]) // SHAPE) * SHAPE)))
    return found


def _add_product(
    m: Array, u_x: Array, u_y: Array, strips: list[tuple[slice, slice]], *, is_first: bool = False
) -> Array:
    """Return m + U_x^T U_y where it is wanted, or the product alone if it is the first, or where m is None."""
    xp = namespace(u_x)
    columns = u_y.shape[1]
    least = -(-SMALL // (SHAPE * u_y.shape[0] * SHAPE)) * SHAPE
    if columns < least:
        u_y = xp.concat([u_y, put(np.zeros((u_y.shape[0], least - columns), dtype=np.float32))], axis=1)
    is_first = is_first or m is None
    if m is None:
        m = put(np.empty((u_x.shape[1], columns)))
    for strip, wanted in strips:
        width = max(wanted.stop - wanted.start, least)
        start = min(wanted.start, u_y.shape[1] - width)
        left = u_x[:, strip.start : -(-strip.stop // SHAPE) * SHAPE]
        left = xp.asarray(left, copy=True) if u_x is u_y else left
        right, stop = u_y[:, start : start + width], min(start + width, columns)
        here = slice(strip.start, strip.start + left.shape[1]), slice(start, stop)
        if is_first and isinstance(m, np.ndarray) and m.dtype == right.dtype and stop == start + width:
            np.matmul(adjoint(left), right, out=m[here])
            continue
        made = xp.matmul(adjoint(left), right)[:, : stop - start]
        if is_first:
            m[here] = made
        else:
            m[here] += made
    return m


def _multiplied_again(
    x: Panel, x_run: range, y: Panel, y_run: range, frequencies: range, rows: int, wanted: NumpyArray
) -> tuple[list[Array], list[NumpyArray]]:
    """Return float64 products at each frequency, and how far the rounding that is left turns directions.

    That is the rounding of the columns as stored, most where few rows hold them. Every pair is multiplied by itself, in
    one order of its sides: its bits do not depend on which others are wanted.
    """
    pairs = np.argwhere(wanted).tolist()
    sides = ((x, x_run), (y, y_run))
    blocks: list[Array] = []
    largest = [[np.zeros(len(run)) for _, run in sides] for _ in frequencies]
    for _, *slabs in read_slabs(x, x_run, y, y_run, frequencies, rows):
        for place, (f, *both) in enumerate(zip(frequencies, *slabs, strict=True)):
            if len(blocks) == place:
                blocks.append(put(np.zeros((both[0].shape[1], both[1].shape[1]))))
            ends = [panel.ends(run, f) for panel, run in sides]
            for side, (slab, own) in enumerate(zip(both, ends, strict=True)):
                for i in np.flatnonzero(wanted.any(axis=1 - side) & (np.diff(own) > 0)).tolist():
                    top = namespace(slab).max(abs(slab[:, int(own[i]) : int(own[i + 1])]))
                    largest[place][side][i] = max(largest[place][side][i], float(top))
            for i, j in pairs:
                here = slice(int(ends[0][i]), int(ends[0][i + 1])), slice(int(ends[1][j]), int(ends[1][j + 1]))
                later = x.keys[x_run.start + i] > y.keys[y_run.start + j]
                height, width = (one.stop - one.start for one in here)
                for step in grid_steps(both[0].shape[0], AGAIN_ROWS):
                    u_x, u_y = (_filled_up(slab[step, own]) for slab, own in zip(both, here, strict=True))
                    product = namespace(u_x).matmul
                    m = adjoint(product(adjoint(u_y), u_x)) if later else product(adjoint(u_x), u_y)
                    blocks[place][here] += m[:height, :width]
    return blocks, [TURNED / 4 * np.minimum.outer(*both) for both in largest]


def row_products(x: Panel, y: Panel, rows: int) -> tuple[NumpyArray, NumpyArray, NumpyArray]:
    """Return sum_i ||x_i||^2 ||y_i||^2 over the rows of every two bases, and of each with itself, under every rule.

    (bases of x, bases of y, rules), (bases of x, rules), (bases of y, rules), of what the rule keeps of centred rows,
    in units of the largest singular values.
    """
    rules = x.ranks.shape[1]
    found = np.zeros((rules, len(x.refs), len(y.refs)))
    own = [np.zeros((rules, len(panel.refs))) for panel in (x, y)]
    steps = (
        ((one, one) for one in x.kept_norms(rows))
        if x is y
        else zip(x.kept_norms(rows), y.kept_norms(rows), strict=True)
    )
    for both in steps:
        for norms, total in zip(both, own, strict=True):
            total += np.sum(norms * norms, axis=-1)
        for rule in range(rules):
            a, b = (_on_shape(norms[rule]) for norms in both)  # copies: an array times itself takes another routine
            found[rule] += (a @ b.T)[: len(x.refs), : len(y.refs)]
    return np.moveaxis(found, 0, -1), own[0].T, own[1].T


def _on_shape(norms: NumpyArray) -> NumpyArray:
    """Return norms (bases, rows) with zeros beside them, in a shape for which BLAS has no special routine."""
    bases, rows = norms.shape
    least = -(-SMALL // SHAPE**2) + 1
    return np.pad(norms, ((0, -bases % SHAPE), (0, max(least - rows, 0))))


def _filled_up(columns: Array) -> Array:
    """Return columns in float64, and zeros beside them: of one or two alone BLAS takes other routines."""
    xp = namespace(columns)
    rows, width = columns.shape
    return xp.concat(
        [as_float64(columns), put(np.zeros((rows, -(-width // LEAST_WIDTH) * LEAST_WIDTH - width)))], axis=1
    )


LEAST_WIDTH = 8
"""Columns of a float64 product, or a multiple of so many."""


def _stored(x: Panel, x_run: range, y: Panel, y_run: range, frequencies: range) -> list[Array]:
    """Return the cross blocks of a joint pack (zero where there is none)."""
    found = []
    for f in frequencies:
        weight = int(x.weights[f])
        x_ends, y_ends = x.ends(x_run, f), y.ends(y_run, f)
        block = np.zeros((int(x_ends[-1]) + SLACK, int(y_ends[-1]) + SLACK))
        for i, top in zip(x_run, x_ends.tolist(), strict=False):
            for j, left in zip(y_run, y_ends.tolist(), strict=False):
                c = x.joint_cross(f, i, y, j)
                into = block[top : top + weight * c.shape[0], left : left + weight * c.shape[1]]
                into[::weight, ::weight] = c.real
                if weight == 2:
                    into[::2, 1::2] = c.imag
        found.append(put(block))
    return found
