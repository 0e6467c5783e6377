"""What a run would do, shown without doing it."""

from rich.console import Console
from rich.table import Table

from mfac_compress.pipeline.file_names import INT8, ONNX_FILES, SPARSE, WITH_KERNELS
from mfac_compress.pipeline.inputs.layers import PruneTargets
from mfac_compress.pipeline.inputs.load import Inputs
from mfac_compress.pipeline.inputs.memory import MemoryPlan, readable_bytes
from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.stages.accelerate import built_library
from mfac_compress.pipeline.terminal import add_row, plain_table
from mfac_compress.pipeline.verdict.warnings import LITTLE


def show_plan(recipe: Recipe, inputs: Inputs, console: Console) -> None:
    """Print the matched tensors, what was left out and why, data, and memory."""
    console.print(_matched(inputs.targets))
    if inputs.targets.left_out:
        console.print(_left_out(inputs.targets))
    for line in _facts(recipe, inputs):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _matched(targets: PruneTargets) -> Table:
    table = plain_table("Tensors to prune", "tensor", "shape", "weights", "target sparsity")
    table.columns[2].justify = "right"
    for target in targets.matched:
        shape = " x ".join(map(str, target.shape))
        how = "on its own" if target.competes_alone else "of all together"
        add_row(table, target.name, shape, f"{target.weights:,}", f"{target.sparsity:g} {how}")
    return table


def _left_out(targets: PruneTargets) -> Table:
    table = plain_table("Left out", "tensor", "why")
    for name, reason in targets.left_out.items():
        add_row(table, name, reason)
    return table


def _facts(recipe: Recipe, inputs: Inputs) -> list[str]:
    """The plan's lines below the tables."""
    targets, data = inputs.targets, inputs.data
    removed = targets.removed
    splits = {"calibration": data.calibration, "recovery": data.recovery}
    splits["validation"] = data.validation
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in splits.items() if split)
    lines = [
        *recipe.source.remarks,
        *(f"folded: {name}, computed by {by}" for name, by in inputs.folded.items()),
        f"weights: {targets.weights:,}, {_removal(recipe, targets)}",
        f"pattern: {recipe.prune.zeros}",
        *_permuted(inputs.permuted),
        f"repair: {_repair(recipe)}",
        f"recovery: {_recovery(recipe, inputs)}",
        f"8 bits: {_precision(recipe)}",
        f"whole model: {targets.weights:,} of all {targets.parameters:,} parameters can be pruned "
        f"({targets.share:.2%}), {removed / targets.parameters:.2%} will be removed",
        *_warning(targets),
        f"samples: {sizes}",
        f"device: {inputs.device}",
        f"sparse kernels: {_kernels(recipe)}",
    ]
    if inputs.memory is not None:
        lines += [f"gradients: {_gradients(recipe, inputs)}", *_memory(inputs.memory)]
    return lines


def _removal(recipe: Recipe, targets: PruneTargets) -> str:
    """How many weights go, and by whose choice."""
    share, section = f"{targets.removed:,} ({targets.removed / targets.weights:.2%})", recipe.prune
    if section.method == "given":
        return f"of which {section.masks} removes {share}; trained ones from {section.weights}"
    return f"to remove {share} in {section.steps} step(s)"


def _permuted(channels: int | None) -> list[str]:
    if channels is None:
        return []
    return [f"channels: {channels:,} put beside others that are like them (prune.permute)"]


def _gradients(recipe: Recipe, inputs: Inputs) -> str:
    """How many choose, in which steps."""
    counts = [shape.num_gradients for shape in inputs.fishers]
    changes = [step for step, count in enumerate(counts) if step and count != counts[step - 1]]
    text = f"{counts[0]:,}"
    text += "".join(f", {counts[step]:,} from step {step + 1} on" for step in changes)
    for sparsity, count in recipe.calibrate.counts.items():
        if count not in counts:
            text += f", {count:,} at no step (no one starts from a sparsity of {sparsity:g})"
    return f"{text}, each of {recipe.calibrate.samples_per_gradient} samples"


