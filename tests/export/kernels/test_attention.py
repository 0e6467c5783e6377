"""Attention against float64, and against the nodes that it replaces."""

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from mfac_compress.export.sparse.attention import Attention, attention_node

OPERATORS = 16
LENGTHS = (1, 15, 16, 17, 64, 65)
SIZES = (1, 3, 16, 31, 64)
BAD = (np.nan, np.inf, -np.inf)
ROUNDING = 1e-5
"""Of float32, relative to the largest value."""


@dataclass
class Case:
    """An operator and its inputs: query, key and value, or all in one; perhaps a mask."""

    found: Attention
    arrays: dict[str, np.ndarray]

    @property
    def node(self):
        mask = [self.found.mask] if self.found.mask else []
        names = [self.found.query, self.found.key, self.found.value, *mask]
        return attention_node(self.found, [ir.Value(name=name) for name in names])

    def heads(self, place):
        """One of the inputs in float64, ``[batch, heads, length, size]``."""
        found, name = self.found, (self.found.query, self.found.key, self.found.value)[place]
        rows = self.arrays[name].astype(np.float64)
        rows = rows.swapaxes(0, 1) if found.length_first else rows
        rows = rows[..., found.offsets[place] :][..., : found.heads * found.size]
        return rows.reshape(*rows.shape[:2], found.heads, found.size).swapaxes(1, 2)

    def expected(self):
        found, (query, key, value) = self.found, map(self.heads, range(3))
        with np.errstate(invalid="ignore"):
            scores = query @ key.swapaxes(2, 3) * found.scale
            if found.mask:
                scores = scores + self.arrays[found.mask]
            weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-np.inf))
            weights = weights / weights.sum(-1, keepdims=True)
            if found.nan_to_zero:
                weights = np.where(np.isnan(weights), 0, weights)
            y = (weights @ value).swapaxes(1, 2)
        y = y.reshape(*y.shape[:2], found.heads * found.size)
        return y.swapaxes(0, 1) if found.length_first else y

    @property
    def allowed(self):
        value = self.arrays[self.found.value]
        return ROUNDING * (1 + np.abs(value[np.isfinite(value)]).max(initial=0))


def draw(random, name, *, spoilt=0.0, **changes):
    """A random case; a share ``spoilt`` of the numbers of its inputs is not finite."""
    heads, size = int(random.integers(1, 6)), int(random.choice(SIZES))
    batch = int(random.integers(1, 4))
    queries, keys = (
        int(random.choice(LENGTHS) if random.random() < 0.5 else random.integers(1, 131))
        for _ in range(2)
    )
    packed = random.random() < 0.5
    keys = queries if packed else keys
    width = heads * size
    ahead, behind = (int(n) for n in random.integers(0, 5, 2))
    offsets = tuple(ahead + place * width for place in range(3)) if packed else (ahead, 0, behind)
    features = [ahead + 3 * width + behind] * 3 if packed else [width + ahead + behind] * 3
    names = [f"{name}.x"] * 3 if packed else [f"{name}.{each}" for each in "qkv"]
    length_first = random.random() < 0.3
    arrays = {}
    for one, length, count in zip(names, (queries, keys, keys), features, strict=True):
        shape = (length, batch) if length_first else (batch, length)
        arrays[one] = _spoil(random, random.standard_normal((*shape, count)), spoilt)
    mask = _mask(random, (batch, heads, queries, keys)) if random.random() < 0.6 else None
    if mask is not None:
        arrays[f"{name}.m"] = mask
    found = Attention(
        name, *names, f"{name}.y", f"{name}.m" if mask is not None else None, heads, size, offsets,
        float(random.uniform(0.3, 1.5) / np.sqrt(size)), bool(random.random() < 0.5), length_first,
    )  # fmt: skip
    return Case(replace(found, **changes), arrays)


def _mask(random, full):
    """Numbers, some of them -inf, sometimes for all keys; broadcast over some of the axes."""
    shape = [n if random.random() < 0.5 else 1 for n in full[:3]] + [full[3]]
    while len(shape) > 1 and shape[0] == 1 and random.random() < 0.5:
        del shape[0]
    mask = random.standard_normal(shape)
    mask[random.random(shape) < random.choice([0, 0.3])] = -np.inf
    mask[random.random(shape[:-1]) < random.choice([0, 0.2])] = -np.inf
    return mask.astype(np.float32)


