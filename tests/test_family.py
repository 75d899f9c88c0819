"""Every measure from disk against its formula written out, on the activations themselves."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import xarray as xr

import dsvcca
from dsvcca.maths import nulls
from dsvcca.maths.measures import ALL, DEFAULT
from dsvcca.maths.resampling import fold_bounds
from dsvcca.maths.sums import shrinkage_of
from tests.populations import same_bits
from tests.test_resampling import first_order

pytestmark = pytest.mark.filterwarnings("ignore:.* datapoints are counted", "ignore:.* NaN where")

N = 700


def layers():
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((N, 6))
    a = shared @ rng.standard_normal((6, 10)) + 0.7 * rng.standard_normal((N, 10))
    b = 3 * (shared @ rng.standard_normal((6, 14)) + rng.standard_normal((N, 14))) + 5
    return {"a": a, "b": b, "noise": rng.standard_normal((N, 12))}


def centred(x):
    return x - x.mean(axis=0)


def kept(x, variance):
    """Return orthonormal columns of the kept directions, and what they hold of the activations."""
    u, s, v = np.linalg.svd(centred(x), full_matrices=False)
    k = len(s) if variance == 1 else int(np.searchsorted(np.cumsum(s**2), variance * np.sum(s**2))) + 1
    return u[:, :k], (u[:, :k] * s[:k]) @ v[:k]


def hsic(x, y):
    """Return the unbiased HSIC as Song et al. 2012 write it, from n x n kernels."""
    k, q = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(q, 0)
    n = len(x)
    ones = np.ones(n)
    means = ones @ k @ ones * (ones @ q @ ones) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (ones @ k @ q @ ones)
    return (np.trace(k @ q) + means) / (n * (n - 3))


def root(c):
    """Return the inverse square root of a covariance."""
    values, vectors = np.linalg.eigh(c)
    return vectors / np.sqrt(values) @ vectors.T


def by_formula(x, y, variance, ridge=0.01):
    """Return every measure of two layers, each written out."""
    (u, x_kept), (v, y_kept) = kept(x, variance), kept(y, variance)
    x, y = centred(x), centred(y)
    a, rho, b = np.linalg.svd(u.T @ v, full_matrices=False)
    k, q = u.shape[1], v.shape[1]
    g, h = np.abs((u @ a).T @ x_kept), np.abs((v @ b.T).T @ y_kept)

    def weighted(weights):
        return np.sum(weights * rho) / np.sum(weights)

    nuclear = np.sum(np.linalg.svd(y_kept.T @ x_kept, compute_uv=False))
    power = np.linalg.norm(x) ** 2, np.linalg.norm(y) ** 2
    kept_power = np.linalg.norm(x_kept) ** 2, np.linalg.norm(y_kept) ** 2
    found = {
        "svcca": rho.mean(),
        "r2": (rho**2).mean(),
        "pwcca_x": weighted(g.sum(axis=1)),
        "pwcca_y": weighted(h.sum(axis=1)),
        "pwcca_mean": (weighted(g.sum(axis=1)) + weighted(h.sum(axis=1))) / 2,
        "pwcca2_x": weighted((g**2).sum(axis=1)),
        "pwcca2_y": weighted((h**2).sum(axis=1)),
        "r2_x": np.linalg.norm(v.T @ x_kept) ** 2 / power[0],
        "r2_y": np.linalg.norm(u.T @ y_kept) ** 2 / power[1],
        "cka": np.linalg.norm(y_kept.T @ x_kept) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y),
        "cka_debiased": hsic(x_kept, y_kept) / np.sqrt(hsic(x_kept, x_kept) * hsic(y_kept, y_kept)),
        "procrustes": np.sqrt(sum(kept_power) - 2 * nuclear),
        "procrustes_angle": np.arccos(nuclear / np.sqrt(kept_power[0] * kept_power[1])),
        "cca_angle": np.arccos(min(rho.sum() / np.sqrt(k * q), 1)),
        "chance": nulls.mean_by_chance(k, q, N - 1),
        "chance_edge": (
            ((1 - q / (N - 1)) * k / (N - 1)) ** 0.5 + ((1 - k / (N - 1)) * q / (N - 1)) ** 0.5
        ),  # Wachter 1980
        "svcca_debiased": nulls.without_chance(rho, k, q, N - 1).mean(),
        "p_value": nulls.largest_by_chance(rho[0], k, q, N - 1),
        "significant": nulls.standing_out(rho, k, q, N - 1),
        "significant_bartlett": np.cumprod(nulls.bartlett(rho, k, q, N - 1) <= 0.05).sum(),
        "svcca_error": first_order(u, v, fold_bounds(N, 1)),
    }
    x_one, y_one = (one / np.sqrt(np.mean(np.sum(one**2, axis=1))) for one in (x, y))
    c_x, c_y = (one.T @ one / N + ridge * np.eye(one.shape[1]) for one in (x_one, y_one))
    covariance = root(c_x) @ (x_one.T @ y_one / N) @ root(c_y)
    own = [np.linalg.norm(root(c) @ (one.T @ one / N) @ root(c)) ** 2 for c, one in ((c_x, x_one), (c_y, y_one))]
    found["ridge_cca"] = np.linalg.svd(covariance, compute_uv=False).sum() / min(k, q)
    found["gulp"] = np.sqrt(sum(own) - 2 * np.linalg.norm(covariance) ** 2)
    if variance < 1:
        s_x, s_y = (np.linalg.svd(one, compute_uv=False) / np.linalg.norm(one) for one in (x, y))
        d_x, d_y = (s / np.sqrt(s**2 + ridge) for s in (s_x, s_y))
        covariance = d_x[:k, None] * (u.T @ v) * d_y[:q]
        found["ridge_cca"] = np.linalg.svd(covariance, compute_uv=False).sum() / min(k, q)
        found["gulp"] = np.sqrt(np.sum(d_x[:k] ** 4) + np.sum(d_y[:q] ** 4) - 2 * np.linalg.norm(covariance) ** 2)
    if variance == 1:  # against other ways to the same numbers
        assert found["r2_y"] == pytest.approx(1 - np.linalg.norm(y - x @ np.linalg.lstsq(x, y)[0]) ** 2 / power[1])
        padded = [np.pad(one, ((0, 0), (0, max(x.shape[1], y.shape[1]) - one.shape[1]))) for one in (x, y)]
        rotation = scipy.linalg.orthogonal_procrustes(*padded)[0]
        assert found["procrustes"] == pytest.approx(np.linalg.norm(padded[0] @ rotation - padded[1]))
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = dsvcca.create_store(tmp_path_factory.mktemp("family") / "s.zarr", datapoints=N)
    for name, x in layers().items():
        store.write(x, layer=name)
    return store


@pytest.fixture(scope="module")
def results(store, tmp_path_factory):
    plan = dsvcca.plan_comparisons(store, measures="all", variance=[0.9, 1.0])
    return dsvcca.compare(plan, tmp_path_factory.mktemp("family") / "r.zarr").load()


def test_every_measure_is_its_formula(results):
    found = layers()
    names = results.x_layer.values.tolist()
    assert set(ALL) <= set(results.data_vars)
    for i, x in enumerate(names):
        for j, y in enumerate(names):
            for place, variance in enumerate((0.9, 1.0)):
                if i == j:
                    continue
                expected = by_formula(found[x], found[y], variance)
                assert set(expected) == set(ALL)
                for name, value in expected.items():
                    own = results[name].values[i, j, place]
                    scale = np.linalg.norm(centred(found[x])) if name == "procrustes" else 1.0
                    assert abs(own - value) < 1e-6 * scale, (x, y, variance, name, own, value)


def test_a_layer_is_itself(results):
    whole, cut = results.isel(variance=1), results.isel(variance=0)
    for name in ("procrustes_angle", "cca_angle", "gulp"):
        np.testing.assert_allclose(np.diagonal(cut[name].values), 0, atol=4e-3)
    np.testing.assert_allclose(np.diagonal(cut["procrustes"].values), 0, atol=0.2)  # of norms of some hundred
    for name in ("svcca", "pwcca_x", "pwcca2_y", "r2", "r2_x", "cka"):
        np.testing.assert_allclose(np.diagonal(whole[name].values), 1, atol=1e-6)
    np.testing.assert_allclose(np.diagonal(whole["cka_debiased"].values), 1, atol=1e-6)
    for name in ("procrustes_angle", "cca_angle", "gulp"):
        np.testing.assert_allclose(np.diagonal(whole[name].values), 0, atol=4e-3)  # the cosine is right to 1e-6
    np.testing.assert_allclose(np.diagonal(whole["p_value"].values), 0)


def test_the_two_sides_exchange(results):
    for name in ALL:
        other = {"_x": f"{name[:-2]}_y", "_y": f"{name[:-2]}_x"}.get(name[-2:], name)
        np.testing.assert_array_equal(results[name].values, results[other].values.swapaxes(0, 1))


def test_definitions_say_what_is_left_out(store, results, tmp_path):
    assert "with variance=1.0" in results.cka.attrs["definition"]
    assert "with variance=1.0" not in results.svcca.attrs["definition"]
    plan = dsvcca.plan_comparisons(store, measures=["cka", "r2_x"], variance=1.0)
    found = dsvcca.compare(plan, tmp_path / "r.zarr").load()
    assert "with variance=1.0" not in found.cka.attrs["definition"]
    np.testing.assert_allclose(found.cka, results.cka.isel(variance=1), atol=1e-6)


def test_a_plan_that_names_no_measure_has_the_default_ones(store, tmp_path):
    plan = dsvcca.plan_comparisons(store, variance=[0.9, 1.0])
    assert plan.measures == DEFAULT
    found = dsvcca.compare(plan, tmp_path / "r.zarr").load()
    rest = [name for name in ALL if name != "svcca_error"]  # which round in their own way
    every = dsvcca.plan_comparisons(store, variance=[0.9, 1.0], measures=rest)
    both = dsvcca.compare(every, tmp_path / "all.zarr").load()
    assert same_bits(found, both[list(found.data_vars)])


def compared(tmp_path, arrays, dims=None, **options):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=len(arrays[0]))
    for i, x in enumerate(arrays):
        store.write(x, layer=f"l{i}", **({"dims": dims} if dims else {}))
    plan = dsvcca.plan_comparisons(store, measures=["svcca", "chance", "p_value", "significant"], **options)
    return dsvcca.compare(plan, tmp_path / "r.zarr").load()


def off_diagonal(found):
    return found.values[np.triu_indices(found.shape[0], 1)]


@pytest.mark.parametrize("dims", [None, "nhwc"])
def test_independent_layers_lie_on_the_floor(tmp_path, dims):
    rng = np.random.default_rng(0)
    shape = (400, 30) if dims is None else (400, 5, 4, 9)
    found = compared(tmp_path, [rng.standard_normal(shape) for _ in range(7)], dims)
    ratio = off_diagonal(found.svcca) / off_diagonal(found.chance)
    assert abs(ratio.mean() - 1) < 0.01
    p = off_diagonal(found.p_value)
    assert 0.1 < p.mean() < 0.9
    assert p.min() > 1e-4
    assert off_diagonal(found.significant).sum() <= 4


def test_positions_of_a_datapoint_are_one_row(tmp_path):
    """A sequence whose positions repeat each other knows no more than its datapoints."""
    rng = np.random.default_rng(0)
    arrays = [np.repeat(rng.standard_normal((300, 1, 10)), 8, axis=1) for _ in range(5)]
    found = compared(tmp_path, arrays, "ntd")
    assert found.attrs["view"] == "auto"
    ratio = off_diagonal(found.svcca) / off_diagonal(found.chance)
    assert abs(ratio.mean() - 1) < 0.05
    assert off_diagonal(found.p_value).min() > 1e-4


@pytest.mark.filterwarnings("ignore:center='dc'")
def test_where_means_stay_nothing_is_known_of_chance(tmp_path):
    rng = np.random.default_rng(0)
    found = compared(tmp_path, [rng.standard_normal((200, 3, 3, 4)) for _ in range(2)], "nhwc", center="dc")
    assert np.isnan(found.chance.values).all()
    assert np.isnan(found.p_value.values).all()
    assert np.isfinite(found.svcca.values).all()


def test_layers_that_share_directions_stand_out(tmp_path):
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((2000, 4))
    arrays = [
        np.concatenate([shared, np.zeros((2000, 16))], axis=1) + rng.standard_normal((2000, 20)) for _ in range(2)
    ]
    found = compared(tmp_path, arrays, variance=1.0)
    assert found.significant.values[0, 1] == 4
    assert found.p_value.values[0, 1] < 1e-12


INVARIANCES = {
    # what is done to y:      an invertible map, a rotation, one scale, a scale a neuron, a permutation, a shift
    "svcca": (True, True, True, True, True, True),
    "r2": (True, True, True, True, True, True),
    "pwcca_x": (True, True, True, True, True, True),
    "pwcca_y": (False, False, True, False, True, True),
    "pwcca_mean": (False, False, True, False, True, True),
    "pwcca2_x": (True, True, True, True, True, True),
    "pwcca2_y": (False, True, True, False, True, True),
    "r2_x": (True, True, True, True, True, True),
    "r2_y": (False, True, True, False, True, True),
    "cka": (False, True, True, False, True, True),
    "cka_debiased": (False, True, True, False, True, True),
    "ridge_cca": (False, True, True, False, True, True),
    "gulp": (False, True, True, False, True, True),
    "procrustes": (False, True, False, False, True, True),
    "procrustes_angle": (False, True, True, False, True, True),
    "cca_angle": (True, True, True, True, True, True),
    "chance": (True, True, True, True, True, True),
    "chance_edge": (True, True, True, True, True, True),
    "svcca_debiased": (True, True, True, True, True, True),
    "p_value": (True, True, True, True, True, True),
    "significant": (True, True, True, True, True, True),
    "significant_bartlett": (True, True, True, True, True, True),
    "svcca_error": (True, True, True, True, True, True),
}
"""Whether a measure of x and y stays when y is changed, all non-zero directions kept: the table of docs/numbers.md."""

CHANGES = ("invertible map", "rotation", "one scale", "scale a neuron", "permutation", "shift")


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """Results of x with y, and with y changed in every way."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((N, 5))
    x = 0.4 * shared @ rng.standard_normal((5, 9)) + rng.standard_normal((N, 9))
    y = 0.4 * shared @ rng.standard_normal((5, 7)) + rng.standard_normal((N, 7)) * np.geomspace(1, 3, 7)
    rotation = np.linalg.qr(rng.standard_normal((7, 7)))[0]
    maps = (rotation * np.geomspace(1, 4, 7) @ rotation[::-1], rotation, 2.5 * np.eye(7))
    maps += (np.diag(np.geomspace(1, 5, 7)), np.eye(7)[rng.permutation(7)])
    folder = tmp_path_factory.mktemp("changed")
    store = dsvcca.create_store(folder / "s.zarr", datapoints=N)
    for name, one in (
        ("x", x),
        ("y", y),
        *((change, y @ m) for change, m in zip(CHANGES, maps, strict=False)),
        ("shift", y + 7),
    ):
        store.write(one, layer=name)
    plan = dsvcca.plan_comparisons(store, [({"layer": "x"}, {})], measures="all", variance=1.0)
    return dsvcca.compare(plan, folder / "r.zarr").load()


