"""Costs in the order of removal, against explicit inverses of what is kept at every step."""

import pytest
import torch

from mfac_compress.mfac.layerwise.exact_obs import layer_costs, unit_costs
from mfac_compress.mfac.layerwise.masked_solve import masked_least_squares
from mfac_compress.mfac.layerwise.moment_matrix import MIN_RIDGE
from mfac_compress.mfac.numerics import PrecisionError
from mfac_compress.mfac.selection import select
from mfac_compress.mfac.units import Units


def _layer(g=1, r=4, k=12, n=40, seed=0):
    """Weights ``[g, r, k]`` and H ``[g, k, k]`` of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    W, mix, X = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in [(g, r, k), (g, k, k), (g, k, n)]
    )
    X = mix @ X
    return W, X @ X.mT


def _singles(g, r, k):
    return torch.arange(g * r * k).view(g, r, k)


def _outputs(g, r, k, s):
    """Units of s successive outputs, counted through all groups."""
    unit = torch.arange(g * r * k // s).view(-1, 1, k).expand(-1, s, -1)
    return unit.reshape(g, r, k)


def _inputs(g, r, k, t):
    """Units of t inputs that are k / t apart, as those of one position of a convolution are."""
    return torch.arange(g * r * k // t).view(g, r, 1, k // t).expand(-1, -1, t, -1).reshape(g, r, k)


def _brute_force(W, H, unit, keep=None, competition=None, quota=None, ridge=MIN_RIDGE):
    """Remove one unit after the other by the definition: solve anew for every candidate."""
    r, k = W.shape[1:]
    ridge = max(ridge, MIN_RIDGE)
    rho = ridge * H.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    A = (H + rho[:, None, None] * torch.eye(k, dtype=torch.float64)).repeat_interleave(r, dim=0)
    keep = torch.ones_like(W, dtype=torch.bool) if keep is None else keep
    W, unit, keep = W.flatten(0, 1), unit.flatten(0, 1), keep.flatten(0, 1)
    count = int(unit.max()) + 1
    costs = torch.full((count,), torch.inf, dtype=torch.float64)
    gone = torch.ones(count, dtype=torch.bool)
    gone[unit[keep]] = False
    costs[gone] = 0
    left = (
        None if quota is None else quota - torch.bincount(competition[gone], minlength=len(quota))
    )

    def error(i, kept):
        """Least squared error of the row i with these weights only, against its weights W."""
        own, w = A[i][kept][:, kept], W[i] * keep[i]
        other = w.clone()
        other[kept] = torch.linalg.solve(own, (A[i] @ w)[kept])
        return (w - other * kept) @ A[i] @ (w - other * kept)

    for first in {int(row.min()): row for row in unit}:
        rows = [i for i, row in enumerate(unit) if int(row.min()) == first]
        kept = {i: keep[i].clone() for i in rows}
        so_far = sum(error(i, kept[i]) for i in rows)
        highest = 0.0
        while True:
            candidates = {
                int(q)
                for i in rows
                for q in unit[i][kept[i]].unique()
                if left is None or left[competition[q]] > 0
            }
            if not candidates:
                break
            errors = {q: sum(error(i, kept[i] & (unit[i] != q)) for i in rows) for q in candidates}
            best = min(errors, key=errors.get)
            highest = max(highest, float(errors[best] - so_far))
            so_far, costs[best] = errors[best], highest
            for i in rows:
                kept[i] &= unit[i] != best
            if left is not None:
                left[competition[best]] -= 1
    return costs


UNITS = [
    (1, 4, 12, _singles(1, 4, 12)),
    (3, 2, 9, _singles(3, 2, 9)),
    (1, 4, 12, _outputs(1, 4, 12, 2)),
    (2, 4, 6, _outputs(2, 4, 6, 4)),
    (8, 1, 9, _outputs(8, 1, 9, 4)),  # a depthwise convolution: each row of a block has its own H
    (1, 3, 12, _inputs(1, 3, 12, 2)),
    (2, 2, 12, _inputs(2, 2, 12, 4)),
    (1, 4, 12, _inputs(1, 2, 12, 3).repeat_interleave(2, dim=1)),  # rectangles of 2 by 3
]


@pytest.mark.parametrize("kept_share", [1.0, 0.8, 0.3])
@pytest.mark.parametrize(("g", "r", "k", "unit"), UNITS)
def test_costs_are_those_of_the_definition(g, r, k, unit, kept_share):
    W, H = _layer(g, r, k)
    alive = torch.rand(int(unit.max()) + 1, generator=torch.Generator().manual_seed(3)) < kept_share
    keep = alive[unit]

    costs = layer_costs(W * keep, H, unit, keep=keep, ridge=0.0)

    torch.testing.assert_close(costs, _brute_force(W, H, unit, keep), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kept_share", [1.0, 0.8])
def test_a_group_that_has_lost_its_share_is_closed(kept_share):
    """2 of 4 weights that are 3 columns apart."""
    W, H = _layer(2, 3, 12)
    unit, group = _singles(2, 3, 12), torch.arange(18).view(2, 3, 1, 3).expand(-1, -1, 4, -1)
    competition, quota = group.reshape(-1), torch.full((18,), 2)
    keep = torch.rand(2, 3, 12, generator=torch.Generator().manual_seed(3)) < kept_share

    costs = layer_costs(W, H, unit, keep=keep, competition=competition, quota=quota, ridge=0.0)

    expected = _brute_force(W, H, unit, keep, competition, quota)
    torch.testing.assert_close(costs, expected, rtol=1e-6, atol=1e-6)
    lost = torch.bincount(competition[costs.isfinite()], minlength=18)
    assert torch.equal(
        lost, torch.bincount(competition[~keep.flatten()], minlength=18).clamp_min(2)
    )


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize(("g", "r", "k", "unit"), UNITS)
def test_the_costs_of_what_is_selected_add_up_to_the_layers_error(g, r, k, unit, share):
    """Global selection over rows, then the best weights under its mask."""
    W, H = _layer(g, r, k)
    of_weight = unit.flatten()
    units = Units(of_weight, torch.zeros(int(unit.max()) + 1).int(), torch.tensor([share]))
    costs = layer_costs(W, H, unit, ridge=0.0)

    mask = select(costs, units, units.removed(), torch.ones(g * r * k, dtype=torch.bool))

    change = masked_least_squares(W, H, mask.view(g, r, k)) - W
    error = (change @ H * change).sum()
    chosen = torch.ones_like(costs, dtype=torch.bool)
    chosen[of_weight[mask]] = False
    # Raised to the highest so far, costs are an upper bound.
    assert error <= costs[chosen].sum() * (1 + 1e-6)
    assert error >= costs[chosen].sum() / 1.5


def test_costs_grow_in_the_order_of_removal_even_where_the_error_does_not():
    """With fewer samples than inputs, errors of removals may be zero but for rounding."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(1, 6, 5, generator=generator, dtype=torch.float64)
    W = torch.randn(1, 50, 6, generator=generator, dtype=torch.float64)

    costs = layer_costs(W, X @ X.mT, _singles(1, 50, 6)).view(50, 6)

    assert (costs.sort(dim=1).values.diff(dim=1) > 0).all()


