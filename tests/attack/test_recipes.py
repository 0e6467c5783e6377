"""Hostile recipes and command lines in their short form, and in their long one."""

import pytest


def test_hostile_recipes_are_refused_or_accepted(load_script):
    assert load_script("recipes.py").run(count=60, seed=1) == 0


@pytest.mark.long
def test_many_hostile_recipes_are_refused_or_accepted(load_script):
    assert load_script("recipes.py").run(count=1500, seed=2) == 0
