"""What nothing uses is found and removed, and nothing else: results stay the same to the last bit."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import dsvcca
from dsvcca import DsvccaError
from dsvcca.cli import app
from dsvcca.storage import records, staging
from dsvcca.workspace.partials import write_partial
from tests.populations import activations, same_bits, write_population


def compared(store, out, **options):
    return dsvcca.compare(dsvcca.plan_comparisons(store), out, **options)


@pytest.fixture
def store(tmp_path):
    return write_population(tmp_path / "a.zarr", seeds=2, steps=(0,))[0]


def test_nothing_is_unused_of_a_store_and_its_bases(store, tmp_path):
    compared(store, tmp_path / "r.zarr")
    assert len(store.clean(remove=True)) == 0
    assert dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "again.zarr").sizes["x"] == 4


def test_what_was_replaced_goes_with_its_bases_and_the_rest_stays(store, tmp_path):
    for layer in ("a", "b"):  # in a pack of its own
        compared(store.select(layer=layer), tmp_path / f"results-{layer}.zarr")
    for seed in range(2):
        store.write(activations(50 + seed, p=21), layer="a", seed=seed, step=0, if_exists="replace")
    shown = store.clean()
    workspace = Path(f"{store.path}.workspace")
    assert shown.what.value_counts().to_dict() == {"bases of nothing that the store has": 2, "was replaced": 2}
    assert (shown.bytes > 1000).all()
    packs = sorted(one.name for one in workspace.glob("pack-*"))
    assert len(packs) == 4  # it was only shown
    removed = store.clean(remove=True)
    assert removed.equals(shown)
    assert sorted(one.name for one in workspace.glob("pack-*")) == [
        name for name in packs if name not in {Path(path).name for path in removed.path}
    ]
    assert len(store.clean()) == 0
    assert store.verify().empty
    before = {one: one.stat().st_mtime_ns for one in workspace.glob("pack-*/zarr.json")}
    fresh = compared(store, tmp_path / "fresh.zarr", workspace=tmp_path / "other")
    assert same_bits(compared(store, tmp_path / "all.zarr"), fresh)
    assert {one: one.stat().st_mtime_ns for one in before} == before  # bases of b were used again


def test_bases_that_are_left_of_dropped_activations_stay(store, tmp_path):
    dsvcca.keep_bases(store.select(layer="a"))
    for seed in range(2):
        store.write(activations(60 + seed, p=22), layer="a", seed=seed, step=0, if_exists="replace")
    shown = store.clean(remove=True)
    assert set(shown.what) == {"was replaced"}  # a pack that was held is never swept
    assert store.verify().empty


def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(store, tmp_path):
    root = Path(store.path)
    line = [sys.executable, "-c", "import os; print(os.getpid())"]
    dead = subprocess.run(line, capture_output=True, text=True, check=True)
    left = root / staging.STAGING / f"{staging._machine()}-{dead.stdout.strip()}-abc"
    alive = root / staging.STAGING / f"{staging._machine()}-{os.getpid()}-def"
    young, old = (root / staging.STAGING / f"othermachine-{n}-ghi" for n in (1, 2))
    for folder in (left, alive, young, old):
        folder.mkdir(parents=True)
        (folder / "c.0").write_bytes(bytes(500))
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    found = store.clean(remove=True)
    assert sorted(found.path) == sorted(map(str, (left, old)))
    assert found.bytes.tolist() == [500, 500]
    assert {one.name for one in (root / staging.STAGING).iterdir()} == {alive.name, young.name}


def test_packs_that_do_not_say_whose_they_are_stay(store, tmp_path):
    """As those of earlier versions do not."""
    compared(store.select(layer="a"), tmp_path / "r.zarr")
    for pack in Path(f"{store.path}.workspace").glob("pack-*"):
        metadata = json.loads((pack / "zarr.json").read_text())
        record = metadata["attributes"][records.KEY]
        for one in record["bases"]:
            del one["source"]
        metadata["attributes"][records.KEY] = records.signed(record)
        (pack / "zarr.json").write_text(json.dumps(metadata))
    for seed in range(2):
        store.write(activations(80 + seed, p=21), layer="a", seed=seed, step=0, if_exists="replace")
    assert set(store.clean().what) == {"was replaced"}


def test_the_command_shows_and_removes(store, tmp_path):
    store.write(activations(70, p=20), layer="a", seed=0, step=0, if_exists="replace")

    def said(*options):
        result = CliRunner().invoke(app, ["clean", store.path, *options])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "was replaced" in said()
    assert "with --remove, while nothing runs on it, that is removed" in said()
    assert said("--remove").splitlines()[-1].endswith("removed")
    assert said() == f"{store.path}: everything is in use\n"


def test_what_nobody_merges_is_removed_after_a_day(store, tmp_path):
    compared(store, tmp_path / "r.zarr")
    workspace = f"{store.path}.workspace"
    write_partial(workspace, "sums", {"numbers": np.zeros(3)}, {})
    assert len(store.clean(remove=True)) == 0  # somebody may be at it
    [folder] = Path(workspace).glob("partial-*")
    yesterday = time.time() - 25 * 3600
    for one in (folder, *folder.rglob("*")):
        os.utime(one, (yesterday, yesterday))
    assert store.clean(remove=True).what.tolist() == ["was never merged"]
    assert not folder.exists()


@pytest.mark.slow
def test_who_is_killed_as_it_removes_leaves_nothing_that_is_not_found_again(store, tmp_path):
    """A folder that lost its record first would be no version, and nothing that is swept, for good."""
    for _ in range(3):
        store.write(activations(90, p=20), layer="a", seed=0, step=0, if_exists="replace")
    code = """
        import os, shutil, sys, dsvcca
        from dsvcca.storage import folders
        def half(folder, **_):  # what rmtree has done when it is killed
            for one in sorted(folder.rglob("*.json")):
                one.unlink()
            os._exit(9)
        shutil.rmtree = half
        dsvcca.open_store(sys.argv[1]).clean(remove=True)
    """
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), store.path], timeout=60, check=False)
        assert done.returncode == 9
    again = dsvcca.open_store(store.path)
    assert again.verify().empty
    again.clean(remove=True)
    assert len(again.clean()) == 0
    assert len(list(Path(store.path).glob("seed=0,step=0,layer=a*"))) == 1
    assert not (Path(store.path) / staging.STAGING).exists()


def test_what_somebody_else_put_beside_bases_stays(store, tmp_path):
    compared(store, tmp_path / "r.zarr")
    workspace = Path(f"{store.path}.workspace")
    (workspace / "pack-notes").mkdir()
    (workspace / "pack-notes" / "mine.txt").write_text("of these packs")
    (workspace / "pack-elsewhere").symlink_to(workspace / "pack-notes")
    assert store.clean(remove=True).empty
    assert (workspace / "pack-elsewhere" / "mine.txt").exists()


def test_arrays_of_others_are_not_cleaned(tmp_path):
    zarr = pytest.importorskip("zarr")
    zarr.save_array(str(tmp_path / "layer=x.zarr"), np.random.default_rng(0).random((50, 3)))
    with pytest.raises(DsvccaError, match="was written by others"):
        dsvcca.open_store(tmp_path / "layer=x.zarr").clean()
