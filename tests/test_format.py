"""The specification of what is written, docs/format.md: a reader made from it alone, and that it leaves nothing out.

The first half of this file is that reader, and a verifier. It knows NumPy for numbers and google_crc32c for checksums,
and neither dsvcca nor Zarr; whether that is so is tested below.
"""

import ast
import hashlib
import inspect
import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NotRequired, get_args, get_origin, get_type_hints
from urllib.parse import quote

import google_crc32c
import numpy as np
import pytest
from typing_extensions import is_typeddict

import dsvcca
from dsvcca.activations.labels import checked_labels, folder_name
from dsvcca.activations.writer import stored_ids
from dsvcca.maths.frequencies import half_spectrum
from dsvcca.plans.layout import NUMERICS
from dsvcca.storage import records
from dsvcca.workspace.contents import find_bases
from dsvcca.workspace.packs import Pack
from tests.populations import activations

PAGE = Path(__file__).parent.parent / "docs" / "format.md"


# The reader. What all objects have in common


class WrongError(Exception):
    """What the specification refuses."""


def need(holds, *what):
    if not holds:
        raise WrongError(" ".join(map(str, what)))


class Exact(str):
    """A number as it stands in a file."""


def parsed(text, **numbers):
    def once(pairs):
        need(len(dict(pairs)) == len(pairs), "a name stands twice")
        return dict(pairs)

    def none(word):
        raise WrongError(word)

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=none, **numbers)
    except ValueError as error:
        raise WrongError(error) from error


SHORT = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escaped(letter):
    units = np.frombuffer(letter.encode("utf-16-le"), "<u2").tolist()
    return SHORT.get(letter) or "".join(f"\\u{unit:04x}" for unit in units)


