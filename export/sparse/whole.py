"""Time whole models with sparse operators: what pays layer by layer need not pay in sum."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import onnx

from mfac_compress.export.latency import Setting
from mfac_compress.export.sparse.choose import WORTH, Part, together
from mfac_compress.export.sparse.compose import rewrite
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.layout import Plan
from mfac_compress.export.sparse.measure import SettingTime, race
from mfac_compress.export.sparse.probe import Feeds
from mfac_compress.export.sparse.skip_layer_norm import keep_sums_apart

_ROUNDS = 11


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
    speeds: tuple[SettingTime, ...]


def best_whole(graph: Graph, parts: Sequence[Part], feeds: Mapping[Setting, Feeds]) -> Whole:
    """Write and time the model with all parts, then with ever fewer while that makes it faster.

    Alone, a part is timed against ONNX Runtime with the changes of layout at its ends, which the
    whole model may not have there: the parts that gain least can cost more than they gain.

    Args:
        graph: Of the dense model.
        parts: What pays on its own, the fastest first; may be empty.
        feeds: At each setting, the model's inputs.
    """
    best = Whole({}, None, ())
    count = len(parts)
    while count:
        found = _fastest(graph, together(parts[:count]), feeds)
        if best.speeds and _mean(found.speeds) >= _mean(best.speeds):
            break
        best, count = found, count // 2
    worst = max((speed.ratio for speed in best.speeds), default=WORTH)
    return best if worst <= WORTH else Whole({}, None, best.speeds)


def _fastest(graph: Graph, plan: Plan, feeds: Mapping[Setting, Feeds]) -> Whole:
    """The fastest of the forms in which a plan can be written."""
    models = list(_forms(graph, plan))
    times = [_time([graph.model, *models], setting, feeds[setting]) for setting in feeds]
    by_model = list(zip(*times, strict=True))
    best = min(range(len(models)), key=lambda place: _mean(by_model[place]))
    return Whole(plan, models[best], by_model[best])


def _mean(speeds: Sequence[SettingTime]) -> float:
    return fmean(speed.ratio for speed in speeds)


def _forms(graph: Graph, plan: Plan) -> Iterator[onnx.ModelProto]:
    """The ways to write a plan."""
    yield rewrite(graph, plan)
    apart = rewrite(graph, plan)
    if keep_sums_apart(apart):
        yield apart


def _time(models: Sequence[onnx.ModelProto], setting: Setting, feeds: Feeds) -> list[SettingTime]:
    """Times of all models but the first, against it."""
    dense, *others = race(models, feeds, threads=setting.threads, rounds=_ROUNDS)
    return [SettingTime.of_rounds(setting, dense, times) for times in others]
