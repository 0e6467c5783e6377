"""Models of several inputs and outputs: names, open axes, outputs in the model's own form."""

import numpy as np
import pytest
import torch
from torch import nn

from mfac_compress.export import (
    build_graph,
    export_onnx,
    lost_zeros,
    open_session,
    parity_error,
    predict,
)
from mfac_compress.export.names import feeds, input_names, output_names

SEQUENCE = {"input_ids": {1: "sequence"}, "attention_mask": {1: "sequence"}}


class Attention(nn.Module):
    """Attention over tokens, written out, whose third input takes no part."""

    def __init__(self):
        super().__init__()
        self.embedding, self.position = nn.Embedding(10, 8), nn.Embedding(32, 8)
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        rows, length = input_ids.shape
        x = self.embedding(input_ids) + self.position(torch.arange(length))
        q, k, v = (t.view(rows, length, 2, 4).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        scores = (q @ k.transpose(-1, -2)).masked_fill(attention_mask[:, None, None] == 0, -1e9)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, length, 8)
        return {"logits": self.head(mixed), "embedding": mixed[:, 0]}


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.embedding, self.encoder = nn.Embedding(10, 8), nn.TransformerEncoder(layer, 1)

    def forward(self, input_ids, attention_mask):
        return self.encoder(
            self.embedding(input_ids), src_key_padding_mask=attention_mask.logical_not()
        )


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, left, right):
        a, b = self.a(left), self.b(right)
        return (a * b).sum(1, keepdim=True), a, left, a


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.recurrent = kind(6, 4, batch_first=True, bidirectional=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.recurrent(self.embedding(ids))[0].mean(1))


class UNet(nn.Module):
    """Takes images whose sides are multiples of 4."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.out = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x):
        top = self.a(x).relu()
        middle = self.b(nn.functional.max_pool2d(top, 2)).relu()
        low = nn.functional.max_pool2d(middle, 2)
        middle = torch.cat([middle, self.up(low)], 1)[:, :4]
        return self.out(torch.cat([top, self.up(middle)], 1))


def tokens(rows, length):
    generator = torch.Generator().manual_seed(rows)
    ids = torch.randint(10, (rows, length), generator=generator)
    kept = torch.arange(length) < torch.arange(1, rows + 1)[:, None]
    return {"input_ids": ids, "attention_mask": kept.long()}


def with_types(rows, length):
    return {**tokens(rows, length), "token_type_ids": torch.zeros(rows, length, dtype=torch.int64)}


def pair(rows):
    return torch.ones(rows, 4), torch.arange(5.0 * rows).view(rows, 5)


CASES = {
    "dicts": (
        Attention,
        with_types,
        [(1, 6), (3, 9)],
        {**SEQUENCE, "token_type_ids": {1: "sequence"}},
    ),
    "tuples": (Towers, pair, [(2,), (5,)], {}),
    "images": (
        UNet,
        lambda *s: torch.randn(s),
        [(2, 1, 8, 12), (3, 1, 16, 4)],
        {"input": {2: "h", 3: "w"}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_computes_what_its_model_does_at_other_lengths(case, tmp_path):
    make, inputs, (exported, other), axes = CASES[case]
    torch.manual_seed(0)
    model, path = make().eval(), tmp_path / "m.onnx"

    export_onnx(model, inputs(*exported), path, dynamic_axes=axes)

    for shape in (exported, other):
        assert parity_error(model, path, inputs(*shape)) < 1e-5


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_sequence_is_open_in_every_export_of_a_recurrent_model(kind, tmp_path):
    model, path = Recurrent(kind).eval(), tmp_path / "m.onnx"
    export_onnx(model, torch.randint(10, (2, 5)), path, input_name="ids")  # of a fixed length
    for rows in (2, 1):
        ids = torch.randint(10, (rows, 5))
        export_onnx(model, ids, path, input_name="ids", dynamic_axes={"ids": {1: "sequence"}})
    assert parity_error(model, path, torch.randint(10, (3, 9))) < 1e-5


def test_inputs_keep_their_names_types_and_open_axes(tmp_path):
    axes = {**SEQUENCE, "token_type_ids": {1: "sequence"}}
    export_onnx(Attention(), with_types(2, 6), tmp_path / "m.onnx", dynamic_axes=axes)

    session = open_session(tmp_path / "m.onnx")

    taken = {one.name: (one.type, one.shape) for one in session.get_inputs()}
    one_of_them = ("tensor(int64)", ["batch", "sequence"])
    names = ["input_ids", "attention_mask", "token_type_ids"]
    assert taken == dict.fromkeys(names, one_of_them)
    assert [(one.name, one.shape) for one in session.get_outputs()] == [
        ("logits", ["batch", "sequence", 3]),
        ("embedding", ["batch", 8]),
    ]


@pytest.mark.parametrize("batch_size", [2, 5])
def test_outputs_have_the_models_form(batch_size, tmp_path):
    model = Towers()
    export_onnx(model, pair(2), tmp_path / "m.onnx")
    session, expected = open_session(tmp_path / "m.onnx"), model(*pair(5))

    assert [one.name for one in session.get_inputs()] == ["left", "right"]
    outputs = predict(session, pair(5), batch_size, expected)

    assert isinstance(outputs, tuple)
    for output, tensor in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, tensor.detach(), rtol=1e-5)
    assert list(predict(session, pair(5), batch_size)) == [f"output_{n}" for n in range(4)]


def test_a_fixed_batch_is_filled_in_every_input(tmp_path):
    model, path = Attention(), tmp_path / "m.onnx"
    export_onnx(model, tokens(2, 6), path, dynamic_batch=False, dynamic_axes=SEQUENCE)
    assert parity_error(model, path, tokens(5, 7)) < 1e-5
    assert open_session(path).get_inputs()[0].shape == [2, "sequence"]


def test_the_largest_difference_of_all_outputs_counts(tmp_path):
    model, path = Towers(), tmp_path / "m.onnx"
    export_onnx(model, pair(2), path)
    with torch.no_grad():
        model.a.bias += 0.5
        model.b.weight.zero_()
        model.b.bias.zero_()
    export_onnx(model, pair(2), path)
    with torch.no_grad():
        model.a.bias -= 0.5
    assert parity_error(model, path, pair(3)) == pytest.approx(0.5, rel=1e-4)


class Clash(nn.Module):
    """Its inputs and outputs have names that the exporter gives to values within."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, linear, relu):
        return {"linear_1": self.layer(self.layer(linear).relu()) + relu, "add": self.layer(relu)}


