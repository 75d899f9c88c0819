"""Results that grow: what is new is computed and nothing else, and the bits are those of a run from nothing."""

import json
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import dsvcca
from dsvcca import DsvccaError, DsvccaWarning
from dsvcca.results.filling import begin
from dsvcca.workspace.contents import find_bases
from tests.populations import activations, same_bits, write_population


def planned(store, panel=4, **options):
    return replace(dsvcca.plan_comparisons(store, **options), panel=panel)


def missing(out, plan):
    """Return how many comparisons results still lack of a plan, tile by tile, and leave them as they are."""
    return {one.sheet.places: int(one.wanted.sum()) for one in begun(out, plan).tiles}


def begun(out, plan):
    copy = out.with_name("copy.zarr")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(out, copy)
    return begin(copy, plan, {})


def from_nothing(store, tmp_path, **options):
    return dsvcca.compare(planned(store, **options), tmp_path / "fresh.zarr", workspace=tmp_path / "fresh.w").load()


@pytest.fixture
def grown(tmp_path):
    """A store of 6 representations whose results are there, and where those and the workspace are."""
    store, _ = write_population(tmp_path / "s.zarr", seeds=3, steps=(0,))
    out, workspace = tmp_path / "r.zarr", tmp_path / "w"
    dsvcca.compare(planned(store), out, workspace=workspace)
    return store, out, workspace


def write(store, seed, **labels):
    store.write(activations(1000 + seed), **{"layer": "a", "seed": seed, "step": 0, **labels})


@pytest.mark.parametrize("measures", [["pwcca_x"], ["r2", "pwcca_y"]])
def test_a_measure_of_one_side_alone_stays_as_it_was(tmp_path, measures):
    store, _ = write_population(tmp_path / "s.zarr", seeds=3, steps=(0,))
    out, workspace = tmp_path / "r.zarr", tmp_path / "w"
    dsvcca.compare(planned(store, measures=measures), out, workspace=workspace)
    write(store, 10)
    found = dsvcca.compare(planned(store, measures=measures), out, workspace=workspace).load()
    xr.testing.assert_identical(found, from_nothing(store, tmp_path, measures=measures))
    assert np.isfinite(found[measures[-1]].values).all()


@pytest.mark.parametrize("count", [1, 3, *(pytest.param(count, marks=pytest.mark.slow) for count in (2, 7))])
def test_adding_computes_what_is_new_and_gives_the_bits_of_a_run_from_nothing(grown, tmp_path, count):
    store, out, workspace = grown
    bases = find_bases(str(workspace))
    for seed in range(count):
        write(store, 10 + seed)
    plan = planned(store)
    lacking = missing(out, plan)
    assert sum(lacking.values()) == count * 6 + count * (count + 1) // 2
    assert (0, 0) not in lacking
    found = dsvcca.compare(plan, out, workspace=workspace).load()
    assert len(find_bases(str(workspace))) - len(bases) == count
    xr.testing.assert_identical(found, from_nothing(store, tmp_path))
    assert not missing(out, plan)


def test_adding_reads_no_basis_that_it_does_not_need(grown):
    store, _, workspace = grown
    out = workspace.with_name("r2.zarr")
    dsvcca.compare(planned(store, pairs="across_seeds"), out, workspace=workspace)
    for pack in workspace.glob("pack-*"):
        pack.rename(pack.with_name("gone-" + pack.name))
    store.write(activations(9), layer="c", seed=0, step=0)
    store.write(activations(10), layer="c", seed=1, step=0)
    found = dsvcca.compare(planned(store, pairs="across_seeds"), out, workspace=workspace)
    assert np.isfinite(found.svcca.values).sum() == 9 + 9 + 4
    assert len(find_bases(str(workspace))) == 2


def test_a_replaced_representation_invalidates_what_depended_on_it(grown, tmp_path):
    store, out, workspace = grown
    before = dsvcca.open_results(out).load()
    store.write(activations(77), layer="a", seed=1, step=0, if_exists="replace")
    plan = planned(store)
    assert sum(missing(out, plan).values()) == 6
    found = dsvcca.compare(plan, out, workspace=workspace).load()
    xr.testing.assert_identical(found, from_nothing(store, tmp_path))
    others = {"x": {"seed": [0, 2]}, "y": {"seed": [0, 2]}}
    assert np.array_equal(dsvcca.select(found, **others).svcca, dsvcca.select(before, **others).svcca)
    assert not np.array_equal(found.svcca, before.svcca)


def test_numbers_of_a_replaced_representation_go_even_where_nothing_new_is_asked_of_it(tmp_path):
    store, _ = write_population(tmp_path / "s.zarr", seeds=3, steps=(0,))
    one = store.select(layer="a")
    first, last = (({"seed": 0}, {"seed": 1}), ({"seed": 1}, {"seed": 2}))
    out, workspace = tmp_path / "r.zarr", tmp_path / "w"
    dsvcca.compare(planned(one, pairs=[first, last]), out, workspace=workspace)
    store.write(activations(77), layer="a", seed=0, step=0, if_exists="replace")
    one = dsvcca.open_store(store.path).select(layer="a")
    found = dsvcca.compare(planned(one, pairs=[last]), out, workspace=workspace).load()
    xr.testing.assert_identical(found, from_nothing(one, tmp_path, pairs=[last]))


