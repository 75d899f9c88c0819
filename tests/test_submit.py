"""Lines that are sent as jobs to Kubernetes: manifests that would be taken, and what cannot be sent."""

import shutil

import pytest
import yaml
from typer.testing import CliRunner

from dsvcca.cli import app
from tests.deploy_checks import checks
from tests.deploy_commands import DEPLOY, ROOT, parse

KUBERNETES = DEPLOY / "kubernetes"
LINE = ("compare", "/data/a.zarr", "/data/r.zarr", "--where", "layer=fc 1", "--memory", "4 GiB")


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def sent(manifest, *line):
    return call("submit", "--kubernetes", manifest, *line)


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    return tmp_path / "deploy"


@pytest.mark.parametrize("name", ["driver.yaml", "daskjob.yaml"])
def test_a_line_takes_the_place_of_that_in_the_manifest(copied, name):
    said = sent(KUBERNETES / name, "--dry-run", *LINE)
    assert said.exit_code == 0, said.output
    manifest, before = yaml.safe_load(said.stdout), yaml.safe_load((KUBERNETES / name).read_text())
    pods = [one["spec"].get("template", one["spec"].get("job"))["spec"] for one in (manifest, before)]
    args = pods[0]["containers"][0].pop("args")
    assert args == ["dsvcca", "--verbose", "compare", "--scheduler=$(DASK_SCHEDULER_ADDRESS)", *LINE[1:]]
    parse([args[0], *args[2:]])
    del pods[1]["containers"][0]["args"]
    if manifest["kind"] == "Job":  # any number of them at a time
        assert manifest["metadata"].pop("generateName") == before["metadata"].pop("name") + "-"
        said_of = said.stdout.replace("generateName: dsvcca-compare-", "name: dsvcca-compare-x2k7p")
    else:
        said_of = said.stdout
    assert manifest == before  # and nothing else
    (copied / "kubernetes" / name).write_text(said_of)
    assert checks(copied)[f"kubernetes/{name}"](copied / "kubernetes" / name) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("kind: [", "is no YAML"),
        ("kind: caf\xe9", "is no YAML"),
        ("kind: [Job]", "holds ['Job']: a single Job or DaskJob is wanted"),
        ("kind: 2026-02-30", "is no YAML"),
        ("kind: !!bool abc", "is no YAML"),
        ("[" * 3000, "is no YAML"),
        ("kind: Pod", "holds Pod: a single Job or DaskJob is wanted"),
        ("kind: Job\n---\nkind: Job", "holds Job, Job: a single Job or DaskJob is wanted"),
        ("", "holds nothing"),
        ("- a", "holds None"),
        ("kind: Job", "spec.template.spec.containers is not one container"),
        ("kind: DaskJob\nspec: {job: {spec: {containers: [{}, {}]}}}", "spec.job.spec.containers is not one container"),
    ],
)
def test_a_manifest_of_something_else_is_refused(tmp_path, text, message):
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    said = sent(path, "--dry-run", *LINE)
    assert said.exit_code == 1
    assert message in said.output
    assert "Traceback" not in said.output


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ((*LINE, "--scheduler", "tcp://a:1"), "the manifest says where the work is done"),
        ((*LINE, "--workers", "2"), "the manifest says where the work is done"),
        (("info", "a.zarr"), "'info' cannot be sent"),
        (("compare", "a.zarr"), "Missing argument 'RESULTS'"),
        (("compare", "/data/a.zarr", "r.zarr"), "'r.zarr' is a path from here: name it as pods see it, /data/r.zarr"),
        (("compare", "a.zarr", "r.zarr", "--memroy", "1"), "No such option: --memroy"),
    ],
)
def test_a_line_that_cannot_run_there_is_refused(line, message):
    said = sent(KUBERNETES / "driver.yaml", "--dry-run", *line)
    assert said.exit_code
    assert message in said.output


def test_kubernetes_puts_nothing_in_the_place_of_what_was_typed():
    line = ("compare", "--where", "layer=$(HOSTNAME)$$x", "--", "/data/a.zarr", "/data/r.zarr")
    said = sent(KUBERNETES / "driver.yaml", "--dry-run", *line)
    args = yaml.safe_load(said.stdout)["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[2:4] == ["compare", "--scheduler=$(DASK_SCHEDULER_ADDRESS)"]
    assert args[4:] == ["--memory=4 GiB", "--where", "layer=$$(HOSTNAME)$$$$x", *line[3:]]  # memory as it was


def test_one_place_is_to_be_named():
    for more in ((), ("--slurm", "a.yaml", "--kubernetes", "b.yaml")):
        said = call("submit", *more, *LINE)
        assert said.exit_code == 1
        assert "Give one of --slurm FILE and --kubernetes FILE" in said.output
    said = call("submit", "--kubernetes", KUBERNETES / "driver.yaml", "--after", 3, *LINE)
    assert "--after is a word of SLURM's" in said.output


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("cat > got.yaml; echo job.batch/dsvcca-compare created", "job.batch/dsvcca-compare created"),
        ("echo 'jobs \"dsvcca-compare\" already exists' >&2; exit 1", "kubectl delete"),
        ("echo forbidden >&2; exit 1", "Kubernetes refuses the job: forbidden\n"),
        (None, "kubectl cannot be run (No such file or directory): install it, or use --dry-run"),
    ],
)
def test_the_manifest_goes_to_kubectl(tmp_path, monkeypatch, answer, message):
    """A stand-in for kubectl, which no cluster is behind: what it is given, and what becomes of what it answers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if answer else str(tmp_path))
    if answer:
        (tmp_path / "kubectl").write_text(f'#!/bin/sh\n[ "$*" = "create --filename=-" ] || exit 9\n{answer}\n')
        (tmp_path / "kubectl").chmod(0o755)
    said = sent(KUBERNETES / "driver.yaml", *LINE)
    assert message in said.output
    assert said.exit_code == (0 if "created" in message else 1)
    if said.exit_code == 0:
        manifest = (tmp_path / "got.yaml").read_text()
        assert manifest.strip() == sent(KUBERNETES / "driver.yaml", "--dry-run", *LINE).stdout.strip()
