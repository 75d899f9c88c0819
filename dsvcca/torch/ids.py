"""Ids of datapoints, made from the inputs of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence, unpack_sequence

from dsvcca.errors import DsvccaError
from dsvcca.maths.arrays import NumpyArray
from dsvcca.torch.running import inputs_of


def row_ids(batch: Any) -> NumpyArray:
    """Return 64 bits of BLAKE2b of every input row in a batch, as uint64.

    Of a tuple or list the first is hashed, of a dict all tensors in the order of their keys; values, type and shape
    count, how the rows were cut into batches does not. Of packed sequences each is hashed at its own length.

    >>> len(set(row_ids(torch.tensor([[1.0, 2.0], [1.0, 3.0], [1.0, 2.0]])).tolist()))
    2
    """
    inputs = inputs_of(batch)
    if isinstance(inputs, PackedSequence):
        return np.concatenate([row_ids(sequence[None]) for sequence in unpack_sequence(inputs)])
    if isinstance(inputs, torch.Tensor):
        tensors = [inputs]
    elif isinstance(inputs, Mapping):
        tensors = [inputs[key] for key in sorted(inputs, key=str) if isinstance(inputs[key], torch.Tensor)]
    else:
        tensors = []
    counts = {len(one) for one in tensors if one.ndim}
    if not counts:
        inside = f" of {type(inputs).__name__}" if inputs is not batch else ""
        raise DsvccaError(
            f"a batch is a {type(batch).__name__}{inside} without a tensor of datapoints: a batch must be a tensor, a "
            "tuple or list that begins with one, or a dict of tensors"
        )
    if len(counts) > 1:
        raise DsvccaError(
            f"the tensors of a batch have {' and '.join(map(str, sorted(counts)))} rows: give all of them one row a "
            "datapoint, or batches (tensor, others) and forward="
        )
    rows = counts.pop()
    hashes = [hashlib.blake2b(digest_size=8) for _ in range(rows)]
    for one in tensors:
        plain = one.detach().cpu().contiguous().resolve_conj().resolve_neg()
        head = f"{plain.dtype} {tuple(plain.shape[1:])} ".encode()
        flat = plain.reshape(rows, int(np.prod(plain.shape[1:]))) if plain.ndim else plain.repeat(rows)[:, None]
        for found, row in zip(hashes, flat.contiguous().view(torch.uint8).numpy(), strict=True):
            found.update(head)
            found.update(row)
    return np.frombuffer(b"".join(one.digest() for one in hashes), dtype="<u8").astype(np.uint64)
