#!/usr/bin/env python
# ruff: noqa: T201
"""Coverage-guided fuzzing of everything that reads what others may have written; see `tests/fuzz_targets.py`.

    pip install atheris                                  (needs wheels of its own: not one of the extras)
    python fuzz/fuzz_parsers.py --seconds 600            all targets, one after another; status 1 if anything was found
    python fuzz/fuzz_parsers.py --seconds 60 pack mask   some of them
    python fuzz/fuzz_parsers.py --again FILE             one input that was found, with its traceback, without atheris

What breaks a promise is kept in `fuzz/found/<target>-<digest>`, one input for each place in the code, its traceback
beside it, and the target goes on. Inputs that reach new code are kept in `fuzz/corpus/<target>` and taken up again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

LONGEST = 512
"""Bytes of an input."""

NAMES = (
    *("any_record", "representation", "mask", "marker", "learned", "results_record", "pack", "partial", "labels"),
    *("dims", "patterns", "foreign", "command_line"),
)
"""As in `fuzz_targets.TARGETS`, which is imported only where it is instrumented."""


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        return fuzz(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="target", help=f"{', '.join(NAMES)}; default: all")
    parser.add_argument("--seconds", type=float, default=600, help="for all targets together")
    parser.add_argument("--again", type=Path, help="run one input that was found")
    given = parser.parse_args()
    if given.again:
        return again(given.again)
    if find_spec("atheris") is None:
        parser.error("atheris is not there: pip install atheris")
    targets = given.targets or list(NAMES)
    if unknown := set(targets).difference(NAMES):
        parser.error(f"no target {', '.join(sorted(unknown))}: there are {', '.join(NAMES)}")
    total = 0
    for target in targets:
        total += run(target, given.seconds / len(targets))
    print(f"{len(targets)} targets, {total} findings" + (f": see {HERE / 'found'}" if total else ""))
    return 1 if total else 0


def run(target: str, seconds: float) -> int:
    """Fuzz one target in a process of its own; return how many findings there are."""
    found, corpus = HERE / "found", HERE / "corpus" / target
    found.mkdir(exist_ok=True)
    corpus.mkdir(parents=True, exist_ok=True)
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    began, since = time.monotonic(), time.time()
    with tempfile.TemporaryDirectory(dir=shared) as scratch, tempfile.TemporaryFile("w+") as said:
        flags = [f"-max_total_time={max(1, round(seconds))}", f"-max_len={LONGEST}", "-rss_limit_mb=4096"]
        flags += [
            "-timeout=3600",
            "-report_slow_units=3600",
            "-print_final_stats=1",
            "-verbosity=0",
        ]  # `guarded` stops what takes long
        flags += [f"-artifact_prefix={found / target}-", str(corpus)]
        command = [sys.executable, __file__, "--child", target, *flags]
        try:
            status = subprocess.run(
                command, stdout=said, stderr=said, env={**os.environ, "TMPDIR": scratch}, timeout=seconds + 120
            ).returncode
        except subprocess.TimeoutExpired:
            status = -1
        said.seek(0)
        text = said.read()
    units = re.search(r"number_of_executed_units:\s*(\d+)", text)
    new = {one for one in found.glob(f"{target}-*") if one.suffix != ".txt" and one.stat().st_mtime >= since - 1}
    if status and not new:  # it died of something else, or never ended
        (found / f"{target}-died.txt").write_text(text[-20_000:])
        new = {found / f"{target}-died.txt"}
    took, executed = time.monotonic() - began, units[1] if units else "unknown"
    print(f"{target:16} {executed:>9} executions in {took:5.0f} s, {len(new)} findings", flush=True)
    for path in sorted(new):
        print(f"    {path}", flush=True)
    return len(new)


def fuzz(target: str, flags: list[str]) -> int:
    import atheris

    with atheris.instrument_imports(include=["dsvcca", "tests.fuzz_targets"]):
        from tests import fuzz_targets
    assert set(NAMES) == set(fuzz_targets.TARGETS)
    fuzz_targets.boxes()
    places: set[str] = set()

    def one(data: bytes) -> None:
        try:
            fuzz_targets.run(target, data)
        except Exception as error:
            where = f"{type(error).__name__} {fuzz_targets.places_of(error)[-1:]}"
            if where not in places:
                places.add(where)
                keep(target, data, error)

    for number, data in enumerate(fuzz_targets.CORPUS):
        (Path(flags[-1]) / f"given-{number}").write_bytes(data)
    atheris.Setup([sys.argv[0], *flags], one)
    atheris.Fuzz()
    return 0


def keep(target: str, data: bytes, error: BaseException) -> None:
    path = HERE / "found" / f"{target}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    text = "".join(traceback.format_exception(error))
    path.with_suffix(".txt").write_text(text, encoding="utf-8", errors="backslashreplace")


def again(path: Path) -> int:
    from tests import fuzz_targets

    with fuzz_targets.guarded(), suppress(fuzz_targets.DsvccaError):  # what is known is shown as well
        fuzz_targets.TARGETS[path.name.rpartition("-")[0]](path.read_bytes())
    print("nothing is wrong any more")
    return 0


if __name__ == "__main__":
    sys.exit(main())
