"""Stages are gone through in order, each with what it reads and the artefacts before it."""

from dataclasses import dataclass
from functools import partial

import pytest

from mfac_compress.pipeline import versions
from mfac_compress.pipeline.errors import InputError, StageError
from mfac_compress.pipeline.inputs.callables import user_code
from mfac_compress.pipeline.inputs.code_sources import CodeSources, forget_opened
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.run.cache import StageCache
from mfac_compress.pipeline.run.runner import StageClock, check_stages, run_stages
from mfac_compress.pipeline.run.stage import Keyed, Stage


@dataclass(frozen=True)
class _Part:
    ends: tuple[int, int]


@dataclass(frozen=True)
class _Facts:
    number: int
    parts: tuple[_Part, ...] = ()


class _Runs:
    """Runs stages in one cache, and notes which of them are made."""

    def __init__(self, folder):
        self.cache_of = partial(StageCache, folder)
        self.made = []

    def add(self, job, number):
        self.made.append(job.folder.parent.parent.name)
        before = [artefact.facts.number for artefact in job.before.values()]
        assert all(role.startswith("of ") for role in job.before)
        (job.folder / "number").write_text(str(number))
        return _Facts(number + sum(before), (_Part((1, 2)),))

    def stage(self, name, number, *after, **more):
        roles = {f"of {each}": each for each in after}
        return Stage(name, self.add, {"number": number}, roles, facts=_Facts, **more)

    def run(self, *stages, code=None):
        self.made.clear()
        clock = StageClock(Progress())
        return run_stages(stages, self.cache_of, code or CodeSources(), Ranks(), clock)


@pytest.fixture
def runs(tmp_path):
    return _Runs(tmp_path)


def test_a_stage_is_given_what_it_reads_and_the_artefacts_before_it(runs):
    done = runs.run(runs.stage("a", 1), runs.stage("b", 2, "a"), runs.stage("c", 4, "a", "b"))
    assert [done[name].facts.number for name in "abc"] == [1, 3, 8]
    assert runs.made == ["a", "b", "c"]


@pytest.mark.parametrize("ranks", ["all", "zero"])
def test_found_facts_are_of_the_type_of_made_ones(runs, ranks):
    made, found = (runs.run(runs.stage("a", 1, ranks=ranks))["a"] for _ in range(2))
    assert (made.reused, found.reused) == (False, True)
    assert made.facts == found.facts == _Facts(1, (_Part((1, 2)),))


def test_a_change_reaches_the_stages_after_it_and_no_other(runs):
    def stages(number):
        return runs.stage("a", number), runs.stage("b", 2, "a"), runs.stage("c", 4)

    runs.run(*stages(1))
    done = runs.run(*stages(3))
    assert runs.made == ["a", "b"]
    assert done["b"].facts.number == 5


def test_code_that_cannot_be_hashed_is_never_reused(runs):
    for _ in range(2):
        runs.run(runs.stage("a", 1), code=CodeSources(unseen=("x",)))
        assert runs.made == ["a"]


def test_a_failing_stage_is_named_and_those_before_it_are_kept(runs):
    def fail(job):
        raise OSError("disk full")

    with pytest.raises(StageError, match="stage b: OSError: disk full"):
        runs.run(runs.stage("a", 1), Stage("b", fail))
    runs.run(runs.stage("a", 1))
    assert not runs.made


def test_checks_are_given_what_the_stage_reads(runs):
    def check(_ranks, number):
        if number > 1:
            raise InputError("too large")

    check_stages([runs.stage("a", 1, check=check), runs.stage("b", 5)], Ranks())
    with pytest.raises(InputError, match="too large"):
        check_stages([runs.stage("a", 2, check=check)], Ranks())
    hidden = Stage("a", print, {"number": Keyed(2, None)}, check=check)
    with pytest.raises(InputError, match="too large"):
        check_stages([hidden], Ranks())


def test_steps_that_the_run_no_longer_has_are_removed_when_it_is_over(runs, tmp_path):
    runs.run(runs.stage("a", 1), runs.stage("b-00", 1), runs.stage("b-01", 2))
    with pytest.raises(StageError):
        runs.run(runs.stage("b-00", 1), Stage("c", lambda job: 1 / 0))
    assert (tmp_path / "b-01").exists()

    runs.run(runs.stage("b-00", 1))

    assert {path.name for path in tmp_path.iterdir()} >= {"a", "b-00"}
    assert not (tmp_path / "b-01").exists()


def test_a_stage_goes_on_from_its_checkpoint_which_goes_when_it_is_finished(runs, tmp_path):
    def count(job, end):
        at = (job.checkpoints.load() or {"at": 0})["at"]
        while at < end:
            at += 1
            job.checkpoints.save(at, {"at": at})
            runs.made.append(at)
            if end == 4 and runs.made == [1, 2]:
                raise OSError("killed")
        return {"at": at}

    stage = Stage("a", count, {"end": 4})
    with pytest.raises(StageError, match="killed"):
        runs.run(stage)
    assert runs.run(stage)["a"].facts == {"at": 4}
    assert runs.made == [3, 4]
    assert len(list((tmp_path / "a").iterdir())) == 1

    runs.run(Stage("a", count, {"end": 5}))
    assert runs.made == [1, 2, 3, 4, 5], "a checkpoint of another key was taken"


def _reads(path):
    with user_code(), open(path) as file:
        return file.read()


@pytest.fixture
def schedule(tmp_path):
    """A file of the user's that a stage reads."""
    forget_opened()
    path = tmp_path / "schedule.txt"
    path.write_text("1")
    yield path
    forget_opened()


def _killed_after_one(job, path, made):
    at = (job.checkpoints.load() or {"at": 0})["at"]
    made.append(at)
    if at == 0:
        _reads(path)
        job.checkpoints.save(1, {"at": 1})
        raise OSError("killed")
    return {"at": at}


def test_a_checkpoint_of_other_code_is_not_gone_on_from(runs, schedule):
    stage = Stage("a", partial(_killed_after_one, path=schedule, made=runs.made))
    with pytest.raises(StageError, match="killed"):
        runs.run(stage)
    forget_opened()
    schedule.write_text("10")
    with pytest.raises(StageError, match="killed"):
        runs.run(stage)
    assert runs.made == [0]


def test_the_code_of_a_checkpoint_is_code_of_the_artefact(runs, schedule):
    """Its own process has not read the file, but half of the work was done with it."""
    stage = Stage("a", partial(_killed_after_one, path=schedule, made=runs.made))
    with pytest.raises(StageError, match="killed"):
        runs.run(stage)
    forget_opened()
    assert runs.run(stage)["a"].facts == {"at": 1}
    assert runs.run(stage)["a"].reused
    schedule.write_text("10")
    with pytest.raises(StageError, match="killed"):
        runs.run(stage)


def test_what_is_installed_anew_is_not_in_the_keys_of_what_is_loaded(runs, monkeypatch):
    """Else a later process would reuse what the package of before has made."""
    with monkeypatch.context() as patch:
        patch.setattr(versions, "package_digest", lambda: "of a newer version")
        with pytest.raises(InputError, match="Start Python anew"):
            runs.run(runs.stage("a", 1))
    assert not runs.made


def test_a_stage_during_which_the_package_is_installed_anew_is_not_reused(runs, monkeypatch):
    def install(job):
        monkeypatch.setattr(versions, "package_digest", lambda: "of a newer version")
        return runs.add(job, 1)

    stage = Stage("a", install, facts=_Facts)
    runs.run(stage)
    monkeypatch.undo()
    assert not runs.run(Stage("a", partial(runs.add, number=1), facts=_Facts))["a"].reused
