"""What a first recipe says of itself: the layers found, the memory, what could stand there."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mfac_compress.pipeline.inputs.layers import PruneTargets
from mfac_compress.pipeline.inputs.memory import readable_bytes
from mfac_compress.pipeline.quoting import shown
from mfac_compress.pipeline.stages.probe import Tried
from mfac_compress.pipeline.starter.choices import BLOCKS_OF_4, Memory, layer_of
from mfac_compress.pipeline.starter.text import Alternative, Commented

_MOST_LAYERS = 100


def head(model: Path, output: Path, targets: PruneTargets) -> list[str]:
    """What the whole recipe is, and how it is run."""
    recipe, run = shown(output), f"runs/{shown(output.stem)}"
    return [
        f"A first recipe for {shown(model)}: {targets.parameters:,} parameters, of which",
        f"{targets.weights:,} ({targets.share:.1%}) are weights that can be pruned.",
        "",
        f"    mfac-compress {recipe} {shown(model)} --dry-run",
        f"    mfac-compress {recipe} {shown(model)} -o {run}",
        "",
        "Every key that is not given has a default: `mfac-compress schema` lists them all.",
        "Relative paths start at this file's folder.",
    ]


def sections(
    targets: PruneTargets,
    values: Mapping[str, Any],
    memory: Memory,
    divided: float,
    tried: Sequence[Tried] | str,
    named_data: bool,
) -> list[Commented]:
    """What to say of each section.

    Args:
        targets: What could be pruned, before anything is excluded.
        values: What the recipe says.
        memory: What inverses need.
        divided: Share of the weights that blocks of four outputs divide.
        tried: What the probe found, the best first; or why there was none.
        named_data: Whether the data is the user's.
    """
    return [
        Commented("model"),
        _data(named_data),
        _task(),
        Commented(
            "calibrate",
            [
                "The curvature of the loss comes from these gradients. More are better, up to",
                "512 of 8 samples each.",
            ],
            alternatives=[Alternative("labels", "model", "calibrate without labels")],
        ),
        _fisher(memory, tried),
        _prune(targets, values, divided),
        Commented(
            "reconstruct",
            alternatives=[
                Alternative(
                    "reconstruct", {"method": "least_squares"}, "repair layers, without labels"
                )
            ],
        ),
        Commented(
            "recover",
            ["Fine-tuning after the last step, in which removed weights stay zero."],
            alternatives=[
                Alternative("distill", {"weight": 0.9}, "the dense model as a teacher"),
                Alternative("loop", "train.py:finetune", "your own training instead of these keys"),
            ],
        ),
        Commented(
            "quantize",
            alternatives=[Alternative("quantize", "static", "also write model.int8.onnx")],
        ),
        Commented(
            "validate",
            ["What must hold of the file that ships. If one gate fails, the exit code is 1."],
            alternatives=[
                Alternative("batch_size", 64, "samples of one call"),
            ],
        ),
    ]


def _data(named: bool) -> Commented:
    if named:
        return Commented("data")
    return Commented(
        "data",
        [
            "FILL IN: three sets of samples that have none in common: arrays x and y in .npz",
            "files, folders of images (source: image_folder), or data sets of your own (factory:",
            "data.py:splits, which returns {calibration: ..., recovery: ..., validation: ...}).",
        ],
        alternatives=[
            Alternative("layout", "NHWC", "images with channels last"),
            Alternative("divide_by", 255, "bytes to 0..1"),
            Alternative("mean", [0.485, 0.456, 0.406], "one number a channel; std likewise"),
        ],
    )


def _task() -> Commented:
    return Commented(
        "task",
        ["The loss is cross_entropy and the metric accuracy, unless said otherwise."],
        alternatives=[
            Alternative(
                "task",
                {"loss": "mse", "metric": "metrics.py:error", "direction": "minimize"},
                "functions of (outputs, targets)",
            )
        ],
    )


def _fisher(memory: Memory, tried: Sequence[Tried] | str) -> Commented:
    full = memory.plans["full"]
    need = readable_bytes(full.inverse.total_bytes)
    fits = "it fits" if full.fits else "it does not fit"
    lines = [f"Memory here: {full.budget}."]
    if isinstance(tried, str):
        lines += [
            f"Not tried out: {tried}. Where accuracy falls too far, try",
            "dampings between 1e-6 and 1e-3 and block sizes of 64 to 256.",
        ]
    else:
        lines += [
            "Tried in one step, at this sparsity, on a few gradients: the divergence of the",
            "outputs from the dense model's on held-out samples. The damping is in units of the",
            "mean of the Fisher's diagonal. The metric may rank settings otherwise: compare a run",
            "with the defaults, damping: 1e-5 and damping_unit: absolute.",
            "    block size   damping   divergence",
            *(f"    {one.block_size:10}{one.damping:10g}{one.divergence:13.4g}" for one in tried),
        ]
    return Commented(
        "fisher",
        lines,
        alternatives=[
            Alternative("block_size", "full", f"one block of all weights: {need}, {fits}"),
        ],
    )


def _prune(targets: PruneTargets, values: Mapping[str, Any], divided: float) -> Commented:
    excluded = values["prune"].get("exclude", [])
    width = max(len(shown(target.name)) for target in targets.matched)
    layers = [
        f"    {shown(target.name):{width}}  {' x '.join(map(str, target.shape)):>18}"
        f"{target.weights:13,}{target.weights / targets.parameters:8.1%}"
        + ("  left out below" if layer_of(target) in excluded else "")
        for target in targets.matched
    ]
    if len(layers) > _MOST_LAYERS:
        layers = [*layers[:_MOST_LAYERS], f"    and {len(layers) - _MOST_LAYERS} more"]
    others = Counter(targets.left_out.values())
    alternatives = [
        Alternative("method", "magnitude", "by size alone: no gradients, no fisher"),
        Alternative("pattern", "channels", "whole channels, which go out of the file"),
    ]
    if divided:
        alternatives.insert(
            0,
            Alternative(
                "pattern",
                BLOCKS_OF_4,
                f"which sparse operators run faster; divides {divided:.0%} of the weights",
            ),
        )
    return Commented(
        "prune",
        [
            "Weights that can be pruned, with their share of all parameters:",
            *layers,
            *(f"Left out in any case: {n} x {shown(why)}" for why, n in others.items()),
        ],
        notes={
            "exclude": "the first and the last layer are small, and all samples pass through them"
        },
        alternatives=alternatives,
    )
