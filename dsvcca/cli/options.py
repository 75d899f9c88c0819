"""Options: what they are called, and what is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dsvcca.activations.labels import Label, Labels
from dsvcca.activations.store import Store, open_store
from dsvcca.errors import DsvccaError
from dsvcca.plans.plan import Plan
from dsvcca.plans.planning import plan_comparisons

StorePath = Annotated[str, typer.Argument(metavar="STORE", help="An activation store, or Zarr arrays of others.")]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", "-w", help="Only these: LABEL=VALUE or LABEL=VALUE,VALUE; may be repeated."),
]
LabelPattern = Annotated[
    str | None, typer.Option(help="For arrays of others: labels from paths, such as '{model}/{step}/{layer}'.")
]
Dims = Annotated[
    list[str] | None,
    typer.Option(
        help="For arrays of others: their axes, 'nchw', or those of one layer, 'conv1=nchw'; may be repeated."
    ),
]
PairsRule = Annotated[
    str, typer.Option(help="all, over_training, to_last_step, across_seeds, to_last_position or to_targets.")
]
View = Annotated[str, typer.Option(help="auto, or mean, max, positions, flatten, dft, lowpass, pool, each_position.")]
Variance = Annotated[
    list[float] | None, typer.Option(help="Share of variance to keep; repeat for several. (default: 0.99)")
]
Criterion = Annotated[str, typer.Option(help="variance, or singular for the letter of the SVCCA paper's appendix.")]
Rank = Annotated[int | None, typer.Option(help="Keep this many directions instead.")]
Measures = Annotated[
    list[str] | None,
    typer.Option("--measure", help="svcca, cka, ... or all (docs/numbers.md); repeat for several. (default: five)"),
]
VariantName = Annotated[str | None, typer.Option("--variant", help="google or singular: as others define it.")]
Ridge = Annotated[list[float] | None, typer.Option(help="Of ridge_cca and gulp; repeat for several. (default: 0.01)")]
Shuffles = Annotated[int, typer.Option(help="Of svcca_shuffled, and of p_shuffled, which takes 19 or more.")]
Center = Annotated[str, typer.Option(help="By frequency: subtract the mean of all of them, or of dc alone.")]
Keep = Annotated[list[str] | None, typer.Option(help="frequencies, correlations: also all of them; repeatable.")]
Route = Annotated[str, typer.Option(help="auto, or bases, direct, covariance, dual, randomised.")]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="Layers to be explained: LABEL=VALUE; repeat to say more. With --pairs to_targets: nothing else.",
    ),
]
SlurmFile = Annotated[
    Path | None,
    typer.Option(help="Workers as jobs of SLURM instead: a file that says what they are like."),
]
TlsCa = Annotated[Path | None, typer.Option(help="Certificate of who signed those of a cluster at tls://.")]
TlsCert = Annotated[Path | None, typer.Option(help="Certificate to show to such a cluster.")]
TlsKey = Annotated[Path | None, typer.Option(help="Key of that certificate.")]
Workspace = Annotated[str | None, typer.Option(help="Where bases are kept; default beside the store.")]
Memory = Annotated[
    str | None,
    typer.Option(help="Memory of one worker thread. (default: 1 GiB; that of the jobs of --slurm)"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Look at everything, say what it would cost, and stop.")]
Workers = Annotated[int, typer.Option(min=0, help="Local Dask workers; 0 works in this process.")]
Scheduler = Annotated[str | None, typer.Option(help="Address of a Dask scheduler to use instead.")]


def dims_of(spellings: Sequence[str] | None) -> str | dict[str, str] | None:
    """Return one spelling, or the LAYER=SPELLING pairs."""
    if not spellings or (len(spellings) == 1 and "=" not in spellings[0]):
        return spellings[0] if spellings else None
    if not all("=" in one for one in spellings):
        raise DsvccaError(f"--dims {' --dims '.join(spellings)}: give one spelling for all, or LAYER=SPELLING for each")
    return pairs_of(spellings, "--dims")


def labels_in(store: Store) -> list[Labels]:
    """Return the labels of all representations."""
    return [r.labels for r in store.representations]


def where_of(labels: Iterable[Labels], conditions: Sequence[str], option: str = "--where") -> dict[str, list[Label]]:
    """Return LABEL=VALUE,VALUE conditions with values of the type that those labels have."""
    chosen: dict[str, list[Label]] = {}
    labels = list(labels)
    for condition in conditions:
        name, values = _condition(condition, option)
        known = {str(one[name]): one[name] for one in labels if name in one}
        chosen[name] = [known.get(value, value) for value in values.split(",")]
    return chosen


def pairs_of(conditions: Sequence[str], option: str) -> dict[str, str]:
    """Return the two sides of every LABEL=VALUE, of which no two have the same label."""
    found: dict[str, str] = {}
    for condition in conditions:
        name, value = _condition(condition, option)
        if name in found:
            raise DsvccaError(f"{option} says both {name}={found[name]} and {name}={value}: give one of them")
        found[name] = value
    return found


def lines_of(path: Path) -> list[str]:
    """Return the lines of a text file."""
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DsvccaError(f"--ids '{path}' cannot be read ({error}): give text in UTF-8, an id a line") from error


def _condition(text: str, option: str) -> tuple[str, str]:
    """Return the two sides of LABEL=VALUE."""
    name, equals, value = text.partition("=")
    if not equals:
        raise DsvccaError(f"{option} {text!r} is not LABEL=VALUE: write for example {option} layer=conv1")
    return name, value


def opened(store: str, where: Sequence[str] | None, labels: str | None, dims: Sequence[str] | None) -> Store:
    """Open what STORE, --where, --labels and --dims name."""
    found = open_store(store, labels=labels, dims=dims_of(dims))
    return found.select(**where_of(labels_in(found), where)) if where else found


def planned(
    *,
    store: str,
    where: Sequence[str] | None,
    labels: str | None,
    dims: Sequence[str] | None,
    pairs: str,
    targets: Sequence[str] | None,
    view: str,
    variance: Sequence[float] | None,
    criterion: str,
    rank: int | None,
    measures: Sequence[str] | None,
    variant: str | None,
    ridge: Sequence[float] | None,
    shuffles: int,
    center: str,
    keep: Sequence[str] | None,
    route: str,
    memory: str | int,
) -> Plan:
    """Return the plan that the options of `plan` and `compare` ask for."""
    found = opened(store, where, labels, dims)
    options: dict[str, Any] = {"view": view, "criterion": criterion, "rank": rank, "center": center}
    options |= {"route": route, "memory": memory, "variant": variant, "shuffles": shuffles}
    if variance:
        options["variance"] = variance[0] if len(variance) == 1 else variance
    if ridge:
        options["ridge"] = ridge[0] if len(ridge) == 1 else ridge
    several = {"measures": measures, "keep": keep}
    options |= {name: list(dict.fromkeys(value)) for name, value in several.items() if value}
    if targets:
        wanted = where_of(labels_in(found.everything), targets, "--target")
        if many := [name for name, values in wanted.items() if len(values) > 1]:
            raise DsvccaError(
                f"--target gives {many[0]} several values: write each label on its own, --target layer=out"
            )
        options["targets"] = {name: values[0] for name, values in wanted.items()}
    return plan_comparisons(found, pairs, **options)
