"""Reading files without PyTorch's own warnings and tracebacks around our messages."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep warnings, and what PyTorch logs, off the terminal.

    ``torch.export.load`` logs the traceback of an exception that it then raises in another form.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
