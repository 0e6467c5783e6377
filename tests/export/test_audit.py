import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from mfac_compress.export import TensorAudit, Variant
from mfac_compress.export import audit_zeros as audit_variants


def audit_zeros(path, masks):
    return audit_variants([Variant("one", path)], masks)["one"]


def edit(path, target, name, change=None, rename=None):
    """Copy a file with one initializer changed or renamed."""
    model = onnx.load(path)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    array = numpy_helper.to_array(tensor).copy()
    if change:
        change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, rename or name))
    for node in model.graph.node:
        node.input[:] = [rename or name if used == name else used for used in node.input]
    onnx.save(model, target)
    return target


def set_first_zero(value):
    def change(array):
        array[tuple(np.argwhere(array == 0)[0])] = value

    return change


def save(path, nodes, tensors, shape):
    """Write a file of some nodes from x to y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def sparse(*shape, seed=0):
    """Weights and their mask."""
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) > 0.7
    return np.where(mask, rng.normal(size=shape), 0).astype(np.float32), torch.from_numpy(mask)


def by_name(audits):
    return {audit.name: audit for audit in audits}


@pytest.fixture(scope="module")
def audits(pruned):
    return audit_zeros(pruned.path, pruned.masks)


def test_every_tensor_of_a_net_is_found_and_intact(pruned, audits):
    assert [audit.name for audit in audits] == list(pruned.masks)
    for audit in audits:
        mask = pruned.masks[audit.name]
        removed = int((~mask).sum())
        assert audit == TensorAudit(audit.name, mask.numel(), removed, removed, 0, removed, 0, True)
        assert audit.intact


@pytest.mark.parametrize(
    "name", ["conv.weight", "grouped.weight", "head.weight", "square.weight.T"]
)
def test_a_removed_weight_that_came_back_is_found(pruned, tmp_path, name):
    broken = edit(pruned.path, tmp_path / "m.onnx", name, set_first_zero(1e-6))
    for audit in audit_zeros(broken, pruned.masks):
        hit = audit.name == name.removesuffix(".T")
        assert audit.intact != hit
        assert audit.onnx_zeros == audit.mask_zeros - hit
        assert audit.optimized_zeros == audit.mask_zeros - hit


def test_a_negative_zero_is_found(pruned, tmp_path):
    broken = edit(pruned.path, tmp_path / "m.onnx", "point.weight", set_first_zero(-0.0))
    audit = by_name(audit_zeros(broken, pruned.masks))["point.weight"]
    assert (audit.negative_zeros, audit.intact) == (1, False)
    assert audit.onnx_zeros == audit.mask_zeros


@pytest.mark.parametrize("name", ["conv.weight", "mix.weight.T", "square.weight.T"])
def test_a_renamed_tensor_is_found_by_its_zeros(pruned, audits, tmp_path, name):
    renamed = edit(pruned.path, tmp_path / "m.onnx", name, rename="anonymous")
    assert audit_zeros(renamed, pruned.masks) == audits


def test_a_renamed_tensor_that_lost_a_zero_is_not_found(pruned, tmp_path):
    change = set_first_zero(1e-6)
    broken = edit(pruned.path, tmp_path / "m.onnx", "conv.weight", change, rename="anonymous")
    audit = by_name(audit_zeros(broken, pruned.masks))["conv.weight"]
    found = (audit.onnx_zeros, audit.negative_zeros, audit.optimized_zeros)
    assert (found, audit.intact) == ((None, None, None), False)


def test_a_mask_that_fits_two_tensors_finds_neither(tmp_path):
    weights, mask = sparse(6, 4)
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"]),
        helper.make_node("MatMul", ["h", "second"], ["y"]),
    ]
    tensors = {"first": weights, "second": weights.T.copy()}
    path = save(tmp_path / "m.onnx", nodes, tensors, [1, 6])
    assert audit_zeros(path, {"lost.weight": mask})[0].onnx_zeros is None


def test_one_tensor_is_not_found_for_two_masks(tmp_path):
    weights, mask = sparse(6, 4)
    nodes = [helper.make_node("MatMul", ["x", "only"], ["y"])]
    path = save(tmp_path / "m.onnx", nodes, {"only": weights}, [1, 6])
    audits = audit_zeros(path, {"one.weight": mask, "other.weight": mask})
    assert [audit.onnx_zeros for audit in audits] == [None, None]
    assert audit_zeros(path, {"one.weight": mask})[0].intact


def test_kept_weights_that_are_zero_do_not_count(tmp_path):
    weights, mask = sparse(6, 4)
    weights[np.nonzero(weights)[0][0]] = 0
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = save(tmp_path / "m.onnx", nodes, {"w": weights}, [1, 6])
    (audit,) = audit_zeros(path, {"w": mask})
    assert audit.onnx_zeros == int((~mask).sum())
    assert audit.intact


def test_a_tensor_of_which_nothing_was_removed_need_not_be_found(pruned):
    (audit,) = audit_zeros(pruned.path, {"nowhere": torch.ones(2, 3, dtype=torch.bool)})
    assert audit.intact


def test_zeros_are_followed_through_a_transpose_that_onnx_runtime_folds(tmp_path):
    weights, mask = sparse(6, 4)
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, {"w": weights}, [2, 3, 4])
    assert audit_zeros(path, {"w": mask})[0].intact


@pytest.mark.parametrize("scale", [-0.5, 0.0])
def test_zeros_are_followed_through_a_batch_norm_that_onnx_runtime_folds(tmp_path, scale):
    weights, mask = sparse(4, 3, 3, 3)
    tensors = {name: np.full(4, 0.5, np.float32) for name in ("bias", "mean", "var")}
    tensors |= {"w": weights, "scale": np.array([1, 2, 3, scale], np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"]),
        helper.make_node("BatchNormalization", ["h", "scale", "bias", "mean", "var"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, tensors, [1, 3, 5, 5])
    assert audit_zeros(path, {"w": mask})[0].intact
    broken = edit(path, tmp_path / "broken.onnx", "w", set_first_zero(1e-6))
    audit = audit_zeros(broken, {"w": mask})[0]
    assert audit.onnx_zeros == audit.optimized_zeros == audit.mask_zeros - 1


def test_a_missing_file_is_reported():
    with pytest.raises(ValueError, match="must be able to load"):
        audit_zeros("nowhere.onnx", {})