@pytest.mark.parametrize("seeds", [[0, 2], [0], [2]])
def test_what_a_plan_does_not_have_is_hidden_and_comes_back_without_work(grown, tmp_path, seeds):
    store, out, workspace = grown
    before = dsvcca.open_results(out).load()
    fewer = store.select(seed=seeds)
    assert not missing(out, planned(fewer))
    found = dsvcca.compare(planned(fewer), out, workspace=workspace).load()
    xr.testing.assert_identical(found, from_nothing(fewer, tmp_path))
    assert not missing(out, planned(store))
    xr.testing.assert_identical(dsvcca.compare(planned(store), out, workspace=workspace).load(), before)


def test_a_later_last_step_takes_the_place_of_the_one_before(tmp_path):
    store, _ = write_population(tmp_path / "s.zarr", seeds=2, steps=(0, 10))
    out, workspace = tmp_path / "r.zarr", tmp_path / "w"
    options = {"pairs": "to_last_step", "panel": 3}
    dsvcca.compare(planned(store, **options), out, workspace=workspace)
    for seed in (0, 1):
        write(store, seed, step=20)
    found = dsvcca.compare(planned(store, **options), out, workspace=workspace).load()
    xr.testing.assert_identical(found, from_nothing(store, tmp_path, **options))


def test_other_pairs_of_the_same_population_are_added(grown, tmp_path):
    store, _, workspace = grown
    out = tmp_path / "r2.zarr"
    dsvcca.compare(planned(store, pairs="across_seeds"), out, workspace=workspace)
    assert sum(missing(out, planned(store)).values()) == 21 - 12
    found = dsvcca.compare(planned(store), out, workspace=workspace).load()
    assert same_bits(found, from_nothing(store, tmp_path))
    for pairs in ("across_seeds", [({"seed": 0}, {"seed": 1})]):
        with pytest.raises(DsvccaError, match=r"holds comparisons that pairs='.*' does not ask for \('all' were asked"):
            dsvcca.compare(planned(store, pairs=pairs), out, workspace=workspace)
    assert same_bits(dsvcca.open_results(out), found)


def test_maps_and_labels_may_come_to_a_population_that_had_none(grown, tmp_path):
    store, out, workspace = grown
    rng = np.random.default_rng(0)
    for seed in range(2):
        maps = rng.standard_normal((600, 3, 3, 5)).astype("f4") + activations(seed, p=5)[:, None, None, :]
        store.write(maps, layer="conv", seed=seed, step=0, width=5, dims="nhwc")
    found = dsvcca.compare(planned(store), out, workspace=workspace).load()
    fresh = from_nothing(store, tmp_path)
    assert found.x_width.values[-1] == 5
    assert np.isnan(found.x_width.values[0])
    assert found.view.attrs["flag_meanings"].split()[0] == "neurons"
    assert sorted(found.view.attrs["flag_meanings"].split()) == ["dft", "mean", "neurons"]
    names = [["", *one.view.attrs["flag_meanings"].split()] for one in (found, fresh)]
    assert np.array_equal(np.array(names[0])[found.view.values], np.array(names[1])[fresh.view.values])
    assert same_bits(found.drop_vars("view"), fresh.drop_vars("view"))


def test_labels_of_another_type_are_refused_and_nothing_is_lost(grown):
    store, out, workspace = grown
    others = dsvcca.create_store(out.parent / "others.zarr", datapoints=600)
    others.write(store.read(layer="a", seed=0, step=0), layer="a", seed=0, step=0)
    others.write(activations(5), layer="a", seed=1, step=0, width="wide")
    dsvcca.compare(planned(others), out, workspace=workspace)
    third = dsvcca.create_store(out.parent / "third.zarr", datapoints=600)
    third.write(store.read(layer="a", seed=0, step=0), layer="a", seed=0, step=0)
    third.write(activations(5), layer="a", seed=3, step=0, width=7)
    with pytest.raises(DsvccaError, match="label width=7 is int, but another representation in"):
        dsvcca.compare(planned(third), out, workspace=workspace)
    assert not missing(out, planned(store))


@pytest.mark.parametrize("variance", [0.99, [0.9, 0.99]])
def test_what_targets_are_explained_grows_as_well(tmp_path, variance):
    store, _ = write_population(tmp_path / "s.zarr", seeds=3, steps=(0,))
    y = np.random.default_rng(3).standard_normal((600, 2))
    options = {"targets": y, "variance": variance}
    out, workspace = tmp_path / "r.zarr", tmp_path / "w"
    dsvcca.compare(planned(store, **options), out, workspace=workspace)
    write(store, 10)
    plan = planned(store, **options)
    panels = begun(out, plan).panels
    assert [(one.sheet.places, int(one.wanted.sum())) for one in panels] == [((1,), 1)]
    found = dsvcca.compare(plan, out, workspace=workspace).load()
    xr.testing.assert_identical(found, from_nothing(store, tmp_path, **options))


