"""Compare neural-network representations by SVCCA and PWCCA, distributed and out of core.

In the order of use: `create_store` and `open_store`, `dsvcca.torch.capture`, `plan_comparisons`, `compare`,
`open_results`, `select`, `to_frame`, `dsvcca.plot`. In memory: `cca`, `svcca`, `pwcca`; for maps `dft_cca`.
"""

from importlib import import_module as _import_module
from typing import Any as _Any

from dsvcca import plot as plot
from dsvcca.compare import compare as compare
from dsvcca.correlations import CanonicalCorrelations as CanonicalCorrelations
from dsvcca.correlations import cca as cca
from dsvcca.dft import FrequencyCorrelations as FrequencyCorrelations
from dsvcca.dft import dft_cca as dft_cca
from dsvcca.errors import DsvccaError as DsvccaError
from dsvcca.errors import DsvccaWarning as DsvccaWarning
from dsvcca.execute import machine_of as machine_of
from dsvcca.measures import pwcca as pwcca
from dsvcca.measures import svcca as svcca
from dsvcca.plan import Plan as Plan
from dsvcca.planning import plan_comparisons as plan_comparisons
from dsvcca.results import open_results as open_results
from dsvcca.store import Store as Store
from dsvcca.store import create_store as create_store
from dsvcca.store import open_store as open_store
from dsvcca.tables import select as select
from dsvcca.tables import to_frame as to_frame


def __getattr__(name: str) -> _Any:
    if name == "torch":  # an optional extra, imported when it is used
        return _import_module("dsvcca.torch")
    raise AttributeError(f"module 'dsvcca' has no attribute {name!r}")
