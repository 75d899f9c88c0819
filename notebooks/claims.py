"""Write what the notebooks found as the table of docs/papers.md: `python notebooks/claims.py`."""

from __future__ import annotations

import json
from pathlib import Path

from dsvcca.experiments.claims import MIME

NOTEBOOKS = Path(__file__).parent
PAGE = NOTEBOOKS.parent / "docs" / "papers.md"
BEGIN, END = "<!-- claims -->\n", "<!-- end of claims -->\n"


def claims_of(path: Path) -> list[dict[str, object]]:
    """Return the claims that a notebook was saved with."""
    cells = json.loads(path.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return [claim for output in outputs for claim in output.get("data", {}).get(MIME, [])]


def title_of(path: Path) -> str:
    """Return the first heading of a notebook."""
    first = "".join(json.loads(path.read_text())["cells"][0]["source"])
    return first.splitlines()[0].removeprefix("# ")


def table() -> str:
    """Return a table in Markdown: a row a claim, notebooks in the order of their names."""
    lines = ["| the paper | here | |", "|---|---|---|"]
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        lines.append(f"| **[{title_of(path)}](../notebooks/{path.name})** | | |")
        for claim in claims_of(path):
            cells = [str(claim["claim"]), str(claim["ours"]), "held" if claim["held"] else "**not held**"]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the page with the table that belongs there now."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page())
