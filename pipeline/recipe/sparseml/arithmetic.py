"""Variables of a SparseML recipe and the arithmetic in ``eval(...)``.

SparseML's own grammar: numbers, names of variables, ``+ - * / // % **``, and calls of ``abs``,
``float``, ``int``, ``max``, ``min`` and ``round``. An expression is parsed and never compiled or
executed; every result is held to the size of a float that a recipe can mean, before it is computed
where it could be too large to compute.
"""

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from mfac_compress.pipeline.quoting import shortened

_MOST_CHARACTERS = 500
_MOST_DEPTH = 40
_LARGEST = 1e15
_MOST_DIGITS = 15

Number = int | float


def _power(base: Number, exponent: Number) -> Number:
    _held(math.pow(base, exponent))  # in floats first: whole numbers would grow without end
    return base**exponent


_OPERATIONS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_FUNCTIONS: dict[str, Callable[..., Number]] = {
    "abs": abs,
    "float": float,
    "int": int,
    "max": max,
    "min": min,
    "round": round,
}


class ArithmeticalError(ValueError):
    """An expression that is no arithmetic, or whose result no recipe can mean."""


def is_expression(value: Any) -> bool:
    """Whether a value is ``eval(...)``.

    >>> is_expression("eval(num_epochs - 1)")
    True
    """
    return isinstance(value, str) and value.startswith("eval(") and value.endswith(")")


def evaluate(value: Any, variables: Mapping[str, Any]) -> Any:
    """Put variables into a value: into each ``eval(...)`` in it.

    Args:
        value: Plain value, also a list or mapping of them.
        variables: Name to plain value; see :func:`resolve`.
    Returns:
        The value with the results in place. ``eval(name)`` alone is the variable whatever it is,
        all else is a number.
    Raises:
        ArithmeticalError: If an expression is not arithmetic on variables that are there.

    >>> evaluate({"end_epoch": "eval(num_epochs - 2)"}, {"num_epochs": 10.0})
    {'end_epoch': 8.0}
    """
    if isinstance(value, list):
        return [evaluate(item, variables) for item in value]
    if isinstance(value, dict):
        return {key: evaluate(item, variables) for key, item in value.items()}
    if not is_expression(value):
        return value
    expression = value[len("eval(") : -1].strip()
    if expression in variables:
        return variables[expression]
    return _Evaluation(expression, variables).result()


def resolve(written: Mapping[str, Any]) -> dict[str, Any]:
    """Work out variables, which may be made of each other.

    Args:
        written: Name to what the recipe has: a plain value or ``eval(...)``.
    Returns:
        Name to plain value.
    Raises:
        ArithmeticalError: As :func:`evaluate`, or if variables are made of each other in a circle.

    >>> resolve({"end": "eval(start + 2)", "start": 1})
    {'start': 1, 'end': 3}
    """
    known = {name: value for name, value in written.items() if not is_expression(value)}
    waiting = {name: value for name, value in written.items() if is_expression(value)}
    needed = {name: _names_in(value) & waiting.keys() for name, value in waiting.items()}
    try:
        for name in TopologicalSorter(needed).static_order():
            known[name] = evaluate(waiting[name], known)
    except CycleError as error:
        circle = ", ".join(shortened(str(name), 40) for name in error.args[1][:5])
        raise ArithmeticalError(
            f"variables must not be made of each other in a circle. Got {circle}"
        ) from error
    return known


def _names_in(value: str) -> set[str]:
    tree = _parsed(value[len("eval(") : -1].strip())
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _parsed(expression: str) -> ast.expr:
    if len(expression) > _MOST_CHARACTERS:
        raise ArithmeticalError(
            f"an expression must have at most {_MOST_CHARACTERS} characters. Got {len(expression)}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of the tokenizer, on stderr
            return ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ArithmeticalError(
            f"an expression must be arithmetic. Got {shortened(expression)!r}"
        ) from error


class _Evaluation:
    """One expression's way through its tree."""

    def __init__(self, expression: str, variables: Mapping[str, Any]) -> None:
        self._expression, self._variables = expression, variables

    def result(self) -> Number:
        try:
            return self._node(_parsed(self._expression), 0)
        except (ZeroDivisionError, OverflowError, ValueError, TypeError) as error:
            if isinstance(error, ArithmeticalError):
                raise
            raise ArithmeticalError(
                f"an expression must have a result. Got {shortened(self._expression)!r}: {error}"
            ) from error

    def _node(self, node: ast.expr, depth: int) -> Number:
        if depth > _MOST_DEPTH:
            raise ArithmeticalError(f"an expression must be at most {_MOST_DEPTH} levels deep")
        if isinstance(node, ast.Constant):
            return _held(node.value)
        if isinstance(node, ast.Name):
            return self._variable(node.id)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            value = self._node(node.operand, depth + 1)
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            left, right = self._node(node.left, depth + 1), self._node(node.right, depth + 1)
            return _held(_OPERATIONS[type(node.op)](left, right))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            return self._call(node.func.id, [self._node(arg, depth + 1) for arg in node.args])
        raise ArithmeticalError(
            "an expression must be made of numbers, variables, + - * / // % ** and "
            f"{', '.join(sorted(_FUNCTIONS))}. Got {shortened(self._expression)!r}"
        )

    def _variable(self, name: str) -> Number:
        if name not in self._variables:
            known = ", ".join(shortened(other, 40) for other in list(self._variables)[:10])
            raise ArithmeticalError(
                f"an expression must use variables of the recipe: {known or 'it has none'}. "
                f"Got {shortened(name, 40)}"
            )
        return _held(self._variables[name])

    @staticmethod
    def _call(name: str, values: list[Number]) -> Number:
        if name not in _FUNCTIONS:
            raise ArithmeticalError(
                f"an expression must call only {', '.join(sorted(_FUNCTIONS))}. "
                f"Got {shortened(name, 40)}"
            )
        if name == "round" and len(values) == 2 and abs(values[1]) > _MOST_DIGITS:
            raise ArithmeticalError(f"round must have at most {_MOST_DIGITS} digits")
        return _held(_FUNCTIONS[name](*values))


def _held(value: Any) -> Number:
    """Refuse what is no number, and numbers that grow out of bounds."""
    if not isinstance(value, int | float):
        raise ArithmeticalError(
            f"an expression must be made of numbers. Got {shortened(repr(value), 40)}"
        )
    if not abs(value) <= _LARGEST:
        raise ArithmeticalError(f"an expression must stay below {_LARGEST:g}")
    return value
