"""Arithmetic of SparseML recipes: what it computes, and what it refuses to."""

import pytest

from mfac_compress.pipeline.recipe.sparseml.arithmetic import ArithmeticalError, evaluate, resolve

VARIABLES = {"a": 3, "half": 0.5, "word": "cosine", "names": ["x"], "on": True}


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("1 + 2 * a", 7),
        ("a / 2", 1.5),
        ("a // 2", 1),
        ("a % 2", 1),
        ("2 ** 10", 1024),
        ("-a + +1", -2),
        ("max(1, a) - min(1, a)", 2),
        ("round(half + 1.05, 1)", 1.6),
        ("int(float(a) * 1.5)", 4),
        ("abs(-half)", 0.5),
        ("word", "cosine"),
        ("names", ["x"]),
        ("on", True),
        (" a ", 3),
    ],
)
def test_an_expression_has_its_value(expression, result):
    found = evaluate(f"eval({expression})", VARIABLES)
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize("value", ["evaluate(a)", "a + 1", "eval(a", None, 3, True])
def test_what_is_no_expression_stays(value):
    assert evaluate(value, VARIABLES) == value


def test_expressions_within_lists_and_mappings_are_found():
    value = {"kwargs": ["eval(a)", {"deep": "eval(half)"}]}
    assert evaluate(value, VARIABLES) == {"kwargs": [3, {"deep": 0.5}]}


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "(1).__class__",
        "a.real",
        "names[0]",
        "[x for x in (1, 2)]",
        "lambda: 1",
        "f'{a}'",
        "'word'",
        "open('x')",
        "max(*names)",
        "max(1, key=abs)",
        "1 if a else 2",
        "a and 1",
        "a < 1",
        "(a := 1)",
        "~a",
        "1j",
        "a; a",
        "",
        "nobody + 1",
        "word + 1",
        "9 ** 9 ** 9 ** 9",
        "2 ** 2 ** 20",
        "(-8) ** 0.5",
        "1e400",
        "1 / 0",
        "round(1, -10 ** 14)",
        "int(1e308 * 10)",
        "(" * 300 + "1" + ")" * 300,
        "-" * 300 + "1",
        "1 + " * 200 + "1",
        "1" * 600,
    ],
)
def test_all_else_is_refused(expression):
    with pytest.raises(ArithmeticalError, match=r"expression|round"):
        evaluate(f"eval({expression})", VARIABLES)


def test_variables_may_be_made_of_each_other_in_any_order():
    written = {"end": "eval(start + length)", "length": "eval(2 * unit)", "start": 1, "unit": 4.0}
    assert resolve(written) == {"start": 1, "unit": 4.0, "length": 8.0, "end": 9.0}


def test_a_circle_of_variables_is_refused():
    with pytest.raises(ArithmeticalError, match=r"in a circle\. Got (a, b, a|b, a, b)"):
        resolve({"a": "eval(b)", "b": "eval(a)"})


def test_a_long_chain_of_variables_is_no_matter():
    chain = {f"v{i}": f"eval(v{i + 1} + 1)" for i in range(2000)} | {"v2000": 0}
    assert resolve(chain)["v0"] == 2000
