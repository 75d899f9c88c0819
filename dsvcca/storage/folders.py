"""Folders and files, here or at a URL: the few things that this package does with them.

A place is a `pathlib.Path`, or what behaves like one for an object store (`upath.UPath`). Objects of a store appear
whole or not at all, and there are no folders, nor anything to be synced; nothing can be renamed, so what is moved is
copied by the store itself, its record last.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from filelock import FileLock, Timeout
from fsspec.utils import get_protocol
from upath import UPath

from dsvcca.errors import DsvccaError, RunError

log = logging.getLogger("dsvcca")

RECORD, LOCK = "zarr.json", ".lock"

UNCACHED = {"use_listings_cache": False}
"""What others write must be seen."""


def at(path: str | os.PathLike[str], what: str, storage_options: Mapping[str, Any] | None = None) -> Path:
    """Return a path, or the URL of an object store, as a place.

    Parameters
    ----------
    what : str
        For error messages: "store", "results", ...
    storage_options : mapping, optional
        How a URL is reached (see the file system's own documentation). They count for all URLs of that kind in this
        process, and travel with tasks. Better left to the environment, where workers find them as well.

    Raises
    ------
    DsvccaError
        If no library is there for such URLs.
    """
    if isinstance(path, Path) or hasattr(path, "storage_options"):
        return path.absolute() if isinstance(path, Path) else cast(Path, path)
    text = os.fspath(path)
    if "://" not in text:
        if storage_options:
            raise DsvccaError(f"storage_options are for URLs, and {what} {text!r} is a folder: leave them out")
        try:
            return Path(text).expanduser().absolute()
        except (RuntimeError, FileNotFoundError) as error:  # no such user; the current folder is gone
            raise DsvccaError(f"{what} {text!r} is no place ({error}): write the whole path") from error
    protocol = get_protocol(text)
    place = text.split("://", 1)[1]
    if "@" in place.split("/", 1)[0] or ":" in place.split("@")[0] * ("@" in place) or "?" in place or "::" in text:
        raise DsvccaError(  # results and messages name URLs
            f"{what}: a {protocol}:// URL with a user, a password, a query or another URL in it: leave them out, and "
            "say who you are by the environment or storage_options="
        )
    if protocol == "file":
        if not text.startswith("file:///"):
            raise DsvccaError(f"{what} {text!r} names no folder of this machine: write file:///, or the path alone")
        return Path(text.removeprefix("file://"))
    if storage_options:
        fsspec.config.conf[protocol] = {**fsspec.config.conf.get(protocol, {}), **storage_options}
    try:
        found = cast(Any, UPath)(text.rstrip("/"), **UNCACHED)
        found.fs  # noqa: B018  (made when it is asked for, and only then are libraries imported)
    except (ImportError, ValueError) as error:
        do = ": pip install 'dsvcca[s3]'" if protocol.startswith("s3") else ""
        raise DsvccaError(f"{what} {text!r}: no library for {protocol}:// is there ({error}){do}") from error
    except Exception as error:  # whatever the library of that kind of URL raises
        raise DsvccaError(f"{what} {text!r}: {protocol}:// cannot be used so ({error}): use another place") from error
    return cast(Path, found)


def reach(path: str | os.PathLike[str], what: str, storage_options: Mapping[str, Any] | None = None) -> Path:
    """Return a place as `at` does, once it is known that a URL can be reached.

    Raises
    ------
    DsvccaError
        If it cannot.
    """
    found = at(path, what, storage_options)
    if is_remote(found):
        try:
            if not found.exists() and cast(Any, found).protocol in BUCKETS:
                _ask_bucket(found)
        except Exception as error:  # whatever the library of that kind of URL raises
            raise DsvccaError(
                f"{what} '{found}' cannot be reached ({error}): check the address, and that the environment, or "
                "storage_options= of open_store, says how it is reached and by whom"
            ) from error
    return found


def _ask_bucket(place: Path) -> None:
    """Raise if a bucket cannot be asked, where a library takes that for nothing being there."""
    remote = cast(Any, place)
    with suppress(FileNotFoundError):
        remote.fs.ls(remote.path.lstrip("/").split("/", 1)[0])


BUCKETS = ("s3", "s3a", "gs", "gcs")
"""Kinds of URLs whose libraries say that nothing is there where they were not answered."""


def check_shared(place: Path, what: str) -> None:
    """Raise if other processes have no such place: what is at memory:// lives in one."""
    if is_remote(place) and cast(Any, place).protocol == "memory":
        raise DsvccaError(
            f"{what} '{place}' lives in the memory of this process, where no worker sees it: use a folder"
        )


@contextmanager
def held(folder: Path, waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold a folder until the context or the process ends; say whether it was free. At a URL nothing is held.

    Where another process holds it, and there is something to do while `waiting`, that is done, and then waited.
    """
    if is_remote(folder):
        yield True
        return
    lock = FileLock(folder / LOCK)
    free = True
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            free = waiting is not None
            if waiting is not None:
                waiting()
                lock.acquire()
    except (NotImplementedError, OSError) as error:  # a file system without locks, or one that is only read
        log.info("'%s' cannot be held: %s", folder, error)
    try:
        yield free
    finally:
        lock.release()


def known_options() -> dict[str, Any]:
    """Return what this process was told of how URLs are reached: what workers have to know as well."""
    return {protocol: dict(options) for protocol, options in fsspec.config.conf.items() if options}


def use_options(options: Mapping[str, Any]) -> None:
    """Take over what another process was told of how URLs are reached."""
    for protocol, own in options.items():
        if fsspec.config.conf.get(protocol) != own:
            fsspec.config.conf[protocol] = {**fsspec.config.conf.get(protocol, {}), **own}


def is_remote(folder: Path) -> bool:
    """Return whether a place is at a URL."""
    return not isinstance(folder, Path)


def lists_nothing(place: Path) -> bool:
    """Return whether what lies at a place cannot be listed."""
    return is_remote(place) and cast(Any, place).protocol in ("http", "https")


@contextmanager
def _reached(place: Path) -> Iterator[None]:
    """Turn whatever the library of a URL raises into an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", str(place)) from error


@contextmanager
def _asked(place: Path) -> Iterator[None]:
    """Say in one sentence that it is not known what lies at a place."""
    try:
        with _reached(place):
            yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise RunError(
            f"'{place}' does not say what it holds ({error}): check that it can be reached, and read by you, then run "
            "the same line again; what was finished is kept"
        ) from error


def exists(path: Path) -> bool:
    """Return whether something is at a place."""
    with _asked(path):
        return path.exists()


def is_folder(path: Path) -> bool:
    """Return whether a folder is at a place."""
    with _asked(path):
        return path.is_dir()


def names(folder: Path) -> list[str]:
    """Return what lies directly in a folder; nothing where there is none."""
    try:
        with _asked(folder):
            return sorted([entry.name for entry in folder.iterdir()] if is_remote(folder) else os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders directly in a folder, in their order."""
    with _asked(folder):
        if is_remote(folder):
            return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.exists() else []
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())


def listing(folder: Path) -> list[tuple[str, int, str]]:
    """Return of all files their name below the folder, size, and what tells versions apart: times, or a tag.

    Links are followed. Hidden files are left out, what desktops leave where somebody looks, but for those of Zarr v2.
    """
    found: list[tuple[str, int, str]] = []
    if is_remote(folder):
        remote = cast(Any, folder)
        start = len(remote.path.rstrip("/")) + 1
        with _asked(folder):
            there = remote.fs.find(remote.path, detail=True)
        for path, about in there.items():
            if not any(map(_is_hidden, (name := path[start:]).split("/"))):
                found.append((name, int(about["size"]), str(about.get("ETag") or about.get("LastModified"))))
        return sorted(found)
    waiting, seen = [""] if exists(folder) else [], set()
    with _asked(folder):
        while waiting:
            below = waiting.pop()
            status = os.stat(folder / below)
            if (status.st_dev, status.st_ino) in seen:  # a link to a folder above it
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    if _is_hidden(entry.name):
                        continue
                    name = os.path.join(below, entry.name)
                    if entry.is_dir():
                        waiting.append(name)
                    else:
                        found.append((name, *_state(entry)))
    return sorted(found)


def _is_hidden(name: str) -> bool:
    """Return whether no array has a file or folder of that name."""
    return name.startswith(".") and name not in (".zarray", ".zattrs", ".zgroup", ".zmetadata")


def _state(entry: os.DirEntry[str]) -> tuple[int, str]:
    """Return size and times of a file; of a link to nothing -1 and "".

    The time of the last change to its inode is one of them: nobody can set it back.
    """
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return -1, ""
        raise
    return status.st_size, f"{status.st_mtime_ns} {status.st_ctime_ns}"


def make(folder: Path) -> None:
    """Make a folder, and those above it."""
    if not is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)


def remove(folder: Path) -> None:
    """Remove a folder and what is in it, of a link the link alone; nothing where there is none."""
    if is_remote(folder):
        remote = cast(Any, folder)
        with suppress(OSError), _reached(folder):
            remote.fs.rm(remote.path, recursive=True)
    elif folder.is_symlink():
        folder.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def read(path: Path, most: int | None = None) -> bytes:
    """Return the content of a file; where it is larger than `most` bytes, that is an error, and no more are read."""
    if is_remote(path):
        with _reached(path):
            return bytes(path.read_bytes()) if most is None else _read_at_most(cast(Any, path), most)
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise OSError(errno.EINVAL, f"{size} bytes are too many", str(path))
        return file.read()


def _read_at_most(path: Any, most: int) -> bytes:
    """Return the content of a file at a URL in one request; that it has more than `most` bytes is an error."""
    try:
        content = bytes(path.fs.cat_file(path.path, end=most + 1))
    except OSError as error:
        if "range" not in str(error).lower():
            raise
        return bytes(path.read_bytes())  # there is no first byte
    if len(content) > most:
        raise OSError(errno.EINVAL, f"more than {most} bytes are too many", str(path))
    return content


def write(path: Path, content: bytes) -> None:
    """Write a file at a URL, which appears whole or not at all."""
    with _reached(path):
        path.write_bytes(content)


def opened(path: Path) -> BinaryIO:
    """Open a file for reading; what is none, a pipe for instance, is an error and never waited for."""
    return open(path, "rb", opener=_open_plain)


def check_plain(path: Path) -> None:
    """Raise if what is there is no file: a pipe would be waited for."""
    with suppress(OSError):  # of what is not there, whoever reads it says so
        if stat.S_ISREG(os.stat(path).st_mode):
            return
    if os.path.lexists(path):
        raise OSError(errno.EINVAL, "not a file", str(path))


def _open_plain(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file", path)
    return descriptor


def tail(path: Path, count: int) -> bytes:
    """Return the last bytes of a file."""
    if is_remote(path):
        remote = cast(Any, path)
        with _reached(path):
            return bytes(remote.fs.cat_file(remote.path, start=-count))
    with opened(path) as file:
        file.seek(-count, os.SEEK_END)
        return file.read(count)


def sync(path: Path) -> None:
    """Bring the content of a file to the disk."""
    if not is_remote(path):
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    if not is_remote(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def move(folder: Path, target: Path) -> bool:
    """Move a finished folder; False if something is there already."""
    if is_remote(folder):
        if exists(target / RECORD):
            return False
        source = cast(Any, folder)
        inside = [name for name, _, _ in listing(folder)]
        for name in sorted(inside, key=lambda name: name == RECORD):  # its record last: then it exists
            with _reached(target):
                source.fs.cp_file((cast(Any, folder) / name).path, (cast(Any, target) / name).path)
        return True
    try:
        os.rename(folder, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        raise
    sync_folder(target.parent)
    return True
