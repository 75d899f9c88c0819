"""Views, rows on the grid, moments, rank rules and whitened columns: one representation at a time."""

import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg.lapack import dstein, dsterf, dsytrd

from dsvcca import DsvccaError, cca
from dsvcca.maths import arrays
from dsvcca.maths.arrays import adjoint, inverse_cholesky, like, namespace, significand_bits, to_numpy
from dsvcca.maths.basis import RankRule
from dsvcca.maths.correlations import corrected, correlations_of
from dsvcca.maths.frequencies import half_spectrum
from dsvcca.maths.mixing import mix, mixed_ones
from dsvcca.maths.moments import SHIFT_ROWS, Rows, grid_steps, merge, moments_over, on_grid
from dsvcca.maths.views import GRID, View, apply_view, meet, viewed_shape
from dsvcca.maths.whiten import InMemory, decompose, whiten, whiten_in_memory
from tests import reference

several = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def cut(x, places):
    """Return the pieces of x (rows, ...) between the places given, none of them empty."""
    ends = sorted({0, x.shape[0], *(place % x.shape[0] for place in places)})
    return [x[start:stop, ...] for start, stop in pairwise(ends)]


def rows_of(x, *places, keep=True):
    """Return Rows of x (rows, c), handed over in pieces."""
    return Rows(lambda: iter(cut(x, places)), tuple(x.shape), View("neurons"), keep=keep)


def whitened(x, rule=None, dtype="float64", bits=53, keep=True):
    """Return the stored columns and the basis of x (rows, c)."""
    columns = InMemory(rounded=dtype == "float32")
    basis = whiten(rows_of(x, keep=keep), rule or RankRule(), columns, bits=bits, name="conv3")
    return columns.array(), basis


def corrected_cross(u_x, x, u_y, y):
    """Return the cross block by products of stored columns, one step of the grid at a time, summed in float64."""
    products = (u_x[step].T.copy() @ u_y[step] for step in grid_steps(x.count))
    m = sum(product.astype(np.float64) for product in products)
    inverses = inverse_cholesky(x.blocks[0].cholesky), inverse_cholesky(y.blocks[0].cholesky)
    return corrected(m, x.blocks[0].column_sums, y.blocks[0].column_sums, x.count, *inverses)


# Numbers as they are stored


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [("float16", 11), ("float32", 24), ("float64", 53), ("int8", None), ("uint64", None), ("bool", None)],
)
def test_significand_bits_of_stored_types_are_those_of_ieee(dtype, bits):
    assert significand_bits(np.dtype(dtype)) == bits
    if bits is not None:
        assert np.finfo(dtype).nmant + 1 == bits


def test_significand_bits_of_bfloat16_tensors_are_eight():
    torch = pytest.importorskip("torch")
    assert significand_bits(torch.bfloat16) == 8


@pytest.mark.parametrize("dtype", ["complex64", "S4", "datetime64[s]", "object"])
def test_stored_types_that_are_no_real_numbers_are_refused(dtype):
    with pytest.raises(DsvccaError, match=r"activations of type '.*' cannot be compared: store real numbers"):
        significand_bits(np.dtype(dtype))


def test_numbers_travel_to_a_library_and_back(xp):
    there = like([[1.5, 2.5]], xp.asarray(np.zeros(3)))
    assert xp.owns(there)
    np.testing.assert_array_equal(to_numpy(there), [[1.5, 2.5]])


def test_adjoint_conjugates_complex_numbers_and_turns_real_ones(xp):
    z = np.array([[1 + 2j, 3.0], [4.0, 5 - 1j], [0.0, 1j]])
    np.testing.assert_array_equal(xp.to_numpy(adjoint(xp.asarray(z))), z.conj().T)
    np.testing.assert_array_equal(xp.to_numpy(adjoint(xp.asarray(z.real))), z.real.T)


# Views


@pytest.mark.parametrize(
    ("shape", "view", "expected"),
    [
        ((10, 7), "neurons", (1, 10, 7)),
        ((10, 4, 5, 7), "mean", (1, 10, 7)),
        ((10, 4, 5, 7), "max", (1, 10, 7)),
        ((10, 4, 5, 7), "positions", (1, 200, 7)),
        ((10, 6, 7), "positions", (1, 60, 7)),
        ((10, 7), "positions", (1, 10, 7)),
        ((10, 4, 5, 7), "flatten", (1, 10, 140)),
        ((10, 7), "mean", (1, 10, 7)),
    ],
)
def test_views_have_the_shape_they_announce(xp, shape, view, expected):
    assert viewed_shape(shape, View(view)) == expected
    viewed = apply_view(xp.asarray(np.zeros(shape)), View(view))
    assert tuple(viewed.shape) == expected


