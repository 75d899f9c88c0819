"""What the fuzzers run: small finished folders to be damaged, functions that take bytes, and what they must keep.

Every target takes bytes and either returns or raises `DsvccaError`; anything else is a broken promise. `fuzz/` feeds
them with coverage, `test_fuzz.py` with a small corpus, random bytes, and damage of its own. Nothing here needs atheris.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

import dsvcca
from dsvcca import DsvccaError, DsvccaWarning
from dsvcca.activations import pieces, representations
from dsvcca.activations.labels import checked_dims, checked_labels, folder_name
from dsvcca.activations.paths import fit, labels_of, numbers, parts
from dsvcca.cli.options import dims_of, labels_in, planned, where_of
from dsvcca.results import commits, filling, opening
from dsvcca.storage import records
from dsvcca.workspace import contents, partials
from dsvcca.workspace.packs import Pack

ROWS = 40
OUTSIDE = "outside"
SECONDS, MEMORY = 10.0, 2 << 30
"""What one example may take: a tenth of a second and some MiB are usual."""

DEEP = "@deep@"
"""Stands in JSON for lists in each other, as deep as a parser goes and deeper."""

NASTY = (
    *(None, True, False, 0, -1, 1, 2, 3, 2**31, 2**53, 2**62, 2**63, 10**40, 0.5, -0.0, 1e308, float("inf")),
    *(float("nan"), "", "a", "0", "../../outside/s", "/etc/passwd", "c.0", "c.0.0", "numbers/c.0", "svcca/c.0.0"),
    *(
        "\ud800",
        "\0",
        "x" * 1000,
        "0" * 64,
        "f" * 16,
        "f4,,",
        "float64",
        "int32",
        "O",
        "M8[s]",
        "datapoint",
        "neuron",
        "x",
        ".",
    ),
    *([], {}, [[]], [0], [2**62, 2**62], [1, 1], {"a": 1}, {"../outside": "00000000"}, [None], [{}], DEEP),
)


class Draws:
    """Bytes as a fuzzer gives them, taken as numbers, texts and choices; zeros after their end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        found = self._data[self._at : self._at + count]
        self._at += count
        return found.ljust(count, b"\0")

    def rest(self) -> bytes:
        return self.take(max(0, len(self._data) - self._at))

    def below(self, count: int) -> int:
        return int.from_bytes(self.take(1 if count <= 256 else 2), "little") % count

    def text(self) -> str:
        return self.take(self.below(32)).decode("utf-8", "surrogateescape")

    def value(self, depth: int = 2) -> Any:
        """Return something that JSON can say."""
        kind = self.below(8 if depth else 6)
        if kind < 2:
            return NASTY[self.below(len(NASTY))]
        if kind == 2:
            return int.from_bytes(self.take(8), "little", signed=True)
        if kind == 3:
            return struct.unpack("<d", self.take(8))[0]
        if kind < 6:
            return self.text()
        if kind == 6:
            return [self.value(depth - 1) for _ in range(self.below(4))]
        return {self.text(): self.value(depth - 1) for _ in range(self.below(4))}


def places(document: Any) -> list[tuple[Any, Any]]:
    """Return every (list or dict, index or key) of a JSON document, from the top down."""
    inside = list(document.items() if isinstance(document, dict) else enumerate(document))
    found = [(document, key) for key, _ in inside]
    return found + [place for _, one in inside if isinstance(one, (dict, list)) for place in places(one)]


