"""Capture of sequences: packed ones, cells that run once a position, masks of tokens, padding to one length."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils.rnn import (  # noqa: E402
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_sequence,
)

import dsvcca  # noqa: E402
from dsvcca.activations.representations import read_mask  # noqa: E402
from dsvcca.torch import capture  # noqa: E402
from dsvcca.torch.ids import row_ids  # noqa: E402
from tests.torch_models import Calling, N, layers_of, nothing_left, stored  # noqa: E402

LENGTHS = torch.tensor([3, 7, 1, 5, 2, 7, 4, 6, 2, 3, 5, 6, 1, 4, 6, 2, 7, 3, 5, 6])
VALID = (torch.arange(7) < LENGTHS[:, None]).numpy()


@pytest.fixture
def store(tmp_path):
    return dsvcca.create_store(tmp_path / "states.zarr", datapoints=N)


@pytest.fixture
def sequences():
    """Return padded sequences (datapoint, position, input), with numbers where padding is."""
    return torch.randn(N, 7, 4, generator=torch.Generator().manual_seed(3))


def rows(sequences, size=8):
    return list(zip(sequences.split(size), LENGTHS.split(size), strict=True))


def mask_of(store):
    return read_mask(store.representations[0].mask)


def packing(rnn, enforce_sorted=False, batch_first=True):
    """Return a model that packs its batch, (inputs, lengths), for a recurrent layer."""

    def call(self, x, lengths):
        x = x if batch_first else x.transpose(0, 1)
        return self.rnn(pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=enforce_sorted))

    return Calling(call, rnn=rnn)


def both(model, batch):
    return model(*batch)


def one_by_one(rnn, sequences):
    """Return the hidden states of every sequence run alone at its own length, zeros where padding is."""
    with torch.no_grad():
        states = [rnn(x[None, :length])[0][0] for x, length in zip(sequences, LENGTHS, strict=True)]
    return pad_sequence(states, batch_first=True).numpy()


# Packed sequences


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_packed_sequences_are_those_of_every_datapoint_run_alone(store, sequences, kind, bidirectional, batch_first):
    torch.manual_seed(0)
    rnn = getattr(nn, kind)(4, 3, batch_first=batch_first, bidirectional=bidirectional)
    alone = getattr(nn, kind)(4, 3, batch_first=True, bidirectional=bidirectional)
    alone.load_state_dict(rnn.state_dict())
    model = packing(rnn, batch_first=batch_first)
    capture(model, rows(sequences), store, layers=["rnn"], forward=both, positions=7)
    [one] = store.representations
    assert one.dims == ("datapoint", "position", "neuron")
    assert one.shape == (N, 7, 6 if bidirectional else 3)
    np.testing.assert_allclose(stored(store), one_by_one(alone, sequences), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mask_of(store), VALID)


def test_a_module_that_gives_packed_sequences_themselves_is_captured(store, sequences):
    inner = Calling(lambda self, packed: PackedSequence(2 * packed.data, *packed[1:]))
    capture(packing(inner), rows(sequences), store, layers=["rnn"], forward=both, positions=7)
    np.testing.assert_array_equal(stored(store), 2 * (sequences * torch.from_numpy(VALID)[:, :, None]).numpy())


@pytest.mark.parametrize("dims", ["ntd", "tnd", ("position", "datapoint", "neuron")])
def test_packed_sequences_have_axes_of_their_own_whatever_order_is_named(store, sequences, dims):
    model = packing(nn.GRU(4, 3, batch_first=True))
    capture(model, rows(sequences), store, layers={"rnn": dims}, forward=both, positions=7)
    np.testing.assert_allclose(stored(store), one_by_one(model.rnn, sequences), rtol=1e-5, atol=1e-6)


def test_packed_batches_are_datapoints_and_not_tokens(store, sequences):
    model = Calling(lambda self, packed: self.rnn(packed), rnn=nn.GRU(4, 3, batch_first=True))
    alone = [x[:length] for x, length in zip(sequences, LENGTHS, strict=True)]
    packed = [pack_sequence(alone[start : start + 8], enforce_sorted=False) for start in range(0, N, 8)]
    capture(model, packed, store, layers=["rnn"], positions=7, seed=0)
    capture(model, [(one, "target") for one in packed], store, layers=["rnn"], positions=7, seed=1)
    for seed in range(2):
        np.testing.assert_allclose(stored(store, seed=seed), one_by_one(model.rnn, sequences), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mask_of(store), VALID)


def test_ids_of_packed_sequences_do_not_depend_on_what_they_are_packed_with(sequences):
    alone = [x[:length] for x, length in zip(sequences, LENGTHS, strict=True)]
    every = row_ids(pack_sequence(alone, enforce_sorted=False))
    parts = [row_ids(pack_sequence(alone[start : start + 3], enforce_sorted=False)) for start in range(0, N, 3)]
    assert (every == np.concatenate(parts)).all()
    assert len(set(every)) == N


def test_packed_sequences_of_several_layers_share_a_mask(store, sequences):
    def call(self, x, lengths):
        packed = pack_padded_sequence(self.embed(x), lengths, batch_first=True, enforce_sorted=False)
        return self.second(self.first(packed)[0])

    model = Calling(call, embed=nn.Linear(4, 5), first=nn.LSTM(5, 3), second=nn.GRU(3, 2, bidirectional=True))
    capture(model, rows(sequences), store, layers=["embed", "second", "first"], forward=both, positions=7)
    assert layers_of(store) == ["embed", "second", "first"]
    assert [one.shape for one in store.representations] == [(N, 7, 5), (N, 7, 4), (N, 7, 3)]
    np.testing.assert_array_equal(mask_of(store), VALID)
    assert all(one.mask.rows == LENGTHS.sum() for one in store.representations)
    assert len(dsvcca.plan_comparisons(store, variance=0.9).representations) == 3


def test_sequences_that_fill_every_batch_need_no_positions_and_leave_no_mask(store, sequences):
    model = packing(nn.GRU(4, 3, batch_first=True))
    batches = [(x, torch.full((len(x),), 7)) for x in sequences.split(8)]
    capture(model, batches, store, layers=["rnn"], forward=both)
    assert store.representations[0].mask is None
    with torch.no_grad():
        expected = torch.cat([model.rnn(x)[0] for x in sequences.split(8)])
    np.testing.assert_allclose(stored(store), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_packed_batches_of_other_lengths_need_positions(store, sequences):
    batches = [(x, torch.clamp(LENGTHS[:8], max=5 + i)) for i, x in enumerate((sequences[:8], sequences[8:16]))]
    with pytest.raises(
        dsvcca.DsvccaError, match="a mask of 6 positions follows one of 5.*or pass positions= and mask="
    ):
        capture(packing(nn.GRU(4, 3)), batches, store, layers=["rnn"], forward=both)
    assert nothing_left(store)
    with pytest.raises(dsvcca.DsvccaError, match="gives sequences of 6 positions, positions=5"):
        capture(packing(nn.GRU(4, 3)), batches, store, layers=["rnn"], forward=both, positions=5)
    assert nothing_left(store)


def test_a_model_that_sorts_its_sequences_is_found_out_by_the_mask(store, sequences):
    def call(self, x, lengths):
        order = lengths.argsort(descending=True)
        return self.rnn(pack_padded_sequence(x[order], lengths[order], batch_first=True))

    model = Calling(call, rnn=nn.GRU(4, 3, batch_first=True))
    with pytest.raises(dsvcca.DsvccaError, match="other lengths than mask= says.*enforce_sorted=False"):
        capture(
            model,
            rows(sequences),
            store,
            layers=["rnn"],
            forward=both,
            mask=lambda batch: torch.arange(7) < batch[1][:, None],
        )
    assert nothing_left(store)


def test_packed_sequences_of_two_lengths_do_not_fit_one_store(store, sequences):
    def call(self, x, lengths):
        def packed(lengths):
            return pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)

        return self.one(packed(lengths)), self.short(packed((lengths + 1) // 2))

    model = Calling(call, one=nn.GRU(4, 3), short=nn.GRU(4, 3))
    with pytest.raises(dsvcca.DsvccaError, match="'short' gives packed sequences of other lengths than layer 'one'"):
        capture(model, rows(sequences), store, layers=["one", "short"], forward=both, positions=7)
    assert nothing_left(store)


def test_packed_sequences_of_single_numbers_and_other_axes_are_refused(store, sequences):
    inner = Calling(lambda self, packed: PackedSequence(packed.data[:, 0], *packed[1:]))
    with pytest.raises(dsvcca.DsvccaError, match=r"packed sequences whose positions hold \(\) numbers"):
        capture(packing(inner), rows(sequences), store, layers=["rnn"], forward=both)
    with pytest.raises(dsvcca.DsvccaError, match="gives packed sequences, dims='nct' names other axes"):
        capture(packing(nn.GRU(4, 3)), rows(sequences), store, layers={"rnn": "nct"}, forward=both)
    assert nothing_left(store)


# Cells that run once a position


class ByHand(nn.Module):
    """A recurrent network written by hand: a cell that runs once a position."""

    def __init__(self, kind="GRUCell"):
        super().__init__()
        torch.manual_seed(0)
        self.cell = getattr(nn, kind)(4, 3)
        self.out = nn.Linear(3, 2)

    def forward(self, x):
        state = None
        for position in range(x.shape[1]):
            state = self.cell(x[:, position], state)
        return self.out(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("dims", ["tnd", "ntd"])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_every_run_of_a_cell_is_a_position_where_dims_say_so(store, sequences, kind, dims):
    model = ByHand(f"{kind}Cell")
    capture(model, sequences.split(8), store, layers={"out": None, "cell": dims})
    layer = getattr(nn, kind)(4, 3, batch_first=True)
    layer.load_state_dict({f"{name}_l0": value for name, value in model.cell.state_dict().items()})
    with torch.no_grad():
        expected = layer(sequences)[0].numpy()
    np.testing.assert_allclose(stored(store, layer="cell"), expected, rtol=1e-5, atol=1e-6)
    assert store.select(layer="cell").representations[0].dims == ("datapoint", "position", "neuron")
    assert stored(store, layer="out").shape == (N, 2)


def test_a_cell_that_runs_once_gives_one_position(store, sequences):
    capture(ByHand(), sequences[:, :1], store, layers={"cell": "tnd"})
    assert stored(store).shape == (N, 1, 3)


def test_maps_that_come_once_a_position_are_captured_by_their_names(store):
    x = torch.randn(N, 3, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    model = Calling(lambda self, x: [self.conv(x[:, t]) for t in range(x.shape[1])], conv=nn.Conv2d(2, 4, 3))
    capture(model, x, store, layers={"conv": ("datapoint", "position", "channel", "height", "width")})
    [one] = store.representations
    assert one.dims == ("datapoint", "position", "height", "width", "channel")
    with torch.no_grad():
        expected = torch.stack([model.conv(x[:, t]) for t in range(3)], dim=1).permute(0, 1, 3, 4, 2)
    np.testing.assert_allclose(stored(store), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_cells_without_dims_say_what_to_pass(store, sequences):
    with pytest.raises(dsvcca.DsvccaError, match=r"'cell' ran 7 times for one batch.*pass layers={'cell': 'tnd'}"):
        capture(ByHand(), sequences, store, layers=["cell"])
    model = Calling(lambda self, x: [self.conv(x) for _ in range(2)], conv=nn.Conv1d(7, 3, 2))
    with pytest.raises(dsvcca.DsvccaError, match=r"layers={'conv': \('position', 'datapoint', ...\)}"):
        capture(model, sequences, store, layers=["conv"])
    model = Calling(lambda self, x: self.fc(self.fc(x)), fc=nn.Linear(4, 4))
    with pytest.raises(dsvcca.DsvccaError, match="'fc' ran 2 times for one batch"):
        capture(model, sequences, store, layers={"fc": "ntd"})
    assert nothing_left(store)


def test_runs_that_leave_datapoints_out_are_refused(store, sequences):
    def call(self, x):
        for position in range(7):
            self.cell(x[position < LENGTHS, position])

    with pytest.raises(dsvcca.DsvccaError, match=r"gives \(20, 3\) in one run and \(18, 3\) in another for one batch"):
        capture(Calling(call, cell=nn.Linear(4, 3)), sequences, store, layers={"cell": "tnd"})
    assert nothing_left(store)


# Masks of tokens


def embedding():
    torch.manual_seed(0)
    return Calling(lambda self, ids, attention: self.fc(self.embed(ids)), embed=nn.Embedding(9, 4), fc=nn.Linear(4, 3))


@pytest.fixture
def tokens():
    return torch.randint(1, 9, (N, 7), generator=torch.Generator().manual_seed(4)) * torch.from_numpy(VALID)


def dicts(tokens, widths=(7, 7, 7)):
    """Return batches of tokens and masks as tokenizers give them, cut to some lengths."""
    valid = torch.from_numpy(VALID).long()
    cut = zip(tokens.split(8), valid.split(8), widths, strict=True)
    return [{"ids": x[:, :width], "attention": ok[:, :width]} for x, ok, width in cut]


def test_the_mask_of_a_key_or_of_a_function_becomes_the_stores(tmp_path, tokens):
    keys = "attention", lambda batch: batch["attention"].bool(), lambda batch: batch["attention"].tolist()
    for number, mask in enumerate(keys):
        store = dsvcca.create_store(tmp_path / f"{number}.zarr", datapoints=N)
        capture(embedding(), dicts(tokens), store, layers=["embed", "fc"], mask=mask)
        np.testing.assert_array_equal(mask_of(store), VALID)
        assert [one.mask.rows for one in store.representations] == [LENGTHS.sum()] * 2
    capture(embedding(), [(one, "label") for one in dicts(tokens)], store, layers=["fc"], mask="attention", step=1)


@pytest.mark.filterwarnings("ignore:.* datapoints are counted")
def test_the_mask_is_what_comparisons_leave_out(store, tmp_path, tokens):
    for seed in range(2):
        torch.manual_seed(seed)
        model = embedding()
        with torch.no_grad():
            model.fc.weight.normal_()
        capture(model, dicts(tokens), store, layers=["fc"], mask="attention", seed=seed)
    found = dsvcca.compare(dsvcca.plan_comparisons(store, variance=0.9), tmp_path / "r.zarr")
    x, y = (stored(store, seed=seed)[VALID] for seed in range(2))
    assert float(found.svcca[0, 1]) == pytest.approx(dsvcca.svcca(x, y, variance=0.9), abs=2e-7)


def test_batches_of_several_lengths_are_padded_to_positions(store, tokens):
    widths = [int(lengths.max()) for lengths in LENGTHS.split(8)]
    assert widths == [7, 6, 7]
    model = embedding()
    capture(model, dicts(tokens, widths), store, layers=["embed", "fc"], mask="attention", positions=9)
    wide = np.pad(VALID, ((0, 0), (0, 2)))
    np.testing.assert_array_equal(mask_of(store), wide)
    with torch.no_grad():
        expected = model.embed(tokens).numpy()
    values = stored(store, layer="embed")
    assert values.shape == (N, 9, 4)
    np.testing.assert_array_equal(values[wide], expected[VALID])
    assert not values[:, 7:].any()


def test_batches_of_several_lengths_say_what_to_do(store, tokens):
    for mask, changed in ((None, r"\(position changed\)"), ("attention", "7 positions follows one of 6")):
        with pytest.raises(dsvcca.DsvccaError, match=f"{changed}.*padding='max_length'.*positions="):
            capture(embedding(), dicts(tokens, (6, 7, 7)), store, layers=["fc"], mask=mask)
    with pytest.raises(dsvcca.DsvccaError, match="6 positions, to be padded to 7, and nothing says which are tokens"):
        capture(embedding(), dicts(tokens, (6, 7, 7)), store, layers=["fc"], positions=7)
    with pytest.raises(dsvcca.DsvccaError, match="6 positions, to be padded to 7, and the mask has 5"):
        capture(
            embedding(),
            dicts(tokens, (6, 7, 7)),
            store,
            layers=["fc"],
            positions=7,
            mask=lambda batch: batch["attention"][:, :5],
        )
    with pytest.raises(dsvcca.DsvccaError, match="gives sequences of 7 positions, positions=6"):
        capture(embedding(), dicts(tokens), store, layers=["fc"], positions=6)
    assert nothing_left(store)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("attention_mask", r"mask='attention_mask' names an entry of batches, .* has \['attention', 'ids'\]"),
        (lambda batch: batch["attention"][:4], r"mask= gives \(4, 7\) for a batch of 8 datapoints"),
        (lambda batch: batch["attention"][:, None], r"mask= gives \(8, 1, 7\)"),
        (lambda batch: (1 - batch["attention"]) * -1e9, "mask= gives other numbers than 0 and 1"),
        (lambda batch: batch["attention"][:, :5], r"a mask of 5 positions, the layers give sequences of \[7\]"),
        (lambda batch: batch["attention"] * 0, "the mask leaves no token"),
    ],
)
def test_masks_that_do_not_belong_to_the_sequences_are_refused(store, tokens, mask, message):
    with pytest.raises(dsvcca.DsvccaError, match=message):
        capture(embedding(), dicts(tokens), store, layers=["fc"], mask=mask)
    assert nothing_left(store)


def test_a_key_needs_batches_that_are_dicts(store, sequences):
    with pytest.raises(dsvcca.DsvccaError, match=r"mask='attention' .* \(a Tensor\) is no dict"):
        capture(
            Calling(lambda self, x: self.fc(x), fc=nn.Linear(4, 2)), sequences, store, layers=["fc"], mask="attention"
        )
    assert nothing_left(store)


def test_another_mask_than_the_stores_is_refused_at_the_first_batch(store, tokens):
    capture(embedding(), dicts(tokens), store, layers=["fc"], mask="attention", step=0)
    with pytest.raises(
        dsvcca.DsvccaError, match="another mask already: of 7 positions, this one of 7, and rows 0 to 7"
    ):
        capture(embedding(), dicts(tokens), store, layers=["fc"], mask=lambda b: 1 - b["attention"], step=1)
    with pytest.raises(dsvcca.DsvccaError, match="another mask already: of 7 positions, this one of 9"):
        capture(embedding(), dicts(tokens), store, layers=["fc"], mask="attention", positions=9, step=1)
    assert len(store.representations) == 1


def test_layers_without_positions_need_no_mask_and_other_lengths_keep_none(store, tokens):
    def call(self, ids, attention):
        x = self.embed(ids)
        return self.pool(x.transpose(1, 2)), self.head(x.mean(1))

    model = Calling(call, embed=nn.Embedding(9, 4), pool=nn.AvgPool1d(2), head=nn.Linear(4, 2))
    capture(model, dicts(tokens), store, layers=["head"], mask="attention")
    assert store.representations[0].mask is None
    capture(model, dicts(tokens), store, layers=["embed", "pool"], mask="attention")
    masks = {one.labels["layer"]: one.mask is not None for one in store.representations}
    assert masks == {"head": False, "embed": True, "pool": False}


def test_a_capture_that_fails_leaves_no_mask(store, tokens):
    with pytest.raises(dsvcca.DsvccaError, match=f"has 16 datapoints, the store .* has {N}"):
        capture(embedding(), dicts(tokens)[:2], store, layers=["fc"], mask="attention")
    assert nothing_left(store)


@pytest.mark.parametrize("positions", [0, -1, 2.5, "7"])
def test_positions_that_are_no_number_of_positions_are_refused(store, tokens, positions):
    with pytest.raises(dsvcca.DsvccaError, match="give the number of positions that all sequences get"):
        capture(embedding(), dicts(tokens), store, layers=["fc"], positions=positions)


def test_padding_of_a_transformer_encoder_is_left_out(store, sequences):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)  # in evaluation mode it would take its fused path, which calls no hooks
    padding = torch.from_numpy(~VALID)
    capture(
        model,
        list(zip(sequences.split(8), padding.split(8), strict=True)),
        store,
        layers=["layers.0", "layers.1.linear1"],
        forward=lambda model, batch: model(batch[0], src_key_padding_mask=batch[1]),
        mask=lambda batch: ~batch[1],
    )
    np.testing.assert_array_equal(mask_of(store), VALID)
    with torch.no_grad():
        alone = [model.eval().layers[0](x[None, :length])[0] for x, length in zip(sequences, LENGTHS, strict=True)]
    np.testing.assert_allclose(stored(store, layer="layers.0")[VALID], torch.cat(alone).numpy(), rtol=1e-4, atol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled()


# Models of transformers


@pytest.fixture
def bert():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12
    )
    return transformers.BertModel(config)


@pytest.fixture
def gpt2():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 9, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return transformers.GPT2Model(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def hidden(model, batches):
    """Return the hidden states that the model gives by itself, one array a layer, and its last ones."""
    with torch.no_grad():
        found = [model.eval()(**batch, output_hidden_states=True) for batch in batches]
    layers = zip(*[one.hidden_states for one in found], strict=True)
    return [torch.cat(one).numpy() for one in layers], torch.cat([one.last_hidden_state for one in found]).numpy()


def for_transformers(tokens):
    return [{"input_ids": one["ids"], "attention_mask": one["attention"]} for one in dicts(tokens)]


def test_hidden_states_of_bert_are_those_it_gives_itself(store, bert, tokens):
    batches = for_transformers(tokens)
    layers = {"embeddings": "ntd", "encoder.layer.0": "ntd", "encoder.layer.1": "ntd", "encoder": "ntd"}
    inside = {"encoder.layer.0.attention": "ntd", "encoder.layer.0.output.dense": None, "pooler": None}
    capture(bert, batches, store, layers={**layers, **inside}, mask="attention_mask")
    states, last = hidden(bert, batches)
    for name, expected in zip(layers, [*states, last], strict=True):
        np.testing.assert_allclose(stored(store, layer=name), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mask_of(store), VALID)
    shapes = {one.labels["layer"]: one.shape for one in store.representations}
    assert shapes["encoder.layer.0.attention"] == shapes["encoder.layer.0.output.dense"] == (N, 7, 8)
    assert shapes["pooler"] == (N, 8)


def test_hidden_states_of_gpt2_are_those_it_gives_itself(store, gpt2, tokens):
    batches = for_transformers(tokens)
    capture(gpt2, batches, store, layers={"h.0": "ntd", "ln_f": None, "h.1.attn": "ntd"}, mask="attention_mask")
    states, last = hidden(gpt2, batches)
    np.testing.assert_allclose(stored(store, layer="h.0"), states[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stored(store, layer="ln_f"), last, rtol=1e-5, atol=1e-6)


def test_layers_of_unknown_classes_say_which_dims_to_name(store, bert, tokens):
    with pytest.raises(
        dsvcca.DsvccaError, match=r"'encoder.layer.0' \(BertLayer\) gives .* layers={'encoder.layer.0': 'ntd'}"
    ):
        capture(bert, for_transformers(tokens), store, layers=["encoder.layer.0"], mask="attention_mask")
    assert nothing_left(store)


def test_what_a_tokenizer_gives_is_a_batch(store, bert, tokens):
    transformers = pytest.importorskip("transformers")
    batches = [transformers.BatchEncoding(one) for one in for_transformers(tokens)]
    capture(bert, batches, store, layers={"encoder": "ntd"}, mask="attention_mask")
    np.testing.assert_array_equal(mask_of(store), VALID)
