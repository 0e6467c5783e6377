"""Repair of a pruned model, layer by layer, against least squares on explicit inputs."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mfac_compress.mfac.layerwise import LayerGraph, least_squares

_TINY = {"positions": None, "ridge": 0.0}


@pytest.fixture(autouse=True)
def _seeded():
    """Models are made in the tests."""
    torch.manual_seed(0)


def _pruned(dense, graph, share=0.5, seed=1):
    """A copy with about ``share`` of each layer's weights set to zero, and the masks."""
    generator = torch.Generator().manual_seed(seed)
    module = copy.deepcopy(dense)
    parameters = dict(module.named_parameters())
    masks = {n: torch.rand(parameters[n].shape, generator=generator) > share for n in graph.layers}
    for name, mask in masks.items():
        parameters[name].data.masked_fill_(~mask, 0)
    return module, masks


def _case(model, *shape, share=0.5):
    """A dense model in evaluation mode, its graph, a pruned copy with masks, and two batches."""
    torch.manual_seed(0)
    dense = model.double().eval()
    for norm in (m for m in dense.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (norm.running_mean, norm.weight, norm.bias):
            nn.init.normal_(tensor, mean=0.5)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    inputs = [torch.randn(4, *shape, dtype=torch.float64) + 0.5 for _ in range(2)]
    graph = LayerGraph.trace(dense, inputs[0])
    return dense, graph, *_pruned(dense, graph, share), inputs


def _solve_row(X, y, kept, intercept):
    """``[n, k]``, ``[n]`` -> the row of weights, and the intercept."""
    columns = [X[:, kept]] + ([torch.ones(len(X), 1, dtype=X.dtype)] if intercept else [])
    # By singular values: with zeros before it, a layer may get inputs that do not vary.
    A = torch.cat(columns, dim=1)
    solution = torch.linalg.lstsq(A, y[:, None], driver="gelsd").solution[:, 0]
    row = torch.zeros_like(X[0])
    row[kept] = solution[: int(kept.sum())]
    return row, solution[-1] if intercept else torch.zeros(())


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_becomes_each_row_s_least_squares_solution(bias):
    dense, graph, module, masks, inputs = _case(nn.Linear(6, 3, bias=bias), 9, 6)
    least_squares(module, dense, graph, masks, inputs, **_TINY)
    X = torch.cat(inputs).flatten(0, 1)
    for row, (kept, y) in enumerate(zip(masks["weight"], dense(X).T.detach(), strict=True)):
        expected, intercept = _solve_row(X, y, kept, bias)
        torch.testing.assert_close(module.weight[row].detach(), expected, rtol=1e-6, atol=1e-6)
        if bias:
            torch.testing.assert_close(module.bias[row].detach(), intercept, rtol=1e-6, atol=1e-6)


def test_a_batch_norm_takes_up_what_has_no_bias():
    """After it, the repaired layer's output is what the least-squares intercept would make it."""
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    dense, graph, module, masks, inputs = _case(model, 2, 6, 6)
    least_squares(module, dense, graph, masks, inputs, **_TINY)
    X = F.unfold(torch.cat(inputs), 3).transpose(1, 2).flatten(0, 1)
    Y = dense[0](torch.cat(inputs)).flatten(2).transpose(1, 2).flatten(0, 1).detach()
    for row, kept in enumerate(masks["0.weight"].flatten(1)):
        expected, intercept = _solve_row(X, Y[:, row], kept, intercept=True)
        got = module[0].weight[row].detach().flatten()
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            dense[1].running_mean[row] - module[1].running_mean[row], intercept
        )
    assert torch.equal(dense[1].running_var, module[1].running_var)


class _Block(nn.Module):
    """A residual block whose shortcut has a layer of its own, which runs last in ``forward``."""

    def __init__(self, norm=True):
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 1)
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.shortcut = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        return F.relu(self.norm(self.conv(x)) + self.shortcut(x))


@pytest.mark.parametrize("norm", [True, False])
def test_the_last_layer_of_a_branch_makes_up_for_the_shortcut(norm):
    dense, graph, module, masks, inputs = _case(_Block(norm), 2, 6, 6)
    assert [*graph.layers] == ["stem.weight", "shortcut.weight", "conv.weight"]
    x = torch.cat(inputs)
    least_squares(module, dense, graph, masks, inputs, **_TINY)

    def total(model, of):
        return model.norm(model.conv(of)) + model.shortcut(of)

    # Given the repaired stem and shortcut, no other weights of the branch's last layer on its
    # mask, with an intercept, bring the sum closer to the dense one.
    stem = module.stem(x).detach()
    wanted = (total(dense, dense.stem(x)) - module.shortcut(stem)).detach()
    X = F.unfold(stem, 3, padding=1).transpose(1, 2).flatten(0, 1)
    for row, kept in enumerate(masks["conv.weight"].flatten(1)):
        y = wanted[:, row].flatten()
        weights, intercept = _solve_row(X, y, kept, intercept=True)
        best = (X @ weights + intercept - y).square().sum()
        got = (total(module, stem)[:, row] - total(dense, dense.stem(x))[:, row]).square().sum()
        torch.testing.assert_close(got.detach(), best, rtol=1e-6, atol=1e-9)


