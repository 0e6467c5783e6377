"""F⁻¹ in both representations against the dense float64 inverse."""

import pytest
import torch

from mfac_compress.mfac import empty_fisher, fisher_of, invert
from mfac_compress.mfac.block_fisher import BlockFisher
from mfac_compress.mfac.block_inverse import BlockInverse
from mfac_compress.mfac.partition import BlockPartition
from mfac_compress.mfac.plan import plan_inverse
from mfac_compress.mfac.window import GradientWindow
from mfac_compress.mfac.window_inverse import WindowInverse


def _inverse(gradients, damping=1e-5, blocks=None):
    return invert(fisher_of(gradients, blocks), damping)


# m, d, B: one block and several, blocks that divide d and do not, B below, at and above m.
SHAPES = [
    (8, 30, None),
    (40, 30, None),
    (20, 30, 5),
    (20, 31, 7),
    (7, 31, 7),
    (4, 30, 9),
    (1, 5, 1),
]
DAMPINGS = [1e-3, 1e-5, 1e-8]


@pytest.mark.parametrize(("m", "d", "block_size"), SHAPES)
@pytest.mark.parametrize("damping", DAMPINGS)
def test_everything_equals_the_dense_inverse(gradients, dense_fisher, m, d, block_size, damping):
    G = gradients(m, d)
    inverse = _inverse(G, damping, block_size)
    dense = torch.linalg.inv(dense_fisher(G, damping, block_size))
    x = torch.randn(d)

    torch.testing.assert_close(
        inverse.ihvp(x).double(), dense @ x.double(), rtol=1e-5, atol=1e-6 * dense.norm()
    )
    torch.testing.assert_close(inverse.diagonal().double(), dense.diag(), rtol=1e-5, atol=0)
    for j, k in [(0, 0), (0, d - 1), (d // 2, d // 2), (1 % d, 2 % d)]:
        assert inverse.element(j, k) == pytest.approx(
            dense[j, k].item(), rel=1e-5, abs=1e-7 * dense.abs().max().item()
        )


@pytest.mark.parametrize(("m", "d", "block_size"), SHAPES)
def test_fisher_times_inverse_is_the_identity(gradients, dense_fisher, m, d, block_size):
    G, x = gradients(m, d).double(), torch.randn(d, dtype=torch.float64)
    inverse = _inverse(G, 1e-4, block_size)

    torch.testing.assert_close(inverse.ihvp(dense_fisher(G, 1e-4, block_size) @ x), x)


def test_one_block_equals_the_full_matrix(gradients):
    G, x = gradients(20, 12), torch.randn(12)

    blocked, full = (_inverse(G, 1e-4, B) for B in (12, None))

    torch.testing.assert_close(blocked.ihvp(x), full.ihvp(x))


def test_representation_is_the_smaller_one(gradients):
    assert isinstance(_inverse(gradients(8, 24), blocks=8), BlockInverse)
    assert isinstance(_inverse(gradients(8, 24), blocks=12), WindowInverse)


def test_the_callers_gradients_are_not_changed(gradients):
    for block_size in (None, 3):
        G = gradients(9, 14)
        before = G.clone()
        _inverse(G, 1e-4, block_size).diagonal()
        assert torch.equal(G, before)


def test_gradients_that_arrive_in_parts_give_the_same_inverse(gradients):
    G, partition = gradients(200, 10), BlockPartition.contiguous(10, 4)
    fisher = BlockFisher(partition)
    for part in G.split(37):
        fisher.add(part)

    torch.testing.assert_close(invert(fisher, 1e-4).diagonal(), _inverse(G, 1e-4, 4).diagonal())


def test_another_damping_needs_no_new_gradients(gradients):
    G = gradients(20, 10)
    fisher = BlockFisher(BlockPartition.contiguous(10, 4))
    fisher.add(G)

    for damping in (1e-2, 1e-4, 1e-2):
        torch.testing.assert_close(
            invert(fisher, damping).diagonal(), _inverse(G, damping, 4).diagonal()
        )


@pytest.mark.parametrize("make", [BlockFisher, lambda p: GradientWindow(6, p)])
def test_saved_state_gives_the_same_inverse(gradients, make):
    partition = BlockPartition.contiguous(9, 4)
    fisher, other = make(partition), make(partition)
    fisher.add(gradients(6, 9))

    for part in fisher.parts():
        other.add_part({name: value.clone() for name, value in part.items()})

    assert torch.equal(invert(fisher, 1e-3).diagonal(), invert(other, 1e-3).diagonal())


def test_blocks_that_follow_tensors_never_couple_them(gradients, dense_fisher):
    G = gradients(30, 11)
    partition = BlockPartition.of_tensors([(0, 5), (5, 11)], block_size=4)
    inverse = _inverse(G, 1e-3, partition)

    for start, stop in [(0, 4), (4, 5), (5, 9), (9, 11)]:
        dense = torch.linalg.inv(dense_fisher(G[:, start:stop], 1e-3))
        torch.testing.assert_close(
            inverse.diagonal()[start:stop].double(), dense.diag(), rtol=1e-5, atol=0
        )
    assert inverse.element(4, 5) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_windows_are_inverted_as_what_they_hold(gradients, dense_fisher, dtype):
    G = gradients(6, 9).to(dtype)

    inverse = _inverse(G, 1e-2)

    dense = torch.linalg.inv(dense_fisher(G, 1e-2))
    torch.testing.assert_close(inverse.diagonal().double(), dense.diag(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"damping": 0.0}, "damping must be positive"),
        ({"damping": float("nan")}, "damping must be positive"),
        ({"blocks": 0}, "blocks must be of at least 1 column"),
        ({"gradients": torch.ones(3)}, r"gradients must be \[k, d\]"),
        ({"gradients": torch.ones(0, 3)}, r"gradients must be \[k, d\]"),
        ({"gradients": torch.ones(2, 3, dtype=torch.int64)}, "floating-point"),
        ({"gradients": torch.tensor([[0.0, 1.0, 2.0], [float("inf"), 0.0, 1.0]])}, "in row 1"),
        ({"gradients": torch.tensor([[0.0, float("nan")]] * 4)}, "in columns 0 to 2"),
        ({"blocks": BlockPartition.contiguous(5, 2)}, r"gradients must be \[k, 5\]"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    arguments = {"gradients": torch.ones(2, 3), "damping": 1e-3} | change
    with pytest.raises(ValueError, match=message):
        _inverse(**arguments)


@pytest.mark.parametrize("block_size", [None, 2])
def test_bad_vectors_and_indices_are_refused(gradients, block_size):
    inverse = _inverse(gradients(4, 6), 1e-3, block_size)
    with pytest.raises(ValueError, match=r"shape \[6\]"):
        inverse.ihvp(torch.ones(5))
    with pytest.raises(ValueError, match=r"\[0, 6\)"):
        inverse.element(0, 6)


@pytest.mark.parametrize("block_size", [None, 2])
def test_damping_that_vanishes_beside_the_gradients_is_refused(block_size):
    huge = torch.full((4, 4), 1e12)
    with pytest.raises(ValueError, match="ten times more"):
        _inverse(huge, 1e-12, block_size)


def test_an_empty_fisher_is_refused():
    partition = BlockPartition.contiguous(4, 2)
    for empty in (BlockFisher(partition), GradientWindow(3, partition)):
        with pytest.raises(ValueError, match="at least one gradient"):
            invert(empty, 1e-3)


def test_a_window_refuses_more_than_it_holds_and_what_its_dtype_does_not():
    window = GradientWindow(2, BlockPartition.contiguous(3, None), torch.float16)
    with pytest.raises(ValueError, match="window_dtype"):
        window.add(torch.full((1, 3), 1e6))
    with pytest.raises(ValueError, match="full"):
        window.add(torch.ones(3, 3))


@pytest.mark.parametrize("make", [BlockFisher, lambda p: GradientWindow(70, p)])
def test_means_are_those_of_the_gradients(gradients, make):
    G = gradients(70, 9)
    fisher = make(BlockPartition.contiguous(9, 4))
    for part in G.split(33):
        fisher.add(part)

    torch.testing.assert_close(fisher.mean_gradient, G.double().mean(0))
    assert fisher.mean_diagonal == pytest.approx(G.double().square().mean().item())


def test_gradients_added_later_do_not_change_an_inverse(gradients):
    fisher = BlockFisher(BlockPartition.contiguous(9, 4))
    fisher.add(gradients(6, 9))
    inverse, x = invert(fisher, 1e-3), torch.ones(9)
    before = inverse.ihvp(x)

    fisher.add(gradients(100, 9))

    assert torch.equal(inverse.ihvp(x), before)
    assert not torch.equal(invert(fisher, 1e-3).ihvp(x), before)


def test_added_gradients_may_be_overwritten_by_the_caller(gradients):
    fisher, buffer = BlockFisher(BlockPartition.contiguous(9, 4)), gradients(6, 9).clone()
    fisher.add(buffer)
    buffer.zero_()

    torch.testing.assert_close(
        invert(fisher, 1e-3).diagonal(), _inverse(gradients(6, 9), 1e-3, 4).diagonal()
    )


def test_blocks_are_the_damped_fisher(gradients, dense_fisher):
    G = gradients(20, 10)
    inverse = _inverse(G, 1e-3, 5)
    dense = dense_fisher(G, 1e-3, 5)

    for part, fisher in inverse.blocks():
        for (start, stop), block in zip(part.bounds, fisher, strict=True):
            torch.testing.assert_close(block, dense[start:stop, start:stop], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("block_size", [None, 3])
def test_the_plan_describes_what_is_made(block_size):
    partition = BlockPartition.contiguous(20, block_size)
    kind = {"window": GradientWindow, "blocks": BlockFisher}[
        plan_inverse(partition, 8).representation
    ]
    assert isinstance(empty_fisher(partition, 8), kind)
    assert isinstance(fisher_of(torch.ones(8, 20), partition), kind)


def test_rows_of_a_tensor_are_blocks_of_their_own(gradients, dense_fisher):
    G, partition = gradients(30, 22), BlockPartition.of_rows([(3, 5), (1, 7)], block_size=4)
    diagonal = _inverse(G, 1e-3, partition).diagonal().double()

    for start, stop in [bounds for run in partition for bounds in run.bounds]:
        dense = torch.linalg.inv(dense_fisher(G[:, start:stop], 1e-3))
        torch.testing.assert_close(diagonal[start:stop], dense.diag(), rtol=1e-5, atol=0)