def edited(document: Any, which: int, how: int, value: Any) -> Any:
    """Return a JSON document in which one value is another, gone, doubled, a little larger, or exchanged for one."""
    found = copy.deepcopy(document)
    there = places(found) if isinstance(found, (dict, list)) else []
    if not there:
        return value
    inside, key = there[which % len(there)]
    old = inside[key]
    if how == 1:
        del inside[key]
    elif how == 2 and isinstance(inside, dict):
        inside[str(value)[:50]] = copy.deepcopy(old)
    elif how == 2:
        inside.append(copy.deepcopy(old))
    elif how == 3 and isinstance(old, (int, float)) and abs(old) < 2**70:
        inside[key] = old + 1
    elif how == 4 and isinstance(old, (int, float)):
        inside[key] = -old
    elif how in (4, 5):
        like = [place for place in there if type(place[0][place[1]]) is type(old) and place[0][place[1]] != old]
        near = [place for place in like if place[0] is inside] or like
        if not near or isinstance(old, (dict, list)):
            inside[key] = value
        else:
            other, name = near[which // len(there) % len(near)]
            inside[key], other[name] = other[name], old
    else:
        inside[key] = value
    return found


def spelled(document: Any) -> bytes:
    """Return a JSON document as bytes, with what stands for depth."""
    return json.dumps(document).replace(f'"{DEEP}"', "[" * 5000 + "]" * 5000).encode()


def signed_again(document: Any) -> Any:
    """Return our own metadata, or marker, with the digest that its record ought to have."""
    if not isinstance(document, dict):
        return document
    attributes = document.get("attributes")
    if isinstance(attributes, dict) and isinstance(attributes.get(records.KEY), dict):
        return {**document, "attributes": {**attributes, records.KEY: records.signed(attributes[records.KEY])}}
    return records.signed(document) if "digest" in document else document


STATM = Path("/proc/self/statm")
"""Where Linux says how much memory this process has; elsewhere it is not limited."""


class TooSlowError(BaseException):
    """Raised by the alarm: no `except Exception` may take it for something else."""


def places_of(error: BaseException) -> list[str]:
    """Return through which files and functions of the package something that was raised has come, the last one last."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}dsvcca{os.sep}" in f.filename]
    # A comprehension is a frame of its own until Python 3.12; what only opens a file is not where it went wrong.
    found = [f"{Path(f.filename).name} {f.name}" for f in frames if not f.name.startswith("<")]
    return [one for one in found if not one.startswith("folders.py ")] or found


@contextmanager
def answered() -> Iterator[None]:
    """Take a refusal for an answer."""
    with suppress(DsvccaError):
        yield


@contextmanager
def guarded(folder: Path | None = None, seconds: float = SECONDS) -> Iterator[None]:
    """Fail where something takes long, takes much memory, or touches what it should not: see `watched`."""

    def stop(*_: Any) -> None:
        raise TooSlowError

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = soft
    if STATM.exists():
        most = int(STATM.read_text().split()[0]) * resource.getpagesize() + MEMORY
    is_main = threading.current_thread() is threading.main_thread()
    began = time.monotonic()
    handler = signal.signal(signal.SIGALRM, stop) if is_main else None
    left = signal.setitimer(signal.ITIMER_REAL, seconds)[0] if is_main else 0.0
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        with watched(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other libraries, about what they find
            warnings.simplefilter("error", RuntimeWarning)
            yield
    except TooSlowError:
        _release(folder)
        raise AssertionError(f"not done after {seconds} s") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        if is_main:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            if handler is not None:  # one of C cannot be given back: libFuzzer's
                signal.signal(signal.SIGALRM, handler)
                signal.setitimer(signal.ITIMER_REAL, max(0.01, left - (time.monotonic() - began)) if left else 0.0)


def _release(folder: Path | None) -> None:
    """Let go who waits at a pipe that nobody writes, or this process could never end."""
    for path in folder.rglob("*") if folder else ():
        if path.is_fifo():
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


_watching: list[tuple[Path, list[str]]] = []
_TOUCHES = {"open", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
_TOUCHES |= {"os.scandir", "os.listdir", "shutil.rmtree", "os.chmod", "os.utime"}
_ELSEWHERE = ("/dev/", "/proc/", "/sys/")


def _listen(event: str, about: tuple[Any, ...]) -> None:
    if not _watching or event not in _TOUCHES:
        return
    folder, found = _watching[-1]
    reads = event in ("os.scandir", "os.listdir")
    if event == "open":
        reads = not (isinstance(about[2], int) and about[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
    for one in about[: 2 if event in ("os.rename", "os.link") else 1]:
        if not isinstance(one, (str, bytes, os.PathLike)):
            continue
        text = os.fsdecode(one)
        if event in ("os.remove", "os.rmdir", "os.mkdir") and about[-1] not in (-1, None):
            continue  # below a folder that was opened: `shutil.rmtree` has said which
        path = os.path.abspath(text)
        inside = path.startswith(f"{folder}/")
        if reads:
            wrong = path.startswith(f"{folder}/{OUTSIDE}") or path == "/etc/passwd"
        else:
            wrong = path.startswith(f"{folder}/{OUTSIDE}") if inside else not path.startswith(_ELSEWHERE)
            wrong = wrong and "__pycache__" not in path
        if wrong:
            found.append(f"{event} {path}")


@contextmanager
def watched(folder: Path | None) -> Iterator[None]:
    """Fail if this process writes outside of a folder, or looks into what lies there as `OUTSIDE`."""
    if folder is None:
        yield
        return
    _install()
    found: list[str] = []
    _watching.append((folder, found))
    try:
        yield
    finally:
        _watching.pop()
    assert not found, f"touched outside of '{folder}': {found[:5]}"


@cache
def _install() -> None:
    sys.addaudithook(_listen)


@dataclass
class Box:
    """A small finished store with its workspace and results, all below one folder, and what is right about it.

    `numbers` are the activations as `Store.read` gives them, by their labels; `table` are results, loaded.
    """

    folder: Path
    plan: Callable[[dsvcca.Store], Any]
    numbers: dict[tuple[Any, ...], np.ndarray] = field(default_factory=dict)
    table: xr.Dataset | None = None

    def copied(self, to: Path) -> Box:
        shutil.copytree(self.folder, to, symlinks=True)
        return Box(to, self.plan, self.numbers, self.table)

    @property
    def store(self) -> Path:
        return self.folder / "s.zarr"

    @property
    def out(self) -> Path:
        return self.folder / "r.zarr"

    @property
    def workspace(self) -> Path:
        return self.folder / "w"

    def compared(self) -> xr.Dataset:
        plan = self.plan(dsvcca.open_store(self.store))
        return dsvcca.compare(plan, self.out, workspace=self.workspace)


def key_of(labels: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(sorted(labels.items()))


@cache
def scratch() -> Path:
    """Return a folder of this process, in memory where that is possible; it goes when the process ends."""
    where = os.environ.get("TMPDIR") or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    _kept.append(tempfile.TemporaryDirectory(prefix="dsvcca-fuzz-", dir=where))
    return Path(_kept[-1].name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


@cache
def boxes() -> dict[str, Box]:
    """Return the folders that are damaged: dense layers in tiles; maps, sequences, targets; cross blocks, no bases."""
    rng = np.random.default_rng(0)
    signal_of = rng.standard_normal((ROWS, 3))

    def like(*shape: int) -> np.ndarray:
        noise = rng.standard_normal((ROWS, *shape))
        return (noise + (signal_of @ rng.standard_normal((3, int(np.prod(shape))))).reshape(noise.shape)).astype("f4")

    found = {
        "dense": Box(scratch() / "dense", _plan_dense),
        "rich": Box(scratch() / "rich", _plan_rich),
        "direct": Box(scratch() / "direct", _plan_direct),
    }
    arrays: dict[str, list[tuple[dict[str, Any], np.ndarray, str | None]]] = {
        "dense": [({"seed": seed, "lr": 0.1, "layer": "a"}, like(3 + seed), None) for seed in range(3)],
        "rich": [
            *(({"seed": seed, "layer": "conv"}, like(2, 3, 2), "nhwc") for seed in range(2)),
            *(({"seed": seed, "layer": "lstm"}, like(3, 4), "ntd") for seed in range(2)),
        ],
        "direct": [({"seed": seed, "layer": "a"}, like(4), None) for seed in range(2)],
    }
    for name, box in found.items():
        (box.folder / OUTSIDE).mkdir(parents=True)
        (box.folder / OUTSIDE / "s").write_text("nobody's business")
        ids: Any = [f"image {i}" for i in range(ROWS)] if name == "dense" else ROWS
        store = dsvcca.create_store(box.store, datapoints=ids)
        for labels, x, dims in arrays[name]:
            store.write(x, dims=dims, **labels)
            box.numbers[key_of(labels)] = x
        if name == "rich":
            store.write_mask(np.arange(3) < rng.integers(1, 4, (ROWS, 1)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DsvccaWarning)
            box.table = box.compared().load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        partials.write_partial(
            str(found["dense"].workspace),
            "fuzzed",
            {"a": np.arange(12.0).reshape(3, 4), "b": np.arange(3) * (1 + 2j)},
            {"step": 4096, "name": "whose"},
        )
    return found


def _plan_dense(store: dsvcca.Store) -> Any:
    return replace(dsvcca.plan_comparisons(store, variance=[0.9, 1.0]), panel=2)


def _plan_rich(store: dsvcca.Store) -> Any:
    target = np.cos(np.arange(ROWS))
    return replace(dsvcca.plan_comparisons(store, keep=["frequencies"], targets={"t": target}), panel=2)


def _plan_direct(store: dsvcca.Store) -> Any:
    return dsvcca.plan_comparisons(store, route="direct", rank=3)


def _folder(name: str) -> Path:
    """Return an empty folder for one example."""
    path = scratch() / "examples" / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


@cache
def _copy_of(box: str) -> Box:
    """Return a copy of a box in which files are written anew before every use."""
    return boxes()[box].copied(scratch() / f"copy-{box}")


def _fuzzed(source: Path, draws: Draws, *, sign: bool = True) -> bytes:
    """Return the JSON file at `source` with up to three of its values made others; or bytes that come as they are."""
    how = draws.below(8)
    if how == 0:
        return draws.rest()
    content = source.read_bytes()
    if how == 1:
        at = draws.below(len(content))
        return content[:at] + draws.rest() + content[at:]
    document = json.loads(content)
    for _ in range(1 + how % 3):
        document = edited(document, draws.below(2**16), draws.below(7), draws.value())
    with suppress(RecursionError, TypeError):
        document = signed_again(document) if sign else document
    return spelled(document)


@contextmanager
def _with(path: Path, content: bytes) -> Iterator[None]:
    """Let a file be another one for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


KINDS = {
    records.StoreRecord: "dense/s.zarr",
    records.IdsRecord: "dense/s.zarr/datapoints",
    records.MaskRecord: "rich/s.zarr/mask",
    records.RepresentationRecord: "rich/s.zarr/seed=1,layer=lstm",
    records.WorkspaceRecord: "dense/w",
    records.PackRecord: "rich/w/pack-*",
    records.PartialRecord: "dense/w/partial-fuzzed",
    records.ResultsRecord: "rich/r.zarr",
}
"""Every kind of record, and where there is one."""


def any_record(data: bytes) -> None:
    """A record of any kind is what its kind says, or refused."""
    draws = Draws(data)
    kind = list(KINDS)[draws.below(len(KINDS))]
    asked = list(KINDS)[draws.below(len(KINDS))] if draws.below(4) == 0 else kind
    boxes()
    folder = _folder("record")
    source = next(scratch().glob(f"{KINDS[kind]}/zarr.json"))
    (folder / "zarr.json").write_bytes(_fuzzed(source, draws, sign=draws.below(4) > 0))
    found = records.read_record(folder, asked)
    assert found is None or set(found) <= set(asked.__annotations__)


def representation(data: bytes) -> None:
    """A representation whose record was made up gives its numbers, or is refused; so does the list of findings."""
    draws = Draws(data)
    name = ("dense", "rich")[draws.below(2)]
    box = _copy_of(name)
    labels = list(box.numbers)[draws.below(len(box.numbers))]
    own = dict(labels)
    folder = box.store / folder_name(checked_labels(own))
    before = representations.read_record(folder)
    assert before
    dims = before[0].dims  # where they are others, so are its numbers
    with _with(folder / "zarr.json", _fuzzed(folder / "zarr.json", draws)):
        found = representations.read_record(folder)
        if found is None:
            return
        one = found[0]
        assert isinstance(str(one), str)
        assert isinstance(one.identity, str)
        list(pieces.findings(one))
        store = dsvcca.open_store(box.store)
        assert len(store.index) == len(box.numbers)
        store.verify()
        if (one.labels, one.dims, one.logical_shape, one.dtype) == (own, dims, box.numbers[labels].shape, "float32"):
            assert store.read(**own).tobytes() == box.numbers[labels].tobytes()


def mask(data: bytes) -> None:
    """A mask is the one that was written, or refused."""
    box = _copy_of("rich")
    path = box.store / "mask" / "zarr.json"
    with _with(path, _fuzzed(path, Draws(data))):
        found = representations.find_mask(box.store)
        if found is not None:
            assert representations.read_mask(found).shape == found.shape


def marker(data: bytes) -> None:
    """A commit marker counts, or counts for nothing."""
    draws = Draws(data)
    box = _copy_of("rich")
    there = sorted(path.stem for path in (box.out / "commits").glob("*-*.json"))
    name = there[draws.below(len(there))]
    path = box.out / "commits" / f"{name}.json"
    with _with(path, _fuzzed(path, draws)):
        commits.read_marker(box.out, name)
        commits.read_marker(box.out, name, ["svcca/c.0.0"])
        opening.what_is_missing(box.out)
        list(opening.findings(box.out))


def learned(data: bytes) -> None:
    """What was learned of bases is read, or learned again."""
    box = _copy_of("rich")
    path = box.out / "commits" / "bases.json"
    with _with(path, _fuzzed(path, Draws(data))):
        assert isinstance(filling.read_learned(box.out, 1), dict)


def results_record(data: bytes) -> None:
    """Results are opened, or refused."""
    draws = Draws(data)
    box = _copy_of(("dense", "rich")[draws.below(2)])
    path = box.out / "zarr.json"
    with _with(path, _fuzzed(path, draws)):
        opening.record_of(box.out)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DsvccaWarning)
            dsvcca.open_results(box.out)
        list(opening.findings(box.out))


