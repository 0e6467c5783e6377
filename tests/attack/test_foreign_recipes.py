"""Hostile recipes of SparseML in their short form, and in their long one."""

import pytest


def test_hostile_recipes_of_sparseml_execute_nothing(attack):
    attack("foreign_recipes.py", "--count", "150", "--seed", "1")


@pytest.mark.long
def test_many_hostile_recipes_of_sparseml_execute_nothing(attack):
    attack("foreign_recipes.py", "--count", "5000", "--seed", "2")
