"""A pruned model that was trained elsewhere takes the place of pruning."""

from mfac_compress.pipeline.inputs.given import Given
from mfac_compress.pipeline.run.stage import Job
from mfac_compress.pipeline.run.state import State
from mfac_compress.pipeline.stages.prune import Pruned


def take(job: Job, *, given: Given) -> Pruned:
    """Write masks and weights that were read, and checked, to the job's folder.

    Args:
        job: Where.
        given: The pruned model.
    """
    state = State.of(given.module, given.masks)
    state.save(job.folder)
    return Pruned(state.sparsity)