def pack(data: bytes) -> None:
    """All that a pack holds is read, or refused."""
    draws = Draws(data)
    box = _copy_of(("dense", "rich", "direct")[draws.below(3)])
    names = sorted(path.name for path in box.workspace.glob("pack-*"))
    name = names[draws.below(len(names))]
    path = box.workspace / name / "zarr.json"
    with _with(path, _fuzzed(path, draws)):
        contents.find_bases(str(box.workspace))
        list(contents.findings(box.workspace))
        one = Pack(str(box.workspace), name)
        about = one._about
        for position in range(len(about)):
            _asked(one.basis, position)
            one.key(position)
            for frequency in range(len(about[position]["ranks"])):
                _asked(one.block, position, frequency)
                one.place(position, frequency)
                if one.pairs is not None:
                    _asked(one.cross, frequency, 0, position)
        if one.pairs is None:
            list(one.columns(slice(0, ROWS), slice(0, 2)))


def _asked(question: Callable[..., Any], *about: int) -> None:
    with suppress(DsvccaError):
        question(*about)


def partial(data: bytes) -> None:
    """A partial result is read, or refused."""
    box = _copy_of("dense")
    path = box.workspace / "partial-fuzzed" / "zarr.json"
    with _with(path, _fuzzed(path, Draws(data))):
        if partials.has_partial(str(box.workspace), "fuzzed"):
            partials.read_partial(str(box.workspace), "fuzzed")


