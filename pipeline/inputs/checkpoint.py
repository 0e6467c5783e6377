"""Reading the tensors of a checkpoint file without running code that hides in it.

A `.safetensors` file holds tensors only. A `.pt` or `.pth` file is a pickle, read with PyTorch's
`weights_only`, which builds tensors and plain containers and nothing else. Anything that needs
more is refused unless the caller trusts the file.
"""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from mfac_compress.pipeline.errors import InputError, describe, in_brief
from mfac_compress.pipeline.inputs.archive import (
    ArchiveError,
    is_archive,
    open_archive,
    record_names,
)
from mfac_compress.pipeline.inputs.callables import user_code
from mfac_compress.pipeline.inputs.quiet import quiet_torch
from mfac_compress.pipeline.quoting import first_line

WAYS_OUT = (
    "Save the weights alone, with torch.save(model.state_dict(), 'model.pt') or "
    "safetensors.torch.save_file, or the program with torch.export.save. "
    "If you trust where the file comes from, --trust-pickle runs whatever is in it."
)

_ASKS_FOR_MEMORY = b"bytearray\n"
"""The one constructor that `weights_only` calls and that fills as much memory as a number says."""


def read_checkpoint(path: Path, content: bytes, *, trust_pickle: bool) -> Any:
    """Read what a checkpoint holds.

    Args:
        path: The file, for messages and its suffix.
        content: The file's bytes.
        trust_pickle: Allow a pickle to run code. Never for a file from elsewhere.
    Returns:
        Whatever was saved, its tensors on the CPU: a state dict, often within other dicts; or a
        whole module, where ``trust_pickle``.
    Raises:
        InputError: If the file is corrupt, or needs arbitrary unpickling and is not trusted.
    """
    if is_safetensors(path, content):
        try:
            return load_safetensors(content)
        except Exception as error:
            # Beside its own exceptions, KeyError and others for kinds of numbers it has no name of.
            raise InputError(
                f"{path} must be a safetensors file. It cannot be read "
                f"({in_brief(error)}). "
                "It may be cut off: copy or save it again."
            ) from error
    if is_archive(content):
        _check_archive(path, content)
    return _read_trusted(path, content) if trust_pickle else _read_weights(path, content)


def is_safetensors(path: Path, content: bytes) -> bool:
    """Whether a file is to be read as safetensors: by its suffix, or by how it begins."""
    begins = content[8:9] == b"{" and int.from_bytes(content[:8], "little") < len(content)
    return path.suffix == ".safetensors" or begins


def _check_archive(path: Path, content: bytes) -> None:
    if "constants.pkl" in record_names(content):
        raise InputError(
            f"{path} must hold weights or a program of torch.export. It is a TorchScript archive, "
            "whose layers cannot be pruned. Save the original model's state_dict "
            "(torch.save(model.state_dict(), 'model.pt'))."
        )
    try:
        open_archive(content)
    except ArchiveError as error:
        raise InputError(_corrupt(path, str(error))) from error


def _read_weights(path: Path, content: bytes) -> Any:
    if _ASKS_FOR_MEMORY in content:
        raise InputError(_corrupt(path, "it asks for an array of bytes"))
    try:
        with quiet_torch():
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.findall(r"GLOBAL (\S+)", str(error))
        if not refused:
            # PyTorch's own text advises weights_only=False here.
            raise InputError(_corrupt(path, "not a pickle of tensors")) from error
        names = ", ".join(sorted(_unsafe_globals(content) or set(refused))[:5])
        raise InputError(
            f"{path} must hold tensors only. It needs arbitrary unpickling ({names[:400]}), which "
            f"can run any code. {WAYS_OUT}"
        ) from error
    except Exception as error:
        # The reader's exceptions for damaged bytes are of many types, KeyError among them.
        raise InputError(_corrupt(path, in_brief(error))) from error
    _take_off_attributes(loaded)
    return loaded


def _take_off_attributes(loaded: Any) -> None:
    """Take the attributes off dicts and tensors, but for the versions of a model's modules.

    A pickle can give them any, also without code: one called ``items`` would hide the method.
    """
    waiting, seen = [loaded], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if type(part) in (OrderedDict, Tensor, nn.Parameter):
            attributes = vars(part)
            versions = attributes.get("_metadata")
            attributes.clear()
            if isinstance(versions, Mapping):
                part._metadata = versions
                waiting.append(versions)
        if isinstance(part, Mapping):
            waiting += part.values()
        elif isinstance(part, list | tuple | set):
            waiting += part


def _read_trusted(path: Path, content: bytes) -> Any:
    try:
        with quiet_torch(), user_code():
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)
    except (AttributeError, ImportError) as error:
        advice = "Put their folder on PYTHONPATH."
        if "__main__" in str(error):
            advice = (
                "They were defined in the script that was run: move them to a module, and save "
                "the model again from a script that imports it."
            )
        raise InputError(
            f"{path} must find the classes that were pickled. It raised {describe(error)}. {advice}"
        ) from error
    except Exception as error:
        raise InputError(_corrupt(path, describe(error))) from error


def _unsafe_globals(content: bytes) -> set[str]:
    if not is_archive(content):
        return set()
    try:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content)))
    except Exception:  # what was found before is enough to say
        return set()


def _corrupt(path: Path, reason: str) -> str:
    return (
        f"{path} must be a checkpoint that torch.load reads. It cannot be read "
        f"({first_line(reason)}). It may be cut off or of another format: copy or save it again."
    )
