"""More columns than rows, and many of both: the dual route is exact, the randomised one bounds what it missed."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

import dsvcca
from dsvcca import DsvccaError
from dsvcca.maths.basis import RankRule
from dsvcca.maths.views import View, grid_datapoints
from dsvcca.maths.whiten import InMemory, whiten_in_memory
from dsvcca.maths.wide import MOST_SAMPLES, STRIDE, Wide, whiten_dual, whiten_randomised
from tests.populations import same_bits
from tests.reference import orthonormal

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than 5 rows a kept", "ignore:.*more directions than there are")


def wide_of(x, *, at_once=10**6, name="x", **options):
    """Return activations (n, *space, c), in pieces of 17 datapoints, as the wide routes read them."""
    view = View("neurons" if x.ndim == 2 else "flatten")
    return Wide(
        pieces=lambda: iter([x[i : min(i + 17, x.shape[0]), ...] for i in range(0, x.shape[0], 17)]),
        view=view,
        rows=x.shape[0],
        columns=int(np.prod(x.shape[1:])),
        at_once=lambda kept: at_once,
        grid=grid_datapoints(tuple(x.shape), view),
        bits=53,
        name=name,
        **options,
    )


def with_spectrum(seed, n, p, s):
    """Return centred rows (n, p) of exactly these singular values, and a mean."""
    rng = np.random.default_rng(seed)
    u = rng.standard_normal((n, len(s)))
    u = np.linalg.qr(u - u.mean(axis=0))[0]
    v = np.linalg.qr(rng.standard_normal((p, len(s))))[0]
    return (u * s) @ v.T + rng.uniform(-3, 3, p)


@pytest.mark.parametrize("shape", [(80, 300), (60, 4, 5, 30), (90, 40)])
def test_the_dual_route_is_the_singular_value_decomposition(xp, shape):
    x = np.random.default_rng(0).standard_normal(shape) + np.linspace(0, 5, shape[-1])
    columns = InMemory(rounded=False)
    basis = whiten_dual(wide_of(xp.asarray(x)), RankRule(0.9), columns)
    flat = x.reshape(shape[0], -1)
    u, s, v = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    k = basis.rank
    assert k == RankRule(0.9).keep(s, len(s))
    np.testing.assert_allclose(basis.singular_values[0, : len(s)], s, atol=1e-8 * s[0])
    found = xp.to_numpy(columns.array())
    np.testing.assert_allclose(found @ found.T, u[:, :k] @ u[:, :k].T, atol=1e-9)
    components = xp.to_numpy(basis.blocks[0].components)
    np.testing.assert_allclose(found @ components, (u[:, :k] * s[:k]) @ v[:k], atol=1e-9 * s[0])
    np.testing.assert_allclose(xp.to_numpy(basis.mean)[0], flat.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(xp.to_numpy(basis.neuron_norms), np.linalg.norm(flat - flat.mean(axis=0), axis=0))
    np.testing.assert_allclose(xp.to_numpy(basis.row_norms), ((flat - flat.mean(axis=0)) ** 2).sum(axis=1))
    assert basis.missed == 0


def test_the_dual_route_agrees_with_the_covariance_where_both_apply():
    x = np.random.default_rng(1).standard_normal((70, 50)) @ np.random.default_rng(2).standard_normal((50, 50))
    columns = InMemory(rounded=False)
    dual = whiten_dual(wide_of(x), RankRule(0.99), columns)
    u, primal = whiten_in_memory(x, RankRule(0.99), "x")
    assert dual.rank == primal.rank
    s = primal.singular_values
    np.testing.assert_allclose(dual.singular_values, s, atol=1e-8 * s.max())
    np.testing.assert_allclose(np.abs(np.diag(columns.array().T @ u)), 1, atol=1e-9)


def test_how_many_columns_fit_in_memory_changes_no_bit():
    x = np.random.default_rng(3).standard_normal((40, 3 * STRIDE + 7)).astype(np.float32)
    found = []
    for at_once in (1, STRIDE, 2 * STRIDE + 5, 10**6):
        columns = InMemory(rounded=True)
        basis = whiten_dual(wide_of(x, at_once=at_once), RankRule(0.9), columns)
        found.append((columns.array(), basis.singular_values, basis.blocks[0].components))
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


SPECTRA = {
    **{f"fast {a}": a ** -np.arange(100.0) for a in (1.05, 1.1, 1.3, 1.6, 2.0, 4.0, 10.0)},
    **{f"slow {a}": np.arange(1.0, 101) ** -a for a in (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)},
    **{f"flat {k}": np.r_[np.full(k, 3.0), np.full(100 - k, 1.0)] for k in (0, 1, 5, 20, 50, 99)},
}


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_what_the_randomised_route_may_have_missed_bounds_what_it_missed(spectrum):
    x = with_spectrum(4, 150, 240, spectrum)
    columns = InMemory(rounded=False)
    basis = whiten_randomised(wide_of(x), RankRule(rank=12), columns)
    k = basis.rank
    assert k == min(12, np.count_nonzero(spectrum**2 > 240 * 2.0**-52))  # the others are zero to rounding
    u = columns.array() @ np.linalg.inv(basis.blocks[0].cholesky).T
    z = x - x.mean(axis=0)
    # What lies outside the kept directions lies outside the sketch, or among its own that were not kept.
    outside = np.linalg.svd(z - u @ (u.T @ z), compute_uv=False)[0]
    beyond = basis.singular_values[0, k]
    assert outside <= np.hypot(basis.missed, beyond) * (1 + 1e-9)
    assert spectrum[k] * (1 - 1e-9) <= np.hypot(basis.missed, beyond)
    found = basis.singular_values[0, :k]
    assert (found <= spectrum[:k] + 1e-9).all()
    assert (spectrum[:k] ** 2 <= (found**2 + basis.missed**2) * (1 + 1e-9)).all()
    np.testing.assert_allclose((basis.singular_values**2).sum(), (spectrum**2).sum(), rtol=1e-9)
    np.testing.assert_allclose(u.T @ u, np.eye(k), atol=1e-9)
    np.testing.assert_allclose(basis.blocks[0].loadings, u.T @ z, atol=1e-9 * spectrum[0])


def test_sketches_grow_until_they_hold_the_share_that_is_kept(xp):
    s = np.r_[np.full(300, 1.0), np.full(99, 0.05)]
    x = with_spectrum(5, 450, 420, s)
    columns = InMemory(rounded=False)
    basis = whiten_randomised(wide_of(xp.asarray(x)), RankRule(0.99), columns)
    assert basis.rank == RankRule(0.99).keep(s, len(s))
    np.testing.assert_allclose(basis.singular_values[0, :290], s[:290], rtol=1e-6)
    z = x - x.mean(axis=0)
    u = xp.to_numpy(columns.array())
    assert np.linalg.norm(u.T @ z) ** 2 == pytest.approx(0.99 * (s**2).sum(), rel=0.004)
    np.testing.assert_allclose(xp.to_numpy(basis.row_norms), (z**2).sum(axis=1), rtol=1e-9)
    with pytest.raises(
        DsvccaError, match=r"240 directions hold 7\d\.\d+% of the variance, 99.0000% are asked for: give"
    ):
        whiten_randomised(wide_of(x, most_samples=256), RankRule(0.99), InMemory(rounded=False))
    assert MOST_SAMPLES > 256


@pytest.mark.parametrize("rule", [RankRule(1.0), RankRule(0.9, "singular")])
def test_the_randomised_route_finds_no_directions_but_the_largest(rule):
    with pytest.raises(DsvccaError, match=r"x: 30 rows of 50 columns are too many for .*: give rank="):
        whiten_randomised(wide_of(np.ones((30, 50))), rule, InMemory(rounded=False))


@pytest.mark.parametrize("route", [whiten_dual, whiten_randomised])
def test_bad_numbers_are_refused_by_the_wide_routes(route):
    rng = np.random.default_rng(6)
    x = rng.standard_normal((40, 90))
    with pytest.raises(DsvccaError, match="x: every neuron is constant over all 40 rows"):
        route(wide_of(np.ones((40, 90))), RankRule(0.9), InMemory(rounded=False))
    x[23, 5] = np.nan
    with pytest.raises(DsvccaError, match="x: 1 numbers are NaN or infinite, the first of datapoint 23"):
        route(wide_of(x), RankRule(0.9), InMemory(rounded=False))
    for scale, message in ((1e200, "squares of numbers as large as .* overflow"), (1e-200, "as small as .* underflow")):
        with pytest.raises(DsvccaError, match=message):
            route(wide_of(scale * rng.standard_normal((40, 90))), RankRule(rank=5), InMemory(rounded=False))
    with pytest.raises(DsvccaError, match="39 kept directions in 40 rows leave no freedom"):
        route(wide_of(rng.standard_normal((40, 90))), RankRule(rank=39), InMemory(rounded=False))


# Through the engine


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Maps of 8 x 8 x 6 = 384 columns on 200 datapoints that share a signal."""
    rng = np.random.default_rng(7)
    signal = rng.standard_normal((200, 12))
    store = dsvcca.create_store(tmp_path_factory.mktemp("w") / "s.zarr", datapoints=200)
    for seed in range(3):
        x = signal @ rng.standard_normal((12, 384)) + 0.2 * rng.standard_normal((200, 384))
        store.write(x.reshape(200, 8, 8, 6).astype(np.float32), layer="conv", seed=seed, dims="nhwc")
    return store


