"""Take one guard after another out of the code, and expect a test to fail each time.

python tests/mutants.py                            all of tests/mutants.toml, two at a time; eight minutes on two cores
python tests/mutants.py WORD                       those whose guard has the word in it

A mutant is caught if its test fails, or does not end. The tree itself is not touched: copies are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).parent.parent
COPIED = ("dsvcca", "tests", "deploy", "docs", "benchmarks", "pyproject.toml", "README.md")
LONGEST = 90
"""Seconds that a test may take; one that hangs without its guard has caught the mutant."""

AT_ONCE = 2


def fails(test: str, root: Path, longest: float = LONGEST, said: int | None = subprocess.DEVNULL) -> bool:
    """Return whether a test of a copy of the tree fails there."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    line = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-qq",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=--import-mode=importlib",
    ]
    with subprocess.Popen(
        [*line, *test.split(" -- ")[0].split("|"), *(["-k", test.split(" -- ")[1]] if " -- " in test else [])],
        cwd=root,
        env=environment,
        stdout=said,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            status = process.wait(longest)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            return True
    return status != 0


def tried(one: dict[str, str], root: Path) -> bool:
    """Return whether a mutant is caught in a copy of the tree."""
    path = root / one["file"]
    sound = path.read_text()
    if sound.count(one["before"]) != 1:
        raise SystemExit(f"{one['guard']}: {one['file']} has {sound.count(one['before'])} times {one['before']!r}")
    path.write_text(sound.replace(one["before"], one["after"]))
    try:
        return fails(one["test"], root)
    finally:
        path.write_text(sound)


def main() -> int:
    """Try every mutant; return how many were not caught."""
    words = sys.argv[1:]
    with open(ROOT / "tests" / "mutants.toml", "rb") as file:
        mutants = [one for one in tomllib.load(file)["mutant"] if all(word in one["guard"] for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        free: SimpleQueue[Path] = SimpleQueue()
        for place in range(AT_ONCE):
            root = Path(folder, str(place))
            root.mkdir()
            for name in COPIED:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copy(ROOT / name, root / name)
            free.put(root)

        def with_a_copy(work: Callable[[Any, Path], bool], what: Any) -> bool:
            root = free.get()
            try:
                return work(what, root)
            finally:
                free.put(root)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            tests = dict.fromkeys(one["test"] for one in mutants)
            sound = [
                "|".join(test for test in tests if " -- " not in test),
                *(test for test in tests if " -- " in test),
            ]
            sound = [test for test in sound if test]
            check = partial(fails, longest=len(tests) * LONGEST, said=None)
            for test, failed in zip(sound, pool.map(lambda test: with_a_copy(check, test), sound), strict=True):
                if failed:
                    raise SystemExit(f"with every guard in its place this fails: {test[:200]}")
            left = 0
            for one, caught in zip(mutants, pool.map(lambda one: with_a_copy(tried, one), mutants), strict=True):
                print(f"{'caught' if caught else 'NOT CAUGHT':10} {one['guard']}", flush=True)
                left += not caught
    print(f"{len(mutants)} mutants, {left} not caught")
    return left


if __name__ == "__main__":
    raise SystemExit(min(main(), 1))
