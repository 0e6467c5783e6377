"""Properties of a metric: built in, or the user's own."""

import numpy as np
import pytest
import torch

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.task_metric import load_metric
from mfac_compress.pipeline.recipe.schema import MetricSection


def metric(folder=None, name="accuracy", section="task"):
    return load_metric(MetricSection(metric=name), section=section, folder=folder)


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(
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
    )
    return tmp_path


def test_accuracy_of_several_targets_is_each_samples_share_of_those_that_count():
    outputs = torch.tensor([[[0.0, 1, 0], [1, 0, 1]], [[0, 0, 0], [1, 1, 1]]])
    targets = torch.tensor([[1, 0, 0], [1, -100, 0]])
    assert metric().evaluate(outputs, targets).tolist() == [2 / 3, 0.5]


def test_accuracy_is_one_value_per_sample_for_tensors_and_arrays():
    outputs = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], dtype=np.float32)
    targets = np.array([1, 1, 1])
    for kind in (np.asarray, torch.tensor):
        values = metric().evaluate(kind(outputs), kind(targets))
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
        metric().evaluate(outputs, targets)
    assert part in str(caught.value)


def test_an_own_metric_gives_values_per_sample_or_one_number(own):
    outputs, targets = torch.randn(5, 2), torch.randn(5, 2)
    values = metric(own, "own.py:per_sample").evaluate(outputs.numpy(), targets.numpy())
    assert np.allclose(values, (outputs - targets).abs().mean(1).numpy())
    assert metric(own, "own.py:listed").evaluate(outputs, targets).shape == (5,)
    assert metric(own, "own.py:number").evaluate(outputs, targets) == 5.0


@pytest.mark.parametrize(
    ("name", "part"),
    [("wrong_count", "shape [5]"), ("nan", "finite"), ("word", "numbers"), ("raises", "KeyError")],
)
def test_an_own_metric_that_is_wrong_is_refused(name, part, own):
    with pytest.raises(InputError) as caught:
        metric(own, f"own.py:{name}").evaluate(torch.randn(5, 2), torch.randn(5, 2))
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
        metric(own, f"own.py:{name}").evaluate(outputs, targets)
    assert f"wrote into {argument}" in str(caught.value)
    assert name in str(caught.value)
    assert torch.equal(outputs, copies[0])
    assert torch.equal(targets, copies[1])


def test_a_metric_may_change_what_it_made_and_targets_may_be_nan(own):
    targets = torch.full((5, 2), float("nan"))
    assert metric(own, "own.py:keeps").evaluate(torch.randn(5, 2), targets) == 1.0


@pytest.mark.parametrize("name", ["accuracy", "spearman", "spearman_cosine", "own.py:nan"])
def test_an_error_names_the_key_of_the_metric(name, own):
    one = metric(own, name, section="task.further_metrics.other")
    with pytest.raises(InputError, match=r"task\.further_metrics\.other\.metric .*(must|needs)"):
        one.evaluate(*one.cases(torch.zeros(5, 2, 2), torch.zeros(4)))


def test_accuracy_declares_its_range():
    assert metric().range == (0.0, 1.0)
