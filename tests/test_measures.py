"""SVCCA, PWCCA and R²: one pair in memory, stacks of cross blocks, and what each does not change under."""

from types import SimpleNamespace

import numpy as np
import pytest

from dsvcca import DsvccaError, cca, pwcca, svcca
from dsvcca.maths.arrays import adjoint, inverse_cholesky, namespace
from dsvcca.maths.basis import RankRule
from dsvcca.maths.correlations import corrected, correlations_of, smaller_side
from dsvcca.maths.measures import DEFAULT, MEASURES
from dsvcca.maths.sums import totals_of_values, totals_of_vectors
from dsvcca.maths.whiten import whiten_in_memory
from tests import reference

SIDES = ["x", "y"]
ORIENTATIONS = [(4, 6), (6, 4), (5, 5), (1, 5), (5, 1)]


def representation(rng, signals, neurons, noise=0.6):
    """Return activations of a layer that sees some signals through neurons of different size."""
    n, k = signals.shape
    x = signals @ rng.standard_normal((k, neurons)) + noise * rng.standard_normal((n, neurons))
    return x * np.geomspace(0.3, 3.0, neurons) + rng.uniform(-2, 2, size=neurons)


def pair(seed=0, p=9, q=7, n=500):
    """Return activations (n, p), (n, q), all their correlations different, none of them 0 or 1."""
    rng = np.random.default_rng(seed)
    signals = rng.standard_normal((n, 4))
    return representation(rng, signals, p), representation(rng, signals, q)


class Stack:
    """Cross blocks of some pairs among three representations a side, truncated to equal ranks."""

    x = np.array([0, 2, 1, 0, 2])
    y = np.array([1, 0, 0, 2, 2])

    def __init__(self, xp, k_x, k_y):
        rng = np.random.default_rng(1)
        signals = rng.standard_normal((500, 5))
        self.left = [representation(rng, signals, neurons) for neurons in (8, 11, 8)]
        self.right = [representation(rng, signals, neurons) for neurons in (7, 9, 12)]
        left = [whiten_in_memory(xp.asarray(one), RankRule(), "x") for one in self.left]
        right = [whiten_in_memory(xp.asarray(one), RankRule(), "y") for one in self.right]
        self.x_loadings = [basis.blocks[0].loadings for _, basis in left]
        self.y_loadings = [basis.blocks[0].loadings for _, basis in right]
        blocks = [self._cross(*left[i], *right[j])[:k_x, :k_y] for i, j in zip(self.x, self.y, strict=True)]
        self.c = namespace(blocks[0]).stack(blocks)
        self.expected = [
            reference.cca(self.left[i], self.right[j], ranks=(k_x, k_y)) for i, j in zip(self.x, self.y, strict=True)
        ]

    @staticmethod
    def _cross(u, x, v, y):
        (of_x,), (of_y,) = x.blocks, y.blocks
        inverses = inverse_cholesky(of_x.cholesky), inverse_cholesky(of_y.cholesky)
        return corrected(namespace(u).matmul(adjoint(u), v), of_x.column_sums, of_y.column_sums, x.count, *inverses)


def values_of(names, totals, c):
    """Return some measures of stacked cross blocks of one frequency."""
    return [MEASURES[name].value(totals, SimpleNamespace(fewer=min(c.shape[1:]))) for name in names]


def mean_correlation(c):
    """Return svcca and r2 of stacked cross blocks of one frequency."""
    return values_of(("svcca", "r2"), totals_of_values(c), c)


def projection_weighted(c, x, y, x_loadings, y_loadings):
    """Return svcca, r2, pwcca_x and pwcca_y of stacked cross blocks of one frequency."""
    totals = totals_of_vectors(c, x, y, x_loadings, y_loadings)
    return values_of(("svcca", "r2", "pwcca_x", "pwcca_y"), totals, c)


