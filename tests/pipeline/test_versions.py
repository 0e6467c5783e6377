"""The versions in the keys are those of all libraries that results depend on."""

import configparser
import re
from pathlib import Path

from mfac_compress.pipeline.versions import library_versions

NO_PART_OF_RESULTS = {
    "click",
    "click-default-group",
    "filelock",
    "psutil",
    "pydantic",
    "pyyaml",
    "rich",
}


def test_every_requirement_is_in_the_keys_or_takes_no_part_in_results():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    lines = setup["options"]["install_requires"].split()
    required = {re.match(r"[\w-]+", line).group() for line in lines}
    assert {*library_versions()} - {"python"} == required - NO_PART_OF_RESULTS
