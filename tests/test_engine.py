"""The engine: the numbers are right, and their bits do not depend on how the work was cut, placed or interrupted."""

import asyncio
import itertools
import json
import os
import pickle
import random
import re
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster
from scipy.linalg import hadamard

import dsvcca
from dsvcca import DsvccaError, DsvccaWarning
from dsvcca.clusters import local
from dsvcca.clusters.local import local_client
from dsvcca.engine import cluster, execute
from dsvcca.engine.bases import make_bases
from dsvcca.engine.correlate import correlate, tile_tasks
from dsvcca.engine.reduce import ReduceTask, reduce, reduce_tasks
from dsvcca.errors import RunError
from dsvcca.maths import views
from dsvcca.plans.sizes import PROCESS, holds_whole, pack_memory, tile_memory
from dsvcca.results.filling import begin
from dsvcca.storage import staging
from dsvcca.storage.records import signed
from dsvcca.storage.staging import STAGING
from dsvcca.workspace.contents import ensure_workspace, find_bases
from tests.populations import activations, same_bits, write_population


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.slow), 2], ids=["one worker", "two workers"])
def client(request):
    with local_client(request.param, "1.5 GiB") as client:
        yield client


def missing_tiles(out, plan):
    return [missing.sheet.places for missing in begin(out, plan, {}).tiles]


def files_and_times(*folders):
    return {p: p.stat().st_mtime_ns for folder in folders for p in Path(folder).rglob("*")}


def test_every_number_is_the_one_in_memory(population, results):
    arrays = list(population[1].values())
    for i in range(len(arrays)):
        for j in range(i, len(arrays)):  # PWCCA: near ties between correlations magnify the rounding of directions
            for place, share in enumerate((0.9, 0.99, 1.0)):
                x, y = arrays[i], arrays[j]
                found = dsvcca.cca(x, y, variance=share)
                assert abs(results.svcca.values[i, j, place] - dsvcca.svcca(x, y, variance=share)) < 2e-7
                assert abs(results.pwcca_x.values[i, j, place] - dsvcca.pwcca(x, y, variance=share)) < 1e-5
                assert abs(results.pwcca_y.values[i, j, place] - dsvcca.pwcca(x, y, variance=share, side="y")) < 1e-5
                assert abs(results.r2.values[i, j, place] - np.mean(found.correlations**2)) < 5e-7
                assert results.rank_x.values[i, j, place] == found.x_rank
                assert results.rank_y.values[i, j, place] == found.y_rank


def test_both_sides_of_the_diagonal_are_filled(results):
    assert np.array_equal(results.svcca.values, results.svcca.values.swapaxes(0, 1))
    assert np.array_equal(results.pwcca_x.values, results.pwcca_y.values.swapaxes(0, 1))
    assert not np.allclose(results.pwcca_x.values, results.pwcca_y.values)
    assert np.abs(np.diagonal(results.svcca.values) - 1).max() < 2.2e-7


@pytest.mark.parametrize("variance", [0.99, [0.5, 0.9]])
@pytest.mark.parametrize("condition", [1e2, 1e5])
def test_float32_on_disk_gives_float64_correlations(tmp_path, variance, condition):
    """Condition numbers up to 1e5, means 30 times the deviation; the truth is the in-memory route on what is stored."""
    rng = np.random.default_rng(0)
    n, p = 5000, 40
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=n)
    shared = rng.standard_normal((n, p))
    stored = []
    for seed in range(3):
        u = np.linalg.qr(shared + 0.7 * rng.standard_normal((n, p)))[0]
        v = np.linalg.qr(rng.standard_normal((p, p)))[0]
        x = u * np.geomspace(1, 1 / condition, p) @ v
        x = (x / x.std() + 30).astype("f4")
        stored.append(x)
        store.write(x, layer="l", seed=seed)
    found = dsvcca.compare(
        dsvcca.plan_comparisons(store, variance=[1.0, *np.atleast_1d(variance)]), tmp_path / "r.zarr"
    )
    for i, j in ((0, 1), (0, 2), (1, 2), (1, 1)):
        for place, share in enumerate(found.variance.values):
            assert abs(found.svcca.values[i, j, place] - dsvcca.svcca(stored[i], stored[j], variance=share)) < 1e-6


def test_a_cluster_gives_the_bits_of_this_process(plan, results, client, tmp_path):
    found = dsvcca.compare(plan, tmp_path / "r.zarr", client=client, workspace=tmp_path / "w")
    assert same_bits(found, results)


@pytest.mark.parametrize("panel", [pytest.param(1, marks=pytest.mark.slow), 3, 5])
def test_the_size_of_a_panel_changes_no_bit(plan, results, tmp_path, panel):
    found = dsvcca.compare(replace(plan, panel=panel), tmp_path / "r.zarr", workspace=tmp_path / "w")
    assert same_bits(found, results)


def test_a_tile_that_is_cut_for_want_of_memory_has_the_same_bits(plan, results, tmp_path):
    workspace = str(tmp_path / "w")
    ensure_workspace(workspace)
    bases = make_bases(plan, workspace, range(len(plan.aspects)), None).bases
    about = {name: results.attrs[name] for name in ("dsvcca_version", "datapoint_ids")}
    [task], _ = tile_tasks(begin(tmp_path / "r.zarr", plan, about), workspace, bases, plan.assumed_ranks())
    execute.guarded(correlate, replace(task, asked=replace(task.asked, budget=1)))  # no two bases fit
    assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr", workspace=workspace), results)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:rounding decides up to")
