"""Views: how stored activations become (frequency, row, column), and which views two representations meet in.

Activations arrive with datapoints on the first axis and neurons or channels on the last; everything between is space
or position. A view never depends on how many datapoints it is shown at once, so it can be applied piece by piece.

| view      | (n, *space, c) becomes    | use                                                               |
|-----------|---------------------------|-------------------------------------------------------------------|
| neurons   | (1, n, c)                 | dense layers: there is no space                                   |
| mean      | (1, n, c)                 | average over space: what a global pooling layer sees              |
| max       | (1, n, c)                 | maximum over space                                                |
| positions | (1, n * space, c)         | every position of every datapoint is a row                        |
| flatten   | (1, n, space * c)         | every position of every channel is a neuron of its own            |
| dft       | (f, n, c)                 | every bin of the transform over space on its own                  |
| alias     | (f of a grid, n, r * c)   | the r bins that alias onto each bin of a smaller grid together    |
| lowpass   | (f of a grid, n, c)       | only the lowest of those                                          |
| pool      | (f of a grid, n, c)       | the transform of means over blocks of r positions                 |

The last three bring a layer to the size of a smaller one (`meet`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import Array, as_float64, namespace
from dsvcca.maths.frequencies import half_spectrum, to_frequencies

VIEWS = ("neurons", "mean", "max", "positions", "flatten", "dft", "lowpass", "pool")
"""Views that can be asked for, beside "auto"."""

EACH_POSITION = "each_position"
"""Asked for in place of a view: every position of sequences is a representation of its own."""

DEFINITIONS = {
    "neurons": "both as they are stored",
    "mean": "maps averaged over space, sequences over their tokens",
    "max": "the largest value of maps over space, of sequences over their tokens",
    "positions": "every position of every datapoint a row",
    "flatten": "every position of every channel a neuron",
    "dft": "correlations at every frequency over space, one rank rule over all (Raghu et al. 2017, section 3)",
    "alias-empirical": "the same on the grid of the smaller maps, whose every bin meets all bins of the larger that "
    "alias onto it; exact if the rows hold the shifts of every image by less than the ratio of sizes",
    "lowpass": "the same with the lowest of those bins only: what the larger maps hold beside them is not seen",
    "pool": "the same after averaging the larger maps over blocks down to the size of the smaller",
}
"""What a comparison is called, and what that means."""

ONTO_A_GRID = ("alias", "lowpass", "pool")

TRANSFORMED = ("dft", *ONTO_A_GRID)

GRID = 4096
"""Rows in one step of the grid on which all products and sums are made, at most."""

LEAST = 64
"""Datapoints in one step, at least."""

STEP_BYTES = 64 << 20
"""Bytes, as float64, of the activations in one step, at most: wide ones have shorter steps."""

CACHED_BYTES = 2 << 20
"""Bytes of a step that is still near the processor when it is used a second time."""

ENOUGH = 512
"""Rows in a step for which a Gram matrix costs more than bringing it from memory and back."""


@dataclass(frozen=True)
class View:
    """How one representation is looked at.

    Attributes
    ----------
    name : str
        Of `VIEWS`, or "alias".
    grid : tuple of int
        What maps are brought to; () is their own size.
    """

    name: str
    grid: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {spelled(self.grid)}" if self.grid else self.name


NEURONS = View("neurons")


@dataclass(frozen=True)
class Meeting:
    """Where two representations are compared: the view of each, and what the comparison is called."""

    name: str
    x: View
    y: View


def spelled(space: Sequence[int]) -> str:
    """Return sizes as people write them.

    >>> spelled((14, 7))
    '14x7'
    """
    return "x".join(map(str, space))


def meet(view: str, x: tuple[int, ...], y: tuple[int, ...], *, tokens: bool = False) -> Meeting:
    """Return how activations with the spaces `x` and `y` are compared under a view asked for by name.

    "auto" is what a careful user would choose: neurons for two dense layers; dft for maps of one size, which is exact;
    positions as rows for two sequences of one length; the mean over space for everything else. Under "dft" maps of
    different sizes meet on the grid of the smaller one, if the sizes divide.

    Parameters
    ----------
    x, y : tuple of int
        Sizes of the axes between datapoints and channels; () for dense layers.
    tokens : bool, default False
        Whether both are sequences: their one axis is called position.

    Raises
    ------
    DsvccaError
        If they cannot be compared under this view; the error says which views would work.

    Examples
    --------
    >>> meet("auto", (14, 14), (14, 14)).name, meet("auto", (14, 14), ()).name
    ('dft', 'mean')
    >>> found = meet("dft", (14, 14), (7, 7))
    >>> found.name, str(found.x), str(found.y)
    ('alias-empirical', 'alias 7x7', 'dft')
    """
    if view not in (*VIEWS, "auto"):
        known = ", ".join(map(repr, (*VIEWS, EACH_POSITION)))
        raise DsvccaError(f"view={view!r} is unknown: choose one of {known} or 'auto'")
    found = _meeting(_choose(x, y, tokens) if view == "auto" else view, x, y)
    if found is None:
        one, other = (f"maps of {spelled(space)}" if space else "a dense layer" for space in (x, y))
        works = [repr(name) for name in VIEWS if _meeting(name, x, y)]
        divide = len(x) == len(y) and x != y and view in ("dft", "pool")
        why = " (along every axis one size must divide the other)" if divide else ""
        raise DsvccaError(f"{one} and {other} cannot be compared as view={view!r}{why}: use view={' or '.join(works)}")
    return found


def _choose(x: tuple[int, ...], y: tuple[int, ...], tokens: bool) -> str:
    """Return what "auto" stands for."""
    if x != y:
        return "mean"
    return "positions" if tokens else "dft"


def _meeting(view: str, x: tuple[int, ...], y: tuple[int, ...]) -> Meeting | None:
    """Return how two spaces meet under a view, None where they cannot."""
    if not x and not y:
        return Meeting("neurons", NEURONS, NEURONS)
    if view in ("mean", "max", "flatten"):
        return Meeting(view, *(View(view) if space else NEURONS for space in (x, y)))
    if view == "neurons" or len(x) != len(y):
        return None
    if x == y:
        view = "dft" if view in ONTO_A_GRID else view
        return Meeting(view, View(view), View(view))
    grid = tuple(map(min, x, y))
    divide = all(large % small == 0 for space in (x, y) for large, small in zip(space, grid, strict=True))
    if view == "positions" or not (divide or view == "lowpass"):
        return None
    larger = "alias" if view == "dft" else view
    sides = (View("dft") if space == grid else View(larger, grid) for space in (x, y))
    return Meeting("alias-empirical" if view == "dft" else view, *sides)


def viewed_shape(shape: tuple[int, ...], view: View) -> tuple[int, int, int]:
    """Return (frequencies, rows, columns) of activations of `shape` (n, *space, c) under `view`, all positions valid.

    Raises
    ------
    DsvccaError
        If the view cannot be applied to this shape.

    Examples
    --------
    >>> viewed_shape((1000, 7, 5, 64), View("positions"))
    (1, 35000, 64)
    """
    n, *space, c = shape
    if view.name == "neurons" and space:
        raise DsvccaError(
            f"view='neurons' needs (datapoint, neuron) activations, found {len(shape)} axes {shape}: "
            "use view='mean', 'max', 'positions' or 'flatten'"
        )
    if 0 in space:
        raise DsvccaError(f"activations of shape {shape} have a spatial axis of length 0: there is nothing to see")
    if view.name in TRANSFORMED:
        grid = view_space(shape, view)
        members = prod(space) // prod(grid) if view.name == "alias" else 1
        return len(half_spectrum(grid).bins), n, members * c
    if view.name == "flatten":
        return 1, n, prod(space) * c
    return (1, n * prod(space), c) if view.name == "positions" else (1, n, c)


def view_space(shape: tuple[int, ...], view: View) -> tuple[int, ...]:
    """Return the sizes of the axes whose bins a view has: () for every view that has one frequency only."""
    return (view.grid or tuple(shape[1:-1])) if view.name in TRANSFORMED else ()


def grid_datapoints(shape: tuple[int, ...], view: View) -> int:
    """Return the datapoints in one step of the grid: a power of two that depends on shape and view alone.

    At least LEAST of them: rows are mixed in blocks of that many (`dsvcca.mixing`), and all representations must begin
    their blocks at the same rows, however long their steps are.

    >>> grid_datapoints((10_000, 256), View("neurons")), grid_datapoints((20_000, 32, 32, 64), View("dft"))
    (1024, 128)
    """
    _, *space, c = shape
    positions = prod(space)
    most = min(STEP_BYTES // (8 * positions * c), GRID // (positions if view.name == "positions" else 1))
    if view.name not in TRANSFORMED:
        most = min(most, max(CACHED_BYTES // (8 * positions * c), ENOUGH))
    return max(LEAST, 1 << max(0, most.bit_length() - 1))


def apply_view(activations: Array, view: View, out: Array = None) -> Array:
    """Return activations (n, *space, c) as (frequency, row, column), in their own floating type or float64.

    A transform is written to `out`, if it has the right shape. Whatever is done over space is done in float64, one
    datapoint at a time: the result does not depend on how the datapoints were cut into pieces.
    """
    shape = tuple(activations.shape)
    frequencies, rows, c = viewed_shape(shape, view)
    if view.name == "pool":
        activations = _pooled(activations, view.grid)
    if view.name in TRANSFORMED:
        return to_frequencies(activations, view_space(shape, view), low=view.name == "lowpass", out=out)
    xp = namespace(activations)
    exact = xp.isdtype(activations.dtype, "real floating") and view.name in ("neurons", "positions", "flatten")
    x = activations if exact else as_float64(activations)
    if view.name in ("mean", "max"):
        flat = xp.reshape(x, (rows, -1, c))
        x = xp.mean(flat, axis=1) if view.name == "mean" else xp.max(flat, axis=1)
    return xp.reshape(x, (frequencies, rows, c))


def _pooled(activations: Array, grid: tuple[int, ...]) -> Array:
    """Return the means over the blocks of positions that belong to each position of a smaller grid."""
    _, *space, _ = activations.shape
    xp = namespace(activations)
    x = as_float64(activations)
    for axis, (large, small) in enumerate(zip(space, grid, strict=True), start=1):
        shape = tuple(x.shape)
        x = xp.mean(xp.reshape(x, (*shape[:axis], small, large // small, *shape[axis + 1 :])), axis=axis + 1)
    return x
