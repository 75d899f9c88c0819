"""Bad numbers and bad names: refused with a sentence, or right; one bad representation fails alone."""

import warnings

import numpy as np
import pytest
import zarr

import dsvcca
from dsvcca import DsvccaError, DsvccaWarning
from dsvcca.workspace.contents import find_bases
from tests.populations import activations, same_bits


def fault(case, outcome):
    return pytest.mark.fault("data", case, outcome)


def others(path, **arrays):
    """Write arrays as others do, without any check, and open them."""
    group = zarr.open_group(path, mode="w", zarr_format=3)
    for name, x in arrays.items():
        group.create_array(name, data=x, chunks=x.shape, config={"write_empty_chunks": True})
    return dsvcca.open_store(path)


def spoiled(kind):
    x = activations(7)
    if kind == "nan":
        x[17, 3] = np.nan
    elif kind == "inf":
        x[599, 0] = -np.inf
    elif kind == "zero":
        x[:] = 0
    elif kind == "constant":
        x[:] = np.arange(24)
    return x


BAD = [
    pytest.param(
        "nan",
        "1 numbers are NaN or infinite, the first of datapoint 17",
        marks=fault("NaN in one layer", "it fails alone, datapoint named"),
    ),
    pytest.param(
        "inf",
        "1 numbers are NaN or infinite, the first of datapoint 599",
        marks=fault("infinity in one layer", "it fails alone, datapoint named"),
    ),
    pytest.param("zero", "every neuron is constant", marks=fault("a layer of zeros", "it fails alone")),
    pytest.param(
        "constant", "every neuron is constant", marks=fault("a layer that is constant, not zero", "it fails alone")
    ),
]


@pytest.mark.parametrize(("kind", "reason"), BAD)
def test_one_bad_representation_fails_alone_and_the_others_have_their_bits(tmp_path, kind, reason):
    good = {f"good{i}": activations(i) for i in range(3)}
    store = others(tmp_path / "bad.zarr", bad=spoiled(kind), **good)
    plan = dsvcca.plan_comparisons(store)
    with pytest.warns(DsvccaWarning, match=f"^1 of 4 representations could not be compared.* layer='bad': {reason}"):
        found = dsvcca.compare(plan, tmp_path / "r.zarr")
    [said] = found.attrs["failed"]
    assert said.startswith(f"layer='bad': {reason}")
    alone = dsvcca.compare(dsvcca.plan_comparisons(store.select(layer=sorted(good))), tmp_path / "alone.zarr")
    assert same_bits(dsvcca.select(found, x={"layer": sorted(good)}, y={"layer": sorted(good)}), alone)
    bad = dsvcca.select(found, x={"layer": "bad"})
    assert np.isnan(bad.svcca.values).all()
    assert (bad.rank_x.values == 0).all()
    assert "bad" not in dsvcca.to_frame(found).x_layer.tolist() + dsvcca.to_frame(found).y_layer.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # complete, for what could be compared
        assert dsvcca.open_results(tmp_path / "r.zarr").attrs["failed"] == [said]


@fault("a bad layer that was mended", "the next run compares it, and nothing else again")
def test_a_representation_that_was_mended_is_compared_by_the_next_run(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=600)
    for seed in range(4):
        store.write(activations(seed), layer="a", seed=seed)
    whole = dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "whole.zarr", workspace=tmp_path / "other")
    [chunk] = (tmp_path / "s.zarr" / "seed=2,layer=a" / "activations").glob("c.*")
    sound = chunk.read_bytes()
    chunk.write_bytes(sound[:100] + b"?" + sound[101:])
    plan = dsvcca.plan_comparisons(store)
    for _ in range(2):  # the second run tries again, and says it again
        with pytest.warns(DsvccaWarning, match="seed=2, layer='a': chunk .* is damaged, its checksum does not hold"):
            found = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "w").glob("pack-*/**/c.*")}
    chunk.write_bytes(sound)
    found = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")
    assert found.attrs["failed"] == []
    assert same_bits(found, whole)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in (tmp_path / "w").glob("pack-*/**/c.*")}.items()
    assert len(find_bases(str(tmp_path / "w"))) == 4


