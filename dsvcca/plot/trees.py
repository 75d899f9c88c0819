"""Networks by how alike they are: which were joined, and the numbers behind it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.measures import MEASURES
from dsvcca.plot.figures import COLOURS, bar_with_chance, mark_chance, new_figure, text_colour
from dsvcca.plot.shown import name_layers, of_one_share, said_of_chance, scale_of, with_chance
from dsvcca.statistics.clustering import clusters as clusters_of
from dsvcca.statistics.like_layers import of_like_layers


def clusters(
    results: xr.Dataset,
    *,
    measure: str = "svcca",
    network: str | Sequence[str] | None = None,
    count: int | None = None,
    method: str = "average",
) -> NumpyArray:
    """Draw which networks came to like solutions: what was joined when (a dendrogram), and how alike each two are.

    Two networks are as alike as their layers of the same name are on average. Names carry the number of their cluster.

    Parameters
    ----------
    results : xarray.Dataset
        With the same layers of all networks compared, at one step. Where it has a `variance` dimension, the share
        nearest to 0.99 is drawn.
    measure : str, default "svcca"
        One that does not change where x and y are exchanged.
    network, count, method
        As of `dsvcca.statistics.clusters`.

    Returns
    -------
    array of matplotlib.axes.Axes
        The dendrogram, and the map.

    Raises
    ------
    DsvccaError
        As of `dsvcca.statistics.clusters`.
    MissingError
        If matplotlib is not installed.

    Examples
    --------
    ``clusters(dsvcca.select(results, x={"step": 1000}, y={"step": 1000}))[0].figure.savefig("clusters.png")``
    """
    from scipy.cluster import hierarchy

    results, chance = with_chance(results, measure)
    share = of_one_share(results, measure)[1]
    found = clusters_of(results, measure, network=network, count=count, method=method, variance=share)
    networks, numbers = of_like_layers(results, measure, network, "layer", share)
    values = networks.of_layers(numbers.values).mean(axis=0)
    expected = None
    if chance is not None:
        by_chance = of_one_share(results, chance)[0].transpose("x", "y").values[:, numbers.order]
        expected = networks.of_layers(by_chance).mean(axis=0)
    names = [" ".join(map(str, key)) for key in networks.keys]
    size = max(3.2, 0.24 * len(names))
    figure = new_figure(size + 2.4, size + 1.6)
    tree, image_axes = figure.subplots(2, 1, height_ratios=[1, 3], sharex=False)
    joined = found.linkage[:, 2]
    left = len(names) - int(found.networks["cluster"].max())
    between = joined[left - 1 : left + 1].mean() if 0 < left < len(joined) else 0.0
    drawn = hierarchy.dendrogram(
        found.linkage,
        ax=tree,
        no_labels=True,
        color_threshold=between,
        above_threshold_color=text_colour(),
    )
    for line, colour in zip(tree.collections, [*COLOURS] * len(tree.collections), strict=False):
        if len(tree.collections) > 1 and line is not tree.collections[-1]:
            line.set_color(colour)
    order = np.asarray(drawn["leaves"])
    shown = values[np.ix_(order, order)]
    np.fill_diagonal(shown, np.nan)
    scale = scale_of(measure, [shown])
    image = image_axes.imshow(shown, **scale, aspect="auto")
    image_axes.set_facecolor("0.5")
    mark_chance(image_axes, shown, None if expected is None else expected[np.ix_(order, order)])
    cluster = found.networks["cluster"].to_numpy()
    called = [f"{names[i]} ({cluster[i]})" for i in order]
    name_layers(image_axes.xaxis, called)
    name_layers(image_axes.yaxis, called)
    image_axes.tick_params(axis="x", labelrotation=90)
    tree.set_xlim(0, 10 * len(names))  # as SciPy puts leaves: above their columns
    bar = figure.colorbar(image, ax=[tree, image_axes], pad=0.01, fraction=0.06, aspect=30)
    off = ~np.eye(len(names), dtype=bool)
    bar_with_chance(bar, [None if expected is None else expected[off]], measure, said_of_chance(results, measure))
    for side in ("top", "right", "bottom"):
        tree.spines[side].set_visible(False)
    kind = "distance" if MEASURES[measure].kind == "distance" else f"1 - {measure}"
    tree.set_ylabel(kind, fontsize=9)
    of = ", ".join(networks.names)
    silhouette = float(found.networks["silhouette"].mean())
    clusters_said = "one cluster" if cluster.max() == 1 else f"{cluster.max()} clusters"
    tree.set_title(f"{of} (cluster); {clusters_said}, mean silhouette {silhouette:.2f}", fontsize=10)
    axes: NumpyArray = np.asarray([tree, image_axes], dtype=object)
    return axes
