"""Import: activations of other tools become representations, number by number; what cannot be right is refused."""

from __future__ import annotations

import _thread
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import zarr
from typer.testing import CliRunner

import dsvcca
from dsvcca.activations.paths import fit
from dsvcca.activations.representations import read_mask
from dsvcca.cli import app
from dsvcca.importing import finding, into_store, kinds, rows
from dsvcca.importing.finding import find_arrays, pieces_of

h5py = pytest.importorskip("h5py")
pa = pytest.importorskip("pyarrow")
ml_dtypes = pytest.importorskip("ml_dtypes")
save_file = pytest.importorskip("safetensors.numpy").save_file

import pyarrow.parquet as pq  # noqa: E402

N = 20
X = np.random.default_rng(0).standard_normal((N, 5)).astype("float32")
MAPS = np.random.default_rng(1).standard_normal((N, 3, 4, 2)).astype("float32")
TOKENS = np.random.default_rng(2).standard_normal((N, 6, 4)).astype("float32")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "acts").mkdir()
    return tmp_path / "acts"


@pytest.fixture
def store(tmp_path):
    return tmp_path / "s.zarr"


def imported(source, store, **options):
    """Return the one representation that an import wrote."""
    dsvcca.import_activations(source, store, **options)
    [found] = dsvcca.open_store(store).representations
    return dsvcca.open_store(store).read(**found.labels)


def write_hdf5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=7)


def lists(x):
    return pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])


WRITERS = {
    "x.npy": lambda path, x: np.save(path, x),
    "x.npz": lambda path, x: np.savez(path, acts=x),
    "y.npz": lambda path, x: np.savez_compressed(path, acts=x),
    "x.h5": lambda path, x: write_hdf5(path, acts=x),
    "x.safetensors": lambda path, x: save_file({"acts": np.ascontiguousarray(x)}, path),
    "x.parquet": lambda path, x: write_parquet(path, acts=lists(np.ascontiguousarray(x))),
    "y.pq": lambda path, x: write_parquet(path, **{f"n{i}": x[:, i] for i in range(x.shape[1])}),
    "z.parquet": lambda path, x: write_parquet(path, acts=pa.array(x.tolist(), pa.list_(pa.float32()))),
    "x.mat": lambda path, x: scipy.io.savemat(path, {"acts": x}),
    "x.txt": lambda path, x: np.savetxt(path, x),
}
"""Every format, by the name of a file."""


# The numbers


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_numbers_that_were_saved(folder, store, name):
    WRITERS[name](folder / name, X)
    assert np.array_equal(imported(folder, store), X)


@pytest.mark.parametrize("name", WRITERS)
def test_pieces_are_of_bounded_bytes_and_together_the_array(folder, monkeypatch, name):
    for module in (finding, rows, kinds):
        monkeypatch.setattr(module, "PIECE", 3 * X[:1].nbytes, raising=False)
    WRITERS[name](folder / name, X)
    [array] = find_arrays(folder / name, ())[0].values()
    found = list(pieces_of(array, 0, {}))
    assert len(found) == 7 if array.dtype == "float32" else len(found) > 7
    assert max(piece.nbytes for piece in found) <= 3 * X[:1].nbytes
    assert np.array_equal(np.concatenate(found), X)


@pytest.mark.parametrize("group", [500, 10_000])
def test_of_parquet_no_more_than_some_pages_are_held(folder, monkeypatch, group):
    x = np.random.default_rng(0).standard_normal((10_000, 50)).astype("float32")
    table = pa.table({"acts": lists(x)})
    options = {"compression": "none", "use_dictionary": False, "data_page_size": 50_000}
    pq.write_table(table, folder / "x.parquet", row_group_size=group, **options)
    [array] = find_arrays(folder / "x.parquet", ())[0].values()
    monkeypatch.setattr(rows, "PIECE", 100_000)
    monkeypatch.setattr(finding, "PIECE", 100_000)
    tracemalloc.start()
    sums = [piece.sum(axis=0) for piece in pieces_of(array, 0, {})]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.allclose(np.sum(sums, axis=0), x.sum(axis=0), atol=0.1)
    assert peak < x.nbytes / 3


@pytest.mark.parametrize("name", [name for name in WRITERS if not name.endswith((".parquet", ".pq", ".txt"))])
@pytest.mark.parametrize(
    ("dims", "axes"), [("nchw", (0, 3, 1, 2)), (("width", "datapoint", "channel", "height"), None)]
)
def test_axes_may_come_in_any_order(folder, store, name, dims, axes):
    WRITERS[name](folder / name, MAPS.transpose(axes or (2, 0, 3, 1)))
    assert np.array_equal(imported(folder, store, dims=dims), MAPS)


@pytest.mark.parametrize("name", WRITERS)
def test_neurons_may_come_first(folder, store, name):
    WRITERS[name](folder / name, np.ascontiguousarray(X.T))
    assert np.array_equal(imported(folder, store, dims="dn"), X)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dims", ["ntd", "tnd"])
def test_fortran_order_in_a_zip_file_is_read_in_runs_where_datapoints_lead_it(folder, store, save, dims, monkeypatch):
    monkeypatch.setattr(finding, "PIECE", 1)
    values = TOKENS if dims == "ntd" else TOKENS.transpose(1, 0, 2)
    save(folder / "a.npz", x=np.asfortranarray(values))
    assert np.array_equal(imported(folder, store, dims=dims), TOKENS)
    leads = np.asfortranarray(X.T)  # datapoints are the last axis and vary slowest
    save(folder / "b.npz", x=leads)
    [array] = find_arrays(folder / "b.npz", ())[0].values()
    pieces = list(pieces_of(array, 1, {}))
    assert len(pieces) == N
    assert np.array_equal(np.concatenate(pieces, axis=1), leads)


@pytest.mark.parametrize("dtype", [">f4", "<f2", ">f8", "i1", ">i8", "u2", "?"])
@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.h5"])
def test_types_and_byte_orders_are_kept_or_made_this_machines(folder, store, dtype, name):
    x = (X * 10).astype(dtype)
    WRITERS[name](folder / name, x)
    found = imported(folder, store)
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(found, x)


def test_bfloat16_of_safetensors_keeps_its_rounding(folder, store):
    x = X.astype(ml_dtypes.bfloat16)
    save_file({"acts": x, "other": X}, folder / "x.safetensors")
    dsvcca.import_activations(folder, store)
    found = dsvcca.open_store(store)
    [one] = found.select(layer="x/acts").representations
    assert one.bits == 8
    assert np.array_equal(found.read(layer="x/acts"), x.astype("float32"))
    assert np.array_equal(found.read(layer="x/other"), X)


def test_arrays_of_ml_dtypes_are_written_as_what_they_were(store):
    made = dsvcca.create_store(store, datapoints=N)
    made.write(X.astype(ml_dtypes.bfloat16), layer="a")
    assert made.representations[0].written_as == "bfloat16"


