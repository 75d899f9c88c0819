"""Stores, workspaces and results by URL: on a server that speaks S3, and in memory."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import s3fs
import xarray as xr
import zarr

import dsvcca
from dsvcca import DsvccaError, DsvccaWarning
from dsvcca.clusters.local import local_client
from dsvcca.plans import portions
from dsvcca.storage import folders
from dsvcca.storage.staging import STAGING
from tests.populations import activations, same_bits
from tests.s3_server import s3_server

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

BUCKET = "population"


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """Start a server that speaks S3; return what reaches it."""
    with s3_server(tmp_path_factory.mktemp("moto")) as address:
        options = {"key": "key", "secret": "secret", "endpoint_url": address}
        before = dict(fsspec.config.conf)
        s3fs.S3FileSystem(**options).mkdir(BUCKET)
        try:
            yield options
        finally:
            fsspec.config.conf.clear()
            fsspec.config.conf.update(before)


def test_a_file_at_a_url_is_never_read_beyond_its_size(s3):
    place, empty, none = (folders.at(f"s3://{BUCKET}/{name}", "store", s3) for name in ("large", "empty", "none"))
    folders.write(place, b"0123456789")
    assert folders.read(place) == folders.read(place, 10) == b"0123456789"
    with pytest.raises(OSError, match="more than 9 bytes are too many"):
        folders.read(place, 9)
    folders.write(empty, b"")
    assert folders.read(empty, 10) == b""
    with pytest.raises(FileNotFoundError):
        folders.read(none, 10)


def write(store, seeds):
    for seed in seeds:
        store.write(activations(seed), layer="a", seed=seed)


@pytest.mark.slow
def test_a_population_at_a_url_has_the_bits_of_one_in_a_folder(s3, tmp_path, monkeypatch):
    stores = [
        dsvcca.create_store(f"s3://{BUCKET}/one.zarr", datapoints=600, storage_options=s3),
        dsvcca.create_store(tmp_path / "s.zarr", datapoints=600),
    ]
    for store in stores:
        write(store, range(5))
    out = f"s3://{BUCKET}/results.zarr"
    with monkeypatch.context() as changed:
        changed.setattr(portions, "PORTION", 1.0)
        changed.setattr(portions, "AGAIN", 0)
        plan = dsvcca.plan_comparisons(stores[0])
        assert plan.price().correlate_tasks == 5  # portions of its tile
        remote = dsvcca.compare(plan, out)
    local = dsvcca.compare(dsvcca.plan_comparisons(stores[1]), tmp_path / "r.zarr")
    assert same_bits(remote, local)
    xr.testing.assert_identical(dsvcca.open_results(out).load(), remote.load())
    names = s3fs.S3FileSystem(**s3).find(BUCKET)
    assert any(name.startswith(f"{BUCKET}/one.zarr.workspace/pack-") for name in names)
    assert not [name for name in names if STAGING in name or "partial-" in name]
    assert stores[0].verify().empty
    np.testing.assert_array_equal(stores[0].read(seed=3), activations(3))


@pytest.mark.slow
def test_results_at_a_url_grow_and_are_resumed(s3, tmp_path):
    store = dsvcca.create_store(f"s3://{BUCKET}/grown.zarr", datapoints=600, storage_options=s3)
    out = f"s3://{BUCKET}/grown.results"
    write(store, range(3))
    dsvcca.compare(dsvcca.plan_comparisons(store), out)
    write(store, [3])
    grown = dsvcca.compare(dsvcca.plan_comparisons(store), out).load()
    fresh = dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr", workspace=tmp_path / "w")
    xr.testing.assert_identical(grown, fresh.load())
    (folders.at(out, "results") / "svcca" / "c.0.0").unlink()
    with pytest.warns(DsvccaWarning, match="not complete: 0 of 1 tiles are there"):
        dsvcca.open_results(out)
    assert same_bits(dsvcca.compare(dsvcca.plan_comparisons(store), out), fresh)


@pytest.mark.slow
def test_workers_reach_what_the_driver_was_told_to_reach(s3, tmp_path):
    store = dsvcca.create_store(f"s3://{BUCKET}/cluster.zarr", datapoints=600, storage_options=s3)
    write(store, range(4))
    with local_client(2, "1 GiB") as client:
        found = dsvcca.compare(dsvcca.plan_comparisons(store), f"s3://{BUCKET}/cluster.results", client=client)
    local = dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr", workspace=tmp_path / "w")
    assert same_bits(found, local)


@pytest.mark.slow
def test_segments_and_targets_at_a_url(s3, tmp_path):
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(f"s3://{BUCKET}/maps.zarr", datapoints=400, storage_options=s3)
    for seed in range(2):
        store.write(rng.standard_normal((400, 3, 3, 4)).astype("f4"), layer="conv", seed=seed, dims="nhwc")
    y = rng.standard_normal((400, 2))
    plan = replace(dsvcca.plan_comparisons(store, view="dft", route="bases", targets=y), segment=15_000)
    remote = dsvcca.compare(plan, f"s3://{BUCKET}/maps.results")
    assert same_bits(remote, dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w"))


@pytest.mark.slow
def test_damage_at_a_url_is_found_and_named(s3):
    store = dsvcca.create_store(f"s3://{BUCKET}/damaged.zarr", datapoints=600, storage_options=s3)
    write(store, range(3))
    chunk = folders.at(store.representations[1].array, "array") / "c.0.0"
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    chunk.write_bytes(bytes(content))
    plan = dsvcca.plan_comparisons(store)
    with pytest.warns(DsvccaWarning, match=r"seed=1, layer='a': chunk 's3://.*c.0.0' is damaged, its checksum"):
        dsvcca.compare(plan, f"s3://{BUCKET}/damaged.results")
    chunk.unlink()
    with pytest.warns(DsvccaWarning, match=r"chunk 's3://.*c.0.0' is missing"):
        dsvcca.compare(plan, f"s3://{BUCKET}/damaged.results")
    assert len(store.verify()) >= 1


def test_arrays_of_others_at_a_url_are_read(s3, tmp_path):
    url = f"s3://{BUCKET}/others.zarr"
    at = folders.at(url, "store", s3)
    group = zarr.open_group(dsvcca.storage.chunked.zarr_store(at, writing=True), mode="w")
    for seed in range(3):
        group.create_array(f"seed={seed}/a", data=activations(seed), chunks=(200, 24))
    store = dsvcca.open_store(url)
    own = dsvcca.create_store(tmp_path / "s.zarr", datapoints=600)
    write(own, range(3))
    found = [
        dsvcca.compare(dsvcca.plan_comparisons(one), tmp_path / f"{i}", workspace=tmp_path / "w")
        for i, one in enumerate((store, own))
    ]
    assert same_bits(*found)


def test_urls_that_cannot_be_reached_are_told_so(tmp_path):
    with pytest.raises(DsvccaError, match="no library for nothing:// is there"):
        dsvcca.open_store("nothing://bucket/store")
    with pytest.raises(DsvccaError, match="storage_options are for URLs, and store .* is a folder"):
        dsvcca.open_store(str(tmp_path), storage_options={"key": "a"})
    with pytest.raises(DsvccaError, match="there is no store at 'memory://nowhere'"):
        dsvcca.open_store("memory://nowhere")
    assert dsvcca.create_store(f"file://{tmp_path}/s.zarr", datapoints=5).path == str(tmp_path / "s.zarr")


@pytest.mark.slow
def test_the_lines_of_the_docs_run(tmp_path):
    """As somebody types them, who says by the environment who they are: no options, in processes of their own."""
    docs = (Path(__file__).parent.parent / "docs" / "object-stores.md").read_text()
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", docs, flags=re.DOTALL))
    python = "\n".join(re.findall(r"```python\n(.*?)```", docs, flags=re.DOTALL))
    for model in ("one", "two"):
        for place, layer in enumerate(("a", "b")):
            (tmp_path / "hidden" / model).mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "hidden" / model / f"{layer}.npy", activations(len(model) + place))
    with s3_server(tmp_path) as address:
        s3fs.S3FileSystem(key="mine", secret="secret", endpoint_url=address).mkdir("population")
        (tmp_path / "look.py").write_text(python)
        lines = shell.replace("http://127.0.0.1:9000", address) + "\npython look.py"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        said = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", lines],
            cwd=tmp_path,
            env={**clean, "PATH": path, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert said.returncode == 0, said.stdout + said.stderr
    assert "4 representations of 600 datapoints" in said.stdout
    assert "results read, 0 problems" in said.stdout
    assert "[1." in said.stdout
