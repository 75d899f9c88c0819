"""Jackknife errors, held-out correlations and shuffles: against every datapoint written out."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.stats

import dsvcca
from dsvcca.maths.arrays import to_numpy
from dsvcca.maths.measures import ALL, MEASURES
from dsvcca.maths.mixing import mix, unmix
from dsvcca.maths.resampling import FOLDS, fold_bounds, influences
from tests.populations import same_bits

pytestmark = pytest.mark.filterwarnings("ignore:.* datapoints are counted", "ignore:.* NaN where")

NAMES = ["svcca", "svcca_error", "svcca_held_out"]


def centred(x):
    return x - x.mean(axis=0)


def planted(n, rho, more=0, seed=0):
    """Return Gaussian x and y with these canonical correlations, and further columns of y."""
    rng = np.random.default_rng(seed)
    rho = np.asarray(rho)
    x, y = rng.standard_normal((n, len(rho))), rng.standard_normal((n, len(rho) + more))
    y[:, : len(rho)] = rho * x + np.sqrt(1 - rho**2) * y[:, : len(rho)]
    return x, y


def correlations(x, y):
    u, v = (np.linalg.qr(centred(one))[0] for one in (x, y))
    return np.linalg.svd(u.T @ v, compute_uv=False)


def basis(x, variance=1.0):
    u, s, _ = np.linalg.svd(centred(x), full_matrices=False)
    k = len(s) if variance == 1 else int(np.searchsorted(np.cumsum(s**2), variance * np.sum(s**2))) + 1
    return u[:, :k]


def first_order(u, v, bounds):
    """Return the jackknife error of the mean correlation from the influence of every row."""
    a, rho, b = np.linalg.svd(u.conj().T @ v, full_matrices=False)
    h, g = u @ a, v @ b.conj().T
    rows = np.sum((h.conj() * g).real - rho * (np.abs(h) ** 2 + np.abs(g) ** 2) / 2, axis=1)
    own = np.add.reduceat(rows, bounds[:-1])
    count = len(own)
    return np.sqrt(count / (count - 1) * np.sum(own**2)) / len(rho)


def exact_error(x, y, bounds):
    """Return the jackknife error from as many analyses as there are folds."""
    means = []
    for start, stop in pairwise(bounds):
        left = np.r_[0:start, stop : len(x)]
        means.append(correlations(x[left], y[left]).mean())
    return np.sqrt((len(means) - 1) / len(means) * np.sum((means - np.mean(means)) ** 2))


def held_out(x, y, bounds):
    """Return the mean correlation in odd folds of what was found in the even ones."""
    places = np.searchsorted(bounds, np.arange(len(x)), side="right") - 1
    even, odd = places % 2 == 0, places % 2 == 1
    (q, r), (s, t) = (np.linalg.qr(centred(one[even])) for one in (x, y))
    a, _, b = np.linalg.svd(q.T @ s, full_matrices=False)
    left, right = x[odd] @ np.linalg.solve(r, a), y[odd] @ np.linalg.solve(t, b.T)
    return np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(left.T, right.T, strict=True)])


def compared(tmp_path, arrays, dims=None, **options):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=len(arrays[0]))
    for i, x in enumerate(arrays):
        store.write(x, layer=f"l{i}", **({"dims": dims} if dims else {}))
    plan = dsvcca.plan_comparisons(store, **{"measures": NAMES, "variance": 1.0} | options)
    return dsvcca.compare(plan, tmp_path / "r.zarr").load()


@pytest.mark.parametrize(
    ("rows", "unit"), [(3, 1), (100, 1), (2559, 1), (2560, 1), (10_001, 1), (9800, 49), (500_000, 49)]
)
def test_folds_are_whole_datapoints_and_about_alike(rows, unit):
    bounds = fold_bounds(rows, unit)
    assert bounds[0] == 0
    assert bounds[-1] == rows
    assert len(bounds) - 1 == min(FOLDS, rows // unit)
    assert (bounds[:-1] % unit == 0).all()
    sizes = np.diff(bounds)
    assert sizes.max() - sizes.min() <= max(sizes.mean() / 2, unit)


@pytest.mark.parametrize("rows", [5, 64, 100, 4096, 4200])
def test_mixed_rows_are_unmixed(xp, rows):
    x = np.random.default_rng(0).standard_normal((rows, 3))
    np.testing.assert_allclose(to_numpy(unmix(mix(xp.asarray(x), 128), 128)), x, atol=1e-14)


@pytest.mark.parametrize("n", [1003, 3001])
def test_errors_and_held_out_correlations_are_those_of_the_datapoints(tmp_path, n):
    x, y = planted(n, [0.9, 0.6, 0.3], more=2)
    layers = [x, 3 * y + 1, y[:, ::-1][:, :4]]
    found = compared(tmp_path, layers)
    bounds = fold_bounds(n, 1)
    for i, j in ((0, 1), (1, 0), (1, 2)):
        one, other = layers[i], layers[j]
        expected = first_order(basis(one), basis(other), bounds)
        assert found.svcca_error.values[i, j] == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert found.svcca_held_out.values[i, j] == pytest.approx(held_out(one, other, bounds), abs=2e-6)
        own = dsvcca.measure(one, other, NAMES)
        for name in NAMES:
            assert found[name].values[i, j] == pytest.approx(own[name], rel=1e-3, abs=1e-6)
    assert found.svcca_error.values[0, 1] > 0
    np.testing.assert_array_equal(found.svcca_error, found.svcca_error.T)
    np.testing.assert_array_equal(found.svcca_held_out, found.svcca_held_out.T)


def test_errors_are_the_exact_jackknife_to_first_order():
    for n, rho in ((400, [0.8, 0.5]), (4000, [0.9, 0.5, 0.2])):
        x, y = planted(n, rho, more=1)
        own = dsvcca.measure(x, y, ["svcca_error"])["svcca_error"]
        assert own == pytest.approx(exact_error(x, y, fold_bounds(n, 1)), rel=0.03)


def test_influences_are_the_derivative(xp):
    """Weighting a fold by 1 - e moves sum(rho) by -e times its influence."""
    x, y = planted(300, [0.9, 0.6, 0.3], more=2)
    u, v = basis(x), basis(y)
    c = u.T @ v
    a, rho, _ = np.linalg.svd(c, full_matrices=False)
    rows = slice(40, 90)
    parts = [(one[rows].T @ other[rows])[None] for one, other in ((u, v), (u, u), (v, v))]
    own = influences(
        *(xp.asarray(one[None]) for one in (c, rho, a, parts[0])), *([xp.asarray(g.reshape(1, -1))] for g in parts[1:])
    )

    def moved(e):
        g_x, g_y = np.eye(3) - e * parts[1][0], np.eye(5) - e * parts[2][0]
        left, right = (np.linalg.inv(np.linalg.cholesky(g)) for g in (g_x, g_y))
        return np.linalg.svd(left @ (c - e * parts[0][0]) @ right.T, compute_uv=False).sum()

    assert float(own[0, 0]) == pytest.approx((moved(-1e-5) - moved(1e-5)) / 2e-5, rel=1e-6)


def test_several_variances_have_their_own_errors(tmp_path):
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((700, 4))
    x, y = (shared @ rng.standard_normal((4, 12)) + 0.4 * rng.standard_normal((700, 12)) for _ in range(2))
    found = compared(tmp_path, [x, y], variance=[0.9, 1.0])
    for place, variance in enumerate((0.9, 1.0)):
        expected = first_order(basis(x, variance), basis(y, variance), fold_bounds(700, 1))
        assert found.svcca_error.values[0, 1, place] == pytest.approx(expected, rel=1e-4)


def test_maps_have_errors_over_all_frequencies(tmp_path):
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((400, 4, 4, 2))
    x, y = (shared @ rng.standard_normal((2, 3)) + rng.standard_normal((400, 4, 4, 3)) for _ in range(2))
    found = compared(tmp_path, [x, y], "nhwc")
    bounds, total, rank = fold_bounds(400, 1), 0, 0
    for f in np.ndindex(4, 4):
        u, v = (basis(np.fft.fft2(one, axes=(1, 2))[:, f[0], f[1]]) for one in (x, y))
        a, rho, b = np.linalg.svd(u.conj().T @ v)
        h, g = u @ a, v @ b.conj().T
        total = total + np.sum((h.conj() * g).real - rho * (abs(h) ** 2 + abs(g) ** 2) / 2, axis=1)
        rank += 3
    own = np.add.reduceat(total, bounds[:-1])
    assert found.svcca_error.values[0, 1] == pytest.approx(np.sqrt(20 / 19 * np.sum(own**2)) / rank, rel=1e-3)
    assert 0 < found.svcca_held_out.values[0, 1] < found.svcca.values[0, 1]


def test_positions_are_left_out_with_their_datapoint(tmp_path):
    """Repeating every row says nothing new: the error stays."""
    x, y = planted(310, [0.8, 0.4], more=1)
    once = compared(tmp_path / "once", [x, y])
    often = compared(tmp_path / "often", [np.repeat(one[:, None], 7, axis=1) for one in (x, y)], "ntd")
    assert often.svcca_error.values[0, 1] == pytest.approx(once.svcca_error.values[0, 1], rel=1e-4)
    assert often.svcca_held_out.values[0, 1] == pytest.approx(once.svcca_held_out.values[0, 1], abs=1e-5)


def test_the_interval_covers():
    """Of 400 draws the 95 % interval of Student's t with 19 degrees holds the planted mean in 90 to 98 %."""
    rho = np.asarray([0.9, 0.6, 0.3])
    covered = []
    for seed in range(400):
        x, y = planted(1000, rho, more=1, seed=seed)
        found = dsvcca.measure(x, y, ["svcca", "svcca_error"])
        covered.append(abs(found["svcca"] - rho.mean()) < scipy.stats.t.ppf(0.975, 19) * found["svcca_error"])
    assert 0.90 <= np.mean(covered) <= 0.98


