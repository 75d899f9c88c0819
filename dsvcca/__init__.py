"""Compare neural-network representations by SVCCA and PWCCA, distributed and out of core.

In the order of use: `create_store` and `open_store`, `dsvcca.torch.capture`, `import_activations`,
`keep_bases`, `plan_comparisons`, `compare` (or `start`, in the background), `open_results`, `select`, `to_frame`,
`dsvcca.plot`, `dsvcca.statistics`; `connect` starts a cluster or joins one. From the bases that plans leave:
`directions`, `signal_and_noise`, `shared_subspace`. In memory: `cca`, `svcca`, `pwcca`, `measure`; for maps `dft_cca`.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import Any as _Any

from dsvcca import plot, statistics
from dsvcca.activations.store import Store, create_store, open_store
from dsvcca.analyses.directions import directions
from dsvcca.analyses.over_training import signal_and_noise
from dsvcca.analyses.shared import SharedSubspace, shared_subspace
from dsvcca.clusters.workplace import connect
from dsvcca.engine.background import Run, start
from dsvcca.engine.cluster import machine_of
from dsvcca.engine.compare import compare
from dsvcca.engine.keeping import keep_bases
from dsvcca.errors import DsvccaError, DsvccaWarning
from dsvcca.importing.into_store import import_activations
from dsvcca.maths.cca import CanonicalCorrelations, cca
from dsvcca.maths.dft import FrequencyCorrelations, dft_cca
from dsvcca.maths.pair import measure, pwcca, svcca
from dsvcca.plans.plan import Plan
from dsvcca.plans.planning import plan_comparisons
from dsvcca.reports.page import report
from dsvcca.results.opening import open_results
from dsvcca.results.tables import select, to_frame

__all__ = [
    "CanonicalCorrelations",
    "DsvccaError",
    "DsvccaWarning",
    "FrequencyCorrelations",
    "Plan",
    "Run",
    "SharedSubspace",
    "Store",
    "cca",
    "compare",
    "connect",
    "create_store",
    "dft_cca",
    "directions",
    "import_activations",
    "keep_bases",
    "machine_of",
    "measure",
    "open_results",
    "open_store",
    "plan_comparisons",
    "plot",
    "pwcca",
    "report",
    "select",
    "shared_subspace",
    "signal_and_noise",
    "start",
    "statistics",
    "svcca",
    "to_frame",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__", "torch"]


def __getattr__(name: str) -> _Any:
    if name == "torch":  # an optional extra, imported when it is used
        return _import_module("dsvcca.torch")
    if name == "__version__":
        return _version("dsvcca")
    raise AttributeError(f"module 'dsvcca' has no attribute {name!r}")