def weighted_directly(c, x_loadings, y_loadings):
    """Return (pwcca_x, pwcca_y) of one cross block by the letter of the definition."""
    a, rho, bh = np.linalg.svd(c, full_matrices=False)
    x_weights = np.abs(a.T @ x_loadings[: c.shape[0]]).sum(axis=1)
    y_weights = np.abs(bh @ y_loadings[: c.shape[1]]).sum(axis=1)
    return x_weights @ rho / x_weights.sum(), y_weights @ rho / y_weights.sum()


def block_with(rng, rho, k_x, k_y):
    """Return a cross block (k_x, k_y) with the singular values given."""
    left = np.linalg.qr(rng.standard_normal((k_x, k_x)))[0][:, : len(rho)]
    right = np.linalg.qr(rng.standard_normal((k_y, k_y)))[0][:, : len(rho)]
    return (left * np.array(rho)) @ right.T


# One pair in memory


@pytest.mark.parametrize("variance", [0.8, 0.99, 1.0])
@pytest.mark.parametrize("criterion", ["variance", "singular"])
def test_svcca_is_the_mean_correlation_of_the_reference(xp, variance, criterion):
    x, y = pair()
    found = svcca(xp.asarray(x), xp.asarray(y), variance=variance, criterion=criterion)
    assert isinstance(found, float)
    assert found == pytest.approx(reference.cca(x, y, variance, criterion).mean, abs=1e-10)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("variance", [0.9, 1.0])
def test_pwcca_is_that_of_the_reference(xp, side, variance):
    x, y = pair()
    found = pwcca(xp.asarray(x), xp.asarray(y), side=side, variance=variance)
    assert isinstance(found, float)
    assert found == pytest.approx(reference.cca(x, y, variance).pwcca(side), abs=1e-10)


@pytest.mark.parametrize(("p", "q"), [(5, 12), (12, 5), (8, 8)])
@pytest.mark.parametrize("side", SIDES)
def test_pwcca_takes_only_directions_with_a_partner_whichever_side_is_wider(p, q, side):
    x, y = pair(2, p, q)
    expected = reference.cca(x, y)
    assert expected.x_weights.size == expected.y_weights.size == min(p, q)
    assert pwcca(x, y, side=side) == pytest.approx(expected.pwcca(side), abs=1e-10)


def test_svcca_keeps_ninety_nine_percent_and_pwcca_everything_unless_told():
    x, y = pair(3, p=20, q=20)
    assert svcca(x, y) == svcca(x, y, variance=0.99)
    assert abs(svcca(x, y) - svcca(x, y, variance=1.0)) > 1e-3
    assert pwcca(x, y) == pwcca(x, y, variance=1.0, side="x")
    assert abs(pwcca(x, y) - pwcca(x, y, variance=0.99)) > 1e-4


def test_options_are_keyword_only():
    x, y = pair()
    with pytest.raises(TypeError, match="positional"):
        svcca(x, y, 0.9)
    with pytest.raises(TypeError, match="positional"):
        pwcca(x, y, 0.9)


@pytest.mark.parametrize("side", ["z", "both", None])
def test_an_unknown_side_is_refused(side):
    x, y = pair()
    with pytest.raises(DsvccaError, match=f"side={side!r}: use 'x' or 'y'"):
        pwcca(x, y, side=side)


def test_refusals_of_cca_are_refusals_of_the_measures():
    x, y = pair()
    with pytest.raises(DsvccaError, match=r"variance=2 must lie in \(0, 1\]"):
        svcca(x, y, variance=2)
    with pytest.raises(DsvccaError, match="criterion='other' is unknown"):
        svcca(x, y, criterion="other")
    with pytest.raises(DsvccaError, match="x has 500 datapoints and y has 490"):
        pwcca(x, y[:490])


def test_every_measure_has_a_definition():
    assert set(DEFAULT) <= set(MEASURES)
    assert all((one.definition and one.sums) or name in ("chance", "chance_edge") for name, one in MEASURES.items())


