"""Values that other tools gave once (`values_of_tools.json`), and numbers as they define them."""

import json
from pathlib import Path

import numpy as np
import pytest

import dsvcca
from dsvcca.maths.measures import DEFAULT
from dsvcca.maths.variants import VARIANTS

RECORDS = json.loads((Path(__file__).parent / "values_of_tools.json").read_text())
PAGE = (Path(__file__).parents[1] / "docs" / "tools.md").read_text()
SIZES = {
    "plain": (1, 400, 9, 12, 4),
    "centred": (1, 400, 9, 12, 4),
    "noisy": (2, 300, 20, 30, 6),
    "wide": (3, 500, 15, 8, 5),
}


def case(name):
    """Return x and y that the tools were given: with means of neurons, without, of falling spectra, of p > q."""
    seed, n, p, q, shared = SIZES[name]
    r = np.random.RandomState(seed)  # whose stream never changes
    z = r.randn(n, shared)
    x = z @ r.randn(shared, p) + 0.5 * r.randn(n, p)
    y = z @ r.randn(shared, q) + 0.5 * r.randn(n, q)
    if name == "noisy":
        x, y = x @ np.diag(1.5 ** -np.arange(p)), y @ np.diag(1.3 ** -np.arange(q))
    else:
        x, y = x * (1 + r.rand(p)), y * (1 + r.rand(q))
        x, y = x + r.randn(p), y + r.randn(q)
    return (x, y) if name == "plain" else (x - x.mean(0), y - y.mean(0))


def one(name, **options):
    return lambda x, y: dsvcca.measure(x, y, name, **options)[name]


def variant(name, measure, tool):
    return lambda x, y: tool(dsvcca.measure(x, y, variant=name)[measure])


def rho(x, y):
    return dsvcca.cca(x, y).correlations


SAME = {
    ("google/svcca", "rho"): rho,
    ("google/svcca", "mean_cca_threshold_1"): one("svcca"),
    ("google/svcca", "mean_cca"): variant("google", "svcca_google", lambda v: v),
    ("moskomule/anatome", "rho_svd"): rho,
    ("moskomule/anatome", "cka_distance"): lambda x, y: 1 - one("cka")(x, y),
    ("moskomule/anatome", "cka_debiased_distance"): lambda x, y: 1 - one("cka_debiased")(x, y),
    ("moskomule/anatome", "procrustes_half_squared_normalised"): lambda x, y: 1 - np.cos(one("procrustes_angle")(x, y)),
    ("moskomule/anatome", "svcca_distance_svd"): variant("anatome", "svcca_anatome", lambda v: 1 - v),
    ("moskomule/anatome", "pwcca_distance_svd"): variant("anatome", "pwcca_anatome", lambda v: 1 - v),
    ("repsim", "r2_cca"): one("r2"),
    ("repsim", "mean_cca"): one("svcca"),
    ("repsim", "pwcca_mean_of_sides"): one("pwcca_mean"),
    ("repsim", "cka"): one("cka"),
    ("repsim", "r2_lr_mean_of_sides_centred"): lambda x, y: (one("r2_x")(x, y) + one("r2_y")(x, y)) / 2,
    ("ckatorch", "cka_fro_norm"): one("cka"),
    ("ckatorch", "cka_debiased"): one("cka_debiased"),
    ("pytorch-cka", "cka_debiased"): one("cka_debiased"),
    ("cca-zoo", "rho"): rho,
    ("cca-zoo", "mean_cca"): one("svcca"),
    ("mvlearn", "rho"): rho,
    ("ahwillia/netrep", "procrustes"): one("procrustes"),
    ("ahwillia/netrep", "angular"): one("procrustes_angle"),
    ("ahwillia/netrep", "arccos_sum_rho_over_sqrt_pq"): one("cca_angle"),
    ("ahwillia/netrep", "arccos_cka"): lambda x, y: np.arccos(one("cka")(x, y)),
    ("mklabunde/resi", "procrustes"): one("procrustes"),
    ("mklabunde/resi", "r2_lr"): one("r2_x"),
    ("sgstepaniants/GULP", "r2_cca_distance"): lambda x, y: 1 - one("r2")(x, y),
    **{
        ("sgstepaniants/GULP", f"gulp_squared_normalised_{ridge}"): lambda x, y, ridge=ridge: (
            one("gulp", ridge=float(ridge))(x, y) ** 2
        )
        for ridge in ("0", "0.0001", "0.01", "1", "10")
    },
}
"""What gives a tool's number here."""

