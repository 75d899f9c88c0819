"""Canonical correlations of two sets of activations: truth by construction, invariances, refusals."""

import warnings

import numpy as np
import pytest
import scipy.linalg
from sklearn.datasets import load_linnerud

from dsvcca import DsvccaError, DsvccaWarning, cca, measure, svcca
from dsvcca.maths.correlations import correlations_of
from tests import reference

RHO = np.array([0.99, 0.9, 0.7, 0.5, 0.3, 0.1, 0.01, 0.0])

LIFE_CYCLE_SAVINGS = np.array(
    [
        [11.43, 29.35, 2.87, 2329.68, 2.87],
        [12.07, 23.32, 4.41, 1507.99, 3.93],
        [13.17, 23.8, 4.43, 2108.47, 3.82],
        [5.75, 41.89, 1.67, 189.13, 0.22],
        [12.88, 42.19, 0.83, 728.47, 4.56],
        [8.79, 31.72, 2.85, 2982.88, 2.43],
        [0.6, 39.74, 1.34, 662.86, 2.67],
        [11.9, 44.75, 0.67, 289.52, 6.51],
        [4.98, 46.64, 1.06, 276.65, 3.08],
        [10.78, 47.64, 1.14, 471.24, 2.8],
        [16.85, 24.42, 3.93, 2496.53, 3.99],
        [3.59, 46.31, 1.19, 287.77, 2.19],
        [11.24, 27.84, 2.37, 1681.25, 4.32],
        [12.64, 25.06, 4.7, 2213.82, 4.52],
        [12.55, 23.31, 3.35, 2457.12, 3.44],
        [10.67, 25.62, 3.1, 870.85, 6.28],
        [3.01, 46.05, 0.87, 289.71, 1.48],
        [7.7, 47.32, 0.58, 232.44, 3.19],
        [1.27, 34.03, 3.08, 1900.1, 1.12],
        [9.0, 41.31, 0.96, 88.94, 1.54],
        [11.34, 31.16, 4.19, 1139.95, 2.99],
        [14.28, 24.52, 3.48, 1390.0, 3.54],
        [21.1, 27.01, 1.91, 1257.28, 8.21],
        [3.98, 41.74, 0.91, 207.68, 5.81],
        [10.35, 21.8, 3.73, 2449.39, 1.57],
        [15.48, 32.54, 2.47, 601.05, 8.12],
        [10.25, 25.95, 3.67, 2231.03, 3.62],
        [14.65, 24.71, 3.25, 1740.7, 7.66],
        [10.67, 32.61, 3.17, 1487.52, 1.76],
        [7.3, 45.04, 1.21, 325.54, 2.48],
        [4.44, 43.56, 1.2, 568.56, 3.61],
        [2.02, 41.18, 1.05, 220.56, 1.03],
        [12.7, 44.19, 1.28, 400.06, 0.67],
        [12.78, 46.26, 1.12, 152.01, 2.0],
        [12.49, 28.96, 2.85, 579.51, 7.48],
        [11.14, 31.94, 2.28, 651.11, 2.19],
        [13.3, 31.92, 1.52, 250.96, 2.0],
        [11.77, 27.74, 2.87, 768.79, 4.35],
        [6.86, 21.44, 4.54, 3299.49, 3.01],
        [14.13, 23.49, 3.73, 2630.96, 2.7],
        [5.13, 43.42, 1.08, 389.66, 2.96],
        [2.81, 46.12, 1.21, 249.87, 1.13],
        [7.81, 23.27, 4.46, 1813.93, 2.01],
        [7.56, 29.81, 3.43, 4001.89, 2.45],
        [9.22, 46.4, 0.9, 813.39, 0.53],
        [18.56, 45.25, 0.56, 138.33, 5.14],
        [7.72, 41.12, 1.73, 380.47, 10.23],
        [9.24, 28.13, 2.72, 766.54, 1.88],
        [8.89, 43.69, 2.07, 123.58, 16.71],
        [4.71, 47.2, 0.66, 242.69, 5.08],
    ]
)
"""R's LifeCycleSavings: sr, pop15, pop75, dpi, ddpi of 50 countries (Belsley, Kuh & Welsch 1980)."""


