"""Properties of the loss and the metric."""

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
        "def listed(outputs, targets):\n    return [1] * len(outputs)\n"
        "def number(outputs, targets):\n    return float(len(outputs))\n"
        "def wrong_count(outputs, targets):\n    return outputs[:2, 0]\n"
        "def nan(outputs, targets):\n    return float('nan')\n"
        "def word(outputs, targets):\n    return 'good'\n"
        "def raises(outputs, targets):\n    raise KeyError('label')\n"
        "def writes_outputs(outputs, targets):\n    outputs.zero_()\n    return 1.0\n"
        "def writes_targets(outputs, targets):\n    targets.numpy()[0] = 7\n    return 1.0\n"
        "def reshapes(outputs, targets):\n    outputs.t_()\n    return 1.0\n"
        "def keeps(outputs, targets):\n    outputs = outputs + 0\n    outputs.zero_()\n"
        "    return 1.0\n"
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


def test_accuracy_of_several_targets_is_each_samples_share_of_those_that_count():
    outputs = torch.tensor([[[0.0, 1, 0], [1, 0, 1]], [[0, 0, 0], [1, 1, 1]]])
    targets = torch.tensor([[1, 0, 0], [1, -100, 0]])
    assert task().evaluate(outputs, targets).tolist() == [2 / 3, 0.5]


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


def test_accuracy_is_one_value_per_sample_for_tensors_and_arrays():
    outputs = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], dtype=np.float32)
    targets = np.array([1, 1, 1])
    for kind in (np.asarray, torch.tensor):
        values = task().evaluate(kind(outputs), kind(targets))
        assert values.dtype == np.float64
        assert values.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("outputs", "targets", "part"),
    [
        (torch.zeros(4), torch.zeros(4).long(), "[n, classes, ...]"),
        ({"a": torch.zeros(4, 2)}, torch.zeros(4).long(), "model.output to one of a,"),
        (torch.zeros(4, 5, 3), torch.zeros(4, 5).long(), "movedim(-1, 1)"),
        (torch.zeros(2, 3), torch.tensor([0, -100]), "a target in every sample"),
        (torch.zeros(4, 1), torch.zeros(4).long(), "two classes"),
        (torch.zeros(4, 3), torch.zeros(4), "integer targets"),
        (torch.zeros(4, 3), torch.zeros(3).long(), "int64 [3]"),
        (torch.zeros(2, 3), torch.tensor([0, 7]), "class 7"),
        (torch.tensor([[0.0, 1], [float("nan"), 1]]), torch.tensor([0, 1]), "positions [1]"),
    ],
)
def test_outputs_that_do_not_fit_accuracy_are_refused(outputs, targets, part):
    with pytest.raises(InputError) as caught:
        task().evaluate(outputs, targets)
    assert part in str(caught.value)


def test_an_own_metric_gives_values_per_sample_or_one_number(own):
    outputs, targets = torch.randn(5, 2), torch.randn(5, 2)
    values = task(own, metric="own.py:per_sample").evaluate(outputs.numpy(), targets.numpy())
    assert np.allclose(values, (outputs - targets).abs().mean(1).numpy())
    assert task(own, metric="own.py:listed").evaluate(outputs, targets).shape == (5,)
    assert task(own, metric="own.py:number").evaluate(outputs, targets) == 5.0


@pytest.mark.parametrize(
    ("name", "part"),
    [("wrong_count", "shape [5]"), ("nan", "finite"), ("word", "numbers"), ("raises", "KeyError")],
)
def test_an_own_metric_that_is_wrong_is_refused(name, part, own):
    with pytest.raises(InputError) as caught:
        task(own, metric=f"own.py:{name}").evaluate(torch.randn(5, 2), torch.randn(5, 2))
    assert part in str(caught.value)
    assert "task.metric" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "argument"),
    [("writes_outputs", "outputs"), ("writes_targets", "targets"), ("reshapes", "outputs")],
)
def test_a_metric_that_changes_its_arguments_is_refused_and_changes_nothing(name, argument, own):
    outputs, targets = torch.randn(5, 2), torch.randn(5, 2)
    copies = outputs.clone(), targets.clone()
    with pytest.raises(InputError, match="must not change its arguments") as caught:
        task(own, metric=f"own.py:{name}").evaluate(outputs, targets)
    assert f"wrote into {argument}" in str(caught.value)
    assert name in str(caught.value)
    assert torch.equal(outputs, copies[0])
    assert torch.equal(targets, copies[1])


def test_a_metric_may_change_what_it_made_and_targets_may_be_nan(own):
    targets = torch.full((5, 2), float("nan"))
    assert task(own, metric="own.py:keeps").evaluate(torch.randn(5, 2), targets) == 1.0


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
    assert own.evaluate(outputs, targets).tolist() == [2, 1, 0]
    arrays = {"a": np.ones((3, 2)), "b": (np.ones((3, 2)),)}
    assert own.evaluate(arrays, {"y": np.arange(3)}).tolist() == [2, 1, 0]
    assert own.evaluate_rows(arrays, {"y": np.arange(3)}).tolist() == [2, 1, 0]
    assert list(outputs) == ["a", "b"]
    writes = task(tmp_path, loss="trees.py:loss_writes", metric="trees.py:metric_writes")
    with pytest.raises(InputError, match=r"wrote into outputs\.b\.0"):
        writes.loss(outputs, targets)
    with pytest.raises(InputError, match=r"wrote into targets\.y"):
        writes.evaluate(outputs, targets)
    outputs["b"][0][1, 0] = float("nan")
    with pytest.raises(InputError, match=r"NaN or Inf in b\.0, the first at positions \[1\]"):
        own.evaluate(outputs, targets)


def test_an_unchecked_loss_cannot_reach_the_targets(own):
    outputs, targets = torch.randn(5, 2), torch.randn(5, 2)
    before = targets.clone()
    task(own, loss="own.py:loss_writes_targets").unchecked_loss(outputs, targets)
    assert torch.equal(targets, before)


def test_accuracy_declares_its_range():
    assert task().range == (0.0, 1.0)
