"""The report: numbers in the page are those of the results, whatever they are called; used in a real browser."""

import csv
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import dsvcca
from dsvcca import DsvccaError
from dsvcca.reports import contents
from dsvcca.reports.packing import packed, tabled
from tests.browser import chromium, opened
from tests.populations import write_population

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&$$\\frac{1}{2}$$"
"""A label that ends scripts, is markup, and what TeX is written with."""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two seeds at three steps, two layers of which one has a hostile name; a failed layer; spectra."""
    folder = tmp_path_factory.mktemp("report")
    store = dsvcca.create_store(folder / "a.zarr", datapoints=300)
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((300, 6))
    for seed in (0, 1):
        for step in (0, 10, 100):
            for layer in ("fc1", HOSTILE):
                x = signal @ rng.standard_normal((6, 9)) * (step / 50) + rng.standard_normal((300, 9))
                store.write(x.astype("f4"), layer=layer, seed=seed, step=step)
    store.write(np.ones((300, 9), "f4"), layer="dead", seed=1, step=100)
    plan = dsvcca.plan_comparisons(store, variance=[0.9, 0.99], keep=["correlations"])
    with pytest.warns(dsvcca.DsvccaWarning, match="could not be compared"):
        return dsvcca.compare(plan, folder / "r.zarr")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def path(results, tmp_path_factory):
    return dsvcca.report(results, tmp_path_factory.mktemp("page") / "report.html", title=f"A title {HOSTILE}")


def said_in(path):
    """Return what a page says as JSON."""
    return json.loads(re.search(r'id="contents">(.*?)</script>', path.read_text(), re.DOTALL)[1])


def all_numbers(page, name, variance=0):
    """Return a measure as the page has it, (x, y)."""
    found = page.evaluate(
        """async ([name, variance]) => {
            const { page, entryOf, numbersOf } = window.dsvcca.inside
            const at = await numbersOf(entryOf(name, variance, 0))
            return page.places[0].map((_, i) => page.places[1].map((_, j) => at(i, j)))
        }""",
        [name, variance],
    )
    return np.asarray(found, dtype=np.float64)


@pytest.mark.parametrize("exact", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_numbers_of_the_page_are_those_of_the_results(browser, results, tmp_path, monkeypatch, exact):
    if not exact:
        monkeypatch.setattr(contents, "EXACT", 5)
    with opened(browser, dsvcca.report(results, tmp_path / "r.html")) as page:
        for name in ("svcca", "pwcca_x", "pwcca_y", "r2", "chance", "chance_edge"):
            for place in range(2):
                expected = results[name].isel(variance=place).values
                np.testing.assert_allclose(all_numbers(page, name, place), expected, atol=1e-7 if exact else 1e-5)
        has_spectra = page.evaluate("window.dsvcca.inside.page.correlations !== null")
    assert has_spectra is exact


def test_the_page_shows_a_pair_and_its_twin_in_the_second_map(browser, path, results, tmp_path):
    with opened(browser, path) as page:
        assert page.inner_text("h1") == f"A title {HOSTILE}"
        assert "failed: " in page.inner_text("#notices")
        box = page.locator("#a-map").bounding_box()
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
        page.wait_for_selector("#a-tip:not([hidden])")
        lines = dict(
            line.inner_text().split(" ", 1)
            for line in page.locator("#a-tip div").all()
            if "kept" not in line.inner_text()
        )
        i, j = page.evaluate("(() => { const { maps } = window.dsvcca.inside; return maps.a.cursor })()")
        assert page.evaluate("window.dsvcca.inside.maps.b.cursor") == [i, j]
        own = results.isel(x=i, y=j).sel(variance=0.99)
        assert lines["chance"] == f"{float(own.chance):.4f}"
        assert lines["ranks"] == f"{int(own.rank_x)} and {int(own.rank_y)}"
        assert f"svcca (0.99 kept) {float(own.svcca):.4f}" in page.inner_text("#a-tip")
        assert f"pwcca_x (0.99 kept) {float(own.pwcca_x):.4f}" in page.inner_text("#a-tip")
        page.mouse.down()
        page.mouse.up()
        page.wait_for_function("document.querySelectorAll('#pair tbody tr').length > 5")
        table = page.inner_text("#pair")
        assert f"{float(own.svcca):.4f}" in table
        assert f"{float(results.svcca.isel(x=i, y=j).sel(variance=0.9)):.4f}" in table
        drawn = page.evaluate("window.dsvcca.inside.model('spectrum_line').data.value")
        rho = own.correlations.values
        np.testing.assert_allclose(drawn, rho[np.isfinite(rho)], atol=1e-4)
        edge = page.evaluate("window.dsvcca.inside.model('spectrum_line').data.chance[0]")
        assert edge == pytest.approx(float(own.chance_edge), abs=1e-6)
        page.screenshot(path=tmp_path / "page.png", full_page=True)


def shape_of(page, name="a"):
    return page.evaluate(f"Object.values(window.dsvcca.inside.maps.{name}.places).map((one) => one.length)")


def test_rows_and_columns_are_chosen_by_labels(browser, path, results):
    with opened(browser, path) as page:
        assert shape_of(page) == shape_of(page, "b") == [13, 13]
        page.click("#a-choice summary")
        page.get_by_role("group", name="Rows (x)").get_by_label("step").select_option(["10", "100"])
        assert shape_of(page) == shape_of(page, "b") == [9, 9]
        page.uncheck("#a-square")
        page.get_by_role("group", name="Columns (y)").get_by_label("layer").select_option([HOSTILE])
        page.wait_for_function("window.dsvcca.inside.maps.a.places.columns.length === 6")
        assert shape_of(page) == [9, 6]
        page.uncheck("#linked")
        page.wait_for_function("window.dsvcca.inside.maps.b.places.rows.length === 13")
        page.select_option("#b-order", label="by layer")
        page.wait_for_timeout(100)
        order = page.evaluate("window.dsvcca.inside.maps.b.places.rows")
        names = results.x_layer.values[order].tolist()
        assert names == sorted(names, key=["fc1", HOSTILE, "dead"].index)
        page.select_option("#a-measure", "chance")
        page.select_option("#a-variance", label="0.9")
        page.wait_for_function("window.dsvcca.inside.maps.a.entry.name === 'chance'")
        assert "not known" in page.inner_text("#a-legend")


def test_what_is_shown_is_saved(browser, path, results, tmp_path):
    with opened(browser, path, accept_downloads=True) as page:
        page.click("#a-choice summary")
        page.get_by_role("group", name="Rows (x)").get_by_label("seed").select_option("0")
        with page.expect_download() as download:
            page.click("#a-csv")
        download.value.save_as(tmp_path / "numbers.csv")
        with page.expect_download() as download:
            page.click("#a-png")
        download.value.save_as(tmp_path / "picture.png")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "numbers.csv").read_text(), newline="")))
    frame = dsvcca.to_frame(dsvcca.select(results, x={"seed": 0}, y={"seed": 0}).sel(variance=[0.99]))
    assert len(rows) == len(frame) == 21
    key = ["x_layer", "x_step", "y_layer", "y_step"]
    expected = {tuple(map(str, pair)): row for pair, row in zip(frame[key].values, frame.itertuples(), strict=True)}
    for row in rows:
        other = (
            expected.get(tuple(row[name] for name in key)) or expected[tuple(row[name] for name in key[2:] + key[:2])]
        )
        assert float(row["svcca (0.99 kept)"]) == pytest.approx(other.svcca, abs=1e-6)
        assert row["view"] == other.view
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_keys_move_the_cursor_and_say_the_pair(browser, path, results):
    with opened(browser, path) as page:
        page.focus("#a-map")
        for key in ("ArrowDown", "ArrowDown", "ArrowRight", "End", "ArrowLeft", "ArrowLeft"):
            page.keyboard.press(key)
        assert page.evaluate("window.dsvcca.inside.maps.a.cursor") == [1, 10]
        own = results.isel(x=1, y=10).sel(variance=0.99)
        assert f"svcca (0.99 kept) {float(own.svcca):.4f}, chance {float(own.chance):.4f}" in page.inner_text("#live")
        page.keyboard.press("Enter")
        page.wait_for_function("document.querySelectorAll('#pair tbody tr').length > 5")
        before = page.evaluate("window.dsvcca.inside.maps.a.seen('rows')")
        page.keyboard.press("+")
        page.wait_for_timeout(100)
        closer = page.evaluate("[...'ab'].map((name) => window.dsvcca.inside.maps[name].seen('rows'))")
        assert closer[0] == closer[1] != before
        page.keyboard.press("0")
        page.wait_for_timeout(100)
        assert page.evaluate("window.dsvcca.inside.maps.b.seen('rows')") == before
        reached = set()
        for _ in range(40):  # everything can be reached by Tab
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id"))
        assert {"a-csv", "b-measure", "linked", "b-map", "b-png"} <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(browser, path, scheme):
    with opened(browser, path, color_scheme=scheme) as page:
        theme = "document.documentElement.dataset.theme"
        assert page.evaluate(theme) == scheme
        colours = page.evaluate(
            """() => {
                const { model, style } = window.dsvcca.inside
                const named = model("a").below[0].major_label_text_color
                return [style("--text"), style("--raised"), named, style("--quiet")]
            }"""
        )

        def light(colour):
            parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
            linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        for text in (colours[0], colours[2], colours[3]):
            bright, dark = sorted([light(text), light(colours[1])], reverse=True)
            assert (bright + 0.05) / (dark + 0.05) > 4.5  # WCAG 2.2, AA
        page.select_option("#theme", "dark" if scheme == "light" else "light")
        assert page.evaluate(theme) != scheme


def test_both_sides_may_differ(browser, results, tmp_path):
    some = dsvcca.select(results, x={"seed": 0, "step": 100}, y={"seed": 1}).sel(variance=0.99)
    with opened(browser, dsvcca.report(some, tmp_path / "r.html", measures="pwcca_y")) as page:
        np.testing.assert_allclose(all_numbers(page, "pwcca_y"), some.pwcca_y.values, atol=1e-7)
        assert shape_of(page) == [2, 7]
        assert page.evaluate("document.getElementById('a-variance-label').hidden")
        assert "The results hold more: svcca" in page.inner_text("#notices")


def test_numbers_come_back_from_what_was_packed():
    rng = np.random.default_rng(0)
    symmetric = rng.random((7, 7)) + 0
    symmetric = (symmetric + symmetric.T) / 2
    assert packed(symmetric, same=True, exactly=True)["form"] == "triangle"
    assert packed(symmetric, same=False, exactly=True)["form"] == "whole"
    symmetric[2, 3] += 1e-9
    assert packed(symmetric, same=True, exactly=True)["form"] == "whole"
    constant = packed(np.full((3, 3), 0.25), same=True, exactly=False)
    assert constant["low"] == 0.25
    kinds = rng.integers(0, 3, 40), rng.integers(0, 2, 30)
    views = rng.integers(0, 2, (40, 30))
    numbers = np.where(views, np.add.outer(kinds[0] * 10.0, kinds[1]), np.nan)
    found = tabled(numbers, views, kinds)
    assert found is not None
    assert found["shape"] == [2, 3, 2]
    numbers[np.argwhere(views)[0][0], np.argwhere(views)[0][1]] += 1
    assert tabled(numbers, views, kinds) is None


def test_what_has_no_room_is_left_out_and_said(results, tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "ROOM", 1500)
    said = said_in(dsvcca.report(results, tmp_path / "r.html"))
    assert "svcca" in {one["name"] for one in said["numbers"]}
    assert "correlations" in said["left_out"]
    assert "r2" in said["left_out"]
    asked = said_in(dsvcca.report(results, tmp_path / "r.html", measures=["r2", "pwcca_x"]))
    assert [one["name"] for one in asked["numbers"]] == ["r2", "r2", "pwcca_x", "pwcca_x", "chance", "chance"]


def test_of_a_measure_all_variances_are_on_the_page_or_none(results, tmp_path, monkeypatch):
    """Wherever the room ends: the page offers every variance of what it offers."""
    for room in range(500, 9000, 1700):
        monkeypatch.setattr(contents, "ROOM", room)
        said = said_in(dsvcca.report(results, tmp_path / "r.html"))
        there = [one["name"] for one in said["numbers"]]
        assert all(there.count(name) == 2 for name in there)
        assert set(there).isdisjoint(said["left_out"])
        assert {*there, *said["left_out"]} >= {"svcca", "pwcca_x", "pwcca_y", "r2", "chance"}


def test_what_no_report_can_be_made_of_is_refused(results, tmp_path):
    with pytest.raises(DsvccaError, match=r"results have no measure 'cka': there is 'svcca'"):
        dsvcca.report(results, tmp_path / "r.html", measures=["cka"])
    with pytest.raises(DsvccaError, match=r"measures is empty"):
        dsvcca.report(results, tmp_path / "r.html", measures=[])
    with pytest.raises(DsvccaError, match=r"is a folder: name a file in it"):
        dsvcca.report(results, tmp_path)
    with pytest.raises(DsvccaError, match=r"there is no folder '.*nowhere': make it first"):
        dsvcca.report(results, tmp_path / "nowhere" / "r.html")
    many = results.isel(x=np.zeros(5200, int), y=[0])
    with pytest.raises(DsvccaError, match=r"5,200 representations on a side, and a page holds 5,000"):
        dsvcca.report(many, tmp_path / "r.html")
    with pytest.raises(DsvccaError, match=r"a str was given instead of results"):
        dsvcca.report("results.zarr", tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_a_report_replaces_nothing_but_files_that_may_be_written(results, tmp_path):
    """Whoever is root may replace a device, which others then write to in vain."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DsvccaError, match="is no file but a device, or a pipe: name a file"):
        dsvcca.report(results, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "real.html").write_text("")
    (tmp_path / "link.html").symlink_to("real.html")
    assert dsvcca.report(results, tmp_path / "link.html") == tmp_path / "link.html"
    assert (tmp_path / "link.html").is_symlink()
    assert len((tmp_path / "real.html").read_text()) > 10_000
    with pytest.raises(DsvccaError, match="a report cannot be written to .*null.*: give the path of a file"):
        dsvcca.report(results, "x\0y.html")
    with pytest.raises(DsvccaError, match="too long"):
        dsvcca.report(results, tmp_path / ("x" * 300))


