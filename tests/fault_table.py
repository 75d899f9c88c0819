"""Write the tables of docs/faults.md from the tests that carry the mark `fault(group, case, outcome)`.

python tests/fault_table.py                        docs/faults.md, between its marks
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "faults.md"
MARKS = re.compile(r"(<!-- faults -->\n).*(<!-- /faults -->)", re.DOTALL)


class _Rows:
    """Takes the marks of everything that pytest collects in files that have some."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], tuple[str, set[str], set[str]]] = {}

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        is_test = collection_path.suffix == ".py"
        return True if is_test and "mark.fault" not in collection_path.read_text() else None

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for mark in item.iter_markers("fault"):
                group, case, outcome = mark.args
                _, tests, runs = self.found.setdefault((group, case), (outcome, set(), set()))
                tests.add(item.nodeid.split("[")[0].removeprefix("tests/"))
                runs.add("faults" if item.get_closest_marker("slow") else "test")


def collected() -> dict[tuple[str, str], tuple[str, set[str], set[str]]]:
    """Return outcome, tests and make targets of every (group, case)."""
    rows = _Rows()
    quiet = ["--collect-only", "-qq", "--no-summary", "-p", "no:cacheprovider", str(ROOT / "tests")]
    status = pytest.main(quiet, [rows])
    assert status == 0, "some tests cannot be collected"
    return rows.found


def tables(found: dict[tuple[str, str], tuple[str, set[str], set[str]]]) -> str:
    """Return one table a group, in Markdown."""
    lines = [f"{len(found)} cases.\n"]
    for group in sorted({group for group, _ in found}):
        cases = [(case, *rest) for (own, case), rest in found.items() if own == group]
        lines.append(f"## {group.capitalize()}: {len(cases)}\n")
        lines += ["| case | outcome | test | runs in |", "|---|---|---|---|"]
        for case, outcome, tests, runs in cases:
            named = "<br>".join(f"`{test}`" for test in sorted(tests))
            lines.append(f"| {case} | {outcome} | {named} | {', '.join(f'`make {run}`' for run in sorted(runs))} |")
        lines.append("")
    return "\n".join(lines)


def page(text: str) -> str:
    """Return the page with the tables of the tests as they are."""
    return MARKS.sub(lambda marks: marks[1] + tables(collected()) + marks[2], text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
