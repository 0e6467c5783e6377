"""Selection of units: exact counts, the cheapest first, and none comes back."""

import math

import pytest
import torch

from mfac_compress.mfac.schedule import sparsity_schedule
from mfac_compress.mfac.selection import select
from mfac_compress.mfac.units import Units, Unstructured


def _everything(d):
    return torch.ones(d, dtype=torch.bool)


def _single(competition, sparsity):
    competition = torch.tensor(competition)
    return Units(torch.arange(len(competition)), competition, torch.tensor(sparsity).double())


def _by_budgets(saliency, bounds, shared, own, mask):
    """The rule of budgets, one after the other: the reference for units of one weight each."""
    budgets = [([bounds[name]], share) for name, share in own.items()]
    budgets.append(([bounds[name] for name in bounds if name not in own], shared))
    ranked, selected = saliency.masked_fill(~mask, -1), mask.clone()
    for ranges, share in budgets:
        if ranges:
            columns = torch.cat([torch.arange(start, stop) for start, stop in ranges])
            gone = min(math.ceil(share * len(columns) - 1e-6), len(columns) - 1)
            order = torch.argsort(ranked[columns], stable=True)
            selected[columns[order[:gone]]] = False
    return selected


@pytest.mark.parametrize("seed", range(60))
def test_unstructured_selection_is_that_of_budgets_to_the_bit(seed):
    """Ties, tensors with sparsities of their own, several steps, weights that are gone already."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    shapes = {f"t{i}": (draw(1, 7), draw(1, 9)) for i in range(draw(1, 6))}
    own = {name: draw(0, 100) / 100 for name in shapes if draw(0, 2)}
    shared = draw(0, 100) / 100
    layout, units = Unstructured().resolve(shapes, shared, own)
    bounds = dict(zip(shapes, layout.bounds, strict=True))
    mask = torch.rand(layout.size, generator=generator) < 0.9
    for share in (0.3, 0.7, 1.0):
        # Few distinct values, zeros among them: most comparisons are ties.
        saliency = torch.randint(0, draw(2, 9), (layout.size,), generator=generator).float()
        fewer = {name: share * value for name, value in own.items()}
        expected = _by_budgets(saliency, bounds, share * shared, fewer, mask)

        mask = select(saliency, units, units.removed(share * units.sparsity), mask)

        assert torch.equal(mask, expected)


def test_the_cheapest_units_are_removed():
    costs = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0])
    units = _single([0] * 5, [0.4])

    mask = select(costs, units, units.removed(), _everything(5))

    assert mask.tolist() == [True, False, False, True, True]


def test_units_compete_only_with_those_of_their_competition():
    costs = torch.tensor([1.0, 2.0, 30.0, 10.0, 20.0, 3.0])
    units = _single([0, 0, 1, 1, 1, 0], [1 / 3, 2 / 3])

    mask = select(costs, units, units.removed(), _everything(6))

    assert mask.tolist() == [False, True, True, False, False, True]


def test_two_of_four_are_a_competition_of_four():
    costs = torch.tensor([4.0, 1.0, 3.0, 2.0, 8.0, 8.0, 8.0, 8.0])
    units = _single([0] * 4 + [1] * 4, [0.5, 0.5])

    mask = select(costs, units, units.removed(), _everything(8))

    assert mask.tolist() == [True, False, True, False, False, False, True, True]


def test_the_weights_of_a_unit_go_together():
    units = Units(
        torch.tensor([0, 0, 1, 2, 2, 1]), torch.zeros(3, dtype=torch.int32), torch.tensor([0.3])
    )

    mask = select(torch.tensor([2.0, 1.0, 3.0]), units, units.removed(), _everything(6))

    assert mask.tolist() == [True, True, False, True, True, False]


def test_removed_units_stay_removed_and_count():
    gone = torch.tensor([True, True, True, False])
    units = _single([0] * 4, [0.5])

    mask = select(torch.tensor([1.0, 2.0, 3.0, 9.0]), units, units.removed(), gone)

    assert mask.tolist() == [False, True, True, False]


def test_ties_do_not_change_the_count():
    units = _single([0] * 1000, [0.7])
    mask = select(torch.zeros(1000), units, units.removed(), _everything(1000))

    assert int((~mask).sum()) == 700


def test_at_least_the_share_is_removed_and_never_all():
    for size, share, removed in [(10, 0.71, 8), (10, 0.7, 7), (3, 0.99, 2), (3, 0.0, 0)]:
        assert _single([0] * size, [share]).removed().tolist() == [removed]


def test_schedules_end_at_the_target_and_grow():
    for schedule in ("geometric", "linear", "cubic"):
        sparsities = sparsity_schedule(0.9, 7, schedule)
        assert sparsities[-1] == 0.9
        assert sparsities == sorted(sparsities)
        assert len(sparsities) == 7


@pytest.mark.parametrize("interpolation", ["geometric", "linear", "cubic"])
def test_a_schedule_with_a_first_sparsity_goes_on_from_it(interpolation):
    found = sparsity_schedule(0.9, 5, interpolation, first=0.3)
    assert (len(found), found[0], found[-1]) == (5, pytest.approx(0.3), 0.9)
    assert found == sorted(set(found))
    assert sparsity_schedule(0.9, 5, interpolation, first=0.0)[1:] == pytest.approx(
        sparsity_schedule(0.9, 4, interpolation)
    )
    assert sparsity_schedule(0.9, 1, interpolation, first=0.3) == [0.9]


def test_a_cubic_schedule_is_that_of_the_paper():
    initial, final, steps = 0.05, 0.9, 7
    paper = [final + (initial - final) * (1 - t / (steps - 1)) ** 3 for t in range(steps)]
    assert sparsity_schedule(final, steps, "cubic", first=initial) == pytest.approx(paper)


def test_a_geometric_schedule_keeps_the_same_share_in_each_step():
    densities = [1 - s for s in sparsity_schedule(0.9, 4)]
    shares = {round(b / a, 9) for a, b in zip([1.0, *densities], densities, strict=False)}
    assert len(shares) == 1


def test_units_that_must_stay_are_not_removed_for_want_of_others():
    units = _single([0, 0, 0, 0], [0.5])
    costs = torch.tensor([1.0, torch.inf, torch.inf, 2.0])

    assert select(costs, units, units.removed(), _everything(4)).tolist() == [
        False,
        True,
        True,
        False,
    ]
    with pytest.raises(ValueError, match="Got 1 that cost infinity"):
        select(costs, units, torch.tensor([3]), _everything(4))
