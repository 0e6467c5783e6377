"""What goes and what stays, layer by layer; the oracle is ONNX Runtime on the graph before."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mfac_compress.export import build_graph, remove_dead_channels

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def outputs(graph: ir.Model, x: Tensor) -> np.ndarray:
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto)
    onnx.shape_inference.infer_shapes(proto, strict_mode=True, check_type=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def randomise(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and all biases values, so that constants are not zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(generator=generator).mul_(0.3)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def shrunk() -> Callable[..., dict[str, tuple[int, ...]]]:
    """Take dead channels out of a model's graph; return the shapes of its initializers.

    The graph must compute what it did before to 1e-6, on the batch size that it was traced with and
    on another.
    """

    def shrink(model: nn.Module, x: Tensor, round_to: int = 1) -> dict[str, tuple[int, ...]]:
        whole = build_graph(model.eval(), x[:2])
        graph = whole.clone()
        remove_dead_channels(graph, round_to=round_to)
        for batch in (x[:2], x):
            before, after = outputs(whole, batch), outputs(graph, batch)
            scale = max(1.0, float(np.abs(before).max()))
            assert np.abs(after - before).max() <= 1e-6 * scale
        named = graph.graph.initializers.items()
        return {name.removesuffix(".T"): tuple(value.shape) for name, value in named}

    return shrink


class Residual(nn.Module):
    """A stream of 8 channels, one block on it, and a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(x + self.norm2(self.conv2(y)))
        return self.head(x.mean((2, 3)))


def remove(layer, norm, channels):
    """Do to a convolution and its batch norm what pruning a channel does."""
    with torch.no_grad():
        for tensor in (layer.weight, norm.weight, norm.bias):
            tensor[channels] = 0


def test_channels_that_are_zero_go_with_the_weights_that_read_them(shrunk):
    model = randomise(Residual())
    remove(model.conv1, model.norm1, [1, 4])
    shapes = shrunk(model, IMAGES)
    assert shapes["conv1.weight"] == (4, 8, 3, 3)
    assert shapes["conv2.weight"] == (8, 4, 3, 3)
    assert shapes["stem.weight"] == (8, 3, 3, 3)


def test_channels_that_nobody_reads_go_with_the_weights_that_make_them(shrunk):
    model = randomise(Residual())
    with torch.no_grad():
        model.conv2.weight[:, [0, 5]] = 0
    shapes = shrunk(model, IMAGES)
    assert (shapes["conv1.weight"][0], shapes["conv2.weight"][1]) == (4, 4)


def test_a_channel_of_a_residual_stream_goes_only_if_all_addends_have_it_dead(shrunk):
    model = randomise(Residual())
    remove(model.stem, model.norm, [2, 3])
    shapes = shrunk(model, IMAGES)
    assert shapes["stem.weight"][0] == 8
    remove(model.conv2, model.norm2, [3, 7])
    shapes = shrunk(model, IMAGES)
    assert [shapes[f"{name}.weight"][0] for name in ("stem", "conv2")] == [7, 7]
    assert (shapes["conv1.weight"][1], shapes["head.weight"][1]) == (7, 7)


def test_what_only_fed_dead_channels_is_dead_as_well(shrunk):
    model = randomise(nn.Sequential(*(nn.Conv2d(a, b, 1) for a, b in ((3, 5), (5, 5), (5, 2)))))
    with torch.no_grad():
        model[2].weight[:, 1] = 0  # so nobody reads channel 1 of the layer before,
        model[1].weight[[0, 2, 3, 4], 3] = 0  # which alone reads channel 3 of the first
    shapes = shrunk(model, IMAGES)
    assert [shapes[f"{layer}.weight"][:2] for layer in range(3)] == [(4, 3), (4, 4), (2, 4)]


@pytest.mark.parametrize(("padding", "left"), [(0, 4), (1, 5)])
def test_a_constant_goes_into_the_next_bias_except_where_a_border_of_zeros_is_read(
    padding, left, shrunk
):
    model = randomise(
        nn.Sequential(nn.Conv2d(3, 5, 1), nn.Sigmoid(), nn.Conv2d(5, 2, 3, padding=padding))
    )
    with torch.no_grad():
        model[0].weight[2] = 0
    assert shrunk(model, IMAGES)["0.weight"][0] == left


