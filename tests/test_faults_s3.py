"""An object store that refuses, stalls, cuts short, spoils, goes away: the same bits, or a sentence; never a hang."""

import contextlib
import logging
import pickle
import re
import time
import traceback
import warnings
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import boto3
import botocore.retryhandler
import dask
import fsspec
import numpy as np
import pytest
import s3fs
from distributed import Client, LocalCluster

import dsvcca
from dsvcca import DsvccaError, DsvccaWarning
from dsvcca.clusters.local import local_client
from dsvcca.storage import folders
from dsvcca.storage.staging import STAGING
from dsvcca.workspace import contents
from tests.populations import activations, same_bits
from tests.s3_proxy import Proxy
from tests.s3_server import s3_server

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

BUCKET = "population"
SECRET = "Zx9-never-to-be-seen-7Qw"
WRITES = ("PUT", "COPY", "REMOVE")
TO_DO = re.compile(
    r"run the same line again|check |restore it|choose |write it again|compare\(plan, out\)|start |open it"
)


def fault(case, outcome):
    return pytest.mark.fault("object stores", case, outcome)


def config(**changes):
    """Return how clients behave: three more attempts at every request, soon given up."""
    return {"connect_timeout": 2, "read_timeout": 5, "retries": {"max_attempts": 3}, **changes}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Start a server that speaks S3; return where it is."""
    with s3_server(tmp_path_factory.mktemp("moto")) as address:
        yield address


@pytest.fixture(scope="module")
def behind(server):
    """Put a proxy before the server, and make it what this process reaches as s3://."""
    proxy = Proxy(server)
    options = {"key": "key", "secret": SECRET, "endpoint_url": proxy.url, "config_kwargs": config()}
    before = dict(fsspec.config.conf)
    fsspec.config.conf["s3"] = options
    try:
        s3fs.S3FileSystem(**options).mkdir(BUCKET)
        yield proxy
    finally:
        proxy.reset()
        proxy.down()
        fsspec.config.conf.clear()
        fsspec.config.conf.update(before)


@pytest.fixture
def proxy(behind, monkeypatch, caplog):
    """Return the proxy without a fault, waits between attempts being short; no log record holds the secret."""
    monkeypatch.setattr(botocore.retryhandler, "random", SimpleNamespace(random=lambda: 0.02))
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)
    options = fsspec.config.conf["s3"]
    caplog.set_level(logging.DEBUG, "dsvcca")
    behind.reset()
    yield behind
    behind.reset()
    fsspec.config.conf["s3"] = options
    assert SECRET not in caplog.text + repr([one.__dict__ for one in caplog.get_records("call")])


@pytest.fixture
def place(proxy, request):
    """Return a URL that no other test has."""
    return f"s3://{BUCKET}/" + re.sub(r"\W+", "-", request.node.name)


@pytest.fixture
def hasty(proxy, monkeypatch):
    """Let s3fs try nothing again by itself; below it, botocore still does."""
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """Return a population in a folder, its plan, its bases and its results."""
    folder = tmp_path_factory.mktemp("truth")
    store = dsvcca.create_store(folder / "s.zarr", datapoints=600)
    write(store)
    plan = dsvcca.plan_comparisons(store, measures="svcca")
    bases = folder / "w"
    return SimpleNamespace(plan=plan, bases=bases, results=dsvcca.compare(plan, folder / "r.zarr", workspace=bases))


@pytest.fixture(scope="module")
def there(behind):
    """Return the URL of the same population."""
    behind.reset()
    url = f"s3://{BUCKET}/there.zarr"
    write(dsvcca.create_store(url, datapoints=600))
    return url


@pytest.fixture(scope="module")
def bases_there(behind, truth, tmp_path_factory):
    """Return the URL of a workspace that holds all bases."""
    behind.reset()
    url = f"s3://{BUCKET}/bases"
    dsvcca.compare(truth.plan, tmp_path_factory.mktemp("b") / "r.zarr", workspace=url)
    return url


@pytest.fixture(scope="module")
def results_there(behind, truth):
    """Return the URL of complete results."""
    behind.reset()
    url = f"s3://{BUCKET}/results.zarr"
    dsvcca.compare(truth.plan, url, workspace=truth.bases)
    return url


def write(store, seeds=3):
    for seed in range(seeds):
        store.write(activations(seed), layer="a", seed=seed, if_exists="skip")


def name(url):
    """Return what every path and every list of names below a URL contains."""
    return url.removeprefix(f"s3://{BUCKET}/")


def planned(url):
    return dsvcca.plan_comparisons(dsvcca.open_store(url), measures="svcca")


def clients(**changes):
    """Let clients of this process behave in another way."""
    fsspec.config.conf["s3"] = {**fsspec.config.conf["s3"], "config_kwargs": config(**changes)}


def client(server):
    """Return a client that asks the server itself."""
    return boto3.client(
        "s3", endpoint_url=server, aws_access_key_id="key", aws_secret_access_key="other", region_name="us-east-1"
    )