def test_names_within_the_graph_give_way(tmp_path):
    model, inputs = Clash(), {"linear": torch.randn(2, 4), "relu": torch.randn(2, 4)}
    export_onnx(model, inputs, tmp_path / "m.onnx")
    assert parity_error(model, tmp_path / "m.onnx", inputs) < 1e-5


@pytest.mark.parametrize(
    ("inputs", "axes", "message"),
    [
        (tokens(2, 6), {"ids": {1: "s"}}, "be of the model's inputs: input_ids, .* Got 'ids'"),
        (tokens(2, 6), {"input_ids": {0: "s"}}, "axis 0, which export.dynamic_batch opens"),
        (tokens(2, 6), {"input_ids": {2: "s"}}, r"has the shape \[2, 6\]. Got axis 2"),
        (tokens(2, 6), {"input_ids": {1: "batch"}}, "other than 'batch'"),
        (tokens(2, 6), {"input_ids": {1: "a b"}}, "plain names"),
        (tokens(2, 1), {"input_ids": {1: "s"}}, "Got length 1 for axis 1 of 'input_ids'"),
        (
            {"input_ids": torch.ones(2, 6).long(), "attention_mask": torch.ones(2, 7).long()},
            SEQUENCE,
            "'sequence' for lengths 6 and 7",
        ),
    ],
)
def test_open_axes_that_do_not_fit_are_refused(inputs, axes, message):
    model = nn.Module()
    model.forward = lambda input_ids, attention_mask: input_ids + attention_mask[:, :1]
    with pytest.raises(ValueError, match=message):
        build_graph(model, inputs, dynamic_axes=axes)


def test_an_axis_that_the_model_fixes_is_refused():
    with pytest.raises(ValueError, match=r"dynamic axis s not possible.*export.dynamic_axes"):
        build_graph(nn.Linear(6, 2), torch.ones(2, 6), dynamic_axes={"input": {1: "s"}})


def test_one_output_without_the_batch_is_refused():
    model = nn.Module()
    model.forward = lambda x: {"a": x, "b": x.sum()}
    with pytest.raises(ValueError, match=r"one row per sample. Got .* shapes a .* b \[\]"):
        build_graph(model, torch.ones(2, 6))


def test_zeros_of_a_model_with_dicts_survive():
    model = Attention().eval()

    def build(module):
        return build_graph(module, tokens(2, 6), dynamic_axes=SEQUENCE)

    names = ["qkv.weight", "head.weight", "embedding.weight"]
    assert not lost_zeros(model, build(model), tokens(9, 6), names, build=build)


def test_names_of_nested_trees_join_with_dots():
    nested = torch.ones(2), {"a": torch.ones(2), "b": (torch.zeros(2), torch.ones(2))}
    names = input_names(Towers(), nested, "input")
    assert names == ["left", "right.a", "right.b.0", "right.b.1"]
    turned = nested[0], dict(reversed(nested[1].items()))
    assert [*feeds(turned, names)] == names
    assert not feeds(turned, names)["right.b.0"].any()
    names = output_names({"a": nested[0], "b": nested}, "y")
    assert names == ["a", "b.0", "b.1.a", "b.1.b.0", "b.1.b.1"]


@pytest.mark.parametrize("inputs", [torch.ones(2), (torch.ones(2),), {"left": torch.ones(2)}])
def test_inputs_of_another_form_are_refused(inputs):
    with pytest.raises(ValueError, match=r"must be those of the ONNX file: left, right. Got"):
        feeds(inputs, ["left", "right"])


def test_padding_is_computed_as_in_the_file(tmp_path):
    """PyTorch's fast path of an encoder returns zeros for it."""
    model, path = Encoder().eval(), tmp_path / "m.onnx"
    export_onnx(model, tokens(2, 6), path, dynamic_axes=SEQUENCE)
    for inputs in (tokens(2, 6), tokens(3, 9)):
        assert parity_error(model, path, inputs) < 1e-5
    assert torch.backends.mha.get_fastpath_enabled()
