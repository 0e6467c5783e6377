"""What each step of a recipe takes away, and by how many gradients it chooses."""

import pytest
import torch

from mfac_compress.mfac.schedule import sparsity_schedule
from mfac_compress.mfac.units import NM, Unstructured
from mfac_compress.pipeline.inputs.steps import gradients_of_steps, steps_of, units_removed
from mfac_compress.pipeline.recipe.schema import CalibrateSection, PruneSection


@pytest.mark.parametrize("schedule", ["geometric", "linear"])
def test_each_competition_follows_its_own_schedule(schedule):
    shapes = {"a": (10, 20), "b": (100,), "c": (50,), "d": (60,)}
    units = Unstructured().resolve(shapes, 0.5, {"b": 0.9, "c": 0.25, "d": 0.9})[1]
    steps = steps_of(units, PruneSection(sparsity=0.5, steps=3, schedule=schedule))

    for step, shares in enumerate(steps):
        own = [sparsity_schedule(s, 3, schedule)[step] for s in (0.5, 0.9, 0.25, 0.9)]
        expected = units.removed(torch.tensor(own, dtype=torch.float64))
        assert units_removed(units, shares).tolist() == expected.tolist()


def test_a_million_groups_have_one_share_each_step():
    units = NM(2, 4).resolve({"w": (100, 40)}, 0.5)[1]
    steps = steps_of(units, PruneSection(sparsity=0.5, steps=4, schedule="linear"))
    assert steps == [[0.125], [0.25], [0.375], [0.5]]
    assert [int(units_removed(units, shares).unique()) for shares in steps] == [1, 1, 2, 2]


def test_the_first_sparsity_is_in_proportion_to_the_last_of_each_competition():
    units = Unstructured().resolve({"a": (10, 20), "b": (100,)}, 0.5, {"b": 0.9})[1]
    schedule = {"init": 0.2, "final": 0.5, "steps": 3, "interpolation": "linear"}
    steps = steps_of(units, PruneSection(schedule=schedule))
    ends = units.sparsity.unique().tolist()
    assert steps[0] == pytest.approx([0.4 * end for end in ends])
    assert steps[1] == pytest.approx([0.7 * end for end in ends])
    assert steps[2] == ends


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        (7, (7, 7, 7, 7)),
        ({0: 10, 0.375: 20, 0.5: 30, 0.6: 40}, (10, 10, 20, 30)),
        ({0: 10, 0.18: 5}, (10, 5, 5, 5)),
    ],
)
def test_gradients_of_a_step_are_counted_by_the_sparsity_before_it(given, counts):
    """0.6 and 0.9 of as many weights each; all in all 0, 0.1875, 0.375 and 0.5625 before it."""
    units = Unstructured().resolve({"a": (40, 5), "b": (200,)}, 0.6, {"b": 0.9})[1]
    prune = PruneSection(sparsity=0.6, steps=4, schedule="linear")
    section = CalibrateSection(num_gradients=given)
    assert gradients_of_steps(units, prune, section) == counts


def test_a_sparsity_of_whole_weights_reaches_its_key():
    units = Unstructured().resolve({"a": (100,)}, 0.9)[1]
    prune = PruneSection(sparsity=0.9, steps=2, schedule="linear")
    section = CalibrateSection(num_gradients={"0": 1, "0.45": 2})
    assert gradients_of_steps(units, prune, section) == (1, 2)