def noisy_pair(rng, n=400, p=9, q=7, shared=5, noise=0.7):
    """Return activations (n, p), (n, q) that share some signals, all correlations different from 0 and 1."""
    signals = rng.standard_normal((n, shared))
    x = signals @ rng.standard_normal((shared, p)) + noise * rng.standard_normal((n, p))
    y = signals @ rng.standard_normal((shared, q)) + noise * rng.standard_normal((n, q))
    return x, y


def awkward_pair(seed):
    """Return one of the random cases: some neurons dead, doubled, constant or rounded, either side the wider."""
    rng = np.random.default_rng(seed)
    p, q = rng.integers(3, 20, size=2)
    x, y = noisy_pair(rng, n=int(rng.integers(260, 420)), p=int(p), q=int(q), shared=int(rng.integers(1, 6)))
    x = x + rng.uniform(-5, 5, size=x.shape[1])
    kind = seed % 5
    if kind == 0:
        x = np.column_stack([np.zeros(len(x)), x, np.full(len(x), 1234567.1)])
    elif kind == 1:
        x, y = np.column_stack([x, x[:, :2]]), np.column_stack([y[:, -1], y])
    elif kind == 2:
        x, y = x.astype(np.float16), np.column_stack([y.astype(np.float16), np.zeros(len(y), np.float16)])
    elif kind == 3:
        x = np.column_stack([x, x @ rng.standard_normal((x.shape[1], 4))])
        y = np.column_stack([y, np.full(len(y), -3e4), y @ rng.standard_normal((y.shape[1], 3)) + 7.0])
    return x, y


# Truth by construction and published numbers


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e5])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_planted_correlations_are_recovered(condition, mean):
    x, y = reference.planted(np.random.default_rng(1), 500, RHO, q=11, condition=condition, mean=mean)
    found = cca(x, y)
    assert (found.x_rank, found.y_rank) == (8, 11)
    np.testing.assert_allclose(found.correlations, RHO, atol=1e-10, rtol=0)


def test_planted_correlations_are_recovered_over_several_steps_of_the_grid():
    x, y = reference.planted(np.random.default_rng(2), 9000, RHO, condition=100.0, mean=5.0)
    np.testing.assert_allclose(cca(x, y).correlations, RHO, atol=1e-10, rtol=0)


def test_linnerud_gives_the_published_correlations():
    data = load_linnerud()
    with pytest.warns(DsvccaWarning, match="20 rows are fewer than 5 for each of the 3 \\+ 3"):
        found = cca(data.data, data.target)
    np.testing.assert_array_equal(np.round(found.correlations, 4), [0.7956, 0.2006, 0.0726])


def test_life_cycle_savings_give_the_correlations_r_prints():
    found = cca(LIFE_CYCLE_SAVINGS[:, 1:3], LIFE_CYCLE_SAVINGS[:, [0, 3, 4]])
    np.testing.assert_array_equal(np.round(found.correlations, 4), [0.8248, 0.3653])


@pytest.mark.parametrize("seed", range(50))
def test_random_cases_agree_with_the_reference(seed):
    x, y = awkward_pair(seed)
    found, expected = cca(x, y), reference.cca(x, y)
    assert (found.x_rank, found.y_rank) == (expected.x_rank, expected.y_rank)
    np.testing.assert_allclose(found.correlations, expected.correlations, atol=1e-10, rtol=0)


@pytest.mark.parametrize("seed", range(50))
def test_projection_weights_of_random_cases_agree_with_the_reference(seed):
    # Only cases without ties: where correlations are equal (doubled neurons on both sides, rank-deficient copies of
    # the same signals) the variates are defined up to a rotation, and with them the absolute sums that are the weights.
    x, y = awkward_pair(seed)
    expected = reference.cca(x, y)
    assert np.diff(expected.correlations).max(initial=-1.0) < -1e-7, "a tie: not a case for this test"
    found = cca(x, y)
    rtol = 1e-12 / min(0.01, -np.diff(expected.correlations).max())  # vectors turn by rounding over the smallest gap
    np.testing.assert_allclose(found.x_weights, expected.x_weights, rtol=rtol)
    np.testing.assert_allclose(found.y_weights, expected.y_weights, rtol=rtol)


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("criterion", ["variance", "singular"])
def test_truncated_cases_agree_with_the_reference(variance, criterion):
    x, y = noisy_pair(np.random.default_rng(3), p=12, q=15)
    found = cca(x, y, variance=variance, criterion=criterion)
    expected = reference.cca(x, y, variance, criterion)
    assert (found.x_rank, found.y_rank) == (expected.x_rank, expected.y_rank)
    np.testing.assert_allclose(found.correlations, expected.correlations, atol=1e-10, rtol=0)
    np.testing.assert_allclose(found.x_weights, expected.x_weights, rtol=1e-9)


