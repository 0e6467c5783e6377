"""A first recipe for a model: ``mfac-compress init``."""
