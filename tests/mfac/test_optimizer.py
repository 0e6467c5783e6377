"""MFAC is an optimizer like PyTorch's own, and each step is the dense oracle's."""

import copy
import io

import pytest
import torch
from torch import nn

from mfac_compress.mfac import MFAC
from mfac_compress.mfac.masking import MaskHooks


def _model(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)


def _backward(model, step):
    generator = torch.Generator().manual_seed(step)
    dtype = next(model.parameters()).dtype
    x = torch.randn(6, 5, generator=generator).to(dtype)
    y = torch.randn(6, 3, generator=generator).to(dtype)
    model.zero_grad()
    loss = (model(x) - y).square().mean()
    loss.backward()
    return loss


def _train(model, optimizer, steps):
    for step in steps:
        _backward(model, step)
        optimizer.step()


def _flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).double()


def _grad(model):
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()]).double()


@pytest.mark.parametrize("m", [1, 4, 7, 100])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_every_step_equals_the_oracle(m, momentum, weight_decay, dense_fisher):
    model = _model()
    optimizer = MFAC(
        model.parameters(), 1e-2, m, 1e-2, momentum=momentum, weight_decay=weight_decay
    )
    window, velocity = [], 0.0
    for step in range(15):
        before = _flat(model)
        _backward(model, step)
        g = _grad(model) + weight_decay * before
        window = [*window, g][-m:]
        update = torch.linalg.solve(dense_fisher(torch.stack(window), 1e-2), g)
        velocity = momentum * velocity + (1 - momentum) * update

        optimizer.step()

        torch.testing.assert_close(_flat(model), before - 1e-2 * velocity, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "window_dtype", "kept"),
    [
        (torch.float32, None, torch.float32),
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float16, torch.float16),
        (torch.float64, None, torch.float64),
    ],
)
def test_resuming_from_a_state_dict_gives_the_same_steps(dtype, window_dtype, kept):
    def make(seed):
        model = _model(seed, dtype)
        return model, MFAC(model.parameters(), 1e-2, 4, 1e-2, 0.9, 0.01, window_dtype)

    model, optimizer = make(0)
    _train(model, optimizer, range(6))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    model_state, optimizer_state = torch.load(file, weights_only=True)
    resumed_model, resumed = make(1)
    resumed_model.load_state_dict(model_state)
    resumed.load_state_dict(optimizer_state)

    _train(model, optimizer, range(6, 13))
    _train(resumed_model, resumed, range(6, 13))

    assert torch.equal(_flat(model), _flat(resumed_model))
    fisher = resumed.state[resumed_model[0].weight]["fisher"]
    assert {tile.dtype for tile in fisher["tiles"]} == {kept}
    assert fisher["gram"].dtype == torch.float64


def test_a_loaded_window_is_a_copy():
    model, twin = _model(), _model()
    first, second = MFAC(model.parameters()), MFAC(twin.parameters())
    _train(model, first, range(2))
    second.load_state_dict(first.state_dict())
    before = copy.deepcopy(second.state_dict())

    _train(model, first, range(2, 4))

    torch.testing.assert_close(second.state_dict(), before, rtol=0, atol=0)


def test_a_state_of_another_model_is_refused_and_nothing_is_loaded():
    a, b = nn.Linear(3, 2), nn.Linear(4, 2)
    optimizer, other = MFAC(a.parameters()), MFAC(b.parameters(), lr=0.5)
    a(torch.ones(1, 3)).sum().backward()
    optimizer.step()

    with pytest.raises(ValueError, match="Got 8 for 10 weights"):
        other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"as many parameters.*Got \[2\] for \[1, 1\]"):
        MFAC([{"params": [p]} for p in a.parameters()]).load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.5


def test_each_group_has_its_own_window_and_options():
    together, apart = _model(), _model()
    parts = [list(together[0].parameters()), list(together[2].parameters())]
    optimizer = MFAC(
        [{"params": parts[0], "num_gradients": 2}, {"params": parts[1], "damping": 1.0, "lr": 0.5}],
        lr=1e-2,
        num_gradients=3,
        damping=1e-2,
    )
    alone = [
        MFAC(apart[0].parameters(), lr=1e-2, num_gradients=2, damping=1e-2),
        MFAC(apart[2].parameters(), lr=0.5, num_gradients=3, damping=1.0),
    ]
    for step in range(6):
        _backward(together, step)
        optimizer.step()
        _backward(apart, step)
        for one in alone:
            one.step()

    assert torch.equal(_flat(together), _flat(apart))


