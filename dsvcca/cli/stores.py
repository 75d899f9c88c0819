"""What lies on storage: shown, imported, verified."""

from __future__ import annotations

from collections import Counter
from inspect import signature
from pathlib import Path
from typing import Annotated

import typer
from dask.utils import format_bytes

from dsvcca.activations.labels import describe, label_order
from dsvcca.activations.paths import numbers
from dsvcca.activations.representations import Representation
from dsvcca.activations.store import Store, open_store
from dsvcca.cli.options import Dims, LabelPattern, StorePath, Where, Workspace, dims_of, lines_of, opened, pairs_of
from dsvcca.cli.plain import plain_errors, print_rows
from dsvcca.errors import DsvccaError
from dsvcca.importing.into_store import import_activations
from dsvcca.progress import waiting
from dsvcca.results import opening
from dsvcca.storage.folders import reach
from dsvcca.storage.records import read_attributes
from dsvcca.workspace import contents

READ = "of .npy, .npz, .h5, .safetensors, .parquet, .mat or .txt files."

CHECKED = {"results": opening.findings, "workspace": contents.findings}
"""What reads objects whole that are no stores, by what they say they are."""


@plain_errors
def info(store: StorePath, where: Where = None, labels: LabelPattern = None, dims: Dims = None) -> None:
    """Show what a store holds: labels, shapes, bytes."""
    at = opened(store, where, labels, dims)
    found = at.representations
    print(f"{at.path}: {len(found)} representations of {at.datapoints} datapoints, ", end="")
    print(f"{format_bytes(sum(r.nbytes_now for r in found))}; datapoint ids {at.ids or 'not known'}")
    if (valid := at.read_mask()) is not None:
        print(f"  mask: {valid.sum():,} of {valid.size:,} positions are tokens")
    _print_unguarded(at)
    for name in label_order({k for r in found for k in r.labels}):
        values = list(dict.fromkeys(r.labels[name] for r in found if name in r.labels))
        more = f" ... {len(values) - 12} more" if len(values) > 12 else ""
        print(f"  {name:10} {', '.join(map(str, values[:12]))}{more}")
    kinds = Counter(
        (str(r.labels["layer"]), str(r.shape), r.dtype, ", ".join(r.dims), _what_is_there(r)) for r in found
    )
    rows = [("layer", "shape", "type", "axes", "there", "representations"), *((*k, str(n)) for k, n in kinds.items())]
    print_rows(rows)


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
    same = pairs_of(constants or (), "--set")
    if wrong := sorted(set(signature(import_activations).parameters).intersection(same)):
        raise DsvccaError(f"--set {wrong[0]}=...: that is an option of the import, and no label: use another name")
    found = import_activations(
        source,
        store,
        labels=labels,
        dims=dims_of(dims),
        exclude=exclude or (),
        mask=mask,
        ids=None if ids is None else lines_of(ids),
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
        print_rows(rows)
    total = format_bytes(int(found.loc[found.outcome == "write", "bytes"].sum()))
    counts = Counter(found.outcome)
    print(
        f"{store}: {counts['write']} arrays {'would be ' if dry_run else ''}written, {total}; {counts['skip']} there "
        f"already, {counts['mask']} masks, {counts['pass over']} passed over"
    )


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
        with waiting(f"verify {kind}"):
            found = list(CHECKED[kind](root))
    else:
        at = opened(path, where, labels, dims)
        found = list(at.verify(workspace=workspace).itertuples(index=False, name=None))
        if kind is None:
            _print_unguarded(at)
    for name, chunk, problem in found:
        print(f"{name}: {f'{chunk} ' if chunk else ''}{problem}")
    print(f"{kind or 'arrays of others'} read, {len(found)} problems")
    if found:
        raise typer.Exit(1)


@plain_errors
def clean(
    store: Annotated[str, typer.Argument(metavar="STORE", help="An activation store.")],
    workspace: Workspace = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove it; else it is only shown.")] = False,
) -> None:
    """Show what nothing uses any more, of a store and its workspace, and remove it with --remove."""
    found = open_store(store).clean(workspace=workspace, remove=remove)
    rows = [(format_bytes(size), path, what) for path, what, size in found.itertuples(index=False, name=None)]
    if rows:
        print_rows(rows)
    total = format_bytes(int(found.bytes.sum()))
    if not rows:
        print(f"{store}: everything is in use")
    elif remove:
        print(f"{store}: {total} removed")
    else:
        print(f"{store}: {total} in all; with --remove, while nothing runs on it, that is removed")


def _what_is_there(r: Representation) -> str:
    return "activations" if r.kept is None else f"bases: {', '.join(r.kept.views)}"


def _print_unguarded(store: Store) -> None:
    """Say what could be damaged without anybody noticing."""
    count = sum(not r.guarded for r in store.representations)
    if count:
        print(f"  {count} arrays carry no checksum: a changed byte of theirs cannot be found")