def objects(server, url):
    """Return what tells versions of all objects below a URL apart, by their names."""
    pages = client(server).get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=name(url))
    return {one["Key"]: (one["ETag"], one["LastModified"]) for page in pages for one in page.get("Contents", [])}


def said(error):
    """Return everything that an error tells, and those behind it."""
    text = "".join(traceback.format_exception(error))
    while error is not None:
        text += f"{error} {error!r} {error.args}"
        error = error.__cause__ or error.__context__
    return text


@contextmanager
def refused(match, within=20):
    """Expect one sentence that says what to do, soon, and without the secret."""
    start = time.monotonic()
    with pytest.raises(DsvccaError, match=match) as caught:
        yield
    assert time.monotonic() - start < within
    assert TO_DO.search(str(caught.value)), f"it does not say what to do: {caught.value}"
    assert SECRET not in said(caught.value)


def alone_or_refused(match, run):
    """Expect that one representation fails, alone or with everything, and is named in a sentence."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            found = run()
        except DsvccaError as error:
            told = str(error)
        else:
            told = "".join(str(one.message) for one in seen if isinstance(one.message, DsvccaWarning))
            assert len(found.attrs["failed"]) == 1
            assert np.isnan(found.svcca.values).sum() == 5
    assert re.search(match, told)
    assert SECRET not in told


def every_door(place, there, truth, tmp_path):
    """Return what begins with a URL: stores, results, workspaces."""
    return [
        lambda: dsvcca.open_store(there),
        lambda: dsvcca.create_store(f"{place}/s.zarr", datapoints=600),
        lambda: dsvcca.open_results(f"{place}/r.zarr"),
        lambda: dsvcca.compare(truth.plan, f"{place}/r.zarr", workspace=truth.bases),
        lambda: dsvcca.compare(truth.plan, tmp_path / "r.zarr", workspace=f"{place}/w"),
    ]


def packs(server, url):
    """Return the objects of packs that have their record, by pack."""
    every = objects(server, url)
    found = {name.split("/pack-")[1].split("/")[0] for name in every if re.search(r"/pack-\w+/zarr.json$", name)}
    return {name: {key: one for key, one in every.items() if f"/pack-{name}/" in key} for name in found}


def half_visible(url):
    """Return what is wrong with what a workspace shows; leftovers without a record are no part of it."""
    root = folders.at(url, "workspace")
    return [one for one in contents.findings(root) if "was never committed" not in one[2]]


def not_complete(url):
    """Expect that results do not pass for complete."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            dsvcca.open_results(url)
        except DsvccaError:
            return
    assert any("not complete" in str(one.message) for one in seen)


def some(proxy, kinds, part):
    """Let two requests be answered 500 and one 503."""
    return [proxy.rule("InternalError", kinds, part, times=2), proxy.rule("SlowDown", kinds, part, times=1)]


@fault("a few 500 and 503 while a store is written", "absorbed: the same bits")
def test_a_few_refusals_while_a_store_is_written_are_absorbed(proxy, place):
    rules = [some(proxy, kind, name(place)) for kind in ("PUT", "COPY", "LIST", "HEAD", "GET", "REMOVE")]
    store = dsvcca.create_store(place, datapoints=600)
    write(store, 2)
    assert [[rule.hits for rule in pair] for pair in rules] == [[2, 1]] * len(rules)
    for seed in range(2):
        assert store.read(seed=seed).tobytes() == activations(seed).tobytes()
    assert store.verify().empty


@fault("a few 500 and 503 while activations are read", "absorbed: the same bits")
def test_a_few_refusals_while_activations_are_read_are_absorbed(proxy, there, truth, tmp_path):
    rules = some(proxy, "GET", "/activations/c.0.0") + some(proxy, "GET", "layer=a/zarr.json")
    found = dsvcca.compare(planned(there), tmp_path / "r.zarr", workspace=tmp_path / "w")
    assert [rule.hits for rule in rules] == [2, 1, 2, 1]
    assert same_bits(found, truth.results)


@pytest.mark.slow
@fault("a few 500 and 503 while packs are committed", "absorbed: the same bits")
def test_a_few_refusals_while_packs_are_committed_are_absorbed(proxy, place, truth, tmp_path):
    rules = [some(proxy, kind, name(place)) for kind in ("PUT", "COPY", "LIST", "HEAD", "GET", "REMOVE")]
    found = dsvcca.compare(truth.plan, tmp_path / "r.zarr", workspace=place)
    assert [[rule.hits for rule in pair] for pair in rules] == [[2, 1]] * len(rules)
    assert same_bits(found, truth.results)
    assert not half_visible(place)


@fault("a few 500 and 503 while tiles and markers are written", "absorbed: the same bits")
def test_a_few_refusals_while_tiles_and_markers_are_written_are_absorbed(proxy, place, truth):
    parts = ["svcca/c.0.0", "commits/0-0.json", "commits/bases.json", "x_seed/c.0", f"{name(place)}/zarr.json"]
    rules = [some(proxy, "PUT", part) for part in parts] + [some(proxy, "GET", "svcca/c.0.0")]
    found = dsvcca.compare(truth.plan, place, workspace=truth.bases)
    assert [[rule.hits for rule in pair] for pair in rules] == [[2, 1]] * len(rules)
    assert same_bits(found, truth.results)