def _repair(recipe: Recipe) -> str:
    """What the section reconstruct does, and when."""
    section, steps = recipe.reconstruct, recipe.prune.steps
    if section.method == "none":
        return "none (reconstruct.method)"
    when = f"each of {steps} steps" if section.every_step and steps > 1 else "the last step"
    text = f"least squares on {section.samples:,} calibration samples after {when}"
    if section.blocks_between and steps > 1:
        text += f", and where much is missing blocks on {section.blocks_between.samples:,}"
    if section.blocks_at_end:
        text += f"; at the end blocks on {section.blocks_at_end.samples:,}"
    return f"{text}; without labels"


def _recovery(recipe: Recipe, inputs: Inputs) -> str:
    """What the section recover does, and when."""
    section, between = recipe.recover, recipe.prune.epochs_between
    if inputs.training is None:
        return "none (recover.epochs)"
    if inputs.loop is not None:
        samples = f"{len(inputs.training):,} {section.split} samples"
        return f"by recover.loop {inputs.loop.name}, on {samples}"
    when = f"{between} epoch(s) after each step before, " if between else ""
    text = f"{when}{section.epochs} epoch(s) at the end"
    if section.quantization_aware:
        text += f", the last {section.quantization_aware} quantization-aware"
    text += f", on {len(inputs.training):,} {section.split} samples"
    if section.distill is not None:
        distance = section.distill.distance(inputs.task.loss_name)
        text += f", taught by the dense model ({distance}, weight {section.distill.weight:g})"
    mixed = [f"{key} {alpha:g}" for key in ("mixup", "cutmix") if (alpha := getattr(section, key))]
    if mixed:
        text += f", on mixed samples ({', '.join(mixed)})"
    if section.precision != "float32":
        text += f", in {section.precision}"
    kept = "nearest to the dense model on held-out calibration samples"
    return f"{text}; kept is the {f'epoch {kept}' if section.keeps_best else 'last epoch'}"


def _precision(recipe: Recipe) -> str:
    """What the section quantize does."""
    section = recipe.quantize
    if not section.is_on:
        return "none (quantize.mode)"
    limit = section.max_divergence
    until = "no layer is left in float" if limit is None else f"within a divergence of {limit:g}"
    return (
        f"{ONNX_FILES[INT8]}, {section.mode}, on {section.samples:,} calibration samples, {until}; "
        f"the gates apply to {recipe.artifact}"
    )


def _warning(targets: PruneTargets) -> list[str]:
    """Say where little of the model can be pruned: its sparsity is that of a small part."""
    if targets.share >= LITTLE:
        return []
    return [
        f"warning: less than {LITTLE:.0%} of the model can be pruned, so it stays almost as "
        "large as it is. See above for what is left out, and why."
    ]


def _kernels(recipe: Recipe) -> str:
    if recipe.export.sparse_kernels == "off":
        return "off (export.sparse_kernels)"
    library = built_library()
    if library is None:
        return "not built: there was no C++ compiler. No file with sparse operators will be written"
    sources = (SPARSE, INT8) if recipe.quantize.is_on else (SPARSE,)
    files = " and ".join(ONNX_FILES[WITH_KERNELS[name]] for name in sources)
    return f"{files} will be written where that is faster, with {library}"


def _memory(plan: MemoryPlan) -> list[str]:
    inverse = plan.inverse
    fits = "fits, with the gradients on disk in the run directory" if plan.on_disk else "fits"
    return [
        f"inverse: {inverse.representation}, because {inverse.reason}",
        f"memory: gradients {readable_bytes(inverse.window_bytes)} + factors "
        f"{readable_bytes(inverse.inverse_bytes)} = {readable_bytes(inverse.total_bytes)}; "
        f"{inverse.flops / 1e9:,.2g} GFLOP",
        f"budget: {plan.budget}: {fits if plan.fits else 'DOES NOT FIT. ' + plan.advice}",
    ]
