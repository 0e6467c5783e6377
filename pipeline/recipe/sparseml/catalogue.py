"""The modifiers of SparseML 1.8 with their keys, what these may hold, and their defaults."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mfac_compress.pipeline.quoting import printable, shortened
from mfac_compress.pipeline.recipe.keys import nearest
from mfac_compress.pipeline.recipe.source import RecipeIssue
from mfac_compress.pipeline.recipe.sparseml import kinds
from mfac_compress.pipeline.recipe.sparseml.document import Modifier
from mfac_compress.pipeline.recipe.sparseml.kinds import Kind


class _Required:
    """Stands for the default of a key that has none."""


REQUIRED = _Required()


@dataclass(frozen=True)
class Key:
    """A key of a modifier.

    Args:
        kind: What it may hold.
        default: SparseML's.
    """

    kind: Kind
    default: Any = REQUIRED


def _optional(**defaults: tuple[Kind, Any]) -> dict[str, Key]:
    return {name: Key(kind, default) for name, (kind, default) in defaults.items()}


_TIMES = {"start_epoch": Key(kinds.epoch), "end_epoch": Key(kinds.epoch)}
_TIMES_OR_NOT = {name: Key(kinds.epoch, -1.0) for name in ("start_epoch", "end_epoch")}
_EVERY = {"update_frequency": Key(kinds.epoch, -1.0)}
_LOGS = _optional(
    constant_logging=(kinds.anything, False),
    log_types=(kinds.anything, kinds.ALL),  # of versions before 1.0
)
_GROUPS = _optional(param_groups=(kinds.anything, None))
_GRADUAL = {
    **_TIMES,
    "update_frequency": Key(kinds.epoch),
    "init_sparsity": Key(kinds.initial_share),
    "final_sparsity": Key(kinds.share_or_groups),
    "params": Key(kinds.names),
    **_optional(
        leave_enabled=(kinds.switch, True),
        inter_func=(kinds.text, "cubic"),
        mask_type=(kinds.mask, "unstructured"),
        log_types=(kinds.anything, kinds.ALL),
    ),
}
_SAMPLER = _optional(grad_sampler_kwargs=(kinds.mapping, None))

CATALOGUE: dict[str, dict[str, Key]] = {
    "EpochRangeModifier": _TIMES,
    "SetLearningRateModifier": {
        "learning_rate": Key(kinds.at_least_0),
        **_TIMES_OR_NOT,
        **_GROUPS,
        **_LOGS,
    },
    "LearningRateFunctionModifier": {
        "lr_func": Key(kinds.text),
        "init_lr": Key(kinds.at_least_0),
        "final_lr": Key(kinds.at_least_0),
        **_TIMES,
        "cycle_epochs": Key(kinds.positive, 1.0),
        **_GROUPS,
        **_EVERY,
        **_LOGS,
    },
    "LearningRateModifier": {
        "lr_class": Key(kinds.text),
        "lr_kwargs": Key(kinds.mapping),
        "init_lr": Key(kinds.at_least_0),
        "start_epoch": Key(kinds.epoch),
        "end_epoch": Key(kinds.epoch, -1.0),
        **_EVERY,
        **_LOGS,
    },
    "SetWeightDecayModifier": {
        "weight_decay": Key(kinds.at_least_0),
        **_TIMES_OR_NOT,
        **_GROUPS,
        **_LOGS,
    },
    "MFACPruningModifier": {
        **_GRADUAL,
        **_SAMPLER,
        **_optional(
            global_sparsity=(kinds.switch, False),
            use_gradient_buffering=(kinds.anything, None),
            num_grads=(kinds.counts_by_share, 64),
            damp=(kinds.positive, 1e-5),
            grads_device=(kinds.anything, "cpu"),
            fisher_block_size=(kinds.count_or_none, 2000),
            num_pages=(kinds.anything, 1),
            available_devices=(kinds.anything, None),
            available_gpus=(kinds.anything, None),  # of versions before 1.0
        ),
    },
    "OBSPruningModifier": {
        **_GRADUAL,
        **_SAMPLER,
        **_optional(
            global_sparsity=(kinds.switch, True),
            num_grads=(kinds.count, 1024),
            damp=(kinds.positive, 1e-7),
            fisher_block_size=(kinds.count, 1),
            num_recomputations=(kinds.count, 1),
        ),
    },
    "GMPruningModifier": {
        **_GRADUAL,
        **_optional(
            global_sparsity=(kinds.switch, False),
            phased=(kinds.switch, False),
            score_type=(kinds.text, "magnitude"),
        ),
    },
    "MagnitudePruningModifier": _GRADUAL,
    "GlobalMagnitudePruningModifier": _GRADUAL,
    "MovementPruningModifier": _GRADUAL,
    "StructuredPruningModifier": {
        **_GRADUAL,
        "final_sparsity": Key(kinds.share),
        "params": Key(kinds.names, [kinds.ALL_PRUNABLE]),
        "mask_type": Key(kinds.text, "filter"),
        "param_groups": Key(kinds.anything, None),
    },
    "ConstantPruningModifier": {
        "params": Key(kinds.names),
        **_TIMES_OR_NOT,
        **_EVERY,
        "log_types": Key(kinds.anything, kinds.ALL),
    },
    "LayerPruningModifier": {"layers": Key(kinds.names), **_TIMES_OR_NOT, **_EVERY},
    "DistillationModifier": {
        **_TIMES_OR_NOT,
        **_EVERY,
        **_optional(
            hardness=(kinds.at_least_0, 0.5),
            temperature=(kinds.positive, 2.0),
            distill_output_keys=(kinds.anything, None),
            teacher_input_keys=(kinds.anything, None),
        ),
    },
    "PerLayerDistillationModifier": {
        **_TIMES_OR_NOT,
        **_EVERY,
        **_optional(
            gain=(kinds.at_least_0, 1.5),
            normalize=(kinds.switch, True),
            student_layer_names=(kinds.anything, None),
            teacher_layer_names=(kinds.anything, None),
            project_features=(kinds.switch, True),
            epsilon=(kinds.positive, 1e-6),
        ),
    },
    "QuantizationModifier": {
        **_TIMES_OR_NOT,
        **_optional(
            scheme=(kinds.anything, None),
            scheme_overrides=(kinds.anything, None),
            ignore=(kinds.anything, None),
            submodules=(kinds.anything, None),
            disable_quantization_observer_epoch=(kinds.anything, None),
            freeze_bn_stats_epoch=(kinds.anything, None),
            model_fuse_fn_name=(kinds.anything, None),
            model_fuse_fn_kwargs=(kinds.anything, None),
            num_calibration_steps=(kinds.anything, None),
            strict=(kinds.anything, True),
            quantize_embeddings=(kinds.switch, True),
            reduce_range=(kinds.switch, False),
            quantize_linear_activations=(kinds.switch, True),
            quantize_conv_activations=(kinds.switch, True),
            quantize_embedding_activations=(kinds.switch, True),
            activation_bits=(kinds.count, 8),
            weight_bits=(kinds.count, 8),
            exclude_batchnorm=(kinds.anything, True),
            exclude_module_types=(kinds.anything, None),
            custom_quantizable_module_types=(kinds.anything, None),
            activation_qconfig_kwargs=(kinds.anything, None),
            weight_qconfig_kwargs=(kinds.anything, None),
            tensorrt=(kinds.switch, False),
        ),
    },
}
"""Modifier to its keys. Others are known by name only: see ``WITHOUT_KEYS``."""

WITHOUT_KEYS = (
    "ACDCPruningModifier",
    "ASRegModifier",
    "GradualParamModifier",
    "LayerThinningModifier",
    "PowerpropagationModifier",
    "RigLPruningModifier",
    "SetParamModifier",
    "SparsificationLoggingModifier",
    "TopKASTPruningModifier",
    "TrainableParamsModifier",
)
"""Modifiers that have no counterpart or no effect here, whatever their keys say."""

_MISSPELT = {"MagnutidePruningModifier": "MagnitudePruningModifier"}
"""As SparseML's own documentation writes them."""