@pytest.mark.slow
@fault("every seventh request is refused, or its connection dropped, all the time", "absorbed: the same bits")
def test_a_store_that_refuses_every_seventh_request_changes_nothing(proxy, place, truth, tmp_path):
    refusing = proxy.rule("SlowDown", every=7)
    dropping = proxy.rule("drop", ("GET", "HEAD", "LIST", "PUT", "COPY"), every=11)
    write(dsvcca.create_store(f"{place}/s.zarr", datapoints=600))
    found = dsvcca.compare(planned(f"{place}/s.zarr"), tmp_path / "r.zarr")
    assert refusing.hits > 30
    assert dropping.hits > 15
    assert same_bits(found, truth.results)


def each_stops(proxy, match, faults, run, check):
    """Expect that each of several faults stops a run, one after the other, and that what is left then is checked."""
    for kinds, part, skip in faults:
        proxy.reset()
        rule = proxy.rule("InternalError", kinds, part, skip=skip)
        with refused(match):
            run()
        assert rule.hits, (kinds, part)
        proxy.reset()
        check()


@pytest.mark.slow
@fault("500s that go on while a store is written, at each stage", "an error each time; nothing half-written is visible")
def test_refusals_that_go_on_while_a_store_is_written(proxy, place):
    store = dsvcca.create_store(place, datapoints=600)
    store.write(activations(0), layer="a", seed=0)
    faults = [
        ("PUT", "activations/c.0.0", 0),
        ("GET", "activations/c.0.0", 0),
        ("LIST", "activations/", 2),
        ("PUT", f"{STAGING}/", 2),
        ("COPY", "seed=1,layer=a", 0),
        ("COPY", "seed=1,layer=a", 1),
        ("COPY", "seed=1,layer=a", 2),
    ]

    def check():
        assert dsvcca.open_store(place).index.seed.tolist() == [0]

    each_stops(proxy, name(place), faults, lambda: store.write(activations(1), layer="a", seed=1), check)
    store.write(activations(1), layer="a", seed=1)
    assert dsvcca.open_store(place).index.seed.tolist() == [0, 1]
    for seed in range(2):
        assert store.read(seed=seed).tobytes() == activations(seed).tobytes()


@pytest.mark.slow
@fault("500s that go on while packs are committed or read", "an error each time; packs are whole, and not made again")
def test_refusals_that_go_on_while_packs_are_committed(proxy, place, server, truth, tmp_path):
    faults = [
        ("PUT", "columns/c.0.0", 0),
        ("COPY", "/pack-", 2),
        ("COPY", "/pack-", 4),
        ("PUT", "/parts/c.0", 1),
        ("COPY", "/pack-", 1),
        ("GET", "/parts/c.0", 2),
        ("GET", "/columns/c.0.0", 2),
    ]
    known: dict[str, dict] = {}

    def check():
        assert not half_visible(place)
        there = packs(server, place)
        assert known.items() <= there.items()
        known.update(there)

    def run():
        return dsvcca.compare(truth.plan, tmp_path / "r.zarr", workspace=place)

    each_stops(proxy, name(place), faults[:4], run, check)
    assert len(known) == 1
    each_stops(proxy, name(place), faults[4:], run, check)
    proxy.reset()
    assert same_bits(run(), truth.results)
    check()
    assert len(known) == 3
    assert not proxy.count(WRITES, "/pack-")


@pytest.mark.slow
@fault("500s that go on while results are written, at each stage", "an error each time; they are not called complete")
def test_refusals_that_go_on_while_results_are_written(proxy, place, truth):
    faults = [
        ("PUT", "x_layer/c.0", 0),
        ("PUT", "rank_x/c.0.0", 0),
        ("PUT", "commits/0-0.json", 0),
    ]

    def run():
        return dsvcca.compare(truth.plan, place, workspace=truth.bases)

    def check():
        not_complete(place)

    each_stops(proxy, name(place), faults, run, check)
    assert same_bits(run(), truth.results)


@fault("a server that refuses everything from some moment of a new run on", "an error; nothing is called complete")
def test_a_server_that_is_lost_while_new_results_are_filled(proxy, place, truth):
    rule = proxy.rule("InternalError", part=name(place), skip=100)
    with refused(name(place)):
        dsvcca.compare(truth.plan, place, workspace=truth.bases)
    assert rule.hits
    proxy.reset()
    not_complete(place)


@fault("500s that go on while a representation is sealed", "an error; nothing half-written is visible")
def test_refusals_while_a_representation_is_sealed(proxy, place):
    store = dsvcca.create_store(place, datapoints=600)
    rule = proxy.rule("InternalError", "GET", f"{STAGING}/", skip=2)
    with refused(name(place)):
        store.write(activations(1), layer="a", seed=1)
    assert rule.hits
    proxy.reset()
    store.write(activations(1), layer="a", seed=1)
    assert store.read(seed=1).tobytes() == activations(1).tobytes()


