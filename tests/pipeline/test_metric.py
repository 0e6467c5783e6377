"""The metric of two files: whole runs with metrics of every kind, and what chance gives."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from pydantic import TypeAdapter

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.task_metric import load_metric
from mfac_compress.pipeline.recipe.schema import MetricSection
from mfac_compress.pipeline.stages import metric

OWN = """
from dataclasses import dataclass

import torch

def right(outputs, targets):
    return (outputs.argmax(1) == targets).double()

def percent(outputs, targets):
    return 100 * right(outputs, targets)

def share(outputs, targets):
    return right(outputs, targets).mean()

def squared(outputs, targets):
    return (outputs[:, 0] - targets).square()

def first(outputs, targets):
    return outputs[:, 0]

def overflows(outputs, targets):
    return 1e308 * outputs[:, 0].double()

def both_classes(outputs, targets):
    if len(targets.unique()) < 2:
        raise ValueError("one class only")
    return right(outputs, targets).mean()

def huge(outputs, targets):
    return 10**400

def moves(outputs, targets):
    outputs.zero_()
    return right(outputs, targets)

seen = [0, 0]
worst = [1.0]

def sums_up(outputs, targets):
    seen[0] += float(right(outputs, targets).sum())
    seen[1] += len(targets)
    return seen[0] / seen[1]

def by_turns(outputs, targets):
    seen[0] += 1
    return right(outputs, targets) * (1 + seen[0] % 2)

def best_so_far(outputs, targets):
    seen[0] = max(seen[0], right(outputs, targets).mean().item())
    return seen[0]

def worst_so_far(outputs, targets):
    worst[0] = min(worst[0], right(outputs, targets).mean().item())
    return worst[0]

def ever_right(outputs, targets):
    seen[0] = torch.maximum(torch.as_tensor(seen[0]), right(outputs, targets))
    return seen[0]

def random(outputs, targets):
    return torch.rand(len(targets))

def keeps(outputs, targets):
    seen[0] = right(outputs, targets).mean().item()
    return seen[0]

def reads_what_is_kept(outputs, targets):
    return seen[0]

def sometimes_one(outputs, targets):
    return 1.0 if outputs[0, 0] > 0 else right(outputs, targets)

def by_address(outputs, targets):
    return kept.setdefault(outputs.data_ptr(), right(outputs, targets))

def by_identity(outputs, targets):
    return kept.setdefault(id(outputs), right(outputs, targets))

kept = {}

@dataclass
class Share:
    of: int

    def __call__(self, outputs, targets):
        return right(outputs, targets) / self.of

whole, percent_of = Share(1), Share(100)
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def _metric(folder, metric="accuracy", **section):
    declared = MetricSection(metric=metric, **section)
    return load_metric(declared, section="task", folder=folder)


def compare_metric(one, confidence, dense, sparse, targets):
    """What the metric is, and what it says of each file."""
    found, drops = metric.compare_metric(
        one, confidence, {"dense": dense, "sparse": sparse}, targets
    )
    return found, drops["dense"], drops["sparse"]


def _answers(n=60, wrong=6, classes=3):
    targets = np.random.default_rng(0).integers(classes, size=n)
    answers = targets.copy()
    answers[:wrong] = (answers[:wrong] + 1) % classes
    return np.eye(classes, dtype=np.float32)[answers], targets


def test_a_metric_in_percent_gets_the_interval_of_accuracy_in_percent(own):
    dense, targets = _answers()
    sparse, _ = _answers(wrong=8)
    _, *accuracy = compare_metric(_metric(own), 0.95, dense, sparse, targets)
    section = {"metric": "own.py:percent", "range": (0, 100)}
    _, *percent = compare_metric(_metric(own, **section), 0.95, dense, sparse, targets)
    for one, other in zip(accuracy, percent, strict=True):
        assert other.interval == pytest.approx([100 * end for end in one.interval])
    assert percent[1].drop_interval == pytest.approx(
        [100 * end for end in accuracy[1].drop_interval]
    )
    assert percent[1].method == accuracy[1].method


