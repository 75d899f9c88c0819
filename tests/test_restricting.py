"""A layer held to directions or neurons: the numbers, the model afterwards, and everything that must be refused."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, namedtuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import dsvcca  # noqa: E402
from dsvcca.torch import capture, keep_neurons, maximal_neurons, project  # noqa: E402
from tests.torch_models import Calling  # noqa: E402

N, P = 200, 8


def mlp(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(fc1=nn.Linear(5, P), act=nn.Tanh(), fc2=nn.Linear(P, 3))).to(dtype)


def convnet():
    torch.manual_seed(0)
    parts = OrderedDict(conv=nn.Conv2d(3, P, 3), relu=nn.ReLU(), flat=nn.Flatten(), fc=nn.Linear(P * 4 * 3, 2))
    return nn.Sequential(parts).double()


def drawn(*shape, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def outputs(model, x, layer):
    """What a layer gives, float64."""
    given = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: given.append(output))
    with torch.no_grad():
        model(x)
    handle.remove()
    given = given[0][0] if isinstance(given[0], tuple) else given[0]
    return given.double().numpy()


def found_of(rows, directions=4, seed=2, **options):
    """Directions of rows (n, p) and of another layer that shares some of them."""
    rng = np.random.default_rng(seed)
    scale = rows.std()
    other = rows @ rng.standard_normal((rows.shape[1], directions)) + scale * rng.standard_normal(
        (len(rows), directions)
    )
    return dsvcca.cca(rows, other, **options)


def fitted(rows, found, k, new=None):
    """Least squares of neurons on the k leading variates, and a constant."""
    h = np.column_stack([np.ones(len(rows)), found.variates(x=rows)[:, :k]])
    weights = np.linalg.lstsq(h, rows)[0]
    new = rows if new is None else new
    return np.column_stack([np.ones(len(new)), found.variates(x=new)[:, :k]]) @ weights


def by_hand(model, rows):
    """The network after its activations."""
    return np.asarray(rows) @ model.fc2.weight.detach().numpy().T + model.fc2.bias.detach().numpy()


# The numbers


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_a_projected_layer_is_the_least_squares_fit_by_the_leading_variates(k, training):
    model, x = mlp().train(training), drawn(N, 5)
    rows = outputs(model, x, "act")
    found = found_of(rows)
    with project(model, "act", found, k=k):
        y = model(x)
        new = model(drawn(7, 5, seed=3))
    np.testing.assert_allclose(y.detach().numpy(), by_hand(model, fitted(rows, found, k)), atol=1e-10)
    others = outputs(model, drawn(7, 5, seed=3), "act")
    np.testing.assert_allclose(new.detach().numpy(), by_hand(model, fitted(rows, found, k, others)), atol=1e-10)


def test_the_other_side_of_a_comparison_restricts_the_other_network():
    model, x = mlp(), drawn(N, 5)
    rows = outputs(model, x, "act")
    found = found_of(rows)
    turned = dsvcca.cca(rows @ found.x_directions + drawn(N, 4, seed=5).numpy() / 100, rows)
    one = turned.variates(y=rows)[:, :2]
    h = np.column_stack([np.ones(N), one])
    with project(model, "act", turned, k=2, side="y"):
        y = model(x).detach().numpy()
    np.testing.assert_allclose(y, by_hand(model, h @ np.linalg.lstsq(h, rows)[0]), atol=1e-10)
    with project(model, "act", turned, k=2, side="y", neurons=3):
        restricted = outputs(model, x, "act")
    assert sum(restricted.std(axis=0) > 1e-9) == 3


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_all_directions_change_outputs_by_rounding_only(dtype, within):
    model, x = mlp(dtype), drawn(N, 5).to(dtype)
    found = found_of(outputs(model, x, "act"))
    assert found.x_rank == P
    before = model(x).detach()
    with project(model, "act", found, k=P):
        after = model(x).detach()
    assert after.dtype == dtype
    assert float((after - before).abs().max()) < within * float(before.abs().max())


def test_rounding_stays_small_where_neurons_all_but_repeat_each_other():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((N, 3)) @ rng.standard_normal((3, P)) + 1e-4 * rng.standard_normal((N, P))
    model = nn.Sequential(OrderedDict(same=nn.Identity()))
    with project(model, "same", found_of(rows), k=P):
        y = model(torch.from_numpy(rows).float())
    assert np.abs(y.numpy() - rows).max() < 1e-6 * np.abs(rows).max()


def test_no_direction_leaves_the_mean():
    model, x = mlp(), drawn(N, 5)
    rows = outputs(model, x, "act")
    with project(model, "act", found_of(rows), k=0, neurons=3):
        y = model(x)
    np.testing.assert_allclose(y.detach().numpy(), by_hand(model, np.broadcast_to(rows.mean(axis=0), rows.shape)))


def test_after_the_projection_only_neurons_that_matter_keep_their_values():
    model, x = mlp(), drawn(N, 5)
    rows = outputs(model, x, "act")
    found = found_of(rows)
    gains = np.abs(found.variates(x=rows)[:, :2].T @ (rows - rows.mean(axis=0))).sum(axis=0)
    chosen = np.argsort(-gains / np.linalg.norm(rows - rows.mean(axis=0), axis=0))[:3]
    expected = np.tile(rows.mean(axis=0), (N, 1))
    expected[:, chosen] = fitted(rows, found, 2)[:, chosen]
    with project(model, "act", found, k=2, neurons=3):
        np.testing.assert_allclose(outputs(model, x, "act"), expected, atol=1e-12)


def test_kept_neurons_keep_their_bits_and_others_are_filled():
    model, x = mlp(torch.float32), drawn(N, 5).float()
    rows = outputs(model, x, "act")
    for fill in (0.0, 2, rows.mean(axis=0), torch.from_numpy(rows.mean(axis=0))):
        with keep_neurons(model, "act", [6, 1], fill=fill):
            after = outputs(model, x, "act")
        np.testing.assert_array_equal(after[:, [1, 6]], rows[:, [1, 6]])
        rest = [0, 2, 3, 4, 5, 7]
        np.testing.assert_array_equal(after[:, rest], np.broadcast_to(np.float32(fill), rows.shape)[:, rest])
    with keep_neurons(model, "act", [], fill=0.5):
        assert (outputs(model, x, "act") == 0.5).all()


def test_maximal_neurons_are_those_of_the_largest_mean_absolute_activation(xp):
    rows = np.random.default_rng(0).standard_normal((50, 6)) * [1, 5, 2, 0, 4, 3]
    rows[:, 3] = -9
    assert maximal_neurons(xp.asarray(rows), 4).tolist() == [3, 1, 4, 5]
    assert maximal_neurons(xp.asarray(rows), 0).size == 0


def test_sums_of_half_precision_do_not_overflow():
    rows = torch.full((100, 3), 6e4, dtype=torch.float16)
    rows[:, 1] = 6.1e4
    assert maximal_neurons(rows, 3).tolist() == [1, 0, 2]


# Maps, sequences, tuples


def test_maps_are_projected_position_by_position():
    model, x = convnet(), drawn(40, 3, 6, 5)
    maps = outputs(model, x, "relu")
    rows = np.moveaxis(maps, 1, -1).reshape(-1, P)
    found = found_of(rows)
    expected = np.moveaxis(fitted(rows, found, 2).reshape(40, 4, 3, P), -1, 1)
    with project(model, "relu", found, k=2, dims="nchw"):
        np.testing.assert_allclose(outputs(model, x, "relu"), expected, atol=1e-12)
        y = model(x).detach().numpy()
    after = expected.reshape(40, -1) @ model.fc.weight.detach().numpy().T + model.fc.bias.detach().numpy()
    np.testing.assert_allclose(y, after, atol=1e-12)


def test_directions_of_flattened_maps_change_maps_as_a_whole(tmp_path):
    model, x = convnet(), drawn(600, 3, 6, 5)
    other = Calling(lambda self, x: self.part(x), part=nn.Sequential(nn.Flatten(), nn.Linear(90, 5))).double()
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=600)
    capture(model, x, store, layers={"relu": "nchw"})
    capture(other, x, store, layers=["part"])
    found = dsvcca.directions(store, {"layer": "relu"}, {"layer": "part"}, view="flatten", variance=1.0)
    maps = outputs(model, x, "relu")
    rows = np.moveaxis(maps, 1, -1).reshape(600, -1)
    assert found.x_mean.shape == (P * 4 * 3,)
    expected = np.moveaxis(fitted(rows, found, 3).reshape(600, 4, 3, P), -1, 1)
    with project(model, "relu", found, k=3, dims="nchw"):
        np.testing.assert_allclose(outputs(model, x, "relu"), expected, atol=1e-6)  # bases are stored as float32


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_maps_stay_as_contiguous_as_they_were(form):
    model = Calling(lambda self, x: self.conv(x).contiguous(memory_format=form), conv=nn.Identity())
    inner = Calling(lambda self, x: self.inner(x), inner=model)
    seen = []
    with keep_neurons(inner, "inner", [0], fill=0.0, dims="nchw"):
        seen.append(inner(torch.randn(4, 3, 5, 6)))
    assert seen[0].is_contiguous(memory_format=form)


@pytest.mark.parametrize("length", [5, 30])
def test_sequences_are_projected_token_by_token_whatever_their_number(length):
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(fc=nn.Linear(4, P), norm=nn.LayerNorm(P))).double()
    x = drawn(30, length, 4)  # as many datapoints as positions is no matter
    tokens = outputs(model, x, "fc")
    rows = tokens.reshape(-1, P)
    found = found_of(rows, variance=1.0, directions=2)
    with project(model, "fc", found, k=2):
        np.testing.assert_allclose(outputs(model, x, "fc"), fitted(rows, found, 2).reshape(tokens.shape), atol=1e-12)


@pytest.mark.parametrize("batch_first", [True, False])
def test_of_what_a_recurrent_layer_gives_the_outputs_are_projected(batch_first):
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(lstm=nn.LSTM(4, P, batch_first=batch_first))).double()
    x = drawn(20, 15, 4)
    rows = outputs(model, x, "lstm").reshape(-1, P)
    found = found_of(rows)
    _, state = model(x)
    with project(model, "lstm", found, k=3):
        after, same = model(x)
    np.testing.assert_allclose(after.detach().reshape(-1, P).numpy(), fitted(rows, found, 3), atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(state, same, strict=True))


def test_a_named_tuple_stays_one():
    Pair = namedtuple("Pair", ["hidden", "more"])
    model = Calling(lambda self, x: self.inner(x), inner=Calling(lambda self, x: Pair(x, x.sum())))
    with keep_neurons(model, "inner", [1], fill=0.0):
        y = model(torch.ones(2, 3))
    assert isinstance(y, Pair)
    assert y.hidden.tolist() == [[0, 1, 0]] * 2
    assert y.more == 6


def test_axes_that_cannot_be_told_are_given():
    model = nn.Sequential(OrderedDict(act=nn.ReLU()))
    x = drawn(6, 4, 3)
    with (
        pytest.raises(dsvcca.DsvccaError, match=r"'act' \(ReLU\) gives \(6, 4, 3\).*pass dims='ntd' or 'tnd' or 'nct'"),
        keep_neurons(model, "act", [0], fill=0.0),
    ):
        model(x)
    with keep_neurons(model, "act", [0], fill=7.0, dims="nct"):
        assert (model(x)[:, 1:] == 7).all()
    with keep_neurons(model, "act", [0], fill=7.0, dims="ntd"):
        assert (model(x)[:, :, 1:] == 7).all()


# Types, gradients, contexts


@pytest.mark.parametrize(
    ("shape", "said"), [((4, 5, 7, 8), "'nchw' or 'nhwc'"), ((4, 8, 2, 5, 7), "'depth', 'height'")]
)
def test_elementwise_modules_say_how_to_spell_axes_that_their_maps_do_not_tell(shape, said):
    model = Calling(lambda self, x: self.act(x), act=nn.GELU())
    with (
        pytest.raises(dsvcca.DsvccaError, match=f"cannot be told: pass dims=.*{said}"),
        keep_neurons(model, "act", [0], fill=0.0),
    ):
        model(torch.randn(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_given_back_as_it_was(dtype):
    rows = drawn(N, P).numpy() * np.geomspace(1, 30, P) + 40
    found = found_of(rows)
    model = nn.Sequential(OrderedDict(same=nn.Identity()))
    x = torch.from_numpy(rows).to(dtype)
    with project(model, "same", found, k=P):
        y = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            other = model(x)
    assert y.dtype == dtype
    assert torch.equal(y, other)
    assert float((y != x).float().mean()) < 0.01  # rounding of the mean in half precision would move most


def test_gradients_flow_through_the_projection():
    rows = drawn(N, P).numpy()
    found = found_of(rows)
    model = nn.Sequential(OrderedDict(same=nn.Identity()))
    x = torch.from_numpy(rows[:3]).requires_grad_()
    with project(model, "same", found, k=2):
        model(x)[:, 0].sum().backward()
    unit = np.eye(P) + found.x_mean
    expected = found.project(unit, 2)[:, 0] - found.x_mean[0]
    np.testing.assert_allclose(x.grad.numpy(), np.tile(expected, (3, 1)), atol=1e-12)


def test_contexts_nest_over_layers_and_over_one():
    model, x = mlp(), drawn(N, 5)
    rows = outputs(model, x, "act")
    found = found_of(rows)
    with project(model, "act", found, k=2):
        both = outputs(model, x, "fc2")
        with keep_neurons(model, "act", [0, 1], fill=0.0), keep_neurons(model, "fc2", [2], fill=1.0):
            inner, last = outputs(model, x, "act"), outputs(model, x, "fc2")
        np.testing.assert_array_equal(outputs(model, x, "fc2"), both)
    expected = fitted(rows, found, 2) * (np.arange(P) < 2)
    np.testing.assert_allclose(inner, expected, atol=1e-12)
    np.testing.assert_allclose(last, np.column_stack([np.ones((N, 2)), by_hand(model, expected)[:, 2]]), atol=1e-12)


def test_directions_of_torch_arrays_and_of_a_store_serve_as_well(tmp_path):
    model, x = mlp(), drawn(N, 5)
    rows = torch.from_numpy(outputs(model, x, "act"))
    other = rows[:, :3] + drawn(N, 3, seed=9)
    with project(model, "act", dsvcca.cca(rows, other), k=2):
        of_torch = outputs(model, x, "act")
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=N)
    capture(model, x, store, layers=["act"])
    store.write(other.numpy(), layer="other")
    found = dsvcca.directions(store, {"layer": "act"}, {"layer": "other"}, variance=1.0)
    with project(model, "act", found, k=2):
        np.testing.assert_allclose(outputs(model, x, "act"), of_torch, atol=1e-6)
        capture(model, x, store, layers=["act"], restricted=True)
    again = store.select(restricted=True).read(layer="act")
    np.testing.assert_allclose(again, of_torch, atol=1e-6)


def test_many_batches_and_parts_of_a_model_may_run_inside():
    model, x = mlp(), drawn(N, 5)
    with keep_neurons(model, "act", [0], fill=0.0):
        whole = model(x)
        np.testing.assert_array_equal(torch.cat([model(x[:100]), model(x[100:])]).detach(), whole.detach())
        model[:2](x)
        assert (model[:2](x)[:, 1:] == 0).all()


# The model afterwards


def test_the_model_is_left_as_it_was_found_also_after_errors():
    model, x = mlp(), drawn(N, 5)
    handle = model.act.register_forward_hook(lambda module, inputs, output: None)
    found = found_of(outputs(model, x, "act"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    with project(model, "act", found, k=2):
        model(x)
    with pytest.raises(RuntimeError, match="cannot be multiplied"), project(model, "act", found, k=2):
        model(x[:, :3])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [len(module._forward_hooks) for module in model.modules()] == [0, 0, 1, 0]
    assert list(model.act._forward_hooks) == [handle.id]
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


# What must be refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 9}, "k=9: 8 directions of x are kept, use 0 to 8"),
        ({"k": -1}, "k=-1: 8 directions of x are kept"),
        ({"k": True}, "k=True"),
        ({"k": 1.0}, "k=1.0"),
        ({"k": 5, "side": "y"}, "k=5: 4 directions of y are kept, use 0 to 4"),
        ({"k": 1, "side": "z"}, "side='z': use 'x' or 'y'"),
        ({"k": 1, "neurons": 9}, "neurons=9: x has 8 of them"),
        ({"k": 1, "neurons": [1, 2]}, r"neurons=\[1, 2\]: x has 8 of them, give how many"),
        ({"k": 1, "dims": "nhwc"}, r"layer 'act' \(Tanh\) has 2 axes \(200, 8\), dims='nhwc' names 4"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, said):
    model, x = mlp(), drawn(N, 5)
    found = found_of(outputs(model, x, "act"))
    with pytest.raises(dsvcca.DsvccaError, match=said), project(model, "act", found, **options):
        model(x)


@pytest.mark.parametrize(
    ("neurons", "fill", "said"),
    [
        ([8], 0.0, "neuron 8 is to be kept, and there are 8: use 0 to 7"),
        ([-1], 0.0, "from 0, each of them once"),
        ([1, 1], 0.0, "each of them once"),
        ([0.5], 0.0, "give the numbers of neurons"),
        ([True, False], 0.0, "give the numbers of neurons"),
        (3, 0.0, "give the numbers of neurons"),
        ([1], np.zeros((2, 8)), r"shape \(2, 8\): give one finite number, or one for each neuron"),
        ([1], float("nan"), "one finite number"),
        ([1], "mean", "fill has the type <U4"),
        ([1], np.zeros(7), r"'act' \(Tanh\) gives \(200, 8\), 8 neurons, and 7 were compared"),
    ],
)
def test_neurons_and_fillings_that_do_not_fit_are_refused(neurons, fill, said):
    model, x = mlp(), drawn(N, 5)
    with pytest.raises(dsvcca.DsvccaError, match=said), keep_neurons(model, "act", neurons, fill=fill):
        model(x)


def test_directions_of_another_layer_are_refused_with_both_numbers():
    model, x = convnet(), drawn(30, 3, 6, 5)
    found = found_of(drawn(N, 5).numpy())
    said = r"'conv' \(Conv2d\) gives \(30, 8, 4, 3\), 8 neurons \(96 with all positions\), and 5 were compared"
    with pytest.raises(dsvcca.DsvccaError, match=said), project(model, "conv", found, k=1):
        model(x)


def test_directions_by_frequency_are_refused_with_what_to_take_instead():
    maps = drawn(N, 4, 4, 3).numpy()
    found = dsvcca.dft_cca(maps, maps @ np.random.default_rng(0).standard_normal((3, 2)))
    with pytest.raises(dsvcca.DsvccaError, match="view='positions'"), project(convnet(), "conv", found, k=1):
        pass
    with pytest.raises(dsvcca.DsvccaError, match="directions are a ndarray"), project(mlp(), "fc1", maps, k=1):
        pass


def test_unknown_layers_are_refused_with_the_nearest():
    with (
        pytest.raises(dsvcca.DsvccaError, match="no module 'fc': did you mean 'fc2' or 'fc1'"),
        keep_neurons(mlp(), "fc", [0], fill=0.0),
    ):
        pass


def test_a_layer_that_did_not_run_is_refused_at_the_end():
    model = Calling(lambda self, x: x, spare=nn.Linear(5, 5))
    with (
        pytest.raises(dsvcca.DsvccaError, match=r"'spare' \(Linear\) did not run, so nothing was restricted"),
        keep_neurons(model, "spare", [0], fill=0.0),
    ):
        model(drawn(3, 5))


def test_a_layer_that_runs_twice_is_refused():
    model = Calling(lambda self, x: self.act(self.act(x)), act=nn.ReLU())
    with (
        pytest.raises(dsvcca.DsvccaError, match=r"'act' \(ReLU\) ran twice in one run"),
        keep_neurons(model, "act", [0], fill=0.0),
    ):
        model(drawn(3, 5))


def test_a_layer_that_runs_twice_in_a_part_of_the_model_is_refused_too():
    part = Calling(lambda self, x: self.act(self.fc(self.act(x))), act=nn.ReLU(), fc=nn.Linear(P, P))
    model = Calling(lambda self, x: self.part(x), part=part)
    with keep_neurons(model, "part.act", [0], fill=0.0):
        for one in (part, model):
            with pytest.raises(dsvcca.DsvccaError, match="'part.act' .* ran twice in one run"):
                one(torch.randn(4, P))
        model.part.act(torch.randn(4, P))
        model.part.act(torch.randn(4, P))


def test_a_copy_that_is_made_inside_of_the_context_is_whole_after_it():
    model, x = mlp(), drawn(20, 5)
    whole = model(x)
    with keep_neurons(model, "act", [0], fill=0.0):
        kept = copy.deepcopy(model)
        restricted = model(x)
        assert torch.equal(kept(x), restricted)
    assert not torch.equal(whole, restricted)
    assert torch.equal(kept(x), whole)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda self, x: {"a": x}, "gives a dict, not a tensor of floating point numbers"),
        (lambda self, x: x.to(torch.int64), "gives torch.int64, not"),
        (lambda self, x: (None, x), "gives a tuple, not"),
        (lambda self, x: (x, x + 1), r"gives 2 tensors of the shape \(3, 5\), and which of them"),
        (lambda self, x: x[0], r"gives \(5,\), and which axis has the neurons cannot be told: name one with an axis"),
    ],
)
def test_outputs_that_cannot_be_restricted_are_refused(call, said):
    model = Calling(lambda self, x: self.inner(x), inner=Calling(call))
    with pytest.raises(dsvcca.DsvccaError, match=said), keep_neurons(model, "inner", [0], fill=0.0):
        model(drawn(3, 5))


def test_more_neurons_than_there_are_cannot_be_chosen():
    with pytest.raises(dsvcca.DsvccaError, match="k=4: there are 3 neurons, use 0 to 3"):
        maximal_neurons(np.ones((5, 3)), 4)
