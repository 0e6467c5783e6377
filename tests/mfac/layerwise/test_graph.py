"""Graphs of models: they compute what the model does, and know its layers and blocks."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

from mfac_compress.mfac.batch import call, named_tensors
from mfac_compress.mfac.layerwise import LayerGraph


class _BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride=1, *, project=False):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down = nn.Conv2d(inputs, outputs, 1, stride=stride) if project else nn.Identity()

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.down(x)
        return F.relu(out)


class _ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.stage = nn.Sequential(_BasicBlock(4, 4), _BasicBlock(4, 8, 2, project=True))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.stem(x), inplace=True)
        return self.head(F.adaptive_avg_pool2d(self.stage(x), 1).flatten(1))


class _UNet(nn.Module):
    """A skip connection goes over everything but the last layer."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, padding=1)
        self.middle = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = F.relu(self.down(x))
        return self.last(torch.cat([x, self.up(self.middle(x))], dim=1))


class _Encoder(nn.Module):
    """Token numbers with a mask, which every layer gets."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, ids, attention_mask):
        x = self.embedding(ids) + self.position
        x = self.layers(x, src_key_padding_mask=attention_mask == 0)
        return {"logits": self.head(x[:, 0]), "hidden": x}


class _Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids))


class _Shared(nn.Module):
    """Two layers with one bias."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)
        self.second.bias = self.first.bias

    def forward(self, x):
        return self.first(x) + self.second(x)


def _images(n=2):
    return torch.randn(n, 3, 8, 8)


def _tokens(n=3, length=5):
    ids = torch.randint(11, (n, length))
    return {"ids": ids, "attention_mask": (torch.arange(length) < 4).expand(n, -1).long()}


def _mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


MODELS = {
    "residual": (_ResNet, _images),
    "skip over everything": (_UNet, _images),
    "named inputs and outputs": (_Encoder, _tokens),
    "mlp": (_mlp, lambda n=2: torch.randn(n, 4)),
    "two inputs": (
        lambda: nn.Bilinear(3, 4, 2),
        lambda n=2: (torch.randn(n, 3), torch.randn(n, 4)),
    ),
    "tied": (_Tied, lambda n=2: torch.randint(11, (n, 4))),
    "recurrent": (
        lambda: nn.LSTM(4, 5, batch_first=True),
        lambda n=2: torch.randn(n, 7, 4),
    ),
}


def _tensors(outputs):
    return [tensor for _, tensor in named_tensors(outputs)]


@pytest.mark.parametrize(("model", "inputs"), MODELS.values(), ids=MODELS)
def test_a_graph_computes_what_any_module_of_these_names_does(model, inputs):
    torch.manual_seed(0)
    traced, other = model(), model().eval()
    graph = LayerGraph.trace(traced, inputs(1))
    assert all(module.training for module in traced.modules())
    batch = inputs(6)
    with torch.no_grad():
        expected, got = _tensors(call(other, batch)), graph.run(other, batch)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("model", "inputs"), MODELS.values(), ids=MODELS)
def test_every_parameter_is_a_layer_s_weight_or_has_a_reason(model, inputs):
    module = model()
    graph = LayerGraph.trace(module, inputs())
    assert sorted([*graph.layers, *graph.reasons]) == sorted(
        n for n, _ in module.named_parameters()
    )


