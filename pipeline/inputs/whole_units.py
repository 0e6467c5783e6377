"""The pattern of zeros that a recipe asks for, and which tensors it does not divide."""

from collections.abc import Mapping

from torch import fx, nn

from mfac_compress.mfac.layout import Shapes
from mfac_compress.mfac.units import NM, Block, Pattern, Unstructured
from mfac_compress.pipeline.inputs.prunable import operator_of, parameter_nodes
from mfac_compress.pipeline.recipe.schema import BlockPattern, NMPattern, PruneSection

_AXES = {"outputs": 0, "inputs": 1}


def pattern_of(section: PruneSection) -> Pattern:
    """The pattern that a recipe asks for; of whole channels, before these are known, none."""
    pattern = section.pattern
    if isinstance(pattern, BlockPattern):
        return Block(pattern.block, _AXES[pattern.axis])
    return NM(pattern.n, pattern.m) if isinstance(pattern, NMPattern) else Unstructured()


def why_not_divided(module: nn.Module, section: PruneSection, shapes: Shapes) -> dict[str, str]:
    """Name the tensors whose shape the recipe's pattern does not divide.

    Args:
        module: The model, which knows its layers' groups and which axis of a weight comes first.
        section: Has the pattern.
        shapes: Name to shape of the tensors in question.

    Returns:
        Name to reason.
    """
    if isinstance(section.pattern, str):
        return {}
    size, axis, what = _whole(section.pattern)
    groups = _groups(module)
    reasons = {}
    for name, shape in shapes.items():
        found = groups.get(name, 1)
        if len(shape) < 2 or found is None:
            reasons[name] = f"{what} need a weight [outputs, inputs, ...]"
            continue
        # Outputs of different groups read different inputs.
        length = shape[0] // found if axis == "outputs" else shape[1]
        if length % size:
            of = " of each group" if found > 1 else ""
            reasons[name] = f"{what} do not divide its {length} {axis}{of}"
    return reasons


def _whole(pattern: BlockPattern | NMPattern) -> tuple[int, str, str]:
    """What stands together: how many, along which axis, and in words."""
    if isinstance(pattern, BlockPattern):
        return pattern.block, pattern.axis, str(pattern)
    return pattern.m, "inputs", f"groups of {pattern.m} inputs"


def _groups(module: nn.Module) -> Mapping[str, int | None]:
    """Groups of each convolution's weight; None for a weight whose inputs come first."""
    if isinstance(module, fx.GraphModule):
        reads = parameter_nodes(module)
        return {str(node.target): _groups_in(next(iter(node.users))) for node in reads}
    found: dict[str, int | None] = {}
    for prefix, part in module.named_modules():
        name = f"{prefix}.weight" if prefix else "weight"
        if getattr(part, "transposed", False) or type(part).__name__ == "Conv1D":
            found[name] = None
        elif isinstance(getattr(part, "groups", None), int):
            found[name] = part.groups
    return found


def _groups_in(node: fx.Node) -> int | None:
    """The same of an operator that reads a weight, in the graph of an exported program."""
    name, args = operator_of(node).removeprefix("aten."), node.args
    if name == "convolution":
        return None if args[6] else args[8]
    if name in ("conv1d", "conv2d", "conv3d"):
        return args[6] if len(args) > 6 else 1
    return None if name.startswith("conv_transpose") or name in ("addmm", "mm", "matmul") else 1
