"""The section of a recipe that says how the pruned model is trained: recover."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from mfac_compress.pipeline.recipe.section import (
    CallableName,
    Count,
    Index,
    NonNegative,
    NoSwitch,
    Positive,
    Section,
    Share,
    Text,
    duplicates,
)
from mfac_compress.pipeline.recipe.source import RecipeIssue, RecipeSource

Distance = Literal["kl", "mse", "cosine"]
_DISTANCES: dict[str, Distance] = {"cross_entropy": "kl", "none": "cosine"}
"""Between outputs, by the loss of the task: of logits, and of embeddings."""


class SlidingWindowSection(Section):
    """The Fisher of the optimizer `mfac`."""

    num_gradients: Count = 128
    """The newest gradients, of which it is made."""
    damping: Positive = 1e-5
    """λ."""


class DistillSection(Section):
    """The dense model as a teacher of the pruned one, on the same changed images."""

    weight: Annotated[float, Field(gt=0, le=1), NoSwitch] = 1.0
    """Share of the distance from the dense model in the loss; the rest is `task.loss`. With 1 no
    labels are needed."""
    loss: Literal["auto", "kl", "mse", "cosine"] = "auto"
    """The distance between outputs. `kl`: of the classes' probabilities at `temperature`, for
    logits. `mse`: mean squared difference. `cosine`: 1 - cosine of the angle along the last axis,
    for embeddings. `auto`: `kl` where `task.loss` is cross_entropy, `cosine` where it is none, else
    `mse`."""
    temperature: Annotated[float, Field(ge=1e-3, le=1e4), NoSwitch] = 4.0
    """Logits are divided by it before `kl`, which is then multiplied by its square. Beyond 10,000
    nothing would be left of their differences but rounding."""
    layers: Annotated[tuple[Text, ...], Field(max_length=1000)] = ()
    """Modules whose outputs are to come near to those in the dense model, too, by name: their mean
    squared difference, relative to the dense one's mean square, averaged over the modules."""

    def distance(self, task_loss: str) -> Distance:
        """The distance between outputs that is meant for a task's loss."""
        if self.loss != "auto":
            return self.loss
        return _DISTANCES.get(task_loss, "mse")

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        yield from duplicates("layers", self.layers)


