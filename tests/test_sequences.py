"""Sequences: tokens as rows without padding, and every position as a representation of its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

import dsvcca
from dsvcca import DsvccaError, DsvccaWarning
from dsvcca.activations.pieces import read_pieces
from dsvcca.results.tables import to_frame
from tests.populations import same_bits

pytestmark = pytest.mark.filterwarnings("ignore:chance. 500 datapoints are counted")

ROWS, POSITIONS = 500, 6


def sequences(seed, neurons, positions=POSITIONS):
    """Return hidden states (n, t, d) that turn slowly into something shared at the last position."""
    shared = np.random.default_rng(0).standard_normal((ROWS, 4))
    rng = np.random.default_rng(1 + seed)
    out = rng.standard_normal((ROWS, positions, neurons))
    for t in range(positions):
        out[:, t] += t * shared @ rng.standard_normal((4, neurons))
    return out.astype(np.float32)


def lengths():
    return np.random.default_rng(9).integers(1, POSITIONS + 1, ROWS)


@pytest.fixture
def store(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=ROWS)
    for seed, neurons in enumerate((5, 7)):
        with store.writer(layer="lstm", seed=seed, dims="ntd") as writer:
            for part in np.array_split(sequences(seed, neurons), 7):
                writer.append(part)
    return store


def test_padding_is_left_out_of_the_rows(store, tmp_path):
    valid = np.arange(POSITIONS) < lengths()[:, None]
    store.write_mask(valid)
    store.write_mask(valid.tolist())  # the same again is nothing new
    store = dsvcca.open_store(store.path)
    plan = dsvcca.plan_comparisons(store, variance=0.9)
    assert f"positions (3 comparisons of {valid.sum():,} rows)" in str(plan)
    found = dsvcca.compare(plan, tmp_path / "r.zarr")
    x, y = (sequences(seed, neurons)[valid] for seed, neurons in enumerate((5, 7)))
    assert float(found.svcca[0, 1]) == pytest.approx(dsvcca.svcca(x, y, variance=0.9), abs=2e-7)
    assert float(found.pwcca_x[0, 1]) == pytest.approx(dsvcca.pwcca(x, y, variance=0.9), abs=1e-5)
    assert store.verify().empty
    tight = replace(plan, memory=int((320 + 130) * 2**20 / 0.7))
    assert same_bits(dsvcca.compare(tight, tmp_path / "r2.zarr", workspace=tmp_path / "w"), found)
    # Without the mask it is another number.
    everything = [sequences(seed, neurons).reshape(-1, neurons) for seed, neurons in enumerate((5, 7))]
    assert abs(dsvcca.svcca(*everything, variance=0.9) - float(found.svcca[0, 1])) > 1e-3


def test_that_chance_counts_datapoints_is_warned_of_where_they_have_several_rows(tmp_path):
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=100)
    for seed in range(2):
        store.write(rng.standard_normal((100, 30, 5)), layer="lstm", seed=seed, dims="ntd")
        store.write(rng.standard_normal((100, 5)), layer="dense", seed=seed)
    dense, tokens = store.select(layer="dense"), store.select(layer="lstm")
    counted = "100 datapoints are counted and not their 3,000 rows, which is a guess"
    named = ["svcca", "p_value", "chance", "svcca_shuffled"]

    def compared(store, name, **options):
        return dsvcca.compare(dsvcca.plan_comparisons(store, **options), tmp_path / name)

    assert not compared(dense, "dense.zarr", measures=named).attrs["warnings"]
    assert not compared(tokens, "svcca.zarr", measures=["svcca"]).attrs["warnings"]
    assert not compared(tokens, "means.zarr", view="mean").attrs["warnings"]
    with pytest.warns(DsvccaWarning, match="cka_debiased: NaN where a datapoint has several rows"):
        assert np.isnan(compared(tokens, "cka.zarr", measures=["cka_debiased"]).cka_debiased).all()
    assert not compared(dense, "cka_dense.zarr", measures=["cka_debiased"]).attrs["warnings"]
    with pytest.warns(DsvccaWarning, match=rf"chance, p_value: {counted}.*measures=\['svcca_shuffled'\] asks the data"):
        found = compared(tokens, "tokens.zarr", measures=named)
    x, y = (tokens.read(layer="lstm", seed=seed).reshape(3000, 5) for seed in range(2))
    assert abs(float(found.svcca_shuffled[0, 1]) - dsvcca.measure(x, y, ["chance"])["chance"]) < 0.01
    assert float(found.chance[0, 1]) > 4 * float(found.svcca_shuffled[0, 1])  # what the sentence says
    with pytest.warns(DsvccaWarning, match=counted):
        found = compared(store, "both.zarr")
    assert [words for words in found.attrs["warnings"] if counted in words]


def test_what_cannot_be_resampled_is_said_and_not_a_number(store, tmp_path):
    store.write_mask(np.arange(POSITIONS) < lengths()[:, None])
    store = dsvcca.open_store(store.path)
    plan = dsvcca.plan_comparisons(store, measures=["svcca", "svcca_error", "svcca_shuffled"])
    with pytest.warns(
        DsvccaWarning, match="svcca_error, svcca_shuffled: NaN where datapoints differ in their number of"
    ):
        found = dsvcca.compare(plan, tmp_path / "r.zarr")
    assert np.isfinite(found.svcca).all()
    assert np.isnan(found.svcca_error).all()
    assert np.isnan(found.svcca_shuffled).all()


def test_a_mask_is_read_back(store):
    assert store.read_mask() is None
    valid = np.arange(POSITIONS) < lengths()[:, None]
    store.write_mask(valid)
    assert np.array_equal(store.read_mask(), valid)
    assert np.array_equal(dsvcca.open_store(store.path).read_mask(), valid)


def test_a_mask_belongs_to_sequences_of_its_length_and_changes_what_is_whitened(store, tmp_path):
    before = dsvcca.plan_comparisons(store, view="positions")
    store.write(np.random.default_rng(3).standard_normal((ROWS, 4, 3)), layer="short", dims="ntd")
    store.write(np.random.default_rng(4).standard_normal((ROWS, 3)), layer="dense")
    store.write_mask(np.arange(POSITIONS) < lengths()[:, None])
    masks = {r.labels["layer"]: r.mask for r in store.representations}
    assert masks["short"] is masks["dense"] is None
    assert masks["lstm"].rows == lengths().sum()
    after = dsvcca.plan_comparisons(store.select(layer="lstm"), view="positions")
    assert not set(before.basis_fingerprints) & set(after.basis_fingerprints)


def test_masks_that_cannot_be_are_refused(store, tmp_path):
    valid = np.ones((ROWS, POSITIONS), dtype=bool)
    with pytest.raises(DsvccaError, match=r"a mask of shape \(10, 6\), the store has 500 datapoints"):
        store.write_mask(valid[:10])
    with pytest.raises(DsvccaError, match="a mask holds true .* and false"):
        store.write_mask(valid * 2.5)
    with pytest.raises(DsvccaError, match="the mask leaves no token"):
        store.write_mask(~valid)
    store.write_mask(valid)
    with pytest.raises(DsvccaError, match="has another mask already"):
        store.write_mask(np.arange(POSITIONS) < lengths()[:, None])
    group = zarr.create_group(tmp_path / "g.zarr")
    group.create_array("a", data=np.ones((9, 3)))
    with pytest.raises(DsvccaError, match="was written by others and is only read"):
        dsvcca.open_store(tmp_path / "g.zarr").write_mask(np.ones((9, 3)))


def test_a_mask_of_no_sequence_there_is_is_refused(store):
    with pytest.raises(DsvccaError, match=r"a mask of 9 positions, the sequences of the store have \[6\]"):
        store.write_mask(np.ones((ROWS, 9)))


def test_a_mask_that_was_damaged_or_changed_is_told(store, tmp_path):
    store.write_mask(np.arange(POSITIONS) < lengths()[:, None])
    plan = dsvcca.plan_comparisons(store, view="positions")
    chunk = Path(store.path, "mask", "valid", "c.0.0")
    good = chunk.read_bytes()
    chunk.write_bytes(bytes([1 - good[0]]) + good[1:])
    with pytest.raises(DsvccaError, match="the mask .* is damaged .*: restore it"):
        dsvcca.compare(plan, tmp_path / "r.zarr")
    assert list(store.verify().name) == ["mask"]
    chunk.write_bytes(good)
    record = chunk.parent.parent / "zarr.json"
    record.write_text(record.read_text().replace('"rows": ', '"rows": 1'))
    with pytest.raises(DsvccaError, match="was changed after it was written"):
        _ = dsvcca.open_store(store.path).index
    [problem] = dsvcca.open_store(store.path).verify().problem
    assert "was changed after it was written" in problem


# Every position on its own


def test_every_position_is_compared_with_the_last(store, tmp_path):
    plan = dsvcca.plan_comparisons(store, "to_last_position", variance=0.99)
    assert len(plan.representations) == 2 * POSITIONS
    assert plan.pairs.count == 2 * POSITIONS
    frame = to_frame(dsvcca.compare(plan, tmp_path / "r.zarr"))
    assert len(frame) == 2 * POSITIONS
    for row in frame.itertuples():
        assert row.y_position == POSITIONS - 1
        assert row.x_seed == row.y_seed
        x = sequences(row.x_seed, (5, 7)[row.x_seed])
        expected = dsvcca.svcca(x[:, row.x_position], x[:, -1], variance=0.99)
        assert row.svcca == pytest.approx(expected, abs=2e-7)
    of_one = frame[frame.x_seed == 0].sort_values("x_position").svcca.tolist()
    assert of_one[0] < 0.3 < 0.8 < of_one[3] < of_one[-1] <= 1  # they come nearer to it


def test_positions_across_seeds_are_the_same_positions(store, tmp_path):
    plan = dsvcca.plan_comparisons(store, "across_seeds", view="each_position", variance=0.9)
    frame = to_frame(dsvcca.compare(plan, tmp_path / "r.zarr"))
    frame = frame[frame.x_seed != frame.y_seed]
    assert (frame.x_position == frame.y_position).all()
    assert len(frame) == POSITIONS


def test_one_position_is_read_where_it_lies_and_checked(store):
    [representation] = store.select(seed=0).representations
    x = sequences(0, 5)
    for position in (0, 3, 5):
        one = representation.at(position)
        assert one.logical_shape == (ROWS, 5)
        assert one.nbytes == ROWS * 5 * 4
        np.testing.assert_array_equal(np.concatenate(list(read_pieces(one))), x[:, position])
        np.testing.assert_array_equal(np.concatenate(list(read_pieces(one, 90, 333))), x[90:333, position])
    chunk = Path(representation.array, "c.0.0.0")
    good = chunk.read_bytes()
    chunk.write_bytes(good[:5] + bytes([good[5] ^ 1]) + good[6:])
    with pytest.raises(DsvccaError, match="is damaged, its checksum does not hold"):
        list(read_pieces(representation.at(1)))


def test_positions_of_arrays_of_others_are_read_too(tmp_path):
    x = sequences(0, 5)
    group = zarr.create_group(tmp_path / "g.zarr")
    group.create_array("rnn", data=np.moveaxis(x, 1, 0), chunks=(2, 130, 5))
    store = dsvcca.open_store(tmp_path / "g.zarr", dims="tnd")
    found = dsvcca.compare(dsvcca.plan_comparisons(store, "to_last_position"), tmp_path / "r.zarr")
    assert found.sizes["x"] == POSITIONS
    expected = dsvcca.svcca(x[:, 2], x[:, -1])
    assert float(found.svcca[2, -1]) == pytest.approx(expected, abs=2e-7)


def test_positions_that_cannot_be_taken_apart_are_refused(store, tmp_path):
    with pytest.raises(DsvccaError, match="view='each_position' needs sequences"):
        dense = dsvcca.create_store(tmp_path / "d.zarr", datapoints=ROWS)
        dense.write(np.random.default_rng(0).standard_normal((ROWS, 3)), layer="fc")
        dsvcca.plan_comparisons(dense, view="each_position")
    with pytest.raises(DsvccaError, match="pairs='to_last_position' needs a 'position' label"):
        dsvcca.plan_comparisons(dense, "to_last_position")
    store.write(np.random.default_rng(0).standard_normal((ROWS, 4, 4, 3)), layer="conv", seed=0, dims="nhwc")
    with pytest.raises(DsvccaError, match="cannot be compared as view='neurons'"):
        dsvcca.plan_comparisons(store, view="each_position")
    store.write_mask(np.arange(POSITIONS) < lengths()[:, None])
    with pytest.raises(
        DsvccaError, match=r"calls \d+ of its positions padding, .*: view='positions' compares all tokens"
    ):
        dsvcca.plan_comparisons(store.select(layer="lstm"), view="each_position")


def test_means_are_over_tokens_and_never_mix_with_tokens_as_rows(tmp_path):
    one = np.arange(POSITIONS) == lengths()[:, None] - 1  # as many tokens as datapoints
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=ROWS)
    dense = np.random.default_rng(5).standard_normal((ROWS, 4)) + sequences(0, 5)[:, -1, :4]
    for seed, neurons in enumerate((5, 7)):
        store.write(sequences(seed, neurons), layer="lstm", seed=seed, dims="ntd")
    store.write(dense, layer="dense", seed=0)
    store.write_mask(one)
    plan = dsvcca.plan_comparisons(store, variance=0.9, targets=dense[:, 0])
    found = dsvcca.compare(plan, tmp_path / "r.zarr")
    a, b = (sequences(seed, neurons)[one] for seed, neurons in enumerate((5, 7)))
    assert dsvcca.to_frame(found).view.tolist() == ["positions", "positions", "mean", "positions", "mean", "neurons"]
    assert float(found.svcca[0, 1]) == pytest.approx(dsvcca.svcca(a, b, variance=0.9), abs=1e-6)
    assert float(found.svcca[0, 2]) == pytest.approx(dsvcca.svcca(a, dense, variance=0.9), abs=1e-6)
    rho = dsvcca.cca(a, dense[:, :1], variance=0.9).correlations
    assert float(found.r2_target[0, 0]) == pytest.approx(float(rho[0]) ** 2, abs=1e-6)


@pytest.mark.parametrize("view", ["mean", "max"])
def test_padding_does_not_count_in_means_and_maxima(store, tmp_path, view):
    valid = np.arange(POSITIONS) < lengths()[:, None]
    before = dsvcca.plan_comparisons(store, view=view).basis_fingerprints
    store.write_mask(valid)
    plan = dsvcca.plan_comparisons(store, view=view, variance=1.0)
    assert not set(before) & set(plan.basis_fingerprints)
    found = dsvcca.compare(plan, tmp_path / "r.zarr")
    sides = []
    for seed, neurons in enumerate((5, 7)):
        x = np.where(valid[:, :, None], sequences(seed, neurons).astype(float), np.nan)
        sides.append(np.nanmean(x, axis=1) if view == "mean" else np.nanmax(x, axis=1))
    assert float(found.svcca[0, 1]) == pytest.approx(dsvcca.svcca(*sides, variance=1.0), abs=1e-6)


def test_padding_that_cannot_be_left_out_is_told(store, tmp_path):
    valid = np.arange(POSITIONS) < lengths()[:, None]
    valid[7] = False
    store.write_mask(valid)
    with pytest.warns(dsvcca.DsvccaWarning, match="calls some positions padding, and they count like all others"):
        dsvcca.compare(dsvcca.plan_comparisons(store, view="dft"), tmp_path / "r.zarr")
    with pytest.raises(DsvccaError, match="datapoint 7 has no token by the mask, and so no mean over tokens"):
        dsvcca.compare(dsvcca.plan_comparisons(store, view="mean"), tmp_path / "r2.zarr")
    with pytest.raises(DsvccaError, match="route='direct' takes datapoints as they are"):
        dsvcca.plan_comparisons(store, route="direct")
    rng = np.random.default_rng(0)
    store.write(rng.standard_normal((ROWS, POSITIONS, 3)), layer="map", seed=0, dims=("datapoint", "width", "channel"))
    assert "dft" in str(dsvcca.plan_comparisons(store))
    with pytest.raises(DsvccaError, match=r"their rows are not the same ones \(\d+ and \d+\): one has a mask"):
        dsvcca.plan_comparisons(store, view="positions")