def test_a_graph_serves_the_module_of_an_exported_program():
    torch.manual_seed(0)
    model = _ResNet().eval()
    program = torch.export.export(model, (_images(),), dynamic_shapes=({0: Dim.AUTO},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    module = torch.export.load(file).module()
    graph = LayerGraph.trace(module, _images())
    assert [*graph.layers] == [*LayerGraph.trace(model, _images()).layers]
    x = _images(5)
    torch.testing.assert_close(graph.run(copy.deepcopy(module), x)[0], model(x))


def test_blocks_of_a_residual_network_are_its_residual_blocks():
    graph = LayerGraph.trace(_ResNet(), _images())
    heads = [block.parameters[0] for block in graph.blocks]
    assert heads == [
        "stem.weight",
        "stage.0.conv1.weight",
        "stage.1.conv1.weight",
        "head.weight",
    ]
    names = [name for block in graph.blocks for name in block.parameters]
    assert sorted(names) == sorted([*graph.layers, *graph.reasons])


def test_blocks_of_a_transformer_are_its_layers():
    graph = LayerGraph.trace(_Encoder(), _tokens())
    prefixes = [
        {name.rpartition(".layers.")[2].split(".")[0] for name in block.parameters}
        for block in graph.blocks
    ]
    assert prefixes == [{"embedding", "position"}, {"0"}, {"1"}, {"head"}]


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_skip_from_the_model_s_own_input_is_whole(norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    graph = LayerGraph.trace(layer, torch.randn(2, 5, 8))
    assert len(graph.blocks) == 1


def test_blocks_of_a_plain_network_are_single_layers():
    graph = LayerGraph.trace(_mlp(), torch.randn(2, 4))
    assert [block.parameters for block in graph.blocks] == [
        ("0.weight", "0.bias"),
        ("2.weight", "2.bias"),
        ("4.weight", "4.bias"),
    ]


def test_a_skip_makes_one_block_of_what_it_goes_round():
    graph = LayerGraph.trace(_UNet(), _images())
    modules = [{name.partition(".")[0] for name in block.parameters} for block in graph.blocks]
    assert modules == [{"down"}, {"middle", "up"}, {"last"}]


def test_shortcuts_run_before_the_last_layer_of_their_branch():
    graph = LayerGraph.trace(_ResNet(), _images())
    names = [*graph.layers]
    assert names.index("stage.1.down.weight") < names.index("stage.1.conv2.weight")
    (use,) = graph.layers["stage.1.conv2.weight"].uses
    places = {node: place for place, node in enumerate(graph.program.nodes)}
    assert use.residual.needs <= places.keys()
    assert max(places[node] for node in use.residual.needs) < places[use.node]


def test_layers_know_the_norm_or_the_bias_that_follows():
    layers = LayerGraph.trace(_ResNet(), _images()).layers
    assert layers["stem.weight"].bias == "stem.bias"
    assert layers["stem.weight"].norm is None
    assert layers["stage.0.conv1.weight"].norm.mean == "stage.0.bn1.running_mean"


def test_a_bias_of_several_layers_is_of_none():
    graph = LayerGraph.trace(_Shared(), torch.randn(2, 4))
    assert [layer.bias for layer in graph.layers.values()] == [None, None]


@pytest.mark.parametrize(
    ("model", "inputs", "name", "reason"),
    [
        (*MODELS["recurrent"], "weight_hh_l0", "lstm"),
        (*MODELS["tied"], "embedding.weight", "embedding"),
        (*MODELS["two inputs"], "weight", "bilinear"),
        (*MODELS["mlp"], "0.bias", "does not use it as a matrix"),
    ],
)
def test_reasons_name_the_operator(model, inputs, name, reason):
    assert reason in LayerGraph.trace(model(), inputs()).reasons[name]


class _Branching(nn.Linear):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class _FixedBatch(nn.Linear):
    def forward(self, x):
        return super().forward(x).view(2, 3)


class _Random(nn.Linear):
    def forward(self, x):
        return super().forward(x + torch.randn_like(x))


class _NoTensor(nn.Linear):
    def forward(self, x):
        return 1.0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_Branching, "does not depend on the values"),
        (_FixedBatch, "any number of samples"),
        (_Random, "what the model computes"),
        (_NoTensor, "at least one tensor"),
    ],
)
def test_models_without_one_graph_are_refused_with_advice(model, message):
    with pytest.raises(ValueError, match=message):
        LayerGraph.trace(model(4, 3), torch.randn(2, 4))


def test_open_axes_may_have_another_length():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    graph = LayerGraph.trace(model, torch.randn(2, 5, 8), {"": [1]})
    x = torch.randn(3, 9, 8)
    torch.testing.assert_close(graph.run(model, x)[0], model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="open_axes must name inputs"):
        LayerGraph.trace(model, torch.randn(2, 5, 8), {"tokens": [1]})


def test_inputs_of_another_form_are_refused():
    graph = LayerGraph.trace(_mlp(), torch.randn(2, 4))
    with pytest.raises(ValueError, match="of 1 tensors"):
        graph.run(_mlp(), (torch.randn(2, 4), torch.randn(2, 4)))
