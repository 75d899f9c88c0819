"""The command line."""

from __future__ import annotations

import functools
import io
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from dask.utils import format_bytes
from distributed import Client

from dsvcca.activations.labels import Label, describe, label_order
from dsvcca.activations.paths import numbers
from dsvcca.activations.representations import Representation
from dsvcca.activations.store import Store, open_store
from dsvcca.clusters.address import connected_to
from dsvcca.clusters.local import local_client
from dsvcca.clusters.slurm import read_slurm, slurm_client
from dsvcca.engine import cluster
from dsvcca.engine.bases import known_ranks
from dsvcca.engine.compare import compare as compare_plan
from dsvcca.engine.keeping import keep_bases
from dsvcca.errors import DsvccaError, DsvccaWarning
from dsvcca.importing.into_store import import_activations
from dsvcca.plans.plan import Plan
from dsvcca.plans.planning import ALL_BUT_NOISE, bytes_of, plan_comparisons
from dsvcca.results import opening
from dsvcca.results.tables import to_frame
from dsvcca.storage.folders import reach
from dsvcca.storage.records import read_attributes
from dsvcca.workspace import contents

app = typer.Typer(
    name="dsvcca",
    help="Compare neural-network representations by SVCCA and PWCCA, out of core and on a cluster.\n\n"
    "Start with 'dsvcca demo'. With activations of your own: 'dsvcca info STORE', 'dsvcca plan STORE', "
    "'dsvcca compare STORE RESULTS'.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

READ = "of .npy, .npz, .h5, .safetensors, .parquet, .mat or .txt files."

CHECKED = {"results": opening.findings, "workspace": contents.findings}
"""What reads objects whole that are no stores, by what they say they are."""

P = ParamSpec("P")
R = TypeVar("R")

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
    list[float] | None, typer.Option(help="Share of variance to keep; repeat for several. [default: 0.99]")
]
Criterion = Annotated[str, typer.Option(help="variance, or singular for the letter of the SVCCA paper's appendix.")]
Rank = Annotated[int | None, typer.Option(help="Keep this many directions instead.")]
Measures = Annotated[
    list[str] | None,
    typer.Option("--measure", help="svcca, cka, ... or all (docs/numbers.md); repeat for several. [default: five]"),
]
VariantName = Annotated[str | None, typer.Option("--variant", help="google or singular: as others define it.")]
Ridge = Annotated[list[float] | None, typer.Option(help="Of ridge_cca and gulp; repeat for several. [default: 0.01]")]
Shuffles = Annotated[int, typer.Option(help="Of svcca_shuffled, and of p_shuffled, which takes 19 or more.")]
Center = Annotated[str, typer.Option(help="By frequency: subtract the mean of all of them, or of dc alone.")]
Keep = Annotated[list[str] | None, typer.Option(help="frequencies: also the numbers of every frequency.")]
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
Memory = Annotated[str, typer.Option(help="Memory of one worker thread, such as '1.5 GiB'.")]


def plain_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print what a person can mend without a traceback, and warnings without their source line."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
            print(f"warning: {message}", file=sys.stderr)

        for stream in (sys.stdout, sys.stderr):  # labels may hold letters that a terminal has not
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        with warnings.catch_warnings():
            warnings.simplefilter("default", DsvccaWarning)
            warnings.showwarning = show
            try:
                return command(*args, **kwargs)
            except (DsvccaError, OSError, NotImplementedError) as error:
                print(f"error: {error}", file=sys.stderr)
                raise typer.Exit(1) from None
            except MemoryError:
                print("error: there is not enough memory: is something far larger than it can be?", file=sys.stderr)
                raise typer.Exit(1) from None
            except KeyboardInterrupt:
                print("stopped: what was finished is kept, the same line goes on from there", file=sys.stderr)
                raise typer.Exit(130) from None

    return wrapped


@app.callback(invoke_without_command=True)
def main(
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
) -> None:
    if show_version:
        print(f"dsvcca {version('dsvcca')}")
        raise typer.Exit


@app.command()
@plain_errors
def demo(
    folder: Annotated[Path, typer.Argument(help="Where everything goes; run it again to go on.")] = Path("demo"),
    seeds: Annotated[int, typer.Option(min=3, help="Networks to train.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Processes of the local cluster.")] = 2,
) -> None:
    """Train small convnets on real images, compare all layers at all steps, and draw what came out."""
    from dsvcca.demo import run_demo

    run_demo(folder, seeds=seeds, workers=workers)