def canonical(value):
    """Canonical JSON, of numbers as they stand in a file."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Exact):
        return str(value)
    if isinstance(value, str):
        return '"' + re.sub(r"[^ !#-\[\]-~]", lambda one: escaped(one[0]), value) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(canonical, value)) + "]"
    return "{" + ", ".join(f"{canonical(name)}: {canonical(value[name])}" for name in sorted(value)) + "}"


def sha256(content):
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def digest_of(exact):
    return sha256(canonical({name: value for name, value in exact.items() if name != "digest"}))


def table_of(name):
    """The fields of one kind of object, from the specification: {name: its type in words}."""
    part = PAGE.read_text().split(f"#### Fields: {name}\n", 1)[1].strip().split("\n\n", 1)[0]
    rows = [row.strip("| ").split(" | ") for row in part.splitlines()[2:]]
    return {row[0].strip("` |"): row[1].strip(" |") for row in rows}


FIELDS = {
    name: {field: "optional" not in kind for field, kind in table_of(name).items()}
    for name in re.findall(r"#### Fields: (.*)", PAGE.read_text())
}


def check_fields(about, name):
    need(isinstance(about, dict) and set(about) <= set(FIELDS[name]), "unknown fields of", name)
    need({field for field, needed in FIELDS[name].items() if needed} <= set(about), "missing fields of", name)
    return about


def text_of(path):
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise WrongError(error) from error


def signed_json(path, name):
    """A marker, or what was learned of bases."""
    exact = parsed(text_of(path), parse_int=Exact, parse_float=Exact)
    check_fields(exact, name)
    need(exact["digest"] == digest_of(exact), path, "has another digest")
    return parsed(text_of(path))


KINDS = {
    **{"store": ("activations", 1), "representation": ("representation", 1), "ids": ("datapoints", None)},
    **{"mask": ("mask", 1), "workspace": ("workspace", 1), "pack": ("pack", 3), "results": ("results", 5)},
}
UNSIGNED = ("activations", "datapoints", "workspace", "commits")


def record_of(folder, name):
    """The record of some kind, and all that its file says, numbers as they stand there; None if there is none."""
    if not (folder / "zarr.json").exists():
        return None
    exact = parsed(text_of(folder / "zarr.json"), parse_int=Exact, parse_float=Exact)
    own = exact.get("attributes", {}).get("dsvcca")
    if not isinstance(own, dict):
        return None
    need(exact["zarr_format"] == "3" and exact["node_type"] in ("group", "array"), folder)
    if "digest" in own or own.get("kind") not in UNSIGNED:
        need(own.get("digest") == digest_of(own), folder, "has another digest")
    if own.get("kind") != KINDS[name][0]:
        return None
    need(exact["node_type"] == ("array" if name == "ids" else "group"), folder)
    plain = parsed(text_of(folder / "zarr.json"))["attributes"]["dsvcca"]
    need(plain.get("format") == KINDS[name][1], folder, "has another format")
    need(name == "ids" or set(exact) == {"zarr_format", "node_type", "attributes"}, folder)
    need(name == "results" or set(exact["attributes"]) == {"dsvcca"}, folder)
    return SimpleNamespace(exact=exact, **{"own": check_fields(plain, name), "attributes": exact["attributes"]})


SIZES = {f"{sign}int{8 * size}": size for sign in ("", "u") for size in (1, 2, 4, 8)}
SIZES |= {"float16": 2, "float32": 4, "float64": 8, "bool": 1, "string": 0}


def array_of(folder, *, shape=None, chunks=None, dtype=None, dims=None, attributes=None):
    """What describes an array, all of it checked; and that it is what was expected."""
    found = parsed(text_of(folder / "zarr.json"))
    names = {"zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "codecs"}
    names |= {"fill_value", "dimension_names", "attributes"}
    need(names <= set(found) <= {*names, "storage_transformers"}, folder, "has other members")
    kind = found["data_type"]
    need(kind in SIZES, folder, "has type", kind)
    size = SIZES[kind]
    little = {"configuration": {"endian": "little"}} if size > 1 else {}
    first = {"name": "bytes", **little} if size else {"name": "vlen-utf8", "configuration": {}}
    fill = {"string": "", "bool": False}.get(kind, "NaN" if kind.startswith("float") else 0)
    wanted = {
        "zarr_format": 3,
        "node_type": "array",
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": found["chunk_grid"]["configuration"]["chunk_shape"]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "codecs": [first, {"name": "crc32c"}],
        "fill_value": fill,
        "storage_transformers": [],
    }
    for name, value in wanted.items():
        there = found.get(name, [])
        need(there == value and isinstance(there, type(value)), folder, name, "is", there)
    own = found["chunk_grid"]["configuration"]["chunk_shape"]
    both = ((shape, found["shape"]), (chunks, own), (dtype, kind), (dims, found["dimension_names"]))
    for expected, there in (*both, (attributes, found["attributes"])):
        need(expected is None or expected == there, folder, "is", there, "and not", expected)
    need(len(found["shape"]) == len(own) == len(set(found["dimension_names"])), folder, "has other axes")
    return SimpleNamespace(folder=folder, shape=found["shape"], chunks=own, dtype=kind, dims=found["dimension_names"])


def chunk_of(path, dtype, shape, checksum):
    """One chunk; `checksum` is what a record says of it, None where none does."""
    need(path.is_file(), path, "is missing")
    content = path.read_bytes()
    body, tail = content[:-4], content[-4:]
    need(google_crc32c.value(body).to_bytes(4, "little") == tail, path, "does not hold")
    need(checksum in (None, tail.hex()), path, "is not what was committed")
    if dtype == "string":
        count, at, found = int.from_bytes(body[:4], "little"), 4, []
        for place in range(count):
            if body.count(0, at) == len(body) - at == 4 * (count - place):  # nothing but empty ones
                found, at = found + [""] * (count - place), len(body)
                break
            size = int.from_bytes(body[at : at + 4], "little")
            found.append(body[at + 4 : at + 4 + size].decode())
            at += 4 + size
        need([count] == shape and at == len(body), path, "has another length")
        return np.array(found, dtype=object)
    kind = np.dtype(dtype).newbyteorder("<")
    need(len(body) == int(np.prod(shape)) * kind.itemsize, path, "has another length")
    return np.frombuffer(body, kind).reshape(shape)


def keys_of(array):
    counts = [-(-n // size) for n, size in zip(array.shape, array.chunks, strict=True)]
    return ["c." + ".".join(map(str, place)) for place in np.ndindex(*counts)]


def numbers_of(array, checksums):
    """The numbers of an array: chunks with a checksum, and what fills gaps for the others."""
    fill = "" if array.dtype == "string" else np.nan if array.dtype.startswith("float") else 0
    found = np.full(array.shape, fill, dtype=object if array.dtype == "string" else array.dtype)
    for key in keys_of(array):
        if key in checksums:
            numbers = chunk_of(array.folder / key, array.dtype, array.chunks, checksums[key])
            starts = [int(i) * size for i, size in zip(key.split(".")[1:], array.chunks, strict=True)]
            place = tuple(slice(a, a + size) for a, size in zip(starts, array.chunks, strict=True))
            part = found[place]
            part[...] = numbers[tuple(slice(0, n) for n in part.shape)]
    return found


def is_checksums(found, keys):
    return set(found) == set(keys) and all(re.fullmatch("[0-9a-f]{8}", one) for one in found.values())


# The reader: stores


def text_of_label(value):
    return str(value) if isinstance(value, (str, bool, int)) else repr(value)


def name_of(labels):
    name = ",".join(f"{quote(k, safe='')}={quote(text_of_label(v), safe=' +')}" for k, v in labels.items())
    return name if len(name) <= 150 else f"{name[:133]}-{sha256(name)[:16]}"


def in_order(names):
    first = [name for name in ("model", "seed", "step") if name in names]
    return [*first, *sorted(set(names) - {"model", "seed", "step", "layer"}), "layer"]


def content_of(folder):
    below = [path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()]
    names = sorted(path.as_posix() for path in below if not any(part.startswith(".") for part in path.parts))
    found = hashlib.sha256()
    for name in names:
        content = (folder / name).read_bytes()
        found.update(f"{name} {len(content)} ".encode() + hashlib.sha256(content).digest())
    return found.hexdigest()


def fingerprint_of(exact):
    names = ("content", "dims", "dtype", "shape", "written_as")
    return sha256(canonical({name: exact[name] for name in names if name in exact}))


def representation_of(folder):
    """One version of a representation, without its numbers; None where no record is."""
    record = record_of(folder, "representation")
    if record is None:
        return None
    own = record.own
    need(list(own["labels"]) == in_order(own["labels"]), folder, "has labels in another order")
    stem, _, version = folder.name.partition("@")
    need(stem == name_of(own["labels"]) and re.fullmatch(r"(@([2-9]|[1-9]\d+))?", folder.name[len(stem) :]), folder)
    need(own["dims"][0] == "datapoint" and own["dims"][-1] in ("channel", "neuron"), folder)
    keys = [f"c.{i}" + ".0" * (len(own["shape"]) - 1) for i in range(len(own["checksums"]))]
    need(keys and is_checksums(own["checksums"], keys), folder, "has other chunks")
    for one in [] if "kept" not in own else check_fields(own["kept"], "kept")["bases"]:
        check_fields(check_fields(one, "kept basis")["rule"], "rank rule")
    fingerprint = fingerprint_of(record.attributes["dsvcca"])
    return SimpleNamespace(folder=folder, stem=stem, version=int(version or 1), fingerprint=fingerprint, **own)


def activations_of(r):
    """All numbers of a representation, everything about them checked."""
    need(not hasattr(r, "kept"), r.folder, "was dropped")
    chunk = [-(-r.shape[0] // len(r.checksums)), *r.shape[1:]]
    array = array_of(r.folder / "activations", shape=r.shape, chunks=chunk, dtype=r.dtype, dims=r.dims, attributes={})
    need(set(keys_of(array)) == set(r.checksums), r.folder)
    numbers = numbers_of(array, r.checksums)
    need(np.isfinite(numbers).all(), r.folder, "is not finite")
    need(content_of(array.folder) == r.content, array.folder, "is not what was written")
    return numbers


def representations_of(root, datapoints):
    found, names = {}, {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if folder.name.startswith(".") or folder.name in ("datapoints", "mask"):
            continue
        stem, _, version = folder.name.partition("@")
        found.setdefault(stem, []).append((int(version or 1), representation_of(folder)))
        names.setdefault(stem, []).append(folder.name)
    newest = []
    for stem, versions in found.items():
        for (_, one), name in zip(versions, names[stem], strict=True):
            need(one is not None or is_other(root / name), name, "has no record")
        if any(one is not None for _, one in versions):
            one = max(versions, key=lambda version: version[0])[1]
            need(one.shape[0] == datapoints, stem, "has other datapoints")
            newest.append(one)
    return sorted(newest, key=lambda one: (one.written, one.folder.name))


def is_other(folder):
    """Whether results or a workspace lie there."""
    return any(record_of(folder, name) is not None for name in ("results", "workspace"))


def ids_of(root, datapoints):
    record = record_of(root / "datapoints", "ids")
    if record is None:
        return None
    need(record.own["of"] in ("given", "inputs"), root, "has ids of what?")
    about = {"dsvcca": record.own}
    n = [datapoints]
    array = array_of(root / "datapoints", shape=n, chunks=n, dtype="uint64", dims=["datapoint"], attributes=about)
    ids = numbers_of(array, {"c.0": None})
    need(sha256(ids.astype("<u8").tobytes()) == record.own["ids"], root, "has other ids")
    return SimpleNamespace(ids=ids, digest=record.own["ids"])


def mask_of(root, noted):
    record = record_of(root / "mask", "mask")
    need(record is not None or noted is None, "the mask is gone")
    if record is None:
        return None
    own = record.own
    need(noted in (None, own["mask"]), "another mask")
    need(is_checksums(own["checksums"], ["valid/c.0.0"]), root)
    shape, dims = own["shape"], ["datapoint", "position"]
    folder = root / "mask" / "valid"
    array = array_of(folder, shape=shape, chunks=shape, dtype="uint8", dims=dims, attributes={})
    valid = numbers_of(array, {"c.0.0": own["checksums"]["valid/c.0.0"]})
    said = f"({shape[0]}, {shape[1]})".encode()
    need(set(np.unique(valid)) <= {0, 1} and valid.sum() == own["rows"], "not a mask")
    need(sha256(said + valid.tobytes()) == own["mask"], "another mask")
    return SimpleNamespace(valid=valid.astype(bool), digest=own["mask"])


def store_of(root):
    """A store, all of it verified: representations with their numbers, or with None where they were dropped."""
    record = record_of(root, "store")
    need(record is not None, root, "is no store")
    n = record.own["datapoints"]
    ids, mask = ids_of(root, n), mask_of(root, record.own.get("mask"))
    found = representations_of(root, n)
    for one in found:
        need(one.datapoints is None or (ids is not None and one.datapoints == ids.digest), one.folder, "has other ids")
        one.numbers = None if hasattr(one, "kept") else activations_of(one)
    return SimpleNamespace(datapoints=n, ids=ids, mask=mask, representations=found)


# The reader: workspaces


def bins_of(space):
    """The bins of half a transform, and their weights."""
    if not space:
        return [()], [1]
    inside = [i for i in np.ndindex(*space) if i[-1] <= space[-1] // 2]
    turned = {i: tuple((s - a) % s for a, s in zip(i, space, strict=True)) for i in inside}
    kept = [i for i in inside if not (turned[i] in turned and turned[i] < i)]
    return kept, [1 if turned[i] == i else 2 for i in kept]


SIGNS = bytes.fromhex("".join(re.findall(r"^[0-9a-f]{128}$", PAGE.read_text(), re.M)))


def unmixed(stored):
    """Rows as they were before they were mixed, block by block."""
    found = []
    for start in range(0, len(stored), 64):
        block = stored[start : start + 64].astype(float)
        m = len(block)
        angles = 2 * np.pi * np.outer(np.arange(m), np.arange(m)) / m
        bits = np.unpackbits(np.frombuffer(SIGNS, np.uint8))[np.arange(start, start + m) % 4096]
        found.append(np.where(bits, 1.0, -1.0)[:, None] * ((np.cos(angles) + np.sin(angles)) / np.sqrt(m) @ block))
    return np.concatenate(found)


class Stretch:
    """Hands out a stretch of float64 array by array."""

    def __init__(self, folder, size, checksums):
        length = min(131_072, size)
        array = array_of(folder, shape=[size], chunks=[length], dtype="float64", dims=["value"], attributes={})
        need(set(keys_of(array)) == set(checksums), folder, "has other chunks")
        self.numbers, self.at = numbers_of(array, checksums), 0

    def take(self, *shape, weight=1):
        size = int(np.prod(shape)) * weight
        part = self.numbers[self.at : self.at + size]
        self.at += size
        return (part if weight == 1 else part.view(complex)).reshape(shape)


def pack_of(folder):
    """A pack, all of it verified: bases with everything that belongs to them."""
    record = record_of(folder, "pack")
    if record is None:
        return None
    own = record.own
    n, bases = own["rows"], []
    for about in own["bases"]:
        check_fields(check_fields(about, "basis")["rule"], "rank rule")
        need(about["off_block"] is None or check_fields(about["off_block"], "off-block"), folder)
        _, weights = bins_of(about["space"])
        need(len(weights) == len(about["ranks"]) and max(about["ranks"]) <= min(about["neurons"], n), folder)
        bases.append(SimpleNamespace(weights=weights, blocks=[], columns=[], n=n, **about))
    places = [(f, b) for f in range(max(len(b.weights) for b in bases)) for b in bases if f < len(b.weights)]
    sizes = [b.weights[f] * b.ranks[f] * (b.ranks[f] + 1 + b.neurons) for f, b in places]
    sizes += [len(b.weights) * b.neurons * (3 if b.space else 2) + b.neurons + n for b in bases]

    def listed(name):
        return {key.split("/")[1]: tail for key, tail in own["checksums"].items() if key.startswith(f"{name}/")}

    parts = Stretch(folder / "parts", sum(sizes), listed("parts"))
    for b in bases:
        f = len(b.weights)
        b.singular_values = parts.take(f, b.neurons)
        b.mean = parts.take(f, b.neurons, weight=2 if b.space else 1)
        b.neuron_norms, b.row_norms = parts.take(b.neurons), parts.take(n)
    for f, b in places:
        k, w = b.ranks[f], b.weights[f]
        b.blocks.append([parts.take(k, k, weight=w), parts.take(k, weight=w), parts.take(k, b.neurons, weight=w)])
    for b in bases:
        held = b"".join(part.tobytes() for part in (b.singular_values, b.row_norms, *b.blocks[0][2:], *b.blocks[0][:2]))
        need(hashlib.blake2b(held, digest_size=16).hexdigest() == b.key, folder, "has another key")
    need((own["chunks"] is None) != (own["pairs"] is None), folder)
    cross = {}
    if own["chunks"] is not None:
        widths = [b.ranks[f] * b.weights[f] for f, b in places]
        about = {"dtype": "float32", "dims": ["row", "direction"], "attributes": {}}
        array = array_of(folder / "columns", shape=[n, sum(widths)], chunks=own["chunks"], **about)
        need(set(keys_of(array)) == set(listed("columns")), folder, "has other chunks")
        every = unmixed(numbers_of(array, listed("columns")))
        for (f, b), u in zip(places, np.split(every, np.cumsum(widths)[:-1], axis=1), strict=True):
            b.columns.append(u if b.weights[f] == 1 else u[:, 0::2] + 1j * u[:, 1::2])
    else:
        blocks = [(f, i, j) for f in range(len(bases[0].weights)) for i, j in own["pairs"]]
        shapes = [(bases[i].ranks[f], bases[j].ranks[f]) for f, i, j in blocks]
        weights = [bases[0].weights[f] for f, _, _ in blocks]
        size = sum(a * b * w for (a, b), w in zip(shapes, weights, strict=True))
        flat = Stretch(folder / "cross", size, listed("cross"))
        cross = {one: flat.take(*s, weight=w) for one, s, w in zip(blocks, shapes, weights, strict=True)}
    need({key.split("/")[0] for key in own["checksums"]} <= {"parts", "columns", "cross"}, folder)
    return SimpleNamespace(bases=bases, cross=cross, is_kept=(folder / "kept.json").exists())


def orthonormal_of(basis, f):
    """The orthonormal columns of one frequency, and what times them gives the centred activations."""
    cholesky, sums, components = basis.blocks[f]
    u = basis.columns[f]
    return (u - sums / basis.n) @ np.linalg.inv(cholesky).conj().T, u @ components


def workspace_of(root):
    record = record_of(root, "workspace")
    need(record is not None, root, "is no workspace")
    return {path.name: pack_of(path) for path in sorted(root.glob("pack-*"))}


def check_kept(store, packs):
    """Every basis that was kept must be there, and be of what it says."""
    there = [b for pack in packs.values() if pack and pack.is_kept for b in pack.bases]
    for r in (one for one in store.representations if one.numbers is None):
        for one in r.kept["bases"]:
            same = [b for b in there if (b.fingerprint, b.rule) == (one["fingerprint"], one["rule"])]
            need(same, r.folder, "is lost")
            basis = same[0]
            need(one["fingerprint"] in fingerprints_of(store, r, one), r.folder, "has another basis")
            widths = [w * k for w, k in zip(basis.weights, basis.ranks, strict=True)]
            parts = len(basis.weights) * basis.neurons * (3 if basis.space else 2) + basis.neurons + basis.n
            parts += sum(w * (k + 1 + basis.neurons) for w, k in zip(widths, basis.ranks, strict=True))
            need((one["rank"], one["nbytes"]) == (sum(widths), 4 * basis.n * sum(widths) + 8 * parts), r.folder)


def fingerprints_of(store, r, one):
    """The fingerprints that a basis which was kept may have: of each position, or the only one."""
    masked = ""
    if store.mask is not None and "position" in r.dims and r.shape[1] == store.mask.valid.shape[1]:
        masked = f" of {store.mask.digest}"
    views = {"positions": [f"positions of all positions{masked}"], "each_position": []}
    views |= {view: [f"{view}{masked}"] for view in ("mean", "max")}
    views["each_position"] = [f"neurons of position {p}" for p in range(r.shape[1])]
    for view in views.get(one["view"], [one["view"]]):
        seeds = [r.fingerprint, view, f"center={one['center']}", "float32", one["route"]]
        yield sha256("[" + ", ".join(f'"{seed}"' for seed in seeds) + f", {one['numerics']}]")


# The reader: results

BY_RIDGE = ("ridge_cca", "gulp")
LABELS = 4096


def marker_of(root, name, keys, version=None):
    """A marker that counts; None where it does not."""
    try:
        found = signed_json(root / "commits" / f"{name}.json", "marker")
        need(is_checksums(found["chunks"], keys), name, "names other chunks")
        need(version in (None, found["version"]), name, "is of another version")
        for key, tail in found["chunks"].items():
            need((root / key).is_file() and (root / key).read_bytes()[-4:].hex() == tail, key)
    except WrongError:
        return None
    return found


def arrays_of_results(own):
    """Dimensions, chunk and type of every array of numbers, by name, and what covers it."""
    d, listed = own["definition"], own["listed"]
    panel, found = d["panel"], {}
    variance = ["variance"] if "variance" in listed else []
    if own["pairs"]:
        kinds = {name: ("float64", [*(["ridge"] if name in BY_RIDGE else []), "variance"]) for name in d["measures"]}
        kinds |= {name: ("int64", ["variance"]) for name in ("rank_x", "rank_y")} | {"view": ("int8", [])}
        kinds |= {"svcca_by_frequency": ("float64", ["frequency", "variance"])} if own["frequencies"] else {}
        kinds |= {"correlations": ("float64", ["correlation", "variance"])} if d["correlations"] else {}
        for name, (dtype, dims) in kinds.items():
            dims = [dim for dim in dims if dim in ("frequency", "correlation") or dim in listed]
            found[name] = SimpleNamespace(dtype=dtype, dims=["x", "y", *dims], chunk=[panel, panel], by="tiles")
    if own["targets"]:
        for name, dims in (("r2_target", ["x", "target", *variance]), ("r2_target_floor", ["x", *variance])):
            found[name] = SimpleNamespace(dtype="float64", dims=dims, chunk=[panel], by="panels")
    for name in ("off_block", "off_block_floor") if own["off_block"] else ():
        found[name] = SimpleNamespace(dtype="float64", dims=["x"], chunk=[LABELS], by="between")
    return found


def label_column(values):
    there = [value for value in values if value is not None]
    kind = type(there[0])
    if kind is str:
        return np.array(["" if value is None else value for value in values], dtype=object)
    full = {int: np.int64, bool: np.bool_, float: float}[kind] if len(there) == len(values) else float
    return np.array([np.nan if value is None else value for value in values], dtype=full)


def coordinates_of(own, targets):
    """Every array that no marker covers: its dimension and what has to be in it."""
    d, members = own["definition"], own["members"]
    found = {}
    names = in_order({name for one in members for name in one["labels"]})
    for side in "xy":
        found[side] = side, np.arange(len(members))
        for name in names:
            found[f"{side}_{name}"] = side, label_column([one["labels"].get(name) for one in members])
    found |= {name: (name, np.array(d[name], dtype=float)) for name in own["listed"]}
    if own["targets"]:
        found["target"] = "target", targets
    if own["frequencies"]:
        both = [(grid, i, w) for grid in d["grids"] for i, w in zip(*bins_of(grid), strict=True)]
        signed = [[a - s if 2 * a > s else a for a, s in zip(i, grid, strict=True)] for grid, i, _ in both]
        found["frequency_grid"] = "frequency", np.array(["x".join(map(str, g)) for g, _, _ in both], dtype=object)
        found["frequency_weight"] = "frequency", np.array([w for _, _, w in both])
        shares = [[a / s for a, s in zip(one, g, strict=True)] for one, (g, _, _) in zip(signed, both, strict=True)]
        found["frequency_cycles"] = "frequency", np.array([np.sqrt(np.sum(np.square(one))) for one in shares])
        for axis in range(max(map(len, d["grids"]))):
            column = [one[axis] if axis < len(one) else 0 for one in signed]
            found[f"frequency_{axis}"] = "frequency", np.array(column)
    return found


def results_of(root, *, whole=True):
    """Results, all of them verified: every array over the places that are shown, by name; and what is missing."""
    record = record_of(root, "results")
    need(record is not None, root, "are no results")
    own, d = record.own, record.own["definition"]
    need(own["metadata"] is not None, root, "is being made")
    n, panel = len(own["members"]), d["panel"]
    panels = -(-n // panel)
    need(isinstance(panel, int) and panel > 0 and max(own["shown"]) < n, root)
    said = {name: value for name, value in record.attributes.items() if name not in ("dsvcca", "array_library")}
    need(sha256(canonical(said)) == own["said"], root, "says something else")
    need(all(said[name] == record.attributes["dsvcca"][name] for name in ("warnings", "failed")), root)
    own_definition = record.attributes["dsvcca"]["definition"]
    need(all(said[name] == value for name, value in own_definition.items()), root)
    for one in own["members"]:
        check_fields(one, "member")
        need(d["route"] == "direct" or sha256(one["identity"] + " ")[:16] == one["digest"], root, "has other members")
    for name, digest in own["metadata"].items():
        need(sha256(text_of(root / name / "zarr.json")) == digest, name, "was changed")
    # Coordinates
    coordinates, covered = {}, {}
    for key, tail in own["checksums"].items():
        covered.setdefault(key.split("/")[0], {})[key.split("/")[1]] = tail
    for name, (dim, wanted) in coordinates_of(own, None).items():
        size = own["frequencies"] if dim == "frequency" else None
        array = array_of(root / name, dims=[dim], chunks=[LABELS] if dim in "xy" else None, attributes=None)
        need(size is None or array.shape == array.chunks == [size], name)
        need(is_checksums(covered.pop(name), keys_of(array)), name)
        tails = {key.split("/")[1]: tail for key, tail in own["checksums"].items() if key.startswith(f"{name}/")}
        coordinates[name] = numbers_of(array, tails)
        if wanted is not None:
            need(coordinates[name].dtype == wanted.dtype and coordinates[name].shape == wanted.shape, name)
            same = coordinates[name] == wanted
            need((same | ((wanted != wanted) & (coordinates[name] != coordinates[name]))).all(), name, "differs")
    need(not covered, "chunks of nothing")
    # Markers
    kinds = arrays_of_results(own)
    need(set(own["metadata"]) == {*kinds, *coordinates}, root, "has other arrays")
    sizes = {"x": n, "y": n, "frequency": own["frequencies"], "correlation": d["correlations"]}
    sizes |= {name: len(coordinates[name]) for name in ("variance", "ridge", "target") if name in coordinates}
    arrays, ends = {}, {}
    for name, one in kinds.items():
        shape = [sizes[dim] for dim in one.dims]
        chunks = [*one.chunk, *shape[len(one.chunk) :]]
        arrays[name] = array_of(root / name, shape=shape, chunks=chunks, dtype=one.dtype, dims=one.dims)
        ends[name] = ".0" * (len(shape) - len(one.chunk))
    counting, missing, who = {}, [], {}
    for tile, version in own["tiles"].items():
        i, j = map(int, tile.split("-"))
        need(i <= j < panels, tile, "is no tile")
        both = dict.fromkeys(((i, j), (j, i)))
        names = [name for name, one in kinds.items() if one.by == "tiles"]
        marker = marker_of(root, tile, [f"{v}/c.{a}.{b}{ends[v]}" for v in names for a, b in both], version)
        if marker is not None:
            digests = re.findall("." * 16, marker["digests"])
            one, other = digests[: marker["rows"]], digests[marker["rows"] :]
            need(i != j or one == other, tile)
            who[i, j], who[j, i] = (one, other), (other, one)
        counting[tile] = marker
    for name, version in own["panels"].items():
        p = int(name.removeprefix("targets-"))
        keys = [f"{v}/c.{p}{ends[v]}" for v in ("r2_target", "r2_target_floor")]
        counting[name] = marker_of(root, name, keys, version)
        who[(p,)] = (re.findall("." * 16, counting[name]["digests"]),) if counting[name] else ((),)
    if own["off_block"]:
        keys = [f"{v}/c.{q}" for v in ("off_block", "off_block_floor") for q in range(-(-n // LABELS))]
        counting["between"] = marker_of(root, "between", keys)
    missing = [name for name, marker in counting.items() if marker is None]
    need(not (whole and missing), missing, "are missing")
    # Numbers
    tails = {key: tail for marker in counting.values() if marker for key, tail in marker["chunks"].items()}
    found = {}
    for name, array in arrays.items():
        mine = {key.split("/")[1]: tail for key, tail in tails.items() if key.startswith(f"{name}/")}
        found[name] = numbers_of(array, mine)
    check_members(own, kinds, found, who)
    shown = np.asarray(own["shown"])
    for name, one in kinds.items():
        found[name] = found[name][np.ix_(shown, shown)] if one.dims[:2] == ["x", "y"] else found[name][shown]
    for name in coordinates:
        dim = name[0] if name[:1] in "xy" and name[1:2] in ("", "_") else ""
        coordinates[name] = coordinates[name][shown] if dim and name != dim else coordinates[name]
    coordinates |= {side: np.arange(len(shown)) for side in "xy"}
    learned = signed_json(root / "commits" / "bases.json", "bases")["bases"] if whole else {}
    for one in learned.values():
        check_fields(one, "learned")
    meanings = {"views": own["views"], "said": parsed(text_of(root / "zarr.json"))["attributes"]}
    return SimpleNamespace(numbers=found, coordinates=coordinates, missing=missing, learned=learned, **meanings)


def check_members(own, kinds, found, who):
    """Take numbers away that are of representations of before; what was never asked for holds what fills gaps."""
    digests, panel = [one["digest"] for one in own["members"]], own["definition"]["panel"]
    fills = {"float64": np.nan, "int64": 0, "int8": 0}
    n = len(digests)

    def same(places, side):
        start = places * panel
        there = [a == b for a, b in zip(digests[start : start + panel], side, strict=False)]
        return np.array([*there, *[False] * (min(panel, n - start) - len(there))], dtype=bool)

    for tile, sides in who.items():
        masks = [same(p, side) for p, side in zip(tile, sides, strict=True)]
        where = tuple(slice(p * panel, p * panel + len(m)) for p, m in zip(tile, masks, strict=True))
        counts = masks[0] if len(masks) == 1 else masks[0][:, None] & masks[1][None, :]
        for name, one in kinds.items():
            if one.by == ("tiles" if len(tile) == 2 else "panels"):
                found[name][where][~counts] = fills[one.dtype]


# What dsvcca wrote, read by it and by the reader above

N = 90


def quiet(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **options)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A store, its workspace and results that grew: of all kinds of layers, one replaced, one hidden, one dropped."""
    root = tmp_path_factory.mktemp("format")
    ids = [f"image {i}" for i in range(N)]
    store = dsvcca.create_store(root / "s.zarr", datapoints=ids)
    rng = np.random.default_rng(0)
    for seed in range(3):
        store.write(activations(seed, n=N, p=5), layer="fc", seed=seed, datapoints=ids)
        store.write(rng.standard_normal((N, 4, 3, 2)), layer="conv/é@🧠", seed=seed, lr=1e-5 + seed, dims="nhwc")
    for seed in range(2):
        store.write(rng.standard_normal((N, 3, 4)).astype("float16"), layer="lstm", seed=seed, ok=True, dims="ntd")
    store.write(rng.standard_normal((N, 2, 3)), layer="gru", seed=0, dims="ntd")
    store.write(rng.integers(0, 2, (N, 9)).astype(bool), layer="x" * 200, seed=0)
    mask = np.ones((N, 3), dtype=bool)
    mask[7:30, 2:] = False
    store.write_mask(mask)

    def compared(narrower):
        options = {"variance": [0.9, 1.0], "keep": ["frequencies", "correlations"], "ridge": [0.01, 0.1]}
        measures = ["svcca", "pwcca_x", "gulp"]
        targets = {"t": np.arange(2.0 * N).reshape(N, 2) ** 2, "s": np.arange(N) % 3}
        plan = quiet(dsvcca.plan_comparisons, narrower, measures=measures, targets=targets, **options)
        return quiet(dsvcca.compare, replace(plan, panel=6), root / "r.zarr")

    compared(store)
    store.write(activations(9, n=N, p=6), layer="fc", seed=1, if_exists="replace")
    store.write(activations(10, n=N, p=6), layer="fc", seed=3)
    quiet(dsvcca.keep_bases, store.select(seed=0, layer=["fc", "lstm"]), variance=1.0)
    quiet(dsvcca.keep_bases, store.select(layer="gru"), view="each_position", rank=2)
    compared(store.select(layer=["fc", "conv/é@🧠", "lstm"]).select(seed=[0, 1, 3]))
    pairs = [({"layer": "fc", "seed": 1}, {"layer": "fc", "seed": 3}), ({"layer": "fc", "seed": 2}, {"seed": 3})]
    plan = quiet(dsvcca.plan_comparisons, store, pairs=pairs, variance=0.9, route="direct")
    quiet(dsvcca.compare, plan, root / "direct.zarr")
    return root