@fault("nothing but bad layers", "one error with the reason of each")
def test_where_nothing_is_left_to_compare_it_is_an_error(tmp_path):
    store = others(tmp_path / "bad.zarr", a=spoiled("nan"), b=spoiled("zero"), c=activations(1))
    with pytest.raises(
        DsvccaError, match=r"layer='a': 1 numbers[\s\S]*layer='b': every[\s\S]*nothing is left to compare"
    ):
        dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr")


@fault("a bad layer among targets", "it fails alone, the others are explained")
def test_a_bad_representation_explains_no_target_and_the_others_do(tmp_path):
    store = others(tmp_path / "bad.zarr", a=activations(0), b=spoiled("nan"), c=activations(2))
    target = np.random.default_rng(0).standard_normal(600)
    plan = dsvcca.plan_comparisons(store, "to_targets", targets=target)
    with pytest.warns(DsvccaWarning, match="layer='b'"):
        found = dsvcca.compare(plan, tmp_path / "r.zarr")
    assert np.isfinite(found.r2_target.values[[0, 2]]).all()
    assert np.isnan(found.r2_target.values[1]).all()


@fault("a bad layer, or one that lost a chunk, on the direct route", "it fails alone; the others have the same bits")
@pytest.mark.parametrize("lost", [False, True])
def test_a_bad_representation_fails_alone_beside_others_as_well(tmp_path, lost):
    good = {f"good{i}": activations(i, n=9000) for i in range(3)}
    bad = activations(7, n=9000)
    bad[8500, 1] = 0 if lost else np.inf
    store = others(tmp_path / "bad.zarr", bad=bad, **good)
    if lost:
        array = zarr.open_group(tmp_path / "bad.zarr").create_array("bad", data=bad, chunks=(4500, 24), overwrite=True)
        store = dsvcca.open_store(tmp_path / "bad.zarr")
        (tmp_path / "bad.zarr" / "bad" / array.metadata.encode_chunk_key((1, 0))).write_bytes(b"")
        store = dsvcca.open_store(tmp_path / "bad.zarr")
    plan = dsvcca.plan_comparisons(store, route="direct", variance=0.9)
    why = "rows .* cannot be read" if lost else "1 numbers are NaN or infinite, the first of datapoint 8500"
    with pytest.warns(DsvccaWarning, match=f"layer='bad': {why}"):
        found = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")
    alone = dsvcca.plan_comparisons(store.select(layer=sorted(good)), route="direct", variance=0.9)
    alone = dsvcca.compare(alone, tmp_path / "alone.zarr", workspace=tmp_path / "w2")
    assert same_bits(dsvcca.select(found, x={"layer": sorted(good)}, y={"layer": sorted(good)}), alone)
    assert not list((tmp_path / "w").glob("partial-*"))
    assert not list((tmp_path / "w").glob("filling-*"))


@fault("a bad layer of segments", "it fails alone and leaves nothing in the workspace")
def test_a_bad_representation_of_segments_fails_alone(tmp_path):
    from dataclasses import replace

    good = {f"good{i}": activations(i, n=9000) for i in range(2)}
    bad = activations(7, n=9000)
    bad[8500, 1] = np.inf
    store = others(tmp_path / "bad.zarr", bad=bad, **good)
    plan = replace(dsvcca.plan_comparisons(store, variance=0.9, route="bases"), segment=4096 * 24 * 4)
    assert all(plan.large)
    with pytest.warns(DsvccaWarning, match="layer='bad': 1 numbers are NaN or infinite, the first of datapoint 8500"):
        found = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")
    assert np.isfinite(found.svcca.values).sum() == 4
    assert {path.name.split("-")[0] for path in (tmp_path / "w").iterdir()} == {"pack", "zarr.json", ".lock"}
