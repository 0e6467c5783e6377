"""What becomes of each modifier and key."""

import re
from pathlib import Path

import pytest

from mfac_compress.mfac.schedule import sparsity_schedule
from mfac_compress.pipeline.recipe.importing import import_recipe
from mfac_compress.pipeline.recipe.schema import CalibrateSection
from mfac_compress.pipeline.recipe.sparseml.catalogue import CATALOGUE, WITHOUT_KEYS
from mfac_compress.pipeline.recipe.sparseml.document import read_modifiers
from mfac_compress.pipeline.recipe.sparseml.findings import Fate
from mfac_compress.pipeline.recipe.sparseml.pruning import METHODS, pattern_of
from mfac_compress.pipeline.recipe.sparseml.translate import (
    DROPPED,
    NOT_NEEDED,
    OTHERS,
    REFUSED,
)
from mfac_compress.pipeline.recipe.yaml_lines import parse_yaml

PRUNING = Path(__file__).with_name("sound.yaml").read_text(encoding="utf-8")
PUBLISHED = sorted(Path(__file__).with_name("published").iterdir())
TRAINED = PRUNING + "training_modifiers:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: 10}\n"


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.name)
def test_published_syntax_loses_nothing(path):
    imported = import_recipe(path)
    assert not {found.fate for found in imported.findings} & {Fate.DROPPED, Fate.REFUSED}


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.name)
def test_every_line_of_a_modifier_is_spoken_of(path):
    text = path.read_text(encoding="utf-8")
    modifiers, _ = read_modifiers(text.split("---\n")[1] if path.suffix == ".md" else text)
    before = text.split("---\n")[0].count("\n") + 1 if path.suffix == ".md" else 0
    spoken = {found.line for found in import_recipe(path).findings}
    for modifier in modifiers:
        if modifier.name in NOT_NEEDED:
            continue
        for key, line in modifier.lines.items():
            assert line + before in spoken, (modifier.name, key)


def test_a_schedule_with_training(foreign):
    assert foreign.values(TRAINED) == {
        "prune": {
            "method": "mfac",
            "scope": "layerwise",
            "sparsity": 0.8,
            "include": ["*"],
            "pattern": "unstructured",
            "steps": 5,
            "epochs_between": 1,
            "schedule": {"interpolation": "cubic", "init": 0.05},
        },
        "calibrate": {"num_gradients": 64},
        "fisher": {"damping": 1e-5, "block_size": 2000},
        "recover": {"epochs": 6},
    }


def test_one_shot_has_one_step_and_no_training(foreign):
    values = foreign.values(PRUNING.replace("end_epoch: 4.0", "end_epoch: 1.0"))
    assert values["prune"]["steps"] == 1
    assert "epochs_between" not in values["prune"]
    assert "recover" not in values


def test_recomputations_of_one_shot_are_steps():
    values = parse_yaml(import_recipe(next(p for p in PUBLISHED if "recomp" in p.name)).text).value
    assert values["prune"]["steps"] == 8
    assert values["prune"]["schedule"] == {"interpolation": "linear"}


@pytest.mark.parametrize(
    ("more", "section", "key", "value"),
    [
        ("damp: 1e-3", "fisher", "damping", 1e-3),
        ("damp: '1e-3'", "fisher", "damping", 1e-3),
        ("fisher_block_size: 64.0", "fisher", "block_size", 64),
        ("fisher_block_size: null", "fisher", "block_size", "full"),
        ("fisher_block_size: None", "fisher", "block_size", "full"),
        ("num_grads: 32", "calibrate", "num_gradients", 32),
        (
            "num_grads: {0: 16, 0.8: 32, 0.9: 64}",
            "calibrate",
            "num_gradients",
            {"0": 16, "0.05": 32},
        ),
        ("num_grads: {0: 16, 0.7: 16}", "calibrate", "num_gradients", 16),
        ("grad_sampler_kwargs: {batch_size: 4}", "calibrate", "samples_per_gradient", 4),
        ("mask_type: block4", "prune", "pattern", {"block": 4, "axis": "inputs"}),
        ("mask_type: 4block", "prune", "pattern", {"block": 4, "axis": "inputs"}),
        ("mask_type: [1, 8]", "prune", "pattern", {"block": 8, "axis": "inputs"}),
        ("mask_type: [4, 1]", "prune", "pattern", {"block": 4, "axis": "outputs"}),
        ("mask_type: 1:5", "prune", "pattern", {"n": 1, "m": 5}),
        ("global_sparsity: true", "prune", "scope", "global"),
        (
            "inter_func: linear",
            "prune",
            "schedule",
            {"interpolation": "linear", "init": 0.05},
        ),
    ],
)
def test_a_key_becomes_ours(foreign, more, section, key, value):
    if more == "mask_type: 1:5":
        more = "mask_type: '1:5'"
    assert foreign.values(f"{PRUNING}    {more}\n")[section][key] == value


