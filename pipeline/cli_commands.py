"""The commands beside ``run``: a first recipe, the speed of a file, imports, schemas."""

import json
from pathlib import Path

import click

from mfac_compress.pipeline.cli_exits import (
    GATE_FAILED,
    PASS,
    announced,
    exits,
    print_text,
    silence_pytorch,
)
from mfac_compress.pipeline.cli_types import Numbers, Shape, by_input, set_option
from mfac_compress.pipeline.signals import interruptible


@click.command(short_help="Write a first recipe for MODEL.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--factory",
    metavar="MODULE:CALLABLE",
    help="What builds the model: package.module:callable or path/to/file.py:callable.",
)
@set_option("A key of the recipe, such as data.source; may be given several times.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("recipe.yaml"),
    help="The recipe to write. [recipe.yaml]",
)
@click.option("--trust-pickle", is_flag=True, help="Let the checkpoint run code as it is read.")
@exits
def init(
    model: Path,
    factory: str | None,
    overrides: tuple[str, ...],
    output: Path,
    trust_pickle: bool,
) -> None:
    """Write a first recipe for MODEL, with comments: its layers, and what could be said instead.

    With data (--set data.source=...), damping and block size are tried out for about a minute;
    else the data is to be filled in.

    \b
    Exit codes:
      0  the recipe is written
      2  MODEL, its data or an option is wrong: nothing is written
      3  anything else
    """
    with announced("loading PyTorch ...", quiet=False):
        from mfac_compress.pipeline.starter.write import write_starter

    silence_pytorch()
    with interruptible():
        starter = write_starter(
            model, output, factory=factory, overrides=overrides, trust_pickle=trust_pickle
        )
    what = "Check it" if starter.has_data else "Fill in its section data, then check it"
    print_text(f"{output}: {starter.layers} tensors can be pruned. {what}:")
    print_text(f"  mfac-compress {output} {model} --dry-run")


@click.command(short_help="Time an ONNX file with sparse operators.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--batch", type=Numbers(), help="Batch sizes. [1, or the one that MODEL takes]")
@click.option("--threads", type=Numbers(), default="1", help="Threads of ONNX Runtime. [1]")
@click.option(
    "--shape",
    "shapes",
    type=Shape(),
    multiple=True,
    help="Shape of an input with open axes beside the batch; may be given several times.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write the file with sparse operators."
)
@click.option(
    "--timeout",
    type=click.IntRange(1, 86_400),
    default=60,
    metavar="SECONDS",
    help="In which ONNX Runtime must load MODEL, and end a call of it. [60]",
)
@exits
def speed(
    model: Path,
    batch: tuple[int, ...] | None,
    threads: tuple[int, ...],
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    output: Path | None,
    timeout: int,
) -> int:
    """Show what of the ONNX file MODEL runs faster with sparse operators, and why the rest not.

    Each layer is timed as it is in stock ONNX Runtime and as a sparse operator, on made-up inputs.

    \b
    Exit codes:
      0  measured; with -o, the file is written
      1  -o was given, and nothing is faster: no file is written
      2  MODEL or an option is wrong
      3  anything else
    """
    with announced("loading ONNX Runtime ...", quiet=False):
        from mfac_compress.pipeline.progress import Progress
        from mfac_compress.pipeline.speed import speed as measure
        from mfac_compress.pipeline.terminal import open_terminal

    with interruptible():
        measured = measure(
            model,
            open_terminal(quiet=False, stderr=False),
            batch_sizes=batch and tuple(dict.fromkeys(batch)),
            threads=tuple(dict.fromkeys(threads)),
            shapes=by_input(shapes),
            output=output,
            timeout=timeout,
            progress=Progress(open_terminal(quiet=False, stderr=True)),
        )
    return GATE_FAILED if output is not None and measured.model is None else PASS


@click.group(name="recipe", short_help="Import recipes of SparseML.")
def recipes() -> None:
    """Recipes of other tools."""


@recipes.command(name="import", short_help="Make a recipe of one of SparseML's.")
@click.argument("old", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The recipe to write."
)
@set_option("A key that OLD does not have, such as data.source; may be given several times.")
@click.option("--allow-dropped", is_flag=True, help="Leave out what has no counterpart.")
@exits
def import_command(
    old: Path, output: Path, overrides: tuple[str, ...], allow_dropped: bool
) -> None:
    """Make a recipe of OLD, which is one of SparseML's (.yaml or .md), and say what became of it.

    Line by line: what means the same, what nearly the same, what needs no word here, and what has
    no counterpart. The last is an error unless it may be left out.

    \b
    Exit codes:
      0  the recipe is written
      2  something in OLD is wrong or has no counterpart: nothing is written
    """
    from mfac_compress.pipeline.recipe.importing import import_recipe, write_imported

    imported = import_recipe(old, overrides, allow_dropped=allow_dropped)
    write_imported(imported, output)
    print_text(imported.summary(output))


@click.command(short_help="Print the JSON Schema of a recipe, or of report.json.")
@click.argument("of", type=click.Choice(["recipe", "report"]), default="recipe")
@exits
def schema(of: str) -> None:
    """Print the JSON Schema of a recipe (or of report.json), for editors and readers."""
    if of == "report":
        from mfac_compress.pipeline.verdict.report import Report

        print_text(json.dumps(Report.model_json_schema(), indent=2))
    else:
        from mfac_compress.pipeline.recipe.file import recipe_schema

        print_text(json.dumps(recipe_schema(), indent=2))
