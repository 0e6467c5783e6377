"""The terminal: as wide as a log may be, silent where nobody reads, letters of any path."""

import io
import os

from rich.text import Text

from mfac_compress.pipeline.terminal import add_row, open_terminal, plain_table


def _ascii_stdout(monkeypatch):
    """An ASCII stdout that is no terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    return stream


def _written(stream):
    stream.flush()
    return stream.buffer.getvalue().decode("ascii")


def test_a_log_is_a_hundred_columns_wide(monkeypatch):
    _ascii_stdout(monkeypatch)
    assert open_terminal(quiet=False, stderr=False).width == 100


def test_a_letter_that_the_terminal_does_not_know_is_written_otherwise(monkeypatch):
    stdout = _ascii_stdout(monkeypatch)
    open_terminal(quiet=False, stderr=False).print("runs/grün")
    assert _written(stdout) == "runs/gr\\xfcn\n"


def test_brackets_in_cells_are_no_markup(monkeypatch):
    stdout = _ascii_stdout(monkeypatch)
    table = plain_table("", "pattern", "result")
    add_row(table, "re:conv[a-z]+[/b]", Text("pass", "green"))
    open_terminal(quiet=False, stderr=False).print(table)
    assert "| re:conv[a-z]+[/b] | pass" in _written(stdout)


def test_who_stops_reading_does_not_stop_the_run(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as closed:
        monkeypatch.setattr("sys.stdout", closed)
        terminal = open_terminal(quiet=False, stderr=False)
        terminal.print("nobody hears this")
        terminal.print("nor this")
        assert terminal.quiet
