"""What latency is measured on: samples for each workload of the recipe."""

import numpy as np

from mfac_compress.export import Workload
from mfac_compress.pipeline.recipe.schema import ExportSection, ValidateSection
from mfac_compress.pipeline.stages.feeds import resized, workloads_of


def test_each_length_is_measured_with_each_batch_size_and_number_of_threads():
    latency = {"batch_sizes": [1, 4], "threads": [1, 2], "lengths": {"a": [8, 16], "b": [3]}}
    found = workloads_of(ExportSection(), ValidateSection(latency=latency))
    assert len(found) == len(set(map(str, found))) == 8
    assert found[0] == Workload(1, 1, {"a": 8, "b": 3})
    assert found[-1] == Workload(4, 2, {"a": 16, "b": 3})


def test_a_file_of_a_fixed_batch_size_is_measured_at_it():
    found = workloads_of(ExportSection(dynamic_batch=False), ValidateSection(batch_size=7))
    assert found == [Workload(7, 1)]


def test_named_axes_are_cut_or_repeated_to_the_workloads_length():
    tokens = np.arange(10).reshape(2, 5)
    for length, row in ((3, [0, 1, 2]), (5, [0, 1, 2, 3, 4]), (7, [0, 1, 2, 3, 4, 0, 1])):
        found = resized(tokens, {1: "sequence"}, {"sequence": length})
        assert found[0].tolist() == row
    assert resized(tokens, {1: "other"}, {"sequence": 3}) is tokens
