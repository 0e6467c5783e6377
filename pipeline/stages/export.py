"""Stage 5: the dense and the sparse model as ONNX files."""

from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from mfac_compress.export import build_graph, write_graph
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.file_names import DENSE, SPARSE
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.versions import library_versions, recipe_hash, tool_version
from mfac_compress.pipeline.weights import load_masks, load_weights, sparsity_of


def depends_on(context: RunContext) -> dict[str, Any]:
    """What the files depend on, beside the weights. The recipe's hash stands in them."""
    return {
        "export": context.recipe.export.model_dump(exclude={"sparse_kernels"}),
        "batch_size": context.recipe.validate_.batch_size,
        "recipe": recipe_hash(context.recipe),
        "tool": tool_version(),
    }


def export(context: RunContext, recovered: Path, folder: Path) -> dict[str, Any]:
    """Write ``dense.onnx`` and ``model.onnx`` to ``folder``; returns facts.

    Raises:
        InputError: If the model cannot be exported as the recipe says.
    """
    sparse = load_weights(context.fresh_module(), recovered)
    facts = {
        "mfac_compress.version": tool_version(),
        "mfac_compress.recipe_sha256": recipe_hash(context.recipe),
        **{f"version.{name}": version for name, version in library_versions().items()},
    }
    sparsity = {"mfac_compress.sparsity": f"{sparsity_of(load_masks(recovered)):.6f}"}
    dense = context.dense_graph
    models = [
        (DENSE, {}, lambda: dense or graph_of(context, context.fresh_module().cpu())),
        (SPARSE, sparsity, lambda: graph_of(context, sparse.cpu())),
    ]
    for name, extra, graph in context.progress.track(models, "export", total=len(models)):
        try:
            write_graph(graph(), folder / name, metadata={**facts, **extra})
        except ValueError as error:
            raise InputError(f"export: {error}") from error
    return {}


def example_inputs(context: RunContext) -> Tensor:
    """The batch with which the model is traced. Shape ``[validate.batch_size, ...]``."""
    batch = context.recipe.validate_.batch_size
    positions = torch.arange(batch) % len(context.data.calibration)
    return next(iter(context.data.calibration.batches(batch, indices=positions)))[0]


def graph_of(context: RunContext, module: nn.Module) -> ir.Model:
    """Export a model as the recipe says, without writing it.

    Args:
        context: The run's.
        module: The model, or a copy of it, on the CPU.
    Raises:
        ValueError: If it cannot be exported so.
    """
    section = context.recipe.export
    return build_graph(
        module,
        example_inputs(context),
        opset=section.opset,
        dynamic_batch=section.dynamic_batch,
        input_name=section.input_name,
        output_name=section.output_name,
    )
