"""Hostile recipes and command lines: each must be refused with one message, or accepted.

``python tests/attack/recipes.py --count 600 --seed 1`` makes that many, gives each to the command
line with ``--dry-run``, and ends with 1 where one was mishandled: another exit code than 0 or 2,
another than was expected, a message that is not one or names no place, or more than 10 s.
"""

import argparse
import contextlib
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from mfac_compress.pipeline import compression  # noqa: F401 - slow, and so not in the first case
from mfac_compress.pipeline.cli import main
from mfac_compress.pipeline.recipe.schema import Recipe

SECONDS = 10
REFUSED, ACCEPTED = 2, 0
MODEL = Path(__file__).parents[2] / "recipes" / "models" / "digits.safetensors"
_RECIPE = Path(__file__).parents[2] / "recipes" / "digits.yaml"
SOUND = f"folder: '{_RECIPE.parent}'\n" + _RECIPE.read_text(encoding="utf-8")
_NINES, _ONES = "9" * 400, "1" * 100_000
_NUMBERS = [
    ".inf", "-.inf", ".nan", "1e400", "-1e400", "1e-400", "5e-324", "-0.0", "0", "-1", _NINES,
    _ONES, f"0x{'f' * 5000}", f"0b{'1' * 5000}", "9223372036854775807", "9223372036854775808",
    "18446744073709551616", "0777", "0o17", "1:30", "1:30.5", "1_000", "2024-01-01", "1e5", "1.5",
    "true", "null", "~", "''", "'1'", "'0x10'", "[]", "{}", "[1]", "{a: 1}", "!!int ''",
    "!!float ''", "!!int '1'", "!!binary aGk=", "!!python/name:os.system x", "*nowhere", "=", "²",
    "65537", "4294967296", "1000000007",
]  # fmt: skip
_TEXTS = [
    '"\\0"', '"\\ud800"', '"\\U0010ffff"', '"a\\nb"', f"'{'a' * 5000}'", "''", "' '", "'${'",
    "'${a}'", "'$${a}'", "re:(", "re:a{4294967296}", f"'re:{'(' * 400}a{')' * 400}'",
    "'re:(a|a|.)*(a|a|.)*(.|..)*!'", "'re:(.+)+!'", "'[!'", "'[z-a]*'", "'**?*[*'", "a:b", ":b",
    "a:", "'os:system'", "'sys:exit'", "/dev/zero", "/dev/zero:a", "'/dev/stdin.py:a'", "~nobody/x",
    "../../../../../../etc/passwd", "'.:a'", "'..py:a'",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One thing to try.

    Args:
        name: What is hostile about it.
        recipe: Content of the recipe's file.
        arguments: More of the command line.
        codes: Exit codes that are right.
    """

    name: str
    recipe: bytes
    arguments: tuple[str, ...] = ()
    codes: tuple[int, ...] = (ACCEPTED, REFUSED)


def cases(seed: int) -> Iterator[Case]:
    """Every known trick once, every value at every key in random order, then random damage.

    Args:
        seed: Of what is random; the cases have no end.
    """
    yield from _tricks()
    yield from _overrides()
    draw = random.Random(seed)
    placed = list(_values_at_keys())
    draw.shuffle(placed)
    damage = _damage(draw)
    for case in placed:
        yield case
        yield next(damage)
    yield from damage


def _with(more: str) -> bytes:
    return f"data: {{source: digits}}\nprune: {{sparsity: 0.5}}\n{more}\n".encode()


def _tricks() -> Iterator[Case]:
    """Of YAML, of encodings, of size and of depth."""
    sound = SOUND.encode()
    laughs = "".join(f"v{i}: &v{i} [{', '.join([f'*v{i - 1}'] * 9)}]\n" for i in range(1, 10))
    refused = {
        "empty": b"",
        "only a comment": b"#" * 900_000,
        "NUL": sound + b"\0",
        "UTF-16": SOUND.encode("utf-16"),
        "Latin-1": sound + b"# \xe9",
        "too large": b"#" * 1_100_000,
        "two documents": sound + b"\n---\n" + sound,
        "a scalar": b"3",
        "a list": b"[1]",
        "tab": b"data:\n\tsource: digits",
        "unclosed lists": b"[" * 300_000,
        "unclosed mappings": b"{" * 300_000,
        "dashes": b"- " * 300_000,
        "question marks": b"? " * 300_000,
        "deep": _with(f"model: {{kwargs: {{a: {'[' * 5000}{']' * 5000}}}}}"),
        "billion laughs": f"v0: &v0 [x]\n{laughs}".encode(),
        "alias of itself": b"a: &a [*a]",
        "merge of itself": b"a: &a {<<: *a}",
        "merge of a scalar": _with("run: {<<: 3}"),
        "many anchors": "".join(f"a{i}: &a{i} x\n" for i in range(60_000)).encode(),
        "one key often": _with("run: {}\n" * 30_000),
        "many keys": _with("".join(f"x{i}: {{}}\n" for i in range(9_000))),
        "many near keys": _with("".join(f"run{i}: {{}}\n" for i in range(9_000))),
        "many wrong items": _with(f"validate: {{latency: {{threads: [{'x, ' * 15_000}]}}}}"),
        "variables of an older recipe": _with("vars: {a: 1}"),
        "single surrogate as a key": _with('"\\ud800": 1'),
        "long key": _with(f"{'a' * 100_000}: 1"),
        "YAML of the future": b"%YAML 9.9\n---\n" + sound,
    }
    for name, recipe in refused.items():
        yield Case(name, recipe, codes=(REFUSED,))
    accepted = {"byte order mark": b"\xef\xbb\xbf" + sound, "flow": b"{" + _flow() + b"}"}
    for name, recipe in accepted.items():
        yield Case(name, recipe, codes=(ACCEPTED,))


def _flow() -> bytes:
    return yaml.safe_dump(yaml.safe_load(SOUND), default_flow_style=True, width=10**6)[
        1:-2
    ].encode()


def _overrides() -> Iterator[Case]:
    """``--set`` in every form, and other arguments."""
    wrong = [
        "", "=", "a", "=1", ".=1", "a.=1", ".a=1", "a..b=1", "run.seed", "run.seed=", "run.seed= ",
        f"a{'.a' * 3000}=1", f"model.kwargs{'.a' * 3000}=1", f"run.seed={_ONES}", "run.seed=[",
        f"{'a' * 100_000}=1", f"model.kwargs.a={'[' * 100}{']' * 100}", "run.seed=\udc80",
        'run.seed="\\ud800"', "prune.include.0.0=1", "prune.include.-1=a", "run.seed.a=1",
        "run.seed=1:30", "run.seed=!!set {a}", "prune.sparsity=.nan", "prune.sparsity=1",
        "vars.a=1", "data=3", "prune=", "prune=null", "run=[1]", "\udc80=1",
    ]  # fmt: skip
    for text in wrong:
        yield Case(f"--set {text[:30]!r}", SOUND.encode(), ("--set", text), codes=(REFUSED,))
    yield Case("--set often", SOUND.encode(), ("--set", "run.seed=1") * 500, codes=(ACCEPTED,))


def _values_at_keys() -> Iterator[Case]:
    """Each strange value in the place of each key's value."""
    for key in _keys(Recipe.model_json_schema()):
        for value in _NUMBERS + _TEXTS:
            recipe = yaml.safe_load(SOUND)
            section = recipe
            for part in key[:-1]:
                section = section.setdefault(part, {}) if isinstance(section, dict) else {}
                section = section if isinstance(section, dict) else {}
            section[key[-1]] = "PLACE"
            text = yaml.safe_dump(recipe, sort_keys=False, width=10**6)
            name = f"{'.'.join(key)}: {value[:40]}"
            yield Case(name, re.sub("PLACE", lambda _, v=value: v, text, count=1).encode())


def _keys(schema: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Keys of all sections but ``data``, whose values are another attack's."""
    for name, inner in schema["properties"].items():
        yield (name,)
        reference = inner.get("$ref") or next(
            (branch["$ref"] for branch in inner.get("anyOf", []) if "$ref" in branch), None
        )
        if name != "data" and reference:
            target = schema["$defs"][reference.rpartition("/")[2]]
            below = {"properties": target.get("properties", {}), "$defs": schema["$defs"]}
            yield from ((name, *key) for key in _keys(below))


def _damage(draw: random.Random) -> Iterator[Case]:
    """Sound recipes with bytes, lines or keys changed."""
    ways: dict[str, Callable[[bytes], bytes]] = {
        "bytes flipped": lambda text: _flipped(text, draw),
        "cut off": lambda text: text[: draw.randrange(len(text))],
        "lines shuffled": lambda text: _shuffled(text, draw),
        "a line twice": lambda text: _repeated(text, draw),
        "indented otherwise": lambda text: _indented(text, draw),
        "a word renamed": lambda text: _renamed(text, draw),
        "junk put in": lambda text: _with_junk(text, draw),
    }
    while True:
        for name, damaged in ways.items():
            yield Case(name, damaged(SOUND.encode()))


def _flipped(text: bytes, draw: random.Random) -> bytes:
    content = bytearray(text)
    for _ in range(draw.randint(1, 8)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


def _shuffled(text: bytes, draw: random.Random) -> bytes:
    lines = text.splitlines(keepends=True)
    draw.shuffle(lines)
    return b"".join(lines)


def _repeated(text: bytes, draw: random.Random) -> bytes:
    lines = text.splitlines(keepends=True)
    lines.insert(draw.randrange(len(lines)), draw.choice(lines))
    return b"".join(lines)


def _indented(text: bytes, draw: random.Random) -> bytes:
    lines = text.splitlines(keepends=True)
    position = draw.randrange(len(lines))
    lines[position] = b" " * draw.randint(1, 5) + lines[position].lstrip()
    return b"".join(lines)


def _renamed(text: bytes, draw: random.Random) -> bytes:
    words = sorted(set(re.findall(rb"\w+", text)))
    old, new = draw.sample(words, 2)
    return re.sub(rb"\b%s\b" % old, new, text)


def _with_junk(text: bytes, draw: random.Random) -> bytes:
    signs = ["&a", "*a", "<<: ", "!!", "? ", "- ", ": ", "{", "}", "[", "]", "|", ">", "%", "@",
             "#", "${", "'", '"', "\\", "\r", "\x85", "\u2028", "\ufeff", "---\n"]  # fmt: skip
    position = draw.randrange(len(text))
    junk = "".join(draw.choices(signs, k=draw.randint(1, 4))).encode()
    return text[:position] + junk + text[position:]


class _TooLong(BaseException):
    """Not an error that the command line may turn into a message."""


def fault(case: Case, folder: Path) -> str:
    """Give a case to the command line.

    Args:
        case: What to try.
        folder: Where its recipe is written.
    Returns:
        What was mishandled; empty if nothing.
    """
    path = folder / "recipe.yaml"
    path.write_bytes(case.recipe)
    begin = time.process_time()
    with _limited():
        result = CliRunner().invoke(main, [str(path), str(MODEL), "--dry-run", *case.arguments])
    seconds = time.process_time() - begin
    if isinstance(result.exception, _TooLong) or seconds > SECONDS:
        return f"took more than {SECONDS} s"
    if result.exit_code not in case.codes:
        return f"exit code {result.exit_code}: {result.output[-500:]} {result.exception!r}"
    if result.exit_code == REFUSED:
        return _fault_of_message(result.output)
    return ""


def _fault_of_message(output: str) -> str:
    if "Traceback" in output:
        return f"traceback: {output[-500:]}"
    message = output.rpartition("error: ")[2]
    if output.count("\nerror: ") + output.startswith("error: ") != 1 or len(message) > 20_000:
        return f"not one message of a length to read: {output[:500]}"
    return ""


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(6 * SECONDS)  # by the clock: other programs may have the cores
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(count: int, seed: int, step: int = 1) -> int:
    """Attack that many times, in a working directory of its own; returns how many went wrong."""
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        drawn = list(islice(cases(seed), 0, count * step, step))
        for case in drawn:
            if text := fault(case, Path(folder)):
                faults += 1
                print(f"{case.name}: {text}", flush=True)
    print(f"{len(drawn)} recipes, {faults} mishandled")
    return faults


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=600)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--step", type=int, default=1, help="take every STEP-th case")
    asked = options.parse_args()
    sys.exit(1 if run(asked.count, asked.seed, asked.step) else 0)
