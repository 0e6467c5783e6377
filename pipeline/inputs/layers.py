"""Which tensors of a model are pruned, and to what sparsity."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from torch import nn

from mfac_compress.mfac.coupled import Channels
from mfac_compress.mfac.layout import Layout
from mfac_compress.mfac.units import Pattern, Units
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.patterns import SlowPatternError, match_all
from mfac_compress.pipeline.inputs.prunable import why_not_prunable
from mfac_compress.pipeline.inputs.whole_units import pattern_of, why_not_divided
from mfac_compress.pipeline.quoting import listed
from mfac_compress.pipeline.recipe.schema import Recipe

_ALL = "*"


@dataclass(frozen=True)
class Target:
    """A tensor to prune.

    Args:
        name: Parameter name.
        shape: Its shape.
        sparsity: Share to remove of it, or of all tensors that compete with each other.
        competes_alone: Whether its weights compete only with each other.
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    competes_alone: bool

    @property
    def weights(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class PruneTargets:
    """The tensors to prune, in the order of the model, and why the others are not.

    Args:
        matched: What is pruned.
        left_out: Parameter name to reason.
        parameters: N, the number of all the model's parameters, without buffers.
        pattern: Where their zeros may be.
    """

    matched: tuple[Target, ...]
    left_out: dict[str, str]
    parameters: int
    pattern: Pattern

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor that is pruned, by name."""
        return {target.name: target.shape for target in self.matched}

    @property
    def weights(self) -> int:
        """d, the number of weights that are pruned or kept by choice."""
        return self.layout.size

    @property
    def share(self) -> float:
        """d / N, in (0, 1]: what pruning can reach of the whole model."""
        return self.weights / self.parameters

    def without(self, reasons: Mapping[str, str]) -> "PruneTargets":
        """Leave out some of the matched tensors.

        Args:
            reasons: Name to the reason why it is left out; the names of matched tensors only.

        Raises:
            InputError: If nothing is left to prune.
        """
        matched = tuple(target for target in self.matched if target.name not in reasons)
        if not matched:
            raise InputError(
                "The model must have a tensor that can be pruned. Got none: "
                f"{_listed(reasons, reasons)}. Change the model, or what prune.include and "
                "prune.exclude leave."
            )
        return replace(self, matched=matched, left_out=self.left_out | dict(reasons))

    @cached_property
    def _resolved(self) -> tuple[Layout, Units]:
        # Of those that compete with each other; it counts for nothing where there are none.
        shared = [target.sparsity for target in self.matched if not target.competes_alone]
        return self.pattern.resolve(
            self.shapes,
            shared[0] if shared else self.matched[0].sparsity,
            {target.name: target.sparsity for target in self.matched if target.competes_alone},
        )

    @property
    def layout(self) -> Layout:
        """The order of the weights that are pruned in the flat vector."""
        return self._resolved[0]

    @property
    def units(self) -> Units:
        """What is removed together, and what competes with what."""
        return self._resolved[1]

    @property
    def unit_size(self) -> int:
        """Number of adjacent weights of the layout that no block of the Fisher divides."""
        return 1 if self.has_channels else self.layout.size // self.units.count

    @property
    def has_channels(self) -> bool:
        """Whether units are whole channels, whose numbers of weights differ."""
        return isinstance(self.pattern, Channels)

    @property
    def target(self) -> float:
        """Share of the units that go in the end, of those that may."""
        units = self.units
        sizes = units.sizes[:-1] if self.has_channels else units.sizes
        return float((units.sparsity[: len(sizes)] * sizes).sum() / sizes.sum())

    @property
    def removed(self) -> int:
        """Number of weights that are removed in the end; about, where units differ in size."""
        units = self.units
        if self.has_channels:
            able = units.competition[units.of_weight] < len(units.sparsity) - 1
            return round(self.target * int((able | (units.freed_by >= 0)).sum()))
        return int(units.removed().sum()) * self.unit_size


def match_targets(
    module: nn.Module, recipe: Recipe, heads: frozenset[str] = frozenset()
) -> PruneTargets:
    """Find the tensors that the recipe prunes.

    Args:
        module: The model.
        recipe: Its ``prune`` section is read.
        heads: Parameters that are left out unless a pattern other than ``*`` includes them.

    Raises:
        InputError: If a pattern matches nothing that can be pruned, or nothing is left to prune.
    """
    prune = recipe.prune
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    reasons = why_not_prunable(module)
    prunable = [name for name in shapes if name not in reasons]
    if not prunable:
        raise InputError(
            "The model must have a weight of a linear, convolution or recurrent layer that can be "
            f"pruned. Got none: {_listed(reasons, reasons)}."
        )
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
        elif name in heads and included[name] == _ALL and name not in own:
            left_out[name] = "of the head, which only a pattern of its own includes"
        elif name in excluded:
            left_out[name] = f"prune.exclude: {excluded[name]}"
        else:
            alone = name in own or not prune.competes_globally
            matched.append(Target(name, shapes[name], own.get(name, prune.sparsity), alone))
    if not matched:
        raise InputError(
            f"{recipe.where('prune.exclude')}: at least one tensor must be left to prune. "
            f"Got all {len(prunable)} excluded. Narrow prune.exclude."
        )
    _check_overrides_count(matched, overridden, recipe)
    in_order = {name: left_out[name] for name in shapes if name in left_out}
    parameters = sum(map(prod, shapes.values()))
    targets = PruneTargets(tuple(matched), in_order, parameters, pattern_of(prune))
    return _divided(targets, why_not_divided(module, prune, targets.shapes), recipe)


def _divided(targets: PruneTargets, reasons: Mapping[str, str], recipe: Recipe) -> PruneTargets:
    """Leave out what the pattern does not divide.

    Raises:
        InputError: If nothing is left.
    """
    if len(reasons) == len(targets.matched):
        raise InputError(
            f"{recipe.where('prune.pattern')}: must divide a tensor that is to be pruned. Got "
            f"{recipe.prune.pattern}, and {_listed(reasons, reasons)}. Use another size or axis, "
            "or unstructured."
        )
    return targets.without(reasons) if reasons else targets


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
        InputError: If a pattern matches nothing prunable. To exclude what is left out anyway is no
            error.
    """
    found: dict[str, str] = {}
    for position, pattern in enumerate(patterns):
        names = [name for name in prunable if name in matches[pattern]]
        if not names:
            others = [name for name in reasons if name in matches[pattern]]
            if others and key == "prune.exclude":
                continue
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
        return f"{must}, which matches only what cannot be pruned: {_listed(others, reasons)}."
    known = {*prunable, *(name.rpartition(".")[0] for name in prunable)}
    near = difflib.get_close_matches(pattern, sorted(known), n=3)
    hint = f"Did you mean {', '.join(near)}?" if near else f"There are {listed(prunable)}."
    return f"{must}, which matches nothing. {hint}"


def _listed(names: Iterable[str], reasons: Mapping[str, str]) -> str:
    """The first of some tensors, each with its reason."""
    return listed([f"{name} ({reasons[name]})" for name in names], most=3, separator="; ")
