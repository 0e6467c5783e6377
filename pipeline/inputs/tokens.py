"""Texts as numbers of tokens, by the ``tokenizer.json`` of a model's folder, which is data."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mfac_compress.pipeline.digest import file_digest
from mfac_compress.pipeline.errors import InputError, describe
from mfac_compress.pipeline.files import check_regular
from mfac_compress.pipeline.inputs.huggingface import CONFIG, read_json

_FILE = "tokenizer.json"
_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """Cuts texts into tokens.

    Attributes:
        folder: Where it is from.
        pad: Number of the token that fills a batch; attention masks hide it.
        marks_pairs: Whether the model tells the texts of a pair apart by ``token_type_ids``.
        digest: Of its file, of ``pad`` and of the length.
    """

    folder: Path
    pad: int
    marks_pairs: bool
    digest: str
    _tokenizer: Any

    def encode(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> Iterator[np.ndarray]:
        """Token numbers and token types of each text or pair. Shape ``[2, length]``.

        Raises:
            InputError: If one cannot be cut.
        """
        for start in range(0, len(texts), _AT_ONCE):
            must = f"{self.folder / _FILE} must be able to cut the texts at data.max_length"
            with _refusing(must):
                found = self._tokenizer.encode_batch(list(texts[start : start + _AT_ONCE]))
            yield from (np.array([one.ids, one.type_ids], dtype=np.int64) for one in found)


def open_tokenizer(folder: Path, max_length: int, *, is_pair: bool) -> TextTokenizer:
    """Open the tokenizer of a folder.

    Args:
        folder: Has ``tokenizer.json``, and ``config.json`` beside it where it is a model's.
        max_length: Number of tokens at which texts are cut.
        is_pair: Whether two texts are cut together.
    Raises:
        InputError: If there is none, or it cannot be read; if the library is not installed; if
            nothing is left of the texts.
    """
    path = folder / _FILE
    try:
        check_regular(path, "data.tokenizer")
        digest = file_digest(path)
    except OSError as error:
        raise InputError(
            f"data.tokenizer must be a folder with {_FILE}. {folder} has none that can be read "
            f"({error.strerror}). Write it with AutoTokenizer.from_pretrained(...)"
            ".save_pretrained, or name another folder."
        ) from error
    tokenizer = _read(path)
    config = _config(folder)
    pad = config.get("pad_token_id")
    if not isinstance(pad, int) or isinstance(pad, bool) or pad < 0:
        pad = (tokenizer.padding or {}).get("pad_id", 0)
    kinds = config.get("type_vocab_size")
    with _refusing(f"{path} must be a tokenizer that can be used"):
        tokenizer.no_padding()
        special = tokenizer.num_special_tokens_to_add(is_pair)
    if max_length <= special:
        raise InputError(
            f"data.max_length must leave room beside the {special} special tokens of each text. "
            f"Got {max_length}."
        )
    tokenizer.enable_truncation(max_length)
    return TextTokenizer(
        folder, pad, isinstance(kinds, int) and kinds > 1, f"{digest} {pad} {max_length}", tokenizer
    )


def _read(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise InputError(
            "data.source text needs the package tokenizers. It cannot be imported "
            f"({error}). Install it: pip install 'mfac-compress[transformers]'."
        ) from error
    with _refusing(f"{path} must be a tokenizer of the library tokenizers"):
        return Tokenizer.from_file(str(path))


@contextmanager
def _refusing(must: str) -> Iterator[None]:
    """Turn errors of the library into one that says what must hold; its panics are no Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise InputError(f"{must}. It raised {describe(error)}.") from error


def _config(folder: Path) -> dict[str, Any]:
    """The model's configuration; empty where there is none that can be read."""
    try:
        return read_json(folder, CONFIG)[1]
    except InputError:
        return {}