@pytest.mark.parametrize("name", ALL)
def test_measures_are_invariant_to_what_they_say_and_to_nothing_else(changed, name):
    row = dict(zip(changed.y_layer.values.tolist(), changed[name].values[0], strict=True))
    for change, stays in zip(CHANGES, INVARIANCES[name], strict=True):
        difference = abs(row[change] - row["y"])
        assert (difference < 1e-6 * max(1, abs(row["y"]))) == stays, (change, row["y"], row[change])


def test_the_table_of_invariances_is_the_tested_one():
    page = (Path(__file__).parents[1] / "docs" / "numbers.md").read_text()
    for name, row in INVARIANCES.items():
        cells = " | ".join("yes" if one else "no" for one in row)
        assert f"| `{name}` | {cells} |" in page, f"| `{name}` | {cells} |"


@pytest.mark.parametrize("variance", [0.9, 1.0])
def test_in_memory_every_measure_is_its_formula_to_1e_8(xp, variance):
    found = layers()
    for x, y in (("a", "b"), ("b", "a"), ("a", "noise")):
        expected = by_formula(found[x], found[y], variance)
        own = dsvcca.measure(xp.asarray(found[x]), xp.asarray(found[y]), "all", variance=variance)
        assert list(own) == list(ALL)
        for name, value in own.items():
            assert value == pytest.approx(expected[name], rel=1e-8, abs=1e-8), (x, y, name)


