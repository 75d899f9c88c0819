"""Generated inputs and generated damage: every outcome is the right number, to the bit, or one clear sentence.

Never another exception, never a hang, never a huge allocation, and nothing is touched outside of the store. A few
hundred examples that are the same every time; with ``DSVCCA_FUZZ=long`` in the environment tens of thousands, new ones
every time. `fuzz/fuzz_parsers.py` runs the targets at the end of this file with coverage.
"""

import json
import os
import re
import shutil
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import combinations, count, product
from typing import Any
from unittest import mock

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, Phase, assume, example, given, note, settings
from hypothesis import strategies as st
from typer.testing import CliRunner
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

import dsvcca
from dsvcca import DsvccaError, DsvccaWarning, cli
from dsvcca.activations import pieces, representations
from dsvcca.activations.labels import COLUMNS, LETTERS, SPACE, to_datapoints_first
from dsvcca.maths.measures import MEASURES
from dsvcca.storage import chunked
from dsvcca.workspace.packs import Pack
from tests import fuzz_targets, reference
from tests.fuzz_targets import NASTY, answered, edited, guarded, key_of, signed_again, spelled
from tests.populations import activations as activations_of
from tests.populations import same_bits

LONG = os.environ.get("DSVCCA_FUZZ") == "long"

pytestmark = pytest.mark.timeout(7200 if LONG else 600)

numbers = count()


def fault(case, outcome):
    return pytest.mark.fault("fuzzing", case, outcome)


