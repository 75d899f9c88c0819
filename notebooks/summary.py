"""Tidy the notebooks, and write what they found into the docs: the table of docs/papers.md and the figures of pages.

Run as `python notebooks/summary.py`, after notebooks have been executed.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsvcca.experiments.claims import MIME

NOTEBOOKS = Path(__file__).parent
PAGE = NOTEBOOKS.parent / "docs" / "papers.md"
BEGIN, END = "<!-- claims -->\n", "<!-- end of claims -->\n"

PARTS = {
    "Raghu et al. 2017: SVCCA": range(1, 11),
    "Morcos et al. 2018: PWCCA": range(11, 19),
    "Of today": range(19, 100),
}
"""Headings of the table, and the numbers of their notebooks."""

FIGURES = {
    "learning_dynamics.png": ("03_learning_dynamics", 0),
    "directions.png": ("02_directions_and_accuracy", 0),
    "freeze_training.png": ("04_freeze_training", 0),
    "memorising.png": ("13_memorising", 0),
}
"""Files below docs/figures, and which figure of which notebook they are."""


PASSING = (" are there", "nothing is to be done")
"""How sentences about a run that was going on end, more or less."""


NO_BARS = "TqdmWarning"
"""What a library says where ipywidgets are not installed."""

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Of what has no other name in a process."""

KERNEL = re.compile(r"[^ \"]*/ipykernel_\d+/\d+\.py:\d+: ")
"""Where a warning came from: a file that is there as long as the kernel runs."""


def tidied(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return a notebook without where it was run, when, and how far it was meanwhile."""
    for i, cell in enumerate(notebook["cells"]):
        cell["metadata"], cell["id"] = {}, f"cell-{i}"
        kept = []
        for output in cell.get("outputs", []):
            said = "".join(output.get("data", {}).get("text/plain", ""))
            if output["output_type"] == "display_data" and any(one in said for one in PASSING):
                continue
            if NO_BARS in "".join(output.get("text", [])):
                continue
            plain = ADDRESS.sub("", json.dumps(output).replace(f"{NOTEBOOKS}/", ""))
            kept.append(json.loads(KERNEL.sub("", plain) if output["output_type"] == "stream" else plain))
        if "outputs" in cell:
            cell["outputs"] = kept
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {**notebook, "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}}}


def outputs_of(name: str) -> Iterator[dict[str, Any]]:
    """Yield what the cells of a notebook gave, by type, as it was saved."""
    for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]:
        yield from (output["data"] for output in cell.get("outputs", []) if "data" in output)


def title_of(name: str) -> str:
    """Return the first heading of a notebook."""
    first = "".join(json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"][0]["source"])
    return first.splitlines()[0].removeprefix("# ")


def tables() -> str:
    """Return a table in Markdown for each of PARTS."""
    names = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    parts = {part: [name for name in names if int(name[:2]) in numbers] for part, numbers in PARTS.items()}
    return "\n".join(f"## {part}\n\n{table(own)}" for part, own in parts.items() if own)


def table(names: list[str]) -> str:
    """Return a table in Markdown: a row a claim of some notebooks."""
    lines = ["| the claim | here | |", "|---|---|---|"]
    for name in names:
        lines.append(f"| **[{title_of(name)}](../notebooks/{name}.ipynb)** | | |")
        for claim in (claim for data in outputs_of(name) for claim in data.get(MIME, [])):
            cells = [claim["claim"], claim["ours"], "held" if claim["held"] else "**not held**"]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the page with the table that belongs there now."""
    before, rest = PAGE.read_text().split(BEGIN)
    return before + BEGIN + tables() + END + rest.split(END)[1]


def figure(file: str) -> bytes:
    """Return one of FIGURES as PNG."""
    name, place = FIGURES[file]
    return b64decode([data["image/png"] for data in outputs_of(name) if "image/png" in data][place])


if __name__ == "__main__":
    for path in NOTEBOOKS.glob("*.ipynb"):
        path.write_text(json.dumps(tidied(json.loads(path.read_text())), indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page())
    for file in FIGURES:
        (PAGE.parent / "figures" / file).write_bytes(figure(file))
