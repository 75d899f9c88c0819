"""Statistics of populations: what was put in comes out, chance is told from what is there, holes are refused."""

import itertools
import warnings

import numpy as np
import pytest
import xarray as xr
from scipy.cluster import hierarchy
from scipy.spatial.distance import is_valid_dm, squareform
from scipy.stats import kstest
from sklearn.metrics import silhouette_samples

import dsvcca
from dsvcca import DsvccaError, DsvccaWarning
from dsvcca.maths.measures import ALL, MEASURES
from dsvcca.statistics.clustering import clusters
from dsvcca.statistics.groups import cohesion_test, group_test
from dsvcca.statistics.networks import DISTANCES, SIDED, SIMILARITIES
from dsvcca.statistics.pairwise import distances, layer_identification

ROWS = 150
LAYERS = ("low", "mid", "top")

SYMMETRIC = tuple(name for name in (*SIMILARITIES, *DISTANCES) if name in ALL)


def made(values, labels, measure="svcca", **more):
    """Return results that hold these numbers, (representation, representation)."""
    sides = {f"{side}_{name}": (side, list(own)) for side in "xy" for name, own in labels.items()}
    ranks = {"rank_x": (("x", "y"), np.ones(np.shape(values)))}
    return xr.Dataset({measure: (("x", "y"), np.asarray(values, dtype=float)), **ranks, **more}, sides)


def of_layers(values, measure="svcca", **labels):
    """Return results of networks whose layers have these numbers, (layer, network, network), and no others."""
    depth, count = values.shape[:2]
    whole = np.full((count, depth, count, depth), np.nan)
    for place, one in enumerate(values):
        whole[:, place, :, place] = one
    every = {"seed": range(count), **labels}
    every = {name: np.repeat(np.asarray(own), depth) for name, own in every.items()}
    return made(whole.reshape(count * depth, -1), {**every, "layer": [f"l{i}" for i in range(depth)] * count}, measure)


def alike_networks(rng, count, depth=1, dims=2):
    """Return similarities of networks that lie anywhere in space: pairs that share one depend on each other."""
    where = rng.standard_normal((depth, count, dims))
    return np.exp(-((where[:, :, None] - where[:, None, :]) ** 2).sum(axis=-1) / 4)


