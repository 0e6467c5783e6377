"""What the JSON of a program of torch.export may say.

PyTorch evaluates expressions in it, looks names up and imports them, and writes names into Python
code that it runs. So every value is checked against PyTorch's own schema of the format, every text
against what may stand in that place, and the JSON is written anew from what was understood: what
this module does not know is not in it. Notes that a graph can do without (stack traces, guards,
named tuples) are left out.
"""

import enum
import json
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any

from torch._export.serde import schema
from torch._export.serde.union import _Union

from mfac_compress.pipeline.errors import in_brief
from mfac_compress.pipeline.inputs.operators import grows_without_bound
from mfac_compress.pipeline.inputs.program_texts import (
    KEYS,
    MOST_DEPTH,
    TEXTS,
    RefusedError,
    SchemaError,
    expect,
    is_name,
)
from mfac_compress.pipeline.quoting import shortened

_NOT_FINITE = {"Infinity", "-Infinity", "NaN"}


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
        raise SchemaError(in_brief(error)) from error


def _value(value: Any, kind: Any, place: str, depth: int) -> Any:
    """Check a value against a type of the schema."""
    if depth > MOST_DEPTH:
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
        expect(isinstance(value, list), value, place, "a list")
        return [_value(item, arguments[0], place, depth + 1) for item in value]
    expect(origin is dict and isinstance(value, dict), value, place, "a dictionary")
    is_key = KEYS.get(place, is_name)
    for name in value:
        expect(is_key(name), name, place, "a plain name")
    return {name: _value(item, arguments[1], place, depth + 1) for name, item in value.items()}


def _union(value: Any, kind: type, place: str, depth: int) -> dict[str, Any]:
    hints = _hints(kind)
    expect(isinstance(value, dict) and len(value) == 1, value, place, "one of several")
    ((name, inner),) = value.items()
    expect(name in hints, name, place, "known to PyTorch")
    if name == "as_none":  # older files hold an empty list
        return {name: True}
    return {name: _value(inner, hints[name], f"{kind.__name__}.{name}", depth + 1)}


def _record(value: Any, kind: type, place: str, depth: int) -> dict[str, Any]:
    expect(isinstance(value, dict), value, place, kind.__name__)
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
            expect(optional, value, where, "there")
    rule = _RULES.get(kind)
    return rule(checked) if rule else checked


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, globalns=vars(schema))


def _leaf(value: Any, kind: Any, place: str) -> Any:
    if kind is str:
        expect(isinstance(value, str), value, place, "text")
        return TEXTS[place](value, place) if place in TEXTS else _unknown_text(place)
    if kind is bool:
        expect(isinstance(value, bool), value, place, "true or false")
    elif kind is float:
        is_number = isinstance(value, float) or type(value) is int
        is_number = is_number or (isinstance(value, str) and value in _NOT_FINITE)
        expect(is_number, value, place, "a number")
    elif isinstance(kind, type) and issubclass(kind, enum.IntEnum):
        known = type(value) is int and value in {member.value for member in kind}
        expect(known, value, place, "known to PyTorch")
    elif kind is int:
        expect(type(value) is int and -(2**63) <= value < 2**63, value, place, "a whole number")
    else:
        raise SchemaError(f"{place} is of a kind that is not known here")
    return value


def _unknown_text(place: str) -> str:
    raise SchemaError(f"{place} is not known here: the file is of another PyTorch version")


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
