"""What the kernels need beyond the array API standard.

Kernels take the namespace of the arrays they are given (`namespace`), so that the same lines run on NumPy, CuPy and
torch. Decisions about a few numbers (ranks, thresholds) are made in NumPy after one transfer (`to_numpy`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache, partial, wraps
from importlib import import_module
from typing import Any, TypeVar

import array_api_compat as compat
import numpy as np
import numpy.typing as npt
import scipy.fft
from numpy.lib.stride_tricks import as_strided
from scipy.linalg import cython_lapack
from scipy.linalg.blas import dsyrk, zherk
from scipy.linalg.lapack import dormqr, dstein, dsterf, dsytrd, dtrtri

from dsvcca.errors import DsvccaError

Array = Any
"""An array of any library that follows the array API standard."""

NumpyArray = npt.NDArray[Any]

Done = TypeVar("Done")

NUMPY: Any = compat.array_namespace(np.zeros(0))


def namespace(*arrays: Array) -> Any:
    """Return the array API namespace that `arrays` share."""
    if all(type(array) is np.ndarray for array in arrays):
        return NUMPY  # what follows says the same, a hundred thousand times a task
    return compat.array_namespace(*arrays)


def device(array: Array) -> Any:
    """Return the device that holds `array`."""
    return compat.device(array)


def detached(array: Array) -> Array:
    """Return a torch tensor without its gradient, everything else as it is."""
    return array.detach() if compat.is_torch_array(array) else array


def to_numpy(array: Array) -> NumpyArray:
    """Return `array` as a NumPy array, copied from its device where it has to be; bfloat16 as float32, exactly."""
    if isinstance(array, np.ndarray):
        return _plain(array)
    if compat.is_cupy_array(array):
        return np.asarray(array.get())
    if compat.is_torch_array(array):
        here = array.detach().cpu()
        if str(here.dtype) == "torch.bfloat16":
            here = here.float()  # bfloat16, which NumPy does not have: exact
        return np.asarray(here)
    try:
        return _plain(np.asarray(array))
    except RuntimeError:  # array_api_strict refuses its other devices, as CuPy would
        return np.asarray(compat.to_device(array, namespace(array).Device("CPU_DEVICE")))


def _plain(array: NumpyArray) -> NumpyArray:
    """Return an array without the type that ml_dtypes adds to NumPy, which JAX and TensorFlow give."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


@contextmanager
def computing_on(device: str | None) -> Iterator[None]:
    """Let `put` bring arrays to a device meanwhile: the name of a library, and a device where it has several.

    Raises
    ------
    DsvccaError
        If the library is not there.
    """
    token = _DEVICE.set(None if device is None else (device.partition(":")[0], _bringing(device)))
    try:
        yield
    finally:
        _DEVICE.reset(token)


def put(array: NumpyArray) -> Array:
    """Return an array where this task computes: itself, or a copy on the device of the worker."""
    here = _DEVICE.get()
    return array if here is None else here[1](array)


def library() -> str:
    """Return the name of the array library that this task computes with."""
    here = _DEVICE.get()
    return "numpy" if here is None else here[0]


def _bringing(device: str) -> Callable[[NumpyArray], Array]:
    """Return what brings an array to a device named like "cupy", "torch:cuda" or "array_api_strict:device1"."""
    library, _, where = device.partition(":")
    try:
        xp = import_module(f"array_api_compat.{library}" if library in ("cupy", "torch") else library)
    except ImportError as error:
        raise DsvccaError(
            f"a worker was given the device {device!r}, and {library} is not there ({error}): install it, for CuPy by "
            "pip install cupy-cuda12x, or start workers without a GPU resource"
        ) from error
    if library == "array_api_strict":
        where = xp.Device(where)
    return lambda array: xp.asarray(array, device=where or None)


_DEVICE: ContextVar[tuple[str, Callable[[NumpyArray], Array]] | None] = ContextVar("device", default=None)


def tidy(step: Callable[[Any], Done]) -> Callable[[Any], Done]:
    """Hand freed memory back after a step: what a process holds then does not depend on how many it did before."""

    @wraps(step)
    def tidied(task: Any) -> Done:
        try:
            return step(task)
        finally:
            with suppress(AttributeError, OSError):  # not glibc: then there is no need, or no way
                ctypes.CDLL(None).malloc_trim(0)

    return tidied


def windows(block: Array, rows: NumpyArray, columns: NumpyArray, height: int, width: int) -> Array:
    """Return the (height, width) pieces of a matrix that begin at the given rows and columns, (pieces, height, width).

    Of stacked matrices (s, rows, columns) those of all of them, (pieces, s, height, width).
    """
    if isinstance(block, np.ndarray):  # a view of all that there could be: a third of the time of stacking
        *stacked, down, right = block.shape
        *between, next_row, next_column = block.strides
        every = as_strided(
            block,
            (down - height + 1, right - width + 1, *stacked, height, width),
            (next_row, next_column, *between, next_row, next_column),
            writeable=False,
        )
        return every[rows, columns]
    xp = namespace(block)
    if block.ndim == 3:
        found = [windows(block[i, :, :], rows, columns, height, width) for i in range(block.shape[0])]
        return xp.stack(found, axis=1)
    places = (rows[:, None] + np.arange(height))[:, :, None] * block.shape[1]
    places = places + (columns[:, None] + np.arange(width))[:, None, :]
    taken = xp.take(xp.reshape(block, (-1,)), like(places.ravel(), block), axis=0)
    return xp.reshape(taken, (len(rows), height, width))


