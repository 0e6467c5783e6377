"""SparseML's distillation modifiers, said in our section recover.distill."""

from typing import Any

from mfac_compress.pipeline.recipe.sparseml.document import Modifier
from mfac_compress.pipeline.recipe.sparseml.findings import Fate, Translation

_TIMES = "start_epoch end_epoch update_frequency"
_TEACHER = "The teacher is the dense model"


def translate_distillation(modifier: Modifier, translation: Translation) -> None:
    """Say what the pruned model learns from the dense one.

    Args:
        modifier: A ``DistillationModifier``: outputs.
        translation: Gets the section.
    """
    values = modifier.values
    if not values["hardness"]:
        text = "with hardness 0 nothing is learnt from the teacher"
        translation.note(modifier, "", Fate.NOT_NEEDED, text)
        return
    weight = values["hardness"]
    translation.put(modifier, "hardness", "recover.distill.weight", weight, also=_TEACHER)
    translation.put(modifier, "temperature", "recover.distill.temperature", values["temperature"])
    translation.put(modifier, "", "recover.distill.loss", "kl")
    text = "the output that counts is model.output"
    translation.note_given(modifier, "distill_output_keys", Fate.NEARLY, text)
    text = "the teacher gets what the model gets"
    translation.note_given(modifier, "teacher_input_keys", Fate.NEARLY, text)
    translation.note_given(modifier, _TIMES, Fate.NEARLY, "in all training")


def translate_layers(modifier: Modifier, translation: Translation) -> None:
    """Say which layers of the pruned model learn from the same ones of the dense model.

    Args:
        modifier: A ``PerLayerDistillationModifier``.
        translation: Gets the section.
    """
    values = modifier.values
    names: Any = values["student_layer_names"] or values["teacher_layer_names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        text = "layers must be named: student_layer_names is a list of names here"
        translation.note(modifier, "student_layer_names", Fate.DROPPED, text)
        return
    if values["teacher_layer_names"] not in (None, names):
        text = "a layer learns from the layer of its own name"
        translation.note(modifier, "teacher_layer_names", Fate.DROPPED, text)
        return
    but = "Their differences count as much as that of the outputs"
    translation.put(modifier, "student_layer_names", "recover.distill.layers", names, but)
    translation.note_given(modifier, "teacher_layer_names", Fate.MAPPED, "the same layers")
    text = "see recover.distill.weight"
    translation.note_given(modifier, "gain", Fate.NEARLY, text)
    text = "differences are relative to the dense layer's mean square"
    fate = Fate.MAPPED if values["normalize"] else Fate.NEARLY
    translation.note_given(modifier, "normalize", fate, text)
    text = "both layers have one shape"
    translation.note_given(modifier, "project_features epsilon", Fate.NOT_NEEDED, text)
    translation.note_given(modifier, _TIMES, Fate.NEARLY, "in all training")