def test_correlations_are_the_cosines_of_scipys_subspace_angles():
    x, y = noisy_pair(np.random.default_rng(4))
    angles = scipy.linalg.subspace_angles(x - x.mean(axis=0), y - y.mean(axis=0))
    np.testing.assert_allclose(cca(x, y).correlations, np.sort(np.cos(angles))[::-1], atol=1e-12, rtol=0)


def test_a_signal_dimension_is_told_from_noise_by_the_svd_step_only():
    rng = np.random.default_rng(5)
    n = 2500
    signals = rng.standard_normal((n, 50))
    noisy = np.column_stack([signals, 0.02 * rng.standard_normal((n, 150))])
    useful = np.column_stack([signals, rng.standard_normal((n, 150))])
    for other in (noisy, useful):
        plain = cca(signals, other)
        assert plain.y_rank == 200
        np.testing.assert_allclose(plain.correlations, np.ones(50), atol=1e-12)
    assert cca(signals, noisy, variance=0.99).y_rank <= 50
    assert cca(signals, useful, variance=0.99).y_rank > 180


def test_noise_dimensions_dilute_the_mean_until_the_svd_step_drops_them():
    rng = np.random.default_rng(6)
    n = 4000
    signals = rng.standard_normal((n, 50))
    x = np.column_stack([signals, 0.01 * rng.standard_normal((n, 150))])
    y = np.column_stack([signals, 0.01 * rng.standard_normal((n, 150))])
    plain, reduced = cca(x, y), cca(x, y, variance=0.999)
    assert int((plain.correlations > 1 - 1e-9).sum()) == 50
    assert plain.correlations.mean() < 0.5
    assert reduced.x_rank == reduced.y_rank == 50
    assert reduced.correlations.mean() > 0.999


def test_independent_data_sit_at_the_floor_that_wachter_gives():
    # One draw scatters by .0025 about its mean, the mean of eight by .0009.
    rng = np.random.default_rng(7)
    draws = [rng.standard_normal((2000, 150)) for _ in range(8)]
    found = np.mean([cca(draw[:, :100], draw[:, 100:]).correlations.mean() for draw in draws])
    assert reference.wachter_mean(100, 50, 2000) == pytest.approx(0.2092, abs=5e-5)
    assert found == pytest.approx(0.2092, abs=0.003)


# Identities


def test_correlations_do_not_change_under_invertible_affine_maps():
    rng = np.random.default_rng(8)
    x, y = noisy_pair(rng)
    moved = x @ reference.mixing(rng, 9, 50.0) + rng.uniform(-20, 20, size=9)
    np.testing.assert_allclose(cca(moved, y).correlations, cca(x, y).correlations, atol=1e-11, rtol=0)


def test_exchanging_the_sides_changes_nothing_but_their_names():
    x, y = noisy_pair(np.random.default_rng(9))
    one, other = cca(x, y), cca(y, x)
    np.testing.assert_allclose(one.correlations, other.correlations, atol=1e-13, rtol=0)
    np.testing.assert_allclose(one.x_weights, other.y_weights, rtol=1e-10)
    np.testing.assert_allclose(np.abs(one.x_directions), np.abs(other.y_directions), atol=1e-10)
    assert (one.x_rank, one.y_rank) == (other.y_rank, other.x_rank) == (9, 7)


def test_dropping_a_neuron_never_raises_a_correlation():
    x, y = noisy_pair(np.random.default_rng(10))
    whole = cca(x, y).correlations
    for dropped in range(9):
        fewer = cca(np.delete(x, dropped, axis=1), y).correlations
        assert (fewer <= whole[: fewer.size] + 1e-12).all()
        assert fewer.sum() < whole.sum() - 1e-6


def test_activations_compared_with_themselves_give_ones():
    x, _ = reference.planted(np.random.default_rng(11), 300, RHO, condition=1e4, mean=10.0)
    np.testing.assert_allclose(cca(x, x).correlations, np.ones(8), atol=1e-12, rtol=0)


def test_batch_norm_between_two_layers_gives_ones():
    x, _ = noisy_pair(np.random.default_rng(12))
    np.testing.assert_allclose(cca(x + 4.0, reference.batch_norm(x)).correlations, np.ones(9), atol=1e-12, rtol=0)


