"""How far rows are from holding all translations."""

import numpy as np
import pytest

import dsvcca
from dsvcca.maths.basis import RankRule
from dsvcca.maths.translations import DRAWS, Between
from dsvcca.maths.views import View
from dsvcca.maths.whiten import whiten_in_memory
from tests.test_frequencies import maps, translations


def between_all(x):
    """Return squared covariance between and within frequencies, less noise, and the noise, over every pair of bins."""
    axes = tuple(range(1, x.ndim - 1))
    z = np.fft.fftn(x - x.mean(axis=0), axes=axes, norm="ortho").reshape(len(x), -1, x.shape[-1])
    between = noise = within = 0.0
    traces = (np.abs(z) ** 2).sum(axis=(0, 2))
    for f in range(z.shape[1]):
        for g in range(z.shape[1]):
            power = (np.abs(z[:, f].conj().T @ z[:, g]) ** 2).sum()
            if f == g:
                within += power
            else:
                noise += traces[f] * traces[g] / (len(x) - 1)
                between += power - traces[f] * traces[g] / (len(x) - 1)
    return between, noise, within


def off_block(xp, x):
    return whiten_in_memory(xp.asarray(x), RankRule(0.9), "x", view=View("dft"))[1].off_block


@pytest.mark.parametrize("space", [(3, 3), (5,), (2, 4), (2, 3, 1)])
def test_few_frequencies_are_all_looked_at(xp, space):
    x = maps(1, n=60, space=space)
    found = off_block(xp, x)
    np.testing.assert_allclose((found.between, found.noise, found.within), between_all(x), rtol=1e-9)


def test_of_many_frequencies_some_are_drawn_by_their_power():
    rng = np.random.default_rng(0)
    smooth = rng.standard_normal((400, 8, 8, 3))
    for axis in (1, 2):
        smooth = smooth + np.roll(smooth, 1, axis)
    stains = np.exp(-0.3 * ((np.indices((8, 8)) - 3) ** 2).sum(axis=0))[None, :, :, None]
    x = smooth * stains  # brighter in one place: not all translations
    found = [Between(np.asarray([1, *[2] * 31]), np.ones((32, 3))).draws.shares.size, off_block_of(x)]
    assert found[0] == DRAWS
    between, noise, within = between_all(x)
    assert found[1].share == pytest.approx(between / (between + within), abs=0.12)
    assert found[1].floor == pytest.approx(noise / (noise + within), rel=1e-6)
    assert found[1].share > 0.3
    assert abs(off_block_of(smooth).share) < 0.1


def off_block_of(x):
    return whiten_in_memory(x, RankRule(0.9), "x", view=View("dft"))[1].off_block


def test_all_translations_have_nothing_between_frequencies():
    found = off_block_of(translations(maps(1, n=8, space=(4, 6))))
    assert abs(found.between + found.noise) < 1e-12 * found.within
    assert found.share == 0


@pytest.mark.parametrize(("n", "floor"), [(200, 0.177), (20_000, 0.002)])
def test_pure_noise_lies_on_its_floor(n, floor):
    found = off_block_of(np.random.default_rng(2).standard_normal((n, 4, 4, 3)))
    assert found.floor == pytest.approx(floor, abs=0.012)
    assert abs(found.share) < max(0.05, 5 * floor) / 3


def test_it_is_kept_with_the_results(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=240)
    x = maps(1, n=10, space=(4, 6))
    store.write(translations(x), layer="all", dims="nhwc")
    store.write(maps(3, n=240, space=(4, 6)), layer="plain", dims="nhwc")
    store.write(np.random.default_rng(0).standard_normal((240, 5)), layer="dense")
    plan = dsvcca.plan_comparisons(store, variance=0.9)
    found = dsvcca.compare(plan, tmp_path / "r.zarr")
    share, floor = found.off_block.values, found.off_block_floor.values
    assert np.isnan(share[2])
    assert np.isnan(floor[2])
    assert share[0] == 0
    assert floor[1] > 0
    assert "theorem 1" in found.off_block.attrs["definition"]
    (tmp_path / "r.zarr" / "off_block" / "c.0").unlink()
    with pytest.warns(dsvcca.DsvccaWarning, match="how far rows are from all translations is not there"):
        dsvcca.open_results(tmp_path / "r.zarr")
    np.testing.assert_array_equal(dsvcca.compare(plan, tmp_path / "r.zarr").off_block.values, share)
