"""Reading recipe files: every way to get one wrong, overrides, the way back."""

import json
import os
from pathlib import Path
from textwrap import dedent

import pytest

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.recipe.file import dump_recipe, load_recipe, recipe_schema
from mfac_compress.pipeline.recipe.schema import Recipe, ReconstructSection

SOUND = "data: {source: digits}\nprune: {sparsity: 0.5}\n"


@pytest.fixture
def write(tmp_path):
    """Write a recipe file; text or bytes."""

    def write_file(text, name="recipe.yaml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else dedent(text).encode())
        return path

    return write_file


def refusal(path, overrides=()):
    with pytest.raises(InputError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


# Each: what follows two sound lines, the line of the error, fragments of the one message.
BAD = {
    "near key": ("run: {sed: 1}", 3, ["run.sed is not a key", "Did you mean run.seed?"]),
    "near key of the top": ("modle: {}", 3, ["modle is not a key", "Did you mean model?"]),
    "key of another section": (
        "run:\n  damping: 1",
        4,
        ["run.damping is not", "Did you mean fisher.damping or"],
    ),
    "key of two sections": (
        "calibrate: {batch_size: 1}",
        3,
        ["Did you mean reconstruct.blocks.batch_size or recover.batch_size or validate."],
    ),
    "key of a deeper section": ("gates: {}", 3, ["Did you mean validate.gates?"]),
    "far key": ("fisher: {zzz: 1}", 3, ["fisher.zzz", "fisher has damping, damping_unit"]),
    "far key of the top": ("zzz: 1", 3, ["A recipe has folder, run, model, data"]),
    "NUL in a path": (
        'model: {factory: "a\\0.py:net"}',
        3,
        ["model.factory must be text without NUL characters. Got 'a\\x00.py:net'."],
    ),
    "bound": ("calibrate: {holdout: 1.5}", 3, ["of at least 0 and below 1. Got 1.5."]),
    "bound below": ("fisher:\n  damping: 0.0", 4, ["a number above 0. Got 0.0.", "1e-05"]),
    "stacked bound": ("export: {opset: 17}", 3, ["export.opset", "at least 18. Got 17."]),
    "choice": (
        "task: {loss: l1}",
        3,
        ["one of cross_entropy, mse, none or text like", "Got 'l1'."],
    ),
    "number for true or a word": (
        "calibrate: {labels: 2}",
        3,
        ["calibrate.labels must be one of true, model. Got 2."],
    ),
    "near choice": (
        "recover: {optimizer: adam}",
        3,
        ["must be one of sgd, adamw, mfac. Got 'adam'. Did you mean adamw?"],
    ),
    "switch for a choice": (
        "export: {sparse_kernels: on}",
        3,
        ["sparse_kernels must be one of auto, off. Got true. The default is auto."],
    ),
    "one of two types": (
        "fisher: {block_size: 0}",
        3,
        ["fisher.block_size must be a whole number of at least 1 or full. Got 0."],
    ),
    "number or none": (
        "validate:\n  gates:\n    confidence: 95",
        5,
        [
            "validate.gates.confidence must be a number of at least 0.5 and at most 0.999999 or "
            "none. Got 95."
        ],
    ),
    "number or null": (
        "run: {threads: many}",
        3,
        ["a whole number of at least 1 and at most 1,024 or null."],
    ),
    "switch for a number": ("recover: {epochs: yes}", 3, ["a whole number", "Got true."]),
    "size": ("run: {memory_budget: 8XB}", 3, ["text like 8GB", "Got '8XB'."]),
    "text for a list": ("validate: {latency: {threads: 1}}", 3, ["a list", "Write [1]."]),
    "empty list": ("validate: {latency: {threads: []}}", 3, ["one or more", "Got []."]),
    "item of a list": (
        "validate:\n  latency:\n    batch_sizes:\n      - 1\n      - 0",
        7,
        ["validate.latency.batch_sizes[1] must be a whole number of at least 1. Got 0."],
    ),
    "empty section": ("run:", 3, ["run must be a section", "leave the key out"]),
    "scalar for a section": ("run: cpu", 3, ["run must be a section. Got 'cpu'."]),
    "factory": ("model: {factory: resnet}", 3, ["text like package.module:callable"]),
    "argument": ("model: {kwargs: {a: .nan}}", 3, ["model.kwargs.a must be text, a number"]),
    "rule across keys": ("task: {direction: minimize}", 3, ["task.direction must be maximize"]),
    "repair of no method": (
        "reconstruct:\n  samples: 50",
        4,
        ["reconstruct.samples must be left out unless reconstruct.method is least_squares or"],
    ),
    "blocks of least squares": (
        "reconstruct:\n  method: least_squares\n  blocks:\n    epochs: 2",
        6,
        ["reconstruct.blocks.epochs must be left out unless reconstruct.method is blocks."],
    ),
    "repeated key": (
        "run:\n  seed: 1\n  device: cpu\n  seed: 1",
        6,
        ["run.seed must be given once. It is in line 4 already."],
    ),
    "key that is no text": ("on: 1", 3, ["text as keys. Got on", "'on' in quotes"]),
    "number as a key": ("1: 1", 3, ["The recipe must have text as keys. Got 1", "'1' in quotes"]),
    "number as an argument": (
        "model: {factory: 'a:b', kwargs: {sizes: {0: 8}}}",
        3,
        ["model.kwargs.sizes must have text as keys. Got 0", "'0' in quotes"],
    ),
    "number as an input": (
        "export: {dynamic_axes: {0: {1: length}}}",
        3,
        ["export.dynamic_axes must have text as keys. Got 0"],
    ),
    "fraction as an axis": (
        "export: {dynamic_axes: {ids: {1.0: length}}}",
        3,
        ["export.dynamic_axes.ids must have text as keys. Got 1.0"],
    ),
    "axis": (
        "export: {dynamic_axes: {ids: {0: batch}}}",
        3,
        ["export.dynamic_axes.ids.0 must be the number of an axis, 1 to 64"],
    ),
    "tag": ("run: {seed: !!python/name:os.system x}", 3, ["run.seed", "without a YAML tag"]),
    "wrong tag": ("run: {seed: !!int x}", 3, ["run.seed must be a decimal number", "Got 'x'"]),
    "key from an anchor": (
        "model:\n  kwargs: &base\n    seed: -1\nrun: {<<: *base, device: cpu}",
        5,
        ["run.seed must be a whole number of at least 0"],
    ),
    "merge of a scalar": ("run: {<<: 3}", 3, ["must merge (<<) a mapping"]),
    "variables of an older recipe": (
        "vars: {data: /a}",
        3,
        ["vars is not a key of a recipe any more", "--set data.folder=PATH"],
    ),
    "whole number of many digits": (
        f"run: {{seed: {'1' * 100_000}}}",
        3,
        ["run.seed must be a whole number of at most 64 bits. Got '1111"],
    ),
    "hexadecimal number of many digits": (
        f"model: {{kwargs: {{a: 0x{'f' * 5000}}}}}",
        3,
        ["model.kwargs.a must be a whole number of at most 64 bits."],
    ),
    "whole number of 65 bits": (
        "model: {kwargs: {a: 9223372036854775808}}",
        3,
        ["at most 64 bits. Got '9223372036854775808'."],
    ),
    "octal": ("run: {seed: 0777}", 3, ["must be a decimal number", "Got '0777'."]),
    "sexagesimal": ("run: {seed: 1:30}", 3, ["must be a decimal number", "Got '1:30'."]),
    "sexagesimal beyond float": (
        f"model: {{kwargs: {{a: 1{':59' * 3000}.5}}}}",
        3,
        ["must be a decimal number"],
    ),
    "tag of nothing": ("run: {seed: !!int ''}", 3, ["run.seed must be a decimal number"]),
    "float tag of nothing": ("run: {seed: !!float ''}", 3, ["run.seed must be what !!float"]),
    "single surrogate": (
        'export: {input_name: "\\ud800"}',
        3,
        ["export.input_name must be text that UTF-8 can hold"],
    ),
    "single surrogate as a key": (
        'model: {kwargs: {"\\ud800": 1}}',
        3,
        ["model.kwargs must have keys that can be read."],
    ),
    "folder with NUL": ('folder: "a\\0"', 3, ["folder must be a folder that exists"]),
    "folder of a long name": (f"folder: {'a' * 5000}", 3, ["folder must be a folder that exists"]),
    "no such folder": ("folder: nowhere", 3, ["folder must be a folder that exists"]),
}


@pytest.mark.parametrize(("more", "line", "fragments"), BAD.values(), ids=BAD.keys())
def test_a_bad_recipe_is_refused_at_its_line(write, more, line, fragments):
    path = write(SOUND + more)
    message = refusal(path)
    assert message.endswith(f"({path}:{line})")
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message
    for jargon in ("function-", "literal[", "constrained", "tagged", "Input should", "pydantic"):
        assert jargon not in message


# Recipes whose sound lines themselves are changed.
BAD_WHOLE = {
    "misspelt required key": (
        "data: {source: digits}\nprune:\n  sparisty: 0.5",
        ["prune.sparisty is not a key of a recipe. Did you mean prune.sparsity?", ":3)"],
    ),
    "no prune": ("data: {source: digits}", ["prune must be a section. It is missing."]),
    "null where a value must be": ("data: {source: digits}\nprune:", ["Give it a value. ("]),
    "no source": (
        "data: {}\nprune: {sparsity: 0.5}",
        ["data.source must be one of", "digits", "arrays", "image_folder", "factory", "missing"],
    ),
    "wrong source": (
        "prune: {sparsity: 0.5}\ndata:\n  source: digit",
        ["data.source must be one of", "Got 'digit'. Did you mean digits?", ":3)"],
    ),
    "source in place of the section": (
        "data: digits\nprune: {sparsity: 0.5}",
        ["data must be a section with source: one of", "Got 'digits'."],
    ),
    "key of another source": (
        "data: {source: digits, mean: [1]}\nprune: {sparsity: 0.5}",
        ["data.mean is only a key of data with source: arrays or image_folder."],
    ),
    "wrong in a source": (
        "data:\n  source: arrays\n  splits:\n    calibration: {path: a}\n"
        "    validation: {path: b, rows: [1]}\nprune: {sparsity: 0.5}",
        ["data.splits.validation.rows must be a list of 2", "Got [1].", ":5)"],
    ),
    "overlap in a source": (
        "data:\n  source: digits\n  splits:\n    validation:\n      rows: [0, 9]\n"
        "prune: {sparsity: 0.5}",
        ["data.splits.validation.rows must not share", "data.splits.calibration", ":5)"],
    ),
    "missing in a source": (
        "data:\n  source: arrays\n  splits:\n    calibration: {path: a}\nprune: {sparsity: 0.5}",
        ["data.splits.validation must be a section with at least path. It is missing.", ":3)"],
    ),
    "numeric pattern": (
        "data: {source: digits}\nprune:\n  sparsity: 0.5\n  include: [0]",
        ["prune.include[0] must be text", "Write '0' in quotes.", ":4)"],
    ),
    "a pattern of zeros that is none": (
        "data: {source: digits}\nprune:\n  sparsity: 0.5\n  pattern: blocks",
        ["prune.pattern must be one of unstructured, channels, heads, neurons or a section", ":4)"],
    ),
    "wrong in a pattern of zeros": (
        "data: {source: digits}\nprune:\n  sparsity: 0.5\n  pattern: {block: 1}",
        ["prune.pattern.block must be a whole number of at least 2", "Got 1.", ":4)"],
    ),
    "misspelt in a pattern of zeros": (
        "data: {source: digits}\nprune:\n  sparsity: 0.5\n  pattern: {block: 4, axes: inputs}",
        ["prune.pattern.axes is not a key of a recipe. Did you mean prune.pattern.axis?"],
    ),
    "pattern's sparsity": (
        "data: {source: digits}\nprune:\n  sparsity: 0.5\n  overrides:\n    layer1.*: 2",
        ["prune.overrides['layer1.*'] must be", "at least 0 and below 1. Got 2.", ":5)"],
    ),
}


@pytest.mark.parametrize(("text", "fragments"), BAD_WHOLE.values(), ids=BAD_WHOLE.keys())
def test_a_bad_section_that_must_be_there_is_refused(write, text, fragments):
    message = refusal(write(text))
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


NOT_A_RECIPE = {
    "empty": (b"", ["is empty"]),
    "only a comment": (b"# nothing\n", ["is empty"]),
    "a list": (b"- a\n", ["must be a mapping of sections"]),
    "text": (b"hello", ["must be a mapping of sections", "'hello'"]),
    "not UTF-8": (b"data: \xff\xfe", ["UTF-8", "byte 6"]),
    "a model": (b"PK\x03\x04" + b"\x80" * 2_000_000, ["larger", "the model second"]),
    "a control character": (b"a: 1\nb: \x01", ["#x01", ":2)"]),
    "a tab": (b"a:\n\tb: 1", ["spaces, not tabs", ":2)"]),
    "an open bracket": (b"a: [1,", ["must be YAML"]),
    "a colon too many": (b"a: b: c", ["put text that holds ': ' in quotes", ":1)"]),
    "an undefined alias": (b"a: 1\nb: *x", ["undefined alias 'x'", ":2)"]),
    "two documents": (b"a: 1\n---\nb: 1\n", ["one document"]),
    "an alias within itself": (b"a: &a [*a]", ["levels", "may hold itself", ":1)"]),
    "deep brackets": (b"[" * 5000, ["levels"]),
    "aliases that multiply": (
        b"a0: &a0 [1, 1]\n"
        + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i + 1, i + 1, i, i) for i in range(30)),
        ["at most 20,000 values"],
    ),
    "merges that multiply": (
        b"a0: &a0 {x: 1}\n"
        + b"".join(
            b"a%d: &a%d {<<: [%s]}\n" % (i + 1, i + 1, b",".join([b"*a%d" % i] * 9))
            for i in range(9)
        ),
        ["at most 20,000 values"],
    ),
}


