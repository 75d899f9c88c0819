"""Benchmarks run, so that they cannot rot; what they measure is not asserted."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import dsvcca

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parent.parent
NAMES = (
    "common",
    "convolutions",
    "population",
    "scale",
    "growth",
    "measures",
    "floor",
    "pair",
    "drivers",
    "memory",
    "capture",
    "accuracy",
    "faults",
    "report",
    "table",
)


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """Return a function that runs a benchmark on a small case, and gives its record as it was kept."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")

    def run(name, arguments):
        found = importlib.import_module(name).main([*arguments.split(), "--json", str(tmp_path / "record.json")])
        kept = json.loads((tmp_path / "record.json").read_text())
        assert kept == json.loads(json.dumps(found))
        assert kept["machine"]["cores"] >= 1
        write = importlib.import_module("table").TABLES.get(name)
        assert write is None or all(what and value for what, value in write(kept))
        return kept

    yield run
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fewer than 5 rows")
def test_the_benchmark_of_convolutions_measures_the_real_path(benchmark, capsys):
    found = benchmark("convolutions", "--rows 260 --size 6 --channels 4 --memory 1GiB")
    assert found["whole"]["route"] == "bases"
    assert found["whole"]["peak"] < found["whole"]["plan's figure"]
    assert found["whole"]["read"] > found["whole"]["activations"]
    assert "time / limit" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("variance", [0.99, 1])
def test_the_population_benchmark_measures_the_real_path(benchmark, capsys, variance):
    small = "--representations 5 --rows 400 --columns 40 --rank 8 --repeat 1 --variance"
    found = benchmark("population", f"{small} {variance}")
    assert found["population"]["comparisons"] == 15
    assert found["population"]["kept"] == pytest.approx(40 if variance == 1 else 9, abs=2)
    assert found["difference from the textbook"] < 1e-6
    assert 50 << 20 < found["memory"]["measured peak"] < found["memory"]["plan's figure"]
    assert "textbook SVCCA pair / ours" in capsys.readouterr().out


@pytest.mark.slow
def test_the_benchmark_of_scale_measures_the_real_path(benchmark):
    found = benchmark("scale", "--small 6 --large 9 --mixed 9 --rows 2200 --columns 40 --rank 8 --repeat 1")
    assert found["large"]["comparisons"] == 45
    assert found["mixed widths"]["comparisons"] == 45
    assert found["large"]["memory warnings of Dask"] == []
    assert found["2 workers"]["comparisons"] == found["1 workers"]["comparisons"] == 21


@pytest.mark.slow
def test_the_benchmark_of_growth_measures_the_real_path(benchmark):
    found = benchmark("growth", "--representations 6 --rows 400 --columns 40 --rank 8 --repeat 2")
    assert found["the same bits"]
    assert found["representations"] == 6


def test_the_benchmark_of_measures_measures_the_real_path(benchmark):
    found = benchmark("measures", "--representations 5 --rows 400 --columns 24 --rank 6 --rounds 1")
    assert found["sets"]["svcca"] == 1
    assert found["ratios of correlations alone"]["all, chance, errors / all"] > 0


@pytest.mark.slow
def test_the_benchmark_of_the_floor_measures_the_real_path(benchmark, tmp_path):
    store = dsvcca.create_store(tmp_path / "activations.zarr", datapoints=300)
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal((300, 4, 4, 6))
        store.write(x, layer="conv", seed=seed, step=1, dims="nhwc")
    found = benchmark("floor", f"--demo {tmp_path}")
    assert found["views"]["dft"]["shuffled / chance, mean"] == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_the_benchmarks_of_one_pair_and_of_drivers_run(benchmark):
    assert benchmark("pair", "--rows 300 --columns 20 --repeat 1")["difference"] < 1e-9
    found = benchmark("drivers", "--workers 4 --seconds 0.05 --rounds 5")
    assert found["tasks of 0.05 s"]["tasks"] == 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:rounding decides up to")
def test_the_benchmark_of_memory_measures_the_real_path(benchmark):
    found = benchmark("memory", "--divide 40 --only PWCCA")
    assert found["least"] > 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:rounding decides up to")
def test_the_benchmark_of_the_report_opens_it(benchmark):
    pytest.importorskip("playwright.sync_api")
    found = benchmark("report", "--representations 320 --times 1")
    assert found["bytes"] > 1e6
    assert found["milliseconds"]["open"] > 0


@pytest.mark.slow
def test_the_benchmark_of_capture_measures_the_real_path(benchmark):
    pytest.importorskip("torch")
    found = benchmark("capture", "--only transformer --rows 40 --batch 10 --batches 1 --repeat 1")
    assert found["transformer"]["bytes written"] == 5 * 10 * 64 * 128 * 4
    assert found["transformer"]["CPU seconds"]["forward pass"] > 0


@pytest.mark.slow
def test_the_benchmark_of_accuracy_measures_the_real_path(benchmark):
    found = benchmark("accuracy", "--only denormals")
    assert len(found["cases"]) >= 3
    assert {case["verdict"] for case in found["cases"].values()} <= {"right", "refused"}


@pytest.mark.slow
def test_the_benchmark_of_faults_measures_the_real_path(benchmark):
    found = benchmark(
        "faults", "--representations 9 --checked 5 --rows 600 --columns 24 --rank 8 --kills 1 --repeat 1 --workers 1"
    )
    assert found["kills"]["the same bits"]
    assert found["kills"]["killed"]["tiles there at each kill"][0] in (0, 1)
    assert found["checks"]["with / without"] > 0
