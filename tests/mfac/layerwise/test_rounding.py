"""Rounding under a mask, against dense solutions of what is not rounded yet at every step."""

import pytest
import torch

from mfac_compress.mfac.layerwise.masked_solve import masked_least_squares
from mfac_compress.mfac.layerwise.moment_matrix import damped
from mfac_compress.mfac.layerwise.rounding import round_to_grid
from mfac_compress.mfac.numerics import PrecisionError


def _layer(g=1, r=4, k=12, n=40, seed=0, share=0.7):
    """Weights ``[g, r, k]``, H ``[g, k, k]``, a mask and 15 levels over each row's weights."""
    generator = torch.Generator().manual_seed(seed)
    W, mix, X = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in [(g, r, k), (g, k, k), (g, k, n)]
    )
    H = mix @ X @ X.mT @ mix.mT
    mask = torch.rand(g, r, k, generator=generator) < share
    W = masked_least_squares(W, H, mask)
    return W, H, mask, W.abs().amax(dim=-1).clamp_min(0.1) / 7


def _error(W, Z, H):
    return ((Z - W) @ H * (Z - W)).sum().item()


def _nearest(W, scale, levels=(-7, 7)):
    return (W / scale[..., None]).round().clamp(*levels) * scale[..., None]


def _brute_force(W, H, mask, scale, order, levels=(-7, 7), ridge=1e-6):
    """Row by row, solving for all weights that are not rounded yet after every rounding."""
    A, Z = damped(H, ridge), torch.zeros_like(W)
    for g, i in torch.cartesian_prod(torch.arange(W.shape[0]), torch.arange(W.shape[1])):
        w, free = W[g, i].clone(), mask[g, i].clone()
        while free.any():
            columns = free.nonzero().flatten()
            z = _nearest(w[columns], scale[g, i], levels)
            error = w[columns] - z
            if order == "fixed":
                best = A[g].diag()[columns].argmax()
            elif (error.abs() > 0.50001 * scale[g, i]).any():
                best = error.abs().argmax()
            else:
                best = (error**2 / torch.linalg.inv(A[g][columns][:, columns]).diag()).argmin()
            Z[g, i, columns[best]] = z[best]
            free[columns[best]] = False
            # min over the free weights of ‖(w_free, Z elsewhere) − W‖² in A
            fixed = Z[g, i] - W[g, i]
            fixed[free] = 0
            w[free] = W[g, i, free] - torch.linalg.solve(A[g][free][:, free], (A[g] @ fixed)[free])
    return Z


@pytest.mark.parametrize("order", ["greedy", "fixed"])
@pytest.mark.parametrize("share", [0.3, 0.8, 1.0])
@pytest.mark.parametrize(("g", "r", "k"), [(1, 4, 12), (3, 2, 9), (1, 2, 80)])
def test_each_weight_is_rounded_when_it_is_its_turn(g, r, k, share, order):
    W, H, mask, scale = _layer(g, r, k, 3 * k, share=share)

    Z = round_to_grid(W, H, mask, scale, levels=(-7, 7), order=order)

    torch.testing.assert_close(Z, _brute_force(W, H, mask, scale, order))


@pytest.mark.parametrize("order", ["greedy", "fixed"])
def test_what_falls_outside_the_grid_is_cut_off_and_made_up_for(order):
    W, H, mask, scale = _layer()
    levels = (-3, 3)

    Z = round_to_grid(W, H, mask, scale, levels=levels, order=order)

    torch.testing.assert_close(Z, _brute_force(W, H, mask, scale, order, levels))
    assert (Z / scale[..., None]).abs().max() <= 3 + 1e-9
    assert _error(W, Z, H) < _error(W, _nearest(W, scale, levels) * mask, H)


@pytest.mark.parametrize("order", ["greedy", "fixed"])
def test_weights_are_whole_multiples_and_zeros_stay_zero(order):
    W, H, mask, scale = _layer(2, 30, 24, 100)

    Z = round_to_grid(W.float(), H, mask, scale, levels=(-7, 7), order=order)

    multiples = Z / scale[..., None]
    torch.testing.assert_close(multiples, multiples.round(), rtol=0, atol=1e-5)
    assert Z.dtype == torch.float32
    assert not Z[~mask].any()
    assert not torch.signbit(Z[Z == 0]).any()


@pytest.mark.parametrize("order", ["greedy", "fixed"])
def test_the_error_is_well_below_that_of_the_nearest_points(order):
    W, H, mask, scale = _layer(1, 30, 60, 200)

    Z = round_to_grid(W, H, mask, scale, levels=(-7, 7), order=order)

    assert _error(W, Z, H) < 0.6 * _error(W, _nearest(W, scale) * mask, H)


@pytest.mark.parametrize("order", ["greedy", "fixed"])
def test_independent_inputs_leave_the_nearest_points(order):
    W, _, mask, scale = _layer()
    H = torch.diag(torch.rand(12).double() + 0.1).expand(1, -1, -1)

    Z = round_to_grid(W, H, mask, scale, levels=(-7, 7), order=order)

    torch.testing.assert_close(Z, _nearest(W, scale) * mask)


@pytest.mark.parametrize("order", ["greedy", "fixed"])
def test_the_order_of_rows_and_inputs_does_not_matter(order):
    W, H, mask, scale = _layer(1, 6, 12)
    rows, inputs = torch.randperm(6), torch.randperm(12)
    expected = round_to_grid(W, H, mask, scale, levels=(-7, 7), order=order)

    Z = round_to_grid(
        W[:, rows][:, :, inputs],
        H[:, inputs][:, :, inputs],
        mask[:, rows][:, :, inputs],
        scale[:, rows],
        levels=(-7, 7),
        order=order,
    )

    torch.testing.assert_close(Z, expected[:, rows][:, :, inputs])


@pytest.mark.parametrize("order", ["greedy", "fixed"])
def test_inputs_that_are_always_zero(order):
    W, H, mask, scale = _layer()
    H[:, 3] = H[:, :, 3] = 0

    Z = round_to_grid(W, H, mask, scale, levels=(-7, 7), order=order)

    torch.testing.assert_close(Z[..., 3], (_nearest(W, scale) * mask)[..., 3])


def test_a_matrix_that_is_not_one_of_moments_is_refused():
    W, H, mask, scale = _layer(share=1.0)
    H[0, 3, 3] *= -1e-3
    for order in ("greedy", "fixed"):
        with pytest.raises(PrecisionError, match="ridge must cover"):
            round_to_grid(W, H, mask, scale, order=order)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"H": torch.ones(1, 3, 3)}, r"H \[g, k, k\]"),
        ({"scale": torch.ones(4)}, r"scale \[g, r\]"),
        ({"scale": torch.zeros(1, 4)}, r"scale must be positive\. Got 0"),
        ({"levels": (1, 5)}, "levels must hold zero"),
        ({"ridge": -1.0}, "ridge must be finite"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    W, H, mask, scale = _layer()
    with pytest.raises(ValueError, match=message):
        round_to_grid(**{"weights": W, "H": H, "mask": mask, "scale": scale, **changes})
