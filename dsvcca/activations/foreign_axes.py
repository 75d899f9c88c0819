"""Axes of arrays that others wrote: what they are called, and what cannot be read as numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dsvcca.activations.labels import COLUMNS, Label, checked_dims
from dsvcca.errors import DsvccaError, nearest


def axes_of(path: str, layer: Label, shape: tuple[int, ...], named: tuple[Any, ...], dims: Any) -> tuple[str, ...]:
    """Return the axis names of an array that somebody else wrote.

    Parameters
    ----------
    path, layer
        Of the array: what a mapping of `dims` may call it.
    shape : tuple of int
    named : tuple
        What the array calls its axes itself; empty, or all None or "", where it does not.
    dims : str, sequence of str, mapping to them, or None
        As the user spells them.
    """
    spelled = spelling_of(path, layer, len(shape), dims)
    if spelled is None and any(named):
        if "datapoint" not in named or not any(n in COLUMNS for n in named):
            raise DsvccaError(
                f"'{path}' calls its axes {named}: say with dims= which of them are datapoints and neurons"
            )
        spelled = named
    try:
        return checked_dims(spelled, shape, f"'{path}'")
    except DsvccaError as error:
        raise DsvccaError(f"{error}; where layers differ, dims={{'conv1': 'nchw', 'lstm': 'ntd'}}") from None


def spelling_of(path: str, layer: Label, axes: int, dims: Any) -> Any:
    """Return how the axes of one array are spelled; None where two of them need no spelling, or nothing was said."""
    if isinstance(dims, Mapping):
        return dims.get(path, dims.get(layer))
    if not (dims is None or isinstance(dims, (str, list, tuple))):
        raise DsvccaError(f"dims={dims!r} is a {type(dims).__name__}: use 'nchw', names of axes, or a dict of them")
    return dims if dims is not None and (axes > 2 or len(dims) == axes) else None


def check_dims_are_used(dims: Any, paths: Iterable[str], layers: Iterable[Label]) -> None:
    """Raise if a mapping of `dims` names what is not there."""
    known = [*paths, *layers]
    for name in dims if isinstance(dims, Mapping) else ():
        if name not in known:
            raise DsvccaError(f"dims= names {name!r}, which is neither a path nor a layer: {nearest(name, known)}")


def check_not_encoded(path: str, about: Mapping[str, Any], missing: Any = None) -> None:
    """Raise if the stored numbers are not the activations themselves, as xarray may store them.

    Parameters
    ----------
    about : mapping
        Attributes of the array.
    missing : optional
        The number that stands for one that is missing, where `about` does not say it.
    """
    missing = about.get("_FillValue", missing)
    coded = [name for name in ("scale_factor", "add_offset") if name in about]
    if coded or (missing is not None and missing == missing and not isinstance(missing, str)):
        what = f"{coded[0]}={about[coded[0]]}" if coded else f"{missing} for missing numbers"
        raise DsvccaError(f"'{path}' holds encoded numbers ({what}): decode them, and write activations as they are")
