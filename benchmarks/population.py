"""What a comparison costs in a population, against the textbook way, in one run on one machine.

    python benchmarks/population.py                    128 representations of 10,000 x 256, about 30 directions kept
    python benchmarks/population.py --help

Everything is measured in this run, one BLAS thread each, disk to disk with a warm page cache: the textbook pair reads
its two arrays from the same store. Times are medians; what counts are the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402  (after the thread settings)
import zarr  # noqa: E402
from dask.utils import parse_bytes  # noqa: E402
from threadpoolctl import threadpool_info  # noqa: E402

import dsvcca  # noqa: E402
from dsvcca.execute import local_client  # noqa: E402
from dsvcca.plan import PANEL  # noqa: E402
from dsvcca.sizes import STRIP  # noqa: E402
from dsvcca.views import GRID  # noqa: E402


def seconds(work: Callable[[], Any], repeat: int) -> float:
    """Return the median time of `work`, after one run that does not count."""
    work()
    taken = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def make_population(path: Path, count: int, n: int, p: int, rank: int) -> dsvcca.store.Store:
    """Write representations that share a signal and keep about `rank` directions at 99 % of the variance."""
    store = dsvcca.create_store(path, datapoints=n)
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((n, 2 * rank))
    for seed in range(count):
        latent = shared @ rng.standard_normal((2 * rank, rank)) + rng.standard_normal((n, rank))
        x = latent @ rng.standard_normal((rank, p)) + 0.3 * rng.standard_normal((n, p))
        store.write(x.astype(np.float32), layer="layer", seed=seed)
    return store


def read(store: dsvcca.store.Store, i: int) -> Any:
    """Return activations from disk, centred, as float64."""
    x = np.asarray(zarr.open_array(store.representations[i].array, mode="r")[:], dtype=np.float64)
    x -= x.mean(axis=0)
    return x


def inverse_root(c: Any) -> Any:
    values, vectors = np.linalg.eigh(c)
    return (vectors / np.sqrt(values)) @ vectors.T


def textbook_cca(x: Any, y: Any) -> float:
    """Mean canonical correlation by covariances, inverse square roots and an SVD."""
    rho = np.linalg.svd(inverse_root(x.T @ x) @ (x.T @ y) @ inverse_root(y.T @ y), compute_uv=False)
    return float(rho.mean())


def leading(x: Any, variance: float = 0.99) -> Any:
    """Project centred activations on the singular directions that hold `variance`, by an SVD of the activations."""
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    k = int(np.searchsorted(np.cumsum(s**2), variance * np.sum(s**2))) + 1
    return u[:, :k] * s[:k]


def machine_rates(n: int, p: int, repeat: int) -> dict[str, float]:
    """Return what this machine does in one thread, GFLOP/s."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((GRID, w)).astype(np.float32) for w in (STRIP, 4096))
    x = rng.standard_normal((min(n, GRID), p))
    square = rng.standard_normal((1500, 1500))
    return {
        "float32 product, tile shape": 2 * GRID * STRIP * 4096 / seconds(lambda: a.T @ b, repeat) / 1e9,
        "float64 product": 2 * 1500**3 / seconds(lambda: square @ square, repeat) / 1e9,
        "float64 Gram (n p^2)": len(x) * p * p / seconds(lambda: x.T @ x, repeat) / 1e9,
    }


def peak_memory() -> int:
    """Return the peak resident memory of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not report VmHWM")


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    store = make_population(folder / "a.zarr", options.representations, options.rows, options.columns, options.rank)
    repeat = options.repeat
    rates = machine_rates(options.rows, options.columns, repeat)
    cca_pair = seconds(lambda: textbook_cca(read(store, 0), read(store, 1)), repeat)
    svcca_pair = seconds(lambda: textbook_cca(leading(read(store, 0)), leading(read(store, 1))), repeat)

    measures = options.measures.split(",")
    plan = dsvcca.plan_comparisons(store, measures=measures, memory=options.memory)
    taken: list[float] = []
    results = None
    with local_client(options.workers, options.memory) as client:
        for _ in range(repeat + 1):  # the first warms the workers up and does not count
            shutil.rmtree(folder / "r.zarr", ignore_errors=True)
            shutil.rmtree(folder / "w", ignore_errors=True)
            start = time.perf_counter()
            results = dsvcca.compare(plan, folder / "r.zarr", client=client, workspace=folder / "w")
            taken.append(time.perf_counter() - start)
        peaks = list(client.run(peak_memory).values())
    assert results is not None
    truth = textbook_cca(leading(read(store, 0)), leading(read(store, 1)))
    ours = float(np.median(taken[1:])) / plan.pairs.count
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "blas": [f"{i['internal_api']} {i['version']} {i.get('architecture', '')}" for i in threadpool_info()],
            **{name: version(name) for name in ("numpy", "zarr", "dask", "dsvcca")},
            "threads a worker": 1,
        },
        "population": {
            "representations": options.representations,
            "rows": options.rows,
            "columns": options.columns,
            "kept": float(results.rank_x.mean()),
            "comparisons": plan.pairs.count,
            "workers": options.workers,
            "measures": measures,
        },
        "GFLOP/s": rates,
        "seconds": {
            "textbook CCA pair": cca_pair,
            "textbook SVCCA pair": svcca_pair,
            "whole population": float(np.median(taken[1:])),
            "population, a pair": ours,
        },
        "ratios": {"textbook CCA pair / ours": cca_pair / ours, "textbook SVCCA pair / ours": svcca_pair / ours},
        "memory": {
            "worker limit": parse_bytes(options.memory),
            "plan's figure": plan.price().memory,
            "measured peak": max(peaks),
        },
        "difference from textbook SVCCA": abs(float(results.svcca[0, 1]) - truth),
    }


def show(found: dict[str, Any], indent: str = "") -> None:
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            show(value, indent + "  ")
        else:
            unit = f"  ({value / 2**20:,.0f} MiB)" if isinstance(value, int) and value > 1 << 20 else ""
            print(f"{indent}{name:32} {f'{value:.6g}' if isinstance(value, float) else value}{unit}")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--representations", type=int, default=PANEL)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=256)
    parser.add_argument("--rank", type=int, default=30, help="directions that the data have above the noise")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--memory", default="1 GiB", help="limit of a worker")
    parser.add_argument("--measures", default="svcca", help="what the textbook pair gives, by default")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work; default a temporary folder")
    parser.add_argument("--json", type=Path, help="keep the record here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = run(options, Path(folder))
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
