"""What the JSON of a program of torch.export may say.

PyTorch evaluates expressions in it, looks names up and imports them, and writes names into Python
code that it runs. So every value is checked against PyTorch's own schema of the format, every text
against what may stand in that place, and the JSON is written anew from what was understood: what
this module does not know is not in it. Notes that a graph can do without (stack traces, guards,
named tuples) are left out.
"""

import enum
import json
import keyword
import re
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch._export.serde import schema
from torch._export.serde.union import _Union

from mfac_compress.pipeline.inputs.expressions import SYMBOL, ExpressionError, checked_expression
from mfac_compress.pipeline.inputs.operators import grows_without_bound, is_allowed
from mfac_compress.pipeline.quoting import first_line, shortened

_MOST_DEPTH = 100
_NAME = re.compile(r"[A-Za-z_]\w{0,255}", re.ASCII)
_PATH = re.compile(r"[\w.:/+ -]{1,1000}")
_PAYLOAD = re.compile(r"(weight|tensor)_\d{1,7}", re.ASCII)
_TYPES_OF_TREES = {"builtins.tuple", "builtins.list", "builtins.dict"}
_NOT_FOR_NODES = {*keyword.kwlist, "torch", "self", "device", "inf", "nan", "getattr", "slice"}
_NOT_FOR_NODES |= {"pytree", "fx_pytree", "math", "operator"}
_MEMBERS = {*dir(nn.Module()), *dir(torch.fx.GraphModule)}
_NOT_FINITE = {"Infinity", "-Infinity", "NaN"}


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


def checked_program(content: bytes) -> dict[str, Any]:
    """Check the program itself, `models/model.json`.

    Args:
        content: The record's bytes.
    Returns:
        What it says, as far as PyTorch needs it.
    Raises:
        SchemaError: If anything in it is not allowed.
    """
    return _checked(content, schema.ExportedProgram)


def checked_payloads(content: bytes) -> dict[str, Any]:
    """Check a list of tensors, `data/*/model_*_config.json`.

    Args:
        content: The record's bytes.
    Returns:
        What it says: ``{"config": {name: {"path_name": ..., "tensor_meta": ...}}}``.
    Raises:
        SchemaError: If anything in it is not allowed.
    """
    return _checked(content, schema.PayloadConfig)


def _checked(content: bytes, kind: Any) -> dict[str, Any]:
    try:
        return _value(json.loads(content.decode("utf-8")), kind, kind.__name__, 0)
    except SchemaError:
        raise
    except Exception as error:
        # Wrong JSON and wrong shapes of it show as anything from KeyError to RecursionError.
        raise SchemaError(first_line(f"{type(error).__name__}: {error}")) from error


def _value(value: Any, kind: Any, place: str, depth: int) -> Any:
    """Check a value against a type of the schema."""
    if depth > _MOST_DEPTH:
        raise SchemaError(f"{place} is nested too deep")
    if isinstance(kind, str):
        kind = getattr(schema, kind)
    if typing.get_origin(kind) is not None:
        return _generic(value, kind, place, depth)
    if isinstance(kind, type) and issubclass(kind, _Union):
        return _union(value, kind, place, depth)
    if is_dataclass(kind):
        return _record(value, typing.cast("type", kind), place, depth)
    return _leaf(value, kind, place)


