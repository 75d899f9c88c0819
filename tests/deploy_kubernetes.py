"""What must hold of Kubernetes manifests in deploy/.

What the Dask operator reads is held against the schemas of its own release. What it would make of that (deployments, a
service, the pod of a run) is made by its own functions, and held against those of Kubernetes like everything else.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import distributed
import kubernetes_validate
import yaml
from dask_kubernetes.operator.controller import controller as operator
from dask_kubernetes.operator.validation import validate_cluster_name

from tests.deploy_checks import MANIFESTS, against, read_yaml, strict, uid_of
from tests.deploy_commands import KUBERNETES, VERSION, Refused, memory_of, parse, size_of

RELEASE = "1.31"
"""Of Kubernetes: from here on what a Job does about failed pods (podFailurePolicy) is there to stay."""

OPERATOR = "kubernetes.dask.org/v1"

BY_HAND = {
    "dsvcca-tls": {"ca.pem", *(f"{who}.{kind}" for who in ("scheduler", "worker", "client") for kind in ("pem", "key"))}
}
"""Secrets that docs/kubernetes.md makes, and what is in them."""

GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class Made:
    """An object as Kubernetes gets it: ours, or one that the operator makes of ours."""

    file: str
    where: str
    content: Any


@cache
def schema_of(kind: str) -> Any:
    """Return the schema of an object of the operator, which refuses what it does not list."""
    folder = files("dask_kubernetes") / "operator/deployment/helm/dask-kubernetes-operator/crds"
    content = yaml.load((folder / f"{kind.lower()}.yaml").read_text(), yaml.CSafeLoader)
    (version,) = content["spec"]["versions"]
    assert (content["spec"]["names"]["kind"], f"{content['spec']['group']}/{version['name']}") == (kind, OPERATOR)
    found = strict(version["schema"]["openAPIV3Schema"])
    found["properties"] |= {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
    }
    found["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return found


def core(content: Any) -> Iterator[str]:
    """Yield what Kubernetes would not take of an object of its own."""
    yield from _core(json.dumps(content, sort_keys=True, default=str))


@cache
def _core(text: str) -> tuple[str, ...]:
    """Return it of an object as JSON; the same ones come again and again."""
    content = json.loads(text)
    try:
        kubernetes_validate.validate(content, RELEASE, strict=True)
    except kubernetes_validate.ValidationError as error:
        return (f"{'.'.join(map(str, error.path))}: {error.message}",)
    except (kubernetes_validate.SchemaNotFoundError, KeyError) as error:
        return (f"{content.get('apiVersion')} {content.get('kind')} is no kind of object that is known ({error!r})",)
    return ()


def shape(content: Any) -> Iterator[str]:
    """Yield what is wrong with the fields of one object."""
    if not isinstance(content, dict) or content.get("apiVersion") != OPERATOR:
        yield from core(content if isinstance(content, dict) else {})
        return
    if content.get("kind") not in ("DaskCluster", "DaskWorkerGroup", "DaskJob"):
        yield f"the operator has no {content.get('kind')!r}, or one that is not wanted here"
        return
    yield from against(schema_of(content["kind"]), content)
    yield from core({"apiVersion": "v1", "kind": "ConfigMap", "metadata": content.get("metadata")})
    try:
        validate_cluster_name(content["metadata"]["name"])
    except Exception as error:  # its own, of which there is no common kind
        yield f"metadata.name: {getattr(error, 'message', error)}"


def made_by_operator(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield what the operator makes of an object, and where it is told to."""
    name, spec = content["metadata"]["name"], content["spec"]
    if content["kind"] == "DaskJob":
        made = operator.build_job_pod_spec(name, name, "default", spec["job"]["spec"], {}, {})
        yield "job", made
        own = spec["cluster"]["spec"]
        for where, one in made_by_operator(operator.build_cluster_spec(name, own["worker"], own["scheduler"], {}, {})):
            yield f"cluster.{where}", one
    elif content["kind"] == "DaskCluster":
        scheduler = spec["scheduler"]
        yield "scheduler", operator.build_scheduler_deployment_spec(name, scheduler["spec"], {}, {})
        yield "scheduler", operator.build_scheduler_service_spec(name, scheduler["service"], {}, {})
        group = operator.build_default_worker_group_spec(name, spec["worker"], {}, {})
        yield from made_by_operator(group)
    else:
        group, cluster = content["metadata"]["name"], spec["cluster"]
        yield (
            "worker",
            operator.build_worker_deployment_spec(group, "default", cluster, "0", spec["worker"]["spec"], {}, {}),
        )