def test_views_are_what_their_names_say(xp):
    x = np.random.default_rng(0).standard_normal((6, 3, 4, 5))
    seen = {view: xp.to_numpy(apply_view(xp.asarray(x), View(view)))[0] for view in ("mean", "max", "positions")}
    np.testing.assert_allclose(seen["mean"], x.mean(axis=(1, 2)), atol=1e-15)
    np.testing.assert_array_equal(seen["max"], x.max(axis=(1, 2)))
    np.testing.assert_array_equal(seen["positions"], x.reshape(72, 5))
    flat = x[:, 0, 0, :]
    np.testing.assert_array_equal(xp.to_numpy(apply_view(xp.asarray(flat), View("neurons")))[0], flat)


@pytest.mark.parametrize("view", ["mean", "max", "positions"])
@pytest.mark.parametrize("shape", [(9, 7, 5, 3), (9, 300, 1), (9, 17, 19, 1), (9, 33, 2), (9, 1, 1, 4), (9, 130, 64)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8"])
def test_a_view_of_single_datapoints_is_the_view_of_all_bit_for_bit(view, shape, dtype):
    x = (np.random.default_rng(1).standard_normal(shape) * 20).astype(dtype)
    view = View(view)
    whole = apply_view(x, view)
    np.testing.assert_array_equal(np.concatenate([apply_view(x[i : i + 1], view) for i in range(9)], axis=1), whole)
    np.testing.assert_array_equal(np.concatenate([apply_view(x[:4], view), apply_view(x[4:], view)], axis=1), whole)


@pytest.mark.parametrize("view", ["mean", "max", "positions"])
def test_a_view_of_channels_first_activations_does_not_depend_on_the_pieces(view):
    x = np.random.default_rng(2).standard_normal((9, 4, 11, 13)).transpose(0, 2, 3, 1)
    view = View(view)
    whole = apply_view(x, view)
    np.testing.assert_array_equal(np.concatenate([apply_view(x[i : i + 1], view) for i in range(9)], axis=1), whole)


def test_means_over_space_of_16_bit_numbers_do_not_overflow():
    x = np.full((2, 8, 8, 3), 60_000, dtype=np.float16)
    viewed = apply_view(x, View("mean"))
    assert viewed.dtype == np.float64
    np.testing.assert_array_equal(viewed, np.full((1, 2, 3), float(x[0, 0, 0, 0])))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_views_without_arithmetic_keep_the_stored_type(dtype):
    assert apply_view(np.zeros((4, 3), dtype), View("neurons")).dtype == dtype
    assert apply_view(np.zeros((4, 2, 3), dtype), View("positions")).dtype == dtype
    assert apply_view(np.zeros((4, 3), np.int16), View("neurons")).dtype == np.float64


@pytest.mark.parametrize(
    ("view", "x", "y", "name", "views"),
    [
        ("auto", (), (), "neurons", ("neurons", "neurons")),
        ("auto", (7, 7), (7, 7), "dft", ("dft", "dft")),
        ("auto", (14, 14), (7, 7), "mean", ("mean", "mean")),
        ("auto", (14, 14), (), "mean", ("mean", "neurons")),
        ("auto", (5,), (5,), "dft", ("dft", "dft")),
        ("mean", (), (), "neurons", ("neurons", "neurons")),
        ("max", (4, 3), (), "max", ("max", "neurons")),
        ("flatten", (4, 3), (2, 2), "flatten", ("flatten", "flatten")),
        ("positions", (4, 3), (4, 3), "positions", ("positions", "positions")),
        ("dft", (8, 6), (4, 3), "alias-empirical", ("alias 4x3", "dft")),
        ("dft", (8, 3), (4, 6), "alias-empirical", ("alias 4x3", "alias 4x3")),
        ("lowpass", (14, 14), (3, 3), "lowpass", ("lowpass 3x3", "dft")),
        ("lowpass", (3, 3), (3, 3), "dft", ("dft", "dft")),
        ("pool", (2,), (6,), "pool", ("dft", "pool 2")),
        ("dft", (), (), "neurons", ("neurons", "neurons")),
    ],
)
def test_two_layers_meet_in_the_view_that_fits_both(view, x, y, name, views):
    found = meet(view, x, y)
    assert (found.name, (str(found.x), str(found.y))) == (name, views)
    turned = meet(view, y, x)
    assert (turned.name, turned.x, turned.y) == (found.name, found.y, found.x)


def test_sequences_of_one_length_are_compared_token_by_token():
    assert meet("auto", (9,), (9,), tokens=True).name == "positions"
    assert meet("auto", (9,), (8,), tokens=True).name == "mean"


@pytest.mark.parametrize(
    ("view", "x", "y", "message"),
    [
        ("fourier", (), (), "view='fourier' is unknown: choose one of 'neurons', 'mean', 'max', 'posi"),
        ("neurons", (2, 2), (2, 2), "maps of 2x2 and maps of 2x2 cannot be compared as view='neurons': use view='me"),
        (
            "dft",
            (14, 14),
            (3, 3),
            "14x14 and maps of 3x3 .* view='dft' .along every axis one size must .*: use view='mean' or",
        ),
        ("pool", (7, 7), (3, 3), "cannot be compared as view='pool'"),
        ("dft", (4, 4), (), "maps of 4x4 and a dense layer cannot be .* view='dft': use view='mean' or 'max' or 'flat"),
        ("positions", (4, 4), (2, 2), "cannot be compared as view='positions'"),
        ("dft", (4, 4), (4,), "maps of 4x4 and maps of 4 cannot be compared"),
    ],
)
def test_layers_that_cannot_meet_are_refused_with_the_views_that_work(view, x, y, message):
    with pytest.raises(DsvccaError, match=message):
        meet(view, x, y)


def test_neurons_of_activations_with_space_are_refused():
    with pytest.raises(DsvccaError, match=r"view='neurons' needs .* found 4 axes \(4, 2, 2, 3\): use view='mean'"):
        viewed_shape((4, 2, 2, 3), View("neurons"))


# The grid


@several
@given(rows=st.integers(0, 400), grid=st.integers(1, 90))
def test_grid_steps_take_every_row_once_and_are_full_but_for_the_last(rows, grid):
    steps = list(grid_steps(rows, grid))
    assert [row for step in steps for row in range(rows)[step]] == list(range(rows))
    assert all(step.stop - step.start == grid for step in steps[:-1])


@several
@given(
    rows=st.integers(1, 120),
    grid=st.integers(1, 50),
    places=st.lists(st.integers(0, 10_000), max_size=12),
    seed=seeds,
)
def test_any_pieces_are_regrouped_into_the_same_steps_bit_for_bit(rows, grid, places, seed):
    x = np.random.default_rng(seed).standard_normal((rows, 3))
    steps = list(on_grid(cut(x, places), grid))
    assert [step.shape[0] for step in steps] == [step.stop - step.start for step in grid_steps(rows, grid)]
    np.testing.assert_array_equal(np.concatenate(steps), x)


def test_empty_pieces_are_passed_over():
    x = np.arange(12.0).reshape(4, 3)
    steps = list(on_grid([x[:0], x[:3], x[3:3], x[3:]], 2))
    np.testing.assert_array_equal(np.concatenate(steps), x)
    assert [step.shape for step in steps] == [(2, 3), (2, 3)]


def test_pieces_of_every_library_are_regrouped(xp):
    x = np.random.default_rng(3).standard_normal((50, 4))
    steps = list(on_grid([xp.asarray(x[:7]), xp.asarray(x[7:30]), xp.asarray(x[30:])], 20))
    np.testing.assert_array_equal(np.concatenate([xp.to_numpy(step) for step in steps]), x)
    assert [step.shape[0] for step in steps] == [20, 20, 10]


@settings(max_examples=8, deadline=None)
@given(places=st.lists(st.integers(0, 10_000), max_size=5), seed=seeds, keep=st.booleans())
def test_moments_and_columns_do_not_depend_on_the_pieces_bit_for_bit(places, seed, keep):
    x = np.random.default_rng(seed).standard_normal((2 * GRID + 100, 5)) + 3.0
    whole, pieces = moments_over(rows_of(x)), moments_over(rows_of(x, *places, keep=keep))
    for field in ("count", "shift", "sums", "gram"):
        np.testing.assert_array_equal(getattr(pieces, field), getattr(whole, field), err_msg=field)


def test_rows_read_twice_are_the_rows_that_were_kept():
    x = np.random.default_rng(4).standard_normal((GRID + 300, 3)).astype(np.float32) + 5
    passes = {True: 0, False: 0}
    seen = {}
    for keep in (True, False):

        def pieces(keep=keep):
            passes[keep] += 1
            return iter(cut(x, [100, 2000, 4200]))

        rows = Rows(pieces, x.shape, View("neurons"), keep=keep)
        seen[keep] = [np.concatenate(list(rows()), axis=1) for _ in range(3)]
        for again in seen[keep][1:]:
            np.testing.assert_array_equal(again, seen[keep][0])
    np.testing.assert_array_equal(seen[True][0], seen[False][0])
    assert passes == {True: 1, False: 3}
    assert seen[True][0].dtype == np.float64


def test_the_shift_is_the_mean_of_the_first_rows_and_the_largest_value_is_absolute():
    x = np.random.default_rng(5).uniform(-9, 3, size=(5000, 4)).astype(np.float32)
    x[4500, 2] = -77.0
    rows = rows_of(x, 900)
    shifted = np.concatenate([slab.copy() for slab in rows()], axis=1)
    np.testing.assert_allclose(rows.shift[0], x[:SHIFT_ROWS].astype(np.float64).mean(axis=0), atol=1e-14)
    assert rows.largest == 77.0
    np.testing.assert_array_equal(shifted[0], x.astype(np.float64) - rows.shift[0])


def test_rows_as_stored_are_neither_shifted_nor_converted():
    x = np.random.default_rng(6).standard_normal((30, 4)).astype(np.float16)
    for keep in (True, False):
        rows = rows_of(x, 11, keep=keep)
        list(rows())
        stored = np.concatenate(list(rows.stored()))
        assert stored.dtype == np.float16
        np.testing.assert_array_equal(stored, x)


# Moments


@several
@given(
    rows=st.integers(2, 80), places=st.lists(st.integers(0, 10_000), max_size=6), seed=seeds, backwards=st.booleans()
)
def test_merging_any_split_of_the_rows_gives_the_whole(rows, places, seed, backwards):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 3)) + rng.uniform(-3, 3, size=3)
    parts = [moments_over(rows_of(piece)) for piece in cut(x, places) if len(piece)]
    total = parts.pop(-1 if backwards else 0)
    while parts:
        total = merge(parts.pop(), total) if backwards else merge(total, parts.pop(0))
    z = x - x.mean(axis=0)
    assert total.count == rows
    np.testing.assert_allclose(total.mean[0], x.mean(axis=0), atol=1e-13)
    np.testing.assert_allclose(total.comoment(0), z.T @ z, atol=1e-11)


