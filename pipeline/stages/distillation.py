"""Training towards the dense model's outputs, with its labels or without.

References:
    Hinton, Vinyals, Dean (2015), Distilling the knowledge in a neural network.
    Romero et al. (2015), FitNets: hints for thin deep nets.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mfac_compress.mfac.batch import Tree, call, named_tensors
from mfac_compress.mfac.divergence import kl_divergence
from mfac_compress.mfac.labels import IGNORED
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.quoting import type_and_shape
from mfac_compress.pipeline.recipe.schema import DistillSection
from mfac_compress.pipeline.stages.objective import Loss

_KEY = "recover.distill"


@dataclass(frozen=True)
class Distillation:
    """The distance from the dense model, and beside it the task's loss.

    Args:
        dense: The dense model, in evaluation mode.
        distance: Between outputs.
        weight: Share of the distances in the loss.
        temperature: Of ``kl``.
        layers: Modules whose outputs are compared, too.
        task_loss: The rest of the loss; not used where the weight is 1.
    """

    dense: nn.Module
    distance: Literal["kl", "mse", "cosine"]
    weight: float
    temperature: float
    layers: Sequence[str]
    task_loss: Loss

    @classmethod
    def of(
        cls, section: DistillSection, dense: nn.Module, task: str, task_loss: Loss
    ) -> "Distillation":
        """A recipe's choices; ``task`` is the name of the task's loss."""
        distance = section.distance(task)
        layers = section.layers
        return cls(dense, distance, section.weight, section.temperature, layers, task_loss)

    def compute(self, module: nn.Module, inputs: Tree) -> dict[str, Any]:
        """Outputs and those of the layers, of both models."""
        outputs, hidden = _observed(module, self.layers, inputs)
        with torch.no_grad():
            wanted, wanted_hidden = _observed(self.dense, self.layers, inputs)
        return {
            "outputs": outputs,
            "hidden": hidden,
            "wanted": wanted,
            "wanted_hidden": wanted_hidden,
        }

    def loss(self, computed: dict[str, Any], targets: Tree) -> Tensor:
        """The mean over the batch.

        Raises:
            InputError: If the outputs or the layers do not fit the distance.
        """
        outputs, wanted = _floats(computed["outputs"]), _floats(computed["wanted"])
        distance = self._of_outputs(outputs, wanted, targets) + self._of_layers(computed)
        if self.weight == 1:
            return distance
        labelled = self.task_loss(computed["outputs"], targets)
        return self.weight * distance + (1 - self.weight) * labelled

    def check(self, module: nn.Module, inputs: Tree) -> None:
        """Check that the layers are there, and what they return can be compared.

        Args:
            module: A copy of the dense model in training mode, as it is trained.
            inputs: Of a few samples, on the model's device.

        Raises:
            InputError: If not; it names the layer.
        """
        known = dict(self.dense.named_modules())
        for name in self.layers:
            if name not in known:
                raise InputError(
                    f"{_KEY}.layers must name modules of the model. Got {name!r}. Its modules are "
                    f"called such as {', '.join(list(known)[1:4])}."
                )
        computed = self.compute(module, inputs)
        rows = len(next(named_tensors(inputs))[1])
        for name in self.layers:
            found, wanted = computed["hidden"][name], computed["wanted_hidden"][name]
            forms = type_and_shape(tuple(found)), type_and_shape(tuple(wanted))
            if not found or any(len(tensor) != rows for tensor in found):
                raise InputError(
                    f"{_KEY}.layers must name modules that are called and return tensors of "
                    f"floats [n, ...]. For {rows} samples {name} returned "
                    f"{forms[0] if found else 'none'}. Leave it out."
                )
            if forms[0] != forms[1]:
                raise InputError(
                    f"{_KEY}.layers must name modules that return tensors of the same shapes in "
                    f"both models. {name} returned {forms[0]} in training and {forms[1]} in the "
                    "dense model. Leave it out."
                )

    def _of_outputs(self, outputs: list[Tensor], wanted: list[Tensor], targets: Tree) -> Tensor:
        pairs = list(zip(outputs, wanted, strict=True))
        if self.distance == "kl":
            _check_outputs(outputs, len(outputs) == 1, "kl needs one tensor [n, classes, ...]", 2)
            return softened_divergence(*pairs[0], self.temperature, targets)
        if self.distance == "mse":
            _check_outputs(outputs, bool(outputs), "mse needs tensors of floats", 1)
            return sum(F.mse_loss(y, t) for y, t in pairs)
        _check_outputs(outputs, bool(outputs), "cosine needs tensors [n, ..., features]", 2)
        return sum((1 - F.cosine_similarity(y, t, dim=-1)).mean() for y, t in pairs)

    def _of_layers(self, computed: dict[str, Any]) -> Tensor | float:
        """Mean over the layers of squared differences relative to the dense model's mean square."""
        terms = []
        for name in self.layers:
            pairs = zip(computed["hidden"][name], computed["wanted_hidden"][name], strict=True)
            for y, t in pairs:
                scale = t.square().mean().clamp_min(torch.finfo(t.dtype).tiny)
                terms.append(F.mse_loss(y, t) / scale / len(self.layers))
        return sum(terms)


def softened_divergence(
    logits: Tensor, wanted: Tensor, temperature: float, targets: Tree
) -> Tensor:
    """T² KL(softmax(wanted / T) ‖ softmax(logits / T)), the mean over positions.

    Its gradient is that of the cross-entropy of the softened outputs; with both outputs equal it
    is 0.

    Args:
        logits: Shape ``[n, classes, ...]``.
        wanted: The dense model's, of the same shape.
        temperature: T.
        targets: Where one is -100 in a tensor of the result's shape, as for padding, the position
            does not count.
    """
    terms = kl_divergence(wanted / temperature, logits / temperature, axis=1)
    if isinstance(targets, Tensor) and targets.shape == terms.shape:
        terms = terms[targets != IGNORED]
    return temperature**2 * terms.sum() / max(terms.numel(), 1)


def _check_outputs(outputs: list[Tensor], fits: bool, needs: str, axes: int) -> None:
    if not fits or any(output.ndim < axes for output in outputs):
        shapes = ", ".join(str(list(output.shape)) for output in outputs) or "none"
        raise InputError(
            f"{_KEY}.loss {needs} as the model's outputs. Got tensors of floats of shape {shapes}. "
            "Choose another distance, or one output with model.output."
        )


def _observed(
    module: nn.Module, layers: Sequence[str], inputs: Tree
) -> tuple[Any, dict[str, tuple[Tensor, ...]]]:
    """A model's outputs, and the tensors of floats that some of its modules return, by name."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    with _watched(module, seen):
        outputs = call(module, inputs)
    return outputs, {name: tuple(tensors) for name, tensors in seen.items()}


@contextmanager
def _watched(module: nn.Module, seen: dict[str, list[Tensor]]) -> Iterator[None]:
    """Note what modules return, at each of their calls."""
    hooks = [
        module.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen[name].extend(_floats(output))
        )
        for name in seen
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _floats(outputs: Any) -> list[Tensor]:
    """The tensors that can be compared; positions and the like are not."""
    tensors = (tensor for _, tensor in named_tensors(outputs))
    return [t for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