def test_the_memory_changes_no_bit(tmp_path):
    """A plan whose memory forces tiles to be cut and rows to be read twice."""
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=20_000)
    for seed in range(3):
        store.write(activations(seed, n=20_000, p=500, shared=100), layer="a", seed=seed)
    ample = dsvcca.plan_comparisons(store, variance=1.0, memory="4 GiB")
    tight = replace(ample, memory=int((PROCESS + (98 << 20)) / 0.7))
    assert not holds_whole(tight.sizes[0], tight.budget)
    assert tile_memory([1500], None, 20_000) > tight.budget
    one = dsvcca.compare(ample, tmp_path / "r1.zarr", workspace=tmp_path / "w1")
    other = dsvcca.compare(tight, tmp_path / "r2.zarr", workspace=tmp_path / "w2")
    assert same_bits(one, other)


def test_the_order_of_arrival_changes_no_bit(population, results, tmp_path):
    _, arrays = population
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=600)
    keys = list(arrays)
    order = random.Random(0).sample(range(len(keys)), len(keys))
    for i in order:
        seed, step, layer = keys[i]
        store.write(arrays[keys[i]], layer=layer, seed=seed, step=step)
    found = dsvcca.compare(dsvcca.plan_comparisons(store, variance=[0.9, 0.99, 1.0]), tmp_path / "r.zarr")
    for name in ("svcca", "r2", "pwcca_x", "pwcca_y"):
        assert np.array_equal(found[name].values, results[name].values[np.ix_(order, order)])


@pytest.mark.parametrize("chunk", [100, 599])
def test_other_chunks_change_no_bit(population, results, tmp_path, chunk):
    """The same numbers in arrays of others, chunked along rows and along columns."""
    group = zarr.create_group(tmp_path / "g.zarr")
    for (seed, step, layer), x in population[1].items():
        group.create_array(f"seed={seed}/step={step}/{layer}", data=x, chunks=(chunk, 7))
    plan = dsvcca.plan_comparisons(dsvcca.open_store(tmp_path / "g.zarr"), variance=[0.9, 0.99, 1.0])
    assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w"), results)


@pytest.mark.filterwarnings("ignore:.* datapoints are counted")
def test_maps_read_in_pieces_have_the_bits_of_maps_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    maps = [rng.standard_normal((300, 6, 5, 8)).astype("f4") for _ in range(2)]
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=300)
    for seed, x in enumerate(maps):
        store.write(x, layer="conv", seed=seed, dims="nhwc")
    for view, by_hand in (
        ("mean", lambda x: x.astype("f8").mean(axis=(1, 2))),
        ("max", lambda x: x.max(axis=(1, 2))),
        ("positions", lambda x: x.reshape(-1, 8)),
    ):
        found = dsvcca.compare(dsvcca.plan_comparisons(store, view=view), tmp_path / f"{view}.zarr")
        assert abs(float(found.svcca[0, 1]) - dsvcca.svcca(by_hand(maps[0]), by_hand(maps[1]))) < 2e-7
        assert found.attrs["views"] == [view]


def test_the_same_line_again_computes_nothing(population, plan, tmp_path, caplog):
    out, workspace = tmp_path / "r.zarr", tmp_path / "w"
    first = dsvcca.compare(plan, out, workspace=workspace)
    before = files_and_times(out, workspace, population[0].path)
    again = dsvcca.compare(plan, out, workspace=workspace)
    assert files_and_times(out, workspace, population[0].path) == before
    assert same_bits(first, again)


def test_another_plan_reuses_the_bases(population, plan, tmp_path):
    workspace = tmp_path / "w"
    dsvcca.compare(plan, tmp_path / "r.zarr", workspace=workspace)
    before = files_and_times(workspace)
    narrower = dsvcca.plan_comparisons(population[0].select(seed=[0, 1]), variance=0.9)
    dsvcca.compare(narrower, tmp_path / "r2.zarr", workspace=workspace)
    assert files_and_times(workspace) == before


def test_a_resumed_run_does_what_is_missing_and_gives_the_same_bits(plan, results, tmp_path):
    plan = replace(plan, panel=3)
    out, workspace = tmp_path / "r.zarr", tmp_path / "w"
    dsvcca.compare(plan, out, workspace=workspace)
    assert len(plan.tiles) == 10
    gone = [out / "commits" / "0-2.json", out / "svcca" / "c.1.3.0"]
    for path in gone:
        path.unlink()
    assert missing_tiles(out, plan) == [(0, 2), (1, 3)]
    kept = files_and_times(out / "commits")
    found = dsvcca.compare(plan, out, workspace=workspace)
    assert same_bits(found, results)
    done = {p.name for p, t in files_and_times(out / "commits").items() if kept.get(p) != t and p.is_file()}
    assert done == {"0-2.json", "1-3.json"}


def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(population, plan, results, tmp_path):
    """The driver is killed while it reduces and correlates; what it finished is kept."""
    out, workspace = tmp_path / "r.zarr", tmp_path / "w"
    code = f"""
        import dsvcca
        from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
        store = dsvcca.open_store({population[0].path!r})
        plan = replace(dsvcca.plan_comparisons(store, variance=[.9, .99, 1.0]), panel=1)
        print("ready", flush=True)
        dsvcca.compare(plan, {str(out)!r}, workspace={str(workspace)!r})
    """
    rng = random.Random(0)
    finished = []
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(rng.uniform(0.05, 0.5))
        process.kill()
        process.wait()
        process.stdout.close()
        finished.append(len(list((out / "commits").glob("*-*.json"))) if (out / "commits").exists() else 0)
    found = dsvcca.compare(replace(plan, panel=1), out, workspace=workspace)
    assert finished == sorted(finished)
    assert same_bits(found, results)


