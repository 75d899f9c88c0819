"""The transform over space: bins and weights, Theorem 1 of the SVCCA paper, and canonical correlations by frequency."""

import numpy as np
import pytest

import dsvcca
from dsvcca import DsvccaError
from dsvcca.arrays import adjoint, as_pairs, from_pairs, namespace
from dsvcca.basis import RankRule, inverse_cholesky, whiten_in_memory
from dsvcca.correlations import corrected
from dsvcca.frequencies import half_spectrum, to_frequencies, to_space

SPACES = [(4, 6), (5, 4), (7, 7), (1, 1), (3,), (8,), (3, 4, 5), (2, 2, 2), (1, 5), (6, 1)]


def translations(x):
    """Return all translations of maps (n, *space, c), one after another: row t * n + i is x[i] moved by t."""
    space = x.shape[1:-1]
    axes = tuple(range(1, 1 + len(space)))
    return np.concatenate([np.roll(x, shift, axes) for shift in np.ndindex(*space)])


def correlations_by_frequency(x, y, variance=1.0, center="all"):
    """Return the canonical correlations of each frequency and its weight, by the route of the engine, in memory."""
    sides = [whiten_in_memory(a, RankRule(variance), "a", view="dft", center=center) for a in (x, y)]
    (u_x, b_x), (_, b_y) = sides
    found, start = [], [0, 0]
    for f, weight in enumerate(b_x.weights):
        pieces = []
        for side, (u, b) in enumerate(sides):
            width = int(b.ranks[f] * weight)
            pieces.append(u[:, start[side] : start[side] + width])
            start[side] += width
        product = namespace(u_x).matmul(adjoint(pieces[0]), pieces[1])
        m = from_pairs(product) if weight == 2 else product
        one, other = b_x.blocks[f], b_y.blocks[f]
        inverses = inverse_cholesky(one.cholesky), inverse_cholesky(other.cholesky)
        c = corrected(m, one.column_sums, other.column_sums, b_x.count, *inverses)
        found.append(namespace(c).linalg.svdvals(c) if 0 not in c.shape else c[:0, 0])
    return found, b_x, b_y


def mean_correlation(x, y, **options):
    rho, b_x, b_y = correlations_by_frequency(x, y, **options)
    return sum(w * float(r.sum()) for w, r in zip(b_x.weights, rho, strict=True)) / min(b_x.rank, b_y.rank)


def maps(seed, n=40, space=(4, 6), c=3, shared=2, noise=0.5):
    """Return maps (n, *space, c): a shared field filtered at random, circularly, plus noise."""
    field = np.random.default_rng(7).standard_normal((n, *space, shared))
    rng = np.random.default_rng(seed)
    axes = tuple(range(1, 1 + len(space)))
    out = noise * rng.standard_normal((n, *space, c))
    for shift in np.ndindex(*(min(2, size) for size in space)):
        out += np.roll(field, shift, axes) @ rng.standard_normal((shared, c))
    return out + rng.uniform(-2, 2, c)


@pytest.mark.parametrize("space", SPACES)
def test_half_of_the_bins_say_everything(space):
    half = half_spectrum(space)
    assert half.weights.sum() == np.prod(space)
    for wanted in np.ndindex(*space):
        place, conjugated = half.find(wanted)
        assert tuple((-1 if conjugated else 1) * half.bins[place] % space) == wanted
    assert (half.bins[0] == 0).all()


def test_bins_that_are_kept_are_those_of_the_paper_sizes():
    found = {space: len(half_spectrum(space).bins) for space in ((32, 32), (7, 7), (3, 3), (5, 4), (4, 6), (1, 1))}
    assert found == {(32, 32): 514, (7, 7): 25, (3, 3): 5, (5, 4): 11, (4, 6): 14, (1, 1): 1}


