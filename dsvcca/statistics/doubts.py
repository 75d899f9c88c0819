"""What keeps groups of networks from being what tests take them for: sentences that are warned of."""

from __future__ import annotations

import warnings

import numpy as np

from dsvcca.errors import DsvccaWarning
from dsvcca.maths.arrays import NumpyArray
from dsvcca.maths.measures import MEASURES
from dsvcca.statistics.networks import DISTANCES, Networks, Numbers

UNLIKE = 1.5
"""By how much mean ranks of two groups may differ without a word."""

STANDS_OUT = 4.0
"""Standard errors by which networks that differ in their group alone are more alike than others, not by chance."""


def warn_of_groups(networks: Networks, numbers: Numbers, group: str, codes: NumpyArray) -> None:
    """Warn, in the name of what called the caller, of groups whose numbers say something else than they seem to."""
    values = networks.of_layers(numbers.values)
    own = [numbers.labels[group][places[0]] for places in networks.places]
    names = {code: own[codes.tolist().index(code)] for code in range(codes.max() + 1)}
    for sentence in (
        _of_ranks(networks, numbers, group, codes, names),
        _of_twins(networks, numbers, group, codes, -values if numbers.measure in DISTANCES else values),
    ):
        if sentence:
            warnings.warn(sentence, DsvccaWarning, stacklevel=3)


def _of_ranks(networks: Networks, numbers: Numbers, group: str, codes: NumpyArray, names: dict[int, object]) -> str:
    """Return in words that groups keep unlike numbers of directions; nothing where they do not."""
    if not MEASURES[numbers.measure].of_kept or np.isnan(numbers.ranks).all():
        return ""
    others = ~np.eye(len(codes), dtype=bool)
    worst, said = UNLIKE, ""
    for layer, ranks in zip(networks.layers, networks.of_layers(numbers.ranks), strict=True):
        each = np.nanmean(np.where(others, ranks, np.nan), axis=1)
        means = {code: float(each[codes == code].mean()) for code in names}
        few, many = min(means, key=lambda code: means[code]), max(means, key=lambda code: means[code])
        if means[many] > worst * means[few]:
            worst = means[many] / means[few]
            said = (
                f"networks of {group}={names[few]!r} keep {means[few]:.3g} directions of {layer}, those of "
                f"{group}={names[many]!r} {means[many]:.3g}: few lie within many more easily than many within many, so "
                "groups may differ by that alone; plan with variance=1.0, or rank= for as many of all"
            )
    return said


def _of_twins(networks: Networks, numbers: Numbers, group: str, codes: NumpyArray, alike: NumpyArray) -> str:
    """Return in words that networks which differ in their group alone are more alike than others of two groups."""
    rest = [
        tuple(value for name, value in zip(networks.names, key, strict=True) if name != group) for key in networks.keys
    ]
    between = codes[:, None] != codes[None, :]
    twins = between & np.array([[a == b for b in rest] for a in rest])
    if not twins.any() or not (between & ~twins).any():
        return ""
    found = []
    for layer, own in zip(networks.layers, alike, strict=True):
        others = own[between & ~twins]
        if own[twins].mean() - others.mean() > STANDS_OUT * others.std() / np.sqrt(twins.sum() / 2):
            found.append(str(layer))
    if not found:
        return ""
    return (
        f"networks that differ in {group} alone are more alike than others of different {group} ({', '.join(found)}): "
        "what they share, such as the weights at which they began, keeps networks from exchanging their groups, and "
        "p-values say nothing; give every network a seed of its own, or select() those that share nothing else"
    )
