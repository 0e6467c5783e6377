"""Recipes: their schema, and reading and writing their files."""