class RecoverSection(Section):
    """Short fine-tuning in which no removed weight comes back."""

    epochs: Index = 0
    """Passes over the samples. 0: no recovery."""
    loop: CallableName | None = None
    """`package.module:callable` or `path/to/file.py:callable`: the user's own training, called with
    (model, splits, handle) after the last pruning step. `handle.attach(optimizer)` keeps the masks,
    `splits.recovery` is to train on, `splits.holdout` to choose by. All other keys of this section
    but `split` and `batchnorm` are then its own business."""
    split: Literal["recovery", "calibration"] = "recovery"
    """What to train on. `calibration`: the calibration samples, but for the held-out ones; there is
    then no recovery split."""
    distill: DistillSection | None = None
    """Let the dense model teach the pruned one. Default: only `task.loss` does."""
    optimizer: Literal["sgd", "adamw", "mfac"] = "sgd"
    """What turns gradients into steps. `mfac` preconditions them by the Fisher of a sliding window
    of gradients, which needs `window.num_gradients` times the model's memory."""
    lr: Positive | Literal["auto"] = 0.01
    """Learning rate at the start. `auto`: of a few, the one that after a few steps, along the whole
    `schedule`, has brought the outputs nearest to the dense model's on the held-out samples."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate moves from `lr` to the end."""
    quantization_aware: Index = 0
    """The last so many of `epochs` compute with weights and inputs of layers rounded to 8 bits, as
    `model.int8.onnx` does: with the ranges of activations that are measured before them, and that
    ship. Needs `quantize: static`. Where the best epoch is kept, it is one of these, or what they
    start from. The epochs of `prune.epochs_between` train in float."""
    momentum: Share = 0.9
    """Of `sgd` and `mfac`."""
    window: SlidingWindowSection = SlidingWindowSection()
    """Of `mfac`."""
    weight_decay: NonNegative = 1e-4
    """Pull of every weight towards zero."""
    batch_size: Count = 128
    """Samples of one step."""
    keep: Literal["best", "last"] | None = None
    """The epoch whose weights are kept. `best`: that whose outputs are nearest to the dense model's
    on the held-out calibration samples (classes at `distill.temperature`); also none of them, where
    the training brings it no nearer. Default: `best` with `distill`, else `last`, since labels may
    ask for other outputs than the dense model's."""
    patience: Count | None = None
    """Epochs without a better one after which the training ends. Default: all epochs are trained.
    """
    ema: Annotated[float, Field(gt=0, lt=1), NoSwitch] | None = None
    """Keep an exponential moving average of the weights, with this decay after each step, in the
    place of the weights themselves."""
    dropout: bool | None = None
    """Drop out in training as the model says. Default: false where `distill` uses no labels, since
    the noise hides what the dense model gives; else true."""
    label_smoothing: Share = 0.0
    """Of the loss `cross_entropy`."""
    mixup: Positive | None = None
    """α of mixup, usually 0.2 to 1: each sample of a batch is mixed with another one, at a share
    from Beta(α, α). The dense and the pruned model get the same mixtures, on which the dense one
    says more than on the samples that it was trained on. Needs `distill` with weight 1, since
    mixtures have no labels. Default: no mixup."""
    cutmix: Positive | None = None
    """α of CutMix, usually 1: a box of each image is replaced by that of another one; the share of
    the area that stays is from Beta(α, α). With `mixup`, too, each batch is mixed by one of the
    two, drawn at random. Needs `distill` with weight 1. Default: no CutMix."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward and backward pass. `bfloat16`: PyTorch's automatic mixed precision; weights,
    optimizer, loss and the choice of the best epoch stay in float32. Faster where the processor
    multiplies bfloat16 matrices: a GPU, or a CPU with AMX or AVX512-BF16."""
    channels_last: bool = False
    """Images have their channels side by side in memory, as convolutions are fastest. Not for a
    model that takes the `view` of activations; `reshape` and `flatten` are fine."""
    freeze_batchnorm: bool = False
    """Batch norm uses its running statistics in training, too, as in the shipped model: scales and
    shifts are trained, statistics are kept. Take AdamW, or a low rate: nothing normalises the
    activations then, and SGD at 0.01 can diverge."""
    batchnorm: Literal["auto", "always", "never"] = "auto"
    """Re-estimate batch-norm statistics after pruning, on calibration samples that are changed as
    `data.augment` says. `auto`: where that brings the outputs nearer to the dense model's on the
    held-out ones."""

    def temperature(self, task_loss: str) -> float:
        """The one at which outputs are compared with the dense model's, for a task's loss."""
        softens = self.distill is not None and self.distill.distance(task_loss) == "kl"
        return self.distill.temperature if softens else 1.0

    @property
    def keeps_best(self) -> bool:
        """Whether the best epoch is kept, and not the last."""
        return self.keep == "best" or (self.keep is None and self.distill is not None)

    @property
    def chooses(self) -> bool:
        """Whether something is chosen by the distance from the dense model."""
        return self.epochs > 0 and (self.keeps_best or self.lr == "auto")

    @property
    def uses_dropout(self) -> bool:
        """Whether the model drops out while it is trained."""
        return self.needs_labels if self.dropout is None else self.dropout

    @property
    def needs_labels(self) -> bool:
        """Whether the samples must have targets."""
        return self.distill is None or self.distill.weight < 1

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        if self.loop is not None:
            yield from self._unread_by_a_loop()
            return
        if self.patience is not None and not self.keeps_best:
            yield RecipeIssue(
                ("patience",),
                "must be left out where the last epoch is kept (recover.keep), and none is called "
                f"better. Got {self.patience}.",
            )
        if self.label_smoothing and not self.needs_labels:
            yield RecipeIssue(
                ("label_smoothing",),
                "must be 0 where recover.distill.weight is 1, which uses no labels. "
                f"Got {self.label_smoothing}.",
            )
        if self.quantization_aware:
            yield from self._with_rounding()
        for key in ("mixup", "cutmix"):
            if getattr(self, key) is not None and self.needs_labels:
                yield RecipeIssue(
                    (key,),
                    "must be left out unless recover.distill is given, with weight 1: mixed "
                    f"samples have no labels. Got {getattr(self, key):g}.",
                )

    def _with_rounding(self) -> Iterator[RecipeIssue]:
        """What does not go with quantization-aware epochs."""
        if self.quantization_aware > self.epochs:
            yield RecipeIssue(
                ("quantization_aware",),
                "must be at most recover.epochs, the last of which it names. Got "
                f"{self.quantization_aware} with recover.epochs = {self.epochs}.",
            )
        if self.precision != "float32":
            yield RecipeIssue(
                ("precision",),
                "must be float32 where recover.quantization_aware is given: bfloat16 does not "
                f"hold all values of 8 bits. Got {self.precision}.",
            )
        if self.patience is not None:
            yield RecipeIssue(
                ("patience",),
                "must be left out where recover.quantization_aware is given: the training would "
                f"end before these epochs. Got {self.patience}.",
            )

    def _unread_by_a_loop(self) -> Iterator[RecipeIssue]:
        for key, field in type(self).model_fields.items():
            value, default = getattr(self, key), field.get_default(call_default_factory=True)
            if key not in ("loop", "split", "batchnorm") and value != default:
                yield RecipeIssue(
                    (key,),
                    "must be left out where recover.loop trains the model, which is not given it. "
                    f"Got {value}.",
                )

    def issues_of_task(self, task_loss: str) -> Iterator[RecipeIssue]:
        """What does not go with a loss of the task."""
        if self.label_smoothing and task_loss != "cross_entropy":
            yield RecipeIssue(
                ("label_smoothing",),
                "must be 0 unless task.loss is cross_entropy. "
                f"Got {self.label_smoothing} with task.loss = {task_loss}.",
            )
        if self.distill is None:
            return
        if self.distill.loss == "kl" and task_loss in ("mse", "none"):
            yield RecipeIssue(
                ("distill", "loss"),
                f"must not be kl where task.loss is {task_loss}: outputs are no logits. Got kl.",
            )
        distance = self.distill.distance(task_loss)
        default = DistillSection.model_fields["temperature"].default
        if distance != "kl" and self.distill.temperature != default:
            yield RecipeIssue(
                ("distill", "temperature"),
                f"must be left out where the distance is {distance} (recover.distill.loss). "
                f"Got {self.distill.temperature:g}.",
            )
