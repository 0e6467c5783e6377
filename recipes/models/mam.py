"""A marginalization model of binary variables, and the loss that makes it one.

One pass answers any marginal: of x in {-1, +1, ?}^D, ? being summed over and written as 0, the
network returns log p(x_S) of the known values, and for each unknown one the log-odds of +1 given
them. Both are one network of two heads here. What makes them marginals is self-consistency:

    log p(x_S) + log p(x_i | x_S) = log p(x_S, x_i)   for all S, i, x,   and   log p(?, ..., ?) = 0

References:
    Liu, Ramadge, Adams (2023), Generative marginalization models, arXiv:2310.12920, section 3.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MarginalizationModel(nn.Module):
    """A residual MLP.

    Args:
        sites: D, the number of variables.
        hidden: Width of the residual stream.
        inner: Width within each block.
        blocks: Number of residual blocks.
    """

    def __init__(self, sites: int, hidden: int, inner: int, blocks: int) -> None:
        super().__init__()
        self.embed = nn.Linear(2 * sites, hidden)
        self.down = nn.ModuleList(nn.Linear(hidden, inner) for _ in range(blocks))
        self.up = nn.ModuleList(nn.Linear(inner, hidden) for _ in range(blocks))
        self.heads = nn.Linear(hidden, 1 + sites)

    def forward(self, x: Tensor) -> Tensor:
        """Answer questions.

        Args:
            x: Of -1, +1 and 0 for unknown, as floats. Shape ``[..., sites]``.
        Returns:
            log p(x_S), then the log-odds of +1 at each site, which mean something where it is
            unknown. Shape ``[..., 1 + sites]``.
        """
        h = F.relu(self.embed(torch.cat([x, x * x], dim=-1)))
        for down, up in zip(self.down, self.up, strict=True):
            h = F.relu(h + up(F.relu(down(h))))
        return self.heads(h)


def residuals(before: Tensor, after: Tensor, site: Tensor, value: Tensor) -> Tensor:
    """By how much self-consistency is missed.

    Args:
        before: Of the model for x_S. Shape ``[n, 1 + sites]``.
        after: Of the model for x_S and x_i. Shape ``[n, 1 + sites]``.
        site: i. Shape ``[n]``, integers.
        value: x_i, -1 or +1. Shape ``[n]``.
    Returns:
        log p(x_S) + log p(x_i | x_S) - log p(x_S, x_i) in nats. Shape ``[n]``.
    """
    return before[..., 0] + log_conditionals(before, site, value) - after[..., 0]


def log_conditionals(before: Tensor, site: Tensor, value: Tensor) -> Tensor:
    """log p(x_i | x_S).

    Args:
        before: Of the model for x_S. Shape ``[..., 1 + sites]``.
        site: i. Shape ``[...]``, integers.
        value: x_i, -1 or +1. Shape ``[...]``.
    Returns:
        In nats. Shape ``[...]``.
    """
    log_odds = before.gather(-1, 1 + site.unsqueeze(-1)).squeeze(-1)
    return F.logsigmoid(value * log_odds)


def growing_sets(x: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """Hide values in a random order, up to a random place in it and to the places behind that.

    Args:
        x: Of -1 and +1. Shape ``[n, sites]``.
        terms: How many values to make known, one by one.
    Returns:
        The values with more and more of them known, shape ``[n, terms + 1, sites]``, and which one
        is the next, shape ``[n, terms]``.
    """
    order = torch.rand_like(x).argsort(1)
    place = order.argsort(1)[:, None]  # of each site, in the order
    first = torch.randint(x.shape[1] - terms + 1, (len(x), 1))
    known = first + torch.arange(terms + 1)
    return x[:, None] * (place < known[..., None]), order.gather(1, known[:, :-1])


@torch.no_grad()
def resample(model: MarginalizationModel, x: Tensor, sites: int) -> Tensor:
    """Draw random sites anew, given the others: block Gibbs sampling.

    Args:
        model: Gives the conditionals.
        x: Of -1 and +1. Shape ``[n, sites]``.
        sites: How many, the same for each sample.
    """
    chosen = torch.rand_like(x).argsort(1)[:, :sites]
    x = x.scatter(1, chosen, 0.0)
    for site in chosen.T[..., None]:
        log_odds = model(x).gather(1, 1 + site)
        x = x.scatter(1, site, 2 * torch.bernoulli(log_odds.sigmoid()) - 1)
    return x


def train_on_chains(
    model: MarginalizationModel,
    optimizer: torch.optim.Optimizer,
    chains: Tensor,
    steps: int,
    *,
    batch: int,
    sites: int,
    loss: Callable[[Tensor], Tensor],
) -> None:
    """Fit a model with the help of samples of its own, and leave it in evaluation mode.

    Args:
        model: Changed in place.
        optimizer: Its learning rate is the highest one.
        chains: Where the samples start from; each goes on whenever it is drawn. Shape
            ``[chains, sites]``, changed in place.
        steps: Of the optimizer.
        batch: Chains of a step. Others each time: a few, which move slowly, would be learnt by
            heart.
        sites: That a chain draws anew in a step.
        loss: Of the model's samples, shape ``[batch, sites]``.
    """
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, optimizer.defaults["lr"], total_steps=steps
    )
    model.train()
    for step in range(steps):
        chosen = torch.randperm(len(chains))[:batch]
        own = chains[chosen] = resample(model, chains[chosen], sites)
        optimizer.zero_grad()
        value = loss(own)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"step {step}: loss {value:.4f}", flush=True)
    model.eval()
