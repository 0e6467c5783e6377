"""The curvature of SparseML's M-FAC and OBS, said in our sections fisher and calibrate."""

import math

from mfac_compress.mfac.schedule import sparsity_schedule
from mfac_compress.pipeline.recipe.sparseml import kinds
from mfac_compress.pipeline.recipe.sparseml.document import Modifier
from mfac_compress.pipeline.recipe.sparseml.findings import Fate, Translation

_DEVICES = "use_gradient_buffering grads_device num_pages available_devices available_gpus"


def translate_curvature(modifier: Modifier, translation: Translation) -> None:
    """Say the Fisher, and the gradients that it is made of.

    Args:
        modifier: One that prunes by curvature.
        translation: Gets the keys.
    """
    values = modifier.values
    if isinstance(values["num_grads"], dict):
        _growing_gradients(modifier, translation)
    else:
        translation.put(modifier, "num_grads", "calibrate.num_gradients", values["num_grads"])
    translation.put(modifier, "damp", "fisher.damping", values["damp"])
    side = values["fisher_block_size"]
    but = ""
    if side and modifier.name == "MFACPruningModifier":
        but = "Blocks begin anew with each tensor"
    translation.put(modifier, "fisher_block_size", "fisher.block_size", side or "full", but)
    _sampler(modifier, translation)
    note_devices(modifier, translation)


def note_devices(modifier: Modifier, translation: Translation) -> None:
    """Say that where things are computed needs no word."""
    text = "memory and device are chosen by run.device and run.memory_budget"
    translation.note_given(modifier, _DEVICES, Fate.NOT_NEEDED, text)


def _growing_gradients(modifier: Modifier, translation: Translation) -> None:
    """Numbers of gradients that grow with sparsity, by the sparsities of our steps.

    Of the shares of ``num_grads`` SparseML takes the first one that is not below the sparsity
    before a step (``_get_num_grads_for_sparsity`` in 1.8); its documentation says that it were the
    last one that is reached, which is what ours means.
    """
    grads, prune = modifier.values["num_grads"], translation.values["prune"]
    final, schedule = modifier.values["final_sparsity"], prune.get("schedule", {})
    reached = sparsity_schedule(
        max(final) if isinstance(final, dict) else final,
        prune["steps"],
        schedule.get("interpolation", "linear"),
        schedule.get("init"),
    )
    most = [*grads.values()][-1]
    counts, before = {"0": grads[0]}, 0.0
    for sparsity in reached[:-1]:
        count = next((count for share, count in grads.items() if share >= sparsity), most)
        if count != [*counts.values()][-1]:
            counts[_just_below(sparsity, before)] = count
        before = sparsity
    but, also = "", "There, the first share that is not below the sparsity before a step counts"
    if isinstance(final, dict):
        but = "By the share of all weights that are gone, and not by the mean over tensors"
    number = counts if len(counts) > 1 else grads[0]
    translation.put(modifier, "num_grads", "calibrate.num_gradients", number, but, also)


def _just_below(sparsity: float, lower: float) -> str:
    """A sparsity, or a little less, in few digits; above another one."""
    for digits in range(4, 9):
        text = f"{math.floor(sparsity * 10**digits + 1e-6) / 10**digits:.{digits}f}"
        if float(text) > lower:
            return text.rstrip("0")
    return repr(sparsity)


def _sampler(modifier: Modifier, translation: Translation) -> None:
    sampler = modifier.values["grad_sampler_kwargs"] or {}
    key = "grad_sampler_kwargs"
    if "batch_size" in sampler:
        try:
            size = kinds.count(sampler["batch_size"])
        except ValueError as error:
            translation.note(modifier, key, Fate.REFUSED, f"batch_size must be {error}")
            return
        others = sorted(set(sampler) - {"batch_size"})
        also = f"{', '.join(others)}: not needed, data is read by section data" if others else ""
        translation.put(modifier, key, "calibrate.samples_per_gradient", size, also=also)
        return
    text = "a gradient is of one batch of the training script there, and of as many samples as "
    text += "calibrate.samples_per_gradient says here"
    translation.note(modifier, key, Fate.NEARLY, text)