def shuffled(results, seed):
    """Return the same results with x and y each in another order."""
    rng = np.random.default_rng(seed)
    return results.isel(x=rng.permutation(results.sizes["x"]), y=rng.permutation(results.sizes["y"]))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Six networks in two models of three layers, each layer and each model with a signal of its own."""
    rng = np.random.default_rng(0)
    of_layer = {layer: rng.standard_normal((ROWS, 6)) for layer in LAYERS}
    of_model = {model: rng.standard_normal((ROWS, 3)) for model in "ab"}
    store = dsvcca.create_store(tmp_path_factory.mktemp("s") / "s.zarr", datapoints=ROWS)
    for seed, (model, layer) in itertools.product(range(3), itertools.product("ab", LAYERS)):
        x = np.hstack([of_layer[layer], of_model[model]])
        x = x @ rng.standard_normal((9, 12)) + 0.3 * rng.standard_normal((ROWS, 12))
        store.write(x, layer=layer, model=model, seed=seed)
    return store


@pytest.fixture(scope="module")
def found(store, tmp_path_factory):
    plan = dsvcca.plan_comparisons(store, measures="all", variance=[0.9, 1.0])
    return dsvcca.compare(plan, tmp_path_factory.mktemp("r") / "r.zarr").load()


@pytest.fixture(scope="module")
def whole(found):
    return found.sel(variance=[1.0])


def test_every_measure_has_its_kind():
    chance = (
        "chance",
        "chance_edge",
        "p_value",
        "significant",
        "significant_bartlett",
        "svcca_error",
        "svcca_shuffled",
        "p_shuffled",
    )
    assert sorted([*SIMILARITIES, *DISTANCES, *SIDED, *chance]) == sorted(MEASURES)
    assert all(MEASURES[name].kind == "chance" for name in chance)


def test_measures_called_symmetric_are_and_the_others_are_not(whole):
    for measure in SYMMETRIC:
        np.testing.assert_array_equal(whole[measure][:, :, 0].values, whole[measure][:, :, 0].values.T)
    for measure, both in ((name, both) for name, both in SIDED.items() if name in ALL):
        one = whole[measure][:, :, 0].values
        assert not np.allclose(one, one.T, atol=1e-4)
        if both is not None:
            np.testing.assert_allclose((one + one.T) / 2, whole[both][:, :, 0].values, atol=1e-12)


# Distances


@pytest.mark.parametrize("measure", SYMMETRIC)
def test_distances_are_what_scipy_and_scikit_learn_take(whole, measure):
    frame = distances(whole, measure)
    assert frame.shape == (18, 18)
    assert is_valid_dm(frame.to_numpy(), tol=0)
    assert squareform(frame).shape == (153,)
    assert frame.index.names == ["model", "seed", "layer"]
    assert (frame.to_numpy() >= 0).all()
    numbers = whole[measure][:, :, 0].values
    expected = numbers if measure in DISTANCES else 1 - numbers
    np.testing.assert_allclose(squareform(frame), squareform(expected, checks=False), atol=1e-15)
    assert silhouette_samples(frame, np.arange(18) % 3, metric="precomputed").shape == (18,)
    a, b = ("a", 0, "mid"), ("b", 2, "top")
    one = dsvcca.select(whole, x=dict(zip(frame.index.names, a, strict=True)), y={"layer": "top", "model": "b"})
    number = one[measure].sel(y=one.y_seed == 2).item()
    assert frame.loc[a, b] == pytest.approx(number if measure in DISTANCES else 1 - number, abs=1e-15)


def worst_triangle(apart):
    """Return by how much the longest side of some triangle is longer than the two others."""
    return (apart[:, None, :] - apart[:, :, None] - apart[None, :, :]).max()


@pytest.mark.parametrize("variance", [0.9, 1.0])
@pytest.mark.parametrize("measure", [*DISTANCES, "cka"])
def test_what_is_said_to_be_a_metric_keeps_the_triangle_inequality(found, measure, variance):
    apart = distances(found, measure, variance=variance).to_numpy()
    if measure == "cka":
        apart = np.arccos(1 - apart)
    assert worst_triangle(apart) <= 1e-9 * apart.max()


def test_one_minus_svcca_is_no_metric(tmp_path):
    a, b = np.linalg.qr(np.random.default_rng(0).standard_normal((ROWS, 2)))[0].T
    a, b = a - a.mean(), b - b.mean()
    b -= a * (a @ b) / (a @ a)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=ROWS)
    for layer, x in (("a", a[:, None]), ("both", np.stack([a, b], axis=1)), ("b", b[:, None])):
        store.write(x, layer=layer)
    results = dsvcca.compare(dsvcca.plan_comparisons(store, variance=1.0), tmp_path / "r.zarr")
    apart = distances(results)
    np.testing.assert_allclose(apart.loc["a", "both"], 0, atol=1e-6)
    np.testing.assert_allclose(apart.loc["both", "b"], 0, atol=1e-6)
    np.testing.assert_allclose(apart.loc["a", "b"], 1, atol=1e-6)


def test_the_diagonal_is_zero_and_similarities_above_one_are_no_distance(whole):
    results = made([[np.nan, 1 + 1e-7], [1 + 1e-7, 0.9]], {"layer": "ab"})
    np.testing.assert_array_equal(distances(results), np.zeros((2, 2)))
    assert (np.diag(whole["procrustes"][:, :, 0]) > 0).any()  # rounding; of what is left out where less is kept
    assert not np.diag(distances(whole, "procrustes")).any()


@pytest.mark.parametrize("measure", ["svcca", "procrustes"])
def test_distances_do_not_depend_on_the_order_of_representations(whole, measure):
    frame = distances(whole, measure)
    for seed in range(3):
        other = distances(shuffled(whole, seed), measure)
        assert is_valid_dm(other.to_numpy(), tol=0)
        np.testing.assert_array_equal(other.loc[frame.index, frame.index], frame)


def test_missing_labels_tell_representations_apart_too():
    results = made(
        [[1, 0.5, 0.2], [0.5, 1, 0.1], [0.2, 0.1, 1]], {"seed": [0, np.nan, np.nan], "layer": ["a", "a", ""]}
    )
    frame = distances(results.isel(y=[2, 0, 1]))
    np.testing.assert_allclose(frame.to_numpy(), [[0, 0.5, 0.8], [0.5, 0, 0.9], [0.8, 0.9, 0]])
    assert frame.index.names == ["seed", "layer"]


def test_of_several_variances_one_is_said(found, whole):
    with pytest.raises(DsvccaError, match=r"these results hold variances \[0.9, 1.0\]: say which one, variance=0.9"):
        distances(found)
    with pytest.raises(DsvccaError, match=r"these results hold no variance=0.95: there is 0.9, 1.0"):
        distances(found, variance=0.95)
    for again in (found.sel(variance=1.0), found.sel(variance=[1.0])):
        np.testing.assert_array_equal(distances(again), distances(found, variance=1.0))
        np.testing.assert_array_equal(distances(again, variance=1.0), distances(found, variance=1.0))
        with pytest.raises(DsvccaError, match=r"hold no variance=0.9: there is 1.0"):
            distances(again, variance=0.9)
    assert not np.array_equal(distances(whole), distances(found, variance=0.9))


def test_any_other_dimension_is_chosen_before(whole):
    ridges = xr.concat([whole.svcca, whole.svcca / 2], "ridge").assign_coords(ridge=[0.0, 0.1])
    results = whole.drop_vars("svcca").assign(svcca=ridges)
    with pytest.raises(DsvccaError, match=r"hold several ridge, \[0.0, 0.1\]: results.sel\(ridge=...\) chooses one"):
        distances(results)
    np.testing.assert_array_equal(distances(results.isel(ridge=[0])), distances(whole))


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        ("pwcca_x", "pwcca_x changes where x and y are exchanged, so it makes no distance: use 'pwcca_mean'$"),
        ("pwcca_y", "use 'pwcca_mean'$"),
        ("pwcca2_x", "pwcca2_x changes where .* there is no symmetric one of it, use another measure"),
        ("r2_y", "there is no symmetric one of it, use another measure"),
        ("p_value", "p_value does not say how alike two representations are: use one of svcca, r2, "),
        ("significant", "significant does not say how alike"),
        ("chance", "chance does not say how alike"),
        ("rank_x", "rank_x does not say how alike"),
        ("view", "view does not say how alike"),
        ("svca", "results have no measure 'svca': did you mean 'svcca'"),
        (("svcca",), r"measure=\('svcca',\): give the name of one, such as 'svcca'"),
    ],
)
def test_measures_without_a_distance_are_refused_by_name(whole, measure, words):
    for ask in (distances, clusters, lambda r, m: group_test(r, m, group="model")):
        with pytest.raises(DsvccaError, match=words):
            ask(whole, measure)
    if measure not in SIDED:
        with pytest.raises(DsvccaError):
            layer_identification(whole, measure)


def test_a_symmetric_measure_that_is_not_there_is_said_to_be_one_to_plan(whole):
    with pytest.raises(
        DsvccaError, match=r"use 'pwcca_mean', which plan_comparisons\(measures=\['pwcca_mean'\]\) adds"
    ):
        distances(whole.drop_vars("pwcca_mean"), "pwcca_x")
    with pytest.raises(DsvccaError, match="no measure 'svcca': they hold none that says how alike"):
        distances(whole[["chance"]])


def test_pairs_that_are_not_there_are_counted_and_the_first_is_named(whole):
    results = whole.copy(deep=True)
    results["svcca"][2, 5] = results["svcca"][5, 2] = np.nan
    results["svcca"][9, 7] = np.inf
    first = "model='a', seed=0, layer='top' with model='b', seed=0, layer='top'"
    with pytest.raises(DsvccaError, match=f"^2 of 153 pairs have no svcca, the first is {first}: compare them too"):
        distances(results)
    results.attrs["failed"] = ["model='b', seed=0, layer='top': it is constant"]
    with pytest.raises(
        DsvccaError, match=r"1 could not be compared \(model='b', seed=0, layer='top': it is constant\)"
    ):
        distances(results)


def test_of_a_layer_that_failed_it_is_said_which_and_why(tmp_path):
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=ROWS)
    for seed in range(3):
        store.write(rng.standard_normal((ROWS, 5)) * (seed < 2), layer="a", seed=seed)
    with pytest.warns(DsvccaWarning, match="1 of 3 representations could not be compared"):
        results = dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr")
    first = r"^2 of 3 pairs have no svcca, the first is seed=0, layer='a' with seed=2, layer='a': "
    words = first + r"1 could not be compared \(seed=2, layer='a': .*constant.*select\(\) the others"
    for ask in (distances, clusters):
        with pytest.raises(DsvccaError, match=words):
            ask(results)
    two = dsvcca.select(results, x={"seed": [0, 1]}, y={"seed": [0, 1]})
    assert distances(two).shape == (2, 2)


def test_pairs_of_other_rules_have_holes_for_distances_and_none_for_groups(store, tmp_path):
    results = dsvcca.compare(dsvcca.plan_comparisons(store, "across_seeds"), tmp_path / "r.zarr")
    with pytest.raises(DsvccaError, match="135 of 153 pairs have no svcca"):
        distances(results)
    part = dsvcca.select(results, x={"model": "a"}, y={"model": "a"})
    assert len(clusters(part).networks) == 3
    with pytest.raises(DsvccaError, match="have no svcca"):
        layer_identification(part)


def test_networks_need_like_layers_alone_and_all_of_them(whole):
    results = whole.copy(deep=True)
    results["svcca"][0, 4] = results["svcca"][4, 0] = np.nan  # low with mid
    for ask in (clusters, lambda r: group_test(r, group="model")):
        ask(results)
    results["svcca"][0, 3] = results["svcca"][3, 0] = np.nan
    for ask in (clusters, lambda r: group_test(r, group="model")):
        with pytest.raises(DsvccaError, match="1 of 45 pairs have no svcca, the first is .* layer='low' with"):
            ask(results)


def test_two_sides_that_differ_are_refused(whole):
    with pytest.raises(
        DsvccaError, match="model='a', seed=0, layer='low' is on one side of these results only: select"
    ):
        distances(whole.isel(x=slice(1, None)))
    for one in (whole.drop_vars(["x_seed", "y_seed"]), whole.isel(y=[*range(18), 3])):
        with pytest.raises(DsvccaError, match="carry the same labels"):
            distances(one)
    with pytest.raises(DsvccaError, match="there is one representation"):
        distances(whole.isel(x=[0], y=[0]))


def with_views(results, views, names):
    about = {"flag_values": [1, 2], "flag_meanings": " ".join(names)}
    return results.assign(view=(("x", "y"), views, about))


def test_views_that_are_mixed_are_warned_of_and_refused_within_a_layer(whole):
    by_layer = (np.asarray(whole.x_layer) == "low")[:, None] & (np.asarray(whole.y_layer) == "low") + 0
    mixed = with_views(whole, by_layer + 1, ["mean", "dft"])
    for ask in (distances, layer_identification):
        with pytest.warns(DsvccaWarning, match=r"looked at in different views \(dft, mean\), whose numbers"):
            ask(mixed)
    clusters(mixed)
    group_test(mixed, group="model")
    views = np.ones((18, 18), dtype=int)
    views[0, 3] = views[3, 0] = 2
    for ask in (clusters, lambda r: group_test(r, group="model")):
        with pytest.raises(DsvccaError, match="low is compared as view 'dft' in some networks and as 'mean' in others"):
            ask(shuffled(with_views(whole, views, ["mean", "dft"]), 0))
        ask(shuffled(with_views(whole, by_layer + 1, ["mean", "dft"]), 0))


# Layers that are found again


def test_layers_with_signals_of_their_own_are_found_and_unrelated_ones_by_chance(whole):
    for measure in (*SYMMETRIC, *(name for name in SIDED if name in ALL)):
        frame = layer_identification(whole, measure)
        assert frame.index.tolist() == [*LAYERS, "all"]
        assert frame.accuracy.tolist() == [1.0] * 4, measure
        assert frame.standard_error.tolist() == [0.0] * 4
        assert frame["count"].tolist() == [30, 30, 30, 90]
        assert frame.chance.tolist() == [1 / 3] * 4
    rng = np.random.default_rng(0)
    noise = rng.uniform(size=(90, 90))
    results = made(noise + noise.T, {"seed": np.repeat(np.arange(30), 3), "layer": LAYERS * 30})
    frame = layer_identification(results)
    np.testing.assert_allclose(frame.accuracy, 1 / 3, atol=0.06)


def three_networks(measure="svcca", sign=1):
    """Return results of three networks of two layers: of six looks at layer a two find it, of those at b five."""
    values = np.full((6, 6), np.nan)
    blocks = {(0, 1): [[3, 2], [1, 5]], (0, 2): [[1, 4], [2, 3]], (1, 2): [[1, 2], [6, 7]]}
    for (a, b), block in blocks.items():
        values[2 * a : 2 * a + 2, 2 * b : 2 * b + 2] = block
        values[2 * b : 2 * b + 2, 2 * a : 2 * a + 2] = np.transpose(block)
    return made(sign * values / 10, {"seed": [0, 0, 1, 1, 2, 2], "layer": list("ababab")}, measure)


def test_accuracy_by_hand():
    # a: 0→1 yes, 1→0 yes, 0→2 no, 2→0 no, 1→2 no, 2→1 no; b: yes, yes, yes, no (4 > 3), yes, yes
    frame = layer_identification(three_networks())
    np.testing.assert_allclose(frame.accuracy, [2 / 6, 5 / 6, 7 / 12])
    assert frame["count"].tolist() == [6, 6, 12]
    assert (
        layer_identification(three_networks("procrustes", -1), "procrustes").accuracy.tolist()
        == frame.accuracy.tolist()
    )
    # without network 2, 1, 0: a 1, 0, 0; b 1, 1/2, 1; both 1, 1/4, 1/2
    spread = [np.sqrt(2 * np.var(one)) for one in ([1, 0, 0], [1, 0.5, 1], [1, 0.25, 0.5])]
    np.testing.assert_allclose(frame.standard_error, spread)
    two = three_networks().isel(x=slice(4), y=slice(4))
    assert layer_identification(two).standard_error.isna().all()


def test_what_is_as_similar_shares_the_hit():
    values = three_networks().svcca.values
    values[0, 3] = values[3, 0] = 0.3 + 1e-9  # of a of 0 the layers a and b of 1 are alike
    values[4, 1] = values[1, 4] = 0.2  # as they were
    results = made(values, {"seed": [0, 0, 1, 1, 2, 2], "layer": list("ababab")})
    np.testing.assert_allclose(layer_identification(results).accuracy["a"], (0.5 + 1) / 6)
    same = made(np.full((6, 6), 0.7), {"seed": [0, 0, 1, 1, 2, 2], "layer": list("ababab")})
    np.testing.assert_allclose(layer_identification(same).accuracy, 0.5)
    np.testing.assert_allclose(layer_identification(same).standard_error, 0, atol=1e-15)


def test_measures_of_one_side_count_as_the_mean_of_both(whole):
    np.testing.assert_array_equal(layer_identification(whole, "pwcca_x"), layer_identification(whole, "pwcca_mean"))
    rng = np.random.default_rng(1)
    values = rng.uniform(size=(8, 8))
    labels = {"seed": np.repeat(np.arange(4), 2), "layer": list("ab") * 4}
    one = layer_identification(made(values, labels, "r2_x"), "r2_x")
    np.testing.assert_array_equal(one, layer_identification(made((values + values.T) / 2, labels)))


def test_the_standard_error_is_that_of_new_networks_and_not_of_new_pairs():
    """Of some networks layers are found, of others not: pairs of few networks tell little."""
    rng = np.random.default_rng(0)
    depth, count = 3, 12
    accuracies, errors, naive = [], [], []
    for _ in range(150):
        clear = rng.uniform(size=count) < 0.5
        noise = rng.standard_normal((count, depth, count, depth))
        signal = (clear[:, None] & clear[None, :])[:, None, :, None] * np.eye(depth)[None, :, None, :]
        values = (noise + noise.transpose(2, 3, 0, 1) + 20 * signal).reshape(count * depth, -1)
        labels = {"seed": np.repeat(np.arange(count), depth), "layer": list("abc") * count}
        row = layer_identification(made(values, labels)).loc["all"]
        accuracies.append(row.accuracy)
        errors.append(row.standard_error)
        naive.append(np.sqrt(row.accuracy * (1 - row.accuracy) / row["count"]))
    truth = np.std(accuracies)
    assert 0.9 < np.sqrt(np.mean(np.square(errors))) / truth < 1.25
    assert np.sqrt(np.mean(np.square(naive))) < truth / 3


def test_identification_needs_two_layers_and_all_of_them(whole):
    one = dsvcca.select(whole, x={"layer": "top"}, y={"layer": "top"})
    with pytest.raises(DsvccaError, match="layer='top' is the only one: there is nothing to tell it from"):
        layer_identification(one)
    results = whole.copy(deep=True)
    results["svcca"][0, 4] = np.nan
    with pytest.raises(DsvccaError, match="1 of 135 pairs have no svcca"):
        layer_identification(results)
    results["svcca"][0, 4] = 0.5
    results["svcca"][0, 1] = np.nan  # within a network: not needed
    layer_identification(results)


# Networks


def test_what_a_network_is(whole):
    both = layer_identification(whole, network=["seed", "model"])
    np.testing.assert_array_equal(both, layer_identification(whole))
    part = dsvcca.select(whole, x={"model": "a"}, y={"model": "a"})
    np.testing.assert_array_equal(layer_identification(part, network="seed"), layer_identification(part))
    with pytest.raises(DsvccaError, match="seed=0 has two of layer='low', with model='a' and model='b': select"):
        layer_identification(whole, network="seed")
    with pytest.raises(DsvccaError, match="results have no label 'sead': did you mean 'seed'"):
        clusters(whole, network="sead")
    with pytest.raises(DsvccaError, match="results have no label 'leyer': did you mean 'layer'"):
        clusters(whole, layer="leyer")
    with pytest.raises(DsvccaError, match="network=.'seed', 'layer'. holds 'layer', which tells layers of a network"):
        clusters(whole, network=["seed", "layer"])
    depths = {f"{side}_depth": (side, [LAYERS.index(name) for name in whole[f"{side}_layer"].values]) for side in "xy"}
    by_depth = layer_identification(whole.assign_coords(depths), layer="depth")
    assert by_depth.index.tolist() == [0, 1, 2, "all"]
    np.testing.assert_array_equal(by_depth, layer_identification(whole))


def test_steps_of_one_network_are_not_several_networks():
    values = alike_networks(np.random.default_rng(0), 4)
    results = of_layers(values, seed=[0, 0, 1, 1], step=[0, 10, 0, 10])
    with pytest.raises(
        DsvccaError, match="seed=0 is there with step=0 and step=10, which are not two networks: select"
    ):
        clusters(results)
    assert clusters(results, network=["seed", "step"]).networks.index.names == ["seed", "step"]
    ends = of_layers(values, seed=[0, 1, 2, 3], step=[10, 20, 10, 10])  # each stopped where it stopped
    assert len(clusters(ends).networks) == 4
    alone = results.isel(x=[0, 1], y=[0, 1]).drop_vars(["x_seed", "y_seed"])
    with pytest.raises(DsvccaError, match="one network is there with step=0 and step=10"):
        clusters(alone)


ASKED = [layer_identification, clusters, lambda r: group_test(r, group="model")]


@pytest.mark.parametrize("ask", ASKED)
def test_one_network_and_networks_that_lack_a_layer_are_refused(whole, ask):
    with pytest.raises(DsvccaError, match="all representations are of model='a', seed=0: compare several networks"):
        ask(dsvcca.select(whole, x={"model": "a", "seed": 0}, y={"model": "a", "seed": 0}))
    lacking = [i for i in range(18) if i != 4]
    with pytest.raises(DsvccaError, match="model='b', seed=0 has no layer='mid', which other networks have: select"):
        ask(whole.isel(x=lacking, y=lacking))


# Clusters


def planted(sizes, depth=2, seed=0, measure="svcca"):
    """Return results of networks in groups that are alike, the groups and the distances."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(len(sizes)), sizes)
    of = of[rng.permutation(len(of))]
    noise = rng.uniform(0, 0.1, (depth, len(of), len(of)))
    apart = np.where(of[:, None] == of, 0.1, 0.6) + (noise + noise.transpose(0, 2, 1))
    apart[:, np.arange(len(of)), np.arange(len(of))] = 0
    return of_layers(apart if measure in DISTANCES else 1 - apart, measure), of, apart.mean(axis=0)


