"""The command line: ``mfac-compress recipe.yaml model.pt``."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click_default_group import DefaultGroup

from mfac_compress.pipeline.cli_commands import init, recipes, schema, speed
from mfac_compress.pipeline.cli_exits import (
    GATE_FAILED,
    PASS,
    announced,
    exits,
    print_text,
    silence_pytorch,
    with_exit_code,
)
from mfac_compress.pipeline.cli_types import set_option
from mfac_compress.pipeline.errors import stage_named
from mfac_compress.pipeline.signals import ignore_interrupts, interruptible
from mfac_compress.pipeline.standard_streams import stdout_kept

if TYPE_CHECKING:
    from mfac_compress.pipeline.ranks import Ranks


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
    """Compress a trained model into a sparse ONNX model, and judge it.

    \b
      mfac-compress RECIPE MODEL --dry-run      show what would be done
      mfac-compress RECIPE MODEL -o DIRECTORY   do it
      mfac-compress run --help                  all options, and the exit codes
      mfac-compress init MODEL --factory F      write a first recipe for MODEL
      mfac-compress speed MODEL.onnx            time an ONNX file with sparse operators
      mfac-compress schema                      all keys of a recipe
      mfac-compress recipe import OLD -o NEW    make a recipe of one of SparseML's

    RECIPE is a YAML file, or a recipe of SparseML. MODEL is a checkpoint (.pt, .pth, .safetensors),
    a program of torch.export (.pt2), a folder of transformers (config.json, model.safetensors) or
    an ONNX file. A first argument that is no command is a RECIPE.
    """


@main.command(short_help="Run RECIPE on MODEL.")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Run directory. [runs/RECIPE's name]"
)
@set_option("Override a recipe key; may be given several times.")
@click.option("--dry-run", is_flag=True, help="Load and check everything, show the plan, stop.")
@click.option("--trust-pickle", is_flag=True, help="Let the checkpoint run code as it is read.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors, and a failed gate in one line.")
@click.option("-v", "--verbose", is_flag=True, help="Also each step within the stages.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
@exits
def run(**options: Any) -> int:
    """Run RECIPE on MODEL (.pt, .pth, .safetensors, .pt2, .onnx, or a folder of transformers).

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
    with announced("loading PyTorch ...", quiet=options["quiet"]):
        from mfac_compress.pipeline import compression, dry_run  # noqa: F401 - they are slow to load
        from mfac_compress.pipeline.ranks import open_ranks

    silence_pytorch()
    documents: list[str] = []
    with open_ranks() as ranks, _only_rank_zero_prints(ranks), interruptible():
        # What a model or a loss prints must not come between the report and who reads it.
        with stdout_kept() if options["as_json"] else nullcontext():
            code = _run(ranks, documents, **options)
        for document in documents:
            print_text(document)
    return code


@with_exit_code
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
        return PASS
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
    return {"pass": PASS, "none": PASS, "fail": GATE_FAILED}[report.verdict]


for _command in (init, speed, recipes, schema):
    main.add_command(_command)
