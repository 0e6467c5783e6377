"""Stage 2: the inverse of the damped Fisher.

It is made anew where it is needed: that takes less time than reading it back from disk would.
"""

from mfac_compress.mfac import InverseFisher
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.recipe.schema import FisherSection
from mfac_compress.pipeline.stages.calibrate import Fisher


def invert(section: FisherSection, fisher: Fisher) -> InverseFisher:
    """Damp and factor the Fisher.

    Raises:
        InputError: If the damping is too small to factor it.
    """
    try:
        scale = fisher.mean_diagonal if section.damping_unit == "mean_diagonal" else 1.0
        return fisher.invert(section.damping * scale)
    except ValueError as error:
        raise InputError(f"fisher.damping: {error}") from error
