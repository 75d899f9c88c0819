"""What is seen of long operations: in a terminal, in a notebook, and nothing elsewhere."""

import os
import pty
import re
import select
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

import dsvcca
from dsvcca.progress import Progress, Work, track, waiting
from tests.populations import write_population

LETTERS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What moves a cursor, or colours it."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Seventy representations of a megabyte: some seconds to verify, reduce and compare."""
    return written(tmp_path_factory.mktemp("live") / "a.zarr", 70)


def written(path, seeds):
    store = dsvcca.create_store(path, datapoints=4000)
    rng = np.random.default_rng(0)
    for seed in range(seeds):
        store.write(rng.standard_normal((4000, 64)).astype("f4"), layer="fc", seed=seed)
    return store


def in_terminal(command, folder, timeout=100, columns=150):
    """Run a command with a terminal for standard error; return what it was told, as (seconds, text)."""
    master, worker = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color"}
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=worker, stderr=worker, env=environment
    )
    os.close(worker)
    told = []
    while time.monotonic() < began + timeout:
        if select.select([master], [], [], 0.05)[0]:
            try:
                text = os.read(master, 65536).decode(errors="replace")
            except OSError:  # the other side is closed
                break
            told.append((time.monotonic() - began, text))
        elif process.poll() is not None:
            break
    os.close(master)
    return process.wait(timeout=20), told


def plainly(told):
    return LETTERS.sub("", "".join(text for _, text in told))


def test_a_comparison_in_a_terminal_says_what_was_read_reduced_solved_and_committed(tmp_path):
    store = written(tmp_path / "s.zarr", 12)
    command = [sys.executable, "-m", "dsvcca", "compare", store.path, str(tmp_path / "r.zarr"), "--workers", "2"]
    status, told = in_terminal([*command, "--workspace", str(tmp_path / "w")], tmp_path)
    said = plainly(told)
    assert status == 0, said
    assert "start 2 workers ..." in said
    lines = re.split(r"[\r\n]+", said)
    reduced = [line for line in lines if line.strip().startswith("reduce")][-1]
    assert re.search(r"11\.72 MiB of 11\.72 MiB read \(.*MiB/s\), 12 of 12 representations reduced", reduced)
    solved = [line for line in lines if line.strip().startswith("correlate")][-1]
    assert re.search(r"78 of 78 pairs solved \(.*/s\)", solved)


def test_a_short_line_never_loses_its_times(tmp_path):
    lasts = {
        40: r"correlate [━╸╺]+ 38%",
        80: r"correlate [━╸╺]+ 1,000 of 2,628 pairs solved \([\d,.]+/s\) 0",
        110: r"1,000 of 2,628 pairs solved \([\d,.]+/s\)",
        160: r"1,000 of 2,628 pairs solved \([\d,.]+/s\), 2 of 27 tiles committed",
    }
    script = f"""
import fcntl, os, struct, sys, termios, time
from dsvcca.progress import track
del os.environ["COLUMNS"]
for columns in {list(lasts)}:
    fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    print("COLUMNS", file=sys.stderr, flush=True)
    with track("correlate", 27, {{"pairs solved": 2628, "tiles committed": 27}}) as advance:
        time.sleep(0.3)
        advance(work={{"pairs solved": 1000, "tiles committed": 2}})
        time.sleep(0.5)
"""
    _, told = in_terminal([sys.executable, "-c", script], tmp_path)
    each = plainly(told).split("COLUMNS")[1:]
    for (columns, last), one in zip(lasts.items(), each, strict=True):
        lines = [line.rstrip() for line in re.split(r"[\r\n]+", one) if line.strip()]
        assert max(map(len, lines)) <= columns
        assert all(re.search(r"0:0\d$|0:0\d, 0:0\d left$", line) for line in lines), lines
        assert re.search(last, lines[-1]), lines
        assert lines[-1].endswith("left")


@pytest.mark.slow
def test_in_a_terminal_something_is_seen_within_a_second(store, tmp_path):
    """Of the calls, and not of the imports before them."""
    script = f"""
import sys, time
import numpy as np
import dsvcca
import dsvcca.reports.page
print("BEGIN", file=sys.stderr, flush=True)
store = dsvcca.open_store({store.path!r})
CALL
"""
    calls = {
        "verify": "store.verify()",
        "compare": f"dsvcca.compare(dsvcca.plan_comparisons(store), {str(tmp_path / 'r.zarr')!r}, "
        f"workspace={str(tmp_path / 'w')!r})",
        "connect": "dsvcca.connect(workers=2).close()",
        "waiting": "from dsvcca.progress import waiting\nwith waiting('long'): time.sleep(1.5)",
    }
    for name, call in calls.items():
        status, told = in_terminal([sys.executable, "-c", script.replace("CALL", call)], tmp_path)
        assert status == 0, plainly(told)
        texts = [(at, LETTERS.sub("", text)) for at, text in told]
        begun = next(at for at, text in texts if "BEGIN" in text)
        seen = [at for at, text in texts if text.replace("BEGIN", "").strip()]
        took = told[-1][0] - begun
        assert seen, (name, told)
        assert min(at for at in seen if at >= begun) - begun < 1.0 or took < 1.0, (name, texts)