@pytest.mark.parametrize("measure", ["svcca", "procrustes"])
@pytest.mark.parametrize("sizes", [(3, 3), (2, 4, 5), (2, 2, 2, 2, 2)])
def test_planted_clusters_are_found_and_numbered_by_their_first_networks(sizes, measure):
    results, of, apart = planted(sizes, measure=measure)
    found = clusters(results, measure)
    assert found.networks.index.tolist() == list(range(sum(sizes)))
    first = list(dict.fromkeys(of.tolist()))
    assert found.networks.cluster.tolist() == [1 + first.index(one) for one in of]
    assert found.silhouettes.idxmax() == len(sizes)
    np.testing.assert_allclose(found.networks.silhouette, silhouette_samples(apart, of, metric="precomputed"))
    np.testing.assert_allclose(found.linkage, hierarchy.linkage(squareform(apart), "average"))
    assert hierarchy.is_valid_linkage(found.linkage)


@pytest.mark.parametrize("method", ["average", "single", "complete", "weighted"])
def test_any_number_of_clusters_is_cut_where_scipy_cuts(method):
    values = alike_networks(np.random.default_rng(3), 9, depth=2)
    results, apart = of_layers(values), (1 - values).mean(axis=0)
    for count in range(1, 10):
        found = clusters(results, count=count, method=method)
        linkage = hierarchy.linkage(squareform(apart, checks=False), method)
        theirs = hierarchy.fcluster(linkage, count, "maxclust")
        ours = found.networks.cluster.to_numpy()
        assert len(set(ours)) == count
        np.testing.assert_array_equal(ours[:, None] == ours, theirs[:, None] == theirs)
        if 1 < count < 9:
            widths = silhouette_samples(apart, theirs, metric="precomputed")
            np.testing.assert_allclose(found.networks.silhouette, widths, atol=1e-12)
            assert found.silhouettes[count] == pytest.approx(widths.mean())
        else:
            assert not found.networks.silhouette.any()
    assert found.silhouettes.index.tolist() == list(range(2, 9))


