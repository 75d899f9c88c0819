"""Few tiles are cut into portions that many workers take: no bit changes, and nothing of them is lost or left."""

import shutil
import time
import warnings
from dataclasses import replace
from pathlib import Path

import distributed
import numpy as np
import pytest
import xarray as xr

import dsvcca
from dsvcca import DsvccaError
from dsvcca.clusters.local import local_client
from dsvcca.engine import execute
from dsvcca.engine.bases import learn, make_bases
from dsvcca.engine.correlate import PORTIONS, correlate, tile_tasks
from dsvcca.plans import portions
from dsvcca.results import filling, opening
from dsvcca.storage import files, records
from dsvcca.workspace.contents import ensure_workspace
from tests.populations import activations, same_bits, write_population

FEW = 5
"""Portions that tests cut a tile into."""


@pytest.fixture
def cut(monkeypatch):
    """Cut every tile into few portions, however small it is."""
    cut_them(monkeypatch)


def cut_them(monkeypatch, most=FEW):
    monkeypatch.setattr(portions, "PORTION", 1.0)
    monkeypatch.setattr(portions, "AGAIN", 0)
    monkeypatch.setattr(portions, "MOST", most)


def partials(out):
    return sorted((out / "commits" / PORTIONS).glob("partial-*"))


def halfway(store, plan, out, done=2):
    """Do a few portions of the tiles of a plan, as a run does that is killed then; return the others as well."""
    workspace = f"{store.path}.workspace"
    with filling.claimed(out):
        begun = filling.begin(
            out, plan, {"dsvcca_version": dsvcca.__version__, "datapoint_ids": plan.ids or "not known"}
        )
    ensure_workspace(workspace)
    bases = make_bases(begun.plan, workspace, range(len(plan.aspects)), None).bases
    learned = learn(begun.plan, workspace, bases)
    ranks = [max(learned[name]["ranks"]) for name in begun.plan.basis_fingerprints]
    tasks, _ = tile_tasks(begun, workspace, bases, ranks)
    (out / "commits" / PORTIONS).mkdir(exist_ok=True)
    for task in tasks[:done]:
        execute.guarded(correlate, task)
    return tasks


@pytest.mark.parametrize(
    "options",
    [
        {"variance": [0.9, 0.99], "measures": ["svcca", "pwcca_x", "pwcca_y", "cka", "r2_x", "chance", "p_value"]},
        {"measures": ["svcca", "gulp", "ridge_cca", "svcca_error"], "ridge": [0.1, 1.0]},
        {"measures": ["svcca", "cka_debiased", "svcca_shuffled"], "shuffles": 2},
        {"keep": ["correlations"], "measures": ["svcca", "chance_edge"]},
        {"pairs": "over_training"},
        {"route": "direct"},
    ],
    ids=lambda options: " ".join(options),
)
def test_portions_change_no_bit(options, tmp_path, monkeypatch):
    store = write_population(tmp_path / "s.zarr")[0]
    plan = dsvcca.plan_comparisons(store, **options)
    whole = dsvcca.compare(plan, tmp_path / "whole.zarr")
    assert plan.price().correlate_tasks == 1
    cut_them(monkeypatch)
    assert plan.price().correlate_tasks > 1
    assert same_bits(dsvcca.compare(plan, tmp_path / "cut.zarr"), whole)
    assert not (tmp_path / "cut.zarr" / "commits" / PORTIONS).exists()


def test_maps_in_portions_keep_their_frequencies_and_views(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=300)
    for seed in range(3):
        store.write(rng.standard_normal((300, 4, 4, 3)).astype("float32"), layer="conv", seed=seed, dims="nhwc")
        store.write(rng.standard_normal((300, 8, 8, 3)).astype("float32"), layer="wide", seed=seed, dims="nhwc")
        store.write(rng.standard_normal((300, 9)).astype("float32"), layer="fc", seed=seed)
    plan = dsvcca.plan_comparisons(store, keep=["frequencies"])
    whole = dsvcca.compare(plan, tmp_path / "whole.zarr")
    assert len(whole["view"].attrs["flag_meanings"].split()) > 1
    cut_them(monkeypatch, portions.MOST)
    assert plan.price().correlate_tasks > 4
    assert same_bits(dsvcca.compare(plan, tmp_path / "cut.zarr"), whole)