def test_moments_are_those_of_numpy_in_every_library(xp):
    x = np.random.default_rng(7).standard_normal((300, 6)) * 3 + 10
    moments = moments_over(rows_of(xp.asarray(x), 40, 200))
    assert moments.count == 300
    np.testing.assert_allclose(xp.to_numpy(moments.mean)[0], x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(xp.to_numpy(moments.comoment(0)), np.cov(x.T) * 299, rtol=1e-11, atol=1e-9)


def test_complex_moments_conjugate_the_first_factor(xp):
    rng = np.random.default_rng(8)
    x = rng.standard_normal((60, 4, 3, 2)) + 1.5
    moments = moments_over(Rows(lambda: iter((xp.asarray(x),)), x.shape, View("dft"), keep=True))
    z = np.fft.fft2(x, axes=(1, 2), norm="ortho")
    z -= z.mean(axis=0)
    for f, (h, w) in enumerate(half_spectrum((4, 3)).bins):
        there = z[:, h, w, :]
        np.testing.assert_allclose(xp.to_numpy(moments.comoment(f)), there.conj().T @ there, atol=1e-11)


def test_means_a_million_times_the_deviation_cost_no_digits():
    rng = np.random.default_rng(9)
    x, y = reference.planted(rng, GRID + 1000, [0.9, 0.5, 0.1], q=4, mean=1e6)
    z = reference.centred(x)
    moments = moments_over(rows_of(x, 500))
    np.testing.assert_allclose(moments.comoment(0), z.T @ z, rtol=0, atol=1e-10 * np.trace(z.T @ z))
    naive = x.T @ x - np.outer(x.sum(axis=0), x.sum(axis=0)) / len(x)
    assert np.abs(naive - z.T @ z).max() > 1e-6 * np.trace(z.T @ z), "this case would not tell a naive sum"
    np.testing.assert_allclose(cca(x, y).correlations, reference.cca(x, y).correlations, atol=1e-10, rtol=0)


# How many directions


@pytest.mark.parametrize("tenths", range(1, 10))
@pytest.mark.parametrize("criterion", ["variance", "singular"])
def test_a_share_that_is_met_exactly_keeps_no_direction_more(tenths, criterion):
    s = np.full(10, np.sqrt(0.1) if criterion == "variance" else 0.1)
    assert RankRule(tenths / 10, criterion).keep(s, nonzero=10) == tenths


@pytest.mark.parametrize("criterion", ["variance", "singular"])
def test_rounding_of_the_sums_never_adds_a_direction(criterion):
    for size in range(2, 60):
        s = np.full(size, np.sqrt(0.1) if criterion == "variance" else 0.1)
        kept = [RankRule(k / size, criterion).keep(s, nonzero=size) for k in range(1, size)]
        assert kept == list(range(1, size))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (RankRule(), 4),
        (RankRule(0.5), 1),
        (RankRule(0.95), 2),
        (RankRule(0.995), 3),
        (RankRule(0.5, "singular"), 1),
        (RankRule(0.89, "singular"), 2),
        (RankRule(0.95, "singular"), 3),
        (RankRule(0.99, "singular"), 4),
        (RankRule(rank=2), 2),
        (RankRule(rank=9), 4),
        (RankRule(0.5, rank=3), 3),
    ],
)
def test_the_rank_rule_counts_the_smallest_set_that_is_enough(rule, expected):
    s = np.array([10.0, 5.0, 1.0, 0.5, 0.5, 0.5])  # the last two are zero by the zero rule: never counted
    assert rule.keep(s, nonzero=4) == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (RankRule(), 4),
        (RankRule(rank=1), 1),
        (RankRule(rank=3), 2),
        (RankRule(rank=4), 3),
        (RankRule(rank=99), 4),
        (RankRule(0.5), 2),
        (RankRule(0.83), 3),
        (RankRule(0.5, "singular"), 2),
        (RankRule(0.75, "singular"), 3),
    ],
)
def test_weights_count_a_direction_as_often_as_it_stands_for(rule, expected):
    s, weights = np.array([2.0, 2.0, 2.0, 2.0, 1.0]), np.array([1.0, 2.0, 2.0, 1.0, 2.0])
    assert rule.keep(s, nonzero=4, weights=weights) == expected