def test_a_larger_plan_can_be_checked_and_cut_before_it_runs(plan):
    text = str(plan)
    seen = "neurons (78 comparisons of 600 rows)"
    for words in ("12 (600 datapoints each", seen, "78, 12 of them of one with itself", "svcca, pwcca_x", "GFLOP"):
        assert words in text


def test_measures_without_vectors(population, results, tmp_path):
    found = dsvcca.compare(
        dsvcca.plan_comparisons(population[0], measures=["svcca"], variance=[0.9, 0.99, 1.0]), tmp_path / "r.zarr"
    )
    assert "pwcca_x" not in found
    assert np.abs(found.svcca.values - results.svcca.values).max() < 2e-8


@pytest.mark.parametrize("pairs", ["over_training", "to_last_step", "across_seeds"])
def test_only_what_was_asked_for_is_filled(population, results, tmp_path, pairs):
    store, arrays = population
    plan = replace(dsvcca.plan_comparisons(store, pairs, variance=[0.9, 0.99, 1.0]), panel=4)
    found = dsvcca.compare(plan, tmp_path / "r.zarr")
    keys = list(arrays)
    wanted = np.array(
        [
            [
                {
                    "over_training": a[0] == b[0] and a[2] == b[2],
                    "to_last_step": a[0] == b[0] and 10 in (a[1], b[1]),
                    "across_seeds": a[1:] == b[1:],
                }[pairs]
                for b in keys
            ]
            for a in keys
        ]
    )
    assert np.array_equal(np.isfinite(found.svcca.values[..., 0]), wanted)
    assert np.array_equal(found.svcca.values[wanted], results.svcca.values[wanted])
    assert plan.pairs.count == np.triu(wanted).sum()


def test_labels_of_pairs_are_one_value_or_any_list_of_them(population):
    store = population[0]
    every = [({"layer": "a", "seed": several}, {"layer": "a"}) for several in ([0, 1], (0, 1), np.arange(2), range(2))]
    plans = [dsvcca.plan_comparisons(store, [one]) for one in every]
    assert len({plan.pairs.listed for plan in plans}) == 1


def test_a_list_of_pairs(population, results, tmp_path):
    plan = dsvcca.plan_comparisons(
        population[0], [({"seed": 0, "layer": "a"}, {"seed": 1, "step": 10})], variance=[0.9, 0.99, 1.0]
    )
    found = dsvcca.compare(plan, tmp_path / "r.zarr")
    filled = np.isfinite(found.svcca.values[..., 0])
    assert filled.sum() == 2 * plan.pairs.count == 2 * 4
    assert np.array_equal(found.pwcca_x.values[filled], results.pwcca_x.values[filled])


def test_tiles_nobody_asked_for_are_never_written(population, tmp_path):
    plan = replace(dsvcca.plan_comparisons(population[0], "over_training"), panel=2)
    dsvcca.compare(plan, tmp_path / "r.zarr")
    assert len(plan.tiles) < 21
    assert len(list((tmp_path / "r.zarr" / "svcca").glob("c.*"))) == 2 * len(plan.tiles) - sum(
        i == j for i, j in plan.tiles
    )


def test_tasks_carry_paths_and_never_arrays(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=300)
    for seed in range(130):
        store.write(activations(seed, n=300, p=6), layer="a_layer_with_a_long_name", seed=seed, step=100000 + seed)
    plan = dsvcca.plan_comparisons(store)
    ensure_workspace(str(tmp_path / "w"))
    bases = make_bases(plan, str(tmp_path / "w"), range(len(plan.aspects)), None).bases
    tasks, _ = tile_tasks(begin(tmp_path / "r.zarr", plan, {}), str(tmp_path / "w"), bases, plan.assumed_ranks())
    assert max(len(pickle.dumps(task)) for task in tasks) < 10_000
    tasks = reduce_tasks(plan, str(tmp_path / "w"), list(range(130)), threads=1)
    assert max(len(zlib.compress(pickle.dumps(task))) for task in tasks) < 10_000  # as they travel


def test_a_client_that_is_active_but_not_passed_is_named(plan, client, tmp_path):
    message = r"a Dask client is active .* but was not passed"
    with Client(client.cluster) as active, pytest.warns(DsvccaWarning, match=message):
        assert cluster.active_client() is active
        dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")


def test_a_cluster_with_less_memory_than_planned_is_refused(population, client, tmp_path):
    plan = dsvcca.plan_comparisons(population[0], memory="3 GiB")
    with pytest.raises(DsvccaError, match="the plan counts on 3.00 GiB a worker thread, .* has 1.50 GiB"):
        dsvcca.compare(plan, tmp_path / "r.zarr", client=client)


