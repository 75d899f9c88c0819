"""Freeze training: what is frozen when, that nothing of it moves by one bit, what it saves, and every refusal."""

from __future__ import annotations

import copy
import gc
import io
import random
from collections import OrderedDict
from contextlib import nullcontext

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import dsvcca  # noqa: E402
from dsvcca.torch import FreezeTraining, WhenSettled  # noqa: E402

STEPS = 6
N = 10


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for so little, threads cost more than they bring
    yield
    torch.set_num_threads(threads)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(fc1=nn.Linear(7, 5), act1=nn.ReLU(), fc2=nn.Linear(5, 3), act2=nn.ReLU(), out=nn.Linear(3, 2))
    )


def convnet():
    """Return maps, batch norm, dropout, and a head."""
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 4, 3),
            bn1=nn.BatchNorm2d(4),
            act=nn.ReLU(),
            drop=nn.Dropout(0.5),
            conv2=nn.Conv2d(4, 6, 3, padding=1),
            bn2=nn.BatchNorm2d(6),
            flat=nn.Flatten(),
            out=nn.Linear(6 * 4 * 4, 2),
        )
    )


BLOCKS = [["conv1", "bn1", "act"], ["conv2", "bn2"], "out"]


def images(seed=1, n=N):
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def bits(model):
    return {name: one.clone() for name, one in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def train(model, optimizer, before=None, steps=range(STEPS), set_to_none=True, after=None):
    """Train on random images, model.train() before every step; `before` is called with the step, `after` at its end."""
    for step in steps:
        torch.manual_seed(step)  # of dropout
        model.train()
        if before is not None:
            before(step)
        optimizer.zero_grad(set_to_none=set_to_none)
        functional.cross_entropy(model(images(step)), torch.arange(N) % 2).backward()
        optimizer.step()
        if after is not None:
            after(step)
    return bits(model)


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1} | options)


def frozen_at(freeze, steps):
    """Return the step at which each group was frozen."""
    return {name: step for step in range(steps + 1) for name in freeze.step(step)}


# When


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 999])
def test_of_l_layers_the_lth_is_frozen_when_l_lths_of_the_training_are_over(steps):
    found = frozen_at(FreezeTraining(mlp(), layers=["fc1", "fc2", "out"], steps=steps), steps)
    for layer, name in enumerate(["fc1", "fc2", "out"], 1):
        assert 3 * (found[name] - 1) < layer * steps <= 3 * found[name]
    assert found["out"] == steps  # never before the end


def test_layers_are_frozen_at_the_shares_or_the_steps_that_are_given():
    layers = ["fc1", "fc2", "out"]
    shares = FreezeTraining(mlp(), layers=layers, steps=100, schedule=[0.07, 0.505, 1.0])
    assert frozen_at(shares, 100) == {"fc1": 7, "fc2": 51, "out": 100}
    steps = FreezeTraining(mlp(), layers=layers, steps=30, schedule=(0, np.int64(0), 1.0))
    assert steps.step(0) == ["fc1", "fc2"]
    assert steps.frozen == ["fc1", "fc2"]


def test_a_training_that_starts_in_the_middle_freezes_at_once_what_is_due():
    model = mlp()
    freeze = FreezeTraining(model, layers=["fc1", "fc2", "out"], steps=9_000)
    assert freeze.step(6_000) == ["fc1", "fc2"]
    assert freeze.step(6_000) == []
    assert [one.requires_grad for one in model.parameters()] == [False] * 4 + [True] * 2


def test_steps_are_counted_where_none_is_given():
    freeze = FreezeTraining(mlp(), layers=[["fc1", "fc2"], "out"], steps=4)
    assert [freeze.step() for _ in range(5)] == [[], [], ["fc1+fc2"], [], ["out"]]
    assert repr(freeze) == "<FreezeTraining: 2 of 2 groups frozen, step 4 of 4>"
    assert freeze.history.empty


def test_steps_that_begin_anew_with_every_epoch_are_refused():
    freeze = FreezeTraining(mlp(), layers=["fc1", "fc2", "out"], steps=100)
    freeze.step(49)
    with pytest.raises(dsvcca.DsvccaError, match="step 0 came after step 49: count steps over the whole training"):
        freeze.step(0)
    assert freeze.step(50) == []
    assert freeze.frozen == ["fc1"]


@pytest.mark.parametrize("step", [-1, 1.5, "3", True])
def test_steps_that_are_no_numbers_are_refused(step):
    freeze = FreezeTraining(mlp(), layers=["fc1", "fc2", "out"], steps=100)
    with pytest.raises(dsvcca.DsvccaError, match="give a whole number, 0 or more"):
        freeze.step(step)


