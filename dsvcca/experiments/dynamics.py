"""How layers settle: from results to numbers with one row a network."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import xarray as xr

from dsvcca.results.tables import select, to_frame


def to_the_end(results: xr.Dataset, measures: Sequence[str] = ("svcca", "chance")) -> pd.DataFrame:
    """Return how similar every layer is at every step to the same layer at the last step, which is y.

    Parameters
    ----------
    results : xarray.Dataset
        With the labels layer, step and seed; all layers at all steps against those at the last one, of one network
        or of several. A pair that results have once counts for both of its sides.
    measures : sequence of str, default svcca and chance

    Returns
    -------
    pandas.DataFrame
        Columns layer, step, seed, y_seed (of the network at its end) and the measures.
    """
    last = max(results.x_step.values.tolist() + results.y_step.values.tolist())
    frames = [to_frame(results, measures=list(measures))]
    if all(_turned(one) in results for one in measures):
        other = to_frame(results, measures=[_turned(one) for one in measures])
        frames.append(other.rename(columns=_turned))
    found = pd.concat(frames)
    found = found[(found.y_step == last) & (found.x_layer == found.y_layer)]
    found = found.rename(columns={"x_layer": "layer", "x_step": "step", "x_seed": "seed"})
    places = ["layer", "step", "seed", "y_seed"]
    settling: pd.DataFrame = found[[*places, *measures]].drop_duplicates(places).reset_index(drop=True)
    return settling


def _turned(name: str) -> str:
    """Return what a label or a measure is called when x and y change places."""
    if name[:2] in ("x_", "y_"):
        return ("y" if name[0] == "x" else "x") + name[1:]
    return name[:-1] + ("y" if name[-1] == "x" else "x") if name[-2:] in ("_x", "_y") else name


def lower_and_higher(settling: pd.DataFrame, layers: Sequence[str], *, way: bool = False) -> pd.DataFrame:
    """Return the mean similarity to the end of the lower and of the higher half of the layers.

    Parameters
    ----------
    settling : pandas.DataFrame
        Of `to_the_end`.
    layers : list of str
        All of them, lowest first.
    way : bool, default False
        As a share of the way from the start to the end, (s - start) / (1 - start), of the means of a half: layers keep
        different numbers of directions, and fewer are alike more easily, trained or not.

    Returns
    -------
    pandas.DataFrame
        Columns lower, higher; a row for every seed and step, the index.
    """
    half = settling.layer.isin(layers[: len(layers) // 2]).map({True: "lower", False: "higher"})
    found: pd.DataFrame = settling.assign(half=half).groupby(["seed", "step", "half"]).svcca.mean().unstack()
    start = found.xs(settling.step.min(), level="step")
    return ((found - start) / (1 - start) if way else found)[["lower", "higher"]]


def of_one_network(results: xr.Dataset, pairs: Sequence[tuple[str, str]], step: float) -> pd.DataFrame:
    """Return svcca of pairs of layers of the same network at one step: a column a pair, a row a network."""
    table = {}
    for one, other in pairs:
        found = select(results, x={"layer": one, "step": step}, y={"layer": other, "step": step}).svcca
        own = found.values[found.x_seed.values[:, None] == found.y_seed.values]
        table[f"{one}, {other}"] = pd.Series(own, index=found.x_seed.values)
    return pd.DataFrame(table)
