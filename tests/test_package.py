"""What is installed: wheel and sdist hold all that is needed, extras that are missing say how they are installed."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import dsvcca
from tests.populations import write_population

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build wheel and sdist, offline, from a copy of what git would have."""
    pytest.importorskip("hatchling")
    pytest.importorskip("build")
    if not (ROOT / "dsvcca").is_dir():
        pytest.skip("the package is installed, and not here to be built")
    out = tmp_path_factory.mktemp("dist")
    line = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    return out


def test_wheel_and_sdist_hold_all_that_is_needed_and_could_be_uploaded(built):
    [wheel], [sdist] = built.glob("*.whl"), built.glob("*.tar.gz")
    inside = set(zipfile.ZipFile(wheel).namelist())
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dsvcca").rglob("*") if path.is_file()}
    ours = {name for name in ours if "__pycache__" not in name}
    assert {name for name in inside if name.startswith("dsvcca/")} == ours
    assert {"dsvcca/py.typed", "dsvcca/reports/static/page.html", "dsvcca/reports/static/maps.js"} <= ours
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        *ours,
        "tests/test_package.py",
        "docs/tutorial.md",
        "CITATION.cff",
        "Makefile",
        "deploy/Dockerfile",
    } <= packed
    line = [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_number_of_the_version_is_everywhere_the_same():
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version("dsvcca") == said == dsvcca.__version__
    assert f"\nversion: {said}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_citation_is_what_its_format_allows():
    line = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.citation-file-format"]
    done = subprocess.run([*line, str(ROOT / "CITATION.cff")], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_dependency_has_bounds_and_its_reason():
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    named = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    for one in named:
        if one.startswith("dsvcca["):
            continue
        assert any(sign in one for sign in (">=", "<")), f"{one} has no bounds"
        lines = [line for line in text.splitlines() if f'"{one}"' in line]
        assert any("#" in line for line in lines) or one.split(">")[0] in ("mypy", "pytest", "ruff"), (
            f"{one} has no reason"
        )


MISSING = {
    "torch": ("torch", "import dsvcca.torch"),
    "plot": ("matplotlib", "dsvcca.plot.over_training(results)"),
    "report": ("bokeh", "dsvcca.report(results, 'report.html')"),
    "s3": ("s3fs", "dsvcca.open_store('s3://bucket/activations.zarr')"),
    "import": ("h5py", "dsvcca.import_activations('acts.h5', 'new.zarr')"),
    "slurm": ("dask_jobqueue", "dsvcca.connect(slurm='slurm.yaml')"),
}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extras")
    store, _ = write_population(folder / "a.zarr")
    dsvcca.compare(dsvcca.plan_comparisons(store), folder / "r.zarr")
    (folder / "acts.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (folder / "slurm.yaml").write_text((ROOT / "deploy" / "slurm" / "dsvcca-gpu.yaml").read_text())
    return folder


@pytest.mark.parametrize(
    "extra",
    ["plot", "torch", *(pytest.param(one, marks=pytest.mark.slow) for one in ("report", "s3", "import", "slurm"))],
)
def test_an_extra_that_is_missing_says_how_it_is_installed(compared, extra):
    name, call = MISSING[extra]
    script = f"""
import sys
sys.modules[{name!r}] = None
import dsvcca
results = dsvcca.open_results("r.zarr")
try:
    {call}
except dsvcca.DsvccaError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=compared, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert f"pip install 'dsvcca[{extra}]'" in done.stdout
    assert done.stdout.count("\n") == 1


def test_the_command_line_says_it_without_a_traceback(compared):
    script = (
        "import sys; sys.modules['bokeh'] = None; sys.argv = ['dsvcca', 'report', 'r.zarr']\n"
        "from dsvcca.cli import app; app()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=compared, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == "error: reports need bokeh, which is not installed: pip install 'dsvcca[report]'\n"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_is_typed_is_seen_as_typed_from_outside(tmp_path):
    """mypy on a user's script finds the package's types, and what is used wrongly."""
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\nimport dsvcca\n"
        "x = np.zeros((10, 3))\n"
        "reveal_type(dsvcca.svcca(x, x))\n"
        "reveal_type(dsvcca.open_results('r.zarr'))\n"
        "dsvcca.svcca(x, x, variance='all')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 'Revealed type is "float"' in done.stdout.replace("builtins.", "")
    assert "Dataset" in done.stdout
    assert done.stdout.count("error:") == 1
    assert "incompatible type" in done.stdout


def test_results_go_into_other_libraries(compared, tmp_path):
    """pandas, Parquet, SciPy: the same numbers come out of them."""
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    results = dsvcca.open_results(compared / "r.zarr")
    frame = dsvcca.to_frame(results)
    frame.to_parquet(tmp_path / "pairs.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "pairs.parquet"), frame, check_dtype=False)
    apart = dsvcca.statistics.distances(results)
    linkage = hierarchy.linkage(squareform(apart.to_numpy(), checks=True), "average")
    assert linkage.shape == (len(apart) - 1, 4)
    assert np.isclose(apart.to_numpy()[0, 1], 1 - float(results.svcca[0, 1]))