@pytest.mark.parametrize(
    ("schedule", "why"),
    [
        ("cubic", "schedule='cubic' is unknown: use 'linear'"),
        (0.5, "schedule=0.5 is unknown"),
        ({"fc1": 0.5, "fc2": 0.7, "out": 1.0}, "is unknown: use 'linear', one share or step for each group"),
        ([0.5, 1.0], "schedule has 2 numbers for 3 groups"),
        ([0.5, 0.2, 1.0], r"at the steps \[50, 20, 100\]: none can be frozen before the one below it"),
        ([0.5, 0.7, 1], r"\[50, 70, 1\]: .*whole numbers are steps, 1.0 is step 100"),
        ([0.5, 1.1, 1.0], "schedule holds 1.1: give shares"),
        ([-5, 0.5, 1.0], "schedule holds -5"),
        ([float("nan"), 0.5, 1.0], "schedule holds nan"),
        ([True, 0.5, 1.0], "schedule holds True"),
        ([0.1, 0.2, 0.3], "at step 30 of 100 the last parameters would be frozen"),
    ],
)
def test_schedules_that_cannot_be_are_refused(schedule, why):
    with pytest.raises(dsvcca.DsvccaError, match=why):
        FreezeTraining(mlp(), layers=["fc1", "fc2", "out"], steps=100, schedule=schedule)


@pytest.mark.parametrize("steps", [0, -1, 1.5, None, True])
def test_a_training_without_a_length_is_refused(steps):
    with pytest.raises(dsvcca.DsvccaError, match="steps=.*: give a whole number, 1 or more"):
        FreezeTraining(mlp(), layers=["fc1", "fc2", "out"], steps=steps)


# What


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        ("fc1", "layers='fc1' is a str: pass a list of names"),
        (3, "layers=3 is a int"),
        ([], "layers is empty"),
        (["fc1", []], r"layers holds \[\]: a group is"),
        (["fc1", 2], "layers holds 2: a group is"),
        (["fc1", [["fc2"]]], r"layers holds \[\['fc2'\]\]"),
        (["fc1", "fc3"], "has no module or parameter 'fc3': did you mean"),
        (["fc1", ""], "has no module or parameter ''"),
        (["fc1", ["fc2", "fc1"]], "layers names 'fc1' twice"),
        (["fc1.weight", "fc1"], "'fc1.weight' is inside 'fc1'"),
        (["fc1", "act1", "fc2"], r"group 'act1' has no parameters to freeze: .* with the layer before it"),
    ],
)
def test_names_that_cannot_be_frozen_are_refused(layers, why):
    with pytest.raises(dsvcca.DsvccaError, match=why):
        FreezeTraining(mlp(), layers=layers, steps=10)


def test_a_group_that_is_not_trained_is_refused():
    model = mlp()
    model.fc1.requires_grad_(False)
    with pytest.raises(dsvcca.DsvccaError, match="no parameter of group 'fc1' is trained"):
        FreezeTraining(model, layers=["fc1", "fc2", "out"], steps=10)


def test_parameters_in_no_group_are_named_and_go_on():
    model = mlp()
    with pytest.warns(dsvcca.DsvccaWarning, match="2 of the parameters .* 'fc1.weight', 'fc1.bias'") as caught:
        freeze = FreezeTraining(model, layers=["fc2", "out"], steps=10, schedule=[2, 3])
    assert caught[0].filename == __file__
    freeze.step(10)
    assert [name for name, one in model.named_parameters() if one.requires_grad] == ["fc1.weight", "fc1.bias"]


class Tokens(nn.Module):
    """An embedding below, a parameter of the model itself, and a head that may share the weights of the embedding."""

    def __init__(self, tied):
        super().__init__()
        torch.manual_seed(0)
        self.place = nn.Parameter(torch.randn(4, 5))
        self.emb = nn.Embedding(9, 5)
        self.fc = nn.Linear(5, 5)
        self.out = nn.Linear(5, 9)
        if tied:
            self.out.weight = self.emb.weight

    def forward(self, tokens):
        return self.out(self.fc(self.emb(tokens) + self.place))


def test_a_parameter_of_the_model_itself_is_frozen_by_its_name():
    model = Tokens(tied=False)
    freeze = FreezeTraining(model, layers=[["place", "emb"], "fc", "out"], steps=3)
    assert freeze.step(1) == ["place+emb"]
    assert not model.place.requires_grad
    assert not model.emb.weight.requires_grad
    assert model.fc.weight.requires_grad


def test_a_shared_parameter_is_frozen_with_the_last_group_that_has_it():
    model = Tokens(tied=True)
    with pytest.warns(dsvcca.DsvccaWarning, match="'emb.weight' is in group 'place.emb' and in 'out'") as caught:
        freeze = FreezeTraining(model, layers=[["place", "emb"], "fc", "out"], steps=3)
    assert len(caught) == 1
    freeze.step(2)
    trained = [name for name, one in model.named_parameters() if one.requires_grad]
    assert trained == ["emb.weight", "out.bias"]
    found = freeze.flops(torch.zeros(2, 4, dtype=torch.long))
    # the weights of out, and gradients through out and fc to the embedding
    assert list(found.backward) == [2 * 8 * 2 * (5 * 9 + 5 * 5)] * 2 + [2 * 8 * (2 * 5 * 9 + 5 * 5)]


def test_a_group_that_shares_all_it_has_is_refused():
    with pytest.raises(dsvcca.DsvccaError, match="group 'emb' shares all its parameters with group 'out'"):
        FreezeTraining(Tokens(tied=True), layers=["emb", "fc", "out"], steps=3)


# That nothing of it moves

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"weight_decay": 0.1}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1, "amsgrad": True}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9, "weight_decay": 0.1}),
    "adagrad": (torch.optim.Adagrad, {"weight_decay": 0.1}),
}
WAYS = [(name, way) for name in OPTIMIZERS for way in ({"foreach": True}, {"foreach": False})]
WAYS += [(name, {"fused": True}) for name in ("sgd", "adam", "adamw", "adagrad")]