def test_arrays_of_jax_are_written_as_numpy_gives_them(store):
    jnp = pytest.importorskip("jax.numpy")
    made = dsvcca.create_store(store, datapoints=N)
    made.write(np.asarray(jnp.asarray(X)), layer="a")
    made.write(jnp.asarray(X).astype(jnp.bfloat16), layer="b")
    assert np.array_equal(made.read(layer="a"), X)
    assert np.array_equal(made.read(layer="b"), X.astype(ml_dtypes.bfloat16).astype("float32"))


def test_axes_that_hdf5_names_need_no_dims(folder, store):
    with h5py.File(folder / "x.h5", "w") as file:
        one = file.create_dataset("acts", data=TOKENS.transpose(1, 0, 2), chunks=(2, 3, 4), compression="gzip")
        for axis, name in zip(one.dims, ("position", "datapoint", "neuron"), strict=True):
            axis.label = name
    assert np.array_equal(imported(folder, store), TOKENS)


def named_by_scales(path, x, names):
    with h5py.File(path, "w") as file:
        one = file.create_dataset("acts", data=x)
        for place, (name, count) in enumerate(zip(names, x.shape, strict=True)):
            file[name] = np.arange(count)
            file[name].make_scale("This is a netCDF dimension" if place else name)
            one.dims[place].attach_scale(file[name])


@pytest.mark.parametrize("names", [("neuron", "datapoint"), ("channel", "datapoint")])
def test_axes_that_are_named_by_scales_need_no_dims(folder, store, names):
    named_by_scales(folder / "x.h5", X.T, names)
    assert np.array_equal(imported(folder, store), X)


def test_scales_that_name_no_axis_say_nothing_and_those_that_name_one_must_name_both(folder, store):
    named_by_scales(folder / "x.h5", X, ("image", "unit"))
    assert np.array_equal(imported(folder, store), X)
    named_by_scales(folder / "x.h5", X, ("neuron", "image"))
    refused(folder, store.with_name("t.zarr"), r"calls its axes \('neuron', 'image'\): say with dims=")


def test_datasets_that_matlab_wrote_are_refused_under_any_name(folder, store):
    write_hdf5(folder / "a.h5", x=X)
    with h5py.File(folder / "a.h5", "a") as file:
        file["x"].attrs["MATLAB_class"] = np.bytes_("single")
    refused(folder, store, "MATLAB 7.3 wrote it, with its axes reversed")


def test_bfloat16_of_hdf5_is_read(folder, store):
    kind = h5py.h5t.IEEE_F32LE.copy()  # a float of 16 bits, of which 8 are exponent
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    x = X.astype(ml_dtypes.bfloat16).astype("float32")
    with h5py.File(folder / "a.h5", "w") as file:
        one = h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple(x.shape))
        one.write(h5py.h5s.ALL, h5py.h5s.ALL, x)
    assert np.array_equal(imported(folder, store), x)


def test_pieces_of_compressed_hdf5_are_whole_chunks(folder, monkeypatch):
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("x", data=X, chunks=(4, 5), compression="gzip")
        file.create_dataset("y", data=X, chunks=(N, 1), compression="gzip")
    found = find_arrays(folder / "a.h5", ())[0]
    for piece, whole, name, lengths in (
        (11, 20, "x", [8, 8, 4]),
        (3, 20, "x", [4] * 5),
        (3, 20, "y", [20]),
        (3, 15, "y", [15, 5]),
    ):
        monkeypatch.setattr(finding, "PIECE", piece * X[:1].nbytes)
        monkeypatch.setattr(finding, "WHOLE", whole * X[:1].nbytes)
        pieces = list(pieces_of(found[name], 0, {}))
        assert [len(one) for one in pieces] == lengths
        assert np.array_equal(np.concatenate(pieces), X)


# Labels, layers, parts, masks


def test_labels_come_from_paths_by_the_pattern_and_from_constants(folder, store):
    for seed in (0, 1):
        (folder / f"seed{seed}").mkdir()
        np.savez(folder / f"seed{seed}" / "step10.npz", **{"block.0": X + seed, "block.1": 2 * X})
    labels = "seed{seed}/step{step}/{layer}"
    table = dsvcca.import_activations(folder, store, labels=labels, model="mlp", dry_run=True)
    assert not store.exists()
    assert table[["model", "seed", "step", "layer"]].values.tolist() == [
        ["mlp", seed, 10, f"block.{i}"] for seed in (0, 1) for i in (0, 1)
    ]
    assert table.outcome.tolist() == ["write"] * 4
    assert table.bytes.sum() == 4 * X.nbytes
    assert dsvcca.import_activations(folder, store, labels=labels, model="mlp").equals(table)
    assert np.array_equal(dsvcca.open_store(store).read(seed=1, layer="block.0"), X + 1)


def test_a_layer_that_is_given_takes_the_place_of_the_path(folder, store):
    np.save(folder / "features.npy", X)
    dsvcca.import_activations(folder / "features.npy", store, layer="conv1", seed=3)
    assert dsvcca.open_store(store).representations[0].labels == {"seed": 3, "layer": "conv1"}


def test_an_axis_of_layers_becomes_a_representation_each(folder, store):
    hidden = np.stack([TOKENS, TOKENS + 1, TOKENS + 2])
    np.savez_compressed(folder / "a.npz", hidden_states=hidden)
    np.save(folder / "b.npy", hidden.transpose(1, 0, 2, 3))
    dims = {"a/hidden_states": "lntd", "b": ("datapoint", "layer", "position", "neuron")}
    dsvcca.import_activations(folder, store, dims=dims)
    found = dsvcca.open_store(store)
    for place in range(3):
        assert np.array_equal(found.read(layer=f"a/hidden_states.{place}"), hidden[place])
        assert np.array_equal(found.read(layer=f"b.{place}"), hidden[place])


def test_batches_are_joined_in_the_order_of_their_parts(folder, store):
    (folder / "conv1").mkdir()
    for start, stop in ((0, 3), (3, 11), (11, 20)):
        np.save(folder / "conv1" / f"features_{start}-{stop}.npy", X[start:stop])
    table = dsvcca.import_activations(folder, store, labels="{layer}/features_{part}")
    assert table.part.tolist() == ["0-3", "3-11", "11-20"]
    assert np.array_equal(dsvcca.open_store(store).read(layer="conv1"), X)


@pytest.mark.parametrize("places", [[-2, -1, 10], [0.25, 0.5, 0.75], ["b2", "b10", "c1"]])
def test_parts_are_joined_as_numbers_are_counted(folder, store, places):
    order = {}
    for i, some in enumerate((slice(3, 11), slice(11, 20), slice(0, 3))):
        np.save(folder / f"{i}.npy", X[some])
        order[str(i)] = {"layer": "x", "part": places[(i + 1) % 3]}
    table = dsvcca.import_activations(folder, store, labels=order)
    assert table.part.tolist() == places
    assert np.array_equal(dsvcca.open_store(store).read(layer="x"), X)


def test_text_may_be_separated_by_commas(folder, store):
    np.savetxt(folder / "x.txt", X, delimiter=",", header="of someone")
    assert np.array_equal(imported(folder, store, labels="{layer}"), X)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dims", ["nld", "lnd", "ndl", "dln", "ldn", "dnl"])
