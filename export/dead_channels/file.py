"""Take dead channels out of an ONNX file, and compare it with the file before."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from mfac_compress.export.dead_channels.removal import Kept, remove_dead_channels
from mfac_compress.export.names import feeds
from mfac_compress.export.replace import replace_model
from mfac_compress.export.session import open_session
from mfac_compress.export.shapes import with_shapes
from mfac_compress.mfac.batch import Tree

_LARGEST_DIFFERENCE = 1e-4
"""Share of the largest output. Sums in another order differ by a thousandth of it."""


def shrink_file(path: str | os.PathLike[str], example: Tree, *, round_to: int) -> Kept:
    """Take dead channels out of an ONNX file.

    Args:
        path: Replaced by the smaller file, if there is anything to take out.
        example: Inputs of the file, with which both are run. Each of shape ``[n, ...]``.
        round_to: As for :func:`remove_dead_channels`.

    Returns:
        What is left of each initializer that was cut.

    Raises:
        ValueError: If the smaller file computes something else. The file is not changed.
    """
    path = Path(path)
    model = with_shapes(ir.load(path))
    kept = remove_dead_channels(model, round_to=round_to)
    if kept:
        expected = _outputs(path, example)
        replace_model(model, path, lambda draft: _check(draft, expected, example))
    return kept


def _check(draft: Path, expected: dict[str, np.ndarray], example: Tree) -> None:
    onnx.checker.check_model(draft)
    for name, output in _outputs(draft, example).items():
        before = expected[name].astype(np.float64)
        largest = float(np.abs(before).max(initial=0))
        if not np.allclose(
            output, before, rtol=0, atol=_LARGEST_DIFFERENCE * max(largest, 1e-2), equal_nan=True
        ):
            difference = float(np.abs(output - before).max())
            raise ValueError(
                "A file without its dead channels must compute what it did before. Output "
                f"{name!r} differs by {difference:.3g}, where the largest is {largest:.3g}. Set "
                "export.remove_dead: false, and report the model."
            )


def _outputs(path: Path, example: Tree) -> dict[str, np.ndarray]:
    session = open_session(path)
    arrays = feeds(example, [one.name for one in session.get_inputs()])
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(arrays)), strict=True))
