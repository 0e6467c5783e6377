"""Sums of the Ising model are those of all its configurations."""

import itertools

import numpy as np
import pytest

from mfac_compress.recipes.models.ising import Ising


def configurations(model):
    return np.array(list(itertools.product([-1, 1], repeat=model.sites)))


def weights_by_definition(model, spins):
    """f(x), bond by bond."""
    rows, columns = model.fields.shape
    total = np.zeros(len(spins))
    grid = spins.reshape(-1, rows, columns)
    for row, column in itertools.product(range(rows), range(columns)):
        total += model.fields[row, column] * grid[:, row, column]
        for other in ((row + 1, column), (row, column + 1)):
            if other[0] < rows and other[1] < columns:
                total += model.coupling * grid[:, row, column] * grid[:, other[0], other[1]]
    return np.exp(total)


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 2), (1, 3), (3, 1)])
def test_sums_over_unknown_spins_are_those_of_all_configurations(shape):
    model = Ising.random(*shape, coupling=0.4, spread=0.5, seed=1)
    everything = configurations(model)
    weights = weights_by_definition(model, everything)
    asked = np.random.default_rng(0).integers(-1, 2, (50, model.sites))
    agrees = ((everything == asked[:, None]) | (asked[:, None] == 0)).all(2)

    np.testing.assert_allclose(model.log_weights(everything), np.log(weights), atol=1e-12)
    np.testing.assert_allclose(model.log_sums(asked), np.log(agrees @ weights), atol=1e-12)
    expected = np.log(agrees @ weights / weights.sum())
    np.testing.assert_allclose(model.log_marginals(asked), expected, atol=1e-12)


def test_samples_have_the_probabilities_of_the_model():
    model = Ising.random(3, 3, coupling=0.4, spread=0.5, seed=1)
    expected = np.exp(model.log_marginals(configurations(model)))

    drawn = model.sample(200_000, np.random.default_rng(0))

    numbers = (drawn > 0) @ (2 ** np.arange(model.sites)[::-1])
    counts = np.bincount(numbers, minlength=expected.size)
    chi_square = ((counts - len(drawn) * expected) ** 2 / (len(drawn) * expected)).sum()
    assert chi_square < 511 + 5 * np.sqrt(2 * 511)


def test_large_sums_do_not_overflow():
    model = Ising(40.0, np.zeros((5, 5)))
    nothing = np.zeros((1, 25))
    assert model.log_sums(nothing) == pytest.approx(40 * 40 + np.log(2))
    assert set(np.abs(model.sample(100, np.random.default_rng(0)).sum(1))) == {25}
