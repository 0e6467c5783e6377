"""Sums before layer norms are written so that ONNX Runtime does not fuse them."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from mfac_compress.export.sparse.foreign import to_ir
from mfac_compress.export.sparse.skip_layer_norm import prevent_skip_layer_norm


def _model(make_model):
    nodes = [
        ("Add", ["x", "z"], ["a"]),
        ("LayerNormalization", ["a", "s", "b"], ["n"]),
        ("Add", ["n", "x"], ["y"]),
    ]
    constants = {"s": np.full(8, 1.5, np.float32), "b": np.ones(8, np.float32)}
    return make_model(nodes, {"x": ["n", 4, 8], "z": ["n", 4, 8]}, ["y"], **constants)


def _runs(model, folder):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 4, 8)).astype(np.float32) for name in ("x", "z")}
    kinds = Counter(n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node)
    return session.run(None, feeds)[0], kinds


def test_the_fusion_is_prevented_and_the_outputs_are_unchanged(make_model, tmp_path):
    model = _model(make_model)
    expected, fused = _runs(model, tmp_path)
    assert fused["SkipLayerNormalization"] == 1

    changed = to_ir(model)
    assert prevent_skip_layer_norm(changed) == 1
    model = ir.to_proto(changed)
    onnx.checker.check_model(model)
    found, apart = _runs(model, tmp_path)

    assert apart["SkipLayerNormalization"] == 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
