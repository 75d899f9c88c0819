"""Views: how stored activations become (frequency, row, column).

Activations arrive with datapoints on the first axis and neurons or channels on the last; everything between is space
or position. A view is chosen by name and never depends on how many datapoints it is shown at once, so it can be
applied piece by piece.

| view      | (n, *space, c) becomes | use                                                   |
|-----------|------------------------|-------------------------------------------------------|
| neurons   | (1, n, c)              | dense layers: there is no space                       |
| mean      | (1, n, c)              | average over space: what a global pooling layer sees  |
| max       | (1, n, c)              | maximum over space                                    |
| positions | (1, n * space, c)      | every position of every datapoint is a row            |
| dft       | (f, n, c)              | every bin of the transform over space on its own      |
"""

from __future__ import annotations

from math import prod

from dsvcca.arrays import Array, as_float64, namespace
from dsvcca.errors import DsvccaError
from dsvcca.frequencies import half_spectrum, to_frequencies

VIEWS = ("neurons", "mean", "max", "positions", "dft")

GRID = 4096
"""Rows in one step of the grid on which all products and sums are made, at most."""

LEAST = 64
"""Datapoints in one step, at least."""

STEP_BYTES = 64 << 20
"""Bytes, as float64, of the activations in one step: wide ones have shorter steps."""


def choose_view(shape: tuple[int, ...]) -> str:
    """Return the view that ``view="auto"`` stands for: neurons where there is no space, else mean.

    >>> choose_view((5000, 64)), choose_view((5000, 28, 28, 16))
    ('neurons', 'mean')
    """
    return "neurons" if len(shape) == 2 else "mean"


def viewed_shape(shape: tuple[int, ...], view: str) -> tuple[int, int, int]:
    """Return (frequencies, rows, columns) of activations of `shape` under `view`.

    Parameters
    ----------
    shape : tuple of int
        (n, *space, c): datapoints first, neurons or channels last.
    view : str
        One of `VIEWS`.

    Raises
    ------
    DsvccaError
        If the view is unknown or cannot be applied to this shape.

    Examples
    --------
    >>> viewed_shape((1000, 7, 5, 64), "positions")
    (1, 35000, 64)
    """
    if view not in VIEWS:
        raise DsvccaError(f"unknown view {view!r}: choose one of {', '.join(map(repr, VIEWS))} or 'auto'")
    n, *space, c = shape
    if view == "neurons" and space:
        raise DsvccaError(
            f"view='neurons' needs (datapoint, neuron) activations, found {len(shape)} axes {shape}: "
            "use view='mean', 'max' or 'positions'"
        )
    if 0 in space:
        raise DsvccaError(f"activations of shape {shape} have a spatial axis of length 0: there is nothing to see")
    if view == "dft":
        return len(half_spectrum(tuple(space)).bins), n, c
    return (1, n * prod(space), c) if view == "positions" else (1, n, c)


def view_space(shape: tuple[int, ...], view: str) -> tuple[int, ...]:
    """Return the sizes of the axes that a view transforms: () for every view that has one frequency only."""
    return tuple(shape[1:-1]) if view == "dft" else ()


def grid_datapoints(shape: tuple[int, ...], view: str) -> int:
    """Return the datapoints in one step of the grid: a power of two that depends on shape and view alone.

    At least LEAST of them: rows are mixed in blocks of that many (`dsvcca.mixing`), and all representations must begin
    their blocks at the same rows, however long their steps are.

    >>> grid_datapoints((10_000, 256), "neurons"), grid_datapoints((20_000, 32, 32, 64), "dft")
    (4096, 128)
    """
    _, *space, c = shape
    positions = prod(space)
    most = min(STEP_BYTES // (8 * positions * c), GRID // (positions if view == "positions" else 1))
    return max(LEAST, 1 << max(0, most.bit_length() - 1))


def apply_view(activations: Array, view: str) -> Array:
    """Return activations (n, *space, c) as (frequency, row, column), in their own floating type or float64.

    Whatever is done over space is done in float64, one datapoint at a time: the result does not depend on how the
    datapoints were cut into pieces.
    """
    frequencies, rows, c = viewed_shape(tuple(activations.shape), view)
    if view == "dft":
        return to_frequencies(activations)
    xp = namespace(activations)
    exact = xp.isdtype(activations.dtype, "real floating") and view in ("neurons", "positions")
    x = activations if exact else as_float64(activations)
    if view in ("mean", "max"):
        flat = xp.reshape(x, (rows, -1, c))
        x = xp.mean(flat, axis=1) if view == "mean" else xp.max(flat, axis=1)
    return xp.reshape(x, (frequencies, rows, c))
