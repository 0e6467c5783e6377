"""Reading a model saved by ``torch.export.save``: a `.pt2` file.

``torch.export.load`` evaluates, imports, unpickles and compiles much of what an archive says. So it
never sees an archive of unknown origin: the program's JSON and the tensors' descriptions are
checked and written anew (:mod:`mfac_compress.pipeline.inputs.program_schema`), and it is given a
fresh archive of these, the tensors' raw bytes, and nothing else.
"""

import copy
import inspect
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch._export.serde.serialize import deserialize_scalar_type
from torch.export import ExportedProgram
from torch.export.pt2_archive._package import PT2ArchiveWriter, load_pt2

from mfac_compress.pipeline.errors import InputError, in_brief
from mfac_compress.pipeline.inputs.archive import Archive, ArchiveError, open_archive, record_names
from mfac_compress.pipeline.inputs.callables import user_code
from mfac_compress.pipeline.inputs.program_schema import (
    RefusedError,
    SchemaError,
    checked_payloads,
    checked_program,
)
from mfac_compress.pipeline.inputs.quiet import quiet_torch
from mfac_compress.pipeline.quoting import first_line, listed, shortened

_MODEL = "models/model.json"
_TENSORS = {
    "data/weights/": "data/weights/model_weights_config.json",
    "data/constants/": "data/constants/model_constants_config.json",
}
_TENSOR = re.compile(r"data/(weights|constants)/(weight|tensor)_\d+", re.ASCII)
_SAMPLES = "data/sample_inputs/model.pt"
_HEADERS = {"archive_format": b"pt2", "byteorder": b"little"}
_IGNORED = ("extra/", ".data/", _SAMPLES, "archive_version", "version", ".format_version")
_IGNORED += (".storage_alignment",)
"""Records that are not needed, whatever they hold."""
_MOST_JSON_BYTES = 2**26
_MOST_EXPANDED_BYTES = 2**26
"""What tensors may be larger in memory than in the file: a stride of 0 repeats what is there."""
_STRIDED = 7

_TRAINING_ARGUMENT = {"aten.batch_norm.default": 5, "aten.dropout.default": 2}
"""Operators that behave differently in training, and the argument that says so."""


def is_exported_program(path: Path, content: bytes) -> bool:
    """Whether a file is to be read as a program of torch.export.

    Args:
        path: The file.
        content: Its bytes.
    Returns:
        True for the suffix `.pt2` and for an archive of that kind under another name.
    """
    return path.suffix == ".pt2" or "archive_format" in record_names(content)


def read_exported_program(path: Path, content: bytes, *, trust_pickle: bool) -> nn.Module:
    """Read an exported program as a module.

    Args:
        path: The file, for messages.
        content: Its bytes.
        trust_pickle: Hand the archive to PyTorch as it is, which may run code.
    Returns:
        The module. It keeps the mode it was exported in, and takes its arguments by position or
        by name, however it was exported.
    Raises:
        InputError: If the archive cannot be read, needs more than tensors and tensor operators and
            is not trusted, was exported in training mode or for one fixed batch size, or takes
            anything other than tensors.
    """
    if not trust_pickle:
        content = _written_anew(path, content)
    try:
        with quiet_torch(), user_code():
            program = _load(content, trust_pickle)
            _check_inputs(path, program)
            _check_mode(path, program)
            return _module_of(program)
    except InputError:
        raise
    except Exception as error:
        # Damage shows as anything from KeyError to RuntimeError in the deserializer.
        raise InputError(_unreadable(path, in_brief(error))) from error


def _load(content: bytes, trust_pickle: bool) -> ExportedProgram:
    if trust_pickle:
        return torch.export.load(io.BytesIO(content))
    # What torch.export.load comes to for such an archive; it would hide what went wrong.
    return load_pt2(io.BytesIO(content)).exported_programs["model"]


def _module_of(program: ExportedProgram) -> nn.Module:
    """The program's module, which takes arguments by name too, and keeps its hooks in copies."""
    module = program.module()
    by_position, _ = program.call_spec.in_spec.children()
    names = tuple(inspect.signature(module.forward).parameters)
    arguments = _Arguments(names, by_position.num_children)
    module.register_forward_pre_hook(arguments, prepend=True, with_kwargs=True)

    def keep_hooks(copied: nn.Module) -> None:
        for hooks in ("_forward_hooks", "_forward_hooks_with_kwargs"):
            setattr(copied, hooks, copy.copy(getattr(module, hooks)))

    module._register_deepcopy_hook(keep_hooks)
    return module


