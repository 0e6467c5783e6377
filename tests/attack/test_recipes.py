"""Hostile recipes and command lines in their short form, and in their long one."""

import pytest


def test_hostile_recipes_are_refused_or_accepted(attack):
    attack("recipes.py", "--count", "60", "--seed", "1")


@pytest.mark.long
def test_many_hostile_recipes_are_refused_or_accepted(attack):
    attack("recipes.py", "--count", "1500", "--seed", "2")