def like(values: npt.ArrayLike, array: Array) -> Array:
    """Return `values` in the library and on the device of `array`."""
    return namespace(array).asarray(np.asarray(values), device=device(array))


def adjoint(array: Array) -> Array:
    """Return the conjugate transpose over the last two axes."""
    xp = namespace(array)
    turned = xp.matrix_transpose(array)
    return xp.conj(turned) if xp.isdtype(array.dtype, "complex floating") else turned


def significand_bits(dtype: Any) -> int | None:
    """Return the significand bits that stored numbers of `dtype` carry, or None for exact (integer) types."""
    if isinstance(dtype, str) and dtype[:1] in "<>|=":
        dtype = np.dtype(dtype)
    name = dtype.name if isinstance(dtype, np.dtype) else str(dtype).rsplit(".", 1)[-1]
    known = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
    if name in known:
        return known[name]
    if name.startswith(("int", "uint", "bool")):
        return None
    raise DsvccaError(
        f"activations of type {name!r} cannot be compared: "
        "store real numbers (float16, bfloat16, float32, float64, integers or booleans)"
    )


def as_float64(array: Array) -> Array:
    """Return `array` as float64 without touching the caller's numbers."""
    xp = namespace(array)
    return xp.astype(array, xp.float64, copy=False)


def rfftn(array: Array, axes: tuple[int, ...]) -> Array:
    """Return the orthonormal transform of real float64 `array` over `axes`, half of the last of them, complex128."""
    if isinstance(array, np.ndarray):
        return scipy.fft.rfftn(array, axes=axes, norm="ortho", workers=1)  # several times as fast as NumPy's
    return namespace(array).fft.rfftn(array, axes=axes, norm="ortho")


def add_gram(total: Array, columns: Array) -> None:
    """Add columns^H columns (k, k) of float64 or complex128 `columns` (m, k) to `total`, at least below its diagonal.

    `hermitian` fills what is above. `total` has the type of `columns`, or is complex and contiguous.
    """
    xp = namespace(columns)
    if 0 in total.shape:
        return
    if isinstance(columns, np.ndarray) and total.flags.c_contiguous:  # in place: no product of its own, half the flops
        add = zherk if xp.isdtype(total.dtype, "complex floating") else dsyrk
        add(1.0, columns.T, beta=1.0, c=total.T, overwrite_c=1)
    else:
        total[...] = total + xp.matmul(adjoint(columns), columns)


def hermitian(total: Array) -> Array:
    """Return a matrix from what is on and below its diagonal."""
    xp = namespace(total)
    lower = xp.tril(total, k=-1)
    return lower + adjoint(lower) + total * like(np.eye(total.shape[-1]), total)


def eigen(matrix: Array, every: bool = False) -> tuple[NumpyArray, Callable[[int], Array]]:
    """Return the eigenvalues of a Hermitian matrix (c, c), largest first, and what gives its first k vectors (c, k).

    In NumPy only the vectors that are asked for are made, which for a few costs half; unless `every` one will be.
    """
    if isinstance(matrix, np.ndarray) and matrix.dtype.kind == "f" and not every and len(matrix) > 1:
        exponent = int(np.frexp(np.abs(np.diagonal(matrix)).max())[1])
        # No bit changes by it, and the squares in dstein stay finite.
        scale = float(np.ldexp(1.0, min(max(-exponent, -1000), 1000)))
        matrix = matrix * scale
        reduced, diagonal, beside, reflectors, failed = _tridiagonal(matrix)
        values, more = dsterf(diagonal, beside)
        if not failed and not more:
            return values[::-1] / scale, partial(_leading, matrix, values, reduced, diagonal, beside, reflectors)
    values, vectors = namespace(matrix).linalg.eigh(matrix)
    return to_numpy(values)[::-1], lambda k: namespace(matrix).flip(vectors, axis=1)[:, :k]


def _tridiagonal(matrix: NumpyArray) -> tuple[NumpyArray, NumpyArray, NumpyArray, NumpyArray, int]:
    """Return the tridiagonal form of a matrix from its lower half: what SciPy's dsytrd gives, to the bit."""
    c = len(matrix)
    if not FREE:
        return dsytrd(matrix, lower=1, lwork=64 * c)  # type: ignore[no-any-return]
    reduced = np.array(matrix, dtype=np.float64, order="F")
    diagonal, beside, reflectors, work = (np.empty(size) for size in (c, c - 1, c - 1, 64 * c))
    failed = _lapack("dsytrd", b"L", c, reduced, c, diagonal, beside, reflectors, work, len(work))
    return reduced, diagonal, beside, reflectors, failed


