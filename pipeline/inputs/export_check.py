"""The export before the work: whether it succeeds, and whether zeros will arrive in the file."""

from collections.abc import Sequence

import torch

from mfac_compress.export import lost_zeros
from mfac_compress.pipeline.errors import InputError, describe
from mfac_compress.pipeline.inputs.callables import user_code
from mfac_compress.pipeline.inputs.forward import random_state_kept
from mfac_compress.pipeline.inputs.model_file import LoadedModel
from mfac_compress.pipeline.inputs.onnx_exporter import OnnxExporter


def find_lost_zeros(
    model: LoadedModel, exporter: OnnxExporter, names: Sequence[str], device: torch.device
) -> dict[str, str]:
    """Export the dense model into memory, with the batch that the stage export uses.

    Args:
        model: The dense model.
        exporter: Keeps the graph for that stage.
        names: The tensors to prune.
        device: The run's.

    Returns:
        Name to reason, of the tensors whose zeros the file would not hold.

    Raises:
        InputError: If the model cannot be exported as the recipe says, or the file computes
            something else.
    """
    try:
        with random_state_kept(device), user_code():
            graph = exporter.dense
            return lost_zeros(
                model.copy().cpu(), graph, exporter.example, names, build=exporter.graph
            )
    except ValueError as error:
        raise InputError(f"export: {error}") from error
    except Exception as error:
        raise InputError(
            f"export: the model must be exportable to ONNX. The export raised {describe(error)}. "
            "Run torch.onnx.export(model, (inputs,), dynamo=True) on the model by itself."
        ) from error
