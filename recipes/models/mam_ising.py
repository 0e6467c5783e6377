"""What `recipes/mam-ising.yaml` names: the network, questions to it, loss and metrics.

A sample is three questions that belong together: a whole configuration x, drawn from the Ising
model exactly; x_S, of which a random set of spins is known; and x_S with one more spin, x_i.
"""

from math import log

import numpy as np
from scipy.stats import rankdata
from torch import Tensor

from mfac_compress.recipes.models.ising import Ising
from mfac_compress.recipes.models.mam import MarginalizationModel, residuals

SIDE = 5
"""Of the square of spins, where nothing else is said."""
WHOLE, BEFORE, AFTER = 0, 1, 2
"""The three questions: x, x_S, and x_S with x_i."""
WORST_BITS, WORST_NATS = 4.0, 10.0
"""Beyond these an error counts no more, so that the metrics have a range."""
PENALTY = 4.0
"""Of self-consistency in the loss."""


def ising(side: int = SIDE) -> Ising:
    """Return the Ising model on a square: J = 0.3, random fields."""
    return Ising.random(side, side)


def mam(hidden: int = 672, side: int = SIDE) -> MarginalizationModel:
    """Build the network, untrained; 956,282 parameters for 5 x 5 spins."""
    return MarginalizationModel(side * side, hidden, hidden, blocks=1)


def questions(count: int, judged: int, seed: int = 0, side: int = SIDE) -> dict[str, np.ndarray]:
    """Draw samples from the Ising model, exactly.

    Args:
        count: n. No two of them are the same.
        judged: How many of them, the first, get exact answers.
        seed: Of all draws.
        side: Of the square.
    Returns:
        ``spins`` of the three questions, shape ``[n, 3, sites]``, int8; ``site`` i and ``value``
        x_i, shapes ``[n]``; ``known``, the size of S, shape ``[n]``; ``log_p``, the exact answers,
        shape ``[n, 3]``, 0 where there are none, so that nothing can learn from them.
    """
    rng, model = np.random.default_rng(seed), ising(side)
    whole = model.sample(count + count // 50, rng)
    place = rng.random(whole.shape).argsort(1).argsort(1)  # of each site, in a random order
    known = rng.integers(0, model.sites, (len(whole), 1))
    spins = np.stack([whole, whole * (place < known), whole * (place <= known)], axis=1)
    first = {row.tobytes(): at for at, row in reversed(list(enumerate(spins)))}
    rows = np.sort(list(first.values()))[:count]
    spins, site = spins[rows], (place == known).argmax(1)[rows]
    log_p = np.zeros((len(rows), 3))
    log_p[:judged] = model.log_marginals(spins[:judged]).reshape(-1, 3)
    value = whole[rows, site].astype(np.float32)
    return {"spins": spins, "site": site, "value": value, "known": known[rows, 0], "log_p": log_p}


def loss(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """Negative log-likelihood of x plus the penalty on self-consistency: the paper's section 4.1.

    Args:
        outputs: Of the network. Shape ``[n, 3, 1 + sites]``.
        targets: ``site`` and ``value``, shapes ``[n]``.
    """
    return -outputs[:, WHOLE, 0].mean() + PENALTY * _missed(outputs, targets).square().mean()


def bits_per_dimension(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """-log2 p_θ(x) / D of each sample; at best the entropy. ``[n, 3, 1 + sites]`` -> ``[n]``."""
    bits = -outputs[:, WHOLE, 0] / (log(2) * (outputs.shape[-1] - 1))
    return bits.clamp(0, WORST_BITS)


def inconsistency(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """|log p(x_S) + log p(x_i | x_S) - log p(x_S, x_i)| of each sample, in nats. ``[n]``."""
    return _missed(outputs, targets).abs().clamp(max=WORST_NATS)


def log_partition_error(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """|log Z - its estimate|, in nats: the mean of log f(x) - log p_θ(x) over exact samples x.

    Bits per dimension fall where p_θ sums to more than 1; this does not.
    """
    return (targets["log_p"][:, WHOLE] - outputs[:, WHOLE, 0].double()).mean().abs()


def rank_correlation(outputs: Tensor, targets: dict[str, Tensor]) -> float:
    """Spearman's correlation of the marginals log p(x_S) with the exact ones."""
    return _correlation(outputs, targets, np.zeros(len(outputs), dtype=int))


def rank_correlation_same_size(outputs: Tensor, targets: dict[str, Tensor]) -> float:
    """The same with ranks among sets S of the same size.

    More spins are less probable in any model, so it is harder to get these right.
    """
    return _correlation(outputs, targets, targets["known"].numpy())


def _correlation(outputs: Tensor, targets: dict[str, Tensor], group: np.ndarray) -> float:
    found = _ranks_within(group, outputs[:, BEFORE, 0].numpy())
    exact = _ranks_within(group, targets["log_p"][:, BEFORE].numpy())
    return float(np.corrcoef(found, exact)[0, 1])


def _ranks_within(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Ranks among values of the same group, from -1/2 to 1/2. Shape ``[n]``."""
    # Far enough apart that all of one group come before those of the next.
    ranks = rankdata(values + 1e3 * group)
    counts = np.bincount(group)
    means = np.bincount(group, ranks) / np.maximum(counts, 1)
    return (ranks - means[group]) / counts[group]


def _missed(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    before, after = outputs[:, BEFORE], outputs[:, AFTER]
    return residuals(before, after, targets["site"], targets["value"])
