"""The model as an ONNX graph, and the dense one's, which is made once."""

from functools import cached_property

import onnx_ir as ir
import torch
from torch import Tensor, nn

from mfac_compress.export import build_graph
from mfac_compress.pipeline.inputs.model_file import LoadedModel
from mfac_compress.pipeline.inputs.splits import Split
from mfac_compress.pipeline.recipe.schema import ExportSection


class OnnxExporter:
    """Exports a model, dense or with other weights, as a recipe says.

    Args:
        model: The dense model.
        section: The recipe's ``export``.
        split: Of its samples the batch is made with which the model is traced.
        batch_size: Samples in that batch.
    """

    def __init__(
        self, model: LoadedModel, section: ExportSection, split: Split, batch_size: int
    ) -> None:
        self._model, self._section, self._split = model, section, split
        self._batch_size = batch_size

    @property
    def digest(self) -> list[object]:
        """What the graph depends on, beside the weights."""
        section = self._section.model_dump(mode="json", exclude={"sparse_kernels"})
        return [self._model.fingerprint, section, self._split.fingerprint, self._batch_size]

    @property
    def example(self) -> Tensor:
        """The batch with which the model is traced. Shape ``[batch_size, ...]``."""
        positions = torch.arange(self._batch_size) % len(self._split)
        return next(self._split.batches(self._batch_size, indices=positions)).inputs

    @cached_property
    def dense(self) -> ir.Model:
        """The dense model's graph, kept: checked before the work, it is written after it.

        Raises:
            ValueError: If it cannot be exported as the recipe says.
        """
        module = self._model.module
        on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters())
        return self.graph(module if on_cpu else self._model.copy().cpu())

    def graph(self, module: nn.Module) -> ir.Model:
        """Export a copy of the model, on the CPU, without writing it.

        Raises:
            ValueError: If it cannot be exported as the recipe says.
        """
        return build_graph(
            module,
            self.example,
            opset=self._section.opset,
            dynamic_batch=self._section.dynamic_batch,
            input_name=self._section.input_name,
            output_name=self._section.output_name,
        )