def labels(data: bytes) -> None:
    """Labels are refused, or name a folder that lies where it should and is found again."""
    draws = Draws(data)
    given = {draws.text() or "layer": draws.value(1) for _ in range(draws.below(4))}
    given["layer"] = draws.value(0)
    found = checked_labels(given)
    assert found == {name: given[name] for name in found}
    assert checked_labels(found) == found
    name = folder_name(found)
    assert len(name.encode()) < 200
    assert name not in (".", "..", "datapoints", "mask")
    assert not set('/\\\0:*?"<>|') & set(name)
    assert representations.version_of(name) == (name, 1)
    assert json.loads(json.dumps(found)) == found


def dims(data: bytes) -> None:
    """Axes are named once each, or refused."""
    draws = Draws(data)
    shape = tuple(1 + draws.below(300) for _ in range(draws.below(6)))
    how = draws.below(3)
    given: Any = draws.text() if how == 0 else [draws.text() for _ in range(draws.below(6))]
    if how == 2:
        given = draws.value()
    found = checked_dims(given, shape, "an array")
    assert len(found) == len(set(found)) == len(shape)
    assert "datapoint" in found


def patterns(data: bytes) -> None:
    """Labels from paths, by a pattern and by themselves."""
    draws = Draws(data)
    paths = [draws.text() for _ in range(1 + draws.below(3))]
    pattern = draws.text() if draws.below(2) else None
    numbers(paths)
    for path in paths:
        assert all(name.isidentifier() for name in parts(path))
        if pattern is not None:
            with suppress(DsvccaError):
                assert all(text in path for text in fit(path, pattern).values())
    found = labels_of(paths, pattern)
    assert set(found) == set(paths)