def checked(modifier: Modifier) -> tuple[Modifier, list[RecipeIssue]]:
    """Check the keys of a modifier and fill in SparseML's defaults.

    Args:
        modifier: As the recipe has it.
    Returns:
        The modifier with a value for each of its keys, and what is wrong with it.
    """
    name = _MISSPELT.get(modifier.name, modifier.name)
    if name in WITHOUT_KEYS:
        return modifier, []
    if name not in CATALOGUE:
        near = nearest(shortened(name), [*CATALOGUE, *WITHOUT_KEYS])
        advice = f" Did you mean {near}?" if near else ""
        text = f"must be a modifier of SparseML. Got {shortened(name)}.{advice}"
        return modifier, [RecipeIssue(modifier.key, printable(text))]
    given = _flattened(modifier)
    known = CATALOGUE[name]
    issues = list(_unknown(given, known, modifier))
    values = {}
    for key, said in known.items():
        if key in given:
            values[key], issue = _value(given[key], said, (*modifier.key, key))
        elif said.default is REQUIRED:
            text = f"must have {key}. It is missing."
            values[key], issue = None, RecipeIssue((*modifier.key, key), text, modifier.line)
        else:
            values[key], issue = said.default, None
        issues += [issue] if issue else []
    return Modifier(name, values, modifier.key, modifier.line, modifier.lines), issues


def _flattened(modifier: Modifier) -> dict[str, Any]:
    """The keys, those of ``mfac_options`` (before 1.0) among them."""
    options = modifier.values.get("mfac_options")
    if modifier.name != "MFACPruningModifier" or not isinstance(options, dict):
        return modifier.values
    line = modifier.line_of("mfac_options")
    modifier.lines.update(dict.fromkeys(options, line))
    others = {key: value for key, value in modifier.values.items() if key != "mfac_options"}
    return {**options, **others}


def _value(value: Any, said: Key, key: tuple[str | int, ...]) -> tuple[Any, RecipeIssue | None]:
    if value is None and said.default is None:
        return None, None
    try:
        return said.kind(value), None
    except ValueError as error:
        return None, RecipeIssue(key, printable(f"must be {error}. Got {kinds.got(value)}."))


def _unknown(
    given: dict[str, Any], known: dict[str, Key], modifier: Modifier
) -> Iterator[RecipeIssue]:
    for key in given:
        if key not in known:
            near = nearest(shortened(key), list(known))
            advice = f" Did you mean {near}?" if near else f" It has {', '.join(known)}."
            text = f"is not a key of {modifier.name}.{advice}"
            yield RecipeIssue((*modifier.key, key), text)
