"""The activation store: what goes in comes out, whole or not at all, and everything else says why."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

import dsvcca
from dsvcca import DsvccaError, DsvccaWarning
from dsvcca.activations.pieces import read_pieces
from dsvcca.activations.representations import version_of
from dsvcca.storage import chunked
from dsvcca.storage.records import signed
from tests.populations import activations


@pytest.fixture
def store(tmp_path):
    return dsvcca.create_store(tmp_path / "s.zarr", datapoints=100)


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((100, 5)).astype(np.float32)


def whole(store, **labels):
    (representation,) = store.select(**labels).representations
    return np.concatenate(list(read_pieces(representation)))


def test_what_is_written_is_read_and_its_labels_are_in_the_index(store, x):
    store.write(x, layer="fc", model="m", seed=3, step=100, lr=0.1, shuffled=True)
    assert np.array_equal(whole(store, layer="fc"), x)
    row = store.index.iloc[0]
    assert (row.model, row.seed, row.step, row.lr, row.shuffled, row.layer) == ("m", 3, 100, 0.1, True, "fc")
    assert row["shape"] == (100, 5)
    assert row["bytes"] == 2000


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8", "bool"])
def test_types_are_kept(store, dtype):
    values = (np.arange(300).reshape(100, 3) % 2).astype(dtype)
    store.write(values, layer="fc")
    assert store.index.dtype[0] == dtype
    assert np.array_equal(whole(store, layer="fc"), values)


@pytest.mark.parametrize(
    ("dims", "shape", "axes"),
    [
        ("nhwc", (100, 3, 4, 5), (0, 1, 2, 3)),
        ("nchw", (100, 5, 3, 4), (0, 2, 3, 1)),
        ("tnd", (7, 100, 5), (1, 0, 2)),
        ("ntd", (100, 7, 5), (0, 1, 2)),
        (("neuron", "datapoint"), (5, 100), (1, 0)),
    ],
)
def test_axes_are_stored_datapoints_first_and_channels_last(store, dims, shape, axes):
    values = np.random.default_rng(0).standard_normal(shape)
    store.write(values, layer="l", dims=dims)
    assert np.array_equal(whole(store, layer="l"), values.transpose(axes))
    assert store.index.dims[0][0] == "datapoint"
    assert store.index.dims[0][-1] in ("channel", "neuron")


@pytest.mark.parametrize("batch", [1, 7, 64, 100])
def test_a_writer_takes_batches_of_any_size(store, x, batch):
    with store.writer(layer="fc") as writer:
        for start in range(0, 100, batch):
            writer.append(x[start : start + batch])
    assert np.array_equal(whole(store, layer="fc"), x)


def test_chunks_are_8_MiB_along_datapoints_and_waste_nothing(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=10_000)
    store.write(np.ones((10_000, 512), np.float32), layer="fc")
    array = zarr.open_array(store.representations[0].array, mode="r")
    assert array.chunks == (5000, 512)
    assert 4 << 20 <= 5000 * 512 * 4 <= 16 << 20
    assert np.isnan(array.fill_value)


def test_all_zero_activations_are_written_chunk_by_chunk(store):
    store.write(np.zeros((100, 3), np.float32), layer="dead")
    assert Path(store.representations[0].array, "c.0.0").exists()
    assert np.array_equal(whole(store, layer="dead"), np.zeros((100, 3)))


def test_plain_zarr_and_xarray_read_it(store, x):
    store.write(x, layer="fc", seed=0)
    assert np.array_equal(zarr.open_group(store.path, mode="r")["seed=0,layer=fc/activations"][:], x)
    tree = xr.open_datatree(store.path, engine="zarr", consolidated=False)
    assert tree["seed=0,layer=fc"]["activations"].dims == ("datapoint", "neuron")
    assert tree["seed=0,layer=fc"].attrs["dsvcca"]["labels"] == {"seed": 0, "layer": "fc"}


def test_uncommitted_work_is_invisible_and_swept(store, x):
    with pytest.raises(RuntimeError, match="stop"), store.writer(layer="fc") as writer:
        writer.append(x[:50])
        raise RuntimeError("stop")
    assert store.representations == []
    assert sorted(os.listdir(store.path)) == ["zarr.json"]


def test_what_a_killed_process_left_is_swept_by_the_next_writer(store, x):
    code = f"""
        import dsvcca, os, numpy as np
        w = dsvcca.open_store({store.path!r}).writer(layer="fc")
        w.__enter__(); w.append(np.zeros((60, 5), np.float32)); os._exit(9)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode == 9
    assert len(os.listdir(Path(store.path, ".uncommitted"))) == 1
    assert store.representations == []
    store.write(x, layer="fc")
    assert not Path(store.path, ".uncommitted").exists()
    assert len(store.representations) == 1


