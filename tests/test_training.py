"""What stays over training: what was planted is found, numbers are those of plain NumPy, what cannot be is refused."""

import numpy as np
import pandas as pd
import pytest
from distributed import Client

import dsvcca
from dsvcca import DsvccaError, plot, signal_and_noise
from dsvcca.analyses.over_training import EARLY, _chosen, followed

ROWS = 400
STEPS = (0, 10, 40, 60, 100)


def orthonormal(x, variance=1.0):
    """Return the left singular vectors of centred activations that hold a share of the variance."""
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    kept = np.cumsum(s**2) / np.sum(s**2)
    return u[:, : min(int(np.searchsorted(kept, variance * (1 - 1e-12))) + 1, int((s > 1e-9 * s[0]).sum()))]


def written_out(arrays, early, against, k, variance=1.0):
    """Return what the table is to hold of signal and noise, {step: (signal, noise)}, from the activations."""
    u = {step: orthonormal(x, variance) for step, x in arrays.items()}
    a, rho, _ = np.linalg.svd(u[early].T @ u[against], full_matrices=False)
    parts = [u[early] @ a[:, :k], u[early] @ a[:, len(rho) - k : len(rho)]]
    return {t: [np.linalg.svd(one.T @ v, compute_uv=False).sum() / k for one in parts] for t, v in u.items()}


def drifting(seed, steps=STEPS, n=ROWS, width=14):
    """Return layers whose first directions hardly change from step to step and whose last ones do, {step: (n, p)}."""
    rng = np.random.default_rng(seed)
    z, drift = rng.standard_normal((n, 12)), np.linspace(0.02, 0.8, 12)
    found = {}
    for step in steps:
        z = np.sqrt(1 - drift) * z + np.sqrt(drift) * rng.standard_normal(z.shape)
        found[step] = z @ rng.standard_normal((12, width)) + 0.05 * rng.standard_normal((n, width)) + 3
    return found


def written(path, arrays, **labels):
    """Write layers {step: array} and return their store."""
    store = dsvcca.create_store(path, datapoints=len(next(iter(arrays.values()))))
    for step, x in arrays.items():
        store.write(x.astype(np.float32), step=step, **{"layer": "a"} | labels)
    return store


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    """Two layers of two networks."""
    path = tmp_path_factory.mktemp("t") / "s.zarr"
    arrays = {(seed, layer): drifting(10 * seed + place) for seed in (0, 1) for place, layer in enumerate("ab")}
    for (seed, layer), own in arrays.items():
        store = written(path, own, seed=seed, layer=layer)
    return store, arrays


@pytest.fixture(scope="module")
def found(population):
    return signal_and_noise(population[0], variance=1.0, k=3, early=10, against=60)


def table(frame, *kinds):
    """Return correlations of a layer, one row a step and one column a kind."""
    return frame.pivot(index="step", columns="kind", values="correlation")[list(kinds)]


def test_planted_directions_are_the_signal_and_what_is_new_at_every_step_is_not(tmp_path):
    """Four directions are there from step 10 on, all others are fresh at every step."""
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((3000, 4))
    arrays = {
        step: np.hstack([signal if step else rng.standard_normal(signal.shape), rng.standard_normal((3000, 8))])
        @ rng.standard_normal((12, 20))
        for step in STEPS
    }
    frame = signal_and_noise(written(tmp_path / "s.zarr", arrays), k=4, variance=1.0)
    assert set(frame.early) == {10}
    assert set(frame.against) == {40}
    values = table(frame, "signal", "noise", "random")
    np.testing.assert_allclose(values.signal.loc[10:], 1.0, atol=1e-6)
    np.testing.assert_allclose(values.loc[10], 1.0, atol=1e-6)
    chance = frame.chance.iloc[0]
    assert 0.04 < chance < 0.07
    assert set(frame.chance) == {chance}
    np.testing.assert_allclose(values.loc[0, ["signal", "noise"]], chance, atol=0.01)
    # Noise has nothing in common with the signal, which is there: chance is that of the other eight.
    np.testing.assert_allclose(values.noise.loc[60:], dsvcca.maths.nulls.mean_by_chance(4, 8, 2999), atol=0.01)
    assert values.noise[40] < chance  # chosen to be the lowest there
    assert ((values.random.loc[40:] > 0.3) & (values.random.loc[40:] < 0.8)).all()  # a third of them is signal


