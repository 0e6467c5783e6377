"""Memory is what the machine has free, or what the process' control groups leave it."""

import psutil
import pytest

from mfac_compress.pipeline.inputs.free_memory import free_memory

V2 = ("0::/job/step\n", "", ("memory.max", "memory.current", "inactive_file"))
V1 = (
    "5:cpu,cpuacct:/job\n4:memory:/job/step\n0::/\n",
    "memory",
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def group(folder, names, limit, used, cached):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cached}\n")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 1,000 bytes free; what its files say is up to the test."""
    monkeypatch.setattr(psutil, "virtual_memory", type("Memory", (), {"available": 1000}))
    (tmp_path / "proc/self").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(("line", "controller", "names"), [V2, V1], ids=["v2", "v1"])
def test_a_control_group_that_leaves_less_counts(machine, line, controller, names):
    (machine / "proc/self/cgroup").write_text(line)
    group(machine / "sys/fs/cgroup" / controller / "job/step", names, 500, 300, 40)
    assert free_memory(machine) == (240, "the memory that the control group (cgroup) leaves free")


@pytest.mark.parametrize(("line", "controller", "names"), [V2, V1], ids=["v2", "v1"])
def test_a_group_above_counts_too_and_so_does_the_mount(machine, line, controller, names):
    (machine / "proc/self/cgroup").write_text(line)
    folder = machine / "sys/fs/cgroup" / controller
    group(folder / "job/step", names, 500, 300, 0)
    group(folder / "job", names, 600, 450, 0)
    assert free_memory(machine)[0] == 150
    group(folder, names, 700, 600, 0)
    assert free_memory(machine)[0] == 100


@pytest.mark.parametrize("limit", ["max", 2**63 - 4096])
def test_no_limit_is_the_machines(machine, limit):
    (machine / "proc/self/cgroup").write_text(V2[0])
    group(machine / "sys/fs/cgroup/job/step", V2[2], limit, 300, 0)
    assert free_memory(machine) == (1000, "the free memory")


def test_without_control_groups_it_is_the_machines(machine):
    assert free_memory(machine) == (1000, "the free memory")


def test_a_group_that_is_full_leaves_nothing(machine):
    (machine / "proc/self/cgroup").write_text(V2[0])
    group(machine / "sys/fs/cgroup/job", V2[2], 100, 120, 0)
    assert free_memory(machine)[0] == 0