def examples(few, many):
    """Return how a test runs: few examples that are always the same, or many that are new."""
    return settings(
        max_examples=many if LONG else few,
        derandomize=not LONG,
        phases=list(Phase) if LONG else [Phase.explicit, Phase.generate],  # failures are short enough to be read
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def place():
    """Give a folder of its own to an example."""
    folder = fuzz_targets.scratch() / f"place-{next(numbers)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


# What is written is what is read.

TYPES = ["bool", "i1", "u1", "i2", "u4", "i8", "u8", "f2", "f4", "f8", ">f4", ">f8", ">i2", ">u8"]


def filled(shape, dtype, seed):
    """Return an array of any finite bits of its type."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    x = np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape).copy()
    if dtype.kind == "f":
        x[~np.isfinite(x)] = -0.0
    return x


@st.composite
def axes(draw):
    """Return the names of two to five axes in any order."""
    space = draw(st.lists(st.sampled_from([*SPACE, "head", "größe", "time step"]), max_size=3, unique=True))
    return tuple(draw(st.permutations(["datapoint", draw(st.sampled_from(COLUMNS)), *space])))


def shape_of(draw, names):
    most = 12 if len(names) < 4 else 6
    return tuple(draw(st.integers(2 if name == "datapoint" else 1, most)) for name in names)


def spellings(names):
    """Return the ways to write axes down."""
    found = [list(names), tuple(names)]
    letters = {name: letter for letter, name in LETTERS.items()}
    return [*found, "".join(letters[name] for name in names)] if set(names) <= set(letters) else found


@fault("any shape, type, axes and batches", "read back bit for bit")
@given(data=st.data())
@examples(60, 1000)
def test_what_is_written_is_read_back_bit_for_bit(data):
    names = data.draw(axes())
    shape = shape_of(data.draw, names)
    x = filled(shape, data.draw(st.sampled_from(TYPES)), data.draw(st.integers(0, 99)))
    x = data.draw(st.sampled_from([x, np.asfortranarray(x), x[::-1], np.flip(x), np.repeat(x, 2, axis=-1)[..., ::2]]))
    along = names.index("datapoint")
    rows = shape[along]
    cuts = sorted(data.draw(st.sets(st.integers(0, rows), max_size=4)))
    how = data.draw(st.sampled_from(spellings(names)))
    wanted = x.astype(x.dtype.newbyteorder("=")).transpose(to_datapoints_first(names))
    small = mock.patch.object(chunked, "CHUNK", data.draw(st.sampled_from([1, 64, 500, 8 << 20])))
    short = mock.patch.object(pieces, "PIECE", data.draw(st.sampled_from([1, 100, 16 << 20])))
    with place() as folder, guarded(folder), small, short:
        store = dsvcca.create_store(folder / "s.zarr", datapoints=rows)
        try:
            with store.writer(layer="a", dims=how) as writer:
                for batch in np.split(x, cuts, axis=along):
                    writer.append(batch)
        except DsvccaError as error:
            assume("looks like channels-first maps" not in str(error))
            raise
        store = dsvcca.open_store(folder / "s.zarr")
        found = store.read(layer="a")
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        assert found.tobytes() == wanted.tobytes()
        assert store.index["shape"].tolist() == [wanted.shape]
        problems = store.verify()
        assert problems.empty, problems.to_string()
        [one] = store.representations
        if one.is_sequence and wanted.ndim == 3:
            for position in range(wanted.shape[1]):
                part = np.concatenate(list(pieces.read_pieces(one.at(position))))
                assert part.tobytes() == np.ascontiguousarray(wanted[:, position]).tobytes()


@st.composite
def layouts(draw, shape, dtype, names, version):
    """Return how an array of others may lie on disk."""
    chunks = tuple(-(-n // draw(st.integers(1, 3))) + draw(st.integers(0, 1)) for n in shape)
    found: dict[str, Any] = {"chunks": chunks, "fill_value": draw(st.sampled_from([0, 1, None]))}
    if version == 2:
        codecs = [None, numcodecs.GZip(1), numcodecs.Blosc(), numcodecs.Zstd(1)]
        found["compressors"] = draw(st.sampled_from(codecs))
        found["order"] = draw(st.sampled_from("CF"))
        found["chunk_key_encoding"] = {"name": "v2", "separator": draw(st.sampled_from("./"))}
        return found
    found["compressors"] = draw(
        st.sampled_from([None, [GzipCodec(level=1)], [BloscCodec()], [ZstdCodec(level=1)], [Crc32cCodec()]])
    )
    found["serializer"] = BytesCodec(endian=draw(st.sampled_from(["little", "big"])))
    if draw(st.booleans()):
        found["filters"] = [TransposeCodec(order=draw(st.permutations(range(len(shape)))))]
    if draw(st.booleans()):
        found["shards"] = tuple(n * draw(st.integers(1, 3)) for n in chunks)
    name = draw(st.sampled_from(["default", "v2"]))
    found["chunk_key_encoding"] = {"name": name, "separator": draw(st.sampled_from("./"))}
    return found


@fault("arrays of others in any chunks, shards, codecs and axes", "read bit for bit")
@given(data=st.data())
@examples(20, 1000)
def test_arrays_of_others_are_read_bit_for_bit(data):
    names = data.draw(axes())
    shape = shape_of(data.draw, names)
    dtype = data.draw(st.sampled_from(TYPES))
    version = data.draw(st.sampled_from([2, 3]))
    x = filled(shape, dtype if version == 2 else dtype.removeprefix(">"), data.draw(st.integers(0, 99)))
    layout = data.draw(layouts(shape, dtype, names, version))
    assume(not (version == 2 and x.dtype.kind in "iu" and layout["fill_value"]))  # what xarray calls missing
    said = data.draw(st.sampled_from(["by the array", "by dims"]))
    if said == "by the array" and version == 3:
        layout["dimension_names"] = names
    wanted = x.astype(x.dtype.newbyteorder("=")).transpose(to_datapoints_first(names))
    short = mock.patch.object(pieces, "PIECE", data.draw(st.sampled_from([1, 100, 16 << 20])))
    with place() as folder, guarded(folder), short:
        group = zarr.open_group(folder / "g.zarr", mode="w", zarr_format=version)
        config = {"write_empty_chunks": True} | ({"order": layout.pop("order")} if "order" in layout else {})
        array = group.create_array("seed=3/a", shape=shape, dtype=x.dtype, config=config, **layout)
        array[...] = x
        if said == "by the array" and version == 2:
            array.attrs["_ARRAY_DIMENSIONS"] = list(names)
        dims = None if said == "by the array" else data.draw(st.sampled_from(spellings(names)))
        refused = ""
        try:
            store = dsvcca.open_store(folder / "g.zarr", dims=dims)
            found = store.read(layer="a", seed=3)
        except DsvccaError as error:
            refused = str(error)
        assume("looks like channels-first maps" not in refused)
        if refused:
            assert "holds nothing but the fill value" in refused
            assert "shards" in layout
            assert (x == array.fill_value).any()
            return
        assert found.dtype == wanted.dtype
        assert found.tobytes() == np.ascontiguousarray(wanted).tobytes()
        floats = x.dtype.kind == "f"
        problems = store.verify()
        assert problems.empty or (floats and "fill value" in problems.problem.iloc[0]), problems.to_string()


# Numbers are those in memory, however they came.


@dataclass(frozen=True)
class Layer:
    """How activations are made: of any rank, type, scale and place, some neurons dead."""

    seed: int
    columns: int
    rank: int
    noise: float
    dead: tuple[int, ...]
    mean: float
    dtype: str
    scale: float

    def activations(self, rows):
        rng = np.random.default_rng(self.seed)
        shared = np.random.default_rng(5).standard_normal((rows, 9))[:, : self.rank]
        x = shared @ rng.standard_normal((self.rank, self.columns))
        x += self.noise * rng.standard_normal(x.shape) + self.mean
        x[:, [column % self.columns for column in self.dead]] = 3.0
        kind = np.dtype(self.dtype).kind
        if kind == "b":
            return x > np.median(x)
        if kind in "iu":
            limits = np.iinfo(self.dtype)
            x *= min(limits.max, 1e6) / max(float(np.abs(x).max()), 1e-3)
            return np.clip(np.round(x), limits.min, limits.max).astype(self.dtype)
        scale = {"f2": 1.0, "f4": self.scale, "f8": self.scale ** (5 + self.seed % 6)}[self.dtype]
        return (x * scale).astype(self.dtype)


layers = st.builds(
    Layer,
    seed=st.integers(0, 2**20),
    columns=st.integers(1, 9),
    rank=st.integers(0, 9),
    noise=st.sampled_from([0.0, 0.1, 1.0]),
    dead=st.lists(st.integers(0, 8), max_size=2).map(tuple),
    mean=st.sampled_from([0.0, 0.0, 10.0, 1e3]),
    dtype=st.sampled_from(["f4", "f4", "f8", "f2", "i1", "u1", "i4", "bool"]),
    scale=st.sampled_from([1.0, 1.0, 1e-6, 1e6, 1e-25, 1e25]),
)


def has_direction(x):
    try:
        dsvcca.cca(x, x, variance=1.0)
    except DsvccaError:
        return False
    return True


EVERYTHING = tuple(MEASURES)


@fault("small populations of any rank, type and scale", "the numbers in memory; chunks and order change no bit")
@given(data=st.data())
@examples(5, 400)
def test_results_are_those_in_memory_and_neither_chunks_nor_order_change_a_bit(data):
    rows = data.draw(st.integers(2, 50))
    arrays = [one.activations(rows) for one in data.draw(st.lists(layers, min_size=2, max_size=4))]
    assume(not any(np.array_equal(x, y) for x, y in combinations(arrays, 2)))  # see below
    order = data.draw(st.permutations(range(len(arrays))))
    shares = [0.9, 1.0]
    with place() as folder, guarded(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore", DsvccaWarning)
        store = dsvcca.create_store(folder / "s.zarr", datapoints=rows)
        other = dsvcca.create_store(folder / "t.zarr", datapoints=rows)
        group = zarr.open_group(folder / "g.zarr", mode="w")
        with mock.patch.object(chunked, "CHUNK", data.draw(st.sampled_from([1, 300]))):
            for i in order:
                other.write(arrays[i], layer="a", seed=i)
        for i, x in enumerate(arrays):
            store.write(x, layer="a", seed=i)
            chunks = tuple(data.draw(st.integers(1, n)) for n in x.shape)
            array = group.create_array(
                f"seed={i}/a", shape=x.shape, dtype=x.dtype, chunks=chunks, config={"write_empty_chunks": True}
            )
            array[...] = x
        found = []
        for name, one in (("r", store), ("o", other), ("f", dsvcca.open_store(folder / "g.zarr"))):
            plan = dsvcca.plan_comparisons(one, variance=shares, measures=EVERYTHING, shuffles=19)
            if sum(map(has_direction, arrays)) < 2:
                with pytest.raises(DsvccaError, match="nothing is left to compare"):
                    dsvcca.compare(plan, folder / f"{name}.zarr", workspace=folder / f"{name}.w")
                return
            table = dsvcca.compare(plan, folder / f"{name}.zarr", workspace=folder / f"{name}.w").load()
            assert len(table.attrs["failed"]) == sum(not has_direction(x) for x in arrays)
            found.append(table.isel({side: np.argsort(table[f"{side}_seed"].values) for side in "xy"}))
    assert same_bits(found[0], found[1])
    assert same_bits(found[0], found[2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DsvccaWarning)
        for (i, x), (j, y) in product(enumerate(arrays), repeat=2):
            for at, share in enumerate(shares):
                check_pair({name: v.values[i, j, at] for name, v in found[0].items() if name != "view"}, x, y, share)


def check_pair(found, x, y, share):
    """Fail unless the numbers of a pair are those in memory, and near those of the reference."""
    if not (has_direction(x) and has_direction(y)):
        assert np.isnan(found["svcca"])
        return
    here = dsvcca.cca(x, y, variance=share)
    assert (found["rank_x"], found["rank_y"]) == (here.x_rank, here.y_rank)
    assert abs(found["svcca"] - dsvcca.svcca(x, y, variance=share)) < 1e-6
    assert abs(found["r2"] - np.mean(here.correlations**2)) < 2e-6
    apart = np.diff(-here.correlations, append=0.0).min()
    if apart > 1e-3:  # directions of equal correlations, or of none, may be any, and PWCCA is not the same for all
        assert abs(found["pwcca_x"] - dsvcca.pwcca(x, y, variance=share)) < 1e-5 / apart
        assert abs(found["pwcca_y"] - dsvcca.pwcca(x, y, variance=share, side="y")) < 1e-5 / apart
    if all(1e-60 < np.abs(one.astype("f8")).max() < 1e60 for one in (x, y)):
        answer = reference.cca(plain(x), plain(y), share)
        if (answer.x_rank, answer.y_rank) == (here.x_rank, here.y_rank):
            assert abs(found["svcca"] - answer.mean) < 2e-6


def plain(x):
    return x.astype("f8") if x.dtype.kind in "iub" else x


# Labels are any words.

words = st.one_of(
    st.text(min_size=1, max_size=12),
    st.from_regex(r"[^\W\d]\w{0,8}", fullmatch=True),
    st.sampled_from(["a·b", "ª", "self", "model", "seed", "step", "x", "class", "__init__", "none", "a" * 300]),
    st.sampled_from(["\u017f", "\U0001d535", "\u2118", "layer"]),
)
values = st.one_of(
    st.text(max_size=20),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.sampled_from(
        [
            *("..", "../x", "/", ".", "", "CON", "a/b", "a,b=c", "a@2", "\0", "\ud800", "é", "e\u0301", "x" * 400, " "),
            *(np.float32(0.1), np.int8(3), np.True_, np.str_("a"), -0.0, 5e-324, 2**63 - 1, -(2**63), [], b"a", "%2F"),
        ]
    ),
)


@fault("any words as names and values of labels", "refused, or written, found, compared and shown as they are")
@given(given_labels=st.dictionaries(words, values, max_size=3), layer=values, other=values)
@example(given_labels={"seed": -0.0}, layer="a", other="A")
@example(given_labels={"model": "../../x", "lr": 5e-324}, layer="../x", other="/")
@example(given_labels={"seed": 2**63 - 1, "kind": "a,b=c"}, layer="a@2", other="a")
@example(given_labels={"name_": "x" * 400, "on": True}, layer="%2F", other="..")
@examples(18, 1000)
def test_labels_are_refused_or_come_back_as_they_are(given_labels, layer, other):
    x, y = filled((12, 3), "i1", 0), filled((12, 2), "i1", 1)
    assume("self" not in given_labels)  # see below
    assume(all(len(name.encode("utf-8", "surrogatepass")) < 200 for name in given_labels))  # see below
    assume(not any("\0" in one for one in (*given_labels.values(), layer, other) if isinstance(one, str)))  # see below
    assume(all(re.fullmatch(r"\w+", name) for name in given_labels if name.isidentifier()))  # see below
    with place() as folder, guarded(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore", DsvccaWarning)
        store = dsvcca.create_store(folder / "s.zarr", datapoints=12)
        try:
            store.write(x, **{**given_labels, "layer": layer})
        except DsvccaError:
            assert sorted(path.name for path in (folder / "s.zarr").iterdir()) == ["zarr.json"]
            return
        with suppress(DsvccaError):
            store.write(y, **{**given_labels, "layer": other})
        assert {path.name for path in folder.iterdir()} == {"s.zarr"}
        store = dsvcca.open_store(folder / "s.zarr")
        rows = store.index
        for name, value in {**given_labels, "layer": layer}.items():
            back = rows[name].iloc[0]
            assert back == value
            assert isinstance(back, str) == isinstance(value, str)
            assert value in store.index[name].tolist()
        assert store.verify().empty
        assert store.read(**{**given_labels, "layer": layer}).tobytes() == x.tobytes()
        if len(rows) == 2:
            assert store.read(**{**given_labels, "layer": other}).tobytes() == y.tobytes()
        results = dsvcca.compare(dsvcca.plan_comparisons(store), folder / "r.zarr", workspace=folder / "w")
        for name, value in {**given_labels, "layer": layer}.items():
            assert results[f"x_{name}"].values[0] == value
        if len(rows) == 2:
            part = dsvcca.select(dsvcca.open_results(folder / "r.zarr"), x={"layer": layer}, y={"layer": other})
            assert part.svcca.shape == (1, 1)
            assert len(dsvcca.to_frame(results)) == 3


@pytest.mark.parametrize(
    "layer", ["../x", "/", "a/../../../x", "..", ".", "a@2", "a,b=c", "CON", "%2F", "x" * 400, "é", " "]
)
def test_names_that_would_lead_elsewhere_are_written_where_they_belong(layer):
    x = filled((12, 3), "i1", 0)
    with place() as folder, guarded(folder):
        store = dsvcca.create_store(folder / "s.zarr", datapoints=12)
        store.write(x, layer=layer, model=layer)
        assert len(list((folder / "s.zarr").iterdir())) == 2
        assert dsvcca.open_store(folder / "s.zarr").read(layer=layer, model=layer).tobytes() == x.tobytes()


# Damage.


@dataclass(frozen=True)
class Damage:
    """Something that happens to a folder: `what` to the file or folder number `which`."""

    what: str
    which: int
    at: int
    value: Any
    sign: bool


FILES = ["flip", "insert", "cut", "shorten", "empty", "delete", "folder", "loop", "fifo", "swap", "move", "bytes"]
FOLDERS = ["delete folder", "swap folders", "rename folder", "copy folder", "file for folder", "loop for folder"]
NAMES = ["a@2", "seed=0,lr=0.1,layer=a@2", "seed=9,layer=a", "pack-0", "pack-" + "0" * 24, ".x", "zarr.json", "x y"]
NAMES += ["mask", "datapoints", "svcca", "commits", "targets-0.json", "0-0.json", "c.0", "c.9.9", "partial-fuzzed"]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(NASTY),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=8), inside, max_size=3),
    max_leaves=6,
)
damages = st.builds(
    Damage,
    what=st.sampled_from([*FILES, *FOLDERS, *["flip"] * 4, *["json"] * 14]),
    which=st.integers(0, 2**16),
    at=st.integers(0, 2**16),
    value=json_values,
    sign=st.booleans(),
)


def pick(found, which):
    found = sorted(found)
    return found[which % len(found)] if found else None


def applied(one, box, roots):
    """Do some damage below one of some folders of a box; say whether a record was signed again."""
    root = box.folder / roots[one.at % len(roots)]
    inside = [root, *root.rglob("*")]
    plain_files = [path for path in inside if path.is_file() and not path.is_symlink()]
    if one.what != "json":  # there are many that only describe
        of_kind = [path for path in plain_files if (path.suffix == ".json") == (one.which % 3 == 0)]
        plain_files = of_kind or plain_files
    inner = [path for path in inside if path.is_dir() and not path.is_symlink()]
    value = one.value if isinstance(one.value, str) else repr(one.value)
    raw = value.encode("utf-8", "surrogatepass") or b"\0"
    if one.what == "json":
        path = pick([path for path in plain_files if path.suffix == ".json"], one.which // 7)
        if path is None:
            return False
        try:
            changed = document = json.loads(path.read_bytes())
            record = document.get("attributes", {}).get("dsvcca") if isinstance(document, dict) else None
            if isinstance(record, dict) and one.at % 2:  # what others may say beside it is as long
                record = edited(record, one.at // 6, one.which % 7, one.value)
                changed = {**document, "attributes": {**document["attributes"], "dsvcca": record}}
            else:
                changed = edited(document, one.at // 6, one.which % 7, one.value)
            changed = signed_again(changed) if one.sign else changed
        except (ValueError, RecursionError, AttributeError):
            return False
        path.write_bytes(spelled(changed))
        note(f"{path.relative_to(box.folder)}: {differences(document, changed)}")
        return one.sign
    if one.what in FOLDERS:
        path, to = pick(inner, one.which), pick(inner, one.at // 3)
        note(f"{one.what} {path and path.relative_to(box.folder)} {to and to.relative_to(box.folder)}")
        if path is None:
            return False
        target = path.with_name(NAMES[one.at % len(NAMES)])
        if one.what in ("rename folder", "copy folder") and target.exists():
            return False
        if one.what == "rename folder":
            path.rename(target)
        elif one.what == "copy folder":
            shutil.copytree(path, target, symlinks=True)
        elif one.what == "swap folders":
            if not (path.is_relative_to(to) or to.is_relative_to(path)):
                swapped(path, to)
        else:
            shutil.rmtree(path)
            if one.what == "file for folder":
                path.write_bytes(raw)
            elif one.what == "loop for folder":
                path.symlink_to(path)
        return False
    path, to = pick(plain_files, one.which // 3), pick(plain_files, one.at // 3)
    note(f"{one.what} {path and path.relative_to(box.folder)}")
    if path is None:
        return False
    content = bytearray(path.read_bytes())
    at = one.at % max(1, len(content))
    if one.what == "flip" and content:
        content[at] ^= 1 << one.which % 8
        path.write_bytes(content)
    elif one.what == "insert":
        path.write_bytes(content[:at] + raw + content[at:])
    elif one.what == "cut":
        path.write_bytes(content[:at])
    elif one.what == "shorten":
        path.write_bytes(content[:at] + content[at + 1 + one.which % 9 :])
    elif one.what == "bytes":
        path.write_bytes(raw)
    elif one.what == "empty":
        path.write_bytes(b"")
    elif one.what == "swap":
        swapped(path, to)
    elif one.what == "move":
        target = path.with_name(NAMES[one.at % len(NAMES)])
        if not target.exists():
            path.rename(target)
    elif one.what in ("delete", "folder", "loop", "fifo"):
        path.unlink()
        if one.what == "folder":
            path.mkdir()
        elif one.what == "loop":
            path.symlink_to(path)
        elif one.what == "fifo" and not waited_for(path, box):
            os.mkfifo(path)
    return False


def waited_for(path, box):
    """Return whether Zarr itself reads a file, and would wait at a pipe: see the tests below."""
    return path.is_relative_to(box.out) or path.parent.name in ("activations", "datapoints")


def swapped(one, other):
    if one != other:
        between = one.with_name(".between")
        one.rename(between)
        other.rename(one)
        between.rename(other)


def differences(before, after):
    """Return in words where two JSON documents differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [key for key in {**before, **after} if before.get(key, "none") != after.get(key, "none")]
        return {key: differences(before.get(key, "none"), after.get(key, "none")) for key in keys if key != "digest"}
    return f"{str(before)[:60]} -> {str(after)[:60]}"


def labels_of(table, side):
    names = [str(name)[2:] for name in table.coords if str(name).startswith(f"{side}_")]
    columns = [table[f"{side}_{name}"].values.tolist() for name in names]
    return [key_of(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def check_numbers(found, true, *, may_miss):
    """Fail unless every number of some results is that of the undamaged ones, or missing where that may be."""
    where = {side: [labels_of(true, side).index(one) for one in labels_of(found, side)] for side in "xy"}
    for name, variable in found.data_vars.items():
        right = true[name].isel({side: where[side] for side in "xy" if side in variable.dims})
        mine, wanted = variable.values, right.values
        if name == "view":
            mine, wanted = (
                np.asarray(["", *one.attrs["flag_meanings"].split()])[one.values] for one in (variable, right)
            )
        assert mine.shape == wanted.shape, name
        same = (mine == wanted) | ((mine != mine) & (wanted != wanted))
        missing = mine != mine if mine.dtype.kind == "f" else mine == ("" if name == "view" else 0)
        assert (same | (missing & may_miss)).all(), f"{name}: {mine[~same][:3]} instead of {wanted[~same][:3]}"


def check_activations(box, store):
    """Fail unless every representation that can be read has its numbers."""
    for one in store.representations:
        with suppress(DsvccaError):
            found = np.concatenate(list(pieces.read_pieces(one)))
            right = box.numbers.get(key_of(one.labels))
            assert right is not None, f"{one} was never written"
            assert found.tobytes() == right.tobytes(), one


def read_all(box, honest):
    for labels in box.numbers:
        with suppress(DsvccaError):
            found = dsvcca.open_store(box.store).read(**dict(labels))
            right = box.numbers[labels]
            assert not honest or (found.dtype, found.tobytes()) == (right.dtype, right.tobytes()), labels


def list_all(box, honest):
    store = dsvcca.open_store(box.store)
    rows = store.index
    found = store.representations
    assert len(rows) == len(found) == len({key_of(one.labels) for one in found})
    for one in found:
        right = box.numbers.get(key_of(one.labels))
        if one.written < 0:  # the record of the store was exchanged for an array's: it is read as somebody else's
            continue
        assert not honest or (one.whole_shape, one.dtype) == (right.shape, right.dtype.name)


def verify_all(box, honest):
    store = dsvcca.open_store(box.store)
    problems = store.verify()
    assert list(problems.columns) == ["name", "chunk", "problem"]
    if honest:
        check_activations(box, store)
        if problems.empty:  # nothing may fail where nothing was found
            for one in store.representations:
                found = np.concatenate(list(pieces.read_pieces(one)))
                assert found.tobytes() == box.numbers[key_of(one.labels)].tobytes()


def compare_all(box, honest):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", DsvccaWarning)
        table = box.compared()
    failed = table.attrs["failed"]
    assert not failed or any("could not be compared" in str(one.message) for one in said)
    try:
        table.load()
    except ValueError as error:
        if "checksum" not in str(error):  # see below
            raise
        return
    masked = representations.find_mask(box.store)  # see below
    if honest and (masked or box.plan is not fuzz_targets.boxes()["rich"].plan):
        check_numbers(table, box.table, may_miss=bool(failed))


def open_all(box, honest):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", DsvccaWarning)
        table = dsvcca.open_results(box.out)
    try:
        table.load()
    except Exception as error:  # of Zarr, which reads the numbers of a chunk
        note(f"loading: {error!r}")
        return
    if honest and not any("is not complete" in str(one.message) for one in said):  # see below
        check_numbers(table, box.table, may_miss=False)


def verify_by_command(box, honest):
    for root in (box.store, box.workspace, box.out):
        found = CliRunner().invoke(cli.app, ["verify", str(root)])
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        assert found.exit_code in (0, 1)
        assert "Traceback" not in found.output


ACTIONS = [list_all, verify_all, read_all, compare_all, open_all, verify_by_command]

READ_BY = {
    **dict.fromkeys((list_all, verify_all, read_all), ("s.zarr",)),
    **dict.fromkeys((compare_all, verify_by_command), ("s.zarr", "w", "r.zarr")),
    open_all: ("r.zarr",),
}
"""What is worth damaging."""

OUTCOMES = {
    list_all: "an error, or the representations that are whole",
    verify_all: "an error or findings; where there are none, every number is right",
    read_all: "an error, or the right numbers",
    compare_all: "an error, the same bits, or NaN for what it says has failed",
    open_all: "an error, the right numbers, or a warning and NaN",
    verify_by_command: "problems, or one sentence; never a traceback",
}


def endured(name, what, action):
    """Damage a copy of a box and do something with it: it is right, or refused."""
    with place() as folder:
        box = fuzz_targets.boxes()[name].copied(folder / "box")
        signed = [applied(one, box, READ_BY[action]) for one in what]
        with guarded(box.folder), answered():
            action(box, not any(signed))


@pytest.mark.parametrize(
    "action",
    [
        pytest.param(one, marks=fault(f"random damage, then {one.__name__.replace('_', ' ')}", OUTCOMES[one]))
        for one in ACTIONS
    ],
    ids=lambda one: one.__name__,
)
@given(name=st.sampled_from(["dense", "rich", "direct"]), what=st.lists(damages, min_size=1, max_size=3))
@examples(30, 1200)
def test_damage_is_refused_or_changes_no_bit(action, name, what):
    endured(name, what, action)


# What atheris runs, without it.


targets = pytest.mark.parametrize(
    "target",
    [
        pytest.param(
            name, marks=fault(f"any bytes: {one.__doc__.splitlines()[0]}", "an answer, or one sentence"), id=name
        )
        for name, one in fuzz_targets.TARGETS.items()
    ],
)


@targets
def test_targets_endure_their_corpus(target):
    for data in fuzz_targets.CORPUS:
        fuzz_targets.run(target, data)


@targets
@given(data=st.binary(max_size=120))
@examples(20, 800)
def test_targets_endure_random_bytes(target, data):
    fuzz_targets.run(target, data)


# What fuzzing has found.


@pytest.fixture
def dense():
    """A copy of the results of three dense layers in tiles."""
    with place() as folder:
        yield fuzz_targets.boxes()["dense"].copied(folder / "box")


def rewrite(path, change):
    """Change the record in a JSON file, or all of the file, and sign it again."""
    document = json.loads(path.read_text())
    record = document.get("attributes", {}).get("dsvcca", document)
    change(document, record)
    path.write_bytes(spelled(signed_again(document)))


def looped(path):
    shutil.rmtree(path)
    path.symlink_to(path)


def piped(path):
    path.unlink()
    os.mkfifo(path)


def replaced(path):
    """Put a file where a folder was, or a folder where a file was."""
    if path.is_dir():
        shutil.rmtree(path)
        path.write_bytes(b"")
    else:
        path.unlink()
        path.mkdir()


def inserted(path, at=1):
    content = path.read_bytes()
    path.write_bytes(content[:at] + b"?" + content[at:])


COMMITS, RECORD, LEARNED = "r.zarr/commits/zarr.json", "r.zarr/zarr.json", "r.zarr/commits/bases.json"
RESULTS = {
    "commits are no group": (COMMITS, lambda path: path.write_text("{}")),
    "commits are of another format": (
        COMMITS,
        lambda path: rewrite(path, lambda all, _: all.update(node_type=5)),
    ),
    "results are of another format": (
        RECORD,
        lambda path: rewrite(path, lambda all, _: all.update(zarr_format=2)),
    ),
    "an array is a file": ("r.zarr/svcca", replaced),
    "an array is a loop": ("r.zarr/svcca", looped),
    "what describes an array is a folder": ("r.zarr/svcca/zarr.json", replaced),
    "what describes an array is a pipe": ("r.zarr/svcca/zarr.json", piped),
    "places are damaged": ("r.zarr/x/c.0", inserted),
    "a panel of nothing": (
        RECORD,
        lambda path: rewrite(path, lambda _, own: own["definition"].update(panel=0)),
    ),
}

RESULTS_OPENED = RESULTS | {
    "targets that are not there": (RECORD, lambda path: rewrite(path, lambda _, own: own.update(targets=True))),
    "frequencies that are not there": (
        RECORD,
        lambda path: rewrite(path, lambda _, own: own.update(frequencies=5)),
    ),
    "nothing is shown": (
        RECORD,
        lambda path: rewrite(path, lambda _, own: own.update(shown=[])),
    ),
}

RESULTS_FILLED = RESULTS | {
    "a label is damaged": ("r.zarr/y_layer/c.0", inserted),
    "libraries that are none": (
        RECORD,
        lambda path: rewrite(path, lambda all, _: all["attributes"].update(array_library=5)),
    ),
    "ranks of other rules": (
        LEARNED,
        lambda path: rewrite(path, lambda all, _: next(iter(all["bases"].values()))["deepest"].append(1)),
    ),
}


def cases(known):
    return [
        pytest.param(*case, marks=fault(name, "an error, or the same bits"), id=name) for name, case in known.items()
    ]


@pytest.mark.parametrize(("path", "damage"), cases(RESULTS_OPENED))
def test_damaged_results_are_refused_by_who_opens_them(dense, path, damage):
    damage(dense.folder / path)
    with guarded(dense.folder, seconds=2), pytest.raises(DsvccaError):
        dsvcca.open_results(dense.out).load()


@pytest.mark.parametrize(("path", "damage"), cases(RESULTS_FILLED))
def test_damaged_results_are_refused_or_mended_by_who_fills_them(dense, path, damage):
    damage(dense.folder / path)
    with guarded(dense.folder, seconds=2), suppress(DsvccaError):
        check_numbers(dense.compared().load(), dense.table, may_miss=False)


@fault("two layers of the same numbers, in either order", "the same bits, pwcca_y is pwcca_x")
def test_the_order_of_two_layers_that_are_one_changes_no_bit():
    x = Layer(5815, 7, 4, 0.1, (8, 4), 10.0, "f4", 1e-6).activations(33)
    with place() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DsvccaWarning)
        for name, order in (("r", (0, 1)), ("o", (1, 0))):
            store = dsvcca.create_store(folder / f"{name}.s", datapoints=33)
            for seed in order:
                store.write(x, layer="a", seed=seed)
            dsvcca.compare(dsvcca.plan_comparisons(store, variance=1.0), folder / name)
        one, other = (dsvcca.open_results(folder / name).load() for name in "ro")
        assert same_bits(one, other.isel(x=[1, 0], y=[1, 0]))


@fault("chunks of results that were exchanged", "a warning, and their numbers read as NaN")
def test_numbers_that_are_not_those_committed_are_never_read(dense):
    swapped(dense.out / "svcca" / "c.0.1.0", dense.out / "r2" / "c.0.1.0")
    with pytest.warns(DsvccaWarning, match="the numbers of the others read as NaN"):
        found = dsvcca.open_results(dense.out).load()
    check_numbers(found, dense.table, may_miss=True)


@fault("a chunk of results that is a pipe", "a warning, and its numbers read as NaN")
def test_results_with_a_pipe_for_a_chunk_do_not_wait(dense):
    piped(dense.out / "svcca" / "c.0.1.0")
    with guarded(dense.folder, seconds=2), suppress(OSError, ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore", DsvccaWarning)
        dsvcca.open_results(dense.out).load()


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(name, marks=fault(f"a pipe at {name.rpartition('/')[2]} of a store", "verify lists it"), id=name)
        for name in ("datapoints/c.0", "lr=0.1,layer=a/activations/zarr.json")
    ],
)
def test_verify_does_not_wait_at_a_pipe(dense, path):
    piped(dense.store / path.replace("lr=", "seed=0,lr="))
    with guarded(dense.folder, seconds=2):
        assert len(dsvcca.open_store(dense.store).verify()) == 1


@fault("a link to itself among representations", "an error, or the others")
def test_a_loop_among_representations_is_refused(dense):
    looped(next(dense.store.glob("seed=1*")))
    with suppress(DsvccaError):
        assert len(dsvcca.open_store(dense.store).index) == 2


@fault("a mask that is gone, or is another", "verify lists it, compare refuses; it can be written again")
def test_a_mask_that_is_gone_is_told():
    with place() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DsvccaWarning)
        box = fuzz_targets.boxes()["rich"].copied(folder / "box")
        store = dsvcca.open_store(box.store)
        valid = representations.read_mask(representations.find_mask(box.store))
        shutil.rmtree(box.store / "mask")
        for other in (False, True):
            if other:
                dsvcca.create_store(folder / "other.zarr", datapoints=len(valid)).write_mask(~valid)
                shutil.copytree(folder / "other.zarr" / "mask", box.store / "mask")
            assert store.verify().name.tolist() == ["mask"]
            with pytest.raises(DsvccaError, match=r"the mask .* is (gone|another than the one)"):
                box.compared()
        shutil.rmtree(box.store / "mask")
        store.write_mask(valid)
        check_numbers(box.compared().load(), box.table, may_miss=False)


