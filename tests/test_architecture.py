"""The house: two wings and one door. Imports point downwards only, third parties included."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dsvcca

PACKAGE = Path(dsvcca.__file__).parent
HOUSE = {
    "errors": (),
    "live": (),
    "progress": (),
    "maths": (
        "blas",
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
        "in_memory",
        "cca",
        "dft",
        "sums",
        "resampling",
        "measures",
        "variants",
        "pair",
    ),
    "storage": ("folders", "files", "chunked", "staging", "records", "flat"),
    "workspace": ("packs", "packing", "contents", "partials"),
    "activations": (
        "labels",
        "representations",
        "pieces",
        "foreign_axes",
        "paths",
        "foreign",
        "writer",
        "kept",
        "sweeping",
        "store",
    ),
    "importing": ("kinds", "npy", "hdf5", "safetensors", "mat", "rows", "finding", "parts", "into_store"),
    "plans": (
        "pairs",
        "targets",
        "sizes",
        "passes",
        "portions",
        "machine",
        "price",
        "layout",
        "plan",
        "planning",
        "misleading",
    ),
    "results": ("dataset", "commits", "opening", "filling", "tables"),
    "clusters": ("settings", "documents", "local", "address", "slurm", "jobs", "driver", "kubernetes", "workplace"),
    "engine": (
        "facts",
        "cluster",
        "execute",
        "reduce",
        "segments",
        "panel",
        "products",
        "solves",
        "comparing",
        "correlate",
        "explain",
        "readiness",
        "bases",
        "keeping",
        "compare",
        "background",
    ),
    "analyses": ("stored_bases", "directions", "over_training", "shared"),
    "statistics": ("networks", "permutations", "doubts", "like_layers", "pairwise", "clustering", "groups"),
    "plot": ("figures", "shown", "training", "grids", "lines", "spectra", "classes", "trees", "traces"),
    "reports": ("packing", "contents", "page"),
    "demo": (),
    "cli": ("options", "plain", "stores", "runs", "showing", "submitting", "doctor"),
    "__main__": (),
}
"""Folders, and files without one, from the ground up; and in each folder its files, likewise."""

ORDER = [f"{folder}.{name}" if name else folder for folder, names in HOUSE.items() for name in names or ("",)]

EXTRAS = ("torch", "experiments")
"""Folders that need PyTorch; only the face knows of them."""

FACE = ("demo", "cli")

ALLOWED = {
    "zarr": {"storage", "workspace", "activations"},
    "dask": {"progress", "plans", "clusters", "engine", "demo", "cli"},
    "distributed": {"clusters", "engine", "analyses", "demo", "cli"},
    "torch": {"demo", *EXTRAS},
    "lightning": {"torch"},
    "pytorch_lightning": {"torch"},
    "transformers": {*EXTRAS},
    "fsspec": {"storage.folders"},
    "filelock": {"storage.folders", "experiments"},
    "pydantic": {"storage.records", "clusters.slurm"},
    "yaml": {"clusters.documents", "clusters.kubernetes"},
    "dask_jobqueue": {"clusters.slurm"},
    "upath": {"storage.folders"},
    "array_api_compat": {"maths.arrays"},
    "scipy": {"maths.arrays", "maths.nulls", "importing", "analyses", "statistics", "plot", "experiments"},
    "cupy": {"maths.arrays"},
    "matplotlib": {"plot", "demo", "experiments"},
    "xarray": {
        "results",
        "engine.compare",
        "engine.background",
        "statistics",
        "plot",
        "reports",
        "demo",
        "experiments",
    },
    "bokeh": {"reports.page", "demo"},
    "jinja2": {"reports.page"},
    "typer": {"cli"},
}


def module_of(path):
    """Return the name of a file below the package, `maths.arrays`; of a folder that of its `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in PACKAGE.rglob("*.py")}
OURS = {name: path for name, path in FILES.items() if name.split(".")[0] not in ("", *EXTRAS)}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and module_of_name(node.module) in ("", *HOUSE, *EXTRAS):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def module_of_name(name):
    """Return what stands behind `dsvcca.` in the name of a module; None of others."""
    return name.removeprefix("dsvcca").removeprefix(".") if name.split(".")[0] == "dsvcca" else None


def imported_modules(path):
    """Yield the modules of this package that a file imports: `errors`, `maths.arrays`."""
    for name in imports(path):
        if (own := module_of_name(name)) is not None:
            yield next((one for one in (own, own.rpartition(".")[0]) if one in FILES), own)


def test_every_module_has_its_place_in_the_order():
    folders = {folder for folder, names in HOUSE.items() if names}
    assert set(OURS) - folders == set(ORDER)


def test_modules_import_only_from_below():
    for place, name in enumerate(ORDER):
        for other in imported_modules(OURS[name]):
            if other.split(".")[0] in EXTRAS:
                assert name.split(".")[0] in FACE
            else:
                assert other in ORDER[:place] or other in HOUSE, f"{name} imports {other}, which stands above it"


def test_folders_import_only_from_below():
    order = list(HOUSE)
    for name, path in OURS.items():
        for other in imported_modules(path):
            folder = other.split(".")[0]
            assert folder in EXTRAS or order.index(folder) <= order.index(name.split(".")[0]), f"{name} imports {other}"


def test_third_parties_are_imported_where_they_belong():
    for name, path in FILES.items():
        for imported in imports(path):
            party = imported.split(".")[0]
            assert {name, name.split(".")[0]} & ALLOWED.get(party, {name}), f"{name} imports {party}"


def test_maths_knows_numpy_and_nothing_of_storage_or_clusters():
    for name in (name for name in ORDER if name.startswith("maths.")):
        parties = {i.split(".")[0] for i in imports(OURS[name])} - set(sys.stdlib_module_names)
        assert parties <= {"dsvcca", "numpy", "scipy", "array_api_compat", "threadpoolctl"}, name
        assert {other.split(".")[0] for other in imported_modules(OURS[name])} <= {"maths", "errors"}, name


def test_importing_the_package_imports_no_optional_extra():
    extras = {"torch", "matplotlib", "mlxtend", "h5py", "safetensors"}
    code = f"import sys, dsvcca; assert not {extras} & set(sys.modules); dsvcca.plot"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_capture_is_reached_from_the_package():
    pytest.importorskip("torch")
    code = "import dsvcca; dsvcca.torch.capture"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_docs_say_where_each_module_lives():
    page = (Path(__file__).parent.parent / "docs" / "design.md").read_text()
    told = page[page.index("## Where each thing lives") :]
    for name, path in FILES.items():
        assert path.name == "__init__.py" or re.search(rf"[`/]{re.escape(path.name)}`", told), f"{name} is not there"
