"""What a run would do, shown without doing it."""

from rich.console import Console
from rich.table import Table

from mfac_compress.pipeline.file_names import ACCELERATED, SPARSE
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.inputs.memory import MemoryPlan, memory_plan, readable_bytes
from mfac_compress.pipeline.stages.accelerate import built_library
from mfac_compress.pipeline.terminal import add_row, plain_table
from mfac_compress.pipeline.verdict.warnings import LITTLE


def show_plan(context: RunContext, console: Console) -> None:
    """Print the matched tensors, what was left out and why, data, and memory."""
    console.print(_matched(context))
    if context.targets.left_out:
        console.print(_left_out(context))
    for line in _facts(context):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _matched(context: RunContext) -> Table:
    table = plain_table("Tensors to prune", "tensor", "shape", "weights", "target sparsity")
    table.columns[2].justify = "right"
    for target in context.targets.matched:
        shape = " x ".join(map(str, target.shape))
        how = "on its own" if target.own_budget else "of all together"
        add_row(table, target.name, shape, f"{target.weights:,}", f"{target.sparsity:g} {how}")
    return table


def _left_out(context: RunContext) -> Table:
    table = plain_table("Left out", "tensor", "why")
    for name, reason in context.targets.left_out.items():
        add_row(table, name, reason)
    return table


def _facts(context: RunContext) -> list[str]:
    """The plan's lines below the tables."""
    targets, data, recipe = context.targets, context.data, context.recipe
    removed = sum(budget.removed for budget in targets.budgets())
    splits = {"calibration": data.calibration, "recovery": data.recovery}
    splits["validation"] = data.validation
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in splits.items() if split)
    lines = [
        *(f"folded: {name}, computed by {by}" for name, by in context.folded.items()),
        f"weights: {targets.weights:,}, to remove {removed:,} "
        f"({removed / targets.weights:.2%}) in {recipe.prune.steps} step(s)",
        f"whole model: {targets.weights:,} of all {targets.parameters:,} parameters can be pruned "
        f"({targets.share:.2%}), {removed / targets.parameters:.2%} will be removed",
        *_warning(context),
        f"samples: {sizes}",
        f"device: {context.device}",
        f"sparse kernels: {_kernels(context)}",
    ]
    if recipe.prune.method == "mfac":
        lines += _memory(memory_plan(context))
    return lines


def _warning(context: RunContext) -> list[str]:
    """Say where little of the model can be pruned: its sparsity is that of a small part."""
    if context.targets.share >= LITTLE:
        return []
    return [
        f"warning: less than {LITTLE:.0%} of the model can be pruned, so it stays almost as "
        "large as it is. See above for what is left out, and why."
    ]


def _kernels(context: RunContext) -> str:
    if context.recipe.export.sparse_kernels == "off":
        return "off (export.sparse_kernels)"
    library = built_library()
    if library is None:
        return f"not built: there was no C++ compiler. Only {SPARSE} will be written"
    return f"{ACCELERATED} will be written where that is faster, with {library}"


def _memory(plan: MemoryPlan) -> list[str]:
    inverse = plan.inverse
    fits = "fits, with the gradients on disk in the run directory" if plan.on_disk else "fits"
    return [
        f"inverse: {inverse.representation}, because {inverse.reason}",
        f"memory: gradients {readable_bytes(inverse.window_bytes)} + factors "
        f"{readable_bytes(inverse.inverse_bytes)} = {readable_bytes(inverse.total_bytes)}; "
        f"{inverse.flops / 1e9:,.2g} GFLOP",
        f"budget: {readable_bytes(plan.budget_bytes)} ({plan.budget_from}): "
        f"{fits if plan.fits else 'DOES NOT FIT. ' + plan.advice}",
    ]
