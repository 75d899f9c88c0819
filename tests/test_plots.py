"""Lines, spectra, maps of frequencies, clusters and classes: they show the numbers of the results, and chance."""

import numpy as np
import pytest

import dsvcca
from dsvcca import DsvccaError, plot
from dsvcca.plot.figures import COLOURS
from dsvcca.plot.shown import mean_and_error

matplotlib = pytest.importorskip("matplotlib")
pyplot = pytest.importorskip("matplotlib.pyplot")
matplotlib.use("Agg")

N = 300
SEEDS, STEPS, LAYERS = (0, 1, 2), (0, 10, 100), ("first", "second")


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Dense layers that draw nearer to a shared signal, and maps; of three networks at three steps."""
    store = dsvcca.create_store(tmp_path_factory.mktemp("plots") / "a.zarr", datapoints=N)
    signal = np.random.default_rng(0).standard_normal((N, 8))
    for seed in SEEDS:
        rng = np.random.default_rng(10 + seed)
        for step in STEPS:
            for place, layer in enumerate(LAYERS):
                x = signal @ rng.standard_normal((8, 10 + place)) * step / 30 + rng.standard_normal((N, 10 + place))
                store.write(x.astype("f4"), layer=layer, seed=seed, step=step)
            maps = rng.standard_normal((N, 4, 6, 3)) + signal[:, :1, None, None] * step / 50
            store.write(maps.astype("f4"), layer="maps", seed=seed, step=step, dims="nhwc")
    return store


@pytest.fixture(scope="module")
def dense(store):
    return store.select(layer=list(LAYERS))


@pytest.fixture(scope="module")
def results(dense, tmp_path_factory):
    plan = dsvcca.plan_comparisons(dense, keep=["correlations"], measures=["svcca", "chance", "cka", "cka_debiased"])
    return dsvcca.compare(plan, tmp_path_factory.mktemp("plots") / "r.zarr")


@pytest.fixture(scope="module")
def frame(results):
    return dsvcca.to_frame(results)


def dotted(axes):
    return [line for line in axes.lines if line.get_gid() == "chance"]


def test_lines_to_the_end_are_means_over_networks(results, frame):
    axes = plot.over_training(results)
    assert axes.figure.axes == [axes]
    same = frame[(frame.x_layer == frame.y_layer) & (frame.x_seed == frame.y_seed) & (frame.y_step == 100)]
    lines = {line.get_label(): line for line in axes.lines if line.get_gid() != "chance"}
    assert list(lines) == list(LAYERS)
    for layer, chance in zip(LAYERS, dotted(axes), strict=True):
        own = same[same.x_layer == layer].groupby("x_step")
        np.testing.assert_array_equal(lines[layer].get_xdata(), STEPS)
        np.testing.assert_allclose(lines[layer].get_ydata(), own.svcca.mean(), rtol=1e-12)
        np.testing.assert_allclose(chance.get_ydata(), own.chance.mean(), rtol=1e-12)
    found = plot.training_lines(results)
    expected = same[same.x_layer == "first"].groupby("x_step").svcca.sem()
    np.testing.assert_allclose(found[0].errors, expected, rtol=1e-9)  # of independent networks the usual error
    assert found[0].networks.tolist() == [3, 3, 3]
    assert "mean of 3 networks" in axes.get_title()


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Three networks of one model, the second of which never came to step 20, and one of another, without a width."""
    store = dsvcca.create_store(tmp_path_factory.mktemp("plots") / "uneven.zarr", datapoints=N)
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((N, 20))
    for seed in SEEDS:
        for step in (0, 10, 20):
            if (seed, step) != (1, 20):
                x = signal @ rng.standard_normal((20, 8))
                store.write(x, layer="fc", model="A", seed=seed, step=step, width=8)
    for step in (0, 10):
        maps = signal[:, None, None, :8] + rng.standard_normal((N, 2, 2, 8))
        store.write(maps, layer="fc", model="B", seed=0, step=step, dims="nhwc")
    return dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path_factory.mktemp("plots") / "u.zarr")


