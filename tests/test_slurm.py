"""Workers as jobs of SLURM: what a file may say, and, where SLURM answers (make slurm), jobs for real."""

import logging
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
from dsvcca.clusters import driver, jobs
from dsvcca.clusters.jobs import slurm_client
from dsvcca.clusters.settings import WORKER_ENVIRONMENT, WORKER_MEMORY
from dsvcca.clusters.slurm import read_slurm
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
        ('"01:00:00"', "2026-02-30", "is no YAML"),
        ('"01:00:00"', '"' + "9" * 5000 + '"', "is none: write it as SLURM does"),
        ("slurm-logs", "[a]", "log-directory is ..a..: give text"),
        ("slurm-logs", "5", "log-directory is 5: give text"),
        ("    queue: main ", '    queue: "a\\ntouch b" ', "write it on one line, of letters that can be seen"),
        ("    # queue: long", '    directives: ["--comment=x\\ntouch b"]', "directives is .*: write it on one line"),
        ("  slurm:", "  slurm:\n    job-script-prologue: [5]", "job-script-prologue is .5.: give text, a list of it"),
        ("  slurm:", '  slurm:\n    job-directives-skip: [""]', "job-directives-skip is .*: give text, a list of it"),
        ("jobqueue:", "# caf\xe9", "is no YAML"),
        ("  slurm:", "  slurm:\n    job-script-prologue: module load x", "give a list of text"),
        ("    queue: ", "    partition: ", "knows no 'partition': dask-jobqueue calls it 'queue'"),
        ("    queue: ", "    exclude: ", r'knows no \'exclude\': write job-extra-directives: \["--exclude=...'),
        ("    processes: 1", "    processes: 9", "9 processes share 1 cores: give each of them one"),
        ("  slurm:", "  slurm:\n    job-extra-directives: [[a]]", "give text, a list of it"),
    ],
)
def test_what_a_file_says_wrong_is_named(tmp_path, before, after, message):
    text = EXAMPLE.read_text()
    assert text.count(before) == 1
    path = tmp_path / "jobs.yaml"
    path.write_text(text.replace(before, after), encoding="latin-1")
    with pytest.raises(DsvccaError, match=message):
        read_slurm(path)


def test_folders_are_those_of_the_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    assert read_slurm(settings_file(tmp_path, **{"log-directory": "$SCRATCH/logs"})).options["log-directory"] == (
        "/scratch/me/logs"
    )
    with pytest.raises(DsvccaError, match="local-directory is '/a b': dask-jobqueue takes no folder with a space"):
        read_slurm(settings_file(tmp_path, **{"local-directory": "/a b"}))


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

    monkeypatch.setattr(jobs, "look_at", show)
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


def test_certificates_may_lie_in_a_folder_with_a_space(tmp_path, monkeypatch):
    def show(script, _):
        raise RunError(script)

    monkeypatch.setattr(jobs, "look_at", show)
    (tmp_path / "a b").mkdir()
    path = settings_file(tmp_path, **{"shared-temp-directory": str(tmp_path / "a b")})
    with pytest.raises(RunError) as said, slurm_client(read_slurm(path)):
        pass
    line = shlex.split(next(one for one in str(said.value).splitlines() if "--tls-ca-file" in one))
    assert Path(line[line.index("--tls-ca-file") + 1]).parents[1] == tmp_path / "a b"


STAND_INS = {
    # Programs of SLURM, as far as a scheduler of jobs needs them: a job is a process of this machine.
    "sbatch": """
        if [ "$1" = --test-only ]; then exit 0; fi
        if [ -e FOLDER/refuse ]; then
          echo x >> FOLDER/refused
          echo "sbatch: error: AssocMaxSubmitJobLimit" >&2
          exit 1
        fi
        cp "$1" FOLDER/script.$$
        setsid bash FOLDER/script.$$ > FOLDER/log.$$ 2>&1 &
        echo $! >> FOLDER/jobs
        echo "Submitted batch job $!" """,
    "squeue": """
        if [ -e FOLDER/busy ]; then exit 1; fi
        for job in $(cat FOLDER/jobs); do if kill -0 $job 2> /dev/null; then echo $job; fi; done""",
    "scancel": "kill -- -$1",
}


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Programs with the names of SLURM's."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    (folder / "jobs").touch()
    for name, text in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n".replace("FOLDER", str(folder)))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(jobs, "LOOK", 0.5)
    return folder