def test_a_layer_without_bias_gets_one_for_the_constants_it_read(shrunk):
    model = randomise(nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 2, 3, bias=False)))
    with torch.no_grad():
        model[0].weight[2] = 0
    assert shrunk(model, IMAGES)["0.weight"][0] == 4


ACTIVATIONS = {
    "hardswish": nn.Hardswish(),
    "gelu": nn.GELU(),
    "gelu tanh": nn.GELU("tanh"),
    "silu": nn.SiLU(),
    "relu6": nn.ReLU6(),
    "leaky": nn.LeakyReLU(0.1),
    "elu": nn.ELU(),
    "prelu": nn.PReLU(5),
    "mish": nn.Mish(),
    "hardsigmoid": nn.Hardsigmoid(),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_constants_are_followed_through_activations(name, shrunk):
    model = randomise(nn.Sequential(nn.Conv2d(3, 5, 1), ACTIVATIONS[name], nn.Conv2d(5, 2, 3)))
    with torch.no_grad():
        model[0].weight[[0, 3]] = 0
    assert shrunk(model, IMAGES)["2.weight"] == (2, 3, 3, 3)


class Separable(nn.Module):
    def __init__(self, multiplier=1):
        super().__init__()
        self.one = nn.Conv2d(3, 6, 1)
        self.depthwise = nn.Conv2d(6, 6 * multiplier, 3, padding=1, groups=6)
        self.two = nn.Conv2d(6 * multiplier, 4, 1)

    def forward(self, x):
        return self.two(torch.relu(self.depthwise(torch.relu(self.one(x)))))


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("where", ["one", "depthwise", "two"])
def test_depthwise_convolutions_lose_channels_from_either_side(multiplier, where, shrunk):
    model = randomise(Separable(multiplier))
    with torch.no_grad():
        if where == "one":  # the border of a constant that is not zero would differ
            model.one.weight[2] = model.one.bias[2] = 0
        elif where == "depthwise":
            model.depthwise.weight[2 * multiplier : 3 * multiplier] = 0
        else:
            model.two.weight[:, 2 * multiplier : 3 * multiplier] = 0
    shapes = shrunk(model, IMAGES)
    assert shapes["depthwise.weight"] == (5 * multiplier, 1, 3, 3)
    assert (shapes["one.weight"][0], shapes["two.weight"][1]) == (5, 5 * multiplier)


def test_a_grouped_convolution_loses_whole_groups_only(shrunk):
    layers = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 9, 3, groups=3), nn.Conv2d(9, 2, 1)
    model = randomise(nn.Sequential(*layers))
    with torch.no_grad():
        model[0].weight[:3] = 0  # the first group, and half of the second
        model[2].weight[:, :4] = 0
    shapes = shrunk(model, IMAGES)
    assert [shapes[f"{layer}.weight"][:2] for layer in range(3)] == [(4, 3), (6, 2), (2, 6)]


class Dense(nn.Module):
    """Concatenation, of which the later layers read all."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)
        self.norm, self.last = nn.BatchNorm2d(9), nn.Conv2d(9, 2, 1)

    def forward(self, x):
        a = torch.relu(self.first(x))
        x = torch.cat([a, torch.relu(self.second(a))], 1)
        return self.last(torch.relu(self.norm(x)))


def test_concatenated_channels_go_from_their_own_layer(shrunk):
    model = randomise(Dense())
    with torch.no_grad():
        model.second.weight[[1, 2]] = 0
        model.last.weight[:, 0] = 0  # of the first layer, which the second reads as well
    shapes = shrunk(model, IMAGES)
    assert (shapes["first.weight"][0], shapes["second.weight"][:2]) == (4, (3, 4))
    assert (shapes["norm.weight"], shapes["last.weight"][1]) == ((7,), 7)
    with torch.no_grad():
        model.second.weight[:, 0] = 0
    assert shrunk(model, IMAGES)["first.weight"][0] == 3


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 6, 3), nn.MaxPool2d(2)
        self.one, self.two = nn.Linear(6 * 9, 7), nn.Linear(7, 4)

    def forward(self, x):
        return self.two(torch.relu(self.one(torch.flatten(self.pool(self.conv(x)), 1))))


def test_a_flattened_channel_is_a_run_of_features(shrunk):
    model = randomise(Flat())
    with torch.no_grad():
        model.one.weight[:, 9:18] = 0
        model.one.weight[:, 20:27] = 0  # a part of a channel
        model.two.weight[:, 3] = 0
    shapes = shrunk(model, IMAGES)
    assert (shapes["conv.weight"][0], shapes["one.weight"]) == (5, (6, 45))


class Gated(nn.Module):
    """Squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.conv, self.squeeze = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)
        self.excite, self.last = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        gate = torch.relu(self.squeeze(functional.adaptive_avg_pool2d(x, 1)))
        return self.last(x * torch.sigmoid(self.excite(gate)))