def _spoil(random, array, share):
    bad = random.random(array.shape) < share
    array[bad] = random.choice(BAD, bad.sum())
    return array.astype(np.float32)


def run(sessions, cases, threads=1):
    names = [case.found.y for case in cases]
    session = sessions.open([case.node for case in cases], names, threads=threads)
    return session.run(None, {n: array for case in cases for n, array in case.arrays.items()})


def assert_near(case, found, expected):
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected), err_msg=str(case.found))
    there = ~np.isnan(expected)
    np.testing.assert_allclose(
        found[there], expected[there], rtol=0, atol=case.allowed, err_msg=str(case.found)
    )


@pytest.mark.parametrize("spoilt", [0, 1e-4])
@pytest.mark.parametrize("seed", range(10))
def test_results_are_those_of_float64(sessions_by_set, seed, spoilt):
    """With NaN and infinities among queries, keys and values as well."""
    random = np.random.default_rng(seed)
    cases = [draw(random, f"o{place}", spoilt=spoilt) for place in range(OPERATORS)]
    for sessions in sessions_by_set.values():
        for case, y in zip(cases, run(sessions, cases, 1 + seed % 3), strict=True):
            assert_near(case, y, case.expected())


def _plain(case):
    """The nodes that the operator replaces."""
    found, nodes, constants = case.found, [], {"scale": np.float32(case.found.scale)}
    width = found.heads * found.size
    constants |= {"split": [0, 0, found.heads, found.size], "joint": [0, 0, width], "axis": [2]}
    for place, name in enumerate((found.query, found.key, found.value)):
        end = f"end{place}"
        constants |= {f"at{place}": [found.offsets[place]], end: [found.offsets[place] + width]}
        perm = [1, 2, 0, 3] if found.length_first else [0, 2, 1, 3]
        perm = [perm[0], perm[1], perm[3], perm[2]] if place == 1 else perm
        nodes += [
            helper.make_node("Slice", [name, f"at{place}", end, "axis"], [f"s{place}"]),
            helper.make_node("Reshape", [f"s{place}", "split"], [f"r{place}"]),
            helper.make_node("Transpose", [f"r{place}"], [f"t{place}"], perm=perm),
        ]
    nodes += [
        helper.make_node("MatMul", ["t0", "t1"], ["product"]),
        helper.make_node("Mul", ["product", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", found.mask], ["scores"])
        if found.mask
        else helper.make_node("Identity", ["scaled"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "t2"], ["z"]),
        helper.make_node(
            "Transpose", ["z"], ["zt"], perm=[2, 0, 1, 3] if found.length_first else [0, 2, 1, 3]
        ),
        helper.make_node("Reshape", ["zt", "joint"], ["y"]),
    ]
    return helper.make_graph(
        nodes,
        "plain",
        [helper.make_tensor_value_info(name, 1, None) for name in case.arrays],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(np.asarray(each), name) for name, each in constants.items()],
    )


@pytest.mark.parametrize("spoilt", [0, 1e-3])
@pytest.mark.parametrize("seed", range(10))
def test_results_are_those_of_plain_nodes(sessions, seed, spoilt):
    case = draw(np.random.default_rng(seed), "o", spoilt=spoilt, nan_to_zero=False)
    (expected,) = sessions.load(_plain(case)).run(None, case.arrays)
    assert_near(case, run(sessions, [case])[0], expected)


@pytest.mark.parametrize("seed", range(4))
def test_results_do_not_depend_on_the_number_of_threads(sessions, seed):
    random = np.random.default_rng(seed)
    cases = [draw(random, f"o{place}", spoilt=1e-4) for place in range(OPERATORS)]
    for one, three in zip(run(sessions, cases, 1), run(sessions, cases, 3), strict=True):
        np.testing.assert_array_equal(one, three)


def case_of(batch=2, queries=5, keys=7, heads=2, size=3, mask=None, **changes):
    """An operator whose inputs are random, without offsets."""
    random, width = np.random.default_rng(0), heads * size
    arrays = {
        name: random.standard_normal((batch, length, width)).astype(np.float32)
        for name, length in (("q", queries), ("k", keys), ("v", keys))
    }
    if mask is not None:
        arrays["m"] = np.asarray(mask, np.float32)
    found = Attention(
        "a", "q", "k", "v", "y", "m" if mask is not None else None, heads, size, (0, 0, 0), 0.5,
        False,
    )  # fmt: skip
    return Case(replace(found, **changes), arrays)


@pytest.mark.parametrize("nan_to_zero", [False, True])
def test_queries_without_keys_are_nan_or_zero(sessions, nan_to_zero):
    mask = np.zeros((2, 1, 5, 7))
    mask[1, 0, 3] = -np.inf
    case = case_of(mask=mask, nan_to_zero=nan_to_zero)
    (y,) = run(sessions, [case])
    np.testing.assert_array_equal(y[1, 3], np.full(6, 0 if nan_to_zero else np.nan))
    assert_near(case, y, case.expected())


@pytest.mark.parametrize("length_first", [False, True])
@pytest.mark.parametrize("empty", ["batch", "queries", "keys"])
@pytest.mark.parametrize("has_mask", [False, True])
def test_empty_inputs_give_empty_outputs_and_no_keys_zeros(sessions, empty, has_mask, length_first):
    sizes = {"batch": 2, "queries": 5, "keys": 7} | {empty: 0}
    case = case_of(**sizes, mask=np.zeros((1, 1, 1, sizes["keys"])) if has_mask else None)
    case.found = replace(case.found, length_first=length_first)
    if length_first:
        for name in "qkv":
            case.arrays[name] = case.arrays[name].swapaxes(0, 1)
    np.testing.assert_array_equal(run(sessions, [case])[0], case.expected())


@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("largest", [1e3, 1e9, 1e18, 1e30, 3e38])
def test_large_scores_do_not_overflow(sessions, largest, has_mask):
    """The largest one decides, of equal ones each counts, and NaN is not made."""
    case = case_of(size=4, keys=20, mask=np.zeros((1, 1, 1, 20)) if has_mask else None, scale=0.3)
    query, key = case.arrays["q"], case.arrays["k"]
    query[:], key[:] = 1, 0
    key[..., 0] = (
        np.float32(largest)
        * np.linspace(-1, 1, 14, dtype=np.float32)[[*range(14), 13, 0, 1, 13, 2, 13]]
    )
    key[..., 0, 0], query[..., 0] = key[..., 1, 0], np.float32(0.7)
    (y,) = run(sessions, [case])
    assert_near(case, y, case.expected())


@pytest.mark.parametrize("least", [-1e4, -3.4028235e38])
def test_masks_with_large_negative_numbers_mask(sessions, least):
    """Exporters write them in place of -inf, and add them in float32."""
    mask = np.zeros((2, 1, 1, 7))
    mask[0, ..., 4:] = least
    case = case_of(mask=mask)
    (y,) = run(sessions, [case])
    assert_near(case, y, case.expected())


def with_attributes(node, **attributes):
    """Return the node with some of its attributes replaced; None: without it."""
    given = {name: attribute.value for name, attribute in node.attributes.items()} | attributes
    given = {name: value for name, value in given.items() if value is not None}
    outputs = [ir.Value(name="y")]
    return ir.node(node.op_type, node.inputs, given, domain=node.domain, outputs=outputs)


@pytest.mark.parametrize("value", [0, -1, 2**31, 2**62, -(2**63)])
@pytest.mark.parametrize("name", ["num_heads", "head_size"])
def test_sizes_that_do_not_fit_are_refused_at_load(any_sessions, name, value):
    with pytest.raises(Exception, match=r"must lie in \[1, 2\^31\)"):
        any_sessions.open([with_attributes(case_of().node, **{name: value})])


@pytest.mark.parametrize("value", [-1, 2**31, 2**62, -(2**63)])
@pytest.mark.parametrize("name", ["query_offset", "key_offset", "value_offset"])
def test_offsets_that_do_not_fit_are_refused_at_load(any_sessions, name, value):
    with pytest.raises(Exception, match=r"offsets must lie in \[0, 2\^31\)"):
        any_sessions.open([with_attributes(case_of().node, **{name: value})])


@pytest.mark.parametrize("scale", [0.0, -0.5, np.nan, np.inf, -np.inf])
def test_a_scale_that_is_not_positive_is_refused_at_load(any_sessions, scale):
    with pytest.raises(Exception, match="scale must be finite and positive"):
        any_sessions.open([with_attributes(case_of().node, scale=float(scale))])


@pytest.mark.parametrize("name", ["nan_to_zero", "length_first"])
@pytest.mark.parametrize("value", [-1, 2, 2**62])
def test_a_flag_is_0_or_1(any_sessions, name, value):
    with pytest.raises(Exception, match="must be 0 or 1"):
        any_sessions.open([with_attributes(case_of().node, **{name: value})])


@pytest.mark.parametrize("name", sorted(case_of().node.attributes))
def test_every_attribute_must_be_given_with_its_type(any_sessions, name):
    node = case_of().node
    given = node.attributes[name].value
    wrong = int(given) if isinstance(given, float) else float(given)
    for value in (None, wrong, "1", [1]):
        with pytest.raises(Exception, match=f"{name} must be given"):
            any_sessions.open([with_attributes(node, **{name: value})])


def _refuses(sessions, case, message):
    session = sessions.open([case.node])
    with pytest.raises(Exception, match=message):
        session.run(None, case.arrays)


@pytest.mark.parametrize("shape", [(), (6,), (5, 6), (2, 5, 5), (2, 5, 0), (1, 2, 5, 6)])
@pytest.mark.parametrize(("name", "of"), [("q", "query"), ("k", "key"), ("v", "value")])
def test_inputs_of_another_shape_are_refused(any_sessions, name, of, shape):
    case = case_of()
    case.arrays[name] = np.zeros(shape, np.float32)
    _refuses(any_sessions, case, rf"{of} must be \[batch, length, at least 6\]")
    case.found = replace(case.found, length_first=True)
    _refuses(any_sessions, case, rf"{of} must be \[length, batch, at least 6\]|one batch size")


@pytest.mark.parametrize("place", range(3))
def test_heads_beyond_the_end_of_the_rows_are_refused(any_sessions, place):
    offsets = [0, 0, 0]
    for offset in (1, 2**31 - 1):
        offsets[place] = offset
        case = case_of(offsets=tuple(offsets))
        _refuses(any_sessions, case, f"at least {offset + 6}")
    case = case_of()
    case.found = replace(case.found, heads=2**31 - 1, size=2**31 - 1)
    _refuses(any_sessions, case, f"at least {(2**31 - 1) ** 2}")


@pytest.mark.parametrize("name", "kv")
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_another_batch_size_is_refused(any_sessions, name, batch):
    case = case_of()
    case.arrays[name] = np.zeros((batch, 7, 6), np.float32)
    _refuses(any_sessions, case, "must have one batch size. Got 2")


@pytest.mark.parametrize("values", [0, 1, 6, 8])
def test_another_number_of_values_is_refused(any_sessions, values):
    case = case_of()
    case.arrays["v"] = np.zeros((2, values, 6), np.float32)
    _refuses(any_sessions, case, f"a value for each of the 7 keys. Got {values}")


@pytest.mark.parametrize(
    "shape",
    [
        (), (1,), (6,), (8,), (5, 1), (4, 7), (2, 7), (3, 1, 7), (2, 1, 1, 1), (3, 1, 1, 7),
        (2, 5, 1, 7), (2, 2, 7, 5), (0, 2, 5, 7), (2, 2, 5, 0), (1, 1, 1, 1, 7),
    ],
)  # fmt: skip
def test_a_mask_of_another_shape_is_refused(any_sessions, shape):
    case = case_of(mask=np.zeros(shape))
    _refuses(any_sessions, case, "mask must be")


@pytest.mark.parametrize("place", range(4))
def test_inputs_of_another_type_are_refused(any_sessions, place):
    case = case_of(mask=np.zeros(7))
    name = "qkvm"[place]
    with pytest.raises(Exception, match=r"(?i)type"):
        any_sessions.open([case.node], kinds={name: 11})
