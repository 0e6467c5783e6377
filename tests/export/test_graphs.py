"""All tensors of a model are found, wherever they are."""

import numpy as np
from onnx import helper, numpy_helper

from mfac_compress.export.graphs import nested, tensors


def _tensor(name):
    return numpy_helper.from_array(np.ones(2, np.float32), name)


def _sparse(name):
    indices = numpy_helper.from_array(np.array([0, 3], np.int64), f"{name}.indices")
    return helper.make_sparse_tensor(_tensor(name), indices, [5])


def test_tensors_of_every_kind_and_depth_are_found():
    nodes = [
        helper.make_node("Constant", [], ["a"], value=_tensor("of an attribute")),
        helper.make_node("Constant", [], ["b"], sparse_value=_sparse("sparse")),
        helper.make_node("Constant", [], ["c"], value_floats=[1.0]),
    ]
    inner = helper.make_graph(nodes, "inner", [], [], [_tensor("inside")])
    outer = helper.make_graph(
        [helper.make_node("If", ["x"], ["y"], then_branch=inner)], "outer", [], [],
        [_tensor("outside")], sparse_initializer=[_sparse("weights")],
    )  # fmt: skip
    assert [graph.name for graph in nested(outer)] == ["outer", "inner"]
    assert [tensor.name for tensor in tensors(outer)] == [
        "outside", "weights", "weights.indices",
        "inside", "of an attribute", "sparse", "sparse.indices",
    ]  # fmt: skip
