"""Nothing on storage is run, nothing leaves its place, clusters are encrypted when asked to be, secrets stay secret."""

import json
import logging
import os
import pickle
import re
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster
from distributed.security import Security
from typer.testing import CliRunner

import dsvcca
from dsvcca import DsvccaError, cli
from dsvcca.clusters.local import local_client
from dsvcca.engine import execute
from dsvcca.storage import folders
from tests.populations import activations, same_bits, write_population

SECRET = "opensesame-1234567890"


def fault(case, outcome):
    return pytest.mark.fault("security", case, outcome)


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@fault("arrays of others whose codec unpickles what it reads", "refused before a chunk is read")
@pytest.mark.parametrize("dtype", ["<f4", "|O"])
@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_nothing_is_unpickled_from_a_store(tmp_path, dtype, place):
    folder = tmp_path / "g.zarr" / "a"
    folder.mkdir(parents=True)
    (tmp_path / "g.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    codec = {"id": "pickle", "protocol": 5}
    about = {"zarr_format": 2, "shape": [4, 2], "chunks": [4, 2], "dtype": dtype, "order": "C", "fill_value": 0}
    about |= {
        "filters": [codec] if place == "filters" else None,
        "compressor": codec if place == "compressor" else None,
    }
    (folder / ".zarray").write_text(json.dumps(about))
    evil = tmp_path / "evil"
    (folder / "0.0").write_bytes(pickle.dumps(Touch(evil)))
    with pytest.raises(DsvccaError):
        dsvcca.open_store(tmp_path / "g.zarr").read(layer="a")
    assert call("verify", tmp_path / "g.zarr").exit_code == 1
    assert not evil.exists()


@fault("a group that names arrays outside of it (consolidated metadata)", "they are not read")
@pytest.mark.parametrize("name", ["../outside", "inside/../../outside", "/outside"])
def test_what_a_group_lists_cannot_lead_out_of_it(tmp_path, name):
    zarr.create_array(tmp_path / "outside", data=activations(0))
    group = zarr.open_group(tmp_path / "g.zarr", mode="w")
    group.create_array("inside", data=activations(1))
    metadata = json.loads((tmp_path / "outside" / "zarr.json").read_text())
    listed = {"kind": "inline", "must_understand": False, "metadata": {name: metadata}}
    record = tmp_path / "g.zarr" / "zarr.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"consolidated_metadata": listed}))
    store = dsvcca.open_store(tmp_path / "g.zarr")
    assert [r.name for r in store.representations] == ["inside"]
    assert np.array_equal(store.read(layer="inside"), activations(1))


@fault("a URL with a password in it", "refused, without repeating it")
def test_a_url_with_a_password_is_refused_and_not_repeated():
    for use in (dsvcca.open_store, dsvcca.open_results, lambda url: dsvcca.create_store(url, datapoints=5)):
        with pytest.raises(DsvccaError, match="leave them out") as found:
            use(f"s3://key:{SECRET}@bucket/store.zarr")
        assert SECRET not in str(found.value)


def failing(task):
    raise ValueError(f"task {task} cannot be done")


@fault("a task that fails while the driver knows a secret", "it is in no log, driver's or worker's")
def test_secrets_are_in_no_log(caplog):
    caplog.set_level(logging.DEBUG)
    before = dict(fsspec.config.conf)
    try:
        fsspec.config.conf["s3"] = {"secret": SECRET}
        options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
        with (
            LocalCluster(**options) as started,
            Client(started, set_as_default=False) as client,
        ):  # as anybody starts one
            _, failures = execute.run(failing, [1, 2], client=client, title="failing")
            logs = str(client.get_worker_logs()) + str(client.get_scheduler_logs())
    finally:
        fsspec.config.conf.clear()
        fsspec.config.conf.update(before)
    assert len(failures) == 2
    assert "cannot be done" in logs
    assert SECRET not in logs + caplog.text + str(failures)
    assert "s3" not in folders.known_options()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Certificates of two authorities, as files: (ca, certificate, key) of each."""
    found = []
    for name in ("one", "other"):
        folder = tmp_path_factory.mktemp(name)
        made = Security.temporary()
        for what in ("tls_ca_file", "tls_client_cert", "tls_client_key"):
            (folder / what).write_text(getattr(made, what))
        found.append(tuple(folder / what for what in ("tls_ca_file", "tls_client_cert", "tls_client_key")))
    return found


def security_of(files):
    ca, certificate, key = map(str, files)
    both = {
        f"tls_{who}_{what}": path
        for who in ("client", "worker", "scheduler")
        for what, path in (("cert", certificate), ("key", key))
    }
    return Security(tls_ca_file=ca, require_encryption=True, **both)


@pytest.fixture(scope="module")
def encrypted(certificates):
    """A cluster that speaks TLS alone."""
    options = {"n_workers": 1, "threads_per_worker": 1, "memory_limit": "1 GiB", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(protocol="tls", security=security_of(certificates[0]), **options) as found:
        yield found


@pytest.fixture(scope="module")
def unencrypted():
    """The address of a cluster that knows no TLS."""
    options = {"n_workers": 1, "threads_per_worker": 1, "memory_limit": "1 GiB", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**options) as found:
        yield found.scheduler_address


def given(files):
    return [
        part
        for option, path in zip(("--tls-ca", "--tls-cert", "--tls-key"), files, strict=True)
        for part in (option, path)
    ]


@fault("TLS from the command line and from Python", "the same bits as without")
def test_an_encrypted_cluster_gives_the_same_bits(encrypted, certificates, tmp_path):
    store, _ = write_population(tmp_path / "s.zarr", seeds=2, steps=(0,))
    assert encrypted.scheduler_address.startswith("tls://")
    plain = dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "plain.zarr", workspace=tmp_path / "w0")
    said = call(
        *("compare", store.path, tmp_path / "cli.zarr", "--scheduler", encrypted.scheduler_address),
        *("--workspace", tmp_path / "w1", *given(certificates[0])),
    )
    assert said.exit_code == 0, said.output
    assert same_bits(dsvcca.open_results(tmp_path / "cli.zarr"), plain)
    with Client(encrypted.scheduler_address, security=security_of(certificates[0]), set_as_default=False) as client:
        plan = dsvcca.plan_comparisons(store)
        assert same_bits(dsvcca.compare(plan, tmp_path / "py.zarr", client=client, workspace=tmp_path / "w2"), plain)


@fault("TLS asked for and missing, or of another authority", "refused in one sentence, nothing is sent")
@pytest.mark.parametrize(
    ("which", "message"),
    [
        (None, "needs --tls-ca, --tls-cert, --tls-key"),
        (1, "no Dask scheduler answers at 'tls://"),
        ("plain", "nothing else will do"),
        ("plain all through", "nothing else will do"),
        ("alone", "no scheduler to show them to"),
        ("no file", "cannot be used .*No such file"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tls_that_was_asked_for_is_never_left_out(request, encrypted, certificates, tmp_path, which, message):
    store, _ = write_population(tmp_path / "s.zarr", seeds=1, steps=(0,))
    line = ["compare", store.path, tmp_path / "r.zarr"]
    if which == "plain all through":
        address = request.getfixturevalue("unencrypted")
        line += ["--scheduler", address]
    elif which != "alone":
        address = encrypted.scheduler_address
        line += ["--scheduler", address.replace("tls://", "tcp://") if which == "plain" else address]
    if which == "no file":
        line += given([tmp_path / "gone"] * 3)
    elif which is not None:
        line += given(certificates[1 if which == 1 else 0])
    said = call(*line)
    assert said.exit_code == 1
    assert "Traceback" not in said.output
    assert re.search(message, said.output), said.output
    assert not (tmp_path / "r.zarr").exists()


@fault("local clusters of the command line and the demonstration", "nothing listens but on this machine's loopback")
@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="no list of sockets here")
def test_local_clusters_listen_on_loopback_alone():
    before = listening()
    with local_client(1, "1 GiB"):
        found = listening() - before
    assert found
    assert {address for address, _ in found} == {"0100007F"}


def listening():
    """Return (address, port) of every TCP socket that listens, as the kernel spells them."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {tuple(words[1].split(":")) for words in lines if words[3] == "0A"}
