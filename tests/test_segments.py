"""Representations larger than one task: the numbers of the whole, the same bits whoever did which segment."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import dsvcca
from dsvcca import DsvccaError
from dsvcca.activations.pieces import read_pieces
from dsvcca.clusters.local import local_client
from dsvcca.engine import execute, segments
from dsvcca.workspace.contents import ensure_workspace
from dsvcca.workspace.partials import read_partial, write_partial
from tests.populations import same_bits
from tests.test_dft_engine import maps

ROWS, SPACE = 1500, (6, 5)

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than 5 rows a kept")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = dsvcca.create_store(tmp_path_factory.mktemp("s") / "s.zarr", datapoints=ROWS)
    for seed, channels in enumerate((4, 6, 3)):
        store.write(maps(seed, channels, SPACE, ROWS) + np.float32(5), layer="conv", seed=seed, dims="nhwc")
    return store


def planned(store, **options):
    """Return a plan whose representations are in segments of 256 datapoints."""
    plan = dsvcca.plan_comparisons(store, view="dft", variance=[0.8, 0.95], **options)
    assert plan.segments((0,)) == ((0, ROWS),)
    return replace(plan, segment=256 * 4 * 30 * (13 if options.get("route") == "direct" else 4))


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    return dsvcca.compare(
        dsvcca.plan_comparisons(store, view="dft", variance=[0.8, 0.95]), tmp_path_factory.mktemp("r") / "r"
    )


@pytest.mark.parametrize("route", ["bases", "direct"])
def test_segments_give_the_numbers_of_the_whole(store, whole, tmp_path, route):
    plan = planned(store, route=route)
    assert len(plan.segments(range(3) if route == "direct" else (0,))) == 6
    said = str(plan)
    assert ("read once, side by side in 6 segments" if route == "direct" else "too large for a task") in said
    found = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")
    for name in ("svcca", "r2", "pwcca_x", "pwcca_y"):
        assert np.abs(found[name].values - whole[name].values).max() < (1e-5 if "pwcca" in name else 5e-7)
    assert (found.rank_x.values == whole.rank_x.values).all()
    assert found.attrs["route"] == route
    assert ("float32" in found.attrs["precision"]) == (route == "bases")
    left = {path.name.split("-")[0] for path in (tmp_path / "w").iterdir()}
    assert left == {"pack", "zarr.json", ".lock"}


def test_a_lost_tile_of_the_direct_route_is_made_from_all_representations(store, tmp_path):
    plan = replace(planned(store, route="direct"), panel=1)
    found = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w").load()
    shutil.rmtree(tmp_path / "w")
    (tmp_path / "r.zarr" / "commits" / "1-2.json").unlink()
    assert same_bits(dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w"), found)


@pytest.mark.parametrize("route", [pytest.param("bases", marks=pytest.mark.slow), "direct"])
def test_who_does_which_segment_changes_no_bit(store, tmp_path, route):
    plan = planned(store, route=route)
    one = dsvcca.compare(plan, tmp_path / "r1.zarr", workspace=tmp_path / "w1")
    with local_client(2, "1 GiB") as client:
        two = dsvcca.compare(plan, tmp_path / "r2.zarr", workspace=tmp_path / "w2", client=client)
    assert same_bits(one, two)
    assert same_bits(dsvcca.compare(replace(plan, panel=1), tmp_path / "r3.zarr", workspace=tmp_path / "w1"), one)


@pytest.mark.parametrize(
    ("route", "steps"),
    [
        pytest.param("bases", ("add_up", "choose", "project", "seal"), marks=pytest.mark.slow),
        ("direct", ("add_up", "whiten_sums")),
    ],
)
def test_what_was_interrupted_goes_on_where_it_was(store, tmp_path, route, steps, monkeypatch):
    plan = planned(store, route=route)
    undisturbed = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")
    for name in steps:
        step = getattr(segments, name)
        done: list[str] = []

        def stumbling(task, step=step, done=done):
            if len(done) >= 1:
                raise RuntimeError("the power went out")
            done.append(str(task))
            return step(task)

        workspace = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(segments, name, stumbling)
            if name == "whiten_sums":
                done.append("")
            with pytest.raises(DsvccaError, match="power went out"):
                dsvcca.compare(plan, tmp_path / f"{name}.zarr", workspace=workspace)
        before = {p: p.stat().st_mtime_ns for p in workspace.glob("partial-*/zarr.json")}
        assert before
        redone: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(segments, "write_partial", lambda *a, redone=redone: (redone.append(a[1]), write_partial(*a)))
            again = dsvcca.compare(plan, tmp_path / f"{name}.zarr", workspace=workspace)
        assert same_bits(again, undisturbed)
        assert not {path.parent.name.removeprefix("partial-") for path in before} & set(redone)
        assert not list(workspace.glob("partial-*")) + list(workspace.glob("filling-*"))


def test_a_pack_that_was_half_filled_is_filled_again(store, tmp_path):
    plan = planned(store.select(seed=0))
    workspace = str(tmp_path / "w")
    ensure_workspace(workspace)
    tasks = segments.segment_tasks(plan, workspace, (0,))
    merging = replace(tasks[0], segment=-1)
    for task in tasks:
        segments.add_up(task)
    segments.choose(merging)
    segments.project(tasks[3])
    [filling] = Path(workspace).glob("filling-*")
    (filling / "columns" / "c.0.0").write_bytes(b"half a chunk")
    (filling / "parts").mkdir()
    (filling / "parts" / "zarr.json").write_text("{")
    for task in tasks:
        segments.project(task)
    [receipt] = segments.seal(merging)
    found = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=workspace)
    assert found.svcca.values[0, 0, 0] == pytest.approx(1, abs=1e-6)
    assert receipt.ref.pack in {path.name for path in Path(workspace).iterdir()}


def test_any_stretch_of_datapoints_is_read_as_it_lies(store, tmp_path):
    [representation] = store.select(seed=1).representations
    whole = np.concatenate(list(read_pieces(representation)))
    for start, stop in ((0, 256), (256, 512), (100, 1500), (1499, 1500)):
        np.testing.assert_array_equal(np.concatenate(list(read_pieces(representation, start, stop))), whole[start:stop])
    import zarr

    group = zarr.create_group(tmp_path / "g.zarr")
    group.create_array("a", data=whole[:, 0, 0], chunks=(70, 2))
    [foreign] = dsvcca.open_store(tmp_path / "g.zarr").representations
    for start, stop in ((0, 70), (69, 71), (130, 700)):
        found = np.concatenate(list(read_pieces(foreign, start, stop)))
        np.testing.assert_array_equal(found, whole[start:stop, 0, 0])


def test_partial_results_that_were_changed_or_lost_are_told(tmp_path):
    workspace = str(tmp_path / "w")
    ensure_workspace(workspace)
    write_partial(workspace, "a", {"x": np.arange(6.0).reshape(2, 3), "z": np.ones(2) * 1j}, {"count": 3})
    arrays, about = read_partial(workspace, "a")
    assert about == {"count": 3}
    assert arrays["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert arrays["z"].dtype == np.complex128
    write_partial(workspace, "a", {"x": np.zeros(1)}, {})  # what is there is the same
    assert read_partial(workspace, "a")[1] == {"count": 3}
    chunk = Path(workspace, "partial-a", "numbers", "c.0")
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    with pytest.raises(
        DsvccaError, match=r"is missing or not what was committed .*: remove '.*' and run the same line"
    ):
        read_partial(workspace, "a")
    shutil.rmtree(chunk.parent.parent)
    with pytest.raises(DsvccaError, match="is gone: run the same line again"):
        read_partial(workspace, "a")


def test_numbers_that_are_not_finite_are_told_by_layer_and_datapoint(tmp_path):
    import zarr

    group = zarr.create_group(tmp_path / "g.zarr")
    for seed in range(2):
        x = np.random.default_rng(seed).standard_normal((ROWS, 4, 4, 2)).astype(np.float32)
        if seed == 1:
            x[1300, 2, 1, 1] = np.inf
        group.create_array(f"conv/seed={seed}", data=x)
    store = dsvcca.open_store(tmp_path / "g.zarr", dims="nhwc")
    for route in ("direct", "bases"):
        plan = replace(dsvcca.plan_comparisons(store, view="dft", route=route), segment=256 * 4 * 32 * 2)
        with pytest.raises(DsvccaError, match=r"seed=1.*: 1 numbers are NaN or infinite, the first of datapoint 1300"):
            dsvcca.compare(plan, tmp_path / f"{route}.zarr", workspace=tmp_path / "w")


def test_the_direct_route_is_chosen_by_bytes_and_only_where_it_is_exact(tmp_path):
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=2000)
    for seed in range(3):
        store.write(maps(seed, 8, (8, 8), 2000), layer="conv", seed=seed, dims="nhwc")
    pair = [({"seed": 0}, {"seed": 1})]
    small = 1 << 20

    def direct(pairs=pair, **options):
        return replace(dsvcca.plan_comparisons(store, pairs, **{"view": "dft", **options}), segment=small).direct

    assert direct()
    assert not dsvcca.plan_comparisons(store, pair, view="dft").direct  # nothing is larger than a task
    assert not direct(route="bases")
    assert not direct(variance=1.0)  # the smallest directions would be noise
    assert not direct(rank=5)
    assert not direct(criterion="singular")
    assert direct(view="auto")
    with pytest.raises(DsvccaError, match="route='fast' is unknown: there is 'auto', 'bases', 'direct'"):
        dsvcca.plan_comparisons(store, route="fast")
    store.write(np.random.default_rng(0).standard_normal((2000, 5)), layer="dense", seed=0)
    with pytest.raises(DsvccaError, match="route='direct' takes representations side by side, these meet in views dft"):
        dsvcca.plan_comparisons(store, route="direct")


def test_a_direct_route_that_is_too_coarse_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=500)
    for seed in range(2):
        x = rng.standard_normal((500, 3, 3, 4)) * 10.0 ** -np.arange(0, 8, 2)
        store.write(x, layer="conv", seed=seed, dims="nhwc")
    plan = dsvcca.plan_comparisons(store, view="dft", variance=1.0, route="direct")
    with pytest.raises(DsvccaError, match="too far apart for route='direct'.* use route='bases'"):
        dsvcca.compare(plan, tmp_path / "r.zarr")


def test_layers_that_hold_the_same_numbers_have_one_basis(store, tmp_path):
    twice = dsvcca.create_store(tmp_path / "s.zarr", datapoints=ROWS)
    for step in (0, 10):
        twice.write(store.read(seed=0), layer="frozen", step=step, dims="nhwc")
    twice.write(store.read(seed=1), layer="b", step=0, dims="nhwc")
    plan = planned(twice, route="bases")
    found = dsvcca.compare(plan, tmp_path / "r.zarr", workspace=tmp_path / "w")
    assert len(list((tmp_path / "w").glob("pack-*"))) == 2
    np.testing.assert_allclose(found.svcca.values[:2, :2], 1, atol=1e-6)


@pytest.mark.parametrize("route", ["bases", "direct"])
def test_a_basis_that_was_committed_by_a_task_that_died_is_taken_and_its_partials_removed(store, tmp_path, route):
    plan, workspace = planned(store, route=route), tmp_path / "w"
    ensure_workspace(str(workspace))
    tasks = segments.segment_tasks(plan, str(workspace), range(3))
    last = segments.whiten_sums if route == "direct" else segments.seal
    steps = [segments.add_up] if route == "direct" else [segments.add_up, segments.choose, segments.project]
    merging = [replace(task, segment=-1) for task in tasks if task.segment == 0]
    kept = tmp_path / "kept"
    for step in steps:
        for task in merging if step is segments.choose else tasks:
            execute.guarded(step, task)
    shutil.copytree(workspace, kept)
    first = [execute.guarded(last, task) for task in merging]
    assert [execute.guarded(last, task) for task in merging] == first  # killed before anybody heard of it
    for partial in kept.glob("partial-*"):
        shutil.copytree(partial, workspace / partial.name)
    assert [execute.guarded(last, task) for task in merging] == first
    assert not list(workspace.glob("partial-*"))
    for partial in kept.glob("partial-*"):  # and where the driver died as well
        shutil.copytree(partial, workspace / partial.name)
    dsvcca.compare(plan, tmp_path / "r.zarr", workspace=workspace)
    assert not list(workspace.glob("partial-*"))


def test_the_direct_route_has_the_same_bits_in_any_order_of_arrival(tmp_path):
    rng = np.random.default_rng(0)
    data = {layer: rng.standard_normal((700, p)).astype("f4") for layer, p in (("a", 5), ("b", 17), ("c", 9))}
    found = []
    for order in ("abc", "cab", "bca"):
        store = dsvcca.create_store(tmp_path / f"{order}.zarr", datapoints=700)
        for layer in order:
            store.write(data[layer], layer=layer)
        plan = dsvcca.plan_comparisons(store, route="direct", rank=4)
        results = dsvcca.compare(plan, tmp_path / f"{order}.r", workspace=tmp_path / f"{order}.w")
        at = np.argsort(results.x_layer.values)
        found.append(results.drop_vars(["x", "y"]).isel(x=at, y=at).load())
    assert same_bits(found[0], found[1])
    assert same_bits(found[0], found[2])