@pytest.mark.slow
@fault("500s that go on while a pack is sealed", "an error; the same line goes on")
def test_refusals_while_a_pack_is_sealed(proxy, place, truth, tmp_path):
    rule = proxy.rule("InternalError", "GET", f"{STAGING}/")
    with refused(name(place)):
        dsvcca.compare(truth.plan, tmp_path / "r.zarr", workspace=place)
    assert rule.hits
    proxy.reset()
    assert not half_visible(place)
    assert same_bits(dsvcca.compare(truth.plan, tmp_path / "r.zarr", workspace=place), truth.results)


@pytest.mark.slow
@fault("500s that go on while the labels of results are sealed", "an error; the same line goes on")
def test_refusals_while_labels_are_sealed(proxy, place, truth):
    rule = proxy.rule("InternalError", "GET", "x_layer/c.0", times=4)
    with refused(name(place)):
        dsvcca.compare(truth.plan, place, workspace=truth.bases)
    assert rule.hits
    proxy.reset()
    assert same_bits(dsvcca.compare(truth.plan, place, workspace=truth.bases), truth.results)


@pytest.mark.parametrize("part", ["commits/0-0.json", "commits/bases.json"])
@fault("500s that go on while finished results are looked at", "an error; no tile is called missing and made again")
def test_a_finished_tile_that_cannot_be_read_is_not_made_again(proxy, results_there, truth, part):
    rule = proxy.rule("InternalError", "GET", part)
    with refused(name(results_there)):
        dsvcca.compare(truth.plan, results_there, workspace=truth.bases)
    assert rule.hits
    assert not proxy.count(WRITES, part)


@fault("500s that go on while a workspace is verified", "nothing sound is called damaged")
def test_packs_that_cannot_be_read_are_not_called_damaged(proxy, bases_there):
    proxy.rule("InternalError", "GET", "/columns/c.0.0")
    try:
        found = list(contents.findings(folders.at(bases_there, "workspace")))
    except DsvccaError:
        return
    assert found
    assert not [one for one in found if "remove" in one[2]]


@fault("500s that go on while bases are read", "an error that does not call them damaged")
def test_bases_that_cannot_be_read_are_not_called_damaged(proxy, there, bases_there, tmp_path):
    proxy.rule("InternalError", "GET", "/columns/c.0.0")
    with pytest.raises(DsvccaError, match="cannot be read") as caught:
        dsvcca.compare(planned(there), tmp_path / "r.zarr", workspace=bases_there)
    assert "remove" not in str(caught.value)


@fault("a store's record that cannot be read just now", "an error that does not call the store damaged")
def test_nobody_is_told_to_remove_a_store_that_cannot_be_read(proxy, there):
    proxy.rule("InternalError", "GET", f"{name(there)}/zarr.json")
    with pytest.raises(DsvccaError) as caught:
        dsvcca.open_store(there)
    assert "remove" not in str(caught.value)
    assert "damaged" not in str(caught.value)


ANY_CALL = {
    "index": lambda store: store.index,
    "select": lambda store: store.select(seed=0),
    "plan": dsvcca.plan_comparisons,
    "read": lambda store: store.read(seed=0),
    "write": lambda store: store.write(activations(3), layer="a", seed=3),
    "verify": lambda store: store.verify(),
    "open": lambda store: dsvcca.open_store(store.path),
    "create": lambda store: dsvcca.create_store(store.path, datapoints=600),
}
CALLS = [
    *(pytest.param("AccessDenied", "LIST", call) for call in list(ANY_CALL)[:6]),
    *(pytest.param("AccessDenied", "GET", call) for call in ANY_CALL if call != "verify"),
    *(pytest.param("drop", "LIST", call) for call in ("index", "write")),
    *(pytest.param("drop", "GET", call) for call in ("plan", "read", "open", "create")),
]


@pytest.mark.parametrize(("what", "kind", "call"), CALLS)
@fault("names that cannot be listed, reading forbidden, connections dropped", "one sentence from every call of a store")
def test_every_call_of_a_store_says_in_a_sentence_that_it_cannot_be_read(proxy, there, hasty, what, kind, call):
    store = dsvcca.open_store(there)
    rule = proxy.rule(what, kind, name(there))
    with refused(name(there)):
        ANY_CALL[call](store)
    assert rule.hits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "part"),
    [
        pytest.param("COPY", "/w/pack-", id="packs"),
        pytest.param("GET", "/w/pack-", id="packs-read"),
        pytest.param("PUT", "/r.zarr/zarr.json", id="results"),
    ],
)
@fault("connections that are dropped, again and again, while results are made", "one sentence")
def test_connections_that_are_dropped_again_and_again(proxy, place, truth, tmp_path, hasty, kind, part):
    rule = proxy.rule("drop", kind, part)
    with refused(name(place)):
        if "/w/" in part:
            dsvcca.compare(truth.plan, tmp_path / "r.zarr", workspace=f"{place}/w")
        else:
            dsvcca.compare(truth.plan, f"{place}/r.zarr", workspace=truth.bases)
    assert rule.hits


