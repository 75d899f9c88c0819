"""How alike the networks of groups are, with errors that know that pairs share networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import xarray as xr

from dsvcca import statistics
from dsvcca.results.tables import select
from dsvcca.statistics.permutations import jackknife

Apart = Mapping[str, pd.DataFrame]
"""Of every layer how far networks are apart: a table with their labels on both axes."""


def apart_at(results: xr.Dataset, measure: str, step: float, layers: list[str]) -> dict[str, pd.DataFrame]:
    """Return of every layer how far networks are apart at one step: tables with their labels on both axes."""
    found = {}
    for layer in layers:
        own = select(results, x={"layer": layer, "step": step}, y={"layer": layer, "step": step})
        table = statistics.distances(own, measure)
        here = [name for name in table.index.names if name not in ("layer", "step")]
        index = table.index.to_frame()[here]
        labels = pd.MultiIndex.from_frame(index) if len(here) > 1 else pd.Index(index[here[0]])
        found[layer] = pd.DataFrame(table.to_numpy(), index=labels, columns=labels)
    return found


def means_of_groups(apart: Apart, group: str) -> pd.Series:
    """Return how far networks of each group are apart, and those of different groups.

    Parameters
    ----------
    apart : mapping
        Of `apart_at`.
    group : str
        A label of networks.

    Returns
    -------
    pandas.Series
        Index layer, of: a value of the label, or "between". NaN where a group has one network.
    """
    found = {}
    for layer, table in apart.items():
        codes = table.index.get_level_values(group).to_numpy()
        same, others = codes[:, None] == codes, ~np.eye(len(codes), dtype=bool)
        values = table.to_numpy()
        for own in pd.unique(codes):
            mine = same & others & (codes == own)
            found[layer, own] = values[mine].mean() if mine.any() else np.nan
        if not same.all():
            found[layer, "between"] = values[~same].mean()
    return pd.Series(found).rename_axis(["layer", "of"])


def with_errors(statistic: Callable[[Apart], pd.Series], apart: Apart, group: str) -> pd.DataFrame:
    """Return a statistic of distances with its standard error: networks are left out one by one (jackknife).

    Parameters
    ----------
    statistic : callable
        From distances to numbers, such as ``lambda apart: means_of_groups(apart, "width")``.
    apart : mapping
        Of `apart_at`; the same networks of every layer.
    group : str
        A label of networks, three or more of each value: errors are summed over the groups, which are samples of their
        own.

    Returns
    -------
    pandas.DataFrame
        Columns mean, which is the statistic of all networks, and error.
    """
    labels = next(iter(apart.values())).index
    apart = {layer: table.loc[labels, labels] for layer, table in apart.items()}
    every = statistic(apart)

    def of(kept: np.ndarray) -> np.ndarray:
        found = statistic({layer: table.iloc[kept, kept] for layer, table in apart.items()})
        return found.reindex(every.index).to_numpy(np.float64)

    errors = jackknife(labels.get_level_values(group).to_numpy(), of)
    return pd.DataFrame({"mean": every, "error": errors})