@app.command()
@plain_errors
def info(store: StorePath, where: Where = None, labels: LabelPattern = None, dims: Dims = None) -> None:
    """Show what a store holds: labels, shapes, bytes."""
    opened = _opened(store, where, labels, dims)
    found = opened.representations
    print(f"{opened.path}: {len(found)} representations of {opened.datapoints} datapoints, ", end="")
    print(f"{format_bytes(sum(r.nbytes_now for r in found))}; datapoint ids {opened.ids or 'not known'}")
    if (valid := opened.read_mask()) is not None:
        print(f"  mask: {valid.sum():,} of {valid.size:,} positions are tokens")
    _print_unguarded(opened)
    for name in label_order({k for r in found for k in r.labels}):
        values = list(dict.fromkeys(r.labels[name] for r in found if name in r.labels))
        more = f" ... {len(values) - 12} more" if len(values) > 12 else ""
        print(f"  {name:10} {', '.join(map(str, values[:12]))}{more}")
    kinds = Counter(
        (str(r.labels["layer"]), str(r.shape), r.dtype, ", ".join(r.dims), _what_is_there(r)) for r in found
    )
    rows = [("layer", "shape", "type", "axes", "there", "representations"), *((*k, str(n)) for k, n in kinds.items())]
    _print_rows(rows)


@app.command("import")
@plain_errors
def import_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A file, or a folder: " + READ)],
    store: Annotated[str, typer.Argument(metavar="STORE", help="The activation store; made if it is not there.")],
    labels: LabelPattern = None,
    dims: Dims = None,
    constants: Annotated[
        list[str] | None, typer.Option("--set", help="A label of all of them: LABEL=VALUE; may be repeated.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Files or paths of arrays to leave out: '*.pt'; may be repeated.")
    ] = None,
    mask: Annotated[str, typer.Option(help="What arrays are called that say where tokens are.")] = "attention_mask",
    ids: Annotated[Path | None, typer.Option(help="A text file with the id of a datapoint on each line.")] = None,
    if_exists: Annotated[str, typer.Option(help="error, skip (go on where it stopped) or replace.")] = "error",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would become what, and write nothing.")] = False,
) -> None:
    """Bring activations that other tools saved into a store."""
    same = _pairs(constants or (), "--set")
    if wrong := sorted(set(signature(import_activations).parameters).intersection(same)):
        raise DsvccaError(f"--set {wrong[0]}=...: that is an option of the import, and no label: use another name")
    found = import_activations(
        source,
        store,
        labels=labels,
        dims=_dims(dims),
        exclude=exclude or (),
        mask=mask,
        ids=None if ids is None else _lines(ids),
        if_exists=if_exists,
        dry_run=dry_run,
        **{name: numbers([value]).get(value, value) for name, value in same.items()},
    )
    names = [str(name) for name in found.columns[: list(found.columns).index("file")]]
    rows: list[tuple[str, ...]] = [("outcome", "file", "array", "shape", "type", "axes", "labels, or why not")]
    for row in found.to_dict("records") if dry_run else found[found.outcome == "pass over"].to_dict("records"):
        said = describe({name: row[name] for name in names if row[name] is not None}) or row["why"]
        axes = ", ".join(row["dims"] or ())
        cells = (row["outcome"], row["file"], row["array"], row["shape"] or "", row["dtype"] or "", axes, said)
        rows.append(tuple(map(str, cells)))
    if len(rows) > 1:
        _print_rows(rows)
    total = format_bytes(int(found.loc[found.outcome == "write", "bytes"].sum()))
    counts = Counter(found.outcome)
    print(
        f"{store}: {counts['write']} arrays {'would be ' if dry_run else ''}written, {total}; {counts['skip']} there "
        f"already, {counts['mask']} masks, {counts['pass over']} passed over"
    )


@app.command()
@plain_errors
def verify(
    path: Annotated[str, typer.Argument(metavar="STORE", help="A store, Zarr arrays of others, results, a workspace.")],
    where: Where = None,
    labels: LabelPattern = None,
    dims: Dims = None,
    workspace: Workspace = None,
) -> None:
    """Read every chunk of a store, of results or a workspace and say what is wrong; exit status 1 if anything is."""
    root = reach(path, "store")
    kind = (read_attributes(root) or {}).get("kind")
    if isinstance(kind, str) and kind in CHECKED:
        found = list(CHECKED[kind](root))
    else:
        opened = _opened(path, where, labels, dims)
        found = list(opened.verify(workspace=workspace).itertuples(index=False, name=None))
        if kind is None:
            _print_unguarded(opened)
    for name, chunk, problem in found:
        print(f"{name}: {f'{chunk} ' if chunk else ''}{problem}")
    print(f"{kind or 'arrays of others'} read, {len(found)} problems")
    if found:
        raise typer.Exit(1)