def test_if_exists_error_skip_and_replace(store, x):
    assert store.write(x, layer="fc")
    with pytest.raises(DsvccaError, match="layer='fc' is in .* already: pass if_exists='skip'"):
        store.write(x, layer="fc")
    assert not store.write(x + 1, layer="fc", if_exists="skip")
    assert np.array_equal(whole(store, layer="fc"), x)
    assert store.write(x + 1, layer="fc", if_exists="replace")
    assert np.array_equal(whole(store, layer="fc"), x + 1)
    assert len(store.representations) == 1
    with pytest.raises(DsvccaError, match="if_exists='append' is unknown"):
        store.write(x, layer="fc", if_exists="append")


def test_the_fingerprint_follows_the_numbers(store, x):
    store.write(x, layer="a")
    store.write(x, layer="b")
    store.write(x + 1, layer="c")
    a, b, c = store.representations
    assert a.fingerprint == b.fingerprint != c.fingerprint


@pytest.mark.slow
def test_eight_processes_write_fifty_representations_each_and_nothing_is_lost(tmp_path):
    path = tmp_path / "s.zarr"
    code = """
        import sys, dsvcca, numpy as np
        store = dsvcca.create_store(sys.argv[1], datapoints=20)
        for layer in range(50):
            values = np.full((20, 3), 100 * int(sys.argv[2]) + layer, "f4") * np.arange(1, 4)
            store.write(values, layer=f"l{layer}", seed=int(sys.argv[2]))
            store.write(np.ones((20, 2), "f4"), layer="shared", if_exists="skip")
    """
    code = textwrap.dedent(code)
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), str(seed)]) for seed in range(8)]
    assert [process.wait(100) for process in running] == [0] * 8
    store = dsvcca.open_store(path)
    assert len(store.representations) == 401
    for r in store.representations:
        values = np.concatenate(list(read_pieces(r)))
        if r.labels["layer"] != "shared":
            assert values[0, 0] == 100 * r.labels["seed"] + int(str(r.labels["layer"])[1:])
    assert store.verify().empty
    assert not (path / ".uncommitted").exists()


def test_creating_a_store_again_opens_it(tmp_path):
    dsvcca.create_store(tmp_path / "s.zarr", datapoints=["a", "b", "c"])
    again = dsvcca.create_store(tmp_path / "s.zarr", datapoints=["a", "b", "c"])
    assert again.datapoints == 3
    with pytest.raises(DsvccaError, match="store of 3 datapoints, 4 were asked for"):
        dsvcca.create_store(tmp_path / "s.zarr", datapoints=4)
    with pytest.raises(DsvccaError, match=r"2 of 3 ids differ .*, the first in row 1"):
        dsvcca.create_store(tmp_path / "s.zarr", datapoints=["a", "c", "b"])