@dataclass(frozen=True)
class _Arguments:
    """Passes arguments by position or by name as they were when the program was exported."""

    names: tuple[str, ...]
    by_position: int

    def __call__(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        if given.keys() != set(self.names) or len(args) + len(kwargs) != len(given):
            return args, kwargs  # PyTorch says what is missing
        first, last = self.names[: self.by_position], self.names[self.by_position :]
        return tuple(given[name] for name in first), {name: given[name] for name in last}


def _written_anew(path: Path, content: bytes) -> bytes:
    """An archive with what was checked of this one.

    Raises:
        InputError: If it is damaged, or needs what could run code.
    """
    try:
        archive = open_archive(content)
        _check_records(archive)
        # The samples are empty: torch.export.load would unpickle them, and nothing needs them.
        records = {_MODEL: _json(checked_program(_read_json(archive, _MODEL))), _SAMPLES: b""}
        for folder, config in _TENSORS.items():
            described = checked_payloads(_read_json(archive, config))
            records |= _payloads(archive, folder, described)
            records[config] = _json(described)
    except RefusedError as error:
        raise InputError(_refused(path, error.what)) from error
    except (ArchiveError, SchemaError) as error:
        raise InputError(_unreadable(path, str(error))) from error
    return _packed(records)


def _check_records(archive: Archive) -> None:
    if "archive_format" not in archive.records:
        raise SchemaError("not an archive of torch.export, or an older format")
    present = [name for name in _HEADERS if name in archive.records]
    for name, content in archive.read(*present).items():
        if content.strip() != _HEADERS[name]:
            raise SchemaError(f"its {name} is {content[:80]!r}")
    known = {*_HEADERS, _MODEL, *_TENSORS.values()}
    for name in archive.records:
        is_known = name in known or name.startswith(_IGNORED) or _TENSOR.fullmatch(name)
        if not is_known:
            raise RefusedError(f"the record {shortened(name)!r}")


def _read_json(archive: Archive, name: str) -> bytes:
    content = archive.read(name)[name]
    if len(content) > _MOST_JSON_BYTES:
        raise SchemaError(f"{name} has {len(content):,} bytes")
    return content


def _payloads(archive: Archive, folder: str, described: dict[str, Any]) -> dict[str, bytes]:
    """The raw bytes of tensors, each checked to hold what is said of it."""
    payloads = described["config"]
    for name, payload in payloads.items():
        if payload["use_pickle"] or payload["tensor_meta"] is None:
            raise RefusedError(f"the pickled {shortened(name)!r}")
    records = archive.read(*{folder + payload["path_name"] for payload in payloads.values()})
    expanded = sum(
        _expanded_bytes(name, payload["tensor_meta"], len(records[folder + payload["path_name"]]))
        for name, payload in payloads.items()
    )
    if expanded > _MOST_EXPANDED_BYTES:
        raise SchemaError(f"its tensors are {expanded:,} bytes larger than their records")
    return records


def _expanded_bytes(name: str, meta: dict[str, Any], stored: int) -> int:
    """Bytes that a tensor has in memory beyond those of its record."""
    sizes, strides = list(_integers(meta["sizes"])), list(_integers(meta["strides"]))
    (offset,) = _integers([meta["storage_offset"]])
    if meta["layout"] != _STRIDED or len(sizes) != len(strides) or min([*sizes, *strides, 0]) < 0:
        raise SchemaError(f"{shortened(name)} must be a dense tensor")
    width = deserialize_scalar_type(meta["dtype"]).itemsize
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if prod(sizes) and not 0 <= offset <= last < stored // width:
        raise SchemaError(f"{shortened(name)} must lie within its record of {stored:,} bytes")
    return max(prod(sizes) * width - stored, 0)


def _integers(values: list[dict[str, Any]]) -> Iterator[int]:
    for value in values:
        if "as_int" not in value:
            raise SchemaError("the size of a stored tensor must be a number")
        yield value["as_int"]


def _packed(records: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with PT2ArchiveWriter(buffer) as writer:
        for name, content in records.items():
            writer.write_bytes(name, content)
    return buffer.getvalue()


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def _check_inputs(path: Path, program: ExportedProgram) -> None:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    inputs = program.graph_signature.user_inputs
    constant = [repr(given) for given in inputs if not isinstance(given, str)]
    if constant or not inputs:
        raise InputError(
            f"{path} must take tensors only. It takes {listed(constant) or 'nothing'}. Leave out "
            "other arguments in torch.export.export, or fix them in a wrapper of the model."
        )
    for name in inputs:
        shape = getattr(values[name], "shape", None)
        if not shape or isinstance(shape[0], int):
            raise InputError(
                f"{path} must take any batch size. It was exported for an input {name} of shape "
                f"{list(shape or [])}. Export with dynamic_shapes: {{0: torch.export.Dim('batch')}}"
                " for each input."
            )


def _check_mode(path: Path, program: ExportedProgram) -> None:
    training = [node.name for node in program.graph.nodes if _is_training(node)]
    if training:
        raise InputError(
            f"{path} must be exported in evaluation mode. Training behaviour is fixed in "
            f"{', '.join(training[:5])}. Call model.eval() before torch.export.export."
        )


def _is_training(node: fx.Node) -> bool:
    position = _TRAINING_ARGUMENT.get(str(node.target))
    return position is not None and len(node.args) > position and node.args[position] is True


def _refused(path: Path, what: str) -> str:
    return (
        f"{path} must hold tensors and a program of tensor operators only. It needs {what}, which "
        "could run any code (as arbitrary unpickling and native code can). Export the model "
        "without custom objects and operators, or save its state_dict and give model.factory. If "
        "you trust where the file comes from, --trust-pickle runs whatever is in it."
    )


def _unreadable(path: Path, reason: str) -> str:
    return (
        f"{path} must be a program saved by torch.export.save. It cannot be read "
        f"({first_line(reason)}). It may be cut off or of another PyTorch version: export it again."
    )
