"""Capture from PyTorch models: the numbers, the model afterwards, and everything that must be refused."""

from __future__ import annotations

import random
import weakref
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.data import (  # noqa: E402
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import dsvcca  # noqa: E402
from dsvcca.torch import capture  # noqa: E402
from dsvcca.torch.axes import known_dims  # noqa: E402
from dsvcca.torch.ids import row_ids  # noqa: E402
from tests.torch_models import (  # noqa: E402
    Calling,
    ConvNet,
    N,
    batches,
    layers_of,
    mlp,
    nothing_left,
    stored,
)


@pytest.fixture
def store(tmp_path):
    return dsvcca.create_store(tmp_path / "activations.zarr", datapoints=N)


@pytest.fixture
def images():
    return torch.randn(N, 3, 8, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def vectors():
    return torch.randn(N, 5, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def sequences():
    return torch.randn(N, 7, 4, generator=torch.Generator().manual_seed(3))


# The numbers


def test_values_equal_an_independent_forward_pass_bit_for_bit(store, images):
    model = ConvNet()
    capture(model, batches(images), store, layers={"conv": None, "bn": None, "relu": "nchw", "head.fc": None})
    model.eval()
    with torch.no_grad():
        for name, dims in (("conv", 4), ("bn", 4), ("relu", 4), ("head.fc", 2)):
            parts = []
            for x in images.split(8):
                y = model.conv(x)
                if name != "conv":
                    y = model.bn(y)
                if name in ("relu", "head.fc"):
                    y = y.clamp(min=0)
                if name == "head.fc":
                    y = model.head(y)
                parts.append(y.movedim(1, -1) if dims == 4 else y)
            np.testing.assert_array_equal(stored(store, layer=name), torch.cat(parts).numpy(), strict=True)
    conv, _, _, fc = store.representations
    assert conv.shape == (N, 8, 6, 4)
    assert conv.dims == ("datapoint", "height", "width", "channel")
    assert fc.dims == ("datapoint", "neuron")


def test_an_output_that_is_overwritten_in_place_is_stored_as_it_was_given(store, images):
    capture(ConvNet(), images, store, layers={"bn": None, "relu": "nchw"})
    assert stored(store, layer="bn").min() < 0 == stored(store, layer="relu").min()


def test_layers_arrive_in_the_order_in_which_they_are_named(store, images):
    capture(ConvNet(), images, store, layers=["head.fc", "conv", "bn"])
    assert layers_of(store) == ["head.fc", "conv", "bn"]


@pytest.mark.parametrize("size", [1, 3, N])
def test_a_tensor_a_loader_and_a_generator_give_the_same_datapoints(store, vectors, size):
    model = mlp()
    capture(model, vectors, store, layers=["fc2"], seed=0)
    capture(model, batches(vectors, size), store, layers=["fc2"], seed=1)
    capture(model, (x for x in vectors.split(size)), store, layers=["fc2"], seed=2)
    capture(model, ({"input": x} for x in vectors.split(size)), store, layers=["fc2"], seed=3)
    assert len({one.ids for one in store.representations}) == 1
    np.testing.assert_allclose(stored(store, seed=0), stored(store, seed=2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_recurrent_layers_respect_batch_first(store, sequences, kind, batch_first):
    torch.manual_seed(0)
    rnn = getattr(nn, kind)(4, 3, batch_first=batch_first)
    model = Calling(lambda self, x: self.rnn(x if batch_first else x.transpose(0, 1)), rnn=rnn)
    capture(model, batches(sequences), store, layers=["rnn"])
    with torch.no_grad():
        parts = [rnn(x if batch_first else x.transpose(0, 1))[0] for x in sequences.split(8)]
    expected = torch.cat([x if batch_first else x.transpose(0, 1) for x in parts])
    np.testing.assert_array_equal(stored(store, layer="rnn"), expected.numpy(), strict=True)
    assert store.representations[0].dims == ("datapoint", "position", "neuron")


@pytest.mark.parametrize("batch_first", [True, False])
def test_of_the_tuple_that_attention_returns_the_first_tensor_is_stored(store, sequences, batch_first):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)

    def turned(x):
        return x if batch_first else x.transpose(0, 1)

    model = Calling(lambda self, x: self.attention(*[turned(x)] * 3), attention=attention)
    capture(model, batches(sequences), store, layers=["attention"])
    with torch.no_grad():
        attention.eval()
        expected = torch.cat([turned(attention(*[turned(x)] * 3)[0]) for x in sequences.split(8)])
    np.testing.assert_array_equal(stored(store, layer="attention"), expected.numpy(), strict=True)


@pytest.mark.parametrize("batch_first", [True, False])
def test_modules_inside_a_transformer_are_captured_although_torch_can_fuse_them(store, sequences, batch_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=batch_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x = sequences if batch_first else sequences.transpose(0, 1)
    capture(
        model,
        [sequences],
        store,
        forward=lambda m, batch: m(batch if batch_first else batch.transpose(0, 1)),
        layers={"layers.0": None, "layers.1.self_attn": None, "layers.1.linear1": "ntd" if batch_first else "tnd"},
    )
    with torch.no_grad():
        expected = model.eval().layers[0](x)
    expected = expected if batch_first else expected.transpose(0, 1)
    np.testing.assert_allclose(stored(store, layer="layers.0"), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert stored(store, layer="layers.1.linear1").shape == (N, 7, 8)


def test_embeddings_layer_norms_and_one_dimensional_convolutions_need_no_dims(store):
    torch.manual_seed(0)
    tokens = torch.randint(0, 9, (N, 6))
    model = Calling(
        lambda self, x: self.conv(self.norm(self.embed(x)).transpose(1, 2)),
        embed=nn.Embedding(9, 4),
        norm=nn.LayerNorm(4),
        conv=nn.Conv1d(4, 5, 3),
    )
    capture(model, batches(tokens), store, layers=["embed", "norm", "conv"])
    shapes = {one.labels["layer"]: (one.shape, one.dims) for one in store.representations}
    assert shapes["embed"] == shapes["norm"] == ((N, 6, 4), ("datapoint", "position", "neuron"))
    assert shapes["conv"] == ((N, 4, 5), ("datapoint", "position", "channel"))
    np.testing.assert_array_equal(stored(store, layer="embed"), model.embed.weight.detach()[tokens].numpy())


@pytest.mark.parametrize(
    ("module", "shape", "dims"),
    [
        (nn.Linear(2, 2), (8, 4), "datapoint neuron"),
        (nn.Sequential(), (8, 4), "datapoint neuron"),
        (nn.Conv3d(1, 1, 1), (8, 4, 3, 5, 6), "datapoint channel depth height width"),
        (nn.ConvTranspose2d(1, 1, 1), (8, 4, 5, 6), "datapoint channel height width"),
        (nn.MaxPool2d(2), (8, 4, 4, 6), "datapoint channel height width"),
        (nn.GroupNorm(1, 4), (8, 4, 5), "datapoint channel position"),
        (nn.BatchNorm1d(4), (8, 4, 5), "datapoint channel position"),
        (nn.BatchNorm1d(4), (8, 4), "datapoint neuron"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 1)), (8, 4, 5, 5), "datapoint channel height width"),
        (nn.Linear(2, 2), (8, 5, 5, 4), "datapoint height width channel"),
        (nn.LayerNorm(4), (8, 5, 5, 4), "datapoint height width channel"),
        (nn.GELU(), (8, 4, 5, 5), "datapoint channel height width"),
        (nn.Dropout(), (8, 5, 5, 5), "datapoint channel height width"),
        (nn.ReLU(), (8, 16, 4, 6, 6), "datapoint channel depth height width"),
    ],
)
def test_axes_of_the_modules_of_torch_are_known(module, shape, dims):
    assert known_dims(module, shape, 8, "name") == tuple(dims.split())


class OwnConv(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.ReLU(), (8, 5, 4)),
        (nn.Identity(), (8, 5, 4)),
        (nn.Sequential(nn.Conv2d(1, 1, 1)), (8, 4, 5, 5)),
        (OwnConv(1, 1, 1), (8, 4, 5, 5)),
        (nn.GELU(), (8, 7, 7, 64)),
        (nn.GELU(), (8, 5, 7, 64)),
        (nn.ReLU(), (8, 4, 7, 7, 16)),
        (nn.Conv2d(1, 1, 1), (8, 5, 5)),
        (nn.LayerNorm((5, 4)), (8, 5, 4)),
        (nn.Linear(2, 2), (8, 8, 4)),
        (nn.Conv2d(1, 1, 1), (8, 2, 2, 2, 2, 2)),
    ],
)
def test_axes_that_cannot_be_told_are_refused_with_class_and_shape(module, shape):
    with pytest.raises(dsvcca.DsvccaError) as caught:
        known_dims(module, shape, 8, "block")
    assert f"'block' ({type(module).__name__}) gives {shape}" in str(caught.value)
    assert "layers={'block': " in str(caught.value)


def test_given_dims_are_used_where_axes_cannot_be_told(store, images):
    model = nn.Sequential(OrderedDict(block=nn.Sequential(nn.Conv2d(3, 4, 3)), pool=nn.AvgPool2d(2)))
    with pytest.raises(dsvcca.DsvccaError, match=r"'block' \(Sequential\) gives \(8, 4, 6, 4\).*'block': 'nchw'"):
        capture(model, batches(images), store, layers=["block", "pool"])
    assert nothing_left(store)
    capture(model, batches(images), store, layers={"block": "nchw", "pool": None})
    assert [one.shape for one in store.representations] == [(N, 6, 4, 4), (N, 3, 2, 4)]


@pytest.mark.parametrize(
    ("kind", "expected"), [("float16", "float16"), ("bfloat16", "float32"), ("float32", "float32"), ("int64", "int64")]
)
def test_types_are_kept_and_bfloat16_becomes_float32_exactly(store, vectors, kind, expected):
    dtype = getattr(torch, kind)
    model = Calling(lambda self, x: self.out((10 * x).to(dtype)), out=nn.Identity())
    capture(model, vectors, store, layers=["out"])
    values = stored(store, layer="out")
    assert values.dtype == expected
    np.testing.assert_array_equal(values, (10 * vectors).to(dtype).to(getattr(torch, expected)).numpy())


@dataclass
class Output:
    loss: None
    hidden: torch.Tensor


@pytest.mark.parametrize("kind", ["dict", "hidden", "dataclass", "list"])
def test_outputs_that_are_dicts_dataclasses_or_lists_give_their_tensor(store, vectors, kind):
    def packed(x):
        return {
            "dict": {"note": "text", "logits": x, "more": x + 1},
            "hidden": OrderedDict(logits=x + 1, last_hidden_state=x),
            "dataclass": Output(None, x),
            "list": [None, x, x + 1],
        }[kind]

    model = Calling(lambda self, x: self.inner(x), inner=Calling(lambda self, x: packed(2 * x)))
    capture(model, vectors, store, layers=["inner"])
    np.testing.assert_array_equal(stored(store, layer="inner"), 2 * vectors.numpy())


# The model afterwards


def test_the_model_is_left_as_it_was(store, images):
    model = ConvNet().train()
    model.bn.eval()
    model.head.fc.eval()
    model.head.fc.weight.requires_grad_(False)
    model.conv(images).sum().backward()
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradient = model.conv.weight.grad.clone()
    capture(model, batches(images), store, layers=["conv", "head.fc"])
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())
    assert torch.equal(model.conv.weight.grad, gradient)
    assert [p.requires_grad for p in model.parameters()] == [True] * 4 + [False, True]
    assert torch.is_grad_enabled()


class Frozen(nn.BatchNorm1d):
    """A module that ignores train(), as frozen backbones do."""

    def train(self, mode=True):
        return super().train(False)


def test_modes_come_back_even_if_a_module_overrides_train(store, vectors):
    model = nn.Sequential(OrderedDict(fc=nn.Linear(5, 4), frozen=Frozen(4)))
    model.frozen.training = True
    capture(model, vectors, store, layers=["fc"])
    assert model.frozen.training


def test_the_model_is_left_as_it_was_after_an_error(store, images):
    model = ConvNet().train()
    model.bn.eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(dsvcca.DsvccaError, match="has 16 datapoints"):
        capture(model, batches(images[:16]), store, layers=["conv"])
    assert [module.training for module in model.modules()] == modes
    assert all(not module._forward_hooks for module in model.modules())


def test_the_model_gives_the_same_outputs_and_trains_as_if_nothing_had_been_captured(store, images):
    def trained(captured):
        model = ConvNet()
        loader = DataLoader(TensorDataset(images), 5, shuffle=True, generator=torch.Generator().manual_seed(4))
        steady = DataLoader(TensorDataset(images), 5, generator=loader.generator)
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        for step in range(2):
            if captured:
                capture(model, steady, store, layers=["conv"], step=step)
            for [x] in loader:
                model.zero_grad()
                (model(x) * torch.rand(5) * random.random() * np.random.rand()).square().sum().backward()
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= 0.1 * parameter.grad
        return model.state_dict()

    plain, captured = trained(False), trained(True)
    assert all(torch.equal(plain[name], captured[name]) for name in plain)
    assert len(store.representations) == 2


def test_random_numbers_are_untouched_even_if_the_model_draws_some(store, vectors):
    def call(self, x):
        return self.fc(nn.functional.dropout(x) * random.random() * np.random.rand())

    model = Calling(call, fc=nn.Linear(5, 3))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy(), np.random.get_state()[2]
    capture(model, batches(vectors), store, layers=["fc"])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert np.random.get_state()[2] == states[3]


def test_what_a_module_keeps_can_be_trained_on_afterwards(store, vectors):
    def call(self, x):
        if not hasattr(self, "kept"):
            self.kept = torch.ones(5)
        return self.fc(x * self.kept)

    model = Calling(call, fc=nn.Linear(5, 3))
    capture(model, vectors, store, layers=["fc"])
    model(vectors.requires_grad_()).sum().backward()


def test_hooks_of_others_stay_and_what_they_change_is_what_is_stored(store, vectors):
    model = mlp()
    handle = model.fc1.register_forward_hook(lambda module, inputs, output: output * 0)
    capture(model, vectors, store, layers=["fc1"])
    assert list(model.fc1._forward_hooks) == [handle.id]
    assert not stored(store, layer="fc1").any()


def test_outputs_of_earlier_batches_are_not_held(store, vectors):
    seen, alive = [], []

    def call(self, x):
        alive.append(sum(one() is not None for one in seen))
        y = self.fc2(self.fc1(x))
        seen.append(weakref.ref(y))
        return y

    inner = Calling(call, fc1=nn.Linear(5, 4), fc2=nn.Linear(4, 3))
    capture(Calling(lambda self, x: self.inner(x), inner=inner), batches(vectors, 2), store, layers=["inner"])
    assert alive == [0] * 10


def test_batches_are_released_before_the_next_is_asked_for(store, vectors):
    alive = []

    def data():
        last = None
        for rows in vectors.split(5):
            if last is not None:
                alive.append(last() is not None)
            batch = rows.clone()
            last = weakref.ref(batch)
            yield batch
            del batch

    capture(mlp(), data(), store, layers=["fc1"])
    assert alive == [False] * 3


# Labels, and what is there already


def test_labels_may_be_called_model_and_data(store, vectors):
    capture(mlp(), vectors, store, layers=["fc1"], model="a", data="b", seed=0, step=10)
    assert store.representations[0].labels == {"model": "a", "seed": 0, "step": 10, "data": "b", "layer": "fc1"}


def test_the_label_layer_is_refused(store, vectors):
    with pytest.raises(dsvcca.DsvccaError, match=r"label layer='x' was given: leave it out"):
        capture(mlp(), vectors, store, layers=["fc1"], layer="x")


def test_layers_that_are_there_are_an_error_before_the_model_runs(store, images):
    model = ConvNet()
    capture(model, images, store, layers=["conv"])
    calls = model.calls
    with pytest.raises(dsvcca.DsvccaError, match="layer='conv' is in .* already"):
        capture(model, images, store, layers=["bn", "conv"])
    assert model.calls == calls
    assert layers_of(store) == ["conv"]


def test_a_resumed_script_runs_the_model_not_at_all(store, images):
    model = ConvNet()
    for _ in range(2):
        for step in range(2):
            capture(model, batches(images), store, layers=["conv", "bn"], if_exists="skip", step=step)
        assert model.calls == 6
    assert len(store.representations) == 4


def test_only_missing_layers_are_captured_with_skip(store, images):
    model = ConvNet()
    capture(model, images, store, layers=["conv"])
    [before] = store.representations
    with torch.no_grad():
        model.conv.weight.zero_()
    capture(model, images, store, layers=["conv", "bn"], if_exists="skip")
    assert layers_of(store) == ["conv", "bn"]
    assert store.representations[0] == before


def test_replace_writes_a_layer_anew(store, vectors):
    model = mlp()
    capture(model, vectors, store, layers=["fc1", "fc2"])
    with torch.no_grad():
        model.fc1.weight.zero_()
        model.fc1.bias.fill_(2)
    capture(model, vectors, store, layers=["fc1"], if_exists="replace")
    assert (stored(store, layer="fc1") == 2).all()
    assert sorted(layers_of(store)) == ["fc1", "fc2"]


# The same datapoints in the same order


def samplers(data):
    return {
        "shuffle": {"shuffle": True},
        "sampler": {"sampler": RandomSampler(data, generator=torch.Generator().manual_seed(0))},
        "weights": {"sampler": WeightedRandomSampler(torch.ones(N), N)},
        "subset": {"sampler": SubsetRandomSampler(range(N))},
        "batches": {"batch_sampler": torch.utils.data.BatchSampler(RandomSampler(data), 5, False)},
        "distributed": {"sampler": torch.utils.data.DistributedSampler(data, num_replicas=1, rank=0, shuffle=True)},
    }


@pytest.mark.parametrize("kind", ["shuffle", "sampler", "weights", "subset", "batches", "distributed"])
def test_a_loader_that_shuffles_is_refused_before_anything_runs(store, images, kind):
    model, data = ConvNet(), TensorDataset(images)
    with pytest.raises(dsvcca.DsvccaError, match=r"the DataLoader shuffles .*Sampler.* build it with shuffle=False"):
        capture(model, DataLoader(data, **samplers(data)[kind]), store, layers=["conv"])
    assert model.calls == 0
    assert nothing_left(store)


def test_loaders_with_ordered_or_unknown_samplers_are_used(store, vectors):
    data = TensorDataset(vectors)
    pairs = torch.utils.data.BatchSampler(SequentialSampler(data), 2, False)
    ordered = torch.utils.data.DistributedSampler(data, num_replicas=1, rank=0, shuffle=False)
    own = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(6)] + [[18, 19]]
    for seed, options in enumerate(({"batch_sampler": pairs}, {"sampler": ordered}, {"batch_sampler": own})):
        capture(mlp(), DataLoader(data, **options), store, layers=["fc1"], seed=seed)
    with pytest.raises(dsvcca.DsvccaError, match="ids differ .*, the first in row 0"):
        capture(mlp(), DataLoader(data, sampler=range(N - 1, -1, -1)), store, layers=["fc1"], seed=9)


