"""Small graphs, rewritten with sparse operators wherever possible."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mfac_compress.export import kernel_library
from mfac_compress.export.sparse.compose import rewrite
from mfac_compress.export.sparse.find import Layer, find_layers, fuse
from mfac_compress.export.sparse.foreign import to_ir
from mfac_compress.export.sparse.format import Block
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.layout import Placement
from mfac_compress.export.sparse.operator import SparseOperator
from mfac_compress.export.sparse.probe import shapes_of


@pytest.fixture(scope="session")
def sparse_weight() -> Callable[..., np.ndarray]:
    return _sparse_weight


@pytest.fixture(scope="session")
def make_model() -> Callable[..., onnx.ModelProto]:
    return _make_model


@pytest.fixture(scope="session")
def find() -> Callable[..., tuple[Graph, list[Layer], dict]]:
    return _find


def _sparse_weight(*shape: int, seed: int = 0, kept: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weight = 0.3 * rng.standard_normal(shape) * (rng.random(shape) < kept)
    return weight.astype(np.float32)


def _make_model(nodes, inputs, outputs, *, opset=20, **constants) -> onnx.ModelProto:
    """A model of nodes given as (kind, inputs, outputs, attributes)."""
    made = [
        helper.make_node(kind, reads, makes, **(rest[0] if rest else {}))
        for kind, reads, makes, *rest in nodes
    ]
    graph = helper.make_graph(
        made,
        "test",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    model = onnx.shape_inference.infer_shapes(model)  # of the outputs, as the checker requires
    del model.graph.value_info[:]
    for place, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{place}"
    return model


@dataclass
class Rewritten:
    layers: list[Layer]
    operators: list[SparseOperator]
    model: onnx.ModelProto

    @property
    def kinds(self) -> list[str]:
        return [node.op_type for node in self.model.graph.node]

    @property
    def attributes(self) -> list[dict]:
        return [
            {a.name: helper.get_attribute_value(a) for a in node.attribute}
            for node in self.model.graph.node
        ]


@pytest.fixture(scope="session")
def kernels():
    """The library; its tests are skipped if it was not built."""
    try:
        return kernel_library()
    except ValueError:
        pytest.skip("the sparse kernels are not built: there was no C++ compiler")


def _find(model: onnx.ModelProto, batch: int = 3) -> tuple[Graph, list[Layer], dict]:
    graph = Graph(to_ir(model))
    return graph, find_layers(graph), _shapes(graph, _random_inputs(model, batch))


def _shapes(graph: Graph, feeds: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    values = {v for node in graph.nodes for v in (*node.inputs, *node.outputs) if v is not None}
    names = {v.name for v in values if v.name and graph.constant(v) is None}
    return shapes_of(graph.model, names, feeds)


def _random_inputs(model: onnx.ModelProto, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {v.name: v.type.tensor_type.shape.dim for v in model.graph.input}
    return {
        name: rng.standard_normal([d.dim_value or batch for d in dims]).astype(np.float32)
        for name, dims in shapes.items()
    }


@pytest.fixture
def rewritten(kernels) -> Callable[..., Rewritten]:
    """Compute all that sparse operators can, and compare the outputs with ONNX Runtime's."""

    def check(model: onnx.ModelProto, block: int = 1, only: Callable = lambda _: True):
        graph, layers, shapes = _find(model)
        operators = fuse(graph, layers, shapes)
        before = ir.to_proto(graph.model).SerializeToString()
        plan = {each: Placement(Block(block)) for each in operators if only(each)}
        sparse = ir.to_proto(rewrite(graph, plan))
        assert ir.to_proto(graph.model).SerializeToString() == before
        onnx.checker.check_model(sparse, full_check=False)
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(str(kernels))
        ours = onnxruntime.InferenceSession(sparse.SerializeToString(), options)
        # Unoptimised: otherwise ONNX Runtime rounds the inputs of 8-bit weights to 8 bits.
        plain = onnxruntime.SessionOptions()
        plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        theirs = onnxruntime.InferenceSession(before, plain)
        for batch in (1, 4):
            feeds = _random_inputs(model, batch)
            for a, b in zip(ours.run(None, feeds), theirs.run(None, feeds), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
        return Rewritten(layers, operators, sparse)

    return check


@pytest.fixture
def replaced(kernels):
    """Compute all that sparse operators can, and compare the outputs with unoptimised ones.

    ONNX Runtime computes it in float32 if it optimises nothing: only ties may round otherwise.
    """

    def check(model, inputs, steps=1, axis="outputs"):
        graph = Graph(to_ir(model))
        found = fuse(graph, find_layers(graph), _shapes(graph, inputs))
        operators = [each for each in found if each.is_quantised]
        plan = {operator: Placement(Block(4, axis)) for operator in operators}
        sparse = ir.to_proto(rewrite(graph, plan))
        onnx.checker.check_model(sparse)
        plain, ours = onnxruntime.SessionOptions(), onnxruntime.SessionOptions()
        plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        ours.register_custom_ops_library(str(kernels))
        expected = onnxruntime.InferenceSession(model.SerializeToString(), plain).run(None, inputs)
        found = onnxruntime.InferenceSession(sparse.SerializeToString(), ours).run(None, inputs)
        scale = next(
            graph.scalar(node.inputs[1])
            for node in graph.nodes
            if node.outputs[0].is_graph_output()
        )
        for a, b in zip(found, expected, strict=True):
            differences = np.rint(np.abs(a - b) / scale)
            assert differences.max() <= steps
            assert (differences > 0).mean() < 0.02
        return [node.op_type for node in sparse.graph.node], operators

    return check
