"""From a checkpoint file and the recipe's ``model`` section to a module."""

import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.callables import (
    describe,
    resolve_callable,
    source_fingerprint,
    user_code,
)
from mfac_compress.pipeline.inputs.checkpoint import read_checkpoint
from mfac_compress.pipeline.inputs.exported_program import (
    is_exported_program,
    read_exported_program,
)
from mfac_compress.pipeline.recipe.schema import ModelSection

_FACTORY = "model.factory"
_PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and Lightning put before every name."""
_LISTED = 10


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to calibrate.

    Attributes:
        module: On the CPU, in evaluation mode, float32, every parameter with ``requires_grad``.
        fingerprint: SHA-256 in hex over the file, the factory's source and arguments, and the
            sources of the layers.
    """

    module: nn.Module
    fingerprint: str


def load_model(
    path: Path | str, section: ModelSection, *, folder: Path, trust_pickle: bool = False
) -> LoadedModel:
    """Load a checkpoint into the model that it belongs to.

    Args:
        path: A state dict (`.pt`, `.pth`, `.safetensors`), or a `.pt2` of torch.export.
        section: The recipe's ``model``.
        folder: Where relative paths of the recipe start: its folder.
        trust_pickle: Allow the file to run code. Never for a file from elsewhere.
    Returns:
        The model and its fingerprint.
    Raises:
        InputError: If the file is missing, damaged, refused, or does not fit the factory's model;
            if the factory is missing, superfluous or fails; if a weight is NaN or Inf.
    """
    path = Path(path)
    content = _read(path)
    if is_exported_program(path, content):
        loaded: nn.Module | dict[str, Tensor] = read_exported_program(
            path, content, trust_pickle=trust_pickle
        )
    else:
        loaded = read_checkpoint(path, content, trust_pickle=trust_pickle)
    if isinstance(loaded, nn.Module):
        _check_no_factory(path, section)
        module = loaded
    else:
        module = _build(path, section, folder)
        _fill(module, loaded, path, str(section.factory))
    module = module.cpu()
    set_training(module, False)
    _check_tensors(module, path)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    return LoadedModel(module, _fingerprint(content, section, folder, module))


def set_training(module: nn.Module, training: bool) -> None:
    """Switch a module to training or evaluation mode, where it can be switched.

    Args:
        module: Any model of :func:`load_model`. Programs of torch.export keep the mode they were
            exported in, which is always evaluation here.
        training: True for training mode.
    """
    try:
        module.train(training)
    except NotImplementedError:
        # The module of an exported program has no modes and says so this way.
        return


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise InputError(f"The model must be a file. Got the folder {path}.")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"The model must be a file that exists. Got {path}.") from error
    except OSError as error:
        raise InputError(f"The model must be a file that can be read. Got {error}.") from error
    if not content:
        raise InputError(f"{path} must hold a model. It is empty: save or copy it again.")
    return content


def _check_no_factory(path: Path, section: ModelSection) -> None:
    if section.factory is not None:
        raise InputError(
            f"{_FACTORY} must be left out, {path} brings its own model. Got {section.factory!r}."
        )


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


def _fill(module: nn.Module, weights: dict[str, Tensor], path: Path, factory: str) -> None:
    expected = module.state_dict()
    weights = _without_prefixes(weights, expected)
    misfits = [
        f"{name} (file {list(weights[name].shape)}, model {list(tensor.shape)})"
        for name, tensor in expected.items()
        if name in weights
        and isinstance(tensor, Tensor)
        and isinstance(weights[name], Tensor)
        and weights[name].shape != tensor.shape
    ]
    # PyTorch's own check knows what may be missing, such as batch-norm counters of old files.
    skipped = {misfit.split(" ", 1)[0] for misfit in misfits}
    fitting = {name: tensor for name, tensor in weights.items() if name not in skipped}
    try:
        result = module.load_state_dict(fitting, strict=False)
    except Exception as error:
        raise InputError(
            f"{path} must fit the model of {_FACTORY} {factory!r}. Loading raised "
            f"{type(error).__name__}: {error}."
        ) from error
    problems = {
        "missing in the file": [name for name in result.missing_keys if name not in skipped],
        "unknown to the model": list(result.unexpected_keys),
        "of another shape": misfits,
    }
    listed = [f"{len(found)} {what}: {_some(found)}" for what, found in problems.items() if found]
    if listed:
        raise InputError(
            f"{path} must fit the model of {_FACTORY} {factory!r}. " + "; ".join(listed) + ". "
            "Check the factory and model.kwargs."
        )


def _without_prefixes(weights: dict[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    known = set(expected)
    while weights and not known & weights.keys():
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in weights)), None)
        if prefix is None:
            break
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _check_tensors(module: nn.Module, path: Path) -> None:
    parameters = dict(module.named_parameters())
    if not parameters:
        raise InputError(f"{path} must hold a model with parameters. It has none to prune.")
    other = [f"{name} ({p.dtype})" for name, p in parameters.items() if p.dtype != torch.float32]
    if other:
        raise InputError(
            f"The model of {path} must have float32 parameters. Got {_some(other)}. "
            "Call .float() on it."
        )
    tensors = {**parameters, **dict(module.named_buffers())}
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise InputError(
            f"{path} must hold finite weights. NaN or Inf in {len(broken)}: {_some(broken)}. "
            "Take an earlier checkpoint."
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _fingerprint(content: bytes, section: ModelSection, folder: Path, module: nn.Module) -> str:
    digest = hashlib.sha256(hashlib.sha256(content).digest())
    if section.factory is not None:
        digest.update(source_fingerprint(section.factory, key=_FACTORY, folder=folder).encode())
        digest.update(json.dumps(section.kwargs, sort_keys=True, default=str).encode())
        for source in sorted(_layer_sources(module)):
            digest.update(source)
    return digest.hexdigest()


def _layer_sources(module: nn.Module) -> set[bytes]:
    """Hash the files that define the model's layers: the factory may import them from others."""
    names = {type(part).__module__ for part in module.modules()}
    files = {
        getattr(sys.modules.get(name), "__file__", None)
        for name in names
        if name.partition(".")[0] != "torch"
    }
    return {hashlib.sha256(Path(file).read_bytes()).digest() for file in files if file}
