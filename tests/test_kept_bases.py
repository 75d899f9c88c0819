"""Bases in place of activations: the same bits, clear refusals, and nothing lost whoever is killed when."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

import dsvcca
from dsvcca import DsvccaError, DsvccaWarning
from dsvcca.activations.pieces import read_pieces
from dsvcca.cli import app
from dsvcca.clusters.local import local_client
from dsvcca.engine.keeping import keep, wanted_bases
from dsvcca.storage.records import signed
from dsvcca.workspace.contents import find_bases
from tests.populations import activations, same_bits

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fewer than 5 rows a kept direction"),
    pytest.mark.filterwarnings("ignore:center='dc'"),
    pytest.mark.filterwarnings("ignore:.* datapoints are counted"),
    pytest.mark.filterwarnings("ignore:.*nothing is saved by it"),
]

N = 300
MEASURES = ["svcca", "pwcca_x", "pwcca_y", "r2", "cka", "chance", "svcca_error"]


def fault(case, outcome):
    return pytest.mark.fault("storage", case, outcome)


def maps(seed, size=4, channels=3, n=N):
    """Return maps (n, size, size, channels) that share something with those of other seeds."""
    shared = np.random.default_rng(0).standard_normal((n, 5))
    rng = np.random.default_rng(seed + 1)
    own = rng.standard_normal((n, size, size, channels))
    seen = np.einsum("nk,khwc->nhwc", shared, rng.standard_normal((5, size, size, channels)))
    return (own + seen).astype("float32")


def sequences(seed):
    return maps(seed, size=5)[:, :, 0]


def write(store, seed, layers, **options):
    """Write some layers of a network."""
    for layer in layers:
        if layer == "fc":
            store.write(activations(seed, n=N, p=16), layer=layer, seed=seed, **options)
        elif layer == "lstm":
            store.write(sequences(seed), layer=layer, seed=seed, dims="ntd", **options)
        else:
            size = {"conv": 4, "small": 2}[layer]
            dims = ("datapoint", "height", "width", "channel")
            store.write(maps(seed, size), layer=layer, seed=seed, dims=dims, **options)


@pytest.fixture
def store(tmp_path):
    return dsvcca.create_store(tmp_path / "s.zarr", datapoints=N)


@pytest.fixture
def dense(store):
    for seed in range(3):
        write(store, seed, ["fc"])
    return store


@pytest.fixture
def many(dense):
    """Six dense layers, of whose bases some share a pack."""
    for seed in range(3, 6):
        write(dense, seed, ["fc"])
    return dense


def arrays_of(store):
    """Return the folders of activations that are on the disk."""
    return sorted(
        os.path.relpath(path, store.path) for path, _, _ in os.walk(store.path) if path.endswith("activations")
    )


def compared(store, out, workspace=None, **options):
    return dsvcca.compare(dsvcca.plan_comparisons(store, **options), out, workspace=workspace).load()


def pack_of(store):
    """Return the pack that holds most bases, and how many."""
    packs = Counter(receipts[0].ref.pack for receipts in find_bases(f"{store.path}.workspace").values())
    [(pack, count)] = packs.most_common(1)
    return os.path.join(f"{store.path}.workspace", pack), count


def flip(path, at=1000):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


# The same numbers


@pytest.mark.parametrize(
    ("layers", "kept", "planned"),
    [
        (["fc"], {}, {}),
        (["fc", "conv", "lstm"], {}, {}),
        (["fc", "conv", "lstm"], {"view": "mean", "variance": 0.9}, {"view": "mean", "variance": 0.9}),
        (["conv"], {"view": ["max", "dft"], "center": "dc"}, {"view": "dft", "center": "dc"}),
        (["conv", "small"], {"view": "dft"}, {"view": "dft"}),
        (["lstm"], {"view": "each_position"}, {"pairs": "to_last_position"}),
        (["conv"], {"view": "flatten", "route": "dual"}, {"view": "flatten", "route": "dual"}),
        (["fc", "conv"], {"view": "mean", "rank": 5}, {"view": "mean", "rank": 5}),
        (["conv"], {"view": "flatten", "criterion": "singular"}, {"view": "flatten", "variant": "singular"}),
    ],
)
def test_numbers_from_kept_bases_are_those_of_the_activations(store, tmp_path, layers, kept, planned):
    for seed in range(2):
        write(store, seed, layers)
    before = compared(store, tmp_path / "r.zarr", tmp_path / "w", measures=MEASURES, **planned)
    dsvcca.keep_bases(store, **kept)
    assert arrays_of(store) == []
    assert same_bits(before, compared(store, tmp_path / "r2.zarr", measures=MEASURES, **planned))


@pytest.mark.parametrize("variance", [0.5, 0.9, [0.8, 0.99]])
def test_smaller_shares_are_in_the_kept_ones(store, tmp_path, variance):
    for seed in range(2):
        write(store, seed, ["fc", "conv"])
    before = compared(store, tmp_path / "r.zarr", tmp_path / "w", variance=variance)
    dsvcca.keep_bases(store, variance=1.0)
    after = compared(store, tmp_path / "r2.zarr", variance=variance)
    assert np.array_equal(before.rank_x, after.rank_x)
    for name in before.data_vars:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-10, atol=1e-10)


def test_old_and_new_representations_are_compared_and_added_to_results(dense, tmp_path):
    out = tmp_path / "r.zarr"
    compared(dense.select(seed=[0, 1]), out)
    dsvcca.keep_bases(dense.select(seed=[0, 1]))
    write(dense, 3, ["fc"])
    grown = compared(dense, out)
    fresh = dsvcca.create_store(tmp_path / "t.zarr", datapoints=N)
    for seed in range(4):
        write(fresh, seed, ["fc"])
    assert same_bits(grown, compared(fresh, tmp_path / "r2.zarr"))
    assert arrays_of(dense) == ["seed=2,layer=fc/activations", "seed=3,layer=fc/activations"]
    dsvcca.keep_bases(dense)
    assert same_bits(grown, compared(dense, out))


def test_directions_and_targets_come_from_kept_bases(dense, tmp_path):
    write(dense, 0, ["conv"])
    y = np.random.default_rng(5).standard_normal((N, 2))
    before = compared(dense, tmp_path / "r.zarr", tmp_path / "w", targets=y)
    pair = {"seed": 0, "layer": "fc"}, {"seed": 1, "layer": "fc"}
    of_pair = dsvcca.directions(dense, *pair, workspace=tmp_path / "w")
    dsvcca.keep_bases(dense)
    assert same_bits(before, compared(dense, tmp_path / "r2.zarr", targets=y))
    assert np.array_equal(of_pair.x_directions, dsvcca.directions(dense, *pair).x_directions)


def test_workers_make_and_use_kept_bases(dense, tmp_path):
    before = compared(dense, tmp_path / "r.zarr", tmp_path / "w")
    with local_client(1, "1.5 GiB") as client:
        dsvcca.keep_bases(dense, client=client)
        found = dsvcca.compare(dsvcca.plan_comparisons(dense), tmp_path / "r2.zarr", client=client).load()
    assert arrays_of(dense) == []
    assert same_bits(before, found)


# What is refused, and when


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"view": "mean", "variance": 0.995}, r"seed=0, layer='conv' and 2 more: .* needs view 'mean' with .*99.5 %"),
        ({"view": "dft"}, r"needs view 'dft' with .*what was kept is view 'mean' with fewest directions holding 99 %"),
        ({}, "needs view 'dft'"),
        ({"view": "mean", "rank": 2}, "needs view 'mean' with the 2 largest directions"),
        ({"view": "mean", "variant": "singular"}, "99 % of the sum of singular values"),
        ({"view": "mean", "route": "dual"}, "route='dual'"),
        (
            {"view": "mean", "route": "direct"},
            r"route='direct' reads them: .* or write it again with if_exists='replace",
        ),
    ],
)
def test_a_plan_that_needs_more_than_was_kept_is_refused_when_it_is_made(store, options, said):
    for seed in range(3):
        write(store, seed, ["conv"])
    dsvcca.keep_bases(store, view="mean")
    with pytest.raises(DsvccaError, match=said):
        dsvcca.plan_comparisons(store, **options)
    assert dsvcca.plan_comparisons(store, view="mean", variance=0.5).pairs.count == 6


def test_a_center_that_was_not_kept_is_refused(store):
    write(store, 0, ["conv"])
    dsvcca.keep_bases(store, view="dft")
    with pytest.raises(DsvccaError, match=r"needs view 'dft' .*, center='dc'; what was kept is view 'dft' with"):
        dsvcca.plan_comparisons(store, center="dc")


def test_each_position_is_refused_where_positions_were_kept(store):
    write(store, 0, ["lstm"])
    dsvcca.keep_bases(store)
    with pytest.raises(DsvccaError, match=r"position=0.* and 4 more: .*needs view 'each_position'.*view 'positions'"):
        dsvcca.plan_comparisons(store, "to_last_position")


def test_maps_of_other_sizes_are_refused_unless_they_were_there(store):
    write(store, 0, ["conv"])
    dsvcca.keep_bases(store, view="dft")
    write(store, 0, ["small"])
    with pytest.raises(DsvccaError, match="needs view 'alias 2x2'"):
        dsvcca.plan_comparisons(store, view="dft")
    dsvcca.keep_bases(store, view="dft")  # what is new is kept
    assert store.index.bases.tolist() == ["dft", "dft"]


def test_a_layer_that_was_dropped_is_no_target(dense):
    dsvcca.keep_bases(dense.select(seed=0))
    with pytest.raises(DsvccaError, match=r"target .*seed=0.* its activations were dropped, .*give an array"):
        dsvcca.plan_comparisons(dense, "to_targets", targets={"seed": 0, "layer": "fc"})


def test_a_mask_comes_before_bases_are_kept(store):
    write(store, 0, ["lstm"])
    dsvcca.keep_bases(store)
    valid = np.ones((N, 5), dtype=bool)
    valid[:, 4] = False
    with pytest.raises(DsvccaError, match=r"seed=0, layer='lstm': its activations were dropped, .*hold all positions"):
        store.write_mask(valid)
    store.write(sequences(0), layer="lstm", seed=0, dims="ntd", if_exists="replace")
    store.write_mask(valid)
    dsvcca.keep_bases(store)
    store.write_mask(valid)  # the same one
    assert dsvcca.plan_comparisons(store).representations[0].mask.rows == 4 * N


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"view": "man"}, "view='man' is unknown: did you mean 'mean'"),
        ({"view": []}, "view='' is unknown"),
        ({"variance": [0.9, 0.99]}, "the largest share holds all smaller ones"),
        ({"variance": 2.0}, r"must lie in \(0, 1\]"),
        ({"variance": 0.9, "rank": 3}, "were both given"),
        ({"route": "direct"}, "route='direct' keeps no bases"),
        ({"center": "x"}, "center='x' is unknown"),
        ({"memory": "much"}, "is no amount of memory"),
        ({"memory": "200 MiB"}, "is too little"),
        ({"view": "each_position"}, "needs sequences"),
    ],
)
def test_options_are_looked_at_before_anything_is_done(dense, options, said):
    with pytest.raises(DsvccaError, match=said):
        dsvcca.keep_bases(dense, **options)
    assert len(arrays_of(dense)) == 3
    assert not os.path.exists(f"{dense.path}.workspace")


def test_what_is_no_store_of_ours_is_refused(tmp_path):
    with pytest.raises(DsvccaError, match="a str was given instead of a store"):
        dsvcca.keep_bases("s.zarr")
    zarr.create_group(tmp_path / "g.zarr").create_array("a", data=activations(0))
    with pytest.raises(DsvccaError, match="was written by others and is only read: import it"):
        dsvcca.keep_bases(dsvcca.open_store(tmp_path / "g.zarr"))


def test_more_than_was_kept_is_refused_before_others_are_dropped(dense):
    dsvcca.keep_bases(dense.select(seed=0))
    with pytest.raises(DsvccaError, match="seed=0, layer='fc': activations were dropped, and this plan needs"):
        dsvcca.keep_bases(dense, variance=1.0)
    assert len(arrays_of(dense)) == 2


# What is left in the store


def test_a_dropped_representation_stays_in_the_store(dense):
    before = dense.index
    dsvcca.keep_bases(dense.select(seed=[0, 2]))
    for opened in (dense, dsvcca.open_store(dense.path), dense.select(layer="fc").everything):
        now = opened.index
        assert now[["seed", "layer", "shape", "dims", "dtype"]].equals(
            before[["seed", "layer", "shape", "dims", "dtype"]]
        )
        assert now.bases.tolist() == ["neurons", "", "neurons"]
        assert now.bytes[1] == before.bytes[1]
        assert opened.verify().empty
        with pytest.raises(
            DsvccaError, match=r"seed=0, layer='fc': its activations were dropped, what is left are bases"
        ):
            opened.read(seed=0)
        assert opened.read(seed=1).shape == (N, 16)
    [old], [new] = dense.select(seed=1).representations, dense.select(seed=0).representations
    assert new.written < old.written
    assert new.labels == {"seed": 0, "layer": "fc"}


@pytest.mark.filterwarnings("default:.*nothing is saved by it")
def test_bases_that_take_more_room_than_activations_are_warned_of(store):
    write(store, 0, ["conv"])
    with pytest.warns(DsvccaWarning, match="of activations were dropped, .* of bases are kept in .*: nothing is saved"):
        dsvcca.keep_bases(store, view="dft", variance=1.0)
    write(store, 1, ["conv"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dsvcca.keep_bases(store.select(seed=1), view="mean")
    sizes = store.index.bytes
    assert sizes[0] > N * 4 * 4 * 3 * 4 > 5 * sizes[1]


def test_bytes_are_those_of_the_bases(store):
    write(store, 0, ["fc"])
    dsvcca.keep_bases(store, rank=3)
    columns, about = N * 3 * 4, 8 * (16 + 16 + 16 + N + 3 * (3 + 1 + 16))
    assert store.index.bytes.tolist() == [columns + about]
    pack, _ = pack_of(store)
    files = sum(os.path.getsize(os.path.join(path, name)) for path, _, names in os.walk(pack) for name in names)
    assert columns + about < files < columns + about + 8192


def test_the_same_line_again_does_nothing(dense):
    dsvcca.keep_bases(dense)
    before = sorted((path, os.stat(path).st_mtime_ns) for path, _, _ in os.walk(os.path.dirname(dense.path)))
    dsvcca.keep_bases(dense)
    dsvcca.keep_bases(dense, variance=0.9)
    assert sorted((path, os.stat(path).st_mtime_ns) for path, _, _ in os.walk(os.path.dirname(dense.path))) == before


def test_skip_takes_it_as_there_and_replace_writes_it_anew(dense, tmp_path):
    dsvcca.keep_bases(dense)
    x = activations(9, n=N, p=16)
    assert dense.write(x, layer="fc", seed=0, if_exists="skip") is False
    with pytest.raises(DsvccaError, match="already: pass if_exists='skip'"):
        dense.write(x, layer="fc", seed=0)
    assert dense.write(x, layer="fc", seed=0, if_exists="replace")
    assert np.array_equal(dense.read(seed=0), x)
    assert dense.index.bases.tolist() == ["", "neurons", "neurons"]
    assert dense.index.seed.tolist() == [0, 1, 2]
    dsvcca.keep_bases(dense)
    assert dense.index.bases.tolist() == ["neurons"] * 3
    assert arrays_of(dense) == []
    fresh = dsvcca.create_store(tmp_path / "t.zarr", datapoints=N)
    for seed, own in enumerate((x, activations(1, n=N, p=16), activations(2, n=N, p=16))):
        fresh.write(own, layer="fc", seed=seed)
    assert same_bits(compared(dense, tmp_path / "r.zarr"), compared(fresh, tmp_path / "r2.zarr"))


def test_who_has_the_store_open_sees_what_was_dropped(dense, tmp_path):
    other = dsvcca.open_store(dense.path)
    plan, wider = dsvcca.plan_comparisons(other), dsvcca.plan_comparisons(other, variance=1.0)
    stale = other.representations[0]
    code = f"import dsvcca; dsvcca.keep_bases(dsvcca.open_store({dense.path!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert np.isfinite(dsvcca.compare(plan, tmp_path / "r.zarr").svcca).all()  # bases are there
    with pytest.raises(DsvccaError, match="its activations were dropped since the store was listed"):
        list(read_pieces(stale))
    with pytest.raises(DsvccaError, match="were dropped since the store was listed, .*plan again"):
        dsvcca.compare(wider, tmp_path / "r2.zarr")
    assert other.index.bases.tolist() == ["neurons"] * 3
    with pytest.raises(DsvccaError, match="activations were dropped, and this plan needs"):
        dsvcca.plan_comparisons(other, variance=1.0)


def test_one_that_was_written_again_meanwhile_is_left_alone(dense):
    stale = dsvcca.open_store(dense.path).representations
    x = activations(9, n=N, p=16)
    dense.write(x, layer="fc", seed=0, if_exists="replace")
    [reason] = keep(dense, stale, wanted_bases())
    assert "seed=0, layer='fc': was written, or dropped, by another process meanwhile" in reason
    assert np.array_equal(dense.read(seed=0), x)
    assert dense.index.bases.tolist() == ["", "neurons", "neurons"]


def test_a_layer_without_a_basis_keeps_its_activations(dense):
    dense.write(np.ones((N, 4), "float32"), layer="dead", seed=0)
    with pytest.raises(DsvccaError, match=r"1 of 4 representations have no basis .*\nseed=0, layer='dead': .*constant"):
        dsvcca.keep_bases(dense)
    assert len(arrays_of(dense)) == 1
    assert dense.read(layer="dead").shape == (N, 4)
    with pytest.raises(DsvccaError, match="1 of 4"):
        dsvcca.keep_bases(dense)


def test_representations_that_hold_the_same_share_a_basis(store, tmp_path):
    x = activations(0, n=N, p=16)
    for layer in ("a", "b"):
        store.write(x, layer=layer)
    dsvcca.keep_bases(store.select(layer="a"), variance=0.9)
    assert len(find_bases(f"{store.path}.workspace")) == 1
    # What was not kept of one is made of the other, as long as the other is there and takes part.
    found = compared(store, tmp_path / "r.zarr", variance=1.0)
    assert float(found.svcca[0, 1]) == pytest.approx(1)
    with pytest.raises(DsvccaError, match="layer='a': activations were dropped"):
        dsvcca.plan_comparisons(store.select(layer="a"), variance=1.0)
    dsvcca.keep_bases(store, variance=0.9)
    assert arrays_of(store) == []
    assert store.verify().empty


# Damage, and workspaces that are elsewhere


@fault("a damaged basis of dropped activations", "verify says whose it is, compare that it is not to be removed")
def test_a_damaged_basis_of_a_dropped_representation_is_lost_and_said_so(many, tmp_path):
    compared(many, tmp_path / "r0.zarr")
    dsvcca.keep_bases(many.select(seed=0))
    [held] = Path(f"{many.path}.workspace").glob("pack-*/kept.json")
    pack = held.parent  # with bases of others as well, whose activations stay
    flip(os.path.join(pack, "columns", "c.0.0"))
    found = many.verify()
    assert found.name.tolist() == ["seed=0,layer=fc@2"]
    assert found.problem.str.contains("the basis that was left is lost: view 'neurons'.* is damaged").all()
    with pytest.raises(DsvccaError, match="restore it: activations of its bases were dropped, and if it is"):
        compared(many, tmp_path / "r.zarr")
    said = CliRunner().invoke(app, ["verify", f"{many.path}.workspace"])
    assert said.exit_code == 1
    assert "lost for good" in said.output
    flip(os.path.join(pack, "columns", "c.0.0"))
    assert many.verify().empty
    compared(many, tmp_path / "r.zarr")


@fault("a damaged record of bases of dropped activations", "verify says whose they are, compare what to do")
@pytest.mark.parametrize("damage", ["edit", "cut"])
def test_a_damaged_record_of_the_only_bases_is_not_to_be_removed(many, tmp_path, damage):
    dsvcca.keep_bases(many)
    pack, count = pack_of(many)
    record = os.path.join(pack, "zarr.json")
    if damage == "cut":
        os.truncate(record, 100)
    else:
        with open(record, "r+") as file:
            content = file.read().replace('"rows": 300', '"rows": 301')
            file.seek(0)
            file.write(content)
    assert many.verify().problem.str.contains("lost").sum() == count == 2
    with pytest.raises(DsvccaError, match="lost for good"):
        compared(many, tmp_path / "r.zarr")


@fault("a basis of dropped activations that is gone", "an error before anything is done; verify says whose it is")
def test_a_basis_that_is_gone_is_an_error_and_nothing_is_made_of_nothing(dense, tmp_path):
    dsvcca.keep_bases(dense.select(seed=[0, 1]))
    for pack in Path(f"{dense.path}.workspace").glob("pack-*"):
        shutil.rmtree(pack)
    with pytest.raises(DsvccaError, match=r"seed=0, layer='fc': .*view 'neurons'\) is not in .*, like 1 other bases: "):
        compared(dense, tmp_path / "r.zarr")
    assert dense.verify().problem.str.contains("lost").sum() == 2
    assert np.isfinite(compared(dense.select(seed=2), tmp_path / "r2.zarr").svcca).all()


def test_bases_in_another_workspace_are_found_where_it_is_said(dense, tmp_path):
    before = compared(dense, tmp_path / "r.zarr", tmp_path / "w")
    dsvcca.keep_bases(dense, workspace=tmp_path / "kept")
    with pytest.raises(DsvccaError, match=r"pass the workspace= where it was kept \('.*kept'\), restore it"):
        compared(dense, tmp_path / "r2.zarr")
    assert dense.verify().problem.str.contains(r"kept in '.*kept' \(give workspace=\)").sum() == 3
    assert dense.verify(workspace=tmp_path / "kept").empty
    assert same_bits(before, compared(dense, tmp_path / "r2.zarr", tmp_path / "kept"))
    shutil.move(tmp_path / "kept", tmp_path / "moved")
    assert same_bits(before, compared(dense, tmp_path / "r3.zarr", tmp_path / "moved"))


def test_a_store_in_memory_keeps_bases(tmp_path):
    store = dsvcca.create_store("memory://kept/s.zarr", datapoints=N)
    for seed in range(2):
        write(store, seed, ["fc"])
    before = compared(store, tmp_path / "r.zarr", tmp_path / "w")
    dsvcca.keep_bases(store)
    assert same_bits(before, compared(store, tmp_path / "r2.zarr"))
    assert store.verify().empty


def test_a_version_with_other_numerics_says_so(dense):
    dsvcca.keep_bases(dense)
    path = os.path.join(dense.path, "seed=0,layer=fc@2")
    with open(os.path.join(path, "zarr.json")) as file:
        content = json.load(file)
    about = content["attributes"]["dsvcca"]
    about.pop("digest")
    about["kept"]["bases"][0] |= {"numerics": 1, "fingerprint": "0" * 64}
    content["attributes"]["dsvcca"] = signed(about)
    with open(os.path.join(path, "zarr.json"), "w") as file:
        json.dump(content, file)
    with pytest.raises(DsvccaError, match=r"\(by numerics 1, this version has \d+\)"):
        dsvcca.plan_comparisons(dsvcca.open_store(dense.path))


# Whoever is killed when

KILLED = """
    import os, shutil, sys
    import numpy as np
    import dsvcca
    from tests.test_kept_bases import N, activations, arrays_of, write

    root = sys.argv[1]
    store = dsvcca.create_store(f"{root}/s.zarr", datapoints=N)
    write(store, 0, sys.argv[3:])
    before = {r.labels["layer"]: store.read(layer=r.labels["layer"]) for r in store.representations}
    CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}

    def counts(args):
        said = str(args[0])
        return sys.argv[2] == "any" or not os.path.isabs(said) or "c.zarr/" in said

    moment, states = 0, set()
    while True:
        shutil.copytree(f"{root}/s.zarr", f"{root}/c.zarr")
        child = os.fork()
        if not child:
            left = moment

            def die(event, args):
                global left
                if event in CHANGES and counts(args):
                    left -= 1
                    if left < 0:
                        os._exit(9)

            sys.addaudithook(die)
            dsvcca.keep_bases(dsvcca.open_store(f"{root}/c.zarr"))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        copy = dsvcca.open_store(f"{root}/c.zarr")
        assert copy.verify().empty, copy.verify().problem[0]
        assert len(copy.index) == len(before)
        for r in copy.representations:
            if r.kept is None:
                assert np.array_equal(copy.read(layer=r.labels["layer"]), before[r.labels["layer"]])
        states.add((*copy.index.bases, len(arrays_of(copy))))
        dsvcca.keep_bases(copy)
        assert arrays_of(copy) == [] and not (copy.index.bases == "").any()
        assert copy.verify().empty
        dsvcca.plan_comparisons(copy)
        for name in ("c.zarr", "c.zarr.workspace"):
            shutil.rmtree(f"{root}/{name}")
        if not status:
            break
        moment += 1
    print(moment, sorted(states))
