"""The run directory: files come whole or not at all, and a place that cannot be used is named."""

import os

import pytest

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.run.cache import StageCache
from mfac_compress.pipeline.run.directory import RunDirectory


@pytest.mark.parametrize("name", ["n" * 300, "a\0b"], ids=["too long", "not a name"])
def test_a_name_that_no_directory_can_have_is_refused(tmp_path, name):
    with (
        pytest.raises(InputError, match="-o must be a directory that can be written to"),
        RunDirectory(tmp_path / name).locked(),
    ):
        pass


@pytest.mark.parametrize("inside", ["huggingface", "tool-1.2"])
def test_a_folder_with_a_cache_of_another_program_is_not_a_runs_own(tmp_path, inside):
    """Such as a model's folder that was downloaded from a hub, or a home directory."""
    (tmp_path / ".cache" / inside).mkdir(parents=True)
    with pytest.raises(InputError, match="-o must be a new, an empty or a run's own directory"):
        RunDirectory(tmp_path)


def test_a_folder_that_is_read_is_not_cleared(tmp_path):
    """One of transformers may have been made of a run's directory, by adding a configuration."""
    directory = RunDirectory(tmp_path / "out")
    with directory.exclusive():
        pass
    directory.check_spares({"MODEL": directory.path})
    (directory.path / "model.safetensors").write_text("weights")
    with pytest.raises(InputError, match=r"directory of MODEL.*model\.safetensors among them"):
        directory.check_spares({"MODEL": directory.path})


def test_a_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"can be written to.*Not a directory"),
        RunDirectory(tmp_path / "file" / "out").locked(),
    ):
        pass


@pytest.mark.parametrize("kind", ["file", "link to a folder"])
def test_what_stands_in_the_place_of_the_librarys_folder_is_removed_alone(tmp_path, kind):
    elsewhere, directory = tmp_path / "elsewhere", RunDirectory(tmp_path / "out")
    elsewhere.mkdir()
    (elsewhere / "libmfac_sparse.so").write_text("not ours")
    with directory.exclusive():
        pass
    place = directory.path / "kernels"
    place.write_text("") if kind == "file" else place.symlink_to(elsewhere)

    with directory.exclusive():
        assert not os.path.lexists(place)

    assert (elsewhere / "libmfac_sparse.so").read_text() == "not ours"


def test_a_folder_in_the_place_of_a_result_is_named(tmp_path):
    with RunDirectory(tmp_path / "out").exclusive() as directory:
        pass
    (tmp_path / "out" / "report.json").mkdir()
    with (
        pytest.raises(InputError, match=r"-o must be.*report\.json cannot be removed"),
        directory.exclusive(),
    ):
        pass


def _artefact(tmp_path, name, mode=0o644):
    def make(folder):
        (folder / name).touch(mode)
        (folder / name).write_bytes(b"whole")
        return {}

    return StageCache(tmp_path / "cache").get("export", {}, make)


def _broken_off(source, target):
    target.write_bytes(b"wh")
    raise OSError("No space left on device")


def _changed_meanwhile(source, target):
    target.write_bytes(b"another")


@pytest.mark.parametrize(
    ("copy", "message"), [(_broken_off, "No space"), (_changed_meanwhile, "It changed meanwhile")]
)
def test_a_copy_that_is_not_the_artefact_does_not_take_its_place(
    tmp_path, monkeypatch, copy, message
):
    artefact = _artefact(tmp_path, "model.onnx")
    monkeypatch.setattr("shutil.copyfile", copy)
    with RunDirectory(tmp_path / "out").locked() as directory:
        with pytest.raises(OSError, match=message):
            directory.publish(artefact)
        assert not (directory.path / "model.onnx").exists()
        assert [file.name for file in directory.path.iterdir()] == [".cache"]


def test_results_may_be_read_by_whom_the_umask_lets(tmp_path):
    """safetensors writes files that only their owner may read."""
    artefact = _artefact(tmp_path, "model.safetensors", mode=0o600)
    with RunDirectory(tmp_path / "out").locked() as directory:
        directory.publish(artefact)
        directory.write("report.json", "{}")
    taken, written = (
        (tmp_path / "out" / name).stat().st_mode for name in ("model.safetensors", "report.json")
    )
    assert taken == written


def test_results_are_drafted_where_they_will_stand(tmp_path, monkeypatch):
    """The cache may be a link to another disk, from where nothing can be moved."""
    replace = os.replace

    def on_one_disk(source, target):
        assert str(source).startswith(str(tmp_path / "out"))
        assert ".cache" not in str(source)
        replace(source, target)

    monkeypatch.setattr("os.replace", on_one_disk)
    with RunDirectory(tmp_path / "out").locked() as directory:
        directory.write("report.json", "{}")
    assert (tmp_path / "out" / "report.json").read_text() == "{}"


def test_what_a_killed_run_left_half_written_is_cleared(tmp_path):
    with RunDirectory(tmp_path / "out").locked() as directory:
        (directory.path / ".draft-killed").mkdir()
        directory.clear()
        assert [file.name for file in directory.path.iterdir()] == [".cache"]
