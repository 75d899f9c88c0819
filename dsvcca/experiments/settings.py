"""How large an experiment is: small enough for a minute, or as large as the figures of the notebooks are made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from dsvcca.errors import DsvccaError

VARIABLE = "DSVCCA_SETTING"

S = TypeVar("S")


def chosen(settings: Mapping[str, S]) -> S:
    """Return the setting that the environment variable DSVCCA_SETTING names: small, if it names none.

    Raises
    ------
    DsvccaError
        If it names another.
    """
    name = os.environ.get(VARIABLE, "small")
    if name not in settings:
        raise DsvccaError(f"{VARIABLE}={name!r} is no setting: use {' or '.join(settings)}")
    return settings[name]


def runs_folder(name: str) -> Path:
    """Return the folder `runs/<setting>/<name>` here, where an experiment keeps what it makes."""
    folder = Path("runs") / chosen({one: one for one in ("small", "full")}) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder.absolute()
