"""The grammar of the symbolic sizes in a program of torch.export.

``torch.export.load`` hands each of them to SymPy, which evaluates them as Python. So each must be
what ``torch.export.save`` writes, SymPy's ``srepr``: calls of the functions below on symbols and
numbers, nothing else. What SymPy would take long to work out, such as towers of powers, is refused
as well.
"""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from mfac_compress.pipeline.quoting import shortened

_MOST_CHARACTERS = 50_000
_MOST_TERMS = 256
_MOST_DEGREE = 64
_MOST_DEPTH = 90
_MOST_EXPONENT = 8
_MOST_SHIFT = 62

SYMBOL = re.compile(r"(s|u|zf|zuf)\d{1,6}", re.ASCII)
"""Names that torch.export gives to sizes: of inputs, of what depends on data, and floats."""

_ASSUMPTIONS = {"commutative", "finite", "integer", "negative", "nonnegative", "positive", "real"}
_CONSTANTS = {"true", "false"}
_FUNCTIONS = {
    *("Abs", "Add", "Max", "Min", "Mul", "ceiling", "floor"),
    *("Equality", "GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan", "Unequality"),
    *("And", "ExprCondPair", "ITE", "Not", "Or", "Piecewise", "Xor"),
    *("CeilDiv", "CeilToInt", "CleanDiv", "FloatTrueDiv", "FloorDiv", "FloorToInt", "Identity"),
    *("IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "Mod", "ModularIndexing", "PythonMod"),
    *("RoundDecimal", "RoundToInt", "ToFloat", "TruncToFloat", "TruncToInt", "Where"),
}
_POWERS = {"Pow", "PowByNatural", "FloatPow"}
_SHIFTS = {"LShift", "RShift"}


class ExpressionError(ValueError):
    """An expression is outside of the grammar."""


@dataclass(frozen=True)
class _Growth:
    """How large an expression may become when SymPy multiplies it out.

    Attributes:
        terms: Upper bound of the terms of the sum.
        degree: Upper bound of the factors of a term.
    """

    terms: int = 1
    degree: int = 1


def checked_expression(text: str) -> str:
    """Check that an expression is nothing but arithmetic on sizes, and small.

    Args:
        text: For example ``Mul(Integer(2), Symbol('s77', positive=True, integer=True))``.
    Returns:
        The same expression, written anew from what was understood of it.
    Raises:
        ExpressionError: If it is anything else.
    """
    if len(text) > _MOST_CHARACTERS or not text.isascii():
        raise ExpressionError(f"{len(text)} characters, or others than ASCII")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ExpressionError(f"no expression: {shortened(text)}") from error
    _check(tree.body, depth=0)
    return ast.unparse(tree)


def _check(node: ast.expr, depth: int) -> _Growth:
    if depth > _MOST_DEPTH:
        raise ExpressionError(f"nested more than {_MOST_DEPTH} deep")
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _Growth()
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ExpressionError(shortened(ast.unparse(node)))
    name = node.func.id
    leaf = _LEAVES.get(name)
    if leaf is not None:
        if not leaf(node):
            raise ExpressionError(shortened(ast.unparse(node)))
        return _Growth()
    if name not in _FUNCTIONS | _POWERS | _SHIFTS or node.keywords or not node.args:
        raise ExpressionError(shortened(ast.unparse(node)))
    grown = _grow(name, node, [_check(argument, depth + 1) for argument in node.args])
    if grown.terms > _MOST_TERMS or grown.degree > _MOST_DEGREE:
        raise ExpressionError(f"too large when multiplied out: {shortened(ast.unparse(node))}")
    return grown


def _grow(name: str, node: ast.Call, parts: list[_Growth]) -> _Growth:
    if name == "Add":
        return _Growth(sum(part.terms for part in parts), max(part.degree for part in parts))
    if name == "Mul":
        return _Growth(prod(part.terms for part in parts), sum(part.degree for part in parts))
    if name in _POWERS:
        exponent = _exponent(node)
        return _Growth(parts[0].terms ** max(exponent, 1), parts[0].degree * max(exponent, 1))
    if name in _SHIFTS and not 0 <= _second_integer(node) <= _MOST_SHIFT:
        raise ExpressionError(f"shift: {shortened(ast.unparse(node))}")
    return _Growth(1, max(part.degree for part in parts))


def _exponent(node: ast.Call) -> int:
    if ast.unparse(node.args[-1]) == "Rational(1, 2)":
        return 1
    exponent = _second_integer(node)
    if not -1 <= exponent <= _MOST_EXPONENT:
        raise ExpressionError(f"exponent: {shortened(ast.unparse(node))}")
    return exponent


def _second_integer(node: ast.Call) -> int:
    second = node.args[1] if len(node.args) == 2 else None
    if not (isinstance(second, ast.Call) and ast.unparse(second.func) == "Integer"):
        raise ExpressionError(f"no number: {shortened(ast.unparse(node))}")
    return ast.literal_eval(second.args[0])


def _is_symbol(node: ast.Call) -> bool:
    named = len(node.args) == 1 and isinstance(node.args[0], ast.Constant)
    return (
        named
        and isinstance(node.args[0].value, str)
        and SYMBOL.fullmatch(node.args[0].value) is not None
        and all(
            keyword.arg in _ASSUMPTIONS
            and isinstance(keyword.value, ast.Constant)
            and isinstance(keyword.value.value, bool)
            for keyword in node.keywords
        )
    )


def _is_integers(count: int) -> Callable[[ast.Call], bool]:
    def check(node: ast.Call) -> bool:
        return (
            len(node.args) == count
            and not node.keywords
            and all(_is_integer(argument) for argument in node.args)
        )

    return check


def _is_integer(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value < 2**63


def _is_float(node: ast.Call) -> bool:
    number = node.args[0] if len(node.args) == 1 else None
    precisions = [ast.unparse(keyword) for keyword in node.keywords]
    return (
        isinstance(number, ast.Constant)
        and isinstance(number.value, str)
        and re.fullmatch(r"-?\d{1,40}(\.\d{1,40})?(e[+-]?\d{1,3})?", number.value) is not None
        and precisions in ([], ["precision=53"])
    )


_LEAVES: dict[str, Callable[[ast.Call], bool]] = {
    "Symbol": _is_symbol,
    "Integer": _is_integers(1),
    "Rational": _is_integers(2),
    "Float": _is_float,
}
