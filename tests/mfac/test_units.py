"""What a pattern makes of the shapes of tensors."""

import pytest
import torch

from mfac_compress.mfac.selection import select
from mfac_compress.mfac.units import NM, Block, Units, Unstructured

SHAPES = {"a": (2, 3), "b": (4,), "c": (1, 5)}


def test_each_weight_is_a_unit_in_the_order_of_the_tensors():
    layout, units = Unstructured().resolve(SHAPES, 0.5)

    assert [(t.name, t.start, t.stop) for t in layout] == [("a", 0, 6), ("b", 6, 10), ("c", 10, 15)]
    assert units.of_weight.tolist() == list(range(15))
    assert units.competition.tolist() == [0] * 15
    assert units.sparsity.tolist() == [0.5]


def test_tensors_with_a_sparsity_of_their_own_compete_alone():
    _, units = Unstructured().resolve(SHAPES, 0.5, {"b": 0.25})

    assert units.competition.tolist() == [0] * 6 + [1] * 4 + [0] * 5
    assert units.sparsity.tolist() == [0.5, 0.25]
    assert units.sizes.tolist() == [11, 4]


def test_no_shared_competition_is_left_where_all_compete_alone():
    _, units = Unstructured().resolve(SHAPES, 0.5, dict.fromkeys(SHAPES, 0.9))

    assert units.sizes.tolist() == [6, 4, 5]
    assert units.sparsity.tolist() == [0.9] * 3


def test_a_part_has_the_units_of_its_columns():
    _, units = Unstructured().resolve(SHAPES, 0.5, {"b": 0.25})

    part = units.part(slice(4, 12))

    assert part.of_weight.tolist() == list(range(8))
    assert part.competition.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def test_a_part_is_whole_where_its_last_column_is_of_an_earlier_unit():
    of_weight, competition = torch.tensor([0, 1, 1, 0, 2, 3, 2]), torch.zeros(4, dtype=torch.int32)
    units = Units(of_weight, competition, torch.tensor([0.5]))

    assert units.part(slice(None)).of_weight.tolist() == units.of_weight.tolist()
    assert units.part(slice(4, 7)).of_weight.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="must hold whole units"):
        units.part(slice(1, 7))


def test_a_digest_changes_with_all_that_may_change_a_mask():
    unit, competition, share = torch.arange(4), torch.tensor([0, 0, 1, 1]), torch.tensor([0.5, 0.5])
    units = Units(unit, competition, share)

    assert units.digest == Units(unit.int(), competition.clone(), share.double()).digest
    for other in (
        Units(unit.flip(0), competition, share),
        Units(unit, competition.flip(0), share),
        Units(unit, competition, 1 - share / 2),
    ):
        assert other.digest != units.digest


def test_units_are_not_divided_among_processes():
    units = Units(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0]), torch.tensor([0.5]))

    assert units.part(slice(2, 4)).of_weight.tolist() == [0, 0]
    with pytest.raises(ValueError, match="must hold whole units"):
        units.part(slice(1, 4))


@pytest.mark.parametrize(
    ("sparsity", "own", "message"),
    [
        (1.0, {}, r"in \[0, 1\)"),
        (0.5, {"b": -0.1}, r"in \[0, 1\)"),
        (0.5, {"typo": 0.1}, "Got typo"),
    ],
)
def test_bad_sparsities_are_refused(sparsity, own, message):
    with pytest.raises(ValueError, match=message):
        Unstructured().resolve(SHAPES, sparsity, own)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_weights_of_a_block_are_neighbours_along_its_axis(axis):
    shapes = {"a": (8, 4, 2, 3), "b": (4, 8)}
    layout, units = Block(4, axis).resolve(shapes, 0.5, {"b": 0.9})
    index = {
        name: torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"), -1)
        for name, shape in shapes.items()
    }

    assert units.sizes.tolist() == [48, 8]
    for name, (start, stop) in zip(shapes, layout.bounds, strict=True):
        places = torch.stack(
            [
                layout.flatten({n: i[..., k] if n == name else i[..., 0] for n, i in index.items()})
                for k in range(index[name].shape[-1])
            ],
            dim=-1,
        )[start:stop]
        for number in units.of_weight[start:stop].unique():
            members = places[units.of_weight[start:stop] == number]
            assert members[:, axis].tolist() == list(range(members[0, axis], members[0, axis] + 4))
            assert members[0, axis] % 4 == 0
            others = [k for k in range(members.shape[1]) if k != axis]
            assert len(members[:, others].unique(dim=0)) == 1


def test_blocks_must_divide_each_tensor():
    with pytest.raises(ValueError, match=r"b \[4\].*Leave that tensor out"):
        Block(2, 0).resolve({"a": (4, 2), "b": (4,)}, 0.5)
    with pytest.raises(ValueError, match=r"Blocks of 4 along axis 1.*a \[4, 2\]"):
        Block(4, 1).resolve({"a": (4, 2)}, 0.5)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (4, 8)])
def test_of_m_neighbouring_inputs_n_are_kept_whatever_the_others_cost(n, m):
    shapes = {"conv": (3, 16, 2, 3), "linear": (5, 8)}
    layout, units = NM(n, m).resolve(shapes, 1 - n / m, {"linear": 1 - n / m})
    costs = torch.rand(layout.size, generator=torch.Generator().manual_seed(0))

    mask = select(costs, units, units.removed(), torch.ones(layout.size, dtype=torch.bool))

    for name, kept in layout.unflatten(mask).items():
        groups = kept.movedim(1, -1).unflatten(-1, (-1, m))
        assert (groups.sum(dim=-1) == n).all()
        own = layout.unflatten(costs)[name].movedim(1, -1).unflatten(-1, (-1, m))
        removed_highest = own.masked_fill(groups, 0).amax(dim=-1)
        assert (removed_highest < own.masked_fill(~groups, 1).amin(dim=-1)).all()


def test_a_step_on_the_way_to_n_of_m_removes_from_every_group():
    _, units = NM(2, 4).resolve({"w": (2, 8)}, 0.5)

    assert units.removed(0.5 * units.sparsity).tolist() == [1, 1, 1, 1]


def test_n_of_m_has_one_sparsity():
    with pytest.raises(ValueError, match=r"sparsity must be 0.5 where 2 of 4.*Got 0.8"):
        NM(2, 4).resolve({"w": (2, 8)}, 0.8)
    with pytest.raises(ValueError, match=r"sparsity must be 0.5.*Got 0.0"):
        NM(2, 4).resolve({"w": (2, 8), "v": (2, 8)}, 0.5, {"v": 0.0})
    with pytest.raises(ValueError, match="Got typo"):
        NM(2, 4).resolve({"w": (2, 8)}, 0.5, {"typo": 0.5})
    with pytest.raises(ValueError, match=r"0 < n < m\. Got 4 of 4"):
        NM(4, 4)


def test_groups_of_m_must_divide_the_inputs():
    with pytest.raises(ValueError, match=r"Groups of 4 along axis 1.*conv1 \[16, 3, 3, 3\]"):
        NM(2, 4).resolve({"conv1": (16, 3, 3, 3)}, 0.5)