@pytest.mark.parametrize(("content", "fragments"), NOT_A_RECIPE.values(), ids=NOT_A_RECIPE.keys())
def test_what_is_no_recipe_is_refused(write, content, fragments):
    path = write(content)
    message = refusal(path)
    assert str(path) in message
    for fragment in fragments:
        assert fragment in message


def test_keys_and_values_are_quoted_short(write):
    assert len(refusal(write(SOUND + f"{'a' * 50_000}: {'b' * 50_000}"))) < 1000


def test_of_very_many_errors_the_first_are_reported(write):
    items = "x, " * 5000
    message = refusal(write(f"{SOUND}validate: {{latency: {{threads: [{items}]}}}}"))
    assert "more than 50 errors" in message.splitlines()[0]
    assert len(message.splitlines()) == 51


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_could_be_read_without_end_is_refused(tmp_path, kind):
    path = Path("/dev/zero")
    if kind == "pipe":
        path = tmp_path / "recipe.yaml"
        os.mkfifo(path)
    assert "must be an ordinary file" in refusal(path)


REGEX = {
    "repetition beyond what Python counts": ("re:a{4294967296}", "repetition number is too large"),
    "groups too deep": (f"re:{'(' * 480}a{')' * 480}", "must hold a regular expression"),
    "too long": ("a" * 1001, "must be text of 1 to 1,000 characters"),
}


