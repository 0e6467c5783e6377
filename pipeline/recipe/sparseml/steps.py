"""Gradual pruning of SparseML, said in our steps of the section prune."""

from mfac_compress.pipeline.recipe.sparseml import kinds
from mfac_compress.pipeline.recipe.sparseml.document import Modifier
from mfac_compress.pipeline.recipe.sparseml.findings import Fate, Translation
from mfac_compress.pipeline.recipe.sparseml.timeline import Timeline


def translate_steps(modifier: Modifier, timeline: Timeline, translation: Translation) -> None:
    """Say in how many steps is pruned, and what lies between them.

    Args:
        modifier: The one that prunes.
        timeline: Of the recipe.
        translation: Gets the keys.
    """
    several = timeline.steps > 1
    but = ""
    if not timeline.is_exact:
        but = f"Training is counted in whole epochs: a step each {timeline.epochs_between}"
    if timeline.one_shot:
        also = "In one shot: the recipe says nothing about training"
    else:
        also = f"From epoch {timeline.start:g} to {timeline.end:g}"
    translation.put(modifier, "update_frequency", "prune.steps", timeline.steps, but, also)
    if several:
        translation.put(
            modifier, "update_frequency", "prune.epochs_between", timeline.epochs_between
        )
    _interpolation(modifier, timeline, translation)
    _recomputations(modifier, timeline, translation)
    translation.note_given(modifier, "end_epoch", Fate.MAPPED, "see prune.steps")
    if timeline.start > 0 and not timeline.one_shot:
        text = (
            f"training starts with the first step. Give a model that is trained for the "
            f"{timeline.start:g} epochs before"
        )
        translation.note(modifier, "start_epoch", Fate.NEARLY, text)
    else:
        translation.note_given(modifier, "start_epoch", Fate.MAPPED, "see prune.steps")


def _interpolation(modifier: Modifier, timeline: Timeline, translation: Translation) -> None:
    """How sparsity grows from the first step to the last."""
    inter_func, initial = modifier.values["inter_func"], modifier.values["init_sparsity"]
    if inter_func not in ("linear", "cubic", "inverse_cubic"):
        text = "must be linear, cubic or inverse_cubic"
        translation.note(modifier, "inter_func", Fate.REFUSED, text)
        return
    if timeline.steps == 1:
        text = "there is one step, to the final sparsity"
        translation.note_given(modifier, "init_sparsity inter_func", Fate.NOT_NEEDED, text)
        return
    ours = "linear" if inter_func == "inverse_cubic" else inter_func
    but = "" if timeline.is_even else "All steps are as far apart as the first two"
    if ours != inter_func:
        but = "SparseML removes least at first and most at last"
    translation.put(modifier, "inter_func", "prune.schedule.interpolation", ours, but)
    if initial == kinds.FROM_PARAM:
        text = "the first step removes what the interpolation from 0 gives"
        translation.note(modifier, "init_sparsity", Fate.NEARLY, text)
        return
    groups = isinstance(modifier.values["final_sparsity"], dict)
    but = "In proportion for tensors with a sparsity of their own" if groups else ""
    translation.put(modifier, "init_sparsity", "prune.schedule.init", initial, but)


def _recomputations(modifier: Modifier, timeline: Timeline, translation: Translation) -> None:
    """New inverses within a step: as many steps, where there is one."""
    again = modifier.values.get("num_recomputations", 1)
    key = "num_recomputations"
    if again == 1:
        translation.note_given(modifier, key, Fate.MAPPED, "each step has its inverse")
    elif timeline.steps > 1:
        text = "each step has one inverse. Raise prune.steps for more"
        translation.note(modifier, key, Fate.NEARLY, text)
    else:
        translation.put(modifier, key, "prune.steps", again)
        translation.put(modifier, key, "prune.schedule.interpolation", "linear")
