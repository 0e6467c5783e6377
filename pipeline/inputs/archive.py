"""Opening the zip archives that PyTorch writes, without trusting what they say of themselves.

PyTorch stores the records of an archive uncompressed, each name once, all below one folder. Only
such archives are opened: what was packed in another way can hold more than memory does, or say one
thing to one reader and another to the next.
"""

import io
import re
import zipfile
from dataclasses import dataclass

from mfac_compress.pipeline.errors import in_brief
from mfac_compress.pipeline.quoting import shortened

_MOST_RECORDS = 200_000
_NAME = re.compile(r"[\w./+ -]{1,512}", re.ASCII)
_ENCRYPTED = 0x1


class ArchiveError(ValueError):
    """An archive is damaged, or not as PyTorch writes it."""


@dataclass(frozen=True)
class Archive:
    """A checked archive.

    Attributes:
        content: The file's bytes.
        records: Full names by the names without the top folder.
    """

    content: bytes
    records: dict[str, str]

    def read(self, *names: str) -> dict[str, bytes]:
        """Read records, and check their checksums.

        Args:
            names: Names without the top folder.
        Returns:
            Their bytes by name.
        Raises:
            ArchiveError: If one is missing or damaged.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(self.content)) as archive:
                return {name: archive.read(self.records[name]) for name in names}
        except KeyError as error:
            raise ArchiveError(f"it has no record {error}") from error
        except Exception as error:
            # Damaged headers show as struct.error, EOFError, NotImplementedError and others.
            raise ArchiveError(in_brief(error)) from error


def is_archive(content: bytes) -> bool:
    """Whether a file begins as a zip archive does."""
    return content.startswith(b"PK\x03\x04")


def record_names(content: bytes) -> set[str]:
    """Names of the records in an archive, without their top folder, whoever wrote it.

    Args:
        content: The file's bytes.
    Returns:
        The names; none where it is no archive, or its directory cannot be read.
    """
    if not is_archive(content):
        return set()
    try:
        return {entry.filename.partition("/")[2] for entry in _entries(content)}
    except ArchiveError:
        return set()


def open_archive(content: bytes) -> Archive:
    """Open an archive of PyTorch.

    Args:
        content: The file's bytes.
    Returns:
        The archive; its records are read by :meth:`Archive.read`.
    Raises:
        ArchiveError: If its directory is damaged, or it was not written by PyTorch.
    """
    entries = _entries(content)
    if len(entries) > _MOST_RECORDS:
        raise ArchiveError(f"it has {len(entries)} records")
    for entry in entries:
        _check_entry(entry)
    if sum(entry.file_size for entry in entries) > len(content):
        raise ArchiveError("its records together are larger than the file")
    tops = {entry.filename.partition("/")[0] for entry in entries}
    if len(tops) > 1:
        raise ArchiveError(f"it has {len(tops)} folders at the top, PyTorch writes one")
    return Archive(content, _by_name(entries))


def _entries(content: bytes) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.infolist()
    except Exception as error:
        # Damaged directories show as struct.error, NotImplementedError and others.
        raise ArchiveError(in_brief(error)) from error


def _by_name(entries: list[zipfile.ZipInfo]) -> dict[str, str]:
    records: dict[str, str] = {}
    for entry in entries:
        name = entry.filename.partition("/")[2]
        # Two readers could disagree about which of two records of a name counts.
        if name in records:
            raise ArchiveError(f"it has two records {shortened(name)!r}")
        if not _NAME.fullmatch(name) or ".." in name.split("/"):
            raise ArchiveError(f"it has a record of the name {shortened(entry.filename)!r}")
        records[name] = entry.filename
    return records


def _check_entry(entry: zipfile.ZipInfo) -> None:
    if entry.flag_bits & _ENCRYPTED:
        raise ArchiveError(f"the record {shortened(entry.filename)!r} is encrypted")
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise ArchiveError(
            f"the record {shortened(entry.filename)!r} is compressed, PyTorch stores them as they "
            "are"
        )