def test_layers_of_one_array_are_read_without_all_of_it_in_memory(folder, order, dims, monkeypatch):
    sizes = {"n": 400, "l": 20, "d": 30}
    x = np.asarray(np.random.default_rng(0).normal(size=[sizes[axis] for axis in dims]), order=order)
    np.savez(folder / "x.npz", x=x)
    monkeypatch.setattr(finding, "PIECE", 20_000)
    [array] = find_arrays(folder / "x.npz", ())[0].values()
    along, among = dims.index("n"), dims.index("l")
    found = []
    tracemalloc.start()
    for piece in pieces_of(array, along, {among: 0}):
        found.append(piece.astype("float32"))
        del piece
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(np.concatenate(found, axis=along - (among < along)), np.take(x, 0, axis=among).astype("f4"))
    outermost = dims if order == "C" else dims[::-1]
    assert peak < x.nbytes / 16 or outermost.index("d") < outermost.index("n")


NUMBERS = "\n".join(";".join(map(str, row)) for row in X.tolist())


@pytest.mark.parametrize(
    "content",
    [
        NUMBERS.encode(),
        b"# some\n" + NUMBERS.replace(".", ",").encode(),
        NUMBERS.replace(";", " ").encode("utf-8-sig"),
        NUMBERS.replace(";", ",").encode("utf-16"),
        NUMBERS.replace(";", "|").encode(),
        b" (1.5e+00+-2.5e+00j)  (1.0e+00+2.0e+00j)\n",
    ],
)
def test_numbers_in_text_that_cannot_be_read_are_refused(folder, store, content):
    (folder / "x.txt").write_bytes(content)
    refused(folder, store, "numbers, but not as numpy.savetxt writes real ones")


@pytest.mark.parametrize("content", ["", "\n\n", "cat.jpg\n", "0_1\n", "10.0.0.1\n", "2024-01-01;5\n", "\0\0", "j"])
def test_text_of_no_numbers_is_passed_over(folder, store, content):
    (folder / "x.txt").write_text(content)
    np.save(folder / "a.npy", X)
    assert dsvcca.import_activations(folder, store).outcome.tolist() == ["write", "pass over"]


def test_what_thingsvision_saves_is_read_by_the_patterns_of_the_docs(folder, store):
    for layer in ("conv1", "fc"):
        (folder / layer).mkdir()
        (folder / layer / "file_names.txt").write_text("cat.jpg\n" * N)
    write_hdf5(folder / "fc" / "features.hdf5", features=X)
    np.savetxt(folder / "conv1" / "features.txt", X)
    dsvcca.import_activations(folder, store, labels="{layer}/features", exclude="fc/*")
    dsvcca.import_activations(folder, store, labels="{layer}/features/features", exclude="conv1/*")
    found = dsvcca.open_store(store)
    assert np.array_equal(found.read(layer="fc"), X)
    assert np.array_equal(found.read(layer="conv1"), X)


@pytest.mark.parametrize(
    ("path", "pattern", "found"),
    [
        ("conv_1_0", "{layer}_{part}", {"layer": "conv_1", "part": "0"}),
        ("3/a_b/conv_1_0.x", "{seed}/{layer}_{part}.x", {"seed": "3", "layer": "a_b/conv_1", "part": "0"}),
        ("bert/encoder/0", "{model}/{layer}", {"model": "bert", "layer": "encoder/0"}),
        ("b_0_fc_1", "b_{part}_{layer}", {"part": "0", "layer": "fc_1"}),
        ("conv__", "{layer}_{part}", {"layer": "conv", "part": "_"}),
    ],
)
def test_a_part_at_the_end_of_a_pattern_is_as_short_as_it_may_be(path, pattern, found):
    assert fit(path, pattern) == found


def test_numbers_may_have_zeros_before_them_where_the_pattern_says_that_they_are_numbers(folder, store, tmp_path):
    for step in (0, 50, 1000):
        np.save(folder / f"step{step:06d}_fc.npy", X + step)
    dsvcca.import_activations(folder, tmp_path / "text.zarr", labels="step{step}_{layer}")
    text = dsvcca.open_store(tmp_path / "text.zarr")
    assert text.index.step.tolist() == ["000000", "000050", "001000"]
    for pairs in ("over_training", "to_last_step"):
        with pytest.raises(
            dsvcca.DsvccaError, match=r"needs steps that are numbers, step='000000', .*\{step:d\}.* reads 0100"
        ):
            dsvcca.plan_comparisons(text, pairs)
    dsvcca.import_activations(folder, store, labels="step{step:d}_{layer}")
    assert dsvcca.open_store(store).index.step.tolist() == [0, 50, 1000]
    with pytest.raises(dsvcca.DsvccaError, match=r"layer of 'step000000_fc' is 'fc', no whole number: write \{layer\}"):
        dsvcca.import_activations(folder, tmp_path / "no.zarr", labels="step{step:d}_{layer:d}")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # an interrupt between open() and its with
def test_an_interrupted_import_says_how_to_go_on(folder, store):
    """The same line alone would be refused: what came first is there by then."""
    for seed in range(120):
        np.save(folder / f"{seed}.npy", X)

    def interrupt():
        end = time.monotonic() + 60
        while not (store.exists() and any(name.startswith("seed=") for name in os.listdir(store))):
            if time.monotonic() > end:
                return
            time.sleep(0.001)
        _thread.interrupt_main()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # libraries set others as they are imported
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt, match="the same line with if_exists='skip' goes on from there"):
            dsvcca.import_activations(folder, store, labels="{seed}", layer="fc")
    finally:
        signal.signal(signal.SIGINT, before)
    assert 0 < len(dsvcca.open_store(store).representations) < 120
    dsvcca.import_activations(folder, store, labels="{seed}", layer="fc", if_exists="skip")
    assert len(dsvcca.open_store(store).representations) == 120


def test_an_import_for_which_there_is_no_room_says_how_to_go_on(folder, store):
    np.save(folder / "a.npy", X)
    np.save(folder / "b.npy", np.ones((N, 50_000), np.float32))
    code = """
        import resource, sys
        from dsvcca.cli import app
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        app(["import", *sys.argv[1:]])
    """
    said = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), folder, store], capture_output=True, text=True, timeout=60
    )
    assert said.returncode == 1
    assert "no space left" in said.stderr
    assert "the same line with --if-exists skip goes on from there" in said.stderr
    assert [r.labels["layer"] for r in dsvcca.open_store(store).representations] == ["a"]


