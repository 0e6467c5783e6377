"""Graphs as modules: which tensors become parameters, under which names, and what is refused."""

import copy

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper, parser
from torch import nn

from mfac_compress.export.from_onnx import convert, named_as_module
from mfac_compress.export.names import feeds, input_names
from mfac_compress.mfac.layerwise import LayerGraph

RNG = np.random.default_rng(0)


def graph(text: str, opset: int = 17, **tensors: tuple[int, ...]) -> onnx.ModelProto:
    """A model from the text of its graph, with random initializers of these shapes."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    for name, shape in tensors.items():
        array = RNG.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def converted(model: onnx.ModelProto, **options):
    names = [tensor.name for tensor in model.graph.initializer]
    names += [node.output[0] for node in model.graph.node if node.op_type == "Constant"]
    return convert(ir.from_proto(model), **{"writable": names, **options})


def array(model: onnx.ModelProto, name: str) -> np.ndarray:
    found = next(each for each in model.graph.initializer if each.name == name)
    return numpy_helper.to_array(found)


def trained(module: nn.Module) -> set[str]:
    return {name for name, each in module.named_parameters() if each.requires_grad}


def test_a_matmul_and_the_addition_after_it_are_one_linear_layer():
    model = graph("g (float[N, 4] x) => (float[N, 3] y) { h = MatMul(x, w) y = Add(b, h) }",
                  w=(4, 3), b=(3,))  # fmt: skip
    found = converted(model)
    assert found.stored == {"w.weight": ("w", True), "w.bias": ("b", False)}
    assert isinstance(found.module.get_submodule("w"), nn.Linear)
    x = torch.randn(5, 4)
    wanted = x.numpy() @ array(model, "w") + array(model, "b")
    np.testing.assert_allclose(found.module(x).detach(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("by_transpose", [False, True])
def test_a_gemm_is_a_linear_layer_however_its_weight_is_turned(turned, by_transpose):
    nodes = f"y = Gemm<transB={turned}>(x, {'t' if by_transpose else 'fc.weight'}, fc.bias)"
    nodes = f"t = Transpose<perm=[1, 0]>(fc.weight) {nodes}" if by_transpose else nodes
    shape = (3, 4) if turned != by_transpose else (4, 3)
    text = f"g (float[N, 4] x) => (float[N, 3] y) {{ {nodes} }}".replace("fc.", "fc_")
    model = graph(text, fc_weight=shape, fc_bias=(3,))
    found = converted(model)
    (weight,) = [each for name, each in found.stored.items() if name.endswith("weight")]
    assert weight == ("fc_weight", turned == by_transpose)
    matrix = array(model, "fc_weight") if shape == (4, 3) else array(model, "fc_weight").T
    x = torch.randn(5, 4)
    wanted = x.numpy() @ matrix + array(model, "fc_bias")
    np.testing.assert_allclose(found.module(x).detach(), wanted, rtol=1e-5, atol=1e-6)


def test_a_copy_computes_on_its_own_device():
    """What is made of numbers alone, and not of the inputs, is made there."""
    text = """g (float[N, 4] x) => (float[N, 4] y)
        { s = Shape(x) o = ConstantOfShape<value = float[1] {1.0}>(s) h = Add(x, o)
          y = MatMul(h, w) }"""
    module = converted(graph(text, w=(4, 4))).module
    copied, x = copy.deepcopy(module), torch.randn(5, 4)
    wanted = module(x)
    module.to("meta")
    assert torch.equal(copied(x), wanted)
    assert module(x.to("meta")).is_meta


def test_names_are_those_of_the_initializers():
    model = graph("g (float[N, 4] x) => (float[N, 4] y) { h = MatMul(x, a) y = MatMul(h, b) }",
                  a=(4, 4), b=(4, 4))  # fmt: skip
    for tensor, name in zip(
        model.graph.initializer, ["block.0.fc.weight.T", "forward"], strict=True
    ):
        for node in model.graph.node:
            node.input[:] = [name if each == tensor.name else each for each in node.input]
        tensor.name = name
    found = converted(model)
    # What PyTorch uses itself is taken.
    assert [*found.stored] == ["block.0.fc.weight", "forward_2.weight"]
    renamed = named_as_module(ir.from_proto(model), found.stored)
    assert [*renamed.graph.initializers] == ["block.0.fc.weight.T", "forward_2.weight.T"]


def test_a_weight_that_several_nodes_share_is_one_layer():
    text = (
        "g (float[N, 4] x) => (float[N, 4] y) { i = Identity(w) h = MatMul(x, w) y = MatMul(h, i) }"
    )
    found = converted(graph(text, w=(4, 4)))
    assert [*found.stored] == ["w.weight"]
    assert [name for name, _ in found.module.named_parameters()] == ["w.weight"]


@pytest.mark.parametrize(
    "nodes",
    [
        "h = MatMul(x, w) y = Gemm<transB=1>(h, w)",  # turned in one of them
        "h = MatMul(x, w) y = Add(h, w)",
        "y = MatMul(x, w) z = Identity(w)",  # returned
    ],
)
def test_a_weight_that_something_else_reads_is_frozen(nodes):
    more = ", float[4, 4] z" if "z =" in nodes else ""
    model = graph(f"g (float[4, 4] x) => (float[4, 4] y{more}) {{ {nodes} }}", w=(4, 4))
    for dim in (model.graph.input[0], model.graph.output[0]):
        dim.type.tensor_type.shape.dim[0].dim_param = "N"
    found = converted(model)
    assert not found.stored
    assert not trained(found.module)
    assert [name for name, _ in found.module.named_parameters()] == ["w"]  # it still counts
    assert "w" in found.module.reasons


def test_a_bias_that_two_layers_share_belongs_to_neither():
    text = "g (float[N, 4] x) => (float[N, 4] y) { h = Gemm(x, v, b) y = Gemm(h, w, b) }"
    model = graph(text, v=(4, 4), w=(4, 4), b=(4,))
    found = converted(model)
    assert trained(found.module) == {"v.weight", "w.weight"}
    x = torch.randn(3, 4)
    first = x.numpy() @ array(model, "v") + array(model, "b")
    wanted = first @ array(model, "w") + array(model, "b")
    np.testing.assert_allclose(found.module(x).detach(), wanted, rtol=1e-4, atol=1e-5)


def test_batch_norms_are_layers_with_statistics():
    text = "g (float[N, 4, 8] x) => (float[N, 4, 8] y) { y = BatchNormalization(x, s, b, m, v) }"
    model = graph(text, s=(4,), b=(4,), m=(4,), v=(4,))
    found = converted(model)
    assert found.stored["s.running_var"] == ("v", False)
    assert isinstance(found.module.get_submodule("s"), nn.modules.batchnorm._BatchNorm)


def test_shapes_that_are_computed_stay_open_for_the_tracer():
    text = """g (float[N, T, 8] x) => (float[N, T, 8] y) {
        s = Shape(x) zero = Constant<value_int=0>() n = Gather(s, zero)
        axes = Constant<value_ints=[0]>() n1 = Unsqueeze(n, axes)
        rest = Constant<value_ints=[-1, 2, 4]>() shape = Concat<axis=0>(n1, rest)
        h = Reshape(x, shape)
        t = Transpose<perm=[0, 2, 1, 3]>(h) b = Transpose<perm=[0, 2, 1, 3]>(t)
        back = Reshape(b, s) y = MatMul(back, w) }"""
    found = converted(graph(text, w=(8, 8)))
    traced = LayerGraph.trace(found.module, torch.randn(2, 5, 8), {"": [1]})
    assert [*traced.layers] == ["w.weight"]
    x = torch.randn(3, 7, 8)
    torch.testing.assert_close(traced.run(found.module, x)[0], found.module(x))


def test_a_table_of_positions_is_cut_to_any_length():
    text = """g (float[N, T, 8] x) => (float[N, T, 8] y) {
        s = Shape<start=1, end=2>(x) zero = Constant<value_ints=[0]>()
        one = Constant<value_ints=[1]>() used = Slice(positions, zero, s, one)
        p = Gather(table, used) h = MatMul(x, w) y = Add(h, p) }"""
    model = graph(text, w=(8, 8), table=(10, 8))
    positions = np.arange(10, dtype=np.int64).reshape(1, 10)
    model.graph.initializer.append(numpy_helper.from_array(positions, "positions"))
    module = converted(model).module
    traced = LayerGraph.trace(module, torch.randn(2, 5, 8), {"": [1]})
    x = torch.randn(3, 7, 8)
    torch.testing.assert_close(traced.run(module, x)[0], module(x))


def test_a_file_for_one_sample_is_run_with_several():
    text = """g (float[1, 6, 8] x) => (float[1, 6, 8] y) {
        a = Constant<value_ints=[6, 8]>() flat = Reshape(x, a) h = MatMul(flat, w)
        b = Constant<value_ints=[1, 6, 2, 4]>() heads = Reshape(h, b)
        t = Transpose<perm=[1, 0, 2, 3]>(heads)
        c = Constant<value_ints=[6, 2, 4]>() merged = Reshape(t, c) e = Exp(merged)
        d = Constant<value_ints=[6, 1, 8]>() back = Reshape(e, d)
        y = Transpose<perm=[1, 0, 2]>(back) }"""
    found = converted(graph(text, w=(8, 8)))
    assert found.batch == 1
    x = torch.randn(4, 6, 8)
    each = torch.cat([found.module(one) for one in x.split(1)])
    torch.testing.assert_close(found.module(x), each, rtol=1e-5, atol=1e-5)


def test_only_what_the_chosen_output_depends_on_is_converted():
    text = """g (float[N, 4] x) => (float[N, 3] y, float[N, 3] z) {
        y = MatMul(x, w) h = MatMul(x, v) z = Bernoulli(h) }"""
    model = graph(text, w=(4, 3), v=(4, 3))
    with pytest.raises(ValueError, match=r"Bernoulli.*model.output.*y"):
        converted(model)
    found = converted(model, outputs=["y"])
    assert trained(found.module) == {"w.weight"}
    assert {"w.weight", "v"} == {name for name, _ in found.module.named_parameters()}
    assert "not converted" in found.module.reasons["v"]
    assert found.dense == ("MatMul", "Bernoulli")


@pytest.mark.parametrize(
    ("text", "tensors", "reason"),
    [
        ("g (float[N, 4] x) => (float[N, 4] y) { y = Bernoulli(x) }", {}, "Bernoulli"),
        ("g (float[N, 4] x) => (float[N, 4] y) { s = SequenceConstruct(x)"
         " i = Constant<value_int=0>() y = SequenceAt(s, i) }", {}, "SequenceConstruct"),
        ("g (float[N, 4] x) => (float[N, 4] y) { c = Constant<value = bool {1}>()"
         " y = If(c) <then_branch = a () => (float[N, 4] p) { p = Relu(x) },"
         " else_branch = b () => (float[N, 4] q) { q = Neg(x) }> }", {}, "If"),
        ("g (float[N, 4] x) => (float[N, 4] y) { y = com.microsoft.Gelu(x) }", {}, "com.microsoft"),
        ("g (float[N, 4] x) => (uint8[N, 4] y) { s = Constant<value_float=1.0>()"
         " y = QuantizeLinear(x, s) }", {}, "quantised"),
        ("g (float[N, 4] x) => (float[N, 4] y) {"
         " y = BatchNormalization<training_mode=1>(x, s, s, s, s) }",
         {"s": (4,)}, "training mode"),
        ("g (float[N, 4] x, float[1, 4] m) => (float[N, 4] y) { y = Add(x, m) }", {}, "first axis"),
        ("g (string[N] x) => (string[N] y) { y = Identity(x) }", {}, "tensors of numbers"),
        ("g () => (float[4] y) { y = Identity(w) }", {"w": (4,)}, "must have an input"),
        ("g (float[1, T] x) => (float[1, T] y) { y = Relu(x) }", {}, "open batch axis"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_refused_with_a_name(text, tensors, reason):
    with pytest.raises(ValueError, match=reason):
        converted(graph(text, **tensors))


def test_weights_in_16_bits_are_refused():
    model = graph("g (float16[N, 4] x) => (float16[N, 4] y) { y = MatMul(x, w) }")
    half = numpy_helper.from_array(np.ones((4, 4), np.float16), "w")
    model.graph.initializer.append(half)
    with pytest.raises(ValueError, match="float32"):
        converted(model)


@pytest.mark.parametrize(
    "nodes",
    [
        "s = Constant<value_ints=[100000, 100000, 100]>() c = ConstantOfShape(s) y = Add(x, c)",
        "r = Constant<value_ints=[1000000, 100000]>() y = Tile(x, r)",
    ],
)
def test_tensors_out_of_nothing_have_a_limit(nodes):
    module = converted(graph(f"g (float[N, 4] x) => (float[N, 4] y) {{ {nodes} }}")).module
    with pytest.raises(ValueError, match="would have the shape"):
        module(torch.ones(2, 4))


def test_constants_do_not_grow_without_end():
    squares = " ".join(f"a{i + 1} = Mul(a{i}, a{i})" for i in range(400))
    text = f"g (float[N, 4] x) => (int64[1] a400) {{ a0 = Constant<value_ints=[3]>() {squares} }}"
    found = converted(graph(text)).module(torch.ones(2, 4))
    assert found.dtype is torch.int64


def test_inputs_are_given_by_position_or_by_name_and_of_the_files_type():
    text = """g (float[N, 4] a_1, int32[N, 4] a_2) => (float[N, 4] y) {
        f = Cast<to=1>(a_2) y = Add(a_1, f) }"""
    model = graph(text)
    for value, name in zip(model.graph.input, ("a.1", "a.2"), strict=True):
        value.name = name
    model.graph.node[0].input[0], model.graph.node[1].input[0] = "a.2", "a.1"
    module = converted(model).module
    x, i = torch.randn(3, 4), torch.ones(3, 4).int()
    torch.testing.assert_close(module(x, i), module(**{"a.2": i, "a.1": x}))
    assert input_names(module, (x, i), "input") == ["a.1", "a.2"]
    assert [*feeds((x, i), ["a.1", "a.2"])] == ["a.1", "a.2"]
    with pytest.raises(ValueError, match=r"a\.2 is int32, and got int64"):
        module(x, i.long())
    with pytest.raises(ValueError, match=r"takes the inputs a\.1, a\.2"):
        module(x)


def test_a_norm_whose_scale_two_norms_share_is_frozen():
    text = """g (float[N, 4] x) => (float[N, 4] y) {
        h = LayerNormalization(x, s, b) y = LayerNormalization(h, s, c) }"""
    found = converted(graph(text, s=(4,), b=(4,), c=(4,)))
    assert not found.stored
    x = torch.randn(3, 4)
    assert found.module(x).shape == (3, 4)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("pads", [[1, 1, 1, 1], [0, 1, 1, 0]])
def test_convolutions_are_layers_of_any_group_and_padding(group, pads):
    text = f"""g (float[N, 4, 6, 6] x) => (float[N, 4, H, W] y) {{
        y = Conv<group={group}, pads={pads}, strides=[2, 1], dilations=[1, 2]>(x, w, b) }}"""
    model = graph(text, w=(4, 4 // group, 3, 3), b=(4,))
    found = converted(model)
    assert {*found.stored} == {"w.weight", "w.bias"}
    x = torch.randn(2, 4, 6, 6)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (wanted,) = session.run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found.module(x).detach(), wanted, rtol=1e-4, atol=1e-5)
