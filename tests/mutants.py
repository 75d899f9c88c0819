"""Take one guard after another out of the code, and expect a test to fail each time.

python tests/mutants.py                            all of tests/mutants.toml; a few minutes
python tests/mutants.py WORD                       those whose guard has the word in it

A mutant is caught if its test fails, or does not end. The tree itself is not touched: a copy is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = ("dsvcca", "tests", "docs", "benchmarks", "pyproject.toml", "README.md")
LONGEST = 90
"""Seconds that a test may take; one that hangs without its guard has caught the mutant."""


def fails(test: str, root: Path) -> bool:
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
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            status = process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            return True
    if status not in (0, 1, 2):
        raise SystemExit(f"pytest ended with {status} for {test}: does that test exist?")
    return status != 0


def main() -> int:
    """Try every mutant; return how many were not caught."""
    words = sys.argv[1:]
    with open(ROOT / "tests" / "mutants.toml", "rb") as file:
        mutants = [one for one in tomllib.load(file)["mutant"] if all(word in one["guard"] for word in words)]
    left = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, root / name)
        for test in dict.fromkeys(one["test"] for one in mutants):
            if fails(test, root):
                raise SystemExit(f"{test} fails with every guard in its place")
        for one in mutants:
            path = root / one["file"]
            sound = path.read_text()
            if sound.count(one["before"]) != 1:
                raise SystemExit(
                    f"{one['guard']}: {one['file']} has {sound.count(one['before'])} times {one['before']!r}"
                )
            path.write_text(sound.replace(one["before"], one["after"]))
            time.monotonic()
            caught = fails(one["test"], root)
            path.write_text(sound)
            left += [] if caught else [one["guard"]]
    return len(left)


if __name__ == "__main__":
    raise SystemExit(min(main(), 1))