def test_another_order_is_a_mismatch(store, vectors):
    capture(mlp(), vectors, store, layers=["fc1"], seed=0)
    turned = vectors.clone()
    turned[[3, 4]] = vectors[[4, 3]]
    with pytest.raises(dsvcca.DsvccaError, match=f"2 of {N} ids differ .*, the first in row 3.*same order"):
        capture(mlp(), turned, store, layers=["fc1", "fc2"], seed=1)
    assert len(store.representations) == 1


class Noisy(Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, row):
        return self.data[row] + 0.1 * torch.rand(5)


def test_random_transforms_are_a_mismatch(store, vectors):
    loader = DataLoader(Noisy(vectors), 8)
    capture(mlp(), loader, store, layers=["fc1"], seed=0)
    model = mlp()
    torch.manual_seed(1)
    with pytest.raises(dsvcca.DsvccaError, match=r"\d+ of \d+ ids differ.*random transforms"):
        capture(model, loader, store, layers=["fc1"], seed=1)


def test_ids_depend_on_values_type_and_shape_of_rows():
    x = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    ids = row_ids(x)
    assert ids.dtype == np.uint64
    assert ids.shape == (3,)
    assert (ids == np.concatenate([row_ids(x[:1]), row_ids([x[1:], torch.ones(2)])])).all()
    assert (ids == row_ids(x.T.contiguous().T)).all()
    assert (ids == row_ids((x.clone().requires_grad_(), "name"))).all()
    others = x.view(torch.int32), x.reshape(3, 2, 2), x.double(), x + 1, x.bfloat16()
    assert all((ids != row_ids(other)).all() for other in others)
    both = row_ids({"b": x, "a": x + 1, "name": "text", "scale": torch.tensor(2.0)})
    assert (both == row_ids({"scale": torch.tensor(2.0), "a": x + 1, "b": x})).all()
    assert (both != row_ids({"b": x + 1, "a": x, "scale": torch.tensor(2.0)})).all()
    assert len(row_ids(torch.tensor([True, False, True]))) == 3


