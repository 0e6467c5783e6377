"""Models are tried on inputs that are longer along every axis that can be."""

import numpy as np
import pytest

from mfac_compress.export.sparse.foreign import to_ir
from mfac_compress.export.sparse.longer import lengthen, shapes_at_lengths


def _shapes(make_model, nodes, inputs, value, given=2, **constants):
    """Shapes of the inputs and of a value, for all that is tried."""
    model = to_ir(make_model(nodes, inputs, ["y"], **constants))
    feeds = {
        name: np.ones([n if isinstance(n, int) and n > 0 else given for n in shape], np.float32)
        for name, shape in inputs.items()
    }
    found = shapes_at_lengths(model, [value], feeds)
    return [([each.shape for each in fed.values()], shapes[value]) for fed, shapes in found]


def test_each_name_becomes_longer_by_another_length(make_model):
    nodes = [("MatMul", ["x", "z"], ["a"]), ("Relu", ["a"], ["y"])]
    found = _shapes(make_model, nodes, {"x": ["n", "s", 4], "z": ["n", 4, "t"]}, "a")
    assert found == [([(2, 2, 4), (2, 4, 2)], (2, 2, 2)), ([(3, 4, 4), (3, 4, 5)], (3, 4, 5))]


def test_two_names_may_stand_for_one_length(make_model):
    nodes = [("Add", ["x", "z"], ["a"]), ("Relu", ["a"], ["y"])]
    found = _shapes(make_model, nodes, {"x": ["n", "s"], "z": ["m", "t"]}, "a")
    assert [shape for _, shape in found] == [(2, 2), (3, 3)]


def test_a_length_that_cannot_change_is_left(make_model):
    nodes = [("Add", ["x", "c"], ["a"]), ("Relu", ["a"], ["y"])]
    inputs = {"x": ["n", "s", "t"]}
    found = _shapes(make_model, nodes, inputs, "a", c=np.ones((2, 1), np.float32))
    assert [shape for _, shape in found] == [(2, 2, 2), (3, 2, 2), (2, 2, 3)]


def test_a_model_without_open_axes_is_tried_once(make_model):
    found = _shapes(make_model, [("Relu", ["x"], ["a"]), ("Abs", ["a"], ["y"])], {"x": [3, 4]}, "a")
    assert found == [([(3, 4)], (3, 4))]


def test_axes_without_names_are_open(make_model):
    nodes = [("Relu", ["x"], ["a"]), ("Abs", ["a"], ["y"])]
    found = _shapes(make_model, nodes, {"x": [-1, -1, 4]}, "a")
    assert [shape for _, shape in found] == [(2, 2, 4), (3, 4, 4)]


def test_inputs_on_which_the_model_does_not_run_are_an_error(make_model):
    nodes = [("Add", ["x", "c"], ["a"]), ("Relu", ["a"], ["y"])]
    with pytest.raises(ValueError, match="must run on inputs of shapes"):
        _shapes(make_model, nodes, {"x": ["n", "s"]}, "a", given=3, c=np.ones((2, 2), np.float32))


def test_a_length_may_have_to_be_a_multiple(make_model):
    nodes = [("Reshape", ["x", "windows"], ["a"]), ("Relu", ["a"], ["y"])]
    found = _shapes(make_model, nodes, {"x": ["s", 4]}, "a", given=8, windows=np.array([-1, 8, 4]))
    assert [shape for _, shape in found] == [(1, 8, 4), (2, 8, 4)]


def test_what_is_empty_gets_zeros(make_model):
    model = to_ir(make_model([("Relu", ["x"], ["y"])], {"x": ["n", "s"]}, ["y"]))
    found = lengthen(model, {"x": np.ones((2, 0), np.float32)}, {"n": 1, "s": 2})["x"]
    np.testing.assert_array_equal(found, np.zeros((3, 2), np.float32))


def test_values_are_repeated(make_model):
    model = to_ir(make_model([("Relu", ["x"], ["y"])], {"x": ["n", "s"]}, ["y"]))
    x = np.array([[1, 2], [3, 4]], np.float32)
    found = lengthen(model, {"x": x}, {"n": 1, "s": 3})["x"]
    np.testing.assert_array_equal(found, [[1, 2, 1, 2, 1], [3, 4, 3, 4, 3], [1, 2, 1, 2, 1]])
