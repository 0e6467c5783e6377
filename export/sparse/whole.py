"""Time whole models with sparse operators: what pays layer by layer need not pay in sum."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import onnx

from mfac_compress.export.sparse.choose import WORTH
from mfac_compress.export.sparse.compose import rewrite
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.layout import Plan
from mfac_compress.export.sparse.measure import Setting, race
from mfac_compress.export.sparse.probe import Feeds
from mfac_compress.export.sparse.skip_layer_norm import keep_sums_apart
from mfac_compress.export.sparse.timing import median_ratio

_ROUNDS = 11


@dataclass(frozen=True)
class WholeSpeed:
    """The whole model at one setting, in milliseconds a call."""

    setting: Setting
    dense_ms: float
    """As it is, in stock ONNX Runtime."""
    sparse_ms: float
    ratio: float
    """Sparse / dense, median of the rounds."""


@dataclass(frozen=True)
class Whole:
    """A model with sparse operators, and its times.

    Attributes:
        plan: What the operators compute; empty where no model is faster at every setting.
        model: None where the plan is empty.
        speeds: Of the model, or of the best that was tried.
    """

    plan: Plan
    model: onnx.ModelProto | None
    speeds: tuple[WholeSpeed, ...]


def best_whole(graph: Graph, plan: Plan, feeds: Mapping[Setting, Feeds]) -> Whole:
    """Write and time the model with all of a plan; where that does not pay, with parts of it.

    Args:
        graph: Of the dense model.
        plan: The operators that pay on their own; may be empty.
        feeds: At each setting, the model's inputs.
    """
    tried: tuple[WholeSpeed, ...] = ()
    for part in _parts(plan):
        models = list(_forms(graph, part))
        times = [_time([graph.model, *models], setting, feeds[setting]) for setting in feeds]
        by_model = [tuple(speeds) for speeds in zip(*times, strict=True)]
        best = min(range(len(models)), key=lambda n: fmean(s.ratio for s in by_model[n]))
        if max(speed.ratio for speed in by_model[best]) <= WORTH:
            return Whole(part, models[best], by_model[best])
        tried = tried or by_model[best]
    return Whole({}, None, tried)


def _parts(plan: Plan) -> Iterator[Plan]:
    """All of it; then, where it holds both, convolutions and matrix products each alone."""
    if plan:
        yield plan
    kinds = [{o: p for o, p in plan.items() if bool(o.window) is kind} for kind in (0, 1)]
    if all(kinds):
        yield from kinds


def _forms(graph: Graph, plan: Plan) -> Iterator[onnx.ModelProto]:
    """The ways to write a plan."""
    yield rewrite(graph, plan)
    apart = rewrite(graph, plan)
    if keep_sums_apart(apart):
        yield apart


def _time(models: Sequence[onnx.ModelProto], setting: Setting, feeds: Feeds) -> list[WholeSpeed]:
    """Times of all models but the first, against it."""
    dense, *others = race(models, feeds, threads=setting.threads, rounds=_ROUNDS)
    return [
        WholeSpeed(setting, median(dense), median(times), median_ratio(times, dense))
        for times in others
    ]