def test_ids_of_numbers_that_torch_keeps_conjugated_or_negated_are_those_of_the_numbers():
    x = torch.complex(torch.arange(6.0), torch.arange(6.0) + 1).reshape(3, 2)
    for lazy, plain in ((x.conj(), x.conj().resolve_conj()), (torch._neg_view(x.real.clone()), -x.real.clone())):
        assert lazy.is_conj() or lazy.is_neg()
        assert row_ids(lazy).tolist() == row_ids(plain).tolist()


# What is refused, and leaves nothing behind


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["fc1", "fc3"], r"no module 'fc3': did you mean 'fc2' or 'fc1'"),
        ([""], r"no module ''"),
        ("fc1", r"layers='fc1' is a str: pass a list"),
        ([], r"layers is empty, the model has 3 modules"),
        ({"fc1": "nxd"}, r"unknown letters \['x'\]"),
        ({"fc1": "nhw"}, r"must name 'datapoint' once"),
    ],
)
def test_layers_that_are_unknown_are_refused(store, vectors, layers, message):
    with pytest.raises(dsvcca.DsvccaError, match=message):
        capture(mlp(), vectors, store, layers=layers)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TensorDataset(torch.ones(N, 5)), "TensorDataset, which gives rows"),
        (np.ones((N, 5)), "ndarray, which gives rows"),
        (3, "data is a int"),
        (torch.tensor(1.0), "tensor without axes"),
        ([], "gave no batch"),
        (["abc"], "a batch is a str without a tensor"),
        ([["abc"]], "a batch is a list of str without a tensor"),
        ([{"a": torch.ones(3, 5), "b": torch.ones(4)}], "have 3 and 4 rows"),
    ],
)
def test_data_that_are_no_batches_of_tensors_are_refused(store, data, message):
    with pytest.raises(dsvcca.DsvccaError, match=message):
        capture(mlp(), data, store, layers=["fc1"])
    assert nothing_left(store)