@pytest.mark.parametrize(("route", "said"), [("auto", "dual"), ("randomised", "random"), ("covariance", "covariance")])
def test_flattened_maps_are_compared_by_every_route(store, tmp_path, route, said):
    plan = dsvcca.plan_comparisons(store, view="flatten", variance=0.95, route=route)
    assert said in str(plan)
    warned = pytest.warns(dsvcca.DsvccaWarning, match="may have overlooked singular values")
    with warned if route == "randomised" else nullcontext():
        found = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")
        again = dsvcca.compare(replace(plan, panel=1), tmp_path / "r2.zarr")
    assert found.attrs["whitening"] == ["dual" if route == "auto" else route]
    flat = [np.concatenate([store.read(seed=seed)]).reshape(200, -1) for seed in range(3)]
    tolerance = 2e-3 if route == "randomised" else 5e-7
    for i in range(3):
        for j in range(i, 3):
            expected = dsvcca.svcca(flat[i], flat[j], variance=0.95)
            assert float(found.svcca[i, j]) == pytest.approx(expected, abs=tolerance)
    assert same_bits(again, found)
    kept = [sentence for sentence in found.attrs["warnings"] if "may have overlooked" in sentence]
    assert bool(kept) == (route == "randomised")


@pytest.mark.filterwarnings("ignore:rounding decides up to")
def test_forced_ones_of_flattened_maps_are_warned_of(store, tmp_path):
    plan = dsvcca.plan_comparisons(store, view="flatten", rank=150)
    with pytest.warns(dsvcca.DsvccaWarning, match=r"keep more directions than there are degrees .* up to 101 of their"):
        found = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")
    assert (found.svcca.values > 0.6).all()
    with pytest.raises(DsvccaError, match="199 kept directions in 200 rows leave no freedom"):
        dsvcca.compare(dsvcca.plan_comparisons(store, view="flatten", variance=1.0), tmp_path / "r2.zarr")


