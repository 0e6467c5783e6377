"""Pruning modifiers of SparseML, said in our sections prune, fisher and calibrate."""

import re
from collections.abc import Sequence
from typing import Any

from mfac_compress.pipeline.recipe.sparseml import kinds
from mfac_compress.pipeline.recipe.sparseml.curvature import note_devices, translate_curvature
from mfac_compress.pipeline.recipe.sparseml.document import Modifier
from mfac_compress.pipeline.recipe.sparseml.findings import Fate, Translation
from mfac_compress.pipeline.recipe.sparseml.steps import translate_steps
from mfac_compress.pipeline.recipe.sparseml.timeline import Timeline

METHODS = {
    "MFACPruningModifier": "mfac",
    "OBSPruningModifier": "mfac",
    "GMPruningModifier": "magnitude",
    "MagnitudePruningModifier": "magnitude",
    "GlobalMagnitudePruningModifier": "magnitude",
    "StructuredPruningModifier": "magnitude",
}
"""Modifiers that have a counterpart, and our ``prune.method``."""

_SAME = (  # what several pruning modifiers of one recipe must have in common
    *("start_epoch", "end_epoch", "update_frequency", "init_sparsity", "inter_func", "mask_type"),
    *("num_grads", "damp", "fisher_block_size", "num_recomputations", "grad_sampler_kwargs"),
)
_JOINT = (
    "Weights that stay are updated for all removed ones together (prune.update: joint); SparseML's "
    "sum of single corrections is prune.update: single"
)
_ONE_AMONG_THEM = (
    "Each of its tensors is pruned to this share on its own, where SparseML compares those of one "
    "modifier with each other"
)
_BLOCKS = {"block4": (1, 4), "4block": (1, 4), "block": (1, 4)}


def translate_pruning(
    modifiers: Sequence[Modifier], timeline: Timeline, translation: Translation
) -> None:
    """Say what is pruned, how much, in which pattern and by which curvature.

    Args:
        modifiers: At least one, of ``METHODS``. Several must differ in parameters and final
            sparsity only.
        timeline: Of the first.
        translation: Gets the sections.
    """
    first = modifiers[0]
    for other in modifiers[1:]:
        differing = _difference(first, other)
        if differing:
            text = (
                f"several pruning modifiers must have one method and one schedule. Its {differing} "
                f"differs from that of line {first.line}. Make a recipe of each, and run one on "
                "the result of the other"
            )
            translation.note(other, "", Fate.REFUSED, text)
            return
    method = METHODS[first.name]
    translation.put(first, "", "prune.method", method, _JOINT if method == "mfac" else "")
    _sparsities(modifiers, translation)
    _pattern(first, translation)
    translate_steps(first, timeline, translation)
    if method == "mfac":
        translate_curvature(first, translation)
    for modifier in modifiers:
        _rest(modifier, translation)
    for modifier in modifiers[1:]:
        _as_the_first(modifier, first, translation)


def _difference(first: Modifier, other: Modifier) -> str:
    if METHODS[first.name] != METHODS[other.name]:
        return "method"
    return next((key for key in _SAME if first.values.get(key) != other.values.get(key)), "")


def pattern_of(name: str) -> str:
    """Say a parameter's name, or a pattern of SparseML's, as a pattern of ours.

    Args:
        name: A word for all, a whole name, or ``re:`` and what a name must begin with.
    Returns:
        A glob, or ``re:`` and what a whole name must be.

    >>> pattern_of("re:encoder.*query.weight"), pattern_of("re:a|b")
    ('re:encoder.*query.weight.*', 're:(?:a|b).*')
    """
    if name in (kinds.ALL, kinds.ALL_PRUNABLE):
        return "*"
    if not name.startswith("re:"):
        return re.sub(r"([*?[])", r"[\1]", name)
    expression = name[len("re:") :]
    # SparseML looks at the beginning of a parameter's name. We look at whole names, and at those of
    # modules as well: what could tell a module from its parameters must not be left to it.
    if re.search(r"\(\?[!=<]", expression):
        return f"re:(?=.*weight)(?:{expression}).*"
    if re.search(r"(?<!\\)(\.\*|\$)$", expression) and "|" not in expression:
        return name
    return f"re:(?:{expression}).*" if "|" in expression else f"{name}.*"


