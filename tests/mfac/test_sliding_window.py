"""F⁻¹ times the newest gradient equals the dense float64 oracle on the gradients held."""

import pytest
import torch

from mfac_compress.mfac import sliding_window
from mfac_compress.mfac.numerics import PrecisionError
from mfac_compress.mfac.sliding_window import SlidingFisher


def _oracle(fisher, newest, damping, dense_fisher):
    """F⁻¹g by a dense float64 solve; the length of an error is relative to this."""
    G = fisher.gradients().double()
    return torch.linalg.solve(dense_fisher(G, damping), G[newest])


def _error(update, expected):
    return ((update.double() - expected).norm() / expected.norm()).item()


@pytest.fixture
def narrow_tiles(monkeypatch):
    """Several tiles, not all of one width, converted two rows at a time; small enough to check."""
    monkeypatch.setattr(sliding_window, "_TILE_WIDTH", 7)
    monkeypatch.setattr(sliding_window, "_CPU_CONVERTED", 14)


@pytest.mark.usefixtures("narrow_tiles")
@pytest.mark.parametrize("damping", [1e-1, 1e-5])
@pytest.mark.parametrize(("m", "d"), [(1, 5), (1, 1), (3, 20), (8, 8), (33, 20), (50, 30)])
def test_every_step_equals_the_oracle_before_and_after_the_ring_wraps(
    m, d, damping, gradients, dense_fisher
):
    fisher = SlidingFisher.empty(m, d)
    steps = min(2 * m + 3, 40)
    for step, gradient in enumerate(gradients(steps, d)):
        update = fisher.push(gradient, damping)

        assert fisher.held == min(step + 1, m)
        assert (fisher.gradients()[step % m] == gradient).all()
        assert _error(update, _oracle(fisher, step % m, damping, dense_fisher)) < 1e-4


@pytest.mark.usefixtures("narrow_tiles")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_window_dtype_equals_the_oracle_on_what_it_holds(dtype, gradients, dense_fisher):
    fisher = SlidingFisher.empty(5, 23, dtype)
    for step, gradient in enumerate(gradients(13, 23)):
        update = fisher.push(gradient, 1e-3)

        assert update.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        expected = _oracle(fisher, step % 5, 1e-3, dense_fisher)
        assert _error(update, expected) < (1e-10 if dtype == torch.float64 else 1e-4)


@pytest.mark.usefixtures("narrow_tiles")
@pytest.mark.parametrize("damping", [1e-2, 1e-5, 1e-8])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e2, 1e4])
@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_nearly_parallel_and_equal_gradients_equal_the_oracle_or_are_refused(
    noise, scale, damping, gradients
):
    """Here c is up to 1/λ while Gᵀc stays small: float32 sums would lose all its digits."""
    m, d = 6, 40
    rows = scale * (gradients(1, d) + noise * gradients(15, d))
    fisher = SlidingFisher.empty(m, d)
    for step, gradient in enumerate(rows):
        try:
            update = fisher.push(gradient, damping)
        except ValueError:
            assert scale**2 / damping > 1e10  # of float64's 16 digits 6 are left
            continue

        # The dense matrix is too ill-conditioned for a float64 solve; its singular values are not.
        G = fisher.gradients().double()
        U, s, Vh = torch.linalg.svd(G, full_matrices=False)
        expected = Vh.T @ (s / (damping + s.square() / len(G)) * U[step % m])
        assert _error(update, expected) < 1e-3


def test_zero_gradients_do_no_harm(gradients, dense_fisher):
    fisher = SlidingFisher.empty(4, 10)
    for step, gradient in enumerate(gradients(9, 10)):
        if step % 3 == 0:
            assert not fisher.push(torch.zeros(10), 1e-3).any()
        else:
            update = fisher.push(gradient, 1e-3)
            assert _error(update, _oracle(fisher, step % 4, 1e-3, dense_fisher)) < 1e-4


def test_the_damping_may_change_from_step_to_step(gradients, dense_fisher):
    fisher = SlidingFisher.empty(4, 10)
    for step, gradient in enumerate(gradients(9, 10)):
        damping = 10.0 ** -(step % 5)
        update = fisher.push(gradient, damping)
        assert _error(update, _oracle(fisher, step % 4, damping, dense_fisher)) < 1e-4


@pytest.mark.usefixtures("narrow_tiles")
def test_forgotten_columns_get_no_update_and_shape_none(gradients):
    mask = torch.arange(20) % 3 > 0
    before, never = SlidingFisher.empty(6, 20), SlidingFisher.empty(6, 20)
    for gradient in gradients(8, 20):
        before.push(gradient, 1e-2)
        never.push(gradient * mask, 1e-2)

    before.keep_columns(mask)

    new = gradients(9, 20)[-1] * mask
    update = before.push(new, 1e-2)
    assert not update[~mask].any()
    torch.testing.assert_close(update, never.push(new, 1e-2), rtol=1e-4, atol=1e-5)


