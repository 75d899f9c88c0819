"""A probe in a loop of one's own, in Lightning and in the Trainer of transformers: what it captures."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import dsvcca  # noqa: E402
from dsvcca.torch import Probe  # noqa: E402
from tests.torch_models import Calling, ConvNet, N, mlp, stored  # noqa: E402


@pytest.fixture
def store(tmp_path):
    return dsvcca.create_store(tmp_path / "activations.zarr", datapoints=N)


@pytest.fixture
def images():
    return torch.randn(N, 3, 8, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def vectors():
    return torch.randn(N, 5, generator=torch.Generator().manual_seed(2))


def steps_of(store, **labels):
    return sorted({one.labels["step"] for one in (store.select(**labels) if labels else store).representations})


def loss_of(output, labels):
    return nn.functional.cross_entropy(output, labels)


def training_data(seed=7):
    """Return images with labels, 24 of them, which give six batches of four."""
    drawn = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(24, 3, 8, 6, generator=drawn), torch.randint(0, 5, (24,), generator=drawn))


def train(model, updates, probe=lambda step: None, begin=0):
    """Train a model with dropout and batch normalisation on data in random order."""
    torch.manual_seed(5)
    loader = DataLoader(training_data(), batch_size=4, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = begin
    probe(step)
    while step < updates:
        for x, label in loader:
            optimizer.zero_grad()
            loss_of(model(x), label).backward()
            optimizer.step()
            step += 1
            probe(step)
            if step == updates:
                break


def same_weights(one, other):
    return all(torch.equal(one.state_dict()[name], other.state_dict()[name]) for name in one.state_dict())


# A loop of one's own


@pytest.mark.parametrize(
    "steps",
    [[0, 4, 8], (8, 4, 0, 100), {0, 4, 8}, range(0, 9, 4), np.array([0, 4, 8]), lambda step: step % 4 == 0],
)
def test_a_probe_captures_at_its_steps_and_no_other(store, images, steps):
    model = ConvNet()
    probe = Probe(model, images, store, layers=["conv", "head.fc"], steps=steps, seed=3)
    train(model, 9, probe)
    assert steps_of(store, layer="conv") == steps_of(store, layer="head.fc") == [0, 4, 8]
    assert {one.labels["seed"] for one in store.representations} == {3}
    probe.capture(9)
    assert steps_of(store)[-1] == 9
    with torch.no_grad():
        model.eval()
        np.testing.assert_array_equal(stored(store, step=9, layer="head.fc"), model(images).numpy())


def test_step_0_is_before_the_first_update(store, images):
    model, fresh = ConvNet(), ConvNet().eval()
    train(model, 2, Probe(model, images, store, layers=["head.fc"], steps=[0, 1]))
    with torch.no_grad():
        np.testing.assert_array_equal(stored(store, step=0), fresh(images).numpy())
    assert (stored(store, step=1) != stored(store, step=0)).any()


def test_training_is_the_same_to_the_bit_with_a_probe_and_without(store, images):
    probed, plain = ConvNet(), ConvNet()
    loader = DataLoader(TensorDataset(images), batch_size=8)
    train(probed, 8, Probe(probed, loader, store, layers=["conv", "bn", "head.fc"], steps=range(9)))
    train(plain, 8)
    assert len(steps_of(store)) == 9
    assert same_weights(probed, plain)


def test_a_probe_that_is_not_due_does_not_touch_model_or_data(store):
    probe = Probe(mlp(), [None], store, layers=["fc1"], steps=[7])  # data that no model takes
    for step in range(7):
        probe(step)
    with pytest.raises(dsvcca.DsvccaError, match="a batch is a NoneType"):
        probe(7)


def test_a_script_that_starts_again_goes_on(store, vectors):
    calls = []
    model = Calling(lambda self, x: calls.append(len(x)) or self.fc(x), fc=nn.Linear(5, 3))
    probe = Probe(model, vectors, store, layers=["fc"], steps=[0, 10])
    probe(0)
    before = store.representations
    for step in range(11):
        probe(step)
    assert calls == [N, N]
    assert store.representations[0] == before[0]
    assert steps_of(store) == [0, 10]
    again = Probe(model, vectors, store, layers=["fc"], steps=[0, 10, 20])
    with pytest.warns(dsvcca.DsvccaWarning, match="step=0: 1 of 1 layers are in the store already.*give other labels"):
        again(0)
    again(10)  # it is said once
    again(20)
    assert steps_of(store) == [0, 10, 20]


def test_options_of_capture_go_through(store, vectors):
    sequences = vectors[:, :, None].repeat(1, 1, 2)
    model = Calling(lambda self, x: self.fc(x), fc=nn.Linear(2, 3))
    valid = torch.arange(6) < torch.arange(N)[:, None].clamp(1, 5)
    probe = Probe(
        model,
        [{"x": sequences, "ok": valid[:, :5]}],
        store,
        layers={"fc": "ntd"},
        steps=[1],
        forward=lambda model, batch: model(batch["x"]),
        mask="ok",
        positions=6,
        model="a",
    )
    probe(1)
    [one] = store.representations
    assert one.shape == (N, 6, 3)
    assert one.mask.rows == valid[:, :5].sum()
    assert one.labels == {"model": "a", "step": 1, "layer": "fc"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 100}, r"steps=100 is a int: give a collection of steps, such as range\(0, 10_001, 500\)"),
        ({"steps": "0,1"}, "is a str"),
        ({"steps": (step for step in range(3))}, "is a generator"),
        ({"steps": []}, "steps is empty"),
        ({"steps": range(0)}, "steps is empty"),
        ({"steps": [0, -1]}, "step -1: a step is the number of updates"),
        ({"steps": range(-5, 10)}, "step -5: a step is"),
        ({"steps": [0, 2.5]}, "step 2.5: a step is"),
        ({"steps": [True, 2]}, "step True: a step is"),
        ({"layers": ["fc9"]}, "no module 'fc9'"),
        ({"layer": "fc1"}, "label layer='fc1' was given"),
        ({"step": 3}, r"label step=3 was given: leave it out, probe\(step\) says it"),
        ({"view": "mean"}, "label 'view' is reserved"),
    ],
)
def test_what_can_be_known_before_training_is_refused_before_training(store, vectors, options, message):
    with pytest.raises(dsvcca.DsvccaError, match=message):
        Probe(mlp(), vectors, store, **{"layers": ["fc1"], "steps": [0], **options})


@pytest.mark.parametrize("steps", [[3], range(4), lambda step: step == 3])
def test_steps_may_be_numbers_of_any_library(store, vectors, steps):
    probe = Probe(mlp(), vectors, store, layers=["fc1"], steps=steps)
    probe(torch.tensor(3))
    assert steps_of(store) == [3]
    probe(np.int64(3))


def test_data_that_change_or_run_out_are_refused(store, vectors):
    options = {"layers": ["fc1"], "steps": [0]}
    with pytest.raises(dsvcca.DsvccaError, match="data is a generator, which is used up after one step"):
        Probe(mlp(), (x for x in vectors.split(8)), store, **options)
    with pytest.raises(dsvcca.DsvccaError, match="the DataLoader shuffles"):
        Probe(mlp(), DataLoader(TensorDataset(vectors), shuffle=True), store, **options)
    with pytest.raises(dsvcca.DsvccaError, match="a str was given instead of a store"):
        Probe(mlp(), vectors, "store", **options)


@pytest.mark.parametrize("step", [-1, 1.5, "3", None])
def test_steps_that_are_no_number_of_updates_are_refused(store, vectors, step):
    probe = Probe(mlp(), vectors, store, layers=["fc1"], steps=lambda step: True)
    with pytest.raises(dsvcca.DsvccaError, match="a step is the number of updates before it"):
        probe(step)
    with pytest.raises(dsvcca.DsvccaError, match="a step is the number of updates before it"):
        Probe(mlp(), vectors, store, layers=["fc1"], steps=[3])(step)


# Lightning


def lightning_model(accumulate=1):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = ConvNet()

        def training_step(self, batch, _):
            return loss_of(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def fit(model, callbacks, folder, **options):
        torch.manual_seed(5)
        trainer = lightning.Trainer(
            accelerator="cpu",
            callbacks=callbacks,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accumulate_grad_batches=accumulate,
            **options,
        )
        trainer.fit(model, DataLoader(training_data(), batch_size=4, shuffle=True))
        return trainer

    return Module, fit


lightning_talks = pytest.mark.filterwarnings(
    "ignore:The `srun` command is available",
    "ignore:The 'train_dataloader' does not have many workers",
    "ignore:The number of training batches",
    "ignore:.*LeafSpec.* is deprecated",
)


@lightning_talks
@pytest.mark.parametrize("last", [True, False])
def test_lightning_captures_before_training_after_updates_and_at_the_end(store, images, tmp_path, last):
    make, fit = lightning_model()
    model, plain = make(), make()
    fresh = ConvNet().eval()
    probe = Probe(model.net, images, store, layers=["conv", "head.fc"], steps=[0, 2, 7, 100])
    fit(model, [probe.lightning(last=last)], tmp_path, max_steps=9)
    assert steps_of(store) == [0, 2, 7, 9] if last else [0, 2, 7]
    fit(plain, [], tmp_path, max_steps=9)
    assert same_weights(model, plain)
    with torch.no_grad():
        np.testing.assert_array_equal(stored(store, step=0, layer="head.fc"), fresh(images).numpy())
        if last:
            np.testing.assert_array_equal(stored(store, step=9, layer="head.fc"), plain.eval().net(images).numpy())


@lightning_talks
def test_lightning_counts_updates_and_not_batches(store, images, tmp_path):
    make, fit = lightning_model(accumulate=2)
    seen = []
    model = make()

    def due(step):
        seen.append(step)
        return step == 2

    fit(model, [Probe(model.net, images, store, layers=["conv"], steps=due).lightning()], tmp_path, max_epochs=2)
    assert seen == list(range(7))
    assert steps_of(store) == [2, 6]


@lightning_talks
def test_lightning_captures_on_rank_0_only(store, images):
    pytest.importorskip("lightning.pytorch")
    model = ConvNet()
    callback = Probe(model, images, store, layers=["conv"], steps=[1]).lightning()

    class Other:
        global_step, is_global_zero = 1, False

    callback.on_train_start(Other, model)
    callback.on_train_end(Other, model)
    assert not store.representations
    Other.is_global_zero = True
    callback.on_train_start(Other, model)
    assert steps_of(store) == [1]


# The Trainer of transformers


class Classifier(nn.Module):
    """A network as the Trainer takes them: it gives its loss."""

    def __init__(self):
        super().__init__()
        self.net = ConvNet()

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"logits": logits} if labels is None else {"loss": loss_of(logits, labels), "logits": logits}


def trainer_for(model, callbacks, folder, **options):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    data = [{"x": x, "labels": label} for x, label in training_data()]
    settings = {
        "per_device_train_batch_size": 4,
        "seed": 5,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    arguments = transformers.TrainingArguments(str(folder), **{**settings, **options})
    trainer = transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data, callbacks=callbacks)
    trainer.train()
    return trainer


@pytest.mark.parametrize("last", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_trainer_captures_before_training_after_updates_and_at_the_end(store, images, tmp_path, capsys, last):
    model, plain = Classifier(), Classifier()
    fresh = ConvNet().eval()
    probe = Probe(model, [{"x": images}], store, layers=["net.conv", "net.head.fc"], steps=[0, 2, 7, 100])
    trainer_for(model, [probe.trainer(last=last)], tmp_path, max_steps=9)
    assert steps_of(store) == [0, 2, 7, 9] if last else [0, 2, 7]
    trainer_for(plain, [], tmp_path, max_steps=9)
    assert same_weights(model, plain)
    with torch.no_grad():
        np.testing.assert_array_equal(stored(store, step=0, layer="net.head.fc"), fresh(images).numpy())
        if last:
            np.testing.assert_array_equal(stored(store, step=9, layer="net.head.fc"), plain.eval().net(images).numpy())


def test_the_trainer_counts_updates_and_not_batches(store, images, tmp_path, capsys):
    model, seen = Classifier(), []

    def due(step):
        seen.append(step)
        return step == 2

    probe = Probe(model, [{"x": images}], store, layers=["net.conv"], steps=due)
    trainer_for(model, [probe.trainer()], tmp_path, num_train_epochs=2, gradient_accumulation_steps=2)
    assert seen == list(range(7))
    assert steps_of(store) == [2, 6]


def trained_to_the_best(model, callbacks, folder):
    """Train by a metric that gets worse: the best model, of step 2, is loaded at the end."""
    transformers = pytest.importorskip("transformers")
    every = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 8,
        "learning_rate": 0.01,
    }
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    seen = {}

    class See(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen[state.global_step] = copy.deepcopy(model)

    trainer = trainer_for(model, [*callbacks, See()], folder, **every, **best)
    assert trainer.state.best_global_step == 2 < trainer.state.global_step
    return seen


@pytest.mark.parametrize("early", [False, True])
def test_the_last_step_is_captured_before_the_trainer_loads_its_best_model(store, images, tmp_path, capsys, early):
    transformers = pytest.importorskip("transformers")
    model = Classifier()
    probe = Probe(model, [{"x": images}], store, layers=["net.head.fc"], steps=[0])
    stop = [transformers.EarlyStoppingCallback(1)] if early else []
    seen = trained_to_the_best(model, [probe.trainer(), *stop], tmp_path)
    end = 4 if early else 8
    assert steps_of(store) == [0, end] == [0, max(seen)]
    with torch.no_grad():
        expected, loaded = seen[end].eval().net(images).numpy(), model.eval().net(images).numpy()
    np.testing.assert_array_equal(stored(store, step=end), expected)
    assert not np.array_equal(expected, loaded)


def test_where_the_last_step_is_gone_a_warning_says_so(store, images, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")

    class Stop(transformers.TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 4

    model = Classifier()
    probe = Probe(model, [{"x": images}], store, layers=["net.head.fc"], steps=[0])
    with pytest.warns(dsvcca.DsvccaWarning, match="ended at step 4, and the Trainer has loaded its best model"):
        trained_to_the_best(model, [probe.trainer(), Stop()], tmp_path)
    assert steps_of(store) == [0]


def test_the_trainer_captures_on_rank_0_only(store, images):
    pytest.importorskip("transformers")
    model = Classifier()
    callback = Probe(model, [{"x": images}], store, layers=["net.conv"], steps=[1]).trainer()

    class State:
        global_step, is_world_process_zero, best_model_checkpoint = 1, False, None

    class Control:
        should_training_stop = False

    callback.on_train_begin(None, State, Control)
    callback.on_step_end(None, State, Control)
    callback.on_train_end(None, State, Control)
    assert not store.representations
    State.is_world_process_zero = True
    callback.on_step_end(None, State, Control)
    assert steps_of(store) == [1]


@pytest.mark.parametrize("library", ["lightning", "transformers"])
def test_a_library_that_is_not_installed_is_named(store, vectors, monkeypatch, library):
    for name in ("lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    probe = Probe(mlp(), vectors, store, layers=["fc1"], steps=[0])
    with pytest.raises(dsvcca.DsvccaError, match=f"pip install '?{library}"):
        probe.lightning() if library == "lightning" else probe.trainer()