def test_ids_given_with_rows_are_compared_with_the_store(store, x):
    store.write(x, layer="a", datapoints=range(100))
    assert store.ids is not None
    store.write(x, layer="b", datapoints=np.arange(100))
    shuffled = np.random.default_rng(0).permutation(100)
    with pytest.raises(DsvccaError, match="other datapoints than those of the store"):
        store.write(x[shuffled], layer="c", datapoints=shuffled)
    with pytest.raises(DsvccaError, match="50 datapoint ids came with 100 rows"):
        store.write(x, layer="c", datapoints=range(50))
    with pytest.raises(DsvccaError, match="sequence of integers or strings"):
        store.write(x, layer="c", datapoints=np.linspace(0, 1, 100))
    assert [r.labels["layer"] for r in store.representations] == ["a", "b"]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.ones((99, 3)), {}, "has 99 datapoints, the store .* has 100"),
        (np.ones((101, 3)), {}, "at least 101 datapoints, the store .* has 100"),
        (np.ones((100, 3, 3, 4)), {}, "has 4 axes .* and no dims: pass dims="),
        (np.ones((100, 8, 3, 3)), {"dims": "nhwc"}, "looks like channels-first maps .* pass dims='nchw'"),
        (np.ones((100, 3)), {"dims": "nhwc"}, "names 4"),
        (np.ones((100, 3)), {"dims": "nq"}, "unknown letters"),
        (np.ones((100, 3)), {"dims": "nt"}, "must name 'datapoint' once"),
        (np.full((100, 3), np.nan), {}, "NaN or infinite numbers, the first at datapoint 0"),
        (np.full((100, 3), np.inf), {}, "NaN or infinite"),
        (np.ones((100, 0)), {}, "axis of length 0"),
        (np.ones((100, 3), complex), {}, "activations of type 'complex128' cannot be compared"),
        (np.ones((100, 3)), {"shape": 3}, "label 'shape' is reserved"),
        (np.ones((100, 3)), {"x_seed": 3}, "label 'x_seed' is reserved"),
        (np.ones((100, 3)), {"seed": None}, "label seed=None is a NoneType"),
        (np.ones((100, 3)), {"seed": float("nan")}, "label seed is nan"),
        (np.ones((100, 3)), {"model": ""}, "label model is empty"),
        (np.ones((100, 3)), {"not a name": 1}, "is not a plain name"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(store, values, options, message):
    with pytest.raises(DsvccaError, match=message):
        store.write(values, layer="fc", **options)
    assert sorted(os.listdir(store.path)) == ["zarr.json"]


def test_batches_must_have_one_shape_and_type(store, x):
    with (
        pytest.raises(DsvccaError, match=r"a batch of \(4,\) float32 follows one of \(5,\) float32"),
        store.writer(layer="fc") as writer,
    ):
        writer.append(x[:50])
        writer.append(x[50:, :4])
    assert store.representations == []


def test_the_caller_may_use_its_array_again(store):
    buffer = np.empty((50, 3), np.float32)
    with store.writer(layer="fc") as writer:
        for value in (1, 2):
            buffer[:] = value
            writer.append(buffer)
    assert np.array_equal(whole(store, layer="fc")[:, 0], np.repeat([1, 2], 50))


def test_other_byte_orders_are_stored_as_the_same_numbers(store, x):
    store.write(x.astype(">f4"), layer="fc")
    assert np.array_equal(whole(store, layer="fc"), x)
    assert store.verify().empty


def test_append_needs_its_context(store, x):
    with pytest.raises(DsvccaError, match="outside its context"):
        store.writer(layer="fc").append(x)


def test_other_ids_are_found_at_the_first_batch(store, x):
    store.write(x, layer="a", datapoints=range(100))
    with (
        pytest.raises(DsvccaError, match="10 of 10 ids differ .*, the first in row 0"),
        store.writer(layer="b") as writer,
    ):
        writer.append(x[:10], datapoints=range(1, 11))


def test_one_label_has_one_type(store, x):
    store.write(x, layer="fc", seed=0)
    with pytest.raises(DsvccaError, match=r"label seed='0' is str, but the store .* has seed=0 \(int\)"):
        store.write(x, layer="fc", seed="0")


@pytest.mark.parametrize("layer", ["../x", "a b", "é漢", "x" * 300, "con:1", "a/b", "~2", "@2", "a,b=c", ".", "%2F"])
def test_hostile_names_stay_inside_the_store(store, x, layer):
    store.write(x, layer=layer)
    store.write(x + 1, layer=layer + "2")
    assert np.array_equal(whole(store, layer=layer), x)
    assert sorted(os.listdir(Path(store.path).parent)) == ["s.zarr"]


def test_select_narrows_and_says_what_there_is(store, x):
    for seed in range(3):
        store.write(x, layer="conv1", seed=seed)
    assert len(store.select(seed=[0, 2]).representations) == 2
    assert len(store.select(layer="conv1").select(seed=1).representations) == 1
    with pytest.raises(DsvccaError, match="no representation has layer='conv2': did you mean 'conv1'"):
        store.select(layer="conv2")
    with pytest.raises(DsvccaError, match="no representation has a label 'sede': did you mean 'seed'"):
        store.select(sede=0)


def test_verify_finds_missing_flipped_swapped_and_damaged(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=1000)
    rng = np.random.default_rng(0)
    for layer in "abcde":
        store.write(rng.standard_normal((1000, 8)), layer=layer)
    a, b, c, d, _ = (Path(r.array) for r in store.representations)
    (a / "c.0.0").unlink()
    data = bytearray((b / "c.0.0").read_bytes())
    data[100] ^= 1
    (b / "c.0.0").write_bytes(data)
    (c / "c.0.0").write_bytes((d / "c.0.0").read_bytes())
    (d / "zarr.json").write_text("{")
    found = store.verify()
    assert found.name.tolist() == ["layer=a", "layer=b", "layer=c", "layer=d"]
    for word, problem in zip(
        ("missing", "checksum does not hold", "not the chunk", "no readable array"), found.problem, strict=True
    ):
        assert word in problem


def test_that_some_have_no_ids_is_warned_of(store, x, tmp_path):
    """Nothing proves then that their rows stand in the order of the others."""
    ids = np.arange(100)
    store.write(x, layer="a", datapoints=ids)
    store.write(x @ np.eye(5), layer="b")
    said = r"1 of 2 representations were written without datapoint ids \(layer='b'\).*datapoints="
    with pytest.warns(DsvccaWarning, match=said):
        found = dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr")
    assert found.attrs["datapoint_ids"] == "not known"
    one = store.select(layer="a")
    assert not dsvcca.compare(dsvcca.plan_comparisons(one), tmp_path / "one.zarr").attrs["warnings"]


def test_hidden_files_that_desktops_leave_are_no_damage(tmp_path):
    """A file manager leaves .DS_Store in every folder that is looked at: what was written is what it was."""
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=300)
    theirs = zarr.create_array(tmp_path / "theirs.zarr", shape=(300, 8), chunks=(100, 8), dtype="f4")
    theirs[:] = 1.0
    store.write(np.random.default_rng(0).standard_normal((300, 8)), layer="fc")
    before = [dsvcca.open_store(path).representations[0].fingerprint for path in (store.path, tmp_path / "theirs.zarr")]
    for folder in [path for path in tmp_path.rglob("*") if path.is_dir()]:
        (folder / ".DS_Store").write_bytes(b"what a desktop knows of this folder")
        (folder / ".Trashes").mkdir()
        (folder / ".Trashes" / "thrown away").write_bytes(b"by somebody")
    found = [dsvcca.open_store(path) for path in (store.path, tmp_path / "theirs.zarr")]
    assert all(each.verify().empty for each in found)
    assert [each.representations[0].fingerprint for each in found] == before


