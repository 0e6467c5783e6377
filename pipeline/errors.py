"""The two ways a run can end without a verdict, each with its exit code."""


class CompressError(Exception):
    """A run that ends without a verdict. The message says what to do about it."""

    exit_code = 3


class InputError(CompressError):
    """The recipe, the model or the data is wrong: the user can mend it."""

    exit_code = 2


class StageError(CompressError):
    """A stage failed for another reason.

    Args:
        stage: Name of the stage, for example ``"calibrate"``.
        message: What went wrong and what to do.
    """

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(f"stage {stage}: {message}")
        self.stage = stage
