"""The findings of comparisons with simulated clocks: nothing here is timed."""

from dataclasses import astuple, dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mfac_compress.export import (
    Interval,
    LatencyComparison,
    Spread,
    Timing,
    Variant,
    Workload,
    compare_latency,
    export_onnx,
    finding_of,
    in_words,
    latency,
    why_not_faster,
)
from mfac_compress.export.latency import compare
from mfac_compress.export.timing import Clocks

ONE = Workload(2, 1)


@dataclass
class Machine:
    """Files of fixed speeds in milliseconds per call; each session and each run may differ."""

    cost: dict[str, float] = field(default_factory=lambda: {"dense": 4.0, "sparse": 3.0})
    session_spread: float = 0.0
    run_spread: float = 0.0
    drift: float = 0.0
    opening: float = 0.0
    slowness: float = 1.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    log: list[tuple[str, str]] = field(default_factory=list)
    wall: float = 0.0
    cpu: float = 0.0

    def opener(self, name):
        def open_session():
            self.log.append(("open", name))
            self.wall += self.opening
            session = np.exp(self.session_spread * self.rng.standard_normal())

            def call():
                self.log.append(("run", name))
                self.slowness *= 1 + self.drift
                run = self.slowness * np.exp(self.run_spread * self.rng.standard_normal())
                self.cpu += self.cost[name] * session * run
                self.wall += 2 * self.cost[name] * session * run + 1

            return call

        return open_session

    def compare_all(self, *, threads=1, warmup=0, runs=40, pairs=(), **timing):
        """Each of the others with the first file, or what ``pairs`` says."""
        clocks = Clocks(wall=lambda: int(self.wall * 1e6), cpu=lambda: int(self.cpu * 1e6))
        reference, *others = names = list(self.cost)
        return compare(
            [self.opener(name) for name in names],
            Workload(2, threads),
            names=names,
            pairs=pairs or [(name, reference) for name in others],
            warmup=warmup,
            runs=runs,
            clocks=clocks,
            **timing,
        )

    def compare(self, **arguments):
        (found,) = self.compare_all(**arguments)
        return found

    def of(self, what):
        return [name for done, name in self.log if done == what]


def test_with_one_thread_the_ratio_is_of_cpu_time():
    found = Machine().compare()
    assert found.clock == "thread CPU"
    assert found.reference == "dense"
    assert found.reference_time == Timing(wall=Spread(9, 0), cpu=Spread(4, 0))
    assert found.time == Timing(wall=Spread(7, 0), cpu=Spread(3, 0))
    assert astuple(found.ratio) == pytest.approx((0.75, 0.75, 0.75))
    assert found.verdict == "1.33x faster (95% interval 1.33 to 1.33)"


def test_with_more_threads_the_ratio_is_of_wall_time():
    found = Machine().compare(threads=2)
    assert found.clock == "wall"
    assert found.reference_time.cpu is None
    assert found.time.cpu is None
    assert found.ratio.median == pytest.approx(7 / 9)


def test_the_order_of_opening_and_of_running_alternates():
    machine = Machine()
    found = machine.compare(runs=40)
    assert machine.of("open") == ["dense", "sparse", "sparse", "dense"] * 10
    assert (found.rounds, found.runs) == (20, 40)
    # Two pairs a round; what ran first after opening runs second after the next.
    one, other = ["dense", "sparse", "sparse", "dense"], ["sparse", "dense", "dense", "sparse"]
    assert machine.of("run")[-80:] == (one + other) * 10


def test_each_of_three_files_comes_first_last_and_after_each_other_equally_often():
    machine = Machine({"dense": 4.0, "plain": 3.0, "kernels": 2.0})
    machine.compare_all(runs=6)  # six rounds of one run
    opened = np.reshape(machine.of("open"), (-1, 3))
    for place in range(3):
        assert sorted(opened[:, place]) == sorted(list(machine.cost) * 2)
    machine = Machine(dict(machine.cost))
    machine.compare_all(runs=60)  # rounds of three runs
    called = [tuple(three) for three in np.reshape(machine.of("run")[9:], (-1, 3))]
    assert called[:3] == [
        ("dense", "plain", "kernels"),
        ("kernels", "plain", "dense"),
        ("dense", "plain", "kernels"),
    ]
    assert called[3] == ("plain", "kernels", "dense")
    assert len(set(called)) == 6


def test_of_several_files_each_is_compared_with_the_first_alone():
    """However slow and noisy another one is."""
    together = Machine({"dense": 4.0, "plain": 3.0, "kernels": 2.0}).compare_all()
    assert [one.ratio.median for one in together] == pytest.approx([0.75, 0.5])
    apart = Machine({"dense": 4.0, "plain": 3.0, "kernels": 400.0}).compare_all()
    assert astuple(apart[0].ratio) == pytest.approx((0.75, 0.75, 0.75))
    assert apart[1].finding == "slower"


