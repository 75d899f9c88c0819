"""Capture from models as they come: wrapped, compiled, in half precision, and those that cannot be run."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections import OrderedDict

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import dsvcca  # noqa: E402
from dsvcca.torch import capture  # noqa: E402
from tests.torch_models import Calling, ConvNet, N, batches, layers_of, mlp, nothing_left, stored  # noqa: E402


@pytest.fixture
def store(tmp_path):
    return dsvcca.create_store(tmp_path / "activations.zarr", datapoints=N)


@pytest.fixture
def vectors():
    return torch.randn(N, 5, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def one_process():
    """A process group of this process alone."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", f"tcp://localhost:{port}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


# Wrappers


def compiled(model):
    return torch.compile(model, backend="eager")


def wrappers():
    return {
        "data parallel": (nn.DataParallel, "module."),
        "distributed": (nn.parallel.DistributedDataParallel, "module."),
        "compiled": (compiled, "_orig_mod."),
        "both": (lambda model: nn.parallel.DistributedDataParallel(compiled(model)), "module._orig_mod."),
    }


@pytest.mark.parametrize("kind", ["data parallel", "distributed", "compiled", "both"])
def test_of_wrappers_the_inner_model_runs_and_names_go_with_or_without_their_prefix(store, vectors, one_process, kind):
    wrap, prefix = wrappers()[kind]
    model = mlp()
    capture(model, batches(vectors), store, layers=["fc1", "fc2"], seed=0)
    wrapped = wrap(model)
    capture(wrapped, batches(vectors), store, layers=["fc1", "fc2"], seed=1)
    capture(wrapped, batches(vectors), store, layers=[f"{prefix}fc1", f"{prefix}fc2"], seed=2)
    assert layers_of(store) == ["fc1", "fc2"] * 3
    for layer in ("fc1", "fc2"):
        for seed in (1, 2):
            np.testing.assert_array_equal(stored(store, layer=layer, seed=seed), stored(store, layer=layer, seed=0))
    with pytest.raises(dsvcca.DsvccaError, match=r"the model \(Sequential\) has no module 'fc3': did you mean 'fc2'"):
        capture(wrapped, vectors, store, layers=["fc3"])
    with pytest.raises(dsvcca.DsvccaError, match="layer 'fc1' is named twice"):
        capture(wrapped, vectors, store, layers=["fc1", f"{prefix}fc1"], seed=3)


def test_forward_is_given_the_inner_model(store, vectors):
    model, seen = mlp(), []

    def forward(model, batch):
        seen.append(model)
        return model(batch)

    capture(nn.DataParallel(model), vectors, store, layers=["fc1"], forward=forward)
    assert seen == [model]


