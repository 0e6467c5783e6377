"""How much memory this process may still take: of the machine, and of its control groups.

A container or a CI job may be held to less than the machine has, by Linux's control groups. Who
takes more is killed.
"""

from collections.abc import Iterator
from pathlib import Path

import psutil

SHARE_OF_FREE = 0.8
"""What one thing may take of it; the rest is for all else."""

_ROOT = Path("/")
# Of version 2 and of version 1: the most that may be used, what is used, and how much of that is a
# cache of files, which the kernel gives back.
_FILES = {
    "2": ("memory.max", "memory.current", "inactive_file"),
    "1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_memory(root: Path = _ROOT) -> tuple[int, str]:
    """Measure what is left.

    Args:
        root: Where ``/proc`` and ``/sys`` are.
    Returns:
        Bytes, and in words of what: ``the free memory``, or that of the control group where it is
        less.
    """
    machine = psutil.virtual_memory().available
    group = min(_left_in_groups(root), default=machine)
    if group < machine:
        return max(0, group), "the memory that the control group (cgroup) leaves free"
    return machine, "the free memory"


def _left_in_groups(root: Path) -> Iterator[int]:
    """What each control group of this process leaves it, from its own up to the root's."""
    for version, mount, group in _groups(root):
        own = mount / group.strip("/")
        # A container may see its group's path from outside, but the group itself at the mount.
        for folder in [own, *own.parents]:
            left = _left(folder, *_FILES[version])
            if left is not None:
                yield left
            if folder == mount:
                break


def _groups(root: Path) -> Iterator[tuple[str, Path, str]]:
    """Version, mount point and path of the process' memory groups."""
    mounted = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            yield "2", mounted, path
            yield "2", mounted / "unified", path
        elif "memory" in controllers.split(","):
            yield "1", mounted / "memory", path


def _left(folder: Path, most: str, used: str, cache: str) -> int | None:
    """The limit of one group less what is in use; None where it has none."""
    numbers = [_read(folder / name).strip() for name in (most, used)]
    if not all(number.isdigit() for number in numbers):
        return None  # no such file, or "max"
    lines = (line.split() for line in _read(folder / "memory.stat").splitlines())
    cached = next((int(line[1]) for line in lines if line[:1] == [cache]), 0)
    limit, usage = map(int, numbers)
    return limit - (usage - cached)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
