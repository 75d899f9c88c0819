"""Bases instead of activations: made as plans would make them, checked, and only then are activations dropped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from dask.utils import format_bytes
from distributed import Client

from dsvcca.activations.kept import drop, sweep
from dsvcca.activations.representations import Kept, KeptBasis, Representation
from dsvcca.activations.store import Store
from dsvcca.engine.bases import make_bases
from dsvcca.engine.readiness import ready_for
from dsvcca.errors import DsvccaError, DsvccaWarning, first_few, going_on, nearest
from dsvcca.maths.basis import RankRule
from dsvcca.maths.views import EACH_POSITION, ONTO_A_GRID, VIEWS, meet
from dsvcca.plans.layout import NUMERICS
from dsvcca.plans.pairs import Pairs
from dsvcca.plans.passes import kind_of
from dsvcca.plans.plan import Plan
from dsvcca.plans.planning import ALL_BUT_NOISE, bytes_of, check_population, each_position, population_of, rules_of
from dsvcca.progress import say
from dsvcca.storage import folders
from dsvcca.workspace.contents import findings_of_pack, hold, workspace_beside
from dsvcca.workspace.packs import BasisRef, Pack

ROUTES = ("bases", "covariance", "dual", "randomised")


@dataclass(frozen=True)
class Wanted:
    """Which bases are to be kept; made by `wanted_bases`.

    Attributes
    ----------
    views : tuple of str
    rule : RankRule
    center, route : str
    memory : int
        Bytes of memory of one worker thread.
    """

    views: tuple[str, ...]
    rule: RankRule
    center: str
    route: str
    memory: int


def wanted_bases(
    *,
    view: str | Sequence[str] = "auto",
    variance: float = ALL_BUT_NOISE,
    criterion: str = "variance",
    rank: int | None = None,
    center: str = "all",
    route: str = "bases",
    memory: int | str = "1 GiB",
) -> Wanted:
    """Return which bases are to be kept, after looking at every option; parameters as `keep_bases`.

    Raises
    ------
    DsvccaError
        For an option that is unknown.
    """
    views = (view,) if isinstance(view, str) else tuple(view)
    known = ("auto", *VIEWS, EACH_POSITION)
    for one in views or ("",):
        if one not in known:
            raise DsvccaError(f"view={one!r} is unknown: {nearest(one, known)}")
    if not isinstance(variance, (int, float)):
        raise DsvccaError(f"variance={variance!r}: the largest share holds all smaller ones, give one number")
    if center not in ("all", "dc"):
        raise DsvccaError(f"center={center!r} is unknown: use 'all' or 'dc'")
    if route not in ROUTES:
        raise DsvccaError(f"route={route!r} keeps no bases, or is unknown: {nearest(str(route), ROUTES)}")
    [rule] = rules_of(variance, criterion, rank)
    # What "auto" may take of a representation, whomever it meets: its own view, and the mean.
    spelled = dict.fromkeys(name for one in views for name in (("auto", "mean") if one == "auto" else (one,)))
    return Wanted(tuple(spelled), rule, center, route, bytes_of(memory))


def keep_bases(
    store: Store,
    *,
    view: str | Sequence[str] = "auto",
    variance: float = ALL_BUT_NOISE,
    criterion: str = "variance",
    rank: int | None = None,
    center: str = "all",
    route: str = "bases",
    workspace: str | os.PathLike[str] | None = None,
    memory: int | str = "1 GiB",
    client: Client | None = None,
) -> None:
    """Keep only the bases of representations: make those that are missing, then drop the activations for good.

    Plans that need nothing but these bases go on to work, and by the same rank rule give the same bits; others are
    refused when they are made. Activations are dropped once all bases of a representation lie in the workspace, were
    read again and hold to their checksums, and its record says so. Who is killed before that still has the activations;
    run the same line again, which also removes what is left of those that were dropped.

    Parameters
    ----------
    store : Store
        Representations: an opened store, or what `select` left of it.
    view : str or list of str, default "auto"
        As for `plan_comparisons`, or several. "auto" keeps what it may choose, whomever a layer meets: dense layers as
        they are; of maps "dft" and "mean"; of sequences "positions" and "mean". By frequency few directions are
        noise, and little is saved: where means over space are all that is compared, say ``view="mean"``.
    variance, criterion, rank : default 0.99, "variance", None
        The rank rule. Smaller shares, and smaller ranks, are there as well.
    center, memory
        As for `plan_comparisons`.
    route : {"bases", "covariance", "dual", "randomised"}, default "bases"
        As for `plan_comparisons`, which finds them by the same word ("bases" is its "auto").
    workspace : path, optional
        Where bases are kept from now on, by default beside the store. They are all that is left: not a scratch disk.
    client : distributed.Client, optional
        What makes the bases; by default this process.

    Raises
    ------
    DsvccaError
        If some have no basis, such as a dead layer: their activations stay, the others are dropped. If a view does not
        fit, or activations were dropped before and their bases do not hold what is asked: then nothing is done.

    Warns
    -----
    DsvccaWarning
        If the bases take more room than the activations did.

    Examples
    --------
    ``dsvcca.keep_bases(store.select(step=100), view="mean")``
    """
    wanted = wanted_bases(
        view=view, variance=variance, criterion=criterion, rank=rank, center=center, route=route, memory=memory
    )
    found = population_of(store)
    with going_on():
        reasons = keep(store, found, wanted, workspace=workspace, client=client)
    if reasons:
        raise DsvccaError(
            f"{len(reasons)} of {len(found)} representations have no basis and keep their activations, the others were "
            f"done:\n{first_few(reasons)}"
        )


def keep(
    store: Store,
    found: Sequence[Representation],
    wanted: Wanted,
    *,
    workspace: str | os.PathLike[str] | None = None,
    client: Client | None = None,
) -> list[str]:
    """Keep only the bases of some representations of a store; return why others keep their activations.

    Raises
    ------
    DsvccaError
        If something stops all of them.
    """
    plans = plans_that_keep(store, found, wanted)
    for r in found:
        if r.kept is not None:
            sweep(r)
    left = {r.name: _Left(r) for r in found if r.kept is None}
    if not left:
        return []
    where = workspace_beside(store.path, workspace)
    for plan in plans:
        needed = [i for i, _ in enumerate(plan.aspects) if not plan.is_dropped(i)]
        with ready_for(plan, where, client):
            made = make_bases(plan, where, needed, client)
        for i in needed:
            own = left[plan.representations[plan.aspects[i].representation].name]
            if i in made.failed:
                own.reasons.append(made.failed[i])
            else:
                own.refs.append((plan, i, made.bases[i]))
    _read_again(where, left.values())
    sound = [own for own in left.values() if not own.reasons]
    hold(where, dict.fromkeys(ref.pack for own in sound for _, _, ref in own.refs))
    for own in sound:
        if not drop(own.representation, Kept(where, tuple(dict.fromkeys(own.bases)))):
            own.reasons.append(f"{own.representation}: was written, or dropped, by another process meanwhile")
    done = [own for own in left.values() if not own.reasons]
    before = sum(own.representation.nbytes for own in done)
    after = sum(basis.nbytes for basis in {basis.fingerprint: basis for own in done for basis in own.bases}.values())
    said = f"{format_bytes(before)} of activations were dropped, {format_bytes(after)} of bases are kept in '{where}'"
    say(said)
    if after > before:
        warnings.warn(
            f"{said}: nothing is saved by it; view='mean', or a smaller variance, keeps less",
            DsvccaWarning,
            stacklevel=3,
        )
    return [own.reasons[0] for own in left.values() if own.reasons]


@dataclass
class _Left:
    """What will be left of a representation: where its bases are, what they are, and why it cannot be dropped."""

    representation: Representation
    refs: list[tuple[Plan, int, BasisRef]] = field(default_factory=list)
    bases: list[KeptBasis] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


def plans_that_keep(store: Store, found: Sequence[Representation], wanted: Wanted) -> list[Plan]:
    """Return the plans that make the bases of some representations of a store.

    Raises
    ------
    DsvccaError
        If one cannot work.
    """
    for r in found:
        if r.written < 0:
            raise DsvccaError(f"{r}: '{store.path}' was written by others and is only read: import it into a new store")
    check_population(found, store)
    plans = list(_plans(store, found, wanted))
    for plan in plans:
        plan.check_kept()
        plan.check()
    return plans


def _read_again(workspace: str, left: Iterable[_Left]) -> None:
    """Read every pack from storage, and note what is in it, or what is wrong with it."""
    root = folders.at(workspace, "workspace")
    packs: dict[str, Pack | str] = {}
    for own in left:
        for plan, i, ref in own.refs:
            if ref.pack not in packs:
                wrong = next(findings_of_pack(root, ref.pack), None)
                packs[ref.pack] = Pack(workspace, ref.pack) if wrong is None else f"{ref.pack}: {wrong[1]} {wrong[2]}"
            pack = packs[ref.pack]
            if isinstance(pack, str):
                own.reasons.append(f"{own.representation}: its basis was damaged after it was made, {pack}")
                continue
            own.bases.append(
                KeptBasis(
                    fingerprint=plan.basis_fingerprints[i],
                    view=plan.said_view(i),
                    center=plan.center,
                    route=plan.whitening[i],
                    numerics=NUMERICS,
                    rule=plan.widest,
                    rank=pack.basis(ref.position).rank,
                    nbytes=pack.nbytes(ref.position),
                )
            )


def _plans(store: Store, found: Sequence[Representation], wanted: Wanted) -> Iterator[Plan]:
    """Yield plans whose bases are those to be kept.

    Each compares representations with those that have the same space; by frequency also, of those whose activations are
    there, sizes that can meet on the grid of the smaller.
    """
    for view in wanted.views:
        if view == EACH_POSITION:
            yield _plan(store, each_position(found), "neurons", wanted)
            continue
        yield _plan(store, found, view, wanted)
        if view not in ("dft", *ONTO_A_GRID):
            continue
        kinds: dict[tuple[tuple[int, ...], bool], list[Representation]] = {}
        for r in found:
            if r.kept is None:
                kinds.setdefault(kind_of(r), []).append(r)
        for (one, _), (other, _) in combinations(kinds, 2):
            if one and other and _can_meet(view, one, other):
                both = [r for r in found if r.kept is None and r.logical_shape[1:-1] in (one, other)]
                yield _plan(store, both, view, wanted, together=True)


def _can_meet(view: str, x: tuple[int, ...], y: tuple[int, ...]) -> bool:
    try:
        meet(view, x, y)
    except DsvccaError:
        return False
    return True


def _plan(store: Store, found: Sequence[Representation], view: str, wanted: Wanted, *, together: bool = False) -> Plan:
    """Return a plan in which representations meet those of the same space, or all of them together."""
    kinds: dict[object, int] = {}
    groups = tuple(0 if together else kinds.setdefault(kind_of(r), len(kinds)) for r in found)
    plan = Plan(
        store=store.path,
        representations=tuple(found),
        view=view,
        rules=(wanted.rule,),
        listed=(),
        pairs=Pairs("all", groups, tuple(True for _ in found)),
        measures=("svcca",),
        variant="",
        ridges=(),
        shuffles=0,
        memory=wanted.memory,
        center=wanted.center,
        route=wanted.route,
    )
    return plan.laid_out(plan.pairs.places(len(found)))
