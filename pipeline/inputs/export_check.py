"""The export before the work: whether it succeeds, and whether zeros will arrive in the file."""

from dataclasses import replace

from mfac_compress.export import lost_zeros
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.callables import describe, user_code
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.inputs.forward import random_state_kept
from mfac_compress.pipeline.stages.export import example_inputs, graph_of


def check_export(context: RunContext) -> RunContext:
    """Export the dense model into memory, with the batch that the stage export uses.

    Returns:
        The context with the dense model's graph, which that stage need not make again, and
        without the tensors whose zeros the file would not hold.

    Raises:
        InputError: If the model cannot be exported as the recipe says, the file computes something
            else, or would hold the zeros of no tensor.
    """
    copied = context.fresh_module().cpu()
    module = context.model.module if context.device.type == "cpu" else copied
    names = [target.name for target in context.targets.matched]
    try:
        with random_state_kept(context.device), user_code():
            graph = graph_of(context, module)
            if module is copied:
                copied = context.fresh_module().cpu()
            lost = lost_zeros(
                copied,
                graph,
                example_inputs(context),
                names,
                build=lambda pruned: graph_of(context, pruned),
            )
    except ValueError as error:
        raise InputError(f"export: {error}") from error
    except Exception as error:
        raise InputError(
            f"export: the model must be exportable to ONNX. The export raised {describe(error)}. "
            "Run torch.onnx.export(model, (inputs,), dynamo=True) on the model by itself."
        ) from error
    targets = context.targets.without(lost) if lost else context.targets
    return replace(context, targets=targets, dense_graph=graph)
