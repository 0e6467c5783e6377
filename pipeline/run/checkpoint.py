"""Where a stage is when it can go on later: trees of tensors and plain values in a folder.

Tensors go to safetensors, everything else to JSON. The newest checkpoint replaces the one before it
when it is whole, and its digests are checked when it is read.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mfac_compress.pipeline.digest import content_key, file_digest
from mfac_compress.pipeline.run.pool import remove

_TENSORS, _REST = "tensors.safetensors", "checkpoint.json"


class Checkpoints:
    """The newest checkpoint of a stage that is not finished.

    Args:
        folder: Its own; made when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, number: int, content: Mapping[str, Any]) -> None:
        """Replace the checkpoint.

        Args:
            number: Higher than of the one before.
            content: A tree of dicts, lists and tuples of tensors and plain values.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".writing-", dir=self._folder))
        tensors: dict[str, Tensor] = {}
        tree = _encoded(content, tensors)
        save_file(tensors, work / _TENSORS)
        rest = {"tree": tree, "tensors": file_digest(work / _TENSORS)}
        text = json.dumps({**rest, "digest": content_key(rest)})
        (work / _REST).write_text(text, encoding="utf-8")
        place = self._folder / f"{number:06d}"
        remove(place)
        os.rename(work, place)
        for other in self._folder.iterdir():
            if other != place:
                remove(other)

    def load(self) -> dict[str, Any] | None:
        """Read the newest checkpoint that is as it was written; None where there is none."""
        for place in sorted(self._folder.glob("[0-9]*"), reverse=True):
            content = _read(place)
            if content is not None:
                return content
        remove(self._folder)
        return None


def _read(place: Path) -> dict[str, Any] | None:
    try:
        rest = json.loads((place / _REST).read_text(encoding="utf-8"))
        digest = rest.pop("digest")
        if digest != content_key(rest) or rest["tensors"] != file_digest(place / _TENSORS):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return _decoded(rest["tree"], load_file(place / _TENSORS))


def _encoded(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """A tree as plain JSON, its tensors put into ``tensors`` by the names that it holds."""
    if isinstance(tree, Tensor):
        name = str(len(tensors))
        tensors[name] = tree.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(tree, Mapping):
        return {"dict": [[key, _encoded(part, tensors)] for key, part in tree.items()]}
    if isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [_encoded(part, tensors) for part in tree]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"A checkpoint must hold tensors and plain values. Got {type(tree).__name__}.")


def _decoded(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, parts),) = tree.items()
    if kind == "tensor":
        return tensors[parts]
    if kind == "dict":
        return {key: _decoded(part, tensors) for key, part in parts}
    values = [_decoded(part, tensors) for part in parts]
    return values if kind == "list" else tuple(values)
