"""Properties of the loss, and which metrics belong to it."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.task import load_task
from mfac_compress.pipeline.recipe.schema import TaskSection


def task(folder=None, **section):
    return load_task(TaskSection(**section), folder=folder)


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(
        "def squared(outputs, targets):\n    return ((outputs - targets) ** 2).mean()\n"
        "def per_sample(outputs, targets):\n    return (outputs - targets).abs().mean(1)\n"
        "def raises(outputs, targets):\n    raise KeyError('label')\n"
        "def loss_writes_targets(outputs, targets):\n    targets.clamp_(max=0)\n"
        "    return (outputs - targets).square().mean()\n"
        "def loss_writes_outputs(outputs, targets):\n    outputs.mul_(2)\n"
        "    return (outputs - targets).square().mean()\n"
    )
    return tmp_path


def test_cross_entropy_is_pytorchs_with_and_without_smoothing():
    outputs, targets = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    for smoothing in (0.0, 0.1):
        expected = F.cross_entropy(outputs, targets, label_smoothing=smoothing)
        assert torch.equal(task().loss(outputs, targets, label_smoothing=smoothing), expected)


def test_cross_entropy_takes_probabilities_and_maps():
    probabilities = torch.softmax(torch.randn(5, 3), 1)
    assert task().loss(torch.randn(5, 3), probabilities).ndim == 0
    assert task().loss(torch.randn(5, 3, 2, 2), torch.zeros(5, 2, 2, dtype=torch.long)).ndim == 0


def test_ignored_targets_count_for_nothing():
    outputs, targets = torch.randn(3, 4, 5), torch.randint(4, (3, 5))
    targets[0, 2:], targets[2, :4] = -100, -100
    kept = targets != -100
    expected = F.cross_entropy(outputs.movedim(1, -1)[kept], targets[kept])
    assert torch.allclose(task().loss(outputs, targets), expected)
    assert torch.equal(task().unchecked_loss(outputs, targets), task().loss(outputs, targets))
    one_by_one = [task().loss(outputs[i : i + 1], targets[i : i + 1]) for i in range(3)]
    vectorised = torch.vmap(lambda o, t: task().unchecked_loss(o[None], t[None]))(outputs, targets)
    assert torch.allclose(vectorised, torch.stack(one_by_one))


def test_mse_takes_integer_targets_and_gives_gradients():
    outputs = torch.randn(4, 2, requires_grad=True)
    task(loss="mse").loss(outputs, torch.ones(4, 2, dtype=torch.long)).backward()
    assert torch.allclose(outputs.grad, 2 * (outputs - 1).detach() / 8)


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "part"),
    [
        ("cross_entropy", torch.zeros(4), torch.zeros(4).long(), "[n, classes, ...]"),
        ("cross_entropy", torch.zeros(4, 3), torch.zeros(4, 1).long(), "integer targets"),
        ("cross_entropy", torch.zeros(4, 3), torch.zeros(4), "float targets"),
        ("cross_entropy", torch.zeros(2, 3), torch.tensor([1, 3]), "class 3"),
        ("cross_entropy", torch.zeros(2, 3), torch.tensor([-1, 0]), "class -1"),
        ("mse", torch.zeros(4, 1), torch.zeros(4), "one shape"),
        ("mse", torch.tensor(1.0), torch.zeros(4), "tensors of shape [n, ...]"),
        ("mse", (), torch.zeros(4), "tuple"),
        ("mse", (torch.zeros(4), torch.zeros(4)), torch.zeros(4), "model.output to one of 0, 1,"),
        ("mse", torch.zeros(4), {"a": torch.zeros(4)}, "one tensor as target. Got a: float32 [4]"),
        (
            "cross_entropy",
            {"logits": torch.zeros(4, 3), "hidden": (torch.zeros(4),)},
            torch.zeros(4).long(),
            "Set model.output to one of logits, hidden.0,",
        ),
        ("cross_entropy", torch.zeros(2, 5, 3), torch.zeros(2, 5).long(), "movedim(-1, 1)"),
        (
            "cross_entropy",
            torch.zeros(3, 2, 2),
            torch.tensor([[0, 1], [-100, -100], [-100, 0]]),
            "1 of 3 samples of a batch have none, the first at position 1",
        ),
    ],
)
def test_outputs_that_do_not_fit_the_loss_are_refused(loss, outputs, targets, part):
    with pytest.raises(InputError) as caught:
        task(loss=loss).loss(outputs, targets)
    assert part in str(caught.value)


def test_smoothing_of_another_loss_is_refused():
    with pytest.raises(InputError, match=r"recover\.label_smoothing"):
        task(loss="mse").loss(torch.zeros(2), torch.zeros(2), label_smoothing=0.1)


def test_an_own_loss_is_used_and_checked(own):
    outputs, targets = torch.randn(3, 2), torch.randn(3, 2)
    loss = task(own, loss="own.py:squared").loss(outputs, targets)
    assert torch.allclose(loss, F.mse_loss(outputs, targets))
    with pytest.raises(InputError, match=r"task\.loss must return .* float32 \[3\]"):
        task(own, loss="own.py:per_sample").loss(outputs, targets)
    with pytest.raises(InputError, match=r"task\.loss .* KeyError: label \(own.py, line"):
        task(own, loss="own.py:raises").loss(outputs, targets)


@pytest.mark.parametrize("argument", ["outputs", "targets"])
def test_a_loss_that_changes_its_arguments_is_refused(argument, own):
    outputs, targets = torch.randn(5, 2), torch.randn(5, 2)
    before = targets.clone()
    with pytest.raises(InputError, match=rf"task\.loss must not change .* wrote into {argument}"):
        task(own, loss=f"own.py:loss_writes_{argument}").loss(outputs, targets)
    assert torch.equal(targets, before)


def test_own_functions_get_trees_that_they_may_take_apart_but_not_write_into(tmp_path):
    (tmp_path / "trees.py").write_text(
        "def loss(outputs, targets):\n"
        "    return outputs.pop('a').sum() * targets['y'].sum()\n"
        "def metric(outputs, targets):\n"
        "    return outputs.pop('a')[:, 0] + outputs.pop('b')[0][:, 0] - targets['y']\n"
        "def loss_writes(outputs, targets):\n"
        "    outputs['b'][0].zero_()\n    return outputs['a'].sum()\n"
        "def metric_writes(outputs, targets):\n"
        "    targets['y'].add_(1)\n    return 1.0\n"
    )
    outputs = {"a": torch.ones(3, 2), "b": (torch.ones(3, 2),)}
    targets = {"y": torch.arange(3)}
    own = task(tmp_path, loss="trees.py:loss", metric="trees.py:metric")
    assert own.loss(outputs, targets) == 18
    assert own.metric.evaluate(outputs, targets).tolist() == [2, 1, 0]
    arrays = {"a": np.ones((3, 2)), "b": (np.ones((3, 2)),)}
    assert own.metric.evaluate(arrays, {"y": np.arange(3)}).tolist() == [2, 1, 0]
    assert own.metric.evaluate_rows(arrays, {"y": np.arange(3)}).tolist() == [2, 1, 0]
    assert list(outputs) == ["a", "b"]
    writes = task(tmp_path, loss="trees.py:loss_writes", metric="trees.py:metric_writes")
    with pytest.raises(InputError, match=r"wrote into outputs\.b\.0"):
        writes.loss(outputs, targets)
    with pytest.raises(InputError, match=r"wrote into targets\.y"):
        writes.metric.evaluate(outputs, targets)
    outputs["b"][0][1, 0] = float("nan")
    with pytest.raises(InputError, match=r"NaN or Inf in b\.0, the first at positions \[1\]"):
        own.metric.evaluate(outputs, targets)


def test_an_unchecked_loss_cannot_reach_the_targets(own):
    outputs, targets = torch.randn(5, 2), torch.randn(5, 2)
    before = targets.clone()
    task(own, loss="own.py:loss_writes_targets").unchecked_loss(outputs, targets)
    assert torch.equal(targets, before)


def test_metrics_know_where_they_stand_in_the_recipe(own):
    metrics = {"of_squares": {"metric": "own.py:squared", "direction": "minimize"}}
    found = task(own, further_metrics=metrics)
    assert [one.key for one in found.metrics] == [
        "task.metric",
        "task.further_metrics.of_squares.metric",
    ]
    assert [one.sign for one in found.metrics] == [1, -1]
    with pytest.raises(InputError, match=r"task\.further_metrics\.lost\.metric must name"):
        task(own, further_metrics={"lost": {"metric": "own.py:lost"}})
