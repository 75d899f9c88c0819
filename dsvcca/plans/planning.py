"""Making a plan: every option is checked, and what cannot work is refused before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from dask.utils import parse_bytes

from dsvcca.activations.labels import Labels, check_same_types
from dsvcca.activations.representations import Representation
from dsvcca.activations.store import Store
from dsvcca.errors import DsvccaError, nearest
from dsvcca.maths.basis import RankRule
from dsvcca.maths.measures import BY_RIDGE, DEFAULT, MEASURES, RIDGE, check_options, expanded, sums_of
from dsvcca.maths.variants import check_not_given, variant_of
from dsvcca.maths.views import EACH_POSITION, VIEWS, spelled
from dsvcca.plans.layout import KEEP, ROUTES
from dsvcca.plans.pairs import choose_pairs
from dsvcca.plans.passes import kind_of, reads_tokens
from dsvcca.plans.plan import Plan
from dsvcca.plans.targets import find_targets
from dsvcca.progress import waiting

ALL_BUT_NOISE = 0.99
"""Share of variance that is kept unless something else is asked for."""


def plan_comparisons(
    store: Store,
    pairs: Any = "all",
    *,
    view: str = "auto",
    center: str = "all",
    variance: float | Sequence[float] = ALL_BUT_NOISE,
    criterion: str = "variance",
    rank: int | None = None,
    measures: str | Sequence[str] = DEFAULT,
    variant: str | None = None,
    ridge: float | Sequence[float] = RIDGE,
    shuffles: int = 1,
    targets: Any = None,
    rows: str | None = None,
    keep: Sequence[str] = (),
    memory: int | str = "1 GiB",
    route: str = "auto",
) -> Plan:
    """Plan comparisons of a population: choose, cut, price, and refuse what cannot work. Reads no activations.

    Parameters
    ----------
    store : Store
        The population: an opened store, or what `select` left of it.
    pairs : str or list, default "all"
        "all": every representation with every other. "over_training": the same layer of the same network at all pairs
        of steps. "to_last_step": every layer of a network at every step with all its layers at its last step.
        "across_seeds": the same layer at the same step, between seeds. "to_last_position": every position of sequences
        with the last one of the same layer (view "auto" is then "each_position"). Or a list of (labels of x, labels of
        y), such as ``[({"seed": 0, "layer": "fc1"}, {"seed": 1})]``: everything that carries the ones with everything
        that carries the others.
    view : str, default "auto"
        How stored activations become rows and columns. "auto" chooses for every pair what a careful user would:
        neurons for two dense layers, "dft" for maps of one size, "positions" for sequences of one length, "mean"
        (over space) for everything else. By name: "mean", "max", "positions", "flatten", "dft" (maps of different
        sizes meet on the grid of the smaller one, where sizes divide), "lowpass" and "pool" (the same, of the larger
        one only the low frequencies, or means over blocks). Every number keeps the name of its view. "each_position"
        makes every position of sequences (datapoint, position, neuron) a representation with a label `position`, read
        in place.
    center : {"all", "dc"}, default "all"
        With view "dft": subtract the mean of every frequency, or that of frequency 0 alone. "dc" gives what all
        translations of every image would give (Raghu et al. 2017, theorem 1), but then an image that is common to all
        datapoints counts as signal, and unrelated layers are no longer near the floor.
    variance : float or list of float, default 0.99
        Share of variance kept of every representation; a list gives the results a `variance` dimension. 1.0 keeps
        every non-zero direction.
    criterion : {"variance", "singular"}, default "variance"
        Share of squared singular values, or of singular values.
    rank : int, optional
        Keep this many directions instead of a share of variance (all of them where there are fewer); of transformed
        maps so many over all frequencies together.
    measures : str or sequence of str
        Of `dsvcca.maths.measures.MEASURES`; "all" stands for those that need no products or solves of their own and are
        no other tool's. Without the pwcca ones no vectors are computed.
    variant : {"google", "singular"}, optional
        Numbers as another tool, or the letter of a paper, defines them (`dsvcca.maths.variants.VARIANTS`): measures
        and rank rule are then those.
    ridge : float or list of float, default 0.01
        Of `ridge_cca` and `gulp`, for activations whose centred rows have a mean squared norm of 1; a list gives them a
        `ridge` dimension.
    shuffles : int, default 1
        How often datapoints are shuffled for `svcca_shuffled` and `p_shuffled`; each time costs the products once more.
    targets : array, mapping, or labels, optional
        What every representation is asked to explain, one row a datapoint: an array (n,) or (n, q); a mapping from
        names to arrays or labels; or the labels of layers in the store, such as ``{"layer": "logits"}``. Results then
        hold `r2_target`. Maps explain by their frequency 0. With ``pairs="to_targets"`` nothing else is compared.
    rows : {"translations"}, optional
        Say that rows are all translations of their images, with a target for each: then all frequencies explain.
    keep : sequence of str, default ()
        What results hold beside the measures: "frequencies" adds `svcca_by_frequency`, the mean canonical correlation
        at every frequency, which says what spatial scales are shared; "correlations" adds `correlations`, those of
        every pair that is not compared by frequency, largest first and 256 at most, and the measure `chance_edge`.
    memory : int or str, default "1 GiB"
        Memory of one worker thread; tasks are fitted into 70 % of it.
    route : {"auto", "bases", "direct", "covariance", "dual", "randomised"}, default "auto"
        "bases": every representation is whitened once, and its basis kept for later plans. "direct": representations
        are read once, side by side, and whitened from their moments; nothing is kept. "auto" takes direct for a few
        representations larger than one task, where it moves fewer bytes and is as exact. Bases are made through the
        covariance of columns, through the Gram of rows where those are fewer ("dual", exact as well), or, where both
        are more than 20,000, from random sketches of the largest directions ("randomised", which keeps a bound of what
        it may have overlooked); these names force one of them for all views that are not transformed.

    Returns
    -------
    Plan
        `print(plan)` shows its price.

    Raises
    ------
    DsvccaError
        If representations cannot be compared, an option is unknown, or a task cannot fit into the memory.
    """
    found = population_of(store)
    if pairs == "to_last_position" and view == "auto" and any(r.is_sequence for r in found):
        view = EACH_POSITION
    if view not in (*VIEWS, EACH_POSITION, "auto"):
        raise DsvccaError(f"view={view!r} is unknown: {nearest(view, (*VIEWS, EACH_POSITION, 'auto'))}")
    if pairs == "to_last_position":
        found = tuple(r for r in found if r.is_sequence or "position" in r.labels) or found
    if view == EACH_POSITION:
        found, view = tuple(each_position(found)), "neurons"
    check_population(found, store)
    wanted = find_targets(targets, store, found[0].logical_shape[0])
    if pairs == "to_targets" and not wanted:
        raise DsvccaError("pairs='to_targets' needs targets=: an array, or labels of layers such as {'layer': 'out'}")
    kept = tuple(keep) if isinstance(keep, (list, tuple)) else (keep,)
    for what in kept:
        if what not in KEEP:
            raise DsvccaError(f"keep={what!r} is unknown: {nearest(what, KEEP)}")
    if rows not in (None, "translations"):
        raise DsvccaError(f"rows={rows!r} is unknown: 'translations' says that they are all those of their images")
    if rows and wanted:
        for r in found:
            space, sequence = kind_of(r)
            if sequence:
                raise DsvccaError(
                    f"{r}: rows='translations' is said of images, and of sequences their mean explains targets: leave "
                    "rows= out, or select() the maps"
                )
            if space and r.logical_shape[0] % prod(space):
                raise DsvccaError(
                    f"{r}: {r.logical_shape[0]} rows cannot be all {prod(space)} translations of some images of "
                    f"{spelled(space)}: leave rows= out"
                )
    measures = expanded(measures)
    if "correlations" in kept:
        measures = (*measures, "chance_edge")
    if variant is not None:
        own = variant_of(variant)
        if own.needs_rows:
            raise DsvccaError(
                f"variant={variant!r} needs activations that are not centred, which bases do not keep: "
                f"dsvcca.measure(x, y, variant={variant!r}) has it of two arrays"
            )
        given = {"criterion": criterion != "variance", "variance": own.variance and variance != ALL_BUT_NOISE}
        given |= {"rank": rank is not None, "measures": own.measures != DEFAULT and measures != DEFAULT}
        check_not_given(variant, given)
        measures, criterion = own.measures if own.measures != DEFAULT else measures, own.criterion
        variance = variance if own.variance is None else own.variance
    if route not in ROUTES:
        raise DsvccaError(f"route={route!r} is unknown: {nearest(route, ROUTES)}")
    if center not in ("all", "dc"):
        raise DsvccaError(f"center={center!r} is unknown: use 'all' or 'dc'")
    is_list = not isinstance(variance, (int, float))
    rules, ridges = rules_of(variance, criterion, rank), _several("ridge", ridge, "number")
    check_options(measures, ridges, shuffles)
    has_ridge = not set(BY_RIDGE).isdisjoint(measures)
    plan = Plan(
        store=store.path,
        representations=found,
        view=view,
        rules=rules,
        listed=("variance",) * is_list + ("ridge",) * (has_ridge and not isinstance(ridge, (int, float))),
        pairs=choose_pairs(pairs, [r.labels for r in found]),
        measures=tuple(m for m in MEASURES if m in measures),
        variant=variant or "",
        ridges=ridges if has_ridge else (),
        shuffles=shuffles if "shuffled" in sums_of(measures) else 0,
        memory=bytes_of(memory),
        center=center,
        route=route,
        targets=wanted,
        rows=rows,
        keep=kept,
    )
    if "frequencies" in kept and not any(size.space for size in plan.sizes):
        raise DsvccaError("keep='frequencies': nothing is compared by frequency here, see print(plan): leave it out")
    if "correlations" in kept:
        plan = replace(plan, correlations=plan.most_correlations())
        if not plan.correlations or not plan.tiles:
            raise DsvccaError(
                "keep='correlations': "
                + ("all pairs are compared by frequency here" if plan.tiles else "no pairs are compared here")
                + ", see print(plan): leave it out; dsvcca.directions(store, x, y) has those of any pair"
            )
    if wanted and route == "direct":
        raise DsvccaError("route='direct' keeps no basis that could explain targets: leave one of them out")
    if plan.direct and any(reads_tokens(found[v.representation], v.view) for v in plan.aspects):
        raise DsvccaError(
            "route='direct' takes datapoints as they are, and sequences are seen token by token: use route='bases'"
        )
    if plan.direct and len({(size.space, size.rows) for size in plan.sizes}) > 1:
        raise DsvccaError(
            f"route='direct' takes representations side by side, these meet in views {', '.join(plan.names)}: "
            "choose one by view=, or use route='bases'"
        )
    plan = plan.laid_out(plan.pairs.places(len(found)))
    with waiting("plan"):
        plan.check_kept()
        plan.check()
    return plan


def population_of(store: Any) -> tuple[Representation, ...]:
    """Return what a store holds; refuse what is no store, and one that holds nothing."""
    if not isinstance(store, Store):
        raise DsvccaError(f"a {type(store).__name__} was given instead of a store: open_store(path) first")
    found = tuple(store.representations)
    if not found:
        raise DsvccaError(f"'{store.path}' holds no committed representation: write some first")
    return found


def check_population(found: Sequence[Representation], store: Store) -> None:
    """Raise unless representations have labels of one type, the same datapoints, and axes in one order."""
    seen: Labels = {}
    for r in found:
        check_same_types(r.labels, [seen], f"another representation of '{store.path}'")
        seen = r.labels | seen
    orders: dict[frozenset[str], Representation] = {}
    for r in found:
        _check_alike(found[0], r)
        _check_axes(orders.setdefault(frozenset(r.space), r), r)


def rules_of(variance: float | Sequence[float], criterion: str, rank: int | None) -> tuple[RankRule, ...]:
    """Return the rank rules that were asked for, one for each share."""
    if rank is not None and (not isinstance(variance, (int, float)) or variance != ALL_BUT_NOISE):
        raise DsvccaError(f"rank={rank} and variance={variance!r} were both given: give one of them")
    return tuple(RankRule(share, criterion, rank) for share in _several("variance", variance, "share"))


def bytes_of(memory: int | str) -> int:
    """Return an amount of memory in bytes."""
    try:
        found = int(parse_bytes(memory))
    except (ValueError, OverflowError, AttributeError) as error:
        raise DsvccaError(f"memory={memory!r} is no amount of memory: write it as '1.5 GiB'") from error
    if found < 1 << 20:
        unit = "" if isinstance(memory, str) and memory.strip()[-1:].isalpha() else ", without a unit that is bytes"
        raise DsvccaError(f"memory={memory!r} is less than a process takes{unit}: write it as '1.5 GiB'")
    return found


def _several(name: str, given: Any, what: str) -> tuple[float, ...]:
    """Return one number, or a list of different ones, as a tuple."""
    try:
        found = tuple(map(float, [given] if isinstance(given, (int, float)) else given))
    except (TypeError, ValueError) as error:
        raise DsvccaError(f"{name}={given!r} is no {what} ({error}): give a number, or a list of them") from error
    if not found or len(set(found)) != len(found):
        raise DsvccaError(f"{name}={given!r}: give one {what}, or a list of different ones")
    return found


def each_position(representations: Sequence[Representation]) -> list[Representation]:
    """Return every position of sequences as a representation of its own; dense layers stay.

    Raises
    ------
    DsvccaError
        If there are no sequences, or some positions are not valid for all datapoints.
    """
    if not any(r.is_sequence for r in representations):
        raise DsvccaError(
            "view='each_position' needs sequences, (datapoint, position, neuron), and there are none: write them with "
            "dims='ntd' or 'tnd'"
        )
    found = []
    for r in representations:
        if not r.is_sequence:
            found.append(r)
            continue
        datapoints, positions, _ = r.logical_shape
        if r.mask is not None and r.mask.rows < datapoints * positions:
            raise DsvccaError(
                f"{r}: the mask calls {datapoints * positions - r.mask.rows} of its positions padding, and every "
                "position needs the same rows: view='positions' compares all tokens; for positions one by one write "
                "those that all sequences have, counted from their ends for instance, into a store without a mask"
            )
        if "position" in r.labels:
            raise DsvccaError(f"{r} has a label 'position' already: select() others, or use view='positions'")
        found += [r.at(position) for position in range(positions)]
    return found


def _check_axes(first: Representation, other: Representation) -> None:
    if first.space != other.space:
        raise DsvccaError(
            f"{first} has the axes {first.space} and {other} has {other.space}: name them height and width (by dims=), "
            "or write them in one order"
        )


def _check_alike(first: Representation, other: Representation) -> None:
    if 0 in other.logical_shape:
        raise DsvccaError(f"{other} has the shape {other.logical_shape}: an axis of length 0 holds nothing to compare")
    if first.logical_shape[0] != other.logical_shape[0]:
        raise DsvccaError(
            f"{first} has {first.logical_shape[0]} datapoints and {other} has {other.logical_shape[0]}: all "
            "representations need the same datapoints in the same order; select() those that have"
        )
    if first.ids != other.ids and first.ids and other.ids:
        raise DsvccaError(f"{first} and {other} were written with other datapoint ids: select() those that agree")
