"""Hostile checkpoints: pickles, safetensors, and what lies in them."""

import io
import json
import os
import pickle
import random
import socket
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from attack_models.case import (
    EITHER,
    FACTORY,
    LOADED,
    MARK,
    REFUSED,
    Case,
    packed,
    unpacked,
    written,
)
from attack_models.programs import broken

_SECTION = {"factory": "net.py:net"}
SHELL = f"touch {MARK}"


@cache
def state() -> dict[str, torch.Tensor]:
    """Weights that fit the factory."""
    torch.manual_seed(0)
    source: dict[str, Any] = {}
    exec(FACTORY, source)
    return source["net"]().state_dict()


def saved(content: Any, **options: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _held(name: str, content: Callable[[], Any], expected=REFUSED, **section: Any) -> Case:
    """A checkpoint of some object."""

    def make(folder: Path) -> Path:
        return written("model.pt", saved(content()))(folder)

    return Case(f"checkpoint: {name}", make, expected, _SECTION | section)


def _with(**tensors: Any) -> Callable[[], dict[str, Any]]:
    return lambda: state() | {name.replace("_", ".", 1): value for name, value in tensors.items()}


def _as(convert: Callable[[torch.Tensor], Any]) -> Callable[[], dict[str, Any]]:
    return lambda: {name: convert(value) for name, value in state().items()}


def _containing_itself() -> dict[str, Any]:
    outer: dict[str, Any] = {}
    outer["model"] = outer
    return outer


def _deep(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = dict(state())
    for _ in range(depth):
        inner = {"model": inner}
    return inner


def _doubled() -> Any:
    value: Any = (torch.zeros(1),)
    for _ in range(60):
        value = (value, value)
    return {"state_dict": state(), "ema_of_what": value}


class Bomb:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, (SHELL,)


def kinds() -> Iterator[Case]:
    """Every kind once."""
    net = nn.Linear(8, 4)
    yield _held("as it was written", state, LOADED)
    yield _held(
        "floats of half the width", _as(lambda t: t.half() if t.is_floating_point() else t), LOADED
    )
    yield _held(
        "floats of twice the width",
        _as(lambda t: t.double() if t.is_floating_point() else t),
        LOADED,
    )
    yield _held("complex", _as(lambda t: t.to(torch.complex64)))
    yield _held("integers", _as(lambda t: t.to(torch.int64)))
    yield _held("truth values", _as(lambda t: t.bool()))
    yield _held("small floats", _as(lambda t: t.to(torch.float8_e4m3fn)))
    yield _held("without values", _as(lambda t: t.to("meta")))
    yield _held("sparse", _with(**{"0_weight": torch.zeros(4, 8).to_sparse()}))
    yield _held("compressed rows", _with(**{"0_weight": torch.zeros(4, 8).to_sparse_csr()}))
    nested = torch.nested.nested_tensor([torch.zeros(4), torch.zeros(8)])
    yield _held("nested", _with(**{"0_weight": nested}))
    quantised = torch.quantize_per_tensor(torch.zeros(4, 8), 0.1, 0, torch.qint8)
    yield _held("quantised", _with(**{"0_weight": quantised}))
    yield _held("repeated", _with(**{"0_weight": torch.zeros(1, 1).expand(2**30, 2**30)}))
    yield _held("not finite", _with(**{"0_bias": torch.full((4,), torch.nan)}))
    yield _held("statistics that are not finite", _with(**{"1_running.var": torch.ones(1)}))
    yield _held("of no dimension", _with(**{"0_bias": torch.zeros(())}))
    yield _held("empty tensor", _with(**{"0_bias": torch.zeros(0)}))
    yield _held("empty", dict)
    yield _held("a list", lambda: [state()])
    yield _held("names that are numbers", lambda: dict(enumerate(state().values())))
    yield _held("long name", _with(**{"x" * 300: torch.zeros(1)}))
    yield _held("names of terminals", _with(**{"\x1b[31m\n\u202e": torch.zeros(1)}))
    yield _held("containing itself", _containing_itself)
    yield _held("deep", lambda: _deep(300), LOADED)
    yield _held("doubled sixty times", _doubled, EITHER)
    yield _held("averages beside it", lambda: {"model": state(), "ema": state()})
    yield _held(
        "lists of averages", lambda: {"model": state(), "shadow_params": list(state().values())}
    )
    yield _held("chosen average", lambda: {"model": state(), "ema": state()}, LOADED, weights="ema")
    yield _held("key that is not there", lambda: {"model": state()}, weights="ema")
    yield _held("key of no weights", lambda: {"model": state(), "epoch": 3}, weights="epoch.x")
    yield _held("prefix", lambda: {f"a.b.{k}": v for k, v in state().items()}, LOADED)
    yield _held("prefix that is not there", state, prefix="x.")
    yield _held("whole module", lambda: net)
    yield _held("command", lambda: {"state_dict": state(), "args": Bomb()})
    yield from _files()


def _files() -> Iterator[Case]:
    records = unpacked(saved(state()))
    yield Case("file: half a gigabyte of zeros", _zeros, REFUSED, _SECTION)
    for name, content in {
        "compressed": packed(records, compression=zipfile.ZIP_DEFLATED),
        "an archive of nothing": packed({}),
        "an archive of arrays": packed({"x.npy": b"\x93NUMPY\x01\x00"}),
        "command in the old format": f"cposix\nsystem\n(V{SHELL}\ntR.".encode(),
        "array of nothing": pickle.dumps(bytearray(8)),
        "endless nesting": b"(" * 100_000,
        "ONNX by its name": b"\x08\x07",
        "web page": b"<!DOCTYPE html><html></html>",
        "text": b"these are no weights",
        "a byte": b"\0",
    }.items():
        suffix = "onnx" if name.startswith("ONNX") else "pt"
        yield Case(f"file: {name}", written(f"model.{suffix}", content), REFUSED, _SECTION)
    # Bytes for which a constructor asks for memory by a number in the file.
    for number in (2**31, 2**40, 2**62):
        asked = b"\x80\x02cbuiltins\nbytearray\n\x8a\x08" + number.to_bytes(8, "little") + b"\x85R."
        yield Case(f"file: {number} bytes asked", written("model.pt", asked), REFUSED, _SECTION)
    yield Case(
        "safetensors: as it was written", written("m.safetensors", save(state())), LOADED, _SECTION
    )
    for name, header in {
        "beyond the end": {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        "of wrong size": {"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}},
        "backwards": {"x": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}},
        "of unknown numbers": {"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
        "negative": {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        "of all": {"__metadata__": {"x": "y"}},
        "a list": [],
    }.items():
        content = _safetensors(json.dumps(header).encode(), bytes(16))
        yield Case(f"safetensors: {name}", written("m.safetensors", content), REFUSED, _SECTION)
    long = (2**62).to_bytes(8, "little") + b"{}"
    yield Case("safetensors: long header", written("m.safetensors", long), REFUSED, _SECTION)
    yield from _paths()


def _zeros(folder: Path) -> Path:
    """An archive of a few megabytes that says, truly, that it unpacks to 512 MiB."""
    path = written("model.pt", packed(unpacked(saved(state()))))(folder)
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("archive/data/99", "w", force_zip64=True) as record,
    ):
        for _ in range(16):
            record.write(bytes(2**25))
    return path


def _safetensors(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def _paths() -> Iterator[Case]:
    def pipe(folder: Path) -> Path:
        os.mkfifo(folder / "model.pt")
        return folder / "model.pt"

    def loop(folder: Path) -> Path:
        (folder / "model.pt").symlink_to("model.pt")
        return folder / "model.pt"

    def listening(folder: Path) -> Path:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(str(folder / "s"))
        return folder / "s"

    def directory(folder: Path) -> Path:
        (folder / "model.pt").mkdir()
        return folder / "model.pt"

    for name, make in {
        "pipe": pipe,
        "link to itself": loop,
        "socket": listening,
        "folder": directory,
        "missing": lambda folder: folder / "none.pt",
        "name of 300 characters": lambda folder: folder / ("n" * 300 + ".pt"),
        "endless device": lambda folder: Path("/dev/zero"),
        "name with NUL": lambda folder: folder / "a\0b.pt",
        "empty": written("model.pt", b""),
    }.items():
        yield Case(f"path: {name}", make, REFUSED, _SECTION)


_OPCODES = (
    *(
        b"cos\nsystem\n",
        b"cbuiltins\neval\n",
        b"ctorch\nload\n",
        b"ctorch._utils\n_rebuild_tensor\n",
    ),
    *(b"R", b"b", b"0", b"1", b"2", b"(", b")", b"}", b"]", b"t", b"d", b"e", b"s", b"u", b"\x81"),
    *(b"Vx\n", b"I99999999999\n", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"Q", b"N", b"\x88", b"."),
)


def damaged(seed: int) -> Case:
    """A checkpoint with broken bytes, other opcodes or another header, at random."""
    draw = random.Random(seed)
    match draw.randrange(4):
        case 0:
            name, content = "model.pt", broken(saved(state()), draw)
        case 1:
            old = saved(OrderedDict(state()), _use_new_zipfile_serialization=False)
            name, content = "model.pt", broken(old, draw)
        case 2:
            name, content = "model.safetensors", broken(save(state()), draw)
        case _:
            records = unpacked(saved({"state_dict": state(), "epoch": 3}))
            pickled = next(record for record in records if record.endswith("data.pkl"))
            changed = bytearray(records[pickled])
            for _ in range(draw.choice((1, 3, 10))):
                at = draw.randrange(len(changed))
                changed[at : at + draw.choice((0, 1))] = draw.choice(_OPCODES)
            records[pickled] = bytes(changed)
            name, content = "model.pt", packed(records)
    return Case(f"checkpoint: damaged {seed}", written(name, content), EITHER, _SECTION)
