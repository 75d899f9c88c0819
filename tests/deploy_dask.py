"""What must hold of deploy/dask.yaml: every word is one of Dask's, and has a reason."""

import importlib.resources
import re
from pathlib import Path

import dask
import jsonschema
import yaml
from dask.utils import parse_timedelta

from dsvcca.clusters.settings import WORKER_ENVIRONMENT
from dsvcca.errors import nearest

ENVIRONMENT = "distributed.nanny.pre-spawn-environ"


def shipped(kind):
    """Return what Dask ships of a kind, "" for defaults and "-schema", both packages in one."""
    packages = {"dask": {}, "distributed": {}}
    for name in packages:
        packages[name] = yaml.safe_load(importlib.resources.files(name).joinpath(f"{name}{kind}.yaml").read_text())
    return packages


def leaves(settings, above=""):
    """Return settings by their whole names, "distributed.worker.memory.pause"."""
    found = {}
    for name, value in settings.items():
        inner = isinstance(value, dict) and value
        found |= leaves(value, f"{above}{name}.") if inner else {f"{above}{name}": value}
    return found


def with_tls(text):
    """Return the file with its lines for TLS, as docs/hosts.md has them switched on."""
    return re.sub(r"(?m)^#\|", "", text)


def findings(text):
    """Return what is wrong with a file of Dask's settings, one sentence each."""
    settings = yaml.safe_load(text)
    defaults = {}
    for one in shipped("").values():
        defaults = dask.config.merge(defaults, one)
    known = leaves(defaults)
    found = []
    for name, value in leaves(settings).items():
        if name.startswith(f"{ENVIRONMENT}."):
            variable = name.removeprefix(f"{ENVIRONMENT}.")
            if variable not in WORKER_ENVIRONMENT:
                found.append(f"{ENVIRONMENT} sets {variable!r}: {nearest(variable, WORKER_ENVIRONMENT)}")
        elif name not in known:
            found.append(f"Dask knows no {name!r}: {nearest(name, known)}")
        elif (is_time(known[name]) or (name.endswith("timeout") and value is not None)) and not is_time(value):
            found.append(f"{name} is {value!r}, which is no time")
    for package, schema in shipped("-schema").items():
        checking = jsonschema.Draft7Validator(schema)
        for error in checking.iter_errors({package: settings[package]} if package in settings else {}):
            found.append(f"{'.'.join(map(str, error.path))}: {error.message}")
    return found + [f"no comment says why {line.strip()!r}" for line in unexplained(text)]


def is_time(value):
    try:
        parse_timedelta(value)
    except (ValueError, TypeError, KeyError):
        return False
    return isinstance(value, str)


def unexplained(text):
    """Return the lines with a value that no comment stands above."""
    lines = text.splitlines()
    return [
        line
        for before, line in zip(["", *lines], lines, strict=False)
        if re.match(r"\s*[\w.-]+:\s*[^\s#]", line) and not before.lstrip().startswith("#")
    ]


def check_dask(path: Path) -> list[str]:
    """Return what is wrong with the file, as it is and with its lines for TLS switched on."""
    text = path.read_text()
    try:
        return [f"{path.name}: {one}" for one in dict.fromkeys(findings(text) + findings(with_tls(text)))]
    except yaml.YAMLError as error:
        return [f"{path.name}: {error}"]
