"""The training after the last pruning step, in words and as a table."""

from collections.abc import Iterator

from mfac_compress.pipeline.quoting import shown
from mfac_compress.pipeline.stages.recover import Recovered
from mfac_compress.pipeline.verdict.tables import Row, divergence_text

EPOCH_HEAD = ("epoch", "training loss", "divergence", "kept")


def recovery_line(recovery: Recovered) -> str:
    """Which epoch is kept, and by what learning rate it came about."""
    if recovery.loop is not None:
        return f"recover: by recover.loop {shown(recovery.loop)}."
    text = f"recover: epoch {recovery.kept_epoch} of {len(recovery.loss_by_epoch)} kept"
    aware, first = recovery.quantization_aware, 0
    if aware:
        first = len(recovery.loss_by_epoch) - aware
        text += f", of which the last {aware} quantization-aware"
    if recovery.divergence:
        ends = recovery.divergence[first], recovery.divergence[recovery.kept_epoch or 0]
        text += f"; divergence from dense {' to '.join(map(divergence_text, ends))}"
    tried = f", best of {len(recovery.tried)}" if recovery.tried else ""
    return f"{text}; learning rate {recovery.lr:g}{tried}."


def epoch_rows(recovery: Recovered) -> Iterator[Row]:
    """A row for each epoch; :data:`EPOCH_HEAD` names the cells. Epoch 0 is before the training."""
    losses = ("", *(f"{loss:.4g}" for loss in recovery.loss_by_epoch))
    divergences = [divergence_text(one) for one in recovery.divergence]
    for epoch, loss in enumerate(losses):
        divergence = divergences[epoch] if divergences else "not measured"
        yield str(epoch), loss, divergence, "yes" if epoch == recovery.kept_epoch else ""