def test_a_network_that_ended_early_is_no_part_of_a_mean_over_ends(uneven):
    """Its last step is not the end of training of the others, and a 1 of itself with itself not what they show."""
    ours = dsvcca.select(uneven, x={"model": "A"}, y={"model": "A"})
    for draw in (plot.over_training, plot.learning_dynamics):
        with pytest.raises(
            DsvccaError, match=r"training ends at different steps \(seed 0 at 20, seed 1 at 10, .*select"
        ):
            draw(ours)
    ended = dsvcca.select(ours, x={"seed": [0, 2]}, y={"seed": [0, 2]})
    assert plot.training_lines(ended)[0].networks.tolist() == [2, 2, 2]
    seeds = plot.over_training(ours, against="seeds")
    assert plot.training_lines(ours, against="seeds")[0].networks.tolist() == [3, 3, 2]
    assert "mean of 2 to 3 networks" in seeds.get_title()


def test_labels_that_some_networks_lack_are_one_value(uneven):
    """A number that is missing is NaN in results, which is not itself: networks without it are alike all the same."""
    without = dsvcca.select(uneven, x={"width": None}, y={"width": float("nan")})
    assert dsvcca.to_frame(without).x_model.unique().tolist() == ["B"]
    assert list(plot.training_lines(without)[0].steps) == [0, 10]
    assert dsvcca.select(uneven, x={"width": ""}).sizes["x"] == without.sizes["x"]  # as a text that is missing
    said = r"width=8.0 and some without width, .*: select\(results, x=\{'width': 8.0\}, y=\{'width': 8.0\}\)"
    for draw in (plot.over_training, plot.learning_dynamics):
        with pytest.raises(DsvccaError, match=said):
            draw(dsvcca.select(uneven.drop_vars(["x_model", "y_model"]), x={"seed": 0}, y={"seed": 0}))


def test_positions_are_not_mixed(tmp_path):
    """A mean over positions would be over numbers of which none is that of another."""
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=N)
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((N, 3, 6))
    for seed in (0, 1):
        for step in (0, 10):
            store.write(signal + rng.standard_normal((N, 3, 6)), layer="lstm", seed=seed, step=step, dims="ntd")
    results = dsvcca.compare(dsvcca.plan_comparisons(store, view="each_position"), tmp_path / "r.zarr")
    with pytest.raises(DsvccaError, match=r"position=0 and position=1, and a mean over both says nothing"):
        plot.over_training(results)
    one = dsvcca.select(results, x={"position": 2}, y={"position": 2})
    assert plot.training_lines(one)[0].means[-1] == pytest.approx(1, abs=1e-6)
    targets = dsvcca.plan_comparisons(store, "to_targets", view="each_position", targets=signal[:, 0, :1])
    with pytest.raises(DsvccaError, match=r"position=0 and position=1"):
        plot.classes(dsvcca.compare(targets, tmp_path / "t.zarr"))


def test_a_representation_without_a_step_is_no_end_of_training(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=N)
    rng = np.random.default_rng(0)
    store.write(rng.standard_normal((N, 5)), layer="fc", seed=0)
    for step in (0, 10):
        store.write(rng.standard_normal((N, 5)), layer="fc", seed=0, step=step)
    results = dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr")
    with pytest.raises(DsvccaError, match=r"every x needs a number as its step, found \[nan, 0"):
        plot.over_training(results)
    with_steps = {"step": [0, 10]}
    assert plot.training_lines(dsvcca.select(results, x=with_steps, y=with_steps))[0].means[-1] == pytest.approx(1)


def test_chance_of_frequencies_is_that_of_the_pairs_on_their_grid(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=N)
    rng = np.random.default_rng(0)
    for seed in (0, 1):
        store.write(rng.standard_normal((N, 4, 4, 3)), layer="conv", model="small", seed=seed, dims="nhwc")
        store.write(rng.standard_normal((N, 8, 8, 9)), layer="conv", model="large", seed=seed, dims="nhwc")
    plan = dsvcca.plan_comparisons(store, view="dft", keep=["frequencies"])
    results = dsvcca.compare(plan, tmp_path / "r.zarr")
    found = {name.split(", ")[-1]: chance for name, (_, chance) in plot.frequency_maps(results).items()}
    frame = dsvcca.to_frame(results)
    frame = frame[(frame.x_model != frame.y_model) | (frame.x_seed != frame.y_seed)]
    large = (frame.x_model == "large") & (frame.y_model == "large")
    assert found["8x8"] == pytest.approx(frame[large].chance.mean())
    assert found["4x4"] == pytest.approx(frame[~large].chance.mean())
    assert found["8x8"] != pytest.approx(found["4x4"], rel=0.05)