def check_kubernetes(path: Path) -> list[str]:
    """Return what is wrong with a manifest, alone and beside the others."""
    objects: list[Made] = []
    said: list[str] = []
    for name in MANIFESTS:
        other = path.parent / name
        try:
            for content in read_yaml(other):
                wrong = list(shape(content))
                said += [f"{name}: {one}" for one in wrong]
                if not wrong:
                    objects.append(Made(name, content["kind"], content))
        except (OSError, yaml.YAMLError) as error:
            said.append(f"{name}: cannot be read: {error}")
    if not any(one.startswith(f"{path.name}: ") for one in said):
        made = []
        for one in objects:
            made.append(one)
            if one.content["apiVersion"] == OPERATOR:
                made += [Made(one.file, where, content) for where, content in made_by_operator(one.content)]
        for one in made:
            if one.file == path.name:
                said += [f"{one.file}: {one.where}: {wrong}" for wrong in beside_others(one, made, path.parent.parent)]
    return [one for one in said if one.startswith(f"{path.name}: ")]


WORDS = {
    "accessModes": {"ReadWriteMany"},
    "action": {"FailJob", "Ignore"},
    "drop": {"ALL"},
    "effect": {"NoSchedule"},
    "fsGroupChangePolicy": {"OnRootMismatch"},
    "onPodConditions.status": {"True"},
    "onPodConditions.type": {"DisruptionTarget"},
    "operator": {"Exists", "In"},
    "path": {"/health"},
    "protocol": {"TCP"},
    "seccompProfile.type": {"RuntimeDefault"},
    "tolerations.key": {GPU},
}
"""Words that schemas take for any text; those that are used here, by the field they stand in."""


def misspelt(content: Any, above: str = "") -> Iterator[str]:
    """Yield the words of an object that its fields do not know."""
    for name, value in content.items() if isinstance(content, dict) else enumerate(content):
        field = above if isinstance(content, list) else str(name)
        if isinstance(value, dict | list):
            yield from misspelt(value, field)
            continue
        known = WORDS.get(f"{above}.{field}") or WORDS.get(field)
        if known and value not in known:
            yield f"{field}: {value!r} is none of {', '.join(sorted(known))}"


def beside_others(one: Made, made: list[Made], deploy: Path) -> Iterator[str]:
    """Yield what of an object does not fit itself or the others."""
    kind = one.content["kind"]
    yield from misspelt(one.content)
    if one.content["apiVersion"] != OPERATOR:
        yield from core(one.content)
    if kind == "PersistentVolumeClaim" and set(one.content["spec"]["resources"].get("requests", {})) != {"storage"}:
        yield "spec.resources.requests: storage is what a claim asks for"
    if kind == "ConfigMap":
        yield from _settings(one.content, made)
    elif kind == "Service":
        yield from _service(one.content, made)
    elif kind == "DaskWorkerGroup" and not _named("DaskCluster", one.content["spec"]["cluster"], made):
        yield f"there is no cluster {one.content['spec']['cluster']!r}"
    elif kind in ("Deployment", "Job"):
        named = {container["name"] for container in one.content["spec"]["template"]["spec"]["containers"]}
        for rule in one.content["spec"].get("podFailurePolicy", {}).get("rules", ()):
            if (name := rule.get("onExitCodes", {}).get("containerName")) not in {None, *named}:
                yield f"podFailurePolicy: there is no container {name!r}"
        yield from _pod(one.content["spec"]["template"]["spec"], kind, made, deploy)
    elif kind == "Pod":
        yield from _pod(one.content["spec"], kind, made, deploy)


def _named(kind: str, name: str, made: list[Made]) -> Any:
    found = (one.content for one in made if one.content["kind"] == kind)
    return next((one for one in found if one["metadata"]["name"] == name), None)


MOUNTS = {"data": "/data", "tmp": "/tmp", "tls": "/etc/dsvcca/tls", "dask": "/etc/dask/tls.yaml"}
"""Where the volumes of a pod are, by their names in it."""


