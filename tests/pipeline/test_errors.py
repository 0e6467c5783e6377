"""Every end of a run has a message: also where an exception cannot say what it is."""

import pytest

from mfac_compress.pipeline.errors import InputError, StageError, in_brief, stage_named


class _TextFails(Exception):
    def __str__(self):
        raise ValueError("no text")


def _raised(error, **options):
    with pytest.raises(StageError) as caught, stage_named("prune", **options):
        raise error
    return str(caught.value)


def test_an_exception_whose_text_fails_is_named_by_its_type():
    assert _raised(_TextFails()) == (
        "stage prune: _TextFails: (its text cannot be shown: ValueError)"
    )


def test_finished_stages_are_mentioned_where_there_are_some():
    assert _raised(KeyboardInterrupt()) == "stage prune: interrupted."
    assert _raised(KeyboardInterrupt(), resumable=True) == (
        "stage prune: interrupted. Start again: finished stages are kept."
    )


def test_an_error_with_a_message_passes_as_it_is():
    with pytest.raises(InputError, match="as it is"), stage_named("prune"):
        raise InputError("as it is")


def test_an_exception_in_brief_is_its_type_and_the_first_line_of_its_text():
    assert in_brief(ValueError("bad magic number.\nDetails ...")) == "ValueError: bad magic number"
    assert in_brief(EOFError()) == "EOFError"
    assert in_brief(_TextFails()).startswith("_TextFails: (its text cannot be shown")