def test_the_price_knows_the_route_and_the_threads(tmp_path):
    n, p = 200, 4000
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=n)
    for seed in range(3):
        store.write(np.random.default_rng(seed).standard_normal((n, p), dtype=np.float32), layer="l", seed=seed)
    options = {"rank": 5, "memory": "2 GiB"}
    plan, other, third = (
        dsvcca.plan_comparisons(store, route=route, **options) for route in ("auto", "covariance", "randomised")
    )
    assert set(plan.whitening) == {"dual"}
    assert 3 * n * n * p < plan.price().flops < other.price().flops / 100
    assert plan.work().bytes_read < third.work().bytes_read
    assert (plan.work().reduce_tasks, plan.work(threads=8).reduce_tasks) == (2, 3)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fifty_thousand_columns_of_five_thousand_rows(tmp_path):
    n, p, rank = 5000, 50_000, 400
    rng = np.random.default_rng(8)
    x = (rng.standard_normal((n, rank)) * np.geomspace(1, 0.05, rank)) @ rng.standard_normal((rank, p))
    x = (x + 0.3 * rng.standard_normal((n, p))).astype(np.float32)
    columns = InMemory(rounded=False)
    wide = replace(wide_of(x), bits=24)
    basis = whiten_dual(wide, RankRule(0.9), columns)
    z = x.astype(np.float64)
    z -= z.mean(axis=0)
    s = np.linalg.svd(z, compute_uv=False)
    assert np.abs(basis.singular_values[0, :n] - s).max() < 1e-8 * s[0]
    u, k = columns.array(), basis.rank
    found = np.linalg.svd(u.T @ z, compute_uv=False)
    assert np.abs(found - s[:k]).max() < 1e-8 * s[0]
    assert 100 < k < 3000


