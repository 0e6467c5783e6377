"""A stage's key changes with everything that the stage reads, and with nothing else."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mfac_compress.pipeline.digest import content_key
from mfac_compress.pipeline.recipe.schema import RecoverSection
from mfac_compress.pipeline.run.artefact import Artefact
from mfac_compress.pipeline.run.stage import Keyed, Stage, digest_of


@dataclass(frozen=True)
class _Split:
    rows: int
    fingerprint: str


@dataclass(frozen=True)
class _Pair:
    section: RecoverSection
    split: _Split


def _key(**reads):
    return content_key(Stage("a", print, reads).key({}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (0, None),
        ("a", "b"),
        (1e-5, 2e-5),
        ([1, 2], [2, 1]),
        ({"a": 1}, {"a": 2}),
        (RecoverSection(), RecoverSection(lr=0.1)),
        (torch.device("cpu"), torch.device("cuda")),
        (_Split(3, "x"), _Split(3, "y")),
        (
            _Pair(RecoverSection(), _Split(1, "x")),
            _Pair(RecoverSection(momentum=0.5), _Split(1, "x")),
        ),
        (Keyed(print, 1), Keyed(print, 2)),
    ],
)
def test_another_value_gives_another_key(one, other):
    assert _key(value=one) == _key(value=one)
    assert _key(value=one) != _key(value=other)


def test_an_object_with_a_digest_is_known_by_it_alone():
    assert _key(split=_Split(1, "x")) == _key(split=_Split(2, "x"))


def test_of_a_keyed_value_only_the_key_counts_and_only_the_value_is_given():
    stage = Stage("a", print, {"folder": Keyed(Path("/tmp"), None)})
    assert stage.given == {"folder": Path("/tmp")}
    assert _key(folder=Keyed(Path("/tmp"), None)) == _key(folder=Keyed(Path("/var"), None))


@pytest.mark.parametrize("value", [object(), torch.nn.Linear(1, 1), Path("/tmp"), print])
def test_a_value_whose_content_is_not_known_is_refused(value):
    with pytest.raises(TypeError, match="values with a digest"):
        digest_of(value)


def test_the_content_of_the_artefacts_before_is_in_the_key():
    def artefact(digest):
        return Artefact(Path("/tmp"), digest, {}, {}, {}, reused=True)

    stage = Stage("b", print, after={"x": "a"})
    one, same, other = (stage.key({"x": artefact(digest)}) for digest in ("x", "x", "y"))
    assert one == same != other
