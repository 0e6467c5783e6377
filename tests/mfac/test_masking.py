"""No removed weight comes back, whatever the optimizer."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mfac_compress.mfac.masking import MaskHooks

OPTIMIZERS = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    lambda p: torch.optim.AdamW(p, lr=0.1),
]


def _setting():
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    mask = torch.rand(4, 6) > 0.5
    return model, {"weight": mask}


def _train(model, optimizer, steps=5):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_removed_weights_stay_zero_and_the_others_move(make):
    model, masks = _setting()
    before = model.weight.detach().clone()
    optimizer = make(model.parameters())

    with MaskHooks({"weight": model.weight}, masks).attach(optimizer) as hooks:
        _train(model, optimizer)
        hooks.check()

    mask = masks["weight"]
    assert not model.weight[~mask].any()
    assert (model.weight[mask] != before[mask]).all()


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_optimizer_state_is_masked_even_if_it_was_not_before(make):
    model, masks = _setting()
    optimizer = make(model.parameters())
    _train(model, optimizer)

    with MaskHooks({"weight": model.weight}, masks).attach(optimizer):
        _train(model, optimizer, steps=1)

    for value in optimizer.state[model.weight].values():
        if isinstance(value, torch.Tensor) and value.shape == model.weight.shape:
            assert not value[~masks["weight"]].any()


def test_hooks_end_with_the_block():
    model, masks = _setting()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with MaskHooks({"weight": model.weight}, masks).attach(optimizer):
        pass

    _train(model, optimizer, steps=1)

    assert model.weight[~masks["weight"]].any()


def test_a_weight_that_came_back_is_reported():
    model, masks = _setting()
    masks["weight"][2, 3] = False
    hooks = MaskHooks({"weight": model.weight}, masks)
    hooks.check()
    with torch.no_grad():
        model.weight[2, 3] = 1.0

    with pytest.raises(RuntimeError, match="Got 1 nonzero ones in weight"):
        hooks.check()


def test_a_mask_without_its_parameter_is_refused():
    with pytest.raises(ValueError, match="no parameter"):
        MaskHooks({}, {"weight": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"\[2\] for \[3\]"):
        MaskHooks({"w": nn.Parameter(torch.ones(3))}, {"w": torch.ones(2, dtype=torch.bool)})


def test_masks_of_a_file_hold_in_a_loop_of_ones_own(tmp_path):
    model, masks = _setting()
    save_file(masks, tmp_path / "masks.safetensors")
    optimizer = OPTIMIZERS[1](model.parameters())

    hooks = MaskHooks.load(tmp_path / "masks.safetensors", model).attach(optimizer)
    _train(model, optimizer)

    hooks.check()
    removed = ~masks["weight"]
    state = optimizer.state[model.weight]
    assert not any(state[name][removed].any() for name in ("exp_avg", "exp_avg_sq"))
    assert (model.weight[~removed] != 0).all()


def test_each_of_several_optimizers_keeps_the_masks():
    model, masks = _setting()
    optimizers = [make(model.parameters()) for make in OPTIMIZERS]
    with MaskHooks({"weight": model.weight}, masks).attach(optimizers[0]) as hooks:
        hooks.attach(optimizers[1])
        for optimizer in optimizers:
            _train(model, optimizer)
            hooks.check()
    _train(model, optimizers[0], steps=1)
    assert model.weight[~masks["weight"]].any()


def test_the_optimizer_of_another_model_is_refused():
    model, masks = _setting()
    other = torch.optim.SGD(nn.Linear(6, 4).parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"must step a parameter that has a mask\. Got one of 2"):
        MaskHooks({"weight": model.weight}, masks).attach(other)
