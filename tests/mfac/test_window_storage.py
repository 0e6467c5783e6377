"""Windows on disk, and the memory that a build needs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mfac_compress.mfac.fisher import invert
from mfac_compress.mfac.partition import BlockPartition
from mfac_compress.mfac.window import GradientWindow

_BUILD = """
import torch
from mfac_compress.mfac import fisher_of, invert

def memory(field):
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

torch.set_num_threads(1)
invert(fisher_of(torch.randn(128, 2048)))
idle = memory("VmRSS")
G = torch.empty(128, 300_000, dtype=torch.{dtype})
for row in G:
    row.copy_(torch.randn(300_000))
invert(fisher_of(G))
print((memory("VmHWM") - idle) / G.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's VmHWM")
def test_a_full_build_needs_little_beside_the_window():
    child = [sys.executable, "-c", _BUILD.format(dtype="float32")]
    answer = subprocess.run(child, check=True, capture_output=True, text=True, timeout=120)
    assert float(answer.stdout) < 1.15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block_size", [None, 1500])
def test_a_window_on_disk_gives_the_same_inverse(tmp_path, gradients, dtype, block_size):
    G, partition = gradients(20, 4000), BlockPartition.contiguous(4000, block_size)
    inverses = []
    for folder in (None, tmp_path):
        window = GradientWindow(20, partition, dtype, folder=folder)
        for part in G.split(7):
            window.add(part)
        inverses.append(invert(window, 1e-4))
    memory, disk = inverses
    x, mask = torch.randn(4000), torch.rand(4000) > 0.5

    torch.testing.assert_close(disk.diagonal(), memory.diagonal())
    torch.testing.assert_close(disk.ihvp(x), memory.ihvp(x))
    torch.testing.assert_close(disk.joint_update(x, mask), memory.joint_update(x, mask))


def test_a_window_on_disk_is_copied_in_small_parts(tmp_path, gradients):
    G, partition = gradients(40, 100), BlockPartition.contiguous(100, None)
    window = GradientWindow(40, partition, folder=tmp_path)
    window.add(G)
    other = GradientWindow(40, partition)
    parts = list(window.parts())
    for part in parts:
        other.add_part(part)

    assert max(len(part["gradients"]) for part in parts) <= 16
    assert torch.equal(torch.cat([part["gradients"] for part in other.parts()]), G)


def test_the_file_leaves_nothing_behind(tmp_path):
    window = GradientWindow(4, BlockPartition.contiguous(100, None), folder=tmp_path)
    window.add(torch.ones(4, 100))

    assert not list(tmp_path.iterdir())
    assert sum(part["gradients"].sum() for part in window.parts()) == 400


def test_a_folder_that_is_too_small_is_refused(tmp_path):
    with pytest.raises(ValueError, match="GB free"):
        GradientWindow(1 << 20, BlockPartition.contiguous(1 << 40, None), folder=tmp_path)
    assert not list(tmp_path.iterdir())