def test_independent_layers_have_nothing_to_hold_out(tmp_path):
    rng = np.random.default_rng(0)
    found = compared(tmp_path, [rng.standard_normal((400, 20)) for _ in range(8)], measures=[*NAMES, "chance"])
    own = found.svcca_held_out.values[np.triu_indices(8, 1)]
    assert abs(own.mean()) < 4 * own.std() / np.sqrt(len(own))
    assert found.svcca.values[np.triu_indices(8, 1)].min() > 0.1


def test_too_few_rows_for_half_of_them_hold_out_nothing(tmp_path):
    rng = np.random.default_rng(0)
    with pytest.warns(dsvcca.DsvccaWarning, match="fewer than 5 rows"):
        found = compared(tmp_path, [rng.standard_normal((40, 19)) for _ in range(2)])
    assert np.isnan(found.svcca_held_out.values).all()
    assert np.isfinite(found.svcca_error.values).all()


def test_the_direct_route_keeps_no_rows(tmp_path):
    x, y = planted(400, [0.8, 0.4], more=1)
    found = compared(tmp_path, [x, y], route="direct", measures=[*NAMES, "svcca_shuffled"])
    for name in ("svcca_error", "svcca_held_out", "svcca_shuffled"):
        assert np.isnan(found[name].values).all()
    assert np.isfinite(found.svcca.values).all()


