"""Directions, projections and compression in memory; directions of one pair of a population; variates in Zarr."""

from itertools import pairwise

import numpy as np
import pytest
import xarray as xr

import dsvcca
from dsvcca.maths.arrays import to_numpy

N = 600


def pair(seed=0, p=9, q=7, n=N):
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n, 4))
    x = shared @ rng.standard_normal((4, p)) + rng.standard_normal((n, p)) * np.geomspace(1, 3, p) + 2
    y = shared @ rng.standard_normal((4, q)) + rng.standard_normal((n, q)) - 1
    return x, y


def residual(x, fit):
    return np.linalg.norm(x - fit)


@pytest.mark.parametrize("k", [1, 4, 7])
def test_projection_is_the_least_squares_fit_by_the_leading_variates(xp, k):
    x, y = pair()
    found = dsvcca.cca(xp.asarray(x), xp.asarray(y))
    own = to_numpy(found.project(xp.asarray(x), k))
    h = np.column_stack([np.ones(N), to_numpy(found.variates(x=xp.asarray(x)))[:, :k]])
    np.testing.assert_allclose(own, h @ np.linalg.lstsq(h, x)[0], atol=1e-9)


def test_projection_on_everything_gives_everything_back():
    x, y = pair()
    found = dsvcca.cca(x, y)
    assert (found.x_rank, len(found.correlations)) == (9, 7)
    fits = [residual(x, found.project(x, k)) for k in range(1, 10)]
    assert all(a >= b - 1e-9 for a, b in pairwise(fits))
    np.testing.assert_allclose(found.project(x, 9), x, atol=1e-9)
    new = pair(seed=1)[0][:20]
    np.testing.assert_allclose(found.project(new, 9), new, atol=1e-9)
    cut = dsvcca.cca(x, y, variance=0.8)
    u, s, v = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    r = cut.x_rank
    np.testing.assert_allclose(cut.project(x, r), x.mean(axis=0) + (u[:, :r] * s[:r]) @ v[:r], atol=1e-9)


def test_singular_values_and_vectors_are_those_of_the_centred_activations(xp):
    x, y = pair()
    for variance in (0.8, 1.0):
        found = dsvcca.cca(xp.asarray(x), xp.asarray(y), variance=variance)
        for side, one in (("x", x), ("y", y)):
            s, v = np.linalg.svd(one - one.mean(axis=0), full_matrices=False)[1:]
            own = to_numpy(getattr(found, f"{side}_singular_values"))
            vectors = to_numpy(getattr(found, f"{side}_singular_vectors"))
            k = getattr(found, f"{side}_rank")
            assert vectors.shape == (one.shape[1], k)
            np.testing.assert_allclose(own, s[:k], rtol=1e-9)
            np.testing.assert_allclose(np.abs(np.sum(vectors * v[:k].T, axis=0)), 1, atol=1e-9)
            assert (np.take_along_axis(vectors, np.argmax(np.abs(vectors), axis=0)[None], axis=0) > 0).all()


def test_signs_and_pairs_are_settled():
    x, y = pair()
    found = dsvcca.cca(x, y)
    largest = np.argmax(np.abs(found.x_directions), axis=0)
    assert (found.x_directions[largest, np.arange(7)] > 0).all()
    of_x, of_y = found.variates(x=x, y=y)
    np.testing.assert_allclose(np.sum(of_x * of_y, axis=0), found.correlations, atol=1e-9)
    turned = dsvcca.cca(-x, y)
    np.testing.assert_allclose(turned.x_directions, found.x_directions, atol=1e-9)
    np.testing.assert_allclose(turned.y_directions, -found.y_directions, atol=1e-9)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_a_compressed_layer_is_the_layer_on_what_is_left(xp, k):
    x, y = pair()
    rng = np.random.default_rng(1)
    weight, bias = rng.standard_normal((5, 9)), rng.standard_normal(5)
    found = dsvcca.cca(xp.asarray(x), xp.asarray(y))
    small = found.compress(xp.asarray(weight), xp.asarray(bias), k)
    assert [tuple(part.shape) for part in small] == [(k, 9), (5, k), (5,)]
    reduction, after, offset = map(to_numpy, small)
    np.testing.assert_allclose(reduction @ reduction.T, np.eye(k), atol=1e-12)
    mean = x.mean(axis=0)
    left = mean + (x - mean) @ reduction.T @ reduction
    np.testing.assert_allclose((x @ reduction.T) @ after.T + offset, left @ weight.T + bias, atol=1e-9)
    _, rows = np.linalg.qr(to_numpy(found.project(xp.asarray(x), k) - found.x_mean))
    np.testing.assert_allclose(rows @ reduction.T @ reduction, rows, atol=1e-8)  # the span of the projection


