"""The transform over space: bins and weights, Theorem 1 of the SVCCA paper, and canonical correlations by frequency."""

import numpy as np
import pytest
import scipy.signal

import dsvcca
from dsvcca import DsvccaError, dft_cca
from dsvcca.maths.arrays import adjoint, as_pairs, from_pairs, namespace
from dsvcca.maths.basis import RankRule
from dsvcca.maths.frequencies import aliases, half_spectrum, to_frequencies, to_space, unfolded
from dsvcca.maths.views import View
from dsvcca.maths.whiten import whiten_in_memory

pytestmark = pytest.mark.filterwarnings("ignore:.* rows are fewer than 5", "ignore:.*are 1 whatever the data")

SPACES = [(4, 6), (5, 4), (7, 7), (1, 1), (3,), (8,), (3, 4, 5), (2, 2, 2), (1, 5), (6, 1)]


def translations(x):
    """Return all translations of maps (n, *space, c), one after another: row t * n + i is x[i] moved by t."""
    space = x.shape[1:-1]
    axes = tuple(range(1, 1 + len(space)))
    return np.concatenate([np.roll(x, shift, axes) for shift in np.ndindex(*space)])


def mean_correlation(x, y, **options):
    return dft_cca(x, y, **options).svcca


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
    _, basis = whiten_in_memory(x, RankRule(), "x", view=View("dft"))
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
    found = dft_cca(x, y)
    union = np.concatenate([np.repeat(r, w) for r, w in zip(found.correlations, found.weights, strict=True)])
    union = np.sort(union)[::-1]
    bases = []
    for a in (x, y):
        flat = a.reshape(len(a), -1)
        u, s, _ = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
        bases.append(u[:, s > 1e-9 * s[0]])
    pixels = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    np.testing.assert_allclose(union, pixels[: len(union)], atol=1e-12)


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
    np.testing.assert_allclose(dft_cca(x, y).correlations[0], plain, atol=1e-12)


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
    u, basis = whiten_in_memory(xp.asarray(x), RankRule(0.95), "x", view=View("dft"))
    expected_u, expected = whiten_in_memory(x, RankRule(0.95), "x", view=View("dft"))
    assert xp.owns(u)
    np.testing.assert_array_equal(basis.ranks, expected.ranks)
    np.testing.assert_allclose(basis.singular_values, expected.singular_values, rtol=1e-10)
    for block, other in zip(basis.blocks, expected.blocks, strict=True):
        power = np.abs(xp.to_numpy(block.loadings)) ** 2
        np.testing.assert_allclose(power, np.abs(other.loadings) ** 2, atol=1e-9 * power.max(initial=1))
    assert u.shape == expected_u.shape


def test_one_rank_rule_counts_pairs_of_bins_twice_and_keeps_both_or_none():
    x = maps(1, n=60)
    _, basis = whiten_in_memory(x, RankRule(0.9), "x", view=View("dft"))
    s2 = basis.singular_values**2
    kept = np.arange(s2.shape[1]) < basis.ranks[:, None]
    shares = (basis.weights[:, None] * s2 * kept).sum() / (basis.weights[:, None] * s2).sum()
    smallest = (basis.weights[:, None] * np.ones_like(s2) * s2)[kept & (s2 == s2[kept].min())].sum()
    assert shares >= 0.9 > shares - smallest / (basis.weights[:, None] * s2).sum()
    assert s2[kept].min() >= s2[~kept].max()
    assert basis.rank == (basis.weights * basis.ranks).sum()
    _, fixed = whiten_in_memory(x, RankRule(rank=10), "x", view=View("dft"))
    assert fixed.rank in (10, 11)


def test_too_few_rows_for_one_frequency_name_it():
    rng = np.random.default_rng(0)
    with pytest.raises(DsvccaError, match=r"7 kept directions of frequency \d+ in 8 rows leave no freedom"):
        whiten_in_memory(rng.standard_normal((8, 3, 3, 9)), RankRule(), "x", view=View("dft"))


def test_an_axis_of_no_length_is_refused():
    with pytest.raises(DsvccaError, match=r"spatial axis of length 0"):
        dsvcca.maths.views.viewed_shape((10, 0, 3, 4), View("dft"))


# Different sizes


FOLDED = [((6,), (3,)), ((8, 6), (4, 3)), ((8, 6), (4, 6)), ((9, 4), (3, 2)), ((4, 6, 2), (2, 3, 1)), ((6, 5), (6, 5))]