OTHER = {
    ("google/svcca", "mean_cca"): one("svcca"),
    ("google/svcca", "pwcca"): one("pwcca_x"),
    ("moskomule/anatome", "svcca_distance_svd"): lambda x, y: 1 - dsvcca.svcca(x, y),
    ("moskomule/anatome", "pwcca_distance_svd"): lambda x, y: 1 - one("pwcca_x")(x, y),
    ("mklabunde/resi", "svcca"): dsvcca.svcca,
    ("repsim", "cka_debiased"): one("cka_debiased"),
    ("xeofs", "rho"): rho,
}
"""Numbers that a tool calls so and that are others than those of the definition, in some case at least."""

ROUNDING = {("google/svcca", "noisy"): 1e-8}
"""Where a tool's own rounding (covariances, their roots) is coarser than 1e-10."""


def of(tool, measure):
    return [r for r in RECORDS if (r["tool"], r["measure"]) == (tool, measure) and r["value"] is not None]


@pytest.mark.parametrize(("tool", "measure"), SAME)
def test_numbers_are_those_of_tools_that_compute_the_same(tool, measure):
    found = of(tool, measure)
    assert {record["case"] for record in found} == set(SIZES)
    for record in found:
        value = SAME[tool, measure](*case(record["case"]))
        tolerance = ROUNDING.get((tool, record["case"]), 1e-10)
        np.testing.assert_allclose(value, record["value"], rtol=tolerance, atol=tolerance, err_msg=str(record))


@pytest.mark.parametrize(("tool", "measure"), OTHER)
def test_tools_that_are_said_to_compute_something_else_do(tool, measure):
    worst = max(np.max(np.abs(OTHER[tool, measure](*case(r["case"])) - r["value"])) for r in of(tool, measure))
    assert worst > 1e-3


@pytest.mark.parametrize(
    ("name", "call", "side"), [("centred", "pwcca", "x"), ("noisy", "pwcca", "x"), ("wide", "pwcca_swapped", "y")]
)
def test_pwcca_of_google_is_that_of_activations_without_means(name, call, side):
    [record] = [r for r in of("google/svcca", call) if r["case"] == name]
    found = dsvcca.measure(*case(name), variant="google")
    assert list(found) == ["svcca_google", "pwcca_google_x", "pwcca_google_y"]
    assert found[f"pwcca_google_{side}"] == pytest.approx(record["value"], abs=1e-8)


def test_pwcca_of_google_follows_signs_where_there_are_means():
    """So no definition gives its number: it lies where signs of singular vectors put it, and not where they do not."""
    [record] = [r for r in of("google/svcca", "pwcca") if r["case"] == "plain"]
    [least, most] = next(r["value"] for r in of("google/svcca", "pwcca_signs_min_max") if r["case"] == "plain")
    assert least <= record["value"] <= most
    assert most - least > 0.05
    found = dsvcca.measure(*case("plain"), variant="google")["pwcca_google_x"]
    assert found == pytest.approx(dsvcca.measure(*case("centred"), variant="google")["pwcca_google_x"], abs=1e-12)


def population(tmp_path, name):
    x, y = case(name)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=len(x))
    store.write(x, layer="x")
    store.write(y, layer="y")
    return store


