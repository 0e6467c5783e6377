"""A pool shares artefacts among runs, whatever happens to it."""

import os
import shutil
import threading

import pytest

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.run import pool as pools
from mfac_compress.pipeline.run.cache import StageCache
from mfac_compress.pipeline.run.pool import Pool

RESULTS = ("model.onnx", "dense.onnx", "masks.safetensors", "model.safetensors")


@pytest.fixture
def said():
    return []


@pytest.fixture
def shared(tmp_path, said):
    """The pool, and a function that opens the cache of a run of some name."""

    def open_cache(run, limit=100_000):
        pool = Pool(tmp_path / "pool", limit, "run.cache", said.append)
        return StageCache(tmp_path / run, pool=pool)

    return open_cache


def _make(text):
    def make(folder):
        (folder / "inner").mkdir()
        (folder / "inner" / "result.txt").write_text(text)
        return {"text": text[:10]}

    return make


def _never(folder):
    raise AssertionError("made again")


def _entries(tmp_path):
    return sorted(path.name for path in (tmp_path / "pool").iterdir() if path.is_dir())


def _entry(tmp_path):
    (name,) = _entries(tmp_path)
    return tmp_path / "pool" / name


def _result(artefact):
    return artefact.folder / "inner" / "result.txt"


def test_what_one_run_makes_another_finds_as_a_link(shared, tmp_path):
    made = shared("a").get("prune", {"x": 1}, _make("of a"))
    found = shared("b").get("prune", {"x": 1}, _never)

    assert (made.reused, found.reused, found.rejected) == (False, True, "")
    assert found.facts == {"text": "of a"}
    assert found.folder.is_relative_to(tmp_path / "b")
    assert os.path.samefile(_result(found), _result(made))
    assert _entry(tmp_path).name.startswith("prune-")


def test_other_stages_and_keys_are_others(shared):
    shared("a").get("prune", {"x": 1}, _make("a"))
    assert not shared("b").get("prune", {"x": 2}, _make("b")).reused
    assert not shared("b").get("recover", {"x": 1}, _make("b")).reused


def test_an_artefact_of_before_the_pool_is_given_to_it(shared, tmp_path):
    StageCache(tmp_path / "a").get("prune", {"x": 1}, _make("a"))

    shared("a").get("prune", {"x": 1}, _never)

    assert shared("b").get("prune", {"x": 1}, _never).reused


def test_the_pool_keeps_what_a_run_replaces(shared):
    cache = shared("a")
    cache.get("prune", {"x": 1}, _make("first"))
    cache.get("prune", {"x": 2}, _make("second"))

    assert cache.get("prune", {"x": 1}, _never).facts == {"text": "first"}


def _used_at(entry, seconds):
    os.utime(entry, (seconds, seconds))


def test_what_was_not_used_for_the_longest_time_goes_first(shared, tmp_path):
    size = 3 * 500_000  # three of them, with their manifests
    for number in range(3):
        shared(f"run-{number}", size).get(f"stage-{number}", {}, _make("x" * 400_000))
    first, second, third = (tmp_path / "pool" / name for name in _entries(tmp_path))
    for age, entry in enumerate([second, third, first]):
        _used_at(entry, 1_000 + age)
    shared("reader", size).get("stage-1", {}, _never)

    shared("writer", size).get("stage-3", {}, _make("x" * 400_000))

    assert [name[:7] for name in _entries(tmp_path)] == ["stage-0", "stage-1", "stage-3"]


def test_use_of_a_runs_own_links_counts(shared, tmp_path):
    cache = shared("a")
    cache.get("prune", {}, _make("a"))
    _used_at(_entry(tmp_path), 1_000)
    cache.get("prune", {}, _never)
    assert _entry(tmp_path).stat().st_mtime > 1_000


def test_eviction_takes_nothing_from_a_run(shared, tmp_path):
    artefact = shared("a", 500_000).get("prune", {}, _make("x" * 400_000))
    shared("b", 500_000).get("recover", {}, _make("x" * 400_000))

    assert [name[:7] for name in _entries(tmp_path)] == ["recover"]
    assert _result(artefact).read_text() == "x" * 400_000
    assert shared("a", 500_000).get("prune", {}, _never).reused


def test_a_smaller_limit_holds_from_the_start(shared, tmp_path):
    shared("a").get("prune", {}, _make("x" * 400_000))
    shared("b", 10_000)
    assert _entries(tmp_path) == []


def test_what_exceeds_the_limit_is_not_shared_and_pushes_nothing_out(shared, tmp_path, said):
    shared("a").get("prune", {}, _make("small"))
    shared("a").get("calibrate", {}, _make("x" * 200_000))

    assert _entry(tmp_path).name.startswith("prune-")
    (line,) = said
    assert "run.cache_size" in line


def _flip(entry):
    content = (entry / "inner" / "result.txt").read_bytes()
    (entry / "inner" / "result.txt").unlink()
    (entry / "inner" / "result.txt").write_bytes(bytes([content[0] ^ 1]) + content[1:])


def _in_place(entry):
    (entry / "inner" / "result.txt").write_text("edited")


def _no_manifest(entry):
    (entry / "manifest.json").unlink()


def _extra_file(entry):
    (entry / "extra").write_text("")


def _pipe(entry):
    (entry / "inner" / "result.txt").unlink()
    os.mkfifo(entry / "inner" / "result.txt")


def _link_to_a_device(entry):
    (entry / "inner" / "result.txt").unlink()
    (entry / "inner" / "result.txt").symlink_to("/dev/zero")