@pytest.mark.parametrize("variance", [1.0, 0.9])
def test_numbers_are_those_of_the_activations(population, tmp_path, variance):
    store, arrays = population
    own = {step: x.astype(np.float32).astype(np.float64) for step, x in arrays[0, "a"].items()}
    frame = signal_and_noise(store.select(seed=0, layer="a"), variance=variance, k=2, early=40, against=100)
    values = table(frame, "signal", "noise")
    expected = written_out(own, 40, 100, 2, variance)
    np.testing.assert_allclose(values, [expected[step] for step in values.index], atol=1e-6)
    assert list(frame.columns) == [
        *("seed", "step", "layer", "kind", "correlation", "chance", "directions", "early", "against")
    ]
    assert frame[["early", "against", "directions"]].drop_duplicates().values.tolist() == [[40, 100, 2]]
    assert len(frame) == 3 * len(STEPS)


def test_each_layer_of_each_network_is_followed_by_itself(population, found):
    store, _ = population
    assert len(found) == 4 * 3 * len(STEPS)
    for seed in (0, 1):
        for layer in "ab":
            one = signal_and_noise(store.select(seed=seed, layer=layer), variance=1.0, k=3, early=10, against=60)
            mine = found[(found.seed == seed) & (found.layer == layer)].reset_index(drop=True)
            pd.testing.assert_frame_equal(one, mine, check_exact=True)


def test_invertible_maps_and_the_order_of_writing_change_nothing(population, found, tmp_path):
    rng = np.random.default_rng(5)
    own = population[1][1, "b"]
    turned = {step: own[step] @ rng.standard_normal((14, 14)) - 7 for step in reversed(STEPS)}
    frame = signal_and_noise(
        written(tmp_path / "s.zarr", turned, seed=1, layer="b"), variance=1.0, k=3, early=10, against=60, draws=0
    )
    assert set(frame.kind) == {"signal", "noise"}
    assert frame.step.tolist() == [step for step in STEPS for _ in range(2)]
    mine = found[(found.seed == 1) & (found.layer == "b") & (found.kind != "random")]
    np.testing.assert_allclose(frame.correlation, mine.correlation, atol=1e-5)


def test_random_directions_lie_between_and_are_drawn_alike_every_time(population, found):
    wide = found.pivot(index=["seed", "layer", "step"], columns="kind", values="correlation")
    later = wide[wide.index.get_level_values("step") > 10]
    assert (later.signal > later.random).all()
    assert (later.random > later.noise).all()
    again = signal_and_noise(population[0], variance=1.0, k=3, early=10, against=60)
    pd.testing.assert_frame_equal(again, found, check_exact=True)


def test_bases_that_are_there_are_used_again(population, tmp_path):
    store, _ = population
    one = store.select(seed=0, layer="a")
    plan = dsvcca.plan_comparisons(one, "over_training")
    dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")
    packs = sorted(p.name for p in (tmp_path / "w").rglob("*"))
    signal_and_noise(one, workspace=tmp_path / "w")
    assert sorted(p.name for p in (tmp_path / "w").rglob("*")) == packs


def test_workers_make_the_bases(population, found, tmp_path):
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with Client(**options) as client:
        frame = signal_and_noise(
            population[0], variance=1.0, k=3, early=10, against=60, workspace=tmp_path / "w", client=client
        )
        both = population[0].select(step=[0, 100])
        own = dsvcca.shared_subspace(both, variance=1.0, workspace=tmp_path / "w", client=client)
    pd.testing.assert_frame_equal(frame, found, check_exact=True)
    here = dsvcca.shared_subspace(both, variance=1.0)
    np.testing.assert_array_equal(own.variates, here.variates)


def test_directions_that_a_step_lacks_count_as_nothing(tmp_path):
    own = drifting(3)
    own[100] = own[40][:, :1] @ np.ones((1, 5))
    frame = signal_and_noise(written(tmp_path / "s.zarr", own), variance=1.0, k=4, early=10, against=40)
    values = table(frame, "signal", "noise", "random")
    assert (values.loc[100] <= 0.25).all()
    assert (values.loc[100] > 0).all()
    assert frame[frame.step == 100].chance.max() < frame[frame.step == 60].chance.min()