def test_the_difference_between_pwcca_and_the_mean_is_what_the_weights_say():
    x, y = reference.planted(np.random.default_rng(4), 400, [0.9, 0.1])
    loud = reference.cca(x, y).x_variates * [10.0, 1.0]  # the neuron of correlation .9 is ten times the other
    assert pwcca(loud, y) == pytest.approx((10 * 0.9 + 0.1) / 11, abs=1e-10)
    assert svcca(loud, y, variance=1.0) == pytest.approx(0.5, abs=1e-10)


# What PWCCA does not change under, and what it does


@pytest.mark.parametrize("side", SIDES)
def test_pwcca_of_activations_with_themselves_is_one(side):
    x, _ = pair(5)
    assert pwcca(x, x, side=side) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("side", SIDES)
def test_pwcca_of_equal_correlations_is_that_correlation_whatever_the_weights(side):
    x, y = reference.planted(np.random.default_rng(6), 400, np.full(6, 0.4), q=9, condition=30.0, mean=2.0)
    assert pwcca(x, y, side=side) == pytest.approx(0.4, abs=1e-10)


def test_pwcca_does_not_change_under_affine_maps_of_the_other_side():
    rng = np.random.default_rng(7)
    x, y = pair(7)
    mapped = y @ reference.mixing(rng, 7, 30.0) + rng.uniform(-9, 9, size=7)
    assert pwcca(x, mapped) == pytest.approx(pwcca(x, y), abs=1e-10)
    assert pwcca(mapped, x, side="y") == pytest.approx(pwcca(y, x, side="y"), abs=1e-10)
    assert abs(pwcca(x, mapped, side="y") - pwcca(x, y, side="y")) > 1e-4


@pytest.mark.parametrize("side", SIDES)
def test_pwcca_does_not_change_under_scale_signs_shifts_and_permutations_of_its_own_side(side):
    rng = np.random.default_rng(8)
    x, y = pair(8)
    signs = rng.choice([-1.0, 1.0], size=9)
    for other in (7.5 * x, x * signs, x[:, rng.permutation(9)], x + 30.0):
        sides = (other, y) if side == "x" else (y, other)
        originals = (x, y) if side == "x" else (y, x)
        assert pwcca(*sides, side=side) == pytest.approx(pwcca(*originals, side=side), abs=1e-10)


def test_pwcca_changes_under_a_rotation_of_its_own_side():
    x, y = pair(9)
    rotation = np.linalg.qr(np.random.default_rng(9).standard_normal((9, 9)))[0]
    assert svcca(x @ rotation, y) == pytest.approx(svcca(x, y), abs=1e-10)
    assert abs(pwcca(x @ rotation, y) - pwcca(x, y)) > 1e-4


def test_pwcca_changes_under_a_scale_for_each_neuron_of_its_own_side():
    x, y = pair(10)
    scaled = x * np.geomspace(0.2, 5.0, 9)
    assert svcca(scaled, y, variance=1.0) == pytest.approx(svcca(x, y, variance=1.0), abs=1e-10)
    assert abs(pwcca(scaled, y) - pwcca(x, y)) > 1e-4


def test_the_sides_of_pwcca_are_two_numbers_that_exchange_with_the_activations():
    x, y = pair(11)
    assert pwcca(x, y, side="y") == pytest.approx(pwcca(y, x, side="x"), abs=1e-12)
    assert abs(pwcca(x, y, side="x") - pwcca(x, y, side="y")) > 1e-4


def test_dead_neurons_carry_no_weight_and_doubled_ones_carry_theirs_twice():
    x, y = pair(12)
    padded = np.column_stack([x, np.full(500, 4.0), np.zeros(500)])
    assert pwcca(padded, y) == pytest.approx(pwcca(x, y), abs=1e-10)
    doubled = np.column_stack([x, x[:, 8]])
    assert svcca(doubled, y, variance=1.0) == pytest.approx(svcca(x, y, variance=1.0), abs=1e-10)
    assert abs(pwcca(doubled, y) - pwcca(x, y)) > 1e-4