@pytest.fixture
def copied(written, tmp_path):
    shutil.copytree(written, tmp_path / "w")
    return tmp_path / "w"


def test_a_store_is_read_from_the_specification_alone(written):
    store, own = dsvcca.open_store(written / "s.zarr"), store_of(written / "s.zarr")
    there = store.representations
    assert own.datapoints == store.datapoints == N
    assert np.array_equal(own.ids.ids, stored_ids(written / "s.zarr")[0])
    assert own.ids.digest == store.ids
    assert np.array_equal(own.mask.valid, store.read_mask())
    names = [(one.folder.name, one.labels, one.fingerprint) for one in own.representations]
    assert names == [(r.name, r.labels, r.fingerprint) for r in there]
    assert sum(one.version == 2 for one in own.representations) == 4  # one replaced, three dropped
    assert [one.numbers is None for one in own.representations] == [r.kept is not None for r in there]
    for one in own.representations:
        if one.numbers is not None:
            found = store.read(**one.labels)
            assert found.dtype == one.numbers.dtype
            assert np.array_equal(found, one.numbers)


def test_a_workspace_is_read_from_the_specification_alone(written):
    where = written / "s.zarr.workspace"
    packs = workspace_of(where)
    count = 0
    for receipts in find_bases(str(where)).values():
        for receipt in receipts:
            basis = Pack(str(where), receipt.ref.pack).basis(receipt.ref.position)
            own = packs[receipt.ref.pack].bases[receipt.ref.position]
            assert own.fingerprint == receipt.fingerprint
            for name in ("singular_values", "mean", "neuron_norms", "row_norms", "ranks", "weights", "nonzero"):
                assert np.array_equal(getattr(own, name), getattr(basis, name), equal_nan=True)
            for one, other in zip(own.blocks, basis.blocks, strict=True):
                assert all(map(np.array_equal, one, (other.cholesky, other.column_sums, other.components)))
            count += 1
    assert count == sum(len(pack.bases) for pack in packs.values()) > 10
    joint = [(name, pack) for name, pack in packs.items() if pack.cross]
    assert joint
    for name, pack in joint:
        stored = Pack(str(where), name)
        assert all(np.array_equal(block, stored.cross(*place)) for place, block in pack.cross.items())
    check_kept(store_of(written / "s.zarr"), packs)
    assert 0 < sum(pack.is_kept for pack in packs.values()) < len(packs)