def test_outputs_in_another_order_make_up_for_the_shortcut_too():
    """The branch of a transformer's layer is reshaped and transposed before the addition."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    model = nn.Sequential(nn.Linear(8, 8), layer)
    dense, graph, module, masks, inputs = _case(model, 5, 8)
    assert graph.layers["1.self_attn.out_proj.weight"].uses[0].residual is not None
    first = {"0.weight": masks["0.weight"]}
    least_squares(module, dense, graph, first, inputs, **_TINY)
    out = {"1.self_attn.out_proj.weight": masks["1.self_attn.out_proj.weight"]}

    def error(of):
        def attended(m):
            seen = []
            handle = m[1].norm2.register_forward_hook(lambda _, args, __: seen.append(args[0]))
            m.train()  # keeps away the kernel that calls no module
            for dropout in (d for d in m.modules() if isinstance(d, nn.Dropout)):
                dropout.p = 0.0
            m[1].self_attn.dropout = 0.0
            m(torch.cat(inputs))
            handle.remove()
            return seen[0]

        return (attended(of) - attended(dense)).square().sum().item()

    before = error(module)
    least_squares(module, dense, graph, out, inputs, **_TINY)
    assert error(module) < 0.9 * before


def _outputs(model, names, x):
    """The outputs of the modules that have the given weights."""
    seen, handles = {}, []
    for name in names:
        module = model.get_submodule(name.rpartition(".")[0])
        handles.append(
            module.register_forward_hook(lambda _, __, y, name=name: seen.update({name: y}))
        )
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (6,)),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1)
        ),
        (4, 6, 6),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.GELU(), nn.ConvTranspose1d(4, 3, 4, stride=2)),
        (3, 8),
    ),
}


@pytest.mark.parametrize(("model", "shape"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("ridge", [0.0, 0.1, 10.0])
def test_no_layer_s_error_rises(model, shape, ridge):
    """Each layer alone, on the inputs that it gets once those before it are repaired."""
    dense, graph, module, masks, inputs = _case(model(), *shape)
    x = torch.cat(inputs)
    wanted = _outputs(dense, graph.layers, x)
    for name, mask in masks.items():
        before = _outputs(module, [name], x)[name]
        least_squares(module, dense, graph, {name: mask}, inputs, positions=None, ridge=ridge)
        after = _outputs(module, [name], x)[name]
        errors = [(y - wanted[name]).square().sum().item() for y in (before, after)]
        assert errors[1] <= errors[0] * (1 + 1e-9)
        assert ridge > 1 or errors[1] < 0.95 * errors[0]


def test_layers_in_one_pass_are_solved_as_one_after_the_other():
    dense, graph, module, masks, inputs = _case(MODELS["depthwise"][0](), 4, 6, 6)
    by_layer = copy.deepcopy(module)
    for name in graph.layers:
        least_squares(by_layer, dense, graph, {name: masks[name]}, inputs, positions=None)
    least_squares(module, dense, graph, masks, inputs, positions=None)
    for got, expected in zip(module.parameters(), by_layer.parameters(), strict=True):
        torch.testing.assert_close(got, expected)


def test_the_dense_model_with_nothing_removed_stays_as_it_is():
    dense, graph, _, masks, inputs = _case(_Block(), 2, 6, 6)
    module = copy.deepcopy(dense)
    least_squares(module, dense, graph, {n: m | True for n, m in masks.items()}, inputs)
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, dense.state_dict()[name], rtol=1e-10, atol=1e-10)


def test_removed_weights_are_positive_zeros_and_other_parameters_are_untouched():
    dense, graph, module, masks, inputs = _case(_Block(), 2, 6, 6)
    untouched = {"norm.weight", "norm.bias", "norm.running_var", "shortcut.weight"}
    before = copy.deepcopy(module.state_dict())
    least_squares(
        module,
        dense,
        graph,
        {name: mask for name, mask in masks.items() if name != "shortcut.weight"},
        inputs,
    )
    after = module.state_dict()
    for name in untouched:
        assert torch.equal(before[name], after[name]), name
    removed = after["conv.weight"][~masks["conv.weight"]]
    assert not removed.any()
    assert not removed.signbit().any()


def test_a_norm_that_was_estimated_anew_is_taken_into_account():
    """The target is the normalised dense output, whatever scale the pruned model's norm has."""
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4))
    dense, graph, module, masks, inputs = _case(model, 2, 6, 6, share=0.0)
    module[1].running_var.mul_(3)
    module[1].running_mean.add_(1)
    least_squares(module, dense, graph, masks, inputs, **_TINY)
    x = torch.cat(inputs)
    torch.testing.assert_close(module(x), dense(x), rtol=1e-6, atol=1e-6)


