"""Targets: how much of given columns the kept directions of every layer explain, and how much of it is chance."""

from dataclasses import replace

import numpy as np
import pytest

import dsvcca
from dsvcca import DsvccaError
from dsvcca.plans.sizes import PROCESS
from dsvcca.results.filling import begin
from tests.populations import same_bits

ROWS = 900

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than 5 rows a kept")


def logits():
    rng = np.random.default_rng(0)
    return rng.standard_normal((ROWS, 3)) @ rng.standard_normal((3, 3))


def layers():
    """Return a dense layer and maps that know something of the logits, and one that knows nothing."""
    rng = np.random.default_rng(1)
    y = logits()
    maps = rng.standard_normal((ROWS, 4, 5, 6)) + (y @ rng.standard_normal((3, 6)))[:, None, None, :] * 0.3
    return {
        "fc": (y @ rng.standard_normal((3, 12)) + 2 * rng.standard_normal((ROWS, 12))).astype(np.float32),
        "conv": maps.astype(np.float32),
        "noise": rng.standard_normal((ROWS, 20)).astype(np.float32),
        "tokens": np.float32(maps[:, 0]),
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = dsvcca.create_store(tmp_path_factory.mktemp("t") / "s.zarr", datapoints=ROWS)
    for layer, x in layers().items():
        store.write(x, layer=layer, dims={2: None, 3: "ntd", 4: "nhwc"}[x.ndim])
    store.write(logits().astype(np.float32), layer="logits")
    return store


def r2(x, y):
    """Return the share of every column of y that a least-squares fit on x explains."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    fitted = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return (fitted**2).sum(axis=0) / (y**2).sum(axis=0)


def explained(store, out, **options):
    plan = dsvcca.plan_comparisons(store, "to_targets", **{"variance": 1.0, **options})
    return dsvcca.compare(plan, out / "r.zarr", workspace=out / "w")


def test_every_layer_explains_what_least_squares_explain(store, tmp_path):
    found = explained(store, tmp_path, targets={"y": logits()})
    assert found.target.values.tolist() == ["y", "y[0]", "y[1]", "y[2]"]
    assert "y" not in found.dims
    assert "svcca" not in found
    for layer, x in layers().items():
        flat = x.astype(np.float64).mean(axis=tuple(range(1, x.ndim - 1))) if x.ndim > 2 else x.astype(np.float64)
        here = found.isel(x=found.x_layer.values.tolist().index(layer))
        np.testing.assert_allclose(here.r2_target.values[1:], r2(flat, logits()), atol=2e-7)
        rho = dsvcca.cca(flat, logits()).correlations
        assert float(here.r2_target[0]) == pytest.approx(np.sum(rho**2) / 3, abs=2e-7)
        assert float(here.r2_target_floor) == pytest.approx(flat.shape[1] / (ROWS - 1))
    by_layer = found.r2_target.sel(target="y")
    values = dict(zip(found.x_layer.values.tolist(), by_layer.values.tolist(), strict=True))
    assert values["logits"] == pytest.approx(1, abs=1e-6)
    assert values["noise"] < 3 * float(found.r2_target_floor.max())
    frame = dsvcca.to_frame(found)
    assert list(frame.columns) == ["x_layer", "target", "r2_target", "r2_target_floor"]
    assert len(frame) == 5 * 4
    assert frame.r2_target.iloc[5] == float(found.r2_target[1, 1])
    assert "||U_x^H y||" in found.r2_target.attrs["definition"]
    assert "frequency 0 of maps" in found.r2_target.attrs["view"]
    assert "dense layers as they are" in found.r2_target.attrs["view"]
    assert "sequences as view 'mean'" in found.r2_target.attrs["view"]
    flat = dsvcca.plan_comparisons(store, "to_targets", view="flatten", targets=logits())
    assert flat.target_view == "dense layers as they are, maps as view 'flatten', sequences as view 'flatten'"


def test_several_shares_of_variance_and_panels_give_the_same_bits(store, tmp_path):
    plan = dsvcca.plan_comparisons(store, "to_targets", targets=logits()[:, 0], variance=[0.8, 1.0])
    found = dsvcca.compare(plan, tmp_path / "r1.zarr", workspace=tmp_path / "w")
    assert found.r2_target.dims == ("x", "target", "variance")
    assert found.target.values.tolist() == ["target"]
    assert (found.r2_target.values[..., 0] <= found.r2_target.values[..., 1] + 1e-9).all()
    assert len(dsvcca.to_frame(found)) == 5 * 2
    one = dsvcca.compare(replace(plan, panel=1), tmp_path / "r2.zarr", workspace=tmp_path / "w2")
    assert same_bits(one, found)


def test_targets_stand_beside_comparisons_and_come_back_when_lost(store, tmp_path):
    plan = dsvcca.plan_comparisons(store.select(layer=["fc", "noise"]), targets={"layer": "fc"}, variance=0.9)
    found = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")
    assert found.svcca.shape == (2, 2)
    assert found.target.values.tolist()[0] == "layer='fc'"
    elsewhere = dsvcca.plan_comparisons(store.select(layer="noise"), "to_targets", targets={"layer": "logits"})
    assert "nothing is compared with each other" in str(elsewhere)  # and a target need not be among what was selected
    assert len(dsvcca.to_frame(found)) == 3
    assert len(dsvcca.to_frame(found, measures=["r2_target"])) == 2 * 13
    assert float(found.r2_target[0, 0]) < 1  # one direction in ten was not kept
    (tmp_path / "r.zarr" / "r2_target" / "c.0.0").unlink()
    with pytest.warns(dsvcca.DsvccaWarning, match="of 1 of 1 panels it is not there what they explain"):
        dsvcca.open_results(tmp_path / "r.zarr")
    assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w"), found)
    with pytest.raises(DsvccaError, match="another plan .targets is"):
        dsvcca.compare(replace(plan, targets=()), tmp_path / "r.zarr", workspace=tmp_path / "w")


def translated(seed, images=30, space=(4, 3), channels=2):
    """Return all translations of some maps, and a target that moves with them, and one that does not."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((images, *space, channels))
    w = rng.standard_normal((*space, channels))
    rows, moving, still = [], [], []
    own = rng.standard_normal(images)
    for shift in np.ndindex(*space):
        moved = np.roll(x, shift, (1, 2))
        rows.append(moved)
        moving.append(np.tensordot(moved, w, 3))
        still.append(moved.mean(axis=(1, 2))[:, 0] + own)
    return np.concatenate(rows), np.stack([np.concatenate(moving), np.concatenate(still)], axis=1)


def test_all_frequencies_explain_where_rows_are_all_translations(tmp_path):
    x, y = translated(2)
    y += 0.5 * np.random.default_rng(3).standard_normal(y.shape)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=len(x))
    store.write(x, layer="conv", dims="nhwc")
    everywhere = explained(store, tmp_path / "a", targets=y, rows="translations")
    expected = r2(x.reshape(len(x), -1), y)
    np.testing.assert_allclose(everywhere.r2_target.values[0, 1:], expected, atol=1e-6)
    at_zero = explained(store, tmp_path / "b", targets=y)
    np.testing.assert_allclose(at_zero.r2_target.values[0, 1:], r2(x.mean(axis=(1, 2)), y), atol=1e-6)
    assert expected[0] > 0.5 > float(at_zero.r2_target[0, 1])
    assert float(everywhere.r2_target_floor[0]) == pytest.approx(2 / 29)


