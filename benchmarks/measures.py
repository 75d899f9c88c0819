"""What more measures cost: all of them against the cheapest alone, and chance and errors on top, in one run.

    python benchmarks/measures.py            256 representations of 10,000 x 256, about 30 directions kept
    python benchmarks/measures.py --help

Disk to disk on one BLAS thread: every round makes the bases anew for the first set of measures, and then computes every
set from them; medians of several rounds, and of the ratios of each round. A whole run is bases and correlations.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from common import about_this_machine, show_and_keep
from population import make_population

import dsvcca
from dsvcca.maths.measures import ALL

CHANCE = ("chance", "svcca_debiased", "p_value", "significant")
ERRORS = ("svcca_error",)
SETS = {
    "svcca": ("svcca",),
    "default": ("svcca", "pwcca_x", "pwcca_y", "r2", "chance"),
    "all": tuple(name for name in ALL if name not in (*CHANCE, *ERRORS)),
    "all, chance": tuple(name for name in ALL if name not in ERRORS),
    "all, chance, errors": ALL,
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and keep a record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--representations", type=int, default=256)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=256)
    parser.add_argument("--rank", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="keep the record here")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp())
    try:
        count, rows, columns, rank = options.representations, options.rows, options.columns, options.rank
        store = make_population(folder / "s.zarr", count, rows, [columns], rank)
        found = {"machine": about_this_machine(), **measured(store, folder, options.rounds)}
        show_and_keep(found, options.json)
    finally:
        shutil.rmtree(folder)
    return found


def computed(plan: dsvcca.Plan, workspace: Path, out: Path) -> float:
    """Return the seconds that a plan takes; its results are removed."""
    start = time.perf_counter()
    dsvcca.compare(plan, out, workspace=workspace)
    found = time.perf_counter() - start
    shutil.rmtree(out)
    return found


def measured(store: dsvcca.Store, folder: Path, rounds: int) -> dict[str, Any]:
    """Return seconds and ratios of every set of measures."""
    plans = {
        name: dsvcca.plan_comparisons(store, measures=measures, memory="1.5 GiB") for name, measures in SETS.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in SETS}
    bases: list[float] = []
    for turn in range(rounds):
        workspace, out = folder / f"{turn}.workspace", folder / "r.zarr"
        fresh = computed(plans["svcca"], workspace, out)
        for name, plan in plans.items():
            seconds[name].append(computed(plan, workspace, out))
        bases.append(fresh - seconds["svcca"][-1])
        shutil.rmtree(workspace)
    pairs = plans["svcca"].work().comparisons
    ratios = {
        "all / svcca": ("all", "svcca"),
        "all, chance, errors / all": ("all, chance, errors", "all"),
        "all, chance / all": ("all, chance", "all"),
        "default / svcca": ("default", "svcca"),
    }
    return {
        "representations": len(store.representations),
        "sets": {name: len(measures) for name, measures in SETS.items()},
        "seconds of bases": median(bases),
        "seconds of correlations": {name: median(taken) for name, taken in seconds.items()},
        "microseconds a pair": {name: 1e6 * median(taken) / pairs for name, taken in seconds.items()},
        "ratios of whole runs": {
            name: median((b + x) / (b + y) for b, x, y in zip(bases, seconds[one], seconds[other], strict=True))
            for name, (one, other) in ratios.items()
        },
        "ratios of correlations alone": {
            name: median(x / y for x, y in zip(seconds[one], seconds[other], strict=True))
            for name, (one, other) in ratios.items()
        },
    }


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