@pytest.mark.parametrize("space", SPACES)
def test_the_transform_keeps_squares_and_goes_back(xp, space):
    x = np.random.default_rng(0).standard_normal((6, *space, 3))
    half = half_spectrum(space)
    z = to_frequencies(xp.asarray(x))
    there = xp.to_numpy(z)
    assert there.dtype == np.complex128
    assert (there[half.weights == 1].imag == 0).all()
    assert np.isclose((half.weights[:, None, None] * np.abs(there) ** 2).sum(), (x**2).sum(), rtol=1e-13)
    for i in (0, 5):
        np.testing.assert_allclose(xp.to_numpy(to_space(half, z[:, i, :])), x[i], atol=1e-13)
    everything = np.fft.fftn(x, axes=tuple(range(1, 1 + len(space))), norm="ortho")
    for f, place in enumerate(half.bins):
        np.testing.assert_allclose(there[f], everything[(slice(None), *place)], atol=1e-12)


def test_real_products_of_pairs_are_complex_products(xp):
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((30, k)) + 1j * rng.standard_normal((30, k)) for k in (3, 4))
    pairs = [as_pairs(xp.asarray(one)) for one in (a, b)]
    product = namespace(*pairs).matmul(adjoint(pairs[0]), pairs[1])
    np.testing.assert_allclose(xp.to_numpy(from_pairs(product)), a.conj().T @ b, atol=1e-13)