def test_measures_of_two_arrays_are_checked():
    x = np.random.default_rng(0).standard_normal((50, 3))
    assert list(dsvcca.measure(x, x)) == list(DEFAULT)
    assert dsvcca.measure(x, 2 * x, "cka")["cka"] == pytest.approx(1)
    with pytest.raises(dsvcca.DsvccaError, match=r"measure 'ckas' is unknown: did you mean 'cka'"):
        dsvcca.measure(x, x, "ckas")
    assert list(dsvcca.measure(x, x, ["svcca_held_out", "all"])) == ["svcca_held_out", *ALL]
    with pytest.raises(dsvcca.DsvccaError, match=r"measure 'SVCCA' is unknown: did you mean 'svcca'\?"):
        dsvcca.measure(x, x, "SVCCA")
    with pytest.raises(dsvcca.DsvccaError, match="measures is empty"):
        dsvcca.measure(x, x, [])
    with pytest.raises(dsvcca.DsvccaError, match="x has 50 datapoints and y has 40"):
        dsvcca.measure(x, x[:40])


def test_ridges_are_a_dimension_where_a_list_was_given(store, results, tmp_path):
    plan = dsvcca.plan_comparisons(store, measures=["svcca", "gulp", "ridge_cca"], ridge=[0.01, 1, 100], variance=1.0)
    found = dsvcca.compare(plan, tmp_path / "r.zarr").load()
    assert found.gulp.dims == ("x", "y", "ridge")
    assert found.svcca.dims == ("x", "y")
    np.testing.assert_allclose(found.gulp.sel(ridge=0.01), results.gulp.isel(variance=1), atol=4e-3)  # a root near 0
    x, y = layers()["a"], layers()["b"]
    for ridge in (1, 100):
        expected = by_formula(x, y, 1, ridge)
        for name in ("gulp", "ridge_cca"):
            assert found[name].sel(ridge=ridge).values[0, 1] == pytest.approx(expected[name], abs=1e-6)
            assert dsvcca.measure(x, y, name, ridge=ridge)[name] == pytest.approx(expected[name], rel=1e-8)
    frame = dsvcca.to_frame(found)
    assert len(frame) == 18
    assert frame.groupby("ridge").svcca.sum().nunique() == 1
    assert list(dsvcca.to_frame(found, measures=["svcca"]).columns[-1:]) == ["svcca"]
    assert len(dsvcca.to_frame(found, measures=["svcca"])) == 6
    with pytest.raises(
        dsvcca.DsvccaError, match=r"gulp is there for the ridges 0.01, 1, 100: results.sel\(ridge=0.01\)"
    ):
        dsvcca.plot.layers(found, measure="gulp")
    both = dsvcca.plan_comparisons(store, measures=["svcca", "gulp"], ridge=[0.01, 1], variance=[0.9, 1.0])
    more = dsvcca.compare(both, tmp_path / "both.zarr").load()
    assert more.gulp.dims == ("x", "y", "ridge", "variance")
    np.testing.assert_array_equal(more.gulp.sel(ridge=1, variance=1), found.gulp.sel(ridge=1))
    assert len(dsvcca.to_frame(more)) == 24


