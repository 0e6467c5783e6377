"""Valid files that are changed at random: bytes, and what they say."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from attack_onnx_files import nets
from attack_onnx_files.case import Case

_NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**15, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63))
_OPERATORS = [
    "Conv",
    "Gemm",
    "MatMul",
    "Add",
    "Relu",
    "Clip",
    "Mul",
    "Transpose",
    "Reshape",
    "Cast",
    "Identity",
    "Concat",
    "Slice",
    "Pad",
    "DequantizeLinear",
    "QuantizeLinear",
    "BatchNormalization",
    "Gelu",
    "Shape",
    "ConvTranspose",
    "Squeeze",
    "Unsqueeze",
    "Gather",
    "Split",
    "Constant",
    "ConvInteger",
    "QLinearConv",
    "MatMulInteger",
    "Tile",
    "Expand",
    "ConstantOfShape",
    "RandomNormal",
    "Loop",
    "If",
    "Einsum",
    "TopK",
]
Change = Callable[[random.Random, onnx.ModelProto], object]


def damaged(seed: int) -> Case:
    """A model of one of the kinds with one or more changes."""
    draw = random.Random(seed)
    name = draw.choice(sorted(nets.ALL))
    changes = [draw.choice(CHANGES) for _ in range(draw.choice((1, 1, 1, 2, 3)))]
    said = ", ".join(change.__name__.strip("_") for change in changes)
    return Case(f"{name}: {said} ({seed})", partial(_changed, nets.ALL[name], changes, seed))


def flipped(seed: int) -> Case:
    """A model of which some bytes are others, or missing."""
    draw = random.Random(seed)
    name = draw.choice(sorted(nets.ALL))
    return Case(f"{name}: bytes ({seed})", partial(_flipped, nets.ALL[name], seed))


def _changed(
    make: Callable[[], onnx.ModelProto], changes: list[Change], seed: int, folder: Path
) -> Path:
    draw, model = random.Random(seed), make()
    for change in changes:
        try:
            change(draw, model)
        except (ValueError, IndexError):  # nothing left to change
            continue
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def _flipped(make: Callable[[], onnx.ModelProto], seed: int, folder: Path) -> Path:
    draw, content = random.Random(seed), bytearray(make().SerializeToString())
    kind = draw.randrange(5)
    place = draw.randrange(len(content))
    if kind == 0:
        del content[place:]
    elif kind == 1:
        del content[place : place + draw.randrange(1, 64)]
    elif kind == 2:
        content[place:place] = content[place : place + draw.randrange(1, 64)]
    else:
        for _ in range(draw.choice((1, 1, 2, 8, 64))):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    (folder / "model.onnx").write_bytes(content)
    return folder / "model.onnx"


def _number(draw: random.Random, model: onnx.ModelProto) -> None:
    attribute = draw.choice([a for node in model.graph.node for a in node.attribute])
    number = draw.choice(_NUMBERS)
    if attribute.ints:
        attribute.ints[draw.randrange(len(attribute.ints))] = number
    elif attribute.type == attribute.FLOAT:
        attribute.f = float(number)
    else:
        attribute.i = number


def _length(draw: random.Random, model: onnx.ModelProto) -> None:
    attribute = draw.choice([a for node in model.graph.node for a in node.attribute if a.ints])
    if draw.random() < 0.5:
        del attribute.ints[-1:]
    else:
        attribute.ints.extend([1] * draw.randrange(1, 6))


def _type(draw: random.Random, model: onnx.ModelProto) -> None:
    draw.choice([a for node in model.graph.node for a in node.attribute]).type = draw.randrange(15)


def _no_attribute(draw: random.Random, model: onnx.ModelProto) -> None:
    node = draw.choice([node for node in model.graph.node if node.attribute])
    del node.attribute[draw.randrange(len(node.attribute))]


def _new_attribute(draw: random.Random, model: onnx.ModelProto) -> None:
    names = [
        "group",
        "strides",
        "pads",
        "dilations",
        "axis",
        "alpha",
        "transA",
        "transB",
        "auto_pad",
        "to",
        "perm",
        "block_size",
        "kernel_shape",
        "epsilon",
        "training_mode",
        "unknown",
    ]
    value = draw.choice([1, 2, 0.5, [1, 1], [2], "SAME_UPPER", [1, 1, 1, 1], -1])
    node = draw.choice(list(model.graph.node))
    node.attribute.append(helper.make_attribute(draw.choice(names), value))


def _operator(draw: random.Random, model: onnx.ModelProto) -> None:
    draw.choice(list(model.graph.node)).op_type = draw.choice(_OPERATORS)


def _domain(draw: random.Random, model: onnx.ModelProto) -> None:
    domain = draw.choice(("com.microsoft", "ai.onnx", "mfac_compress", "com.microsoft.nchwc", "x"))
    draw.choice(list(model.graph.node)).domain = domain
    if draw.random() < 0.7:
        model.opset_import.append(helper.make_opsetid(domain, 1))


def _wires(draw: random.Random, model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    names = [n for node in nodes for n in (*node.input, *node.output)]
    node = draw.choice(nodes)
    field = draw.choice((node.input, node.output))
    field[draw.randrange(len(field))] = draw.choice([*names, "", "nowhere", "x", "y"])


def _no_wire(draw: random.Random, model: onnx.ModelProto) -> None:
    node = draw.choice(list(model.graph.node))
    field = draw.choice((node.input, node.output))
    del field[draw.randrange(len(field))]


def _more_wires(draw: random.Random, model: onnx.ModelProto) -> None:
    node = draw.choice(list(model.graph.node))
    draw.choice((node.input, node.output)).append(draw.choice(("", "x", "more")))


def _nodes(draw: random.Random, model: onnx.ModelProto) -> None:
    nodes = model.graph.node
    place = draw.randrange(len(nodes))
    kind = draw.randrange(3)
    if kind == 0:
        del nodes[place]
    elif kind == 1:
        nodes.append(nodes[place])
    else:
        order = list(nodes)
        draw.shuffle(order)
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
        del nodes[:]
        nodes.extend(copies)


def _node_names(draw: random.Random, model: onnx.ModelProto) -> None:
    name = draw.choice(("", "same", "Conv_0", "w0", "x\0", "ä" * 200))
    for node in model.graph.node:
        node.name = name


def _dims(draw: random.Random, model: onnx.ModelProto) -> None:
    tensor = draw.choice(list(model.graph.initializer))
    kind = draw.randrange(4)
    if kind == 0 and tensor.dims:
        tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice(_NUMBERS)
    elif kind == 1:
        tensor.dims.append(1)
    elif kind == 2:
        tensor.dims[:] = list(tensor.dims)[::-1]
    else:
        del tensor.dims[-1:]


def _data_type(draw: random.Random, model: onnx.ModelProto) -> None:
    draw.choice(list(model.graph.initializer)).data_type = draw.randrange(30)


def _data(draw: random.Random, model: onnx.ModelProto) -> None:
    tensor = draw.choice(list(model.graph.initializer))
    kind = draw.randrange(4)
    if kind == 0:
        tensor.raw_data = tensor.raw_data[: draw.randrange(len(tensor.raw_data) + 1)]
    elif kind == 1:
        tensor.raw_data += bytes(draw.randrange(1, 9))
    elif kind == 2:
        tensor.raw_data = draw.randbytes(len(tensor.raw_data))
    else:
        tensor.float_data.extend([1.0, 2.0])


def _constants(draw: random.Random, model: onnx.ModelProto) -> None:
    tensors = model.graph.initializer
    place = draw.randrange(len(tensors))
    kind = draw.randrange(4)
    if kind == 0:
        del tensors[place]
    elif kind == 1:
        tensors.append(tensors[place])
    elif kind == 2:
        tensors[place].name = draw.choice(("", "x", "y", "a"))
    else:
        tensor = tensors[place]
        listed = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        model.graph.input.append(listed)


def _sparse(draw: random.Random, model: onnx.ModelProto) -> None:
    tensor = draw.choice(list(model.graph.initializer))
    sparse = onnx.SparseTensorProto(dims=tensor.dims)
    sparse.values.CopyFrom(tensor)
    sparse.values.dims[:] = [draw.choice((1, 4))]
    sparse.indices.CopyFrom(helper.make_tensor("", TensorProto.INT64, [1], [draw.choice(_NUMBERS)]))
    model.graph.sparse_initializer.append(sparse)
    model.graph.initializer.remove(tensor)


def _shape(draw: random.Random, model: onnx.ModelProto) -> None:
    value = draw.choice((model.graph.input, model.graph.output))[0]
    kind = value.type.tensor_type
    what = draw.randrange(4)
    if what == 0:
        draw.choice(list(kind.shape.dim)).dim_value = draw.choice(_NUMBERS)
    elif what == 1:
        kind.elem_type = draw.randrange(30)
    elif what == 2:
        kind.ClearField("shape")
    else:
        kind.shape.dim.add(dim_value=draw.choice((1, 3)))


def _note(draw: random.Random, model: onnx.ModelProto) -> None:
    """A shape of a value within that is another."""
    name = draw.choice([n for node in model.graph.node for n in node.output])
    shape = [draw.choice((1, 2, 8, "n", -1)) for _ in range(draw.randrange(5))]
    kind = draw.choice((1, 1, 10, 7))
    model.graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))


def _outputs(draw: random.Random, model: onnx.ModelProto) -> None:
    name = draw.choice([n for node in model.graph.node for n in (*node.output, *node.input)])
    model.graph.output.append(helper.make_tensor_value_info(name, draw.choice((1, 10, 7)), None))
    if draw.random() < 0.3:
        del model.graph.output[0]


def _versions(draw: random.Random, model: onnx.ModelProto) -> None:
    if draw.random() < 0.5:
        model.ir_version = draw.choice((0, 1, 2, 3, 4, 7, 8, 10, 11, 13, 99, 2**62))
    else:
        draw.choice(list(model.opset_import)).version = draw.choice((*range(26), 99, -1, 2**62))


CHANGES: tuple[Change, ...] = (
    _number, _length, _type, _no_attribute, _new_attribute, _operator, _domain, _wires, _no_wire,
    _more_wires, _nodes, _node_names, _dims, _data_type, _data, _constants, _sparse, _shape, _note,
    _outputs, _versions,
)  # fmt: skip
