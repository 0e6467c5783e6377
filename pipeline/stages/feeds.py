"""What latency is measured on: validation samples, for each workload that the recipe names."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import nn

from mfac_compress.export import Workload
from mfac_compress.export.names import feeds, input_names
from mfac_compress.pipeline.inputs.splits import Split
from mfac_compress.pipeline.recipe.schema import ExportSection, LatencySection, ValidateSection


def workloads_of(export: ExportSection, validate: ValidateSection) -> list[Workload]:
    """What the recipe measures, or would by default; also where a candidate must be faster."""
    section = validate.latency or LatencySection()
    sizes = section.batch_sizes if export.dynamic_batch else (validate.batch_size,)
    lengths = [
        dict(zip(section.lengths, each, strict=True)) for each in product(*section.lengths.values())
    ]
    return [
        Workload(size, threads, each)
        for threads in section.threads
        for size in sizes
        for each in lengths
    ]


@dataclass(frozen=True)
class ValidationFeeds:
    """The first validation samples as inputs of the ONNX files.

    Called with a workload, it returns an array for each input by its name: as many samples as the
    workload has, each axis with a name cut or repeated to the workload's length.

    Args:
        split: The validation split. Where it has fewer samples, they are repeated.
        names: Names of the files' inputs, in the order of the samples' tensors.
        axes: Names of open axes by input and position, as ``export.dynamic_axes``.
    """

    split: Split
    names: tuple[str, ...]
    axes: Mapping[str, Mapping[int, str]]

    def __call__(self, workload: Workload) -> dict[str, np.ndarray]:
        rows = torch.arange(workload.batch_size) % len(self.split)
        inputs = next(iter(self.split.batches(workload.batch_size, indices=rows)))[0]
        return {
            name: resized(array, self.axes.get(name, {}), workload.lengths)
            for name, array in feeds(inputs, self.names).items()
        }


def validation_feeds(export: ExportSection, split: Split, module: nn.Module) -> ValidationFeeds:
    """Inputs as the recipe's files take them.

    Args:
        export: The recipe's ``export``.
        split: The validation split.
        module: The model, whose forward names its inputs.
    """
    first = next(iter(split.batches(1, indices=[0])))[0]
    names = tuple(input_names(module, first, export.input_name))
    return ValidationFeeds(split, names, export.dynamic_axes)


def resized(array: np.ndarray, axes: Mapping[int, str], lengths: Mapping[str, int]) -> np.ndarray:
    """Cut or repeat an array along its named axes."""
    for axis, name in axes.items():
        if name in lengths:
            positions = np.arange(lengths[name]) % array.shape[axis]
            array = array.take(positions, axis)
    return array
