"""Write an ONNX file, atomically and once it is checked."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from mfac_compress.export.external_data import data_path

MAX_BYTES_IN_ONE_FILE = 1_900_000_000
"""Bytes of tensors: a protobuf file is limited to 2 GiB, and the graph needs some of that."""
_MIN_BYTES_BESIDE = 1024


def replace_model(model: ir.Model, path: Path, check: Callable[[Path], object]) -> None:
    """Write and check a model in a temporary folder beside ``path``, then move it there.

    Args:
        model: Not changed.
        path: File, in a folder that exists. On failure it is not changed.
        check: Raises any exception if the model at the given path is not valid.
    Raises:
        ValueError: If ``path`` + ``.data`` belongs to something else.
    """
    data = data_path(path)
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        save(model, draft)
        check(draft)
        external = draft.with_name(data.name).is_file()
        if external:
            os.replace(draft.with_name(data.name), data)
        os.replace(draft, path)
    if not external:
        data.unlink(missing_ok=True)  # of a larger model that was here before


def save(model: ir.Model, path: Path) -> None:
    """Write a model, and its tensors to ``path`` + ``.data`` if one file would be too large."""
    large = sum(map(_bytes_of_tensors, model.graphs())) > MAX_BYTES_IN_ONE_FILE
    ir.save(
        model,
        path,
        format="protobuf",
        external_data=f"{path.name}.data" if large else None,
        size_threshold_bytes=_MIN_BYTES_BESIDE,
    )


def _bytes_of_tensors(graph: ir.Graph) -> int:
    """Return the size of a graph's tensors, without those of its subgraphs."""
    attributes = (attribute for node in graph for attribute in node.attributes.values())
    tensors = [each.value for each in attributes if each.type == ir.AttributeType.TENSOR]
    tensors += [value.const_value for value in graph.initializers.values()]
    return sum(tensor.nbytes for tensor in tensors)