@pytest.mark.parametrize(("pattern", "fragment"), REGEX.values(), ids=REGEX.keys())
def test_patterns_that_python_cannot_take_are_refused(write, pattern, fragment):
    text = f"data: {{source: digits}}\nprune: {{sparsity: 0.5, include: ['{pattern}']}}"
    message = refusal(write(text))
    assert "prune.include[0]" in message
    assert fragment in message


def test_a_set_of_very_many_names_is_refused(write):
    message = refusal(write(SOUND), [f"model.kwargs{'.a' * 3000}=1"])
    assert "must have a key of at most 40 names. Got 3002." in message
    assert len(message) < 500


def test_a_missing_file_names_a_near_one(write, tmp_path):
    write(SOUND, "digits.yaml")
    assert f"Did you mean {tmp_path / 'digits.yaml'}?" in refusal(tmp_path / "digit.yaml")
    assert f"no folder {tmp_path / 'no'}" in refusal(tmp_path / "no" / "digits.yaml")


def test_a_folder_is_refused(tmp_path):
    assert f"{tmp_path} is a folder" in refusal(tmp_path)


def test_all_errors_are_reported_in_the_order_of_the_file(write):
    path = write(
        """\
        run: {sed: 1}
        data: {source: digits, splits: {calibration: {rows: [3, 1]}}}
        fisher:
          damping: 0
          damping: -1
        prune: {sparsity: 2, include: [a, a]}
        recover: {lr: -1}
        """
    )
    head, *lines = refusal(path, ["prune.steps=0", "run.seed=-1"]).splitlines()
    assert head == f"{path}: 7 errors:"
    places = [line.rpartition("(")[2].rstrip(")").removeprefix(str(path)) for line in lines]
    assert places == [":1", ":2", ":5", ":6", ":7", "--set run.seed", "--set prune.steps"]
    assert all(line.startswith("- ") for line in lines)


