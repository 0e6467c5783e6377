"""Curvature and pruning: gradients, the inverse empirical Fisher, Optimal Brain Surgeon, M-FAC."""

from mfac_compress.mfac.inverse import InverseFisher
from mfac_compress.mfac.optimizer import MFAC

__all__ = ["MFAC", "InverseFisher"]