def test_correlations_descend_and_stay_between_zero_and_one():
    x, y = noisy_pair(np.random.default_rng(13), p=14, q=12)
    y[:, :4] = x[:, :4]
    rho = cca(x, y).correlations
    assert rho.shape == (12,)
    assert (np.diff(rho) <= 0).all()
    assert rho.min() >= 0
    assert rho.max() <= 1


def test_the_order_of_the_datapoints_does_not_matter():
    rng = np.random.default_rng(14)
    x, y = noisy_pair(rng)
    order = rng.permutation(len(x))
    np.testing.assert_allclose(cca(x[order], y[order]).correlations, cca(x, y).correlations, atol=1e-12, rtol=0)


def test_dead_doubled_and_constant_neurons_change_nothing():
    x, y = noisy_pair(np.random.default_rng(15))
    padded = np.column_stack([np.zeros(len(x)), x, x[:, 3], np.full(len(x), 9e5), 2 * x[:, 0] - 1])
    found = cca(padded, y)
    assert found.x_rank == 9
    np.testing.assert_allclose(found.correlations, cca(x, y).correlations, atol=1e-11, rtol=0)


# Variates and directions


def test_variates_are_orthonormal_and_paired_by_the_correlations():
    x, y = noisy_pair(np.random.default_rng(16))
    found = cca(x + 3.0, y - 2.0)
    of_x, of_y = found.variates(x=x + 3.0, y=y - 2.0)
    np.testing.assert_allclose(of_x.T @ of_x, np.eye(7), atol=1e-12)
    np.testing.assert_allclose(of_y.T @ of_y, np.eye(7), atol=1e-12)
    np.testing.assert_allclose(of_x.T @ of_y, np.diag(found.correlations), atol=1e-12)
    np.testing.assert_allclose(of_x.sum(axis=0), np.zeros(7), atol=1e-11)


def test_variates_are_the_centred_activations_times_the_directions():
    x, y = noisy_pair(np.random.default_rng(17))
    found = cca(x, y)
    assert found.x_directions.shape == (9, 7)
    assert found.y_directions.shape == (7, 7)
    np.testing.assert_allclose(found.x_mean, x.mean(axis=0), atol=1e-13)
    np.testing.assert_allclose(found.variates(x=x), (x - x.mean(axis=0)) @ found.x_directions, atol=1e-12)
    np.testing.assert_allclose(found.variates(y=y), (y - y.mean(axis=0)) @ found.y_directions, atol=1e-12)


def test_variates_of_new_datapoints_keep_the_correlations_of_the_population():
    rng = np.random.default_rng(18)
    signals = rng.standard_normal((20_000, 2))
    x = np.column_stack([signals, rng.standard_normal((20_000, 2))]) @ reference.mixing(rng, 4, 5.0) + 3.0
    y = signals * [0.9, 0.5] + rng.standard_normal((20_000, 2)) * np.sqrt(1 - np.array([0.9, 0.5]) ** 2)
    found = cca(x[:10_000], y[:10_000])
    of_x, of_y = found.variates(x=x[10_000:], y=y[10_000:])
    across = np.corrcoef(of_x.T, of_y.T)[:2, 2:]
    np.testing.assert_allclose(across, np.diag([0.9, 0.5]), atol=0.04)


def test_variates_do_not_depend_on_which_rows_they_are_asked_for():
    x, y = noisy_pair(np.random.default_rng(19))
    found = cca(x, y)
    np.testing.assert_allclose(found.variates(x=x[100:103]), found.variates(x=x)[100:103], atol=1e-14)
    assert found.variates(x=x[:1].tolist()).shape == (1, 7)


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_weight_of_every_direction_of_x_is_positive(seed):
    x, y = noisy_pair(np.random.default_rng(seed))
    directions = cca(x, y).x_directions
    largest = np.abs(directions).argmax(axis=0)
    assert (directions[largest, np.arange(7)] > 0).all()


def test_a_dead_neuron_has_no_weight_in_any_direction():
    x, y = noisy_pair(np.random.default_rng(20))
    x[:, 4] = 7.0
    directions = cca(x, y).x_directions
    np.testing.assert_allclose(directions[4], np.zeros(7), atol=1e-13)
    assert np.abs(directions[3]).max() > 1e-4


