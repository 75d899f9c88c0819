"""What benchmarks share. Importing it gives BLAS one thread, here and in every process started from here."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402  (after the thread settings)
from threadpoolctl import threadpool_info, threadpool_limits  # noqa: E402

from dsvcca.engine import products  # noqa: E402
from dsvcca.plans.layout import PANEL  # noqa: E402
from dsvcca.plans.plan import Plan  # noqa: E402
from dsvcca.plans.sizes import padded  # noqa: E402
from dsvcca.workspace.contents import find_bases  # noqa: E402
from dsvcca.workspace.packs import Pack  # noqa: E402

threadpool_limits(1)  # what was loaded before this module


def about_this_machine() -> dict[str, Any]:
    """Return what a timing depends on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "blas": [f"{i['internal_api']} {i['version']} {i.get('architecture', '')}" for i in threadpool_info()],
        **{name: version(name) for name in ("numpy", "scipy", "zarr", "dask", "dsvcca")},
        "threads a worker": 1,
        "GPU": "not run on a GPU",
    }


def _processor() -> str:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def peak_memory() -> int:
    """Return the peak resident memory of this process, bytes."""
    for line in _lines("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not report VmHWM")


def seconds(work: Callable[[], Any], repeat: int) -> float:
    """Return the median time of `work`, after one run that does not count."""
    work()
    taken = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def warm(folder: Path) -> None:
    """Read every file below a folder, so that what is measured next does not wait for the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 24):
                    pass


def read_ranks(plan: Plan, workspace: Path) -> list[int]:
    """Return the ranks of the aspects of a plan whose bases are there: what its price is renewed by."""
    receipts = find_bases(str(workspace))
    found = []
    for name in plan.basis_fingerprints:
        ref = receipts[name][0].ref
        basis = Pack(str(workspace), ref.pack).basis(ref.position)
        found.append(int(np.sum(basis.weights * basis.ranks)))
    return found


def show_and_keep(found: dict[str, Any], path: Path | None) -> None:
    """Print a record, and keep it as JSON."""
    _show(found)
    if path:
        path.write_text(json.dumps(found, indent=1) + "\n")


def _show(found: dict[str, Any], indent: str = "") -> None:
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            _show(value, indent + "  ")
        else:
            unit = f"  ({value / 2**20:,.0f} MiB)" if isinstance(value, int) and value > 1 << 20 else ""
            print(f"{indent}{name:32} {f'{value:.6g}' if isinstance(value, float) else value}{unit}")


# The limit: what must be done, each at the rate measured in the same run


def rates(processes: int, columns: int, rank: int, folder: Path) -> dict[str, float]:
    """Return what so many processes do a second together, one thread each: flops, bytes, solves.

    Parameters
    ----------
    columns, rank : int
        Sizes of the Gram matrices, and of the cross blocks.
    folder : Path
        A file of 256 MiB is written there and read, once it is in memory.
    """
    context = multiprocessing.get_context("spawn")
    path = folder / "read.bin"
    with path.open("wb") as file:  # piece by piece: what this process takes is measured as well
        for _ in range(256):
            file.write(os.urandom(1 << 20))
    start = context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, initializer=_meet, initargs=(start,)) as pool:
        found = list(pool.map(_rates, *zip(*[(columns, rank, str(path))] * processes, strict=True)))
    path.unlink()
    return {name: sum(one[name] for one in found) for name in found[0]}


_start: Any = None


def _meet(barrier: Any) -> None:
    global _start
    _start = barrier


def _rates(columns: int, rank: int, path: str) -> dict[str, float]:
    rng = np.random.default_rng(0)
    u = rng.standard_normal((4096, 4096)).astype(np.float32)
    left = u[:, :512].copy()
    square = rng.standard_normal((1024, 1024))
    x = rng.standard_normal((2 * columns, columns))
    gram = x.T @ x
    m = rng.standard_normal((max(4, 20_000 // rank**2), rank, rank))
    small = m @ m.swapaxes(1, 2)

    def read() -> None:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 23):
                pass

    ends = np.arange(PANEL + 1) * min(rank, 32)  # a tile's own product, of two panels in one step of the grid
    sides = [rng.standard_normal((4096, padded(int(ends[-1])))).astype(np.float32) for _ in range(2)]
    strips = products._strips(ends, ends, np.ones((PANEL, PANEL), dtype=bool))
    block = products._add_product(None, *sides, strips)

    found = {}
    for name, amount, work in (
        ("float32 product", 2.0 * 4096 * 512 * 4096, lambda: left.T @ u),
        ("tile product", 2.0 * 4096 * float(ends[-1]) ** 2, lambda: products._add_product(block, *sides, strips)),
        ("float64 product", 2.0 * 1024**3, lambda: square @ square),
        ("eigenproblems", 1.0, lambda: np.linalg.eigh(gram)),
        ("solves", float(len(m)), lambda: np.linalg.eigvalsh(small)),
        ("bytes read", float(256 << 20), read),
    ):
        _start.wait()  # all processes do the same thing at the same time
        found[name] = amount / seconds(work, 5)
    return found


def limit(plan: Plan, ranks: list[int], rate: dict[str, float], solved: int) -> dict[str, float]:
    """Return the seconds that a plan of dense layers takes at the least: bytes, products, eigenproblems, solves.

    The rate of solves is that at rank `solved`.
    """
    sizes = plan.sizes
    gram = sum(float(s.rows) * s.columns**2 + 2.0 * s.rows * s.columns * k for s, k in zip(sizes, ranks, strict=True))
    widest = max(s.columns for s in sizes)
    work = plan.work(ranks)
    parts = {
        "read": work.bytes_read / rate["bytes read"],
        "float64 products": gram / rate["float64 product"],
        "eigenproblems": sum((s.columns / widest) ** 3 for s in sizes) / rate["eigenproblems"],
        "float32 products": sum(2.0 * one.rows * one.multiplied for one in work.passes) / rate["float32 product"],
        "solves": sum(one.pairs * (one.rank / solved) ** 3 for one in work.passes) / rate["solves"],
    }
    return {**parts, "all": sum(parts.values())}