def test_a_gate_goes_with_the_channel_that_it_scales(shrunk):
    model = randomise(Gated())
    with torch.no_grad():
        model.conv.weight[2] = model.conv.bias[2] = 0
        model.excite.weight[:, 1] = 0
    shapes = shrunk(model, IMAGES)
    assert (shapes["conv.weight"][0], shapes["excite.weight"][:2]) == (5, (5, 3))


class Attention(nn.Module):
    """Four heads from one weight for queries, keys and values; then an MLP."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.norm, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 3)).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm(x + self.out(y))
        return x + self.down(functional.gelu(self.up(x)))


TOKENS = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("side", ["values", "output"])
def test_whole_heads_go_and_parts_of_heads_stay(side, shrunk):
    model = randomise(Attention())
    with torch.no_grad():
        if side == "values":
            value = 24 + torch.tensor([3, 4, 5, 6])  # the second head, and an element of the third
            model.qkv.weight[value] = model.qkv.bias[value] = 0
        else:
            model.out.weight[:, [3, 4, 5, 6]] = 0
    shapes = shrunk(model, TOKENS)
    assert (shapes["qkv.weight"], shapes["out.weight"]) == ((12, 27), (9, 12))


def test_neurons_go_by_either_side(shrunk):
    model = randomise(Attention())
    with torch.no_grad():
        model.up.weight[:4] = 0
        model.down.weight[:, 7:9] = 0
    shapes = shrunk(model, TOKENS)
    assert (shapes["up.weight"], shapes["down.weight"]) == ((12, 14), (14, 12))


class Shortcut(nn.Module):
    """A stream that is widened by channels of zeros, as in the ResNets for CIFAR."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        wide = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.last(torch.relu(self.conv(x) + wide))


def test_channels_of_zeros_that_a_shortcut_adds_go_with_those_of_the_layer(shrunk):
    model = randomise(Shortcut())
    with torch.no_grad():
        model.conv.weight[[0, 3, 7]] = 0
        model.stem.weight[1] = 0
        model.conv.weight[:, 1] = 0
    shapes = shrunk(model, IMAGES)
    assert (shapes["stem.weight"][0], shapes["conv.weight"][:2]) == (3, (5, 3))


class Chunks(nn.Module):
    """Two halves that are multiplied, as in gated linear units."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Conv2d(3, 12, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        a, b = self.up(x).chunk(2, 1)
        return self.down(a * torch.sigmoid(b))


def test_both_parts_of_a_divided_value_lose_the_same_places(shrunk):
    model = randomise(Chunks())
    with torch.no_grad():
        model.down.weight[:, 4] = 0
        model.up.weight[1] = model.up.bias[1] = 0
        model.up.weight[6] = 0
    shapes = shrunk(model, IMAGES)
    assert (shapes["up.weight"][0], shapes["down.weight"][1]) == (8, 4)


class Twice(nn.Module):
    """One weight, used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.shared, self.last = (
            nn.Conv2d(3, 5, 1),
            nn.Conv2d(5, 5, 1),
            nn.Conv2d(5, 2, 1),
        )

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.shared(torch.relu(self.shared(x)))))


def test_a_weight_that_is_used_twice_loses_what_is_dead_in_both_uses(shrunk):
    model = randomise(Twice())
    with torch.no_grad():
        model.shared.weight[2] = model.shared.bias[2] = 0
    assert shrunk(model, IMAGES)["shared.weight"][0] == 5
    with torch.no_grad():
        model.first.weight[2] = model.first.bias[2] = 0
    assert shrunk(model, IMAGES)["shared.weight"][:2] == (4, 4)


class Opaque(nn.Module):
    """Something along the channels that no one follows."""

    def __init__(self, operation):
        super().__init__()
        self.one, self.two, self.operation = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1), operation

    def forward(self, x):
        return self.two(self.operation(self.one(x)))


