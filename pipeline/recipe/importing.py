"""Writing a SparseML recipe as one of ours: ``mfac-compress recipe import``."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.files import write_new
from mfac_compress.pipeline.quoting import printable
from mfac_compress.pipeline.recipe.file import (
    check_values,
    read_file,
    with_overrides,
)
from mfac_compress.pipeline.recipe.sparseml.findings import Fate, Finding
from mfac_compress.pipeline.recipe.yaml_lines import write_yaml

_STAND_IN = {"source": "factory", "factory": "data.py:splits"}
_DATA_IS_MISSING = """\
# What a recipe of SparseML does not say, and a run needs (mfac-compress schema lists the keys):
# data: {source: image_folder, ...}
# model: {factory: "net.py:net"}
"""


@dataclass(frozen=True)
class Imported:
    """A recipe of ours made of one of SparseML's.

    Args:
        text: YAML.
        findings: What became of each line, in the order of the lines.
        is_complete: Whether it can be run, as it names data.
    """

    text: str
    findings: tuple[Finding, ...]
    is_complete: bool

    def summary(self, output: Path) -> str:
        """Say what became of each line, how many became what, and what is left to do.

        Args:
            output: Where the recipe is.
        """
        counts = Counter(found.fate.value for found in self.findings)
        fates = (fate.value for fate in Fate)
        said = ", ".join(f"{counts[fate]} {fate}" for fate in fates if counts[fate])
        lines = [*map(str, self.findings), f"{output}: {said}."]
        if not self.is_complete:
            missing = "data, and model.factory unless MODEL is a .pt2"
            lines.append(f"Still to add to {output}: {missing}.")
        return "\n".join(lines)


def import_recipe(
    path: str | Path, overrides: Sequence[str] = (), *, allow_dropped: bool = False
) -> Imported:
    """Translate a recipe of SparseML.

    Args:
        path: YAML, or Markdown with the recipe at its beginning.
        overrides: ``key.path=value`` each, of keys of ours.
        allow_dropped: Whether to leave out what has no counterpart.
    Returns:
        The recipe with the defaults of SparseML that are not ours, checked against our schema.
    Raises:
        InputError: If it is no recipe of SparseML, or anything in it is wrong or has no counterpart
            and must not be left out.
    """
    written = read_file(path, allow_dropped=allow_dropped)
    if written.findings is None:
        raise InputError(
            "The recipe must be one of SparseML, with lists of modifiers below keys such as "
            f"pruning_modifiers. {path} has none: mfac-compress runs it as it is."
        )
    values, source, issues = with_overrides(written, overrides)
    is_complete = "data" in values
    checked = values
    if not is_complete:
        issues = [issue for issue in issues if issue.key != ("data",)]
        checked = {**values, "data": _STAND_IN}
    check_values(checked, source, issues)
    head = f"# Made from {printable(written.path.name)}, a recipe of SparseML.\n"
    head += "" if is_complete else _DATA_IS_MISSING
    return Imported(head + write_yaml(values), written.findings, is_complete)


def write_imported(imported: Imported, output: Path) -> None:
    """Write the recipe, whole or not at all.

    Args:
        imported: The recipe.
        output: Where; nothing may be there.
    Raises:
        InputError: If something is there, or it cannot be written.
    """
    write_new(output, imported.text, "--output")