def test_state_rebuilds_the_same_window(gradients):
    fisher = SlidingFisher.empty(3, 10)
    for gradient in gradients(4, 10):
        fisher.push(gradient, 1e-2)

    again = SlidingFisher(**fisher.state())

    assert again.held == 3
    assert torch.equal(again.gradients(), fisher.gradients())


def test_sums_over_many_columns_stay_near_float64():
    """Parallel vectors of equal signs, the worst case of a long float32 sum."""
    d = 300_000
    gradient = torch.full((d,), 0.1) + 0.01 * torch.rand(
        d, generator=torch.Generator().manual_seed(0)
    )
    fisher = SlidingFisher.empty(2, d)
    fisher.push(gradient, 1e6)  # so much damping that float32 is chosen
    exact = gradient.double().square().sum()
    assert abs(fisher.gram[0, 0] / exact - 1) < 3e-7


def test_unusable_arguments_are_refused(gradients):
    fisher = SlidingFisher.empty(2, 10)
    with pytest.raises(ValueError, match=r"\[10\]. Got \[9\]"):
        fisher.push(torch.ones(9), 1e-3)
    with pytest.raises(ValueError, match="damping must be positive"):
        fisher.push(torch.ones(10), 0.0)
    with pytest.raises(ValueError, match=r"mask must have the shape \[10\]"):
        fisher.keep_columns(torch.ones(3, dtype=torch.bool))
    assert fisher.held == 0

    large = 1e8 * gradients(1, 10)[0]
    fisher.push(large, 1e-8)
    with pytest.raises(PrecisionError, match=r"damping must be large enough.*ten times"):
        fisher.push(large, 1e-8)


def _random(generator):
    return torch.randn(20_000, generator=generator)


def _parallel(generator):
    return 1 + 0.01 * torch.randn(20_000, generator=generator)


def _concentrated(generator):
    """Nearly all of it in 640 weights of one tile, as the last layer's gradient may be."""
    gradient = 1e-3 * torch.randn(20_000, generator=generator)
    gradient[5000:5640] = torch.randn(640, generator=generator)
    return gradient


@pytest.mark.parametrize(("width", "error"), sliding_window._FLOAT32_SUMS)
@pytest.mark.parametrize("kind", [_random, _parallel, _concentrated])
def test_float32_sums_are_as_accurate_as_is_said(kind, width, error):
    generator = torch.Generator().manual_seed(0)
    fisher = SlidingFisher.empty(24, 20_000)
    for step in range(24):
        fisher.push(kind(generator), 1e9)
        fisher._update_gram(step, torch.float32, width)
        G = fisher.gradients().double()
        allowed = error * G[step].norm() * G[:step].norm(dim=1)
        assert ((fisher.gram[step, :step] - G[:step] @ G[step]).abs() <= allowed).all()


def test_the_length_of_a_gradient_is_exact():
    gradient = _parallel(torch.Generator().manual_seed(0))
    fisher = SlidingFisher.empty(2, 20_000)
    fisher.push(gradient, 1e9)
    assert fisher.gram[0, 0].item() == pytest.approx(
        gradient.double().square().sum().item(), rel=1e-12
    )


@pytest.mark.parametrize(
    ("length", "sums"),
    [(1, (torch.float32, 8192)), (5, (torch.float32, 512)), (50, (torch.float64, 6667))],
)
@pytest.mark.parametrize("kind", [_random, _concentrated])
def test_sums_are_as_exact_as_the_length_of_the_gradients_needs(kind, length, sums, monkeypatch):
    used = []
    update = SlidingFisher._update_gram
    monkeypatch.setattr(
        SlidingFisher, "_update_gram", lambda *given: used.append(given[2:]) or update(*given)
    )
    generator = torch.Generator().manual_seed(0)
    fisher = SlidingFisher.empty(64, 20_000)
    for step in range(9):
        gradient = kind(generator)
        update_vector = fisher.push(gradient * (length / gradient.norm()), 5e-5)

        G = fisher.gradients().double()
        S = G @ G.T + len(G) * 5e-5 * torch.eye(len(G))
        exact = len(G) * torch.linalg.solve(S, torch.eye(len(G), dtype=torch.float64)[step]) @ G
        assert _error(update_vector, exact) < 1e-4
    assert used[-1] == sums
