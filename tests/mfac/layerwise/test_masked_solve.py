"""The best weights under a mask, against a dense least-squares solution row by row."""

import pytest
import torch

from mfac_compress.mfac.layerwise.masked_solve import masked_least_squares
from mfac_compress.mfac.layerwise.moment_matrix import MIN_RIDGE
from mfac_compress.mfac.numerics import PrecisionError


def _problem(r=7, k=12, n=60, seed=0):
    """Weights ``[r, k]``, correlated inputs ``[k, n]``, wanted outputs ``[r, n]``."""
    generator = torch.Generator().manual_seed(seed)
    W, mix, X, noise = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in [(r, k), (k, k), (k, n), (r, n)]
    )
    X = mix @ X
    return W, X, W @ X + noise


def _mask(r, k, share, seed=1):
    return torch.rand(r, k, generator=torch.Generator().manual_seed(seed)) < share


def _lstsq(W0, X, Y, mask, ridge):
    """Each row by itself: the ridge is k further samples √ρ eᵢ with the outputs √ρ w₀ᵢ."""
    root = (max(ridge, MIN_RIDGE) * (X @ X.T).diag().mean()).sqrt()
    result = torch.zeros_like(W0)
    for i, kept in enumerate(mask):
        inputs = torch.cat([X, root * torch.eye(len(X))], dim=1)[kept]
        outputs = torch.cat([Y[i], root * W0[i]])
        result[i, kept] = torch.linalg.lstsq(inputs.T, outputs[:, None]).solution[:, 0]
    return result


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.5])
@pytest.mark.parametrize(("r", "k"), [(7, 12), (300, 20), (5, 70)])
def test_it_is_the_least_squares_solution_of_each_row(share, ridge, r, k):
    W0, X, Y = _problem(r, k, 3 * k)
    mask = _mask(r, k, share)

    W = masked_least_squares(W0, X @ X.T, mask, cross=Y @ X.T, ridge=ridge)

    torch.testing.assert_close(W, _lstsq(W0, X, Y, mask, ridge), rtol=1e-5, atol=1e-6)
    assert not W[~mask].any()
    assert not torch.signbit(W[~mask]).any()


def test_without_wanted_outputs_it_keeps_those_of_the_weights():
    W0, X, _ = _problem()
    H, mask = X @ X.T, _mask(7, 12, 0.6)

    W = masked_least_squares(W0, H, mask, ridge=0.1)

    assert torch.equal(W, masked_least_squares(W0, H, mask, cross=W0 @ H, ridge=0.1))
    torch.testing.assert_close(masked_least_squares(W0, H, mask | True), W0)


def test_no_change_on_the_mask_lowers_the_error():
    W0, X, Y = _problem()
    mask = _mask(7, 12, 0.5)
    W = masked_least_squares(W0, X @ X.T, mask, cross=Y @ X.T)
    lowest = (Y - W @ X).square().sum(dim=1)

    for seed in range(20):
        step = 1e-3 * torch.randn(7, 12, generator=torch.Generator().manual_seed(seed)) * mask
        assert ((Y - (W + step) @ X).square().sum(dim=1) >= lowest).all()


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_groups_are_solved_as_if_alone(share):
    problems = [_problem(40, 9, 30, seed) for seed in range(3)]
    W0, Y_X = (torch.stack(x) for x in zip(*((W, Y @ X.T) for W, X, Y in problems), strict=True))
    H = torch.stack([X @ X.T for _, X, _ in problems])
    mask = torch.stack([_mask(40, 9, share, seed) for seed in range(3)])

    W = masked_least_squares(W0, H, mask, cross=Y_X, ridge=0.01)

    for i in range(3):
        own = masked_least_squares(W0[i], H[i], mask[i], cross=Y_X[i], ridge=0.01)
        torch.testing.assert_close(W[i], own)


def test_the_order_of_rows_and_inputs_does_not_matter():
    W0, X, Y = _problem(30)
    mask, H, cross = _mask(30, 12, 0.7), X @ X.T, Y @ X.T
    rows, inputs = torch.randperm(30), torch.randperm(12)

    W = masked_least_squares(W0, H, mask, cross=cross, ridge=0.1)

    shuffled = (x[rows][:, inputs] for x in (W0, mask, cross))
    W0, mask, cross = shuffled
    other = masked_least_squares(W0, H[inputs][:, inputs], mask, cross=cross, ridge=0.1)
    torch.testing.assert_close(other, W[rows][:, inputs])


@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_weights_of_inputs_that_are_always_zero_stay_as_they_were(share, ridge):
    W0, X, Y = _problem(30)
    X[[2, 5]] = 0
    mask = _mask(30, 12, share)

    W = masked_least_squares(W0, X @ X.T, mask, cross=Y @ X.T, ridge=ridge)

    torch.testing.assert_close(W[:, [2, 5]], (W0 * mask)[:, [2, 5]])
    torch.testing.assert_close(W, _lstsq(W0, X, Y, mask, ridge), rtol=1e-4, atol=1e-5)


def test_fewer_samples_than_inputs_still_give_the_wanted_outputs():
    W0, X, Y = _problem(r=4, k=12, n=5)

    W = masked_least_squares(W0, X @ X.T, torch.ones(4, 12, dtype=torch.bool), cross=Y @ X.T)

    torch.testing.assert_close(W @ X, Y, rtol=1e-4, atol=1e-4)


def test_a_layer_without_inputs_keeps_its_weights():
    W0, mask = _problem()[0], _mask(7, 12, 0.5)

    assert torch.equal(masked_least_squares(W0, torch.zeros(12, 12), mask), W0 * mask)


def test_rows_without_any_weight_are_zero():
    W0, X, _ = _problem()
    mask = _mask(7, 12, 0.5)
    mask[[0, 3]] = False

    W = masked_least_squares(W0.float(), X @ X.T, mask)

    assert not W[[0, 3]].any()
    assert W.dtype == torch.float32


def test_a_matrix_that_is_not_one_of_moments_is_refused():
    W0, X, _ = _problem()
    H = X @ X.T
    H[3, 3] *= -1e-3
    with pytest.raises(PrecisionError, match="ridge must cover"):
        masked_least_squares(W0, H, torch.ones(7, 12, dtype=torch.bool))


def test_a_solution_that_misses_the_tolerance_is_refused():
    """Only one half of H is factored: if the other is not the same, the residual shows it."""
    W0, X, _ = _problem()
    H = X @ X.T
    H[5, 3] *= 1.001
    with pytest.raises(PrecisionError, match="misses the tolerance"):
        masked_least_squares(W0, H, _mask(7, 12, 0.6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"H": torch.eye(3)}, r"H \[..., k, k\]"),
        ({"mask": torch.ones(7, 3, dtype=torch.bool)}, "weights, mask and cross"),
        ({"cross": torch.ones(3, 12)}, "weights, mask and cross"),
        ({"ridge": -1.0}, "ridge must be finite"),
        ({"H": torch.full((12, 12), torch.nan)}, "must be finite"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    arguments = {"weights": torch.ones(7, 12), "H": torch.eye(12), "mask": _mask(7, 12, 0.5)}
    with pytest.raises(ValueError, match=message):
        masked_least_squares(**{**arguments, **changes})
