"""What is looked at before the first task: who cannot take part, what does harm, what costs time."""

import logging
import os
import signal
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import dask
import pytest
from distributed import Client, LocalCluster
from typer.testing import CliRunner

import dsvcca
from dsvcca import DsvccaError
from dsvcca.cli import app
from dsvcca.clusters.local import local_client
from dsvcca.clusters.settings import WORKER_ENVIRONMENT
from dsvcca.engine import cluster
from dsvcca.engine.facts import Facts, _limits, facts, harm, slower
from dsvcca.storage import staging
from tests.populations import same_bits, write_population

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

V1 = "memory.limit_in_bytes"
HERE = Facts("one", 1000.0, 8 << 30, dict(WORKER_ENVIRONMENT), 0, 1, 4)


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def worker(address, **more):
    return {"address": address, "memory_limit": 1 << 30, "nthreads": 1, "resources": {}, "nanny": "tcp://n", **more}


def test_a_sound_cluster_gives_no_advice():
    workers = [worker("a"), worker("b")]
    found = {"a": HERE, "b": HERE}
    assert harm(workers, found, (999.0, 1001.0)) == []
    assert slower(workers, found) == []
    (sentence,) = slower(workers, dict.fromkeys("ab", replace(HERE, cores=1)))
    assert sentence == "one has 1 cores for 2 worker threads: start no more than it has cores"


@pytest.mark.parametrize(
    ("change", "own", "message"),
    [
        ({"memory_limit": 5 << 30}, {}, "the 2 workers of one may take 10.00 GiB together and it has 8.00 GiB"),
        ({}, {"clock": 1100.0}, "worker a and 1 more: the clock differs from the one here by 99 s"),
        ({}, {"clock": 900.0}, "worker a and 1 more: the clock differs from the one here by 99 s"),
        ({}, {"blas": 4}, "worker a and 1 more: linear algebra takes 4 threads and not the one"),
    ],
)
def test_what_does_harm_is_told(change, own, message):
    workers = [worker("a", **change), worker("b", **change)]
    found = dict.fromkeys("ab", replace(HERE, **own))
    (sentence,) = harm(workers, found, (999.0, 1001.0))
    assert sentence.startswith(message)


def test_a_gpu_that_is_used_and_memory_of_two_hosts_are_no_harm():
    workers = [worker("a", memory_limit=5 << 30, resources={"GPU": 1}), worker("b", memory_limit=5 << 30), worker("c")]
    found = {"a": replace(HERE, gpus=1), "b": replace(HERE, host="two"), "c": replace(HERE, gpus=1)}
    assert harm(workers, found, (999.0, 1001.0)) == []
    assert slower(workers, found) == []
    (sentence,) = slower(workers, {**found, "b": replace(HERE, host="two", gpus=1)})
    assert sentence.startswith("two: there is a GPU nobody uses")


@pytest.mark.parametrize(
    ("change", "own", "message"),
    [
        ({}, {"environment": {"MALLOC_TRIM_THRESHOLD_": "65536"}}, "MALLOC_TRIM_THRESHOLD_ is 65536"),
        ({}, {"environment": {}}, "MALLOC_TRIM_THRESHOLD_ is not set"),
        ({}, {"environment": {"MALLOC_TRIM_THRESHOLD_": "much"}}, "MALLOC_TRIM_THRESHOLD_ is much"),
        ({"memory_limit": 0}, {}, "no limit of memory is set"),
        ({"nanny": None}, {}, "there is no nanny"),
        ({"nthreads": 4}, {}, "several threads share the memory and the Python of a process"),
    ],
)
def test_what_costs_time_or_safety_is_told(change, own, message):
    (sentence,) = slower([worker("a", **change)], {"a": replace(HERE, **own)})
    assert f"worker a: {message}" in sentence


def test_a_process_knows_itself():
    found = facts()
    assert found.host
    assert abs(found.clock - time.time()) < 5
    assert found.memory > 1 << 28
    assert found.blas == 1


def test_memory_is_that_of_the_smallest_control_group(tmp_path):
    job, own = tmp_path / "slurm" / "job_7", tmp_path / "memory" / "a"
    for folder, name, limit in ((job, "memory.max", "100"), (job.parent, "memory.max", "max"), (own, V1, "70")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{limit}\n")
    (tmp_path / "memory.max").write_text("90\n")
    assert _limits("0::/slurm/job_7/step_0\n", tmp_path) == [100, 90]
    assert _limits("9:memory:/a/b\n8:cpu:/a\n0::/elsewhere\n", tmp_path) == [70, 90]


def test_what_is_tried_out_leaves_nothing(tmp_path):
    staging.try_out(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_many_try_out_one_place_at_a_time(tmp_path):
    """The folder that they share is made and removed by all of them."""

    def often(_):
        for _ in range(150):
            staging.try_out(tmp_path)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(often, range(12)))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / staging.STAGING).touch()
    with pytest.raises(OSError, match=r"\.uncommitted"):
        staging.try_out(tmp_path)