def test_a_failing_representation_is_named_and_the_others_are_kept(population, client, tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=600)
    for seed in range(40):
        store.write(activations(seed), layer="a", seed=seed)
    Path(store.select(seed=7).representations[0].array, "c.0.0").unlink()
    plan = dsvcca.plan_comparisons(store)
    with pytest.warns(
        DsvccaWarning, match=r"^1 of 40 representations could not be .* seed=7, layer='a': chunk '.*c.0.0' is missing"
    ):
        found = dsvcca.compare(plan, tmp_path / "r.zarr", client=client, workspace=tmp_path / "w")
    assert len(find_bases(str(tmp_path / "w"))) == 39
    assert np.isfinite(found.svcca.values).sum() == 39 * 39
    assert missing_tiles(tmp_path / "r.zarr", plan) == [(0, 0)]  # the next run tries again


def test_a_failing_representation_before_a_streamed_one_leaves_no_empty_pack(tmp_path):
    n, p = 20_000, 300
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=n)
    store.write(activations(0, n), layer="lost")
    store.write(activations(1, n, p), layer="wide")
    store.write(activations(2, n, p), layer="wide and lost")
    for place in (0, 2):
        Path(store.representations[place].array, "c.0.0").unlink()
    plan = dsvcca.plan_comparisons(store, rank=20)
    ensure_workspace(str(tmp_path / "w"))
    task = ReduceTask(
        workspace=str(tmp_path / "w"),
        representations=plan.representations,
        views=tuple(aspect.view for aspect in plan.aspects),
        fingerprints=plan.basis_fingerprints,
        whitening=plan.whitening,
        rule=plan.widest,
        center="all",
        budget=160 << 20,
    )
    assert pack_memory(task.budget) < 4 * n * p  # so that it is streamed
    failed = dict(reduce(task).failed)
    assert list(failed) == [plan.basis_fingerprints[0], plan.basis_fingerprints[2]]
    assert re.match(r"layer='lost': chunk .* is missing", failed[plan.basis_fingerprints[0]])
    assert list(find_bases(task.workspace)) == [plan.basis_fingerprints[1]]
    assert len(list((tmp_path / "w").glob("pack-*"))) == 1
    assert not (tmp_path / "w" / STAGING).exists()


def damaged(x, kind):
    x = x.copy()
    if kind == "nan":
        x[17, 3] = np.nan
    if kind == "constant":
        x[:] = 3.0
    return x


@pytest.mark.parametrize(
    ("kind", "message"),
    [("nan", r"1 numbers are NaN or infinite, the first of datapoint 17"), ("constant", "every neuron is constant")],
)
def test_bad_numbers_in_arrays_of_others_are_errors(tmp_path, kind, message):
    group = zarr.create_group(tmp_path / "g.zarr")
    group.create_array("a", data=activations(0))
    group.create_array("b", data=damaged(activations(1), kind))
    plan = dsvcca.plan_comparisons(dsvcca.open_store(tmp_path / "g.zarr"))
    with pytest.raises(DsvccaError, match=rf"layer='b': {message}"):
        dsvcca.compare(plan, tmp_path / "r.zarr")
    assert not list((tmp_path / "r.zarr" / "commits").glob("*-*.json"))


@pytest.mark.filterwarnings("ignore:.*fewer than 5")
def test_directions_of_single_rows_are_no_error(tmp_path):
    """Sums in float32 round what one row adds, and show correlations above 1 + 1e-6 of neurons that know one row."""
    rng = np.random.default_rng(2)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=4096)
    layers = []
    for i in range(4):
        single = np.zeros((4096, 400))
        single[5 * np.arange(400), np.arange(400)] = 10 ** rng.uniform(-1, 2, 400)
        layers.append(np.hstack([rng.standard_normal((4096, 40)), single]).astype("float32"))
        store.write(layers[-1], layer=f"l{i}")
    plan = dsvcca.plan_comparisons(store, variance=1.0, measures=["svcca"])
    found = dsvcca.compare(plan, tmp_path / "r.zarr").svcca.values.squeeze()
    for i, j in itertools.combinations(range(4), 2):
        assert found[i, j] == pytest.approx(dsvcca.svcca(layers[i], layers[j], variance=1.0), abs=1e-6)


def test_too_few_rows_for_the_kept_directions_is_an_error(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=20)
    store.write(np.random.default_rng(0).standard_normal((20, 30)), layer="wide")
    with pytest.raises(DsvccaError, match="19 kept directions in 20 rows leave no freedom"):
        dsvcca.compare(dsvcca.plan_comparisons(store, variance=1.0), tmp_path / "r.zarr")


@pytest.mark.filterwarnings("ignore:rounding decides up to")
def test_few_rows_warn_and_the_warning_stays_with_the_results(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=60)
    for seed, p in enumerate((20, 50)):
        store.write(np.random.default_rng(seed).standard_normal((60, p)), layer="l", seed=seed)
    with pytest.warns(DsvccaWarning, match="keep more directions than there are degrees of freedom .* up to 41"):
        found = dsvcca.compare(dsvcca.plan_comparisons(store, variance=1.0), tmp_path / "r.zarr")
    assert "41 of their correlations are 1" in found.attrs["warnings"][0]
    with pytest.warns(DsvccaWarning, match="fewer than 5 rows a kept direction"):
        dsvcca.compare(dsvcca.plan_comparisons(store.select(seed=0), rank=10), tmp_path / "r2.zarr")


def test_a_representation_replaced_after_planning_is_noticed(tmp_path):
    store, _ = write_population(tmp_path / "s.zarr", seeds=2, steps=(0,))
    plan = dsvcca.plan_comparisons(store)
    record = Path(store.representations[0].array).parent / "zarr.json"
    text = json.loads(record.read_text())
    text["attributes"]["dsvcca"] = signed(text["attributes"]["dsvcca"] | {"content": "0" * 64})
    record.write_text(json.dumps(text))
    with pytest.warns(DsvccaWarning, match="its commit record is gone or has changed"):
        found = dsvcca.compare(plan, tmp_path / "r.zarr")
    assert np.isnan(found.svcca.values[0]).all()


