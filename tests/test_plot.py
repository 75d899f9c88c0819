"""The figure shows what the results hold, and nothing where they do not hold it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import dsvcca
from dsvcca import DsvccaError, compare, create_store, plan_comparisons, select
from dsvcca.activations.store import Store
from dsvcca.plot.grids import layer_means, layers
from dsvcca.plot.training import dynamics, learning_dynamics

matplotlib = pytest.importorskip("matplotlib")
pytest.importorskip("matplotlib.pyplot")
matplotlib.use("Agg")

LAYERS = ("zeta", "alpha", "mid")  # neither alphabetical nor the reverse
STEPS = (0, 40, 100)
ROWS = 200


def fill(store: Store, seeds: tuple[int, ...] = (0, 1), steps: tuple[int, ...] = STEPS, **labels: str) -> None:
    """Write layers that draw nearer to their end, step by step."""
    for seed in seeds:
        rng = np.random.default_rng(seed)
        ends = {layer: rng.standard_normal((ROWS, 4)) for layer in LAYERS}
        for step in steps:
            for layer in LAYERS:
                noise = (1 - step / max(steps)) * rng.standard_normal((ROWS, 4))
                store.write(ends[layer] + noise, layer=layer, seed=seed, step=step, **labels)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = create_store(tmp_path_factory.mktemp("plot") / "a.zarr", datapoints=ROWS)
    fill(made)
    return made


@pytest.fixture(scope="module")
def results(store: Store, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return compare(plan_comparisons(store, "to_last_step"), tmp_path_factory.mktemp("plot") / "r.zarr")


@pytest.fixture(autouse=True)
def _closed():
    """Figures belong to pyplot, which keeps them until they are closed."""
    yield
    matplotlib.pyplot.close("all")


def panels_of(axes):
    """Return the axes that show an image: those that are returned, and nothing but the colour bar beside them."""
    panels = [one for one in axes[0].figure.axes if one.images]
    assert panels == list(axes)
    return panels


def expected(results: xr.Dataset, step: int, a: str, b: str, measure: str = "svcca") -> float:
    """Return one cell, taken from the results one seed at a time by their public functions."""
    cells = [
        select(results, x={"seed": s, "step": step, "layer": a}, y={"seed": s, "step": 100, "layer": b})[measure].item()
        for s in (0, 1)
    ]
    return sum(cells) / 2


@pytest.mark.parametrize("measure", ["svcca", "pwcca_x", "pwcca_y"])
def test_every_cell_is_the_mean_over_seeds_of_a_network_with_its_own_end(results, measure):
    panels = panels_of(learning_dynamics(results, measure=measure))
    assert len(panels) == 3
    for panel, step in zip(panels, STEPS, strict=True):
        values = [[expected(results, step, a, b, measure) for b in LAYERS] for a in LAYERS]
        np.testing.assert_allclose(panel.images[0].get_array(), values, rtol=1e-12)


def test_titles_names_and_colours_are_those_of_the_results(results):
    panels = panels_of(learning_dynamics(results))
    figure = panels[0].figure
    figure.draw_without_rendering()
    assert [panel.get_title() for panel in panels] == ["step 0 (0 %)", "step 40 (40 %)", "step 100 (100 %)"]
    assert [text.get_text() for text in panels[0].get_yticklabels()] == list(LAYERS)
    assert [text.get_text() for text in panels[0].get_xticklabels()] == list(LAYERS)
    assert {panel.images[0].get_clim() for panel in panels} == {(0, 1)}
    assert len(figure.axes) == len(panels) + 1
    assert panels[0].images[0].origin == "lower"
    assert "2 seeds" in figure.get_suptitle()


def test_the_last_panel_has_ones_on_its_diagonal(results):
    np.testing.assert_allclose(np.diag(dynamics(results).values[-1]), 1, atol=1e-6)  # products in float32


def test_steps_can_be_chosen_and_wrap_into_rows(results):
    assert [p.get_title() for p in panels_of(learning_dynamics(results, steps=[40]))] == ["step 40 (40 %)"]
    many = panels_of(learning_dynamics(results, steps=[0, 40, 100, 0, 40]))
    assert len(many) == 5
    assert many[4].get_position().y0 < many[0].get_position().y0


def test_steps_nearest_to_0_35_75_and_100_percent_are_shown(tmp_path):
    store = create_store(tmp_path / "a.zarr", datapoints=ROWS)
    fill(store, seeds=(0,), steps=(0, 5, 30, 50, 70, 90, 100))
    results = compare(plan_comparisons(store), tmp_path / "r.zarr")
    assert dynamics(results).steps == (0, 30, 70, 100)
    assert "seed" not in learning_dynamics(results)[0].figure.get_suptitle()


def test_of_several_variances_the_nearest_to_99_percent_is_shown_and_named(store, tmp_path):
    several = compare(plan_comparisons(store, variance=[0.5, 0.98, 1.0]), tmp_path / "r.zarr")
    found = dynamics(several)
    assert found.variance == 0.98
    np.testing.assert_array_equal(found.values, dynamics(several.sel(variance=[0.98])).values)
    assert not np.array_equal(found.values, dynamics(several.sel(variance=[0.5])).values)
    assert "98 % of variance" in learning_dynamics(several)[0].figure.get_suptitle()


def test_networks_without_seeds_are_one_network(tmp_path):
    store = create_store(tmp_path / "a.zarr", datapoints=ROWS)
    rng = np.random.default_rng(0)
    for step in (1, 2):
        store.write(rng.standard_normal((ROWS, 3)), layer="a", step=step)
    found = dynamics(compare(plan_comparisons(store), tmp_path / "r.zarr"))
    assert (found.networks, found.last, found.values.shape) == (1, 2, (2, 1, 1))


def test_missing_comparisons_are_an_error_and_not_a_hole(store, results, tmp_path):
    same_layer = compare(plan_comparisons(store, "over_training"), tmp_path / "r.zarr")
    with pytest.raises(DsvccaError, match=r"seed=0, step=0, layer='zeta' with .*layer='alpha'.*pairs='to_last_step'"):
        learning_dynamics(same_layer)
    lacking = results.isel(x=np.arange(1, results.sizes["x"]))
    with pytest.raises(DsvccaError, match=r"do not hold seed=0, step=0, layer='zeta'"):
        learning_dynamics(lacking)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "svca"}, "did you mean 'svcca'"),
        ({"steps": [0, 41]}, "has step=41"),
        ({"steps": []}, "steps is empty"),
    ],
)
def test_wrong_options_say_what_there_is(results, options, message):
    with pytest.raises(DsvccaError, match=message):
        learning_dynamics(results, **options)


def test_what_has_no_common_end_or_no_step_is_refused(tmp_path):
    store = create_store(tmp_path / "a.zarr", datapoints=ROWS)
    fill(store, seeds=(0,), model="small")
    fill(store, seeds=(1,), model="large", steps=(0, 40, 90))
    results = compare(plan_comparisons(store), tmp_path / "r.zarr")
    with pytest.raises(DsvccaError, match=r"model='small' and model='large'.*select"):
        learning_dynamics(results)
    with pytest.raises(DsvccaError, match="seed 0 at 100, seed 1 at 90"):
        learning_dynamics(results.drop_vars(["x_model", "y_model"]))
    with pytest.raises(DsvccaError, match="no label 'step'"):
        learning_dynamics(results.drop_vars(["x_step", "y_step"]))
    one = select(results, x={"model": "large"}, y={"model": "large"})
    assert dynamics(one).last == 90


def test_without_matplotlib_the_error_says_what_to_install(results, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'dsvcca\[plot\]'"):
        learning_dynamics(results)


def test_the_figure_can_be_written(results, tmp_path):
    path: Path = tmp_path / "dynamics.png"
    learning_dynamics(results)[0].figure.savefig(path)
    assert path.stat().st_size > 10_000


# Layers against layers


@pytest.fixture(scope="module")
def architectures(tmp_path_factory):
    """Results of two models of two seeds, with maps of two sizes and a dense layer each."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("a")
    store = create_store(path / "a.zarr", datapoints=ROWS)
    for model in ("one", "two"):
        for seed in (0, 1):
            store.write(
                rng.standard_normal((ROWS, 4, 4, 2)), layer=f"{model}-large", model=model, seed=seed, dims="nhwc"
            )
            store.write(
                rng.standard_normal((ROWS, 2, 2, 3)), layer=f"{model}-small", model=model, seed=seed, dims="nhwc"
            )
            store.write(rng.standard_normal((ROWS, 3)), layer=f"{model}-dense", model=model, seed=seed)
    return compare(plan_comparisons(store), path / "r.zarr")