rules = st.one_of(
    st.builds(
        RankRule, variance=st.sampled_from([0.3, 0.9, 0.99, 1.0]), criterion=st.sampled_from(["variance", "singular"])
    ),
    st.builds(RankRule, rank=st.integers(1, 12)),
)


@settings(max_examples=300, deadline=None)
@given(one=rules, other=rules, s=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=10))
def test_a_rule_that_covers_another_keeps_all_that_the_other_keeps(one, other, s):
    spectrum = np.sort(s)[::-1]
    if one.covers(other):
        assert one.keep(spectrum, len(s)) >= other.keep(spectrum, len(s))
    assert one.covers(one)
    assert RankRule().covers(one)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (RankRule(0.99), RankRule(0.9), True),
        (RankRule(0.9), RankRule(0.99), False),
        (RankRule(0.99), RankRule(0.9, "singular"), False),
        (RankRule(0.99, "singular"), RankRule(0.9, "singular"), True),
        (RankRule(0.99), RankRule(), False),
        (RankRule(0.99), RankRule(rank=1), False),
        (RankRule(rank=9), RankRule(0.1), False),
        (RankRule(rank=9), RankRule(rank=8), True),
        (RankRule(rank=8), RankRule(rank=9), False),
        (RankRule(1.0, "singular"), RankRule(0.99), True),
    ],
)
def test_rules_cover_what_is_always_a_part_of_them(one, other, expected):
    assert one.covers(other) is expected


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (RankRule(), "all non-zero directions"),
        (RankRule(0.99), "fewest directions holding 99 % of the sum of squared singular values (variance)"),
        (RankRule(0.995, "singular"), "fewest directions holding 99.5 % of the sum of singular values"),
        (RankRule(0.5, rank=20), "the 20 largest directions"),
    ],
)
def test_rules_say_what_they_keep(rule, text):
    assert str(rule) == text