@fault("a record of a kind that is no word", "exit status, never a traceback")
def test_verify_at_the_prompt_refuses_a_kind_that_is_no_word(dense):
    rewrite(dense.workspace / "zarr.json", lambda _, own: own.update(kind=[]))
    found = CliRunner().invoke(cli.app, ["verify", str(dense.workspace)])
    assert isinstance(found.exception, SystemExit)


@fault("a record of a type that is none", "an error")
def test_a_record_of_a_type_that_is_none_is_refused(dense):
    rewrite(next(dense.store.glob("seed=1*")) / "zarr.json", lambda _, own: own.update(dtype="f4,,"))
    with pytest.raises(DsvccaError, match="is damaged"):
        dsvcca.open_store(dense.store).index  # noqa: B018


@fault("a partial result of 2^50 numbers, by its record", "an error, before memory is taken")
def test_a_partial_result_of_any_size_is_refused(dense):
    rewrite(dense.workspace / "partial-fuzzed" / "zarr.json", lambda _, own: own["arrays"][0].update(shape=[2**50]))
    with guarded(), pytest.raises(DsvccaError):
        dsvcca.workspace.partials.read_partial(str(dense.workspace), "fuzzed")


PACKS = {
    "bases of 2^50 neurons, by their record": lambda own: own["bases"][0].update(neurons=2**50),
    "bases with neither columns nor pairs": lambda own: own.update(chunks=None),
}