@pytest.mark.parametrize(("name", "way"), WAYS)
@pytest.mark.parametrize("given", [True, False])
def test_what_is_frozen_does_not_move_by_one_bit(name, way, given):
    model = convnet()
    kind, options = OPTIMIZERS[name]
    optimizer = kind(model.parameters(), lr=0.05, **options, **way)
    freeze = FreezeTraining(model, layers=BLOCKS, steps=STEPS, optimizer=optimizer if given else None)
    was = {}

    def remember(step):
        freeze.step(step)
        if step in (2, 4):
            was[step] = bits(model)

    end = train(model, optimizer, remember, set_to_none=given)
    for step, names in ((2, ("conv1.", "bn1.")), (4, ("conv1.", "bn1.", "conv2.", "bn2."))):
        for key, value in was[step].items():
            assert torch.equal(value, end[key]) == key.startswith(names), (step, key)


def test_what_is_not_frozen_trains_as_if_the_rest_had_been_frozen_by_hand():
    model = convnet()
    optimizer = sgd(model)
    freeze = FreezeTraining(model, layers=BLOCKS, steps=STEPS, optimizer=optimizer)
    found = train(model, optimizer, freeze.step)

    hand = convnet()
    optimizer = sgd(hand)

    def by_hand(step):
        if step >= 2:
            hand.conv1.requires_grad_(False)
            hand.bn1.requires_grad_(False).eval()
            hand.conv1.weight.grad = hand.conv1.bias.grad = hand.bn1.weight.grad = hand.bn1.bias.grad = None
        if step >= 4:
            hand.conv2.requires_grad_(False)
            hand.bn2.requires_grad_(False).eval()
            hand.conv2.weight.grad = hand.conv2.bias.grad = hand.bn2.weight.grad = hand.bn2.bias.grad = None

    assert same(found, train(hand, optimizer, by_hand))


def test_a_training_in_which_nothing_is_due_is_the_same_to_the_last_bit():
    model, other = convnet(), convnet()
    optimizer = sgd(model)
    freeze = FreezeTraining(model, layers=BLOCKS, steps=STEPS, schedule=[1.0] * 3, optimizer=optimizer)
    assert same(train(model, optimizer, freeze.step), train(other, sgd(other)))


def test_parameter_groups_schedulers_clipping_and_scalers_work_as_before():
    model = convnet()
    early = [one for name, one in model.named_parameters() if name.startswith(("conv1", "bn1"))]
    late = [one for name, one in model.named_parameters() if not name.startswith(("conv1", "bn1"))]
    optimizer = torch.optim.AdamW([{"params": early, "lr": 0.1}, {"params": late, "weight_decay": 0.3}], lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    freeze = FreezeTraining(model, layers=BLOCKS, steps=8, optimizer=optimizer)
    was = {}
    for step in range(8):
        freeze.step(step)
        if step == 3:
            was = bits(model)
        optimizer.zero_grad(set_to_none=False)
        scaler.scale(functional.cross_entropy(model(images(step)), torch.arange(N) % 2)).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        assert norm > 0
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    end = bits(model)
    assert all(torch.equal(value, end[key]) for key, value in was.items() if key.startswith(("conv1", "bn1")))
    assert not torch.equal(was["out.weight"], end["out.weight"])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 / 10**4, 0.01 / 10**4])


def test_a_step_between_backward_and_update_freezes_before_the_update():
    model = convnet()
    optimizer = sgd(model)
    freeze = FreezeTraining(model, layers=BLOCKS, steps=3, optimizer=optimizer)
    train(model, optimizer, steps=[0])
    model(images()).sum().backward()
    before = bits(model)
    freeze.step(1)
    optimizer.step()
    assert torch.equal(model.conv1.weight, before["conv1.weight"])
    assert not torch.equal(model.conv2.weight, before["conv2.weight"])


# Optimizers