def test_a_module_that_does_not_run_is_named(store, vectors):
    model = Calling(lambda self, x: self.used(x), used=nn.Linear(5, 3), idle=nn.Linear(5, 3))
    with pytest.raises(dsvcca.DsvccaError, match="layer 'idle' did not run"):
        capture(model, vectors, store, layers=["used", "idle"])
    assert nothing_left(store)


def test_a_module_that_runs_twice_is_refused(store, vectors):
    model = Calling(lambda self, x: self.fc(self.fc(self.fc(x))), fc=nn.Linear(5, 5))
    with pytest.raises(dsvcca.DsvccaError, match="layer 'fc' ran 3 times for one batch"):
        capture(model, vectors, store, layers=["fc"])
    assert nothing_left(store)


def test_a_module_with_two_names_can_be_captured_under_either(store, vectors):
    shared = nn.Linear(5, 3)
    capture(Calling(lambda self, x: self.b(x), a=shared, b=shared), vectors, store, layers=["a", "b"])
    np.testing.assert_array_equal(stored(store, layer="a"), stored(store, layer="b"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda self, x: {"a": 1}, r"'inner' \(Calling\) gives a dict that holds no tensor"),
        (lambda self, x: None, "gives a NoneType that holds no tensor"),
        (lambda self, x: x[:, 0], r"gives \(8,\) for 8 datapoints"),
        (lambda self, x: x.mean(0, keepdim=True), r"gives \(1, 5\) for a batch of 8 datapoints"),
        (lambda self, x: x.to_sparse(), "a tensor that is torch.sparse_coo"),
        (lambda self, x: x / 0 * 0, "NaN or infinite numbers"),
        (lambda self, x: x.to(torch.complex64), "complex64.* cannot be compared"),
    ],
)
def test_outputs_without_a_row_for_each_datapoint_are_refused(store, vectors, call, message):
    model = Calling(lambda self, x: self.inner(self.fc(x)), fc=nn.Linear(5, 5), inner=Calling(call))
    with pytest.raises(dsvcca.DsvccaError, match=message):
        capture(model, batches(vectors), store, layers=["fc", "inner"])
    assert nothing_left(store)