def test_numbers_of_gradients_are_those_of_sparseml_at_each_step(foreign):
    """Its 1.8 takes the first share that is not below the sparsity before a step, or the last."""
    grads = {0.0: 64, 0.5: 128, 0.75: 256}
    recipe = PRUNING.replace("final_sparsity: 0.8", "final_sparsity: 0.95")
    given = foreign.values(f"{recipe}    num_grads: {grads}\n")
    prune, section = given["prune"], CalibrateSection(**given["calibrate"])
    before = [0.0, *sparsity_schedule(0.95, prune["steps"], "cubic", 0.05)[:-1]]
    theirs = [next((n for key, n in grads.items() if key >= s), 256) for s in before]
    assert theirs == [64, 128, 256, 256, 256]
    assert [section.gradients_at(sparsity) for sparsity in before] == theirs
    assert section.counts == {0: 64, 0.05: 128, 0.5703: 256}


def test_a_sparsity_near_that_of_n_of_m_is_rounded(foreign):
    near = PRUNING.replace("final_sparsity: 0.8", "final_sparsity: 0.67")
    prune = foreign.values(f"{near}    mask_type: '1:3'\n")["prune"]
    assert prune["sparsity"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("more", "fragments"),
    [
        ("dampp: 1", ["[0].dampp is not a key of MFACPruningModifier. Did you mean damp?", ":9)"]),
        ("damp: -1", ["damp must be a number above 0. Got -1."]),
        ("damp: .nan", ["damp must be a number"]),
        ("num_grads: {0.5: 1}", ["num_grads must be a whole number, or a mapping of shares"]),
        ("num_grads: 0", ["num_grads must be a whole number of at least 1"]),
        ("num_grads: [1]", ["num_grads must be a number"]),
        ("mask_type: [2, 2]", ["mask_type cannot be translated: zeros must be unstructured"]),
        ("mask_type: word", ["mask_type cannot be translated"]),
        ("mask_type: '5:2'", ["mask_type cannot be translated"]),
        ("inter_func: quartic", ["inter_func cannot be translated: must be linear, cubic"]),
        ("global_sparsity: 1", ["global_sparsity must be true or false. Got 1."]),
        ("leave_enabled: false", ["leave_enabled has no counterpart", "--allow-dropped"]),
        ("grad_sampler_kwargs: {batch_size: x}", ["batch_size must be a number"]),
        ("fisher_block_size: 10\n    mask_type: block4", ["fisher.block_size must be a multiple"]),
    ],
)
def test_a_wrong_key_is_refused_with_its_place(foreign, more, fragments):
    message = foreign.refusal(f"{PRUNING}    {more}\n")
    for fragment in ["old.yaml", *fragments]:
        assert fragment in message


def test_a_missing_key_names_its_modifier(foreign):
    message = foreign.refusal(PRUNING.replace("    end_epoch: 4.0\n", ""))
    assert "must have end_epoch. It is missing." in message
    assert "old.yaml:2" in message


