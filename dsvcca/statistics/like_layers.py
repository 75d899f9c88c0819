"""Layers of networks with their like in other networks: what clusters and groups are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from dsvcca.statistics.networks import (
    Networks,
    Numbers,
    check_there,
    check_views,
    networks_of,
    numbers_of,
)

ALL = "all"
"""What stands for all layers together."""


def of_like_layers(
    results: xr.Dataset, measure: str, network: str | Sequence[str] | None, layer: str, variance: float | None
) -> tuple[Networks, Numbers]:
    """Return networks, and numbers of which those of like layers of different networks are there."""
    numbers = numbers_of(results, measure, variance)
    networks = networks_of(numbers.labels, network, layer)
    needed = np.zeros(numbers.values.shape, dtype=bool)
    for own in networks.places.T:
        needed[np.ix_(own, own)] = ~np.eye(len(own), dtype=bool)
    check_there(numbers, needed)
    check_views(numbers, networks)
    return networks, numbers
