"""Which tensors of a model are pruned, and to what sparsity."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from torch import fx, nn

from mfac_compress.mfac.saliency import Budget
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.patterns import SlowPatternError, match_all
from mfac_compress.pipeline.recipe.schema import Recipe

_LINEAR = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_LINEAR_OPS = ("aten.linear.", "aten.conv1d.", "aten.conv2d.", "aten.conv3d.")


@dataclass(frozen=True)
class Target:
    """A tensor to prune.

    Args:
        name: Parameter name.
        shape: Its shape.
        sparsity: Share to remove of it, or of all the tensors that share its budget.
        own_budget: Whether its weights compete only with each other.
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    own_budget: bool

    @property
    def weights(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class PruneTargets:
    """The tensors to prune, in the order of the model, and why the others are not.

    Args:
        matched: What is pruned.
        left_out: Parameter name to reason.
    """

    matched: tuple[Target, ...]
    left_out: dict[str, str]

    @property
    def weights(self) -> int:
        """d, the number of weights that are pruned or kept by choice."""
        return sum(target.weights for target in self.matched)

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Columns of each tensor in the flat vector."""
        ends, stop = [], 0
        for target in self.matched:
            ends.append((stop, stop + target.weights))
            stop += target.weights
        return ends

    def budgets(self) -> list[Budget]:
        """Who competes with whom, and the last sparsity of each competition."""
        placed = list(zip(self.matched, self.bounds, strict=True))
        alone = [Budget((at,), target.sparsity) for target, at in placed if target.own_budget]
        shared = [(target, at) for target, at in placed if not target.own_budget]
        if shared:
            together = Budget(tuple(at for _, at in shared), shared[0][0].sparsity)
            return [together, *alone]
        return alone


def match_targets(module: nn.Module, recipe: Recipe) -> PruneTargets:
    """Find the tensors that the recipe prunes.

    Args:
        module: The model.
        recipe: Its ``prune`` section is read.

    Raises:
        InputError: If a pattern matches nothing that can be pruned, or nothing is left to prune.
    """
    prune = recipe.prune
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    reasons = _why_not(module, shapes)
    prunable = [name for name in shapes if name not in reasons]
    matches = _matches(recipe, shapes)
    included = _match_all(prune.include, matches, prunable, reasons, recipe, "prune.include")
    excluded = _match_all(prune.exclude, matches, prunable, reasons, recipe, "prune.exclude")
    overridden = _match_all(prune.overrides, matches, prunable, reasons, recipe, "prune.overrides")
    own = {name: prune.overrides[pattern] for name, pattern in overridden.items()}
    left_out = dict(reasons)
    matched = []
    for name in prunable:
        if name not in included:
            left_out[name] = "not matched by prune.include"
        elif name in excluded:
            left_out[name] = f"prune.exclude: {excluded[name]}"
        else:
            alone = name in own or prune.scope == "layerwise"
            matched.append(Target(name, shapes[name], own.get(name, prune.sparsity), alone))
    if not matched:
        raise InputError(
            f"{recipe.where('prune.exclude')}: at least one tensor must be left to prune. "
            f"Got all {len(prunable)} excluded. Narrow prune.exclude."
        )
    _check_overrides_count(matched, overridden, recipe)
    in_order = {name: left_out[name] for name in shapes if name in left_out}
    return PruneTargets(tuple(matched), in_order)


def _check_overrides_count(
    matched: Iterable[Target], overridden: dict[str, str], recipe: Recipe
) -> None:
    """Refuse an override that another key, or a later override, takes everything from.

    Raises:
        InputError: If a pattern sets the sparsity of no tensor.
    """
    counting = {overridden[target.name] for target in matched if target.name in overridden}
    for pattern in recipe.prune.overrides:
        if pattern not in counting:
            raise InputError(
                f"{recipe.where('prune.overrides', pattern)}: a pattern must set the sparsity of "
                f"a tensor. All that {pattern!r} matches is left out by prune.include or "
                "prune.exclude, or matched by a later pattern, which counts. Put the general "
                "pattern first, or take this one away."
            )


def _why_not(module: nn.Module, shapes: Iterable[str]) -> dict[str, str]:
    """Parameters that can not be pruned, and why."""
    linear = set(_linear_weights(module))
    kinds = {
        f"{owner}.{name}" if owner else name: type(part).__name__
        for owner, part in module.named_modules()
        for name, _ in part.named_parameters(recurse=False)
    }
    return {
        name: "a bias"
        if name.endswith("bias")
        else f"not a linear or convolution weight ({kinds[name]})"
        for name in shapes
        if name not in linear
    }


def _linear_weights(module: nn.Module) -> Iterator[str]:
    """Names of the weights of linear and convolution layers.

    An exported program has lost its layers' types, so its graph is asked instead.
    """
    for owner, part in module.named_modules():
        if isinstance(part, _LINEAR):
            yield f"{owner}.weight" if owner else "weight"
        elif isinstance(part, nn.MultiheadAttention) and part.in_proj_weight is not None:
            yield f"{owner}.in_proj_weight" if owner else "in_proj_weight"
    if isinstance(module, fx.GraphModule):
        for node in module.graph.nodes:
            if node.op == "call_function" and str(node.target).startswith(_LINEAR_OPS):
                weight = node.args[1]
                if isinstance(weight, fx.Node) and weight.op == "get_attr":
                    yield str(weight.target)


def _match_all(
    patterns: Iterable[str],
    matches: Mapping[str, set[str]],
    prunable: list[str],
    reasons: dict[str, str],
    recipe: Recipe,
    key: str,
) -> dict[str, str]:
    """Prunable name to the pattern that matches it; the last pattern counts.

    Raises:
        InputError: If a pattern matches nothing prunable.
    """
    found: dict[str, str] = {}
    for position, pattern in enumerate(patterns):
        names = [name for name in prunable if name in matches[pattern]]
        if not names:
            others = [name for name in reasons if name in matches[pattern]]
            where = recipe.where(key, pattern if key == "prune.overrides" else position)
            raise InputError(_nothing(pattern, others, prunable, reasons, where))
        found.update(dict.fromkeys(names, pattern))
    return found


def _matches(recipe: Recipe, parameters: Iterable[str]) -> dict[str, set[str]]:
    """Pattern of the recipe to the parameters that it names, or whose module it names.

    Raises:
        InputError: If a pattern takes too long.
    """
    prune = recipe.prune
    module_of = {name: name.rpartition(".")[0] for name in parameters}
    try:
        found = match_all(
            (*prune.include, *prune.exclude, *prune.overrides), (*module_of, *module_of.values())
        )
    except SlowPatternError as error:
        keys = {"include": prune.include, "exclude": prune.exclude, "overrides": prune.overrides}
        key = next(key for key, patterns in keys.items() if error.pattern in patterns)
        raise InputError(f"{recipe.where(f'prune.{key}')}: {error}") from error
    return {
        pattern: {name for name, module in module_of.items() if name in hit or module in hit}
        for pattern, hit in found.items()
    }


def _nothing(
    pattern: str, others: list[str], prunable: list[str], reasons: dict[str, str], where: str
) -> str:
    must = f"{where}: a pattern must match a tensor that can be pruned. Got {pattern!r}"
    if others:
        return f"{must}, which matches only {others[0]}, {reasons[others[0]]}."
    known = {*prunable, *(name.rpartition(".")[0] for name in prunable)}
    near = difflib.get_close_matches(pattern, sorted(known), n=3)
    hint = f"Did you mean {', '.join(near)}?" if near else f"There are {', '.join(prunable[:8])}."
    return f"{must}, which matches nothing. {hint}"
