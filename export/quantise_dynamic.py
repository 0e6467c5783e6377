"""Write a model with the weights of its matrix products in 8 bits, by ONNX Runtime's quantiser."""

from collections.abc import Collection, Mapping
from copy import deepcopy
from pathlib import Path

import onnx
import onnx_ir as ir

from mfac_compress.export.onnx_file import write_graph
from mfac_compress.export.passes import TRANSPOSED
from mfac_compress.export.quantised_weights import replace_steps
from mfac_compress.export.quantiser_parts import (
    NEAREST,
    Steps,
    as_value_error,
    is_large,
    layers_of,
    load_with_shapes,
    workplace,
)


class DynamicQuantiser:
    """A float file; writes it with any of its matrix products in 8 bits.

    The ranges of their inputs are found anew in each call, so no samples are needed.

    Args:
        path: The float file.
        per_channel: Give each output of a layer a scale of its own.
        reduce_range: Use 7 of the weights' 8 bits.
        scratch: Folder for temporary files, of which none stays.
    """

    def __init__(
        self, path: Path, *, per_channel: bool = True, reduce_range: bool = False, scratch: Path
    ) -> None:
        self._per_channel, self._reduce_range = per_channel, reduce_range
        self._scratch, self._large = scratch, is_large(path)
        with workplace(scratch) as folder:
            model = onnx.load(path)
            _gemms_to_matmuls(model)
            copied = folder / "model.onnx"
            onnx.save(model, copied, save_as_external_data=self._large)
            self.model = load_with_shapes(copied)
            """The float model, each Gemm as MatMul and Add. Not to be changed."""
        found = layers_of(self.model)
        self.layers = tuple(layer for layer in found if layer.operator == "MatMul")
        """Layers that can be in 8 bits."""

    def write(
        self,
        output: Path,
        *,
        in_float: Collection[str] = (),
        steps: Steps = NEAREST,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write the model in 8 bits, as :meth:`StaticQuantiser.write` does."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with workplace(self._scratch) as folder, as_value_error("quantise"):
            written = folder / "int8.onnx"
            quantize_dynamic(
                deepcopy(self.model),
                written,
                op_types_to_quantize=["MatMul"],
                per_channel=self._per_channel,
                reduce_range=self._reduce_range,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[*in_float],
                use_external_data_format=self._large,
                extra_options={"WeightSymmetric": True, "MatMulConstBOnly": True},
            )
            model = ir.load(written)
            model.graph.sort()
            replace_steps(model, steps)
            write_graph(model, output, metadata=metadata)

    def write_only(self, output: Path, node: str, *, steps: Steps = NEAREST) -> None:
        """Write the model in float but for one layer."""
        others = [layer.node for layer in self.layers if layer.node != node]
        self.write(output, in_float=others, steps=steps)


def _gemms_to_matmuls(model: onnx.ModelProto) -> None:
    """Write each Gemm as MatMul and Add, which is what can be quantised dynamically.

    The quantiser would do it, but keep the name of a weight that it transposes, and forget that
    another node may read it.
    """
    graph = model.graph
    constants, nodes = {tensor.name: tensor for tensor in graph.initializer}, []
    for node in graph.node:
        given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        plain = given.get("alpha", 1) == given.get("beta", 1) == 1 and not given.get("transA", 0)
        if node.op_type != "Gemm" or node.input[1] not in constants or not plain:
            nodes.append(node)
            continue
        weight = node.input[1]
        if given.get("transB", 0):
            turned = weight + TRANSPOSED
            if turned not in constants:
                array = onnx.numpy_helper.to_array(constants[weight]).T
                constants[turned] = onnx.numpy_helper.from_array(array, turned)
                graph.initializer.append(constants[turned])
            weight = turned
        biased = len(node.input) > 2
        product = f"{node.output[0]}_product" if biased else node.output[0]
        names = {"name": node.name}
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], weight], [product], **names))
        if biased:
            added = [product, node.input[2]]
            nodes.append(onnx.helper.make_node("Add", added, node.output))
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    used |= {output.name for output in graph.output}
    for tensor in [one for one in graph.initializer if one.name not in used]:
        graph.initializer.remove(tensor)
