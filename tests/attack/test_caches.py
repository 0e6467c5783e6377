"""Damaged caches change nothing: the short form of ``caches.py``."""

import pytest


def test_a_part_of_the_damages(attack):
    attack("caches.py", "--count", "10")


@pytest.mark.long
def test_many_damages(attack):
    attack("caches.py", "--count", "200")