def _pod(pod: Any, kind: str, made: list[Made], deploy: Path) -> Iterator[str]:
    wanted = {"Deployment": ("Always", None), "Job": ("Never",), "Pod": ("OnFailure",)}[kind]
    if pod.get("restartPolicy") not in wanted:
        yield f"restartPolicy {pod.get('restartPolicy')!r}: here it is {wanted[0]}, or a run would not go on"
    own = pod.get("securityContext", {})
    if own.get("runAsNonRoot") is not True or {own.get(key) for key in ("runAsUser", "runAsGroup", "fsGroup")} != {
        uid_of(deploy)
    }:
        yield f"securityContext: the user of the image is {uid_of(deploy)}, and not root"
    volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
    for volume in volumes.values():
        yield from _volume(volume, made, deploy)
    mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", ())}
    for name in sorted(mounted ^ set(volumes)):
        yield f"volume {name!r} is mounted and not there, or there and not mounted"
    for container in pod["containers"]:
        for mount in container.get("volumeMounts", ()):
            if mount["mountPath"] != MOUNTS.get(mount["name"]):
                yield f"volumeMounts.{mount['name']}: {mount['mountPath']!r} is not {MOUNTS.get(mount['name'])!r}"
            content = _content(volumes.get(mount["name"], {}), made)
            if "subPath" in mount and mount["subPath"] not in content:
                yield f"volumeMounts.{mount['name']}: there is no {mount['subPath']!r} in it"
        try:
            for wrong in _container(container, made):
                yield f"{container['name']}: {wrong}"
        except Refused as error:
            yield f"{container['name']}: {error}"


def _volume(volume: Any, made: list[Made], deploy: Path) -> Iterator[str]:
    if claim := volume.get("persistentVolumeClaim"):
        if not _named("PersistentVolumeClaim", claim["claimName"], made):
            yield f"volume {volume['name']!r}: there is no claim {claim['claimName']!r}"
    elif settings := volume.get("configMap"):
        if not _named("ConfigMap", settings["name"], made):
            yield f"volume {volume['name']!r}: there is no ConfigMap {settings['name']!r}"
    elif secret := volume.get("secret"):
        page = (deploy.parent / "docs" / "kubernetes.md").read_text()
        if secret["secretName"] not in BY_HAND or f"secret generic {secret['secretName']} " not in page:
            yield f"volume {volume['name']!r}: docs/kubernetes.md makes no secret {secret['secretName']!r}"
    elif "emptyDir" not in volume:
        yield f"volume {volume['name']!r} is of no kind that is known"


def _content(volume: Any, made: list[Made]) -> set[str]:
    """Return the files of a volume, as far as they are known."""
    if secret := volume.get("secret"):
        return BY_HAND.get(secret["secretName"], set())
    settings = _named("ConfigMap", volume["configMap"]["name"], made) if "configMap" in volume else None
    return set(settings["data"]) if settings else set()


def _container(container: Any, made: list[Made]) -> Iterator[str]:
    if "command" in container:
        yield "command: say args, or tini is not process 1 and nothing ends at SIGTERM"
    environment = {one["name"]: one.get("value", "") for one in container.get("env", ())}
    words = [expanded(str(word), environment) for word in container["args"]]
    program, found = parse(words)
    gpus = container["resources"].get("limits", {}).get(GPU)
    wanted = f"registry.example.com/dsvcca{'-gpu' if gpus else ''}:{VERSION}"
    if container["image"] != wanted:
        yield f"image {container['image']!r} is not {wanted}"
    yield from _resources(container["resources"])
    yield from _probes(container, found)
    memory = memory_limit(container)
    if program in ("worker", "cuda worker"):
        if found["nthreads"] != 1:
            yield f"--nthreads={found['nthreads']}: a task fills a core, so 1"
        if memory_of(found["memory_limit"]) != memory:
            yield f"--memory-limit={found['memory_limit']} is not that of the container"
        if (found["resources"] or "") != (f"GPU={gpus}" if gpus else "") or (program == "cuda worker") != bool(gpus):
            yield f"--resources={found['resources']}, `dask {program}` and the GPUs of the container do not fit"
        if found["local_directory"] != "/tmp":
            yield "--local-directory is /tmp, where pods may write"
        if found["name"] != environment["DASK_WORKER_NAME"]:
            yield "--name is not $(DASK_WORKER_NAME), by which the operator finds whom it ends"
    elif program == "dsvcca":
        if found["scheduler"] != environment["DASK_SCHEDULER_ADDRESS"]:
            yield "--scheduler is not $(DASK_SCHEDULER_ADDRESS)"
        if int(str(found["memory"])) != min(_workers_memory(made)):
            yield "--memory is not that of the smallest worker"
        for path in (str(found[key]) for key in ("store", "out")):
            if not path.startswith("/data/"):
                yield f"{path} does not lie below /data"
    elif program != "scheduler":
        yield f"{words} is nothing that runs here"
    if (address := environment.get("DASK_SCHEDULER_ADDRESS")) is not None:
        services = {one.content["metadata"]["name"] for one in made if one.content["kind"] == "Service"}
        if address not in {f"tls://{service}:8786" for service in services}:
            yield f"DASK_SCHEDULER_ADDRESS {address!r} is none of tls://NAME:8786 for {', '.join(sorted(services))}"


