"""Targets without labels: their averages are the true Fisher and the Gauss-Newton matrix."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mfac_compress.mfac.gradients import gradient_rows
from mfac_compress.mfac.labels import projection_loss, random_projections, sampled_labels
from mfac_compress.mfac.layout import Layout


def _rows(model, loss, batches):
    layout = Layout.row_major({name: p.shape for name, p in model.named_parameters()})
    return torch.cat(list(gradient_rows(model, loss, layout, batches, "vmap")))


def test_sampled_labels_give_the_true_fisher():
    """For softmax regression on one input x it is (diag p − ppᵀ) ⊗ xxᵀ."""
    torch.manual_seed(0)
    model, x = nn.Linear(2, 3, bias=False), torch.tensor([[1.0, -2.0]])
    generator = torch.Generator().manual_seed(0)
    batches = sampled_labels(model, [(x, torch.zeros(1))] * 4000, generator)

    rows = _rows(model, cross_entropy, batches)

    p = model(x).softmax(-1)[0]
    expected = torch.kron(torch.diag(p) - torch.outer(p, p), x.T @ x)
    torch.testing.assert_close(rows.T @ rows / 4000, expected, atol=0.05, rtol=0)


def test_random_projections_give_the_gauss_newton_matrix():
    torch.manual_seed(0)
    model, x = nn.Linear(2, 3, bias=False), torch.tensor([[1.0, -2.0]])
    generator = torch.Generator().manual_seed(0)
    batches = random_projections(model, [(x, torch.zeros(1))] * 4000, generator)

    rows = _rows(model, projection_loss, batches)

    expected = torch.kron(torch.eye(3), x.T @ x)
    torch.testing.assert_close(rows.T @ rows / 4000, expected, atol=0.25, rtol=0)


def test_labels_of_many_positions_keep_their_shape():
    model = nn.Conv1d(2, 4, 1)
    ((_, y),) = sampled_labels(model, [(torch.randn(5, 2, 7), None)], torch.Generator())
    assert y.shape == (5, 7)
    assert y.dtype == torch.int64
    assert 0 <= y.min() <= y.max() < 4


def test_the_same_seed_gives_the_same_targets():
    model, batch = nn.Linear(2, 3), (torch.randn(50, 2), None)
    draws = [
        next(sampled_labels(model, [batch], torch.Generator().manual_seed(seed)))[1]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(2, 1)

    def forward(self, x):
        return {"a": self.a(x), "b": (self.b(x), x.argmax(1))}


def test_projections_have_the_form_of_the_outputs():
    model, x = Heads(), torch.randn(4, 2)
    ((_, directions),) = random_projections(model, [(x, None)], torch.Generator().manual_seed(0))

    value = projection_loss(model(x), directions)

    a, (b, positions) = directions["a"], directions["b"]
    assert not positions.any()
    expected = ((model(x)["a"] * a).sum() + (model(x)["b"][0] * b).sum()) / 4
    torch.testing.assert_close(value, expected)
    rows = _rows(model, projection_loss, [(x, directions)])
    torch.testing.assert_close(rows[0, :6], (a.T @ x).flatten() / 4)


def test_labels_need_one_tensor_of_logits():
    with pytest.raises(ValueError, match=r"one tensor of logits .*Got a dict.*model.output"):
        next(sampled_labels(Heads(), [(torch.ones(1, 2), None)], torch.Generator()))
    classes = nn.Module()
    classes.forward = lambda x: x.argmax(1)
    with pytest.raises(ValueError, match=r"torch.int64 and shape \[1\]"):
        next(sampled_labels(classes, [(torch.ones(1, 2), None)], torch.Generator()))


def test_ignored_positions_remain_so():
    model = nn.Conv1d(2, 4, 1)
    targets = torch.tensor([[1, -100, 2], [-100, -100, 0]])
    batch = (torch.randn(2, 2, 3), targets)
    ((_, y),) = sampled_labels(model, [batch], torch.Generator().manual_seed(0))
    assert torch.equal(y == -100, targets == -100)