def test_a_target_that_has_nothing_to_do_with_a_layer_lies_on_the_floor(tmp_path):
    rng = np.random.default_rng(4)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=600)
    store.write(rng.standard_normal((600, 5, 5, 8)), layer="conv", dims="nhwc")
    store.write(rng.standard_normal((600, 30)), layer="fc")
    found = explained(store, tmp_path, targets=rng.standard_normal((600, 40)))
    mean = found.r2_target.values[:, 1:].mean(axis=1)
    np.testing.assert_allclose(mean, found.r2_target_floor.values, rtol=0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pairs='to_targets' needs targets="),
        ({"targets": {}}, "targets is empty"),
        ({"targets": np.ones((5, 2))}, r"target 'target' has the shape \(5, 2\): give \(900,\) or \(900, columns\)"),
        ({"targets": 1j * np.ones(ROWS)}, "'complex128' cannot be compared"),
        ({"targets": {"layer": "conv"}}, r"target \"layer='conv'\" has the shape \(900, 4, 5, 6\): a target is"),
        ({"targets": {"layer": "nowhere"}}, "no representation has layer='nowhere'"),
        ({"targets": {"y": {"layer": ["fc", "noise"]}}}, "2 representations have .* target 'y' is one: say more"),
        ({"targets": np.arange(900.0), "rows": "shifted"}, "rows='shifted' is unknown"),
        ({"targets": np.arange(900.0), "route": "direct"}, "route='direct' keeps no basis that could explain"),
    ],
)
def test_targets_that_cannot_be_explained_are_refused(store, options, message):
    with pytest.raises(DsvccaError, match=message):
        dsvcca.plan_comparisons(store, "to_targets", **options)