def test_layers_of_different_networks_are_averaged_and_say_their_view(architectures):
    found = layer_means(architectures, {"model": "one"}, {"model": "two"})
    assert found.x_layers == ("one-large", "one-small", "one-dense")
    assert found.views.tolist() == [["dft", "mean", "mean"], ["mean", "dft", "mean"], ["mean", "mean", "neurons"]]
    chosen = select(architectures, x={"layer": "one-large"}, y={"layer": "two-small"})
    assert found.values[0, 1] == pytest.approx(chosen.svcca.values.mean())
    own = layer_means(architectures, {"model": "one"}, {"model": "one"}, measure="r2")
    values = select(architectures, x={"layer": "one-dense"}, y={"layer": "one-dense"}).r2.values
    assert own.values[2, 2] == pytest.approx(values[0, 1])  # not with itself
    assert not own.same
    alone = layer_means(architectures, {"model": "one", "seed": 0}, {"model": "one", "seed": 0})
    assert alone.same
    assert alone.values[0, 0] == pytest.approx(1)


def test_every_panel_shows_its_layers_and_marks_their_views(architectures):
    sides = {name: {"model": name} for name in ("one", "two")}
    figure = layers(architectures, {"one, two": (sides["one"], sides["two"]), "one": (sides["one"], sides["one"])})[
        0
    ].figure
    figure.draw_without_rendering()
    first, second = (panel for panel in figure.axes if panel.images)
    assert first.get_title() == "one, two"
    assert [text.get_text() for text in second.get_xticklabels()] == ["one-large", "one-small", "one-dense"]
    texts = {tuple(text.get_position()): text.get_text() for text in first.texts}
    assert texts[1, 0].endswith("a")  # the mean
    assert texts[2, 2].endswith("b")  # neurons
    assert not texts[0, 0].endswith(("a", "b"))
    assert "view: dft, mean a, neurons b" in figure.get_supxlabel()
    assert len(layers(architectures)[0].figure.axes) == 2


