"""Reading a model saved by ``torch.export.save``: a `.pt2` file.

``torch.export.load`` unpickles some parts of some archives and loads compiled libraries from
others. Those archives are refused here before it sees them. What is left is JSON and raw tensors;
PyTorch still says to load no program from a source that is not trusted.
"""

import io
import json
import pickle
import zipfile
from pathlib import Path

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.checkpoint import record_names

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
        trust_pickle: Allow parts of the archive to run code when loaded.
    Returns:
        The module. It keeps the mode it was exported in and takes one tensor.
    Raises:
        InputError: If the archive cannot be read, needs arbitrary unpickling and is not trusted,
            was exported in training mode or for one fixed batch size, or takes not one input.
    """
    if not trust_pickle:
        _refuse_pickles(path, content)
    try:
        program = torch.export.load(io.BytesIO(content))
    except Exception as error:
        # Damage shows as anything from KeyError to RuntimeError in the deserializer.
        raise InputError(_unreadable(path, f"{type(error).__name__}: {error}")) from error
    _check_input(path, program)
    _check_mode(path, program)
    return program.module()


def _refuse_pickles(path: Path, content: bytes) -> None:
    names = record_names(content)
    if "archive_format" not in names:
        raise InputError(_unreadable(path, "not an archive of torch.export, or an older format"))
    refused = {name for name in names if name.startswith("data/aotinductor/")}
    # PyTorch's reader and zipfile could disagree about which of two records of a name counts.
    refused |= {name for name in names if names.count(name) > 1}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.namelist():
            name = entry.split("/", 1)[-1]
            if name.endswith("_config.json") and name.startswith("data/"):
                refused |= _pickled_payloads(path, archive.read(entry))
            elif name.endswith(".pt") and not _is_tensors_only(archive.read(entry)):
                refused.add(name)
    if refused:
        raise InputError(
            f"{path} must hold tensors and a program only. It needs arbitrary unpickling or native "
            f"code for {', '.join(sorted(refused)[:5])}, which can run any code. Export the model "
            "without custom objects, or save its state_dict and give model.factory. If you trust "
            "where the file comes from, --trust-pickle runs whatever is in it."
        )


def _pickled_payloads(path: Path, config: bytes) -> set[str]:
    try:
        payloads = json.loads(config)["config"].items()
        return {
            name
            for name, payload in payloads
            if payload["use_pickle"] or not payload["path_name"].startswith(("weight_", "tensor_"))
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(_unreadable(path, f"{type(error).__name__}: {error}")) from error


def _is_tensors_only(content: bytes) -> bool:
    if not content:
        return True
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError):
        return False
    return True


def _check_input(path: Path, program: ExportedProgram) -> None:
    inputs = program.graph_signature.user_inputs
    if len(inputs) != 1:
        raise InputError(
            f"{path} must take one tensor. It takes {len(inputs)} inputs ({', '.join(inputs)}). "
            "Wrap the model before torch.export."
        )
    node = next(node for node in program.graph.nodes if node.name == inputs[0])
    shape = getattr(node.meta.get("val"), "shape", None)
    if not shape or isinstance(shape[0], int):
        raise InputError(
            f"{path} must take any batch size. It was exported for an input of shape "
            f"{list(shape or [])}. Export with dynamic_shapes=({{0: torch.export.Dim('batch')}},)."
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


def _unreadable(path: Path, reason: str) -> str:
    return (
        f"{path} must be a program saved by torch.export.save. It cannot be read ({reason}). "
        "It may be cut off or of another PyTorch version: export it again."
    )
