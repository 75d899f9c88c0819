"""The notebook of a session with a cluster: on a cluster of two workers by TLS, interrupted, gone on with, extended."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

import dsvcca  # noqa: E402
from tests.populations import same_bits  # noqa: E402

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "clusters" / "session.ipynb"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def ended(*processes):
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


@pytest.fixture
def encrypted(tmp_path, monkeypatch):
    """A scheduler and two workers by TLS, as docs/hosts.md starts them; the environment says where they are."""
    subprocess.run(["bash", ROOT / "deploy" / "tls.sh", tmp_path / "tls"], check=True)
    settings = (ROOT / "deploy" / "dask.yaml").read_text().replace("\n#|", "\n")
    (tmp_path / "dask.yaml").write_text(settings)
    port = free_port()
    environment = {**os.environ, "DASK_CONFIG": str(tmp_path / "dask.yaml")}
    dask = [sys.executable, "-m", "dask"]
    scheduler = [*dask, "scheduler", "--host=127.0.0.1", f"--port={port}", "--no-dashboard"]
    worker = [*dask, "worker", f"tls://127.0.0.1:{port}", "--nthreads=1", "--memory-limit=1500MiB", "--no-dashboard"]
    with (tmp_path / "log").open("w") as log:
        lines = (scheduler, worker, worker)
        started = [subprocess.Popen(one, cwd=tmp_path, env=environment, stdout=log, stderr=log) for one in lines]
        with ended(*started):
            monkeypatch.setenv("DSVCCA_SCHEDULER", f"tls://127.0.0.1:{port}")
            monkeypatch.setenv("DSVCCA_TLS", str(tmp_path / "tls"))
            for _ in range(300):
                if "Starting established connection" in (tmp_path / "log").read_text():
                    break
                time.sleep(0.1)
            yield


@pytest.fixture
def notebook():
    found = nbformat.read(NOTEBOOK, as_version=4)
    for cell in found.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    return found


def tagged(notebook, tag):
    """Return where the cell with a tag stands."""
    [found] = [i for i, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", ())]
    return found


def text_of(cell):
    data = [output.get("data", {}).get("text/plain", output.get("text", "")) for output in cell.outputs]
    return "\n".join(data)


def bits_of_one_process(folder):
    """Return what this process makes of the same store."""
    plan = dsvcca.plan_comparisons(
        dsvcca.open_store(folder / "activations.zarr"), measures=["svcca", "chance", "svcca_error"]
    )
    return dsvcca.compare(plan, folder / "here.zarr", workspace=folder / "w")


def commits(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "results.zarr" / "commits").glob("*-*.json")}


def packs(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "activations.zarr.workspace").glob("pack-*/zarr.json")}


@pytest.mark.slow
def test_a_session_is_killed_in_the_middle_gone_on_with_and_extended(notebook, encrypted, tmp_path):
    """The kernel is killed while a run is under way; another one goes on from the cell that says so."""
    client = nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}})
    interrupted, tomorrow, again, more = (
        tagged(notebook, tag) for tag in ("interrupted", "tomorrow", "again", "one more")
    )
    with client.setup_kernel():
        for i in range(interrupted):
            client.execute_cell(notebook.cells[i], i)
        os.kill(client.km.provisioner.process.pid, signal.SIGKILL)
    assert "tls://" in text_of(notebook.cells[tagged(notebook, "connect")])
    time.sleep(1)  # workers may be about to finish what they have begun
    before, made = commits(tmp_path), packs(tmp_path)
    assert 1 <= len(before) < 3
    other = nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}})
    with other.setup_kernel():
        for i in (tomorrow, again, *range(tomorrow + 1, more)):
            other.execute_cell(notebook.cells[i], i)
        assert "100% of 256 x 256 comparisons" in text_of(notebook.cells[tagged(notebook, "all there")])
        after = commits(tmp_path)
        assert len(after) == 3
        late = {path for path in after if path not in before}
        assert {path: after[path] for path in before} == before  # nothing was done again
        left = re.search(r"([\d,]+) pairs of tiles", text_of(notebook.cells[tagged(notebook, "all there")]))[1]
        assert 0 < int(left.replace(",", "")) <= 256 * 257 // 2 - 128 * 128  # without that of two panels, at least
        assert packs(tmp_path) == made
        assert late
        for i in range(more, len(notebook.cells)):
            other.execute_cell(notebook.cells[i], i)
    extended = commits(tmp_path)
    assert len(extended) == 6  # a third panel: its tiles with the two before it, and with itself
    assert {path: extended[path] for path in after} == after
    assert {path: packs(tmp_path)[path] for path in made} == made  # of those that were there no basis was made anew
    found = dsvcca.open_results(tmp_path / "results.zarr")
    assert len(found.x) == 272
    assert same_bits(found, bits_of_one_process(tmp_path))


@pytest.mark.slow
def test_the_notebook_runs_with_a_cluster_of_its_own(notebook, tmp_path, monkeypatch):
    monkeypatch.delenv("DSVCCA_SCHEDULER", raising=False)
    nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "100% of 256 x 256 comparisons" in text_of(notebook.cells[tagged(notebook, "all there")])
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ()))


def test_the_committed_notebook_is_whole():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [one for one in outputs if one.output_type == "error"]
    assert "stderr" not in [one.get("name") for one in outputs]
    assert sum("image/png" in one.get("data", {}) for one in outputs) == 1
    assert "/tmp" not in str(outputs)
