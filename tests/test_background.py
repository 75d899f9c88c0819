"""Runs in the background: watched, looked into, stopped, gone on with; the same bits as a run that is waited for."""

import asyncio
import gc
import logging
import os
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import dask
import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster

import dsvcca
from dsvcca import DsvccaError, DsvccaWarning
from dsvcca.clusters import workplace
from dsvcca.clusters.local import local_client
from dsvcca.clusters.settings import WORKER_MEMORY, dask_settings
from dsvcca.engine import execute
from dsvcca.progress import WATCH, Progress, Stopped, Watch, track
from tests.populations import activations, same_bits, write_population

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = dsvcca.create_store(tmp_path_factory.mktemp("s") / "s.zarr", datapoints=600)
    for seed in range(28):
        store.write(activations(seed), layer="a", seed=seed)
    return store


def plan_of(store, shuffles=16):
    """A plan of 28 tiles, or of fewer for a part of the store."""
    plan = dsvcca.plan_comparisons(store, measures=["svcca", "svcca_shuffled"], shuffles=shuffles)
    return replace(plan, panel=4)


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return dsvcca.compare(plan_of(store), folder / "r.zarr", workspace=folder / "w").load()


@pytest.fixture(scope="module", params=[pytest.param("here", marks=pytest.mark.slow), "cluster"])
def client(request):
    if request.param == "here":
        yield None
        return
    with local_client(2, "1 GiB") as found:
        yield found


def commits(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("r.zarr/commits/*-*.json")}


def wait_for_commits(folder, count, run):
    while len(found := commits(folder)) < count:
        assert run.state == "running", run
        time.sleep(0.01)
    return found


def test_a_run_is_watched_stopped_and_gone_on_with(store, whole, client, tmp_path):
    run = dsvcca.start(plan_of(store), tmp_path / "r.zarr", client=client, workspace=tmp_path / "w")
    wait_for_commits(tmp_path, 3, run)
    seen = run.progress
    assert seen.stage == "correlate"
    assert 0 <= seen.done < seen.total == 28
    assert "running (correlate: " in repr(run)
    so_far = run.results()  # the run goes on meanwhile
    there = np.isfinite(so_far.svcca.values)
    assert there.any()
    assert (so_far.svcca.values[there] == whole.svcca.values[there]).all()
    run.stop()
    assert run.state == "stopped"
    with pytest.raises(DsvccaError, match="the run was stopped: start.plan, .* goes on from there"):
        run.wait()
    time.sleep(1)  # workers finish what they have begun
    before = commits(tmp_path)
    assert 3 <= len(before) < 28
    again = dsvcca.start(plan_of(store), tmp_path / "r.zarr", client=client, workspace=tmp_path / "w")
    assert same_bits(again.wait(timeout=100), whole)
    assert again.state == "finished"
    assert again.progress.total <= 28 - len(before)
    after = commits(tmp_path)
    assert {path: after[path] for path in before} == before  # nothing was done again


@pytest.mark.slow
def test_a_run_that_waits_for_a_worker_stops_at_once(store, tmp_path):
    with local_client(1, "1 GiB") as client:
        begun, watch, running = tmp_path / "begun", Watch(), {}
        waiting = threading.Thread(target=lambda: running.update(error=_sleeping(client, begun, watch)))
        waiting.start()
        while not begun.exists():
            time.sleep(0.01)
        asked = time.monotonic()
        watch.stop()
        waiting.join()
        assert time.monotonic() - asked < 20  # and not the minute that the task takes
    assert isinstance(running["error"], Stopped)


def _sleep(path):
    path.touch()
    time.sleep(60)


def _sleeping(client, path, watch):
    WATCH.set(watch)
    try:
        execute.run(_sleep, [path], client=client, title="sleep")
    except Stopped as error:
        return error


def test_what_goes_wrong_is_told_by_who_waits(tmp_path):
    store, _ = write_population(tmp_path / "s.zarr", seeds=2, steps=(0,))
    plan = dsvcca.plan_comparisons(store)
    (tmp_path / "r.zarr").write_text("something else")
    run = dsvcca.start(plan, tmp_path / "r.zarr")
    with pytest.raises(DsvccaError):
        run.wait()
    assert run.state == "failed"
    assert "failed: " in repr(run)
    with pytest.raises(DsvccaError, match="a str was given instead of a plan"):
        dsvcca.start("s.zarr", tmp_path / "r.zarr")
    with pytest.raises(DsvccaError, match=r"client='tcp://here' is a str"):
        dsvcca.start(plan, tmp_path / "r.zarr", client="tcp://here")


