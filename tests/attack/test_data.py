"""Hostile data is refused, or loaded as what it is; `data.py` beside this makes more of it."""

import pytest


def test_a_part_of_the_kinds(attack):
    attack("data.py", "--count", "580", "--step", "11")


@pytest.mark.long
def test_all_kinds_and_damage_at_random(attack):
    attack("data.py", "--count", "1000", "--seed", "1")
