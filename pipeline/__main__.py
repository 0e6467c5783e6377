"""``python -m mfac_compress.pipeline``: the same as the command ``mfac-compress``."""

from mfac_compress.pipeline.cli import main

main(prog_name="mfac-compress")
