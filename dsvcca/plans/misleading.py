"""What makes numbers larger, or less sure, than they seem: sentences that are warned of and kept with the results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dsvcca.maths.measures import BY_DATAPOINTS, DOUBT, MEASURES, RESAMPLED
from dsvcca.maths.views import TRANSFORMED
from dsvcca.plans.plan import Plan
from dsvcca.storage.records import LearnedRecord

UNSURE = 1e-6
"""By how much directions may turn across a cut: numbers may move as far."""

ALONE = 0.99
"""Share of the variance in one block of rows from which on a representation says little but of these."""


def what_misleads(plan: Plan, learned: Sequence[LearnedRecord]) -> list[str]:
    """Return in words what makes numbers larger, or less sure, than they seem; `learned` is of every aspect."""
    ranks = np.asarray([one["deepest"] for one in learned])
    missed = np.asarray([one["missed"] for one in learned])
    sentences = []
    padded = [
        plan.representations[v.representation]
        for v in plan.aspects
        if v.view.name in ("flatten", *TRANSFORMED) and plan.representations[v.representation].mask
    ]
    if padded:
        sentences.append(
            f"the mask calls some positions padding, and they count like all others where {padded[0]} and "
            f"{len(padded) - 1} more are flattened or transformed: use view='positions' or 'mean'"
        )
    if plan.center == "dc":
        sentences.append(
            "center='dc': the mean of frequencies other than 0 was not subtracted, so an image common to all "
            "datapoints counts as signal, and unrelated layers need not be near the noise floor"
        )
    without = [one for one in plan.representations if one.ids is None]
    if 0 < len(without) < len(plan.representations):
        sentences.append(
            f"{len(without)} of {len(plan.representations)} representations were written without datapoint ids "
            f"({without[0]}), so that nothing proves that their datapoints come in the order of the others: write them "
            "with datapoints="
        )
    sentences += _of_rows_that_belong_together(plan)
    for place, rule in enumerate(plan.rules):
        forced = few = 0
        worst = (-(1 << 62), 0)  # directions - rows, rows
        for one in (one for tile in plan.tiles for one in plan.passes(tile)):
            both = ranks[list(one.x), None, place] + ranks[None, list(one.y), place]
            forced += int((one.wanted & (both > one.rows - 1)).sum())
            few += int((one.wanted & (one.rows < 5 * both)).sum())
            worst = max(worst, (int(np.where(one.wanted, both, 0).max()) - one.rows, one.rows))
        most, rows = sum(worst), worst[1]
        if forced:
            sentences.append(
                f"{forced} comparisons keep more directions than there are degrees of freedom (up to {most} in {rows} "
                f"rows, {rule}): up to {most - rows + 1} of their correlations are 1 whatever the data; use more "
                "datapoints or keep fewer directions"
            )
        elif few:
            sentences.append(
                f"{few} comparisons have fewer than 5 rows a kept direction (up to {most} directions in {rows} rows, "
                f"{rule}): unrelated layers will look alike; use more datapoints or keep fewer directions"
            )
        cut = np.asarray([one["cut"][place] for one in learned])
        if (cut > UNSURE).any():
            first = plan.representations[plan.aspects[int(cut.argmax())].representation]
            sentences.append(
                f"rounding decides which directions {np.count_nonzero(cut > UNSURE)} bases keep ({rule}), since the "
                f"last one kept and the first left out are too much alike ({first}): another variance, or rank=, that "
                "cuts elsewhere gives numbers that are sure"
            )
    alone = np.asarray([one["alone"] for one in learned])
    if (alone > ALONE).any():
        first = plan.representations[plan.aspects[int(alone.argmax())].representation]
        sentences.append(
            f"in {np.count_nonzero(alone > ALONE)} bases {alone.max():.3%} of the variance lies in 64 neighbouring "
            f"rows ({first}): few datapoints decide about all of their numbers"
        )
    if missed.any():
        worst_of = plan.representations[plan.aspects[int(missed.argmax())].representation]
        sentences.append(
            f"{np.count_nonzero(missed)} bases are made of random sketches, which may have overlooked singular values "
            f"up to {missed.max():.2g} of the largest ({worst_of})"
        )
    return sentences


def _of_rows_that_belong_together(plan: Plan) -> list[str]:
    """Return in words what several rows of one datapoint do to what chance gives, and to what is resampled."""
    found = []
    passes = [one for tile in plan.tiles for one in plan.passes(tile)]
    by_law = [name for name in plan.measures if name in BY_DATAPOINTS]
    most, counted = max(((one.rows, plan.freedom(one) + 1) for one in passes), default=(0, 0))
    if by_law and 1 < counted < most:
        ask = "; measures=['svcca_shuffled'] asks the data" if not plan.direct and all(map(plan.unit, passes)) else ""
        found.append(
            f"{', '.join(by_law)}: {counted:,} datapoints are counted and not their {most:,} rows, which is a guess: "
            "where rows of one datapoint differ, chance gives less, and where places have means of their own (as "
            f"positions in a transformer), more{ask}"
        )
    by_datapoint = [name for name in plan.measures if "row_products" in MEASURES[name].sums]
    if by_datapoint and (plan.direct or any(plan.unit(one) != 1 or one.space for one in passes)):
        found.append(
            f"{', '.join(by_datapoint)}: NaN where a datapoint has several rows, or layers are compared by frequency: "
            "view='mean' has one row a datapoint"
        )
    resampled = [name for name in plan.measures if name in RESAMPLED]
    if resampled and (plan.direct or not all(map(plan.unit, passes))):
        why = (
            "rows are all translations"
            if plan.rows == "translations"
            else "the direct route keeps no rows (route='bases' does)"
            if plan.direct
            else "datapoints differ in their number of rows, as masked sequences do"
        )
        found.append(f"{', '.join(resampled)}: NaN where {why}, of which no parts can be taken or exchanged")
    return found


def doubted(worst: float) -> list[str]:
    """Return in words by how much PWCCA may be off; nothing where it is not."""
    if worst <= DOUBT:
        return []
    return [
        f"rounding decides up to {worst:.1g} of PWCCA where correlations of a pair lie close together, since their "
        "directions turn into each other there; svcca and r2 are not concerned"
    ]