class _Repeated(nn.Module):
    """One layer that is applied three times."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(self.layer(x))
        return self.last(x)


def test_a_weight_that_is_used_again_is_solved_once_for_all_its_uses():
    dense, graph, module, masks, inputs = _case(_Repeated(), 40, 6, share=0.3)
    assert len(graph.layers["layer.weight"].uses) == 3
    x = torch.cat(inputs)
    before = (module(x) - dense(x)).square().mean()
    reference = copy.deepcopy(module)
    least_squares(module, dense, graph, masks, inputs, **_TINY)
    assert (module(x) - dense(x)).square().mean() < before / 2
    # The last layer was solved on what the repaired layer gives.
    reference.layer.load_state_dict(module.layer.state_dict())
    last = {"last.weight": masks["last.weight"]}
    least_squares(reference, dense, graph, last, inputs, **_TINY)
    torch.testing.assert_close(module.last.weight, reference.last.weight)


def test_frozen_biases_stay():
    dense, graph, module, masks, inputs = _case(nn.Linear(6, 3), 9, 6)
    module.bias.requires_grad_(False)
    before = module.bias.clone()
    least_squares(module, dense, graph, masks, inputs, **_TINY)
    assert torch.equal(module.bias, before)
    X = torch.cat(inputs).flatten(0, 1)
    y = (dense(X) - before).detach()
    expected = torch.stack(
        [_solve_row(X, y[:, i], kept, False)[0] for i, kept in enumerate(masks["weight"])]
    )
    torch.testing.assert_close(module.weight.detach(), expected, rtol=1e-6, atol=1e-6)


def test_statistics_of_a_frozen_batch_norm_stay():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4))
    model[1].requires_grad_(False)
    dense, graph, module, masks, inputs = _case(model, 2, 6, 6)
    least_squares(module, dense, graph, masks, inputs, **_TINY)
    assert torch.equal(module[1].running_mean, dense[1].running_mean)
    X = F.unfold(torch.cat(inputs), 3).transpose(1, 2).flatten(0, 1)
    Y = dense[0](torch.cat(inputs)).flatten(2).transpose(1, 2).flatten(0, 1).detach()
    expected, _ = _solve_row(X, Y[:, 0], masks["0.weight"].flatten(1)[0], intercept=False)
    got = module[0].weight[0].detach().flatten()
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_processes_that_share_the_samples_find_what_one_finds(on_all_ranks):
    dense, graph, module, masks, inputs = _case(MODELS["mlp"][0](), 6)
    parts = torch.cat(inputs).tensor_split(3)
    alone = copy.deepcopy(module)
    least_squares(alone, dense, graph, masks, inputs)

    def work(group):
        mine = copy.deepcopy(module)
        least_squares(mine, dense, graph, masks, [parts[group.rank]], group=group)
        return mine.state_dict()

    for state in on_all_ranks(work):
        for name, expected in alone.state_dict().items():
            torch.testing.assert_close(state[name], expected)


def test_progress_names_each_layer_once():
    dense, graph, module, masks, inputs = _case(_Repeated(), 4, 6)
    names = []
    least_squares(module, dense, graph, masks, inputs, progress=names.append)
    assert names == ["layer.weight", "last.weight"]


def test_masks_must_fit():
    dense, graph, module, masks, inputs = _case(nn.Linear(6, 3), 9, 6)
    with pytest.raises(ValueError, match=r"\[3, 5\] for \[3, 6\]"):
        least_squares(module, dense, graph, {"weight": masks["weight"][:, 1:]}, inputs)
    with pytest.raises(ValueError, match="no parameter"):
        least_squares(module, dense, graph, {"other": masks["weight"]}, inputs)
    with pytest.raises(ValueError, match="at least one batch"):
        least_squares(module, dense, graph, masks, [])
