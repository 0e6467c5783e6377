"""What is said beside the verdict."""

from dataclasses import replace

import pytest

from mfac_compress.pipeline.inputs.code_sources import CHANGED
from mfac_compress.pipeline.recipe.schema import GatesSection, Recipe, ValidateSection
from mfac_compress.pipeline.stages.metric import Metric, MetricDrop
from mfac_compress.pipeline.stages.quantize import LayerPrecision, Quantised
from mfac_compress.pipeline.verdict.inputs import Code, Data, Sparsity
from mfac_compress.pipeline.verdict.warnings import warnings_of, warnings_of_metric

METRIC = Metric(
    name="accuracy",
    direction="maximize",
    range=(0.0, 1.0),
    samples=1000,
    confidence=0.95,
    chance=0.1,
    better_than_chance=True,
)
DENSE = MetricDrop(
    value=0.9,
    interval=(0.88, 0.92),
    drop=0.0,
    drop_interval=None,
    method="how",
    assumed_range=None,
    spread=0.1,
    reach=1.0,
    resamples_left_out=0,
)
SPARSE = replace(DENSE, value=0.89, drop=0.01, drop_interval=(0.0, 0.02))
SPARSITY = Sparsity(target=0.8, weights=900, parameters=1000, pattern="unstructured", left_out={})
LAYERS = (LayerPrecision("a", "Conv", 90, True, None), LayerPrecision("b", "Gemm", 10, False, 1.0))
INT8 = Quantised("static", divergence=0.01, all_layers=0.1, max_divergence=0.01, layers=LAYERS)
CODE = Code(files={"/own.py": "f" * 64}, not_reusable=(), not_covered="")
DATA = Data(samples={"calibration": 500, "validation": 1000}, shared={}, repeated={}, unstable=())


def _warnings(
    metric=None, dense=None, judged=None, sparsity=None, int8=None, data=None, code=None, **gates
):
    recipe = Recipe.model_validate(
        {
            "data": {"source": "digits"},
            "prune": {"sparsity": 0.8},
            "validate": {"gates": GatesSection(**gates)},
        }
    )
    parts = [
        (METRIC, metric), (DENSE, dense), (SPARSE, judged), (SPARSITY, sparsity), (INT8, int8),
        (DATA, data), (CODE, code),
    ]  # fmt: skip
    return warnings_of(recipe, *(replace(part, **(change or {})) for part, change in parts))


def test_a_sound_run_has_none():
    assert _warnings() == ()


@pytest.mark.parametrize("name", ["accuracy", "own.py:score"])
def test_a_dense_model_that_knows_nothing(name):
    changes = {"name": name, "better_than_chance": False}
    (warning,) = _warnings(changes, {"value": 0.0017}, max_metric_drop=0.01)
    assert "not shown to be better than chance" in warning
    assert "0.0017" in warning
    assert _warnings(changes | {"better_than_chance": None}) == ()


def test_a_range_that_was_only_assumed():
    changes = {"assumed_range": (0.0, 0.3)}
    (warning,) = _warnings(judged=changes, max_metric_drop=0.01)
    assert "declare task.range" in warning
    assert "0 to 0.3" in warning
    assert _warnings(judged=changes, confidence="none") == ()


def test_a_gate_that_only_the_point_estimate_passes():
    gates = {"confidence": "none", "max_metric_drop": 0.015}
    (warning,) = _warnings({"samples": 20}, **gates)
    assert (
        "validate.gates.max_metric_drop passes because validate.gates.confidence is none" in warning
    )
    assert "20 validation samples do not show that it holds" in warning
    assert "is 0.02, must be at most 0.015" in warning
    (warning,) = _warnings(judged={"drop_interval": None}, **gates)
    assert "(no interval: how)" in warning
    assert _warnings(judged={"drop_interval": (0.0, 0.012)}, **gates) == ()
    assert _warnings(judged={"drop": 0.02}, **gates) == ()  # the gate itself fails


def test_a_gate_on_a_further_metric_that_only_the_point_estimate_passes():
    gates = {"confidence": "none", "further_metrics": {"error": {"max_metric_drop": 0.015}}}
    recipe = Recipe.model_construct(validate_=ValidateSection(gates=GatesSection(**gates)))
    (warning,) = warnings_of_metric(recipe, "task.further_metrics.error", METRIC, DENSE, SPARSE)
    assert "validate.gates.further_metrics.error.max_metric_drop passes" in warning
    assert (
        list(warnings_of_metric(recipe, "task.further_metrics.other", METRIC, DENSE, SPARSE)) == []
    )


def test_a_model_of_which_little_could_be_pruned():
    (warning,) = _warnings(sparsity={"weights": 128, "parameters": 14530})
    assert "Only 128 of all 14,530 parameters (0.9%)" in warning


def test_resamples_that_were_left_out():
    (warning,) = _warnings(judged={"resamples_left_out": 40})
    assert "40 resamples" in warning


@pytest.mark.parametrize(
    ("data", "fragment"),
    [
        ({"shared": {"calibration, validation": 7}}, "share 7 samples"),
        ({"unstable": ("recovery",)}, "samples of recovery are others at each reading"),
        ({"repeated": {"validation": 40}}, "40 of 1,000 validation samples repeat"),
    ],
)
def test_samples_that_judge_less_than_they_seem(data, fragment):
    (warning,) = _warnings(data=data)
    assert fragment in warning
    assert _warnings(data={"repeated": {"calibration": 40}}) == ()


def test_code_that_changed_meanwhile():
    (warning,) = _warnings(code={"files": {"/own.py": CHANGED, "/other.py": "f" * 64}})
    assert warning.startswith("/own.py changed during the run")


def test_a_file_of_which_little_is_in_8_bits():
    layers = tuple(replace(one, int8=not one.int8) for one in LAYERS)
    (warning,) = _warnings(int8={"layers": layers})
    assert "Only 10.0% of the layers' weights are in 8 bits in model.int8.onnx" in warning


def _of_error(dense=DENSE, judged=SPARSE, **metric):
    recipe = Recipe.model_validate({"data": {"source": "digits"}, "prune": {"sparsity": 0.8}})
    error = replace(METRIC, name="own.py:error", direction="minimize", **metric)
    return tuple(warnings_of_metric(recipe, "task.further_metrics.error", error, dense, judged))


def test_further_metrics_are_warned_of_by_their_keys():
    assert _of_error() == ()
    (warning,) = _of_error(judged=replace(SPARSE, assumed_range=(0.0, 0.3)))
    assert "declare task.further_metrics.error.range" in warning
    (warning,) = _of_error(better_than_chance=False, chance=0.4)
    assert "own.py:error is 0.9, and up to 0.4 with the targets shuffled" in warning
    assert "task.further_metrics.error.direction" in warning
    assert "validate.gates.further_metrics.error.min_metric" in warning


def test_a_metric_that_shuffled_targets_do_not_change_may_take_none():
    same = {"better_than_chance": False, "chance": DENSE.value, "takes_targets": False}
    assert _of_error(**same) == ()  # a likelihood cannot be compared with chance
    (warning,) = _warnings({"name": "own.py:likelihood", **same})
    assert "Shuffled targets leave own.py:likelihood of dense.onnx as it is, 0.9" in warning
    assert "not shown to be better than chance" not in warning
    by_chance = same | {"takes_targets": True}  # the best of the shuffles is as good
    (warning,) = _warnings({"name": "own.py:likelihood", **by_chance})
    assert "not shown to be better than chance" in warning