def test_a_module_that_is_called_module_keeps_its_name(store, vectors):
    inner = nn.Sequential(OrderedDict(module=nn.Linear(5, 4), fc=nn.Linear(4, 3)))
    capture(nn.DataParallel(inner), vectors, store, layers=["module.module", "fc"])
    assert layers_of(store) == ["module", "fc"]
    assert stored(store, layer="module").shape == (N, 4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_parts_run_as_they_were_written(store, vectors):
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
    model = nn.Sequential(OrderedDict(block=torch.compile(block, backend="eager"), fc=nn.Linear(4, 3)))
    with torch.no_grad():
        model(vectors)  # compiled now: code that would not call hooks that come later
    capture(model, vectors, store, layers=["block.0", "block._orig_mod.1", "fc"])
    assert layers_of(store) == ["block.0", "block.1", "fc"]
    with torch.no_grad():
        np.testing.assert_array_equal(stored(store, layer="block.1"), block(vectors).numpy())
    in_place = mlp()
    in_place.compile(backend="eager")
    with torch.no_grad():
        in_place(vectors)
    capture(in_place, vectors, store, layers=["act"])
    with torch.no_grad():
        np.testing.assert_array_equal(stored(store, layer="act"), in_place.fc1(vectors).tanh().numpy())


def test_sharded_parameters_are_refused(store, vectors, one_process):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(mlp(), mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(dsvcca.DsvccaError, match=r"the model is sharded \(FSDP\).*full_state_dict=True.*plain model"):
        capture(model, vectors, store, layers=["fc1"])
    part = nn.Sequential(OrderedDict(part=model.fc1, fc=nn.Linear(6, 3)))
    with pytest.raises(dsvcca.DsvccaError, match=r"module 'part' is sharded"):
        capture(part, vectors, store, layers=["fc"])
    assert nothing_left(store)


# Half precision


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_models_in_half_precision_are_stored_exactly(store, vectors, kind):
    dtype = getattr(torch, kind)
    model, x = mlp().to(dtype), vectors.to(dtype)
    capture(model, batches(x), store, layers=["fc1"])
    with torch.no_grad():
        expected = torch.cat([model.fc1(part) for part in x.split(8)])
    np.testing.assert_array_equal(stored(store), expected.float().numpy())
    [one] = store.representations
    assert (one.dtype, one.written_as) == {"float16": ("float16", ""), "bfloat16": ("float32", "bfloat16")}[kind]


def test_autocast_counts_and_leaves_gradients_alone(store, vectors):
    model = mlp()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        capture(model, vectors, store, layers=["fc1", "fc2"])
        assert torch.is_autocast_cache_enabled()
        loss = model(vectors).float().square().sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert {one.written_as for one in store.representations} == {"bfloat16"}
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(stored(store, layer="fc1"), model.fc1(vectors).float().numpy())


def test_floats_of_eight_bits_are_stored_exactly(store, vectors):
    model = Calling(lambda self, x: self.out(x.to(torch.float8_e4m3fn)), out=nn.Identity())
    capture(model, vectors, store, layers=["out"])
    np.testing.assert_array_equal(stored(store), vectors.to(torch.float8_e4m3fn).float().numpy())


# The run itself


def test_outputs_during_capture_are_those_without_hooks_to_the_bit(store):
    images = torch.randn(N, 3, 8, 6, generator=torch.Generator().manual_seed(1))
    model, seen = ConvNet(), []

    def forward(model, batch):
        seen.append(model(batch[0]).clone())

    layers = {"conv": None, "bn": None, "relu": "nchw", "drop": "nchw", "head.fc": None}
    capture(model, batches(images), store, layers=layers, forward=forward)
    model.eval()
    with torch.no_grad():
        plain = [model(x) for x in images.split(8)]
    assert all(torch.equal(one, other) for one, other in zip(seen, plain, strict=True))
    assert len(seen) == 3


def test_a_model_in_training_is_captured_in_evaluation_and_trains_on(store):
    images = torch.randn(N, 3, 8, 6, generator=torch.Generator().manual_seed(1))
    model = ConvNet().train()
    capture(model, images, store, layers={"drop": "nchw", "relu": "nchw"})
    np.testing.assert_array_equal(stored(store, layer="drop"), stored(store, layer="relu"))
    assert all(module.training for module in model.modules())


def test_captures_in_two_threads_wait_for_one_another(tmp_path, vectors):
    stores = [dsvcca.create_store(tmp_path / f"{i}.zarr", datapoints=N) for i in range(2)]
    ran, seen = threading.Event(), []

    def forward(model, batch):
        threads[1].start()
        seen.append(ran.wait(0.3))
        return model(batch)

    def capture_other():
        capture(mlp(), vectors, stores[1], layers=["fc1"], forward=lambda model, batch: (ran.set(), model(batch)))

    def capture_one():
        capture(mlp(), vectors, stores[0], layers=["fc1"], forward=forward)

    threads = [threading.Thread(target=capture_one), threading.Thread(target=capture_other)]
    threads[0].start()
    for thread in threads:
        thread.join()
    assert seen == [False]
    assert [len(store.representations) for store in stores] == [1, 1]
    assert torch.is_autocast_cache_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


class Merging(nn.Linear):
    """A layer that folds a change into its weight when it is switched to evaluation, as adapters do."""

    def train(self, mode=True):
        self.weight.data += 0.0 if mode == self.training else (-1.0 if mode else 1.0)
        return super().train(mode)


def test_modules_that_change_when_they_are_switched_are_left_alone(store, vectors):
    model = nn.Sequential(OrderedDict(fc=Merging(5, 3)))
    before = model.fc.weight.detach().clone()
    capture(model, vectors, store, layers=["fc"])
    assert torch.equal(model.fc.weight, before)
    assert model.fc.training


def test_hooks_of_others_fire_once_a_batch_and_stay_after_an_error(store, vectors):
    model, fired = mlp(), []
    model.fc1.register_forward_pre_hook(lambda module, inputs: fired.append("before"))
    model.fc1.register_forward_hook(lambda module, inputs, output: fired.append("after"))
    capture(model, vectors.split(8), store, layers=["fc1"])
    assert fired == ["before", "after"] * 3
    with pytest.raises(dsvcca.DsvccaError, match="has 8 datapoints"):
        capture(model, vectors[:8], store, layers=["fc1"], step=1)
    model(vectors)
    assert fired == ["before", "after"] * 5


def test_a_hook_of_others_that_fails_leaves_nothing_behind(store, vectors):
    def fail(module, inputs, output):
        raise RuntimeError("not today")

    model = mlp()
    model.act.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="not today"):
        capture(model, vectors, store, layers=["fc1"])
    assert nothing_left(store)
    assert not model.fc1._forward_hooks


# Models that cannot be run


def test_a_model_on_the_meta_device_is_refused(store, vectors):
    with torch.device("meta"):
        model = mlp()
    with pytest.raises(dsvcca.DsvccaError, match="'fc1.weight' is on the meta device, which holds no numbers"):
        capture(model, vectors, store, layers=["fc1"])
    partly = mlp()
    partly.fc2.to_empty(device="meta")
    with pytest.raises(dsvcca.DsvccaError, match="'fc2.weight' is on the meta device"):
        capture(partly, vectors, store, layers=["fc1"])
    assert nothing_left(store)


def test_a_buffer_on_another_device_is_refused(store, vectors):
    model = nn.Sequential(OrderedDict(fc=nn.Linear(5, 3), bn=nn.BatchNorm1d(3)))
    model.bn.running_mean = model.bn.running_mean.to("meta")
    with pytest.raises(dsvcca.DsvccaError, match="'bn.running_mean' is on the meta device"):
        capture(model, vectors, store, layers=["fc"])
    assert nothing_left(store)


def test_parameters_that_accelerate_loads_when_they_run_are_used(store, vectors):
    accelerate = pytest.importorskip("accelerate")
    capture(mlp(), vectors, store, layers=["fc1", "fc2"], seed=0)
    model = accelerate.cpu_offload(mlp(), execution_device=torch.device("cpu"))
    assert model.fc1.weight.is_meta
    capture(model, vectors, store, layers=["fc1", "fc2"], seed=1)
    for layer in ("fc1", "fc2"):
        np.testing.assert_array_equal(stored(store, layer=layer, seed=1), stored(store, layer=layer, seed=0))


def test_modules_that_are_not_initialised_are_refused(store, vectors):
    model = nn.Sequential(OrderedDict(fc=nn.LazyLinear(3), act=nn.Tanh()))
    with pytest.raises(dsvcca.DsvccaError, match=r"'fc.weight' has no shape yet \(LazyLinear .*run the model on one"):
        capture(model, vectors, store, layers=["act"])
    assert nothing_left(store)
    model(vectors)
    capture(model, vectors, store, layers=["act"])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_is_refused_where_it_is_captured_and_runs_where_it_is_not(store, vectors, how):
    inner = mlp()
    scripted = torch.jit.script(inner) if how == "script" else torch.jit.trace(inner, vectors)
    with pytest.raises(dsvcca.DsvccaError, match="layer 'fc1' is TorchScript, which calls no hooks"):
        capture(scripted, vectors, store, layers=["fc1"])
    model = nn.Sequential(OrderedDict(scripted=scripted, head=nn.Linear(3, 2)))
    with pytest.raises(dsvcca.DsvccaError, match="layer 'scripted.fc2' is TorchScript"):
        capture(model, vectors, store, layers=["head", "scripted.fc2"])
    capture(model, vectors, store, layers=["head"])
    with torch.no_grad():
        np.testing.assert_allclose(stored(store), model.head(inner(vectors)).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("give", "form"),
    [
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "quantized"),
        (lambda x: x.to_sparse_csr(), "torch.sparse_csr"),
        (lambda x: torch.nested.nested_tensor(list(x)), "nested"),
        (lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged), "nested"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_tensors_that_are_no_ordinary_numbers_are_refused(store, vectors, give, form):
    model = Calling(lambda self, x: self.inner(x), inner=Calling(lambda self, x: give(x)))
    with pytest.raises(dsvcca.DsvccaError, match=f"a tensor that is {form}: capture a module that gives ordinary"):
        capture(model, vectors, store, layers=["inner"])
    assert nothing_left(store)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda self, x: x[:, :, : len(x)],
            r"gives \(4, 3, 4, 6\) for one batch and gave .*height changed",
        ),
        (lambda self, x: x if len(x) == 8 else x[..., 0], r"gives \(4, 3, 8\) for a batch of 4 datapoints"),
        (lambda self, x: x if len(x) == 8 else x.double(), "float64 follows one of .* float32"),
    ],
)
def test_outputs_that_change_between_batches_are_refused(store, call, message):
    images = torch.randn(N, 3, 8, 6)
    model = Calling(lambda self, x: self.inner(x), inner=Calling(call))
    with pytest.raises(dsvcca.DsvccaError, match=message):
        capture(model, images.split(8), store, layers={"inner": "nchw"})
    assert nothing_left(store)