def test_bad_columns_and_rows_that_cannot_be_all_translations_are_refused(store, tmp_path):
    y = np.ones((ROWS, 2))
    y[:, 0] = np.arange(ROWS)
    with pytest.raises(DsvccaError, match="target 'target': column 1 is constant"):
        explained(store, tmp_path, targets=y)
    y[3, 1] = np.nan
    with pytest.raises(DsvccaError, match="target 'target' holds NaN or infinite"):
        explained(store, tmp_path / "2", targets=y)
    with pytest.raises(
        DsvccaError, match=r"'conv': rows='translations' says .* of the squared covariance lies between"
    ):
        wanted = store.select(layer=["conv", "fc"])
        explained(wanted, tmp_path / "3", targets=logits(), rows="translations")
    small = dsvcca.create_store(tmp_path / "s.zarr", datapoints=50)
    small.write(np.random.default_rng(0).standard_normal((50, 4, 4, 2)), layer="conv", dims="nhwc")
    with pytest.raises(DsvccaError, match="50 rows cannot be all 16 translations of some images of 4x4"):
        dsvcca.plan_comparisons(small, "to_targets", targets=np.arange(50.0), rows="translations")


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_scale_of_a_target_does_not_matter(store, tmp_path, scale):
    chosen = store.select(layer="fc")
    found = explained(chosen, tmp_path / "a", targets=logits() * scale)
    expected = explained(chosen, tmp_path / "b", targets=logits())
    np.testing.assert_allclose(found.r2_target.values, expected.r2_target.values, atol=1e-9)
    assert not list((tmp_path / "a" / "w").glob("partial-*"))


def test_what_was_not_computed_does_not_count_as_done(store, tmp_path):
    """A run that ended before its panel, then one of fewer layers, then all of them again."""
    options = {"targets": {"y": logits()}}
    both = dsvcca.plan_comparisons(store.select(layer=["fc", "noise"]), "to_targets", **options)
    begin(tmp_path / "r.zarr", both, {})
    explained(store.select(layer="noise"), tmp_path, variance=0.99, **options)
    found = dsvcca.compare(both, tmp_path / "r.zarr", workspace=tmp_path / "w")
    assert same_bits(found, dsvcca.compare(both, tmp_path / "fresh.zarr", workspace=tmp_path / "w"))
    assert float(found.r2_target.min()) > 0


def test_results_without_pairs_are_selected_by_x_alone_and_do_not_replace_comparisons(store, tmp_path):
    found = explained(store, tmp_path, targets=logits())
    assert dsvcca.select(found, x={"layer": "fc"}).sizes["x"] == 1
    with pytest.raises(DsvccaError, match="these results have no y, since only targets were met: leave y= out"):
        dsvcca.select(found, y={"layer": "fc"})
    dense = store.select(layer=["fc", "noise"])
    pairs, none = (dsvcca.plan_comparisons(dense, name, targets=logits()) for name in ("all", "to_targets"))
    before = dsvcca.compare(pairs, tmp_path / "p.zarr", workspace=tmp_path / "w")
    with pytest.raises(DsvccaError, match="holds comparisons that pairs='to_targets' does not ask for"):
        dsvcca.compare(none, tmp_path / "p.zarr", workspace=tmp_path / "w")
    assert same_bits(dsvcca.open_results(tmp_path / "p.zarr"), before)