def test_by_default_a_third_of_the_correlations(tmp_path, population):
    frame = signal_and_noise(population[0].select(seed=0, layer="a"), rank=11)
    assert set(frame.directions) == {3}
    frame = signal_and_noise(population[0].select(seed=0, layer="a"), rank=2)
    assert set(frame.directions) == {1}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([0, 10, 40, 60, 100], (10, 40)),  # of two as near, the earlier
        ([0, 50, 100], (0, 50)),
        ([0, 1, 10_000], (0, 1)),
        ([0, 999, 1000], (0, 999)),
        ([600, 700, 1000], (600, 700)),
        ([0, 100, 200, 500, 900, 1000], (100, 500)),
    ],
)
def test_steps_are_those_nearest_to_a_tenth_and_to_half_of_the_last(steps, expected):
    assert _chosen(dict.fromkeys(steps, 0), None, None) == expected
    assert EARLY == 0.1


def test_a_step_may_come_as_another_number(population):
    one = population[0].select(seed=0, layer="a")
    frame = signal_and_noise(one, early=np.float64(10.0), against=60.0)
    assert set(frame.early) == {10}
    assert frame.early.dtype == np.int64
    backwards = signal_and_noise(one, early=60, against=10, variance=1.0)
    assert table(backwards, "signal").loc[60].item() == pytest.approx(1, abs=1e-12)


def test_the_core_needs_cross_blocks_alone():
    rng = np.random.default_rng(0)
    u, v, w = (orthonormal(rng.standard_normal((50, 6))) for _ in range(3))
    means = followed({0: np.eye(6), 1: u.T @ v, 2: u.T @ w}, 1, 2, 5)
    a = np.linalg.svd(u.T @ v)[0]
    expected = np.linalg.svd((u @ a[:, 4:]).T @ w, compute_uv=False).mean()
    assert means["noise"][2] == pytest.approx(expected, abs=1e-12)
    assert means["random"][0] == pytest.approx(1, abs=1e-12)
    whole = followed({0: np.eye(6), 1: u.T @ v, 2: u.T @ w}, 1, 6, 3)
    assert len({round(own[2], 10) for own in whole.values()}) == 1  # all directions, however they are chosen


def test_maps_are_followed_by_their_mean_and_sequences_by_tokens(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.standard_normal((150, 4, 4, 5))
    maps = dsvcca.create_store(tmp_path / "m.zarr", datapoints=150)
    tokens = dsvcca.create_store(tmp_path / "t.zarr", datapoints=150)
    for step in (0, 5, 10):
        x = base + 0.3 * rng.standard_normal(base.shape)
        maps.write(x, layer="conv", step=step, dims="nhwc")
        tokens.write(x.reshape(150, 16, 5), layer="attention", step=step, dims="ntd")
    with pytest.raises(DsvccaError, match=r"is seen by frequency \(view 'dft'\), .*: give view='mean'"):
        signal_and_noise(maps)
    for store, view, flat in (
        (maps, "mean", lambda x: x.mean(axis=(1, 2))),
        (tokens, "auto", lambda x: x.reshape(-1, 5)),
    ):
        arrays = {step: flat(store.read(step=step)) for step in (0, 5, 10)}
        frame = signal_and_noise(store, view=view, variance=1.0)
        expected = written_out(arrays, 0, 5, 1)
        np.testing.assert_allclose(table(frame, "signal", "noise"), list(expected.values()), atol=1e-6)
        # Positions of one datapoint are one row of chance.
        assert frame.chance.iloc[0] == pytest.approx(dsvcca.maths.nulls.mean_by_chance(1, 5, 149))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 7}, r"seed=0, step=10, layer='a' keeps 12 directions and at step 40 12, .* k=7 first .* k=6 or less"),
        ({"k": 0}, "k=0: give how many, 1 or more"),
        ({"k": 1.5}, "k=1.5: give how many"),
        ({"draws": -1}, "draws=-1: give how many, 0 or more"),
        ({"early": 20}, "a layer has no step early=20: there is"),
        ({"against": 20}, "a layer has no step against=20: there is"),
        ({"early": 60, "against": 60}, "early and against are both step 60: give two"),
        ({"against": 0}, "there is no step before against=0: say which one is early="),
        ({"variance": [0.9, 0.99]}, r"variance=\[0.9, 0.99\]: directions are those of one share"),
        ({"rank": 1}, r"keeps 1 directions and at step 40 1, .* keep more of them \(variance=1.0\)"),
        ({"rank": 3, "variance": 0.5}, "give one of them"),
        ({"view": "dfft"}, "view='dfft' is unknown"),
    ],
)
def test_what_cannot_be_followed_is_refused(population, options, message):
    options = {"rank": 12} | options if "variance" not in options else options
    with pytest.raises(DsvccaError, match=message):
        signal_and_noise(population[0].select(seed=0, layer="a"), **options)


