"""What it costs to add one representation to a population whose results are there, beside a run from nothing.

python benchmarks/growth.py                        1 to 512
python benchmarks/growth.py --help
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import about_this_machine, show_and_keep, warm
from population import make_population

import dsvcca
from dsvcca.clusters.local import local_client


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    def compare(store: Any, out: str, client: Any) -> tuple[float, Any]:
        warm(Path(store.path))
        start = time.perf_counter()
        plan = dsvcca.plan_comparisons(dsvcca.open_store(store.path), measures="svcca", memory=options.memory)
        results = dsvcca.compare(plan, folder / out, client=client, workspace=folder / f"{out}.w")
        return time.perf_counter() - start, results

    count = options.representations
    store = make_population(folder / "a.zarr", count, options.rows, [options.columns], options.rank)
    with local_client(options.workers, options.memory) as client:
        first, _ = compare(store, "r", client)
        added = []
        for turn in range(options.repeat):
            store = make_population(folder / "a.zarr", 1, options.rows, [options.columns], options.rank, count + turn)
            taken, grown = compare(store, "r", client)
            added.append(taken)
        whole, fresh = compare(store, "fresh", client)
        same = all(np.array_equal(grown[name], fresh[name], equal_nan=True) for name in fresh.data_vars)
    shutil.rmtree(folder / "r")
    return {
        "machine": about_this_machine(),
        "representations": count,
        "workers": options.workers,
        "seconds": {"the first run": first, "adding one": float(np.median(added)), "all of them from nothing": whole},
        "adding one / from nothing": float(np.median(added)) / whole,
        "the same bits": bool(same),
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--representations", type=int, default=512)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=256)
    parser.add_argument("--rank", type=int, default=30)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--memory", default="1.5 GiB")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work; default a temporary folder")
    parser.add_argument("--json", type=Path, help="keep the record here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = run(options, Path(folder))
    show_and_keep(found, options.json)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