@pytest.mark.parametrize("name", ["centred", "noisy", "wide"])
def test_variants_of_populations_are_those_in_memory(tmp_path, name):
    store = population(tmp_path, name)
    for other in ("google", "singular"):
        plan = dsvcca.plan_comparisons(store, variant=other)
        found = dsvcca.compare(plan, tmp_path / f"{other}.zarr").load()
        own = dsvcca.measure(*case(name), variant=other)
        for measure, value in own.items():
            assert found[measure].values[0, 1] == pytest.approx(value, abs=1e-6), measure
        assert found.attrs["variant"] == f"{other}: {VARIANTS[other].definition}"
        np.testing.assert_array_equal(found[list(own)[1]].values, found[list(own)[2]].values.T)
    plain = dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "plain.zarr")
    assert plain.attrs["variant"] == ""


def test_the_singular_variant_is_its_criterion(tmp_path):
    store = population(tmp_path, "noisy")
    plans = [dsvcca.plan_comparisons(store, **one) for one in ({"variant": "singular"}, {"criterion": "singular"})]
    assert plans[0].rules == plans[1].rules
    assert plans[0].rules[0].criterion == "singular"
    listed = dsvcca.plan_comparisons(store, variant="singular", variance=[0.9, 0.99], measures=["svcca", "cka"])
    assert [rule.variance for rule in listed.rules] == [0.9, 0.99]
    assert listed.measures == ("svcca", "cka")


def test_variants_of_several_variances_and_maps(tmp_path):
    """By frequency the same formulas hold at every frequency."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((200, 1, 1, c)) for c in (5, 8))
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=200)
    store.write(x, layer="x", dims="nhwc")
    store.write(y, layer="y", dims="nhwc")
    names = ["svcca_google", "pwcca_google_x", "pwcca_google_y", "svcca"]
    plan = dsvcca.plan_comparisons(store, measures=names, variance=[0.8, 1.0], view="dft")
    found = dsvcca.compare(plan, tmp_path / "r.zarr").load()
    for place, variance in enumerate((0.8, 1.0)):
        own = dsvcca.measure(x[:, 0, 0], y[:, 0, 0], names, variance=variance)
        for name in names:
            assert found[name].values[0, 1, place] == pytest.approx(own[name], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "googel"}, "variant='googel' is unknown: there are google, singular, anatome"),
        ({"variant": "anatome"}, r"needs activations that are not centred, .*measure\(x, y, variant='anatome'\)"),
        ({"variant": "google", "variance": 0.9}, "variant='google' says variance itself: leave variance= out"),
        ({"variant": "google", "measures": ["cka"]}, "says measures itself"),
        ({"variant": "google", "rank": 3}, "says rank itself"),
        ({"variant": "singular", "criterion": "singular"}, "says criterion itself"),
    ],
)
def test_variants_that_cannot_be_are_refused(tmp_path, options, message):
    with pytest.raises(dsvcca.DsvccaError, match=message):
        dsvcca.plan_comparisons(population(tmp_path, "centred"), **options)


def test_measures_that_are_those_of_every_plan_are_none_that_were_given(tmp_path):
    store = population(tmp_path, "centred")
    said, default = (dsvcca.plan_comparisons(store, variant="google", measures=one) for one in (list(DEFAULT), DEFAULT))
    assert said.measures == default.measures


def test_variants_in_memory_are_checked_as_those_of_plans():
    x, y = case("centred")
    with pytest.raises(dsvcca.DsvccaError, match="variant='google' says variance itself: leave variance= out"):
        dsvcca.measure(x, y, variant="google", variance=0.9)
    with pytest.raises(dsvcca.DsvccaError, match="says measures itself"):
        dsvcca.measure(x, y, ["cka"], variant="google")
    assert dsvcca.measure(x, y, variant="singular") == dsvcca.measure(x, y, variance=0.99, criterion="singular")


def test_anatome_may_keep_nothing():
    x, y = case("centred")
    with pytest.raises(dsvcca.DsvccaError, match="anatome keeps none of it"):
        dsvcca.measure(x + 1e6, y, variant="anatome")
    with pytest.raises(dsvcca.DsvccaError, match="variant='other' is unknown"):
        dsvcca.measure(x, y, variant="other")


def test_the_page_of_tools_names_them_all():
    for record in RECORDS:
        assert f"{record['tool']} {record['version'][:7]}" in PAGE, record["tool"]
    for name in VARIANTS:
        assert f'variant="{name}"' in PAGE
