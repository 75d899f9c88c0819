"""What needs a GPU: runs wherever CuPy, or torch, finds one, and says elsewhere why it did not."""

import numpy as np
import pytest
from distributed import Client, Nanny, Scheduler, SpecCluster

import dsvcca
from dsvcca.engine import facts
from dsvcca.maths.arrays import computing_on, put, to_numpy


def why_not(device):
    """Return why a device cannot be used here, "" if it can."""
    try:
        with computing_on(device):
            assert float(to_numpy(put(np.ones((2, 2), np.float32)) * 2).sum()) == 8
    except Exception as error:  # whatever a driver that is not there may say
        return f"{device}: {str(error).splitlines()[0]}"
    return ""


@pytest.fixture(scope="module", params=["cupy", "torch:cuda"])
def gpu(request):
    reason = why_not(request.param)
    if reason:
        pytest.skip(reason)
    return request.param


def maps(path, n=600):
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((n, 6, 6, 8))
    store = dsvcca.create_store(path, datapoints=n)
    for seed in range(3):
        x = signal @ rng.standard_normal((8, 10)) + 0.5 * rng.standard_normal((n, 6, 6, 10))
        store.write(x.astype("f4"), layer="conv", seed=seed, dims="nhwc")
    return store


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (None, {"variance": [0.9, 0.99, 1.0]}),
        (None, {"measures": ["svcca"]}),
        (None, {"route": "direct"}),
        (maps, {"view": "dft"}),
        (maps, {"view": "flatten", "rank": 20}),
        (maps, {"view": "mean"}),
    ],
)
def test_a_gpu_gives_the_numbers_of_numpy(gpu, population, tmp_path, monkeypatch, make, options):
    store = population[0] if make is None else make(tmp_path / "s.zarr")
    plan = dsvcca.plan_comparisons(store, **options)
    expected = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")
    monkeypatch.setenv(facts.DEVICE, gpu)
    found = dsvcca.compare(plan, tmp_path / "r2.zarr", workspace=tmp_path / "w2")
    assert found.attrs["array_library"] == [gpu.partition(":")[0]]
    for name in ("svcca", "r2"):
        np.testing.assert_allclose(found[name].values, expected[name].values, atol=1e-6)


def test_a_worker_with_a_gpu_uses_it(gpu, population, results, tmp_path):
    options = {"nthreads": 1, "resources": {"GPU": 1}, "env": {facts.DEVICE: gpu}}
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": ":0"}}
    with (
        SpecCluster({0: {"cls": Nanny, "options": options}}, scheduler=scheduler) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        plan = dsvcca.plan_comparisons(population[0], variance=[0.9, 0.99, 1.0])
        found = dsvcca.compare(plan, tmp_path / "r.zarr", client=client, workspace=tmp_path / "w")
    assert found.attrs["array_library"] == [gpu.partition(":")[0]]
    np.testing.assert_allclose(found.svcca.values, results.svcca.values, atol=1e-6)


def test_cca_in_memory_on_a_gpu(gpu):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((500, 12)), rng.standard_normal((500, 9))
    with computing_on(gpu):
        found = dsvcca.cca(put(x), put(y))
    np.testing.assert_allclose(to_numpy(found.correlations), dsvcca.cca(x, y).correlations, atol=1e-8)
