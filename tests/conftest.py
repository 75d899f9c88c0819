"""The matrix of array libraries: every kernel runs the same lines on each of them. And one small population."""

import array_api_strict
import numpy as np
import pytest

import dsvcca
from tests.populations import write_population


class Library:
    """One array library on one device, as tests need it."""

    def __init__(self, name):
        self.name = name

    def asarray(self, values):
        """Return a NumPy array in this library, with its type kept; never a view of `values`."""
        values = np.array(values)
        if self.name == "numpy-read-only":
            values.flags.writeable = False
        if self.name.startswith("numpy"):
            return values
        if self.name == "torch":
            return pytest.importorskip("torch").from_numpy(values)
        device = None if self.name == "strict" else array_api_strict.Device("device1")
        return array_api_strict.asarray(values, device=device)

    def to_numpy(self, array):
        """Return an array of this library as NumPy; fail if it is of another library or device."""
        assert self.owns(array), f"{type(array)} on {getattr(array, 'device', None)} is not of {self.name}"
        if self.name.startswith("numpy"):
            return array
        if self.name == "torch":
            return array.numpy()
        return np.array(array.to_device(array_api_strict.Device("CPU_DEVICE")))

    def owns(self, array):
        """Return whether `array` is of this library and on its device."""
        expected = self.asarray(np.zeros(1))
        return type(array) is type(expected) and array.device == expected.device


@pytest.fixture(params=["numpy", "numpy-read-only", "strict", "strict-device1", "torch"])
def xp(request):
    """An array library: `.asarray(numpy_array)`, `.to_numpy(array)`, `.owns(array)`."""
    if request.param == "torch":
        pytest.importorskip("torch")
    return Library(request.param)


@pytest.fixture(scope="session")
def population(tmp_path_factory):
    return write_population(tmp_path_factory.mktemp("p") / "s.zarr")


@pytest.fixture(scope="session")
def plan(population):
    return dsvcca.plan_comparisons(population[0], variance=[0.9, 0.99, 1.0])


@pytest.fixture(scope="session")
def results(plan, tmp_path_factory):
    return dsvcca.compare(plan, tmp_path_factory.mktemp("r") / "r.zarr")
