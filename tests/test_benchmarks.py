"""Benchmarks run, so that they cannot rot; what they measure is not asserted."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def benchmark(monkeypatch):
    """Return a function that imports a benchmark."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")

    def load(name):
        specification = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        return module

    return load


@pytest.mark.filterwarnings("ignore:.*fewer than 5 rows")
def test_the_benchmark_of_convolutions_measures_the_real_path(benchmark, tmp_path, capsys):
    small = "--rows 260 --size 6 --channels 4 --memory 1GiB"
    found = benchmark("convolutions").main([*small.split(), "--json", str(tmp_path / "record.json")])
    assert found["whole"]["route"] == "bases"
    assert found["whole"]["peak"] < found["whole"]["plan's figure"]
    assert found["whole"]["read"] > found["whole"]["activations"]
    assert json.loads((tmp_path / "record.json").read_text())["ratios"] == found["ratios"]
    assert "time / limit" in capsys.readouterr().out


def test_the_population_benchmark_measures_the_real_path(benchmark, tmp_path, capsys):
    population = benchmark("population")
    small = "--representations 5 --rows 400 --columns 40 --rank 8 --repeat 1"
    found = population.main([*small.split(), "--json", str(tmp_path / "record.json")])
    assert found["population"]["comparisons"] == 15
    assert found["difference from textbook SVCCA"] < 1e-6
    assert found["memory"]["measured peak"] > 50 << 20
    assert json.loads((tmp_path / "record.json").read_text())["ratios"] == found["ratios"]
    assert "textbook SVCCA pair / ours" in capsys.readouterr().out
