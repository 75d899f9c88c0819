"""Workers as jobs of SLURM: what a file may say, and, where SLURM answers (make slurm), jobs for real."""

import shutil
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import dsvcca
from dsvcca import DsvccaError
from dsvcca.cli import app
from dsvcca.clusters.slurm import read_slurm, slurm_client
from tests.populations import activations, same_bits

pytest.importorskip("dask_jobqueue")

EXAMPLE = Path(__file__).parent.parent / "deploy" / "slurm" / "dsvcca.yaml"


def settings_file(tmp_path, jobs=2, **options):
    """Write a file for SLURM on this machine."""
    own = {"cores": 1, "processes": 1, "memory": "1.5 GiB", "walltime": "00:10:00", "interface": "lo"}
    own |= {"local-directory": str(tmp_path / "local"), "log-directory": str(tmp_path / "logs"), **options}
    path = tmp_path / "jobs.yaml"
    path.write_text(yaml.safe_dump({"jobqueue": {"slurm": own}, "dsvcca": {"jobs": jobs}}))
    return path


def test_the_example_is_one():
    found = read_slurm(EXAMPLE)
    assert (found.jobs, found.seconds) == (8, 3600)
    assert found.options["queue"] == "main"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("walltime:", "walltme:", "jobqueue.slurm knows no 'walltme': did you mean 'walltime'"),
        ("  jobs: 8 ", "  job: 8 ", "dsvcca.jobs: Field required"),
        ("  jobs: 8 ", "  jobs: 8.5 ", "dsvcca.jobs: Input should be a valid integer"),
        ("  jobs: 8 ", "  jobs: 0 ", "dsvcca.jobs: Input should be greater than or equal to 1"),
        ("dsvcca:", "dsvca:", "dsvcca: Field required"),
        ("  slurm:", "  slrm:", "jobqueue.slurm: Field required"),
        ("jobqueue:", "jobqueue: [", "is no YAML"),
        ('"01:00:00"', '"an hour"', "walltime 'an hour' is none: write it as SLURM does"),
        ('"01:00:00"', "12:00:00", "walltime is the number 43200: write it in quotes"),
        ('"01:00:00"', '"00:01:30"', "a walltime of 90 s is gone before work is done"),
        ("    cores: 1 ", "    # ", "does not say jobqueue.slurm.cores"),
    ],
)
def test_what_a_file_says_wrong_is_named(tmp_path, before, after, message):
    text = EXAMPLE.read_text()
    assert text.count(before) == 1
    path = tmp_path / "jobs.yaml"
    path.write_text(text.replace(before, after))
    with pytest.raises(DsvccaError, match=message):
        read_slurm(path)


def test_a_file_that_is_not_there_and_a_second_cluster_are_refused(tmp_path):
    with pytest.raises(DsvccaError, match="'none.yaml' cannot be read"):
        read_slurm("none.yaml")
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=10)
    said = CliRunner().invoke(app, ["compare", store.path, "r.zarr", "--slurm", str(EXAMPLE), "--workers", "2"])
    assert said.exit_code == 1
    assert "--workers and --slurm say each on their own where the work is done" in said.output


def test_a_machine_without_slurm_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    refused = pytest.raises(DsvccaError, match="sbatch cannot be run .*: is this a machine that SLURM knows")
    with refused, slurm_client(read_slurm(settings_file(tmp_path))):
        pass


answers = shutil.which("sinfo") and subprocess.run(["sinfo"], capture_output=True, check=False).returncode == 0
for_real = [pytest.mark.skipif(not answers, reason="no SLURM answers here: make slurm"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    store = dsvcca.create_store(tmp_path_factory.mktemp("s") / "s.zarr", datapoints=600)
    for seed in range(150):
        store.write(activations(seed), layer="a", seed=seed)
    return store


def queued():
    asked = subprocess.run(["squeue", "--noheader", "--format=%i %T"], capture_output=True, text=True, check=True)
    return [line.split()[0] for line in asked.stdout.splitlines() if line.endswith("RUNNING")]


class TestForReal:
    pytestmark = for_real

    def test_a_worker_job_that_is_cancelled_loses_nothing(self, population, tmp_path):
        plan = replace(dsvcca.plan_comparisons(population, measures="svcca"), panel=16)  # 55 tiles
        alone = dsvcca.compare(plan, tmp_path / "alone.zarr", workspace=tmp_path / "alone")
        seen = {}

        def cancel():
            commits = tmp_path / "r.zarr" / "commits"
            while not list(commits.glob("*-*.json")):
                time.sleep(0.02)
            seen["jobs"] = queued()
            subprocess.run(["scancel", seen["jobs"][0]], check=True)
            seen["kept"] = {path: path.stat().st_mtime_ns for path in commits.glob("*-*.json")}

        watching = threading.Thread(target=cancel, daemon=True)
        with slurm_client(read_slurm(settings_file(tmp_path))) as client:
            client.wait_for_workers(2, timeout=60)
            watching.start()
            found = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w", client=client)
            client.wait_for_workers(2, timeout=60)  # another job came
            assert len(set(queued()) - set(seen["jobs"])) == 1
        watching.join()
        assert same_bits(found, alone)
        assert seen["kept"]
        assert all(path.stat().st_mtime_ns == when for path, when in seen["kept"].items())  # nothing was done again
        for _ in range(30):
            if not queued():
                break
            time.sleep(1)
        assert not queued()  # the cluster left nothing behind

    def test_a_run_is_longer_than_its_jobs(self, population, tmp_path):
        plan = replace(dsvcca.plan_comparisons(population, measures=["svcca", "svcca_shuffled"], shuffles=60), panel=16)
        path = settings_file(tmp_path, **{"worker-extra-args": ["--lifetime", "8s", "--lifetime-stagger", "2s"]})
        jobs, done = set(), threading.Event()

        def look():
            while not done.wait(0.5):
                jobs.update(queued())

        watching = threading.Thread(target=look, daemon=True)
        with slurm_client(read_slurm(path)) as client:
            watching.start()
            found = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w", client=client)
        done.set()
        watching.join()
        assert len(jobs) > 3  # two at a time, and others in their place
        assert same_bits(found, dsvcca.compare(plan, tmp_path / "alone.zarr", workspace=tmp_path / "alone"))

    def test_jobs_that_slurm_refuses_are_told_before_any_is_sent(self, tmp_path):
        refused = pytest.raises(DsvccaError, match="SLURM refuses the jobs of .*invalid partition")
        with refused, slurm_client(read_slurm(settings_file(tmp_path, queue="nowhere"))):
            pass

    def test_jobs_that_end_before_a_worker_came_are_an_error(self, tmp_path):
        path = settings_file(tmp_path, **{"job-script-prologue": ["exit 7"]})
        refused = pytest.raises(DsvccaError, match="jobs of .* ended before a worker came: look at their logs in")
        with refused, slurm_client(read_slurm(path)):
            pass
