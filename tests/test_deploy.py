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
from tests.deploy_typos import FREE, PROGRAMS, TYPOS

PAGES = ("containers.md", "gpu.md", "kubernetes.md")


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


@pytest.mark.slow
def test_nothing_is_wrong():
    assert check_all(DEPLOY) == []


@pytest.mark.slow
def test_nothing_is_wrong_with_a_copy(copied):
    assert check_all(copied) == []


def planted(path, before, after):
    """Change the first place of a file where something is said, which must be there."""
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


PROGRAM = "slurm/capture.py"
EVERY = [
    pytest.param(name, *typo, marks=[pytest.mark.slow] if name == PROGRAM else [])  # which is run each time
    for name, typos in TYPOS.items()
    for typo in typos
]


@pytest.mark.parametrize(("name", "before", "after", "named"), EVERY, ids=lambda text: str(text).split("\n")[-1])
def test_a_planted_typo_is_found_and_named(copied, name, before, after, named):
    path = copied / name
    planted(path, before, after)
    said = checks(copied)[name](path)
    said = [one.replace(str(path), path.name) for one in said]
    assert any(named in one for one in said), said
    assert all(one.startswith(f"{path.name}: ") for one in said)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [one for one in TYPOS if one not in PROGRAMS])
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


@pytest.mark.slow
def test_a_file_that_is_gone_is_missed(copied):
    (copied / "kubernetes" / "storage.yaml").unlink()
    (copied / "health.py").unlink()
    said = check_all(copied)
    assert "health.py: is missing" in said
    assert "Dockerfile: COPY deploy/health.py: there is no such file" in said
    assert "kubernetes/storage.yaml: is missing" in said


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
        elif not lines[0].startswith("deploy/tls.sh "):  # which another test runs
            for line in lines:
                parse(shlex.split(line))


def test_what_pages_say_of_versions_is_so():
    said = (ROOT / "docs" / "kubernetes.md").read_text()
    assert f"Kubernetes {RELEASE}," in said
    assert f"release {version('dask-kubernetes')}" in said
    base = dict(read_dockerfile(DEPLOY / "Dockerfile"))["FROM"]
    assert f"imagetools inspect {base}`" in (ROOT / "docs" / "containers.md").read_text()