def test_a_pair_that_was_picked_stays_it_wherever_it_stands(browser, path, results):
    with opened(browser, path) as page:
        page.evaluate("document.getElementById('a-map').scrollIntoView()")
        page.focus("#a-map")
        for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight", "Enter"):
            page.keyboard.press(key)
        page.wait_for_function("document.querySelectorAll('#pair tbody tr').length > 5")
        pair = page.evaluate("window.dsvcca.inside.maps.a.pair")
        places = "window.dsvcca.inside.maps.a.places"
        page.select_option("#a-order", label="by layer")
        page.wait_for_function(f"{places}.rows[1] !== 1")
        for map_ in "ab":
            r, c = page.evaluate(f"window.dsvcca.inside.maps.{map_}.picked")
            assert [page.evaluate(f"{places}.rows[{r}]"), page.evaluate(f"{places}.columns[{c}]")] == pair
        page.select_option("#a-measure", "pwcca_x")
        page.wait_for_function("document.getElementById('profile-caption').textContent.startsWith('pwcca_x of')")
        drawn = page.evaluate("window.dsvcca.inside.model('profile_line').data.value")
        row = results.pwcca_x.sel(variance=0.99).values[pair[0]][page.evaluate(f"{places}.columns")]
        np.testing.assert_allclose(np.array(drawn, float), row, atol=1e-6)
        page.click("#a-choice summary")
        chosen = page.get_by_role("group", name="Rows (x)").get_by_label("step")
        gone = [step for step in ("0", "10", "100") if float(step) != results.x_step.values[pair[0]]]
        chosen.select_option(gone)
        page.wait_for_function("window.dsvcca.inside.maps.a.picked === null")


