"""Recipes of SparseML: reading them without executing anything, and saying them as ours."""
