"""Where a stage is when it can go on later: trees of tensors and plain values in a folder.

Tensors go to safetensors, everything else into the manifest of an artefact like a stage's own: it
holds the key of the stage, the digest of every file, and those of the user's code that was loaded
by then. A checkpoint of which any of these is another one now is as good as none. The newest
replaces the one before it when it is whole.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mfac_compress.pipeline.digest import content_key
from mfac_compress.pipeline.inputs.code_sources import CodeSources
from mfac_compress.pipeline.run.artefact import RejectedError, complete, verified
from mfac_compress.pipeline.run.pool import remove

_STAGE = "checkpoint"
_TENSORS = "tensors.safetensors"


class Checkpoints:
    """The newest checkpoint of a stage that is not finished.

    Args:
        folder: Its own; made when first needed.
        key: Hash of all that the stage's result depends on.
        code: The user's code as it was loaded before the stages.

    Attributes:
        rejected: Why checkpoints that were found could not be used; empty where there were none.
    """

    def __init__(self, folder: Path, key: str = "", code: CodeSources | None = None) -> None:
        self._folder = folder
        self._key = content_key({"checkpoint": key})
        self._code = code or CodeSources()
        self._earlier: dict[str, str] = {}
        self.rejected = ""

    @property
    def code(self) -> dict[str, str]:
        """Files that the stage's work depends on beside its key, as an artefact notes them.

        Those of the process that wrote the checkpoint are among them, also where this one has not
        loaded them.
        """
        return {**self._earlier, **self._code.since()}

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
        complete(work, _STAGE, self._key, {"tree": tree}, self.code)
        place = self._folder / f"{number:06d}"
        remove(place)
        os.rename(work, place)
        for other in self._folder.iterdir():
            if other != place:
                remove(other)

    def load(self) -> dict[str, Any] | None:
        """Read the newest checkpoint that is as it was written, of this stage and this code.

        Returns:
            Its content; None where there is none.
        """
        for place in sorted(self._folder.glob("[0-9]*"), reverse=True):
            try:
                found = verified(place, self._key)
            except RejectedError as error:
                self.rejected = str(error)
                continue
            self._earlier = found.code
            return _decoded(found.facts["tree"], load_file(place / _TENSORS))
        remove(self._folder)
        return None


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