def test_of_many_representations_runs_are_named_by_all_that_they_share(browser, tmp_path):
    store = dsvcca.create_store(tmp_path / "a.zarr", datapoints=60)
    rng = np.random.default_rng(0)
    for model in "AB":
        for seed in (0, 1):
            for step in (0, 10, 20):
                for layer in range(6):
                    x = rng.standard_normal((60, 3))
                    store.write(x, layer=f"fc{layer}", model=model, seed=seed, step=step)
    results = dsvcca.compare(dsvcca.plan_comparisons(store, measures=["svcca"]), tmp_path / "r.zarr")
    with opened(browser, dsvcca.report(results, tmp_path / "r.html")) as page:
        names = page.evaluate("[...window.dsvcca.inside.maps.a.rows_names.values()]")
        assert names[:2] == ["step 0 · model A · seed 0", "step 10 · model A · seed 0"]
        assert len(names) == len(set(names)) == 12


def test_p_values_too_small_for_float32_keep_their_digits():
    values = np.array([[1.0, 1.2345678e-216], [1.2345678e-216, 0.25]])
    one = packed(values, same=True, exactly=True)
    assert one["type"] == "float64"
    assert packed(values.clip(1e-30), same=True, exactly=True)["type"] == "float32"
    kinds = np.arange(40)
    table = tabled(0.0116582621 + np.zeros((40, 40)), np.ones((40, 40), int), (kinds * 0, kinds * 0))
    assert table["numbers"][1] == 0.011658262


def test_targets_alone_have_no_report(tmp_path):
    store, _ = write_population(tmp_path / "a.zarr")
    plan = dsvcca.plan_comparisons(store, "to_targets", targets=np.ones((600, 1)) * np.arange(600)[:, None])
    with pytest.raises(DsvccaError, match=r"compare no pairs of layers, which is what a report shows"):
        dsvcca.report(dsvcca.compare(plan, tmp_path / "r.zarr"), tmp_path / "r.html")


def test_the_command_writes_a_report(tmp_path):
    store, _ = write_population(tmp_path / "a.zarr")
    dsvcca.compare(dsvcca.plan_comparisons(store), tmp_path / "r.zarr")
    line = [sys.executable, "-m", "dsvcca", "report", "r.zarr", "--where", "seed=0,2", "--measure", "svcca"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\S*report\.html: [\d.]+ MiB, 8 x 8 representations\n", done.stdout)
    assert done.stderr == ""
    said = said_in(tmp_path / "report.html")
    assert said["title"] == "r.zarr"
    assert said["x"][said["labels"].index("seed")]["values"] == ["0", "2"]
    wrong = subprocess.run([*line[:5], "x/y.html"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
