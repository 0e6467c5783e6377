"""Recovery by the user's own training loop, which is trusted to run, and looked at afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mfac_compress.mfac.masking import MaskHooks
from mfac_compress.pipeline.errors import InputError, describe
from mfac_compress.pipeline.inputs.augment import ImageChanges
from mfac_compress.pipeline.inputs.calibration import CalibrationData
from mfac_compress.pipeline.inputs.callables import user_code
from mfac_compress.pipeline.inputs.forward import random_state_kept, seed_random_state
from mfac_compress.pipeline.inputs.model import Model
from mfac_compress.pipeline.inputs.samples import LoopSplits, Samples
from mfac_compress.pipeline.inputs.training_loop import ARGUMENTS, TrainingLoop
from mfac_compress.pipeline.inputs.training_mode import train_mode
from mfac_compress.pipeline.inputs.training_samples import TrainingSamples
from mfac_compress.pipeline.quoting import with_article
from mfac_compress.pipeline.recipe.schema import RecoverSection
from mfac_compress.pipeline.run.stage import Job
from mfac_compress.pipeline.run.state import State
from mfac_compress.pipeline.stages.batchnorm import recalibrate_batchnorm
from mfac_compress.pipeline.stages.divergence import Divergence
from mfac_compress.pipeline.stages.recover import Recovered
from mfac_compress.pipeline.stages.trained import check_trained


def recover_by_loop(
    job: Job,
    *,
    model: Model,
    loop: TrainingLoop,
    section: RecoverSection,
    samples: TrainingSamples,
    calibration: CalibrationData,
    augment: ImageChanges,
    seed: int,
) -> Recovered:
    """Let the user's loop train the pruned model; the state goes to the job's folder.

    What it leaves is copied and checked before anything else is done, and put into a copy of the
    model that it never held: hooks and threads of its own change nothing any more. A run that is
    killed meanwhile starts the loop anew.

    Args:
        job: Where, after the pruned state.
        model: The dense model.
        loop: The user's function.
        section: Says what becomes of batch-norm statistics afterwards.
        samples: What to train on.
        calibration: Has held-out samples for choices.
        augment: Random changes of the images that batch-norm statistics are taken of.
        seed: Of all random numbers.

    Raises:
        InputError: If the function fails, ends the program or returns another model.
        StageError: If it leaves a model that cannot be what was pruned; a tensor is named.
    """
    folder, device = job.before["state"].folder, calibration.device
    pruned = State.load(folder)
    splits = LoopSplits(
        Samples(samples, device, seed),
        Samples(TrainingSamples(calibration.split, calibration.draws.holdout), device, seed),
    )
    module = pruned.into(model.copy())
    with random_state_kept(device), _settings_kept():
        seed_random_state(seed)
        train_mode(module)
        _call(loop, module, splits, pruned)
    after = State.of(module, {})
    # Read anew: the loop has held the masks, and could have changed them.
    before = State.load(folder)
    trained = check_trained("recover", before, after, model.copy())
    _warn_if_unchanged(job, loop, before, after)
    MaskHooks(dict(trained.named_parameters()), before.masks)  # +0 of what may be -0
    batchnorm = recalibrate_batchnorm(
        trained, Divergence(model.module, calibration), section.batchnorm, augment
    )
    State.of(trained, before.masks).save(job.folder)
    return Recovered((), batchnorm, loop=loop.name)


def _call(loop: TrainingLoop, module: nn.Module, splits: LoopSplits, pruned: State) -> None:
    parameters = dict(module.named_parameters())
    must = f"recover.loop must be a function of ({', '.join(ARGUMENTS)})"
    with MaskHooks(parameters, pruned.masks) as handle:
        try:
            with user_code():
                returned = loop.function(module, splits, handle)
        except InputError:  # of a sample that cannot be read
            raise
        except Exception as error:
            raise InputError(f"{must}. {loop.name!r} raised {describe(error)}.") from error
    if returned is not None and returned is not module:
        raise InputError(
            f"{must} that trains the model in place and returns nothing. {loop.name!r} returned "
            f"{with_article(type(returned).__name__)}, which would not be used. Copy its weights "
            "into the model: model.load_state_dict(other.state_dict())."
        )


def _warn_if_unchanged(job: Job, loop: TrainingLoop, before: State, after: State) -> None:
    if all(torch.equal(after.tensors[name], tensor) for name, tensor in before.tensors.items()):
        job.progress.warn(
            f"recover.loop {loop.name!r} has changed no weight. It must train the model that it is "
            "given, and not a copy."
        )


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Put back what training scripts set for the whole process."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