def test_without_a_ridge_ridge_cca_is_cca(store, results, tmp_path):
    plan = dsvcca.plan_comparisons(store, measures=["svcca", "ridge_cca"], ridge=0, variance=1.0)
    found = dsvcca.compare(plan, tmp_path / "r.zarr").load()
    np.testing.assert_allclose(found.ridge_cca, found.svcca, atol=1e-12)
    assert found.attrs["ridge"] == [0.0]
    assert results.attrs["ridge"] == [0.01]


def test_a_representation_that_is_added_gets_its_ridges(store, tmp_path):
    few = store.select(layer=["a", "b"])
    options = {"measures": ["gulp", "cka_debiased"], "ridge": [0.1, 1]}
    dsvcca.compare(dsvcca.plan_comparisons(few, **options), tmp_path / "r.zarr")
    grown = dsvcca.compare(dsvcca.plan_comparisons(store, **options), tmp_path / "r.zarr")
    whole = dsvcca.compare(dsvcca.plan_comparisons(store, **options), tmp_path / "whole.zarr")
    assert same_bits(grown, whole)


@pytest.mark.parametrize("ridge", [-1.0, float("nan"), float("inf"), [0.1, 0.1], [], "big", None])
def test_a_ridge_that_is_none_is_refused(store, ridge):
    with pytest.raises(dsvcca.DsvccaError, match="ridge="):
        dsvcca.plan_comparisons(store, measures=["gulp"], ridge=ridge)


