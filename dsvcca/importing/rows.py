"""Files of rows, a datapoint each, which are read from the first to the last: Parquet, and text of numpy.savetxt."""

from __future__ import annotations

import os
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dsvcca.importing.kinds import PIECE, Array, Format, Other, library, type_name
from dsvcca.maths.arrays import NumpyArray
from dsvcca.storage import folders


class _Rows:
    """Rows that come one after another, cut as an array is, from the first to the last."""

    def __init__(self, batches: Iterator[NumpyArray], count: int) -> None:
        self._batches, self._count = batches, count
        self._waiting: list[NumpyArray] = []

    def __getitem__(self, index: tuple[slice, ...]) -> NumpyArray:
        rows = index[0]
        wanted = self._count if rows.start is None else rows.stop - rows.start
        while (there := sum(map(len, self._waiting))) < wanted:
            batch = next(self._batches, None)
            if batch is None:
                raise ValueError(f"{there} rows are left where {wanted} should be")
            self._waiting.append(batch)
        every = np.concatenate(self._waiting)
        self._waiting = [every[wanted:]]
        return every[(slice(wanted), *index[1:])]


def _find_parquet(file: Path) -> Iterator[Array | Other]:
    pa = library("pyarrow", file)
    with _parquet(file) as table:
        rows, schema = table.metadata.num_rows, table.schema_arrow
        neurons = _neurons(pa, schema)
        others = [column for column in schema if column.name not in neurons or not column.name]
        lists = [column for column in others if _is_list(pa, column.type) and _is_number(pa, column.type.value_type)]
        for column in others:
            kind = column.type
            if not column.name:
                yield Other(file, "", f"a column of {kind} has no name: give it one", True)
            elif column in lists:
                width = kind.list_size if pa.types.is_fixed_size_list(kind) else _first_length(table, column.name)
                yield Array(file, column.name, (rows, width), _type(kind.value_type), order="C")
            elif _is_number(pa, kind):
                yield Other(file, column.name, "the index of a table of pandas")
            else:
                why = f"{kind}, neither numbers nor lists of them: store floats, or lists of them"
                yield Other(file, column.name, why, _may_be_numbers(pa, kind))
        types = sorted({_type(schema.field(name).type) for name in neurons})
        if lists or len(neurons) == 1:
            yield from (Other(file, name, "one number a datapoint") for name in neurons)
        elif len(types) > 1:
            why = f"columns of several types, {', '.join(types)}, and neurons have one: keep those that are neurons"
            yield Other(file, "", why, True)
        elif neurons:
            yield Array(file, "", (rows, len(neurons)), types[0], order="C")


