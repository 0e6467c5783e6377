"""Layers as matrices, and the inputs that these are multiplied with."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from mfac_compress.export.layer_inputs import LayerProduct, layer_inputs, layer_products


def _images(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 3, 4, 4)).astype(np.float32)


def test_every_layer_of_a_file_is_a_product(pruned):
    found = dict(layer_products(onnx.load(pruned.path)))
    shapes = {name: one.matrices(one.values).shape for name, one in found.items()}
    names = {name.removesuffix(".T"): shape for name, shape in shapes.items()}
    assert names == {
        "conv.weight": (1, 16, 27),
        "grouped.weight": (4, 8, 36),
        "point.weight": (1, 16, 32),
        "mix.weight": (1, 24, 16),
        "square.weight": (1, 24, 24),
        "head.weight": (1, 5, 24),
    }
    for one in found.values():
        np.testing.assert_array_equal(one.tensor(one.matrices(one.values)), one.values)


def test_inputs_are_those_that_the_model_gives_its_layers(pruned, tmp_path):
    model = onnx.load(pruned.path)
    products = dict(layer_products(model))
    seen = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, given, name=name: seen.__setitem__(name, given[0].detach().numpy())
        )
        for name, module in pruned.model.named_modules()
        if f"{name}.weight" in pruned.masks
    ]
    names = [one.input for one in products.values()]
    batches = [{"input": _images(3, seed)} for seed in range(2)]
    count = 0
    for batch, (given, inputs) in zip(
        batches, layer_inputs(model, names, batches, tmp_path), strict=True
    ):
        with torch.no_grad():
            pruned.model.eval()(torch.from_numpy(batch["input"]))
        assert given is batch
        for name, one in products.items():
            x = seen[name.removesuffix(".T").removesuffix(".weight")]
            np.testing.assert_allclose(inputs[one.input], x, atol=1e-5)
        count += 1
    for hook in hooks:
        hook.remove()
    assert count == 2
    assert not list(tmp_path.iterdir())


def _layer(operator, weight, **attributes):
    node = helper.make_node(operator, ["x", "w"], ["y"], **attributes)
    tensor = onnx.numpy_helper.from_array(np.zeros(weight, np.float32), "w")
    graph = helper.make_graph([node], "g", [], [], [tensor])
    ((_, found),) = layer_products(helper.make_model(graph))
    return found


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (_layer("ConvTranspose", (4, 2, 3, 3)), "transposed convolution"),
        (_layer("MatMul", (2, 4, 3)), "3 axes"),
        (_layer("Gemm", (4, 3), transA=1), "its input is transposed"),
        (_layer("Conv", (4, 2, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]), "padding"),
    ],
)
def test_what_is_no_product_is_named(found, said):
    assert said in found


def test_a_gemm_may_have_its_outputs_first_or_last():
    first, last = _layer("Gemm", (4, 3), transB=1), _layer("Gemm", (3, 4))
    assert isinstance(first, LayerProduct)
    assert isinstance(last, LayerProduct)
    assert first.matrices(first.values).shape == last.matrices(last.values).shape == (1, 4, 3)
