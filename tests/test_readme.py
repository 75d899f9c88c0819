"""What the README says is run, word for word."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def run_python(text, folder):
    """Run the Python of a page, what starts processes as scripts of their own; return what it printed."""
    python = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    scripts = ["\n".join(block for block in python if "__main__" not in block), *(b for b in python if "__main__" in b)]
    said = ""
    for script in scripts:
        (folder / "script.py").write_text(script)
        line = [sys.executable, "-W", "ignore", "script.py"]
        found = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
        assert found.returncode == 0, found.stderr
        said += found.stdout
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    (folder / "said.txt").write_text(run_python(README, folder))
    return folder


def test_the_python_of_the_readme_runs(folder):
    said = (folder / "said.txt").read_text()
    assert "plan for" in said
    assert "x_layer" in said
    assert (folder / "cluster.zarr").is_dir()


def test_the_commands_of_the_readme_run(folder):
    commands = [
        line
        for language, block in BLOCKS
        if language == "sh"
        for line in block.splitlines()
        if line.startswith("dsvcca ")
    ]
    assert [command.split()[1] for command in commands] == ["info", "plan", "compare", "report", "verify"]
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
        pytest.param(
            "tutorial.md",
            ("of the images it is shown are told right", "plan for", "rank_x", "report.html"),
            marks=pytest.mark.slow,
        ),
        pytest.param("guide.md", ("x_step", "plan for", "svcca_held_out"), marks=pytest.mark.slow),
        pytest.param("watching.md", ("finished",), marks=pytest.mark.slow),
        ("index.md", ("plan for", "chance")),
        pytest.param(
            "which-measure.md",
            ("five signals beside weak noise          20         0.30   0.30", "500                 5.0    0.27"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "chance.md",
            ("svcca_debiased               0.000  0.046   0.446", "1 layer of three is no more than chance"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "migrating.md",
            ("'pwcca_google_x': 0.8064", "ten directions of each 0.6181", "shifted maps 1.0"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "larger-than-memory.md",
            ("ended with [0, 0]", "memory=256.00 MiB a worker is too little", "too large for a task in 6 segments"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "ecosystem.md",
            ("the same from netCDF: True", "the same from Parquet: True", "the same from CSV: True"),
            marks=pytest.mark.slow,
        ),
        pytest.param("views.md", ("dft (", "x_position", "r2_target_floor"), marks=pytest.mark.slow),
        pytest.param("statistics.md", ("standard_error", "silhouette", "p_family"), marks=pytest.mark.slow),
        pytest.param("directions.md", ("correlations", "x_variates", "neurons that matter"), marks=pytest.mark.slow),
        pytest.param(
            "compressing.md",
            ("20 directions", "maximal neurons", "Narrow(", "multiply_adds", "parameters, accuracy"),
            marks=pytest.mark.slow,
        ),
        pytest.param("import.md", ("would become", "hidden_states.1", "masked"), marks=pytest.mark.slow),
        pytest.param("training.md", ("signal", "by chance", "True"), marks=pytest.mark.slow),
        pytest.param(
            "freezing.md",
            ("frozen one after another", "operations are saved", "['0+1+2', '3+4+5', '6+7+8']"),
            marks=pytest.mark.slow,
        ),
        pytest.param("tools.md", ("svcca_google", "svcca_anatome"), marks=pytest.mark.slow),
        pytest.param("capture.md", ("x_step", "tokens of 2400", "(200, 12, 6)"), marks=pytest.mark.slow),
    ],
)
def test_the_examples_of_other_pages_run(tmp_path, page, said):
    if page in ("capture.md", "compressing.md", "freezing.md", "migrating.md", "tutorial.md"):
        pytest.importorskip("torch")
    found = run_python((Path(__file__).parent.parent / "docs" / page).read_text(), tmp_path)
    for words in said:
        assert words in found


def test_every_link_of_the_readme_leads_to_a_file():
    for target in re.findall(r"\]\((docs/[^)]+)\)", README):
        assert (Path(__file__).parent.parent / target).is_file(), target