def test_unchanged_samples_leave_room_whatever_the_metric_returns(own):
    dense, targets = _answers(n=8, wrong=1)
    for name in ("right", "percent", "share", "squared"):
        one = _metric(own, metric=f"own.py:{name}")
        _, before, after = compare_metric(one, 0.95, dense, dense, targets)
        assert after.drop == 0
        assert after.drop_interval[0] < 0 < after.drop_interval[1]
        assert before.drop_interval is None  # it is what the others are compared with


def test_the_result_can_be_stored_as_json(own):
    dense, targets = _answers()
    for name in ("right", "share"):
        one = _metric(own, metric=f"own.py:{name}")
        found, *_, drop = compare_metric(one, 0.95, dense, dense, targets)
        for one in (found, drop):
            kind = TypeAdapter(type(one))
            stored = json.dumps(asdict(one), allow_nan=False)
            assert kind.validate_python(json.loads(stored)) == one


def test_each_file_is_judged_apart_from_the_others(own):
    dense, targets = _answers()
    worse, useless = _answers(wrong=9)[0], 1 - dense
    for name in ("accuracy", "own.py:share", "own.py:squared"):
        one = _metric(own, metric=name)
        alone = metric.compare_metric(one, 0.95, {"dense": dense, "other": worse}, targets)[1]
        files = {"dense": dense, "useless": useless, "other": worse}
        together = metric.compare_metric(one, 0.95, files, targets)[1]
        assert list(together) == list(files)
        assert (together["dense"], together["other"]) == (alone["dense"], alone["other"])


def test_outputs_and_targets_may_be_trees(own):
    dense, targets = _answers()
    worse = _answers(wrong=9)[0]
    trees = [{"scores": (each, np.zeros(60))} for each in (dense, worse)]
    found, *drops = compare_metric(_OfTrees(), 0.95, *trees, {"label": targets})
    expected = compare_metric(_metric(own, metric="own.py:share"), 0.95, dense, worse, targets)
    assert found.samples == 60
    assert drops == list(expected[1:])


class _OfTrees:
    """A metric of the whole set of trees."""

    name, direction, sign, range, is_own = "own", "maximize", 1, None, True

    def cases(self, outputs, targets):
        return outputs, targets

    def evaluate(self, outputs, targets, *, copies=None):
        return float((outputs["scores"][0].argmax(1) == targets["label"]).mean())

    evaluate_rows = evaluate


def test_values_whose_differences_overflow_are_refused(own):
    outputs = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    with pytest.raises(InputError, match=r"differences and sums are finite.*own\.py:overflows"):
        compare_metric(
            _metric(own, metric="own.py:overflows"), 0.95, outputs, -outputs, np.zeros(2)
        )


@pytest.mark.parametrize("name", ["best_so_far", "worst_so_far", "ever_right"])
def test_a_metric_that_remembers_how_good_a_file_was_is_refused(name, own):
    """Else the worse file would be taken to be as good as the other."""
    dense, targets = _answers(wrong=2)
    with pytest.raises(InputError, match="the same each time"):
        compare_metric(
            _metric(own, metric=f"own.py:{name}"), 0.95, dense, _answers(wrong=15)[0], targets
        )


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("huge", "a float can hold"),
        ("moves", "wrote into outputs"),
        ("sometimes_one", "for all files"),
        ("sums_up", "the same each time"),
        ("by_turns", "the same each time"),
        ("random", "the same each time"),
    ],
)
def test_a_metric_that_cannot_be_judged_is_named(name, part, own):
    dense, targets = _answers()
    with pytest.raises(InputError, match=part) as caught:
        compare_metric(_metric(own, metric=f"own.py:{name}"), 0.95, dense, 1 - dense, targets)
    assert f"own.py:{name}" in str(caught.value)


def test_several_metrics_are_judged_as_each_would_be_alone(own):
    dense, targets = _answers()
    files = {"dense": dense, "sparse": _answers(wrong=9)[0]}
    metrics = [_metric(own, name) for name in ("accuracy", "own.py:share", "own.py:percent")]
    together = metric.compare_metrics(metrics, 0.95, files, targets)
    assert together == [metric.compare_metric(one, 0.95, files, targets) for one in metrics]