@pytest.mark.parametrize(("runs", "rounds"), [(6, 6), (7, 7), (20, 20), (50, 20), (200, 20)])
def test_a_round_has_a_run_at_least(runs, rounds):
    found = Machine().compare(runs=runs)
    assert (found.runs, found.rounds) == (runs, rounds)


@pytest.mark.parametrize(("opening", "rounds"), [(100, 20), (150, 16), (1000, 10)])
def test_files_that_take_long_to_open_are_opened_less_often(opening, rounds):
    found = Machine(opening=opening).compare(runs=40)
    assert (found.runs, found.rounds) == (40, rounds)


def test_each_session_is_warmed_up():
    machine = Machine()
    machine.compare(warmup=3, runs=6)
    starts = [i for i, (what, _) in enumerate(machine.log) if what == "open"][::2]
    for start in starts:
        after = [name for what, name in machine.log[start + 2 : start + 8] if what == "run"]
        assert sorted(after) == ["dense"] * 3 + ["sparse"] * 3


def test_short_calls_are_timed_together():
    found = Machine(cost={"dense": 0.5, "sparse": 0.25}).compare(runs=6)
    assert found.calls_per_run == 2  # 1.5 ms of wall time a call
    assert found.runs == 6
    assert found.time.cpu == Spread(0.25, 0)


def test_long_calls_are_timed_less_often_on_request():
    machine = Machine(cost={"dense": 400.0, "sparse": 300.0})
    assert machine.compare(longest_ms=15_000).runs == 10
    assert machine.compare(longest_ms=1_000).runs == 6
    assert machine.compare().runs == 40


def test_a_drift_of_the_machine_does_not_move_the_ratio():
    found = Machine(drift=0.01).compare(runs=40)
    assert found.reference_time.cpu.iqr_ms > 1
    assert found.ratio.median == pytest.approx(0.75, rel=0.02)


def test_the_second_of_two_equal_files_is_not_slower_by_noise():
    """The mean of ratios is above 1 for either of two candidates whose times vary."""
    cost = {"dense": 4.0, "sparse": 4.0}
    machines = [
        Machine(dict(cost), run_spread=0.4, rng=np.random.default_rng(seed)) for seed in range(100)
    ]
    middles = [machine.compare(runs=40).ratio.median for machine in machines]
    assert np.mean(np.log(middles)) == pytest.approx(0, abs=0.03)


def test_too_few_runs_are_refused():
    with pytest.raises(ValueError, match="Got 5"):
        Machine().compare(runs=5)


def _simulate(count, runs):
    """Three equal files, whose sessions differ by much more than their runs: (covers, passes)."""
    found = []
    for seed in range(count):
        cost = {"dense": 4.0, "plain": 4.0, "kernels": 4.0}
        rng = np.random.default_rng([seed, runs])
        machine = Machine(cost, session_spread=0.014, run_spread=0.005, rng=rng)
        ratios = [one.ratio for one in machine.compare_all(runs=runs)]
        found.append([(ratio.low <= 1 <= ratio.high, ratio.high <= 1) for ratio in ratios])
    return np.mean(found, axis=(0, 1))


def test_intervals_hold_the_truth_though_the_runs_of_a_session_are_alike():
    """Taken over all pairs, the interval at 100 runs holds it in half of the cases."""
    covers, passes = _simulate(100, runs=100)
    assert covers >= 0.9
    assert passes <= 0.06


@pytest.mark.long
@pytest.mark.parametrize("runs", [6, 20, 50, 200])
def test_intervals_hold_the_truth_as_often_as_they_say(runs):
    """Of files of equal speed at most 2.5% pass max_latency_ratio: 1.0, and as many fail it."""
    count = 2000
    covers, passes = _simulate(count, runs)
    error = 3 * np.sqrt(0.05 * 0.95 / count)
    assert covers >= 0.95 - error
    assert passes <= 0.025 + error / np.sqrt(2)


def _found(low, middle, high, workload=ONE):
    timing, ratio = Timing(wall=Spread(1, 0), cpu=None), Interval(middle, low, high)
    return LatencyComparison(
        reference="dense",
        workload=workload,
        rounds=6,
        runs=6,
        calls_per_run=1,
        reference_time=timing,
        time=timing,
        clock="wall",
        ratio=ratio,
        finding=finding_of(ratio),
        verdict=in_words(ratio),
    )


@pytest.mark.parametrize(
    ("ratio", "finding", "verdict"),
    [
        ((0.71, 0.76, 0.83), "faster", "1.32x faster (95% interval 1.20 to 1.41)"),
        ((0.3, 0.5, 0.7), "faster", "2.00x faster (95% interval 1.43 to 3.33)"),
        ((1.1, 1.25, 1.5), "slower", "1.25x slower (95% interval 1.10 to 1.50)"),
        ((0.9, 0.95, 1.05), "no speed-up", "no speed-up"),
        ((0.98, 0.99, 0.999), "no speed-up", "no speed-up"),  # would print 1.00 as its end
        (
            (0.8, 0.95, 1.1),
            "too noisy to judge",
            "too noisy to judge (95% interval 0.91x to 1.25x as fast)",
        ),
    ],
)
def test_a_speed_up_is_claimed_only_outside_of_the_interval(ratio, finding, verdict):
    assert _found(*ratio).finding == finding
    assert _found(*ratio).verdict == verdict


