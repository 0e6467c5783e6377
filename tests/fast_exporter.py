"""PyTorch's exporter with tables that are made once, and not anew for every export.

It parses the sources of a thousand functions for the one, and asks each operator whether it may be
decomposed for the other: half the time of a run of these tests. The operators are always the same,
as no test registers its own.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from unittest.mock import patch


@contextmanager
def fast_exporter() -> Iterator[None]:
    """Let all exports meanwhile share the tables; each has a copy that it may change."""
    try:
        from torch.export import decomp_utils, exported_program
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        made = cache(ONNXRegistry.from_torchlib)
        found = cache(exported_program._collect_all_valid_cia_ops)
    except (ImportError, AttributeError):  # another PyTorch: its exporter takes its time
        yield
        return

    def from_torchlib(*arguments: object, **options: object) -> ONNXRegistry:
        registry = copy.copy(made(*arguments, **options))
        registry.functions = {name: [*found] for name, found in registry.functions.items()}
        return registry

    with (
        patch.object(ONNXRegistry, "from_torchlib", staticmethod(from_torchlib)),
        patch.object(exported_program, "_collect_all_valid_cia_ops", found),
        patch.object(decomp_utils, "_collect_all_valid_cia_ops", found),
    ):
        yield
