"""A SparseML recipe as one of ours: every modifier has its line here, or its reason."""

from collections.abc import Sequence

from mfac_compress.pipeline.recipe.source import RecipeIssue
from mfac_compress.pipeline.recipe.sparseml.catalogue import checked
from mfac_compress.pipeline.recipe.sparseml.distillation import (
    translate_distillation,
    translate_layers,
)
from mfac_compress.pipeline.recipe.sparseml.document import Modifier
from mfac_compress.pipeline.recipe.sparseml.findings import Fate, Translation
from mfac_compress.pipeline.recipe.sparseml.pruning import METHODS, translate_pruning
from mfac_compress.pipeline.recipe.sparseml.quantization import translate_quantization
from mfac_compress.pipeline.recipe.sparseml.timeline import timeline_of
from mfac_compress.pipeline.recipe.sparseml.training import translate_training

_OTHER_PRUNING = "Use MFACPruningModifier or OBSPruningModifier, or prune.method of ours"
REFUSED = {
    "MovementPruningModifier": "it prunes by how weights move in a training of many epochs, which "
    f"post-training compression does not have. {_OTHER_PRUNING}",
    "ACDCPruningModifier": "it trains sparse and dense in turn from the start, which post-training "
    f"compression does not. {_OTHER_PRUNING}",
    "RigLPruningModifier": "it trains a sparse model from the start, in which weights come back. "
    f"{_OTHER_PRUNING}",
    "TopKASTPruningModifier": "it trains a sparse model from the start, in which weights come "
    f"back. {_OTHER_PRUNING}",
}
"""Modifiers that decide what is pruned in a way that nothing stands for, and why."""

DROPPED = {
    "LayerPruningModifier": "layers cannot be taken out of a model here. Take them out in "
    "model.factory, and give the weights of the smaller model",
    "TrainableParamsModifier": "all parameters are trained in recovery",
    "SetParamModifier": "set the parameter in model.factory",
    "GradualParamModifier": "no parameter is moved on a schedule",
    "ASRegModifier": "no penalty is put on activations",
    "PowerpropagationModifier": "weights are not parametrised anew",
}
"""Modifiers that can be left out, if the user allows it, and why they must be."""

NOT_NEEDED = {
    "ConstantPruningModifier": "recovery keeps every zero of the pruned tensors",
    "LayerThinningModifier": "channels that are gone are cut out of the file",
    "SparsificationLoggingModifier": "the report shows all steps",
}
"""Modifiers whose work is done anyway."""

OTHERS = {
    "DistillationModifier": translate_distillation,
    "PerLayerDistillationModifier": translate_layers,
    "QuantizationModifier": translate_quantization,
}
"""Modifiers that are translated each on its own."""


def translate(
    modifiers: Sequence[Modifier],
) -> tuple[Translation, list[RecipeIssue]]:
    """Say modifiers as a recipe of ours.

    Args:
        modifiers: In the order of the file, variables put in.
    Returns:
        The recipe with what became of each line, and what is wrong with modifiers and their keys;
        where something is, the recipe is not complete.
    """
    translation = Translation()
    sound: list[Modifier] = []
    issues: list[RecipeIssue] = []
    for modifier in modifiers:
        found, wrong = checked(modifier)
        sound += [] if wrong else [found]
        issues += wrong
    if issues:
        return translation, issues
    for modifier in sound:
        for names, fate in (
            (REFUSED, Fate.REFUSED),
            (DROPPED, Fate.DROPPED),
            (NOT_NEEDED, Fate.NOT_NEEDED),
        ):
            if modifier.name in names:
                translation.note(modifier, "", fate, names[modifier.name])
    pruning = [modifier for modifier in sound if modifier.name in METHODS]
    if not pruning:
        names = ", ".join(name.removesuffix("PruningModifier") for name in METHODS)
        text = (
            f"must have a modifier that prunes: {names}. A model that is sparse already goes "
            "through with masks and weights of its own: prune.masks and prune.weights of a recipe "
            "of ours."
        )
        return translation, [RecipeIssue((), text)]
    timeline = timeline_of(pruning[0], sound)
    translate_pruning(pruning, timeline, translation)
    translate_training(sound, timeline, translation)
    for modifier in sound:
        if modifier.name in OTHERS:
            OTHERS[modifier.name](modifier, translation)
    translation.findings.sort(key=lambda finding: finding.line)
    return translation, []