def test_what_the_optimizers_keep_of_frozen_parameters_is_dropped():
    model = convnet()
    body = torch.optim.AdamW([one for name, one in model.named_parameters() if not name.startswith("out")])
    head = torch.optim.SGD(model.out.parameters(), lr=0.1, momentum=0.9)
    freeze = FreezeTraining(model, layers=BLOCKS, steps=3, optimizer=[body, head])
    model(images()).sum().backward()
    body.step()
    head.step()
    assert len(body.state) == 8
    freeze.step(1)
    assert set(body.state) == {*model.conv2.parameters(), *model.bn2.parameters()}
    assert set(head.state) == set(model.out.parameters())
    assert model.conv1.weight.grad is None
    freeze.step(2)
    assert len(body.state) == 0
    assert len(head.state) == 2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_of_all_three_goes_on_to_the_same_bits(name):
    kind, options = OPTIMIZERS[name]

    def made():
        model = convnet()
        optimizer = kind(model.parameters(), lr=0.05, **options)
        return model, optimizer, FreezeTraining(model, layers=BLOCKS, steps=STEPS, optimizer=optimizer)

    model, optimizer, freeze = made()
    file = io.BytesIO()

    def save(step):
        if step == 3:
            torch.save([one.state_dict() for one in (model, optimizer, freeze)], file)

    end = train(model, optimizer, freeze.step, after=save)
    others = made()
    file.seek(0)
    for one, state in zip(others, torch.load(file, weights_only=True), strict=True):
        one.load_state_dict(state)
    assert others[2].frozen == ["conv1+bn1+act"]
    assert same(end, train(others[0], others[1], others[2].step, steps=range(4, STEPS)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_was_frozen_can_be_trained_again(name):
    model = convnet()
    kind, options = OPTIMIZERS[name]
    optimizer = kind(model.parameters(), lr=0.05, **options)
    freeze = FreezeTraining(model, layers=BLOCKS, steps=STEPS, optimizer=optimizer)
    train(model, optimizer, freeze.step)
    assert len(optimizer.state) == (10 if name == "adagrad" else 2)
    optimizer.load_state_dict(optimizer.state_dict())
    freeze.unfreeze()
    before = bits(model)
    end = train(model, optimizer, steps=[STEPS])
    moved = {key for key, value in before.items() if not torch.equal(value, end[key])}
    assert moved >= {"conv1.weight", "bn1.running_mean", "conv2.weight", "bn2.weight", "out.weight"}


def test_an_earlier_checkpoint_thaws_what_was_frozen_later():
    model = mlp()
    freeze = FreezeTraining(model, layers=["fc1", "fc2", "out"], steps=9)
    freeze.step(3)
    state = freeze.state_dict()
    freeze.step(6)
    freeze.load_state_dict(state)
    assert freeze.frozen == ["fc1"]
    assert [one.requires_grad for one in model.parameters()] == [False] * 2 + [True] * 4
    assert freeze.step(4) == []


def test_the_state_of_something_else_is_refused():
    freeze = FreezeTraining(mlp(), layers=["fc1", "fc2", "out"], steps=9)
    with pytest.raises(dsvcca.DsvccaError, match="is no state of FreezeTraining"):
        freeze.load_state_dict(sgd(mlp()).state_dict())
    other = FreezeTraining(mlp(), layers=[["fc1", "fc2"], "out"], steps=9)
    with pytest.raises(dsvcca.DsvccaError, match=r"groups \['fc1\+fc2', 'out'\], this one has \['fc1', 'fc2', 'out'\]"):
        freeze.load_state_dict(other.state_dict())


def test_optimizers_that_cannot_be_served_are_refused():
    model = mlp()
    layers = ["fc1", "fc2", "out"]
    with pytest.raises(dsvcca.DsvccaError, match="LBFGS moves all parameters together"):
        FreezeTraining(model, layers=layers, steps=9, optimizer=torch.optim.LBFGS(model.parameters()))
    with pytest.raises(dsvcca.DsvccaError, match="the SGD has no parameter of the model"):
        FreezeTraining(model, layers=layers, steps=9, optimizer=sgd(mlp()))
    with pytest.raises(dsvcca.DsvccaError, match=r"optimizer=0.1 is no torch.optim.Optimizer"):
        FreezeTraining(model, layers=layers, steps=9, optimizer=0.1)
    assert all(one.requires_grad for one in model.parameters())


# Modules


def test_batch_norm_stays_in_evaluation_and_dropout_goes_on():
    model = convnet().train()
    freeze = FreezeTraining(model, layers=[["conv1", "bn1", "act", "drop"], *BLOCKS[1:]], steps=3)
    freeze.step(1)
    assert not model.bn1.training
    for mode in (True, False, True):
        model.train(mode)
        assert not model.bn1.training
        assert model.drop.training == model.bn2.training == model.conv1.training == mode
    assert model[:4](images()).eq(0).float().mean() > 0.6  # half of what ReLU leaves, beside what it does not


def test_modules_inside_one_that_keeps_buffers_keep_their_modes():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.ones(2))
            self.drop = nn.Dropout(0.5)
            self.fc = nn.Linear(5, 5)

    model = nn.Sequential(OrderedDict(attention=Attention(), out=nn.Linear(5, 2))).train()
    freeze = FreezeTraining(model, layers=["attention", "out"], steps=2)
    freeze.step(1)
    assert (model.attention.training, model.attention.drop.training) == (False, True)
    model.eval()
    assert not model.attention.drop.training
    model.train()
    assert (model.attention.training, model.attention.drop.training) == (False, True)


def test_the_vectors_of_spectral_norm_do_not_move():
    model = nn.Sequential(
        OrderedDict(fc1=nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5)), out=nn.Linear(5, 2))
    )
    freeze = FreezeTraining(model, layers=["fc1", "out"], steps=2)
    freeze.step(1)
    before = bits(model.fc1)
    model.train()(torch.randn(4, 6))
    assert same(before, bits(model.fc1))
    freeze.unfreeze()
    model(torch.randn(4, 6))
    assert not same(before, bits(model.fc1))


def test_parameters_that_something_else_sets_free_are_noticed():
    model = mlp()
    freeze = FreezeTraining(model, layers=["fc1", "fc2", "out"], steps=6)
    freeze.step(2)
    model.requires_grad_(True)  # as loops of adversarial networks do
    with pytest.raises(dsvcca.DsvccaError, match=r"2 parameters that are frozen \(.*fc1.weight.*\) are trained again"):
        freeze.step(3)
    freeze.unfreeze()
    assert freeze.step(4) == ["fc1", "fc2"]


