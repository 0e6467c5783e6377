"""The learning rate that leaves the outputs nearest to the dense model's."""

import math

import pytest

from mfac_compress.pipeline.errors import StageError
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.recipe.schema import RecoverSection
from mfac_compress.pipeline.stages.range_test import try_rates


def test_rates_that_break_the_model_are_not_chosen():
    tried = []

    def divergence_after(section):
        tried.append(section)
        return math.nan if section.lr > 0.05 else abs(section.lr - 0.02)

    kept = {"keep": "best", "patience": 2, "ema": 0.9}
    section = RecoverSection(lr="auto", epochs=8, schedule="linear", **kept)
    lr, found = try_rates(section, divergence_after, Progress())
    assert lr == min((one.lr for one in found if one.divergence), key=lambda r: abs(r - 0.02))
    assert found[-1].divergence is None
    assert {(one.epochs, one.patience, one.ema, one.schedule) for one in tried} == {
        (1, None, None, "linear")
    }


@pytest.mark.parametrize("divergence", [math.nan, math.inf])
def test_where_every_rate_breaks_the_model_the_run_ends(divergence):
    with pytest.raises(StageError, match=r"None of 0\.001, .* did\. Give recover\.lr a lower one"):
        try_rates(RecoverSection(lr="auto"), lambda _: divergence, Progress())