def test_parts_of_layers_with_numbers_in_their_names_stay_with_their_layer(folder, store):
    for layer in (1, 2):
        for part, some in enumerate((slice(0, 11), slice(11, 20))):
            np.save(folder / f"conv_{layer}_{part}.npy", layer * X[some])
    dsvcca.import_activations(folder, store, labels="{layer}_{part}")
    found = dsvcca.open_store(store)
    assert np.array_equal(found.read(layer="conv_1"), X)
    assert np.array_equal(found.read(layer="conv_2"), 2 * X)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({0: 10, 2: 6, 3: 4}, "'fc1' has part 1 of 6 datapoints, and layer='fc2' part 2 of 6 datapoints"),
        ({0: 10, 1: 4, 2: 6}, "'fc1' has part 1 of 6 datapoints, and layer='fc2' part 1 of 4 datapoints"),
        ({0: 10, 1: 6, 2: 3, 3: 1}, "'fc1' has part 2 of 4 datapoints, and layer='fc2' part 2 of 3"),
        ({0: 20}, "'fc1' has part 0 of 10 datapoints, and layer='fc2' part 0 of 20"),
    ],
)
def test_representations_of_other_parts_are_not_taken_for_the_same_datapoints(folder, store, parts, match):
    for layer, own in (("fc1", {0: 10, 1: 6, 2: 4}), ("fc2", parts)):
        for part, rows_ in own.items():
            np.save(folder / f"{layer}_{part}.npy", X[:rows_])
    refused(folder, store, f"{match}.* import the one and then the other: exclude=", labels="{layer}_{part}")


def test_datasets_of_one_file_can_be_parts(folder, store):
    write_hdf5(folder / "features.hdf5", **{f"features_{i:02d}": x for i, x in enumerate(np.array_split(X, 12))})
    assert np.array_equal(imported(folder / "features.hdf5", store, labels="{layer}_{part}"), X)


def test_an_attention_mask_becomes_the_mask_of_the_store(folder, store):
    valid = np.arange(6) < 1 + np.arange(N)[:, None] % 6
    np.savez(folder / "x.npz", attention_mask=valid.astype("int64"), **{"hidden_states.0": TOKENS})
    table = dsvcca.import_activations(folder, store, dims="ntd", labels="x/hidden_states.{layer}")
    assert table.outcome.tolist() == ["write", "mask"]
    found = dsvcca.open_store(store)
    assert found.representations[0].mask.rows == valid.sum()
    again = dsvcca.import_activations(folder, store, dims="ntd", labels="x/hidden_states.{layer}", if_exists="skip")
    assert again.outcome.tolist() == ["skip", "mask"]


def test_masks_beside_parts_are_joined_as_the_parts_are(folder, store):
    valid = np.arange(6) < 1 + np.arange(N)[:, None] % 6
    order = {}
    for place, some in enumerate((slice(11, 20), slice(0, 11))):  # the later file has the first datapoints
        np.savez(folder / f"b{place}.npz", attention_mask=valid[some], h=TOKENS[some])
        order[f"b{place}/h"] = {"layer": "h", "part": 1 - place}
    dsvcca.import_activations(folder, store, dims="ntd", labels=order)
    found = dsvcca.open_store(store)
    assert np.array_equal(found.read(layer="h"), TOKENS)
    assert np.array_equal(np.asarray(read_mask(found.representations[0].mask)), valid)


def test_masks_that_belong_to_no_part_are_refused(folder, store):
    valid = np.ones((N, 6), bool)
    for place, some in enumerate((slice(0, 11), slice(11, 20))):
        np.savez(folder / f"b{place}.npz", h=TOKENS[some])
        np.savez(folder / f"m{place}.npz", attention_mask=valid[some])
    with pytest.raises(dsvcca.DsvccaError, match="which part of the datapoints each is for"):
        dsvcca.import_activations(folder, store, dims="ntd", labels="b{part}/{layer}")


@pytest.mark.parametrize(
    ("valid", "match"),
    [
        (np.ones((N, 5), int), "masks 5 positions, the sequences have"),
        (np.full((N, 6), 2), "holds true .* and false"),
        (np.zeros((N, 6), bool), "leaves no token"),
        (np.ones((N - 1, 6), bool), r"\(19, 6\), the sequences have 20"),
    ],
)
def test_masks_that_fit_nothing_are_refused_before_anything_is_written(folder, store, valid, match):
    np.savez(folder / "x.npz", attention_mask=valid, h=TOKENS)
    with pytest.raises(dsvcca.DsvccaError, match=match):
        dsvcca.import_activations(folder, store, dims="ntd")
    assert not store.exists()


def test_masks_are_read_once_they_are_known_to_be_small_enough(folder, store, monkeypatch):
    valid = np.ones((N, 6), bool)
    np.savez(folder / "a.npz", h=TOKENS, attention_mask=valid)
    monkeypatch.setattr(into_store, "WHOLE", valid.nbytes - 1)
    refused(folder, store, "a mask of 120 bytes, 119 are the most", dims="ntd", dry_run=True)
    for place, some in enumerate((slice(0, 11), slice(11, 20))):
        np.savez(folder / f"b{place}.npz", h=TOKENS[some], attention_mask=valid[some])
    refused(folder, store, "a mask of 120 bytes", dims="ntd", labels="b{part}/{layer}", exclude="a*", dry_run=True)


