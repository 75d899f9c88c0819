"""The command line: says what there is, does what the library does, and fails in plain words."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
import zarr
from typer.testing import CliRunner

import dsvcca
from dsvcca.cli import app, runs, stores
from dsvcca.cli.plain import as_options, options_of, plain_errors
from dsvcca.clusters.local import local_client
from tests.populations import write_population

runner = CliRunner()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_population(tmp_path_factory.mktemp("cli") / "s.zarr")[0]


def call(*arguments):
    return runner.invoke(app, [str(a) for a in arguments])


def test_help_teaches_and_every_command_has_one():
    said = call("--help").output
    for command in ("demo", "info", "verify", "plan", "compare", "install-completion"):
        assert command in said
        if command != "install-completion":
            assert call(command, "--help").exit_code == 0
    assert call("--version").output.startswith("dsvcca 0.")


def test_info_shows_labels_and_shapes(store):
    said = call("info", store.path).output
    assert "12 representations of 600 datapoints" in said
    assert "seed       0, 1, 2" in said
    assert "(600, 20)" in said


def test_plan_prints_the_price_and_writes_nothing(store, tmp_path):
    said = call("plan", store.path, "--pairs", "over_training", "--variance", 0.9, "--variance", 0.99)
    assert said.exit_code == 0
    assert "comparisons      18" in said.output


def test_compare_gives_the_results_of_the_library(store, tmp_path):
    said = call(
        *("compare", store.path, tmp_path / "r.zarr", "--where", "seed=0,1", "--where", "layer=a"),
        *("--workspace", tmp_path / "w", "--table", tmp_path / "t.csv"),
    )
    assert said.exit_code == 0, said.output
    by_hand = dsvcca.compare(
        dsvcca.plan_comparisons(store.select(seed=[0, 1], layer="a")), tmp_path / "r2.zarr", workspace=tmp_path / "w2"
    )
    found = dsvcca.open_results(tmp_path / "r.zarr")
    assert np.array_equal(found.svcca.values, by_hand.svcca.values)
    assert len(pd.read_csv(tmp_path / "t.csv")) == 10


def test_axes_and_measures_are_chosen_on_the_command_line(tmp_path):
    group = zarr.create_group(tmp_path / "g.zarr")
    group.create_array("a/conv", data=np.random.default_rng(0).standard_normal((200, 3, 4, 4)))
    group.create_array("a/seq", data=np.random.default_rng(1).standard_normal((200, 5, 3)))
    options = ("--labels", "{model}/{layer}", "--dims", "conv=nchw", "--dims", "seq=ntd")
    assert "channel, height, width" in call("info", tmp_path / "g.zarr", *options).output
    said = call("compare", tmp_path / "g.zarr", tmp_path / "r.zarr", *options, "--measure", "svcca")
    assert said.exit_code == 0, said.output
    there = ["svcca", "rank_x", "rank_y"]
    assert list(dsvcca.open_results(tmp_path / "r.zarr").data_vars) == [*there, "view", "off_block", "off_block_floor"]
    said = call("info", tmp_path / "g.zarr", "--dims", "nchw", "--dims", "seq=ntd")
    assert "give one spelling for all, or LAYER=SPELLING for each" in said.output


def test_verify_fails_where_something_is_wrong(tmp_path):
    store, _ = write_population(tmp_path / "s.zarr", seeds=1, steps=(0,))
    assert call("verify", store.path).exit_code == 0
    (tmp_path / "s.zarr" / "seed=0,step=0,layer=a" / "activations" / "c.0.0").unlink()
    said = call("verify", store.path)
    assert said.exit_code == 1
    assert "seed=0,step=0,layer=a: c.0.0 is missing" in said.output
    assert "1 problems" in said.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "/nowhere"), "error: there is no store at '/nowhere'"),
        (("plan", "STORE", "--where", "layer=zz"), "error: no representation has layer='zz'"),
        (("plan", "STORE", "--where", "layer"), "is not LABEL=VALUE"),
        (("plan", "STORE", "--pairs", "some"), "error: --pairs some is unknown"),
        (("compare", "STORE", "OUT", "--workers", "1", "--scheduler", "tcp://x:1"), "give one of them"),
        (("compare", "STORE", "OUT", "--scheduler", "tcp://127.0.0.1:9"), "no Dask scheduler answers"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_errors_have_no_traceback(store, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr("dsvcca.clusters.address.CONNECT", 1)
    places = {"STORE": store.path, "OUT": tmp_path / "r.zarr"}
    said = call(*(places.get(a, a) for a in arguments))
    assert said.exit_code == 1
    assert message in said.output
    assert "Traceback" not in said.output


@pytest.mark.parametrize(
    ("said", "spelled"),
    [
        ("pass if_exists='skip'", "pass --if-exists skip"),
        ("plan with memory='0.37 GiB'.", "plan with --memory '0.37 GiB'."),
        ("another variance, or rank=, that", "another variance, or --rank, that"),
        ("variance=1.0. Or variance=[0.5, 0.9]:", "--variance 1.0. Or --variance 0.5 --variance 0.9:"),
        ("measures=['svcca_shuffled', 'cka'] asks", "--measure svcca_shuffled --measure cka asks"),
        ("layer='view=a', and results.sel(variance=0.9)", "layer='view=a', and results.sel(variance=0.9)"),
        ("labels='...{step:d}...' and targets={'a': x}", "--labels '...{step:d}...' and targets={'a': x}"),
        ("my_view=3", "my_view=3"),
    ],
)
def test_what_python_takes_is_spelled_as_options(said, spelled):
    options = options_of(runs.compare) | options_of(stores.import_)
    assert as_options(said, options) == spelled


def test_a_reader_that_has_seen_enough_is_no_error(store):
    command = f"{sys.executable} -m dsvcca info '{store.path}' | true; exit ${{PIPESTATUS[0]}}"
    said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert said.stderr == ""
    assert said.returncode == 128 + signal.SIGPIPE


def test_a_pipe_that_breaks_elsewhere_is_an_error(capsys):
    @plain_errors
    def command():
        raise BrokenPipeError(32, "Broken pipe of a connection")

    with pytest.raises(typer.Exit) as ended:
        command()
    assert ended.value.exit_code == 1
    assert "error: [Errno 32] Broken pipe of a connection" in capsys.readouterr().err


def test_a_plan_is_read_as_the_last_line_of_a_cell(store):
    class Printer:
        def text(self, said):
            self.said = said

    plan, printer = dsvcca.plan_comparisons(store), Printer()
    plan._repr_pretty_(printer, cycle=False)
    assert "representations" in printer.said
    assert "time " in printer.said


def test_where_bases_cannot_be_kept_another_place_is_asked_for(store, tmp_path):
    said = call("compare", store.path, tmp_path / "r.zarr", "--workspace", "/sys/dsvcca")
    assert said.exit_code == 1
    assert "'/sys/dsvcca' " in said.output
    assert "or have the bases kept elsewhere, by --workspace" in said.output


def test_warnings_are_one_line(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=40)
    for seed in range(2):
        store.write(np.random.default_rng(seed).standard_normal((40, 15)), layer="l", seed=seed)
    said = call("compare", store.path, tmp_path / "r.zarr")
    assert said.exit_code == 0
    assert "warning: 3 comparisons have fewer than 5 rows" in said.output


def test_targets_frequencies_and_routes_are_chosen_on_the_command_line(tmp_path):
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=300)
    for seed in range(2):
        store.write(rng.standard_normal((300, 4, 4, 3)), layer="conv", seed=seed, dims="nhwc")
        store.write(rng.standard_normal((300, 2)), layer="out", seed=seed)
    table = tmp_path / "t.csv"
    said = call("compare", store.path, tmp_path / "t.zarr", "--pairs", "to_targets", "--target", "layer=out",
                "--table", table)  # fmt: skip
    assert said.exit_code == 0, said.output
    assert len(table.read_text().splitlines()) == 1 + 4 * 6
    said = call("plan", store.path, "-w", "layer=conv", "--center", "dc", "--keep", "frequencies", "--route", "direct")
    assert "direct: activations are read once" in said.output
    assert call("plan", store.path, "--target", "out").exit_code == 1
    assert "several values" in call("plan", store.path, "--target", "layer=out,conv").stderr
    assert "is not LABEL=VALUE" in call("plan", store.path, "--target", "out").stderr


def test_the_plan_knows_the_ranks_that_an_earlier_one_found(store, tmp_path):
    arguments = (store.path, "--where", "layer=a", "--variance", 0.9, "--workspace", tmp_path / "w")
    said = call("compare", arguments[0], tmp_path / "r.zarr", *arguments[1:]).output
    assert "taken to be a third of the columns to all directions kept" in said
    known = call("plan", *arguments).output
    assert "(the ranks are those of bases that are there)" in known
    assert "0 reduce, 1 correlate; each by one thread" in known
    assert "6 of 6 bases are there" in known
    wider = (store.path, "--variance", 0.9, "--workspace", tmp_path / "w", "--workers", 64)
    said = call("plan", *wider).output
    assert "(from ranks of the 6 not yet known taken to be a third" in said
    assert "6 of 12 bases are there" in said
    assert "6 reduce, 1 correlate" in said
    assert "on 64 worker threads, of which no more than 6 ever have work" in said


def test_a_table_that_is_a_folder_is_refused_first(store, tmp_path):
    said = call("compare", store.path, tmp_path / "r.zarr", "--table", tmp_path)
    assert said.exit_code == 1
    assert "is a folder: name a file in it" in said.output
    assert not (tmp_path / "r.zarr").exists()


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups here")
@pytest.mark.parametrize(
    ("number", "to_all"),
    [
        (signal.SIGINT, True),  # as a terminal does
        pytest.param(
            signal.SIGTERM, False, marks=pytest.mark.slow
        ),  # as Kubernetes does, SLURM to a batch script's children, and `kill`
    ],
)
def test_an_interrupt_ends_a_cluster_with_one_line(tmp_path, number, to_all):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=4000)
    rng = np.random.default_rng(0)
    for seed in range(16):
        store.write(rng.standard_normal((4000, 256), dtype="f4"), layer="a", seed=seed)
    line = [sys.executable, "-m", "dsvcca", "compare", store.path, str(tmp_path / "r.zarr"), "--workers", "2"]
    line += ["--variance", "1.0", "--measure", "svcca"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # What runs in the background of a shell inherits that interrupts are ignored.
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(line, start_new_session=True, preexec_fn=heeding, **pipes)
    while not Path(f"{store.path}.workspace").exists():  # work begins
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.2)
    (os.killpg if to_all else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.endswith("stopped: what was finished is kept, the same line goes on from there\n")
    assert "Traceback" not in said
    assert len(said.splitlines()) < 4  # on a machine that is busy Dask may have warned of something before


def test_a_dry_run_looks_and_changes_nothing(tmp_path):
    store, _ = write_population(tmp_path / "s.zarr", seeds=2, steps=(0,))
    before = sorted(tmp_path.rglob("*"))
    said = call("keep-bases", store.path, "--dry-run")
    assert said.exit_code == 0, said.output
    assert "4 representations" in said.output
    assert "one worker thread like this one" in said.output
    with local_client(2, "1 GiB") as client:
        there = client.scheduler_info()["address"]
        said = call("compare", store.path, tmp_path / "r.zarr", "--dry-run", "--scheduler", there)
    assert said.exit_code == 0, said.output
    assert "2 worker threads" in said.output
    assert sorted(tmp_path.rglob("*")) == before
