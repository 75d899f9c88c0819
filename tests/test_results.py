"""The results store: what it says of itself, how it is read, and that damage is never read as numbers."""

import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import dsvcca
from dsvcca import DsvccaError, DsvccaWarning
from dsvcca.plans.layout import NUMERICS
from dsvcca.results.filling import claimed
from dsvcca.results.opening import findings
from tests.populations import activations, same_bits, write_population


@pytest.fixture
def finished(population, plan, tmp_path):
    """Results in several tiles, their plan, and where they lie."""
    cut = replace(plan, panel=5)
    out = tmp_path / "r.zarr"
    return dsvcca.compare(cut, out).load(), cut, out


def test_results_say_how_they_were_made(results):
    attributes = results.attrs
    assert attributes["views"] == ["neurons"]
    assert attributes["rows"] == 600
    assert attributes["variance"] == [0.9, 0.99, 1.0]
    assert attributes["criterion"] == "variance"
    assert attributes["numerics"] == NUMERICS
    assert "float64" in attributes["precision"]
    assert attributes["dsvcca_version"]
    assert "sum(rho)" in results.svcca.attrs["definition"]
    assert results.svcca.dims == ("x", "y", "variance")
    assert {"x_layer", "x_seed", "x_step", "y_layer", "y_seed", "y_step"} <= set(results.coords)


def test_one_share_of_variance_gives_no_dimension(population, tmp_path):
    found = dsvcca.compare(dsvcca.plan_comparisons(population[0], rank=5), tmp_path / "r.zarr")
    assert found.svcca.dims == ("x", "y")
    assert set(found.rank_x.values.ravel()) == {5}
    assert isinstance(found, xr.Dataset)


def test_select_and_to_frame(results):
    part = dsvcca.select(results, x={"layer": "a", "seed": 0}, y={"step": 10})
    assert dict(part.sizes) == {"x": 2, "y": 6, "variance": 3}
    frame = dsvcca.to_frame(results)
    assert len(frame) == 78 * 3
    assert list(frame.columns) == [
        *("x_seed", "x_step", "x_layer", "rank_x", "y_seed", "y_step", "y_layer", "rank_y", "view", "variance"),
        *("svcca", "pwcca_x", "pwcca_y", "r2", "chance"),
    ]
    assert set(frame.view) == {"neurons"}
    row = frame.iloc[17]
    cell = dsvcca.select(
        results,
        x={"seed": row.x_seed, "step": row.x_step, "layer": row.x_layer},
        y={"seed": row.y_seed, "step": row.y_step, "layer": row.y_layer},
    ).sel(variance=row.variance)
    assert float(cell.pwcca_x.squeeze()) == row.pwcca_x
    assert int(cell.rank_y.squeeze()) == row.rank_y
    assert len(dsvcca.to_frame(part, measures=["svcca"])) == 3 * (2 * 6 - 0)
    with pytest.raises(DsvccaError, match="results have no label 'color'"):
        dsvcca.select(results, x={"color": 1})
    with pytest.raises(DsvccaError, match="nothing in these results has layer='z'"):
        dsvcca.select(results, y={"layer": "z"})
    with pytest.raises(DsvccaError, match="has all of"):
        dsvcca.select(results.isel(x=[0, 11]), x={"seed": 0, "step": 10})
    with pytest.raises(DsvccaError, match="results have no"):
        dsvcca.to_frame(results, measures=["cka"])


def test_results_of_another_plan_are_refused(population, plan, results, tmp_path):
    out = tmp_path / "r.zarr"
    dsvcca.compare(plan, out)
    with pytest.raises(DsvccaError, match=r"results of another plan \(variance is \[0.9, 0.99, 1.0\] there"):
        dsvcca.compare(dsvcca.plan_comparisons(population[0], variance=0.5), out)
    others, _ = write_population(tmp_path / "others.zarr", seeds=4, steps=(10,))
    others = others.select(seed=3)
    with pytest.raises(DsvccaError, match="none of the 12 representations there is among the 2 here"):
        dsvcca.compare(dsvcca.plan_comparisons(others, variance=[0.9, 0.99, 1.0]), out)
    with pytest.raises(DsvccaError, match="holds activations, not results"):
        dsvcca.compare(plan, population[0].path)
    with pytest.raises(DsvccaError, match="there are no results at"):
        dsvcca.open_results(tmp_path / "nothing")
    with pytest.raises(DsvccaError, match="holds activations, not results"):
        dsvcca.open_results(population[0].path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("")
    with pytest.raises(DsvccaError, match="is a folder of something else"):
        dsvcca.compare(plan, tmp_path / "r3.zarr", workspace=tmp_path / "folder")
    with pytest.raises(DsvccaError, match="holds activations"):
        dsvcca.compare(plan, tmp_path / "r3.zarr", workspace=population[0].path)
    with pytest.raises(DsvccaError, match="holds results, not activations"):
        dsvcca.open_store(out)


def test_lost_ranks_are_told_and_made_again(finished):
    results, plan, out = finished
    (out / "rank_y" / "c.0.1.0").unlink()
    with pytest.warns(DsvccaWarning, match="not complete: 5 of 6 tiles are there"):
        dsvcca.open_results(out)
    again = dsvcca.compare(plan, out)
    assert same_bits(again, results)
    assert again.rank_y.values.min() > 0


@pytest.mark.parametrize(
    "marker",
    [
        "{}",
        '{"svcca/c.9.9.0": "00000000"}',
        "not json",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("[1]", "null", '{"svcca/c.0.1.0": null}', "")),
    ],
)
def test_a_marker_that_is_not_the_tiles_own_counts_for_nothing(finished, marker):
    results, plan, out = finished
    (out / "commits" / "0-1.json").write_text(marker)
    for name in ("svcca", "r2"):
        shutil.copy(out / name / "c.2.2.0", out / name / "c.0.1.0")
    with pytest.warns(DsvccaWarning, match="not complete: 5 of 6 tiles are there, the numbers of the others read as"):
        dsvcca.open_results(out)
    assert same_bits(dsvcca.compare(plan, out), results)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_bits(dsvcca.open_results(out), results)