def test_damaged_bases_are_errors_that_name_the_pack(plan, tmp_path):
    out, workspace = tmp_path / "r.zarr", tmp_path / "w"
    dsvcca.compare(plan, out, workspace=workspace)
    (out / "commits" / "0-0.json").unlink()
    pack = min(workspace.glob("pack-*"))
    chunk = pack / "columns" / "c.0.0"
    good = chunk.read_bytes()
    chunk.write_bytes(good[:100] + b"\x01\x02" + good[102:])
    with pytest.raises(DsvccaError, match=r"c.0.0' is missing or not what was committed \(its checksum does not hold"):
        dsvcca.compare(plan, out, workspace=workspace)
    chunk.unlink()
    with pytest.raises(DsvccaError, match=r"c.0.0' is missing or not what was committed"):
        dsvcca.compare(plan, out, workspace=workspace)


def test_what_a_killed_process_left_of_a_workspace_or_a_pack_is_made_anew(plan, results, tmp_path):
    workspace = tmp_path / "w"
    workspace.mkdir()
    (workspace / ".zarr.json.12ab").write_text("{")
    assert same_bits(dsvcca.compare(plan, tmp_path / "r1.zarr", workspace=workspace), results)
    for pack in workspace.glob("pack-*"):
        (pack / "zarr.json").unlink()
    assert same_bits(dsvcca.compare(plan, tmp_path / "r2.zarr", workspace=workspace), results)


def test_an_edited_pack_is_an_error(plan, tmp_path):
    dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")
    record = min((tmp_path / "w").glob("pack-*")) / "zarr.json"
    record.write_text(record.read_text().replace('"nonzero": 2', '"nonzero": 1'))
    with pytest.raises(DsvccaError, match="was changed after it was written"):
        dsvcca.compare(plan, tmp_path / "r2.zarr", workspace=tmp_path / "w")


def test_bases_kept_for_more_directions_give_the_numbers_of_fewer(population, tmp_path):
    few = dsvcca.plan_comparisons(population[0], variance=0.6)
    alone = dsvcca.compare(few, tmp_path / "r1.zarr", workspace=tmp_path / "w1")
    dsvcca.compare(dsvcca.plan_comparisons(population[0]), tmp_path / "r2.zarr", workspace=tmp_path / "w2")
    again = dsvcca.compare(few, tmp_path / "r3.zarr", workspace=tmp_path / "w2")
    for name in ("svcca", "pwcca_x", "r2"):
        assert np.abs(again[name].values - alone[name].values).max() < 1e-12


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.arange(60).reshape(20, 3) + 2**62, "are not exact as float64 .above 2.53."),
        (np.random.default_rng(0).random((20, 3)) * 1e-160, "underflow float64: scale them up"),
    ],
)
def test_numbers_that_float64_cannot_square_are_refused(tmp_path, values, message):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=20)
    store.write(values, layer="a")
    with pytest.raises(DsvccaError, match=message):
        dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr")


@pytest.mark.filterwarnings("ignore:.*fewer than 5 rows a kept")
def test_layers_whose_rows_go_in_other_steps_are_mixed_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(views, "STEP_BYTES", 64 << 10)
    narrow, wide = activations(0, p=20), activations(1, p=300)
    steps = [views.grid_datapoints(x.shape, views.NEURONS) for x in (narrow, wide)]
    assert steps == [256, 64]
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=600)
    store.write(narrow, layer="narrow")
    store.write(wide, layer="wide")
    maps = np.random.default_rng(0).standard_normal((600, 15, 15, 20)) + narrow[:, None, None, :]
    store.write(maps, layer="maps", dims="nhwc")
    found = dsvcca.compare(dsvcca.plan_comparisons(store, rank=15), tmp_path / "r.zarr").svcca.values
    seen = [narrow, wide, maps.mean(axis=(1, 2))]
    for i, x in enumerate(seen):
        for j, y in enumerate(seen):
            u, v = (np.linalg.svd(a - a.mean(axis=0), full_matrices=False)[0][:, :15] for a in map(np.float64, (x, y)))
            assert abs(found[i, j] - np.linalg.svd(u.T @ v, compute_uv=False).mean()) < 1e-5


@pytest.mark.filterwarnings("ignore:.*fewer than 5 rows a kept")
def test_one_hot_and_binary_activations_are_compared(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=2000)
    store.write(np.repeat(np.eye(10, dtype="f4"), 200, 0), layer="labels")
    store.write(np.arange(2000)[:, None] % 2 == 0, layer="bit")
    found = dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr")
    assert np.abs(np.diagonal(found.svcca.values) - 1).max() < 2.2e-7
    assert abs(found.svcca.values[0, 1]) < 1e-6


@pytest.mark.slow
def test_a_cluster_that_lost_all_its_workers_is_said_so(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(execute, "ALONE", 1)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):

        def stop():
            time.sleep(1.5)
            cluster.scale(0)
            time.sleep(4)
            cluster.scale(1)

        with ThreadPoolExecutor(1) as other, caplog.at_level("WARNING", logger="dsvcca"):
            other.submit(stop)
            receipts, failures = execute.run(slow_task, [3.0, 0.0], client=client, title="slow")
    assert receipts == [3.0, 0.0] or receipts == [0.0, 3.0]
    assert not failures
    assert "slow: no workers for 1 s, waiting for some to come" in caplog.text