def test_clusters_hatch_what_is_no_more_than_chance_however_sides_are_ordered(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=N)
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((N, 6))
    for seed in range(4):
        shared = signal if seed < 2 else rng.standard_normal((N, 6))
        store.write(shared + 0.1 * rng.standard_normal((N, 6)), layer="fc", seed=seed)
    results = dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr")
    off = ~np.eye(4, dtype=bool)
    expected = int((results.svcca.values[off] <= results.chance.values[off]).sum())
    assert expected > 0
    labels = []
    for one in (results, results.isel(y=slice(None, None, -1))):
        axes = plot.clusters(one)
        assert len([p for p in axes[1].patches if p.get_gid() == "chance"]) == expected
        labels.append(axes[1].figure.axes[-1].get_ylabel())
    assert labels[0] == labels[1]


def test_only_views_that_are_drawn_are_named(uneven):
    ours = dsvcca.select(uneven, x={"model": "B"}, y={"model": "B"})
    assert len(uneven.view.attrs["flag_meanings"].split()) > 1
    [first, *_] = plot.learning_dynamics(ours)
    assert "views" not in first.figure.get_suptitle()


def test_pairs_of_other_networks_name_no_view(tmp_path):
    """A network is compared with its own end alone, and with nothing else in any view."""
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=N)
    rng = np.random.default_rng(0)
    for seed in (0, 1):
        for step in (0, 10):
            store.write(rng.standard_normal((N, 2, 2, 8)), layer="conv", seed=seed, step=step, dims="nhwc")
            store.write(rng.standard_normal((N, 6)), layer="fc", seed=seed, step=step)
    plan = dsvcca.plan_comparisons(store, pairs="to_last_step")
    [first, *_] = plot.learning_dynamics(dsvcca.compare(plan, tmp_path / "r.zarr"))
    assert first.figure.get_suptitle().endswith("different things: dft, mean, neurons")


def test_steps_that_are_text_are_no_axis(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=N)
    for step in ("0000", "1000"):
        store.write(np.random.default_rng(0).standard_normal((N, 5)), layer="fc", step=step)
    results = dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr")
    for draw in (plot.over_training, plot.learning_dynamics):
        with pytest.raises(DsvccaError, match="every x needs a number as its step, found .*'0000'"):
            draw(results)


def test_shuffled_datapoints_are_the_chance_that_is_drawn_where_they_were_asked_for(dense, tmp_path):
    """Of what is not independent a law of chance says too little: see the page on chance."""
    plan = dsvcca.plan_comparisons(dense, measures=["svcca", "chance", "svcca_shuffled"])
    results = dsvcca.compare(plan, tmp_path / "r.zarr")
    axes = plot.over_training(results, against="seeds")
    frame = dsvcca.to_frame(results)
    own = frame[(frame.x_layer == frame.y_layer) & (frame.x_step == frame.y_step) & (frame.x_seed != frame.y_seed)]
    for layer, line in zip(LAYERS, dotted(axes), strict=True):
        expected = own[own.x_layer == layer].groupby("x_step").svcca_shuffled.mean()
        np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-12)
    assert "dotted: chance, datapoints shuffled" in axes.get_title()
    bar = plot.learning_dynamics(results)[0].figure.axes[-1]
    assert "hatched: chance, datapoints shuffled" in bar.get_ylabel()