@pytest.mark.parametrize(
    "change", [pytest.param(change, marks=fault(name, "an error"), id=name) for name, change in PACKS.items()]
)
def test_a_pack_that_contradicts_itself_is_refused(dense, change):
    path = sorted(dense.workspace.glob("pack-*"))[0]
    rewrite(path / "zarr.json", lambda _, own: change(own))
    with guarded(), pytest.raises(DsvccaError):
        one = Pack(str(dense.workspace), path.name)
        one.basis(0)
        list(one.columns(slice(0, 40), slice(0, 1)))


@pytest.mark.parametrize("dims", [[["datapoint"], "neuron"], ["datapoint", {}]])
@fault("axes that are no words", "an error")
def test_axes_that_are_no_words_are_refused(dims):
    with pytest.raises(DsvccaError, match="dims="):
        dsvcca.activations.labels.checked_dims(dims, (3, 4), "an array")


FOREIGN = {
    "axes that are a number": (
        "a/.zattrs",
        lambda about: {"_ARRAY_DIMENSIONS": 5},
    ),
    "attributes that are a list": (
        "a/.zattrs",
        lambda about: [],
    ),
    "chunks by the billion": (
        "a/.zarray",
        lambda about: {**about, "shape": [2**40, 3], "chunks": [1, 3]},
    ),
    "chunks across by the billion": (
        "a/.zarray",
        lambda about: {**about, "shape": [12, 2**40], "chunks": [5, 1]},
    ),
}