def fitting(packs, numbers, space):
    """The bases of some activations, by the columns of their transform: those that keep every direction."""
    x = np.fft.fftn(numbers.astype(float), axes=range(1, 1 + len(space)), norm="ortho")
    bins, _ = bins_of(space)
    z = np.stack([x[(slice(None), *place)] for place in bins])
    z = z - z.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(z[0].real, axis=0)
    for b in (b for pack in packs.values() for b in pack.bases):
        if b.columns and b.space == list(space) and b.n == len(numbers) and b.neurons == z.shape[2]:
            first = b.blocks[0][2]
            if np.allclose(np.linalg.norm(first, axis=0), norms, rtol=1e-4) and b.rule["variance"] == 1:
                yield b, z


@pytest.mark.parametrize(("layer", "space"), [("fc", ()), ("conv/é@🧠", (4, 3))])
def test_columns_of_bases_are_those_of_the_activations(written, layer, space):
    store, packs = store_of(written / "s.zarr"), workspace_of(written / "s.zarr.workspace")
    [r] = [r for r in store.representations if r.labels["layer"] == layer and r.labels["seed"] == 1]
    found = list(fitting(packs, r.numbers, space))
    assert found
    for basis, z in found:
        for f, own in enumerate(z):
            u, again = orthonormal_of(basis, f)
            own = own.real if basis.weights[f] == 1 else own
            assert np.allclose(again, own, atol=1e-5 * np.abs(z).max())
            if f == 0 or not space:
                assert np.allclose(u.conj().T @ u, np.eye(u.shape[1]), atol=1e-12)