def test_what_is_allowed_to_be_dropped_is_said(foreign):
    text = f"{PRUNING}    leave_enabled: false\n"
    imported = foreign.imported(text, allow_dropped=True)
    (dropped,) = [found for found in imported.findings if found.fate is Fate.DROPPED]
    assert dropped.line == 9
    assert "leave_enabled" in str(dropped)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_other_ways_to_prune_are_refused_with_their_reason(foreign, name):
    keys = "params: __ALL__, init_sparsity: 0, final_sparsity: 0.5, start_epoch: 0, end_epoch: 1"
    text = f"{PRUNING}  - !{name} {{{keys}, update_frequency: 1}}\n"
    message = foreign.refusal(text, allow_dropped=True)
    assert f"cannot be translated: {REFUSED[name]}." in message


def test_every_modifier_has_its_place():
    training = {
        "EpochRangeModifier",
        "LearningRateFunctionModifier",
        "LearningRateModifier",
        "SetLearningRateModifier",
        "SetWeightDecayModifier",
    }
    known = {*CATALOGUE, *WITHOUT_KEYS}
    assert known == {*METHODS, *REFUSED, *DROPPED, *NOT_NEEDED, *OTHERS, *training}


def test_an_unknown_modifier_is_named(foreign):
    message = foreign.refusal(PRUNING.replace("MFACPruning", "MFACPrunning"))
    assert "Got MFACPrunningModifier. Did you mean MFACPruningModifier?" in message


def test_a_recipe_that_prunes_nothing_is_refused(foreign):
    text = "modifiers: [!EpochRangeModifier {start_epoch: 0, end_epoch: 1}]"
    assert "must have a modifier that prunes" in foreign.refusal(text)


def test_groups_of_sparsities_are_overrides_of_which_the_first_counts(foreign):
    text = PRUNING.replace("__ALL_PRUNABLE__", "[]").replace(
        "final_sparsity: 0.8", "final_sparsity: {0.7: [a.weight, 're:b'], 0.9: ['re:b', c.weight]}"
    )
    prune = foreign.values(text)["prune"]
    assert prune["include"] == ["a.weight", "re:b.*", "c.weight"]
    assert list(prune["overrides"].items()) == [
        ("c.weight", 0.9),
        ("re:b.*", 0.7),
        ("a.weight", 0.7),
    ]


def test_groups_with_params_are_refused(foreign):
    text = PRUNING.replace("final_sparsity: 0.8", "final_sparsity: {0.7: [a.weight]}")
    assert "params cannot be translated: must be []" in foreign.refusal(text)


def test_modifiers_of_one_schedule_are_one(foreign):
    second = PRUNING.split("\n", 1)[1].replace("__ALL_PRUNABLE__", "['a.weight']")
    text = PRUNING.replace("__ALL_PRUNABLE__", "['b.weight']") + second.replace("0.8", "0.5")
    prune = foreign.values(text)["prune"]
    assert prune["overrides"] == {"a.weight": 0.5, "b.weight": 0.8}
    assert "Its end_epoch differs" in foreign.refusal(
        text.replace("end_epoch: 4.0", "end_epoch: 5", 1)
    )


RATES = """\
  - !LearningRateFunctionModifier
    {start_epoch: 0, end_epoch: 1, lr_func: linear, init_lr: 0, final_lr: 0.1}
  - !LearningRateFunctionModifier
    {start_epoch: 1, end_epoch: 10, lr_func: cosine, init_lr: 0.1, final_lr: 0.01}
  - !SetWeightDecayModifier {weight_decay: 0.002}
"""


def test_of_several_learning_rates_the_longest_counts(foreign):
    imported = foreign.imported(TRAINED + RATES)
    recover = parse_yaml(imported.text).value["recover"]
    assert recover == {"epochs": 6, "lr": 0.1, "schedule": "cosine", "weight_decay": 0.002}
    (other,) = [f for f in imported.findings if f.what.endswith("init_lr: 0")]
    assert other.fate is Fate.NEARLY


def test_a_cycle_that_is_ours_differs_in_nothing(foreign):
    text = TRAINED.replace("end_epoch: 10", "end_epoch: 5") + (
        "  - !LearningRateFunctionModifier {start_epoch: 0, end_epoch: 5, lr_func: cyclic_linear,"
        " cycle_epochs: 1, init_lr: 0.1, final_lr: 0}\n"
    )
    found = [f for f in foreign.imported(text).findings if "LearningRate" in f.what]
    assert {f.fate for f in found} == {Fate.MAPPED}


