"""SparseML's quantization modifier, said in our section quantize."""

from typing import Any

from mfac_compress.pipeline.recipe.sparseml import kinds
from mfac_compress.pipeline.recipe.sparseml.document import Modifier
from mfac_compress.pipeline.recipe.sparseml.findings import Fate, Translation

_TRAINED = "start_epoch end_epoch disable_quantization_observer_epoch freeze_bn_stats_epoch"
_LAYERS = (
    "ignore submodules exclude_module_types exclude_batchnorm custom_quantizable_module_types "
    "scheme_overrides quantize_embeddings quantize_linear_activations quantize_conv_activations "
    "quantize_embedding_activations"
)
_FOLDED = "model_fuse_fn_name model_fuse_fn_kwargs"
_OF_WEIGHTS = "7 of the weights' 8 bits, where true; activations keep theirs"
_OBSERVERS = "activation_qconfig_kwargs weight_qconfig_kwargs"


def translate_quantization(modifier: Modifier, translation: Translation) -> None:
    """Say quantisation-aware training as quantisation after training.

    Args:
        modifier: A ``QuantizationModifier``, of either kind.
        translation: Gets the section.
    """
    but = (
        "Ranges are measured on calibration samples after training; nothing is trained in 8 bits, "
        "unless recover.quantization_aware says for how many of the last epochs"
    )
    translation.put(modifier, "", "quantize.mode", "static", but)
    translation.note_given(modifier, _TRAINED, Fate.NEARLY, "after all training")
    text = "the layers that cost most are left in float: see quantize.max_divergence"
    translation.note_given(modifier, _LAYERS, Fate.NEARLY, text)
    text = "quantize.samples says how many samples"
    translation.note_given(modifier, "num_calibration_steps", Fate.NEARLY, text)
    text = "batch norm is folded where the file is written"
    translation.note_given(modifier, _FOLDED, Fate.NOT_NEEDED, text)
    translation.note_given(modifier, "strict", Fate.NOT_NEEDED, "no layer is named")
    text = "activations are unsigned, weights signed and symmetric, as processors compute fast"
    translation.note_given(modifier, "tensorrt", Fate.NEARLY, text)
    reduced = modifier.values["reduce_range"]
    translation.put(modifier, "reduce_range", "quantize.reduce_range", reduced, _OF_WEIGHTS)
    _observers(modifier, translation)
    _scheme(modifier, translation)


def _observers(modifier: Modifier, translation: Translation) -> None:
    for key in _OBSERVERS.split():
        if modifier.values[key]:
            text = "ranges are what quantize.ranges says"
            translation.note(modifier, key, Fate.DROPPED, text)
        else:
            translation.note_given(modifier, key, Fate.NOT_NEEDED, "it is empty")


def _scheme(modifier: Modifier, translation: Translation) -> None:
    values = modifier.values
    for key in ("activation_bits", "weight_bits"):
        fate = Fate.MAPPED if values[key] == 8 else Fate.DROPPED
        text = "files are in 8 bits" if values[key] == 8 else "files are in 8 bits, and no others"
        if key in modifier.lines:
            translation.note(modifier, key, fate, text)
    scheme = values["scheme"]
    if "scheme" not in modifier.lines:
        return
    others = [bits for bits in _bits(scheme) if bits != 8]
    if others:
        text = f"files are in 8 bits, and not in {kinds.got(others[0])}"
        translation.note(modifier, "scheme", Fate.DROPPED, text)
        return
    weights = scheme.get("weights") if isinstance(scheme, dict) else None
    strategy = weights.get("strategy") if isinstance(weights, dict) else None
    if strategy in ("tensor", "channel"):
        translation.put(modifier, "scheme", "quantize.per_channel", strategy == "channel")
    else:
        text = "8 bits, weights signed and symmetric, activations unsigned"
        translation.note(modifier, "scheme", Fate.NEARLY, text)


def _bits(scheme: Any) -> list[Any]:
    if not isinstance(scheme, dict):
        return []
    parts = [part for part in scheme.values() if isinstance(part, dict)]
    return [part["num_bits"] for part in parts if "num_bits" in part]
