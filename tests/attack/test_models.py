"""Hostile model files run no code and end as they should: the short form of ``models.py``."""

import importlib.util
import itertools
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")
_HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def attack():
    """The script, which finds its parts beside itself."""
    sys.path.insert(0, str(_HERE))
    try:
        spec = importlib.util.spec_from_file_location("attack_on_models", _HERE / "models.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(_HERE))
    module.prepare()
    return module


def mishandled(attack, cases, folder):
    found = ((case, attack.outcome(case, folder / str(i))) for i, case in enumerate(cases))
    return [f"{case.name}: {what}" for case, what in found if what not in case.expected]


def test_programs_of_every_hostile_kind_are_handled(attack, tmp_path):
    assert mishandled(attack, attack.programs.kinds(), tmp_path) == []


def test_checkpoints_of_every_hostile_kind_are_handled(attack, tmp_path):
    assert mishandled(attack, attack.checkpoints.kinds(), tmp_path) == []


def test_onnx_files_of_every_hostile_kind_are_handled(attack, tmp_path):
    assert mishandled(attack, attack.onnx_files.kinds(), tmp_path) == []


@pytest.mark.parametrize("count", [5, pytest.param(50, marks=pytest.mark.long)])
def test_files_damaged_at_random_are_handled(attack, tmp_path, count):
    makers = (
        attack.programs.hidden,
        attack.programs.damaged,
        attack.checkpoints.damaged,
        attack.onnx_files.damaged,
    )
    cases = [make(seed) for make, seed in itertools.product(makers, range(count))]
    assert mishandled(attack, cases, tmp_path) == []