NAMES = ["layer1.0.conv1.weight", "layer1.0.conv11.weight", "layer2.fc.weight", "fc.weight", "a.b"]


@pytest.mark.parametrize(
    "expression",
    [
        "layer1",
        ".*conv1",
        ".*conv1.weight",
        ".*weight$",
        "fc|layer2",
        "(?!layer1).*",
        r"layer\d",
        r"layer1\.*",
    ],
)
def test_an_expression_matches_what_it_does_there(expression):
    """SparseML: ``re.match`` on names of parameters. Ours: ``re.fullmatch``, on modules as well."""
    theirs = {name for name in NAMES if name.endswith("weight") and re.match(expression, name)}
    ours = re.compile(pattern_of(f"re:{expression}")[3:])
    modules = {name.rpartition(".")[0]: name for name in NAMES}
    found = {name for name in NAMES if ours.fullmatch(name)}
    found |= {name for module, name in modules.items() if ours.fullmatch(module)}
    assert {name for name in found if name.endswith("weight")} == theirs


def test_a_name_is_no_glob():
    assert pattern_of("a[0]*.weight") == "a[[]0][*].weight"


def test_the_schedule_is_theirs(foreign):
    """SparseML: interpolate(epoch, start, end, init, final, inter_func) at each step."""
    prune = foreign.values(TRAINED)["prune"]
    found = sparsity_schedule(0.8, prune["steps"], prune["schedule"]["interpolation"], 0.05)
    theirs = [0.8 + (0.05 - 0.8) * (1 - epoch / 4) ** 3 for epoch in range(5)]
    assert found == pytest.approx(theirs)


def test_distillation_is_of_the_dense_model(foreign):
    text = TRAINED + (
        "  - !DistillationModifier {hardness: 0.8, temperature: 3}\n"
        "  - !PerLayerDistillationModifier\n"
        "    {student_layer_names: [a, b], teacher_layer_names: [a, b]}\n"
    )
    assert foreign.values(text)["recover"]["distill"] == {
        "weight": 0.8,
        "temperature": 3,
        "loss": "kl",
        "layers": ["a", "b"],
    }
    assert "distill" not in foreign.values(TRAINED + "  - !DistillationModifier {hardness: 0}\n")
    for wrong in ("student_layer_names: [a], teacher_layer_names: [b]", "gain: 1"):
        message = foreign.refusal(TRAINED + f"  - !PerLayerDistillationModifier {{{wrong}}}\n")
        assert "layer_names has no counterpart" in message


QUANTIZED = TRAINED + "  - !QuantizationModifier\n"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", {"mode": "static", "reduce_range": False}),
        ("reduce_range: true", {"mode": "static", "reduce_range": True}),
        (
            "scheme: {weights: {num_bits: 8, strategy: tensor}}",
            {"mode": "static", "reduce_range": False, "per_channel": False},
        ),
        ("ignore: [classifier]", {"mode": "static", "reduce_range": False}),
        ("scheme: {weights: {num_bits: 4}}", "files are in 8 bits, and not in 4"),
        ("weight_bits: 4", "files are in 8 bits, and no others"),
        ("weight_qconfig_kwargs: {a: 1}", "ranges are what quantize.ranges says"),
    ],
)
def test_quantisation_is_after_training(foreign, more, expected):
    text = f"{QUANTIZED}    {more}\n" if more else QUANTIZED
    if isinstance(expected, str):
        assert expected in foreign.refusal(text)
    else:
        assert foreign.values(text)["quantize"] == expected


def test_the_page_on_migrating_names_every_modifier_and_key():
    page = (Path(__file__).parents[4] / "docs" / "migrating-from-sparseml.md").read_text("utf-8")
    for name in (*CATALOGUE, *WITHOUT_KEYS):
        assert f"`{name}`" in page
    for name in METHODS:
        for key in CATALOGUE[name]:
            assert re.search(rf"\b{key}\b", page), key
