"""Annealed importance sampling finds the exact log Z, and says how far off it may be."""

import numpy as np
import pytest

from mfac_compress.recipes.models.annealing import anneal, gibbs_sweep
from mfac_compress.recipes.models.ising import Ising


def exact(model):
    return model.log_sums(np.zeros((1, model.sites)))[0]


def test_ten_by_ten_spins_within_three_standard_errors():
    model = Ising.random(10, 10)
    found = anneal(model, chains=400, steps=100, rng=np.random.default_rng(0))
    assert found.standard_error < 0.05
    assert abs(found.log_partition - exact(model)) < 3 * found.standard_error


def test_errors_are_as_large_as_they_are_said_to_be():
    model = Ising.random(3, 4, coupling=0.4, spread=0.5, seed=1)
    found = [anneal(model, 200, 8, np.random.default_rng(seed)) for seed in range(200)]
    errors = np.array([(one.log_partition - exact(model)) / one.standard_error for one in found])
    # 200 draws of a normal: its mean is known within 0.07 and its deviation within 0.05.
    assert abs(errors.mean()) < 0.25
    assert errors.std() == pytest.approx(1, abs=0.2)


def test_a_sweep_leaves_the_distribution_as_it_is():
    model = Ising.random(3, 3, coupling=0.4, spread=0.5, seed=1)
    half = Ising(model.coupling / 2, model.fields / 2)
    rng = np.random.default_rng(0)
    spins = half.sample(200_000, rng).astype(float)
    grid = spins.reshape(-1, 3, 3).copy()

    gibbs_sweep(model, grid, 0.5, rng)

    assert (grid.reshape(-1, 9) != spins).any(0).all()
    numbers = (grid.reshape(-1, 9) > 0) @ (2 ** np.arange(9)[::-1])
    everything = 2.0 * ((np.arange(512)[:, None] >> np.arange(9)[::-1]) & 1) - 1
    expected = len(grid) * np.exp(half.log_marginals(everything))
    chi_square = ((np.bincount(numbers, minlength=512) - expected) ** 2 / expected).sum()
    assert chi_square < 511 + 5 * np.sqrt(2 * 511)


def test_one_site_needs_no_chain():
    model = Ising(0.3, np.array([[0.7]]))
    found = anneal(model, chains=2000, steps=50, rng=np.random.default_rng(0))
    assert found.log_partition == pytest.approx(np.log(2 * np.cosh(0.7)), abs=0.01)
    assert found.effective > 1900
