"""The recipe's ``data`` section for texts in files."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from mfac_compress.pipeline.quoting import listed
from mfac_compress.pipeline.recipe.data_parts import (
    FileRows,
    FilesSection,
    RowRange,
    row_overlaps,
)
from mfac_compress.pipeline.recipe.section import Count, NoSwitch, Section, Text, duplicates
from mfac_compress.pipeline.recipe.source import RecipeIssue, RecipeSource

Column = Annotated[int, Field(ge=0, strict=True), NoSwitch] | Text
"""Number of a column from 0, or its name."""
TextInput = Literal["input_ids", "attention_mask", "token_type_ids"]


class TextSplits(Section):
    """Disjoint sets of rows. `recovery` is needed only to train."""

    calibration: FileRows
    recovery: FileRows | None = None
    validation: FileRows


class TextData(FilesSection):
    """Texts in the rows of `.tsv`, `.csv` or `.jsonl` files, also of `.gz`, in UTF-8.

    They become numbers by a `tokenizer.json`; the model is called with `inputs` by name, padded to
    the longest text of a batch. A `.tsv` has no quoting, a `.csv` has; empty lines do not count.
    """

    source: Literal["text"]
    text: Column | tuple[Column, Column]
    """Column of the text, or a list of two for pairs: a number from 0, or a name (of the first row
    with `header`, or a key of `.jsonl`)."""
    label: Column | None = None
    """Column of the target. Needed for validation and training, not to calibrate without labels."""
    label_type: Literal["class", "score"] = "class"
    """`class`: a whole number from 0, or one of `classes`. `score`: any number."""
    classes: tuple[Text, ...] = ()
    """Names of the classes as they stand in the column, the first of which is class 0."""
    header: bool = False
    """Whether the first row of a `.tsv` or `.csv` names its columns."""
    pairs: Literal["together", "apart"] = "together"
    """`together`: the model sees both texts of a pair at once. `apart`: each is a sample of its
    own, next to the other, for embeddings that are compared (`task.metric: spearman_cosine`)."""
    max_length: Count = 128
    """Tokens, with special ones, at which a text is cut."""
    inputs: Annotated[tuple[TextInput, ...], Field(min_length=1)] = ("input_ids", "attention_mask")
    """What the model is called with. `token_type_ids` tell BERT the texts of a pair apart."""
    tokenizer: Text | None = None
    """Folder with `tokenizer.json`; relative paths start at the recipe's folder. Default: MODEL,
    where that is a folder."""
    splits: TextSplits

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        yield from duplicates("inputs", self.inputs)
        yield from duplicates("classes", self.classes)
        columns = self.columns
        yield from duplicates("text", columns)
        if self.label in columns:
            yield RecipeIssue(
                ("label",), f"must be another column than data.text. Got {self.label!r} for both."
            )
        if "input_ids" not in self.inputs:
            names = ", ".join(self.inputs)
            yield RecipeIssue(("inputs",), f"must have input_ids. Got {names}.")
        if self.pairs == "apart" and len(columns) == 1:
            yield RecipeIssue(
                ("pairs",), "must be left out where data.text is one column. Got apart."
            )
        if self.classes and self.label_type == "score":
            yield RecipeIssue(
                ("classes",),
                f"must be left out where data.label_type is score. Got {listed(self.classes)}.",
            )
        yield from self._form_issues()
        by_file: dict[Any, dict[str, RowRange | None]] = {}
        for name, split in self.splits:
            if split is not None:
                by_file.setdefault(self.resolve(split.path, source.folder), {})[name] = split.rows
        for ranges in by_file.values():
            yield from row_overlaps(ranges, self.max_overlap)

    def issues_of_use(
        self, task: str | None, axes: Mapping[str, Mapping[int, str]]
    ) -> Iterator[RecipeIssue]:
        """What does not go with the model and its file.

        Args:
            task: The recipe's ``model.task``.
            axes: Its ``export.dynamic_axes``.
        """
        if task == "embedding" and len(self.columns) > 1 and self.pairs == "together":
            text = "must be apart where model.task is embedding. Got together."
            yield RecipeIssue(("data", "pairs"), text)
        if task == "sequence-classification" and self.pairs == "apart":
            text = "must be together where model.task is sequence-classification. Got apart."
            yield RecipeIssue(("data", "pairs"), text)
        for name in self.inputs:
            if 1 not in axes.get(name, {}):
                text = f"must name axis 1 of {name}, the tokens: texts have any length."
                yield RecipeIssue(("export", "dynamic_axes"), text)

    @property
    def columns(self) -> tuple[int | str, ...]:
        """Those of the texts, one or two."""
        return self.text if isinstance(self.text, tuple) else (self.text,)

    def _form_issues(self) -> Iterator[RecipeIssue]:
        """Whether the columns can be told in each file."""
        named = [("text", column) for column in self.columns]
        named += [] if self.label is None else [("label", self.label)]
        for name, split in self.splits:
            if split is None:
                continue
            form, path = text_form(split.path), repr(split.path)
            if form is None:
                text = "must end in .tsv, .csv or .jsonl, or one of these and .gz"
                yield RecipeIssue(("splits", name, "path"), f"{text}. Got {path}.")
            elif form == "jsonl" and self.header:
                text = f"must be false for files of .jsonl. Got true for {path}."
                yield RecipeIssue(("header",), text)
            elif form == "jsonl":
                for key, column in named:
                    if isinstance(column, int):
                        yield RecipeIssue((key,), f"must be a name in {path}. Got {column}.")
            elif not self.header:
                for key, column in named:
                    if isinstance(column, str):
                        text = f"must be a number in {path}, or data.header true. Got {column!r}."
                        yield RecipeIssue((key,), text)


def with_open_lengths(recipe: Any) -> Any:
    """Open the axis of the tokens in the ONNX file of a recipe whose data are texts.

    Args:
        recipe: As it was written, not checked yet.
    Returns:
        The recipe, with ``export.dynamic_axes`` where it has none of its own.
    """
    data, export = (_written(recipe, key) for key in ("data", "export"))
    if data.get("source") != "text" or "dynamic_axes" in export:
        return recipe
    names = data.get("inputs", TextData.model_fields["inputs"].default)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return recipe
    return {**recipe, "export": {**export, "dynamic_axes": {name: {1: "length"} for name in names}}}


def _written(recipe: Any, key: str) -> Mapping[str, Any]:
    section = recipe.get(key, {}) if isinstance(recipe, Mapping) else {}
    if isinstance(section, Section):
        return {name: getattr(section, name) for name in section.model_fields_set}
    return section if isinstance(section, Mapping) else {"dynamic_axes": None}


def text_form(path: str) -> str | None:
    """How the rows of a file of text are written, by its name: tsv, csv or jsonl."""
    form = path.lower().removesuffix(".gz").rpartition(".")[2]
    return form if form in ("tsv", "csv", "jsonl") else None
