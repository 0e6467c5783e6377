"""The command line: ``mfac-compress recipe.yaml model.pt``."""

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click
from click_default_group import DefaultGroup
from rich.console import Console

from mfac_compress.pipeline.errors import CompressError

_PASS, _GATE_FAILED, _INTERNAL = 0, 1, 3


def _ends_well(command: Callable[..., int | None]) -> Callable[..., NoReturn]:
    """Turn errors into one message and the exit codes of the contract."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> NoReturn:
        try:
            code = command(*args, **kwargs) or _PASS
        except CompressError as error:
            click.echo(f"error: {error}", err=True)
            code = error.exit_code
        except KeyboardInterrupt:
            click.echo("error: interrupted while the inputs were loaded.", err=True)
            code = _INTERNAL
        sys.exit(code)

    return run


@click.group(cls=DefaultGroup, default="run", default_if_no_args=False)
@click.version_option(package_name="mfac-compress")
def main() -> None:
    """Compress a trained PyTorch model into a sparse ONNX model, and judge it.

    \b
    mfac-compress RECIPE MODEL -o DIRECTORY   is short for   mfac-compress run ...
    """


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Run directory. [runs/RECIPE's name]"
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override a recipe key."
)
@click.option("--dry-run", is_flag=True, help="Load and check everything, show the plan, stop.")
@click.option("--trust-pickle", is_flag=True, help="Let the checkpoint run code as it is read.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors.")
@click.option("-v", "--verbose", is_flag=True, help="Also say what is reused, and times.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
@_ends_well
def run(
    recipe: Path,
    model: Path,
    output: Path | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    trust_pickle: bool,
    quiet: bool,
    verbose: bool,
    as_json: bool,
) -> int:
    """Run RECIPE on MODEL (.pt, .pth, .safetensors or .pt2).

    \b
    Exit codes:
      0  all gates pass
      1  a gate failed; results and report are written
      2  recipe, model or data is wrong
      3  anything else
    """
    # Imported here, because PyTorch takes seconds and `--help` should not.
    from mfac_compress.pipeline.dry_run import show_plan
    from mfac_compress.pipeline.inputs.load import load_inputs
    from mfac_compress.pipeline.progress import Progress
    from mfac_compress.pipeline.recipe.file import load_recipe
    from mfac_compress.pipeline.runner import compress
    from mfac_compress.pipeline.verdict.report_text import print_verdict

    loaded = load_recipe(recipe, overrides)
    terminal = Console(quiet=quiet, stderr=as_json)
    progress = Progress(terminal, verbose=verbose)
    if dry_run:
        show_plan(load_inputs(loaded, model, trust_pickle=trust_pickle), terminal)
        return _PASS
    output = output or Path("runs") / recipe.stem
    report = compress(loaded, model, output, trust_pickle=trust_pickle, progress=progress)
    if as_json:
        click.echo(report.model_dump_json(indent=2))
    print_verdict(report, terminal)
    terminal.print(f"results: {output}", highlight=False, soft_wrap=True)
    return _PASS if report.verdict == "pass" else _GATE_FAILED


@main.command()
@click.argument("of", type=click.Choice(["recipe", "report"]), default="recipe")
@_ends_well
def schema(of: str) -> None:
    """Print the JSON Schema of a recipe (or of report.json), for editors and readers."""
    if of == "report":
        from mfac_compress.pipeline.verdict.report import Report

        click.echo(json.dumps(Report.model_json_schema(), indent=2))
    else:
        from mfac_compress.pipeline.recipe.file import recipe_schema

        click.echo(json.dumps(recipe_schema(), indent=2))