# Stacks of cross blocks


@pytest.mark.parametrize(("k_x", "k_y"), ORIENTATIONS)
def test_correlations_of_stacks_are_their_singular_values(xp, k_x, k_y):
    c = np.random.default_rng(13).standard_normal((3, k_x, k_y)) * 0.2
    found = xp.to_numpy(correlations_of(xp.asarray(c)))
    np.testing.assert_allclose(found, np.linalg.svd(c, compute_uv=False), atol=2e-8, rtol=0)


def test_the_smaller_side_gives_correlations_with_their_left_vectors(xp):
    c = np.random.default_rng(14).standard_normal((3, 4, 6)) * 0.2
    rho, a = (xp.to_numpy(one) for one in smaller_side(xp.asarray(c)))
    np.testing.assert_allclose(rho, np.linalg.svd(c, compute_uv=False), atol=2e-8, rtol=0)
    np.testing.assert_allclose(np.swapaxes(a, 1, 2) @ a, np.broadcast_to(np.eye(4), (3, 4, 4)), atol=1e-13)
    np.testing.assert_allclose(np.linalg.norm(np.swapaxes(a, 1, 2) @ c, axis=2), rho, atol=1e-10)


@pytest.mark.parametrize(("k_x", "k_y"), ORIENTATIONS)
def test_mean_correlation_of_a_stack_is_that_of_the_pairs(xp, k_x, k_y):
    stack = Stack(xp, k_x, k_y)
    mean, r2 = (xp.to_numpy(one) for one in mean_correlation(stack.c))
    np.testing.assert_allclose(mean, [one.mean for one in stack.expected], atol=1e-8, rtol=0)
    np.testing.assert_allclose(r2, [one.r2 for one in stack.expected], atol=1e-10, rtol=0)


@pytest.mark.parametrize(("k_x", "k_y"), ORIENTATIONS)
def test_projection_weights_of_a_stack_are_those_of_the_pairs(xp, k_x, k_y):
    stack = Stack(xp, k_x, k_y)
    found = projection_weighted(stack.c, stack.x, stack.y, stack.x_loadings, stack.y_loadings)
    mean, r2, pwcca_x, pwcca_y = (xp.to_numpy(one) for one in found)
    np.testing.assert_allclose(mean, [one.mean for one in stack.expected], atol=1e-8, rtol=0)
    np.testing.assert_allclose(r2, [one.r2 for one in stack.expected], atol=1e-10, rtol=0)
    np.testing.assert_allclose(pwcca_x, [one.pwcca("x") for one in stack.expected], atol=1e-8, rtol=0)
    np.testing.assert_allclose(pwcca_y, [one.pwcca("y") for one in stack.expected], atol=1e-8, rtol=0)


def test_projection_weights_of_a_stack_are_those_of_pwcca_in_memory(xp):
    stack = Stack(xp, 8, 7)
    i, j = 2, 0
    c = Stack._cross(
        *whiten_in_memory(xp.asarray(stack.left[i]), RankRule(), "x"),
        *whiten_in_memory(xp.asarray(stack.right[j]), RankRule(), "y"),
    )
    both = namespace(c).stack([c, c])
    found = projection_weighted(both, np.array([i, i]), np.array([j, j]), stack.x_loadings, stack.y_loadings)
    x, y = stack.left[i], stack.right[j]
    expected = svcca(x, y, variance=1.0), np.mean(cca(x, y).correlations ** 2), pwcca(x, y), pwcca(x, y, side="y")
    for values, one in zip(found, expected, strict=True):
        np.testing.assert_allclose(xp.to_numpy(values), [one, one], atol=1e-8, rtol=0)


