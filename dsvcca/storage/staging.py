"""Objects made where nobody sees them, and published whole."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import socket
import stat
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from dsvcca.errors import DsvccaError
from dsvcca.storage import folders

STAGING = ".uncommitted"
"""Folder of a store in which objects are made; they exist once they are renamed out of it."""


def stage(root: Path) -> Path:
    """Return a new folder below `root` in which an object can be made unseen, after sweeping dead ones."""
    folder = root / STAGING / f"{_machine()}-{os.getpid()}-{secrets.token_hex(6)}"
    if not folders.is_remote(root) and not root.is_dir():  # or what is removed under a run would be half there again
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(root))
    for _ in range(100):
        try:
            folders.make(folder)
            sweep(folder.parent)
            return folder
        except FileNotFoundError:
            pass  # another process removed the empty staging folder in between
        except FileExistsError:  # or while it was looked at whether what is there is a folder
            with suppress(FileNotFoundError):  # asked once, since it may go between two questions
                if not stat.S_ISDIR(folder.parent.stat().st_mode):
                    raise
    raise DsvccaError(f"'{folder.parent}' vanishes as often as it is made: is something cleaning '{root}'?")


def sweep(staging: Path) -> None:
    """Remove what processes of this machine left uncommitted when they ended."""
    mine = f"{_machine()}-"
    for name in folders.names(staging):
        pid = name.removeprefix(mine).split("-")[0]
        if name.startswith(mine) and pid.isdigit() and not _alive(int(pid)):
            folders.remove(staging / name)


def forgotten(root: Path, old: float) -> list[str]:
    """Return what processes left uncommitted that ended: those of this machine, and of others what is so many seconds
    old.

    At a URL it is not known how old a folder is, and nothing is forgotten.
    """
    mine, found = f"{_machine()}-", []
    for name in [] if folders.is_remote(root) else folders.names(root / STAGING):
        pid = name.removeprefix(mine).split("-")[0]
        if name.startswith(mine) and pid.isdigit():
            if not _alive(int(pid)):
                found.append(name)
        elif time.time() - (root / STAGING / name).stat().st_mtime > old:
            found.append(name)
    return found


def try_out(root: Path) -> None:
    """Write a file where objects of `root` are made, and remove it; raise what comes of it where that cannot be."""
    folder = stage(root)
    try:
        folders.write(folder / "try", secrets.token_bytes(16))
    finally:
        discard(folder)


def publish(folder: Path, target: Path) -> bool:
    """Move a finished, sealed `folder` to `target` in one step; False if another process was there first."""
    moved = folders.move(folder, target)
    if moved:
        discard(folder)
    return moved


def withdraw(root: Path, name: str) -> None:
    """Remove what was published below `root`, which whoever is killed meanwhile leaves whole, or where it is swept."""
    if folders.is_remote(root):  # its record last: what is left without one is none
        inside = [one for one, _, _ in folders.listing(root / name)]
        for one in sorted(inside, key=lambda one: one == folders.RECORD):
            folders.remove(root / name / one)
        return
    folder = stage(root)
    try:
        os.rename(root / name, folder / name)
        folders.sync_folder(root)
    finally:
        discard(folder)


def discard(folder: Path) -> None:
    """Remove a staging folder, and the folder of all staging once it is empty."""
    folders.remove(folder)
    if not folders.is_remote(folder):
        with suppress(OSError):  # others are still writing
            folder.parent.rmdir()


@cache
def _machine() -> str:
    """Return what tells processes that see each other's ids from all others: this start of a host, a container."""
    said = [socket.gethostname()]
    with suppress(OSError):
        said.append(os.readlink("/proc/self/ns/pid"))
    with suppress(OSError):  # which no other host has, whatever its name
        said.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    return hashlib.sha256(" ".join(said).encode()).hexdigest()[:16]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