@fault("connections that are dropped, again and again, while a store is written", "one sentence; nothing is visible")
def test_connections_that_are_dropped_while_a_store_is_written(proxy, place, hasty):
    store = dsvcca.create_store(place, datapoints=600)
    rule = proxy.rule("drop", "COPY", "seed=0,layer=a")
    with refused(name(place)):
        store.write(activations(0), layer="a", seed=0)
    assert rule.hits
    proxy.reset()
    assert store.index.empty
    store.write(activations(0), layer="a", seed=0)
    assert store.read(seed=0).tobytes() == activations(0).tobytes()


@fault("connections that are dropped whenever what was staged is to be removed", "what was written is there, no error")
def test_what_cannot_be_swept_is_no_error(proxy, place, hasty):
    store = dsvcca.create_store(place, datapoints=600)
    rule = proxy.rule("drop", "REMOVE", name(place))
    store.write(activations(0), layer="a", seed=0)
    assert rule.hits
    assert store.read(seed=0).tobytes() == activations(0).tobytes()


@pytest.mark.slow
@fault("answers that take 2 s, of reading and of writing", "the same bits, and nothing is asked twice")
def test_slow_answers_are_waited_for(proxy, place, there, truth, tmp_path):
    reading = proxy.rule("delay", "GET", "seed=2,layer=a/activations/c.0.0", times=1, seconds=2)
    writing = proxy.rule("delay", "COPY", "/pack-", skip=5, times=1, seconds=2)
    start = time.monotonic()
    found = dsvcca.compare(planned(there), tmp_path / "r.zarr", workspace=place)
    assert time.monotonic() - start > 2
    assert same_bits(found, truth.results)
    assert (reading.hits, writing.hits) == (1, 1)
    assert proxy.count("GET", "there.zarr/seed=2,layer=a/activations/c.0.0") == 1
    assert proxy.count("COPY", "/columns/c.0.0") == 3


@fault("bodies that are cut off, lists of names cut short, now and then", "asked for again: the same bits")
def test_a_body_that_is_cut_off_is_asked_for_again(proxy, place, there, truth, tmp_path):
    parts = ["activations/c.0.0", "pack-", "seed=1,layer=a/zarr.json", "/columns/c.0.0", "/parts/c.0"]
    rules = [proxy.rule("cut", "GET", part, times=1) for part in parts]
    rules += [proxy.rule("truncate", "LIST", name(url), times=1) for url in (place, there)]
    found = dsvcca.compare(planned(there), tmp_path / "r.zarr", workspace=place)
    assert [rule.hits for rule in rules] == [1] * 7
    assert same_bits(found, truth.results)


@fault("answers that are lost after the server did what it was told", "told again: the same bits")
def test_answers_that_are_lost_change_nothing(proxy, place, truth):
    rules = [proxy.rule("deaf", kind, name(place), skip=1, times=1) for kind in ("PUT", "COPY", "REMOVE")]
    store = dsvcca.create_store(place, datapoints=600)
    write(store, 2)
    assert [rule.hits for rule in rules] == [1, 1, 1]
    assert store.index.seed.tolist() == [0, 1]
    for seed in range(2):
        assert store.read(seed=seed).tobytes() == activations(seed).tobytes()


@fault("bodies of one layer that are always cut off", "it fails alone or all fails, named; the same line goes on")
def test_a_body_that_is_always_cut_off_is_named(proxy, there, truth, tmp_path, hasty):
    plan = planned(there)
    rule = proxy.rule("cut", "GET", "seed=2,layer=a/activations/c.0.0")
    alone_or_refused(r"seed=2,[ l]", lambda: dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w"))
    assert rule.hits
    proxy.reset()
    assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w"), truth.results)


@fault("500s that go on while one layer is read", "it fails alone and is named; the next run does nothing but that one")
def test_a_layer_that_cannot_be_read_fails_alone(proxy, there, truth, tmp_path):
    plan = planned(there)
    rule = proxy.rule("InternalError", "GET", "seed=2,layer=a/activations/c.0.0")

    def run():
        return dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")

    alone_or_refused(r"seed=2, layer='a'.*c\.0\.0", run)
    assert rule.hits
    proxy.reset()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("w/pack-*/**/c.*")}
    assert len(before) == 4
    assert same_bits(run(), truth.results)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in tmp_path.glob("w/pack-*/**/c.*")}.items()
    assert not proxy.count("GET", "seed=0,layer=a/activations/c.0.0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "part"),
    [
        pytest.param("GET", "/activations/c.0.0", id="reading"),
        pytest.param("PUT", "/columns/c.0.0", id="committing"),
        pytest.param("HEAD", "", id="everything"),
    ],
)
@fault("a server that accepts and never answers", "an error once the time is up; never a hang")
def test_a_server_that_never_answers_is_given_up(proxy, place, there, tmp_path, hasty, kind, part):
    plan = planned(there)
    clients(read_timeout=0.4, retries={"max_attempts": 0})
    rule = proxy.rule("hang", kind, part)
    with refused(f"seed=1|{name(place)}", within=15):
        dsvcca.compare(plan, tmp_path / "r.zarr", workspace=place)
    assert rule.hits