@pytest.mark.parametrize(("k_x", "k_y"), ORIENTATIONS)
def test_a_pair_has_the_same_bits_alone_and_in_a_stack(k_x, k_y):
    rng = np.random.default_rng(15)
    c = rng.standard_normal((6, k_x, k_y)) * 0.2
    c[3] = block_with(rng, [0.5] + [0.0] * (min(k_x, k_y) - 1), k_x, k_y)
    loadings = [rng.standard_normal((6, neurons)) for neurons in (8, 11)]
    x, y = np.array([0, 1, 0, 1, 1, 0]), np.array([1, 1, 0, 0, 1, 0])
    whole = projection_weighted(c, x, y, loadings, loadings)
    for b in range(6):
        alone = projection_weighted(c[b : b + 1], x[b : b + 1], y[b : b + 1], loadings, loadings)
        for one, all_of_them in zip(alone, whole, strict=True):
            np.testing.assert_array_equal(one, all_of_them[b : b + 1])


def test_exchanging_the_sides_of_a_stack_exchanges_the_weights(xp):
    stack = Stack(xp, 4, 6)
    one = projection_weighted(stack.c, stack.x, stack.y, stack.x_loadings, stack.y_loadings)
    other = projection_weighted(adjoint(stack.c), stack.y, stack.x, stack.y_loadings, stack.x_loadings)
    for here, there in zip(one, [other[0], other[1], other[3], other[2]], strict=True):
        np.testing.assert_array_equal(xp.to_numpy(here), xp.to_numpy(there))


@pytest.mark.parametrize(("k_x", "k_y"), ORIENTATIONS)
def test_orthogonal_spaces_have_all_measures_zero(xp, k_x, k_y):
    rng = np.random.default_rng(16)
    loadings = [xp.asarray(rng.standard_normal((6, 8)))]
    nothing = np.zeros(2, dtype=np.int64)
    c = xp.asarray(np.zeros((2, k_x, k_y)))
    for values in (*mean_correlation(c), *projection_weighted(c, nothing, nothing, loadings, loadings)):
        np.testing.assert_array_equal(xp.to_numpy(values), [0.0, 0.0])


@pytest.mark.parametrize("smallest", [0.0, 1e-12, 1e-7, 9e-6, 1.1e-5, 1e-4])
@pytest.mark.parametrize(("k_x", "k_y"), [(3, 3), (3, 5), (5, 3)])
def test_correlations_next_to_zero_get_the_weights_of_their_own_vectors(xp, smallest, k_x, k_y):
    rng = np.random.default_rng(17)
    ordinary, special = (block_with(rng, rho, k_x, k_y) for rho in ([0.8, 0.6, 0.4], [0.9, 0.5, smallest]))
    loadings = [rng.standard_normal((5, neurons)) for neurons in (8, 11)]
    there = [xp.asarray(one) for one in loadings]
    c, x, y = np.stack([ordinary, special, ordinary]), np.array([0, 0, 1]), np.array([1, 1, 0])
    found = [xp.to_numpy(one) for one in projection_weighted(xp.asarray(c), x, y, there, there)]
    assert all(np.isfinite(one).all() for one in found)
    np.testing.assert_allclose(found[0][1], (1.4 + smallest) / 3, atol=1e-8, rtol=0)
    for b in range(3):
        if b == 1 and smallest < 1e-9 and k_x != k_y:
            continue  # the wider side's vector of a correlation that is zero but for rounding is any of its null space
        expected = weighted_directly(c[b], loadings[x[b]], loadings[y[b]])
        np.testing.assert_allclose([found[2][b], found[3][b]], expected, atol=1e-6, rtol=0)


def test_wide_loadings_are_taken_a_few_pairs_at_a_time():
    rng = np.random.default_rng(18)
    c = rng.standard_normal((5, 40, 40)) * 0.05
    loadings = [rng.standard_normal((40, 30_000)), rng.standard_normal((40, 6))]
    x, y = np.array([0, 1, 0, 0, 1]), np.array([1, 1, 0, 1, 0])
    _, _, pwcca_x, pwcca_y = projection_weighted(c, x, y, loadings, loadings)
    expected = [weighted_directly(c[b], loadings[x[b]], loadings[y[b]]) for b in range(5)]
    np.testing.assert_allclose(np.stack([pwcca_x, pwcca_y], axis=1), expected, atol=1e-9, rtol=0)