def blocks(x, grid):
    """Return maps (n, *grid, r * c): the positions of a larger grid that belong to one of the smaller, as channels."""
    n, *space, c = x.shape
    axes = len(space)
    shape = [size for large, small in zip(space, grid, strict=True) for size in (small, large // small)]
    order = (0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
    return x.reshape(n, *shape, c).transpose(order).reshape(n, *grid, -1)


def strided(seed, n=6, space=(6, 4), ratio=(3, 2), c=(3, 2), noise=0.3):
    """Return maps of two sizes made of the same images by circular filters, the second with a stride; rows hold the
    shifts of every image by less than the stride. And both again with all shifts, as pixels."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((n, *space, 2))
    axes = tuple(range(1, 1 + len(space)))
    filters = [rng.standard_normal((2, 2, 2, size)) for size in c]

    def layer(moved, which):
        out = sum(np.roll(moved, s, axes) @ filters[which][s] for s in np.ndindex(2, 2))
        return out[:, :: ratio[0], :: ratio[1]] if which else out

    own = [noise * rng.standard_normal((n, *space, size)) for size in c]

    def both(shifts):
        found = [[], []]
        for shift in shifts:
            for which in (0, 1):
                out = layer(np.roll(images, shift, axes), which)
                extra = np.roll(own[which], shift, axes)
                found[which].append(out + (extra[:, :: ratio[0], :: ratio[1]] if which else extra))
        return [np.concatenate(one) for one in found]

    return both(np.ndindex(*ratio)), both(np.ndindex(*space))


@pytest.mark.parametrize(("space", "grid"), FOLDED)
def test_bins_that_alias_together_say_what_blocks_of_positions_say(xp, space, grid):
    x = np.random.default_rng(0).standard_normal((7, *space, 2))
    z = xp.to_numpy(to_frequencies(xp.asarray(x), grid))
    assert (z[half_spectrum(grid).weights == 1].imag == 0).all()
    expected = to_frequencies(blocks(x, grid))
    for f in range(len(z)):
        np.testing.assert_allclose(z[f] @ z[f].conj().T, expected[f] @ expected[f].conj().T, atol=1e-12)
    low = xp.to_numpy(to_frequencies(xp.asarray(x), grid, low=True))
    for axis, size in enumerate(grid, start=1):
        x = scipy.signal.resample(x, size, axis=axis)
    np.testing.assert_allclose(low, to_frequencies(x) * np.sqrt(np.prod(space) / np.prod(grid)), atol=1e-12)


@pytest.mark.parametrize(("space", "grid"), FOLDED)
def test_what_was_folded_unfolds_to_every_bin_once(xp, space, grid):
    x = np.random.default_rng(0).standard_normal((5, *space, 2))
    folded = np.moveaxis(to_frequencies(x, grid), 1, -1)
    whole = np.moveaxis(to_frequencies(x), 1, -1)
    if space == grid:
        np.testing.assert_array_equal(xp.to_numpy(unfolded(xp.asarray(folded), space, grid)), whole)
        return
    # Directions w with z w = v: a column made of real and imaginary parts stands for a bin and its conjugate.
    found = xp.to_numpy(unfolded(xp.asarray(folded.conj()), space, grid))
    own = {half_spectrum(space).find(b)[0] for f in np.flatnonzero(half_spectrum(grid).weights == 1)
           for b in aliases(space, grid).bins[:, f]}  # fmt: skip
    for place in range(len(whole)):
        np.testing.assert_allclose(found[place], whole[place].conj(), atol=1e-13, err_msg=str(place in own))


@pytest.mark.parametrize(("space", "ratio"), [((6, 4), (3, 2)), ((4, 6), (2, 1)), ((4, 4), (2, 2))])
def test_layers_of_different_sizes_are_compared_as_pixels_are(space, ratio):
    some, everything = strided(1, space=space, ratio=ratio)
    bases = []
    for a in everything:
        flat = a.reshape(len(a), -1)
        u, s, _ = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
        bases.append(u[:, s > 1e-9 * s[0]])
    pixels = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    for x, y in (some, everything):
        found = dft_cca(x, y, center="dc")
        union = np.concatenate([np.repeat(r, w) for r, w in zip(found.correlations, found.weights, strict=True)])
        np.testing.assert_allclose(np.sort(union)[::-1], pixels[: len(union)], atol=1e-12)
        assert found.view == "alias-empirical"
        assert found.svcca == pytest.approx(pixels.sum() / min(u.shape[1] for u in bases), abs=1e-12)
        assert dft_cca(y, x, center="dc").svcca == pytest.approx(found.svcca, abs=1e-12)


def test_low_frequencies_alone_fall_short():
    x, y = strided(2, n=40, space=(8, 8), ratio=(2, 2), noise=0.05)[0]
    exact = dft_cca(x, y, center="dc").svcca
    low = to_space_of(to_frequencies(x, (4, 4), low=True))
    assert exact > 0.9
    assert dft_cca(low, y, center="dc").svcca < exact - 0.2


def to_space_of(z):
    """Return maps (n, 4, 4, c) of their transform (f, n, c)."""
    maps = to_space(half_spectrum((4, 4)), z.reshape(len(z), -1))
    return np.moveaxis(maps.reshape(4, 4, *z.shape[1:]), 2, 0)


# Directions


@pytest.mark.parametrize(("y_space", "y_channels"), [((4, 6), 2), ((2, 3), 4)])
def test_filters_give_maps_that_are_the_canonical_variates(xp, y_space, y_channels):
    x = maps(1, n=300)
    y = maps(2, n=300, c=y_channels)
    if y_space != (4, 6):
        y = y[:, ::2, ::2]
    found = dft_cca(xp.asarray(x), xp.asarray(y), variance=0.99)
    of_x, of_y = (to_frequencies(xp.to_numpy(v)) for v in found.variates(x=xp.asarray(x), y=xp.asarray(y)))
    assert of_x.shape[:2] == (len(found.weights), 300)
    for f, rho in enumerate(found.correlations):
        k = rho.shape[0]
        np.testing.assert_allclose(of_x[f, :, :k].conj().T @ of_x[f, :, :k], np.eye(k), atol=1e-9)
        cross = of_x[f, :, :k].conj().T @ of_y[f, :, :k]
        np.testing.assert_allclose(cross, np.diag(xp.to_numpy(rho)), atol=1e-9)
        assert np.abs(of_x[f, :, k:]).max(initial=0) < 1e-9
    # The same by a sum over positions, for one filter.
    filters, mean = xp.to_numpy(found.x_directions), xp.to_numpy(found.x_mean)
    by_hand = sum(np.roll(x - mean, shift, (1, 2)) @ filters[shift][:, 0] for shift in np.ndindex(4, 6))
    ratio = tuple(a // b for a, b in zip((4, 6), y_space, strict=True))
    there = xp.to_numpy(found.variates(x=xp.asarray(x)))[..., 0]
    np.testing.assert_allclose(there, by_hand[:, :: ratio[0], :: ratio[1]], atol=1e-9)
    assert 0 < found.pwcca_x <= 1
    assert repr(found).startswith(f"<{found.view} of maps of 4x6 and {'x'.join(map(str, y_space))}: ")
    assert found.by_frequency.shape == found.weights.shape


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((9, 4)), np.ones((9, 4)), r"x has 2 axes \(9, 4\): give maps"),
        (np.ones((9, 0, 2, 3)), np.ones((9, 2, 2, 3)), "x is empty, shape .* axis of length 0"),
        (np.ones((9, 2, 2, 3)), 1j * np.ones((9, 2, 2, 3)), "y is complex"),
        (
            np.ones((9, 4, 4, 3)),
            np.ones((9, 3, 3, 3)),
            "x has maps of 4x4 and y of 3x3: they need one size, or along every axis",
        ),
        (np.ones((9, 4, 4, 3)), np.ones((8, 4, 4, 3)), "x has 9 datapoints and y has 8"),
    ],
)
def test_maps_that_cannot_be_compared_are_refused(x, y, message):
    with pytest.raises(DsvccaError, match=message):
        dft_cca(x, y)


def test_options_and_activations_that_do_not_fit_are_refused():
    x = maps(1, n=60)
    with pytest.raises(DsvccaError, match="center='mean' is unknown"):
        dft_cca(x, x, center="mean")
    found = dft_cca(x, x)
    with pytest.raises(DsvccaError, match="no activations"):
        found.variates()
    with pytest.raises(DsvccaError, match=r"y has the shape \(60, 2, 6, 3\), the directions were found on maps of"):
        found.variates(y=x[:, :2])