@pytest.mark.parametrize("rank", [0, -3])
def test_a_rank_that_keeps_nothing_is_refused(rank):
    with pytest.raises(DsvccaError, match=f"rank={rank} keeps nothing that could be counted: give 1, 2, ... or None"):
        RankRule(rank=rank)


@pytest.mark.parametrize("variance", [0, -1.0, 1.0000001, 99.0])
def test_a_share_outside_zero_to_one_is_refused(variance):
    with pytest.raises(DsvccaError, match=rf"variance={variance} must lie in \(0, 1\]: it is a share"):
        RankRule(variance)


def test_a_criterion_there_is_not_is_refused():
    with pytest.raises(DsvccaError, match="criterion='norm' is unknown: use 'variance' or 'singular'"):
        RankRule(0.9, "norm")


# Which directions are zero


def rounded(x, name):
    return reference.to_bfloat16(x) if name == "bfloat16" else x.astype(name)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("mean", [0.0, 5.0])
def test_thirty_true_directions_of_fifty_neurons_are_found_in_every_stored_type(dtype, mean):
    rng = np.random.default_rng(10)
    x = rng.standard_normal((5000, 30)) @ rng.standard_normal((30, 50)) + mean
    _, basis = whitened(rounded(x, dtype), bits=reference.BITS[dtype])
    assert basis.nonzero == basis.rank == 30
    if dtype in ("float16", "bfloat16"):
        _, blind = whitened(rounded(x, dtype), bits=None)
        assert blind.nonzero == 50, "without its significand bits rounding noise would be a direction"


def test_a_large_mean_makes_float32_noise_that_is_no_direction_either():
    rng = np.random.default_rng(26)
    x = (rng.standard_normal((5000, 30)) @ rng.standard_normal((30, 50)) + 5000).astype(np.float32)
    assert whitened(x, bits=24)[1].nonzero == 30
    assert whitened(x, bits=None)[1].nonzero == 50


def test_thirty_true_directions_are_found_in_bfloat16_tensors():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    x = rng.standard_normal((3000, 30)) @ rng.standard_normal((30, 50)) + 1.0
    _, basis = whiten_in_memory(torch.from_numpy(x).to(torch.bfloat16), RankRule(), "x")
    assert basis.nonzero == 30


