"""Count the zeros of each pruned tensor in exported ONNX files."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
from torch import Tensor

from mfac_compress.export.dead_channels.removal import Kept
from mfac_compress.export.passes import GATES, TRANSPOSED, torch_gates
from mfac_compress.export.quantised_weights import quantised_weights
from mfac_compress.export.session import load
from mfac_compress.export.sparse.read_back import packed_weights
from mfac_compress.export.variant import Variant


@dataclass(frozen=True)
class TensorAudit:
    """Zeros of one pruned tensor, at the positions that its mask removes.

    A kept weight that happens to be zero is not counted.
    """

    name: str
    """Name of the parameter in the model."""
    size: int
    """Number of weights."""
    mask_zeros: int
    """Weights that the mask removes."""
    onnx_zeros: int | None
    """How many of these are zero in the ONNX file, or cut out of it. None: the tensor was not
    found."""
    negative_zeros: int | None
    """Negative zeros anywhere in the ONNX file's tensor. None: not found."""
    optimized_zeros: int | None
    """The same after ONNX Runtime's optimisation. None: not found."""
    cut: int
    """Removed weights that are not in the ONNX file at all, since a channel of theirs was dead."""
    intact: bool
    """Whether every removed weight was cut, or found as zero in both places, and as +0 in the file.
    A tensor of whose weights in the file none is removed need not be found."""


def audit_zeros(
    variants: Sequence[Variant],
    masks: Mapping[str, Tensor],
    kept: Kept | None = None,
    stored: Mapping[str, tuple[str, bool]] | None = None,
) -> dict[str, tuple[TensorAudit, ...]]:
    """Look for every removed weight in ONNX files and in the graphs that ONNX Runtime runs.

    A tensor is found by its name, or by the name that :func:`export_onnx` gives to a transpose or
    to the weights of a recurrent layer, or ONNX Runtime to a fused convolution. The weight of a
    sparse operator is unpacked, and found as the layer's in the file that it was made from. A
    weight in 8 bits is zero where it equals its zero point.
    If an optimisation renamed it, it is the one unclaimed tensor of the mask's shape, transposed or
    not, that is zero exactly where the mask removes, provided that no other mask fits that tensor.
    Otherwise it is reported as not found, as is a renamed tensor that has lost even one zero.

    ONNX Runtime is run with its extended optimisations, in which batch norms and activations are
    fused into convolutions and constants are folded. The next level, layout optimisation, only
    permutes and pads the weights for the machine's vectors, so it makes no zero nonzero, but loses
    names and positions.

    Args:
        variants: The files, and those they were made from.
        masks: Boolean mask per parameter name, True = kept. Shape of the parameter.
        kept: What :func:`shrink_file` left of the tensors in these files.
        stored: Under which name, and whether transposed, the files have a parameter, where it is
            not its own name.
    Returns:
        By variant, one audit per mask, in their order.
    Raises:
        ValueError: If ONNX Runtime cannot load a file.
    """
    places = {name: (stored or {}).get(name, (name, False)) for name in masks}
    keep = {}
    for name, (in_file, turned) in places.items():
        mask = masks[name].cpu().numpy()
        keep[in_file] = mask.T if turned else mask
    left = {name: _left(name, mask, kept or {}) for name, mask in keep.items()}
    paths = {variant.name: variant.path for variant in variants}
    audits = {each.name: _audit(each, paths.get(each.made_from), keep, left) for each in variants}
    return {
        variant: tuple(replace(a, name=name) for a, name in zip(audit, places, strict=True))
        for variant, audit in audits.items()
    }


def _left(name: str, mask: np.ndarray, kept: Kept) -> np.ndarray:
    """Cut a mask as the file's tensor was."""
    transposed = kept.get(name + TRANSPOSED)
    for axis, places in enumerate(transposed[::-1] if transposed else kept.get(name, ())):
        if places is not None:
            mask = np.take(mask, places, axis=axis)
    return mask


def removed_zeros(audit: Sequence[TensorAudit]) -> int | None:
    """Return how many removed weights are zero in the file. None: a tensor was not found."""
    counts = [tensor.onnx_zeros for tensor in audit]
    return None if not counts or None in counts else sum(filter(None, counts))


def _audit(
    variant: Variant,
    source_path: Path | None,
    keep: Mapping[str, np.ndarray],
    left: Mapping[str, np.ndarray],
) -> tuple[TensorAudit, ...]:
    source = ir.load(source_path) if source_path else None
    with tempfile.TemporaryDirectory() as folder:
        optimized = _optimize(variant, Path(folder))
        in_file, in_runtime = (
            _match(_weights(ir.load(path), source), left) for path in (variant.path, optimized)
        )
        return tuple(
            _audit_tensor(name, mask, left[name], in_file[name], in_runtime[name])
            for name, mask in keep.items()
        )


def _audit_tensor(
    name: str,
    mask: np.ndarray,
    left: np.ndarray,
    in_file: np.ndarray | None,
    in_runtime: np.ndarray | None,
) -> TensorAudit:
    removed, to_find = int((~mask).sum()), int((~left).sum())
    cut = removed - to_find
    negative, zeros = _negative_zeros(in_file), (_zeros(in_file, left), _zeros(in_runtime, left))
    found = zeros == (to_find, to_find) and negative == 0
    intact = found if to_find else not negative
    in_places = (None if count is None else count + cut for count in zeros)
    return TensorAudit(
        name, mask.size, removed, next(in_places), negative, next(in_places), cut, intact
    )


def _optimize(variant: Variant, folder: Path) -> Path:
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
    if variant.library is not None:
        options.register_custom_ops_library(os.fspath(variant.library))
    load(os.fspath(variant.path), options)
    return optimized


def _weights(model: ir.Model, source: ir.Model | None) -> dict[str, np.ndarray]:
    """Return the initializers by name, and other weights by that of the parameter they hold."""
    values = model.graph.initializers.items()
    named = [(name, value.const_value.numpy()) for name, value in values]
    found: dict[str, np.ndarray] = {}
    in_8_bits = quantised_weights(model)
    for name, array in (*named, *in_8_bits, *packed_weights(model, source)):
        for part, weights in (_recurrent(name, array) or {name: array}).items():
            # Several layers may use one weight: what is not zero in any of them is not zero.
            other = found.get(part, weights)
            found[part] = np.where(other == 0, weights, other)
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
