"""Chance: against simulated independent data, published figures and closed forms."""

import numpy as np
import pytest
from scipy.special import betaln
from scipy.stats import beta as beta_distribution
from scipy.stats import kstest

from dsvcca.maths import nulls
from tests.reference import draw

SIZES = [(1, 4, 60), (2, 2, 60), (3, 5, 200), (5, 7, 59), (10, 10, 300), (10, 60, 100), (24, 30, 499), (30, 30, 70)]
LARGE = [(40, 50, 999), (100, 120, 1999)]


def simulated(rng, p, q, m, count, *, is_complex=False):
    """Return correlations (count, p) of independent normal data, from the data themselves."""

    def basis(k):
        z = rng.standard_normal((m, k)) + (1j * rng.standard_normal((m, k)) if is_complex else 0)
        return np.linalg.qr(z)[0]

    return np.asarray([np.linalg.svd(basis(p).conj().T @ basis(q), compute_uv=False) for _ in range(count)])


@pytest.mark.parametrize(
    ("p", "q", "n", "mean", "edge"),
    [
        (100, 50, 2000, 0.2092, None),
        (500, 500, 10_000, 0.1908, 0.4359),
        (64, 64, 10_000, 0.0680, 0.1595),
        (512, 512, 10_000, 0.1931, 0.4408),
        (100, 100, 150, 0.757, 1.0),
    ],
)
def test_mean_and_edge_of_wachter(p, q, n, mean, edge):
    assert nulls.mean_by_chance(p, q, n - 1) == pytest.approx(mean, abs=5e-4)
    assert edge is None or nulls.edges(p, q, n - 1)[1] == pytest.approx(edge, abs=1e-4)


@pytest.mark.parametrize("size", [*SIZES, (12, 20, 25), (50, 60, 90)])
def test_the_mean_is_that_of_simulated_data(size):
    found = simulated(np.random.default_rng(0), *size, 800).mean(axis=1)
    expected = nulls.mean_by_chance(*size)
    assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(800) + 1e-4


@pytest.mark.parametrize("size", [(1, 2, 40), (3, 5, 50), (12, 15, 100)])
def test_the_mean_is_that_of_simulated_complex_data(size):
    found = simulated(np.random.default_rng(0), *size, 800, is_complex=True).mean(axis=1)
    assert abs(found.mean() - nulls.mean_by_chance(*size, beta=2)) < 4 * found.std() / np.sqrt(800) + 1e-4


@pytest.mark.parametrize("beta", [1, 2])
def test_of_one_direction_everything_is_known(beta):
    q, m = 4, 60
    x = np.array([0.05, 0.2, 0.4, 0.7])
    half, rest = q * beta / 2, (m - q) * beta / 2
    np.testing.assert_allclose(
        nulls.largest_by_chance(x, 1, q, m, beta=beta), beta_distribution.sf(x**2, half, rest), rtol=2e-3
    )
    assert nulls.mean_by_chance(1, q, m, beta=beta) == pytest.approx(
        np.exp(betaln(half + 0.5, rest) - betaln(half, rest)), rel=1e-9
    )


def test_exact_and_asymptotic_means_meet():
    for beta in (1, 2):
        found = [nulls.mean_by_chance(p, 20, 400, beta) for p in (nulls.FEW, nulls.FEW + 1)]
        exact = [nulls._sum_by_chance(p, 20, 400, beta) / p for p in (nulls.FEW, nulls.FEW + 1)]
        np.testing.assert_allclose(found, exact, rtol=1e-3)


@pytest.mark.parametrize("size", [*SIZES, *LARGE])
def test_p_values_of_independent_data_are_uniform(size):
    """2,000 pairs of each size, drawn without data."""
    p = nulls.largest_by_chance(draw(np.random.default_rng(3), *size, 2000)[:, 0], *size)
    assert kstest(p, "uniform").pvalue > 0.01


@pytest.mark.parametrize("size", [(1, 2, 40), (3, 5, 50), (20, 25, 150), (40, 45, 200)])
def test_p_values_of_independent_complex_data_are_uniform(size):
    found = simulated(np.random.default_rng(4), *size, 400, is_complex=True)[:, 0]
    assert kstest(nulls.largest_by_chance(found, *size, beta=2), "uniform").pvalue > 0.01


def test_small_probabilities_keep_their_digits():
    exact = nulls.largest_by_chance(np.array([0.6, 0.8, 0.95]), 1, 4, 60)
    np.testing.assert_allclose(np.log(exact), beta_distribution.logsf([0.36, 0.64, 0.9025], 2, 28), rtol=1e-3)
    assert nulls.largest_by_chance(1.0, 5, 7, 59) == 0


def test_what_was_drawn_is_what_data_show():
    rng = np.random.default_rng(5)
    drawn, found = draw(rng, 5, 7, 59, 4000), simulated(rng, 5, 7, 59, 4000)
    for i in range(5):
        assert kstest(drawn[:, i], found[:, i]).pvalue > 0.01


