"""Command lines in files of deploy/, read by the parsers of the programs themselves; nothing is started."""

import contextlib
import io
import json
import tomllib
from pathlib import Path

import click
from dask.utils import parse_bytes
from distributed.cli.dask_scheduler import main as dask_scheduler
from distributed.cli.dask_worker import main as dask_worker
from typer.main import get_command

from dsvcca.cli import app
from dsvcca.errors import DsvccaError
from dsvcca.plans.planning import bytes_of

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
RECORD = Path(__file__).parent / "deploy_record.json"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

JUPYTER = {"--ip=0.0.0.0", "--port=8888", "--no-browser"}
"""Options of `jupyter lab` that were seen to be taken; it is not among what the tests need."""

S3 = {"--port", ":7070", "posix", "/objects"}
"""What `versitygw` is told, from its documentation."""


class Refused(Exception):
    """A command line that its program would refuse, or that nobody knows."""


def dask_cuda_worker() -> click.Command:
    """Return a parser with the options of `dask cuda worker`, from the record of them."""
    kinds: dict[str, dict[str, object]] = {"flag": {"is_flag": True}, "integer": {"type": int}, "text": {}}
    options = json.loads(RECORD.read_text())["options"]
    own = [click.Option([name], **kinds[kind]) for name, kind in options.items()]
    return click.Command("dask cuda worker", params=[click.Argument(["scheduler"], required=False), *own])


def dsvcca(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the subcommand of a command line, and what it is told."""
    group = get_command(app)
    name = words[0] if words else ""
    if name.startswith("-"):
        return group, words
    if name not in group.commands:
        raise Refused(f"dsvcca has no command {name!r}")
    return group.commands[name], words[1:]


def parse(words: list[str]) -> tuple[str, dict[str, object]]:
    """Return which program a command line starts, and what it understands of it.

    Raises
    ------
    Refused
        If the program would refuse it.
    """
    words = [str(word) for word in words]
    match words:
        case ["dask", "scheduler", *rest]:
            return "scheduler", _parsed(dask_scheduler, rest)
        case ["dask", "worker", *rest]:
            return "worker", _parsed(dask_worker, rest)
        case ["dask", "cuda", "worker", *rest]:
            return "cuda worker", _parsed(dask_cuda_worker(), rest)
        case ["dsvcca", "--verbose", *rest]:
            return parse(["dsvcca", *rest])
        case ["dsvcca", "submit", *rest]:
            found = _parsed(*dsvcca(["submit", *rest]))
            return "dsvcca", found | {"sent": parse(["dsvcca", *found["line"]])}
        case ["dsvcca", *rest]:
            return "dsvcca", _checked(_parsed(*dsvcca(rest)))
        case ["jupyter", "lab", *rest] if set(rest) <= JUPYTER:
            return "jupyter", {}
        case ["python", path] if path == "/opt/dsvcca/health.py":
            return "health", {}
        case _ if words and set(words) <= S3:
            return "s3", {}
    raise Refused(f"{' '.join(words)!r} is no command line that is known")


def _parsed(command: click.Command, words: list[str]) -> dict[str, object]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            # `dask worker` takes an option that it does not know for the address of the scheduler: here it is refused
            return dict(command.make_context(command.name, list(words), ignore_unknown_options=False).params)
    except Exception as error:  # whichever click it is that the program brings
        if type(error).__name__ == "Exit" and getattr(error, "exit_code", 1) == 0:  # --help
            return {}
        if hasattr(error, "format_message"):
            raise Refused(f"{command.name}: {error.format_message()}") from error
        raise


def _checked(found: dict[str, object]) -> dict[str, object]:
    try:
        return found | {"memory": bytes_of(found["memory"])} if found.get("memory") else found
    except DsvccaError as error:
        raise Refused(f"--memory: {error}") from error


def memory_of(text: object) -> int:
    """Return the bytes of Dask's --memory-limit.

    Raises
    ------
    Refused
        If it is none.
    """
    try:
        return int(parse_bytes(text))
    except (ValueError, AttributeError) as error:
        raise Refused(f"--memory-limit: {error}") from error


DOCKER = {"k": 1024, "m": 1024**2, "g": 1024**3}
KUBERNETES = {"Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4}


def size_of(text: object, units: dict[str, int]) -> int:
    """Return the bytes of a size as Docker or Kubernetes writes it.

    Raises
    ------
    Refused
        If it is none.
    """
    unit = str(text).lstrip("0123456789")
    number = str(text).removesuffix(unit)
    if not number or unit not in units:
        raise Refused(f"{text!r} is no size: write a whole number and one of {', '.join(units)}")
    return int(number) * units[unit]
