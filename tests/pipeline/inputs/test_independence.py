"""A sample's outputs depend on the sample alone, whatever the form of inputs and outputs."""

import pytest
import torch
from torch import nn

from mfac_compress.mfac.batch import Batch, map_tensors, size
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.forward import run_model
from mfac_compress.pipeline.inputs.independence import check_independence

CPU = torch.device("cpu")


class Samples:
    """Stands for a split."""

    def __init__(self, inputs):
        self.inputs = inputs

    def __len__(self):
        return size(self.inputs)

    def batches(self, batch_size, *, indices):
        yield Batch(map_tensors(lambda tensor: tensor[indices], self.inputs), torch.zeros(8))


class Net(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.forward = forward


INPUTS = {"a": torch.randn(8, 3), "b": torch.arange(16).view(8, 2)}


def test_independent_outputs_pass_in_any_form():
    net = Net(lambda a, b: {"x": a * 2, "y": (b.float().sum(1), a)})
    check_independence(net, Samples(INPUTS), CPU)
    check_independence(Net(lambda x, y: (x + y[:, :1], y)), Samples(tuple(INPUTS.values())), CPU)


@pytest.mark.parametrize(
    ("forward", "part"),
    [
        (lambda a, b: {"x": a, "y": a - a.mean(0)}, "in a batch of 8 they differ in y by up to"),
        (lambda a, b: (a, a[:, torch.randperm(3)] + torch.rand(1)), "outputs that differ in 1 by"),
        (lambda a, b: {"x": a, "y": b.zero_()}, "must not change its inputs"),
        (
            lambda a, b: {"x": a, "y": a.sum()},
            "tensors [n, ...] for n samples. For 8 it returned x",
        ),
        (
            lambda a, b: {"x": a, "y": torch.ones_like(a)[:, : len(a)]},
            "differ in y in shape, [3, 1] and [3, 3]",
        ),
        (lambda a, c: a, "called with these inputs by name: a, b."),
    ],
)
def test_whatever_depends_on_other_samples_is_named(forward, part):
    with pytest.raises(InputError) as caught:
        check_independence(Net(forward), Samples(map_tensors(torch.clone, INPUTS)), CPU)
    assert part in str(caught.value)


def test_a_refusal_of_the_models_output_is_not_taken_for_one_of_its_inputs():
    def refuse(x):
        raise InputError("model.output must name an output")

    with pytest.raises(InputError, match=r"^model\.output"):
        run_model(Net(refuse), torch.ones(2), CPU)