def expanded(word: str, environment: dict[str, str]) -> str:
    """Return a word with what Kubernetes puts in for $(NAME).

    Raises
    ------
    Refused
        If there is no such name, of which Kubernetes says nothing.
    """
    for name in re.findall(r"\$\((\w+)\)", word):
        if name not in environment:
            raise Refused(f"{word}: nobody says what {name} is")
        word = word.replace(f"$({name})", environment[name])
    return word


def memory_limit(container: Any) -> int:
    """Return the bytes that a container may use.

    Raises
    ------
    Refused
        If it does not say so.
    """
    return size_of(container.get("resources", {}).get("limits", {}).get("memory"), KUBERNETES)


def _resources(resources: Any) -> Iterator[str]:
    limits = resources.get("limits", {})
    if resources.get("requests") != limits or not {"cpu", "memory"} <= set(limits):
        yield "resources: requests and limits say the same of cpu and memory"
    for name, amount in limits.items():
        if name == "memory":
            size_of(amount, KUBERNETES)
        elif name not in ("cpu", GPU) or not re.fullmatch(r"[1-9]\d*", str(amount)):
            yield f"resources.limits.{name}: {amount!r}"


def _probes(container: Any, found: dict[str, object]) -> Iterator[str]:
    ports = {port["name"]: str(port["containerPort"]) for port in container.get("ports", ())}
    serving = str(found.get("dashboard_address") or "").lstrip(":")
    for probe in ("livenessProbe", "readinessProbe"):
        if probe not in container:
            if serving:
                yield f"{probe} is missing"
            continue
        asked = container[probe].get("httpGet", {})
        if asked.get("path") != "/health" or ports.get(asked.get("port")) != serving:
            yield f"{probe}: /health is at port {serving}, by its name in ports"
    if extra := set(ports.values()) - {serving, str(found.get("port"))}:
        yield f"ports: nothing serves at {', '.join(sorted(extra))}"


def _workers_memory(made: list[Made]) -> Iterator[int]:
    for one in made:
        if one.where.endswith("worker") and one.content["kind"] == "Deployment":
            (container,) = one.content["spec"]["template"]["spec"]["containers"]
            yield memory_limit(container)


def _service(service: Any, made: list[Made]) -> Iterator[str]:
    spec = service["spec"]
    deployment = _named("Deployment", service["metadata"]["name"], made)
    if not spec.get("selector", {}).items() <= deployment["spec"]["template"]["metadata"]["labels"].items():
        yield f"selector {spec.get('selector')} finds no scheduler"
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    if {port["name"] for port in spec["ports"]} != {"tcp-comm", "http-dashboard"}:
        yield "service.ports are tcp-comm and http-dashboard: the operator asks for them by these names"
    for port in spec["ports"]:
        if ports.get(port["targetPort"]) != port["port"]:
            yield f"service.ports.{port['name']}: {port['targetPort']!r} of the pod is not {port['port']}"
    if spec.get("type") != "ClusterIP":
        yield "service.type: ClusterIP, since whoever reaches a scheduler may run anything"


@cache
def settings_schema() -> Any:
    """Return the schema of Dask's settings, which refuses what it does not list."""
    return strict(yaml.load((files(distributed) / "distributed-schema.yaml").read_text(), yaml.CSafeLoader))


def _settings(content: Any, made: list[Made]) -> Iterator[str]:
    """Yield what is wrong with settings of Dask, and with files that they name."""
    for name, text in content["data"].items():
        settings = yaml.safe_load(text)
        comm = settings.get("distributed", {}).get("comm", {})
        if (comm.get("default-scheme"), comm.get("require-encryption")) != ("tls", True):
            yield f"{name}: default-scheme is tls, and require-encryption true"
        for wrong in against(settings_schema(), settings):
            yield f"{name}: {wrong}"
        found = [str(value) for value in re.findall(r"/etc/dsvcca/tls/(\S+)", text)]
        for file in found:
            if file not in BY_HAND["dsvcca-tls"]:
                yield f"{name}: there is no {file!r} in the secret dsvcca-tls"
        if len(found) != text.count(".pem\n") + text.count(".key\n") or len(found) != 7:
            yield f"{name}: seven files of TLS lie in /etc/dsvcca/tls"
        mounts = [mount for one in made for mount in _mounts(one.content) if mount["name"] == "dask"]
        if any(mount["mountPath"] != f"/etc/dask/{name}" for mount in mounts):
            yield f"{name}: Dask reads what is mounted at /etc/dask/{name}"


def _mounts(content: Any) -> Iterator[Any]:
    pod = content["spec"]["template"]["spec"] if content["kind"] in ("Deployment", "Job") else content.get("spec", {})
    for container in pod.get("containers", ()):
        yield from container.get("volumeMounts", ())
