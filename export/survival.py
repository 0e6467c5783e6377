"""Whether zeros that pruning would put into a model survive in its ONNX file.

They do not if forward computes a layer's weight from the parameter, or if the exporter folds a
layer on a constant input: the file then contains another tensor, in which nothing is zero.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor, nn

from mfac_compress.export.audit import TensorAudit, audit_zeros
from mfac_compress.export.onnx_file import write_graph
from mfac_compress.export.passes import TRANSPOSED
from mfac_compress.export.session import fixed_batch, open_session, predict
from mfac_compress.export.variant import Variant
from mfac_compress.mfac.batch import Tree, call, evaluating, map_tensors, size

_ROWS = 8
_LARGEST_DIFFERENCE = 0.02
"""Share of the outputs' norm. Rounding is a thousand times smaller, a wrong operator larger."""
_ROUNDING = 1e-4


def lost_zeros(
    copied: nn.Module,
    graph: ir.Model,
    example: Tree,
    names: Iterable[str],
    *,
    build: Callable[[nn.Module], ir.Model],
) -> dict[str, str]:
    """Remove random weights of a model, and look for the zeros in its ONNX file.

    If the graph has every parameter under its name, the zeros are written into the graph, since an
    export takes seconds. Otherwise the model is exported again.

    Args:
        copied: A copy of the model, on the CPU. Weights are removed from it.
        graph: The graph that ``build`` made of the model. Restored afterwards.
        example: Inputs that the graph takes. Each of shape ``[n, ...]``.
        names: The parameters to be pruned.
        build: Exports a model.
    Returns:
        Name to reason, for the parameters whose zeros do not survive.
    Raises:
        ValueError: If the model cannot be exported, or if ONNX Runtime cannot run its file or does
            not compute what the model computes.
    """
    masks = _random_masks(dict(copied.named_parameters()), names)
    _prune(copied, masks)
    swaps = _swaps(graph, masks)
    if swaps is not None:
        before = {value: value.const_value for value in swaps}
        try:
            for value, tensor in swaps.items():
                value.const_value = tensor
            audits = _audit(graph, copied, example, masks)
        finally:
            for value, tensor in before.items():
                value.const_value = tensor
        if all(audit.intact for audit in audits):
            return {}
    audits = _audit(build(copied), copied, example, masks)
    return {audit.name: _reason(audit) for audit in audits if not audit.intact}


def lost_in_file(
    copied: nn.Module,
    example: Tree,
    names: Iterable[str],
    *,
    write: Callable[[nn.Module, Path], None],
    stored: Mapping[str, tuple[str, bool]],
    outputs: Sequence[str],
) -> dict[str, str]:
    """Do what :func:`lost_zeros` does, for a model whose file is not made by exporting it.

    Args:
        copied: As for :func:`lost_zeros`, and so are the next two.
        write: Writes a model's file.
        stored: As for :func:`~mfac_compress.export.audit.audit_zeros`.
        outputs: The file's outputs that count.
    """
    masks = _random_masks(dict(copied.named_parameters()), names)
    _prune(copied, masks)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.onnx"
        write(copied, path)
        _check_outputs(path, copied, example, outputs)
        audits = audit_zeros([Variant("trial", path)], masks, stored=stored)["trial"]
    return {audit.name: _reason(audit) for audit in audits if not audit.intact}


def _random_masks(parameters: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Return masks that remove about half of each tensor, and at least one weight."""
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for name in names:
        mask = torch.rand(parameters[name].shape, generator=generator) < 0.5
        mask.view(-1)[0] = False
        masks[name] = mask
    return masks


@torch.no_grad()
def _prune(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        parameters[name].masked_fill_(~mask, 0)


def _swaps(
    graph: ir.Model, masks: Mapping[str, Tensor]
) -> dict[ir.Value, ir.TensorProtocol] | None:
    """Return the pruned tensors of a graph's initializers; None if one is not found by name."""
    initializers = graph.graph.initializers
    swaps = {}
    for name, mask in masks.items():
        value, turned = initializers.get(name), mask
        if value is None and mask.ndim == 2:
            value, turned = initializers.get(name + TRANSPOSED), mask.T
        if value is None or tuple(value.shape) != tuple(turned.shape):
            return None
        array = value.const_value.numpy().copy()  # perhaps scaled by a folded batch norm
        array[~turned.numpy()] = 0
        swaps[value] = ir.tensor(array, name=value.name)
    return swaps


def _audit(
    graph: ir.Model, pruned: nn.Module, example: Tree, masks: Mapping[str, Tensor]
) -> tuple[TensorAudit, ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.onnx"
        write_graph(graph, path)
        _check_outputs(path, pruned, example)
        return audit_zeros([Variant("trial", path)], masks)["trial"]


def _check_outputs(
    path: Path, model: nn.Module, example: Tree, outputs: Sequence[str] | None = None
) -> None:
    """Check that a file computes what the model does: some operators are exported wrongly."""
    session = open_session(path)
    inputs = example if fixed_batch(session) else map_tensors(lambda x: x[:_ROWS], example)
    with evaluating(model), torch.no_grad():
        expected = call(model, inputs)
    map_tensors(_check_output, expected, _run(session, inputs, expected, outputs))


def _run(
    session: onnxruntime.InferenceSession,
    inputs: Tree,
    form: Tree,
    outputs: Sequence[str] | None,
) -> Any:
    try:
        return predict(session, inputs, size(inputs), form, outputs)
    except ValueError:
        raise
    except Exception as error:  # ONNX Runtime has exception types of its own
        raise ValueError(
            "ONNX Runtime must be able to run the exported file. PyTorch's exporter wrote one for "
            f"which it raised {error}. Replace the operator that is exported wrongly."
        ) from error


def _check_output(expected: Tensor, output: np.ndarray) -> None:
    if output.shape != expected.shape:
        raise ValueError(
            "The exported file must return what the model returns: shape "
            f"{list(expected.shape)}. Got {list(output.shape)}. Change the model's forward so "
            "that PyTorch's exporter translates it correctly."
        )
    expected = expected.double()
    scale, difference = expected.norm(), (torch.from_numpy(output).double() - expected).norm()
    if bool(scale.isfinite()) and not difference <= _LARGEST_DIFFERENCE * scale + _ROUNDING:
        raise ValueError(
            "The exported file must compute what the model computes. PyTorch's exporter wrote one "
            f"whose outputs differ by {float(difference):.3g}, where the outputs' norm is "
            f"{float(scale):.3g}. Replace the operator that is exported wrongly."
        )


def _reason(audit: TensorAudit) -> str:
    if audit.onnx_zeros is None:
        return (
            "its zeros would be lost: the ONNX file holds values that are computed from it "
            "(in forward, or with a constant input) and not the tensor itself"
        )
    return "its zeros would be lost: ONNX Runtime computes another weight from it before using it"