def test_lines_of_other_seeds_leave_out_networks_and_not_pairs(results, frame, dense, tmp_path):
    [first, _] = plot.training_lines(results, against="seeds")
    own = frame[(frame.x_layer == "first") & (frame.y_layer == "first") & (frame.x_step == frame.y_step)]
    own = own[own.x_seed != own.y_seed]
    np.testing.assert_allclose(first.means, own.groupby("x_step").svcca.mean(), rtol=1e-9)
    last = own[own.x_step == 100].set_index(["x_seed", "y_seed"]).svcca
    left = np.asarray([last[1, 2], last[0, 2], last[0, 1]])  # without network 0, 1, 2
    assert first.errors[2] == pytest.approx(np.sqrt(2 / 3 * np.sum((left - left.mean()) ** 2)), rel=1e-9)
    seeds = dsvcca.compare(dsvcca.plan_comparisons(dense, "across_seeds"), tmp_path / "s.zarr")
    unasked = plot.training_lines(seeds)[0]  # what they are for
    np.testing.assert_allclose(unasked.means, first.means, rtol=1e-12)
    np.testing.assert_allclose(unasked.errors, first.errors, rtol=1e-9)


def test_the_error_of_pairs_is_that_of_their_networks():
    """Of numbers a_i + a_j the mean over pairs has twice the error of the mean of a."""
    a = np.random.default_rng(0).standard_normal(7)
    pairs = [(i, j) for i in range(7) for j in range(i)]
    mean, error = mean_and_error(np.asarray([a[i] + a[j] for i, j in pairs]), pairs)
    assert mean == pytest.approx(2 * a.mean())
    assert error == pytest.approx(2 * a.std(ddof=1) / 7**0.5, rel=1e-9)
    assert np.isnan(mean_and_error(np.asarray([1.0, 2.0]), [(0,), (0,)])[1])


def test_given_axes_are_drawn_into(results):
    figure, both = pyplot.subplots(1, 2)
    assert plot.over_training(results, axes=both[0]) is both[0]
    assert plot.spectra(results, axes=both[1]) is both[1]
    assert pyplot.get_fignums() == [figure.number]


def test_of_measures_whose_chance_is_not_known_it_is_said(results):
    assert "not known" in plot.over_training(results, measure="cka").get_title()
    axes = plot.over_training(results, measure="cka_debiased")
    assert {tuple(line.get_ydata()) for line in dotted(axes)} == {(0.0, 0.0, 0.0)}
    at_end = {"step": 100}
    some = dsvcca.select(results, x=at_end, y=at_end)
    bar = plot.layers(some, measure="cka")[0].figure.axes[-1]
    assert "not known" in bar.get_ylabel()


def test_spectra_are_the_kept_correlations_and_the_edge(results):
    chosen = dsvcca.select(results, x={"step": 100}, y={"step": 100})
    axes = plot.spectra(chosen)
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert list(lines) == list(LAYERS)
    first = dsvcca.select(chosen, x={"layer": "first"}, y={"layer": "first"})
    rho = first.correlations.values[np.triu_indices(3, 1)]
    rho = rho[:, np.isfinite(rho).any(axis=0)]
    np.testing.assert_allclose(lines["first"].get_ydata(), np.nanmean(rho, axis=0), rtol=1e-12)
    edges = first.chance_edge.values[np.triu_indices(3, 1)]
    assert dotted(axes)[0].get_ydata()[0] == pytest.approx(edges.mean())
    both = plot.mean_spectra(results, x={"step": 100}, y={"step": 0})
    assert [one.name for one in both] == ["first", "first and second", "second"]
    assert [len(one.each) for one in both] == [9, 18, 9]
    with pytest.raises(DsvccaError, match=r"keep no correlations: plan with keep=\['correlations'\]"):
        plot.spectra(results.drop_vars("correlations"))


