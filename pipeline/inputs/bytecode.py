"""A digest of what a module without a file defines, such as the ``__main__`` of a notebook."""

import hashlib
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_CONTAINERS = (tuple, list, set, frozenset, dict)


def definitions_digest(module: ModuleType) -> tuple[str, list[str]]:
    """Hash the functions and classes that a module defines, and the values that they refer to.

    Args:
        module: In memory.
    Returns:
        SHA-256 in hex, and the names that functions refer to and whose value cannot be hashed.
    """
    walk = _Walk(module.__name__)
    for name, value in sorted(vars(module).items()):
        if getattr(value, "__module__", None) == module.__name__:
            walk.definition(name, value)
    return walk.digest.hexdigest(), sorted(walk.unseen)


class _Walk:
    """One pass over a module's definitions."""

    def __init__(self, module: str) -> None:
        self.digest = hashlib.sha256()
        self.unseen: set[str] = set()
        self._module = module
        self._done: set[int] = set()

    def definition(self, name: str, value: Any) -> None:
        """Add a function or a class."""
        self._add(name)
        if id(value) in self._done:
            return
        self._done.add(id(value))
        if isinstance(value, FunctionType):
            self._function(name, value)
        elif isinstance(value, type):
            for attribute, member in sorted(vars(value).items(), key=lambda item: item[0]):
                self._member(f"{name}.{attribute}", member)

    def _member(self, name: str, member: Any) -> None:
        parts = [member]
        if isinstance(member, staticmethod | classmethod):
            parts = [member.__func__]
        elif isinstance(member, property):
            parts = [member.fget, member.fset, member.fdel]
        for part in parts:
            if isinstance(part, FunctionType | type):
                self.definition(name, part)
            elif isinstance(part, (*_PLAIN, *_CONTAINERS)):
                self._value(name, part)

    def _function(self, name: str, function: FunctionType) -> None:
        self._code(function.__code__)
        self._value(name, function.__defaults__)
        self._value(name, function.__kwdefaults__)
        for cell in function.__closure__ or ():
            self._reference(name, cell.cell_contents)
        for used in sorted(set(_names(function.__code__))):
            if used in function.__globals__:
                self._reference(used, function.__globals__[used])

    def _reference(self, name: str, value: Any) -> None:
        """Add what a function refers to; modules and what they define are hashed as files."""
        if isinstance(value, ModuleType):
            return
        if isinstance(value, FunctionType | type):
            if value.__module__ == self._module:
                self.definition(name, value)
        elif getattr(value, "__module__", None) is None or isinstance(value, Tensor):
            self._value(name, value)
        elif not callable(value):
            self.unseen.add(name)

    def _value(self, name: str, value: Any) -> None:
        self._add(name, type(value).__name__)
        if isinstance(value, Tensor):
            value = value.detach().cpu().numpy()
        if isinstance(value, np.ndarray):
            self._add(value.dtype.str, str(value.shape), value.tobytes())
        elif isinstance(value, _PLAIN):
            self._add(repr(value))
        elif isinstance(value, dict):
            for key, part in value.items():
                self._value(repr(key), part)
        elif isinstance(value, set | frozenset):
            self._add(*sorted(map(repr, value)))
        elif isinstance(value, tuple | list):
            for part in value:
                self._value(name, part)
        elif not isinstance(value, ModuleType | FunctionType | type):
            self.unseen.add(name)

    def _code(self, code: CodeType) -> None:
        self._add(code.co_code, *code.co_names, *code.co_varnames, str(code.co_argcount))
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._code(constant)
            else:
                self._add(repr(constant))

    def _add(self, *parts: str | bytes) -> None:
        for part in parts:
            self.digest.update(part.encode() if isinstance(part, str) else part)
            self.digest.update(b"\0")


def _names(code: CodeType) -> Iterator[str]:
    """Global names that a function and those within it may use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