@pytest.mark.parametrize("space", [(4, 6), (5, 3), (4, 4), (6,), (2, 3, 2)])
def test_with_all_translations_the_union_of_spectra_is_that_of_the_pixels(space):
    x = translations(maps(1, n=5, space=space))
    _, basis = whiten_in_memory(x, RankRule(), "x", view="dft")
    union = np.sort(np.repeat(basis.singular_values, basis.weights, axis=0), axis=None)[::-1]
    flat = x.reshape(len(x), -1)
    pixels = np.linalg.svd(flat - flat.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(union[: len(pixels)], pixels, atol=1e-12 * pixels[0])
    assert basis.rank == np.linalg.matrix_rank(flat - flat.mean(axis=0), tol=1e-9 * pixels[0])
    norms = np.linalg.norm(x.reshape(-1, 3) - x.reshape(-1, 3).mean(axis=0), axis=0)
    np.testing.assert_allclose(basis.neuron_norms, norms, rtol=1e-12)
    np.testing.assert_allclose(basis.row_norms, ((flat - flat.mean(axis=0)) ** 2).sum(axis=1), rtol=1e-11)


@pytest.mark.parametrize("space", [(4, 6), (5, 3), (6,)])
def test_with_all_translations_the_correlations_are_those_of_the_pixels(space):
    x, y = (translations(maps(seed, n=9, space=space)) for seed in (1, 2))
    rho, b_x, _ = correlations_by_frequency(x, y)
    union = np.sort(np.concatenate([np.repeat(r, w) for r, w in zip(rho, b_x.weights, strict=True)]))[::-1]
    bases = []
    for a in (x, y):
        flat = a.reshape(len(a), -1)
        u, s, _ = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
        bases.append(u[:, s > 1e-9 * s[0]])
    pixels = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    np.testing.assert_allclose(union, pixels[: len(union)], atol=1e-10)


@pytest.mark.parametrize("space", [(4, 6), (5, 3)])
def test_base_images_centred_at_dc_are_all_translations(space):
    x, y = (maps(seed, n=30, space=space) for seed in (1, 2))
    base = mean_correlation(x, y, variance=0.95, center="dc")
    everything = mean_correlation(translations(x), translations(y), variance=0.95)
    assert base == pytest.approx(everything, abs=1e-12)
    both = [mean_correlation(translations(x), translations(y), center=c) for c in ("all", "dc")]
    assert both[0] == pytest.approx(both[1], abs=1e-12)


@pytest.mark.parametrize("space", [(4, 6), (5, 3), (6,), (2, 3, 2)])
def test_half_of_the_spectrum_gives_what_all_of_it_gives(space):
    x, y = (maps(seed, n=60, space=space) for seed in (1, 2))
    axes = tuple(range(1, 1 + len(space)))
    z_x, z_y = (np.fft.fftn(a - a.mean(axis=0), axes=axes, norm="ortho") for a in (x, y))
    total = 0.0
    for place in np.ndindex(*space):
        u, v = (np.linalg.qr(z[(slice(None), *place)])[0] for z in (z_x, z_y))
        total += np.linalg.svd(u.conj().T @ v, compute_uv=False).sum()
    assert mean_correlation(x, y) == pytest.approx(total / (3 * np.prod(space)), abs=1e-12)


def test_moving_all_images_changes_nothing():
    x, y = maps(1, n=60), maps(2, n=60)
    moved = np.roll(x, (1, 2), (1, 2)), np.roll(y, (3, 5), (1, 2))
    assert mean_correlation(*moved) == pytest.approx(mean_correlation(x, y), abs=1e-12)


def test_one_position_is_plain_cca():
    x, y = maps(1, n=100, space=(1, 1)), maps(2, n=100, space=(1, 1))
    plain = dsvcca.cca(x[:, 0, 0], y[:, 0, 0]).correlations
    np.testing.assert_allclose(correlations_by_frequency(x, y)[0][0], plain, atol=1e-12)


def test_independent_data_lie_on_the_floor_unless_a_mean_image_is_shared():
    rng = np.random.default_rng(3)
    image = 2.0 * rng.standard_normal((4, 4, 1)) @ rng.standard_normal((1, 4))
    x, y = (rng.standard_normal((2000, 4, 4, 4)) + image for _ in range(2))
    floor = np.mean(
        [
            np.linalg.svd(
                np.linalg.qr(rng.standard_normal((1999, 4)) + 1j * rng.standard_normal((1999, 4)))[0].conj().T
                @ np.linalg.qr(rng.standard_normal((1999, 4)) + 1j * rng.standard_normal((1999, 4)))[0],
                compute_uv=False,
            ).mean()
            for _ in range(20)
        ]
    )
    assert mean_correlation(x, y) == pytest.approx(floor, rel=0.25)
    assert mean_correlation(x, y, center="dc") > 5 * floor


def test_bases_by_frequency_are_the_same_in_every_library(xp):
    x = maps(1, n=50)
    u, basis = whiten_in_memory(xp.asarray(x), RankRule(0.95), "x", view="dft")
    expected_u, expected = whiten_in_memory(x, RankRule(0.95), "x", view="dft")
    assert xp.owns(u)
    np.testing.assert_array_equal(basis.ranks, expected.ranks)
    np.testing.assert_allclose(basis.singular_values, expected.singular_values, rtol=1e-10)
    for block, other in zip(basis.blocks, expected.blocks, strict=True):
        power = np.abs(xp.to_numpy(block.loadings)) ** 2
        np.testing.assert_allclose(power, np.abs(other.loadings) ** 2, atol=1e-9 * power.max(initial=1))
    assert u.shape == expected_u.shape


def test_one_rank_rule_counts_pairs_of_bins_twice_and_keeps_both_or_none():
    x = maps(1, n=60)
    _, basis = whiten_in_memory(x, RankRule(0.9), "x", view="dft")
    s2 = basis.singular_values**2
    kept = np.arange(s2.shape[1]) < basis.ranks[:, None]
    shares = (basis.weights[:, None] * s2 * kept).sum() / (basis.weights[:, None] * s2).sum()
    smallest = (basis.weights[:, None] * np.ones_like(s2) * s2)[kept & (s2 == s2[kept].min())].sum()
    assert shares >= 0.9 > shares - smallest / (basis.weights[:, None] * s2).sum()
    assert s2[kept].min() >= s2[~kept].max()
    assert basis.rank == (basis.weights * basis.ranks).sum()
    _, fixed = whiten_in_memory(x, RankRule(rank=10), "x", view="dft")
    assert fixed.rank in (10, 11)


def test_too_few_rows_for_one_frequency_name_it():
    rng = np.random.default_rng(0)
    with pytest.raises(DsvccaError, match=r"7 kept directions of frequency \d+ in 8 rows leave no freedom"):
        whiten_in_memory(rng.standard_normal((8, 3, 3, 9)), RankRule(), "x", view="dft")


def test_an_axis_of_no_length_is_refused():
    with pytest.raises(DsvccaError, match=r"spatial axis of length 0"):
        dsvcca.views.viewed_shape((10, 0, 3, 4), "dft")