def test_compression_keeps_what_the_next_layer_reads():
    """x holds much that y does not: compressing by y keeps y's part, where principal directions lose it."""
    rng = np.random.default_rng(0)
    signal, noise = rng.standard_normal((20_000, 3)), rng.standard_normal((20_000, 9))
    mixing = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    x = np.hstack([signal, 2 * noise]) @ mixing
    weight = rng.standard_normal((4, 3)) @ mixing[:3]
    found = dsvcca.cca(x, x @ weight.T)
    small = found.compress(weight, None, 3)
    after = (x @ small.reduction.T) @ small.weight.T + small.bias
    whole = np.linalg.norm(x @ weight.T)
    assert residual(x @ weight.T, after) < 0.2 * whole  # what noise happens to share with the signal is left
    assert residual(x @ weight.T, found.project(x, 3) @ weight.T) < 1e-9 * whole
    v = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2][:3]
    assert residual(x @ weight.T, x @ v.T @ v @ weight.T) > 0.9 * whole
    assert found.compress(weight, None, 12).weight.shape == (4, 12)


def test_important_neurons_are_those_that_variates_hold():
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((3000, 2))
    x = np.hstack([10 * signal, rng.standard_normal((3000, 5)), np.full((3000, 1), 3.0)])
    y = signal @ rng.standard_normal((2, 4)) + 0.1 * rng.standard_normal((3000, 4))
    found = dsvcca.cca(x, y)
    scores = found.important_neurons(2)
    assert scores.shape == (8,)
    assert (scores[:2] > 0.95).all()
    assert (scores[2:7] < 0.1).all()
    assert scores[7] == 0
    h, z = found.variates(x=x)[:, :2], x - x.mean(axis=0)
    np.testing.assert_allclose(
        scores[:7], np.abs(h.T @ z)[:, :7].sum(axis=0) / np.linalg.norm(z, axis=0)[:7], rtol=1e-9
    )


@pytest.mark.parametrize("k", [0, 10, -1, 1.5, True, None])
def test_a_number_of_variates_that_is_none_is_refused(k):
    x, y = pair()
    found = dsvcca.cca(x, y)
    for call in (
        lambda: found.project(x, k),
        lambda: found.compress(np.ones((2, 9)), None, k),
        lambda: found.important_neurons(k),
    ):
        with pytest.raises(dsvcca.DsvccaError, match=r"k=.*: 9 directions of x are kept, use 1 to 9"):
            call()


def test_weights_that_do_not_fit_are_refused():
    x, y = pair()
    found = dsvcca.cca(x, y)
    with pytest.raises(dsvcca.DsvccaError, match=r"weight has the shape \(2, 5\), x has 9 neurons"):
        found.compress(np.ones((2, 5)), None, 3)
    with pytest.raises(dsvcca.DsvccaError, match=r"bias has the shape \(3,\), weight has 2 outputs"):
        found.compress(np.ones((2, 9)), np.ones(3), 3)
    with pytest.raises(dsvcca.DsvccaError, match="x has 5 neurons, the directions were found with 9"):
        found.project(np.ones((2, 5)), 3)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = dsvcca.create_store(tmp_path_factory.mktemp("directions") / "s.zarr", datapoints=N)
    x, y = pair()
    rng = np.random.default_rng(3)
    store.write(y, layer="y", seed=0)
    store.write(x, layer="x", seed=0)
    store.write(x + 1, layer="x", seed=1)
    maps = rng.standard_normal((N, 4, 4, 3))
    store.write(maps, layer="maps", seed=0, dims="nhwc")
    store.write(maps + rng.standard_normal((N, 4, 4, 3)), layer="other", seed=0, dims="nhwc")
    store.write(
        maps.mean(axis=(1, 2), keepdims=True) + 0.5 * rng.standard_normal((N, 2, 2, 3)),
        layer="small",
        seed=0,
        dims="nhwc",
    )
    return store


X, Y = {"layer": "x", "seed": 0}, {"layer": "y"}


@pytest.mark.parametrize("variance", [0.9, 1.0])
@pytest.mark.parametrize("exchanged", [False, True])
def test_directions_of_a_population_are_those_in_memory(store, variance, exchanged):
    arrays, labels = pair(), (X, Y)
    if exchanged:
        arrays, labels = arrays[::-1], labels[::-1]
    found = dsvcca.directions(store, *labels, variance=variance)
    own = dsvcca.cca(*arrays, variance=variance)
    assert (found.x_rank, found.y_rank) == (own.x_rank, own.y_rank)
    for name in ("correlations", "x_mean", "y_mean", "x_norms", "x_singular_values", "y_singular_values", "x_weights"):
        np.testing.assert_allclose(getattr(found, name), getattr(own, name), rtol=1e-5, atol=1e-6, err_msg=name)
    for name in ("x_directions", "y_directions", "x_singular_vectors"):
        np.testing.assert_allclose(getattr(found, name), getattr(own, name), atol=2e-5, err_msg=name)
    new = pair(seed=5)
    new = new[::-1] if exchanged else new
    np.testing.assert_allclose(found.variates(x=new[0]), own.variates(x=new[0]), atol=2e-4)
    np.testing.assert_allclose(found.project(new[0], 3), own.project(new[0], 3), atol=2e-3)


