"""Artefacts are found by content, and are there only when they are complete."""

import pytest

from mfac_compress.pipeline.run import cache as caches
from mfac_compress.pipeline.run.cache import StageCache


def _make(text):
    def make(folder):
        (folder / "result.txt").write_text(text)
        return {"text": text}

    return make


def _never(folder):
    raise AssertionError("made again")


def test_the_same_ingredients_are_made_once(tmp_path):
    cache = StageCache(tmp_path)
    first = cache.get("prune", {"a": 1, "b": [2]}, _make("x"))
    second = cache.get("prune", {"b": [2], "a": 1}, _never)

    assert (first.reused, second.reused) == (False, True)
    assert (second.folder / "result.txt").read_text() == "x"
    assert second.facts == {"text": "x"}


def test_other_ingredients_are_made_anew_and_replace_the_old(tmp_path):
    cache = StageCache(tmp_path)
    cache.get("prune", {"a": 1}, _make("x"))
    cache.get("recover", {"a": 1}, _make("other stage"))

    assert not cache.get("prune", {"a": 2}, _make("y")).reused

    assert len(list((tmp_path / "prune").iterdir())) == 1
    assert cache.get("recover", {"a": 1}, _never).reused


def test_a_failed_stage_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "result.txt").write_text("half")
        raise RuntimeError

    cache = StageCache(tmp_path)
    with pytest.raises(RuntimeError):
        cache.get("prune", {"a": 1}, fail)

    assert list((tmp_path / "prune").iterdir()) == []
    assert not cache.get("prune", {"a": 1}, _make("x")).reused


def test_a_file_in_the_place_of_a_stages_folder_is_damage_too(tmp_path):
    (tmp_path / "prune").write_text("")
    assert not StageCache(tmp_path).get("prune", {"a": 1}, _make("x")).reused
    assert StageCache(tmp_path).get("prune", {"a": 1}, _never).reused


def test_a_folder_without_a_manifest_is_not_an_artefact(tmp_path):
    cache = StageCache(tmp_path)
    artefact = cache.get("prune", {"a": 1}, _make("x"))
    (artefact.folder / "manifest.json").unlink()

    assert not cache.get("prune", {"a": 1}, _make("y")).reused


def test_what_a_killed_run_left_goes_when_its_artefact_is_found(tmp_path):
    cache = StageCache(tmp_path)
    cache.get("prune", {"a": 1}, _make("x"))
    (tmp_path / "prune" / ".making-1" / "artefact").mkdir(parents=True)

    cache.get("prune", {"a": 1}, _never)

    assert len(list((tmp_path / "prune").iterdir())) == 1


def test_an_artefact_is_in_its_place_before_what_it_replaces_goes(tmp_path, monkeypatch):
    """Else a run killed in between would have neither, nor what it could go on from."""
    cache = StageCache(tmp_path)
    cache.get("prune", {"a": 1}, _make("x"))

    def killed(*_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(caches, "remove", killed)
        with pytest.raises(SystemExit):
            cache.get("prune", {"a": 2}, _make("y"))

    assert cache.get("prune", {"a": 2}, _never).reused
    assert len(list((tmp_path / "prune").iterdir())) == 1
