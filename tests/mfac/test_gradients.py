"""Gradients as rows of the flat vector, by loop and by vmap."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mfac_compress.mfac.batch import Batch
from mfac_compress.mfac.gradients import (
    GradientSource,
    NonFiniteGradientError,
    batches_at_once,
    fastest_method,
)
from mfac_compress.mfac.layout import Layout

METHODS = ["loop", "vmap"]


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).eval()


def _source(model, names=("3.weight", "0.weight"), loss=cross_entropy):
    parameters = dict(model.named_parameters())
    return GradientSource(model, loss, Layout.row_major({n: parameters[n].shape for n in names}))


def _batches(count, size=2):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 4, generator=generator), torch.randint(3, (size,), generator=generator))
        for _ in range(count)
    ]


@pytest.mark.parametrize("method", METHODS)
def test_rows_are_the_gradients_of_the_mean_losses(method):
    model, batches = _model(), _batches(40)
    source = _source(model)

    rows = torch.cat(list(source.rows(batches, method)))

    assert rows.shape == (40, 35)
    for row, (x, y) in zip(rows, batches, strict=True):
        model.zero_grad()
        cross_entropy(model(x), y).backward()
        expected = torch.cat([p.grad.flatten() for p in source.parameters.values()])
        torch.testing.assert_close(row, expected)


class Tokens(nn.Module):
    """Reads padded tokens, and returns a dict."""

    def __init__(self, recurrent=None):
        super().__init__()
        self.embedding, self.recurrent = nn.Embedding(9, 4), recurrent
        self.head, self.length = nn.Linear(4, 3), nn.Linear(4, 1)

    def forward(self, ids, mask):
        x = self.embedding(ids)
        if self.recurrent is not None:
            x = self.recurrent(x)[0]
        x = (x * mask[..., None]).sum(1)
        return {"logits": self.head(x), "length": (self.length(x)[:, 0],)}


def _tokens(lengths, size=2):
    generator = torch.Generator().manual_seed(1)
    for length in lengths:
        ids = torch.randint(9, (size, length), generator=generator)
        mask = torch.ones(size, length).tril(length - 2)
        yield Batch({"ids": ids, "mask": mask}, (ids[:, 0] % 3, ids.sum(1)))


def _two_losses(outputs, targets):
    labels, lengths = targets
    difference = outputs["length"][0] - lengths
    return cross_entropy(outputs["logits"], labels) + difference.square().mean()


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_trees_keep_the_order_of_batches_of_different_lengths(method):
    torch.manual_seed(0)
    source = _source(Tokens(), ["head.weight", "embedding.weight"], _two_losses)
    lengths = [5, 5, 3, 5, 5, 5, 4]

    rows = list(source.rows(_tokens(lengths), method))

    sizes = {"loop": [1] * 7, "vmap": [2, 1, 3, 1]}
    assert [len(each) for each in rows] == sizes[method]
    for row, (inputs, targets) in zip(torch.cat(rows), _tokens(lengths), strict=True):
        value = _two_losses(source.model(**inputs), targets)
        parts = torch.autograd.grad(value, [*source.parameters.values()])
        torch.testing.assert_close(row, torch.cat([part.flatten() for part in parts]))


def test_the_loop_is_used_where_vmap_cannot_run_a_layer():
    source = _source(Tokens(nn.GRU(4, 4, batch_first=True)), ["head.weight"], _two_losses)
    assert fastest_method(source, list(_tokens([5] * 4))) == "loop"


def test_a_row_agrees_with_finite_differences():
    model = _model().double()
    x, y = torch.randn(3, 4, dtype=torch.float64), torch.randint(3, (3,))
    source = _source(model, ["0.weight"])
    ((row,),) = source.rows([(x, y)])
    weight, eps = source.parameters["0.weight"], 1e-6

    for column in (0, 7, 19):
        flat = weight.data.view(-1)
        flat[column] += eps
        up = cross_entropy(model(x), y)
        flat[column] -= 2 * eps
        down = cross_entropy(model(x), y)
        flat[column] += eps
        difference = ((up - down) / (2 * eps)).item()
        assert row[column].item() == pytest.approx(difference, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_not_changed(method):
    model = _model()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    list(_source(model).rows(_batches(3), method))

    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_that_is_not_finite_names_batch_and_tensor(method):
    batches = _batches(30)
    batches[21][0][0, 0] = float("inf")

    with pytest.raises(NonFiniteGradientError, match=r"gradient of 3\.weight for batch 21") as e:
        list(_source(_model()).rows(batches, method))

    assert (e.value.index, e.value.tensor) == (21, "3.weight")


class Spare(nn.Module):
    """Has a layer that is never used, and one that only inputs of a positive sum use."""

    def __init__(self):
        super().__init__()
        self.used, self.spare, self.seldom = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.used(x) + (self.seldom(x) if x.sum() > 0 else 0)


class NeverUsed(Spare):
    def forward(self, x):
        return self.used(x)


SPARE = ["used.weight", "spare.weight", "seldom.weight"]


def test_tensors_outside_the_loss_are_named():
    x, y = torch.ones(2, 4), torch.zeros(2, dtype=torch.long)
    source = _source(Spare(), SPARE)

    assert source.unused([(-x, y)]) == ["spare.weight", "seldom.weight"]
    assert source.unused([(-x, y), (x, y)]) == ["spare.weight"]
    assert _source(Spare(), SPARE, lambda o, t: o.detach().mean()).unused([(x, y)]) == SPARE


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_outside_the_loss_has_the_gradient_zero(method):
    source = _source(NeverUsed(), SPARE)

    (rows,) = source.rows(_batches(1), method)

    assert rows[:, :12].any()
    assert not rows[:, 12:].any()


def test_the_method_is_the_one_that_took_less_time(monkeypatch):
    from mfac_compress.mfac import gradients

    for seconds, expected in [({"loop": 1, "vmap": 2}, "loop"), ({"loop": 2, "vmap": 1}, "vmap")]:
        monkeypatch.setattr(gradients, "_seconds", lambda *args, s=seconds: s[args[-1]])
        assert fastest_method(_source(_model()), _batches(2)) == expected


def test_the_loop_is_used_where_vmap_cannot_run_the_model():
    def loss(outputs, targets):
        return cross_entropy(outputs, targets) * (2 if outputs.sum() > 0 else 1)

    assert fastest_method(_source(_model(), loss=loss), _batches(4)) == "loop"


def test_vmap_takes_at_least_one_batch_at_a_time():
    assert batches_at_once(10_000) == 1
    assert batches_at_once(1) > batches_at_once(8) > 1
