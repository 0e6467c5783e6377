"""Damaged caches change nothing: the short form of ``caches.py``."""

import pytest


def test_a_part_of_the_damages(load_script):
    assert load_script("caches.py").run(count=10, seed=0) == 0


@pytest.mark.long
def test_many_damages(load_script):
    assert load_script("caches.py").run(count=200, seed=0) == 0