def test_positions_first_are_noticed_where_datapoints_were_expected(store, sequences):
    model = Calling(lambda self, x: self.fc(x.transpose(0, 1)), fc=nn.Linear(4, 3))
    with pytest.raises(dsvcca.DsvccaError, match=r"gives \(7, 8, 3\) for a batch of 8.*layers={'fc': 'tnd'}"):
        capture(model, batches(sequences), store, layers=["fc"])
    capture(model, batches(sequences), store, layers={"fc": "tnd"})
    assert store.representations[0].shape == (N, 7, 3)


@pytest.mark.parametrize("count", [8, 16, N - 1, N + 1, 2 * N])
def test_another_number_of_datapoints_leaves_nothing_behind(store, images, count):
    data = torch.cat([images, images])[:count]
    with pytest.raises(dsvcca.DsvccaError, match=rf"has .*\d+ datapoints, the store .* has {N}"):
        capture(ConvNet(), batches(data), store, layers=["conv", "bn", "head.fc"])
    assert nothing_left(store)


def test_rows_that_a_loader_drops_are_missed(store, vectors):
    with pytest.raises(dsvcca.DsvccaError, match=f"has 16 datapoints, the store .* has {N}"):
        capture(mlp(), DataLoader(TensorDataset(vectors), 8, drop_last=True), store, layers=["fc1"])
    assert nothing_left(store)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_middle_of_the_data_leaves_nothing_behind(store, images, error):
    def data():
        yield images[:8]
        yield images[8:16]
        raise error("stop")

    model = ConvNet()
    with pytest.raises(error, match="stop"):
        capture(model, data(), store, layers=["conv", "head.fc"])
    assert nothing_left(store)
    assert all(not module._forward_hooks for module in model.modules())
    capture(model, images, store, layers=["conv", "head.fc"])
    assert layers_of(store) == ["conv", "head.fc"]


