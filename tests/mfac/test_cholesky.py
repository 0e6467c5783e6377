"""Batched factors by bands of rows: as accurate as LAPACK's, from one half of each matrix."""

import pytest
import torch

from mfac_compress.mfac.cholesky import inverse_factor, solve
from mfac_compress.mfac.symmetric import add_products, packed_diagonal, packed_zeros, unpack_upper

# One band, several of them, a last one that is narrower.
SIZES = [1, 7, 32, 33, 96, 130]


def _matrices(size, condition=1e2, count=3):
    """Random symmetric matrices of a given condition number."""
    generator = torch.Generator().manual_seed(size)
    X = torch.randn(count, size, size, generator=generator, dtype=torch.float64)
    Q = torch.linalg.qr(X).Q
    eigenvalues = torch.logspace(0, -torch.tensor(condition).log10().item(), size).double()
    A = Q @ (eigenvalues[:, None] * Q.mT)
    return (A + A.mT) / 2


def _upper_of(A):
    """A with values below the diagonals that nobody may read."""
    return torch.where(torch.ones_like(A, dtype=torch.bool).tril(-1), torch.nan, A)


@pytest.mark.parametrize("size", SIZES)
def test_the_factor_gives_the_inverse(size):
    A = _matrices(size)

    R = inverse_factor(_upper_of(A))

    assert not R.triu(1).any()
    torch.testing.assert_close(R.mT @ R, torch.linalg.inv(A))


@pytest.mark.parametrize("size", SIZES)
def test_solve_gives_what_the_dense_solve_gives(size):
    A, x = _matrices(size), torch.randn(3, size, dtype=torch.float64)

    torch.testing.assert_close(solve(_upper_of(A), x), torch.linalg.solve(A, x))


@pytest.mark.parametrize("condition", [1e0, 1e4, 1e8, 1e12])
def test_errors_are_no_larger_than_those_of_lapack(condition):
    A = _matrices(128, condition, count=8)
    identity = torch.eye(128, dtype=torch.float64)
    lapack = torch.linalg.solve_triangular(torch.linalg.cholesky(A), identity, upper=False)

    R = inverse_factor(A.clone())

    def residual(factor):
        return (factor @ A @ factor.mT - identity).norm(dim=(-2, -1)).max().item()

    assert residual(R) < 3 * residual(lapack) + 1e-13
    x = torch.ones(8, 128, dtype=torch.float64)
    backward = (A @ solve(A.clone(), x).unsqueeze(-1)).squeeze(-1) - x
    exact = (A @ torch.cholesky_solve(x.unsqueeze(-1), torch.linalg.cholesky(A))).squeeze(-1) - x
    assert backward.norm() < 3 * exact.norm() + 1e-13


@pytest.mark.parametrize("function", [inverse_factor, lambda A: solve(A, A[:, 0].clone())])
@pytest.mark.parametrize("row", [0, 40, 99])
def test_a_matrix_that_is_not_positive_definite_is_refused(function, row):
    A = _matrices(100)
    A[1, row, row] = -1e-3
    with pytest.raises(torch.linalg.LinAlgError):
        function(A)


def test_the_diagonal_is_kept():
    A = _matrices(70)
    work = A.clone()

    inverse_factor(work)

    assert torch.equal(work.diagonal(dim1=-2, dim2=-1), A.diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize("size", [2, 6, 64, 96, 150])
def test_packed_sums_are_the_products(size):
    rows = torch.randn(3, 5, size, dtype=torch.float64)
    packed = packed_zeros(3, size, "cpu")
    add_products(packed, rows)
    add_products(packed, rows)
    full = torch.empty(3, size, size, dtype=torch.float64)
    unpack_upper(packed, full)

    expected = 2 * rows.mT @ rows
    torch.testing.assert_close(full.triu(), expected.triu())
    torch.testing.assert_close(
        packed_diagonal(packed, size), expected.diagonal(dim1=-2, dim2=-1), rtol=1e-14, atol=0
    )