def wait_until(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(condition)


@pytest.fixture
def logged():
    """What goes to the log; Dask's clusters silence pytest's handlers."""
    found = []
    handler = logging.Handler()
    handler.emit = found.append
    log = logging.getLogger("dsvcca")
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield found
    log.setLevel(before)
    log.removeHandler(handler)


@pytest.mark.slow
def test_jobs_that_are_refused_are_sent_again(tmp_path, stand_ins, logged):
    """As where others of the same user are too many for a while."""
    (stand_ins / "refuse").touch()
    threading.Timer(2, (stand_ins / "refuse").unlink).start()
    with slurm_client(read_slurm(settings_file(tmp_path, jobs=1))) as client:
        refused = "SLURM refuses 1 jobs (sbatch: error: AssocMaxSubmitJobLimit): they are sent again"
        assert any(one.getMessage().startswith(refused) for one in logged)
        assert len((stand_ins / "refused").read_text().split()) > 1
        first = (stand_ins / "jobs").read_text().split()
        assert len(first) == 1
        (stand_ins / "refuse").touch()
        os.killpg(int(first[0]), signal.SIGKILL)
        wait_until(lambda: not client.scheduler_info()["workers"])
        wait_until(lambda: len((stand_ins / "refused").read_text().split()) > 3)
        (stand_ins / "refuse").unlink()
        client.wait_for_workers(1, timeout=60)
        assert len((stand_ins / "jobs").read_text().split()) == 2
    wait_until(lambda: not subprocess.run(["squeue"], capture_output=True, check=False).stdout)


def test_jobs_that_are_always_refused_are_an_error(tmp_path, stand_ins, monkeypatch):
    monkeypatch.setattr(jobs, "TRIES", 1)
    (stand_ins / "refuse").touch()
    refused = pytest.raises(RunError, match="SLURM refuses the jobs of .*: sbatch: error: AssocMaxSubmitJobLimit")
    with refused, slurm_client(read_slurm(settings_file(tmp_path))):
        pass


@pytest.mark.slow
def test_jobs_that_end_at_once_are_sent_less_and_less_often(tmp_path, stand_ins, logged):
    """One of a job's nodes is broken: others work meanwhile, and SLURM is not flooded."""
    wrong = f"if [ $(wc -l < {stand_ins}/jobs) -gt 1 ]; then exit 7; fi; sleep 0.2"
    path = settings_file(tmp_path, jobs=1, **{"job-script-prologue": [wrong]})
    (stand_ins / "busy").touch()  # SLURM does not answer: nothing is known of jobs, which counts as waiting
    with slurm_client(read_slurm(path)):
        (stand_ins / "busy").unlink()
        os.killpg(int((stand_ins / "jobs").read_text()), signal.SIGKILL)
        lost = "1 jobs ended before a worker came: they are sent again, and the next time not before"
        wait_until(lambda: len([one for one in logged if one.getMessage().startswith(lost)]) == 5)
        told = [one for one in logged if one.getMessage().startswith(lost)]
        assert [one.getMessage().removeprefix(lost) for one in told] == [
            " 0.5 s",
            " 1.0 s",
            " 2.0 s",
            " 4.0 s",
            " 8.0 s",
        ]
        assert told[4].created - told[3].created >= 4


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
        (("compare", "STORE", "r.zarr", "--pairs", "some"), "--pairs some is unknown"),
        (("compare", "STORE", "r.zarr", "--workers", "2"), "dsvcca.driver.cores 1 and memory 2 GiB: give it more"),
        (("compare", "STORE", "r.zarr", "--table", "/nowhere/t.csv"), "there is no folder '/nowhere'"),
        (("keep-bases", "STORE", "--route", "nonsense"), "--route nonsense keeps no bases"),
    ],
)
def test_what_cannot_run_is_not_sent(tmp_path, line, message):
    store, _ = write_population(tmp_path / "s.zarr", seeds=2, steps=(0,))
    words = [store.path if a == "STORE" else a for a in line]
    said = said_of("submit", "--dry-run", "--slurm", settings_file(tmp_path), *words)
    assert said.exit_code
    assert "#!/bin/bash" not in said.output
    assert message in said.output
    assert "Traceback" not in said.output


