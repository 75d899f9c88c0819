"""What files in deploy/ say, as processes of this machine: the check of health, and a run on Kubernetes without one."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import dsvcca
from tests.deploy_checks import read_yaml
from tests.deploy_commands import DEPLOY, ROOT
from tests.deploy_kubernetes import expanded, made_by_operator
from tests.populations import activations, same_bits

HEALTH = DEPLOY / "health.py"


def free_ports(count):
    """Return ports of this machine that nobody has."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [str(one.getsockname()[1]) for one in sockets]


def healthy(folder, words):
    """Return what the check of health says in a container that runs a command line."""
    (folder / "cmdline").write_bytes("\0".join(["tini", "-g", "--", *words, ""]).encode())
    return subprocess.run([sys.executable, HEALTH, folder / "cmdline"], capture_output=True, text=True, check=False)


@contextmanager
def running(words, environment=None):
    """Run a command line, and end it."""
    program = Path(sysconfig.get_path("scripts"), words[0])
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    process = subprocess.Popen([program, *words[1:]], env=surroundings, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


def until_healthy(folder, words):
    """Wait until what runs is well."""
    for _ in range(100):
        if healthy(folder, words).returncode == 0:
            return
        time.sleep(0.2)
    raise AssertionError(healthy(folder, words).stderr)


def test_what_serves_nothing_is_healthy(tmp_path):
    assert healthy(tmp_path, ["jupyter", "lab"]).returncode == 0
    assert healthy(tmp_path, ["dsvcca", "compare", "a", "b"]).returncode == 0


def test_health_is_asked_where_a_scheduler_or_worker_serves(tmp_path):
    comm, dashboard, other = free_ports(3)
    scheduler = [
        "dask",
        "scheduler",
        "--host=127.0.0.1",
        f"--port={comm}",
        f"--dashboard-address=127.0.0.1:{dashboard}",
    ]
    worker = ["dask", "worker", f"tcp://127.0.0.1:{comm}", "--nthreads=1", "--dashboard-address", f":{other}"]
    worker.append(f"--local-directory={tmp_path}")
    assert "nothing well answers" in healthy(tmp_path, scheduler).stderr
    assert healthy(tmp_path, worker).returncode == 1
    with running(scheduler):
        until_healthy(tmp_path, scheduler)
        assert healthy(tmp_path, worker).returncode == 1
        with running(worker):
            until_healthy(tmp_path, worker)
    assert healthy(tmp_path, scheduler).returncode == 1


class Pods:
    """The pods of manifests as processes: their command lines and environments, with paths of this machine."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("data", "tmp", "dask"):
            (folder / name).mkdir()
        comm, dashboard, http = free_ports(3)
        self.here = {
            "dsvcca-scheduler:8786": f"127.0.0.1:{comm}",
            "--port=8786": f"--port={comm}",
            ":8787": f":{dashboard}",
            ":8788": f":{http}",
            "/etc/dsvcca/tls": str(folder / "tls"),
            "--local-directory=/tmp": f"--local-directory={folder / 'tmp'}",
            "/data/": f"{folder / 'data'}/",
        }
        (settings,) = read_yaml(DEPLOY / "kubernetes" / "config.yaml")
        (folder / "dask" / "tls.yaml").write_text(self.moved(settings["data"]["tls.yaml"]))
        shutil.copy(DEPLOY / "dask.yaml", folder / "dask" / "dsvcca.yaml")
        page = (ROOT / "docs" / "kubernetes.md").read_text()
        (block,) = re.findall(r"```sh\n(deploy/tls.sh .*?)```", page, flags=re.DOTALL)
        (folder / "deploy").symlink_to(DEPLOY)
        subprocess.run(["bash", "-euc", block], cwd=folder, check=True, capture_output=True)
        (folder / "tls" / "ca.key").unlink()  # as in the secret

    def moved(self, text):
        """Return a text with what is elsewhere on this machine."""
        for there, here in self.here.items():
            text = text.replace(there, here)
        return text

    def of(self, pod):
        """Return the command line and the environment of a pod."""
        (container,) = pod["containers"]
        environment = {one["name"]: one["value"] for one in container.get("env", ())}
        words = [self.moved(expanded(word, environment)) for word in container["args"]]
        own = {name: self.moved(value) for name, value in environment.items()}
        return words, {**own, "DASK_CONFIG": str(self.folder / "dask"), "DASK_ROOT_CONFIG": str(self.folder / "none")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A population, and its results by one process."""
    folder = tmp_path_factory.mktemp("alone")
    store = dsvcca.create_store(folder / "activations.zarr", datapoints=600)
    for seed in range(300):
        store.write(activations(seed), layer="a", seed=seed)
    plan = dsvcca.plan_comparisons(store, measures=["svcca", "svcca_shuffled"], shuffles=5)
    return store, dsvcca.compare(plan, folder / "results.zarr")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_manifests_run_as_processes_by_tls_and_a_killed_driver_goes_on(tmp_path, alone):
    pods = Pods(tmp_path)
    store, expected = alone
    shutil.copytree(store.path, tmp_path / "data" / "activations.zarr")
    (cluster,) = read_yaml(DEPLOY / "kubernetes" / "cluster.yaml")
    made = [one for _, one in made_by_operator(cluster) if one["kind"] == "Deployment"]
    scheduler, worker = (pods.of(one["spec"]["template"]["spec"]) for one in made)
    (job,) = read_yaml(DEPLOY / "kubernetes" / "driver.yaml")
    line, environment = pods.of(job["spec"]["template"]["spec"])
    line += ["--measure=svcca", "--measure=svcca_shuffled", "--shuffles=5"]
    commits = tmp_path / "data" / "results.zarr" / "commits"

    with running(line, environment) as early:
        assert early.wait(60) == 1  # there is no scheduler yet: the Job tries again
        assert "no Dask scheduler answers at 'tls://" in early.stderr.read()
    with running(*scheduler), running(*worker):
        until_healthy(tmp_path, scheduler[0])
        until_healthy(tmp_path, worker[0])
        with running([*line[:5], f"--scheduler=tcp://{pods.here['dsvcca-scheduler:8786']}"], environment) as plain:
            assert plain.wait(60) == 1  # without TLS nobody is let in
        with running(line, environment) as killed:
            while not list(commits.glob("*-*.json")):
                assert killed.poll() is None, killed.stderr.read()
                time.sleep(0.02)
            killed.send_signal(signal.SIGKILL)
            killed.wait(30)
        kept = {path: path.stat().st_mtime_ns for path in commits.glob("*-*.json")}
        assert 0 < len(kept) < 6
        with running(line, environment) as again:
            assert again.wait(200) == 0, again.stderr.read()
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())  # nothing was done again
    assert same_bits(dsvcca.open_results(tmp_path / "data" / "results.zarr"), expected)
