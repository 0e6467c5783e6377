"""Masks and weights that were trained elsewhere: the model from which a run goes on."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mfac_compress.mfac.layout import Layout, Shapes
from mfac_compress.mfac.mask_file import load_masks
from mfac_compress.mfac.masking import MaskHooks, revived
from mfac_compress.mfac.units import Units, Unstructured
from mfac_compress.pipeline.errors import InputError, describe
from mfac_compress.pipeline.files import check_exists, check_regular
from mfac_compress.pipeline.inputs.callables import user_code
from mfac_compress.pipeline.inputs.checkpoint import read_checkpoint
from mfac_compress.pipeline.inputs.chosen_weights import choose_weights, is_state_dict
from mfac_compress.pipeline.inputs.exported_program import is_exported_program
from mfac_compress.pipeline.inputs.fit import fit
from mfac_compress.pipeline.inputs.layers import PruneTargets, Target
from mfac_compress.pipeline.inputs.model import Model
from mfac_compress.pipeline.inputs.model_file import read_file, tensors_digest
from mfac_compress.pipeline.inputs.prunable import why_not_prunable
from mfac_compress.pipeline.quoting import listed, printable
from mfac_compress.pipeline.recipe.schema import ModelSection, Recipe
from mfac_compress.pipeline.weights import not_finite


@dataclass(frozen=True, eq=False)
class Given:
    """A pruned model that is not of this run.

    Args:
        module: A copy of the dense model with the trained weights, on the CPU.
        masks: Mask of each pruned parameter by name, True = kept, on the CPU.
    """

    module: nn.Module
    masks: Mapping[str, Tensor]

    @cached_property
    def digest(self) -> dict[str, str]:
        """SHA-256 of masks and weights, for the manifest and for keys."""
        tensors = (*self.module.named_parameters(), *self.module.named_buffers())
        return {
            "prune_masks_sha256": tensors_digest(sorted(self.masks.items())),
            "prune_weights_sha256": tensors_digest(tensors),
        }


@dataclass(frozen=True)
class _Removed:
    """The pattern of masks that are there already: so many of all weights are removed."""

    sparsity: float

    def resolve(
        self, shapes: Shapes, sparsity: float, own: Mapping[str, float] | None = None
    ) -> tuple[Layout, Units]:
        """All weights in one competition, whose outcome is known."""
        del sparsity, own
        return Unstructured().resolve(shapes, self.sparsity)


def load_given(recipe: Recipe, model: Model, *, trust_pickle: bool) -> Given | None:
    """Read the files of ``prune.masks`` and ``prune.weights``.

    Args:
        recipe: Names them.
        model: The dense model, on the CPU.
        trust_pickle: Allow the weights' file to run code while it is read.

    Returns:
        The pruned model; None where the recipe prunes one itself.

    Raises:
        InputError: If a file cannot be read or does not fit the model; if a weight that a mask
            removes is not zero; or if all of them are zero in the dense model as well, which then
            is none.
    """
    section, where = recipe.prune, recipe.where
    if section.masks is None or section.weights is None:
        return None
    masks = _masks(recipe, section.masks, model.module)
    removed = sum(int((~mask).sum()) for mask in masks.values())
    if removed and not revived(dict(model.module.named_parameters()), masks):
        raise InputError(
            f"{where('prune.masks')}: MODEL must be the dense model, which all others are compared "
            f"with. Got one in which all {removed:,} weights that {section.masks} removes are "
            "zero. Give the checkpoint that was pruned as MODEL, and what was trained as "
            "prune.weights."
        )
    module = _trained(recipe, section.weights, model.copy().cpu(), trust_pickle)
    parameters = dict(module.named_parameters())
    alive = revived(parameters, masks)
    if alive:
        found = listed([f"{count:,} in {name}" for name, count in alive.items()], most=len(alive))
        raise InputError(
            f"{where('prune.weights')}: every weight that {section.masks} removes must be zero. "
            f"{section.weights} has {sum(alive.values()):,} that are not: {found}. Train with "
            "MaskHooks.load(masks, model).attach(optimizer), or take the masks it was trained with."
        )
    MaskHooks(parameters, masks)  # +0 of each -0 that multiplying by a mask leaves
    return Given(module, masks)


def given_targets(given: Given, model: Model, recipe: Recipe) -> PruneTargets:
    """The tensors that the masks are of, as what is pruned.

    Raises:
        InputError: If one of them cannot be pruned.
    """
    shapes = {name: tuple(p.shape) for name, p in model.module.named_parameters()}
    reasons = why_not_prunable(model.module)
    masks = {name: given.masks[name] for name in shapes if name in given.masks}
    left_out = {
        name: reasons.get(name, f"no mask in {recipe.prune.masks}")
        for name in shapes
        if name in reasons or name not in masks
    }
    check_targets(given, left_out, recipe)
    matched = tuple(
        Target(name, shapes[name], 1 - float(mask.double().mean()), competes_alone=True)
        for name, mask in masks.items()
    )
    kept = sum(int(mask.sum()) for mask in masks.values())
    removed = _Removed(1 - kept / sum(mask.numel() for mask in masks.values()))
    return PruneTargets(matched, left_out, sum(map(prod, shapes.values())), removed)


def check_targets(given: Given, left_out: Mapping[str, str], recipe: Recipe) -> None:
    """Check that each mask is of a tensor that is pruned.

    Args:
        given: Has the masks.
        left_out: Name to reason of the tensors that are not.
        recipe: Names the file.

    Raises:
        InputError: If one is not: nobody would look for its zeros in the file that ships.
    """
    reasons = [f"{name} ({left_out[name]})" for name in given.masks if name in left_out]
    if reasons:
        raise InputError(
            f"{recipe.where('prune.masks')}: each mask must be of a weight that can be pruned. "
            f"{len(reasons)} in {recipe.prune.masks} are not: {'; '.join(reasons)}. Take them out "
            "of the file."
        )


def _masks(recipe: Recipe, written: str, module: nn.Module) -> dict[str, Tensor]:
    where, path = recipe.where("prune.masks"), recipe.source.resolve(written)
    check_exists(path, written, where, "file")
    check_regular(path, where)
    try:
        masks = load_masks(path, dict(module.named_parameters()))
    except ValueError as error:
        raise InputError(f"{where}: {printable(str(error))}") from error
    if not any(bool(mask.any()) for mask in masks.values()):
        raise InputError(
            f"{where}: masks must keep a weight. Those of {written} keep none: True means kept."
        )
    return masks


def _trained(recipe: Recipe, written: str, module: nn.Module, trust_pickle: bool) -> nn.Module:
    """Put the trained weights into a copy of the dense model."""
    where, path = recipe.where("prune.weights"), recipe.source.resolve(written)
    check_exists(path, written, where, "file")
    try:
        weights = _read_weights(path, recipe.model, trust_pickle)
        prefix = recipe.model.prefix
        if prefix is not None and not any(name.startswith(prefix) for name in weights):
            prefix = None
        fit(module, weights, path, str(recipe.model.factory or "MODEL"), prefix)
    except InputError as error:
        raise InputError(f"{where}: {printable(str(error))}") from error
    broken = not_finite(module)
    if broken:
        raise InputError(
            f"{where}: weights must be finite. NaN or Inf in {len(broken)} of {written}: "
            f"{listed(broken)}. Take an earlier checkpoint."
        )
    return module


def _read_weights(path: Path, section: ModelSection, trust_pickle: bool) -> Mapping[str, Any]:
    """The state dict in a file; in one of several, as for MODEL, that of ``model.weights``."""
    content = read_file(path)
    if is_exported_program(path, content):
        raise InputError(
            f"{path} must be a checkpoint (.pt, .pth or .safetensors) with weights alone. It is a "
            "program of torch.export. Save its state_dict()."
        )
    loaded = read_checkpoint(path, content, trust_pickle=trust_pickle)
    weights = choose_weights(loaded, None if is_state_dict(loaded) else section.weights, path)
    if not isinstance(weights.weights, nn.Module):
        return weights.weights
    try:
        with user_code():
            return weights.weights.state_dict()
    except Exception as error:
        raise InputError(f"{path}: its state_dict() raised {describe(error)}.") from error
