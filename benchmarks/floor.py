"""Do real activations, shuffled against each other, lie where independent ones are predicted to?

    python benchmarks/floor.py                       trains the networks of `dsvcca demo` first, about two minutes
    python benchmarks/floor.py --demo FOLDER         of a demo that is there

Convolutional and dense layers of networks trained on images of digits, at their last step, every pair with the
datapoints of each layer in an order of its own (`svcca_shuffled`), over `chance`, which knows ranks and rows alone.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from common import about_this_machine, show_and_keep

import dsvcca
from dsvcca.demo import run_demo


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and keep a record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, help="folder of `dsvcca demo`; default a temporary one")
    parser.add_argument("--shuffles", type=int, default=2)
    parser.add_argument("--json", type=Path, help="keep the record here")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp())
    try:
        if options.demo is None:
            run_demo(folder / "demo")
        store = dsvcca.open_store((options.demo or folder / "demo") / "activations.zarr")
        found = {"machine": about_this_machine(), **on_the_floor(store, folder, options.shuffles)}
        show_and_keep(found, options.json)
    finally:
        shutil.rmtree(folder)
    return found


def on_the_floor(store: dsvcca.Store, folder: Path, shuffles: int) -> dict[str, Any]:
    """Return of every view how far shuffled pairs lie from what is predicted."""
    last = store.select(step=int(store.index.step.max()))
    plan = dsvcca.plan_comparisons(last, measures=["svcca", "svcca_shuffled", "chance"], shuffles=shuffles)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dsvcca.DsvccaWarning)  # of few rows, which is what this is about
        results = dsvcca.compare(plan, folder / "r.zarr", workspace=folder / "workspace")
    frame = dsvcca.to_frame(results)
    frame = frame[np.isfinite(frame.svcca_shuffled)]
    frame["ratio"] = frame.svcca_shuffled / frame.chance
    views = {}
    for view, own in frame.groupby("view"):
        views[view] = {
            "pairs": len(own),
            "svcca, mean": own.svcca.mean(),
            "shuffled, mean": own.svcca_shuffled.mean(),
            "chance, mean": own.chance.mean(),
            "shuffled / chance, mean": own.ratio.mean(),
            "shuffled / chance, standard deviation": own.ratio.std(),
        }
    return {"representations": len(last.representations), "datapoints": last.datapoints, "views": views}


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
