"""ONNX files as models: the hostile files of the command ``speed``, and what only pruning meets."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from attack_onnx_files import bombs, damage, files, models
from attack_onnx_files.case import Case as File
from onnx import parser

from attack_models.case import EITHER, REFUSED, Case, written


def kinds() -> Iterator[Case]:
    """Every kind once."""
    for each in (models, files, bombs):
        # What is as large as the memory takes no hostility to be read slowly.
        yield from (_case(file) for file in each.kinds() if "NULs" not in file.name)
    yield from _out_of_nothing()
    yield from _names()


def damaged(seed: int) -> Case:
    """A file that is damaged at random."""
    return _case((damage.damaged if seed % 2 else damage.flipped)(seed))


def _case(file: File) -> Case:
    return Case(f"onnx, {file.name}", file.write, EITHER)


def _out_of_nothing() -> Iterator[Case]:
    """Constants and shapes of a few bytes that would fill the memory or never end."""
    squares = " ".join(f"a{i + 1} = Mul(a{i}, a{i})" for i in range(3000))
    doubled = " ".join(f"a{i + 1} = Concat<axis=0>(a{i}, a{i})" for i in range(60))
    bodies = {
        "squares": f"a0 = Constant<value_ints=[7]>() {squares} y = Reshape(x, a3000)",
        "doubled": f"a0 = Constant<value_ints=[7]>() {doubled} y = Reshape(x, a60)",
        "filled": "s = Constant<value_ints=[70000, 70000]>() c = ConstantOfShape(s) y = Add(x, c)",
        "tiled": "s = Constant<value_ints=[70000, 70000]>() y = Tile(x, s)",
        "padded": "s = Constant<value_ints=[0, 0, 0, 90000000000]>() y = Pad(x, s)",
        "expanded": "s = Constant<value_ints=[70000, 70000, 1, 8]>() e = Expand(x, s) y = Exp(e)",
        "ranged": "a = Constant<value_int=0>() b = Constant<value_int=9000000000000>()"
        " c = Constant<value_int=1>() r = Range(a, b, c) y = Gather(x, r)",
        "one hot": "d = Constant<value_int=90000000000>() v = Constant<value_floats=[0.0, 1.0]>()"
        " i = Cast<to=7>(x) y = OneHot(i, d, v)",
    }
    for name, body in bodies.items():
        graph = f"g (float[N, 8] x) => (float[N, 8] y) {{{body}}}"
        text = f'<ir_version: 8, opset_import: ["" : 17]> {graph}'
        content = parser.parse_model(text).SerializeToString()
        yield Case(f"onnx, {name}", written("net.onnx", content), REFUSED)


def _names() -> Iterator[Case]:
    """Names that are attributes of modules, or nothing that a terminal should print."""
    for name in (
        "forward",
        "weight",
        "..",
        "a..b",
        ".",
        "training",
        "\x1b[31m",
        "__class__",
        "a.b.c",
    ):
        yield Case(
            f"onnx, a weight {name!a}", lambda folder, name=name: _named(name, folder), EITHER
        )


def _named(name: str, folder: Path) -> Path:
    graph = parser.parse_graph(
        "g (float[N, 8] x) => (float[N, 8] y) { h = MatMul(x, w) y = Relu(h) }"
    )
    weight = onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [8, 8], [0.5] * 64)
    graph.initializer.append(weight)
    graph.node[0].input[1] = name
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), folder / "net.onnx"
    )
    return folder / "net.onnx"