def test_a_file_is_faster_if_it_is_so_for_every_workload():
    fast, even = _found(0.5, 0.6, 0.7), _found(0.95, 1, 1.05, Workload(16, 4))
    noisy = _found(0.5, 1, 2, Workload(1, 2))
    assert why_not_faster([fast, fast]) is None
    assert why_not_faster([fast, even]) == ("no speed-up", "no speed-up at batch 16, 4 threads")
    finding, reason = why_not_faster([fast, noisy])
    assert finding == "too noisy to judge"
    assert reason.startswith("the machine is too noisy to judge (95% interval 0.50x to 2.00x")
    assert reason.endswith("at batch 1, 2 threads")
    # Noise for one workload does not hide that another one has no gain.
    assert why_not_faster([noisy, even])[0] == "no speed-up"


def test_identical_files_are_compared_for_every_workload(pruned):
    workloads = [Workload(1, 1), Workload(4, 1), Workload(1, 2), Workload(4, 2)]
    dense, plain, other = (Variant(name, pruned.path) for name in ("dense", "plain", "other"))
    found = compare_latency(dense, [plain, other], _feeds, workloads, warmup=1, runs=6)
    assert list(found) == ["plain", "other"]
    for comparisons in found.values():
        assert [comparison.workload for comparison in comparisons] == workloads
        for comparison in comparisons:
            assert comparison.calls_per_run > 1
            assert comparison.reference_time.wall.median_ms > 0
            assert (comparison.time.cpu is None) == (comparison.workload.threads > 1)
            assert comparison.ratio.low <= comparison.ratio.median <= comparison.ratio.high


def test_files_are_also_compared_with_another_one_on_request():
    machine = Machine(cost={"dense": 4.0, "int8": 2.0, "kernels": 1.0})
    found = machine.compare_all(pairs=[("kernels", "dense"), ("kernels", "int8")])
    assert [one.reference for one in found] == ["dense", "int8"]
    assert [one.ratio.median for one in found] == pytest.approx([1 / 4, 1 / 2], rel=0.05)


def test_further_comparisons_follow_those_with_the_reference(pruned):
    workloads = [Workload(1, 1), Workload(4, 1)]
    dense, plain, other = (Variant(name, pruned.path) for name in ("dense", "plain", "other"))
    also = [("other", "plain")]
    found = compare_latency(dense, [plain, other], _feeds, workloads, warmup=1, runs=6, also=also)
    of = [(one.reference, one.workload.batch_size) for one in found["other"]]
    assert of == [("dense", 1), ("dense", 4), ("plain", 1), ("plain", 4)]
    assert [one.reference for one in found["plain"]] == ["dense", "dense"]


def test_the_inputs_are_made_for_the_whole_workload(pruned):
    workload, asked = Workload(2, 1, {"sequence": 7}), []

    def feeds(workload):
        asked.append(workload)
        return _feeds(workload)

    dense, plain = Variant("dense", pruned.path), Variant("plain", pruned.path)
    (comparison,) = compare_latency(dense, [plain], feeds, [workload], warmup=1, runs=6)["plain"]
    assert asked == [workload]
    assert str(comparison.workload) == "batch 2, sequence 7, 1 thread"
    assert {workload: 1}[Workload(2, 1, {"sequence": 7})] == 1
    assert Workload(2, 1, {"sequence": 8}) != workload


def test_nothing_is_opened_without_a_file_to_compare():
    assert (
        compare_latency(Variant("dense", Path("none")), [], _feeds, [ONE], warmup=1, runs=6) == {}
    )


def _feeds(workload):
    return {"input": np.ones((workload.batch_size, 3, 4, 4), np.float32)}


def test_a_batch_size_that_the_file_does_not_take_is_refused(tmp_path):
    path = tmp_path / "m.onnx"
    export_onnx(nn.Flatten(), torch.ones(3, 3, 4, 4), path, dynamic_batch=False)
    with pytest.raises(ValueError, match=r"of shape \[3, 3, 4, 4\].*of shape \[2, 3, 4, 4\]"):
        compare_latency(*_two(path, path), _feeds, [ONE], warmup=0, runs=6)


def _two(dense, sparse, library=None):
    return Variant("dense", dense), [Variant("sparse", sparse, library)]


def test_a_library_is_for_the_file_that_needs_it_alone(monkeypatch):
    libraries = {}

    def open_session(path, threads, library=None):
        libraries[path] = library
        return SimpleNamespace(run=lambda *_: [])

    monkeypatch.setattr(latency, "open_session", open_session)
    files = _two("dense", "sparse", Path("kernels.so"))
    compare_latency(*files, _feeds, [ONE], warmup=0, runs=6)
    assert libraries == {"dense": None, "sparse": Path("kernels.so")}