def test_a_mask_of_no_sequence_is_not_read(folder, store):
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for name, shape in (("h", TOKENS.shape), ("attention_mask", (1000, 1 << 16))):
            raw_npy(folder / "x", npy_header(shape), TOKENS.tobytes() if name == "h" else b"\0" * (1000 << 18))
            file.write(folder / "x", f"{name}.npy")
    (folder / "x").unlink()
    tracemalloc.start()
    refused(folder, store, r"a mask of shape \(1000, 65536\)", dims="ntd", dry_run=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1000 << 16


def test_two_masks_must_be_one(folder, store):
    valid = np.ones((N, 6), bool)
    np.savez(folder / "a.npz", attention_mask=valid, h=TOKENS)
    other = valid.copy()
    other[3, 4] = False
    np.savez(folder / "b.npz", attention_mask=other, h=TOKENS)
    with pytest.raises(dsvcca.DsvccaError, match="another mask differ"):
        dsvcca.import_activations(folder, store, dims="ntd")
    dsvcca.create_store(store, datapoints=N).write_mask(other)
    with pytest.raises(dsvcca.DsvccaError, match="another mask than that of the store"):
        dsvcca.import_activations(folder / "a.npz", store, dims="ntd")


def test_ids_are_kept_and_compared(folder, store):
    np.save(folder / "a.npy", X)
    dsvcca.import_activations(folder, store, ids=[f"img{i}" for i in range(N)])
    assert dsvcca.open_store(store).representations[0].ids == dsvcca.open_store(store).ids
    np.save(folder / "b.npy", X)
    with pytest.raises(dsvcca.DsvccaError, match="2 of 20 ids differ"):
        names = [f"img{i}" for i in (1, 0, *range(2, N))]
        dsvcca.import_activations(folder, store, ids=names, if_exists="skip")
    with pytest.raises(dsvcca.DsvccaError, match="3 datapoint ids were given, .* has 20"):
        dsvcca.import_activations(folder, store, ids=[1, 2, 3])


# What is passed over, and what is refused


def test_what_is_no_activations_is_passed_over_with_its_reason(folder, store):
    np.savez(folder / "x.npz", acts=X, labels=np.arange(N), names=np.array(["a", "b"]), scalar=np.float32(1))
    (folder / "README.md").write_text("hello")
    (folder / "file_names.txt").write_text("cat.jpg\ndog.jpg\n")
    (folder / ".hidden.npy").write_bytes(b"")
    dsvcca.create_store(folder / "old.zarr", datapoints=3)
    (folder / "elsewhere").symlink_to(folder.parent)
    os.mkfifo(folder / "pipe.dat")
    table = dsvcca.import_activations(folder, store)
    why = {(Path(row.file).name, row.array): row.why for row in table.itertuples() if row.outcome == "pass over"}
    assert why == {
        ("x.npz", "labels"): "1 axes, and activations have two or more",
        ("x.npz", "names"): "text, dates or records, not numbers",
        ("x.npz", "scalar"): "0 axes, and activations have two or more",
        ("README.md", ""): "another kind of file",
        ("file_names.txt", ""): "text",
        (".hidden.npy", ""): "hidden",
        ("old.zarr", ""): "Zarr, which dsvcca.open_store() reads as it is",
        ("elsewhere", ""): "a link to a folder, which is not followed",
        ("pipe.dat", ""): "another kind of file",
    }
    assert [r.labels for r in dsvcca.open_store(store).representations] == [{"layer": "x/acts"}]


def refused(folder, store, match, **options):
    with pytest.raises(dsvcca.DsvccaError, match=match):
        dsvcca.import_activations(folder, store, **options)
    assert not store.exists()


@pytest.mark.parametrize("name", ["model.pt", "x.pkl", "x.joblib"])
def test_pickles_are_refused_until_they_are_left_out(folder, store, name):
    np.save(folder / "a.npy", X)
    (folder / name).write_bytes(b"\x80\x04.")
    refused(folder, store, r"a pickle, which may run anything .* weights_only=True.* exclude=")
    dsvcca.import_activations(folder, store, exclude=f"*{Path(name).suffix}")
    assert len(dsvcca.open_store(store).representations) == 1


def test_arrays_of_objects_are_never_unpickled(folder, store):
    np.save(folder / "a.npy", np.array([[1, None]] * N, dtype=object), allow_pickle=True)
    refused(folder, store, "Python objects in a pickle")
    np.savez(folder / "a.npz", x=np.array([[1, None]] * N, dtype=object), y=X)
    refused(folder / "a.npz", store, "Python objects in a pickle")
    dsvcca.import_activations(folder / "a.npz", store, exclude="x")


@pytest.mark.parametrize("save", [lambda path, x: np.savez(path.with_suffix(".npz"), x=x), np.save])
def test_types_that_numpy_does_not_know_are_refused(folder, store, save):
    save(folder / "a.npy", X.astype(ml_dtypes.bfloat16))
    refused(folder, store, r"bfloat16\?\): save x\.astype\('float32'\)")
    write_hdf5(folder / "b.h5", x=X.astype(ml_dtypes.bfloat16))
    refused(folder / "b.h5", store, r"bfloat16\?\): save x")


@pytest.mark.parametrize(
    "dtype", [[("x", "f4", (5,))], [("x", "f4")], [("index", "i8"), ("values", "f4", (5,))], [("x", [("y", "f4")])]]
)
def test_records_that_may_be_activations_are_refused(folder, store, dtype):
    np.save(folder / "a.npy", np.zeros(N, dtype))
    refused(folder, store, "records that hold arrays: save each field")
    (folder / "a.npy").unlink()
    write_hdf5(folder / "a.h5", x=np.zeros(N, dtype))
    refused(folder, store, "records that hold arrays: save each field")


def test_datasets_of_arrays_are_refused(folder, store):
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("x", (N,), np.dtype(("f4", (5,))))
    refused(folder, store, "records that hold arrays")


@pytest.mark.parametrize("dtype", ["complex64", np.longdouble])
def test_types_that_no_store_has_are_refused(folder, store, dtype):
    np.save(folder / "a.npy", X.astype(dtype))
    refused(folder, store, "cannot be compared: store real numbers")


def test_bytes_of_eight_bits_that_are_floating_point_are_refused(folder, store):
    save_file({"a": X.astype(ml_dtypes.float8_e4m3fn)}, folder / "a.safetensors")
    refused(folder, store, "F8_E4M3' cannot be compared")


def npy_header(shape):
    return f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"


def raw_npy(path, header, content=b""):
    head = header.encode().ljust(118) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + content)


