"""The curvature of SparseML's M-FAC and OBS, said in our sections fisher and calibrate."""

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
    grads = values["num_grads"]
    if isinstance(grads, dict):
        final = values["final_sparsity"]
        reached = max(final) if isinstance(final, dict) else final
        number = [counted for least, counted in grads.items() if least <= reached][-1]
        but = "All steps have as many gradients as the last one, and those before it more"
        translation.put(modifier, "num_grads", "calibrate.num_gradients", number, but)
    else:
        translation.put(modifier, "num_grads", "calibrate.num_gradients", grads)
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
