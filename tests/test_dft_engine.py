"""The view dft through the engine: the numbers of a whole transform, and the same bits however it is cut."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import scipy.signal

import dsvcca
from dsvcca import DsvccaError, DsvccaWarning
from dsvcca.clusters.local import local_client
from dsvcca.engine import execute
from dsvcca.engine.bases import make_bases
from dsvcca.engine.correlate import correlate, tile_tasks
from dsvcca.plans.sizes import PROCESS, holds_whole, streams
from dsvcca.results.filling import begin
from dsvcca.workspace.contents import ensure_workspace
from tests.populations import same_bits

SPACE = (6, 5)
ROWS = 700

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than 5 rows a kept", "ignore:.* datapoints are counted")


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
                assert int(results.rank_x[i, j, place]) == rank


@pytest.mark.parametrize("panel", [1, 2])
def test_the_panel_changes_no_bit(plan, results, tmp_path, panel):
    assert same_bits(dsvcca.compare(replace(plan, panel=panel), tmp_path / "r.zarr", workspace=tmp_path / "w"), results)


def test_chunks_and_workers_change_no_bit(results, tmp_path):
    plan = dsvcca.plan_comparisons(write(tmp_path / "s.zarr", chunk=90), view="dft", variance=[0.9, 1.0])
    with local_client(2, "1 GiB") as client:
        assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr", client=client), results)


def test_frequencies_taken_one_by_one_change_no_bit(plan, results, tmp_path):
    workspace, about = str(tmp_path / "w"), {name: results.attrs[name] for name in ("dsvcca_version", "datapoint_ids")}
    ensure_workspace(workspace)
    bases = make_bases(plan, workspace, range(len(plan.aspects)), None).bases
    [task], _ = tile_tasks(begin(tmp_path / "r.zarr", plan, about), workspace, bases, plan.assumed_ranks())
    execute.guarded(correlate, replace(task, asked=replace(task.asked, budget=1)))  # no two of them fit
    assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr", workspace=workspace), results)


@pytest.mark.slow
def test_streamed_columns_change_no_bit(tmp_path):
    space, n = (8, 8), 16_000
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=n)
    for seed in range(2):
        store.write(maps(seed, 12, space, n), layer="conv", seed=seed, dims="nhwc")
    ample = dsvcca.plan_comparisons(store, view="dft", memory="6 GiB", variance=1.0)
    tight = replace(ample, memory=int((PROCESS + (290 << 20)) / 0.7))
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


def test_layers_of_sizes_that_do_not_divide_are_refused_by_frequency(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=ROWS)
    store.write(maps(0, 3), layer="a", dims="nhwc")
    store.write(maps(1, 3, (4, 5)), layer="b", dims="nhwc")
    with pytest.raises(DsvccaError, match=r"'a' and layer='b': maps of 6x5 and maps of 4x5 cannot .* use view='mean'"):
        dsvcca.plan_comparisons(store, view="dft")
    with pytest.raises(DsvccaError, match="center='mean' is unknown"):
        dsvcca.plan_comparisons(store, center="mean")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A store with maps of two sizes, a dense layer and a sequence; and its arrays."""
    rng = np.random.default_rng(5)
    arrays = {
        "a": maps(0, 4),
        "b": maps(1, 6),
        "small": maps(2, 4)[:, ::2] + 0.1 * rng.standard_normal((ROWS, 3, 5, 4)).astype(np.float32),
        "dense": maps(3, 4).mean(axis=(1, 2)) @ rng.standard_normal((4, 7)).astype(np.float32),
        "tokens": rng.standard_normal((ROWS, 6, 3)).astype(np.float32),
    }
    store = dsvcca.create_store(tmp_path_factory.mktemp("m") / "s.zarr", datapoints=ROWS)
    for layer, x in arrays.items():
        store.write(x, layer=layer, dims={2: None, 3: "ntd", 4: "nhwc"}[x.ndim])
    return store, arrays


def in_memory(x, y, name):
    if name in ("dft", "alias-empirical"):
        return dsvcca.dft_cca(x, y, variance=0.9).svcca
    if name == "positions":
        return dsvcca.svcca(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), variance=0.9)
    sides = []
    for a in (x, y):
        axes = tuple(range(1, a.ndim - 1))
        reduced = {"mean": np.mean, "max": np.max}.get(name)
        a = a.astype(np.float64)
        sides.append(reduced(a, axis=axes) if reduced and axes else a.reshape(len(a), -1))
    return dsvcca.svcca(*sides, variance=0.9)