def slow_task(seconds):
    time.sleep(seconds)
    return seconds


def test_no_space_for_bases_or_results_is_an_error(population, tmp_path):
    code = f"""
        import resource, dsvcca
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        plan = dsvcca.plan_comparisons(dsvcca.open_store({population[0].path!r}))
        try:
            dsvcca.compare(plan, {str(tmp_path / "r.zarr")!r}, workspace={str(tmp_path / "w")!r})
        except dsvcca.DsvccaError as error:
            print(error)
    """
    said = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True)
    assert "no space left to write" in said.stdout
    found = dsvcca.compare(dsvcca.plan_comparisons(population[0]), tmp_path / "r.zarr", workspace=tmp_path / "w")
    assert np.isfinite(found.svcca.values).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": "everything"}, "pairs='everything' is unknown"),
        ({"pairs": []}, "pairs is an empty list"),
        ({"pairs": [({"layer": "q"}, {"layer": "a"})]}, "nothing has layer='q'"),
        ({"pairs": [({"leyer": "q"}, {"layer": "a"})]}, "there is no label 'leyer': did you mean 'layer'"),
        ({"pairs": [({"layer": "a", "seed": 0, "step": 99}, {"layer": "a"})]}, "nothing has step=99"),
        ({"pairs": ["ab"]}, "give \\(labels of x, labels of y\\)"),
        ({"view": "fourier"}, "view='fourier' is unknown"),
        ({"variance": 0}, r"must lie in \(0, 1\]"),
        ({"variance": 1.5}, r"must lie in \(0, 1\]"),
        ({"variance": []}, "give one share"),
        ({"variance": [0.9, 0.9]}, "list of different ones"),
        ({"criterion": "both"}, "criterion='both' is unknown"),
        ({"rank": 0}, "rank=0 keeps nothing"),
        ({"measures": ["svca"]}, "measure 'svca' is unknown: did you mean 'svcca'"),
        ({"measures": "ckas"}, "measure 'ckas' is unknown: did you mean 'cka'"),
        ({"measures": []}, "measures is empty"),
        ({"variance": "0.99"}, "variance='0.99' is no share"),
        ({"rank": 3, "variance": 0.9}, "rank=3 and variance=0.9 were both given"),
        ({"memory": "200 MiB"}, "is too little"),
        ({"memory": "lots"}, "memory='lots' is no amount of memory"),
    ],
)
def test_plans_that_cannot_work_are_refused(population, options, message):
    with pytest.raises(DsvccaError, match=message):
        dsvcca.plan_comparisons(population[0], **options)


def test_pairs_that_would_compare_nothing_or_the_wrong_thing_are_refused(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=600)
    for step in ("0", "90", "100"):
        store.write(activations(0), layer="a", seed=0, step=step)
    with pytest.raises(DsvccaError, match="needs steps that are numbers, seed=0, step='0', layer='a' has a str"):
        dsvcca.plan_comparisons(store, "to_last_step")
    with pytest.raises(DsvccaError, match="leaves each of the 3 representations with itself alone"):
        dsvcca.plan_comparisons(store, "across_seeds")


def test_other_things_than_stores_and_plans_are_told_so(population):
    with pytest.raises(DsvccaError, match="a str was given instead of a store: open_store"):
        dsvcca.plan_comparisons(population[0].path)
    with pytest.raises(DsvccaError, match="a Store was given instead of a plan: plan_comparisons"):
        dsvcca.compare(population[0], "r.zarr")


def test_plans_across_unlike_populations_are_refused(tmp_path):
    group = zarr.create_group(tmp_path / "g.zarr")
    group.create_array("a", data=np.ones((30, 4)))
    group.create_array("b", data=np.ones((31, 4)))
    with pytest.raises(DsvccaError, match="layer='a' has 30 datapoints and layer='b' has 31"):
        dsvcca.plan_comparisons(dsvcca.open_store(tmp_path / "g.zarr"))
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=30)
    with pytest.raises(DsvccaError, match="holds no committed representation"):
        dsvcca.plan_comparisons(store)
    store.write(np.ones((30, 4, 4, 3)), layer="a", dims="nhwc")
    store.write(np.ones((30, 2, 2, 3)), layer="b", dims="nhwc")
    with pytest.raises(DsvccaError, match="layer='a' and layer='b': maps of 4x4 and maps of 2x2 cannot"):
        dsvcca.plan_comparisons(store, view="positions")
    with pytest.raises(DsvccaError, match="cannot be compared as view='neurons': use view='mean'"):
        dsvcca.plan_comparisons(store, view="neurons")
    with pytest.raises(DsvccaError, match="pairs='over_training' needs a 'step' label"):
        dsvcca.plan_comparisons(store, "over_training")
    with pytest.raises(DsvccaError, match="needs .* of arrays in a task, memory=1.00 GiB leaves .*: raise memory to"):
        big = dsvcca.create_store(tmp_path / "big.zarr", datapoints=30)
        big.write(np.ones((30, 20_000), np.float32), layer="wide")
        dsvcca.plan_comparisons(big, route="covariance")


