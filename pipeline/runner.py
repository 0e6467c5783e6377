"""A run: load and check the inputs, go through the stages, judge, publish."""

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from mfac_compress.pipeline.digest import package_digest
from mfac_compress.pipeline.errors import InputError, stage_named
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.inputs.load import check_inputs, load_inputs
from mfac_compress.pipeline.outcome import make_manifest, make_report, resolved_recipe
from mfac_compress.pipeline.progress import Progress, Stage
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.file import dump_recipe, load_recipe
from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.run.cache import Artefact, StageCache
from mfac_compress.pipeline.run.directory import RunDirectory
from mfac_compress.pipeline.stages import (
    accelerate,
    calibrate,
    export,
    prune,
    recover,
    validate,
)
from mfac_compress.pipeline.stages.shared_batch import check_sharing
from mfac_compress.pipeline.verdict.report import Report
from mfac_compress.pipeline.verdict.report_text import markdown
from mfac_compress.pipeline.versions import library_versions, recipe_hash


def compress(
    recipe: Recipe | str | Path,
    model_path: str | Path,
    output: str | Path,
    *,
    overrides: Sequence[str] = (),
    trust_pickle: bool = False,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> Report:
    """Run a recipe on a model and write the run directory.

    Results of an earlier run are removed from it first.

    Args:
        recipe: A recipe, or the path of one.
        model_path: Checkpoint: ``.pt``, ``.pth``, ``.safetensors`` or ``.pt2``.
        output: Run directory; made if it is not there.
        overrides: ``key.path=value``, as of ``--set``; for a recipe that is given by its path.
        trust_pickle: Allow the checkpoint to run code while it is read.
        progress: Where progress is shown. Default: nowhere.
        ranks: The processes that run this together; the first one writes. Default: this one.

    Returns:
        The report. A failed gate does not raise: look at ``report.verdict``.

    Raises:
        InputError: If recipe, model or data is wrong.
        StageError: If a stage fails for another reason.
    """
    progress, ranks = progress or Progress(), ranks or Ranks()
    directory = ranks.on_rank_zero(lambda: RunDirectory(Path(output)))
    with ExitStack() as stack:
        # Before anything else: however this run ends, an earlier one's results do not stand for it.
        ranks.on_rank_zero(lambda: stack.enter_context(directory.exclusive()))
        with ranks.raise_on_every_rank():
            loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
        with stage_named("load"), progress.stage("load"):
            context = _load(loaded, model_path, trust_pickle, progress, ranks, directory.cache)
        return _Run(context, directory).go()


def _load(
    recipe: Recipe,
    model_path: str | Path,
    trust_pickle: bool,
    progress: Progress,
    ranks: Ranks,
    window_folder: Path,
) -> RunContext:
    """Load and check everything that the stages start from."""
    with ranks.raise_on_every_rank():
        context = load_inputs(
            recipe, model_path, trust_pickle=trust_pickle, progress=progress, ranks=ranks
        )
        plan = check_inputs(context)
        accelerate.check_artifact(recipe)
    # One for all processes: how much memory is free differs between them.
    if ranks.all_reduce(torch.tensor(int(plan is not None and plan.on_disk))):
        context = replace(context, window_folder=window_folder)
        progress.detail("gradients on disk, being more than the memory budget")
    _check_same_inputs(context)
    check_sharing(context)
    return context


def _check_same_inputs(context: RunContext) -> None:
    """Check that all processes, which may be on several machines, read the same files."""
    own = {
        "recipe": recipe_hash(context.recipe),
        "model": context.model.fingerprint,
        "data": context.data.fingerprint,
        "the user's code": context.code.digest,
    }
    expected = context.ranks.on_rank_zero(lambda: own)
    with context.ranks.raise_on_every_rank():
        others = [name for name in own if own[name] != expected[name]]
        if others:
            raise InputError(
                f"{', '.join(others)} must be the same for all processes. They differ on rank "
                f"{context.ranks.rank}. Let all of them read the same files."
            )


@dataclass
class _Run:
    """The stages of one run, each made from the one before it."""

    context: RunContext
    directory: RunDirectory
    seconds: dict[str, float] = field(default_factory=dict)

    def go(self) -> Report:
        context = self.context
        calibrated = None
        if context.recipe.prune.method == "mfac":
            calibrated = self._stage(calibrate, calibrate.calibrate)
        pruned = self._stage(prune, prune.prune, calibrated)
        recovered = self._stage(recover, recover.recover, pruned)
        # From here on there is nothing to share, and the others would only disturb latencies.
        return context.ranks.on_rank_zero(lambda: self._judge(calibrated, recovered))

    def _judge(self, calibrated: Artefact | None, recovered: Artefact) -> Report:
        """Export, measure, judge and publish, in one process."""
        context, alone = self.context, Ranks()
        exported = self._stage(export, export.export, recovered, ranks=alone)
        accelerated = self._stage(accelerate, accelerate.accelerate, exported, ranks=alone)
        accelerate.check_written(context.recipe, accelerated.facts)
        validated = self._stage(
            validate, validate.validate, recovered, exported, accelerated, ranks=alone
        )
        timed = validate.Latencies()
        candidate = accelerated.facts["state"] == accelerate.CANDIDATE
        if context.recipe.validate_.latency is not None or candidate:
            with self._timed("latency"):
                timed = validate.measure_latency(context, exported.folder, accelerated.folder)
        decided = accelerate.decided(accelerated.facts, timed.accelerated)
        accelerate.check_written(context.recipe, decided)
        with stage_named("report", resumable=True):
            report = make_report(context, validated.facts, timed, recovered.facts, decided)
            resolved = resolved_recipe(context.recipe, calibrated and calibrated.facts, decided)
            used = [accelerated] if decided["state"] == "used" else []
            self._publish(report, resolved, recovered, exported, *used)
        return report

    def _stage(
        self,
        stage: ModuleType,
        make: Callable[..., Mapping[str, Any]],
        *upstream: Artefact | None,
        ranks: Ranks | None = None,
    ) -> Artefact:
        """The artefact of a stage, found or made from those before it; by default by all."""
        name = stage.__name__.rpartition(".")[2]
        code = self.context.code
        depends_on = {
            "package": package_digest(),
            "libraries": library_versions(),
            "code": code.digest,
            # What cannot be hashed may have changed: then nothing may be found.
            "unseen": code.unseen and uuid.uuid4().hex,
            "upstream": [artefact and artefact.digest for artefact in upstream],
            **stage.depends_on(self.context),
        }
        folders = [artefact and artefact.folder for artefact in upstream]
        with self._timed(name) as line:
            cache = StageCache(self.directory.cache, ranks or self.context.ranks, code)
            artefact = cache.get(
                name, depends_on, lambda folder: make(self.context, *folders, folder)
            )
            line.reused = artefact.reused
        if artefact.rejected:
            self.context.progress.warn(f"{name}: made anew, since in the cache {artefact.rejected}")
        return artefact

    @contextmanager
    def _timed(self, name: str) -> Iterator[Stage]:
        """Show a stage, note its seconds, and name it in whatever goes wrong in it."""
        start = time.perf_counter()
        named = stage_named(name, resumable=bool(self.seconds))
        with named, self.context.progress.stage(name) as line:
            yield line
        self.seconds[name] = round(time.perf_counter() - start, 3)

    def _publish(self, report: Report, resolved: Recipe, *artefacts: Artefact) -> None:
        """Put the results in place, the report last: where it is, everything is."""
        for artefact in artefacts:
            self.directory.publish(artefact)
        files = {name: digest for each in artefacts for name, digest in each.files.items()}
        self.directory.write("recipe.resolved.yaml", dump_recipe(resolved))
        manifest = make_manifest(self.context, report, self.seconds, files)
        self.directory.write("manifest.json", json.dumps(manifest, indent=2) + "\n")
        self.directory.write("report.md", markdown(report, self.seconds))
        self.directory.write("report.json", report.model_dump_json(indent=2) + "\n")
