"""F⁻¹ on ill-conditioned windows: right to 1e-5, or refused. The oracle has 40 digits."""

import mpmath
import pytest
import torch

from mfac_compress.mfac import fisher_of, invert
from mfac_compress.mfac.numerics import PrecisionError, exact_products


def _inverse(gradients, damping=1e-5, blocks=None):
    return invert(fisher_of(gradients, blocks), damping)


DAMPINGS = [1e-3, 1e-5, 1e-8]


def _random(m, d):
    return torch.randn(m, d, generator=torch.Generator().manual_seed(m * d))


WINDOWS = {
    "random": _random,
    "duplicated rows": lambda m, d: _random(m, d)[torch.arange(m) // 2],
    "nearly duplicated rows": lambda m, d: (
        _random(m, d)[torch.arange(m) // 2] + 1e-6 * _random(m, d).roll(1, 0)
    ),
    "rank one": lambda m, d: _random(1, d).expand(m, d) * torch.arange(1, m + 1)[:, None],
    "equal rows": lambda m, d: _random(1, d).repeat(m, 1),
    "large": lambda m, d: 1e3 * _random(m, d),
    "small": lambda m, d: 1e-6 * _random(m, d),
    "rows of all scales": lambda m, d: _random(m, d) * torch.logspace(-6, 3, m)[:, None],
    "columns of all scales": lambda m, d: _random(m, d) * torch.logspace(-6, 3, d),
    "one large column": lambda m, d: _random(m, d) * (1 + 1e3 * (torch.arange(d) == 2)),
    "two equal large columns": lambda m, d: (
        _random(m, d)[:, [0, 0, *range(2, d)]] * (1 + 1e3 * (torch.arange(d) < 2))
    ),
    "zero": torch.zeros,
}
# Below m: blocks. Above: the window.
SHAPES = [(12, 12, 6), (4, 12, None), (6, 20, 10)]


def _exact_diagonal(G, damping, block):
    m, d = G.shape
    diagonal = []
    with mpmath.workdps(40):
        for start in range(0, d, block or d):
            part = mpmath.matrix(G[:, start : start + (block or d)].double().tolist())
            fisher = part.T * part / m + mpmath.mpf(damping) * mpmath.eye(part.cols)
            inverse = mpmath.inverse(fisher)
            diagonal += [float(inverse[i, i]) for i in range(part.cols)]
    return torch.tensor(diagonal, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("kind", WINDOWS)
def test_the_diagonal_is_right_or_refused(kind, damping, shape):
    m, d, block = shape
    G = WINDOWS[kind](m, d)
    exact = _exact_diagonal(G, damping, block)

    try:
        diagonal = _inverse(G, damping, block).diagonal()
    except PrecisionError as error:
        trace = G.double().square().sum().item() / m
        assert trace / damping > 1e9, "refused a harmless window"
        assert "ten times more" in str(error)  # noqa: PT017
        return

    torch.testing.assert_close(diagonal.double(), exact, rtol=1.2e-5, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_well_scaled_window_is_refused(shape):
    m, d, block = shape
    for kind in ("random", "duplicated rows", "equal rows", "small", "zero"):
        for damping in DAMPINGS:
            _inverse(WINDOWS[kind](m, d), damping, block)


def test_columns_that_cancel_are_taken_out_of_the_window():
    """One weight's gradients are so large that 1 − ‖v‖² has no digit left in float64."""
    G = _random(4, 40)
    G[0] *= 1e-6
    G[:, 0] = torch.tensor([3e4, 1.0, 2.0, 1.0])
    exact = _exact_diagonal(G, 1e-8, None)
    assert 1e-8 * exact[0] < torch.finfo(torch.float64).eps

    diagonal = _inverse(G, 1e-8).diagonal()

    torch.testing.assert_close(diagonal.double(), exact, rtol=1.2e-5, atol=0)


def test_sums_on_blocks_are_exact_where_float32_products_would_not_suffice():
    G = WINDOWS["equal rows"](64, 16)
    torch.testing.assert_close(
        _inverse(G, 1e-5, 16).diagonal().double(),
        _exact_diagonal(G, 1e-5, 16),
        rtol=1.2e-5,
        atol=0,
    )


def test_large_windows_agree_with_float64_throughout():
    """Several slices and tiles, where products are float32."""
    G = _random(130, 3000)
    for block in (None, 64):
        quick = _inverse(G, 1e-5, block).diagonal().double()
        torch.testing.assert_close(
            quick, _inverse(G.double(), 1e-5, block).diagonal(), rtol=1e-5, atol=0
        )


@pytest.mark.parametrize("allowed", ["highest", "high", "medium"])
def test_reduced_precision_is_off_inside_only(allowed):
    backend = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    outside = backend.fp32_precision
    try:
        with exact_products():
            assert backend.fp32_precision == "ieee"
            assert torch.get_float32_matmul_precision() == "highest"
        assert backend.fp32_precision == outside
        assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_setting_of_one_backend_survives():
    backend = torch.backends.cuda.matmul
    before = backend.fp32_precision
    backend.fp32_precision = "tf32"
    try:
        with exact_products():
            assert backend.fp32_precision == "ieee"
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = before


def _cancelling(m, d):
    G = _random(m, d)
    G[0] *= 1e-6
    G[:, 0] = torch.tensor([3e4, *[1.0] * (m - 1)])
    return G


def _exact_cost(G, damping, block, Q, x):
    """xᵀ[F⁻¹]_QQ⁻¹x, which is xᵀ(F_QQ − F_QK F_KK⁻¹ F_KQ)x, with 40 digits."""
    start = Q[0] // block * block
    with mpmath.workdps(40):
        part = mpmath.matrix(G[:, start : start + block].double().tolist())
        fisher = part.T * part / len(G) + mpmath.mpf(damping) * mpmath.eye(part.cols)
        inverse = mpmath.inverse(fisher)
        sub = mpmath.matrix([[inverse[i - start, j - start] for j in Q] for i in Q])
        x = mpmath.matrix(x.tolist())
        return float((x.T * mpmath.lu_solve(sub, x))[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("kind", [*WINDOWS, "cancelling"])
def test_sets_are_right_or_refused(kind, damping, shape):
    """Along the direction in which errors are largest: that of the smallest eigenvalue."""
    m, d, block = shape
    G = {**WINDOWS, "cancelling": _cancelling}[kind](m, d)
    sets = torch.tensor([[0, 1, 2], [3, 4, 5]])
    try:
        found = _inverse(G, damping, block).submatrices(sets)
    except PrecisionError as error:
        assert G.double().square().sum().item() / m / damping > 1e9, "refused a harmless window"
        assert "ten times more" in str(error)  # noqa: PT017
        return
    for Q, matrix in zip(sets.tolist(), found, strict=True):
        x = torch.linalg.eigh(matrix).eigenvectors[:, 0]
        cost = (x @ torch.linalg.solve(matrix, x)).item()
        assert cost == pytest.approx(_exact_cost(G, damping, block or d, Q, x), rel=1.1e-3)


def test_sets_without_a_digit_are_refused():
    inverse = _inverse(_cancelling(4, 40), 1e-8)
    with pytest.raises(PrecisionError, match="judge several weights together"):
        inverse.submatrices(torch.tensor([[0, 1], [2, 3]]))
    inverse.submatrices(torch.tensor([[2, 3], [4, 5]]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_set_of_the_same_column_twice_is_not_positive_definite(shape):
    m, d, block = shape
    with pytest.raises(PrecisionError, match="judge several weights together"):
        _inverse(_random(m, d), 1e-3, block).submatrices(torch.tensor([[1, 1]]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sets_of_no_well_scaled_window_are_refused(shape):
    m, d, block = shape
    for kind in ("random", "duplicated rows", "equal rows", "small", "zero"):
        for damping in DAMPINGS:
            _inverse(WINDOWS[kind](m, d), damping, block).submatrices(torch.tensor([[0, 1, 2, 3]]))
