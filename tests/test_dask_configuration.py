"""deploy/dask.yaml: every setting is one of Dask, is said why, agrees with the code, and reaches the processes."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
import yaml
from distributed import Client, LocalCluster
from distributed.scheduler import KilledWorker

from dsvcca.clusters.local import local_client
from dsvcca.clusters.settings import ON_ONE_MACHINE, WORKER_ENVIRONMENT
from dsvcca.engine import execute
from dsvcca.errors import RunError
from tests.deploy_dask import ENVIRONMENT, findings, leaves, with_tls

FILE = Path(__file__).parent.parent / "deploy" / "dask.yaml"

OF_ITS_OWN = {
    "distributed.scheduler.allowed-failures",  # one machine loses no host: there a task is blamed sooner
    "distributed.worker.preload",  # for who types at the terminal where workers run
}
"""Settings of clusters that we start ourselves that are other ones on clusters of several hosts."""


@pytest.mark.parametrize("text", [FILE.read_text(), with_tls(FILE.read_text())], ids=["as it is", "with TLS"])
def test_every_setting_is_one_of_dask_and_is_explained(text):
    assert findings(text) == []
    assert "distributed" in yaml.safe_load(text)


def test_the_lines_for_tls_are_switched_on_together():
    plain, secured = (leaves(yaml.safe_load(text)) for text in (FILE.read_text(), with_tls(FILE.read_text())))
    assert plain.items() <= secured.items()
    more = secured.keys() - plain.keys()
    assert {name.removeprefix("distributed.comm.") for name in more} == {
        *("default-scheme", "require-encryption", "tls.ca-file"),
        *(f"tls.{who}.{what}" for who in ("scheduler", "worker", "client") for what in ("cert", "key")),
    }


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "distributed:\n  sched",
            "distributed:\n  shed",
            "Dask knows no 'distributed.sheduler.allowed-failures': did you",
        ),
        ("      pause:", "      pauze:", "Dask knows no 'distributed.worker.memory.pauze': did you mean"),
        ("    allowed-failures: 3", "    allowed-failures: three", "distributed.scheduler.allowed-failures: 'three'"),
        ("terminate: 0.95", "terminate: 95", "distributed.worker.memory.terminate: 95"),
        ("worker-ttl: 5 minutes", "worker-ttl: 5 minuets", "worker-ttl is '5 minuets', which is no time"),
        ("      MALLOC_TRIM_THRESHOLD_:", "      MALLOC_TRIM_THRESHOLD:", "sets 'MALLOC_TRIM_THRESHOLD': did you mean"),
        ("      # How often memory and load are measured.\n", "", "no comment says why 'interval: 2s'"),
        ("#|    default-scheme:", "#|    default-sheme:", "Dask knows no 'distributed.comm.default-sheme'"),
        ("#|        cert: tls/worker.pem", "#|        cert: 5", "distributed.comm.tls.worker.cert: 5"),
    ],
)
def test_a_slip_in_the_file_is_named(before, after, message):
    text = FILE.read_text()
    assert text.count(before) == 1
    found = findings(with_tls(text.replace(before, after)))
    assert any(message in sentence for sentence in found), found


def test_the_environment_of_workers_is_that_of_our_own_clusters():
    said = yaml.safe_load(FILE.read_text())["distributed"]["nanny"]["pre-spawn-environ"]
    assert {name: str(value) for name, value in said.items()} == WORKER_ENVIRONMENT


def test_settings_of_our_own_clusters_are_in_the_file():
    said = leaves(yaml.safe_load(FILE.read_text()))
    for name, value in ON_ONE_MACHINE.items():
        if name != ENVIRONMENT:
            assert (said.get(name) == value) is (name not in OF_ITS_OWN), name


def seen_by_a_process(names):
    """Return the settings of this process, and with what environment it was started, as the kernel keeps it."""
    environment = {}
    if Path("/proc/self/environ").exists():
        lines = Path("/proc/self/environ").read_bytes().decode(errors="replace").split("\0")
        environment = dict(line.split("=", 1) for line in lines if "=" in line)
    return {name: dask.config.get(name) for name in names}, environment


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc here, to see what a process began with")
def test_processes_that_are_started_with_the_file_have_its_settings(tmp_path):
    names = [name for name in leaves(yaml.safe_load(FILE.read_text())) if not name.startswith(ENVIRONMENT)]
    own = {name: value for name, value in os.environ.items() if name not in WORKER_ENVIRONMENT}
    own |= {"DASK_CONFIG": str(FILE), "PYTHONPATH": str(FILE.parent.parent)}
    address = tmp_path / "scheduler.json"
    lines = [
        ["scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"],
        ["worker", "--nthreads", "1", "--memory-limit", "1GiB", "--no-dashboard", "--local-directory", str(tmp_path)],
    ]
    started = []
    try:
        for line in lines:
            line = [sys.executable, "-m", "dask", *line, "--scheduler-file", str(address)]
            with (tmp_path / f"log{len(started)}").open("w") as log:
                started.append(subprocess.Popen(line, env=own, stdout=log, stderr=log))
            for _ in range(600):
                if address.exists():
                    break
                time.sleep(0.05)
        with Client(scheduler_file=str(address), set_as_default=False, timeout=30) as client:
            client.wait_for_workers(1, timeout=30)
            ((settings, environment),) = client.run(seen_by_a_process, names).values()
            of_scheduler, _ = client.run_on_scheduler(seen_by_a_process, names)
            pausing = client.run(lambda dask_worker: dask_worker.memory_manager.memory_pause_fraction)
            saturation = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.WORKER_SATURATION)
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(20)
    expected = {name: value for name, value in leaves(yaml.safe_load(FILE.read_text())).items() if name in names}
    assert settings == expected
    assert of_scheduler == expected
    assert WORKER_ENVIRONMENT.items() <= environment.items()  # as it began: the allocator looks at nothing later
    assert list(pausing.values()) == [False]
    assert saturation == 1.0


# Where settings are other ones


HELD = []


def hold(share):
    """Keep memory that no task needs, so that a worker of 700 MiB is full to a share."""
    HELD.append(np.ones(int(share * (700 << 20) - psutil.Process().memory_info().rss) // 8))


def slow(task):
    time.sleep(0.2)
    return task


@pytest.mark.slow
def test_a_worker_whose_memory_is_nearly_full_goes_on():
    with local_client(1, "700 MiB") as client:
        client.submit(hold, 0.88).result(timeout=30)
        time.sleep(1)  # it looks ten times a second
        receipts, failures = execute.run(slow, [1, 2], client=client, title="slow")
    assert (sorted(receipts), failures) == ([1, 2], [])


@pytest.mark.slow
def test_where_all_workers_are_paused_it_is_said(monkeypatch, caplog):
    monkeypatch.setattr(execute, "ALONE", 1)
    options = {"n_workers": 1, "threads_per_worker": 1, "memory_limit": "700 MiB", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**options) as own, Client(own, set_as_default=False) as client:
        client.submit(hold, 0.88).result(timeout=30)

        def let_go():
            while "all workers are paused" not in caplog.text:
                time.sleep(0.1)
            client.run(let_all_go)

        letting = threading.Thread(target=let_go, daemon=True)
        letting.start()
        time.sleep(1)
        receipts, failures = execute.run(slow, [1, 2], client=client, title="slow")
    assert (sorted(receipts), failures) == ([1, 2], [])
    letting.join(10)
    assert "distributed.worker.memory.pause: false lets them" in caplog.text


def let_all_go():
    HELD.clear()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_where_tasks_fail_for_want_of_workers_the_run_ends_with_a_sentence():
    options = {"n_workers": 1, "threads_per_worker": 1, "memory_limit": "700 MiB", "dashboard_address": "127.0.0.1:0"}
    ending = pytest.raises(RunError, match=r"no worker was there for 1 s, .*: what was finished is kept, start workers")
    with (
        dask.config.set({"distributed.scheduler.no-workers-timeout": "1s"}),
        LocalCluster(**options) as own,
        Client(own, set_as_default=False) as client,
    ):
        leaving = threading.Timer(1, own.scale, [0])
        leaving.start()
        with ending:
            execute.run(slow, list(range(60)), client=client, title="slow")
        leaving.join()


class Late:
    """A future whose receipt was lost with its worker, and whose task killed the next ones."""

    def exception(self):
        return None

    def result(self):
        raise KilledWorker("correlate-1", None, 1)


def test_a_receipt_that_is_lost_before_it_is_fetched_is_a_failure_of_its_task_alone():
    receipt, error = execute._outcome(Late(), "tile 0-1")
    assert receipt is None
    assert "tile 0-1 was on a worker that died, 2 times over" in str(error)