def _sparsities(modifiers: Sequence[Modifier], translation: Translation) -> None:
    """Which tensors lose how much."""
    first = modifiers[0]
    groups = isinstance(first.values["final_sparsity"], dict)
    if len(modifiers) == 1 and not groups:
        is_global = _is_global(first)
        key = "global_sparsity" if "global_sparsity" in first.values else ""
        translation.put(first, key, "prune.scope", "global" if is_global else "layerwise")
        translation.put(first, "final_sparsity", "prune.sparsity", first.values["final_sparsity"])
        names = first.values["params"]
        but = "No biases" if kinds.ALL in names else ""
        also = "Recurrent layers among them, and no embeddings" if _patterns(names) == ["*"] else ""
        translation.put(first, "params", "prune.include", _patterns(names), but, also)
        return
    include: list[str] = []
    overrides: dict[str, float] = {}
    for modifier in modifiers:
        final, params = modifier.values["final_sparsity"], modifier.values["params"]
        grouped = final if isinstance(final, dict) else {final: params}
        if isinstance(final, dict) and params:
            text = "must be [] where final_sparsity names the parameters"
            translation.note(modifier, "params", Fate.REFUSED, text)
            return
        for sparsity, names in grouped.items():
            for pattern in _patterns(names):
                include += [pattern] if pattern not in include else []
                overrides.setdefault(pattern, sparsity)
        but = _ONE_AMONG_THEM if not isinstance(final, dict) and _is_global(modifier) else ""
        translation.put(
            modifier, "final_sparsity", "prune.sparsity", max(overrides.values()),
            but, "Each tensor has its own in prune.overrides",
        )  # fmt: skip
    # Of several patterns the first counts there, the last here.
    backwards = dict(reversed(overrides.items()))
    translation.put(first, "final_sparsity", "prune.overrides", backwards)
    translation.put(first, "params", "prune.include", include)
    for modifier in modifiers[1:]:
        translation.note_given(modifier, "params", Fate.MAPPED, "see prune.overrides")


def _is_global(modifier: Modifier) -> bool:
    if modifier.name == "GlobalMagnitudePruningModifier":
        return True
    return bool(modifier.values.get("global_sparsity"))


def _patterns(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(pattern_of(name) for name in names))


def _pattern(modifier: Modifier, translation: Translation) -> None:
    """Where zeros may be."""
    mask = modifier.values["mask_type"]
    pattern: Any = None
    but = ""
    if modifier.name == "StructuredPruningModifier":
        pattern = "channels" if mask in ("filter", "channel") else None
        but = "A channel goes with the filter that makes it and with all weights that read it"
    elif mask == "unstructured":
        pattern = mask
    elif sides := _BLOCKS.get(mask) if isinstance(mask, str) else mask:
        pattern = _block(sides)
    elif mask == "tensorrt" or re.fullmatch(r"\d{1,2}:\d{1,2}", mask):
        kept, among = map(int, ["2", "4"] if mask == "tensorrt" else mask.split(":"))
        if 0 < kept < among:
            pattern = {"n": kept, "m": among}
            _round_to(1 - kept / among, modifier, translation)
    if pattern is None:
        text = "zeros must be unstructured, in blocks of [1, n] or [n, 1], n of m, or channels"
        translation.note(modifier, "mask_type", Fate.REFUSED, text)
        return
    translation.put(modifier, "mask_type", "prune.pattern", pattern, but)


def _as_the_first(modifier: Modifier, first: Modifier, translation: Translation) -> None:
    text = f"as in line {first.line}"
    translation.note_given(modifier, " ".join(_SAME), Fate.MAPPED, text)
    note_devices(modifier, translation)
    but = "each tensor is pruned on its own"
    fate = Fate.NEARLY if _is_global(modifier) else Fate.MAPPED
    translation.note_given(modifier, "global_sparsity", fate, but)


def _round_to(sparsity: float, modifier: Modifier, translation: Translation) -> None:
    """SparseML takes 0.67 for 1 of 3."""
    final = modifier.values["final_sparsity"]
    if isinstance(final, float) and 1e-6 < abs(final - sparsity) <= 1e-2:
        but = "What the pattern leaves no choice about"
        translation.put(modifier, "final_sparsity", "prune.sparsity", sparsity, but)


def _block(sides: tuple[int, int]) -> dict[str, Any] | None:
    outputs, inputs = sides
    if (outputs == 1) == (inputs == 1):
        return None
    side, axis = (inputs, "inputs") if outputs == 1 else (outputs, "outputs")
    return {"block": side, "axis": axis} if 2 <= side <= 64 else None


def _rest(modifier: Modifier, translation: Translation) -> None:
    """Keys that say nothing here, and those that nothing stands for."""
    values = modifier.values
    if values["leave_enabled"]:
        text = "removed weights stay zero, always"
        translation.note_given(modifier, "leave_enabled", Fate.NOT_NEEDED, text)
    else:
        text = "removed weights stay zero; that they may come back has no counterpart"
        translation.note(modifier, "leave_enabled", Fate.DROPPED, text)
    translation.note_given(modifier, "log_types", Fate.NOT_NEEDED, "the report shows all steps")
    translation.note_given(
        modifier, "param_groups", Fate.NOT_NEEDED, "what goes together is found in the model"
    )
    if values.get("phased"):
        text = "pruning in phases, in which all weights come back, has no counterpart"
        translation.note(modifier, "phased", Fate.DROPPED, text)
    else:
        translation.note_given(modifier, "phased", Fate.NOT_NEEDED, "it is off")
    if values.get("score_type", "magnitude") != "magnitude":
        text = "must be magnitude. Use MFACPruningModifier for scores by gradients"
        translation.note(modifier, "score_type", Fate.REFUSED, text)
    else:
        text = "what prune.method says"
        translation.note_given(modifier, "score_type", Fate.NOT_NEEDED, text)
