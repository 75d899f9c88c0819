"""The view dft through the engine: the numbers of a whole transform, and the same bits however it is cut."""

from dataclasses import replace

import numpy as np
import pytest

import dsvcca
from dsvcca import DsvccaError, DsvccaWarning, execute
from dsvcca.plan import holds_whole, streams
from tests.populations import same_bits

SPACE = (6, 5)
ROWS = 700

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than 5 rows a kept")


def maps(seed, channels, space=SPACE, n=ROWS):
    """Return maps (n, *space, channels): one shared field seen through random circular filters, plus noise."""
    field = np.random.default_rng(1).standard_normal((n, *space, 3))
    rng = np.random.default_rng(10 + seed)
    axes = tuple(range(1, 1 + len(space)))
    out = 2.0 * rng.standard_normal((n, *space, channels)) + rng.uniform(-2, 2, channels)
    for shift in np.ndindex(*(2 for _ in space)):
        out += np.roll(field, shift, axes) @ rng.standard_normal((3, channels))
    return out.astype(np.float32)


def expected(x, y, variance):
    """Return svcca, pwcca of x and the rank of x, from the whole complex transform, one SVD a bin."""
    sides = []
    for a in (x, y):
        axes = tuple(range(1, a.ndim - 1))
        z = np.fft.fftn(a.astype(np.float64), axes=axes, norm="ortho")
        z -= z.mean(axis=0)
        found = {f: np.linalg.svd(z[(slice(None), *f)], full_matrices=False) for f in np.ndindex(*a.shape[1:-1])}
        power = np.sort(np.concatenate([s**2 for _, s, _ in found.values()]))[::-1]
        last = np.searchsorted(np.cumsum(power), variance * power.sum() * (1 - 1e-12)) if variance < 1 else -1
        least = power[last] * (1 - 1e-9)
        sides.append({f: (u[:, s**2 >= least], (s[:, None] * v)[s**2 >= least]) for f, (u, s, v) in found.items()})
    total = weighted = weights = 0.0
    for f in sides[0]:
        (u, f_x), (v, _) = sides[0][f], sides[1][f]
        a, rho, _ = np.linalg.svd(u.conj().T @ v, full_matrices=False)
        alpha = np.abs(a.conj().T @ f_x).sum(axis=1)
        total, weighted, weights = total + rho.sum(), weighted + alpha @ rho, weights + alpha.sum()
    ranks = [sum(u.shape[1] for u, _ in side.values()) for side in sides]
    return total / min(ranks), weighted / weights, ranks[0]


def write(path, chunk=ROWS):
    store = dsvcca.create_store(path, datapoints=ROWS)
    for seed, channels in enumerate((4, 6, 3)):
        x = maps(seed, channels)
        with store.writer(layer="conv", seed=seed, dims="nhwc") as writer:
            for start in range(0, ROWS, chunk):
                writer.append(x[start : start + chunk])
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write(tmp_path_factory.mktemp("dft") / "s.zarr")


@pytest.fixture(scope="module")
def plan(store):
    return dsvcca.plan_comparisons(store, view="dft", variance=[0.9, 1.0])


@pytest.fixture(scope="module")
def results(plan, tmp_path_factory):
    return dsvcca.compare(plan, tmp_path_factory.mktemp("r") / "r.zarr")


def test_every_number_is_that_of_the_whole_transform(results):
    arrays = [maps(seed, channels) for seed, channels in enumerate((4, 6, 3))]
    for place, variance in enumerate((0.9, 1.0)):
        for i, x in enumerate(arrays):
            for j, y in enumerate(arrays):
                svcca, pwcca, rank = expected(x, y, variance)
                assert abs(float(results.svcca[i, j, place]) - svcca) < 2e-7
                assert abs(float(results.pwcca_x[i, j, place]) - pwcca) < 1e-5
                assert int(results.rank_x[i, place]) == rank


@pytest.mark.parametrize("panel", [1, 2])
def test_the_panel_changes_no_bit(plan, results, tmp_path, panel):
    assert same_bits(dsvcca.compare(replace(plan, panel=panel), tmp_path / "r.zarr", workspace=tmp_path / "w"), results)


def test_chunks_and_workers_change_no_bit(results, tmp_path):
    plan = dsvcca.plan_comparisons(write(tmp_path / "s.zarr", chunk=90), view="dft", variance=[0.9, 1.0])
    with execute.local_client(2, "1 GiB") as client:
        assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr", client=client), results)


def test_streamed_columns_change_no_bit(tmp_path):
    space, n = (8, 8), 16_000
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=n)
    for seed in range(2):
        store.write(maps(seed, 12, space, n), layer="conv", seed=seed, dims="nhwc")
    ample = dsvcca.plan_comparisons(store, view="dft", memory="6 GiB", variance=1.0)
    tight = replace(ample, memory=int((320 + 290) * 2**20 / 0.7))
    for plan, small in ((ample, False), (tight, True)):
        assert streams(plan.sizes[0], plan.budget) == small
        assert holds_whole(plan.sizes[0], plan.budget) != small
    one = dsvcca.compare(ample, tmp_path / "r1.zarr", workspace=tmp_path / "w1")
    assert same_bits(dsvcca.compare(tight, tmp_path / "r2.zarr", workspace=tmp_path / "w2"), one)


def test_sequences_and_volumes_are_compared(tmp_path):
    for dims, space in (("ntd", (7,)), (("datapoint", "depth", "height", "width", "channel"), (3, 2, 4))):
        arrays = [maps(seed, 3, space) for seed in range(2)]
        store = dsvcca.create_store(tmp_path / f"{len(space)}.zarr", datapoints=ROWS)
        for seed, x in enumerate(arrays):
            store.write(x, layer="l", seed=seed, dims=dims)
        plan = dsvcca.plan_comparisons(store, view="dft", variance=0.9)
        found = dsvcca.compare(plan, tmp_path / f"{len(space)}.r")
        assert abs(float(found.svcca[0, 1]) - expected(*arrays, 0.9)[0]) < 2e-7


def test_a_mean_that_stays_is_warned_of_and_kept_with_the_results(store, tmp_path):
    plan = dsvcca.plan_comparisons(store, view="dft", center="dc")
    with pytest.warns(DsvccaWarning, match="counts as signal"):
        found = dsvcca.compare(plan, tmp_path / "r.zarr")
    assert "counts as signal" in found.attrs["warnings"][0]
    assert found.attrs["center"] == "dc"


def test_layers_of_other_sizes_are_refused_by_frequency(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=ROWS)
    store.write(maps(0, 3), layer="a", dims="nhwc")
    store.write(maps(1, 3, (3, 5)), layer="b", dims="nhwc")
    with pytest.raises(DsvccaError, match=r"transformed over \(6, 5\) and .* over \(3, 5\): frequencies are compared"):
        dsvcca.plan_comparisons(store, view="dft")
    with pytest.raises(DsvccaError, match="center='mean' is unknown"):
        dsvcca.plan_comparisons(store, center="mean")
