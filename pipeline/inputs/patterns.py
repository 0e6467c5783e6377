"""Which names the patterns of a recipe match: exact names, globs, and ``re:`` expressions.

An expression can take longer than the universe lasts (``(a+)+b``), and Python's own matcher knows
no limit of time. A recipe is not trusted, so expressions are matched in a process of their own,
which is ended when it takes too long.
"""

import fnmatch
import json
import subprocess
import sys
from collections.abc import Iterable

REGEX = "re:"
_SECONDS = 10  # far more than an honest pattern takes for all names of a large model

# One line of output for each pattern, so that what is missing names the one that took too long.
_MATCHER = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    found = [i for i, name in enumerate(names) if re.fullmatch(pattern, name)]
    print(json.dumps(found), flush=True)
"""


class SlowPatternError(ValueError):
    """A pattern that takes too long.

    Args:
        pattern: As the recipe has it.
    """

    def __init__(self, pattern: str) -> None:
        super().__init__(
            f"a pattern must be matched within {_SECONDS} seconds. Got {pattern!r}. Repeat nothing "
            "that is itself repeated or has alternatives, and use few of * and +."
        )
        self.pattern = pattern


def match_all(patterns: Iterable[str], names: Iterable[str]) -> dict[str, set[str]]:
    """Find the names that each pattern matches as a whole.

    Args:
        patterns: Exact names, globs, or ``re:`` and a regular expression of Python's.
        names: To look among.
    Returns:
        Pattern to the names that it matches.
    Raises:
        SlowPatternError: If an expression takes too long.
    """
    patterns, names = list(dict.fromkeys(patterns)), list(dict.fromkeys(names))
    expressions = [pattern for pattern in patterns if pattern.startswith(REGEX)]
    globs = [pattern for pattern in patterns if not pattern.startswith(REGEX)]
    found = {glob: {n for n in names if fnmatch.fnmatchcase(n, glob)} for glob in globs}
    if expressions:
        found |= _match_expressions(expressions, names)
    return found


def _match_expressions(expressions: list[str], names: list[str]) -> dict[str, set[str]]:
    question = json.dumps([[expression[len(REGEX) :] for expression in expressions], names])
    command = [sys.executable, "-I", "-S", "-c", _MATCHER]
    try:
        process = subprocess.run(
            command, input=question.encode(), capture_output=True, timeout=_SECONDS, check=False
        )
        lines = process.stdout.splitlines()
    except subprocess.TimeoutExpired as timeout:
        lines = (timeout.stdout or b"").splitlines()
        # Ended in the middle of a line, or of a pattern: either way that pattern has no answer.
        raise SlowPatternError(expressions[min(len(lines), len(expressions) - 1)]) from None
    assert len(lines) == len(expressions), process.stderr.decode(errors="replace")
    answers = [{names[position] for position in json.loads(line)} for line in lines]
    return dict(zip(expressions, answers, strict=True))
