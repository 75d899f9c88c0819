"""Correlations themselves, kept with results: against NumPy, whatever else is asked for, in results that grow."""

from dataclasses import replace

import numpy as np
import pytest

import dsvcca
from dsvcca import DsvccaError
from dsvcca.maths.measures import MEASURES
from dsvcca.maths.nulls import edges
from tests.populations import same_bits

N = 900


def layers():
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((N, 6))
    wide = shared @ rng.standard_normal((6, 20)) + 0.7 * rng.standard_normal((N, 20))
    narrow = shared[:, :3] @ rng.standard_normal((3, 3)) + 0.1 * rng.standard_normal((N, 3))
    return {"wide": wide, "noise": rng.standard_normal((N, 12)), "narrow": narrow, "maps": rng.random((N, 3, 4, 5))}


def correlations_of(x, y, variance):
    """Return canonical correlations as the definition has them, by QR and SVD of the whole."""
    kept = []
    for one in (x, y):
        u, s, _ = np.linalg.svd(one - one.mean(axis=0), full_matrices=False)
        kept.append(u[:, : int(np.searchsorted(np.cumsum(s**2), (variance - 1e-12) * np.sum(s**2))) + 1])
    return np.linalg.svd(kept[0].T @ kept[1], compute_uv=False)


@pytest.fixture
def store(tmp_path):
    store = dsvcca.create_store(tmp_path / "a.zarr", datapoints=N)
    for name, x in layers().items():
        store.write(x.astype(np.float32), layer=name, dims="nhwc" if x.ndim == 4 else None)
    return store


@pytest.mark.parametrize("measures", [["svcca"], ["svcca", "pwcca_x", "svcca_error"]])
@pytest.mark.parametrize("variance", [0.9, [0.8, 1.0]])
def test_kept_correlations_are_those_of_numpy(store, tmp_path, variance, measures):
    plan = dsvcca.plan_comparisons(store, variance=variance, measures=measures, keep=["correlations"])
    found = dsvcca.compare(plan, tmp_path / "r.zarr")
    assert found.correlations.dims == ("x", "y", "correlation", "variance")[: 3 + (np.ndim(variance) > 0)]
    assert found.sizes["correlation"] == 32  # a power of two that has room for 20
    x_layers = found.x_layer.values.tolist()
    for share in np.atleast_1d(variance):
        own = found.sel(variance=share) if np.ndim(variance) else found
        for a, b in (("wide", "noise"), ("wide", "narrow"), ("narrow", "wide"), ("noise", "noise")):
            i, j = x_layers.index(a), x_layers.index(b)
            expected = correlations_of(layers()[a], layers()[b], share)
            here = own.correlations.values[i, j]
            np.testing.assert_allclose(here[: len(expected)], expected, atol=2e-6)
            assert np.isnan(here[len(expected) :]).all()
            assert np.nanmean(here) == pytest.approx(float(own.svcca[i, j]), abs=1e-12)
            ranks = int(own.rank_x[i, j]), int(own.rank_y[i, j])
            assert float(own.chance_edge[i, j]) == pytest.approx(float(edges(*ranks, N - 1)[1]), abs=1e-12)
    np.testing.assert_array_equal(found.correlations.values, found.correlations.values.swapaxes(0, 1))
    assert same_bits(dsvcca.compare(replace(plan, panel=2), tmp_path / "r2.zarr"), found)
    frame = dsvcca.to_frame(found, measures="correlations")
    rows = frame[(frame.x_layer == "wide") & (frame.y_layer == "narrow")]
    if np.ndim(variance):
        rows = rows[rows.variance == share]
    assert rows.correlation.tolist() == list(range(len(rows)))
    np.testing.assert_allclose(
        rows.correlations, correlations_of(layers()["wide"], layers()["narrow"], share), atol=2e-6
    )
    assert rows.chance_edge.nunique() == 1


def test_what_is_compared_by_frequency_has_no_correlations(store, tmp_path):
    plan = dsvcca.plan_comparisons(store, keep=["correlations", "frequencies"])
    found = dsvcca.compare(plan, tmp_path / "r.zarr")
    maps = found.x_layer.values.tolist().index("maps")
    assert np.isnan(found.correlations.values[maps, maps]).all()
    assert np.isfinite(found.svcca_by_frequency.values[maps, maps]).any()
    assert 0 < float(found.chance_edge[maps, maps]) < 1
    assert np.isfinite(found.correlations.values[maps, 0, :5]).all()  # with a dense layer by the mean over space


def test_independent_layers_stay_below_the_edge(tmp_path):
    store = dsvcca.create_store(tmp_path / "a.zarr", datapoints=2000)
    rng = np.random.default_rng(1)
    for seed in range(4):
        store.write(rng.standard_normal((2000, 100)).astype(np.float32), layer="fc", seed=seed)
    plan = dsvcca.plan_comparisons(store, variance=1.0, keep=["correlations"])
    found = dsvcca.compare(plan, tmp_path / "r.zarr")
    off = ~np.eye(4, dtype=bool)
    ratio = found.correlations.values[off][:, 0] / found.chance_edge.values[off]
    assert ((ratio > 0.92) & (ratio < 1.02)).all()


def test_results_with_correlations_grow(store, tmp_path):
    def plan(*names):
        return dsvcca.plan_comparisons(store.select(layer=list(names)), keep=["correlations"])

    dsvcca.compare(plan("wide", "noise"), tmp_path / "r.zarr")
    found = dsvcca.compare(plan("noise", "narrow"), tmp_path / "r.zarr")  # which alone would need room for 16
    assert found.sizes["correlation"] == 32
    fresh = dsvcca.compare(plan("noise", "narrow"), tmp_path / "fresh.zarr")
    assert fresh.sizes["correlation"] == 16
    np.testing.assert_array_equal(found.correlations.values[..., :16], fresh.correlations.values)
    with pytest.raises(DsvccaError, match="correlations is 16 there and 32 here"):
        dsvcca.compare(plan("wide", "noise"), tmp_path / "fresh.zarr")


def test_correlations_that_are_not_there_cannot_be_kept(store):
    with pytest.raises(DsvccaError, match="all pairs are compared by frequency here.*dsvcca.directions"):
        dsvcca.plan_comparisons(store.select(layer="maps"), keep="correlations")
    with pytest.raises(DsvccaError, match="no pairs are compared here"):
        dsvcca.plan_comparisons(store, "to_targets", targets=np.ones((N, 1)), keep="correlations")
    plain, kept = (dsvcca.plan_comparisons(store.select(layer="wide"), keep=keep) for keep in ((), "correlations"))
    assert kept.tile_budget == plain.tile_budget - 32 * 32


@pytest.mark.parametrize(("p", "q"), [(20, 30), (30, 10)])
def test_measures_of_independent_layers_are_what_they_are_said_to_be(p, q):
    """Also those weighted by neurons, however much these are alike: the weights know nothing of the correlations."""
    rng = np.random.default_rng(2)
    names = [name for name, one in MEASURES.items() if one.independent is not None]
    found = []
    for _ in range(40):
        x = rng.standard_normal((300, p)) @ rng.standard_normal((p, p)) * np.linspace(0.1, 5, p)
        found.append(dsvcca.measure(x, rng.standard_normal((300, q)), [*names, "chance"]))
    for name in names:
        values = np.asarray([one[name] for one in found])
        said = MEASURES[name].independent
        expected = found[0][said] if isinstance(said, str) else said
        error = values.std(ddof=1) / len(values) ** 0.5
        assert abs(values.mean() - expected) < 4 * error + (0.02 if name == "svcca_debiased" else 0), name