@pytest.mark.parametrize(
    ("path", "change"),
    [
        pytest.param(*case, marks=fault(f"others: {name}", "an error, or a finding"), id=name)
        for name, case in FOREIGN.items()
    ],
)
def test_arrays_of_others_that_make_no_sense_are_refused(path, change):
    with place() as folder:
        shutil.copytree(fuzz_targets._foreign()[2], folder / "g.zarr")
        path = folder / "g.zarr" / path
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
        with guarded(folder, seconds=2), suppress(DsvccaError):
            store = dsvcca.open_store(folder / "g.zarr")
            assert len(store.verify()) < 1_000_000
            store.read(layer="a")


@pytest.mark.parametrize("name", ["a\u00b7b", "\u2118"])
@fault("labels of any letters Python allows in names", "stored, compared and read")
def test_a_label_is_named_by_letters_that_results_may_have(name):
    with place() as folder:
        store = dsvcca.create_store(folder / "s.zarr", datapoints=600)
        with suppress(DsvccaError):
            for value in range(2):
                store.write(activations_of(value), layer="a", **{name: value})
        if len(store.index):
            results = dsvcca.compare(dsvcca.plan_comparisons(store), folder / "r.zarr")
            assert results[f"x_{name}"].values.tolist() == [0, 1]


@fault("a label name of 300 letters", "an error")
def test_a_label_that_is_stored_can_be_compared():
    with place() as folder:
        store = dsvcca.create_store(folder / "s.zarr", datapoints=600)
        with suppress(DsvccaError):
            for value in range(2):
                store.write(activations_of(value), layer="a", **{"a" * 300: value})
        if len(store.index):
            dsvcca.compare(dsvcca.plan_comparisons(store), folder / "r.zarr")