def _vectors_of_tridiagonal(diagonal: NumpyArray, beside: NumpyArray, values: NumpyArray) -> tuple[NumpyArray, int]:
    """Return eigenvectors (c, k) of a tridiagonal matrix: what SciPy's dstein gives, to the bit."""
    c, k = len(diagonal), len(values)
    one_block = np.ones(c, dtype=np.int32), np.full(c, c, dtype=np.int32)
    if not FREE:
        return dstein(diagonal, beside, values, *one_block)  # type: ignore[no-any-return]
    vectors, work = np.empty((c, k), order="F"), np.empty(5 * c)
    whole = np.empty(c, dtype=np.int32), np.empty(k, dtype=np.int32)
    values = np.ascontiguousarray(values)
    return vectors, _lapack("dstein", c, diagonal, beside, k, values, *one_block, vectors, c, work, *whole)


@cache
def _capsule(name: str) -> tuple[bytes, int]:
    """Return how the arguments of a routine of SciPy's LAPACK are spelled in C, and where it is."""
    python, capsule = ctypes.pythonapi, cython_lapack.__pyx_capi__[name]
    spelled = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", python))(capsule)
    kind = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    return spelled, kind(("PyCapsule_GetPointer", python))(capsule, spelled)


FREE = b", int *" in _capsule("dsytrd")[0]
"""Whether LAPACK can be called by its address: its integers are those that we pass."""


def _lapack(name: str, *arguments: NumpyArray | int | bytes) -> int:
    """Call a routine of LAPACK in place, while other Python threads go on; return what it says at the end (info).

    SciPy's own lets none go on until it is done, which for 10,000 columns may be two minutes, and a Dask worker that
    says nothing for five of them is ended.
    """
    numbers = [ctypes.c_int(one) for one in arguments if isinstance(one, int)] + [ctypes.c_int(0)]
    those = iter(numbers)
    places: list[Any] = [
        one.ctypes.data if isinstance(one, np.ndarray) else one if isinstance(one, bytes) else ctypes.byref(next(those))
        for one in (*arguments, 0)
    ]
    ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(places))(_capsule(name)[1])(*places)
    return numbers[-1].value


def _leading(
    matrix: NumpyArray,
    values: NumpyArray,
    reduced: NumpyArray,
    diagonal: NumpyArray,
    beside: NumpyArray,
    reflectors: NumpyArray,
    k: int,
) -> NumpyArray:
    """Return the vectors of the k largest eigenvalues from the tridiagonal form of a matrix (LAPACK's dsytrd)."""
    c = len(matrix)
    if k == 0:
        return np.zeros((c, 0))
    if 3 * k < c:
        vectors, failed = _vectors_of_tridiagonal(diagonal, beside, values[c - k :])
        vectors[1:], _, wrong = dormqr("L", "N", reduced[1:, :-1], reflectors, vectors[1:], lwork=64 * k)
        if not failed and not wrong:
            return np.ascontiguousarray(vectors[:, ::-1])
    return np.linalg.eigh(matrix)[1][:, ::-1][:, :k]


def inverse_cholesky(cholesky: Array) -> Array:
    """Return L^-1 (..., k, k), lower triangular: its corners serve smaller ranks."""
    xp = namespace(cholesky)
    if isinstance(cholesky, np.ndarray) and cholesky.dtype == np.float64 and cholesky.ndim == 2 and len(cholesky):
        inverse, singular = dtrtri(cholesky, lower=1)
        if not singular:
            return np.tril(inverse)
    return xp.tril(xp.linalg.inv(cholesky))


def real_part(array: Array) -> Array:
    """Return the real part of a complex array, a real one as it is."""
    xp = namespace(array)
    return xp.real(array) if xp.isdtype(array.dtype, "complex floating") else array


def as_pairs(array: Array) -> Array:
    """Return complex (..., k) as real (..., 2k), real and imaginary part in turn; real arrays as they are."""
    xp = namespace(array)
    if not xp.isdtype(array.dtype, "complex floating"):
        return array
    if isinstance(array, np.ndarray) and array.flags.c_contiguous:
        return array.view(array.real.dtype)
    pairs = xp.stack([xp.real(array), xp.imag(array)], axis=-1)
    return xp.reshape(pairs, (*array.shape[:-1], 2 * array.shape[-1]))


def from_pairs(product: Array) -> Array:
    """Return the complex product A^H B (..., k, l) from the real one of `as_pairs` of A and B (..., 2k, 2l)."""
    rr, ri = product[..., 0::2, 0::2], product[..., 0::2, 1::2]
    ir, ii = product[..., 1::2, 0::2], product[..., 1::2, 1::2]
    return (rr + ii) + 1j * (ri - ir)