_NOT_FOLLOWED = {
    "softmax": nn.Softmax(1),
    "group norm": nn.GroupNorm(2, 6),
    "channel shuffle": nn.ChannelShuffle(2),
    "cumulative sum": lambda x: x.cumsum(1),
    "repeated channels": lambda x: x[:, [0, 0, 2, 3, 4, 5]],
    "flip": lambda x: x.flip(1),
    "mean over channels": lambda x: x - x.mean(1, keepdim=True),
    "pool beyond the border": lambda x: functional.avg_pool2d(x, 3, 1, 1, ceil_mode=True),
    "a number for each column": lambda x: x + torch.arange(8.0),
    "gate of one channel": lambda x: x * x[:, :1],
    "comparison": lambda x: (x > 0) * x,
    "softplus": nn.Softplus(),
}


@pytest.mark.parametrize("operation", _NOT_FOLLOWED.values(), ids=_NOT_FOLLOWED)
def test_what_is_not_followed_is_never_wrong(operation, shrunk):
    model = Opaque(operation)
    randomise(model)
    with torch.no_grad():
        model.one.weight[[1, 4]] = 0
        model.two.weight[:, 5] = 0
    shrunk(model, IMAGES)


def test_layers_keep_a_multiple_of_the_channels_that_a_processor_takes_at_once(shrunk):
    model = nn.Sequential(nn.Conv2d(3, 48, 1), nn.Conv2d(48, 12, 1), nn.Conv2d(12, 40, 1))
    model = randomise(model.append(nn.Conv2d(40, 2, 1)))
    with torch.no_grad():
        model[0].weight[:20] = 0
        model[1].weight[:5] = 0
        model[2].weight[:5] = 0
    sizes = {8: [32, 8, 40], 16: [32, 7, 40], 1: [28, 7, 35], 5: [30, 10, 35]}
    for round_to, left in sizes.items():
        shapes = shrunk(model, IMAGES, round_to)
        assert [shapes[f"{layer}.weight"][0] for layer in range(3)] == left


def test_one_channel_stays_where_all_are_dead(shrunk):
    model = randomise(nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 1), nn.Conv2d(4, 2, 1)))
    with torch.no_grad():
        model[0].weight.zero_()
        model[2].weight.zero_()
    shapes = shrunk(model, IMAGES)
    assert [shapes[f"{layer}.weight"][:2] for layer in range(3)] == [(1, 3), (1, 1), (2, 1)]


def test_a_graph_without_dead_channels_is_left_as_it_is():
    graph = build_graph(randomise(Residual()), IMAGES)
    before = graph.graph.num_nodes()
    assert not remove_dead_channels(graph)
    assert graph.graph.num_nodes() == before


def test_what_is_left_of_a_tensor_says_which_weights_those_are():
    model = randomise(Residual())
    remove(model.conv1, model.norm1, [1, 4])
    whole = build_graph(model, IMAGES)
    graph = whole.clone()
    kept = remove_dead_channels(graph)
    assert kept["conv1.weight"] == ((0, 2, 3, 5), None, None, None)
    arrays = [g.graph.initializers["conv2.weight"].const_value.numpy() for g in (whole, graph)]
    assert (arrays[0][:, list(kept["conv2.weight"][1])] == arrays[1]).all()


MODELS = Residual, Separable, Dense, Flat, Gated, Shortcut, Chunks, Attention


@pytest.fixture(scope="module")
def graphs():
    inputs = [TOKENS if model is Attention else IMAGES for model in MODELS]
    made = [build_graph(randomise(model()), x) for model, x in zip(MODELS, inputs, strict=True)]
    return list(zip(made, inputs, strict=True))


def test_random_zeros_along_any_axis_never_change_what_is_computed(graphs):
    smaller = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        built, x = graphs[seed % len(graphs)]
        whole = built.clone()
        for value in whole.graph.initializers.values():
            if value.dtype == ir.DataType.FLOAT and value.shape.rank() in (1, 2, 4):
                array = value.const_value.numpy().copy()
                for axis in range(min(array.ndim, 2)):
                    gone = generator.random(array.shape[axis]) < 0.3
                    array.swapaxes(0, axis)[gone] = 0
                value.const_value = ir.tensor(array, name=value.name)
        graph = whole.clone()
        smaller += bool(remove_dead_channels(graph, round_to=1 + seed % 3))
        expected = outputs(whole, x)
        assert abs(outputs(graph, x) - expected).max() <= 1e-6 * max(1, abs(expected).max())
    assert smaller > 30