@pytest.mark.slow
@fault("a server that does not answer now and then", "asked again: the same bits")
def test_answers_that_do_not_come_are_asked_for_again(proxy, place, there, truth, tmp_path):
    clients(read_timeout=0.7)
    rules = [proxy.rule("hang", kind, "activations/c.0.0", times=1) for kind in ("GET", "PUT", "COPY")]
    store = dsvcca.create_store(place, datapoints=600)
    store.write(activations(0), layer="a", seed=0)
    assert store.read(seed=0).tobytes() == activations(0).tobytes()
    assert [rule.hits for rule in rules] == [1, 1, 1]
    proxy.rule("hang", "GET", "seed=1,layer=a/activations/c.0.0", times=1)
    found = dsvcca.compare(planned(there), tmp_path / "r.zarr", workspace=tmp_path / "w")
    assert proxy.rules[-1].hits == 1
    assert same_bits(found, truth.results)


@pytest.mark.parametrize("what", ["flip", "truncate", "spoil"])
@fault("one changed bit, or half of the bytes, of activations that are read", "it fails alone, the chunk is named")
def test_activations_spoiled_on_the_way_are_found(proxy, there, truth, tmp_path, what):
    plan = planned(there)
    rule = proxy.rule(what, "GET", "seed=1,layer=a/activations/c.0.0", times=1)

    def run():
        return dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")

    alone_or_refused(r"seed=1, layer='a': chunk 's3://.*there.zarr/seed=1,layer=a/activations/c\.0\.0' is damaged", run)
    assert rule.hits == 1
    assert same_bits(run(), truth.results)
    store = dsvcca.open_store(there)
    proxy.rule(what, "GET", "seed=1,layer=a/activations/c.0.0", times=1)
    with refused(r"seed=1, layer='a': chunk 's3://.*c\.0\.0' is damaged"):
        store.read(seed=1)


@pytest.mark.parametrize(
    ("part", "what"),
    [("/columns/c.0.0", "flip"), ("/columns/c.0.0", "truncate"), ("/parts/c.0", "flip"), ("/zarr.json", "flip")],
)
@fault("one changed bit, or half of the bytes, of a pack that is read", "an error that names the chunk")
def test_packs_spoiled_on_the_way_are_found(proxy, bases_there, server, truth, tmp_path, part, what):
    before = packs(server, bases_there)
    proxy.rule(what, "GET", part, skip=2 if part == "/zarr.json" else 0)
    with refused(rf"'{bases_there}/pack-\w+{part.removesuffix('/c.0')}"):
        dsvcca.compare(truth.plan, tmp_path / "r.zarr", workspace=bases_there)
    proxy.reset()
    assert same_bits(dsvcca.compare(truth.plan, tmp_path / "r.zarr", workspace=bases_there), truth.results)
    assert packs(server, bases_there) == before


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ("results.zarr/zarr.json", "flip"),
        ("x_layer/zarr.json", "flip"),
        ("x_layer/c.0", "flip"),
        ("commits/0-0.json", "truncate"),
    ],
)
@fault("one changed bit, or half of the bytes, of what describes results", "an error, or called not complete")
def test_results_spoiled_on_the_way_are_found(proxy, results_there, part, what):
    rule = proxy.rule(what, "GET", part)
    not_complete(results_there)
    assert rule.hits


@fault("one changed bit, or half of the bytes, of numbers that are read from results", "the checksum does not hold")
def test_numbers_spoiled_on_the_way_are_not_handed_out(proxy, results_there, truth):
    found = dsvcca.open_results(results_there)
    for what in ("flip", "truncate"):
        rule = proxy.rule(what, "GET", "svcca/c.0.0", times=1)
        with pytest.raises(ValueError, match="checksum"):
            found.svcca.load()
        assert rule.hits == 1
    assert same_bits(found, truth.results)


@fault("one changed bit of the places in results", "one sentence")
def test_places_spoiled_on_the_way_are_told(proxy, results_there):
    rule = proxy.rule("flip", "GET", "/x/c.0", skip=1, times=1)
    with refused(name(results_there)):
        dsvcca.open_results(results_there)
    assert rule.hits


@fault("a changed bit of the checksum that is read back of a new pack", "an error, or the right checksum")
def test_a_checksum_spoiled_on_the_way_is_not_kept(proxy, place, truth, tmp_path):
    rule = proxy.rule("flip", "GET", STAGING, times=1)
    with contextlib.suppress(DsvccaError):
        dsvcca.compare(truth.plan, tmp_path / "r.zarr", workspace=place)
    assert rule.hits
    assert same_bits(dsvcca.compare(truth.plan, tmp_path / "r.zarr", workspace=place), truth.results)


@fault("wrong credentials", "one sentence from everything that is opened, made or filled")
def test_wrong_credentials_are_told(proxy, place, there, truth, tmp_path):
    plan = planned(there)
    proxy.only_key = "key"
    fsspec.config.conf["s3"] = {**fsspec.config.conf["s3"], "key": "stranger"}
    for call in every_door(place, there, truth, tmp_path):
        with refused("cannot be reached.*Forbidden.*by whom"):
            call()
    with refused("InvalidAccessKeyId[\\s\\S]*(nothing is left to compare|run the same line again)"):
        dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")
    fsspec.config.conf["s3"] = {**fsspec.config.conf["s3"], "key": "key"}
    assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w"), truth.results)