FOREIGN = ("zarr.json", "a/zarr.json", "b/zarr.json", ".zgroup", ".zattrs", "a/.zarray", "a/.zattrs")


@cache
def _foreign() -> dict[int, Path]:
    found = {}
    x = np.random.default_rng(0).standard_normal((12, 3)).astype("f4")
    for version in (2, 3):
        found[version] = scratch() / f"foreign{version}"
        group = zarr.open_group(found[version], mode="w", zarr_format=version)
        group.attrs["about"] = 1
        names = {"dimension_names": ("datapoint", "neuron")} if version == 3 else {}
        group.create_array("a", data=x, chunks=(5, 3), **names).attrs["_ARRAY_DIMENSIONS"] = ["datapoint", "neuron"]
        if version == 3:
            group.create_array("b", data=x, chunks=(2, 3), shards=(4, 3))
    return found


def foreign(data: bytes) -> None:
    """A group of others is opened, listed, verified and read, or refused."""
    draws = Draws(data)
    version = 2 + draws.below(2)
    root = _foreign()[version]
    there = [name for name in FOREIGN if (root / name).exists()]
    path = root / there[draws.below(len(there))]
    with _with(path, _fuzzed(path, draws)):
        store = dsvcca.open_store(root)
        assert len(store.index)
        store.verify()
        for one in store.representations:
            _asked(lambda one=one: [piece.shape for piece in pieces.read_pieces(one)])


