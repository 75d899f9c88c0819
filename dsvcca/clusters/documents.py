"""Files in YAML that say what a cluster is like."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from dsvcca.errors import DsvccaError


def documents_in(path: str | os.PathLike[str], what: str, example: str) -> list[Any]:
    """Return the documents of a file; one that is empty is left out.

    Parameters
    ----------
    what, example : str
        What the file is to be, and one that is.

    Raises
    ------
    DsvccaError
        If it cannot be read, or is no YAML.
    """
    try:
        return [one for one in yaml.safe_load_all(Path(path).read_text(encoding="utf-8")) if one is not None]
    except OSError as error:
        raise DsvccaError(f"'{path}' cannot be read ({error.strerror}): name {what}, as {example} is one") from error
    except Exception as error:  # whatever becomes of numbers, dates and brackets that are none
        said = str(error).replace("\n", " ")[:200] or type(error).__name__
        raise DsvccaError(f"'{path}' is no YAML ({said}): name {what}, as {example} is one") from error