def test_maps_of_frequencies_have_every_bin_in_its_place(store, tmp_path):
    maps = store.select(layer="maps", step=100)
    found = dsvcca.compare(dsvcca.plan_comparisons(maps, view="dft", keep="frequencies"), tmp_path / "r.zarr")
    [panel] = plot.frequencies(found)
    drawn = np.asarray(panel.images[0].get_array())
    assert drawn.shape == (4, 6)
    pairs = dsvcca.to_frame(found, measures="svcca_by_frequency")
    pairs = pairs[pairs.x_seed != pairs.y_seed].groupby(["frequency_0", "frequency_1"]).svcca_by_frequency.mean()
    for (down, across), value in pairs.items():
        for sign in (-1, 1):
            assert drawn[(sign * down + 2) % 4, (sign * across + 3) % 6] == pytest.approx(value, rel=1e-12)
    assert np.isfinite(drawn).all()
    assert drawn[2, 3] == drawn.max()  # what the maps share is the same everywhere: their mean
    with pytest.raises(DsvccaError, match=r"keep no frequencies"):
        plot.frequencies(found.drop_vars("svcca_by_frequency"))


def test_sequences_have_maps_of_one_row(tmp_path):
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(tmp_path / "a.zarr", datapoints=200)
    for seed in range(2):
        store.write(rng.standard_normal((200, 5, 3)).astype("f4"), layer="tokens", seed=seed, dims="ntd")
    found = dsvcca.compare(dsvcca.plan_comparisons(store, view="dft", keep="frequencies"), tmp_path / "r.zarr")
    [panel] = plot.frequencies(found)
    values = np.asarray(panel.images[0].get_array())
    assert values.shape == (1, 5)
    np.testing.assert_array_equal(values, values[:, ::-1])


def test_clusters_are_those_of_statistics(results):
    end = dsvcca.select(results, x={"step": [0, 100]}, y={"step": [0, 100]})
    tree, image = plot.clusters(end, network=["seed", "step"], count=2)
    drawn = np.ma.filled(image.images[0].get_array(), np.nan)
    names = [text.get_text() for text in image.get_yticklabels()]
    expected = dsvcca.statistics.clusters(end, network=["seed", "step"], count=2)
    numbers = expected.networks.cluster.to_dict()
    assert len(names) == 6
    for i, one in enumerate(names):
        seed, step, cluster = one.replace("(", "").replace(")", "").split()
        assert int(cluster) == numbers[int(seed), int(step)]
        for j, other in enumerate(names):
            a, b = ({"seed": int(n.split()[0]), "step": int(n.split()[1])} for n in (one, other))
            own = [float(dsvcca.select(end, x={**a, "layer": k}, y={**b, "layer": k}).svcca.squeeze()) for k in LAYERS]
            if i != j:
                assert drawn[i, j] == pytest.approx(np.mean(own), abs=1e-12)
    assert np.isnan(np.diag(drawn)).all()
    tree.figure.draw_without_rendering()
    left, right = (axes.get_window_extent() for axes in (tree, image))
    assert (left.x0, left.x1) == pytest.approx((right.x0, right.x1), abs=1)  # leaves stand above their columns


def test_classes_are_what_layers_explain(dense, tmp_path):
    rng = np.random.default_rng(0)
    targets = {"signal": np.random.default_rng(0).standard_normal((N, 8))[:, :1], "noise": rng.random((N, 1))}
    found = dsvcca.compare(dsvcca.plan_comparisons(dense, "to_targets", targets=targets), tmp_path / "r.zarr")
    axes = plot.classes(found)
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    table = dsvcca.to_frame(found)
    table = table[table.x_step == 100]
    for name in targets:
        own = table[table.target == name].groupby("x_layer").r2_target.mean()
        np.testing.assert_allclose(lines[name], own.loc[list(LAYERS)], rtol=1e-12)
    assert (lines["signal"] > 0.5).all()
    np.testing.assert_allclose(lines["chance"], table.groupby("x_layer").r2_target_floor.mean().loc[list(LAYERS)])
    np.testing.assert_allclose(lines["noise"], lines["chance"], atol=0.03)
    assert plot.sensitivity(found, step=0).step == 0
    with pytest.raises(DsvccaError, match="nothing in these results has step=7: there is 10, 0, 100"):
        plot.classes(found, step=7)