def test_translations_of_one_image_are_not_told_apart(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.standard_normal((100, 2, 2, 3)) for _ in range(2)]
    every = [np.concatenate([np.roll(one, (a, b), (1, 2)) for a in range(2) for b in range(2)]) for one in images]
    target = rng.standard_normal(400)
    names = [*NAMES, "svcca_shuffled"]
    found = compared(tmp_path, every, "nhwc", measures=names, rows="translations", targets=target)
    for name in names[1:]:
        assert np.isnan(found[name].values).all()


SHUFFLES = ["svcca", "svcca_shuffled", "chance"]


@pytest.mark.parametrize("dims", [None, "nhwc"])
def test_shuffled_layers_lie_on_the_floor(tmp_path, dims):
    rng = np.random.default_rng(0)
    shape = (500, 24) if dims is None else (300, 4, 4, 9)
    shared = rng.standard_normal(shape)
    arrays = [shared + rng.standard_normal(shape) for _ in range(4)]
    found = compared(tmp_path, arrays, dims, measures=[*SHUFFLES, "p_shuffled"], shuffles=19)
    here = np.triu_indices(4, 1)
    assert found.svcca_shuffled.values[here].mean() == pytest.approx(found.chance.values[here].mean(), rel=0.03)
    np.testing.assert_array_equal(found.p_shuffled.values[here], 0.05)
    assert np.isnan(np.diagonal(found.svcca_shuffled.values)).all()
    assert np.isnan(np.diagonal(found.p_shuffled.values)).all()
    assert found.attrs["shuffles"] == 19