def test_reading_damage_is_an_error_that_names_it(store, x):
    store.write(x, layer="fc")
    chunk = Path(store.representations[0].array, "c.0.0")
    good = chunk.read_bytes()
    chunk.unlink()
    with pytest.raises(DsvccaError, match=r"layer='fc': chunk '.*c.0.0' is missing"):
        whole(store, layer="fc")
    chunk.write_bytes(good[:40] + b"\x00" + good[41:])
    with pytest.raises(DsvccaError, match="is damaged, its checksum does not hold"):
        whole(store, layer="fc")


def test_a_damaged_record_is_an_error(store, x):
    store.write(x, layer="fc")
    record = Path(store.path, "layer=fc", "zarr.json")
    text = json.loads(record.read_text())
    del text["attributes"]["dsvcca"]["shape"]
    record.write_text(json.dumps(text))
    with pytest.raises(DsvccaError, match="the record .* was changed after it was written"):
        _ = dsvcca.open_store(store.path).index
    text["attributes"]["dsvcca"] = signed(text["attributes"]["dsvcca"])
    record.write_text(json.dumps(text))
    with pytest.raises(DsvccaError, match="the record .* is damaged"):
        _ = dsvcca.open_store(store.path).index


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_arrays_of_others_open_with_labels_from_their_paths(tmp_path, x, zarr_format):
    group = zarr.create_group(tmp_path / "g.zarr", zarr_format=zarr_format)
    group.create_array("seed=0/step=10/fc", data=x)
    group.create_array("seed=1/step=10/fc", data=x + 1)
    group.create_array("seed=1/step=10/lr", data=np.ones(1))
    store = dsvcca.open_store(tmp_path / "g.zarr")
    assert store.index[["seed", "step", "layer"]].values.tolist() == [[0, 10, "fc"], [1, 10, "fc"]]
    assert np.array_equal(whole(store, seed=1), x + 1)
    with pytest.raises(DsvccaError, match="was written by others and is only read"):
        store.write(x, layer="new")


def test_arrays_of_others_take_labels_and_dims_as_given(tmp_path):
    values = np.random.default_rng(0).standard_normal((100, 4, 3, 3)).astype("f4")
    group = zarr.create_group(tmp_path / "g.zarr")
    group.create_array("m1/100/conv", data=values, chunks=(40, 2, 3, 3))
    path = tmp_path / "g.zarr"
    with pytest.raises(DsvccaError, match="has 4 axes .* pass dims="):
        dsvcca.open_store(path)
    store = dsvcca.open_store(path, labels="{model}/{step}/{layer}", dims="nchw")
    assert store.representations[0].labels == {"model": "m1", "step": 100, "layer": "conv"}
    assert np.array_equal(whole(store, layer="conv"), values.transpose(0, 2, 3, 1))
    assert (
        dsvcca.open_store(path, labels={"m1/100/conv": {"layer": "c"}}, dims={"m1/100/conv": "nchw"}).index.layer[0]
        == "c"
    )
    assert dsvcca.open_store(path, labels=lambda p: {"layer": p.upper()}, dims="nchw").index.layer[0] == "M1/100/CONV"
    with pytest.raises(DsvccaError, match="does not fit the array"):
        dsvcca.open_store(path, labels="{model}-{layer}", dims="nchw")
    with pytest.raises(DsvccaError, match="says nothing about the array"):
        dsvcca.open_store(path, labels={}, dims="nchw")


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (("1", "2"), (1, 2)),
        (("1", "2.5"), (1.0, 2.5)),
        (("1", "1e-3"), (1.0, 0.001)),
        (("1", "a"), ("1", "a")),
        (("1_1", "11"), ("1_1", "11")),
        (("00", "0"), ("00", "0")),
        (("1.0", "1.00"), ("1.0", "1.00")),
        (("nan", "1"), ("nan", "1")),
        (("-3", "4"), (-3, 4)),
    ],
)
def test_one_label_of_others_has_one_type_and_no_two_texts_become_one(tmp_path, x, texts, values):
    group = zarr.create_group(tmp_path / "g.zarr")
    for text in texts:
        group.create_array(f"lr={text}/0", data=x)
    found = dsvcca.open_store(tmp_path / "g.zarr").representations
    by_path = {one.name: one.labels for one in found}
    for text, value in zip(texts, values, strict=True):
        assert by_path[f"lr={text}/0"] == {"lr": value, "layer": "0"}
        assert type(by_path[f"lr={text}/0"]["lr"]) is type(value)