def test_a_group_added_later_starts_its_own_window():
    model = _model()
    optimizer = MFAC(model[0].parameters(), num_gradients=3)
    _train(model, optimizer, range(4))
    before = model[2].weight.detach().clone()

    optimizer.add_param_group({"params": model[2].parameters(), "num_gradients": 5})
    _train(model, optimizer, range(4, 6))

    assert (model[2].weight != before).all()
    assert int(optimizer.state[model[0].weight]["fisher"]["added"]) == 6
    assert int(optimizer.state[model[2].weight]["fisher"]["added"]) == 2


def test_a_refused_group_is_not_added():
    model = _model()
    optimizer = MFAC(model[0].parameters())
    with pytest.raises(ValueError, match="damping must be positive"):
        optimizer.add_param_group({"params": model[2].parameters(), "damping": -1.0})
    assert len(optimizer.param_groups) == 1


def test_a_scheduler_sets_the_step_size():
    model = _model()
    optimizer = MFAC(model.parameters(), lr=1.0, damping=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.0)
    _train(model, optimizer, [0])
    before = _flat(model)
    scheduler.step()

    _train(model, optimizer, [1])

    assert optimizer.param_groups[0]["lr"] == 0
    assert torch.equal(_flat(model), before)


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned():
    by_closure, plain = _model(), _model()
    optimizer = MFAC(by_closure.parameters())
    loss = optimizer.step(lambda: _backward(by_closure, 0))
    _train(plain, MFAC(plain.parameters()), [0])

    assert loss.item() == _backward(_model(), 0).item()
    assert torch.equal(_flat(by_closure), _flat(plain))


def test_zero_grad_and_repr_are_those_of_an_optimizer():
    model = _model()
    optimizer = MFAC(model.named_parameters(), num_gradients=9)
    _backward(model, 0)
    optimizer.zero_grad()

    assert all(p.grad is None for p in model.parameters())
    assert "num_gradients: 9" in repr(optimizer)


def test_a_parameter_without_gradient_stays_and_counts_as_zeros(dense_fisher):
    model = _model()
    optimizer = MFAC(model.parameters(), 1e-2, 4, 1e-2, momentum=0.5)
    _train(model, optimizer, range(3))
    held = model[2].weight.detach().clone()
    rest = _flat(model)
    _backward(model, 3)
    model[2].weight.grad = None

    optimizer.step()

    assert torch.equal(model[2].weight, held)
    assert (_flat(model) != rest).sum() == rest.numel() - held.numel()
    optimizer.zero_grad()
    optimizer.step()
    assert int(optimizer.state[model[0].weight]["fisher"]["added"]) == 4