def test_running_statistics_in_no_group_are_named():
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, 3))
    with pytest.warns(dsvcca.DsvccaWarning, match=r"'1' \(BatchNorm1d\) is in no group, and its running statistics"):
        FreezeTraining(model, layers=["0", "3"], steps=4)
    FreezeTraining(model, layers=[["0", "1"], "3"], steps=4)


@pytest.mark.parametrize("mode", [True, False])
def test_unfreeze_lets_everything_train_again(mode):
    model = convnet()
    model.conv1.bias.requires_grad_(False)
    wanted = [one.requires_grad for one in model.parameters()]
    freeze = FreezeTraining(model, layers=BLOCKS, steps=3)
    freeze.step(3)
    assert not any(one.requires_grad for one in model.parameters())
    model.train(mode)
    freeze.unfreeze()
    assert freeze.frozen == []
    assert [one.requires_grad for one in model.parameters()] == wanted
    assert all(module.training == mode for module in model.modules())
    model.train()
    assert all(module.training for module in model.modules())
    assert not any("train" in vars(module) for module in model.modules())
    assert freeze.step(3) == ["conv1+bn1+act", "conv2+bn2", "out"]


def test_a_frozen_model_is_copied_and_stored_like_any_other():
    model = convnet().train()
    FreezeTraining(model, layers=BLOCKS, steps=3).step(1)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        other.train()
        assert not other.bn1.training
        model.bn1.training = True  # not of this one
        other.train()
        assert model.bn1.training
        model.bn1.training = False


def test_a_model_that_lost_a_layer_is_told_so():
    model = mlp()
    freeze = FreezeTraining(model, layers=["fc1", "fc2", "out"], steps=3)
    model.fc1 = nn.Identity()
    with pytest.raises(dsvcca.DsvccaError, match=r"the model has no 'fc1.weight' any more"):
        freeze.step(1)


def test_compiled_models_are_frozen_too():
    model = convnet()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = sgd(model)
    freeze = FreezeTraining(model, layers=BLOCKS, steps=3, optimizer=optimizer)
    train(compiled, optimizer, freeze.step, steps=range(1))
    freeze.step(1)
    before = bits(model)
    end = train(compiled, optimizer, steps=range(1, 3))
    for key, value in before.items():
        assert torch.equal(end["_orig_mod." + key], value) == key.startswith(("conv1.", "bn1."))
    assert model.conv1.weight.grad is None


@pytest.mark.parametrize("reentrant", [False, True])
def test_activations_may_be_checkpointed_but_not_reentrantly(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.block, self.out = nn.Linear(7, 5), nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.out(checkpoint(self.block, self.low(x), use_reentrant=reentrant))

    model, x = Checkpointed(), torch.randn(N, 7)
    FreezeTraining(model, layers=["low", "block", "out"], steps=3).step(1)
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad") if reentrant else nullcontext():
        model(x).sum().backward()
    if reentrant:
        assert model.block.weight.grad is None
    else:
        expected = torch.outer(model.out.weight.detach().sum(dim=0), model.low(x).detach().sum(dim=0))
        torch.testing.assert_close(model.block.weight.grad, expected)


@pytest.mark.parametrize(("options", "works"), [({}, False), ({"find_unused_parameters": True}, True)])
def test_data_parallel_models_have_to_look_for_unused_parameters(tmp_path, options, works):
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.FileStore(str(tmp_path / "f"), 1), rank=0, world_size=1)
    try:
        model = mlp()
        parallel = nn.parallel.DistributedDataParallel(model, **options)
        freeze = FreezeTraining(model, layers=["fc1", "fc2", "out"], steps=3)
        x = torch.randn(4, 7)
        for step in range(2):
            freeze.step(step)
            parallel(x).sum().backward()
        if works:
            parallel(x).sum().backward()
            assert model.fc1.weight.grad is None
            assert model.fc2.weight.grad is not None
        else:
            with pytest.raises(RuntimeError, match="find_unused_parameters=True"):
                parallel(x)
    finally:
        parallel = freeze = None  # the last to let go of the group would wait for its threads, and they for Python
        gc.collect()
        distributed.destroy_process_group()


# As layers settle


def probe(n=200):
    return torch.randn(n, 7, generator=torch.Generator().manual_seed(5))


def settling(model, **options):
    rule = WhenSettled(probe(), **{"every": 1, "patience": 1} | options)
    return FreezeTraining(model, layers=["fc1", "fc2", "out"], steps=100, schedule=rule)


def disturb(module):
    nn.init.normal_(module.weight)


def test_layers_are_frozen_from_the_bottom_when_they_are_what_they_were():
    model = mlp()
    freeze = settling(model)
    assert freeze.step(0) == []
    disturb(model.fc1)
    assert freeze.step(1) == []  # fc1 moved, and with it what comes in above
    disturb(model.fc2)
    assert freeze.step(2) == ["fc1"]
    assert freeze.step(3) == ["fc2"]
    assert freeze.step(4) == []  # the last one goes on
    assert freeze.frozen == ["fc1", "fc2"]
    history = freeze.history
    assert list(history.columns) == ["step", "group", "similarity", "frozen"]
    assert list(history[history.frozen].group) == ["fc1", "fc2"]
    assert list(history.groupby("step").size()) == [3, 3, 2]  # and nothing is measured once nothing can be frozen
    assert (history.similarity[history.step >= 3] > 1 - 1e-6).all()
    assert history.similarity[0] < 0.9


