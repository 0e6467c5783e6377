"""Small valid models of many kinds, from which others are made by damage."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSETS = [helper.make_opsetid("", 18)]


def weight(*shape: int, kept: float = 0.2, seed: int = 0) -> np.ndarray:
    """Mostly zeros. float32."""
    rng = np.random.default_rng(seed)
    return (0.3 * rng.standard_normal(shape) * (rng.random(shape) < kept)).astype(np.float32)


def model(
    nodes: Sequence[onnx.NodeProto],
    x: Sequence[int | str | None] | None,
    tensors: Mapping[str, np.ndarray],
    *,
    kind: int = TensorProto.FLOAT,
    version: int = 9,
    opset: int = 18,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model of one input ``x`` and one output ``y``."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, x)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=version)
    made.functions.extend(functions)
    return made


def images() -> onnx.ModelProto:
    """Convolutions with batch norm, residual and activations."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w0"], ["a"], pads=[1] * 4),
        node("BatchNormalization", ["a", "g", "b", "m", "v"], ["n"]),
        node("Relu", ["n"], ["r"]),
        node("Conv", ["r", "w1", "b"], ["c"], pads=[1] * 4, group=2),
        node("Add", ["c", "r"], ["s"]),
        node("Clip", ["s", "low", "high"], ["k"]),
        node("Conv", ["k", "w2"], ["d"], strides=[2, 2]),
        node("GlobalAveragePool", ["d"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "w3", "b3"], ["y"], transB=1),
    ]
    tensors = {name: np.linspace(0.5, 1.5, 8, dtype=np.float32) for name in "gbmv"}
    tensors |= {"w0": weight(8, 3, 3, 3), "w1": weight(8, 4, 3, 3), "w2": weight(8, 8, 1, 1)}
    tensors |= {"low": np.float32(0), "high": np.float32(6)}
    tensors |= {"w3": weight(4, 8), "b3": np.ones(4, np.float32)}
    return model(nodes, ["n", 3, 9, 8], tensors)


def sound() -> onnx.ModelProto:
    """Convolutions along one axis."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w0"], ["a"], pads=[2, 2], strides=[2]),
        node("Relu", ["a"], ["r"]),
        node("Conv", ["r", "w1"], ["y"], pads=[4, 4], dilations=[4], group=2),
    ]
    return model(nodes, ["n", 4, 65], {"w0": weight(8, 4, 5), "w1": weight(8, 4, 3)})


def words() -> onnx.ModelProto:
    """Products with GELU and layer norm, and one of activations."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w0"], ["a"]),
        node("Add", ["a", "b"], ["s"]),
        node("Div", ["s", "root"], ["d"]),
        node("Erf", ["d"], ["e"]),
        node("Add", ["e", "one"], ["o"]),
        node("Mul", ["s", "o"], ["m"]),
        node("Mul", ["m", "half"], ["gelu"]),
        node("MatMul", ["gelu", "w1"], ["c"]),
        node("Add", ["c", "x"], ["r"]),
        node("LayerNormalization", ["r", "g"], ["l"]),
        node("Transpose", ["l"], ["t"], perm=[0, 2, 1]),
        node("MatMul", ["l", "t"], ["y"]),
    ]
    tensors = {"w0": weight(8, 12), "w1": weight(12, 8), "b": np.ones(12, np.float32)}
    tensors |= {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    return model(nodes, ["n", 6, 8], tensors | {"g": np.ones(8, np.float32)})


def quantised() -> onnx.ModelProto:
    """A product between Q and DQ, and a weight that is only stored so."""
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("DequantizeLinear", ["w0", "s"], ["v"]),
        node("MatMul", ["d", "v"], ["a"]),
        node("QuantizeLinear", ["a", "s", "z"], ["p"]),
        node("DequantizeLinear", ["p", "s", "z"], ["o"]),
        node("DequantizeLinear", ["w1", "s"], ["u"]),
        node("MatMul", ["o", "u"], ["y"]),
    ]
    whole = {n: (weight(8, 8, seed=n) * 100).astype(np.int8) for n in range(2)}
    tensors = {"s": np.float32(0.04), "z": np.uint8(128), "w0": whole[0], "w1": whole[1]}
    return model(nodes, ["n", 8], tensors)


def stored() -> onnx.ModelProto:
    """Weights behind nodes that follow from constants."""
    node = helper.make_node
    nodes = [
        node("Cast", ["h"], ["v"], to=1),
        node("MatMul", ["x", "v"], ["a"]),
        node("Reshape", ["flat", "shape"], ["u"]),
        node("Mul", ["u", "scale"], ["t"]),
        node("MatMul", ["a", "t"], ["b"]),
        node("Unsqueeze", ["k", "axis"], ["i"]),
        node("Concat", ["i", "i"], ["j"], axis=0),
        node("Slice", ["j", "axis", "end"], ["l"]),
        node("Squeeze", ["l", "axis"], ["o"]),
        node("Transpose", ["o"], ["p"]),
        node("MatMul", ["b", "p"], ["y"]),
    ]
    tensors = {"h": weight(8, 8).astype(np.float16), "flat": weight(64), "k": weight(8, 8)}
    tensors |= {"shape": np.array([8, 8]), "axis": np.array([0]), "end": np.array([1])}
    return model(nodes, ["n", 8], tensors | {"scale": np.float32(0.5)})


def listed() -> onnx.ModelProto:
    """A file of version 3, whose initializers are inputs, too."""
    made = model(
        [helper.make_node("Conv", ["x", "w"], ["y"])], [1, 3, 6, 6], {"w": weight(4, 3, 3, 3)},
        version=3, opset=8,
    )  # fmt: skip
    made.graph.input.append(helper.make_tensor_value_info("w", 1, [4, 3, 3, 3]))
    return made


def branches() -> onnx.ModelProto:
    """Layers inside If, and a Loop."""
    node = helper.make_node
    info = helper.make_tensor_value_info
    one = helper.make_graph([node("MatMul", ["a", "w"], ["t"])], "t", [], [info("t", 1, None)])
    two = helper.make_graph([node("Neg", ["a"], ["e"])], "e", [], [info("e", 1, None)])
    body = helper.make_graph(
        [node("Identity", ["go"], ["more"]), node("MatMul", ["v", "w"], ["s"])],
        "body",
        [info("i", 7, []), info("go", 9, []), info("v", 1, None)],
        [info("more", 9, []), info("s", 1, None)],
    )
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("If", ["yes"], ["b"], then_branch=one, else_branch=two),
        node("Loop", ["trips", "yes", "b"], ["y"], body=body),
    ]
    tensors = {"w": weight(8, 8), "yes": np.array(True), "trips": np.array(3)}
    return model(nodes, ["n", 8], tensors)


def functions() -> onnx.ModelProto:
    """A layer inside a function."""
    inner = helper.make_function(
        "own", "Layer", ["x", "w"], ["y"],
        [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])],
        OPSETS,
    )  # fmt: skip
    nodes = [
        helper.make_node("Layer", ["x", "w"], ["a"], domain="own"),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    return model(nodes, ["n", 8], {"w": weight(8, 8)}, functions=[inner], domains=["own"])


ALL: dict[str, Callable[[], onnx.ModelProto]] = {
    make.__name__: make
    for make in (images, sound, words, quantised, stored, listed, branches, functions)
}
