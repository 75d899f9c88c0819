"""`start`: a plan carried out in the background, so that a notebook stays usable meanwhile."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from contextvars import copy_context
from weakref import WeakSet

import xarray as xr
from distributed import Client

from dsvcca.engine import cluster
from dsvcca.engine.compare import check_plan, compare
from dsvcca.errors import DsvccaError
from dsvcca.plans.plan import Plan
from dsvcca.progress import WATCH, Progress, Watch
from dsvcca.results.opening import as_they_are
from dsvcca.storage import folders

_begun: WeakSet[Run] = WeakSet()
"""Runs of this process."""


class Run:
    """A plan that is carried out in the background; `start` makes one.

    Attributes
    ----------
    plan : Plan
    out : path
        Where results are.
    """

    def __init__(
        self,
        plan: Plan,
        out: str | os.PathLike[str],
        client: Client | None,
        workspace: str | os.PathLike[str] | None,
    ) -> None:
        self.plan = plan
        self.out, workspace = _here(out), workspace and _here(workspace)
        self._watch = Watch()
        self._found: xr.Dataset | None = None
        self._error: BaseException | None = None
        self._done = threading.Event()  # and not `Thread.join`: one that is interrupted takes its thread for ended
        context = copy_context()
        context.run(WATCH.set, self._watch)
        self._thread = threading.Thread(
            target=context.run, args=(self._work, client, workspace), name="dsvcca-run", daemon=True
        )
        self._thread.start()

    def _work(self, client: Client | None, workspace: str | os.PathLike[str] | None) -> None:
        try:
            self._found = compare(self.plan, self.out, client=client, workspace=workspace)
        except BaseException as error:
            self._error = error
        finally:
            self._watch.end()
            self._done.set()

    @property
    def progress(self) -> Progress:
        """How far it is: stage, tasks done and failed, seconds."""
        return self._watch.progress

    @property
    def state(self) -> str:
        """One of "running", "finished", "stopped" and "failed"."""
        if not self._done.is_set():
            return "running"
        if self._error is None:
            return "finished"
        return "stopped" if self._watch.stopping else "failed"

    def results(self) -> xr.Dataset:
        """Return what is there so far: NaN, and a rank of 0, where nothing is yet. Call it again to see more.

        Raises
        ------
        DsvccaError
            If nothing is there to open yet.
        """
        try:
            return as_they_are(self.out)[0]
        except DsvccaError as error:
            if self.state != "running":
                raise
            raise DsvccaError(f"nothing is there to open yet ({self.progress}): ask again later") from error

    def stop(self) -> None:
        """Stop, and wait until that is done; what was finished is kept, and the same plan goes on from there.

        Workers finish the tasks that they have begun.
        """
        self._watch.stop()
        self._done.wait()

    def wait(self, timeout: float | None = None) -> xr.Dataset:
        """Return the results once all of them are there.

        An interrupt from the keyboard, or of a notebook's kernel, ends the waiting, and not the run: `stop` does that.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most.

        Raises
        ------
        DsvccaError
            What `compare` raises; if the run was stopped; if it is not done in time.
        """
        if not self._done.wait(timeout):
            raise DsvccaError(f"the run is not done after {timeout} s ({self.progress}): wait longer, or stop() it")
        if self._error is not None and self._watch.stopping:
            raise DsvccaError(
                f"the run was stopped: start(plan, {str(self.out)!r}) goes on from there, results() shows what is there"
            )
        if self._error is not None:
            raise self._error
        assert self._found is not None
        return self._found

    def __repr__(self) -> str:
        said = (
            f": {self._error}" if self.state == "failed" else f" ({self.progress})" if self.state == "running" else ""
        )
        out = str(self.out)
        with suppress(OSError):  # the current folder is gone
            out = out.removeprefix(f"{os.getcwd()}{os.sep}")
        return f"<dsvcca.Run into {out!r}, {self.state}{said}>"


def _here(path: str | os.PathLike[str]) -> str:
    """Return a path that stays the same where the process goes to another folder."""
    return str(folders.reach(path, "results"))


def start(
    plan: Plan,
    out: str | os.PathLike[str],
    *,
    client: Client | None = None,
    workspace: str | os.PathLike[str] | None = None,
) -> Run:
    """Do in the background what `compare` does, and return at once.

    Parameters
    ----------
    plan, out, client, workspace
        As of `compare`. Without a client a thread of this process does the work.

    Returns
    -------
    Run
        ``run.progress`` says how far it is, ``run.results()`` opens what is there so far, ``run.wait()`` waits for all
        of it, ``run.stop()`` ends it. It ends with this process as well; what was finished is kept.

    Raises
    ------
    DsvccaError
        If the plan or the client is none, or another run into the same folder goes on. What `compare` raises later
        comes from ``run.wait()``.

    Examples
    --------
    ``run = dsvcca.start(plan, "results.zarr", client=client)``, and in the next cell ``run``
    """
    check_plan(plan)
    if client is not None:
        cluster.check_client(client)
    out = _here(out)
    for other in list(_begun):
        if str(other.out) == str(out) and other.state == "running":
            raise DsvccaError(f"a run into {str(out)!r} goes on ({other.progress}): wait() for it, or stop() it")
    run = Run(plan, out, client, workspace)
    _begun.add(run)
    return run
