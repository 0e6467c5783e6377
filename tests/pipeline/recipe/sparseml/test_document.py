"""Reading the modifiers of a SparseML recipe."""

from textwrap import dedent

import pytest

from mfac_compress.pipeline.recipe.sparseml.document import front_matter, read_modifiers
from mfac_compress.pipeline.recipe.yaml_lines import YamlError


def modifiers(text):
    found, document = read_modifiers(dedent(text))
    assert not document.issues
    return found


def issues(text):
    _, document = read_modifiers(dedent(text))
    return "\n".join(f"{issue.key} {issue.text}" for issue in document.issues)


def test_groups_are_read_in_order_with_their_lines():
    first, second = modifiers("""\
        version: 1.1
        training_modifiers:
          - !EpochRangeModifier
            start_epoch: 0.0
            end_epoch: 3

        knowledge_distillation_modifiers:
          - !DistillationModifier
    """)
    assert (first.name, first.values) == (
        "EpochRangeModifier",
        {"start_epoch": 0.0, "end_epoch": 3},
    )
    assert (first.key, first.line) == (("training_modifiers", 0), 3)
    assert first.lines == {"start_epoch": 4, "end_epoch": 5}
    assert (second.name, second.values, second.line) == ("DistillationModifier", {}, 8)


def test_variables_are_put_in_and_anchors_followed():
    (one,) = modifiers("""\
        frequency: &frequency 0.5
        end: eval(2 * start + 1)
        start: 2
        params: [a, b]
        modifiers:
          - !GMPruningModifier
            {update_frequency: *frequency, end_epoch: eval(end), params: eval(params)}
    """)
    assert one.values == {"update_frequency": 0.5, "end_epoch": 5, "params": ["a", "b"]}


def test_a_stage_has_its_own_variables_and_the_recipes():
    first, second = modifiers("""\
        shared: 1
        own: 2
        one: {own: 3, modifiers: [!A {first: eval(shared), second: eval(own)}]}
        two: {modifiers: [!A {first: eval(shared), second: eval(own)}]}
    """)
    assert first.values == {"first": 1, "second": 3}
    assert second.values == {"first": 1, "second": 2}
    assert second.key == ("two", "modifiers", 0)


def test_numbers_are_keys_and_a_list_is_a_group():
    (one,) = modifiers("- !MFACPruningModifier\n  num_grads: {0.0: 64, 0.5: 128, 1: 2}\n")
    assert one.values == {"num_grads": {"0.0": 64, "0.5": 128, "1": 2}}


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("modifiers: [!!python/object/apply:os.system [x]]", "must be without a YAML tag"),
        ("modifiers: [!!python/name:os.system x]", "must be without a YAML tag"),
        ("modifiers: [!pytorch.EpochRangeModifier {a: 1}]", "must be without a YAML tag"),
        ("modifiers: [!EpochRangeModifier [1, 2]]", "must be a modifier with keys below it"),
        ("modifiers: [!EpochRangeModifier word]", "must be a modifier with keys below it"),
        ("modifiers: [word]", "must be a modifier: a tag such as"),
        ("modifiers: !EpochRangeModifier {a: 1}", "must be a list of modifiers"),
        ("modifiers: {}", "must be a list of modifiers"),
        ("modifiers: []", "It has none"),
        ("a: 1", "It has none"),
        ("pruning: [!EpochRangeModifier {a: 1}]\nmodifiers: []", "must not hold a modifier"),
        ("modifiers: [!A {b: [!C {d: 1}]}]", "must not hold a modifier. Got !C"),
        ("modifiers: [!A {b: eval(c)}]", "must have a value: an expression must use variables"),
        ("a: eval(b)\nb: eval(a)\nmodifiers: [!A {}]", "in a circle"),
        ("modifiers: [!A {b: 1, b: 2}]", "must be given once"),
    ],
)
def test_what_is_no_modifier_is_refused(text, fragment):
    assert fragment in issues(text)


def test_front_matter_keeps_its_lines():
    text = "<!-- words -->\n+++\na: 1\nb: 2 # --- no end\n+++\nwords\n---\n"
    assert front_matter(text).splitlines() == ["", "", "a: 1", "b: 2 # --- no end"]
    with pytest.raises(YamlError, match="between two lines of ---"):
        front_matter("words\n---\na: 1")
