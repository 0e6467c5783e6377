"""Convert an ONNX file as protobuf reads it to onnx_ir, also what onnx_ir cannot represent."""

import logging
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from math import prod

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
from onnx import AttributeProto, numpy_helper

from mfac_compress.export.graphs import nested

MAX_SPARSE_ELEMENTS = 2**28
"""Limit for the numbers of all sparse tensors of a file, zeros included."""

# It logs what is wrong with a file; ONNX Runtime refuses such a file, with an error.
logging.getLogger("onnx_ir.serde").setLevel(logging.ERROR)


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Inline functions where they are called, as ONNX Runtime does when it loads a file.

    Args:
        model: May be changed. Its functions must not be too large when inlined.
    Returns:
        The model; unchanged if it has no functions, or is too large for the ONNX inliner.
    """
    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception:  # its layers are reported as inside functions, then
        return model


def to_ir(model: onnx.ModelProto) -> ir.Model:
    """Convert a model to onnx_ir.

    Sparse tensors become dense ones, as in ONNX Runtime. Types of values that are neither tensors
    nor sequences of tensors, such as maps, are left out: ONNX Runtime infers them.

    Args:
        model: Changed. The result shares its tensors.
    Raises:
        ValueError: If it is not valid, its sparse tensors are too large, or two initializers have
            one name.
    """
    bodies = [onnx.GraphProto(node=function.node) for function in model.functions]
    graphs = list(chain.from_iterable(map(nested, (model.graph, *bodies))))
    _check_sparse_tensors(graphs)
    for graph in graphs:
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(sparse))
        del graph.sparse_initializer[:]
        _check_names(graph)
        for attribute in _sparse_attributes(graph):
            dense = _dense(attribute.sparse_tensor)
            attribute.CopyFrom(onnx.helper.make_attribute("value", dense))
        for value in (*graph.input, *graph.output, *graph.value_info):
            if not _is_known(value.type):
                value.ClearField("type")
    for function, body in zip(model.functions, bodies, strict=True):
        del function.node[:]
        function.node.extend(body.node)
    return ir.from_proto(model)


def _sparse_attributes(graph: onnx.GraphProto) -> list[AttributeProto]:
    attributes = (attribute for node in graph.node for attribute in node.attribute)
    return [each for each in attributes if each.type == AttributeProto.SPARSE_TENSOR]


def _check_sparse_tensors(graphs: Iterable[onnx.GraphProto]) -> None:
    """Refuse a few bytes that would become more numbers than memory can hold."""
    tensors = [sparse for graph in graphs for sparse in graph.sparse_initializer]
    tensors += [each.sparse_tensor for graph in graphs for each in _sparse_attributes(graph)]
    numbers = sum(abs(prod(sparse.dims)) for sparse in tensors)
    if numbers > MAX_SPARSE_ELEMENTS:
        raise ValueError(
            f"Its sparse tensors have {numbers:,} numbers, zeros included, and at most "
            f"{MAX_SPARSE_ELEMENTS:,} are accepted."
        )


def _check_names(graph: onnx.GraphProto) -> None:
    """Refuse two initializers of one name: onnx_ir would use the last, ONNX Runtime the first."""
    names = Counter(tensor.name for tensor in graph.initializer)
    for name, count in names.items():
        if count > 1:
            raise ValueError(f"It has {count} initializers of the name {name!r}.")


def _is_known(type_: onnx.TypeProto) -> bool:
    match type_.WhichOneof("value"):
        case "tensor_type" | "sparse_tensor_type":
            return True
        case "sequence_type":
            return _is_known(type_.sequence_type.elem_type)
        case "optional_type":
            return _is_known(type_.optional_type.elem_type)
    return False


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """Convert a sparse tensor; its name is that of its values."""
    shape = tuple(sparse.dims)
    values, places = (numpy_helper.to_array(each) for each in (sparse.values, sparse.indices))
    dense = np.zeros(prod(shape), values.dtype)
    dense[np.ravel_multi_index(places.T, shape) if places.ndim == 2 else places] = values
    return numpy_helper.from_array(dense.reshape(shape), sparse.values.name)
