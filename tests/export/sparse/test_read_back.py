"""The zeros of weights that sparse operators hold, in a file and in ONNX Runtime."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from mfac_compress.export import TensorAudit, Variant, audit_zeros, write_model
from mfac_compress.export.sparse.compose import rewrite
from mfac_compress.export.sparse.find import fuse
from mfac_compress.export.sparse.format import Block, pack
from mfac_compress.export.sparse.layout import Placement
from mfac_compress.export.sparse.nodes import DOMAIN
from mfac_compress.export.sparse.read_back import packed_weights


@pytest.fixture(params=[1, 8], ids="blocks of {}".format)
def files(pruned, find, kernels, tmp_path, request):
    """A net's plain file, and the same with all that sparse operators can compute."""
    graph, layers, shapes = find(onnx.load(pruned.path), batch=2)
    plan = {each: Placement(Block(request.param)) for each in fuse(graph, layers, shapes)}
    model = rewrite(graph, plan)
    assert sum(node.domain == DOMAIN for node in model.graph) == len(pruned.masks)
    path = tmp_path / "sparse.onnx"
    write_model(model, path)
    return [
        Variant("plain", pruned.path),
        Variant("kernels", path, library=kernels, made_from="plain"),
    ]


def test_every_packed_weight_is_found_in_its_own_place(files, pruned):
    for audit in audit_zeros(files, pruned.masks)["kernels"]:
        mask = pruned.masks[audit.name]
        removed = int((~mask).sum())
        assert audit == TensorAudit(audit.name, mask.numel(), removed, removed, 0, removed, 0, True)


def test_a_removed_weight_that_came_back_is_found(files, pruned):
    model = onnx.load(files[1].path)
    node = model.graph.node[-1]  # the head
    block = next(each.i for each in node.attribute if each.name == "block")
    weight = pruned.model.head.weight.detach().numpy().copy()
    weight[tuple(np.argwhere(weight == 0)[0])] = 1e-6
    packed = pack(weight, block=block)
    arrays = dict(zip(node.input[1:4], (packed.values, packed.indices, packed.starts), strict=True))
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    onnx.save(model, files[1].path)
    for audit in audit_zeros(files, pruned.masks)["kernels"]:
        hit = audit.name == "head.weight"
        assert audit.intact != hit
        assert audit.onnx_zeros == audit.optimized_zeros == audit.mask_zeros - hit


def test_an_operator_that_stands_for_no_layer_has_no_weight_of_the_source(files):
    """One that only copies values stands for nodes like Slice, whose second input is no weight."""
    model, source = ir.load(files[1].path), ir.load(files[0].path)
    named = {name for name, _ in packed_weights(model, source)}
    assert {"conv.weight", "head.weight", "mix.weight.T"} < named
    readers = [each for each in source.graph if len(each.inputs) > 1]
    node = next(each for each in readers if each.inputs[1].name in named)
    before = node.inputs[1].name
    node.op_type = "Slice"
    after = {name for name, _ in packed_weights(model, source)}
    assert (named - after, after - named) == ({before}, {node.name})


def test_without_the_file_it_was_made_from_weights_are_found_by_their_zeros(files, pruned):
    alone = audit_zeros(files[1:], pruned.masks)["kernels"]
    assert alone == audit_zeros(files, pruned.masks)["kernels"]
