"""What a timed call computes, and on how many threads."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Workload:
    """Batch size, number of threads and lengths of the named axes of a timed call."""

    batch_size: int
    """Samples of a call."""
    threads: int
    """Threads of ONNX Runtime within an operator."""
    # Left out of the hash, since a dict has none; equality compares it.
    lengths: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Length of each open axis beside the batch, by the axis's name: ``{"sequence": 128}``."""

    def __str__(self) -> str:
        lengths = "".join(f", {name} {length}" for name, length in self.lengths.items())
        return f"batch {self.batch_size}{lengths}, {self.threads} thread{'s' * (self.threads > 1)}"
