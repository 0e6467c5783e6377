"""Count the zeros of each pruned tensor in the exported ONNX file."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from torch import Tensor

from mfac_compress.export.passes import GATES, TRANSPOSED, torch_gates
from mfac_compress.export.session import load


@dataclass(frozen=True)
class TensorAudit:
    """Zeros of one pruned tensor, at the positions that its mask removes.

    A kept weight that happens to be zero is not counted.
    """

    name: str
    size: int
    """Number of weights."""
    mask_zeros: int
    """Weights that the mask removes."""
    onnx_zeros: int | None
    """How many of these are zero in the ONNX file. None: the tensor was not found."""
    negative_zeros: int | None
    """Negative zeros anywhere in the ONNX file's tensor. None: not found."""
    optimized_zeros: int | None
    """Removed weights that are zero after ONNX Runtime's optimisation. None: not found."""

    @property
    def intact(self) -> bool:
        """Whether every removed weight was found as zero in both places, and as +0 in the file.

        A tensor of which nothing was removed need not be found.
        """
        if self.mask_zeros == 0:
            return not self.negative_zeros
        found = (self.onnx_zeros, self.optimized_zeros)
        return found == (self.mask_zeros, self.mask_zeros) and self.negative_zeros == 0


def audit_zeros(path: str | os.PathLike[str], masks: Mapping[str, Tensor]) -> list[TensorAudit]:
    """Look for every removed weight in the ONNX file and in the graph that ONNX Runtime runs.

    A tensor is found by its name, or by the name that :func:`export_onnx` gives to a transpose or
    to the weights of a recurrent layer, or ONNX Runtime to a fused convolution.
    If an optimisation renamed it, it is the one unclaimed tensor of the mask's shape, transposed or
    not, that is zero exactly where the mask removes, provided that no other mask fits that tensor.
    Otherwise it is reported as not found, as is a renamed tensor that has lost even one zero.

    ONNX Runtime is run with its extended optimisations, in which batch norms and activations are
    fused into convolutions and constants are folded. The next level, layout optimisation, only
    permutes and pads the weights for the machine's vectors, so it makes no zero nonzero, but loses
    names and positions.

    Args:
        path: ONNX file.
        masks: Boolean mask per parameter name, True = kept. Shape of the parameter.
    Returns:
        One audit per mask, in their order.
    Raises:
        ValueError: If ONNX Runtime cannot load the file.
    """
    keep = {name: mask.cpu().numpy() for name, mask in masks.items()}
    with tempfile.TemporaryDirectory() as folder:
        optimized = _match(_initializers(_optimize(os.fspath(path), Path(folder))), keep)
    exported = _match(_initializers(Path(path)), keep)
    return [
        TensorAudit(
            name=name,
            size=mask.size,
            mask_zeros=int((~mask).sum()),
            onnx_zeros=_zeros(exported[name], mask),
            negative_zeros=_negative_zeros(exported[name]),
            optimized_zeros=_zeros(optimized[name], mask),
        )
        for name, mask in keep.items()
    ]


def _optimize(path: str, folder: Path) -> Path:
    """Write the graph that ONNX Runtime runs, with the tensor layout and names of the file."""
    optimized = folder / "optimized.onnx"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(optimized)
    # External data, because one file could exceed protobuf's 2 GiB.
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", "optimized.data"
    )
    load(path, options)
    return optimized


def _initializers(path: Path) -> dict[str, np.ndarray]:
    model = onnx.load(path)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        found |= _recurrent(name, array) or {name: array}
    return found


def _recurrent(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """Return the parameters in an initializer of a recurrent layer; none for another one."""
    for operator, suffix in GATES.items():
        names = name.removesuffix(suffix).split("+")
        if name.endswith(suffix) and array.ndim == 3 and len(array) == len(names):
            return dict(zip(names, torch_gates(array, operator), strict=True))
    return {}


def _match(
    tensors: Mapping[str, np.ndarray], keep: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray | None]:
    """Find each mask's tensor, transposed to the mask's shape; None if it is not certain."""
    found = {name: _by_name(tensors, name, mask.shape) for name, mask in keep.items()}
    claimed = {alias for name in keep for alias in _aliases(tensors, name)}
    others = {name: tensor for name, tensor in tensors.items() if name not in claimed}
    fits = {name: _by_zeros(others, keep[name]) for name in keep if found[name] is None}
    uses = Counter(other for fit in fits.values() for other in fit)
    for name, fit in fits.items():
        if len(fit) == 1 and all(uses[other] == 1 for other in fit):
            found[name] = next(iter(fit.values()))
    return found


def _aliases(tensors: Iterable[str], name: str) -> list[str]:
    """List the tensors that hold a parameter according to their names.

    ONNX Runtime's fusions of a convolution with a following operator add a prefix to the name.
    """
    fused = f"Fusion_W_{name}"
    return [
        alias for alias in tensors if alias in (name, name + TRANSPOSED) or alias.endswith(fused)
    ]


def _by_name(
    tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]
) -> np.ndarray | None:
    aliases = _aliases(tensors, name)
    if len(aliases) != 1:
        return None
    tensor = tensors[aliases[0]]
    tensor = tensor.T if aliases[0].endswith(TRANSPOSED) else tensor
    return tensor if tensor.shape == shape else None


def _by_zeros(tensors: Mapping[str, np.ndarray], mask: np.ndarray) -> dict[str, np.ndarray]:
    """Find the tensors that are zero exactly where the mask removes, transposed to its shape."""
    fits = {}
    for name, tensor in tensors.items():
        for turned in (tensor, tensor.T) if mask.ndim == 2 else (tensor,):
            if turned.shape == mask.shape and np.array_equal(turned != 0, mask):
                fits[name] = turned
    return fits


def _zeros(tensor: np.ndarray | None, mask: np.ndarray) -> int | None:
    return None if tensor is None else int((tensor[~mask] == 0).sum())


def _negative_zeros(tensor: np.ndarray | None) -> int | None:
    return None if tensor is None else int((np.signbit(tensor) & (tensor == 0)).sum())