def test_results_are_read_from_the_specification_alone(written):
    found, own = dsvcca.open_results(written / "r.zarr"), results_of(written / "r.zarr")
    assert set(own.numbers) == set(found.data_vars)
    assert set(own.coordinates) == set(found.coords)
    for name, numbers in {**own.numbers, **own.coordinates}.items():
        there = found[name].values
        assert there.shape == numbers.shape
        if numbers.dtype == object:
            assert there.tolist() == numbers.tolist()
        else:
            assert there.dtype == numbers.dtype
            assert there.tobytes() == numbers.tobytes(), name
    assert found.view.attrs["flag_meanings"].split() == own.views
    said = {name: value for name, value in own.said.items() if name != "dsvcca"}
    assert said == found.attrs
    assert len(own.coordinates["x"]) == 7
    assert len(record_of(written / "r.zarr", "results").own["members"]) == 11
    assert np.isfinite(own.numbers["svcca"]).all()
    assert (own.numbers["rank_x"] > 0).all()


def test_results_of_sums_alone_are_read(written):
    found, own = dsvcca.open_results(written / "direct.zarr"), results_of(written / "direct.zarr")
    assert found.attrs["route"] == "direct"
    for name, numbers in own.numbers.items():
        assert found[name].values.tobytes() == numbers.tobytes()
    assert (own.numbers["rank_x"] > 0).sum() == 4


