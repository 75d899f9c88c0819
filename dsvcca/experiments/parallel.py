"""Networks that are trained once, side by side, and found again by all that ask."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, fields
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from dsvcca.activations.store import open_store
from dsvcca.errors import DsvccaError
from dsvcca.progress import track
from dsvcca.storage import files

T = TypeVar("T")
R = TypeVar("R")

NUMBERS = ("seeds", "workers")
"""Fields of a setting that say how many networks there are, and not which: more are added to those that are there."""


def make_lacking(
    make: Callable[[T], object], tasks: Sequence[T], folder: Path, setting: Any, *, made: Callable[[T], bool]
) -> None:
    """Do the tasks that a folder lacks, in as many processes as the setting says; one caller at a time.

    Parameters
    ----------
    make : callable
        Does one task, in this process or another.
    tasks : list
    folder : path
        There already. What is made there is of one setting, which is kept beside it.
    setting : dataclass
        With `workers`.
    made : callable
        Whether a task is done.

    Raises
    ------
    DsvccaError
        If the folder is of another setting.
    """
    with FileLock(folder / "training.lock"):
        claim(folder, setting)
        lacking = [one for one in tasks if not made(one)]
        with track("train", len(lacking)) as advance:
            for _ in _side_by_side(make, lacking, setting.workers):
                advance()


def captured(store: Path, *names: str) -> Callable[..., bool]:
    """Return what tells whether a store holds something with these values of labels; it looks once, when asked."""

    @cache
    def there() -> set[tuple[Any, ...]]:
        return {tuple(r.labels.get(name) for name in names) for r in open_store(store).representations}

    return lambda *values: values in there()


def claim(folder: Path, setting: Any) -> None:
    """Say of which setting the networks of a folder are, or check that they are of it.

    Raises
    ------
    DsvccaError
        If they are of another one.
    """
    own = _plain(asdict(setting))
    before = _plain({one.name: one.default for one in fields(setting)})  # of what the record does not know yet
    record = folder / "setting.json"
    there = read_note(record)
    known = before | there
    other = [f"{name} {known.get(name)!r}" for name in own if known.get(name) != own[name]]
    if there and other:
        raise DsvccaError(
            f"'{folder}' has networks of another setting ({', '.join(other)}): remove it, or keep these elsewhere"
        )
    if not there:
        files.write_json(record, own)


def read_note(path: Path) -> dict[str, Any]:
    """Return what stands beside networks of them; nothing where nothing does."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DsvccaError(f"'{path}' is damaged, and does not say which networks there are: remove the folder")
    return found


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return what says which networks there are, as JSON has it."""
    found: dict[str, Any] = json.loads(json.dumps({n: v for n, v in values.items() if n not in NUMBERS}))
    return found


def _side_by_side(function: Callable[[T], R], tasks: Sequence[T], workers: int) -> Iterator[R]:
    """Yield what a function makes of every task, in order; by so many processes, or in this one if one is enough."""
    if workers == 1 or len(tasks) < 2:
        yield from map(function, tasks)
        return
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, tasks)
