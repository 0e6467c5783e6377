"""What a recipe can say of where zeros may be: prune.pattern."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from mfac_compress.pipeline.recipe.section import NoSwitch, Section
from mfac_compress.pipeline.recipe.source import RecipeIssue, RecipeSource


class BlockPattern(Section):
    """Neighbouring weights that go together, so that a processor reads or skips them as one."""

    block: Annotated[int, Field(ge=2, le=64), NoSwitch]
    """Number of weights that go together. Tensors that it does not divide are left out."""
    axis: Literal["outputs", "inputs"] = "outputs"
    """Whether they are neighbouring outputs (channels, rows of the matrix) that read the same
    input, or neighbouring inputs of one output."""

    def __str__(self) -> str:
        return f"blocks of {self.block} {self.axis}"


class NMPattern(Section):
    """Of each m neighbouring inputs of an output n are kept, as some processors want it."""

    n: Annotated[int, Field(ge=1, le=63), NoSwitch]
    """How many are kept."""
    m: Annotated[int, Field(ge=2, le=64), NoSwitch]
    """Of how many. Tensors that it does not divide are left out."""

    def __str__(self) -> str:
        return f"{self.n} of {self.m} inputs"

    @property
    def sparsity(self) -> float:
        """The only one that the pattern has."""
        return 1 - self.n / self.m

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        if self.n >= self.m:
            yield RecipeIssue(("n",), f"must be below m ({self.m}). Got {self.n}.")


def _kind(given: Any) -> str:
    """Which form of ``prune.pattern`` is meant: by its keys, so that errors are of one form."""
    if isinstance(given, NMPattern) or (isinstance(given, dict) and given.keys() & {"n", "m"}):
        return "NMPattern"
    return "BlockPattern" if isinstance(given, dict | BlockPattern) else "unstructured"


Zeros = Annotated[
    Annotated[Literal["unstructured", "channels", "heads", "neurons"], Tag("unstructured")]
    | Annotated[BlockPattern, Tag("BlockPattern")]
    | Annotated[NMPattern, Tag("NMPattern")],
    Discriminator(_kind),
]
