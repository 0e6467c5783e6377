"""Calibration samples as an ONNX file takes them: arrays by name, in batches of the file's size."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mfac_compress.export import open_session
from mfac_compress.export.names import Feeds, feeds
from mfac_compress.export.session import fill, fixed_batch
from mfac_compress.mfac.batch import Tree
from mfac_compress.pipeline.inputs.calibration import CalibrationData

_BATCH = 32


def drawn_feeds(
    path: Path, calibration: CalibrationData, purpose: str, samples: int
) -> Iterator[Feeds]:
    """Samples that are not held out, drawn at random, the same for one purpose.

    Args:
        path: The file.
        calibration: Has the samples.
        purpose: Names the draw.
        samples: How many.
    """
    return _feeds(path, lambda size: calibration.drawn_inputs(purpose, samples, size))


def held_out_feeds(path: Path, calibration: CalibrationData, most: int) -> Iterator[Feeds]:
    """Held-out samples.

    Args:
        path: The file.
        calibration: Has the samples.
        most: Number of them beyond which the others are left out.
    """
    held = calibration.draws.holdout[:most]
    return _feeds(path, lambda size: (one.inputs for one in calibration.batches(size, held)))


def _feeds(path: Path, batches: Callable[[int], Iterable[Tree]]) -> Iterator[Feeds]:
    session = open_session(path)
    fixed, names = fixed_batch(session), [one.name for one in session.get_inputs()]
    for inputs in batches(fixed or _BATCH):
        yield {name: fill(array, fixed) for name, array in feeds(inputs, names).items()}