def test_the_doctor_looks_here_and_at_every_worker(tmp_path):
    store, _ = write_population(tmp_path / "s.zarr", seeds=2, steps=(0,))
    said = call("doctor", store.path, tmp_path / "new" / "r.zarr", "--workers", 2)
    assert said.exit_code == 0, said.output
    assert "4 representations" in said.output
    assert "2 on 1 hosts, 2 threads, 1.00 GiB a thread, 0 with a GPU" in said.output
    assert "nothing stands in the way of a run on this cluster" in said.output
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.zarr"]
    assert call("doctor").exit_code == 0
    said = call("doctor", store.path, tmp_path / "s.zarr" / "zarr.json")
    assert said.exit_code == 1
    assert "zarr.json' does not hold results of dsvcca" in said.output
    (tmp_path / "file").touch()
    for place, message in (
        (tmp_path / "file" / "below", "lies below a file"),
        (store.path, "holds activations, not results"),
    ):
        for line in (("doctor", store.path, place), ("compare", store.path, place, "--dry-run")):
            said = call(*line)
            assert said.exit_code == 1, said.output
            assert message in said.output
    said = call("doctor", store.path, tmp_path / "r.zarr", "--workspace", store.path)
    assert "holds activations, not workspace" in said.output
    assert "this machine has " in call("doctor", "--memory", "900000 GiB").output


def test_the_doctor_refuses_what_compare_would(tmp_path, monkeypatch):
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)  # which nannies before this one leave behind
    store, _ = write_population(tmp_path / "s.zarr", seeds=2, steps=(0,))
    with dask.config.set({"distributed.nanny.pre-spawn-environ": {"MALLOC_TRIM_THRESHOLD_": 65536}}):  # as by default
        options = {"n_workers": 1, "threads_per_worker": 2, "memory_limit": "1 GiB", "dashboard_address": "127.0.0.1:0"}
        with LocalCluster(**options) as found:
            said = call("doctor", store.path, "--scheduler", found.scheduler_address, "--memory", "1 GiB")
            assert said.exit_code == 1
            assert (
                "cannot run: a worker thread has 512.00 MiB, not --memory 1 GiB: ask for as much at most" in said.output
            )
            said = call("doctor", store.path, "--scheduler", found.scheduler_address)
            assert said.exit_code == 1
            assert "a worker thread has 512.00 MiB, not the 1 GiB of --memory, as it is where nothing is" in said.output
            said = call("doctor", store.path, "--scheduler", found.scheduler_address, "--memory", "0.5 GiB")
            assert said.exit_code == 0, said.output
            assert "better: worker tcp://127.0.0.1:" in said.output
            assert "MALLOC_TRIM_THRESHOLD_ is 65536" in said.output


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_worker_that_cannot_write_is_found_before_the_first_task(tmp_path):
    """A worker of another user, as in a container that was started with another one."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and len(folder.parts) > 2:
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | 0o055)
    store, _ = write_population(tmp_path / "s.zarr", seeds=2, steps=(0,))
    plan = dsvcca.plan_comparisons(store)
    here = dsvcca.compare(plan, tmp_path / "here.zarr", workspace=tmp_path / "w0")
    with local_client(1, "1 GiB") as client:
        assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr", client=client, workspace=tmp_path / "w"), here)
        client.run(os.seteuid, 65534)  # all that is imported later would not be found
        with pytest.raises(DsvccaError, match="cannot write the workspace .*Permission denied"):
            dsvcca.compare(plan, tmp_path / "r2.zarr", client=client, workspace=tmp_path / "w2")
        said = call("doctor", store.path, tmp_path / "r2.zarr", "--scheduler", client.scheduler_info()["address"])
        assert said.exit_code == 1
        assert "cannot run: worker tcp://127.0.0.1:" in said.output
        assert "cannot write the workspace" in said.output
        client.run(os.seteuid, 0)
    assert same_bits(dsvcca.compare(plan, tmp_path / "r2.zarr", workspace=tmp_path / "w2"), here)


def test_a_worker_whose_gpu_is_none_is_found_before_the_first_task(tmp_path):
    store, _ = write_population(tmp_path / "s.zarr", seeds=2, steps=(0,))
    environment = {"DSVCCA_DEVICE": "nothing_of_the_kind"}
    options = {"n_workers": 1, "threads_per_worker": 1, "memory_limit": "1 GiB", "dashboard_address": "127.0.0.1:0"}
    with (
        LocalCluster(resources={"GPU": 1}, env=environment, **options) as found,
        Client(found, set_as_default=False) as client,
        pytest.raises(DsvccaError, match="has no device to compute on .*: mend it, or start the worker without"),
    ):
        dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr", client=client)


@pytest.mark.slow
@pytest.mark.fault("processes", "a worker that hangs before the first task", "an error within a minute")
def test_a_worker_that_hangs_is_told_in_time(tmp_path, monkeypatch):
    with local_client(2, "1 GiB") as client:
        witness = cluster.witness_of({}, {"results": tmp_path})
        assert cluster.ask_all(client, witness).objections == []
        monkeypatch.setattr(cluster, "WAIT", 2)
        stopped = next(iter(client.run(os.getpid).values()))
        os.kill(stopped, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(DsvccaError, match="some workers do not answer within 2 s"):
                cluster.ask_all(client, witness)
            assert time.monotonic() - began < 30
        finally:
            os.kill(stopped, signal.SIGCONT)


def test_workers_are_asked_anew_every_time(tmp_path):
    with local_client(1, "1 GiB") as client:
        (tmp_path / "r").mkdir()
        witness = cluster.witness_of({}, {"results": tmp_path / "r"})
        assert cluster.ask_all(client, witness).objections == []
        (tmp_path / "r").rmdir()
        (tmp_path / "r").touch()
        [said] = cluster.ask_all(client, witness).objections
        assert "cannot write the results" in said


def test_harm_goes_to_the_log_before_the_first_task(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("dsvcca.engine.facts.SKEW", -1)
    caplog.set_level(logging.INFO, "dsvcca")
    with local_client(1, "1 GiB") as client, cluster.taking_part(client, {}, {"results": tmp_path}):
        pass
    assert any("the clock differs" in record.message for record in caplog.records if record.levelno == logging.WARNING)
