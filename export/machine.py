"""The machine on which a latency was measured, and its load."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Machine:
    """The machine on which latency was measured, and its load."""

    cpu: str
    """Model of the processor."""
    cores: int
    """Logical cores."""
    load_1min: float
    """Average number of runnable processes in the last minute; above ``cores``, wall times lie."""


def machine_load() -> Machine:
    """Read the CPU's model, its number of logical cores, and the load of the last minute."""
    load = round(psutil.getloadavg()[0], 2)
    return Machine(cpu=_cpu_model(), cores=os.cpu_count() or 1, load_1min=load)


def _cpu_model() -> str:
    """Return the CPU's model: on Linux from a file, on other systems from Python."""
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
