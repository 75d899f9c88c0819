"""What representations share: against values of other tools, plain NumPy, and signals that were planted."""

import numpy as np
import pytest

import dsvcca
from dsvcca import DsvccaError, shared_subspace
from dsvcca.analyses import shared
from dsvcca.analyses.shared import maxvar
from dsvcca.maths.nulls import edges, largest_eigenvalue_by_chance
from tests.test_tools import RECORDS, case

MAXVAR = [r for r in RECORDS if "maxvar" in r["measure"] and not (r["tool"] == "cca-zoo" and r["case"] == "noisy")]


def three(name):
    """Return the three views that the tools were given; the third lies within the span of both."""
    x, y = case(name)
    return [x, y, x[:, :5] + y[:, :5]]


def orthonormal(x):
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    return u[:, s > 1e-9 * s[0]]


def written(path, arrays, dims=None):
    """Write arrays as seeds 0, 1, ... of a layer and return their store."""
    store = dsvcca.create_store(path, datapoints=len(arrays[0]))
    for seed, x in enumerate(arrays):
        store.write(x, layer="a", seed=seed, **({"dims": dims} if dims else {}))
    return store


def planted(n, count, shared, own, noise=0.0, seed=0):
    """Return a signal (n, shared) and representations that all hold it, beside directions of their own."""
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((n, shared))
    arrays = []
    for _ in range(count):
        z = np.hstack([signal + noise * rng.standard_normal(signal.shape), rng.standard_normal((n, own))])
        arrays.append(z @ rng.standard_normal((shared + own, shared + own + 3)) + rng.standard_normal(shared + own + 3))
    return signal, arrays


@pytest.mark.parametrize("record", MAXVAR, ids=lambda r: f"{r['tool']}-{r['case']}")
def test_eigenvalues_are_those_of_other_tools_in_memory(record):
    u = np.hstack([orthonormal(x) for x in three(record["case"])])
    found, vectors = maxvar(u.T @ u, len(record["value"]))
    np.testing.assert_allclose(found, record["value"], atol=1e-10)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(found)), atol=1e-12)


@pytest.mark.parametrize("name", ["plain", "centred", "noisy", "wide"])
def test_eigenvalues_are_those_of_other_tools_from_disk(tmp_path, name):
    found = shared_subspace(written(tmp_path / "s.zarr", three(name)), count=20, variance=1.0)
    records = [r for r in MAXVAR if r["case"] == name]
    assert len(records) >= 2
    for record in records:
        np.testing.assert_allclose(found.eigenvalues[: len(record["value"])], record["value"], atol=1e-6)


def test_the_tools_that_are_left_out_differ_by_their_own_floor():
    """cca-zoo keeps no eigenvalue of a covariance below one of its own: so it loses directions of falling spectra."""
    [record] = [r for r in RECORDS if r["tool"] == "cca-zoo" and r["case"] == "noisy" and "maxvar" in r["measure"]]
    [other] = [r for r in RECORDS if r["tool"] == "xeofs" and r["case"] == "noisy" and "maxvar" in r["measure"]]
    assert (np.asarray(record["value"]) < np.asarray(other["value"]) - 1e-3).all()


@pytest.fixture(scope="module")
def arrays():
    """Four representations of several ranks, in more rows than one step of the grid."""
    _, own = planted(4200, 4, 3, 5, noise=0.7)
    own[2] = own[2][:, :6]
    return own


@pytest.fixture(scope="module")
def found(arrays, tmp_path_factory):
    return shared_subspace(written(tmp_path_factory.mktemp("s") / "s.zarr", arrays), count=7, variance=1.0)


def test_two_representations_give_one_plus_their_correlations(arrays, tmp_path):
    x, y = arrays[0], arrays[2]
    found = shared_subspace(written(tmp_path / "s.zarr", [x, y]), count=6, variance=1.0)
    own = dsvcca.cca(x, y)
    np.testing.assert_allclose(found.eigenvalues, 1 + own.correlations, atol=1e-6)
    np.testing.assert_allclose(found.shares, np.tile((1 + own.correlations) / 2, (2, 1)), atol=1e-6)
    both = own.variates(x=x) + own.variates(y=y)
    for place in range(3):  # those that stand apart
        overlap = found.variates[:, place] @ both[:, place] / np.linalg.norm(both[:, place])
        assert abs(overlap) == pytest.approx(1, abs=1e-6)