def test_rows_are_shuffled_and_not_rotated(tmp_path):
    """One row that holds everything meets others: a rotation of neighbours would spread it over them."""
    x, y = (np.random.default_rng(seed).standard_normal((640, 1)) * 1e-3 for seed in (0, 1))
    x[100], y[100] = 1, 1
    with pytest.warns(dsvcca.DsvccaWarning, match="64 neighbouring"):
        found = compared(tmp_path, [x, y], measures=SHUFFLES, shuffles=20)
    assert found.svcca.values[0, 1] > 0.99
    assert found.svcca_shuffled.values[0, 1] < 0.02


@pytest.mark.parametrize("positions", [7, 49, 197])
def test_datapoints_are_shuffled_with_all_their_positions(tmp_path, positions):
    """What every position is like for all datapoints stays, so that it is seen to be chance."""
    rng = np.random.default_rng(0)
    n = 60
    common = 3 * rng.standard_normal((1, positions, 3))
    own = [np.repeat(rng.standard_normal((n, 1, 3)), positions, axis=1) for _ in range(2)]
    shared = np.repeat(rng.standard_normal((n, 1, 3)), positions, axis=1)
    found = compared(tmp_path, [common + shared + 0.1 * one for one in own], "ntd", measures=SHUFFLES)
    left, right = (common + shared + 0.1 * one for one in own)
    drawn = [correlations(left.reshape(-1, 3), rng.permutation(right).reshape(-1, 3)).mean() for _ in range(20)]
    assert found.svcca.values[0, 1] > 0.98
    assert found.svcca_shuffled.values[0, 1] == pytest.approx(np.mean(drawn), abs=5 * np.std(drawn))
    assert np.mean(drawn) > 0.5


def test_sequences_of_more_positions_than_rows_of_a_step_are_not_shuffled(tmp_path):
    arrays = [np.random.default_rng(i).standard_normal((4, 1025, 2)) for i in range(2)]
    found = compared(tmp_path, arrays, "ntd", measures=SHUFFLES)
    assert np.isnan(found.svcca_shuffled.values).all()
    assert np.isfinite(found.svcca.values).all()


def test_p_values_of_shuffles_are_uniform(tmp_path):
    rng = np.random.default_rng(0)
    tails = [rng.standard_t(3, (250, 6)) for _ in range(16)]
    found = compared(tmp_path, tails, measures=["p_shuffled"], shuffles=19)
    own = found.p_shuffled.values[np.triu_indices(16, 1)]
    assert own.min() == pytest.approx(1 / 20)
    assert scipy.stats.kstest(own, lambda p: np.clip(np.floor(p * 20 + 1e-9) / 20, 0, 1)).pvalue > 0.01


