"""Kinds of hostile data. Each module has ``kinds()``; two also have ``damaged(seed)``."""
