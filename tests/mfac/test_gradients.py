"""Gradients as rows of the flat vector."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mfac_compress.mfac.gradients import NonFiniteGradientError, loss_gradients
from mfac_compress.mfac.layout import TensorLayout


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def _parameters(model, names):
    return {name: dict(model.named_parameters())[name] for name in names}


def test_a_row_is_the_gradient_of_the_mean_loss():
    model, x, y = _model(), torch.randn(6, 4), torch.randint(3, (6,))
    names = ["2.weight", "0.weight"]

    (row,) = loss_gradients(model, cross_entropy, [(x, y)], _parameters(model, names))

    cross_entropy(model(x), y).backward()
    expected = torch.cat([_parameters(model, names)[n].grad.flatten() for n in names])
    torch.testing.assert_close(row, expected)


def test_a_row_agrees_with_finite_differences():
    model = _model().double()
    x, y = torch.randn(3, 4, dtype=torch.float64), torch.randint(3, (3,))
    parameters = _parameters(model, ["0.weight"])
    (row,) = loss_gradients(model, cross_entropy, [(x, y)], parameters)
    weight, eps = parameters["0.weight"], 1e-6

    for column in (0, 7, 19):
        flat = weight.data.view(-1)
        flat[column] += eps
        up = cross_entropy(model(x), y)
        flat[column] -= 2 * eps
        down = cross_entropy(model(x), y)
        flat[column] += eps
        assert row[column].item() == pytest.approx(((up - down) / (2 * eps)).item(), rel=1e-5)


def test_the_model_is_not_changed():
    model = _model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [(torch.randn(2, 4), torch.randint(3, (2,)))] * 2

    list(loss_gradients(model, cross_entropy, batches, _parameters(model, ["0.weight"])))

    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_gradient_that_is_not_finite_names_batch_and_tensor():
    model = _model()
    good = (torch.randn(2, 4), torch.randint(3, (2,)))
    bad = (torch.tensor([[float("inf"), 0, 0, 0]]), torch.tensor([0]))

    with pytest.raises(NonFiniteGradientError, match=r"of 0\.weight for batch 1") as error:
        list(loss_gradients(model, cross_entropy, [good, bad], _parameters(model, ["0.weight"])))

    assert (error.value.index, error.value.tensor) == (1, "0.weight")


def test_a_tensor_outside_the_loss_is_refused():
    model = _model()
    unused = nn.Parameter(torch.ones(2))
    batch = (torch.randn(2, 4), torch.randint(3, (2,)))
    with pytest.raises(ValueError, match="spare"):
        list(loss_gradients(model, cross_entropy, [batch], {"spare": unused}))


def test_flatten_and_unflatten_are_inverses():
    tensors = {"a": torch.randn(2, 3), "b": torch.randn(4)}
    layout = TensorLayout.of(tensors)

    back = layout.unflatten(layout.flatten(tensors))

    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert [layout.name_at(c) for c in (0, 5, 6, 9)] == ["a", "a", "b", "b"]
