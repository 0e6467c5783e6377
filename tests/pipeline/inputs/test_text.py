"""Texts in files: what is read of them, how batches are made, and what is refused."""

import gzip
import json

import pytest
import torch

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs import text_files
from mfac_compress.pipeline.inputs.augment import ImageChanges
from mfac_compress.pipeline.inputs.data import load_data
from mfac_compress.pipeline.inputs.splits import open_split
from mfac_compress.pipeline.inputs.text import open_texts
from mfac_compress.pipeline.inputs.text_files import read_rows
from mfac_compress.pipeline.recipe.schema import TextData

ROWS = [("the cat sat", "a dog ran", "4.5"), ('a "red tree', "the big blue sky", "0")]
CLS, SEP = 2, 3
# Of the fixture's words: [PAD] [UNK] [CLS] [SEP] a the cat dog sat on mat ran ...
FIRST = [CLS, 5, 6, 8, SEP]
SECOND = [CLS, 4, 7, 11, SEP]


def _write(path, rows=ROWS):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        for one, other, score in rows:
            if ".jsonl" in path.name:
                file.write(json.dumps({"one": one, "other": other, "score": float(score)}) + "\n")
            elif ".csv" in path.name:
                quoted = ",".join('"' + cell.replace('"', '""') + '"' for cell in (one, other))
                file.write(f"{quoted},{score}\r\n")
            else:
                file.write(f"{one}\t{other}\t{score}\n")
    return path


def _section(path="data.tsv", rows=None, **section):
    split = {"path": path, "rows": rows}
    values = {"text": [0, 1], "label": 2, "label_type": "score", **section}
    splits = {"calibration": split, "validation": {"path": "other.tsv"}}
    return TextData(source="text", splits=splits, **values)


def _open(folder, model, labelled=True, **section):
    opened = open_texts(_section(**section), folder, {"calibration": labelled}, model)
    return opened["calibration"]


def _batch(dataset):
    return dataset.collate(dataset.read(range(len(dataset))))


@pytest.mark.parametrize(
    "name", ["a.tsv", "a.tsv.gz", "a.csv", "a.csv.gz", "a.jsonl", "a.jsonl.gz"]
)
def test_all_forms_of_files_give_the_same_rows(tmp_path, name):
    path = _write(tmp_path / name)
    columns = ("one", "other") if "jsonl" in name else (0, 1)
    found = list(read_rows(path, columns, header=False, given=name, key="split"))
    assert found == [(0, ROWS[0][:2]), (1, ROWS[1][:2])]