@contextmanager
def _opened_parquet(array: Array) -> Iterator[_Rows]:
    pa = library("pyarrow", array.file)
    with _parquet(array.file) as table:
        names = [array.inside] if array.inside else _neurons(pa, table.schema_arrow)
        step = max(1, PIECE // max(1, array.nbytes // array.shape[0]))
        batches = table.iter_batches(batch_size=step, columns=names)
        yield _Rows((_numbers(batch, names, array) for batch in batches), array.shape[0])


def _numbers(batch: Any, names: list[str], array: Array) -> NumpyArray:
    """Return some rows of a table: its columns, or the lists in one of them."""
    columns = [batch.column(name) for name in names]
    flat = [column.flatten() for column in columns] if array.inside else columns
    for name, column, numbers in zip(names, columns, flat, strict=True):
        lengths = set(column.value_lengths().to_pylist()) if array.inside else {array.shape[1]}
        if column.null_count or numbers.null_count or lengths != {array.shape[1]}:
            raise ValueError(f"column {name!r} has gaps, or lists of other lengths than {array.shape[1]}")
    found = [numbers.to_numpy(zero_copy_only=False) for numbers in flat]
    return found[0].reshape(-1, array.shape[1]) if array.inside else np.stack(found, axis=1)


@contextmanager
def _parquet(file: Path) -> Iterator[Any]:
    parquet = library("pyarrow.parquet", file)
    # Else a row group is read whole, and what was buffered in advance is held until the end.
    options = {"pre_buffer": False, "buffer_size": 1 << 14}
    with folders.opened(file) as stream, parquet.ParquetFile(stream, **options) as table:
        yield table


def _neurons(pa: Any, schema: Any) -> list[str]:
    """Return the columns of numbers, without what pandas keeps of its index."""
    index = (schema.pandas_metadata or {}).get("index_columns", [])
    return [column.name for column in schema if _is_number(pa, column.type) and column.name not in index]


def _is_number(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _is_list(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _may_be_numbers(pa: Any, kind: Any) -> bool:
    """Return whether a column that is not read may be of activations all the same."""
    plain = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    return bool(pa.types.is_nested(plain) or pa.types.is_decimal(plain) or pa.types.is_null(plain))


def _type(kind: Any) -> str:
    return type_name(np.dtype(kind.to_pandas_dtype()))


def _first_length(table: Any, name: str) -> int:
    """Return how long the list in the first row is; all the others must be as long."""
    for batch in table.iter_batches(batch_size=1, columns=[name]):
        return len(batch.column(name).flatten())
    return 0


LINE = 64 << 20
"""Bytes of a line, at most."""


def _lines(stream: BinaryIO) -> Iterator[str]:
    """Yield the lines that have numbers."""
    while line := stream.readline(LINE):
        if len(line) == LINE:
            raise ValueError(f"a line of more than {LINE} bytes")
        text = line.decode("latin-1").partition("#")[0].strip()
        if text:
            yield text


UNLIKE = (
    "numbers, but not as numpy.savetxt writes real ones, between spaces or commas and in plain ASCII: save them by it, "
    "or as .npy"
)


REAL = r"[-+]{0,2}\d+(\.\d*)?([eE][-+]?\d+)?"
NUMBER = re.compile(rf"\(?{REAL}({REAL}j)?\)?")


def _looks_like_numbers(line: str) -> bool:
    """Return whether a line that cannot be read has numbers: complex, between semicolons, or in another encoding."""
    raw = line.encode("latin-1")
    text = raw.decode("utf-16" if raw[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig", "ignore")
    return all(NUMBER.fullmatch(one) for one in re.split(r"[\s,;|]+", text.strip("\0 ;,|\t\r\n")))


def _check_ends(stream: BinaryIO) -> None:
    """Raise if the last line has no end, as in a file that was cut short; leave the stream where it is."""
    place = stream.tell()
    stream.seek(-1, os.SEEK_END)
    if stream.read(1) != b"\n":
        raise ValueError("its last line has no end: cut short?")
    stream.seek(place)


def _find_text(file: Path) -> Iterator[Array | Other]:
    with folders.opened(file) as stream:
        lines = _lines(stream)
        line = next(lines, "")
        if not line:
            yield Other(file, "", "empty")
            return
        try:
            first = _numbers_in([line])
        except ValueError:
            yield Other(file, "", UNLIKE if _looks_like_numbers(line) else "text", _looks_like_numbers(line))
            return
        _check_ends(stream)
        rows = 1 + sum(1 for _ in lines)
    yield Array(file, "", (rows, first.shape[1]) if first.shape[1] > 1 else (rows,), "float64", order="C")


@contextmanager
def _opened_text(array: Array) -> Iterator[_Rows]:
    rows = max(1, PIECE // (8 * array.shape[1]))
    with folders.opened(array.file) as stream:
        lines = _lines(stream)
        yield _Rows((_numbers_in(some) for some in iter(lambda: list(islice(lines, rows)), [])), array.shape[0])


def _numbers_in(lines: list[str]) -> NumpyArray:
    """Return the numbers of lines, a row each, between spaces or commas."""
    found: NumpyArray = np.loadtxt(lines, ndmin=2, delimiter="," if lines and "," in lines[0] else None)
    return found


PARQUET, TEXT = Format(_find_parquet, _opened_parquet), Format(_find_text, _opened_text)