def test_stacks_are_not_modified(xp):
    stack = Stack(xp, 4, 6)
    before = xp.to_numpy(stack.c).copy()
    projection_weighted(stack.c, stack.x, stack.y, stack.x_loadings, stack.y_loadings)
    mean_correlation(stack.c)
    np.testing.assert_array_equal(xp.to_numpy(stack.c), before)


@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (3, 2)])
def test_blocks_that_are_no_contraction_say_so_and_count_as_one(shape):
    c = np.stack([np.zeros(shape), np.full(shape, 0.7)])
    nothing = np.zeros(2, dtype=np.int64)
    loadings = [np.eye(3)]
    for totals in (totals_of_values(c), totals_of_vectors(c, nothing, nothing, loadings, loadings)):
        np.testing.assert_allclose(totals["largest"], [0, 0.7 * np.sqrt(np.prod(shape))], atol=1e-12)
        np.testing.assert_allclose(totals["rho"], [0, 1], atol=1e-7)
    with pytest.raises(DsvccaError, match=r"a canonical correlation of \d\.\d+ was found where 1 is the largest"):
        correlations_of(c)
    with pytest.raises(DsvccaError, match=r"a canonical correlation of \d\.\d+ was found where 1 is the largest"):
        smaller_side(c)


# The curve of the paper's toy


def test_projection_weights_see_through_noise_dimensions_better_than_the_plain_mean():
    rng = np.random.default_rng(19)
    n, k = 3000, 20
    signals = rng.standard_normal((n, k))
    x, y = (
        np.column_stack([signals, np.zeros((n, 40))]) @ np.linalg.qr(rng.standard_normal((60, 60)))[0]
        + 0.1 * rng.standard_normal((n, 60))
        for _ in range(2)
    )
    mean, singular, weighted = svcca(x, y, variance=1.0), svcca(x, y, criterion="singular"), pwcca(x, y)
    assert mean <= singular < weighted
    assert weighted > 0.75
    assert mean < 0.45
    assert svcca(x, y, variance=0.95) > 0.98


@pytest.mark.parametrize(("k", "q"), [(4, 6), (5, 3)])
def test_complex_blocks_have_the_totals_of_their_singular_vectors(xp, k, q):
    rng = np.random.default_rng(6)

    def unitary(n, m):
        return np.linalg.qr(rng.standard_normal((n, m)) + 1j * rng.standard_normal((n, m)))[0]

    rho = np.linspace(0.9, 0.2, min(k, q))
    blocks = [unitary(k, len(rho)) * rho @ unitary(q, len(rho)).conj().T for _ in range(3)]
    f_x, f_y = (rng.standard_normal((n, 7)) + 1j * rng.standard_normal((n, 7)) for n in (k, q))
    which = np.zeros(3, dtype=int)
    found = totals_of_vectors(xp.asarray(np.stack(blocks)), which, which, [xp.asarray(f_x)], [xp.asarray(f_y)])
    for i, block in enumerate(blocks):
        a, s, b = np.linalg.svd(block, full_matrices=False)
        of_x, of_y = np.abs(a.conj().T @ f_x).sum(axis=1), np.abs(b @ f_y).sum(axis=1)
        expected = {
            "rho": s.sum(), "rho2": (s**2).sum(), "x_weighted": of_x @ s, "x_weights": of_x.sum(),
            "y_weighted": of_y @ s, "y_weights": of_y.sum(),
        }  # fmt: skip
        for name, value in expected.items():
            assert float(xp.to_numpy(found[name])[i]) == pytest.approx(value, rel=1e-9), name
    values = totals_of_values(xp.asarray(np.stack(blocks)))
    np.testing.assert_allclose(xp.to_numpy(values["rho"]), rho.sum(), rtol=1e-9)