@pytest.mark.slow
def test_elsewhere_nothing_is_printed_unless_it_is_asked_for(store, tmp_path):
    script = f"""
import dsvcca
store = dsvcca.open_store({store.path!r})
store.verify()
dsvcca.compare(dsvcca.plan_comparisons(store), "r.zarr", workspace="w")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=100
    )
    assert (done.stdout, done.stderr) == ("", "")
    asked = "import logging; logging.basicConfig(level='INFO')\n" + script.replace("r.zarr", "again.zarr")
    done = subprocess.run(
        [sys.executable, "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=100
    )
    assert "INFO:dsvcca:0 of 2,485 comparisons are there" in done.stderr


def test_one_interrupt_in_a_terminal_stops_and_says_how_to_go_on(store, tmp_path):
    command = [sys.executable, "-m", "dsvcca", "compare", store.path, "r.zarr", "--workspace", "w"]
    master, worker = pty.openpty()
    process = subprocess.Popen(
        command, cwd=tmp_path, stdin=worker, stdout=worker, stderr=worker, start_new_session=True
    )
    os.close(worker)
    said = ""
    while "reduce" not in said:
        said += os.read(master, 65536).decode(errors="replace")
    process.send_signal(2)
    while True:
        try:
            said += os.read(master, 65536).decode(errors="replace")
        except OSError:
            break
    os.close(master)
    assert process.wait(timeout=20) == 130
    assert "stopped: what was finished is kept, the same line goes on from there" in said
    assert "Traceback" not in said


def test_an_interrupt_in_python_says_how_to_go_on(tmp_path, monkeypatch):
    store, _ = write_population(tmp_path / "a.zarr")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("dsvcca.engine.reduce.read_pieces", interrupted, raising=False)
    monkeypatch.setattr("dsvcca.engine.execute.guarded", interrupted)
    with pytest.raises(KeyboardInterrupt, match="what was finished is kept, the same line goes on from there"):
        dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr")


@pytest.mark.slow
def test_a_notebook_without_extensions_shows_one_line_that_moves(store, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    code = f"""
import time
import urllib.request
import dsvcca
from dsvcca.progress import waiting
found = dsvcca.compare(dsvcca.plan_comparisons(dsvcca.open_store({store.path!r})), "r.zarr", workspace="w")
with waiting("something long"):
    time.sleep(1)
"""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(book, timeout=100, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [out["data"] for out in book.cells[0].outputs if out.output_type == "display_data"]
    lines = [one["text/html"] for one in pictures if "text/html" in one]
    lines = [line for line in lines if "<progress" in line]
    assert [re.sub("<.*?>", "", line).split()[0] for line in lines] == ["reduce", "correlate"]
    assert "70 of 70 representations reduced" in lines[0]
    assert "<progress value='1.0000' max='1'>" in lines[0]
    assert not any("something long" in str(one) for one in pictures)  # it was there, and went
    assert not [out for out in book.cells[0].outputs if out.output_type in ("stream", "error")]


def test_work_says_how_much_and_how_fast():
    now = Progress("reduce", 1, 4, 0, 2.0, (Work("read", 3 << 20, 6 << 20), Work("representations reduced", 1, 4)))
    assert now.share == 0.5
    assert now.left == 2.0
    assert str(now) == ("reduce: 3.00 MiB of 6.00 MiB read (1.50 MiB/s), 1 of 4 representations reduced, 2 s, 2 s left")
    after = now.advanced(True, {"read": 3 << 20})
    assert (after.done, after.failed, after.work[0].done, after.work[1].done) == (2, 1, 6 << 20, 1)
    assert Progress("plan", seconds=1.0).left is None


def test_what_is_nested_takes_the_line_and_gives_it_back(monkeypatch):
    """One line at a time, however they are nested, and none is left behind by what passes."""
    script = """
import time
import urllib.request
from dsvcca.progress import track, waiting
with waiting("outer"):
    time.sleep(0.7)
    with track("inner", 2) as advance:
        advance()
        time.sleep(0.3)
        advance()
    time.sleep(0.3)
print("done")
"""
    status, told = in_terminal([sys.executable, "-c", script], ".")
    said = plainly(told)
    assert status == 0, said
    assert "outer ..." in said
    assert "2 of 2" in said
    assert said.rstrip().endswith("done")
    order = [said.index(word) for word in ("outer", "inner", "done")]
    assert order == sorted(order)
    assert said.rindex("outer") > said.index("inner")  # it came back


def test_where_nobody_sees_it_nothing_is_made(capsys):
    with track("quiet", 3) as advance, waiting("quieter"):
        advance()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_the_dashboard_of_dask_answers_and_names_tasks_after_what_they_do(tmp_path):
    pytest.importorskip("bokeh")
    store, _ = write_population(tmp_path / "a.zarr")
    with dsvcca.connect(workers=1) as cluster:
        client = cluster.client
        dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr", client=client)
        names = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_prefixes))
        with urllib.request.urlopen(client.dashboard_link, timeout=20) as answer:
            page = answer.read().decode()
    assert {"reduce", "correlate"} <= set(names) <= {"reduce", "correlate", "ask", "measure_rates"}
    assert "Bokeh" in page
