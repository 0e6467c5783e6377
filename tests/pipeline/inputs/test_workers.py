"""Other processes read the batches that one process reads, in the same order."""

import os
import random

import numpy as np
import pytest
import torch
from PIL import Image

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.data import load_data
from mfac_compress.pipeline.inputs.workers import read_in_order
from mfac_compress.pipeline.recipe.schema import FactoryData, ImageFolderData

BATCHES = [[0, 1], [2, 3], [4], [5, 6], [7, 8, 9]]


def _read(positions):
    return sum(positions), os.getpid()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_order_is_that_of_one_process(workers):
    found = list(read_in_order(_read, BATCHES, workers, fixed=True))
    assert [total for total, _ in found] == [sum(batch) for batch in BATCHES]
    processes = {process for _, process in found}
    assert (os.getpid() in processes) == (workers == 0)
    assert len(processes) <= max(workers, 1)


def test_a_few_batches_are_read_here():
    assert {p for _, p in read_in_order(_read, BATCHES[:3], 3, fixed=True)} == {os.getpid()}


@pytest.mark.parametrize("fixed", [True, False])
def test_random_numbers_of_this_process_are_left_alone_where_samples_are_fixed(fixed):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(read_in_order(_read, BATCHES, 2, fixed=fixed))
    assert torch.equal(torch.get_rng_state(), before) == fixed


def _draw(positions):
    return [(random.random(), np.random.rand(), torch.rand(()).item()) for _ in positions]


def test_samples_that_draw_random_numbers_draw_the_same_again_and_others_in_the_next_pass():
    passes = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        passes.append([list(read_in_order(_draw, BATCHES, 2, fixed=False)) for _ in range(2)])
    assert passes[0] == passes[1]
    assert passes[0] != passes[2]
    assert passes[0][0] != passes[0][1]


def _fails(error):
    def read(positions):
        if 5 in positions:
            raise error
        return positions

    return read


def test_an_error_is_said_as_it_was_without_a_traceback():
    with pytest.raises(InputError, match=r"^sample 5 is no image\.$"):
        list(read_in_order(_fails(InputError("sample 5 is no image.")), BATCHES, 2, fixed=True))
    with pytest.raises(ValueError, match="KeyError: 5") as refusal:
        list(read_in_order(_fails(KeyError(5)), BATCHES, 2, fixed=True))
    assert "Traceback" not in str(refusal.value)


def test_a_process_that_dies_is_said():
    def read(positions):
        if 5 in positions:
            os._exit(1)
        return positions

    with pytest.raises(InputError, match=r"data\.workers: the processes .* Lower it from 2"):
        list(read_in_order(read, BATCHES, 2, fixed=True))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split in ("calibration", "recovery", "validation"):
        for kind in ("a", "b"):
            (folder / split / kind).mkdir(parents=True)
            for number in range(6):
                pixels = rng.integers(256, size=(9, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / kind / f"{number}.png")
    return folder


def _images(folder, workers):
    splits = {name: {"path": name} for name in ("calibration", "recovery", "validation")}
    section = ImageFolderData(
        source="image_folder", workers=workers, augment={"crop": 2, "flip": True}, splits=splits
    )
    return load_data(section, folder=folder, needs_recovery=True).recovery


def test_images_are_the_same_with_any_number_of_processes(images):
    passes = []
    for workers in (0, 2):
        split, generator = _images(images, workers), torch.Generator().manual_seed(0)
        drawn = [
            list(split.batches(3, shuffle=True, augment=True, generator=generator))
            for _ in range(2)
        ]
        passes.append([batch for each in drawn for batch in each])
    assert _images(images, 0).fingerprint == _images(images, 2).fingerprint
    for one, other in zip(*passes, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)


def test_an_image_that_changes_meanwhile_is_named(images):
    split = _images(images, 2)
    file = images / "recovery" / "a" / "3.png"
    content = file.read_bytes()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(file)
    try:
        with pytest.raises(InputError, match=r"3\.png") as refusal:
            list(split.batches(3))
        assert "Traceback" not in str(refusal.value)
    finally:
        file.write_bytes(content)


def test_workers_count_where_samples_may_be_drawn_at_random(tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        "def splits():\n"
        "    x = torch.arange(30.).view(30, 1)\n"
        "    make = lambda part: TensorDataset(x[part], x[part, 0].long())\n"
        "    parts = slice(0, 10), slice(10, 20), slice(20, 30)\n"
        "    return dict(zip(('calibration', 'recovery', 'validation'), map(make, parts)))\n"
    )

    def recovery(workers):
        section = FactoryData(factory="own.py:splits", workers=workers)
        return load_data(section, folder=tmp_path, needs_recovery=True).recovery

    assert recovery(0).fingerprint == recovery(0).fingerprint != recovery(2).fingerprint
    one, two = (torch.cat([b.inputs for b in recovery(n).batches(2)]) for n in (0, 2))
    assert torch.equal(one, two)