def test_a_header_names_columns_and_is_no_row(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("\ufefflabel\ttext\r\n\r\n1\tthe cat\r\n")
    found = list(read_rows(path, ("text", "label"), header=True, given="a.tsv", key="split"))
    assert found == [(0, ("the cat", "1"))]


def test_pairs_together_are_one_input_with_types(tmp_path, tiny_bert):
    _write(tmp_path / "data.tsv")
    names = ["input_ids", "attention_mask", "token_type_ids"]
    inputs, targets = _batch(_open(tmp_path, tiny_bert, inputs=names))
    assert [*inputs] == names
    ids, types = (inputs[name][0].tolist() for name in ("input_ids", "token_type_ids"))
    longest = inputs["input_ids"].shape[1]
    assert ids == FIRST + SECOND[1:] + [0] * (longest - 9)
    assert types == [0] * 5 + [1] * 4 + [0] * (longest - 9)
    assert inputs["attention_mask"][0].tolist() == [1] * 9 + [0] * (longest - 9)
    assert targets.tolist() == [4.5, 0.0]
    assert targets.dtype == torch.float32


def test_pairs_apart_lie_side_by_side_with_one_target(tmp_path, tiny_bert):
    _write(tmp_path / "data.tsv")
    dataset = _open(tmp_path, tiny_bert, pairs="apart")
    inputs, targets = _batch(dataset)
    assert len(dataset) == 4
    assert inputs["input_ids"][:2, :5].tolist() == [FIRST, SECOND]
    assert targets.tolist() == [4.5, 4.5, 0.0, 0.0]
    assert dataset.describe(3) == "row 1 of data.tsv, text 2"


def test_a_batch_is_as_long_as_its_longest_text(tmp_path, tiny_bert):
    _write(tmp_path / "data.tsv", [("the", "", "0"), ("the cat sat on the mat", "", "1")])
    dataset = _open(tmp_path, tiny_bert, text=0)
    alone = dataset.collate(dataset.read([0])).inputs
    assert alone["input_ids"].shape == (1, 3)
    assert _batch(dataset).inputs["attention_mask"].sum(1).tolist() == [3, 8]
    cut = _open(tmp_path, tiny_bert, text=0, max_length=5)
    assert _batch(cut).inputs["input_ids"][1].tolist() == [CLS, 5, 6, 8, SEP]


def test_a_shuffled_split_has_texts_of_similar_length_in_a_batch(tmp_path, tiny_bert):
    lengths = [1 + i % 7 for i in range(70)]
    _write(tmp_path / "data.tsv", [(" ".join(["cat"] * n), "", "0") for n in lengths])
    split = open_split("calibration", _open(tmp_path, tiny_bert, text=0), ImageChanges())
    generator = torch.Generator().manual_seed(0)
    masks = [x["attention_mask"] for x, _ in split.batches(10, shuffle=True, generator=generator)]
    assert all(bool(mask.all()) for mask in masks)
    assert sorted(int(mask.shape[1]) for mask in masks) == [3, 4, 5, 6, 7, 8, 9]
    sorted_ = split.by_length(torch.arange(70))
    assert [lengths[at] for at in sorted_] == sorted(lengths)


def test_rows_are_a_part_of_a_file_and_labels_may_be_names(tmp_path, tiny_bert):
    rows = [("the cat", "", name) for name in ("bad", "good", "bad")]
    _write(tmp_path / "data.tsv", rows)
    dataset = _open(
        tmp_path, tiny_bert, text=0, label_type="class", classes=["bad", "good"], rows=[1, 3]
    )
    assert _batch(dataset).targets.tolist() == [1, 0]
    assert dataset.describe(0) == "row 1 of data.tsv"


def test_labels_are_not_read_where_none_are_needed(tmp_path, tiny_bert):
    _write(tmp_path / "data.tsv", [("the cat", "a dog", "unknown")])
    assert _batch(_open(tmp_path, tiny_bert, labelled=False, pairs="apart")).targets.tolist() == [
        0,
        0,
    ]


CLASS = {"label_type": "class"}
REFUSED = {
    "no such column": ("the cat\ta dog\n", {}, r"Row 0 of .* must have column 2 \(from 0\)"),
    "a word as score": ("a\ta\tgood\n", {}, "Row 0 .* must have a finite number .* Got good"),
    "no number": ("a\ta\tnan\n", {}, "must have a finite number"),
    "infinite": ("a\ta\t1e999\n", {}, "must have a finite number"),
    "underscores": ("a\ta\t1_0\n", {}, "must have a finite number"),
    "a word as class": ("a\ta\tgood\n", CLASS, "must have the number of a class .* Got good"),
    "negative": ("a\ta\t-1\n", CLASS, "must have the number of a class"),
    "fraction": ("a\ta\t1.0\n", CLASS, "must have the number of a class"),
    "other digits": ("a\ta\t\u0663\n", CLASS, "must have the number of a class"),
    "huge": ("a\ta\t" + "9" * 5000 + "\n", CLASS, "must have the number of a class"),
    "huge behind zeros": (f"a\ta\t{'0' * 20}{10**30}\n", CLASS, "must have the number of a class"),
    "unknown": ("a\ta\tx\n", {**CLASS, "classes": ["y"]}, "one of data.classes as its label: y"),
    "no text": ("a\t \t1\n", {}, "Row 0 .* must have text"),
    "empty": ("\n\n", {}, "must have rows"),
    "too few rows": ("a\ta\t1\n", {"rows": [0, 2]}, r"rows that data.tsv has.* it has 1"),
    "not UTF-8": (b"a\xff\ta\t1\n", {}, "must be text in UTF-8"),
    "no types": ("a\ta\t1\n", {"pairs": "together"}, "data.inputs must have token_type_ids"),
    "too short": ("a\ta\t1\n", {"max_length": 2}, "data.max_length must leave room"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_cannot_be_used_are_refused(tmp_path, tiny_bert, case):
    content, section, message = REFUSED[case]
    content = content.encode() if isinstance(content, str) else content
    (tmp_path / "data.tsv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        _open(tmp_path, tiny_bert, **{"pairs": "apart", **section})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1, 2]", "must be an object with 'one'|must be an object with one"),
        ('{"two": 1}', "must be an object with one. It has two"),
        ('{"one": true}', "must have text or a number as one. Got a bool"),
        ('{"one": ["a"]}', "Got a list"),
        ('{"one": "a"', "must be a file that can be read"),
        ("[" * 100_000, "must be a file that can be read"),
    ],
)
def test_objects_that_cannot_be_used_are_refused(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        list(read_rows(path, ("one",), header=False, given="a.jsonl", key="split"))


def test_a_damaged_or_endless_file_is_refused(tmp_path, monkeypatch):
    def read(path):
        return list(read_rows(path, (0,), header=False, given="given", key="split"))

    packed = _write(tmp_path / "a.tsv.gz", ROWS * 1000)
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(InputError, match="must be a file that can be read"):
        read(packed)
    packed.write_bytes(b"no gzip")
    with pytest.raises(InputError, match="must be a file that can be read"):
        read(packed)
    endless = tmp_path / "b.tsv.gz"
    with gzip.open(endless, "wb", compresslevel=1) as file:
        file.write(b"a" * (text_files.MOST_IN_LINE + 10))
    with pytest.raises(InputError, match=r"lines of at most 1,048,576 characters. Line 1"):
        read(endless)
    quoted = tmp_path / "c.csv"
    quoted.write_text('"' + "a\n" * 100_000)
    with pytest.raises(InputError, match="must be a file that can be read"):
        read(quoted)
    monkeypatch.setattr(text_files, "_LARGE", 1000)
    with gzip.open(endless, "wb") as file:
        file.write(b"a\n" * 100_000)
    with pytest.raises(InputError, match=r"must have at most .* characters, unpacked"):
        read(endless)
    monkeypatch.setattr(text_files, "MOST_IN_FILE", 1000)
    with pytest.raises(InputError, match="must have at most 1,000 characters"):
        read(_write(tmp_path / "d.tsv", ROWS * 100))
    with pytest.raises(InputError, match="must be a file that exists"):
        read(tmp_path / "gone.tsv")


def test_texts_in_two_splits_are_found_whatever_the_padding(tmp_path, tiny_bert):
    _write(tmp_path / "data.tsv")
    _write(
        tmp_path / "other.tsv", [("a tree", "the cat sat", "1"), ("red", "the blue sky ran", "2")]
    )
    with pytest.raises(InputError, match=r"share 1 samples .* \(row 0 of data.tsv, text 1\)"):
        load_data(_section(pairs="apart"), folder=tmp_path, needs_recovery=False, model=tiny_bert)
    allowed = _section(pairs="apart", max_overlap=1)
    splits = load_data(allowed, folder=tmp_path, needs_recovery=False, model=tiny_bert)
    assert splits.overlap == {("calibration", "validation"): 1}
    longest = splits.validation.to_try
    assert 3 in longest  # a text that is longer than the model allows is to be met early


def test_the_fingerprint_follows_the_tokenizer(tmp_path, tiny_bert):
    _write(tmp_path / "data.tsv")
    _write(tmp_path / "other.tsv", [("red", "blue", "1")])

    def fingerprint(**section):
        section = _section(pairs="apart", **section)
        data = load_data(section, folder=tmp_path, needs_recovery=False, model=tiny_bert)
        return data.calibration.fingerprint

    assert fingerprint() == fingerprint(tokenizer=str(tiny_bert))
    assert fingerprint() != fingerprint(max_length=4)


def test_a_tokenizer_must_be_there_and_be_one(tmp_path, tiny_bert):
    _write(tmp_path / "data.tsv")
    with pytest.raises(InputError, match=r"data.tokenizer must name a folder"):
        _open(tmp_path, tiny_bert / "model.safetensors")
    with pytest.raises(InputError, match=r"must be a folder with tokenizer.json.*save_pretrained"):
        _open(tmp_path, tmp_path)
    for content in ("{}", "[" * 10_000, '{"model": {"type": "WordLevel"}}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(InputError, match="must be a tokenizer of the library tokenizers"):
            _open(tmp_path, tmp_path)


def test_a_panic_of_the_tokenizer_is_a_refusal(tmp_path, tiny_bert):
    """The library's panics are no exceptions in Python's sense."""
    _write(tmp_path / "data.tsv")
    written = json.loads((tiny_bert / "tokenizer.json").read_text())
    piece = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    template = [piece, {"Sequence": {"id": "A", "type_id": 0}}]
    written["post_processor"] = {
        "type": "TemplateProcessing",
        "single": template,
        "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    with pytest.raises(InputError, match=r"tokenizer.json must be .* It raised PanicException"):
        _open(tmp_path, tmp_path)


def test_text_that_is_no_unicode_is_refused(tmp_path, tiny_bert):
    (tmp_path / "a.jsonl").write_text('{"one": "the \\ud800 cat", "score": 1}\n')
    splits = {"calibration": {"path": "a.jsonl"}, "validation": {"path": "b.jsonl"}}
    section = TextData(source="text", text="one", label="score", label_type="score", splits=splits)
    with pytest.raises(InputError, match="must be able to cut the texts"):
        open_texts(section, tmp_path, {"calibration": True}, tiny_bert)
