"""Compressed networks: against the layer held to a subspace by hand, the model afterwards, and what must be refused."""

from __future__ import annotations

import copy
import io
import random
import warnings
from collections import OrderedDict

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import dsvcca  # noqa: E402
from dsvcca.torch import capture, compress, cost  # noqa: E402
from dsvcca.torch.axes import known_dims  # noqa: E402
from dsvcca.torch.narrow import Narrow  # noqa: E402
from tests.torch_models import Calling  # noqa: E402

N = 300


def chain(**parts):
    return nn.Sequential(OrderedDict(parts))


def mlp(p=24, q=20, dtype=torch.float64):
    torch.manual_seed(0)
    model = chain(fc1=nn.Linear(10, p), act=nn.ReLU(), fc2=nn.Linear(p, q), out=nn.Linear(q, 3)).to(dtype)
    model.fc1.weight.data *= 4
    model.fc1.bias.data += 3  # activations with a mean
    return model


def drawn(*shape, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def outputs(model, x, layer):
    """What a layer gives, as it is."""
    given = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: given.append(output))
    with torch.no_grad():
        model(x)
    handle.remove()
    return given[0]


def rows_of(maps, axis=1):
    return np.moveaxis(maps.double().numpy(), axis, -1).reshape(-1, maps.shape[axis])


def found_of(rows, directions=4):
    """Directions of rows (n, p) and of another layer that shares some of them."""
    rng = np.random.default_rng(2)
    noise = rows.std() * rng.standard_normal((len(rows), directions))
    return dsvcca.cca(rows, rows @ rng.standard_normal((rows.shape[1], directions)) + noise)


def held(rows, found, k, bias_fix=True):
    """Rows on the span of their inner products with the variates: mean + (x - mean) P^T P, without the mean P^T P x."""
    mean = rows.mean(axis=0)
    inner = found.variates(x=rows)[:, :k].T @ (rows - mean)
    v = np.linalg.svd(inner, full_matrices=False)[2]
    return mean + (rows - mean) @ v.T @ v if bias_fix else rows @ v.T @ v


def held_maps(maps, found, k, axis=1, **options):
    last = maps.movedim(axis, -1)
    return torch.from_numpy(held(rows_of(maps, axis), found, k, **options)).reshape(last.shape).movedim(-1, axis)


def close(a, b, within=1e-10):
    np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), atol=within)


# The numbers


@pytest.mark.parametrize("bias_fix", [True, False])
@pytest.mark.parametrize("k", [1, 4, 7])
def test_a_compressed_linear_layer_takes_the_activations_on_their_span(k, bias_fix):
    model, x = mlp(), drawn(N, 10)
    rows = outputs(model, x, "act").numpy()
    found = found_of(rows, 8)
    small = compress(model, {"act": (found, k)}, example=x[:8], bias_fix=bias_fix)
    expected = model.out(model.fc2(torch.from_numpy(held(rows, found, k, bias_fix))))
    close(small(x), expected)
    shapes = {name: tuple(one.shape) for name, one in small.state_dict().items() if name.startswith("fc2")}
    assert shapes == {"fc2.0.weight": (k, 24), "fc2.1.weight": (20, k), "fc2.1.bias": (20,)}


def test_the_directions_that_have_a_partner_are_kept_unless_told_otherwise():
    model, x = mlp(), drawn(N, 10)
    found = found_of(outputs(model, x, "act").numpy(), 3)
    assert compress(model, {"act": found}, example=x[:8]).fc2[0].out_features == 3


