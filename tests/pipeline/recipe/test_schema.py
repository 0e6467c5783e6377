"""The schema: what a recipe made in Python may hold, and what rules across keys refuse."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.recipe.source import RecipeSource

SOUND = {"data": {"source": "digits"}, "prune": {"sparsity": 0.5}}
ERROR = {"metric": "my.code:error", "direction": "minimize"}
ARRAYS = {
    "source": "arrays",
    "splits": {
        "calibration": {"path": "a.npz", "rows": [0, 10]},
        "validation": {"path": "a.npz", "rows": [10, 20]},
    },
}
FOLDERS = {
    "source": "image_folder",
    "splits": {"calibration": {"path": "train"}, "validation": {"path": "val"}},
}


def recipe(**sections):
    return Recipe.model_validate({**SOUND, **sections})


def splits(**ranges):
    return {
        "source": "digits",
        "splits": {name: {"rows": list(rows)} for name, rows in ranges.items()},
    }


def arrays(**changes):
    return {**ARRAYS, **changes}


def array_splits(calibration, validation):
    return arrays(splits={"calibration": calibration, "validation": validation})


def test_a_recipe_made_in_python_starts_its_paths_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = recipe()
    assert made.source.folder == tmp_path
    assert made.source.resolve("a/b.npz") == tmp_path / "a" / "b.npz"
    assert made.where("prune.include") == "prune.include"
    assert made.where("prune.overrides", "layer1.*") == "prune.overrides['layer1.*']"


def test_recipes_differ_where_their_paths_start_elsewhere(tmp_path):
    here = Recipe.model_validate(SOUND, context=RecipeSource(folder=tmp_path))
    same = Recipe.model_validate(SOUND, context=RecipeSource(folder=tmp_path, path=Path("x.yaml")))
    there = Recipe.model_validate(SOUND, context=RecipeSource(folder=tmp_path / "other"))
    assert here == same
    assert here != there


def test_a_factory_needs_no_source():
    made = recipe(data={"factory": "package.module:make"})
    assert made.data.source == "factory"


def test_numbers_may_be_text_but_never_switches():
    assert recipe(fisher={"damping": "1e-5"}).fisher.damping == 1e-5
    for section, key in [("fisher", "damping"), ("recover", "epochs"), ("run", "memory_budget")]:
        with pytest.raises(ValidationError):
            recipe(**{section: {key: True}})


@pytest.mark.parametrize(
    ("given", "follows"),
    [
        ({}, True),
        ({"update": "single"}, False),
        ({"update": "single", "first_order": True}, True),
        ({"update": "none"}, False),
        ({"method": "magnitude"}, False),
    ],
    ids=str,
)
def test_only_the_joint_update_follows_the_gradient_unasked(given, follows):
    assert recipe(prune={"sparsity": 0.5, **given}).prune.first_order == follows


def test_weights_that_stay_as_they_are_follow_no_gradient():
    with pytest.raises(ValidationError, match=r"must be false where prune\.update is none"):
        recipe(prune={"sparsity": 0.5, "update": "none", "first_order": True})


@pytest.mark.parametrize("method", ["mfac", "magnitude"])
@pytest.mark.parametrize("key", [("samples", 9), ("positions", "all"), ("ridge", 0.5)])
def test_keys_of_layerwise_do_nothing_beside_another_method(method, key):
    given = {"sparsity": 0.5, "layerwise": dict([key])}
    recipe(prune=given | {"method": "layerwise"})
    said = rf"layerwise\.{key[0]} must be left out unless prune\.method is layerwise. Got {key[1]}"
    with pytest.raises(ValidationError, match=said):
        recipe(prune=given | {"method": method})


MASKS = {"masks": "masks.safetensors", "weights": "trained.pt"}


@pytest.mark.parametrize(
    "useless",
    [
        {"sparsity": 0.5},
        {"pattern": {"block": 4, "axis": "outputs"}},
        {"permute": True},
        {"scope": "layerwise"},
        {"allocation": "uniform"},
        {"layerwise": {"samples": 10}},
        {"include": ["fc"]},
        {"exclude": ["fc"]},
        {"overrides": {"fc": 0.1}},
        {"steps": 2},
        {"schedule": "linear"},
        {"epochs_between": 1},
        {"selection": "sequential"},
        {"first_order": True},
        {"update": "joint"},
    ],
    ids=lambda useless: next(iter(useless)),
)
def test_keys_of_pruning_do_nothing_beside_masks(useless):
    recipe(prune=MASKS)
    (key,) = useless
    with pytest.raises(ValidationError, match=f"{key} must be left out where prune.masks"):
        recipe(prune=MASKS | useless)


def test_masks_and_weights_come_together_and_only_by_their_method():
    for key, path in MASKS.items():
        with pytest.raises(ValidationError, match=r"must name .* where prune\.method is given"):
            recipe(prune={"method": "given", key: path})
    with pytest.raises(ValidationError, match=r"masks must be left out unless .* Got mfac"):
        recipe(prune=MASKS | {"method": "mfac"})
    with pytest.raises(ValidationError, match="weights must be left out unless"):
        recipe(prune={"sparsity": 0.5, "weights": "trained.pt"})
    with pytest.raises(ValidationError, match="sparsity must be a number of at least 0"):
        recipe(prune={})


@pytest.mark.parametrize(
    "useless",
    [
        {"epochs": 2},
        {"optimizer": "adamw"},
        {"lr": 0.1},
        {"schedule": "linear"},
        {"momentum": 0.5},
        {"window": {"num_gradients": 4}},
        {"weight_decay": 0.5},
        {"batch_size": 2},
        {"label_smoothing": 0.1},
        {"distill": {}},
        {"keep": "best"},
        {"patience": 2},
        {"ema": 0.9},
        {"mixup": 1.0},
        {"cutmix": 1.0},
        {"precision": "bfloat16"},
        {"channels_last": True},
        {"quantization_aware": 1},
    ],
    ids=lambda useless: next(iter(useless)),
)
def test_keys_of_recovery_do_nothing_beside_a_loop_of_ones_own(useless):
    loop = {"loop": "my_project.train:finetune"}
    recipe(recover=loop | {"batchnorm": "never"})
    (key,) = useless
    with pytest.raises(ValidationError, match=rf"{key} must be left out where recover\.loop"):
        recipe(recover=loop | useless)


def test_a_loop_of_ones_own_trains_once_and_needs_samples():
    loop = {"loop": "my_project.train:finetune"}
    steps = {"sparsity": 0.5, "steps": 2, "epochs_between": 1}
    with pytest.raises(ValidationError, match=r"epochs_between must be 0 where recover\.loop"):
        recipe(recover=loop, prune=steps)
    with pytest.raises(ValidationError, match=r"Got recover\.loop = my_project.* and no recovery"):
        recipe(recover=loop, data=ARRAYS)


def test_magnitudes_are_not_selected_in_sequence():
    with pytest.raises(ValidationError, match="sizes do not change"):
        recipe(prune={"sparsity": 0.5, "method": "magnitude", "selection": "sequential"})


BLOCKS = {"block": 4, "axis": "outputs"}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"prune": {"selection": "sequential"}}, "must be independent.*blocks of 4 outputs"),
        ({"fisher": {"block_size": 30}}, r"multiple of prune\.pattern\.block \(4\).*Got 30"),
    ],
    ids=["selection", "blocks of the Fisher"],
)
def test_blocks_of_weights_are_judged_whole(sections, message):
    given = {**sections, "prune": {"sparsity": 0.5, "pattern": BLOCKS, **sections.get("prune", {})}}
    with pytest.raises(ValidationError, match=message):
        recipe(**given)


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ({"sparsity": 0.6}, r"sparsity must be 0\.5 where prune\.pattern keeps 2 of 4 inputs"),
        ({"overrides": {"a": 0.9}}, r"overrides\.a must be 0\.5"),
        ({"pattern": {"n": 4, "m": 4}, "sparsity": 0}, r"n must be below m \(4\)"),
    ],
    ids=["sparsity", "override", "all kept"],
)
def test_n_of_m_has_one_sparsity(prune, message):
    with pytest.raises(ValidationError, match=message):
        recipe(prune={"sparsity": 0.5, "pattern": {"n": 2, "m": 4}, **prune})


def test_single_weights_of_n_of_m_may_be_selected_in_sequence():
    pattern = {"n": 2, "m": 4}
    recipe(prune={"sparsity": 0.5, "pattern": pattern, "selection": "sequential"})


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ({"update": "single"}, "update must be joint or none"),
        ({"first_order": True}, "first_order must be false"),
        ({"selection": "sequential"}, "selection must be left out"),
        ({"allocation": "errors", "scope": "layerwise"}, "allocation must be uniform"),
        (
            {"allocation": "errors", "sparsity": 0.5, "pattern": {"n": 2, "m": 4}},
            "allocation must be uniform where prune.pattern keeps 2 of 4 inputs",
        ),
        ({"method": "mfac", "allocation": "errors"}, "allocation must be left out unless"),
    ],
    ids=str,
)
def test_layers_are_pruned_without_gradients(prune, message):
    with pytest.raises(ValidationError, match=message):
        recipe(prune={"sparsity": 0.5, "method": "layerwise", **prune})


@pytest.mark.parametrize(
    ("given", "gradients", "competes"),
    [
        ({}, True, True),
        ({"scope": "layerwise"}, True, False),
        ({"method": "magnitude"}, False, True),
        ({"method": "layerwise"}, False, False),
        ({"method": "layerwise", "allocation": None}, False, False),
        ({"method": "layerwise", "allocation": "errors"}, False, True),
        ({"method": "layerwise", "allocation": "fisher"}, True, True),
    ],
    ids=str,
)
def test_the_allocation_says_what_competes_and_whether_there_are_gradients(
    given, gradients, competes
):
    made = recipe(prune={"sparsity": 0.5, **given}).prune
    assert (made.uses_gradients, made.competes_globally) == (gradients, competes)
    assert not (made.method == "layerwise" and made.first_order)


def test_the_fisher_is_as_it_may_be_where_it_holds_whole_blocks_or_is_not_made():
    for changes in ({"block_size": 32}, {"block_size": "full"}):
        recipe(prune={"sparsity": 0.5, "pattern": BLOCKS}, fisher=changes)
    by_size = {"sparsity": 0.5, "pattern": BLOCKS, "method": "magnitude"}
    assert str(recipe(prune=by_size, fisher={"block_size": 30}).prune.pattern) == (
        "blocks of 4 outputs"
    )


def test_the_memory_budget_takes_units():
    assert recipe(run={"memory_budget": "8GB"}).run.memory_budget == 8_000_000_000


def test_ranges_that_touch_do_not_overlap():
    recipe(data=splits(calibration=(0, 9), recovery=(9, 10), validation=(10, 1797)))


def test_shared_rows_count_against_max_overlap():
    data = splits(calibration=(0, 9), recovery=(7, 12), validation=(12, 1797))
    recipe(data={**data, "max_overlap": 2})
    with pytest.raises(ValidationError, match="must not share samples"):
        recipe(data={**data, "max_overlap": 1})


def test_the_same_file_under_two_names_is_one_file(tmp_path):
    for other in ("./sub/../a.npz", str(tmp_path / "a.npz")):
        data = array_splits({"path": "a.npz"}, {"path": other})
        with pytest.raises(ValidationError, match=r"data\.splits\.calibration"):
            Recipe.model_validate({**SOUND, "data": data}, context=RecipeSource(folder=tmp_path))


@pytest.mark.parametrize(
    "sections",
    [
        {"data": arrays(mean=[0.5], std=[1, 2, 3])},
        {"data": arrays(mean=[0.1] * 5, std=[1] * 5)},
        {"data": array_splits({"path": "a.npz"}, {"path": "b.npz"})},
        {"data": {**FOLDERS, "resize": 36, "crop": 32, "mean": [0.1, 0.2, 0.3]}},
        {"prune": {"sparsity": 0, "include": ["re:^layer\\d"], "overrides": {"a.*": 0.9}}},
        {"validate": {"gates": {"confidence": "none", "max_metric_drop": -0.1}}},
        {"validate": {"latency": None}, "export": {"dynamic_batch": False}},
        {"task": {"metric": "my.code:error", "direction": "minimize"}},
        {"task": {"metric": "my.code:error", "range": [-1, 1]}},
        {"validate": {"gates": {"min_metric": 0.5, "min_model_sparsity": 0.4}}},
        {
            "task": {"further_metrics": {"error": ERROR, "rank": {"metric": "spearman"}}},
            "validate": {"gates": {"further_metrics": {"error": {"max_metric": 0.1}}}},
        },
        {"fisher": {"block_size": "full"}},
    ],
)
def test_sound_sections_pass(sections):
    recipe(**sections)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"data": splits(validation=(1200, 1798))},
            "splits.validation.rows must end at 1797",
        ),
        ({"data": splits(calibration=(5, 5))}, "rows must be [start, stop] with start below stop"),
        (
            {"data": splits(calibration=(0, 700))},
            "splits.recovery.rows must not share samples with data.splits.calibration",
        ),
        (
            {"data": array_splits({"path": "a", "rows": [0, 9]}, {"path": "a", "rows": [8, 10]})},
            "rows 8 to 9 are in both",
        ),
        (
            {"data": array_splits({"path": "a", "rows": [5, 9]}, {"path": "a"})},
            "Got all rows against [5, 9]",
        ),
        ({"data": array_splits({"path": "a"}, {"path": "a"})}, "rows from 0 on are in both"),
        ({"data": arrays(x="x", y="x")}, "must name other arrays than data.x"),
        ({"data": arrays(mean=[1, 2, 3], std=[1, 2])}, "data.mean, which has 3. Got 2"),
        ({"data": {**FOLDERS, "std": [1, 2]}}, "std must hold one number or three"),
        ({"data": {**FOLDERS, "resize": 32, "crop": 33}}, "at most data.resize = 32. Got 33"),
        (
            {
                "data": {
                    **FOLDERS,
                    "splits": {"calibration": {"path": "a"}, "validation": {"path": "./a"}},
                }
            },
            "must be another folder than that of data.splits.calibration",
        ),
        ({"task": {"direction": "minimize"}}, "must be maximize where the metric is accuracy"),
        ({"task": {"range": [0, 1]}}, "range must be left out where the metric is accuracy"),
        (
            {"task": {"metric": "my.code:error", "range": [1, 1]}},
            "range must be [low, high] with low below high",
        ),
        (
            {"task": {"metric": "my.code:error", "range": [-1e308, 1e308]}},
            "and a finite distance",
        ),
        (
            {"validate": {"gates": {"max_metric": 0.5}}},
            "validate.gates.max_metric must be left out where task.direction is maximize",
        ),
        (
            {
                "task": {"metric": "my.code:error", "direction": "minimize"},
                "validate": {"gates": {"min_metric": 0.5}},
            },
            "validate.gates.min_metric must be left out where task.direction is minimize",
        ),
        (
            {
                "task": {"further_metrics": {"error": ERROR}},
                "validate": {"gates": {"further_metrics": {"error": {"min_metric": 0.5}}}},
            },
            "validate.gates.further_metrics.error.min_metric must be left out where "
            "task.further_metrics.error.direction is minimize: it would stop good models. Got 0.5. "
            "Set max_metric.",
        ),
        (
            {
                "task": {"further_metrics": {"error": ERROR, "other": ERROR}},
                "validate": {"gates": {"further_metrics": {"eror": {"max_metric": 0.5}}}},
            },
            "validate.gates.further_metrics.eror must be the name of a metric of "
            "task.further_metrics: error, other. Got 'eror'. Did you mean error?",
        ),
        (
            {"validate": {"gates": {"further_metrics": {"error": {"max_metric": 0.5}}}}},
            "a metric of task.further_metrics: none is there. Got 'error'.",
        ),
        (
            {"task": {"further_metrics": {"error": {"metric": "accuracy", "range": [0, 2]}}}},
            "task.further_metrics.error\n  Value error, range must be left out where the metric is",
        ),
        *(
            (
                {"task": {"further_metrics": {name: ERROR}}},
                "must be a name of letters, digits and _, at most 40 of them",
            )
            for name in ("an error", "a.b", "a|b", "1st", "", "e" * 41, "a\nb")
        ),
        (
            {"prune": {"sparsity": 0.5, "include": ["a", "b", "a"]}},
            "include[2] must not repeat 'a'",
        ),
        (
            {"prune": {"sparsity": 0.5, "exclude": ["a"], "overrides": {"a": 0.5}}},
            "exclude[0] must not repeat a pattern of prune.overrides",
        ),
        (
            {"prune": {"sparsity": 0.5, "epochs_between": 2}},
            "epochs_between must be 0 where prune.steps is 1",
        ),
        (
            {"data": ARRAYS, "prune": {"sparsity": 0.5, "steps": 2, "epochs_between": 2}},
            "Got prune.epochs_between = 2 and no recovery split",
        ),
        (
            {"prune": {"sparsity": 0.5, "schedule": {"final": 0.6, "steps": 2}}},
            "schedule.final must be prune.sparsity, where both are given. Got 0.6 and 0.5",
        ),
        (
            {"prune": {"sparsity": 0.5, "steps": 3, "schedule": {"steps": 2}}},
            "schedule.steps must be prune.steps, where both are given. Got 2 and 3",
        ),
        (
            {"prune": {"sparsity": 0.5, "schedule": {"steps": 2, "init": 0.6}}},
            "schedule.init must not be above the final sparsity, 0.5. Got 0.6",
        ),
        (
            {"prune": {"sparsity": 0.5, "schedule": {"init": 0.1}}},
            "schedule.init must be left out where there is only one step",
        ),
        (
            {
                "data": ARRAYS,
                "prune": {"schedule": {"final": 0.5, "steps": 2, "epochs_between": 1}},
            },
            "Got prune.epochs_between = 1 and no recovery split",
        ),
        ({"prune": {"sparsity": 0.5, "include": ["re:("]}}, "must hold a regular expression"),
        ({"export": {"output_name": "input"}}, "must differ from export.input_name"),
        ({"validate": {"latency": {"threads": [1, 1]}}}, "threads[1] must not repeat 1"),
        (
            {"validate": {"latency": {"lengths": {"sequence": [8, 8]}}}},
            "lengths.sequence[1] must not repeat 8",
        ),
        (
            {"validate": {"latency": {"lengths": {"sequence": [8]}}}},
            "must be the name of an axis of export.dynamic_axes: none is there. Got 'sequence'",
        ),
        (
            {
                "export": {"dynamic_axes": {"ids": {1: "sequence"}, "mask": {1: "sequence"}}},
                "validate": {"latency": {"lengths": {"length": [8]}}},
            },
            "export.dynamic_axes: sequence. Got 'length'",
        ),
        (
            {"data": ARRAYS, "recover": {"epochs": 1}},
            "data.splits.recovery must be given where recover.epochs or prune.epochs_between > 0",
        ),
        (
            {"task": {"loss": "mse"}, "recover": {"label_smoothing": 0.1}},
            "recover.label_smoothing must be 0 unless task.loss is cross_entropy",
        ),
        (
            {"recover": {"epochs": 1, "label_smoothing": 0.1, "distill": {"weight": 1}}},
            "label_smoothing must be 0 where recover.distill.weight is 1",
        ),
        (
            {"recover": {"mixup": 0.2}},
            "mixup must be left out unless recover.distill is given, with weight 1",
        ),
        (
            {"recover": {"cutmix": 1, "distill": {"weight": 0.9}}},
            "cutmix must be left out unless recover.distill is given, with weight 1: mixed samples",
        ),
        (
            {"recover": {"patience": 2}},
            "patience must be left out where the last epoch is kept (recover.keep)",
        ),
        (
            {"recover": {"distill": {}, "keep": "last", "patience": 2}},
            "patience must be left out where the last epoch is kept (recover.keep)",
        ),
        (
            {"recover": {"epochs": 2, "quantization_aware": 2}, "quantize": "dynamic"},
            "recover.quantization_aware must be 0 unless quantize.mode is static: these epochs are "
            "trained with the ranges that it measures. Got 2 with quantize.mode = dynamic.",
        ),
        (
            {"recover": {"epochs": 2, "quantization_aware": 1}},
            "recover.quantization_aware must be 0 unless quantize.mode is static",
        ),
        (
            {"recover": {"epochs": 2, "quantization_aware": 3}, "quantize": "static"},
            "quantization_aware must be at most recover.epochs, the last of which it names. Got 3 "
            "with recover.epochs = 2",
        ),
        (
            {
                "recover": {"epochs": 2, "quantization_aware": 1},
                "quantize": {"mode": "static", "weight_update": "obs"},
            },
            "quantize.weight_update must be none, or left out, where recover.quantization_aware is",
        ),
        (
            {
                "recover": {"epochs": 2, "quantization_aware": 1},
                "quantize": {"mode": "static", "per_channel": False},
            },
            "quantize.per_channel must be true where recover.quantization_aware is given",
        ),
        (
            {
                "recover": {"epochs": 2, "quantization_aware": 1, "precision": "bfloat16"},
                "quantize": "static",
            },
            "precision must be float32 where recover.quantization_aware is given",
        ),
        (
            {
                "recover": {
                    "epochs": 2,
                    "quantization_aware": 1,
                    "distill": {},
                    "patience": 1,
                },
                "quantize": "static",
            },
            "patience must be left out where recover.quantization_aware is given",
        ),
        (
            {"recover": {"distill": {"layers": ["a", "b", "a"]}}},
            "layers[2] must not repeat 'a'",
        ),
        (
            {"task": {"loss": "mse"}, "recover": {"distill": {"loss": "kl"}}},
            "recover.distill.loss must not be kl where task.loss is mse",
        ),
        (
            {"task": {"loss": "mse"}, "recover": {"distill": {"temperature": 2}}},
            "recover.distill.temperature must be left out where the distance is mse",
        ),
        (
            {"recover": {"distill": {"loss": "cosine", "temperature": 2}}},
            "recover.distill.temperature must be left out where the distance is cosine",
        ),
        (
            {"data": splits(recovery=(600, 700)), "recover": {"split": "calibration"}},
            "data.splits.recovery must be left out where recover.split is calibration",
        ),
        (
            {"export": {"dynamic_batch": False}},
            "validate.latency.batch_sizes must be [256]",
        ),
    ],
)
def test_rules_across_keys(sections, message):
    with pytest.raises(ValidationError) as caught:
        recipe(**sections)
    assert message in str(caught.value)


def test_further_metrics_are_no_more_than_can_be_computed_and_compared():
    """Each gate on an unknown metric is compared with all names, and its message lists them."""
    metrics = {f"error_{number}": ERROR for number in range(20_000)}
    gates = {f"eror_{number}": {"max_metric": 0.5} for number in range(20_000)}
    with pytest.raises(ValidationError, match="at most 100 items"):
        recipe(task={"further_metrics": metrics})
    with pytest.raises(ValidationError, match="at most 100 items"):
        recipe(validate={"gates": {"further_metrics": gates}})
    some = dict(list(metrics.items())[:100])
    with pytest.raises(ValidationError, match=r"error_9 and 90 more\. Got 'eror_0'"):
        recipe(
            task={"further_metrics": some},
            validate={"gates": {"further_metrics": {"eror_0": gates["eror_0"]}}},
        )


@pytest.mark.parametrize("temperature", [0, 1e-30, 1e8, 1e160])
def test_a_temperature_leaves_something_to_compare(temperature):
    """Beyond, gradients are of rounding (1e8), or the square is no number (1e160)."""
    with pytest.raises(ValidationError, match=r"distill.temperature"):
        recipe(recover={"distill": {"temperature": temperature}})
    recipe(recover={"distill": {"temperature": 20}})


@pytest.mark.parametrize("confidence", [0, 0.05, 1 - 1e-16, 1, 95, "nothing"])
def test_confidence_lies_between_a_half_and_nearly_1(confidence):
    with pytest.raises(ValidationError):
        recipe(validate={"gates": {"confidence": confidence}})


def test_a_section_reports_all_of_its_errors():
    with pytest.raises(ValidationError) as caught:
        recipe(prune={"sparsity": 0.5, "include": ["a", "a"], "exclude": ["re:["]})
    assert "include[1]" in str(caught.value)
    assert "exclude[0]" in str(caught.value)


def test_a_recipe_is_frozen():
    made = recipe()
    with pytest.raises(ValidationError):
        made.prune = None


@pytest.mark.parametrize("given", ["static", {"mode": "static"}])
def test_the_precision_may_be_a_plain_word(given):
    recipe = Recipe.model_validate({**SOUND, "quantize": given})
    assert recipe.quantize.is_on
    assert recipe.artifact == "model.int8.onnx"


@pytest.mark.parametrize("given", [False, "off", {"mode": False}, {}])
def test_off_is_a_word_for_the_precision(given):
    recipe = Recipe.model_validate({**SOUND, "quantize": given})
    assert not recipe.quantize.is_on
    assert recipe.artifact == "model.onnx"


@pytest.mark.parametrize("word", ["geometric", "linear", "cubic"])
def test_the_schedule_may_be_a_plain_word(word):
    made = recipe(prune={"sparsity": 0.5, "steps": 3, "schedule": word}).prune
    assert (made.schedule.interpolation, made.schedule.init) == (word, None)


def test_the_schedule_may_say_it_all():
    schedule = {"init": 0.1, "final": "0.9", "steps": 3, "interpolation": "cubic"}
    made = recipe(prune={"schedule": {**schedule, "epochs_between": 1}}).prune
    assert (made.sparsity, made.steps, made.epochs_between) == (0.9, 3, 1)
    again = recipe(prune=made.model_dump(mode="json", by_alias=True)).prune
    assert again == made


@pytest.mark.parametrize(
    ("schedule", "keys"),
    [
        ({"final": 2, "steps": 2}, ["prune.schedule.ScheduleSection.final"]),
        ("quadratic", ["prune.schedule.geometric"]),
    ],
)
def test_what_is_wrong_with_a_schedule_is_said_once(schedule, keys):
    with pytest.raises(ValidationError) as caught:
        recipe(prune={"schedule": schedule})
    places = [".".join(map(str, error["loc"])) for error in caught.value.errors()]
    assert places == keys


def _text(**changes):
    splits = {"calibration": {"path": "a.tsv"}, "validation": {"path": "b.tsv.gz"}}
    return {"source": "text", "text": 0, "label": 1, "splits": splits, **changes}


TEXTS = {
    "other file": ({"splits": {"calibration": {"path": "a.txt"}, "validation": {"path": "b.tsv"}}},
                   r"splits.calibration.path must end in .tsv, .csv or .jsonl.* Got 'a.txt'"),
    "names without a header": ({"text": "sentence"}, "text must be a number in 'a.tsv', or"),
    "numbers in objects": ({"splits": {"calibration": {"path": "a.jsonl.gz"},
                                       "validation": {"path": "b.jsonl"}}},
                           "text must be a name in 'a.jsonl.gz'. Got 0"),
    "one column twice": ({"text": [0, 0]}, "must not repeat 0"),
    "the label as text": ({"label": 0}, "label must be another column than data.text"),
    "no token numbers": ({"inputs": ["attention_mask"]}, "inputs must have input_ids"),
    "one text apart": ({"pairs": "apart"}, "pairs must be left out"),
    "named scores": ({"label_type": "score", "classes": ["a"]}, "classes must be left out"),
    "shared rows": ({"splits": {"calibration": {"path": "a.tsv"}, "validation": {"path": "a.tsv"}}},
                    "must not share samples with data.splits.calibration"),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
def test_texts_are_described_without_contradictions(case):
    changes, message = TEXTS[case]
    with pytest.raises(ValidationError, match=message):
        recipe(data=_text(**changes))


def test_texts_leave_the_length_open_unless_axes_are_named():
    opened = recipe(data=_text(inputs=["input_ids", "token_type_ids"]))
    assert opened.export.dynamic_axes == {
        name: {1: "length"} for name in ("input_ids", "token_type_ids")
    }
    own = {name: {1: "tokens"} for name in ("input_ids", "attention_mask")}
    assert recipe(data=_text(), export={"dynamic_axes": own}).export.dynamic_axes == own
    assert recipe(data=opened.data).export == opened.export
    with pytest.raises(ValidationError, match=r"must name axis 1 of input_ids"):
        recipe(data=_text(), export={"dynamic_axes": {}})
    assert recipe().export.dynamic_axes == {}


def test_a_model_without_a_loss_is_neither_trained_nor_calibrated_with_labels():
    none = {"loss": "none", "metric": "spearman_cosine"}
    assert recipe(task=none, calibrate={"labels": "model"})
    assert recipe(task=none, prune={"sparsity": 0.5, "method": "layerwise"})
    for prune in ({"sparsity": 0.5}, {"sparsity": 0.5, "method": "magnitude"}):
        with pytest.raises(ValidationError, match=r"calibrate.labels must be model"):
            recipe(task=none, prune=prune)
    for recover in ({"epochs": 1}, {"epochs": 1, "distill": {"weight": 0.5}}):
        with pytest.raises(ValidationError, match=r"recover.distill must be given, with weight 1"):
            recipe(task=none, calibrate={"labels": "model"}, recover=recover)
    taught = {"epochs": 1, "distill": {"loss": "cosine"}}
    assert recipe(task=none, calibrate={"labels": "model"}, recover=taught)
