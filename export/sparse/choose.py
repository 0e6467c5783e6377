"""Choose by measurement which layers sparse operators compute, and with which blocks.

A layer's operator is timed against the nodes that it replaces. ONNX Runtime and the sparse
operators also keep images in different layouts, and converting between them takes time. So a chain
of convolutions that pass images to each other is timed as one segment, too.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from mfac_compress.export.sparse.compose import extract_subgraph
from mfac_compress.export.sparse.format import Block
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.layout import (
    KINDS,
    Placement,
    Plan,
    assign_layouts,
    chains,
    with_depthwise,
)
from mfac_compress.export.sparse.measure import (
    WorkloadTime,
    median_ratio,
    random_feeds,
    time_models,
)
from mfac_compress.export.sparse.operator import SparseOperator
from mfac_compress.export.workload import Workload

Shapes = Mapping[str, tuple[int, ...]]

ProgressCallback = Callable[[str, int, int], None]
"""Called with what is timed next, how many layers were timed, and how many there are."""

MAX_RATIO = 0.97
"""Largest sparse / dense time at which a sparse operator is used: less gain could be chance."""
MIN_SPARSITY = 0.3
"""Below this no kernel has ever been faster, whatever its blocks: it is not timed on its own."""
_MAX_PADDING = 2.0
_ROUNDS = 7


@dataclass(frozen=True)
class Trial:
    """The times of one operator on its own."""

    block: Block
    """The fastest blocks."""
    times: tuple[WorkloadTime, ...]

    @property
    def is_faster(self) -> bool:
        """Whether it is faster for every workload."""
        return max(time.ratio for time in self.times) <= MAX_RATIO


@dataclass(frozen=True)
class Segment:
    """A chain of operators, or a single one, that is faster with sparse operators.

    Attributes:
        plan: The operators, their blocks and layouts.
        ratio: Sparse / dense time of the segment as a whole, the worst of all workloads.
    """

    plan: Plan
    ratio: float


def merge(segments: Iterable[Segment]) -> Plan:
    """Merge segments that share no operator into one plan."""
    return {operator: place for segment in segments for operator, place in segment.plan.items()}


@dataclass(frozen=True)
class Choice:
    """The operators that sparse operators should compute.

    Attributes:
        segments: The fastest first; no operator is in two of them.
        trials: The times of the operators that were timed.
    """

    segments: tuple[Segment, ...]
    trials: Mapping[SparseOperator, Trial]

    @property
    def plan(self) -> Plan:
        """The plan of all segments."""
        return merge(self.segments)


def choose(
    graph: Graph,
    operators: Sequence[SparseOperator],
    shapes: Mapping[Workload, Shapes],
    progress: ProgressCallback = lambda *_: None,
) -> Choice:
    """Time every operator on its own, and chains as a whole.

    Args:
        graph: The graph of the operators.
        operators: All that could be computed by sparse operators.
        shapes: For each workload, the shape of every value that an operator reads.
        progress: Called before each operator is timed.
    """
    segments: list[Segment] = []
    trials: dict[SparseOperator, Trial] = {}
    # An operator that is not faster may still be useful in a chain, where it saves conversions of
    # the layout.
    timed = [chain for chain in chains(operators) if any(map(_may_be_faster, chain))]
    for chain in timed:
        for operator in chain:
            progress(operator.weight_name or operator.name, len(trials), sum(map(len, timed)))
            trials[operator] = _try(graph, operator, shapes)
        best = _best(graph, chain, trials, shapes)
        if best is not None:
            segments.append(best)
        elif len(chain) > 1:
            # The chain is not faster as a whole, but shorter ones without dense layers may be.
            faster = [o for o in chain if _may_be_faster(o) and trials[o].is_faster]
            shorter = [_best(graph, c, trials, shapes) for c in chains(faster)]
            segments += [segment for segment in shorter if segment is not None]
    return Choice(tuple(sorted(segments, key=lambda segment: segment.ratio)), trials)


def _may_be_faster(operator: SparseOperator) -> bool:
    return not operator.selection and operator.sparsity >= MIN_SPARSITY


def _try(graph: Graph, operator: SparseOperator, shapes: Mapping[Workload, Shapes]) -> Trial:
    """Time an operator with all blocks that do not need too much padding."""
    blocks = operator.blocks(_MAX_PADDING)
    by_block: dict[Block, list[WorkloadTime]] = {block: [] for block in blocks}
    for workload in shapes:
        plans = [{}, *({operator: Placement(block)} for block in blocks)]
        dense, *sparse = _time_plans(graph, [operator], plans, workload, shapes[workload])
        for block, times in zip(blocks, sparse, strict=True):
            by_block[block].append(WorkloadTime.of_rounds(workload, dense, times))
    best = min(blocks, key=lambda block: fmean(time.ratio for time in by_block[block]))
    return Trial(best, tuple(by_block[best]))


def _best(
    graph: Graph,
    chain: Sequence[SparseOperator],
    trials: Mapping[SparseOperator, Trial],
    shapes: Mapping[Workload, Shapes],
) -> Segment | None:
    """Return the fastest plan for a chain; None if ONNX Runtime's own operators are faster."""
    blocks = {operator: trials[operator].block for operator in chain}
    single = {o: block for o, block in blocks.items() if trials[o].is_faster and _may_be_faster(o)}
    if len(chain) == 1:
        worst = max(time.ratio for time in trials[chain[0]].times)
        return Segment(assign_layouts(single, "none"), worst) if single else None
    sparse = {o: block for o, block in blocks.items() if _may_be_faster(o) or o.selection}
    # First choose the layout of the sparse ones, then which of the others are worth including:
    # depthwise ones, all.
    by_kind = [assign_layouts(sparse, kind) for kind in KINDS]
    plans = [plan for place, plan in enumerate(by_kind) if plan not in by_kind[:place]]
    plan, ratio = _fastest(graph, chain, plans, shapes)
    kind = KINDS[by_kind.index(plan)]
    joined = {o: block for o, block in blocks.items() if o in sparse or o.is_depthwise}
    candidates = [c for c in (single, joined, blocks) if c and c != sparse]
    others = [assign_layouts(c, kind) for i, c in enumerate(candidates) if c not in candidates[:i]]
    if others:
        plan, ratio = _fastest(graph, chain, [plan, *others], shapes)
    if ratio > MAX_RATIO:
        return None
    return Segment(_with_depthwise(graph, plan, shapes), ratio)