@app.command("keep-bases")
@plain_errors
def keep_bases_(
    store: Annotated[str, typer.Argument(metavar="STORE", help="An activation store.")],
    where: Where = None,
    view: Annotated[list[str] | None, typer.Option(help="As of plan; repeat for several. [default: auto]")] = None,
    variance: Annotated[float, typer.Option(help="Share of variance to keep; smaller ones are in it.")] = ALL_BUT_NOISE,
    criterion: Criterion = "variance",
    rank: Rank = None,
    center: Center = "all",
    route: Annotated[str, typer.Option(help="bases, or covariance, dual, randomised.")] = "bases",
    memory: Memory = "1 GiB",
    workers: Annotated[int, typer.Option(min=0, help="Local Dask workers; 0 works in this process.")] = 0,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to use instead.")] = None,
    slurm: SlurmFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    workspace: Workspace = None,
) -> None:
    """Make the bases of representations, then drop their activations for good; exit status 1 if some have none."""
    tls = (tls_ca, tls_cert, tls_key)
    _check_cluster(workers, scheduler, tls, slurm)
    opened = _opened(store, where, None, None)
    before = int(opened.index.bytes.sum())
    with ExitStack() as stack:
        keep_bases(
            opened,
            view=view or "auto",
            variance=variance,
            criterion=criterion,
            rank=rank,
            center=center,
            route=route,
            memory=memory,
            client=_client(stack, workers, scheduler, tls, slurm, bytes_of(memory)),
            workspace=workspace,
        )
    print(f"{store}: {format_bytes(before)} before, {format_bytes(int(opened.index.bytes.sum()))} now")


@app.command()
@plain_errors
def plan(
    store: StorePath,
    pairs: PairsRule = "all",
    where: Where = None,
    view: View = "auto",
    variance: Variance = None,
    criterion: Criterion = "variance",
    rank: Rank = None,
    measures: Measures = None,
    variant: VariantName = None,
    ridge: Ridge = None,
    shuffles: Shuffles = 1,
    center: Center = "all",
    targets: Targets = None,
    keep: Keep = None,
    route: Route = "auto",
    memory: Memory = "1 GiB",
    workers: Annotated[int, typer.Option(min=1, help="Price it for so many worker threads of this machine.")] = 1,
    scheduler: Annotated[str | None, typer.Option(help="Price it for the cluster of this Dask scheduler.")] = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    workspace: Workspace = None,
    labels: LabelPattern = None,
    dims: Dims = None,
) -> None:
    """Show what a comparison would cost; reads no activations and computes nothing."""
    options = _options(view, variance, criterion, rank, measures, variant, ridge, shuffles, center, keep, route, memory)
    chosen = _plan(_opened(store, where, labels, dims), pairs, targets, options)
    if scheduler:
        with connected_to(scheduler, (tls_ca, tls_cert, tls_key)) as client:
            machine = cluster.machine_of(client)
    else:
        machine = cluster.machine_of(workers=workers)
    print(chosen.describe(machine, known_ranks(chosen, workspace)))


@app.command()
@plain_errors
def compare(
    store: StorePath,
    out: Annotated[str, typer.Argument(metavar="RESULTS", help="Results folder; the same line again resumes.")],
    pairs: PairsRule = "all",
    where: Where = None,
    view: View = "auto",
    variance: Variance = None,
    criterion: Criterion = "variance",
    rank: Rank = None,
    measures: Measures = None,
    variant: VariantName = None,
    ridge: Ridge = None,
    shuffles: Shuffles = 1,
    center: Center = "all",
    targets: Targets = None,
    keep: Keep = None,
    route: Route = "auto",
    memory: Memory = "1 GiB",
    workers: Annotated[int, typer.Option(min=0, help="Local Dask workers; 0 works in this process.")] = 0,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to use instead.")] = None,
    slurm: SlurmFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    workspace: Workspace = None,
    table: Annotated[Path | None, typer.Option(help="Also write one row a comparison to this CSV file.")] = None,
    labels: LabelPattern = None,
    dims: Dims = None,
) -> None:
    """Compare representations and write labelled results that xarray opens; exit status 1 if some failed."""
    if table is not None and not table.absolute().parent.is_dir():
        raise DsvccaError(f"--table {table}: there is no folder '{table.absolute().parent}', make it first")
    if table is not None and table.is_dir():
        raise DsvccaError(f"--table {table} is a folder: name a file in it")
    tls = (tls_ca, tls_cert, tls_key)
    _check_cluster(workers, scheduler, tls, slurm)
    options = _options(view, variance, criterion, rank, measures, variant, ridge, shuffles, center, keep, route, memory)
    chosen = _plan(_opened(store, where, labels, dims), pairs, targets, options)
    with ExitStack() as stack:
        client = _client(stack, workers, scheduler, tls, slurm, chosen.memory)
        machine = cluster.machine_of(client if scheduler or slurm else None, workers=workers or 1)
        print(chosen.describe(machine, known_ranks(chosen, workspace)), flush=True)
        found = compare_plan(chosen, out, client=client, workspace=workspace)
    if table is not None:
        to_frame(found).to_csv(table, index=False)
        print(f"table    {table}")
    print(f"results  {out}   (dsvcca.open_results({str(out)!r}))")
    if found.attrs["failed"]:
        raise typer.Exit(1)


