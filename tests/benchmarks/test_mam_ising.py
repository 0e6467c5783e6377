"""The example's plot shows what its gates compare."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "mam_ising.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("mam_ising_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _gate(name, variant="sparse", threshold=0.5):
    return SimpleNamespace(name=name, variant=variant, threshold=threshold)


def test_losses_are_shares_of_what_the_gates_allow(script):
    bits = SimpleNamespace(drop=0.01, drop_interval=(-0.01, 0.03))
    ranks = SimpleNamespace(drop=0.002, drop_interval=None)
    report = SimpleNamespace(
        metric=SimpleNamespace(name="models/mam_ising.py:bits_per_dimension"),
        variants={"sparse": SimpleNamespace(metric=bits, further_metrics={"ranks": ranks})},
        gates=[
            _gate("max_metric_drop", threshold=0.02),
            _gate("max_metric_drop", variant="int8"),
            _gate("max_metric"),
            _gate("further_metrics.ranks.max_metric_drop", threshold=0.004),
            _gate("further_metrics.ranks.min_metric"),
            _gate("min_sparsity"),
        ],
    )
    found = dict(script.losses(report, "sparse"))
    assert [*found] == ["bits_per_dimension", "ranks"]
    assert found["bits_per_dimension"] == pytest.approx((-0.5, 0.5, 1.5))
    assert found["ranks"] == pytest.approx((np.nan, 0.5, np.nan), nan_ok=True)
