"""Arrays are read as NumPy writes them, and nothing that only claims to be one is believed."""

import os
import zipfile

import numpy as np
import pytest

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.array_files import has_array, read_array

HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"


def npy(header=HEADER, numbers=bytes(24)):
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + numbers


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as stream:
        for name, content in members.items():
            stream.writestr(f"{name}.npy", content)
    return path


def refusal(path, name="x"):
    with pytest.raises(InputError) as caught:
        read_array(path, name, given="a.npz", key="data.splits.validation")
    assert "data.splits.validation.path" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(24).reshape(2, 3, 4)),
        np.arange(6, dtype=">i8").reshape(2, 3),
        np.arange(3, dtype="f2"),
        np.array([[True], [False]]),
        np.arange(10**6).reshape(1000, -1),
    ],
)
@pytest.mark.parametrize("save", ["savez", "savez_compressed", "npy"])
def test_what_numpy_writes_is_what_is_read(array, save, tmp_path):
    if save == "npy":
        np.save(tmp_path / "x.npy", array)
        path = tmp_path
    else:
        path = tmp_path / "a.npz"
        getattr(np, save)(path, x=array)
    found = read_array(path, "x", given="a.npz", key="data")
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)
    assert has_array(path, "x")
    assert not has_array(path, "y")


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        ("(1000000000000, 3)", "bytes in all, and there are"),
        ("(2, 2)", "more was written"),
        ("(-2, -3)", "a row per sample"),
        ("(0, 3)", "no empty axis"),
        ("()", "a row per sample"),
        ("(" * 5000, "no description of an array"),
        (f"({'9' * 4400},)", "cannot be read"),
    ],
)
def test_a_shape_that_lies_is_refused_before_memory_is_taken(shape, part, tmp_path):
    content = npy(HEADER.replace("(2, 3)", shape))
    (tmp_path / "x.npy").write_bytes(content)
    for path in (tmp_path, archive(tmp_path / "a.npz", x=content)):
        message = refusal(path)
        assert part in message or "cannot be read" in message


@pytest.mark.parametrize(
    "descr", ["'|O'", "'<M8[s]'", "'<U3'", "'<c8'", "[('a', '<f4')]", "'f4,f4'"]
)
def test_types_that_are_no_real_numbers_are_refused(descr, tmp_path):
    content = npy(HEADER.replace("'<f4'", descr))
    assert "of numbers only" in refusal(archive(tmp_path / "a.npz", x=content))


def test_a_member_that_is_no_array_is_refused(tmp_path):
    assert "cannot be read" in refusal(archive(tmp_path / "a.npz", x=b"text"))


def test_a_file_that_claims_a_thousand_times_its_size_is_refused(tmp_path):
    count = 3 * 10**8
    path = tmp_path / "a.npz"
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count}, 1)}}"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as stream,
        stream.open("x.npy", "w") as member,
    ):
        member.write(npy(header, b""))
        for _ in range(300):
            member.write(bytes(10**6))
    assert path.stat().st_size < 10**6
    assert "claims 300,000" in refusal(path)


def test_numbers_that_do_not_match_their_checksum_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(1000.0))
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    assert "CRC" in refusal(path)


def test_names_in_an_archive_are_shown_on_one_line(tmp_path):
    names = {"\x1b[31m\n" + str(i): npy() for i in range(100)}
    message = refusal(archive(tmp_path / "a.npz", **names))
    assert message.isprintable()
    assert len(message) < 500


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    os.mkfifo(tmp_path / "x.npy")
    assert "a pipe" in refusal(tmp_path / "a.npz")
    assert "a pipe" in refusal(tmp_path)