@pytest.mark.parametrize(
    "shape",
    [
        *("(20, 10**12)", "(20, 1000000000000)", "(20, -5)", "(20, 5)", "'abc'", "(True, 5)"),
        *("(-2, -5)", "(10, True)", "(5, 2, True)"),
    ],
)
def test_headers_that_claim_what_is_not_there_are_refused(folder, store, shape):
    raw_npy(folder / "a.npy", npy_header(shape), b"\0" * 40)
    refused(folder, store, "a.npy' cannot be read")
    with zipfile.ZipFile(folder / "b.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.write(folder / "a.npy", "x.npy")
    refused(folder / "b.npz", store, "b.npz' cannot be read")


def test_headers_of_another_version_are_refused(folder, store):
    np.save(folder / "a.npy", X)
    content = (folder / "a.npy").read_bytes()
    (folder / "a.npy").write_bytes(content[:6] + b"\x03" + content[7:])
    refused(folder, store, r"version \(3, 0\) of the format")
    (folder / "a.npy").write_bytes(content[:6] + b"\x02" + content[7:])
    refused(folder, store, "a header of more than 10000 bytes")


def test_headers_of_four_bytes_of_length_are_read(folder, store):
    with open(folder / "a.npy", "wb") as file:
        np.lib.format.write_array(file, X, version=(2, 0))
    assert np.array_equal(imported(folder, store), X)


def test_several_arrays_in_one_npy_file_are_refused(folder, store):
    with open(folder / "a.npy", "wb") as file:
        np.save(file, X)
        np.save(file, X)
    refused(folder, store, "several arrays in one file")


def test_a_zip_file_that_promises_more_than_compression_can_is_refused(folder, store):
    np.savez_compressed(folder / "a.npz", x=X)
    content = bytearray((folder / "a.npz").read_bytes())
    place = content.rindex(b"PK\x01\x02")
    content[place + 24 : place + 28] = (2**31).to_bytes(4, "little")
    (folder / "a.npz").write_bytes(content)
    refused(folder, store, "cannot become 2147483648")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_of_zip_files_whose_growth_is_not_known_are_refused(folder, store, method):
    np.save(folder / "x.npy", np.zeros((1000, 1000)))
    with zipfile.ZipFile(folder / "b.npz", "w", method) as file:
        file.write(folder / "x.npy", "x.npy")
    refused(folder / "b.npz", store, "compressed by another method than NumPy's")


def test_groups_of_hdf5_that_are_linked_twice_are_listed_once(folder, store):
    write_hdf5(folder / "a.h5", **{"g/x": X})
    with h5py.File(folder / "a.h5", "a") as file:
        file["h"] = file["g"]
        file["g/top"] = file["/"]
    table = dsvcca.import_activations(folder, store)
    said = dict(zip(table.array, table.why, strict=True))
    assert said == {"g/x": "", "g/top": "the same as '/'", "h": "the same as 'g'"}


def test_hdf5_leads_to_no_other_file(folder, store, tmp_path):
    write_hdf5(tmp_path / "secret.h5", x=X)
    X.tofile(tmp_path / "secret.bin")
    with h5py.File(folder / "a.h5", "w") as file:
        file["acts"] = X
        file["again"] = file["acts"]
        file["soft"] = h5py.SoftLink("/acts")
        file["out"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/x")
    table = dsvcca.import_activations(folder, store)
    assert table.outcome.tolist().count("write") == 1
    passed = table[table.outcome == "pass over"]
    assert dict(zip(passed.array, passed.why, strict=True)) == {
        "again": "the same as 'acts'",
        "soft": "a link to '/acts', which is not followed",
        "out": f"a link to another file, '{tmp_path / 'secret.h5'}', which is not followed",
    }
    with h5py.File(folder / "b.h5", "w") as file:
        file.create_dataset("x", X.shape, "f4", external=[(str(tmp_path / "secret.bin"), 0, X.nbytes)])
    with pytest.raises(dsvcca.DsvccaError, match="lie in other files"):
        dsvcca.import_activations(folder / "b.h5", store)
    with h5py.File(folder / "c.h5", "w") as file:
        layout = h5py.VirtualLayout(X.shape, "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", X.shape)
        file.create_virtual_dataset("x", layout)
    with pytest.raises(dsvcca.DsvccaError, match="lie in other files"):
        dsvcca.import_activations(folder / "c.h5", store)


def test_datasets_that_were_not_written_whole_are_refused(folder, store):
    with h5py.File(folder / "a.h5", "w") as file:
        one = file.create_dataset("x", (N, 5), "f4", chunks=(4, 5))
        one[:12] = X[:12]
    refused(folder, store, r"of \(20, 5\) float32 not all was written")
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("x", (10**9, 10**6), "f4", chunks=(1000, 1000))
    refused(folder, store, "not all was written")


def test_numbers_that_xarray_encoded_are_refused(folder, store):
    write_hdf5(folder / "a.h5", x=(X * 100).astype("int16"))
    with h5py.File(folder / "a.h5", "a") as file:
        file["x"].attrs["scale_factor"] = 0.01
    refused(folder, store, "encoded numbers")


def test_tables_whose_columns_are_not_all_neurons_are_refused(folder, store):
    write_parquet(folder / "a.parquet", label=np.arange(N), n0=X[:, 0], n1=X[:, 1])
    refused(folder, store, "columns of several types, float32, int64")
    write_parquet(folder / "a.parquet", acts=pa.array([[[1.0]]] * N))
    refused(folder, store, "neither numbers nor lists")


def test_columns_without_a_name_are_refused(folder, store):
    write_parquet(folder / "a.parquet", **{"": lists(X), "label": X[:, 0]})
    refused(folder, store, "has no name: give it one")
    write_parquet(folder / "a.parquet", **{"": X[:, 1], "label": X[:, 0]})
    refused(folder, store, "has no name: give it one")


@pytest.mark.parametrize(
    "column",
    [
        pa.array([None] * N, pa.decimal128(5, 2)),
        pa.nulls(N),
        pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (5,)), lists(X)),
    ],
)
def test_columns_that_may_be_numbers_are_refused(folder, store, column):
    write_parquet(folder / "a.parquet", n0=X[:, 0], n1=X[:, 1], n2=column)
    refused(folder, store, "neither numbers nor lists of them")
    assert imported(folder, store, exclude="a/n2").shape == (N, 2)


def test_columns_beside_lists_are_passed_over(folder, store):
    write_parquet(folder / "a.parquet", label=np.arange(N), name=["x"] * N, acts=lists(X))
    table = dsvcca.import_activations(folder, store)
    assert sorted(table.array[table.outcome == "pass over"]) == ["label", "name"]


@pytest.mark.parametrize("values", [[[1.0, 2.0]] * 9 + [[1.0]] + [[3.0, 4.0]] * 10, [[1.0, 2.0]] * 19 + [None]])
def test_lists_of_other_lengths_are_an_error_that_names_the_column(folder, store, values):
    write_parquet(folder / "a.parquet", acts=values)
    with pytest.raises(dsvcca.DsvccaError, match="'acts' has gaps, or lists of other lengths than 2"):
        dsvcca.import_activations(folder, store)
    assert dsvcca.open_store(store).representations == []


def test_matlab_files_of_version_73_and_cells_are_not_read(folder, store):
    scipy.io.savemat(folder / "b.mat", {"x": X, "cell": np.array([X, "a"], dtype=object), "s": {"y": X}})
    table = dsvcca.import_activations(folder, store)
    assert sorted(table.array[table.outcome == "pass over"]) == ["cell", "s"]
    (folder / "a.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\0" * 384)
    with pytest.raises(dsvcca.DsvccaError, match="save it with -v7"):
        dsvcca.import_activations(folder / "a.mat", store)


@pytest.mark.parametrize("options", [{}, {"do_compression": True}, {"format": "4"}])
def test_complex_and_sparse_variables_of_matlab_are_refused_before_anything_is_written(folder, store, options):
    variables = {"a": X, "b": X * 1j, "c": scipy.sparse.csc_matrix(X), "d": X}
    scipy.io.savemat(folder / "x.mat", variables, **options)
    refused(folder, store, "'b': complex numbers: save real ones", exclude="x/c")
    refused(folder, store, "'c': sparse, not numbers", exclude="x/b")
    dsvcca.import_activations(folder, store, exclude=["x/b", "x/c"])
    assert np.array_equal(dsvcca.open_store(store).read(layer="x/d"), X)


@pytest.mark.parametrize("sizes", [(-1, 5, 0, 2), (1, -2, 0, 2), (1, 1, 0, -20), (1, 1, -9, 2)])
def test_sizes_below_nothing_in_old_files_of_matlab_are_refused(folder, store, sizes):
    (folder / "a.mat").write_bytes(np.array([0, *sizes], "<i4").tobytes() + b"a\0" + b"\0" * 80)
    refused(folder, store, "in a file of version 4")


def test_what_can_only_be_read_whole_is_refused_where_it_is_large(folder, store, monkeypatch):
    monkeypatch.setattr(finding, "WHOLE", X.nbytes - 1)
    np.savez_compressed(folder / "a.npz", x=np.ascontiguousarray(X.T))
    refused(folder, store, "unzip it", dims="dn")
    np.save(folder / "b.npy", X.T)
    monkeypatch.setattr(finding, "WHOLE", X[:1].nbytes - 1)
    refused(folder / "b.npy", store, "20 bytes a datapoint, 19 are the most", dims="dn")


