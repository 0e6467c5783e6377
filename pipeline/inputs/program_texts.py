"""What each text in the JSON of a program of torch.export may be: names, paths, expressions, trees.

PyTorch evaluates some of them, looks others up and imports what it finds, and writes names into
Python code that it runs.
"""

import json
import keyword
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mfac_compress.pipeline.inputs.expressions import SYMBOL, ExpressionError, checked_expression
from mfac_compress.pipeline.inputs.operators import is_allowed
from mfac_compress.pipeline.quoting import shortened

MOST_DEPTH = 100
_NAME = re.compile(r"[A-Za-z_]\w{0,255}", re.ASCII)
_PATH = re.compile(r"[\w.:/+ -]{1,1000}")
_PAYLOAD = re.compile(r"(weight|tensor)_\d{1,7}", re.ASCII)
_TYPES_OF_TREES = {
    "builtins.tuple": "builtins.tuple",
    "builtins.list": "builtins.list",
    "builtins.dict": "builtins.dict",
    "collections.OrderedDict": "builtins.dict",
}
"""What may be in a tree, and what is read in its place."""
_NOT_FOR_NODES = {*keyword.kwlist, "torch", "self", "device", "inf", "nan", "getattr", "slice"}
_NOT_FOR_NODES |= {"pytree", "fx_pytree", "math", "operator"}
_MEMBERS = {*dir(nn.Module()), *dir(torch.fx.GraphModule)}


class SchemaError(ValueError):
    """The JSON says what it may not, or what PyTorch does not write."""


class RefusedError(SchemaError):
    """It needs what could run code.

    Args:
        what: The operator, the expression or the object.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


def expect(holds: bool, value: Any, place: str, what: str) -> None:
    """Raise SchemaError for a value that is not ``what`` its place asks for."""
    if not holds:
        shown = repr(value) if isinstance(value, str | int | float) else type(value).__name__
        raise SchemaError(f"{place} must be {what}, and is {shortened(shown)}")


def is_name(text: str) -> bool:
    """Whether it can be a name of a graph's node: Python would take it for nothing else."""
    return _NAME.fullmatch(text) is not None and text not in _NOT_FOR_NODES


def _is_path(text: str) -> bool:
    """Whether it can be a parameter's or buffer's name: nothing that every module has."""
    parts = text.split(".")
    return _PATH.fullmatch(text) is not None and not any(
        not part or part.startswith("__") or part in _MEMBERS for part in parts
    )


def _text_rule(holds: Callable[[str], bool], what: str) -> Callable[[str, str], str]:
    def rule(text: str, place: str) -> str:
        expect(holds(text), text, place, what)
        return text

    return rule


def _operator(text: str, place: str) -> str:
    if not is_allowed(text):
        raise RefusedError(f"the operator {shortened(text)!r}")
    return text


def _expression(text: str, place: str) -> str:
    try:
        return checked_expression(text)
    except ExpressionError as error:
        raise RefusedError(f"the expression {str(error)!r}") from error


def _payload(text: str, place: str) -> str:
    if not _PAYLOAD.fullmatch(text):
        raise RefusedError(f"the record {shortened(text)!r}")
    return text


def _tree(text: str, place: str) -> str:
    """A structure of tuples, lists and dicts, written anew."""
    version, tree = json.loads(text)
    expect(version == 1, version, place, "of version 1")
    return json.dumps([1, _branch(tree, place, 0)])


def _branch(tree: Any, place: str, depth: int) -> dict[str, Any]:
    expect(isinstance(tree, dict) and depth <= MOST_DEPTH, tree, place, "a tree")
    kind, children = tree.get("type"), tree.get("children_spec")
    expect(isinstance(children, list), children, place, "a tree")
    if kind is None:
        expect(not children, children, place, "a leaf")
        return {"type": None, "context": None, "children_spec": []}
    if kind not in _TYPES_OF_TREES:
        raise RefusedError(f"a value of the type {shortened(str(kind))}")
    kind, context = _TYPES_OF_TREES[kind], json.loads(tree.get("context"))
    if kind == "builtins.dict":
        named = isinstance(context, list) and all(
            isinstance(name, str) and is_name(name) for name in context
        )
        expect(named and len(context) == len(children), context, place, "a list of names")
    else:
        expect(context is None, context, place, "empty")
    parts = [_branch(child, place, depth + 1) for child in children]
    return {"type": kind, "context": json.dumps(context), "children_spec": parts}


_A_NAME = _text_rule(is_name, "a name that is free in Python")
_A_PATH = _text_rule(_is_path, "the name of a parameter or buffer")
_ANY_TEXT = _text_rule(
    lambda text: len(text) <= 10_000 and text.replace("\n", " ").isprintable(), "printable"
)

TEXTS: dict[str, Callable[[str, str], str]] = {
    **dict.fromkeys(
        (
            *("TensorArgument.name", "TokenArgument.name", "GraphArgument.name", "Node.name"),
            *("SymIntArgument.as_name", "SymFloatArgument.as_name", "SymBoolArgument.as_name"),
            *("InputToConstantInputSpec.name", "GradientToUserInputSpec.user_input_name"),
            *("UserInputMutationSpec.user_input_name", "ModuleCallSignature.forward_arg_names"),
        ),
        _A_NAME,
    ),
    **dict.fromkeys(
        (
            *("InputToParameterSpec.parameter_name", "InputToBufferSpec.buffer_name"),
            *("InputToTensorConstantSpec.tensor_constant_name", "BufferMutationSpec.buffer_name"),
            *("ParameterMutationSpec.parameter_name", "GradientToParameterSpec.parameter_name"),
        ),
        _A_PATH,
    ),
    # Names of ATen's arguments: `self` and `from` are among them.
    "NamedArgument.name": _text_rule(
        lambda text: not text or _NAME.fullmatch(text) is not None, "the name of an argument"
    ),
    "SymExpr.expr_str": _expression,
    "Node.target": _operator,
    "Argument.as_operator": _operator,
    "Argument.as_string": _ANY_TEXT,
    "Argument.as_strings": _ANY_TEXT,
    "ConstantValue.as_string": _text_rule(is_name, "a plain word"),
    "ModuleCallSignature.in_spec": _tree,
    "ModuleCallSignature.out_spec": _tree,
    "ModuleCallEntry.fqn": _text_rule(lambda text: len(text) <= 1000, "short"),
    "Device.type": _text_rule(lambda text: text in {"cpu", "cuda"}, "cpu or cuda"),
    "ExportedProgram.verifiers": _text_rule(lambda text: text in {"ATEN", "TRAINING"}, "known"),
    "ExportedProgram.torch_version": _text_rule(
        lambda text: re.fullmatch(r"[\w.+<=-]{1,64}", text) is not None, "a version"
    ),
    "PayloadMeta.path_name": _payload,
}
"""What the texts of each place may be. A place that is not here is refused."""

KEYS: dict[str, Callable[[str], bool]] = {
    "ExportedProgram.range_constraints": lambda text: SYMBOL.fullmatch(text) is not None,
    "PayloadConfig.config": _is_path,
}
"""What the keys of a dictionary may be, where they are not names of a graph."""