def _link_to_a_file(entry):
    (entry / "inner" / "result.txt").rename(entry.parent.parent / "moved")
    (entry / "inner" / "result.txt").symlink_to(entry.parent.parent / "moved")


def _link_to_a_folder(entry):
    shutil.move(entry, entry.parent.parent / "moved")
    entry.symlink_to(entry.parent.parent / "moved", target_is_directory=True)


def _file(entry):
    shutil.rmtree(entry)
    entry.write_text("")


DAMAGES = [
    _flip,
    _in_place,
    _no_manifest,
    _extra_file,
    _pipe,
    _link_to_a_device,
    _link_to_a_file,
    _link_to_a_folder,
    _file,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_anew_and_replaced(shared, tmp_path, damage):
    shared("a").get("prune", {}, _make("whole"))
    damage(_entry(tmp_path))

    made = shared("b").get("prune", {}, _make("whole"))

    assert not made.reused
    assert _result(made).read_text() == "whole"
    assert not _result(made).is_symlink()
    assert shared("c").get("prune", {}, _never).facts == {"text": "whole"}


def test_what_is_wrong_with_an_entry_is_said(shared, tmp_path):
    shared("a").get("prune", {}, _make("whole"))
    _no_manifest(_entry(tmp_path))
    assert shared("b").get("prune", {}, _make("x")).rejected == "manifest.json is missing"


def test_runs_that_make_the_same_at_once_end_with_one_entry(shared, tmp_path):
    """And with the same artefact, on which the keys of their later stages rest."""
    caches, both = [shared("a"), shared("b")], threading.Barrier(2)
    results = {}

    def run(number):
        def make(folder):
            both.wait(timeout=30)
            return _make(f"of {number}")(folder)

        results[number] = caches[number].get("prune", {}, make)

    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results[0].digest == results[1].digest
    assert _result(results[0]).read_text() == _result(results[1]).read_text()
    assert len(_entries(tmp_path)) == 1


def test_an_entry_that_vanishes_while_it_is_read_is_made(shared, monkeypatch):
    shared("a").get("prune", {}, _make("a"))
    cache = shared("b")

    def link_after_eviction(source, target):
        monkeypatch.undo()
        shutil.rmtree(source)
        pools._link_all(source, target)

    monkeypatch.setattr(pools, "_link_all", link_after_eviction)
    made = cache.get("prune", {}, _make("b"))

    assert (made.reused, made.rejected) == (False, "")


def test_where_no_links_can_be_made_files_are_copied(shared, monkeypatch):
    def refuse(*_, **__):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    made = shared("a").get("prune", {}, _make("a"))
    found = shared("b").get("prune", {}, _never)

    assert found.reused
    assert not os.path.samefile(_result(made), _result(found))


def test_a_full_disk_ends_the_sharing_and_not_the_run(shared, tmp_path, monkeypatch, said):
    cache = shared("a")

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(shutil, "copyfile", refuse)

    assert not cache.get("prune", {}, _make("a")).reused
    assert _entries(tmp_path) in ([], [".making-entry"])
    assert said == [f"prune: not shared. {tmp_path / 'pool'}: No space left on device"]


def test_what_a_killed_run_left_half_made_goes(shared, tmp_path):
    shared("a")
    for name in (".making-entry", ".removed-entry"):
        (tmp_path / "pool" / name / "inner").mkdir(parents=True)
    shared("b")
    assert _entries(tmp_path) == []


def test_code_that_cannot_be_hashed_shares_nothing(tmp_path, said):
    from mfac_compress.pipeline.inputs.code_sources import CodeSources

    pool = Pool(tmp_path / "pool", 100_000, "run.cache", said.append)
    cache = StageCache(tmp_path / "a", code=CodeSources(unseen=("model",)), pool=pool)
    cache.get("prune", {}, _make("a"))
    assert _entries(tmp_path) == []


def _a_file(folder):
    folder.write_text("")


def _below_a_file(folder):
    folder.parent.rmdir()
    folder.parent.write_text("")


def _others_files(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("")


def _dangling_link(folder):
    folder.symlink_to(folder.parent / "nowhere" / "at" / "all")


@pytest.mark.parametrize("spoil", [_a_file, _below_a_file, _others_files])
@pytest.mark.parametrize("dry_run", [True, False])
def test_an_unusable_path_is_refused_by_its_key(project, spoil, dry_run):
    project.recipe["run"] = {"cache": "below/pool"}
    (project.folder / "below").mkdir()
    spoil(project.folder / "below" / "pool")

    result = project.run(*["--dry-run"] * dry_run)

    assert result.exit_code == 2
    assert "recipe.yaml:" in result.output
    assert "(run.cache)" in result.output
    assert not (project.output / "report.json").exists()


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match=r"run\.cache: must be a folder that can be written to"):
        Pool(tmp_path / "pool", 1, "run.cache", print)


def test_a_second_run_directory_reuses_every_stage_and_publishes_copies(project):
    """The path starts at the recipe's folder, and a dry run makes nothing."""
    project.recipe["run"] = {"cache": "pool"}
    assert project.run("--dry-run").exit_code == 0
    assert not (project.folder / "pool").exists()
    assert project.run().exit_code == 0
    first, project.output = project.output, project.folder / "second"

    result = project.run()

    assert result.exit_code == 0, result.output
    stages = {path.name.rpartition("-")[0] for path in (project.folder / "pool").glob("*-*")}
    reused = {line.split()[0] for line in result.output.splitlines() if line.endswith("reused")}
    assert reused == stages
    assert len(stages) >= 6
    for name in RESULTS:
        assert (first / name).read_bytes() == (project.output / name).read_bytes()
        assert (project.output / name).stat().st_nlink == 1
