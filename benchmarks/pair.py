"""One pair in memory: `dsvcca.cca` beside the textbook's inverse square roots.

python benchmarks/pair.py                          8,000 x 512, every direction kept
python benchmarks/pair.py --help
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import about_this_machine, seconds, show_and_keep
from population import textbook_cca

import dsvcca


def run(options: argparse.Namespace) -> dict[str, Any]:
    n, p = options.rows, options.columns
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((n, p // 2))
    x, y = (
        (shared @ rng.standard_normal((p // 2, p)) + rng.standard_normal((n, p))).astype(np.float32) for _ in range(2)
    )

    def textbook() -> float:
        a, b = x.astype(np.float64), y.astype(np.float64)
        return textbook_cca(a - a.mean(axis=0), b - b.mean(axis=0))

    ours = seconds(lambda: dsvcca.svcca(x, y, variance=1.0), options.repeat)
    everything = seconds(lambda: dsvcca.cca(x, y), options.repeat)
    theirs = seconds(textbook, options.repeat)
    return {
        "machine": about_this_machine(),
        "rows": n,
        "columns": p,
        "seconds": {"mean correlation": ours, "with directions": everything, "textbook": theirs},
        "mean correlation / textbook": ours / theirs,
        "with directions / textbook": everything / theirs,
        "difference": abs(dsvcca.svcca(x, y, variance=1.0) - textbook()),
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="keep the record here")
    options = parser.parse_args(arguments)
    found = run(options)
    show_and_keep(found, options.json)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
