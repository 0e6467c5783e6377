"""A recipe of SparseML from its text."""

from textwrap import dedent

import pytest

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.recipe.importing import import_recipe
from mfac_compress.pipeline.recipe.yaml_lines import parse_yaml


class Foreign:
    """Writes recipes of SparseML and imports them.

    Args:
        folder: Where.
    """

    def __init__(self, folder):
        self.folder = folder

    def write(self, text, name="old.yaml"):
        path = self.folder / name
        path.write_text(dedent(text), encoding="utf-8")
        return path

    def imported(self, text, name="old.yaml", **options):
        return import_recipe(self.write(text, name), **options)

    def values(self, text, **options):
        return parse_yaml(self.imported(text, **options).text).value

    def refusal(self, text, name="old.yaml", **options):
        with pytest.raises(InputError) as caught:
            self.imported(text, name, **options)
        return str(caught.value)


@pytest.fixture
def foreign(tmp_path):
    return Foreign(tmp_path)
