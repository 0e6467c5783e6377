"""Weight removal against the constrained minimum, solved densely in float64."""

from itertools import combinations

import pytest
import torch

from mfac_compress.mfac import fisher_of, invert
from mfac_compress.mfac.saliency import unit_costs
from mfac_compress.mfac.units import Unstructured
from mfac_compress.mfac.update import line_search, remove_weights


def _inverse(gradients, damping=1e-5, blocks=None):
    return invert(fisher_of(gradients, blocks), damping)


SHAPES = [(8, 20, None), (30, 20, None), (30, 20, 6), (5, 21, 7)]


def _joint(fisher, w, mask):
    """w_K + F_KK⁻¹ F_KQ w_Q on explicit matrices."""
    result = torch.zeros_like(w)
    F_KK, F_KQ = fisher[mask][:, mask], fisher[mask][:, ~mask]
    result[mask] = w[mask] + torch.linalg.solve(F_KK, F_KQ @ w[~mask])
    return result


@pytest.mark.parametrize(("m", "d", "block_size"), SHAPES)
def test_joint_update_equals_brute_force(gradients, dense_fisher, m, d, block_size):
    G = gradients(m, d)
    inverse, dense = _inverse(G, 1e-3, block_size), dense_fisher(G, 1e-3, block_size)
    w, mask = torch.randn(d), torch.rand(d) > 0.5

    updated = remove_weights(w, mask, inverse, "joint")

    torch.testing.assert_close(
        updated.double(), _joint(dense, w.double(), mask), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("m", "d", "block_size"), SHAPES)
def test_no_other_update_has_a_smaller_loss(gradients, dense_fisher, m, d, block_size):
    G = gradients(m, d)
    inverse, F = _inverse(G, 1e-3, block_size), dense_fisher(G, 1e-3, block_size)
    w, mask = torch.randn(d), torch.rand(d) > 0.5

    def loss(update):
        delta = (remove_weights(w, mask, inverse, update) - w).double()
        return 0.5 * delta @ F @ delta

    assert loss("joint") < loss("single")
    assert loss("joint") < loss("none")


@pytest.mark.parametrize(("m", "d", "block_size"), SHAPES)
def test_single_update_adds_up_the_papers_corrections(gradients, dense_fisher, m, d, block_size):
    G = gradients(m, d)
    inverse = _inverse(G, 1e-3, block_size)
    dense = torch.linalg.inv(dense_fisher(G, 1e-3, block_size))
    w, mask = torch.randn(d), torch.rand(d) > 0.5
    expected = w.double()
    for q in (~mask).nonzero().flatten():
        expected = expected - w[q].double() / dense[q, q] * dense[:, q]

    updated = remove_weights(w, mask, inverse, "single")

    torch.testing.assert_close(
        updated.double(), expected.masked_fill(~mask, 0), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("m", "d", "block_size"), SHAPES)
def test_the_kept_inverse_is_that_of_the_kept_rows_and_columns(
    gradients, dense_fisher, m, d, block_size
):
    G, x, mask = gradients(m, d), torch.randn(d), torch.rand(d) > 0.5
    F_KK = dense_fisher(G, 1e-3, block_size)[mask][:, mask]
    expected = torch.zeros(d, dtype=torch.float64)
    expected[mask] = torch.linalg.solve(F_KK, x[mask].double())

    solved = _inverse(G, 1e-3, block_size).solve_kept(x, mask)

    torch.testing.assert_close(solved.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("update", ["joint", "single", "none"])
@pytest.mark.parametrize("block_size", [None, 3])
def test_removed_weights_are_positive_zeros(gradients, update, block_size):
    inverse = _inverse(gradients(8, 9), 1e-3, block_size)
    w, mask = -torch.rand(9) - 1, torch.arange(9) % 2 == 0

    removed = remove_weights(w, mask, inverse, update)[~mask]

    assert not removed.count_nonzero()
    assert not torch.signbit(removed).any()


def test_one_removed_weight_is_the_same_jointly_and_singly(gradients):
    inverse = _inverse(gradients(8, 9), 1e-3)
    w, mask = torch.randn(9), torch.arange(9) != 4

    torch.testing.assert_close(
        remove_weights(w, mask, inverse, "joint"), remove_weights(w, mask, inverse, "single")
    )


@pytest.mark.parametrize("block_size", [None, 4])
def test_saliency_is_the_loss_of_the_best_single_removal(gradients, dense_fisher, block_size):
    G, w = gradients(12, 8), torch.randn(8)
    F = dense_fisher(G, 1e-2, block_size)
    inverse = _inverse(G, 1e-2, block_size)

    units = Unstructured().resolve({"w": (8,)}, 0.5)[1]
    saliency = unit_costs(w, inverse, units, torch.ones(8, dtype=torch.bool), "independent")

    for q in range(8):
        delta = _joint(F, w.double(), torch.arange(8) != q) - w.double()
        assert saliency[q].item() == pytest.approx((0.5 * delta @ F @ delta).item(), rel=1e-4)


def test_everything_may_be_removed_or_kept(gradients):
    inverse = _inverse(gradients(8, 6), 1e-3, 3)
    w = torch.randn(6)
    everything, nothing = torch.ones(6, dtype=torch.bool), torch.zeros(6, dtype=torch.bool)

    torch.testing.assert_close(remove_weights(w, everything, inverse, "joint"), w)
    assert not remove_weights(w, nothing, inverse, "joint").any()


def test_joint_beats_every_other_choice_of_correction_on_pairs(gradients, dense_fisher):
    """The brute force over pairs: the joint loss is w_Qᵀ (F⁻¹_QQ)⁻¹ w_Q / 2 (Hassibi's form)."""
    G, w = gradients(10, 5), torch.randn(5)
    F = dense_fisher(G, 1e-2)
    inverse = _inverse(G, 1e-2)
    for pair in combinations(range(5), 2):
        Q = torch.tensor(pair)
        mask = torch.ones(5, dtype=torch.bool)
        mask[Q] = False
        delta = (remove_weights(w, mask, inverse, "joint") - w).double()
        w_Q = w[Q].double()
        expected = 0.5 * w_Q @ torch.linalg.solve(torch.linalg.inv(F)[Q][:, Q], w_Q)
        assert (0.5 * delta @ F @ delta).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_line_search_returns_the_power_of_two_with_the_lowest_loss():
    size, loss = line_search(lambda step: (step - 0.03) ** 2)
    assert size == 2.0**-5
    assert loss == pytest.approx((2.0**-5 - 0.03) ** 2)


def test_the_line_search_returns_zero_if_no_step_helps():
    tried = []

    def loss_at(step):
        tried.append(step)
        return 1 + step

    assert line_search(loss_at) == (0.0, 1.0)
    assert len(tried) == 3


def test_the_line_search_may_return_one_and_survives_losses_that_are_not_finite():
    assert line_search(lambda step: -step) == (1.0, -1.0)
    assert line_search(lambda step: float("nan") if step > 0.1 else -step)[0] == 2.0**-4