def test_results_that_grow_in_portions_are_the_same(cut, tmp_path, monkeypatch):
    store = write_population(tmp_path / "s.zarr", seeds=2)[0]
    dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr")
    for layer in ("a", "b"):
        store.write(activations(77, p=25), layer=layer, seed=7, step=0)
    plan = dsvcca.plan_comparisons(dsvcca.open_store(store.path))
    grown = dsvcca.compare(plan, tmp_path / "r.zarr")
    monkeypatch.undo()
    fresh = dsvcca.compare(plan, tmp_path / "fresh.zarr")
    assert plan.price().correlate_tasks == 1
    assert same_bits(grown, fresh)


def test_what_was_done_of_a_tile_is_not_done_again(cut, tmp_path):
    store = write_population(tmp_path / "s.zarr")[0]
    plan = dsvcca.plan_comparisons(store)
    tasks = halfway(store, plan, tmp_path / "r.zarr")
    assert len(tasks) == FEW
    there = {one: (one / "zarr.json").stat().st_mtime_ns for one in partials(tmp_path / "r.zarr")}
    assert len(there) == 2
    with warnings.catch_warnings():  # who looks at results meanwhile is told nothing of portions
        warnings.simplefilter("error")
        assert not np.isfinite(opening.as_they_are(tmp_path / "r.zarr")[0].svcca.values).any()
        assert xr.open_zarr(tmp_path / "r.zarr", consolidated=False).sizes["x"] == 12
    for task in tasks[:2]:  # as a worker does that is given it again
        assert execute.guarded(correlate, task) == "numpy"
    assert {one: (one / "zarr.json").stat().st_mtime_ns for one in partials(tmp_path / "r.zarr")} == there
    assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr"), dsvcca.compare(plan, tmp_path / "fresh.zarr"))
    assert not partials(tmp_path / "r.zarr")


def test_tiles_are_cut_as_they_were_when_the_run_was_interrupted(cut, tmp_path, monkeypatch):
    store = write_population(tmp_path / "s.zarr")[0]
    plan = replace(dsvcca.plan_comparisons(store), panel=6)  # three tiles
    monkeypatch.setattr(portions, "MOST", 9)
    tasks = halfway(store, plan, tmp_path / "r.zarr", done=5)  # a tile, and two portions of another
    names = [task.portion for task in tasks]
    assert len(names) == 9
    assert [task.portion for task in halfway(store, plan, tmp_path / "r.zarr", done=0)] == names[3:]
    assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr"), dsvcca.compare(plan, tmp_path / "fresh.zarr"))


def test_doubt_of_what_stays_outlives_whoever_merges_again(cut, tmp_path):
    """As two workers do that find all portions at a time, and a worker after another that was killed as it merged."""
    store = write_population(tmp_path / "s.zarr", seeds=2)[0]
    dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr")
    marker = tmp_path / "r.zarr" / "commits" / "0-0.json"
    said = {key: value for key, value in files.read_json(marker).items() if key != "digest"}
    files.write_json(marker, records.signed({**said, "doubt": 0.02}))
    for layer in ("a", "b"):
        store.write(activations(77, p=25), layer=layer, seed=7, step=0)
    plan = dsvcca.plan_comparisons(dsvcca.open_store(store.path))
    tasks = halfway(store, plan, tmp_path / "r.zarr", done=FEW)
    for _ in range(2):
        assert files.read_json(marker)["doubt"] == 0.02
        marker.unlink()
        execute.guarded(correlate, tasks[-1])
    assert files.read_json(marker)["doubt"] == 0.02


