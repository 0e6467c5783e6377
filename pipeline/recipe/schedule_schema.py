"""What a recipe can say of how sparsity grows over the steps: prune.schedule."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Tag, ValidationError

from mfac_compress.pipeline.recipe.section import Index, Section, Share, Steps
from mfac_compress.pipeline.recipe.source import RecipeIssue

_KEYS = {"final": "sparsity", "steps": "steps", "epochs_between": "epochs_between"}
"""Keys of the schedule that are also keys of ``prune``, by the names that they have there."""


Interpolation = Literal["geometric", "linear", "cubic"]


class ScheduleSection(Section):
    """How sparsity grows over the steps. `schedule: cubic` is short for `schedule: {interpolation:
    cubic}`."""

    interpolation: Interpolation = "geometric"
    """`geometric`: each step removes the same share of the remaining weights. `linear`: the same
    number of weights. `cubic`: many at first, few at last."""
    init: Share | None = None
    """Sparsity after the first step; in proportion for tensors with a sparsity of their own.
    Default: what the interpolation gives from 0 on."""
    final: Share | None = None
    """Another place for `prune.sparsity`."""
    steps: Steps | None = None
    """Another place for `prune.steps`."""
    epochs_between: Index | None = None
    """Another place for `prune.epochs_between`."""

    @staticmethod
    def moved_out(given: Mapping[str, Any]) -> dict[str, Any]:
        """Copy what a section ``prune`` says in its schedule to where the others look for it.

        A plain word becomes the interpolation.
        """
        said = given.get("schedule", {})
        if isinstance(said, str) and said in get_args(Interpolation):
            said = {"interpolation": said}
        try:
            schedule = ScheduleSection.model_validate(said)
        except ValidationError:  # it is reported where it stands
            return dict(given)
        moved = {outer: getattr(schedule, inner) for inner, outer in _KEYS.items()}
        moved = {name: value for name, value in moved.items() if value is not None}
        return moved | {**given, "schedule": said}

    def contradictions(self, prune: Any) -> Iterator[RecipeIssue]:
        """What is said twice in a section ``prune``, and not alike."""
        for inner, outer in _KEYS.items():
            own, other = getattr(self, inner), getattr(prune, outer)
            if own is not None and own != other:
                yield RecipeIssue(
                    ("schedule", inner),
                    f"must be prune.{outer}, where both are given. Got {own} and {other}. "
                    "Leave one out.",
                )
        if self.init is None:
            return
        if prune.steps == 1:
            yield RecipeIssue(
                ("schedule", "init"),
                f"must be left out where there is only one step. Got {self.init}.",
            )
        elif self.init > prune.sparsity:
            yield RecipeIssue(
                ("schedule", "init"),
                f"must not be above the final sparsity, {prune.sparsity:g}. Got {self.init:g}.",
            )


def _kind(given: Any) -> str:
    """Which form of ``prune.schedule`` is meant, so that errors are of one form."""
    return "ScheduleSection" if isinstance(given, dict | ScheduleSection) else "geometric"


Schedule = Annotated[
    Annotated[Interpolation, Tag("geometric")] | Annotated[ScheduleSection, Tag("ScheduleSection")],
    Discriminator(_kind),
]
