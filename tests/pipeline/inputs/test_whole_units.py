"""Tensors that a pattern of zeros does not divide are left out, each with its reason."""

import pytest
import torch
from torch import nn

from mfac_compress.mfac.units import Block
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.fisher_shape import FisherShape
from mfac_compress.pipeline.inputs.layers import match_targets
from mfac_compress.pipeline.recipe.schema import FisherSection, Recipe


class Net(nn.Module):
    """Layers of every form; 8 channels of 6 x 6 pixels in."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(8, 8, 3)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 1, groups=8)
        self.turned = nn.ConvTranspose2d(8, 8, 1)
        self.odd = nn.Linear(8, 10)

    def forward(self, x):
        x = self.turned(self.depthwise(self.grouped(self.plain(x))))
        return self.odd(x.mean((2, 3)))


def _match(axis, module=None, **changes):
    prune = {"sparsity": 0.5, "pattern": {"block": 4, "axis": axis}, **changes}
    recipe = Recipe.model_validate({"data": {"source": "digits"}, "prune": prune})
    return match_targets(Net() if module is None else module, recipe)


def _exported():
    return torch.export.export(Net().eval(), (torch.ones(2, 8, 6, 6),)).module()


@pytest.mark.parametrize("module", [Net(), _exported()], ids=["module", "exported program"])
def test_blocks_divide_the_outputs_or_inputs_of_each_group(module):
    outputs, inputs = _match("outputs", module), _match("inputs", module)

    assert list(outputs.shapes) == ["plain.weight", "grouped.weight"]
    assert outputs.left_out["depthwise.weight"] == (
        "blocks of 4 outputs do not divide its 1 outputs of each group"
    )
    assert outputs.left_out["odd.weight"] == "blocks of 4 outputs do not divide its 10 outputs"
    assert list(inputs.shapes) == ["plain.weight", "grouped.weight", "odd.weight"]
    for targets in (outputs, inputs):
        assert targets.left_out["turned.weight"].endswith("need a weight [outputs, inputs, ...]")


def test_what_is_resolved_are_those_blocks_and_they_are_counted_in_weights():
    targets = _match("outputs")
    layout, units = Block(4, 0).resolve(targets.shapes, 0.5)
    assert targets.layout == layout
    assert targets.units.digest == units.digest
    assert targets.unit_size == 4
    assert targets.removed == layout.size // 2


@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_n_of_m_inputs_are_kept_of_what_they_divide(scope):
    targets = _match("inputs", pattern={"n": 2, "m": 4}, scope=scope)
    assert list(targets.shapes) == ["plain.weight", "grouped.weight", "odd.weight"]
    assert targets.left_out["depthwise.weight"] == (
        "groups of 4 inputs do not divide its 1 inputs of each group"
    )
    assert targets.unit_size == 1
    assert targets.removed == targets.weights // 2
    assert targets.units.removed().unique().tolist() == [2]


def test_an_override_of_what_is_left_out_is_no_error():
    targets = _match("outputs", overrides={"odd": 0.9, "plain": 0.25})
    assert targets.units.sparsity.tolist() == [0.5, 0.25]
    assert "odd.weight" in targets.left_out


def test_a_pattern_that_divides_nothing_is_refused():
    with pytest.raises(InputError, match=r"prune\.pattern: must divide.*odd\.weight \(blocks of 4"):
        _match("outputs", include=["odd", "depthwise"])


@pytest.mark.parametrize("axis", ["outputs", "inputs"])
@pytest.mark.parametrize("blocks", ["tensor", "row"])
@pytest.mark.parametrize("block_size", [12, 20, "full"])
def test_blocks_of_the_fisher_and_parts_of_processes_hold_whole_units(axis, blocks, block_size):
    targets = _match(axis)
    shape = FisherShape.of(targets, 4, FisherSection(block_size=block_size, blocks=blocks))
    edges = {edge for run in shape.partition for bound in run.bounds for edge in bound}
    edges |= {shard.columns.start for shard in shape.shards(3)}
    assert all(edge % 4 == 0 for edge in edges)


def test_blocks_of_the_fisher_that_follow_rows_hold_whole_rows_of_blocks():
    shape = FisherShape.of(_match("outputs"), 64, FisherSection(block_size=100, blocks="row"))
    plain = shape.layout.tensors[0]
    # Its rows are 2 groups of 4 outputs, of 8 x 3 x 3 inputs each.
    assert {bound for bound in shape.partition.runs[0].bounds if bound[0] == 288}
    assert plain.size == 2 * 288