def _with_depthwise(graph: Graph, plan: Plan, shapes: Mapping[Workload, Shapes]) -> Plan:
    """Compute convolutions in one node with the depthwise one after them, where that is faster."""
    joined = dict(plan)
    for operator, depthwise in with_depthwise(plan):
        apart = {each: plan[each] for each in (operator, depthwise)}
        together = apart | {operator: plan[operator]._replace(depthwise=depthwise)}
        ratios = []
        for workload in shapes:
            two, one = _time_plans(
                graph, list(apart), [apart, together], workload, shapes[workload]
            )
            ratios.append(median_ratio(one, two))
        if max(ratios) <= MAX_RATIO:
            joined |= together
    return joined


def _fastest(
    graph: Graph,
    chain: Sequence[SparseOperator],
    plans: Sequence[Plan],
    shapes: Mapping[Workload, Shapes],
) -> tuple[Plan, float]:
    """Return the plan with the best mean ratio to the dense chain, and its worst ratio."""
    ratios: list[list[float]] = [[] for _ in plans]
    for workload in shapes:
        dense, *others = _time_plans(graph, chain, [{}, *plans], workload, shapes[workload])
        for place, times in enumerate(others):
            ratios[place].append(median_ratio(times, dense))
    best = min(range(len(plans)), key=lambda place: fmean(ratios[place]))
    return plans[best], max(ratios[best])


def _time_plans(
    graph: Graph,
    operators: Sequence[SparseOperator],
    plans: Sequence[Plan],
    workload: Workload,
    shapes: Shapes,
) -> list[list[float]]:
    models = [extract_subgraph(graph, operators, plan, shapes) for plan in plans]
    feeds = random_feeds(models[0])
    return time_models(models, feeds, threads=workload.threads, rounds=_ROUNDS)