def _opened(store: str, where: list[str] | None, labels: str | None, dims: list[str] | None) -> Store:
    opened = open_store(store, labels=labels, dims=_dims(dims))
    return opened.select(**_where(opened, where)) if where else opened


def _print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text, each column as wide as it has to be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _what_is_there(r: Representation) -> str:
    return "activations" if r.kept is None else f"bases: {', '.join(r.kept.views)}"


def _print_unguarded(store: Store) -> None:
    """Say what could be damaged without anybody noticing."""
    count = sum(not r.guarded for r in store.representations)
    if count:
        print(f"  {count} arrays carry no checksum: a changed byte of theirs cannot be found")


def _dims(spellings: list[str] | None) -> str | dict[str, str] | None:
    """Return one spelling, or the LAYER=SPELLING pairs."""
    if not spellings or (len(spellings) == 1 and "=" not in spellings[0]):
        return spellings[0] if spellings else None
    if not all("=" in one for one in spellings):
        raise DsvccaError(f"--dims {' --dims '.join(spellings)}: give one spelling for all, or LAYER=SPELLING for each")
    return _pairs(spellings, "--dims")


def _where(store: Store, conditions: list[str], option: str = "--where") -> dict[str, list[Label]]:
    """Return LABEL=VALUE,VALUE conditions with values of the type the store's labels have."""
    chosen: dict[str, list[Label]] = {}
    for condition in conditions:
        name, values = _condition(condition, option)
        known = {str(r.labels[name]): r.labels[name] for r in store.representations if name in r.labels}
        chosen[name] = [known.get(value, value) for value in values.split(",")]
    return chosen


def _pairs(conditions: Sequence[str], option: str) -> dict[str, str]:
    """Return the two sides of every LABEL=VALUE, of which no two have the same label."""
    found: dict[str, str] = {}
    for condition in conditions:
        name, value = _condition(condition, option)
        if name in found:
            raise DsvccaError(f"{option} says both {name}={found[name]} and {name}={value}: give one of them")
        found[name] = value
    return found


def _lines(path: Path) -> list[str]:
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


def _options(
    view: str,
    variance: list[float] | None,
    criterion: str,
    rank: int | None,
    measures: list[str] | None,
    variant: str | None,
    ridge: list[float] | None,
    shuffles: int,
    center: str,
    keep: list[str] | None,
    route: str,
    memory: str,
) -> dict[str, Any]:
    """Return the options of `plan_comparisons` that were given."""
    options: dict[str, Any] = {"view": view, "criterion": criterion, "rank": rank, "center": center}
    options |= {"route": route, "memory": memory, "variant": variant, "shuffles": shuffles}
    if variance:
        options["variance"] = variance[0] if len(variance) == 1 else variance
    if ridge:
        options["ridge"] = ridge[0] if len(ridge) == 1 else ridge
    several = {"measures": measures, "keep": keep}
    return options | {name: list(dict.fromkeys(value)) for name, value in several.items() if value}


def _plan(store: Store, pairs: str, targets: list[str] | None, options: dict[str, Any]) -> Plan:
    if targets:
        wanted = _where(store.everything, targets, "--target")
        if many := [name for name, values in wanted.items() if len(values) > 1]:
            raise DsvccaError(
                f"--target gives {many[0]} several values: write each label on its own, --target layer=out"
            )
        options["targets"] = {name: values[0] for name, values in wanted.items()}
    return plan_comparisons(store, pairs, **options)


def _check_cluster(workers: int, scheduler: str | None, tls: Sequence[Path | None], slurm: Path | None) -> None:
    given = {"--workers": workers, "--scheduler": scheduler, "--slurm": slurm}
    if len(several := [name for name, value in given.items() if value]) > 1:
        raise DsvccaError(f"{' and '.join(several)} say each on their own where the work is done: give one of them")
    if not scheduler and any(tls):
        raise DsvccaError("certificates were given and no --scheduler to show them to: give its tls:// address")


def _client(
    stack: ExitStack,
    workers: int,
    scheduler: str | None,
    tls: Sequence[Path | None],
    slurm: Path | None,
    memory: int,
) -> Client | None:
    """Return the cluster that was asked for, until the stack is left; None for this process."""
    if not (slurm or scheduler or workers):
        return None
    client: Client = stack.enter_context(
        slurm_client(read_slurm(slurm))
        if slurm
        else connected_to(scheduler, tls)
        if scheduler
        else local_client(workers, memory)
    )
    return client


if __name__ == "__main__":
    app(prog_name="dsvcca")