def test_what_settled_above_waits_for_what_is_below():
    model = mlp()
    rule = WhenSettled(probe(), every=1, patience=1)
    with (
        pytest.warns(dsvcca.DsvccaWarning, match="'out.weight', 'out.bias'"),
        pytest.warns(dsvcca.DsvccaWarning, match=r"'fc2' is frozen first, .* comes after 'fc1', .*: give layers bot"),
    ):
        freeze = FreezeTraining(model, layers=["fc2", "fc1"], steps=9, schedule=rule)
    freeze.step(0)
    disturb(model.fc2)
    assert freeze.step(1) == []
    assert freeze.history.similarity[1] > 1 - 1e-6
    assert freeze.step(2) == ["fc2", "fc1"]


@pytest.mark.parametrize("measure", ["svcca", "pwcca"])
def test_the_similarity_is_that_of_the_outputs_on_the_probe_in_evaluation_mode(measure):
    model = convnet().train()
    x = images(n=60)

    def rows():
        model.eval()
        with torch.no_grad():
            act, last = model[:3](x), model(x)
        model.train()
        return act.permute(0, 2, 3, 1).reshape(-1, 4).double().numpy(), last.double().numpy()

    rule = WhenSettled(x, every=1, measure=measure)
    with pytest.warns(dsvcca.DsvccaWarning, match="in no group"):
        freeze = FreezeTraining(model, layers=[["conv1", "bn1", "act"], "out"], steps=9, schedule=rule)
    freeze.step(0)
    before = rows()
    train(model, sgd(model), steps=range(2))
    freeze.step(1)
    for found, now, old in zip(freeze.history.similarity, rows(), before, strict=True):
        expected = (dsvcca.pwcca if measure == "pwcca" else dsvcca.svcca)(now, old, variance=0.99)
        assert found == pytest.approx(expected, abs=1e-5)
        assert found < 0.9999


def test_checks_wait_for_their_steps_their_number_and_the_warmup():
    freeze = settling(mlp(), every=10, patience=2, warmup=35)
    assert frozen_at(freeze, 100) == {"fc1": 40, "fc2": 40}
    assert list(freeze.history.step.unique()) == [10, 20, 30, 40]

    model = mlp()
    freeze = settling(model, every=10, patience=2)
    for step in range(0, 100, 7):  # steps that are no multiples
        if step == 14:
            disturb(model.fc1)
        if freeze.step(step):
            break
    assert list(freeze.history.step.unique()) == [14, 28, 42]
    assert freeze.frozen == ["fc1", "fc2"]


def test_measuring_leaves_the_training_as_it_is_to_the_last_bit():
    def trained(measured):
        model = convnet()
        optimizer = sgd(model)
        rule = WhenSettled(images(n=60), every=2, warmup=1000)
        freeze = FreezeTraining(model, layers=BLOCKS, steps=STEPS, schedule=rule, optimizer=optimizer)
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        model.train()
        model.drop.eval()
        for step in range(STEPS):
            if measured:
                freeze.step(step)
                assert not any(module._forward_hooks for module in model.modules())
            optimizer.zero_grad()
            functional.cross_entropy(model(images(step)), torch.arange(N) % 2).backward()
            optimizer.step()
        assert measured == (len(freeze.history) == 3 * 2)
        assert [module.training for module in model.modules()] == [True] * 4 + [False] + [True] * 4
        return bits(model), torch.rand(1), random.random(), np.random.rand()

    found, expected = trained(True), trained(False)
    assert same(found[0], expected[0])
    assert found[1:] == expected[1:]


def test_a_checkpoint_of_a_measured_training_decides_the_same():
    def made():
        model = convnet()
        optimizer = sgd(model, lr=1e-4)
        rule = WhenSettled(images(n=60), every=2, threshold=0.999)
        return model, optimizer, FreezeTraining(model, layers=BLOCKS, steps=STEPS, schedule=rule, optimizer=optimizer)

    model, optimizer, freeze = made()
    file = io.BytesIO()

    def save(step):
        if step == 3:
            torch.save([one.state_dict() for one in (model, optimizer, freeze)], file)

    end = train(model, optimizer, freeze.step, after=save)
    others = made()
    file.seek(0)
    for one, state in zip(others, torch.load(file, weights_only=True), strict=True):
        one.load_state_dict(state)
    assert others[2].frozen == []
    assert len(others[2].history) == 3
    assert same(end, train(others[0], others[1], others[2].step, steps=range(4, STEPS)))
    assert freeze.frozen == ["conv1+bn1+act", "conv2+bn2"]
    assert others[2].history.equals(freeze.history)
    assert others[2].flops(images()).equals(freeze.flops(images()))