@pytest.mark.parametrize("constant", [0.0, 0.37, -1000.1, 1e-30])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_dead_channel_after_batch_norm_is_no_direction(constant, dtype):
    x = reference.batch_norm(np.random.default_rng(12).standard_normal((GRID + 700, 8))).astype(dtype)
    x[:, 3] = constant
    _, basis = whitened(x, bits=reference.BITS[dtype])
    assert basis.nonzero == 7
    assert basis.neuron_norms[3] <= 1e-9
    np.testing.assert_allclose(basis.mean[0, 3], np.array(constant, dtype), rtol=1e-12, atol=1e-35)


def test_the_spectrum_is_that_of_the_centred_activations(xp):
    x = np.random.default_rng(13).standard_normal((400, 6)) @ reference.mixing(np.random.default_rng(14), 6, 1e3) + 4.0
    spectrum = decompose(moments_over(rows_of(xp.asarray(x))), np.ones(1), 10.0, 53)
    s = np.linalg.svd(reference.centred(x), compute_uv=False)
    np.testing.assert_allclose(spectrum.singular_values[0], s, rtol=1e-9)
    vectors = xp.to_numpy(spectrum.vectors[0](6))
    np.testing.assert_allclose(np.linalg.norm(reference.centred(x) @ vectors, axis=0), s, rtol=1e-8)
    assert spectrum.nonzero == 6


# Columns and what belongs to them


def test_loadings_times_columns_give_back_the_centred_activations(xp):
    x = np.random.default_rng(15).standard_normal((700, 9)) @ reference.mixing(np.random.default_rng(16), 9, 100.0)
    x = np.column_stack([x, x[:, 0] - x[:, 1], np.full(700, 2.0)]) + 3.0
    u, basis = whitened(xp.asarray(x))
    orthonormal = xp.to_numpy(u) @ to_numpy(inverse_cholesky(basis.blocks[0].cholesky)).T
    assert basis.rank == 9
    np.testing.assert_allclose(orthonormal.T @ orthonormal, np.eye(9), atol=1e-12)
    np.testing.assert_allclose(orthonormal @ xp.to_numpy(basis.blocks[0].loadings), reference.centred(x), atol=1e-10)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_parts_of_a_basis_are_what_they_say(dtype):
    x = np.random.default_rng(17).standard_normal((GRID + 900, 7)) * np.arange(1, 8) + 2.0
    u, basis = whitened(x, RankRule(rank=5), dtype, keep=False)
    z, stored = reference.centred(x), u.astype(np.float64)
    assert (basis.count, basis.rank, basis.nonzero, u.dtype) == (GRID + 900, 5, 7, np.dtype(dtype))
    np.testing.assert_allclose(basis.singular_values[0], np.linalg.svd(z, compute_uv=False), rtol=1e-12)
    np.testing.assert_allclose(basis.mean[0], x.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(basis.neuron_norms, np.linalg.norm(z, axis=0), rtol=1e-12)
    np.testing.assert_allclose(basis.row_norms, (z**2).sum(axis=1), rtol=1e-10)
    ones = np.ones(len(x)) if dtype == "float64" else mixed_ones(0, len(x))
    np.testing.assert_allclose(basis.blocks[0].column_sums, ones @ stored, atol=1e-12)
    gram = stored.T @ stored - np.outer(ones @ stored, ones @ stored) / len(x)
    np.testing.assert_allclose(basis.blocks[0].cholesky @ basis.blocks[0].cholesky.T, gram, atol=1e-14)
    np.testing.assert_array_equal(np.triu(basis.blocks[0].cholesky, 1), np.zeros((5, 5)))
    diagonal = np.abs(np.diag(basis.blocks[0].cholesky))
    np.testing.assert_allclose(diagonal, np.ones(5), atol=1e-6)
    spectrum = decompose(moments_over(rows_of(x)), np.ones(1), 30.0, 53)
    sv = spectrum.singular_values[0, :5, None] * spectrum.vectors[0](5).T
    np.testing.assert_allclose(basis.blocks[0].loadings, basis.blocks[0].cholesky.T @ sv, atol=1e-10)


@pytest.mark.parametrize("rows", [64, 100, GRID + 900, 2 * GRID])
def test_mixing_rows_changes_no_product_and_no_sum(xp, rows):
    rng = np.random.default_rng(30)
    u, v = rng.standard_normal((rows, 5)) + 1.0, rng.standard_normal((rows, 3))
    a, b = ([mix(xp.asarray(one[step]), step.start) for step in grid_steps(rows)] for one in (u, v))
    a, b = (np.concatenate([xp.to_numpy(step) for step in one]) for one in (a, b))
    np.testing.assert_allclose(a.T @ b, u.T @ v, atol=1e-10)
    ones = np.concatenate([mixed_ones(step.start, step.stop - step.start) for step in grid_steps(rows)])
    np.testing.assert_allclose(ones @ a, u.sum(axis=0), atol=1e-9)
    assert np.abs(a[:64] - u[:64]).max() > 0.1


@pytest.mark.parametrize("repeat", [1, 200, 1000])
def test_equal_rows_do_not_round_the_same_way_a_thousand_times(repeat):
    one_hot = np.tile(np.repeat(np.eye(10), repeat, axis=0), (10_000 // (10 * repeat), 1))
    for x in (one_hot, (np.arange(2250) % 2)[:, None].astype(float)):
        u, basis = whitened(x, dtype="float32")
        rho = correlations_of(corrected_cross(u, basis, u, basis))
        np.testing.assert_allclose(rho, 1, atol=2.2e-7)


def test_loadings_of_fewer_directions_are_the_first_rows_of_those_of_more():
    x = np.random.default_rng(18).standard_normal((500, 8)) * np.arange(1, 9)
    u_all, everything = whitened(x)
    corner = inverse_cholesky(everything.blocks[0].cholesky[:3, :3])
    np.testing.assert_allclose(corner, inverse_cholesky(everything.blocks[0].cholesky)[:3, :3], atol=1e-15)
    variates = u_all[:, :3].astype(np.float64) @ corner.T
    np.testing.assert_allclose(variates.T @ reference.centred(x), everything.blocks[0].loadings[:3], atol=1e-4)
    few = whitened(x, RankRule(rank=3))[1]
    np.testing.assert_allclose(few.blocks[0].loadings, everything.blocks[0].loadings[:3], atol=1e-4)


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e5])
def test_float32_columns_give_float64_correlations(condition):
    rho = np.linspace(0.0, 1.0, 24)[::-1]
    x, y = reference.planted(np.random.default_rng(19), GRID + 900, rho, condition=condition, mean=30.0)
    (u_x, bx), (u_y, by) = whitened(x, dtype="float32"), whitened(y, dtype="float32")
    assert u_x.dtype == np.float32
    found = correlations_of(corrected_cross(u_x, bx, u_y, by))
    np.testing.assert_allclose(found, rho, atol=1e-6, rtol=0)
    (v_x, cx), (v_y, cy) = whitened(x), whitened(y)
    exact = np.linalg.svd(corrected_cross(v_x, cx, v_y, cy), compute_uv=False)
    np.testing.assert_allclose(found, exact, atol=1e-6, rtol=0)
    np.testing.assert_allclose(exact, rho, atol=1e-9, rtol=0)


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e5])
def test_float32_columns_compared_with_themselves_give_ones(condition):
    x, _ = reference.planted(np.random.default_rng(20), GRID + 900, np.zeros(24), condition=condition, mean=30.0)
    u, basis = whitened(x, dtype="float32")
    np.testing.assert_allclose(correlations_of(corrected_cross(u, basis, u, basis)), np.ones(24), atol=3e-7, rtol=0)


