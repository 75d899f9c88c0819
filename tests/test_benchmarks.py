"""Benchmarks run, so that they cannot rot; what they measure is not asserted."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def population(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    specification = importlib.util.spec_from_file_location("population", ROOT / "benchmarks" / "population.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_population_benchmark_measures_the_real_path(population, tmp_path, capsys):
    small = "--representations 5 --rows 400 --columns 40 --rank 8 --repeat 1"
    found = population.main([*small.split(), "--json", str(tmp_path / "record.json")])
    assert found["population"]["comparisons"] == 15
    assert found["difference from textbook SVCCA"] < 1e-6
    assert found["memory"]["measured peak"] > 50 << 20
    assert json.loads((tmp_path / "record.json").read_text())["ratios"] == found["ratios"]
    assert "textbook SVCCA pair / ours" in capsys.readouterr().out