def test_labels_axes_and_datapoints_are_checked_before_anything_is_written(folder, store):
    np.save(folder / "a.npy", X)
    np.save(folder / "b.npy", X[:7])
    refused(folder, store, "not all have the same datapoints: 7 in .*b.npy' and 20 in .*a.npy'")
    np.save(folder / "b.npy", TOKENS)
    refused(folder, store, "has 3 axes .* and no dims")
    refused(folder, store, "dims= names 'c', which is neither", dims={"c": "ntd"})
    refused(folder, store, "does not fit the array 'a'", labels="{seed}/{layer}", dims="ntd")
    refused(folder, store, "have the same labels", layer="x", dims="ntd")
    refused(folder, store, "was given for all arrays", layer="x", labels="{layer}", dims="ntd")
    refused(folder, store, "if_exists='never' is unknown", if_exists="never")
    words = "label 'file' is a column of the table of an import"
    refused(folder, store, words, labels="{file}", exclude="b*", dims="ntd", layer="x")
    np.savez(folder / "a.npz", X)
    (folder / "a").mkdir()
    np.save(folder / "a" / "arr_0.npy", X)
    refused(folder, store, "would both be 'a/arr_0': rename one", dims="ntd")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"labels": 5}, "labels=5 is a int: give a pattern"),
        ({"labels": ["{layer}"]}, "is a list: give a pattern"),
        ({"labels": Path("{layer}")}, "is a .*Path: give a pattern"),
        ({"labels": {"a": None}}, "labels= gave None for 'a': give a dict"),
        ({"labels": {"a": "fc"}}, "labels= gave 'fc' for 'a': give a dict"),
        ({"labels": {"a": {5: "fc"}}}, "labels= gave {5: 'fc'} for 'a'"),
        ({"labels": {5: {}, "b": {}}}, r"says nothing about the array 'a': it names \[5, 'b'\]"),
        ({"labels": lambda path: path}, "labels= gave 'a' for 'a'"),
        ({"dims": 5}, "dims=5 is a int: use 'nchw'"),
        ({"dims": {"a": 5}}, "dims=5 is a int"),
        ({"exclude": None}, "exclude=None is no pattern"),
        ({"exclude": Path("a")}, "is no pattern"),
        ({"exclude": [5]}, r"exclude=\[5\] is no pattern"),
        ({"ids": 5}, "must be a sequence"),
    ],
)
def test_options_of_other_types_are_refused(folder, store, options, match):
    np.save(folder / "a.npy", X)
    refused(folder, store, match, **options)


@pytest.mark.parametrize("place", [5, None, b"x"])
def test_places_of_other_types_are_refused(folder, store, place):
    refused(place, store, r"source=.* is a \w+: give a path")
    np.save(folder / "a.npy", X)
    with pytest.raises(dsvcca.DsvccaError, match=r"store=.* is a \w+: give a path"):
        dsvcca.import_activations(folder, place)


def test_a_path_that_is_too_long_is_refused(folder, store):
    refused(folder / ("x" * 5000), store, "does not say what it holds .*too long")


def test_a_label_that_a_path_says_twice_is_refused(folder, store):
    (folder / "seed=0" / "seed=1").mkdir(parents=True)
    np.save(folder / "seed=0" / "seed=1" / "a.npy", X)
    refused(folder, store, "says both seed=0 and seed=1")


def test_names_of_thousands_of_digits_are_names(folder, store):
    names = ["9" * 5000, "1" + "0" * 5000, "7"]
    np.savez(folder / "a.npz", **dict.fromkeys(names, X))
    table = dsvcca.import_activations(folder / "a.npz", store, dry_run=True)
    assert table.layer.tolist() == ["7", names[0], names[1]]
    table = dsvcca.import_activations(folder / "a.npz", store, labels="{seed}", layer="x", dry_run=True)
    assert set(map(type, table.seed)) == {str}


def test_a_pattern_that_leaves_nothing_out_is_a_warning(folder, store):
    np.save(folder / "a.npy", X)
    (folder / "x.pt").touch()
    with pytest.warns(dsvcca.DsvccaWarning, match=r"exclude='\*.pth' leaves nothing out"):
        dsvcca.import_activations(folder, store, exclude=["*.pt", "*.pth"])


def test_all_that_is_refused_is_said_at_once(folder, store):
    np.save(folder / "a.npy", X)
    for place in range(3):
        (folder / f"{place}.pt").touch()
        np.save(folder / f"b{place}.npy", X.astype("complex64"))
    refused(folder, store, r"0\.pt', .*1\.pt', .*2\.pt': a pickle.*b0.npy', .*b1.npy': .*complex64.*; and 1 more like")