def test_scientific_numbers_are_numbers_everywhere(write):
    recipe = load_recipe(
        write(
            """\
            model: {kwargs: {eps: 1e-5, text: '1e-5', date: 2024-01-31}}
            data: {source: digits}
            fisher: {damping: 1e-5}
            prune: {sparsity: 5e-1, overrides: {layer1.*: 1e-5}}
            recover: {lr: 1E-3}
            """
        ),
        ["recover.weight_decay=1e-6"],
    )
    assert recipe.fisher.damping == 1e-5
    assert recipe.prune.overrides == {"layer1.*": 1e-5}
    assert (recipe.recover.lr, recipe.recover.weight_decay) == (1e-3, 1e-6)
    assert recipe.model.kwargs == {"eps": 1e-5, "text": "1e-5", "date": "2024-01-31"}


def test_anchors_and_merge_keys_work(write):
    recipe = load_recipe(
        write(
            """\
            model: {kwargs: {a: &common {seed: 3, device: cpu}, b: &more {seed: 4, threads: 2}}}
            run: {<<: [*common, *more], device: auto}
            calibrate: {seed: 9}
            data: {source: digits}
            prune: {sparsity: 0.5}
            """
        )
    )
    assert (recipe.run.seed, recipe.run.device, recipe.run.threads) == (3, "auto", 2)


