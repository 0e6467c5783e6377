"""Sessions of sparse operators, for each instruction set of this machine."""

import platform
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mfac_compress.export.sparse import DOMAIN, VERSION, kernel_library, pack, sparse_node

FLOATS = TensorProto.FLOAT


L1D = {"avx512vnni": "48", "avx512": "32", "avxvnni": "32", "avx2": "48", "portable": "32"}
"""KiB of the first data cache, by which tiles are chosen: each size once with 512 and 256 bits."""


@pytest.fixture(scope="session")
def first_caches():
    """The size of the first data cache that goes with each instruction set."""
    return L1D


def _instruction_sets():
    if platform.machine() not in ("x86_64", "AMD64"):
        return ["portable"]
    words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    needs = {
        "avx512vnni": {"avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512_vnni"},
        "avx512": {"avx512f", "avx512vl", "avx512bw", "avx512dq"},
        "avxvnni": {"avx2", "fma", "avx_vnni"},
        "avx2": {"avx2", "fma"},
        "portable": set(),
    }
    return [name for name, flags in needs.items() if flags <= words]


class Sessions:
    """Opens models of sparse nodes with one library."""

    def __init__(self, library):
        self.library = str(library)

    def keep_loaded(self):
        """Have the library choose its kernels now.

        Without a session it would be unloaded, and would choose again when it is next loaded.
        """
        weight = pack(np.ones((1, 1), np.float32))
        self._kept = self.open([sparse_node("l", ir.Value(name="x"), "y", weight)])

    def open(self, nodes, outputs=None, *, threads=1, kind=FLOATS, kinds=None, records=()):
        """Nodes read graph inputs unless another node writes what they read.

        ``kind`` is the type of inputs and outputs, ``kinds`` those of the ones with another;
        ``records`` are the types and shapes of values between the nodes.
        """
        kinds = kinds or {}
        written = {value.name for node in nodes for value in node.outputs}
        read = {value for node in nodes for value in node.inputs if value is not None}
        constants = {v.name: v.const_value for v in read if v.const_value is not None}
        inputs = sorted({value.name for value in read} - written - constants.keys())
        graph = helper.make_graph(
            [ir.to_proto(node) for node in nodes],
            "sparse",
            [helper.make_tensor_value_info(n, kinds.get(n, kind), None) for n in inputs],
            [
                helper.make_tensor_value_info(n, kinds.get(n, kind), None)
                for n in outputs or written
            ],
            [ir.to_proto(tensor) for tensor in constants.values()],
            value_info=records,
        )
        return self.load(graph, threads)

    def load(self, graph, threads=1):
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, VERSION)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.register_custom_ops_library(self.library)
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


@pytest.fixture(scope="session")
def sessions_by_set(tmp_path_factory):
    """Copies of the library, each of which has chosen another instruction set and other tiles."""
    opened = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in _instruction_sets():
            copy = tmp_path_factory.mktemp("kernels") / f"{name}.so"
            shutil.copy(kernel_library(), copy)
            patch.setenv("MFAC_SPARSE_ISA", name)
            patch.setenv("MFAC_SPARSE_L1D", L1D[name])
            opened[name] = Sessions(copy)
            opened[name].keep_loaded()
    return opened


@pytest.fixture(params=_instruction_sets())
def sessions(request, sessions_by_set):
    return sessions_by_set[request.param]


@pytest.fixture
def any_sessions():
    return Sessions(kernel_library())