def test_a_portion_in_the_place_of_another_is_refused(cut, tmp_path):
    store = write_population(tmp_path / "s.zarr")[0]
    plan = dsvcca.plan_comparisons(store)
    tasks = halfway(store, plan, tmp_path / "r.zarr", done=1)
    there = tmp_path / "r.zarr" / "commits" / PORTIONS
    other = there / f"partial-{tasks[1].portion}"
    shutil.copytree(there / f"partial-{tasks[0].portion}", other)
    with pytest.raises(DsvccaError, match=rf"{tasks[1].portion}' holds what belongs to '{tasks[0].portion}': remove '"):
        dsvcca.compare(plan, tmp_path / "r.zarr")
    shutil.rmtree(other)
    assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr"), dsvcca.compare(plan, tmp_path / "fresh.zarr"))


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_record_of_a_portion_that_was_damaged_is_refused_and_named(cut, tmp_path, content):
    store = write_population(tmp_path / "s.zarr")[0]
    plan = dsvcca.plan_comparisons(store)
    halfway(store, plan, tmp_path / "r.zarr", done=1)
    [one] = partials(tmp_path / "r.zarr")
    (one / "zarr.json").write_text(content)
    if content == "[]":  # no record of ours: it was not committed
        assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr"), dsvcca.compare(plan, tmp_path / "fresh.zarr"))
        return
    with pytest.raises(DsvccaError, match=r"the record of '.*' is not what was committed: remove '.*partial-portion-"):
        dsvcca.compare(plan, tmp_path / "r.zarr")


def test_tiles_are_merged_as_soon_as_their_portions_are_there(cut, tmp_path, monkeypatch):
    store = write_population(tmp_path / "s.zarr")[0]
    plan = replace(dsvcca.plan_comparisons(store), panel=6)  # three tiles
    monkeypatch.setattr(portions, "MOST", 9)
    seen = []
    done = execute.guarded

    def watched(function, task):
        found = done(function, task)
        if function is correlate:
            seen.append(len(list((tmp_path / "r.zarr" / "commits").glob("*-*.json"))))
        return found

    monkeypatch.setattr(execute, "guarded", watched)
    found = dsvcca.compare(plan, tmp_path / "r.zarr")
    assert seen == [0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert same_bits(found, dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "fresh.zarr"))


def test_what_no_worker_merged_is_merged_in_the_end(cut, tmp_path, monkeypatch):
    """As where a portion that was finished elsewhere is not seen at once."""
    store = write_population(tmp_path / "s.zarr")[0]
    plan = dsvcca.plan_comparisons(store)
    monkeypatch.setattr("dsvcca.engine.correlate.has_partial", lambda *_: False)
    found = dsvcca.compare(plan, tmp_path / "r.zarr")
    monkeypatch.undo()
    assert same_bits(found, dsvcca.compare(plan, tmp_path / "fresh.zarr"))


def test_portions_of_another_definition_are_never_taken(cut, tmp_path):
    store = write_population(tmp_path / "s.zarr")[0]
    plan = dsvcca.plan_comparisons(store)
    tasks = halfway(store, plan, tmp_path / "r.zarr")
    other = dsvcca.plan_comparisons(store, variance=0.9)
    there = [one.name for one in partials(tmp_path / "r.zarr")]
    (tmp_path / "r.zarr").rename(tmp_path / "elsewhere")
    assert {task.portion for task in tasks}.isdisjoint(
        task.portion for task in halfway(store, other, tmp_path / "r.zarr")
    )
    for name in there:  # as if somebody had copied them
        (tmp_path / "elsewhere" / "commits" / PORTIONS / name).rename(tmp_path / "r.zarr" / "commits" / PORTIONS / name)
    found = dsvcca.compare(other, tmp_path / "r.zarr")
    assert same_bits(found, dsvcca.compare(other, tmp_path / "fresh.zarr"))


def test_a_portion_that_was_damaged_is_refused_and_named(cut, tmp_path):
    store = write_population(tmp_path / "s.zarr")[0]
    plan = dsvcca.plan_comparisons(store)
    halfway(store, plan, tmp_path / "r.zarr")
    damaged = partials(tmp_path / "r.zarr")[0]
    chunk = next(damaged.glob("numbers/c*"))
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(DsvccaError, match=r"'.*partial-portion-.*' is missing or not what was committed .*: remove '"):
        dsvcca.compare(plan, tmp_path / "r.zarr")
    dsvcca.storage.folders.remove(damaged)
    assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr"), dsvcca.compare(plan, tmp_path / "fresh.zarr"))


