"""Which blocks the Fisher has, and which of its columns and gradients each process takes."""

from mfac_compress.mfac.partition import BlockPartition
from mfac_compress.mfac.plan import uses_blocks
from mfac_compress.mfac.process_group import Shard, shard_columns
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.context import RunContext


def partition_of(context: RunContext) -> BlockPartition:
    """The Fisher's blocks for this recipe and model."""
    section, targets = context.recipe.fisher, context.targets
    if section.block_size == "full":
        return BlockPartition.contiguous(targets.weights, None)
    if section.blocks == "row":
        return BlockPartition.of_rows([t.shape for t in targets.matched], section.block_size)
    return BlockPartition.of_tensors(targets.bounds, section.block_size)


def uses_block_fisher(context: RunContext) -> bool:
    """Whether the Fisher is kept as B x B blocks; else as a window of gradients."""
    return uses_blocks(partition_of(context), context.recipe.calibrate.num_gradients)


def shards_of(context: RunContext) -> list[Shard]:
    """The Fisher's columns of each process.

    Raises:
        InputError: If there are not enough blocks for all.
    """
    try:
        return shard_columns(
            partition_of(context), context.ranks.size, within_blocks=not uses_block_fisher(context)
        )
    except ValueError as error:
        raise InputError(f"fisher.block_size: {error}") from error


def own_gradients(context: RunContext) -> int:
    """How many of the m gradients of a step this process computes."""
    m = context.recipe.calibrate.num_gradients
    return len(range(m)[context.ranks.shard(m)])
