"""Curvature and pruning: gradients, the inverse empirical Fisher, Optimal Brain Surgeon."""

from mfac_compress.mfac.inverse import InverseFisher

__all__ = ["InverseFisher"]