def test_truncated_variates_stay_orthonormal():
    x, y = noisy_pair(np.random.default_rng(21), p=20, q=16)
    found = cca(x, y, variance=0.9)
    assert found.x_rank < 20
    of_x, of_y = found.variates(x=x, y=y)
    np.testing.assert_allclose(of_x.T @ of_x, np.eye(of_x.shape[1]), atol=1e-12)
    np.testing.assert_allclose(of_x.T @ of_y, np.diag(found.correlations), atol=1e-12)


# Array libraries and types of number


def test_all_array_libraries_agree(xp):
    x, y = noisy_pair(np.random.default_rng(22))
    x = np.column_stack([x, np.full(len(x), 5.0)])
    found, expected = cca(xp.asarray(x), xp.asarray(y)), cca(x, y)
    for field in ("correlations", "x_mean", "y_mean", "x_weights", "y_weights", "x_directions", "y_directions"):
        got = xp.to_numpy(getattr(found, field))
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, getattr(expected, field), atol=1e-10, rtol=1e-10, err_msg=field)
    assert (found.x_rank, found.y_rank) == (9, 7)


def test_variates_are_of_the_library_and_device_of_the_activations(xp):
    x, y = noisy_pair(np.random.default_rng(23))
    of_x, of_y = cca(xp.asarray(x), xp.asarray(y)).variates(x=xp.asarray(x[:5]), y=xp.asarray(y[:5]))
    expected_x, expected_y = cca(x, y).variates(x=x[:5], y=y[:5])
    np.testing.assert_allclose(xp.to_numpy(of_x), expected_x, atol=1e-12)
    np.testing.assert_allclose(xp.to_numpy(of_y), expected_y, atol=1e-12)


def test_float32_activations_of_every_library_are_computed_in_float64(xp):
    x, y = reference.planted(np.random.default_rng(24), 500, RHO, condition=1e3, mean=30.0)
    found = cca(xp.asarray(x.astype(np.float32)), xp.asarray(y.astype(np.float32)))
    expected = reference.cca(x.astype(np.float32), y.astype(np.float32))
    np.testing.assert_allclose(xp.to_numpy(found.correlations), expected.correlations, atol=1e-10, rtol=0)


def test_lists_are_activations_too():
    x, y = noisy_pair(np.random.default_rng(25), n=120)
    np.testing.assert_array_equal(cca(x.tolist(), y.tolist()).correlations, cca(x, y).correlations)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool"])
def test_integers_and_booleans_are_exact_numbers(dtype):
    x, y = noisy_pair(np.random.default_rng(26))
    whole = (x > 0.5).astype(dtype) if dtype == "bool" else np.round(x * 4 + 60).clip(0, 120).astype(dtype)
    found = cca(whole, y)
    assert found.x_rank == 9
    np.testing.assert_array_equal(found.correlations, cca(whole.astype(np.float64), y).correlations)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_stored_types_are_read_exactly(dtype):
    x, y = noisy_pair(np.random.default_rng(27))
    stored = x.astype(dtype)
    expected = cca(stored.astype(np.float64), y).correlations
    np.testing.assert_allclose(cca(stored, y).correlations, expected, atol=1e-12, rtol=0)


def test_bfloat16_tensors_are_read_exactly():
    torch = pytest.importorskip("torch")
    x, y = noisy_pair(np.random.default_rng(28))
    found = cca(torch.from_numpy(x).to(torch.bfloat16), torch.from_numpy(y))
    expected = cca(reference.to_bfloat16(x.astype(np.float32)).astype(np.float64), y)
    assert found.correlations.dtype == torch.float64
    np.testing.assert_allclose(found.correlations.numpy(), expected.correlations, atol=1e-12, rtol=0)


def test_rounding_noise_of_16_bit_numbers_is_not_a_direction():
    rng = np.random.default_rng(29)
    x, y = noisy_pair(rng)
    wide = np.column_stack([x, x @ rng.standard_normal((9, 6))]).astype(np.float16)
    assert np.linalg.matrix_rank(wide.astype(np.float64)) == 15
    assert cca(wide, y).x_rank == 9


def test_activations_in_column_order_give_the_same_correlations():
    x, y = noisy_pair(np.random.default_rng(30))
    np.testing.assert_allclose(
        cca(np.asfortranarray(x), y[::-1][::-1]).correlations, cca(x, y).correlations, atol=1e-13, rtol=0
    )


