"""Hostile and damaged recipes of SparseML: each must be refused with one message, or imported.

``python tests/attack/foreign_recipes.py --count 800 --seed 1`` gives that many to
``mfac-compress recipe import``, and ends with 1 where one was mishandled: something was executed,
another exit code than expected, a message that is not one, a file after a refusal, or more than
10 s. Each case with a hostile value must end with 2.
"""

import argparse
import faulthandler
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from mfac_compress.pipeline.cli import main
from mfac_compress.pipeline.recipe.sparseml.catalogue import CATALOGUE

SECONDS = 10
_HANGS = 120  # of a busy machine's time: what takes as long does not end
REFUSED, ACCEPTED = 2, 0
PUBLISHED = Path(__file__).parents[1] / "pipeline" / "recipe" / "sparseml" / "published"
CANARY = "executed"
"""A file that hostile values would make."""
_TOUCH = f"__import__('os').system('touch {CANARY}')"
_SOUND = {
    "start_epoch": "0", "end_epoch": "4", "update_frequency": "1", "params": "__ALL_PRUNABLE__",
    "init_sparsity": "0.05", "final_sparsity": "0.8", "lr_func": "linear", "init_lr": "0.1",
    "final_lr": "0", "lr_class": "StepLR", "lr_kwargs": "{gamma: 0.1}", "learning_rate": "0.1",
    "weight_decay": "0.1", "layers": "[a]",
}  # fmt: skip
HOSTILE = {
    "a call": f'"eval({_TOUCH})"',
    "a call of a builtin": f"eval(open('{CANARY}', 'w'))",
    "an attribute": "eval(().__class__.__base__.__subclasses__())",
    "a comprehension": f'"eval([{_TOUCH} for _ in (1,)])"',
    "a lambda": f'"eval((lambda: {_TOUCH})())"',
    "an assignment": "eval((a := 1))",
    "an f-string": "eval(f'{1}')",
    "a tower": "eval(9 ** 9 ** 9 ** 9)",
    "a long number": f"eval({'9' * 400} ** 2)",
    "digits of round": "eval(round(1, -10 ** 14))",
    "parentheses": f"eval({'(' * 230}1{')' * 230})",
    "minuses": f"eval({'-' * 450}1)",
    "a sum": f"eval({'1 + ' * 240}1)",
    "nobody's variable": "eval(nobody)",
    "a circle": "eval(one)",
    "a division": "eval(1 / 0)",
    "a command": f"!!python/object/apply:os.system ['touch {CANARY}']",
    "an object": "!!python/object/new:os.system [x]",
    "a name": "!!python/name:os.system ''",
    "a module": "!!python/module:os ''",
    "a dotted tag": "!pytorch.MFACPruningModifier {a: 1}",
    "a modifier within": "!EpochRangeModifier {start_epoch: 0, end_epoch: 1}",
    "a binary": "!!binary aGk=",
    "a set": "!!set {a}",
    "a date": "!!timestamp 2024-01-01",
    "an unknown alias": "*nobody",
    "an alias of itself": "&self [*self]",
    "a surrogate": '"\\ud800"',
    "a huge number": "9" * 400,
    "a sexagesimal": "1:30:30",
}
"""Values that no key may have, by what is hostile about them."""
_ODD = [
    ".nan", ".inf", "-.inf", "-1", "-0.0", "1e400", "1e-400", "5e-324", "0", "1", "1.0", "true",
    "null", "~", "''", "word", "[]", "{}", "[1]", "[[1]]", "{a: 1}", "{0: 1}", "{0.5: [a]}",
    "{0: 1, 0.0: 2}", "[1, 4]", "[4, 1]", "[-1, 4]", "[0, 0]", "'0:0'", "'99:99'", "'2:4'",
    "__ALL__", "__FROM_PARAM__", "'re:('", "'re:(a+)+b'", f"'re:{'(' * 400}'", f"'{'a' * 5000}'",
    '"\\0"', "1000000", "999999", "0.0001", "9223372036854775807", "{batch_size: 0}",
    "{batch_size: 1e9}", "eval(1)", "eval(0.5)", "eval(-1)", "[eval(1)]", "! x",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One thing to try.

    Args:
        name: What is hostile about it.
        recipe: Content of the file.
        codes: Exit codes that are right.
        suffix: Of the file's name.
    """

    name: str
    recipe: bytes
    codes: tuple[int, ...] = (ACCEPTED, REFUSED)
    suffix: str = ".yaml"


def cases(seed: int) -> Iterator[Case]:
    """Every known trick once; then hostile values at keys, odd ones and random damage in turn.

    Args:
        seed: Of what is random; the cases have no end.
    """
    yield from _tricks()
    draw = random.Random(seed)
    hostile, odd, damage = list(_at_keys(HOSTILE, (REFUSED,))), list(_odd()), _damage(draw)
    draw.shuffle(hostile)
    draw.shuffle(odd)
    for case in hostile:
        yield case
        yield odd.pop() if odd else next(damage)
        yield next(damage)
    yield from damage


def recipe_of(modifier: str, key: str, value: str) -> str:
    """A recipe with one modifier that has a value at a key, beside one that prunes."""
    keys = {name: _SOUND[name] for name in CATALOGUE[modifier] if name in _SOUND} | {key: value}
    lines = "".join(f"    {name}: {written}\n" for name, written in keys.items())
    head = "" if "Pruning" in modifier else f"  - !MFACPruningModifier\n{_lines_of_mfac()}"
    return f"modifiers:\n{head}  - !{modifier}\n{lines}"


def _lines_of_mfac() -> str:
    keys = [name for name in CATALOGUE["MFACPruningModifier"] if name in _SOUND]
    return "".join(f"    {name}: {_SOUND[name]}\n" for name in keys)


def _at_keys(values: dict[str, str], codes: tuple[int, ...]) -> Iterator[Case]:
    circle = "one: eval(two)\ntwo: eval(one)\n"
    for modifier, keys in CATALOGUE.items():
        for key in keys:
            for what, value in values.items():
                text = recipe_of(modifier, key, value)
                text = (circle if "one)" in value else "") + text
                yield Case(f"{modifier}.{key}: {what}", text.encode("utf-8"), codes)


def _odd() -> Iterator[Case]:
    return _at_keys({value[:40]: value for value in _ODD}, (ACCEPTED, REFUSED))


def _tricks() -> Iterator[Case]:
    """Of YAML, of size and depth, of tags, of variables, of Markdown."""
    sound = recipe_of("MFACPruningModifier", "damp", "1e-5")
    laughs = "".join(f"v{i}: &v{i} [{', '.join([f'*v{i - 1}'] * 9)}]\n" for i in range(1, 10))
    later = sound.split("\n", 1)[1].replace("end_epoch: 4", "end_epoch: 5")
    chain = "".join(f"c{i}: eval(c{i + 1} + c{i + 1})\n" for i in range(200)) + "c200: 1\n"
    refused = {
        "billion laughs": f"v0: &v0 [x]\n{laughs}{sound}",
        "billion laughs in a modifier": f"v0: &v0 [x]\n{laughs}modifiers:\n  - !A\n    a: *v9",
        "alias of itself": f"a: &a [*a]\n{sound}",
        "merge of itself": f"a: &a {{<<: *a}}\n{sound}",
        "merge of a modifier": f"{sound}  - !EpochRangeModifier\n    <<: !A {{a: 1}}\n",
        "deep": f"a: {'[' * 5000}{']' * 5000}\n{sound}",
        "deep flow": f"modifiers: [{'!A {a: ' * 60}1{'}' * 60}]",
        "many modifiers": "modifiers:\n" + "  - !EpochRangeModifier {start_epoch: x}\n" * 4000,
        "many unknown modifiers": "modifiers:\n" + "  - !Nobody {a: 1}\n" * 9000,
        "many keys": sound + "".join(f"    k{i}: 1\n" for i in range(9000)),
        "many near keys": sound + "".join(f"    damp{i}: 1\n" for i in range(9000)),
        "a long name": f"modifiers: [!{'A' * 100_000} {{a: 1}}]",
        "a long key": f"{sound}    {'a' * 100_000}: 1\n",
        "a doubling chain": f"{chain}{sound}    num_grads: eval(c0)\n",
        "a long circle": "".join(f"c{i}: eval(c{(i + 1) % 9000})\n" for i in range(9000)) + sound,
        "a command in a group": f"modifiers: !!python/object/apply:os.system [touch {CANARY}]",
        "a command as a modifier": f"modifiers: [!!python/object/apply:os.system [touch {CANARY}]]",
        "a command as a key": f"? !!python/object/apply:os.system [touch {CANARY}]\n: 1\n{sound}",
        "a command as a variable": f"a: !!python/object/apply:os.system [touch {CANARY}]\n{sound}",
        "a command as the root": f"!!python/object/apply:os.system [touch {CANARY}]",
        "a modifier as the root": "!MFACPruningModifier {damp: 1}",
        "a modifier as a key": f"? !MFACPruningModifier {{damp: 1}}\n: 1\n{sound}",
        "a call as a variable": f'a: "eval({_TOUCH})"\n{sound}',
        "a call in a stage": f'one: {{a: "eval({_TOUCH})", modifiers: []}}',
        "a group that is text": "modifiers: word",
        "a group that is a modifier": "modifiers: !A {a: 1}",
        "a group of groups": "modifiers: [[!EpochRangeModifier {start_epoch: 0, end_epoch: 1}]]",
        "modifiers outside of a group": f"pruning: [!A {{a: 1}}]\n{sound}",
        "no modifiers": "modifiers: []",
        "two documents": f"{sound}---\n{sound}",
        "a directive": "%TAG ! tag:yaml.org,2002:python/\n---\nmodifiers: [!name:os.system '']\n",
        "NUL": f"{sound}\0",
        "tab": "modifiers:\n\t- !A {a: 1}",
        "nothing": "",
        "two pruning schedules": sound + later,
    }
    for name, text in refused.items():
        yield Case(name, text.encode("utf-8", "surrogatepass"), (REFUSED,))
    markdown = {
        "no recipe": "# words\n",
        "one fence": f"---\n{sound}",
        "an empty recipe": "---\n---\n",
        "a command": f"---\nmodifiers: [!!python/object/apply:os.system [touch {CANARY}]]\n---\n",
        "many fences": "---\n" * 100_000,
        "many spaces": " " * 500_000 + "---" + " " * 400_000,
    }
    for name, text in markdown.items():
        yield Case(f"Markdown: {name}", text.encode(), (REFUSED,), ".md")


def _damage(draw: random.Random) -> Iterator[Case]:
    """Sound recipes with bytes, lines or words changed."""
    sound = [(path.read_bytes(), path.suffix) for path in sorted(PUBLISHED.iterdir())]
    signs = ["&a", "*a", "<<: ", "!!", "!A ", "eval(", ")", "? ", "- ", ": ", "{", "}", "[", "]",
             "|", ">", "%", "@", "#", "'", '"', "\\", "\r", "\x85", "\u2028", "---\n"]  # fmt: skip
    while True:
        text, suffix = draw.choice(sound)
        kind = draw.choice(["bits", "cut", "lines", "word", "junk"])
        content, lines, words = bytearray(text), text.splitlines(keepends=True), text.split(b" ")
        if kind == "bits":
            for _ in range(draw.randint(1, 6)):
                content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            content = content[: draw.randrange(len(content))]
        elif kind == "lines":
            draw.shuffle(lines)
            content = bytearray(b"".join(lines))
        elif kind == "word":
            words[draw.randrange(len(words))] = draw.choice(words)
            content = bytearray(b" ".join(words))
        else:
            position = draw.randrange(len(content))
            content[position:position] = "".join(draw.choices(signs, k=3)).encode()
        yield Case(f"damage: {kind}", bytes(content), suffix=suffix)


class Watch:
    """Notes what Python itself reports of code that runs, of programs and of the network."""

    _EVENTS = ("exec", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen",
               "socket.connect", "ctypes.dlopen", "pickle.find_class", "import")  # fmt: skip

    def __init__(self) -> None:
        self.events: list[str] = []
        self.active = False
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.active and event in self._EVENTS:
            self.events.append(f"{event} {str(arguments)[:100]}")


def fault(case: Case, folder: Path, watch: Watch) -> str:
    """Import a recipe.

    Args:
        case: What to try.
        folder: Where its files are written; the working directory.
        watch: Of what is executed.
    Returns:
        What was mishandled; empty if nothing.
    """
    old, new = folder / f"old{case.suffix}", folder / "new.yaml"
    old.write_bytes(case.recipe)
    new.unlink(missing_ok=True)
    watch.events.clear()
    begin = time.process_time()
    faulthandler.dump_traceback_later(_HANGS, exit=True)
    watch.active = True
    result = CliRunner().invoke(main, ["recipe", "import", str(old), "-o", str(new)])
    watch.active = False
    faulthandler.cancel_dump_traceback_later()
    seconds = time.process_time() - begin
    if watch.events or (folder / CANARY).exists():
        (folder / CANARY).unlink(missing_ok=True)
        return f"executed: {watch.events[:3]}"
    if seconds > SECONDS:
        return f"took {seconds:.0f} s"
    if result.exit_code not in case.codes:
        return f"exit code {result.exit_code}: {result.output[-300:]} {result.exception!r}"
    if (result.exit_code == REFUSED) == new.exists():
        return "a file after a refusal, or none after an import"
    message = result.output.rpartition("error: ")[2]
    wrong = "Traceback" in result.output or len(message) > 20_000
    if result.exit_code == REFUSED and (wrong or result.output.count("error: ") < 1):
        return f"not one message of a length to read: {result.output[:300]}"
    return ""


def _attack() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=800)
    options.add_argument("--seed", type=int, default=1)
    asked = options.parse_args()
    faults, ended = 0, Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        watch = Watch()
        for sound in PUBLISHED.iterdir():  # what is imported late counts as executed otherwise
            fault(Case("sound", sound.read_bytes(), suffix=sound.suffix), folder, watch)
        fault(Case("wrong", b"modifiers: [!Nobody {a: 1}]"), folder, watch)
        for case in islice(cases(asked.seed), asked.count):
            text = fault(case, folder, watch)
            ended["must be refused" if case.codes == (REFUSED,) else "damaged"] += 1
            if text:
                faults += 1
                print(f"{case.name}: {text}", flush=True)
    print(f"{dict(ended)}, {faults} mishandled")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(_attack())