def test_overriding_a_shared_mapping_changes_one_place(write):
    text = SOUND + "model: {kwargs: {a: &r {crop: 1}, b: *r}}"
    recipe = load_recipe(write(text), ["model.kwargs.a.crop=2"])
    assert recipe.model.kwargs == {"a": {"crop": 2}, "b": {"crop": 1}}


def test_off_needs_no_quotes(write):
    recipe = load_recipe(write(SOUND + "export: {sparse_kernels: off}"))
    assert recipe.export.sparse_kernels == "off"
    assert load_recipe(write(dump_recipe(recipe))).export.sparse_kernels == "off"


def test_axes_are_numbers(write):
    path = write(SOUND + "export: {dynamic_axes: {ids: {1: length}, 'mask': {'1': length}}}")
    assert load_recipe(path).export.dynamic_axes == {"ids": {1: "length"}, "mask": {1: "length"}}


@pytest.mark.parametrize(
    "given", ["export={dynamic_axes: {ids: {1: a}}}", "export.dynamic_axes.ids={1: a}"]
)
def test_axes_are_numbers_in_overrides(write, given):
    assert load_recipe(write(SOUND), [given]).export.dynamic_axes == {"ids": {1: "a"}}
    with pytest.raises(InputError, match=r"text as keys\. Got 1"):
        load_recipe(write(SOUND), ["prune.overrides={1: 0.5}"])


def test_overrides_take_yaml_and_the_last_counts(write):
    recipe = load_recipe(
        write(SOUND),
        [
            "prune.sparsity=0.6",
            "prune.sparsity=0.7",
            "prune.overrides={layer1.*: 0.5}",
            "prune.include=[a, 're:b=c']",
            "prune.include.0=z",
            "validate.latency=null",
            "validate.gates.confidence=none",
            "export.dynamic_batch=false",
            "model.kwargs.deep.er=a=b",
        ],
    )
    assert recipe.prune.sparsity == 0.7
    assert recipe.prune.overrides == {"layer1.*": 0.5}
    assert recipe.prune.include == ("z", "re:b=c")
    assert recipe.validate_.latency is None
    assert recipe.validate_.gates.confidence == "none"
    assert recipe.export.dynamic_batch is False
    assert recipe.model.kwargs == {"deep": {"er": "a=b"}}


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("prune.sparsity", "must be key.path=value"),
        ("prune..sparsity=1", "names joined by dots"),
        ("prune.overrides.a*=1", "'prune.overrides={layer1.*: 0.5}'"),
        ("=1", "names joined by dots"),
        ("prune.sparsity=", "must have a value after '='"),
        ("prune.sparsity=[1", "must have a YAML value"),
        ("model.kwargs={a: 1, a: 2}", "must be given once"),
        ("prune.sparsity.x=1", "prune.sparsity is 0.5. Set prune.sparsity itself."),
        ("prune.include.3=1", "a position of the list prune.include, 0 to 0"),
    ],
)
def test_bad_overrides_name_themselves(write, override, fragment):
    message = refusal(write(SOUND.replace("0.5", "0.5, include: [a]")), [override])
    assert message.startswith("--set must")
    assert fragment in message
    assert message.endswith(f"(--set {override})")