def test_targets_larger_than_a_task_are_refused(store):
    plan = dsvcca.plan_comparisons(store, "to_targets", targets=logits())
    assert plan.target_bytes == 16 * ROWS * 3
    with pytest.raises(DsvccaError, match="the targets hold .* in a task, more than half of the"):
        replace(plan, memory=int((PROCESS + plan.target_bytes) / 0.7)).check()


def test_columns_that_add_up_to_one_but_for_rounding_are_one_direction_fewer(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, 20)).astype(np.float32)
    z = x @ rng.standard_normal((20, 5)).astype(np.float32) + rng.standard_normal((ROWS, 5)).astype(np.float32)
    shares = np.exp(z - z.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=ROWS)
    store.write(x, layer="a")
    store.write(shares, layer="probabilities")
    plan = dsvcca.plan_comparisons(store, targets={"given": shares, "stored": {"layer": "probabilities"}}, variance=1.0)
    found = dsvcca.compare(plan, tmp_path / "r.zarr").load()
    own = found.isel(x=found.x_layer.values.tolist().index("a"))
    u, v = (np.linalg.qr(one - one.mean(axis=0))[0] for one in (x.astype(float), shares[:, :4].astype(float)))
    expected = np.sum((u.T @ v) ** 2) / 4
    np.testing.assert_allclose(own.r2_target.sel(target=["given", "stored"]), expected, atol=1e-6)


def test_integers_that_float64_does_not_hold_are_refused_as_targets(tmp_path):
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=ROWS)
    store.write(rng.standard_normal((ROWS, 4)), layer="a")
    with pytest.raises(DsvccaError, match=r"target 'target': integers up to 1.7e\+18 are not exact as float64"):
        explained(store, tmp_path, targets=rng.integers(0, 1000, ROWS) + 1_700_000_000_000_000_000)


def test_a_target_of_large_mean_is_as_exact_as_it_is_stored(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, 4))
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=ROWS)
    store.write(x, layer="a")
    y = 1e10 + 2e-3 * (x[:, 0] + rng.standard_normal(ROWS))
    exact = y - 1e10  # no rounding: the two are within a factor of two
    found = explained(store, tmp_path, targets={"high": y, "low": exact}, variance=1.0).r2_target.values
    assert abs(found[0, 0] - found[0, 1]) < 1e-9


def test_all_translations_are_not_said_of_sequences(store):
    with pytest.raises(DsvccaError, match="'tokens'.*is said of images, and of sequences their mean explains"):
        dsvcca.plan_comparisons(store.select(layer="tokens"), "to_targets", targets=logits(), rows="translations")


def test_what_a_replaced_layer_explained_does_not_stay_where_it_has_no_basis_now(tmp_path):
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(tmp_path / "a.zarr", datapoints=200)
    x = rng.standard_normal((2, 200, 5)).astype("f4")
    for seed in range(2):
        store.write(x[seed], layer="fc", seed=seed)
    target = x[0][:, :1].astype(float)

    def results():
        plan = dsvcca.plan_comparisons(store, targets=target)
        return dsvcca.compare(plan, tmp_path / "r.zarr")

    assert results().r2_target.values[0, 0] == pytest.approx(1, abs=1e-6)
    other = float(results().r2_target.values[1, 0])
    store.write(np.ones((200, 5), "f4"), layer="fc", seed=0, if_exists="replace")  # a dead layer
    with pytest.warns(dsvcca.DsvccaWarning, match="could not be compared"):
        found = results()
    assert np.isnan(found.r2_target.values[0]).all()
    assert np.isnan(found.r2_target_floor.values[0]).all()
    assert float(found.r2_target.values[1, 0]) == other
