"""The example's judge: every metric counts, and so does the width of its interval."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "mam_ising.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("mam_ising_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_file_with_more_probability_than_there_is_fails(script, monkeypatch):
    rng, n, sites = np.random.default_rng(0), 60, 25
    log_p = -rng.uniform(5, 20, (n, 3))
    targets = {
        "site": rng.integers(0, sites, n),
        "value": np.ones(n, np.float32),
        "known": rng.integers(0, sites, n),
        "log_p": log_p,
    }
    dense = np.zeros((n, 3, 1 + sites), np.float32)
    dense[..., 0] = log_p
    larger = dense + 0.5
    monkeypatch.setattr("mfac_compress.pipeline.statistics.resampling.RESAMPLES", 100)

    found = {row["file"]: row for row in script.judge({"dense": dense, "sparse": larger}, targets)}

    assert found["dense"]["metrics"]["rank_correlation"]["value"] == pytest.approx(1)
    assert not found["sparse"]["passed"]
    drops = {name: one["drop"] for name, one in found["sparse"]["metrics"].items()}
    assert drops["bits_per_dimension"] < 0
    assert drops["log_partition_error"] == pytest.approx(0.5, abs=1e-5)
    assert drops["rank_correlation"] == pytest.approx(0, abs=1e-9)


def test_a_gate_counts_the_worse_end_of_the_interval(script):
    assert not script.within("bits_per_dimension", (-0.1, 0.1))
    assert script.within("bits_per_dimension", (-0.1, 0.009))
    assert not script.within("bits_per_dimension", None)
