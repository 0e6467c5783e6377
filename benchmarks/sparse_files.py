"""ONNX files with random zeros, in float32 or quantised by ONNX Runtime, for benchmarks."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mfac_compress.export import export_onnx
from mfac_compress.export.quantise import StaticQuantiser


def prune_inputs(model: nn.Module, sparsity: float, block: int) -> None:
    """Remove the smallest blocks of ``block`` inputs of every layer with more than three."""
    for layer in _layers(model):
        weight = layer.weight.detach()
        blocks = weight.view(len(weight), -1, block, weight[0, 0].numel())
        sizes = blocks.square().sum(2, keepdim=True)
        keep = sizes > sizes.flatten().kthvalue(round(sparsity * sizes.numel())).values
        blocks.mul_(keep)


def prune_outputs(model: nn.Module, sparsity: float, block: int) -> None:
    """Remove the smallest blocks of ``block`` outputs of every layer with more than three inputs:
    not of convolutions of images or depthwise ones."""
    for layer in _layers(model):
        weight = layer.weight.detach().flatten(1)
        spare = -len(weight) % block
        padded = nn.functional.pad(weight, (0, 0, 0, spare)).unflatten(0, (-1, block))
        sizes = padded.square().sum(1)
        keep = sizes > sizes.flatten().kthvalue(round(sparsity * sizes.numel())).values
        mask = keep[:, None].expand_as(padded).flatten(0, 1)[: len(weight)]
        weight.mul_(mask)


def _layers(model: nn.Module) -> Iterable[nn.Linear | nn.Conv2d]:
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.shape[1] > 3:
            yield layer


PATTERNS: dict[str, Callable[[nn.Module, float], None]] = {
    "unstructured": lambda model, sparsity: prune_outputs(model, sparsity, 1),
    "outputs-4": lambda model, sparsity: prune_outputs(model, sparsity, 4),
    "inputs-4": lambda model, sparsity: prune_inputs(model, sparsity, 4),
}
"""Patterns of zeros by name; each removes a share of a model's weights in place."""


def _quantise(float32: Path, int8: Path, batches: Iterable[np.ndarray]) -> None:
    """Write a QDQ file as the stage `quantize` does, calibrated on some inputs."""
    feeds = ({"input": batch} for batch in batches)
    StaticQuantiser(float32, feeds, scratch=int8.parent).write(int8)


def export(
    model: nn.Module, float32: Path, batches: Sequence[np.ndarray], int8: Path | None = None
) -> None:
    """Write a model's float32 file and, if there is a path for it, its quantised file.

    Args:
        model: Takes one input.
        float32: File to write.
        batches: Inputs. The first is the example of the export; all calibrate the quantisation.
        int8: File to write.
    """
    export_onnx(model, torch.from_numpy(batches[0]), float32)
    if int8 is not None:
        _quantise(float32, int8, batches)