def test_every_pair_is_compared_in_the_view_that_fits_it_and_says_which(mixed, tmp_path):
    store, arrays = mixed
    plan = dsvcca.plan_comparisons(store, variance=0.9)
    said = str(plan)
    for words in (f"dft (4 comparisons of {ROWS} rows)", f"mean (9 comparisons of {ROWS} rows)", "neurons (1 comp"):
        assert words in said
    found = dsvcca.compare(plan, tmp_path / "r.zarr")
    frame = dsvcca.to_frame(found)
    names = {(row.x_layer, row.y_layer): row.view for row in frame.itertuples()}
    assert names["a", "b"] == names["a", "a"] == names["small", "small"] == "dft"
    assert names["tokens", "tokens"] == "positions"
    assert names["dense", "dense"] == "neurons"
    assert names["a", "small"] == names["b", "dense"] == names["dense", "tokens"] == "mean"
    for row in frame.itertuples():
        assert row.svcca == pytest.approx(in_memory(arrays[row.x_layer], arrays[row.y_layer], row.view), abs=5e-7)
    assert int(found.rank_x[0, 1]) > int(found.rank_x[0, 3])  # of all frequencies; of the mean
    assert (found.rank_x.values == found.rank_y.values.T).all()
    assert same_bits(dsvcca.compare(replace(plan, panel=2), tmp_path / "r2.zarr"), found)


@pytest.mark.parametrize("view", ["dft", "lowpass", "pool", "flatten", "max"])
def test_maps_of_different_sizes_meet_under_a_view_by_name(mixed, tmp_path, view):
    store, arrays = mixed
    plan = dsvcca.plan_comparisons(store.select(layer=["a", "small"]), view=view, variance=0.9)
    found = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")
    [row] = [row for row in dsvcca.to_frame(found).itertuples() if row.x_layer != row.y_layer]
    assert row.view == {"dft": "alias-empirical"}.get(view, view)
    x, y = arrays["a"].astype(np.float64), arrays["small"].astype(np.float64)
    if view == "lowpass":
        x, name = scipy.signal.resample(x, 3, axis=1), "dft"
    elif view == "pool":
        x, name = (x[:, ::2] + x[:, 1::2]) / 2, "dft"
    else:
        name = row.view
    assert row.svcca == pytest.approx(in_memory(x, y, name), abs=5e-7)
    if view == "dft":
        assert "exact if the rows hold the shifts" in found.view.attrs["flag_definitions"]["alias-empirical"]


def test_pairs_that_are_not_wanted_need_not_meet(mixed, tmp_path):
    store, _ = mixed
    plan = dsvcca.plan_comparisons(store, [({"layer": "a"}, {"layer": "b"})], view="dft")
    assert [plan.representations[v.representation].labels["layer"] for v in plan.aspects] == ["a", "b"]
    with pytest.raises(DsvccaError, match="maps of 6x5 and a dense layer cannot be .*; or select.* other pairs"):
        dsvcca.plan_comparisons(store, [({"layer": "a"}, {"layer": "dense"})], view="dft")


