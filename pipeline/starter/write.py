"""Make a first recipe for a model, and write it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.files import check_absent, write_new
from mfac_compress.pipeline.inputs.layers import PruneTargets, match_targets
from mfac_compress.pipeline.inputs.load import load_inputs
from mfac_compress.pipeline.inputs.model import Model
from mfac_compress.pipeline.inputs.model_file import load_model
from mfac_compress.pipeline.inputs.output import install_output
from mfac_compress.pipeline.inputs.plain_weights import fold_weights
from mfac_compress.pipeline.recipe.file import Written, check_values, with_overrides
from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.recipe.yaml_lines import Document, parse_yaml
from mfac_compress.pipeline.stages.probe import Tried, probe, probe_bytes
from mfac_compress.pipeline.starter import choices, comments
from mfac_compress.pipeline.starter.text import write_commented

_FISHER = ("damping", "damping_unit", "block_size")
PROBE_SECONDS = 60
"""After which the probe begins no other setting."""


@dataclass(frozen=True)
class Starter:
    """A first recipe.

    Args:
        text: YAML with comments.
        layers: How many tensors can be pruned.
        has_data: Whether it can be run as it is.
    """

    text: str
    layers: int
    has_data: bool


def write_starter(
    model_path: Path,
    output: Path,
    *,
    factory: str | None = None,
    overrides: Sequence[str] = (),
    trust_pickle: bool = False,
) -> Starter:
    """Look at a model, and at its data where that is named, and write a first recipe for it.

    Args:
        model_path: As a run takes it.
        output: The recipe; nothing may be there.
        factory: What builds the model; a file's path starts at the working directory.
        overrides: ``key.path=value`` each: keys of the recipe, ``data`` among them.
        trust_pickle: Allow the checkpoint to run code while it is read.

    Raises:
        InputError: If the model, the data or an override is wrong, or the recipe cannot be written.
    """
    check_absent(output, "-o")
    draft = _Draft(factory and _seen_from(factory, output), output, overrides)
    model, targets = _model(draft.recipe, model_path, trust_pickle)
    if ends := choices.small_ends(targets):
        draft.suggest("prune", {"exclude": ends})
    tried, reason = [], "that needs data (--set data...)"
    if draft.has_data:
        tried, reason = _fit_to_data(draft, model_path, trust_pickle)
    memory = choices.Memory.of(
        targets, max(draft.recipe.calibrate.counts.values()), torch.device("cpu")
    )
    if not tried:
        draft.suggest("fisher", {"block_size": memory.largest})
    text = write_commented(
        comments.head(model_path, output, targets),
        draft.values,
        comments.sections(
            targets,
            draft.values,
            memory,
            choices.divided(model.module, targets),
            tried or reason,
            draft.has_data,
        ),
    )
    check_values(parse_yaml(text).value, draft.source, [])  # what is written can be read
    write_new(output, text, "-o")
    return Starter(text, len(targets.matched), draft.has_data)


class _Draft:
    """A recipe on its way.

    Args:
        factory: The recipe's ``model.factory``.
        output: Where the recipe will be.
        overrides: What the user has said.

    Attributes:
        values: What it says so far.
        source: Where its paths start.
        has_data: Whether the user has named the data.

    Raises:
        InputError: If an override is wrong.
    """

    def __init__(self, factory: str | None, output: Path, overrides: Sequence[str]) -> None:
        written = Written(Document(choices.base(factory)), output)
        values, self.source, issues = with_overrides(written, overrides)
        self.has_data = "data" in values
        self.values = {"model": None, "data": choices.DATA} | values
        if self.values["model"] is None:
            del self.values["model"]
        if check_values(self.values, self.source, issues).prune.method == "given":
            raise InputError(
                "--set must leave out prune.masks: a first recipe is one that prunes. Give them to "
                "the run."
            )

    @property
    def recipe(self) -> Recipe:
        """What it says, checked."""
        return check_values(self.values, self.source, [])

    def suggest(self, section: str, settings: dict[str, Any]) -> None:
        """Say what goes together, unless the user has said a part of it."""
        if not self.is_said(section, *settings):
            self.values[section] = {**self.values[section], **settings}

    def is_said(self, section: str, *keys: str) -> bool:
        """Whether the user has said any of a section's keys."""
        said = {key[:2] for key in self.source.overridden}
        return not said.isdisjoint([(section,), *((section, key) for key in keys)])


def _model(recipe: Recipe, path: Path, trust_pickle: bool) -> tuple[Model, PruneTargets]:
    model = load_model(path, recipe.model, folder=recipe.source.folder, trust_pickle=trust_pickle)
    install_output(model.module, recipe.model.output)
    fold_weights(model.module)
    return model, match_targets(model.module, recipe, model.heads)


def _fit_to_data(draft: _Draft, model_path: Path, trust_pickle: bool) -> tuple[list[Tried], str]:
    """Suggest what the samples allow, and what is best on them.

    Returns:
        What was tried; where that is nothing, why.
    """
    recipe = draft.recipe
    inputs = load_inputs(recipe, model_path, trust_pickle=trust_pickle)
    draft.suggest("calibrate", choices.gradients_from(inputs.calibration.draws))
    section = draft.recipe.calibrate
    draws = replace(inputs.calibration.draws, samples_per_gradient=section.samples_per_gradient)
    if draft.is_said("fisher", *_FISHER):
        return [], "it was given"
    if not recipe.prune.uses_gradients:
        return [], f"the method {recipe.prune.method} has no use for it"
    if not len(draws.holdout):
        return [], "no calibration samples are held out (calibrate.holdout)"
    if probe_bytes(inputs.targets) > inputs.budget.bytes:
        return [], f"its gradients do not fit into {inputs.budget}"
    calibration = replace(inputs.calibration, draws=draws)
    tried = probe(
        inputs.model, inputs.targets, calibration, section.gradients_at(0.0), PROBE_SECONDS
    )
    for best in tried[:1]:
        values = (best.damping, "mean_diagonal", best.block_size)
        draft.suggest("fisher", dict(zip(_FISHER, values, strict=True)))
    return tried, "no setting could be computed"


def _seen_from(factory: str, output: Path) -> str:
    """A factory as a recipe names it, whose relative paths start at the recipe's folder."""
    place, colon, name = factory.rpartition(":")
    if not colon or not (place.endswith(".py") or "/" in place):
        return factory
    folder = os.path.realpath(output.parent)
    try:
        return f"{os.path.relpath(os.path.realpath(place), folder)}:{name}"
    except ValueError as error:  # on another drive of Windows
        raise InputError(f"--factory must lie on the drive of -o. Got {place}.") from error
