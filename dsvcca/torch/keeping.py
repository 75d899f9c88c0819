"""Only the bases of what was captured: so that at any time the activations of one capture alone are on the disk."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from inspect import signature
from typing import Any

from dsvcca.activations.labels import Label, checked_labels
from dsvcca.activations.store import Store
from dsvcca.engine.keeping import Wanted, keep, keep_bases, wanted_bases
from dsvcca.errors import DsvccaError, DsvccaWarning, nearest

Bases = float | Mapping[str, Any]
"""Which bases are kept: a share of variance, or options of `dsvcca.keep_bases`."""

PLACES = ("workspace", "client")
"""Options that say where, not which."""


def checked_bases(bases: Bases | None) -> tuple[Wanted, dict[str, Any]] | None:
    """Return which bases are kept, and where; None where activations are.

    Raises
    ------
    DsvccaError
        For options that `keep_bases` has not, or does not take so.
    """
    if bases is None:
        return None
    if isinstance(bases, bool) or not isinstance(bases, (int, float, Mapping)):
        raise DsvccaError(f"bases={bases!r}: give a share of variance, or options such as {{'view': 'mean'}}")
    options = dict(bases) if isinstance(bases, Mapping) else {"variance": bases}
    known = [name for name in signature(keep_bases).parameters if name != "store"]
    for name in options:
        if name not in known:
            raise DsvccaError(f"bases has {name!r}, which keep_bases does not take: {nearest(str(name), known)}")
    places = {name: options.pop(name) for name in PLACES if name in options}
    return wanted_bases(**options), places


def keep_captured(
    store: Store, layers: Collection[str], labels: Mapping[str, Label], bases: tuple[Wanted, dict[str, Any]] | None
) -> None:
    """Keep only the bases of layers that were captured under some labels.

    Warns
    -----
    DsvccaWarning
        If some have none: a dead layer does not end a training. Their activations stay.
    """
    if bases is None:
        return
    wanted, places = bases
    own = [checked_labels({**labels, "layer": layer}) for layer in layers]
    found = [r for r in store.everything.representations if r.labels in own]
    for reason in keep(store, found, wanted, **places):
        warnings.warn(f"{reason}; its activations are kept", DsvccaWarning, stacklevel=3)