def test_clusters_do_not_depend_on_the_order_of_representations_or_on_ties():
    same = of_layers(np.ones((1, 5, 5)))
    results, _, _ = planted((3, 4, 2))
    for one, count in ((results, 3), (same, 2)):
        found = clusters(one)
        assert found.networks.cluster.max() == count
        for seed in range(3):
            other = clusters(shuffled(one, seed))
            assert other.networks.equals(found.networks)
            np.testing.assert_array_equal(other.linkage, found.linkage)


def test_networks_of_a_store_fall_into_their_models(whole):
    found = clusters(whole)
    assert found.networks.index.names == ["model", "seed"]
    assert found.networks.cluster.tolist() == [1, 1, 1, 2, 2, 2]
    apart = distances(whole)
    expected = np.mean([apart.loc[("a", 0, layer), ("b", 1, layer)] for layer in LAYERS])
    cophenetic = squareform(hierarchy.cophenet(found.linkage))
    assert cophenetic[0, 4] == pytest.approx(expected, abs=0.2)
    low = clusters(dsvcca.select(whole, x={"layer": "low"}, y={"layer": "low"}))
    assert low.networks.cluster.tolist() == [1, 1, 1, 2, 2, 2]


def test_numbers_and_methods_that_make_no_clusters_are_refused(whole):
    with pytest.raises(
        DsvccaError, match="method='ward' needs more than distances, or is unknown: use one of average,"
    ):
        clusters(whole, method="ward")
    for count in (0, 7, 2.0):
        with pytest.raises(DsvccaError, match=f"count={count}: there are 6 networks, use 1 to 6, or leave it out"):
            clusters(whole, count=count)
    two = dsvcca.select(whole, x={"seed": 0}, y={"seed": 0})
    with pytest.raises(DsvccaError, match="of two networks no number of clusters is better than another: give count="):
        clusters(two)
    assert clusters(two, count=2).networks.cluster.tolist() == [1, 2]


