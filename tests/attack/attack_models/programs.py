"""Hostile programs of torch.export: every text of a real one is a place to hide code in."""

import copy
import io
import json
import random
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attack_models.case import (
    CODE,
    EITHER,
    LOADED,
    MARK,
    REFUSED,
    Case,
    packed,
    unpacked,
    written,
)

_MODEL = "program/models/model.json"
_WEIGHTS = "program/data/weights/model_weights_config.json"
_CONSTANTS = "program/data/constants/model_constants_config.json"
_SAMPLES = "program/data/sample_inputs/model.pt"
_SECTION: dict[str, Any] = {}

SHELL = f"touch {MARK}"
PAYLOADS = (
    CODE,
    f"[{CODE}, Symbol('s0', positive=True, integer=True)][1]",
    f"x\n    {CODE}\n    y",
    f'x", {CODE}, "y',
    f"x'+str({CODE})+'y",
    f"x={CODE}, y",
    f"x={CODE}",
    f"x=open('{MARK}', 'w')",
    f"x\") or open('{MARK}', 'w') or getattr(self, \"x",
    f"x): {CODE}; (y",
    "9**9**9**9",
    "Pow(Integer(9), Pow(Integer(9), Integer(99)))",
    "torch.os.system",
    "torch.ops.load_library",
    "_operator.methodcaller",
    "__class__.__base__.training",
    "../../x",
    "x\\y",
    "\x1b[31m\u202e",
    "x" * 100_000,
)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 4), nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf, 0.0]), persistent=False)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.gelu(self.norm(self.first(x)), approximate="tanh")
        x = torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))
        x = self.last(x.reshape(x.shape[0] * 2, -1).reshape(-1, 4))
        return x * self.scale + torch.tensor([1.0, 2.0, 3.0]) + self.mask.isinf()


@cache
def base() -> bytes:
    """A real program: batch norm, a branch, sizes that are computed, buffers, constants."""
    torch.manual_seed(0)
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            _Net().eval(), (torch.randn(3, 8),), dynamic_shapes=({0: batch},)
        )
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    return packed(
        {f"program/{k.partition('/')[2]}": v for k, v in unpacked(buffer.getvalue()).items()}
    )


def _case(name: str, change: Callable[[dict[str, Any]], None], expected=REFUSED, record=_MODEL):
    """A program whose JSON was changed."""

    def make(folder: Path) -> Path:
        records = unpacked(base())
        said = json.loads(records[record])
        change(said)
        records[record] = json.dumps(said).encode()
        return written("program.pt2", packed(records))(folder)

    return Case(f"program: {name}", make, expected, _SECTION)


def _records(name: str, change: Callable[[dict[str, bytes]], Any], expected=REFUSED, **options):
    """A program whose archive was changed."""

    def make(folder: Path) -> Path:
        records = unpacked(base())
        changed = change(records)
        return written("program.pt2", packed(records if changed is None else changed, **options))(
            folder
        )

    return Case(f"program: {name}", make, expected, _SECTION)


def _expression(text: str) -> Callable[[dict[str, Any]], None]:
    def change(said: dict[str, Any]) -> None:
        for place, value in _leaves(said):
            if place[-1] == "expr_str":
                _set(said, place, text if isinstance(value, str) else value)

    return change


def _call(target: str, *arguments: Any) -> Callable[[dict[str, Any]], None]:
    """Let the first node call something else, on texts."""

    def change(said: dict[str, Any]) -> None:
        node = said["graph_module"]["graph"]["nodes"][0]
        node["target"] = target
        node["inputs"] = [{"name": "", "arg": {"as_string": text}, "kind": 1} for text in arguments]

    return change


def _renamed(old: str, payload: str) -> Case:
    """A program in which a name is code wherever it stands, so that all names fit together."""

    def make(folder: Path) -> Path:
        records = unpacked(base())
        for record in (_MODEL, _WEIGHTS, _CONSTANTS):
            said = json.loads(records[record])
            _rename(said, old, payload)
            records[record] = json.dumps(said).encode()
        return written("program.pt2", packed(records))(folder)

    return Case(f"program: {old} is {payload[:30]!r}", make, REFUSED, _SECTION)


def _set_signature(**texts: Any) -> Callable[[dict[str, Any]], None]:
    def change(said: dict[str, Any]) -> None:
        said["graph_module"]["module_call_graph"][0]["signature"].update(texts)

    return change


def _tree(kind: str, context: Any) -> str:
    leaf = {"type": None, "context": None, "children_spec": []}
    return json.dumps([1, {"type": kind, "context": context, "children_spec": [leaf]}])


