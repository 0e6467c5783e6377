"""What the report says of the model, the samples and the code that a run started from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mfac_compress.pipeline.inputs.code_sources import NOT_COVERED, CodeSources
from mfac_compress.pipeline.inputs.data import DataSplits
from mfac_compress.pipeline.inputs.layers import PruneTargets
from mfac_compress.pipeline.recipe.schema import Recipe


@dataclass(frozen=True)
class LeftOut:
    """A parameter that was not pruned."""

    reason: str
    """Why not, in words."""
    size: int
    """Number of its values."""


@dataclass(frozen=True)
class Sparsity:
    """What was to be removed, and from how much. What was removed stands at each variant."""

    target: float
    """Asked for, over all matched weights."""
    weights: int
    """Number of matched weights."""
    parameters: int
    """Number of all parameters of the model, tied ones once."""
    pattern: str
    """Where zeros may be: `unstructured`, `blocks of 4 outputs`, or `as in masks.safetensors`."""
    left_out: dict[str, LeftOut]
    """Parameters that were not pruned, by name."""
    gradients: tuple[int, ...] = ()
    """Number of gradients by which each pruning step chose; empty where none were computed."""

    @property
    def share(self) -> float:
        """Matched weights as a share of all parameters: what pruning can reach."""
        return self.weights / self.parameters


@dataclass(frozen=True)
class Data:
    """The samples that the run used."""

    samples: dict[str, int]
    """Number of samples of each split."""
    shared: dict[str, int]
    """Samples that two splits share, by ``first, second``; at most ``data.max_overlap``."""
    repeated: dict[str, int]
    """Samples of a split whose input occurred before in it, where there are any."""
    unstable: tuple[str, ...]
    """Splits that give other samples at each reading, so that overlaps cannot be seen."""


@dataclass(frozen=True)
class Code:
    """What a stage's reuse depends on, of the user's code."""

    files: dict[str, str]
    """SHA-256 by path: modules outside the installed packages, and files that they opened;
    ``changed during the run`` for one that did not stay the same. Had one of them changed before,
    what was made with it would have been made anew."""
    not_reusable: tuple[str, ...]
    """What the code refers to and cannot be hashed. If there is any, nothing is ever reused."""
    not_covered: str
    """What else code can depend on, and no run can see."""


def sparsity_of(
    recipe: Recipe, targets: PruneTargets, sizes: Mapping[str, int], gradients: Sequence[int]
) -> Sparsity:
    """What was asked for.

    Args:
        recipe: Names the pattern.
        targets: What was pruned, and why the rest was not.
        sizes: Number of values of every parameter of the model, tied ones once.
        gradients: Number of them in each pruning step.
    """
    return Sparsity(
        target=targets.target,
        weights=targets.weights,
        parameters=sum(sizes.values()),
        pattern=recipe.prune.zeros,
        left_out={
            name: LeftOut(reason, sizes.get(name, 0)) for name, reason in targets.left_out.items()
        },
        gradients=tuple(gradients),
    )


def data_of(data: DataSplits) -> Data:
    """What is known of the samples."""
    return Data(
        samples={split.name: len(split) for split in data},
        shared={f"{one}, {other}": count for (one, other), count in data.overlap.items()},
        repeated=dict(data.repeats),
        unstable=tuple(data.unstable),
    )


def code_of(code: CodeSources) -> Code:
    """What is known of the user's code by the end of the run."""
    return Code(
        files={**code.files, **code.since()},
        not_reusable=tuple(code.unseen),
        not_covered=NOT_COVERED,
    )