def test_what_cannot_be_drawn_is_refused(results, dense, tmp_path):
    with pytest.raises(DsvccaError, match="against='others' is unknown"):
        plot.over_training(results, against="others")
    with pytest.raises(DsvccaError, match="compare no layer with itself in networks of other seeds"):
        plot.over_training(dsvcca.select(results, x={"seed": 0}, y={"seed": 0}), against="seeds")
    with pytest.raises(DsvccaError, match="results have no measure 'pwcca_x'"):
        plot.over_training(results, measure="pwcca_x")
    with pytest.raises(DsvccaError, match="hold no targets: plan with targets="):
        plot.classes(results)
    two = results.assign_coords(x_model=("x", ["a", "b"] * 9), y_model=("y", ["a", "b"] * 9))
    with pytest.raises(DsvccaError, match=r"hold model='a' and model='b', and a mean over both says nothing"):
        plot.over_training(two)
    with pytest.raises(DsvccaError, match="results have no label 'step'"):
        plot.over_training(results.drop_vars(["x_step", "y_step"]))


@pytest.fixture(scope="module")
def unrelated(tmp_path_factory):
    """Layers that share nothing, and keep many directions."""
    rng = np.random.default_rng(3)
    store = dsvcca.create_store(tmp_path_factory.mktemp("unrelated") / "a.zarr", datapoints=N)
    for seed in range(2):
        for step in (0, 1):
            for layer in "abcd":
                store.write(rng.standard_normal((N, 25)).astype("f4"), layer=layer, seed=seed, step=step)
    return dsvcca.compare(dsvcca.plan_comparisons(store), f"{store.path}.results")


def test_what_is_no_more_than_chance_is_hatched(unrelated):
    at_end = {"step": 1}
    [panel] = plot.layers(dsvcca.select(unrelated, x=at_end, y=at_end))
    hatched = [patch for patch in panel.patches if patch.get_gid() == "chance"]
    values = plot.layer_means(unrelated, at_end, at_end).values
    chance = plot.layer_means(unrelated, at_end, at_end, measure="chance").values
    assert len(hatched) == (values <= chance).sum() > 0
    bar = panel.figure.axes[-1]
    assert any(patch.get_gid() == "chance" for patch in bar.patches)
    assert "chance, 0.2" in bar.get_ylabel()
    panels = plot.learning_dynamics(unrelated, steps=[0, 1])
    assert any(patch.get_gid() == "chance" for patch in panels[0].patches)


def contrast(one, other):
    def light(colour):
        parts = np.asarray(matplotlib.colors.to_rgb(colour))
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    dark, bright = sorted([light(one), light(other)])
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_everything_stands_out_of_light_and_dark(results, style):
    at_end = {"step": 100}
    with pyplot.style.context(style):
        some = dsvcca.select(results, x=at_end, y=at_end)
        drawn = [
            plot.over_training(results),
            plot.spectra(results),
            *plot.layers(some),
            *plot.learning_dynamics(results),
        ]
        drawn += [
            *plot.clusters(dsvcca.select(results, x={"step": [0, 100]}, y={"step": [0, 100]}), network=["seed", "step"])
        ]
        for axes in drawn:
            back = axes.figure.get_facecolor()
            for text in axes.figure.findobj(matplotlib.text.Text):
                inside = text.axes is not None and text.axes.images and text in text.axes.texts
                if text.get_text() and not inside:
                    assert contrast(text.get_color(), back) > 4.5, text
            for line in axes.lines:
                assert contrast(line.get_color(), axes.get_facecolor()) > 1.6, line


# Simulated dichromacy (Machado, Oliveira and Fernandes 2009), on linear RGB
MISSING = {
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def seen(colour, matrix):
    """Return how a colour is seen, in CIELAB."""
    parts = np.asarray(matplotlib.colors.to_rgb(colour))
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.asarray(matrix) @ linear, 0, 1)
    xyz = np.asarray([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.asarray([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", MISSING)
def test_lines_next_to_each_other_are_told_apart_without_all_colours(kind):
    colours = [seen(colour, MISSING[kind]) for colour in COLOURS[:4]]
    apart = [np.linalg.norm(a - b) for i, a in enumerate(colours) for b in colours[:i]]
    assert min(apart) > 10
    assert all(contrast(colour, back) > 2.9 for colour in COLOURS for back in ("w", "k"))
