"""Patterns: what they match, and that none takes longer than it may."""

import pytest

from mfac_compress.pipeline.inputs import patterns
from mfac_compress.pipeline.inputs.patterns import SlowPatternError, match_all

NAMES = ["layer1.0.weight", "layer1.10.weight", "fc.weight", "fc.[x]"]


def test_a_pattern_matches_whole_names():
    found = match_all(["fc.weight", "layer1.?.*", r"re:layer1\.\d+\.weight", "re:fc"], NAMES)
    assert found == {
        "fc.weight": {"fc.weight"},
        "layer1.?.*": {"layer1.0.weight"},
        r"re:layer1\.\d+\.weight": {"layer1.0.weight", "layer1.10.weight"},
        "re:fc": set(),
    }


def test_an_expression_that_never_ends_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(patterns, "_SECONDS", 1)
    endless = "re:(a+)+$"
    with pytest.raises(SlowPatternError) as caught:
        match_all(["re:a.*", endless, "re:b"], ["a" * 100 + "b"])
    assert caught.value.pattern == endless
    assert endless in str(caught.value)
