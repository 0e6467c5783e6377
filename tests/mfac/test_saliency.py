"""Selection of weights: exact counts, least salient first, and none comes back."""

import torch

from mfac_compress.mfac.saliency import Budget, magnitude_saliency, select_mask
from mfac_compress.mfac.schedule import sparsity_schedule


def _everything(d):
    return torch.ones(d, dtype=torch.bool)


def test_the_least_salient_weights_are_removed():
    saliency = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0])

    mask = select_mask(saliency, [Budget(((0, 5),), 0.4)], _everything(5))

    assert mask.tolist() == [True, False, False, True, True]


def test_weights_compete_only_within_their_budget():
    saliency = torch.tensor([1.0, 2.0, 30.0, 10.0, 20.0, 3.0])
    budgets = [Budget(((0, 2), (5, 6)), 1 / 3), Budget(((2, 5),), 2 / 3)]

    mask = select_mask(saliency, budgets, _everything(6))

    assert mask.tolist() == [False, True, True, False, False, True]


def test_removed_weights_stay_removed():
    gone = torch.tensor([True, True, True, False])

    mask = select_mask(torch.tensor([1.0, 2.0, 3.0, 9.0]), [Budget(((0, 4),), 0.5)], gone)

    assert mask.tolist() == [False, True, True, False]


def test_ties_do_not_change_the_count():
    mask = select_mask(torch.zeros(1000), [Budget(((0, 1000),), 0.7)], _everything(1000))

    assert int((~mask).sum()) == 700


def test_at_least_the_share_is_removed_and_never_all():
    assert Budget(((0, 10),), 0.71).removed == 8
    assert Budget(((0, 10),), 0.7).removed == 7
    assert Budget(((0, 3),), 0.99).removed == 2
    assert Budget(((0, 3),), 0.0).removed == 0


def test_magnitude_ignores_the_sign():
    assert magnitude_saliency(torch.tensor([-3.0, 2.0])).tolist() == [9.0, 4.0]


def test_schedules_end_at_the_target_and_grow():
    for schedule in ("geometric", "linear"):
        sparsities = sparsity_schedule(0.9, 7, schedule)
        assert sparsities[-1] == 0.9
        assert sparsities == sorted(sparsities)
        assert len(sparsities) == 7


def test_a_geometric_schedule_keeps_the_same_share_in_each_step():
    densities = [1 - s for s in sparsity_schedule(0.9, 4)]
    shares = {round(b / a, 9) for a, b in zip([1.0, *densities], densities, strict=False)}
    assert len(shares) == 1
