"""What the README says is run, word for word."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    python = [block for language, block in BLOCKS if language == "python"]
    scripts = ["\n".join(block for block in python if "__main__" not in block), *(b for b in python if "__main__" in b)]
    for script in scripts:
        (folder / "script.py").write_text(script)
        found = subprocess.run(
            [sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, timeout=100, check=False
        )
        assert found.returncode == 0, found.stderr
        with (folder / "said.txt").open("a") as said:
            said.write(found.stdout)
    return folder


def test_the_python_of_the_readme_runs(folder):
    said = (folder / "said.txt").read_text()
    assert "plan for" in said
    assert "x_step" in said
    assert (folder / "cluster.zarr").is_dir()


def test_the_commands_of_the_readme_run(folder):
    commands = [
        line
        for language, block in BLOCKS
        if language == "sh"
        for line in block.splitlines()
        if line.startswith("dsvcca ")
    ]
    assert len(commands) == 4
    for command in commands:
        found = subprocess.run(
            [sys.executable, "-m", "dsvcca", *shlex.split(command)[1:]],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert found.returncode == 0, f"{command}: {found.stderr}"
        assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("views.md", ("dft (", "x_position", "r2_target_floor")),
        ("statistics.md", ("standard_error", "silhouette", "p_family")),
        ("directions.md", ("correlations", "x_variates", "neurons that matter")),
        ("compressing.md", ("20 directions", "maximal neurons", "Narrow(", "multiply_adds", "parameters, accuracy")),
        ("import.md", ("would become", "hidden_states.1", "masked")),
        ("training.md", ("signal", "by chance", "True")),
        ("freezing.md", ("frozen one after another", "operations are saved", "['0+1+2', '3+4+5', '6+7+8']")),
        ("tools.md", ("svcca_google", "svcca_anatome")),
        ("capture.md", ("x_step", "tokens of 2400", "(200, 12, 6)")),
    ],
)
def test_the_examples_of_other_pages_run(tmp_path, page, said):
    if page == "capture.md":
        pytest.importorskip("torch")
    text = (Path(__file__).parent.parent / "docs" / page).read_text()
    (tmp_path / "script.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)))
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    for words in said:
        assert words in found.stdout


def test_every_link_of_the_readme_leads_to_a_file():
    for target in re.findall(r"\]\((docs/[^)]+)\)", README):
        assert (Path(__file__).parent.parent / target).is_file(), target
