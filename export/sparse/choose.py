"""Choose by measurement which layers sparse operators compute, and with which block sizes.

A layer's operator is timed against the nodes that it stands for. That is not all: ONNX Runtime and
the sparse operators each keep images in a layout of their own, and a change of layout costs. So
convolutions that hand images to each other are timed as one piece, too.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from mfac_compress.export.latency import Setting
from mfac_compress.export.sparse.compose import piece
from mfac_compress.export.sparse.find import Operator
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.layout import KINDS, Placement, Plan, chains, placed
from mfac_compress.export.sparse.measure import SettingTime, median_ratio, race, random_feeds

Shapes = Mapping[str, tuple[int, ...]]

Watch = Callable[[str, int, int], None]
"""Told what is timed next, how many layers were timed, and how many will be."""

WORTH = 0.97
"""Sparse / dense time, at most, at which a sparse operator is taken: less could be chance."""
LEAST_SPARSITY = 0.3
"""Below this no kernel has ever paid, whatever the blocks: it is not even timed on its own."""
_MOST_PADDING = 2.0
_ROUNDS = 7


@dataclass(frozen=True)
class Trial:
    """What came of timing one operator on its own."""

    block: int
    """The fastest one."""
    times: tuple[SettingTime, ...]

    @property
    def pays(self) -> bool:
        """Whether it is faster at every setting."""
        return max(time.ratio for time in self.times) <= WORTH


@dataclass(frozen=True)
class Part:
    """A chain, or a layer alone, that is faster with sparse operators.

    Attributes:
        plan: The operators, their block sizes and layouts.
        ratio: Sparse / dense of the part as one piece, the worst of all settings.
    """

    plan: Plan
    ratio: float


def together(parts: Iterable[Part]) -> Plan:
    """One plan of parts that share no operator."""
    return {operator: place for part in parts for operator, place in part.plan.items()}


@dataclass(frozen=True)
class Choice:
    """What sparse operators should compute.

    Attributes:
        parts: The fastest first; no operator is in two.
        trials: Of the operators that were timed.
    """

    parts: tuple[Part, ...]
    trials: Mapping[Operator, Trial]

    @property
    def plan(self) -> Plan:
        """All parts together."""
        return together(self.parts)


def choose(
    graph: Graph,
    operators: Sequence[Operator],
    shapes: Mapping[Setting, Shapes],
    watch: Watch = lambda *_: None,
) -> Choice:
    """Time every operator on its own, and chains as one piece.

    Args:
        graph: Where they stand.
        operators: All that could be computed by sparse operators.
        shapes: At each setting, of every value that an operator reads.
        watch: Called before each operator is timed.
    """
    parts: list[Part] = []
    trials: dict[Operator, Trial] = {}
    # Those of a chain that do not pay may be worth it as links, which save changes of layout.
    timed = [chain for chain in chains(graph, operators) if any(map(_may_pay, chain))]
    for chain in timed:
        for operator in chain:
            watch(operator.weight_name or operator.name, len(trials), sum(map(len, timed)))
            trials[operator] = _try(graph, operator, shapes)
        best = _best(graph, chain, trials, shapes)
        if best is not None:
            parts.append(best)
        elif len(chain) > 1:
            # Not as a whole; but what hands images on without a dense layer between may.
            paying = [o for o in chain if _may_pay(o) and trials[o].pays]
            shorter = [_best(graph, c, trials, shapes) for c in chains(graph, paying)]
            parts += [part for part in shorter if part is not None]
    return Choice(tuple(sorted(parts, key=lambda part: part.ratio)), trials)


def _may_pay(operator: Operator) -> bool:
    return not operator.selection and operator.sparsity >= LEAST_SPARSITY


def _try(graph: Graph, operator: Operator, shapes: Mapping[Setting, Shapes]) -> Trial:
    """Time an operator with each block size that makes sense."""
    blocks = operator.blocks(_MOST_PADDING)
    by_block: dict[int, list[SettingTime]] = {block: [] for block in blocks}
    for setting in shapes:
        plans = [{}, *({operator: Placement(block)} for block in blocks)]
        dense, *sparse = _race(graph, [operator], plans, setting, shapes[setting])
        for block, times in zip(blocks, sparse, strict=True):
            by_block[block].append(SettingTime.of_rounds(setting, dense, times))
    best = min(blocks, key=lambda block: fmean(time.ratio for time in by_block[block]))
    return Trial(best, tuple(by_block[best]))


def _best(
    graph: Graph,
    chain: Sequence[Operator],
    trials: Mapping[Operator, Trial],
    shapes: Mapping[Setting, Shapes],
) -> Part | None:
    """The fastest of some ways to compute a chain; None where ONNX Runtime's own is."""
    blocks = {operator: trials[operator].block for operator in chain}
    single = {o: block for o, block in blocks.items() if trials[o].pays and _may_pay(o)}
    if len(chain) == 1:
        worst = max(time.ratio for time in trials[chain[0]].times)
        return Part(placed(graph, single, "none"), worst) if single else None
    sparse = {o: block for o, block in blocks.items() if _may_pay(o) or o.selection}
    # The layout first, for the sparse ones; then which of the others are worth it as links.
    by_kind = [placed(graph, sparse, kind) for kind in KINDS]
    plans = [plan for place, plan in enumerate(by_kind) if plan not in by_kind[:place]]
    plan, ratio = _fastest(graph, chain, plans, shapes)
    kind = KINDS[by_kind.index(plan)]
    rivals = [placed(graph, part, kind) for part in (single, blocks) if part and part != sparse]
    if rivals:
        plan, ratio = _fastest(graph, chain, [plan, *rivals], shapes)
    return Part(plan, ratio) if ratio <= WORTH else None


def _fastest(
    graph: Graph,
    chain: Sequence[Operator],
    plans: Sequence[Plan],
    shapes: Mapping[Setting, Shapes],
) -> tuple[Plan, float]:
    """The plan with the best mean ratio to the dense chain, and its worst ratio."""
    ratios: list[list[float]] = [[] for _ in plans]
    for setting in shapes:
        dense, *others = _race(graph, chain, [{}, *plans], setting, shapes[setting])
        for place, times in enumerate(others):
            ratios[place].append(median_ratio(times, dense))
    best = min(range(len(plans)), key=lambda place: fmean(ratios[place]))
    return plans[best], max(ratios[best])


def _race(
    graph: Graph,
    operators: Sequence[Operator],
    plans: Sequence[Plan],
    setting: Setting,
    shapes: Shapes,
) -> list[list[float]]:
    models = [piece(graph, operators, plan, shapes) for plan in plans]
    feeds = random_feeds(models[0])
    return race(models, feeds, threads=setting.threads, rounds=_ROUNDS)
