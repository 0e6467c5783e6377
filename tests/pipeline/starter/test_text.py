"""Recipes with comments say what they are given, whatever the names in them hold."""

import pytest

from mfac_compress.pipeline.recipe.yaml_lines import parse_yaml
from mfac_compress.pipeline.starter.text import Alternative, Commented, write_commented

VALUES = {
    "data": {"source": "arrays", "splits": {"a": {"path": "x, y: {z}.npz", "rows": [0, 9]}}},
    "prune": {"sparsity": 0.8, "exclude": ["0", "a: #b", "re:.*[0-9]"], "damping": 1e-5},
    "validate": {"gates": {"max_metric_drop": 0.02}},
    "quantize": "static",
    "other": {"long": "word " * 60},
}


def test_what_is_written_is_read_again():
    sections = [
        Commented("prune", ["above"], {"sparsity": "beside", "exclude": "beside"}),
        Commented("other", notes={"long": "of several lines"}),
        Commented("absent", alternatives=[Alternative("absent", {"a": [1, {"b": 2}]}, "why")]),
    ]
    text = write_commented(["head", ""], VALUES, sections)
    assert parse_yaml(text).value == VALUES
    assert "# head\n#\n" in text
    assert "  sparsity: 0.8 # beside\n" in text
    assert "# above\nprune:\n" in text
    assert "\n# absent: {a: [1, {b: 2}]} # why\n" in text


@pytest.mark.parametrize("value", ["static", 0.5, [1, 2], {"block": 4, "axis": "outputs"}, None])
def test_an_alternative_is_the_key_once_its_comment_sign_is_gone(value):
    section = Commented("prune", alternatives=[Alternative("pattern", value, "why")])
    text = write_commented([], {"prune": {"sparsity": 0.5}}, [section])
    assert parse_yaml(text).value == {"prune": {"sparsity": 0.5}}
    taken = parse_yaml(text.replace("  # pattern", "  pattern")).value
    assert taken == {"prune": {"sparsity": 0.5, "pattern": value}}
