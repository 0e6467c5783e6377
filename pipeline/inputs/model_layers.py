"""The model as a graph of layers, by which they are repaired one after the other."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mfac_compress.export.names import input_names
from mfac_compress.mfac.batch import named_tensors
from mfac_compress.mfac.layerwise import LayerGraph
from mfac_compress.pipeline.inputs.calibration import CalibrationData
from mfac_compress.pipeline.inputs.model import Model
from mfac_compress.pipeline.recipe.schema import ExportSection

_EXAMPLE = 2  # samples; the tracer takes an axis of one for a constant


@dataclass(frozen=True, eq=False)
class ModelLayers:
    """A model's layers. The graph is traced when it is first asked for.

    Args:
        model: The dense model.
        calibration: Has an example of its inputs.
        export: Says which of their axes are open.
    """

    model: Model
    calibration: CalibrationData
    export: ExportSection

    @property
    def digest(self) -> list[Any]:
        """Changes where the graph may, for one model and one kind of samples."""
        open_axes = self.export.model_dump(mode="json", include={"dynamic_axes", "input_name"})
        return [self.model.digest, open_axes]

    @cached_property
    def graph(self) -> LayerGraph:
        """The graph.

        Raises:
            ValueError: If the model cannot be traced.
        """
        positions = [i % len(self.calibration.split) for i in range(_EXAMPLE)]
        example = next(self.calibration.batches(_EXAMPLE, positions)).inputs
        module, axes = self.model.module, self.export.dynamic_axes
        names = input_names(module, example, self.export.input_name)
        places = [place for place, _ in named_tensors(example)]
        open_axes = {
            place: [*axes[name]] for place, name in zip(places, names, strict=True) if name in axes
        }
        return LayerGraph.trace(module, example, open_axes)