def test_blas_threads_are_one_inside_a_task_and_restored_after():
    from threadpoolctl import threadpool_info, threadpool_limits

    def threads(_=None):
        return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]

    with threadpool_limits(2):  # also where another thread has taken the libraries as its own
        before = threads()
        with ThreadPoolExecutor(2) as pool:
            assert pool.submit(execute.guarded, threads, None).result() == [1] * len(before)
            for _ in range(3):  # the first to enter leaves first, in threads of their own
                both, left = threading.Barrier(2), threading.Event()

                def first(_, both=both):
                    both.wait()
                    return threads()

                def second(_, both=both, left=left):
                    both.wait()
                    return left.wait(30) and threads()

                one, two = (pool.submit(execute.guarded, task, None) for task in (first, second))
                assert one.result() == [1] * len(before)
                left.set()
                assert two.result() == [1] * len(before)
                assert threads() == before
        assert execute.guarded(threads, None) == [1] * len(before)
        assert threads() == before


@pytest.mark.slow
def test_whatever_the_process_is_set_to_the_bits_are_the_same(plan, results, tmp_path):
    code = (
        "import sys, dsvcca\n"
        "from distributed import Client\n"
        "if __name__ == '__main__':\n"
        "    plan = dsvcca.plan_comparisons(dsvcca.open_store(sys.argv[1]), variance=[0.9, 0.99, 1.0])\n"
        "    client = Client(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None)\n"
        "    dsvcca.compare(plan, sys.argv[2], workspace=sys.argv[2] + '.w', client=client)\n"
    )
    for threads in ("1", "2", "3"):
        out = tmp_path / f"{threads}.zarr"
        env = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", code, plan.store, str(out)], check=True, env=env)
        assert same_bits(dsvcca.open_results(out), results)


def end_or_wait(task):
    time.sleep(0.3)
    if task % 2:
        os._exit(9)
    return task


@pytest.mark.slow
def test_what_waited_with_a_task_that_kills_is_done(monkeypatch):
    monkeypatch.setitem(local.ON_ONE_MACHINE, "distributed.scheduler.allowed-failures", 0)  # all are suspects at once
    with warnings.catch_warnings(), local_client(1, "1 GiB") as client:
        warnings.simplefilter("ignore")
        receipts, failures = execute.run(end_or_wait, list(range(7)), client=client, title="dying")
    assert sorted(receipts) == [0, 2, 4, 6]
    assert sorted(one.task for one in failures) == [1, 3, 5]


def no_room(task):
    if task != 3:
        raise RunError("no room is left: make some")
    return task


@pytest.mark.fault("storage", "nothing can be written while many tasks are left", "eight failures in a row end the run")
@pytest.mark.parametrize("cluster_wide", [False, True])
def test_a_run_ends_where_nothing_can_be_written(client, cluster_wide):
    """Eight in a row are enough to know; a hundred would be computed and thrown away."""
    told = r"no room is left: make some\n[01] of 100 tasks finished and are kept, the last 8 failed like this"
    with pytest.raises(RunError, match=told):
        execute.run(no_room, list(range(100)), client=client if cluster_wide else None, title="full")
    assert client.submit(sum, [1, 2]).result() == 3


@pytest.mark.fault("storage", "results are removed while they are filled", "the same line begins them anew")
def test_results_that_were_removed_in_the_middle_are_begun_anew(tmp_path, monkeypatch):
    store, _ = write_population(tmp_path / "s.zarr", seeds=2, steps=(0,))
    plan = dsvcca.plan_comparisons(store)
    whole = dsvcca.compare(plan, tmp_path / "whole.zarr", workspace=tmp_path / "w0")
    (tmp_path / "r.zarr" / "svcca" / "c").mkdir(parents=True)  # what a worker makes that writes late
    assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w"), whole)
    with pytest.raises(FileNotFoundError, match="gone"):
        staging.stage(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


def test_a_workspace_is_made_once(tmp_path):
    """Several drivers begin at the same moment: workers know it by what it is called."""
    for attempt in range(40):
        place = str(tmp_path / f"w{attempt}")

        def made(_, place=place):
            ensure_workspace(place)
            return (Path(place) / "zarr.json").read_bytes()

        with ThreadPoolExecutor(6) as pool:
            assert len(set(pool.map(made, range(6)))) == 1


def test_a_task_that_kills_its_worker_is_told_in_plain_words(client):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, failures = execute.run(os._exit, [9], client=client, title="dying")
    with pytest.raises(DsvccaError, match="was on a worker that died, 2 times over"):
        execute.raise_failures(failures, 1)


@pytest.mark.filterwarnings("ignore:rounding decides up to")
@pytest.mark.parametrize("rows", [190, *(pytest.param(n, marks=pytest.mark.slow) for n in (300, 1000))])
def test_neurons_that_rarely_fire_are_compared_as_well(tmp_path, rows):
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=rows)
    for seed in range(12):
        x = np.maximum(rng.standard_normal((rows, 30)) - 2.5, 0).astype(np.float32)
        x[: rows // 2, 0] += 1  # so that none is constant
        store.write(x, layer="relu", seed=seed)
        store.write((rng.random((rows, 1)) < 0.05) + 1.0 * (np.arange(rows) == 0)[:, None], layer="binary", seed=seed)
    with pytest.warns(DsvccaWarning, match="fewer than 5 rows") if rows == 190 else nullcontext():
        found = dsvcca.compare(dsvcca.plan_comparisons(store, variance=1.0), tmp_path / "r.zarr")
    assert np.abs(np.diag(found.svcca.values) - 1).max() < 8e-7


@pytest.mark.parametrize("measures", [["pwcca_x"], ["pwcca_y"], ["svcca", "pwcca_x"]])
def test_any_choice_of_measures_gives_the_same_numbers(population, results, tmp_path, measures):
    plan = dsvcca.plan_comparisons(population[0], measures=measures, variance=[0.9, 0.99, 1.0])
    found = dsvcca.compare(plan, tmp_path / "r.zarr")
    for name in measures:
        np.testing.assert_array_equal(found[name].values, results[name].values)
    assert len(dsvcca.to_frame(found)) == len(dsvcca.to_frame(results))


@pytest.mark.parametrize("route", ["auto", pytest.param("direct", marks=pytest.mark.slow)])
def test_a_correlation_of_zero_weighs_once_though_blocks_are_filled_up_with_zeros(tmp_path, route):
    """Planted rho = 0.9, 0.5 and 0 exactly: among the zeros that fill 3 up to 4, that of the pair may come last."""
    columns = hadamard(1024).astype(float)[:, 1:]
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=1024)
    planted = np.asarray([0.9, 0.5, 0.0])
    truth = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        own = columns[:, rng.permutation(1023)[:6]]
        turned, other = (np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(2))
        x = own[:, :3] @ turned * [1.0, 1.5, 2.0]
        weights = np.abs(own[:, :3].T @ x).sum(axis=1)
        truth.append(float(weights @ planted / weights.sum()))
        store.write(x, layer="x", seed=seed)
        store.write((own[:, :3] * planted + own[:, 3:] * np.sqrt(1 - planted**2)) @ other, layer="y", seed=seed)
    pairs = [({"layer": "x", "seed": seed}, {"layer": "y", "seed": seed}) for seed in range(60)]
    plan = dsvcca.plan_comparisons(store, pairs, variance=1.0, route=route)
    found = dsvcca.to_frame(dsvcca.compare(plan, tmp_path / "r.zarr")).sort_values("x_seed")
    np.testing.assert_allclose(found.pwcca_x, truth, atol=1e-6)
    np.testing.assert_allclose(found.svcca, planted.mean(), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-100, 1e-30, 1e70, 1e100])
