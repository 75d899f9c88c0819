"""Processes that die, freeze, join, leave, or are others than they should be: the same bits, or a clear error."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import dask
import numcodecs
import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster
from typer.testing import CliRunner

import dsvcca
from dsvcca import DsvccaError, DsvccaWarning, cli
from dsvcca.clusters import address, local
from dsvcca.clusters.local import local_client
from dsvcca.engine import cluster, execute
from tests.populations import activations, same_bits

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="signals and process groups of POSIX"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make namespaces")

ROWS, LAYERS = 4000, 24


def fault(case, outcome):
    return pytest.mark.fault("processes", case, outcome)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = dsvcca.create_store(tmp_path_factory.mktemp("s") / "s.zarr", datapoints=ROWS)
    for seed in range(LAYERS):
        store.write(activations(seed, n=ROWS, p=48, shared=30), layer="a", seed=seed)
    return store


def planned(store, panel=4):
    """A plan of 21 tiles, so that there is something between the first and the last."""
    return replace(dsvcca.plan_comparisons(store, variance=0.999), panel=panel)


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return dsvcca.compare(planned(store), folder / "r.zarr", workspace=folder / "w").load()


class Watched:
    """What a run has finished so far, read from storage."""

    def __init__(self, folder):
        self.out, self.workspace = folder / "r.zarr", folder / "w"

    def tiles(self):
        return {path: path.stat().st_mtime_ns for path in self.out.glob("commits/*-*.json")}

    def packs(self):
        return {path: path.stat().st_mtime_ns for path in self.workspace.glob("pack-*/zarr.json")}

    def reducing(self):
        return self.workspace.is_dir() and not self.packs()

    def committing_a_pack(self):
        with suppress(FileNotFoundError):  # what is being made may be gone while it is looked at
            return any((self.workspace / ".uncommitted").glob("*/*/c.*")) if self.workspace.is_dir() else False
        return False

    def correlating(self):
        return len(self.tiles()) >= 3

    def committing_a_tile(self):
        return len(list(self.out.glob("svcca/c.*"))) > 2 * len(self.tiles()) > 4


def run_and(plan, watched, client, moment, act):
    """Compare, and act once at a moment; return the results and what was finished then."""
    done = {}

    def waiting():
        end = time.monotonic() + 60
        while not getattr(watched, moment)() and time.monotonic() < end:
            time.sleep(0.001)
        done.update(watched.tiles() | watched.packs())
        act()

    with ThreadPoolExecutor(1) as other:
        acting = other.submit(waiting)
        found = dsvcca.compare(plan, watched.out, client=client, workspace=watched.workspace)
        acting.result()
    return found, done


def workers_of(client):
    return list(client.run(os.getpid).values())


MOMENTS = ["reducing", "committing_a_pack", "correlating", "committing_a_tile"]


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(
            moment,
            marks=[
                fault(
                    f"SIGKILL of a worker while {moment.replace('_', ' ')}",
                    "the same bits, nothing finished is done again",
                ),
                *([] if moment == "committing_a_tile" else [pytest.mark.slow]),
            ],
        )
        for moment in MOMENTS
    ],
)
def test_a_killed_worker_costs_only_its_task(store, whole, tmp_path, moment):
    watched = Watched(tmp_path)
    with local_client(2, "1.5 GiB") as client:
        victim = workers_of(client)[0]
        found, done = run_and(planned(store), watched, client, moment, lambda: os.kill(victim, signal.SIGKILL))
    assert same_bits(found, whole)
    assert done.items() <= (watched.tiles() | watched.packs()).items()


@pytest.mark.slow
@fault("SIGKILL of every worker at once", "others are started, the same bits")
def test_when_every_worker_is_killed_others_go_on(store, whole, tmp_path):
    watched = Watched(tmp_path)
    with local_client(2, "1.5 GiB") as client:
        pids = workers_of(client)
        found, done = run_and(
            planned(store), watched, client, "correlating", lambda: [os.kill(p, signal.SIGKILL) for p in pids]
        )
    assert same_bits(found, whole)
    assert done.items() <= (watched.tiles() | watched.packs()).items()


@fault("a worker that freezes (SIGSTOP), and thaws when all is done", "its tasks go to others, the same bits")
@pytest.mark.slow
def test_what_a_frozen_worker_had_is_done_by_others(store, whole, tmp_path):
    watched = Watched(tmp_path)
    with dask.config.set({"distributed.scheduler.worker-ttl": "3s"}), local_client(2, "1.5 GiB") as client:
        victim = workers_of(client)[0]
        try:
            found, _ = run_and(planned(store), watched, client, "correlating", lambda: os.kill(victim, signal.SIGSTOP))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGCONT)
        time.sleep(1)  # what it was at is finished by it as well now
        assert same_bits(found, whole)
        assert same_bits(dsvcca.open_results(watched.out), whole)


@pytest.mark.slow
@fault("workers that join and leave while a run goes on", "the same bits")
def test_workers_may_join_and_leave(store, whole, tmp_path):
    watched = Watched(tmp_path)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit="1.5 GiB", dashboard_address="127.0.0.1:0") as own,
        Client(own, set_as_default=False) as client,
    ):

        def come_and_go():
            own.scale(3)
            time.sleep(1)
            own.scale(1)

        found, _ = run_and(planned(store), watched, client, "reducing", come_and_go)
    assert same_bits(found, whole)


# Schedulers and drivers


class Processes:
    """A scheduler and workers as a person starts them, each a process of its own."""

    def __init__(self, folder, host="127.0.0.1"):
        self.folder, self.host, self.started = folder, host, []
        self.file = folder / "scheduler.json"
        self.environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "4s"}

    def start(self, *line, before=(), **environment):
        log = (self.folder / f"log{len(self.started)}").open("w")
        process = subprocess.Popen(
            [*before, sys.executable, "-m", "dask", *map(str, line)],
            stdout=log,
            stderr=log,
            env=self.environment | environment,
            cwd=self.folder,
            start_new_session=True,
        )
        log.close()
        self.started.append(process)
        return process

    def scheduler(self):
        process = self.start(
            "scheduler",
            "--host",
            self.host,
            "--port",
            0,
            "--dashboard-address",
            "127.0.0.1:0",
            "--scheduler-file",
            self.file,
        )
        for _ in range(300):
            if self.file.exists():
                return process
            time.sleep(0.1)
        raise AssertionError("the scheduler did not start")

    def worker(self, *options, before=(), **environment):
        line = ("worker", "--scheduler-file", self.file, "--nthreads", 1, "--memory-limit", "1.5GiB", "--no-dashboard")
        return self.start(*line, "--local-directory", self.folder / "scratch", *options, before=before, **environment)

    def client(self):
        return Client(scheduler_file=str(self.file), set_as_default=False, timeout=30)

    def stop(self):
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def processes(tmp_path):
    found = Processes(tmp_path)
    yield found
    found.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@fault("SIGKILL of the scheduler", "a clear error; with another one the same bits, nothing finished is done again")
def test_a_lost_scheduler_is_said_so_and_costs_nothing_finished(store, whole, tmp_path, processes):
    watched = Watched(tmp_path)
    scheduler = processes.scheduler()
    processes.worker()
    with processes.client() as client, pytest.raises(DsvccaError, match=r"(scheduler|run the same line again)"):
        run_and(planned(store), watched, client, "correlating", lambda: os.kill(scheduler.pid, signal.SIGKILL))
    done = watched.tiles() | watched.packs()
    assert len(watched.tiles()) >= 3
    time.sleep(0.5)
    done = watched.tiles() | watched.packs()
    assert same_bits(dsvcca.compare(planned(store), watched.out, workspace=watched.workspace), whole)
    assert done.items() <= (watched.tiles() | watched.packs()).items()


@fault("SIGKILL of the scheduler while workers are asked what they have", "a clear error")
def test_a_scheduler_that_is_lost_anywhere_is_told(processes):
    scheduler = processes.scheduler()
    processes.worker()
    with processes.client() as client:
        client.wait_for_workers(1)
        killing = threading.Timer(1, os.kill, (scheduler.pid, signal.SIGKILL))
        killing.start()
        lost = "the connection to the Dask scheduler was lost: what was finished is kept, connect to a cluster and run"
        with pytest.raises(DsvccaError, match=lost), cluster.connected():
            client.run(time.sleep, 30)


@fault("a scheduler that freezes (SIGSTOP) and does not wake", "given up with a clear error; nothing finished is lost")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_given_up(store, whole, tmp_path, processes, monkeypatch):
    monkeypatch.setattr(execute, "ALONE", 1)
    monkeypatch.setattr(cluster, "PATIENCE", 3)
    watched = Watched(tmp_path)
    scheduler = processes.scheduler()
    processes.worker()
    client = processes.client()
    with pytest.raises(DsvccaError, match="the connection to the Dask scheduler was lost"):
        run_and(planned(store), watched, client, "correlating", lambda: os.kill(scheduler.pid, signal.SIGSTOP))
    client.close(timeout=1)
    assert same_bits(dsvcca.compare(planned(store), watched.out, workspace=watched.workspace), whole)


@fault("something else, or nothing that answers, at the address of a scheduler", "an error in one sentence, in seconds")
@pytest.mark.parametrize("kind", ["silent", "garbage", "nobody"])
def test_an_address_without_a_scheduler_is_told(store, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(address, "CONNECT", 2)
    with socket.socket() as there:
        there.bind(("127.0.0.1", 0))
        if kind != "nobody":
            there.listen(5)
        if kind == "garbage":
            answer = lambda: there.accept()[0].sendall(b"HTTP/1.1 400 Bad\r\n\r\n" * 9)  # noqa: E731
            threading.Thread(target=answer, daemon=True).start()
        line = ["plan", store.path, "--scheduler", f"tcp://127.0.0.1:{there.getsockname()[1]}"]
        said = CliRunner().invoke(cli.app, line)
    assert said.exit_code == 1
    assert "no Dask scheduler answers at 'tcp://127.0.0.1:" in said.output
    assert "Traceback" not in said.output


@fault("SIGKILL of the driver of a cluster", "what workers had is finished; the next driver does the rest, same bits")
def test_a_killed_driver_leaves_what_workers_finished(store, whole, tmp_path, processes):
    watched = Watched(tmp_path)
    processes.scheduler()
    processes.worker()
    code = f"""
        from dataclasses import replace
        from distributed import Client
        import dsvcca
        plan = replace(dsvcca.plan_comparisons(dsvcca.open_store({store.path!r}), variance=0.999), panel=4)
        client = Client(scheduler_file={str(processes.file)!r}, set_as_default=False)
        dsvcca.compare(plan, {str(watched.out)!r}, client=client, workspace={str(watched.workspace)!r})
    """
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 60
    while not watched.correlating() and time.monotonic() < end:
        time.sleep(0.005)
    driver.kill()
    driver.wait()
    done = watched.tiles() | watched.packs()
    assert 3 <= len(watched.tiles()) < 21
    with processes.client() as client:
        assert same_bits(dsvcca.compare(planned(store), watched.out, client=client, workspace=watched.workspace), whole)
    assert done.items() <= (watched.tiles() | watched.packs()).items()


# Tasks that kill


class Deadly(numcodecs.abc.Codec):
    """Ends its process when it reads."""

    codec_id = "deadly"

    def encode(self, buf):
        return buf

    def decode(self, buf, out=None):
        os._exit(9)


class Hungry(Deadly):
    """Takes all memory there is when it reads."""

    codec_id = "hungry"

    def decode(self, buf, out=None):
        held = []
        while True:
            held.append(np.ones(8 << 20))
            time.sleep(0.05)


PRELOAD = """
import numcodecs, sys
sys.path.insert(0, {root!r})
from tests.test_faults_processes import Deadly, Hungry
numcodecs.register_codec(Deadly)
numcodecs.register_codec(Hungry)
"""


@pytest.fixture
def deadly():
    """Codecs that kill who reads with them, known here and to the workers that are started."""
    for codec in (Deadly, Hungry):
        numcodecs.register_codec(codec)
    preload = [PRELOAD.format(root=str(Path(__file__).parent.parent))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(local.ON_ONE_MACHINE, "distributed.worker.preload", preload)
        yield
    for codec in (Deadly, Hungry):
        numcodecs.registry.codec_registry.pop(codec.codec_id)


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "default::dsvcca.DsvccaWarning")
@pytest.mark.parametrize(
    "codec",
    [
        pytest.param(
            Deadly,
            marks=[
                fault("a layer that kills every worker that reads it", "it fails alone, the others have their bits"),
                pytest.mark.slow,
            ],
        ),
        pytest.param(
            Hungry,
            marks=[
                fault("a layer that takes more memory than a worker has", "it fails alone, the others have their bits"),
                pytest.mark.slow,
            ],
        ),
    ],
)
def test_a_representation_that_kills_its_workers_fails_alone(tmp_path, deadly, codec):
    group = zarr.open_group(tmp_path / "g.zarr", mode="w", zarr_format=2)
    for seed in range(5):
        group.create_array(
            f"seed={seed}/a", data=activations(seed), chunks=(600, 24), compressors=codec() if seed == 2 else None
        )
    store = dsvcca.open_store(tmp_path / "g.zarr")
    good = store.select(seed=[0, 1, 3, 4])
    alone = dsvcca.compare(dsvcca.plan_comparisons(good), tmp_path / "good.zarr", workspace=tmp_path / "w0")
    plan, told = dsvcca.plan_comparisons(store), "seed=2, layer='a': .* was on a worker that died, 2 times over"
    with local_client(1, "1 GiB") as client, pytest.warns(DsvccaWarning, match=told):
        found = dsvcca.compare(plan, tmp_path / "r.zarr", client=client, workspace=tmp_path / "w")
    seeds = {"seed": [0, 1, 3, 4]}
    assert same_bits(dsvcca.select(found, x=seeds, y=seeds), alone)
    assert np.isnan(dsvcca.select(found, x={"seed": 2}).svcca.values).all()


# Workers that are others than they should be


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    """Folders that make Python find another dsvcca, or another NumPy as far as it says."""
    folder = tmp_path_factory.mktemp("another")
    shutil.copytree(Path(dsvcca.__file__).parent, folder / "package" / "dsvcca")
    with (folder / "package" / "dsvcca" / "errors.py").open("a") as file:
        file.write("\n# another version\n")
    about = folder / "numpy" / "numpy-1.0.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0.0\n")
    return folder


OTHERS = [
    pytest.param(
        "package",
        r"has dsvcca .*code .*, the driver .*code",
        marks=fault("a worker with another dsvcca", "found before the first task"),
    ),
    pytest.param(
        "numpy",
        "has numpy 1.0.0, the driver",
        marks=[fault("a worker with another NumPy", "found before the first task"), pytest.mark.slow],
    ),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("which", "message"), OTHERS)
def test_a_worker_of_another_version_is_found_before_the_first_task(
    store, tmp_path, processes, another, which, message
):
    processes.scheduler()
    processes.worker(PYTHONPATH=str(another / which))
    with processes.client() as client, pytest.raises(DsvccaError, match=f"worker tcp://.* {message}"):
        dsvcca.compare(planned(store), tmp_path / "r.zarr", client=client, workspace=tmp_path / "w")
    assert not list((tmp_path / "w").glob("pack-*"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@fault("a worker of another version that joins late", "it is given nothing more, the others finish, the same bits")
def test_a_worker_of_another_version_that_comes_late_is_passed_over(processes, another, tmp_path, caplog):
    processes.scheduler()
    processes.worker()
    with processes.client() as client, caplog.at_level("WARNING", logger="dsvcca"):
        client.wait_for_workers(1, timeout=30)

        def come():
            own = Path(dsvcca.__file__).parent.parent
            processes.worker(PYTHONPATH=f"{another / 'numpy'}{os.pathsep}{own}")
            client.wait_for_workers(2, timeout=60)
            came.touch()

        came = tmp_path / "came"
        with ThreadPoolExecutor(1) as other, cluster.taking_part(client, {}, {}):
            coming = other.submit(come)
            tasks = [(i, str(came)) for i in range(12)]
            receipts, failures = execute.run(wait_for_a_file, tasks, client=client, title="waiting")
            coming.result()
        assert sorted(receipts) == list(range(12))
        assert not failures
        assert "has numpy 1.0.0, the driver" in caplog.text


def wait_for_a_file(task):
    """The first has to wait; others take long enough that there are some for who comes."""
    number, path = task
    while not Path(path).exists():
        time.sleep(0.05)
    time.sleep(0.2)
    return number


@needs_root
@pytest.mark.filterwarnings("ignore")
@fault("a worker that does not see the store", "found before the first task")
def test_a_worker_without_the_store_is_found_before_the_first_task(store, tmp_path, processes):
    processes.scheduler()
    hidden = f'mount -t tmpfs none {Path(store.path)} && exec "$@"'
    processes.worker(before=("unshare", "-m", "sh", "-c", hidden, "sh"))
    with (
        processes.client() as client,
        pytest.raises(DsvccaError, match=r"worker tcp://.* does not see the store \('.*mount it"),
    ):
        dsvcca.compare(planned(store), tmp_path / "r.zarr", client=client, workspace=tmp_path / "w")
    assert not list((tmp_path / "w").glob("pack-*"))


@needs_root
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("ip") is None, reason="no ip command (iproute2)")
@fault("a worker cut off from the network, that comes back", "others do its tasks, the same bits; it works again")
def test_a_worker_that_is_cut_off_and_comes_back(store, whole, tmp_path):
    watched, name = Watched(tmp_path), f"dsvcca{os.getpid()}"
    host, inside = f"d{os.getpid()}"[:12] + "a", f"d{os.getpid()}"[:12] + "b"
    steps = [
        f"ip netns add {name}",
        f"ip link add {host} type veth peer name {inside}",
        f"ip link set {inside} netns {name}",
        f"ip addr add 10.213.7.1/24 dev {host}",
        f"ip link set {host} up",
        f"ip netns exec {name} ip addr add 10.213.7.2/24 dev {inside}",
        f"ip netns exec {name} ip link set {inside} up",
        f"ip netns exec {name} ip link set lo up",
    ]
    processes = Processes(tmp_path, host="10.213.7.1")
    try:
        for step in steps:
            subprocess.run(step.split(), check=True)
        processes.scheduler()
        processes.worker("--no-nanny", before=("ip", "netns", "exec", name))
        processes.worker("--no-nanny")
        with processes.client() as client:
            client.wait_for_workers(2, timeout=60)
            cut = ["ip", "link", "set", host, "down"]
            found, _ = run_and(planned(store), watched, client, "correlating", lambda: subprocess.run(cut, check=True))
            assert same_bits(found, whole)
            subprocess.run(["ip", "link", "set", host, "up"], check=True)
            again = Watched(tmp_path / "again")
            again.out.parent.mkdir()
            found = dsvcca.compare(planned(store), again.out, client=client, workspace=again.workspace)
            assert same_bits(found, whole)
            assert same_bits(dsvcca.open_results(watched.out), whole)
    finally:
        processes.stop()
        subprocess.run(["ip", "netns", "del", name], check=False)
        subprocess.run(["ip", "link", "del", host], check=False, stderr=subprocess.DEVNULL)