@pytest.mark.parametrize("variance", [0.9, [0.8, 1.0]])
def test_what_is_shared_at_every_frequency_is_kept_on_request(mixed, tmp_path, variance):
    store, arrays = mixed
    chosen = store.select(layer=["a", "b", "small", "dense"])
    plan = dsvcca.plan_comparisons(chosen, variance=variance, keep=["frequencies"])
    found = dsvcca.compare(plan, tmp_path / "r.zarr")
    grids = found.frequency_grid.values.tolist()
    assert [grids.count(grid) for grid in ("3x5", "6x5")] == [8, 16]
    shown = found.svcca_by_frequency if np.ndim(variance) == 0 else found.svcca_by_frequency.isel(variance=0)
    share = variance if np.ndim(variance) == 0 else variance[0]
    for (i, x), (j, y), grid in (((0, "a"), (1, "b"), "6x5"), ((2, "small"), (2, "small"), "3x5")):
        memory = dsvcca.dft_cca(arrays[x], arrays[y], variance=share)
        here = shown[i, j].values
        np.testing.assert_allclose(here[[g == grid for g in grids]], memory.by_frequency, atol=2e-6)
        assert np.isnan(here[[g != grid for g in grids]]).all()
        space = tuple(map(int, grid.split("x")))
        bins = np.stack([found.frequency_0, found.frequency_1], axis=1)[[g == grid for g in grids]]
        assert (bins % space == memory.frequencies).all()
    assert np.isnan(shown[0, 3].values).all()
    np.testing.assert_array_equal(shown.values, shown.values.swapaxes(0, 1))
    assert same_bits(dsvcca.compare(replace(plan, panel=2), tmp_path / "r2.zarr"), found)
    assert len(dsvcca.to_frame(found)) == 10 * np.size(variance)
    frame = dsvcca.to_frame(found, measures=["svcca_by_frequency"])
    row = frame[(frame.x_layer == "a") & (frame.y_layer == "b") & (frame.frequency_0 == 0) & (frame.frequency_1 == 2)]
    assert row.frequency_cycles.tolist() == [0.4] * np.size(variance)
    at = int(np.flatnonzero((found.frequency_0 == 0) & (found.frequency_1 == 2) & (found.frequency_grid == "6x5"))[0])
    assert row.svcca_by_frequency.iloc[0] == float(shown[0, 1, at])
    assert len(frame) == np.size(variance) * int(np.isfinite(shown.values[np.triu_indices(4)]).sum())


def test_frequencies_that_are_not_there_cannot_be_kept(mixed):
    with pytest.raises(DsvccaError, match="keep='spectrum' is unknown: there is 'frequencies', 'correlations'"):
        dsvcca.plan_comparisons(mixed[0], keep="spectrum")
    maps_only = mixed[0].select(layer=["a", "b"])
    plain, kept = (dsvcca.plan_comparisons(maps_only, keep=keep) for keep in ((), "frequencies"))
    assert kept.tile_budget == plain.tile_budget - 32 * 2**2 * 16
    with pytest.raises(DsvccaError, match=r"keep=\['frequencies'\] holds .* in a tile, more than half of the"):
        replace(kept, memory=int((PROCESS + 3000) / 0.7)).check()
    with pytest.raises(DsvccaError, match="nothing is compared by frequency here"):
        dsvcca.plan_comparisons(mixed[0].select(layer="dense"), keep="frequencies")


def test_layers_that_share_no_frequency_have_no_pwcca_and_say_so(tmp_path):
    rng = np.random.default_rng(0)
    still = np.broadcast_to(rng.standard_normal((ROWS, 1, 1, 3)), (ROWS, 4, 4, 3)) + np.zeros((ROWS, 4, 4, 3))
    moving = rng.standard_normal((ROWS, 4, 4, 2))
    moving -= moving.mean(axis=(1, 2), keepdims=True)
    found = dsvcca.dft_cca(still, moving)
    assert found.svcca == 0
    assert np.isnan(found.pwcca_x)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=ROWS)
    store.write(still, layer="still", dims="nhwc")
    store.write(moving, layer="moving", dims="nhwc")
    plan = dsvcca.plan_comparisons(store, view="dft", measures=["pwcca_x"])
    frame = dsvcca.to_frame(dsvcca.compare(plan, tmp_path / "r.zarr"))
    assert np.isnan(frame.pwcca_x).tolist() == [False, True, False]


def test_a_cut_between_equal_frequencies_is_said(tmp_path):
    """Mirrored images make bins that belong together equal: a rank that takes one of them is decided by rounding."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((150, 6, 6, 3))
    both = np.concatenate([images, np.roll(images[:, :, ::-1], 1, axis=2)])
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=300)
    for layer in "ab":
        store.write(both @ rng.standard_normal((3, 5)), layer=layer, dims="nhwc")
    said = []
    for rank in (29, 31):
        plan = dsvcca.plan_comparisons(store, view="dft", rank=rank)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = dsvcca.compare(plan, tmp_path / f"{rank}.zarr")
        said.append(any("rounding decides which directions" in sentence for sentence in found.attrs["warnings"]))
    assert said[1]