def test_errors_and_shuffles_do_not_depend_on_order_nor_on_what_was_there_before(tmp_path):
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((900, 5))
    layers = {
        name: shared @ rng.standard_normal((5, c)) + rng.standard_normal((900, c))
        for name, c in (("a", 9), ("b", 14), ("c", 11), ("d", 30))
    }
    options = {"measures": [*NAMES, *SHUFFLES, "p_shuffled"], "shuffles": 19, "variance": [0.9, 1.0]}

    def store(names, where):
        found = dsvcca.create_store(tmp_path / where / "s.zarr", datapoints=900)
        for name in names:
            found.write(layers[name], layer=name)
        return found

    one, other = store("abcd", "one"), store("dbca", "other")
    whole = dsvcca.compare(dsvcca.plan_comparisons(one, **options), tmp_path / "whole.zarr").load()
    turned = dsvcca.compare(dsvcca.plan_comparisons(other, **options), tmp_path / "turned.zarr").load()
    order = [turned.x_layer.values.tolist().index(name) for name in "abcd"]
    for name in options["measures"]:
        np.testing.assert_array_equal(whole[name], turned[name].values[np.ix_(order, order)])
    few = dsvcca.compare(dsvcca.plan_comparisons(one.select(layer=["a", "c"]), **options), tmp_path / "grown.zarr")
    assert few.sizes["x"] == 2
    grown = dsvcca.compare(dsvcca.plan_comparisons(one, **options), tmp_path / "grown.zarr").load()
    names = grown.x_layer.values.tolist()
    order = [names.index(name) for name in "abcd"]
    assert same_bits(whole, grown.isel(x=order, y=order).drop_vars(["x", "y"]).assign_coords(x=whole.x, y=whole.y))


def test_all_measures_are_all_but_those_that_shuffle(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=50)
    store.write(np.random.default_rng(0).standard_normal((50, 3)), layer="a")
    plan = dsvcca.plan_comparisons(store, measures="all")
    assert plan.measures == ALL
    assert set(MEASURES) - set(ALL) == {
        *("svcca_held_out", "svcca_shuffled", "p_shuffled"),
        *("svcca_google", "pwcca_google_x", "pwcca_google_y"),
    }
    assert plan.shuffles == 0
    once = dsvcca.plan_comparisons(store, measures=["svcca_shuffled"])
    often = dsvcca.plan_comparisons(store, measures=["svcca_shuffled"], shuffles=50)
    assert often.price().flops > 10 * once.price().flops or often.work().products == 51
    assert once.work().products == 2


@pytest.mark.parametrize("shuffles", [0, -1, 1.5, True, "many", 10_001])
def test_a_number_of_shuffles_that_is_none_is_refused(tmp_path, shuffles):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=50)
    store.write(np.random.default_rng(0).standard_normal((50, 3)), layer="a")
    with pytest.raises(dsvcca.DsvccaError, match=r"shuffles=.* must be a number from 1 to 10,000"):
        dsvcca.plan_comparisons(store, measures=["svcca_shuffled"], shuffles=shuffles)
    x = np.random.default_rng(0).standard_normal((50, 3))
    with pytest.raises(dsvcca.DsvccaError, match=r"shuffles=.* must be a number from 1 to 10,000"):
        dsvcca.measure(x, x, "svcca_shuffled", shuffles=shuffles)


def test_too_few_shuffles_for_a_p_value_are_refused(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=50)
    store.write(np.random.default_rng(0).standard_normal((50, 3)), layer="a")
    with pytest.raises(dsvcca.DsvccaError, match=r"p_shuffled of shuffles=1 cannot be below 0.5: give 19 or more"):
        dsvcca.plan_comparisons(store, measures=["p_shuffled"])


def test_halves_that_lack_a_direction_hold_out_nothing(tmp_path):
    """A neuron that is silent in the even folds has no direction there."""
    x, y = planted(400, [0.8, 0.4], more=1)
    bounds = fold_bounds(400, 1)
    for fold in range(0, 20, 2):
        x[bounds[fold] : bounds[fold + 1], 1] = 0
    found = compared(tmp_path, [x, y])
    assert np.isnan(found.svcca_held_out.values[0, 1])
    assert np.isfinite(found.svcca.values).all()


