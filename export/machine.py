"""The machine on which a latency was measured, and its load."""

import os
import platform
from pathlib import Path

import psutil

_CPUINFO = Path("/proc/cpuinfo")


def machine_load() -> dict[str, str | int | float]:
    """Read the CPU's model, its number of logical cores, and the load of the last minute.

    Returns:
        ``cpu`` (name), ``cores`` (count) and ``load_1min`` (average number of runnable processes).
    """
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "load_1min": round(psutil.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    """Return the CPU's model: on Linux from a file, on other systems from Python."""
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