@fault("labels that end in a zero byte", "an error")
def test_labels_that_differ_in_a_zero_at_their_end_are_two():
    with place() as folder:
        store = dsvcca.create_store(folder / "s.zarr", datapoints=600)
        with suppress(DsvccaError):
            for place_, layer in enumerate(("a", "a\0")):
                store.write(activations_of(place_), layer=layer)
        results = dsvcca.compare(dsvcca.plan_comparisons(store), folder / "r.zarr")
        for place_, layer in enumerate(store.index.layer):
            assert dsvcca.select(results, x={"layer": layer}).x.values == [place_]


@fault("any name for a label at the prompt", "exit status, never a traceback")
def test_no_condition_at_the_prompt_is_a_traceback(dense):
    found = CliRunner().invoke(cli.app, ["info", str(dense.store), "--where", "self=1"])
    assert isinstance(found.exception, SystemExit)


@fault("patterns for which a backtracking match takes hours", "fitted or refused in linear time")
@pytest.mark.parametrize("pattern", ["{a}{b}{c}{d}{e}{f}{g}{h}x", "{a}a{b}a{c}a{d}a{e}a{f}a{g}a{h}x"])
def test_a_pattern_is_fitted_or_refused_in_no_time(pattern):
    with guarded(seconds=2), pytest.raises(DsvccaError):
        dsvcca.activations.paths.fit("a" * 2000, pattern)