def test_bases_that_are_there_are_used_again(store, monkeypatch):
    dsvcca.directions(store, X, Y)
    monkeypatch.setattr("dsvcca.engine.reduce.reduce", None)  # nothing is left to do
    monkeypatch.setattr("dsvcca.engine.bases.reduce", None)
    again = dsvcca.directions(store, X, Y)
    assert again.correlations[0] > 0.5
    assert dsvcca.directions(store, X, Y, variance=0.5).x_rank < again.x_rank


def test_variates_are_streamed(store, tmp_path):
    found = dsvcca.directions(store, X, Y, variance=1.0, out=tmp_path / "v.zarr")
    kept = xr.open_zarr(tmp_path / "v.zarr", consolidated=False)
    x, y = pair()
    np.testing.assert_allclose(kept.x_variates, found.variates(x=x), atol=1e-6)
    np.testing.assert_allclose(kept.y_variates, found.variates(y=y), atol=1e-6)
    np.testing.assert_allclose(kept.x_variates.values.T @ kept.x_variates.values, np.eye(7), atol=1e-9)
    np.testing.assert_array_equal(kept.correlations, found.correlations)
    for name in ("x_directions", "y_directions", "x_singular_vectors", "y_singular_values", "x_mean"):
        np.testing.assert_array_equal(kept[name], getattr(found, name))
    assert kept.attrs["view"] == "neurons"
    assert kept.attrs["x"] == {"layer": "x", "seed": 0}
    assert kept.attrs["rank_rule"] == "all non-zero directions"
    with pytest.raises(dsvcca.DsvccaError, match=r"something is at '.*v.zarr' already"):
        dsvcca.directions(store, X, Y, out=tmp_path / "v.zarr")


def test_directions_of_maps_are_filters(store):
    found = dsvcca.directions(store, {"layer": "maps"}, {"layer": "other"}, variance=1.0)
    maps, other = (store.select(layer=name).read(layer=name) for name in ("maps", "other"))
    own = dsvcca.dft_cca(maps, other)
    assert found.view == "dft"
    assert found.svcca == pytest.approx(own.svcca, abs=1e-7)
    for a, b in zip(found.correlations, own.correlations, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(found.x_mean, own.x_mean, atol=1e-9)
    of_x, of_y = found.variates(x=maps, y=other)
    spectra = [np.fft.fft2(one, axes=(1, 2), norm="ortho")[:, 1, 2] for one in (of_x, of_y)]
    f = next(i for i, bins in enumerate(found.frequencies.tolist()) if bins == [1, 2])
    cross = np.sum(np.conj(spectra[0]) * spectra[1], axis=0)
    np.testing.assert_allclose(cross, found.correlations[f], atol=1e-6)


def test_directions_of_maps_of_two_sizes(store):
    found = dsvcca.directions(store, {"layer": "small"}, {"layer": "maps"}, variance=1.0, view="dft")
    small, maps = (store.select(layer=name).read(layer=name) for name in ("small", "maps"))
    own = dsvcca.dft_cca(small, maps)
    assert found.view == own.view == "alias-empirical"
    assert found.svcca == pytest.approx(own.svcca, abs=1e-7)
    assert found.y_directions.shape == own.y_directions.shape


def test_directions_in_other_views(store):
    found = dsvcca.directions(store, {"layer": "maps"}, X, variance=1.0)
    maps = store.select(layer="maps").read(layer="maps")
    own = dsvcca.cca(maps.mean(axis=(1, 2)), pair()[0])
    np.testing.assert_allclose(found.correlations, own.correlations, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        ({"layer": "x"}, Y, {}, "are carried by 2 pairs of representations: give labels that one alone carries"),
        ({"layer": "z"}, Y, {}, "'z'"),
        ("fc1", Y, {}, r"x='fc1': give the labels of one representation, such as \{'layer': 'fc1'\}"),
        ({"layer": ["x"]}, Y, {}, r"x=\{'layer': \['x'\]\}: give the labels of one representation"),
        (X, Y, {"variance": [0.5, 0.9]}, "directions are those of one share, give one number"),
        ({"layer": "maps"}, {"layer": "small"}, {"view": "lowpass"}, "view 'lowpass' has no directions"),
        ({"layer": "maps"}, {"layer": "other"}, {"out": "v.zarr"}, "those of maps are maps"),
    ],
)
def test_directions_that_cannot_be_are_refused(store, x, y, options, message):
    with pytest.raises(dsvcca.DsvccaError, match=message):
        dsvcca.directions(store, x, y, **options)


def test_workers_that_make_missing_bases_are_checked(store, tmp_path):
    """And the numbers are those that this process finds."""
    from dsvcca.clusters.local import local_client

    refused = pytest.raises(dsvcca.DsvccaError, match="the cluster's smallest has 0.50 GiB")
    with local_client(1, "512 MiB") as client, refused:
        dsvcca.directions(store, X, Y, client=client, workspace=tmp_path / "w")
    with local_client(1, "1 GiB") as client:
        found = dsvcca.directions(store, X, Y, client=client, workspace=tmp_path / "w")
    np.testing.assert_array_equal(found.correlations, dsvcca.directions(store, X, Y).correlations)