@fault("writing forbidden, everywhere", "one sentence; nothing is there")
def test_writing_that_is_forbidden_is_told(proxy, place, there, server, truth, tmp_path):
    store = dsvcca.open_store(there)
    rule = proxy.rule("AccessDenied", ("PUT", "COPY"))
    before = objects(server, f"s3://{BUCKET}/")
    with refused(f"{name(place)}.* could not be written .*AccessDenied"):
        dsvcca.create_store(f"{place}/s.zarr", datapoints=600)
    with refused(f"{name(there)}' could not be written .*AccessDenied"):
        store.write(activations(3), layer="a", seed=3)
    with refused(f"{name(place)}/r.zarr' could not be written .*AccessDenied"):
        dsvcca.compare(truth.plan, f"{place}/r.zarr", workspace=truth.bases)
    with refused(f"{name(place)}/w' could not be written .*AccessDenied"):
        dsvcca.compare(truth.plan, tmp_path / "r.zarr", workspace=f"{place}/w")
    assert rule.hits
    assert objects(server, f"s3://{BUCKET}/") == before


@pytest.mark.slow
@fault("removing forbidden", "the same bits; what was staged stays, and is not seen")
def test_who_may_not_remove_may_still_write(proxy, place, server):
    rule = proxy.rule("AccessDenied", "REMOVE")
    store = dsvcca.create_store(place, datapoints=600)
    write(store, 2)
    assert rule.hits >= 3
    assert sum(f"/{STAGING}/" in one and one.endswith("c.0.0") for one in objects(server, place)) == 2
    assert dsvcca.open_store(place).index.seed.tolist() == [0, 1]
    assert store.verify().empty


@fault("a bucket that does not exist", "one sentence; it is not made")
def test_a_bucket_that_does_not_exist_is_told(proxy, server, truth, tmp_path):
    place = "s3://no-such-bucket/here"
    with refused("there is no store at 's3://no-such-bucket/here'"):
        dsvcca.open_store(place)
    with refused("'s3://no-such-bucket/here' could not be written .*bucket does not exist"):
        dsvcca.create_store(place, datapoints=600)
    with refused("'s3://no-such-bucket/here' could not be written .*bucket does not exist"):
        dsvcca.compare(truth.plan, place, workspace=truth.bases)
    with refused("'s3://no-such-bucket/here' could not be written .*bucket does not exist"):
        dsvcca.compare(truth.plan, tmp_path / "r.zarr", workspace=place)
    with refused("there are no results at"):
        dsvcca.open_results(place)
    assert not proxy.count("PUT", "/no-such-bucket/zarr.json")
    assert [one["Name"] for one in client(server).list_buckets()["Buckets"]] == [BUCKET]


@fault("a server that is not there", "one sentence from everything that is opened, made or filled, soon")
def test_a_server_that_is_not_there_is_told(proxy, place, there, truth, tmp_path):
    plan = planned(there)
    proxy.down()
    for call in every_door(place, there, truth, tmp_path):
        with refused("cannot be reached.*Could not connect"):
            call()
    with refused("Could not connect[\\s\\S]*run the same line again"):
        dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")
    proxy.up()
    assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w"), truth.results)


@pytest.mark.parametrize("call", ["open", "create"])
@fault("a server that is not there, and the bucket itself as a store", "one sentence: it cannot be reached")
def test_a_bucket_that_cannot_be_reached_is_told(proxy, call):
    proxy.down()
    with refused("cannot be reached|could not be written"):
        if call == "open":
            dsvcca.open_store(f"s3://{BUCKET}")
        else:
            dsvcca.create_store(f"s3://{BUCKET}", datapoints=600)


@fault("a copy that is answered 200 with an error inside", "an error; nothing half-copied is visible; or told again")
def test_errors_inside_of_answers_are_heard(proxy, place):
    store = dsvcca.create_store(place, datapoints=600)
    rule = proxy.rule("inside", "COPY", "seed=0,layer=a", skip=2)
    with refused(name(place)):
        store.write(activations(0), layer="a", seed=0)
    assert rule.hits
    proxy.reset()
    assert store.index.empty
    rule = proxy.rule("inside", "COPY", "seed=0,layer=a", times=2)
    store.write(activations(0), layer="a", seed=0)
    assert rule.hits == 2
    assert store.read(seed=0).tobytes() == activations(0).tobytes()


