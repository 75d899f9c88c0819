"""One number per comparison, each with its definition, and what it is made of.

A measure is one entry of `MEASURES`: its definition, the sums that it needs, and a function of them. Notation as in
`dsvcca.maths.sums`, where they are; K is a rank over all frequencies, X and Y are the centred activations, all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dsvcca.errors import DsvccaError, nearest
from dsvcca.maths.arrays import Array, NumpyArray
from dsvcca.maths.resampling import jackknife_error
from dsvcca.maths.sums import OF_GOOGLE, OF_SQUARES, OF_VECTORS

Totals = Mapping[str, Array]


@dataclass(frozen=True)
class Side:
    """One side of comparisons, beside their sums: arrays that broadcast against those.

    Attributes
    ----------
    rank
        K.
    power, power2
        ||X||_F^2 and ||X^T X||_F^2 of the activations over their scale: of everything, not of the kept directions
        alone.
    kept_power, kept_power2, norms4
        Of the kept directions: the same, and the sum over rows of ||x_i||^4.
    shrunk4
        Of each ridge (last axis) the sum of D^4 over the kept directions, D = s / sqrt(s^2 + ridge ||X||_F^2).
    scale
        Largest singular value of X: sums are of activations divided by it.
    """

    rank: Array
    power: Array
    power2: Array
    kept_power: Array
    kept_power2: Array
    norms4: Array
    shrunk4: Array
    scale: Array = 1.0


@dataclass(frozen=True)
class Sides:
    """What comparisons are between.

    Attributes
    ----------
    x, y : Side
    rows
        n.
    by_chance, edge
        Mean correlation, and the largest, that independent data would show.
    shuffles
        How often datapoints were shuffled.
    """

    x: Side
    y: Side
    rows: int
    by_chance: Array
    edge: Array
    shuffles: int

    @property
    def fewer(self) -> Array:
        """min(K_x, K_y)."""
        return np.minimum(self.x.rank, self.y.rank)


@dataclass(frozen=True)
class Measure:
    """One number per comparison.

    Attributes
    ----------
    definition : str
        Formula and source.
    sums : tuple of str
        What it is made of.
    value : function
        From the sums over all frequencies, each frequency times its weight, and what they are between, to the number.
    of_kept : bool
        Whether it speaks of the kept directions alone. Otherwise it is about all of the activations, and directions
        that are left out make it a little smaller than that of everything.
    kind : {"similarity", "distance", "chance"}
        1 of what is the same; a metric; or how sure something is.
    by_ridge : bool
        Whether there is one of every ridge (last axis).
    apart : bool
        Whether it is computed where it is named, and not among "all": it takes products or solves of its own, or
        another tool calls it so.
    independent : str, float or None
        What it is expected to be of independent data: the measure that says so, or a number; None if not known.
    """

    definition: str
    sums: tuple[str, ...]
    value: Callable[[Totals, Sides], Array]
    of_kept: bool = True
    kind: str = "similarity"
    by_ridge: bool = False
    apart: bool = False
    independent: str | float | None = None


def _angle(cosine: Array) -> Array:
    return np.arccos(np.clip(cosine, -1.0, 1.0))


def _distance(nuclear: Array, s: Sides) -> Array:
    """Return sqrt(||X||^2 + ||Y||^2 - 2 ||Y^T X||_*) in the units of the activations."""
    larger = np.maximum(s.x.scale, s.y.scale)
    x, y = s.x.scale / larger, s.y.scale / larger
    squared = x * x * s.x.kept_power + y * y * s.y.kept_power - 2 * x * y * nuclear
    return larger * np.sqrt(np.maximum(squared, 0.0))


def _hsic(covariance2: Array, rows2: Array, x_power: Array, y_power: Array, n: int) -> Array:
    """Return the unbiased HSIC of linear kernels (Song et al. 2012) of centred activations, from sums over rows."""
    if n < 4:
        return covariance2 * np.nan
    of_means = x_power * y_power / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows2
    return (covariance2 - rows2 + of_means) / (n * (n - 3))


def _debiased(t: Totals, s: Sides) -> Array:
    own = [_hsic(one.kept_power2, one.norms4, one.kept_power, one.kept_power, s.rows) for one in (s.x, s.y)]
    both = np.asarray(own[0] * own[1])
    scale = np.sqrt(both, where=both > 0, out=np.full_like(both, np.nan))
    return _hsic(t["covariance2"], t["row_products"], s.x.kept_power, s.y.kept_power, s.rows) / scale


def _of_all(surprise: Array, count: Array) -> Array:
    """Return the probability of so small a p-value, exp(-surprise), among so many (Sidak 1967)."""
    with np.errstate(divide="ignore"):
        return -np.expm1(count * np.log1p(-np.exp(-surprise)))


def _pwcca(side: str) -> Measure:
    return Measure(
        "projection weighted CCA, sum(a_i rho_i) / sum(a_i), a_i = sum over neurons j of x of |<variate i, neuron j>| "
        "(Morcos et al. 2018, section 3)"
        if side == "x"
        else "projection weighted CCA with the weights from y: pwcca_y[i, j] = pwcca_x[j, i]",
        (f"{side}_weighted", f"{side}_weights"),
        lambda t, s: t[f"{side}_weighted"] / t[f"{side}_weights"],
        independent="chance",
    )


def _pwcca2(side: str) -> Measure:
    return Measure(
        f"as pwcca_{side} with squared weights, a_i = sum over neurons j of {side} of <variate i, neuron j>^2: what "
        "each variate accounts for of the variance (Kornblith et al. 2019, section 4.3)",
        (f"{side}_weighted2", f"{side}_weights2"),
        lambda t, s: t[f"{side}_weighted2"] / t[f"{side}_weights2"],
        independent="chance",
    )


def _pwcca_google(side: str) -> Measure:
    return Measure(
        f"what compute_pwcca of google/svcca gives of {'x, y' if side == 'x' else 'y, x'} if all means are 0: as "
        f"pwcca_{side}, but the directions it weights by lack the inverse root that makes variates of them",
        (f"{side}_google", f"{side}_google_weights"),
        lambda t, s: t[f"{side}_google"] / t[f"{side}_google_weights"],
        apart=True,
    )


def _r2(side: str, other: str) -> Measure:
    return Measure(
        f"share of the variance of {side} that linear regression on the kept directions of {other} explains, "
        f"||U_{other}^T {side.upper()}||_F^2 / ||{side.upper()}||_F^2 (Kornblith et al. 2019, section 4.1)",
        (f"{side}_explained",),
        lambda t, s: t[f"{side}_explained"] / getattr(s, side).power,
        of_kept=False,
    )


MEASURES: dict[str, Measure] = {
    "svcca": Measure(
        "mean canonical correlation of the kept directions, sum(rho) / min(rank_x, rank_y); with all non-zero "
        "directions kept it is mean CCA (Raghu et al. 2017, section 2)",
        ("rho",),
        lambda t, s: t["rho"] / s.fewer,
        independent="chance",
    ),
    "pwcca_x": _pwcca("x"),
    "pwcca_y": _pwcca("y"),
    "r2": Measure(
        "mean squared canonical correlation, sum(rho^2) / min(rank_x, rank_y)",
        ("rho2",),
        lambda t, s: t["rho2"] / s.fewer,
    ),
    "chance": Measure(
        "what svcca of independent data of these ranks and so many independent rows is expected to be (Wachter 1980); "
        "positions of one datapoint count as one row",
        (),
        lambda t, s: s.by_chance,
        kind="chance",
    ),
    "chance_edge": Measure(
        "largest correlation that independent data of these ranks and so many independent rows would show, where both "
        "sides have many directions: the edge of their density, at some frequency (Wachter 1980)",
        (),
        lambda t, s: s.edge,
        kind="chance",
    ),
    "pwcca_mean": Measure(
        "mean of pwcca_x and pwcca_y, which is symmetric",
        ("x_weighted", "x_weights", "y_weighted", "y_weights"),
        lambda t, s: (t["x_weighted"] / t["x_weights"] + t["y_weighted"] / t["y_weights"]) / 2,
        independent="chance",
    ),
    "pwcca2_x": _pwcca2("x"),
    "pwcca2_y": _pwcca2("y"),
    "r2_x": _r2("x", "y"),
    "r2_y": _r2("y", "x"),
    "cka": Measure(
        "linear centred kernel alignment, ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) (Kornblith et al. 2019, section 3)",
        ("covariance2",),
        lambda t, s: t["covariance2"] / np.sqrt(s.x.power2 * s.y.power2),
        of_kept=False,
    ),
    "cka_debiased": Measure(
        "linear CKA of the unbiased estimates of HSIC, of activations reduced to their kept directions: 0 on average "
        "of independent ones, may be negative (Song et al. 2012). NaN where a datapoint has several rows, by "
        "frequency, and where moments alone are known",
        ("covariance2", "row_products"),
        _debiased,
        independent=0.0,
    ),
    "ridge_cca": Measure(
        "mean correlation of ridge CCA, the sum of the singular values of D_x C D_y over min(rank_x, rank_y), D = s / "
        "sqrt(s^2 + ridge ||X||_F^2): a ridge of the covariance of rows of mean squared norm 1 (Vinod 1976)",
        ("ridge",),
        lambda t, s: t["ridge"] / s.fewer[..., None],
        by_ridge=True,
    ),
    "gulp": Measure(
        "GULP distance, the square root of sum(D_x^4) + sum(D_y^4) - 2 ||D_x C D_y||_F^2, D as of ridge_cca, of the "
        "kept directions: how differently ridge regressions on x and y predict, a metric (Boix-Adsera et al. 2022)",
        ("ridge2",),
        lambda t, s: np.sqrt(np.maximum(s.x.shrunk4 + s.y.shrunk4 - 2 * t["ridge2"], 0.0)),
        by_ridge=True,
        kind="distance",
    ),
    "procrustes": Measure(
        "Procrustes distance of the activations reduced to their kept directions, the square root of ||X||_F^2 + "
        "||Y||_F^2 - 2 ||Y^T X||_*: in their units, a metric (Schoenemann 1966; Williams et al. 2021)",
        ("nuclear",),
        lambda t, s: _distance(t["nuclear"], s),
        kind="distance",
    ),
    "procrustes_angle": Measure(
        "angular Procrustes distance of the activations reduced to their kept directions, arccos of ||Y^T X||_* / "
        "(||X||_F ||Y||_F): radians, a metric (Williams et al. 2021)",
        ("nuclear",),
        lambda t, s: _angle(t["nuclear"] / np.sqrt(s.x.kept_power * s.y.kept_power)),
        kind="distance",
    ),
    "cca_angle": Measure(
        "angular distance of whitened activations, arccos of sum(rho) / sqrt(rank_x rank_y): radians, a metric "
        "(Williams et al. 2021)",
        ("rho",),
        lambda t, s: _angle(t["rho"] / np.sqrt(s.x.rank * s.y.rank)),
        kind="distance",
    ),
    "svcca_debiased": Measure(
        "svcca without what chance adds to each correlation, 0 of those that do not stand out of it (Bao et al. 2019)",
        ("without_chance",),
        lambda t, s: t["without_chance"] / s.fewer,
        independent=0.0,
    ),
    "p_value": Measure(
        "probability that independent Gaussian data of these ranks and rows show a largest correlation as large, at "
        "some frequency (Johnstone 2008; of few directions exactly)",
        ("surprise", "looked_at"),
        lambda t, s: _of_all(t["surprise"], t["looked_at"]),
        kind="chance",
    ),
    "significant_bartlett": Measure(
        "directions that stand out by Bartlett's test of all that are left, one after another at a level of 5 % over "
        "all frequencies (Bartlett 1947, Lawley 1959): of few directions in many rows; else it finds too many",
        ("bartlett",),
        lambda t, s: t["bartlett"],
        kind="chance",
    ),
    "svcca_error": Measure(
        "standard error of svcca: jackknife over 20 runs of datapoints, each left out in turn, to first order (Miller "
        "1974); about the kept directions, which are those of all datapoints",
        ("jackknife",),
        lambda t, s: jackknife_error(t["jackknife"]) / s.fewer,
        kind="chance",
    ),
    "svcca_held_out": Measure(
        "mean correlation, in the odd ones of 20 runs of datapoints, of the canonical variates found in the even ones: "
        "0 on average of independent activations",
        ("held_out",),
        lambda t, s: t["held_out"] / s.fewer,
        apart=True,
        independent=0.0,
    ),
    "svcca_shuffled": Measure(
        "svcca of the same activations with the datapoints of each in an order of its own, mean of `shuffles` draws: "
        "what chance gives without any assumption but that datapoints are exchangeable",
        ("shuffled",),
        lambda t, s: t["shuffled"] / s.fewer,
        apart=True,
        kind="chance",
    ),
    "p_shuffled": Measure(
        "share of shuffles whose svcca is not smaller, the data being one of them: 1 / (shuffles + 1) at least "
        "(Phipson & Smyth 2010)",
        ("shuffled", "exceeded"),
        lambda t, s: (1 + t["exceeded"]) / (1 + s.shuffles) + 0 * t["shuffled"],
        apart=True,
        kind="chance",
    ),
    "svcca_google": Measure(
        'mean of the correlations that hold 98 % of their sum, largest first: the "mean" of google/svcca',
        ("leading", "led"),
        lambda t, s: t["leading"] / t["led"],
        apart=True,
    ),
    "pwcca_google_x": _pwcca_google("x"),
    "pwcca_google_y": _pwcca_google("y"),
    "significant": Measure(
        "directions that stand out of chance, one after another at a level of 5 % over all frequencies (Johnstone "
        "2008); of a pair of frequencies both count",
        ("standing_out",),
        lambda t, s: t["standing_out"],
        kind="chance",
    ),
}
"""Name and definition of every measure that results can hold. To add one is to add an entry (and its sums)."""

ALL = tuple(name for name, one in MEASURES.items() if not one.apart)
"""Those of "all"."""

BY_RIDGE = tuple(name for name, one in MEASURES.items() if one.by_ridge)
"""Those of which there is one of every ridge."""

RIDGE = 0.01
"""Of a plan that names none."""

DEFAULT = ("svcca", "pwcca_x", "pwcca_y", "r2", "chance")
"""Measures of a plan that names none."""

BY_DATAPOINTS = ("chance", "chance_edge", "svcca_debiased", "p_value", "significant", "significant_bartlett")
"""Those that a law of chance is behind, which counts datapoints."""

RESAMPLED = ("svcca_error", "svcca_held_out", "svcca_shuffled", "p_shuffled")
"""Those of some of the datapoints, or of datapoints in another order."""

LEAST_SHUFFLES = 19
"""Shuffles below which no p-value can be 5 %."""

DOUBT, AGAIN = 1e-6, 2e-7
"""By how much PWCCA may be off, about, before it is said, and before it is computed anew."""


def exchanged_name(name: str) -> str:
    """Return what a variable is called with x and y exchanged.

    >>> exchanged_name("pwcca_x"), exchanged_name("cka")
    ('pwcca_y', 'cka')
    """
    return {"_x": f"{name[:-1]}y", "_y": f"{name[:-1]}x"}.get(name[-2:], name)


def check_options(measures: Sequence[str], ridges: Sequence[float], shuffles: int) -> None:
    """Raise if some ridge, or the number of shuffles, is none, or too few for what is asked of them."""
    for ridge in ridges:
        if not isinstance(ridge, (int, float)) or not 0 <= ridge < np.inf:
            raise DsvccaError(
                f"ridge={ridge!r} must be finite and not negative: 0.01 adds 1 % of the trace of a covariance to each "
                "of its eigenvalues"
            )
    if not isinstance(shuffles, int) or isinstance(shuffles, bool) or not 1 <= shuffles <= 10_000:
        raise DsvccaError(f"shuffles={shuffles!r} must be a number from 1 to 10,000: each costs the products once more")
    if "p_shuffled" in measures and shuffles < LEAST_SHUFFLES:
        raise DsvccaError(
            f"p_shuffled of shuffles={shuffles} cannot be below {1 / (1 + shuffles):.2g}: give {LEAST_SHUFFLES} or more"
        )


def expanded(measures: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of measures: one, or several, "all" among them; "pwcca" is that of x and that of y.

    >>> expanded("pwcca")
    ('pwcca_x', 'pwcca_y')
    """
    names = (measures,) if isinstance(measures, str) else tuple(measures)
    found = [one for name in names for one in (ALL if name == "all" else _both_sides(name))]
    for name in found:
        if name not in MEASURES:
            raise DsvccaError(f"measure {name!r} is unknown: {nearest(name, MEASURES)}")
    if not found:
        raise DsvccaError(f"measures is empty: choose from {', '.join(MEASURES)}")
    return tuple(dict.fromkeys(found))


