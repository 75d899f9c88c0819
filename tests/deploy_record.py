"""Writes what the checks of deploy/ and the images take from package indexes: `make deploy-record`.

deploy/constraints.txt: one version of everything for both images, resolved together for their Python.
tests/deploy_record.json: the options of `dask cuda worker` in that version. Tests cannot have dask-cuda: each
of its versions wants one version of Dask alone.
"""

import ast
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.deploy_checks import read_dockerfile, requirements_of
from tests.deploy_commands import DEPLOY, RECORD, ROOT

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
HEADER = """\
# Versions of what is in both images, resolved together for Python {python} on Linux by `make deploy-record`.
# dask-cuda wants one version of Dask alone, which is then that of all of them.
"""


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True)


def resolve(requirements: list[str], python: str) -> dict[str, str]:
    """Return the version of each package that pip would install, installing none."""
    with tempfile.TemporaryDirectory() as folder:
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        options = ["--quiet", "--dry-run", "--ignore-installed", "--only-binary=:all:", "--target", folder]
        report = Path(folder, "report.json")
        pip("install", *options, "--python-version", python, *platforms, "--report", str(report), *requirements)
        found = [one["metadata"] for one in json.loads(report.read_text())["install"]]
    return {one["name"].lower().replace("_", "-"): one["version"] for one in found}


def options_of(source: str) -> dict[str, str]:
    """Return the options in a source file that defines them by click, with what each takes."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "click.option"):
            continue
        kinds = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "type"]
        names = [
            str(one.value) for one in node.args if isinstance(one, ast.Constant) and str(one.value).startswith("--")
        ]
        for name in names:
            kind = "flag" if "/" in name else "integer" if kinds == ["int"] else "text"
            found |= {one.strip(): kind for one in name.split("/")}
    return dict(sorted(found.items()))


def main() -> None:
    images = [read_dockerfile(DEPLOY / name) for name in ("Dockerfile", "Dockerfile.gpu")]
    wanted = sorted({one for image in images for one in requirements_of(image)})
    versions = resolve([one.replace("/opt/dsvcca/source", str(ROOT)) for one in wanted], "3.12")
    del versions["dsvcca"]
    lines = [f"{name}=={version}\n" for name, version in sorted(versions.items())]
    (DEPLOY / "constraints.txt").write_text(HEADER.format(python="3.12") + "".join(lines))
    with tempfile.TemporaryDirectory() as folder:
        pip("download", "--quiet", "--no-deps", "--dest", folder, f"dask-cuda=={versions['dask-cuda']}")
        with zipfile.ZipFile(next(Path(folder).glob("dask_cuda-*.whl"))) as wheel:
            source = wheel.read("dask_cuda/cli.py").decode()
    digest = hashlib.sha256((DEPLOY / "constraints.txt").read_bytes()).hexdigest()
    record = {"constraints": digest, "dask-cuda": versions["dask-cuda"], "options": options_of(source)}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
