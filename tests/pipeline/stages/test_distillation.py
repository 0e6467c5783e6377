"""The distances from the dense model, against their formulas in float64."""

import pytest
import torch
from torch import nn

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.recipe.schema import DistillSection
from mfac_compress.pipeline.stages.distillation import (
    Distillation,
    softened_divergence,
)

T = 3.0


def _outputs(*shape):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
    return student, torch.randn(*shape, generator=generator, dtype=torch.float64)


def _distillation(dense=None, distance="mse", weight=1.0, layers=(), task_loss=None):
    return Distillation(dense or nn.Identity(), distance, weight, T, layers, task_loss)


def _computed(student, wanted):
    return {"outputs": student, "wanted": wanted, "hidden": {}, "wanted_hidden": {}}


def test_the_divergence_is_that_of_the_softened_probabilities():
    student, wanted = _outputs(5, 4)
    p, q = (torch.exp(z / T) / torch.exp(z / T).sum(1, keepdim=True) for z in (wanted, student))
    expected = T**2 * (p * (p / q).log()).sum() / 5
    found = softened_divergence(student, wanted, T, ())
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_its_gradient_is_that_of_the_cross_entropy():
    student, wanted = _outputs(5, 4)
    softened_divergence(student, wanted, T, ()).backward()
    found, student.grad = student.grad, None
    p = (wanted / T).softmax(1)
    (-(T**2) * (p * (student / T).log_softmax(1)).sum() / 5).backward()
    torch.testing.assert_close(found, student.grad, rtol=1e-12, atol=1e-15)


def test_padding_does_not_count():
    student, wanted = _outputs(2, 4, 3)
    targets = torch.tensor([[0, -100, 1], [-100, -100, 2]])
    kept = targets != -100
    flat = [z.movedim(1, -1)[kept] for z in (student, wanted)]
    whole = softened_divergence(student, wanted, T, targets)
    assert whole.item() == pytest.approx(softened_divergence(*flat, T, ()).item(), rel=1e-12)
    nothing = softened_divergence(student, wanted, T, torch.full_like(targets, -100))
    assert nothing.item() == 0


def test_the_other_distances():
    student, wanted = _outputs(5, 4)
    computed = _computed(student, wanted)
    squared = ((student - wanted) ** 2).mean()
    assert _distillation().loss(computed, ()).item() == pytest.approx(squared.item())
    norms = student.norm(dim=1) * wanted.norm(dim=1)
    cosine = (1 - (student * wanted).sum(1) / norms).mean()
    found = _distillation(distance="cosine").loss(computed, ())
    assert found.item() == pytest.approx(cosine.item())


def test_several_outputs_add_up_and_positions_are_left_out():
    student, wanted = _outputs(5, 4)
    positions = torch.arange(5)
    computed = _computed((student, positions, 2 * student), (wanted, positions, 2 * wanted))
    one = ((student - wanted) ** 2).mean().item()
    assert _distillation().loss(computed, ()).item() == pytest.approx(5 * one)


def test_the_weight_is_the_share_of_the_distance():
    student, wanted = _outputs(5, 4)
    computed, targets = _computed(student, wanted), torch.arange(5) % 4
    distance, labelled = ((student - wanted) ** 2).mean(), nn.functional.cross_entropy
    found = _distillation(weight=0.7, task_loss=labelled).loss(computed, targets)
    expected = 0.7 * distance + 0.3 * labelled(student, targets)
    assert found.item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("distance", "outputs"),
    [("kl", (torch.ones(2, 3), torch.ones(2, 3))), ("kl", torch.ones(2)), ("cosine", torch.ones(2))]
    + [(each, torch.arange(2)) for each in ("kl", "mse", "cosine")],
)
def test_outputs_that_do_not_fit_the_distance_are_refused(distance, outputs):
    with pytest.raises(InputError, match=rf"recover\.distill\.loss {distance} needs"):
        _distillation(distance=distance).loss(_computed(outputs, outputs), ())


@pytest.mark.parametrize(
    ("given", "task", "distance"),
    [
        ("auto", "cross_entropy", "kl"),
        ("auto", "mse", "mse"),
        ("auto", "my.code:loss", "mse"),
        ("cosine", "cross_entropy", "cosine"),
    ],
)
def test_the_tasks_loss_says_which_distance_is_meant(given, task, distance):
    assert DistillSection(loss=given).distance(task) == distance


class _Net(nn.Module):
    """Its first layer is called twice, and another one never."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.unused, self.pooled = nn.Linear(3, 3), nn.AdaptiveAvgPool1d(1)
        self.first = nn.Flatten(0)
        self.double()

    def forward(self, x):
        self.first(x)
        return self.norm(self.inner(self.inner(x)))


def _pair():
    dense, pruned = _Net().eval(), _Net()
    with torch.no_grad():
        pruned.inner.weight[0] = 0
    return dense, pruned.train()


def test_layers_come_near_relative_to_the_dense_models_outputs():
    dense, pruned = _pair()
    x = torch.randn(6, 3, dtype=torch.float64)
    distillation = _distillation(dense, layers=("inner", "norm"))
    computed = distillation.compute(pruned, x)

    def relative(y, t):
        return ((y - t).square().mean() / t.square().mean()).item()

    with torch.no_grad():
        once = [net.inner(x) for net in (pruned, dense)]
        twice = [net.inner(net.inner(x)) for net in (pruned, dense)]
        outputs = computed["outputs"], dense(x)
        mse = (outputs[0] - outputs[1]).square().mean().item()
    expected = mse + (relative(*once) + relative(*twice) + relative(*outputs)) / 2
    assert distillation.loss(computed, ()).item() == pytest.approx(expected)


def test_the_teacher_stays_as_it_is():
    dense, pruned = _pair()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    distillation = _distillation(dense, layers=("inner",))
    computed = distillation.compute(pruned, torch.randn(6, 3, dtype=torch.float64))
    distillation.loss(computed, ()).backward()

    assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())
    assert all(parameter.grad is None for parameter in dense.parameters())
    assert pruned.inner.weight.grad is not None
    assert not any(m._forward_hooks for net in (dense, pruned) for m in net.modules())


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("iner", r"must name modules of the model\. Got 'iner'"),
        ("unused", r"For 6 samples unused returned none"),
        ("first", r"For 6 samples first returned .*18"),
    ],
)
def test_layers_that_cannot_be_compared_are_refused(layer, message):
    dense, pruned = _pair()
    with pytest.raises(InputError, match=message):
        _distillation(dense, layers=(layer,)).check(pruned, torch.randn(6, 3).double())


def test_a_layer_that_returns_another_shape_in_training_is_refused():
    dense, pruned = _pair()
    pruned.norm = nn.Sequential(pruned.norm, nn.Unflatten(1, (3, 1)))
    with pytest.raises(InputError, match=r"of the same shapes in both models\. norm returned"):
        _distillation(dense, layers=("norm",)).check(pruned, torch.randn(6, 3).double())
