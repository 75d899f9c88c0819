"""Files in deploy/: nothing in them is misspelt, and where something is, it is found."""

import json
import re
import shlex
import shutil
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from dsvcca.cli import app
from tests.deploy_checks import (
    ELSEWHERE,
    MANIFESTS,
    check_all,
    checks,
    constraints,
    read_dockerfile,
    read_yaml,
    unknown_files,
)
from tests.deploy_commands import DEPLOY, RECORD, ROOT, Refused, parse
from tests.deploy_kubernetes import RELEASE, made_by_operator

PAGES = ("containers.md", "kubernetes.md")


@pytest.fixture
def copied(tmp_path):
    """A copy of what the checks read."""
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".dockerignore", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "docs").mkdir()
    for name in PAGES:
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs")
    (tmp_path / "dsvcca").mkdir()
    return tmp_path / "deploy"


def test_nothing_is_wrong():
    assert check_all(DEPLOY) == []


def test_nothing_is_wrong_with_a_copy(copied):
    assert check_all(copied) == []


def planted(path, before, after):
    """Change the first place of a file where something is said, which must be there."""
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


DOCKERFILE = [
    ("FROM python:3.12.12-slim-bookworm", "FROM python:3.12-slim", "with a version to its third place"),
    ("FROM python:3.12.12-slim-bookworm", "FROM python:latest", "DL3007"),
    ("FROM python:3.12.12-slim-bookworm", "FROM python", "DL3006"),
    ("FROM python:3.12.12-slim-bookworm", "FROM python:3.13.1-slim-bookworm", "the Python of both images is 3.12"),
    ("COPY pyproject.toml", "COPI pyproject.toml", "line 17: DL1000"),
    ("COPY pyproject.toml", "COPY pyproject.tml", "COPY pyproject.tml: there is no such file"),
    ("COPY deploy/health.py", "COPY deploy/compose.yaml", "COPY deploy/compose.yaml: .dockerignore keeps it back"),
    ("[s3,plot]", "[s3,plots]", "no extra 'plots'"),
    ("[s3,plot]", "[s3,torch]", "brings PyTorch"),
    ("bokeh jupyterlab", "bokeh jupyterlabs", "constraints.txt does not pin jupyterlabs"),
    ("--constraint /opt/dsvcca/constraints.txt", "", "pip is not held to constraints.txt"),
    ("apt-get install --yes", "apt-get instal --yes", "RUN apt-get instal --yes"),
    ('["tini", "-g", "--"]', '["tiny", "-g", "--"]', "ENTRYPOINT is tini"),
    ("--interval=30s", "--intervall=30s", "invalid flag: --intervall"),
    ('"/opt/dsvcca/health.py"]', '"/opt/dsvcca/heath.py"]', "HEALTHCHECK"),
    ('CMD ["dsvcca", "--help"]', 'CMD ["dsvcca", "--hlep"]', "No such option"),
    ('CMD ["dsvcca", "--help"]', 'CMD ["dsvcca" "--help"]', "CMD"),
    ("USER ${UID}", "USER root", "USER is ${UID}"),
    ("slim-bookworm\n", "slim-bokworm\n", "no image that is known"),
    ("recommends tini", "recommends tinny", "RUN apt-get install --yes --no-install-recommends tinny"),
    ("/etc/dask/dsvcca.yaml", "/etc/dusk/dsvcca.yaml", "COPY deploy/dask.yaml /etc/dusk/dsvcca.yaml"),
    ("WORKDIR /data", "WORKDIR /date", "WORKDIR is /data"),
    ("useradd --uid", "useradd --udi", "RUN useradd --udi"),
    ("ARG UID=10001", "ARG UDI=10001", "USER is ${UID}"),
]
DOCKERFILE_GPU = [
    ("FROM nvidia/cuda:12.9.1-base", "FROM nvidia/cuda:12-base", "with a version to its third place"),
    ("FROM nvidia/cuda:12.9.1-base-ubuntu24.04", "FROM nvidia/cuda", "DL3006"),
    ("python3.12 python3.12-venv", "python3.11 python3.11-venv", "the Python of both images is 3.12"),
    ("HEALTHCHECK", "HELTHCHECK", "unexpected"),
    ("COPY deploy/dask.yaml", "COPY deploy/dask.yml", "COPY deploy/dask.yml: there is no such file"),
    ("[s3,plot,gpu]", "[s3,plot,gpus]", "no extra 'gpus'"),
    ("dask-cuda[cu12]", "dask-cude[cu12]", "pip install dask-cude[cu12]"),
    ("WORKDIR /data", "WORKDIR data", "DL3000"),
    ("cupy-cuda12x[ctk]", "cupy-cuda12x[ctl]", "no extra that is known"),
    ("FROM nvidia/cuda:", "FROM nvdia/cuda:", "no image that is known"),
    ("USER ${UID}", "USER 0", "USER is ${UID}"),
    ("CUPY_CACHE_DIR", "CUPY_CACHEDIR", "ENV CUPY_CACHEDIR"),
]
COMPOSE = [
    ("services:", "servics:", "servics"),
    ("    command: [dask, scheduler", "    comand: [dask, scheduler", "'comand' was unexpected"),
    (
        "      resources:\n        limits: {memory: 2g}",
        "      resorces:\n        limits: {memory: 2g}",
        "'resorces' does not match",
    ),
    ("limits: {memory: 2g}", "limits: {memoy: 2g}", "'memoy' does not match"),
    ("replicas: 2", "replicas: [2]", "services.worker"),
    ("condition: service_healthy", "condition: service_helthy", "service_helthy"),
    ("scheduler: {condition", "schedular: {condition", "there is no service 'schedular'"),
    ("--memory-limit=4GiB", "--memory-limt=4GiB", "No such option '--memory-limt'"),
    ("--memory-limit=4GiB", "--memory-limit=4GB", "is not that of the container"),
    ("--memory-limit=4GiB", "--memory-limit=4 Gib.", "--memory-limit"),
    ("--nthreads=1", "--nthreads=one", "not a valid integer"),
    ("--nthreads=1", "--nthreads=2", "a task fills a core"),
    ("tcp://scheduler:8786", "tcp://scheduler:8768", "there is no scheduler at"),
    ("[dask, scheduler,", "[dask, schedular,", "is no command line that is known"),
    ("- cuda\n", "- coda\n", "is no command line that is known"),
    ("--resources=GPU=1", "--resource=GPU=1", "No such option '--resource'"),
    ("--resources=GPU=1", "--resources=GPU=2", "do not fit"),
    ("capabilities: [gpu]", "capabilites: [gpu]", "services.gpu-worker"),
    ("count: 1", "count: 2", "is not that of the container"),
    ("--memory=4 GiB", "--memory=4 Gibs", "--memory"),
    ("--memory=4 GiB", "--memory=5 GiB", "--memory is not that of a worker"),
    ("      - compare\n", "      - comapre\n", "dsvcca has no command 'comapre'"),
    ("--no-browser", "--no-brwser", "is no command line that is known"),
    ("image: dsvcca:0.1.0", "image: dsvcca:0.1", "image 'dsvcca:0.1' is none of"),
    ("pull_policy: never", "pull_policy: neve", "services.scheduler"),
    ("versitygw:v1.8.0", "versitygw:latest", "with a version to its third place"),
    ("versity/versitygw", "versity/versitgw", "none that is known"),
    ("dsvcca-gpu:0.1.0", "dsvca-gpu:0.1.0", "none that is known"),
    ("--local-directory=/tmp", "--local-directory=/temp", "--local-directory is /tmp"),
    ("/data/activations.zarr", "/date/activations.zarr", "does not lie below /data"),
    ("}:/data ", "}:/date ", "stores lie at /data"),
    ("objects:/objects", "objects:/object", "objects at /objects"),
    ("ADDRESS: tcp://scheduler:8786", "ADDRESS: tcp://scheduler:8768", "there is no scheduler at"),
    ("  scheduler:\n", "  schedular:\n", "there is no service 'scheduler'"),
    ("127.0.0.1:8787:8787", "8787:8787", "is open to others"),
    ("127.0.0.1:8888:8888", "127.0.0.1:8889:8889", "nothing serves there"),
    ("- objects:/objects", "- object:/objects", "there is no volume 'object'"),
    ("${DSVCCA_DATA:-data}", "${DSVCA_DATA:-data}", "a word that docs/containers.md does not know"),
    ("${DSVCCA_DATA:-data}", "./data", "there is no ./data"),
    ("${AWS_SECRET_ACCESS_KEY:-}", "hunter2", "a secret is in the file"),
    ("profiles: [notebook]", "profiles: [notebok]", "profile 'notebok'"),
    ("    AWS_ENDPOINT_URL:", "    AWS_ENDPONT_URL:", "environment.AWS_ENDPONT_URL"),
    ("ROOT_SECRET_KEY:", "ROOT_SECRET_KAY:", "environment.ROOT_SECRET_KAY"),
    ("cap_drop: [ALL]", "cap_drop: [AL]", "cap_drop"),
    ("no-new-privileges", "no-new-priveleges", "security_opt"),
    ("driver: nvidia", "driver: nvdia", "do not fit"),
    ("restart: on-failure:10", "restart: on-failur:10", "restart 'on-failur:10'"),
    ("    restart: on-failure:10\n", "    restart: on-failure:10\n    restart: always\n", "restart is said twice"),
    ("<<: *dsvcca", "<<: *dsvca", "is no YAML"),
]
STORAGE = [
    ("apiVersion: v1", "apiVersion: v2", "no kind of object"),
    ("kind: PersistentVolumeClaim", "kind: PersistentVolumClaim", "no kind of object"),
    ("accessModes:", "accessMode:", "'accessMode' was unexpected"),
    ("accessModes: [ReadWriteMany]", "accessModes: ReadWriteMany", "spec.accessModes"),
    ("requests:", "request:", "'request' was unexpected"),
    ("storage: 500Gi", "storge: 500Gi", "storage is what a claim asks for"),
    ("ReadWriteMany", "ReadWriteMny", "accessModes: 'ReadWriteMny'"),
    ("metadata:\n  name: dsvcca-data", "metadata:\n  nam: dsvcca-data", "'nam' was unexpected"),
    ("spec:", "spec:\nspec:", "said twice"),
]
CONFIG = [
    ("\ndata:", "\ndat:", "'dat' was unexpected"),
    ("kind: ConfigMap", "kind: ConfigMp", "no kind of object"),
    ("default-scheme: tls", "default-scheme: tcp", "default-scheme is tls"),
    ("require-encryption: true", "require-encryption: false", "and require-encryption true"),
    ("require-encryption", "require-encyption", "'require-encyption' was unexpected"),
    ("require-encryption: true", "require-encryption: 'yes'", "require-encryption"),
    ("          ca-file", "          ca-fil", "'ca-fil' was unexpected"),
    ("          worker:", "          workers:", "'workers' was unexpected"),
    ("tls/worker.key", "tls/worker.ky", "there is no 'worker.ky' in the secret"),
    ("/etc/dsvcca/tls/client.pem", "/etc/dsvca/tls/client.pem", "seven files"),
    ("  tls.yaml: |", "  tls.yml: |", "Dask reads what is mounted at"),
]
POD = [
    ("containers:", "container:", "'containers' is a required property"),
    ("runAsNonRoot", "runAsNonRot", "'runAsNonRot' was unexpected"),
    ("runAsUser: 10001", "runAsUser: 1000", "the user of the image is 10001"),
    ("runAsUser: 10001", 'runAsUser: "10001"', "is not of type 'integer'"),
    ("readOnlyRootFilesystem", "readOnlyRootFileSystem", "'readOnlyRootFileSystem' was unexpected"),
    ("mountPath:", "mountpath:", "'mountPath' is a required property"),
    ("subPath: tls.yaml", "subPath: tls.yml", "there is no 'tls.yml' in it"),
    ("secretName: dsvcca-tls", "secretName: dsvcca-tsl", "makes no secret 'dsvcca-tsl'"),
    ("configMap: {name: dsvcca-dask}", "configMap: {name: dsvcca-dusk}", "there is no ConfigMap 'dsvcca-dusk'"),
    ("- name: tmp\n", "- name: temp\n", "volume 'temp'"),
    ("dsvcca:0.1.0", "dsvcca:latest", "image 'registry.example.com/dsvcca:latest'"),
    ("dsvcca:0.1.0", "dsvca:0.1.0", "image 'registry.example.com/dsvca:0.1.0'"),
    ("drop: [ALL]", "drop: [AL]", "drop: 'AL'"),
    ("mountPath: /etc/dask/tls.yaml", "mountPath: /etc/dask/tsl.yaml", "is not '/etc/dask/tls.yaml'"),
    ("mountPath: /tmp", "mountPath: /temp", "is not '/tmp'"),
    ("OnRootMismatch", "OnRootMissmatch", "fsGroupChangePolicy: 'OnRootMissmatch'"),
    ("RuntimeDefault", "RuntimDefault", "type: 'RuntimDefault'"),
    ("limits: {cpu", "limit: {cpu", "'limit' was unexpected"),
]
WORKER = [
    ("--nthreads=1", "--ntreads=1", "No such option '--ntreads'"),
    ("--nthreads=1", "--nthreads=4", "a task fills a core"),
    ("--local-directory=/tmp", "--local-directory=/var", "--local-directory is /tmp"),
    ("--memory-limit=", "--memory-limit=1", "is not that of the container"),
    ("$(DASK_WORKER_NAME)", "$(DASK_WORKR_NAME)", "nobody says what DASK_WORKR_NAME is"),
    ("--name=$(DASK_WORKER_NAME)", "--name=worker", "by which the operator finds"),
    ("--dashboard-address=:8788", "--dashboard-adress=:8788", "No such option '--dashboard-adress'"),
    ("port: http}", "port: htp}", "by its name in ports"),
    ("path: /health, port: http}", "path: /helth, port: http}", "by its name in ports"),
    ("livenessProbe", "livenesProbe", "'livenesProbe' was unexpected"),
    ("containerPort: 8788", "containerPort: 8789", "by its name in ports"),
    ("DASK_SCHEDULER_ADDRESS, value", "DASK_SCHEDULR_ADDRESS, value", "is none of tls://NAME:8786"),
    ("tls://dsvcca", "tcp://dsvcca", "is none of tls://NAME:8786"),
    ("replicas:", "replica:", "'replica' was unexpected"),
]
SCHEDULER = [
    ("[dask, scheduler,", "[dask, schedular,", "is no command line that is known"),
    ("--port=8786", "--prot=8786", "No such option '--prot'"),
    ("--port=8786", "--port=8768", "nothing serves at"),
    ("service:", "servce:", "'servce' was unexpected"),
    ("dask.org/component: scheduler", "dask.org/componnt: scheduler", "finds no scheduler"),
    ("name: http-dashboard, protocol", "name: http-dashbord, protocol", "the operator asks for them by these names"),
    ("targetPort: tcp-comm", "targetPort: tcp-com", "of the pod is not 8786"),
    ("targetPort: tcp-comm", "targetPort: 8786", "is not of type 'string'"),
    ("type: ClusterIP", "type: LoadBalancer", "service.type"),
]
CLUSTER = [
    ("kubernetes.dask.org/v1", "kubernetes.dask.org/v2", "no kind of object"),
    ("kind: DaskCluster", "kind: DaskClustr", "the operator has no 'DaskClustr'"),
    ("  worker:\n", "  wrker:\n", "'wrker' was unexpected"),
    ("  name: dsvcca ", "  name: dsvcca2 ", "is none of tls://NAME:8786"),
    ("  name: dsvcca ", "  name: Dsvcca ", "metadata.name"),
    ("replicas: 8", 'replicas: "8"', "is not of type 'integer'"),
    ("claimName: dsvcca-data", "claimName: dsvcca-date", "there is no claim 'dsvcca-date'"),
    *SCHEDULER,
    *WORKER,
    *POD,
]
GPU = [
    ("kind: DaskWorkerGroup", "kind: DaskWorkerGrop", "the operator has no 'DaskWorkerGrop'"),
    ("  cluster: dsvcca", "  cluster: dsvca", "there is no cluster 'dsvca'"),
    ("  cluster: dsvcca", "  clustr: dsvcca", "'clustr' was unexpected"),
    ("--resources=GPU=1", "--resorces=GPU=1", "No such option '--resorces'"),
    ("--resources=GPU=1", "--resources=GPU=2", "do not fit"),
    (
        'limits: {cpu: "2", memory: 8Gi, nvidia.com/gpu: "1"}',
        'limits: {cpu: "2", memory: 8Gi, nvidia.com/gpus: "1"}',
        "the same of cpu",
    ),
    ('nvidia.com/gpu: "1"', "nvidia.com/gpu: 1", "is not of type 'string'"),
    ("operator: Exists", "operator: Exist", "operator: 'Exist'"),
    ("effect: NoSchedule", "effect: NoSchedul", "effect: 'NoSchedul'"),
    ("key: nvidia.com/gpu", "key: nvidia.com/gpus", "key: 'nvidia.com/gpus'"),
    ("operator: Exists", "operater: Exists", "'operater' was unexpected"),
    ("- cuda\n", "- coda\n", "is no command line that is known"),
    ("dsvcca-gpu:0.1.0", "dsvcca:0.1.0", "is not registry.example.com/dsvcca-gpu:0.1.0"),
    *WORKER,
    *(one for one in POD if not one[0].startswith("dsvcca:")),
]
RUN = [
    ("- compare\n", "- comapre\n", "dsvcca has no command 'comapre'"),
    ("--scheduler=", "--schedule=", "No such option: --schedule "),
    ("$(DASK_SCHEDULER_ADDRESS)", "$(DASK_SCHEDULER_ADRESS)", "nobody says what DASK_SCHEDULER_ADRESS is"),
    ("--memory=4 GiB", "--memory=4 Gibs", "--memory"),
    ("--memory=4 GiB", "--memory=8 GiB", "not that of the smallest worker"),
    ("/data/results.zarr", "/dta/results.zarr", "does not lie below /data"),
    ("args:", "command: [sh]\n          args:", "tini is not process 1"),
    *POD,
]
DRIVER = [
    ("batch/v1", "batch/v3", "no kind of object"),
    ("backoffLimit:", "backofLimit:", "'backofLimit' was unexpected"),
    ("backoffLimit: 20", "backoffLimit: twenty", "spec.backoffLimit"),
    ("podFailurePolicy", "podFailurPolicy", "'podFailurPolicy' was unexpected"),
    ("action: FailJob", "action: FailJobs", "action: 'FailJobs'"),
    ("type: DisruptionTarget", "type: DisruptedTarget", "type: 'DisruptedTarget'"),
    ("containerName: driver", "containerName: diver", "there is no container 'diver'"),
    ("onExitCodes", "onExitCode", "'onExitCode' was unexpected"),
    ("restartPolicy: Never", "restartPolicy: Always", "restartPolicy 'Always'"),
    ("template:", "templat:", "'template' is a required property"),
    *RUN,
]
JOB = [
    ("kind: DaskJob", "kind: DaskJobs", "the operator has no 'DaskJobs'"),
    ("restartPolicy: OnFailure", "restartPolicy: Never", "or a run would not go on"),
    ("restartPolicy: OnFailure", "restartpolicy: OnFailure", "'restartpolicy' was unexpected"),
    ("activeDeadlineSeconds: 604800", "backoffLimit: 20", "'backoffLimit' was unexpected"),
    ("activeDeadlineSeconds: 604800", "activeDeadlineSeconds: a week", "is not of type 'integer'"),
    ("  name: dsvcca-run ", "  name: dsvcca-runs ", "is none of tls://NAME:8786"),
    ("  cluster:\n", "  clusters:\n", "'clusters' was unexpected"),
    *RUN,
    *(one for one in (*SCHEDULER, *WORKER) if "tls://dsvcca" not in one[0]),
]
CONSTRAINTS = [
    ("numpy==", "numpie==", "numpy is not there"),
    ("numpy==2", "numpy==1", "numpy 1"),
    ("scipy==", "scipy=", "is no package with a version"),
    ("dask==", "dask==1", "of different releases"),
    ("dask-cuda==", "dask-cuda==1", "whose options are recorded"),
    ("tornado==", "tornade==", "was changed by hand"),
    ("xarray==", "torch==2.7.0\nxarray==", "torch is there"),
    ("xarray==", "xarray==2026.1.0\nxarray==", "there twice"),
]
HEALTHY = [("def main(", "def main[", "does not match opening"), ("return 0", "retrun 0", "invalid syntax")]