# Groups


def difference(values, codes):
    """Return the mean within groups minus the mean between them, pair by pair."""
    pairs = list(itertools.combinations(range(len(codes)), 2))
    within = [values[a, b] for a, b in pairs if codes[a] == codes[b]]
    between = [values[a, b] for a, b in pairs if codes[a] != codes[b]]
    return np.mean(within) - np.mean(between)


@pytest.mark.parametrize("groups", ["aabb", "aaabb", "aabbcc"])
def test_p_values_are_shares_of_all_assignments(groups):
    values = alike_networks(np.random.default_rng(len(groups)), len(groups), depth=2)
    found = group_test(of_layers(values, model=list(groups)), group="model")
    ways = sorted(set(itertools.permutations(groups)))
    assert found.assignments.tolist() == [len(ways)] * 3
    tests = [*values, values.mean(axis=0)]
    shown = np.asarray([[difference(one, way) for one in tests] for way in ways])
    observed = [difference(one, groups) for one in tests]
    np.testing.assert_allclose(found.difference, observed)
    np.testing.assert_allclose(found.within - found.between, observed)
    np.testing.assert_allclose(found.p_value, (shown >= np.asarray(observed) - 1e-9).mean(axis=0))
    z = ((shown - shown.mean(axis=0)) / shown.std(axis=0))[:, :2]
    mine = z[ways.index(tuple(groups))]
    expected = [(z.max(axis=1) >= one - 1e-9).mean() for one in mine]
    np.testing.assert_allclose(found.p_family, [*expected, found.p_value["all"]])
    assert (found.p_family >= found.p_value).all()