def test_axes_of_others_may_differ_from_layer_to_layer(tmp_path, x):
    maps = np.random.default_rng(0).standard_normal((len(x), 4, 3, 3))
    group = zarr.create_group(tmp_path / "g.zarr")
    for model in ("a", "b"):
        group.create_array(f"model={model}/conv", data=maps)
        group.create_array(f"model={model}/lstm", data=maps[:, 0])
        group.create_array(f"model={model}/fc10", data=x)
        group.create_array(f"model={model}/fc9", data=x)
    path = tmp_path / "g.zarr"
    store = dsvcca.open_store(path, dims={"conv": "nchw", "lstm": "ntd"})
    assert {r.labels["layer"]: r.dims[-1] for r in store.representations}["conv"] == "width"
    assert [r.labels["layer"] for r in store.select(model="a").representations] == ["conv", "fc9", "fc10", "lstm"]
    with pytest.raises(
        DsvccaError, match=r"lstm' has 3 axes .* names 4: name every axis, 'ntd' .* where layers differ"
    ):
        dsvcca.open_store(path, dims="nchw")
    with pytest.raises(
        DsvccaError, match="dims= names 'cnov', which is neither a path nor a layer: did you mean 'conv'"
    ):
        dsvcca.open_store(path, dims={"cnov": "nchw", "conv": "nchw", "lstm": "ntd"})


def test_arrays_of_others_that_changed_since_they_were_opened_are_refused(tmp_path, x):
    group = zarr.create_group(tmp_path / "g.zarr")
    for name in ("a", "b"):
        group.create_array(name, data=x)
    plan = dsvcca.plan_comparisons(dsvcca.open_store(tmp_path / "g.zarr"))
    time.sleep(0.01)
    group["b"][:] = 2 * x
    with pytest.raises(DsvccaError, match=r"layer='b': the files of .* have changed since it was opened"):
        dsvcca.compare(plan, tmp_path / "r.zarr")


def test_other_axes_of_the_same_array_are_another_representation(tmp_path):
    zarr.create_group(tmp_path / "g.zarr").create_array("a", data=np.random.default_rng(0).random((9, 5, 6, 6)))
    one, other = (dsvcca.open_store(tmp_path / "g.zarr", dims=d).representations[0] for d in ("nchw", "nwhc"))
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_axes_that_xarray_named_are_those_of_the_array(tmp_path, x, zarr_format):
    named = xr.Dataset({"fc": (("neuron", "datapoint"), x.T), "other": (("feature", "sample"), x.T)})
    named[["fc"]].to_zarr(tmp_path / "g.zarr", zarr_format=zarr_format, consolidated=False)
    assert np.array_equal(dsvcca.open_store(tmp_path / "g.zarr").read(layer="fc"), x)
    named[["other"]].to_zarr(tmp_path / "h.zarr", zarr_format=zarr_format, consolidated=False)
    with pytest.raises(DsvccaError, match=r"calls its axes \('feature', 'sample'\): say with dims="):
        dsvcca.open_store(tmp_path / "h.zarr")


def test_encoded_numbers_are_refused(tmp_path, x):
    array = zarr.create_group(tmp_path / "g.zarr").create_array("fc", data=(x * 100).astype(np.int16))
    array.update_attributes({"scale_factor": 0.01})
    with pytest.raises(DsvccaError, match=r"'fc' holds encoded numbers \(scale_factor=0.01\): decode them"):
        dsvcca.open_store(tmp_path / "g.zarr")
    array = zarr.create_group(tmp_path / "h.zarr").create_array("fc", data=(x * 100).astype(np.int16))
    array.update_attributes({"_FillValue": -32768})
    with pytest.raises(DsvccaError, match=r"-32768 for missing numbers"):
        dsvcca.open_store(tmp_path / "h.zarr")