def _generic(value: Any, kind: Any, place: str, depth: int) -> Any:
    """Check a value against a list, a dictionary, or what may be missing."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _value(value, arguments[0], place, depth)
    if origin in (typing.Union, types.UnionType):
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return None if value is None else _value(value, inner, place, depth)
    if origin is list:
        _expect(isinstance(value, list), value, place, "a list")
        return [_value(item, arguments[0], place, depth + 1) for item in value]
    _expect(origin is dict and isinstance(value, dict), value, place, "a dictionary")
    is_key = _KEYS.get(place, _is_name)
    for name in value:
        _expect(is_key(name), name, place, "a plain name")
    return {name: _value(item, arguments[1], place, depth + 1) for name, item in value.items()}


def _union(value: Any, kind: type, place: str, depth: int) -> dict[str, Any]:
    hints = _hints(kind)
    _expect(isinstance(value, dict) and len(value) == 1, value, place, "one of several")
    ((name, inner),) = value.items()
    _expect(name in hints, name, place, "known to PyTorch")
    if name == "as_none":  # older files hold an empty list
        return {name: True}
    return {name: _value(inner, hints[name], f"{kind.__name__}.{name}", depth + 1)}


def _record(value: Any, kind: type, place: str, depth: int) -> dict[str, Any]:
    _expect(isinstance(value, dict), value, place, kind.__name__)
    if kind is schema.CustomObjArgument:
        raise RefusedError(f"an object of {shortened(str(value.get('class_fqn')))}")
    hints = _hints(kind)
    checked = {}
    for field in fields(kind):
        where = f"{kind.__name__}.{field.name}"
        if where in _LEFT_OUT:
            checked[field.name] = _LEFT_OUT[where]
        elif field.name in value:
            checked[field.name] = _value(value[field.name], hints[field.name], where, depth + 1)
        else:
            optional = (field.default, field.default_factory) != (MISSING, MISSING)
            _expect(optional, value, where, "there")
    rule = _RULES.get(kind)
    return rule(checked) if rule else checked


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, globalns=vars(schema))


def _leaf(value: Any, kind: Any, place: str) -> Any:
    if kind is str:
        _expect(isinstance(value, str), value, place, "text")
        return _TEXTS[place](value, place) if place in _TEXTS else _unknown_text(place)
    if kind is bool:
        _expect(isinstance(value, bool), value, place, "true or false")
    elif kind is float:
        is_number = isinstance(value, float) or type(value) is int
        is_number = is_number or (isinstance(value, str) and value in _NOT_FINITE)
        _expect(is_number, value, place, "a number")
    elif isinstance(kind, type) and issubclass(kind, enum.IntEnum):
        known = type(value) is int and value in {member.value for member in kind}
        _expect(known, value, place, "known to PyTorch")
    elif kind is int:
        _expect(type(value) is int and -(2**63) <= value < 2**63, value, place, "a whole number")
    else:
        raise SchemaError(f"{place} is of a kind that is not known here")
    return value


def _unknown_text(place: str) -> str:
    raise SchemaError(f"{place} is not known here: the file is of another PyTorch version")


def _expect(holds: bool, value: Any, place: str, what: str) -> None:
    if not holds:
        shown = repr(value) if isinstance(value, str | int | float) else type(value).__name__
        raise SchemaError(f"{place} must be {what}, and is {shortened(shown)}")


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None and text not in _NOT_FOR_NODES


def _is_path(text: str) -> bool:
    """Whether it can be a parameter's or buffer's name: nothing that every module has."""
    parts = text.split(".")
    return _PATH.fullmatch(text) is not None and not any(
        not part or part.startswith("__") or part in _MEMBERS for part in parts
    )


def _text_rule(holds: Callable[[str], bool], what: str) -> Callable[[str, str], str]:
    def rule(text: str, place: str) -> str:
        _expect(holds(text), text, place, what)
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
    _expect(version == 1, version, place, "of version 1")
    return json.dumps([1, _branch(tree, place, 0)])


def _branch(tree: Any, place: str, depth: int) -> dict[str, Any]:
    _expect(isinstance(tree, dict) and depth <= _MOST_DEPTH, tree, place, "a tree")
    kind, children = tree.get("type"), tree.get("children_spec")
    _expect(isinstance(children, list), children, place, "a tree")
    if kind is None:
        _expect(not children, children, place, "a leaf")
        return {"type": None, "context": None, "children_spec": []}
    if kind not in _TYPES_OF_TREES:
        raise RefusedError(f"a value of the type {shortened(str(kind))}")
    context = json.loads(tree.get("context"))
    if kind == "builtins.dict":
        named = isinstance(context, list) and all(
            isinstance(name, str) and _is_name(name) for name in context
        )
        _expect(named and len(context) == len(children), context, place, "a list of names")
    else:
        _expect(context is None, context, place, "empty")
    parts = [_branch(child, place, depth + 1) for child in children]
    return {"type": kind, "context": json.dumps(context), "children_spec": parts}


def _graph(graph: dict[str, Any]) -> dict[str, Any]:
    endless = grows_without_bound(graph["nodes"])
    if endless:
        raise SchemaError(f"{endless} makes sizes that grow without bound")
    return graph


def _on_the_cpu(device: dict[str, Any]) -> dict[str, Any]:
    """Programs of a GPU are read where there is none."""
    return {"type": "cpu", "index": None}


def _of_the_whole(module: dict[str, Any]) -> dict[str, Any]:
    """Keep the call of the whole; those of its parts serve to put them together again."""
    return {**module, "module_call_graph": module["module_call_graph"][:1]}


_A_NAME = _text_rule(_is_name, "a name that is free in Python")
_A_PATH = _text_rule(_is_path, "the name of a parameter or buffer")
_ANY_TEXT = _text_rule(
    lambda text: len(text) <= 10_000 and text.replace("\n", " ").isprintable(), "printable"
)

_TEXTS: dict[str, Callable[[str, str], str]] = {
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
    "ConstantValue.as_string": _text_rule(_is_name, "a plain word"),
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

_KEYS: dict[str, Callable[[str], bool]] = {
    "ExportedProgram.range_constraints": lambda text: SYMBOL.fullmatch(text) is not None,
    "PayloadConfig.config": _is_path,
}
"""What the keys of a dictionary may be, where they are not names of a graph."""

_LEFT_OUT: dict[str, Any] = {
    "Node.metadata": {},
    "GraphModule.metadata": {},
    "GraphModule.treespec_namedtuple_fields": {},
    "ExportedProgram.guards_code": [],
}

_RULES: dict[type, Callable[[dict[str, Any]], dict[str, Any]]] = {
    schema.Graph: _graph,
    schema.GraphModule: _of_the_whole,
    schema.Device: _on_the_cpu,
}