def test_a_method_of_repair_that_is_set_makes_up_for_keys_of_another(write):
    text = "reconstruct: {method: blocks, samples: 50, blocks: {epochs: 2}}"
    path = write(SOUND + text)
    off = load_recipe(path, ["reconstruct.method=none"])
    assert off.reconstruct == ReconstructSection()
    assert load_recipe(write(dump_recipe(off), "resolved.yaml")) == off
    solved = load_recipe(path, ["reconstruct.method=least_squares"]).reconstruct
    assert solved == ReconstructSection(method="least_squares", samples=50)
    with pytest.raises(InputError, match=r"reconstruct\.samples must be left out"):
        load_recipe(path, ["reconstruct.method=none", "reconstruct.samples=60"])


def test_errors_of_overridden_keys_name_the_override(write):
    path = write(SOUND + "run:\n  seed: 1")
    for override, place in [
        ("prune.sparsity=1.5", "--set prune.sparsity"),
        ("prune={sparsity: 1.5}", "--set prune"),
        ("fisher.dampin=1", "--set fisher.dampin"),
        ("prune.steps.x=1", "--set prune.steps.x"),
    ]:
        assert refusal(path, [override]).endswith(f"({place})")
    assert refusal(path, ["prune.sparsity=1.5", "prune={}"]).endswith("(--set prune)")


def test_where_names_the_line_of_a_key(write):
    path = write(
        """\
        data: {source: digits}
        prune:
          sparsity: 0.5
          include:
            - a
            - b
          overrides:
            layer1.*: 0.25
        """
    )
    recipe = load_recipe(path, ["recover.lr=0.5"])
    assert recipe.where("prune.include") == f"{path}:4 (prune.include)"
    assert recipe.where("prune.include", 1) == f"{path}:6 (prune.include[1])"
    assert recipe.where("prune.overrides", "layer1.*") == f"{path}:8 (prune.overrides['layer1.*'])"
    assert recipe.where("prune.exclude") == f"{path}:2 (prune.exclude)"
    assert recipe.where("recover.lr") == "--set recover.lr"
    assert recipe.where("export.opset") == f"{path} (export.opset)"
    assert recipe.source.path == path


ROUND_TRIPS = {
    "least": SOUND,
    "arrays": """\
        data:
          source: arrays
          mean: [0.1, 0.2]
          splits: {calibration: {path: ../a.npz, rows: [0, 5]}, validation: {path: ~/b.npz}}
        prune: {sparsity: 0.9, overrides: {layer1.*: 1e-5, '0': 0.5}, include: ['re:^a$', '*']}
        run: {memory_budget: 1.5GB, seed: 7}
        """,
    "factory": """\
        model:
          factory: nets/my.py:Net.small
          kwargs: {a: '1e-5', b: 1e-5, c: 'yes', d: '${x}', e: '$${', f: "é\\n\\t #", g: null,
                   h: [[1, {}], []], i: '2024-01-31', j: '=', k: '0x1F', l: 1_000}
        data: {factory: 'package.data:make', kwargs: {path: data sets}}
        prune: {sparsity: 0.9, method: magnitude}
        validate: {latency: null, gates: {confidence: none, max_metric_drop: 0.01}}
        export: {dynamic_axes: {ids: {1: length, 2: width}}}
        fisher: {block_size: full}
        """,
    "images": """\
        folder: ..
        data:
          source: image_folder
          augment: {flip: true}
          splits: {calibration: {path: a}, recovery: {path: b}, validation: {path: c}}
        prune: {sparsity: 0.123456789012345}
        recover: {epochs: 2, lr: 3.3333333333333335e-05}
        """,
}


@pytest.mark.parametrize("text", ROUND_TRIPS.values(), ids=ROUND_TRIPS.keys())
def test_a_resolved_recipe_reads_back_equal_from_another_folder(write, text):
    recipe = load_recipe(write(text, "in/recipe.yaml"))
    dumped = dump_recipe(recipe)
    again = load_recipe(write(dumped, "out/resolved.yaml"))
    assert again == recipe
    assert again.source.resolve("a.npz") == recipe.source.resolve("a.npz")
    assert dump_recipe(again) == dumped