def test_ways_that_are_the_same_count_as_such_whatever_the_rounding():
    rng = np.random.default_rng(0)
    for _ in range(50):  # groups of one size can exchange their names: of 90 ways there are 6 of each kind
        found = group_test(of_layers(alike_networks(rng, 6, depth=3), model=list("aabbcc")), group="model")
        for shares in (found.p_value, found.p_family):
            np.testing.assert_allclose(shares * 15, np.round(shares * 15), atol=1e-9)


def test_groups_of_a_store_are_told_apart(whole):
    found = group_test(whole, group="model")
    assert found.index.tolist() == [*LAYERS, "all"]
    assert (found.within > found.between).all()
    np.testing.assert_allclose(found.p_value, 2 / 20)  # of 3 and 3 networks no smaller one is possible
    frame = dsvcca.to_frame(whole)
    frame = frame[
        (frame.x_layer == frame.y_layer) & ((frame.x_seed != frame.y_seed) | (frame.x_model != frame.y_model))
    ]
    means = frame.groupby(["x_layer", frame.x_model == frame.y_model]).svcca.mean()
    for layer in LAYERS:
        np.testing.assert_allclose(found.loc[layer, ["between", "within"]].astype(float), means[layer])
    apart = group_test(whole, "procrustes_angle", group="model")
    assert (apart.within < apart.between).all()
    assert (apart.difference > 0).all()
    np.testing.assert_allclose(apart.p_value, 2 / 20)
    with pytest.warns(DsvccaWarning, match="differ in seed alone are more alike"):  # they are of one model
        assert (group_test(whole, group="seed").p_value > 0.5).all()


@pytest.mark.parametrize("share", [0.0, 5.0], ids=["own starts", "like starts"])
def test_networks_of_two_groups_that_share_their_start_are_found(share):
    rng = np.random.default_rng(0)
    starts = rng.standard_normal((5, 3))
    warned = 0
    for _ in range(20):
        points = rng.standard_normal((10, 3)) + share * np.concatenate([starts, starts])
        apart = np.linalg.norm(points[:, None] - points[None, :], axis=-1)
        results = of_layers((1 / (1 + apart))[None], group=["a"] * 5 + ["b"] * 5, seed=[*range(5), *range(5)])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = [group_test(results, group="group")]
            found.append(cohesion_test(results, group="group", first="a", second="b"))
        assert all(np.isfinite(one.p_value).all() for one in found)
        assert len({str(one.message) for one in said}) == len(said) / 2 <= 1
        assert all("differ in group alone are more alike than others" in str(one.message) for one in said)
        warned += bool(said)
    assert warned == 0 if not share else warned > 15


