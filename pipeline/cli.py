"""The command line: ``mfac-compress recipe.yaml model.pt``."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click_default_group import DefaultGroup

from mfac_compress.pipeline.cli_types import Numbers, Shape, by_input
from mfac_compress.pipeline.errors import CompressError, RankError, stage_named
from mfac_compress.pipeline.signals import ignore_interrupts, interruptible
from mfac_compress.pipeline.standard_streams import stdout_kept

if TYPE_CHECKING:
    from mfac_compress.pipeline.ranks import Ranks

_PASS, _GATE_FAILED = 0, 1


def _with_exit_code(command: Callable[..., int | None]) -> Callable[..., int]:
    """Turn errors into one message and the exit codes of the contract."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> int:
        try:
            with stage_named("command line"):
                return command(*args, **kwargs) or _PASS
        except CompressError as error:
            if not (isinstance(error, RankError) and error.reported):
                click.echo(f"error: {error}", err=True)
            return error.exit_code

    return run


def _exits(command: Callable[..., int | None]) -> Callable[..., NoReturn]:
    """End the program with a command's exit code."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> NoReturn:
        sys.exit(_with_exit_code(command)(*args, **kwargs))

    return run


@contextmanager
def _announced(what: str, *, quiet: bool) -> Iterator[None]:
    """Say on a terminal what takes seconds before anything else can be shown."""
    shown = not quiet and sys.stderr.isatty()
    if shown:
        click.echo(what, err=True, nl=False)
    try:
        yield
    finally:
        if shown:
            click.echo(f"\r{' ' * len(what)}\r", err=True, nl=False)


def _silence_pytorch() -> None:
    """Keep PyTorch's log, with whole tracebacks, from above the message of a refusal."""
    if "TORCH_LOGS" not in os.environ:
        loggers = [name for name in logging.root.manager.loggerDict if name.startswith("torch")]
        for handler in (each for name in loggers for each in logging.getLogger(name).handlers):
            handler.setLevel(logging.CRITICAL + 1)


@contextmanager
def _only_rank_zero_prints(ranks: "Ranks") -> Iterator[None]:
    """Discard what every process but the first prints to stdout."""
    if ranks.is_rank_zero:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