def test_the_correction_undoes_any_mixing_and_shift_of_the_columns():
    rng = np.random.default_rng(21)
    rho = np.array([0.9, 0.6, 0.2])
    x, y = reference.planted(rng, 300, rho)
    u, v = np.linalg.qr(reference.centred(x))[0], np.linalg.qr(reference.centred(y))[0]
    factors = [np.tril(rng.uniform(0.5, 1.5, size=(3, 3))) for _ in range(2)]
    a, b = u @ factors[0].T + 0.3, v @ factors[1].T - 0.7
    cross = corrected(a.T @ b, a.sum(axis=0), b.sum(axis=0), 300, *(inverse_cholesky(factor) for factor in factors))
    np.testing.assert_allclose(cross, u.T @ v, atol=1e-12)


def test_columns_are_of_the_library_and_device_of_the_activations(xp):
    x = np.random.default_rng(22).standard_normal((300, 5))
    u, basis = whiten_in_memory(xp.asarray(x), RankRule(0.9), "x")
    blocks = (basis.blocks[0].cholesky, basis.blocks[0].column_sums, basis.blocks[0].loadings)
    assert all(xp.owns(part) for part in (u, *blocks, basis.mean, basis.neuron_norms, basis.row_norms))
    assert namespace(u).float64 == u.dtype


# Refusals


@pytest.mark.parametrize("row", [0, 700, GRID + 5])
@pytest.mark.parametrize("keep", [True, False])
def test_rows_that_are_not_finite_are_located_on_any_step_of_the_grid(row, keep):
    x = np.random.default_rng(23).standard_normal((GRID + 500, 4))
    x[row, 1] = x[row, 2] = x[-1, 3] = np.nan
    with pytest.raises(DsvccaError, match=f"conv3: 3 numbers are NaN or infinite, the first of datapoint {row}: leave"):
        whitened(x, keep=keep)


def test_activations_too_large_to_square_are_refused():
    x = np.random.default_rng(24).standard_normal((100, 3)) * 1e170
    with pytest.raises(DsvccaError, match=r"conv3: squares of numbers as large as \d.*e\+170 overflow float64: scale"):
        whitened(x)


def test_activations_without_any_direction_are_refused():
    with pytest.raises(DsvccaError, match="conv3: every neuron is constant over all 50 rows, no direction is left"):
        whitened(np.full((50, 3), 0.1))