def test_tracy_and_widom():
    """Published quantiles of 90, 95 and 99 % (Johnstone 2001), and means (Bornemann 2010)."""
    np.testing.assert_allclose(np.exp(nulls.tracy_widom([0.4501, 0.9793, 2.0234])), [0.1, 0.05, 0.01], atol=2e-5)
    x = np.linspace(-8, 20, 20_001)
    for beta, mean in ((1, -1.2065335745820), (2, -1.7710868074116)):
        upper = np.exp(nulls.tracy_widom(x, beta))
        assert np.trapezoid(upper, x) + x[0] == pytest.approx(mean, abs=1e-6)
    assert nulls.tracy_widom(1e4) == -np.inf


def test_spikes_are_inverted():
    """Figures of a simulated pair: 100 and 150 directions in 1,000 rows, three of them shared."""
    found = nulls.without_chance(np.sqrt([0.856, 0.623, 0.534, 0.4]), 100, 150, 999)
    np.testing.assert_allclose(found**2, [0.807, 0.486, 0.354, 0.0], atol=1e-3)


def test_planted_correlations_come_back_without_chance():
    rng = np.random.default_rng(0)
    n, p, q, true = 4000, 200, 300, np.array([0.9, 0.7, 0.5])
    z = rng.standard_normal((n, 3))
    x, y = (rng.standard_normal((n, k)) for k in (p, q))
    x[:, :3], y[:, :3] = z, z * true + np.sqrt(1 - true**2) * rng.standard_normal((n, 3))
    u, v = (np.linalg.qr(a - a.mean(axis=0))[0] for a in (x, y))
    rho = np.linalg.svd(u.T @ v, compute_uv=False)
    assert abs(rho[:3] - true).max() > 0.05
    np.testing.assert_allclose(nulls.without_chance(rho, p, q, n - 1)[:3], true, atol=0.04)
    assert nulls.standing_out(rho, p, q, n - 1) == 3
    assert nulls.without_chance(rho, p, q, n - 1)[4:].max() < 0.2


def test_directions_that_stand_out_are_counted():
    rng = np.random.default_rng(1)
    none = draw(rng, 20, 30, 499, 1000)
    assert 0.01 < (nulls.standing_out(none, 20, 30, 499) > 0).mean() < 0.08
    some = np.concatenate([np.full((1000, 4), 0.8), draw(rng, 16, 26, 495, 1000)], axis=1)
    counts = nulls.standing_out(some, 20, 30, 499)
    assert (counts >= 4).all()
    assert 0.01 < (counts > 4).mean() < 0.08
    assert nulls.standing_out(np.ones(3), 3, 3, 4) == 0  # three correlations of 1 are none where so few rows force them


def test_bartlett():
    found = draw(np.random.default_rng(2), 5, 7, 59, 20_000)
    statistics, freedom = nulls.bartlett_statistics(found, 5, 7, 59)
    assert freedom.tolist() == [35, 24, 15, 8, 3]
    assert statistics[:, 0].mean() == pytest.approx(35.0, abs=0.3)
    assert kstest(nulls.bartlett(found[:2000], 5, 7, 59)[:, 0], "uniform").pvalue > 0.01


def test_without_freedom_there_is_no_p_value():
    assert np.isnan(nulls.largest_by_chance(0.9, 30, 40, 60))
    assert nulls.mean_by_chance(30, 40, 60) > 10 / 30


def test_arrays_broadcast():
    p = np.array([[3, 40], [5, 20]])
    found = nulls.largest_by_chance(np.full((2, 2), 0.6), p, 50, 200)
    each = [[nulls.largest_by_chance(0.6, k, 50, 200) for k in row] for row in p.tolist()]
    np.testing.assert_array_equal(found, each)
    np.testing.assert_array_equal(
        nulls.mean_by_chance(p, 50, 200), [[nulls.mean_by_chance(k, 50, 200) for k in r] for r in p.tolist()]
    )


@pytest.mark.parametrize("beta", [1, 2])
def test_bartletts_p_values_are_uniform_for_few_directions(beta):
    rng = np.random.default_rng(0)

    def columns(c):
        x = rng.standard_normal((500, 200, c)) + (1j * rng.standard_normal((500, 200, c)) if beta == 2 else 0)
        return np.linalg.qr(x - x.mean(axis=1, keepdims=True))[0]

    u, v = columns(3), columns(4)
    rho = np.linalg.svd(np.conj(u).swapaxes(1, 2) @ v, compute_uv=False)
    own = nulls.bartlett(rho, np.full(500, 3), np.full(500, 4), 199, beta)
    assert kstest(own[:, 0], "uniform").pvalue > 0.01
    filled = nulls.bartlett(np.pad(rho, ((0, 0), (0, 2))), np.full(500, 3), np.full(500, 4), 199, beta)
    np.testing.assert_allclose(filled[:, :3], own, rtol=1e-9)
    np.testing.assert_array_equal(filled[:, 3:], 1)


def test_bartlett_says_nothing_where_rows_are_too_few():
    """Of 25 and 25 directions in 40 rows eleven correlations are 1 whatever the data."""
    rho = np.linspace(1, 0.1, 25)
    rho[:12] = 1
    assert nulls.bartlett(rho, 25, 25, 39)[0] == 1