def kinds() -> Iterator[Case]:
    """Every known way to run code, once; and other things that a program must not do."""
    yield _records("as it was written", lambda records: None, LOADED)
    bad = {
        "expression that calls": PAYLOADS[1],
        "expression that never ends": "9**9**9**9",
        "tower of powers": "Pow(" * 30 + "Integer(9)" + ", Integer(8))" * 30,
        "sum of sums": "Mul(" + ", ".join(
            f"Add(Symbol('s{i}', real=True), Symbol('s{i + 50}', real=True))" for i in range(40)
        ) + ")",
        "deep expression": "Add(" * 95 + "Integer(1)" + ")" * 95,
        "factorial": "factorial(Integer(99999999))",
        "a lambda": "(lambda: 1)()",
        "an attribute": "Integer(1).__class__",
    }  # fmt: skip
    for name, text in bad.items():
        yield _case(name, _expression(text))
    for old in ("gelu", "x", "p_first_weight", "first.weight", "true_graph_0"):
        for number in (2, 5, 6, 7, 8):
            yield _renamed(old, PAYLOADS[number])
    for target, *arguments in (
        ("torch.os.system", SHELL),
        ("torch.ops.load_library", "./evil.so"),
        ("torch.hub.load", "a/b", "c"),
        ("torch.serialization.load", "evil.pt"),
        ("torch._dynamo.utils.eval", CODE),
        ("torch.ops.aten.save.default", "x", MARK),
        ("torch.ops.aten.from_file.default", MARK),
        ("torch.ops.aten._print.default", "x"),
        ("torch.ops.aten.set_.source_Storage", "x"),
        ("torch.ops.prim.Print.default", "x"),
        ("torch.ops.higher_order.while_loop", "x"),
        ("torch.ops.__class__", "x"),
        ("torch.ops.aten.__class__.default", "x"),
        ("torch.ops.aten.relu.__call__", "x"),
        ("_operator.methodcaller", "x"),
        ("_operator.call", "x"),
        ("_operator.attrgetter", "x"),
        ("math.factorial", "x"),
        ("#inductor:x", "x"),
        (CODE, "x"),
    ):
        yield _case(f"call of {target[:40]}", _call(target, *arguments))
    yield _case("a power", _call("_operator.pow"))
    modules = {"default_factory_module": "attack", "default_factory_name": "x", "dict_context": []}
    enum = json.dumps({"__enum__": True, "fqn": "os:system", "name": SHELL})
    for where in ("in_spec", "out_spec"):
        yield _case(
            f"{where} that imports", _set_signature(**{where: _tree("builtins.dict", enum)})
        )
        default = _tree("collections.defaultdict", json.dumps(modules))
        yield _case(f"{where} with a factory", _set_signature(**{where: default}))
        named = _tree("builtins.dict", json.dumps([PAYLOADS[2]]))
        yield _case(f"{where} with a key of code", _set_signature(**{where: named}))
    yield _case("argument of code", _set_signature(forward_arg_names=[PAYLOADS[5]]))
    yield _case("a guard of code", lambda s: s.update(guards_code=[CODE]), LOADED)
    yield _case("verifier", lambda s: s.update(verifiers=[CODE]))
    yield _case(
        "symbols without end",
        lambda s: s["range_constraints"].update(u99999999999={"min_val": 0, "max_val": 1}),
    )
    huge = {"as_int": 2**40}
    yield _case(
        "tensor larger than its record",
        lambda s: s["config"]["first.weight"]["tensor_meta"].update(sizes=[huge, huge]),
        record=_WEIGHTS,
    )
    yield _case(
        "tensor that repeats itself",
        lambda s: s["config"]["first.weight"]["tensor_meta"].update(
            sizes=[huge, {"as_int": 8}], strides=[{"as_int": 0}, {"as_int": 1}]
        ),
        record=_WEIGHTS,
    )
    for record, first in ((_WEIGHTS, "first.weight"), (_CONSTANTS, None)):
        for payload in ("opaque_obj_0", "custom_obj_0", "../sample_inputs/model.pt"):
            yield _case(
                f"{payload} among {record.rpartition('/')[2]}",
                lambda s, p=payload, f=first: next(
                    iter(s["config"].values()) if f is None else iter([s["config"][f]])
                ).update(path_name=p),
                record=record,
            )
        yield _case(
            f"pickled tensor in {record.rpartition('/')[2]}",
            lambda s: next(iter(s["config"].values())).update(use_pickle=True),
            record=record,
        )
    yield from _archives()


