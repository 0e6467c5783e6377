"""Random changes of spoken words, given as the bytes of MFCC coefficients of MLPerf Tiny.

Ten coefficients describe a frame: the discrete cosine transform of its log energies in 40 mel
bands, without the fine structure. Turned back into energies, a word can be made louder, deeper or
noisier as if it had been recorded so.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_SCALE, _ZERO_POINT = 0.58470291, 83
"""A coefficient is (byte - zero point) * scale."""
_COEFFICIENTS, _BANDS = 10, 40
_SILENCE = np.log(1e-6)
"""Log energy of a band without sound."""

_order = np.arange(_COEFFICIENTS)[:, None]
_COSINES = np.cos(np.pi * _order * (np.arange(_BANDS) + 0.5) / _BANDS)
_TO_COEFFICIENTS = (2 / np.sqrt(2 * _BANDS)) * _COSINES.T
_TO_BANDS = np.where(_order == 0, 1, 2) * _COSINES / np.sqrt(2 * _BANDS)
"""Its inverse: shape ``[coefficients, bands]``."""


def changes() -> Callable[[Tensor], Tensor]:
    """Return a transform of one word, bytes ``[49, 10]`` of frames and coefficients."""
    return _changed


def _changed(word: Tensor) -> Tensor:
    """Move, stretch and colour a word, and put noise behind it."""
    coefficients = (_moved(word.numpy()) - _ZERO_POINT) * _SCALE
    bands = _coloured(coefficients @ _TO_BANDS)
    if np.random.random() < 0.3:
        bands = np.logaddexp(bands, _noise(len(bands)))
    found = np.maximum(bands, _SILENCE) @ _TO_COEFFICIENTS / _SCALE + _ZERO_POINT
    found += np.random.normal(size=found.shape) * np.where(_order[:, 0] == 0, 3, 1)
    return torch.from_numpy(np.clip(np.round(found), -128, 127)).to(word.dtype)


def _moved(word: np.ndarray) -> np.ndarray:
    """Speak up to 15% faster or slower, up to 10 frames (0.2 s) earlier or later.

    What this uncovers is like the first or the last frame: the room of the recording.
    """
    middle = (len(word) - 1) / 2
    speed, shift = np.exp(np.random.uniform(-0.15, 0.15)), np.random.uniform(-10, 10)
    return _interpolated(word, (np.arange(len(word)) - middle) * speed + middle + shift)


def _coloured(bands: np.ndarray) -> np.ndarray:
    """Move the pitch of the vocal tract by up to 10%, and change the loudness."""
    ratio = np.exp(np.random.uniform(-0.1, 0.1))
    return _interpolated(bands.T, np.arange(_BANDS) * ratio).T + 0.7 * np.random.normal()


def _noise(frames: int) -> np.ndarray:
    """Log energies of a hum or a hiss, from inaudible to loud. Shape ``[frames, bands]``."""
    level = np.random.uniform(-14, -2)
    colour = np.random.normal(size=4) * (1.5, 1.0, 0.7, 0.5) @ _COSINES[1:5]
    return level + colour + 0.5 * np.random.normal(size=(frames, 1))


def _interpolated(values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Take rows between rows; beyond the ends, the first and the last one."""
    positions = np.clip(positions, 0, len(values) - 1)
    before = np.minimum(positions.astype(int), len(values) - 2)
    share = (positions - before)[:, None]
    return values[before] * (1 - share) + values[before + 1] * share
