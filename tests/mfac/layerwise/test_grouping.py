"""Orders of channels against all orders there are, by brute force."""

import pytest
import torch

from mfac_compress.mfac.layerwise import ChannelSet, best_orders


def _set(**places):
    """Tensor name and axis, as in w_0, to the indices of the channels."""
    return ChannelSet(
        {
            (key[:-2], int(key[-1])): torch.tensor(indices).view(len(indices), -1)
            for key, indices in places.items()
        }
    )


def _kept(weight, size, kept):
    """What the ``kept`` largest blocks hold of the squares."""
    sums = weight.square().unflatten(0, (-1, size)).sum(dim=1)
    return sums.flatten().topk(kept).values.sum()


def _pairings(left):
    """All ways to divide some channels into pairs, as orders."""
    if not left:
        yield []
        return
    first, *others = left
    for other in others:
        for rest in _pairings([x for x in others if x != other]):
            yield [first, other, *rest]


@pytest.mark.parametrize("seed", range(5))
def test_small_sets_are_ordered_nearly_as_well_as_can_be(seed):
    torch.manual_seed(seed)
    weight = torch.randn(10, 12, dtype=torch.float64)
    channels = _set(w_0=range(10))
    (order,) = best_orders([channels], {"w": weight}, size=2, axis=0, sparsity=0.75)
    assert sorted(order.tolist()) == [*range(10)]
    kept = [_kept(weight[order], 2, 15) for order in _pairings([*range(10)])]
    assert len(kept) == 945
    assert _kept(weight[order], 2, 15) >= 0.995 * max(kept)


@pytest.mark.parametrize("axis", [0, 1])
def test_what_is_alike_comes_together_in_all_tensors_of_a_set(axis):
    torch.manual_seed(0)
    large = torch.tensor([0, 1] * 4)
    first = torch.rand(8, 6) + 10 * large[:, None]
    # Another tensor of the same channels, of which they are the later ones.
    second = torch.rand(12, 3)
    second[4:] += 10 * large[:, None]
    weights = {"first": first, "second": second}
    places = {"first_0": range(8), "second_0": range(4, 12)}
    if axis == 1:
        weights = {name: weight.T.contiguous() for name, weight in weights.items()}
        places = {f"{key[:-1]}1": indices for key, indices in places.items()}
    (order,) = best_orders([_set(**places)], weights, size=4, axis=axis, sparsity=0.5)
    assert len({*large[order[:4]].tolist()}) == 1
    assert len({*large[order[4:]].tolist()}) == 1


def test_kernels_count_with_their_channel():
    torch.manual_seed(0)
    weight = torch.rand(4, 3, 2, 2)
    weight[[0, 2]] += 10
    (order,) = best_orders([_set(w_0=range(4))], {"w": weight}, size=2, axis=0, sparsity=0.5)
    assert sorted(order[:2].tolist()) in ([0, 2], [1, 3])


@pytest.mark.parametrize(
    ("places", "why"),
    [
        ({"other_0": range(4)}, "not pruned"),
        ({"w_1": range(4)}, "along the other axis only"),
        ({"w_0": [1, 2, 3, 4]}, "blocks shared with others"),
        ({"w_0": [0, 1, 2, 3], "v_0": [0, 2, 1, 3]}, "other blocks elsewhere"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_sets_stay(places, why):
    weights = {"w": torch.rand(6, 6), "v": torch.rand(6, 6)}
    (order,) = best_orders([_set(**places)], weights, size=2, axis=0, sparsity=0.5)
    assert order is None, why


def test_the_same_weights_give_the_same_order():
    torch.manual_seed(0)
    weight = torch.randn(32, 40)
    first, again = (
        best_orders([_set(w_0=range(32))], {"w": weight}, size=4, axis=0, sparsity=0.8)
        for _ in range(2)
    )
    assert torch.equal(first[0], again[0])