def test_keeping_fewer_directions_frees_rows_that_were_too_few():
    x = np.random.default_rng(25).standard_normal((12, 30))
    with pytest.raises(DsvccaError, match=r"conv3: 11 kept directions in 12 rows .*below rows - 1 = 11"):
        whitened(x)
    with pytest.raises(DsvccaError, match="use more datapoints, or keep fewer directions"):
        whitened(x, RankRule(rank=11))
    assert whitened(x, RankRule(rank=10))[1].rank == 10


@pytest.mark.parametrize("view", [View("dft"), View("alias", (2, 3)), View("lowpass", (3, 2)), View("pool", (2, 3))])
def test_views_that_transform_are_the_same_in_every_library(xp, view):
    x = np.random.default_rng(3).standard_normal((9, 4, 6, 2))
    found = xp.to_numpy(apply_view(xp.asarray(x), view))
    assert found.shape == viewed_shape(x.shape, view)
    np.testing.assert_allclose(found, apply_view(x, view), atol=1e-13)


def test_complex_moments_of_different_shifts_merge_in_every_library(xp):
    x = np.random.default_rng(4).standard_normal((500, 3, 4, 2)) + np.linspace(0, 9, 500)[:, None, None, None]
    halves = [xp.asarray(x[:230]), xp.asarray(x[230:])]
    first, second = (
        moments_over(Rows(lambda half=half: iter((half,)), tuple(half.shape), View("dft"), keep=False))
        for half in halves
    )
    total = merge(first, second)
    z = np.fft.fft2(x, axes=(1, 2), norm="ortho")
    z -= z.mean(axis=0)
    for f, (h, w) in enumerate(half_spectrum((3, 4)).bins):
        there = z[:, h, w, :]
        np.testing.assert_allclose(xp.to_numpy(total.comoment(f)), there.conj().T @ there, atol=1e-9)


def test_representations_side_by_side_have_the_moments_of_each_and_of_both(xp):
    rng = np.random.default_rng(5)
    sides = [rng.standard_normal((200, 3, 2, c)) for c in (2, 3)]
    rows = [Rows(lambda a=a: iter((xp.asarray(a),)), a.shape, View("dft"), keep=False) for a in sides]
    joint = moments_over(*rows)
    both = np.concatenate(sides, axis=-1)
    alone = moments_over(Rows(lambda: iter((xp.asarray(both),)), both.shape, View("dft"), keep=False))
    np.testing.assert_allclose(xp.to_numpy(joint.gram), xp.to_numpy(alone.gram), atol=1e-10)
    assert [one.columns for one in rows] == [2, 3]


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("size", [2, 3, 65, 400])
def test_lapack_called_by_its_address_gives_the_bits_that_scipy_gives(monkeypatch, size, order, free):
    assert arrays.FREE
    monkeypatch.setattr(arrays, "FREE", free)
    matrix = np.asarray(np.random.default_rng(0).standard_normal((size, size)), order=order)
    before = matrix.copy()
    form = arrays._tridiagonal(matrix)
    for one, other in zip(form, dsytrd(matrix, lower=1, lwork=64 * size), strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(matrix, before)
    values, _ = dsterf(*form[1:3])
    for count in (1, size // 3 or 1):
        vectors, failed = arrays._vectors_of_tridiagonal(*form[1:3], values[size - count :])
        block = np.ones(size, dtype=np.int32), np.full(size, size, dtype=np.int32)
        expected, _ = dstein(*form[1:3], values[size - count :], *block)
        assert failed == 0
        assert np.array_equal(vectors, expected)
        assert vectors.flags.f_contiguous


@pytest.mark.parametrize("step", ["form", "vectors"])
def test_other_threads_go_on_while_eigenvalues_and_vectors_are_found(step):
    rng = np.random.default_rng(0)
    if step == "form":
        matrix = rng.standard_normal((1500, 1500))
        matrix = matrix @ matrix.T
        work = lambda: arrays._tridiagonal(matrix)  # noqa: E731
    else:  # eigenvalues that lie close to each other, whose vectors are made orthogonal one by one
        diagonal, beside = 1 + 1e-6 * rng.standard_normal(2000), 1e-6 * rng.standard_normal(1999)
        values = dsterf(diagonal, beside)[0][-600:]
        work = lambda: arrays._vectors_of_tridiagonal(diagonal, beside, values)  # noqa: E731
    seen, done = [], threading.Event()

    def look():
        while not done.wait(0.001):
            seen.append(time.monotonic())

    looking = threading.Thread(target=look)
    looking.start()
    begun = time.monotonic()
    work()
    ended = time.monotonic()
    done.set()
    looking.join()
    inside = [begun, *(when for when in seen if begun < when < ended), ended]
    assert max(later - one for one, later in pairwise(inside)) < (ended - begun) / 2
