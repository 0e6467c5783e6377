"""Sizes of torch.export are read as arithmetic, and nothing else passes for it."""

import pytest
import sympy
from torch.utils._sympy.functions import FloorDiv, Mod

from mfac_compress.pipeline.inputs.expressions import ExpressionError, checked_expression

S = "Symbol('s77', positive=True, integer=True)"


@pytest.mark.parametrize(
    "text",
    [
        S,
        f"Mul(Integer(2), {S})",
        f"Add(FloorDiv(Add({S}, Integer(-3)), Integer(2)), Integer(1))",
        f"Max(Integer(1), Pow({S}, Integer(2)))",
        f"Mul({S}, Pow(Symbol('u0', integer=True), Integer(-1)))",
        f"GreaterThan({S}, Integer(2))",
        "Float('0.5', precision=53)",
        "Rational(1, 2)",
        "true",
    ],
)
def test_what_torch_writes_is_kept_as_it_is(text):
    assert checked_expression(text) == text


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: 2 * a + b**2,
        lambda a, b: sympy.Max(a, b) - 3,
        lambda a, b: FloorDiv(a * b, 7),
        Mod,
        lambda a, b: sympy.Piecewise((a, a > b), (b, True)),
    ],
)
def test_every_kind_of_written_expression_means_the_same_after_the_check(make):
    a, b = (sympy.Symbol(name, positive=True, integer=True) for name in ("s0", "s1"))
    written = sympy.srepr(make(a, b))
    assert checked_expression(written) == written


@pytest.mark.parametrize(
    "text",
    [
        f"[__import__('os').system('true'), {S}][1]",
        "9**9**9**9",
        "Integer(10**9)",
        "Pow(Integer(9), Integer(9))",
        "Pow(Integer(2), Pow(Integer(2), Integer(8)))",
        "Pow(Pow(Pow(Integer(9), Integer(8)), Integer(8)), Integer(8))",
        f"Pow(Integer(2), {S})",
        "LShift(Integer(1), Integer(9999999))",
        "Integer(99999999999999999999)",
        "Integer(True)",
        "Integer('3')",
        "Float('1e99999999')",
        "Symbol('s0' + '1')",
        "Symbol('batch')",
        "Symbol('u99999999999')",
        "Symbol('s0', positive=print())",
        "Symbol(**{})",
        "Add(*[1])",
        "Add()",
        "s0",
        "Integer(1).__class__",
        "(lambda: 1)()",
        "f'{1}'",
        "factorial(Integer(9))",
        "Add(" * 95 + "Integer(1)" + ")" * 95,
        "(" * 300 + ")" * 300,
        "\uff33ymbol('s0')",
        "",
        "x" * 100_000,
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(ExpressionError):
        checked_expression(text)


def test_products_of_sums_are_bounded_by_their_terms():
    pair = "Add(Symbol('s{}', integer=True), Symbol('s{}', integer=True))"
    few = ", ".join(pair.format(i, i + 50) for i in range(8))
    many = ", ".join(pair.format(i, i + 50) for i in range(9))
    checked_expression(f"Mul({few})")
    with pytest.raises(ExpressionError, match="multiplied out"):
        checked_expression(f"Mul({many})")
