"""Copies of a file with other weights: every other byte is what it was."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mfac_compress.export.from_onnx import Source

NEW = np.arange(12, dtype=np.float32).reshape(4, 3)


def model(*initializers: TensorProto, constant: TensorProto | None = None) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    if constant is not None:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=constant))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        list(initializers),
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made.metadata_props.add(key="author", value="somebody")
    return made


def weight(name: str = "w", raw: bool = True) -> TensorProto:
    array = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    if raw:
        return numpy_helper.from_array(array, name)
    return helper.make_tensor(name, TensorProto.FLOAT, array.shape, array.flatten())


def unpacked(made: onnx.ModelProto) -> bytes:
    """The model's bytes with its floats as single fields, as protobuf wrote them once."""
    tensor = made.graph.initializer[0]
    numbers = numpy_helper.to_array(tensor).flatten()
    packed = tensor.SerializeToString()
    del tensor.float_data[:]
    bare = tensor.SerializeToString()
    loose = bare + b"".join(b"\x25" + np.float32(n).tobytes() for n in numbers)
    del made.graph.initializer[:]
    graph = made.graph.SerializeToString() + b"\x2a" + _varint(len(loose)) + loose
    made.ClearField("graph")
    assert len(packed) < 128
    # Fields in another order than a serialiser's.
    return b"\x3a" + _varint(len(graph)) + graph + made.SerializeToString()


def _varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


CONTENTS = {
    "raw": lambda: model(weight()).SerializeToString(),
    "floats": lambda: model(weight(raw=False)).SerializeToString(),
    "single floats, other order": lambda: unpacked(model(weight(raw=False))),
    "constant": lambda: model(constant=weight("other")).SerializeToString(),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_only_the_numbers_of_a_tensor_change(tmp_path, kind):
    content = CONTENTS[kind]()
    path, copy = tmp_path / "net.onnx", tmp_path / "copy.onnx"
    path.write_bytes(content)
    source = Source.read(path, content)
    assert source.writable == {"w"}
    source.write(copy, {})
    assert copy.read_bytes() == content
    source.write(copy, {"w": NEW})
    changed = copy.read_bytes()
    differing = np.frombuffer(content, np.uint8) != np.frombuffer(changed, np.uint8)
    assert 0 < differing.sum() <= NEW.nbytes
    again = onnx.load(copy)
    onnx.checker.check_model(again)
    tensor = (
        again.graph.initializer[0] if kind != "constant" else again.graph.node[0].attribute[0].t
    )
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), NEW)


def test_a_tensor_of_another_size_is_refused(tmp_path):
    content = model(weight()).SerializeToString()
    source = Source.read(tmp_path / "net.onnx", content)
    with pytest.raises(ValueError, match="'w' must have"):
        source.write(tmp_path / "copy.onnx", {"w": NEW[:2]})
    assert not (tmp_path / "copy.onnx").exists()


def external(folder, files: dict[str, list[str]]) -> bytes:
    """A model whose tensors are in files beside it, by file."""
    tensors = []
    for file, names in files.items():
        with (folder / file).open("wb") as data:
            for name in names:
                data.write(b"\0" * 7)  # offsets need not be aligned
                tensor, start = weight(name), data.tell()
                data.write(tensor.raw_data)
                onnx.external_data_helper.set_external_data(tensor, file, start, 48)
                tensor.ClearField("raw_data")
                tensors.append(tensor)
    made = model(*tensors, weight("inside"))
    made.graph.node[0].input[1] = "w"
    return made.SerializeToString()


def test_external_data_goes_beside_the_copy(tmp_path):
    (tmp_path / "out").mkdir()
    content = external(tmp_path, {"a.bin": ["v", "w"], "b.bin": ["u"]})
    source = Source.read(tmp_path / "net.onnx", content)
    copy = tmp_path / "out" / "copy.onnx"
    source.write(copy, {"w": NEW, "inside": NEW + 1})
    assert sorted(each.name for each in copy.parent.iterdir()) == ["copy.onnx", "copy.onnx.data"]
    again = onnx.load(copy)
    found = {each.name: numpy_helper.to_array(each) for each in again.graph.initializer}
    before = numpy_helper.to_array(weight())
    np.testing.assert_array_equal(found["w"], NEW)
    np.testing.assert_array_equal(found["inside"], NEW + 1)
    np.testing.assert_array_equal(found["v"], before)
    np.testing.assert_array_equal(found["u"], before)
    source.write(copy, {})
    again = onnx.load(copy)
    np.testing.assert_array_equal(numpy_helper.to_array(again.graph.initializer[1]), before)


def test_every_float_of_external_data_can_change(tmp_path):
    names = [f"w{number}" for number in range(20)]
    content = external(tmp_path, {"a.bin": [*names, "w"], "b.bin": ["u"]})
    assert Source.read(tmp_path / "net.onnx", content).writable == {*names, "w", "u", "inside"}


def test_tensors_with_bytes_in_common_cannot_change(tmp_path):
    made = onnx.ModelProto.FromString(external(tmp_path, {"a.bin": ["u", "v", "w"]}))
    first, second, _ = (each.external_data for each in made.graph.initializer[:3])
    for entry in second:
        if entry.key == "offset":
            entry.value = next(each.value for each in first if each.key == "offset")
    source = Source.read(tmp_path / "net.onnx", made.SerializeToString())
    assert source.writable == {"w", "inside"}


def test_external_data_that_changes_meanwhile_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    source = Source.read(tmp_path / "net.onnx", external(tmp_path, {"a.bin": ["w"]}))
    (tmp_path / "a.bin").write_bytes(b"\1" * 55)
    with pytest.raises(ValueError, match=r"a\.bin has changed"):
        source.write(tmp_path / "out" / "copy.onnx", {})
    assert not [*(tmp_path / "out").iterdir()]


@pytest.mark.parametrize("place", ["../a.bin", "/etc/passwd", "..\\a.bin"])
def test_external_data_elsewhere_is_refused(tmp_path, place):
    made = onnx.ModelProto.FromString(external(tmp_path, {"a.bin": ["w"]}))
    for entry in made.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = place
    with pytest.raises(ValueError, match="must be in the folder"):
        Source.read(tmp_path / "net.onnx", made.SerializeToString())