def test_a_layer_that_died_is_not_settled_and_the_training_goes_on():
    model = mlp()
    freeze = settling(model)
    freeze.step(0)
    nn.init.constant_(model.fc2.weight, 0.0)
    with pytest.warns(dsvcca.DsvccaWarning, match="cannot be compared at step 1 with the check before") as caught:
        assert freeze.step(1) == ["fc1"]
    assert caught[0].filename == __file__
    assert [str(one.message)[:12] for one in caught] == ["group 'fc2' ", "group 'out' "]
    assert list(freeze.history.similarity.isna()) == [False, True, True]


def test_batches_are_called_as_capture_calls_them():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return {"logits": self.inner(x)}

    layers = ["inner.fc1", "inner.fc2", "inner.out"]
    for batch in (probe(), (probe(), torch.arange(200)), [probe()], {"x": probe()}):
        freeze = FreezeTraining(Named(), layers=layers, steps=9, schedule=WhenSettled(batch, every=1, patience=1))
        assert freeze.step() == []
        assert freeze.step() == layers[:2]
        found = freeze.flops(x=probe(11))
        assert found.attrs["checks"] == 2 * 2 * 200 * (35 + 15 + 6)
        assert found.attrs["total"] == found.total.sum() + found.attrs["checks"]


def test_probes_with_too_few_rows_are_refused():
    rule = WhenSettled(probe(10))
    with pytest.raises(dsvcca.DsvccaError, match="gives 10 rows for the 5 neurons of layer 'fc1'.* at least 11 rows"):
        FreezeTraining(mlp(), layers=["fc1", "fc2", "out"], steps=9, schedule=rule)


