"""The house: two wings and one door. Imports point downwards only, third parties included."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dsvcca

PACKAGE = Path(dsvcca.__file__).parent
MATHS = [
    "arrays",
    "frequencies",
    "views",
    "mixing",
    "moments",
    "translations",
    "basis",
    "nulls",
    "whiten",
    "wide",
    "correlations",
    "dft",
    "sums",
    "resampling",
    "measures",
    "variants",
    "pair",
]
DATA = [
    "folders",
    "files",
    "records",
    "flat",
    "labels",
    "activations",
    "pieces",
    "paths",
    "foreign",
    "writer",
    "sizes",
    "workspace",
    "kept",
    "store",
    "formats",
    "parts",
    "importing",
    "pairs",
    "targets",
]
DATA += ["passes", "machine", "price", "layout", "plan", "planning", "misleading", "partials"]
DATA += ["dataset", "commits", "results", "filling", "tables"]
DOOR = [
    "cluster",
    "execute",
    "reduce",
    "segments",
    "panel",
    "products",
    "solves",
    "correlate",
    "explain",
    "bases",
    "stored",
    "keeping",
    "directions",
    "training",
    "shared",
    "compare",
]
FACE = ["networks", "exchanging", "statistics", "figures", "plot", "demo", "cli"]
ORDER = ["errors", "progress", "blas", *MATHS, *DATA, *DOOR, *FACE]

ALLOWED = {
    "zarr": {"files", "pieces", "foreign", "writer", "workspace"},
    "dask": {"sizes", "price", "plan", "planning", "cluster", "keeping", "demo", "cli"},
    "distributed": {
        "cluster",
        "execute",
        "bases",
        "stored",
        "keeping",
        "directions",
        "training",
        "shared",
        "compare",
        "demo",
        "cli",
    },
    "torch": {"demo", "torch", "experiments"},
    "lightning": {"torch"},
    "pytorch_lightning": {"torch"},
    "transformers": {"torch", "experiments"},
    "fsspec": {"folders"},
    "filelock": {"folders", "experiments"},
    "pydantic": {"records"},
    "upath": {"folders"},
    "array_api_compat": {"arrays"},
    "scipy": {"arrays", "formats", "nulls", "shared", "statistics"},
    "cupy": {"arrays"},
    "matplotlib": {"figures", "plot", "demo", "experiments"},
    "xarray": {"experiments", "results", "tables", "compare", "networks", "statistics", "plot", "demo"},
    "typer": {"cli"},
}


EXTRAS = {"torch", "experiments"}
"""Folders that need PyTorch."""

FILES = {path.stem: [path] for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
FILES |= {
    path.parent.name: sorted(path.parent.glob("*.py"))
    for path in PACKAGE.glob("*/__init__.py")
    if path.parent.name not in EXTRAS
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "dsvcca":
            yield from (f"dsvcca.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_every_module_has_its_place_in_the_order():
    assert set(FILES) == set(ORDER)


def test_modules_import_only_from_below():
    for place, name in enumerate(ORDER):
        for imported in (one for path in FILES[name] for one in imports(path)):
            if imported.startswith(tuple(f"dsvcca.{extra}" for extra in EXTRAS)):
                assert name in FACE
            elif imported.startswith("dsvcca."):
                other = imported.split(".")[1]
                assert other == name or ORDER.index(other) < place, f"{name} imports {other}, which stands above it"


def test_third_parties_are_imported_where_they_belong():
    for path in PACKAGE.rglob("*.py"):
        name = path.stem if path.parent == PACKAGE else path.parent.name
        for imported in imports(path):
            party = imported.split(".")[0]
            assert name in ALLOWED.get(party, {name}), f"{name} imports {party}"


def test_maths_knows_numpy_and_nothing_of_storage_or_clusters():
    for name in MATHS:
        parties = {i.split(".")[0] for i in imports(PACKAGE / f"{name}.py")} - set(sys.stdlib_module_names)
        assert parties <= {"dsvcca", "numpy", "scipy", "array_api_compat"}, name
        assert not {i.split(".")[1] for i in imports(PACKAGE / f"{name}.py") if i.startswith("dsvcca.")} & set(DATA)


def test_importing_the_package_imports_no_optional_extra():
    extras = {"torch", "matplotlib", "mlxtend", "h5py", "safetensors"}
    code = f"import sys, dsvcca; assert not {extras} & set(sys.modules); dsvcca.plot"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_capture_is_reached_from_the_package():
    pytest.importorskip("torch")
    code = "import dsvcca; dsvcca.torch.capture"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
