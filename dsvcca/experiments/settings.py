"""How large an experiment is: small enough for a minute, or as large as the figures of the notebooks are made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from dsvcca.errors import DsvccaError

VARIABLE = "DSVCCA_SETTING"

S = TypeVar("S")


def setting_name() -> str:
    """Return what the environment variable DSVCCA_SETTING names: "small", if it names none.

    Raises
    ------
    DsvccaError
        If it names another than "small" or "full".
    """
    name = os.environ.get(VARIABLE, "small")
    if name not in ("small", "full"):
        raise DsvccaError(f"{VARIABLE}={name!r} is no setting: use small or full")
    return name


def chosen(settings: Mapping[str, S]) -> S:
    """Return the setting that `setting_name` names."""
    return settings[setting_name()]


def runs_folder(name: str) -> Path:
    """Return the folder `runs/<setting>/<name>` here, where an experiment keeps what it makes."""
    folder = Path("runs") / setting_name() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder.absolute()


def steps_at(shares: Sequence[float], steps: int) -> list[int]:
    """Return the steps at shares of a training, each once."""
    return sorted({round(share * steps) for share in shares})