def test_a_portion_that_fails_keeps_the_others(cut, tmp_path):
    store = write_population(tmp_path / "s.zarr")[0]
    plan = dsvcca.plan_comparisons(store)
    tasks = halfway(store, plan, tmp_path / "r.zarr")
    blocked = tmp_path / "r.zarr" / "commits" / PORTIONS / f"partial-{tasks[-1].portion}"
    blocked.write_text("somebody's")
    (blocked.parent / "partial-portion-of-an-older-plan").mkdir()
    with pytest.raises(DsvccaError, match=r"could not be written .*\n4 of 5 tasks finished and are kept"):
        dsvcca.compare(plan, tmp_path / "r.zarr")
    assert len(partials(tmp_path / "r.zarr")) == FEW  # the one that is in the way among them
    blocked.unlink()
    assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr"), dsvcca.compare(plan, tmp_path / "fresh.zarr"))
    assert not partials(tmp_path / "r.zarr")


def test_several_workers_take_part_in_one_tile(cut, tmp_path):
    store = write_population(tmp_path / "s.zarr")[0]
    plan = dsvcca.plan_comparisons(store)
    with local_client(2, "1 GiB") as client, distributed.get_task_stream(client) as stream:
        found = dsvcca.compare(plan, tmp_path / "cluster.zarr", client=client)
        time.sleep(0.2)  # the last ones are still to be told of
    took = [task for task in stream.data if task["key"].startswith("correlate-")]
    assert len(took) == FEW
    assert len({task["worker"] for task in took}) == 2
    assert same_bits(found, dsvcca.compare(plan, tmp_path / "r.zarr"))


def test_few_large_tiles_are_cut_and_many_are_not(tmp_path):
    store = write_population(tmp_path / "s.zarr")[0]
    plan = dsvcca.plan_comparisons(store)
    tiles = [plan.passes(tile) for tile in plan.tiles]
    assert [len(own) for own in plan.portions(tiles, [20] * 12)] == [1]  # not worth it

    def price(share):
        def weight(one):
            return np.where(one.wanted.any(axis=1), share * portions.PORTION, 0)

        return weight

    def nothing(one):
        return 0

    own = portions.portions(tiles[0], price(1), nothing, plan.panel, 1)
    assert len(own) == 12  # a row each
    own = portions.portions(tiles[0], price(0.5), nothing, plan.panel, 1)
    assert [sum(len(one.x) for one in several) for several in own] == [2] * 6
    wanted = sum(int(one.wanted.sum()) for several in own for one in several)
    assert wanted == sum(int(one.wanted.sum()) for one in tiles[0]) == plan.pairs.count
    assert len(portions.portions(tiles[0], price(9), nothing, plan.panel, portions.MOST)) == 1
    assert len(portions.portions(tiles[0], price(9), nothing, plan.panel, 3)) == portions.MOST // 3
    # What is read again leaves three of them worth it.
    heavy = 12 * 9 * portions.PORTION / portions.AGAIN / 3 / len(tiles[0])
    assert len(portions.portions(tiles[0], price(9), lambda one: heavy, plan.panel, 1)) == 3


def test_a_workspace_that_may_only_be_read_is_enough(cut, tmp_path):
    """Portions wait with the results, so that bases may be somebody else's."""
    store = write_population(tmp_path / "s.zarr")[0]
    plan = dsvcca.plan_comparisons(store)
    whole = dsvcca.compare(plan, tmp_path / "whole.zarr")

    def state():  # the folder itself changes when something in it comes and goes
        folder = Path(f"{store.path}.workspace")
        return {one: one.stat().st_mtime_ns for one in (folder, *folder.rglob("*"))}

    before = state()
    assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr"), whole)
    assert state() == before


def test_a_plan_says_how_many_tasks_there_are(cut, tmp_path):
    plan = dsvcca.plan_comparisons(write_population(tmp_path / "s.zarr")[0])
    assert f"{FEW} correlate; each by one thread" in str(plan)
    few, more = plan.price(), replace(plan.price(), correlate_tasks=30, seconds=99.0, threads=64)
    assert "2 reduce, 5 to 30 correlate" in "\n".join(replace(few, reduce_tasks=2).lines(more))
    assert "no more than 30 ever have work" in "\n".join(replace(few, threads=64).lines(more))
    machine = replace(dsvcca.machine_of(), threads=64)
    assert f"of which no more than {plan.price(machine=machine).reduce_tasks}" in plan.describe(machine)
