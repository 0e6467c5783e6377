"""Hostile model files, which must be refused, or loaded as what they are.

``python tests/attack/models.py --count 400 --seed 1`` makes that many, loads each as a run does in
a process of its own, calls and copies what was loaded, compares it with its file if that is ONNX,
and ends with 1 where one was mishandled: it ran code, it neither loaded nor was refused, it was not
as expected, it wrote to the terminal, or it took more than 10 s or 2 GB.
"""

import copy
import os
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attack_models import checkpoints, onnx_files, programs
from attack_models.case import FACTORY, MARK, Case
from harness import attack, expected, in_process, write_to

SECONDS, BYTES = 10, 2_000_000_000
_LOADED, _REFUSED = 0, 2


def cases(seed: int) -> Iterator[Case]:
    """Every kind once, then damaged files at random, without an end.

    Args:
        seed: Of the random ones.
    """
    yield from programs.kinds()
    yield from checkpoints.kinds()
    yield from onnx_files.kinds()
    draw = random.Random(seed)
    while True:
        for make in (programs.hidden, programs.damaged, checkpoints.damaged, onnx_files.damaged):
            yield make(draw.getrandbits(32))


def prepare() -> None:
    """Do once what each process would have to do again: imports, and the program to change."""
    import torch

    import mfac_compress.pipeline.inputs.model_file  # noqa: F401

    torch.set_num_threads(1)
    programs.base()


def outcome(case: Case, folder: Path) -> str:
    """Load a case in a process of its own.

    Args:
        case: What to make.
        folder: Where; empty.
    Returns:
        ``loaded``, ``refused``, or what went wrong.
    """
    folder.mkdir(exist_ok=True)
    log = folder.parent / f"{folder.name}.log"

    def load() -> int:
        os.chdir(folder)
        (folder / "net.py").write_text(FACTORY)
        path = case.make(folder)
        write_to(log)  # only from here on: making one may warn
        return _load(case, path, folder)

    ended = in_process(load, log, seconds=SECONDS, most_bytes=BYTES)
    said = ended.said[-2000:]
    if (folder / MARK).exists():
        return f"ran code: {said}"
    if ended.excess:
        return ended.excess
    if ended.code in (_LOADED, _REFUSED):
        return said or ("loaded" if ended.code == _LOADED else "refused")
    return f"ended with {ended.code}: {said}"


def _load(case: Case, path: Path, folder: Path) -> int:
    import torch

    from mfac_compress.pipeline.errors import InputError
    from mfac_compress.pipeline.inputs.model_file import load_model
    from mfac_compress.pipeline.inputs.onnx_model import OnnxModel
    from mfac_compress.pipeline.recipe.schema import ModelSection

    try:
        model = load_model(path, ModelSection(**(case.section or {})), folder=folder)
    except InputError as error:
        text = str(error)
        assert len(text) < 5000, text
        assert text.isprintable(), ascii(text)
        return _REFUSED
    try:
        with warnings.catch_warnings():  # as a run does
            warnings.simplefilter("ignore")
            module = copy.deepcopy(model.module)
        if isinstance(model, OnnxModel):
            _compare(model, module)
        else:
            module(torch.randn(3, 8))
    except Exception:
        # A run tries the model out on its data and refuses it then.
        return _REFUSED
    return _LOADED


def _compare(model: Any, module: Any) -> None:
    """Compare what was loaded with its file, as a run does, and write a copy of that."""
    import torch

    from mfac_compress.export.from_onnx import check_outputs

    inputs = {}
    for each in module.inputs:
        shape = [3 if axis is None else axis for axis in each.shape or (3, 8)]
        if torch.Size(shape).numel() > 10**7:
            raise ValueError("too large for this machine")
        inputs[each.name] = (torch.rand(shape) * 2).to(each.dtype)
    check_outputs(model.converted, model.source, inputs)
    state = {name: tensor * 0.5 for name, tensor in module.state_dict().items()}
    model.write(state, Path("copy.onnx"), form=None, metadata={})


if __name__ == "__main__":
    sys.exit(
        attack(
            __doc__,
            cases,
            lambda case, folder: expected(outcome(case, folder), case),
            prepare=prepare,
        )
    )