TYPOS = {
    "Dockerfile": DOCKERFILE,
    "Dockerfile.gpu": DOCKERFILE_GPU,
    "compose.yaml": COMPOSE,
    "constraints.txt": CONSTRAINTS,
    "health.py": HEALTHY,
    "kubernetes/storage.yaml": STORAGE,
    "kubernetes/config.yaml": CONFIG,
    "kubernetes/cluster.yaml": CLUSTER,
    "kubernetes/gpu-workers.yaml": GPU,
    "kubernetes/driver.yaml": DRIVER,
    "kubernetes/daskjob.yaml": JOB,
}
EVERY = [(name, *typo) for name, typos in TYPOS.items() for typo in typos]


@pytest.mark.parametrize(("name", "before", "after", "named"), EVERY, ids=lambda text: str(text).split("\n")[-1])
def test_a_planted_typo_is_found_and_named(copied, name, before, after, named):
    path = copied / name
    planted(path, before, after)
    said = checks(copied)[name](path)
    assert any(named in one for one in said), said
    assert all(one.startswith(f"{path.name}: ") for one in said)


FREE = {
    "compose.yaml": {"dsvcca", "worker", "gpu", "driver", "notebook", "activations", "results", "zarr"},
    "kubernetes/cluster.yaml": {"scheduler", "worker"},
    "kubernetes/gpu-workers.yaml": {"worker", "dsvcca", "gpu"},
    "kubernetes/driver.yaml": {"dsvcca", "compare", "activations", "results", "zarr"},
    "kubernetes/daskjob.yaml": {"scheduler", "worker", "driver", "activations", "results", "zarr"},
}
"""Words that are free where nothing else names them: of services and containers, and of what is compared."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [one for one in TYPOS if one != "health.py"])
def test_a_letter_less_in_any_word_is_found(copied, name):
    path = copied / name
    text = path.read_text()
    for word in re.finditer("[A-Za-z]{3,}", text):
        if "#" in text[text.rfind("\n", 0, word.start()) + 1 : word.start()]:
            continue  # a comment
        middle = (word.start() + word.end()) // 2
        path.write_text(text[:middle] + text[middle + 1 :])
        beside = [f"kubernetes/{one}" for one in MANIFESTS] if name.startswith("kubernetes/") else []
        said = (one for file in (name, *beside) for one in checks(copied)[file](copied / file))
        line = text.count("\n", 0, middle) + 1
        assert any(said) or word[0] in FREE.get(name, ()), f"{name}:{line}: {word[0]!r} may be misspelt"


def test_typos_are_planted_in_every_file_that_is_checked_here():
    assert set(TYPOS) == set(checks(DEPLOY))


def test_a_file_that_no_check_knows_is_found(copied):
    (copied / "kubernetes" / "extra.yaml").write_text("kind: Pod\n")
    (copied / "swarm.yaml").write_text("services: {}\n")
    assert unknown_files(copied) == ["kubernetes/extra.yaml", "swarm.yaml"]


def test_a_file_that_is_gone_is_missed(copied):
    (copied / "kubernetes" / "storage.yaml").unlink()
    (copied / "health.py").unlink()
    said = check_all(copied)
    assert "health.py: is missing" in said
    assert "Dockerfile: COPY deploy/health.py: there is no such file" in said
    assert "kubernetes/storage.yaml: is missing" in said


def test_files_that_other_tests_check_are_there():
    assert all((DEPLOY / name).is_file() for name in ELSEWHERE)


def test_the_record_of_dask_cuda_is_of_the_version_in_the_images():
    record = json.loads(RECORD.read_text())
    assert record["dask-cuda"] == constraints(DEPLOY / "constraints.txt")["dask-cuda"]
    assert {"--nthreads", "--memory-limit", "--resources", "--dashboard-address"} <= set(record["options"])


@pytest.mark.parametrize(
    "line",
    [
        "dask scheduler --prot=8786",
        "dask worker --ntreads=1",  # which Dask itself takes for an address
        "dask worker tcp://a:1 --memory-limit",
        "dask cuda worker --nthread 1",
        "dsvcca compare a",
        "dsvcca compare a b --memory much",
        "dsvcca compair a b",
        "jupyter lab --ip",
        "dask wroker",
        "",
    ],
)
def test_command_lines_that_a_program_would_refuse_are_refused(line):
    with pytest.raises(Refused):
        parse(line.split())


def test_a_mistyped_command_line_has_the_status_by_which_a_job_ends():
    assert CliRunner().invoke(app, ["compare", "a.zarr", "b.zarr", "--shedule", "tcp://a:1"]).exit_code == 2
    driver = (DEPLOY / "kubernetes" / "driver.yaml").read_text()
    assert "onExitCodes: {containerName: driver, operator: In, values: [2]}" in driver


def test_the_operator_keeps_the_address_of_a_pod_and_names_one_without_tls_otherwise():
    for name in ("cluster.yaml", "gpu-workers.yaml", "daskjob.yaml"):
        (content,) = read_yaml(DEPLOY / "kubernetes" / name)
        said = [text for _, one in made_by_operator(content) for text in re.findall(r"'(\w+://[^']*)'", str(one))]
        assert said
        assert all(address.startswith("tls://") for address in said)
        for pod in (content["spec"].get("job"), content["spec"].get("worker")):
            if pod:
                pod["spec"]["containers"][0]["env"].clear()
        said = [text for _, one in made_by_operator(content) for text in re.findall(r"'(\w+://[^']*)'", str(one))]
        assert any(address.startswith("tcp://") for address in said)


def test_what_the_operator_makes_of_a_job_starts_again_in_its_place():
    (content,) = read_yaml(DEPLOY / "kubernetes" / "daskjob.yaml")
    pod = next(one for where, one in made_by_operator(content) if where == "job")
    assert (pod["kind"], pod["spec"]["restartPolicy"]) == ("Pod", "OnFailure")


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_are_parsed_or_said_not_to_be_run(page):
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)
    assert blocks
    services = read_yaml(DEPLOY / "compose.yaml")[0]["services"]
    names = {one["metadata"]["name"] for name in MANIFESTS for one in read_yaml(DEPLOY / "kubernetes" / name)}
    for block in blocks:
        lines = block.strip().splitlines()
        if lines[0] == "# not run by us":
            for words in map(shlex.split, lines[1:]):
                assert words[0] in ("docker", "kubectl", "helm")
                if words[:2] == ["docker", "compose"]:
                    command = next(place for place, word in enumerate(words) if word in ("up", "run", "down"))
                    assert set(words[command + 1 :][:1]) <= {*services, "--detach", "--rm"}
                    assert words[command] != "run" or words[command + 2] in services
                for kind, name in (word.split("/") for word in words if re.match("(job|service)/", word)):
                    assert name in (names if kind == "job" else {"dsvcca-scheduler"})
                for word in words:
                    assert not word.startswith("deploy/") or (ROOT / word).is_file(), word
        elif not lines[0].startswith("openssl "):  # which another test runs
            for line in lines:
                parse(shlex.split(line))


def test_what_pages_say_of_versions_is_so():
    said = (ROOT / "docs" / "kubernetes.md").read_text()
    assert f"Kubernetes {RELEASE}," in said
    assert f"release {version('dask-kubernetes')}" in said
    base = dict(read_dockerfile(DEPLOY / "Dockerfile"))["FROM"]
    assert f"imagetools inspect {base}`" in (ROOT / "docs" / "containers.md").read_text()
