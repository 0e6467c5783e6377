"""``python -m mfac_compress.pipeline``: the same as the command ``mfac-compress``."""

from mfac_compress.pipeline.start import main

main()