def _both_sides(name: str) -> tuple[str, ...]:
    sides = tuple(f"{name}_{side}" for side in "xy")
    return sides if name not in MEASURES and set(sides) <= set(MEASURES) else (name,)


def sums_of(measures: Sequence[str]) -> tuple[str, ...]:
    """Return what some measures, and they with x and y exchanged, are made of; of PWCCA also how far it may be off."""
    both = (MEASURES[one] for name in measures for one in (name, exchanged_name(name)))
    found = dict.fromkeys(name for one in both for name in one.sums)
    if any(name in found for name in (*OF_VECTORS, *OF_SQUARES, *OF_GOOGLE)):
        found |= dict.fromkeys(OF_VECTORS)
    return tuple(dict.fromkeys(["rho", "rho2", *found]))


def measures_of(totals: Totals, sides: Sides) -> dict[str, Array]:
    """Return every measure that the totals over all frequencies allow; NaN where no frequency has both sides."""
    return {name: one.value(totals, sides) for name, one in MEASURES.items() if set(one.sums) <= set(totals)}


def doubt_of(totals: Mapping[str, NumpyArray]) -> NumpyArray:
    """Return by how much PWCCA may be off, from either side, where correlations lie close together; 0 elsewhere."""
    found = [np.sqrt(totals[f"{side}_doubt"]) / np.maximum(totals[f"{side}_weights"], 1e-300) for side in "xy"]
    return np.asarray(np.maximum(*found))