class Block(nn.Module):
    """A module of which nobody knows the axes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x)


def test_axes_that_cannot_be_told_are_asked_for():
    model = nn.Sequential(OrderedDict(block=Block(), flat=nn.Flatten(), out=nn.Linear(4 * 16, 2)))
    layers = ["block", "out"]
    with pytest.raises(dsvcca.DsvccaError, match=r"cannot be told: pass dims=\{'block': 'nchw'\} or") as error:
        FreezeTraining(model, layers=layers, steps=9, schedule=WhenSettled(images()))
    assert "None" not in str(error.value)
    rule = WhenSettled(images(n=30), dims={"block": "nchw"}, every=1, patience=1)
    freeze = FreezeTraining(model, layers=layers, steps=9, schedule=rule)
    assert [freeze.step(), freeze.step()] == [[], ["block"]]
    freeze.unfreeze()
    with pytest.raises(dsvcca.DsvccaError, match="dims names 'blok', which ends no group: did you mean 'block'"):
        FreezeTraining(model, layers=layers, steps=9, schedule=WhenSettled(images(n=30), dims={"blok": "nchw"}))


def test_groups_whose_output_cannot_be_seen_are_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(7, 7)
            self.idle = nn.Linear(7, 7)
            self.bias = nn.Parameter(torch.zeros(7))

        def forward(self, x):
            return self.fc(self.fc(x)) + self.bias

    rule = WhenSettled(probe())
    for layers, why in (
        (["fc", ["idle", "bias"]], "module 'fc' ran 2 times"),
        ([["fc", "idle"], "bias"], "group 'bias' has no module"),
        ([["bias", "fc", "idle"]], "module 'idle' ran 0 times"),
    ):
        with pytest.raises(dsvcca.DsvccaError, match=why):
            FreezeTraining(Twice(), layers=layers, steps=9, schedule=rule)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"every": 0}, "every=0: use a whole number, at least 1"),
        ({"patience": 1.5}, "patience=1.5: use a whole number"),
        ({"warmup": -1}, "warmup=-1: use a whole number, at least 0"),
        ({"warmup": True}, "warmup=True"),
        ({"threshold": 0}, "threshold=0 is no similarity"),
        ({"threshold": 1.1}, "threshold=1.1 is no similarity"),
        ({"threshold": "high"}, "threshold='high' is no similarity"),
        ({"measure": "svca"}, "measure='svca' is unknown: did you mean 'svcca'"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, why):
    with pytest.raises(dsvcca.DsvccaError, match=why):
        WhenSettled(probe(), **options)


def test_a_probe_that_is_no_batch_is_refused():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(probe()), batch_size=8)
    with pytest.raises(dsvcca.DsvccaError, match="probe is a DataLoader: give one batch"):
        WhenSettled(loader)
    model = nn.Sequential(OrderedDict(fc=nn.Linear(7, 3), loss=nn.Flatten(0)))
    with pytest.raises(dsvcca.DsvccaError, match=r"'loss' \(Flatten\) gives \(600,\)"):
        FreezeTraining(model, layers=[["fc", "loss"]], steps=9, schedule=WhenSettled(probe()))


# What it saves


def test_operations_of_an_mlp_are_those_of_the_formula():
    n, sizes = 11, [35, 15, 6]  # neurons times neurons of each layer
    found = FreezeTraining(mlp(), layers=["fc1", "fc2", "out"], steps=10).flops(torch.randn(n, 7))
    # forward 2mnk a layer; backward 2mnk for the weights of what is trained, and for the inputs of what is above it
    weights = [2 * n * sum(sizes[k:]) for k in range(3)]
    inputs = [2 * n * sum(sizes[k + 1 :]) for k in range(3)]
    forward = 2 * n * sum(sizes)
    assert list(found.columns) == ["frozen", "from_step", "steps", "forward", "backward", "total"]
    assert list(found.frozen) == [0, 1, 2]
    assert list(found.from_step) == [0, 4, 7]
    assert list(found.steps) == [4, 3, 3]
    assert list(found.forward) == [forward] * 3
    assert list(found.backward) == [w + i for w, i in zip(weights, inputs, strict=True)]
    total = sum(steps * (forward + w + i) for steps, w, i in zip(found.steps, weights, inputs, strict=True))
    baseline = 10 * (forward + weights[0] + inputs[0])
    assert found.attrs == {"baseline": baseline, "total": total, "checks": 0, "saved": 1 - total / baseline}


def test_operations_of_a_convolutional_network_are_those_of_the_formula():
    n, sizes = N, [16 * 4 * 27, 16 * 6 * 36, 96 * 2]
    freeze = FreezeTraining(convnet(), layers=BLOCKS, steps=9)
    for now in (0, 5, 9):  # whatever is frozen already
        freeze.step(now)
        found = freeze.flops(images())
        assert list(found.forward) == [2 * n * sum(sizes)] * 3
        assert list(found.backward) == [2 * n * (sum(sizes[k:]) + sum(sizes[k + 1 :])) for k in range(3)]


def test_recurrent_layers_and_attention_are_counted_as_the_products_that_they_are():
    class Sequences(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(4, 6, batch_first=True)
            self.out = nn.Linear(6, 3)

        def forward(self, x):
            y = self.rnn(x)[0][:, None]  # one head
            return self.out(functional.scaled_dot_product_attention(y, y, y))

    found = FreezeTraining(Sequences(), layers=["rnn", "out"], steps=2).flops(torch.randn(2, 5, 4))
    rnn, attention, out = 2 * 2 * 5 * (4 * 24 + 6 * 24), 2 * 2 * (2 * 5 * 5 * 6), 2 * 2 * 5 * 18
    assert list(found.forward) == [rnn + attention + out] * 2
    assert found.backward[0] > 2 * (attention + out)
    assert found.backward[1] == out


def test_counted_is_the_training_although_the_model_is_evaluating():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(7, 5)
            self.heads = nn.ModuleList([nn.Linear(5, 3), nn.Linear(5, 2)])

        def forward(self, x):
            y = self.body(x)
            return [head(y) for head in self.heads[: 1 + self.training]]

    freeze = FreezeTraining(Auxiliary().eval(), layers=["body", "heads"], steps=2)
    assert list(freeze.flops(torch.randn(11, 7)).forward) == [2 * 11 * (35 + 15 + 10)] * 2


def test_outputs_of_every_form_go_backward():
    class Output(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            y = self.inner(x)
            return OrderedDict(logits=y, more=[y.argmax(1), (2 * y,)], nothing=None)

    layers = ["inner.fc1", "inner.fc2", "inner.out"]
    found = FreezeTraining(Output(), layers=layers, steps=3).flops(torch.randn(11, 7))
    assert found.equals(FreezeTraining(mlp(), layers=["fc1", "fc2", "out"], steps=3).flops(torch.randn(11, 7)))


def test_counting_leaves_the_model_and_random_numbers_as_they_were():
    model = convnet().eval()
    model(images()).sum().backward()
    before, gradient = bits(model), model.conv1.weight.grad.clone()
    state = torch.get_rng_state()
    freeze = FreezeTraining(model, layers=BLOCKS, steps=9)
    with torch.no_grad():
        freeze.flops(images())
    assert same(before, bits(model))
    assert torch.equal(gradient, model.conv1.weight.grad)
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training
    assert all(one.requires_grad for one in model.parameters())
    assert torch.backends.mkldnn.enabled


def test_stages_of_a_measured_training_are_those_that_happened():
    model = mlp()
    freeze = settling(model, every=10, warmup=25)
    assert list(freeze.flops(probe()).steps) == [100]
    for step in range(61):
        if step == 21:
            disturb(model.fc1)
        freeze.step(step)
        if step < 55:
            disturb(model.fc2)
    found = freeze.flops(probe())
    assert found[["frozen", "from_step", "steps"]].to_numpy().tolist() == [[0, 0, 40], [1, 40, 60]]
    freeze.step(70)
    assert list(freeze.flops(probe()).from_step) == [0, 40, 70]
    assert 0 < freeze.flops(probe()).attrs["saved"] < 1 / 3
    freeze.step(99)
    freeze.unfreeze()
    assert list(freeze.flops(probe()).steps) == [40, 30, 30]


def test_groups_that_are_frozen_together_are_one_stage():
    freeze = FreezeTraining(mlp(), layers=["fc1", "fc2", "out"], steps=10, schedule=[0, 0, 1.0])
    found = freeze.flops(probe())
    assert found[["frozen", "from_step", "steps"]].to_numpy().tolist() == [[2, 0, 10]]
    assert found.attrs["baseline"] == 10 * 2 * 200 * (2 * 35 + 3 * 15 + 3 * 6)


def test_a_model_that_cannot_be_copied_is_refused():
    model = mlp()
    freeze = FreezeTraining(model, layers=["fc1", "fc2", "out"], steps=3)
    model.kept = model.fc1.weight * 2  # no leaf
    with pytest.raises(dsvcca.DsvccaError, match=r"Sequential\) cannot be copied \(RuntimeError"):
        freeze.flops(probe())
