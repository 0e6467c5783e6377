"""Numbers of gradients that grow with sparsity, as a recipe says them."""

import pytest
import yaml

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.recipe.file import dump_recipe, load_recipe
from mfac_compress.pipeline.recipe.schema import CalibrateSection, Recipe

BASE = {"data": {"source": "digits"}, "prune": {"sparsity": 0.9, "steps": 4}}


@pytest.fixture
def written(tmp_path):
    """Write a recipe whose num_gradients are given as YAML text."""

    def write(text: str):
        path = tmp_path / "recipe.yaml"
        path.write_text(f"{yaml.safe_dump(BASE)}calibrate:\n  num_gradients: {text}\n")
        return path

    return write


def test_the_largest_key_not_above_the_sparsity_counts():
    section = CalibrateSection(num_gradients={"0.8": 3, 0: 1, 0.5: 2})
    assert section.counts == {0: 1, 0.5: 2, 0.8: 3}
    at = {0.0: 1, 0.4999: 1, 0.5: 2, 0.79: 2, 0.8: 3, 0.99: 3}
    assert {sparsity: section.gradients_at(sparsity) for sparsity in at} == at


def test_one_number_counts_at_any_sparsity():
    assert CalibrateSection(num_gradients=8).gradients_at(0.9) == 8


def test_keys_may_be_numbers_and_the_resolved_recipe_is_the_same(written, tmp_path):
    recipe = load_recipe(written("{0.0: 64, .5: 128, 8e-1: 256}"))
    assert recipe.calibrate.counts == {0: 64, 0.5: 128, 0.8: 256}
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe
    by_set = load_recipe(written("1"), ["calibrate.num_gradients={0: 64, 0.5: 128, 0.8: 256}"])
    assert by_set.calibrate == recipe.calibrate


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{0.5: 64}", "must have a number for the sparsity 0, of the first step. Got 0.5."),
        ("{}", "must have a number for the sparsity 0, of the first step. Got an empty mapping."),
        ("{0: 64, 0.0: 32}", "must have each sparsity once. Got 0.0."),
        ("{0: 64, 1: 32}", "must have sparsities of at least 0 and below 1 as keys. Got 1."),
        ("{0: 64, .nan: 32}", "must have sparsities of at least 0 and below 1 as keys. Got .nan."),
        ("{0: 64, 'nan': 32}", "must have sparsities of at least 0 and below 1 as keys. Got nan."),
        ("{0: 64, half: 32}", "must have sparsities of at least 0 and below 1 as keys. Got half."),
        ("{0: 0}", "must have whole numbers of at least 1. At 0 it has not. Got 0."),
        ("{0: 64, 0.5: yes}", "At 0.5 it has not. Got True."),
        ("{0: 64, 0.5: {1: 2}}", "must have text as keys"),
        ("[64]", "must be a whole number of at least 1"),
        ("yes", "must be a whole number of at least 1"),
    ],
)
def test_a_wrong_mapping_is_refused_with_its_line(written, text, message):
    with pytest.raises(InputError) as error:
        load_recipe(written(text))
    assert message in str(error.value)
    assert "recipe.yaml:" in str(error.value)


def test_one_step_has_one_number():
    prune = {"sparsity": 0.5}
    growing = {"num_gradients": {0: 64, 0.5: 128}}
    with pytest.raises(ValueError, match=r"num_gradients must be one number .* Write 64\."):
        Recipe(data=BASE["data"], prune=prune, calibrate=growing)
    Recipe(data=BASE["data"], prune={**prune, "method": "magnitude"}, calibrate=growing)
