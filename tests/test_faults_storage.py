"""Damage on storage: found, named and mended by the same line, or said to be beyond finding; never a wrong number."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from typer.testing import CliRunner
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

import dsvcca
from dsvcca import DsvccaError, DsvccaWarning, cli
from dsvcca.engine import execute, reduce
from dsvcca.errors import RunError
from dsvcca.storage import chunked
from dsvcca.storage.records import signed, write_record
from dsvcca.storage.staging import STAGING
from tests.populations import activations, same_bits

ROWS = 3000
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")


def fault(case, outcome):
    return pytest.mark.fault("storage", case, outcome)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A store of four layers in two chunks each, its workspace and its results."""
    root = tmp_path_factory.mktemp("sound")
    store = dsvcca.create_store(root / "s.zarr", datapoints=ROWS)
    for seed in range(4):
        write_in_two(store, seed, activations(seed, n=ROWS))
    dsvcca.compare(planned(store), root / "r.zarr").load()
    return root


def write_in_two(store, seed, x, **options):
    """Write a layer in two chunks, small as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "CHUNK", x.nbytes // 2)
        store.write(x, layer="a", seed=seed, **options)


@pytest.fixture
def here(sound, tmp_path):
    """A copy of all of it, to be damaged."""
    for name in ("s.zarr", "s.zarr.workspace", "r.zarr"):
        shutil.copytree(sound / name, tmp_path / name)
    return tmp_path


def planned(store):
    return dsvcca.plan_comparisons(store, rank=8)


def results_of(root):
    return dsvcca.open_results(root / "r.zarr").load()


def array_of(root, seed=1):
    return root / "s.zarr" / f"seed={seed},layer=a" / "activations"


def flip(path, at=100):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def rewrite(path, change):
    """Change a JSON file as a person would; our record is signed anew."""
    content = json.loads(path.read_text())
    about = content["attributes"]["dsvcca"]
    change(about)
    content["attributes"]["dsvcca"] = signed({k: v for k, v in about.items() if k != "digest"})
    path.write_text(json.dumps(content))


def swapped(one, other):
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def loop(path):
    path.unlink()
    path.symlink_to(path.name)


def folder(path):
    path.unlink()
    path.mkdir()


CHUNKS = {
    "a flipped bit of a chunk": (lambda a: flip(a / "c.0.0"), "checksum does not hold"),
    "a flipped bit of a chunk's checksum": (lambda a: flip(a / "c.1.0", -1), "not the chunk that was committed"),
    "a truncated chunk": (lambda a: os.truncate(a / "c.0.0", 1000), "1000 bytes instead of"),
    "a chunk with more at its end": (lambda a: os.truncate(a / "c.0.0", 20 << 20), "bytes instead of"),
    "an empty chunk": (lambda a: os.truncate(a / "c.1.0", 0), "0 bytes instead of"),
    "a missing chunk": (lambda a: (a / "c.1.0").unlink(), "is missing"),
    "two chunks of a layer swapped": (lambda a: swapped(a / "c.0.0", a / "c.1.0"), "not the chunk that was committed"),
    "chunks of two layers swapped": (
        lambda a: swapped(a / "c.0.0", array_of(a.parents[2], 2) / "c.0.0"),
        "not the chunk that was committed",
    ),
    "a chunk that is a folder": (lambda a: folder(a / "c.0.0"), "not a file"),
    "a chunk that is a pipe": (lambda a: pipe(a / "c.0.0"), "not a file"),
    "a chunk that is a link to itself": (lambda a: loop(a / "c.0.0"), "symbolic links"),
}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(*both, id=case, marks=fault(f"own store: {case}", "verify and compare name the chunk"))
        for case, both in CHUNKS.items()
    ],
)
def test_a_damaged_chunk_is_found_by_verify_and_by_compare(here, damage, said):
    damage(array_of(here))
    store = dsvcca.open_store(here / "s.zarr")
    found = store.verify()
    first = found[found.name == "seed=1,layer=a"].iloc[0]
    assert first.chunk.startswith("c.")
    assert said in first.problem
    shutil.rmtree(here / "s.zarr.workspace")
    with pytest.warns(
        DsvccaWarning, match=rf"seed=1, layer='a': chunk '.*c\..\.0' is (damaged|missing).*{said}|missing"
    ):
        other = dsvcca.compare(planned(store), here / "other.zarr")
    assert np.isnan(other.svcca.values[1]).all()
    assert np.isfinite(other.svcca.values[3, [0, 3]]).all()


@fault("own store: a stale chunk of an older write", "verify and compare name the chunk")
def test_a_chunk_of_an_older_version_is_found(here):
    store = dsvcca.open_store(here / "s.zarr")
    write_in_two(store, 1, activations(9, n=ROWS), if_exists="replace")
    newer = here / "s.zarr" / "seed=1,layer=a@2" / "activations"
    shutil.copy(array_of(here) / "c.0.0", newer / "c.0.0")
    assert store.verify().chunk.tolist() == ["c.0.0"]
    with pytest.warns(DsvccaWarning, match=r"@2/activations/c.0.0' is damaged, it is not the chunk that was committed"):
        dsvcca.compare(planned(store), here / "other.zarr")


def changed(key, value):
    return lambda about: about.__setitem__(key, value)


RECORDS = {
    "cut short": (lambda p: os.truncate(p, 200), "is damaged"),
    "empty": (lambda p: os.truncate(p, 0), "is damaged"),
    "not JSON": (lambda p: p.write_bytes(b"\xff\xfe\x00"), "is damaged"),
    "brackets, a million deep": (lambda p: p.write_text("[" * 1_000_000), "is damaged"),
    "a number of 10,000 digits": (lambda p: p.write_text("9" * 10_000), "is damaged"),
    "a folder in its place": (folder, "not a file"),
    "a pipe in its place": (pipe, "not a file"),
    "a link to itself": (loop, "symbolic links"),
    "edited": (lambda p: p.write_text(p.read_text().replace("float32", "float64")), "was changed after it was written"),
    "its digest taken out": (
        lambda p: p.write_text(p.read_text().replace('"digest"', '"other"')),
        "was changed after it was written",
    ),
    "another format": (lambda p: rewrite(p, changed("format", 99)), "has format 99, this version reads 1"),
    "no checksums": (lambda p: rewrite(p, changed("checksums", {})), "checksums"),
    "checksums of files elsewhere": (
        lambda p: rewrite(p, changed("checksums", {"../../../../etc/passwd": "00000000"})),
        "checksums",
    ),
    "a negative shape": (lambda p: rewrite(p, changed("shape", [-3000, 24])), "shape"),
    "a shape of text": (lambda p: rewrite(p, changed("shape", "3000")), "shape"),
    "a shape with 10^18 rows": (lambda p: rewrite(p, changed("shape", [10**18, 24])), "datapoints by its record"),
    "a type that is no number": (lambda p: rewrite(p, changed("dtype", "O")), "is damaged"),
    "axes of another kind": (lambda p: rewrite(p, changed("dims", ["datapoint"])), "is damaged"),
    "labels of another layer": (lambda p: rewrite(p, changed("labels", {"layer": "b"})), "it belongs in a folder"),
    "a label that is a list": (lambda p: rewrite(p, changed("labels", {"layer": ["a"]})), "labels"),
    "a key too many": (lambda p: rewrite(p, changed("run", "rm -rf /")), "run"),
}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(*both, id=case, marks=fault(f"commit record: {case}", "verify and open_store name the record"))
        for case, both in RECORDS.items()
    ],
)
def test_a_damaged_record_is_found_and_named(here, damage, said):
    damage(array_of(here).parent / "zarr.json")
    store = dsvcca.open_store(here / "s.zarr")
    found = store.verify()
    assert found.name.tolist()[0] == "seed=1,layer=a"
    assert said in found.problem[0]
    with pytest.raises(DsvccaError, match=said):
        _ = store.index


@fault("a commit record that is gone", "the layer does not count; verify says what is left of it")
def test_without_its_record_a_layer_does_not_count(here):
    (array_of(here).parent / "zarr.json").unlink()
    store = dsvcca.open_store(here / "s.zarr")
    assert store.index.seed.tolist() == [0, 2, 3]
    assert store.verify().problem.tolist() == [
        "is no committed representation: its record is gone, or it is something else"
    ]


ARRAYS = {
    "an array that was renamed": lambda a: a.rename(a.with_name("other")),
    "an array whose metadata is gone": lambda a: (a / "zarr.json").unlink(),
    "array metadata that is no JSON": lambda a: (a / "zarr.json").write_text("{"),
    "array metadata of another shape": lambda a: (a / "zarr.json").write_text(
        (a / "zarr.json").read_text().replace(str(ROWS), "2999", 1)
    ),
    "array metadata of another type": lambda a: (a / "zarr.json").write_text(
        (a / "zarr.json").read_text().replace("float32", "int32", 1)
    ),
}


@pytest.mark.parametrize(
    "damage", [pytest.param(d, id=case, marks=fault(case, "verify names the layer")) for case, d in ARRAYS.items()]
)
def test_damaged_metadata_of_an_array_is_found(here, damage):
    damage(array_of(here))
    found = dsvcca.open_store(here / "s.zarr").verify()
    assert found.name.tolist() == ["seed=1,layer=a"]


@fault("two damaged commit records", "verify names both, and goes on")
def test_verify_lists_every_damaged_record(here):
    for seed in (1, 2):
        os.truncate(array_of(here, seed).parent / "zarr.json", 40)
    flip(array_of(here, 3) / "c.0.0")
    found = verify(here / "s.zarr")
    assert found.exit_code == 1
    assert re.search(r"seed=1,layer=a: .*\nseed=2,layer=a: .*\nseed=3,layer=a: c.0.0 is damaged", found.output)


@fault("a replaced layer whose newest record is gone", "an error names it: the old numbers do not come back")
def test_a_replacement_without_its_record_does_not_bring_the_old_numbers_back(here):
    store = dsvcca.open_store(here / "s.zarr")
    store.write(activations(9, n=ROWS), layer="a", seed=1, if_exists="replace")
    (here / "s.zarr" / "seed=1,layer=a@2" / "zarr.json").unlink()
    for use in (lambda: dsvcca.open_store(here / "s.zarr").index, lambda: planned(dsvcca.open_store(here / "s.zarr"))):
        with pytest.raises(DsvccaError, match=r"seed=1,layer=a@2' has lost its record, and what it replaced would"):
            use()
    assert "has lost its record" in verify(here / "s.zarr").output
    shutil.rmtree(here / "s.zarr" / "seed=1,layer=a@2")
    assert same_bits(dsvcca.compare(planned(dsvcca.open_store(here / "s.zarr")), here / "r.zarr"), results_of(here))


METADATA = {
    "its byte order": lambda m: m["codecs"][0]["configuration"].update(endian="big"),
    "its names of axes": lambda m: m.update(dimension_names=m["dimension_names"][::-1]),
    "its attributes": lambda m: m["attributes"].update(scale_factor=2.0),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=fault(f"array metadata: {case} edited", "verify finds it")) for case in METADATA]
)
def test_array_metadata_that_others_would_read_is_verified(here, case):
    path = array_of(here) / "zarr.json"
    metadata = json.loads(path.read_text())
    METADATA[case](metadata)
    path.write_text(json.dumps(metadata))
    assert "seed=1,layer=a: activations/zarr.json is not what was written" in verify(here / "s.zarr").output


@fault("what is being written is cleaned away meanwhile", "an error, and nothing is written")
def test_a_writer_whose_folder_vanishes_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK", 40_000)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=ROWS)
    x = activations(0, n=ROWS)
    with pytest.raises(DsvccaError, match="is something cleaning"), store.writer(layer="a") as writer:
        writer.append(x[: ROWS // 2])
        shutil.rmtree(writer._folder)
        writer.append(x[ROWS // 2 :])
    assert not len(dsvcca.open_store(store.path).index)


@fault("a rank that no record can hold, or as many datapoints", "refused before anything is written")
def test_what_could_not_be_read_again_is_never_written(here, sound):
    with pytest.raises(DsvccaError, match="keeps nothing that could be counted"):
        dsvcca.plan_comparisons(dsvcca.open_store(here / "s.zarr"), rank=10**20)
    with pytest.raises(DsvccaError, match="a store needs at least 2 datapoints, and as many as can be"):
        dsvcca.create_store(here / "t.zarr", datapoints=2**63)
    with pytest.raises(DsvccaError, match="would hold what cannot be .datapoints"):
        write_record(here / "t.zarr", {"format": 1, "kind": "activations", "datapoints": -1})


@fault("a chunk that may not be read", "said so, and not called damaged")
@pytest.mark.skipif(shutil.which("setpriv") is None or os.geteuid() != 0, reason="root reads everything")
def test_what_may_not_be_read_is_not_called_damaged(here):
    chunk = array_of(here) / "c.0.0"
    chunk.chmod(0)
    tile = here / "r.zarr" / "svcca" / "c.0.0"
    tile.chmod(0)
    powers = ("--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
    for place in ("s.zarr", "r.zarr"):
        line = ["setpriv", *powers, sys.executable, "-m", "dsvcca", "verify", str(here / place)]
        found = subprocess.run(line, capture_output=True, text=True, check=False)
        assert found.returncode == 1
        assert "cannot be read ([Errno 13] Permission denied" in found.stdout + found.stderr
    for columns in here.glob("s.zarr.workspace/pack-*/columns/c.0.0"):
        columns.chmod(0)
    line = ["compare", str(here / "s.zarr"), str(here / "other.zarr"), "--rank", "8"]
    found = subprocess.run(
        ["setpriv", *powers, sys.executable, "-m", "dsvcca", *line], capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert "cannot be read ([Errno 13] Permission denied" in found.stderr
    assert "remove" not in found.stderr


LARGE = ("r.zarr/svcca/c.0.0", "r.zarr/commits/0-0.json", "r.zarr/x_layer/c.0", "s.zarr/zarr.json")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[
                fault(f"{name}: 200 GiB of nothing", "verify finds it in 1 GiB"),
                *([pytest.mark.slow] if name != "r.zarr/commits/0-0.json" else []),
            ],
        )
        for name in LARGE
    ],
)
@pytest.mark.timeout(400)
def test_no_file_is_larger_than_memory(here, name):
    os.truncate(here / name, 200 << 30 if name.endswith(".json") else 3 << 30)
    place = here / name.split("/")[0]
    line = f"ulimit -v 4000000; exec {sys.executable} -m dsvcca verify {place}"
    found = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "Traceback" not in found.stderr
    assert "memory" not in found.stderr


@fault("a run that failed for all, and other data then", "the same results folder is begun anew")
def test_results_that_hold_nothing_are_begun_anew(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=100)
    for layer in "ab":
        store.write(np.zeros((100, 5)), layer=layer)
    with pytest.raises(DsvccaError, match="nothing is left to compare: mend this, then run the same line again"):
        dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr")
    for seed, layer in enumerate("ab"):
        store.write(activations(seed, n=100, p=5), layer=layer, if_exists="replace")
    assert np.isfinite(dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr").svcca.values).all()


# Arrays of others that change


@fault("arrays of others behind a link, or with the times of before, that change", "compared anew")
def test_arrays_of_others_that_change_unseen_by_their_times_are_compared_anew(tmp_path):
    group = zarr.open_group(tmp_path / "f.zarr", mode="w")
    for name in range(3):
        x = activations(name, n=300).astype("f4")
        group.create_array(f"a{name}", data=x, chunks=(100, x.shape[1]), compressors=None)
    chunks = tmp_path / "f.zarr" / "a0" / "c"
    chunks.rename(tmp_path / "elsewhere")
    chunks.symlink_to(tmp_path / "elsewhere")

    def write(seed):
        x = activations(seed, n=300).astype("<f4")
        for place in range(3):
            path = tmp_path / "elsewhere" / str(place) / "0"
            path.write_bytes(x[100 * place : 100 * place + 100].tobytes())
            os.utime(path, (0, 0))

    def found(out):
        return dsvcca.compare(dsvcca.plan_comparisons(dsvcca.open_store(tmp_path / "f.zarr")), tmp_path / out).load()

    write(0)
    before = found("r.zarr").svcca.values
    write(5)  # as many bytes
    after = found("r.zarr").svcca.values
    assert abs(before - after).max() > 1e-4
    assert np.array_equal(after, found("other.zarr").svcca.values)


ROOTS = {
    "cut short": (lambda p: os.truncate(p, 40), "is damaged"),
    "a folder in its place": (folder, "not a file"),
    "without the number of datapoints": (lambda p: rewrite(p, lambda about: about.pop("datapoints")), "datapoints"),
    "with another number of datapoints": (
        lambda p: rewrite(p, changed("datapoints", 5)),
        "3000 datapoints by its record",
    ),
    "of another format": (lambda p: rewrite(p, changed("format", 7)), "has format 7, this version reads 1"),
}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(*both, id=case, marks=fault(f"the store's own record {case}", "an error that names it"))
        for case, both in ROOTS.items()
    ],
)
def test_a_damaged_record_of_the_store_is_an_error(here, damage, said):
    damage(here / "s.zarr" / "zarr.json")
    with pytest.raises(DsvccaError, match=said):
        _ = dsvcca.open_store(here / "s.zarr").index


# Results


TILES = {
    "a flipped bit of a tile": lambda r: flip(r / "svcca" / "c.0.0"),
    "a truncated tile": lambda r: os.truncate(r / "pwcca_x" / "c.0.0", 50),
    "an empty tile": lambda r: os.truncate(r / "rank_x" / "c.0.0", 0),
    "a missing tile": lambda r: (r / "r2" / "c.0.0").unlink(),
    "two variables of a tile swapped": lambda r: swapped(r / "svcca" / "c.0.0", r / "r2" / "c.0.0"),
    "a tile without its marker": lambda r: (r / "commits" / "0-0.json").unlink(),
    "a marker without its tile": lambda r: [p.unlink() for p in r.glob("*/c.0.0")],
    "an edited marker": lambda r: (r / "commits" / "0-0.json").write_text(
        (r / "commits" / "0-0.json").read_text().replace('"rows": 4', '"rows": 3')
    ),
    "a marker that is no JSON": lambda r: (r / "commits" / "0-0.json").write_text("[" * 100_000),
    "all markers gone": lambda r: shutil.rmtree(r / "commits"),
    "what was learned of bases damaged": lambda r: (r / "commits" / "bases.json").write_text('{"bases": {"a": 1}}'),
    "what was learned of bases gone": lambda r: (r / "commits" / "bases.json").unlink(),
    "the record of markers garbage": lambda r: (r / "commits" / "zarr.json").write_text("garbage"),
    "what it says for people edited": lambda r: said(r, {"variance": [0.5], "warnings": []}),
    "what it says for people gone": lambda r: said(r, None),
}


def said(results, attributes):
    """Change what results say for people, or take it away."""
    path = results / "zarr.json"
    metadata = json.loads(path.read_text())
    own = {"dsvcca": metadata["attributes"]["dsvcca"]}
    metadata["attributes"] = own if attributes is None else {**metadata["attributes"], **attributes}
    path.write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(d, id=case, marks=fault(f"results: {case}", "the same line mends it, same bits"))
        for case, d in TILES.items()
    ],
)
def test_damaged_results_are_mended_by_the_same_line(here, sound, damage):
    damage(here / "r.zarr")
    found = dsvcca.compare(planned(dsvcca.open_store(here / "s.zarr")), here / "r.zarr")
    assert same_bits(found, results_of(sound))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_bits(results_of(here), results_of(sound))


@pytest.mark.parametrize("case", [case for case in TILES if "swapped" not in case])
def test_verify_finds_what_is_damaged_in_results(here, case):
    found = verify(here / "r.zarr")
    assert (found.exit_code, found.output) == (0, "results read, 0 problems\n")
    TILES[case](here / "r.zarr")
    found = verify(here / "r.zarr")
    assert found.exit_code == 1
    where = {"learned": "commits/bases.json: ", "the record": "commits/zarr.json: ", "people": "zarr.json: "}
    assert next((place for word, place in where.items() if word in case), "0-0: ") in found.output
    assert re.search(r"results read, [123] problems\n$", found.output)


@fault("results: what lies between frequencies damaged, or its marker gone", "verify finds it, the same line mends it")
def test_damaged_shares_between_frequencies_are_found_and_mended(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=300)
    for seed in range(2):
        x = np.random.default_rng(seed).standard_normal((300, 3, 3, 4))
        store.write(x, layer="conv", seed=seed, dims="nhwc")
    plan = dsvcca.plan_comparisons(store)
    whole = dsvcca.compare(plan, tmp_path / "r.zarr").load()
    for damage in (flip, Path.unlink):
        damage(tmp_path / "r.zarr" / ("off_block/c.0" if damage is flip else "commits/between.json"))
        found = verify(tmp_path / "r.zarr")
        assert (found.exit_code, "between: " in found.output) == (1, True)
        assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr").load(), whole)
        assert verify(tmp_path / "r.zarr").exit_code == 0


def verify(path):
    return CliRunner().invoke(cli.app, ["verify", str(path)])


@fault("results: a marker that is a folder", "an error names it; without it, the same bits")
def test_a_marker_that_is_a_folder_is_an_error(here, sound):
    marker = here / "r.zarr" / "commits" / "0-0.json"
    folder(marker)
    plan = planned(dsvcca.open_store(here / "s.zarr"))
    with pytest.raises(DsvccaError, match=r"could not be written .*0-0\.json"):
        dsvcca.compare(plan, here / "r.zarr")
    marker.rmdir()
    assert same_bits(dsvcca.compare(plan, here / "r.zarr"), results_of(sound))


DESCRIPTIONS = {
    "their record edited": (
        lambda r: (r / "zarr.json").write_text(
            (r / "zarr.json").read_text().replace("rank 8", "rank 9").replace('"rank": 8', '"rank": 9')
        ),
        "was changed after it was written",
    ),
    "their record cut short": (lambda r: os.truncate(r / "zarr.json", 300), "is damaged"),
    "a place that is not there shown": (lambda r: rewrite(r / "zarr.json", changed("shown", [99])), "place 99 of 4"),
    "a tile that cannot be": (lambda r: rewrite(r / "zarr.json", changed("tiles", {"0-7": "00"})), "tiles 0-7"),
    "a measure that there is not": (
        lambda r: rewrite(r / "zarr.json", lambda about: about["definition"].__setitem__("measures", ["x"])),
        "measures",
    ),
    "labels damaged": (lambda r: flip(r / "x_seed" / "c.0", -1), "x_seed/c.0' is missing or not what was written"),
    "array metadata edited": (
        lambda r: (r / "svcca" / "zarr.json").write_text((r / "svcca" / "zarr.json").read_text() + " "),
        "svcca/zarr.json' is gone or was changed",
    ),
    "array metadata gone": (lambda r: (r / "r2" / "zarr.json").unlink(), "r2/zarr.json' is gone or was changed"),
}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(
            *both, id=case, marks=fault(f"results: {case}", "an error that names it, of compare and open_results")
        )
        for case, both in DESCRIPTIONS.items()
    ],
)
def test_damaged_descriptions_of_results_are_errors(here, damage, said):
    damage(here / "r.zarr")
    with pytest.raises(DsvccaError, match=said):
        dsvcca.open_results(here / "r.zarr")
    with pytest.raises(DsvccaError, match=said):
        dsvcca.compare(planned(dsvcca.open_store(here / "s.zarr")), here / "r.zarr")


# The workspace


PACKS = {
    "a flipped bit of columns": lambda p: flip(next(p.glob("columns/c.*"))),
    "truncated columns": lambda p: os.truncate(next(p.glob("columns/c.*")), 7),
    "missing columns": lambda p: next(p.glob("columns/c.*")).unlink(),
    "a flipped bit of what belongs to them": lambda p: flip(next(p.glob("parts/c.*"))),
    "a record that was edited": lambda p: (p / "zarr.json").write_text(
        (p / "zarr.json").read_text().replace('"neurons": 24', '"neurons": 25')
    ),
    "a record cut short": lambda p: os.truncate(p / "zarr.json", 100),
    "ranks that cannot be": lambda p: rewrite(
        p / "zarr.json", lambda about: about["bases"][0]["ranks"].__setitem__(0, 9999)
    ),
    "frequencies that cannot be": lambda p: rewrite(
        p / "zarr.json", lambda about: about["bases"][0].__setitem__("space", [10**9, 10**9])
    ),
}


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(
            d, id=case, marks=fault(f"workspace: {case}", "an error names the pack; without it, the same bits")
        )
        for case, d in PACKS.items()
    ],
)
def test_a_damaged_pack_is_named_and_made_again_once_it_is_removed(here, sound, damage):
    shutil.rmtree(here / "r.zarr")
    pack = next((here / "s.zarr.workspace").glob("pack-*"))
    damage(pack)
    plan = planned(dsvcca.open_store(here / "s.zarr"))
    with pytest.raises(DsvccaError, match=pack.name):
        dsvcca.compare(plan, here / "r.zarr")
    shutil.rmtree(pack)
    assert same_bits(dsvcca.compare(plan, here / "r.zarr"), results_of(sound))


def older(workspace):
    for place, pack in enumerate(list(workspace.glob("pack-*"))):
        rewrite(pack / "zarr.json", changed("format", 1))
        pack.rename(workspace / f"pack-{place}")


GONE = {
    "a pack gone": lambda w: shutil.rmtree(next(w.glob("pack-*"))),
    "a pack without its record": lambda w: (next(w.glob("pack-*")) / "zarr.json").unlink(),
    "all of it gone": lambda w: shutil.rmtree(w),
    "metadata of columns damaged": lambda w: (next(w.glob("pack-*")) / "columns" / "zarr.json").write_text("{"),
    "a pack of another version": older,
    "something else beside the packs": lambda w: (w / "pack-notes").write_text("mine"),
}


@pytest.mark.parametrize(
    "damage", [pytest.param(d, id=case, marks=fault(f"workspace: {case}", "the same bits")) for case, d in GONE.items()]
)
def test_what_is_gone_from_a_workspace_is_made_again(here, sound, damage):
    shutil.rmtree(here / "r.zarr")
    damage(here / "s.zarr.workspace")
    found = dsvcca.compare(planned(dsvcca.open_store(here / "s.zarr")), here / "r.zarr")
    assert same_bits(found, results_of(sound))


@fault("workspace: a flipped bit, read by verify", "verify names the pack and the chunk")
def test_verify_reads_a_workspace(here):
    assert verify(here / "s.zarr.workspace").output == "workspace read, 0 problems\n"
    pack = next((here / "s.zarr.workspace").glob("pack-*"))
    flip(pack / "parts" / "c.0")
    said = verify(here / "s.zarr.workspace")
    assert said.exit_code == 1
    assert f"{pack.name}: parts/c.0 is missing or not what was committed" in said.output


# Arrays that others wrote


CODECS = {
    "none": {3: None, 2: None},
    "crc32c": {3: [Crc32cCodec()], 2: None},
    "zstd": {3: [ZstdCodec()], 2: numcodecs.Zstd()},
    "zstd with checksum": {3: [ZstdCodec(checksum=True)], 2: None},
    "gzip": {3: [GzipCodec()], 2: numcodecs.GZip()},
    "blosc": {3: [BloscCodec()], 2: numcodecs.Blosc()},
    "sharded": {3: [Crc32cCodec()], 2: None},
    "crc32": {3: None, 2: None},
}
KINDS = [(3, name) for name in CODECS if name != "crc32"] + [
    (2, name) for name in ("none", "zstd", "gzip", "blosc", "crc32")
]
GUARDED = {"crc32c", "zstd with checksum", "gzip", "sharded", "crc32"}


def of_others(path, zarr_format, codec):
    x = activations(1, n=400)
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    options = {"shards": (200, 24)} if codec == "sharded" else {}
    if codec == "crc32":
        options["filters"] = [numcodecs.CRC32()]
    array = group.create_array(
        "a",
        data=x,
        chunks=(100, 24),
        compressors=CODECS[codec][zarr_format],
        config={"write_empty_chunks": True},
        **options,
    )
    keys = [path / "a" / array.metadata.encode_chunk_key((row, 0)) for row in range(2)]
    return x, keys


@pytest.mark.parametrize(
    ("zarr_format", "codec"),
    [
        pytest.param(
            *kind,
            marks=fault(
                f"arrays of others, v{kind[0]} {kind[1]}: each bit of a chunk flipped in turn",
                "an error names the layer"
                if kind[1] in GUARDED
                else "what the codec notices is an error; the rest cannot be found, and info and verify say so",
            ),
        )
        for kind in KINDS
    ],
)
def test_flipped_bits_of_others_are_found_where_they_can_be(tmp_path, zarr_format, codec):
    x, keys = of_others(tmp_path / "g.zarr", zarr_format, codec)
    [r] = dsvcca.open_store(tmp_path / "g.zarr").representations
    assert r.guarded == (codec in GUARDED)
    content = keys[0].read_bytes()
    silent = 0
    for at in np.linspace(0, len(content) - 1, 24).astype(int).tolist():
        keys[0].write_bytes(content)
        flip(keys[0], at)
        store = dsvcca.open_store(tmp_path / "g.zarr")
        problem = ""
        try:
            silent += not np.array_equal(store.read(layer="a"), x)
        except DsvccaError as error:
            problem = str(error)
        assert not problem or ("layer='a'" in problem and len(store.verify()))
    assert (silent > 0) <= (codec not in GUARDED)
    assert ("carry no checksum" in verify(tmp_path / "g.zarr").output) == (codec not in GUARDED)


LOST = {
    "missing": Path.unlink,
    "empty": lambda p: os.truncate(p, 0),
    "truncated": lambda p: os.truncate(p, p.stat().st_size // 2),
}


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize(
    ("zarr_format", "codec"),
    [
        pytest.param(
            *kind,
            marks=fault(
                f"arrays of others, v{kind[0]} {kind[1]}: a chunk missing, empty or truncated",
                "an error names the layer",
            ),
        )
        for kind in KINDS
    ],
)
def test_lost_chunks_of_others_are_found(tmp_path, zarr_format, codec, lost):
    _, keys = of_others(tmp_path / "g.zarr", zarr_format, codec)
    LOST[lost](keys[1])
    store = dsvcca.open_store(tmp_path / "g.zarr")
    found = store.verify()
    assert set(found.name) == {"a"}
    if (codec, lost) == ("blosc", "truncated"):  # Blosc itself would read on
        assert found.problem.str.contains("and says that it has").any()
    with pytest.raises(DsvccaError, match="layer='a'"):
        store.read(layer="a")


FOREIGN = {
    "metadata that is no JSON": lambda g: (g / "a" / "zarr.json").write_text("{"),
    "metadata that is a list": lambda g: (g / "a" / "zarr.json").write_text("[]"),
    "metadata without a shape": lambda g: edit(g / "a" / "zarr.json", lambda m: m.pop("shape")),
    "a shape of text": lambda g: edit(g / "a" / "zarr.json", lambda m: m.__setitem__("shape", ["a", "b"])),
    "a type that there is not": lambda g: edit(g / "a" / "zarr.json", lambda m: m.__setitem__("data_type", "float99")),
    "a codec that there is not": lambda g: edit(
        g / "a" / "zarr.json", lambda m: m.__setitem__("codecs", [{"name": "x"}])
    ),
    "a group that is no JSON": lambda g: (g / "zarr.json").write_text("{"),
}


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(d, id=case, marks=fault(f"arrays of others: {case}", "an error of open_store"))
        for case, d in FOREIGN.items()
    ],
)
def test_damaged_metadata_of_others_is_an_error(tmp_path, damage):
    of_others(tmp_path / "g.zarr", 3, "none")
    damage(tmp_path / "g.zarr")
    with pytest.raises(DsvccaError):
        dsvcca.open_store(tmp_path / "g.zarr")


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("content", [None, "{}", '{"zarr_format": 2}'])
@fault("arrays of others, one of which lost what describes it", "an error of open_store that names it")
def test_an_array_of_others_that_lost_what_describes_it_is_not_passed_over(tmp_path, zarr_format, content):
    group = zarr.open_group(tmp_path / "g.zarr", mode="w", zarr_format=zarr_format)
    for seed in range(3):
        group.create_array(f"seed={seed}/a", data=activations(seed), chunks=(100, 24))
    lost = tmp_path / "g.zarr" / "seed=1" / "a" / ("zarr.json" if zarr_format == 3 else ".zarray")
    lost.unlink()
    if content:
        lost.write_text(content)
    with pytest.raises(DsvccaError, match=r"g.zarr(/seed=1/a)?': what describes .* (damaged, or gone|cannot be read)"):
        dsvcca.open_store(tmp_path / "g.zarr")


@fault("an error of storage while one layer is worked on", "nobody's own: all of the run fails, nothing is called bad")
def test_what_storage_says_is_not_held_against_a_layer():
    assert reduce.is_its_own(DsvccaError("NaN"))
    assert reduce.is_its_own(MemoryError())
    for error in (RunError("no space left"), OSError(28, "No space left on device"), KeyboardInterrupt()):
        assert not reduce.is_its_own(error)


# Disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB of its own; unmounted at the end."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "dsvcca-test", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def fill_but(place, free):
    """Leave so many bytes of a disk."""
    there = os.statvfs(place)
    (place / "ballast").write_bytes(b"\0" * max(0, there.f_bavail * there.f_frsize - free))


@needs_root
@fault("a disk that is full, at 10 moments of a run", "an error says so; with room again the same bits")
def test_a_full_disk_at_any_moment_loses_nothing(small_disk, sound):
    store = dsvcca.open_store(sound / "s.zarr")
    plan, whole = planned(store), results_of(sound)
    refused = 0
    for tenth in range(10):
        shutil.rmtree(small_disk / "w", ignore_errors=True)
        shutil.rmtree(small_disk / "r.zarr", ignore_errors=True)
        fill_but(small_disk, 4096 + tenth * 40_000)
        said = ""
        try:
            assert same_bits(dsvcca.compare(plan, small_disk / "r.zarr", workspace=small_disk / "w"), whole)
        except DsvccaError as error:
            said = str(error)
        assert not said or "no space left to write" in said
        refused += bool(said)
        (small_disk / "ballast").unlink()
        assert same_bits(dsvcca.compare(plan, small_disk / "r.zarr", workspace=small_disk / "w"), whole)
        assert not (small_disk / "w" / STAGING).exists()
    assert refused >= 4


@needs_root
@fault("a disk that is full while a store is written", "an error says so, nothing is left behind; then it is written")
def test_a_full_disk_while_writing_a_store_loses_nothing(small_disk):
    store = dsvcca.create_store(small_disk / "s.zarr", datapoints=ROWS)
    x = activations(0, n=ROWS)
    for tenth in range(10):
        fill_but(small_disk, 4096 + tenth * x.nbytes // 10)
        with pytest.raises(DsvccaError, match="no space left to write"):
            store.write(x, layer="a", seed=tenth)
        (small_disk / "ballast").unlink()
        assert not (small_disk / "s.zarr" / STAGING).exists()
    store.write(x, layer="a", seed=0)
    assert np.array_equal(store.read(layer="a"), x)
    assert not len(store.verify())


@needs_root
@pytest.mark.parametrize("which", ["s.zarr", "w", "r.zarr"])
@fault(
    "the disk of the store, workspace or results is taken away in the middle of a run",
    "an error, or the same bits; back again: the same bits",
)
def test_a_disk_that_is_taken_away_loses_nothing(sound, tmp_path, which):
    shutil.copytree(sound / "s.zarr", tmp_path / "disk" / "s.zarr")
    places = {name: tmp_path / "seen" / name for name in ("s.zarr", "w", "r.zarr")}
    for name, place in places.items():
        (tmp_path / "disk" / name).mkdir(exist_ok=True)
        place.mkdir(parents=True)
        subprocess.run(["mount", "--bind", tmp_path / "disk" / name, place], check=True)
    guarded, taken = execute.guarded, []

    def and_then(*task):
        if not taken:
            taken.append(subprocess.run(["umount", "--lazy", places[which]], check=True))
        return guarded(*task)

    try:
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore", DsvccaWarning)
            patch.setattr(execute, "guarded", and_then)  # the moment is before the first task
            plan = planned(dsvcca.open_store(places["s.zarr"]))
            # A workspace that is gone is made anew, where it was: there is room below.
            with nullcontext() if which == "w" else pytest.raises(DsvccaError):
                found = dsvcca.compare(plan, places["r.zarr"], workspace=places["w"])
                assert same_bits(found, results_of(sound))
        subprocess.run(["mount", "--bind", tmp_path / "disk" / which, places[which]], check=True)
        plan = planned(dsvcca.open_store(places["s.zarr"]))
        assert same_bits(dsvcca.compare(plan, places["r.zarr"], workspace=places["w"]), results_of(sound))
    finally:
        for place in places.values():
            subprocess.run(["umount", "--lazy", place], check=False, stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.timeout(900)
@fault("10,000 representations in one store", "listed, verified, compared; one that is damaged is found")
def test_ten_thousand_representations_are_one_store(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=60)
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((60, 2))
    for step in range(10_000):
        x = shared @ rng.standard_normal((2, 3)) + 0.1 * rng.standard_normal((60, 3))
        store.write(x.astype("f4"), layer="a", step=step)
    store = dsvcca.open_store(store.path)
    assert len(store.index) == 10_000
    plan = dsvcca.plan_comparisons(store, "to_last_step", variance=1.0)
    found = dsvcca.compare(plan, tmp_path / "r.zarr")
    x, y = (store.read(layer="a", step=step) for step in (17, 9_999))
    own = dsvcca.select(found, x={"step": 17}, y={"step": 9_999})
    assert abs(own.svcca.values.item() - dsvcca.svcca(x, y, variance=1.0)) < 1e-6
    assert np.isfinite(found.svcca.values).sum() >= 10_000
    chunk = next(Path(store.path).glob("step=4321,*/activations/c.0.0"))
    chunk.write_bytes(b"\1" + chunk.read_bytes()[1:])
    assert store.verify().name.tolist() == ["step=4321,layer=a"]


@needs_root
@fault("a disk that may only be read", "an error names the place; stores there are read")
def test_a_disk_that_may_only_be_read_is_an_error_where_something_is_written(small_disk, sound, tmp_path):
    shutil.copytree(sound / "s.zarr", small_disk / "s.zarr")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    store = dsvcca.open_store(small_disk / "s.zarr")
    assert not len(store.verify())
    with pytest.raises(DsvccaError, match="may not be written"):
        store.write(activations(0, n=ROWS), layer="b")
    with pytest.raises(DsvccaError, match="may not be written"):
        dsvcca.create_store(small_disk / "new.zarr", datapoints=5)
    with pytest.raises(DsvccaError, match="workspace.*may not be written"):
        dsvcca.compare(planned(store), tmp_path / "r.zarr")
    with pytest.raises(DsvccaError, match=r"r\.zarr.* may not be written"):
        dsvcca.compare(planned(store), small_disk / "r.zarr", workspace=tmp_path / "w")
    found = dsvcca.compare(planned(store), tmp_path / "r.zarr", workspace=tmp_path / "w")
    assert same_bits(found, results_of(sound))