def _archives() -> Iterator[Case]:
    bomb = f"cposix\nsystem\n(V{SHELL}\ntR.".encode()
    yield _records("pickled samples", lambda r: r.update({_SAMPLES: bomb}), LOADED)
    yield _records("legacy weights", lambda r: r.update({"program/data/weights/model.pt": bomb}))
    yield _records(
        "compiled library", lambda r: r.update({"program/data/aotinductor/model/a.so": b"\x7fELF"})
    )
    yield _records("second model", lambda r: r.update({"program/models/other.json": r[_MODEL]}))
    yield _records("two folders", lambda r: r.update({"other/models/model.json": r[_MODEL]}))
    yield _records("backslash", lambda r: r.update({"program\\models\\x": b""}))
    yield _records("way out of the folder", lambda r: r.update({"program/../x": b""}))
    yield _records("other format", lambda r: r.update({"program/archive_format": b"zip"}))
    yield _records("big-endian", lambda r: r.update({"program/byteorder": b"big"}))
    yield _records("no weights", lambda r: r.pop(_WEIGHTS) and None)
    yield _records("compressed", lambda r: None, compression=zipfile.ZIP_DEFLATED)
    yield _records(
        "compressed zeros",
        lambda r: r.update({"program/data/weights/weight_0": bytes(2**28)}),
        compression=zipfile.ZIP_DEFLATED,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield _records("record twice", lambda r: [*r.items(), (_MODEL, b"{}")])
    yield Case("program: wrong checksum", _broken_checksum, REFUSED, _SECTION)
    yield Case("program: encrypted", _encrypted, REFUSED, _SECTION)


def _broken_checksum(folder: Path) -> Path:
    content = bytearray(base())
    weight = unpacked(base())["program/data/weights/weight_0"]
    content[bytes(content).index(weight)] ^= 1
    return written("program.pt2", bytes(content))(folder)


def _encrypted(folder: Path) -> Path:
    content = bytearray(base())
    start = content.rindex(b"PK\x01\x02")
    content[start + 8] |= 1
    return written("program.pt2", bytes(content))(folder)


def hidden(seed: int) -> Case:
    """Code in one text or key of a program, at random."""
    draw = random.Random(seed)
    record = draw.choice((_MODEL, _MODEL, _MODEL, _WEIGHTS, _CONSTANTS))
    payload = draw.choice(PAYLOADS)

    def change(said: dict[str, Any]) -> None:
        texts = [(place, value) for place, value in _leaves(said) if isinstance(value, str)]
        place, old = draw.choice(texts)
        if draw.random() < 0.3:  # everywhere that this text stands, so that names still fit
            _rename(said, old, payload)
        else:
            _set(said, place, payload)

    return _case(f"hidden code {seed}", change, EITHER, record)


def damaged(seed: int) -> Case:
    """A program with values of other kinds, things missing, or broken bytes, at random."""
    draw = random.Random(seed)
    if draw.random() < 0.3:
        return Case(
            f"program: broken bytes {seed}",
            written("program.pt2", broken(base(), draw)),
            EITHER,
            _SECTION,
        )
    record = draw.choice((_MODEL, _MODEL, _WEIGHTS, _CONSTANTS))

    def change(said: dict[str, Any]) -> None:
        for _ in range(draw.choice((1, 1, 1, 3))):
            place, _ = draw.choice(list(_nodes(said)))
            if place:
                _damage(said, place, draw)

    return _case(f"damaged {seed}", change, EITHER, record)


def broken(content: bytes, draw: random.Random) -> bytes:
    """Bytes with some flipped, cut out, repeated, or cut off."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 2, 8, 64))):
        at = draw.randrange(len(changed))
        match draw.randrange(5):
            case 0:
                changed[at] ^= 1 << draw.randrange(8)
            case 1:
                changed[at] = draw.choice((0, 0x7F, 0x80, 0xFF))
            case 2:
                del changed[at : at + draw.choice((1, 4, 100))]
            case 3:
                changed[at:at] = changed[at : at + draw.choice((1, 8, 64))]
            case 4:
                width = draw.choice((2, 4, 8))
                changed[at : at + width] = draw.choice((0, 1, 2**31, 2**63)).to_bytes(8, "little")[
                    :width
                ]
    if draw.random() < 0.1:
        del changed[draw.randrange(len(changed)) :]
    return bytes(changed) or b"\0"


def _damage(said: Any, place: tuple[Any, ...], draw: random.Random) -> None:
    owner = _get(said, place[:-1])
    if not isinstance(owner, dict | list) or (isinstance(owner, list) and place[-1] >= len(owner)):
        return
    if isinstance(owner, dict) and place[-1] not in owner:
        return
    value = owner[place[-1]]
    match draw.randrange(6):
        case 0:
            del owner[place[-1]]
        case 1:
            owner[place[-1]] = draw.choice((None, [], {}, "", "x", True, 1.5, -1, 0, {"x": 1}))
        case 2:
            owner[place[-1]] = draw.choice((2**31, 2**40, 2**62, 2**70, -(2**63), 10**400))
        case 3:
            owner[place[-1]] = [value, value]
        case 4:
            nested: Any = value
            for _ in range(draw.choice((2, 100, 300))):
                nested = [nested]
            owner[place[-1]] = nested
        case 5:
            others = [other for _, other in _nodes(said) if type(other) is type(value)]
            owner[place[-1]] = copy.deepcopy(draw.choice(others))


def _nodes(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    yield place, value
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield from _nodes(inner, (*place, key))


def _leaves(said: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    return ((p, v) for p, v in _nodes(said) if not isinstance(v, dict | list))


def _get(said: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        said = said[key]
    return said


def _set(said: Any, place: tuple[Any, ...], value: Any) -> None:
    _get(said, place[:-1])[place[-1]] = value


def _rename(said: Any, old: str, new: str) -> None:
    for place, value in list(_nodes(said)):
        if isinstance(value, dict) and old in value:
            value[new] = value.pop(old)
        elif isinstance(value, str) and value == old:
            _set(said, tuple(new if key == old else key for key in place), new)