def test_numbers_of_any_scale_have_the_results_of_ordinary_ones(tmp_path, scale):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=600)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 3)) @ rng.standard_normal((3, 30)) + 1e-3 * rng.standard_normal((600, 30))
    y = x @ rng.standard_normal((30, 20)) + rng.standard_normal((600, 20))
    store.write(x, layer="x")
    store.write(x * scale, layer="scaled")
    store.write(y, layer="y")
    plan = dsvcca.plan_comparisons(store, targets=rng.standard_normal((600, 2)), variance=0.9)
    found = dsvcca.compare(plan, tmp_path / "r.zarr")
    for name in ("svcca", "pwcca_x", "pwcca_y", "r2"):
        np.testing.assert_allclose(found[name].values[1, 2], found[name].values[0, 2], atol=1e-6)
    np.testing.assert_allclose(found.r2_target.values[1], found.r2_target.values[0], atol=1e-6)


def test_clients_that_nothing_can_be_asked_of_are_refused_before_anything_is_begun(plan, tmp_path):
    out = tmp_path / "r.zarr"
    with pytest.raises(DsvccaError, match=r"client='tcp://here:1' is a str: pass a distributed.Client\(address\)"):
        dsvcca.compare(plan, out, client="tcp://here:1")
    with LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster:
        client = Client(cluster, set_as_default=False)
        with pytest.raises(DsvccaError, match="'memory://s.zarr' lives in the memory of this process"):
            dsvcca.compare(replace(plan, store="memory://s.zarr"), out, client=client)
        client.close()
        with pytest.raises(DsvccaError, match="the Dask client is closed: connect to a cluster"):
            dsvcca.compare(plan, out, client=client)

        async def asked():
            async with Client(cluster.scheduler_address, asynchronous=True, set_as_default=False) as client:
                with pytest.raises(DsvccaError, match="the Dask client is asynchronous: pass a Client"):
                    dsvcca.compare(plan, out, client=client)

        asyncio.run(asked())
    assert not out.exists()


def test_a_cluster_that_starts_workers_when_there_is_work_is_waited_for(plan, results, tmp_path):
    with (
        LocalCluster(n_workers=0, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        cluster.adapt(minimum=0, maximum=2, interval="200ms")
        found = dsvcca.compare(plan, tmp_path / "r.zarr", client=client, workspace=tmp_path / "w")
    assert same_bits(found, results)


def test_layers_whose_norms_are_all_alike_are_told_apart(tmp_path):
    """Neurons of 0 and 1 in equal parts: mean, norms and those of rows are the same, the numbers are not."""
    rng = np.random.default_rng(0)
    arrays = [rng.permutation(np.repeat([False, True], 6))[:, None] for _ in range(3)]
    arrays += [np.concatenate([arrays[0], arrays[2]], axis=1)]
    found = []
    for name, order in (("a", range(4)), ("b", (3, 1, 2, 0))):
        store = dsvcca.create_store(tmp_path / name, datapoints=12)
        for i in order:
            store.write(arrays[i], layer="a", seed=i)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DsvccaWarning)
            one = dsvcca.compare(dsvcca.plan_comparisons(store, measures="all"), tmp_path / f"{name}.r").load()
        place = np.argsort(one.x_seed.values)
        found.append(one.isel(x=place, y=place))
    assert same_bits(*found)