def test_groups_that_keep_unlike_numbers_of_directions_are_warned_of(tmp_path):
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((ROWS, 4))
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=ROWS)
    for seed in range(6):
        noise = 0.001 if seed < 3 else 1.0
        x = signal @ rng.standard_normal((4, 12)) + noise * rng.standard_normal((ROWS, 12))
        store.write(x, layer="a", seed=seed, group="few" if seed < 3 else "many")
    plan = dsvcca.plan_comparisons(store, variance=[0.95, 1.0], measures=["svcca", "cka"])
    results = dsvcca.compare(plan, tmp_path / "r.zarr")
    words = r"group='few' keep [34] directions of a, those of group='many' [89](\.\d+)?: .*plan with variance=1.0"
    with pytest.warns(DsvccaWarning, match=words):
        group_test(results, group="group", variance=0.95)
    with pytest.warns(DsvccaWarning, match=words):
        cohesion_test(results, group="group", first="few", second="many", variance=0.95)
    group_test(results, group="group", variance=1.0)
    group_test(results, "cka", group="group", variance=0.95)  # looks at all directions
    group_test(results[["svcca"]], group="group", variance=0.95)  # does not know


def test_random_assignments_count_what_was_observed_too():
    groups = ["a"] * 6 + ["b"] * 6
    values = np.where(np.equal.outer(groups, groups), 0.9, 0.1)[None]
    results = of_layers(values, model=groups)
    exact = group_test(results, group="model")
    assert exact.assignments.tolist() == [924] * 2
    assert exact.p_value.tolist() == [2 / 924] * 2
    few = group_test(results, group="model", permutations=19)
    assert few.assignments.tolist() == [20] * 2
    assert few.p_value.tolist() == [1 / 20] * 2
    middle = of_layers(alike_networks(np.random.default_rng(5), 12), model=groups)
    many = group_test(middle, group="model", permutations=923)
    assert many.p_value["l0"] == pytest.approx(group_test(middle, group="model").p_value["l0"], abs=0.05)
    assert many.equals(group_test(middle, group="model", permutations=923))
    assert not many.p_value.equals(group_test(middle, group="model", permutations=923, seed=1).p_value)


def test_group_tests_do_not_depend_on_the_order_of_representations():
    groups = list("aaaaabbbbb")
    results = of_layers(alike_networks(np.random.default_rng(0), 10, depth=3), model=groups)
    for permutations in (50, 9999):
        found = group_test(results, group="model", permutations=permutations)
        for seed in range(3):
            other = group_test(shuffled(results, seed), group="model", permutations=permutations)
            np.testing.assert_allclose(other.loc[found.index], found, rtol=1e-12)


def test_layers_that_are_all_alike_say_nothing():
    values = np.stack([np.ones((6, 6)), alike_networks(np.random.default_rng(0), 6)[0]])
    found = group_test(of_layers(values, model=list("aaabbb")), group="model")
    assert found.loc["l0", ["difference", "p_value"]].tolist() == [0, 1]
    assert found.p_family["l1"] >= found.p_value["l1"]


@pytest.mark.parametrize(("permutations", "ways"), [(9999, 126), (99, 100)])
def test_p_values_of_networks_that_can_be_exchanged_are_uniform(permutations, ways):
    rng = np.random.default_rng(7)
    p_values, smallest = [], []
    for trial in range(400):
        results = of_layers(alike_networks(rng, 9, depth=2), model=list("aaaabbbbb"))
        found = group_test(results, group="model", permutations=permutations, seed=trial)
        assert found.assignments["all"] == ways
        p_values.append(found.p_value.to_numpy())
        smallest.append(found.p_family[:2].min())
    spread = np.asarray(p_values) - rng.uniform(size=(400, 3)) / ways  # of steps, anywhere on the step
    for one in spread.T:
        assert kstest(one, "uniform").pvalue > 0.01
    for level in (0.05, 0.2):
        assert np.mean(np.asarray(smallest) <= level) < level + 2.5 * np.sqrt(level * (1 - level) / 400)


def test_permuting_pairs_would_find_groups_where_there_are_none():
    """Some networks are like all others, some like none; groups of three and nine mean nothing."""
    rng = np.random.default_rng(11)
    groups = np.repeat([0, 1], [3, 9])
    a, b = np.triu_indices(12, 1)
    same = groups[a] == groups[b]
    by_networks, by_pairs = [], []
    for _ in range(400):
        own, noise = rng.standard_normal(12), 0.3 * rng.standard_normal((12, 12))
        values = own[:, None] + own + noise + noise.T
        results = of_layers(values[None], model=np.asarray(["a", "b"])[groups])
        by_networks.append(group_test(results, group="model").p_value["all"])
        pairs = values[a, b]
        mixed = rng.permuted(np.tile(pairs, (199, 1)), axis=1)
        shown = mixed[:, same].mean(axis=1) - mixed[:, ~same].mean(axis=1)
        by_pairs.append((1 + (shown >= pairs[same].mean() - pairs[~same].mean()).sum()) / 200)
    assert np.mean(np.asarray(by_networks) <= 0.05) <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 400)
    assert np.mean(np.asarray(by_pairs) <= 0.05) > 0.1


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (
            {"model": list("abbb")},
            "model='a' has one network only, with none to be like: compare more, or leave it out",
        ),
        ({"model": list("aaaa")}, "all networks are of model='a': compare two groups or more"),
        ({"model": ["a", "a", "b", ""]}, "seed=3 has no 'model': select"),
        ({"modal": list("aabb")}, "results have no label 'model': did you mean 'modal'"),
    ],
)
def test_groups_that_cannot_be_tested_are_refused(labels, words):
    results = of_layers(alike_networks(np.random.default_rng(0), 4), **labels)
    with pytest.raises(DsvccaError, match=words):
        group_test(results, group="model", network="seed")


