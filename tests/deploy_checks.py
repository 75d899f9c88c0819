"""What must hold of files in deploy/: each check returns what is wrong, in sentences that begin with the file.

Images are not built and no cluster is asked here. Every word in these files is held against whoever will read it: the
schemas of Compose, Kubernetes and the Dask operator, in which unknown fields are refused, the parsers of command lines,
and the other files that a file names.
"""

import fnmatch
import hashlib
import json
import os
import re
import subprocess
import sysconfig
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy_commands import DOCKER, RECORD, VERSION, Refused, memory_of, parse, size_of

DIGEST = r"(@sha256:[0-9a-f]{64})?"
PINNED = re.compile(
    r"(python:3\.12\.\d+-slim-bookworm|nvidia/cuda:12\.\d+\.\d+-base-ubuntu24\.04|versity/versitygw:v\d+\.\d+\.\d+)"
    + DIGEST
)
"""Images of others, with a version to its third place or a digest: nothing that becomes another one next week."""

OURS = {f"dsvcca:{VERSION}", f"dsvcca-gpu:{VERSION}"}

SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD")


class _Loader(yaml.CSafeLoader):
    """Reads YAML, and refuses what says a thing twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := {key for key in keys if isinstance(key, str) and keys.count(key) > 1} - self._merged(node):
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {', '.join(sorted(twice))} is said twice")
        return super().construct_mapping(node, deep)

    def _merged(self, node: Any) -> set[str]:
        """Return the keys of a mapping that were merged into it before: they may be there twice."""
        return getattr(node, "merged", set())

    def flatten_mapping(self, node: Any) -> None:
        own = [key.value for key, _ in node.value]
        super().flatten_mapping(node)
        after = [key.value for key, _ in node.value]
        if "<<" in own:
            node.merged = {key for key in after if isinstance(key, str) and own.count(key) <= 1}


def read_yaml(path: Path) -> list[Any]:
    """Return the documents of a file; raises yaml.YAMLError where it says a thing twice."""
    return list(yaml.load_all(path.read_text(), _Loader))


def strict(schema: Any) -> Any:
    """Return a schema that refuses what it does not list, wherever it lists anything and does not say otherwise."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: {name: strict(one) for name, one in value.items()} if key == "properties" else strict(value)
        for key, value in schema.items()
    }
    if "properties" in found and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def against(schema: Any, instance: Any) -> Iterator[str]:
    """Yield what a schema finds wrong, and where."""
    validator = jsonschema.validators.validator_for(schema)(schema)
    for error in validator.iter_errors(instance):
        while error.context:  # of several forms the one that comes nearest
            error = jsonschema.exceptions.best_match(error.context)
        yield f"{'.'.join(map(str, error.absolute_path)) or 'the file'}: {error.message}"


# Dockerfiles and constraints


