"""Awkward numbers: an error above 1e-6 is announced, or there is none; against a reference of 64 bits."""

import numpy as np
import pytest

from benchmarks import accuracy
from tests import longdouble_reference as reference

RHO = np.array([1, 0.99, 0.9, 0.7, 0.5, 0.3, 0.1, 0.01, 1e-6], dtype=reference.Long)

needs_longdouble = pytest.mark.skipif(not reference.IS_LONGER, reason="longdouble is float64 on this machine")


def marked(case):
    marks = [pytest.mark.fault("numbers", case.name, case.outcome)]
    if case.slow:
        marks.append(pytest.mark.slow)
    return pytest.param(case, id=case.name, marks=marks)


@needs_longdouble
@pytest.mark.parametrize("case", [marked(case) for case in accuracy.CASES])
def test_an_error_above_1e_6_is_announced(tmp_path, case):
    if case.torch:
        pytest.importorskip("torch")
    found = accuracy.measured(case, tmp_path)
    assert not found.other, "a warning of something else"
    assert accuracy.verdict(case, found) in ("right", "warned", "refused", "wrong, warned"), found
    if case.says not in accuracy.OPEN:  # there a number that is right after all is as good
        assert bool(case.says) == bool(found.warned or found.refused), found
        assert found.said(case.says) or not case.says, found


# The reference itself


def in_longdouble(rng, n, k):
    """Return k orthonormal columns in longdouble that are orthogonal to the vector of ones."""
    z = reference.centred(rng.standard_normal((n, k)).astype(reference.Long))
    return reference.householder(reference.centred(reference.householder(z)[0]))[0]


def mixing(rng, p, condition):
    left, right = (reference.householder(rng.standard_normal((p, p)).astype(reference.Long))[0] for _ in range(2))
    return (left * np.geomspace(reference.Long(1), 1 / reference.Long(condition), p)) @ right


@needs_longdouble
@pytest.mark.parametrize(("condition", "mean"), [(1.0, 0.0), (1e3, 0.0), (1.0, 1e3)])
def test_the_reference_finds_correlations_that_were_planted(condition, mean):
    rng = np.random.default_rng(0)
    both = in_longdouble(rng, 500, 9 + 12)
    a, b = both[:, :9], both[:, 9:].copy()
    b[:, :9] = a * RHO + b[:, :9] * np.sqrt((1 - RHO) * (1 + RHO))
    x, y = a @ mixing(rng, 9, condition) + mean, b @ mixing(rng, 12, condition) + mean
    sides = [reference.reduced(reference.spectrum(one, one.astype(np.float64))) for one in (x, y)]
    assert [side.rank for side in sides] == [9, 12]
    rho = reference.singular(reference.adjoint(sides[0].vectors[0]) @ sides[1].vectors[0])[1]
    assert np.abs(rho - RHO).max() < 1e-15
    numbers, _ = reference.measures(*sides)
    assert numbers["svcca"] == pytest.approx(float(RHO.mean()), abs=1e-15)
    assert numbers["r2"] == pytest.approx(float((RHO**2).mean()), abs=1e-15)
    variates = a, b[:, :9]  # in pairs; where they correlate by 1 both are one
    for name, own, z in zip(("pwcca_x", "pwcca_y"), variates, (x, y), strict=True):
        alpha = np.abs(own.T @ reference.centred(z)).sum(axis=1)
        assert numbers[name] == pytest.approx(float(alpha @ RHO / alpha.sum()), abs=1e-12)


@needs_longdouble
@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("rank", [4, 7])
def test_the_reference_decomposes_what_it_is_given(complex_, rank):
    rng = np.random.default_rng(1)
    left, right = (rng.standard_normal(shape).astype(reference.Long) for shape in ((40, rank), (rank, 7)))
    z = (left + 1j * left[::-1]) @ right if complex_ else left @ right
    for a in (z, reference.adjoint(z)):
        u, s, v = reference.singular(a)
        assert np.abs(u * s @ reference.adjoint(v) - a).max() < 1e-16
        for one in (u, v):
            assert np.abs(reference.adjoint(one) @ one - np.eye(7)).max() < 1e-17


@needs_longdouble
def test_the_reference_transforms_maps_bin_by_bin():
    x = np.random.default_rng(2).standard_normal((20, 4, 3, 2))
    found, weights = reference.transformed(x.astype(reference.Long))
    assert sum(weights) == 12
    expected = np.fft.fftn(x, axes=(1, 2), norm="ortho")
    for one, (h, w) in zip(found, reference.bins((4, 3)), strict=True):
        assert np.abs(one - expected[:, h, w]).max() < 1e-14