def test_variates_shares_and_directions_are_what_they_are_said_to_be(arrays, found):
    n, count = found.variates.shape
    assert (n, count) == (4200, 7)
    np.testing.assert_allclose(found.variates.T @ found.variates, np.eye(7), atol=1e-9)
    np.testing.assert_allclose(found.variates.sum(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(found.shares.sum(axis=0), found.eigenvalues, atol=1e-9)
    assert found.shares.index.names == ["seed", "layer"]
    assert found.shares.index.tolist() == [(seed, "a") for seed in range(4)]
    parts = []
    for place, x in enumerate(arrays):
        z = x - x.mean(axis=0)
        u = orthonormal(x)
        np.testing.assert_allclose(found.shares.iloc[place], np.sum((u.T @ found.variates) ** 2, axis=0), atol=1e-6)
        assert found.directions(place).shape == (x.shape[1], 7)
        parts.append(z @ found.directions(place))
        np.testing.assert_allclose(parts[-1], u @ (u.T @ found.variates), atol=1e-6)
    np.testing.assert_allclose(sum(parts), found.variates * found.eigenvalues, atol=1e-6)
    first = found.directions(0)
    assert (first[np.abs(first).argmax(axis=0), np.arange(7)] > 0).all()
    assert "variates" not in repr(found)


def test_nothing_has_a_larger_sum_of_shares(arrays, found):
    u = np.hstack([orthonormal(x) for x in arrays])
    best, s, _ = np.linalg.svd(u, full_matrices=False)
    np.testing.assert_allclose(found.eigenvalues, s[:7] ** 2, atol=1e-6)
    np.testing.assert_allclose(np.abs(np.sum(best[:, :7] * found.variates, axis=0)), 1, atol=1e-5)


def test_a_shared_signal_is_found_and_who_lacks_it_too(tmp_path):
    signal, arrays = planted(1000, 5, 3, 6)
    arrays.append(np.random.default_rng(9).standard_normal((1000, 9)))
    found = shared_subspace(written(tmp_path / "s.zarr", arrays), variance=1.0)
    assert len(found.eigenvalues) == 10
    assert (found.eigenvalues[:3] > 5 - 1e-6).all()
    assert (found.eigenvalues[3:] < found.chance * 1.03).all()
    assert found.chance < 2
    shares = found.shares.iloc[:, :3].to_numpy()
    np.testing.assert_allclose(shares[:5], 1, atol=1e-3)
    assert (shares[5] < 0.05).all()
    u = orthonormal(signal)
    np.testing.assert_allclose(np.linalg.svd(u.T @ found.variates[:, :3], compute_uv=False), 1, atol=1e-3)


def test_maps_of_representations_and_their_order_change_nothing(arrays, found, tmp_path):
    rng = np.random.default_rng(4)
    turned = [x @ rng.standard_normal((x.shape[1], x.shape[1])) + 2 for x in arrays[:2]]
    turned += [x[:, rng.permutation(x.shape[1])] * 100 for x in arrays[2:]]
    again = shared_subspace(written(tmp_path / "s.zarr", turned[::-1]), count=7, variance=1.0)
    np.testing.assert_allclose(again.eigenvalues, found.eigenvalues, atol=1e-6)
    np.testing.assert_allclose(again.shares.to_numpy()[::-1], found.shares, atol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(again.variates * found.variates, axis=0)), 1, atol=1e-5)
    assert again.chance == pytest.approx(found.chance, rel=1e-12)


def test_the_same_twice_and_what_there_is_of_it(tmp_path):
    x = np.random.default_rng(0).standard_normal((300, 4))
    store = written(tmp_path / "s.zarr", [x, x @ np.random.default_rng(1).standard_normal((4, 4))])
    found = shared_subspace(store, variance=1.0)  # ten by default, four there are
    np.testing.assert_allclose(found.eigenvalues, [2] * 4, atol=1e-6)
    with pytest.raises(DsvccaError, match="count=5: all representations together span 4 directions"):
        shared_subspace(store, count=5, variance=1.0)
    with pytest.raises(DsvccaError, match="count=9: all representations together span 4"):
        shared_subspace(store, count=9, variance=1.0)


def test_chance_is_what_unrelated_representations_show(tmp_path):
    rng = np.random.default_rng(0)
    widths = [10, 20, 40, 40, 80]
    found = shared_subspace(
        written(tmp_path / "s.zarr", [rng.standard_normal((1001, p)) for p in widths]), count=3, variance=1.0
    )
    assert found.chance == pytest.approx(largest_eigenvalue_by_chance(widths, 1000))
    assert found.eigenvalues[0] == pytest.approx(found.chance, rel=0.02)


@pytest.mark.parametrize("count", [2, 3, 40])
@pytest.mark.parametrize("g", [0.01, 0.2, 0.45])
def test_the_edge_of_equal_ranks_has_a_closed_form(count, g):
    expected = min(1 + (count - 2) * g + 2 * np.sqrt((count - 1) * g * (1 - g)), count)
    assert largest_eigenvalue_by_chance([1000 * g] * count, 1000) == pytest.approx(expected, abs=1e-6)


def test_the_edge_of_two_is_that_of_their_correlations():
    for p, q in ((50, 50), (10, 300), (300, 500)):
        assert largest_eigenvalue_by_chance([p, q], 1000) == pytest.approx(1 + float(edges(p, q, 1000)[1]), abs=1e-6)
    assert largest_eigenvalue_by_chance([600, 600], 1000) == pytest.approx(2, abs=1e-6)  # they must meet


def test_each_variate_counts_what_is_kept(arrays, tmp_path):
    """With a rank rule it is the kept directions that are compared."""
    store = written(tmp_path / "s.zarr", arrays)
    found = shared_subspace(store, count=3, rank=4)
    kept = [orthonormal(x)[:, :4] for x in arrays]
    expected = np.linalg.svd(np.hstack(kept), compute_uv=False)[:3] ** 2
    np.testing.assert_allclose(found.eigenvalues, expected, atol=1e-6)


def test_maps_meet_by_their_mean(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.standard_normal((200, 3, 3, 6))
    maps = [base @ rng.standard_normal((6, 6)) + 0.3 * rng.standard_normal(base.shape) for _ in range(3)]
    store = written(tmp_path / "s.zarr", maps, dims="nhwc")
    with pytest.raises(DsvccaError, match=r"seed=0, layer='a' is seen by frequency \(view 'dft'\), .*view='mean'"):
        shared_subspace(store)
    found = shared_subspace(store, view="mean", variance=1.0, count=2)
    u = np.hstack([orthonormal(x.mean(axis=(1, 2))) for x in maps])
    np.testing.assert_allclose(found.eigenvalues, np.linalg.svd(u, compute_uv=False)[:2] ** 2, atol=1e-6)


def test_one_view_must_fit_all(tmp_path):
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=100)
    for seed in range(2):
        store.write(rng.standard_normal((100, 4, 5)), layer="tokens", seed=seed, dims="ntd")
        store.write(rng.standard_normal((100, 5)), layer="dense", seed=seed)
    with pytest.raises(DsvccaError, match=r"layer='tokens' is seen as .* by some and as .* give one view="):
        shared_subspace(store)
    assert len(shared_subspace(store, view="mean").shares) == 4
    tokens = shared_subspace(store.select(layer="tokens"), count=2)
    assert tokens.variates.shape == (400, 2)
    assert tokens.chance > 1 + float(edges(5, 5, 399)[1]) + 0.1  # positions of one datapoint are one row of chance


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count=0: give how many variates, 1 or more"),
        ({"count": 2.0}, "count=2.0: give how many variates"),
        ({"variance": [0.5, 1.0]}, "directions are those of one share, give one number"),
        ({"rank": 2, "variance": 0.5}, "give one of them"),
        ({"view": "neuron"}, "view='neuron' is unknown"),
    ],
)
def test_what_cannot_be_shared_is_refused(arrays, tmp_path, options, message):
    with pytest.raises(DsvccaError, match=message):
        shared_subspace(written(tmp_path / "s.zarr", arrays), **options)


def test_one_representation_and_too_many_directions_are_refused(arrays, found, tmp_path, monkeypatch):
    store = written(tmp_path / "s.zarr", arrays)
    with pytest.raises(DsvccaError, match=r"seed=1, layer='a' is the only one: what is shared needs two or more"):
        shared_subspace(store.select(seed=1))
    with pytest.raises(DsvccaError, match="a str was given instead of a store"):
        shared_subspace("s.zarr")
    monkeypatch.setattr(shared, "MOST", 20)
    with pytest.raises(DsvccaError, match=r"4 representations keep \d+ directions together, .* \(rank=5, or a smaller"):
        shared_subspace(store)
    assert len(shared_subspace(store, rank=5, count=2).eigenvalues) == 2
    for i in (-1, 4, "a", 1.0):
        with pytest.raises(DsvccaError, match="there are 4 representations, give the row of one in shares"):
            found.directions(i)
