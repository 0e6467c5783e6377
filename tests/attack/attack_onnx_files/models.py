"""Valid files, wrong ones, and those that are valid and seldom seen."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from attack_onnx_files import nets
from attack_onnx_files.case import ANY, REFUSED, TAKEN, Case, of_model


def kinds() -> Iterator[Case]:
    """Each once."""
    yield from _valid()
    yield from _wrong()
    yield from _odd()


def _valid() -> Iterator[Case]:
    for name, make in nets.ALL.items():
        yield of_model(f"valid {name}", make, TAKEN)
        for level in ("BASIC", "EXTENDED", "ALL"):
            optimise = partial(_optimised, make, f"ORT_ENABLE_{level}")
            yield Case(f"{name}, optimised: {level}", optimise, frozenset({0, 1}))


def _optimised(make: Callable[[], onnx.ModelProto], level: str, folder: Path) -> Path:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(folder / "model.onnx")
    onnxruntime.InferenceSession(make().SerializeToString(), options)
    return folder / "model.onnx"


def _wrong() -> Iterator[Case]:
    def changed(change: Callable[[onnx.ModelProto], object]) -> Callable[[], onnx.ModelProto]:
        def make() -> onnx.ModelProto:
            made = nets.images()
            change(made)
            return made

        return make

    def rename(model: onnx.ModelProto, reads: str) -> None:
        model.graph.node[0].input[0] = reads

    def circle(model: onnx.ModelProto) -> None:
        model.graph.node[0].input[0] = "y"

    def twice(model: onnx.ModelProto) -> None:
        model.graph.node.append(model.graph.node[0])

    def reverse(model: onnx.ModelProto) -> None:
        nodes = list(model.graph.node)[::-1]
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    def no_shape(model: onnx.ModelProto) -> None:
        model.graph.input[0].ClearField("type")

    def weights(model: onnx.ModelProto, dims: list[int]) -> None:
        model.graph.initializer[4].dims[:] = dims

    changes = {
        "an input from nowhere": (partial(rename, reads="nowhere"), REFUSED),
        "an input without a name": (partial(rename, reads=""), REFUSED),
        "a circle": (circle, REFUSED),
        "a value made twice": (twice, REFUSED),
        "nodes in the wrong order": (reverse, ANY),
        "an input without a type": (no_shape, REFUSED),
        "no nodes": (lambda model: model.graph.ClearField("node"), REFUSED),
        "no graph": (lambda model: model.ClearField("graph"), REFUSED),
        "no opset": (lambda model: model.ClearField("opset_import"), REFUSED),
        "an opset of the future": (
            lambda model: setattr(model.opset_import[0], "version", 10_000), REFUSED),
        "a version of the future": (lambda model: setattr(model, "ir_version", 10_000), REFUSED),
        "an operator that there is not": (
            lambda model: setattr(model.graph.node[0], "op_type", "Conf"), REFUSED),
        "an operator of a domain that there is not": (
            lambda model: setattr(model.graph.node[0], "domain", "nowhere"), REFUSED),
        "weights of other dims": (partial(weights, dims=[8, 3, 3, 4]), REFUSED),
        "weights of negative dims": (partial(weights, dims=[-8, -3, 3, 3]), REFUSED),
        "weights of dims beyond 64 bits": (partial(weights, dims=[2**62] * 4), REFUSED),
        "no outputs": (lambda model: model.graph.ClearField("output"), ANY),
        "no inputs": (lambda model: model.graph.ClearField("input"), REFUSED),
    }  # fmt: skip
    for name, (change, codes) in changes.items():
        yield of_model(f"wrong: {name}", changed(change), codes)

    def renamed(name: bytes, folder: Path) -> Path:
        content = nets.sound().SerializeToString()
        assert b"\x02w0" in content
        (folder / "model.onnx").write_bytes(content.replace(b"\x02w0", b"\x02" + name))
        return folder / "model.onnx"

    for name in (b"\xff\xfe", b"\xc0\x80", b"\x00\x00"):
        yield Case(f"a name of bytes {name.hex()}", partial(renamed, name), ANY)


def _odd() -> Iterator[Case]:
    """Valid, and seldom seen."""

    def named(name: str) -> onnx.ModelProto:
        made = nets.words()
        for node in made.graph.node[:1]:
            node.name = name
            node.input[1] = name
        made.graph.initializer[0].name = name
        return made

    for name in (
        "[bold]",
        "\x1b[31mred",
        "a\nb",
        "ä" * 3000,
        "{}%s",
        "../w",
        "\u202e",
        "x" * 10**5,
    ):
        yield of_model(f"a weight named {name[:8]!r}", partial(named, name), TAKEN)

    def axes(shape: list[int | str | None]) -> onnx.ModelProto:
        return nets.model(
            [helper.make_node("Conv", ["x", "w"], ["y"])], shape, {"w": nets.weight(4, 3, 3, 3)}
        )

    for shape, codes in (
        ([-1, 3, -1, -1], REFUSED),
        ([-1, 3, 6, 6], TAKEN),
        ([0, 3, 6, 6], ANY),
        ([1, 3, 0, 6], REFUSED),
        ([-(2**63), 3, 6, 6], TAKEN),
        ([2**62, 3, 6, 6], REFUSED),
        ([1, 3, 2**40, 2**40], REFUSED),
        ([1, 4, 6, 6], REFUSED),
        ([], REFUSED),
        ([1, 3, 6, 6, 6], REFUSED),
    ):
        yield of_model(f"an input of {shape}", partial(axes, shape), codes)
    open_shape = partial(axes, [-1, 3, -1, -1])
    yield of_model("an input of -1 with a shape", open_shape, TAKEN, ("--shape", "x=1,3,9,9"))

    def typed(kind: int) -> onnx.ModelProto:
        return nets.model([helper.make_node("Identity", ["x"], ["y"])], ["n", 4], {}, kind=kind)

    for kind in range(1, 26):
        yield of_model(f"an input of type {kind}", partial(typed, kind), ANY)

    def valued(value: float) -> onnx.ModelProto:
        w = nets.weight(8, 8)
        w[0, 0] = value
        return nets.model([helper.make_node("MatMul", ["x", "w"], ["y"])], ["n", 8], {"w": w})

    for value in (np.nan, np.inf, -np.inf, 3e38, 1e-45, -0.0):
        yield of_model(
            f"a weight of {value}", partial(valued, value), TAKEN if not np.isnan(value) else ANY
        )

    def conv(shape: tuple[int, ...], attributes: dict) -> onnx.ModelProto:
        node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
        size = ["n", shape[1] * attributes.get("group", 1), *[9] * (len(shape) - 2)]
        return nets.model([node], size, {"w": nets.weight(*shape)})

    for shape in (
        (4, 3),
        (4, 3, 3),
        (4, 3, 3, 3),
        (4, 3, 3, 3, 3),
        (4, 3, 1, 3, 1, 3),
        (0, 3, 3),
        (4, 0, 3),
    ):
        yield of_model(f"a convolution of {shape}", partial(conv, shape, {}), ANY)
    for attributes in (
        {"pads": [2**31, 0]},
        {"pads": [-1, 0]},
        {"pads": [40_000, 40_000]},
        {"pads": [1]},
        {"strides": [0]},
        {"strides": [2**40]},
        {"dilations": [4]},
        {"dilations": [5]},
        {"dilations": [0]},
        {"group": 2},
        {"group": 0},
        {"group": -1},
        {"group": 4},
        {"kernel_shape": [2]},
        {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "same"},
        {"auto_pad": "VALID", "pads": [1, 1]},
        {"auto_pad": "SAME_LOWER", "strides": [2]},
    ):
        yield of_model(
            f"a convolution with {attributes}", partial(conv, (4, 3, 3), attributes), ANY
        )
