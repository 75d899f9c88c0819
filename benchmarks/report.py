"""The report of 2,000 x 2,000 results: how large it is, how long it takes to open, and how soon it answers.

In headless Chromium, which draws on the processor; medians of several.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import about_this_machine, show_and_keep  # first: it gives BLAS one thread

import dsvcca

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.browser import chromium, opened

POINTS = 20

ACTIONS = {
    "point at a cell": f"for (let i = 0; i < {POINTS}; i++) dsvcca.mousemove('a', 50 * i + 0.5, 700.5, 100, 100)",
    "zoom both maps": "maps.a.cursor = [900, 900]; maps.a.zoom(0.5)",
    "another measure": "document.getElementById('a-measure').value = 'chance'; await maps.a.show()",
    "another order": "document.getElementById('a-order').value = '2'; await maps.a.show()",
    "choose a pair": "dsvcca.tap('a', 500.5, 700.5)",
}
"""What a person does, and what the page then does until it is seen."""

TIMED = """async () => {
    const { maps } = dsvcca.inside
    const began = performance.now()
    CODE
    await new Promise((seen) => requestAnimationFrame(() => requestAnimationFrame(seen)))
    return performance.now() - began
}"""


def population(folder: Path, count: int) -> dsvcca.Store:
    """Write layers that share a signal more and more, of `count` representations, and return their store."""
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(folder / "activations.zarr", datapoints=400)
    signal = rng.standard_normal((400, 24))
    maps = rng.standard_normal((10, 24, 40))
    for place in range(count):
        seed, rest = divmod(place, 50)
        step, layer = divmod(rest, 10)
        width = 40 if seed % 2 else 24
        x = signal @ maps[layer][:, :width] * (0.2 + step / 3)
        x = x + rng.standard_normal((400, width)) * (2.5 - step / 2 + layer / 10)
        store.write(x.astype("f4"), layer=f"layer{layer}", seed=seed, step=step, if_exists="skip")
    return store


def measured(path: Path, times: int) -> dict[str, float]:
    """Return what was measured of a report: milliseconds, medians of so many."""
    found: dict[str, list[float]] = {}
    with chromium() as browser:
        for _ in range(times):
            began = time.perf_counter()
            with opened(browser, path) as page:
                found.setdefault("open", []).append(1000 * (time.perf_counter() - began))
                page.wait_for_timeout(1000)
                for name, code in ACTIONS.items():
                    took = page.evaluate(TIMED.replace("CODE", code))
                    found.setdefault(name, []).append(took / (POINTS if name == "point at a cell" else 1))
    return {name: round(statistics.median(all_of), 1) for name, all_of in found.items()}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and keep a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--representations", type=int, default=2000)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        plan = dsvcca.plan_comparisons(population(folder, options.representations), variance=0.9)
        results = dsvcca.compare(plan, folder / "results.zarr")
        began = time.perf_counter()
        path = dsvcca.report(results, folder / "report.html")
        found = {
            "machine": about_this_machine(),
            "representations": options.representations,
            "bytes": path.stat().st_size,
            "seconds to write": time.perf_counter() - began,
            "milliseconds": measured(path, options.times),
        }
    show_and_keep(found, options.json)
    return found


if __name__ == "__main__":
    main()
