"""From what was measured to the report's parts."""

import pytest

from mfac_compress.pipeline.verdict.results import flops_result


@pytest.mark.parametrize("layers", [[], [{"macs": None, "kept_macs": None}]])
def test_a_model_of_which_nothing_is_counted_has_saved_nothing(layers):
    flops = flops_result({"batch_size": 4, "layers": layers})
    assert (flops.dense, flops.sparse, flops.ratio) == (0, 0, 1.0)


def test_layers_are_summed_up():
    layers = [{"macs": 30, "kept_macs": 10}, {"macs": None, "kept_macs": None}]
    layers.append({"macs": 10, "kept_macs": 0})
    flops = flops_result({"batch_size": 4, "layers": layers})
    assert (flops.batch_size, flops.dense, flops.sparse, flops.ratio) == (4, 40, 10, 0.25)