def read_dockerfile(path: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile, and what follows each."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def requirements_of(instructions: list[tuple[str, str]]) -> list[str]:
    """Return what the pip of a Dockerfile installs."""
    runs = [rest.split() for name, rest in instructions if name == "RUN" and rest.startswith("pip install")]
    return [
        word.strip('"') for run in runs for word in run[2:] if not word.startswith(("--", "/opt/dsvcca/constraints"))
    ]


def constraints(path: Path) -> dict[str, str]:
    """Return the version of each package; raises ValueError where a line is no such thing."""
    found: dict[str, str] = {}
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            continue
        name, equals, version = line.partition("==")
        if not equals or not version or canonicalize_name(name) in found:
            raise ValueError(f"{line!r} is no package with a version, or there twice")
        found[canonicalize_name(name)] = version
    return found


def hadolint(path: Path) -> Iterator[str]:
    """Yield what hadolint says."""
    program = Path(sysconfig.get_path("scripts"), "hadolint")
    said = subprocess.run(
        [program, "--format", "json", "--no-color", path], capture_output=True, text=True, check=False
    )
    if not said.stdout:
        raise RuntimeError(said.stderr)
    for one in json.loads(said.stdout):
        yield f"line {one['line']}: {one['code']} {one['message']}"


def check_dockerfile(path: Path) -> list[str]:
    """Return what is wrong with a Dockerfile."""
    said = list(hadolint(path))
    try:
        said += _dockerfile(path)
    except (ValueError, IndexError) as error:
        said.append(f"cannot be read: {error}")
    return [f"{path.name}: {one}" for one in said]


def _dockerfile(path: Path) -> Iterator[str]:
    instructions = read_dockerfile(path)
    root = path.parent.parent
    first = dict(reversed(instructions))
    for rest in (rest for name, rest in instructions if name == "FROM"):
        if not PINNED.fullmatch(rest):
            yield f"FROM {rest}: no image that is known, with a version to its third place"
    python = re.search(r"python:?(\d+\.\d+)", path.read_text().partition("\nFROM ")[2])
    if python is None or python[1] != PYTHON:
        yield f"the Python of both images is {PYTHON}"
    sent = [line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for rest in (rest for name, rest in instructions if name == "COPY"):
        if rest not in COPIES:
            yield f"COPY {rest}: is none of {'; '.join(COPIES)}"
        for source in (word for word in rest.split()[:-1] if not word.startswith("--")):
            if not (root / source).exists():
                yield f"COPY {source}: there is no such file"
            elif not any(source == one or source.startswith(f"{one}/") for one in sent):
                yield f"COPY {source}: .dockerignore keeps it back"
    known = constraints(path.parent / "constraints.txt")
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    if not (wanted := requirements_of(instructions)):
        yield "pip installs nothing"
    for one in wanted:
        name, _, rest = one.partition("[")
        if name == "/opt/dsvcca/source":
            for extra in rest.rstrip("]").split(","):
                if extra not in extras or extra in ("torch", "demo", "notebooks", "dev"):
                    yield f"pip install {one}: no extra {extra!r}, or one that brings PyTorch"
        elif "[" in one and one not in ("cupy-cuda12x[ctk]", "dask-cuda[cu12]"):
            yield f"pip install {one}: no extra that is known"
        elif canonicalize_name(name) not in known:
            yield f"pip install {one}: constraints.txt does not pin {name}"
    if "--constraint /opt/dsvcca/constraints.txt" not in " ".join(rest for _, rest in instructions):
        yield "pip is not held to constraints.txt"
    for step in (step.strip() for name, rest in instructions if name == "RUN" for step in rest.split("&&")):
        if step not in STEPS and not step.startswith(PIP):
            yield f"RUN {step}: is no step that is known"
    for word in (word for name, rest in instructions if name == "ENV" for word in rest.split()):
        if word not in VARIABLES:
            yield f"ENV {word}: is no variable that is known"
    yield from _told(first)


VARIABLES = {"PYTHONUNBUFFERED=1", "PATH=/opt/venv/bin:$PATH", "CUPY_CACHE_DIR=/tmp/cupy"}

COPIES = (
    "deploy/constraints.txt /opt/dsvcca/",
    "pyproject.toml README.md LICENSE /opt/dsvcca/source/",
    "dsvcca /opt/dsvcca/source/dsvcca",
    "deploy/dask.yaml /etc/dask/dsvcca.yaml",
    "deploy/health.py /opt/dsvcca/",
)

PIP = "pip install --no-cache-dir --constraint /opt/dsvcca/constraints.txt "

STEPS = {
    "apt-get update",
    "apt-get install --yes --no-install-recommends tini",
    "apt-get install --yes --no-install-recommends python3.12 python3.12-venv tini",
    "rm -rf /var/lib/apt/lists/*",
    "python3.12 -m venv /opt/venv",
    'useradd --uid "${UID}" --non-unique --user-group --no-log-init --create-home dsvcca',
    "install --directory --owner dsvcca --group dsvcca /data",
}
"""Steps of images, written down once more: nothing else looks at what a shell is told."""


def _told(first: dict[str, str]) -> Iterator[str]:
    """Yield what is wrong with what an image says of itself."""
    if first.get("USER") != "${UID}" or not re.fullmatch(r"UID=[1-9]\d*", first.get("ARG", "")):
        yield "USER is ${UID}, and ARG UID a number that is not 0"
    if first.get("WORKDIR") != "/data":
        yield "WORKDIR is /data"
    if first.get("ENTRYPOINT") != '["tini", "-g", "--"]':
        yield "ENTRYPOINT is tini, or nothing ends at SIGTERM"
    check = first.get("HEALTHCHECK", "").partition("CMD ")[2]
    for name, words in (("CMD", first.get("CMD", "")), ("HEALTHCHECK", check)):
        try:
            parse(json.loads(words))
        except (json.JSONDecodeError, Refused) as error:
            yield f"{name} {words}: {error}"


PYTHON = "3.12"


def uid_of(deploy: Path) -> int:
    """Return the user of the image."""
    return int(dict(read_dockerfile(deploy / "Dockerfile"))["ARG"].partition("=")[2])


def check_constraints(path: Path) -> list[str]:
    """Return what is wrong with the versions of the images."""
    try:
        known = constraints(path)
    except ValueError as error:
        return [f"{path.name}: {error}"]
    said = []
    project = tomllib.loads((path.parent.parent / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(one for name in ("s3", "plot", "gpu") for one in project["optional-dependencies"][name]),
    ]
    for requirement in map(Requirement, wanted):
        version = known.get(canonicalize_name(requirement.name))
        if version is None:
            said.append(f"{path.name}: {requirement.name} is not there")
        elif not requirement.specifier.contains(version):
            said.append(f"{path.name}: {requirement.name} {version} is not {requirement.specifier}")
    if "torch" in known:
        said.append(f"{path.name}: torch is there: activations are captured elsewhere")
    record = json.loads(RECORD.read_text())
    if known.get("dask-cuda") != record["dask-cuda"]:
        said.append(f"{path.name}: dask-cuda is not {record['dask-cuda']}, whose options are recorded")
    if hashlib.sha256(path.read_bytes()).hexdigest() != record["constraints"]:
        said.append(f"{path.name}: was changed by hand, so that it may not fit together: make deploy-record")
    if known.get("dask") != known.get("distributed"):
        said.append(f"{path.name}: dask and distributed are of different releases")
    return said


# Compose


@cache
def compose_schema() -> Any:
    """Return the schema of the Compose specification, which refuses what it does not list as it is."""
    source = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    return json.loads(source.read_text())


def check_compose(path: Path) -> list[str]:
    """Return what is wrong with a Compose file."""
    try:
        (content,) = read_yaml(path)
    except (yaml.YAMLError, ValueError) as error:
        return [f"{path.name}: is no YAML: {error}"]
    said = list(against(compose_schema(), content))
    if not said:
        for name, service in content["services"].items():
            said += [f"services.{name}: {one}" for one in _service(path, content, name, service)]
        said += _together(path, content)
    return [f"{path.name}: {one}" for one in said]


def _default(text: str) -> str:
    """Return a text as it is where the environment says nothing."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def _service(path: Path, content: Any, name: str, service: Any) -> Iterator[str]:
    image = service.get("image", "")
    if image.startswith("dsvcca"):
        if image not in OURS:
            yield f"image {image!r} is none of {', '.join(sorted(OURS))}"
        if service.get("pull_policy") != "never":
            yield f"image {image!r} would be looked for in public: pull_policy is never"
    elif not PINNED.fullmatch(image):
        yield f"image {image!r}: none that is known, with a version to its third place"
    for port in service.get("ports", ()):
        if not re.fullmatch(r"127\.0\.0\.1:(\d+):\1", str(port)):
            yield f"port {port!r} is open to others: write 127.0.0.1:PORT:PORT"
    for volume in service.get("volumes", ()):
        source, target = _default(volume).split(":")
        if target != ("/data" if image.startswith("dsvcca") else "/objects"):
            yield f"volume {volume!r}: stores lie at /data, objects at /objects"
        if source.startswith((".", "/")):
            if not (path.parent / source).exists():
                yield f"volume {volume!r}: there is no {source}"
        elif source not in content.get("volumes", {}):
            yield f"volume {volume!r}: there is no volume {source!r}"
    for other in service.get("depends_on", {}):
        if other not in content["services"]:
            yield f"depends_on: there is no service {other!r}"
    if not re.fullmatch(r"unless-stopped|on-failure:\d+", service.get("restart", "")):
        yield f"restart {service.get('restart')!r}: unless-stopped, or on-failure:10"
    for key, value in service.get("environment", {}).items():
        if SECRET.search(key) and value and not re.fullmatch(r"\$\{\w+(:-)?\}", str(value)):
            yield f"environment.{key}: a secret is in the file"
    told = (path.parent.parent / "docs" / "containers.md").read_text()
    for key in service.get("environment", {}):
        if key not in S3_ENVIRONMENT and f"`{key}`" not in told:
            yield f"environment.{key} is a word that docs/containers.md does not know"
    for key, wanted in SPELLED.items():
        if service.get(key, wanted) != wanted:
            yield f"{key} {service[key]!r} is not {wanted!r}"
    try:
        yield from _command(content, name, service)
    except Refused as error:
        yield f"command: {error}"


SPELLED = {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
"""Words that the schema does not spell."""

S3_ENVIRONMENT = {"ROOT_ACCESS_KEY", "ROOT_SECRET_KEY"}


def _command(content: Any, name: str, service: Any) -> Iterator[str]:
    words = [_default(str(word)) for word in service.get("command", ())]
    program, found = parse(words)
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    if "memory" not in limits:
        yield "deploy.resources.limits.memory is not said"
        return
    memory = size_of(limits["memory"], DOCKER)
    devices = service["deploy"]["resources"].get("reservations", {}).get("devices", [])
    gpus = sum(one["count"] for one in devices if (one.get("driver"), one.get("capabilities")) == ("nvidia", ["gpu"]))
    if program in ("worker", "cuda worker"):
        if found["nthreads"] != 1:
            yield f"--nthreads={found['nthreads']}: a task fills a core, so 1"
        if memory_of(found["memory_limit"]) * max(gpus, 1) != memory:
            yield f"--memory-limit={found['memory_limit']} is not that of the container, {limits['memory']}"
        if (found["resources"] or "") != ("GPU=1" if gpus else ""):
            yield f"--resources={found['resources']} and {gpus} GPUs do not fit"
        if (program == "cuda worker") != (gpus > 0) or ("-gpu:" in service["image"]) != (gpus > 0):
            yield "`dask cuda worker`, its image and the GPU of a container go together"
        if found["local_directory"] != "/tmp":
            yield "--local-directory is /tmp"
    if program == "dsvcca" and int(str(found["memory"])) != memory:
        yield "--memory is not that of a worker"
    for path in (str(found[key]) for key in ("store", "out") if key in found):
        if not path.startswith("/data/"):
            yield f"{path} does not lie below /data"
    for address in {found.get("scheduler"), service.get("environment", {}).get("DASK_SCHEDULER_ADDRESS")} - {None}:
        _, scheduler = parse(content["services"].get("scheduler", {}).get("command", ()))
        if address != f"tcp://scheduler:{scheduler.get('port')}":
            yield f"there is no scheduler at {address!r}"
    serves = {str(found.get(key, "")).lstrip(":") for key in ("port", "dashboard_address")} | {"8888"} | set(words)
    for port in service.get("ports", ()):
        if str(port).rpartition(":")[2] not in {one.lstrip(":") for one in serves}:
            yield f"port {port!r}: nothing serves there"


def _together(path: Path, content: Any) -> Iterator[str]:
    """Yield what of a file does not fit other files."""
    page = path.parent.parent / "docs" / "containers.md"
    told = page.read_text()
    for name in sorted(set(re.findall(r"\$\{(\w+)", path.read_text()))):
        if name not in told:
            yield f"${{{name}}} is a word that docs/containers.md does not know"
    mounts = [str(volume) for one in content["services"].values() for volume in one.get("volumes", ())]
    for name in content.get("volumes", {}):
        if not any(_default(mount).startswith(f"{name}:") for mount in mounts):
            yield f"volumes.{name} is used by nobody"
    for profile in {one for service in content["services"].values() for one in service.get("profiles", ())}:
        if f"--profile {profile}" not in told:
            yield f"profile {profile!r} is one that docs/containers.md does not know"


# All of them


def checks(deploy: Path) -> dict[str, Any]:
    """Return what checks each file of deploy/, by its path there."""
    from tests.deploy_dask import check_dask
    from tests.deploy_kubernetes import check_kubernetes
    from tests.deploy_scripts import check_capture, check_sbatch, check_slurm, check_tls

    known = {"Dockerfile": check_dockerfile, "Dockerfile.gpu": check_dockerfile, "compose.yaml": check_compose}
    known |= {"constraints.txt": check_constraints, "health.py": check_health}
    known |= {"dask.yaml": check_dask, "tls.sh": check_tls, "slurm/dsvcca.yaml": check_slurm}
    known |= {"slurm/dsvcca-gpu.yaml": check_slurm}
    known |= {"slurm/capture.sbatch": check_sbatch, "slurm/capture.py": check_capture}
    return known | {f"kubernetes/{name}": check_kubernetes for name in MANIFESTS}


MANIFESTS = ("storage.yaml", "config.yaml", "cluster.yaml", "gpu-workers.yaml", "driver.yaml", "daskjob.yaml")


def check_health(path: Path) -> list[str]:
    """Return what is wrong with the check of health, which tests run as well."""
    try:
        compile(path.read_text(), str(path), "exec")
    except SyntaxError as error:
        return [f"{path.name}: {error}"]
    return []


def unknown_files(deploy: Path) -> list[str]:
    """Return the files that no check knows."""
    known = checks(deploy)
    found = [str(path.relative_to(deploy)) for path in deploy.rglob("*") if path.is_file()]
    return sorted(
        one for one in found if one not in known and not fnmatch.fnmatch(one, "*__pycache__*") and one != ".env"
    )


def check_all(deploy: Path) -> list[str]:
    """Return everything that is wrong with a folder."""
    said = [f"{name}: no check knows this file" for name in unknown_files(deploy)]
    for name, check in checks(deploy).items():
        path = deploy / name
        said += check(path) if os.path.exists(path) else [f"{name}: is missing"]
    return said