def test_layers_without_three_steps_are_refused(tmp_path):
    store = written(tmp_path / "s.zarr", drifting(0, steps=(0, 10)))
    with pytest.raises(DsvccaError, match=r"layer='a' is there at 2 of the three steps or more that .* \(0, 10\)"):
        signal_and_noise(store)
    store.write(np.ones((ROWS, 3)), layer="b")
    with pytest.raises(DsvccaError, match=r"layer='b' has no step: write it with step=, or select\(\) what has one"):
        signal_and_noise(store)
    words = written(tmp_path / "w.zarr", {"first": np.ones((ROWS, 3))})
    with pytest.raises(DsvccaError, match="step='first', which is no number"):
        signal_and_noise(words)
    store.write(np.ones((ROWS, 3)), layer="d", step=0, kind="x")
    with pytest.raises(DsvccaError, match="has a label 'kind', which is a column of the table"):
        signal_and_noise(store.select(layer="d"))
    with pytest.raises(DsvccaError, match="a str was given instead of a store"):
        signal_and_noise("s.zarr")


def test_a_basis_that_cannot_be_made_stops_it(tmp_path):
    store = written(tmp_path / "s.zarr", drifting(0) | {40: np.ones((ROWS, 4))})
    with pytest.raises(DsvccaError, match="step=40, layer='a'"):
        signal_and_noise(store)


# The figure


def test_the_figure_shows_what_the_table_holds(population, found):
    matplotlib = pytest.importorskip("matplotlib")
    pytest.importorskip("matplotlib.pyplot")
    panels = list(plot.signal_and_noise(found))
    figure = panels[0].figure
    assert panels == figure.axes
    assert [panel.get_title() for panel in panels] == ["a", "b"]
    assert figure.get_suptitle() == "first 3 (signal) and last 3 (noise)\ndirections of step 10, sorted by step 60"
    means = found.groupby(["layer", "kind", "step"]).correlation.mean()
    for panel in panels:
        lines = {line.get_label(): line for line in panel.lines if not line.get_label().startswith("_")}
        assert list(lines) == ["signal", "noise", "random", "chance"]
        for kind in ("signal", "noise", "random"):
            np.testing.assert_array_equal(lines[kind].get_xdata(), STEPS)
            np.testing.assert_allclose(lines[kind].get_ydata(), means[panel.get_title(), kind], rtol=1e-12)
        assert len(panel.lines) == 2 + 4 + 3 * 2  # where, means and chance, two networks
    figure.draw_without_rendering()
    one = plot.signal_and_noise(found[(found.seed == 0) & (found.layer == "b") & (found.kind != "random")])
    assert len(one[0].lines) == 2 + 3
    matplotlib.pyplot.close("all")


def test_of_networks_that_end_apart_the_mean_is_of_steps_that_all_have(found):
    pytest.importorskip("matplotlib")
    shorter = found[(found.seed == 0) | (found.step < 100)]
    figure = plot.signal_and_noise(shorter.assign(early=shorter.seed.map({0: 10, 1: 40})))[0].figure
    [signal] = [line for line in figure.axes[0].lines if line.get_label() == "signal"]
    assert signal.get_xdata().tolist() == [0, 10, 40, 60]
    assert "of one step, sorted by another" in figure.get_suptitle()


def test_the_figure_refuses_what_is_no_such_table(found):
    pytest.importorskip("matplotlib")
    with pytest.raises(DsvccaError, match="the table has no column 'kind': give what dsvcca.signal_and_noise returns"):
        plot.signal_and_noise(found.drop(columns="kind"))
    with pytest.raises(DsvccaError, match="the table has no rows"):
        plot.signal_and_noise(found[found.step > 100])