def closed(folder, store):
    """Return what the command line says to somebody who is not root."""
    powers = ("--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
    line = ["setpriv", *powers, sys.executable, "-m", "dsvcca", "import", str(folder), str(store)]
    found = subprocess.run(line, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    return found.stderr


@pytest.mark.skipif(shutil.which("setpriv") is None or os.geteuid() != 0, reason="root reads everything")
@pytest.mark.parametrize("inner", ["inner", *(pytest.param(one, marks=pytest.mark.slow) for one in ("", "inner/more"))])
def test_folders_that_may_not_be_entered_are_said_in_plain_words(folder, store, inner):
    (folder / "inner" / "more").mkdir(parents=True)
    np.save(folder / "inner" / "a.npy", X)
    (folder / inner).chmod(0o600)
    said = closed(folder, store)
    assert said.startswith("error: '")
    assert "Permission denied" in said


def test_parts_must_fit_each_other(folder, store):
    np.save(folder / "a_0.npy", X[:4])
    np.save(folder / "a_1.npy", X[4:].astype("float64"))
    refused(folder, store, r"are \(4, 5\) float32 and \(16, 5\) float64", labels="{layer}_{part}")
    labels = {"a_0": {"layer": "a", "part": 0}, "a_1": {"layer": "a"}}
    refused(folder, store, "not both say which part they are", labels=labels)


def test_a_name_that_is_no_text_is_refused_in_plain_words(folder, store):
    np.save(folder / "a.npy", X)
    os.rename(folder / "a.npy", os.fsencode(folder) + b"/\xff.npy")
    refused(folder, store, "is no text that can be written")


@pytest.mark.parametrize(
    ("source", "match"),
    [("nothing", "there is nothing at"), ("s3://bucket/x", "is a URL: copy"), ("", "holds no array of activations")],
)
def test_sources_that_hold_nothing_are_refused(folder, store, source, match):
    refused(folder / source if "://" not in source else source, store, match)


def test_a_store_is_no_source(folder, store):
    dsvcca.create_store(folder / "z.zarr", datapoints=3)
    refused(folder / "z.zarr", store, "needs no import")


def test_what_no_store_can_take_is_known_before_anything_is_read(folder, store, tmp_path):
    np.save(folder / "a.npy", X[:1])
    refused(folder, store, "has 1 datapoint: a store needs at least 2", dry_run=True)
    np.save(folder / "a.npy", X)
    (tmp_path / "file").touch()
    refused(folder, tmp_path / "file" / "x" / "s.zarr", "lies below a file", dry_run=True)
    other = tmp_path / "other.zarr"
    zarr.open_group(other, mode="w").create_array("a", data=X)
    for place in (other, dsvcca.open_store(other)):
        with pytest.raises(dsvcca.DsvccaError, match="is no store that dsvcca wrote: choose another path"):
            dsvcca.import_activations(folder, place, dry_run=True)
    made = dsvcca.create_store(store, datapoints=range(N))
    with pytest.raises(dsvcca.DsvccaError, match="2 of 20 ids differ"):
        dsvcca.import_activations(folder, made, ids=[1, 0, *range(2, N)], dry_run=True)
    assert len(dsvcca.import_activations(folder, made, ids=range(N), dry_run=True)) == 1


def test_a_store_of_other_datapoints_or_types_of_labels_is_refused(folder, store):
    made = dsvcca.create_store(store, datapoints=N)
    made.write(X, layer="a", seed=0)
    np.save(folder / "b.npy", X[:7])
    with pytest.raises(dsvcca.DsvccaError, match="has 7 datapoints, the store .* has 20"):
        dsvcca.import_activations(folder, made)
    np.save(folder / "b.npy", X)
    with pytest.raises(dsvcca.DsvccaError, match="seed='x' is str, but"):
        dsvcca.import_activations(folder, made, seed="x")


# Going on, and damage further in


def test_the_same_line_goes_on_where_a_number_that_is_not_finite_stopped_it(folder, store):
    for name in "abc":
        np.save(folder / f"{name}.npy", np.where(X[3, 2] == X, np.nan, X) if name == "b" else X)
    with pytest.raises(dsvcca.DsvccaError, match=r"b\.npy'.* NaN .* datapoint 3.* What was finished stays"):
        dsvcca.import_activations(folder, store)
    assert [r.labels["layer"] for r in dsvcca.open_store(store).representations] == ["a"]
    with pytest.raises(dsvcca.DsvccaError, match=r"a\.npy'.* is in the store already"):
        dsvcca.import_activations(folder, store)
    table = dsvcca.import_activations(folder, store, if_exists="skip", exclude="b.npy")
    assert table.outcome.tolist() == ["skip", "write"]
    np.save(folder / "a.npy", 2 * X)
    dsvcca.import_activations(folder, dsvcca.open_store(store).select(layer="c"), if_exists="replace", exclude="b")
    assert np.array_equal(dsvcca.open_store(store).read(layer="a"), 2 * X)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_changed_byte_in_a_zip_file_is_found(folder, store, save):
    save(folder / "a.npz", x=X)
    content = bytearray((folder / "a.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "a.npz").write_bytes(content)
    with pytest.raises(dsvcca.DsvccaError, match=r"a\.npz' cannot be read"):
        dsvcca.import_activations(folder, store)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_changed_byte_of_one_layer_is_found_before_any_is_written(folder, store, save, order):
    hidden = np.stack([TOKENS] * 3)
    save(folder / "a.npz", h=hidden if order == "C" else np.asfortranarray(hidden.transpose(1, 2, 3, 0)))
    content = bytearray((folder / "a.npz").read_bytes())
    content[content.index(b"\x93NUMPY") + 600 if save is np.savez else len(content) // 3] ^= 1
    (folder / "a.npz").write_bytes(content)
    refused(folder, store, r"a\.npz' cannot be read", dims="lntd" if order == "C" else "ntdl")


def test_what_is_kept_is_not_read_again(folder, store):
    np.savez(folder / "a.npz", h=np.stack([TOKENS] * 3))
    dsvcca.import_activations(folder, store, dims="lntd")
    content = bytearray((folder / "a.npz").read_bytes())
    content[1000] ^= 1
    (folder / "a.npz").write_bytes(content)
    dsvcca.import_activations(folder, store, dims="lntd", if_exists="skip")
    with pytest.raises(dsvcca.DsvccaError, match=r"a\.npz' cannot be read"):
        dsvcca.import_activations(folder, store, dims="lntd", if_exists="replace")


@pytest.mark.parametrize("count", [1, 2, N])
def test_text_that_was_cut_short_is_found(folder, store, count):
    np.savetxt(folder / "a.txt", X[:count])
    content = (folder / "a.txt").read_bytes()
    (folder / "a.txt").write_bytes(content[:-2])
    refused(folder, store, "its last line has no end")


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files_are_imported_or_refused(folder, tmp_path, name):
    WRITERS[name](folder / name, X)
    content = (folder / name).read_bytes()
    draws = np.random.default_rng(5)
    outcomes = set()
    for i in range(24):
        damaged = bytearray(content)
        if i % 2:
            damaged = damaged[: draws.integers(len(content))]
        else:
            damaged[draws.integers(len(content))] = draws.integers(256)
        (folder / name).write_bytes(damaged)
        try:
            dsvcca.import_activations(folder, tmp_path / f"{i}.zarr")
            outcomes.add("imported")
        except dsvcca.DsvccaError:
            outcomes.add("refused")
    assert "refused" in outcomes


def test_a_missing_library_is_named_with_the_line_that_installs_it(folder, store, monkeypatch):
    def gone(name):
        raise ImportError(f"No module named {name!r}")

    write_hdf5(folder / "a.h5", x=X)
    monkeypatch.setattr(kinds, "import_module", gone)
    refused(folder, store, r"needs h5py, which is not installed: pip install 'dsvcca\[import\]'")


# The command line


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_command_line_shows_what_would_be_done_and_does_it(folder, store):
    (folder / "seed0").mkdir()
    np.save(folder / "seed0" / "conv.npy", MAPS.transpose(0, 3, 1, 2))
    np.save(folder / "seed0" / "fc.npy", X)
    (folder / "ids.txt").write_text("\n".join(f"i{i}" for i in range(N)))
    options = ("--labels", "seed{seed}/{layer}", "--dims", "conv=nchw", "--set", "step=7", "--ids", folder / "ids.txt")
    said = call("import", folder, store, *options, "--dry-run")
    assert said.exit_code == 0, said.output
    assert "datapoint, channel, height, width  seed=0, step=7, layer='conv'" in said.output
    assert "2 arrays would be written" in said.output
    assert not store.exists()
    said = call("import", folder, store, *options)
    assert said.exit_code == 0, said.output
    assert "2 arrays written" in said.output
    found = dsvcca.open_store(store)
    assert np.array_equal(found.read(seed=0, step=7, layer="conv"), MAPS)
    assert found.ids is not None
    assert "2 there already" in call("import", folder, store, *options, "--if-exists", "skip").output


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--set", "seed"), "is not LABEL=VALUE"),
        *((("--set", f"{name}=1"), "that is an option") for name in ("mask", "source", "store", "dry_run")),
        ((), "already"),
        (("--set", "layer=x", "--set", "layer=y"), "says both layer=x and layer=y"),
        (("--dims", "a=nd", "--dims", "a=dn"), "says both a=nd and a=dn"),
        (("--ids", "/"), "--ids '/' cannot be read"),
        (("--ids", __file__ + "x"), "cannot be read"),
    ],
)
def test_the_command_line_refuses_in_plain_words(folder, store, options, match):
    np.save(folder / "a.npy", X)
    dsvcca.import_activations(folder, store)
    said = call("import", folder, store, *options)
    assert said.exit_code == 1
    assert match in said.output


def test_ids_of_the_command_line_are_lines_of_utf_8(folder, store):
    np.save(folder / "a.npy", X[:2])
    (folder / "ids.txt").write_bytes("café\u2028x\r\nb\n".encode())
    said = call("import", folder, store, "--ids", folder / "ids.txt")
    assert said.exit_code == 0, said.output
    assert dsvcca.create_store(store, datapoints=["café\u2028x", "b"]).ids
    (folder / "ids.txt").write_bytes("café\nb\n".encode("latin-1"))
    said = call("import", folder, store, "--ids", folder / "ids.txt")
    assert said.exit_code == 1
    assert "give text in UTF-8" in said.output