class _Commands(DefaultGroup):
    """Its commands, and :func:`run` for every other first argument: that is a recipe."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # A recipe may be called as one of these, which are younger than `mfac-compress RECIPE`.
        is_recipe = {
            "recipe": args[1:2] != ["import"],
            "init": Path("init").is_file(),
        }.get(args[0], False)
        if is_recipe and args[1:2] != ["--help"]:
            args = ["run", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, default="run", default_if_no_args=False)
@click.version_option(package_name="mfac-compress")
def main() -> None:
    """Compress a trained PyTorch model into a sparse ONNX model, and judge it.

    \b
      mfac-compress RECIPE MODEL --dry-run      show what would be done
      mfac-compress RECIPE MODEL -o DIRECTORY   do it
      mfac-compress run --help                  all options, and the exit codes
      mfac-compress init MODEL --factory F      write a first recipe for MODEL
      mfac-compress speed MODEL.onnx            time an ONNX file with sparse operators
      mfac-compress schema                      all keys of a recipe
      mfac-compress recipe import OLD -o NEW    make a recipe of one of SparseML's

    RECIPE is a YAML file, or a recipe of SparseML. MODEL is a checkpoint (.pt, .pth, .safetensors),
    a program of torch.export (.pt2) or a folder of transformers (config.json, model.safetensors). A
    first argument that is no command is a RECIPE.
    """


@main.command(short_help="Run RECIPE on MODEL.")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Run directory. [runs/RECIPE's name]"
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY.PATH=VALUE",
    help="Override a recipe key; may be given several times.",
)
@click.option("--dry-run", is_flag=True, help="Load and check everything, show the plan, stop.")
@click.option("--trust-pickle", is_flag=True, help="Let the checkpoint run code as it is read.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors, and a failed gate in one line.")
@click.option("-v", "--verbose", is_flag=True, help="Also each step within the stages.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
@_exits
def run(**options: Any) -> int:
    """Run RECIPE on MODEL (.pt, .pth, .safetensors, .pt2, or a folder of transformers).

    \b
    Exit codes:
      0  all gates pass, or the recipe sets none
      1  a gate failed; results and report are written
      2  recipe, model or data is wrong
      3  anything else; the stage is named

    \b
    Several processes share the work where torchrun starts them:
      torchrun --nproc-per-node 4 -m mfac_compress.pipeline RECIPE MODEL
    torchrun ends with 1 for each of the codes but 0, and prints the code.
    """
    # Imported here, because PyTorch takes seconds and `--help` should not.
    with _announced("loading PyTorch ...", quiet=options["quiet"]):
        from mfac_compress.pipeline import compression, dry_run  # noqa: F401 - they are slow to load
        from mfac_compress.pipeline.ranks import open_ranks

    _silence_pytorch()
    documents: list[str] = []
    with open_ranks() as ranks, _only_rank_zero_prints(ranks), interruptible():
        # What a model or a loss prints must not come between the report and who reads it.
        with stdout_kept() if options["as_json"] else nullcontext():
            code = _run(ranks, documents, **options)
        for document in documents:
            _print(document)
    return code


@_with_exit_code
def _run(
    ranks: "Ranks",
    documents: list[str],
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
    """:func:`run` as one of several processes; ``documents`` gets what is for stdout alone."""
    from mfac_compress.pipeline.compression import compress, load
    from mfac_compress.pipeline.dry_run import show_plan
    from mfac_compress.pipeline.progress import Progress
    from mfac_compress.pipeline.run.runner import check_stages
    from mfac_compress.pipeline.schedule import plan_stages
    from mfac_compress.pipeline.terminal import open_terminal
    from mfac_compress.pipeline.verdict.report_text import failed_gates, print_verdict

    terminal = open_terminal(quiet=quiet or not ranks.is_rank_zero, stderr=as_json)
    progress = Progress(terminal, verbose=verbose)
    if dry_run:
        with stage_named("load"), progress.stage("load"):
            loaded, inputs = load(recipe, model, overrides, trust_pickle, ranks)
        show_plan(loaded, inputs, terminal)
        check_stages(plan_stages(loaded, inputs), ranks)
        return _PASS
    output = output or Path("runs") / recipe.stem
    report = compress(
        recipe,
        model,
        output,
        overrides=overrides,
        trust_pickle=trust_pickle,
        progress=progress,
        ranks=ranks,
    )
    # The report is written, by the first process: what is left must not end the run otherwise.
    ignore_interrupts()
    terminal.print(f"results: {output}", markup=False, highlight=False, soft_wrap=True)
    print_verdict(report, terminal)
    if quiet and report.verdict == "fail" and ranks.is_rank_zero:
        click.echo(f"{failed_gates(report)}. See {output / 'report.md'}.", err=True)
    if as_json:
        documents.append(json.dumps(json.loads(report.model_dump_json()), indent=2))
    ranks.agreed = True
    return {"pass": _PASS, "none": _PASS, "fail": _GATE_FAILED}[report.verdict]


@main.command(short_help="Write a first recipe for MODEL.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--factory",
    metavar="MODULE:CALLABLE",
    help="What builds the model: package.module:callable or path/to/file.py:callable.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY.PATH=VALUE",
    help="A key of the recipe, such as data.source; may be given several times.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("recipe.yaml"),
    help="The recipe to write. [recipe.yaml]",
)
@click.option("--trust-pickle", is_flag=True, help="Let the checkpoint run code as it is read.")
@_exits
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
    with _announced("loading PyTorch ...", quiet=False):
        from mfac_compress.pipeline.starter.write import write_starter

    _silence_pytorch()
    with interruptible():
        starter = write_starter(
            model, output, factory=factory, overrides=overrides, trust_pickle=trust_pickle
        )
    what = "Check it" if starter.has_data else "Fill in its section data, then check it"
    _print(f"{output}: {starter.layers} tensors can be pruned. {what}:")
    _print(f"  mfac-compress {output} {model} --dry-run")


@main.command(short_help="Time an ONNX file with sparse operators.")
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
@_exits
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
    with _announced("loading ONNX Runtime ...", quiet=False):
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
    return _GATE_FAILED if output is not None and measured.model is None else _PASS


@main.group(name="recipe", short_help="Import recipes of SparseML.")
def recipes() -> None:
    """Recipes of other tools."""


@recipes.command(name="import", short_help="Make a recipe of one of SparseML's.")
@click.argument("old", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The recipe to write."
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY.PATH=VALUE",
    help="A key that OLD does not have, such as data.source; may be given several times.",
)
@click.option("--allow-dropped", is_flag=True, help="Leave out what has no counterpart.")
@_exits
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
    _print(imported.summary(output))


@main.command(short_help="Print the JSON Schema of a recipe, or of report.json.")
@click.argument("of", type=click.Choice(["recipe", "report"]), default="recipe")
@_exits
def schema(of: str) -> None:
    """Print the JSON Schema of a recipe (or of report.json), for editors and readers."""
    if of == "report":
        from mfac_compress.pipeline.verdict.report import Report

        _print(json.dumps(Report.model_json_schema(), indent=2))
    else:
        from mfac_compress.pipeline.recipe.file import recipe_schema

        _print(json.dumps(recipe_schema(), indent=2))


def _print(text: str) -> None:
    """Print to stdout; who closed it has read enough, which is no error of the run's."""
    try:
        click.echo(text)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