def test_the_reader_finds_what_stands_in_a_tile_before_it_was_lost(copied):
    out = copied / "r.zarr"
    own = results_of(out)
    (out / "commits" / "0-1.json").unlink()
    with pytest.warns(dsvcca.DsvccaWarning, match="is not complete"):
        found = dsvcca.open_results(out)
    less = results_of(out, whole=False)
    assert less.missing == ["0-1"]
    assert less.numbers["svcca"].tobytes() == found.svcca.values.tobytes() != own.numbers["svcca"].tobytes()


def test_numbers_of_a_representation_of_before_count_for_nothing(copied):
    path = copied / "r.zarr" / "zarr.json"
    content = json.loads(path.read_text())
    record = content["attributes"]["dsvcca"]
    place = record["shown"][1]
    record["members"][place] |= {"identity": "another", "digest": sha256("another ")[:16]}
    content["attributes"]["dsvcca"] = records.signed({k: v for k, v in record.items() if k != "digest"})
    path.write_text(json.dumps(content))
    own = results_of(copied / "r.zarr")
    assert not own.numbers["rank_x"][1].any()
    assert not own.numbers["view"][:, 1].any()
    assert np.isnan(own.numbers["svcca"][:, 1]).all()
    assert np.isnan(own.numbers["r2_target"][1]).all()
    assert np.isfinite(np.delete(own.numbers["r2_target"], 1, axis=0)).all()