def test_plans_without_such_measures_do_not_depend_on_the_ridge(store, tmp_path):
    plans = [dsvcca.plan_comparisons(store, ridge=ridge) for ridge in (0.1, [1, 2])]
    assert plans[0].definition == plans[1].definition
    assert plans[1].listed == ()


def test_debiased_cka_of_independent_layers_is_0_on_average(tmp_path):
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=300)
    for i in range(24):
        store.write(rng.standard_normal((300, 30)), layer=f"l{i}")
    plan = dsvcca.plan_comparisons(store, measures=["cka", "cka_debiased"], variance=0.9)
    found = dsvcca.compare(plan, tmp_path / "r.zarr").load()
    own = found.cka_debiased.values[np.triu_indices(24, 1)]
    assert abs(own.mean()) < 4 * own.std() / np.sqrt(len(own))
    assert found.cka.values[np.triu_indices(24, 1)].min() > 0.05


def test_debiased_cka_is_not_known_by_frequency(tmp_path):
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=80)
    for i in range(2):
        store.write(rng.standard_normal((80, 3, 3, 2)), layer=f"l{i}", dims="nhwc")
    found = dsvcca.compare(dsvcca.plan_comparisons(store, measures="all"), tmp_path / "r.zarr").load()
    assert np.isnan(found.cka_debiased.values).all()
    assert np.isfinite(found.gulp.values).all()
    positions = dsvcca.plan_comparisons(store, measures="all", view="positions", variance=1.0)
    assert np.isnan(dsvcca.compare(positions, tmp_path / "p.zarr").cka_debiased.values).all()


