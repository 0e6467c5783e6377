"""What docs/deploying.md tells a reader to type works."""

import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader

from mfac_compress.export import kernel_library
from mfac_compress.export.sparse.files import read_model
from mfac_compress.export.sparse.find import find_layers
from mfac_compress.export.sparse.format import pack
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.nodes import sparse_node
from mfac_compress.pipeline.cli import main

TEXT = (Path(__file__).parent.parent / "docs" / "deploying.md").read_text(encoding="utf-8")

EXAMPLES = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)


@pytest.fixture
def run_directory(tmp_path, monkeypatch):
    """A model with one sparse operator, and the library where a run puts it."""
    try:
        library = kernel_library()
    except ValueError:
        pytest.skip("the sparse kernels are not built: there was no C++ compiler")
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "libmfac_sparse.so").symlink_to(library)
    weight = pack(np.eye(4, dtype=np.float32))
    node = sparse_node("layer", ir.Value(name="input"), "y", weight)
    graph = helper.make_graph(
        [ir.to_proto(node)],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [ir.to_proto(value.const_value) for value in node.inputs[1:4]],
    )
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("mfac_compress", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=9)
    onnx.save(model, tmp_path / "model.sparse.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_examples_run(run_directory):
    *examples, _ = EXAMPLES
    assert len(examples) == 2
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    for example in examples:
        names = {"x": x}
        exec(example, names)
        np.testing.assert_array_equal(names["outputs"][0], x)


def test_the_quantised_file_is_one_whose_layers_can_be_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nodes = [helper.make_node("MatMul", ["input", "w"], ["y"], "layer")]
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    ends[0].name = "input"
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), "model.onnx")

    class Reader(CalibrationDataReader):
        batches = iter([{"input": np.ones((2, 4), np.float32)}])

        def get_next(self):
            return next(self.batches, None)

    exec(EXAMPLES[-1], {"calibration_reader": Reader()})
    (layer,) = find_layers(Graph(read_model("model.int8.onnx")))
    assert layer.found.is_quantised


def test_the_error_without_the_library_is_as_shown(run_directory):
    import onnxruntime

    with pytest.raises(Exception, match=r"mfac_compress:SparseLinear\(-1\) is not a registered"):
        onnxruntime.InferenceSession("model.sparse.onnx")
    assert "(-1) is not a registered function/op" in TEXT


def test_the_command_is_one_the_tool_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^mfac-compress (.*)$", TEXT, re.M)
    result = CliRunner().invoke(main, shlex.split(command))
    assert result.exit_code == 2
    assert "must be an ONNX file at model.onnx" in result.output or "must be built" in result.output
