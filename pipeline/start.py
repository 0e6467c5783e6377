"""The first lines of the command ``mfac-compress``: they import nothing that takes time."""

from typing import NoReturn

from mfac_compress.pipeline.signals import ignore_interrupts, leave_when_interrupted


def main() -> NoReturn:
    """Run the command line. Until here an interrupt finds Python's own start, and its traceback."""
    leave_when_interrupted()
    from mfac_compress.pipeline.standard_streams import open_missing_streams
    from mfac_compress.pipeline.supervise import supervised

    open_missing_streams()
    supervised(_command_line)


def _command_line() -> None:
    from mfac_compress.pipeline.cli import main as command_line

    try:
        command_line(prog_name="mfac-compress")
    finally:
        ignore_interrupts()