def test_a_chunk_lost_or_exchanged_is_made_again(finished):
    results, plan, out = finished
    (out / "svcca" / "c.1.0.0").unlink()
    shutil.copy(out / "r2" / "c.0.0.0", out / "r2" / "c.1.1.0")
    with pytest.warns(DsvccaWarning, match="4 of 6 tiles"):
        dsvcca.open_results(out)
    assert same_bits(dsvcca.compare(plan, out), results)


@pytest.mark.parametrize("lost", ["x_layer/c.0", "y_seed/c.0", "x/c.0", "variance/c.0"])
def test_lost_labels_are_an_error_not_empty_labels(finished, lost):
    _, plan, out = finished
    (out / lost).unlink()
    for again in (lambda: dsvcca.open_results(out), lambda: dsvcca.compare(plan, out)):
        with pytest.raises(DsvccaError, match=f"{lost}' is missing or not what was written"):
            again()


def test_a_flipped_bit_in_a_label_or_a_number_is_an_error(finished):
    _, _, out = finished
    found = dsvcca.open_results(out)
    for name in ("svcca/c.0.0.0", "x_layer/c.0"):
        damaged = bytearray((out / name).read_bytes())
        damaged[len(damaged) // 2] ^= 1
        (out / name).write_bytes(damaged)
    with pytest.raises(ValueError, match="checksum"):
        found.svcca.load()
    with pytest.raises(DsvccaError, match="x_layer/c.0' is missing or not what was written"):
        dsvcca.open_results(out)


def test_a_lost_variable_is_an_error(finished):
    _, _, out = finished
    shutil.rmtree(out / "pwcca_x")
    with pytest.raises(DsvccaError, match="pwcca_x/zarr.json' is gone or was changed"):
        dsvcca.open_results(out)


def test_labels_come_back_with_their_types(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=600)
    store.write(activations(0), layer="0", seed=2**60 + 1, lr=0.1, norm=True, model="a")
    store.write(activations(1), layer="b", seed=2**60 + 2, lr=1.0, norm=False)
    found = dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr")
    assert found.x_seed.values.tolist() == [2**60 + 1, 2**60 + 2]
    assert found.x_norm.values.tolist() == [True, False]
    assert found.x_lr.values.tolist() == [0.1, 1.0]
    assert found.x_layer.values.tolist() == ["0", "b"]
    assert found.x_model.values.tolist() == ["a", ""]


def test_integers_that_would_lose_digits_are_refused(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=600)
    store.write(activations(0), layer="a", seed=2**53 + 1)
    store.write(activations(1), layer="b")
    with pytest.raises(
        DsvccaError, match=r"label seed is an integer above 2\^53 that some representations do not have"
    ):
        dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr")
    assert not (tmp_path / "r.zarr").exists()
    with pytest.raises(DsvccaError, match="does not fit in 64 bits"):
        store.write(activations(2), layer="c", seed=2**63)


def test_a_missing_number_is_nan(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=600)
    store.write(activations(0), layer="a", seed=3)
    store.write(activations(1), layer="b")
    found = dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr")
    assert np.array_equal(found.y_seed.values, [3.0, np.nan], equal_nan=True)


def test_a_changed_byte_is_found_by_compare_and_made_anew(finished):
    whole, cut, out = finished
    chunk = out / "svcca" / "c.0.1.0"
    content = bytearray(chunk.read_bytes())
    content[40] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        dsvcca.open_results(out).load()
    assert same_bits(dsvcca.compare(cut, out).load(), whole)
    assert same_bits(dsvcca.open_results(out).load(), whole)


def test_what_was_learned_of_bases_is_learned_again_and_lost_markers_are_made_again(finished):
    whole, cut, out = finished
    (out / "commits" / "bases.json").write_text("{ half of it")
    assert same_bits(dsvcca.compare(cut, out).load(), whole)
    learned = json.loads((out / "commits" / "bases.json").read_text())
    for one in learned["bases"].values():
        one["missed"] = 0.5  # would be warned of
    (out / "commits" / "bases.json").write_text(json.dumps(learned))
    assert same_bits(dsvcca.compare(cut, out).load(), whole)
    shutil.rmtree(out / "commits")
    assert same_bits(dsvcca.compare(cut, out).load(), whole)


def test_one_process_at_a_time_fills_results(finished):
    whole, cut, out = finished
    with claimed(out):
        with pytest.raises(DsvccaError, match=r"r.zarr' is being filled by another process: wait for it, or choose"):
            dsvcca.compare(cut, out)
        assert same_bits(dsvcca.open_results(out), whole)
    assert same_bits(dsvcca.compare(cut, out), whole)


@pytest.mark.parametrize(
    ("rule", "label", "later"),
    [("to_last_step", "step", 20), ("over_training", "step", None), ("across_seeds", "seed", None)],
)
def test_tables_of_a_rule_have_the_later_one_as_y_whatever_was_written_first(tmp_path, rule, label, later):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=600)
    for place, step in enumerate((20, 0, 10)):
        for seed in (1, 0):
            for layer in ("b", "a"):
                store.write(activations(10 * place + seed), layer=layer, seed=seed, step=step)
    plan = dsvcca.plan_comparisons(store, rule)
    frame = dsvcca.to_frame(dsvcca.compare(plan, tmp_path / "r.zarr"))
    assert len(frame) == plan.pairs.count
    assert (frame[f"x_{label}"] <= frame[f"y_{label}"]).all()
    if later is not None:
        assert set(frame.y_step) == {later}


