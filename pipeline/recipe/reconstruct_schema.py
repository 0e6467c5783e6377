"""The section of a recipe that says how pruned layers are repaired: reconstruct."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import ValidationInfo, model_validator

from mfac_compress.pipeline.recipe.section import Count, Index, NonNegative, Positive, Section
from mfac_compress.pipeline.recipe.source import KeyPath, RecipeIssue, RecipeSource


class BlocksSection(Section):
    """Training of the method `blocks`: each block of layers on its own target, without labels."""

    samples: Count = 5000
    """Calibration samples, beside the held-out ones."""
    epochs: Count = 4
    """Passes over them."""
    samples_between: Index = 0
    """Calibration samples of one pass after each of `prune.steps` but the last, where least squares
    leaves the outputs far from the dense model's, as where much is removed. 0: no pass."""
    flip: bool = False
    """Mirror half of the images left and right, anew in each pass."""
    lr: Positive = 3e-3
    """Learning rate of Adam at the start; it falls along a cosine."""
    batch_size: Count = 50
    """Samples of one step."""


class ReconstructSection(Section):
    """Repair of pruned layers: what is left of each is fitted to the dense model's outputs.

    On calibration samples without labels. No removed weight comes back, and what does not bring the
    model's outputs nearer to the dense model's on held-out samples is not kept.
    """

    method: Literal["none", "least_squares", "blocks"] = "none"
    """`least_squares`: each layer's weights in closed form, layer after layer. `blocks`: the same,
    and at the end each block of layers is trained to give the dense block's output."""
    every_step: bool = True
    """Least squares also after each of `prune.steps` but the last: the next one then starts from
    the repaired model."""
    samples: Count = 1000
    """Calibration samples of least squares, beside the held-out ones."""
    positions: Count | Literal["all"] = 64
    """Random positions of each sample (pixels, tokens) at which a layer is looked at. Padding,
    as `attention_mask` marks it, does not count."""
    ridge: NonNegative = 0.1
    """Pull towards the present weights, as a multiple of the mean square of a layer's inputs."""
    blocks: BlocksSection = BlocksSection()
    """Of `blocks`."""

    @model_validator(mode="before")
    @classmethod
    def _of_another_method(cls, given: Any, info: ValidationInfo) -> Any:
        """Where `--set` gives the method, the file's keys of another one do not count."""
        source = info.context if isinstance(info.context, RecipeSource) else RecipeSource()
        if ("reconstruct", "method") not in source.overridden or not isinstance(given, dict):
            return given
        given = dict(given)
        blocks = given.get("blocks")
        if isinstance(blocks, dict):
            given["blocks"] = blocks = dict(blocks)
        for *section, key in _unread(str(given.get("method"))):
            keys = blocks if section else given
            if isinstance(keys, dict) and ("reconstruct", *section, key) not in source.overridden:
                keys.pop(key, None)
        return given

    @property
    def blocks_at_end(self) -> BlocksSection | None:
        """The training after the last step; None for none."""
        if self.method != "blocks":
            return None
        return self.blocks.model_copy(update={"samples_between": 0})

    @property
    def blocks_between(self) -> BlocksSection | None:
        """The training after each step before it; None for none."""
        samples = self.blocks.samples_between
        if self.blocks_at_end is None or not samples:
            return None
        return self.blocks_at_end.model_copy(update={"samples": samples, "epochs": 1})

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        for key in _unread(self.method):
            of_blocks = len(key) > 1
            owner = self.blocks if of_blocks else self
            given = getattr(owner, key[-1])
            if given != type(owner).model_fields[key[-1]].default:
                needed = "blocks" if of_blocks else "least_squares or blocks"
                yield RecipeIssue(
                    key,
                    f"must be left out unless reconstruct.method is {needed}. Got {given} with "
                    f"{self.method}.",
                )
        if self.blocks.samples_between and not self.every_step:
            yield RecipeIssue(
                ("blocks", "samples_between"),
                "must be 0 where reconstruct.every_step is false. "
                f"Got {self.blocks.samples_between}.",
            )


def _unread(method: str) -> list[KeyPath]:
    """The keys that a method does not read."""
    unread: list[KeyPath] = []
    if method == "none":
        fields = ReconstructSection.model_fields
        unread += [(key,) for key in fields if key not in ("method", "blocks")]
    if method != "blocks":
        unread += [("blocks", key) for key in BlocksSection.model_fields]
    return unread
