"""Moments of a layer against the Jacobian of its output with respect to its weights.

The output is linear in the weights, so row e of the Jacobian J holds the inputs that element e was
computed from. The blocks of JᵀJ on the diagonal, in the order of the matrices, are H, one for each
row; Jᵀy is the cross moment with outputs y.
"""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from mfac_compress.mfac.batch import concatenate
from mfac_compress.mfac.layerwise import LayerGraph, Moments, layer_moments
from mfac_compress.mfac.layerwise.moments import add_moments
from mfac_compress.mfac.layerwise.operators import choose_positions
from mfac_compress.mfac.layerwise.run import run
from mfac_compress.mfac.layerwise.tracing import named_state


class _Conv1D(nn.Module):
    """x W + b with W stored as ``[inputs, outputs]``."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x):
        flat = torch.addmm(self.bias, x.view(-1, 4), self.weight)
        return flat.view(*x.shape[:-1], 6)


class _Left(nn.Module):
    """W x along the axis before the last."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        return self.weight @ x


class _Halves(nn.Module):
    """Both halves of one weight tensor on inputs of their own, of differing lengths."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, a, b):
        first, second = self.weight.split([2, 4])
        return torch.cat([(a @ first.T).flatten(1), (b @ second.T).flatten(1)], dim=1)


class _Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, a, b):
        return torch.cat([a @ self.weight.T, b @ self.weight.T], dim=1)


class _Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, stride=2)

    def forward(self, x):
        return self.conv(nn.functional.pad(x, (0, 1, 0, 1)))


def _names(cases):
    return {"argnames": ("layer", "shapes"), "argvalues": cases.values(), "ids": cases.keys()}


LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), [(5, 4)]),
    "linear over all leading axes": (lambda: nn.Linear(4, 3), [(2, 3, 2, 4)]),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=2, dilation=2, groups=2), [(2, 4, 9)]),
    "conv2d": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(1, 0)), [(2, 2, 5, 6)]),
    "conv2d without bias": (lambda: nn.Conv2d(2, 3, 1, bias=False), [(2, 2, 3, 3)]),
    "conv2d same": (lambda: nn.Conv2d(2, 3, (4, 3), padding="same", dilation=2), [(2, 2, 5, 6)]),
    "conv2d valid": (lambda: nn.Conv2d(2, 3, 2, padding="valid"), [(2, 2, 4, 4)]),
    "conv2d beyond the last window": (lambda: nn.Conv2d(2, 3, 2, stride=3), [(2, 2, 7, 4)]),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), [(2, 4, 4, 5)]),
    "padded on one side": (_Padded, [(2, 2, 6, 6)]),
    "conv3d": (lambda: nn.Conv3d(2, 4, (2, 3, 1), padding=(0, 1, 0), groups=2), [(2, 2, 3, 3, 2)]),
    "transposed 1d": (
        lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        [(2, 4, 4)],
    ),
    "transposed 2d": (
        lambda: nn.ConvTranspose2d(2, 3, (2, 3), stride=(2, 1), dilation=(1, 2)),
        [(2, 2, 3, 3)],
    ),
    "transposed with much padding": (
        lambda: nn.ConvTranspose2d(2, 3, 2, padding=2),
        [(2, 2, 5, 5)],
    ),
    "x W": (_Conv1D, [(2, 3, 4)]),
    "W x": (_Left, [(2, 4, 3)]),
    "parts of a weight": (_Halves, [(2, 3, 4), (2, 2, 4)]),
    "used twice": (_Twice, [(2, 4), (2, 4)]),
}


def _case(layer, shapes, seed=0):
    torch.manual_seed(seed)
    model = layer().double()
    inputs = [tuple(torch.randn(s, dtype=torch.float64) + 1 for s in shapes) for _ in range(2)]
    graph = LayerGraph.trace(model, inputs[0])
    (name,) = graph.layers
    return model, inputs, graph, name


def _jacobian(model, name, inputs):
    """Shape ``[elements of the output, elements of the weight]``."""
    weight = dict(model.named_parameters())[name].detach()
    J = jacrev(lambda w: functional_call(model, {name: w}, inputs))(weight)
    return J.reshape(-1, weight.numel())


def _by_row(matrix, JtJ):
    """The diagonal blocks of JᵀJ. Shape ``[g, r, k, k]``."""
    order = matrix.matrices(torch.arange(JtJ.shape[0]).view(matrix.shape))
    return torch.stack([JtJ[row][:, row] for row in order.flatten(0, 1)]).unflatten(
        0, order.shape[:2]
    )


@pytest.mark.parametrize(**_names(LAYERS))
def test_H_is_the_sum_over_all_inputs(layer, shapes):
    model, inputs, graph, name = _case(layer, shapes)
    J = _jacobian(model, name, concatenate(inputs))
    moments = layer_moments(graph, model, [name], inputs)[name]
    expected = _by_row(graph.layers[name].matrix, J.T @ J)
    torch.testing.assert_close(moments.H.unsqueeze(1).expand_as(expected), expected)


def _moments_with_targets(graph, model, dense, name, batches, positions=None):
    """As least squares collects them."""
    layer, program = graph.layers[name], graph.program
    moments = Moments.zeros(layer, "cpu", targets=True)
    generator = torch.Generator().manual_seed(0)
    for inputs in batches:
        for use in layer.uses:
            wanted = {use.input, use.node, *([use.bias] if use.bias else [])}
            got, target = (
                run(program, program.nodes, named_state(m), program.start(inputs), wanted)
                for m in (model, dense)
            )
            y = target[use.node]
            chosen = choose_positions(use.operator, y, inputs, positions, generator)
            bias = target[use.bias] if use.bias else None
            add_moments(moments, use, got[use.input], y, chosen, target=y, bias=bias)
    return moments


@pytest.mark.parametrize(**_names(LAYERS))
def test_cross_moments_are_with_the_dense_outputs_without_their_bias(layer, shapes):
    model, inputs, graph, name = _case(layer, shapes)
    dense = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.add_(torch.randn_like(parameter))
    J = _jacobian(model, name, concatenate(inputs))
    y = J @ dict(dense.named_parameters())[name].detach().flatten()
    moments = _moments_with_targets(graph, model, dense, name, inputs)
    matrix = graph.layers[name].matrix
    torch.testing.assert_close(moments.cross, matrix.matrices((J.T @ y).view(matrix.shape)))
    # As y is linear in the same inputs, its sum is that of the inputs times the dense weights.
    W = matrix.matrices(dict(dense.named_parameters())[name])
    torch.testing.assert_close(moments.sum_y, torch.einsum("grk,gk->gr", W, moments.sum_x))
    centred = moments.centred()
    torch.testing.assert_close(centred.cross, W @ centred.H)


@pytest.mark.parametrize(**_names(LAYERS))
def test_matrices_multiply_the_inputs(layer, shapes):
    """Rounding a weight tensor's matrices is rounding the tensor: each is the other's inverse."""
    model, _, graph, name = _case(layer, shapes)
    matrix, weight = graph.layers[name].matrix, dict(model.named_parameters())[name].detach()
    matrices = matrix.matrices(weight)
    assert matrices.shape == (matrix.groups, matrix.rows, matrix.columns)
    assert torch.equal(matrix.weight(matrices), weight)


def _attention(**kwargs):
    torch.manual_seed(0)
    return nn.MultiheadAttention(4, 2, batch_first=True, **kwargs).double()


def _tokens(n=3, length=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, length, 4, generator=generator, dtype=torch.float64)


def _second_moment(x):
    flat = x.flatten(0, -2)
    return flat.T @ flat


class _SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = _attention()

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class _CrossAttention(_SelfAttention):
    def forward(self, x, memory):
        return self.attention(x, memory, memory)[0]


def test_fused_projections_of_self_attention_share_one_H():
    model, x = _SelfAttention(), _tokens()
    graph = LayerGraph.trace(model, x)
    moments = layer_moments(graph, model, ["attention.in_proj_weight"], [x])
    torch.testing.assert_close(moments["attention.in_proj_weight"].H, _second_moment(x)[None])


def test_fused_projections_of_cross_attention_have_an_H_for_each_input():
    model, x, memory = _CrossAttention(), _tokens(), _tokens(length=7, seed=2)
    graph = LayerGraph.trace(model, (x, memory))
    moments = layer_moments(graph, model, [*graph.layers], [(x, memory)])
    of = moments["attention.in_proj_weight"]
    expected = [_second_moment(x), _second_moment(memory), _second_moment(memory)]
    torch.testing.assert_close(of.H, torch.stack(expected))
    assert of.count.tolist() == [15, 21, 21]


def test_fast_paths_of_evaluation_hide_no_weight():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval().double()
    x = _tokens()
    graph = LayerGraph.trace(layer, x)
    seen = {}
    layer.linear2.register_forward_hook(lambda _, args, __: seen.update(x=args[0]))
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        layer(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    matrices = [name for name, p in layer.named_parameters() if p.ndim == 2]
    assert [*graph.layers] == matrices
    H = layer_moments(graph, layer, ["linear2.weight"], [x])["linear2.weight"].H
    torch.testing.assert_close(H[0], _second_moment(seen["x"].detach()))


def test_chosen_positions_estimate_the_mean_over_all():
    torch.manual_seed(0)
    model, x = nn.Conv2d(2, 3, 3), torch.randn(400, 2, 12, 12)
    graph = LayerGraph.trace(model, x)
    every = layer_moments(graph, model, ["weight"], [x])["weight"]
    generator = torch.Generator().manual_seed(0)
    some = layer_moments(graph, model, ["weight"], [x], positions=16, generator=generator)["weight"]
    assert every.count == 400 * 100
    assert some.count == 400 * 16
    difference = some.H / some.count - every.H / every.count
    assert difference.norm() < 0.05 * (every.H / every.count).norm()


class _Padded(nn.Module):
    """A layer over tokens, flat or not, and one over the first token."""

    def __init__(self, flat):
        super().__init__()
        self.flat, self.each, self.first = flat, nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x, attention_mask):
        y = self.each(x.flatten(0, 1)).unflatten(0, x.shape[:2]) if self.flat else self.each(x)
        return self.first((y * attention_mask[..., None])[:, 0])


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("positions", [None, 2])
def test_padding_does_not_count(flat, positions):
    torch.manual_seed(0)
    model, x = _Padded(flat).double(), torch.randn(6, 5, 3, dtype=torch.float64)
    mask = (torch.arange(5) < torch.tensor([5, 2, 2, 3, 4, 2])[:, None]).long()
    x[mask == 0] = 1e6
    inputs = {"x": x, "attention_mask": mask}
    graph = LayerGraph.trace(model, inputs)
    moments = layer_moments(
        graph, model, [*graph.layers], [inputs], positions=positions,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert moments["first.weight"].count == 6
    if positions is None:
        torch.testing.assert_close(moments["each.weight"].H[0], _second_moment(x[mask == 1]))
    else:
        assert moments["each.weight"].count == 12
        assert moments["each.weight"].H.max() < 1e6


def test_chosen_positions_of_inputs_and_targets_are_the_same():
    torch.manual_seed(0)
    model, x = nn.Conv2d(2, 3, 3).double(), torch.randn(4, 2, 6, 6, dtype=torch.float64)
    graph = LayerGraph.trace(model, x)
    moments = _moments_with_targets(graph, model, model, "weight", [x], positions=3)
    W = graph.layers["weight"].matrix.matrices(model.weight)
    torch.testing.assert_close(moments.cross, W @ moments.H)


def test_float32_products_lose_nothing_to_a_large_mean():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(5000, 4) + 1000
    moments = layer_moments(LayerGraph.trace(model, x), model, ["weight"], [x])["weight"]
    exact = x.double() - x.double().mean(dim=0)
    torch.testing.assert_close(moments.centred().H[0], exact.T @ exact, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize(
    ("model", "shape"),
    [(nn.Conv2d(32, 32, 3, padding=1, groups=32), (50, 32, 8, 8)), (nn.Linear(300, 2), (999, 300))],
)
def test_H_of_float32_inputs_is_exactly_symmetric(model, shape):
    torch.manual_seed(0)
    x = torch.randn(shape).relu()
    H = layer_moments(LayerGraph.trace(model, x), model, ["weight"], [x])["weight"].H
    assert torch.equal(H, H.mT)


def test_sums_over_parts_are_those_over_all():
    model, inputs, graph, name = _case(*LAYERS["depthwise"])
    first, second, both = (
        layer_moments(graph, model, [name], batches)[name]
        for batches in ([inputs[0]], [inputs[1]], inputs)
    )
    for key in ("count", "H", "sum_x"):
        sums = getattr(first, key) + getattr(second, key)
        torch.testing.assert_close(sums, getattr(both, key))


def test_symmetric_products_in_bands_are_whole():
    torch.manual_seed(0)
    model, x = nn.Linear(600, 2).double(), torch.randn(50, 600, dtype=torch.float64)
    H = layer_moments(LayerGraph.trace(model, x), model, ["weight"], [x])["weight"].H
    torch.testing.assert_close(H[0], x.T @ x)


def test_what_cannot_be_counted_is_refused():
    model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(5, 4)
    graph = LayerGraph.trace(model, x)
    with pytest.raises(ValueError, match=r"0\.bias"):
        layer_moments(graph, model, ["0.bias"], [x])
    with pytest.raises(ValueError, match="at least one batch"):
        layer_moments(graph, model, ["0.weight"], [])
    with pytest.raises(ValueError, match="NaN or infinity"):
        layer_moments(graph, model, ["0.weight"], [x / 0])