def test_paths_start_at_the_recipes_folder_or_at_folder(write, tmp_path):
    recipe = load_recipe(write(SOUND, "in/recipe.yaml"))
    assert recipe.source.resolve("a.npz") == tmp_path / "in" / "a.npz"
    recipe = load_recipe(write(SOUND + "folder: ..", "in/recipe.yaml"))
    assert recipe.source.resolve("a.npz") == tmp_path / "a.npz"
    assert recipe.source.resolve("~") == Path.home().resolve()


def test_the_data_may_have_a_folder_of_its_own(write, tmp_path):
    text = """\
        data:
          source: arrays
          folder: ../data
          splits: {calibration: {path: a.npz}, validation: {path: /b.npz}}
        prune: {sparsity: 0.5}
        """
    recipe = load_recipe(write(text, "in/recipe.yaml"))
    found = recipe.data.resolve("a.npz", recipe.source.folder)
    assert found == tmp_path / "data" / "a.npz"
    assert recipe.data.resolve("/b.npz", recipe.source.folder) == Path("/b.npz")
    moved = load_recipe(recipe.source.path, ["data.folder=/elsewhere"])
    assert moved.data.resolve("a.npz", recipe.source.folder) == Path("/elsewhere/a.npz")


def test_a_recipe_made_in_python_can_be_written(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Recipe.model_validate({"data": {"source": "digits"}, "prune": {"sparsity": 0.5}})
    assert load_recipe(write(dump_recipe(made), "elsewhere/r.yaml")) == made


def test_the_dump_says_every_default(write):
    dumped = dump_recipe(load_recipe(write(SOUND)))
    for text in ("damping: 1.0e-05", "num_gradients: 512", "max_overlap: 0", "rows: [0, 600]"):
        assert text in dumped


def test_masks_on_the_command_line_take_the_place_of_the_files_pruning(write):
    path = write(
        """
        data: {source: digits}
        prune: {sparsity: 0.9, method: layerwise, steps: 4, exclude: [fc]}
        recover: {epochs: 1}
        """
    )
    given = ["prune.masks=a/masks.safetensors", "prune.weights=b.pt"]
    loaded = load_recipe(path, given)
    assert (loaded.prune.method, loaded.prune.sparsity, loaded.prune.steps) == ("given", None, 1)
    assert (loaded.prune.masks, loaded.prune.weights) == ("a/masks.safetensors", "b.pt")
    assert loaded.recover.epochs == 1

    again = path.with_name("resolved.yaml")
    again.write_text(dump_recipe(loaded))
    assert load_recipe(again) == loaded

    with pytest.raises(InputError, match=r"prune\.steps must be left out where prune\.masks"):
        load_recipe(path, [*given, "prune.steps=2"])


def test_another_method_on_the_command_line_leaves_out_the_files_keys_of_layerwise(write):
    path = write(
        """
        data: {source: digits}
        prune: {sparsity: 0.9, method: layerwise, allocation: errors, layerwise: {samples: 9}}
        """
    )
    loaded = load_recipe(path, ["prune.method=mfac"])
    assert loaded.prune.layerwise.samples == 1000
    assert loaded.prune.allocation is None
    assert load_recipe(path, ["prune.method=layerwise"]).prune.layerwise.samples == 9
    with pytest.raises(InputError, match=r"prune\.layerwise\.ridge must be left out unless"):
        load_recipe(path, ["prune.method=mfac", "prune.layerwise.ridge=0.5"])
    with pytest.raises(InputError, match=r"prune\.allocation must be left out unless"):
        load_recipe(path, ["prune.method=mfac", "prune.allocation=errors"])


def test_the_schema_serves_editors():
    schema = recipe_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"data", "prune"}
    assert list(schema["properties"])[:2] == ["folder", "run"]
    assert "validate" in schema["properties"]
    sparsity = schema["$defs"]["PruneSection"]["properties"]["sparsity"]
    assert sparsity["description"]
    assert sparsity["title"]
    share, missing = sparsity["anyOf"]
    assert (share["minimum"], share["exclusiveMaximum"]) == (0, 1)
    assert missing == {"type": "null"}
    for section in schema["$defs"].values():
        for name, value in section.get("properties", {}).items():
            # A section says itself what it is, and a constant needs no more.
            sections = json.dumps(value).count("#/$defs/")
            assert "description" in value or "const" in value or sections, name


def test_the_schema_is_not_changed_by_its_readers():
    recipe_schema()["properties"].clear()
    assert recipe_schema()["properties"]