def test_the_activations_given_are_not_modified(xp):
    x, y = noisy_pair(np.random.default_rng(31))
    given_x, given_y = xp.asarray(x), xp.asarray(y)
    cca(given_x, given_y, variance=0.9).variates(x=given_x)
    np.testing.assert_array_equal(xp.to_numpy(given_x), x)
    np.testing.assert_array_equal(xp.to_numpy(given_y), y)


# Refusals and warnings


def test_options_are_keyword_only():
    x, y = noisy_pair(np.random.default_rng(32))
    with pytest.raises(TypeError, match="positional"):
        cca(x, y, 0.9)
    with pytest.raises(TypeError, match="positional"):
        cca(x, y).variates(x)


def test_complex_activations_are_refused():
    x, y = noisy_pair(np.random.default_rng(33))
    with pytest.raises(DsvccaError, match=r"y is complex \(complex128\): give real activations"):
        cca(x, y + 1j)


@pytest.mark.parametrize("shape", [(400,), (40, 10, 9)])
def test_activations_that_are_no_matrix_are_refused(shape):
    x, y = noisy_pair(np.random.default_rng(34))
    with pytest.raises(DsvccaError, match=rf"x has {len(shape)} axes \({shape[0]},.*give \(datapoint, neuron\)"):
        cca(np.resize(x, shape), y)


@pytest.mark.parametrize("shape", [(0, 3), (400, 0)])
def test_empty_activations_are_refused(shape):
    x, _ = noisy_pair(np.random.default_rng(35))
    with pytest.raises(DsvccaError, match=rf"y is empty, shape \({shape[0]}, {shape[1]}\)"):
        cca(x, np.zeros(shape))


def test_another_number_of_datapoints_is_refused_with_both_numbers():
    x, y = noisy_pair(np.random.default_rng(36))
    with pytest.raises(DsvccaError, match="x has 400 datapoints and y has 399"):
        cca(x, y[1:])


@pytest.mark.parametrize("name", ["longdouble", "object"])
def test_types_that_are_no_real_activations_are_refused(name):
    x, y = noisy_pair(np.random.default_rng(37))
    other = x.astype(name)
    with pytest.raises(DsvccaError, match=f"activations of type '{other.dtype.name}' cannot be compared"):
        cca(other, y)


@pytest.mark.parametrize("row", [5, 300])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_counted_and_located(row, value):
    x, y = noisy_pair(np.random.default_rng(38))
    y[row, 3] = y[row + 20, 1] = value
    with pytest.raises(DsvccaError, match=f"y: 2 numbers are NaN or infinite, the first of datapoint {row}:"):
        cca(x, y)


def test_a_number_that_is_not_finite_in_float32_is_refused():
    x, y = noisy_pair(np.random.default_rng(39))
    x = x.astype(np.float32)
    x[350, 0] = np.nan
    with pytest.raises(DsvccaError, match="x: 1 numbers are NaN or infinite, the first of datapoint 350"):
        cca(x, y)


def test_numbers_whose_squares_overflow_are_refused():
    x, y = noisy_pair(np.random.default_rng(40))
    with pytest.raises(DsvccaError, match=r"x: squares of numbers as large as .*e\+20[01] overflow float64"):
        cca(x * 1e200, y)


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, 1e6, 1e-200])
def test_a_side_that_is_constant_is_refused(constant):
    x, _ = noisy_pair(np.random.default_rng(41))
    with pytest.raises(DsvccaError, match="y: every neuron is constant over all 400 rows"):
        cca(x, np.full((400, 3), constant))


@pytest.mark.parametrize("n", [9, 10])
def test_as_many_directions_as_degrees_of_freedom_are_refused(n):
    rng = np.random.default_rng(42)
    with pytest.raises(DsvccaError, match=rf"x: {n - 1} kept directions in {n} rows .*below rows - 1 = {n - 1}"):
        cca(rng.standard_normal((n, 9)), rng.standard_normal((n, 2)))


@pytest.mark.parametrize(("q", "forced"), [(14, 5), (10, 1)])
def test_correlations_that_are_one_whatever_the_data_are_counted_in_a_warning(q, forced):
    rng = np.random.default_rng(43)
    x, y = rng.standard_normal((30, 20)), rng.standard_normal((30, q))
    with pytest.warns(DsvccaWarning, match=rf"{forced} of {q} canonical correlations are 1 .*: 20 \+ {q} kept"):
        found = cca(x, y)
    assert int((found.correlations > 1 - 1e-12).sum()) == forced