def test_frequencies_are_kept_of_new_pairs_and_of_old_ones(tmp_path):
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=300)
    out, workspace = tmp_path / "r.zarr", tmp_path / "w"
    for seed in range(6):
        store.write(rng.standard_normal((300, 3, 3, 4)).astype("f4"), layer="conv", seed=seed, dims="nhwc")
        if seed == 4:
            dsvcca.compare(planned(store, keep=["frequencies"]), out, workspace=workspace)
    found = dsvcca.compare(planned(store, keep=["frequencies"]), out, workspace=workspace).load()
    xr.testing.assert_identical(found, from_nothing(store, tmp_path, keep=["frequencies"]))
    store.write(rng.standard_normal((300, 5, 5, 4)).astype("f4"), layer="conv", seed=9, dims="nhwc")
    pairs = [({"seed": seed}, {"seed": seed}) for seed in (0, 9)]
    with pytest.raises(DsvccaError, match=r"results of another plan \(grids is"):
        dsvcca.compare(planned(store, keep=["frequencies"], pairs=pairs), out)


def test_the_direct_route_is_done_again_with_what_lies_beside(tmp_path):
    store, _ = write_population(tmp_path / "s.zarr", seeds=2, steps=(0,))
    out, workspace = tmp_path / "r.zarr", tmp_path / "w"
    options = {"route": "direct", "variance": 0.9}
    dsvcca.compare(planned(store, **options), out, workspace=workspace)
    write(store, 10)
    plan = planned(store, **options)
    assert sum(missing(out, plan).values()) == 15
    found = dsvcca.compare(plan, out, workspace=workspace).load()
    xr.testing.assert_identical(found, from_nothing(store, tmp_path, **options))


def test_a_warning_that_new_ones_bring_is_told_and_kept(grown):
    store, out, workspace = grown
    store.write(np.random.default_rng(0).standard_normal((600, 200)).astype("f4"), layer="wide", seed=0, step=0)
    with pytest.warns(DsvccaWarning, match="comparisons have fewer than 5 rows a kept direction"):
        found = dsvcca.compare(planned(store), out, workspace=workspace)
    assert any("fewer than 5 rows" in sentence for sentence in found.attrs["warnings"])
    dsvcca.compare(planned(store), out, workspace=workspace)  # and told once


@pytest.mark.slow
def test_growth_that_was_interrupted_is_finished_by_the_next_run(grown, tmp_path):
    store, out, workspace = grown
    for seed in range(4):
        write(store, 10 + seed, extra=f"label {seed}")
    code = f"""
        import os, dsvcca, sys
        from dataclasses import replace
        real, left = dsvcca.storage.chunked.fit_array, [int(sys.argv[1])]

        def fit(*arguments):
            left[0] -= 1
            return os._exit(9) if left[0] < 0 else real(*arguments)

        dsvcca.storage.chunked.fit_array = fit
        plan = replace(dsvcca.plan_comparisons(dsvcca.open_store({store.path!r})), panel=4)
        dsvcca.compare(plan, {str(out)!r}, workspace={str(workspace)!r})
    """
    for after in (0, 2, 5, 9, 12):
        ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(after)], check=False)
        assert ended.returncode == 9
        with pytest.raises(
            DsvccaError, match="representations are being added, or were when a run ended.*again finishes that"
        ):
            dsvcca.open_results(out)
    found = dsvcca.compare(planned(store), out, workspace=workspace).load()
    xr.testing.assert_identical(found, from_nothing(store, tmp_path))


def test_a_tile_whose_growth_was_interrupted_is_computed_again_as_a_whole(grown, tmp_path):
    store, out, workspace = grown
    write(store, 10)
    marker = json.loads((out / "commits" / "0-1.json").read_bytes())
    chunk = out / "svcca" / "c.0.1"
    chunk.write_bytes(chunk.read_bytes()[:-4] + b"done")
    assert marker["chunks"]["svcca/c.0.1"] != b"done".hex()
    assert missing(out, planned(store)) == {(0, 1): 12, (1, 1): 3}
    found = dsvcca.compare(planned(store), out, workspace=workspace).load()
    xr.testing.assert_identical(found, from_nothing(store, tmp_path))


def test_what_is_there_already_is_told(grown, caplog):
    store, out, workspace = grown
    write(store, 10)
    caplog.set_level("INFO", "dsvcca")
    dsvcca.compare(planned(store), out, workspace=workspace)
    assert "21 of 28 comparisons are there, 2 tiles are to be done" in caplog.messages
    assert "6 of 7 bases are there" in caplog.messages
    caplog.clear()
    dsvcca.compare(planned(store), out, workspace=workspace)
    assert "28 of 28 comparisons are there, nothing is to be done" in caplog.messages