@pytest.mark.filterwarnings("ignore:.*made of random sketches")
@pytest.mark.parametrize("options", [{"rank": 10}, {"variance": 0.5}])
def test_sketches_of_another_rule_are_not_taken_for_those_of_this_one(tmp_path, options):
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=700)
    for layer in "ab":
        store.write((rng.standard_normal((700, 400)) * np.linspace(1, 0.2, 400)).astype("f4"), layer=layer)
    larger = {"rank": 50} if "rank" in options else {"variance": 0.7}
    dsvcca.compare(
        dsvcca.plan_comparisons(store, route="randomised", **larger), tmp_path / "l.r", workspace=tmp_path / "w"
    )
    plan = dsvcca.plan_comparisons(store, route="randomised", **options)
    found = dsvcca.compare(plan, tmp_path / "r", workspace=tmp_path / "w")
    assert same_bits(found, dsvcca.compare(plan, tmp_path / "fresh.r", workspace=tmp_path / "fresh.w"))


@pytest.mark.slow
def test_a_task_that_keeps_more_than_it_has_room_for_is_refused_before_it_takes_the_memory(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=300)
    for layer in "ab":
        store.write(np.random.default_rng(ord(layer)).standard_normal((300, 60_000)).astype("f4"), layer=layer)
    plan = dsvcca.plan_comparisons(store, memory="0.35 GiB", variance=0.9)
    assert "more than the 358.40 MiB that it may use" in str(plan)
    with pytest.raises(DsvccaError, match=r"60000 columns, 2\d\d of them kept\) needs .* in a task, memory=358"):
        dsvcca.compare(plan, tmp_path / "r.zarr")


def test_small_directions_of_the_dual_route_are_columns_of_the_activations():
    """Rounding of the Gram of rows turns a small direction out of the space of the columns."""
    rng = np.random.default_rng(5)
    q = orthonormal(rng, 100, 3)
    x = (q * [1, 0.9, 7e-7]) @ np.linalg.qr(rng.standard_normal((400, 3)))[0].T
    columns = InMemory(rounded=False)
    basis = whiten_dual(wide_of(x), RankRule(1.0), columns)
    assert basis.rank == 3
    u = np.linalg.solve(basis.blocks[0].cholesky, columns.array().T).T
    assert np.abs(u - q @ (q.T @ u)).max() < 1e-9
