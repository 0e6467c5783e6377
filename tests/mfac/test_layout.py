"""Each weight has one column, whatever the order."""

import pytest
import torch

from mfac_compress.mfac.layout import Layout, TensorSlice

LAYOUTS = [
    Layout.row_major({"a": (2, 3), "b": (4,), "c": (5, 2, 3, 3), "d": ()}),
    Layout(
        (
            TensorSlice("a", (8, 3, 2, 5), (0, 2, 3, 1), 0, group=4),
            TensorSlice("b", (9, 6), (0, 1), 240, group=3),
            TensorSlice("c", (3, 4), (1, 0), 294),
            TensorSlice("d", (2, 8), (1, 0), 306, group=2),
        )
    ),
]


def _tensors(layout):
    return {t.name: torch.randn(t.shape) for t in layout}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_flatten_and_unflatten_are_inverses(layout):
    tensors = _tensors(layout)

    flat = layout.flatten(tensors)

    assert flat.shape == (layout.size,)
    back = layout.unflatten(flat)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert torch.equal(layout.flatten(back), flat)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_several_tensors_are_those_of_each(layout):
    several = [_tensors(layout) for _ in range(3)]

    rows = layout.flatten({t.name: torch.stack([s[t.name] for s in several]) for t in layout})

    assert torch.equal(rows, torch.stack([layout.flatten(tensors) for tensors in several]))


def test_groups_of_outputs_stand_side_by_side():
    weight = torch.randn(8, 3, 2, 5)

    flat = TensorSlice("w", (8, 3, 2, 5), (0, 2, 3, 1), 0, group=4).flatten(weight)

    expected = weight.view(2, 4, 3, 2, 5).permute(0, 3, 4, 2, 1)  # O/4, kh, kw, I, 4
    assert torch.equal(flat, expected.flatten())


def test_row_major_tensors_are_views_of_the_flat_vector():
    layout, flat = LAYOUTS[0], torch.zeros(LAYOUTS[0].size)
    layout.unflatten(flat)["b"].fill_(1)
    assert flat.sum() == 4


def test_a_column_has_the_name_of_its_tensor():
    assert [LAYOUTS[0].name_at(c) for c in (0, 5, 6, 9, 10)] == ["a", "a", "b", "b", "c"]


def test_a_layout_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one tensor"):
        Layout.row_major({})
