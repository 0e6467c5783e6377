"""From a checkpoint file and the recipe's ``model`` section to a module."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mfac_compress.export.sparse.limits import check_file
from mfac_compress.pipeline.digest import content_key
from mfac_compress.pipeline.errors import InputError, describe
from mfac_compress.pipeline.files import check_regular
from mfac_compress.pipeline.inputs.callables import resolve_callable, user_code
from mfac_compress.pipeline.inputs.checkpoint import is_safetensors, read_checkpoint
from mfac_compress.pipeline.inputs.chosen_weights import choose_weights
from mfac_compress.pipeline.inputs.exported_program import (
    is_exported_program,
    read_exported_program,
)
from mfac_compress.pipeline.inputs.fit import fit
from mfac_compress.pipeline.inputs.foreign_files import foreign_kind, is_onnx
from mfac_compress.pipeline.inputs.huggingface import load_folder
from mfac_compress.pipeline.inputs.model import Model
from mfac_compress.pipeline.inputs.onnx_model import OnnxModel, read_onnx
from mfac_compress.pipeline.inputs.traced_model import TracedModel
from mfac_compress.pipeline.quoting import listed, printable
from mfac_compress.pipeline.recipe.schema import ModelSection
from mfac_compress.pipeline.weights import not_finite

_FACTORY = "model.factory"
_Origin = dict[str, Any]


def load_model(
    path: Path | str, section: ModelSection, *, folder: Path, trust_pickle: bool = False
) -> Model:
    """Load a checkpoint into the model that it belongs to.

    Args:
        path: A state dict (`.pt`, `.pth`, `.safetensors`), a `.pt2` of torch.export, an ONNX file,
            or a folder of transformers.
        section: The recipe's ``model``.
        folder: Where relative paths of the recipe start: its folder.
        trust_pickle: Allow the file to run code. Never for a file from elsewhere.
    Returns:
        The model, on the CPU, in evaluation mode. Its parameters are float32 and keep their
        ``requires_grad``. The factory's code is not in its digest: see
        :class:`~mfac_compress.pipeline.inputs.code_sources.CodeSources`.
    Raises:
        InputError: If the file is missing, damaged, refused, or does not fit the factory's model;
            if the factory is missing, superfluous or fails; if a weight is NaN or Inf.
    """
    try:
        return _load(Path(path), section, folder, trust_pickle)
    except InputError as error:
        # Names in a file may hold what a terminal obeys.
        text = str(error).replace("\n", " ").replace("\t", " ")
        raise InputError(printable(text)) from error


def _load(path: Path, section: ModelSection, folder: Path, trust_pickle: bool) -> Model:
    if os.path.isdir(path):  # Path.is_dir() raises on some names
        loaded = load_folder(path, section)
        origin = {**_origin(), "transformers": loaded.version}
        return _checked(path, section, loaded.module, loaded.content, origin, loaded.heads)
    content = read_file(path, or_onnx=True)
    _check_left_out(path, section, "task")
    if is_onnx(path, content):
        return _load_onnx(path, content, section)
    load = _load_program if is_exported_program(path, content) else _load_checkpoint
    module, origin = load(path, content, section, folder, trust_pickle)
    return _checked(path, section, module, hashlib.sha256(content).hexdigest(), origin)


def _checked(
    path: Path,
    section: ModelSection,
    module: nn.Module,
    content: str,
    origin: _Origin,
    heads: frozenset[str] = frozenset(),
) -> Model:
    _check_plain(module, path)
    module = module.cpu()
    set_training(module, False)
    _check_tensors(module, path)
    return TracedModel(module, _digest(content, section, module), origin, heads=heads)


def _load_onnx(path: Path, content: bytes, section: ModelSection) -> OnnxModel:
    _check_left_out(path, section, "factory", "weights", "prefix")
    source, converted = read_onnx(path, content, section.output)
    module = converted.module
    _check_tensors(module, path)
    file = {"model": hashlib.sha256(content).hexdigest(), "external": dict(source.external)}
    digest = _digest(content_key(file), section, module)
    return OnnxModel(module, digest, source, converted, _origin())


def _load_program(
    path: Path, content: bytes, section: ModelSection, _folder: Path, trust_pickle: bool
) -> tuple[nn.Module, _Origin]:
    module = read_exported_program(path, content, trust_pickle=trust_pickle)
    _check_left_out(path, section, "factory", "weights", "prefix")
    return module, _origin()


def _load_checkpoint(
    path: Path, content: bytes, section: ModelSection, folder: Path, trust_pickle: bool
) -> tuple[nn.Module, _Origin]:
    loaded = read_checkpoint(path, content, trust_pickle=trust_pickle)
    if is_safetensors(path, content):
        _check_left_out(path, section, "weights")
    chosen = choose_weights(loaded, section.weights, path)
    if isinstance(chosen.weights, nn.Module):
        _check_left_out(path, section, "factory", "prefix")
        return chosen.weights, _origin(chosen.key)
    module = _build(path, section, folder)
    fitted = fit(module, chosen.weights, path, str(section.factory), section.prefix)
    return module, _origin(chosen.key, fitted.prefix)


def _origin(key: str | None = None, prefix: str = "") -> _Origin:
    """Where the weights stood in the file, and what was taken off their names (+: put before)."""
    return {"model_weights": key, "model_prefix": prefix}


def set_training(module: nn.Module, training: bool) -> None:
    """Switch a module to training or evaluation mode, where it can be switched.

    Args:
        module: Any. Programs of torch.export keep the mode they were
            exported in, which is always evaluation here.
        training: True for training mode.
    """
    try:
        module.train(training)
    except NotImplementedError:
        # The module of an exported program has no modes and says so this way.
        return


def read_file(path: Path, *, or_onnx: bool = False) -> bytes:
    """Read a checkpoint's bytes.

    Args:
        path: The file.
        or_onnx: Whether it may be an ONNX file.
    Returns:
        What it holds.
    Raises:
        InputError: If there is none, it cannot be read, or it is known to be something else.
    """
    try:
        check_regular(path, "The model")
        if is_onnx(path, b""):
            check_file(path)  # which says how large one can be
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"The model must be a file that exists. Got {path}.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"The model must be a file that can be read. Got {error}.") from error
    if not content:
        raise InputError(f"{path} must hold a model. It is empty: save or copy it again.")
    foreign = foreign_kind(path, content)
    if foreign and not (or_onnx and is_onnx(path, content)):
        raise InputError(
            f"The model must be a checkpoint of PyTorch (.pt, .pth or .safetensors, with "
            f"{_FACTORY} in the recipe), a program of torch.export (.pt2), an ONNX file, or a "
            f"folder of transformers (config.json, model.safetensors). {path} is {foreign}."
        )
    return content


def _check_left_out(path: Path, section: ModelSection, *keys: str) -> None:
    """Check that the recipe does not say what only other files need.

    Raises:
        InputError: If it does.
    """
    reasons = {
        "task": "is no folder of transformers",
        "factory": "brings its own model",
        "weights": "holds one set of weights",
        "prefix": "brings its own names",
    }
    for key in keys:
        value = getattr(section, key)
        if value is not None:
            raise InputError(f"model.{key} must be left out, {path} {reasons[key]}. Got {value!r}.")


def _build(path: Path, section: ModelSection, folder: Path) -> nn.Module:
    if section.factory is None:
        raise InputError(
            f"{_FACTORY} must be given: {path} holds weights only. "
            "Write package.module:callable or path/to/file.py:callable, which returns the model."
        )
    factory = resolve_callable(section.factory, key=_FACTORY, folder=folder)
    try:
        with user_code():
            module = factory(**section.kwargs)
    except Exception as error:
        raise InputError(
            f"{_FACTORY} must build the model from model.kwargs. {section.factory!r} with "
            f"{section.kwargs} raised {describe(error)}."
        ) from error
    if not isinstance(module, nn.Module):
        raise InputError(
            f"{_FACTORY} must return an nn.Module. {section.factory!r} returned a "
            f"{type(module).__name__}."
        )
    return module


def _check_tensors(module: nn.Module, path: Path) -> None:
    parameters = dict(module.named_parameters())
    if not parameters:
        raise InputError(f"{path} must hold a model with parameters. It has none to prune.")
    empty = [name for name, parameter in parameters.items() if is_lazy(parameter)]
    if empty:
        raise InputError(
            f"The model of {path} must have parameters of known shapes. These are lazy, and the "
            f"file does not have them: {listed(empty)}."
        )
    other = {name: p for name, p in parameters.items() if p.dtype != torch.float32}
    if other:
        found = listed([f"{name} ({parameter.dtype})" for name, parameter in other.items()])
        advice = "Call .float() on the model."
        if not all(parameter.is_floating_point() for parameter in other.values()):
            advice = "What is not trained is no parameter: register it as a buffer."
        raise InputError(f"The model of {path} must have float32 parameters. Got {found}. {advice}")
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise InputError(
            f"The model of {path} must have parameters that can be trained. All "
            f"{len(parameters)} are frozen (requires_grad is False): call requires_grad_(True) on "
            "those to be pruned."
        )
    broken = not_finite(module)
    if broken:
        raise InputError(
            f"{path} must hold finite weights. NaN or Inf in {len(broken)}: {listed(broken)}. "
            "Take an earlier checkpoint."
        )


def _check_plain(module: nn.Module, path: Path) -> None:
    tensors = (*module.named_parameters(), *module.named_buffers())
    special = [name for name, tensor in tensors if not _is_plain(tensor)]
    if special:
        raise InputError(
            f"The model of {path} must have plain dense tensors with values. These are sparse, "
            f"nested, quantised or on the meta device: {listed(special)}. Let model.factory make "
            "them dense."
        )


def _is_plain(tensor: Tensor) -> bool:
    special = tensor.is_nested or tensor.is_quantized or tensor.is_meta
    return tensor.layout == torch.strided and not special


def _digest(content: str, section: ModelSection, module: nn.Module) -> str:
    """Of the hash of the file, of what the recipe says of it, and of the tensors that came of both.

    A factory may make tensors that no file holds: buffers that are not saved, from a random number
    or from what it finds on the machine.
    """
    asked = section.model_dump(mode="json")
    tensors = tensors_digest((*module.named_parameters(), *module.named_buffers()))
    return content_key({"file": content, "tensors": tensors, **asked})


def tensors_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 in hex of tensors on the CPU, with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(_bytes(tensor.detach()))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> np.ndarray:
    values = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return values.contiguous().flatten().view(torch.uint8).numpy()
