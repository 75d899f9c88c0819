"""Write the tables of docs/benchmarks.md from the records of the last runs.

python benchmarks/table.py                         records/*.json -> docs/benchmarks.md, between its marks
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
Rows = list[tuple[str, str]]
TILE = "tile product, share of the float32 peak"
TIME, FIGURE = "plan's time", "plan's figure"
WORKER_PEAK, DRIVER_PEAK = "worker's peak memory", "driver's peak memory"
SHARE = "driver and scheduler, share of the workers' CPU"


def giga(value: float, unit: str) -> str:
    return f"{value / 1e9:.3g} G{unit}"


def mebi(value: float) -> str:
    return f"{value / 2**20:,.0f} MiB"


def population(found: dict[str, Any]) -> Rows:
    about, rate, taken = found["population"], found["rates"], found["seconds"]
    ratio, least = found["ratios"], found["limit, seconds"]
    workers = f"{about['workers']} worker" + "s" * (about["workers"] > 1)
    return [
        (
            "population",
            f"{about['representations']:,} of {about['rows']:,} x {about['columns']}, {about['kept']:.0f} kept "
            f"(variance {about['variance']:g}), {about['comparisons']:,} comparisons, {workers}",
        ),
        (
            "rates: float32, float64 product; eigenproblems; solves",
            f"{giga(rate['float32 product'], 'FLOP/s')}, {giga(rate['float64 product'], 'FLOP/s')}; "
            f"{rate['eigenproblems']:,.0f}/s; {rate['solves']:,.0f}/s",
        ),
        (
            "textbook CCA pair; SVCCA pair; cached whitening",
            "; ".join(
                f"{taken[name] * 1e3:.0f} ms"
                for name in ("textbook CCA pair", "textbook SVCCA pair", "cached whitening pair")
            ),
        ),
        ("textbook CCA pair, share of the float64 peak", f"{ratio['textbook CCA pair, share of peak']:.0%}"),
        (
            "whole population; of it whitening; a pair",
            f"{taken['whole population']:.1f} s; {taken['of it whitening']:.1f} s; {taken['a pair'] * 1e6:,.0f} µs",
        ),
        (
            "**textbook CCA / SVCCA / cached whitening, over ours**",
            "**"
            + ", ".join(
                f"{ratio[f'{name} pair / ours']:,.{1 if ratio[f'{name} pair / ours'] < 30 else 0}f}"
                for name in ("textbook CCA", "textbook SVCCA", "cached whitening")
            )
            + "**",
        ),
        *(
            [("correlate stage / that with values alone", f"{ratio['correlate stage / that with values alone']:.2f}")]
            if "correlate stage / that with values alone" in ratio
            else []
        ),
        *([("a tile's product, share of the float32 peak", f"{ratio[TILE]:.0%}")] if TILE in ratio else []),
        ("whole / limit", f"{ratio['whole / limit']:.2f} (limit {least['all']:.1f} s)"),
        ("whole / plan's time", f"{ratio[f'whole / {TIME}']:.2f}"),
        (
            "plan's memory figure; measured peak",
            f"{mebi(found['memory'][FIGURE])}; {mebi(found['memory']['measured peak'])}",
        ),
    ]


def scale(found: dict[str, Any]) -> Rows:
    rows: Rows = []
    for name, what in (
        ("1 workers", "one worker"),
        ("2 workers", "two workers"),
        ("large", "two workers, a million"),
        ("mixed widths", "two workers, widths 64 to 512"),
    ):
        if name not in found:
            continue
        one = found[name]
        rows.append(
            (
                f"{what}: {one['representations']:,} representations, {one['comparisons']:,} comparisons",
                f"{one['seconds']:.1f} s, {one['microseconds a pair']:.0f} µs a pair, {one['seconds / limit']:.2f} of "
                f"the limit, {one['seconds'] / one[TIME]:.2f} of the plan's time; peak "
                f"{mebi(one[WORKER_PEAK])}, driver {mebi(one[DRIVER_PEAK])}; "
                f"driver and scheduler {one[SHARE]:.1%} of the "
                f"workers' CPU; {len(one['memory warnings of Dask'])} memory warnings",
            )
        )
    rows.append(("scaling of comparisons / of plain products", f"{found['scaling']['ratio']:.2f}"))
    rows.append(("a pair of a million / of the smaller", f"{found['large']['a pair / at the smaller size']:.2f}"))
    return rows


def growth(found: dict[str, Any]) -> Rows:
    taken = found["seconds"]
    return [
        (
            f"adding one to {found['representations']:,}; all from nothing",
            f"{taken['adding one']:.2f} s; {taken['all of them from nothing']:.1f} s",
        ),
        ("**adding one / from nothing**", f"**{found['adding one / from nothing']:.2%}**"),
        ("the same bits", "yes" if found["the same bits"] else "no"),
    ]


def measures(found: dict[str, Any]) -> Rows:
    each, whole, alone = (
        found[name] for name in ("microseconds a pair", "ratios of whole runs", "ratios of correlations alone")
    )
    rows = [(f"bases of {found['representations']}", f"{found['seconds of bases']:.1f} s")]
    for name, seconds in found["seconds of correlations"].items():
        rows.append((f"{name} ({found['sets'][name]})", f"{seconds:.1f} s, {each[name]:.0f} µs a pair"))
    rows += [
        (f"**{name}**: whole run; from bases that are there", f"**{whole[name]:.2f}**; {alone[name]:.2f}")
        for name in whole
    ]
    return rows


def floor(found: dict[str, Any]) -> Rows:
    return [
        (
            f"view {view}, {one['pairs']:,} pairs: svcca; shuffled; chance",
            f"{one['svcca, mean']:.4f}; {one['shuffled, mean']:.4f}; {one['chance, mean']:.4f}; **shuffled / chance "
            f"{one['shuffled / chance, mean']:.4f}** (standard deviation "
            f"{one['shuffled / chance, standard deviation']:.3f})",
        )
        for view, one in found["views"].items()
    ]


def pair(found: dict[str, Any]) -> Rows:
    taken = found["seconds"]
    return [
        (
            f"{found['rows']:,} x {found['columns']}: mean correlation; with directions; textbook",
            "; ".join(f"{taken[name] * 1e3:.0f} ms" for name in ("mean correlation", "with directions", "textbook")),
        ),
        ("**ours / textbook**", f"**{found['mean correlation / textbook']:.2f}**"),
        ("difference", f"{found['difference']:.0e}"),
    ]


def drivers(found: dict[str, Any]) -> Rows:
    return [
        (
            f"{found['workers']} workers, {name}",
            f"{one['tasks a second']:.0f} tasks a second, {one['share of workers busy']:.0%} of the workers busy; "
            f"scheduler and driver {one['CPU seconds of scheduler and driver a task'] * 1e3:.1f} ms of CPU a task",
        )
        for name, one in found.items()
        if name.startswith("tasks of")
    ]


def memory(found: dict[str, Any]) -> Rows:
    return [
        (
            name,
            f"{mebi(one[FIGURE])} / {mebi(one['measured peak'])} = {one['figure / peak']:.2f}",
        )
        for name, one in found.items()
        if isinstance(one, dict) and name != "machine"
    ]


def capture(found: dict[str, Any]) -> Rows:
    rows: Rows = []
    for name in ("convnet", "transformer", "small convnet"):
        if name not in found:
            continue
        one = found[name]
        taken, peak = one["CPU seconds"], one["peak memory"]
        parts = "; ".join(f"{taken[part]:.3f} s" for part in ("forward pass", "capture", "write", "ids"))
        rows += [
            (f"{name}, {one['layers']} layers, {one['rows']:,} datapoints: forward pass; capture; writing; ids", parts),
            (
                f"**{name}: added / (forward pass + write)**; / forward pass",
                f"**{one['added / (forward pass + write)']:.1%}**; {one['added / forward pass']:.1%}",
            ),
            (
                f"{name}: memory added to a forward pass; of four times the batches",
                f"{mebi(peak['added'])}; {mebi(peak['added, four times the batches'])}",
            ),
        ]
    return rows


def accuracy(found: dict[str, Any]) -> Rows:
    rows = [("**case**", "**worst error from disk; in memory**")]
    for name, one in found["cases"].items():
        if one["refused"]:
            rows.append((name, f"refused: {one['refused'][0].split(': ', 1)[-1].split(':')[0]}"))
            continue
        worst = {where: max(one[where].values(), default=0.0) for where in ("on disk", "in memory")}
        said = "; warned" if one["warned"] else ""
        memory = f"{worst['in memory']:.0e}" if one["in memory"] else "not run"
        rows.append((name, f"{worst['on disk']:.0e}; {memory}{said}"))
    return rows


def faults(found: dict[str, Any]) -> Rows:
    checks, kills = found["checks"], found["kills"]
    return [
        (
            f"{checks['representations']} representations in this process, with every check and without any",
            f"{checks['seconds']['with']:.1f} s / {checks['seconds']['without']:.1f} s",
        ),
        ("**with / without**", f"{checks['with / without']:.3f}"),
        (
            f"{kills['representations']:,} representations, workers' CPU: driver killed {kills['kills']} times / left "
            "alone",
            f"{kills['killed'][CPU]:.0f} s / {kills['undisturbed'][CPU]:.0f} s",
        ),
        ("**work, killed / left alone**; the same bits", f"{kills[WORK]:.3f}; {kills['the same bits']}"),
    ]


def soak(found: dict[str, Any]) -> Rows:
    rows = [(f"{found['minutes']:g} minutes, {found['rounds']:,} populations written, compared, grown and removed", "")]
    for kind, (before, after) in found["of the second quarter, and of the last"].items():
        rows.append((f"{kind}: in the second quarter, in the last", f"{before:,.1f}, {after:,.1f}"))
    for place, growth in found["growth of memory in the second half, KiB a round"].items():
        rows.append((f"growth of the {place}'s memory in the second half, KiB a population", f"{growth:,.1f}"))
    return rows


CPU, WORK = "workers' CPU seconds", "work, killed / undisturbed"


def report(found: dict[str, Any]) -> Rows:
    count, took = found["representations"], found["milliseconds"]
    return [
        (f"the file of {count:,} x {count:,} results", f"{found['bytes'] / 1e6:.1f} MB"),
        ("to write it", f"{found['seconds to write']:.1f} s"),
        *((what, f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms") for what, value in took.items()),
    ]


TABLES: dict[str, Callable[[dict[str, Any]], Rows]] = {
    "report": report,
    "population": population,
    "kept85": population,
    "untruncated": population,
    "pwcca": population,
    "demo": population,
    "scale": scale,
    "growth": growth,
    "pair": pair,
    "measures": measures,
    "floor": floor,
    "drivers": drivers,
    "memory": memory,
    "capture": capture,
    "accuracy": accuracy,
    "faults": faults,
    "soak": soak,
}


def main() -> None:
    page = PAGE.read_text()
    for name, make in TABLES.items():
        path = HERE / "records" / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text())
            lines = ["| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in make(found))]
            mark = f"<!-- {name} -->"
            page = re.sub(f"{mark}.*?{mark}", lambda _, m=mark, t=lines: "\n".join([m, *t, m]), page, flags=re.DOTALL)
    PAGE.write_text(page)


if __name__ == "__main__":
    sys.exit(main())
