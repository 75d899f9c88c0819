"""Files on storage: whole or none, errors in plain words."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsvcca.errors import DsvccaError, RunError
from dsvcca.storage import folders

NO_FILE = (errno.EINVAL, errno.ELOOP, errno.EISDIR, errno.ENXIO)
"""What is said of that which is no file: a folder, a pipe, a link to itself."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


LARGEST_JSON = 256 << 20
"""Bytes of a record, at most: what is larger is none."""


@contextmanager
def disk_errors(path: Path | str) -> Iterator[None]:
    """Turn what the operating system says about `path` into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise RunError(
                f"no space left to write '{path}' ({error.strerror}): free some or choose another place; "
                "what was finished is kept, the same line goes on from there"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise RunError(f"'{path}' may not be written ({error.strerror}): check its permissions") from error
        raise RunError(
            f"'{path}' could not be written ({error}): check the place, then run the same line again; what was "
            "finished is kept"
        ) from error
    except NotImplementedError as error:  # a file system at a URL that is only read
        raise RunError(f"'{path}' cannot be written, it is only read ({error}): choose another place") from error
    except DsvccaError:
        raise
    except Exception as error:
        if "://" not in str(path):
            raise
        raise RunError(  # whatever the library of a URL raises, inside of Zarr
            f"'{path}' could not be written ({type(error).__name__}: {error}): check that it can be reached, then run "
            "the same line again; what was finished is kept"
        ) from error


def make_parents(path: Path) -> None:
    """Make the folders above `path`; a file among them is an error that names it."""
    try:
        folders.make(path.parent)
    except (FileExistsError, NotADirectoryError) as error:
        raise DsvccaError(f"'{path}' lies below a file ('{error.filename}'): choose another place") from error


def check_parents(path: Path) -> None:
    """Raise if a file is among the folders above `path`."""
    if not folders.is_remote(path):
        for above in path.parents:
            if (above.exists() or above.is_symlink()) and not above.is_dir():
                raise DsvccaError(f"'{path}' lies below a file ('{above}'): choose another place")


def is_free(path: Path) -> bool:
    """Return whether nothing is at `path`, or folders with nothing in them but what killed processes left."""
    if not folders.exists(path):  # first: it may be made meanwhile
        return True
    if not folders.is_folder(path):
        return False
    if folders.is_remote(path):
        return all(name.startswith(".") for name in folders.names(path))
    return all(
        name.startswith(".") or ((path / name).is_dir() and not (path / name).is_symlink() and is_free(path / name))
        for name in folders.names(path)
    )


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path` so that a reader sees all of it or nothing, whatever happens."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees all of it or nothing, whatever happens."""
    if folders.is_remote(path):
        folders.write(path, text.encode())
        return
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    folders.sync_folder(path.parent)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; what cannot be read as JSON is an error that names it."""
    try:
        return json.loads(folders.read(path, LARGEST_JSON))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        if error.errno in NO_FILE:
            raise DsvccaError(f"'{path}' is damaged ({error.strerror}): restore it") from error
        raise RunError(UNREADABLE.format(path, error)) from error
    except (ValueError, RecursionError) as error:
        raise DsvccaError(
            f"'{path}' is damaged ({error}): restore it, or remove '{path.parent}' and write it again"
        ) from error


def write_group(folder: Path, **attributes: Any) -> None:
    """Make `folder` a Zarr v3 group that carries `attributes`; what it holds must be written before."""
    write_json(folder / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})


def digest(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of all files below `folder`."""
    found = hashlib.sha256()
    for name, size, _ in folders.listing(folder):
        found.update(f"{Path(name).as_posix()} {size} ".encode())
        with (folder / name).open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


UNREADABLE = (
    "'{}' cannot be read ({}): check that it can be reached, and read by you, then run the same line again; what was "
    "finished is kept"
)