def test_a_group_is_a_label_of_networks(whole):
    with pytest.raises(DsvccaError, match="model='a', seed=0 carries layer='low' and layer='mid': a network is of one"):
        group_test(whole, group="layer")
    for permutations in (0, 1.5):
        with pytest.raises(DsvccaError, match=f"permutations={permutations}: give how many, such as 9999"):
            group_test(whole, group="model", permutations=permutations)


# Which group is closer together


def tighter(values, codes, first, second):
    """Return the mean within one group minus the mean within another, pair by pair."""
    pairs = list(itertools.combinations(range(len(codes)), 2))
    own = {g: np.mean([values[a, b] for a, b in pairs if codes[a] == codes[b] == g]) for g in (first, second)}
    return own[first] - own[second]


@pytest.mark.parametrize(("groups", "kept"), [("aabb", 4), ("baabb", 5), ("acabcb", 4)])
def test_cohesion_is_that_of_all_ways_to_exchange_the_two_groups(groups, kept):
    values = alike_networks(np.random.default_rng(len(groups)), len(groups), depth=2)
    found = cohesion_test(of_layers(values, model=list(groups)), group="model", first="a", second="b")
    places = [i for i, one in enumerate(groups) if one != "c"]
    own, tests = [groups[i] for i in places], [one[np.ix_(places, places)] for one in (*values, values.mean(axis=0))]
    ways = sorted(set(itertools.permutations(own)))
    assert len(own) == kept
    assert found.assignments.tolist() == [len(ways)] * 3
    observed = [tighter(one, own, "a", "b") for one in tests]
    shown = np.asarray([[tighter(one, way, "a", "b") for one in tests] for way in ways])
    np.testing.assert_allclose(found.difference, observed)
    np.testing.assert_allclose(found["first"] - found["second"], observed)
    np.testing.assert_allclose(found.p_value, (shown >= np.asarray(observed) - 1e-9).mean(axis=0))
    other = cohesion_test(of_layers(values, model=list(groups)), group="model", first="b", second="a")
    np.testing.assert_allclose(other.difference, -found.difference)
    np.testing.assert_allclose(other["first"], found["second"])


def test_the_closer_group_is_found_also_by_distances():
    codes = np.repeat([0, 1], 5)
    values = np.where(codes[:, None] == codes, np.where(codes[:, None] == 0, 0.9, 0.5), 0.4)[None]
    results = of_layers(values, model=np.asarray(["near", "far"])[codes])
    found = cohesion_test(results, group="model", first="near", second="far")
    assert found.loc["l0"].tolist() == [0.9, 0.5, pytest.approx(0.4), pytest.approx(0), 1 / 252, 1 / 252, 252]
    apart = of_layers(1 - values, "procrustes_angle", model=np.asarray(["near", "far"])[codes])
    found = cohesion_test(apart, "procrustes_angle", group="model", first="near", second="far")
    assert found.loc["l0", ["difference", "p_value"]].tolist() == [pytest.approx(0.4), 1 / 252]
    assert cohesion_test(results, group="model", first="far", second="near").p_value["l0"] == 1


def test_cohesion_of_networks_that_can_be_exchanged_is_uniform():
    rng = np.random.default_rng(3)
    p_values = []
    for _ in range(400):
        results = of_layers(alike_networks(rng, 9), model=list("aaaabbbbb"))
        p_values.append(cohesion_test(results, group="model", first="a", second="b").p_value["l0"])
    assert kstest(np.asarray(p_values) - rng.uniform(size=400) / 126, "uniform").pvalue > 0.01


def test_groups_whose_cohesion_cannot_be_tested_are_refused(whole):
    with pytest.raises(DsvccaError, match="model='c'"):
        cohesion_test(whole, group="model", first="a", second="c")
    with pytest.raises(DsvccaError, match="first and second are both 'a': give two values of the label 'model'"):
        cohesion_test(whole, group="model", first="a", second="a")
    with pytest.raises(DsvccaError, match=r"second=\['b'\]: give one value of the label 'model'"):
        cohesion_test(whole, group="model", first="a", second=["b"])
    for permutations in (0, True, 10**7):
        with pytest.raises(DsvccaError, match=rf"permutations={permutations}: give how many, such as 9999, 1"):
            cohesion_test(whole, group="model", first="a", second="b", permutations=permutations)


def test_the_error_of_cohesion_knows_that_pairs_share_networks():
    """Of similarities a_i + a_j the mean over pairs is twice the mean of a, and so is its error."""
    a = np.random.default_rng(4).standard_normal(11)
    results = of_layers((a[:, None] + a)[None], model=list("xxxxxxyyyyy"))
    found = cohesion_test(results, group="model", first="y", second="x")
    expected = 2 * np.hypot(*(own.std(ddof=1) / np.sqrt(len(own)) for own in (a[:6], a[6:])))
    np.testing.assert_allclose(found.error, [expected, expected])
    few = cohesion_test(
        of_layers((a[:5, None] + a[:5])[None], model=list("xxyyy")), group="model", first="y", second="x"
    )
    assert few.error.isna().all()


def test_cohesion_of_groups_that_lie_apart_is_told_by_its_error():
    """Groups are as close together as each other, but far apart: p is small too often, and errors are not."""
    rng = np.random.default_rng(5)
    small, several = [], []
    for _ in range(150):
        where = 0.3 * rng.standard_normal((10, 10))
        where[5:, 0] += 4
        values = np.exp(-((where[:, None] - where) ** 2).sum(axis=-1) / 4)
        found = cohesion_test(of_layers(values[None], model=list("aaaaabbbbb")), group="model", first="a", second="b")
        small.append(found.p_value["l0"] <= 0.05)
        several.append(found.difference["l0"] > 3 * found.error["l0"])
    assert np.mean(small) > 0.1
    assert np.mean(several) < 0.05
