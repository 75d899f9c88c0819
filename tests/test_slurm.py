"""Workers as jobs of SLURM: what a file may say, and, where SLURM answers (make slurm), jobs for real."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
import yaml
from typer.testing import CliRunner

import dsvcca
from dsvcca import DsvccaError
from dsvcca.cli import app
from dsvcca.clusters import slurm
from dsvcca.clusters.local import WORKER_ENVIRONMENT, WORKER_MEMORY
from dsvcca.clusters.slurm import read_slurm, slurm_client
from dsvcca.errors import RunError
from tests.populations import activations, same_bits, write_population

pytest.importorskip("dask_jobqueue")

TEXT = {"capture_output": True, "text": True}
EXAMPLE = Path(__file__).parent.parent / "deploy" / "slurm" / "dsvcca.yaml"


def settings_file(tmp_path, jobs=2, driver=None, **options):
    """Write a file for SLURM on this machine."""
    own = {"cores": 1, "processes": 1, "memory": "1.5 GiB", "walltime": "00:10:00", "interface": "lo"}
    own |= {"local-directory": str(tmp_path / "local"), "log-directory": str(tmp_path / "logs"), **options}
    path = tmp_path / "jobs.yaml"
    path.write_text(yaml.safe_dump({"jobqueue": {"slurm": own}, "dsvcca": {"jobs": jobs, "driver": driver or {}}}))
    return path


def test_the_example_is_one():
    found = read_slurm(EXAMPLE)
    assert (found.jobs, found.seconds, found.driver_seconds()) == (8, 3600, 86400)
    assert found.options["queue"] == "main"
    assert (found.threads, found.memory) == (8, 4 << 30)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('    walltime: "01', '    walltme: "01', "jobqueue.slurm knows no 'walltme': did you mean 'walltime'"),
        ("  jobs: 8 ", "  job: 8 ", "dsvcca.jobs: Field required"),
        ("  jobs: 8 ", "  jobs: 8.5 ", "dsvcca.jobs: Input should be a valid integer"),
        ("  jobs: 8 ", "  jobs: 0 ", "dsvcca.jobs: Input should be greater than or equal to 1"),
        ("dsvcca:\n", "dsvca:\n", "dsvcca: Field required"),
        ("    cores: 1\n", "    coers: 1\n", "dsvcca.driver.coers: Extra inputs are not permitted"),
        ('"1-00:00:00"', '"a day"', "walltime 'a day' is none: write it as SLURM does"),
        ("    memory: 2 GiB", "    memory: much", "memory='much' is no amount of memory"),
        ("memory: 4 GiB", "memory: 4 apples", "memory='4 apples' is no amount of memory"),
        ("    processes: 1", "    processes: one", "processes is 'one': give a number from 1 on"),
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
    assert "workers and slurm say each on their own where the work is done" in said.output


def test_workers_in_jobs_have_the_settings_of_our_own_clusters(tmp_path, monkeypatch):
    def show(script, _):
        raise RunError(script)

    monkeypatch.setattr(slurm, "look_at", show)
    with pytest.raises(RunError) as said, slurm_client(read_slurm(settings_file(tmp_path))):
        pass
    exported = dict(re.findall(r"^export (\w+)=(\S+)$", str(said.value), re.MULTILINE))
    assert exported.items() >= WORKER_ENVIRONMENT.items()
    read = dask.config.collect_env({name: value for name, value in exported.items() if name.startswith("DASK_")})
    assert {name: dask.config.get(name, config=read) for name in WORKER_MEMORY} == WORKER_MEMORY


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


def said_of(*line):
    return CliRunner().invoke(app, [str(one) for one in line])


def test_memory_and_price_are_those_of_the_jobs(tmp_path):
    store, _ = write_population(tmp_path / "s.zarr", seeds=2, steps=(0,))
    path = settings_file(tmp_path, jobs=5, cores=4, processes=2, memory="6 GiB")
    assert read_slurm(path).threads == 20
    assert read_slurm(path).memory == 3 * 2**30 // 2
    said = said_of("plan", store.path, "--slurm", path)
    assert said.exit_code == 0, said.output
    assert "20 worker threads" in said.output, said.output
    said = said_of("plan", store.path, "--slurm", path, "--memory", "2 GiB")
    assert "memory 2 GiB is more than a thread of the jobs of" in said.output


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("verify", "STORE"), "'verify' cannot be sent: what can is compare and keep-bases"),
        (("compare", "STORE", "r.zarr", "--memroy", "1 GiB"), "No such option: --memroy"),
        (("compare", "STORE"), "Missing argument 'RESULTS'"),
        (("compare", "/nowhere", "r.zarr"), "there is no store at '/nowhere'"),
        (("compare", "STORE", "r.zarr", "--pairs", "some"), "pairs='some' is unknown"),
        (("compare", "STORE", "r.zarr", "--workers", "2"), "dsvcca.driver.cores 1 and memory 2 GiB: give it more"),
        (("compare", "STORE", "r.zarr", "--table", "/nowhere/t.csv"), "there is no folder '/nowhere'"),
    ],
)
def test_what_cannot_run_is_not_sent(tmp_path, line, message):
    store, _ = write_population(tmp_path / "s.zarr", seeds=2, steps=(0,))
    said = said_of("submit", "--slurm", settings_file(tmp_path), *(store.path if a == "STORE" else a for a in line))
    assert said.exit_code
    assert message in said.output
    assert "Traceback" not in said.output


def test_the_job_of_a_driver_says_what_it_runs(tmp_path, monkeypatch):
    folder = tmp_path / "a 'b' $c"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_population(folder / "s.zarr", seeds=2, steps=(0,))
    path = settings_file(tmp_path, **{"queue": "long", "job-script-prologue": ["module load python"]})
    said = said_of("submit", "--slurm", path, "--dry-run", "compare", "s.zarr", "r.zarr", "--where", "layer=a")
    assert said.exit_code == 0, said.output
    script = said.output[said.output.index("#!/bin/bash") :]
    for one in ("--partition=long", "--mem=2048M", "--time=00:10:00", "--signal=B:USR1@60", "--requeue"):
        assert f"#SBATCH {one}\n" in script
    line = next(one for one in script.splitlines() if "-m dsvcca" in one)
    assert shlex.split(line)[1:-1] == [
        *("-m", "dsvcca", "--verbose", "compare", "s.zarr", "r.zarr", "--where", "layer=a", "--slurm", str(path))
    ]
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert not (folder / "r.zarr").exists()
    again = said_of("submit", "--slurm", path, "--dry-run", "--after", 7, "--after", 8, "compare", "/later", "r.zarr")
    assert "#SBATCH --dependency=afterok:7:8\n" in again.output


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = dsvcca.create_store(tmp_path_factory.mktemp("s") / "s.zarr", datapoints=600)
    for seed in range(300):
        store.write(activations(seed), layer="a", seed=seed)
    return store


@pytest.fixture(scope="module")
def alone(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    plan = dsvcca.plan_comparisons(store, measures=["svcca", "svcca_shuffled"], shuffles=12)
    return dsvcca.compare(plan, folder / "r.zarr", workspace=folder / "w")


class TestSubmittedForReal:
    pytestmark = for_real

    @staticmethod
    def line(path, store, tmp_path, *more):
        return [
            *(sys.executable, "-m", "dsvcca", "submit", "--slurm", path, *more, "compare", store.path),
            *(tmp_path / "r.zarr", "--workspace", tmp_path / "w", "--measure", "svcca", "--measure", "svcca_shuffled"),
            *("--shuffles", "12"),
        ]

    def sent(self, line, tmp_path):
        said = subprocess.run([str(one) for one in line], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert said.returncode == 0, said.stderr
        return said.stdout[said.stdout.index("job      ") :].split()[1]

    @staticmethod
    def commits(tmp_path):
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "r.zarr" / "commits").glob("*-*.json")}

    def wait_for_commits(self, tmp_path, count):
        for _ in range(2400):
            if len(found := self.commits(tmp_path)) >= count:
                return found
            time.sleep(0.05)
        raise AssertionError([path.read_text() for path in (tmp_path / "logs").glob("*")])

    def ended(self, job, tmp_path):
        """Wait until a job is over, and return its log."""
        until = time.monotonic() + 500
        while time.monotonic() < until:
            asked = ["squeue", "--noheader", "--format=%T", "--jobs", job, "--states=PD,R,CG,CF,RQ"]
            if not subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip():
                break
            time.sleep(0.2)
        return (tmp_path / "logs" / f"dsvcca-driver-{job}.log").read_text()

    def test_the_shell_that_sent_it_may_end(self, store, alone, tmp_path):
        line = self.line(settings_file(tmp_path), store, tmp_path)
        script = f"{shlex.join(map(str, line))} > {tmp_path}/said; sleep 600"
        shell = subprocess.Popen(["bash", "-c", script], start_new_session=True, cwd=tmp_path)
        self.wait_for_commits(tmp_path, 1)
        before = self.commits(tmp_path)
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
        said = (tmp_path / "said").read_text()
        log = self.ended(said[said.index("job      ") :].split()[1], tmp_path)
        assert "status 0" in log, log
        assert same_bits(dsvcca.open_results(tmp_path / "r.zarr"), alone)
        after = self.commits(tmp_path)
        assert before
        assert {path: after[path] for path in before} == before

    def test_a_driver_that_is_killed_begins_again_and_goes_on(self, store, alone, tmp_path):
        job = self.sent(self.line(settings_file(tmp_path), store, tmp_path), tmp_path)
        before = self.wait_for_commits(tmp_path, 1)
        drivers = [
            one.pid
            for one in psutil.process_iter(["cmdline"])
            if "--verbose" in (one.info["cmdline"] or []) and str(tmp_path / "r.zarr") in one.info["cmdline"]
        ]
        assert len(drivers) == 1
        os.kill(drivers[0], signal.SIGKILL)
        log = self.ended(job, tmp_path)
        assert "status 137" in log, log
        assert re.search(r"status 0 after \d+ s, restart 1", log), log
        assert same_bits(dsvcca.open_results(tmp_path / "r.zarr"), alone)
        after = self.commits(tmp_path)
        assert {path: after[path] for path in before} == before

    @pytest.mark.timeout(600)
    def test_a_driver_whose_time_is_over_goes_on_later(self, tmp_path):
        store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=200)
        for seed in range(520):
            store.write(activations(seed, n=200), layer="a", seed=seed)
        one = dsvcca.plan_comparisons(store.select(seed=list(range(128))), measures="svcca_shuffled", shuffles=8)
        began = time.monotonic()
        dsvcca.compare(one, tmp_path / "one.zarr")
        tile = 2 * (time.monotonic() - began) / 8  # seconds of a shuffle; of the 15 tiles of the whole, 5 are halves
        shuffles = int(340 / (12.5 * tile)) + 1  # longer than the 60 to 120 s after which it is told
        path = settings_file(tmp_path, jobs=1, driver={"walltime": "00:02:30"})  # of which SLURM makes three minutes
        line = [*self.line(path, store, tmp_path)[:-1], str(shuffles)]
        job = self.sent(line, tmp_path)
        log = self.ended(job, tmp_path)
        assert "status 143" in log, log
        assert re.search(r"status 0 after \d+ s, restart [1-9]", log), log
        assert "DUE TO TIME LIMIT" not in log
        found = dsvcca.open_results(tmp_path / "r.zarr")
        assert not found.attrs["failed"]
        assert np.isfinite(found.svcca_shuffled.values[~np.eye(520, dtype=bool)]).all()

    def test_every_line_of_the_docs_runs(self, tmp_path):
        """A job array of captures, the comparison as a job after it, and the same from this shell."""
        pytest.importorskip("torch")
        for name in ("capture.sbatch", "capture.py"):
            shutil.copy(EXAMPLE.parent / name, tmp_path)
        shutil.copy(settings_file(tmp_path), tmp_path / "dsvcca.yaml")
        docs = (EXAMPLE.parents[2] / "docs" / "slurm.md").read_text()
        first, *more = re.findall(r"```sh\n(.*?)```", docs, re.DOTALL)
        lines = "\n".join([first.replace("$(sbatch", "$(sbatch --array=0-2 --mem=1000M --time=00:05:00"), *more])
        lines = lines.replace("dsvcca doctor", "until [ -e first.zarr/zarr.json ]; do sleep 1; done\ndsvcca doctor")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        said = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", lines],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            **TEXT,
            check=False,
        )
        assert said.returncode == 0, said.stdout + said.stderr
        assert "nothing stands in the way of a run on this cluster" in said.stdout
        log = self.ended(re.search(r"job +(\d+)", said.stdout).group(1), tmp_path)
        assert "status 0" in log, log
        store = dsvcca.open_store(tmp_path / "activations.zarr")
        here = dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "here.zarr", workspace=tmp_path / "w")
        assert set(here.x_seed.values) == {0, 1, 2}
        for name in ("first.zarr", "results.zarr"):
            assert same_bits(dsvcca.open_results(tmp_path / name), here)
        assert not list((tmp_path / "logs").glob(".dsvcca-tls-*"))  # no key is left
