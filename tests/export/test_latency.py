from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mfac_compress.export import Interval, compare_latency, export_onnx, latency
from mfac_compress.export.latency import LatencyComparison, Spread, Timing

INPUTS = np.ones((8, 3, 4, 4), np.float32)


@pytest.fixture
def machine(monkeypatch):
    """A machine of fixed speeds: ``cost`` in ms per call and file, ``log`` of what was done."""
    machine = SimpleNamespace(cost={"dense": 4.0, "sparse": 3.0}, log=[], wall=0.0, cpu=0.0)
    machine.libraries = {}

    def open_session(path, threads, library=None):
        machine.log.append(("open", path))
        machine.libraries[path] = library
        shape = [SimpleNamespace(shape=["batch", 3, 4, 4])]
        return SimpleNamespace(path=path, get_inputs=lambda: shape)

    def run(session, batch):
        machine.log.append(("run", session.path))
        machine.cpu += machine.cost[session.path]
        machine.wall += 2 * machine.cost[session.path] + 1

    clocks = SimpleNamespace(
        perf_counter_ns=lambda: int(machine.wall * 1e6),
        thread_time_ns=lambda: int(machine.cpu * 1e6),
    )
    monkeypatch.setattr(latency, "open_session", open_session)
    monkeypatch.setattr(latency, "run", run)
    monkeypatch.setattr(latency, "time", clocks)
    return machine


def compare(dense="dense", sparse="sparse", batch_sizes=(2,), threads=(1,), warmup=0, runs=20):
    options = {"batch_sizes": batch_sizes, "threads": threads, "warmup": warmup, "runs": runs}
    return compare_latency(dense, sparse, INPUTS, **options)


def test_at_one_thread_the_ratio_is_of_cpu_time(machine):
    (found,) = compare()
    assert found.clock == "thread CPU"
    assert found.dense == Timing(wall=Spread(9, 0), cpu=Spread(4, 0))
    assert found.sparse == Timing(wall=Spread(7, 0), cpu=Spread(3, 0))
    assert found.ratio == Interval(0.75, 0.75, 0.75)
    assert found.verdict == "1.33x faster (95% interval 1.33 to 1.33)"


def test_at_more_threads_the_ratio_is_of_wall_time(machine):
    (found,) = compare(threads=[2])
    assert found.clock == "wall"
    assert found.dense.cpu is None
    assert found.sparse.cpu is None
    assert found.ratio.median == pytest.approx(7 / 9)


def test_the_order_of_opening_and_of_running_alternates(machine):
    compare(runs=20)
    opened = [path for what, path in machine.log if what == "open"]
    assert opened == ["dense", "sparse", "sparse", "dense"] * 5
    ran = [path for what, path in machine.log if what == "run"]
    assert ran[-40:] == ["dense", "sparse", "sparse", "dense"] * 10


def test_each_session_is_warmed_up(machine):
    compare(warmup=3, runs=6)
    starts = [i for i, (what, _) in enumerate(machine.log) if what == "open"][::2]
    for start in starts:
        after = [path for what, path in machine.log[start + 2 : start + 8] if what == "run"]
        assert after == ["dense", "sparse"] * 3


def test_short_calls_are_timed_together(machine):
    machine.cost = {"dense": 0.5, "sparse": 0.25}
    (found,) = compare(runs=6)
    assert found.calls_per_run == 2  # 1.5 ms of wall time a call
    assert found.runs == 6
    assert found.sparse.cpu == Spread(0.25, 0)


def test_a_drift_of_the_machine_does_not_move_the_ratio(machine, monkeypatch):
    run = latency.run

    def slower_each_time(session, batch):
        machine.cost = {path: cost * 1.01 for path, cost in machine.cost.items()}
        run(session, batch)

    monkeypatch.setattr(latency, "run", slower_each_time)
    (found,) = compare(runs=40)
    assert found.dense.cpu.iqr_ms > 1
    assert found.ratio.median == pytest.approx(0.75, rel=0.02)


def test_identical_files_are_compared_for_every_batch_size_and_thread_count(pruned):
    found = compare(pruned.path, pruned.path, batch_sizes=(1, 4), threads=(1, 2), runs=6)
    assert [(c.threads, c.batch_size) for c in found] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    for comparison in found:
        assert comparison.calls_per_run > 1
        assert comparison.dense.wall.median_ms > 0
        assert (comparison.sparse.cpu is None) == (comparison.threads > 1)
        assert comparison.ratio.low <= comparison.ratio.median <= comparison.ratio.high


def test_too_few_runs_are_refused(machine):
    with pytest.raises(ValueError, match="Got 5"):
        compare(runs=5)


def test_a_batch_size_that_the_file_does_not_take_is_refused(tmp_path):
    path = tmp_path / "m.onnx"
    export_onnx(nn.Flatten(), torch.ones(3, 3, 4, 4), path, dynamic_batch=False)
    with pytest.raises(ValueError, match=r"batch_sizes must be \[3\].*Got 2"):
        compare(path, path, batch_sizes=(2,), runs=6)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Interval(0.76, 0.71, 0.83), "1.32x faster (95% interval 1.20 to 1.41)"),
        (Interval(1.25, 1.1, 1.5), "1.25x slower (95% interval 1.10 to 1.50)"),
        (Interval(0.9, 0.8, 1.1), "no speed-up"),
        (Interval(0.99, 0.98, 0.999), "no speed-up"),  # would print 1.00 as its end
    ],
)
def test_a_speed_up_is_claimed_only_outside_of_the_interval(ratio, verdict):
    timing = Timing(wall=Spread(1, 0), cpu=None)
    comparison = LatencyComparison(1, 2, 6, 1, timing, timing, "wall", ratio)
    assert comparison.verdict == verdict


def test_the_library_is_for_the_sparse_file_alone(machine):
    options = {"batch_sizes": [2], "threads": [1], "warmup": 0, "runs": 20}
    compare_latency("dense", "sparse", INPUTS, **options, library=Path("kernels.so"))
    assert machine.libraries == {"dense": None, "sparse": Path("kernels.so")}
