"""Reading the tensors of a checkpoint file without running code that hides in it.

A `.safetensors` file holds tensors only. A `.pt` or `.pth` file is a pickle, read with PyTorch's
`weights_only`, which builds tensors and plain containers and nothing else. Anything that needs
more is refused unless the caller trusts the file.
"""

import contextlib
import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.callables import describe

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts keep the weights in a checkpoint."""

WAYS_OUT = (
    "Save the weights alone, with torch.save(model.state_dict(), 'model.pt') or "
    "safetensors.torch.save_file, or the program with torch.export.save. "
    "If you trust where the file comes from, --trust-pickle runs whatever is in it."
)


def read_checkpoint(
    path: Path, content: bytes, *, trust_pickle: bool
) -> dict[str, Tensor] | nn.Module:
    """Read the weights of a checkpoint.

    Args:
        path: The file, for messages and its suffix.
        content: The file's bytes.
        trust_pickle: Allow a pickle to run code. Never for a file from elsewhere.
    Returns:
        The state dict, taken out of its wrapper; or, where ``trust_pickle``, the whole module that
        was pickled.
    Raises:
        InputError: If the file is corrupt, holds no state dict, or needs arbitrary unpickling and
            is not trusted.
    """
    if path.suffix == ".safetensors":
        try:
            return load_safetensors(content)
        except SafetensorError as error:
            raise InputError(
                f"{path} must be a safetensors file. It cannot be read: {error}. "
                "It may be cut off: copy or save it again."
            ) from error
    _refuse_torchscript(path, content)
    loaded = _read_trusted(path, content) if trust_pickle else _read_weights(path, content)
    return _unwrap(loaded, path)


def record_names(content: bytes) -> list[str]:
    """Names of the records in a PyTorch archive, without their top folder.

    Args:
        content: The file's bytes.
    Returns:
        The names; none where it is not a zip archive.
    """
    # A cut-off archive has lost the directory at its end: reading it says what is wrong.
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [name.split("/", 1)[-1] for name in archive.namelist()]
    return []


def _refuse_torchscript(path: Path, content: bytes) -> None:
    if "constants.pkl" in record_names(content):
        raise InputError(
            f"{path} must hold weights or a program of torch.export. It is a TorchScript archive, "
            "whose layers cannot be pruned. Save the original model's state_dict "
            "(torch.save(model.state_dict(), 'model.pt'))."
        )


def _read_weights(path: Path, content: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.findall(r"GLOBAL (\S+)", str(error))
        if not refused:
            raise InputError(_corrupt(path, error)) from error
        names = ", ".join(sorted(_unsafe_globals(content) or set(refused))[:5])
        raise InputError(
            f"{path} must hold tensors only. It needs arbitrary unpickling ({names}), which can "
            f"run any code. {WAYS_OUT}"
        ) from error
    except Exception as error:
        # The reader's exceptions for damaged bytes are of many types, KeyError among them.
        raise InputError(_corrupt(path, error)) from error


def _read_trusted(path: Path, content: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)
    except (AttributeError, ImportError) as error:
        raise InputError(
            f"{path} must find the classes that were pickled. It raised {describe(error)}. "
            "Put their folder on PYTHONPATH."
        ) from error
    except Exception as error:
        raise InputError(_corrupt(path, error)) from error


def _unsafe_globals(content: bytes) -> set[str]:
    if not record_names(content):
        return set()
    return set(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content)))


def _corrupt(path: Path, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
    if isinstance(error, pickle.UnpicklingError):
        reason = "not a pickle of tensors"  # torch's own text advises weights_only=False here
    return (
        f"{path} must be a checkpoint that torch.load reads. It cannot be read ({reason}). "
        "It may be cut off or of another format: copy or save it again."
    )


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor] | nn.Module:
    while isinstance(loaded, Mapping) and not _is_state_dict(loaded):
        inner = [key for key in WRAPPERS if isinstance(loaded.get(key), Mapping | nn.Module)]
        if len(inner) != 1:
            found = ", ".join(str(key) for key in list(loaded)[:10]) or "nothing"
            raise InputError(
                f"{path} must hold one state_dict, at the top or under one of "
                f"{', '.join(WRAPPERS)}. Got a dict with {found}. Save the state_dict alone."
            )
        loaded = loaded[inner[0]]
    if isinstance(loaded, nn.Module):
        return loaded
    if not isinstance(loaded, Mapping):
        raise InputError(
            f"{path} must hold a state_dict. Got {type(loaded).__name__}. Save model.state_dict()."
        )
    return dict(loaded)


def _is_state_dict(loaded: Mapping[Any, Any]) -> bool:
    # A module may keep `_extra_state` of any type among its tensors.
    return bool(loaded) and all(
        isinstance(key, str) and (isinstance(value, Tensor) or key.endswith("_extra_state"))
        for key, value in loaded.items()
    )