def test_chunks_never_written_within_a_shard_are_found(tmp_path, x):
    group = zarr.create_group(tmp_path / "g.zarr")
    array = group.create_array("fc", shape=x.shape, dtype=x.dtype, chunks=(10, x.shape[1]), shards=(50, x.shape[1]))
    array[:40] = x[:40]
    array[50:] = x[50:]
    with pytest.raises(DsvccaError, match=r"the chunk at \(40, 0\) of .* holds nothing but the fill value 0"):
        dsvcca.open_store(tmp_path / "g.zarr").read(layer="fc")


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f2"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_any_order_of_bytes_is_read(tmp_path, x, dtype, zarr_format):
    group = zarr.create_group(tmp_path / "g.zarr", zarr_format=zarr_format)
    group.create_array("fc", data=x.astype(dtype))
    store = dsvcca.open_store(tmp_path / "g.zarr")
    assert np.array_equal(store.read(layer="fc"), x.astype(dtype))
    assert np.isfinite(dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr").svcca.values).all()


def test_masked_arrays_are_refused(store, x):
    with pytest.raises(DsvccaError, match="a masked array: write the rows of which every number is there"):
        store.write(np.ma.masked_less(x, 0), layer="fc")


def test_a_version_after_the_newest_is_the_newest(store, x):
    store.write(x, layer="fc")
    store.write(x + 1, layer="fc", if_exists="replace")
    shutil.rmtree(Path(store.path, "layer=fc"))
    store.write(x + 2, layer="fc", if_exists="replace")
    assert np.array_equal(store.read(layer="fc"), x + 2)


def test_a_folder_without_a_record_is_nothing_and_is_reported(store, x):
    Path(store.path, "layer=fc").mkdir()
    assert store.write(x, layer="fc", if_exists="skip")
    assert np.array_equal(store.read(layer="fc"), x)
    assert store.verify().values.tolist() == [
        ["layer=fc", "", "is no committed representation: its record is gone, or it is something else"]
    ]


def test_a_copied_or_edited_record_is_an_error(store, x):
    store.write(x, layer="fc")
    folder = Path(store.path, "layer=fc")
    shutil.copytree(folder, Path(store.path, "layer=fc copy"))
    with pytest.raises(DsvccaError, match=r"record .*layer=fc copy.* is damaged .*belongs in a folder 'layer=fc'"):
        _ = dsvcca.open_store(store.path).index
    shutil.rmtree(Path(store.path, "layer=fc copy"))
    record = folder / "zarr.json"
    record.write_text(record.read_text().replace(x.dtype.name, "int64"))
    with pytest.raises(DsvccaError, match="was changed after it was written: restore it"):
        _ = dsvcca.open_store(store.path).index


def test_damaged_ids_are_an_error(tmp_path, x):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=range(len(x)))
    (tmp_path / "s.zarr" / "datapoints" / "c.0").unlink()
    with pytest.raises(DsvccaError, match="datapoint ids .* are not those that were written: restore them"):
        store.write(x, layer="fc", datapoints=np.zeros(len(x), dtype=int))
    assert "are not those that were written" in store.verify().problem[0]


def test_a_living_writer_elsewhere_is_not_swept(store, x):
    staging = Path(store.path, ".uncommitted", "0123456789abcdef-4194300-aa")
    staging.mkdir(parents=True)
    store.write(x, layer="fc")
    assert staging.exists()


@pytest.mark.parametrize(
    ("labels", "message"),
    [({"lr": float("inf")}, "label lr is inf"), ({"tag": "\ud800"}, "is no text that can be written")],
)
def test_labels_that_cannot_be_written_are_refused(store, x, labels, message):
    with pytest.raises(DsvccaError, match=message):
        store.write(x, layer="fc", **labels)


def test_zero_has_no_sign_and_long_names_are_cut(store, x):
    store.write(x, layer="fc", lr=0.0)
    with pytest.raises(DsvccaError, match="already"):
        store.write(x, layer="fc", lr=-0.0)
    store.write(x, layer="fc", **{"ß" * 100: 1})
    assert len(store.representations) == 2
    with pytest.raises(DsvccaError, match="is longer than 200 bytes"):
        store.write(x, layer="fc", **{"ß" * 101: 1})


def test_results_within_the_store_do_not_hurt_it(store, x):
    store.write(x, layer="fc")
    dsvcca.compare(dsvcca.plan_comparisons(store), Path(store.path, "results.zarr"))
    assert len(dsvcca.open_store(store.path).representations) == 1


def test_labels_of_two_types_are_refused_when_planned(tmp_path, x):
    one, other = (dsvcca.create_store(tmp_path / name, datapoints=len(x)) for name in ("a.zarr", "b.zarr"))
    one.write(x, layer="fc", seed=1)
    other.write(x, layer="fc", seed=2.5)
    shutil.copytree(tmp_path / "b.zarr" / "seed=2.5,layer=fc", tmp_path / "a.zarr" / "seed=2.5,layer=fc")
    with pytest.raises(DsvccaError, match=r"label seed=2.5 is float, but another representation of .* has seed=1"):
        dsvcca.plan_comparisons(one)


def test_one_representation_is_read_back(store, x):
    store.write(x, layer="fc", seed=0)
    store.write(x + 1, layer="fc", seed=1)
    assert np.array_equal(store.read(seed=1), x + 1)
    with pytest.raises(
        DsvccaError, match=r"2 representations have layer='fc', the first is seed=0, layer='fc': say more"
    ):
        store.read(layer="fc")


def test_bfloat16_tensors_are_stored_exactly(store):
    torch = pytest.importorskip("torch")
    tensor = torch.randn(store.datapoints, 5).to(torch.bfloat16)
    store.write(tensor, layer="fc")
    assert np.array_equal(store.read(layer="fc"), tensor.float().numpy())


def test_labels_given_for_arrays_of_others_are_checked(tmp_path, x):
    group = zarr.create_group(tmp_path / "g.zarr")
    for name in ("a", "b"):
        group.create_array(name, data=x)
    with pytest.raises(DsvccaError, match=r"'a' and 'b' have the same labels \(layer='l'\)"):
        dsvcca.open_store(tmp_path / "g.zarr", labels=lambda path: {"layer": "l"})
    with pytest.raises(DsvccaError, match="label seed='1' is str, but another array"):
        dsvcca.open_store(
            tmp_path / "g.zarr", labels={"a": {"layer": "l", "seed": 0}, "b": {"layer": "l", "seed": "1"}}
        )
    with pytest.raises(DsvccaError, match="needs a label 'layer', found seed='a'"):
        dsvcca.open_store(tmp_path / "g.zarr", labels=lambda path: {"seed": path})