def test_the_bias_matters_where_activations_have_a_mean():
    model, x = mlp(), drawn(N, 10)
    found = found_of(outputs(model, x, "act").numpy(), 10)
    whole = model(x)
    far = [
        float((compress(model, {"act": found}, example=x[:8], bias_fix=fix)(x) - whole).norm().detach())
        for fix in (True, False)
    ]
    assert far[0] < 0.6 * far[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_all_directions_compute_the_same_function(dtype):
    model, x = mlp(dtype=dtype), drawn(N, 10).to(dtype)
    found = found_of(outputs(model, x, "act").double().numpy())
    with pytest.warns(dsvcca.DsvccaWarning, match=r"24 directions of 'act' .* has 1403 parameters instead of 827"):
        small = compress(model, {"act": (found, 24)}, example=x[:8])
    assert small.fc2[1].weight.dtype == dtype
    close(small(x), model(x), 1e-12 if dtype == torch.float64 else 1e-5)


def test_a_layer_that_shares_its_weights_makes_the_model_no_smaller_and_says_so():
    first, second = nn.Linear(24, 24), nn.Linear(24, 24)
    second.weight = first.weight
    model, x = chain(one=first, act=nn.Tanh(), two=second), drawn(N, 24).float()
    found = found_of(outputs(model, x, "act").double().numpy())
    with pytest.warns(dsvcca.DsvccaWarning, match=r"'act' .* has 768 parameters instead of 624: .* shares"):
        compress(model, {"act": (found, 3)}, example=x[:8])


CONVOLUTIONS = [
    (nn.Conv2d, {"kernel_size": 3}),
    (nn.Conv2d, {"kernel_size": 3, "padding": 1}),
    (nn.Conv2d, {"kernel_size": (3, 2), "padding": (0, 1), "stride": (1, 2), "bias": False}),
    (nn.Conv2d, {"kernel_size": 3, "padding": 2, "dilation": 2, "stride": 2}),
    (nn.Conv2d, {"kernel_size": 3, "padding": "same"}),
    (nn.Conv2d, {"kernel_size": 3, "padding": "valid", "bias": False}),
    (nn.Conv2d, {"kernel_size": 1, "padding": "same"}),
    (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
    (nn.Conv2d, {"kernel_size": 3, "padding": 2, "padding_mode": "circular"}),
    (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"}),
    (nn.Conv1d, {"kernel_size": 5, "padding": 2}),
    (nn.Conv3d, {"kernel_size": 3, "padding": 1}),
]


@pytest.mark.parametrize("bias_fix", [True, False])
@pytest.mark.parametrize(("kind", "options"), CONVOLUTIONS)
def test_a_compressed_convolution_is_exact_up_to_the_borders(kind, options, bias_fix):
    torch.manual_seed(0)
    space = {nn.Conv1d: (9,), nn.Conv2d: (7, 6), nn.Conv3d: (4, 5, 4)}[kind]
    model = chain(conv=kind(2, 12, 3, padding=1), act=nn.Softplus(), next=kind(12, 10, **options)).double()
    x = drawn(40, 2, *space)
    maps = outputs(model, x, "act")
    found = found_of(rows_of(maps))
    small = compress(model, {"act": (found, 3)}, example=x[:4], bias_fix=bias_fix)
    close(small(x), model.next(held_maps(maps, found, 3, bias_fix=bias_fix)))
    pads = options.get("padding", 0) not in (0, "valid") and options.get("padding_mode") is None
    one_more = bias_fix and pads and options["kernel_size"] != 1
    assert small.next[0].out_channels == 3 + one_more
    assert (small.next[0].bias is not None) == one_more


def test_linear_layers_after_flattened_maps_take_every_position_so():
    torch.manual_seed(0)
    model = chain(conv=nn.Conv2d(2, 12, 3), act=nn.Softplus(), drop=nn.Dropout(), flat=nn.Flatten()).double()
    model.append(nn.Linear(12 * 4 * 3, 5)).double().eval()
    x = drawn(60, 2, 6, 5)
    maps = outputs(model, x, "act")
    found = found_of(rows_of(maps))
    small = compress(model, {"act": (found, 3)}, example=x[:4])
    close(small(x), model[-1](held_maps(maps, found, 3).flatten(1)))
    assert small[-1][-1].in_features == 36


def test_linear_layers_after_flattened_sequences_take_every_position_so():
    torch.manual_seed(0)
    parts = nn.ModuleDict({"fc": nn.Linear(4, 9), "head": nn.Linear(9 * 6, 7, bias=False)})
    model = Calling(lambda self, x: self.parts["head"](self.parts["fc"](x).reshape(len(x), -1)), parts=parts).double()
    x = drawn(80, 6, 4)
    tokens = outputs(model, x, "parts.fc")
    found = found_of(rows_of(tokens, 2), 2)
    small = compress(model, {"parts.fc": found}, example=x[:4])
    close(small(x), parts["head"](held_maps(tokens, found, 2, axis=2).flatten(1)))


def test_layers_applied_token_by_token_are_compressed_as_they_are():
    torch.manual_seed(0)
    lstm = nn.LSTM(4, 16, batch_first=True)
    model = Calling(lambda self, x: self.head(self.lstm(x)[0]), lstm=lstm, head=nn.Linear(16, 12)).double()
    x = drawn(30, 6, 4)
    states = outputs(model, x, "lstm")[0]
    found = found_of(rows_of(states, 2), 3)
    small = compress(model, {"lstm": found}, example=x[:4])
    close(small(x), model.head(held_maps(states, found, 3, axis=2)))


def test_pooled_maps_of_one_position_are_neurons():
    torch.manual_seed(0)
    model = chain(
        conv=nn.Conv2d(2, 16, 3), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(16, 12)
    ).double()
    x = drawn(N, 2, 5, 5)
    pooled = outputs(model, x, "pool")
    found = found_of(rows_of(pooled), 3)
    small = compress(model, {"pool": found}, example=x[:4])
    close(small(x), model.fc(held_maps(pooled, found, 3).flatten(1)))
    assert [type(one) for one in small.fc] == [nn.Linear, nn.Linear]


def test_all_layers_that_take_the_output_are_compressed_under_all_their_names():
    torch.manual_seed(0)
    body = {"a": nn.Linear(16, 12), "b": nn.Linear(16, 14)}
    model = Calling(
        lambda self, x: torch.cat([self.a(y := self.act(self.fc(x))), self.b(y)], 1),
        fc=nn.Linear(10, 16), act=nn.Tanh(), **body, alias=body["b"],
    ).double()  # fmt: skip
    x = drawn(N, 10)
    rows = outputs(model, x, "act").numpy()
    found = found_of(rows, 3)
    small = compress(model, {"act": found}, example=x[:8])
    y = torch.from_numpy(held(rows, found, 3))
    close(small(x), torch.cat([body["a"](y), body["b"](y)], 1))
    assert small.alias is small.b
    assert isinstance(small.a, Narrow)


def test_several_layers_are_compressed_in_any_order():
    model, x = mlp(), drawn(N, 10)
    rows, last = outputs(model, x, "act").numpy(), outputs(model, x, "fc2").numpy()
    found, other = found_of(rows), found_of(last, 2)
    directions = {"act": found, "fc2": other}
    small = compress(model, directions, example=x[:8])
    turned = compress(model, dict(reversed(directions.items())), example=x[:8])
    assert str(small) == str(turned)
    close(small(x), turned(x), 1e-12)
    y = model.fc2(torch.from_numpy(held(rows, found, 4))).detach().numpy()
    basis = np.linalg.qr((last - last.mean(axis=0)).T @ other.variates(x=last))[0]
    y = last.mean(axis=0) + (y - last.mean(axis=0)) @ basis @ basis.T
    close(small(x), model.out(torch.from_numpy(y)))


def test_the_other_side_of_a_comparison_compresses_the_other_network():
    model, x = mlp(), drawn(N, 10)
    rows = outputs(model, x, "act").numpy()
    a = compress(model, {"act": (dsvcca.cca(rows, rows[:, :3] + drawn(N, 3).numpy()), 2)}, example=x[:8])
    b = compress(model, {"act": (dsvcca.cca(rows[:, :3] + drawn(N, 3).numpy(), rows), 2)}, example=x[:8], side="y")
    close(a(x), b(x))


def test_directions_of_torch_arrays_serve_as_well():
    model, x = mlp(), drawn(N, 10)
    rows = outputs(model, x, "act")
    other = rows[:, :3] + drawn(N, 3)
    small = compress(model, {"act": dsvcca.cca(rows, other)}, example=x[:8])
    kept = held(rows.numpy(), dsvcca.cca(rows.numpy(), other.numpy()), 3)
    close(small(x), model.out(model.fc2(torch.from_numpy(kept))))


def test_half_precision_weights_stay_so():
    model, x = mlp(dtype=torch.bfloat16), drawn(N, 10).bfloat16()
    found = found_of(outputs(model, x, "act").double().numpy())
    small = compress(model, {"act": found}, example=x[:8])
    exact = compress(mlp(), {"act": found}, example=x[:8].double())
    assert {one.dtype for one in small.parameters()} == {torch.bfloat16}
    assert float((small.fc2[1].bias - exact.fc2[1].bias).detach().abs().max()) < 0.02


# The copy and the model


def test_layers_are_compressed_one_after_another_each_measured_in_the_smaller_network(tmp_path):
    torch.manual_seed(0)
    model = chain(
        conv=nn.Conv2d(1, 12, 3, padding=1), relu=nn.ReLU(), conv2=nn.Conv2d(12, 12, 3, padding=1),
        relu2=nn.ReLU(inplace=True), flat=nn.Flatten(), fc=nn.Linear(12 * 16, 5),
    )  # fmt: skip
    x = drawn(N, 1, 4, 4).float()
    store = dsvcca.create_store(tmp_path / "s.zarr", datapoints=N)
    small = model
    for stage, layer in enumerate(["relu2", "conv2", "relu"]):
        capture(small, x, store, layers=["relu", "conv2", "relu2", "fc"], stage=stage)  # axes of new layers are known
        if layer != "conv2":
            rows = store.select(stage=stage).read(layer=layer).reshape(-1, 12)
            small = compress(small, {layer: (found_of(rows.astype("float64")), 4)}, example=x[:8])
    assert [isinstance(one, Narrow) for one in small] == [False, False, True, False, False, True]
    assert cost(small, x).parameters < cost(model, x).parameters


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_the_copy_is_a_network_like_any_other():
    model, x = mlp(dtype=torch.float32), drawn(N, 10).float()
    found = found_of(outputs(model, x, "act").double().numpy())
    small = compress(model, {"act": found}, example=x[:8])
    before = small(x).detach()
    for other in (copy.deepcopy(small), torch.jit.script(small)):
        assert torch.equal(other(x), before)
    other = compress(mlp(dtype=torch.float32), {"act": found}, example=drawn(8, 10).float())
    nn.init.zeros_(other.fc2[0].weight)
    other.load_state_dict(small.state_dict())
    assert torch.equal(other(x), before)
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), before)
    small(x).square().mean().backward()
    assert all(one.grad is not None for one in small.parameters())
    torch.optim.SGD(small.parameters(), 0.001).step()
    assert float(small(x).detach().square().mean()) < float(before.square().mean())


def test_new_parameters_are_trained_if_those_they_replace_were():
    model, x = mlp(), drawn(N, 10)
    model.fc2.requires_grad_(False)
    model.eval().fc2.train()
    small = compress(model, {"act": found_of(outputs(model, x, "act").numpy())}, example=x[:8])
    assert {name: one.requires_grad for name, one in small.named_parameters() if "fc2" in name} == dict.fromkeys(
        ["fc2.0.weight", "fc2.1.weight", "fc2.1.bias"], False
    )
    assert [small.fc2.training, small.fc2[0].training, small.act.training] == [True, True, False]


def test_the_model_is_left_as_it_was_found_and_no_random_number_is_drawn():
    model, x = mlp(), drawn(N, 10)
    model.append(nn.Dropout())
    model.act.eval()
    found = found_of(outputs(model, x, "act").numpy())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parts, modes = list(model), [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    small = compress(model, {"act": found}, example=x[:8])
    cost(model, x)
    assert list(model) == parts
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert small.act.training is False
    assert small.training is True
    for module in (*model.modules(), *small.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


def test_parameters_and_multiply_adds_are_counted():
    model = chain(conv=nn.Conv2d(2, 4, 3, padding=1), flat=nn.Flatten(), fc=nn.Linear(4 * 5 * 5, 3))
    assert cost(model, torch.zeros(6, 2, 5, 5)) == (4 * 2 * 9 + 4 + 300 + 3, 6 * (25 * 4 * 2 * 9 + 300))
    tied = Calling(lambda self, x: self.b(self.a(x)), a=model.fc, b=nn.Identity(), c=model.fc)
    assert cost(tied, {"x": torch.zeros(2, 100)}, forward=lambda m, batch: m(batch["x"])) == (303, 600)


def test_recurrent_layers_and_attention_are_counted_as_the_products_that_they_are():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            heads = self.fc(x).unflatten(2, (2, 4)).transpose(1, 2)
            return F.scaled_dot_product_attention(heads, heads, heads)

    x = torch.randn(3, 7, 8)
    assert cost(nn.LSTM(8, 16, num_layers=2), x).multiply_adds == 21 * (4 * 16 * (8 + 16) + 4 * 16 * (16 + 16))
    assert cost(Attention(), x).multiply_adds == 21 * 8 * 8 + 3 * 2 * 7 * 7 * 8
    assert torch.backends.mkldnn.enabled


def test_a_warning_says_where_nothing_is_saved():
    model, x = mlp(), drawn(N, 10)
    found = found_of(outputs(model, x, "act").numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compress(model, {"act": (found, 10)}, example=x[:8])  # p q / (p + q) = 10.9
    with pytest.warns(dsvcca.DsvccaWarning, match=r"k < p q / \(p \+ q\)"):
        compress(model, {"act": (found, 11)}, example=x[:8])


def test_axes_of_a_compressed_convolution_are_known():
    assert known_dims(Narrow(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)), (8, 4, 5, 5), 8, "conv")[1] == "channel"


# What must be refused


def residual():
    torch.manual_seed(0)
    return Calling(
        lambda self, x: self.out((y := self.act(self.fc(x))) + self.branch(y)),
        fc=nn.Linear(10, 16), act=nn.Tanh(), branch=nn.Linear(16, 16), out=nn.Linear(16, 4),
    ).double()  # fmt: skip


def test_an_output_that_a_sum_uses_as_well_is_refused():
    model, x = residual(), drawn(N, 10)
    found = found_of(outputs(model, x, "act").numpy())
    with pytest.raises(dsvcca.DsvccaError, match="'act' goes to more than 'branch': .* away from"):
        compress(model, {"act": found}, example=x[:8])
    branch = found_of(outputs(model, x, "branch").numpy())
    with pytest.raises(dsvcca.DsvccaError, match=r"'branch' \(Linear\): no module takes its output as it is; the next"):
        compress(model, {"branch": branch}, example=x[:8])


def masked(y):
    return y.masked_fill(torch.arange(y.shape[1]) < 1, -torch.inf)


def test_a_sum_is_found_behind_outputs_that_are_not_finite():
    model, x = residual(), drawn(N, 10)
    found = found_of(outputs(model, x, "act").numpy())
    with pytest.raises(dsvcca.DsvccaError, match="'act' goes to more than 'branch'"):
        compress(model, {"act": found}, example=x[:8], forward=lambda model, batch: masked(model(batch)))
    plain = mlp()
    found = found_of(outputs(plain, x, "act").numpy())
    small = compress(plain, {"act": (found, 4)}, example=x[:8], forward=lambda model, batch: masked(model(batch)))
    assert torch.equal(small(x), compress(plain, {"act": (found, 4)}, example=x[:8])(x))


@pytest.mark.parametrize(
    "give", [lambda y: y.argmax(1), lambda y: torch.distributions.Categorical(logits=y), lambda y: y * torch.nan]
)
def test_models_that_give_nothing_to_compare_are_refused(give):
    model, x = residual(), drawn(N, 10)
    found = found_of(outputs(model, x, "act").numpy())
    with pytest.raises(dsvcca.DsvccaError, match="gives no tensor of floating point numbers, .* pass forward="):
        compress(model, {"act": found}, example=x[:8], forward=lambda model, batch: give(model(batch)))


def test_a_model_that_cannot_be_copied_is_refused():
    model, x = mlp(), drawn(N, 10)
    found = found_of(outputs(model, x, "act").numpy())
    model.kept = model.fc1.weight * 2  # a tensor with a history
    with pytest.raises(
        dsvcca.DsvccaError, match=r"the model \(Sequential\) cannot be copied \(RuntimeError: Only Tens"
    ):
        compress(model, {"act": found}, example=x[:8])


def test_a_linear_layer_used_through_its_weight_alone_is_found_out():
    model = Calling(
        lambda self, x: F.linear(y := self.act(self.fc(x)), self.head.weight) + self.other(y),
        fc=nn.Linear(10, 16), act=nn.Tanh(), head=nn.Linear(16, 12), other=nn.Linear(16, 12),
    ).double()  # fmt: skip
    x = drawn(N, 10)
    with pytest.raises(dsvcca.DsvccaError, match="goes to more than 'other'"):
        compress(model, {"act": found_of(outputs(model, x, "act").numpy())}, example=x[:8])


def test_a_model_that_reads_the_weights_of_a_layer_is_told_of():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).double().eval()
    x = drawn(40, 5, 8)
    hidden = outputs(model, x, "layers.0.dropout")
    found = found_of(rows_of(hidden, 2), 5)
    with pytest.raises(dsvcca.DsvccaError, match=r"not only call 'layers.0.linear2'.*set_fastpath_enabled\(False\)"):
        compress(model, {"layers.0.dropout": found}, example=x[:8])
    with pytest.raises(dsvcca.DsvccaError, match="come 'layers.0.dropout'.*: name 'layers.0.dropout' instead"):
        compress(model, {"layers.0.linear1": found_of(rows_of(outputs(model, x, "layers.0.linear1"), 2))}, example=x)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        small = compress(model, {"layers.0.dropout": found}, example=x[:8])
        with torch.no_grad():
            y = model.layers[0].linear2(held_maps(hidden, found, 5, axis=2))
            middle = outputs(model, x, "layers.0.norm1")
            close(small(x), model.layers[0].norm2(middle + y))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_what_stands_between_is_said_and_what_to_name_instead():
    torch.manual_seed(0)
    model = chain(
        conv=nn.Conv2d(1, 6, 3), bn=nn.BatchNorm2d(6), relu=nn.ReLU(inplace=True), drop=nn.Dropout(),
        conv2=nn.Conv2d(6, 6, 3), last=nn.ReLU(),
    ).double()  # fmt: skip
    x = drawn(N, 1, 8, 8)
    found = found_of(rows_of(outputs(model, x, "conv")))
    said = (
        r"'conv' \(Conv2d\): 'bn' \(BatchNorm2d\) takes its output, .*before 'conv2' \(Conv2d\) come "
        r"'bn' \(BatchNorm2d\), 'relu' \(ReLU\), 'drop' \(Dropout\): name 'relu' instead"
    )
    with pytest.raises(dsvcca.DsvccaError, match=said):
        compress(model, {"conv": found}, example=x[:8])
    with pytest.raises(dsvcca.DsvccaError, match="no such layer runs after it"):
        compress(model, {"conv2": found}, example=x[:8])
    with pytest.raises(dsvcca.DsvccaError, match="'last'.* no module takes its output as it is; no such layer runs"):
        compress(model, {"last": found}, example=x[:8])


@pytest.mark.parametrize(
    "head",
    [
        nn.Conv1d(6, 6, 3, groups=2),
        nn.ConvTranspose1d(6, 6, 3),
        nn.utils.parametrizations.weight_norm(nn.Conv1d(6, 6, 3)),
    ],
)
def test_layers_that_cannot_be_written_in_two_are_refused(head):
    model, x = chain(conv=nn.Conv1d(1, 6, 3), head=head).double(), drawn(N, 1, 8)
    found = found_of(rows_of(outputs(model, x, "conv")))
    with pytest.raises(dsvcca.DsvccaError, match=r"'head' \(\w+\) takes its output, and only linear layers"):
        compress(model, {"conv": found}, example=x[:8])


def test_a_consumer_with_hooks_of_its_own_or_that_runs_twice_is_refused():
    model, x = mlp(), drawn(N, 10)
    found = found_of(outputs(model, x, "act").numpy())
    model.fc2.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(dsvcca.DsvccaError, match=r"'fc2' \(Linear\) takes its output.*no hooks"):
        compress(model, {"act": found}, example=x[:8])
    twice = Calling(lambda self, x: self.b(self.b(self.a(x))), a=nn.Linear(10, 10), b=nn.Linear(10, 10)).double()
    found = found_of(outputs(twice, x, "a").numpy())
    with pytest.raises(dsvcca.DsvccaError, match=r"'b' \(Linear\) takes .*that run once"):
        compress(twice, {"a": found}, example=x[:8])
    with pytest.raises(dsvcca.DsvccaError, match=r"'b' \(Linear\) ran twice"):
        compress(twice, {"b": found}, example=x[:8])


def test_axes_that_are_not_what_a_layer_sums_over_are_refused():
    model, x = chain(conv=nn.Conv1d(1, 6, 3), head=nn.Linear(6, 5)).double(), drawn(N, 1, 8)
    found = found_of(rows_of(outputs(model, x, "conv")))
    with pytest.raises(
        dsvcca.DsvccaError, match=r"gives \(8, 6, 6\), of which 'head' takes \(8, 6, 6\): the 6 neurons"
    ):
        compress(model, {"conv": found}, example=x[:8])
    square = Calling(lambda self, x: self.head(self.act(x).flatten(1)), act=nn.Tanh(), head=nn.Linear(36, 5)).double()
    x = drawn(N, 6, 6)
    with pytest.raises(dsvcca.DsvccaError, match="which axis has the neurons cannot be told"):
        compress(square, {"act": found_of(rows_of(x))}, example=x[:8])


@pytest.mark.parametrize(
    ("directions", "said"),
    [
        ({}, r"directions=\{\}: give \{layer: found\}"),
        (None, "directions=None"),
        ({"fc": "found"}, "directions are a str: give what cca"),
        ({"act": 0}, "'act', k=0: 24 directions of x are kept, use 1 to 24"),
        ({"act": 25}, "k=25: 24 directions"),
        ({"fc": 2}, "no module 'fc': did you mean 'fc2' or 'fc1'"),
        ({"fc2": 2}, r"'fc2' \(Linear\) gives \(8, 20\), and 24 neurons were compared"),
    ],
)
def test_directions_that_do_not_fit_are_refused(directions, said):
    model, x = mlp(), drawn(N, 10)
    found = found_of(outputs(model, x, "act").numpy())
    if directions:
        directions = {name: (found, k) if isinstance(k, int) else k for name, k in directions.items()}
    with pytest.raises(dsvcca.DsvccaError, match=said):
        compress(model, directions, example=x[:8])


def test_examples_that_show_nothing_are_refused():
    model, x = mlp(), drawn(N, 10)
    found = found_of(outputs(model, x, "act").numpy())
    with pytest.raises(dsvcca.DsvccaError, match="gives one number only on the example"):
        compress(model, {"act": found}, example=torch.full((8, 10), -1e6, dtype=torch.float64)[:0])
    with pytest.raises(dsvcca.DsvccaError, match="gives NaN or infinite numbers on the example"):
        compress(model, {"act": found}, example=torch.where(x > 1, torch.nan, x))
    spare = Calling(lambda self, x: self.fc(x), fc=nn.Linear(10, 24), act=nn.ReLU()).double()
    with pytest.raises(dsvcca.DsvccaError, match="'act'.* did not run when the model did"):
        compress(spare, {"act": found}, example=x[:8])
