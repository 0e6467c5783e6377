"""Datasets of the user's own that raise, end the program, lie, or change."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .case import EITHER, LOADED, REFUSED, Case

_HEAD = """
import os, random, sys
import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

def tensors(seed, n=6):
    draw = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(n, 3, generator=draw), torch.arange(n))

class Own(Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, at):
        return self.sample(torch.randn(3, generator=torch.Generator().manual_seed(at)), at)
    def sample(self, x, at):
        return x, at

class Ends(BaseException):
    pass
"""

_LENGTHS = {
    "ends the program": "sys.exit(0)",
    "raises": "raise OSError('gone')",
    "raises what ends programs": "raise Ends('now')",
    "-1": "return -1",
    "2^80": "return 2**80",
    "a float": "return 2.5",
    "none": "return None",
    "more than there are": "return 10",
}

_SAMPLES = {
    "ends the program": "sys.exit(0)",
    "raises": "raise OSError('gone')",
    "raises without words": "raise ValueError",
    "raises what ends programs": "raise Ends('now')",
    "raises at the last": "return (x, at) if at < 5 else {}['x']",
    "recurses": "return self.sample(x, at)",
    "none": "return None",
    "one": "return x",
    "three": "return x, at, at",
    "text": "return 'xy'",
    "text of both": "return 'x', 'y'",
    "a dictionary": "return {'x': x, 'y': at}",
    "a dictionary of x": "return {'x': x}, at",
    "none for x": "return None, at",
    "objects": "return np.array([object()]), at",
    "strings": "return np.array(['a']), at",
    "dates": "return np.datetime64('2020-01-01'), at",
    "complex x": "return x + 1j, at",
    "complex y": "return x, 1j",
    "sparse x": "return x.to_sparse(), at",
    "compressed x": "return x[None].to_sparse_csr(), at",
    "quantized x": "return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), at",
    "nested x": "return torch.nested.nested_tensor([x, x]), at",
    "x without memory": "return x.to('meta'), at",
    "unsigned 64 bits": "return (x * 9).abs().to(torch.uint64), at",
    "floats of 8 bits": "return x.to(torch.float8_e4m3fn), at",
    "ragged x": "return torch.ones(1 + at % 2), at",
    "empty x": "return x[:0], at",
    "10^12 numbers": "return x[:1].expand(10**12), at",
    "65 axes": "return x.reshape((3,) + (1,) * 63), at",
    "NaN in x": "return x / 0 * 0, at",
    "NaN in y": "return x, float('nan')",
    "infinity in y": "return x, float('inf')",
    "y of 2^70": "return x, 2**70",
    "floats above float32": "return x.double() + 1e300, at",
    "all the same": "return torch.ones(3), at",
    "noise": "return x + torch.rand(3), at",
    "noise in y": "return x, random.random()",
    "noise at times": "return x + (random.random() < 0.5), at",
    "noise later": "self.n = getattr(self, 'n', 0) + 1; return x + self.n // 6, at",
    "a sample that writes into itself": "self.x = getattr(self, 'x', x).add_(1); return self.x, at",
    "another folder": "os.chdir('/'); return x, at",
}
"""What a sample of the validation split does. Refused, all of them but the last."""

_GOOD = {
    "of two types": "return (x if at % 2 else x.double()), at",
    "with a history": "return x.clone().requires_grad_(), at",
    "of brain floats": "return x.bfloat16(), torch.tensor(1.0).bfloat16()",
    "of half floats": "return x.half(), at",
    "of bytes": "return (x * 9).to(torch.int8), at",
    "of numpy": "return x.numpy(), np.int32(at)",
    "of numpy numbers": "return np.float32(at), True",
    "in lists": "return [x, at]",
    "of subclasses": "return torch.nn.Parameter(x), at",
    "of conjugates": "return torch.complex(x, x).conj().imag, at",
    "of turned strides": "return torch.stack([x, x + 1]).t(), at",
    "of columns": "return x[:, None].expand(3, 2), at",
}

_FACTORIES = {
    "ends the program": "sys.exit(0)",
    "raises": "raise KeyError('root')",
    "raises what ends programs": "raise Ends('now')",
    "none": "return None",
    "a list": "return [tensors(0), tensors(1)]",
    "an empty dictionary": "return {}",
    "other names": "return {'calibration': tensors(0), 'test': tensors(1)}",
    "numbers for names": "return {0: tensors(0), 1: tensors(1)}",
    "names with escapes": "return {'\\x1b[31m' * 9999: tensors(0)}",
    "one split": "return {'validation': tensors(0)}",
    "a none": "return {'calibration': tensors(0), 'validation': None}",
    "a number": "return {'calibration': tensors(0), 'validation': 3}",
    "a class": "return {'calibration': tensors(0), 'validation': Own}",
    "a generator": "return {'calibration': tensors(0), 'validation': (i for i in range(3))}",
    "a stream": "return {'calibration': tensors(0), 'validation': IterableDataset()}",
    "a dictionary": "return {'calibration': tensors(0), 'validation': {0: (1.0, 1)}}",
    "text": "return {'calibration': tensors(0), 'validation': 'text'}",
    "an empty list": "return {'calibration': tensors(0), 'validation': []}",
    "one data set for both": "a = tensors(0); return {'calibration': a, 'validation': a}",
}

_BATCHED = {
    "none": "return None",
    "too few": "return [(torch.ones(3), 1)]",
    "too many": "return [(torch.rand(3), 1)] * 99",
    "a generator that raises": "return (1 / 0 for _ in range(6))",
    "the end of the program": "sys.exit(1)",
}


def _factory(folder: Path, body: str) -> dict[str, Any]:
    text = f"{_HEAD}\ndef factory():\n{textwrap.indent(body, '    ')}\n"
    (folder / "own.py").write_text(text)
    return {"factory": "own.py:factory"}


def _method(folder: Path, head: str, body: str) -> dict[str, Any]:
    return _factory(
        folder,
        f"class It(Own):\n    def {head}:\n        {body}\n"
        "return {'calibration': tensors(99), 'validation': It()}",
    )


def _other_form(folder: Path, body: str) -> dict[str, Any]:
    """Both splits of the same form, with other values."""
    return _factory(
        folder,
        f"class It(Own):\n    def sample(self, x, at):\n        {body}\n"
        "class Other(It):\n    def sample(self, x, at):\n"
        "        return super().sample(x + 7, at + 7)\n"
        "return {'calibration': Other(), 'validation': It()}",
    )


def kinds() -> Iterator[Case]:
    """All kinds, each once."""
    for name, body in _FACTORIES.items():
        yield Case(f"factory: {name}", lambda f, b=body: _factory(f, b))
    for name, body in _LENGTHS.items():
        yield Case(
            f"length: {name}",
            lambda f, b=body: _method(f, "__len__(self)", b),
            # Own gives a sample at any position.
            EITHER if "more" in name else REFUSED,
        )
    for name, body in _SAMPLES.items():
        yield Case(
            f"sample: {name}",
            lambda f, b=body: _method(f, "sample(self, x, at)", b),
            LOADED if "folder" in name or "all the same" in name else REFUSED,
        )
    for name, body in _BATCHED.items():
        yield Case(
            f"batched: {name}", lambda f, b=body: _method(f, "__getitems__(self, positions)", b)
        )
    for name, body in _GOOD.items():
        yield Case(f"samples {name}", lambda f, b=body: _other_form(f, b), LOADED)
