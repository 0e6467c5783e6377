"""Folders of images with links, names and files that are no such thing."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .case import EITHER, LOADED, REFUSED, Case, pictures_section
from .containers import _fifo, _link, _socket, _sparse
from .pictures import picture, write_good


def _named(split: Path, name: bytes | str) -> None:
    path = os.path.join(os.fsencode(split / "bee"), os.fsencode(name))
    with open(path, "wb") as stream:
        picture(11).save(stream, "PNG")


def _class(split: Path, name: bytes) -> None:
    for other in (split, split.parent / "calibration"):
        path = os.path.join(os.fsencode(other), name)
        os.mkdir(path)
        with open(os.path.join(path, b"0.png"), "wb") as stream:
            picture(12 + len(os.fspath(other))).save(stream, "PNG")


def _deep(split: Path) -> None:
    path = split / "bee" / Path(*["d"] * 300)
    path.mkdir(parents=True)
    picture(11).save(path / "0.png")


def _many(split: Path) -> None:
    for i in range(3000):
        (split / "bee" / f"{i}.txt").write_text("no image")


def _replaced(split: Path, make: Callable[[Path], Any]) -> None:
    shutil.rmtree(split)
    make(split)


def _unreadable(split: Path, mode: int, name: str) -> None:
    (split / name).chmod(mode)


CHANGES: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "a pipe": (lambda s: _fifo(s / "bee" / "1.png"), REFUSED),
    "a socket": (lambda s: _socket(s / "bee" / "1.png"), REFUSED),
    "a link to a device": (lambda s: _link(s / "bee" / "1.png", "/dev/zero"), REFUSED),
    "a link to a terminal": (lambda s: _link(s / "bee" / "1.png", "/dev/tty"), REFUSED),
    "a link to itself": (lambda s: _link(s / "bee" / "1.png", "1.png"), REFUSED),
    "a link to nothing": (lambda s: _link(s / "bee" / "1.png", "nowhere"), REFUSED),
    "a link to a picture": (lambda s: _link(s / "bee" / "1.png", "0.png"), LOADED),
    "a link to a picture of another split": (
        lambda s: _link(s / "bee" / "1.png", "../../calibration/bee/0.png"),
        REFUSED,
    ),
    "a file of 20 GB": (lambda s: _sparse(s / "bee" / "1.png"), REFUSED),
    "a folder named as a picture": (lambda s: (s / "bee" / "1.png").mkdir(), EITHER),
    "a link to the folder itself": (lambda s: _link(s / "bee" / "more", "."), LOADED),
    "a link to the folder above": (lambda s: _link(s / "bee" / "more", ".."), LOADED),
    "a class that is a link to all": (lambda s: _link(s / "cat", ".."), REFUSED),
    "a class that is a link to /": (lambda s: _link(s / "cat", "/"), REFUSED),
    "a class that is a link to the split": (lambda s: _link(s / "cat", "."), REFUSED),
    "a class that is a link to itself": (lambda s: _link(s / "cat", "cat"), EITHER),
    "a class that is a link to another split": (
        lambda s: _replaced(s / "bee", lambda p: _link(p, "../calibration/bee")),
        REFUSED,
    ),
    "a class without pictures": (lambda s: (s / "cat").mkdir(), REFUSED),
    "no classes": (lambda s: _replaced(s, Path.mkdir), REFUSED),
    "only hidden classes": (
        lambda s: _replaced(s, lambda p: (p / ".a").mkdir(parents=True)),
        REFUSED,
    ),
    "a file for a split": (lambda s: _replaced(s, Path.touch), REFUSED),
    "a pipe for a split": (lambda s: _replaced(s, os.mkfifo), REFUSED),
    "a link that goes round for a split": (
        lambda s: _replaced(s, lambda p: _link(p, p.name)),
        REFUSED,
    ),
    "a link to the other split": (
        lambda s: _replaced(s, lambda p: _link(p, "calibration")),
        REFUSED,
    ),
    "no split": (lambda s: _replaced(s, lambda _: None), REFUSED),
    "300 folders deep": (_deep, EITHER),
    "3,000 other files": (_many, LOADED),
    "a name that is not UTF-8": (lambda s: _named(s, b"\xff\xfe.png"), LOADED),
    "a name of 255 bytes": (lambda s: _named(s, b"a" * 251 + b".png"), LOADED),
    "a name with a line's end": (lambda s: _named(s, "a\nb.png"), LOADED),
    "a name with escapes": (lambda s: _named(s, "\x1b[31m.png"), LOADED),
    "a name in capitals": (lambda s: _named(s, "A.PNG"), LOADED),
    "a name that is a suffix": (lambda s: _named(s, ".png"), LOADED),
    "a class that is not UTF-8": (lambda s: _class(s, b"\xff\xfe"), LOADED),
    "a class with escapes": (lambda s: _class(s, b"\x1b[31m\n"), LOADED),
    "a broken picture of a name that is not UTF-8": (
        lambda s: Path(os.fsdecode(os.fsencode(s / "bee") + b"/\xff\x1b[31m.png")).touch(),
        REFUSED,
    ),
    "a picture that is not to be read": (lambda s: _unreadable(s, 0, "bee/0.png"), EITHER),
    "a class that is not to be read": (lambda s: _unreadable(s, 0, "bee"), EITHER),
}


def _changed(folder: Path, change: Callable[[Path], Any]) -> dict[str, Any]:
    write_good(folder)
    change(folder / "validation")
    return pictures_section()


def _at(folder: Path, path: str) -> dict[str, Any]:
    write_good(folder)
    section = pictures_section()
    section["splits"]["validation"]["path"] = path
    return section


def kinds() -> Iterator[Case]:
    """All kinds, each once."""
    for name, (change, expected) in CHANGES.items():
        yield Case(f"folder: {name}", lambda f, c=change: _changed(f, c), expected)
    for path in (
        "",
        "calibration",
        "calibration/",
        "calibration/../calibration",
        "validation/bee",
        "/proc/self/task",
        "/dev",
        "\0",
        "\udcff",
        "a" * 10000,
        "~nobody",
        "calibration/ant/0.png",
    ):
        yield Case(f"folder at {path[:20]!r}", lambda f, p=path: _at(f, p))