def test_the_folder_of_a_driver_stays_on_its_line(tmp_path, monkeypatch):
    write_population(tmp_path / "s.zarr", seeds=2, steps=(0,))
    path = settings_file(tmp_path, **{"log-directory": "logs"})
    for name, message in (
        ("a\ntouch b #", "that cannot be seen"),
        ("100%j", "/100%%j/logs/dsvcca-driver-%j.log"),
    ):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        said = said_of("submit", "--slurm", path, "--dry-run", "compare", tmp_path / "s.zarr", "r.zarr")
        assert message in said.output
    monkeypatch.chdir(tmp_path)
    os.mkdir(b"nu\xff")
    os.chdir(b"nu\xff")
    said = said_of("submit", "--slurm", path, "--dry-run", "--after", 3, "compare", "s.zarr", "r.zarr")
    assert said.exit_code == 1
    assert "are not UTF-8" in said.output


def test_a_driver_that_is_killed_begins_again_so_many_times(tmp_path, monkeypatch):
    """The script of its job, run here: `scontrol` notes what it is told, and whatever stands above changes nothing."""
    monkeypatch.chdir(tmp_path)
    for name in ("scontrol", "scancel"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/{name}.said\n')
        (tmp_path / name).chmod(0o755)
    settings = read_slurm(settings_file(tmp_path, **{"job-script-prologue": ["set -euo pipefail"]}))
    log = tmp_path / "logs" / "dsvcca-driver-7.log"
    log.parent.mkdir()
    script = driver.driver_script(settings, ["--help"])
    line = next(one for one in script.splitlines() if "-m dsvcca" in one)
    killed = script.replace(line, "bash -c 'kill -KILL $$' &")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    environment["SLURM_RESTART_COUNT"] = "50"  # of all those whose time was over
    for _ in range(12):
        with open(log, "a") as out:
            ended = subprocess.run(["bash", "-c", killed], env=environment, stdout=out, stderr=out, check=False)
        assert ended.returncode == 137
    assert (tmp_path / "scontrol.said").read_text() == 10 * "requeue 7\n"
    assert subprocess.run(["bash", "-c", script], env=environment, **TEXT, check=False).returncode == 0
    assert len((tmp_path / "scontrol.said").read_text().splitlines()) == 10


def test_the_job_of_a_driver_says_what_it_runs(tmp_path, monkeypatch):
    folder = tmp_path / "a 'b' $c"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_population(folder / "s.zarr", seeds=2, steps=(0,))
    more = {"job-script-prologue": ["module load python"], "job-directives-skip": ["--time"]}
    path = settings_file(tmp_path, queue="long", **more)
    said = said_of("submit", "--slurm", path, "--dry-run", "compare", "s.zarr", "r.zarr", "--where", "layer=a")
    assert said.exit_code == 0, said.output
    script = said.output[said.output.index("#!/bin/bash") :]
    assert "--time" not in script
    for one in ("--partition=long", "--mem=2048M", "--signal=B:USR1@60", "--requeue"):
        assert f"#SBATCH {one}\n" in script
    line = next(one for one in script.splitlines() if "-m dsvcca" in one)
    assert shlex.split(line)[1:-1] == [
        *("-m", "dsvcca", "--verbose", "compare", "--slurm", str(path), "s.zarr", "r.zarr", "--where", "layer=a")
    ]
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert not (folder / "r.zarr").exists()
    assert not (tmp_path / "logs").exists()
    workers = script[script.index("# The driver sends 2 of these at a time:") :]
    for one in (
        "#SBATCH -p long",
        "#SBATCH --mem=2G",
        "module load python",
        "-m distributed.cli.dask_worker tls://SCH",
    ):
        assert one in workers
    behind = said_of("submit", "compare", "s.zarr", "r.zarr", "--where", "layer=a", "--slurm", path, "--dry-run")
    assert "-m dsvcca --verbose compare s.zarr r.zarr --where layer=a --slurm" in behind.output
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


def test_interrupts_stay_what_they_were():
    """Importing dask_jobqueue has them end the process, without a word of how to go on."""
    code = "import signal; from dsvcca.clusters.slurm import jobqueue; before = signal.getsignal(signal.SIGINT); "
    code += "jobqueue(); assert signal.getsignal(signal.SIGINT) is before"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