def test_pairs_may_name_several_values_of_a_label(population, tmp_path):
    store = population[0]
    one = dsvcca.plan_comparisons(store, [({"layer": ["a", "b"], "seed": 0}, {"layer": "a", "step": (0, 10)})])
    names = [({"layer": x, "seed": 0}, {"layer": "a", "step": step}) for x in "ab" for step in (0, 10)]
    assert one.pairs == dsvcca.plan_comparisons(store, names).pairs
    with pytest.raises(DsvccaError, match="nothing has layer='c': there is 'a', 'b'"):
        dsvcca.plan_comparisons(store, [({"layer": ["a", "c"]}, {})])


def test_a_plan_is_printed_in_full_and_shown_in_short(plan):
    assert repr(plan).startswith("<dsvcca plan of 78 comparisons of 12 representations in '")
    with pytest.raises(DsvccaError, match=r"price\(\) takes ranks first: write price\(machine=...\)"):
        plan.price(dsvcca.machine_of())


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        ("1.5", "memory='1.5' is less than a process takes, without a unit that is bytes: write it as '1.5 GiB'"),
        ("-1 GiB", "memory='-1 GiB' is less than a process takes: write"),
        (None, "memory=None is no amount of memory: write it as '1.5 GiB'"),
        ("250 MB", "give at least 0.4 GiB"),
    ],
)
def test_amounts_of_memory_that_are_none_are_refused(population, memory, words):
    with pytest.raises(DsvccaError, match=words):
        dsvcca.plan_comparisons(population[0], memory=memory)


def test_integers_are_selected_exactly_beside_floats(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=60)
    rng = np.random.default_rng(0)
    for seed in (2**53, 2**53 + 1, 5):
        store.write(rng.standard_normal((60, 3)), layer="a", seed=seed)
    found = dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr")
    chosen = dsvcca.select(found, x={"seed": [2**53 + 1, 5.0]})
    assert chosen.x_seed.values.tolist() == [2**53 + 1, 5]


def test_layers_of_the_same_numbers_that_fail_are_each_called_by_their_own_name(tmp_path):
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=100)
    for seed in range(2):
        store.write(np.ones((100, 3)), layer="dead", seed=seed)
        store.write(rng.standard_normal((100, 3)), layer="alive", seed=seed)
    with pytest.warns(dsvcca.DsvccaWarning, match="could not be compared"):
        found = dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr")
    assert len(found.attrs["failed"]) == 2
    for seed, reason in enumerate(found.attrs["failed"]):
        assert f"seed={seed}" in reason
        assert f"seed={1 - seed}" not in reason


def test_the_marker_of_another_tile_does_not_count(tmp_path):
    """Layers that are the same give tiles of the same version; their markers are still those of one place each."""
    store = dsvcca.create_store(tmp_path / "a.zarr", datapoints=100)
    x = np.random.default_rng(0).standard_normal((100, 4)).astype("f4")
    for seed in range(4):
        store.write(x, layer="frozen", seed=seed)
    plan = replace(dsvcca.plan_comparisons(store), panel=2)
    out = tmp_path / "r.zarr"
    dsvcca.compare(plan, out)
    (out / "commits" / "1-1.json").write_bytes((out / "commits" / "0-0.json").read_bytes())
    with pytest.warns(dsvcca.DsvccaWarning, match="2 of 3 tiles are there"):
        dsvcca.open_results(out)
    assert any(name == "1-1" for name, _, _ in findings(out))
    assert np.isfinite(dsvcca.compare(plan, out).svcca.values).all()