"""


@fault("SIGKILL at each moment of keep_bases", "the activations or the bases are there; the same line goes on")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize(
    ("moment", "layers", "states"),
    [
        ("of the store", ["fc"], [("", 1), ("neurons", 1), ("neurons", 0)]),
        pytest.param("any", ["fc", "conv"], [("neurons", "", 2), ("neurons", "dft, mean", 0)], marks=pytest.mark.slow),
    ],
)
def test_whoever_is_killed_at_any_moment_leaves_activations_or_bases(tmp_path, moment, layers, states):
    line = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(KILLED), str(tmp_path), moment, *layers]
    found = subprocess.run(line, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    moments, seen = found.stdout.strip().split(" ", 1)
    assert int(moments) > 8
    assert all(str(state) in seen for state in states)


# From PyTorch, and the command line


def captured(store, seed=0, steps=(0, 1, 2), bases=None, calls=None):
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    images = torch.randn(N, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(12, 8)
    )
    probe = dsvcca.torch.Probe(model, images, store, layers=["0", "4"], steps=steps, bases=bases, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        probe(step)
        if calls is not None:
            calls.append(arrays_of(store))
        optimizer.zero_grad()
        model(images[:50]).square().mean().backward()
        optimizer.step()
    return [one.detach().clone() for one in model.parameters()]


@pytest.mark.parametrize("bases", [pytest.param(0.99, marks=pytest.mark.slow), {"view": ["dft", "mean"]}])
def test_a_probe_leaves_bases_alone_and_training_as_it_was(store, tmp_path, bases):
    calls, same = [], {"pairs": "over_training"}
    other = dsvcca.create_store(tmp_path / "t.zarr", datapoints=N)
    plain, kept = captured(other), captured(store, bases=bases, calls=calls)
    assert all((one == two).all() for one, two in zip(plain, kept, strict=True))
    assert calls == [[], [], []]
    assert store.index.bases.tolist() == ["dft, mean", "neurons"] * 3
    assert same_bits(compared(other, tmp_path / "r.zarr", **same), compared(store, tmp_path / "r2.zarr", **same))


def test_a_capture_that_was_interrupted_before_its_bases_were_kept_is_finished(store):
    captured(store, steps=[0, 1])
    assert len(arrays_of(store)) == 4
    with pytest.warns(DsvccaWarning, match="seed=0, step=1: 2 of 2 layers are in the store already"):
        captured(store, steps=[1], bases=0.9)  # what is skipped is done, and what another step has is not
    assert arrays_of(store) == ["seed=0,step=0,layer=0/activations", "seed=0,step=0,layer=4/activations"]


def test_capture_keeps_bases_of_nothing_but_what_it_captured(store):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(4, 6))
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    dsvcca.torch.capture(model, x, store, layers=["0"], seed=0, step=1)
    dsvcca.torch.capture(model, x, store, layers=["0"], bases={"variance": 0.9}, seed=0)
    assert store.index.bases.tolist() == ["", "neurons"]
    dsvcca.torch.capture(model, x, store.select(step=1), layers=["0"], bases=0.9, if_exists="skip", seed=0)
    assert store.index.bases.tolist() == ["", "neurons"]


def test_a_dead_layer_does_not_end_a_training(store):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Threshold(1e9, 0.0))
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # the same line goes on
        with pytest.warns(DsvccaWarning, match=r"step=0, layer='1': .*constant.*; its activations are kept"):
            dsvcca.torch.capture(model, x, store, layers=["0", "1"], bases=0.99, if_exists="skip", step=0)
    assert store.index.bases.tolist() == ["neurons", ""]


@pytest.mark.parametrize(
    ("bases", "said"),
    [
        ("mean", "give a share of variance, or options such as"),
        (True, "give a share of variance"),
        (1.5, r"must lie in \(0, 1\]"),
        ({"views": "mean"}, "bases has 'views', which keep_bases does not take: did you mean 'view'"),
        ({"view": "man"}, "did you mean 'mean'"),
        ({"store": None}, "which keep_bases does not take"),
    ],
)
def test_bases_are_looked_at_before_the_model_runs(store, bases, said):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(4, 6))
    with pytest.raises(DsvccaError, match=said):
        dsvcca.torch.capture(model, torch.zeros(N, 4), store, layers=["0"], bases=bases)
    with pytest.raises(DsvccaError, match=said):
        dsvcca.torch.Probe(model, torch.zeros(N, 4), store, layers=["0"], steps=[0], bases=bases)
    assert not len(store.index)


def call(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_bases_are_kept_from_the_command_line(store, tmp_path):
    for seed in range(2):
        write(store, seed, ["fc", "conv"])
    options = ("--where", "seed=0", "--view", "mean", "--view", "max", "--variance", 0.9, "--workspace", tmp_path / "w")
    said = call("keep-bases", store.path, *options)
    assert said.exit_code == 0, said.output
    assert "before, " in said.output
    assert store.index.bases.tolist() == ["neurons", "max, mean", "", ""]
    said = call("info", store.path).output
    assert "bases: max, mean" in said
    assert "activations" in said
    assert call("verify", store.path).exit_code == 1
    assert call("verify", store.path, "--workspace", tmp_path / "w").exit_code == 0
    assert (
        "of 2 representations bases are all that is left"
        in call(*("plan", store.path, "--view", "mean", "--variance", 0.9, "--workspace", tmp_path / "w")).output
    )
    refused = call("plan", store.path)
    assert refused.exit_code == 1
    assert "error: seed=0, layer='fc' and 1 more: activations were dropped, and this plan needs" in refused.output
    assert "give one of them" in call("keep-bases", store.path, "--workers", 1, "--scheduler", "tcp://x").output
