"""Workers that compute on a device: the same lines, the same numbers, and both kinds of workers from one queue.

The device is the second one of array_api_strict, which refuses what a GPU would refuse.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from distributed import Client, Nanny, Scheduler, SpecCluster

import dsvcca
from dsvcca import DsvccaError
from dsvcca.engine import execute, facts
from dsvcca.maths import arrays

STRICT = "array_api_strict:device1"


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setenv(facts.DEVICE, STRICT)


def maps(path, count=3, space=(4, 4), n=400):
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((n, *space, 6))
    store = dsvcca.create_store(path, datapoints=n)
    for seed in range(count):
        x = signal @ rng.standard_normal((6, 5)) + 0.5 * rng.standard_normal((n, *space, 5))
        store.write(x.astype("f4"), layer="conv", seed=seed, dims="nhwc")
    return store


def assert_close(one, other, tolerance=1e-6):
    for name in other.data_vars:
        np.testing.assert_allclose(one[name].values, other[name].values, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("options", [{}, {"variance": [0.9, 1.0]}, {"measures": ["svcca"]}, {"route": "direct"}])
def test_dense_layers_on_a_device_have_the_numbers_of_numpy(population, tmp_path, device, monkeypatch, options):
    plan = dsvcca.plan_comparisons(population[0], **options)
    on_device = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")
    monkeypatch.delenv(facts.DEVICE)
    assert on_device.attrs["array_library"] == ["array_api_strict"]
    assert_close(on_device, dsvcca.compare(plan, tmp_path / "r2.zarr", workspace=tmp_path / "w2"), 1e-5)


@pytest.mark.parametrize(
    ("options", "cut"),
    [
        ({"view": "dft", "keep": ["frequencies"]}, {}),
        pytest.param({"view": "dft", "route": "bases"}, {"segment": 30_000}, marks=pytest.mark.slow),
        ({"view": "flatten", "rank": 20}, {}),
        ({"view": "mean"}, {}),
    ],
)
def test_maps_on_a_device_have_the_numbers_of_numpy(tmp_path, device, monkeypatch, options, cut):
    plan = replace(dsvcca.plan_comparisons(maps(tmp_path / "s.zarr"), **options), **cut)
    on_device = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")
    monkeypatch.delenv(facts.DEVICE)
    assert on_device.attrs["array_library"] == ["array_api_strict"]
    assert_close(on_device, dsvcca.compare(plan, tmp_path / "r2.zarr", workspace=tmp_path / "w2"), 1e-5)


def test_a_device_whose_library_is_not_there_is_named(population, tmp_path, monkeypatch):
    monkeypatch.setenv(facts.DEVICE, "nothing_of_the_kind")
    with pytest.raises(DsvccaError, match="the device 'nothing_of_the_kind', and nothing_of_the_kind is not there"):
        dsvcca.compare(dsvcca.plan_comparisons(population[0]), tmp_path / "r.zarr", workspace=tmp_path / "w")
    assert arrays.put(np.zeros(1)).dtype == float


@pytest.fixture
def mixed_cluster():
    """A worker without a GPU, and one that says it has one, which is the strict device."""
    environment = {facts.DEVICE: STRICT, "OPENBLAS_NUM_THREADS": "1"}
    options = {"nthreads": 1, "memory_limit": "1.5 GiB"}
    workers = {
        "plain": {"cls": Nanny, "options": options},
        "gpu": {"cls": Nanny, "options": {**options, "resources": {"GPU": 1}, "env": environment}},
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": ":0"}}
    with SpecCluster(workers, scheduler=scheduler) as cluster, Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2)
        yield cluster, client


@pytest.mark.slow
def test_workers_with_and_without_a_gpu_drain_one_queue(population, results, mixed_cluster, tmp_path):
    _, client = mixed_cluster
    plan = replace(dsvcca.plan_comparisons(population[0], variance=[0.9, 0.99, 1.0]), panel=1)
    found = dsvcca.compare(plan, tmp_path / "r.zarr", client=client, workspace=tmp_path / "w")
    assert found.attrs["array_library"] == ["array_api_strict", "numpy"]
    assert_close(found, results, 1e-5)


def where(seconds):
    time.sleep(seconds)
    return arrays.library()


@pytest.mark.slow
def test_each_kind_of_worker_has_its_own_window(mixed_cluster):
    _, client = mixed_cluster
    receipts, failures = execute.run(where, [0.1] * 30, client=client, title="where")
    assert not failures
    assert receipts.count("array_api_strict") > 10
    assert receipts.count("numpy") > 10


def losing(worker, seconds, mixed_cluster, monkeypatch):
    """Return the libraries that did 20 tasks of so many seconds, of which a worker that closes sees the first."""
    cluster, client = mixed_cluster
    monkeypatch.setattr(execute, "ALONE", 1)
    with ThreadPoolExecutor(1) as other:
        running = other.submit(execute.run, where, [seconds] * 20, client=client, title="where")
        time.sleep(1)
        cluster.sync(cluster.workers[worker].close)
        receipts, failures = running.result(timeout=60)
    assert len(receipts) == 20
    assert not failures
    return receipts


@pytest.mark.slow
def test_what_was_bound_to_a_gpu_goes_elsewhere_when_none_is_left(mixed_cluster, monkeypatch):
    assert "numpy" in losing("gpu", 0.2, mixed_cluster, monkeypatch)


@pytest.mark.slow
def test_what_is_bound_to_a_gpu_stays_there_when_the_workers_without_one_leave(mixed_cluster, monkeypatch, caplog):
    receipts = losing("plain", 0.4, mixed_cluster, monkeypatch)
    assert receipts.count("array_api_strict") > 10
    assert "no worker with a GPU is left" not in caplog.text