def test_as_many_directions_as_degrees_of_freedom_force_no_correlation_yet():
    rng = np.random.default_rng(43)
    with pytest.warns(DsvccaWarning, match="30 rows are fewer than 5 for each"):
        found = cca(rng.standard_normal((30, 20)), rng.standard_normal((30, 9)))
    assert found.correlations.max() < 1 - 1e-6


def test_few_datapoints_a_direction_warn_and_enough_do_not():
    rng = np.random.default_rng(44)
    x, y = rng.standard_normal((50, 6)), rng.standard_normal((50, 4))
    with pytest.warns(DsvccaWarning, match=r"49 rows are fewer than 5 for each of the 6 \+ 4 kept directions"):
        cca(x[:49], y[:49])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cca(x, y)


def test_warnings_point_to_the_line_that_called():
    rng = np.random.default_rng(45)
    with pytest.warns(DsvccaWarning) as caught:
        cca(rng.standard_normal((20, 3)), rng.standard_normal((20, 3)))
    assert caught[0].filename == __file__


def test_an_unknown_criterion_is_refused():
    x, y = noisy_pair(np.random.default_rng(46))
    with pytest.raises(DsvccaError, match="criterion='energy' is unknown: use 'variance' or 'singular'"):
        cca(x, y, criterion="energy")


@pytest.mark.parametrize("variance", [0.0, -0.1, 1.01, 99, float("nan")])
def test_a_variance_that_is_no_share_is_refused(variance):
    x, y = noisy_pair(np.random.default_rng(47))
    with pytest.raises(DsvccaError, match=rf"variance={variance} must lie in \(0, 1\]"):
        cca(x, y, variance=variance)


def test_variates_of_nothing_are_refused():
    found = cca(*noisy_pair(np.random.default_rng(48)))
    with pytest.raises(DsvccaError, match=r"variates\(\) was given no activations"):
        found.variates()


@pytest.mark.parametrize("side", ["x", "y"])
def test_variates_of_another_number_of_neurons_are_refused(side):
    found = cca(*noisy_pair(np.random.default_rng(49)))
    neurons = {"x": 9, "y": 7}[side]
    with pytest.raises(DsvccaError, match=f"{side} has 8 neurons, the directions were found with {neurons}"):
        found.variates(**{side: np.zeros((3, 8))})


@pytest.mark.parametrize(
    "block",
    [np.diag([1.001, 0.5]), np.diag([np.nan, 0.5]), np.full((2, 2), 0.7)],
    ids=["on the diagonal", "not a number", "off the diagonal"],
)
def test_a_correlation_above_one_is_reported_and_not_clipped(block):
    with pytest.raises(DsvccaError, match="was found where 1 is the largest possible"):
        correlations_of(block)


def test_a_correlation_above_one_by_rounding_is_clipped():
    np.testing.assert_array_equal(correlations_of(np.diag([1 + 1e-7, 0.5])), [1.0, 0.5])


def test_a_constant_whose_square_is_infinite_is_constant():
    x = np.full((64, 2), 2.0**660)
    with pytest.raises(DsvccaError, match="every neuron is constant"):
        cca(x, np.random.default_rng(0).standard_normal((64, 2)))


def test_arrays_that_are_turned_or_elsewhere_are_told_what_to_do():
    rng = np.random.default_rng(34)
    x, y = rng.standard_normal((16, 400)), rng.standard_normal((20, 400))
    with pytest.raises(DsvccaError, match="if datapoints are the other axis of 400, give x.T and y.T"):
        svcca(x, y)
    with pytest.raises(
        DsvccaError, match=r"x has 1 axes \(16,\): give \(datapoint, neuron\), one neuron as x\[:, None"
    ):
        svcca(x[:, 0], x)
    dask_array = pytest.importorskip("dask.array")
    with pytest.raises(DsvccaError, match=r"y is a dask array, .* give y.compute\(\), or write it into a store"):
        svcca(x.T, dask_array.from_array(y.T))


def test_pwcca_is_that_of_x_and_that_of_y():
    rng = np.random.default_rng(35)
    x, y = rng.standard_normal((400, 5)), rng.standard_normal((400, 7))
    assert measure(x, y, "pwcca") == measure(x, y, ["pwcca_x", "pwcca_y"])