def test_capture_imports_no_library_that_it_can_do_without():
    code = (
        "import sys, dsvcca.torch as t; loaded = set(sys.modules); "
        "assert not {'torch._dynamo', 'torch.distributed.fsdp', 'lightning', 'transformers'} & loaded"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_layer_that_runs_twice_in_a_later_batch_is_refused(store, vectors):
    def call(self, x):
        y = self.fc(x)
        return self.fc(y) if len(x) < 8 else y

    with pytest.raises(dsvcca.DsvccaError, match="layer 'fc' ran 2 times for one batch"):
        capture(Calling(call, fc=nn.Linear(5, 5)), vectors.split(8), store, layers=["fc"])
    idle = Calling(lambda self, x: self.fc(x) if len(x) == 8 else x, fc=nn.Linear(5, 5))
    with pytest.raises(dsvcca.DsvccaError, match="layer 'fc' did not run"):
        capture(idle, vectors.split(8), store, layers=["fc"])
    assert nothing_left(store)


def test_sequences_that_gain_an_axis_in_a_later_batch_are_refused(store, vectors):
    x = vectors[:, :, None].repeat(1, 1, 3)
    model = Calling(lambda self, x: self.inner(x), inner=Calling(lambda self, x: x if len(x) == 8 else x[..., None]))
    with pytest.raises(dsvcca.DsvccaError, match=r"gives \(4, 5, 3, 1\) for a batch of 4 datapoints"):
        capture(model, x.split(8), store, layers={"inner": "ntd"})
    assert nothing_left(store)
