"""Programs call tensor operators, arithmetic on sizes and branches, and nothing else of torch."""

import pytest

from mfac_compress.pipeline.inputs.operators import grows_without_bound, is_allowed


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.conv2d.default",
        "torch.ops.aten.conv2d.padding",
        "torch.ops.aten.batch_norm.default",
        "torch.ops.aten.scaled_dot_product_attention.default",
        "torch.ops.aten._softmax.default",
        "torch.ops.aten.sym_size.int",
        "torch.ops.aten.add_.Tensor",
        "torch.ops.aten.lstm.input",
        "torch.ops.aten.split.Tensor",
        "torch.ops.aten.select.int",
        "torch.ops.higher_order.cond",
        "_operator.mul",
        "torch.sym_max",
    ],
)
def test_what_models_are_made_of_is_allowed(target):
    assert is_allowed(target)


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.load",
        "torch.hub.load",
        "torch.ops.load_library",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.aten._print.default",
        "torch.ops.aten.set_.source_Tensor",
        "torch.ops.aten.resize_.default",
        "torch.ops.aten.relu",
        "torch.ops.aten.relu.default.__call__",
        "torch.ops.aten.relu.no_such",
        "torch.ops.prim.Print.default",
        "torch.ops.higher_order.while_loop",
        "torch.ops.aten\n.relu.default",
        "_operator.methodcaller",
        "math.factorial",
        "#inductor:x",
        "builtins.eval",
        "",
    ],
)
def test_what_could_run_or_read_something_else_is_not(target):
    assert not is_allowed(target)


def _node(target, *inputs, output="y"):
    arguments = [{"name": "", "arg": argument, "kind": 1} for argument in inputs]
    outputs = [{"as_sym_int": {"as_name": output}}]
    return {"target": target, "inputs": arguments, "outputs": outputs}


def _size(name):
    return {"as_sym_int": {"as_name": name}}


def test_squares_of_squares_of_a_size_are_found():
    squares = [
        _node("_operator.mul", _size(f"x{i}"), _size(f"x{i}"), output=f"x{i + 1}") for i in range(7)
    ]
    assert grows_without_bound(squares[:6]) is None
    assert grows_without_bound(squares) == "_operator.mul"


@pytest.mark.parametrize("exponent", [{"as_int": 2**40}, {"as_int": -1}, _size("y")])
def test_powers_need_a_small_number(exponent):
    assert grows_without_bound([_node("_operator.pow", _size("x"), {"as_int": 2})]) is None
    assert grows_without_bound([_node("_operator.pow", _size("x"), exponent)]) == "_operator.pow"