def test_steps_are_not_averaged(results):
    with pytest.raises(DsvccaError, match="x holds step=0 and step=40, and a mean over both says nothing: give one"):
        layers(results)
    last = {"step": 100}
    found = layer_means(results, last, last)
    own = [
        select(
            results, x={"layer": "zeta", "seed": seed, **last}, y={"layer": "alpha", "seed": seed, **last}
        ).svcca.item()
        for seed in (0, 1)
    ]
    i, j = found.x_layers.index("zeta"), found.y_layers.index("alpha")
    assert found.same  # no two networks were compared
    assert found.values[i, j] == pytest.approx(sum(own) / 2)


def test_panels_that_cannot_be_drawn_are_refused(architectures, monkeypatch):
    with pytest.raises(DsvccaError, match="nothing in these results has model='three'"):
        layers(architectures, {"": ({"model": "three"}, {})})
    with pytest.raises(DsvccaError, match="no measure 'cka'"):
        layers(architectures, measure="cka")
    empty = architectures.assign(svcca=architectures.svcca * np.nan)
    with pytest.raises(DsvccaError, match="hold no comparison of any with any"):
        layers(empty)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'dsvcca\[plot\]'"):
        layers(architectures)


def test_numbers_of_different_views_are_not_averaged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = create_store(tmp_path / "a.zarr", datapoints=ROWS)
    for model, size in (("a", 4), ("b", 4), ("c", 2)):
        made.write(rng.standard_normal((ROWS, size, size, 3)), layer="conv", model=model, dims="nhwc")
    found = compare(plan_comparisons(made), tmp_path / "r.zarr")
    with pytest.raises(DsvccaError, match="compared as view 'dft' in some networks and as 'mean' in others"):
        layer_means(found, {}, {})
    assert layer_means(found, {"model": "a"}, {"model": "b"}).views.tolist() == [["dft"]]


def test_a_network_that_lacks_a_label_is_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = create_store(tmp_path / "a.zarr", datapoints=ROWS)
    made.write(rng.standard_normal((ROWS, 4)), layer="fc", model="student", seed=0)
    made.write(rng.standard_normal((ROWS, 4)), layer="fc", model="teacher")
    found = compare(plan_comparisons(made), tmp_path / "r.zarr")
    assert layer_means(found, {}, {}).values.item() == pytest.approx(float(found.svcca[0, 1]), abs=1e-12)


def test_distances_are_drawn_on_a_scale_of_their_own(tmp_path):
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=200)
    for seed in range(2):
        for layer in ("a", "b"):
            store.write(10 * rng.standard_normal((200, 5)), layer=layer, seed=seed)
    names = ["svcca", "gulp", "procrustes", "significant"]
    found = dsvcca.compare(dsvcca.plan_comparisons(store, measures=names), tmp_path / "r.zarr").load()
    for name, bright in (
        ("svcca", "viridis"),
        ("procrustes", "viridis_r"),
        ("gulp", "viridis_r"),
        ("significant", "viridis"),
    ):
        [image] = dsvcca.plot.layers(found, measure=name)[0].images
        assert image.get_cmap().name == bright
        values = dsvcca.plot.layer_means(found, {}, {}, measure=name).values
        assert image.norm.vmax == (1 if name == "svcca" or values.max() <= 0 else values.max())


def test_words_below_a_narrow_figure_stay_within_it(tmp_path):
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=100)
    for seed in range(2):
        store.write(rng.standard_normal((100, 5)), layer="a", seed=seed)
    found = dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr").load()
    figure = dsvcca.plot.layers(found, {"one panel": ({"seed": 0}, {"seed": 1})})[0].figure
    figure.draw_without_rendering()
    box = figure._supxlabel.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