def test_a_metric_that_returns_what_another_has_kept_is_refused(own):
    """It is the same for all files after the other has been asked of all of them."""
    dense, targets = _answers(wrong=2)
    files = {"dense": dense, "sparse": _answers(wrong=15)[0]}
    keeps, reads = (_metric(own, f"own.py:{name}") for name in ("keeps", "reads_what_is_kept"))
    metric.compare_metrics([reads], 0.95, files, targets)  # alone, nothing shows
    for metrics in ([keeps, reads], [reads, keeps]):
        with pytest.raises(InputError, match=r"the same each time.*reads_what_is_kept"):
            metric.compare_metrics(metrics, 0.95, files, targets)


@pytest.mark.parametrize("name", ["by_address", "by_identity"])
def test_a_metric_that_knows_tensors_by_their_place_is_refused(name, own):
    """The place of freed ones is given out again: it would take one file for another."""
    dense, targets = _answers(wrong=2)
    files = {"dense": dense, "sparse": _answers(wrong=15)[0]}
    with pytest.raises(InputError, match="the same each time"):
        metric.compare_metrics([_metric(own, f"own.py:{name}")], "none", files, targets)


def test_objects_without_a_hash_are_metrics(own):
    dense, targets = _answers()
    metrics = [_metric(own, f"own.py:{name}") for name in ("whole", "percent_of")]
    found = metric.compare_metrics(metrics, 0.95, {"dense": dense, "sparse": dense}, targets)
    assert [drops["sparse"].value for _, drops in found] == pytest.approx([0.9, 0.009])


def test_resamples_of_one_class_do_not_end_the_run(own):
    """A tenth of the resamples of 20 with two of a class has one class only; of 5, one in 150."""
    for rare, is_judged in ((5, True), (2, False)):
        targets = (np.arange(20) < rare).astype(int)
        dense = np.eye(2, dtype=np.float32)[targets]
        one = _metric(own, metric="own.py:both_classes")
        *_, found = compare_metric(one, 0.95, dense, dense, targets)
        assert found.resamples_left_out > 0
        assert (found.drop_interval is not None) == is_judged


def test_a_model_that_knows_nothing_is_not_better_than_chance(own):
    dense, targets = _answers()
    wrong = (targets + 1) % 3
    for name, direction in (("accuracy", "maximize"), ("own.py:share", "maximize")):
        one = _metric(own, metric=name, direction=direction)
        for given, is_better in ((targets, True), (wrong, False)):
            found, *_ = compare_metric(one, 0.95, dense, dense, given)
            assert found.better_than_chance is is_better


def test_a_metric_that_takes_no_targets_is_known_by_shuffles(own):
    dense, targets = _answers()
    for name, takes in (("first", False), ("share", True)):
        found, *_ = compare_metric(
            _metric(own, metric=f"own.py:{name}"), 0.95, dense, dense, targets
        )
        assert found.takes_targets is takes


def test_always_the_most_frequent_class_is_chance(own):
    targets = (np.arange(100) < 5).astype(int)
    dense = np.eye(2, dtype=np.float32)[np.zeros(100, dtype=int)]
    found, drop, _ = compare_metric(_metric(own), 0.95, dense, dense, targets)
    assert (drop.value, found.chance) == (0.95, 0.95)
    assert found.better_than_chance is False


def test_errors_are_compared_with_chance_the_other_way(own):
    targets = np.random.default_rng(0).normal(size=50).astype(np.float32)
    good = np.stack([targets + 0.1, targets], 1)
    one = _metric(own, metric="own.py:squared", direction="minimize")
    for outputs, is_better in ((good, True), (good[::-1].copy(), False)):
        found, *_ = compare_metric(one, 0.95, outputs, outputs, targets)
        assert found.better_than_chance is is_better


def test_the_order_of_the_samples_changes_nothing(own):
    dense, targets = _answers()
    sparse, _ = _answers(wrong=9)
    order = np.random.default_rng(1).permutation(len(targets))
    *_, one = compare_metric(_metric(own), 0.95, dense, sparse, targets)
    *_, other = compare_metric(_metric(own), 0.95, dense[order], sparse[order], targets[order])
    assert one.drop_interval == pytest.approx(other.drop_interval)