def test_an_error_in_the_model_leaves_nothing_behind(store, vectors):
    model = mlp()

    def failing(model, batch):
        model(batch)
        if len(batch) < 8:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        capture(model, vectors.split(8), store, layers=["fc1"], forward=failing)
    assert nothing_left(store)


# Ways to call the model


def test_dict_batches_are_given_by_name_or_by_forward(store, vectors):
    model = Calling(lambda self, x, scale: self.fc(x * scale), fc=nn.Linear(5, 3))
    scale = torch.arange(N, dtype=torch.float32)[:, None]
    parts = [{"x": x, "scale": s} for x, s in zip(vectors.split(8), scale.split(8), strict=True)]
    capture(model, parts, store, layers=["fc"], seed=0)
    capture(model, parts, store, layers=["fc"], seed=1, forward=lambda m, batch: m(batch["x"], batch["scale"]))
    capture(model, [(part, "target") for part in parts], store, layers=["fc"], seed=2)
    with torch.no_grad():
        expected = torch.cat([model(**part) for part in parts]).numpy()
    for seed in range(3):
        np.testing.assert_array_equal(stored(store, seed=seed), expected)


def test_forward_gets_the_whole_batch(store, vectors):
    model, seen = mlp(), []

    def forward(model, batch):
        x, rows = batch
        seen.extend(rows.tolist())
        return model(x)

    capture(model, batches(vectors), store, layers=["fc2"], forward=forward)
    assert seen == list(range(N))


class Stream(IterableDataset):
    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return iter(self.data)


def test_data_of_unknown_length_and_models_without_parameters_are_captured(store, vectors):
    model = nn.Sequential(OrderedDict(act=nn.Tanh()))
    capture(model, DataLoader(Stream(vectors), 8), store, layers=["act"])
    np.testing.assert_array_equal(stored(store, layer="act"), torch.cat([x.tanh() for x in vectors.split(8)]).numpy())


def test_captured_layers_can_be_compared(store, vectors):
    for seed in range(2):
        torch.manual_seed(seed)
        capture(nn.Sequential(nn.Linear(5, 2)), vectors, store, layers=["0"], seed=seed)
    one, other = (stored(store, seed=seed) for seed in range(2))
    assert 0 < dsvcca.svcca(one, other) <= 1