def test_a_missing_chunk_of_others_is_an_error_not_zeros(tmp_path, x):
    zarr.create_group(tmp_path / "g.zarr").create_array("fc", data=x, chunks=(50, 5))
    (tmp_path / "g.zarr" / "fc" / "c" / "1" / "0").unlink()
    with pytest.raises(DsvccaError, match="write_empty_chunks=True"):
        whole(dsvcca.open_store(tmp_path / "g.zarr"), layer="fc")


def test_a_single_array_of_others_opens(tmp_path, x):
    zarr.create_array(tmp_path / "fc1.zarr", data=x)
    assert np.array_equal(whole(dsvcca.open_store(tmp_path / "fc1.zarr"), layer="fc1"), x)


def test_what_is_no_store_says_so(tmp_path, store):
    with pytest.raises(DsvccaError, match="there is no store at"):
        dsvcca.open_store(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("hello")
    with pytest.raises(DsvccaError, match="is not a store"):
        dsvcca.open_store(tmp_path / "folder")
    with pytest.raises(DsvccaError, match="is not a store"):
        dsvcca.create_store(tmp_path / "folder", datapoints=3)
    zarr.create_group(tmp_path / "empty.zarr")
    with pytest.raises(DsvccaError, match="holds no array of two or more axes"):
        dsvcca.open_store(tmp_path / "empty.zarr")
    with pytest.raises(DsvccaError, match="knows its labels and dims"):
        dsvcca.open_store(store.path, dims="nhwc")
    with pytest.raises(DsvccaError, match="cannot be reached"):
        dsvcca.open_store("s3://bucket/store")
    with pytest.raises(DsvccaError, match="lies below a file"):
        dsvcca.create_store(tmp_path / "folder" / "a.txt" / "new", datapoints=3)
    with pytest.raises(DsvccaError, match="at least 2 datapoints"):
        dsvcca.create_store(tmp_path / "new", datapoints=1)


def test_no_disk_space_is_an_error_and_leaves_nothing_behind(store, x):
    code = f"""
        import resource, numpy as np, dsvcca
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
        store = dsvcca.open_store({store.path!r})
        try:
            store.write(np.ones((100, 500)), layer="fc")
        except dsvcca.DsvccaError as error:
            print(error)
    """
    said = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True)
    assert "no space left to write" in said.stdout
    assert sorted(os.listdir(store.path)) == ["zarr.json"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_an_error(store, x):
    os.chmod(store.path, 0o500)
    with pytest.raises(DsvccaError, match="may not be written"):
        store.write(x, layer="fc")


def test_ten_thousand_records_open_within_seconds_and_are_read_once(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=2)
    store.write(np.eye(2), layer="l", seed=0)
    record = json.loads((tmp_path / "s.zarr" / "seed=0,layer=l" / "zarr.json").read_text())
    for seed in range(1, 2000):
        record["attributes"]["dsvcca"]["labels"]["seed"] = seed
        record["attributes"]["dsvcca"] = signed(record["attributes"]["dsvcca"])
        folder = tmp_path / "s.zarr" / f"seed={seed},layer=l"
        folder.mkdir()
        (folder / "zarr.json").write_text(json.dumps(record))
    assert len(dsvcca.open_store(tmp_path / "s.zarr").index) == 2000


@pytest.mark.parametrize(
    ("dims", "shape", "chunks", "shards"),
    [
        ("nhwc", (60, 4, 5, 6), (7, 4, 5, 2), None),
        ("nhwc", (60, 4, 5, 6), (60, 1, 2, 6), None),
        ("nchw", (60, 6, 4, 5), (13, 1, 4, 5), None),
        ("nchw", (60, 6, 4, 5), (10, 3, 2, 5), (20, 6, 4, 5)),
        ("tnd", (4, 60, 6), (1, 60, 2), None),
    ],
)
def test_arrays_of_others_are_read_right_however_they_are_chunked(tmp_path, dims, shape, chunks, shards):
    x = np.random.default_rng(0).standard_normal(shape)
    group = zarr.create_group(tmp_path / "g.zarr")
    group.create_array("a", data=x, chunks=chunks, shards=shards)
    store = dsvcca.open_store(tmp_path / "g.zarr", dims=dims)
    order = {"nhwc": (0, 1, 2, 3), "nchw": (0, 2, 3, 1), "tnd": (1, 0, 2)}[dims]
    np.testing.assert_array_equal(store.read(), x.transpose(order))


def test_chunks_that_hold_all_datapoints_are_refused_with_the_line_that_cuts_them(tmp_path):
    group = zarr.create_group(tmp_path / "g.zarr")
    x = np.random.default_rng(0).standard_normal((400, 150, 300)).astype(np.float32)
    group.create_array("maps", data=x, chunks=(400, 150, 300))
    store = dsvcca.open_store(tmp_path / "g.zarr", dims="ntd")
    with pytest.raises(DsvccaError, match=r"cut it along datapoints once, now 68.66 MiB have to be read") as caught:
        dsvcca.plan_comparisons(store, view="mean", memory="560 MiB")
    command = str(caught.value).split("\n")[1].strip()
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    cut = dsvcca.open_store(tmp_path / "g.zarr" / "maps-by-datapoint.zarr", dims="ntd")
    np.testing.assert_array_equal(cut.read(), x)
    dsvcca.plan_comparisons(cut, view="mean", memory="560 MiB")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files have no names here")
def test_every_file_and_folder_of_what_is_sealed_reaches_the_disk(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    (folder / "b" / "c").mkdir(parents=True)
    for name in ("zarr.json", "b/zarr.json", "b/c/0.0"):
        (folder / name).write_bytes(b"12345678")
    synced, sync = set(), os.fsync

    def recorded(descriptor):
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    assert list(chunked.seal(folder)) == ["b/c/0.0"]
    assert synced == {str(path) for path in (folder, *folder.rglob("*"))}


def test_a_replacement_keeps_its_place(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=600)
    for layer in ("fc1", "fc2", "fc3"):
        store.write(activations(0), layer=layer)
    for turn in (1, 2):
        store.write(activations(turn), layer="fc1", if_exists="replace")
    assert [r.labels["layer"] for r in dsvcca.open_store(store.path).representations] == ["fc1", "fc2", "fc3"]
    np.testing.assert_array_equal(store.read(layer="fc1"), activations(2))


def test_axes_of_space_are_read_in_one_order_whatever_order_they_were_written_in(tmp_path):
    x = np.random.default_rng(0).standard_normal((400, 4, 4, 3))
    turned = np.ascontiguousarray(x.transpose(0, 2, 1, 3))
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=400)
    store.write(x, layer="a", dims="nhwc")
    store.write(turned, layer="b", dims="nwhc")
    store.write(turned, layer="c", dims=("datapoint", "width", "height", "channel"))
    np.testing.assert_array_equal(store.read(layer="b"), x)
    found = dsvcca.compare(dsvcca.plan_comparisons(store, variance=0.9), tmp_path / "r.zarr")
    np.testing.assert_allclose(found.svcca.values, 1, atol=1e-6)
    theirs = zarr.create_group(tmp_path / "g.zarr")
    theirs.create_array("d", data=turned, chunks=(100, 4, 4, 3))
    theirs.create_array("e", data=x, chunks=(100, 4, 4, 3))
    opened = dsvcca.open_store(tmp_path / "g.zarr", dims={"d": "nwhc", "e": "nhwc"})
    np.testing.assert_array_equal(opened.read(layer="d"), opened.read(layer="e"))
    own = {"d": ("datapoint", "lat", "lon", "channel"), "e": ("datapoint", "lon", "lat", "channel")}
    with pytest.raises(
        DsvccaError, match=r"has the axes \('lat', 'lon'\) and .* has \('lon', 'lat'\): name them height"
    ):
        dsvcca.plan_comparisons(dsvcca.open_store(tmp_path / "g.zarr", dims=own))


def test_one_axis_is_refused_in_words_that_fit(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=600)
    with pytest.raises(DsvccaError, match=r"has the shape \(600,\): give \(datapoint, neuron\), one neuron as x"):
        store.write(np.zeros(600), layer="a")


def test_a_file_url_with_two_slashes_is_not_taken_for_a_folder_here():
    with pytest.raises(DsvccaError, match="store 'file://tmp/x' names no folder of this machine: write file:///"):
        dsvcca.open_store("file://tmp/x")


def test_verifying_finds_datapoint_ids_that_are_gone_or_those_of_another_store(tmp_path):
    stores = []
    for name, first in (("a", 0), ("b", 100)):
        store = dsvcca.create_store(tmp_path / f"{name}.zarr", datapoints=[*range(first, first + 50)])
        store.write(np.random.default_rng(0).standard_normal((50, 3)), layer="fc", datapoints=range(first, first + 50))
        stores.append(store)
    assert stores[0].verify().empty
    ids = tmp_path / "a.zarr" / "datapoints"
    shutil.rmtree(ids)
    assert "has lost its ids" in stores[0].verify().problem.item()
    shutil.copytree(tmp_path / "b.zarr" / "datapoints", ids)
    assert "the ids of the store are others" in stores[0].verify().problem.item()


def test_only_names_that_a_writer_gives_are_versions():
    names = ("layer=a", "layer=a@2", "layer=a@10", "layer=a@1", "layer=a@03", "layer=a@x", "layer=a@\u0664")
    found = [version_of(name) for name in names]
    assert found[:3] == [("layer=a", 1), ("layer=a", 2), ("layer=a", 10)]
    assert found[3:] == [(name, 1) for name in names[3:]]