def test_the_order_of_rows_and_inputs_does_not_matter():
    W, H = _layer(1, 6, 12)
    unit, rows, inputs = _singles(1, 6, 12), torch.randperm(6), torch.randperm(12)
    shuffled = unit[:, rows][:, :, inputs]

    costs = layer_costs(W[:, rows][:, :, inputs], H[:, inputs][:, :, inputs], shuffled)

    torch.testing.assert_close(costs, layer_costs(W, H, unit))


@pytest.mark.parametrize("elements", [1, 3 * 70 * 70])
def test_rows_are_independent_of_how_many_are_at_work_at_once(elements, monkeypatch):
    """Several blocks of removals, with columns dropped in between."""
    W, H = _layer(1, 8, 70, 200)
    keep = torch.rand(1, 8, 70) < torch.linspace(0.3, 1, 8).view(1, 8, 1)
    expected = layer_costs(W, H, _singles(1, 8, 70), keep=keep)
    monkeypatch.setattr("mfac_compress.mfac.layerwise.exact_obs._AT_ONCE", elements)

    costs = layer_costs(W, H, _singles(1, 8, 70), keep=keep)

    torch.testing.assert_close(costs, expected)
    slow = _brute_force(W[:, 7:], H, _singles(1, 1, 70), keep[:, 7:], ridge=1e-6)
    torch.testing.assert_close(costs[-70:], slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unit", [_outputs(1, 2, 72, 2), _inputs(1, 1, 144, 2)])
def test_many_columns_in_units_of_several_weights(unit):
    """Several blocks of removals, with columns dropped in between."""
    W, H = _layer(*unit.shape, 200)

    costs = layer_costs(W, H, unit, ridge=0.0)

    torch.testing.assert_close(costs, _brute_force(W, H, unit), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kept_share", [1.0, 0.6])
@pytest.mark.parametrize("unit", [_singles(1, 4, 12), _outputs(1, 4, 12, 4), _inputs(1, 4, 12, 4)])
def test_weights_of_inputs_that_are_always_zero_go_first(unit, kept_share):
    W, H = _layer()
    dead = [2, 5, 8, 11]  # a unit of four inputs
    H[:, dead] = 0
    H[:, :, dead] = 0
    alive = torch.rand(int(unit.max()) + 1, generator=torch.Generator().manual_seed(3)) < kept_share
    alive[unit[0, :, dead].flatten()] = True

    costs = layer_costs(W, H, unit, keep=alive[unit], ridge=1e-6)

    without = torch.zeros(len(costs), dtype=torch.bool)
    without[unit[0, :, dead]] = True
    assert costs[without].max() < costs[~without & alive].min()
    expected = _brute_force(W, H, unit, alive[unit], ridge=1e-6)
    torch.testing.assert_close(costs, expected, rtol=1e-5, atol=1e-5)


def test_fewer_samples_than_inputs():
    """Until the weights fit the samples no more, removals cost next to nothing."""
    W, H = _layer(n=6)
    unit = _singles(1, 4, 12)

    costs = layer_costs(W, H, unit).view(4, 12).sort(dim=1).values

    assert (costs[:, :6] < 1e-3 * costs[:, 6:7]).all()
    expected = _brute_force(W, H, unit, ridge=1e-6).view(4, 12).sort(dim=1).values
    torch.testing.assert_close(costs, expected, rtol=1e-4, atol=1e-4)


def test_all_layers_get_the_costs_that_each_gets_alone():
    layers = {"a": _layer(2, 3, 8, seed=1), "b": _layer(1, 4, 6, seed=2)}
    numbers = {"a": _singles(2, 3, 8), "b": 48 + _outputs(1, 4, 6, 2)}
    of_weight = torch.cat([numbers["a"].flatten(), numbers["b"].mT.flatten().sort().values])
    units = Units(of_weight, torch.zeros(60).int(), torch.tensor([0.5]))
    weights, moments = ({name: layer[i] for name, layer in layers.items()} for i in range(2))

    costs = unit_costs(weights, moments, numbers, units, units.removed())

    torch.testing.assert_close(costs[:48], layer_costs(*layers["a"], numbers["a"]))
    torch.testing.assert_close(costs[48:], layer_costs(*layers["b"], numbers["b"] - 48))


def test_competitions_within_a_row_are_closed_and_others_are_not():
    """2 of 4 successive weights; a competition of a layer's rows; one of rows of two layers."""
    layers = {name: _layer(1, 1 + (name in "ab"), 8, seed=i) for i, name in enumerate("abcd")}
    sizes = {name: W.numel() for name, (W, _) in layers.items()}
    numbers = {
        name: (16 * "ab".find(name) if name in "ab" else 32 + 8 * (name == "d")) + unit
        for name, unit in ((n, _singles(1, sizes[n] // 8, 8)) for n in layers)
    }
    competition = torch.cat([torch.arange(16) // 4, torch.full((16,), 4), torch.full((16,), 5)])
    units = Units(torch.arange(48), competition, torch.tensor([0.5] * 4 + [0.25] * 2).double())
    weights, moments = ({name: layer[i] for name, layer in layers.items()} for i in range(2))

    costs = unit_costs(weights, moments, numbers, units, units.removed())

    assert torch.bincount(competition[costs.isfinite()]).tolist() == [2, 2, 2, 2, 16, 16]


@pytest.mark.parametrize(
    "unit",
    [
        [[0, 0, 1, 1], [0, 1, 0, 1]],  # other columns in the second row
        [[0, 0, 0, 1], [2, 2, 2, 3]],  # of two sizes
        [[0, 1, 2, 3], [0, 4, 5, 6]],  # one unit of two rows, the others of one
    ],
)
def test_units_that_are_no_rectangles_are_refused(unit):
    W, H = _layer(1, 2, 4)
    with pytest.raises(ValueError, match="rectangles of one size"):
        layer_costs(W, H, torch.tensor([unit]))


def test_a_matrix_that_is_not_one_of_moments_is_refused():
    W, H = _layer()
    H[0, 3, 3] *= -1e-3
    with pytest.raises(PrecisionError, match="ridge must cover"):
        layer_costs(W, H, _singles(1, 4, 12))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"H": torch.ones(1, 3, 3)}, r"H \[g, k, k\]"),
        ({"weights": torch.ones(4, 12)}, r"\[g, r, k\]"),
        ({"keep": torch.ones(4, 12, dtype=torch.bool)}, r"\[g, r, k\]"),
        ({"ridge": -1.0}, "ridge must be finite"),
        ({"weights": torch.full((1, 4, 12), torch.nan)}, "must be finite"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    W, H = _layer()
    with pytest.raises(ValueError, match=message):
        layer_costs(**{"weights": W, "H": H, "unit": _singles(1, 4, 12), **changes})