def test_shuffles_do_not_depend_on_what_was_compared_before(tmp_path):
    x, y = planted(200, [0.8, 0.5, 0.3], more=3)
    found = []
    for before in (False, True):
        store = dsvcca.create_store(tmp_path / f"{before}.zarr", datapoints=200)
        store.write(x, layer="x")
        store.write(y * [9, 3, 1, 0.1, 0.1, 0.1], layer="y")
        if before:
            dsvcca.compare(dsvcca.plan_comparisons(store, variance=1.0), tmp_path / "all.zarr")
        plan = dsvcca.plan_comparisons(store, variance=0.9, measures=SHUFFLES, shuffles=3)
        found.append(dsvcca.compare(plan, tmp_path / f"{before}-r.zarr").load())
    np.testing.assert_allclose(found[0].svcca_shuffled, found[1].svcca_shuffled, atol=1e-7)


@pytest.mark.parametrize("lengths", [[5, 3, 4, 2], [1, 2, 3, 4, 5]])
def test_sequences_of_different_lengths_are_not_told_apart(tmp_path, lengths):
    """Whether or not their lengths add up to a multiple of their number."""
    n, rng = 120, np.random.default_rng(0)
    mask = np.arange(5) < np.tile(lengths, n)[:n, None]
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=n)
    store.write_mask(mask)
    for i in range(2):
        store.write(rng.standard_normal((n, 5, 3)), layer=f"l{i}", dims="ntd")
    names = [*NAMES, "svcca_shuffled", "cka_debiased"]
    plan = dsvcca.plan_comparisons(store, view="positions", variance=1.0, measures=names)
    found = dsvcca.compare(plan, tmp_path / "r.zarr").load()
    for name in names[1:]:
        assert np.isnan(found[name].values).all()
    assert np.isfinite(found.svcca.values).all()


def test_bins_at_which_nothing_is_kept_are_shuffled_away(tmp_path):
    rng = np.random.default_rng(5)
    low = np.array([1, 0.1, 0.01, 0.1])
    maps = []
    for c in (3, 5):
        spectrum = np.fft.fft2(rng.standard_normal((300, 4, 4, c)), axes=(1, 2)) * low[:, None, None] * low[:, None]
        maps.append(np.fft.ifft2(spectrum, axes=(1, 2)).real)
    found = compared(tmp_path, maps, "nhwc", variance=0.9, measures=["svcca", "svcca_shuffled", "svcca_error"])
    assert 0 < found.svcca_shuffled.values[0, 1] < 1
    assert found.svcca_error.values[0, 1] > 0


def test_ties_of_few_values_count_as_not_smaller():
    """Neurons of two values share nothing here, and shuffles of them often share nothing either."""
    x, y = np.zeros((60, 1)), np.zeros((60, 1))
    x[:30], y[15:45] = 1, 1
    assert dsvcca.measure(x, y, "p_shuffled", shuffles=99)["p_shuffled"] == 1  # nothing is shared


def test_directions_that_only_one_half_has_are_no_number(tmp_path):
    """A neuron that is active in one row of the even folds has no correlation in the odd ones, not any: 0 / 0."""
    rng = np.random.default_rng(3)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=4096)
    layers = []
    for i in range(2):
        x = np.zeros((4096, 7))
        x[:, :5] = rng.standard_normal((4096, 5))
        x[10, 5], x[11, 6] = 10, 20
        layers.append(x.astype("float32"))
        store.write(layers[-1], layer=f"l{i}")
    plan = dsvcca.plan_comparisons(store, variance=1.0, measures=["svcca", "svcca_held_out"])
    assert np.isnan(dsvcca.compare(plan, tmp_path / "r.zarr").svcca_held_out.values).all()
    x, y = layers
    for one in (x, x[:, ::-1]):
        assert np.isnan(dsvcca.measure(one, y, ["svcca_held_out"], variance=1.0)["svcca_held_out"])
    whole = dsvcca.measure(x[:, :5], y[:, :5], ["svcca_held_out"], variance=1.0)["svcca_held_out"]
    assert abs(whole) < 0.1