def test_results_alone_say_what_their_numbers_are(store, tmp_path):
    """Measure, side, variant, rank rule, view, centring, n, ranks, precision, version, chance: from the file alone."""
    plan = dsvcca.plan_comparisons(store, variance=[0.9, 1.0], measures=[*DEFAULT, "gulp"], ridge=0.1)
    dsvcca.compare(plan, tmp_path / "r.zarr")
    found = xr.open_zarr(tmp_path / "r.zarr", consolidated=False)  # by no package but xarray
    about = found.attrs
    assert about["variant"] == ""
    assert about["rank_rule"][0] == "fewest directions holding 90 % of the sum of squared singular values (variance)"
    assert about["center"] == "all"
    assert about["datapoints"] == N
    assert about["rows"] == N
    assert "float32" in about["precision"]
    assert about["dsvcca_version"] == dsvcca.__version__
    assert about["ridge"] == [0.1]
    assert about["views"] == ["neurons"]
    for name in (*DEFAULT, "gulp", "rank_x", "rank_y", "view"):
        assert len(found[name].attrs["definition"]) > 20, name
    assert (
        "neuron j of x|" in found.pwcca_x.attrs["definition"] or "neurons j of x" in found.pwcca_x.attrs["definition"]
    )
    assert "weights from y" in found.pwcca_y.attrs["definition"]
    assert found.view.attrs["flag_definitions"]["neurons"]
    assert (found.rank_x.values[:, :, 1] >= found.rank_x.values[:, :, 0]).all()
    assert (found.chance.values > 0).all()
    other = dsvcca.compare(dsvcca.plan_comparisons(store, variant="google"), tmp_path / "google.zarr")
    assert other.attrs["variant"].startswith("google: google/svcca (commit 1f3fbf1)")
    assert "98 %" in other.svcca_google.attrs["definition"]


def test_what_rounding_leaves_of_zero_is_shrunk_to_nothing_whatever_the_ridge():
    found = shrinkage_of(np.array([2.0, 1.0, 1e-9]), 5.0, 2, [0.0, 1.0])
    np.testing.assert_allclose(found, [[1, 1, 0], [2 / 3, 6**-0.5, 0]])


def test_neurons_that_are_dead_shrink_nothing(tmp_path):
    """Rounding of a dead neuron, or of one that another repeats, is no direction that a ridge of 0 leaves whole."""
    x, y = layers()["a"], layers()["b"]
    doubled = np.hstack([x, x[:, :3], np.full((N, 2), 0.3)])
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=N)
    for name, one in (("x", x), ("doubled", doubled), ("y", y)):
        store.write(one, layer=name)
    plan = dsvcca.plan_comparisons(store, measures=["gulp", "ridge_cca"], ridge=0, variance=1.0)
    found = dsvcca.compare(plan, tmp_path / "r.zarr").load()
    names = found.x_layer.values.tolist()
    a, b, c = (names.index(name) for name in ("x", "doubled", "y"))
    for measure in ("gulp", "ridge_cca"):
        assert found[measure].values[b, c] == pytest.approx(found[measure].values[a, c], abs=1e-5)
        own = dsvcca.measure(doubled, y, measure, ridge=0)[measure]
        assert own == pytest.approx(found[measure].values[a, c], abs=1e-5)