# Damage


def objects(root):
    """Objects as small as can be verified alone: the files of each, and what verifies it."""
    yield files_of(root / "s.zarr"), lambda: store_of(root / "s.zarr")
    yield files_of(root / "r.zarr"), lambda: results_of(root / "r.zarr")
    where = root / "s.zarr.workspace"
    yield [where / "zarr.json"], lambda: workspace_of(where)
    for folder in sorted(where.glob("pack-*")):
        yield files_of(folder), lambda folder=folder: check_there(pack_of(folder))


def files_of(folder):
    """All files of which more counts than that they are there; labels once."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.parent.name.startswith("y_"))
    return [path for path in found if path.name not in (".lock", "kept.json") and path.parts[-2:] != NOTHING]


NOTHING = ("commits", "zarr.json")


def check_there(found):
    need(found is not None, "lost its record")


def unsigned(path):
    """The stretches of a file that are in no digest, since they are said for people alone."""
    text = path.read_text() if path.name == "zarr.json" else ""
    found = re.search(r'"array_library": \[[^]]*\]', text)
    return range(*found.span()) if found else range(0)


def older(root, path):
    """Whether a file belongs to a version of a representation that counts no more."""
    folder = root / "s.zarr" / path.relative_to(root).parts[1]
    return path.is_relative_to(root / "s.zarr") and Path(f"{folder}@2").exists()


def test_one_changed_byte_anywhere_is_found(copied):
    rng = np.random.default_rng(0)
    tried = 0
    for files, verify in objects(copied):
        verify()
        for path in files:
            content = path.read_bytes()
            places = {int(rng.integers(len(content)))}
            if "r.zarr" not in path.parts:
                places |= {0, len(content) - 1, int(rng.integers(len(content)))}
            for at in places - set(unsigned(path)) if not older(copied, path) else ():
                path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
                with pytest.raises((WrongError, KeyError)):
                    verify()
                    pytest.fail(f"byte {at} of {path} was changed, and nobody saw it")
                tried += 1
            path.write_bytes(content)
        verify()
    assert tried > 250


def test_a_file_that_is_gone_or_cut_short_is_found(copied):
    for path in [
        *(f"s.zarr/{name}" for name in ("zarr.json", "datapoints/c.0", "mask/valid/c.0.0", "mask/zarr.json")),
        *(f"s.zarr/seed=2,layer=fc/{name}" for name in ("zarr.json", "activations/c.0.0", "activations/zarr.json")),
        *(f"r.zarr/{name}" for name in ("zarr.json", "x_layer/c.0", "svcca/c.0.1.0", "svcca/zarr.json")),
        *(f"r.zarr/commits/{name}.json" for name in ("0-1", "targets-0", "between", "bases")),
    ]:
        verify = store_of if path.startswith("s") else results_of
        root, content = copied / path.split("/")[0], (copied / path).read_bytes()
        for other in (None, b"", content[:-1], content + b"\0"):
            (copied / path).unlink() if other is None else (copied / path).write_bytes(other)
            with pytest.raises(WrongError):
                verify(root)
                pytest.fail(f"{path} was changed, and nobody saw it")
        (copied / path).write_bytes(content)
        verify(root)


# The page


@pytest.mark.parametrize(
    "labels",
    [
        {"layer": "../é@1", "lr": 1e-5, "ok": True},
        {"seed": -3, "step": 10**15, "model": "a b+c~d.e_f-g%", "layer": "\t\n,="},
        {"ñandú": 1e300, "z": 0.1, "layer": "🧠" * 30},
        {"layer": 1e16, "a": 123456.75, "b": False},
        {"layer": "y" * 144},
        {"layer": "y" * 145},
    ],
)
def test_names_of_folders_are_those_of_the_page(labels):
    checked = checked_labels(labels)
    assert list(checked) == in_order(checked)
    assert name_of(checked) == folder_name(checked)


def test_the_digest_of_the_page_is_right():
    text, digest = re.search(r'^\| `(\{"kind": "x".*\})` \| `([0-9a-f]{64})` \|$', PAGE.read_text(), re.M).groups()
    exact = parsed(text, parse_int=Exact, parse_float=Exact)
    assert digest_of(exact) == digest == records.record_digest(json.loads(text))
    assert f"    {canonical(exact)}\n" in PAGE.read_text()
    assert google_crc32c.value(b"123456789").to_bytes(4, "little").hex() in PAGE.read_text()


@pytest.mark.parametrize(
    "value", ['é\x7f\0\u2028🧠"\\/\b\f', 1e16, 1e15, 123456789012345680.0, 1e-4, 1.5e-5, -0.0, 5e-324]
)
def test_canonical_json_is_what_is_hashed(value):
    exact = parsed(json.dumps({"a": value}), parse_int=Exact, parse_float=Exact)
    assert digest_of(exact) == records.record_digest({"a": value})


def test_the_half_spectra_of_the_page_are_right():
    for space in ((32, 32), (7, 7), (5, 4), (4, 6), (1, 1), (3, 4, 2), (6,), ()):
        bins, weights = bins_of(space)
        half = half_spectrum(space)
        assert (bins, weights) == ([tuple(one) for one in half.bins.tolist()], half.weights.tolist())
    examples = re.findall(r"(\(\d+, \d+\))(?: has)? (\d+)(?: bins)?[,.]", PAGE.read_text())
    assert len(examples) == 4
    for space, count in examples:
        assert len(bins_of(ast.literal_eval(space))[0]) == int(count)


TABLES = {
    "store": records.StoreRecord,
    "ids": records.IdsRecord,
    "mask": records.MaskRecord,
    "rank rule": records.RuleRecord,
    "kept basis": records.KeptBasisRecord,
    "kept": records.KeptRecord,
    "representation": records.RepresentationRecord,
    "workspace": records.WorkspaceRecord,
    "off-block": records.OffBlockRecord,
    "basis": records.BasisRecord,
    "pack": records.PackRecord,
    "partial array": records.PartialArray,
    "partial": records.PartialRecord,
    "member": records.MemberRecord,
    "results": records.ResultsRecord,
    "marker": records.Marker,
    "learned": records.LearnedRecord,
    "bases": records.Learned,
}


def test_every_record_is_on_the_page():
    there = [one for one in vars(records).values() if is_typeddict(one) and one.__module__ == records.__name__]
    assert {one.__name__ for one in there} == {one.__name__ for one in TABLES.values()}
    assert set(FIELDS) == set(TABLES)


ALWAYS = ("store", "workspace", "ids")
"""Records that are read without a digest as well."""


@pytest.mark.parametrize("name", TABLES)
def test_every_field_of_a_record_is_on_the_page(name):
    hints = get_type_hints(TABLES[name], include_extras=True)
    assert list(FIELDS[name]) == list(hints)
    for field, hint in hints.items():
        needed = get_origin(hint) is not NotRequired or (field == "digest" and name not in ALWAYS)
        assert FIELDS[name][field] == needed, field


@pytest.mark.parametrize("name", TABLES)
def test_fixed_values_of_a_record_are_on_the_page(name):
    kinds = table_of(name)
    for field, hint in get_type_hints(TABLES[name], include_extras=False).items():
        allowed = [value for value in get_args(hint) if isinstance(value, (str, int))] or [
            value for one in get_args(hint) for value in get_args(one) if isinstance(value, str)
        ]
        for value in allowed:
            assert (f'`"{value}"`' if isinstance(value, str) else str(value)) in kinds[field]


def test_formats_are_those_of_the_table():
    rows = re.findall(r"^\| `(\w+)` \| (\d+|none) \|", PAGE.read_text().split("Numerics:")[0], re.M)
    table = {kind: None if number == "none" else int(number) for kind, number in rows}
    formats = {}
    for one in TABLES.values():
        hints = get_type_hints(one)
        if "kind" in hints:
            [kind] = get_args(hints["kind"])
            formats[kind] = get_args(hints["format"])[0] if "format" in hints else None
    assert table == {**formats, "commits": None}
    assert f"Numerics: {NUMERICS}." in PAGE.read_text()
    assert {name: KINDS[name] for name in KINDS} == {
        name: (get_args(get_type_hints(TABLES[name])["kind"])[0], table[KINDS[name][0]]) for name in KINDS
    }


def test_the_version_of_the_page_has_its_line_in_the_history():
    text = PAGE.read_text()
    version = re.search(r"^Version (\d+\.\d+)\.$", text, re.M)[1]
    assert f"\n- {version}: " in text.split("## History")[1]


def test_definition_and_attributes_of_results_are_on_the_page(written):
    attributes = parsed(text_of(written / "r.zarr" / "zarr.json"))["attributes"]
    part = PAGE.read_text().split("### Definition and attributes")[1].split("\n### ")[0]
    rows = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in part.splitlines() if row.startswith("| `")]
    assert {name for row in rows for name in row} == set(attributes) - {"dsvcca"}
    first = part.split("| other attribute")[0]
    assert all(f"`{name}`" in first for name in attributes["dsvcca"]["definition"])


def test_links_within_the_page_lead_somewhere():
    text = PAGE.read_text()
    titles = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)", text, re.M)]
    for target in re.findall(r"\]\(([^)]*)\)", text):
        path, _, place = target.partition("#")
        assert (PAGE.parent / path).exists()
        assert path or place in titles, place


def test_the_reader_knows_neither_dsvcca_nor_zarr():
    """All of this module above what dsvcca wrote uses no name that comes from there."""
    tree = ast.parse(Path(__file__).read_text())
    foreign = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            foreign |= {one.asname or one.name for one in node.names if one.name.split(".")[0] in ("dsvcca", "zarr")}
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("dsvcca", "zarr", "tests"):
            foreign |= {one.asname or one.name for one in node.names}
    assert "dsvcca" in foreign
    last = inspect.getsourcelines(check_members)[1]
    reader = [node for node in tree.body if node.lineno <= last and not isinstance(node, (ast.Import, ast.ImportFrom))]
    used = {one.id for node in reader for one in ast.walk(node) if isinstance(one, ast.Name)}
    assert used.isdisjoint(foreign)