def test_waiting_ends_and_the_run_does_not(store, tmp_path):
    run = dsvcca.start(plan_of(store), tmp_path / "r.zarr", workspace=tmp_path / "w")
    with pytest.raises(DsvccaError, match="the run is not done after 0.01 s .*: wait longer, or stop"):
        run.wait(timeout=0.01)
    assert run.state == "running"
    run.stop()
    run.stop()  # which is over already


def test_two_runs_do_not_fill_the_same_results(store, tmp_path):
    run = dsvcca.start(plan_of(store), tmp_path / "r.zarr", workspace=tmp_path / "w")
    wait_for_commits(tmp_path, 1, run)
    with pytest.raises(DsvccaError, match="is being filled by another process"):
        dsvcca.compare(plan_of(store), tmp_path / "r.zarr", workspace=tmp_path / "w")
    run.stop()


def test_progress_says_how_long_it_takes_yet():
    assert Progress("reduce", 0, 10).left is None
    assert Progress("reduce", 4, 10, 1, 8.0).left == 12
    assert str(Progress("reduce", 4, 10, 1, 8.0)) == "reduce: 4 of 10, 1 failed, 8 s, 12 s left"
    assert str(Progress("reduce", 10, 10, 0, 20.0)) == "reduce: 10 of 10, 20 s"


def test_failures_are_counted():
    watch = Watch()
    token = WATCH.set(watch)
    try:
        with track("reduce", 3) as advance:
            advance()
            advance(failed=True)
    finally:
        WATCH.reset(token)
    assert (watch.progress.done, watch.progress.failed, watch.progress.total) == (2, 1, 3)


def test_the_log_says_how_far_a_long_run_is(monkeypatch, caplog):
    monkeypatch.setattr("dsvcca.progress.LOGGED", 0)
    caplog.set_level("INFO", "dsvcca")
    with track("reduce", 3) as advance:
        advance()
        advance(failed=True)
    assert [record.message.split(",")[0] for record in caplog.records] == ["reduce: 1 of 3", "reduce: 2 of 3"]


def test_a_cluster_is_connected_to_until_it_is_closed(tmp_path, monkeypatch):
    store, _ = write_population(tmp_path / "s.zarr", seeds=2, steps=(0,))
    plan = dsvcca.plan_comparisons(store)
    cluster = dsvcca.connect(workers=2)
    address = cluster.client.scheduler_info()["address"]
    with dsvcca.connect(address) as other:  # joined, and left
        found = dsvcca.compare(plan, tmp_path / "r.zarr", client=other.client, workspace=tmp_path / "w")
    assert same_bits(found, dsvcca.compare(plan, tmp_path / "here.zarr", workspace=tmp_path / "w0"))
    assert cluster.client.status == "running"
    assert "dsvcca cluster" in repr(cluster)
    cluster.close()
    monkeypatch.setattr("dsvcca.clusters.address.CONNECT", 1)
    with pytest.raises(DsvccaError, match="no Dask scheduler answers"):
        dsvcca.connect(address)
    with pytest.raises(DsvccaError, match="where is the work to be done"):
        dsvcca.connect()
    with pytest.raises(DsvccaError, match="workers and scheduler say each on their own"):
        dsvcca.connect(address, workers=2)


def test_clusters_may_be_closed_in_another_order_than_they_were_begun():
    log = logging.getLogger("distributed.client")
    before = (dask.config.get("distributed.worker.memory.pause"), log.level, list(log.filters))
    with local_client(1, "1 GiB") as client:
        inside = dask.config.get("distributed.worker.memory.pause")
        a, b = (dsvcca.connect(client.scheduler_info()["address"]) for _ in range(2))
        a.close()
        assert b.client.submit(sum, [1, 2]).result() == 3
        b.close()
    assert (dask.config.get("distributed.worker.memory.pause"), log.level, list(log.filters)) == before
    first, second = ExitStack(), ExitStack()
    first.enter_context(dask_settings(WORKER_MEMORY))
    second.enter_context(dask_settings({**WORKER_MEMORY, "distributed.scheduler.allowed-failures": 77}))
    first.close()
    assert dask.config.get("distributed.worker.memory.pause") is inside is False
    assert dask.config.get("distributed.scheduler.allowed-failures") == 77
    second.close()
    assert dask.config.get("distributed.worker.memory.pause") == before[0]
    assert dask.config.get("distributed.scheduler.allowed-failures") != 77


