"""What a paper claims and what came out here, as a table that notebooks end with."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from dsvcca.experiments.settings import VARIABLE, setting_name

MIME = "application/vnd.dsvcca.claims+json"
"""Under which the table lies in a saved notebook, for those that collect them."""


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes
    ----------
    claim : str
        What the paper says, in our words, and where.
    ours : str
        The figures that came out here.
    held : bool
    """

    claim: str
    ours: str
    held: bool


@dataclass(frozen=True)
class Claims:
    """The claims of one experiment, in the order in which they are looked at."""

    claims: list[Claim] = field(default_factory=list)

    def add(self, claim: str, ours: str, *, held: bool) -> None:
        """Add a claim, what came out here, and whether that is what the paper says."""
        self.claims.append(Claim(claim, ours, bool(held)))

    def __iter__(self) -> Iterator[Claim]:
        return iter(self.claims)

    def __str__(self) -> str:
        return "\n".join([*(f"{_word(one)}: {one.claim}\n    here: {one.ours}" for one in self), *_warnings()])

    def _repr_mimebundle_(self, **_: object) -> dict[str, object]:
        """Return the table as text, as HTML, and as what can be collected."""
        cells = "".join(
            f"<tr><td>{html.escape(one.claim)}</td><td>{html.escape(one.ours)}</td><td>{_word(one)}</td></tr>"
            for one in self
        )
        table = f"<table><tr><th>the paper</th><th>here</th><th></th></tr>{cells}</table>" + "".join(_warnings())
        return {"text/plain": str(self), "text/html": table, MIME: [asdict(one) for one in self]}


def _warnings() -> list[str]:
    """Return what is to be said of all the claims together."""
    said = f"The small setting shows that this runs: few networks that learned little. {VARIABLE}=full says what held."
    return [] if setting_name() == "full" else [said]


def _word(one: Claim) -> str:
    return "held" if one.held else "not held"