@pytest.mark.parametrize("shape", [(4, 6), (5, 5)])
def test_removed_weights_stay_zero_and_do_not_affect_the_others(shape):
    """The second shape is that of the Gram matrix, which must not be masked."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape))
    mask = torch.rand(shape) > 0.5
    small = nn.Parameter((weight.detach() * mask)[mask].clone())
    options = {"lr": 0.1, "num_gradients": 5, "damping": 1e-2, "momentum": 0.9}
    options["weight_decay"] = 0.1
    optimizer, reference = MFAC([weight], **options), MFAC([small], **options)

    with MaskHooks({"w": weight}, {"w": mask}).attach(optimizer) as hooks:
        for _ in range(12):
            weight.grad = torch.randn(shape)
            small.grad = weight.grad[mask].clone()
            optimizer.step()
            reference.step()
            hooks.check()

    assert not weight.detach()[~mask].any()
    torch.testing.assert_close(weight.detach()[mask], small.detach(), rtol=1e-4, atol=1e-5)
    assert not optimizer.state[weight]["momentum"][~mask].any()


def test_weights_removed_during_training_are_forgotten():
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(3))
    mask = torch.rand(4, 6) > 0.5
    optimizer = MFAC([weight, bias], num_gradients=5, momentum=0.9)
    for _ in range(7):
        weight.grad, bias.grad = torch.randn(4, 6), torch.randn(3)
        optimizer.step()

    optimizer.keep({weight: mask})

    fisher = optimizer.state[weight]["fisher"]
    G = torch.cat(fisher["tiles"], dim=1)
    assert not G[:, :24][:, ~mask.reshape(-1)].any()
    assert G[:, 24:].all()
    torch.testing.assert_close(fisher["gram"], G.double() @ G.double().T)
    assert not optimizer.state[weight]["momentum"][~mask].any()
    with pytest.raises(ValueError, match=r"Got one of \[2\] for \[4, 6\]"):
        optimizer.keep({weight: torch.ones(2, dtype=torch.bool)})
    with pytest.raises(ValueError, match="a parameter of this optimizer"):
        optimizer.keep({nn.Parameter(torch.ones(2)): torch.ones(2, dtype=torch.bool)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be finite"),
        ({"lr": float("nan")}, "lr must be finite"),
        ({"num_gradients": 0}, "num_gradients must be an integer of at least 1. Got 0"),
        ({"num_gradients": 2.5}, "num_gradients must be an integer"),
        ({"damping": 0.0}, "damping must be positive"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"weight_decay": -0.1}, "weight_decay must be finite"),
        ({"window_dtype": torch.int8}, "window_dtype must be None or one of"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MFAC([nn.Parameter(torch.ones(2))], **options)


def test_parameters_that_cannot_be_stepped_are_refused():
    with pytest.raises(ValueError, match=r"floating-point numbers.*complex64"):
        MFAC([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    with pytest.raises(ValueError, match="Got 0 numbers"):
        MFAC([nn.Parameter(torch.ones(0))])
    with pytest.raises(ValueError, match="on one device"):
        MFAC([nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1, device="meta"))])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e6])
def test_a_gradient_the_window_cannot_hold_changes_nothing(bad):
    model = _model()
    groups = [{"params": list(model[0].named_parameters())}]
    groups.append({"params": list(model[2].named_parameters())})
    optimizer = MFAC(groups, window_dtype=torch.float16)
    _train(model, optimizer, range(2))
    state, weights = copy.deepcopy(optimizer.state_dict()), _flat(model)
    _backward(model, 2)
    model[2].bias.grad[1] = bad

    with pytest.raises(ValueError, match=r"finite in the window's torch.float16.*bias \[3\]"):
        optimizer.step()

    assert torch.equal(_flat(model), weights)
    torch.testing.assert_close(optimizer.state_dict()["state"], state["state"], rtol=0, atol=0)


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"dense. Got torch.sparse_coo for parameter 0 \[4, 2\]"):
        MFAC(embedding.parameters()).step()


def test_the_window_cannot_change_its_size_between_steps():
    model = _model()
    optimizer = MFAC(model.parameters(), num_gradients=3)
    _train(model, optimizer, [0])
    optimizer.param_groups[0]["num_gradients"] = 4
    with pytest.raises(ValueError, match="must stay as they were at the first step, 3 and"):
        _train(model, optimizer, [1])


def test_it_beats_sgd_on_an_ill_conditioned_quadratic():
    """Curvatures from 1 to 1e3, gradient noise with the Hessian as covariance, as at a minimum."""
    curvature = torch.logspace(0, 3, 20)

    def final_loss(make):
        generator = torch.Generator().manual_seed(0)
        w = nn.Parameter(curvature.rsqrt())
        optimizer = make([w])
        for _ in range(400):
            noise = curvature.sqrt() * torch.randn(20, generator=generator)
            w.grad = curvature * w.detach() + noise
            optimizer.step()
        return (curvature * w.detach().square()).sum().nan_to_num(1e9).item() / 2

    best_sgd = min(
        final_loss(lambda p, lr=lr: torch.optim.SGD(p, lr=lr)) for lr in (1e-4, 3e-4, 1e-3, 2e-3)
    )
    assert final_loss(lambda p: MFAC(p, lr=0.1, num_gradients=64, damping=1e-2)) < best_sgd / 2