AS_NOTHING_IS_SAID: dict[str, Any] = {
    "where": None,
    "labels": None,
    "dims": None,
    "pairs": "all",
    "view": "auto",
    "variance": None,
    "criterion": "variance",
    "rank": None,
    "measures": None,
    "variant": None,
    "ridge": None,
    "shuffles": 1,
    "center": "all",
    "keep": None,
    "route": "auto",
    "memory": "1 GiB",
}
"""What `planned` is given of the options that are not typed."""


def command_line(data: bytes) -> None:
    """What is typed at a prompt is understood, or refused."""
    draws = Draws(data)
    store = dsvcca.open_store(boxes()["dense"].store)
    with suppress(DsvccaError):
        dims_of([draws.text() for _ in range(draws.below(4))])
    with suppress(DsvccaError):
        name = ("", "seed=", "lr=", "layer=")[draws.below(4)]
        store.select(**where_of(labels_in(store), [name + draws.text() for _ in range(1 + draws.below(2))]))
    option = draws.below(4)
    with suppress(DsvccaError):
        if option == 0:
            planned(store=boxes()["dense"].store, targets=[draws.text()], **AS_NOTHING_IS_SAID)
        elif option == 1:
            dsvcca.plan_comparisons(store, draws.text(), view=draws.text())
        else:
            number = ("", "1", "1.5", "1e", "-", "0x", "1_")[draws.below(7)]
            dsvcca.plan_comparisons(store, memory=number + draws.text())


TARGETS: dict[str, Callable[[bytes], None]] = {
    one.__name__: one
    for one in (
        *(any_record, representation, mask, marker, learned, results_record, pack, partial),
        *(labels, dims, patterns, foreign, command_line),
    )
}

CORPUS: tuple[bytes, ...] = (
    b"",
    b"\0" * 64,
    b"\xff" * 64,
    bytes(range(64)),
    b"{}",
    b"\1\1null",
    b"\0\0\0\0{}",
    b'\0\0\0\0{"attributes": {"dsvcca": []}}',
    b"\0\0\0\0" + b"[" * 5000,
    b"\3\5layer\x04\4conv1",
    b"\1\x1e{model}/{step}/{layer}\2\x11conv/seed=3,lr=0.1",
    b"\3nhwc\4\4\4\4\0\4nhwc",
    b"\1\3\x05seed=1,2,x\2\6GiB",
)
"""What every target is given besides random bytes: ends, extremes, and things that look right."""


def run(target: str, data: bytes) -> None:
    """Run one target on some bytes; a refusal is an answer, everything else is raised."""
    with guarded(), answered():
        TARGETS[target](data)