@pytest.mark.fault("processes", "Ctrl-C while a run in the background is waited for", "the run goes on")
@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to a thread here")
def test_who_waits_may_be_interrupted_and_the_run_goes_on(store, tmp_path):
    run = dsvcca.start(plan_of(store, shuffles=150), tmp_path / "r.zarr", workspace=tmp_path / "w")
    interrupt = threading.Timer(1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            run.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    assert run.state == "running"
    done = run.progress.done
    while run.state == "running" and run.progress.done == done:
        time.sleep(0.02)
    assert run.state == "running"
    run.stop()
    assert run.state == "stopped"
    with pytest.raises(DsvccaError, match="the run was stopped"):
        run.wait()


def test_a_run_into_the_current_folder_says_the_short_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = write_population(tmp_path / "s.zarr", seeds=1)[0]
    run = dsvcca.start(dsvcca.plan_comparisons(store), "r.zarr")
    run.wait(60)
    assert repr(run) == "<dsvcca.Run into 'r.zarr', finished>"
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert repr(run) == f"<dsvcca.Run into '{tmp_path / 'r.zarr'}', finished>"


def test_what_is_not_there_yet_is_said_so(store, tmp_path):
    run = dsvcca.start(plan_of(store), tmp_path / "r.zarr", workspace=tmp_path / "w")
    with pytest.raises(DsvccaError, match=r"nothing is there to open yet \(.*\): ask again later"):
        run.results()
    with pytest.raises(DsvccaError, match=r"a run into '.*r.zarr' goes on \(.*\): wait\(\) for it, or stop"):
        dsvcca.start(plan_of(store), tmp_path / "r.zarr", workspace=tmp_path / "w")
    run.stop()
    dsvcca.start(plan_of(store), tmp_path / "r.zarr", workspace=tmp_path / "w").stop()


def test_who_keeps_the_client_alone_has_a_cluster():
    client = dsvcca.connect(workers=1).client
    gc.collect()
    assert client.submit(sum, [1, 2]).result() == 3
    workplace._close_all()
    assert client.status == "closed"


@pytest.mark.fault("processes", "Ctrl-C while workers start, in a notebook", "none is left behind")
@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to a thread here")
@pytest.mark.parametrize("seconds", [0.3, 0.8])
def test_who_is_interrupted_as_workers_start_leaves_none(seconds):
    """In a notebook other threads let the signal through."""
    here = psutil.Process()
    before = {child.pid for child in here.children(recursive=True)}
    other = threading.Event()
    threading.Thread(target=other.wait, daemon=True).start()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            dsvcca.connect(workers=2)
            time.sleep(5)  # where it was quicker than that
    finally:
        signal.signal(signal.SIGINT, handler)
        other.set()
        workplace._close_all()
    for _ in range(100):
        left = [c for c in here.children(recursive=True) if c.pid not in before and "spawn_main" in str(c.cmdline())]
        if not left:
            break
        time.sleep(0.1)
    assert not left


def test_results_stay_where_the_run_began(store, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = dsvcca.start(plan_of(store.select(seed=[0, 1]), shuffles=1), "r.zarr", workspace="w")
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = run.wait()
    assert same_bits(run.results(), found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "r.zarr", "w"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_run_without_any_worker_stops_at_once(store, tmp_path):
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as nobody, Client(nobody) as client:
        run = dsvcca.start(plan_of(store), tmp_path / "r.zarr", client=client, workspace=tmp_path / "w")
        time.sleep(1)
        began = time.monotonic()
        run.stop()
        assert time.monotonic() - began < 20
        assert run.state == "stopped"


def test_many_may_look_at_results_at_a_time(store, tmp_path):
    run = dsvcca.start(plan_of(store), tmp_path / "r.zarr", workspace=tmp_path / "w")
    wait_for_commits(tmp_path, 1, run)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: [run.results() for _ in range(10)], range(3)))
    assert not any("complete" in str(one) for one in warnings.filters)
    run.stop()
    with pytest.warns(DsvccaWarning, match="is not complete"):
        dsvcca.open_results(tmp_path / "r.zarr")


def test_what_is_no_place_to_work_is_refused():
    for arguments in ({"workers": -1}, {"workers": "2"}, {"workers": 1.5}, {"scheduler": 2}, {"slurm": True}):
        with pytest.raises(DsvccaError, match="give how many|no address of a scheduler|name a file that says"):
            dsvcca.connect(**arguments)


def test_time_goes_on_where_nothing_is_done():
    watch = Watch()
    watch.begin("reduce", 5)
    watch.advance()
    time.sleep(0.05)
    late = watch.progress
    assert late.seconds >= 0.05
    assert late.left == 4 * late.seconds
    watch.end()
    ended = watch.progress
    time.sleep(0.01)
    assert watch.progress == ended


def test_an_address_that_is_empty_is_refused():
    with pytest.raises(DsvccaError, match="the address of the scheduler is empty"):
        dsvcca.connect("")


def test_a_cluster_is_joined_from_a_notebook(tmp_path):
    """Where an event loop runs in this thread already, as in every notebook."""
    with local_client(1, "1 GiB") as client:
        address = client.scheduler_info()["address"]

        async def joined():
            with dsvcca.connect(address) as cluster:
                return cluster.client.scheduler_info()["address"]

        assert asyncio.run(joined()) == address