@fault("publishing stopped half way, and what was staged cannot be removed", "nothing of either is visible")
def test_what_is_left_of_a_copy_that_stopped_half_way_is_not_seen(proxy, place, server):
    store = dsvcca.create_store(place, datapoints=600)
    proxy.rule("InternalError", "COPY", "seed=0,layer=a/", skip=1)
    proxy.rule("InternalError", "REMOVE")
    with refused(name(place)):
        store.write(activations(0), layer="a", seed=0)
    proxy.reset()
    left = objects(server, place)
    assert any("/seed=0,layer=a/activations/" in one for one in left)
    assert any(f"/{STAGING}/" in one for one in left)
    assert dsvcca.open_store(place).index.empty
    assert store.verify().problem.str.contains("is no committed representation").all()
    assert store.write(activations(0), layer="a", seed=0, if_exists="error")
    assert store.read(seed=0).tobytes() == activations(0).tobytes()


@pytest.fixture(scope="module")
def cluster(behind):
    """Return the client of a cluster of one worker, a process, whose clients of S3 wait 0.3 s, 0.6 s, 1.2 s, ..."""
    waits = "import types, botocore.retryhandler as b; b.random = types.SimpleNamespace(random=lambda: 0.3)"
    with local_client(1, "1.5 GiB") as found:
        found.run(exec, waits, {})
        yield found


@pytest.mark.slow
@fault("an outage of 2 s in the middle of a run on a cluster", "absorbed: the same bits")
def test_an_outage_of_two_seconds_is_waited_for(proxy, place, there, truth, tmp_path, cluster):
    plan = planned(there)
    clients(retries={"max_attempts": 8})
    rule = proxy.rule("down", "COPY", "/pack-", skip=6, times=1, seconds=2)
    found = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=place, client=cluster)
    assert rule.hits == 1
    assert same_bits(found, truth.results)


@pytest.mark.slow
@fault("an outage in the middle of a run on a cluster that lasts", "an error; what was finished is not made again")
def test_an_outage_that_lasts_is_an_error_and_nothing_is_lost(proxy, place, there, server, truth, tmp_path, cluster):
    plan = planned(there)
    clients(retries={"max_attempts": 1})
    rule = proxy.rule("down", "COPY", "/pack-", skip=6, times=1)
    with refused("Could not connect[\\s\\S]*run the same line again"):
        dsvcca.compare(plan, tmp_path / "r.zarr", workspace=place, client=cluster)
    assert rule.hits == 1
    proxy.reset()
    before = packs(server, place)
    assert len(before) == 1
    assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr", workspace=place, client=cluster), truth.results)
    assert before.items() <= packs(server, place).items()
    assert not any(proxy.count(WRITES, f"/pack-{one}/") for one in before)
    assert sum(proxy.count("GET", f"seed={seed},layer=a/activations/c.0.0") > 0 for seed in range(3)) == 2


@pytest.mark.slow
@fault("secrets, when tasks fail on a cluster", "in no message, no log of a worker")
@pytest.mark.parametrize("whose", ["ours", "plain"])
def test_no_worker_tells_the_secret(proxy, place, there, tmp_path, cluster, whose):
    plan = planned(there)
    proxy.rule("AccessDenied", WRITES, "/pack-")  # where a task writes, after all were asked
    with ExitStack() as stack:
        client = cluster
        if whose == "plain":
            options = {"n_workers": 1, "threads_per_worker": 1, "memory_limit": "1.5 GiB", "dashboard_address": None}
            stack.enter_context(dask.config.set({"distributed.worker.preload": []}))  # it may be ours as well
            client = stack.enter_context(Client(stack.enter_context(LocalCluster(**options)), set_as_default=False))
        with refused("could not be written"):
            dsvcca.compare(plan, tmp_path / "r.zarr", workspace=place, client=client)
        logs = repr(client.get_worker_logs()) + repr(client.get_scheduler_logs()) + repr(client.cluster.get_logs())
    assert "Registered to" in logs
    assert ("Compute Failed" in logs) == (whose == "plain")  # ours leave it to the error that the driver raises
    assert SECRET not in logs


@pytest.mark.slow
@fault("secrets", "in no message, plan, results, or log record")
def test_the_secret_is_told_nowhere(proxy, place, there, server, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    options = dict(fsspec.config.conf["s3"])
    dsvcca.create_store(place, datapoints=600, storage_options=options).write(activations(0), layer="a", seed=0)
    store = dsvcca.open_store(there, storage_options=options)
    plan = dsvcca.plan_comparisons(store)
    found = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")
    told = [repr(store), str(plan), repr(plan), plan.describe(), repr(found), repr(found.attrs), repr(found.encoding)]
    told += [repr(pickle.dumps(plan)), store.index.to_string(), repr(store.representations), store.verify().to_string()]
    told += [str(folders.at(store.path, "store")), repr(folders.at(store.path, "store"))]
    for what in ("AccessDenied", "InternalError", "drop"):
        proxy.rule(what, "GET")
        with pytest.raises(Exception) as caught:  # noqa: PT011
            dsvcca.open_store(store.path)
        told.append(said(caught.value))
        proxy.reset()
    told += [*capfd.readouterr(), caplog.text, repr([one.__dict__ for one in caplog.records])]
    assert not [one for one in told if SECRET in one]
    assert "PutObject" in caplog.text
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    files += [client(server).get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in objects(server, place)]
    assert len(files) > 30
    assert not any(SECRET.encode() in content for content in files)
