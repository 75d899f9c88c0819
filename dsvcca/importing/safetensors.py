"""Files of safetensors: many tensors, each of which can be cut anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dsvcca.importing.kinds import BITS, Array, Format, library
from dsvcca.maths.arrays import NumpyArray
from dsvcca.storage import folders

TYPES = {
    **{"BF16": "bfloat16", "BOOL": "bool"},
    **{f"F{bits}": f"float{bits}" for bits in BITS[1:]},
    **{f"I{bits}": f"int{bits}" for bits in BITS},
    **{f"U{bits}": f"uint{bits}" for bits in BITS},
}
"""What safetensors calls the types of NumPy, and bfloat16."""


def _find_safetensors(file: Path) -> Iterator[Array]:
    safetensors = library("safetensors", file)
    folders.check_plain(file)
    with safetensors.safe_open(file, framework="numpy") as tensors:  # which checks the header
        for name in list(tensors.keys()):
            one = tensors.get_slice(name)
            kind = one.get_dtype()
            yield Array(file, name, tuple(one.get_shape()), TYPES.get(kind, kind))


@contextmanager
def _opened_safetensors(array: Array) -> Iterator[NumpyArray]:
    with folders.opened(array.file) as stream:
        size = int.from_bytes(stream.read(8), "little")
        start, _ = json.loads(stream.read(size))[array.inside]["data_offsets"]
    # NumPy has no bfloat16, and the library gives none to NumPy.
    dtype = library("ml_dtypes", array.file).bfloat16 if array.dtype == "bfloat16" else np.dtype(array.dtype)
    yield np.memmap(array.file, np.dtype(dtype).newbyteorder("<"), "r", 8 + size + start, array.shape)


SAFETENSORS = Format(_find_safetensors, _opened_safetensors)
